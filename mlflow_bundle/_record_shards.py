"""The records of one kind: kept on disk as they come, then written as objects, cut by content (spec/v1.md, 4 and 7.2)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap, zip_longest
from operator import eq
from typing import Any, NamedTuple

from mlflow_bundle import _layout
from mlflow_bundle._codec import Frame, LinesWriter, decode_record, encode, large_integer, read_lines
from mlflow_bundle._compact import Texts
from mlflow_bundle._digests import hex_of
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits, Targets
from mlflow_bundle._redact import redact_bytes
from mlflow_bundle._shards import Cutter
from mlflow_bundle._spool import LineSpool
from mlflow_bundle._storage import Storage
from mlflow_bundle.errors import LimitError, StorageError
from mlflow_bundle.records import Kind, ObjectRef, OrderKey, Record, order_key

__all__ = ["Place", "RecordShards", "Shard"]


class Place(NamedTuple):
    """Where a record lies: object, zstd frame (offset and length in bytes), and the SHA-256 of its line in hex."""

    object: str
    frame_offset: int
    frame_length: int
    digest: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A records object that was written. ``first`` is the number of its first record among those of the kind."""

    ref: ObjectRef
    is_new: bool
    first: int
    lines: Sequence[bytes]
    #: The frame of each line.
    frames: Sequence[Frame]

    def places(self, start: int, end: int) -> list[Place]:
        """Where its lines ``start`` to ``end`` lie."""
        both = zip(self.frames[start:end], self.lines[start:end], strict=True)
        return [Place(self.ref.path, frame.offset, frame.length, hex_of(line)) for frame, line in both]


class RecordShards:
    """The records of one kind in archive order. Ids, creation times and experiments stay in memory, lines go to disk."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.ids = Texts()
        #: The experiment of each owner of rows or files; "" where the kind has none.
        self.experiments: list[str] = []
        self._created = array("q")
        self._last: OrderKey | None = None
        self._spool: LineSpool | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, record: Any, line: bytes | None = None) -> tuple[Record, int]:
        """Take the next record, with its line where it was encoded already. Returns it as it is kept, and how many credentials
        were taken out of its URIs.

        Raises:
            LimitError: no archive can hold it: an integer is beyond 2^53 - 1, or its line is longer than readers accept.
        """
        name = self.kind.name
        line, found = redact_bytes(encode(record) if line is None else line)
        if found:
            record = decode_record(line, name, name="record")
        key = order_key(record)
        _check_line(name, key[1], line)
        if self._last is not None and key <= self._last:
            raise ValueError(f"{name} {key} does not come after {self._last}")
        self._last = key
        self._created.append(key[0])
        self.ids.append(key[1])
        if self.kind.tables:
            self.experiments.append(sys.intern(next(iter(self.kind.experiments(record)), "")))
        if self._spool is None:
            self._spool = LineSpool()
        self._spool.add(line)
        return record, found

    def write(self, storage: Storage, targets: Targets, limits: Limits) -> Iterator[Shard]:
        """Write the records as objects, one after the other."""
        cutter, lines = Cutter(targets.records_bytes), list[bytes]()
        for number, line in enumerate(self._spool.lines() if self._spool else ()):
            lines.append(line)
            if cutter.after(self.ids[number], len(line) + 1):
                yield self._put(storage, lines, number + 1 - len(lines), targets, limits)
                lines = []
        if lines:
            yield self._put(storage, lines, len(self) - len(lines), targets, limits)
        self.close()

    def _put(self, storage: Storage, lines: Sequence[bytes], first: int, targets: Targets, limits: Limits) -> Shard:
        with storage.stage() as staged:
            writer = LinesWriter(staged, frame_bytes=targets.frame_bytes)
            for line in lines:
                writer.add(line)
            writer.close()
            staged.finish()
            path = _layout.object_path(_layout.RECORDS, staged.sha256)
            with staged.reopen() as file:
                found = read_lines(file.read(), name=path, limits=limits)
                if not all(starmap(eq, zip_longest(found, lines))):
                    raise StorageError(f"{path} does not read back as it was written", code="self-check")
            is_new = storage.put(staged, path)
            ref = ObjectRef(
                role=_layout.RECORDS,
                kind=self.kind.name,
                path=path,
                size=staged.size,
                rows=writer.rows,
                content=writer.content,
                first=(self._created[first], self.ids[first]),
                last=(self._created[first + len(lines) - 1], self.ids[first + len(lines) - 1]),
            )
        frames = [frame for frame, rows in zip(writer.frames, writer.frame_rows, strict=True) for _ in range(rows)]
        return Shard(ref, is_new, first, lines, frames)

    def close(self) -> None:
        """Remove the temporary file."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def _check_line(kind: str, identity: str, line: bytes) -> None:
    """A record that no reader would accept must not be committed."""
    if (number := large_integer(line)) is not None:
        raise LimitError(
            f"{kind} {identity} has the number {number}, which is beyond the integers of the archive format (2^53 - 1;"
            " times are milliseconds since 1970)",
            code="number-too-large",
            hint="correct it at the source",
        )
    if len(line) > DEFAULT_LIMITS.line_bytes:
        raise LimitError(
            f"{kind} {identity} has {len(line):,} bytes of attributes, more than an archive holds "
            f"({DEFAULT_LIMITS.line_bytes:,})",
            code="record-too-large",
            hint="shorten its texts at the source",
        )
