"""Documents are canonical JSON, records are lines in seekable zstd, and damage or malice in either is noticed."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rfc8785
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_bundle._codec import (
    LinesWriter,
    check_depth,
    decode,
    decode_frame,
    decode_record,
    encode,
    line_kind,
    logical_digest,
    read_frames,
    read_lines,
    seek_table,
)
from mlflow_bundle._digests import digest_of
from mlflow_bundle._limits import Limits
from mlflow_bundle.errors import CorruptError, LimitError
from mlflow_bundle.records import Dataset, DatasetInput, Experiment, KeyValue, Marker, ObjectRef, Record, Run

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGER = st.integers(-(2**53) + 1, 2**53 - 1)
ASCII_NAME = st.text(st.characters(max_codepoint=127), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ASCII_NAME, inner, max_size=4),
    max_leaves=20,
)
PAIRS = st.lists(st.builds(KeyValue, key=TEXT, value=TEXT), max_size=3).map(tuple)
DATASETS = st.builds(Dataset, name=TEXT, digest=TEXT, source=TEXT, profile=TEXT)
INPUTS = st.lists(st.builds(DatasetInput, dataset=DATASETS, tags=PAIRS), max_size=2).map(tuple)
RUNS = st.builds(
    Run, run_id=TEXT, experiment_id=TEXT, run_name=TEXT, start_time=INTEGER, params=PAIRS, tags=PAIRS, inputs=INPUTS
)
EXPERIMENTS = st.builds(Experiment, experiment_id=TEXT, name=TEXT, artifact_location=TEXT, creation_time=INTEGER, tags=PAIRS)
LINE = st.binary(min_size=1, max_size=200).map(lambda data: data.replace(b"\n", b" "))


def written(lines: list[bytes], frame_bytes: int = 1000) -> tuple[bytes, LinesWriter]:
    sink = io.BytesIO()
    writer = LinesWriter(sink, frame_bytes=frame_bytes)
    for line in lines:
        writer.add(line)
    writer.close()
    return sink.getvalue(), writer


# -- documents -----------------------------------------------------------------------------------------------------------


@given(JSON)
@example("".join(map(chr, range(0x20))) + '"\\/\x7f\u2028\u2029😀\U0010ffff')
def test_json_is_canonical(document: Any) -> None:
    """Documents encode to the bytes of RFC 8785, control, astral and quoted characters included."""
    assert encode(document) == rfc8785.dumps(document)
    assert json.loads(encode(document)) == document


@given(RUNS | EXPERIMENTS)
def test_records_are_canonical_and_come_back(record: Record) -> None:
    """A record encodes to RFC 8785 without the fields it lacks, and decodes to itself."""
    line = encode(record)
    assert b"\n" not in line
    assert rfc8785.dumps(json.loads(line)) == line
    kind = line_kind(line, name="x")
    assert decode_record(line, kind, name="x") == record
    assert set(json.loads(line)) == {"kind"} | {f for f in record.__struct_fields__ if not is_unset(getattr(record, f))}


def is_unset(value: Any) -> bool:
    return type(value).__name__ == "UnsetType"


def test_unknown_fields_are_ignored() -> None:
    """A document that a later release writes with more fields can be read."""
    data = b'{"bundle_id":"b","format":"mlflow-bundle","layout":1,"new":[{"x":1}],"requires":{"read":[],"new":1}}'
    assert decode(data, Marker, name="x") == Marker(format="mlflow-bundle", layout=1, bundle_id="b")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format":1}',
        b'{"format":"mlflow-bundle"}',
        b"\xff",
        b'{"format":"\xff","layout":1,"bundle_id":""}',
    ],
)
def test_what_is_no_document_is_corrupt(data: bytes) -> None:
    """Bytes that are not JSON, or not of the expected type, raise ``CorruptError`` with the name of their place."""
    with pytest.raises(CorruptError, match=r"^the-name ") as raised:
        decode(data, Marker, name="the-name")
    assert raised.value.code == "E030"


@pytest.mark.parametrize(
    "line", [b"", b"x", b"[]", b'{"run_id":"r"}', b'{"kind":"run"}', b'{"kind":"experiment","experiment_id":1}']
)
def test_what_is_no_record_is_corrupt(line: bytes) -> None:
    """A line that is no record of its kind raises ``CorruptError``."""
    with pytest.raises(CorruptError) as raised:
        decode_record(line, line_kind(line, name="x"), name="x")
    assert raised.value.code == "E031"


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


BRACKETS = st.text(st.sampled_from('[]{}"\\,a'), max_size=6)
NESTED = st.recursive(
    BRACKETS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(BRACKETS, inner, max_size=3), max_leaves=25
)


@given(NESTED, st.integers(0, 6), st.booleans())
@example(["]", ["]", ["]", "["], "["], "["], 2, False)
def test_depth_is_that_of_the_structure(document: Any, limit: int, spaced: bool) -> None:
    """Deeper documents than the limit are refused and no others, whatever brackets and quotes their strings hold."""
    data = json.dumps(document, indent=1 if spaced else None).encode()
    refused = False
    try:
        check_depth(data, Limits(json_depth=limit), "x")
    except LimitError as error:
        refused = error.code == "E090"
    assert refused == (depth(document) > limit)


@pytest.mark.parametrize("opening", [b'{"bundle_id":' + b"[" * 200_000, b'{"x":' + b'{"a":' * 200_000])
def test_endless_nesting_is_a_limit_error(opening: bytes) -> None:
    """Nesting without an end is refused before anything recurses into it."""
    with pytest.raises(LimitError, match="deeper than 64"):
        decode(opening, Marker, name="x")


def test_brackets_in_strings_hide_no_nesting() -> None:
    """Strings that pair up with real brackets do not make a deep document look flat."""
    hidden = b'{"z":' + b'["]",' * 50_000 + b'"["]' + b',"["]' * 49_999 + b"}"
    with pytest.raises(LimitError):
        decode(hidden, Marker, name="x")


LOCATED = st.builds(
    Run, run_id=TEXT, experiment_id=TEXT, artifact_uri=TEXT, run_name=TEXT | st.just("artifact_uri"), tags=PAIRS
) | st.builds(Experiment, experiment_id=TEXT, name=TEXT | st.just('"artifact_location":'), artifact_location=TEXT, tags=PAIRS)


@given(LOCATED | RUNS)
def test_the_logical_digest_leaves_out_locations(record: Record) -> None:
    """What stands for a record in the logical root is its line without the location fields, and with every other member."""
    members = json.loads(encode(record))
    for name in ("artifact_uri", "artifact_location"):
        members.pop(name, None)
    assert logical_digest(encode(record), str(record.__struct_config__.tag)) == hashlib.sha256(rfc8785.dumps(members)).digest()


# -- lines ---------------------------------------------------------------------------------------------------------------


@given(st.lists(LINE, max_size=60), st.integers(1, 3000))
def test_lines_come_back(lines: list[bytes], frame_bytes: int) -> None:
    """Lines are read back as they were, in frames that are cut at line ends and of which the seek table tells."""
    data, writer = written(lines, frame_bytes)
    assert list(read_lines(data, name="x")) == lines
    whole = b"".join(line + b"\n" for line in lines)
    assert (writer.rows, writer.content) == (len(lines), digest_of(whole))
    frames = list(read_frames(data, name="x"))
    assert [frame for frame, _ in frames] == writer.frames == seek_table(data, len(data), name="x")
    assert [text.count(b"\n") for _, text in frames] == writer.frame_rows
    assert sum(writer.frame_rows) == len(lines)
    assert all(len(text) >= frame_bytes for _, text in frames[:-1])


@given(st.lists(LINE, max_size=60))
def test_zstandard_reads_the_whole_object(lines: list[bytes]) -> None:
    """Any zstd decoder that reads across frames gets the lines; the seek table is a frame that it skips."""
    data, _ = written(lines, 500)
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        assert reader.read() == b"".join(line + b"\n" for line in lines)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd command is not installed; zstandard is tested above")
def test_the_zstd_command_reads_the_whole_object(tmp_path: Path) -> None:
    """``zstd -dc`` prints the lines, and ``zstd -t`` finds nothing wrong."""
    lines = [encode(Run(run_id=f"{i:032}", experiment_id="1", run_name="größe 😀")) for i in range(2000)]
    data, writer = written(lines, 10_000)
    assert len(writer.frames) > 5
    file = tmp_path / "x.jsonl.zst"
    file.write_bytes(data)
    assert subprocess.run(["zstd", "-dc", str(file)], capture_output=True, check=True).stdout == b"\n".join(lines) + b"\n"
    subprocess.run(["zstd", "-tq", str(file)], check=True)


def test_every_frame_has_a_checksum_and_its_size() -> None:
    """Frames carry checksum and content size, so that any decoder detects damage and knows how much memory it needs."""
    data, writer = written([b"x" * 100] * 100)
    for frame in writer.frames:
        parameters = zstandard.get_frame_parameters(data[frame.offset : frame.offset + frame.length])
        assert parameters.has_checksum
        assert parameters.content_size == frame.raw


def test_one_record_is_one_range() -> None:
    """A frame is decoded without the rest of the object."""
    data, writer = written([b"%d" % i for i in range(2000)])
    frame = writer.frames[1]
    first = writer.frame_rows[0]
    assert decode_frame(data[frame.offset : frame.offset + frame.length], frame.raw, name="x").startswith(b"%d\n" % first)


def outcome(data: bytes) -> list[bytes] | None:
    """The lines, or None where the object was refused."""
    try:
        return list(read_lines(data, name="x"))
    except (CorruptError, LimitError):
        return None


def test_every_flipped_bit_is_noticed() -> None:
    """No single flipped bit gives other lines; most are refused, and those in reserved places change nothing."""
    lines = [b"line %d" % i for i in range(30)]
    data, _ = written(lines, 100)
    for at, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        assert outcome(bytes(damaged)) in (None, lines), (at, bit)


def test_every_cut_is_noticed() -> None:
    """An object that lacks bytes at its end or its beginning, or has more, is refused."""
    data, _ = written([b"line %d" % i for i in range(30)], 100)
    for cut in range(1, len(data)):
        assert outcome(data[:-cut]) is None
        assert outcome(data[cut:]) is None
    assert outcome(data + b"\0") is None
    assert outcome(b"\0" + data) is None
    assert outcome(data + data) is None


def table(entries: list[tuple[int, int]]) -> bytes:
    body = b"".join(struct.pack("<II", *entry) for entry in entries) + struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(body)) + body


def compressed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19, write_checksum=True, write_content_size=True).compress(raw)


def test_a_frame_that_claims_less_than_it_holds_is_not_decoded() -> None:
    """A decompression bomb behind a modest seek table is refused before its memory is allocated."""
    bomb = compressed(b"\n" * 300_000_000)
    data = bomb + table([(len(bomb), 1000)])
    with pytest.raises(CorruptError, match="another size than its seek table says"):
        list(read_lines(data, name="x"))


def test_a_frame_beyond_the_limits_is_not_decoded() -> None:
    """Frames that are too large, or that grow too much, are refused by what they claim."""
    raw = b"\n" * 2_000_000
    stored = compressed(raw)
    data = stored + table([(len(stored), len(raw))])
    assert sum(1 for _ in read_lines(data, name="x", limits=Limits(frame_ratio=10**6))) == len(raw)
    for limits in (Limits(frame_bytes=1_999_999, frame_ratio=10**6), Limits(frame_ratio=100)):
        with pytest.raises(LimitError, match="zstd frame") as raised:
            list(read_lines(data, name="x", limits=limits))
        assert raised.value.code == "E091"


def test_a_line_beyond_the_limit_is_refused() -> None:
    """A line that is too long raises ``LimitError`` with the code of lines."""
    data, _ = written([b"short", b"x" * 1001])
    with pytest.raises(LimitError, match="line") as raised:
        list(read_lines(data, name="x", limits=Limits(line_bytes=1000)))
    assert raised.value.code == "E092"


def test_bytes_between_frames_are_noticed() -> None:
    """A frame with something behind it, which a decoder would pass over, is refused."""
    stored = compressed(b"line\n")
    assert outcome(stored + table([(len(stored), 5)])) == [b"line"]
    padded = stored + b"hidden"
    assert outcome(padded + table([(len(padded), 5)])) is None


def test_lines_without_their_end_are_refused() -> None:
    """The content of an object ends with a line feed."""
    stored = compressed(b"line")
    assert outcome(stored + table([(len(stored), 4)])) is None


def test_object_references_leave_out_what_is_default() -> None:
    """Millions of references stay short: fields with default values are absent."""
    assert encode(ObjectRef(role="blobs", path="p", size=1)) == b'{"path":"p","role":"blobs","size":1}'
