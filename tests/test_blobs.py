"""Every content is stored once, where ordinary tools find it, and comes back as it was or not at all."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_bundle import _layout
from mlflow_bundle._blobs import BlobReader, BlobWriter, KnownDigests
from mlflow_bundle._index import Extent, _write_index, index_table, settle
from mlflow_bundle._limits import DEFAULT_LIMITS, MIB, Limits, Targets
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._storage._backend import Staged
from mlflow_bundle._storage._local import LocalStorage
from mlflow_bundle.errors import CorruptError, LimitError, NotFoundError, StorageError
from mlflow_bundle.records import ObjectRef
from tests.building import TINY

TEXT = b"the same line again and again\n" * 20
NOISE = random.Random(1).randbytes(600)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "bundle", create=True)


def store(
    storage: Storage, contents: Sequence[bytes], *, targets: Targets = TINY, known: Sequence[ObjectRef] = ()
) -> tuple[list[ObjectRef], BlobWriter]:
    """Store contents as a snapshot does, and settle: what the snapshot lists."""
    writer = BlobWriter(storage, targets, known, DEFAULT_LIMITS)
    for data in contents:
        assert writer.add_bytes(data) == digest(data)
    extents = writer.close()
    used = np.unique(np.array([digest(data) for data in contents], dtype="S64"))
    settled = settle(storage, old=known, new=writer.objects, extents=extents, used=used, targets=targets, limits=DEFAULT_LIMITS)
    return settled.refs, writer


def reader(storage: Storage, refs: Sequence[ObjectRef], limits: Limits = DEFAULT_LIMITS) -> BlobReader:
    return BlobReader(storage, [ref for ref in refs if ref.role == _layout.INDEX], limits)


def read(blobs: BlobReader, sha256: str) -> bytes:
    with blobs.open(sha256) as stream:
        return stream.read()


class Full(LocalStorage):
    """A folder that takes no object."""

    def put(self, staged: Staged, path: str) -> bool:
        raise StorageError(f"no space for {path}")


@pytest.mark.parametrize("size", [600, 5 * TINY.blob_bytes])
def test_an_object_that_the_thread_cannot_store_is_an_error(tmp_path: Path, size: int) -> None:
    """It is raised by what is stored next or by the end, and nothing stays staged, and no thread."""
    before = threading.active_count()
    for more in (0, 100):
        storage = Full("full", tmp_path / f"full{more}", create=True)
        writer = BlobWriter(storage, TINY, [], DEFAULT_LIMITS)
        with pytest.raises(StorageError, match="no space"):  # noqa: PT012 - by which of them does not matter
            for number in range(1 + more):
                data = random.Random(number).randbytes(size)
                writer.add_stream(io.BytesIO(data), size)
            writer.close()
        writer.discard()
        assert writer.objects == []
        assert not list((tmp_path / f"full{more}").rglob(".staging/*"))
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [600, 3 * TINY.blob_bytes, TINY.split_bytes + 5])
def test_who_reads_no_byte_too_many_is_told_of_damage(storage: Storage, tmp_path: Path, size: int) -> None:
    """The last bytes of a damaged content are not given, although nobody asks whether more would follow."""
    data = random.Random(size).randbytes(size)
    writer = BlobWriter(storage, TINY, [], DEFAULT_LIMITS)
    sha256, _ = writer.add_stream(io.BytesIO(data), size)
    extents = writer.close()
    refs = settle(
        storage,
        old=[],
        new=writer.objects,
        extents=extents,
        used=np.array([sha256], "S64"),
        targets=TINY,
        limits=DEFAULT_LIMITS,
    ).refs
    with reader(storage, refs).open(sha256) as stream:
        assert stream.read(size) == data
    place = tmp_path / "bundle" / extents[0].object
    damage = bytearray(place.read_bytes())
    damage[extents[0].offset] ^= 1
    place.chmod(0o644)
    place.write_bytes(damage)
    with reader(storage, refs).open(sha256) as stream, pytest.raises(CorruptError, match="SHA-256"):
        stream.read(size)


CONTENTS = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.builds(lambda unit, times: unit * times, st.binary(min_size=1, max_size=3), st.integers(1, 9000)),
    ),
    max_size=40,
)


@given(CONTENTS)
@settings(max_examples=40)
def test_contents_come_back(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    """Empty, small, large and split contents, many times the same among them, are read as they were added."""
    with open_storage(tmp_path_factory.mktemp("blobs") / "b", create=True) as storage:
        refs, writer = store(storage, contents)
        blobs = reader(storage, refs)
        for data in contents:
            assert writer.has(digest(data))
            assert blobs.size(digest(data)) == len(data)
            assert read(blobs, digest(data)) == data
        listed = {ref.path: ref.size for ref in refs}
        assert storage.list("objects") == dict(sorted(listed.items()))


def test_the_same_content_is_stored_once(storage: Storage) -> None:
    """A content that comes twice, also by another way or in a later snapshot, adds nothing."""
    big = NOISE * 3
    refs, first = store(storage, [TEXT, TEXT, big, big])
    assert first.new_objects == 2
    assert sum(ref.rows for ref in refs if ref.role == _layout.PACKS) == 1
    writer = BlobWriter(storage, TINY, refs, DEFAULT_LIMITS)
    assert writer.has(digest(TEXT))
    assert writer.has(digest(big))
    assert writer.add_bytes(TEXT) == digest(TEXT)
    assert writer.add_stream(io.BytesIO(TEXT), len(TEXT)) == (digest(TEXT), len(TEXT))
    assert writer.add_stream(io.BytesIO(big), -1) == (digest(big), len(big))
    assert writer.close() == []
    assert (writer.new_objects, writer.objects) == (0, [])


def test_what_shrinks_is_deflated_and_the_rest_stored(storage: Storage) -> None:
    """Text is deflated, noise is kept as it is, and the index tells which, where and how long."""
    writer = BlobWriter(storage, TINY, [], DEFAULT_LIMITS)
    for data in (TEXT, NOISE, b"tiny", b""):
        writer.add_bytes(data)
    extents = {extent.sha256: extent for extent in writer.close()}
    codecs = {name: extents[digest(data)].codec for name, data in (("text", TEXT), ("noise", NOISE), ("tiny", b"tiny"))}
    assert codecs == {"text": "deflate", "noise": "raw", "tiny": "raw"}
    assert extents[digest(TEXT)].length < len(TEXT) / 5
    for data in (TEXT, NOISE, b"tiny", b""):
        extent = extents[digest(data)]
        stored = storage.read_range(extent.object, extent.offset, extent.length)
        assert extent.raw_length == len(data)
        assert data == (zlib.decompress(stored, -15) if extent.codec == "deflate" else stored)


def test_packs_are_ordinary_zip_files(storage: Storage) -> None:
    """Python's zipfile reads every entry, its name is the SHA-256 of its content, and the same pack has the same bytes."""
    contents = [b"%d" % i * (i % 50) for i in range(200)]
    refs, _ = store(storage, contents)
    packs = [ref for ref in refs if ref.role == _layout.PACKS]
    assert len(packs) > 3
    found: dict[str, bytes] = {}
    for ref in packs:
        with zipfile.ZipFile(io.BytesIO(storage.read(ref.path))) as pack:
            assert pack.testzip() is None
            assert len(pack.infolist()) == ref.rows
            found |= {info.filename: pack.read(info) for info in pack.infolist()}
            assert all(info.date_time == (1980, 1, 1, 0, 0, 0) and not info.extra for info in pack.infolist())
    assert found == {digest(data): data for data in contents}


