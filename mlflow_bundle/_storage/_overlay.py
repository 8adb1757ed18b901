"""A bundle that is only read, under a folder that takes what is written: to see what a pack would write, without writing."""

from __future__ import annotations

from typing import BinaryIO

from mlflow_bundle._storage._backend import Staged, Storage, check_stored

__all__ = ["OverlayStorage"]


class OverlayStorage(Storage):
    """``below`` as it is, and ``above`` for everything new. Closing closes that above only."""

    def __init__(self, below: Storage, above: Storage) -> None:
        self.url = below.url
        self._below = below
        self._above = above

    def _of(self, path: str) -> Storage:
        """The one that has a file; that below where none has it, for its error."""
        return self._above if self._above.size(path) is not None else self._below

    def read(self, path: str) -> bytes:
        return self._of(path).read(path)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self._of(path).read_range(path, start, length)

    def open(self, path: str) -> BinaryIO:
        return self._of(path).open(path)

    def size(self, path: str) -> int | None:
        return self._of(path).size(path)

    def list(self, folder: str) -> dict[str, int]:
        return dict(sorted({**self._below.list(folder), **self._above.list(folder)}.items()))

    def stage(self) -> Staged:
        return self._above.stage()

    def put(self, staged: Staged, path: str) -> bool:
        if self._below.size(path) == staged.size:
            if self._below.folder or self._below.is_one_file:
                check_stored(self._below, staged, path)
            staged.discard()
            return False
        return self._above.put(staged, path)

    def commit(self, data: bytes, path: str) -> None:
        self._above.commit(data, path)

    def flush(self) -> None:
        self._above.flush()

    def close(self) -> None:
        self._above.close()
