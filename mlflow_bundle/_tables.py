"""The Parquet tables of a bundle: schemas, write options, sort order, content digests (spec/v1.md, section 5).

A table role is a row of ``TABLES``. Everything here works on whole columns; the only Python loops are per owner and
per series, never per point.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_bundle import _layout
from mlflow_bundle.errors import CorruptError

__all__ = [
    "NO_FILES",
    "NO_SERIES",
    "TABLES",
    "OpenTable",
    "SeriesDigester",
    "TableSpec",
    "TableWriter",
    "as_series",
    "batches",
    "files_digest",
    "open_table",
    "owner_digests",
    "series_digests",
    "sort_series",
    "total_order",
]

ROW_GROUP_ROWS: Final = 131_072
#: A row group may end this many rows early, so that it ends with an owner.
_ROW_GROUP_SLACK: Final = ROW_GROUP_ROWS // 10
#: The columns that a metrics table shares with the series tables of sources and targets.
SERIES_COLUMNS: Final = ("key", "step", "timestamp", "value")
_SCHEMA_KEY: Final = b"mlflow_bundle.schema"

Codes = npt.NDArray[np.int64]


class TableSpec(msgspec.Struct, frozen=True):
    """How the tables of one role are written. ``owner`` is the column that row groups try not to cut."""

    role: str
    name: str
    schema: pa.Schema
    sorting: tuple[str, ...] = ()
    dictionary: tuple[str, ...] = ()
    encodings: Mapping[str, str] = MappingProxyType({})
    owner: str | None = None


def _required(*columns: tuple[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in columns]


_METRICS: Final = TableSpec(
    _layout.METRICS,
    "metrics/1",
    pa.schema(
        _required(
            ("experiment_id", pa.string()),
            ("run_id", pa.string()),
            ("key", pa.string()),
            ("step", pa.int64()),
            ("timestamp", pa.int64()),
            ("value", pa.float64()),
        )
    ),
    dictionary=("experiment_id", "run_id", "key"),
    encodings={"step": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
    owner="run_id",
)
_FILES: Final = TableSpec(
    _layout.FILES,
    "files/1",
    pa.schema(
        [
            *_required(
                ("owner_kind", pa.string()),
                ("owner_id", pa.string()),
                ("path", pa.string()),
                ("size", pa.int64()),
            ),
            pa.field("sha256", pa.string()),
            pa.field("state", pa.string(), nullable=False),
            pa.field("stamp", pa.string()),
        ]
    ),
    dictionary=("owner_kind", "owner_id", "path", "sha256", "state"),
    encodings={"size": "DELTA_BINARY_PACKED"},
    owner="owner_id",
)
_INDEX: Final = TableSpec(
    _layout.INDEX,
    "index/1",
    pa.schema(
        _required(
            ("sha256", pa.string()),
            ("part", pa.int32()),
            ("object", pa.string()),
            ("offset", pa.int64()),
            ("length", pa.int64()),
            ("codec", pa.string()),
            ("raw_length", pa.int64()),
        )
    ),
    sorting=("sha256", "part"),
    dictionary=("object", "codec"),
)
_STRINGS: Final = pa.map_(pa.string(), pa.string())
_LATEST: Final = pa.map_(pa.string(), pa.struct([("value", pa.float64()), ("timestamp", pa.int64()), ("step", pa.int64())]))
_RUNS_VIEW: Final = TableSpec(
    _layout.VIEWS,
    "runs_view/1",
    pa.schema(
        [
            *_required(("run_id", pa.string()), ("experiment_id", pa.string())),
            pa.field("experiment_name", pa.string()),
            pa.field("run_name", pa.string()),
            pa.field("user_id", pa.string()),
            pa.field("status", pa.string()),
            pa.field("start_time", pa.int64()),
            pa.field("end_time", pa.int64()),
            *_required(("lifecycle_stage", pa.string())),
            pa.field("artifact_uri", pa.string()),
            *_required(("params", _STRINGS), ("tags", _STRINGS), ("latest_metrics", _LATEST)),
            *_required(
                ("record_object", pa.string()),
                ("frame_offset", pa.int64()),
                ("frame_length", pa.int64()),
                ("record_digest", pa.string()),
                ("metric_rows", pa.int64()),
                ("metric_digest", pa.string()),
                ("file_rows", pa.int64()),
                ("file_digest", pa.string()),
            ),
            pa.field("metric_object", pa.string()),
            *_required(("metric_start", pa.int64())),
            pa.field("file_object", pa.string()),
            *_required(("file_start", pa.int64())),
        ]
    ),
    dictionary=(
        "experiment_id",
        "experiment_name",
        "user_id",
        "status",
        "lifecycle_stage",
        "record_object",
        "metric_object",
        "file_object",
    ),
)

#: Every table that a bundle may hold, by the schema name in its key_value_metadata.
TABLES: Final[Mapping[str, TableSpec]] = MappingProxyType({spec.name: spec for spec in (_METRICS, _FILES, _INDEX, _RUNS_VIEW)})


class TableWriter:
    """Writes one Parquet object of a role, row group by row group.

    ``sink`` is any binary file object; it is not closed. Rows must come in the order of the specification.
    """

    def __init__(self, sink: Any, spec: TableSpec) -> None:
        self.spec = spec
        self.rows = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        schema = _written_schema(spec)
        sorting = [pq.SortingColumn(schema.get_field_index(name)) for name in spec.sorting]
        self._writer = pq.ParquetWriter(
            sink,
            schema,
            version="2.6",
            compression="zstd",
            compression_level=3,
            use_dictionary=list(spec.dictionary),
            column_encoding=dict(spec.encodings) or None,
            write_page_index=True,
            write_page_checksum=True,
            sorting_columns=sorting or None,
            store_schema=False,
        )
        self._schema = schema

    def add(self, table: pa.Table) -> None:
        """Append rows, with or without dictionary encoding, whose columns have the names of the schema."""
        if table.num_rows == 0:
            return
        self.rows += table.num_rows
        self._pending.append(table)
        self._pending_rows += table.num_rows
        if self._pending_rows > ROW_GROUP_ROWS:
            self._drain(last=False)

    def _drain(self, *, last: bool) -> None:
        table = pa.concat_tables(self._pending).unify_dictionaries() if self._pending else None
        start = 0
        while table is not None and start < table.num_rows:
            rows = min(ROW_GROUP_ROWS, table.num_rows - start)
            if start + rows == table.num_rows and not last:
                break  # whose the next row is decides where the row group ends
            if start + rows < table.num_rows:
                rows -= self._slack(table.slice(start, rows + 1))
            self._write(table.slice(start, rows))
            start += rows
        rest = None if table is None or start >= table.num_rows else table.slice(start)
        self._pending = [] if rest is None else [rest]
        self._pending_rows = 0 if rest is None else rest.num_rows

    def _slack(self, table: pa.Table) -> int:
        """How many rows to leave to the next row group so that this one ends with an owner; ``table`` is one row longer."""
        if self.spec.owner is None:
            return 0
        owners = table.column(self.spec.owner)
        last = owners[table.num_rows - 1]
        tail = owners.slice(max(0, table.num_rows - 1 - _ROW_GROUP_SLACK), _ROW_GROUP_SLACK)
        different = np.flatnonzero(~np.asarray(pc.equal(pc.cast(tail, pa.string()), last.as_py())))
        if len(different) == 0:
            return 0
        return len(tail) - 1 - int(different[-1])

    def _write(self, table: pa.Table) -> None:
        columns = [_as_written(table.column(field.name), field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP_ROWS)

    def close(self) -> None:
        """Write what is left and the footer."""
        try:
            self._drain(last=True)
            self._writer.add_key_value_metadata({_SCHEMA_KEY: self.spec.name.encode()})
            self._writer.close()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Write nothing more: the sink is about to go."""
        self._pending.clear()
        self._writer.is_open = False  # else its finalizer would write into the closed sink, and complain