@pytest.mark.skipif(shutil.which("unzip") is None, reason="the unzip command is not installed; zipfile is tested above")
def test_unzip_gets_contents_out(storage: Storage, tmp_path: Path) -> None:
    """``unzip -p PACK SHA256`` prints a content, and ``unzip -t`` finds nothing wrong."""
    refs, _ = store(storage, [TEXT, NOISE, b""])
    (pack,) = (tmp_path / "bundle" / ref.path for ref in refs if ref.role == _layout.PACKS)
    for data in (TEXT, NOISE, b""):
        assert subprocess.run(["unzip", "-p", str(pack), digest(data)], capture_output=True, check=True).stdout == data
    subprocess.run(["unzip", "-tq", str(pack)], check=True, stdout=subprocess.DEVNULL)


def test_packs_are_closed_at_their_targets(storage: Storage) -> None:
    """A pack ends when it has its size or its number of entries."""
    refs, _ = store(storage, [b"%d" % i for i in range(100)], targets=Targets(pack_entries=30))
    assert sorted(ref.rows for ref in refs if ref.role == _layout.PACKS) == [10, 30, 30, 30]
    refs, _ = store(storage, [b"%d" % i * 100 for i in range(100)], targets=Targets(pack_bytes=2000))
    assert all(2000 <= ref.size < 5000 for ref in sorted(refs, key=lambda r: r.size)[1:] if ref.role == _layout.PACKS)


