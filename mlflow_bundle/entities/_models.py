"""Logged models, and the registry of models and prompts."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Document, KeyValue, Milliseconds, Record, Stage, Text

__all__ = ["Alias", "LoggedModel", "ModelVersion", "RegisteredModel"]


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
