"""Which experiments and runs: names, ids, globs, times, filters, and the relatives of nested runs."""

from __future__ import annotations

import difflib
import fnmatch
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal, cast

import msgspec

from mlflow_bundle._codec import decode_record, encode
from mlflow_bundle._spool import LineSpool
from mlflow_bundle._text import plural
from mlflow_bundle.errors import BundleError, CorruptError, NotFoundError, UsageError
from mlflow_bundle.kinds import PARENT_TAG
from mlflow_bundle.records import Experiment, Run, Scope, order_key
from mlflow_bundle.tracking._port import MlflowSource, RunQuery

__all__ = ["Selected", "Selection", "missing_or_unreadable", "parent_of", "parse_time", "select"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Lifecycle = Literal["all", "active", "deleted"]
Moment = str | int | datetime | date


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a caller asks for. Nothing set means everything. ``since`` and ``until`` are milliseconds, both inclusive."""

    experiments: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    filter: str = ""
    since: int | None = None
    until: int | None = None
    lifecycle: Lifecycle = "all"
    descendants: bool = False
    models: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    logged_models: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        experiment: str | Sequence[str] | None = None,
        run: str | Sequence[str] | None = None,
        filter: str | None = None,  # noqa: A002 - MLflow's own word
        since: Moment | None = None,
        until: Moment | None = None,
        lifecycle: Lifecycle = "all",
        descendants: bool = False,
        model: str | Sequence[str] | None = None,
        prompt: str | Sequence[str] | None = None,
        logged_model: str | Sequence[str] | None = None,
    ) -> Selection:
        """A selection from the arguments of ``pack`` and ``unpack``.

        Raises:
            UsageError: a time that cannot be understood, an unknown lifecycle, or since after until.
        """
        if lifecycle not in ("all", "active", "deleted"):
            raise UsageError(f"lifecycle is 'all', 'active' or 'deleted', not {lifecycle!r}")
        start = None if since is None else parse_time(since, end=False)
        end = None if until is None else parse_time(until, end=True)
        if start is not None and end is not None and start > end:
            raise UsageError(f"since ({since}) is later than until ({until})")
        return cls(
            experiments=_texts(experiment),
            runs=_texts(run),
            filter=filter or "",
            since=start,
            until=end,
            lifecycle=lifecycle,
            descendants=descendants,
            models=_texts(model),
            prompts=_texts(prompt),
            logged_models=_texts(logged_model),
        )

    @property
    def whole(self) -> bool:
        """Whether everything was asked for."""
        return not self.experiments and not self.narrows_runs and not self.by_model

    @property
    def by_model(self) -> bool:
        """Whether models or prompts were named."""
        return bool(self.models or self.prompts or self.logged_models)

    @property
    def only_models(self) -> bool:
        """Whether nothing but models and prompts was named: then only the runs that they need are selected."""
        return self.by_model and not self.experiments and not self.narrows_runs

    @property
    def narrows_runs(self) -> bool:
        """Whether some runs of the experiments may be left out."""
        return bool(self.runs or self.filter or self.since is not None or self.until is not None or self.lifecycle != "all")

    @classmethod
    def of_scope(cls, scope: Scope) -> Selection:
        """The selection that a snapshot records."""
        return cls(**msgspec.structs.asdict(scope))

    def scope(self) -> Scope:
        """The selection as a snapshot records it."""
        return Scope(
            experiments=self.experiments,
            runs=self.runs,
            filter=self.filter,
            since=self.since,
            until=self.until,
            lifecycle=self.lifecycle,
            descendants=self.descendants,
            models=self.models,
            prompts=self.prompts,
            logged_models=self.logged_models,
        )


def _texts(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def parse_time(moment: Moment, *, end: bool) -> int:
    """A time as milliseconds since 1970. Text is ISO 8601; without a zone it is UTC; a date alone is its first
    millisecond, or with ``end`` its last. An integer is milliseconds already.

    Raises:
        UsageError: it cannot be understood.
    """
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str) and moment.isdigit() and len(moment) > 8:
        return int(moment)
    try:
        if isinstance(moment, str):
            moment = _day(moment) or datetime.fromisoformat(moment)
    except ValueError as error:
        raise UsageError(
            f"{moment!r} is not a time", hint="write 2026-11-01, 2026-11-01T12:00 (UTC) or 2026-11-01T12:00+01:00"
        ) from error
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time(23, 59, 59, 999_000) if end else time.min)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _day(text: str) -> date | None:
    """A date without a time, in any spelling of ISO 8601."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


@dataclass(slots=True)
class Selected:
    """What a selection means at a source. ``runs`` can be iterated once, in archive order. ``run_ids`` are their ids, None
    where everything is selected; ``known`` are all experiments of the source, ``named`` those that the selection asks for."""

    experiments: list[Experiment]
    runs: Iterator[Run]
    run_ids: set[str] | None
    known: list[Experiment]
    named: list[Experiment]
    selection: Selection

    @property
    def narrowed(self) -> list[str] | None:
        """The ids of the runs where the selection narrows the runs of its experiments, else None."""
        return sorted(self.run_ids or ()) if self.selection.narrows_runs else None


def select(source: MlflowSource, selection: Selection, *, needed: Sequence[str] = ()) -> Selected:
    """Find the experiments and runs of a selection. The ancestors of a selected run are selected too, and its descendants
    where that was asked for. Experiments without a selected run are kept only where they were named or nothing narrows.
    ``needed`` are runs that selected models come from; they are selected as far as they exist.

    Raises:
        NotFoundError: an experiment or run that was named does not exist.
    """
    known = source.experiments()
    if selection.whole:
        return Selected(known, (run for batch in source.runs(RunQuery()) for run in batch), None, known, known, selection)
    named = _named(source, known, selection.experiments)
    query = RunQuery(
        experiment_ids=tuple(e.experiment_id for e in named) if selection.experiments else None,
        run_ids=selection.runs or None,
        filter=selection.filter,
        since=selection.since,
        until=selection.until,
        lifecycle=selection.lifecycle,
    )
    spool, ids, wanted = LineSpool(), set[str](), set(needed)
    experiments = {e.experiment_id for e in named}
    for batch in () if selection.only_models else source.runs(query):
        for run in batch:
            spool.add(encode(run))
            ids.add(run.run_id)
            wanted.add(parent_of(run) or "")
            experiments.add(run.experiment_id)
    if missing := [run for run in selection.runs if run not in ids]:
        _explain_missing_runs(source, missing)
    relatives = _relatives(source, ids, wanted - {""}, descendants=selection.descendants)
    experiments |= {run.experiment_id for run in relatives}
    ids |= {run.run_id for run in relatives}
    return Selected(
        [e for e in known if e.experiment_id in experiments],
        _merged(spool, relatives),
        ids,
        known,
        named if selection.experiments else [],
        selection,
    )


def _named(source: MlflowSource, known: Sequence[Experiment], patterns: Sequence[str]) -> list[Experiment]:
    """The experiments that any of the patterns means: an exact name, else an id, else a glob over names."""
    found: dict[str, Experiment] = {}
    for pattern in patterns:
        matches = (
            [e for e in known if e.name == pattern]
            or [e for e in known if e.experiment_id == pattern]
            or [e for e in known if fnmatch.fnmatchcase(e.name, pattern)]
        )
        if not matches:
            raise _no_experiment(source, pattern, [e.name for e in known])
        found |= {e.experiment_id: e for e in matches}
    return list(found.values())


def _no_experiment(source: MlflowSource, pattern: str, names: Sequence[str]) -> BundleError:
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
    nameless = [problem.id for problem in source.problems() if problem.kind == "experiment" and problem.id]
    hint = None if names else "there are no experiments at all"
    if nameless and not close:
        hint = f"{plural(len(nameless), 'experiment')} cannot be read: only the id is known (for example {nameless[0]})"
    missing = NotFoundError(
        f"no experiment named {pattern!r}", code="experiment-not-found", close=close, known=names, hint=hint
    )
    return missing_or_unreadable(source, "experiment", pattern, missing)


def missing_or_unreadable(source: MlflowSource, kind: str, identity: str, missing: NotFoundError) -> BundleError:
    """The error about an entity that was named and was not among those that the source could read: ``missing``, unless it is
    there and cannot be read. Its hint tells where others of the kind cannot be read, of which it may be one."""
    of_kind = [problem for problem in source.problems() if problem.kind == kind]
    for problem in of_kind:
        if problem.id == identity or (kind == "run" and not problem.id and identity in problem.runs):
            return CorruptError(problem.message, code=problem.code, hint="mend it at the source, or do not select it")
    if unnamed := [problem for problem in of_kind if not problem.id]:
        missing.hint = f"it may be among what cannot be read: {unnamed[0].message}"
    return missing


def _explain_missing_runs(source: MlflowSource, missing: Sequence[str]) -> None:
    """A run that was named and does not exist is an error; one that the other conditions exclude is not."""
    existing = {run.run_id for run in source.runs_by_id(missing)}
    absent = [run for run in missing if run not in existing]
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        hint = "a run is named by its whole id, as `mlflow-bundle show` and MLflow's UI tell it"
        error = NotFoundError(f"no run with the id {absent[0]!r}{more}", code="run-not-found", hint=hint)
        raise missing_or_unreadable(source, "run", absent[0], error)


def parent_of(run: Run) -> str | None:
    """The id of the parent run, from the tag that MLflow sets."""
    return next((tag.value for tag in run.tags if tag.key == PARENT_TAG), None)


def _relatives(source: MlflowSource, ids: set[str], wanted: set[str], *, descendants: bool) -> list[Run]:
    """The ancestors that are not selected yet, and the descendants where asked for."""
    found: dict[str, Run] = {}
    if descendants:
        frontier = set(ids)
        while frontier:
            children = {r.run_id: r for r in source.children(sorted(frontier)) if r.run_id not in ids}
            frontier = {run for run in children if run not in found}
            found |= {run: children[run] for run in frontier}
    missing = wanted - ids - found.keys()
    while missing:
        parents = source.runs_by_id(sorted(missing))
        found |= {run.run_id: run for run in parents}
        missing = {p for run in parents if (p := parent_of(run))} - ids - found.keys()
    return sorted(found.values(), key=order_key)


def _merged(spool: LineSpool, relatives: Iterable[Run]) -> Iterator[Run]:
    """Both in archive order."""
    selected = (cast("Run", decode_record(line, "run", name="spool")) for line in spool.lines())
    try:
        yield from heapq.merge(selected, relatives, key=order_key)
    finally:
        spool.close()
