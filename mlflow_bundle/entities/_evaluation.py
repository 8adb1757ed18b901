"""Evaluation datasets and scorers."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Decimal, Document, Json, KeyValue, Milliseconds, Record, Text

__all__ = ["DatasetRecord", "EvaluationDataset", "OnlineScoring", "Scorer", "ScorerVersion"]


class EvaluationDataset(Record, frozen=True, tag="evaluation_dataset"):
    """An evaluation dataset and the experiments that it is linked to. Its rows are ``dataset_record`` records."""

    dataset_id: str
    name: str
    workspace: Text = UNSET
    schema: Json = UNSET
    profile: Json = UNSET
    digest: Text = UNSET
    created_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    created_by: Text = UNSET
    last_updated_by: Text = UNSET
    tags: tuple[KeyValue, ...] = ()
    experiment_ids: tuple[str, ...] = ()


class DatasetRecord(Record, frozen=True, tag="dataset_record"):
    """A row of an evaluation dataset. Inputs, outputs, expectations, tags and source are JSON texts; ``null`` is a value."""

    dataset_record_id: str
    dataset_id: str
    inputs: Json = UNSET
    outputs: Json = UNSET
    expectations: Json = UNSET
    tags: Json = UNSET
    source: Json = UNSET
    source_id: Text = UNSET
    source_type: Text = UNSET
    created_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    created_by: Text = UNSET
    last_updated_by: Text = UNSET


class ScorerVersion(Document, frozen=True):
    """A version of a scorer. ``serialized_scorer`` is the original JSON text; it may hold program code."""

    scorer_version: int
    serialized_scorer: str
    creation_time: Milliseconds = UNSET


class OnlineScoring(Document, frozen=True):
    """How a scorer judges new traces. A restore sets ``sample_rate`` to 0 unless it is told otherwise."""

    online_scoring_config_id: Text = UNSET
    sample_rate: Decimal = UNSET
    filter_string: Text = UNSET


class Scorer(Record, frozen=True, tag="scorer"):
    """A scorer of an experiment with all its versions in ascending order. Servers that hide the id offer none."""

    experiment_id: str
    scorer_name: str
    scorer_id: Text = UNSET
    versions: tuple[ScorerVersion, ...] = ()
    online: tuple[OnlineScoring, ...] = ()
