"""What MLflow holds, one record class per kind of entity, field names as in its REST API (spec/v1.md, 4).

Records are frozen values. A field that the source does not offer is absent (``UNSET``), never invented. Times are
integer milliseconds since 1970 in UTC, versions are integers. No field holds a float: numbers with a fraction are
``Decimal`` texts (the shortest that reads back as the same double), and a user's own JSON stays the ``Json`` text that it was.
Lists of tags, params and aliases are sorted by key, lists of links by what they name.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from mlflow_bundle._html import Shown

__all__ = [
    "Alias",
    "Assessment",
    "BudgetPolicy",
    "Dataset",
    "DatasetInput",
    "DatasetRecord",
    "Document",
    "EvaluationDataset",
    "Experiment",
    "GatewayBinding",
    "GatewayEndpoint",
    "GatewayModelDefinition",
    "GatewayModelMapping",
    "GatewaySecret",
    "Guardrail",
    "GuardrailConfig",
    "Issue",
    "KeyValue",
    "LabelSchema",
    "LoggedModel",
    "McpAccessEndpoint",
    "McpAlias",
    "McpServer",
    "McpServerVersion",
    "ModelInput",
    "ModelOutput",
    "ModelVersion",
    "OnlineScoring",
    "PromptLink",
    "Record",
    "RegisteredModel",
    "ReviewItem",
    "ReviewQueue",
    "Run",
    "Scorer",
    "ScorerVersion",
    "Trace",
    "Webhook",
    "WebhookEvent",
    "Workspace",
]

Text = str | UnsetType
Milliseconds = int | UnsetType
Decimal = str | UnsetType
Json = str | UnsetType
Flag = bool | UnsetType
Stage = Literal["active", "deleted"]


class Document(Shown, msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object. Readers ignore fields that they do not know."""


class KeyValue(Document, frozen=True):
    """One tag or one param."""

    key: str
    value: str


class Record(Document, frozen=True, tag_field="kind"):
    """Base of all entities that a bundle keeps, one JSON line each."""


# -- workspaces, experiments, runs -------------------------------------------------------------------------------------


class Workspace(Record, frozen=True, tag="workspace"):
    """A workspace of a server that has several."""

    name: str
    description: Text = UNSET
    default_artifact_root: Text = UNSET
    trace_archival_location: Text = UNSET
    trace_archival_retention: Text = UNSET


class Experiment(Record, frozen=True, tag="experiment"):
    """An experiment (spec/v1.md, 4.2)."""

    experiment_id: str
    name: str
    lifecycle_stage: Stage = "active"
    artifact_location: Text = UNSET
    creation_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    workspace: Text = UNSET
    tags: tuple[KeyValue, ...] = ()


class Dataset(Document, frozen=True):
    """A dataset that a run read. ``source``, ``schema`` and ``profile`` are the original texts."""

    name: str
    digest: str
    source_type: Text = UNSET
    source: Text = UNSET
    schema: Text = UNSET
    profile: Text = UNSET


class DatasetInput(Document, frozen=True):
    """A dataset input of a run with its tags, in MLflow's ``inputs.dataset_inputs``."""

    dataset: Dataset
    tags: tuple[KeyValue, ...] = ()


class ModelInput(Document, frozen=True):
    """A logged model that a run read."""

    model_id: str


class ModelOutput(Document, frozen=True):
    """A logged model that a run made, and at which step."""

    model_id: str
    step: int = 0


class Run(Record, frozen=True, tag="run"):
    """A run without its metrics and files, which are tables (spec/v1.md, 4.3).

    ``deleted_time``, ``source_type``, ``source_name``, ``entry_point_name`` and ``source_version`` are columns of MLflow's
    database that no REST API returns: only a database or a file store offers them.
    """

    run_id: str
    experiment_id: str
    run_name: Text = UNSET
    user_id: Text = UNSET
    status: Text = UNSET
    start_time: Milliseconds = UNSET
    end_time: Milliseconds = UNSET
    deleted_time: Milliseconds = UNSET
    lifecycle_stage: Stage = "active"
    artifact_uri: Text = UNSET
    source_type: Text = UNSET
    source_name: Text = UNSET
    entry_point_name: Text = UNSET
    source_version: Text = UNSET
    params: tuple[KeyValue, ...] = ()
    tags: tuple[KeyValue, ...] = ()
    inputs: tuple[DatasetInput, ...] = ()
    model_inputs: tuple[ModelInput, ...] = ()
    model_outputs: tuple[ModelOutput, ...] = ()


# -- models and prompts ------------------------------------------------------------------------------------------------


class LoggedModel(Record, frozen=True, tag="logged_model"):
    """A logged model without its metrics and files, which are tables. ``status`` is MLflow's name, as ``READY``."""

    model_id: str
    experiment_id: str
    name: str
    artifact_uri: Text = UNSET
    creation_timestamp_ms: Milliseconds = UNSET
    last_updated_timestamp_ms: Milliseconds = UNSET
    status: Text = UNSET
    status_message: Text = UNSET
    lifecycle_stage: Stage = "active"
    model_type: Text = UNSET
    source_run_id: Text = UNSET
    params: tuple[KeyValue, ...] = ()
    tags: tuple[KeyValue, ...] = ()


