"""The objects of one role, cut by content so that neighbours of a change keep their borders (spec/v1.md, 7.2)."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle._checksum import Checksum
from mlflow_bundle._compact import Digests
from mlflow_bundle._limits import DEFAULT_LIMITS
from mlflow_bundle._storage import Staged, Storage
from mlflow_bundle._table_specs import TableSpec
from mlflow_bundle._tables import TableWriter, batches, open_table
from mlflow_bundle.errors import LimitError, StorageError
from mlflow_bundle.records import ObjectRef

__all__ = ["Cutter", "OwnerRows", "OwnerTable"]

_RANGE: Final = 2**64


class Cutter:
    """Decides after each owner, from its id and size alone, whether the object ends.

    An owner of ``size`` ends the object with probability ``size / target`` by a hash of its id, never below a quarter of
    the target and always at four times the target. Owners of size zero never end one.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.size = 0

    def after(self, owner: str, size: int) -> bool:
        """Count an owner; True when it is the last of its object."""
        self.size += size
        if size and (self.size >= 4 * self.target or (4 * self.size >= self.target and self._chosen(owner, size))):
            self.size = 0
            return True
        return False

    def _chosen(self, owner: str, size: int) -> bool:
        draw = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8], "big")
        return draw * self.target < _RANGE * size


class OwnerRows:
    """For each owner: how many rows of a table it has, their digest (hex), and where they lie."""

    def __init__(self) -> None:
        self.rows = array("q")
        self.digests = Digests()
        self.objects: list[str | None] = []
        self.starts = array("q")

    def digest(self, first: int, end: int) -> str:
        """The content digest of an object with the owners from ``first`` up to ``end``: over the digests of those with rows."""
        with_rows = (self.digests[i] for i in range(first, end) if self.rows[i])
        return "sha256:" + hashlib.sha256("".join(with_rows).encode()).hexdigest()


