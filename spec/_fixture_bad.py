"""Every way in which the fixtures are damaged, with the code that a verification reports for it."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from _fixture_content import MINIMAL, Content, pack_content, run_id
from _fixture_entities import START, pairs, span
from _fixture_workshop import Workshop, flipped, lines_in, lines_object, plain_parquet, table_object, with_column

from mlflow_bundle import _layout
from mlflow_bundle._codec import encode
from mlflow_bundle._digests import hex_of
from mlflow_bundle._limits import Targets
from mlflow_bundle._manifest import snapshot_name
from mlflow_bundle._storage._zipform import Part, write_archive
from mlflow_bundle.entities import Experiment, LoggedModel, Run, Trace

Edit = Callable[[Workshop], None]


@dataclass(frozen=True)
class Damage:
    """One bad bundle. ``mend``: what follows from the edit is made consistent again, so that just the edit is wrong."""

    code: str
    what: str
    edit: Edit
    mend: bool = False
    base: str = "small"
    limits: Mapping[str, int] = field(default_factory=dict)
    one_file: Callable[[Workshop], bytes] | None = None

    @property
    def name(self) -> str:
        """The name of the fixture."""
        return f"{self.code}_{self.what}"

    def write(self, folder: Path, bases: Mapping[str, Path]) -> None:
        """Write the bundle, and the lowered limits beside it."""
        shop = Workshop(bases[self.base])
        before = shop.path, encode(shop.snapshot)
        self.edit(shop)
        if self.mend:
            shop.mend()
        if shop.path == before[0] and encode(shop.snapshot) != before[1]:
            shop.commit()
        folder.mkdir(parents=True, exist_ok=True)
        if self.one_file:
            (folder / f"{self.name}.mlbundle.zip").write_bytes(self.one_file(shop))
        else:
            shop.save(folder / self.name)
        if self.limits:
            (folder / f"{self.name}.limits.json").write_text(json.dumps(self.limits) + "\n", encoding="utf-8")


def _small(place: Path) -> None:
    """Two experiments, four runs; files in a pack, as a blob, and as a blob in parts."""
    runs = [
        Run(run_id=run_id(n), experiment_id=str(n % 2), start_time=START + n, status="FINISHED", tags=pairs(n=str(n)))
        for n in range(1, 5)
    ]
    content = Content(
        experiments=[Experiment(experiment_id=str(n), name=f"experiment {n}", creation_time=START + n) for n in range(2)],
        runs=runs,
        metrics={run.run_id: [(key, s, START + s, s / 4) for key in ("acc", "loss") for s in range(4)] for run in runs[:3]},
        files={
            runs[0].run_id: {"a.txt": b"first\n", "shrinks.txt": b"again and " * 20, "whole.bin": bytes(range(256)) + b"."},
            runs[1].run_id: {
                "a.txt": b"second\n",
                "b.bin": bytes(range(256, 0, -1)[1:]) + b"..",
                "parts.bin": b"".join(bytes([n]) * 200 for n in range(6)),
            },
        },
    )
    pack_content(place, content, targets=Targets(blob_bytes=257, split_bytes=1_000, part_bytes=500))


def _lists(place: Path) -> None:
    pack_content(place, MINIMAL, targets=Targets(inline_bytes=100))


def _traced(place: Path) -> None:
    """One experiment with two logged models, which have metrics, and two traces, which have spans and a file."""
    models = [f"m-{n}" for n in range(2)]
    traces = [f"tr-{n}" for n in range(2)]
    content = Content(
        experiments=[Experiment(experiment_id="1", name="agents", creation_time=START)],
        others=[
            *(
                LoggedModel(model_id=m, experiment_id="1", name="m", creation_timestamp_ms=START + n)
                for n, m in enumerate(models)
            ),
            *(Trace(trace_id=trace, experiment_id="1", request_time=START + n) for n, trace in enumerate(traces)),
        ],
        rows={
            "model_metrics/1": {
                m: [("acc", step, START, step / 4, run_id(1), None, None) for step in range(3)] for m in models
            },
            "spans/1": {trace: [span(n) for n in range(3)] for trace in traces},
        },
        files={traces[0]: {"attachments/a.txt": b"attached\n"}},
    )
    pack_content(place, content)


BASES: Final[dict[str, Callable[[Path], None]]] = {"small": _small, "lists": _lists, "traced": _traced}


# -- the marker and the snapshot ---------------------------------------------------------------------------------------


def _marker(**members: object) -> Edit:
    def edit(shop: Workshop) -> None:
        shop.files[_layout.MARKER] = encode(json.loads(shop.files[_layout.MARKER]) | members)

    return edit


def _no_marker(shop: Workshop) -> None:
    del shop.files[_layout.MARKER]


def _snapshot(**members: object) -> Edit:
    return lambda shop: shop.snapshot.update(members)


def _encoded(change: Callable[[bytes], bytes]) -> Edit:
    """Commit other bytes than the canonical ones, under the name that is right for them."""
    return lambda shop: shop.commit(encoded=change(encode(shop.snapshot)))


def _raw(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of the snapshot document and keep its name."""

    def edit(shop: Workshop) -> None:
        shop.files[shop.path] = change(shop.files[shop.path])

    return edit


