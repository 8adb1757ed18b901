"""``pack``: from an MLflow source to one more snapshot of a bundle."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import pyarrow as pa
from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from mlflow_bundle._base import Base
from mlflow_bundle._html import Shown
from mlflow_bundle._limits import DEFAULT_LIMITS, WRITER_TARGETS, Limits, Targets
from mlflow_bundle._manifest import Committed, ensure_marker, parents, snapshots
from mlflow_bundle._packer import Packer
from mlflow_bundle._parallel import prefetch
from mlflow_bundle._shards import Cutter
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle.errors import IncompleteError, LimitError, UsageError
from mlflow_bundle.records import KINDS, Problem, Record, Scope, Snapshot
from mlflow_bundle.tracking._connect import connect_source, resolve_tracking_uri
from mlflow_bundle.tracking._files import Located, owner_of, pack_files, problem_of
from mlflow_bundle.tracking._gather import Collected, Gathered, collect
from mlflow_bundle.tracking._left_out import LeftOut
from mlflow_bundle.tracking._lost_files import LostFiles
from mlflow_bundle.tracking._port import ROW_SCHEMAS, MlflowSource
from mlflow_bundle.tracking._select import Lifecycle, Moment, Selection

__all__ = ["PackOptions", "PackReport", "pack", "pack_into", "workers_of"]

_OWNERS: Final = 500
#: Logged models or traces whose rows are asked for at once.
_OWNED: Final = 1_000
_FILES: Final = "files/1"
_SUFFIX: Final = ".mlbundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport(Shown):
    """What a pack wrote. Counts are those of the committed snapshot; sizes are bytes; ``seconds`` is wall time."""

    bundle: str
    snapshot: str
    root_digest: str
    logical_root: str
    state: str
    counts: Mapping[str, int]
    new_objects: int
    new_bytes: int
    shared_objects: int
    redacted: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How to pack, whatever and wherever: ``pack`` says what each means."""

    allow_partial: bool = False
    full: bool = False
    callback: Callback = DEFAULT_CALLBACK
    targets: Targets = WRITER_TARGETS
    limits: Limits = DEFAULT_LIMITS
    workers: int = 4
    destination: str | None = None


def pack(
    experiment: str | Sequence[str] | None = None,
    bundle: str | os.PathLike[str] | None = None,
    *,
    tracking_uri: str | os.PathLike[str] | None = None,
    run: str | Sequence[str] | None = None,
    filter: str | None = None,  # noqa: A002 - MLflow's own word
    since: Moment | None = None,
    until: Moment | None = None,
    lifecycle: Lifecycle = "all",
    descendants: bool = False,
    model: str | Sequence[str] | None = None,
    prompt: str | Sequence[str] | None = None,
    logged_model: str | Sequence[str] | None = None,
    allow_partial: bool = False,
    full: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    artifacts_destination: str | os.PathLike[str] | None = None,
    artifact_storage_options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    callback: Callback = DEFAULT_CALLBACK,
    targets: Targets = WRITER_TARGETS,
    limits: Limits = DEFAULT_LIMITS,
) -> PackReport:
    """Archive what an MLflow server, database or file store holds, or a selection of it, as one more snapshot of a bundle.

    ``experiment`` is a name, an id, a glob over names, or several; nothing means everything. ``run``, ``filter`` (an MLflow
    filter string), ``since`` and ``until`` (start times, both inclusive; UTC unless they say otherwise) and
    ``lifecycle`` narrow the runs. The ancestors of a selected run are selected too, its ``descendants`` on request.

    With an experiment go its logged models, traces, evaluation datasets, scorers, label schemas, review queues and issues; with
    selected runs their logged models and traces. ``model`` and ``prompt`` (``NAME``, ``NAME/VERSION`` or ``NAME@ALIAS``) and
    ``logged_model`` (an id) take along the logged models, runs and experiments that they come from, and nothing else. What
    belongs to no experiment, such as the registry or the gateway, goes along where nothing is selected.

    ``bundle`` is a path or any fsspec URL with ``storage_options``; a name ending in ``.zip`` is the one-file form. Without
    one it is ``./<experiment>.mlbundle``. An existing bundle gets one more snapshot, and only what is new is
    written. ``full`` reads every metric and file again instead of trusting counts and file stamps of the last snapshot.

    ``artifacts_destination`` says where a server keeps what it calls ``mlflow-artifacts:``, for a database read directly;
    ``artifact_storage_options`` are fsspec's for the files of runs and models. ``jobs`` is how many requests and files are
    under way at a time. ``callback`` has a branch for each part of the work, such as ``runs``, ``points`` and ``files``.

    Raises:
        IncompleteError: something in scope could not be read, and ``allow_partial`` was not given. Nothing was committed.
        NotFoundError: an experiment or run that was named does not exist.
        ServerError, StorageError: the source or the storage of the bundle failed. Nothing was committed.
    """
    started = time.monotonic()
    selection = Selection.of(
        experiment=experiment,
        run=run,
        filter=filter,
        since=since,
        until=until,
        lifecycle=lifecycle,
        descendants=descendants,
        model=model,
        prompt=prompt,
        logged_model=logged_model,
    )
    uri = resolve_tracking_uri(tracking_uri)
    place = os.fspath(bundle) if bundle is not None else _default_place(selection)
    destination = None if artifacts_destination is None else os.fspath(artifacts_destination)
    with ExitStack() as stack:
        source = stack.enter_context(
            closing(
                connect_source(
                    uri,
                    artifacts_destination=destination,
                    artifact_storage_options=artifact_storage_options,
                    jobs=jobs,
                )
            )
        )

        def create() -> Storage:
            return stack.enter_context(closing(open_storage(place, storage_options=storage_options, create=True)))

        options = PackOptions(allow_partial, full, callback, targets, limits, workers_of(jobs), destination)
        return pack_into(create, source, selection, options, started=started)


