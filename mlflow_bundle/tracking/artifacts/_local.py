"""Artifact files in a folder of this machine, read and written with nothing but the operating system."""

from __future__ import annotations

import io
import os
import stat
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast
from uuid import uuid4

from mlflow_bundle._unsafe import why_not_written
from mlflow_bundle.errors import BundleError, StorageError
from mlflow_bundle.tracking._port import FileInfo
from mlflow_bundle.tracking.artifacts._common import (
    UPLOADING,
    artifact_reader,
    check_path,
    copy_exactly,
    raise_listing_failures,
    reason,
    storage_errors,
)

__all__ = ["LocalArtifacts", "local_path"]

#: A file that changed this recently may change again within the resolution of its time stamps.
RACY_NANOSECONDS: Final = 2_000_000_000

_READ_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_Identity = tuple[int, int]


def local_path(uri: str) -> str:
    """The folder that a plain path or ``file:`` URI names. Percent escapes are decoded in both, as MLflow does."""
    path = urllib.parse.urlparse(uri).path if uri.startswith("file:") else uri
    return urllib.request.url2pathname(path)


class LocalArtifacts:
    """The files below one folder. Symbolic links are followed; one that leads nowhere is listed and cannot be opened."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self._made: set[Path] = set()

    def walk(self) -> Iterator[FileInfo]:
        """Every file. What cannot be listed (no permission, a link back into itself, a name that is not UTF-8) raises
        StorageError after everything else was delivered."""
        failures: list[BundleError] = []
        racy = time.time_ns() - RACY_NANOSECONDS
        folders: list[tuple[str, str, frozenset[_Identity]]] = [(str(self._root), "", frozenset())]
        while folders:
            folder, prefix, above = folders.pop()
            try:
                inside = above | {_identity(folder)}
                if len(inside) == len(above):
                    raise StorageError(f"the artifact folder {prefix[:-1]!r} is a link that leads back into itself")  # noqa: TRY301
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(UPLOADING):
                            continue
                        path = prefix + entry.name
                        if not _is_text(path):
                            failures.append(StorageError(f"the artifact name {os.fsencode(path)!r} is not valid UTF-8"))
                        elif _is_folder(entry):
                            folders.append((entry.path, path + "/", inside))
                        else:
                            yield _file_info(entry, path, racy)
            except FileNotFoundError:
                if prefix:
                    failures.append(StorageError(f"the artifact folder {prefix[:-1]!r} vanished while it was being listed"))
            except OSError as error:
                failures.append(StorageError(f"the artifact folder {folder!r} cannot be listed: {reason(error)}"))
            except StorageError as error:
                failures.append(error)
        raise_listing_failures(failures)

    def folders(self) -> frozenset[str] | None:
        """The names of all that lies at the root, in lower case; None where it cannot be listed."""
        try:
            with os.scandir(self._root) as entries:
                return frozenset(entry.name.casefold() for entry in entries)
        except FileNotFoundError:
            return frozenset()
        except OSError:
            return None

    def open(self, path: str) -> BinaryIO:
        """The content of one file.

        Raises:
            StorageError: it is missing, no regular file, or cannot be read.
        """
        full = f"{self._root}/{check_path(path)}"
        try:
            file, size = _open_regular(full)
        except OSError as error:
            raise StorageError(f"the artifact {full!r} cannot be read: {reason(error)}") from error
        return artifact_reader(cast("BinaryIO", file), path, likely=size)

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """Store one file of ``size`` bytes: it is there whole under its name, or not at all.

        Raises:
            StorageError: the path leads outside, it cannot be written, or the content has another size.
        """
        if os.name == "nt" and (why := why_not_written(path)):
            raise StorageError(f"{path!r} {why}", code="artifact-name")
        *folders, name = check_path(path).split("/")
        with storage_errors(f"the artifact {path!r} cannot be written to {str(self._root)!r}"):
            folder = self._folder(self._root.joinpath(*folders))
            unfinished = folder / (UPLOADING + uuid4().hex)
            try:
                with unfinished.open("xb") as file:
                    copy_exactly(content, file, size, path)
                unfinished.replace(folder / name)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise

    def _folder(self, folder: Path) -> Path:
        """Make the folder. It must lie below the root even after links are followed."""
        if folder not in self._made:
            if not folder.resolve().is_relative_to(self._root.resolve()):
                raise StorageError(f"the folder {str(folder)!r} leads out of {str(self._root)!r} through a link")
            folder.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        return folder


def _identity(folder: str) -> _Identity:
    state = os.stat(folder)  # noqa: PTH116
    return (state.st_dev, state.st_ino)


def _is_text(path: str) -> bool:
    """Whether the name was valid UTF-8 on disk: Python marks other bytes with lone surrogates."""
    if path.isascii():
        return True
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to one. A link that leads in circles is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _file_info(entry: os.DirEntry[str], path: str, racy: int) -> FileInfo:
    """Size and stamp; what is no regular file gets none of them, and opening it says why."""
    try:
        state = entry.stat()
    except OSError:
        return FileInfo(path, -1)
    if not stat.S_ISREG(state.st_mode):
        return FileInfo(path, -1)
    if state.st_mtime_ns > racy or state.st_ctime_ns > racy:
        return FileInfo(path, state.st_size)
    stamp = f"{state.st_mtime_ns}-{state.st_ctime_ns}-{state.st_size}-{state.st_ino}"
    return FileInfo(path, state.st_size, stamp)


def _open_regular(path: str) -> tuple[io.FileIO, int]:
    """Open without waiting for the other end of a pipe, and only what is a regular file; also its size in bytes."""
    descriptor = os.open(path, _READ_FLAGS)
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise OSError(None, "it is no regular file")
    return io.FileIO(descriptor), state.st_size
