"""The gateway of a server: model definitions, endpoints, budgets and guardrails, bound to secrets that somebody typed in.

A secret is never archived. What needs one is restored where the target has a secret of that name, and is left out, which is
told before the first write, where it has none.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cached_property
from typing import Any, Final

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from mlflow_bundle.entities import (
    BudgetPolicy,
    GatewayBinding,
    GatewayEndpoint,
    GatewayModelDefinition,
    GatewayModelMapping,
    GatewaySecret,
    Guardrail,
    GuardrailConfig,
    KeyValue,
)
from mlflow_bundle.errors import AuthError, NotFoundError
from mlflow_bundle.tracking._port import DIFFERS, SOURCE_TAG_PREFIX, EntityResult, IdMap
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._config_write import Road
from mlflow_bundle.tracking.rest._expected import COMPLETE, RESTORE_TAG, STARTED, keep_earlier
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._listing import decimal
from mlflow_bundle.tracking.rest._road import Server, not_restored, tag_map

__all__ = ["BudgetRoad", "DefinitionRoad", "EndpointRoad", "GuardrailRoad", "SecretRoad"]

_GATEWAY: Final = "gateway/"
_USERS: Final = frozenset({"created_by", "last_updated_by"})
_SCORER: Final = "scorer"
_SOURCE_ID: Final = "mlflow.experiment.sourceId"
#: The endpoint, and the kind and the id of what uses it.
_Binding = tuple[str, str, str]
_KEPT: Final = ("endpoint_id", "workspace", "created_by", "created_at", "last_updated_by", "last_updated_at")


class _GatewayRoad(Road):
    """What says in its requests who made it and who changed it last."""

    path: str
    identifier: str

    def made(self, wanted: Any, member: str, body: dict[str, Any]) -> str:
        """Make the entity, members that are absent left out of the request, and sign it. Returns its id."""
        made = self.make(f"{_GATEWAY}{self.path}/create", _present({**body, "created_by": wanted.created_by}), wanted, api=API3)
        return str(made[member][self.identifier] if isinstance(made, dict) else getattr(made, self.identifier))

    def sign(self, wanted: Any, identity: str, *, last: str | None) -> bool:
        """Say who changed it last, where the target says it is somebody else."""
        if not wanted.last_updated_by or wanted.last_updated_by == last:
            return False
        body = {self.identifier: identity, "updated_by": wanted.last_updated_by}
        self.server.post(f"{_GATEWAY}{self.path}/update", body, api=API3)
        return True

    def complete(self, wanted: Any, found: Any) -> bool:
        # The signature is the last request of a restore: who is only its maker, in everything else the same, lacks it.
        if found.created_by != wanted.created_by or found.last_updated_by != wanted.created_by:
            return False
        return self.sign(wanted, getattr(found, self.identifier), last=found.last_updated_by or None)


class SecretRoad(Road):
    """Secrets: nothing is ever sent. Where the target has one of the same name, that is the one."""

    kind = "gateway_secret"
    given = Road.given | _USERS | {"secret_id", "description"}
    anew = ""
    makes = False

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        #: The names of archived secrets.
        self.names: dict[str, str] = {}

    def key(self, record: GatewaySecret) -> Hashable:
        return record.secret_name

    def expected(self, record: GatewaySecret, ids: IdMap) -> GatewaySecret:  # noqa: ARG002
        self.names[record.secret_id] = record.secret_name
        return record

    def create(self, wanted: GatewaySecret, result: EntityResult) -> None:
        result.action = "left out"
        result.notes.append(f"secrets of the gateway are never archived: type in {wanted.secret_name!r} again")


class DefinitionRoad(_GatewayRoad):
    """Model definitions, each bound to the secret of the target that has the name of the archived one."""

    kind = "gateway_model_definition"
    given = Road.given | {"model_definition_id"}
    essential = frozenset({"secret_id", "provider", "model_name"})
    path, identifier = "model-definitions", "model_definition_id"

    def __init__(self, server: Server, secrets: SecretRoad) -> None:
        super().__init__(server)
        self._secrets = secrets

    def refusal(self, record: GatewayModelDefinition, ids: IdMap) -> str | None:
        if not record.secret_id:
            return "it has no secret, and a server makes none without one"
        if ids.find("gateway_secret", record.secret_id) is not None:
            return None
        name = self._secrets.names.get(record.secret_id)
        if name is None:
            return f"the archive does not say which secret {record.secret_id} is"
        return f"it needs the secret {name!r}, which is never archived: make a secret of this name at the target first"

    def expected(self, record: GatewayModelDefinition, ids: IdMap) -> GatewayModelDefinition:
        return replace(record, secret_id=_needed(ids, "gateway_secret", record.secret_id or "none"))

    def create(self, wanted: GatewayModelDefinition, result: EntityResult) -> None:  # noqa: ARG002
        members = ("name", "secret_id", "provider", "model_name")
        identity = self.made(wanted, "model_definition", {name: getattr(wanted, name) for name in members})
        self.sign(wanted, identity, last=wanted.created_by or None)


class EndpointRoad(_GatewayRoad):
    """Endpoints with their models and tags; what uses them is bound by ``bind``, when scorers are there."""

    kind = "gateway_endpoint"
    given = Road.given | {"endpoint_id", "mapping_id"}
    mild = Road.mild | {"experiment_id"}
    essential = frozenset({"model_mappings", "routing_strategy", "fallback_config_json"})
    anew = ""
    path, identifier = "endpoints", "endpoint_id"

    def __init__(self, server: Server, definitions: DefinitionRoad) -> None:
        super().__init__(server)
        self._definitions = definitions
        self._bindings: list[tuple[EntityResult, str, GatewayBinding, IdMap]] = []
        self._archived: dict[str, tuple[GatewayEndpoint, IdMap]] = {}
        #: The names of archived endpoints.
        self.names: dict[str, str] = {}

    def refusal(self, record: GatewayEndpoint, ids: IdMap) -> str | None:
        if not record.model_mappings:
            return "it has no model, and a server makes none without one"
        kind = self._definitions.kind
        missing = [one.model_definition_id for one in record.model_mappings if ids.find(kind, one.model_definition_id) is None]
        return f"it needs the model definition {missing[0]}, which cannot be restored" if missing else None

    def expected(self, record: GatewayEndpoint, ids: IdMap) -> GatewayEndpoint:
        mappings = [
            replace(one, model_definition_id=_needed(ids, self._definitions.kind, one.model_definition_id))
            for one in record.model_mappings
        ]
        experiment = ids.find("experiment", record.experiment_id) if record.experiment_id else None
        tags = tag_map(record.tags)
        ours = {RESTORE_TAG: COMPLETE, **self.server.source_tags(record, *_KEPT)}
        keep_earlier(tags, ours)
        self._archived[str(record.name)] = record, ids
        self.names[record.endpoint_id] = str(record.name)
        return replace(
            record,
            experiment_id=experiment or UNSET,
            model_mappings=tuple(mappings),
            tags=tuple(KeyValue(key=key, value=value) for key, value in sorted((tags | ours).items())),
            bindings=(),
        )

    def bare(self, record: GatewayEndpoint) -> Any:
        record = super().bare(record)
        mappings = [replace(one, weight=_single(one), created_by=UNSET) for one in record.model_mappings]
        return replace(
            record,
            model_mappings=tuple(sorted(mappings, key=_mapping_order)),
            fallback_config_json=_fallback_text(record),
            usage_tracking=bool(record.usage_tracking),
            experiment_id=record.experiment_id or UNSET,
            bindings=(),
        )

    def seen(self, wanted: GatewayEndpoint, found: GatewayEndpoint) -> Any:
        found = super().seen(wanted, found)
        # A server makes an experiment of its own for what is tracked without one.
        return found if wanted.experiment_id else replace(found, experiment_id=UNSET)

    def create(self, wanted: GatewayEndpoint, result: EntityResult) -> None:
        fallback = json.loads(str(_fallback_text(wanted) or "{}"))
        configs = [
            {
                "model_definition_id": one.model_definition_id,
                "linkage_type": one.linkage_type or "PRIMARY",
                "weight": float(one.weight) if one.weight else 1.0,
                **({"fallback_order": one.fallback_order} if one.fallback_order is not UNSET else {}),
            }
            for one in sorted(wanted.model_mappings, key=_mapping_order)
        ]
        body = {
            "name": wanted.name,
            "model_configs": configs,
            "routing_strategy": wanted.routing_strategy,
            "fallback_config": fallback or UNSET,
            "experiment_id": wanted.experiment_id,
            "usage_tracking": bool(wanted.usage_tracking),
        }
        identity = self.made(wanted, "endpoint", body)
        self._tag(identity, RESTORE_TAG, STARTED)
        if wanted.usage_tracking and not wanted.experiment_id:
            result.notes.append(f"the server made an experiment for the endpoint {wanted.name!r}, whose own was not restored")
        if any(one.created_by not in (UNSET, wanted.created_by) for one in wanted.model_mappings):
            result.notes.append(f"who added models to the endpoint {wanted.name!r} is in the archive only")
        self.sign(wanted, identity, last=wanted.created_by or None)
        self._tag_missing(wanted, identity, {RESTORE_TAG: STARTED})

    def complete(self, wanted: GatewayEndpoint, found: GatewayEndpoint) -> bool:
        tags = tag_map(found.tags)
        if tags.get(RESTORE_TAG) != COMPLETE:
            super().complete(wanted, found)
        return self._tag_missing(wanted, found.endpoint_id, tags)

    def settle(self, wanted: GatewayEndpoint, result: EntityResult) -> None:
        """Rewrite the id of the endpoint in its experiment, and remember what uses the endpoint."""
        archived, ids = self._archived[str(wanted.name)]
        identity = str(result.target_id)
        self._bindings += [(result, identity, binding, ids) for binding in archived.bindings]
        if wanted.experiment_id and isinstance(wanted.experiment_id, str):
            answer = self.server.get("experiments/get", {"experiment_id": wanted.experiment_id})["experiment"]
            tags = tag_map(answer.get("tags", []))
            if tags.get(_SOURCE_ID) == archived.endpoint_id != identity:
                for key, value in ((SOURCE_TAG_PREFIX + "tags." + _SOURCE_ID, archived.endpoint_id), (_SOURCE_ID, identity)):
                    body = {"experiment_id": wanted.experiment_id, "key": key, "value": value}
                    self.server.post("experiments/set-experiment-tag", body)

    def bind(self) -> list[EntityResult]:
        """Bind the endpoints to what uses them. A server does it itself for a scorer that names the endpoint."""
        if not self._bindings:
            return []
        there = self._bound()
        results: list[EntityResult] = []
        made: dict[_Binding, EntityResult] = {}
        for of, identity, binding, ids in self._bindings:
            result = EntityResult(kind=self.kind, source_id=of.source_id)
            results.append(result)
            if (use := _target_binding(result, identity, binding, ids)) is None or use in there:
                continue
            made[use] = result
            self.server.guard(result, lambda: self._bind(result, use, binding))  # noqa: B023 - done at once
        self._bindings.clear()
        found = self._bound() if made else set()
        lost = {use: result for use, result in made.items() if use not in found and result.action != "failed"}
        for (_, kind, resource), result in lost.items():
            message = f"its use by the {kind} {resource} was not read back from the target"
            result.problems.append(not_restored(result, message, code=DIFFERS))
            result.action = "failed"
        return results

    def _bound(self) -> set[_Binding]:
        """Which endpoints the target says are used, and by what."""
        answer = self.server.get(f"{_GATEWAY}endpoints/bindings/list", api=API3)
        return {(one["endpoint_id"], one["resource_type"], one["resource_id"]) for one in answer.get("bindings", [])}

    def _bind(self, result: EntityResult, use: _Binding, binding: GatewayBinding) -> None:
        members = {"endpoint_id": use[0], "resource_type": use[1], "resource_id": use[2]}
        body = _present({**members, "created_by": binding.created_by})
        self.server.client.post_json(f"{API3}{_GATEWAY}endpoints/bindings/create", body, retry=False)
        result.notes.append("the names under which endpoints are used, and since when, are in the archive only")

    def _tag(self, identity: str, key: str, value: str) -> None:
        self.server.post(f"{_GATEWAY}endpoints/set-tag", {"endpoint_id": identity, "key": key, "value": value}, api=API3)

    def _tag_missing(self, wanted: GatewayEndpoint, identity: str, there: dict[str, str]) -> bool:
        missing = [tag for tag in wanted.tags if tag.key not in there and tag.key != RESTORE_TAG]
        for tag in missing:
            self._tag(identity, tag.key, tag.value)
        if there.get(RESTORE_TAG) != COMPLETE:
            self._tag(identity, RESTORE_TAG, COMPLETE)
            return True
        return bool(missing)


class BudgetRoad(_GatewayRoad):
    """Budgets. They have no name: two that are alike in everything are two."""

    kind = "budget_policy"
    given = Road.given | {"budget_policy_id"}
    path, identifier = "budgets", "budget_policy_id"

    def key(self, record: BudgetPolicy) -> Hashable:
        members = ("budget_unit", "budget_amount", "duration_unit", "duration_value", "target_scope", "budget_action")
        return *(getattr(record, name) for name in members), record.target_value or "", record.created_by or ""

    def refusal(self, record: BudgetPolicy, ids: IdMap) -> str | None:
        target = record.target_value or ""
        if record.target_scope == "ENDPOINT" and ids.find(EndpointRoad.kind, target) is None:
            return f"it limits the endpoint {target}, which cannot be restored"
        if record.target_scope == "USER" and not self._knows_users:
            return f"it limits the user {target!r}, and the server does not ask who its users are"
        return None

    @cached_property
    def _knows_users(self) -> bool:
        try:
            self.server.get("users/get", {"username": "nobody"})
        except RefusedError as error:
            return not error.endpoint_missing
        except AuthError:
            return True
        return True

    def expected(self, record: BudgetPolicy, ids: IdMap) -> BudgetPolicy:
        if record.target_scope != "ENDPOINT":
            return record
        return replace(record, target_value=_needed(ids, EndpointRoad.kind, record.target_value or ""))

    def create(self, wanted: BudgetPolicy, result: EntityResult) -> None:  # noqa: ARG002
        body = {
            "budget_unit": wanted.budget_unit,
            "budget_amount": float(wanted.budget_amount or 0),
            "duration": {"unit": wanted.duration_unit, "value": wanted.duration_value},
            "target_scope": wanted.target_scope,
            "target_value": wanted.target_value,
            "budget_action": wanted.budget_action,
        }
        self.sign(wanted, self.made(wanted, "budget_policy", body), last=wanted.created_by or None)


class GuardrailRoad(Road):
    """Guardrails, of scorers that are there, in front of endpoints that are there."""

    kind = "guardrail"
    given = Road.given | _USERS | {"guardrail_id"}
    anew = "ids, times and users"

    def key(self, record: Guardrail) -> Hashable:
        members = ("name", "scorer_id", "scorer_version", "stage", "action")
        return *(getattr(record, name) for name in members), record.action_endpoint_id or ""

    def refusal(self, record: Guardrail, ids: IdMap) -> str | None:
        if not record.scorer_id or ids.find("scorer_id", record.scorer_id) is None:
            return f"its scorer {record.scorer_id or ''} is not restored"
        wanted = [record.action_endpoint_id or "", *(config.endpoint_id for config in record.configs)]
        missing = [one for one in wanted if one and ids.find(EndpointRoad.kind, one) is None]
        return f"it works for the endpoint {missing[0]}, which cannot be restored" if missing else None

    def expected(self, record: Guardrail, ids: IdMap) -> Guardrail:
        scorer = _needed(ids, "scorer_id", record.scorer_id or "")
        configs = [replace(one, endpoint_id=_needed(ids, EndpointRoad.kind, one.endpoint_id)) for one in record.configs]
        action = _needed(ids, EndpointRoad.kind, record.action_endpoint_id) if record.action_endpoint_id else UNSET
        return replace(record, scorer_id=scorer, action_endpoint_id=action, configs=tuple(configs))

    def bare(self, record: Guardrail) -> Any:
        record = super().bare(record)
        return replace(record, configs=tuple(sorted(record.configs, key=lambda config: config.endpoint_id)))

    def create(self, wanted: Guardrail, result: EntityResult) -> None:  # noqa: ARG002
        members = ("name", "scorer_id", "scorer_version", "stage", "action", "action_endpoint_id")
        body = {name: getattr(wanted, name) for name in members if getattr(wanted, name)}
        made = self.make(f"{_GATEWAY}guardrails/create", body, wanted, api=API3)
        if not isinstance(made, dict):
            self.complete(wanted, made)
            return
        for config in wanted.configs:
            self._protect(made["guardrail"]["guardrail_id"], config)

    def complete(self, wanted: Guardrail, found: Guardrail) -> bool:
        there = {config.endpoint_id for config in found.configs}
        missing = [config for config in wanted.configs if config.endpoint_id not in there]
        for config in missing:
            self._protect(found.guardrail_id, config)
        return bool(missing)

    def _protect(self, guardrail: str, config: GuardrailConfig) -> None:
        body: dict[str, Any] = {"endpoint_id": config.endpoint_id, "guardrail_id": guardrail}
        if config.execution_order is not UNSET:
            body["execution_order"] = config.execution_order
        try:
            self.server.post(f"{_GATEWAY}guardrails/add-to-endpoint", body, api=API3)
        except RefusedError as error:
            # A request that was repeated finds what its first try made; reading back compares it.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _target_binding(result: EntityResult, identity: str, binding: GatewayBinding, ids: IdMap) -> _Binding | None:
    """What an archived binding is at the target, or None and a problem."""
    resource = ids.find("scorer_id", binding.resource_id) if binding.resource_type == _SCORER else binding.resource_id
    if resource is not None:
        return identity, str(binding.resource_type), resource
    message = f"its use by the {binding.resource_type} {binding.resource_id} is left out, which was not restored"
    result.problems.append(not_restored(result, message))
    return None


def _present(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not UNSET and value != ""}


def _needed(ids: IdMap, kind: str, old: str) -> str:
    found = ids.find(kind, old)
    if found is None:
        raise NotFoundError(f"the {kind.replace('_', ' ')} {old} is not at the target")
    return found


def _single(mapping: GatewayModelMapping) -> Any:
    """A weight, which travels in single precision."""
    return decimal(float(np.float32(mapping.weight))) if mapping.weight else decimal(1.0)


def _mapping_order(mapping: GatewayModelMapping) -> tuple[str, int, str, str]:
    order = mapping.fallback_order if isinstance(mapping.fallback_order, int) else -1
    return "" if mapping.linkage_type == "PRIMARY" else "FALLBACK", order, mapping.model_definition_id, str(mapping.weight)


def _fallback_text(endpoint: GatewayEndpoint) -> Any:
    """How an endpoint falls back; the models that it falls back on are told by their links."""
    config = json.loads(endpoint.fallback_config_json) if isinstance(endpoint.fallback_config_json, str) else None
    members = {name: value for name in ("strategy", "max_attempts") if (value := (config or {}).get(name)) is not None}
    return json.dumps(members) if members else UNSET
