"""Storage that refuses, loses answers, fills up or loses the writer: what is reported is what happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import s3fs

from mlflow_bundle import _layout
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle.errors import BundleError, BundleNotFoundError, CommitUnknownError, CorruptError, NotFoundError, StorageError
from tests.fixtures.s3 import Bucket, s3_options
from tests.storage.proxy import Fault, Proxy, conditional, gets, puts, reads, run_proxy
from tests.storage.suite import SNAPSHOT, path_of, put

DATA = b"a snapshot"
#: Seconds that the client of these tests waits for an answer.
PATIENCE = 1


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    """A proxy in front of the S3 server."""
    with run_proxy(s3_server) as running:
        yield running


@pytest.fixture
def through(proxy: Proxy, s3_bucket: Bucket) -> Storage:
    """The bundle in the bucket as a client sees it through the proxy, without botocore's own further attempts."""
    return open_storage(f"s3://{s3_bucket.name}/bundle", storage_options=impatient(proxy.endpoint))


@pytest.fixture
def behind(s3_bucket: Bucket) -> Storage:
    """The same bundle as it really is, without the proxy."""
    return open_storage(f"s3://{s3_bucket.name}/bundle", storage_options=s3_bucket.storage_options)


def impatient(endpoint: str) -> dict[str, Any]:
    """Options of a client that gives up soon."""
    config = {"read_timeout": PATIENCE, "connect_timeout": PATIENCE, "retries": {"max_attempts": 0}}
    return {**s3_options(endpoint), "config_kwargs": config}


HARMLESS = {
    "a gateway that knows no conditional write": Fault(conditional, status=501, code="NotImplemented"),
    "a gateway that answers a conditional write with an invalid argument": Fault(
        conditional, status=400, code="InvalidArgument"
    ),
    "a gateway that says that a condition failed, and nothing is there": Fault(
        conditional, status=412, code="PreconditionFailed"
    ),
    "a conflict with another request": Fault(puts, times=1, status=409, code="ConditionalRequestConflict"),
    "an answer that comes too late": Fault(puts, times=1, forward=True, seconds=2 * PATIENCE),
    "a write whose answer is lost": Fault(puts, times=1, forward=True, drop=True),
    "writes whose answers are all lost": Fault(puts, forward=True, drop=True),
    "a write that is answered with an error and was done": Fault(puts, forward=True, status=500, code="InternalError"),
    "a write that was done and is answered with a refusal": Fault(puts, forward=True, status=403, code="AccessDenied"),
    "a store that asks to slow down": Fault(puts, times=3, status=503, code="SlowDown"),
    "a store that is not available for a while": Fault(puts, times=2, status=503, code="ServiceUnavailable"),
    "a connection that breaks before the write": Fault(puts, times=2, drop=True),
    "a read that is refused once": Fault(reads, times=1, status=503, code="SlowDown"),
}

REFUSALS = {
    "no permission": (Fault(puts, status=403, code="AccessDenied"), "permission"),
    "errors and nothing else": (Fault(puts, status=500, code="InternalError"), "storage"),
    "never available": (Fault(puts, status=503, code="ServiceUnavailable"), "storage"),
    "success that is none": (Fault(puts, status=200), "not-committed"),
}


@pytest.mark.parametrize("fault", HARMLESS.values(), ids=HARMLESS.keys())
def test_commit_succeeds(fault: Fault, proxy: Proxy, through: Storage, behind: Storage) -> None:
    """Where the snapshot lies there in the end, the commit says so, and a second one agrees."""
    proxy.faults = [replace(fault)]
    through.commit(DATA, SNAPSHOT)
    assert behind.read(SNAPSHOT) == DATA
    through.commit(DATA, SNAPSHOT)
    assert behind.list("") == {SNAPSHOT: len(DATA)}
    assert not [request for request in proxy.requests if request.method == "DELETE"]


