"""A bundle in memory that can be damaged on purpose: change one thing, mend all that follows from it, write it out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_bundle import _layout
from mlflow_bundle._codec import LinesWriter, decode_record, encode, logical_digest, read_frames
from mlflow_bundle._digests import digest_of, hex_of
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import snapshot_name
from mlflow_bundle._merkle import MerkleTree, leaf, logical
from mlflow_bundle._owners import NO_FILES, NO_ROWS
from mlflow_bundle._series import NO_SERIES
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import TableWriter, open_table
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle._verify._table_facts import OwnerFacts, file_facts, row_facts, series_facts
from mlflow_bundle.records import KINDS, Record, order_key, record_id

Json = dict[str, Any]

#: (rows, digest, object, first row) of an owner in one table.
_Rows = tuple[int, str, str, int]

#: The tables that records own, and under which name a snapshot counts their rows.
_OWNED: Final = ("metrics/1", "model_metrics/1", "spans/1", "files/1")
_COUNTED: Final = {"metrics/1": "metric_point", "model_metrics/1": "model_metric_point", "spans/1": "span"}


def lines_object(lines: Sequence[bytes], *, frame_bytes: int = 256 * 1024) -> bytes:
    """A records or lists object of these lines."""
    sink = io.BytesIO()
    writer = LinesWriter(sink, frame_bytes=frame_bytes)
    for line in lines:
        writer.add(line)
    writer.close()
    return sink.getvalue()


def lines_in(data: bytes) -> list[bytes]:
    """The lines of a records or lists object."""
    return [line for _, raw in read_frames(data, name="fixture") for line in raw[:-1].split(b"\n")]


def table_object(table: pa.Table, schema: str) -> bytes:
    """A table object, whatever the order of its rows."""
    sink = io.BytesIO()
    writer = TableWriter(sink, TABLES[schema])
    writer.add(table)
    writer.close()
    return sink.getvalue()


def plain_parquet(table: pa.Table, schema: str | None) -> bytes:
    """A table object as another Parquet writer would write it, with any columns and under any schema name."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(table)
        if schema is not None:  # what a table says in its own metadata is not written without the Arrow schema
            writer.add_key_value_metadata({"mlflow_bundle.schema": schema})
    return bytes(sink.getvalue().to_pybytes())


def table_in(data: bytes, schema: str) -> pa.Table:
    """All rows of a table object."""
    return open_table(pa.BufferReader(data), TABLES[schema], name="fixture").read()


