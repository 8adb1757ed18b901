"""Experiments and runs, with what a run read and made."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Document, KeyValue, Milliseconds, Record, Stage, Text

__all__ = ["Dataset", "DatasetInput", "Experiment", "ModelInput", "ModelOutput", "Run"]


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
