"""What every storage of a bundle offers: the interface, and the parts that the backends share."""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import io
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from mlflow_bundle import _layout
from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import CorruptError, NotFoundError, StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "MIB",
    "Staged",
    "Storage",
    "check_name",
    "check_stored",
    "checked_path",
    "damaged",
    "missing",
    "open_new",
    "storage_error",
    "sweep",
]

MIB: Final = 2**20
#: Unfinished writes older than this many seconds belong to nobody who still lives.
_LEFTOVER_AGE: Final = 24 * 3600


class Storage(abc.ABC):
    """The root of a bundle. Paths are relative to it and use ``/``. Objects may be read and put from several threads."""

    #: Where the bundle is, for messages: as given, without credentials.
    url: str

    #: Whether it is a folder in one file.
    is_one_file: bool = False

    #: Whether ``put`` reads back every object that is there already, also where each of them is a download.
    thorough: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that it is; None for anything else."""
        return None

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            NotFoundError: there is none (code ``object-missing``).
            StorageError: the storage failed or refused.
        """

    @abc.abstractmethod
    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``.

        Raises:
            CorruptError: the file ends before.
            NotFoundError: there is no such file.
        """

    @abc.abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A file for random access: few requests for a Parquet footer and its row groups, or for a long sequential read.

        Raises:
            NotFoundError: there is no such file.
        """

    @abc.abstractmethod
    def size(self, path: str) -> int | None:
        """The bytes of a file, or None when there is none."""

    @abc.abstractmethod
    def list(self, folder: str) -> dict[str, int]:
        """Every file below a folder (``""``: the root), sorted: path relative to the root -> bytes. Empty when absent."""

    @abc.abstractmethod
    def stage(self) -> Staged:
        """A new temporary local file, hashed while it is written. Nothing of the bundle changes."""

    @abc.abstractmethod
    def put(self, staged: Staged, path: str) -> bool:
        """Publish a staged file, which is read back before. False when there is a file of that name already: an object of the
        same content, or a document such as the marker whatever its content. It survives a power loss at the latest when
        ``commit`` begins.

        On this machine and in the one-file form the object there is read; elsewhere it is if ``thorough``, and otherwise its
        size counts, and its MD5 where the store says it.

        Raises:
            StorageError: the storage failed or refused; the staged file is not what was written (code ``self-check``); or the
                object there has another content (code ``object-damaged``).
        """

    def put_bytes(self, data: bytes, path: str) -> bool:
        """``put`` of bytes in memory."""
        with self.stage() as staged:
            staged.write(data)
            return self.put(staged, path)

    @abc.abstractmethod
    def commit(self, data: bytes, path: str) -> None:
        """Write a file whose name carries its digest (a snapshot), after everything that was put before.

        Any error is answered by reading back. Nothing is ever deleted; running again is safe.

        Raises:
            StorageError: it was not committed.
            CommitUnknownError: nobody can say whether it was.
        """

    def flush(self) -> None:
        """Make what was committed visible, where ``commit`` alone cannot (one file). Raises as ``commit`` does."""

    def check_unchanged(self) -> None:
        """See that ranges that were read are of the files that were opened, where somebody may replace them all at once.

        Raises:
            StorageError: they may be of others (code ``bundle-changed``).
        """

    def damage(self) -> Iterator[str]:
        """A sentence for each damage in bytes that belong to no file of the bundle: the framing of the one-file form."""
        yield from ()

    def close(self) -> None:
        """Release files and connections, and discard what was staged and never put."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Staged(io.RawIOBase):
    """A temporary local file that is hashed while it is written; leaving its ``with`` block discards it if never put.

    It cannot seek, so that what was hashed is what lies there.
    """

    def __init__(self, path: Path, url: str) -> None:
        super().__init__()
        self.path = path
        self.size = 0
        self._url = url
        self._hash = hashlib.sha256()
        self._file = path.open("xb", buffering=MIB)

    @property
    def sha256(self) -> str:
        """The SHA-256 of all that was written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: ReadableBuffer, /) -> int:
        """Append bytes; how many there were.

        Raises:
            StorageError: the disk is full or failed.
        """
        view = memoryview(data).cast("B")
        with self._writing():
            self._file.write(view)
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """The bytes written so far."""
        return self.size

    def flush(self) -> None:
        if not self._file.closed:
            with self._writing():
                self._file.flush()

    def finish(self) -> None:
        """No more writes. May be called again."""
        with self._writing():
            self._file.close()

    def close(self) -> None:
        try:
            self.finish()
        finally:
            super().close()

    def reopen(self) -> BinaryIO:
        """What was written, for reading."""
        self.finish()
        return self.path.open("rb")

    def check(self, path: str) -> None:
        """Read it back before it becomes ``path``: a bad disk or memory must not reach an archive.

        Raises:
            StorageError: other bytes lie there than were written.
        """
        with self._reading(), self.reopen() as file:
            found = sha256_of(file)
        if found != self.sha256:
            raise StorageError(
                f"{path} does not read back as it was written", code="self-check", hint="check memory and disk, run again"
            )

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        # A full disk makes the last flush fail again; the file goes anyway.
        with contextlib.suppress(OSError, StorageError):
            self.close()
        self.path.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.discard()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, f"write a temporary file for {self._url} in {self.path.parent}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, f"read back a temporary file for {self._url} in {self.path.parent}") from error


