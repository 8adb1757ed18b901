"""Columns that MLflow derives from others, as it derives them: no record holds them, and its server needs them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from mlflow_bundle.entities import (
    Assessment,
    DatasetRecord,
    GatewayEndpoint,
    Guardrail,
    GuardrailConfig,
    Issue,
    KeyValue,
    LoggedModel,
    McpServerVersion,
    OnlineScoring,
    Record,
    ReviewQueue,
    Scorer,
    Skill,
    Trace,
)
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.tracking.database._traces_read import (
    COST_KEY,
    COSTS,
    NAME_TAG,
    SESSION_KEY,
    TOKENS,
    TOKENS_KEY,
    complete_trace,
)

__all__ = ["DERIVED", "DERIVED_OF_CHILDREN", "DERIVED_ROWS", "PROMOTED", "as_columns_show", "association", "scorer_id_of"]

Row = dict[str, Any]
_INT64: Final = 2**63
#: Tags and metadata of traces that the database keeps in columns.
PROMOTED: Final = {"tags": (NAME_TAG,), "trace_metadata": (SESSION_KEY, TOKENS_KEY, COST_KEY)}


def _digits(*parts: str) -> str:
    """32 hexadecimal digits that depend on these texts alone."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def association(record: Record, field: str, destination: str) -> Row:
    """What a link has beside its ends. Nothing archived says when it was made: as a stand-in, with the entity itself."""
    created = KINDS[str(record.__struct_config__.tag)].created(record)
    return {"association_id": f"a-{_digits(field, record_id(record), destination)}", "created_time": created}


def _of_record(record: DatasetRecord) -> Row:
    inputs = _meaning(record.inputs) if isinstance(record.inputs, str) else {}
    return {"input_hash": hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()}


def _of_queue(queue: ReviewQueue) -> Row:
    return {"name_key": queue.name.lower()}


def _of_mcp_version(version: McpServerVersion) -> Row:
    from mlflow.utils.semver_utils import encode_prerelease_sort_key, parse_semver  # noqa: PLC0415 - a second, for few

    parsed = parse_semver(version.version)
    return {
        "version_major": parsed.major,
        "version_minor": parsed.minor,
        "version_patch": parsed.patch,
        "version_prerelease_sort_key": encode_prerelease_sort_key(parsed),
    }


def _of_skill(skill: Skill) -> Row:
    """What a search looks into: name and description, each with single spaces."""
    texts = [" ".join(text.split()) for text in (skill.name, skill.description or "")]
    return {"search_text": " ".join(filter(None, texts))}


def _categories_of(issue: Issue) -> Iterator[tuple[str, Row]]:
    """A row for each category of an issue, without regard to case."""
    found = _meaning(issue.categories) if isinstance(issue.categories, str) else None
    texts = [text for text in found if isinstance(text, str) and "\0" not in text] if isinstance(found, list) else []
    for digest, category in {hashlib.sha256(text.strip().lower().encode()).hexdigest(): text for text in texts}.items():
        yield "issue_categories", {"issue_id": issue.issue_id, "category_hash": digest, "category": category}


def _of_trace(trace: Trace) -> Row:
    """The columns that stand for a name, a session, numbers of tokens and costs."""
    tags, metadata = _texts(trace.tags), _texts(trace.trace_metadata)
    row: Row = {"trace_name": tags.get(NAME_TAG), "session_id": metadata.get(SESSION_KEY), "db_payload_generation": 0}
    row |= _numbers(metadata.get(TOKENS_KEY), TOKENS, _token_count)
    return row | _numbers(metadata.get(COST_KEY), COSTS, _finite)


