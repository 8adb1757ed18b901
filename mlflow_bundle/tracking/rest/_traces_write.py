"""Traces at a server: they keep their ids. Started, filled with spans by OTLP, linked, judged, read back and compared.

Spans that OTLP cannot carry unchanged become the file ``traces.json`` of the trace, which clients and the UI read as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Final

import msgspec

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Assessment, Trace
from mlflow_bundle.errors import AuthError, ServerError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest import _trace_expected as expected
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._road import Server, not_restored
from mlflow_bundle.tracking.rest._trace_check import TraceChecker
from mlflow_bundle.tracking.rest._trace_job import (
    ISSUES_SINCE,
    PROMPT_LINKS_SINCE,
    RUN_LINKS_SINCE,
    V3_SINCE,
    TraceJob,
    TraceRoad,
)
from mlflow_bundle.tracking.rest._trace_payload import PayloadWriter
from mlflow_bundle.tracking.rest._traces_read import trace_infos

__all__ = ["TraceWriter"]

#: A server links so many traces in one request.
_LINKS: Final = 100


class TraceWriter:
    """Restores traces. Servers before 3.0 give new ids to traces and know no assessments: there they are left out.

    ``doomed_experiments`` gives the experiments at the target that are deleted in the end: that would take away the assessments
    that were made in runs of them, so that ``after_deletions`` posts these.
    """

    def __init__(self, server: Server, *, doomed_experiments: Callable[[], Collection[str]] = tuple) -> None:
        self._server = server
        self._doomed_experiments = doomed_experiments
        self._road = TraceRoad(server)
        self._payload = PayloadWriter(self._road)
        self._checker = TraceChecker(self._road)
        self._experiment_of_run: dict[str, str] = {}
        self._lock = Lock()
        self._after: dict[str, tuple[Trace, list[Assessment]]] = {}

    # -- before --------------------------------------------------------------------------------------------------------

    def cannot_hold(self, trace: Trace) -> list[Problem]:
        """What of this trace the server would refuse, cut or alter."""
        found = list(expected.reasons(trace))
        if self._road.release < V3_SINCE:
            found = ["it is left out: the server would give it a new id (releases before 3.0 do)"]
        elif self._road.release < RUN_LINKS_SINCE and trace.run_ids:
            found.append("its links to runs are left out: the server knows none (releases before 3.3)")
        if V3_SINCE <= self._road.release < PROMPT_LINKS_SINCE and trace.prompts:
            found.append("its links to prompts are left out: the server knows none (releases before 3.7)")
        if V3_SINCE <= self._road.release < ISSUES_SINCE and any(map(_is_issue, trace.assessments)):
            found.append("its links to issues are left out: the server knows none (releases before 3.11)")
        there = trace.trace_id
        return [
            Problem(
                code=CANNOT_HOLD,
                message=f"trace {there}: {why}",
                kind="trace",
                id=there,
                experiments=(trace.experiment_id,),
            )
            for why in found
        ]

    # -- restore -------------------------------------------------------------------------------------------------------

    def restore(
        self, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, _: RestoreOptions
    ) -> list[EntityResult]:
        """Write these traces, read them back and compare. A trace that is there already is completed, never doubled.

        Raises:
            AuthError, ServerError: the target refuses everything, or is gone. Running again finishes the rest.
        """
        jobs = [self._job(plan, ids) for plan in planned]
        self._look(jobs)
        self._road.each(jobs, self._start)
        self._payload.send_spans(jobs)
        self._road.each(jobs, lambda job: self._payload.send_files(job, open_blob))
        self._link_runs(jobs)
        self._road.each(jobs, self._link_prompts)
        self._road.each(jobs, self._judge)
        self._checker.read_back(jobs)
        self._road.each(jobs, self._checker.compare)
        self._checker.compare_links(jobs)
        for job in jobs:
            if job.lost:
                job.result.problems += job.lost
                job.result.action = "failed"
            if job.there is not None and job.result.action == "restored":
                job.result.action = "merged" if job.completed or job.touched else "there"
            if job.result.target_id is not None:
                ids.add("trace", job.result.source_id, job.result.target_id)
        return [job.result for job in jobs]

    def _job(self, plan: PlannedEntity, ids: IdMap) -> TraceJob:
        record = plan.record
        assert isinstance(record, Trace)
        result = EntityResult(kind="trace", source_id=record.trace_id, problems=self.cannot_hold(record))
        contents = [] if plan.rows is None else plan.rows.column("content").to_pylist()
        experiment = ids.find("experiment", record.experiment_id)
        job = TraceJob(plan, expected.mapped(record, experiment or "", ids), result, contents)
        if self._road.release < ISSUES_SINCE:
            kept = tuple(one for one in job.trace.assessments if not _is_issue(one))
            job.trace = msgspec.structs.replace(job.trace, assessments=kept)
        if self._road.release < V3_SINCE:
            result.action, job.stopped = "left out", True
            return job
        if experiment is None:
            job.report(f"its experiment {record.experiment_id} was not restored")
            job.stopped = True
            return job
        for run_id in record.run_ids:
            if ids.find("run", run_id) is None:
                job.report(f"its link to run {run_id} is left out: that was not restored", code=CANNOT_HOLD)
        result.target_id = record.trace_id
        job.later = expected.posted_later(job.trace)
        job.last = frozenset(one.assessment_id for one in job.trace.assessments if self._is_doomed(expected.source_run_of(one)))
        self._payload.choose_road(job)
        return job

    def _is_doomed(self, run_id: str) -> bool:
        """Whether the run will be deleted with its experiment, and its assessments with it."""
        doomed = self._doomed_experiments()
        if not run_id or not doomed:
            return False
        if run_id not in self._experiment_of_run:
            try:
                run = self._server.get("runs/get", {"run_id": run_id})["run"]
                self._experiment_of_run[run_id] = str(run["info"]["experiment_id"])
            except RefusedError:
                self._experiment_of_run[run_id] = ""
        return self._experiment_of_run[run_id] in doomed

    def _look(self, jobs: Sequence[TraceJob]) -> None:
        """Find out which traces are there already. One of another experiment is not touched: starting it would move it."""
        alive = [job for job in jobs if not job.stopped]
        there = self._road.infos(alive)
        for job in alive:
            job.there = there.get(job.trace.trace_id)
            place = job.there and job.there.trace_location.mlflow_experiment.experiment_id
            if place and place != job.trace.experiment_id:
                message = f"it is left out: the server has this trace in the experiment {place}, and keeps each id once"
                job.report(message, code=CANNOT_HOLD)
                job.result.action, job.stopped = "left out", True
            elif job.there is not None and _changed(job, job.there.record()):
                # Nobody changes these at a target: the trace was restored before it had ended.
                job.is_old = job.completed = True

    def _start(self, job: TraceJob) -> None:
        if job.there is not None:
            if job.is_old:
                self._road.start(job, ())
            return
        try:
            self._road.start(job, job.embedded)
        except RefusedError:
            # A request that was repeated finds what its first try made.
            if not trace_infos(self._server.client, [job.trace.trace_id]):
                raise

    # -- links and assessments -----------------------------------------------------------------------------------------

    def _link_runs(self, jobs: Sequence[TraceJob]) -> None:
        if self._road.release < RUN_LINKS_SINCE:
            return
        by_run: dict[str, list[TraceJob]] = defaultdict(list)
        for job in jobs:
            for run_id in () if job.stopped else job.trace.run_ids:
                by_run[run_id].append(job)
        requests = [(run_id, some) for run_id, linked in by_run.items() for some in chunks(linked, _LINKS)]

        def link(request: tuple[str, Sequence[TraceJob]]) -> None:
            run_id, linked = request
            body = {"run_id": run_id, "trace_ids": [job.trace.trace_id for job in linked]}
            try:
                self._server.post("traces/link-to-run", body)
            except ServerError as error:
                if isinstance(error, AuthError) or error.status is None:
                    raise
                for job in linked:
                    job.report(f"it was not linked to run {run_id}: {error.message}")

        for _ in bounded_map(self._server.executor, link, requests, self._server.window):
            pass

    def _link_prompts(self, job: TraceJob) -> None:
        versions = [{"name": link.name, "version": link.version} for link in job.trace.prompts if link.version.isdigit()]
        if versions and self._road.release >= PROMPT_LINKS_SINCE:
            body = {"trace_id": job.trace.trace_id, "prompt_versions": versions}
            self._server.post("traces/link-prompts", body)

    def _judge(self, job: TraceJob) -> None:
        """Post the assessments that the trace was not started with, the overridden before those that override them."""
        there = (
            {one.assessment_id for one in job.there.assessments} if job.there else {one.assessment_id for one in job.embedded}
        )
        there -= self._drop_old(job)
        missing = [one for one in job.trace.assessments if one.assessment_id not in there | job.last]
        job.completed = job.completed or bool(missing)
        self._create(job.trace.trace_id, missing)
        last = [one for one in job.trace.assessments if one.assessment_id in job.last]
        if last:
            with self._lock:
                self._after[job.trace.trace_id] = (job.trace, last)

    def _drop_old(self, job: TraceJob) -> set[str]:
        """Delete the assessments that were changed in the archive since the target got them; they are posted again."""
        there = {one.assessment_id: one for one in (job.there.record().assessments if job.there else ())}
        old = {
            one.assessment_id
            for one in job.trace.assessments
            if one.assessment_id in there
            and one.assessment_id not in job.last
            and (one.last_update_time or 0) > (there[one.assessment_id].last_update_time or 0)
            and expected.assessment_differences(one, there[one.assessment_id])
        }
        for identity in sorted(old):
            self._server.post(f"traces/{job.trace.trace_id}/assessments/{identity}", {}, method="DELETE", api=API3)
        return old

    def _create(self, trace_id: str, assessments: Sequence[Assessment]) -> None:
        for one in _overridden_first(assessments):
            body = {"assessment": {**expected.assessment_body(one), "trace_id": trace_id}}
            path = f"{API3}traces/{trace_id}/assessments"
            try:
                self._server.client.post_json(path, body, retry=False)
            except ServerError as error:
                if isinstance(error, AuthError) or error.status is None or not self._is_there(f"{path}/{one.assessment_id}"):
                    raise

    def _is_there(self, path: str) -> bool:
        try:
            self._server.client.get_json(path)
        except RefusedError:
            return False
        return True

    # -- after ---------------------------------------------------------------------------------------------------------

    def after_deletions(self) -> list[EntityResult]:
        """Post the assessments that the deletion of experiments would have taken away; a result for each such trace.

        Call it once, when all experiments are finished. The results belong to traces that were counted already.
        """
        waiting, self._after = self._after, {}
        results = []
        for trace_id, (trace, assessments) in waiting.items():
            result = EntityResult(kind="trace", source_id=trace_id, target_id=trace_id)
            self._server.guard(result, partial(self._finish, trace, assessments, result))
            results.append(result)
        return results

    def _finish(self, trace: Trace, assessments: Sequence[Assessment], result: EntityResult) -> None:
        there = {one.assessment_id for info in trace_infos(self._server.client, [trace.trace_id]) for one in info.assessments}
        self._create(trace.trace_id, [one for one in assessments if one.assessment_id not in there])
        info = next(iter(trace_infos(self._server.client, [trace.trace_id])), None)
        found = {one.assessment_id: one for one in (info.record().assessments if info else ())}
        for one in assessments:
            for difference in expected.assessment_differences(one, found.get(one.assessment_id)):
                result.action = "failed"
                result.problems.append(not_restored(result, f"read back from the target: {difference}", code=DIFFERS))


def _changed(job: TraceJob, there: Trace) -> bool:
    """Whether the trace at the target has other times, another state or other data than the archive."""
    wanted, found = (msgspec.structs.replace(trace, tags=()) for trace in (job.wanted, there))
    return bool(expected.trace_differences(wanted, found)[0])


def _is_issue(one: Assessment) -> bool:
    return one.assessment_type == "issue"


def _overridden_first(assessments: Sequence[Assessment]) -> Iterator[Assessment]:
    """Each after the one that it overrides."""
    left = list(assessments)
    while left:
        waiting = {one.assessment_id for one in left}
        ready = [one for one in left if one.overrides not in waiting] or left
        yield from ready
        left = [one for one in left if one not in ready]