@pytest.mark.parametrize(("fault", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_commit_is_refused(fault: Fault, code: str, proxy: Proxy, through: Storage, behind: Storage) -> None:
    """Where the store answered and the snapshot is not there, the commit says that it is not committed."""
    proxy.faults = [replace(fault)]
    with pytest.raises(StorageError) as caught:
        through.commit(DATA, SNAPSHOT)
    assert not isinstance(caught.value, CommitUnknownError)
    assert caught.value.code == code
    assert behind.list("") == {}
    proxy.faults = []
    through.commit(DATA, SNAPSHOT)
    assert behind.read(SNAPSHOT) == DATA
    assert not [request for request in proxy.requests if request.method == "DELETE"]


@pytest.mark.parametrize(
    ("deaf", "written"),
    [
        (Fault(reads, status=403, code="AccessDenied"), True),
        (Fault(reads, status=403, code="AccessDenied"), False),
        pytest.param(Fault(reads, drop=True), True, marks=pytest.mark.slow),
    ],
    ids=["refused, written", "refused, not written", "dead, written"],
)
def test_commit_is_unknown(deaf: Fault, written: bool, proxy: Proxy, through: Storage, behind: Storage) -> None:
    """Where nothing can be read back, the commit says that nobody knows, and what it wrote stays."""
    proxy.faults = [replace(deaf), Fault(puts, forward=written, drop=True)]
    with pytest.raises(CommitUnknownError):
        through.commit(DATA, SNAPSHOT)
    assert behind.list("") == ({SNAPSHOT: len(DATA)} if written else {})
    proxy.faults = []
    through.commit(DATA, SNAPSHOT)
    assert behind.read(SNAPSHOT) == DATA
    assert not [request for request in proxy.requests if request.method == "DELETE"]


def test_commit_without_any_answer(proxy: Proxy, through: Storage, behind: Storage) -> None:
    """A write that got no answer and is not seen may still be under way: that is not called a failure."""
    proxy.faults = [Fault(puts, drop=True)]
    with pytest.raises(CommitUnknownError):
        through.commit(DATA, SNAPSHOT)
    assert behind.list("") == {}


@pytest.mark.parametrize("fault", HARMLESS.values(), ids=HARMLESS.keys())
def test_put_succeeds(fault: Fault, proxy: Proxy, through: Storage, behind: Storage) -> None:
    """An object is there after ``put`` returned, whatever happened on the way; where it raised, a second one mends it."""
    data = random.Random(5).randbytes(100_000)
    proxy.faults = [replace(fault)]
    try:
        put(through, data)
    except StorageError:
        proxy.faults = []
        put(through, data)
    assert behind.read(path_of(data)) == data


READING = {
    "answers that break off once": Fault(gets, times=1, forward=True, breaks=True),
    "answers that always break off": Fault(gets, forward=True, breaks=True),
    "half of what was asked for, as if it were all": Fault(gets, forward=True, half=True),
    "everything, whatever was asked for": Fault(gets, forward=True, whole=True),
    "an answer that is lost": Fault(gets, times=1, forward=True, drop=True),
    "errors": Fault(gets, status=500, code="InternalError"),
    "busy for a while": Fault(gets, times=2, status=503, code="SlowDown"),
    "nothing there for a moment": Fault(gets, times=1, status=404, code="NoSuchKey"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
@pytest.mark.parametrize("fault", READING.values(), ids=READING.keys())
def test_reading_gives_the_bytes_or_an_error(fault: Fault, name: str, proxy: Proxy, s3_bucket: Bucket) -> None:
    """Whatever a store answers to a range: it is the right one, or an error of this package. No byte is made up."""
    data = random.Random(6).randbytes(3_000_000)
    url = f"s3://{s3_bucket.name}/{name}"
    with open_storage(url, storage_options=s3_bucket.storage_options) as behind:
        path = put(behind, data)
        behind.flush()
    through = open_storage(url, storage_options=impatient(proxy.endpoint))
    reads: dict[str, tuple[bytes, Callable[[], bytes]]] = {
        "a range": (data[5_000:9_000], lambda: through.read_range(path, 5_000, 4_000)),
        "the beginning": (data[:9_000], lambda: through.read_range(path, 0, 9_000)),
        "a file": (data, lambda: through.open(path).read()),
        "the end of a file": (data[-100:], lambda: _end_of(through.open(path), 100)),
    }
    for expected, read in reads.values():
        proxy.faults = [replace(fault)]
        try:
            found = read()
        except BundleError:
            continue
        assert found == expected


def _end_of(file: BinaryIO, size: int) -> bytes:
    file.seek(-size, os.SEEK_END)
    return file.read()


def test_a_server_without_ranges_is_named(proxy: Proxy, through: Storage) -> None:
    """Who gets more than was asked for is told what the server cannot do, and not that the object is damaged."""
    path = put(through, bytes(10_000))
    proxy.faults = [Fault(gets, forward=True, whole=True)]
    with pytest.raises(StorageError, match="gave 10,000 bytes where 100 were asked for") as caught:
        through.read_range(path, 50, 100)
    assert caught.value.code == "no-ranges"


def test_put_is_refused(proxy: Proxy, through: Storage, behind: Storage) -> None:
    """A refused object is an error with its reason, and not there."""
    proxy.faults = [Fault(puts, status=403, code="AccessDenied")]
    with pytest.raises(StorageError) as caught:
        put(through, b"object")
    assert caught.value.code == "permission"
    assert "access is denied" in str(caught.value)
    assert behind.list("") == {}


def test_put_that_lies(proxy: Proxy, through: Storage) -> None:
    """A store that answers success and keeps nothing is found out at once."""
    proxy.faults = [Fault(puts, status=200)]
    with pytest.raises(StorageError, match="is not there"):
        put(through, b"object")


def test_a_damaged_object_is_not_replaced(proxy: Proxy, through: Storage, behind: Storage, s3_bucket: Bucket) -> None:
    """An object whose size cannot be right is reported, and stays as it is."""
    path = path_of(b"the right content")
    s3fs.S3FileSystem(**s3_bucket.storage_options).pipe_file(f"{s3_bucket.name}/bundle/{path}", b"wrong")
    with pytest.raises(StorageError) as caught:
        put(through, b"the right content")
    assert caught.value.code == "object-damaged"
    assert behind.read(path) == b"wrong"


def test_other_bytes_of_the_same_size_are_found_by_their_checksum(
    proxy: Proxy, through: Storage, behind: Storage, s3_bucket: Bucket
) -> None:
    """Where the store says the MD5 of an object, that is compared at the price of no request; the bytes have the last word."""
    data = b"the right content"
    path = put(through, data)
    proxy.requests.clear()
    assert through.put_bytes(data, path) is False
    assert [request.method for request in proxy.requests] == ["HEAD"]
    s3fs.S3FileSystem(**s3_bucket.storage_options).pipe_file(f"{s3_bucket.name}/bundle/{path}", b"the wrong content")
    with pytest.raises(StorageError) as caught:
        put(through, data)
    assert caught.value.code == "object-damaged"
    assert behind.read(path) == b"the wrong content"


def test_a_checksum_of_something_else_is_no_damage(through: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ETag of an object that the store encrypts looks like an MD5 and is none: then the bytes are read."""
    path = put(through, b"the right content")
    info = s3fs.S3FileSystem.info
    monkeypatch.setattr(s3fs.S3FileSystem, "info", lambda *args, **options: {**info(*args, **options), "ETag": f'"{"0" * 32}"'})
    assert through.put_bytes(b"the right content", path) is False


def test_a_missing_bucket(s3_bucket: Bucket) -> None:
    """Reading says that there is no such bucket, and so does writing."""
    storage = open_storage("s3://no-such-bucket-here/bundle", storage_options=s3_bucket.storage_options)
    with pytest.raises(BundleNotFoundError, match="bucket"):
        storage.read(_layout.MARKER)
    with pytest.raises(StorageError) as caught:
        put(storage, b"object")
    assert caught.value.code == "bucket-missing"


def test_an_unreachable_endpoint(s3_bucket: Bucket) -> None:
    """A dead endpoint is one clear sentence and soon."""
    storage = open_storage(f"s3://{s3_bucket.name}/bundle", storage_options=impatient("http://127.0.0.1:1"))
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        storage.size(_layout.MARKER)
    assert caught.value.code == "unreachable"
    assert time.monotonic() - began < 20


def test_no_credentials(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without credentials the error says that, and how to give some."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    storage = open_storage("s3://bucket/bundle", storage_options={"endpoint_url": s3_server})
    with pytest.raises(StorageError) as caught:
        storage.read(_layout.MARKER)
    assert caught.value.code == "credentials"
    assert "storage_options" in (caught.value.hint or "")


ONE_FILE = {
    "a gateway that knows no conditional write": Fault(conditional, status=501, code="NotImplemented"),
    "a write whose answer is lost": Fault(puts, times=1, forward=True, drop=True),
    "a write that is answered with an error and was done": Fault(puts, times=1, forward=True, status=500, code="InternalError"),
    "a store that asks to slow down": Fault(puts, times=3, status=503, code="SlowDown"),
}


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("fault", ONE_FILE.values(), ids=ONE_FILE.keys())
def test_one_file_is_replaced(fault: Fault, exists: bool, proxy: Proxy, s3_bucket: Bucket) -> None:
    """The one file is the new one after ``flush`` returned, with what was in the old one."""
    url = f"s3://{s3_bucket.name}/bundle.zip"
    expected = {}
    if exists:
        with open_storage(url, storage_options=s3_bucket.storage_options) as first:
            expected[put(first, b"old")] = 3
            first.flush()
    with open_storage(url, storage_options=impatient(proxy.endpoint)) as storage:
        storage.commit(DATA, SNAPSHOT)
        proxy.faults = [replace(fault)]
        storage.flush()
    assert open_storage(url, storage_options=s3_bucket.storage_options).list("") == {**expected, SNAPSHOT: len(DATA)}


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ([Fault(puts, status=403, code="AccessDenied")], StorageError),
        ([Fault(puts, status=200)], StorageError),
        ([Fault(puts, drop=True)], StorageError),
    ],
    ids=["no permission", "success that is none", "no answer"],
)
def test_one_file_stays(faults: list[Fault], kind: type[StorageError], proxy: Proxy, s3_bucket: Bucket) -> None:
    """A file that could not be replaced is the old one, byte for byte."""
    url = f"s3://{s3_bucket.name}/bundle.zip"
    with open_storage(url, storage_options=s3_bucket.storage_options) as first:
        path = put(first, b"old")
        first.flush()
    with open_storage(url, storage_options=impatient(proxy.endpoint)) as storage:
        storage.commit(DATA, SNAPSHOT)
        proxy.faults = [replace(fault) for fault in faults]
        with pytest.raises(kind):
            storage.flush()
    after = open_storage(url, storage_options=s3_bucket.storage_options)
    assert after.list("") == {path: 3}
    assert list(after.damage()) == []


def test_one_file_is_unknown(proxy: Proxy, s3_bucket: Bucket) -> None:
    """A replacement that cannot be read back is not called a success, and not a failure."""
    url = f"s3://{s3_bucket.name}/bundle.zip"
    with open_storage(url, storage_options=impatient(proxy.endpoint)) as storage:
        storage.commit(DATA, SNAPSHOT)
        done = [False]

        def after_the_write(request: Any) -> bool:
            done[0] = done[0] or puts(request)
            return done[0] and reads(request)

        proxy.faults = [Fault(after_the_write, status=403, code="AccessDenied")]
        with pytest.raises(CommitUnknownError):
            storage.flush()


# Races -------------------------------------------------------------------------------------------------------------------

_RACER = """
import json, sys, time
from mlflow_bundle._storage import open_storage
from mlflow_bundle.errors import StorageError
url, options, start, verb, text, path = json.loads(sys.argv[1])
storage = open_storage(url, storage_options=options)
time.sleep(max(0, start - time.time()))
try:
    if verb == "put":
        print(storage.put_bytes(text.encode(), path))
    else:
        storage.commit(text.encode(), path)
        storage.flush()
        print(True)
except StorageError as error:
    print(error.code)
"""


def race(url: str, options: dict[str, Any], jobs: list[tuple[str, str, str]]) -> list[str]:
    """Run each (verb, content, path) in a process of its own, all at the same moment; what each printed."""
    start = time.time() + 3
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, json.dumps([url, options, start, *job])], stdout=subprocess.PIPE, text=True
        )
        for job in jobs
    ]
    return [process.communicate(timeout=60)[0].strip() for process in processes]


@pytest.fixture(params=["local", "s3", "zip", "s3 zip"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A place for a bundle that several processes reach."""
    if "s3" not in request.param:
        return str(tmp_path / ("bundle.zip" if request.param == "zip" else "bundle")), {}
    bucket: Bucket = request.getfixturevalue("s3_bucket")
    return f"s3://{bucket.name}/bundle" + (".zip" if "zip" in request.param else ""), bucket.storage_options


@pytest.mark.slow
def test_processes_commit_the_same(target: tuple[str, dict[str, Any]]) -> None:
    """All of several processes that commit the same snapshot succeed."""
    url, options = target
    assert race(url, options, [("commit", "same", SNAPSHOT)] * 3) == ["True"] * 3
    assert open_storage(url, storage_options=options).read(SNAPSHOT) == b"same"


@pytest.mark.slow
def test_processes_commit_different_snapshots(target: tuple[str, dict[str, Any]]) -> None:
    """Writers of different snapshots commute: what each was told is what is listed."""
    url, options = target
    paths = [SNAPSHOT.replace("0123", f"012{number}") for number in range(3)]
    told = race(url, options, [("commit", path, path) for path in paths])
    listed = open_storage(url, storage_options=options).list(_layout.SNAPSHOTS)
    if url.endswith(".zip") and options:  # a file on S3 has no lock: the last one may win, and only then
        assert listed
        return
    assert told == ["True"] * 3
    assert sorted(listed) == sorted(paths)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "s3"])
def test_processes_and_threads_put_the_same_object(where: str, tmp_path: Path, s3_bucket: Bucket) -> None:
    """An object that several writers put is there, whole, and none of them fails."""
    url, options = (str(tmp_path / "b"), {}) if where == "local" else (f"s3://{s3_bucket.name}/b", s3_bucket.storage_options)
    text = "object" * 10_000
    told = race(url, options, [("put", text, path_of(text.encode()))] * 3)
    assert set(told) <= {"True", "False"}
    assert "True" in told
    storage = open_storage(url, storage_options=options)
    assert storage.read(path_of(text.encode())) == text.encode()
    data = text.encode() * 20
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: storage.put_bytes(data, path_of(data)), range(16)))
    assert True in answers
    assert storage.read(path_of(data)) == data


@pytest.mark.parametrize("where", ["local", "s3", "memory"])
def test_threads_commit_different_bytes_under_one_name(where: str, tmp_path: Path, s3_bucket: Bucket) -> None:
    """Only the one whose bytes lie there is told that it committed. Names carry digests, so this is no real race."""
    url = {"local": str(tmp_path / "b"), "s3": f"s3://{s3_bucket.name}/b", "memory": "memory://race"}[where]
    options = s3_bucket.storage_options if where == "s3" else {}
    path = SNAPSHOT.replace("0123", hashlib.sha256(str(tmp_path).encode()).hexdigest()[:4])

    def commit(number: int) -> str:
        try:
            open_storage(url, storage_options=options).commit(f"content {number}".encode(), path)
        except StorageError as error:
            return error.code
        return f"content {number}"

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(commit, range(8)))
    there = open_storage(url, storage_options=options).read(path).decode()
    assert sorted(told) == sorted([there, *["object-damaged"] * 7])


