"""Which entities of the other kinds go along with the selected experiments and runs.

Kinds are read from the last rank to the first: what refers comes before what it refers to, so that, with a server that is
being written to, whatever a record names is either there when its kind is read or was gone already.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from mlflow_bundle._codec import encode
from mlflow_bundle._parallel import prefetch
from mlflow_bundle._spool import LineSpool
from mlflow_bundle.entities import Experiment, LoggedModel, ModelVersion, Record, RegisteredModel, Run
from mlflow_bundle.errors import NotFoundError
from mlflow_bundle.kinds import KINDS, PROMPT_TAG, Kind, order_key, record_id
from mlflow_bundle.tracking._port import PARENTS, EntityQuery, MlflowSource
from mlflow_bundle.tracking._select import Selected, Selection, missing_or_unreadable, select

__all__ = ["Collected", "Gathered", "collect"]

_FIRST: Final = ("experiment", "run")
#: After a batch of so many records the next ones are read meanwhile.
_MANY: Final = 500
#: Versions are numbers of 64 bits at most.
_DIGITS: Final = 19


class Gathered:
    """Records of all kinds but experiments and runs, kept on disk, with what is known of the references between them."""

    def __init__(self) -> None:
        self._spools: dict[str, LineSpool] = {}
        self._late: dict[str, list[Record]] = defaultdict(list)
        #: Ids that records name and that were not read so far, by kind.
        self.wanted: dict[str, set[str]] = defaultdict(set)
        self.counts: dict[str, int] = defaultdict(int)
        self._models: set[str] = set()
        #: Whether the logged models that runs name come along; not where models themselves were selected.
        self.follows_runs = True

    def take(self, kind: str, batches: Iterable[Sequence[Record]], progress: Callable[[int], object] = lambda _: None) -> None:
        """Keep the records of one kind, which come in archive order."""
        spool = self._spools.setdefault(kind, LineSpool())
        source = iter(batches)
        first = next(source, ())
        with ExitStack() as stack:
            # Where this fails, its thread ends before anybody closes the source.
            rest = stack.enter_context(closing(prefetch(source))) if len(first) >= _MANY else source
            for batch in chain([first], rest):
                for record in batch:
                    spool.add(encode(record))
                    self._note(kind, record)
                progress(len(batch))

    def _note(self, kind: str, record: Record) -> None:
        self.counts[kind] += 1
        identity = record_id(record)
        self.wanted[kind].discard(identity)
        if kind == "logged_model":
            self._models.add(identity)
        for other, name in KINDS[kind].references(record):
            self.wanted[other].add(name)

    def run(self, run: Run) -> None:
        """Note a run that goes into the archive: what it names may have to be fetched."""
        self.wanted["run"].discard(run.run_id)
        for kind, name in KINDS["run"].references(run):
            if kind == "logged_model" and name not in self._models:
                self.wanted[kind].add(name)

    def fetch_models(self, source: MlflowSource) -> None:
        """Read the logged models that runs name and that were not listed: deleted ones, or newer than the list."""
        missing = tuple(sorted(self.wanted["logged_model"])) if self.follows_runs else ()
        if missing and "logged_model" in source.kinds():
            for batch in source.entities("logged_model", EntityQuery(ids=missing)):
                for record in batch:
                    if record_id(record) not in self._models:
                        self._late["logged_model"].append(record)
                        self._note("logged_model", record)

    def kinds(self) -> list[str]:
        """The kinds with records, in archive order."""
        return [kind for kind in KINDS if self.counts.get(kind)]

    def records(self, kind: str) -> Iterator[Record]:
        """The records of a kind in archive order; may be asked for several times, in turn."""
        return (record for _, record in self.lines(kind))

    def lines(self, kind: str) -> Iterator[tuple[bytes, Record]]:
        """The same with their lines."""
        spool, decode = self._spools.get(kind), msgspec.json.Decoder(KINDS[kind].type).decode
        found = ((line, decode(line)) for line in spool.lines()) if spool else iter(())
        late = [(encode(record), record) for record in sorted(self._late[kind], key=order_key)]
        return heapq.merge(found, late, key=lambda both: order_key(both[1])) if late else found

    def experiment_ids(self) -> set[str]:
        """The experiments that records name."""
        return set(self.wanted["experiment"])

    def dangling(self, ids: Mapping[str, Sequence[str]]) -> list[str]:
        """A sentence for each kind that records name and that is not among ``ids``: it was deleted, or is not selected."""
        notes = []
        for kind, names in self.wanted.items():
            missing = names.difference(ids[kind]) if kind in ids else names
            if missing:
                notes.append(
                    f"{len(missing):,} {kind.replace('_', ' ')} ids that records name are not in the snapshot: they were"
                    f" deleted, or are not selected (for example {min(missing)})"
                )
        return notes

    def close(self) -> None:
        """Remove the temporary files."""
        for spool in self._spools.values():
            spool.close()


class Collected(NamedTuple):
    """What a selection means at a source: experiments and runs, and what goes along."""

    selected: Selected
    gathered: Gathered

    def experiments(self) -> list[Experiment]:
        """The experiments of the selection and those that its entities are in."""
        wanted = {experiment.experiment_id for experiment in self.selected.experiments} | self.gathered.experiment_ids()
        return [experiment for experiment in self.selected.known if experiment.experiment_id in wanted]


def collect(source: MlflowSource, selection: Selection, *, progress: Callable[[int], object] = lambda _: None) -> Collected:
    """Find everything that a selection means, in the order that a source which is being written to needs.

    Raises:
        NotFoundError: something that was named does not exist.
    """
    if selection.whole:
        gathered = gather(source, selection, experiment_ids=None, run_ids=None, needed=None, progress=progress)
        return Collected(select(source, selection), gathered)
    needed = needed_by_models(source, selection)
    selected = select(source, selection, needed=needed.runs if needed else ())
    gathered = gather(
        source,
        selection,
        experiment_ids=[experiment.experiment_id for experiment in selected.named],
        run_ids=selected.narrowed,
        needed=needed,
        progress=progress,
    )
    gathered.follows_runs = not selection.only_models
    return Collected(selected, gathered)


class Needed:
    """What selected models and prompts need: ids of each kind, and the runs."""

    def __init__(self) -> None:
        self.ids: dict[str, set[str]] = defaultdict(set)
        self.versions: dict[str, set[int] | None] = {}
        #: Versions that were named, by id, with the error for one that does not exist.
        self.asked: dict[str, NotFoundError] = {}

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that the selected models come from."""
        return tuple(sorted(self.ids["run"]))