def open_new(folder: Path) -> Path:
    """A path in ``folder`` that nothing has yet."""
    return folder / secrets.token_hex(12)


def sweep(folder: Path, pattern: str) -> list[Path]:
    """What is left of writers that died, by its last change."""
    horizon = time.time() - _LEFTOVER_AGE
    found = []
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            if path.lstat().st_mtime < horizon:
                found.append(path)
    return found


def check_name(staged: Staged, path: str) -> None:
    """Objects are named by their content: anything else is a mistake of the caller."""
    expected = _layout.object_hex(path)
    if path.startswith(f"{_layout.OBJECTS}/") and expected != staged.sha256:
        raise ValueError(f"the content of {path} has the SHA-256 {staged.sha256}")


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of an open file, in hex."""
    found = hashlib.sha256()
    while chunk := file.read(MIB):
        found.update(chunk)
    return found.hexdigest()


def check_stored(storage: Storage, staged: Staged, path: str) -> None:
    """Read the object that has the name of a staged file already.

    Raises:
        StorageError: it has another content.
    """
    with storage.open(path) as file:
        found = sha256_of(file)
    if found != staged.sha256:
        raise damaged(path, storage, found=storage.size(path) or 0, expected=staged.size)


def checked_path(path: str) -> str:
    """``path``, which may come from a hostile bundle, if it stays inside the root.

    Raises:
        CorruptError: it does not.
    """
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or "\0" in path or ":" in path:
        raise CorruptError(f"{path!r} is no path inside a bundle", code="E021")
    return path


def missing(path: str, url: str) -> NotFoundError:
    """The error for a file that is not there."""
    hint = "`mlflow-bundle verify` lists what is missing; take it from a copy"
    return NotFoundError(f"{path} is missing in {url}", code="object-missing", hint=hint)


def damaged(path: str, storage: Storage, *, found: int, expected: int) -> StorageError:
    """The error for a file that is not what its name says: it has ``found`` bytes where its content has ``expected``."""
    has = f"{found:,} bytes where its content has {expected:,}" if found != expected else "other bytes than its name says"
    move = "take it out of the ZIP file (`zip -d`)" if storage.is_one_file else "move it out of the bundle"
    return StorageError(
        f"{path} in {storage.url} has {has}: it is damaged, and nothing is overwritten",
        code="object-damaged",
        hint=f"{move}, and run again: it is written anew; `mlflow-bundle verify` says whether more is damaged",
    )


# Errors of the operating system that have an obvious next step: code, what happened, hint.
_KNOWN: Final = {
    errno.ENOSPC: ("no-space", "there is no space left", "free some space and run again"),
    errno.EDQUOT: ("no-space", "the disk quota is used up", "free some space and run again"),
    errno.EFBIG: ("no-space", "the file is larger than this place allows", "choose another place, or raise the limit"),
    errno.EROFS: ("read-only", "this place is read-only", "choose a place that can be written"),
    errno.ENOTDIR: ("not-a-folder", "part of the path is a file", "check the path, or choose another place"),
    errno.EEXIST: ("not-a-folder", "part of the path is a file", "check the path, or choose another place"),
    errno.EACCES: ("permission", "access is denied", "check the permissions, or give other credentials"),
    errno.EPERM: ("permission", "access is denied", "check the permissions, or give other credentials"),
}


def storage_error(error: Exception, doing: str) -> StorageError:
    """One clear sentence for an error of a file system. ``doing`` completes "cannot ..."."""
    number = error.errno if isinstance(error, OSError) else None
    known = _KNOWN.get(number) if number is not None else None
    if known is None and isinstance(error, PermissionError):
        known = _KNOWN[errno.EACCES]
    doing = redact_uri(doing)
    if known is not None:
        code, what, hint = known
        return StorageError(f"cannot {doing}: {what}", code=code, hint=hint)
    plain = error.strerror if isinstance(error, OSError) and error.filename is not None else None
    said = redact_uri(" ".join((plain or str(error)).split())) or type(error).__name__
    return StorageError(f"cannot {doing}: {said}", hint="check the place, then run again")
