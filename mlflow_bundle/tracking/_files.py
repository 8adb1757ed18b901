"""The artifact files of many runs, listed and read ahead of the archive by a pool of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final

from mlflow_bundle._limits import MIB
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import AuthError, BundleError, ServerError, UsageError
from mlflow_bundle.records import Problem, Run
from mlflow_bundle.tracking._port import ArtifactStore, FileInfo, MlflowSource

__all__ = ["pack_files"]

#: As many bytes of small files are read as one task.
_TASK_BYTES: Final = 4 * MIB
_TASK_FILES: Final = 64
_READ: Final = MIB


@dataclass(slots=True)
class _Listing:
    """What one run has: files whose content is known already, and files to read."""

    run: Run
    store: ArtifactStore | None = None
    known: list[FileRow] = field(default_factory=list)
    unread: list[FileInfo] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class _Task:
    """Some files of a run to read at once: small ones into memory, or a large one, which the archive streams itself."""

    listing: _Listing
    files: Sequence[FileInfo]
    last: bool
    large: bool = False


@dataclass(slots=True)
class _Content:
    """A small file that was read, or a large one that is stored already, or why it could not be read."""

    file: FileInfo
    data: bytes = b""
    problem: Problem | None = None
    row: FileRow | None = None


def pack_files(
    source: MlflowSource, runs: Iterator[Run], packer: Packer, executor: Executor, *, workers: int, blob_bytes: int
) -> Iterator[tuple[Run, Sequence[FileRow], Sequence[Problem]]]:
    """Store the files of the runs, in order, and add their listings. Yields each run with its files and problems.

    Raises:
        AuthError, UsageError: no file at all could be read.
    """
    listings = bounded_map(executor, lambda run: _list(source, run, packer), runs, window=4 * workers)
    tasks = (task for listing in listings for task in _tasks(listing, blob_bytes))
    rows: list[FileRow] = []
    problems: list[Problem] = []
    for task, read in bounded_map(executor, _read, tasks, window=2 * workers):
        contents = [_stream(task.listing, task.files[0], packer)] if task.large else read
        for content in contents:
            if content.problem is not None:
                problems.append(content.problem)
            rows.append(content.row or _store(content, packer))
        if task.last:
            rows += task.listing.known
            problems += task.listing.problems
            packer.add_files(rows)
            yield task.listing.run, rows, problems
            rows, problems = [], []


def _list(source: MlflowSource, run: Run, packer: Packer) -> _Listing:
    listing = _Listing(run)
    try:
        listing.store = source.artifacts(run)
        known = packer.known_files(run.run_id)
        for info in listing.store.walk():
            size, sha256, stamp = known.get(info.path, (-1, "", ""))
            if info.stamp is not None and info.stamp == stamp and info.size == size:
                listing.known.append(FileRow(path=info.path, size=size, sha256=sha256, stamp=stamp))
            else:
                listing.unread.append(info)
    except BundleError as error:
        if _fatal(error):
            raise
        listing.problems.append(_problem("artifacts-not-listed", run, "", f"files of run {run.run_id}: {error.message}"))
    return listing


def _problem(code: str, run: Run, path: str, message: str) -> Problem:
    return Problem(
        code=code, kind="run", id=run.run_id, path=path, message=message, experiments=(run.experiment_id,), runs=(run.run_id,)
    )


def _tasks(listing: _Listing, blob_bytes: int) -> Iterator[_Task]:
    """The files of a run as tasks; at least one, so that every run is seen."""
    tasks: list[_Task] = []
    small: list[FileInfo] = []
    size = 0
    for info in listing.unread:
        if info.size >= blob_bytes or info.size < 0:
            tasks.append(_Task(listing, [info], last=False, large=True))
            continue
        small.append(info)
        size += info.size
        if size >= _TASK_BYTES or len(small) >= _TASK_FILES:
            tasks.append(_Task(listing, small, last=False))
            small, size = [], 0
    if small or not tasks:
        tasks.append(_Task(listing, small, last=False))
    tasks[-1].last = True
    return iter(tasks)


def _read(task: _Task) -> tuple[_Task, list[_Content]]:
    """Read the small files of a task; runs in a thread."""
    files = [] if task.large else task.files
    return task, [_guarded(task.listing, info, partial(_read_whole, info)) for info in files]


def _read_whole(info: FileInfo, stream: BinaryIO) -> _Content:
    """The whole of a small file; one that grew meanwhile is taken as it is now."""
    chunks = list(iter(partial(stream.read, _READ), b""))
    return _Content(info, data=chunks[0] if len(chunks) == 1 else b"".join(chunks))


def _store(content: _Content, packer: Packer) -> FileRow:
    info = content.file
    if content.problem is not None:
        return FileRow(path=info.path, size=max(info.size, 0), sha256=None, state="unreadable")
    sha256 = packer.blobs.add_bytes(content.data)
    return FileRow(path=info.path, size=len(content.data), sha256=sha256, stamp=info.stamp)


def _stream(listing: _Listing, info: FileInfo, packer: Packer) -> _Content:
    """Store a large file while it is read. An error of the bundle's own storage is not a problem of the file: it is raised."""

    def store(stream: BinaryIO) -> _Content:
        marked = _Marked(stream)
        try:
            sha256, size = packer.blobs.add_stream(marked, info.size)  # type: ignore[arg-type]
        except BundleError as error:
            if error is not marked.error:
                raise _BundleSideError(error) from error
            raise
        return _Content(info, row=FileRow(path=info.path, size=size, sha256=sha256, stamp=info.stamp))

    try:
        return _guarded(listing, info, store)
    except _BundleSideError as wrapped:
        raise wrapped.error from None


class _BundleSideError(Exception):
    """Carries an error of the bundle past the handler of file errors."""

    def __init__(self, error: BundleError) -> None:
        super().__init__(str(error))
        self.error = error


class _Marked:
    """A stream that remembers its own error, to tell it from one of the place that its bytes go to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: BundleError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except BundleError as error:
            self.error = error
            raise


def _guarded(listing: _Listing, info: FileInfo, use: Callable[[BinaryIO], _Content]) -> _Content:
    """Open a file and use it; when it cannot be read, say so as a problem."""
    assert listing.store is not None
    try:
        with listing.store.open(info.path) as stream:
            return use(stream)
    except BundleError as error:
        if _fatal(error):
            raise
        message = f"file {info.path!r} of run {listing.run.run_id}: {error.message}"
        return _Content(info, problem=_problem("artifact-unreadable", listing.run, info.path, message))


def _fatal(error: BundleError) -> bool:
    """Whether no other file could be read either: no access, a wrong call, or a server that is gone."""
    return isinstance(error, AuthError | UsageError) or (isinstance(error, ServerError) and error.status is None)