def _written_schema(spec: TableSpec) -> pa.Schema:
    """The schema in memory: repeated strings as dictionaries, which Parquet takes over without hashing them again."""
    repeated = pa.dictionary(pa.int32(), pa.string())
    fields = [f.with_type(repeated) if f.name in spec.dictionary else f for f in spec.schema]
    return pa.schema(fields)


def _as_written(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if not pa.types.is_dictionary(kind):
        return column if column.type == kind else column.cast(kind)
    array = pa.concat_arrays(column.chunks)
    array = _by_appearance(array) if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return array if array.type == kind else array.cast(kind)


def _by_appearance(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same values with the dictionary in the order of their first appearance, so that equal rows give equal bytes."""
    used = pc.unique(array.indices).drop_null()
    ranks = np.zeros(len(array.dictionary), dtype=np.int32)
    ranks[used.to_numpy()] = np.arange(len(used))
    return pa.DictionaryArray.from_arrays(pa.array(ranks).take(array.indices), array.dictionary.take(used))


class OpenTable:
    """An open Parquet object. Reading what is damaged raises ``CorruptError``.

    Without Arrow's threads: one that lets go of a Python buffer while the interpreter ends aborts the process.
    """

    def __init__(self, file: pq.ParquetFile, name: str) -> None:
        self._file = file
        self.name = name
        self.metadata = file.metadata
        self.num_row_groups: int = file.num_row_groups

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows."""
        with _decoding(self.name):
            return self._file.read(columns=list(columns) if columns else None, use_threads=False)

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one row group."""
        with _decoding(self.name):
            return self._file.read_row_group(group, columns=list(columns) if columns else None, use_threads=False)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """What pyarrow says of damaged bytes as ``CorruptError``; a failing disk, which has an error number, stays what it is."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptError(f"{name} is not a readable Parquet file: {error}", code="E040") from error


def open_table(file: Any, spec: TableSpec, *, name: str, dictionaries: bool = False) -> OpenTable:
    """Open a Parquet object and check that it has the schema of its role. ``dictionaries``: repeated strings stay encoded.

    Raises:
        CorruptError: it is no Parquet file, or one of another schema.
    """
    encoded = list(spec.dictionary) if dictionaries else None
    with _decoding(name):
        table = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True, read_dictionary=encoded)
        schema = table.schema_arrow
    written = (table.metadata.metadata or {}).get(_SCHEMA_KEY, b"").decode("utf-8", "replace")
    if written != spec.name:
        raise CorruptError(f"{name} has the table schema {written!r} where {spec.name!r} is expected", code="E041")
    for field in spec.schema:
        position = schema.get_field_index(field.name)
        if position < 0 or not _same_type(schema.field(position).type, field.type):
            raise CorruptError(f"{name} lacks the column {field.name!r} of type {field.type}", code="E041")
    return OpenTable(table, name)


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return _same_type(found.value_type, wanted)
    if pa.types.is_map(wanted):
        return bool(pa.types.is_map(found))
    return bool(found == wanted)


def total_order(values: npt.NDArray[np.float64]) -> Codes:
    """Integers that sort as IEEE 754 totalOrder sorts the doubles: -0.0 before 0.0, positive NaN last."""
    bits = np.ascontiguousarray(values).view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))


