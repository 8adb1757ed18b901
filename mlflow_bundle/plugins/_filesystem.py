"""The fsspec protocol ``mlflow-bundle``: a snapshot of a bundle as a read-only file system with readable names."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, NoReturn

from fsspec import AbstractFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.utils import isfilelike, stringify_path

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle._whole_file import whole_file
from mlflow_bundle.errors import NotFoundError, UsageError
from mlflow_bundle.plugins._table_files import write_table
from mlflow_bundle.plugins._tree import File, Folder, Node, TableFile, find, root_of

__all__ = ["PROTOCOL", "BundleFileSystem"]

PROTOCOL: Final = "mlflow-bundle"
_LOCAL: Final = ("file", "local")
#: In names a question mark is escaped.
_QUERY: Final = re.compile(r"\?snapshot=([^/?*]*)$")


class BundleFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """A snapshot of a bundle, read-only: ``mlflow-bundle://experiments/churn/runs/<id>/artifacts/plot.png::s3://bucket/b``.

    ``fo`` is the bundle: a path, a URL, or what a chained URL ends with. ``target_options`` are the options of its file system,
    ``target_protocol`` its protocol where ``fo`` is no URL. ``snapshot`` is the beginning of a snapshot's name, id or root
    digest, in a URL ``PATH?snapshot=ID``; without it the newest is read, and stays the one that is read until
    ``invalidate_cache``.

    Names are percent-encoded where a path needs it (``plugins._names``). Files have ``size`` in bytes, ``sha256`` in hex and
    ``state`` in their ``info``; a file that is read from its beginning to its end is checked against its SHA-256. Tables are
    made when they are read, and only then have a size.
    """

    protocol: ClassVar[str] = PROTOCOL
    root_marker = ""

    def __init__(
        self,
        fo: str | os.PathLike[str] = "",
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        snapshot: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._url = _url(stringify_path(fo), target_protocol)
        self._options, self._snapshot = target_options, snapshot
        #: Readers of bundles are not for several threads at once; contents are.
        self._lock = threading.RLock()
        self._bundle: Bundle | None = None
        self._root: Folder | None = None
        self._tables: dict[str, Path] = {}
        self._folder: str | None = None

    @classmethod
    def over(cls, bundle: Bundle) -> BundleFileSystem:
        """The file system of a bundle that is open already, and stays the caller's to close."""
        made = cls(fo=bundle.url, snapshot=bundle.root_digest, skip_instance_cache=True)
        made._bundle, made._root = bundle, root_of(bundle)
        return made

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return stripped if isinstance(stripped, list) else _QUERY.sub("", stripped).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = _QUERY.search(path)
        return {"snapshot": found[1]} if found else {}

    @property
    def bundle(self) -> Bundle:
        """The bundle that is read.

        Raises:
            UsageError: no bundle was named.
            BundleNotFoundError, NotFoundError, UnsupportedError: as ``mlflow_bundle.open`` says.
        """
        with self._lock:
            if self._bundle is None:
                if not self._url:
                    raise UsageError(
                        f"{PROTOCOL}:// does not say which bundle is meant",
                        hint=f"{PROTOCOL}://PATH::s3://bucket/bundle, or storage_options={{'fo': 's3://bucket/bundle'}}",
                    )
                self._bundle = open_bundle(self._url, snapshot=self._snapshot, storage_options=self._options)
                self._root = root_of(self._bundle)
            return self._bundle

    def invalidate_cache(self, path: str | None = None) -> None:
        """Look again which snapshot is the newest."""
        del path
        with self._lock:
            self._bundle, self._root = None, None
            self._tables.clear()

    def node(self, path: str) -> Node:
        """What lies at a path: ``Folder``, ``File`` or ``TableFile``.

        Raises:
            FileNotFoundError: nothing does.
        """
        with self._lock:
            assert self.bundle is not None
            assert self._root is not None
            try:
                return find(self._root, self._strip_protocol(path))
            except NotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, error.message, path) from error

    # -- what fsspec asks for -----------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, type and size; of a file its SHA-256 and state too."""
        path = self._strip_protocol(path)
        node = self.node(path)
        if isinstance(node, TableFile):
            return {"name": path, "type": "file", "size": self._table(node.name).stat().st_size}
        return _info(path, node)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What lies directly in a folder, or the file itself. Tables that were not read yet have no size."""
        path = self._strip_protocol(path)
        with self._lock:
            node = self.node(path)
            if not isinstance(node, Folder):
                return [self.info(path)] if detail else [path]
            before = f"{path}/" if path else ""
            if not detail:
                return [f"{before}{part}" for part in node.names()]
            children = ((part, node.child(part)) for part in node.names())
            return [_info(f"{before}{part}", child) for part, child in children if child is not None]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        if mode != "rb":
            self._refuse()
        node = self.node(path)
        if isinstance(node, TableFile):
            return self._table(node.name).open("rb")
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if node.sha256 is None:
            raise FileNotFoundError(errno.ENOENT, "the file could not be read when it was packed", path)
        with self._lock:
            blobs = self.bundle.blobs
        return blobs.seekable(node.sha256)

    def _table(self, name: str) -> Path:
        """The Parquet file of a table."""
        with self._lock:
            if name not in self._tables:
                if self._folder is None:
                    self._folder = tempfile.mkdtemp(prefix="mlflow-bundle-")
                    weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
                place = Path(self._folder, f"{self.bundle.root_digest[-16:]}-{name}.parquet")
                write_table(self.bundle, name, place)
                self._tables[name] = place
            return self._tables[name]

    def get_file(
        self, rpath: str, lpath: Any, callback: Callback = DEFAULT_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        """Copy one file. What turns out to be damaged is not left behind, and what was there before stays then."""
        if outfile is not None or isfilelike(lpath) or isinstance(self.node(rpath), Folder):
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **kwargs)
            return
        target = Path(os.path.realpath(stringify_path(lpath)))
        if target.exists() and not target.is_file():  # a folder is refused; a pipe or a device takes bytes as they come
            with target.open("wb") as file:
                super().get_file(rpath, lpath, callback=callback, outfile=file, **kwargs)
            return
        with whole_file(target) as file:
            super().get_file(rpath, lpath, callback=callback, outfile=file, **kwargs)

    def ukey(self, path: str) -> str:
        """What changes when the content does."""
        node = self.node(path)
        return node.sha256 or "" if isinstance(node, File) else f"{self.bundle.root_digest}/{self._strip_protocol(path)}"

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> NoReturn:
        """There are no URLs of files inside a bundle."""
        raise NotImplementedError(f"{PROTOCOL} has no URLs that other programs could read")

    def modified(self, path: str) -> datetime:
        """When the snapshot was made: nothing in it ever changes."""
        self.node(path)
        return datetime.fromtimestamp(self.bundle.snapshot.created_at / 1000, UTC)

    created = modified

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a bundle is read-only."""
        raise OSError(errno.EROFS, "a bundle is read-only: `mlflow-bundle pack` adds snapshots to it", self._url)

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = mv = pipe_file = put_file = touch = _refuse


def _url(fo: str, protocol: str | None) -> str:
    """The URL of a bundle from what a chained URL was taken apart to."""
    return fo if protocol in {None, "", *_LOCAL} or "://" in fo or "::" in fo else f"{protocol}://{fo}"


def _info(path: str, node: Node) -> dict[str, Any]:
    if isinstance(node, Folder):
        return {"name": path, "type": "directory", "size": 0}
    if isinstance(node, TableFile):
        return {"name": path, "type": "file", "size": None}
    return {"name": path, "type": "file", "size": node.size, "sha256": node.sha256, "state": node.state}
