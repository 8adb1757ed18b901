"""The storage suite on one ZIP file, here and on S3, and what only the one-file form can show."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import mlflow_bundle
from mlflow_bundle import _layout
from mlflow_bundle._blobs import BlobReader, BlobWriter
from mlflow_bundle._index import settle
from mlflow_bundle._limits import DEFAULT_LIMITS
from mlflow_bundle._storage import Storage, _zipform, open_storage
from mlflow_bundle._storage._place import LocalPlace
from mlflow_bundle._storage._zipform import Archive, Part, write_archive
from mlflow_bundle.errors import BundleError, BundleNotFoundError, CorruptError, LimitError, StorageError
from tests.building import TINY
from tests.fixtures.s3 import Bucket
from tests.storage.suite import SNAPSHOT, Opener, StorageTests, path_of, put


class _OneFileTests(StorageTests):
    def look_again(self, storage: Storage, opener: Opener) -> Storage:
        return opener()


class TestLocalOneFile(_OneFileTests):
    """A bundle in a ZIP file of this machine."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return partial(open_storage, tmp_path / "above" / "a bundle.mlbundle.zip")


class TestRemoteOneFile(_OneFileTests):
    """A bundle in a ZIP file on S3."""

    @pytest.fixture
    def opener(self, s3_bucket: Bucket) -> Opener:
        return partial(open_storage, f"s3://{s3_bucket.name}/a bundle.zip", storage_options=s3_bucket.storage_options)


class TestMemoryOneFile(_OneFileTests):
    """A bundle in a ZIP file of a file system whose writes are seen while they run."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return partial(open_storage, f"memory://{tmp_path.name}/a bundle.zip")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A ZIP file with two objects, a marker and a snapshot."""
    with open_storage(tmp_path / "bundle.zip") as storage:
        put(storage, b"a record", _layout.RECORDS)
        put(storage, b"a blob")
        storage.put_bytes(b"{}", _layout.MARKER)
        storage.commit(b"snapshot", SNAPSHOT)
        storage.flush()
    return tmp_path / "bundle.zip"


def test_nothing_changes_before_the_flush(bundle: Path) -> None:
    """Puts and commits without a flush leave the file as it is, and nothing beside it after ``close``."""
    before = bundle.read_bytes()
    with open_storage(bundle) as storage:
        put(storage, b"more")
        storage.commit(b"snapshot 2", SNAPSHOT.replace("2026", "2027"))
        assert bundle.read_bytes() == before
    assert bundle.read_bytes() == before
    assert os.listdir(bundle.parent) == [bundle.name]


