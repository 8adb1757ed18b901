"""File contents, stored once each: small ones in ZIP packs, large ones as objects (spec/v1.md, section 5.3)."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._digests import hex_of
from mlflow_bundle._index import INDEX_SPEC, Digests, Extent, PackBuilder, digest_column, read_index
from mlflow_bundle._limits import KIB, MIB, Limits, Targets
from mlflow_bundle._storage import Staged, Storage
from mlflow_bundle._storage._ranges import RangeFile
from mlflow_bundle.errors import CorruptError, LimitError, NotFoundError
from mlflow_bundle.records import ObjectRef

__all__ = ["BlobReader", "BlobWriter", "KnownDigests"]

_CHUNK: Final = 4 * MIB
_SAMPLE: Final = 4 * KIB
_TAIL: Final = 100_000
#: An object, where contents lie in it, and whether it is a new one.
Stored = tuple[ObjectRef, list[Extent], bool]


class KnownDigests:
    """A set of SHA-256 digests (hex) in 64 bytes each, plus a small tail of new ones."""

    def __init__(self) -> None:
        self._sorted: Digests = np.empty(0, dtype="S64")
        self._tail: set[bytes] = set()

    def update(self, digests: Digests) -> None:
        """Add many."""
        self._sorted = np.unique(np.concatenate((self._sorted, digests)))

    def add(self, digest: str) -> None:
        """Add one."""
        self._tail.add(digest.encode())
        if len(self._tail) >= _TAIL:
            self.sorted()

    def sorted(self) -> Digests:
        """All of them in order."""
        if self._tail:
            self.update(np.array(list(self._tail), dtype="S64"))
            self._tail.clear()
        return self._sorted

    def __contains__(self, digest: str) -> bool:
        wanted = digest.encode()
        if wanted in self._tail:
            return True
        at = int(np.searchsorted(self._sorted, wanted))
        return at < len(self._sorted) and bytes(self._sorted[at]) == wanted


class BlobWriter:
    """Adds contents to a bundle. Contents that lie in the ``known`` objects, or that were added before, are not stored again.
    ``known`` are the packs, blobs and index parts to share: what the index says of other objects does not count. Objects are
    put in place by a thread of its own while the next contents are read; its error is raised by the next call that stores.

    After ``close``: ``objects`` are the packs and blobs and index parts that the snapshot needs besides those it shares.
    """

    def __init__(self, storage: Storage, targets: Targets, known: Sequence[ObjectRef], limits: Limits) -> None:
        self._storage = storage
        self._targets = targets
        self._known = KnownDigests()
        self._known.update(_stored_digests(storage, known, limits))
        self._pack: PackBuilder | None = None
        self._extents: list[Extent] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow-bundle-storing")
        #: At most one task at a time: more would hold more contents.
        self._storing: Future[Sequence[Stored]] | None = None
        self.objects: list[ObjectRef] = []
        self.new_objects = 0
        self.new_bytes = 0

    def has(self, sha256: str) -> bool:
        """Whether the content with this SHA-256 (hex) is stored already."""
        return sha256 in self._known

    def add_bytes(self, data: bytes) -> str:
        """Store a small content; its SHA-256 in hex."""
        sha256 = hex_of(data)
        if sha256 in self._known:
            return sha256
        if len(data) >= self._targets.blob_bytes:
            return self.add_stream(io.BytesIO(data), len(data))[0]
        if self._pack is None:
            self._pack = PackBuilder()
        self._pack.add(sha256, data, deflate=_shrinks(data))
        self._known.add(sha256)
        if self._pack.size >= self._targets.pack_bytes or len(self._pack.extents) >= self._targets.pack_entries:
            self._close_pack()
        return sha256

    def add_stream(self, content: BinaryIO, size: int) -> tuple[str, int]:
        """Store a content of about ``size`` bytes (-1: unknown); its SHA-256 in hex and its real size."""
        head = _read_up_to(content, self._targets.blob_bytes)
        if len(head) < self._targets.blob_bytes:
            return self.add_bytes(head), len(head)
        whole = hashlib.sha256()
        parts: list[tuple[Staged, int]] = []
        split = size > self._targets.split_bytes
        limit = self._targets.part_bytes if split else None
        try:
            total = 0
            chunk: bytes = head
            while chunk:
                staged = self._storage.stage()
                parts.append((staged, 0))
                written = 0
                while chunk:
                    whole.update(chunk) if split else None
                    staged.write(chunk)
                    written += len(chunk)
                    room = _CHUNK if limit is None else min(_CHUNK, limit - written)
                    chunk = content.read(room) if room > 0 else b""
                staged.finish()
                parts[-1] = (staged, written)
                total += written
                chunk = content.read(_CHUNK) if limit is not None else b""
            sha256 = whole.hexdigest() if split else parts[0][0].sha256
            if not self.has(sha256):
                self._store(partial(_put_parts, self._storage, sha256, tuple(parts)))
                parts.clear()  # they are the thread's now
                self._known.add(sha256)
            return sha256, total
        finally:
            for staged, _ in parts:
                staged.__exit__(None, None, None)

    def _store(self, put: Callable[[], Sequence[Stored]]) -> None:
        """Let the thread put objects in place, when it has done so with those before."""
        self._settle()
        self._storing = self._thread.submit(put)

    def _settle(self) -> None:
        """Wait until what was handed to the thread is in place."""
        storing, self._storing = self._storing, None
        for ref, extents, new in storing.result() if storing else ():
            self.objects.append(ref)
            self._extents += extents
            self.new_objects += new
            self.new_bytes += ref.size if new else 0

    def _close_pack(self) -> None:
        if (pack := self._pack) is not None:
            self._store(lambda: [pack.put(self._storage)])
            self._pack = None

    def discard(self) -> None:
        """Forget the pack that is not stored yet, and wait for the thread."""
        if self._pack is not None:
            self._pack.discard()
        self._thread.shutdown()

    def close(self) -> list[Extent]:
        """Store the last pack. The extents of all contents that were added, sorted as the index is."""
        self._close_pack()
        self._settle()
        self._thread.shutdown()
        return sorted(self._extents)


def _put_parts(storage: Storage, sha256: str, parts: Sequence[tuple[Staged, int]]) -> list[Stored]:
    """Put the parts of a large content in place; in any case, nothing of them stays staged."""
    try:
        stored = []
        for number, (staged, length) in enumerate(parts):
            path = _layout.object_path(_layout.BLOBS, staged.sha256)
            new = storage.put(staged, path)
            ref = ObjectRef(role=_layout.BLOBS, path=path, size=length, rows=1)
            stored.append((ref, [Extent(sha256, number, path, 0, length, "raw", length)], new))
        return stored
    finally:
        for staged, _ in parts:
            staged.discard()


def _stored_digests(storage: Storage, known: Sequence[ObjectRef], limits: Limits) -> Digests:
    """The contents that the index parts among some objects place wholly in the others."""
    paths = pa.array([ref.path for ref in known], pa.string())
    stored, lost = [np.empty(0, dtype="S64")], [np.empty(0, dtype="S64")]
    for ref in known:
        if ref.role == _layout.INDEX:
            table = read_index(storage, ref, limits)
            there = pc.is_in(table.column("object"), value_set=paths)
            stored.append(digest_column(table.filter(there)))
            lost.append(digest_column(table.filter(pc.invert(there))))
    return np.setdiff1d(np.concatenate(stored), np.concatenate(lost))


def _shrinks(data: bytes) -> bool:
    """Whether DEFLATE is worth it: a sample from the middle loses a tenth of its size."""
    if len(data) < 128:
        return False
    start = max(0, (len(data) - _SAMPLE) // 2)
    sample = data[start : start + _SAMPLE]
    return len(zlib.compress(sample, 1)) < 0.9 * len(sample)


def _read_up_to(content: BinaryIO, size: int) -> bytes:
    """The next ``size`` bytes, or all that is left."""
    chunks, missing = [], size
    while missing and (chunk := content.read(missing)):
        chunks.append(chunk)
        missing -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class BlobReader:
    """Opens contents by their SHA-256, through the index parts of a snapshot. Every content is checked while it is read.

    ``rebuilt`` gives what is to be known beside these parts."""

    def __init__(
        self,
        storage: Storage,
        index: Sequence[ObjectRef],
        limits: Limits,
        *,
        rebuilt: Callable[[], Sequence[pa.Table]] = tuple,
    ) -> None:
        self._storage = storage
        self._limits = limits
        self._index = index
        self._rebuilt = rebuilt
        self._table: pa.Table | None = None
        self._digests: Digests | None = None

    def _load(self) -> tuple[pa.Table, Digests]:
        if self._table is None or self._digests is None:
            tables = [*(read_index(self._storage, ref, self._limits) for ref in self._index), *self._rebuilt()]
            table = pa.concat_tables(tables) if tables else INDEX_SPEC.schema.empty_table()
            table = table.sort_by([("sha256", "ascending"), ("part", "ascending"), ("object", "ascending")])
            self._table, self._digests = table, digest_column(table)
        return self._table, self._digests

    def extents(self, sha256: str) -> list[Extent]:
        """The parts of a content in order.

        Raises:
            NotFoundError: the index does not know it.
        """
        table, digests = self._load()
        wanted = sha256.encode()
        start, end = np.searchsorted(digests, wanted, "left"), np.searchsorted(digests, wanted, "right")
        if start == end:
            raise NotFoundError(f"no content {sha256} in this snapshot", code="content-not-found")
        rows = [Extent(**row) for row in table.slice(int(start), int(end - start)).to_pylist()]
        parts: dict[int, Extent] = {}
        for row in rows:
            parts.setdefault(row.part, row)
        if sorted(parts) != list(range(len(parts))):
            raise CorruptError(f"the index lists the parts {sorted(parts)} of content {sha256}", code="E051")
        return [parts[number] for number in range(len(parts))]

    def size(self, sha256: str) -> int:
        """The size of a content in bytes."""
        return sum(extent.raw_length for extent in self.extents(sha256))

    @contextmanager
    def open(self, sha256: str) -> Iterator[BinaryIO]:
        """A content as a stream. Before its last bytes are given, ``CorruptError`` is raised when its SHA-256 is another."""
        extents = self._usable(sha256)
        stream = _Checked(self._chunks(extents), sha256, sum(extent.raw_length for extent in extents))
        with io.BufferedReader(stream, buffer_size=MIB) as reader:
            yield reader

    def seekable(self, sha256: str) -> BinaryIO:
        """A content as a file that can be read from anywhere: only what is read is fetched. Reading all of it in order, from
        the beginning to the end, raises ``CorruptError`` when its SHA-256 is another; parts of it cannot be checked."""
        return cast("BinaryIO", _Seekable(self._usable(sha256), sha256, self._part))

    def _usable(self, sha256: str) -> list[Extent]:
        """The parts of a content, where they lie at places that can be."""
        extents = self.extents(sha256)
        for extent in extents:
            if _layout.object_hex(extent.object) is None:
                raise CorruptError(f"the index names {extent.object!r}, which is no object", code="E021")
            if min(extent.offset, extent.length, extent.raw_length) < 0:
                raise CorruptError(f"the index places content {sha256} at a negative place", code="E051")
            if extent.codec not in ("deflate", "raw"):
                raise CorruptError(f"content {sha256} has the unknown codec {extent.codec!r}", code="E051")
            if extent.codec == "raw" and extent.length != extent.raw_length:
                raise CorruptError(f"the index gives content {sha256} two lengths", code="E051")
        return extents

    def _part(self, extent: Extent, start: int, length: int) -> bytes:
        """A range of an extent, or all of one that is compressed."""
        if extent.codec == "deflate":
            data = self._inflate(extent)
        else:
            data = self._storage.read_range(extent.object, extent.offset + start, length)
        self._storage.check_unchanged()
        return data

    def _chunks(self, extents: Sequence[Extent]) -> Iterator[bytes]:
        for extent in extents:
            if extent.codec == "deflate":
                yield self._inflate(extent)
            else:
                yield from self._raw(extent)

    def _raw(self, extent: Extent) -> Iterator[bytes]:
        if extent.length <= _CHUNK:
            yield self._storage.read_range(extent.object, extent.offset, extent.length)
            return
        with self._storage.open(extent.object) as file:
            file.seek(extent.offset)
            missing = extent.length
            while missing:
                chunk = file.read(min(_CHUNK, missing))
                if not chunk:
                    raise CorruptError(f"{extent.object} ends too early", code="E022")
                missing -= len(chunk)
                yield chunk

    def _inflate(self, extent: Extent) -> bytes:
        if max(extent.length, extent.raw_length) > self._limits.pack_bytes:
            raise LimitError(f"{extent.object} holds an entry that claims {extent.raw_length:,} bytes", code="E094")
        stored = self._storage.read_range(extent.object, extent.offset, extent.length)
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, extent.raw_length + 1)
        except zlib.error as error:
            raise CorruptError(f"{extent.object} holds a damaged entry: {error}", code="E052") from error
        if len(data) != extent.raw_length:
            raise CorruptError(f"{extent.object} holds an entry of the wrong length", code="E052")
        return data


class _Seekable(RangeFile):
    """A file over the parts of a content, which hashes what is read as long as that is read in order."""

    def __init__(self, extents: Sequence[Extent], sha256: str, fetch: Callable[[Extent, int, int], bytes]) -> None:
        self._ends = np.cumsum([extent.raw_length for extent in extents])
        self.size = int(self._ends[-1]) if extents else 0
        super().__init__(self._range, self.size)
        self._extents, self._expected, self._fetch_part = extents, sha256, fetch
        self._inflated: tuple[int, bytes] | None = None
        self._hasher, self._hashed = hashlib.sha256(), 0

    def _range(self, start: int, length: int) -> bytes:
        found = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            extent = self._extents[number]
            inside = start - (int(self._ends[number]) - extent.raw_length)
            wanted = min(length, extent.raw_length - inside)
            found.append(self._of_part(number, extent, inside, wanted))
            start, length, number = start + wanted, length - wanted, number + 1
        return found[0] if len(found) == 1 else b"".join(found)

    def _of_part(self, number: int, extent: Extent, start: int, length: int) -> bytes:
        if extent.codec != "deflate":
            return self._fetch_part(extent, start, length)
        if self._inflated is None or self._inflated[0] != number:
            self._inflated = number, self._fetch_part(extent, start, length)
        return self._inflated[1][start : start + length]

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        data = super().read(size)
        if at == self._hashed:
            self._hasher.update(data)
            self._hashed += len(data)
            if self._hashed == self.size and self._hasher.hexdigest() != self._expected:
                raise CorruptError(f"content {self._expected} does not have that SHA-256", code="E050")
        return data

    read1 = read


class _Checked(io.RawIOBase):
    """A read-only stream over chunks of ``size`` bytes that compares the SHA-256 of all before it gives the last ones: who
    knows the size may never ask for more."""

    def __init__(self, chunks: Iterator[bytes], sha256: str, size: int) -> None:
        super().__init__()
        self._chunks = chunks
        self._expected = sha256
        self._hasher = hashlib.sha256()
        self._missing = size
        self._rest = memoryview(b"")
        self._done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest and not self._done:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._done = True
            else:
                self._hasher.update(chunk)
                self._missing -= len(chunk)
            if (self._done or self._missing <= 0) and self._hasher.hexdigest() != self._expected:
                raise CorruptError(f"content {self._expected} does not have that SHA-256", code="E050")
            self._rest = memoryview(chunk or b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
