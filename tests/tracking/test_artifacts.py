"""Artifact files keep their names and contents through every kind of store, and what cannot be had is said."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import boto3
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry, get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_bundle.errors import BundleError, ServerError, StorageError, UsageError
from mlflow_bundle.tracking._port import ArtifactStore, FileInfo
from mlflow_bundle.tracking._rest import RestClient
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.artifacts._http import unspeakable
from tests.fixtures.content import ODD_NAMES, PLAIN_NAMES, ContentSummary, make_awkward_content
from tests.fixtures.s3 import Bucket, s3_options
from tests.fixtures.server import MlflowServer, ServerFactory, free_port

Listing = dict[str, tuple[int, str]]


def _local(uri: str | Path, **options: Any) -> ArtifactStore:
    return artifact_store(str(uri), client=None, run_id="r", **options)


def _read(store: ArtifactStore, path: str) -> bytes:
    with store.open(path) as stream:
        return stream.read()


def _write(store: ArtifactStore, path: str, content: bytes) -> None:
    store.write(path, io.BytesIO(content), len(content))


def _everything(store: ArtifactStore) -> Listing:
    """Path -> (size, SHA-256 in hex), read in pieces; the listed size must be right where it is known."""
    found: Listing = {}
    for info in store.walk():
        digest = hashlib.sha256()
        size = 0
        with store.open(info.path) as stream:
            while data := stream.read(1 << 20):
                digest.update(data)
                size += len(data)
        assert info.size in {size, -1}
        assert info.path not in found
        found[info.path] = (size, digest.hexdigest())
    return found


def _walk(store: ArtifactStore) -> tuple[dict[str, FileInfo], BundleError | None]:
    """What was listed, and the error at the end."""
    found: dict[str, FileInfo] = {}
    try:
        found.update((info.path, info) for info in store.walk())
    except BundleError as error:
        return found, error
    return found, None


def _unless_refused(path: str, act: Callable[[], Any]) -> Any:
    """The result, or None where the store says that this very name cannot be addressed."""
    try:
        return act()
    except StorageError as error:
        if error.code != "artifact-name" or repr(path) not in error.message:
            raise
        return None


def _boto(bucket: Bucket) -> Any:
    """Amazon's own client for the server of the tests."""
    options = bucket.storage_options
    return boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        region_name="us-east-1",
    )


def _aged(path: Path) -> Path:
    """Wait until a file is old enough to be trusted; its time of change cannot be set back."""
    while time.time() - path.stat().st_ctime < 2.1:
        time.sleep(0.1)
    return path


def test_every_file_of_a_local_store_is_read(awkward_database: tuple[str, ContentSummary]) -> None:
    """All files that were logged or lie there, whatever their names, have the paths, sizes and contents that were written."""
    uri, summary = awkward_database
    client = MlflowClient(uri)
    assert summary.odd_files
    for run_id, expected in summary.files.items():
        assert _everything(_local(client.get_run(run_id).info.artifact_uri)) == expected


@pytest.mark.parametrize("spell", [str, lambda path: "file://" + quote(str(path)), lambda path: "file:" + quote(str(path))])
def test_spellings_of_a_local_place(tmp_path: Path, spell: Callable[[Path], str]) -> None:
    """A path and both kinds of file URI lead to the same folder, with percent escapes decoded as MLflow does."""
    root = tmp_path / "my größe #1"
    root.mkdir()
    (root / "f").write_bytes(b"x")
    assert _read(_local(spell(root)), "f") == b"x"


def test_a_place_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    """A run that logged no file has no folder, which is no error."""
    assert list(_local(tmp_path / "none").walk()) == []
    assert list(_local("memory://none/at/all").walk()) == []