def test_a_flush_of_nothing_new(bundle: Path) -> None:
    """Where everything was there already the file is not written again; where there is nothing, no file is made."""
    before = bundle.stat()
    with open_storage(bundle) as storage:
        assert storage.put_bytes(b"a blob", path_of(b"a blob")) is False
        storage.flush()
    assert (bundle.stat().st_ino, bundle.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with open_storage(bundle.with_name("none.zip")) as storage:
        storage.flush()
    assert not bundle.with_name("none.zip").exists()


def test_the_same_files_make_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """Neither the order of writing, nor the time, nor the number of flushes shows in the file."""
    with open_storage(tmp_path / "other.zip") as storage:
        storage.commit(b"snapshot", SNAPSHOT)
        storage.flush()
        put(storage, b"a blob")
        storage.put_bytes(b"{}", _layout.MARKER)
        storage.flush()
        put(storage, b"a record", _layout.RECORDS)
        storage.flush()
    assert (tmp_path / "other.zip").read_bytes() == bundle.read_bytes()


def test_the_form(bundle: Path, tmp_path: Path) -> None:
    """The file is what the specification says of it, and unzip and Python's zipfile read it."""
    data = bundle.read_bytes()
    assert data[30:38] == b"mimetype"
    assert data[38 : 38 + len(_layout.MIMETYPE)] == _layout.MIMETYPE.encode()
    with zipfile.ZipFile(bundle) as archive:
        infos = archive.infolist()
        assert archive.testzip() is None
        assert archive.comment == b""
    names = [info.filename for info in infos]
    assert names[0] == _layout.MIMETYPE_ENTRY
    assert names[-1] == SNAPSHOT
    assert names[1:-1] == sorted(names[1:-1])
    for info in infos:
        assert (info.compress_type, info.date_time, info.extra, info.comment) == (0, (1980, 1, 1, 0, 0, 0), b"", b"")
        assert info.flag_bits == 0
    subprocess.run(["unzip", "-q", str(bundle), "-d", str(tmp_path / "out")], check=True)
    (tmp_path / "out" / "mimetype").unlink()
    folder, one = open_storage(tmp_path / "out"), open_storage(bundle)
    assert folder.list("") == one.list("")
    assert {path: folder.read(path) for path in folder.list("")} == {path: one.read(path) for path in one.list("")}


@pytest.mark.parametrize("way", ["zip", "python"])
def test_files_zipped_by_others_are_read(way: str, bundle: Path, tmp_path: Path) -> None:
    """A folder that was zipped without compression by another program is read, and its framing is told apart."""
    shutil.unpack_archive(bundle, tmp_path / "out")
    if way == "zip":
        subprocess.run(["zip", "-q", "-0", "-r", "../other.zip", "."], cwd=tmp_path / "out", check=True)
    else:
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            for file in sorted((tmp_path / "out").rglob("*")):
                archive.write(file, file.relative_to(tmp_path / "out"))
    mine, other = open_storage(bundle), open_storage(tmp_path / "other.zip")
    assert other.list("") == mine.list("")
    for path in mine.list(""):
        assert other.read_range(path, 1, 1) == mine.read(path)[1:2]
        assert other.read(path) == mine.read(path)
        assert other.open(path).read() == mine.read(path)
    assert list(mine.damage()) == []
    assert list(other.damage()) != []
    other.commit(b"more", SNAPSHOT.replace("2026", "2027"))
    other.flush()
    assert list(open_storage(tmp_path / "other.zip").damage()) == []


def test_every_flipped_bit_and_every_cut_is_found(bundle: Path, tmp_path: Path) -> None:
    """Whatever byte of the file changes, is missing or is added: opening, reading everything and ``damage`` tell."""
    data = bundle.read_bytes()
    copy = tmp_path / "copy.zip"

    def found() -> bool:
        try:
            with open_storage(copy) as storage:
                for path in storage.list(""):
                    storage.read(path)
                return bool(list(storage.damage()))
        except BundleError:
            return True

    copy.write_bytes(data)
    assert not found()
    chance = random.Random(7)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << chance.randrange(8)
        copy.write_bytes(changed)
        assert found(), f"a bit at byte {at}"
    for length in range(len(data)):
        copy.write_bytes(data[:length])
        assert found(), f"cut to {length} bytes"
    for garbage in (data + b"x", b"x" + data, data + data):
        copy.write_bytes(garbage)
        assert found()


def _zip(entries: list[tuple[str, bytes]], **options: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def _overlap() -> bytes:
    """Two entries of the directory that share one local header."""
    data = _zip([("a", b"1"), ("b", b"2")])
    second = data.rindex(b"PK\1\2")
    return data[: second + 42] + struct.pack("<L", 0) + data[second + 46 :]


def _encrypted() -> bytes:
    data = bytearray(_zip([("a", b"1")]))
    data[6] |= 1
    data[data.rindex(b"PK\1\2") + 8] |= 1
    return bytes(data)


def _lying_header(at: int) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(_zip([("objects/a", b"12345")]))
        data[at] ^= 1
        return bytes(data)

    return make


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a name that climbs out": lambda: _zip([("../x", b"1")]),
    "an absolute name": lambda: _zip([("/etc/x", b"1")]),
    "a drive": lambda: _zip([("C:/x", b"1")]),
    "a backslash": lambda: _zip([("a\\b", b"1")]),
    "an empty part": lambda: _zip([("a//b", b"1")]),
    "compressed": lambda: _zip([("mlflow-bundle.json", b"1" * 100)], compression=zipfile.ZIP_DEFLATED),
    "two of one name": lambda: _zip([("a", b"1"), ("a", b"2")]),
    "overlap": _overlap,
    "encrypted": _encrypted,
    "another signature": _lying_header(0),
    "another method": _lying_header(8),
    "another crc": _lying_header(14),
    "another packed size": _lying_header(18),
    "another size": _lying_header(22),
    "a longer name": _lying_header(26),
    "more extra fields": _lying_header(28),
    "another name": _lying_header(35),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(make: Callable[[], bytes], tmp_path: Path) -> None:
    """A ZIP file that says two things, hides something or points outside is refused before its content is used."""
    (tmp_path / "hostile.zip").write_bytes(make())

    def use(read: Callable[[Storage, str], bytes]) -> None:
        storage = open_storage(tmp_path / "hostile.zip")
        for path in storage.list(""):
            read(storage, path)

    with pytest.raises(CorruptError):
        use(lambda storage, path: storage.read(path))
    with pytest.raises(CorruptError):
        use(lambda storage, path: storage.read_range(path, 0, 1))


def test_an_enormous_directory(tmp_path: Path) -> None:
    """A file whose end claims a directory of gigabytes does not make a reader allocate them."""
    with (tmp_path / "huge.zip").open("wb") as file:
        file.truncate(3 * 2**30)
        file.seek(0, io.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3 * 2**30 - 100, 0, 0))
    with pytest.raises(BundleError, match="central directory of"):
        open_storage(tmp_path / "huge.zip")


class _Holes(io.FileIO):
    """A file where zeros become holes, so that gigabytes cost nothing."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        if len(data) >= 2**20:
            self.seek(len(data), io.SEEK_CUR)
            return len(data)
        return super().write(data)


def test_more_than_four_gibibytes(tmp_path: Path) -> None:
    """ZIP64 fields appear where a size or an offset needs them, and unzip, zipfile and this package read them."""
    chunk = bytes(2**24)
    size = 2**32 + 2**24
    crc = 0
    for _ in range(size // len(chunk)):
        crc = zlib.crc32(chunk, crc)

    def zeros() -> Iterator[bytes]:
        return (chunk for _ in range(size // len(chunk)))

    path = tmp_path / "big.zip"
    with _Holes(path, "xb") as file:
        write_archive(
            file, [Part("objects/a", size, crc, zeros), Part("objects/b", 5, zlib.crc32(b"small"), lambda: iter([b"small"]))]
        )
    storage = open_storage(path)
    assert storage.list("") == {"objects/a": size, "objects/b": 5}
    assert storage.read("objects/b") == b"small"
    assert storage.read_range("objects/a", size - 3, 3) == b"\0\0\0"
    assert list(storage.damage()) == []
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [len(_layout.MIMETYPE), size, 5]
        assert archive.read("objects/b") == b"small"
    assert subprocess.run(["unzip", "-p", str(path), "objects/b"], check=True, capture_output=True).stdout == b"small"


def test_more_than_65535_files() -> None:
    """A directory with more entries than 16 bits count is written and read."""
    file = io.BytesIO()
    write_archive(file, [Part(f"objects/{number}", 0, 0, lambda: iter(())) for number in range(70_000)])
    data = file.getvalue()
    archive = Archive(lambda start, length: data[start : start + length], len(data), "memory")
    assert len(archive.files) == 70_000
    assert not [text for text in archive.damage() if "directory" in text]
    with zipfile.ZipFile(file) as other:
        assert len(other.namelist()) == 70_001


def test_what_another_writer_added_is_kept(bundle: Path) -> None:
    """Two writers that began with the same file both find their files in it."""
    one, two = open_storage(bundle), open_storage(bundle)
    first, second = put(one, b"first"), put(two, b"second")
    one.flush()
    two.flush()
    assert {first, second, SNAPSHOT} <= open_storage(bundle).list("").keys()
    assert one.read(first) == b"first"


@pytest.mark.parametrize("change", ["another", "removed", "other marker"])
def test_a_file_that_was_exchanged(change: str, bundle: Path, tmp_path: Path) -> None:
    """Where the file is another bundle by now, or gone, the flush refuses and changes nothing."""
    storage = open_storage(bundle)
    put(storage, b"new")
    bundle.unlink()
    if change != "removed":
        with open_storage(bundle) as other:
            other.put_bytes(b"[]", _layout.MARKER)
            other.flush()
    before = bundle.read_bytes() if bundle.exists() else None
    with pytest.raises(StorageError) as caught:
        storage.flush()
    assert caught.value.code == "bundle-changed"
    assert (bundle.read_bytes() if bundle.exists() else None) == before


def test_a_link_stays_a_link(bundle: Path) -> None:
    """Where the path is a symbolic link, what it points to is replaced, with its permissions."""
    link = bundle.parent / "link.zip"
    link.symlink_to(bundle.name)
    bundle.chmod(0o640)
    with open_storage(link) as storage:
        path = put(storage, b"new")
        storage.flush()
    assert link.is_symlink()
    assert bundle.stat().st_mode & 0o777 == 0o640
    assert path in open_storage(bundle).list("")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Adding to a file of 300 MB takes no memory for what is in it."""
    with open_storage(tmp_path / "big.zip") as storage:
        with storage.stage() as staged:
            for number in range(300):
                staged.write(number.to_bytes(4, "big") * 250_000)
            storage.put(staged, path := _layout.object_path(_layout.BLOBS, staged.sha256))
        storage.flush()
    program = (
        "import resource, sys; from mlflow_bundle._storage import open_storage\n"
        "with open_storage(sys.argv[1]) as s:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    s.put_bytes(b'x', 'README.md'); s.flush()\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big.zip")], check=True, capture_output=True, text=True
    )
    assert int(grown.stdout) < 60_000, "KiB"
    assert open_storage(tmp_path / "big.zip").size(path) == 300_000_000


