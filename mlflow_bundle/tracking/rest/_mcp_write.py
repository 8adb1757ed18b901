"""The MCP registry at a server: servers, their versions and aliases, and where they are reached."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any, Final

from msgspec import UNSET
from msgspec.structs import replace

from mlflow_bundle.entities import McpAccessEndpoint, McpServer, McpServerVersion
from mlflow_bundle.kinds import record_id
from mlflow_bundle.tracking._port import EntityResult, IdMap
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._config_write import Road
from mlflow_bundle.tracking.rest._expected import RESTORE_TAG, STARTED
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._road import Server
from mlflow_bundle.tracking.rest._tagged_roads import LATEST, USERS, OwnerRoad, VersionRoad, aliased, asked, plain, quoted

__all__ = ["McpAccessRoad", "McpServerRoad", "McpVersionRoad"]

_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"


class McpServerRoad(OwnerRoad):
    """Servers."""

    kind = "mcp_server"
    registry = "mcp-servers"
    noun = "MCP server"
    texts = ("display_name", "description")

    def refusal(self, record: McpServer, ids: IdMap) -> str | None:  # noqa: ARG002
        return None if record.name.count("/") == 1 else "a server takes names of the form NAMESPACE/NAME only"


class McpVersionRoad(VersionRoad):
    """Versions of servers."""

    kind = "mcp_server_version"
    essential = frozenset({"server_json"})

    def bare(self, record: McpServerVersion) -> Any:
        record = super().bare(record)
        texts = {name: plain(getattr(record, name)) for name in ("server_json", "tools", "connect_options")}
        return replace(record, status=record.status or "draft", source=record.source or UNSET, **texts)

    def create(self, wanted: McpServerVersion, result: EntityResult) -> None:
        body: dict[str, Any] = {
            "server_json": json.loads(str(wanted.server_json)),
            "status": "active" if wanted.status in ("active", "deprecated") else "draft",
        }
        if wanted.source:
            body["source"] = wanted.source
        for name in ("tools", "connect_options"):
            if isinstance(getattr(wanted, name), str):
                body[name] = json.loads(getattr(wanted, name))
        try:
            self.make(f"{self._owners.place(wanted)}/versions", body, wanted, api=API3)
        except RefusedError as error:
            if not self.buried(wanted) or error.error_code != _EXISTS:
                raise
            result.action = "there"  # deleted before, as it has to be; its number is used up
            return
        if self.buried(wanted):
            self.server.post(self.place(wanted), {}, method="DELETE", api=API3)
            return
        self.tag(wanted, RESTORE_TAG, STARTED)
        self.advance(wanted, str(body["status"]))
        self.tag_missing(wanted, {RESTORE_TAG: STARTED})

    def reserved(self, alias: str) -> bool:
        return alias == LATEST


class McpAccessRoad(Road):
    """Where servers are reached. Two endpoints that are alike in everything are two."""

    kind = "mcp_access_endpoint"
    given = Road.given | USERS | {"id"}
    anew = "ids, times and users"

    def __init__(self, server: Server, servers: McpServerRoad) -> None:
        super().__init__(server)
        self._servers = servers

    def _place(self, record: McpAccessEndpoint) -> str:
        return f"{self._servers.registry}/{quoted(record.server_name)}"

    def key(self, record: McpAccessEndpoint) -> Hashable:
        target = record.server_version or "", record.server_alias or ""
        return record.server_name, record.url, *target, record.transport_type or ""

    def refusal(self, record: McpAccessEndpoint, ids: IdMap) -> str | None:
        if bool(record.server_version) == bool(record.server_alias):
            return "a server wants either a version or an alias that it leads to"
        version, alias = record.server_version, record.server_alias
        if version and not self._is_there(record, version, ids):
            return f"it leads to version {version} of {record.server_name!r}, which the target does not have"
        if alias and not self._is_named(record, alias, ids):
            return f"it leads to the alias {alias!r} of {record.server_name!r}, which the target does not have"
        return None

    def _is_there(self, record: McpAccessEndpoint, version: str, ids: IdMap) -> bool:
        """Whether the target has the version, or will have it."""
        if ids.find(McpVersionRoad.kind, _version_id(record, version)) is not None:
            return True
        found = asked(self.server, f"{self._place(record)}/versions/{quoted(version)}")
        return found is not None and found.get("status") != "deleted"

    def _is_named(self, record: McpAccessEndpoint, alias: str, ids: IdMap) -> bool:
        """Whether the alias names a version that the target has, or will have."""
        known = ids.by_kind().get(McpVersionRoad.kind, {})
        version = self._servers.named.get((record.server_name, alias), "")
        if version and _version_id(record, str(version)) in known:
            return True
        if alias == LATEST and any(one.startswith(_version_id(record, "")) for one in known):
            return True  # it is whatever version there is
        return aliased(self.server, self._place(record), alias) is not None

    def create(self, wanted: McpAccessEndpoint, result: EntityResult) -> None:  # noqa: ARG002
        members = ("url", "server_version", "server_alias", "transport_type")
        body = {name: getattr(wanted, name) for name in members if getattr(wanted, name)}
        self.make(f"{self._place(wanted)}/endpoints", body, wanted, api=API3)


def _version_id(endpoint: McpAccessEndpoint, version: str) -> str:
    """The id of an archived version of the server that an endpoint belongs to."""
    return record_id(McpServerVersion(name=endpoint.server_name, version=version, workspace=endpoint.workspace))
