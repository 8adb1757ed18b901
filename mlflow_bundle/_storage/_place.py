"""Where the one file of a bundle lies, and how another one takes its place: on this machine, or on any file system."""

from __future__ import annotations

import abc
import contextlib
import glob
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final

import fsspec

from mlflow_bundle._redact import redact_uri
from mlflow_bundle._storage._backend import storage_error, sweep
from mlflow_bundle._storage._local import link_new, make_folder, sync_file, sync_folder
from mlflow_bundle._storage._remote import CREATE, OBJECT_STORES, failures, fetch_range, info_of, protocols_of, remote_error
from mlflow_bundle._storage._zipform import Archive
from mlflow_bundle.errors import BundleNotFoundError, CommitUnknownError, CorruptError, StorageError

try:
    import fcntl
except ImportError:  # Windows: nothing but the exclusive first write keeps two writers apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["LocalPlace", "Place", "RemotePlace"]

#: What file systems say of a file that is another one when it was replaced.
_STATE: Final = ("size", "ETag", "LastModified", "last_modified", "etag", "generation", "mtime", "modified", "created")


class Place(abc.ABC):
    """The place of one file. ``url`` has no credentials."""

    url: str

    @abc.abstractmethod
    def open(self) -> Archive | None:
        """What lies there now, or None.

        Raises:
            BundleNotFoundError: a file that is no ZIP file.
            CorruptError: a ZIP file that is not whole, or cannot hold a bundle's files.
        """

    @abc.abstractmethod
    def make_folder(self) -> Path:
        """A new local folder for temporary files, from where the file may be replaced."""

    @abc.abstractmethod
    def replace(self, file: Path, seen: Archive | None, *, first: bool) -> bool:
        """Let ``file`` take the place of ``seen``. False when something else lies there by now; then nothing changed.

        Raises:
            StorageError: it did not take the place.
            CommitUnknownError: nobody can say.
        """

    def is_unchanged(self) -> bool:
        """Whether what was opened last is what a range is read of now."""
        return True

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other writers away meanwhile, where that is possible."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Close what ``open`` opened."""


class LocalPlace(Place):
    """A path of this machine. A symbolic link stays, and what it points to is replaced."""

    def __init__(self, url: str, path: Path, *, create: bool = False) -> None:
        self.url = redact_uri(url)
        self._path = path.resolve()
        self._files: list[BinaryIO] = []
        if create:
            with self._failing("create the folder of"):
                make_folder(self._path.parent)

    def open(self) -> Archive | None:
        with self._failing("open"):
            try:
                file = self._path.open("rb")
            except (FileNotFoundError, NotADirectoryError):
                return None
            self._files.append(file)
            return _archive_of(file, self.url)

    def make_folder(self) -> Path:
        folder, name = self._path.parent, self._path.name
        make_folder(folder)
        for leftover in sweep(folder, f".{glob.escape(name)}.*.staging"):
            shutil.rmtree(leftover, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".staging", dir=folder))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        # The file itself is the lock, so that nothing is left behind. Whoever waited for it looks whether it is still there.
        with contextlib.ExitStack() as stack:
            with self._failing("lock"):
                while fcntl is not None and self._path.exists():
                    file = stack.enter_context(self._path.open("rb"))
                    with contextlib.suppress(OSError):  # some network file systems have no locks
                        fcntl.flock(file, fcntl.LOCK_EX)
                    if self._path.exists() and os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                        break
            yield

    def replace(self, file: Path, seen: Archive | None, *, first: bool) -> bool:  # noqa: ARG002 - for stores that may refuse
        with self._failing("replace"):
            sync_file(file)
            if seen is None:
                if not link_new(file, self._path):
                    return False
            else:
                if os.name == "nt":  # there, an open file cannot be replaced
                    self.close()
                shutil.copymode(self._path, file)
                file.replace(self._path)
        try:
            sync_folder(self._path.parent)
        except OSError as error:
            raise CommitUnknownError(
                f"{self.url} was replaced, but whether that would survive a power loss is unknown: {error.strerror}",
                hint="look at the disk, then run again",
            ) from error
        return True

    def close(self) -> None:
        while self._files:
            self._files.pop().close()

    @contextlib.contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, f"{doing} {self.url}") from error


class RemotePlace(Place):
    """A path of an fsspec file system. Two writers that replace the file in the same moment are told apart by reading back,
    and the one that was overwritten adds its files again; only a store's conditional write could exclude the last doubt."""

    def __init__(self, url: str, fs: fsspec.AbstractFileSystem, full: str) -> None:
        self.url = redact_uri(url)
        self._fs = fs
        self._full = full
        protocols = protocols_of(fs)
        self._object_store = bool(protocols & OBJECT_STORES)
        self._create = bool(protocols & CREATE & OBJECT_STORES)
        self._seen: dict[str, Any] | None = None

    def open(self) -> Archive | None:
        self._seen = self._look()
        return None if self._seen is None else Archive(self._fetch, self._seen["size"], self.url)

    def is_unchanged(self) -> bool:
        return self._look() == self._seen

    def _look(self) -> dict[str, Any] | None:
        """The size of the file, and what tells this state of it from others, as far as the file system says it."""
        with self._failing("open"):
            info = info_of(self._fs, self._full)
        return info and {name: info[name] for name in _STATE if name in info}

    def make_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="mlflow-bundle-"))

    def replace(self, file: Path, seen: Archive | None, *, first: bool) -> bool:
        before = _fingerprint(seen)
        if _fingerprint(self.open()) != before:
            return False
        with file.open("rb") as opened:
            wanted = _fingerprint(_archive_of(opened, self.url))
        error: Exception | None = None
        try:
            self._upload(file, create=self._create and first and seen is None)
        except failures() as failure:
            error = failure
        try:
            found = _fingerprint(self.open())
        except (StorageError, CorruptError, BundleNotFoundError) as unreadable:
            raise CommitUnknownError(
                f"{self.url} was written and cannot be read back: whether it was replaced is unknown ({unreadable.message})",
                hint="look at the file when the storage answers again, or just run again",
            ) from (error or unreadable)
        if found == before and not first:
            if error is None:
                raise StorageError(
                    f"{self.url} is unchanged, although the write was answered with success", code="not-committed"
                )
            raise remote_error(error, f"replace {self.url}") from error
        return found == wanted

    def _upload(self, file: Path, *, create: bool) -> None:
        if self._object_store:  # seen whole or not at all
            self._fs.put_file(str(file), self._full, **({"mode": "create"} if create else {}))
            return
        part = f"{self._full}.{secrets.token_hex(6)}.part"
        self._fs.put_file(str(file), part)
        self._fs.mv(part, self._full)

    def _fetch(self, start: int, length: int) -> bytes:
        with self._failing("read"):
            return fetch_range(self._fs, self._full, start, length, what=self.url)

    @contextlib.contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        try:
            yield
        except failures() as error:
            raise remote_error(error, f"{doing} {self.url}") from error


def _archive_of(file: BinaryIO, url: str) -> Archive:
    """The archive in an open file, which is then read from several threads."""
    lock = threading.Lock()

    def fetch(start: int, length: int) -> bytes:
        with lock:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise CorruptError(f"{url} ends before byte {start + length:,}")
        return data

    return Archive(fetch, file.seek(0, os.SEEK_END), url)


def _fingerprint(archive: Archive | None) -> str:
    return archive.fingerprint if archive else ""
