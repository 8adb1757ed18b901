"""A file of which little is read: the footer of a Parquet file, then some of its pieces."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mlflow_bundle.errors import CorruptError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["TAIL", "SparseFile"]

#: What is read of the end of a file at first: mostly the footer of a Parquet file.
TAIL: Final = 64 * 2**10
#: No request asks for less than this.
_LEAST: Final = 16 * 2**10
#: As many of the last small ranges are kept, besides the end of the file.
_KEPT: Final = 3


class SparseFile(io.BufferedIOBase):
    """A seekable file over a function that fetches ranges: the last ``tail`` bytes at once, all else as it is asked for."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, *, tail: int = TAIL) -> None:
        self._fetch, self._size = fetch, size
        self._tail_start = max(0, size - tail)
        self._tail: bytes | None = None
        self._at = 0
        self._windows: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if self._at < 0:
            raise CorruptError("an object was asked for bytes before its first", code="E040")
        data = self._range(self._at, wanted) if wanted else b""
        self._at += wanted
        return data

    read1 = read

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _range(self, start: int, length: int) -> bytes:
        if start >= self._tail_start:
            if self._tail is None:
                self._tail = self._fetch(self._tail_start, self._size - self._tail_start)
            return self._tail[start - self._tail_start : start - self._tail_start + length]
        for first, window in self._windows:
            if first <= start and start + length <= first + len(window):
                return window[start - first : start - first + length]
        data = self._fetch(start, max(length, min(_LEAST, self._size - start)))
        if len(data) <= TAIL:
            self._windows = [*self._windows[-_KEPT:], (start, data)]
        return data[:length]