def gather(
    source: MlflowSource,
    selection: Selection,
    *,
    experiment_ids: Sequence[str] | None,
    run_ids: Sequence[str] | None,
    needed: Needed | None,
    progress: Callable[[int], object] = lambda _: None,
) -> Gathered:
    """Read what goes along: all that the source has for a whole selection; for some experiments what is in them; for some
    runs the logged models and traces of those; for models and prompts just those and what they need.

    ``experiment_ids`` are those of selected experiments, ``run_ids`` those of selected runs where the selection narrows them.
    """
    gathered = Gathered()
    try:
        for kind in sorted((KINDS[name] for name in source.kinds()), key=lambda kind: -kind.rank):
            if kind.name in _FIRST or kind.name in PARENTS:
                continue
            queries = list(_queries(kind, selection, experiment_ids, run_ids, needed))
            parts = [KINDS[name] for name, whole in PARENTS.items() if whole == kind.name and name in source.kinds()]
            if queries == [EntityQuery()]:
                for part in parts:
                    gathered.take(part.name, source.entities(part.name, EntityQuery()), progress)
                gathered.take(kind.name, source.entities(kind.name, EntityQuery()), progress)
                continue
            gathered.take(kind.name, _merged(source, kind, queries), progress)
            for part in parts:
                gathered.take(part.name, _parts(source, gathered, part, kind, needed), progress)
    except BaseException:
        gathered.close()
        raise
    return gathered


def _queries(
    kind: Kind,
    selection: Selection,
    experiment_ids: Sequence[str] | None,
    run_ids: Sequence[str] | None,
    needed: Needed | None,
) -> Iterator[EntityQuery]:
    """What to ask of a kind; several queries are a union."""
    if selection.whole:
        yield EntityQuery()
        return
    if needed and needed.ids[kind.name]:
        yield EntityQuery(ids=tuple(sorted(needed.ids[kind.name])))
    if run_ids is not None:
        if kind.name in ("logged_model", "trace") and run_ids:
            yield EntityQuery(run_ids=tuple(run_ids))
    elif experiment_ids and not kind.is_server_wide:
        yield EntityQuery(experiment_ids=tuple(experiment_ids))


def _merged(source: MlflowSource, kind: Kind, queries: Sequence[EntityQuery]) -> Iterator[Sequence[Record]]:
    """The union of the answers, in archive order, each record once."""
    if len(queries) <= 1:
        for query in queries:
            yield from source.entities(kind.name, query)
        return
    streams = [(record for batch in source.entities(kind.name, query) for record in batch) for query in queries]
    last = None
    for record in heapq.merge(*streams, key=order_key):
        if order_key(record) != last:
            last = order_key(record)
            yield [record]


