"""Traces with their assessments and links."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET

from mlflow_bundle.entities._base import Document, Json, KeyValue, Milliseconds, Record, Text

__all__ = ["Assessment", "PromptLink", "Trace"]


class Assessment(Document, frozen=True):
    """A judgement of a trace or a span. ``value`` and ``error`` are JSON texts; ``run_id`` is in no REST API."""

    assessment_id: str
    assessment_name: str
    assessment_type: Literal["feedback", "expectation", "issue"]
    value: Json = UNSET
    error: Json = UNSET
    source_type: Text = UNSET
    source_id: Text = UNSET
    create_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    rationale: Text = UNSET
    span_id: Text = UNSET
    run_id: Text = UNSET
    overrides: Text = UNSET
    valid: bool = True
    metadata: tuple[KeyValue, ...] = ()


class PromptLink(Document, frozen=True):
    """A prompt version that a trace used; the version as MLflow's association spells it."""

    name: str
    version: str


class Trace(Record, frozen=True, tag="trace"):
    """A trace without its spans and files, which are tables. ``execution_duration`` is in milliseconds.

    ``artifact_uri``, ``spans_location`` and ``archive_location`` say where the source keeps things. MLflow has them as the tags
    ``mlflow.artifactLocation``, ``mlflow.trace.spansLocation`` and ``mlflow.trace.archiveLocation``; they are not in ``tags``.
    """

    trace_id: str
    experiment_id: str
    request_time: Milliseconds = UNSET
    execution_duration: Milliseconds = UNSET
    state: Text = UNSET
    client_request_id: Text = UNSET
    request_preview: Text = UNSET
    response_preview: Text = UNSET
    artifact_uri: Text = UNSET
    spans_location: Text = UNSET
    archive_location: Text = UNSET
    tags: tuple[KeyValue, ...] = ()
    trace_metadata: tuple[KeyValue, ...] = ()
    assessments: tuple[Assessment, ...] = ()
    run_ids: tuple[str, ...] = ()
    prompts: tuple[PromptLink, ...] = ()
