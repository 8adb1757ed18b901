"""The files that a PATH means, and their bytes: as ``ls`` shows them, or as ``mlflow-bundle://`` names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from mlflow_bundle._bundle import Bundle
from mlflow_bundle.cli._paths import ARTIFACTS, Catalog, FileEntry, Row
from mlflow_bundle.errors import NotFoundError, UsageError
from mlflow_bundle.plugins import BundleFileSystem
from mlflow_bundle.plugins._names import name_of, part_of, parts_of
from mlflow_bundle.plugins._tree import File, TableFile

__all__ = ["Contents"]


@dataclass(frozen=True, slots=True)
class _Found:
    """A file with its path in the file system, and its name below what PATH means."""

    file: FileEntry
    at: str
    name: str


class Contents:
    """The file or the files below the folder that a PATH means. ``run`` is the run that they belong to, None for others.

    Raises:
        NotFoundError: there is no such thing.
        UsageError: it is no file, and no folder of files.
    """

    def __init__(self, archive: Bundle, path: str, *, hint: str) -> None:
        self.fs = BundleFileSystem.over(archive)
        self.run: Row | None = None
        self.single = False
        self._found: dict[str, _Found] = {}
        try:
            self._from_catalog(archive, path, hint)
        except NotFoundError:
            if not self._from_tree(path.strip("/")):
                raise

    def _from_catalog(self, archive: Bundle, path: str, hint: str) -> None:
        place = Catalog(archive).find(path)
        if place.run is None:
            raise UsageError(f"{path or 'the bundle'!r} is not a file or folder of a run", hint=hint)
        self.run, self.single = place.run, place.file is not None
        run = f"experiments/{part_of(place.run['experiment_id'])}/runs/{part_of(place.run['run_id'])}"
        below = f"{place.inner}/" if place.inner else ""
        for file in [place.file] if place.file is not None else place.files:
            name = file.path.rpartition("/")[2] if self.single else file.path[len(below) :]
            self._found[file.path] = _Found(file, f"{run}/{ARTIFACTS}/{parts_of(file.path)}", name)

    def _from_tree(self, path: str) -> bool:
        """Whether the file system has something there."""
        if not self.fs.exists(path):
            return False
        self.single = self.fs.isfile(path)
        folder = path.rpartition("/")[0] if self.single else path
        for at in [path] if self.single else self.fs.find(path):
            node, name = self.fs.node(at), at[len(folder) :].lstrip("/")
            if isinstance(node, TableFile):
                file = FileEntry(name, self.fs.info(at)["size"], None, "made")
            else:
                assert isinstance(node, File)
                file = FileEntry(node.path, node.size, node.sha256, node.state)
                name = _readable(name, node.path.count("/") + 1)
            self._found[at] = _Found(file, at, name)
        return True

    @property
    def files(self) -> Sequence[FileEntry]:
        """The files."""
        return [found.file for found in self._found.values()]

    @property
    def names(self) -> Sequence[tuple[FileEntry, str]]:
        """Each file, and its path below what PATH means."""
        return [(found.file, found.name) for found in self._found.values()]

    def open(self, file: FileEntry) -> BinaryIO:
        """The bytes of a file; reading them to the end checks their SHA-256.

        Raises:
            NotFoundError: the bundle has no content for it.
        """
        if file.state == "unreadable":
            raise NotFoundError("it could not be read when it was packed", code="file-missing")
        at = next(found.at for found in self._found.values() if found.file is file)
        opened: Any = self.fs.open(at)
        stream: BinaryIO = opened
        return stream


def _readable(name: str, parts: int) -> str:
    """A path whose last parts, those of the file itself, are as MLflow has them."""
    steps = name.split("/")
    before = max(len(steps) - parts, 0)
    return "/".join([*steps[:before], *map(name_of, steps[before:])])
