"""Tables: order, content digests that no cut changes, and Parquet files that are what the specification says."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle._limits import DEFAULT_LIMITS
from mlflow_bundle._owners import NO_FILES, files_digest, numbered_rows
from mlflow_bundle._series import NO_SERIES, series_digests, sort_series, total_order
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle._tables import ROW_GROUP_ROWS, TableWriter, batches, open_table
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle._verify._table_facts import OwnerFacts, file_facts, row_facts, series_facts
from mlflow_bundle.errors import CorruptError
from tests.building import SERIES, Point, archive_order, points_of, realistic_series, series, span_of

METRICS, FILES, SPANS = TABLES["metrics/1"], TABLES["files/1"], TABLES["spans/1"]
INT64 = st.integers(-(2**63), 2**63 - 1)
DOUBLES = st.one_of(
    st.floats(),
    st.sampled_from([math.nan, -math.nan, 0.0, -0.0, math.inf, -math.inf, 5e-324, -5e-324]),
    st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),
)
KEYS = st.sampled_from(["a", "b", "B", "", "ü", "z", "日本", "😀", "\uffff", "a/b"])
STEPS = st.integers(-2, 2) | INT64
POINTS: st.SearchStrategy[list[Point]] = st.lists(st.tuples(st.integers(0, 3), KEYS, STEPS, STEPS, DOUBLES), max_size=40)


# -- order -----------------------------------------------------------------------------------------------------------------


@given(POINTS, st.booleans())
def test_sorting_is_that_of_plain_python(points: list[Point], encoded: bool) -> None:
    """Rows come by owner, key bytes, step, time, and value in totalOrder: -0.0 before 0.0, NaN last, not a bit altered."""
    table = series(points)
    if encoded:
        table = table.set_column(1, "key", table.column("key").combine_chunks().dictionary_encode())
    expected = points_of(series(sorted(points, key=archive_order)))
    assert points_of(sort_series(table)) == expected


@given(POINTS)
def test_sorting_what_is_sorted_copies_nothing(points: list[Point]) -> None:
    """A table in archive order is returned as it is."""
    table = series(sorted(points, key=archive_order))
    assert sort_series(table) is table


@given(st.lists(DOUBLES, min_size=1))
def test_total_order_is_that_of_ieee_754(values: list[float]) -> None:
    """The integers of ``total_order`` sort as the standard says, NaN payloads and signs included."""
    expected = [archive_order((0, "", 0, 0, value))[-1] for value in values]
    assert total_order(np.array(values)).tolist() == expected


# -- digests ---------------------------------------------------------------------------------------------------------------


def plain_digest(points: Sequence[Point]) -> str:
    """The digest of one owner's sorted points as section 8.3 of the specification words it."""
    keys: dict[str, int] = {}
    for point in points:
        keys[point[1]] = keys.get(point[1], 0) + 1
    steps = b"".join(struct.pack("<q", p[2]) for p in points)
    stamps = b"".join(struct.pack("<q", p[3]) for p in points)
    values = b"".join(struct.pack("<d", p[4]) for p in points)
    head = json.dumps([[key, count] for key, count in keys.items()], ensure_ascii=False, separators=(",", ":")).encode()
    parts = b"".join(hashlib.sha256(column).digest() for column in (steps, stamps, values))
    return hashlib.sha256(head + b"\n" + parts).hexdigest()


@given(POINTS, st.lists(st.integers(0, 40), max_size=6), st.data())
def test_series_digests_do_not_depend_on_cuts(points: list[Point], cuts: list[int], data: st.DataObject) -> None:
    """However the rows are cut into tables and encoded, each owner has the digest of the specification."""
    points.sort(key=archive_order)
    table = series(points)
    borders = sorted({0, len(points), *(cut for cut in cuts if cut < len(points))})
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(borders)]
    for number in range(len(pieces)):
        if data.draw(st.booleans()):
            encoded = pieces[number].column("key").combine_chunks().dictionary_encode()
            pieces[number] = pieces[number].set_column(1, "key", encoded)
    expected = []
    for owner in range(5):
        own = [point for point in points if point[0] == owner]
        expected.append((len(own), plain_digest(own)))
    assert series_digests(pieces, 5) == expected
    assert expected[4] == (0, NO_SERIES)


