"""Metric points on their way to a server: batches of requests, and what SQL stores make of special values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._series import NO_SERIES, SeriesDigester
from mlflow_bundle.tracking.rest._expected import BATCH_BYTES

__all__ = ["Batch", "Point", "PointsDigester", "batches", "holdable"]

_BATCH_POINTS: Final = 1_000
#: A point in JSON besides its key: names, punctuation and three numbers of at most 24 characters.
_POINT_BYTES: Final = 130
_MAX: Final = float(np.finfo(np.float64).max)


class Point(msgspec.Struct, gc=False):
    """A metric point in the body of ``runs/log-batch``. NaN and infinities travel as strings."""

    key: str
    value: float | str
    timestamp: int
    step: int


class Batch(NamedTuple):
    """At most 1,000 points of one owner."""

    owner: int
    rows: pa.Table

    def points(self) -> list[Point]:
        """The points as ``log-batch`` takes them: what JSON has no number for is a text."""
        keys, steps, timestamps, values = (self.rows.column(name).to_pylist() for name in ("key", "step", "timestamp", "value"))
        said = [value if math.isfinite(value) else _spell(value) for value in values]
        return [Point(*point) for point in zip(keys, said, timestamps, steps, strict=True)]


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def batches(table: pa.Table) -> Iterator[Batch]:
    """The rows of a sorted table in batches that one request takes."""
    if table.num_rows == 0:
        return
    longest = max(pc.max(pc.binary_length(table.column("key"))).as_py(), 1)
    size = max(min(_BATCH_POINTS, BATCH_BYTES // (2 * longest + _POINT_BYTES)), 1)
    owners = table.column("owner").to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
    for start, end in pairwise(borders):
        for first in range(start, end, size):
            yield Batch(int(owners[start]), table.slice(first, min(size, end - first)))


def holdable(table: pa.Table, refused_keys: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The rows that a server takes, and those it does not: keys it refuses, times before 1970."""
    mask = pc.greater_equal(table.column("timestamp"), 0)
    if refused_keys:
        known = pa.array(list(refused_keys), pa.string())
        mask = pc.and_(mask, pc.invert(pc.is_in(table.column("key"), value_set=known)))
    if pc.all(mask, min_count=0).as_py():
        return table, table.slice(0, 0)
    return table.filter(mask), table.filter(pc.invert(mask))


class PointsDigester:
    """Digests of sorted series twice: as they are, and as a SQL store keeps them.

    A SQL store keeps an infinity as the largest double, may keep -0.0 as 0.0, and keeps equal points once.
    """

    def __init__(self, owners: int) -> None:
        self._exact = SeriesDigester()
        self._kept = SeriesDigester()
        self._last: tuple[object, ...] | None = None
        self.infinities = np.zeros(owners, np.int64)
        self.zeros = np.zeros(owners, np.int64)
        self.doubles = np.zeros(owners, np.int64)

    def add(self, table: pa.Table) -> None:
        """Take the next rows, a sorted table of ``SERIES_SCHEMA``."""
        if table.num_rows == 0:
            return
        self._exact.add(table)
        owner = table.column("owner").to_numpy()
        value = table.column("value").to_numpy().copy()
        infinite = np.isinf(value)
        zero = (value == 0) & np.signbit(value)
        value[infinite] = np.copysign(_MAX, value[infinite])
        value[zero] = 0.0
        table = table.set_column(4, "value", pa.array(value))
        double = self._doubles(table, owner, value)
        for counts, rows in ((self.infinities, infinite), (self.zeros, zero), (self.doubles, double)):
            np.add.at(counts, owner[rows], 1)
        self._kept.add(table.filter(pa.array(~double)) if double.any() else table)

    def _doubles(self, table: pa.Table, owner: npt.NDArray[np.int32], value: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which rows repeat the row before, also across the border of tables."""
        key = table.column("key").combine_chunks().dictionary_encode()
        columns = [owner, key.indices.to_numpy(), table.column("step").to_numpy(), table.column("timestamp").to_numpy()]
        columns.append(value.view(np.int64))
        double = np.zeros(len(owner), np.bool_)
        double[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        names = key.dictionary
        first, last = ((names[int(columns[1][at])].as_py(), *(column[at] for column in columns)) for at in (0, -1))
        double[0] = self._last is not None and (first[:2] + first[3:]) == self._last
        self._last = last[:2] + last[3:]
        return double

    def result(self) -> list[tuple[tuple[int, str], tuple[int, str]]]:
        """(rows, digest) of every owner as it is, and as a SQL store keeps it."""
        for digester in (self._exact, self._kept):
            digester.finish()
        none = (0, NO_SERIES)
        return [(self._exact.finished.get(i, none), self._kept.finished.get(i, none)) for i in range(len(self.doubles))]

    def notes(self, owner: int) -> list[str]:
        """What a SQL store changes of an owner's points."""
        said = (
            (self.infinities, "infinite metric values are kept as the largest double"),
            (self.zeros, "metric values of -0.0 are kept as 0.0"),
            (self.doubles, "repeated metric points are kept once"),
        )
        return [f"{counts[owner]} {text}" for counts, text in said if counts[owner]]
