"""The spans and files of traces to a server: by OTLP, or as a file where that cannot keep spans as they are."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from mlflow_bundle._digests import file_hex, hex_of
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import AuthError, BundleError, ServerError
from mlflow_bundle.tracking._port import DIFFERS, SOURCE_TAG_PREFIX, ArtifactStore, OpenBlob
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking._spans import IN_DATABASE, SPANS_IN_STORE
from mlflow_bundle.tracking.rest._once import send_file
from mlflow_bundle.tracking.rest._otlp import OTLP_HEADERS, UnspeakableError, otlp_request, otlp_span
from mlflow_bundle.tracking.rest._road import LOST, not_restored
from mlflow_bundle.tracking.rest._trace_answers import SPANS_LOCATION
from mlflow_bundle.tracking.rest._trace_expected import same_span
from mlflow_bundle.tracking.rest._trace_files import TRACE_PAYLOAD
from mlflow_bundle.tracking.rest._trace_job import OTLP_SINCE, SPAN_KINDS_SINCE, TraceJob, TraceRoad
from mlflow_bundle.tracking.rest._traces_read import fetch_spans, trace_infos

__all__ = ["PayloadWriter"]

_OTLP: Final = "/v1/traces"
_EXPERIMENT: Final = "x-mlflow-experiment-id"
_TRACES_PER_REQUEST: Final = 50
_CHARS_PER_REQUEST: Final = 4_000_000


class PayloadWriter:
    """Writes spans and files of traces that were started."""

    def __init__(self, road: TraceRoad) -> None:
        self._road = road
        self._server = road.server

    def choose_road(self, job: TraceJob) -> None:
        """OTLP where it keeps the spans as they are, else the file. What was in the file goes there again."""
        place = job.plan.record.spans_location  # type: ignore[attr-defined]  # it is a trace
        if place not in SPANS_IN_STORE:
            return
        if not job.contents:
            job.tags[SPANS_LOCATION] = IN_DATABASE
            return
        if place != IN_DATABASE:
            job.result.notes.append("spans that the source keeps in its archive of traces are in the target's database")
        if self._road.release < OTLP_SINCE:
            self._use_file(job, "the server hands out no spans that came by OTLP")
            return
        keeps_kind = self._road.release >= SPAN_KINDS_SINCE
        try:
            job.spans = [otlp_span(job.trace.trace_id, content, keeps_kind=keeps_kind) for content in job.contents]
        except UnspeakableError as error:
            self._use_file(job, str(error))

    def _use_file(self, job: TraceJob, why: str) -> None:
        job.spans, job.moved = None, True
        job.tags[SOURCE_TAG_PREFIX + "spans_location"] = str(job.plan.record.spans_location or IN_DATABASE)  # type: ignore[attr-defined]
        job.result.notes.append(f"spans are kept in {TRACE_PAYLOAD} and not in the database, where no search finds them: {why}")

    def send_spans(self, jobs: Sequence[TraceJob]) -> None:
        """Send the spans of new traces, and of those there that lack some."""
        with_spans = [job for job in jobs if job.spans and not job.stopped]
        self._road.each((job for job in with_spans if job.there is not None), self._drop_present)
        for _ in bounded_map(self._server.executor, self._post_spans, _requests(with_spans), self._server.window):
            pass

    def _drop_present(self, job: TraceJob) -> None:
        there = self._spans_there(job)
        assert job.plan.rows is not None
        wanted = zip(job.spans or (), job.plan.rows.column("span_id").to_pylist(), job.contents, strict=True)
        missing = [span for span, name, content in wanted if name not in there or not same_span(content, there[name])]
        job.completed = job.completed or bool(missing)
        job.spans = missing

    def _spans_there(self, job: TraceJob) -> dict[str, str]:
        try:
            return {span["span_id"]: span["content"] for span in fetch_spans(self._server.client, job.trace.trace_id)}
        except (RefusedError, ValueError, KeyError, TypeError):
            return {}  # all are sent again, and compared

    def _post_spans(self, jobs: Sequence[TraceJob]) -> None:
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

    def send_files(self, job: TraceJob, open_blob: OpenBlob) -> None:
        """Attachments and ``traces.json``; what is there with the same content is not sent again."""
        files = list(job.plan.files)
        composed = b""
        if job.spans is None and job.contents and (job.moved or not any(path == TRACE_PAYLOAD for path, *_ in files)):
            composed = ('{"spans": [' + ", ".join(job.contents) + "]}").encode()
            files = [file for file in files if file[0] != TRACE_PAYLOAD]
        if not files and not composed:
            return
        store = self._store(job)
        if composed:
            self._put_file(job, store, (TRACE_PAYLOAD, len(composed), hex_of(composed)), lambda: io.BytesIO(composed))
        for file in files:
            try:
                self._put_file(job, store, file, partial(open_blob, file[2]))
            except LOST as error:
                job.lost.append(not_restored(job.result, f"file {file[0]!r}: {error.message}", code=error.code, path=file[0]))

    def _store(self, job: TraceJob) -> ArtifactStore:
        info = job.there or next(iter(trace_infos(self._server.client, [job.trace.trace_id])), None)
        trace = info.record() if info is not None else job.trace
        return self._server.open_store(trace.artifact_uri or "", trace.trace_id)

    def _put_file(self, job: TraceJob, store: ArtifactStore, file: tuple[str, int, str], content: Callable[[], Any]) -> None:
        path, size, sha256 = file
        if job.there is None or _digest(store, path) != sha256:
            send_file(store, path, size, content)
            job.completed = True
        if _digest(store, path) != sha256:
            job.report(f"the file {path!r} was read back from the target with other content", code=DIFFERS, path=path)
        elif any(path == known for known, *_ in job.plan.files):
            job.result.files += 1
            job.result.file_bytes += size


def _requests(jobs: Iterable[TraceJob]) -> Iterator[list[TraceJob]]:
    """Jobs of one experiment each, in pieces that a server takes in one go."""
    by_experiment: dict[str, list[TraceJob]] = defaultdict(list)
    for job in jobs:
        if job.spans and not job.stopped:
            by_experiment[job.trace.experiment_id].append(job)
    for group in by_experiment.values():
        some: list[TraceJob] = []
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