@given(POINTS.filter(bool), st.data())
def test_every_change_of_a_point_changes_the_digest(points: list[Point], data: st.DataObject) -> None:
    """Another key, step, time or bit of a value, a missing or a doubled point: the digest is another."""
    points = sorted(((0, *point[1:]) for point in points), key=archive_order)
    at = data.draw(st.integers(0, len(points) - 1))
    _, key, step, stamp, value = points[at]
    bits = struct.unpack("<Q", struct.pack("<d", value))[0] ^ (1 << data.draw(st.integers(0, 63)))
    other: list[Point] = [
        (0, key + "x", step, stamp, value),
        (0, key, step ^ 1, stamp, value),
        (0, key, step, stamp ^ 1, value),
        (0, key, step, stamp, struct.unpack("<d", struct.pack("<Q", bits))[0]),
    ]
    changed = [[*points[:at], one, *points[at + 1 :]] for one in other]
    changed += [points[:at] + points[at + 1 :], [*points[: at + 1], *points[at:]]]
    digest = series_digests([series(points)], 1)
    for rows in changed:
        assert series_digests([series(sorted(rows, key=archive_order))], 1) != digest


@given(POINTS)
def test_a_written_object_has_the_digests_of_its_series(points: list[Point]) -> None:
    """What is read back of an object has the digests and rows of what was written, owner by owner."""
    points.sort(key=archive_order)
    expected = [(f"run {i}", *one) for i, one in enumerate(series_digests([series(points)], 4)) if one[0]]
    findings = Findings()
    facts = series_facts("x", io.BytesIO(metrics_file(series(points))), findings, DEFAULT_LIMITS)
    assert list(zip(facts.owners, facts.counts, facts.digests, strict=True)) == expected
    assert not list(findings.problems())


def test_files_digests_are_as_specified() -> None:
    """The digest of a file list is over the JSON of its rows, in UTF-8, without white space."""
    rows = [("größe.txt", 3, "0" * 64, "ok"), ("x", 0, None, "unreadable")]
    text = '[["größe.txt",3,"' + "0" * 64 + '","ok"],["x",0,null,"unreadable"]]'
    assert files_digest(rows) == hashlib.sha256(text.encode()).hexdigest()
    assert hashlib.sha256(b"[]").hexdigest() == NO_FILES


def _facts_of(spec: TableSpec, data: bytes) -> OwnerFacts:
    if spec is METRICS:
        return series_facts("x", io.BytesIO(data), Findings(), DEFAULT_LIMITS)
    if spec is FILES:
        return file_facts("x", io.BytesIO(data), Findings(), DEFAULT_LIMITS)
    return row_facts("x", io.BytesIO(data), spec, kind="trace", findings=Findings(), limits=DEFAULT_LIMITS)


@pytest.mark.parametrize("spec", [METRICS, SPANS, FILES], ids=lambda spec: spec.role)
def test_owners_whose_rows_are_apart_are_refused(spec: TableSpec) -> None:
    """An object in which another owner lies between the rows of one is corrupt; where none does, each has its rows."""

    def written_for(owners: list[int]) -> bytes:
        if spec is METRICS:
            return metrics_file(series([(owner, "ab"[at > 1], at, 0, 0.0) for at, owner in enumerate(owners)]))
        return files_file([f"run {owner}" for owner in owners]) if spec is FILES else spans_file(owners)

    with pytest.raises(CorruptError, match="in two places") as raised:
        _facts_of(spec, written_for([0, 1, 0]))
    assert raised.value.code == "E042"
    assert _facts_of(spec, written_for([0, 0, 1])).counts == [2, 1]


# -- Parquet ---------------------------------------------------------------------------------------------------------------


def metric_rows(table: pa.Table) -> pa.Table:
    """A series table as rows of the metrics table."""
    runs = pa.array([f"run {owner}" for owner in table.column("owner").to_pylist()], pa.string())
    experiments = pa.array(["1"] * table.num_rows, pa.string())
    names = METRICS.schema.names
    return pa.table([experiments, runs, *(table.column(n) for n in names[2:])], names=names)


def written(spec: TableSpec, *tables: pa.Table) -> bytes:
    sink = io.BytesIO()
    writer = TableWriter(sink, spec)
    for table in tables:
        writer.add(table)
    writer.close()
    return sink.getvalue()


def metrics_file(*tables: pa.Table) -> bytes:
    return written(METRICS, *map(metric_rows, tables))


def files_file(owners: list[str]) -> bytes:
    columns: dict[str, Any] = {name: ["x"] * len(owners) for name in FILES.schema.names}
    columns |= {"owner_kind": ["run"] * len(owners), "owner_id": owners, "size": list(range(len(owners)))}
    return written(FILES, pa.table(columns, schema=FILES.schema))


def spans_file(owners: list[int]) -> bytes:
    rows = [{"experiment_id": "1", "trace_id": f"tr-{owner}", **span_of(0, at)} for at, owner in enumerate(owners)]
    return written(SPANS, pa.Table.from_pylist(rows, schema=SPANS.schema))


