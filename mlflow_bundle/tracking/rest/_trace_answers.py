"""The server's answers about traces: typed, and turned into records. Version 2 of the API has no assessments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import Assessment, KeyValue, PromptLink, Trace

__all__ = [
    "ARCHIVE_LOCATION",
    "ARTIFACT_LOCATION",
    "SIZE_STATS",
    "SOURCE_RUN",
    "SPANS_LOCATION",
    "OldTrace",
    "OldTracePage",
    "OneOldTrace",
    "OneTrace",
    "TraceAnswer",
    "TraceInfos",
    "TracePage",
    "announced_spans",
    "as_milliseconds",
]

ARTIFACT_LOCATION: Final = "mlflow.artifactLocation"
SPANS_LOCATION: Final = "mlflow.trace.spansLocation"
ARCHIVE_LOCATION: Final = "mlflow.trace.archiveLocation"
SOURCE_RUN: Final = "mlflow.sourceRun"
SIZE_STATS: Final = "mlflow.trace.sizeStats"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_ERROR_FIELDS: Final = ("error_code", "error_message", "stack_trace")

Text = str | UnsetType


def announced_spans(metadata: Sequence[KeyValue]) -> int:
    """How many spans a trace had when MLflow's client measured it; 0 where it does not say."""
    text = next((pair.value for pair in metadata if pair.key == SIZE_STATS), "{}")
    try:
        return msgspec.json.decode(text, type=_SizeStats).num_spans
    except msgspec.DecodeError:
        return 0


class _SizeStats(msgspec.Struct):
    num_spans: int = 0


def as_milliseconds(time: datetime) -> int:
    """Milliseconds since 1970."""
    return (time - _EPOCH) // _MILLISECOND


def _json(value: Any) -> str:
    """The text that MLflow keeps in its database for such a value."""
    return json.dumps(value)


class _Source(msgspec.Struct):
    source_type: Text = UNSET
    source_id: Text = UNSET


class _Feedback(msgspec.Struct):
    value: Any = None
    error: dict[str, Any] | None = None


class _Serialized(msgspec.Struct):
    value: str = "null"


class _Expectation(msgspec.Struct):
    value: Any = None
    serialized_value: _Serialized | None = None


class _Issue(msgspec.Struct):
    issue_name: str = ""


class _Assessment(msgspec.Struct):
    """One of ``feedback``, ``expectation`` and ``issue`` is there."""

    assessment_id: str
    assessment_name: str = ""
    source: _Source = msgspec.field(default_factory=_Source)
    create_time: datetime | UnsetType = UNSET
    last_update_time: datetime | UnsetType = UNSET
    feedback: _Feedback | None = None
    expectation: _Expectation | None = None
    issue: _Issue | None = None
    rationale: Text = UNSET
    span_id: Text = UNSET
    overrides: Text = UNSET
    valid: bool = True
    metadata: dict[str, str] = {}

    @property
    def is_known(self) -> bool:
        """Whether its value is of a kind that records have a place for."""
        return not (self.feedback is None and self.expectation is None and self.issue is None)

    def record(self) -> Assessment:
        kind, value, error = self._value()
        times = (self.create_time, self.last_update_time)
        created, updated = (as_milliseconds(time) if isinstance(time, datetime) else UNSET for time in times)
        return Assessment(
            assessment_id=self.assessment_id,
            assessment_name=self.assessment_name,
            assessment_type=kind,
            value=value,
            error=error,
            source_type=self.source.source_type,
            source_id=self.source.source_id,
            create_time=created,
            last_update_time=updated,
            rationale=self.rationale,
            span_id=self.span_id,
            overrides=self.overrides,
            valid=self.valid,
            metadata=_pairs(self.metadata),
        )

    def _value(self) -> tuple[Literal["feedback", "expectation", "issue"], str, Text]:
        if self.expectation is not None:
            serialized = self.expectation.serialized_value
            return "expectation", serialized.value if serialized else _json(self.expectation.value), UNSET
        if self.issue is not None:
            return "issue", _json({"issue_name": self.issue.issue_name}), UNSET
        feedback = self.feedback or _Feedback()
        error = None if feedback.error is None else {name: feedback.error.get(name) for name in _ERROR_FIELDS}
        return "feedback", _json(feedback.value), UNSET if error is None else _json(error)


class _Experiment(msgspec.Struct):
    experiment_id: str = ""


class _Location(msgspec.Struct):
    mlflow_experiment: _Experiment = msgspec.field(default_factory=_Experiment)


