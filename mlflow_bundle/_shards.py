"""The objects of one role, cut by content so that neighbours of a change keep their borders (spec/v1.md, 7.2)."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

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

    def digest(self, first: int, last: int) -> str:
        """The content digest of an object that holds the owners ``first`` to ``last``: over the digests of those with rows."""
        with_rows = (self.digests[i] for i in range(first, last + 1) if self.rows[i])
        return "sha256:" + hashlib.sha256("".join(with_rows).encode()).hexdigest()


class OwnerTable:
    """Writes the table of a role for owners that come in archive order, object by object.

    Rows are appended, then each owner is ended with its number of rows and its digest; that may end the object. Every
    object is read back from its staging file before it is put in place. ``refs`` and ``owners`` are complete after ``close``.
    """

    def __init__(self, storage: Storage, spec: TableSpec, cutter: Cutter, *, largest: int = DEFAULT_LIMITS.table_bytes) -> None:
        self._storage = storage
        self._spec = spec
        self._cutter = cutter
        self._largest = largest
        self._staged: Staged | None = None
        self._writer: TableWriter | None = None
        self._checksum = Checksum(spec)
        #: Encodes rows while the caller prepares the next ones.
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
            self._close_object()

    def pass_over(self, owners: int, digest: str) -> None:
        """The next owners have no rows; ``digest`` is that of nothing. They end no object."""
        for _ in range(owners):
            self.end_owner(0, digest, cut=False)

    def reuse(self, ref: ObjectRef, rows: Sequence[int], digests: Sequence[str]) -> None:
        """Take over an object that already holds just the next owners."""
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

    def _close_object(self) -> None:
        last = len(self.owners.rows) - 1
        if self._writer is None or self._staged is None:
            return
        self._settle()
        with self._staged as staged:
            self._writer.close()
            staged.finish()
            if staged.size > self._largest:
                raise LimitError(
                    f"an object of the role {self._spec.role!r} would have {staged.size:,} bytes, more than readers accept: "
                    "one entity has more rows than an object holds; nothing was committed",
                    code="E094",
                )
            path = _layout.object_path(self._spec.role, staged.sha256)
            self._self_check(staged, path)
            new = self._storage.put(staged, path)
            content = self.owners.digest(self._first, last)
            self.refs.append(ObjectRef(role=self._spec.role, path=path, size=staged.size, rows=self._rows, content=content))
            self.new_objects += new
            self.new_bytes += staged.size if new else 0
        for i in range(self._first, last + 1):
            self.owners.objects[i] = path if self.owners.rows[i] else None
            self.owners.starts[i] = self.owners.starts[i] if self.owners.rows[i] else 0
        self._first, self._rows = last + 1, 0
        self._writer = self._staged = None

    def _self_check(self, staged: Staged, path: str) -> None:
        """Decode what was encoded: a broken encoder or bad memory must not reach an archive."""
        with staged.reopen() as file:
            found = Checksum(self._spec)
            for rows in batches(open_table(file, self._spec, name=path, dictionaries=True)):
                found.add(rows)
        if self._writer is None or self._writer.rows != self._rows or found.sums != self._checksum.sums:
            raise StorageError(
                f"{path} does not read back as it was written", code="self-check", hint="check memory and disk, run again"
            )

    def close(self) -> None:
        """End the last object."""
        self._close_object()
        self._encoding.shutdown()

    def abort(self) -> None:
        """Discard what is not put in place yet."""
        self._encoding.shutdown(cancel_futures=True)
        if self._writer is not None:
            self._writer.abandon()
        if self._staged is not None:
            self._staged.__exit__(None, None, None)


def _encode(table: pa.Table, writer: TableWriter, checksum: Checksum) -> None:
    writer.add(table)
    checksum.add(table)