def _another_time(shop: Workshop) -> None:
    data = shop.files.pop(shop.path)
    shop.path = shop.path.replace("20261121T000000.000Z", "20261121T000000.001Z")
    shop.files[shop.path] = data


def _ref(role: str, kind: str | None = None, /, **members: object) -> Edit:
    """Let the reference of an object say something else."""
    return lambda shop: shop.ref(role, kind).update(members)


def _listed_twice(shop: Workshop) -> None:
    shop.snapshot["objects"].append(shop.ref(_layout.METRICS))


def _outside(shop: Workshop) -> None:
    shop.ref(_layout.METRICS)["path"] = "../../etc/passwd"


def _upper_case(shop: Workshop) -> None:
    ref = shop.ref(_layout.BLOBS)
    folder, _, stem = ref["path"].rpartition("/")
    shop.files[f"{folder}/{stem.upper()}"] = shop.files.pop(ref["path"])
    ref["path"] = f"{folder}/{stem.upper()}"


def _count(name: str) -> Edit:
    def edit(shop: Workshop) -> None:
        shop.snapshot["counts"][name] += 1

    return edit


def _logical_root(shop: Workshop) -> None:
    shop.snapshot["logical"]["root"] = "sha256:" + 64 * "0"


def _root_of_traces(shop: Workshop) -> None:
    shop.snapshot["logical"]["kinds"]["trace"]["root"] = "sha256:" + 64 * "0"


def _no_lines(shop: Workshop) -> None:
    """An object of no records, of a kind that has no views."""
    shop.put(_layout.RECORDS, lines_object([]), kind="webhook", content="sha256:" + hex_of(b""))


def _list_is_short(shop: Workshop) -> None:
    (listing,) = shop.snapshot["object_lists"]
    data = lines_object(lines_in(shop.files.pop(listing["path"]))[1:])
    listing["path"] = _layout.object_path(_layout.LISTS, hex_of(data))
    listing["size"] = len(data)
    shop.files[listing["path"]] = data


# -- objects -----------------------------------------------------------------------------------------------------------


