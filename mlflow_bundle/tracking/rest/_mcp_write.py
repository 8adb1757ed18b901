"""The MCP registry at a server: servers, their versions and aliases, and where they are reached."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any, Final
from urllib.parse import quote

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from mlflow_bundle.entities import KeyValue, McpAccessEndpoint, McpServer, McpServerVersion
from mlflow_bundle.kinds import record_id
from mlflow_bundle.tracking._port import DIFFERS, EntityResult, IdMap
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._config_write import Road
from mlflow_bundle.tracking.rest._expected import COMPLETE, RESTORE_TAG, STARTED, keep_earlier
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._road import Server, not_restored, tag_map

__all__ = ["McpAccessRoad", "McpServerRoad", "McpVersionRoad"]

_SERVERS: Final = "mcp-servers"
_KEPT: Final = ("workspace", "created_by", "created_at", "last_updated_by", "last_updated_at")
_USERS: Final = frozenset({"created_by", "last_updated_by"})
_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"
_LATEST: Final = "latest"


class _TaggedRoad(Road):
    """What has tags: they say where it comes from, what no endpoint sets, and how far the restore has come."""

    given = Road.given | _USERS
    anew = ""

    def place(self, record: Any) -> str:
        """Where the entity is, below the path of the API."""
        raise NotImplementedError

    def expected(self, record: Any, ids: IdMap) -> Any:  # noqa: ARG002
        tags = tag_map(record.tags)
        ours = {RESTORE_TAG: COMPLETE, **self.server.source_tags(record, *_KEPT)}
        keep_earlier(tags, ours)
        pairs = sorted((tags | ours).items())
        return replace(record, tags=tuple(KeyValue(key=key, value=value) for key, value in pairs))

    def tag(self, record: Any, key: str, value: str) -> None:
        """Set one tag."""
        self.server.post(f"{self.place(record)}/tags", {"key": key, "value": value}, api=API3)

    def tag_missing(self, wanted: Any, there: dict[str, str]) -> bool:
        """Set the tags that are not there, that of the completed restore at last."""
        missing = [tag for tag in wanted.tags if tag.key not in there and tag.key != RESTORE_TAG]
        for tag in missing:
            self.tag(wanted, tag.key, tag.value)
        if there.get(RESTORE_TAG) != COMPLETE:
            self.tag(wanted, RESTORE_TAG, COMPLETE)
            return True
        return bool(missing)


class McpServerRoad(_TaggedRoad):
    """Servers. Their aliases are set with the versions that they name, which come later."""

    kind = "mcp_server"

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        #: The aliases of each version of each server.
        self.aliases: dict[tuple[str, str], list[str]] = {}
        #: The version that each alias of each server names.
        self.named: dict[tuple[str, str], str] = {}
        #: Servers that this restore or an interrupted one has made, and whose versions are on their way.
        self.unfinished: dict[str, McpServer] = {}

    def place(self, record: McpServer) -> str:
        return f"{_SERVERS}/{_quoted(record.name)}"

    def expected(self, record: McpServer, ids: IdMap) -> McpServer:
        for alias in record.aliases:
            self.named[record.name, alias.alias] = alias.version
            aliases = self.aliases.setdefault((record.name, alias.version), [])
            if alias.alias not in aliases:
                aliases.append(alias.alias)
        expected: McpServer = super().expected(record, ids)
        return expected

    def refusal(self, record: McpServer, ids: IdMap) -> str | None:  # noqa: ARG002
        return None if record.name.count("/") == 1 else "a server takes names of the form NAMESPACE/NAME only"

    def bare(self, record: McpServer) -> Any:
        record = super().bare(record)
        tags = tuple(tag for tag in record.tags if tag.key != RESTORE_TAG)  # it is set at last
        return replace(record, icons=_plain(record.icons), description=record.description or UNSET, aliases=(), tags=tags)

    def create(self, wanted: McpServer, result: EntityResult) -> None:  # noqa: ARG002
        body: dict[str, Any] = {"name": wanted.name}
        if isinstance(wanted.description, str):
            body["description"] = wanted.description
        if isinstance(wanted.icons, str):
            body["icons"] = json.loads(wanted.icons)
        self.make(_SERVERS, body, wanted, api=API3)
        self.tag(wanted, RESTORE_TAG, STARTED)
        if isinstance(wanted.display_name, str):
            self.server.post(self.place(wanted), {"display_name": wanted.display_name}, method="PATCH", api=API3)
        self.tag_missing(wanted, {RESTORE_TAG: COMPLETE})
        self.unfinished[wanted.name] = wanted

    def complete(self, wanted: McpServer, found: McpServer) -> bool:
        lacking: dict[str, Any] = {
            name: value
            for name in ("display_name", "description")
            if isinstance(value := getattr(wanted, name), str) and getattr(found, name) is UNSET
        }
        if isinstance(wanted.icons, str) and found.icons is UNSET:
            lacking["icons"] = json.loads(wanted.icons)
        if lacking:
            self.server.post(self.place(wanted), lacking, method="PATCH", api=API3)
        tags = tag_map(found.tags)
        known = COMPLETE if RESTORE_TAG in tags else ""  # one that this tool has made is complete when ``finish`` says so
        return self.tag_missing(wanted, {**tags, RESTORE_TAG: known}) or bool(lacking)

    def settle(self, wanted: McpServer, result: EntityResult) -> None:  # noqa: ARG002
        """Know the servers that an interrupted restore has made."""
        found = self.server.get(self.place(wanted), api=API3)
        if found.get("tags", {}).get(RESTORE_TAG) == STARTED:
            self.unfinished[wanted.name] = wanted

    def finish(self) -> list[EntityResult]:
        """Say of the servers that were made that their versions are there too, and of aliases that their versions are not."""
        results = []
        for (name, version), aliases in self.aliases.items():
            told = [f"the alias {alias!r} of {name!r} names version {version}, which was not restored" for alias in aliases]
            results.append(EntityResult(kind=self.kind, source_id=name, notes=told))
        self.aliases.clear()
        for name, wanted in self.unfinished.items():
            results.append(EntityResult(kind=self.kind, source_id=name))
            self.server.guard(results[-1], lambda wanted=wanted: self.tag(wanted, RESTORE_TAG, COMPLETE))  # type: ignore[misc]
        self.unfinished.clear()
        return results


class McpVersionRoad(_TaggedRoad):
    """Versions. A server makes them drafts or active; what is deprecated was active before."""

    kind = "mcp_server_version"
    essential = frozenset({"server_json"})

    def __init__(self, server: Server, servers: McpServerRoad) -> None:
        super().__init__(server)
        self._servers = servers

    def place(self, record: McpServerVersion) -> str:
        return f"{_SERVERS}/{_quoted(record.name)}/versions/{_quoted(record.version)}"

    def key(self, record: McpServerVersion) -> Hashable:
        return record.name, record.version

    def buried(self, record: McpServerVersion) -> bool:
        return record.status == "deleted"

    def bare(self, record: McpServerVersion) -> Any:
        record = super().bare(record)
        texts = {name: _plain(getattr(record, name)) for name in ("server_json", "tools", "connect_options")}
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
            self.make(f"{_SERVERS}/{_quoted(wanted.name)}/versions", body, wanted, api=API3)
        except RefusedError as error:
            if not self.buried(wanted) or error.error_code != _EXISTS:
                raise
            result.action = "there"  # deleted before, as it has to be; its number is used up
            return
        if self.buried(wanted):
            self.server.post(self.place(wanted), {}, method="DELETE", api=API3)
            return
        self.tag(wanted, RESTORE_TAG, STARTED)
        self._deprecate(wanted, str(body["status"]))
        self.tag_missing(wanted, {RESTORE_TAG: STARTED})

    def _deprecate(self, wanted: McpServerVersion, status: str) -> bool:
        if wanted.status != "deprecated" or status != "active":
            return False
        self.server.post(self.place(wanted), {"status": "deprecated"}, method="PATCH", api=API3)
        return True

    def complete(self, wanted: McpServerVersion, found: McpServerVersion) -> bool:
        tags = tag_map(found.tags)
        # Only an interrupted restore is finished: what somebody has changed since then, or has made himself, stays.
        broken = tags.get(RESTORE_TAG, STARTED if wanted.name in self._servers.unfinished else "") == STARTED
        changed = broken and self._deprecate(wanted, str(found.status))
        return self.tag_missing(wanted, tags) or changed

    def settle(self, wanted: McpServerVersion, result: EntityResult) -> None:
        """Set the aliases of the version; one that names another version at the target stays."""
        for alias in self._servers.aliases.pop((wanted.name, wanted.version), []):
            if alias == _LATEST or self.buried(wanted):
                result.notes.append(
                    f"the alias {alias!r} of {wanted.name!r} cannot be set: it is reserved, or its version deleted"
                )
                continue
            there = aliased(self.server, wanted.name, alias)
            if there is None:
                path = f"{_SERVERS}/{_quoted(wanted.name)}/aliases"
                self.server.post(path, {"alias": alias, "version": wanted.version}, api=API3)
                if aliased(self.server, wanted.name, alias) != wanted.version:
                    result.problems.append(not_restored(result, f"the alias {alias!r} was not read back", code=DIFFERS))
                    result.action = "failed"
            elif there != wanted.version:
                result.keeps(f"the MCP server {wanted.name!r} keeps its own alias {alias!r}")


class McpAccessRoad(Road):
    """Where servers are reached. Two endpoints that are alike in everything are two."""

    kind = "mcp_access_endpoint"
    given = Road.given | _USERS | {"id"}
    anew = "ids, times and users"

    def __init__(self, server: Server, servers: McpServerRoad) -> None:
        super().__init__(server)
        self._servers = servers

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
        found = _asked(self.server, f"{_quoted(record.server_name)}/versions/{_quoted(version)}")
        return found is not None and found.get("status") != "deleted"

    def _is_named(self, record: McpAccessEndpoint, alias: str, ids: IdMap) -> bool:
        """Whether the alias names a version that the target has, or will have."""
        known = ids.by_kind().get(McpVersionRoad.kind, {})
        version = self._servers.named.get((record.server_name, alias), "")
        if version and _version_id(record, version) in known:
            return True
        if alias == _LATEST and any(one.startswith(_version_id(record, "")) for one in known):
            return True  # it is whatever version there is
        return aliased(self.server, record.server_name, alias) is not None

    def create(self, wanted: McpAccessEndpoint, result: EntityResult) -> None:  # noqa: ARG002
        members = ("url", "server_version", "server_alias", "transport_type")
        body = {name: getattr(wanted, name) for name in members if getattr(wanted, name)}
        self.make(f"{_SERVERS}/{_quoted(wanted.server_name)}/endpoints", body, wanted, api=API3)


def aliased(server: Server, name: str, alias: str) -> str | None:
    """The version that an alias names at the target."""
    found = _asked(server, f"{_quoted(name)}/aliases/{_quoted(alias)}")
    return None if found is None else str(found["version"])


def _asked(server: Server, path: str) -> dict[str, Any] | None:
    """What the target has at a path of the registry, None where there is nothing."""
    try:
        found: dict[str, Any] = server.get(f"{_SERVERS}/{path}", api=API3)
    except RefusedError as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return found


def _version_id(endpoint: McpAccessEndpoint, version: str) -> str:
    """The id of an archived version of the server that an endpoint belongs to."""
    return record_id(McpServerVersion(name=endpoint.server_name, version=version, workspace=endpoint.workspace))


def _plain(text: str | UnsetType) -> str | UnsetType:
    """A JSON text in one spelling: a server does not keep the order of members."""
    return json.dumps(json.loads(text), sort_keys=True) if isinstance(text, str) else text


def _quoted(name: str) -> str:
    return quote(name, safe="/")
