"""The rows of a table object whose writer nobody vouches for: checked, and in bounded memory (spec/v1.md, 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_bundle._limits import Limits
from mlflow_bundle._table_specs import TableSpec
from mlflow_bundle._tables import open_table
from mlflow_bundle.errors import CorruptError, LimitError

__all__ = ["raw_digests", "row_groups"]

_DIGEST: Final = 64
_NIBBLES: Final = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


def row_groups(file: Any, spec: TableSpec, *, name: str, limits: Limits) -> Iterator[pa.Table]:
    """The columns of the specification, a row group at a time; repeated strings stay dictionary-encoded.

    Raises:
        CorruptError: no Parquet file, another schema, a null where none may be, text that is not UTF-8.
        LimitError: a row group of too many rows or too long strings.
    """
    open_table(file, spec, name=name)
    table = _decoding(name, lambda: _open(file))
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if not 0 <= rows <= limits.row_group_rows:
            raise LimitError(f"{name} has a row group of {rows:,} rows, more than {limits.row_group_rows:,}", code="E094")
        found = _decoding(name, lambda group=group: table.read_row_group(group, columns=spec.schema.names, use_threads=False))
        yield _decoding(name, lambda found=found: _checked(found, spec, name, limits))


def _open(file: Any) -> pq.ParquetFile:
    """A Parquet file whose strings all stay dictionary-encoded: repeating a long string costs a hostile one almost nothing."""
    metadata = pq.ParquetFile(file).metadata
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    strings = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(file, metadata=metadata, pre_buffer=True, page_checksum_verification=True, read_dictionary=strings)


def _decoding(name: str, read: Any) -> Any:
    """The result of ``read``; what pyarrow says of bytes that it cannot decode becomes a ``CorruptError``."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = " ".join(str(error).split())
        code = "E043" if "CRC" in text else "E040"
        raise CorruptError(f"{name} is not a readable Parquet file: {text}", code=code) from error


def _checked(found: pa.Table, spec: TableSpec, name: str, limits: Limits) -> pa.Table:
    found.validate(full=True)
    size = sum(_decoded_size(chunk) for field in spec.schema for chunk in found.column(field.name).chunks)
    if size > limits.row_group_bytes:
        raise LimitError(f"{name} has a row group of {size:,} bytes, more than {limits.row_group_bytes:,}", code="E094")
    columns = []
    for field in spec.schema:
        column = found.column(field.name)
        if column.null_count and not field.nullable:
            raise CorruptError(f"{name} has nulls in the column {field.name!r}, where none may be", code="E041")
        if pa.types.is_map(field.type) and any(chunk.items.null_count for chunk in column.chunks):
            raise CorruptError(f"{name} has nulls in the column {field.name!r}, where none may be", code="E041")
        wanted = pa.dictionary(pa.int32(), pa.string()) if field.name in spec.dictionary else field.type
        columns.append(column.cast(wanted))
    return pa.table(columns, names=spec.schema.names).unify_dictionaries().combine_chunks()


def _decoded_size(array: pa.Array) -> int:
    """The bytes that an array takes with all its strings written out."""
    if pa.types.is_dictionary(array.type):
        return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0) + 4 * len(array)
    if pa.types.is_map(array.type):
        return _decoded_size(array.keys) + _decoded_size(array.items) + 4 * len(array)
    return int(array.nbytes)


def raw_digests(column: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.bool_]]:
    """A column of SHA-256 in hex as 32 bytes each, and which of them are well written."""
    text = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(text.type):
        text = text.cast(pa.string())
    good = np.asarray(pc.fill_null(pc.equal(pc.binary_length(text), _DIGEST), False))
    if not good.all():
        text = pc.if_else(pa.array(good), text, "0" * _DIGEST)
    start = text.offset * 4
    first = int(np.frombuffer(text.buffers()[1], dtype=np.int32, count=1, offset=start)[0]) if len(text) else 0
    data = text.buffers()[2] if len(text) else b""
    letters = np.frombuffer(data, dtype=np.uint8, count=len(text) * _DIGEST, offset=first).reshape(-1, 2)
    nibbles = _NIBBLES[letters]
    good &= (nibbles.reshape(len(text), _DIGEST) != 255).all(axis=1) if len(text) else True
    raw = (nibbles[:, 0] << 4 | nibbles[:, 1]).astype(np.uint8)
    return np.frombuffer(raw.tobytes(), dtype="S32", count=len(text)), good
