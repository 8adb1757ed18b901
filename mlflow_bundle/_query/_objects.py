"""The objects of a snapshot as an fsspec file system that DuckDB reads from, whatever storage they are in."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO, Final, cast

from fsspec import AbstractFileSystem

from mlflow_bundle._storage import SparseFile, Storage

__all__ = ["ObjectFileSystem"]

#: Nothing that is named by its content ever changes.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


class ObjectFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Reads objects of known sizes, so that opening one asks the storage nothing. Each has a protocol of its own."""

    cachable = False

    def __init__(self, storage: Storage, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.protocol = f"mlflow-bundle-{secrets.token_hex(8)}"
        self._storage, self._sizes = storage, sizes

    @property
    def prefix(self) -> str:
        """What comes before the path of an object in a URL of this file system."""
        return f"{self.protocol}://"

    def _path(self, path: str) -> str:
        path = path.removeprefix(self.prefix).lstrip("/")
        if path not in self._sizes:
            raise FileNotFoundError(path)
        return path

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: nothing here is a pattern."""
        return [self.prefix + self._path(path)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name and size, as the snapshot has them."""
        path = self._path(path)
        return {"name": path, "type": "file", "size": self._sizes[path]}

    def exists(self, path: str, **_: Any) -> bool:
        """Whether the snapshot has the object."""
        return path.removeprefix(self.prefix).lstrip("/") in self._sizes

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
        path = self._path(path)
        return cast(BinaryIO, SparseFile(partial(self._storage.read_range, path), self._sizes[path]))
