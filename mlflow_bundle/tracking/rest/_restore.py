"""Restores a group of runs to a server: create, send, read back, compare, mark complete. Every step over many runs at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final, TypeVar

import pyarrow as pa

from mlflow_bundle._digests import file_hex
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import AuthError, BundleError, ServerError
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    NOT_RESTORED,
    SOURCE_TAG_PREFIX,
    ArtifactStore,
    OpenBlob,
    PlannedRun,
    RunResult,
    run_problem,
)
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.rest._answers import (
    IDS_PER_SEARCH,
    OneRun,
    RunAnswer,
    SearchRuns,
    chunks,
    get_run,
    runs_among,
    search_runs,
)
from mlflow_bundle.tracking.rest._expected import COMPLETE, DIGEST_TAG, RESTORE_TAG, STARTED, Expected, completion
from mlflow_bundle.tracking.rest._history import HistoryReader
from mlflow_bundle.tracking.rest._limits import Limits
from mlflow_bundle.tracking.rest._once import create_once, delete_once, send_file
from mlflow_bundle.tracking.rest._points import Batch, Point, PointsDigester, batches, holdable
from mlflow_bundle.tracking.rest._road import files_besides

__all__ = ["Job", "Restorer"]

_RUN_NAME: Final = "mlflow.runName"
_SOURCE_STAGE: Final = SOURCE_TAG_PREFIX + "lifecycle_stage"

Item = TypeVar("Item")


@dataclass(slots=True)
class Job:
    """One run on its way. ``failed``: something did not work, so it stays unfinished. ``stopped``: nothing more is tried."""

    planned: PlannedRun
    expected: Expected
    result: RunResult
    artifact_uri: str = ""
    resumed: bool = False
    failed: bool = False
    stopped: bool = False
    store: ArtifactStore | None = None
    lost_files: set[str] = field(default_factory=set)

    @property
    def run_id(self) -> str:
        """The id at the target."""
        assert self.result.run_id is not None
        return self.result.run_id

    def report(self, message: str, *, code: str = NOT_RESTORED, path: str = "") -> None:
        """Add a problem. What the target cannot hold does not make the run a failure."""
        self.result.problems.append(run_problem(self.planned.source.run_id, message, code=code, path=path))
        self.failed = self.failed or code != CANNOT_HOLD


class Restorer:
    """Restores runs with the threads of ``executor``, at most ``window`` requests under way.

    ``open_store`` gives the artifact store of a run at the target, by its artifact URI and run id. ``revived`` are experiments
    that were deleted, whose runs are active for a while.
    """

    def __init__(
        self,
        client: RestClient,
        reader: HistoryReader,
        executor: Executor,
        *,
        limits: Limits,
        window: int,
        open_store: Callable[[str, str], ArtifactStore],
        revived: Collection[str] = (),
    ) -> None:
        self._client = client
        self._reader = reader
        self._executor = executor
        self._limits = limits
        self._window = window
        self._open_store = open_store
        self._revived = revived
        self._datasets: set[tuple[str, str, str]] = set()
        self._datasets_lock = Lock()

    def restore(self, jobs: Sequence[Job], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> None:
        """Fill in the results of the jobs. ``metrics`` are sorted tables whose owners index the jobs.

        Raises:
            AuthError, ServerError: the target refuses everything, or is gone. Running again finishes the rest.
        """
        self._each(self._create, jobs)
        sent = self._send_metrics(jobs, metrics)
        self._each(self._send_texts, jobs)
        files = [(job, file) for job in jobs for file in job.planned.files]
        self._each(self._open_files, [job for job in jobs if job.planned.files])
        self._guarded_map(partial(_send_file, open_blob), files)
        self._each(self._finish, jobs)
        self._compare(jobs, sent)
        self._guarded_map(self._compare_file, files)
        self._each(self._note_files, [job for job in jobs if job.resumed])
        self._each(self._complete, [job for job in jobs if not job.failed])
        self._compare_deleted([job for job in jobs if not job.failed and job.planned.source.lifecycle_stage == "deleted"])

    def _each(self, step: Callable[[Job], None], jobs: Iterable[Job]) -> None:
        """Do one step for every job that goes on."""
        self._guarded_map(lambda pair: step(pair[0]), [(job, None) for job in jobs])

    def _guarded_map(self, step: Callable[[tuple[Job, Any]], None], pairs: Iterable[tuple[Job, Any]]) -> None:
        """Do a step for every (job, thing) with the threads. A failure is a problem of its job, unless the target is gone."""

        def guarded(pair: tuple[Job, Any]) -> None:
            job, thing = pair
            path = thing[0] if isinstance(thing, tuple) and isinstance(thing[0], str) else ""
            if job.stopped or path in job.lost_files:
                return
            try:
                step(pair)
            except BundleError as error:
                if isinstance(error, AuthError) or (isinstance(error, ServerError) and error.status is None):
                    raise
                job.report(f"file {path!r}: {error.message}" if path else error.message, path=path)
                job.stopped = not path
                job.lost_files.add(path)

        for _ in bounded_map(self._executor, guarded, pairs, self._window):
            pass

    def _create(self, job: Job) -> None:
        """Make the run, or take up the one that an earlier restore began, or made of another snapshot."""
        if job.planned.target_run_id is None:
            answer = self._create_once(job)
        else:
            answer = get_run(self._client, job.planned.target_run_id)
            self._take_up(job, answer)
        job.result.run_id = answer.run_id
        job.artifact_uri = answer.info.artifact_uri or ""
        if not job.expected.name_tag and answer.tag(_RUN_NAME) is not None:
            self._delete_tag(job.run_id, _RUN_NAME)

    def _take_up(self, job: Job, answer: RunAnswer) -> None:
        """Make a run that is there writable. From now on it is unfinished; source tags of another snapshot go away."""
        job.resumed = True
        job.expected.known_params = frozenset(param.key for param in answer.data.params)
        was, stage = answer.tag(_SOURCE_STAGE), answer.info.lifecycle_stage
        is_complete = answer.tag(RESTORE_TAG) == COMPLETE and job.planned.experiment_id not in self._revived
        if is_complete and stage != was == job.planned.source.lifecycle_stage:
            job.result.notes.append(f"a restored run that was {stage} at the target is {was} again, as in the archive")
        if stage == "deleted":
            self._post("runs/restore", {"run_id": answer.run_id})
        if answer.tag(RESTORE_TAG) == COMPLETE:
            self._post("runs/set-tag", {"run_id": answer.run_id, "key": RESTORE_TAG, "value": STARTED})
        wanted = {tag.key for tag in job.expected.record.tags} | {DIGEST_TAG}
        for tag in answer.data.tags:
            if tag.key.startswith(SOURCE_TAG_PREFIX) and tag.key not in wanted:
                self._delete_tag(answer.run_id, tag.key)
        if answer.info.run_name != job.expected.record.run_name:
            self._post("runs/update", {"run_id": answer.run_id, "run_name": job.expected.record.run_name})
            if not job.expected.name_tag and answer.tag(_RUN_NAME) is None:
                self._delete_tag(answer.run_id, _RUN_NAME)

    def _create_once(self, job: Job) -> RunAnswer:
        """Create a run exactly once: when the answer is lost, look whether it was created before asking again."""
        ours = f"tags.`{SOURCE_TAG_PREFIX}run_id` = '{job.planned.source.run_id}'"
        search = SearchRuns([job.planned.experiment_id], filter=ours, run_view_type="ALL")

        def find() -> OneRun | None:
            return next((OneRun(run) for run in search_runs(self._client, search).runs), None)

        made: OneRun = create_once(self._client, "runs/create", job.expected.create(), find, answer=OneRun)
        return made.run

    def _delete_tag(self, run_id: str, key: str) -> None:
        delete_once(lambda: self._post("runs/delete-tag", {"run_id": run_id, "key": key}))

    def _post(self, endpoint: str, body: dict[str, Any]) -> None:
        self._client.post_json(API + endpoint, body)

    def _send_metrics(self, jobs: Sequence[Job], metrics: Iterator[pa.Table]) -> PointsDigester:
        """Send all points; returns the digests of what was sent."""
        sent = PointsDigester(len(jobs))

        def requests() -> Iterator[tuple[Job, Batch]]:
            for table in metrics:
                kept = self._holdable(jobs, table)
                sent.add(kept)
                yield from ((jobs[batch.owner], batch) for batch in batches(kept))

        self._guarded_map(lambda pair: self._send_points(pair[0], pair[1].points()), requests())
        return sent

    def _holdable(self, jobs: Sequence[Job], table: pa.Table) -> pa.Table:
        """The rows that the server takes; the others are reported."""
        refused = {key: why for key in table.column("key").unique().to_pylist() if (why := self._limits.key(key))}
        kept, left = holdable(table, list(refused))
        for group in left.select(["owner", "key"]).group_by(["owner", "key"]).aggregate([([], "count_all")]).to_pylist():
            why = refused.get(group["key"], "the server takes no times before 1970")
            message = f"{group['count_all']} points of the metric {group['key']!r} are left out: {why}"
            jobs[group["owner"]].report(message, code=CANNOT_HOLD)
        return kept

    def _send_points(self, job: Job, points: list[Point]) -> None:
        try:
            self._post("runs/log-batch", {"run_id": job.run_id, "metrics": points})
        except RefusedError:
            # Servers before 3 refuse a NaN that they have already, which a repeated request sends.
            nans = [point for point in points if point.value == "NaN"]
            if not nans:
                raise
            others = [point for point in points if point.value != "NaN"]
            if others:
                self._post("runs/log-batch", {"run_id": job.run_id, "metrics": others})
            for point in nans:
                self._send_nan(job, point)

    def _send_nan(self, job: Job, point: Point) -> None:
        try:
            self._post("runs/log-batch", {"run_id": job.run_id, "metrics": [point]})
        except RefusedError as error:
            # Whether the server has it is decided when everything is read back.
            job.result.notes.append(f"the server refused the NaN of {point.key!r} at step {point.step}: {error.error_code}")

    def _send_texts(self, job: Job) -> None:
        """Params, tags and dataset inputs."""
        for batch in job.expected.log_batches(all_tags=job.resumed):
            self._post("runs/log-batch", {"run_id": job.run_id, **batch})
        inputs = job.expected.record.inputs
        if not inputs:
            return
        body = {"run_id": job.run_id, "datasets": inputs}
        experiment_id = job.planned.experiment_id
        datasets = {(experiment_id, entry.dataset.name, entry.dataset.digest) for entry in inputs}
        if datasets <= self._datasets:
            self._post("runs/log-inputs", body)
            return
        with self._datasets_lock:
            # Two runs that bring the same new dataset at once would make the server fail.
            self._post("runs/log-inputs", body)
            self._datasets |= datasets

    def _open_files(self, job: Job) -> None:
        job.store = self._open_store(job.artifact_uri, job.run_id)

    def _finish(self, job: Job) -> None:
        fields = job.expected.update()
        if job.resumed:
            fields = {"status": job.expected.record.status, **fields}
        if fields:
            self._post("runs/update", {"run_id": job.run_id, **fields})

    def _answers(self, jobs: Sequence[Job], view: str) -> dict[str, RunAnswer]:
        """The runs as the server has them now, by id at the target."""
        experiments = sorted({job.planned.experiment_id for job in jobs})
        search = SearchRuns(experiments, run_view_type=view)
        pages = bounded_map(
            self._executor,
            partial(runs_among, self._client, search),
            chunks([job.run_id for job in jobs], IDS_PER_SEARCH),
            self._window,
        )
        return {answer.run_id: answer for page in pages for answer in page}

    def _compare(self, jobs: Sequence[Job], sent: PointsDigester) -> None:
        """Read runs and histories back and compare them with what they should be."""
        wanted = sent.result()
        alive = [(owner, job) for owner, job in enumerate(jobs) if not job.stopped]
        answers = self._answers([job for _, job in alive], "ACTIVE_ONLY")
        there = [(owner, job, answers[job.run_id]) for owner, job in alive if job.run_id in answers]
        for _, job in alive:
            if job.run_id not in answers:
                job.report(f"the run {job.run_id} is not at the target when it is read back", code=DIFFERS)
        found = PointsDigester(len(there))
        for table in self._reader.tables([job.run_id for _, job, _ in there], [answer.metric_keys for *_, answer in there]):
            found.add(table)
        for (owner, job, answer), (exact, kept) in zip(there, found.result(), strict=True):
            differences, besides = job.expected.compare(answer.record())
            for difference in differences:
                job.report(f"read back from the target: {difference}", code=DIFFERS)
            job.result.notes += job.expected.notes + besides
            job.result.metric_points = exact[0]
            if exact != wanted[owner][0]:
                job.result.notes += sent.notes(owner)
            if kept != wanted[owner][1]:
                rows = wanted[owner][1][0]
                message = f"{kept[0]} metric points were read back from the target where {rows} were expected, or others"
                job.report(message, code=DIFFERS)

    def _compare_file(self, pair: tuple[Job, Any]) -> None:
        job, (path, size, sha256) = pair
        assert job.store is not None
        with job.store.open(path) as stream:
            found = file_hex(stream)
        if found != sha256:
            job.report(f"the file {path!r} was read back from the target with other content", code=DIFFERS, path=path)
            return
        job.result.files += 1
        job.result.file_bytes += size

    def _note_files(self, job: Job) -> None:
        def store() -> ArtifactStore:
            return job.store or self._open_store(job.artifact_uri, job.run_id)

        job.result.notes += files_besides("the run", store, job.planned.files)

    def _complete(self, job: Job) -> None:
        self._post("runs/log-batch", {"run_id": job.run_id, "tags": completion(job.planned.digest)})
        if job.planned.source.lifecycle_stage == "deleted":
            self._post("runs/delete", {"run_id": job.run_id})

    def _compare_deleted(self, jobs: Sequence[Job]) -> None:
        deleted = self._answers(jobs, "DELETED_ONLY") if jobs else {}
        for job in jobs:
            if job.run_id not in deleted:
                job.report(f"the run {job.run_id} is not deleted at the target", code=DIFFERS)


def _send_file(open_blob: OpenBlob, pair: tuple[Job, Any]) -> None:
    job, (path, size, sha256) = pair
    assert job.store is not None
    send_file(job.store, path, size, partial(open_blob, sha256))
