"""What a file store holds and where: experiments, and the entities of each kind in archive order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mlflow_bundle.entities import Experiment, Record
from mlflow_bundle.errors import BundleError, NotFoundError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import Problem, order_key
from mlflow_bundle.tracking.filestore import _layout as layout
from mlflow_bundle.tracking.filestore._index import Index
from mlflow_bundle.tracking.filestore._layout import broken, read_meta, read_pairs, subfolders
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
#: What a run folder has beside its YAML. A folder with none of it holds artifacts, or is somebody else's.
_OF_A_RUN: Final = (layout.METRICS, layout.PARAMS, layout.TAGS, layout.INPUTS, layout.OUTPUTS)


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
            raise NotFoundError(f"there is no folder {root!r}", hint="name the folder of a file store, http://..., or a database")
        self.experiments = sorted(self._experiments(), key=order_key)
        if not self.experiments and not self.problems and not Path(root, layout.MODELS).is_dir():
            raise NotFoundError(
                f"the folder {root!r} is no file store: none of its folders holds a {layout.META}",
                hint="where MLflow keeps its records in a database, name that: sqlite:///mlflow.db",
            )

    # -- experiments -----------------------------------------------------------------------------------------------

    def _experiments(self) -> Iterator[Experiment]:
        for place, in_trash in ((self.root, False), (f"{self.root}/{layout.TRASH}", True)):
            for name in subfolders(place):
                if not in_trash and name in (layout.TRASH, layout.MODELS):
                    continue
                folder = f"{place}/{name}"
                if not os.path.lexists(f"{folder}/{layout.META}"):
                    self._without_meta("experiment", name, folder, subfolders(folder))
                    continue
                experiment = self._experiment(folder, name, in_trash=in_trash)
                if experiment is not None:
                    yield experiment

    def _experiment(self, folder: str, name: str, *, in_trash: bool) -> Experiment | None:
        unreadable: list[BundleError] = []
        tags = read_pairs(f"{folder}/{layout.TAGS}", unreadable)
        experiment = None
        try:
            if name in self.folders:
                raise broken(folder, f"the experiment {name!r} is here and in {self.folders[name]}, too")
            meta = read_meta(f"{folder}/{layout.META}")
            experiment = _checked(folder, lambda: experiment_of(meta, name, in_trash=in_trash, tags=tags), layout.META)
            self.folders[name] = folder
            self._leave("experiment", meta, folder)
        except BundleError as error:
            unreadable.append(error)
        for error in unreadable:
            left = "" if experiment else "; the experiment and everything in it was left out"
            self.problems.append(
                Problem(
                    code=error.code, kind="experiment", id=name, message=f"{error.message}{left}", experiments=(name,)
                )
            )
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
        read = {"run": run_of, "logged_model": logged_model_of, "trace": trace_of}[kind]
        file = layout.TRACE_META if kind == "trace" else layout.META
        for name in subfolders(home):
            folder = f"{home}/{name}"
            if kind == "run" and name in layout.RESERVED:
                continue
            if not os.path.lexists(f"{folder}/{file}"):
                self._without_meta(kind, name, folder, subfolders(folder), index, experiment_id)
                continue
            self._add(index, folder, name, experiment_id, file, lambda meta, name=name: read(meta, name, experiment_id))

    def _index_registry(self) -> None:
        models = self._indexes.setdefault("registered_model", Index("registered_model"))
        versions = self._indexes.setdefault("model_version", Index("model_version"))
        self._indexed["registered_model"] = self._indexed["model_version"] = {""}
        home = f"{self.root}/{layout.MODELS}"
        for name in subfolders(home):
            folder = f"{home}/{name}"
            if not os.path.lexists(f"{folder}/{layout.META}"):
                self._without_meta("registered_model", name, folder, subfolders(folder), models)
                continue
            self._add(models, folder, name, "", layout.META, lambda meta, name=name: registered_model_of(meta, name))
            for version in subfolders(folder):
                if version.startswith("version-"):
                    read = lambda meta, name=name, version=version: version_of(meta, version, name)  # noqa: E731
                    identity = f"{name}/{version.removeprefix('version-')}"
                    self._add(versions, f"{folder}/{version}", identity, "", layout.META, read)

    def _add(
        self, index: Index, folder: str, name: str, experiment_id: str, file: str, read: Callable[[Any], Record]
    ) -> None:
        """Put what a folder holds into an index, or the reason why that cannot be."""
        try:
            meta = read_meta(f"{folder}/{file}")
            record = _checked(folder, lambda: read(meta), file)
            other = index.folder(record_id(record))
            if other is not None:
                raise broken(folder, f"the {index.kind.replace('_', ' ')} is in {other}, too")
        except BundleError as error:
            self._break(index, experiment_id, name, error)
            return
        index.add(record, experiment_id, folder)
        self._leave(index.kind, meta, folder)

    def _break(self, index: Index, experiment_id: str, name: str, error: BundleError) -> None:
        problem = problem_of(index.kind, name, error, experiment_id, left_out=True)
        index.broken.append((experiment_id, name, problem))

    # -- what is not archived --------------------------------------------------------------------------------------

    def _without_meta(
        self,
        kind: str,
        name: str,
        folder: str,
        inside: Sequence[str],
        index: Index | None = None,
        experiment_id: str = "",
    ) -> None:
        """A folder without YAML: it lost it where it looks like an entity otherwise, and holds something else where not."""
        file = layout.TRACE_META if kind == "trace" else layout.META
        looks = {
            "experiment": any(os.path.lexists(f"{folder}/{run}/{layout.META}") for run in inside),
            "registered_model": any(version.startswith("version-") for version in inside),
        }.get(kind, any(part in inside for part in _OF_A_RUN))
        if not looks:
            self._ignore(f"folders of the file store hold no {file} and were left out as no {kind.replace('_', ' ')}", "", folder)
            return
        error = broken(f"{folder}/{file}", "the file is missing")
        if index is not None:
            self._break(index, experiment_id, name, error)
            return
        self.problems.append(problem_of(kind, name, error, name, left_out=True))

    def _leave(self, kind: str, meta: dict[str, Any], folder: str) -> None:
        for name in leftovers(kind, meta):
            self._ignore(f"{kind.replace('_', ' ')}s have an entry in their YAML that no archive has a place for:", name, folder)

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


def _checked(folder: str, read: Callable[[], Any], file: str) -> Any:
    """What a reader of YAML makes of it.

    Raises:
        CorruptError: it is not what it should be.
    """
    try:
        return read()
    except (ValueError, msgspec.ValidationError) as error:
        raise broken(f"{folder}/{file}", str(error)) from error


def problem_of(kind: str, identity: str, error: BundleError, experiment_id: str, *, left_out: bool = False) -> Problem:
    """The problem that something of an entity, or with ``left_out`` the whole of it, cannot be read."""
    left = f"; the {kind.replace('_', ' ')} was left out" if left_out else ""
    return Problem(
        code=error.code,
        message=f"{error.message}{left}",
        kind=kind,
        id=identity,
        experiments=(experiment_id,) if experiment_id and not KINDS[kind].is_server_wide else (),
        runs=(identity,) if kind == "run" else (),
    )
