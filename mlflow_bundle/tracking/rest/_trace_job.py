"""A trace on its way to a server, and what every step of its restore does: many at once, each failing alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Assessment, KeyValue, Trace
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import CANNOT_HOLD, NOT_RESTORED, EntityResult, PlannedEntity
from mlflow_bundle.tracking.rest import _trace_expected as expected
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._road import Server, not_restored
from mlflow_bundle.tracking.rest._trace_answers import SPANS_LOCATION, TraceAnswer
from mlflow_bundle.tracking.rest._traces_read import trace_infos

__all__ = [
    "ISSUES_SINCE",
    "OTLP_SINCE",
    "PROMPT_LINKS_SINCE",
    "RUN_LINKS_SINCE",
    "SPAN_KINDS_SINCE",
    "V3_SINCE",
    "TraceJob",
    "TraceRoad",
]

#: What servers of which release can do.
V3_SINCE: Final = (3, 0)
RUN_LINKS_SINCE: Final = (3, 3)
#: Earlier ones take spans by OTLP too, since 3.4, and do not hand them out again as they are.
OTLP_SINCE: Final = (3, 7)
PROMPT_LINKS_SINCE: Final = (3, 7)
SPAN_KINDS_SINCE: Final = (3, 18)
ISSUES_SINCE: Final = (3, 11)
_IDS: Final = 100


@dataclass(slots=True, eq=False)
class TraceJob:
    """One trace on its way. ``trace`` is as it has to be at the target. ``spans`` are None where OTLP does not carry them.

    ``later``: assessments that override others; ``last``: those that a deletion would take away; ``there``: the trace as it
    was at the target before, ``is_old`` with other times, state or data than the archive has. ``moved``: spans of a database
    become a file. ``completed``: the target lacked something of it. ``touched``: a tag was set, or one differs and stays.
    ``stopped``: nothing more is tried. ``lost``: problems of files that the archive has lost, for which nothing stops.
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
    is_old: bool = False
    touched: bool = False
    stopped: bool = False
    lost: list[Problem] = field(default_factory=list)

    def report(self, message: str, *, code: str = NOT_RESTORED, path: str = "") -> None:
        """A problem of this trace."""
        self.result.problems.append(not_restored(self.result, message, code=code, path=path))
        if code != CANNOT_HOLD:
            self.result.action = "failed"

    @property
    def wanted(self) -> Trace:
        """The trace with the tags that this restore adds."""
        added = tuple(KeyValue(key=key, value=value) for key, value in self.tags.items() if key != SPANS_LOCATION)
        return msgspec.structs.replace(self.trace, tags=(*self.trace.tags, *added))

    @property
    def embedded(self) -> list[Assessment]:
        """The assessments that the trace is started with."""
        return [one for one in self.trace.assessments if one.assessment_id not in self.later | self.last]


class TraceRoad:
    """A server that traces are written to. ``release`` is its (major, minor), (0, 0) where it does not say."""

    def __init__(self, server: Server) -> None:
        self.server = server
        match = re.match(r"(\d+)\.(\d+)", server.client.version())
        self.release = (int(match[1]), int(match[2])) if match else (0, 0)

    def each(self, jobs: Iterable[TraceJob], step: Callable[[TraceJob], None]) -> None:
        """Do a step of all jobs that are not stopped; one that fails is stopped."""

        def guarded(job: TraceJob) -> None:
            before = len(job.result.problems)
            self.server.guard(job.result, lambda: step(job))
            job.stopped = job.stopped or (job.result.action == "failed" and len(job.result.problems) > before)

        alive = (job for job in jobs if not job.stopped)
        for _ in bounded_map(self.server.executor, guarded, alive, self.server.window):
            pass

    def infos(self, jobs: Sequence[TraceJob]) -> dict[str, TraceAnswer]:
        """The traces as the server has them now, by id."""
        groups = chunks([job.trace.trace_id for job in jobs], _IDS)
        pages = bounded_map(
            self.server.executor, lambda some: trace_infos(self.server.client, some), groups, self.server.window
        )
        return {info.trace_id: info for page in pages for info in page}

    def start(self, job: TraceJob, assessments: Sequence[Assessment]) -> None:
        """Start the trace, or set its fields again where its spans are in the database."""
        contents = job.contents if job.spans is not None else ()
        trace = msgspec.structs.replace(job.trace, assessments=tuple(assessments))
        self.server.post("traces", expected.start_body(trace, contents, tags=job.tags), api=API3)
