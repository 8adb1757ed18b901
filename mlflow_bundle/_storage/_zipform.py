"""The ZIP file that holds a bundle: the one way to write it, and a suspicious way to read it (spec/v1.md, section 3).

Written: entries STORED, ``mimetype`` first, snapshots last, the rest in path order; dates of 1980, no extra fields but
ZIP64 where a number needs it, no data descriptors, no comments, no gaps. The same files make the same bytes.
Read: any ZIP file of stored entries that lie apart from each other and inside the root.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import BinaryIO, Final, cast

from mlflow_bundle import _layout
from mlflow_bundle._storage._backend import MIB, checked_path
from mlflow_bundle._storage._ranges import RangeFile
from mlflow_bundle.errors import BundleNotFoundError, CorruptError, LimitError

__all__ = ["Archive", "Entry", "Part", "write_archive"]

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_SIZES64: Final = struct.Struct("<2H2Q")

#: Every ZIP file that is not empty begins so, also one whose end was lost.
_BEGINNING: Final = b"PK"

_MAX16: Final = 0xFFFF
_MAX32: Final = 0xFFFFFFFF
_UTF8: Final = 0x0800
_DESCRIPTOR: Final = 0x0008
_ENCRYPTED: Final = 0x2041
_FIRST_OF_1980: Final = 0x0021
#: Made on Unix (so that the mode below counts) by ZIP 4.5; a regular file that everybody may read.
_MADE_BY: Final = 0x032D
_MODE: Final = 0o100644 << 16

_TAIL: Final = 64 * 1024
#: More than this of central directory is not read: half a million entries.
_DIRECTORY_LIMIT: Final = 64 * MIB
_COPY: Final = MIB


@dataclass(frozen=True, slots=True)
class Part:
    """A file to be written: its name, bytes and CRC-32 as known before, and its content in chunks."""

    name: str
    size: int
    crc: int
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a ZIP file. ``offset`` is that of its local header; nothing of it lies at or behind ``limit``."""

    name: str
    size: int
    crc: int
    offset: int
    limit: int = 0


def write_archive(file: BinaryIO, parts: Iterable[Part]) -> None:
    """Write the ZIP file of these parts, whatever their order, in bounded memory.

    Raises:
        LimitError: so many parts that no reader would open the file; nothing was written.
        CorruptError: a part does not have the size that it was said to have.
    """
    mimetype = _layout.MIMETYPE.encode()
    first = Part(_layout.MIMETYPE_ENTRY, len(mimetype), zlib.crc32(mimetype), lambda: iter((mimetype,)))
    ordered = (first, *sorted(parts, key=lambda part: _order(part.name)))
    entries: list[Entry] = []
    offset = 0
    for part in ordered:
        entries.append(Entry(part.name, part.size, part.crc, offset))
        offset += len(_local_header(entries[-1])) + part.size
    directory = _directory(entries, offset)
    if len(directory) > _DIRECTORY_LIMIT:
        raise LimitError(
            f"one file cannot hold {len(ordered):,} files: its directory would have {len(directory):,} bytes",
            code="E094",
            hint="keep the bundle in a folder or a bucket",
        )
    for part, entry in zip(ordered, entries, strict=True):
        file.write(_local_header(entry))
        written = 0
        for chunk in part.chunks():
            file.write(chunk)
            written += len(chunk)
        if written != part.size:
            raise CorruptError(f"{part.name} has {written:,} bytes instead of {part.size:,}")
    file.write(directory)


