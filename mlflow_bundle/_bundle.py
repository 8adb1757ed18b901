"""``Bundle``: an archive opened for reading, as tables, records, series and files of one snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._blobs import BlobReader
from mlflow_bundle._codec import decode_frame, decode_record, line_kind, read_lines
from mlflow_bundle._digests import hex_of
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import Committed, find_snapshot, objects_of, read_marker, read_verified, snapshots
from mlflow_bundle._series import as_series
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle._tables import open_table
from mlflow_bundle._verify._levels import Report, unreadable_report, verify_snapshot, verify_storage
from mlflow_bundle._views import RUNS_VIEW, wide_runs
from mlflow_bundle.errors import CorruptError, LimitError, NotFoundError
from mlflow_bundle.records import KINDS, Experiment, ObjectRef, Record, Run, Snapshot

__all__ = ["Bundle", "open_bundle", "verify"]

#: Columns of the view that say where things lie; callers have no use for them.
_PLUMBING: Final = (
    "record_object",
    "frame_offset",
    "frame_length",
    "record_digest",
    "metric_digest",
    "metric_object",
    "metric_start",
    "file_digest",
    "file_object",
    "file_start",
)
_FILE_COLUMNS: Final = ["owner_id", "path", "size", "sha256", "state"]


def open_bundle(
    url: str | os.PathLike[str],
    *,
    snapshot: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Bundle:
    """Open a bundle at a path, any fsspec URL, or in one ZIP file. MLflow is not needed.

    ``snapshot`` is the beginning of a snapshot's name, id or root digest; without it the newest is read.

    Raises:
        BundleNotFoundError: there is no bundle.
        NotFoundError: it has no such snapshot, or none at all.
        UnsupportedError: it needs a newer release.
    """
    storage = open_storage(url, storage_options=storage_options)
    try:
        read_marker(storage, limits=limits)
        return Bundle(storage, find_snapshot(storage, snapshot, limits=limits), limits=limits)
    except BaseException:
        storage.close()
        raise


def verify(
    url: str | os.PathLike[str],
    *,
    level: str = "full",
    subset: tuple[int, int] | None = None,
    snapshot: str | None = None,
    all_snapshots: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Check a snapshot of a bundle, by default the newest, or ``all_snapshots`` with each object read once.

    ``level`` is ``structure`` (every object is there with its size), ``tables`` (records, tables and the logical root are
    right too) or ``full`` (every byte). ``subset=(k, n)`` of ``full`` checks the bytes of the k-th of n parts of the packs and
    blobs, so that n runs cover all. Problems are returned, not raised, and it never stops at the first; a damaged marker or
    snapshot document is a problem too.

    Raises:
        BundleNotFoundError, NotFoundError: there is nothing to check.
        StorageError: the storage cannot be listed.
        UsageError: an unknown level, or a subset that is none.
    """
    try:
        storage = open_storage(url, storage_options=storage_options)
    except (CorruptError, LimitError) as error:
        return unreadable_report(error, level=level)
    with storage:
        return verify_storage(
            storage, snapshot=snapshot, level=level, subset=subset, all_snapshots=all_snapshots, limits=limits
        )


