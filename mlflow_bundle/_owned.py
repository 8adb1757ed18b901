"""What owners own, on its way into the objects of its table: rows and files, owner after owner (spec/v1.md, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._owners import NO_FILES, NO_ROWS, RowDigester, digester_of, files_digest
from mlflow_bundle._redact import redact_bytes
from mlflow_bundle._series import NO_SERIES, segments
from mlflow_bundle._shards import Cutter, OwnerTable
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle.records import ObjectRef

__all__ = ["FileRow", "OwnedFiles", "OwnedRows", "numbered"]

_FILES: Final = TABLES["files/1"]
#: Rows of the files table that are collected before they are appended.
_FILE_BATCH: Final = 4_096


class FileRow(msgspec.Struct, frozen=True):
    """A file of an entity: a row of the files table. ``sha256`` is None when it could not be read."""

    path: str
    size: int
    sha256: str | None
    state: Literal["ok", "unreadable"] = "ok"
    stamp: str | None = None


def _may_hold_uris(texts: pa.StringArray) -> bool:
    """Whether ``://`` is in one of the texts, or at the border of two."""
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    slashes = np.flatnonzero(data == ord("/"))
    pairs = slashes[:-1][np.diff(slashes) == 1]
    return bool(np.any(data[pairs - 1] == ord(":")))


def numbered(table: pa.Table, first: int) -> pa.Table:
    """Rows whose column ``owner`` counts from ``first`` instead of from 0."""
    if not first:
        return table
    owner = table.column("owner").to_numpy() + np.int32(first)
    return table.set_column(table.column_names.index("owner"), "owner", pa.array(owner, pa.int32()))


class OwnedRows:
    """The rows of a table that has a column for its owner: metric series, or plain rows. ``ids`` and ``experiments`` are those
    of the owners, which are numbered in archive order; they may still grow."""

    def __init__(
        self, storage: Storage, spec: TableSpec, cutter: Cutter, ids: Sequence[str], experiments: Sequence[str]
    ) -> None:
        self._spec, self._cutter = spec, cutter
        self._ids, self._experiments = ids, experiments
        self._digester = digester_of(spec)
        self._nothing = NO_ROWS if spec.digested else NO_SERIES
        self._next = 0
        self.redacted = 0
        self.table = OwnerTable(storage, spec, cutter)

    @property
    def next_owner(self) -> int:
        """The first owner that is not ended yet."""
        return self._next

    def add(self, table: pa.Table) -> None:
        """The next rows, by ascending owner: the columns of the table with ``owner`` in place of the ids."""
        if table.num_rows == 0:
            return
        owner = table.column("owner").to_numpy()
        if owner[0] < self._next or owner[-1] >= len(self._ids) or np.any(np.diff(owner) < 0):
            raise ValueError(f"rows of {self._spec.name} of owners {owner[0]} to {owner[-1]} come out of order")
        table = self._without_secrets(table)
        self._digester.add(table)
        rows, written = self._with_ids(table), 0
        for number, start, _ in segments(owner):
            if self._end(number, rows, written, start):
                written = start
        self.table.append(rows.slice(written))

    def _without_secrets(self, table: pa.Table) -> pa.Table:
        """The same rows; credentials in the URIs of long texts are taken out."""
        name = self._spec.weighed
        if name is None:
            return table
        column = table.column(name)
        if not any(_may_hold_uris(chunk) for chunk in column.chunks):
            return table
        suspects = np.asarray(pc.match_substring(column, "://"))
        texts, changes = [], []
        for row, text in zip(np.flatnonzero(suspects).tolist(), column.filter(pa.array(suspects)).to_pylist(), strict=True):
            clean, found = redact_bytes(text.encode())
            self.redacted += found
            if found:
                changes.append(row)
                texts.append(clean.decode())
        if not changes:
            return table
        changed = np.zeros(table.num_rows, dtype=bool)
        changed[changes] = True
        cleaned = pc.replace_with_mask(column, pa.array(changed), pa.array(texts, column.type))
        return table.set_column(table.column_names.index(name), name, cleaned)

    def _with_ids(self, table: pa.Table) -> pa.Table:
        """The rows with the ids of owners and experiments as columns."""
        owner = table.column("owner").to_numpy()
        low, high = int(owner[0]), int(owner[-1]) + 1
        owners = pa.DictionaryArray.from_arrays(pa.array(owner - low, pa.int32()), pa.array(self._ids[low:high], pa.string()))
        experiments = self._experiments[low:high]
        names = sorted(set(experiments))
        numbers = {name: number for number, name in enumerate(names)}
        codes = np.array([numbers[name] for name in experiments], dtype=np.int32)
        columns = {
            "experiment_id": pa.DictionaryArray.from_arrays(pa.array(codes[owner - low]), pa.array(names, pa.string())),
            str(self._spec.owner): owners,
        }
        return pa.table({name: columns[name] if name in columns else table.column(name) for name in self._spec.schema.names})

    def _end(self, until: int, rows: pa.Table, start: int = 0, end: int = 0) -> bool:
        """End the owners below ``until``. When that ends an object, the rows from ``start`` to ``end`` come into it first; then
        True."""
        appended = False
        while self._next < until:
            count, digest = self._digester.finished.pop(self._next, (0, self._nothing))
            size = self._digester.sizes.pop(self._next, 0) if isinstance(self._digester, RowDigester) else count
            cut = self.table.will_cut(self._ids[self._next], size)
            if cut:
                self.table.append(rows.slice(start, end - start))
                appended = True
            self.table.end_owner(count, digest, cut=cut)
            self._next += 1
        return appended

    def end(self, until: int) -> None:
        """All rows of the owners below ``until`` were added."""
        if until > self._next:
            self._digester.finish()
            self._end(until, self._spec.schema.empty_table())

    def reuse(self, ref: ObjectRef, rows: Sequence[int], digests: Sequence[str]) -> None:
        """Take over an object that already holds just the rows of the next owners; "" is the digest of none."""
        self._cutter.size = 0
        self.table.reuse(ref, rows, [digest or self._nothing for digest in digests])
        self._next += len(rows)

    def close(self) -> None:
        """All rows of all owners were added."""
        self.end(len(self._ids))
        self.table.end()


