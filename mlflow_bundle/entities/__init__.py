"""What MLflow holds, one record class per kind of entity, field names as in its REST API (spec/v1.md, 4).

Records are frozen values. A field that the source does not offer is absent (``UNSET``), never invented. Times are
integer milliseconds since 1970 in UTC, versions are integers. No field holds a float: numbers with a fraction are
``Decimal`` texts (the shortest that reads back as the same double), and a user's own JSON stays the ``Json`` text that it was.
Lists of tags, params and aliases are sorted by key, lists of links by what they name.
"""

from __future__ import annotations

from mlflow_bundle.entities._base import Document, KeyValue, Record
from mlflow_bundle.entities._evaluation import DatasetRecord, EvaluationDataset, OnlineScoring, Scorer, ScorerVersion
from mlflow_bundle.entities._gateway import (
    BudgetPolicy,
    GatewayBinding,
    GatewayEndpoint,
    GatewayModelDefinition,
    GatewayModelMapping,
    GatewaySecret,
    Guardrail,
    GuardrailConfig,
)
from mlflow_bundle.entities._mcp import McpAccessEndpoint, McpAlias, McpServer, McpServerVersion
from mlflow_bundle.entities._models import Alias, LoggedModel, ModelVersion, RegisteredModel
from mlflow_bundle.entities._review import Issue, LabelSchema, ReviewItem, ReviewQueue
from mlflow_bundle.entities._runs import Dataset, DatasetInput, Experiment, ModelInput, ModelOutput, Run
from mlflow_bundle.entities._server import Webhook, WebhookEvent, Workspace
from mlflow_bundle.entities._skills import Skill, SkillVersion
from mlflow_bundle.entities._traces import Assessment, PromptLink, Trace

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
    "Skill",
    "SkillVersion",
    "Trace",
    "Webhook",
    "WebhookEvent",
    "Workspace",
]
