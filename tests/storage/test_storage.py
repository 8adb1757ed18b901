"""What a URL means, and what is said about one that means nothing."""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mlflow_bundle as bundle
from mlflow_bundle import _layout
from mlflow_bundle._storage import open_storage
from mlflow_bundle._storage._local import LocalStorage
from mlflow_bundle._storage._onefile import OneFileStorage
from mlflow_bundle._storage._overlay import OverlayStorage
from mlflow_bundle._storage._remote import RemoteStorage
from mlflow_bundle.errors import BundleNotFoundError, CorruptError, StorageError, UsageError
from tests.building import content_of, pack_content
from tests.storage.suite import SNAPSHOT, put


def test_paths_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, ``~``, ``file://`` and path objects all mean the same folder, also after a change of directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    storages = [open_storage(url) for url in ("bundle", "./bundle/", "~/bundle", f"file://{tmp_path}/bundle", Path("bundle"))]
    monkeypatch.chdir("/")
    path = put(storages[0], b"object")
    for storage in storages:
        assert isinstance(storage, LocalStorage)
        assert storage.list("") == {path: 6}
    assert storages[2].url == "~/bundle"


def test_names_that_end_in_zip(tmp_path: Path) -> None:
    """A name that ends in .zip is one file, unless it is a folder or another layer of the URL opens it."""
    (tmp_path / "folder.zip").mkdir()
    assert isinstance(open_storage(tmp_path / "x.mlbundle.zip"), OneFileStorage)
    assert isinstance(open_storage(tmp_path / "X.ZIP"), OneFileStorage)
    assert isinstance(open_storage(tmp_path / "folder.zip"), LocalStorage)
    assert isinstance(open_storage("memory://x.zip"), OneFileStorage)
    assert isinstance(open_storage("memory://zip"), RemoteStorage)


def test_chained_urls(tmp_path: Path) -> None:
    """A one-file bundle is read through fsspec's own zip, and through a cache of files."""
    with open_storage(tmp_path / "b.zip") as storage:
        path = put(storage, b"object")
        storage.commit(b"snapshot", SNAPSHOT)
        storage.flush()
    inner = open_storage(f"zip://::file://{tmp_path}/b.zip")
    assert isinstance(inner, RemoteStorage)
    assert inner.list("objects") == {path: 6}
    assert inner.read(path) == b"object"
    with pytest.raises(StorageError):
        inner.put_bytes(b"other", _layout.MARKER)
    cached = open_storage(
        f"simplecache::memory://{uuid.uuid4().hex}/b.zip",
        storage_options={"simplecache": {"cache_storage": str(tmp_path / "c")}},
    )
    assert isinstance(cached, OneFileStorage)
    assert cached.list("") == {}


def test_any_file_system(tmp_path: Path) -> None:
    """A file system with folders and without atomic writes holds bundles in both forms."""
    for name in ("bundle", "bundle.zip"):
        url = f"dir://{name}"
        options = {"path": f"{tmp_path}/outer", "target_protocol": "file", "target_options": {"auto_mkdir": True}}
        with open_storage(url, storage_options=options) as storage:
            path = put(storage, b"object")
            storage.commit(b"first", SNAPSHOT)
            storage.flush()
        with open_storage(url, storage_options=options) as storage:
            other = put(storage, b"another")
            storage.flush()
        assert open_storage(url, storage_options=options).list("") == {path: 6, other: 7, SNAPSHOT: 5}
        assert open_storage(tmp_path / "outer" / name).read(SNAPSHOT) == b"first"
    assert sorted(os.listdir(tmp_path / "outer")) == ["bundle", "bundle.zip"]


def test_an_upload_that_was_cut_off() -> None:
    """On a store that shows unfinished writes, an object that is too short is written again, whole."""
    url = f"memory://{uuid.uuid4().hex}"
    storage = open_storage(url)
    assert isinstance(storage, RemoteStorage)
    path = put(storage, b"a whole object")
    storage._fs.pipe_file(storage._full(path), b"a who")
    assert storage.put_bytes(b"a whole object", path) is True
    assert storage.read(path) == b"a whole object"
    storage._fs.pipe_file(storage._full(SNAPSHOT), b"sna")
    storage.commit(b"snapshot", SNAPSHOT)
    assert storage.read(SNAPSHOT) == b"snapshot"