def test_the_first_file_is_made_once(tmp_path: Path) -> None:
    """Where nothing was seen and something lies there by now, it is not replaced."""
    place = LocalPlace("bundle.zip", tmp_path / "bundle.zip")
    (tmp_path / "next").write_bytes(b"ours")
    (tmp_path / "bundle.zip").write_bytes(b"theirs")
    assert place.replace(tmp_path / "next", None, first=True) is False
    assert (tmp_path / "bundle.zip").read_bytes() == b"theirs"


def test_writers_wait_for_each_other(bundle: Path) -> None:
    """While one writer assembles the next file, another waits, and then adds to that one."""
    one, two = open_storage(bundle), open_storage(bundle)
    first, second = put(one, b"first"), put(two, b"second")
    with ThreadPoolExecutor(1) as pool:
        with LocalPlace("lock", bundle).exclusive():
            waiting = pool.submit(two.flush)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            _replace_without_lock(bundle, first)
        waiting.result(timeout=30)
    assert {first, second, SNAPSHOT} <= open_storage(bundle).list("").keys()


def _replace_without_lock(bundle: Path, added: str) -> None:
    """What the writer that holds the lock does: put another file in the place of this one."""
    old = open_storage(bundle)
    contents = {path: old.read(path) for path in old.list("")} | {added: b"first"}
    with bundle.with_name("next").open("xb") as file:
        parts = [Part(path, len(data), zlib.crc32(data), partial(iter, (data,))) for path, data in contents.items()]
        write_archive(file, parts)
    bundle.with_name("next").replace(bundle)


