"""The folders and small files of a file store: where things lie, and how a YAML file or a file for each key is read."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from mlflow_bundle.entities import KeyValue
from mlflow_bundle.errors import BundleError, CorruptError, UsageError
from mlflow_bundle.tracking.artifacts._local import local_path

__all__ = [
    "ALIASES",
    "ARTIFACTS",
    "ASSESSMENTS",
    "DATASETS",
    "INPUTS",
    "META",
    "METRICS",
    "MODELS",
    "OUTPUTS",
    "PARAMS",
    "RESERVED",
    "TAGS",
    "TRACES",
    "TRACE_META",
    "TRACE_METADATA",
    "TRASH",
    "VERSION",
    "as_pairs",
    "broken",
    "dead_links",
    "files_below",
    "read_bytes",
    "read_lines",
    "read_meta",
    "read_pairs",
    "read_text",
    "store_folder",
    "subfolders",
]

META: Final = "meta.yaml"
TRASH: Final = ".trash"
TAGS: Final = "tags"
PARAMS: Final = "params"
METRICS: Final = "metrics"
INPUTS: Final = "inputs"
OUTPUTS: Final = "outputs"
DATASETS: Final = "datasets"
ARTIFACTS: Final = "artifacts"
#: Logged models in the folder of an experiment, registered models in that of the store.
MODELS: Final = "models"
#: Folders of versions of a registered model: this and their number.
VERSION: Final = "version-"
ALIASES: Final = "aliases"
TRACES: Final = "traces"
TRACE_META: Final = "trace_info.yaml"
TRACE_METADATA: Final = "request_metadata"
ASSESSMENTS: Final = "assessments"
#: Folders of an experiment that are no runs.
RESERVED: Final = frozenset({TAGS, DATASETS, TRACES, MODELS})

#: MLflow empties some files before it writes them anew: how often, and how many seconds apart, to look again.
_LOOKS: Final = 4
_PAUSE: Final = 0.1
#: Files that were not written in the last so many seconds are taken as they are: many a value is empty on purpose.
_NEW: Final = 10

_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def store_folder(uri: str) -> str:
    """The absolute folder of a file store, from a path or a ``file:`` URI.

    Raises:
        UsageError: the URI names another machine.
    """
    if uri.startswith("file:") and urlsplit(uri).netloc not in ("", "localhost"):
        raise UsageError(f"{uri!r} names a folder of another machine", hint="write file:///folder or a path")
    return str(Path(local_path(uri) if uri.startswith("file:") else uri).absolute())


def broken(path: str, why: str) -> CorruptError:
    """The error that a file of the store is not what it should be."""
    return CorruptError(f"{path}: {why}", code="unreadable")


def subfolders(folder: str) -> list[str]:
    """The names of the folders in a folder, and of links to folders, sorted; none where it does not exist.

    Raises:
        CorruptError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise broken(folder, f"the folder cannot be listed: {error.strerror}") from error


def dead_links(folder: str) -> list[str]:
    """The names of the links in a folder that lead nowhere, as to a disk that is not mounted, sorted.

    Raises:
        CorruptError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise broken(folder, f"the folder cannot be listed: {error.strerror}") from error


def read_bytes(path: str) -> bytes:
    """The content of a file.

    Raises:
        CorruptError: it cannot be read, or is no regular file.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - called for every key of every run
            return file.read()
    except OSError as error:
        raise broken(path, f"the file cannot be read: {error.strerror}") from error


def read_lines(path: str) -> bytes:
    """The content of a file whose last line should have an end; after some looks, what there is.

    Raises:
        CorruptError: it cannot be read.
    """
    return _settled(path, lambda content: content.endswith(b"\n"))


def read_text(path: str) -> str:
    """A value that has a file of its own. An empty one is looked at again where its file was written just now.

    Raises:
        CorruptError: it cannot be read, or is not valid UTF-8.
    """
    try:
        return _settled(path, bool).decode()
    except UnicodeDecodeError:
        raise broken(path, "the value is not valid UTF-8") from None


def _settled(path: str, is_whole: Callable[[bytes], bool]) -> bytes:
    """The content of a file; while it is not whole and its file is new, somebody may be writing it, so look again."""
    for _ in range(_LOOKS - 1):
        content = read_bytes(path)
        if is_whole(content) or not _is_new(path):
            return content
        time.sleep(_PAUSE)
    return read_bytes(path)


def _is_new(path: str) -> bool:
    try:
        return abs(time.time() - os.stat(path).st_mtime) < _NEW  # noqa: PTH116 - a text
    except OSError:
        return True


def read_meta(path: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        CorruptError: the file is missing, empty, cut off, or not a mapping in YAML.
    """
    content = read_lines(path)
    if not content.strip():
        raise broken(path, "the file is empty")
    if not content.endswith(b"\n"):
        raise broken(path, "the file is cut off: its last line has no end")
    try:
        found = yaml.load(content, _Loader)  # noqa: S506 - one of the safe loaders
    except (yaml.YAMLError, ValueError) as error:
        raise broken(path, f"the file is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise broken(path, "the file holds no mapping")
    return found


def files_below(folder: str, unreadable: list[BundleError]) -> Iterator[tuple[str, str]]:
    """Key and path of each file below a folder that has a file for each key; folders are the parts of keys with slashes.
    What cannot be listed, is no file, or has a name that is no text goes to ``unreadable``."""
    pending = [(folder, "")]
    while pending:
        place, prefix = pending.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, f"{prefix}{entry.name}/"))
                    elif (error := _no_key(entry)) is not None:
                        unreadable.append(error)
                    else:
                        yield prefix + entry.name, entry.path
        except FileNotFoundError:
            if prefix:
                unreadable.append(broken(place, "the folder vanished while it was being read"))
        except OSError as error:
            unreadable.append(broken(place, f"the folder cannot be listed: {error.strerror}"))


def _no_key(entry: os.DirEntry[str]) -> CorruptError | None:
    """Why an entry is not the file of a key."""
    try:
        if not stat.S_ISREG(entry.stat().st_mode):
            return broken(entry.path, "it is neither a file nor a folder")
        entry.name.encode()
    except UnicodeEncodeError:
        return broken(repr(entry.path), "the name is not valid UTF-8")
    except OSError as error:
        return broken(entry.path, f"the file cannot be read: {error.strerror}")
    return None


def read_pairs(folder: str, unreadable: list[BundleError]) -> tuple[KeyValue, ...]:
    """Keys and values of a folder that has a file for each key, sorted by key. What cannot be read goes to ``unreadable``."""
    found: dict[str, str] = {}
    for key, path in files_below(folder, unreadable):
        try:
            found[key] = read_text(path)
        except CorruptError as error:
            unreadable.append(error)
    return as_pairs(found)


def as_pairs(values: Mapping[str, str]) -> tuple[KeyValue, ...]:
    """Pairs sorted by key."""
    # Texts sort by code point, which is the order of their UTF-8 bytes.
    return tuple(KeyValue(key=key, value=values[key]) for key in sorted(values))
