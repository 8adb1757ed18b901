"""A bundle on any fsspec file system. Only whole writes are relied on: no rename, no lock, no conditional write."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs

from mlflow_bundle import _layout
from mlflow_bundle._redact import redact_uri
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
from mlflow_bundle._storage._ranges import RangeFile
from mlflow_bundle.errors import (
    BundleNotFoundError,
    CommitUnknownError,
    CorruptError,
    NotFoundError,
    StorageError,
    UsageError,
)

__all__ = [
    "CREATE",
    "OBJECT_STORES",
    "RemoteStorage",
    "failures",
    "fetch_range",
    "filesystem_of",
    "info_of",
    "protocols_of",
    "remote_error",
]

T = TypeVar("T")

#: Stores where a write is seen whole or not at all, and one listing answers for a whole tree.
OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
#: File systems whose ``mode="create"`` is more than a look before a write. It hardens; nothing depends on it.
CREATE: Final = OBJECT_STORES | {"memory"}
_S3: Final = frozenset({"s3", "s3a"})

# What the usual file systems raise besides OSError. A module that is not loaded has raised nothing.
_FOREIGN: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("httpx", "HTTPError"),
    ("paramiko", "SSHException"),
    ("smbprotocol.exceptions", "SMBException"),
)
_NO_CREDENTIALS: Final = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}
)
_UNREACHABLE: Final = frozenset({"EndpointConnectionError", "ClientConnectorError", "ConnectTimeoutError", "gaierror"})
_UNANSWERED: Final = frozenset({"HTTPClientError", "ServiceRequestError", "ServiceResponseError", "SSHException"})
_ABSENT: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_PASSING: Final = frozenset(
    {
        errno.EBUSY,
        errno.EIO,
        errno.EAGAIN,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.EPIPE,
        getattr(errno, "EREMOTEIO", errno.EIO),
    }
)
_MD5: Final = re.compile("[0-9a-f]{32}")
#: Seconds before each further attempt; file systems have retries of their own below this.
_PAUSES: Final = (0.3, 1.5)


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that the loaded file systems raise when a store fails or refuses; some say ValueError to a write."""
    loaded = ((sys.modules.get(module), name) for module, name in _FOREIGN)
    return (
        OSError,
        NotImplementedError,
        ValueError,
        *(getattr(module, name) for module, name in loaded if hasattr(module, name)),
    )


