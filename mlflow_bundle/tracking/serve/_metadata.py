"""The metadata of a snapshot as a SQLite database of MLflow, made once and kept below the user's cache folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle._digests import parse_digest
from mlflow_bundle.plugins._places import cache_folder, remember, unwritable
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking.database._revision import head_revision
from mlflow_bundle.tracking.serve._whole import is_whole, keep

__all__ = ["Metadata", "metadata_of"]

#: Counts up when what is written here changes, so that a newer release does not use what an older one made.
_FORM: Final = 3
_HOMES: Final = (
    "SELECT workspace FROM experiments UNION SELECT workspace FROM registered_models"
    " UNION SELECT workspace FROM evaluation_datasets"
)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The database of ``snapshot``. ``problems`` are what MLflow's database could not hold, known when it was just made;
    ``damaged`` is whether it was made because the one that was kept is damaged."""

    path: Path
    snapshot: str
    made: bool
    problems: tuple[Problem, ...] = ()
    damaged: bool = False

    @property
    def uri(self) -> str:
        """The tracking URI, read-only, for ``mlflow.set_tracking_uri`` and for a server.

        What follows ``sqlite:///`` is a path to MLflow, whose folder it makes: ``file:`` in the working folder.
        """
        return f"sqlite+pysqlite:///file:{quote(str(self.path))}?mode=ro&uri=true"

    @property
    def has_workspaces(self) -> bool:
        """Whether anything is in another workspace than the default one, which MLflow only opens if it is told."""
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)) as connection:
            return any(name not in (None, "default") for (name,) in connection.execute(_HOMES))


def metadata_of(
    bundle: str | os.PathLike[str],
    *,
    snapshot: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    to_serve: bool = False,
    callback: Callback = DEFAULT_CALLBACK,
) -> Metadata:
    """The database of a snapshot, by default the newest, made where it is not there yet or damaged. Artifacts stay where they
    are. ``to_serve`` is for whoever calls ``serve`` with it: MLflow's server is imported while the database is made, and its
    telemetry is off in this process.

    ``cache`` is the folder below which it is kept, by default that of the user. It is named after the root digest and the
    schema of the installed MLflow.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = cache or cache_folder()
    with open_bundle(bundle, snapshot=snapshot, storage_options=storage_options) as archive:
        snapshot, digest = archive.snapshot_id, parse_digest(archive.root_digest)
        remember(digest, archive.url, folder)
    head = head_revision()
    path = folder / "serve" / f"{digest}-{head}-{_FORM}.db"
    damaged = path.is_file() and not is_whole(path)
    if path.is_file() and not damaged:
        return Metadata(path, snapshot, made=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=path.parent))
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        # What is cached does not pay for it.
        from mlflow_bundle.tracking.serve._build import build  # noqa: PLC0415

        unfinished = work / "mlflow.db"
        problems = build(
            os.fspath(bundle),
            snapshot,
            unfinished,
            storage_options=storage_options,
            empty=path.with_name(f"empty-{head}.db"),
            root=f"mlflow-bundle://{digest}",
            to_serve=to_serve,
            callback=callback,
        )
        keep(unfinished, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Metadata(path, snapshot, made=True, problems=problems, damaged=damaged)
