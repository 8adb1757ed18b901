"""What can still be read of a damaged snapshot: everything but what lies in the damaged bytes themselves."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import zstandard

from mlflow_bundle import _layout
from mlflow_bundle._codec import decode_frame, decode_record
from mlflow_bundle._digests import hex_of, is_hex
from mlflow_bundle._index import Extent, index_table
from mlflow_bundle._limits import KIB, Limits
from mlflow_bundle._manifest import Committed
from mlflow_bundle._reader import FILES, Loss, Place, Reader
from mlflow_bundle._row_groups import CheckedTable
from mlflow_bundle._series import segments
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle.errors import BundleError, CorruptError, LimitError, StorageError
from mlflow_bundle.records import KINDS, ObjectRef, Record, record_id

__all__ = ["SalvageReader"]

_NOWHERE: Final = Place(None, 0, 0)
_EVERYTHING: Final = (0, sys.maxsize)
#: Bytes of an object that are read at once where a disk cannot read all of it.
_PIECE: Final = 64 * KIB
_FRAME_MAGIC: Final = zstandard.FRAME_HEADER
#: Bytes that the header of a zstd frame has at most.
_FRAME_HEAD: Final = 18
_RUN_LENGTH: Final = 1
#: Places of an object that look like a frame and are none: a hostile one has many.
_WRONG_FRAMES: Final = 1_000
#: Bytes of the header of a ZIP entry before its name, and of the name of a content.
_LOCAL_HEADER: Final = 30
_NAME: Final = 64
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_ZIP_END: Final = struct.Struct("<4s4H2LH")
_CODECS: Final = {0: "raw", 8: "deflate"}

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

    def records(self, kind: str) -> Iterator[Record]:
        """The records of a kind that can be read. Another object may lie where a damaged one should: no record comes twice."""
        refs = self.refs(_layout.RECORDS, kind)
        sound = [ref for ref in refs if ref.path not in self._damaged]
        if len(sound) == len(refs):
            yield from super().records(kind)
            return
        given = {record_id(record) for ref in sound for record in self._records_of(ref, kind)}
        for ref in refs:
            if ref.path not in self._damaged:
                yield from self._records_of(ref, kind)
                continue
            for record in self._salvaged(ref, kind):
                if (identity := record_id(record)) not in given:
                    given.add(identity)
                    yield record

    def lost_records(self, kind: str) -> int:
        """How many records of a kind cannot be read."""
        if kind not in self._lost_records:
            refs = self.refs(_layout.RECORDS, kind)
            is_whole = not any(ref.path in self._damaged for ref in refs)
            lost = 0 if is_whole else sum(ref.rows for ref in refs) - sum(1 for _ in self.records(kind))
            self._lost_records[kind] = max(lost, 0)
        return self._lost_records[kind]

    def _salvaged(self, ref: ObjectRef, kind: str) -> Iterator[Record]:
        """The records of the snapshot that a damaged object has."""
        for line in self._lines_of(ref):
            try:
                record = decode_record(line, kind, name=ref.path, limits=self.limits)
            except (CorruptError, LimitError):
                continue  # one of the lost records
            if self._is_archived(kind, record_id(record), line):
                yield record

    def _is_archived(self, kind: str, identity: str, line: bytes) -> bool:
        """Whether a record is one of the snapshot, as far as a view tells it."""
        if not KINDS[kind].tables:
            return True
        if (row := self.find_row(kind, identity)) is None:
            return any(ref.path in self._damaged for ref in super().refs(_layout.VIEWS, kind))
        digest: str = self.view(kind).column("record_digest")[row].as_py()
        return digest == hex_of(line)

    def _lines_of(self, ref: ObjectRef) -> Iterator[bytes]:
        """The lines of the frames of a damaged object that decode, wherever they lie: its seek table may be damaged as well."""
        data, at, wrong = self._bytes_of(ref.path), 0, 0
        while wrong < _WRONG_FRAMES and (at := data.find(_FRAME_MAGIC, at)) >= 0:
            try:
                lines, end = self._frame_at(data, at, ref.path)
            except (CorruptError, LimitError, zstandard.ZstdError):
                at, wrong = at + 1, wrong + 1
                continue
            yield from lines[:-1].split(b"\n")
            at = end

    def _bytes_of(self, path: str) -> bytes:
        """The bytes of a damaged object as they are, zeros where a disk cannot read them; none if it is lost or too large."""
        try:
            size = self._storage.size(path) or 0
            if size > self.limits.records_bytes:
                return b""
            try:
                return self._storage.read_range(path, 0, size)
            except (StorageError, OSError):
                return b"".join(self._pieces_as_they_are(path, size))
        except BundleError:
            return b""

    def _pieces_as_they_are(self, path: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, _PIECE):
            length = min(_PIECE, size - start)
            try:
                yield self._storage.read_range(path, start, length)
            except (BundleError, OSError):
                yield bytes(length)

    def _frame_at(self, data: bytes, start: int, name: str) -> tuple[bytes, int]:
        """The lines of the zstd frame that starts there, and where it ends: behind its last block and its checksum."""
        head = data[start : start + _FRAME_HEAD]
        about, at, is_last = zstandard.get_frame_parameters(head), start + zstandard.frame_header_size(head), False
        # A block has up to 128 KiB; compressors make smaller ones, and hostile ones empty ones.
        for _ in range(about.content_size // KIB + 8):
            block = int.from_bytes(data[at : at + 3], "little")
            at += 3 + (1 if block >> 1 & 3 == _RUN_LENGTH else block >> 3)
            if is_last := bool(block & 1) or at > len(data):
                break
        end = at + (4 if about.has_checksum else 0)
        if not is_last or end > len(data) or about.content_size > self.limits.frame_bytes:
            raise CorruptError(f"{name} has no whole zstd frame at byte {start:,}", code="E033")
        return decode_frame(memoryview(data)[start:end], about.content_size, name=name, limits=self.limits), end

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
            size = self._storage.size(ref.path) or 0
            directory = self._directory_of(ref.path, size) if size <= self.limits.pack_bytes else b""
        except (BundleError, OSError):
            return
        step = _CENTRAL.size + _NAME
        for place in range(0, len(directory) - step + 1, step):
            magic, _, _, _, method, _, _, _, length, raw, *_, header = _CENTRAL.unpack_from(directory, place)
            name = directory[place + _CENTRAL.size : place + step].decode("ascii", "replace")
            start = header + _LOCAL_HEADER + _NAME
            if magic == b"PK\1\2" and method in _CODECS and is_hex(name) and start + length <= size:
                yield Extent(name, 0, ref.path, start, length, _CODECS[method], raw)

    def _directory_of(self, path: str, size: int) -> bytes:
        """The central directory of a pack of that size, of as many entries as a reader accepts."""
        if size < _ZIP_END.size:
            return b""
        magic, *_, start, _ = _ZIP_END.unpack(self._storage.read_range(path, size - _ZIP_END.size, _ZIP_END.size))
        length = min(size - start, self.limits.pack_entries * (_CENTRAL.size + _NAME))
        return self._storage.read_range(path, start, length) if magic == b"PK\5\6" and length > 0 else b""

    # -- tables ----------------------------------------------------------------------------------------------------

    def lost(self, kind: str, identity: str) -> Sequence[Loss]:
        """The tables in which rows of an entity are lost, and with which object; may be lost, where no view tells its rows."""
        found = []
        for table in KINDS[kind].tables:
            place = self._where(kind, table, identity)
            if self._is_lost(table, place):
                path, is_certain = str(place.object), self.find_row(kind, identity) is not None
                found.append(Loss(table, path, self._damaged[path], is_certain))
        return found

    def hidden(self, kind: str, ids: Sequence[str]) -> Sequence[str]:
        """Those of some entities whose views are damaged."""
        return [identity for identity in ids if self.find_row(kind, identity) is None]

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
                    except (BundleError, OSError):  # a dying disk as well
                        holes.append((start, start + count))
                    start += count
                return holes
        except (BundleError, OSError):
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