def test_an_artifact_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    """A root that is no folder cannot be listed, which is not the same as being empty."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be listed"):
        list(_local(tmp_path / "file").walk())


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """Links to files and folders are what they lead to; a circle is an error after everything else was listed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.bin").write_bytes(b"model")
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "file link").symlink_to(outside / "model.bin")
    (root / "folder link").symlink_to(outside)
    (root / "deep" / "circle").symlink_to(root)
    (root / "zz").write_bytes(b"last")
    found, error = _walk(_local(root))
    assert set(found) == {"file link", "folder link/model.bin", "zz"}
    assert isinstance(error, StorageError)
    assert "'deep/circle'" in error.message
    assert _read(_local(root), "folder link/model.bin") == b"model"


def test_what_is_no_file_is_listed_and_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dangling link, a link to itself, a pipe and a socket are entries whose opening fails at once, not silence."""
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket")
        store = _local(tmp_path)
        found, error = _walk(store)
        assert error is None
        assert {path: info.size for path, info in found.items()} == dict.fromkeys(("dangling", "itself", "pipe", "socket"), -1)
        for path in found:
            with pytest.raises(StorageError, match=path):
                store.open(path).__enter__()


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operating system refuses to list, here for a path that is too long, is an error after all the others."""
    (tmp_path / "open").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    Path("too deep").write_bytes(b"lost")
    found, error = _walk(_local(tmp_path))
    assert set(found) == {"open"}
    assert isinstance(error, StorageError)
    assert "cannot be listed" in error.message


def test_a_name_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    """A file name that is not UTF-8 cannot be archived under any name: it is named, and the others are listed."""
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9")).write_bytes(b"")
    (tmp_path / "fine").write_bytes(b"")
    found, error = _walk(_local(tmp_path))
    assert set(found) == {"fine"}
    assert error is not None
    assert "caf\\xe9" in error.message


def test_several_failures_are_one_error(tmp_path: Path) -> None:
    """More than one thing that cannot be listed is one error that names them."""
    for name in (b"/a\xe9", b"/b\xe9"):
        Path(os.fsdecode(bytes(tmp_path) + name)).write_bytes(b"")
    _, error = _walk(_local(tmp_path))
    assert error is not None
    assert "2 places" in error.message
    assert "a\\xe9" in error.message
    assert "b\\xe9" in error.message


def test_a_stamp_changes_with_every_change_of_a_file(tmp_path: Path) -> None:
    """A file that rests has one stamp; another content of the same size and the same modification time has another."""
    file = tmp_path / "f"
    file.write_bytes(b"one")
    store = _local(tmp_path)
    assert next(iter(store.walk())).stamp is None  # too young: it may change again within a tick of the clock
    _aged(file)
    first = next(iter(store.walk())).stamp
    assert first is not None
    assert next(iter(store.walk())).stamp == first
    modified = file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=(modified, modified))
    assert next(iter(store.walk())).stamp is None
    _aged(file)
    assert next(iter(store.walk())).stamp not in {first, None}


def test_unfinished_uploads_are_no_files(tmp_path: Path) -> None:
    """What MLflow hides because it is still being written is not archived, and its names are not given out."""
    (tmp_path / ".artifact.uploading.abc").write_bytes(b"half")
    (tmp_path / "f").write_bytes(b"whole")
    assert [info.path for info in _local(tmp_path).walk()] == ["f"]
    with pytest.raises(StorageError):
        _write(_local(tmp_path), ".artifact.uploading.x", b"")


def test_local_writing(tmp_path: Path) -> None:
    """Every name is written as it is, parents are made, writing again replaces, and nothing else is left behind."""
    store = _local(tmp_path / "new")
    contents = {name: name.encode() * 3 for name in (*PLAIN_NAMES, *ODD_NAMES)} | {"empty": b"", "b": bytes(3 << 20)}
    for path, content in contents.items():
        _write(store, path, b"old")
        _write(store, path, content)
    assert {path: _read(store, path) for path in (info.path for info in store.walk())} == contents
    assert not list((tmp_path / "new").rglob(".artifact*"))


