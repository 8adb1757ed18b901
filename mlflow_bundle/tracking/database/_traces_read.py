"""What of traces is in columns of their own: names, sessions, tokens and costs, which every API shows as tags and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from mlflow_bundle.entities import KeyValue
from mlflow_bundle.tracking.database._entities import Form

__all__ = [
    "COSTS",
    "COST_KEY",
    "EXTRA_COLUMNS",
    "LOCATION_TAGS",
    "NAME_TAG",
    "SESSION_KEY",
    "TOKENS",
    "TOKENS_KEY",
    "complete_trace",
]

#: Tags that say where a trace keeps things, by the field of the record.
LOCATION_TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "artifact_uri": "mlflow.artifactLocation",
        "spans_location": "mlflow.trace.spansLocation",
        "archive_location": "mlflow.trace.archiveLocation",
    }
)
NAME_TAG: Final = "mlflow.traceName"
SESSION_KEY: Final = "mlflow.trace.session"
TOKENS_KEY: Final = "mlflow.trace.tokenUsage"
COST_KEY: Final = "mlflow.trace.cost"
#: Columns of ``trace_info`` in the order of the members of the metadata that shows them.
TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation_input_tokens_above_1hr",
)
COSTS: Final = ("input_cost", "output_cost", "total_cost")
EXTRA_COLUMNS: Final[Mapping[str, Form]] = MappingProxyType(
    {"trace_name": "text", "session_id": "text", **dict.fromkeys(TOKENS, "integer"), **dict.fromkeys(COSTS, "decimal")}
)


def complete_trace(fields: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Show the columns as tags and metadata, as MLflow's own entities do, and lift the location tags into fields."""
    tags: dict[str, KeyValue] = {tag.key: tag for tag in fields["tags"]}
    metadata: dict[str, KeyValue] = {entry.key: entry for entry in fields["trace_metadata"]}
    if "trace_name" in extra:
        tags.pop(NAME_TAG, None)
        for key in (SESSION_KEY, TOKENS_KEY, COST_KEY):
            metadata.pop(key, None)
    if (name := extra.get("trace_name")) is not None:
        tags[NAME_TAG] = KeyValue(key=NAME_TAG, value=name)
    shown = ((SESSION_KEY, extra.get("session_id")), (TOKENS_KEY, _members(extra, TOKENS)), (COST_KEY, _members(extra, COSTS)))
    for key, value in shown:
        if value is not None:
            metadata[key] = KeyValue(key=key, value=value)
    for field, key in LOCATION_TAGS.items():
        if key in tags:
            fields[field] = tags.pop(key).value
    fields["tags"] = _sorted(tags)
    fields["trace_metadata"] = _sorted(metadata)


def _members(extra: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    if extra.keys().isdisjoint(columns):
        return None
    members = {column: value for column in columns if (value := extra.get(column)) is not None}
    return json.dumps(members) if members else None


def _sorted(pairs: Mapping[str, KeyValue]) -> tuple[KeyValue, ...]:
    return tuple(map(pairs.__getitem__, sorted(pairs)))  # by code points, which is by UTF-8 bytes
