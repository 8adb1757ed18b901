"""The artifact files of many entities, listed and read ahead of the archive by a pool of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final, NamedTuple

import msgspec

from mlflow_bundle._codec import encode
from mlflow_bundle._limits import MIB
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._spool import LineSpool
from mlflow_bundle.errors import AuthError, BundleError, ServerError, UsageError
from mlflow_bundle.records import KINDS, Problem, Record, Run, record_id
from mlflow_bundle.tracking._port import ArtifactStore, FileInfo, MlflowSource
from mlflow_bundle.tracking.artifacts._own import NoArtifacts

__all__ = ["NOT_LISTED", "Located", "Owner", "owner_of", "pack_files", "problem_of"]

#: The code of the problem that the files of an entity could not be listed.
NOT_LISTED: Final = "artifacts-not-listed"
#: As many bytes of small files are read as one task.
_TASK_BYTES: Final = 4 * MIB
_TASK_FILES: Final = 64
_READ: Final = MIB


class Owner(NamedTuple):
    """An entity that may have files, with what of its record says where they lie."""

    kind: str
    id: str
    record: Record

    @property
    def text(self) -> str:
        """How messages name it."""
        return f"{self.kind.replace('_', ' ')} {self.id}"


def owner_of(record: Record) -> Owner:
    """An entity as the owner of its files."""
    return Owner(str(record.__struct_config__.tag), record_id(record), record)


class Located:
    """Runs, kept on disk without their lists (tags, params and the like)."""

    def __init__(self) -> None:
        self._spool = LineSpool()

    def add(self, run: Run) -> None:
        """Note the next one, in archive order."""
        self._spool.add(encode(msgspec.structs.replace(run, **_NO_LISTS)))

    def owners(self) -> Iterator[Owner]:
        """All of them, as owners of files. Nothing can be added afterwards."""
        return map(owner_of, map(msgspec.json.Decoder(Run).decode, self._spool.lines()))

    def close(self) -> None:
        """Remove the temporary file."""
        self._spool.close()


#: Nothing for every field of a run that is a list.
_NO_LISTS: Final = {field.name: () for field in msgspec.structs.fields(Run) if field.default == ()}


@dataclass(slots=True)
class _Listing:
    """What one entity has: files whose content is known already, and files to read."""

    owner: Owner
    store: ArtifactStore | None = None
    known: list[FileRow] = field(default_factory=list)
    unread: list[FileInfo] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class _Task:
    """Some files of an entity to read at once: small ones into memory, or a large one, which the archive streams itself."""

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
    source: MlflowSource,
    owners: Iterator[Owner],
    packer: Packer,
    executor: Executor,
    *,
    workers: int,
    blob_bytes: int,
    without: Callable[[Owner], object],
) -> Iterator[tuple[Sequence[FileRow], Sequence[Problem]]]:
    """Store the files of the entities, each kind in archive order, and add their listings. Yields the files and problems of
    each entity. ``without`` is called for those that have neither.

    Raises:
        AuthError, UsageError: no file at all could be read.
    """
    opened = _opened(source, owners, without)
    listings = bounded_map(executor, lambda listing: _list(listing, packer), opened, window=4 * workers)
    tasks = (task for listing in listings for task in _tasks(listing, blob_bytes))
    rows: list[FileRow] = []
    problems: list[Problem] = []
    for task, read in bounded_map(executor, _read, tasks, window=2 * workers, at_once=_nothing_to_read):
        contents = [_stream(task.listing, task.files[0], packer)] if task.large else read
        for content in contents:
            if content.problem is not None:
                problems.append(content.problem)
            rows.append(content.row or _store(content, packer))
        if task.last:
            rows += task.listing.known
            problems += task.listing.problems
            owner = task.listing.owner
            if rows:
                packer.add_files(rows, kind=owner.kind, owner=owner.id)
            elif not problems:
                without(owner)
            yield rows, problems
            rows, problems = [], []


def _opened(source: MlflowSource, owners: Iterator[Owner], without: Callable[[Owner], object]) -> Iterator[_Listing]:
    """The entities whose files are to be listed: most traces have no place for files, and cost nothing here."""
    for owner in owners:
        listing = _Listing(owner)
        with _noting(listing):
            listing.store = source.artifacts(owner.record)
        if isinstance(listing.store, NoArtifacts):
            without(owner)
        else:
            yield listing


@contextmanager
def _noting(listing: _Listing) -> Iterator[None]:
    """Make it a problem of the entity when its files cannot be listed."""
    try:
        yield
    except BundleError as error:
        if _fatal(error):
            raise
        owner = listing.owner
        listing.problems.append(problem_of(NOT_LISTED, owner, "", f"files of {owner.text}: {error.message}"))


def _list(listing: _Listing, packer: Packer) -> _Listing:
    if listing.store is None:
        return listing
    with _noting(listing):
        known = packer.known_files(listing.owner.kind, listing.owner.id)
        for info in listing.store.walk():
            size, sha256, stamp = known.get(info.path, (-1, "", ""))
            if info.stamp is not None and info.stamp == stamp and info.size == size:
                listing.known.append(FileRow(path=info.path, size=size, sha256=sha256, stamp=stamp))
            else:
                listing.unread.append(info)
    return listing


def problem_of(code: str, owner: Owner, path: str, message: str) -> Problem:
    """A problem of an entity, or of one of its files."""
    return Problem(
        code=code,
        kind=owner.kind,
        id=owner.id,
        path=path,
        message=message,
        experiments=KINDS[owner.kind].experiments(owner.record),
        runs=(owner.id,) if owner.kind == "run" else (),
    )


def _tasks(listing: _Listing, blob_bytes: int) -> Iterator[_Task]:
    """The files of an entity as tasks; at least one, so that every entity is seen."""
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


def _nothing_to_read(task: _Task) -> tuple[_Task, list[_Content]] | None:
    """The result of a task without small files."""
    return (task, []) if task.large or not task.files else None


def _read(task: _Task) -> tuple[_Task, list[_Content]]:
    """Read the small files of a task; runs in a thread."""
    return task, [_guarded(task.listing, info, partial(_read_whole, info)) for info in task.files]


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
        message = f"file {info.path!r} of {listing.owner.text}: {error.message}"
        return _Content(info, problem=problem_of("artifact-unreadable", listing.owner, info.path, message))


def _fatal(error: BundleError) -> bool:
    """Whether no other file could be read either: no access, a wrong call, or a server that is gone."""
    return isinstance(error, AuthError | UsageError) or (isinstance(error, ServerError) and error.status is None)
