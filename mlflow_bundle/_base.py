"""What an earlier snapshot knows, for an incremental pack: which owners have which rows in which objects (spec/v1.md, 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import Committed, objects_of, read_verified
from mlflow_bundle._spool import LATEST_SCHEMA
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import open_table
from mlflow_bundle._views import RUNS_VIEW
from mlflow_bundle.records import ObjectRef

__all__ = ["Base", "Known"]

_COLUMNS: Final = [
    "run_id",
    "experiment_id",
    "metric_rows",
    "metric_digest",
    "metric_object",
    "metric_start",
    "file_rows",
    "file_object",
    "file_start",
    "latest_metrics",
]


class Known:
    """An object of the base that holds just the owners that were asked for, with what is known of each."""

    def __init__(self, ref: ObjectRef, digests: list[str], latest: pa.Table) -> None:
        self.ref = ref
        self.digests = digests
        self.latest = latest


class Base:
    """The snapshot that a pack builds on. Only objects that are still in the storage with their size are offered: what
    others lost is read and stored again."""

    def __init__(self, storage: Storage, committed: Committed, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._storage = storage
        self._limits = limits
        self.committed = committed
        stored = storage.list(_layout.OBJECTS)
        lists_stored = all(stored.get(ref.path) == ref.size for ref in committed.snapshot.object_lists)
        refs = objects_of(storage, committed.snapshot, limits=limits) if lists_stored else []
        self._refs = {ref.path: ref for ref in refs if stored.get(ref.path) == ref.size}
        tables = [self._read(ref) for ref in self._refs.values() if ref.role == _layout.VIEWS and ref.kind == "run"]
        self._runs = pa.concat_tables(tables).combine_chunks() if tables else RUNS_VIEW.schema.empty_table()
        self._row_of = {run: row for row, run in enumerate(self._runs.column("run_id").to_pylist())}
        self._rows: np.ndarray[Any, Any] = self._runs.column("metric_rows").to_numpy()
        self._starts: np.ndarray[Any, Any] = self._runs.column("metric_start").to_numpy()
        self._files: dict[str, pa.Table] = {}

    def _read(self, ref: ObjectRef) -> pa.Table:
        data = read_verified(self._storage, ref.path, limit=self._limits.table_bytes)
        return open_table(pa.BufferReader(data), RUNS_VIEW, name=ref.path).read(columns=_COLUMNS)

    def refs(self, *roles: str) -> list[ObjectRef]:
        """The objects of these roles."""
        return [ref for ref in self._refs.values() if ref.role in roles]

    def metrics(self, run_ids: Sequence[str], experiment_ids: Sequence[str], counts: Sequence[int]) -> Known | None:
        """The metrics object that holds just these runs, in this order, with these numbers of points; or None."""
        found = [self._row_of.get(run, -1) for run in run_ids]
        with_points = [(row, count) for row, count in zip(found, counts, strict=True) if count]
        if not with_points or any(row < 0 for row, _ in with_points):
            return None
        path = self._runs.column("metric_object")[with_points[0][0]].as_py()
        ref = self._refs.get(path or "")
        total = 0
        for row, count in with_points:
            if self._rows[row] != count or self._starts[row] != total:
                return None
            total += count
        rows = pa.array([row for row, _ in with_points])
        view = self._runs.take(rows)
        expected = [run for run, count in zip(experiment_ids, counts, strict=True) if count]
        same = set(view.column("metric_object").to_pylist()) == {path} and (
            view.column("experiment_id").to_pylist() == expected
        )
        if ref is None or not same or ref.rows != total:
            return None
        digests = iter(view.column("metric_digest").to_pylist())
        owners = np.flatnonzero(np.asarray(counts) > 0)
        return Known(ref, [str(next(digests)) if count else "" for count in counts], _latest(view, owners))

    def files(self, run_id: str) -> dict[str, tuple[int, str, str]]:
        """The files of a run whose store had stamped them: path -> (size in bytes, SHA-256 in hex, stamp)."""
        row = self._row_of.get(run_id)
        if row is None:
            return {}
        path, start, count = (self._runs.column(n)[row].as_py() for n in ("file_object", "file_start", "file_rows"))
        if path is None or path not in self._refs:
            return {}
        if path not in self._files:
            data = read_verified(self._storage, path, limit=self._limits.table_bytes)
            self._files = {path: open_table(pa.BufferReader(data), TABLES["files/1"], name=path).read()}
        rows = self._files[path].slice(start, count).to_pylist()
        return {
            row["path"]: (row["size"], row["sha256"], row["stamp"])
            for row in rows
            if row["owner_id"] == run_id and row["state"] == "ok" and row["stamp"]
        }


def _latest(view: pa.Table, owners: np.ndarray[Any, Any]) -> pa.Table:
    """The latest points of view rows, as ``LATEST_SCHEMA`` with these owner numbers."""
    maps = view.column("latest_metrics").combine_chunks()
    array = pa.concat_arrays(maps.chunks) if isinstance(maps, pa.ChunkedArray) else maps
    lengths = np.diff(array.offsets.to_numpy())
    start, end = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
    keys, points = array.keys.slice(start, end - start), array.items.slice(start, end - start)
    owner = pa.array(np.repeat(owners, lengths), pa.int64())
    value, timestamp, step = points.flatten()
    return pa.Table.from_arrays([owner, keys, value, timestamp, step], schema=LATEST_SCHEMA)
