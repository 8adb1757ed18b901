"""The digests of what belongs to an owner: its files, its plain rows, its series (spec/v1.md, 8.3 and 8.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._series import SeriesDigester, segments
from mlflow_bundle._table_specs import TableSpec

__all__ = [
    "NO_FILES",
    "NO_ROWS",
    "RowDigester",
    "digester_of",
    "files_digest",
    "numbered_rows",
]

#: As many rows are Python objects at a time.
_SLICE: Final = 2_000


def files_digest(files: Iterable[tuple[str, int, str | None, str]]) -> str:
    """The digest of one owner's file list: (path, size, SHA-256 or None, state) sorted by path bytes (spec/v1.md, 8.4)."""
    lines = [list(entry) for entry in files]
    return hashlib.sha256(json.dumps(lines, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


#: The digest of an owner without files.
NO_FILES: Final = files_digest(())
#: The digest of an owner without plain rows.
NO_ROWS: Final = hashlib.sha256().hexdigest()


class RowDigester:
    """The content digest of each owner's plain rows, from tables in the order of the owners (spec/v1.md, 8.3).

    Digest of an owner = SHA-256 over its rows, each the JSON array of its digested columns and a line feed. A null is null, an
    integer a number, a double the string of the 16 hex digits of its bits, most significant first. ``finished`` has
    (rows, SHA-256 in hex) of the owners that are complete, ``sizes`` how many bytes were digested for each.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._columns = spec.digested
        self._encoder = msgspec.json.Encoder()
        self._open: int | None = None
        self._hasher = hashlib.sha256()
        self._rows = self._size = 0
        self.finished: dict[int, tuple[int, str]] = {}
        self.sizes: dict[int, int] = {}

    def add(self, table: pa.Table) -> None:
        """Take the next rows: a table with the column ``owner`` and the digested ones, strings plain or as dictionaries."""
        for start in range(0, table.num_rows, _SLICE):
            part = table.slice(start, _SLICE)
            rows = list(zip(*(_json_values(part.column(name)) for name in self._columns), strict=True))
            for owner, first, last in segments(part.column("owner").to_numpy()):
                if owner != self._open:
                    self.finish()
                    self._open = owner
                lines = self._encoder.encode_lines(rows[first:last])
                self._hasher.update(lines)
                self._rows += last - first
                self._size += len(lines)

    def finish(self) -> None:
        """The last owner is complete: move it to ``finished``."""
        if self._open is not None:
            self.finished[self._open] = (self._rows, self._hasher.hexdigest())
            self.sizes[self._open] = self._size
        self._open, self._hasher, self._rows, self._size = None, hashlib.sha256(), 0, 0


def _json_values(column: pa.ChunkedArray) -> list[Any]:
    """A column as what stands for its values in the rows that are digested."""
    if pa.types.is_floating(column.type):
        bits = column.fill_null(0.0).to_numpy().astype(">f8").tobytes().hex()
        absent = column.is_null().to_pylist()
        return [None if null else bits[16 * row : 16 * row + 16] for row, null in enumerate(absent)]
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    values: list[Any] = []
    for chunk in column.chunks:
        names = [*chunk.dictionary.to_pylist(), None]
        values += [names[code] for code in pc.fill_null(chunk.indices, len(names) - 1).to_pylist()]
    return values


def digester_of(spec: TableSpec) -> SeriesDigester | RowDigester:
    """What digests the rows of a table that is no files table."""
    return RowDigester(spec) if spec.digested else SeriesDigester()


def numbered_rows(tables: Iterable[pa.Table], spec: TableSpec, owner_of: Callable[[str], int]) -> Iterator[pa.Table]:
    """Rows of an owned table whose owner ids are dictionary-encoded, with the column ``owner``, numbered by ``owner_of``, in
    place of the ids of owner and experiment."""
    for table in tables:
        ids = table.column(str(spec.owner)).unify_dictionaries().combine_chunks()
        codes = ids.indices.to_numpy(zero_copy_only=False)
        names = ids.dictionary
        numbers = np.full(len(names), -1, dtype=np.int32)
        for code, _, _ in segments(codes):  # the dictionary of a slice also names owners that are not in it
            numbers[code] = owner_of(names[code].as_py())
        owner = pa.array(numbers[codes] if len(codes) else codes.astype(np.int32), pa.int32())
        rest = [name for name in table.column_names if name not in ("experiment_id", spec.owner)]
        yield pa.table([owner, *(table.column(name) for name in rest)], names=["owner", *rest])
