"""Restores runs into a database: points and rows in bulk, files beside them, everything read back and compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import pyarrow as pa

from mlflow_bundle._parallel import bounded_map, prefetch
from mlflow_bundle._series import series_digests
from mlflow_bundle.errors import ServerError, UsageError
from mlflow_bundle.kinds import PARENT_TAG
from mlflow_bundle.records import KeyValue, Problem, Run
from mlflow_bundle.tracking._compare import record_differences
from mlflow_bundle.tracking._port import CANNOT_HOLD, NOT_RESTORED, ArtifactStore, OpenBlob, PlannedRun, RunResult, run_problem
from mlflow_bundle.tracking.database._connection import Connection, literals
from mlflow_bundle.tracking.database._files import FilesFound, compare_files, complete_files, write_new_files
from mlflow_bundle.tracking.database._limits import Limits
from mlflow_bundle.tracking.database._places import Places, same_place
from mlflow_bundle.tracking.database._points import PointStage
from mlflow_bundle.tracking.database._read import DatabaseSource
from mlflow_bundle.tracking.database._rows import append_runs, known_datasets, read_texts

__all__ = ["RunRestorer", "existing_runs", "expected_run"]

#: Threads that write and read artifact files.
_FILE_THREADS: Final = 8


def existing_runs(connection: Connection, run_ids: Iterable[str]) -> set[str]:
    """Those of the runs that are in the database."""
    held = [run_id for run_id in run_ids if "\0" not in run_id]
    return set(read_texts(connection, f"SELECT run_uuid FROM runs WHERE run_uuid IN {literals(held)}")) if held else set()


def _without_points(connection: Connection, run_ids: Iterable[str]) -> set[str]:
    """Those of the runs that have no metric point in the database."""
    some = "SELECT 1 FROM {} WHERE {}.run_uuid = runs.run_uuid"
    none = " AND ".join(f"NOT EXISTS ({some.format(table, table)})" for table in ("metrics", "latest_metrics"))
    wanted = literals(run_ids)
    return set(read_texts(connection, f"SELECT run_uuid FROM runs WHERE run_uuid IN {wanted} AND {none}"))


def expected_run(run: Run, places: Places, experiment_id: str, parent_id: str | None = None) -> Run:
    """The record of a run as it should read back from the database."""
    tags = run.tags
    if parent_id is not None:
        tags = tuple(KeyValue(key=t.key, value=parent_id) if t.key == PARENT_TAG else t for t in tags)
    location = places.of_run(run, experiment_id)
    return msgspec.structs.replace(run, experiment_id=experiment_id, artifact_uri=location, tags=tags)


@dataclass(slots=True, eq=False)
class _Work:
    """One planned run on its way: ``expected`` is the record as it should read back, None where it cannot be held."""

    planned: PlannedRun
    result: RunResult
    expected: Run | None
    exists: bool = False
    differs: bool = False

    def fail(self, message: str, code: str, path: str = "") -> None:
        self.result.problems.append(run_problem(self.planned.source.run_id, message, code=code, path=path))


class RunRestorer:
    """Writes runs with one connection. ``open_store`` gives the place of a run's files, ``look`` opens the database anew.

    Without ``read_back`` nothing is compared, for a database that can be made again at any time.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        limits: Limits,
        places: Places,
        open_store: Callable[[Run], ArtifactStore],
        look: Callable[[], AbstractContextManager[DatabaseSource]],
        read_back: bool = True,
    ) -> None:
        self._db, self._limits, self._places = connection, limits, places
        self._open_store, self._look, self._read_back = open_store, look, read_back

    def restore(self, runs: Sequence[PlannedRun], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> list[RunResult]:
        """Restore these runs. See ``MlflowTarget.restore``."""
        if self._places.root is None and any(planned.files for planned in runs):
            raise UsageError(
                "there are artifact files to restore, and no place for them is named",
                hint="give artifact_root, or artifacts_destination where a server will serve this database",
            )
        works = self._plan(runs)
        new = [work for work in works if work.expected is not None and not work.exists]
        bare = self._bare([work for work in works if work.exists])
        ids = [planned.source.run_id for planned in runs]
        stage = PointStage(self._db, ids, [work in new or work in bare for work in works], self._limits.key)
        try:
            staged = map(stage.add, prefetch(metrics))
            if self._read_back:
                digests = series_digests(staged, len(runs))
            else:
                deque(staged, maxlen=0)
            self._db.commit()
            self._write_files(new, open_blob)
            self._insert(new, stage, where=f"run_uuid NOT IN {_ids(bare)}" if bare else "1 = 1")
            self._add_points(bare, stage)
        finally:
            self._db.rollback()
            stage.clear()
            self._db.commit()
        _report_points(works, stage)
        if self._read_back:
            self._verify(works, digests, open_blob)
        return [work.result for work in works]

    def _plan(self, runs: Sequence[PlannedRun]) -> list[_Work]:
        works = []
        existing = existing_runs(self._db, [planned.source.run_id for planned in runs])
        for planned in runs:
            run_id = planned.source.run_id
            wanted = expected_run(planned.source, self._places, planned.experiment_id, planned.parent_id)
            expected, problems = self._limits.run(wanted)
            result = RunResult(source_run_id=run_id, run_id=run_id if expected is not None else None, problems=problems)
            works.append(_Work(planned, result, expected, exists=run_id in existing))
        return works

    def _write_files(self, works: Sequence[_Work], open_blob: OpenBlob) -> None:
        def write(work: _Work) -> tuple[list[Problem], list[str]]:
            run = work.expected
            assert run is not None
            return write_new_files(partial(self._open_store, run), work.planned.files, open_blob, "run", run.run_id)

        for work, (problems, notes) in _threaded(write, [work for work in works if work.planned.files]):
            work.result.problems += problems
            work.result.notes += notes

    def _bare(self, works: Sequence[_Work]) -> list[_Work]:
        """The runs that are there as they are in the archive, but without any of the metric points that it has."""
        asked = {work.planned.source.run_id: work for work in works if work.planned.metric_rows and work.expected is not None}
        bare = sorted(_without_points(self._db, asked)) if asked else []
        self._db.commit()
        if not bare:
            return []
        with self._look() as source:
            there = source.runs_by_id(bare)
        return [asked[run.run_id] for run in there if not _differences(asked[run.run_id], run)]

    def _add_points(self, works: Sequence[_Work], stage: PointStage) -> None:
        """Give runs that lack all metric points those of the archive: an earlier restore was of a damaged one."""
        if not works:
            return
        try:
            stage.insert(f"run_uuid IN {_ids(works)}")
            self._db.commit()
        except ServerError as error:
            if error.code != "refused":
                raise
            self._db.rollback()
            for work in works:
                work.fail(error.message, "refused")
        else:
            for work in works:
                work.result.added = True
                work.result.notes.append("a run that was there without any metric point got those of the archive")

    def _insert(self, works: Sequence[_Work], stage: PointStage, *, where: str) -> None:
        """Make the runs visible with the staged points ``where`` selects, all in one transaction; where the database refuses
        one of them, each in its own."""
        if not works:
            return
        try:
            self._insert_together([work.expected for work in works if work.expected is not None], stage, where)
        except ServerError as error:
            if error.code != "refused":
                raise
            self._db.rollback()
            if len(works) > 1:
                for work in works:
                    self._insert([work], stage, where=f"run_uuid IN {_ids([work])}")
            else:
                works[0].fail(error.message, "refused")
                works[0].expected = None

    def _insert_together(self, runs: Sequence[Run], stage: PointStage, where: str) -> None:
        datasets = known_datasets(self._db, runs)
        # A transaction that wrote after it had read could not wait for another writer of SQLite.
        self._db.commit()
        append_runs(self._db, runs, datasets)
        stage.insert(where)
        self._db.commit()

    # -- reading back -----------------------------------------------------------------------------------------------------

    def _verify(self, works: Sequence[_Work], digests: Sequence[tuple[int, str]], open_blob: OpenBlob) -> None:
        """Read back what is there through a new connection and compare it with the archive."""
        checked = [(work, digests[i]) for i, work in enumerate(works) if work.expected is not None]
        ids = [work.planned.source.run_id for work, _ in checked]
        with self._look() as source:
            found = {run.run_id: run for run in source.runs_by_id(ids)}
            series = series_digests(source.metrics(ids), len(ids))
        for (work, wanted), actual in zip(checked, series, strict=True):
            self._compare(work, found.get(work.planned.source.run_id), wanted, actual)
        # Of a run that was there before and differs, the files are looked at all the same: it gets those that it lacks.
        self._verify_files([work for work, _ in checked if work.exists or not work.differs], open_blob)

    def _compare(self, work: _Work, actual: Run | None, wanted: tuple[int, str], series: tuple[int, str]) -> None:
        assert work.expected is not None
        what = "is there already and differs" if work.exists else "reads back differently"
        if actual is None:
            work.fail("the run is not there after it was written", NOT_RESTORED)
            work.differs = True
            return
        work.result.metric_points = series[0]
        if work.exists:  # its files stay where they are
            work.expected = msgspec.structs.replace(work.expected, artifact_uri=actual.artifact_uri)
        differences = record_differences(work.expected, actual)
        for difference in differences:
            work.fail(f"the run {what}: {difference}", "run-differs")
        if series != wanted:
            work.fail(f"the run {what}: {series[0]:,} metric points where {wanted[0]:,} belong, or others", "metrics-differ")
        work.differs = bool(differences) or series != wanted

    def _verify_files(self, works: Sequence[_Work], open_blob: OpenBlob) -> None:
        def verify(work: _Work) -> tuple[FilesFound, list[Problem]]:
            run = work.expected
            assert run is not None
            files, store = work.planned.files, partial(self._open_store, run)
            # Files that could not be written are named already; those that an existing run lacks are added.
            if not work.exists:
                return compare_files(store, files, "run", run.run_id), []
            given = self._places.of_run(work.planned.source, work.planned.experiment_id)
            there = run.artifact_uri or ""
            elsewhere = "" if same_place(there, given or "") else there
            return complete_files(store, files, open_blob, "run", run.run_id, elsewhere=elsewhere)

        for work, (found, problems) in _threaded(verify, [work for work in works if work.planned.files]):
            work.result.files, work.result.file_bytes = found.files, found.bytes
            work.result.added = work.result.added or found.added > 0
            named = {problem.path for problem in (*work.result.problems, *problems)}
            work.result.problems += [*problems, *(problem for problem in found.problems if problem.path not in named)]
            work.result.notes += found.notes
            for path, _, _ in found.missing:
                if path not in named:
                    work.fail(f"the file {path!r} is not there", "file-missing", path)


def _differences(work: _Work, there: Run) -> list[str]:
    """In what a run that was there is another one; its files stay where they are."""
    assert work.expected is not None
    return record_differences(msgspec.structs.replace(work.expected, artifact_uri=there.artifact_uri), there)


def _ids(works: Iterable[_Work]) -> str:
    return literals(work.planned.source.run_id for work in works)


def _report_points(works: Sequence[_Work], stage: PointStage) -> None:
    """Say what the database could not take of the metric points as they were."""
    for owner, work in enumerate(works):
        for key, reason in stage.refused.get(owner, {}).items():
            work.fail(f"the metric {key[:60]!r} is left out: {reason}", CANNOT_HOLD)
        if count := stage.duplicates[owner]:
            work.result.notes.append(f"{count:,} metric points that repeat another one exactly are kept once")
        if count := stage.negative_zeros[owner]:
            work.result.notes.append(f"{count:,} metric values of -0.0 are 0.0 in SQLite")


def _threaded(function: Callable[[_Work], Any], works: Sequence[_Work]) -> Iterator[tuple[_Work, Any]]:
    """(work, result) in order; the function runs in several threads."""
    if not works:
        return
    with ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="mlflow-bundle-files") as executor:
        yield from zip(works, bounded_map(executor, function, works, 2 * _FILE_THREADS), strict=True)