def with_column(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """The table with other values in one column."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def _facts(schema: str, path: str, file: Any) -> OwnerFacts:
    """What an object of an owned table says of its owners; that rows are out of order or the like does not matter here."""
    if schema == "metrics/1":
        return series_facts(path, file, Findings(), DEFAULT_LIMITS)
    if schema == "files/1":
        return file_facts(path, file, Findings(), DEFAULT_LIMITS)
    kind = next(kind.name for kind in KINDS.values() if schema in kind.tables)
    return row_facts(path, file, TABLES[schema], kind=kind, findings=Findings(), limits=DEFAULT_LIMITS)


class Workshop:
    """The files of a bundle by path, and the document of its newest snapshot."""

    def __init__(self, folder: Path) -> None:
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.path = max(path for path in self.files if path.startswith(_layout.SNAPSHOTS))
        self.snapshot: Json = json.loads(self.files[self.path])
        self._records: dict[tuple[str, str], Json] = {}

    def ref(self, role: str, kind: str | None = None, number: int = 0) -> Json:
        """One entry of the snapshot's list of objects."""
        found: list[Json] = [r for r in self.snapshot["objects"] if r["role"] == role and kind in (None, r.get("kind"))]
        return found[number]

    def data(self, ref: Json) -> bytes:
        """The bytes of an object."""
        return self.files[ref["path"]]

    def table(self, ref: Json, schema: str) -> pa.Table:
        """The rows of a table object."""
        return table_in(self.data(ref), schema)

    def put(self, role: str, data: bytes, **fields: Any) -> Json:
        """Add an object and list it."""
        path = _layout.object_path(role, hex_of(data))
        self.files[path] = data
        ref = {"path": path, "role": role, "size": len(data), **fields}
        self.snapshot["objects"].append(ref)
        return ref

    def swap(self, ref: Json, data: bytes, **fields: Any) -> None:
        """Let an object have other bytes, and so another name."""
        old = ref["path"]
        self.files.pop(old, None)
        ref["path"] = _layout.object_path(ref["role"], hex_of(data))
        ref.update(size=len(data), **fields)
        self.files[ref["path"]] = data
        if ref["role"] in (_layout.PACKS, _layout.BLOBS):
            for index in [r for r in self.snapshot["objects"] if r["role"] == _layout.INDEX]:
                self._point(index, "index/1", "object", old, ref["path"])
        for kind, schema in [(k, table) for k in KINDS.values() for table in k.tables if TABLES[table].role == ref["role"]]:
            for view in [r for r in self.snapshot["objects"] if r["role"] == _layout.VIEWS and r["kind"] == kind.name]:
                column = f"{_prefix(kind.name, schema)}_object"
                self._point(view, _view_of(kind.name), column, old, ref["path"])

    def _lines(self, kind: str) -> list[bytes]:
        refs = [r for r in self.snapshot["objects"] if r["role"] == _layout.RECORDS and r["kind"] == kind]
        return [line for ref in refs for line in lines_in(self.data(ref))]

    def edit_lines(self, kind: str, edit: Callable[[list[bytes]], list[bytes]], number: int = 0) -> None:
        """Change the lines of a records object."""
        ref = self.ref(_layout.RECORDS, kind, number)
        self.swap(ref, lines_object(edit(lines_in(self.data(ref)))))

    def edit_record(self, kind: str, **fields: Any) -> None:
        """Change the first record of a kind."""
        self.edit_lines(kind, lambda lines: [encode(json.loads(lines[0]) | fields), *lines[1:]])

    def edit_table(self, role: str, schema: str, edit: Callable[[pa.Table], pa.Table], kind: str | None = None) -> None:
        """Change the rows of the first table of a role, and of a kind."""
        ref = self.ref(role, kind)
        self.swap(ref, table_object(edit(self.table(ref, schema)), schema))

    def _point(self, ref: Json, schema: str, column: str, old: str, new: str) -> None:
        """Let a table name another object."""
        table = self.table(ref, schema)
        named = table[column].to_pylist()
        if old in named:
            moved = [new if path == old else path for path in named]
            self.swap(ref, table_object(with_column(table, column, moved), schema))

    # -- what follows from a change ----------------------------------------------------------------------------------

    def mend(self) -> None:
        """Let rows, digests, order keys, counts, the views and the logical root say what the objects say now."""
        owners = {schema: self._mend_table(TABLES[schema].role, schema) for schema in _OWNED}
        for ref in self.snapshot["objects"]:
            if ref["role"] == _layout.INDEX:
                ref["rows"] = self.table(ref, "index/1").num_rows
        for kind, places in self._mend_records().items():
            self._mend_views(kind, places, owners)
        self._mend_roots(owners)

    def _mend_table(self, role: str, schema: str) -> dict[str, _Rows]:
        """What each owner has in one table."""
        found = {}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == role]:
            facts = _facts(schema, ref["path"], pa.BufferReader(self.data(ref)))
            for owner, rows, digest, start in zip(facts.owners, facts.counts, facts.digests, facts.starts, strict=True):
                found[owner] = (rows, digest, ref["path"], start)
            ref.update(rows=facts.rows, content=facts.content)
        return found

    def _mend_records(self) -> dict[str, dict[str, tuple[str, int, int, str]]]:
        """(object, frame offset, frame length, digest) of each record of the kinds that have views."""
        places: dict[str, dict[str, tuple[str, int, int, str]]] = {}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == _layout.RECORDS]:
            lines, kind = lines_in(self.data(ref)), ref["kind"]
            ref.update(rows=len(lines), content=digest_of(b"".join(line + b"\n" for line in lines)))
            if kind not in KINDS:
                continue
            ref.update(first=list(order_key(_record(lines[0], kind))), last=list(order_key(_record(lines[-1], kind))))
            for frame, raw in read_frames(self.data(ref), name="fixture"):
                for line in raw[:-1].split(b"\n") if KINDS[kind].tables else ():
                    identity = record_id(_record(line, kind))
                    self._records[kind, identity] = json.loads(line)
                    places.setdefault(kind, {})[identity] = (ref["path"], frame.offset, frame.length, hex_of(line))
        return places

    def _mend_views(self, kind: str, places: Mapping[str, Any], owners: Mapping[str, Mapping[str, _Rows]]) -> None:
        schema, identity = _view_of(kind), "run_id" if kind == "run" else "id"
        shown = ("experiment_id", "run_name", "user_id", "status", "end_time", "lifecycle_stage", "artifact_uri")
        order = {name: number for number, name in enumerate(places)}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == _layout.VIEWS and r["kind"] == kind]:
            table = self.table(ref, schema)
            rows = table[identity].to_pylist()
            table = table.take(pa.array(sorted(range(len(rows)), key=lambda row: order[rows[row]])))
            ids = table[identity].to_pylist()
            for name in shown if kind == "run" else shown[:1]:
                table = with_column(table, name, [self._records[kind, one].get(name) for one in ids])
            if kind == "run":
                named = {r["experiment_id"]: r["name"] for r in map(json.loads, self._lines("experiment"))}
                table = with_column(table, "experiment_name", [named.get(e) for e in table["experiment_id"].to_pylist()])
            placing = ("record_object", "frame_offset", "frame_length", "record_digest")
            columns = dict(zip(placing, zip(*(places[one] for one in ids), strict=True), strict=True))
            for owned in KINDS[kind].tables:
                found = [owners[owned].get(one, (0, _nothing(owned), None, 0)) for one in ids]
                names = tuple(f"{_prefix(kind, owned)}_{name}" for name in ("rows", "digest", "object", "start"))
                columns |= dict(zip(names, zip(*found, strict=True), strict=True))
            for name, values in columns.items():
                table = with_column(table, name, values)
            self.swap(ref, table_object(table, schema), rows=len(ids))

    def _mend_roots(self, owners: Mapping[str, Mapping[str, _Rows]]) -> None:
        trees: dict[str, MerkleTree] = {}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == _layout.RECORDS and r["kind"] in KINDS]:
            kind = KINDS[ref["kind"]]
            for line in lines_in(self.data(ref)):
                parts = [logical_digest(line, kind.name)]
                for owned in kind.tables:
                    found = owners[owned].get(record_id(_record(line, kind.name)), (0, _nothing(owned)))
                    parts.append(bytes.fromhex(found[1]))
                trees.setdefault(kind.name, MerkleTree()).add(leaf(kind.name, *parts))
        self.snapshot["logical"] = json.loads(encode(logical(trees)))
        tables = [self.table(r, "files/1") for r in self.snapshot["objects"] if r["role"] == _layout.FILES]
        files = [row for table in tables for row in table.to_pylist()]
        counts = self.snapshot["counts"]
        counts |= {kind: tree.rows for kind, tree in trees.items()}
        counts |= {"file": len(files), "file_bytes": sum(row["size"] for row in files if row["state"] == "ok")}
        for owned, name in _COUNTED.items():
            if owners[owned] or name in counts:
                counts[name] = sum(rows for rows, *_ in owners[owned].values())

    def commit(self, *, encoded: bytes | None = None) -> None:
        """Write the snapshot document under the name that its bytes and its time give it."""
        data = encode(self.snapshot) if encoded is None else encoded
        del self.files[self.path]
        self.path = _layout.snapshot_path(snapshot_name(self.snapshot["created_at"], data))
        self.files[self.path] = data

    def save(self, folder: Path) -> None:
        """Write the bundle out."""
        for path, data in self.files.items():
            if path == _layout.README:  # nothing depends on it, and it would be half of all bytes
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def _record(line: bytes, kind: str) -> Record:
    return decode_record(line, kind, name="fixture", limits=Limits(json_depth=1_000))


def _view_of(kind: str) -> str:
    return "runs_view/1" if kind == "run" else "entity_view/1"


def _prefix(kind: str, schema: str) -> str:
    """How the columns of a view begin that say where rows of a table are."""
    return "file" if schema == "files/1" else "metric" if kind == "run" else "table"


def _nothing(schema: str) -> str:
    """The digest of an owner without rows."""
    return {"metrics/1": NO_SERIES, "files/1": NO_FILES}.get(schema, NO_ROWS)


def flipped(data: bytes, place: int) -> bytes:
    """The same bytes but for one bit."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
