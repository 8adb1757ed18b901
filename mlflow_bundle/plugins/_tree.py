"""One snapshot as folders and files with readable names.

``experiments/<name>/runs/<run id>/artifacts/...`` and ``.../traces/<trace id>/artifacts/...``, ``logged_models/<id>/...``,
``models/<registered model>/<version>/...`` and ``tables/<table>.parquet``. An id also stands for a name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal, cast

import pyarrow.compute as pc

from mlflow_bundle._bundle import Bundle
from mlflow_bundle.entities import ModelVersion, RegisteredModel
from mlflow_bundle.errors import NotFoundError
from mlflow_bundle.kinds import record_id
from mlflow_bundle.plugins._names import part_of, parts_of
from mlflow_bundle.plugins._table_files import TABLE_FILES

__all__ = ["ARTIFACTS", "File", "Folder", "Node", "TableFile", "find", "root_of"]

ARTIFACTS: Final = "artifacts"
_DELETED: Final = "Deleted_Internal"


@dataclass(frozen=True, slots=True)
class File:
    """An archived file: its path as MLflow has it, size in bytes, SHA-256 in hex (None: it could not be read)."""

    path: str
    size: int
    sha256: str | None
    state: str


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table of the bundle, which becomes a Parquet file when it is read."""

    name: str


class Folder(ABC):
    """Something with named children, which are made when they are asked for."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """The children, as parts of paths, in archive order."""

    @abstractmethod
    def child(self, part: str) -> Node | None:
        """The child of that name, or None."""

    def folder(self, part: str) -> Folder | None:
        """The child of that name that is a folder, or None."""
        found = self.child(part)
        return found if isinstance(found, Folder) else None


Node = Folder | File | TableFile


class _Fixed(Folder):
    """Children that are known beforehand."""

    def __init__(self, children: Mapping[str, Callable[[], Node]]) -> None:
        self._children = children

    def names(self) -> Iterable[str]:
        return self._children

    def child(self, part: str) -> Node | None:
        make = self._children.get(part)
        return make() if make else None


class _Files(Folder):
    """Files of an entity by their paths, below one of its folders. A file and a folder may have one name: the file is listed,
    and what is in the folder is found."""

    def __init__(self, files: Iterable[tuple[str, File]]) -> None:
        self._files: dict[str, File] = {}
        self._folders: dict[str, list[tuple[str, File]]] = {}
        for path, file in files:
            head, slash, rest = path.partition("/")
            if slash:
                self._folders.setdefault(head, []).append((rest, file))
            else:
                self._files[head] = file

    def names(self) -> Iterable[str]:
        return sorted({**self._files, **self._folders})

    def child(self, part: str) -> Node | None:
        return self._files.get(part) or self.folder(part)

    def folder(self, part: str) -> Folder | None:
        inside = self._folders.get(part)
        return _Files(inside) if inside else None


def _files_folder(files: Iterable[File]) -> Folder:
    return _Files((parts_of(file.path), file) for file in files)


class _Experiments(Folder):
    """All experiments by name. Where workspaces have one name twice, the later one has its id behind it."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._ids: dict[str, str] = {}
        table = bundle.experiments().select(["experiment_id", "name"])
        for identity, name in zip(*(column.to_pylist() for column in table.columns), strict=True):
            part = part_of(name)
            while part in self._ids:
                part = f"{part}@{part_of(identity)}"
            self._ids[part] = identity
        self._known = set(self._ids.values())

    def names(self) -> Iterable[str]:
        return self._ids

    def child(self, part: str) -> Node | None:
        identity = self._ids.get(part, part)
        if identity not in self._known:
            return None
        owners = {"runs": "run", "traces": "trace"}
        return _Fixed({name: lambda kind=kind: _Owners(self._bundle, kind, identity) for name, kind in owners.items()})  # type: ignore[misc]


class _Owners(Folder):
    """The runs or the traces of an experiment, each with its artifacts; of traces those are listed that have files."""

    def __init__(self, bundle: Bundle, kind: Literal["run", "trace"], experiment: str) -> None:
        self._bundle, self._kind, self._experiment = bundle, kind, experiment

    @cached_property
    def _listed(self) -> list[str]:
        view = self._bundle.reader.view(self._kind)
        mine = pc.equal(view.column("experiment_id"), self._experiment)
        if self._kind == "trace":
            mine = pc.and_(mine, pc.greater(view.column("file_rows"), 0))
        return cast("list[str]", view.column(0).filter(mine).to_pylist())

    def names(self) -> Iterable[str]:
        return map(part_of, self._listed)

    def child(self, part: str) -> Node | None:
        if not _has(self._bundle, self._kind, part, self._experiment):
            return None
        return _Fixed({ARTIFACTS: lambda: _files(self._bundle, self._kind, part)})