def _flip(role: str, kind: str | None = None) -> Edit:
    def edit(shop: Workshop) -> None:
        path = shop.ref(role, kind)["path"]
        shop.files[path] = flipped(shop.files[path], len(shop.files[path]) // 2)

    return edit


def _cut(shop: Workshop) -> None:
    path = shop.ref(_layout.METRICS)["path"]
    shop.files[path] = shop.files[path][:-1]


def _missing(role: str, kind: str | None = None) -> Edit:
    def edit(shop: Workshop) -> None:
        del shop.files[shop.ref(role, kind)["path"]]

    return edit


def _swapped(shop: Workshop) -> None:
    """Two blobs of one size under each other's name."""
    one, two = (ref["path"] for ref in shop.snapshot["objects"] if ref["role"] == _layout.BLOBS and ref["size"] == 257)
    shop.files[one], shop.files[two] = shop.files[two], shop.files[one]


def _foreign(shop: Workshop) -> None:
    shop.files[_layout.object_path(_layout.BLOBS, hex_of(b"foreign"))] = b"foreign"


def _foreign_and_wrong(shop: Workshop) -> None:
    shop.files[_layout.object_path(_layout.BLOBS, hex_of(b"foreign"))] = b"Foreign"


def _stranger(shop: Workshop) -> None:
    shop.files["notes.txt"] = b"Somebody left this here.\n"


def _cut_off_before(shop: Workshop) -> None:
    """The first half of a snapshot document of the day before, under the name of the whole one."""
    data = encode(shop.snapshot | {"created_at": shop.snapshot["created_at"] - 86_400_000})
    path = _layout.snapshot_path(snapshot_name(shop.snapshot["created_at"] - 86_400_000, data))
    shop.files[path] = data[: len(data) // 2]


def _damaged_before(shop: Workshop) -> None:
    """A whole snapshot document of the day before, with one bit flipped."""
    _cut_off_before(shop)
    data = encode(shop.snapshot | {"created_at": shop.snapshot["created_at"] - 86_400_000})
    shop.files[min(path for path in shop.files if path.startswith(_layout.SNAPSHOTS))] = flipped(data, 100)


# -- records -----------------------------------------------------------------------------------------------------------


def _lines(kind: str, change: Callable[[list[bytes]], list[bytes]]) -> Edit:
    return lambda shop: shop.edit_lines(kind, change)


def _run_record(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of the first run's line. What follows from it cannot be mended, because it is no record any more."""
    return _lines("run", lambda lines: [change(lines[0]), *lines[1:]])


def _object_bytes(role: str, change: Callable[[bytes], bytes], kind: str | None = None) -> Edit:
    """Change the bytes of an object and give it the name that is right for them."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(role, kind)
        shop.swap(ref, change(shop.data(ref)))

    return edit


def _bad_frame(data: bytes) -> bytes:
    """Another byte in the checksum of the only frame."""
    place = len(data) - 17 - 8 - 1
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _bomb(raw: int) -> bytes:
    """A frame of zeros that is a million times smaller."""
    stored = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True).compress(bytes(raw))
    foot = struct.pack("<II", len(stored), raw) + struct.pack("<IBI", 1, 0, 0x8F92EAB1)
    return stored + struct.pack("<II", 0x184D2A5E, len(foot)) + foot


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(role: str, schema: str, change: Callable[[pa.Table], pa.Table]) -> Edit:
    return lambda shop: shop.edit_table(role, schema, change)


def _values(role: str, schema: str, column: str, change: Callable[[list[Any]], list[Any]], kind: str | None = None) -> Edit:
    def edit(table: pa.Table) -> pa.Table:
        return with_column(table, column, change(table[column].to_pylist()))

    return lambda shop: shop.edit_table(role, schema, edit, kind)


def _rows(role: str, schema: str, order: Callable[[list[int]], list[int]]) -> Edit:
    return _table(role, schema, lambda table: table.take(pa.array(order(list(range(table.num_rows))), pa.int64())))


def _rewritten(role: str, change: Callable[[pa.Table], pa.Table], schema: str | None) -> Edit:
    """Let another Parquet writer write a table, with other columns or another schema name."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(role)
        table = pq.read_table(pa.BufferReader(shop.data(ref)))
        shop.swap(ref, plain_parquet(change(table), schema))

    return edit


def _without_content(table: pa.Table) -> pa.Table:
    texts = pa.array([None, *table["content"].to_pylist()[1:]], pa.string())
    return table.set_column(table.schema.get_field_index("content"), pa.field("content", pa.string()), texts)


def _with_null(table: pa.Table) -> pa.Table:
    keys = pa.array([None, *table["key"].to_pylist()[1:]], pa.string())
    return table.set_column(2, pa.field("key", pa.string()), keys)


def _page_bit(data: bytes) -> bytes:
    """Another bit in the data of the last column's page, which page checksums cover."""
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(5)
    return flipped(data, column.data_page_offset + column.total_compressed_size - 3)


# -- contents ----------------------------------------------------------------------------------------------------------


def _pack(change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None]) -> Edit:
    """Write the pack again with other entries; its index rows point where they pointed."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(_layout.PACKS)
        with zipfile.ZipFile(io.BytesIO(shop.data(ref))) as pack:
            entries = [(info, pack.read(info)) for info in pack.infolist()]
        change(entries)
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as pack:
            for info, data in entries:
                pack.writestr(info, data, info.compress_type, 6)
        shop.swap(ref, sink.getvalue())

    return edit


def _other_content(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    place = next(number for number, (info, _) in enumerate(entries) if info.compress_type == zipfile.ZIP_STORED)
    info, data = entries[place]
    entries[place] = (info, data.upper())


def _other_name(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    entries[0][0].filename = 64 * "0"


def _deflated_rows(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change the index row of the deflated content."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(_layout.INDEX)
        table = shop.table(ref, "index/1")
        rows = table.to_pylist()
        change(next(row for row in rows if row["codec"] == "deflate"))
        shop.swap(ref, table_object(pa.Table.from_pylist(rows, schema=table.schema), "index/1"))

    return edit


def _damaged_deflate(shop: Workshop) -> None:
    row = next(row for row in shop.table(shop.ref(_layout.INDEX), "index/1").to_pylist() if row["codec"] == "deflate")
    ref = shop.ref(_layout.PACKS)
    data = bytearray(shop.data(ref))
    data[row["offset"]] = 0xFF
    shop.swap(ref, bytes(data))


def _without_index(shop: Workshop) -> None:
    ref = shop.ref(_layout.INDEX)
    shop.snapshot["objects"].remove(ref)
    del shop.files[ref["path"]]


def _blob_not_listed(shop: Workshop) -> None:
    shop.snapshot["objects"].remove(shop.ref(_layout.BLOBS))


# -- the one-file form -------------------------------------------------------------------------------------------------


def _zip_of(shop: Workshop) -> bytes:
    sink = io.BytesIO()
    parts = [Part(path, len(data), zlib.crc32(data), partial(_chunk, data)) for path, data in shop.files.items()]
    write_archive(sink, parts)
    return sink.getvalue()


def _chunk(data: bytes) -> Iterator[bytes]:
    yield data


def _compressed_zip(shop: Workshop) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in shop.files.items():
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def _reserved_field(data: bytes) -> bytes:
    """Another bit in a date of the central directory, which belongs to no file."""
    return flipped(data, data.rindex(b"PK\x01\x02") + 12)


def _same(shop: Workshop) -> None:
    """Nothing is wrong with the files."""


def _json(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Change the members of a record line."""

    def edit(line: bytes) -> bytes:
        record = json.loads(line)
        change(record)
        return encode(record)

    return edit


def _set(**members: Any) -> Callable[[bytes], bytes]:
    return _json(lambda record: record.update(members))


_M: Final = (_layout.METRICS, "metrics/1")
_F: Final = (_layout.FILES, "files/1")
_I: Final = (_layout.INDEX, "index/1")
_V: Final = (_layout.VIEWS, "runs_view/1")
_MM: Final = (_layout.MODEL_METRICS, "model_metrics/1")
_S: Final = (_layout.SPANS, "spans/1")
_E: Final = (_layout.VIEWS, "entity_view/1")

WARN: Final[list[Damage]] = [
    Damage("W010", "object_that_no_snapshot_names", _foreign),
    Damage("W011", "object_that_no_snapshot_names_is_damaged", _foreign_and_wrong),
    Damage("W012", "file_that_is_no_part_of_the_format", _stranger),
    Damage("W013", "snapshot_cut_off_before_a_whole_one", _cut_off_before),
    Damage("W090", "password_in_a_uri", _run_record(_set(artifact_uri="s3://user:hunter2@bucket/1")), mend=True),
    Damage("W091", "path_that_climbs_out", _values(*_F, "path", lambda v: ["../../a.txt", *v[1:]]), mend=True),
    Damage("W091", "absolute_path", _values(*_F, "path", lambda v: ["/etc/passwd", *v[1:]]), mend=True),
    Damage("W091", "reserved_name", _values(*_F, "path", lambda v: ["NUL.txt", *v[1:]]), mend=True),
    Damage("W091", "paths_that_collide", _values(*_F, "path", lambda v: ["Shrinks.TXT", *v[1:]]), mend=True),
]

BAD: Final[list[Damage]] = [
    Damage("E010", "no_marker", _no_marker),
    Damage("E010", "marker_is_no_json", lambda shop: shop.files.update({_layout.MARKER: b"{"})),
    Damage("E010", "another_format", _marker(format="something-else")),
    Damage("E010", "newer_layout", _marker(layout=2)),
    Damage("E010", "unknown_feature", _marker(requires={"read": ["chunked-blobs"], "write": []})),
    Damage("E010", "another_hash", _marker(hash="blake3")),
    Damage("E020", "flipped_bit", _raw(lambda data: flipped(data, 100))),
    Damage("E020", "damaged_before_a_whole_one", _damaged_before),
    Damage("E020", "torn", _raw(lambda data: data[: len(data) // 2])),
    Damage("E021", "path_outside", _outside),
    Damage("E021", "upper_case_digits", _upper_case),
    Damage("E021", "path_of_another_role", _ref(_layout.FILES, role=_layout.METRICS)),
    Damage("E022", "flipped_bit_in_records", _flip(_layout.RECORDS, "run")),
    Damage("E022", "flipped_bit_in_metrics", _flip(_layout.METRICS)),
    Damage("E022", "flipped_bit_in_view", _flip(_layout.VIEWS)),
    Damage("E022", "flipped_bit_in_pack", _flip(_layout.PACKS)),
    Damage("E022", "flipped_bit_in_blob", _flip(_layout.BLOBS)),
    Damage("E022", "swapped_blobs", _swapped),
    Damage("E023", "another_time_than_the_name", _another_time),
    Damage("E024", "of_another_bundle", _snapshot(bundle_id="f" * 32)),
    Damage("E025", "missing_records", _missing(_layout.RECORDS, "experiment")),
    Damage("E025", "missing_metrics", _missing(_layout.METRICS)),
    Damage("E025", "missing_blob", _missing(_layout.BLOBS)),
    Damage("E026", "cut_object", _cut),
    Damage("E026", "another_size_in_the_snapshot", _ref(_layout.METRICS, size=1)),
    Damage("E027", "listed_twice", _listed_twice),
    Damage("E028", "partial_without_problems", _snapshot(state="partial")),
    Damage("E028", "complete_with_problems", _snapshot(problems=[{"code": "artifact-unreadable", "message": "lost"}])),
    Damage("E030", "no_json", _encoded(lambda data: data[:-1])),
    Damage("E030", "not_canonical", _encoded(lambda data: data.replace(b",", b", ", 1))),
    Damage("E030", "size_is_text", _ref(_layout.METRICS, size="many")),
    Damage("E031", "no_json", _run_record(lambda line: line[:-1])),
    Damage("E031", "not_canonical", _run_record(lambda line: line.replace(b",", b", ", 1))),
    Damage("E031", "name_twice", _run_record(lambda line: line.replace(b'{"', b'{"experiment_id":"1","', 1))),
    Damage("E031", "another_kind", _run_record(_set(kind="experiment"))),
    Damage("E031", "without_run_id", _run_record(_json(lambda record: record.pop("run_id")))),
    Damage("E031", "float", _run_record(lambda line: line.replace(str(START + 1).encode(), str(START + 1).encode() + b".5"))),
    Damage("E032", "no_seek_table", _object_bytes(_layout.RECORDS, lambda data: data[:-25], "run")),
    Damage("E032", "seek_table_too_short", _object_bytes(_layout.RECORDS, lambda data: data[:-25] + b"\0" + data[-25:], "run")),
    Damage("E033", "wrong_checksum", _object_bytes(_layout.RECORDS, _bad_frame, "run")),
    Damage("E034", "other_rows", _ref(_layout.RECORDS, "run", rows=9)),
    Damage("E034", "other_content", _ref(_layout.RECORDS, "run", content="sha256:" + 64 * "0")),
    Damage("E034", "other_first_key", _ref(_layout.RECORDS, "run", first=[0, run_id(1)])),
    Damage("E034", "short_list", _list_is_short, base="lists"),
    Damage("E034", "no_lines", _no_lines),
    Damage("E040", "no_parquet", _object_bytes(_layout.METRICS, lambda data: b"no" + data[2:-2] + b"no")),
    Damage("E041", "no_schema_name", _rewritten(_layout.METRICS, lambda table: table, None)),
    Damage("E041", "other_schema_name", _rewritten(_layout.METRICS, lambda table: table, "metrics/2")),
    Damage("E041", "column_missing", _rewritten(_layout.METRICS, lambda table: table.drop_columns(["step"]), "metrics/1")),
    Damage("E041", "span_without_content", _rewritten(_layout.SPANS, _without_content, "spans/1"), base="traced"),
    Damage("E042", "spans_of_a_trace_apart", _rows(*_S, lambda r: [*r[1:], r[0]]), base="traced"),
    Damage("E042", "traces_in_another_order", _rows(*_S, lambda r: [*r[3:], *r[:3]]), mend=True, base="traced"),
    Damage("E042", "rows_of_a_run_apart", _rows(*_M, lambda r: [*r[1:], r[0]])),
    Damage("E041", "null", _rewritten(_layout.METRICS, _with_null, "metrics/1")),
    Damage("E042", "runs_in_another_order", _rows(*_M, lambda r: [*r[8:16], *r[:8], *r[16:]]), mend=True),
    Damage("E043", "page_checksum", _object_bytes(_layout.METRICS, _page_bit)),
    Damage("E044", "other_rows", _ref(_layout.METRICS, rows=9)),
    Damage("E044", "other_content", _ref(_layout.FILES, content="sha256:" + 64 * "0")),
    Damage("E044", "other_spans", _ref(_layout.SPANS, content="sha256:" + 64 * "0"), base="traced"),
    Damage("E045", "spans_out_of_order", _rows(*_S, lambda r: [r[1], r[0], *r[2:]]), mend=True, base="traced"),
    Damage("E045", "model_metrics_out_of_order", _rows(*_MM, lambda r: [r[1], r[0], *r[2:]]), mend=True, base="traced"),
    Damage("E045", "points_out_of_order", _rows(*_M, lambda r: [r[1], r[0], *r[2:]]), mend=True),
    Damage("E046", "points_of_an_unknown_run", _values(*_M, "run_id", lambda v: [*v[:-8], *[run_id(9)] * 8]), mend=True),
    Damage("E046", "points_of_another_experiment", _values(*_M, "experiment_id", lambda v: ["9", *v[1:]]), mend=True),
    Damage("E046", "spans_of_an_unknown_trace", _values(*_S, "trace_id", lambda v: [*v[:3], *3 * ["tr-9"]]), True, "traced"),
    Damage(
        "E046", "model_metrics_elsewhere", _values(*_MM, "experiment_id", lambda v: ["9", *v[1:]]), mend=True, base="traced"
    ),
    Damage("E046", "files_of_another_kind", _values(*_F, "owner_kind", lambda _: ["logged_model"]), mend=True, base="traced"),
    Damage("E046", "files_of_an_unknown_run", _values(*_F, "owner_id", lambda v: [*v[:-2], *[run_id(9)] * 2]), mend=True),
    Damage("E047", "files_out_of_order", _rows(*_F, lambda r: [r[1], r[0], *r[2:]]), mend=True),
    Damage("E047", "path_twice", _values(*_F, "path", lambda v: [v[1], *v[1:]]), mend=True),
    Damage("E048", "unknown_state", _values(*_F, "state", lambda v: ["lost", *v[1:]]), mend=True),
    Damage("E048", "ok_without_content", _values(*_F, "sha256", lambda v: [None, *v[1:]]), mend=True),
    Damage("E048", "negative_size", _values(*_F, "size", lambda v: [-1, *v[1:]]), mend=True),
    Damage("E050", "pack_entry_has_another_content", _pack(_other_content)),
    Damage("E050", "size_of_a_file", _values(*_F, "size", lambda v: [v[0] + 1, *v[1:]]), mend=True),
    Damage("E051", "content_unknown", _rows(*_I, lambda r: r[1:]), mend=True),
    Damage("E051", "no_index", _without_index),
    Damage("E051", "part_missing", _values(*_I, "part", lambda v: [n + 1 if n else 0 for n in v]), mend=True),
    Damage("E051", "unknown_codec", _values(*_I, "codec", lambda v: ["lzma", *v[1:]]), mend=True),
    Damage("E051", "beyond_the_object", _values(*_I, "offset", lambda v: [10**9, *v[1:]]), mend=True),
    Damage("E051", "object_not_listed", _blob_not_listed),
    Damage("E052", "does_not_inflate", _damaged_deflate),
    Damage("E052", "other_raw_length", _deflated_rows(lambda row: row.update(raw_length=row["raw_length"] + 1)), mend=True),
    Damage("E053", "entry_has_another_name", _pack(_other_name)),
    Damage("E053", "no_zip", _object_bytes(_layout.PACKS, lambda data: data[:-22])),
    Damage("E060", "record_digest", _values(*_V, "record_digest", lambda v: [64 * "0", *v[1:]])),
    Damage("E060", "first_row", _values(*_V, "metric_start", lambda v: [v[0] + 1, *v[1:]])),
    Damage("E060", "status", _values(*_V, "status", lambda v: ["FAILED", *v[1:]])),
    Damage("E060", "first_span", _values(*_E, "table_start", lambda v: [v[0] + 1, *v[1:]], "trace"), base="traced"),
    Damage("E060", "span_digest", _values(*_E, "table_digest", lambda v: [64 * "0", *v[1:]], "trace"), base="traced"),
    Damage("E061", "traces_out_of_order", _lines("trace", lambda lines: lines[::-1]), mend=True, base="traced"),
    Damage("E061", "runs_out_of_order", _lines("run", lambda lines: [*lines[:2], lines[3], lines[2]]), mend=True),
    Damage("E062", "run_twice", _run_record(lambda line: line.replace(run_id(1).encode(), run_id(2).encode()))),
    Damage("E063", "experiment_unknown", _lines("run", lambda li: [*li[:-1], _set(experiment_id="9")(li[-1])]), mend=True),
    Damage("E064", "runs", _count("run")),
    Damage("E064", "spans", _count("span"), base="traced"),
    Damage("E064", "metric_points", _count("metric_point")),
    Damage("E064", "bytes_of_files", _count("file_bytes")),
    Damage("E065", "logical_root", _logical_root),
    Damage("E065", "root_of_traces", _root_of_traces, base="traced"),
    Damage("E070", "flipped_bit_between_the_files", _same, one_file=lambda shop: _reserved_field(_zip_of(shop))),
    Damage("E070", "bytes_at_the_end", _same, one_file=lambda shop: _zip_of(shop) + b"\0"),
    Damage("E071", "compressed", _same, one_file=_compressed_zip),
    Damage("E090", "deep_record", _run_record(_set(deep=json.loads("[" * 70 + "]" * 70))), mend=True),
    Damage("E091", "zstd_bomb", _object_bytes(_layout.RECORDS, lambda _: _bomb(200 << 20), "run")),
    Damage("E092", "long_line", _same, limits={"line_bytes": 100}),
    Damage("E093", "large_snapshot", _same, limits={"snapshot_bytes": 1000}),
    Damage("E094", "large_records", _same, limits={"records_bytes": 100}),
    Damage("E094", "large_table", _same, limits={"table_bytes": 1000}),
]
