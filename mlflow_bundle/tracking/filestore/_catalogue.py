"""What a file store holds and where: experiments, and the entities of each kind in archive order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from mlflow_bundle.entities import Experiment, Record
from mlflow_bundle.errors import BundleError, NotFoundError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import Problem, order_key
from mlflow_bundle.tracking.filestore import _layout as layout
from mlflow_bundle.tracking.filestore._index import Index
from mlflow_bundle.tracking.filestore._layout import broken, dead_links, read_meta, read_pairs, subfolders
from mlflow_bundle.tracking.filestore._records import (
    experiment_of,
    leftovers,
    logged_model_of,
    registered_model_of,
    run_of,
    trace_of,
    version_of,
)

__all__ = ["KINDS_OF_STORE", "Catalogue"]

#: The kinds beside experiments and runs that a file store has, in archive order.
KINDS_OF_STORE: Final = ("logged_model", "registered_model", "model_version", "trace")
_IN_EXPERIMENT: Final = {"run": "", "logged_model": layout.MODELS, "trace": layout.TRACES}
_READERS: Final[Mapping[str, Callable[..., Record]]] = {"run": run_of, "logged_model": logged_model_of, "trace": trace_of}
#: What a run, logged model, version or trace has beside its YAML. A folder with none of it is somebody else's.
_OF_AN_ENTITY: Final = (layout.METRICS, layout.PARAMS, layout.TAGS, layout.INPUTS, layout.OUTPUTS, layout.TRACE_METADATA)


_R = TypeVar("_R")


class Catalogue:
    """The store in the folder ``root``. Experiments are read at once, the rest when it is asked for.

    Raises:
        NotFoundError: there is no file store.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.problems: list[Problem] = []
        #: Folders that hold no YAML, and entries of YAML that no record has a place for: counts with an example.
        self._ignored: dict[tuple[str, str], tuple[int, str]] = {}
        self._indexes: dict[str, Index] = {}
        self._indexed: dict[str, set[str]] = {}
        #: The folders of the experiments by id.
        self.folders: dict[str, str] = {}
        if not Path(root).is_dir():
            raise NotFoundError(
                f"there is no folder {root!r}", hint="name the folder of a file store, http://..., or a database"
            )
        self.experiments = sorted(self._experiments(), key=order_key)
        if not self.experiments and not self.problems and not Path(root, layout.MODELS).is_dir():
            raise NotFoundError(
                f"the folder {root!r} is no file store: none of its folders holds a {layout.META}",
                hint="where MLflow keeps its records in a database, name that: sqlite:///mlflow.db",
            )

    # -- experiments -----------------------------------------------------------------------------------------------

    def _experiments(self) -> Iterator[Experiment]:
        for home, in_trash in ((self.root, False), (f"{self.root}/{layout.TRASH}", True)):
            for name in subfolders(home):
                if not in_trash and name in (layout.TRASH, layout.MODELS):
                    continue
                place = _Place(f"{home}/{name}", name, experiment_id=name)
                if os.path.lexists(place.meta):
                    experiment = self._experiment(place, in_trash=in_trash)
                    if experiment is not None:
                        yield experiment
                elif (problem := self._without_meta("experiment", place)) is not None:
                    self.problems.append(problem)
            self.problems += [_led_nowhere("experiment", name, f"{home}/{name}", name) for name in dead_links(home)]

    def _experiment(self, place: _Place, *, in_trash: bool) -> Experiment | None:
        unreadable: list[BundleError] = []
        tags = read_pairs(f"{place.folder}/{layout.TAGS}", unreadable)
        experiment: Experiment | None = None
        try:
            if place.name in self.folders:
                raise broken(place.folder, f"the experiment is in {self.folders[place.name]}, too")
            meta = read_meta(place.meta)
            experiment = _checked(place.meta, lambda: experiment_of(meta, place.name, in_trash=in_trash, tags=tags))
            self.folders[place.name] = place.folder
            self._leave("experiment", meta, place.folder)
        except BundleError as error:
            unreadable.append(error)
        left_out = experiment is None
        self.problems += [problem_of("experiment", place.name, one, place.name, left_out=left_out) for one in unreadable]
        return experiment

    # -- what is in them -------------------------------------------------------------------------------------------

    def index(self, kind: str, experiment_ids: Sequence[str] | None = None) -> Index:
        """The index of a kind, with at least what these experiments (default: all) hold."""
        index = self._indexes.setdefault(kind, Index(kind))
        done = self._indexed.setdefault(kind, set())
        if kind not in _IN_EXPERIMENT:
            if not done:
                done.add("")
                self._index_registry()
            return index
        wanted = self.folders if experiment_ids is None else [name for name in experiment_ids if name in self.folders]
        for experiment_id in wanted:
            if experiment_id not in done:
                done.add(experiment_id)
                self._index_experiment(kind, experiment_id, index)
        return index

    def _index_experiment(self, kind: str, experiment_id: str, index: Index) -> None:
        home = f"{self.folders[experiment_id]}/{_IN_EXPERIMENT[kind]}".rstrip("/")
        file = layout.TRACE_META if kind == "trace" else layout.META
        for name in dead_links(home):
            index.broken.append((experiment_id, name, _led_nowhere(kind, name, f"{home}/{name}", experiment_id)))
        for name in subfolders(home):
            if kind != "run" or name not in layout.RESERVED:
                place = _Place(f"{home}/{name}", name, file, experiment_id)
                self._add(index, place, partial(_READERS[kind], folder=name, experiment_id=experiment_id))

    def _index_registry(self) -> None:
        models = self._indexes.setdefault("registered_model", Index("registered_model"))
        versions = self._indexes.setdefault("model_version", Index("model_version"))
        self._indexed["registered_model"] = self._indexed["model_version"] = {""}
        home = f"{self.root}/{layout.MODELS}"
        for name in dead_links(home):
            models.broken.append(("", name, _led_nowhere("registered_model", name, f"{home}/{name}")))
        for name in subfolders(home):
            for version in dead_links(f"{home}/{name}"):
                identity = f"{name}/{version.removeprefix(layout.VERSION)}"
                versions.broken.append(("", identity, _led_nowhere("model_version", identity, f"{home}/{name}/{version}")))
            self._add(models, _Place(f"{home}/{name}", name), partial(registered_model_of, folder=name))
            for version in subfolders(f"{home}/{name}"):
                if version.startswith(layout.VERSION):
                    place = _Place(f"{home}/{name}/{version}", f"{name}/{version.removeprefix(layout.VERSION)}")
                    self._add(versions, place, partial(version_of, folder=version, model=name))

    def _add(self, index: Index, place: _Place, read: Callable[[Any], Record]) -> None:
        """Put what a folder holds into an index, or the reason why that cannot be."""
        if not os.path.lexists(place.meta):
            problem = self._without_meta(index.kind, place)
        else:
            problem = self._indexed_or_not(index, place, read)
        if problem is not None:
            index.broken.append((place.experiment_id, place.name, problem))

    def _indexed_or_not(self, index: Index, place: _Place, read: Callable[[Any], Record]) -> Problem | None:
        try:
            meta = read_meta(place.meta)
            record = _checked(place.meta, lambda: read(meta))
            other = index.folder(record_id(record))
            if other is not None:
                raise broken(place.folder, f"the {_shown(index.kind)} is in {other}, too")
        except BundleError as error:
            return problem_of(index.kind, place.name, error, place.experiment_id, left_out=True)
        index.add(record, place.experiment_id, place.folder)
        self._leave(index.kind, meta, place.folder)
        return None

    # -- what is not archived --------------------------------------------------------------------------------------

    def _without_meta(self, kind: str, place: _Place) -> Problem | None:
        """A folder without YAML: it lost it where it looks like an entity otherwise, and is somebody else's where not."""
        inside = subfolders(place.folder)
        looks = {
            "experiment": any(os.path.lexists(f"{place.folder}/{run}/{layout.META}") for run in inside),
            "registered_model": any(version.startswith(layout.VERSION) for version in inside),
        }.get(kind, any(part in inside for part in _OF_AN_ENTITY))
        if looks:
            missing = broken(place.meta, "the file is missing")
            return problem_of(kind, place.name, missing, place.experiment_id, left_out=True)
        file = place.meta.rpartition("/")[2]
        self._ignore(f"folders of the file store hold no {file} and were left out as no {_shown(kind)}", "", place.folder)
        return None

    def _leave(self, kind: str, meta: dict[str, Any], folder: str) -> None:
        for name in leftovers(kind, meta):
            self._ignore(
                f"{kind.replace('_', ' ')}s have an entry in their YAML that no archive has a place for:", name, folder
            )

    def _ignore(self, what: str, name: str, folder: str) -> None:
        count, example = self._ignored.get((what, name), (0, folder))
        self._ignored[what, name] = (count + 1, example)

    def notes(self) -> list[str]:
        """What was left out because it is none of what MLflow keeps in a file store."""
        return [
            f"{count:,} {what}{f' {name!r}' if name else ''} (for example {example})"
            for (what, name), (count, example) in sorted(self._ignored.items())
        ]

    def close(self) -> None:
        """Remove the temporary files."""
        for index in self._indexes.values():
            index.close()