def test_the_root_of_a_file_system(tmp_path: Path) -> None:
    """A bundle may be all that there is in a file system."""
    options = {"path": str(tmp_path), "target_protocol": "file", "target_options": {"auto_mkdir": True}}
    storage = open_storage("dir://", storage_options=options)
    path = put(storage, b"object")
    assert storage.list("") == storage.list("objects") == open_storage(tmp_path).list("") == {path: 6}
    assert storage.read(path) == b"object"


@pytest.mark.parametrize("url", ["nonsense://somewhere", "gs://bucket/x", "", "nonsense::memory://x", "s3://", "s3:///x.zip"])
def test_urls_that_nothing_opens(url: str) -> None:
    """An unknown protocol and a package that is not installed are mistakes of the call, each with its reason."""
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    if url.startswith("gs"):
        assert "gcsfs" in str(caught.value)
        assert caught.value.hint
        assert caught.value.code == "missing-package"


def test_wrong_options() -> None:
    """Options that a file system does not know are a mistake of the call."""
    with pytest.raises(UsageError, match="cannot be opened"):
        open_storage("github://org:repo@sha/x", storage_options={"nonsense": 1, "org": 2})


def test_a_plain_file(tmp_path: Path) -> None:
    """A file is no folder and, without the right name, no one-file bundle; with it, it must be a ZIP file."""
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(BundleNotFoundError) as caught:
        open_storage(tmp_path / "file")
    assert ".mlbundle.zip" in (caught.value.hint or "")
    for content in (b"", b"text", b"PK\3\4" + bytes(100)):
        (tmp_path / "file.zip").write_bytes(content)
        with pytest.raises(BundleNotFoundError if content != b"PK\3\4" + bytes(100) else CorruptError):
            open_storage(tmp_path / "file.zip")


def test_credentials_are_not_shown() -> None:
    """Neither the URL of a storage nor an error about it shows a password or a signature."""
    with pytest.raises(UsageError) as caught:
        open_storage("nonsense://user:hidden@host/x")
    assert "hidden" not in str(caught.value)
    storage = open_storage("memory://user:hidden@host/x")
    assert "hidden" not in storage.url


def test_an_overlay_takes_no_damaged_object_for_whole(tmp_path: Path) -> None:
    """What a pack over a bundle would write is compared with what lies there, which is neither replaced nor hidden."""
    with open_storage(tmp_path / "below") as below, open_storage(tmp_path / "above") as above:
        path = put(below, b"the right bytes")
        overlay = OverlayStorage(below, above)
        assert overlay.put_bytes(b"the right bytes", path) is False
        (tmp_path / "below" / path).write_bytes(b"the wrong bytes")
        with pytest.raises(StorageError) as caught:
            put(overlay, b"the right bytes")
        assert caught.value.code == "object-damaged"
        assert above.list("") == {}


class Ranges(SimpleHTTPRequestHandler):
    """A web server that lists folders, as Python's does, and serves ranges, as all others do."""

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """The bytes from one place to another, where they are asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def http_folder(folder: Path) -> Iterator[str]:
    """The URL of a folder that a web server of this machine shows."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_folder_behind_http(tmp_path: Path) -> None:
    """Pages that list folders say no sizes: files are asked for theirs, and a sound bundle is sound there too."""
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content_of(3))
        wanted = storage.list("")
    (tmp_path / "b" / "notes.txt").touch()
    with http_folder(tmp_path) as url:
        with open_storage(f"{url}/b") as served:
            assert served.list("") == {**wanted, "notes.txt": 0}
            assert served.list("nothing") == {}
        report = bundle.verify(f"{url}/b", level="full")
    assert (report.problems, [warning.code for warning in report.warnings]) == ((), ["W012"])
