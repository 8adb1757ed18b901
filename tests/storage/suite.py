"""What every storage must do, whatever lies below it: one subclass for each backend runs all of it."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_bundle import _layout
from mlflow_bundle._storage import Storage, _local, _onefile, _remote
from mlflow_bundle.errors import CorruptError, NotFoundError, StorageError

#: Opens the storage of the test once more, as another process would.
Opener = Callable[[], Storage]

SNAPSHOT = "snapshots/20260102T030405.678Z-0123456789abcdef.json"


def path_of(data: bytes, role: str = _layout.BLOBS) -> str:
    """Where an object with these bytes belongs."""
    return _layout.object_path(role, hashlib.sha256(data).hexdigest())


def put(storage: Storage, data: bytes, role: str = _layout.BLOBS) -> str:
    """Put an object and say where it lies."""
    path = path_of(data, role)
    storage.put_bytes(data, path)
    return path


class StorageTests:
    """Subclasses have a fixture ``opener``."""

    def test_what_was_put_is_read_by_another_process(self, opener: Opener) -> None:
        """An object, the marker and a snapshot are read back byte for byte through a storage opened afterwards."""
        data = random.Random(1).randbytes(100_000)
        with opener() as storage:
            assert storage.put_bytes(b"{}", _layout.MARKER) is True
            path = put(storage, data)
            storage.commit(b"snapshot", SNAPSHOT)
            assert storage.read(path) == data, "what was put can be checked before the flush"
            storage.flush()
            assert storage.read(path) == data
        with opener() as fresh:
            assert fresh.read(path) == data
            assert fresh.read(_layout.MARKER) == b"{}"
            assert fresh.read(SNAPSHOT) == b"snapshot"
            assert fresh.list("") == {_layout.MARKER: 2, path: len(data), SNAPSHOT: 8}

    def test_nothing_there(self, opener: Opener) -> None:
        """Of what is not there, the size is None, the listing is empty, and reading says that it is missing."""
        storage = opener()
        path = path_of(b"never put")
        assert storage.size(path) is None
        assert storage.list("") == {}
        assert storage.list("objects/metrics") == {}
        for read in (storage.read, storage.open, lambda path: storage.read_range(path, 0, 1)):
            with pytest.raises(NotFoundError) as caught:
                read(path)
            assert caught.value.code == "object-missing"

    @pytest.mark.parametrize("flushed", [False, True])
    def test_ranges(self, opener: Opener, flushed: bool) -> None:
        """A range has exactly the bytes asked for, and one beyond the end is an error and never a shorter answer."""
        storage = opener()
        data = random.Random(2).randbytes(5_000)
        path = put(storage, data)
        if flushed:
            storage.flush()
        for start, length in ((0, 5_000), (0, 1), (4_999, 1), (1_234, 2_345), (0, 0), (77, 0)):
            assert storage.read_range(path, start, length) == data[start : start + length]
        for start, length in ((0, 5_001), (4_999, 2), (5_000, 1), (9_999, 1)):
            with pytest.raises(CorruptError):
                storage.read_range(path, start, length)

    def test_an_empty_object(self, opener: Opener) -> None:
        """No bytes are a content like any other."""
        storage = opener()
        path = put(storage, b"")
        storage.flush()
        assert storage.size(path) == 0
        assert storage.read(path) == b""
        assert storage.read_range(path, 0, 0) == b""
        with storage.open(path) as file:
            assert file.read() == b""
        assert opener().list("objects") == {path: 0}

    def test_ten_mebibytes_through_a_staged_file(self, opener: Opener) -> None:
        """A large object is hashed while it is written in pieces, can be checked before it is put, and is read anywhere."""
        storage = opener()
        chance = random.Random(3)
        data = chance.randbytes(10 * 2**20)
        with storage.stage() as staged:
            for start in range(0, len(data), 777_777):
                assert staged.tell() == start
                assert staged.write(memoryview(data)[start : start + 777_777]) == min(777_777, len(data) - start)
            staged.finish()
            assert (staged.size, staged.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            with staged.reopen() as again:
                assert again.read() == data
            path = path_of(data)
            assert storage.put(staged, path) is True
        storage.flush()
        fresh = opener()
        with fresh.open(path) as file:
            for _ in range(50):
                start, length = chance.randrange(len(data)), chance.choice((1, 100, 70_000, 3_000_000))
                assert file.seek(start) == start
                assert file.read(length) == data[start : start + length]
            assert file.seek(-5, io.SEEK_END) == len(data) - 5
            assert file.read() == data[-5:]
            assert file.read(1) == b""
            file.seek(0)
            assert b"".join(iter(lambda: file.read(1_000_003), b"")) == data
            file.seek(1)
            assert file.read() == data[1:]

    def test_put_twice(self, opener: Opener) -> None:
        """The second put of a content says that it was there, before and after a flush, and changes nothing."""
        storage = opener()
        data = b"the same content"
        path = path_of(data)
        assert storage.put_bytes(data, path) is True
        assert storage.put_bytes(data, path) is False
        storage.flush()
        assert storage.put_bytes(data, path) is False
        assert opener().put_bytes(data, path) is False
        assert opener().list("") == {path: len(data)}

    def test_an_object_with_other_bytes_of_the_same_size(self, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not taken for what was put, where objects are read back; nothing is replaced, and the way out is told."""
        wrong, right = b"the wrong bytes", b"the right bytes"
        path = path_of(right)
        with monkeypatch.context() as blind, opener() as storage:
            for module in (_local, _onefile, _remote):
                blind.setattr(module, "check_name", lambda *_: None)
            storage.put_bytes(wrong, path)
            storage.flush()
        storage = opener()
        storage.thorough = True
        with storage.stage() as staged:
            staged.write(right)
            with pytest.raises(StorageError, match="has other bytes than its name says") as caught:
                storage.put(staged, path)
        assert not staged.path.exists()
        assert caught.value.code == "object-damaged"
        assert "run again" in (caught.value.hint or "")
        assert storage.read(path) == wrong

    @pytest.mark.parametrize("path", [path_of(b"what was written"), _layout.MARKER])
    def test_a_staged_file_that_changed_is_not_published(self, opener: Opener, path: str) -> None:
        """One bit that a bad disk or memory turned is found before anybody can see the file."""
        storage = opener()
        with storage.stage() as staged:
            staged.write(b"what was written")
            staged.finish()
            staged.path.write_bytes(b"what was writtem")
            with pytest.raises(StorageError, match="does not read back as it was written") as caught:
                storage.put(staged, path)
        assert caught.value.code == "self-check"
        storage.flush()
        assert opener().list("") == {}

    def test_a_document_is_never_replaced(self, opener: Opener) -> None:
        """Of two markers, whatever their sizes, the first stays."""
        storage = opener()
        assert storage.put_bytes(b"first", _layout.MARKER) is True
        storage.flush()
        assert storage.put_bytes(b"other", _layout.MARKER) is False
        assert opener().put_bytes(b"a longer one", _layout.MARKER) is False
        assert opener().read(_layout.MARKER) == b"first"

    def test_an_object_must_have_the_name_of_its_content(self, opener: Opener) -> None:
        """Putting bytes under the digest of others is refused, and nothing is published."""
        storage = opener()
        with pytest.raises(ValueError, match="SHA-256"):
            storage.put_bytes(b"these", path_of(b"those"))
        storage.flush()
        assert opener().list("") == {}

    def test_staged_and_never_put(self, opener: Opener) -> None:
        """A staged file that is left behind, by an error or on purpose, is no part of the bundle and of no disk."""
        with opener() as storage:
            with storage.stage() as staged:
                staged.write(b"half an object")
                assert staged.path.exists()
            assert not staged.path.exists()
            storage.flush()
        assert opener().list("") == {}

    def test_listing(self, opener: Opener) -> None:
        """A listing is recursive, sorted, of one folder by its whole name, and never older than the last write."""
        storage = opener()
        wanted = {}
        for role in (_layout.METRICS, "model_metrics", _layout.PACKS, _layout.RECORDS):
            for number in range(3):
                data = f"{role}{number}".encode()
                wanted[put(storage, data, role)] = len(data)
                assert storage.list("objects") == dict(sorted(wanted.items()))
        storage.flush()
        for reader in (storage, opener()):
            assert list(reader.list("").items()) == sorted(wanted.items())
            assert reader.list("objects/metrics") == {k: v for k, v in wanted.items() if k.startswith("objects/metrics/")}
            assert reader.list("objects/metric") == {}
            assert reader.list("objects/packs").keys() == {k for k in wanted if "/packs/" in k}

    def test_another_writer_is_seen_at_once(self, opener: Opener) -> None:
        """What somebody else puts shows in sizes, listings and puts of a storage that had looked before."""
        ours, theirs = opener(), opener()
        path = path_of(b"theirs")
        assert ours.size(path) is None
        assert ours.list("") == {}
        theirs.put_bytes(b"theirs", path)
        theirs.flush()
        ours = self.look_again(ours, opener)
        assert ours.size(path) == 6
        assert ours.list("") == {path: 6}
        assert ours.put_bytes(b"theirs", path) is False

    def look_again(self, storage: Storage, opener: Opener) -> Storage:
        """Storages look at every call; the one-file form, which holds one state of the file, is opened again."""
        return storage

    def test_commit(self, opener: Opener) -> None:
        """Committing again is a success; other bytes under the name of a snapshot are refused, and the first stay."""
        storage = opener()
        storage.commit(b"a snapshot", SNAPSHOT)
        storage.flush()
        storage.commit(b"a snapshot", SNAPSHOT)
        with pytest.raises(StorageError) as caught:
            opener().commit(b"another", SNAPSHOT)
        assert caught.value.code == "object-damaged"
        assert opener().read(SNAPSHOT) == b"a snapshot"

    def test_paths_stay_inside(self, opener: Opener) -> None:
        """A path from a hostile bundle reads nothing outside of it."""
        storage = opener()
        put(storage, b"something")
        for path in ("../outside", "/etc/passwd", "objects/../../x", "objects//x", "a\\..\\b", "C:/x", "x\0y", ".", ""):
            for call in (storage.read, storage.open, storage.size, lambda path: storage.read_range(path, 0, 1)):
                with pytest.raises(CorruptError):
                    call(path)

    def test_libraries_write_into_a_staged_file(self, opener: Opener) -> None:
        """pyarrow and zipfile write into a staged file and read from an opened one."""
        storage = opener()
        table = pa.table({"step": range(1_000), "value": [0.5] * 1_000})
        with storage.stage() as staged:
            pq.write_table(table, staged)
            staged.finish()
            parquet = _layout.object_path(_layout.METRICS, staged.sha256)
            storage.put(staged, parquet)
        with storage.stage() as staged:
            with zipfile.ZipFile(staged, "w") as archive:
                archive.writestr("name", b"content")
            pack = _layout.object_path(_layout.PACKS, staged.sha256)
            storage.put(staged, pack)
        storage.flush()
        fresh = opener()
        with fresh.open(parquet) as file:
            assert pq.ParquetFile(file).read().equals(table)
        with fresh.open(pack) as file, zipfile.ZipFile(file) as archive:
            assert archive.read("name") == b"content"

    def test_eight_threads(self, opener: Opener) -> None:
        """Threads that put and read different and equal objects at the same time lose and tear nothing."""
        contents = [random.Random(number).randbytes(1_000 * number) for number in range(1, 25)]
        storage = opener()

        def work(turn: int) -> None:
            mixed = contents.copy()
            random.Random(turn).shuffle(mixed)
            for data in mixed:
                put(storage, data)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        storage.commit(b"snapshot", SNAPSHOT)
        storage.flush()
        fresh = opener()
        assert fresh.list("objects") == dict(sorted((path_of(data), len(data)) for data in contents))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda data: fresh.read(path_of(data)), contents * 4)) == contents * 4
            assert list(pool.map(lambda data: fresh.open(path_of(data)).read(), contents)) == contents