def workers_of(jobs: int | None) -> int:
    """How many files are read at a time, where ``jobs`` does not say so."""
    return jobs or min(8, 2 + (os.cpu_count() or 1))


def pack_into(
    create: Callable[[], Storage], source: MlflowSource, selection: Selection, options: PackOptions, *, started: float
) -> PackReport:
    """Pack what a source has into the storage that ``create`` opens, which is called when all entities are found.

    ``started`` is when the work began, by ``time.monotonic``.
    """
    limits = options.limits
    with ExitStack() as stack:
        entities = options.callback.branched("entities", "")
        found = collect(source, selection, progress=entities.relative_update)
        entities.close()
        stack.callback(found.gathered.close)
        storage = create()
        storage.thorough = options.full
        marker = ensure_marker(storage)
        parent = _parent(storage, selection.scope(), source, limits)
        newest = next(snapshots(storage, limits=limits), None)
        known = None if options.full else parent or next(parents(storage, limits=limits), None)
        base = None if known is None else Base(storage, known, limits=limits)
        packer = Packer(storage, marker, base=base, targets=options.targets, limits=limits)
        stack.callback(packer.close)
        work = _Work(source, packer, options.callback, options.targets, options.workers)
        work.records(found)
        work.series(reuse=base is not None)
        work.rows()
        work.files(found.gathered, LostFiles(source.description.kind, base, options.destination))
        work.problems += source.problems()
        work.notes += source.notes()
        _refuse_partial(work.problems, allow_partial=options.allow_partial)
        committed = packer.commit(
            created_at=max(time.time_ns() // 1_000_000, newest.snapshot.created_at + 1 if newest else 0),
            scope=selection.scope(),
            source=source.description,
            parents=[parent.stem] if parent else [],
            problems=work.problems,
            notes=work.notes,
        )
        return _report(storage, committed, packer, time.monotonic() - started)


def _default_place(selection: Selection) -> str:
    """``./<experiment>.mlbundle`` for one experiment by name."""
    if len(selection.experiments) != 1:
        raise UsageError("where to? Without a bundle just one experiment can be packed", hint="name a folder, URL or .zip file")
    return re.sub(r"[^\w.\-]+", "_", selection.experiments[0]) + _SUFFIX


def _parent(storage: Storage, scope: Scope, source: MlflowSource, limits: Limits) -> Committed | None:
    """The newest snapshot of the same scope and source: the history that the new one continues."""
    for committed in parents(storage, limits=limits):
        if committed.snapshot.scope == scope and committed.snapshot.source.uri == source.description.uri:
            return committed
    return None


def _refuse_partial(problems: Sequence[Problem], *, allow_partial: bool) -> None:
    if problems and not allow_partial:
        first, count = problems[0], len(problems)
        more = f", and {count - 1:,} more" if count > 1 else ""
        raise IncompleteError(
            f"nothing was committed, because something could not be read: {first.message}{more}",
            problems,
            hint="mend it and run again, or allow a partial snapshot that lists what is missing (--allow-partial)",
        )


class _Work:
    """The passes of one pack, in order: records, then series, then other rows, then files."""

    def __init__(self, source: MlflowSource, packer: Packer, callback: Callback, targets: Targets, workers: int) -> None:
        self._source, self._packer, self._callback = source, packer, callback
        self._targets, self._workers = targets, workers
        self._located = Located()
        self._left_out = LeftOut()
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def records(self, found: Collected) -> None:
        """Take the records of all kinds, the runs as they come from the source; keep, on disk, where the files of these lie."""
        progress = self._callback.branched("runs", "")
        for run in found.selected.runs:
            if self._take(run):
                self._located.add(run)
                found.gathered.run(run)
            progress.relative_update()
        progress.close()
        found.gathered.fetch_models(self._source)
        for experiment in found.experiments():
            self._packer.add(experiment)
        for kind in found.gathered.kinds():
            for line, record in found.gathered.lines(kind):
                self._take(record, line)
        self.notes += found.gathered.dangling(self._packer.ids)

    def _take(self, record: Record, line: bytes | None = None) -> bool:
        """Take a record, unless no archive can hold it, or what it belongs to: then that is a problem of it, and False."""
        if (because := self._left_out.because_of(record)) is not None:
            owner, (kind, identity) = owner_of(record), because
            message = f"{owner.text} is left out: the {kind.replace('_', ' ')} {identity!r} that it belongs to is"
            self.problems.append(problem_of("owner-left-out", owner, "", message))
            return False
        try:
            self._packer.add(record, line)
        except LimitError as error:
            owner = owner_of(record)
            self._left_out.add(owner.kind, owner.id)
            self.problems.append(problem_of(error.code, owner, "", error.message))
            return False
        return True

    def rows(self) -> None:
        """Take the metrics of logged models and the spans of traces."""
        for kind in KINDS.values():
            for table in kind.tables:
                if table in ROW_SCHEMAS:
                    self._rows(kind.name, table)

    def _rows(self, kind: str, table: str) -> None:
        ids = self._packer.ids[kind]
        progress = self._callback.branched(table.partition("/")[0], "")

        def tables() -> Iterator[tuple[int, pa.Table]]:
            for first in range(0, len(ids), _OWNED):
                yield from ((first, rows) for rows in self._source.rows(table, list(ids[first : first + _OWNED])))

        for first, rows in prefetch(tables()):
            self._packer.add_rows(table, rows, first=first)
            progress.relative_update(rows.num_rows)
        self._packer.end_rows(table)
        progress.close()

    def series(self, *, reuse: bool) -> None:
        """Take all metric points; those of an unchanged object of the base are not read where their number is known."""
        ids = self._packer.ids["run"]
        counts = self._source.metric_counts(ids)
        progress = self._callback.branched("points", "")
        if counts is not None:
            progress.set_size(int(sum(counts)))
        for first, last in self._groups(counts):
            if reuse and counts is not None and self._packer.reuse_series(counts[first:last]):
                progress.relative_update(int(sum(counts[first:last])))
                continue
            for table in prefetch(self._source.metrics(ids[first:last])):
                self._packer.add_series(table, first=first)
                progress.relative_update(table.num_rows)
            self._packer.end_group(last)
        self._packer.end_series()
        progress.close()

    def _groups(self, counts: Sequence[int] | None) -> Iterator[tuple[int, int]]:
        """Ranges of runs to read together: the coming objects where the counts are known, else a fixed number."""
        ids = self._packer.ids["run"]
        if counts is None:
            yield from ((first, min(first + _OWNERS, len(ids))) for first in range(0, len(ids), _OWNERS))
            return
        cutter, first = Cutter(self._targets.metric_rows), 0
        for number, (run, count) in enumerate(zip(ids, counts, strict=True), start=1):
            if cutter.after(run, int(count)):
                yield first, number
                first = number
        if first < len(ids):
            yield first, len(ids)

    def files(self, gathered: Gathered, lost: LostFiles) -> None:
        """List and store the files of all runs, logged models, model versions and traces; ``lost`` takes those without any."""
        others = (kind for kind in gathered.kinds() if _FILES in KINDS[kind].tables)
        records = (record for kind in others for record in gathered.records(kind))
        owners = (owner_of(record) for record in records if self._left_out.because_of(record) is None)
        progress = self._callback.branched("files", "")
        with ThreadPoolExecutor(self._workers, thread_name_prefix="mlflow-bundle") as executor:
            packed = pack_files(
                self._source,
                chain(self._located.owners(), owners),
                self._packer,
                executor,
                workers=self._workers,
                blob_bytes=self._targets.blob_bytes,
                without=lost.look,
            )
            for rows, problems in packed:
                self.problems += problems
                progress.relative_update(len(rows))
        self._located.close()
        progress.close()
        self.problems += lost.problems
        self.notes += lost.notes()


def _report(storage: Storage, committed: Committed, packer: Packer, seconds: float) -> PackReport:
    snapshot: Snapshot = committed.snapshot
    return PackReport(
        bundle=storage.url,
        snapshot=committed.stem,
        root_digest=committed.digest,
        logical_root=snapshot.logical.root,
        state=snapshot.state,
        counts=snapshot.counts,
        new_objects=packer.new_objects,
        new_bytes=packer.new_bytes,
        shared_objects=packer.shared_objects,
        redacted=packer.redacted,
        problems=snapshot.problems,
        notes=snapshot.notes,
        seconds=seconds,
    )
