"""A bundle in a folder of this machine: every write is durable, exclusive and whole, or it never happened."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from mlflow_bundle import _layout
from mlflow_bundle._redact import redact_uri
from mlflow_bundle._storage._backend import (
    Staged,
    Storage,
    check_name,
    check_stored,
    checked_path,
    damaged,
    missing,
    open_new,
    storage_error,
    sweep,
)
from mlflow_bundle.errors import CommitUnknownError, CorruptError

__all__ = ["LocalStorage", "link_new", "make_folder", "sync_file", "sync_folder"]

#: What file systems without hard links answer to ``link``.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_ABSENT: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStorage(Storage):
    """A folder. Files are written and synced in ``.staging`` of the same file system, then linked to their names."""

    def __init__(self, url: str, root: Path, *, create: bool = False) -> None:
        self.url = redact_uri(url)
        self._root = root
        self._staging = root / _layout.STAGING
        self._swept = False
        #: Folders with entries that a power loss could still take.
        self._dirty: set[Path] = set()
        self._lock = threading.Lock()
        if create:
            with self._failing("create", self.url):
                make_folder(root)

    @property
    def folder(self) -> Path:
        return self._root

    def read(self, path: str) -> bytes:
        with self._finding(path):
            return self._path(path).read_bytes()

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with self._finding(path), self._path(path).open("rb", buffering=0) as file:
            file.seek(start)
            data = file.read(length)
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
        if len(data) != length:
            raise CorruptError(f"{path} in {self.url} ends at byte {start + len(data):,}, before {start + length:,}")
        return data

    def open(self, path: str) -> BinaryIO:
        with self._finding(path):
            return self._path(path).open("rb")

    def size(self, path: str) -> int | None:
        with self._failing("look at", path):
            return _size(self._path(path))

    def list(self, folder: str) -> dict[str, int]:
        top = self._path(folder) if folder else self._root
        with self._failing("list", folder or self.url):
            return dict(sorted(self._walk(top)))

    def stage(self) -> Staged:
        with self._failing("write into", self.url):
            if not self._swept:
                self._swept = True
                for leftover in sweep(self._staging, "*"):
                    leftover.unlink(missing_ok=True)
            try:
                make_folder(self._staging)
                return Staged(open_new(self._staging), self.url)
            except FileNotFoundError:  # another writer has just finished and removed the empty folder
                make_folder(self._staging)
                return Staged(open_new(self._staging), self.url)

    def put(self, staged: Staged, path: str) -> bool:
        staged.finish()
        check_name(staged, path)
        target = self._path(path)
        new = self.size(path) is None
        if new:
            staged.check(path)
        with self._failing("write", path):
            if new:
                sync_file(staged.path)
                make_folder(target.parent)
                new = link_new(staged.path, target)
            else:
                sync_file(target)
            # Of a file that was there already, nobody knows whether its entry would survive a power loss.
            self._mark(target.parent)
        if not new and _layout.object_hex(path):
            with self._failing("read", path):
                check_stored(self, staged, path)
        staged.discard()
        return new

    def commit(self, data: bytes, path: str) -> None:
        target = self._path(path)
        with self.stage() as staged:
            staged.write(data)
            staged.finish()
            with self._failing("commit", path):
                sync_file(staged.path)
                make_folder(target.parent)
                self._mark(target.parent)
                self._sync_folders()
                link_new(staged.path, target)
        try:
            sync_folder(target.parent)
            found = target.read_bytes()
        except OSError as error:
            raise CommitUnknownError(
                f"{path} was written to {self.url}, but whether it would survive a power loss is unknown: {error.strerror}",
                hint="look at the disk, then run again",
            ) from error
        if found != data:
            raise damaged(path, self, found=len(found), expected=len(data))

    def close(self) -> None:
        # Other writers may be at work in there: only an empty folder goes.
        with contextlib.suppress(OSError):
            self._staging.rmdir()

    def _path(self, path: str) -> Path:
        return self._root / checked_path(path)

    def _mark(self, folder: Path) -> None:
        """Remember to sync a folder and those above it."""
        with self._lock:
            self._dirty.add(folder)
            while folder != self._root:
                folder = folder.parent
                self._dirty.add(folder)

    def _sync_folders(self) -> None:
        with self._lock:
            for folder in sorted(self._dirty, reverse=True):
                sync_folder(folder)
                self._dirty.discard(folder)

    def _walk(self, folder: Path) -> Iterator[tuple[str, int]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except _ABSENT:
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                if path != self._staging:
                    yield from self._walk(path)
            elif (size := _size(path)) is not None:
                yield path.relative_to(self._root).as_posix(), size

    @contextlib.contextmanager
    def _finding(self, path: str) -> Iterator[None]:
        with self._failing("read", path):
            try:
                yield
            except _ABSENT as error:
                raise missing(path, self.url) from error

    @contextlib.contextmanager
    def _failing(self, doing: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = "" if what == self.url else f" in {self.url}"
            raise storage_error(error, f"{doing} {what}{where}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that a power loss does not take them."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def link_new(source: Path, target: Path) -> bool:
    """Give a file its final name, atomically. False when that name is taken; then nothing changes."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without links a race of two writers replaces a file by one of the same content.
        if target.exists():
            return False
        source.rename(target)
    return True


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power loss."""
    _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Make the entries of a folder survive a power loss."""
    if os.name != "nt":  # Windows cannot open folders, and writes their entries through
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    """The bytes of a file, or None when there is none."""
    try:
        status = path.stat()
    except _ABSENT:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
