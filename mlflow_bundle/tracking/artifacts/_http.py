"""Artifact files behind a tracking server: through its artifact proxy, or through the run that they belong to.

A server percent-decodes a path until it no longer changes and then takes it apart as a URL. So some names can be listed but
not addressed, and asking for one of them can deliver, or overwrite, another file. Those are refused before anything is sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, unquote, urlparse, urlunparse

import msgspec

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import StorageError
from mlflow_bundle.tracking._port import FileInfo
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.artifacts._common import artifact_reader, check_path, is_unfinished, raise_listing_failures
from mlflow_bundle.tracking.artifacts._local import LocalArtifacts

__all__ = ["PROXY", "ProxiedArtifacts", "RunArtifacts", "unspeakable"]

PROXY: Final = "/api/2.0/mlflow-artifacts/artifacts"
#: Folders asked for at the same time.
THREADS: Final = 4


def unspeakable(path: str) -> str | None:
    """Why no server takes this path as it is, or None. For the proxy ``path`` starts at its root, else at the run's."""
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):
        return "it holds a control character"
    if "#" in path:
        return "it holds '#'"
    if unquote(path) != path:
        return "it holds '%' and two hexadecimal digits"
    if path.endswith((";", "?")) or urlunparse(urlparse(path)) != path:
        return "the server reads part of it as part of a URL"
    return None


class _Entry(msgspec.Struct):
    """One line of a listing. The server leaves the size out where it is 0 or unknown."""

    path: str
    is_dir: bool = False
    file_size: int = -1


class _Listing(msgspec.Struct):
    root_uri: str = ""
    files: list[_Entry] = []
    next_page_token: str = ""


