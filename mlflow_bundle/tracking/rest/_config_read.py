"""The configuration of a tracking server read over REST: workspaces, webhooks, gateway, budgets, guardrails, registries.

No secret is ever read into a record: of a gateway secret only that it exists, of a webhook nothing that signs its calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from msgspec import UnsetType

from mlflow_bundle.entities import (
    BudgetPolicy,
    GatewayEndpoint,
    GatewayModelDefinition,
    GatewaySecret,
    Guardrail,
    McpAccessEndpoint,
    McpServer,
    McpServerVersion,
    Record,
    Webhook,
)
from mlflow_bundle.entities import Workspace as WorkspaceRecord
from mlflow_bundle.tracking._port import EntityQuery
from mlflow_bundle.tracking._rest import API
from mlflow_bundle.tracking.rest._features import API3, SourceServer, Workspaced
from mlflow_bundle.tracking.rest._listing import Answer, decimal, json_text, listed, record, registered, single
from mlflow_bundle.tracking.rest._skills_read import SkillReader

__all__ = ["ConfigurationReader"]

_PAGE: Final = 1_000
_GATEWAY: Final = f"{API3}gateway/"
_MCP: Final = f"{API3}mcp-servers"


class ConfigurationReader:
    """What belongs to a server, or to a workspace of it, and not to experiments."""

    def __init__(self, server: SourceServer) -> None:
        self._server = server
        skills = SkillReader(server)
        self.readers: Mapping[str, Callable[[EntityQuery], Iterable[Record]]] = {
            "workspace": lambda _: self.workspaces(),
            "webhook": lambda _: self.webhooks(),
            "gateway_secret": lambda _: self.secrets(),
            "gateway_model_definition": lambda _: self.model_definitions(),
            "gateway_endpoint": lambda _: self.endpoints(),
            "budget_policy": lambda _: self.budgets(),
            "guardrail": lambda _: self.guardrails(),
            "mcp_server": lambda _: self.mcp_servers(),
            "mcp_server_version": lambda _: self.mcp_versions(),
            "mcp_access_endpoint": lambda _: self.mcp_access_endpoints(),
            "skill": lambda _: skills.skills(),
            "skill_version": lambda _: skills.versions(),
        }

    def _list(
        self, path: str, member: str, *by: str, params: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[Workspaced, Answer]]:
        """A list of every workspace, each item once."""
        for workspace in self._server.workspaces:
            yield from ((workspace, answer) for answer in listed(workspace.client, path, member, params or {}, by=by))

    def workspaces(self) -> Iterator[WorkspaceRecord]:
        """The workspaces that this user sees."""
        chosen = {workspace.name for workspace in self._server.workspaces}
        for answer in listed(self._server.client, f"{API3}workspaces", "workspaces", {}, by=("name",)):
            if answer["name"] in chosen:
                archival = answer.get("trace_archival_config") or {}
                yield record(
                    WorkspaceRecord,
                    answer,
                    trace_archival_location=archival.get("location"),
                    trace_archival_retention=archival.get("retention"),
                )

    def webhooks(self) -> Iterator[Webhook]:
        """The webhooks that are not deleted, without what signs their calls."""
        for workspace, answer in self._list(f"{API}webhooks", "webhooks", "webhook_id", params={"max_results": _PAGE}):
            events = [{name: event[name].lower() for name in ("entity", "action")} for event in answer.get("events", [])]
            events.sort(key=lambda event: (event["entity"], event["action"]))
            yield record(Webhook, answer, workspace=workspace.name, events=events)

    # -- gateway --

    def secrets(self) -> Iterator[GatewaySecret]:
        """That there are secrets: names, providers, who and when."""
        for workspace, answer in self._list(f"{_GATEWAY}secrets/list", "secrets", "secret_id"):
            yield record(GatewaySecret, answer, workspace=workspace.name)

    def model_definitions(self) -> Iterator[GatewayModelDefinition]:
        """The models of providers."""
        path = f"{_GATEWAY}model-definitions/list"
        for workspace, answer in self._list(path, "model_definitions", "model_definition_id"):
            yield record(GatewayModelDefinition, answer, workspace=workspace.name)

    def endpoints(self) -> Iterator[GatewayEndpoint]:
        """The endpoints with their models, uses and tags."""
        bindings: dict[str, list[Answer]] = defaultdict(list)
        for _, binding in self._list(
            f"{_GATEWAY}endpoints/bindings/list", "bindings", "endpoint_id", "resource_type", "resource_id"
        ):
            bindings[binding["endpoint_id"]].append(binding)
        for workspace, answer in self._endpoints():
            mappings = [{**one, "weight": _weight(one.get("weight"))} for one in answer.get("model_mappings", [])]
            yield record(
                GatewayEndpoint,
                answer,
                workspace=workspace.name,
                fallback_config_json=json_text(_fallback(answer)),
                model_mappings=sorted(mappings, key=lambda one: str(one["mapping_id"])),
                bindings=sorted(
                    bindings[answer["endpoint_id"]], key=lambda one: (str(one["resource_type"]), str(one["resource_id"]))
                ),
            )

    def _endpoints(self) -> Iterator[tuple[Workspaced, Answer]]:
        return self._list(f"{_GATEWAY}endpoints/list", "endpoints", "endpoint_id")

    def budgets(self) -> Iterator[BudgetPolicy]:
        """The budget policies."""
        path = f"{_GATEWAY}budgets/list"
        for workspace, answer in self._list(path, "budget_policies", "budget_policy_id", params={"max_results": _PAGE}):
            duration = answer.get("duration") or {}
            yield record(
                BudgetPolicy,
                answer,
                workspace=workspace.name,
                budget_amount=decimal(answer.get("budget_amount")),
                duration_unit=duration.get("unit"),
                duration_value=duration.get("value"),
            )

    def guardrails(self) -> Iterator[Guardrail]:
        """The guardrails with the endpoints that they protect."""
        path = f"{_GATEWAY}guardrails/list"
        found = list(self._list(path, "guardrails", "guardrail_id", params={"max_results": _PAGE}))
        endpoints = list(self._endpoints()) if found else []
        ids = {(workspace.name, endpoint.get("name")): endpoint["endpoint_id"] for workspace, endpoint in endpoints}
        configs: dict[str, list[Answer]] = defaultdict(list)
        for some in self._server.map(self._guardrail_configs, endpoints):
            for config in some:
                configs[config["guardrail_id"]].append(config)
        for workspace, answer in found:
            scorer = answer.get("scorer") or {}
            # The server shows the name of the endpoint where it keeps its id.
            shown = answer.get("action_endpoint_id") or None
            yield record(
                Guardrail,
                answer,
                workspace=workspace.name,
                scorer_id=scorer.get("scorer_id"),
                scorer_version=scorer.get("scorer_version"),
                action_endpoint_id=ids.get((workspace.name, shown), shown),
                configs=sorted(configs[answer["guardrail_id"]], key=lambda config: str(config["endpoint_id"])),
            )

    def _guardrail_configs(self, endpoint: tuple[Workspaced, Answer]) -> list[Answer]:
        workspace, answer = endpoint
        params = {"endpoint_id": answer["endpoint_id"]}
        path, by = f"{_GATEWAY}guardrails/list-for-endpoint", ("endpoint_id", "guardrail_id")
        return listed(workspace.client, path, "configs", params, by=by)

    # -- MCP registry --

    def _mcp_servers(self) -> Iterator[tuple[Workspaced, Answer]]:
        return self._list(_MCP, "mcp_servers", "name", params={"max_results": _PAGE})

    def mcp_servers(self) -> Iterator[McpServer]:
        """The servers. What one shows of its latest version, because it has no description or icons of its own, is not its."""
        found = list(self._mcp_servers())
        for (_, answer), latest in zip(found, self._server.map(self._latest_description, found), strict=True):
            description = answer.get("description")
            own = [icon for icon in answer.get("icons") or [] if icon.get("source") != "version"]
            icons = [{name: value for name, value in icon.items() if name != "source"} for icon in own]
            yield record(
                McpServer,
                {**answer, "description": None if description == latest else description},
                icons=json_text(icons or None),
                aliases=sorted(answer.get("aliases") or [], key=lambda alias: str(alias["alias"])),
                **registered(answer),
            )

    def _latest_description(self, server: tuple[Workspaced, Answer]) -> str | None:
        """What the latest version says of a server, where that could be what the server shows as its own."""
        workspace, answer = server
        if not (answer.get("description") and answer.get("latest_version")):
            return None
        version = f"{_MCP}/{_path(answer['name'])}/versions/{_path(answer['latest_version'])}"
        description: str | None = single(workspace.client, version, "server_json").get("description")
        return description

    def mcp_versions(self) -> Iterator[McpServerVersion]:
        """The versions of all servers that are not deleted."""
        for some in self._server.map(self._versions_of, list(self._mcp_servers())):
            for answer in some:
                tools = [{name: value for name, value in tool.items() if value is not None} for tool in answer["tools"]]
                yield record(
                    McpServerVersion,
                    answer,
                    server_json=json_text(answer["server_json"]),
                    tools=json_text(tools or None),
                    connect_options=json_text(answer.get("connect_options") or None),
                    **registered(answer),
                )

    def _versions_of(self, server: tuple[Workspaced, Answer]) -> list[Answer]:
        workspace, answer = server
        path = f"{_MCP}/{_path(answer['name'])}/versions"
        return listed(workspace.client, path, "mcp_server_versions", {"max_results": _PAGE}, by=("version",))

    def mcp_access_endpoints(self) -> Iterator[McpAccessEndpoint]:
        """Where the servers are reached."""
        for _, answer in self._list(f"{_MCP}/endpoints", "mcp_access_endpoints", "id", params={"max_results": _PAGE}):
            yield record(McpAccessEndpoint, answer, **registered(answer))


def _weight(shown: float | None) -> str | UnsetType:
    """A weight, which travels in single precision: MLflow keeps that number in a double."""
    return decimal(None if shown is None else float(np.float32(shown)))


def _fallback(endpoint: Answer) -> Answer | None:
    """The fallback of an endpoint as a database keeps it."""
    config = endpoint.get("fallback_config")
    if config is None:
        return None
    behind = [one for one in endpoint.get("model_mappings", []) if one.get("linkage_type") == "FALLBACK"]
    behind.sort(key=lambda one: int(one.get("fallback_order") or 0))
    return {
        "strategy": config.get("strategy"),
        "max_attempts": config.get("max_attempts"),
        "model_definition_ids": [one["model_definition_id"] for one in behind],
    }


def _path(name: str) -> str:
    return quote(name, safe="/")
