"""Documents as canonical JSON, and records as JSON lines in seekable zstd (spec/v1.md, sections 2 and 4)."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec
import zstandard

from mlflow_bundle._limits import DEFAULT_LIMITS, KIB, MIB, Limits
from mlflow_bundle.errors import CorruptError, LimitError
from mlflow_bundle.records import KINDS, Record

__all__ = [
    "GREATEST_INTEGER",
    "Frame",
    "LinesWriter",
    "decode",
    "decode_frame",
    "decode_record",
    "encode",
    "large_integer",
    "line_kind",
    "logical_digest",
    "read_frames",
    "read_lines",
    "seek_table",
]

Document = TypeVar("Document")

_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_DIGITS: Final = re.compile(rb"-?[0-9]{16,}")
#: What an integer of that many digits looks like in a record, where integers are members; a text may look so too.
_LONG_MEMBER: Final = re.compile(rb'":-?[0-9]{16}')
#: The greatest integer that every program can hold.
GREATEST_INTEGER: Final = 2**53 - 1
_NOT_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
#: For each kind the members that the logical root leaves out, as they stand in a line.
_LOCATIONS: Final = {
    kind.name: {name: f'"{name}":'.encode() for name in kind.locations} for kind in KINDS.values() if kind.locations
}
_LEVEL: Final = 3
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_SEEKABLE_MAGIC: Final = 0x8F92EAB1
_SEEK_ENTRY: Final = struct.Struct("<II")
_SEEK_HEAD: Final = struct.Struct("<II")
_SEEK_FOOT: Final = struct.Struct("<IBI")


def encode(document: Any) -> bytes:
    """Canonical JSON: RFC 8785 for documents without floats and with ASCII names."""
    return _ENCODER.encode(document)


def large_integer(line: bytes) -> int | None:
    """The first integer of a record line, if any, that not every program can hold: beyond 2^53 - 1 (spec/v1.md, 2.2)."""
    if _LONG_MEMBER.search(line) is None:
        return None
    return next((int(n) for n in _DIGITS.findall(_STRING.sub(b"", line)) if abs(int(n)) > GREATEST_INTEGER), None)


def check_depth(data: bytes, limits: Limits, name: str) -> None:
    """Refuse JSON that nests deeper than the limit.

    Raises:
        LimitError: it does.
    """
    if data.count(b"[") + data.count(b"{") <= limits.json_depth:
        return
    # Brackets inside strings would pair up with real ones.
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(limits.json_depth):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b" ").replace(b"{}", b" ").translate(None, b" ")  # just one level
    if brackets and _exact_depth(data) > limits.json_depth:
        raise LimitError(f"{name} nests JSON deeper than {limits.json_depth} levels", code="E090")


def _exact_depth(data: bytes) -> int:
    """The nesting depth outside of strings."""
    depth = deepest = 0
    quoted = escaped = False
    for byte in data:
        if quoted:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                quoted = False
        elif byte == 0x22:
            quoted = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def decode(data: bytes, kind: type[Document], *, name: str, limits: Limits = DEFAULT_LIMITS) -> Document:
    """One JSON document of a known type; unknown fields are ignored.

    Raises:
        CorruptError: not JSON, or not of that type; the message names the place.
        LimitError: nested too deep.
    """
    check_depth(data, limits, name)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{name} is not a valid document: {error}", code="E030") from error


class _Kind(msgspec.Struct):
    kind: str


_KIND_DECODER: Final = msgspec.json.Decoder(_Kind)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DECODERS: Final = {name: msgspec.json.Decoder(kind.type) for name, kind in KINDS.items()}


def line_kind(line: bytes, *, name: str) -> str:
    """The ``kind`` of a record line."""
    try:
        return _KIND_DECODER.decode(line).kind
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{name} holds a line that is no record: {error}", code="E031") from error


def decode_record(line: bytes, kind: str, *, name: str, limits: Limits = DEFAULT_LIMITS) -> Record:
    """One record of a known kind.

    Raises:
        CorruptError: not a record of that kind.
    """
    check_depth(line, limits, name)
    try:
        record: Record = _DECODERS[kind].decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{name} holds a line that is no {kind}: {error}", code="E031") from error
    return record


class Frame(msgspec.Struct, frozen=True):
    """Where a zstd frame lies in its object. ``offset`` and ``length`` are stored bytes, ``raw`` decoded ones."""

    offset: int
    length: int
    raw: int


class LinesWriter:
    """Writes lines as zstd frames of about ``frame_bytes``, cut at line ends, closed by the seek table.

    ``sink`` has ``write``. After ``close``: ``frames``, ``frame_rows`` (lines in each), ``rows``, ``content`` (their digest).
    """

    def __init__(self, sink: Any, *, frame_bytes: int = 256 * KIB, level: int = _LEVEL) -> None:
        self._sink = sink
        self._frame_bytes = frame_bytes
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        self._lines: list[bytes] = []
        self._pending = 0
        self._offset = 0
        self._content = hashlib.sha256()
        self.frames: list[Frame] = []
        self.frame_rows: list[int] = []
        self.rows = 0

    @property
    def content(self) -> str:
        """The digest of all lines written."""
        return f"sha256:{self._content.hexdigest()}"

    def add(self, line: bytes) -> None:
        """Append one line, given without its line feed."""
        self._lines.append(line)
        self._pending += len(line) + 1
        self.rows += 1
        if self._pending >= self._frame_bytes:
            self._flush()

    def _flush(self) -> None:
        raw = b"\n".join(self._lines) + b"\n"
        self._content.update(raw)
        stored = self._compressor.compress(raw)
        self._sink.write(stored)
        self.frames.append(Frame(self._offset, len(stored), len(raw)))
        self.frame_rows.append(len(self._lines))
        self._offset += len(stored)
        self._lines, self._pending = [], 0

    def close(self) -> None:
        """Write the last frame and the seek table."""
        if self._lines:
            self._flush()
        entries = b"".join(_SEEK_ENTRY.pack(frame.length, frame.raw) for frame in self.frames)
        foot = _SEEK_FOOT.pack(len(self.frames), 0, _SEEKABLE_MAGIC)
        self._sink.write(_SEEK_HEAD.pack(_SKIPPABLE_MAGIC, len(entries) + len(foot)) + entries + foot)


def seek_table(tail: bytes, size: int, *, name: str) -> list[Frame]:
    """The frames of an object of ``size`` bytes that ends with ``tail``, which must hold the whole seek table.

    Raises:
        CorruptError: no seek table, or one that does not fit the object.
    """
    foot_at = len(tail) - _SEEK_FOOT.size
    if foot_at < 0:
        raise CorruptError(f"{name} has no zstd seek table", code="E032")
    count, descriptor, magic = _SEEK_FOOT.unpack_from(tail, foot_at)
    entry = _SEEK_ENTRY.size + (4 if descriptor & 0x80 else 0)
    table_size = _SEEK_HEAD.size + count * entry + _SEEK_FOOT.size
    if magic != _SEEKABLE_MAGIC or table_size > len(tail):
        raise CorruptError(f"{name} has no zstd seek table", code="E032")
    start = len(tail) - table_size
    if _SEEK_HEAD.unpack_from(tail, start) != (_SKIPPABLE_MAGIC, table_size - _SEEK_HEAD.size):
        raise CorruptError(f"{name} has a damaged zstd seek table", code="E032")
    frames, offset = [], 0
    for number in range(count):
        length, raw = _SEEK_ENTRY.unpack_from(tail, start + _SEEK_HEAD.size + number * entry)
        frames.append(Frame(offset, length, raw))
        offset += length
    if offset + table_size != size:
        raise CorruptError(f"{name} has a zstd seek table that does not cover it", code="E032")
    return frames


def decode_frame(stored: bytes | memoryview, raw: int, *, name: str, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The lines of one frame, which the seek table says has ``raw`` bytes.

    Raises:
        LimitError: larger than a reader accepts.
        CorruptError: it does not decode to just that.
    """
    if raw > limits.frame_bytes or (raw > MIB and raw > limits.frame_ratio * len(stored)):
        raise LimitError(f"{name} has a zstd frame of {len(stored):,} bytes that claims {raw:,}", code="E091")
    try:
        # The decoder allocates what the frame itself claims, whatever limit it is given.
        if zstandard.frame_content_size(stored) != raw:
            raise CorruptError(f"{name} has a zstd frame of another size than its seek table says", code="E033")
        lines = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(f"{name} has a zstd frame that does not decode: {error}", code="E033") from error
    if len(lines) != raw or not lines.endswith(b"\n"):
        raise CorruptError(f"{name} has a zstd frame of the wrong length", code="E033")
    return lines


def read_frames(data: bytes, *, name: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[tuple[Frame, bytes]]:
    """Every frame of a whole object with its lines."""
    for frame in seek_table(data, len(data), name=name):
        stored = memoryview(data)[frame.offset : frame.offset + frame.length]
        yield frame, decode_frame(stored, frame.raw, name=name, limits=limits)


def read_lines(data: bytes, *, name: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[bytes]:
    """Every line of a whole object, without line feeds."""
    for _, lines in read_frames(data, name=name, limits=limits):
        for line in lines[:-1].split(b"\n"):
            if len(line) > limits.line_bytes:
                raise LimitError(f"{name} has a line of {len(line):,} bytes", code="E092")
            yield line


def logical_digest(line: bytes, kind: str) -> bytes:
    """The 32 bytes that stand for a record of a kind in the logical root: SHA-256 of its line without the location members."""
    locations = _LOCATIONS.get(kind, {})
    if any(member in line for member in locations.values()):
        members = _MEMBERS.decode(line)
        line = encode({name: value for name, value in members.items() if name not in locations})
    return hashlib.sha256(line).digest()
