"""Which tables and columns of MLflow's database hold which record, for reader and writer alike.

A kind is a row of ``ENTITIES``: its table, the columns of its fields, and the tables of what it has several of. Columns that a
schema lacks are absent fields. What is left out on purpose stands in ``_not_archived`` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from mlflow_bundle import entities as e

__all__ = ["CHILD_FORMS", "ENTITIES", "LOGGED_MODEL_STATUS", "Child", "Entity", "Form"]

#: How a value is stored: as text (JSON texts too), integer, truth value, or a double that a record keeps as text.
Form = Literal["text", "integer", "flag", "decimal"]


class Child(msgspec.Struct, frozen=True):
    """A table with several rows an entity, which fill the tuple ``field``.

    ``link`` maps columns of this table to the columns of the entity's table that they equal. ``columns`` maps members of
    ``type`` to columns; without a ``type`` the only column gives plain texts. Rows are in the order of the ``columns`` named in
    ``order``. ``constants`` are columns that tell these rows from others of the same table.
    """

    field: str
    table: str
    link: Mapping[str, str]
    columns: Mapping[str, str]
    type: type[e.Document] | None
    order: tuple[str, ...]
    constants: Mapping[str, str] = MappingProxyType({})


class Entity(msgspec.Struct, frozen=True):
    """The table of a kind. ``key`` are the columns of its primary key, ``created`` the one that orders it.

    ``columns`` maps fields to columns where the names differ; all other fields have a column of their name. ``ids`` are
    fields whose column is a number and whose value is text, as experiment ids are.
    """

    kind: str
    type: type[e.Record]
    table: str
    key: tuple[str, ...]
    created: str = ""
    columns: Mapping[str, str] = MappingProxyType({})
    forms: Mapping[str, Form] = MappingProxyType({})
    ids: tuple[str, ...] = ()
    children: tuple[Child, ...] = ()

    @property
    def fields(self) -> dict[str, str]:
        """The columns of all fields that this table has itself."""
        several = {child.field for child in self.children}
        names = [name for name in self.type.__struct_fields__ if name not in several]
        return {name: self.columns.get(name, name) for name in names if self.columns.get(name, name)}


def _pairs(field: str, table: str, link: Mapping[str, str], *, key: str = "key", value: str = "value") -> Child:
    return Child(field, table, link, {"key": key, "value": value}, e.KeyValue, ("key",))


_IN_WORKSPACE: Final = {"workspace": "workspace", "name": "name"}
_IN_ORGANIZATION: Final = {"workspace": "workspace", "organization": "organization", "name": "name"}
#: MLflow keeps a number where its API has a name.
LOGGED_MODEL_STATUS: Final[Mapping[int, str]] = MappingProxyType({0: "UNSPECIFIED", 1: "PENDING", 2: "READY", 3: "FAILED"})

ENTITIES: Final[Mapping[str, Entity]] = MappingProxyType(
    {
        entity.kind: entity
        for entity in (
            Entity("workspace", e.Workspace, "workspaces", ("name",)),
            Entity(
                "logged_model",
                e.LoggedModel,
                "logged_models",
                ("model_id",),
                "creation_timestamp_ms",
                columns={"artifact_uri": "artifact_location"},
                forms={"creation_timestamp_ms": "integer", "last_updated_timestamp_ms": "integer", "status": "integer"},
                ids=("experiment_id",),
                children=(
                    _pairs("params", "logged_model_params", {"model_id": "model_id"}, key="param_key", value="param_value"),
                    _pairs("tags", "logged_model_tags", {"model_id": "model_id"}, key="tag_key", value="tag_value"),
                ),
            ),
            Entity(
                "registered_model",
                e.RegisteredModel,
                "registered_models",
                ("workspace", "name"),
                "creation_time",
                columns={"creation_timestamp": "creation_time", "last_updated_timestamp": "last_updated_time"},
                forms={"creation_timestamp": "integer", "last_updated_timestamp": "integer"},
                children=(
                    _pairs("tags", "registered_model_tags", _IN_WORKSPACE),
                    Child(
                        "aliases",
                        "registered_model_aliases",
                        _IN_WORKSPACE,
                        {"alias": "alias", "version": "version"},
                        e.Alias,
                        ("alias",),
                    ),
                ),
            ),
            Entity(
                "model_version",
                e.ModelVersion,
                "model_versions",
                ("workspace", "name", "version"),
                "creation_time",
                columns={"creation_timestamp": "creation_time", "last_updated_timestamp": "last_updated_time"},
                forms={"creation_timestamp": "integer", "last_updated_timestamp": "integer", "version": "integer"},
                children=(_pairs("tags", "model_version_tags", {**_IN_WORKSPACE, "version": "version"}),),
            ),
            Entity(
                "issue",
                e.Issue,
                "issues",
                ("issue_id",),
                "created_timestamp",
                forms={
                    "created_timestamp": "integer",
                    "last_updated_timestamp": "integer",
                    "last_seen_timestamp": "integer",
                },
                ids=("experiment_id",),
            ),
            Entity(
                "trace",
                e.Trace,
                "trace_info",
                ("request_id",),
                "timestamp_ms",
                columns={
                    "trace_id": "request_id",
                    "request_time": "timestamp_ms",
                    "execution_duration": "execution_time_ms",
                    "state": "status",
                    "artifact_uri": "",
                    "spans_location": "",
                    "archive_location": "",
                },
                forms={"request_time": "integer", "execution_duration": "integer"},
                ids=("experiment_id",),
                children=(
                    _pairs("tags", "trace_tags", {"request_id": "request_id"}),
                    _pairs("trace_metadata", "trace_request_metadata", {"request_id": "request_id"}),
                    Child(
                        "assessments",
                        "assessments",
                        {"trace_id": "request_id"},
                        {
                            "assessment_id": "assessment_id",
                            "assessment_name": "name",
                            "assessment_type": "assessment_type",
                            "value": "value",
                            "error": "error",
                            "source_type": "source_type",
                            "source_id": "source_id",
                            "create_time": "created_timestamp",
                            "last_update_time": "last_updated_timestamp",
                            "rationale": "rationale",
                            "span_id": "span_id",
                            "run_id": "run_id",
                            "overrides": "overrides",
                            "valid": "valid",
                            "metadata": "assessment_metadata",
                        },
                        e.Assessment,
                        ("create_time", "assessment_id"),
                    ),
                    Child(
                        "run_ids",
                        "entity_associations",
                        {"source_id": "request_id"},
                        {"": "destination_id"},
                        None,
                        ("",),
                        {"source_type": "trace", "destination_type": "run"},
                    ),
                    Child(
                        "prompts",
                        "entity_associations",
                        {"source_id": "request_id"},
                        {"": "destination_id"},
                        None,
                        ("",),
                        {"source_type": "trace", "destination_type": "prompt_version"},
                    ),
                ),
            ),
            Entity(
                "evaluation_dataset",
                e.EvaluationDataset,
                "evaluation_datasets",
                ("dataset_id",),
                "created_time",
                forms={"created_time": "integer", "last_update_time": "integer"},
                children=(
                    _pairs("tags", "evaluation_dataset_tags", {"dataset_id": "dataset_id"}),
                    Child(
                        "experiment_ids",
                        "entity_associations",
                        {"source_id": "dataset_id"},
                        {"": "destination_id"},
                        None,
                        ("",),
                        {"source_type": "evaluation_dataset", "destination_type": "experiment"},
                    ),
                ),
            ),
            Entity(
                "dataset_record",
                e.DatasetRecord,
                "evaluation_dataset_records",
                ("dataset_record_id",),
                "created_time",
                forms={"created_time": "integer", "last_update_time": "integer"},
            ),
            Entity(
                "scorer",
                e.Scorer,
                "scorers",
                ("scorer_id",),
                ids=("experiment_id",),
                children=(
                    Child(
                        "versions",
                        "scorer_versions",
                        {"scorer_id": "scorer_id"},
                        {
                            "scorer_version": "scorer_version",
                            "serialized_scorer": "serialized_scorer",
                            "creation_time": "creation_time",
                        },
                        e.ScorerVersion,
                        ("scorer_version",),
                    ),
                    Child(
                        "online",
                        "online_scoring_configs",
                        {"scorer_id": "scorer_id"},
                        {
                            "online_scoring_config_id": "online_scoring_config_id",
                            "sample_rate": "sample_rate",
                            "filter_string": "filter_string",
                        },
                        e.OnlineScoring,
                        ("online_scoring_config_id",),
                    ),
                ),
            ),
            Entity(
                "label_schema",
                e.LabelSchema,
                "label_schemas",
                ("schema_id",),
                "created_time",
                forms={
                    "created_time": "integer",
                    "last_update_time": "integer",
                    "enable_comment": "flag",
                    "is_default": "flag",
                },
                ids=("experiment_id",),
            ),
            Entity(
                "review_queue",
                e.ReviewQueue,
                "review_queues",
                ("queue_id",),
                "creation_time_ms",
                forms={"creation_time_ms": "integer", "last_update_time_ms": "integer"},
                ids=("experiment_id",),
                children=(
                    Child("users", "review_queue_users", {"queue_id": "queue_id"}, {"": "user_id"}, None, ("",)),
                    Child("schema_ids", "review_queue_label_schemas", {"queue_id": "queue_id"}, {"": "schema_id"}, None, ("",)),
                    Child(
                        "items",
                        "review_queue_items",
                        {"queue_id": "queue_id"},
                        {name: name for name in e.ReviewItem.__struct_fields__},
                        e.ReviewItem,
                        ("creation_time_ms", "item_id"),
                    ),
                ),
            ),
            Entity(
                "webhook",
                e.Webhook,
                "webhooks",
                ("webhook_id",),
                "creation_timestamp",
                forms=dict.fromkeys(("creation_timestamp", "last_updated_timestamp", "deleted_timestamp"), "integer"),
                children=(
                    Child(
                        "events",
                        "webhook_events",
                        {"webhook_id": "webhook_id"},
                        {"entity": "entity", "action": "action"},
                        e.WebhookEvent,
                        ("entity", "action"),
                    ),
                ),
            ),
            Entity(
                "gateway_secret",
                e.GatewaySecret,
                "secrets",
                ("secret_id",),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer"},
            ),
            Entity(
                "gateway_model_definition",
                e.GatewayModelDefinition,
                "model_definitions",
                ("model_definition_id",),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer"},
            ),
            Entity(
                "gateway_endpoint",
                e.GatewayEndpoint,
                "endpoints",
                ("endpoint_id",),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer", "usage_tracking": "flag"},
                ids=("experiment_id",),
                children=(
                    _pairs("tags", "endpoint_tags", {"endpoint_id": "endpoint_id"}),
                    Child(
                        "model_mappings",
                        "endpoint_model_mappings",
                        {"endpoint_id": "endpoint_id"},
                        {name: name for name in e.GatewayModelMapping.__struct_fields__},
                        e.GatewayModelMapping,
                        ("mapping_id",),
                    ),
                    Child(
                        "bindings",
                        "endpoint_bindings",
                        {"endpoint_id": "endpoint_id"},
                        {name: name for name in e.GatewayBinding.__struct_fields__},
                        e.GatewayBinding,
                        ("resource_type", "resource_id"),
                    ),
                ),
            ),
            Entity(
                "budget_policy",
                e.BudgetPolicy,
                "budget_policies",
                ("budget_policy_id",),
                "created_at",
                forms={
                    "created_at": "integer",
                    "last_updated_at": "integer",
                    "duration_value": "integer",
                    "budget_amount": "decimal",
                },
            ),
            Entity(
                "guardrail",
                e.Guardrail,
                "guardrails",
                ("guardrail_id",),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer", "scorer_version": "integer"},
                children=(
                    Child(
                        "configs",
                        "guardrail_configs",
                        {"guardrail_id": "guardrail_id"},
                        {name: name for name in e.GuardrailConfig.__struct_fields__},
                        e.GuardrailConfig,
                        ("endpoint_id",),
                    ),
                ),
            ),
            Entity(
                "mcp_server",
                e.McpServer,
                "mcp_servers",
                ("workspace", "name"),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer"},
                children=(
                    _pairs("tags", "mcp_server_tags", _IN_WORKSPACE),
                    Child(
                        "aliases",
                        "mcp_server_aliases",
                        _IN_WORKSPACE,
                        {"alias": "alias", "version": "version"},
                        e.McpAlias,
                        ("alias",),
                    ),
                ),
            ),
            Entity(
                "mcp_server_version",
                e.McpServerVersion,
                "mcp_server_versions",
                ("workspace", "name", "version"),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer"},
                children=(_pairs("tags", "mcp_server_version_tags", {**_IN_WORKSPACE, "version": "version"}),),
            ),
            Entity(
                "mcp_access_endpoint",
                e.McpAccessEndpoint,
                "mcp_access_endpoints",
                ("id",),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer"},
            ),
            Entity(
                "skill",
                e.Skill,
                "skills",
                ("workspace", "organization", "name"),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer"},
                children=(
                    _pairs("tags", "skill_tags", _IN_ORGANIZATION),
                    Child(
                        "aliases",
                        "skill_aliases",
                        _IN_ORGANIZATION,
                        {"alias": "alias", "version": "version"},
                        e.Alias,
                        ("alias",),
                    ),
                ),
            ),
            Entity(
                "skill_version",
                e.SkillVersion,
                "skill_versions",
                ("workspace", "organization", "name", "version"),
                "created_at",
                forms={"created_at": "integer", "last_updated_at": "integer", "version": "integer"},
                children=(_pairs("tags", "skill_version_tags", {**_IN_ORGANIZATION, "version": "version"}),),
            ),
        )
    }
)

#: Forms of the members of children that are no texts.
CHILD_FORMS: Final[Mapping[tuple[str, str], Form]] = MappingProxyType(
    {
        ("registered_model_aliases", "version"): "integer",
        ("skill_aliases", "version"): "integer",
        ("scorer_versions", "scorer_version"): "integer",
        ("scorer_versions", "creation_time"): "integer",
        ("online_scoring_configs", "sample_rate"): "decimal",
        ("assessments", "create_time"): "integer",
        ("assessments", "last_update_time"): "integer",
        ("assessments", "valid"): "flag",
        ("review_queue_items", "completed_time_ms"): "integer",
        ("review_queue_items", "creation_time_ms"): "integer",
        ("review_queue_items", "last_update_time_ms"): "integer",
        ("endpoint_model_mappings", "weight"): "decimal",
        ("endpoint_model_mappings", "fallback_order"): "integer",
        ("endpoint_model_mappings", "created_at"): "integer",
        ("endpoint_bindings", "created_at"): "integer",
        ("endpoint_bindings", "last_updated_at"): "integer",
        ("guardrail_configs", "execution_order"): "integer",
        ("guardrail_configs", "created_at"): "integer",
    }
)