class _Place(NamedTuple):
    """The folder of an entity, the id that it stands for, the name of its YAML file, and the experiment that it is in."""

    folder: str
    name: str
    file: str = layout.META
    experiment_id: str = ""

    @property
    def meta(self) -> str:
        return f"{self.folder}/{self.file}"


def _checked(path: str, read: Callable[[], _R]) -> _R:
    """What a reader of YAML makes of the file ``path``.

    Raises:
        CorruptError: it is not what it should be.
    """
    try:
        return read()
    except (ValueError, msgspec.ValidationError) as error:
        raise broken(path, str(error)) from error


def _led_nowhere(kind: str, identity: str, folder: str, experiment_id: str = "") -> Problem:
    """The problem that the folder of an entity is a link that leads nowhere."""
    return problem_of(kind, identity, broken(folder, "it is a link that leads nowhere"), experiment_id, left_out=True)


def _shown(kind: str) -> str:
    return kind.replace("_", " ")


def problem_of(kind: str, identity: str, error: BundleError, experiment_id: str, *, left_out: bool = False) -> Problem:
    """The problem that something of an entity, or with ``left_out`` the whole of it, cannot be read."""
    whole = " and everything in it" if kind == "experiment" else ""
    left = f"; the {_shown(kind)}{whole} was left out" if left_out else ""
    return Problem(
        code=error.code,
        message=f"{error.message}{left}",
        kind=kind,
        id=identity,
        experiments=(experiment_id,) if experiment_id and not KINDS[kind].is_server_wide else (),
        runs=(identity,) if kind == "run" else (),
    )