@pytest.mark.parametrize("size", [2, 4])
def test_a_local_file_of_the_wrong_size_is_not_written(tmp_path: Path, size: int) -> None:
    """Content that is shorter or longer than announced leaves what was there, and no rest."""
    store = _local(tmp_path)
    _write(store, "f", b"old")
    with pytest.raises(StorageError, match="announced"):
        store.write("f", io.BytesIO(b"new"), size)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a//b", "a/", "./a", "nul\0"])
def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    """A path that is absolute, climbs or is no name of a file is refused for reading and for writing."""
    store = _local(tmp_path / "root")
    for act in (lambda: _write(store, path, b"x"), lambda: store.open(path).__enter__()):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.code == "artifact-name"
    assert list(tmp_path.iterdir()) == []


def test_no_link_leads_a_write_out(tmp_path: Path) -> None:
    """A folder that is a link to somewhere else is not written through."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="leads out"):
        _write(_local(tmp_path / "root"), "link/x", b"x")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("large", [False, True])
def test_fsspec_keeps_names_and_contents(large: bool) -> None:
    """Nothing in a name is decoded or cut on the way through fsspec, for files that travel in one piece or in several."""
    store = _local(f"memory://bucket/{uuid4().hex}/50%25 off")
    contents = {name: name.encode() for name in (*PLAIN_NAMES, *ODD_NAMES)} | {"empty": b""}
    if large:
        contents = {"large #1": random.Random(1).randbytes((8 << 20) + 1)}
    for path, content in contents.items():
        _write(store, path, content)
    again = {info.path: _read(store, info.path) for info in store.walk()}
    assert again == contents


def test_s3_keeps_names_and_contents(s3_bucket: Bucket) -> None:
    """Nothing in a key is decoded or cut; a name that the driver would cut is refused."""
    store = _local(f"s3://{s3_bucket.name}/50%25 off/r", storage_options=s3_bucket.storage_options)
    # The S3 server of the tests has no route for newlines.
    names = [name for name in (*PLAIN_NAMES, *ODD_NAMES) if "\n" not in name]
    contents = {name: name.encode() for name in names} | {"empty": b"", "a::b": b"1", "*": b"2"}
    contents["large #1"] = random.Random(1).randbytes((8 << 20) + 1)
    for path, content in contents.items():
        _write(store, path, content)
    assert {info.path: _read(store, info.path) for info in store.walk()} == contents
    client = _boto(s3_bucket)
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=s3_bucket.name)["Contents"]}
    assert keys == {f"50%25 off/r/{path}" for path in contents}
    client.put_object(Bucket=s3_bucket.name, Key="50%25 off/r/a?versionId=b", Body=b"x")
    found, error = _walk(store)
    assert error is None
    assert set(found) == {*contents, "a?versionId=b"}
    with pytest.raises(StorageError, match="versionId"):
        _read(store, "a?versionId=b")


def test_s3_lists_files_below_the_place_and_nothing_else(s3_bucket: Bucket) -> None:
    """Markers of folders, a key that is the place itself and neighbours are no files; a place without keys is empty."""
    client = _boto(s3_bucket)
    for key in ("1/r", "1/r/", "1/r/folder/", "1/r/f", "1/r/folder/g", "1/r0/h"):
        client.put_object(Bucket=s3_bucket.name, Key=key, Body=b"" if key.endswith("/") else b"x")
    options = s3_bucket.storage_options
    assert set(_everything(_local(f"s3://{s3_bucket.name}/1/r", storage_options=options))) == {"f", "folder/g"}
    assert list(_local(f"s3://{s3_bucket.name}/none", storage_options=options).walk()) == []


def test_s3_stamps(s3_bucket: Bucket) -> None:
    """An object has a stamp that stays while it is not written, and is another for another content."""
    store = _local(f"s3://{s3_bucket.name}/r", storage_options=s3_bucket.storage_options)
    _write(store, "f", b"one")
    first = next(iter(store.walk())).stamp
    assert first is not None
    assert next(iter(store.walk())).stamp == first
    _write(store, "f", b"two")
    assert next(iter(store.walk())).stamp not in {first, None}


@pytest.mark.parametrize("size", [10, 9 << 20])
def test_an_object_that_changed_since_it_was_listed_is_an_error(s3_bucket: Bucket, size: int) -> None:
    """Another length than the listed one is not taken for the listed object, whether it is small or read in pieces."""
    store = _local(f"s3://{s3_bucket.name}/r", storage_options=s3_bucket.storage_options)
    _write(store, "f", bytes(size))
    list(store.walk())
    for other in (size - 1, size + 1):
        _write(store, "f", bytes(other))
        with pytest.raises(StorageError, match="'f'"):
            _read(store, "f")
    _boto(s3_bucket).delete_object(Bucket=s3_bucket.name, Key="r/f")
    with pytest.raises(StorageError, match="'f'"):
        _read(store, "f")


@pytest.mark.parametrize("size", [3, 9 << 20])
def test_an_object_of_the_wrong_size_is_not_written(s3_bucket: Bucket, size: int) -> None:
    """Content that is shorter or longer than announced leaves what was there."""
    store = _local(f"s3://{s3_bucket.name}/r", storage_options=s3_bucket.storage_options)
    _write(store, "f", b"old")
    for announced in (size - 1, size + 1):
        with pytest.raises(StorageError, match="announced"):
            store.write("f", io.BytesIO(bytes(size)), announced)
    assert _read(store, "f") == b"old"


def test_a_bucket_that_does_not_exist_is_an_error(s3_server: str) -> None:
    """A missing bucket is no empty run."""
    store = _local("s3://no-such-bucket/r", storage_options=s3_options(s3_server))
    with pytest.raises(StorageError, match="s3://no-such-bucket/r"):
        list(store.walk())
    with pytest.raises(StorageError, match="s3://no-such-bucket/r"):
        _write(store, "f", b"x")


def test_s3_is_configured_as_mlflow_is(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's environment variables are enough; both sides read what the other wrote, and its query is no part of a place."""
    options = s3_bucket.storage_options
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", '{"StorageClass": "STANDARD_IA"}')
    uri = f"s3://{s3_bucket.name}/a b/r/artifacts"
    theirs = get_artifact_repository(uri)
    ours = _local(uri + "?x=y")
    _write(ours, "deep/größe #1.txt", b"ours")
    assert [info.path for info in theirs.list_artifacts("deep")] == ["deep/größe #1.txt"]
    assert Path(theirs.download_artifacts("deep/größe #1.txt")).read_bytes() == b"ours"
    key = "a b/r/artifacts/deep/größe #1.txt"
    assert _boto(s3_bucket).head_object(Bucket=s3_bucket.name, Key=key)["StorageClass"] == "STANDARD_IA"


