"""The objects of a snapshot as an fsspec file system that DuckDB reads from, whatever storage they are in."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, cast

from fsspec import AbstractFileSystem

from mlflow_bundle import _layout
from mlflow_bundle._limits import MIB
from mlflow_bundle._lookup import tail_of
from mlflow_bundle._storage import TAIL, Pieces, SparseFile, Storage
from mlflow_bundle.records import ObjectRef

__all__ = ["ObjectFileSystem"]

#: Nothing that is named by its content ever changes.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
#: DuckDB reads a column in pieces of about 1 MB, and some of them twice.
_LEAST: Final = MIB
_KEPT: Final = 64 * MIB
#: An object of which much is read is fetched at once up to this size.
_WHOLE: Final = 4 * MIB


class ObjectFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Reads objects of known sizes, so that opening one asks the storage nothing. Each has a protocol of its own."""

    cachable = False

    def __init__(self, storage: Storage, refs: Iterable[ObjectRef]) -> None:
        super().__init__()
        self.protocol = f"mlflow-bundle-{secrets.token_hex(8)}"
        self._refs = {ref.path: ref for ref in refs}
        self._pieces = Pieces(storage.read_range, least=_LEAST, limit=_KEPT)

    @property
    def prefix(self) -> str:
        """What comes before the path of an object in a URL of this file system."""
        return f"{self.protocol}://"

    def _path(self, path: str) -> str:
        path = path.removeprefix(self.prefix).lstrip("/")
        if path not in self._refs:
            raise FileNotFoundError(path)
        return path

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: nothing here is a pattern."""
        return [self.prefix + self._path(path)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name and size, as the snapshot has them."""
        path = self._path(path)
        return {"name": path, "type": "file", "size": self._refs[path].size}

    def exists(self, path: str, **_: Any) -> bool:
        """Whether the snapshot has the object."""
        return path.removeprefix(self.prefix).lstrip("/") in self._refs

    isfile = exists

    def modified(self, path: str) -> datetime:
        """Always the same: objects never change."""
        self._path(path)
        return _EPOCH

    created = modified

    def open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        """An object for random access. What a write asks for is refused."""
        if mode != "rb":
            raise PermissionError("a bundle is read-only")
        ref = self._refs[self._path(path)]
        return cast(BinaryIO, SparseFile(self._pieces, ref.path, ref.size, tail=_tail(ref)))


def _tail(ref: ObjectRef) -> int:
    """How many bytes at the end of an object are read together."""
    if ref.role in (_layout.VIEWS, _layout.RECORDS) and ref.size <= _WHOLE:
        return ref.size
    return tail_of(ref) if ref.role == _layout.VIEWS else TAIL
