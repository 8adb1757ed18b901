"""Artifact files of runs that are restored into a database: written before the run is visible, read back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mlflow_bundle._digests import file_hex
from mlflow_bundle.errors import BundleError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ArtifactStore, OpenBlob

__all__ = ["FilesFound", "PlannedFile", "compare_files", "write_files"]

#: path, size in bytes, SHA-256 in hex
PlannedFile = tuple[str, int, str]

FILE_DIFFERS: Final = "file-differs"


def write_files(
    store: ArtifactStore, files: Sequence[PlannedFile], open_blob: OpenBlob, kind: str, identity: str
) -> list[Problem]:
    """Write the files of one entity; a problem for each that cannot be written."""
    problems = []
    for path, size, sha256 in files:
        try:
            with open_blob(sha256) as content:
                store.write(path, content, size)
        except BundleError as error:
            problems.append(
                _problem(kind, identity, f"the file {path!r} was not written: {error.message}", code=error.code, path=path)
            )
    return problems


@dataclass
class FilesFound:
    """What of the planned files of an entity is there. ``missing`` can be written without altering anything."""

    files: int = 0
    bytes: int = 0
    missing: list[PlannedFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_files(
    open_store: Callable[[], ArtifactStore], files: Sequence[PlannedFile], kind: str, identity: str
) -> FilesFound:
    """Read every planned file back and compare size and SHA-256."""
    found = FilesFound()
    try:
        store = open_store()
        there = {info.path for info in store.walk()}
    except BundleError as error:
        found.problems.append(_problem(kind, identity, f"the files could not be listed: {error.message}", code=error.code))
        return found
    for file in files:
        path, size, sha256 = file
        if path not in there:
            found.missing.append(file)
            continue
        try:
            with store.open(path) as content:
                same = file_hex(content) == sha256
        except BundleError as error:
            found.problems.append(_problem(kind, identity, error.message, code=error.code, path=path))
            continue
        if same:
            found.files += 1
            found.bytes += size
        else:
            message = f"the file {path!r} has another content than the archived one"
            found.problems.append(_problem(kind, identity, message, code=FILE_DIFFERS, path=path))
    others = len(there) - len(there & {path for path, _, _ in files})
    if others:
        found.notes.append(f"{others:,} other files lie at the artifact location of the {kind.replace('_', ' ')}")
    return found


def _problem(kind: str, identity: str, message: str, *, code: str, path: str = "") -> Problem:
    runs = (identity,) if kind == "run" else ()
    return Problem(code=code, message=message, kind=kind, id=identity, path=path, runs=runs)
