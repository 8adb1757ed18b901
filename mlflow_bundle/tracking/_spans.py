"""Spans as MLflow hands them out: the exact JSON text of each, and the columns of the spans table that derive from it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import pyarrow as pa

from mlflow_bundle.tracking._port import ROW_SCHEMAS

__all__ = [
    "ARCHIVED",
    "IN_DATABASE",
    "SPANS",
    "SPANS_IN_STORE",
    "SPAN_SIGNS",
    "attribute",
    "hex_id",
    "meaning",
    "span_texts",
    "span_values",
    "spans_not_found",
    "spans_table",
]

SPANS: Final = ROW_SCHEMAS["spans/1"]
#: What MLflow notes as the place of spans that are in the database, and of those that it moved into a file.
IN_DATABASE: Final = "TRACKING_STORE"
ARCHIVED: Final = "ARCHIVE_REPO"
#: Of both the store of a server hands them out.
SPANS_IN_STORE: Final = (IN_DATABASE, ARCHIVED)
#: Metadata that MLflow writes when it has seen the spans of a trace.
SPAN_SIGNS: Final = ("mlflow.trace.sizeStats", "mlflow.trace.sizeBytes", "mlflow.traceInputs", "mlflow.traceOutputs")
_STATUS_PREFIX: Final = "STATUS_CODE_"
#: MLflow cuts model names in its columns.
_MODEL_CHARS: Final = 500
_INT64: Final = 2**63
_FIRST_LIST: Final = re.compile(r'\s*\{\s*"spans"\s*:\s*\[')
_BETWEEN: Final = re.compile(r"[\s,]*")


def spans_not_found(trace_ids: Sequence[str]) -> list[str]:
    """A note about traces that had spans, by their own metadata, and whose spans are nowhere."""
    if not trace_ids:
        return []
    return [f"{len(trace_ids):,} traces had spans, and none were found where they should be (for example {min(trace_ids)})"]


class _Payload(msgspec.Struct):
    spans: list[msgspec.Raw] | None = None


def span_texts(payload: bytes) -> list[str]:
    """The JSON text of each span in ``{"spans": [...]}``, exactly as it stands there.

    Raises:
        ValueError: it is not such JSON.
    """
    # Python writes, and reads, bare NaN and Infinity.
    with suppress(msgspec.DecodeError):
        spans = msgspec.json.decode(payload, type=_Payload).spans
        if spans is not None:
            return [bytes(raw).decode() for raw in spans]
    return _lenient_texts(payload.decode())


def _lenient_texts(text: str) -> list[str]:
    """The same of JSON as Python writes it. Where the list does not come first, the spans are spelled anew."""
    decoder = json.JSONDecoder()
    document = decoder.decode(text)
    # Nothing at all says that there are no spans; anything else is the document of somebody else.
    spans = document.get("spans", None if document else []) if isinstance(document, dict) else None
    if not isinstance(spans, list):
        raise ValueError("it holds no list of spans")  # noqa: TRY004 - a value of the wrong form, not a wrong call
    start = _FIRST_LIST.match(text)
    if start is None:
        return [json.dumps(span, separators=(",", ":"), ensure_ascii=False) for span in spans]
    found, position = [], start.end()
    for _ in spans:
        position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]  # it matches everywhere
        _, end = decoder.raw_decode(text, position)
        found.append(text[position:end])
        position = end
    return found


def hex_id(text: str | None, digits: int) -> str | None:
    """A trace id (32 digits) or span id (16) in hex, from base64, hex, or ``tr-`` and hex; None where there is none.

    Raises:
        ValueError: it is none of these.
    """
    if not text:
        return None
    plain = text.rpartition("/")[2].removeprefix("tr-").removeprefix("0x")
    if len(plain) == digits:
        return f"{int(plain, 16):0{digits}x}"
    try:
        return base64.b64decode(text, validate=True).hex().rjust(digits, "0")
    except binascii.Error as error:
        raise ValueError(f"{text!r} is no id of a span or trace") from error


def attribute(span: dict[str, Any], key: str) -> Any:
    """The value of an attribute, which MLflow keeps as JSON text; None where it is missing."""
    return meaning((span.get("attributes") or {}).get(key))


def meaning(value: Any) -> Any:
    """What MLflow reads an attribute as: its text as JSON, or the text itself where it is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def span_values(content: str) -> dict[str, Any]:
    """The columns of one span, from its JSON of any release.

    Raises:
        ValueError, KeyError, TypeError: it is not the JSON of a span.
    """
    span = json.loads(content)
    old = span.get("context")
    cost = attribute(span, "mlflow.llm.cost")
    cost = cost if isinstance(cost, dict) else {}
    span_id = hex_id(old["span_id"] if old else span["span_id"], 16)
    if span_id is None:
        raise ValueError("it has no span id")
    start, end = (span["start_time"], span.get("end_time")) if old else _times(span)
    return {
        "span_id": span_id,
        "parent_span_id": hex_id(span.get("parent_id") if old else span.get("parent_span_id"), 16),
        "name": span.get("name"),
        "type": _text(attribute(span, "mlflow.spanType")),
        "status": _status(span, old=bool(old)),
        "start_time_unix_nano": _nanoseconds(start),
        "end_time_unix_nano": None if end is None else _nanoseconds(end),
        "content": content,
        **{name: _number(cost.get(name)) for name in ("input_cost", "output_cost", "total_cost")},
        "model_name": _model(attribute(span, "mlflow.llm.model")),
        "model_provider": _model(attribute(span, "mlflow.llm.provider")),
    }


def _times(span: dict[str, Any]) -> tuple[Any, Any]:
    return span["start_time_unix_nano"], span.get("end_time_unix_nano")


def _nanoseconds(value: Any) -> int:
    number = int(value)
    if not -_INT64 <= number < _INT64:
        raise ValueError(f"its time {number} does not fit into 64 bits")
    return number


def _status(span: dict[str, Any], *, old: bool) -> str:
    code = span["status_code"] if old else span["status"]["code"]
    return str(code).removeprefix(_STATUS_PREFIX)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _model(value: Any) -> str | None:
    return value[:_MODEL_CHARS] if isinstance(value, str) else None


def spans_table(owners: Iterable[tuple[int, Sequence[dict[str, Any]]]]) -> pa.Table:
    """The spans of some owners as a table of ``ROW_SCHEMAS["spans/1"]``, each owner's by start and span id."""
    columns: dict[str, list[Any]] = {field.name: [] for field in SPANS}
    for owner, spans in owners:
        for span in sorted(spans, key=lambda span: (span["start_time_unix_nano"], span["span_id"])):
            columns["owner"].append(owner)
            for name, value in span.items():
                columns[name].append(value)
    return pa.table([pa.array(columns[field.name], field.type) for field in SPANS], schema=SPANS)
