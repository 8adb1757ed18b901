"""``diff`` of what lies elsewhere: a live server, database or file store is packed into a temporary folder first.

On top of a bundle it is an incremental pack, so that only what changed is read; nothing is written into the bundle.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from msgspec.structs import replace

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle._diff import Diff
from mlflow_bundle._diff import diff as diff_snapshots
from mlflow_bundle._manifest import Committed, find_snapshot
from mlflow_bundle._redact import redact_uri
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._storage._overlay import OverlayStorage
from mlflow_bundle.errors import UsageError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._connect import connect_source, is_database, is_file_store, resolve_tracking_uri
from mlflow_bundle.tracking._pack import PackOptions, pack_into, workers_of
from mlflow_bundle.tracking._select import Selection

__all__ = ["diff"]

_BUNDLES: Final = (".zip", ".mlbundle")
_SERVERS: Final = ("http://", "https://", "databricks", "arn:", "uc:")
_DATABASE_FILES: Final = (".db", ".sqlite", ".sqlite3")

Place = str | os.PathLike[str]


def diff(
    before: Place | Bundle,
    after: Place | Bundle,
    *,
    before_snapshot: str | None = None,
    after_snapshot: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    artifacts_destination: Place | None = None,
    artifact_storage_options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    callback: Callback = DEFAULT_CALLBACK,
) -> Diff:
    """Compare two bundles, two snapshots of one, or either with what a tracking server, database or file store holds now.

    A live side is read within the scope of the other side's snapshot; two live sides are read whole. Entities are the same when
    they have one id: ids of a copy that was restored through a server are others. What of a live side could not be read is
    among the ``problems`` of the result.

    Raises:
        BundleNotFoundError, NotFoundError: there is nothing to compare.
        ServerError, StorageError: a side failed.
    """
    read = _Live(artifacts_destination, artifact_storage_options, jobs, callback)
    given = ((before, before_snapshot), (after, after_snapshot))
    with ExitStack() as stack:
        opened = [
            None if _is_live(place, snapshot) else _open(stack, place, snapshot, storage_options) for place, snapshot in given
        ]
        first, second = (
            found or stack.enter_context(read.opened(os.fspath(place), over=other))  # type: ignore[arg-type]
            for (place, _), found, other in zip(given, opened, reversed(opened), strict=True)
        )
        return replace(diff_snapshots(first, second), problems=tuple(read.problems))


def _open(stack: ExitStack, place: Place | Bundle, snapshot: str | None, options: Mapping[str, Any] | None) -> Bundle:
    if isinstance(place, Bundle):
        return place if snapshot is None else place.at(snapshot)
    return stack.enter_context(open_bundle(place, snapshot=snapshot, storage_options=options))


class _Live:
    """How live sides are read."""

    def __init__(
        self, destination: Place | None, options: Mapping[str, Any] | None, jobs: int | None, callback: Callback
    ) -> None:
        self._destination = None if destination is None else os.fspath(destination)
        self._options = options
        self._jobs = jobs
        self._callback = callback
        #: What could not be read.
        self.problems: list[Problem] = []

    @contextmanager
    def opened(self, place: str, *, over: Bundle | None) -> Iterator[Bundle]:
        """What a pack of a live side, on top of a bundle, makes of it: in a folder that goes away again."""
        selection = Selection() if over is None else Selection.of_scope(over.snapshot.scope)
        source = connect_source(
            resolve_tracking_uri(place),
            artifacts_destination=self._destination,
            artifact_storage_options=self._options,
            jobs=self._jobs,
        )
        options = PackOptions(allow_partial=True, callback=self._callback, workers=workers_of(self._jobs))
        with tempfile.TemporaryDirectory(prefix="mlflow-bundle-") as folder, open_storage(folder) as above:
            storage = above if over is None else OverlayStorage(over.storage, above)
            with closing(source):
                report = pack_into(lambda: storage, source, selection, options, started=time.monotonic())
            self.problems += report.problems
            yield _Named(storage, find_snapshot(storage, report.snapshot), place)


class _Named(Bundle):
    """A bundle that was made of something else, whose name it has."""

    def __init__(self, storage: Storage, committed: Committed, url: str) -> None:
        super().__init__(storage, committed)
        self._url = redact_uri(url)

    @property
    def url(self) -> str:
        """What it was made of, without credentials."""
        return self._url


def _is_live(place: Place | Bundle, snapshot: str | None) -> bool:
    """Whether this is a server, database or file store, and not a bundle.

    Raises:
        UsageError: it is, and a snapshot of it is asked for.
    """
    if isinstance(place, Bundle) or not _names_mlflow(os.fspath(place)):
        return False
    if snapshot is not None:
        raise UsageError(f"{redact_uri(os.fspath(place))} is no bundle: it has no snapshot {snapshot!r}")
    return True


def _names_mlflow(text: str) -> bool:
    if text.startswith(_SERVERS):
        return not text.rstrip("/").endswith(_BUNDLES)
    if not is_file_store(text):
        return is_database(text)
    path = Path(text.removeprefix("file://"))
    if path.is_file():
        return path.suffix in _DATABASE_FILES
    return any(path.glob("*/meta.yaml"))
