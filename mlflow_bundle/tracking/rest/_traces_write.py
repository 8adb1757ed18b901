"""Traces at a server: they keep their ids. Started, filled with spans by OTLP, linked, judged, read back and compared.

Spans that OTLP cannot carry unchanged become the file ``traces.json`` of the trace, which clients and the UI read as well.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final

import msgspec
from msgspec import UNSET
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mlflow_bundle._digests import file_hex, hex_of
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Assessment, KeyValue, Trace
from mlflow_bundle.errors import AuthError, BundleError, ServerError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import (
    SOURCE_TAG_PREFIX,
    ArtifactStore,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking._rest import API, RefusedError
from mlflow_bundle.tracking.rest import _trace_expected as expected
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._otlp import OTLP_HEADERS, UnspeakableError, otlp_request, otlp_span
from mlflow_bundle.tracking.rest._road import DIFFERS, Server, not_restored
from mlflow_bundle.tracking.rest._trace_answers import TraceAnswer
from mlflow_bundle.tracking.rest._traces_read import fetch_spans, found_traces, trace_infos

__all__ = ["TraceWriter"]

_OTLP: Final = "/v1/traces"
_EXPERIMENT: Final = "x-mlflow-experiment-id"
#: What servers of which release can do.
_V3_SINCE: Final = (3, 0)
_RUN_LINKS_SINCE: Final = (3, 3)
_OTLP_SINCE: Final = (3, 4)
_PROMPT_LINKS_SINCE: Final = (3, 7)
_IDS: Final = 100
_TRACES_PER_REQUEST: Final = 50
_CHARS_PER_REQUEST: Final = 4_000_000
_PAYLOAD: Final = "traces.json"
_IN_DATABASE: Final = "TRACKING_STORE"
#: Where a source has spans that are not in the file.
_IN_A_STORE: Final = (_IN_DATABASE, "ARCHIVE_REPO")
_LOCATION_TAG: Final = "mlflow.trace.spansLocation"
_CANNOT_HOLD: Final = "cannot-hold"


@dataclass(slots=True, eq=False)
class _Job:
    """One trace on its way. ``trace`` is as it has to be at the target. ``spans`` are None where OTLP does not carry them.

    ``later``: assessments that override others; ``last``: those that a deletion would take away; ``there``: the trace as it
    was at the target before. ``moved``: spans of a database become a file. ``stopped``: nothing more is tried.
    """

    plan: PlannedEntity
    trace: Trace
    result: EntityResult
    contents: list[str]
    spans: list[Span] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    later: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()
    there: TraceAnswer | None = None
    found: TraceAnswer | None = None
    moved: bool = False
    completed: bool = False
    stopped: bool = False

    def report(self, message: str, *, code: str = "not-restored", path: str = "") -> None:
        """A problem of this trace."""
        self.result.problems.append(not_restored(self.result, message, code=code, path=path))
        if code != _CANNOT_HOLD:
            self.result.action = "failed"

    @property
    def wanted(self) -> Trace:
        """The trace with the tags that this restore adds."""
        added = tuple(KeyValue(key=key, value=value) for key, value in self.tags.items() if key != _LOCATION_TAG)
        return msgspec.structs.replace(self.trace, tags=(*self.trace.tags, *added))

    @property
    def embedded(self) -> list[Assessment]:
        """The assessments that the trace is started with."""
        return [one for one in self.trace.assessments if one.assessment_id not in self.later | self.last]


class TraceWriter:
    """Restores traces. Servers before 3.0 give new ids to traces and know no assessments: there they are left out.

    ``doomed_experiments`` gives the experiments at the target that are deleted in the end: that would take away the assessments
    that were made in runs of them, so that ``after_deletions`` posts these.
    """

    def __init__(self, server: Server, *, doomed_experiments: Callable[[], Collection[str]] = tuple) -> None:
        self._server = server
        self._doomed_experiments = doomed_experiments
        match = re.match(r"(\d+)\.(\d+)", server.client.version())
        self._release = (int(match[1]), int(match[2])) if match else (0, 0)
        self._otlp = self._release >= _OTLP_SINCE
        self._experiment_of_run: dict[str, str] = {}
        self._lock = Lock()
        self._after: dict[str, tuple[Trace, list[Assessment]]] = {}

    # -- before --------------------------------------------------------------------------------------------------------

    def cannot_hold(self, trace: Trace) -> list[Problem]:
        """What of this trace the server would refuse, cut or alter."""
        found = list(expected.reasons(trace))
        if self._release < _V3_SINCE:
            found = ["it is left out: the server would give it a new id (releases before 3.0 do)"]
        elif self._release < _RUN_LINKS_SINCE and trace.run_ids:
            found.append("its links to runs are left out: the server knows none (releases before 3.3)")
        if _V3_SINCE <= self._release < _PROMPT_LINKS_SINCE and trace.prompts:
            found.append("its links to prompts are left out: the server knows none (releases before 3.7)")
        there = trace.trace_id
        return [
            Problem(
                code=_CANNOT_HOLD,
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
        self._each(jobs, self._start)
        self._send_spans(jobs)
        self._each(jobs, lambda job: self._send_files(job, open_blob))
        self._link_runs(jobs)
        self._each(jobs, self._link_prompts)
        self._each(jobs, self._judge)
        self._read_back(jobs)
        self._each(jobs, self._compare)
        self._compare_links(jobs)
        for job in jobs:
            if job.there is not None and job.result.action == "restored":
                job.result.action = "merged" if job.completed else "there"
            ids.add("trace", job.result.source_id, job.result.source_id)
        return [job.result for job in jobs]

    def _job(self, plan: PlannedEntity, ids: IdMap) -> _Job:
        record = plan.record
        assert isinstance(record, Trace)
        result = EntityResult(kind="trace", source_id=record.trace_id, problems=self.cannot_hold(record))
        contents = [] if plan.rows is None else plan.rows.column("content").to_pylist()
        experiment = ids.find("experiment", record.experiment_id)
        job = _Job(plan, expected.mapped(record, experiment or "", ids), result, contents)
        if self._release < _V3_SINCE:
            result.action, job.stopped = "left out", True
            return job
        if experiment is None:
            job.report(f"its experiment {record.experiment_id} was not restored")
            job.stopped = True
            return job
        for run_id in record.run_ids:
            if ids.find("run", run_id) is None:
                job.report(f"its link to run {run_id} is left out: that was not restored", code=_CANNOT_HOLD)
        result.target_id = record.trace_id
        job.later = expected.posted_later(job.trace)
        job.last = frozenset(one.assessment_id for one in job.trace.assessments if self._is_doomed(expected.source_run_of(one)))
        self._choose_road(job)
        return job

    def _choose_road(self, job: _Job) -> None:
        """OTLP where it keeps the spans as they are, else the file. What was in the file goes there again."""
        place = job.plan.record.spans_location  # type: ignore[attr-defined]  # it is a trace
        if place not in _IN_A_STORE:
            return
        if not job.contents:
            job.tags[_LOCATION_TAG] = _IN_DATABASE
            return
        if place != _IN_DATABASE:
            job.result.notes.append("spans that the source keeps in its archive of traces are in the target's database")
        if not self._otlp:
            self._use_file(job, "the server takes no spans by OTLP")
            return
        try:
            job.spans = [otlp_span(job.trace.trace_id, content) for content in job.contents]
        except UnspeakableError as error:
            self._use_file(job, str(error))

    def _use_file(self, job: _Job, why: str) -> None:
        job.spans, job.moved = None, True
        job.tags[SOURCE_TAG_PREFIX + "spans_location"] = str(job.plan.record.spans_location or _IN_DATABASE)  # type: ignore[attr-defined]
        job.result.notes.append(f"spans are kept in {_PAYLOAD} and not in the database, where no search finds them: {why}")

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

    def _each(self, jobs: Iterable[_Job], step: Callable[[_Job], None]) -> None:
        def guarded(job: _Job) -> None:
            before = len(job.result.problems)
            self._server.guard(job.result, lambda: step(job))
            job.stopped = job.stopped or (job.result.action == "failed" and len(job.result.problems) > before)

        alive = (job for job in jobs if not job.stopped)
        for _ in bounded_map(self._server.executor, guarded, alive, self._server.window):
            pass

    def _infos(self, jobs: Sequence[_Job]) -> dict[str, TraceAnswer]:
        groups = chunks([job.trace.trace_id for job in jobs], _IDS)
        pages = bounded_map(
            self._server.executor, lambda some: trace_infos(self._server.client, some), groups, self._server.window
        )
        return {info.trace_id: info for page in pages for info in page}

    def _look(self, jobs: Sequence[_Job]) -> None:
        """Find out which traces are there already. One of another experiment is not touched: starting it would move it."""
        alive = [job for job in jobs if not job.stopped]
        there = self._infos(alive)
        for job in alive:
            job.there = there.get(job.trace.trace_id)
            place = job.there and job.there.trace_location.mlflow_experiment.experiment_id
            if place and place != job.trace.experiment_id:
                message = f"it is left out: the server has this trace in the experiment {place}, and keeps each id once"
                job.report(message, code=_CANNOT_HOLD)
                job.result.action, job.stopped = "left out", True

    def _start(self, job: _Job) -> None:
        if job.there is not None:
            return
        try:
            self._post_start(job, job.embedded)
        except RefusedError:
            # A request that was repeated finds what its first try made.
            if not trace_infos(self._server.client, [job.trace.trace_id]):
                raise

    def _post_start(self, job: _Job, assessments: Sequence[Assessment]) -> None:
        contents = job.contents if job.spans is not None else ()
        trace = msgspec.structs.replace(job.trace, assessments=tuple(assessments))
        self._server.post("traces", expected.start_body(trace, contents, tags=job.tags), api=API3)

    # -- spans and files -----------------------------------------------------------------------------------------------

    def _send_spans(self, jobs: Sequence[_Job]) -> None:
        """Send the spans of new traces, and of those there that lack some."""
        with_spans = [job for job in jobs if job.spans and not job.stopped]
        self._each((job for job in with_spans if job.there is not None), self._drop_present)
        for _ in bounded_map(self._server.executor, self._post_spans, _requests(with_spans), self._server.window):
            pass

    def _drop_present(self, job: _Job) -> None:
        there = self._spans_there(job)
        missing = [span for span, content in zip(job.spans or (), job.contents, strict=True) if content not in there.values()]
        present = len(job.contents) - len(missing)
        if missing and present == 0 and job.there and job.there.tags.get(_LOCATION_TAG) is None and there:
            missing = []
        job.completed = job.completed or bool(missing)
        job.spans = missing

    def _spans_there(self, job: _Job) -> dict[str, str]:
        try:
            return {span["span_id"]: span["content"] for span in fetch_spans(self._server.client, job.trace.trace_id)}
        except RefusedError:
            return {}

    def _post_spans(self, jobs: Sequence[_Job]) -> None:
        """One request; where the server refuses it, its halves, and in the end the file for a trace that is refused alone."""
        spans = [span for job in jobs for span in job.spans or ()]
        if not spans:
            return
        headers = {**OTLP_HEADERS, _EXPERIMENT: jobs[0].trace.experiment_id}
        try:
            self._server.client.post_bytes(_OTLP, otlp_request(spans), headers=headers, retries=2)
        except ServerError as error:
            if isinstance(error, AuthError) or error.status is None:
                raise
            if len(jobs) > 1:
                half = len(jobs) // 2
                self._post_spans(jobs[:half])
                self._post_spans(jobs[half:])
                return
            self._use_file(jobs[0], f"the server refused them by OTLP ({error.message})")

    def _send_files(self, job: _Job, open_blob: OpenBlob) -> None:
        """Attachments and ``traces.json``; what is there with the same content is not sent again."""
        files = list(job.plan.files)
        composed = b""
        if job.spans is None and job.contents and (job.moved or not any(path == _PAYLOAD for path, *_ in files)):
            composed = ('{"spans": [' + ", ".join(job.contents) + "]}").encode()
            files = [file for file in files if file[0] != _PAYLOAD]
        if not files and not composed:
            return
        store = self._store(job)
        if composed:
            self._put_file(job, store, (_PAYLOAD, len(composed), hex_of(composed)), lambda: io.BytesIO(composed))
        for file in files:
            self._put_file(job, store, file, partial(open_blob, file[2]))

    def _store(self, job: _Job) -> ArtifactStore:
        info = job.there or next(iter(trace_infos(self._server.client, [job.trace.trace_id])), None)
        trace = info.record() if info is not None else job.trace
        return self._server.open_store(trace.artifact_uri or "", trace.trace_id)

    def _put_file(self, job: _Job, store: ArtifactStore, file: tuple[str, int, str], content: Callable[[], Any]) -> None:
        path, size, sha256 = file
        if job.there is None or _digest(store, path) != sha256:
            with content() as stream:
                store.write(path, stream, size)
            job.completed = True
        if _digest(store, path) != sha256:
            job.report(f"the file {path!r} was read back from the target with other content", code=DIFFERS, path=path)
        elif any(path == known for known, *_ in job.plan.files):
            job.result.files += 1
            job.result.file_bytes += size

    # -- links and assessments -----------------------------------------------------------------------------------------

    def _link_runs(self, jobs: Sequence[_Job]) -> None:
        if self._release < _RUN_LINKS_SINCE:
            return
        by_run: dict[str, list[_Job]] = defaultdict(list)
        for job in jobs:
            for run_id in () if job.stopped else job.trace.run_ids:
                by_run[run_id].append(job)
        requests = [(run_id, some) for run_id, linked in by_run.items() for some in chunks(linked, _IDS)]

        def link(request: tuple[str, Sequence[_Job]]) -> None:
            run_id, linked = request
            body = {"run_id": run_id, "trace_ids": [job.trace.trace_id for job in linked]}
            try:
                self._server.post("traces/link-to-run", body)
            except RefusedError as error:
                for job in linked:
                    job.report(f"it was not linked to run {run_id}: {error.message}")

        for _ in bounded_map(self._server.executor, link, requests, self._server.window):
            pass

    def _link_prompts(self, job: _Job) -> None:
        versions = [{"name": link.name, "version": link.version} for link in job.trace.prompts if link.version.isdigit()]
        if versions and self._release >= _PROMPT_LINKS_SINCE:
            body = {"trace_id": job.trace.trace_id, "prompt_versions": versions}
            self._server.post("traces/link-prompts", body)

    def _judge(self, job: _Job) -> None:
        """Post the assessments that the trace was not started with, the overridden before those that override them."""
        there = (
            {one.assessment_id for one in job.there.assessments} if job.there else {one.assessment_id for one in job.embedded}
        )
        missing = [one for one in job.trace.assessments if one.assessment_id not in there | job.last]
        job.completed = job.completed or bool(missing)
        self._create(job.trace.trace_id, missing)
        last = [one for one in job.trace.assessments if one.assessment_id in job.last]
        if last:
            with self._lock:
                self._after[job.trace.trace_id] = (job.trace, last)

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

    # -- reading back --------------------------------------------------------------------------------------------------

    def _read_back(self, jobs: Sequence[_Job]) -> None:
        """Read the traces, repair what storing the spans changed, and read the repaired ones again."""
        alive = [job for job in jobs if not job.stopped]
        self._take_infos(alive)
        repaired: list[_Job] = []
        self._each(alive, lambda job: repaired.append(job) if self._repair(job) else None)
        self._take_infos(repaired)

    def _take_infos(self, jobs: Sequence[_Job]) -> None:
        infos = self._infos(jobs)
        for job in jobs:
            job.found = infos.get(job.trace.trace_id)

    def _repair(self, job: _Job) -> bool:
        """Set what differs; whether something did. Of a trace that was there before, only what it lacks."""
        if job.found is None:
            return False
        found = job.found.record()
        there = {tag.key: tag.value for tag in found.tags}
        wanted = {tag.key: tag.value for tag in job.wanted.tags}
        shown = {key: value[: expected.SHOWN_TAG] for key, value in wanted.items()}
        # A trace that an earlier restore left incomplete is like a new one.
        ours = job.there is None or job.completed
        before = job.there.tags if job.there is not None else {}
        patches = {key: wanted[key] for key, value in shown.items() if (there.get(key) != value if ours else key not in there)}
        extra = [key for key in there if key not in wanted and key not in before]
        path = f"{API3}traces/{job.trace.trace_id}/tags" if self._release >= _RUN_LINKS_SINCE else None
        path = path or f"{API}traces/{job.trace.trace_id}/tags"
        changed = ours and bool(expected.trace_differences(job.wanted, found)[0]) and bool(job.spans)
        if changed:
            self._post_start(job, ())
        for key, value in patches.items():
            self._server.client.post_json(path, {"key": key, "value": value}, method="PATCH")
        for key in extra:
            self._server.client.post_json(path, {"key": key}, method="DELETE")
        return bool(changed or patches or extra)

    def _compare(self, job: _Job) -> None:
        if job.found is None:
            job.report("it is not at the target when it is read back", code=DIFFERS)
            return
        found = job.found.record()
        different, besides = expected.trace_differences(job.wanted, found)
        judged = {one.assessment_id: one for one in found.assessments}
        for one in job.trace.assessments:
            if one.assessment_id not in job.last:
                wanted = one if one.valid or one.assessment_id in _overridden(job.trace) else _made_valid(one)
                different += expected.assessment_differences(wanted, judged.get(one.assessment_id))
        job.result.notes += besides
        for difference in different:
            if job.there is not None and not job.completed:
                job.result.notes.append(f"a trace that was there already stays as it is: {difference}")
            else:
                job.report(f"read back from the target: {difference}", code=DIFFERS)
        if job.contents or job.spans:
            self._compare_spans(job)

    def _compare_spans(self, job: _Job) -> None:
        spans = {span["span_id"]: span["content"] for span in fetch_spans(self._server.client, job.trace.trace_id)}
        wanted = job.plan.rows.column("span_id").to_pylist() if job.plan.rows is not None else []
        spelled = False
        for span_id, content in zip(wanted, job.contents, strict=True):
            there = spans.pop(span_id, None)
            if there is None:
                job.report(f"the span {span_id} is missing when it is read back", code=DIFFERS)
            elif not expected.same_span(content, there):
                job.report(f"the span {span_id} was read back from the target with other content", code=DIFFERS)
            else:
                job.result.rows += 1
                spelled = spelled or there != content
        if spelled:
            job.result.notes.append("the server spells the JSON of a span in another way; it means the same")
        for span_id in spans:
            job.report(f"the span {span_id} is at the target and should not be", code=DIFFERS)

    def _compare_links(self, jobs: Sequence[_Job]) -> None:
        """Ask for each run and prompt of these traces which of them are linked."""
        wanted: dict[str, list[_Job]] = defaultdict(list)
        for job in jobs:
            if job.stopped:
                continue
            if self._release >= _RUN_LINKS_SINCE:
                for run_id in job.trace.run_ids:
                    wanted[f"attributes.run_id = '{run_id}'"].append(job)
            if self._release >= _PROMPT_LINKS_SINCE:
                for link in job.trace.prompts:
                    if link.version.isdigit():
                        wanted[f"prompt = '{link.name}/{link.version}'"].append(job)

        def check(request: tuple[str, list[_Job]]) -> None:
            text, linked = request
            times = [int(job.trace.request_time) for job in linked if job.trace.request_time is not UNSET]
            if times:
                text += f" AND attributes.timestamp_ms >= {min(times)} AND attributes.timestamp_ms <= {max(times)}"
            experiments = sorted({job.trace.experiment_id for job in linked})
            found = found_traces(self._server.client, experiments, text)
            for job in linked:
                if job.trace.trace_id not in found:
                    job.report(f"it is not linked when it is read back ({request[0]})", code=DIFFERS)

        for _ in bounded_map(self._server.executor, check, wanted.items(), self._server.window):
            pass

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
            wanted = one if one.valid or one.assessment_id in _overridden(trace) else _made_valid(one)
            for difference in expected.assessment_differences(wanted, found.get(one.assessment_id)):
                result.action = "failed"
                result.problems.append(not_restored(result, f"read back from the target: {difference}", code=DIFFERS))


def _requests(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    """Jobs of one experiment each, in pieces that a server takes in one go."""
    by_experiment: dict[str, list[_Job]] = defaultdict(list)
    for job in jobs:
        if job.spans and not job.stopped:
            by_experiment[job.trace.experiment_id].append(job)
    for group in by_experiment.values():
        some: list[_Job] = []
        size = 0
        for job in group:
            chars = sum(map(len, job.contents))
            if some and (len(some) == _TRACES_PER_REQUEST or size + chars > _CHARS_PER_REQUEST):
                yield some
                some, size = [], 0
            some.append(job)
            size += chars
        yield some


def _digest(store: ArtifactStore, path: str) -> str | None:
    """The SHA-256 of a file in hex; None where there is none."""
    try:
        with store.open(path) as stream:
            return file_hex(stream)
    except BundleError as error:
        if isinstance(error, AuthError) or (isinstance(error, ServerError) and error.status is None):
            raise
        return None


def _overridden(trace: Trace) -> set[Any]:
    return {one.overrides for one in trace.assessments}


def _made_valid(one: Assessment) -> Assessment:
    return msgspec.structs.replace(one, valid=True)


def _overridden_first(assessments: Sequence[Assessment]) -> Iterator[Assessment]:
    """Each after the one that it overrides."""
    left = list(assessments)
    while left:
        waiting = {one.assessment_id for one in left}
        ready = [one for one in left if one.overrides not in waiting] or left
        yield from ready
        left = [one for one in left if one not in ready]