@given(POINTS, st.integers(1, 50))
def test_values_come_back_bit_for_bit(points: list[Point], cut: int) -> None:
    """NaN payloads, signed zeros and infinities, the largest steps and every key survive Parquet."""
    points.sort(key=archive_order)
    table = series(points)
    data = metrics_file(table.slice(0, cut), table.slice(cut))
    read = open_table(io.BytesIO(data), METRICS, name="x", dictionaries=True)
    numbers = {f"run {i}": i for i in range(4)}
    back = [row for part in numbered_rows(batches(read), METRICS, numbers.__getitem__) for row in points_of(part)]
    assert back == points_of(table)
    assert pq.read_table(io.BytesIO(data)).num_rows == len(points)


def test_encodings_are_those_of_the_specification() -> None:
    """Steps and times are delta-coded, values byte-split, repeated strings dictionaries, everything zstd."""
    data = metrics_file(realistic_series(3, 2, 500))
    file = pq.ParquetFile(io.BytesIO(data))
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert "DELTA_BINARY_PACKED" in columns["step"].encodings
    assert "DELTA_BINARY_PACKED" in columns["timestamp"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["value"].encodings
    for name in ("experiment_id", "run_id", "key"):
        assert columns[name].has_dictionary_page
        assert "RLE_DICTIONARY" in columns[name].encodings
    for name in ("step", "timestamp", "value"):
        assert not columns[name].has_dictionary_page
    assert all(column.has_column_index and column.has_offset_index for column in columns.values())
    assert file.metadata.metadata[b"mlflow_bundle.schema"] == b"metrics/1"
    assert b"ARROW:schema" not in file.metadata.metadata
    assert all(
        not column.path_in_schema or file.schema.column(i).max_definition_level == 0
        for i, column in enumerate(columns.values())
    )


def test_the_index_declares_its_order() -> None:
    """The index says in its metadata by which columns it is sorted."""
    row = {"sha256": "0" * 64, "part": 0, "object": "o", "offset": 1, "length": 2, "codec": "raw", "raw_length": 2}
    spec = TABLES["index/1"]
    data = written(spec, pa.Table.from_pylist([row], schema=spec.schema))
    sorting = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).sorting_columns
    assert [column.column_index for column in sorting] == [0, 1]


def test_pages_have_checksums() -> None:
    """A flipped bit in the data of any column is noticed by the checksums of the pages alone."""
    table = realistic_series(2, 2, 200)
    data = bytearray(metrics_file(table))
    group = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        damaged = bytearray(data)
        damaged[
            column.data_page_offset + column.total_compressed_size // 2 if number > 2 else column.data_page_offset + 40
        ] ^= 1
        with pytest.raises(CorruptError):
            open_table(io.BytesIO(bytes(damaged)), METRICS, name="x").read()


def test_a_point_costs_little() -> None:
    """Histories as training writes them take at most eight bytes a point, all columns and the footer included."""
    table = realistic_series(40, 5, 1000)
    assert len(metrics_file(table)) / table.num_rows <= 8


def test_row_groups_end_with_owners() -> None:
    """A row group ends with an owner where one ends near its border, and is never larger than the limit."""
    sizes = [ROW_GROUP_ROWS - 100, 200, ROW_GROUP_ROWS // 2, ROW_GROUP_ROWS // 2 - 236, 300, 3]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rows = len(owner)
    step = np.arange(rows)
    columns = [pa.array(owner, pa.int32()), pa.array(["a"] * rows), pa.array(step), pa.array(step), pa.array(step / 2)]
    table = pa.Table.from_arrays(columns, schema=SERIES)
    for cut in (rows, 1000, ROW_GROUP_ROWS, 77_777):
        pieces = [table.slice(start, cut) for start in range(0, rows, cut)]
        data = metrics_file(*pieces)
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = set(np.cumsum(sizes).tolist())
        assert sum(groups) == rows
        assert set(np.cumsum(groups).tolist()) <= ends
        assert max(groups) <= ROW_GROUP_ROWS
        assert len(groups) == 3


def test_a_long_owner_is_cut_at_the_limit() -> None:
    """An owner larger than a row group fills whole row groups."""
    rows = 2 * ROW_GROUP_ROWS + 10
    columns = [pa.array(np.zeros(rows), pa.int32()), pa.array(["a"] * rows), *(pa.array(np.arange(rows)) for _ in range(2))]
    table = pa.Table.from_arrays([*columns, pa.array(np.zeros(rows))], schema=SERIES)
    file = pq.ParquetFile(io.BytesIO(metrics_file(table)))
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 10]