# This machine ------------------------------------------------------------------------------------------------------------

_PUTTER = """
import os, random, sys
from mlflow_bundle._storage import open_storage
from mlflow_bundle import _layout
import hashlib
storage = open_storage(sys.argv[1], create=True)
chance = random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    data = chance.randbytes(chance.choice((10, 5_000, 3_000_000)))
    sha = hashlib.sha256(data).hexdigest()
    with storage.stage() as staged:
        for start in range(0, len(data), 100_000):
            staged.write(data[start:start + 100_000])
        storage.put(staged, _layout.object_path("blobs", sha))
    if chance.random() < 0.3:
        storage.commit(data, f"snapshots/20260102T030405.678Z-{sha[:16]}.json")
        storage.flush()
        print(f"20260102T030405.678Z-{sha[:16]}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_kill(name: str, tmp_path: Path) -> None:
    """A writer that is killed at any moment leaves whole objects only, and every snapshot that it was told of."""
    url = tmp_path / name
    chance = random.Random(11)
    told: list[str] = []
    for turn in range(8):
        command = [sys.executable, "-c", _PUTTER, str(url), str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.02, 0.4))
            process.send_signal(signal.SIGKILL)
            told += process.stdout.read().split()
    storage = open_storage(url)
    objects = storage.list("objects")
    assert objects or name.endswith(".zip")
    for path in objects:
        assert hashlib.sha256(storage.read(path)).hexdigest() == _layout.object_hex(path)
    snapshots = storage.list(_layout.SNAPSHOTS)
    for path in snapshots:
        assert hashlib.sha256(storage.read(path)).hexdigest()[:16] == (_layout.snapshot_stem(path) or "")[-16:]
    whole = [stem for stem in told if len(stem) == 37]
    assert whole
    assert {_layout.snapshot_path(stem) for stem in whole} <= snapshots.keys()
    assert list(storage.damage()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_full_disk(name: str, small_disk: Path) -> None:
    """A full disk is one clear sentence; what was there before is whole, nothing half is listed, and space is given back."""
    with open_storage(small_disk / name, create=True) as storage:
        path = put(storage, b"old" * 1000)
        storage.commit(DATA, SNAPSHOT)
        storage.flush()
        with pytest.raises(StorageError) as caught:
            put(storage, random.Random(1).randbytes(2_000_000))
        assert caught.value.code == "no-space"
        assert "space" in str(caught.value)
        assert caught.value.hint
        assert put(storage, b"small") in storage.list("")
    with open_storage(small_disk / name) as fresh:
        assert {path, SNAPSHOT} <= fresh.list("").keys()
        assert fresh.read(path) == b"old" * 1000
        assert list(fresh.damage()) == []


def test_a_disk_that_fills_up_while_the_next_file_is_written(small_disk: Path) -> None:
    """A ZIP file that does not fit beside the old one leaves the old one."""
    with open_storage(small_disk / "b.zip") as first:
        path = put(first, random.Random(1).randbytes(300_000))
        first.flush()
    before = (small_disk / "b.zip").read_bytes()
    with open_storage(small_disk / "b.zip") as storage:
        put(storage, random.Random(2).randbytes(300_000))
        with pytest.raises(StorageError) as caught:
            storage.flush()
        assert caught.value.code == "no-space"
    assert (small_disk / "b.zip").read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == ["b.zip"]
    assert open_storage(small_disk / "b.zip").list("") == {path: 300_000}


def test_a_file_size_limit(tmp_path: Path) -> None:
    """The limit of a process for its files is reported as what it is."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    storage = open_storage(tmp_path / "bundle", create=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError) as caught:
            put(storage, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == "no-space"
    assert storage.list("") == {}
    assert list((tmp_path / "bundle" / _layout.STAGING).iterdir()) == []


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_read_only_place(name: str, small_disk: Path) -> None:
    """A read-only bundle is read, and writing into it is one clear sentence."""
    with open_storage(small_disk / name) as storage:
        path = put(storage, b"object")
        storage.flush()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with open_storage(small_disk / name) as storage:
        assert storage.read(path) == b"object"
        with pytest.raises(StorageError) as caught:
            put(storage, b"another")
        assert caught.value.code == "read-only"
    with pytest.raises(StorageError) as caught:
        open_storage(small_disk / "new" / name, create=True)
    assert caught.value.code == "read-only"


def test_no_permission(tmp_path: Path) -> None:
    """A folder that may not be written or read says so."""
    if os.geteuid() == 0:
        pytest.skip("the superuser may do everything")
    (tmp_path / "bundle").mkdir(mode=0o500)
    with pytest.raises(StorageError) as caught:
        put(open_storage(tmp_path / "bundle"), b"object")
    assert caught.value.code == "permission"


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no hard links, files are renamed: the same guarantees but for the race of two equal writes."""

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    storage = open_storage(tmp_path / "bundle")
    path = put(storage, b"object")
    assert storage.put_bytes(b"object", path) is False
    storage.commit(DATA, SNAPSHOT)
    storage.commit(DATA, SNAPSHOT)
    with pytest.raises(StorageError):
        storage.commit(b"other", SNAPSHOT)
    assert storage.list("") == {path: 6, SNAPSHOT: len(DATA)}


def test_a_damaged_local_object_is_not_replaced(tmp_path: Path) -> None:
    """An object that was cut is reported by put, and neither replaced nor removed."""
    storage = open_storage(tmp_path / "bundle")
    path = put(storage, b"the right content")
    (tmp_path / "bundle" / path).write_bytes(b"the right")
    with pytest.raises(StorageError) as caught:
        put(storage, b"the right content")
    assert caught.value.code == "object-damaged"
    assert storage.read(path) == b"the right"
    with pytest.raises(CorruptError):
        storage.read_range(path, 5, 10)


def test_everything_is_synced_before_the_commit(tmp_path: Path) -> None:
    """In the order of system calls, each object's bytes and every folder above it are synced before the snapshot has a name."""
    program = (
        "import sys; from mlflow_bundle._storage import open_storage; from tests.storage.suite import put, SNAPSHOT\n"
        "s = open_storage(sys.argv[1], create=True); put(s, b'one'); put(s, b'two', 'packs'); s.commit(b'x', SNAPSHOT)"
    )
    trace = tmp_path / "trace"
    root = tmp_path / "bundle"
    calls = "openat,fsync,fdatasync,link,linkat,rename,renameat,renameat2,close"
    try:
        command = ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(trace), sys.executable, "-c", program, str(root)]
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs strace")
    lines = [line for line in trace.read_text().splitlines() if str(root) in line and ("sync(" in line or "link" in line)]
    links = [number for number, line in enumerate(lines) if "link" in line]
    assert len(links) == 3
    for link in links:
        source = lines[link].split('"')[1]
        assert any("sync(" in line and source in line for line in lines[:link]), "bytes before names"
    before = [line.partition("<")[2].partition(">")[0] for line in lines[links[1] + 1 : links[2]] if "sync(" in line]
    for path in (path_of(b"one"), path_of(b"two", "packs")):
        for folder in (root / path).parents:
            if folder.is_relative_to(root):
                assert str(folder) in before
    assert any(f"{root}/snapshots>" in line for line in lines[links[2] + 1 :])


def test_missing_is_not_an_error_of_the_disk(tmp_path: Path) -> None:
    """A folder where a file should be, and a file where a folder should be, hold no object."""
    storage = open_storage(tmp_path / "bundle", create=True)
    (tmp_path / "bundle" / "objects").write_bytes(b"")
    assert storage.size(path_of(b"x")) is None
    with pytest.raises(NotFoundError):
        storage.read(path_of(b"x"))
    with pytest.raises(StorageError):
        put(storage, b"x")