def test_proxied_files_that_lie_on_s3(s3_bucket: Bucket, start_server: ServerFactory) -> None:
    """Files that a server keeps on S3 are the same through its proxy and read past it."""
    options = s3_bucket.storage_options
    environment = {
        "MLFLOW_S3_ENDPOINT_URL": options["endpoint_url"],
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    destination = f"s3://{s3_bucket.name}/mlflow"
    server = start_server(artifacts_destination=destination, env=environment)
    run = MlflowClient(server.url).create_run("0")
    rest = RestClient(server.url)
    proxied = artifact_store(run.info.artifact_uri, client=rest, run_id=run.info.run_id)
    contents = {name: name.encode() for name in PLAIN_NAMES} | {"empty": b"", "large": bytes(2 << 20)}
    for path, content in contents.items():
        _write(proxied, path, content)
    assert {info.path: _read(proxied, info.path) for info in proxied.walk()} == contents
    direct = artifact_store(
        run.info.artifact_uri, client=rest, run_id="r", artifacts_destination=destination, storage_options=options
    )
    assert _everything(direct) == _everything(proxied)
    assert all(info.stamp for info in direct.walk())


def test_a_neighbour_with_the_same_beginning_is_another_place() -> None:
    """``run1`` does not list what lies in ``run10``."""
    base = f"memory://{uuid4().hex}"
    _write(_local(f"{base}/run10"), "f", b"x")
    assert list(_local(f"{base}/run1").walk()) == []


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_artifacts_destination_says_where_proxied_files_lie(tmp_path: Path, kind: str) -> None:
    """Without a server, ``mlflow-artifacts:`` is what its ``--artifacts-destination`` says, percent escapes decoded."""
    base = str(tmp_path) if kind == "folder" else f"memory://{uuid4().hex}"
    _write(_local(f"{base}/1/my run"), "a#b", b"x")
    store = _local("mlflow-artifacts:/1/my%20run", artifacts_destination=base)
    assert {info.path: _read(store, info.path) for info in store.walk()} == {"a#b": b"x"}
    with pytest.raises(StorageError, match="climbs"):
        _local("mlflow-artifacts:/../etc", artifacts_destination=base)


def test_proxied_files_without_a_server_are_a_usage_error() -> None:
    """The error says which option names the place."""
    with pytest.raises(UsageError) as caught:
        _local("mlflow-artifacts:/1/r/artifacts")
    assert "artifacts_destination" in str(caught.value.hint)


def test_an_unknown_scheme_is_an_error() -> None:
    """A place that neither fsspec nor MLflow knows is said in one sentence, with what to do."""
    with pytest.raises(StorageError, match="no artifact store for carrier-pigeon"):
        _local("carrier-pigeon://coop/1")


def test_looking_a_place_up_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a Databricks place without credentials, for which MLflow would create its default database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    with contextlib.suppress(StorageError):
        _local("dbfs:/somewhere")
    assert list(tmp_path.iterdir()) == []


def test_mlflow_plugins_are_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheme that only MLflow's registry knows is listed, read and written through MLflow's own repository class."""
    monkeypatch.setitem(
        _artifact_repository_registry._registry,
        "plugin-test",
        lambda uri, tracking_uri=None, registry_uri=None: LocalArtifactRepository(str(tmp_path)),
    )
    store = _local("plugin-test://x/y")
    contents = {"a.txt": b"a", "deep/er/b b.txt": b"bb", "empty": b""}
    for path, content in contents.items():
        _write(store, path, content)
    assert {info.path: _read(store, info.path) for info in store.walk()} == contents
    with pytest.raises(StorageError, match="gone"):
        _read(store, "gone")


@pytest.fixture(scope="module")
def served(mlflow_server: MlflowServer) -> tuple[RestClient, MlflowClient, ContentSummary]:
    """A server with awkward content, odd names written past it."""
    disk = Path(mlflow_server.artifacts_destination)
    summary = make_awkward_content(mlflow_server.url, prefix="test_artifacts ", disk=disk)
    return RestClient(mlflow_server.url), MlflowClient(mlflow_server.url), summary


def _served_store(served: tuple[RestClient, MlflowClient, ContentSummary], run_id: str) -> ArtifactStore:
    rest, client, _ = served
    return artifact_store(client.get_run(run_id).info.artifact_uri, client=rest, run_id=run_id)


def test_every_file_of_a_served_store_is_read(served: tuple[RestClient, MlflowClient, ContentSummary]) -> None:
    """All files that MLflow can address come through the proxy under their names with their contents."""
    summary = served[2]
    for run_id, expected in summary.files.items():
        if run_id not in summary.odd_files:
            assert _everything(_served_store(served, run_id)) == expected


def test_names_that_the_proxy_mistakes_are_refused(served: tuple[RestClient, MlflowClient, ContentSummary]) -> None:
    """Every odd name is either read as it is or refused by name; no file is mistaken for another."""
    summary = served[2]
    run_id = summary.runs["odd files"]
    store = _served_store(served, run_id)
    found, error = _walk(store)
    expected = summary.files[run_id]
    assert set(found) == {path for path in expected if not path.startswith("dir")}
    assert error is not None
    assert "'dir#1'" in error.message
    assert "'dir%41'" in error.message
    read: set[str] = set()
    for path in found:
        content = _unless_refused(path, lambda path=path: _read(store, path))
        if content is not None:
            assert (len(content), hashlib.sha256(content).hexdigest()) == expected[path]
            read.add(path)
    assert read == {"with space.txt", "100%.txt", "what?.txt", "back\\slash.txt"}


def test_the_refused_names_are_those_that_a_server_mistakes(served: tuple[RestClient, MlflowClient, ContentSummary]) -> None:
    """The rule agrees with the real server: asked directly, it delivers exactly the files that are not refused."""
    rest, client, summary = served
    run_id = summary.runs["odd files"]
    root = urlsplit(client.get_run(run_id).info.artifact_uri).path.strip("/")
    for path, (size, sha256) in summary.files[run_id].items():
        try:
            with rest.stream("/api/2.0/mlflow-artifacts/artifacts/" + quote(f"{root}/{path}")) as stream:
                content = stream.read()
            right = (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
        except ServerError:
            right = False
        assert right == (unspeakable(f"{root}/{path}") is None), path


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, 9 << 20])
def test_uploads_arrive(served: tuple[RestClient, MlflowClient, ContentSummary], size: int) -> None:
    """A file of any size is uploaded through the proxy and reads back the same."""
    _, client, summary = served
    store = _served_store(served, client.create_run(summary.experiments["test_artifacts churn"]).info.run_id)
    content = random.Random(size).randbytes(size)
    _write(store, "deep/näme & more.bin", content)
    assert {info.path: _read(store, info.path) for info in store.walk()} == {"deep/näme & more.bin": content}


def test_uploads_keep_plain_names_and_refuse_odd_ones(served: tuple[RestClient, MlflowClient, ContentSummary]) -> None:
    """A name arrives as it is or is refused before anything is sent: the server would answer 200 and store another file."""
    _, client, summary = served
    store = _served_store(served, client.create_run(summary.experiments["test_artifacts churn"]).info.run_id)
    refused = set()
    for path in (*PLAIN_NAMES, *ODD_NAMES):
        if _unless_refused(path, lambda path=path: _write(store, path, path.encode()) or True) is None:
            refused.add(path)
    assert not refused & set(PLAIN_NAMES)
    expected = {path: path.encode() for path in (*PLAIN_NAMES, *ODD_NAMES) if path not in refused}
    assert {info.path: _read(store, info.path) for info in store.walk()} == expected


def test_a_file_that_changed_since_it_was_listed_is_an_error(
    served: tuple[RestClient, MlflowClient, ContentSummary], mlflow_server: MlflowServer
) -> None:
    """A served file whose length is not the listed one is not taken for it; one that is gone is named."""
    rest, client, summary = served
    run = client.create_run(summary.experiments["test_artifacts churn"])
    store = artifact_store(run.info.artifact_uri, client=rest, run_id=run.info.run_id)
    for path in ("cut", "gone"):
        _write(store, path, b"0123456789")
    list(store.walk())
    folder = Path(mlflow_server.artifacts_destination) / urlsplit(run.info.artifact_uri).path.strip("/")
    (folder / "cut").write_bytes(b"01234")
    (folder / "gone").unlink()
    with pytest.raises(StorageError, match=r"'cut'.* 5 bytes .* 10"):
        _read(store, "cut")
    with pytest.raises(StorageError, match="'gone'"):
        _read(store, "gone")


def test_a_server_that_is_gone_is_a_server_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing, reading and writing say that the server does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = RestClient(f"http://127.0.0.1:{free_port()}")
    store = artifact_store("mlflow-artifacts:/0/r/artifacts", client=client, run_id="r")
    for act in (lambda: list(store.walk()), lambda: _read(store, "f"), lambda: _write(store, "f", b"x")):
        with pytest.raises(ServerError, match="does not answer"):
            act()


@pytest.fixture(scope="module")
def unserved(start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowServer, Path]:
    """A server that takes no uploads, and the folder of its artifacts."""
    root = tmp_path_factory.mktemp("unserved")
    return start_server(serve_artifacts=False, default_artifact_root=str(root)), root


def test_files_of_another_machine_are_read_through_the_run(unserved: tuple[MlflowServer, Path], tmp_path: Path) -> None:
    """A path that exists for the server alone, as here when the store is made, is read through it with the same care."""
    server, _ = unserved
    client = MlflowClient(server.url)
    elsewhere = tmp_path / "elsewhere"
    experiment = client.create_experiment(uuid4().hex, artifact_location=str(elsewhere))
    run = client.create_run(experiment)
    rest = RestClient(server.url)
    store = artifact_store(run.info.artifact_uri, client=rest, run_id=run.info.run_id)
    assert list(store.walk()) == []
    contents = {name: name.encode() for name in (*PLAIN_NAMES, *ODD_NAMES)} | {" leading": b"1", "ABC:x": b"2", "empty": b""}
    folder = Path(run.info.artifact_uri)
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    found, error = _walk(store)
    assert error is not None
    assert "dir#1" in error.message
    assert set(found) == {path for path in contents if not path.startswith("dir")}
    refused = {path for path in found if unspeakable(path)}
    assert {" leading", "ABC:x", "ha#sh.txt", "question?"} < refused
    assert not refused & set(PLAIN_NAMES)
    for path in found:
        if path in refused:
            with pytest.raises(StorageError, match="cannot pass"):
                _read(store, path)
        else:
            assert _read(store, path) == contents[path]


def test_a_shared_disk_is_written_directly(unserved: tuple[MlflowServer, Path]) -> None:
    """Where the server takes no uploads but its folder is ours, files are written there, and the server sees them."""
    server, root = unserved
    run = MlflowClient(server.url).create_run("0")
    store = artifact_store(run.info.artifact_uri, client=RestClient(server.url), run_id=run.info.run_id)
    contents = {"deep/a.txt": b"a", "deep/ha#sh": b"b", "empty": b""}
    for path, content in contents.items():
        _write(store, path, content)
    assert _everything(_local(run.info.artifact_uri)).keys() == contents.keys()
    assert {info.path for info in store.walk()} == contents.keys()
    assert root in Path(run.info.artifact_uri).parents


def test_a_folder_of_another_machine_is_not_written(unserved: tuple[MlflowServer, Path], tmp_path: Path) -> None:
    """Files are not left in a folder of this machine that only has the same name as one of the server's."""
    server, _ = unserved
    run = MlflowClient(server.url).create_run("0")
    # Asked for one run, the server lists another folder than the one that is written: as if it saw another disk.
    store = artifact_store(str(tmp_path / "same name"), client=RestClient(server.url), run_id=run.info.run_id)
    with pytest.raises(StorageError, match="not on this machine"):
        _write(store, "deep/er/a.txt", b"a")
    assert list(tmp_path.iterdir()) == []
    relative = artifact_store("mlruns/0/x", client=RestClient(server.url), run_id=run.info.run_id)
    with pytest.raises(StorageError, match="not on this machine"):
        _write(relative, "a.txt", b"a")


def test_locations_that_name_a_server(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mlflow-artifacts://host/`` and the full HTTP address of the proxy lead to that server, whoever asks."""
    place = uuid4().hex
    parts = urlsplit(mlflow_server.url)
    rest = RestClient(mlflow_server.url)
    named = artifact_store(f"mlflow-artifacts://{parts.netloc}/{place}", client=rest, run_id="r")
    full = f"{mlflow_server.url}/api/2.0/mlflow-artifacts/artifacts/{place}"
    _write(named, "a b", b"x")
    for store in (named, artifact_store(full, client=None, run_id="r"), artifact_store(full, client=rest, run_id="r")):
        assert {info.path: _read(store, info.path) for info in store.walk()} == {"a b": b"x"}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    other = f"127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=f"{other} does not answer"):
        list(artifact_store(f"mlflow-artifacts://{other}/{place}", client=rest, run_id="r").walk())
    shutil.rmtree(Path(mlflow_server.artifacts_destination) / place)