@pytest.mark.parametrize(
    "content", [b"", b"P", b"no zip", b"\0" * 10, b"a text\n" * 20_000], ids=["empty", "one letter", "short", "zeros", "long"]
)
def test_a_file_that_is_no_zip_file_is_no_bundle(content: bytes, tmp_path: Path) -> None:
    """It is refused as every other place without a bundle is, in one sentence, whoever asks; and it stays as it is."""
    place = tmp_path / "bad.zip"
    place.write_bytes(content)
    for ask in (open_storage, mlflow_bundle.open, mlflow_bundle.verify):
        with pytest.raises(BundleNotFoundError) as caught:
            ask(place)
        assert caught.value.message == f"there is no bundle at {place}: the file is not a ZIP file"
    assert place.read_bytes() == content


@pytest.mark.parametrize("length", [2, 15, 21, 200, -1])
def test_a_zip_file_that_was_cut_is_damaged(length: int, bundle: Path) -> None:
    """What begins as a bundle does, and has lost its end, is damage and not the absence of a bundle."""
    bundle.write_bytes(bundle.read_bytes()[:length])
    with pytest.raises(CorruptError, match="is not a whole ZIP file"):
        open_storage(bundle)
    (problem,) = mlflow_bundle.verify(bundle).problems
    assert problem.code == "E071"