@pytest.mark.parametrize("size", [1000, ROW_GROUP_ROWS, 77_777])
def test_bytes_do_not_depend_on_how_rows_arrive(size: int) -> None:
    """The same rows in other tables, with dictionaries of any order or none, give the same object: nothing is stored twice."""
    table = metric_rows(realistic_series(150, 10, 100))
    expected = written(METRICS, table)
    cut = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    assert written(METRICS, *cut) == expected
    names = pa.array(["unused", *(f"metric_{k}" for k in range(9, -1, -1))])
    backwards = []
    for piece in cut:
        keys = pa.concat_arrays(piece.column("key").chunks)
        encoded = pa.DictionaryArray.from_arrays(pc.index_in(keys, value_set=names), names)
        backwards.append(piece.set_column(2, "key", encoded))
    assert written(METRICS, *backwards) == expected


def test_an_empty_table_is_readable() -> None:
    """An object without rows opens, and has none."""
    assert open_table(io.BytesIO(metrics_file()), METRICS, name="x").read().num_rows == 0


def test_what_is_no_parquet_is_corrupt() -> None:
    """Other bytes, and every cut of a table, raise ``CorruptError``."""
    data = metrics_file(realistic_series(1, 1, 10))
    for damaged in (b"", b"PAR1", b"x" * 1000, data[:-1], data[: len(data) // 2], data[8:] + b"PAR1"):
        with pytest.raises(CorruptError) as raised:
            open_table(io.BytesIO(damaged), METRICS, name="x").read()
        assert raised.value.code in {"E040", "E041"}


@pytest.mark.parametrize("name", METRICS.schema.names)
def test_a_table_without_a_column_is_refused(name: str) -> None:
    """A missing column, or one of another type, is named."""
    good = pq.read_table(io.BytesIO(metrics_file(realistic_series(1, 1, 10))))
    position = good.schema.get_field_index(name)
    for bad in (good.drop_columns([name]), good.set_column(position, name, pa.array([b"x"] * 10))):
        sink = io.BytesIO()
        pq.write_table(bad.replace_schema_metadata({"mlflow_bundle.schema": "metrics/1"}), sink)
        with pytest.raises(CorruptError, match=f"lacks the column '{name}'") as raised:
            open_table(sink, METRICS, name="x")
        assert raised.value.code == "E041"


@pytest.mark.parametrize("metadata", [{}, {"mlflow_bundle.schema": "metrics/2"}, {"mlflow_bundle.schema": "files/1"}])
def test_a_table_of_another_schema_is_refused(metadata: dict[str, str]) -> None:
    """The name of the schema in the metadata decides, also where the columns would fit."""
    table = pq.read_table(io.BytesIO(metrics_file(realistic_series(1, 1, 10)))).replace_schema_metadata(metadata or None)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(CorruptError, match="table schema"):
        open_table(sink, METRICS, name="x")


def test_additional_columns_are_allowed() -> None:
    """A later release may add columns."""
    table = pq.read_table(io.BytesIO(metrics_file(realistic_series(1, 1, 10))))
    more = table.append_column("new", pa.array([1] * 10)).replace_schema_metadata({"mlflow_bundle.schema": "metrics/1"})
    sink = io.BytesIO()
    pq.write_table(more, sink)
    assert open_table(sink, METRICS, name="x").read().num_rows == 10


def test_row_groups_of_long_texts_are_small() -> None:
    """A row group of spans ends before its texts exceed 16 MiB, wherever the rows were cut when they came; a text that is
    longer than that has a row group of its own."""
    mib = 2**20
    sizes = [mib // 2] * 100 + [20 * mib, 1, 15 * mib, mib, 1] + [10] * 5
    spec = TABLES["spans/1"]
    documents = [{f.name: None if f.nullable else "x" if f.type == pa.string() else 1 for f in spec.schema} for _ in sizes]
    table = pa.Table.from_pylist(documents, schema=spec.schema)
    contents = pa.array(["c" * size for size in sizes])
    table = table.set_column(spec.schema.get_field_index("content"), spec.schema.field("content"), contents)
    written = set()
    for cut in (7, 33, len(sizes)):
        sink = io.BytesIO()
        writer = TableWriter(sink, spec)
        for start in range(0, len(sizes), cut):
            writer.add(table.slice(start, cut))
        writer.close()
        written.add(sink.getvalue())
    (data,) = written
    file = pq.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert groups == [32, 32, 32, 4, 1, 2, 7]
    assert open_table(io.BytesIO(data), spec, name="x").read().equals(table)
