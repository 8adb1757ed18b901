"""Records of one kind in archive order, kept on disk without what is read later, so that memory stays flat."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

from mlflow_bundle._codec import decode_record, encode
from mlflow_bundle.entities import Record
from mlflow_bundle.kinds import order_key
from mlflow_bundle.records import Problem

__all__ = ["Entry", "Index"]

BATCH: Final = 1_000


class Entry(NamedTuple):
    """Where a record stands and lies: in archive order, in the store, and in the temporary file."""

    time: int
    id: str
    experiment_id: str
    folder: str
    offset: int
    length: int


class Index:
    """The records of one kind. ``broken`` holds a problem for each that cannot be read, with its experiment and id."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.broken: list[tuple[str, str, Problem]] = []
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="mlflow-bundle-")
        self._size = 0
        self._entries: list[Entry] = []
        self._sorted = True
        self._folders: dict[str, str] = {}

    def add(self, record: Record, experiment_id: str, folder: str) -> None:
        """Keep a record. Its id must be new."""
        line = encode(record)
        self._file.seek(self._size)
        self._file.write(line)
        self._entries.append(Entry(*order_key(record), experiment_id, folder, self._size, len(line)))
        self._size += len(line)
        self._sorted = False
        self._folders[self._entries[-1].id] = folder

    def folder(self, identity: str) -> str | None:
        """The folder of the record with this id, if it was added."""
        return self._folders.get(identity)

    def batches(self, keep: Callable[[Entry], bool]) -> Iterator[list[tuple[Record, str]]]:
        """Records with their folders, in archive order, at most 1,000 at a time."""
        if not self._sorted:
            self._entries.sort()
            self._sorted = True
        batch: list[Entry] = []
        for entry in list(filter(keep, self._entries)):
            batch.append(entry)
            if len(batch) == BATCH:
                yield [self._read(entry) for entry in batch]
                batch = []
        if batch:
            yield [self._read(entry) for entry in batch]

    def _read(self, entry: Entry) -> tuple[Record, str]:
        self._file.seek(entry.offset)
        return decode_record(self._file.read(entry.length), self.kind, name="spool"), entry.folder

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()
