"""Configuration of the gateway, without any secret: its models, endpoints, budgets and guardrails."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from mlflow_bundle.entities._base import Decimal, Document, Flag, Json, KeyValue, Milliseconds, Record, Text

__all__ = [
    "BudgetPolicy",
    "GatewayBinding",
    "GatewayEndpoint",
    "GatewayModelDefinition",
    "GatewayModelMapping",
    "GatewaySecret",
    "Guardrail",
    "GuardrailConfig",
]


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
