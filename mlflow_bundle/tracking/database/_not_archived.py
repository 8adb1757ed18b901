"""What of MLflow's database no bundle holds: tables and columns that are left out on purpose, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["NOT_ARCHIVED"]

_ROLLUP: Final = "derived from traces; MLflow rebuilds it"
_JOB: Final = "state of a running server; means nothing elsewhere"
_HIDDEN: Final = "a secret"

#: By ``table`` or ``table.column``. A test compares this with the schema of the installed MLflow.
NOT_ARCHIVED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "alembic_version": "the revision of the schema; the snapshot names it as the version of its source",
        "jobs": _JOB,
        "job_locks": _JOB,
        "scheduler_leases": _JOB,
        "span_metrics": "derived from spans; moved into columns by MLflow 3.17",
        "trace_metrics": "derived from traces; moved into columns by MLflow 3.17",
        "sql_assessment_daily_rollups": _ROLLUP,
        "sql_span_cost_daily_rollups": _ROLLUP,
        "sql_trace_metric_daily_rollups": _ROLLUP,
        "sql_trace_rollup_rebuild_queue": _ROLLUP,
        "latest_metrics": "the last point of each series; made again from the points",
        "secrets.encrypted_value": _HIDDEN,
        "secrets.wrapped_dek": _HIDDEN,
        "secrets.kek_version": _HIDDEN,
        "secrets.masked_value": "parts of a secret",
        "secrets.auth_config": "may hold parts of a credential",
        "webhooks.secret": _HIDDEN,
        "trace_info.db_payload_generation": "a counter of the server against concurrent writes",
        "spans.duration_ns": "computed by the database",
        "spans.experiment_id": "that of the trace",
        "assessments.experiment_id": "that of the trace",
        "assessments.trace_timestamp_ms": "that of the trace",
        "assessments.aggregate_value": "derived from the value",
        "assessments.is_numeric_value": "derived from the value",
        "evaluation_dataset_records.input_hash": "derived from the inputs",
        "review_queues.name_key": "derived from the name",
        "mcp_server_versions.version_major": "derived from the version",
        "mcp_server_versions.version_minor": "derived from the version",
        "mcp_server_versions.version_patch": "derived from the version",
        "mcp_server_versions.version_prerelease_sort_key": "derived from the version",
        "skills.search_text": "derived from name and description",
        "issue_categories": "derived from the categories of issues",
        "entity_associations.association_id": "a random number of the association",
        "entity_associations.created_time": "when the link was made; no API shows it",
        "datasets.dataset_uuid": "a random number; name and digest tell datasets apart",
        "inputs.input_uuid": "a random number of the link",
        "logged_model_metrics.dataset_uuid": "a random number; name and digest tell datasets apart",
        "online_scoring_configs.experiment_id": "that of the scorer",
        "guardrail_configs.workspace": "that of the guardrail",
        "logged_model_params.experiment_id": "that of the model",
        "logged_model_tags.experiment_id": "that of the model",
    }
)
