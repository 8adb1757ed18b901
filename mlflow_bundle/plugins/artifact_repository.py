"""MLflow's artifacts inside a bundle: what ``mlflow-bundle:`` URIs mean to ``mlflow.<flavor>.load_model`` and to its server.

This module is loaded with MLflow; what it needs of this package is loaded when it is used.
"""

from __future__ import annotations

import json
import posixpath
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository

if TYPE_CHECKING:
    from mlflow_bundle.plugins._filesystem import BundleFileSystem

__all__ = ["BundleArtifactRepository"]

_SCHEME: Final = "mlflow-bundle:"
_SERVED: Final = re.compile(r"//([0-9a-f]{64})(/.*)?", re.DOTALL)
_AT_SNAPSHOT: Final = re.compile(r"(.*?)\?snapshot=([^:/?]*)::(.*)", re.DOTALL)


class BundleArtifactRepository(ArtifactRepository):  # type: ignore[misc]
    """The files below a path of ``plugins.BundleFileSystem``, read-only.

    ``mlflow-bundle://models/churn/3::s3://bucket/b`` names the bundle itself, ``...?snapshot=ID::s3://bucket/b`` a snapshot of
    it, and ``mlflow-bundle://<root digest>/...`` is what an archive that is served says: ``plugins._places`` knows where that
    one lies. Options of file systems are in ``MLFLOW_BUNDLE_STORAGE_OPTIONS``.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        #: Open file systems of newest snapshots: which one that is may be another for the next repository.
        self._newest: dict[str, BundleFileSystem] = {}

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What lies directly in a folder; nothing for a file, or where nothing is."""
        from mlflow_bundle.plugins._names import name_of  # noqa: PLC0415

        with _mlflow_errors(path):
            fs, place = self._place(path)
            try:
                found = fs.ls(place)
            except FileNotFoundError:
                return []
        if len(found) == 1 and found[0]["name"] == place:
            return []
        names = [(name_of(entry["name"].rpartition("/")[2]), entry) for entry in found]
        infos = [
            FileInfo(
                posixpath.join(path or "", name), entry["type"] == "directory", entry["size"] if "state" in entry else None
            )
            for name, entry in names
        ]
        return sorted(infos, key=lambda info: info.path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        with _mlflow_errors(remote_file_path):
            fs, place = self._place(remote_file_path)
            fs.get_file(place, str(local_path))

    def _place(self, path: str | None) -> tuple[BundleFileSystem, str]:
        """The file system and the path in it of a path below this repository."""
        from mlflow_bundle.plugins._names import parts_of  # noqa: PLC0415
        from mlflow_bundle.plugins._places import options_of_environment, place_of  # noqa: PLC0415

        uri, below = self.artifact_uri.removeprefix(_SCHEME), parts_of(path.strip("/")) if path and path.strip("/") else ""
        options = options_of_environment()
        if served := _SERVED.fullmatch(uri):
            fs = _file_system(place_of(served[1]), options, served[1])
            return fs, _unfolded(posixpath.join((served[2] or "").strip("/"), below))
        if at := _AT_SNAPSHOT.fullmatch(uri):
            return _file_system(at[3], options, at[2]), posixpath.join(at[1].strip("/"), below)
        if "::" not in uri and path:  # MLflow cuts a URI at its last slash: before a bundle with a bare name
            uri, path = f"{uri}/{path}", None
        inner, _, location = uri.partition("::")
        bundle, rest = _bundle_in(posixpath.join(location, path) if path else location, options)
        return _file_system(bundle, options, None, self._newest), posixpath.join(
            inner.strip("/"), parts_of(rest) if rest else ""
        )

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a bundle is read-only."""
        raise MlflowException("a bundle is read-only: files cannot be logged to it or deleted", PERMISSION_DENIED)

    log_artifact = log_artifacts = delete_artifacts = _refuse


#: Open file systems of named snapshots, and the lock on all. The cache of fsspec has one for each thread of a server.
_opened: Final[dict[str, BundleFileSystem]] = {}
_lock: Final = threading.Lock()


def _file_system(
    bundle: str, options: Any, snapshot: str | None, kept: dict[str, BundleFileSystem] = _opened
) -> BundleFileSystem:
    """The file system of a bundle, one for all threads."""
    from mlflow_bundle.plugins._filesystem import BundleFileSystem  # noqa: PLC0415

    key = json.dumps([bundle, options, snapshot])
    with _lock:
        if key not in kept:
            kept[key] = BundleFileSystem(fo=bundle, target_options=options, snapshot=snapshot, skip_instance_cache=True)
        return kept[key]


#: Where MLflow puts the files of an experiment below one root, and where they are here.
_LAYOUT: Final = (
    (re.compile(r"[^/]+/models/(m-[^/]+)/artifacts(?=/|$)"), r"logged_models/\1"),
    (re.compile(r"([0-9]+)/traces/([^/]+)/artifacts(?=/|$)"), r"experiments/\1/traces/\2/artifacts"),
    (re.compile(r"([0-9]+)/([^/]+)/artifacts(?=/|$)"), r"experiments/\1/runs/\2/artifacts"),
)


def _unfolded(path: str) -> str:
    """A path of MLflow's own layout as one of the file system."""
    for pattern, replacement in _LAYOUT:
        if pattern.match(path):
            return pattern.sub(replacement, path, count=1)
    return path


#: Bundles that were found, by location.
_known: Final[set[str]] = set()


def _bundle_in(location: str, options: Any) -> tuple[str, str]:
    """The bundle that a location begins with, and the path behind it: MLflow puts paths at the end of URIs.

    Raises:
        BundleNotFoundError: there is none.
    """
    from mlflow_bundle._bundle import open_bundle  # noqa: PLC0415
    from mlflow_bundle.errors import BundleNotFoundError  # noqa: PLC0415

    for bundle in sorted(_known, key=len, reverse=True):
        if location == bundle or location.startswith(bundle + "/"):
            return bundle, location[len(bundle) + 1 :]
    bundle = location
    while True:
        try:
            open_bundle(bundle, storage_options=options).close()
        except BundleNotFoundError:
            shorter = bundle.rpartition("/")[0]
            if not shorter.strip("/") or shorter.endswith(("::", ":/", ":")):
                raise
            bundle = shorter
            continue
        _known.add(bundle)
        return bundle, location[len(bundle) + 1 :]


@contextmanager
def _mlflow_errors(path: str | None) -> Iterator[None]:
    """What goes wrong, as MLflow says it."""
    from mlflow_bundle.errors import BundleError, NotFoundError  # noqa: PLC0415

    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        text = error.message if isinstance(error, NotFoundError) else f"{path!r}: {error.strerror or error}"
        raise MlflowException(text, RESOURCE_DOES_NOT_EXIST) from error
    except BundleError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise MlflowException(f"{error.message}{hint}", INTERNAL_ERROR) from error
