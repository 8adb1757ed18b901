"""Traces read back from a server: what storing them changed is set right, what still differs is a problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.tracking._port import DIFFERS
from mlflow_bundle.tracking._rest import API
from mlflow_bundle.tracking.rest import _trace_expected as expected
from mlflow_bundle.tracking.rest._answers import quoted
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._trace_job import PROMPT_LINKS_SINCE, RUN_LINKS_SINCE, TraceJob, TraceRoad
from mlflow_bundle.tracking.rest._traces_read import fetch_spans, found_traces

__all__ = ["TraceChecker"]


class TraceChecker:
    """Reads traces back and compares them."""

    def __init__(self, road: TraceRoad) -> None:
        self._road = road
        self._server = road.server

    def read_back(self, jobs: Sequence[TraceJob]) -> None:
        """Read the traces, repair what storing the spans changed, and read the repaired ones again."""
        alive = [job for job in jobs if not job.stopped]
        self._take_infos(alive)
        repaired: list[TraceJob] = []
        self._road.each(alive, lambda job: repaired.append(job) if self._repair(job) else None)
        self._take_infos(repaired)

    def _take_infos(self, jobs: Sequence[TraceJob]) -> None:
        infos = self._road.infos(jobs)
        for job in jobs:
            job.found = infos.get(job.trace.trace_id)

    def _repair(self, job: TraceJob) -> bool:
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
        path = f"{API3}traces/{job.trace.trace_id}/tags" if self._road.release >= RUN_LINKS_SINCE else None
        path = path or f"{API}traces/{job.trace.trace_id}/tags"
        changed = ours and bool(expected.trace_differences(job.wanted, found)[0]) and bool(job.spans or job.is_old)
        if changed:
            self._road.start(job, ())
        for key, value in patches.items():
            self._server.client.post_json(path, {"key": key, "value": value}, method="PATCH")
        for key in extra:
            self._server.client.post_json(path, {"key": key}, method="DELETE")
        job.touched = bool(patches)
        return bool(changed or patches or extra)

    def compare(self, job: TraceJob) -> None:
        """Report what differs between the trace as it was read back and as it has to be; links are not looked at here."""
        if job.found is None:
            job.report("it is not at the target when it is read back", code=DIFFERS)
            return
        found = job.found.record()
        wanted = {tag.key for tag in job.wanted.tags}
        own = tuple(tag for tag in (job.there.record().tags if job.there else ()) if tag.key not in wanted)
        job.touched = job.touched or bool(own)
        job.result.notes += [f"a trace that was there already has the tag {tag.key!r} besides" for tag in own]
        as_it_is = msgspec.structs.replace(job.wanted, tags=(*job.wanted.tags, *own))
        different, besides = expected.trace_differences(as_it_is, found)
        judged = {one.assessment_id: one for one in found.assessments}
        for one in job.trace.assessments:
            if one.assessment_id not in job.last:
                there = judged.get(one.assessment_id)
                different += expected.assessment_differences(one, there)
                if there is not None and (there.value, there.error) != (one.value, one.error):
                    besides.append("the server keeps numbers of feedback as doubles, and spells JSON in its own way")
        job.result.notes += besides
        for difference in different:
            if job.there is not None and not job.completed:
                job.touched = True
                job.result.notes.append(f"a trace that was there already stays as it is: {difference}")
            else:
                job.report(f"read back from the target: {difference}", code=DIFFERS)
        if job.contents or job.spans:
            self._compare_spans(job)

    def _compare_spans(self, job: TraceJob) -> None:
        try:
            spans = {span["span_id"]: span["content"] for span in fetch_spans(self._server.client, job.trace.trace_id)}
        except (ValueError, KeyError, TypeError) as error:
            job.report(f"what the server hands out of it is not the JSON of spans: {error!r}", code=DIFFERS)
            return
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

    def compare_links(self, jobs: Sequence[TraceJob]) -> None:
        """Ask for each run and prompt of these traces which of them are linked."""
        wanted: dict[str, list[TraceJob]] = defaultdict(list)
        for job in jobs:
            if job.stopped:
                continue
            if self._road.release >= RUN_LINKS_SINCE:
                for run_id in job.trace.run_ids:
                    wanted[f"attributes.run_id = '{run_id}'"].append(job)
            if self._road.release >= PROMPT_LINKS_SINCE:
                for link in job.trace.prompts:
                    if link.version.isdigit():
                        wanted[f"prompt = {quoted(f'{link.name}/{link.version}')}"].append(job)

        def check(request: tuple[str, list[TraceJob]]) -> None:
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
