"""What a snapshot holds, read by kind and id: records, rows of tables, and where they lie (spec/v1.md, 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from mlflow_bundle import _layout
from mlflow_bundle._codec import decode_frame, decode_record, line_kind, read_lines
from mlflow_bundle._digests import hex_of
from mlflow_bundle._limits import KIB, MIB, Limits
from mlflow_bundle._lookup import Lookup, tail_of
from mlflow_bundle._manifest import Committed, objects_of, read_verified
from mlflow_bundle._owners import numbered_rows
from mlflow_bundle._row_groups import CheckedTable, row_groups
from mlflow_bundle._storage import TAIL, Pieces, SparseFile, Storage
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle._views import ENTITY_VIEW, RUNS_VIEW
from mlflow_bundle.errors import CorruptError, NotFoundError, UsageError
from mlflow_bundle.records import KINDS, ObjectRef, Record, record_id

__all__ = ["FILES", "RUN_COLUMNS", "Loss", "Place", "Reader", "owner_kind"]

FILES: Final = "files/1"
#: The columns of an entity view that say where the record and the rows lie.
_PLACES: Final = [
    "id",
    "experiment_id",
    "record_object",
    "frame_offset",
    "frame_length",
    "record_digest",
    "table_rows",
    "table_object",
    "table_start",
    "file_rows",
    "file_object",
    "file_start",
]
#: The columns of the view of runs without the digests of rows, which only comparisons need.
_OF_RUNS: Final = [name for name in RUNS_VIEW.schema.names if name not in ("metric_digest", "file_digest")]
#: The columns of the view of runs that are about the runs themselves.
RUN_COLUMNS: Final = [
    name
    for name in RUNS_VIEW.schema.names
    if not name.startswith("frame_") and not name.endswith(("_object", "_digest", "_start"))
]
_OWNER_KINDS: Final = {table: kind.name for kind in KINDS.values() for table in kind.tables if table != FILES}


def owner_kind(table: str) -> str:
    """The kind of the owners of a table that is not the files table.

    Raises:
        UsageError: there is no such table.
    """
    if table not in _OWNER_KINDS:
        hint = f"one of {', '.join(_OWNER_KINDS)}" + ("; `files` has the files" if table == FILES else "")
        raise UsageError(f"there is no table {table!r} of rows that belong to entities of one kind", hint=hint)
    return _OWNER_KINDS[table]


class Place(NamedTuple):
    """Consecutive rows of a table object."""

    object: str | None
    start: int
    rows: int


class Loss(NamedTuple):
    """Rows of an entity in a table that are lost with an object: ``code`` is that of the damage. Where that is not certain, the
    entity may have had none."""

    table: str
    object: str
    code: str
    is_certain: bool = True


class Reader:
    """Reads one snapshot on demand. Kinds that own tables are found by their views, the others in their records."""

    def __init__(self, storage: Storage, committed: Committed, limits: Limits) -> None:
        self._storage = storage
        self._committed = committed
        self.limits = limits
        self._views: dict[str, pa.Table] = {}
        self._runs: pa.Table | None = None
        self._rows_by_id: dict[str, Mapping[str, int]] = {}
        #: The row group that was read last: object, number, rows.
        self._kept: tuple[str, int, pa.Table] | None = None
        self._lookups: dict[str, Lookup] = {}
        #: Table objects of which only pieces were read.
        self._opened: dict[str, CheckedTable] = {}
        self._read_pieces = Pieces(storage.read_range, least=16 * KIB, limit=4 * MIB)

    @cached_property
    def objects(self) -> list[ObjectRef]:
        """Every object that the snapshot needs."""
        return objects_of(self._storage, self._committed.snapshot, limits=self.limits)

    def refs(self, role: str, kind: str | None = None) -> list[ObjectRef]:
        """The objects of a role, and of a kind."""
        return [ref for ref in self.objects if ref.role == role and (kind is None or ref.kind == kind)]

    # -- records ---------------------------------------------------------------------------------------------------

    def records(self, kind: str) -> Iterator[Record]:
        """The records of a kind in archive order, an object at a time."""
        for ref in self.refs(_layout.RECORDS, kind):
            yield from self._records_of(ref, kind)

    def _records_of(self, ref: ObjectRef, kind: str) -> Iterator[Record]:
        data = read_verified(self._storage, ref.path, limit=self.limits.records_bytes, size=ref.size)
        for line in read_lines(data, name=ref.path, limits=self.limits):
            if line_kind(line, name=ref.path) != kind:
                raise CorruptError(f"{ref.path} holds another kind than {kind}", code="E031")
            yield decode_record(line, kind, name=ref.path, limits=self.limits)

    def lost_records(self, kind: str) -> int:  # noqa: ARG002
        """How many records of a kind are lost: none, or reading them raises."""
        return 0

    def rebuilt_index(self) -> Sequence[pa.Table]:
        """Rows of the index that are in no object of it."""
        return ()

    def lost(self, kind: str, identity: str) -> Sequence[Loss]:  # noqa: ARG002
        """What of the rows of an entity is lost: nothing, or reading them raises."""
        return ()

    def hidden(self, kind: str, ids: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """Those of some entities that no view tells of: none, or reading the views raises."""
        return ()

    def record(self, kind: str, identity: str) -> Record:
        """One record; of a kind that has views without reading the others.

        Raises:
            NotFoundError: it is not in the snapshot.
        """
        if not KINDS[kind].tables:
            for record in self.records(kind):
                if record_id(record) == identity:
                    return record
            raise self._unknown(kind, identity)
        row, view = self.row_of(kind, identity), self.view(kind)
        path, offset, length, digest = (
            view.column(n)[row].as_py() for n in ("record_object", "frame_offset", "frame_length", "record_digest")
        )
        if _layout.object_hex(path) is None:
            raise CorruptError(f"the view of {kind} names {path!r}, which is no object", code="E021")
        stored = self._storage.read_range(path, offset, length)
        lines = decode_frame(stored, _raw_size(stored, path), name=path, limits=self.limits)
        for line in lines[:-1].split(b"\n"):
            if hex_of(line) == digest:
                return decode_record(line, kind, name=path, limits=self.limits)
        raise CorruptError(f"{path} does not hold {kind} {identity} where the view says", code="E060", hint="verify the bundle")

    def _unknown(self, kind: str, identity: str) -> NotFoundError:
        name = kind.replace("_", " ")
        code = f"{kind.replace('_', '-')}-not-found"
        return NotFoundError(f"no {name} {identity!r} in snapshot {self._committed.stem}", code=code)

    # -- views -----------------------------------------------------------------------------------------------------

    def view(self, kind: str) -> pa.Table:
        """The view of a kind: one row an entity, in archive order; for other kinds than runs just where things lie."""
        if kind not in self._views:
            refs = self.refs(_layout.VIEWS, kind)
            if kind == "run":
                parts = [_schema(RUNS_VIEW, _OF_RUNS).empty_table(), *(self.table(ref, RUNS_VIEW, _OF_RUNS) for ref in refs)]
            else:
                parts = [part for ref in refs for part in self._groups(ref, ENTITY_VIEW, _PLACES)]
                parts = parts or [ENTITY_VIEW.schema.empty_table().select(_PLACES)]
            self._views[kind] = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
            if kind == "run":
                self._runs = None  # a part of this one
        return self._views[kind]

    def runs(self) -> pa.Table:
        """The view of the runs without the columns that say where things lie, which take as long to read as the others."""
        if "run" in self._views:
            return self._views["run"].select(RUN_COLUMNS)
        if self._runs is None:
            parts = [self.table(ref, RUNS_VIEW, RUN_COLUMNS) for ref in self.refs(_layout.VIEWS, "run")]
            self._runs = pa.concat_tables([_schema(RUNS_VIEW, RUN_COLUMNS).empty_table(), *parts])
        return self._runs

    def view_columns(self, kind: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of the view of a kind, read without the others (and without checking SHA-256) if it was not read yet."""
        if kind in self._views:
            return self._views[kind].select(list(columns))
        spec = RUNS_VIEW if kind == "run" else ENTITY_VIEW
        opened = [self._pieces_of(ref, spec) for ref in self.refs(_layout.VIEWS, kind)]
        schema = _schema(spec, columns)
        parts = [table.read(group, columns).cast(schema) for table in opened for group in range(len(table.rows))]
        return pa.concat_tables([schema.empty_table(), *parts])

    def digests(self, kind: str) -> pa.Table:
        """``id``, then the digests (hex) of the record and of the rows in each table that the kind owns, in archive order."""
        names = [f"{_prefix(kind, table)}_digest" for table in KINDS[kind].tables]
        id_column, spec = ("run_id", RUNS_VIEW) if kind == "run" else ("id", ENTITY_VIEW)
        columns = [id_column, "record_digest", *names]
        parts = [self.table(ref, spec, columns) for ref in self.refs(_layout.VIEWS, kind)]
        found = pa.concat_tables([_schema(spec, columns).empty_table(), *parts])
        return found.rename_columns(["id", "record_digest", *KINDS[kind].tables])

    def row_of(self, kind: str, identity: str) -> int:
        """The row of an entity in the view of its kind.

        Raises:
            NotFoundError: it is not in the snapshot.
        """
        row = self.find_row(kind, identity)
        if row is None:
            raise self._unknown(kind, identity)
        return row

    def find_row(self, kind: str, identity: str) -> int | None:
        """The row of an entity in the view of its kind, if it is there."""
        if kind not in self._rows_by_id:
            ids = self.view(kind).column("run_id" if kind == "run" else "id").to_pylist()
            self._rows_by_id[kind] = {name: row for row, name in enumerate(ids)}
        return self._rows_by_id[kind].get(identity)

    def counts(self, kind: str, table: str, ids: Sequence[str]) -> list[int]:
        """How many rows of a table each of these owners has."""
        column = self.view(kind).column(f"{_prefix(kind, table)}_rows")
        return [column[self.row_of(kind, identity)].as_py() for identity in ids]

    # -- tables ----------------------------------------------------------------------------------------------------

    def table(self, ref: ObjectRef, spec: TableSpec, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole table object, its bytes and its rows checked."""
        schema = _schema(spec, columns)
        groups = self._groups(ref, spec, columns)
        return pa.concat_tables([schema.empty_table(), *(group.cast(schema) for group in groups)])

    def _groups(self, ref: ObjectRef, spec: TableSpec, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        data = read_verified(self._storage, ref.path, limit=self.limits.table_bytes, size=ref.size)
        return row_groups(data, spec, name=ref.path, limits=self.limits, columns=columns)

    def whole(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of all objects of a table."""
        spec = TABLES[table]
        parts = (self.table(ref, spec, columns) for ref in self.refs(spec.role))
        return pa.concat_tables([_schema(spec, columns).empty_table(), *parts])

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of some owners as bounded tables: ``owner`` (place in ``ids``), then the columns without the ids.

        Raises:
            NotFoundError: one of the owners is not in the snapshot.
        """
        spec, position = TABLES[table], {identity: number for number, identity in enumerate(ids)}
        fields = [field for field in spec.schema if field.name not in ("experiment_id", spec.owner)]
        schema = pa.schema([pa.field("owner", pa.int32(), nullable=False), *fields])
        kind = owner_kind(table)
        for part in numbered_rows(self.stretches(kind, table, ids), spec, position.__getitem__):
            yield part.cast(schema)

    def owned(self, kind: str, table: str, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a table that belong to these owners of a kind, owner after owner.

        Raises:
            NotFoundError: one of the owners is not in the snapshot.
            CorruptError: other rows are where the view says that theirs are.
        """
        spec = TABLES[table]
        schema = _schema(spec, columns)
        if len(ids) == 1 and kind not in self._views and (found := self._looked_up(kind, table, ids[0])) is not None:
            return found.select(schema.names)
        rows = pa.concat_tables([spec.schema.empty_table(), *(p.cast(spec.schema) for p in self.stretches(kind, table, ids))])
        strangers = pc.invert(pc.is_in(rows.column(spec.owner), value_set=pa.array(ids, pa.string())))
        if table == FILES:
            strangers = pc.or_(strangers, pc.not_equal(rows.column("owner_kind"), kind))
        if pc.any(strangers).as_py():
            raise CorruptError(f"{table} has other rows where the view of {kind} says", code="E060", hint="verify the bundle")
        return rows.select(schema.names)

    # -- one owner, without the view -------------------------------------------------------------------------------

    def _looked_up(self, kind: str, table: str, identity: str) -> pa.Table | None:
        """The rows of one owner by the digests in the footers of the views; None where these do not lead to it."""
        spec, prefix = TABLES[table], _prefix(kind, table)
        view, id_column = (RUNS_VIEW, "run_id") if kind == "run" else (ENTITY_VIEW, "id")
        if kind not in self._lookups:
            self._lookups[kind] = Lookup(self.refs(_layout.VIEWS, kind), lambda ref: self._pieces_of(ref, view))
        for ref, row in self._lookups[kind].candidates(identity):
            opened = self._pieces_of(ref, view)
            ((group, first, last),) = _parts(opened.rows, [Place(ref.path, row, 1)], ref.path)
            place = opened.read(group, [f"{prefix}_object", f"{prefix}_start"]).slice(first, last - first).to_pylist()[0]
            path, start = place.values()
            if path is None:
                if opened.read(group, [id_column]).column(id_column)[first].as_py() == identity:
                    return spec.schema.empty_table()
            elif (found := self._from(path, start, kind, spec, identity)) is not None:
                return found
        return None

    def _from(self, path: str, start: int, kind: str, spec: TableSpec, identity: str) -> pa.Table | None:
        """The rows of an owner, which begin with this row of a table object; None where they are another's."""
        ref = next((ref for ref in self.refs(spec.role) if ref.path == path), None)
        if ref is None:
            raise CorruptError(f"the view of {kind} names {path!r}, which is no object of the snapshot", code="E021")
        opened, parts = self._pieces_of(ref, spec), [spec.schema.empty_table()]
        ends = np.cumsum(opened.rows)
        first_group = int(np.searchsorted(ends, start, side="right"))
        for group in range(first_group, len(opened.rows)):
            rows = self._group(opened, path, group)
            own = np.asarray(_of_owner(rows, spec, kind, identity))
            offset = start - (int(ends[group]) - opened.rows[group]) if group == first_group else 0
            if group == first_group and offset and own[offset - 1]:
                raise CorruptError(f"{path} has rows of {kind} {identity} before those that the view says", code="E060")
            others = np.flatnonzero(~own[offset:])
            count = int(others[0]) if len(others) else len(own) - offset
            parts.append(rows.slice(offset, count).cast(spec.schema))
            if len(others):
                break
        return pa.concat_tables(parts) if sum(part.num_rows for part in parts) else None

    def _pieces_of(self, ref: ObjectRef, spec: TableSpec) -> CheckedTable:
        """A table object of which only pieces will be read."""
        if ref.path not in self._opened:
            tail = tail_of(ref) if spec.role == _layout.VIEWS else TAIL
            file = SparseFile(self._read_pieces, ref.path, ref.size, tail=tail)
            self._opened[ref.path] = CheckedTable(file, spec, name=ref.path, limits=self.limits)
        return self._opened[ref.path]

    def _group(self, table: CheckedTable, path: str, group: int) -> pa.Table:
        """A row group; that which was read last is kept."""
        if self._kept is None or self._kept[:2] != (path, group):
            self._kept = (path, group, table.read(group))
        return self._kept[2]

    def stretches(self, kind: str, table: str, ids: Iterable[str]) -> Iterator[pa.Table]:
        """The rows of some owners in order, bounded; neighbours in one object are read together, and repeated strings are
        dictionary-encoded."""
        spec = TABLES[table]
        for path, places in groupby(_joined(self._place(kind, table, identity) for identity in ids), key=lambda p: p.object):
            if path is None or _layout.object_hex(path) is None:
                raise CorruptError(f"the view of {kind} names {path!r}, which is no object", code="E021")
            with self._storage.open(path) as file:
                opened = CheckedTable(file, spec, name=path, limits=self.limits)
                yield from self._pieces(opened, places, path)

    def _pieces(self, table: CheckedTable, places: Iterable[Place], path: str) -> Iterator[pa.Table]:
        """The rows at these places of an object, those that follow each other in one row group together."""
        for group, stretches in groupby(_parts(table.rows, places, path), key=lambda part: part[0]):
            rows = self._group(table, path, group)
            ranges = [(first, last) for _, first, last in stretches]
            if len(ranges) == 1:
                ((first, last),) = ranges
                yield rows.slice(first, last - first)
            else:
                yield rows.take(pa.array(np.concatenate([np.arange(first, last) for first, last in ranges])))

    def _place(self, kind: str, table: str, identity: str) -> Place:
        row, prefix, view = self.row_of(kind, identity), _prefix(kind, table), self.view(kind)
        path, start, count = (view.column(f"{prefix}_{name}")[row].as_py() for name in ("object", "start", "rows"))
        return Place(path, start, count)


def _prefix(kind: str, table: str) -> str:
    """How the columns about a table are named in the view of a kind."""
    return "file" if table == FILES else "metric" if kind == "run" else "table"


def _of_owner(rows: pa.Table, spec: TableSpec, kind: str, identity: str) -> pa.ChunkedArray:
    """Which rows are those of an owner."""
    own = pc.equal(rows.column(spec.owner), identity)
    return pc.and_(own, pc.equal(rows.column("owner_kind"), kind)) if spec.name == FILES else own


def _schema(spec: TableSpec, columns: Sequence[str] | None) -> pa.Schema:
    return spec.schema if columns is None else pa.schema([spec.schema.field(name) for name in columns])


def _joined(places: Iterable[Place]) -> Iterator[Place]:
    """The same rows with neighbours as one place; owners without rows are left out."""
    last: Place | None = None
    for place in places:
        if not place.rows:
            continue
        if last and last.object == place.object and last.start + last.rows == place.start:
            last = Place(last.object, last.start, last.rows + place.rows)
            continue
        if last:
            yield last
        last = place
    if last:
        yield last


def _parts(groups: Sequence[int], places: Iterable[Place], path: str) -> Iterator[tuple[int, int, int]]:
    """The places as parts of row groups of these numbers of rows: (row group, first row in it, row behind the last)."""
    ends = np.cumsum(groups)
    for place in places:
        start, end = place.start, place.start + place.rows
        if start < 0 or not len(ends) or end > ends[-1]:
            raise CorruptError(f"{path} has fewer rows than the view says", code="E060", hint="verify the bundle")
        group = int(np.searchsorted(ends, start, side="right"))
        while start < end:
            before = int(ends[group]) - groups[group]
            last = min(end, int(ends[group]))
            if start < last:
                yield group, start - before, last - before
            start, group = last, group + 1


def _raw_size(stored: Any, name: str) -> int:
    """The decoded size that a zstd frame states."""
    try:
        size = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise CorruptError(f"{name} has no zstd frame where the view says", code="E060") from error
    return max(int(size), 0)