class OwnerTable:
    """Writes the table of a role for owners that come in archive order, object by object.

    Rows are appended, then each owner is ended with its number of rows and its digest; that may end the object. Every
    object is read back from its staging file, by a thread of its own, before it is put in place. ``refs``, and where the rows
    of ``owners`` lie, are complete after ``close``.
    """

    def __init__(self, storage: Storage, spec: TableSpec, cutter: Cutter, *, largest: int = DEFAULT_LIMITS.table_bytes) -> None:
        self._storage = storage
        self._spec = spec
        self._cutter = cutter
        self._largest = largest
        self._staged: Staged | None = None
        self._writer: TableWriter | None = None
        self._checksum = Checksum(spec)
        self._sealed: _Sealed | None = None
        #: Encodes and checks rows while the caller prepares the next ones.
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="mlflow-bundle-encoding")
        self._appending: Future[None] | None = None
        self._first = 0
        self._rows = 0
        self.owners = OwnerRows()
        self.refs: list[ObjectRef] = []
        self.new_objects = 0
        self.new_bytes = 0

    def append(self, table: pa.Table) -> None:
        """Rows of the owners that are not ended yet, in order."""
        if table.num_rows == 0:
            return
        if self._writer is None:
            self._staged = self._storage.stage()
            self._writer = TableWriter(self._staged, self._spec)
            self._checksum = Checksum(self._spec)
        self._settle()
        self._appending = self._encoding.submit(_encode, table, self._writer, self._checksum)

    def _settle(self) -> None:
        """Wait until the rows so far are encoded."""
        appending, self._appending = self._appending, None
        if appending is not None:
            appending.result()

    def will_cut(self, owner: str, rows: int) -> bool:
        """End an owner for the cutter: True when its object ends with it. Follow with ``end_owner``."""
        return self._cutter.after(owner, rows)

    def end_owner(self, rows: int, digest: str, *, cut: bool) -> None:
        """All ``rows`` of the next owner are appended; ``cut`` as ``will_cut`` said."""
        self.owners.rows.append(rows)
        self.owners.digests.append(digest)
        self.owners.objects.append(None)
        self.owners.starts.append(self._rows)
        self._rows += rows
        if cut:
            self._end_object()

    def pass_over(self, owners: int, digest: str) -> None:
        """The next owners have no rows; ``digest`` is that of nothing. They end no object."""
        self.owners.rows.extend([0] * owners)
        self.owners.objects.extend([None] * owners)
        self.owners.starts.extend([self._rows] * owners)
        for _ in range(owners):
            self.owners.digests.append(digest)

    def reuse(self, ref: ObjectRef, rows: Sequence[int], digests: Sequence[str]) -> None:
        """Take over an object that already holds just the next owners."""
        self._put()
        start = 0
        for count, digest in zip(rows, digests, strict=True):
            self.owners.rows.append(count)
            self.owners.digests.append(digest)
            self.owners.objects.append(ref.path if count else None)
            self.owners.starts.append(start if count else 0)
            start += count
        self._first = len(self.owners.rows)
        self._rows = 0
        self.refs.append(ref)

    def _end_object(self) -> None:
        """All rows of an object are appended: it is closed and checked meanwhile, and put in place by the next ``_put``."""
        self._put()
        if self._writer is None or self._staged is None:
            return
        path = self._encoding.submit(_seal, self._appending, self._staged, self._writer, self._checksum, self._rows)
        self._sealed = _Sealed(self._staged, self._writer, path, self._first, len(self.owners.rows), self._rows)
        self._first, self._rows = len(self.owners.rows), 0
        self._writer = self._staged = self._appending = None

    def _put(self) -> None:
        """Put the object that was ended in place."""
        sealed, self._sealed = self._sealed, None
        if sealed is None:
            return
        with sealed.staged as staged:
            path = sealed.path.result()
            if staged.size > self._largest:
                raise LimitError(
                    f"an object of the role {self._spec.role!r} would have {staged.size:,} bytes, more than readers accept: "
                    "one entity has more rows than an object holds; nothing was committed",
                    code="E094",
                )
            new = self._storage.put(staged, path)
            content = self.owners.digest(sealed.first, sealed.end)
            self.refs.append(ObjectRef(role=self._spec.role, path=path, size=staged.size, rows=sealed.rows, content=content))
            self.new_objects += new
            self.new_bytes += staged.size if new else 0
        for number in range(sealed.first, sealed.end):
            if self.owners.rows[number]:
                self.owners.objects[number] = path
            else:
                self.owners.starts[number] = 0

    def end(self) -> None:
        """All rows of all owners were appended."""
        if self._writer is not None:
            self._end_object()

    def close(self) -> None:
        """Put the last object in place."""
        self.end()
        self._put()
        self._encoding.shutdown()

    def abort(self) -> None:
        """Discard what is not put in place yet."""
        self._encoding.shutdown(cancel_futures=True)
        for writer in (self._writer, self._sealed and self._sealed.writer):
            if writer is not None:
                writer.abandon()
        for staged in (self._staged, self._sealed and self._sealed.staged):
            if staged is not None:
                staged.__exit__(None, None, None)


class _Sealed(NamedTuple):
    """An object that is being closed and checked, with the owners from ``first`` up to ``end``."""

    staged: Staged
    writer: TableWriter
    path: Future[str]
    first: int
    end: int
    rows: int


def _encode(table: pa.Table, writer: TableWriter, checksum: Checksum) -> None:
    writer.add(table)
    checksum.add(table)


def _seal(appending: Future[None] | None, staged: Staged, writer: TableWriter, checksum: Checksum, rows: int) -> str:
    """Close an object and decode what was encoded: a broken encoder or bad memory must not reach an archive. Its path."""
    if appending is not None:
        appending.result()
    writer.close()
    staged.finish()
    path = _layout.object_path(writer.spec.role, staged.sha256)
    with staged.reopen() as file:
        found = Checksum(writer.spec)
        for part in batches(open_table(file, writer.spec, name=path, dictionaries=True)):
            found.add(part)
    if writer.rows != rows or found.sums != checksum.sums:
        raise StorageError(
            f"{path} does not read back as it was written", code="self-check", hint="check memory and disk, run again"
        )
    return path
