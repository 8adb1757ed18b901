"""What all artifact stores share: checks of paths, reading that never ends too early, copying exactly so many bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final, cast

from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import BundleError, StorageError

__all__ = [
    "CHUNK",
    "UPLOADING",
    "artifact_reader",
    "check_path",
    "copy_exactly",
    "driver_errors",
    "is_unfinished",
    "raise_listing_failures",
    "reason",
    "storage_errors",
]

#: Bytes copied at a time.
CHUNK: Final = 1 << 20
#: MLflow writes uploads under names with this prefix and shows them in no listing.
UPLOADING: Final = ".artifact.uploading."

_NO_PARTS: Final = frozenset({"", ".", ".."})

#: Base classes of errors that drivers raise beside OSError. Looked up only in modules that are loaded.
_DRIVER_ERRORS: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("urllib3.exceptions", "HTTPError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("azure.core.exceptions", "AzureError"),
    ("mlflow.exceptions", "MlflowException"),
)


def driver_errors() -> tuple[type[Exception], ...]:
    """What reading and writing through a file system driver may raise."""
    found = [getattr(sys.modules.get(module), name, None) for module, name in _DRIVER_ERRORS]
    return (OSError, ValueError, RuntimeError, *(error for error in found if isinstance(error, type)))


def reason(error: BaseException) -> str:
    """One line that says what went wrong, without credentials."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return redact_uri(" ".join(text.split())[:300]) or type(error).__name__


@contextmanager
def storage_errors(what: str, *, hint: str | None = None) -> Iterator[None]:
    """Turn whatever a driver raises into a StorageError: ``<what>: <reason>``."""
    try:
        yield
    except BundleError:
        raise
    except driver_errors() as error:
        raise StorageError(f"{what}: {reason(error)}", hint=hint) from error


def check_path(path: str) -> str:
    """``path`` itself, when it names a file below a root on every kind of store.

    Raises:
        StorageError: empty, absolute, climbing, or with empty parts, NUL, or a name that MLflow keeps for unfinished uploads.
    """
    if "\0" in path or not _NO_PARTS.isdisjoint(path.split("/")):
        raise StorageError(f"{path!r} is not the relative path of a file", code="artifact-name")
    if is_unfinished(path):
        raise StorageError(f"{path!r} is a name that MLflow keeps for unfinished uploads", code="artifact-name")
    return path


def is_unfinished(path: str) -> bool:
    """Whether the path lies in, or is, an upload that MLflow has not finished."""
    return UPLOADING in path and any(part.startswith(UPLOADING) for part in path.split("/"))


def raise_listing_failures(failures: Sequence[BundleError]) -> None:
    """Raise what went wrong in a listing, after everything else of it was delivered."""
    if not failures:
        return
    if len(failures) == 1:
        raise failures[0]
    shown = "; ".join(failure.message for failure in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    raise StorageError(f"{len(failures)} places cannot be listed: {shown}{more}", code=failures[0].code)


def copy_exactly(source: BinaryIO, target: BinaryIO, size: int, name: str) -> None:
    """Copy ``size`` bytes.

    Raises:
        StorageError: the source holds fewer or more bytes.
    """
    copied = 0
    while data := source.read(CHUNK):
        target.write(data)
        copied += len(data)
    if copied != size:
        raise StorageError(f"the content for {name!r} has {copied} bytes where {size} were announced")


def artifact_reader(inner: BinaryIO, name: str, size: int = -1, *, likely: int = 0) -> BinaryIO:
    """``inner`` as a stream whose errors are StorageErrors that name the file, and that refuses to end before or after ``size``
    bytes (-1: any length). ``likely`` is the length that it probably has: no larger buffer is made for it."""
    return cast("BinaryIO", _ArtifactReader(inner, name, size, likely))


class _ArtifactReader(io.RawIOBase):
    def __init__(self, inner: BinaryIO, name: str, size: int, likely: int) -> None:
        super().__init__()
        self._inner = inner
        self._name = name
        self._size = size
        self._likely = likely
        self._count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = -1 if size is None else size
        if wanted > self._likely > self._count:
            wanted = self._likely - self._count + 1
        try:
            data = self._inner.read(wanted)
        except driver_errors() as error:
            raise self._broken(error) from error
        self._account(len(data), at_end=wanted < 0 or (wanted > 0 and not data))
        return data

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        try:
            got = self._inner.readinto(buffer)  # type: ignore[attr-defined]
        except driver_errors() as error:
            raise self._broken(error) from error
        self._account(got, at_end=got == 0 and len(buffer) > 0)
        return int(got)

    def readall(self) -> bytes:
        return self.read(-1)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()

    def _account(self, got: int, *, at_end: bool) -> None:
        self._count += got
        if self._size >= 0 and (self._count > self._size or (at_end and self._count != self._size)):
            raise StorageError(
                f"the artifact {self._name!r} came with {self._count} bytes where its listing says {self._size}",
                hint="it changed while it was being read, or the connection broke: run again",
            )

    def _broken(self, error: Exception) -> StorageError:
        return StorageError(f"the artifact {self._name!r} cannot be read: {reason(error)}")