def _parts(
    source: MlflowSource, gathered: Gathered, part: Kind, whole: Kind, needed: Needed | None
) -> Iterator[Sequence[Record]]:
    """The versions of the models, the records of the datasets that were taken."""
    parents = tuple(record_id(record) for record in gathered.records(whole.name))
    for batch in source.entities(part.name, EntityQuery(parents=parents)) if parents else ():
        by_version = needed is not None and part.name == "model_version"
        yield [record for record in batch if not by_version or _version_is_wanted(record, needed)]


def _version_is_wanted(record: Record, needed: Needed | None) -> bool:
    """Of a model that was selected by version or alias, only those versions."""
    assert isinstance(record, ModelVersion)
    assert needed is not None
    wanted = needed.versions.get(record_id(record).rpartition("/")[0])
    return wanted is None or record.version in wanted


# -- selection by model ------------------------------------------------------------------------------------------------


def needed_by_models(source: MlflowSource, selection: Selection) -> Needed | None:
    """What the selected registered models, prompts and logged models need; None where none was selected.

    ``NAME`` takes all versions, ``NAME/3`` and ``NAME@alias`` one. A version takes along its run and its logged model, a
    logged model the run that made it, a run its experiment and its ancestors; nothing else.

    Raises:
        NotFoundError: one of them does not exist.
    """
    if not selection.by_model:
        return None
    needed = Needed()
    for text in (*selection.models, *selection.prompts):
        _need_registered(source, text, needed, prompt=text in selection.prompts)
    needed.ids["logged_model"] |= set(selection.logged_models)
    wanted = tuple(sorted(needed.ids["registered_model"]))
    if wanted:
        for batch in source.entities("model_version", EntityQuery(parents=wanted)):
            for version in batch:
                needed.asked.pop(record_id(version), None)
                if _version_is_wanted(version, needed):
                    _follow(version, needed)
    for version_id, missing in needed.asked.items():
        raise missing_or_unreadable(source, "model_version", version_id, missing)
    _need_logged(source, selection, needed)
    return needed


def _follow(record: Record, needed: Needed) -> None:
    for kind, name in KINDS[str(record.__struct_config__.tag)].references(record):
        if kind in ("run", "logged_model"):
            needed.ids[kind].add(name)


def _need_registered(source: MlflowSource, text: str, needed: Needed, *, prompt: bool) -> None:
    """Find a registered model or prompt by ``NAME``, ``NAME/VERSION`` or ``NAME@ALIAS``."""
    name, version, alias = text, "", ""
    found = _registered(source, name)
    if found is None and "@" in text:
        name, _, alias = text.rpartition("@")
        found = _registered(source, name)
    if found is None and _is_number(text.rpartition("/")[2]):
        name, _, version = text.rpartition("/")
        found = _registered(source, name)
    what = "prompt" if prompt else "registered model"
    if found is None or _is_prompt(found) is not prompt:
        missing = NotFoundError(f"no {what} {text!r}", code="model-not-found", hint="NAME, NAME/VERSION or NAME@ALIAS")
        raise missing_or_unreadable(source, "registered_model", name, missing)
    numbers = {int(version)} if version else {a.version for a in found.aliases if a.alias == alias}
    if alias and not numbers:
        raise NotFoundError(f"{what} {name!r} has no alias {alias!r}", code="model-not-found")
    identity = record_id(found)
    needed.ids["registered_model"].add(identity)
    for number in numbers:
        missing = NotFoundError(f"{what} {name!r} has no version {number}", code="model-not-found")
        needed.asked[f"{identity}/{number}"] = missing
    known = needed.versions.get(identity, set())
    needed.versions[identity] = known | numbers if (version or alias) and known is not None else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def _registered(source: MlflowSource, name: str) -> RegisteredModel | None:
    for batch in source.entities("registered_model", EntityQuery(ids=(name,))):
        for record in batch:
            assert isinstance(record, RegisteredModel)
            return record
    return None


def _is_prompt(model: RegisteredModel) -> bool:
    return any(tag.key == PROMPT_TAG and (tag.value or "").lower() == "true" for tag in model.tags)


def _need_logged(source: MlflowSource, selection: Selection, needed: Needed) -> None:
    """The logged models that are needed, and the runs that made them."""
    wanted = tuple(sorted(needed.ids["logged_model"]))
    if not wanted:
        return
    found = set()
    for batch in source.entities("logged_model", EntityQuery(ids=wanted)):
        for model in batch:
            assert isinstance(model, LoggedModel)
            found.add(model.model_id)
            _follow(model, needed)
    for model_id in selection.logged_models:
        if model_id not in found:
            missing = NotFoundError(f"no logged model {model_id!r}", code="model-not-found")
            raise missing_or_unreadable(source, "logged_model", model_id, missing)