def as_columns_show(trace: Trace) -> tuple[Trace, list[str]]:
    """The trace as it reads back from columns, and what of it they cannot hold, a sentence each."""
    fields: dict[str, Any] = {"tags": trace.tags, "trace_metadata": trace.trace_metadata}
    complete_trace(fields, _of_trace(trace))
    shown = msgspec.structs.replace(trace, trace_metadata=fields["trace_metadata"])
    there = _texts(shown.trace_metadata)
    lost = [
        f"the metadata {pair.key!r} is not kept whole: its columns hold {what}"
        for pair in trace.trace_metadata
        for key, what in ((TOKENS_KEY, "whole numbers of known names"), (COST_KEY, "finite numbers of known names"))
        if pair.key == key and _meaning(there.get(key)) != _meaning(pair.value)
    ]
    return shown, lost


def _meaning(text: str | None) -> Any:
    """What JSON says; what is none, which a source may hold and a target gets as it is, says its text."""
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text


def _texts(pairs: tuple[KeyValue, ...]) -> dict[str, str]:
    return {pair.key: pair.value for pair in pairs}


def _numbers(text: str | None, columns: tuple[str, ...], convert: Callable[[Any], Any]) -> Row:
    try:
        members = json.loads(text) if text is not None else {}
    except ValueError:
        members = {}
    members = members if isinstance(members, dict) else {}
    return {column: convert(members.get(column)) for column in columns}


def _finite(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _token_count(value: Any) -> int | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    whole = number.is_finite() and number == number.to_integral_value() and -_INT64 <= number < _INT64
    return int(number) if whole else None


def _of_assessment(trace: Record, one: Assessment) -> Row:
    assert isinstance(trace, Trace)
    value, numeric = _aggregate(_meaning(one.value) if isinstance(one.value, str) else None)
    return {
        "experiment_id": trace.experiment_id,
        "trace_timestamp_ms": trace.request_time,
        "aggregate_value": value,
        "is_numeric_value": numeric,
    }


def _aggregate(value: Any) -> tuple[float | None, bool]:
    """What charts show of a judgement, and whether it is a number."""
    if isinstance(value, bool):
        return float(value), False
    if isinstance(value, int | float):
        number = _finite(value)
        return number, number is not None
    if isinstance(value, str) and value.strip().lower() in ("yes", "no"):
        return (1.0 if value.strip().lower() == "yes" else 0.0), False
    return None, False


def scorer_id_of(experiment_id: str, name: str) -> str:
    """An id for a scorer that has none in the archive: servers before 3.9 do not tell it."""
    return _digits("scorer", experiment_id, name)


def _of_online(scorer: Record, one: OnlineScoring) -> Row:
    assert isinstance(scorer, Scorer)
    identity = one.online_scoring_config_id or _digits(str(scorer.scorer_id), str(one.filter_string))
    return {"experiment_id": scorer.experiment_id, "online_scoring_config_id": identity}


def _of_guardrail(guardrail: Record, _: GuardrailConfig) -> Row:
    assert isinstance(guardrail, Guardrail)
    return {"workspace": guardrail.workspace}


def _in_experiment(model: Record, _: Any) -> Row:
    assert isinstance(model, LoggedModel | GatewayEndpoint)
    return {"experiment_id": model.experiment_id}


#: What the table of a kind has beside the fields of its record.
DERIVED: Final[Mapping[str, Callable[[Any], Row]]] = {
    "dataset_record": _of_record,
    "review_queue": _of_queue,
    "mcp_server_version": _of_mcp_version,
    "skill": _of_skill,
    "trace": _of_trace,
}
#: Rows of further tables, which hold nothing but what the record of a kind says.
DERIVED_ROWS: Final[Mapping[str, Callable[[Any], Iterator[tuple[str, Row]]]]] = {"issue": _categories_of}
#: The same of the tables of children, by table.
DERIVED_OF_CHILDREN: Final[Mapping[str, Callable[[Any, Any], Row]]] = {
    "assessments": _of_assessment,
    "online_scoring_configs": _of_online,
    "guardrail_configs": _of_guardrail,
    "logged_model_params": _in_experiment,
    "logged_model_tags": _in_experiment,
}
