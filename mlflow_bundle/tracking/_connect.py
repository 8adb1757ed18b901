"""From a tracking URI to a source or a target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import UnsupportedError, UsageError
from mlflow_bundle.tracking._port import MlflowSource, MlflowTarget

__all__ = ["connect_source", "connect_target", "is_database", "is_file_store", "resolve_tracking_uri"]

_DATABASES: Final = ("sqlite", "postgresql", "postgres")
_UNTESTED_DATABASES: Final = ("mysql", "mssql", "oracle")
#: Where MLflow keeps its data when nobody says anything.
_EMBEDDED: Final = "sqlite:///mlflow.db"
_FOLDER: Final = "./mlruns"


def resolve_tracking_uri(tracking_uri: str | os.PathLike[str] | None, *, target: bool = False) -> str:
    """The tracking URI that was given, else ``MLFLOW_TRACKING_URI``, else MLflow's own default where it exists: a file store
    ``./mlruns`` with experiments (never for a ``target``, because it cannot be written), else the embedded database.

    Raises:
        UsageError: there is none of these.
    """
    if tracking_uri is not None:
        text = os.fspath(tracking_uri)
    else:
        text = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not text and not target and any(path.parent.name.isdigit() for path in Path(_FOLDER).glob("*/meta.yaml")):
            text = _FOLDER
        if not text and Path("mlflow.db").is_file():
            text = _EMBEDDED
        if not text and target:
            raise UsageError(
                "no MLflow server or database to restore into is named",
                hint="give a tracking URI such as http://localhost:5000 or sqlite:///mlflow.db (a new file is made), or set"
                " MLFLOW_TRACKING_URI",
            )
        if not text:
            raise UsageError(
                "no MLflow server, database or file store is named",
                hint="give a tracking URI such as http://localhost:5000, sqlite:///mlflow.db or ./mlruns, or set"
                " MLFLOW_TRACKING_URI",
            )
    if is_file_store(text) and text.endswith((".db", ".sqlite", ".sqlite3")) and not Path(text).is_dir():
        return f"sqlite:///{text}"
    return text


def is_file_store(uri: str) -> bool:
    """Whether a tracking URI names a file store: a folder, or a ``file:`` URI."""
    return uri.startswith("file:") or ("://" not in uri and not uri.startswith(("databricks", "arn:", "uc:")))


def is_database(uri: str) -> bool:
    """Whether a tracking URI names a database that is read and written directly.

    Raises:
        UnsupportedError: a database of another kind.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme in _UNTESTED_DATABASES:
        raise UnsupportedError(
            f"{redact_uri(uri)} is a {scheme} database; SQLite and PostgreSQL are read and written directly",
            hint="start a tracking server on it and give the server's http:// address",
        )
    return scheme in _DATABASES


def connect_source(
    uri: str,
    *,
    artifacts_destination: str | None = None,
    artifact_storage_options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
) -> MlflowSource:
    """Open a server, a database or a file store for reading.

    Raises:
        UsageError: ``artifacts_destination`` is a folder that does not exist.
    """
    if artifacts_destination is not None:
        from mlflow_bundle.tracking.artifacts import check_destination  # noqa: PLC0415 - most calls name none

        check_destination(artifacts_destination, artifact_storage_options)
    if is_file_store(uri):
        from mlflow_bundle.tracking.filestore._read import FileSource  # noqa: PLC0415 - spares the other roads its imports

        return FileSource(uri, artifacts_destination=artifacts_destination, storage_options=artifact_storage_options)
    if is_database(uri):
        from mlflow_bundle.tracking.database._read import DatabaseSource  # noqa: PLC0415 - spares the other road its imports

        return DatabaseSource(uri, artifacts_destination=artifacts_destination, storage_options=artifact_storage_options)
    from mlflow_bundle.tracking.rest._read import RestSource  # noqa: PLC0415 - imports mlflow, a second and 150 MB

    return RestSource(uri, artifacts_destination=artifacts_destination, storage_options=artifact_storage_options, jobs=jobs)


def connect_target(
    uri: str,
    *,
    bundle_id: str,
    artifact_root: str | None = None,
    artifacts_destination: str | None = None,
    artifact_storage_options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    workspace: str | None = None,
    absent: Sequence[str] = (),
) -> MlflowTarget:
    """Open a server or a database for writing. ``absent`` is what the source of the archive does not offer (``Source.absent``).

    Raises:
        UnsupportedError: a file store, which can only be read.
        UsageError: ``artifact_root`` or ``artifacts_destination`` for a server.
    """
    if is_file_store(uri):
        raise UnsupportedError(
            f"{redact_uri(uri)} is a folder: a file store can be packed, and nothing can be restored into one",
            hint="give http://..., sqlite:///FILE or postgresql://...",
        )
    if is_database(uri):
        from mlflow_bundle.tracking.database._write import DatabaseTarget  # noqa: PLC0415

        return DatabaseTarget(
            uri,
            artifact_root=artifact_root,
            artifacts_destination=artifacts_destination,
            bundle_id=bundle_id,
            storage_options=artifact_storage_options,
            workspace=workspace,
            absent=absent,
        )
    for name, given in (("artifact_root", artifact_root), ("artifacts_destination", artifacts_destination)):
        if given is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{name} ({option}) is for databases; a tracking server decides where its artifacts lie")
    from mlflow_bundle.tracking.rest._workspace_write import rest_target  # noqa: PLC0415

    return rest_target(uri, bundle_id=bundle_id, storage_options=artifact_storage_options, jobs=jobs, workspace=workspace)