class OwnedFiles:
    """The files of the owners of one kind. ``ids`` are those of the owners in archive order; they may still grow."""

    def __init__(self, storage: Storage, kind: str, cutter: Cutter, ids: Sequence[str]) -> None:
        self._kind, self._ids = kind, ids
        self._pending: list[tuple[str, FileRow]] = []
        self._next = 0
        self.bytes = 0
        self.table = OwnerTable(storage, _FILES, cutter)

    def add(self, files: Sequence[FileRow], owner: str | None = None) -> None:
        """The files of the next owner, or of ``owner``: those before it that were passed over have none."""
        number = self._next if owner is None else self._find(owner)
        self.end(number)
        identity = self._ids[number]
        ordered = sorted(files, key=lambda file: file.path.encode("utf-8", "surrogatepass"))
        self.bytes += sum(file.size for file in ordered if file.state == "ok")
        self._pending += [(identity, file) for file in ordered]
        cut = self.table.will_cut(identity, len(ordered))
        if cut or len(self._pending) >= _FILE_BATCH:
            self._append()
        digest = files_digest((f.path, f.size, f.sha256, f.state) for f in ordered) if ordered else NO_FILES
        self.table.end_owner(len(ordered), digest, cut=cut)
        self._next += 1

    def _find(self, owner: str) -> int:
        for number in range(self._next, len(self._ids)):
            if self._ids[number] == owner:
                return number
        raise ValueError(f"the files of {self._kind} {owner} do not come in the order of the records")

    def end(self, until: int) -> None:
        """The owners below ``until`` that were not added have no files."""
        if until > self._next:
            self.table.pass_over(until - self._next, NO_FILES)
            self._next = until

    def _append(self) -> None:
        """Give the rows that were collected to the table."""
        if not self._pending:
            return
        owners, files = zip(*self._pending, strict=True)
        columns = {
            "owner_kind": [self._kind] * len(files),
            "owner_id": owners,
            "path": [file.path for file in files],
            "size": [file.size for file in files],
            "sha256": [file.sha256 for file in files],
            "state": [file.state for file in files],
            "stamp": [file.stamp for file in files],
        }
        self.table.append(pa.table(columns, schema=_FILES.schema))
        self._pending = []

    def close(self) -> None:
        """All files of all owners were added."""
        self.end(len(self._ids))
        self._append()
        self.table.end()
