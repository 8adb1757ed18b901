"""Reads the metric points of runs out of an MLflow database, in columns and bounded tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._series import numbers, sort_series
from mlflow_bundle.errors import CorruptError, UsageError
from mlflow_bundle.tracking._port import SERIES_SCHEMA
from mlflow_bundle.tracking.database._connection import Connection, literal, literals, slices

__all__ = ["PointReader"]

#: Runs of one SQL ``IN``.
_BATCH_RUNS: Final = 1000
#: Metric points that are fetched at a time, and those from which on a run is streamed on its own.
CHUNK_POINTS: Final = 250_000
STREAMED_POINTS: Final = 500_000
#: From this many runs on, one scan that counts all points is cheaper than asking for each.
_COUNT_ALL_FROM: Final = 20_000


def _filled(**columns: pa.DataType) -> pa.Schema:
    """A schema of columns that are never NULL."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


_TEXT, _INTEGER = pa.string(), pa.int64()
_COUNTS: Final = _filled(run_uuid=_TEXT, points=_INTEGER)
_POINTS: Final = _filled(key=_TEXT, step=_INTEGER, timestamp=_INTEGER, value=pa.float64(), is_nan=_INTEGER)
_LATEST: Final = _filled(run_uuid=_TEXT, key=_TEXT, value=pa.float64(), is_nan=_INTEGER)


