"""What an archived trace becomes at a server: the requests that make it, and what must be read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import UNSET

from mlflow_bundle.entities import Assessment, KeyValue, PromptLink, Trace
from mlflow_bundle.tracking._port import IdMap
from mlflow_bundle.tracking._spans import attribute, meaning
from mlflow_bundle.tracking.rest._otlp import INTERNAL
from mlflow_bundle.tracking.rest._trace_answers import SOURCE_RUN

__all__ = [
    "SHOWN_TAG",
    "assessment_body",
    "assessment_differences",
    "mapped",
    "posted_later",
    "reasons",
    "same_span",
    "source_run_of",
    "start_body",
    "trace_differences",
    "unholdable",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MODEL_ID: Final = "mlflow.modelId"
_ASSESSED_IN: Final = "mlflow.assessment.sourceRunId"
#: What a server writes itself, or derives from the spans where a trace has none.
_FINALIZED: Final = "mlflow.trace.infoFinalized"
_VERSION: Final = "mlflow.trace_schema.version"
_USAGE: Final = frozenset({"mlflow.trace.tokenUsage", "mlflow.trace.cost"})
_DERIVED: Final = _USAGE | {"mlflow.trace.session", "mlflow.trace.user"}
#: So many characters of a value a server hands out; it stores more.
_SHOWN_METADATA: Final = 250
SHOWN_TAG: Final = 4_096
_PREVIEW: Final = 1_000
_SAFE_INTEGER: Final = 2**53
#: (what, attribute, characters that the server's columns hold)
_LENGTHS: Final = (("client request id", "client_request_id", 50), ("id", "trace_id", 50))
_VALUE_CHARS: Final = 8_000
_KEY_CHARS: Final = 250
_STACK_CHARS: Final = 10_000


# -- what is sent ------------------------------------------------------------------------------------------------------


def mapped(trace: Trace, experiment_id: str, ids: IdMap) -> Trace:
    """The trace with the ids that its references have at the target, without what no server keeps. Its own ids stay."""
    run = {SOURCE_RUN: "run", _MODEL_ID: "logged_model"}
    left = unholdable(trace)
    overridden = {one.overrides for one in trace.assessments}
    return msgspec.structs.replace(
        trace,
        experiment_id=experiment_id,
        trace_metadata=_rewritten(trace.trace_metadata, run, ids),
        assessments=tuple(
            _mapped_assessment(one, overridden, ids) for one in trace.assessments if one.assessment_id not in left
        ),
        run_ids=tuple(sorted(new for old in trace.run_ids if (new := ids.find("run", old)) is not None)),
        prompts=tuple(PromptLink(name=ids.new("registered_model", link.name), version=link.version) for link in trace.prompts),
        request_preview=_cut(trace.request_preview),
        response_preview=_cut(trace.response_preview),
    )


def _rewritten(pairs: Sequence[KeyValue], kinds: Mapping[str, str], ids: IdMap) -> tuple[KeyValue, ...]:
    return tuple(
        KeyValue(key=pair.key, value=ids.new(kinds[pair.key], pair.value)) if pair.key in kinds else pair for pair in pairs
    )


def _mapped_assessment(one: Assessment, overridden: set[Any], ids: IdMap) -> Assessment:
    name = ids.new("issue", one.assessment_name) if one.assessment_type == "issue" else one.assessment_name
    metadata = _rewritten(one.metadata, {_ASSESSED_IN: "run"}, ids)
    # A server makes one invalid only where another one overrides it.
    valid = one.valid or one.assessment_id not in overridden
    return msgspec.structs.replace(one, assessment_name=name, metadata=metadata, valid=valid)


def _cut(preview: Any) -> Any:
    return preview if preview is UNSET else preview[:_PREVIEW]


def source_run_of(one: Assessment) -> str:
    """The run that an assessment was made in, empty where there is none."""
    return next((pair.value for pair in one.metadata if pair.key == _ASSESSED_IN), "")


def unholdable(trace: Trace) -> frozenset[str]:
    """The assessments that a server cannot keep at all."""
    return frozenset(
        one.assessment_id
        for one in trace.assessments
        if one.assessment_type == "feedback" and not _holdable(json.loads("null" if one.value is UNSET else str(one.value)))
    )


def posted_later(trace: Trace) -> frozenset[str]:
    """The assessments that must be created on their own, because that makes those that they override invalid."""
    invalid = {one.assessment_id for one in trace.assessments if not one.valid}
    return frozenset(one.assessment_id for one in trace.assessments if one.overrides in invalid)


def start_body(trace: Trace, spans: Sequence[str], *, tags: Mapping[str, str]) -> dict[str, Any]:
    """The body that starts a (mapped) trace, whose ``spans`` will be sent by OTLP, with more ``tags``."""
    root = [span for span in map(json.loads, spans) if not (span.get("parent_span_id") or span.get("parent_id"))]
    info: dict[str, Any] = {
        "trace_id": trace.trace_id,
        "client_request_id": trace.client_request_id,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": trace.experiment_id}},
        "request_time": None if trace.request_time is UNSET else _time(trace.request_time),
        "execution_duration": None if trace.execution_duration is UNSET else _seconds(trace.execution_duration),
        "state": trace.state,
        "trace_metadata": {pair.key: pair.value for pair in trace.trace_metadata},
        "tags": {**{pair.key: pair.value for pair in trace.tags}, **tags},
        "request_preview": _preview(trace.request_preview, root, "mlflow.spanInputs"),
        "response_preview": _preview(trace.response_preview, root, "mlflow.spanOutputs"),
        "assessments": [{**assessment_body(one), "trace_id": trace.trace_id} for one in trace.assessments],
    }
    return {"trace": {"trace_info": {name: value for name, value in info.items() if value not in (None, UNSET)}}}


def _preview(text: Any, root: Sequence[dict[str, Any]], key: str) -> Any:
    """An absent preview of a trace whose root span has such a value is sent empty: the server would make one up."""
    return "" if text is UNSET and any(attribute(span, key) is not None for span in root) else text


def _time(milliseconds: Any) -> str:
    text = (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _seconds(milliseconds: Any) -> str:
    sign, number = ("-" if milliseconds < 0 else ""), abs(milliseconds)
    return f"{sign}{number // 1000}.{number % 1000:03d}s"


def assessment_body(one: Assessment) -> dict[str, Any]:
    """A (mapped) assessment as a server takes it. Expectations travel as JSON text, which keeps integers."""
    body: dict[str, Any] = {
        "assessment_id": one.assessment_id,
        "assessment_name": one.assessment_name,
        "source": {"source_type": one.source_type or "SOURCE_TYPE_UNSPECIFIED", "source_id": one.source_id or ""},
        "create_time": None if one.create_time is UNSET else _time(one.create_time),
        "last_update_time": None if one.last_update_time is UNSET else _time(one.last_update_time),
        "rationale": one.rationale,
        "span_id": one.span_id,
        "overrides": one.overrides,
        "metadata": {pair.key: pair.value for pair in one.metadata},
        **_value(one),
    }
    return {name: value for name, value in body.items() if value not in (None, UNSET, {}) or name in _VALUES}


_JSON: Final = ("value", "error")
_VALUES: Final = ("feedback", "expectation", "issue")


def _value(one: Assessment) -> dict[str, Any]:
    text = "null" if one.value is UNSET else str(one.value)
    if one.assessment_type == "expectation":
        return {"expectation": {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": text}}}
    value = json.loads(text)
    if one.assessment_type == "issue":
        return {"issue": {"issue_name": value.get("issue_name") or ""}}
    feedback: dict[str, Any] = {"value": value}
    if one.error is not UNSET:
        feedback["error"] = {name: part for name, part in json.loads(str(one.error)).items() if part is not None}
    return {"feedback": feedback}


# -- what a server cannot hold -----------------------------------------------------------------------------------------


def reasons(trace: Trace) -> Iterator[str]:
    """What of this trace a server would cut, alter or refuse."""
    for what, name, chars in _LENGTHS:
        value = getattr(trace, name)
        if value is not UNSET and len(value) > chars:
            yield f"its {what} has {len(value)} characters, the server takes {chars}"
    for what, text in (("request", trace.request_preview), ("response", trace.response_preview)):
        if text is not UNSET and len(str(text)) > _PREVIEW:
            yield f"its {what} preview is cut: it has {len(str(text))} characters, the server takes {_PREVIEW}"
    for what, pairs in (("tag", trace.tags), ("metadata", trace.trace_metadata)):
        for pair in pairs:
            if len(pair.key) > _KEY_CHARS or len(pair.value) > _VALUE_CHARS:
                name = f"{what} {pair.key[:_KEY_CHARS]!r}"
                yield f"the {name} is too long: the server takes {_KEY_CHARS} characters of a key, {_VALUE_CHARS} of a value"
    overridden = {one.overrides for one in trace.assessments}
    for one in trace.assessments:
        yield from _assessment_reasons(one, overridden)
    for link in trace.prompts:
        if not link.version.isdigit():
            yield f"its link to the prompt {link.name!r} is left out: {link.version!r} is no version of a prompt"


def _assessment_reasons(one: Assessment, overridden: set[Any]) -> Iterator[str]:
    what = f"its assessment {one.assessment_id}"
    if not one.valid and one.assessment_id not in overridden:
        yield f"{what} becomes valid: a server takes it as invalid only where another one overrides it"
    if one.run_id is not UNSET and one.run_id and one.run_id != source_run_of(one):
        yield f"{what} forgets its run {one.run_id}, which its metadata does not name"
    value = json.loads("null" if one.value is UNSET else str(one.value))
    if one.assessment_type == "feedback" and not _holdable(value):
        yield f"{what} is left out: a server takes no NaN, no Infinity and no integer beyond 2^53 in feedback"
    error = json.loads(str(one.error)) if one.error is not UNSET else {}
    if len(error.get("stack_trace") or "") > _STACK_CHARS:
        yield f"the stack trace of {what} is cut to {_STACK_CHARS} characters"


def _holdable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_holdable, value.values()))
    if isinstance(value, list):
        return all(map(_holdable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) <= _SAFE_INTEGER


# -- what is read back -------------------------------------------------------------------------------------------------


def trace_differences(wanted: Trace, found: Trace) -> tuple[list[str], list[str]]:
    """What differs from the (mapped) trace, and what a server adds or hides in any case."""
    different, besides = [], []
    for name in ("experiment_id", "request_time", "execution_duration", "state", "client_request_id"):
        expected, there = getattr(wanted, name), getattr(found, name)
        if (expected if expected != "" else UNSET) != (there if there != "" else UNSET):
            different.append(f"{name} is {there!r} instead of {expected!r}")
    for name in ("request_preview", "response_preview"):
        expected, there = getattr(wanted, name), getattr(found, name)
        if expected is UNSET and there == "":
            besides.append(f"an absent {name} became an empty one, so that the server made none up")
        elif expected != there:
            different.append(f"{name} is {there!r} instead of {expected!r}")
    for what, shown in (("tags", SHOWN_TAG), ("trace_metadata", _SHOWN_METADATA)):
        more = _pairs_differ(what, getattr(wanted, what), getattr(found, what), shown)
        different += more[0]
        besides += more[1]
    return different, besides


def _pairs_differ(name: str, wanted: Sequence[KeyValue], found: Sequence[KeyValue], shown: int) -> tuple[list[str], list[str]]:
    different, besides = [], []
    what = "tag" if name == "tags" else "metadata"
    there = {pair.key: pair.value for pair in found}
    expected = {pair.key: pair.value for pair in wanted}
    for key, value in expected.items():
        if key not in there:
            different.append(f"the {what} {key!r} is missing")
        elif len(value) > shown and there[key] == value[:shown]:
            besides.append(f"of {what} values the server hands out the first {shown} characters only")
        elif key == _VERSION and there[key] != value:
            besides.append(f"the server sets the {what} {key!r} to its own {there[key]!r}")
        elif there[key] != value and not (key in _USAGE and meaning(there[key]) == meaning(value)):
            different.append(f"the {what} {key!r} is {there[key][:80]!r} instead of {value[:80]!r}")
    for key in sorted(there.keys() - expected.keys()):
        if key in (_FINALIZED, _VERSION):
            besides.append(f"the server adds the {what} {key!r}")
        elif key in _DERIVED and what == "metadata":
            besides.append(f"the server derives the {what} {key!r} from the spans")
        else:
            different.append(f"the {what} {key!r} is there and should not be")
    return different, besides


def assessment_differences(wanted: Assessment, found: Assessment | None) -> list[str]:
    """What differs in an assessment. A server keeps numbers of feedback as doubles, and no empty texts."""
    if found is None:
        return [f"the assessment {wanted.assessment_id} is missing"]
    different = []
    for name in wanted.__struct_fields__:
        expected, there = getattr(wanted, name), getattr(found, name)
        if name == "run_id" or (expected or UNSET) == (there or UNSET):
            continue
        if name in _JSON and UNSET not in (expected, there) and _same_json(wanted, name, expected, there):
            continue
        different.append(f"{name} of the assessment {wanted.assessment_id} is {there!r} instead of {expected!r}")
    return different


def _same_json(one: Assessment, name: str, expected: str, there: str) -> bool:
    """Whether two JSON texts of an assessment say the same. Numbers of feedback are doubles; an error has no member null."""
    integer: type = float if one.assessment_type == "feedback" else int
    values = [json.loads(text, parse_int=integer) for text in (expected, there)]
    if name == "error":
        values = [{key: part for key, part in value.items() if part is not None} for value in values]
    return json.dumps(values[0], sort_keys=True) == json.dumps(values[1], sort_keys=True)


def same_span(wanted: str, found: str) -> bool:
    """Whether two texts of a span say the same, attributes as MLflow reads them."""
    return wanted == found or _essence(wanted) == _essence(found)


def _essence(content: str) -> str:
    span = json.loads(content)
    attributes = span.get("attributes") or {}
    read = {"kind": INTERNAL, **span, "attributes": {key: meaning(value) for key, value in attributes.items()}}
    return json.dumps(read, sort_keys=True)