def test_a_large_content_is_an_object_as_it_is(storage: Storage) -> None:
    """From the limit on, a content is one raw object that has its own name; below, it is not."""
    below, at = bytes(TINY.blob_bytes - 1), bytes(TINY.blob_bytes)
    refs, _ = store(storage, [below, at])
    (blob,) = (ref for ref in refs if ref.role == _layout.BLOBS)
    assert blob.path == _layout.object_path(_layout.BLOBS, digest(at))
    assert storage.read(blob.path) == at
    assert reader(storage, refs).extents(digest(at)) == [Extent(digest(at), 0, blob.path, 0, len(at), "raw", len(at))]


@pytest.mark.parametrize("size", [12 * MIB - 1, 12 * MIB, 12 * MIB + 1, 10 * MIB])
def test_a_huge_content_is_split(storage: Storage, size: int) -> None:
    """Beyond the limit a content is cut into parts of one size; its digest is that of the whole."""
    targets = Targets(blob_bytes=MIB, split_bytes=MIB, part_bytes=5 * MIB)
    data = random.Random(size).randbytes(size)
    writer = BlobWriter(storage, targets, [], DEFAULT_LIMITS)
    assert writer.add_stream(io.BytesIO(data), size) == (digest(data), size)
    extents = writer.close()
    assert [extent.raw_length for extent in extents] == [min(5 * MIB, size - at) for at in range(0, size, 5 * MIB)]
    assert [extent.part for extent in extents] == list(range(len(extents)))
    assert b"".join(storage.read(extent.object) for extent in extents) == data
    settled = settle(
        storage,
        old=[],
        new=writer.objects,
        extents=extents,
        used=np.array([digest(data)], dtype="S64"),
        targets=targets,
        limits=DEFAULT_LIMITS,
    )
    assert read(reader(storage, settled.refs), digest(data)) == data


def test_a_stream_of_unknown_or_wrong_size_is_read_to_its_end(storage: Storage) -> None:
    """A file that grew or shrank since it was listed is archived as it is now."""
    writer = BlobWriter(storage, TINY, [], DEFAULT_LIMITS)
    for claimed in (-1, 0, 10, 10**5):
        for size in (0, 999, 1000, 70_000):
            data = random.Random(size + claimed).randbytes(size)
            assert writer.add_stream(io.BytesIO(data), claimed) == (digest(data), size)
    settled = settle(
        storage,
        old=[],
        new=writer.objects,
        extents=writer.close(),
        used=writer._known.sorted(),
        targets=TINY,
        limits=DEFAULT_LIMITS,
    )
    blobs = reader(storage, [*settled.refs])
    for extent_digest in writer._known.sorted():
        assert digest(read(blobs, extent_digest.decode())) == extent_digest.decode()


def test_a_stream_that_fails_leaves_nothing(storage: Storage) -> None:
    """When a large content breaks off, its error goes on and no object stays."""

    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 2000:
                raise NotFoundError("gone")
            return super().read(500)

    writer = BlobWriter(storage, TINY, [], DEFAULT_LIMITS)
    with pytest.raises(NotFoundError):
        writer.add_stream(Breaking(bytes(9000)), 9000)
    assert writer.close() == []
    storage.close()
    assert storage.list("") == {}


def test_contents_of_lost_objects_are_not_known(storage: Storage) -> None:
    """What the index places in objects that are not offered any more is stored again, one lost part is enough."""
    targets = Targets(blob_bytes=MIB, split_bytes=MIB, part_bytes=5 * MIB)
    huge = random.Random(2).randbytes(7 * MIB)
    writer = BlobWriter(storage, targets, [], DEFAULT_LIMITS)
    writer.add_stream(io.BytesIO(huge), len(huge))
    writer.add_bytes(TEXT)
    extents, used = writer.close(), writer._known.sorted()
    refs = settle(storage, old=[], new=writer.objects, extents=extents, used=used, targets=targets, limits=DEFAULT_LIMITS).refs
    assert BlobWriter(storage, targets, refs, DEFAULT_LIMITS).has(digest(huge))
    for lost in [ref for ref in refs if ref.role != _layout.INDEX]:
        known = BlobWriter(storage, targets, [ref for ref in refs if ref is not lost], DEFAULT_LIMITS)
        assert known.has(digest(huge)) == (lost.role == _layout.PACKS)
        assert known.has(digest(TEXT)) == (lost.role == _layout.BLOBS)


# -- reading what is damaged or malicious ----------------------------------------------------------------------------------


