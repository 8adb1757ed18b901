"""Where a bundle lives: a URL becomes a storage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mlflow_bundle._storage._backend import Staged, Storage
from mlflow_bundle._storage._local import LocalStorage
from mlflow_bundle._storage._onefile import OneFileStorage
from mlflow_bundle._storage._place import LocalPlace, RemotePlace
from mlflow_bundle._storage._ranges import TAIL, Pieces, SparseFile
from mlflow_bundle._storage._remote import RemoteStorage, filesystem_of
from mlflow_bundle.errors import BundleNotFoundError, UsageError

__all__ = ["TAIL", "Pieces", "SparseFile", "Staged", "Storage", "open_storage", "probe_storage"]

_LOCAL: Final = ("file://", "local://")
_SUFFIX: Final = ".zip"


def open_storage(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None, create: bool = False
) -> Storage:
    """The storage at a path or at any fsspec URL. A name that ends in ``.zip`` is the one-file form.

    Whether a bundle is there is not looked at. ``create`` makes the folder of a local one.

    Raises:
        UsageError: no file system knows the URL, its package is not installed, or its options are wrong.
        BundleNotFoundError: there is a file, and it is not a ZIP file.
        CorruptError: a ZIP file that is not whole, or cannot hold a bundle.
    """
    text = os.fspath(url)
    if not text:
        raise UsageError("the path of a bundle is empty", hint="name a folder, a URL such as s3://bucket/name, or a .zip file")
    path = _local_path(text)
    if path is None:
        fs, root = filesystem_of(text, storage_options or {})
        if _is_one_file(text):
            return OneFileStorage(RemotePlace(text, fs, root))
        return RemoteStorage(text, fs, root)
    if path.suffix.lower() == _SUFFIX and not path.is_dir():
        return OneFileStorage(LocalPlace(text, path, create=create))
    if path.exists() and not path.is_dir():
        raise BundleNotFoundError(
            f"{text} is a file: a bundle is a folder, or one file whose name ends in {_SUFFIX}",
            hint=f"if it is a bundle in one file, let its name end in .mlbundle{_SUFFIX}",
        )
    return LocalStorage(text, path, create=create)


def probe_storage(url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Storage:
    """What ``open_storage`` gives with ``create``, or its error. The folders that it made do not stay."""
    path = _local_path(os.fspath(url))
    made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)] if path else []
    try:
        return open_storage(url, storage_options=storage_options, create=True)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _local_path(text: str) -> Path | None:
    """The absolute path that a URL means, or None when it is not one of this machine."""
    for prefix in _LOCAL:
        if text.startswith(prefix) and "::" not in text:
            text = text.removeprefix(prefix)
            break
    else:
        if "://" in text or "::" in text:
            return None
    return Path(text).expanduser().absolute()


def _is_one_file(url: str) -> bool:
    """Whether the innermost name of a URL is a ZIP file that no other layer of the URL opens."""
    if url.startswith(("zip://", "zip::")):
        return False
    path = urlsplit(url.rpartition("::")[2]).path if "?" in url else url
    return path.rstrip("/").lower().endswith(_SUFFIX)