class _ServedArtifacts(ABC):
    """What both ways have in common: folders are listed side by side, sizes are compared, no file is mistaken for another."""

    def __init__(self, client: RestClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._sizes: dict[str, int] = {}

    @abstractmethod
    def _listing(self, folder: str) -> tuple[str, dict[str, Any]]:
        """The endpoint and the parameters that list one folder (empty: the root)."""

    @abstractmethod
    def _content(self, path: str) -> tuple[str, dict[str, Any] | None]:
        """The endpoint and the parameters that deliver one file."""

    @abstractmethod
    def _address(self, path: str) -> str:
        """The path that the server takes apart."""

    def walk(self) -> Iterator[FileInfo]:
        """Every file. Folders that the server cannot list raise StorageError after all the others were delivered."""
        failures: list[StorageError] = []
        folders = [""]
        with ThreadPoolExecutor(THREADS, "mlflow-bundle-listing") as pool:
            while folders:
                below: list[str] = []
                for folder, entries in zip(folders, bounded_map(pool, self._entries, folders, 2 * THREADS), strict=True):
                    if isinstance(entries, StorageError):
                        failures.append(entries)
                        continue
                    for entry in entries:
                        path = f"{folder}/{entry.path.rpartition('/')[2]}".lstrip("/")
                        if is_unfinished(path):
                            continue
                        if entry.is_dir:
                            below.append(path)
                        else:
                            self._sizes[path] = entry.file_size
                            yield FileInfo(path, entry.file_size)
                folders = below
        raise_listing_failures(failures)

    def _entries(self, folder: str) -> list[_Entry] | StorageError:
        """What lies in one folder, or why that cannot be said. A server that does not answer raises."""
        if folder and (why := unspeakable(self._address(folder))):
            return self._unaddressable(folder, "folder", why)
        path, params = self._listing(folder)
        found: list[_Entry] = []
        token = ""
        while True:
            try:
                page: _Listing = self._client.get_json(
                    path, {**params, "page_token": token} if token else params, answer=_Listing
                )
            except RefusedError as error:
                return StorageError(f"the artifact folder {folder!r} of run {self._run_id} cannot be listed: {error.message}")
            found += page.files
            token = page.next_page_token
            if not token:
                return found

    def folders(self) -> frozenset[str] | None:
        """The names of the folders at the root, in lower case; None where they cannot be listed."""
        entries = self._entries("")
        if isinstance(entries, StorageError):
            return None
        return frozenset(entry.path.rpartition("/")[2].casefold() for entry in entries if entry.is_dir)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The content of one file; its length must be the listed one.

        Raises:
            StorageError: the server cannot deliver a file of this name, or not this file.
            ServerError: it does not answer, or breaks off.
        """
        if why := unspeakable(self._address(check_path(path))):
            raise self._unaddressable(path, "file", why)
        endpoint, params = self._content(path)
        with ExitStack() as stack:
            try:
                body = stack.enter_context(self._client.stream(endpoint, params))
            except RefusedError as error:
                raise StorageError(f"the artifact {path!r} of run {self._run_id} cannot be fetched: {error.message}") from error
            yield stack.enter_context(artifact_reader(body, path, self._sizes.get(path, -1)))

    def _unaddressable(self, path: str, what: str, why: str) -> StorageError:
        return StorageError(
            f"the artifact {what} {path!r} of run {self._run_id} cannot pass through an MLflow server: {why}",
            code="artifact-name",
            hint="give direct access to the files: artifacts_destination, or the database of the server",
        )


class ProxiedArtifacts(_ServedArtifacts):
    """The files below one folder of a server's artifact proxy (``mlflow server --artifacts-destination``)."""

    def __init__(self, client: RestClient, run_id: str, root: str) -> None:
        super().__init__(client, run_id)
        self._root = root

    def _address(self, path: str) -> str:
        return f"{self._root}/{path}".strip("/")

    def _listing(self, folder: str) -> tuple[str, dict[str, Any]]:
        return PROXY, {"path": self._address(folder)}

    def _content(self, path: str) -> tuple[str, None]:
        return f"{PROXY}/{quote(self._address(path))}", None

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """Upload one file of ``size`` bytes.

        Raises:
            StorageError: the server cannot store a file of this name, or refuses it.
            ServerError: it does not answer.
        """
        if why := unspeakable(self._address(check_path(path))):
            raise self._unaddressable(path, "file", why)
        try:
            self._client.put(f"{PROXY}/{quote(self._address(path))}", content, size)
        except RefusedError as error:
            raise StorageError(f"the artifact {path!r} of run {self._run_id} cannot be uploaded: {error.message}") from error
        if content.read(1):
            raise StorageError(f"the content for {path!r} has more than the {size} bytes that were announced")


class RunArtifacts(_ServedArtifacts):
    """The files of one run as the server itself reads them, wherever they lie (``mlflow server --no-serve-artifacts``).

    There is no way to upload: ``folder``, the run's location as a path, is written directly, and the server must see it.
    """

    def __init__(self, client: RestClient, run_id: str, folder: str | None = None) -> None:
        super().__init__(client, run_id)
        self._folder = Path(folder) if folder else None
        self._shared = False

    def _address(self, path: str) -> str:
        return path

    def _listing(self, folder: str) -> tuple[str, dict[str, Any]]:
        return f"{API}artifacts/list", {"run_id": self._run_id, **({"path": folder} if folder else {})}

    def _content(self, path: str) -> tuple[str, dict[str, Any]]:
        return "/get-artifact", {"run_uuid": self._run_id, "path": path}

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """Write one file of ``size`` bytes into the run's folder on this machine.

        Raises:
            StorageError: the server's folder is not on this machine, or cannot be written.
        """
        check_path(path)
        if self._folder is None or not self._folder.is_absolute():
            raise self._elsewhere(path)
        LocalArtifacts(self._folder).write(path, content, size)
        if self._shared:
            return
        folder = path.rpartition("/")[0]
        entries = self._entries(folder)
        if isinstance(entries, StorageError) or not any(
            entry.path == path and entry.file_size == (size or -1) for entry in entries
        ):
            self._take_back(path)
            raise self._elsewhere(path)
        self._shared = True

    def _take_back(self, path: str) -> None:
        """Remove what was written into a folder that only has the same name as the server's."""
        assert self._folder is not None
        file = self._folder / path
        with suppress(OSError):
            file.unlink()
            for folder in file.parents[: path.count("/") + 1]:
                folder.rmdir()

    def _elsewhere(self, path: str) -> StorageError:
        return StorageError(
            f"the artifact {path!r} of run {self._run_id} cannot be written: its folder {str(self._folder)!r} is not"
            " on this machine, and the server takes no uploads for it",
            hint="start the server with --artifacts-destination, or run on its machine",
        )


class ModelArtifacts(_ServedArtifacts):
    """The files of one logged model as the server itself reads them, wherever they lie. There is no way to upload."""

    def _address(self, path: str) -> str:
        return path

    def _listing(self, folder: str) -> tuple[str, dict[str, Any]]:
        params = {"artifact_directory_path": folder} if folder else {}
        return f"{API}logged-models/{quote(self._run_id)}/artifacts/directories", params

    def _content(self, path: str) -> tuple[str, dict[str, Any]]:
        return f"/ajax-api/2.0/mlflow/logged-models/{quote(self._run_id)}/artifacts/files", {"artifact_file_path": path}

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """There is no endpoint for it.

        Raises:
            StorageError: always.
        """
        del content, size
        raise StorageError(
            f"the artifact {path!r} of logged model {self._run_id} cannot be written: the server takes no uploads for it",
            hint="start the server with --artifacts-destination, or run on its machine",
        )
