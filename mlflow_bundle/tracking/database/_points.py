"""Metric points on their way into a database: columns in, staged columns out, no Python per point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._series import numbers, sort_series
from mlflow_bundle.tracking._port import SERIES_SCHEMA
from mlflow_bundle.tracking.database._connection import Connection

__all__ = ["PointStage", "model_rows_as_held"]

_POINTS: Final = "mlflow_bundle_points"
_LATEST: Final = "mlflow_bundle_latest"
_TWO_NUMBERS: Final = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("there", "coming")])
_TWO_TEXTS: Final = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("name", "sql")])
_COLUMNS: Final = "key, value, timestamp, step, is_nan, run_uuid"

Mask = npt.NDArray[np.bool_]


@dataclass
class PointStage:
    """Points in temporary tables of a connection, on their way to ``metrics`` and ``latest_metrics``.

    ``wanted`` says which of the runs are staged. ``refuses`` says why a key cannot be
    held. After ``add``: ``duplicates`` and ``negative_zeros`` count points by owner, ``refused`` holds the reasons by owner.
    """

    connection: Connection
    run_ids: Sequence[str]
    wanted: Sequence[bool]
    refuses: Callable[[str], str | None]
    duplicates: Counter[int] = field(default_factory=Counter)
    negative_zeros: Counter[int] = field(default_factory=Counter)
    refused: dict[int, dict[str, str]] = field(default_factory=dict)
    _used: bool = False
    _last: pa.Table | None = None

    def __post_init__(self) -> None:
        self._ids = pa.array(self.run_ids, pa.string())
        self._mask = np.array(self.wanted, dtype=bool)

    def add(self, table: pa.Table) -> pa.Table:
        """Take the next points, a sorted table of ``SERIES_SCHEMA``. Returns them as they should read back."""
        held = table = self._without_duplicates(self._normal(self._without_refused(table)))
        owners = numbers(table, "owner")
        if not self._mask.all():
            table = table.filter(pa.array(self._mask[owners]))
            owners = numbers(table, "owner")
        if table.num_rows:
            self._stage(table, owners)
        return held

    def _without_refused(self, table: pa.Table) -> pa.Table:
        """The points whose keys the database takes."""
        reasons = {key: reason for key in pc.unique(table.column("key")).to_pylist() if (reason := self.refuses(key))}
        if not reasons:
            return table
        bad = pc.is_in(table.column("key"), value_set=pa.array(list(reasons), pa.string()))
        for pair in table.filter(bad).select(["owner", "key"]).group_by(["owner", "key"]).aggregate([]).to_pylist():
            self.refused.setdefault(pair["owner"], {})[pair["key"]] = reasons[pair["key"]]
        return table.filter(pc.invert(bad))

    def _normal(self, table: pa.Table) -> pa.Table:
        """The values as the database gives them back: one NaN, and on SQLite no negative zero."""
        value = numbers(table, "value")
        nan = np.isnan(value)
        signs = bool(np.any(nan & np.signbit(value)))
        value = np.where(nan, np.nan, value) if nan.any() else value
        if self.connection.uri.is_sqlite:
            negative = np.signbit(value) & (value == 0)
            if negative.any():
                self.negative_zeros.update(numbers(table, "owner")[negative].tolist())
                value = np.where(negative, 0.0, value)
        table = table.set_column(4, SERIES_SCHEMA.field("value"), pa.array(value))
        return sort_series(table) if signs else table

    def _without_duplicates(self, table: pa.Table) -> pa.Table:
        """Each point once, as the primary key of ``metrics`` wants it."""
        joined = table if self._last is None else pa.concat_tables([self._last, table])
        if table.num_rows:
            self._last = table.slice(table.num_rows - 1).combine_chunks()
        repeated = _repeats(joined)
        if joined is not table:
            repeated = repeated[1:]
        if not repeated.any():
            return table
        self.duplicates.update(numbers(table, "owner")[repeated].tolist())
        return table.filter(pa.array(~repeated))

    def _stage(self, table: pa.Table, owners: npt.NDArray[np.int32]) -> None:
        value = numbers(table, "value")
        nan = np.isnan(value)
        staged = pa.table(
            {
                "key": table.column("key"),
                "value": pa.array(np.where(nan, 0.0, value)),
                "timestamp": table.column("timestamp"),
                "step": table.column("step"),
                "is_nan": pa.array(nan),
                "run_uuid": self._ids.take(pa.array(owners)),
            }
        )
        self.connection.stage(_POINTS, staged)
        self.connection.stage(_LATEST, staged.filter(pa.array(_newest(table))))
        self._used = True

    def insert(self, condition: str = "1 = 1") -> None:
        """Copy the staged points that meet an SQL condition into the database.

        The latest point of a key is the greatest (step, timestamp, value), where NaN counts as the 0 that stands for it.
        """
        if not self._used:
            return
        indexes = self._indexes_to_rebuild()
        for name in indexes:
            self.connection.run(f'DROP INDEX "{name}"')
        # Run by run, as they were staged: readers then find the points of a run side by side.
        self.connection.run(f"INSERT INTO metrics ({_COLUMNS}) SELECT {_COLUMNS} FROM {_POINTS} WHERE {condition}")
        for definition in indexes.values():
            self.connection.run(definition)
        ranked = (
            f"SELECT {_COLUMNS}, ROW_NUMBER() OVER (PARTITION BY run_uuid, key ORDER BY step DESC, timestamp DESC, value DESC, "
            f"is_nan) AS place FROM {_LATEST} WHERE {condition}"
        )
        self.connection.run(
            f"INSERT INTO latest_metrics ({_COLUMNS}) SELECT {_COLUMNS} FROM ({ranked}) AS ranked WHERE place = 1"
        )

    def _indexes_to_rebuild(self) -> dict[str, str]:
        """Indexes of ``metrics`` that SQLite makes faster anew, by name, with their definitions: all or none.

        They go and come back in the transaction of the points, so nobody else ever sees the table without them.
        """
        if not self.connection.uri.is_sqlite:
            return {}
        rows = f"SELECT COALESCE((SELECT MAX(rowid) FROM metrics), 0), (SELECT MAX(rowid) FROM {_POINTS})"
        there, coming = (column.to_pylist()[0] for column in self.connection.fetch(rows, _TWO_NUMBERS).columns)
        if there > coming:
            return {}
        named = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'metrics' AND sql IS NOT NULL"
        names, definitions = (column.to_pylist() for column in self.connection.fetch(named, _TWO_TEXTS).columns)
        return dict(zip(names, definitions, strict=True))

    def clear(self) -> None:
        """Remove the temporary tables."""
        if self._used:
            for name in (_POINTS, _LATEST):
                self.connection.run(f"DROP TABLE IF EXISTS {name}")
            self._used = False


def model_rows_as_held(rows: pa.Table, *, sqlite: bool) -> tuple[pa.Table, list[str], int]:
    """The metric rows of a logged model as a database holds them, what that alters, and how many it has no place for.

    There is one row for each key, step, timestamp and run. SQLite has NULL for NaN, at which a server fails: it gets the 0 that
    MLflow itself writes.
    """
    key = [rows.column(name) for name in ("key", "step", "timestamp", "run_id")]
    repeated = np.zeros(rows.num_rows, dtype=bool)
    if rows.num_rows > 1:
        repeated[1:] = True
        for column in key:
            repeated[1:] &= pc.equal(column[1:], column[:-1]).to_numpy()
    same = np.zeros_like(repeated)
    others = rows.drop_columns(["key", "step", "timestamp", "run_id"])
    for place in np.flatnonzero(repeated).tolist():
        same[place] = repr(others.slice(place, 1).to_pylist()) == repr(others.slice(place - 1, 1).to_pylist())
    held, notes = rows.filter(pa.array(~repeated)) if repeated.any() else rows, []
    if same.any():
        notes.append(f"{int(same.sum())} metric rows that repeat another one exactly are kept once")
    value = held.column("value")
    nan = pc.is_nan(value)
    if sqlite and pc.any(nan).as_py():
        notes.append(f"{pc.sum(nan).as_py()} metric values that are not a number are 0 in SQLite, as MLflow writes them")
        held = held.set_column(held.column_names.index("value"), held.schema.field("value"), pc.if_else(nan, 0.0, value))
    return held, notes, int(repeated.sum() - same.sum())


def _repeats(table: pa.Table) -> Mask:
    """Which rows say the same as the row before them."""
    repeated = np.zeros(table.num_rows, dtype=bool)
    if table.num_rows < 2:
        return repeated
    value = numbers(table, "value")
    same = (value[1:] == value[:-1]) | (np.isnan(value[1:]) & np.isnan(value[:-1]))
    for name in ("owner", "step", "timestamp"):
        column = numbers(table, name)
        same &= column[1:] == column[:-1]
    places = np.flatnonzero(same)
    if len(places):
        keys = table.column("key")
        equal = pc.equal(keys.take(pa.array(places)), keys.take(pa.array(places + 1)))
        repeated[places + 1] = equal.to_numpy(zero_copy_only=False) if isinstance(equal, pa.Array) else equal.to_numpy()
    return repeated


def _newest(table: pa.Table) -> Mask:
    """Which rows have the last step and timestamp of their series, as far as this table goes."""
    codes = table.column("key").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    owner, step, time = (numbers(table, name) for name in ("owner", "step", "timestamp"))
    border = np.flatnonzero((owner[1:] != owner[:-1]) | (codes[1:] != codes[:-1]))
    lasts = np.append(border, table.num_rows - 1)
    sizes = np.diff(lasts, prepend=-1)
    newest: Mask = (step == np.repeat(step[lasts], sizes)) & (time == np.repeat(time[lasts], sizes))
    return newest