class Archive:
    """A ZIP file with a bundle, over a function that fetches ranges. May be read from several threads.

    Raises:
        BundleNotFoundError: something that does not even begin as a ZIP file does.
        CorruptError: no whole ZIP file, or one that is not made of plain stored files that lie apart and inside.
        LimitError: a central directory of more than 64 MiB.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, url: str) -> None:
        self._fetch = fetch
        self._size = size
        self._url = url
        self._data_offsets: dict[str, int] = {}
        infos, self._directory_start = self._parse()
        #: Every file in it, the ``mimetype`` too, in the order of their offsets.
        self.entries = self._check(infos)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the central directory: names, sizes and CRCs of all that is in the file."""
        return hashlib.sha256(self._fetch(self._directory_start, self._size - self._directory_start)).hexdigest()

    @cached_property
    def files(self) -> dict[str, Entry]:
        """The files of the bundle: all but the ``mimetype``, which belongs to the ZIP file."""
        return {name: entry for name, entry in self.entries.items() if name != _layout.MIMETYPE_ENTRY}

    def read(self, entry: Entry) -> bytes:
        """A whole entry, in one request, checked against its CRC-32."""
        guess = _LOCAL.size + len(entry.name.encode()) + _SIZES64.size + entry.size
        head = self._fetch(entry.offset, min(guess, entry.limit - entry.offset))
        start = self._locate(entry, head) - entry.offset
        data = head[start : start + entry.size]
        if len(data) < entry.size:  # behind extra fields of another writer
            data += self._fetch(entry.offset + start + len(data), entry.size - len(data))
        if zlib.crc32(data) != entry.crc:
            raise CorruptError(f"{entry.name} in {self._url} does not have the CRC-32 of its entry")
        return data

    def read_range(self, entry: Entry, start: int, length: int) -> bytes:
        """Exactly these bytes of an entry."""
        if start + length > entry.size:
            raise CorruptError(f"{entry.name} in {self._url} ends at byte {entry.size:,}, before {start + length:,}")
        return self._fetch(self._locate(entry) + start, length)

    def open(self, entry: Entry) -> BinaryIO:
        """A window into the file for random access."""
        return cast(BinaryIO, RangeFile(partial(self.read_range, entry), entry.size))

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of an entry as they are, a MiB at a time."""
        with self.open(entry) as file:
            while chunk := file.read(_COPY):
                yield chunk

    def damage(self) -> Iterator[str]:
        """A sentence for each byte range outside the files that is not what ``write_archive`` would have written."""
        wanted = sorted(self.entries.values(), key=lambda entry: (entry.name != _layout.MIMETYPE_ENTRY, _order(entry.name)))
        if not wanted or wanted[0].name != _layout.MIMETYPE_ENTRY or self.read(wanted[0]) != _layout.MIMETYPE.encode():
            yield f"{self._url} does not begin with the mimetype {_layout.MIMETYPE}"
        offset = 0
        for entry in wanted:
            header = _local_header(entry)
            if entry.offset != offset:
                yield f"the entry {entry.name} of {self._url} lies at byte {entry.offset:,} instead of {offset:,}"
            elif self._fetch(offset, min(len(header), self._size - offset)) != header:
                yield f"the header of {entry.name} at byte {offset:,} of {self._url} is damaged or of another writer"
            offset += len(header) + entry.size
        directory = _directory(wanted, offset)
        if self._size != offset + len(directory) or self._fetch(offset, len(directory)) != directory:
            yield f"the central directory of {self._url} is damaged or of another writer"

    def _parse(self) -> tuple[list[zipfile.ZipInfo], int]:
        def fetch(start: int, length: int) -> bytes:
            if length > _DIRECTORY_LIMIT:
                raise LimitError(f"{self._url} has a central directory of {length:,} bytes")
            return self._fetch(start, length)

        file = cast(BinaryIO, RangeFile(fetch, self._size))
        file.seek(max(0, self._size - _TAIL))
        file.read(_TAIL)  # one request for the end of the file, and mostly for the whole directory
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            if self._fetch(0, min(len(_BEGINNING), self._size)) != _BEGINNING:
                raise BundleNotFoundError(
                    f"there is no bundle at {self._url}: the file is not a ZIP file",
                    hint="check the path; `mlflow-bundle pack` makes a new bundle where there is no file",
                ) from error
            raise CorruptError(f"{self._url} is not a whole ZIP file: {error}", code="not-a-zip") from error

    def _check(self, infos: Sequence[zipfile.ZipInfo]) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        limit = self._directory_start
        marked = any(info.orig_filename == _layout.MARKER for info in infos)
        for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
            name = self._checked_name(info, marked=marked)
            end = info.header_offset + _LOCAL.size + len(name.encode()) + info.file_size
            if info.header_offset < 0 or end > limit:
                raise CorruptError(f"the entry {name} of {self._url} overlaps another part of the file")
            if name in entries:
                raise CorruptError(f"{self._url} has two entries {name}")
            if not info.is_dir():
                entries[name] = Entry(name, info.file_size, info.CRC, info.header_offset, limit)
            limit = info.header_offset
        return dict(reversed(entries.items()))

    def _checked_name(self, info: zipfile.ZipInfo, *, marked: bool) -> str:
        name = info.orig_filename
        checked_path(name.removesuffix("/") if info.is_dir() else name)
        if info.flag_bits & _ENCRYPTED:
            raise CorruptError(f"the entry {name} of {self._url} is encrypted")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            or (info.is_dir() and info.file_size)
        ):
            if not marked:
                raise BundleNotFoundError(f"{self._url} is a ZIP file of something else, and no bundle")
            raise CorruptError(
                f"the entry {name} of {self._url} is compressed, and a bundle stores its files as they are",
                hint="unpack the ZIP file into a folder: that is a bundle too",
            )
        return name

    def _locate(self, entry: Entry, head: bytes | None = None) -> int:
        """Where the content of an entry begins, once its local header was seen to say what the directory says."""
        known = self._data_offsets.get(entry.name)
        if known is not None:
            return known
        name = entry.name.encode()
        if head is None:
            guess = _LOCAL.size + len(name) + _SIZES64.size
            head = self._fetch(entry.offset, min(guess, entry.limit - entry.offset))
        magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(head)
        start: int = entry.offset + _LOCAL.size + name_length + extra_length
        said = (magic, method, flags & _ENCRYPTED, head[_LOCAL.size : _LOCAL.size + name_length])
        agrees = said == (b"PK\3\4", zipfile.ZIP_STORED, 0, name) and start + entry.size <= entry.limit
        if agrees and size == packed == _MAX32 and extra_length >= _SIZES64.size:
            _, _, size, packed = _SIZES64.unpack_from(head, _LOCAL.size + name_length)
        later = flags & _DESCRIPTOR and (crc, packed, size) == (0, 0, 0)
        if not agrees or not (later or (crc, packed, size) == (entry.crc, entry.size, entry.size)):
            raise CorruptError(f"the local header of {entry.name} in {self._url} disagrees with the central directory")
        self._data_offsets[entry.name] = start
        return start


def _order(name: str) -> tuple[bool, str]:
    return name.startswith(f"{_layout.SNAPSHOTS}/"), name


def _local_header(entry: Entry) -> bytes:
    name, flags = _encoded(entry.name)
    big = entry.size >= _MAX32
    extra = _SIZES64.pack(1, 16, entry.size, entry.size) if big else b""
    size = _MAX32 if big else entry.size
    version = 45 if big else 10
    header = (b"PK\3\4", version, flags, 0, 0, _FIRST_OF_1980, entry.crc, size, size, len(name), len(extra))
    return _LOCAL.pack(*header) + name + extra


def _central_header(entry: Entry) -> bytes:
    name, flags = _encoded(entry.name)
    big = [entry.size, entry.size] if entry.size >= _MAX32 else []
    if entry.offset >= _MAX32:
        big.append(entry.offset)
    extra = struct.pack(f"<2H{len(big)}Q", 1, 8 * len(big), *big) if big else b""
    size = min(entry.size, _MAX32)
    made = (b"PK\1\2", _MADE_BY, 45 if big else 10, flags, 0, 0, _FIRST_OF_1980, entry.crc, size, size)
    return _CENTRAL.pack(*made, len(name), len(extra), 0, 0, 0, _MODE, min(entry.offset, _MAX32)) + name + extra


def _directory(entries: Sequence[Entry], start: int) -> bytes:
    """The central directory with its end records, for entries in the order of their offsets."""
    headers = b"".join(map(_central_header, entries))
    count, size = len(entries), len(headers)
    end64 = b""
    if count >= _MAX16 or size >= _MAX32 or start >= _MAX32:
        end64 = _END64.pack(b"PK\6\6", _END64.size - 12, _MADE_BY, 45, 0, 0, count, count, size, start)
        end64 += _LOCATOR64.pack(b"PK\6\7", 0, start + size, 1)
    short = min(count, _MAX16)
    return headers + end64 + _END.pack(b"PK\5\6", 0, 0, short, short, min(size, _MAX32), min(start, _MAX32), 0)


def _encoded(name: str) -> tuple[bytes, int]:
    """A name as it is written, and the flags that say so."""
    return name.encode(), 0 if name.isascii() else _UTF8
