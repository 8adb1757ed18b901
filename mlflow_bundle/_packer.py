"""One snapshot in the making: records and what they own, in archive order, become objects, then the commit (spec/v1.md, 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle.__about__ import __version__
from mlflow_bundle._base import Base
from mlflow_bundle._blobs import BlobWriter, KnownDigests
from mlflow_bundle._codec import decode, decode_record, encode, logical_digest
from mlflow_bundle._index import settle
from mlflow_bundle._limits import DEFAULT_LIMITS, WRITER_TARGETS, Limits, Targets
from mlflow_bundle._lookup import id_notes
from mlflow_bundle._manifest import Committed, commit_snapshot
from mlflow_bundle._merkle import MerkleTree, leaf, logical
from mlflow_bundle._owned import FileRow, OwnedFiles, OwnedRows, numbered
from mlflow_bundle._record_shards import RecordShards, Shard
from mlflow_bundle._redact import redact_bytes
from mlflow_bundle._shards import Cutter, OwnerTable
from mlflow_bundle._spool import LatestSpool, latest_points
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import TableWriter
from mlflow_bundle._views import ENTITY_VIEW, RUNS_VIEW, entity_view, runs_view
from mlflow_bundle.records import (
    FORMAT,
    KINDS,
    LAYOUT,
    Experiment,
    Kind,
    Marker,
    ObjectRef,
    Problem,
    Record,
    Run,
    Scope,
    Snapshot,
    Source,
    Writer,
)

__all__ = ["FileRow", "Packer"]

_VIEW_BATCH: Final = 2_000
_CONTENT_ROLES: Final = (_layout.PACKS, _layout.BLOBS, _layout.INDEX)
_FILES: Final = "files/1"
_METRICS: Final = "metrics/1"
#: The names of the counts of rows, and those counts that are told even when they are 0.
_COUNTED: Final = {_METRICS: "metric_point", "model_metrics/1": "model_metric_point", "spans/1": "span", _FILES: "file"}
_ALWAYS: Final = ("experiment", "run", "metric_point", "file", "file_bytes")


class Packer:
    """Collects one snapshot. Call in this order: ``add`` every record; for every table but that of the files, what adds or
    reuses its rows, to the last owner; ``add_files``; ``commit``. Kinds, and the tables, may come in any order.

    The owners of a table are the records of a kind, numbered from 0 in archive order; one for which nothing is added has
    nothing. ``ids`` are the ids of all records, by kind.
    """

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
        self._records = {name: RecordShards(kind) for name, kind in KINDS.items()}
        self.ids: Mapping[str, Sequence[str]] = {name: records.ids for name, records in self._records.items()}
        self.series_cutter = Cutter(targets.metric_rows)
        self._rows: dict[str, OwnedRows] = {}
        self._files: dict[str, OwnedFiles] = {}
        for kind in KINDS.values():
            self._open_tables(kind)
        self._latest = LatestSpool()
        self._experiment_names: dict[str, str] = {}
        known = base.refs(*_CONTENT_ROLES) if base else []
        self.blobs = BlobWriter(storage, targets, known, limits)
        self._used = KnownDigests()
        self.redacted = 0
        self.new_objects = 0
        self.new_bytes = 0
        self.shared_objects = 0

    def _open_tables(self, kind: Kind) -> None:
        records, targets = self._records[kind.name], self._targets
        for table in kind.tables:
            if table == _FILES:
                self._files[kind.name] = OwnedFiles(self._storage, kind.name, Cutter(targets.file_rows), records.ids)
            else:
                cutter = self.series_cutter if table == _METRICS else Cutter(targets.rows_bytes)
                self._rows[table] = OwnedRows(self._storage, TABLES[table], cutter, records.ids, records.experiments)

    def add(self, record: Record, line: bytes | None = None) -> None:
        """Take the next record of its kind, with its line where there is one. Credentials in its URIs are taken out here."""
        kept, redacted = self._records[str(record.__struct_config__.tag)].add(record, line)
        self.redacted += redacted
        if isinstance(kept, Experiment):
            self._experiment_names[kept.experiment_id] = kept.name

    # -- rows ------------------------------------------------------------------------------------------------------

    def add_series(self, table: pa.Table, *, first: int = 0) -> None:
        """The next metric points: a ``SERIES_SCHEMA`` table whose owner 0 is the run number ``first``."""
        if table.num_rows == 0:
            return
        points = numbered(table, first)
        self._latest.add(latest_points(points))
        self._rows[_METRICS].add(points)

    def reuse_series(self, counts: Sequence[int]) -> bool:
        """Take the points of the next ``len(counts)`` runs from the base, when one object of it holds just these."""
        rows, runs, base = self._rows[_METRICS], self._records["run"], self._base
        first, last = rows.next_owner, rows.next_owner + len(counts)
        known = base and base.metrics(runs.ids[first:last], runs.experiments[first:last], counts)
        if not known:
            return False
        latest = known.latest
        moved = pa.array(latest.column("owner").to_numpy() + first, pa.int64())
        self._latest.add(latest.set_column(0, "owner", moved))
        rows.reuse(known.ref, counts, known.digests)
        return True

    def end_group(self, until: int) -> None:
        """All points of the runs below ``until`` were added."""
        self._rows[_METRICS].end(until)

    def end_series(self) -> None:
        """All points of all runs were added."""
        self._rows[_METRICS].close()

    def add_rows(self, table: str, rows: pa.Table, *, first: int = 0) -> None:
        """The next rows of ``model_metrics/1`` or ``spans/1``: the column ``owner`` and those of the table without the ids, as
        ``ROW_SCHEMAS`` has them, whose owner 0 is the logged model or trace number ``first``."""
        self._rows[table].add(numbered(rows, first))

    def end_rows(self, table: str) -> None:
        """All rows of the table were added."""
        self._rows[table].close()

    # -- files -----------------------------------------------------------------------------------------------------

    def known_files(self, kind: str, identity: str) -> dict[str, tuple[int, str, str]]:
        """What the base knows of the files of an entity (see ``Base.files``), as far as their contents are stored."""
        files = self._base.files(kind, identity) if self._base else {}
        return {path: known for path, known in files.items() if self.blobs.has(known[1])}

    def add_files(self, files: Sequence[FileRow], *, kind: str = "run", owner: str | None = None) -> None:
        """The files of the next owner of a kind, or of ``owner``: those that were passed over have none. The contents are in
        ``blobs`` already."""
        for file in files:
            if file.sha256 is not None:
                self._used.add(file.sha256)
        self._files[kind].add(files, owner)

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
        for owned in self._owned:
            owned.close()
        content = self._content_objects()
        trees = {kind: MerkleTree() for kind in KINDS}
        records = [
            ref
            for kind, shards in self._records.items()
            for shard in shards.write(self._storage, self._targets, self._limits)
            for ref in self._take(shard, KINDS[kind], trees[kind])
        ]
        objects = [*content, *self._table_objects(), *records]
        self.redacted += sum(rows.redacted for rows in self._rows.values())
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
            counts=self._counts(),
            logical=logical(trees),
            objects=tuple(objects),
            parents=tuple(parents),
            problems=tuple(problems),
            notes=tuple(notes),
        )
        document, found = redact_bytes(encode(snapshot))
        if found:  # in a message, a note, a filter or the URI of the source
            snapshot = decode(document, Snapshot, name="snapshot")
            self.redacted += found
        return commit_snapshot(self._storage, snapshot, targets=self._targets)

    @property
    def _owned(self) -> list[OwnedRows | OwnedFiles]:
        return [*self._rows.values(), *self._files.values()]

    def _counts(self) -> dict[str, int]:
        """How many there are of each kind and of what they own; most are left out where there are none."""
        counts = {kind: len(records) for kind, records in self._records.items()}
        counts |= {_COUNTED[table]: sum(rows.table.owners.rows) for table, rows in self._rows.items()}
        counts["file"] = sum(sum(files.table.owners.rows) for files in self._files.values())
        counts["file_bytes"] = sum(files.bytes for files in self._files.values())
        return {name: count for name, count in counts.items() if count or name in _ALWAYS}

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

    def _table_objects(self) -> list[ObjectRef]:
        """The objects of all tables, which were checked while the records were written."""
        for table in (owned.table for owned in self._owned):
            table.close()
            self.new_objects += table.new_objects
            self.new_bytes += table.new_bytes
        return [ref for owned in self._owned for ref in owned.table.refs]

    def _count(self, written: Iterable[tuple[ObjectRef, bool]]) -> None:
        for ref, new in written:
            self.new_objects += new
            self.new_bytes += ref.size if new else 0

    def _take(self, shard: Shard, kind: Kind, tree: MerkleTree) -> list[ObjectRef]:
        """Count a records object, put its leaves into the tree, write its view. All objects that there are of it."""
        self._count([(shard.ref, shard.is_new)])
        digests = [self._table(kind, table).owners.digests for table in kind.tables]
        for number, line in enumerate(shard.lines, start=shard.first):
            tree.add(leaf(kind.name, logical_digest(line, kind.name), *(digest.raw(number) for digest in digests)))
        return [shard.ref, self._write_view(shard, kind)] if kind.tables else [shard.ref]

    def _table(self, kind: Kind, table: str) -> OwnerTable:
        return self._files[kind.name].table if table == _FILES else self._rows[table].table

    def _write_view(self, shard: Shard, kind: Kind) -> ObjectRef:
        """The view of a records object whose records own tables."""
        for table in kind.tables:
            self._table(kind, table).close()
        spec, part = (RUNS_VIEW, self._runs_part) if kind.name == "run" else (ENTITY_VIEW, self._entities_part)
        with self._storage.stage() as staged:
            ids = self._records[kind.name].ids[shard.first : shard.first + len(shard.lines)]
            writer = TableWriter(staged, spec, notes=id_notes(ids))
            for start in range(0, len(shard.lines), _VIEW_BATCH):
                writer.add(part(shard, kind, start, min(start + _VIEW_BATCH, len(shard.lines))))
            writer.close()
            staged.finish()
            path = _layout.object_path(_layout.VIEWS, staged.sha256)
            new = self._storage.put(staged, path)
            ref = ObjectRef(role=_layout.VIEWS, kind=kind.name, path=path, size=staged.size, rows=len(shard.lines))
        self._count([(ref, new)])
        return ref

    def _runs_part(self, shard: Shard, kind: Kind, start: int, end: int) -> pa.Table:
        first = shard.first + start
        return runs_view(
            [cast("Run", decode_record(line, kind.name, name="spool")) for line in shard.lines[start:end]],
            shard.places(start, end),
            first=first,
            metrics=self._rows[_METRICS].table.owners,
            files=self._files[kind.name].table.owners,
            latest=self._latest.until(first + end - start),
            experiment_names=self._experiment_names,
        )

    def _entities_part(self, shard: Shard, kind: Kind, start: int, end: int) -> pa.Table:
        first, last = shard.first + start, shard.first + end
        records = self._records[kind.name]
        (*rows, files) = (self._table(kind, table).owners for table in kind.tables)
        return entity_view(
            records.ids[first:last],
            records.experiments[first:last],
            shard.places(start, end),
            first=first,
            rows=rows[0] if rows else None,
            files=files,
        )

    def close(self) -> None:
        """Discard what is not committed: temporary files, no object."""
        for owned in self._owned:
            owned.table.abort()
        self.blobs.discard()
        self._latest.close()
        for records in self._records.values():
            records.close()
