"""The row groups of a table object whose writer nobody vouches for: checked, and in bounded memory (spec/v1.md, 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_bundle._limits import MIB, Limits
from mlflow_bundle._table_specs import TableSpec
from mlflow_bundle._tables import open_table
from mlflow_bundle.errors import CorruptError, LimitError

__all__ = ["CheckedTable", "checked_table", "row_groups"]

_REPEATED: Final = pa.dictionary(pa.int32(), pa.string())
#: Columns of bytes in memory that are decoded at once: what a hostile one makes of few bytes is there as often.
_THREADS: Final = 2
#: Fewer bytes are decoded before a thread has started.
_LARGE: Final = MIB
Result = TypeVar("Result")


class CheckedTable:
    """An open table object of a specification: a file, or its bytes, whose columns are decoded by two threads.

    Raises:
        CorruptError: no Parquet file, another schema, a null where none may be, text that is not UTF-8.
        LimitError: a row group of too many rows or too long strings.
    """

    def __init__(self, file: Any, spec: TableSpec, *, name: str, limits: Limits) -> None:
        files = _readers(file) if isinstance(file, bytes) else [file]
        metadata = open_table(files[0], spec, name=name).metadata
        self._spec, self._name, self._limits = spec, name, limits
        #: As many as there are threads: each is for one of them.
        self._tables = _decoding(name, lambda: [_open(file, metadata) for file in files])
        groups = range(metadata.num_row_groups)
        #: How many rows each row group has.
        self.rows: list[int] = [metadata.row_group(group).num_rows for group in groups]
        #: Its key_value_metadata.
        self.notes: Mapping[bytes, bytes] = metadata.metadata or {}

    def read(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one row group, all columns of the specification or these; strings that repeat stay dictionary-encoded."""
        rows, limit = self.rows[group], self._limits.row_group_rows
        if not 0 <= rows <= limit:
            raise LimitError(f"{self._name} has a row group of {rows:,} rows, more than {limit:,}", code="E094")
        names = list(columns or self._spec.schema.names)
        self._refuse(group, names)
        if len(self._tables) == 1:
            return _decoding(self._name, lambda: self._decoded(map, group, names))
        # Threads of Python, which end here: one of Arrow's that lives longer aborts a process that ends.
        with ThreadPoolExecutor(len(self._tables)) as pool:
            return _decoding(self._name, lambda: self._decoded(pool.map, group, names))

    def _refuse(self, group: int, names: Sequence[str]) -> None:
        """Before anything is decoded: the footer must not announce more bytes than the limit."""
        described = self._tables[0].metadata.row_group(group)
        chunks = (described.column(number) for number in range(described.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)
        self._bound(size)

    def _bound(self, size: int) -> None:
        limit = self._limits.row_group_bytes
        if size > limit:
            raise LimitError(f"{self._name} has a row group of {size:,} bytes, more than {limit:,}", code="E094")

    def _decoded(self, each: Callable[..., Iterator[Any]], group: int, names: Sequence[str]) -> pa.Table:
        """The columns, decoded with dictionaries, and written out when their size is known. ``each`` is a ``map``."""
        shares = [names[number :: len(self._tables)] for number in range(len(self._tables))]
        parts = list(each(partial(_valid, group), self._tables, shares))
        found = {name: part.column(name) for part, share in zip(parts, shares, strict=True) for name in share}
        columns = [found[name] for name in names]
        self._bound(sum(each(_column_size, columns)))
        return pa.table(list(each(self._checked, names, columns)), names=list(names)).unify_dictionaries().combine_chunks()

    def _checked(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column with the type of its field."""
        field = self._spec.schema.field(name)
        inside = pa.types.is_map(field.type) and any(chunk.items.null_count for chunk in column.chunks)
        if inside or (column.null_count and not field.nullable):
            raise CorruptError(f"{self._name} has nulls in the column {name!r}, where none may be", code="E041")
        return column.cast(_REPEATED if name in self._spec.dictionary else field.type)


def _readers(data: bytes) -> list[pa.BufferReader]:
    """A file over the bytes for each thread that is worth its start."""
    return [pa.BufferReader(data) for _ in range(_THREADS if len(data) >= _LARGE else 1)]


def _valid(group: int, table: pq.ParquetFile, names: Sequence[str]) -> pa.Table:
    found = table.read_row_group(group, columns=names, use_threads=False)
    found.validate(full=True)
    return found


def _column_size(column: pa.ChunkedArray) -> int:
    return sum(map(_decoded_size, column.chunks))


def row_groups(
    file: Any, spec: TableSpec, *, name: str, limits: Limits, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """All columns of the specification, or these, a row group at a time; strings that repeat stay dictionary-encoded.

    Raises:
        CorruptError, LimitError: as ``CheckedTable``.
    """
    table = CheckedTable(file, spec, name=name, limits=limits)
    for group in range(len(table.rows)):
        yield table.read(group, columns)


def checked_table(data: bytes, spec: TableSpec, *, name: str, limits: Limits, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a table object with the types of its specification, all columns or these.

    Raises:
        CorruptError, LimitError: as ``CheckedTable``.
    """
    schema = spec.schema if columns is None else pa.schema([spec.schema.field(column) for column in columns])
    groups = row_groups(data, spec, name=name, limits=limits, columns=columns)
    return pa.concat_tables([schema.empty_table(), *(group.cast(schema) for group in groups)])


def _open(file: Any, metadata: Any) -> pq.ParquetFile:
    """A Parquet file whose strings all stay dictionary-encoded: repeating a long string costs a hostile one almost nothing."""
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    strings = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(file, metadata=metadata, pre_buffer=True, page_checksum_verification=True, read_dictionary=strings)


def _decoding(name: str, read: Callable[[], Result]) -> Result:
    """The result of ``read``; what pyarrow says of bytes that it cannot decode becomes a ``CorruptError``."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = " ".join(str(error).split())
        code = "E043" if "CRC" in text else "E040"
        raise CorruptError(f"{name} is not a readable Parquet file: {text}", code=code) from error


def _decoded_size(array: pa.Array) -> int:
    """The bytes that an array takes with all its strings written out."""
    if pa.types.is_dictionary(array.type):
        return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0) + 4 * len(array)
    if pa.types.is_map(array.type):
        return _decoded_size(array.keys) + _decoded_size(array.items) + 4 * len(array)
    return int(array.nbytes)