class Alias(Document, frozen=True):
    """A name for a version of a registered model or prompt."""

    alias: str
    version: int


class RegisteredModel(Record, frozen=True, tag="registered_model"):
    """A registered model, or a prompt: MLflow tells them apart by the tag ``mlflow.prompt.is_prompt``."""

    name: str
    workspace: Text = UNSET
    creation_timestamp: Milliseconds = UNSET
    last_updated_timestamp: Milliseconds = UNSET
    description: Text = UNSET
    tags: tuple[KeyValue, ...] = ()
    aliases: tuple[Alias, ...] = ()


class ModelVersion(Record, frozen=True, tag="model_version"):
    """A version of a registered model or of a prompt, whose template is a tag.

    A database keeps deleted versions with ``current_stage`` ``Deleted_Internal``: they fix the numbering. Its own files (a
    source outside of the artifacts of any run and logged model) are in the files table.
    """

    name: str
    version: int
    workspace: Text = UNSET
    creation_timestamp: Milliseconds = UNSET
    last_updated_timestamp: Milliseconds = UNSET
    user_id: Text = UNSET
    current_stage: Text = UNSET
    description: Text = UNSET
    source: Text = UNSET
    storage_location: Text = UNSET
    run_id: Text = UNSET
    run_link: Text = UNSET
    status: Text = UNSET
    status_message: Text = UNSET
    tags: tuple[KeyValue, ...] = ()


# -- traces ------------------------------------------------------------------------------------------------------------


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


# -- evaluation and review ---------------------------------------------------------------------------------------------


class EvaluationDataset(Record, frozen=True, tag="evaluation_dataset"):
    """An evaluation dataset and the experiments that it is linked to. Its rows are ``dataset_record`` records."""

    dataset_id: str
    name: str
    workspace: Text = UNSET
    schema: Json = UNSET
    profile: Json = UNSET
    digest: Text = UNSET
    created_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    created_by: Text = UNSET
    last_updated_by: Text = UNSET
    tags: tuple[KeyValue, ...] = ()
    experiment_ids: tuple[str, ...] = ()


class DatasetRecord(Record, frozen=True, tag="dataset_record"):
    """A row of an evaluation dataset. Inputs, outputs, expectations, tags and source are JSON texts; ``null`` is a value."""

    dataset_record_id: str
    dataset_id: str
    inputs: Json = UNSET
    outputs: Json = UNSET
    expectations: Json = UNSET
    tags: Json = UNSET
    source: Json = UNSET
    source_id: Text = UNSET
    source_type: Text = UNSET
    created_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    created_by: Text = UNSET
    last_updated_by: Text = UNSET


class ScorerVersion(Document, frozen=True):
    """A version of a scorer. ``serialized_scorer`` is the original JSON text; it may hold program code."""

    scorer_version: int
    serialized_scorer: str
    creation_time: Milliseconds = UNSET


class OnlineScoring(Document, frozen=True):
    """How a scorer judges new traces. A restore sets ``sample_rate`` to 0 unless it is told otherwise."""

    online_scoring_config_id: Text = UNSET
    sample_rate: Decimal = UNSET
    filter_string: Text = UNSET


class Scorer(Record, frozen=True, tag="scorer"):
    """A scorer of an experiment with all its versions in ascending order. Servers that hide the id offer none."""

    experiment_id: str
    scorer_name: str
    scorer_id: Text = UNSET
    versions: tuple[ScorerVersion, ...] = ()
    online: tuple[OnlineScoring, ...] = ()


class LabelSchema(Record, frozen=True, tag="label_schema"):
    """A question that reviewers answer."""

    schema_id: str
    experiment_id: str
    name: str
    type: Text = UNSET
    instruction: Text = UNSET
    enable_comment: Flag = UNSET
    input_type: Text = UNSET
    input_config: Json = UNSET
    created_by: Text = UNSET
    created_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    is_default: Flag = UNSET


class ReviewItem(Document, frozen=True):
    """A trace in a review queue."""

    item_type: str
    item_id: str
    status: Text = UNSET
    completed_by: Text = UNSET
    completed_time_ms: Milliseconds = UNSET
    creation_time_ms: Milliseconds = UNSET
    last_update_time_ms: Milliseconds = UNSET


class ReviewQueue(Record, frozen=True, tag="review_queue"):
    """A queue of traces to review, its users, its questions and its items."""

    queue_id: str
    experiment_id: str
    name: str
    queue_type: Text = UNSET
    created_by: Text = UNSET
    creation_time_ms: Milliseconds = UNSET
    last_update_time_ms: Milliseconds = UNSET
    users: tuple[str, ...] = ()
    schema_ids: tuple[str, ...] = ()
    items: tuple[ReviewItem, ...] = ()


