"""Spans from their archived JSON to OTLP, so that a server stores the same text again; and why some cannot take this road.

A server of MLflow turns each attribute value into JSON text, and takes one layer off a text that is JSON text of a string, list
or object already. So a value travels as what it means where its text is the usual one, and as its text where it is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mlflow_bundle.tracking._spans import hex_id, meaning

__all__ = ["INTERNAL", "OTLP_HEADERS", "UnspeakableError", "otlp_request", "otlp_span"]

OTLP_HEADERS: Final = {"Content-Type": "application/x-protobuf"}
_MEMBERS: Final = frozenset(
    {
        "trace_id",
        "span_id",
        "parent_span_id",
        "name",
        "start_time_unix_nano",
        "end_time_unix_nano",
        "events",
        "status",
        "attributes",
        "links",
        "kind",
    }
)
#: The kind of every span that does not say otherwise. MLflow writes it since 3.18.
INTERNAL: Final = "SPAN_KIND_INTERNAL"
_STATUS: Final = {"OK": Status.STATUS_CODE_OK, "ERROR": Status.STATUS_CODE_ERROR, "UNSET": Status.STATUS_CODE_UNSET}
_TYPE: Final = "mlflow.spanType"
_TRACE_ID: Final = "mlflow.traceRequestId"
_PREFIX: Final = "tr-"
_INT64: Final = 2**63


class UnspeakableError(Exception):
    """OTLP, or what a server makes of it, cannot carry this span. The message says why."""


def otlp_request(spans: Iterable[Span]) -> bytes:
    """The body of ``POST /v1/traces``."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(spans)
    body: bytes = request.SerializeToString()
    return body


def otlp_span(trace_id: str, content: str, *, keeps_kind: bool) -> Span:
    """A span of the trace from its JSON. ``keeps_kind``: whether the server keeps of which kind spans are.

    Raises:
        UnspeakableError: the server would store something else, or refuse it.
    """
    span = json.loads(content)
    try:
        found = _span(trace_id, span)
        kind = Span.SpanKind.Value(span.get("kind", INTERNAL))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnspeakableError(f"a span is not in the form of MLflow 3: {error}") from error
    if span.get("kind", INTERNAL) != INTERNAL and not keeps_kind:
        raise UnspeakableError("a span has a kind, which servers before 3.18 do not keep")
    found.kind = kind
    return found


def _span(trace_id: str, span: dict[str, Any]) -> Span:
    if unknown := span.keys() - _MEMBERS:
        raise UnspeakableError(f"a span has the member {min(unknown)!r}, which OTLP does not know")
    otel_id = hex_id(span["trace_id"], 32) or ""
    if trace_id != _PREFIX + otel_id or meaning(span["attributes"].get(_TRACE_ID)) != trace_id:
        raise UnspeakableError("a server makes the id of a trace from that of its spans, and these differ")
    if not span.get("end_time_unix_nano"):
        raise UnspeakableError("a span has no end")
    found = Span(
        trace_id=bytes.fromhex(otel_id),
        span_id=bytes.fromhex(hex_id(span["span_id"], 16) or ""),
        name=_text(span["name"]),
        start_time_unix_nano=int(span["start_time_unix_nano"]),
        end_time_unix_nano=int(span["end_time_unix_nano"]),
        status=_status(span["status"]),
    )
    if span.get("parent_span_id"):
        found.parent_span_id = bytes.fromhex(hex_id(span["parent_span_id"], 16) or "")
    for key, value in span["attributes"].items():
        _put(found.attributes.add(), key, _travelling(key, value))
    for event in span.get("events") or ():
        added = found.events.add(name=_text(event["name"]), time_unix_nano=int(event["time_unix_nano"]))
        _put_all(added.attributes, event.get("attributes") or {})
    for link in span.get("links") or ():
        added_link = found.links.add(trace_id=_link_id(link["trace_id"]), span_id=bytes.fromhex(_exact(link["span_id"], 16)))
        _put_all(added_link.attributes, link.get("attributes") or {})
    return found


def _status(status: Mapping[str, Any]) -> Status:
    code = str(status["code"]).removeprefix("STATUS_CODE_")
    message = status.get("message") or ""
    if message and code != "ERROR":
        raise UnspeakableError("a span that is no error has a status message")
    return Status(code=_STATUS[code], message=_text(message))


def _link_id(text: str) -> bytes:
    if not text.startswith(_PREFIX):
        raise UnspeakableError(f"a span is linked to the trace {text!r}, whose id is not of OpenTelemetry")
    return bytes.fromhex(_exact(text.removeprefix(_PREFIX), 32))


def _exact(text: str, digits: int) -> str:
    if len(text) != digits or text != text.lower():
        raise UnspeakableError(f"{text!r} is no id of OpenTelemetry")
    return text


def _travelling(key: str, text: Any) -> Any:
    """What to send for an attribute that is kept as ``text``."""
    if not isinstance(text, str):
        raise UnspeakableError(f"the attribute {key!r} is not kept as text")
    value = meaning(text)
    if key in (_TYPE, _TRACE_ID):
        return value
    if isinstance(value, str):
        # What looks like JSON itself would lose a layer.
        return text if isinstance(meaning(value), str | dict | list) and _is_json(value) else value
    if isinstance(value, dict | list):
        return value if json.dumps(value, ensure_ascii=False) == text and _fits(value) else text
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _fits(value: Any) -> bool:
    """Whether all integers have 64 bits, and no text has half a character."""
    if isinstance(value, dict):
        return all(_fits(key) and _fits(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_fits, value))
    if isinstance(value, str):
        return _is_utf8(value)
    return isinstance(value, bool) or not isinstance(value, int) or -_INT64 <= value < _INT64


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(text: str) -> str:
    if not _is_utf8(text):
        raise UnspeakableError("a text holds half of a character")
    return text


def _put_all(pairs: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        _put(pairs.add(), key, value)


def _put(pair: KeyValue, key: str, value: Any) -> None:
    pair.key = _text(key)
    if not _fits(value):
        raise UnspeakableError(f"the attribute {key!r} holds an integer beyond 64 bits, or half of a character")
    _set(pair.value, value)


def _set(target: AnyValue, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, int):
        target.int_value = value
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, list):
        target.array_value.SetInParent()
        for one in value:
            _set(target.array_value.values.add(), one)
    else:
        target.kvlist_value.SetInParent()
        for key, one in value.items():
            pair = target.kvlist_value.values.add(key=key)
            _set(pair.value, one)