def test_more_files_than_a_reader_opens_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer stays below the limit of readers, and says so before it writes the first byte."""
    monkeypatch.setattr(_zipform, "_DIRECTORY_LIMIT", 1_000)
    parts = [Part(f"objects/{number:03}", 1, zlib.crc32(b"x"), lambda: iter((b"x",))) for number in range(20)]
    file = io.BytesIO()
    with pytest.raises(LimitError, match="its directory would have") as caught:
        write_archive(file, parts)
    assert (caught.value.code, file.getvalue()) == ("E094", b"")
    write_archive(file, parts[:8])
    assert len(Archive(_ranges(file.getvalue()), len(file.getvalue()), "x.zip").files) == 8


def _ranges(data: bytes) -> Callable[[int, int], bytes]:
    return lambda start, length: data[start : start + length]


def test_a_zip_file_of_something_else(tmp_path: Path) -> None:
    """Any ZIP file that is no bundle is called so, however it stores its files."""
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        (tmp_path / "other.zip").write_bytes(_zip([("a", b"1" * 100)], compression=method))
        with pytest.raises(BundleNotFoundError):
            mlflow_bundle.open(tmp_path / "other.zip")


def test_a_file_that_changed_before_the_flush_is_not_written(tmp_path: Path) -> None:
    """What was put and turned into other bytes on the disk until the ZIP file is made: that stays as it was."""
    place = tmp_path / "bundle.zip"
    with open_storage(place) as storage:
        put(storage, b"first")
        storage.flush()
    before = place.read_bytes()
    with open_storage(place) as storage:
        put(storage, b"the second")
        (staged,) = (path for path in tmp_path.rglob("*") if path.is_file() and path != place)
        staged.write_bytes(b"the sacond")
        with pytest.raises(StorageError, match="does not read back") as caught:
            storage.flush()
        assert caught.value.code == "self-check"
    assert place.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("where", ["s3", "memory", "local"])
def test_a_reader_of_a_file_that_is_replaced_is_told(where: str, tmp_path: Path, s3_bucket: Bucket) -> None:
    """Parts of a content, which no digest covers, are never those of another file; an open file of this machine just stays."""
    url = {"s3": f"s3://{s3_bucket.name}/b.zip", "memory": f"memory://{tmp_path.name}/b.zip", "local": str(tmp_path / "b.zip")}
    options = s3_bucket.storage_options if where == "s3" else {}
    contents = [random.Random(number).randbytes(5_000) for number in range(8)]
    with open_storage(url[where], storage_options=options) as storage:
        writer = BlobWriter(storage, TINY, [], DEFAULT_LIMITS)
        for data in contents:
            writer.add_stream(io.BytesIO(data), len(data))
        listed = settle(
            storage,
            old=[],
            new=writer.objects,
            extents=writer.close(),
            used=np.array(sorted(hashlib.sha256(data).hexdigest() for data in contents), "S64"),
            targets=TINY,
            limits=DEFAULT_LIMITS,
        )
        storage.flush()
    with (
        open_storage(url[where], storage_options=options) as reading,
        open_storage(url[where], storage_options=options) as other,
    ):
        blobs = BlobReader(reading, [ref for ref in listed.refs if ref.role == _layout.INDEX], DEFAULT_LIMITS)
        files = {data: blobs.seekable(hashlib.sha256(data).hexdigest()) for data in contents}
        for data, file in files.items():
            assert file.read(10) == data[:10]
        again = {data: blobs.seekable(hashlib.sha256(data).hexdigest()) for data in contents}
        for number in range(100, 108):
            put(other, random.Random(number).randbytes(10_000))
        other.flush()
        for data, file in again.items():
            file.seek(2_000)
            if where == "local":
                assert file.read(10) == data[2_000:2_010]
            else:
                with pytest.raises(BundleError) as caught:
                    file.read(10)
                assert caught.value.code == "bundle-changed"