class Issue(Record, frozen=True, tag="issue"):
    """A problem found in the traces of an experiment. ``root_causes`` and ``categories`` are JSON texts."""

    issue_id: str
    experiment_id: str
    name: str
    description: Text = UNSET
    status: Text = UNSET
    severity: Text = UNSET
    root_causes: Json = UNSET
    categories: Json = UNSET
    source_run_id: Text = UNSET
    created_timestamp: Milliseconds = UNSET
    last_updated_timestamp: Milliseconds = UNSET
    created_by: Text = UNSET


# -- configuration of a server, without any secret ---------------------------------------------------------------------


class WebhookEvent(Document, frozen=True):
    """What a webhook listens to."""

    entity: str
    action: str


class Webhook(Record, frozen=True, tag="webhook"):
    """A webhook without its secret. A restore disables it."""

    webhook_id: str
    name: str
    url: str
    workspace: Text = UNSET
    description: Text = UNSET
    status: Text = UNSET
    events: tuple[WebhookEvent, ...] = ()
    creation_timestamp: Milliseconds = UNSET
    last_updated_timestamp: Milliseconds = UNSET
    deleted_timestamp: Milliseconds = UNSET


class GatewaySecret(Record, frozen=True, tag="gateway_secret"):
    """That a secret existed, so that it can be typed in again: never its value, encrypted or masked, nor its configuration."""

    secret_id: str
    secret_name: str
    workspace: Text = UNSET
    provider: Text = UNSET
    description: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET


class GatewayModelDefinition(Record, frozen=True, tag="gateway_model_definition"):
    """A model of a provider. ``secret_id`` names a ``gateway_secret``."""

    model_definition_id: str
    name: str
    workspace: Text = UNSET
    secret_id: Text = UNSET
    provider: Text = UNSET
    model_name: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET


class GatewayModelMapping(Document, frozen=True):
    """A model definition behind an endpoint."""

    mapping_id: str
    model_definition_id: str
    weight: Decimal = UNSET
    linkage_type: Text = UNSET
    fallback_order: int | UnsetType = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET


class GatewayBinding(Document, frozen=True):
    """What uses an endpoint."""

    resource_type: str
    resource_id: str
    display_name: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET


class GatewayEndpoint(Record, frozen=True, tag="gateway_endpoint"):
    """An endpoint of the gateway with its models, uses and tags."""

    endpoint_id: str
    name: Text = UNSET
    workspace: Text = UNSET
    routing_strategy: Text = UNSET
    fallback_config_json: Json = UNSET
    experiment_id: Text = UNSET
    usage_tracking: Flag = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
    tags: tuple[KeyValue, ...] = ()
    model_mappings: tuple[GatewayModelMapping, ...] = ()
    bindings: tuple[GatewayBinding, ...] = ()


class BudgetPolicy(Record, frozen=True, tag="budget_policy"):
    """A limit on what the gateway may spend."""

    budget_policy_id: str
    workspace: Text = UNSET
    budget_unit: Text = UNSET
    budget_amount: Decimal = UNSET
    duration_unit: Text = UNSET
    duration_value: int | UnsetType = UNSET
    target_scope: Text = UNSET
    target_value: Text = UNSET
    budget_action: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET


class GuardrailConfig(Document, frozen=True):
    """An endpoint that a guardrail protects."""

    endpoint_id: str
    execution_order: int | UnsetType = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET


class Guardrail(Record, frozen=True, tag="guardrail"):
    """A scorer that watches what goes through the gateway."""

    guardrail_id: str
    name: str
    workspace: Text = UNSET
    scorer_id: Text = UNSET
    scorer_version: int | UnsetType = UNSET
    stage: Text = UNSET
    action: Text = UNSET
    action_endpoint_id: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
    configs: tuple[GuardrailConfig, ...] = ()


class McpAlias(Document, frozen=True):
    """A name for a version of an MCP server."""

    alias: str
    version: str


class McpServer(Record, frozen=True, tag="mcp_server"):
    """An MCP server of the registry. ``icons`` is a JSON text."""

    name: str
    workspace: Text = UNSET
    display_name: Text = UNSET
    description: Text = UNSET
    icons: Json = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
    tags: tuple[KeyValue, ...] = ()
    aliases: tuple[McpAlias, ...] = ()


class McpServerVersion(Record, frozen=True, tag="mcp_server_version"):
    """A version of an MCP server. ``server_json``, ``tools`` and ``connect_options`` are JSON texts."""

    name: str
    version: str
    workspace: Text = UNSET
    server_json: Json = UNSET
    status: Text = UNSET
    tools: Json = UNSET
    source: Text = UNSET
    connect_options: Json = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
    tags: tuple[KeyValue, ...] = ()


class McpAccessEndpoint(Record, frozen=True, tag="mcp_access_endpoint"):
    """Where an MCP server is reached."""

    id: str
    server_name: str
    url: str
    workspace: Text = UNSET
    server_version: Text = UNSET
    server_alias: Text = UNSET
    transport_type: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
