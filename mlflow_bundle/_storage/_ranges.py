"""Files that are read by ranges: in order, with a window that grows, or here and there, with pieces that stay."""

from __future__ import annotations

import abc
import errno
import io
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from mlflow_bundle._limits import KIB, MIB
from mlflow_bundle.errors import CorruptError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["TAIL", "Pieces", "RangeFile", "SparseFile"]

#: What is read of the end of a file at first: mostly the footer of a Parquet file.
TAIL: Final = 64 * KIB


class _Ranged(io.BufferedIOBase, abc.ABC):
    """A seekable file of ``size`` bytes, of which any range can be had."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    @abc.abstractmethod
    def _bytes(self, start: int, length: int) -> bytes:
        """These bytes, which the file has; at least one."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"cannot seek to {base + offset}")  # as a file says it
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._bytes(self._at, wanted) if wanted else b""
        self._at += wanted
        return data

    read1 = read

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


class RangeFile(_Ranged):
    """A file over a function that fetches ranges. One window is kept; it grows while reads are sequential."""

    _FIRST: Final = MIB
    _LARGEST: Final = 16 * MIB

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(size)
        self._fetch = fetch
        self._start = 0
        self._window = b""
        self._ahead = self._FIRST

    def _bytes(self, start: int, length: int) -> bytes:
        offset = start - self._start
        data = self._window[offset : offset + length] if 0 <= offset < len(self._window) else b""
        start, rest = start + len(data), length - len(data)
        if rest >= self._LARGEST:  # not worth keeping
            data += self._fetch(start, rest)
            self._start, self._window = start + rest, b""
        elif rest:
            self._refill(start, rest)
            data += self._window[:rest]
        return data

    def _refill(self, start: int, wanted: int) -> None:
        sequential = start == self._start + len(self._window)
        self._ahead = min(self._ahead * 2, self._LARGEST) if sequential else self._FIRST
        length = min(max(wanted, self._ahead), self._size - start)
        self._window = self._fetch(start, length)
        self._start = start


class _Piece(NamedTuple):
    path: str
    start: int
    data: bytes


class Pieces:
    """Pieces of objects as they are asked for: at least ``least`` bytes at once, and the latest ``limit`` bytes of all objects
    stay. ``fetch`` gets a path, a start and a length. For several threads, which may fetch the same twice."""

    def __init__(self, fetch: Callable[[str, int, int], bytes], *, least: int, limit: int) -> None:
        self._fetch, self._least, self._limit = fetch, least, limit
        self._kept: tuple[_Piece, ...] = ()

    def read(self, path: str, start: int, length: int, *, size: int, tail: int) -> bytes:
        """These bytes of an object of ``size`` bytes, the last ``tail`` of which are fetched together."""
        found = []
        while length:
            piece = self._kept_at(path, start) or self._fetched(path, start, length, size, tail)
            part = piece.data[start - piece.start : start - piece.start + length]
            found.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(found)

    def _kept_at(self, path: str, start: int) -> _Piece | None:
        return next((p for p in self._kept if p.path == path and p.start <= start < p.start + len(p.data)), None)

    def _fetched(self, path: str, start: int, length: int, size: int, tail: int) -> _Piece:
        end = min(max(start + length, start + self._least), size)
        if size - tail <= start:
            start, end = max(size - tail, 0), size
        piece = _Piece(path, start, self._fetch(path, start, end - start))
        if end - start <= self._limit:
            pieces = (piece, *self._kept)
            totals = accumulate(len(one.data) for one in pieces)
            self._kept = tuple(one for one, total in zip(pieces, totals, strict=True) if total <= self._limit)
        return piece


class SparseFile(_Ranged):
    """An object of which little is read: the footer of a Parquet file, then some of its pieces."""

    def __init__(self, pieces: Pieces, path: str, size: int, *, tail: int = TAIL) -> None:
        super().__init__(size)
        self._pieces, self._path, self._tail = pieces, path, tail

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:  # what a damaged footer says
            raise CorruptError(f"{self._path} was asked for bytes before its first", code="E040") from error

    def _bytes(self, start: int, length: int) -> bytes:
        return self._pieces.read(self._path, start, length, size=self._size, tail=self._tail)