class PointReader:
    """The points of the table ``metrics``, and the latest ones. Counts are kept, since the points are mostly asked for next."""

    def __init__(self, connection: Connection, tables: Mapping[str, object]) -> None:
        self._db, self._tables = connection, tables
        self._counted: dict[str, int] = {}
        self._read = 0

    @property
    def read(self) -> dict[str, int]:
        """The number of points read, by the name of their table, where it is that of all points of the runs asked for."""
        return {"metrics": self._read} if self._counted and self._read == sum(self._counted.values()) else {}

    def latest(self, ids: Sequence[str]) -> dict[str, dict[str, float]]:
        """The last value of each metric, by run."""
        sql = f"SELECT run_uuid, key, value, {self._flag()} FROM latest_metrics WHERE run_uuid IN {literals(ids)}"
        latest: defaultdict[str, dict[str, float]] = defaultdict(dict)
        if "latest_metrics" in self._tables and ids:
            for run_id, key, value, nan in zip(*(c.to_pylist() for c in self._db.fetch(sql, _LATEST).columns), strict=True):
                latest[run_id][key] = math.nan if nan else value
        return latest

    def _flag(self) -> str:
        return "is_nan" if self._db.uri.is_sqlite else "is_nan::int"

    def counts(self, run_ids: Sequence[str]) -> Sequence[int]:
        """The number of metric points of each run, from an index of the database."""
        if len(run_ids) >= _COUNT_ALL_FROM:
            queries = ["SELECT run_uuid, COUNT(*) FROM metrics GROUP BY run_uuid"]
        else:
            queries = [
                f"SELECT run_uuid, COUNT(*) FROM metrics WHERE run_uuid IN {literals(ids)} GROUP BY run_uuid"
                for ids in slices(run_ids, _BATCH_RUNS)
            ]
        counts: dict[str, int] = {}
        for sql in queries:
            ids, numbers = self._db.fetch(sql, _COUNTS).columns
            counts.update(zip(ids.to_pylist(), numbers.to_pylist(), strict=True))
        self._counted = {run_id: counts.get(run_id, 0) for run_id in run_ids}
        return [self._counted[run_id] for run_id in run_ids]

    def series(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metric histories of these runs as tables of ``SERIES_SCHEMA``, at most some million rows at a time."""
        if len(set(run_ids)) != len(run_ids):
            raise UsageError("the metrics of one run are asked for twice")
        known = self._counted
        counts = [known[i] for i in run_ids] if all(i in known for i in run_ids) else self.counts(run_ids)
        chunk: list[int] = []
        points = 0
        for owner, count in enumerate(counts):
            if count == 0:
                continue
            if chunk and (points + count > CHUNK_POINTS or len(chunk) == _BATCH_RUNS):
                yield self._points(run_ids, counts, chunk)
                chunk, points = [], 0
            if count > STREAMED_POINTS:
                yield from self._streamed(run_ids[owner], owner, count)
                continue
            chunk.append(owner)
            points += count
        if chunk:
            yield self._points(run_ids, counts, chunk)

    def _columns_of_points(self) -> str:
        return f"key, step, timestamp, value, {self._flag()} AS is_nan"

    def _points(self, run_ids: Sequence[str], counts: Sequence[int], owners: Sequence[int]) -> pa.Table:
        """The points of some runs. SQL sorts by run, so that the known counts say whose a row is."""
        by_id = sorted(owners, key=lambda owner: run_ids[owner].encode())
        # Where an index has the first three columns, SQLite need not sort; what they leave open is settled below.
        order = "run_uuid, key, step" if self._db.uri.is_sqlite else 'run_uuid COLLATE "C"'
        table = self._db.fetch(
            f"SELECT {self._columns_of_points()} FROM metrics WHERE run_uuid IN {literals(run_ids[o] for o in by_id)} "
            f"ORDER BY {order}",
            _POINTS,
        )
        sizes = np.array([counts[owner] for owner in by_id], dtype=np.int64)
        if int(sizes.sum()) != table.num_rows:
            raise self._miscounted(table.num_rows, int(sizes.sum()))
        self._read += table.num_rows
        series = _series(table, np.repeat(np.array(by_id, dtype=np.int32), sizes))
        if by_id != list(owners):
            ends = np.cumsum(sizes)
            spans = {owner: (int(end - size), int(size)) for owner, end, size in zip(by_id, ends, sizes, strict=True)}
            series = pa.concat_tables([series.slice(*spans[owner]) for owner in owners])
        series = series.combine_chunks()
        return series if self._db.uri.is_sqlite and _ties_in_order(series) else sort_series(series)

    def _streamed(self, run_id: str, owner: int, count: int) -> Iterator[pa.Table]:
        """The points of one run that is too long to be held."""
        order = f"{self._db.bytewise('key')}, step, timestamp, is_nan, value"
        sql = f"SELECT {self._columns_of_points()} FROM metrics WHERE run_uuid = {literal(run_id)} ORDER BY {order}"
        rows = 0
        for table in self._db.stream(sql, _POINTS, CHUNK_POINTS // 4):
            rows += table.num_rows
            yield _series(table, np.full(table.num_rows, owner, dtype=np.int32))
        if rows != count:
            raise self._miscounted(rows, count)
        self._read += rows

    def _miscounted(self, found: int, counted: int) -> CorruptError:
        name = self._db.uri.shown
        return CorruptError(
            f"the database {name} gave {found:,} metric points where it had counted {counted:,}",
            hint="an index is damaged: run PRAGMA integrity_check (SQLite) or REINDEX TABLE metrics",
        )


def _series(table: pa.Table, owners: npt.NDArray[np.int32]) -> pa.Table:
    """Points of the database as a table of ``SERIES_SCHEMA``: a set flag ``is_nan`` is what says NaN."""
    value = table.column("value")
    flags = pc.not_equal(table.column("is_nan"), 0)
    if pc.any(flags).as_py():
        value = pc.if_else(flags, math.nan, value)
    columns = [pa.array(owners), table.column("key"), table.column("step"), table.column("timestamp"), value]
    return pa.table(columns, schema=SERIES_SCHEMA)


def _ties_in_order(series: pa.Table) -> bool:
    """Whether neighbours with the same step are in order whatever their keys are. False only says: look closer."""
    step = numbers(series, "step")
    same = np.flatnonzero(step[1:] == step[:-1])
    if not len(same):
        return True
    time = numbers(series, "timestamp")
    return bool(np.all(time[same + 1] > time[same]))
