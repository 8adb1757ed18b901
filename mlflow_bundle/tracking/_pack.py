"""``pack``: from an MLflow source to one more snapshot of a bundle."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from mlflow_bundle._base import Base
from mlflow_bundle._codec import decode_record, encode
from mlflow_bundle._limits import DEFAULT_LIMITS, WRITER_TARGETS, Limits, Targets
from mlflow_bundle._manifest import Committed, ensure_marker, snapshots
from mlflow_bundle._packer import Packer
from mlflow_bundle._parallel import prefetch
from mlflow_bundle._shards import Cutter
from mlflow_bundle._spool import LineSpool
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle.errors import IncompleteError, UsageError
from mlflow_bundle.records import Problem, Run, Scope, Snapshot
from mlflow_bundle.tracking._connect import connect_source, resolve_tracking_uri
from mlflow_bundle.tracking._files import pack_files
from mlflow_bundle.tracking._port import MlflowSource
from mlflow_bundle.tracking._select import Lifecycle, Moment, Selection, select
from mlflow_bundle.tracking.artifacts._local import local_path

__all__ = ["PackReport", "pack"]

_OWNERS: Final = 500
_SUFFIX: Final = ".mlbundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
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
    """Archive experiments and runs of an MLflow server or database as one more snapshot of a bundle.

    ``experiment`` is a name, an id, a glob over names, or several; nothing means everything. ``run``, ``filter`` (an MLflow
    filter string), ``since`` and ``until`` (start times, both inclusive; UTC unless they say otherwise) and
    ``lifecycle`` narrow the runs. The ancestors of a selected run are selected too, its ``descendants`` on request.

    ``bundle`` is a path or any fsspec URL with ``storage_options``; a name ending in ``.zip`` is the one-file form. Without
    one it is ``./<experiment>.mlbundle``. An existing bundle gets one more snapshot, and only what is new is
    written. ``full`` reads every metric and file again instead of trusting counts and file stamps of the last snapshot.

    ``artifacts_destination`` says where a server keeps what it calls ``mlflow-artifacts:``, for a database read directly.

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
    )
    uri = resolve_tracking_uri(tracking_uri)
    place = os.fspath(bundle) if bundle is not None else _default_place(selection)
    workers = jobs or min(8, 2 + (os.cpu_count() or 1))
    with ExitStack() as stack:
        source = stack.enter_context(
            closing(
                connect_source(
                    uri,
                    artifacts_destination=None if artifacts_destination is None else os.fspath(artifacts_destination),
                    artifact_storage_options=artifact_storage_options,
                    jobs=jobs,
                )
            )
        )
        selected = select(source, selection)
        storage = stack.enter_context(closing(open_storage(place, storage_options=storage_options, create=True)))
        marker = ensure_marker(storage)
        parent = _parent(storage, selection.scope(), source, limits)
        newest = parent or next(snapshots(storage, limits=limits), None)
        base = None if full or newest is None else Base(storage, newest, limits=limits)
        packer = Packer(storage, marker, base=base, targets=targets, limits=limits)
        stack.callback(packer.close)
        work = _Work(source, packer, callback, targets, workers)
        for record in selected.experiments:
            packer.add(record)
        work.runs(selected.runs)
        work.series(reuse=base is not None)
        work.files()
        _refuse_partial(work.problems, allow_partial=allow_partial)
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
    for committed in snapshots(storage, limits=limits):
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
    """The passes of one pack, in order: runs, then series, then files."""

    def __init__(self, source: MlflowSource, packer: Packer, callback: Callback, targets: Targets, workers: int) -> None:
        self._source, self._packer, self._callback = source, packer, callback
        self._targets, self._workers = targets, workers
        self._located = LineSpool()
        self._absent_roots: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def runs(self, runs: Iterator[Run]) -> None:
        """Take the records; keep, on disk, where the files of each run lie."""
        progress = self._callback.branched("runs", "")
        for run in runs:
            self._packer.add(run)
            self._located.add(encode(Run(run_id=run.run_id, experiment_id=run.experiment_id, artifact_uri=run.artifact_uri)))
            progress.relative_update()
        progress.close()

    def series(self, *, reuse: bool) -> None:
        """Take all metric points; those of an unchanged object of the base are not read where their number is known."""
        ids = self._packer.run_ids
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
        ids = self._packer.run_ids
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

    def files(self) -> None:
        """List and store the files of all runs."""
        progress = self._callback.branched("files", "")
        located = (cast("Run", decode_record(line, "run", name="spool")) for line in self._located.lines())
        with ThreadPoolExecutor(self._workers, thread_name_prefix="mlflow-bundle") as executor:
            packed = pack_files(
                self._source,
                located,
                self._packer,
                executor,
                workers=self._workers,
                blob_bytes=self._targets.blob_bytes,
            )
            for run, rows, problems in packed:
                self.problems += problems
                progress.relative_update(len(rows))
                if not rows and not problems:
                    self._look_for_root(run)
        self._located.close()
        progress.close()
        for root, count in self._absent_roots.items():
            self.notes.append(
                f"{count:,} runs keep their files below {root}, which does not exist on this machine: none were archived"
            )

    def _look_for_root(self, run: Run) -> None:
        """Count a run without files whose place for the files of all runs is not there at all, as on a foreign machine."""
        uri = run.artifact_uri if isinstance(run.artifact_uri, str) else ""
        if self._source.description.kind == "rest" or not uri.startswith(("/", "file:")):
            return
        root = Path(local_path(uri)).parents[2:3]
        if root and not root[0].exists():
            self._absent_roots[str(root[0])] = self._absent_roots.get(str(root[0]), 0) + 1


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
