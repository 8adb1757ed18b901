"""A bundle in one ZIP file: files are staged beside it, and a new ZIP file replaces the old one when it is whole."""

from __future__ import annotations

import shutil
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from mlflow_bundle import _layout
from mlflow_bundle._storage._backend import (
    MIB,
    Staged,
    Storage,
    check_name,
    check_stored,
    checked_path,
    damaged,
    missing,
    open_new,
    storage_error,
)
from mlflow_bundle._storage._place import Place
from mlflow_bundle._storage._zipform import Archive, Entry, Part, write_archive
from mlflow_bundle.errors import CorruptError, StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["OneFileStorage"]

#: Other writers that may replace the file before this one gives up.
_ROUNDS: Final = 10


class OneFileStorage(Storage):
    """One ZIP file. Until ``flush`` nothing of it changes; what was put or committed before is read from its staging."""

    is_one_file = True

    def __init__(self, place: Place) -> None:
        self.url = place.url
        self._place = place
        self._archive = place.open()
        self._new: dict[str, _Kept] = {}
        self._folder: Path | None = None
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes:
        found = self._locate(path)
        if isinstance(found, _Kept):
            return found.path.read_bytes()
        archive, entry = found
        return archive.read(entry)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        found = self._locate(path)
        if not isinstance(found, _Kept):
            archive, entry = found
            return archive.read_range(entry, start, length)
        with found.path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise CorruptError(f"{path} ends at byte {found.size:,}, before {start + length:,}")
        return data

    def open(self, path: str) -> BinaryIO:
        found = self._locate(path)
        if isinstance(found, _Kept):
            return found.path.open("rb")
        archive, entry = found
        return archive.open(entry)

    def size(self, path: str) -> int | None:
        checked_path(path)
        if path in self._new:
            return self._new[path].size
        entry = _files(self._archive).get(path)
        return entry.size if entry else None

    def list(self, folder: str) -> dict[str, int]:
        prefix = f"{checked_path(folder)}/" if folder else ""
        with self._lock:
            found = {path: file.size for file_of in (_files(self._archive), self._new) for path, file in file_of.items()}
        return {path: found[path] for path in sorted(found) if path.startswith(prefix)}

    def stage(self) -> Staged:
        try:
            with self._lock:
                if self._folder is None:
                    self._folder = self._place.make_folder()
                    self._cleanup = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            return _StagedWithCrc(open_new(self._folder), self.url)
        except OSError as error:
            raise storage_error(error, f"write beside {self.url}") from error

    def put(self, staged: Staged, path: str) -> bool:
        assert isinstance(staged, _StagedWithCrc)
        staged.finish()
        check_name(staged, path)
        if self.size(path) is None:
            staged.check(path)
        with self._lock:
            if self.size(path) is None:
                kept = open_new(staged.path.parent)
                staged.path.rename(kept)
                self._new[path] = _Kept(kept, staged.size, staged.crc)
                return True
        if _layout.object_hex(path):
            check_stored(self, staged, path)
        staged.discard()
        return False

    def commit(self, data: bytes, path: str) -> None:
        if not self.put_bytes(data, path) and (found := self.read(path)) != data:
            raise damaged(path, self, found=len(found), expected=len(data))

    def flush(self) -> None:
        """Write the next ZIP file and let it replace the old one. What other writers added since is kept.

        Raises:
            StorageError: nothing was replaced.
            CommitUnknownError: nobody can say whether it was.
        """
        for attempt in range(_ROUNDS):
            with self._place.exclusive():
                current = self._place.open()
                parts = self._merge(current)
                done = len(parts) == len(_files(current)) or self._replace(parts, current, first=attempt == 0)
            if done:
                break
        else:
            raise StorageError(
                f"other writers replaced {self.url} {_ROUNDS} times meanwhile", code="busy", hint="run again later"
            )
        with self._lock:
            self._archive = self._place.open()
            written, self._new = self._new, {}
        for kept in written.values():
            kept.path.unlink(missing_ok=True)

    def check_unchanged(self) -> None:
        if self._archive is not None and not self._place.is_unchanged():
            raise StorageError(f"somebody replaced {self.url} while it was read", code="bundle-changed", hint="open it again")

    def damage(self) -> Iterator[str]:
        if self._archive is not None:
            yield from self._archive.damage()

    def close(self) -> None:
        self._place.close()
        if self._folder is not None:
            self._cleanup()
            self._folder = None

    def _locate(self, path: str) -> _Kept | tuple[Archive, Entry]:
        with self._lock:
            kept, archive = self._new.get(checked_path(path)), self._archive
        if kept is not None:
            return kept
        entry = _files(archive).get(path)
        if archive is None or entry is None:
            raise missing(path, self.url)
        return archive, entry

    def _merge(self, current: Archive | None) -> Sequence[Part]:
        """All files of the next ZIP file: those that are there now, and those that are new."""
        there = _files(current)
        for path, entry in _files(self._archive).items():
            if path not in there or _content(there[path]) != _content(entry):
                raise self._changed(path)
        parts = (
            []
            if current is None
            else [Part(path, entry.size, entry.crc, partial(current.chunks, entry)) for path, entry in there.items()]
        )
        for path, kept in self._new.items():
            if path not in there:
                parts.append(Part(path, kept.size, kept.crc, kept.chunks))
            elif _content(there[path]) != _content(kept) and path != _layout.README:
                raise self._changed(path)
        return parts

    def _changed(self, path: str) -> StorageError:
        return StorageError(
            f"somebody replaced {self.url} meanwhile: its {path} is another one now; nothing was changed",
            code="bundle-changed",
            hint="run again",
        )

    def _replace(self, parts: Sequence[Part], current: Archive | None, *, first: bool) -> bool:
        assert self._folder is not None
        following = open_new(self._folder)
        try:
            with following.open("xb") as file:
                write_archive(file, parts)
            return self._place.replace(following, current, first=first)
        except OSError as error:
            raise storage_error(error, f"write the next {self.url}") from error
        finally:
            following.unlink(missing_ok=True)


class _StagedWithCrc(Staged):
    """A staged file with the CRC-32 that its ZIP entry needs."""

    crc = 0

    def write(self, data: ReadableBuffer, /) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return super().write(data)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that was put, and is not in the ZIP file yet."""

    path: Path
    size: int
    crc: int

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, which are checked once more when the last one was read."""
        crc = 0
        with self.path.open("rb") as file:
            while chunk := file.read(MIB):
                crc = zlib.crc32(chunk, crc)
                yield chunk
        if crc != self.crc:
            raise StorageError(
                f"{self.path} does not read back as it was written", code="self-check", hint="check memory and disk, run again"
            )


def _files(archive: Archive | None) -> Mapping[str, Entry]:
    return archive.files if archive else {}


def _content(file: _Kept | Entry) -> tuple[int, int]:
    return file.size, file.crc