def filesystem_of(url: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it, without any cached instance: listings must be fresh.

    Raises:
        UsageError: no file system knows the URL, its package is not installed, or its options are wrong.
    """
    shown = redact_uri(url)
    try:
        fs, root = url_to_fs(url, **{**options, "skip_instance_cache": True})
        if "s3" in protocols_of(fs):
            fs.connect()  # looks at the options, which would be wrong at the first request only; asks no server
    except ImportError as error:
        raise UsageError(
            f"{shown} needs a package that is not installed: {error}", code="missing-package", hint="install it with pip"
        ) from error
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{shown} cannot be opened: {error}", hint="check the URL and storage_options; they go to the fsspec file system"
        ) from error
    except _ABSENT as error:
        raise BundleNotFoundError(f"there is nothing at {shown}") from error
    except failures() as error:
        raise remote_error(error, f"open {shown}") from error
    root = root.rstrip("/")
    if root[:1] in ("", "/") and protocols_of(fs) & OBJECT_STORES:
        raise UsageError(f"{shown} names no bucket")
    return fs, root


class RemoteStorage(Storage):
    """A folder of an fsspec file system. Files are staged on local disk and written whole under their final names."""

    def __init__(self, url: str, fs: fsspec.AbstractFileSystem, root: str) -> None:
        self.url = redact_uri(url)
        self._fs = fs
        #: Before each path; empty for the root of a file system, whatever that begins its names with.
        self._prefix = f"{root}/" if root else ""
        protocols = protocols_of(fs)
        self._object_store = bool(protocols & OBJECT_STORES)
        self._create = bool(protocols & CREATE)
        self._s3 = bool(protocols & _S3)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes:
        full = self._full(path)
        with self._finding(path):
            if not self._s3:
                return cast(bytes, self._fs.cat_file(full))
            try:  # a range saves s3fs the request for the size; an empty object has no range
                return cast(bytes, self._fs.cat_file(full, start=0))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return cast(bytes, self._fs.cat_file(full))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with self._finding(path):
            return fetch_range(self._fs, self._full(path), start, length, what=f"{path} in {self.url}")

    def open(self, path: str) -> BinaryIO:
        size = self.size(path)
        if size is None:
            raise missing(path, self.url)
        return cast(BinaryIO, RangeFile(partial(self.read_range, path), size))

    def size(self, path: str) -> int | None:
        with self._failing("look at", path):
            return look_up(self._fs, self._full(path))

    def list(self, folder: str) -> dict[str, int]:
        top = self._full(folder) if folder else self._prefix.rstrip("/")
        self._fs.invalidate_cache()
        with self._failing("list", folder or self.url):
            found = self._find(top) if self._object_store else self._walk(top)
            return dict(sorted((name.removeprefix(self._prefix).lstrip("/"), size) for name, size in found))

    def stage(self) -> Staged:
        with self._lock, self._failing("write a temporary file for", self.url):
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="mlflow-bundle-", ignore_cleanup_errors=True)
            return Staged(open_new(Path(self._temporary.name)), self.url)

    def put(self, staged: Staged, path: str) -> bool:
        staged.finish()
        check_name(staged, path)
        with self._failing("look at", path):
            there = info_of(self._fs, self._full(path))
        is_object = _layout.object_hex(path) is not None
        if there is not None and (there["size"] == staged.size or not is_object):
            if is_object and (self.thorough or _has_other_md5(there, staged)):
                check_stored(self, staged, path)
            staged.discard()
            return False
        if there is not None and self._object_store:
            raise damaged(path, self, found=there["size"], expected=staged.size)
        # Elsewhere an object that is too short is an upload that was cut off, or still runs: it is written again, whole.
        staged.check(path)
        with self._failing("write", path):
            _persist(lambda: self._fs.put_file(str(staged.path), self._full(path)))
        found = self.size(path)
        if found != staged.size:
            lies = "it is not there" if found is None else f"it has {found:,} bytes instead of {staged.size:,}"
            raise StorageError(f"{self.url} answered that {path} was written, but {lies}", code="not-written")
        staged.discard()
        return True

    def put_bytes(self, data: bytes, path: str) -> bool:
        if _layout.object_hex(path):
            return super().put_bytes(data, path)
        return self.size(path) is None and self._publish(data, path) == data

    def commit(self, data: bytes, path: str) -> None:
        found = self._publish(data, path)
        if found != data:
            raise damaged(path, self, found=len(found), expected=len(data))

    def close(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _publish(self, data: bytes, path: str) -> bytes:
        """Write a document and read back what lies there: that, and not the answer to the write, is the outcome."""
        error: Exception | None = None
        for attempt, pause in enumerate((0.0, *_PAUSES)):
            time.sleep(pause)
            # A store that refuses conditional writes gets a plain one; the name carries the digest, so that is as good.
            error = self._write(data, path, create=self._create and attempt == 0) or error
            found = self._read_back(path, error)
            cut_off = found is not None and len(found) < len(data) and data.startswith(found)
            if found is not None and not cut_off:
                return found
        what = f"{path} is not in {self.url} after {len(_PAUSES) + 1} attempts"
        if error is None:
            raise StorageError(f"{what}, although each was answered with success", code="not-committed")
        why = remote_error(error, f"commit {path} to {self.url}")
        if answered(error):
            raise why from error
        raise CommitUnknownError(
            f"{what}, and the store did not answer: it may still appear", hint="look for the snapshot, or just run again"
        ) from error

    def _write(self, data: bytes, path: str, *, create: bool) -> Exception | None:
        full = self._full(path)
        try:
            if not self._object_store:
                self._fs.makedirs(self._fs._parent(full), exist_ok=True)  # noqa: SLF001 - fsspec has no public name for it
            self._fs.pipe_file(full, data, **({"mode": "create"} if create else {}))
        except failures() as error:
            return error
        return None

    def _read_back(self, path: str, error: Exception | None) -> bytes | None:
        try:
            return self.read(path)
        except BundleNotFoundError:
            return None
        except NotFoundError:
            return None
        except StorageError as unreadable:
            raise CommitUnknownError(
                f"{path} was written to {self.url} and cannot be read back: nobody can say whether it was committed"
                f" ({unreadable.message})",
                hint="look for the snapshot when the storage answers again, or just run again",
            ) from (error or unreadable)

    def _find(self, top: str) -> Iterator[tuple[str, int]]:
        """One listing of all that lies below a folder."""
        for name, info in self._fs.find(top, detail=True).items():
            if info["type"] == "file" and name.startswith(f"{top}/") and not name.endswith("/"):
                yield name, info["size"]

    def _walk(self, top: str) -> Iterator[tuple[str, int]]:
        """Folder by folder: fsspec's own ``find`` passes over folders that it cannot read."""
        try:
            entries = self._fs.ls(top, detail=True)
        except _ABSENT:
            return
        web = bool(protocols_of(self._fs) & {"http", "https"})
        unsized = []
        for info in entries:
            name = info["name"].rstrip("/")
            if name == top or (web and "?" in name):  # a page that lists a folder links to itself in other orders
                continue
            if info["type"] == "directory":
                yield from self._walk(name)
            elif info["size"] is None:
                unsized.append(name)
            else:
                yield name, info["size"]
        # A page says no sizes. Files are asked for theirs at once, many at a time.
        for name, size in zip(unsized, self._fs.sizes(unsized) if unsized else (), strict=True):
            if size is None:
                raise StorageError(f"the server of {self.url} does not say how large {name.removeprefix(self._prefix)} is")
            yield name, size

    def _full(self, path: str) -> str:
        return self._prefix + checked_path(path)

    @contextlib.contextmanager
    def _finding(self, path: str) -> Iterator[None]:
        with self._failing("read", path):
            try:
                yield
            except _ABSENT as error:
                if _s3_code(error) == "NoSuchBucket":
                    what = f"the bucket of {self.url} does not exist"
                    raise BundleNotFoundError(
                        what, code="bucket-missing", hint="check the URL, or create the bucket"
                    ) from error
                raise missing(path, self.url) from error

    @contextlib.contextmanager
    def _failing(self, doing: str, what: str) -> Iterator[None]:
        try:
            yield
        except failures() as error:
            where = "" if what == self.url else f" in {self.url}"
            raise remote_error(error, f"{doing} {what}{where}") from error


def protocols_of(fs: fsspec.AbstractFileSystem) -> frozenset[str]:
    """The names that a file system goes by."""
    return frozenset((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def look_up(fs: fsspec.AbstractFileSystem, full: str) -> int | None:
    """The bytes of a file now, whatever an earlier listing said, or None when there is none."""
    info = info_of(fs, full)
    return None if info is None else info["size"]


def info_of(fs: fsspec.AbstractFileSystem, full: str) -> dict[str, Any] | None:
    """What a file system says of a file now, or None when there is none."""
    fs.invalidate_cache()
    try:
        info: dict[str, Any] = fs.info(full)
    except _ABSENT:
        return None
    return info if info["type"] == "file" else None


def _has_other_md5(info: Mapping[str, Any], staged: Staged) -> bool:
    """Whether a store seems to say another MD5 than a staged file has: S3 in the ETag of what it neither got in parts nor
    encrypts with keys of its own, Google with its name. The bytes have the last word."""
    etag, md5 = str(info.get("ETag") or "").strip('"'), info.get("md5Hash")
    said = base64.b64decode(md5) if md5 else bytes.fromhex(etag) if _MD5.fullmatch(etag) else None
    if said is None:
        return False
    found = hashlib.md5(usedforsecurity=False)
    with staged.reopen() as file:
        while chunk := file.read(MIB):
            found.update(chunk)
    return said != found.digest()


def fetch_range(fs: fsspec.AbstractFileSystem, full: str, start: int, length: int, *, what: str) -> bytes:
    """Exactly these bytes of a file, in one request.

    Raises:
        CorruptError: the file ends before.
        StorageError: the server gives other ranges than it is asked for.
    """
    if length == 0:
        return b""
    try:
        data: bytes = fs.cat_file(full, start=start, end=start + length)
    except OSError as error:
        if error.errno != errno.EINVAL:  # S3 for a range that begins behind the end
            raise
        size = look_up(fs, full)
        if size is None or size >= start + length:
            raise
        data = b""
    if len(data) > length:
        raise StorageError(
            f"the server of {what} gave {len(data):,} bytes where {length:,} were asked for: it does not serve ranges",
            code="no-ranges",
            hint="copy the bundle to this machine, or let another server serve it",
        )
    if len(data) != length:
        raise CorruptError(f"{what} ends before byte {start + length:,}")
    return data


def remote_error(error: Exception, doing: str) -> StorageError:
    """One clear sentence for what a file system raised. ``doing`` completes "cannot ..."."""
    names = {cls.__name__ for cls in type(error).__mro__}
    doing = redact_uri(doing)
    if _s3_code(error) == "NoSuchBucket":
        return StorageError(f"cannot {doing}: the bucket does not exist", code="bucket-missing", hint="create the bucket")
    if names & _NO_CREDENTIALS:
        hint = (
            "give credentials in storage_options (--storage-option KEY=VALUE), the environment, or the configuration of the"
            " cloud's own tools"
        )
        return StorageError(f"cannot {doing}: there are no credentials", code="credentials", hint=hint)
    if names & _UNREACHABLE or isinstance(error, ConnectionRefusedError):
        hint = "check the endpoint, the network and the proxy settings"
        return StorageError(f"cannot {doing}: the storage cannot be reached", code="unreachable", hint=hint)
    if not answered(error):
        hint = "run again; what was written stays and is not written twice"
        return StorageError(f"cannot {doing}: the storage did not answer in time", code="no-answer", hint=hint)
    if isinstance(error, NotImplementedError):
        return StorageError(f"cannot {doing}: this file system is read-only", code="read-only", hint="choose another place")
    return storage_error(error, doing)


def answered(error: Exception) -> bool:
    """Whether the store gave an answer, so that what it said is what it did."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return _s3_code(error) is not None or not (isinstance(error, TimeoutError | ConnectionError) or names & _UNANSWERED)


def _s3_code(error: BaseException) -> str | None:
    """The error code in S3's answer, where there was one."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        seen = seen.__cause__
    return None


def _persist(action: Callable[[], T]) -> T:
    """Try again what may be repeated, when the store says that it is busy or drops the connection."""
    for pause in _PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause * (0.5 + random.random()))  # noqa: S311 - spreads writers, protects nothing
    return action()
