"""What an earlier snapshot knows, for an incremental pack: which owners have which rows in which objects (spec/v1.md, 7)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import Committed, objects_of, read_verified
from mlflow_bundle._row_groups import checked_table
from mlflow_bundle._spool import LATEST_SCHEMA
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle._views import ENTITY_VIEW, RUNS_VIEW
from mlflow_bundle.records import KINDS, ObjectRef

__all__ = ["Base", "Known"]

_FILES: Final = "files/1"
_FILE_COLUMNS: Final = ("file_object", "file_start", "file_rows")
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
        self._runs = self._view("run", RUNS_VIEW, _COLUMNS)
        self._row_of = {run: row for row, run in enumerate(self._runs.column("run_id").to_pylist())}
        self._rows: np.ndarray[Any, Any] = self._runs.column("metric_rows").to_numpy()
        self._starts: np.ndarray[Any, Any] = self._runs.column("metric_start").to_numpy()
        #: Where the files of each owner that has some lie: object, first row, number of rows.
        self._places: dict[tuple[str, str], tuple[str, int, int]] = {}
        for kind in KINDS.values():
            if _FILES in kind.tables:
                self._note_files(kind.name)
        self._files: dict[str, pa.Table] = {}

    def _view(self, kind: str, spec: TableSpec, columns: Sequence[str]) -> pa.Table:
        """The views of a kind, one after the other."""
        refs = [ref for ref in self._refs.values() if ref.role == _layout.VIEWS and ref.kind == kind]
        tables = [spec.schema.empty_table().select(list(columns))]
        for ref in refs:
            data = read_verified(self._storage, ref.path, limit=self._limits.table_bytes)
            tables.append(checked_table(data, spec, name=ref.path, limits=self._limits, columns=columns))
        return pa.concat_tables(tables).combine_chunks()

    def _note_files(self, kind: str) -> None:
        key, view = "run_id", self._runs
        if kind != "run":
            key, view = "id", self._view(kind, ENTITY_VIEW, ["id", *_FILE_COLUMNS])
        view = view.filter(pc.greater(view.column("file_rows"), 0))
        columns = (view.column(name).to_pylist() for name in (key, *_FILE_COLUMNS))
        self._places |= {
            (kind, owner): (sys.intern(path), start, rows) for owner, path, start, rows in zip(*columns, strict=True)
        }

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

    def has_files(self, kind: str, identity: str) -> bool:
        """Whether it has files of an entity, readable ones or not."""
        return (kind, identity) in self._places

    def files(self, kind: str, identity: str) -> dict[str, tuple[int, str, str]]:
        """The files of an entity whose store had stamped them: path -> (size in bytes, SHA-256 in hex, stamp)."""
        path, start, count = self._places.get((kind, identity), ("", 0, 0))
        if path not in self._refs:
            return {}
        known = self._files.get(path)
        if known is None:
            data = read_verified(self._storage, path, limit=self._limits.table_bytes)
            known = checked_table(data, TABLES[_FILES], name=path, limits=self._limits)
            self._files = {path: known}
        return {
            row["path"]: (row["size"], row["sha256"], row["stamp"])
            for row in known.slice(start, count).to_pylist()
            if (row["owner_kind"], row["owner_id"], row["state"]) == (kind, identity, "ok") and row["stamp"]
        }


def _latest(view: pa.Table, owners: np.ndarray[Any, Any]) -> pa.Table:
    """The latest points of view rows, as ``LATEST_SCHEMA`` with these owner numbers."""
    array = view.column("latest_metrics").combine_chunks()
    lengths = np.diff(array.offsets.to_numpy())
    start, end = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
    keys, points = array.keys.slice(start, end - start), array.items.slice(start, end - start)
    owner = pa.array(np.repeat(owners, lengths), pa.int64())
    value, timestamp, step = points.flatten()
    return pa.Table.from_arrays([owner, keys, value, timestamp, step], schema=LATEST_SCHEMA)
