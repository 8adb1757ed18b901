"""What can still be read of a damaged snapshot: everything but what lies in the damaged bytes themselves."""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle._codec import decode_frame, decode_record, seek_table
from mlflow_bundle._digests import is_hex
from mlflow_bundle._index import Extent, index_table
from mlflow_bundle._limits import Limits
from mlflow_bundle._manifest import Committed
from mlflow_bundle._reader import FILES, Loss, Place, Reader
from mlflow_bundle._row_groups import CheckedTable
from mlflow_bundle._series import segments
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle.errors import BundleError, CorruptError, LimitError
from mlflow_bundle.records import KINDS, ObjectRef, Record

__all__ = ["SalvageReader"]

_NOWHERE: Final = Place(None, 0, 0)
_EVERYTHING: Final = (0, sys.maxsize)
#: Bytes of the header of a ZIP entry before its name.
_LOCAL_HEADER: Final = 30

#: Rows of an object that cannot be read: the first, and that behind the last.
_Hole = tuple[int, int]


class SalvageReader(Reader):
    """Reads a snapshot some objects of which are damaged or lost, and tells what is lost with them.

    Of a records object the frames that decode are read, of a table the row groups whose checksums fit. A damaged view is done
    without: where the rows of its entities lie is looked for in the tables. So is a damaged index, by packs and blobs.
    ``damaged`` are the codes of what was found, by object.
    """

    def __init__(self, storage: Storage, committed: Committed, limits: Limits, damaged: Mapping[str, str]) -> None:
        super().__init__(storage, committed, limits)
        self._damaged = damaged
        self._holes: dict[str, list[_Hole]] = {}
        self._scans: dict[tuple[str, str], dict[str, Place]] = {}
        self._lost_records: dict[str, int] = {}

    def refs(self, role: str, kind: str | None = None) -> list[ObjectRef]:
        """The objects of a role, and of a kind, without damaged views and parts of the index."""
        found = super().refs(role, kind)
        if role in (_layout.VIEWS, _layout.INDEX):
            return [ref for ref in found if ref.path not in self._damaged]
        return found

    # -- records ---------------------------------------------------------------------------------------------------

    def lost_records(self, kind: str) -> int:
        """How many records of a kind cannot be read."""
        if kind not in self._lost_records:
            damaged = [ref for ref in self.refs(_layout.RECORDS, kind) if ref.path in self._damaged]
            self._lost_records[kind] = sum(ref.rows - sum(1 for _ in self._records_of(ref, kind)) for ref in damaged)
        return self._lost_records[kind]

    def _records_of(self, ref: ObjectRef, kind: str) -> Iterator[Record]:
        if ref.path not in self._damaged:
            yield from super()._records_of(ref, kind)
            return
        for line in self._lines_of(ref):
            try:
                yield decode_record(line, kind, name=ref.path, limits=self.limits)
            except (CorruptError, LimitError):
                continue  # one of the lost records

    def _lines_of(self, ref: ObjectRef) -> Iterator[bytes]:
        """The lines of the frames of a damaged object that decode."""
        try:
            size = self._storage.size(ref.path)
            if size is None or size > self.limits.records_bytes:
                return
            data = self._storage.read(ref.path)
            frames = seek_table(data, len(data), name=ref.path)
        except BundleError:
            return
        for frame in frames:
            stored = memoryview(data)[frame.offset : frame.offset + frame.length]
            try:
                lines = decode_frame(stored, frame.raw, name=ref.path, limits=self.limits)
            except (CorruptError, LimitError):
                continue
            yield from lines[:-1].split(b"\n")

    # -- index -----------------------------------------------------------------------------------------------------

    def rebuilt_index(self) -> Sequence[pa.Table]:
        """Where contents lie, by packs and blobs themselves, if a part of the index is damaged. Nothing but the index knows the
        parts of a large content that was split."""
        if not any(ref.path in self._damaged for ref in super().refs(_layout.INDEX)):
            return ()
        blobs = self.refs(_layout.BLOBS)
        whole = [Extent(str(_layout.object_hex(ref.path)), 0, ref.path, 0, ref.size, "raw", ref.size) for ref in blobs]
        return [index_table(whole), *(index_table(list(self._in_pack(ref))) for ref in self.refs(_layout.PACKS))]

    def _in_pack(self, ref: ObjectRef) -> Iterator[Extent]:
        """The contents that the directory of a pack names. Their bytes are compared with their names when they are read."""
        try:
            with self._storage.open(ref.path) as file, zipfile.ZipFile(file) as pack:
                entries = pack.infolist()
        except (BundleError, zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
            return
        for entry in entries:
            name, codec = entry.filename, "deflate" if entry.compress_type == zipfile.ZIP_DEFLATED else "raw"
            start = entry.header_offset + _LOCAL_HEADER + len(name)
            if is_hex(name):
                yield Extent(name, 0, ref.path, start, entry.compress_size, codec, entry.file_size)

    # -- tables ----------------------------------------------------------------------------------------------------

    def lost(self, kind: str, identity: str) -> Sequence[Loss]:
        """The tables in which rows of an entity are lost, and with which object."""
        places = ((table, self._where(kind, table, identity)) for table in KINDS[kind].tables)
        return [Loss(table, str(at.object), self._damaged[str(at.object)]) for table, at in places if self._is_lost(table, at)]

    def counts(self, kind: str, table: str, ids: Sequence[str]) -> list[int]:
        """How many rows of a table each of these owners has that can be read: all, or none where some are lost."""
        return [self._place(kind, table, identity).rows for identity in ids]

    def _place(self, kind: str, table: str, identity: str) -> Place:
        place = self._where(kind, table, identity)
        return _NOWHERE if self._is_lost(table, place) else place

    def _is_lost(self, table: str, place: Place) -> bool:
        if place.object is None or place.object not in self._damaged or not place.rows:
            return False
        end = place.start + place.rows
        return any(place.start < last and first < end for first, last in self._holes_of(place.object, TABLES[table]))

    def _where(self, kind: str, table: str, identity: str) -> Place:
        """Where the rows of an entity lie, or lay: by its view, or by the tables themselves."""
        if self.find_row(kind, identity) is not None:
            return super()._place(kind, table, identity)
        if (kind, table) not in self._scans:
            self._scans[kind, table] = dict(self._scan(kind, table))
        found = self._scans[kind, table].get(identity)
        return found or self._hole_in(TABLES[table]) or _NOWHERE

    def _looked_up(self, kind: str, table: str, identity: str) -> None:
        """None: rows are found by ``_where``."""

    def _holes_of(self, path: str, spec: TableSpec) -> list[_Hole]:
        """The rows of a damaged table object that cannot be read."""
        if path not in self._holes:
            self._holes[path] = self._find_holes(path, spec)
        return self._holes[path]

    def _find_holes(self, path: str, spec: TableSpec) -> list[_Hole]:
        rows = next((ref.rows for ref in self.refs(spec.role) if ref.path == path), None)
        try:
            with self._storage.open(path) as file:
                table = CheckedTable(file, spec, name=path, limits=self.limits)
                if sum(table.rows) != rows:
                    return [_EVERYTHING]
                holes, start = [], 0
                for group, count in enumerate(table.rows):
                    try:
                        table.read(group)
                    except (CorruptError, LimitError):
                        holes.append((start, start + count))
                    start += count
                return holes
        except BundleError:
            return [_EVERYTHING]

    def _hole_in(self, spec: TableSpec) -> Place | None:
        """A place that cannot be read in a table, if it has one: there may be the rows of an entity that are nowhere else."""
        for ref in self.refs(spec.role):
            if ref.path in self._damaged and (holes := self._holes_of(ref.path, spec)):
                return Place(ref.path, holes[0][0], 1)
        return None

    def _scan(self, kind: str, table: str) -> Iterator[tuple[str, Place]]:
        """The rows of all owners of a kind whose rows can be read, by the owners that the rows name."""
        spec = TABLES[table]
        for ref in self.refs(spec.role):
            holes = self._holes_of(ref.path, spec) if ref.path in self._damaged else []
            if holes == [_EVERYTHING]:
                continue
            borders = {row for hole in holes for row in hole}
            found: dict[str, Place] = {}
            with self._storage.open(ref.path) as file:
                opened = CheckedTable(file, spec, name=ref.path, limits=self.limits)
                for name, start, end in _owners(opened, spec, kind, {first for first, _ in holes}):
                    known = found.get(name)
                    found[name] = Place(ref.path, known.start if known else start, end - start + (known.rows if known else 0))
            for name, place in found.items():
                if not borders & {place.start, place.start + place.rows}:  # else some of its rows may be behind the border
                    yield name, place


def _owners(table: CheckedTable, spec: TableSpec, kind: str, unreadable: set[int]) -> Iterator[tuple[str, int, int]]:
    """(owner, first row, row behind the last) of the owners of a kind in the row groups that do not start with these rows."""
    is_files = spec is TABLES[FILES]
    start = 0
    for group, count in enumerate(table.rows):
        if start not in unreadable and count:
            rows = table.read(group, [str(spec.owner), *(["owner_kind"] if is_files else [])]).unify_dictionaries()
            ids = rows.column(str(spec.owner)).combine_chunks()
            kinds = rows.column("owner_kind") if is_files else None
            for code, first, last in segments(ids.indices.to_numpy(zero_copy_only=False)):
                if kinds is None or kinds[first].as_py() == kind:
                    yield ids.dictionary[code].as_py(), start + first, start + last
        start += count
