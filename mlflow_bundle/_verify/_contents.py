"""Every byte of packs and blobs, and every content in them: the last level of a verification (spec/v1.md, 11.1)."""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_bundle import _layout
from mlflow_bundle._limits import MIB, Limits
from mlflow_bundle._storage import Storage
from mlflow_bundle._storage._backend import storage_error
from mlflow_bundle._verify._findings import code_of
from mlflow_bundle._verify._packcheck import PackEntry, pack_entries
from mlflow_bundle._verify._table_facts import CODECS, Extents
from mlflow_bundle.errors import BundleError, CorruptError, LimitError
from mlflow_bundle.records import ObjectRef

__all__ = ["Job", "Note", "Outcome", "Part", "hash_object", "jobs"]

_CHUNK: Final = 4 * MIB


class Part(NamedTuple):
    """An extent: where a part of the content with this SHA-256 (hex) lies. ``whole``: it is all of that object."""

    sha256: str
    object: str
    offset: int
    length: int
    codec: str
    raw_length: int
    whole: bool


class Note(NamedTuple):
    """Something that is wrong, and the contents (hex) that it touches."""

    code: str
    message: str
    object: str
    contents: tuple[str, ...]


@dataclass
class Outcome:
    """What one job found."""

    notes: list[Note] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0

    def add(self, code: str, message: str, path: str, *contents: str) -> None:
        """Note something."""
        self.notes.append(Note(code, message, path, contents))


class Job(NamedTuple):
    """Objects to read once: a pack or a blob with all that lies in it, or all parts of one content. ``partly`` are contents
    (hex) of which other parts are lost already, so that nobody can check them as a whole."""

    ref: ObjectRef | None
    parts: tuple[Part, ...]
    partly: tuple[str, ...] = ()

    def run(self, storage: Storage, limits: Limits) -> Outcome:
        """Read and check. May run in any thread."""
        outcome = Outcome()
        try:
            if self.ref is None:
                _check_content(storage, self.parts, limits, outcome)
            elif self.ref.role == _layout.PACKS:
                _check_pack(storage, self.ref, self.parts, limits, outcome)
            else:
                _check_blob(storage, self.ref, self, limits, outcome)
        except BundleError as error:
            where = self.ref.path if self.ref else self.parts[0].object
            outcome.add(code_of(error, "E022"), error.message, where, *(part.sha256 for part in self.parts))
        return outcome


def jobs(refs: Sequence[ObjectRef], extents: Extents, paths: Sequence[str], subset: tuple[int, int] | None) -> Iterator[Job]:
    """What there is to do for some packs and blobs, and for all extents of the index.

    ``subset`` (k, n) keeps the k-th of n parts: by the digest of the object, or of the content where that has several parts.
    """
    sizes = {ref.path: ref.size for ref in refs}
    make = partial(_part, paths=paths, sizes=sizes)
    extents = extents[np.lexsort((extents["object"], extents["part"], extents["sha256"]))]
    readable = np.array([*(path in sizes for path in paths), False])[extents["object"]]
    split = np.isin(extents["sha256"], extents["sha256"][extents["part"] > 0])
    done: set[str] = set()
    partly: dict[str, list[str]] = defaultdict(list)
    for rows, there in _contents(extents[split], readable[split]):
        parts = tuple(make(row) for row in rows[there])
        digest = _digest(rows[0])
        if not np.array_equal(np.unique(rows["part"]), np.unique(rows["part"][there])):
            for part in parts:
                partly[part.object].append(digest)
            continue
        _, first = np.unique(rows["part"][there], return_index=True)
        parts = tuple(parts[number] for number in first)
        done.update(part.object for part in parts if part.whole)
        if _chosen(digest, subset):
            yield Job(None, parts)
    numbers = {path: number for number, path in enumerate(paths)}
    single = extents[readable & ~split]
    single = single[np.lexsort((single["offset"], single["object"]))]
    starts, ends = (np.searchsorted(single["object"], np.arange(len(paths)), side) for side in ("left", "right"))
    for ref in refs:
        number = numbers.get(ref.path)
        rows = single[:0] if number is None else single[starts[number] : ends[number]]
        if (ref.path not in done or len(rows)) and _chosen(_layout.object_hex(ref.path) or "", subset):
            yield Job(ref, tuple(make(row) for row in rows), tuple(partly.get(ref.path, ())))