class Bundle:
    """One snapshot of a bundle. Tables are ``pyarrow.Table``; times are milliseconds since 1970, sizes are bytes.

    Everything is read on demand. Use it as a context manager, or ``close`` it.
    """

    def __init__(self, storage: Storage, committed: Committed, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._storage = storage
        self._committed = committed
        self._limits = limits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release files and connections."""
        self._storage.close()

    def __repr__(self) -> str:
        return f"<Bundle {self.url!r} snapshot {self.snapshot_id} ({self.snapshot.state})>"

    @property
    def url(self) -> str:
        """Where the bundle lies, without credentials."""
        return self._storage.url

    @property
    def snapshot(self) -> Snapshot:
        """The document of this snapshot: counts, scope, source, state, problems."""
        return self._committed.snapshot

    @property
    def snapshot_id(self) -> str:
        """The name of this snapshot."""
        return self._committed.stem

    @property
    def root_digest(self) -> str:
        """SHA-256 of the snapshot document; it reaches every byte of the snapshot."""
        return self._committed.digest

    def snapshots(self) -> list[Committed]:
        """All snapshots of the bundle, newest first."""
        return list(snapshots(self._storage, limits=self._limits))

    def at(self, snapshot: str) -> Bundle:
        """The same bundle at another snapshot."""
        return Bundle(self._storage, find_snapshot(self._storage, snapshot, limits=self._limits), limits=self._limits)

    @cached_property
    def objects(self) -> list[ObjectRef]:
        """Every object that this snapshot needs."""
        return objects_of(self._storage, self.snapshot, limits=self._limits)

    def _refs(self, role: str, kind: str | None = None) -> list[ObjectRef]:
        return [ref for ref in self.objects if ref.role == role and (kind is None or ref.kind == kind)]

    # -- records ---------------------------------------------------------------------------------------------------

    def records(self, kind: str) -> Iterator[Record]:
        """The records of a kind in archive order, an object at a time."""
        for ref in self._refs(_layout.RECORDS, kind):
            data = read_verified(self._storage, ref.path, limit=self._limits.records_bytes)
            for line in read_lines(data, name=ref.path, limits=self._limits):
                if line_kind(line, name=ref.path) != kind:
                    raise CorruptError(f"{ref.path} holds another kind than {kind}", code="E031")
                yield decode_record(line, kind, name=ref.path, limits=self._limits)

    def kinds(self) -> list[str]:
        """The kinds of records in this snapshot, known to this release or not."""
        return sorted(self.snapshot.logical.kinds, key=lambda kind: (kind not in KINDS, kind))

    def run(self, run_id: str) -> Run:
        """One run, read without the others.

        Raises:
            NotFoundError: it is not in this snapshot.
        """
        row = self._row(run_id)
        path, offset, length, digest = (
            self._view.column(n)[row].as_py() for n in ("record_object", "frame_offset", "frame_length", "record_digest")
        )
        if _layout.object_hex(path) is None:
            raise CorruptError(f"the runs view names {path!r}, which is no object", code="E021")
        stored = self._storage.read_range(path, offset, length)
        lines = decode_frame(stored, _raw_size(stored, path), name=path, limits=self._limits)
        for line in lines[:-1].split(b"\n"):
            if hex_of(line) == digest:
                return cast("Run", decode_record(line, "run", name=path, limits=self._limits))
        raise CorruptError(f"{path} does not hold run {run_id} where the runs view says", code="E060", hint="verify the bundle")

    # -- tables ----------------------------------------------------------------------------------------------------

    @cached_property
    def _view(self) -> pa.Table:
        tables = [self._read_table(ref, "runs_view/1") for ref in self._refs(_layout.VIEWS, "run")]
        return pa.concat_tables(tables).combine_chunks() if tables else RUNS_VIEW.schema.empty_table()

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {run: row for row, run in enumerate(self._view.column("run_id").to_pylist())}

    def _row(self, run_id: str) -> int:
        row = self._row_of.get(run_id)
        if row is None:
            raise NotFoundError(f"no run {run_id!r} in snapshot {self.snapshot_id}", code="run-not-found")
        return row

    def _read_table(self, ref: ObjectRef, schema: str, columns: Sequence[str] | None = None) -> pa.Table:
        data = read_verified(self._storage, ref.path, limit=self._limits.table_bytes)
        table = open_table(pa.BufferReader(data), TABLES[schema], name=ref.path)
        return table.read(columns=list(columns) if columns else None)

    def experiments(self) -> pa.Table:
        """One row an experiment, its tags as a map."""
        rows = cast("list[Experiment]", list(self.records("experiment")))
        fields = ("experiment_id", "name", "lifecycle_stage", "artifact_location", "workspace")
        columns: dict[str, Any] = {name: pa.array([_text(getattr(row, name)) for row in rows], pa.string()) for name in fields}
        for name in ("creation_time", "last_update_time"):
            columns[name] = pa.array([_text(getattr(row, name)) for row in rows], pa.int64())
        tags = [[(tag.key, tag.value) for tag in row.tags] for row in rows]
        return pa.table({**columns, "tags": pa.array(tags, pa.map_(pa.string(), pa.string()))})

    def runs(self, *, wide: bool = False) -> pa.Table:
        """One row a run, with its params, tags and latest metrics as maps and its numbers of metric points and files.

        ``wide`` gives the columns of ``mlflow.search_runs`` instead: ``metrics.*``, ``params.*``, ``tags.*``, UTC timestamps.
        """
        return wide_runs(self._view) if wide else self._view.drop_columns(list(_PLUMBING))

    def params(self) -> pa.Table:
        """One row a param: ``run_id, key, value``."""
        return _unfolded(self._view, "params")

    def tags(self) -> pa.Table:
        """One row a tag of a run: ``run_id, key, value``."""
        return _unfolded(self._view, "tags")

    def metrics(self, *, run_id: str | None = None, key: str | None = None) -> pa.Table:
        """Metric points: ``experiment_id, run_id, key, step, timestamp, value``. One run's are read without the others'."""
        if run_id is None:
            parts = [self._read_table(ref, "metrics/1") for ref in self._refs(_layout.METRICS)]
        else:
            row = self._row(run_id)
            parts = [self._rows_of(row, "metric", "metrics/1")] if self._view.column("metric_rows")[row].as_py() else []
        table = pa.concat_tables([TABLES["metrics/1"].schema.empty_table(), *parts])
        return table if key is None else table.filter(pc.equal(table.column("key"), key))

    def files(self, *, run_id: str | None = None) -> pa.Table:
        """Artifact files: ``run_id, path, size, sha256, state``; ``state`` is ``ok`` or ``unreadable``."""
        if run_id is None:
            parts = [self._read_table(ref, "files/1", _FILE_COLUMNS) for ref in self._refs(_layout.FILES)]
        else:
            row = self._row(run_id)
            parts = [self._rows_of(row, "file", "files/1")] if self._view.column("file_rows")[row].as_py() else []
        empty = TABLES["files/1"].schema.empty_table().select(_FILE_COLUMNS)
        table = pa.concat_tables([empty, *(part.select(_FILE_COLUMNS) for part in parts)])
        return table.rename_columns(["run_id", *_FILE_COLUMNS[1:]])

    def _rows_of(self, row: int, what: str, schema: str) -> pa.Table:
        """The table rows of the run in one row of the view."""
        run = self._view.column("run_id")[row].as_py()
        table = pa.concat_tables(self._stretch(self._place(row, what), TABLES[schema]))
        owner = table.column("run_id" if what == "metric" else "owner_id")
        if not pc.all(pc.equal(owner.cast(pa.string()), run)).as_py():
            raise CorruptError(f"the objects do not hold run {run} where the view says", code="E060", hint="verify the bundle")
        return table.cast(TABLES[schema].schema)

    def _place(self, row: int, what: str) -> _Place:
        """Where the rows of a run lie in a table."""
        path, start, count = (self._view.column(f"{what}_{n}")[row].as_py() for n in ("object", "start", "rows"))
        return _Place(path, start, count)

    def _stretch(self, place: _Place, spec: TableSpec) -> Iterator[pa.Table]:
        """Consecutive rows of an object, a row group at a time, repeated strings as dictionaries."""
        if place.object is None or _layout.object_hex(place.object) is None:
            raise CorruptError(f"the runs view names {place.object!r}, which is no object", code="E021")
        with self._storage.open(place.object) as file:
            table = open_table(file, spec, name=place.object, dictionaries=True)
            start, rows = 0, 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                first, last = max(place.start, start), min(place.start + place.rows, start + count)
                if first < last:
                    rows += last - first
                    yield table.read_row_group(group).slice(first - start, last - first)
                start += count
        if rows != place.rows:
            raise CorruptError(f"{place.object} has fewer rows than the runs view says", code="E060", hint="verify the bundle")

    def _stretches(self, run_ids: Sequence[str], what: str, spec: TableSpec) -> Iterator[pa.Table]:
        """The rows of several runs in order; neighbours in one object are read together."""
        open_place: _Place | None = None
        for run in run_ids:
            place = self._place(self._row(run), what)
            if not place.rows:
                continue
            if open_place and open_place.object == place.object and open_place.start + open_place.rows == place.start:
                open_place = _Place(place.object, open_place.start, open_place.rows + place.rows)
                continue
            if open_place:
                yield from self._stretch(open_place, spec)
            open_place = place
        if open_place:
            yield from self._stretch(open_place, spec)

    def series(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metric points of some runs: bounded tables ``owner`` (place in ``run_ids``), ``key, step, timestamp, value``."""
        position = {run: number for number, run in enumerate(run_ids)}
        for table in as_series(self._stretches(run_ids, "metric", TABLES["metrics/1"]), position.__getitem__):
            yield table.set_column(1, "key", table.column("key").cast(pa.string()))

    def metric_rows(self, run_ids: Sequence[str]) -> list[int]:
        """The number of metric points of each run."""
        column = self._view.column("metric_rows")
        return [column[self._row(run)].as_py() for run in run_ids]

    def latest_metrics(self) -> pa.Table:
        """One row a series: ``run_id, key`` and its latest ``value``, ``timestamp`` and ``step`` by MLflow's rule."""
        table = _unfolded(self._view, "latest_metrics")
        value, timestamp, step = table.column("value").combine_chunks().flatten()
        return pa.table({"run_id": table["run_id"], "key": table["key"], "value": value, "timestamp": timestamp, "step": step})

    def files_of(self, run_ids: Sequence[str]) -> pa.Table:
        """The artifact files of some runs: ``run_id, path, size, sha256, state``."""
        parts = [part.select(_FILE_COLUMNS) for part in self._stretches(run_ids, "file", TABLES["files/1"])]
        table = pa.concat_tables([TABLES["files/1"].schema.empty_table().select(_FILE_COLUMNS), *(map(_decoded, parts))])
        return table.rename_columns(["run_id", *_FILE_COLUMNS[1:]])

    # -- files -----------------------------------------------------------------------------------------------------

    @cached_property
    def blobs(self) -> BlobReader:
        """The file contents of this snapshot, by SHA-256."""
        return BlobReader(self._storage, self._refs(_layout.INDEX), self._limits)

    def open_file(self, run_id: str, path: str) -> AbstractContextManager[BinaryIO]:
        """One artifact file as a stream; reading it to the end checks its SHA-256.

        Raises:
            NotFoundError: the run has no such file, or it could not be read when the snapshot was made.
        """
        files = self.files(run_id=run_id)
        found = files.filter(pc.equal(files.column("path"), path)).to_pylist()
        if not found:
            raise NotFoundError(f"run {run_id} has no file {path!r}", code="file-not-found")
        if found[0]["sha256"] is None:
            raise NotFoundError(f"file {path!r} of run {run_id} could not be read when it was packed", code="file-missing")
        return self.blobs.open(found[0]["sha256"])

    # -- checks ----------------------------------------------------------------------------------------------------

    def verify(self, *, level: str = "full", subset: tuple[int, int] | None = None) -> Report:
        """Check this snapshot; see ``mlflow_bundle.verify``."""
        return verify_snapshot(self._storage, self._committed, level=level, subset=subset, limits=self._limits)


def _text(value: Any) -> Any:
    return value if isinstance(value, str | int) else None


def _raw_size(stored: bytes, name: str) -> int:
    """The decoded size that a zstd frame states."""
    import zstandard  # noqa: PLC0415

    try:
        size = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise CorruptError(f"{name} has no zstd frame where the runs view says", code="E060") from error
    return max(int(size), 0)


class _Place(NamedTuple):
    """Consecutive rows of a table object."""

    object: str | None
    start: int
    rows: int


def _decoded(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([TABLES["files/1"].schema.field(name) for name in table.schema.names]))


def _unfolded(view: pa.Table, column: str) -> pa.Table:
    """A map column as rows of ``run_id, key, value``."""
    maps = view.column(column).combine_chunks()
    array = pa.concat_arrays(maps.chunks) if isinstance(maps, pa.ChunkedArray) else maps
    lengths = np.diff(array.offsets.to_numpy())
    runs = view.column("run_id").take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
    first, last = array.offsets[0].as_py() if len(array) else 0, array.offsets[-1].as_py() if len(array) else 0
    keys, values = array.keys.slice(first, last - first), array.items.slice(first, last - first)
    return pa.table([runs, keys, values], names=["run_id", "key", "value"])
