"""A bundle in memory that can be damaged on purpose: change one thing, mend all that follows from it, write it out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_bundle import _layout
from mlflow_bundle._codec import LinesWriter, decode_record, encode, logical_digest, read_frames
from mlflow_bundle._digests import digest_of, hex_of
from mlflow_bundle._limits import Limits
from mlflow_bundle._manifest import snapshot_name
from mlflow_bundle._merkle import MerkleTree, leaf, logical
from mlflow_bundle._owners import NO_FILES, owner_digests
from mlflow_bundle._series import NO_SERIES
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import TableWriter, open_table
from mlflow_bundle.records import KINDS, order_key

Json = dict[str, Any]

#: The column of the view that names an object of the role.
_VIEWED: Final = {_layout.METRICS: "metric_object", _layout.FILES: "file_object"}


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


class Workshop:
    """The files of a bundle by path, and the document of its newest snapshot."""

    def __init__(self, folder: Path) -> None:
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.path = max(path for path in self.files if path.startswith(_layout.SNAPSHOTS))
        self.snapshot: Json = json.loads(self.files[self.path])
        self._runs: dict[str, Json] = {}

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
            self._point(_layout.INDEX, "index/1", "object", old, ref["path"])
        elif ref["role"] in _VIEWED:
            self._point(_layout.VIEWS, "runs_view/1", _VIEWED[ref["role"]], old, ref["path"])

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

    def edit_table(self, role: str, schema: str, edit: Callable[[pa.Table], pa.Table]) -> None:
        """Change the rows of the first table of a role."""
        ref = self.ref(role)
        self.swap(ref, table_object(edit(self.table(ref, schema)), schema))

    def _point(self, role: str, schema: str, column: str, old: str, new: str) -> None:
        """Let the tables of a role name another object."""
        for ref in [r for r in self.snapshot["objects"] if r["role"] == role]:
            table = self.table(ref, schema)
            named = table[column].to_pylist()
            if old in named:
                moved = [new if path == old else path for path in named]
                self.swap(ref, table_object(with_column(table, column, moved), schema))

    # -- what follows from a change ----------------------------------------------------------------------------------

    def mend(self) -> None:
        """Let rows, digests, order keys, counts, the runs view and the logical root say what the objects say now."""
        owners: dict[str, dict[str, tuple[int, str, str, int]]] = {}
        for role, schema in ((_layout.METRICS, "metrics/1"), (_layout.FILES, "files/1")):
            owners[role] = self._mend_table(role, schema)
        for ref in self.snapshot["objects"]:
            if ref["role"] == _layout.INDEX:
                ref["rows"] = self.table(ref, "index/1").num_rows
        places = self._mend_records()
        self._mend_views(places, owners)
        self._mend_roots(owners)

    def _mend_table(self, role: str, schema: str) -> dict[str, tuple[int, str, str, int]]:
        """(rows, digest, object, first row) of each owner."""
        found = {}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == role]:
            table = open_table(pa.BufferReader(self.data(ref)), TABLES[schema], name="fixture", dictionaries=True)
            digests, start = [], 0
            for owner, rows, digest in owner_digests(table, TABLES[schema]):
                found[owner] = (rows, digest, ref["path"], start)
                digests.append(digest)
                start += rows
            ref.update(rows=start, content=digest_of("".join(digests).encode()))
        return found

    def _mend_records(self) -> dict[str, tuple[str, int, int, str]]:
        """(object, frame offset, frame length, digest) of each run."""
        places = {}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == _layout.RECORDS]:
            lines = lines_in(self.data(ref))
            ref.update(rows=len(lines), content=digest_of(b"".join(line + b"\n" for line in lines)))
            if ref["kind"] in KINDS:
                ref.update(first=_order_key(lines[0], ref["kind"]), last=_order_key(lines[-1], ref["kind"]))
            for frame, raw in read_frames(self.data(ref), name="fixture"):
                for line in raw[:-1].split(b"\n") if ref["kind"] == "run" else ():
                    self._runs[json.loads(line)["run_id"]] = json.loads(line)
                    places[json.loads(line)["run_id"]] = (ref["path"], frame.offset, frame.length, hex_of(line))
        return places

    def _mend_views(self, places: Json, owners: dict[str, dict[str, tuple[int, str, str, int]]]) -> None:
        for ref in [r for r in self.snapshot["objects"] if r["role"] == _layout.VIEWS and r["kind"] == "run"]:
            table = self.table(ref, "runs_view/1")
            order = {run: number for number, run in enumerate(places)}
            rows = table["run_id"].to_pylist()
            table = table.take(pa.array(sorted(range(len(rows)), key=lambda row: order[rows[row]])))
            runs = table["run_id"].to_pylist()
            for name in ("experiment_id", "run_name", "user_id", "status", "end_time", "lifecycle_stage", "artifact_uri"):
                table = with_column(table, name, [self._runs[run].get(name) for run in runs])
            named = {r["experiment_id"]: r["name"] for r in map(json.loads, self._lines("experiment"))}
            table = with_column(table, "experiment_name", [named.get(e) for e in table["experiment_id"].to_pylist()])
            placing = ("record_object", "frame_offset", "frame_length", "record_digest")
            columns = dict(zip(placing, zip(*(places[run] for run in runs), strict=True), strict=True))
            for prefix, role, nothing in (("metric", _layout.METRICS, NO_SERIES), ("file", _layout.FILES, NO_FILES)):
                found = [owners[role].get(run, (0, nothing, None, 0)) for run in runs]
                names = tuple(f"{prefix}_{name}" for name in ("rows", "digest", "object", "start"))
                columns |= dict(zip(names, zip(*found, strict=True), strict=True))
            for name, values in columns.items():
                table = with_column(table, name, values)
            self.swap(ref, table_object(table, "runs_view/1"), rows=len(runs))

    def _mend_roots(self, owners: dict[str, dict[str, tuple[int, str, str, int]]]) -> None:
        trees: dict[str, MerkleTree] = {}
        for ref in [r for r in self.snapshot["objects"] if r["role"] == _layout.RECORDS]:
            for line in lines_in(self.data(ref)):
                parts = [logical_digest(line, ref["kind"])]
                for role, nothing in ((_layout.METRICS, NO_SERIES), (_layout.FILES, NO_FILES)) if ref["kind"] == "run" else ():
                    parts.append(bytes.fromhex(owners[role].get(json.loads(line)["run_id"], (0, nothing))[1]))
                trees.setdefault(ref["kind"], MerkleTree()).add(leaf(ref["kind"], *parts))
        self.snapshot["logical"] = json.loads(encode(logical(trees)))
        tables = [self.table(r, "files/1") for r in self.snapshot["objects"] if r["role"] == _layout.FILES]
        files = [row for table in tables for row in table.to_pylist()]
        counts = self.snapshot["counts"]
        counts |= {kind: tree.rows for kind, tree in trees.items()}
        counts |= {"file": len(files), "file_bytes": sum(row["size"] for row in files if row["state"] == "ok")}
        counts["metric_point"] = sum(rows for rows, *_ in owners[_layout.METRICS].values())

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


def _order_key(line: bytes, kind: str) -> list[Any]:
    return list(order_key(decode_record(line, kind, name="fixture", limits=Limits(json_depth=1_000))))


def flipped(data: bytes, place: int) -> bytes:
    """The same bytes but for one bit."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
