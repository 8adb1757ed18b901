"""Artifact files in an object store or any other place that fsspec or an MLflow plugin reaches."""

from __future__ import annotations

import io
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import urlsplit

import fsspec

from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import StorageError
from mlflow_bundle.tracking._port import FileInfo
from mlflow_bundle.tracking.artifacts._common import (
    artifact_reader,
    check_path,
    copy_exactly,
    is_unfinished,
    raise_listing_failures,
    storage_errors,
)

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

__all__ = ["FsspecArtifacts", "PluginArtifacts", "s3_options"]

#: Up to so many bytes a file travels in one request and through memory.
SMALL: Final = 8 << 20
#: Bytes fetched ahead of a larger one.
BLOCK: Final = 16 << 20
#: Stores without folders, whose ``find`` lists everything or raises. The ``find`` of others leaves out what it cannot list.
FLAT: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_S3: Final = frozenset({"s3", "s3a"})


def s3_options() -> dict[str, Any]:
    """The options of s3fs for the environment variables by which MLflow's own S3 client is configured."""
    options: dict[str, Any] = {"use_listings_cache": False}
    client: dict[str, Any] = {}
    if endpoint := os.environ.get("MLFLOW_S3_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    if os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in {"1", "true"}:
        client["verify"] = False
    if client:
        options["client_kwargs"] = client
    if style := os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"):
        options["config_kwargs"] = {"s3": {"addressing_style": style}}
    if extra := os.environ.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS"):
        options["s3_additional_kwargs"] = json.loads(extra)
    return options


class FsspecArtifacts:
    """The files below one prefix of an fsspec file system. Names are taken as they are: nothing is percent-decoded."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None, *, below: str = "") -> None:
        """Connect. ``below`` is a path below the URI, taken as it is.

        Raises:
            ImportError: the package behind the scheme is not installed.
            StorageError: the options are wrong.
        """
        parts = urlsplit(uri)
        self._scheme = parts.scheme
        self._shown = redact_uri(uri)
        options = {**(s3_options() if parts.scheme in _S3 else {}), **(storage_options or {})}
        with storage_errors(f"the artifact store {self._shown} cannot be opened"):
            # Only the host goes through URL parsing, since keys may hold '::', '#' and '?'.
            self._fs, base = fsspec.core.url_to_fs(f"{parts.scheme}://{parts.netloc}", **options)
        # MLflow drops the query and the fragment of a location too.
        self._root = "/".join([base.rstrip("/"), *filter(None, [parts.path.strip("/"), below])])
        self._sizes: dict[str, int] = {}

    def walk(self) -> Iterator[FileInfo]:
        """Every file with a stamp from its ETag, where the store has one. What cannot be archived (a file in the place of a
        folder) raises StorageError after everything else was delivered."""
        with storage_errors(f"the artifacts at {self._shown} cannot be listed", hint=_credentials_hint(self._scheme)):
            entries = self._entries()
        prefix = self._root + "/"
        failures: list[StorageError] = []
        for name, info in entries.items():
            # Some tools leave empty objects as markers of folders.
            if not name.startswith(prefix) or name.endswith("/") or info.get("type") == "directory":
                if info.get("size") and (name.endswith("/") or len(entries) == 1):
                    failures.append(StorageError(f"{redact_uri(name)!r} is a file where a folder of artifacts should be"))
                continue
            path = name[len(prefix) :]
            if not is_unfinished(path):
                size = info.get("size")
                self._sizes[path] = -1 if size is None else int(size)
                yield FileInfo(path, self._sizes[path], _stamp(info))
        raise_listing_failures(failures)

    def folders(self) -> frozenset[str] | None:
        """The names of all that lies at the root, in lower case; None where it cannot be listed."""
        try:
            with storage_errors(f"the artifacts at {self._shown} cannot be listed"):
                if not self._fs.exists(self._root):
                    # A missing bucket is not an empty one: whoever lists a folder in it is told.
                    lost = self._scheme in FLAT and not self._fs.exists(self._root.partition("/")[0])
                    return None if lost else frozenset()
                names = self._fs.ls(self._root, detail=False)
        except StorageError:
            return None
        return frozenset(name.rstrip("/").rpartition("/")[2].casefold() for name in names)

    def _entries(self) -> dict[str, dict[str, Any]]:
        if self._scheme in FLAT:
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
            return found
        if not self._fs.exists(self._root):
            return {}
        levels = self._fs.walk(self._root, detail=True, on_error="raise")
        return {info["name"]: info for _, _, files in levels for info in files.values()}

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The content of one file; its length must be the listed one.

        Raises:
            StorageError: it is missing, cannot be read, or ends too early.
        """
        name = self._name(path)
        size = self._sizes.get(path, -1)
        with storage_errors(f"the artifact {path!r} at {self._shown} cannot be read"):
            # From 0 on: one request, where fetching the whole object asks for its size first.
            inner = (
                io.BytesIO(self._fs.cat_file(name, start=0))
                if 0 < size <= SMALL
                else self._fs.open(name, "rb", block_size=BLOCK)
            )
        with artifact_reader(inner, path, size) as reader:
            yield reader

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """Store one file of ``size`` bytes. Nothing is sent before all of the content is there.

        Raises:
            StorageError: the path is none of a file, the store refuses it, or the content has another size.
        """
        name = self._name(path)
        with storage_errors(f"the artifact {path!r} cannot be written to {self._shown}", hint=_credentials_hint(self._scheme)):
            if self._scheme not in FLAT:
                self._fs.makedirs(posixpath.dirname(name), exist_ok=True)
            if size <= SMALL:
                buffer = io.BytesIO()
                copy_exactly(content, buffer, size, path)
                self._fs.pipe_file(name, buffer.getvalue())
                return
            # Closing an fsspec file after an error would publish the half of it: a whole local copy is sent instead.
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / "content"
                with local.open("xb") as file:
                    copy_exactly(content, file, size, path)
                self._fs.put_file(str(local), name)

    def _name(self, path: str) -> str:
        check_path(path)
        if self._scheme in _S3 and "?versionId=" in path:
            raise StorageError(
                f"the artifact {path!r} cannot be addressed on S3: its name holds '?versionId='", code="artifact-name"
            )
        return f"{self._root}/{path}"


class PluginArtifacts:
    """The files of any artifact repository that MLflow or one of its plugins knows, through MLflow's own interface."""

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        """Look the scheme up. ``tracking_uri`` is the server that some repositories take their credentials from.

        Raises:
            StorageError: nobody knows the scheme, or the package behind it is not installed.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415
        from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri  # noqa: PLC0415

        if uri.startswith("dbfs:"):
            # Without a workspace MLflow asks its default tracking store for one, and creates a database for that.
            workspace = tracking_uri if tracking_uri and tracking_uri.startswith("databricks") else "databricks"
            uri = add_databricks_profile_info_to_artifact_uri(uri, workspace)
        self._shown = redact_uri(uri)
        with storage_errors(f"no artifact store for {self._shown}", hint="install the fsspec driver or MLflow plugin for it"):
            try:
                self._repository: ArtifactRepository = get_artifact_repository(uri, tracking_uri)
            except ImportError as error:
                raise StorageError(f"no artifact store for {self._shown}: {error}", hint="install that package") from error
        self._sizes: dict[str, int] = {}

    def walk(self) -> Iterator[FileInfo]:
        """Every file, folder by folder, without stamps."""
        folders: list[str | None] = [None]
        while folders:
            folder = folders.pop()
            with storage_errors(f"the artifact folder {folder or ''!r} at {self._shown} cannot be listed"):
                entries = self._repository.list_artifacts(folder)
            for entry in entries:
                if entry.is_dir:
                    folders.append(entry.path)
                elif not is_unfinished(entry.path):
                    self._sizes[entry.path] = -1 if entry.file_size is None else entry.file_size
                    yield FileInfo(entry.path, self._sizes[entry.path])

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The content of one file, by way of a temporary local copy."""
        check_path(path)
        with tempfile.TemporaryDirectory() as folder:
            with storage_errors(f"the artifact {path!r} at {self._shown} cannot be read"):
                local = Path(self._repository.download_artifacts(path, dst_path=folder))
                inner = local.open("rb", buffering=0)
            with artifact_reader(inner, path, self._sizes.get(path, -1)) as reader:
                yield reader

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """Store one file of ``size`` bytes, by way of a temporary local copy."""
        folder, name = posixpath.split(check_path(path))
        with (
            storage_errors(f"the artifact {path!r} cannot be written to {self._shown}"),
            tempfile.TemporaryDirectory() as temporary,
        ):
            local = Path(temporary) / name
            with local.open("xb") as file:
                copy_exactly(content, file, size, path)
            self._repository.log_artifact(str(local), folder or None)


def _stamp(info: Mapping[str, Any]) -> str | None:
    """ETag, size and time of change; None where the store has no ETag: a size and a time alone prove nothing."""
    etag = next((info[key] for key in ("ETag", "etag", "e_tag", "md5Hash") if info.get(key)), None)
    if etag is None:
        return None
    changed = next((info[key] for key in ("LastModified", "last_modified", "updated") if info.get(key)), "")
    return f"{str(etag).strip(chr(34))}-{info.get('size')}-{changed}"


def _credentials_hint(scheme: str) -> str | None:
    return "check the AWS credentials, the region and MLFLOW_S3_ENDPOINT_URL" if scheme in _S3 else None
