"""Writing and opening the Parquet tables of a bundle (spec/v1.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_bundle._limits import MIB
from mlflow_bundle._table_specs import TableSpec
from mlflow_bundle.errors import CorruptError

__all__ = ["ROW_GROUP_ROWS", "OpenTable", "TableWriter", "batches", "open_table"]

ROW_GROUP_ROWS: Final = 131_072
#: A row group may end this many rows early, so that it ends with an owner.
_ROW_GROUP_SLACK: Final = ROW_GROUP_ROWS // 10
#: A row group ends when the long texts in it have this many bytes.
_ROW_GROUP_BYTES: Final = 16 * MIB
_SCHEMA_KEY: Final = b"mlflow_bundle.schema"


class TableWriter:
    """Writes one Parquet object of a role, row group by row group.

    ``sink`` is any binary file object; it is not closed. Rows must come in the order of the specification. ``notes`` go into
    the key_value_metadata.
    """

    def __init__(self, sink: Any, spec: TableSpec, *, notes: Mapping[bytes, bytes] = MappingProxyType({})) -> None:
        self.spec = spec
        self._notes = notes
        self.rows = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0
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
        self._pending_bytes += int(_weights(table, self.spec).sum())
        if self._pending_rows > ROW_GROUP_ROWS or self._pending_bytes > _ROW_GROUP_BYTES:
            self._drain(last=False)

    def _drain(self, *, last: bool) -> None:
        if not self._pending:
            return
        table = pa.concat_tables(self._pending).unify_dictionaries()
        ends = np.cumsum(_weights(table, self.spec))
        start = 0
        while start < table.num_rows:
            rows = self._group_rows(table, ends, start)
            if start + rows == table.num_rows and not last:
                break  # what the next row is decides where the row group ends
            self._write(table.slice(start, rows))
            start += rows
        rest = table.slice(start)
        self._pending = [rest] if rest.num_rows else []
        self._pending_rows = rest.num_rows
        self._pending_bytes = int(_weights(rest, self.spec).sum())

    def _group_rows(self, table: pa.Table, ends: npt.NDArray[np.int64], start: int) -> int:
        """How many rows from ``start`` on are a row group. ``ends``: the bytes of long texts up to each row, if it has any."""
        rows: int = min(ROW_GROUP_ROWS, table.num_rows - start)
        if len(ends):
            before = int(ends[start - 1]) if start else 0
            fitting = int(np.searchsorted(ends, before + _ROW_GROUP_BYTES, side="right")) - start
            return min(rows, max(1, fitting))
        if start + rows < table.num_rows:
            rows -= self._slack(table.slice(start, rows + 1))
        return rows

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
            self._writer.add_key_value_metadata({_SCHEMA_KEY: self.spec.name.encode(), **self._notes})
            self._writer.close()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Write nothing more: the sink is about to go."""
        self._pending.clear()
        self._writer.is_open = False  # else its finalizer would write into the closed sink, and complain


def _weights(table: pa.Table, spec: TableSpec) -> npt.NDArray[np.int64]:
    """The bytes of the long text in each row; empty for a table that has none."""
    if spec.weighed is None:
        return np.empty(0, dtype=np.int64)
    return np.asarray(pc.binary_length(table.column(spec.weighed)), dtype=np.int64)


def _written_schema(spec: TableSpec) -> pa.Schema:
    """The schema in memory: repeated strings as dictionaries, which Parquet takes over without hashing them again."""
    repeated = pa.dictionary(pa.int32(), pa.string())
    fields = [f.with_type(repeated) if f.name in spec.dictionary else f for f in spec.schema]
    return pa.schema(fields)


def _as_written(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The column in one piece: where rows were cut when they came must not show in the pages."""
    array = pa.concat_arrays(column.chunks)
    if not pa.types.is_dictionary(kind):
        return array if array.type == kind else array.cast(kind)
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


def batches(table: OpenTable, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of an open table, a row group at a time."""
    for group in range(table.num_row_groups):
        yield table.read_row_group(group, columns)
