"""Finds the artifact store of a run: from its location to the way its files are read and written."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import fsspec

from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import StorageError, UsageError
from mlflow_bundle.tracking._port import ArtifactStore
from mlflow_bundle.tracking.artifacts._folders import folders_of
from mlflow_bundle.tracking.artifacts._fsspec import FsspecArtifacts, PluginArtifacts
from mlflow_bundle.tracking.artifacts._local import LocalArtifacts, local_path

if TYPE_CHECKING:
    from mlflow_bundle.tracking._rest import RestClient

__all__ = ["artifact_store", "check_destination", "empty_destination"]

#: Schemes that fsspec knows too, with another meaning of the URI or other credentials than MLflow's.
_MLFLOW_ONLY: Final = frozenset({"dbfs", "ftp", "hdfs", "models", "runs", "sftp", "viewfs"})
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):")
#: Kinds whose files a server lists itself, wherever they lie.
_SERVED: Final = ("run", "logged_model")
_PROXY: Final = "/api/2.0/mlflow-artifacts/artifacts"


def artifact_store(
    uri: str,
    *,
    client: RestClient | None,
    run_id: str,
    kind: str = "run",
    artifacts_destination: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ArtifactStore:
    """The store of the files at ``uri``, the artifact location of a run or of another ``kind`` of entity of that id.

    ``client`` is the tracking server that the run comes from, None where it comes from a database. ``artifacts_destination`` is
    what ``mlflow-artifacts:`` stands for, the server's option of the same name: the files are then read there, past the server.
    ``storage_options`` are for fsspec.

    Raises:
        UsageError: there is no location, or the files lie behind a server and nobody said where it keeps them.
        StorageError: the place cannot be opened.
    """
    if not uri and client is None:
        raise UsageError(f"the run {run_id} has no artifact location")
    scheme = _scheme(uri)
    if scheme in {"mlflow-artifacts", "http", "https"}:
        return _behind_server(uri, client, run_id, artifacts_destination, storage_options)
    if scheme in {"", "file"}:
        folder = local_path(uri)
        # A relative path means a folder of the server's process, and an absolute one may be of another machine.
        if client is not None and kind in _SERVED and not (Path(folder).is_absolute() and os.path.isdir(folder)):  # noqa: PTH112
            from mlflow_bundle.tracking.artifacts._http import ModelArtifacts, RunArtifacts  # noqa: PLC0415

            return ModelArtifacts(client, run_id) if kind == "logged_model" else RunArtifacts(client, run_id, folder)
        return LocalArtifacts(folder)
    return _direct(uri, storage_options, tracking_uri=client.uri if client is not None else None)


def check_destination(artifacts_destination: str, storage_options: Mapping[str, Any] | None) -> None:
    """Look whether the place that stands for ``mlflow-artifacts:`` can hold files at all.

    Raises:
        UsageError: it is a folder that does not exist.
        StorageError: nobody can open such a place.
    """
    store = _direct(artifacts_destination, storage_options)
    if isinstance(store, LocalArtifacts) and not (folder := Path(local_path(artifacts_destination)).absolute()).is_dir():
        raise UsageError(
            f"the artifacts destination {str(folder)!r} is {'no folder' if folder.exists() else 'not there'}",
            hint="name the place that the server was started with; where nothing was ever logged, make that folder",
        )


def empty_destination(artifacts_destination: str | None, storage_options: Mapping[str, Any] | None) -> list[str]:
    """A note that nothing lies in the place which stands for ``mlflow-artifacts:``: a disk may not be mounted there."""
    if artifacts_destination is None or folders_of(_direct(artifacts_destination, storage_options)) != frozenset():
        return []
    return [f"nothing lies at the artifacts destination {redact_uri(artifacts_destination)}: no file in it was archived"]


def _direct(
    uri: str, storage_options: Mapping[str, Any] | None, *, below: str = "", tracking_uri: str | None = None
) -> ArtifactStore:
    """A store that is reached without a tracking server. ``below`` is a path below the URI, taken as it is."""
    if ".." in below.split("/"):
        raise StorageError(f"the artifact location {below!r} climbs out of its place")
    scheme = _scheme(uri)
    if scheme in {"", "file"}:
        return LocalArtifacts(Path(local_path(uri), below))
    if scheme in fsspec.available_protocols() and scheme not in _MLFLOW_ONLY:
        try:
            return FsspecArtifacts(uri, storage_options, below=below)
        except ImportError:
            pass  # MLflow may have a client of its own for it, and says what to install where it has not.
    return PluginArtifacts(posixpath.join(uri, below) if below else uri, tracking_uri)


def _behind_server(
    uri: str,
    client: RestClient | None,
    run_id: str,
    artifacts_destination: str | None,
    storage_options: Mapping[str, Any] | None,
) -> ArtifactStore:
    """The proxied files of ``mlflow-artifacts:/path``, ``mlflow-artifacts://host/path`` and ``https://host/.../artifacts/path``."""
    parts = urlsplit(uri)
    prefix, anchor, tail = parts.path.partition(_PROXY)
    # Files arrive through a route that percent-decodes, whatever the location says.
    root = unquote(tail if anchor else parts.path).strip("/")
    if artifacts_destination is not None:
        return _direct(artifacts_destination, storage_options, below=root)
    if client is None and not parts.scheme.startswith("http"):
        raise UsageError(
            f"the files of run {run_id} lie behind a tracking server at {redact_uri(uri)}",
            hint="name the place with artifacts_destination (--artifacts-destination), as the server was started with",
        )
    from mlflow_bundle.tracking._rest import RestClient  # noqa: PLC0415
    from mlflow_bundle.tracking.artifacts._http import ProxiedArtifacts  # noqa: PLC0415

    own = urlsplit(client.uri) if client is not None else None
    if client is None or own is None or (parts.netloc and parts.netloc.rpartition("@")[2] != own.netloc.rpartition("@")[2]):
        server = (
            f"{parts.scheme}://{parts.netloc}{prefix}" if own is None or anchor else f"{own.scheme}://{parts.netloc}{own.path}"
        )
        client = RestClient(server)
    return ProxiedArtifacts(client, run_id, root)


def _scheme(uri: str) -> str:
    """The scheme in lower case; empty for a plain path, also for one with a drive letter."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""