def _contents(rows: Extents, there: npt.NDArray[np.bool_]) -> Iterator[tuple[Extents, npt.NDArray[np.bool_]]]:
    """The extents of each content, which are neighbours, and which of them can be read."""
    borders = np.flatnonzero(rows["sha256"][1:] != rows["sha256"][:-1]) + 1
    for part, readable in zip(np.split(rows, borders), np.split(there, borders), strict=True):
        if len(part):
            yield part, readable


def _digest(row: Any) -> str:
    return bytes(row["sha256"]).ljust(32, b"\0").hex()  # numpy strips zeros at the end


def _part(row: Any, *, paths: Sequence[str], sizes: dict[str, int]) -> Part:
    path, offset, length = paths[row["object"]], int(row["offset"]), int(row["length"])
    codec = CODECS[row["codec"]]
    whole = codec == "raw" and offset == 0 and length == sizes[path] and _layout.object_role(path) == _layout.BLOBS
    return Part(_digest(row), path, offset, length, codec, int(row["raw"]), whole)


def _chosen(sha256: str, subset: tuple[int, int] | None) -> bool:
    return subset is None or int(sha256[:16], 16) % subset[1] == subset[0] - 1


# -- blobs ---------------------------------------------------------------------------------------------------------------


def hash_object(storage: Storage, path: str, *hashers: Any) -> int:
    """Feed all bytes of an object to some hashers; how many there were.

    Raises:
        BundleError: it is not there or cannot be read, also where a disk fails.
    """
    total = 0
    try:
        with storage.open(path) as file:
            while chunk := file.read(_CHUNK):
                for hasher in hashers:
                    hasher.update(chunk)
                total += len(chunk)
    except OSError as error:
        raise storage_error(error, f"read {path}") from error
    return total


def _check_blob(storage: Storage, ref: ObjectRef, job: Job, limits: Limits, outcome: Outcome) -> None:
    hasher = hashlib.sha256()
    outcome.bytes += hash_object(storage, ref.path, hasher)
    outcome.objects += 1
    if hasher.hexdigest() != _layout.object_hex(ref.path):
        names = [*(part.sha256 for part in job.parts), *job.partly]
        _note_damage(ref.path, names, len(names), outcome)
        return
    for part in job.parts:
        if not part.whole:
            _check_content(storage, (part,), limits, outcome)
        elif part.sha256 != hasher.hexdigest():
            _note_content(part, outcome)


def _note_damage(path: str, damaged: Sequence[str], contents: int, outcome: Outcome) -> None:
    what = f"{len(damaged):,} of the {contents:,} contents in it are damaged" if contents else "the index places nothing in it"
    outcome.add("E022", f"{path} does not have the SHA-256 of its name: {what}", path, *damaged)


def _note_content(part: Part, outcome: Outcome) -> None:
    text = f"the content {part.sha256} that the index places in {part.object} is another one"
    outcome.add("E050", text, part.object, part.sha256)


def _check_content(storage: Storage, parts: Sequence[Part], limits: Limits, outcome: Outcome) -> None:
    """All parts of a content in order. A part that is a whole object is checked against its name too."""
    whole, sound = hashlib.sha256(), True
    for part in parts:
        try:
            sound &= _check_one(storage, part, limits, outcome, whole)
        except BundleError as error:
            outcome.add(code_of(error, "E022"), error.message, part.object, part.sha256)
            sound = False
    if sound and whole.hexdigest() != parts[0].sha256:
        _note_content(parts[0], outcome)


def _check_one(storage: Storage, part: Part, limits: Limits, outcome: Outcome, whole: Any) -> bool:
    """Feed one part of a content to the hasher of the whole; False, and a note, where the part is damaged by itself."""
    if not part.whole:
        stored = _stored(storage, part, limits)
        outcome.bytes += part.length
        return _feed(stored, part, limits, outcome, whole)
    own = hashlib.sha256()
    outcome.bytes += hash_object(storage, part.object, own, whole)
    outcome.objects += 1
    if own.hexdigest() == _layout.object_hex(part.object):
        return True
    _note_damage(part.object, [part.sha256], 1, outcome)
    return False


def _stored(storage: Storage, part: Part, limits: Limits) -> bytes:
    if part.length > limits.pack_bytes:
        raise LimitError(f"{part.object} holds an extent of {part.length:,} bytes", code="E094")
    return storage.read_range(part.object, part.offset, part.length)


def _feed(stored: bytes | memoryview, part: Part | PackEntry, limits: Limits, outcome: Outcome, *hashers: Any) -> bool:
    """Decode stored bytes into some hashers; False, and a note, where they do not decode."""
    try:
        for chunk in _decoded(stored, part, limits):
            for hasher in hashers:
                hasher.update(chunk)
    except BundleError as error:
        outcome.add(error.code, error.message, getattr(part, "object", ""), part.sha256)
        return False
    return True


