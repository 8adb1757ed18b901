"""What a pack keeps on local disk between its passes, so that memory stays flat."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._codec import LinesWriter, decode_frame
from mlflow_bundle._limits import Limits

__all__ = ["LATEST_SCHEMA", "LatestSpool", "LineSpool", "latest_points"]

LATEST_SCHEMA: Final = pa.schema(
    [
        ("owner", pa.int64()),
        ("key", pa.string()),
        ("value", pa.float64()),
        ("timestamp", pa.int64()),
        ("step", pa.int64()),
    ]
)


#: Its own bytes a spool reads whatever their size.
_UNLIMITED: Final = Limits(frame_bytes=2**62, frame_ratio=2**62)
#: The level of zstd for what is read once or twice and then gone.
_FAST: Final = 1


class LineSpool:
    """Record lines in a temporary file: written, then read as often as needed, one reader at a time."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="mlflow-bundle-")
        self._writer = LinesWriter(self._file, level=_FAST)
        self._complete = False

    def add(self, line: bytes) -> None:
        """Append a line without its line feed."""
        self._writer.add(line)

    def lines(self) -> Iterator[bytes]:
        """All lines in order. Nothing can be added afterwards."""
        if not self._complete:
            self._writer.close()
            self._complete = True
        for frame in self._writer.frames:
            self._file.seek(frame.offset)
            raw = decode_frame(self._file.read(frame.length), frame.raw, name="spool", limits=_UNLIMITED)
            yield from raw[:-1].split(b"\n")

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


class LatestSpool:
    """The latest point of each series, by ascending owner, in a temporary Arrow file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mlflow-bundle-")
        self._writer = pa.ipc.new_stream(self._file, LATEST_SCHEMA)
        self._reader: Iterator[pa.RecordBatch] | None = None
        self._held = LATEST_SCHEMA.empty_table()

    def add(self, table: pa.Table) -> None:
        """Append rows of ``LATEST_SCHEMA``."""
        self._writer.write_table(table)

    def until(self, owner: int) -> pa.Table:
        """The next rows whose owner is below ``owner``. Nothing can be added afterwards."""
        if self._reader is None:
            self._writer.close()
            self._file.seek(0)
            self._reader = iter(pa.ipc.open_stream(self._file))
        parts = [self._held]
        while parts[-1].num_rows == 0 or parts[-1].column("owner")[-1].as_py() < owner:
            batch = next(self._reader, None)
            if batch is None:
                break
            parts.append(pa.Table.from_batches([batch]))
        table = pa.concat_tables(parts)
        count = int(np.searchsorted(table.column("owner").to_numpy(), owner))
        self._held = table.slice(count)
        return table.slice(0, count)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def latest_points(table: pa.Table) -> pa.Table:
    """The latest point of each series of a sorted series table, by MLflow's rule: the greatest (step, timestamp, value),
    where a NaN counts as zero, and the last of equal ones. A series that goes on in the next table appears in both: apply the
    rule to those again."""
    if table.num_rows == 0:
        return LATEST_SCHEMA.empty_table()
    owner = table.column("owner").combine_chunks().to_numpy()
    keys = table.column("key").combine_chunks()
    if not pa.types.is_dictionary(keys.type):
        keys = keys.dictionary_encode()
    codes = keys.indices.to_numpy(zero_copy_only=False)
    ends = np.append(np.flatnonzero((np.diff(owner) != 0) | (np.diff(codes) != 0)), len(owner) - 1)
    step, stamp, value = (table.column(n).combine_chunks().to_numpy() for n in ("step", "timestamp", "value"))
    chosen = _greatest(ends, value, owner, codes, step, stamp)
    rows = table.take(pa.array(chosen))
    return pa.table(
        [pc.cast(rows.column("owner"), pa.int64()), *(_plain(rows.column(n)) for n in LATEST_SCHEMA.names[1:])],
        schema=LATEST_SCHEMA,
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _greatest(ends: npt.NDArray[np.int64], value: npt.NDArray[np.float64], *place: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The rows of the greatest values among those that tie with ``ends`` in all columns of ``place``, a NaN being zero. Rows
    are sorted by value, so that ``ends`` are these rows but where a NaN stands first or last."""
    changes = np.zeros(len(value) - 1, dtype=bool)
    for column in place:
        changes |= column[1:] != column[:-1]
    starts = np.append(0, np.flatnonzero(changes) + 1)
    first = starts[np.searchsorted(starts, ends, side="right") - 1]
    chosen = ends.copy()
    for number in np.flatnonzero((first < ends) & (np.isnan(value[first]) | np.isnan(value[ends]))).tolist():
        tied = value[first[number] : ends[number] + 1]
        chosen[number] -= np.argmax(np.where(np.isnan(tied), 0.0, tied)[::-1])
    return chosen