def _key_ranks(keys: pa.ChunkedArray | pa.Array) -> tuple[Codes, list[str]]:
    """Each key as its rank among the distinct keys by UTF-8 bytes, and those keys in that order."""
    encoded = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda i: names[i].encode("utf-8", "surrogatepass"))
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = np.arange(len(names))
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return (ranks[codes] if len(names) else codes.astype(np.int64)), [names[i] for i in order]


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
    return array


def sort_series(table: pa.Table) -> pa.Table:
    """A ``SERIES_SCHEMA`` table in archive order: owner, key bytes, step, timestamp, value in totalOrder.

    One pass over the columns when it is in order already.
    """
    if table.num_rows < 2:
        return table
    ranks, names = _key_ranks(table.column("key"))
    series = _column(table, "owner").astype(np.int64) * max(len(names), 1) + ranks
    columns = [series, _column(table, "step"), _column(table, "timestamp"), total_order(_column(table, "value"))]
    if _in_order(columns):
        return table
    return table.take(pa.array(np.lexsort(columns[::-1])))


def _in_order(columns: Sequence[Codes]) -> bool:
    """Whether the rows are in lexicographic order of the columns."""
    undecided = np.ones(len(columns[0]) - 1, dtype=bool)
    for column in columns:
        before, after = column[:-1], column[1:]
        if bool(np.any(undecided & (before > after))):
            return False
        undecided &= before == after
        if not undecided.any():
            return True
    return True


class SeriesDigester:
    """The content digest of each owner's metric series, from tables in archive order (spec/v1.md, 8.3).

    Digest of an owner = SHA-256 over the JSON list of its ``[key, number of points]``, a line feed, and the SHA-256 of its
    steps, of its timestamps (little-endian int64) and of its values (little-endian binary64).
    """

    def __init__(self) -> None:
        self._keys: list[list[Any]] = []
        self._open: int | None = None
        self._hashers = _new_hashers()
        self._rows = self._unhashed = 0
        self.finished: dict[int, tuple[int, str]] = {}

    def add(self, table: pa.Table) -> None:
        """Take the next rows, a table of ``SERIES_SCHEMA`` (keys may be dictionary-encoded)."""
        if table.num_rows == 0:
            return
        owner = _column(table, "owner")
        encoded = table.column("key").combine_chunks()
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        names, codes = encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)
        changes = np.flatnonzero((np.diff(owner) != 0) | (np.diff(codes) != 0)) + 1
        starts = np.concatenate(([0], changes))
        lengths = np.diff(np.concatenate((starts, [len(owner)])))
        series_owners = owner[starts].tolist()
        series_names = names.take(pa.array(codes[starts])).to_pylist()
        columns = [_column(table, name) for name in ("step", "timestamp", "value")]
        buffers = [np.ascontiguousarray(column).data.cast("B") for column in columns]
        start = 0
        for who, key, length in zip(series_owners, series_names, lengths.tolist(), strict=True):
            if who != self._open:
                self._hash(buffers, start, start := start + self._unhashed)
                self.finish()
                self._open = who
            if self._keys and self._keys[-1][0] == key:
                self._keys[-1][1] += length
            else:
                self._keys.append([key, length])
            self._unhashed += length
        self._hash(buffers, start, start + self._unhashed)

    def _hash(self, buffers: Sequence[memoryview], start: int, end: int) -> None:
        self._rows += end - start
        self._unhashed = 0
        for hasher, buffer in zip(self._hashers, buffers, strict=True):
            hasher.update(buffer[start * 8 : end * 8])

    def finish(self) -> None:
        """The last owner is complete: move it to ``finished`` as (rows, SHA-256 in hex)."""
        if self._open is not None:
            self.finished[self._open] = (self._rows, _series_digest(self._keys, [h.digest() for h in self._hashers]))
        self._keys, self._rows, self._hashers, self._open = [], 0, _new_hashers(), None


