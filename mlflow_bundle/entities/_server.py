"""Configuration of a server, without any secret: its workspaces and webhooks."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Document, Milliseconds, Record, Text

__all__ = ["Webhook", "WebhookEvent", "Workspace"]


class Workspace(Record, frozen=True, tag="workspace"):
    """A workspace of a server that has several."""

    name: str
    description: Text = UNSET
    default_artifact_root: Text = UNSET
    trace_archival_location: Text = UNSET
    trace_archival_retention: Text = UNSET


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