def test_damage_to_a_pack_gives_no_other_content(storage: Storage, tmp_path: Path) -> None:
    """A flipped bit among the bytes of a content raises ``CorruptError``; its neighbours can still be read."""
    refs, _ = store(storage, [TEXT, NOISE])
    blobs = reader(storage, refs)
    for data, other in ((TEXT, NOISE), (NOISE, TEXT)):
        (extent,) = blobs.extents(digest(data))
        file = tmp_path / "bundle" / extent.object
        good = file.read_bytes()
        refused = 0
        for at in range(extent.offset, extent.offset + extent.length, 7):
            file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            try:
                assert read(blobs, digest(data)) == data  # the last bits of a DEFLATE stream may mean nothing
            except CorruptError:
                refused += 1
            assert read(blobs, digest(other)) == other
        assert refused >= (extent.length - 1) // 7
        file.write_bytes(good)


def test_a_content_that_is_not_read_to_the_end_is_not_checked(storage: Storage) -> None:
    """Reading only the beginning of a large content works, and costs only that."""
    data = random.Random(5).randbytes(40_000)
    refs, _ = store(storage, [data], targets=Targets(blob_bytes=1000))
    with reader(storage, refs).open(digest(data)) as stream:
        assert stream.read(100) == data[:100]


def test_an_unknown_content_is_not_found(storage: Storage) -> None:
    """A digest that the index does not list raises ``NotFoundError``, also when there is no index at all."""
    refs, _ = store(storage, [TEXT])
    for blobs in (reader(storage, refs), reader(storage, [])):
        with pytest.raises(NotFoundError):
            blobs.extents(digest(b"other"))


def hostile(storage: Storage, *extents: Extent) -> BlobReader:
    """A reader of an index that somebody made up."""
    return reader(storage, [ref for ref, _ in _write_index(storage, index_table(extents), TINY)])


def test_a_hostile_index_reads_nothing_outside(storage: Storage, tmp_path: Path) -> None:
    """Rows that name other paths, unknown codecs or parts that are not there are refused."""
    (tmp_path / "secret").write_bytes(b"secret")
    refs, _ = store(storage, [NOISE * 2])
    (blob,) = (ref for ref in refs if ref.role == _layout.BLOBS)
    good = Extent(digest(b"x"), 0, blob.path, 0, 10, "raw", 10)
    for path in ("../secret", str(tmp_path / "secret"), "mlflow-bundle.json", "objects/../../secret", ""):
        with pytest.raises(CorruptError):
            read(hostile(storage, good._replace(object=path)), good.sha256)
    for row in (good._replace(codec="zip"), good._replace(part=1), good._replace(offset=10**6), good._replace(length=10**4)):
        with pytest.raises(CorruptError):
            read(hostile(storage, row), good.sha256)
    with pytest.raises(CorruptError):
        read(hostile(storage, good, good._replace(part=2)), good.sha256)


def test_a_decompression_bomb_is_not_inflated(storage: Storage) -> None:
    """An entry that claims or holds more than a pack may have takes no memory."""
    bomb = zlib.compressobj(9, wbits=-15)
    stored = bomb.compress(bytes(300 * MIB)) + bomb.flush()
    path = _layout.object_path(_layout.BLOBS, digest(stored))
    storage.put_bytes(stored, path)
    honest = Extent(digest(b"x"), 0, path, 0, len(stored), "deflate", 300 * MIB)
    with pytest.raises(LimitError):
        read(hostile(storage, honest), honest.sha256)
    with pytest.raises(CorruptError):
        read(hostile(storage, honest._replace(raw_length=1000)), honest.sha256)
    for claim in (honest._replace(length=10**12, raw_length=5), honest._replace(length=-5), honest._replace(offset=-5)):
        with pytest.raises((LimitError, CorruptError)):
            read(hostile(storage, claim), honest.sha256)


@given(st.lists(st.binary(min_size=1, max_size=2), max_size=50), st.lists(st.binary(min_size=1, max_size=2), max_size=50))
def test_known_digests_are_a_set(first: list[bytes], second: list[bytes]) -> None:
    """Digests are known however they were added, and come out sorted and once each."""
    known = KnownDigests()
    known.update(np.array([digest(data) for data in first], dtype="S64"))
    for data in second:
        known.add(digest(data))
    for data in (b"", b"a", b"ab", b"abc", *first, *second):
        assert (digest(data) in known) == (data in first or data in second)
    assert known.sorted().tolist() == sorted({digest(data).encode() for data in first + second})
