"""Artifact files of what is restored into a database: written before it is visible, read back afterwards.

No file that is there is ever overwritten: the place may be in use, for example by the source itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mlflow_bundle._digests import file_hex
from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import BundleError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ArtifactStore, OpenBlob

__all__ = ["FilesFound", "PlannedFile", "compare_files", "complete_files", "write_new_files"]

#: path, size in bytes, SHA-256 in hex
PlannedFile = tuple[str, int, str]

FILE_DIFFERS: Final = "file-differs"
_SHARED: Final = (
    "files lay at their place already, with the archived content: they were not written again, and whatever else uses them"
    " shares them with this database"
)


def write_new_files(
    open_store: Callable[[], ArtifactStore], files: Sequence[PlannedFile], open_blob: OpenBlob, kind: str, identity: str
) -> tuple[list[Problem], list[str]]:
    """Write the files of an entity that is not in the database yet. Returns problems and notes.

    A file that is there with another content stays, and is a problem; one with the same content stays as well, and a note says
    so.
    """
    found = compare_files(open_store, files, kind, identity)
    problems = [*found.problems, *_write(open_store, found.missing, open_blob, kind, identity)]
    return problems, [_SHARED] if found.files else []


def complete_files(
    open_store: Callable[[], ArtifactStore],
    files: Sequence[PlannedFile],
    open_blob: OpenBlob,
    kind: str,
    identity: str,
    *,
    elsewhere: str,
) -> tuple[FilesFound, list[Problem]]:
    """Compare the files of an entity that was in the database before, and write those that it lacks.

    ``elsewhere`` is its location where that is not the one that the target gives to such an entity now, else empty. There
    nothing is written: it may be where the source keeps its files. Returns what is there then, and what went wrong.
    """
    found = compare_files(open_store, files, kind, identity)
    what = kind.replace("_", " ")
    if not elsewhere:
        if not (missing := found.missing):
            return found, []
        problems = _write(open_store, missing, open_blob, kind, identity)
        found = compare_files(open_store, files, kind, identity)
        found.added = len(missing) - len(problems)
        return found, problems
    if not found.missing and not found.problems:
        found.notes.append(f"the files of a {what} that was there stay where they are, which is not where they would go now")
    why = f"the {what} was there before, and {redact_uri(elsewhere)} is not where its files would go now"
    return found, [
        _problem(kind, identity, f"the file {path!r} is missing and not written: {why}", code="file-missing", path=path)
        for path, _, _ in found.missing
    ]


def _write(
    open_store: Callable[[], ArtifactStore], files: Sequence[PlannedFile], open_blob: OpenBlob, kind: str, identity: str
) -> list[Problem]:
    """Write files that ``compare_files`` found missing; a problem for each that cannot be written."""
    problems: list[Problem] = []
    if not files:
        return problems
    store = open_store()
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
    """What of the planned files of an entity is there. ``missing`` can be written without altering anything; ``added`` were."""

    files: int = 0
    bytes: int = 0
    added: int = 0
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
            message = (
                f"the file {path!r} has another content than the archived one, and stays: if an earlier unpack left it there,"
                " delete it at the target and unpack again"
            )
            found.problems.append(_problem(kind, identity, message, code=FILE_DIFFERS, path=path))
    others = len(there) - len(there & {path for path, _, _ in files})
    if others:
        found.notes.append(f"{others:,} other files lie at the artifact location of the {kind.replace('_', ' ')}")
    return found


def _problem(kind: str, identity: str, message: str, *, code: str, path: str = "") -> Problem:
    runs = (identity,) if kind == "run" else ()
    return Problem(code=code, message=message, kind=kind, id=identity, path=path, runs=runs)
