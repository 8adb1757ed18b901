"""Checksums of tables: whether the rows that were read back are those that were written."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_bundle._table_specs import TableSpec

__all__ = ["Checksum"]


class Checksum:
    """Sums over the rows of a table, which come in any portions, repeated strings plain or as dictionaries: equal rows in the
    same order have equal ``sums``."""

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self.sums: defaultdict[tuple[str, int], int] = defaultdict(int)

    def add(self, table: pa.Table) -> None:
        """The next rows."""
        for field in self._spec.schema:
            for chunk in table.column(field.name).chunks:
                plain = field.name in self._spec.dictionary and not pa.types.is_dictionary(chunk.type)
                for part, data in enumerate(_parts(chunk.dictionary_encode() if plain else chunk)):
                    self.sums[field.name, part] = zlib.crc32(data, self.sums[field.name, part])


def _parts(array: pa.Array) -> Iterator[Any]:
    """What makes up the values: where there are nulls, and numbers or bytes, which nulls have none of."""
    yield np.asarray(array.is_null())
    if pa.types.is_dictionary(array.type):
        sums = [*(zlib.crc32(text.encode()) for text in array.dictionary.to_pylist()), 0]
        yield np.array(sums, np.uint32)[array.indices.fill_null(len(sums) - 1).to_numpy()]
    elif pa.types.is_string(array.type):
        array = array.fill_null("") if array.null_count else array
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        yield np.diff(ends)
        yield memoryview(data)[ends[0] : ends[-1]] if data is not None else b""
    else:
        yield array.fill_null(0).to_numpy()
