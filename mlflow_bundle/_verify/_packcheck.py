"""A pack is a ZIP file of one plain kind, and nothing else: its directory, read without trust (spec/v1.md, 5.3)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mlflow_bundle._digests import is_hex
from mlflow_bundle._limits import Limits
from mlflow_bundle.errors import CorruptError, LimitError

__all__ = ["PackEntry", "pack_entries"]

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_NAME: Final = 64
_MANY: Final = 0xFFFF
#: Data descriptor, encryption, patch data, strong encryption, masked headers.
_FLAGS: Final = 0x2069
_FIRST_OF_1980: Final = 0x0021
_METHODS: Final = {0: "raw", 8: "deflate"}


class PackEntry(NamedTuple):
    """One content in a pack: where its stored bytes lie, and how many bytes it has when they are decoded."""

    sha256: str
    offset: int
    length: int
    codec: str
    raw_length: int
    crc: int


def pack_entries(data: bytes, *, name: str, limits: Limits) -> list[PackEntry]:
    """The entries of a pack in the order of their offsets.

    Raises:
        CorruptError: it is no ZIP file, or not one of plain entries that follow each other without a gap.
        LimitError: more entries than a reader accepts.
    """
    count, start, end = _directory(data, name)
    if count > limits.pack_entries:
        raise LimitError(f"{name} has {count:,} entries, more than {limits.pack_entries:,}", code="E094")
    entries, place, offset = [], start, 0
    for _ in range(count):
        entry = _entry(data, place, end, offset, name)
        place += _CENTRAL.size + _NAME
        offset = entry.offset + entry.length
        entries.append(entry)
    if place != end or offset != start:
        raise _bad(name, "has gaps between its parts")
    if len({entry.sha256 for entry in entries}) != count:
        raise _bad(name, "has two entries of one name")
    return entries


def _bad(name: str, what: str) -> CorruptError:
    return CorruptError(f"{name} {what}", code="E053")


def _directory(data: bytes, name: str) -> tuple[int, int, int]:
    """The number of entries, and where the central directory begins and ends."""
    end = len(data) - _END.size
    if end < 0:
        raise _bad(name, "is no ZIP file")
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, end)
    if magic != b"PK\5\6" or disk or first_disk or comment:
        raise _bad(name, "does not end as a ZIP file without a comment ends")
    if count == _MANY and data[max(end - _LOCATOR64.size, 0) : end].startswith(b"PK\6\7"):  # else it has just that many
        end -= _LOCATOR64.size + _END64.size
        if end < 0 or _LOCATOR64.unpack_from(data, end + _END64.size) != (b"PK\6\7", 0, end, 1):
            raise _bad(name, "has no ZIP64 end record")
        magic, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(data, end)
        if magic != b"PK\6\6" or length != _END64.size - 12 or disk or first_disk:
            raise _bad(name, "has a damaged ZIP64 end record")
    if here != count or start + size != end:
        raise _bad(name, "has a central directory that does not lie at its end")
    return count, start, end


def _entry(data: bytes, place: int, end: int, offset: int, name: str) -> PackEntry:
    """The entry whose central header is at ``place``; its local header must be at ``offset`` and say the same."""
    if place + _CENTRAL.size + _NAME > end:
        raise _bad(name, "has a central directory that is too short")
    magic, _, _, flags, method, time, date, crc, length, raw, *rest = _CENTRAL.unpack_from(data, place)
    name_length, extra, comment, disk, _, _, header = rest
    sha256 = data[place + _CENTRAL.size : place + _CENTRAL.size + _NAME]
    text = sha256.decode("ascii", "replace")
    plain = (magic, name_length, extra, comment, disk) == (b"PK\1\2", _NAME, 0, 0, 0) and not flags & _FLAGS
    if not plain or method not in _METHODS or not is_hex(text) or (time, date) != (0, _FIRST_OF_1980):
        raise _bad(name, f"has an entry that is not plain, at byte {place:,}")
    if header != offset or offset + _LOCAL.size + _NAME + length > len(data):
        raise _bad(name, f"has the entry {text} at byte {header:,}, where byte {offset:,} is expected")
    said = (b"PK\3\4", flags, method, time, date, crc, length, raw, _NAME, 0)
    magic, _, *local = _LOCAL.unpack_from(data, offset)
    if (magic, *local) != said or data[offset + _LOCAL.size : offset + _LOCAL.size + _NAME] != sha256:
        raise _bad(name, f"has the entry {text} whose two headers disagree")
    if method == 0 and length != raw:
        raise _bad(name, f"has the stored entry {text} of two lengths")
    return PackEntry(text, offset + _LOCAL.size + _NAME, length, _METHODS[method], raw, crc)