class _LoggedModels(Folder):
    """Logged models by id, each the folder of its files."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def names(self) -> Iterable[str]:
        return map(part_of, self._bundle.reader.view("logged_model").column("id").to_pylist())

    def child(self, part: str) -> Node | None:
        return _files(self._bundle, "logged_model", part) if _has(self._bundle, "logged_model", part) else None


class _Models(Folder):
    """Registered models by name, with their versions. ``@alias`` also stands for a version."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        models = cast("Iterator[RegisteredModel]", bundle.records("registered_model"))
        self._models = {part_of(record_id(model)): model for model in models}

    @cached_property
    def _versions(self) -> Mapping[str, dict[str, ModelVersion]]:
        found: dict[str, dict[str, ModelVersion]] = {part: {} for part in self._models}
        for version in cast("Iterator[ModelVersion]", self._bundle.records("model_version")):
            if version.current_stage != _DELETED:
                found.setdefault(part_of(record_id(version).rpartition("/")[0]), {})[str(version.version)] = version
        return {part: dict(sorted(versions.items(), key=lambda item: int(item[0]))) for part, versions in found.items()}

    def names(self) -> Iterable[str]:
        return self._versions

    def child(self, part: str) -> Node | None:
        versions = self._versions.get(part)
        if versions is None:
            return None
        children = {number: (lambda version=version: _files_of(self._bundle, version)) for number, version in versions.items()}
        return _Versions(children, self._models.get(part))


class _Versions(_Fixed):
    """The versions of a registered model by number."""

    def __init__(self, children: Mapping[str, Callable[[], Node]], model: RegisteredModel | None) -> None:
        super().__init__(children)
        self._aliases = {f"@{part_of(alias.alias)}": str(alias.version) for alias in model.aliases} if model else {}

    def child(self, part: str) -> Node | None:
        return super().child(self._aliases.get(part, part))


def root_of(bundle: Bundle) -> Folder:
    """The top folder of a snapshot."""
    made: dict[str, Folder] = {}

    def once(name: str, make: Callable[[Bundle], Folder]) -> Callable[[], Folder]:
        def get() -> Folder:
            if name not in made:
                made[name] = make(bundle)
            return made[name]

        return get

    kinds: dict[str, Callable[[Bundle], Folder]] = {
        "experiments": _Experiments,
        "logged_models": _LoggedModels,
        "models": _Models,
    }
    tables = {f"{name}.parquet": (lambda name=name: TableFile(name)) for name in TABLE_FILES}
    return _Fixed({**{name: once(name, make) for name, make in kinds.items()}, "tables": lambda: _Fixed(tables)})


def find(root: Folder, path: str) -> Node:
    """What lies at a path.

    Raises:
        NotFoundError: nothing does.
    """
    *folders, last = [part for part in path.split("/") if part] or [""]
    folder: Folder | None = root
    for part in folders:
        folder = folder.folder(part) if folder is not None else None
    found = (folder.child(last) if last else folder) if folder is not None else None
    if found is None:
        raise NotFoundError(f"there is no {path!r} in the bundle", code="path-not-found")
    return found


def _has(bundle: Bundle, kind: str, identity: str, experiment: str | None = None) -> bool:
    """Whether the snapshot has this entity, in that experiment where one is named."""
    try:
        row = bundle.reader.row_of(kind, identity)
    except NotFoundError:
        return False
    return experiment is None or bundle.reader.view(kind).column("experiment_id")[row].as_py() == experiment


def _listing(bundle: Bundle, kind: str, identity: str) -> list[File]:
    rows = bundle.files_of_entities(kind, [identity]).select(["path", "size", "sha256", "state"])
    return [File(**row) for row in rows.to_pylist()]


def _files(bundle: Bundle, kind: str, identity: str) -> Folder:
    return _files_folder(_listing(bundle, kind, identity))


def _files_of(bundle: Bundle, version: ModelVersion) -> Folder:
    """The files of a model version: its own, or those of the run or the logged model that it was made from."""
    own = _listing(bundle, "model_version", record_id(version))
    if own:
        return _files_folder(own)
    kind, identity, below = _origin(version)
    if not kind or not _has(bundle, kind, identity):
        return _files_folder(())
    before = f"{below}/" if below else ""
    found = [file for file in _listing(bundle, kind, identity) if file.path == below or file.path.startswith(before)]
    return _files_folder(File(file.path.removeprefix(before), file.size, file.sha256, file.state) for file in found)


def _origin(version: ModelVersion) -> tuple[str, str, str]:
    """The kind and id of the entity among whose artifacts a version lies, and the folder there; empty where there is none."""
    source = version.source if isinstance(version.source, str) else ""
    model = source.removeprefix("models:/") if source.startswith("models:/m-") else ""
    if model:
        model, _, below = model.partition("/")
        return "logged_model", model, below.strip("/")
    location = version.storage_location if isinstance(version.storage_location, str) else ""
    for place in filter(None, (location, source)):
        if place.startswith("runs:/"):
            run, _, below = place.removeprefix("runs:/").partition("/")
            return "run", run, below.strip("/")
        steps = re.split(r"[/\\]+", place)
        for number, pair in enumerate(pairwise(steps)):
            if pair == (version.run_id, ARTIFACTS):
                return "run", str(version.run_id), "/".join(steps[number + 2 :]).strip("/")
    return "", "", ""