def _decoded(stored: bytes | memoryview, part: Part | PackEntry, limits: Limits) -> Iterator[bytes | memoryview]:
    """The bytes of a part, a few MiB at a time.

    Raises:
        CorruptError: they do not decode, or to another length.
        LimitError: a deflated part that claims more than any pack holds.
    """
    if part.codec == "raw":
        yield stored
        return
    if part.raw_length > limits.pack_bytes:
        raise LimitError(f"the entry {part.sha256} claims {part.raw_length:,} bytes", code="E094")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, rest = 0, stored
    while not inflater.eof:
        try:
            chunk = inflater.decompress(rest, _CHUNK)
        except zlib.error as error:
            raise CorruptError(f"the entry {part.sha256} does not inflate: {error}", code="E052") from error
        total += len(chunk)
        if total > part.raw_length or not (chunk or inflater.eof):
            break
        yield chunk
        rest = inflater.unconsumed_tail
    if total != part.raw_length or not inflater.eof or inflater.unused_data:
        raise CorruptError(f"the entry {part.sha256} does not inflate to just {part.raw_length:,} bytes", code="E052")


# -- packs ---------------------------------------------------------------------------------------------------------------


def _check_pack(storage: Storage, ref: ObjectRef, parts: Sequence[Part], limits: Limits, outcome: Outcome) -> None:
    if ref.size > limits.pack_bytes:
        raise LimitError(f"{ref.path} has {ref.size:,} bytes, more than {limits.pack_bytes:,}", code="E094")
    data = storage.read(ref.path)
    outcome.objects, outcome.bytes = 1, len(data)
    if hashlib.sha256(data).hexdigest() != _layout.object_hex(ref.path):
        damaged = [part.sha256 for part in parts if not _holds(data, part, limits)]
        _note_damage(ref.path, damaged, len(parts), outcome)
        return
    agreed = _check_entries(data, ref, limits, outcome)
    for part in parts:
        entry = agreed.get(part.offset)
        if entry is None or (entry.sha256, entry.length, entry.codec, entry.raw_length) != (
            part.sha256,
            part.length,
            part.codec,
            part.raw_length,
        ):
            if agreed:
                text = f"the index and the central directory of {ref.path} disagree about the content {part.sha256}"
                outcome.add("E053", text, ref.path, part.sha256)
            _check_part(data, part, limits, outcome)


def _holds(data: bytes, part: Part, limits: Limits) -> bool:
    """Whether a damaged pack still has this content unharmed."""
    return not _check_part(data, part, limits, Outcome())


def _check_part(data: bytes, part: Part, limits: Limits, outcome: Outcome) -> list[Note]:
    hasher = hashlib.sha256()
    stored = memoryview(data)[part.offset : part.offset + part.length]
    if _feed(stored, part, limits, outcome, hasher) and hasher.hexdigest() != part.sha256:
        _note_content(part, outcome)
    return outcome.notes


def _check_entries(data: bytes, ref: ObjectRef, limits: Limits, outcome: Outcome) -> dict[int, PackEntry]:
    """The entries of a pack by the offsets of their data, each checked against its name and its CRC-32."""
    try:
        entries = pack_entries(data, name=ref.path, limits=limits)
    except BundleError as error:
        outcome.add(error.code, error.message, ref.path)
        return {}
    if len(entries) != ref.rows:
        outcome.add("E053", f"{ref.path} has {len(entries):,} entries where the snapshot says {ref.rows:,}", ref.path)
    for entry in entries:
        hasher, crc = hashlib.sha256(), _Crc()
        stored = memoryview(data)[entry.offset : entry.offset + entry.length]
        part = Part(entry.sha256, ref.path, entry.offset, entry.length, entry.codec, entry.raw_length, whole=False)
        if not _feed(stored, part, limits, outcome, hasher, crc):
            continue
        if hasher.hexdigest() != entry.sha256:
            _note_content(part, outcome)
        elif crc.value != entry.crc:
            outcome.add("E053", f"{ref.path} has the entry {entry.sha256} with another CRC-32", ref.path, entry.sha256)
    return {entry.offset: entry for entry in entries}


class _Crc:
    """CRC-32 with the interface of a hasher."""

    value = 0

    def update(self, data: bytes | memoryview) -> None:
        self.value = zlib.crc32(data, self.value)