def _new_hashers() -> list[Any]:
    return [hashlib.sha256() for _ in range(3)]


def _series_digest(keys: Sequence[Sequence[Any]], columns: Sequence[bytes]) -> str:
    head = json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(head.encode() + b"\n" + b"".join(columns)).hexdigest()


#: The digest of an owner without metric points.
NO_SERIES: Final = _series_digest((), [h.digest() for h in _new_hashers()])


def series_digests(tables: Iterable[pa.Table], owners: int) -> list[tuple[int, str]]:
    """(rows, SHA-256 in hex) of each of ``owners`` owners, from sorted tables of ``SERIES_SCHEMA``."""
    digester = SeriesDigester()
    for table in tables:
        digester.add(table)
    digester.finish()
    return [digester.finished.get(owner, (0, NO_SERIES)) for owner in range(owners)]


def files_digest(files: Iterable[tuple[str, int, str | None, str]]) -> str:
    """The digest of one owner's file list: (path, size, SHA-256 or None, state) sorted by path bytes (spec/v1.md, 8.4)."""
    lines = [list(entry) for entry in files]
    return hashlib.sha256(json.dumps(lines, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


#: The digest of an owner without files.
NO_FILES: Final = files_digest(())


def batches(table: OpenTable, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of an open table, a row group at a time."""
    for group in range(table.num_row_groups):
        yield table.read_row_group(group, columns)


def as_series(tables: Iterable[pa.Table], owner_of: Callable[[str], int]) -> Iterator[pa.Table]:
    """Rows of the metrics table (run ids dictionary-encoded) as ``SERIES_SCHEMA`` tables, owners numbered by ``owner_of``."""
    for table in tables:
        runs = table.column("run_id").combine_chunks()
        codes = runs.indices.to_numpy(zero_copy_only=False)
        names = runs.dictionary
        numbers = np.full(len(names), -1, dtype=np.int32)
        for code in np.unique(codes).tolist():  # the dictionary of a slice also names runs that are not in it
            numbers[code] = owner_of(names[code].as_py())
        owner = pa.array(numbers[codes] if len(codes) else codes.astype(np.int32))
        yield pa.table([owner, *(table.column(n) for n in SERIES_COLUMNS)], names=["owner", *SERIES_COLUMNS])


def owner_digests(table: OpenTable, spec: TableSpec) -> Iterator[tuple[str, int, str]]:
    """(owner id, rows, digest in hex) of each owner in a metrics or files object, in the order of its rows.

    Raises:
        CorruptError: the rows of an owner are not together.
    """
    yield from (_metric_owners if spec is _METRICS else _file_owners)(table)


def _metric_owners(table: OpenTable) -> Iterator[tuple[str, int, str]]:
    numbers: dict[str, int] = {}
    digester = SeriesDigester()
    last = -1

    def done() -> Iterator[tuple[str, int, str]]:
        nonlocal last
        names = list(numbers)
        for owner, (rows, digest) in digester.finished.items():
            if owner <= last:
                raise CorruptError(f"the metric points of run {names[owner]} are not together", code="E042")
            last = owner
            yield names[owner], rows, digest
        digester.finished.clear()

    for series in as_series(batches(table), lambda run: numbers.setdefault(run, len(numbers))):
        digester.add(series)
        yield from done()
    digester.finish()
    yield from done()


def _file_owners(table: OpenTable) -> Iterator[tuple[str, int, str]]:
    owner: str | None = None
    files: list[tuple[str, int, str | None, str]] = []
    seen: set[str] = set()
    for batch in batches(table, ["owner_id", "path", "size", "sha256", "state"]):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if row[0] != owner:
                if owner is not None:
                    yield owner, len(files), files_digest(files)
                if row[0] in seen:
                    raise CorruptError(f"the files of run {row[0]} are not together", code="E042")
                owner, files = row[0], []
                seen.add(row[0])
            files.append(row[1:])
    if owner is not None:
        yield owner, len(files), files_digest(files)
