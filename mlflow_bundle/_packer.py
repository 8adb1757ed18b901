"""One snapshot in the making: records, series and files in archive order become objects, then the commit (spec/v1.md, 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle.__about__ import __version__
from mlflow_bundle._base import Base
from mlflow_bundle._blobs import BlobWriter, KnownDigests
from mlflow_bundle._codec import LinesWriter, decode_record, encode, logical_digest, read_lines
from mlflow_bundle._digests import hex_of
from mlflow_bundle._index import settle
from mlflow_bundle._limits import DEFAULT_LIMITS, WRITER_TARGETS, Limits, Targets
from mlflow_bundle._manifest import Committed, commit_snapshot
from mlflow_bundle._merkle import MerkleTree, leaf, logical
from mlflow_bundle._owners import NO_FILES, files_digest
from mlflow_bundle._redact import redact_bytes
from mlflow_bundle._series import NO_SERIES, SeriesDigester
from mlflow_bundle._shards import Cutter, OwnerTable, segments
from mlflow_bundle._spool import LatestSpool, LineSpool, latest_points
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import TableWriter
from mlflow_bundle._views import RUNS_VIEW, RunPlace, runs_view
from mlflow_bundle.errors import StorageError
from mlflow_bundle.records import (
    FORMAT,
    LAYOUT,
    Experiment,
    Marker,
    ObjectRef,
    Problem,
    Record,
    Run,
    Scope,
    Snapshot,
    Source,
    Writer,
    order_key,
    record_id,
)

__all__ = ["FileRow", "Packer"]

_VIEW_BATCH: Final = 2_000
#: Rows of the files table that are collected before they are appended.
_FILE_BATCH: Final = 4_096
_KIND_ORDER: Final = ("experiment", "run")
_CONTENT_ROLES: Final = (_layout.PACKS, _layout.BLOBS, _layout.INDEX)


class FileRow(msgspec.Struct, frozen=True):
    """A file of a run: a row of the files table. ``sha256`` is None when it could not be read."""

    path: str
    size: int
    sha256: str | None
    state: Literal["ok", "unreadable"] = "ok"
    stamp: str | None = None


class Packer:
    """Collects one snapshot. Call in this order: ``add`` every record; ``add_series`` and ``reuse_series`` to the last run,
    then ``end_series``; ``add_files`` for every run; ``commit``. Runs are owners, numbered from 0 in archive order."""

    def __init__(
        self,
        storage: Storage,
        marker: Marker,
        *,
        base: Base | None = None,
        targets: Targets = WRITER_TARGETS,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._storage, self._marker, self._base = storage, marker, base
        self._targets, self._limits = targets, limits
        self._spools: dict[str, LineSpool] = {}
        self._last: dict[str, Any] = {}
        self._latest = LatestSpool()
        self._experiment_names: dict[str, str] = {}
        self.run_ids: list[str] = []
        self.experiment_ids: list[str] = []
        self._digester = SeriesDigester()
        self._owner = 0
        self.series_cutter = Cutter(targets.metric_rows)
        self._series = OwnerTable(storage, TABLES["metrics/1"], self.series_cutter)
        self._files = OwnerTable(storage, TABLES["files/1"], Cutter(targets.file_rows))
        known = base.refs(*_CONTENT_ROLES) if base else []
        self.blobs = BlobWriter(storage, targets, known, limits)
        self._used = KnownDigests()
        self._file_rows: list[tuple[str, FileRow]] = []
        self._file_bytes = 0
        self.redacted = 0
        self.new_objects = 0
        self.new_bytes = 0
        self.shared_objects = 0

    def add(self, record: Record) -> None:
        """Take the next record of its kind. Credentials in its URIs are taken out here."""
        kind = str(record.__struct_config__.tag)
        key = order_key(record)
        if kind in self._last and key <= self._last[kind]:
            raise ValueError(f"{kind} {key} does not come after {self._last[kind]}")
        self._last[kind] = key
        line, found = redact_bytes(encode(record))
        self.redacted += found
        if kind not in self._spools:
            self._spools[kind] = LineSpool()
        self._spools[kind].add(line)
        if isinstance(record, Experiment):
            self._experiment_names[record.experiment_id] = record.name
        elif isinstance(record, Run):
            self.run_ids.append(record.run_id)
            self.experiment_ids.append(record.experiment_id)

    # -- metric series ---------------------------------------------------------------------------------------------

    def add_series(self, table: pa.Table, *, first: int = 0) -> None:
        """The next metric points: a ``SERIES_SCHEMA`` table whose owner 0 is the run number ``first``."""
        if table.num_rows == 0:
            return
        if first:
            owner = table.column("owner").combine_chunks().to_numpy() + np.int32(first)
            table = table.set_column(0, "owner", pa.array(owner, pa.int32()))
        self._latest.add(latest_points(table))
        self._digester.add(table)
        rows = self._metric_rows(table)
        written = 0
        for owner, start, _ in segments(table.column("owner").combine_chunks().to_numpy()):
            if self._end_owners(owner, rows.slice(written, start - written)):
                written = start
        self._series.append(rows.slice(written))

    def _end_owners(self, until: int, rows: pa.Table) -> bool:
        """End the owners below ``until``. When that ends an object, ``rows`` are appended to it first; then True."""
        appended = False
        while self._owner < until:
            count, digest = self._digester.finished.pop(self._owner, (0, NO_SERIES))
            cut = self._series.will_cut(self.run_ids[self._owner], count)
            if cut:
                self._series.append(rows)
                appended = True
            self._series.end_owner(count, digest, cut=cut)
            self._owner += 1
        return appended

    def _metric_rows(self, table: pa.Table) -> pa.Table:
        """A series table as rows of the metrics table."""
        owner = table.column("owner").combine_chunks().to_numpy()
        low, high = int(owner[0]), int(owner[-1]) + 1
        runs = pa.DictionaryArray.from_arrays(pa.array(owner - low, pa.int32()), pa.array(self.run_ids[low:high]))
        names = sorted(set(self.experiment_ids[low:high]))
        numbers = {name: number for number, name in enumerate(names)}
        codes = np.array([numbers[name] for name in self.experiment_ids[low:high]], dtype=np.int32)
        experiments = pa.DictionaryArray.from_arrays(pa.array(codes[owner - low]), pa.array(names))
        return pa.table(
            [experiments, runs, *(table.column(n) for n in ("key", "step", "timestamp", "value"))],
            names=TABLES["metrics/1"].schema.names,
        )

    def reuse_series(self, counts: Sequence[int]) -> bool:
        """Take the points of the next ``len(counts)`` runs from the base, when one object of it holds just these."""
        first, last = self._owner, self._owner + len(counts)
        base = self._base
        known = base and base.metrics(self.run_ids[first:last], self.experiment_ids[first:last], counts)
        if not known:
            return False
        latest = known.latest
        moved = pa.array(latest.column("owner").to_numpy() + first, pa.int64())
        self._latest.add(latest.set_column(0, "owner", moved))
        self.series_cutter.size = 0
        self._series.reuse(known.ref, counts, [digest or NO_SERIES for digest in known.digests])
        self._owner = last
        return True

    def end_group(self, until: int) -> None:
        """All points of the owners below ``until`` were added."""
        self._digester.finish()
        self._end_owners(until, TABLES["metrics/1"].schema.empty_table())

    def end_series(self) -> None:
        """All points of all runs were added."""
        self.end_group(len(self.run_ids))
        self._series.close()

    # -- files -----------------------------------------------------------------------------------------------------

    def known_files(self, run_id: str) -> dict[str, tuple[int, str, str]]:
        """What the base knows of the files of a run (see ``Base.files``), as far as their contents are stored."""
        files = self._base.files(run_id) if self._base else {}
        return {path: known for path, known in files.items() if self.blobs.has(known[1])}

    def add_files(self, files: Sequence[FileRow]) -> None:
        """The files of the next run. Their contents are in ``blobs`` already."""
        number = len(self._files.owners.rows)
        ordered = sorted(files, key=lambda file: file.path.encode("utf-8", "surrogatepass"))
        self._file_bytes += sum(file.size for file in ordered if file.state == "ok")
        count = len(ordered)
        for file in ordered:
            if file.sha256 is not None:
                self._used.add(file.sha256)
        run_id = self.run_ids[number]
        self._file_rows += [(run_id, file) for file in ordered]
        cut = self._files.will_cut(run_id, count)
        if cut or len(self._file_rows) >= _FILE_BATCH:
            self._append_files()
        digest = files_digest((f.path, f.size, f.sha256, f.state) for f in ordered) if ordered else NO_FILES
        self._files.end_owner(count, digest, cut=cut)

    def _append_files(self) -> None:
        """Give the rows that were collected to the table of files."""
        if not self._file_rows:
            return
        owners, files = zip(*self._file_rows, strict=True)
        columns = {
            "owner_kind": ["run"] * len(files),
            "owner_id": owners,
            "path": [file.path for file in files],
            "size": [file.size for file in files],
            "sha256": [file.sha256 for file in files],
            "state": [file.state for file in files],
            "stamp": [file.stamp for file in files],
        }
        self._files.append(pa.table(columns, schema=TABLES["files/1"].schema))
        self._file_rows = []

    # -- commit ----------------------------------------------------------------------------------------------------

    def commit(
        self,
        *,
        created_at: int,
        scope: Scope,
        source: Source,
        parents: Sequence[str],
        problems: Sequence[Problem],
        notes: Sequence[str],
    ) -> Committed:
        """Write what is left, then the snapshot document. ``created_at`` is in milliseconds."""
        self._append_files()
        self._files.close()
        counts = {
            "metric_point": sum(self._series.owners.rows),
            "file": sum(self._files.owners.rows),
            "file_bytes": self._file_bytes,
        }
        objects = [*self._content_objects(), *self._series.refs, *self._files.refs]
        trees: dict[str, MerkleTree] = {}
        for kind in _KIND_ORDER:
            if kind in self._spools:
                objects += self._write_records(kind, trees.setdefault(kind, MerkleTree()))
            counts[kind] = trees[kind].rows if kind in trees else 0
        self.new_objects += self._series.new_objects + self._files.new_objects
        self.new_bytes += self._series.new_bytes + self._files.new_bytes
        self.shared_objects = len(objects) - self.new_objects
        snapshot = Snapshot(
            format=FORMAT,
            layout=LAYOUT,
            bundle_id=self._marker.bundle_id,
            created_at=created_at,
            state="partial" if problems else "complete",
            scope=scope,
            source=source,
            writer=Writer(name="mlflow-bundle", version=__version__),
            counts=counts,
            logical=logical(trees),
            objects=tuple(objects),
            parents=tuple(parents),
            problems=tuple(problems),
            notes=tuple(notes),
        )
        return commit_snapshot(self._storage, snapshot, targets=self._targets)

    def _content_objects(self) -> list[ObjectRef]:
        """Packs, blobs and index parts: what the base has, what is new, small ones merged where they pile up."""
        extents = self.blobs.close()
        base = self._base
        settled = settle(
            self._storage,
            old=base.refs(*_CONTENT_ROLES) if base else [],
            new=self.blobs.objects,
            extents=extents,
            used=self._used.sorted(),
            targets=self._targets,
            limits=self._limits,
        )
        self._count(settled.written)
        self.new_objects += self.blobs.new_objects
        self.new_bytes += self.blobs.new_bytes
        return settled.refs

    def _count(self, written: Iterable[tuple[ObjectRef, bool]]) -> None:
        for ref, new in written:
            self.new_objects += new
            self.new_bytes += ref.size if new else 0

    def _write_records(self, kind: str, tree: MerkleTree) -> list[ObjectRef]:
        """The records of one kind as objects, the runs with their views; their leaves go into the tree."""
        cutter, refs, lines = Cutter(self._targets.records_bytes), [], []
        spool = self._spools[kind]
        for line in spool.lines():
            lines.append(line)
            if cutter.after(record_id(decode_record(line, kind, name="spool")), len(line) + 1):
                refs += self._write_shard(kind, lines, tree)
                lines = []
        if lines:
            refs += self._write_shard(kind, lines, tree)
        spool.close()
        return refs

    def _write_shard(self, kind: str, lines: Sequence[bytes], tree: MerkleTree) -> list[ObjectRef]:
        records = [decode_record(line, kind, name="spool") for line in lines]
        digests = [hex_of(line) for line in lines]
        with self._storage.stage() as staged:
            writer = LinesWriter(staged, frame_bytes=self._targets.frame_bytes)
            for line in lines:
                writer.add(line)
            writer.close()
            staged.finish()
            path = _layout.object_path(_layout.RECORDS, staged.sha256)
            with staged.reopen() as file:
                if list(read_lines(file.read(), name=path, limits=self._limits)) != lines:
                    raise StorageError(f"{path} does not read back as it was written", code="self-check")
            new = self._storage.put(staged, path)
            ref = ObjectRef(
                role=_layout.RECORDS,
                kind=kind,
                path=path,
                size=staged.size,
                rows=writer.rows,
                content=writer.content,
                first=order_key(records[0]),
                last=order_key(records[-1]),
            )
        self._count([(ref, new)])
        if kind != "run":
            for line in lines:
                tree.add(leaf(kind, logical_digest(line, kind)))
            return [ref]
        first = tree.rows
        series, files = self._series.owners.digests, self._files.owners.digests
        for number, line in enumerate(lines, start=first):
            tree.add(leaf(kind, logical_digest(line, kind), bytes.fromhex(series[number]), bytes.fromhex(files[number])))
        return [ref, self._write_runs_view(records, digests, path, writer, first)]

    def _write_runs_view(
        self, records: Sequence[Any], digests: Sequence[str], path: str, lines: LinesWriter, first: int
    ) -> ObjectRef:
        frames = [f for f, rows in zip(lines.frames, lines.frame_rows, strict=True) for _ in range(rows)]
        places = [RunPlace(path, f.offset, f.length, d) for f, d in zip(frames, digests, strict=True)]
        with self._storage.stage() as staged:
            writer = TableWriter(staged, RUNS_VIEW)
            for start in range(0, len(records), _VIEW_BATCH):
                end = min(start + _VIEW_BATCH, len(records))
                view = runs_view(
                    records[start:end],
                    places[start:end],
                    first=first + start,
                    metrics=self._series.owners,
                    files=self._files.owners,
                    latest=self._latest.until(first + end),
                    experiment_names=self._experiment_names,
                )
                writer.add(view)
            writer.close()
            staged.finish()
            view_path = _layout.object_path(_layout.VIEWS, staged.sha256)
            new = self._storage.put(staged, view_path)
            ref = ObjectRef(role=_layout.VIEWS, kind="run", path=view_path, size=staged.size, rows=len(records))
        self._count([(ref, new)])
        return ref

    def close(self) -> None:
        """Discard what is not committed: temporary files, no object."""
        self._series.abort()
        self._files.abort()
        self.blobs.discard()
        self._latest.close()
        for spool in self._spools.values():
            spool.close()
