"""Metric series as columns: their order, and the digest of each owner's (spec/v1.md, 5.2 and 8.3).

Everything here works on whole columns; the only Python loops are per owner and per series, never per point.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = [
    "NO_SERIES",
    "SERIES_COLUMNS",
    "SeriesDigester",
    "in_order",
    "key_ranks",
    "numbers",
    "segments",
    "series_digests",
    "sort_series",
    "total_order",
]

#: The columns that a metrics table shares with the series tables of sources and targets.
SERIES_COLUMNS: Final = ("key", "step", "timestamp", "value")

Codes = npt.NDArray[np.int64]


def total_order(values: npt.NDArray[np.float64]) -> Codes:
    """Integers that sort as IEEE 754 totalOrder sorts the doubles: -0.0 before 0.0, positive NaN last."""
    bits = np.ascontiguousarray(values).view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))


def key_ranks(keys: pa.ChunkedArray | pa.Array) -> tuple[Codes, list[str]]:
    """Each key as its rank among the distinct keys by UTF-8 bytes, and those keys in that order."""
    encoded = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda i: names[i].encode("utf-8", "surrogatepass"))
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = np.arange(len(names))
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return (ranks[codes] if len(names) else codes.astype(np.int64)), [names[i] for i in order]


def numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column of numbers as one array; nulls are NaN."""
    array: npt.NDArray[Any] = table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
    return array


def sort_series(table: pa.Table) -> pa.Table:
    """A ``SERIES_SCHEMA`` table in archive order: owner, key bytes, step, timestamp, value in totalOrder.

    One pass over the columns when it is in order already.
    """
    if table.num_rows < 2:
        return table
    ranks, names = key_ranks(table.column("key"))
    series = numbers(table, "owner").astype(np.int64) * max(len(names), 1) + ranks
    columns = [series, numbers(table, "step"), numbers(table, "timestamp"), total_order(numbers(table, "value"))]
    if in_order(columns):
        return table
    return table.take(pa.array(np.lexsort(columns[::-1])))


def in_order(columns: Sequence[Codes]) -> bool:
    """Whether the rows are in lexicographic order of the columns."""
    undecided = np.ones(len(columns[0]) - 1, dtype=bool)
    for column in columns:
        before, after = column[:-1], column[1:]
        if bool(np.any(undecided & (before > after))):
            return False
        undecided &= before == after
        if not undecided.any():
            return True
    return True


class SeriesDigester:
    """The content digest of each owner's metric series, from tables in archive order (spec/v1.md, 8.3).

    Digest of an owner = SHA-256 over the JSON list of its ``[key, number of points]``, a line feed, and the SHA-256 of its
    steps, of its timestamps (little-endian int64) and of its values (little-endian binary64).
    """

    def __init__(self) -> None:
        self._keys: list[list[Any]] = []
        self._open: int | None = None
        self._hashers = _new_hashers()
        self._rows = self._unhashed = 0
        self.finished: dict[int, tuple[int, str]] = {}

    def add(self, table: pa.Table) -> None:
        """Take the next rows, a table of ``SERIES_SCHEMA`` (keys may be dictionary-encoded)."""
        if table.num_rows == 0:
            return
        owner = numbers(table, "owner")
        encoded = table.column("key").combine_chunks()
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        names, codes = encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)
        changes = np.flatnonzero((np.diff(owner) != 0) | (np.diff(codes) != 0)) + 1
        starts = np.concatenate(([0], changes))
        lengths = np.diff(np.concatenate((starts, [len(owner)])))
        series_owners = owner[starts].tolist()
        series_names = names.take(pa.array(codes[starts])).to_pylist()
        columns = [numbers(table, name) for name in ("step", "timestamp", "value")]
        buffers = [np.ascontiguousarray(column).data.cast("B") for column in columns]
        start = 0
        for who, key, length in zip(series_owners, series_names, lengths.tolist(), strict=True):
            if who != self._open:
                self._hash(buffers, start, start := start + self._unhashed)
                self.finish()
                self._open = who
            if self._keys and self._keys[-1][0] == key:
                self._keys[-1][1] += length
            else:
                self._keys.append([key, length])
            self._unhashed += length
        self._hash(buffers, start, start + self._unhashed)

    def _hash(self, buffers: Sequence[memoryview], start: int, end: int) -> None:
        self._rows += end - start
        self._unhashed = 0
        for hasher, buffer in zip(self._hashers, buffers, strict=True):
            hasher.update(buffer[start * 8 : end * 8])

    def finish(self) -> None:
        """The last owner is complete: move it to ``finished`` as (rows, SHA-256 in hex)."""
        if self._open is not None:
            self.finished[self._open] = (self._rows, _series_digest(self._keys, [h.digest() for h in self._hashers]))
        self._keys, self._rows, self._hashers, self._open = [], 0, _new_hashers(), None


def _new_hashers() -> list[Any]:
    return [hashlib.sha256() for _ in range(3)]


def _series_digest(keys: Sequence[Sequence[Any]], columns: Sequence[bytes]) -> str:
    head = json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(head.encode() + b"\n" + b"".join(columns)).hexdigest()


#: The digest of an owner without metric points.
NO_SERIES: Final = _series_digest((), [h.digest() for h in _new_hashers()])


def series_digests(tables: Iterable[pa.Table], owners: int) -> list[tuple[int, str]]:
    """(rows, SHA-256 in hex) of each of ``owners`` owners, from sorted tables of ``SERIES_SCHEMA``."""
    digester = SeriesDigester()
    for table in tables:
        digester.add(table)
    digester.finish()
    return [digester.finished.get(owner, (0, NO_SERIES)) for owner in range(owners)]


def segments(owner: npt.NDArray[Any]) -> list[tuple[int, int, int]]:
    """The stretches of equal values of a column: (value, start, end)."""
    if not len(owner):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(owner)) + 1))
    ends = [*starts[1:].tolist(), len(owner)]
    return list(zip(owner[starts].tolist(), starts.tolist(), ends, strict=True))
