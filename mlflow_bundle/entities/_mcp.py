"""The registry of MCP servers."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Document, Json, KeyValue, Milliseconds, Record, Text

__all__ = ["McpAccessEndpoint", "McpAlias", "McpServer", "McpServerVersion"]


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