class TraceAnswer(msgspec.Struct):
    """A trace as version 3 of the API answers it."""

    trace_id: str
    trace_location: _Location = msgspec.field(default_factory=_Location)
    request_time: datetime | UnsetType = UNSET
    execution_duration: Text = UNSET
    state: Text = UNSET
    client_request_id: Text = UNSET
    request_preview: Text = UNSET
    response_preview: Text = UNSET
    tags: dict[str, str] = {}
    trace_metadata: dict[str, str] = {}
    assessments: list[_Assessment] = []

    @property
    def unknown_assessments(self) -> list[str]:
        """The ids of those that no record has a place for."""
        return [assessment.assessment_id for assessment in self.assessments if not assessment.is_known]

    def record(self, run_ids: Sequence[str] = (), prompts: Sequence[tuple[str, str]] = ()) -> Trace:
        """The trace as a record, with the runs and prompts that it is linked to. Assessments are in order of time and id."""
        judged = [assessment.record() for assessment in self.assessments if assessment.is_known]
        time = self.request_time
        return Trace(
            trace_id=self.trace_id,
            experiment_id=self.trace_location.mlflow_experiment.experiment_id,
            request_time=as_milliseconds(time) if isinstance(time, datetime) else UNSET,
            execution_duration=_duration(self.execution_duration),
            state=self.state,
            client_request_id=self.client_request_id,
            request_preview=self.request_preview,
            response_preview=self.response_preview,
            **_split(self.tags),
            trace_metadata=_pairs(self.trace_metadata),
            assessments=tuple(sorted(judged, key=_assessment_order)),
            run_ids=tuple(sorted(run_ids)),
            prompts=tuple(PromptLink(name=name, version=version) for name, version in sorted(prompts)),
        )


def _assessment_order(assessment: Assessment) -> tuple[int, str]:
    created = assessment.create_time
    return (created if isinstance(created, int) else 0, assessment.assessment_id)


class TracePage(msgspec.Struct):
    """A page of ``traces/search``."""

    traces: list[TraceAnswer] = []
    next_page_token: str = ""


class TraceInfos(msgspec.Struct):
    """The answer of ``traces/batchGetInfos``."""

    trace_infos: list[TraceAnswer] = []


class _Wrapped(msgspec.Struct):
    trace_info: TraceAnswer


class OneTrace(msgspec.Struct):
    """The answer of ``traces/<id>``."""

    trace: _Wrapped


class _Pair(msgspec.Struct):
    key: str = ""
    value: str = ""


class OldTrace(msgspec.Struct):
    """A trace as version 2 of the API answers it."""

    request_id: str
    experiment_id: str = ""
    timestamp_ms: int | UnsetType = UNSET
    execution_time_ms: int | UnsetType = UNSET
    status: str = ""
    request_metadata: list[_Pair] = []
    tags: list[_Pair] = []

    def record(self) -> Trace:
        """The trace as a record, without the assessments and links that only version 3 knows."""
        return Trace(
            trace_id=self.request_id,
            experiment_id=self.experiment_id,
            request_time=self.timestamp_ms,
            execution_duration=self.execution_time_ms,
            state=UNSET if not self.status else self.status.replace("TRACE_STATUS_UNSPECIFIED", "STATE_UNSPECIFIED"),
            **_split({tag.key: tag.value for tag in self.tags}),
            trace_metadata=_pairs({pair.key: pair.value for pair in self.request_metadata}),
        )


class OldTracePage(msgspec.Struct):
    """A page of ``GET traces`` of version 2."""

    traces: list[OldTrace] = []
    next_page_token: str = ""


class OneOldTrace(msgspec.Struct):
    """The answer of ``traces/<id>/info`` of version 2."""

    trace_info: OldTrace


def _split(tags: Mapping[str, str]) -> dict[str, Any]:
    """The tags, without those that say where the server keeps things: these are fields."""
    places = {"artifact_uri": ARTIFACT_LOCATION, "spans_location": SPANS_LOCATION, "archive_location": ARCHIVE_LOCATION}
    kept = {key: value for key, value in tags.items() if key not in places.values()}
    return {"tags": _pairs(kept), **{name: tags.get(key, UNSET) for name, key in places.items()}}


def _pairs(pairs: Mapping[str, str]) -> tuple[KeyValue, ...]:
    # Strings sort by code point, which is the order of their UTF-8 bytes.
    return tuple(KeyValue(key=key, value=value) for key, value in sorted(pairs.items()))


def _duration(text: Text) -> int | UnsetType:
    """``1.234s`` in milliseconds."""
    return UNSET if text is UNSET else int(Decimal(str(text).removesuffix("s")) * 1000)
