"""Nothing that the installed MLflow knows is forgotten: each column and each property is archived, or listed with a reason."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow.entities import Assessment as MlflowAssessment
from mlflow.store.db.utils import _initialize_tables
from sqlalchemy import create_engine
from sqlalchemy import inspect as reflect

from mlflow_bundle.entities import Assessment, Record
from mlflow_bundle.kinds import KINDS
from mlflow_bundle.tracking.database._not_archived import NOT_ARCHIVED
from mlflow_bundle.tracking.database._unread import archived_columns


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The tables and columns of the installed MLflow, as it makes them itself."""
    path: Path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}")
    _initialize_tables(engine)
    found = reflect(engine)
    return {table: {column["name"] for column in found.get_columns(table)} for table in found.get_table_names()}


#: Tables and columns that MLflow has since 3.18.
SINCE_3_18 = {
    *("skills", "skill_tags", "skill_aliases", "skill_versions", "skill_version_tags", "skills.search_text"),
    *("issues.metadata", "issues.last_seen_timestamp", "issues.last_updated_by", "issue_categories"),
}


def test_every_column_of_the_database_is_archived_or_listed(schema: dict[str, set[str]]) -> None:
    """A table or column that a new MLflow adds, and nobody thought of, fails here."""
    archived = archived_columns()
    forgotten = [
        f"{table}.{column}"
        for table, columns in schema.items()
        for column in columns
        if column not in archived.get(table, ()) and table not in NOT_ARCHIVED and f"{table}.{column}" not in NOT_ARCHIVED
    ]
    assert forgotten == []


def test_what_is_read_and_what_is_listed_exists(schema: dict[str, set[str]]) -> None:
    """Neither the map of tables nor the list of what is left out names something that MLflow does not have."""
    archived = {f"{table}.{column}" for table, columns in archived_columns().items() for column in columns if column}
    there = {f"{table}.{column}" for table, columns in schema.items() for column in columns}
    newer = set() if "skills" in schema else SINCE_3_18
    assert {name for name in archived - there if name.partition(".")[0] not in newer} == newer & archived
    gone = {"span_metrics", "trace_metrics"} - schema.keys()
    assert {name for name in NOT_ARCHIVED if name not in schema and name not in there} == gone | (newer & NOT_ARCHIVED.keys())
    assert archived & NOT_ARCHIVED.keys() == set()


#: For each kind the entity class of MLflow, how its properties are called in the record, and those that are left out.
PROPERTIES: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {
    "experiment": (
        "mlflow.entities.Experiment",
        {},
        {"trace_location": "Databricks only", "effective_trace_archival_retention": "derived from tags and workspace"},
    ),
    "logged_model": (
        "mlflow.entities.LoggedModel",
        {
            "artifact_location": "artifact_uri",
            "creation_timestamp": "creation_timestamp_ms",
            "last_updated_timestamp": "last_updated_timestamp_ms",
        },
        {"metrics": "a table", "model_uri": "made of the id"},
    ),
    "registered_model": (
        "mlflow.entities.model_registry.RegisteredModel",
        {},
        {
            "latest_versions": "derived from the versions",
            "deployment_job_id": "Databricks only",
            "deployment_job_state": "Databricks only",
        },
    ),
    "model_version": (
        "mlflow.entities.model_registry.ModelVersion",
        {},
        {
            "aliases": "in the registered model",
            "model_id": "the source names it",
            "params": "of the logged model",
            "metrics": "of the logged model",
            "deployment_job_state": "Databricks only",
        },
    ),
    "trace": (
        "mlflow.entities.TraceInfo",
        {
            "request_id": "trace_id",
            "timestamp_ms": "request_time",
            "execution_time_ms": "execution_duration",
            "status": "state",
        },
        {
            "trace_location": "the experiment",
            "request_metadata": "an older name of trace_metadata",
            "token_usage": "in the metadata",
            "cost": "in the metadata",
        },
    ),
    "evaluation_dataset": (
        "mlflow.entities.EvaluationDataset",
        {},
        {"records": "records of their own", "source": "derived", "source_type": "derived"},
    ),
    "dataset_record": ("mlflow.entities.DatasetRecord", {}, {}),
    "label_schema": (
        "mlflow.genai.label_schemas.LabelSchema",
        {"created_at": "created_time", "updated_at": "last_update_time", "last_updated_at": "last_update_time"},
        {"input": "input_type and input_config"},
    ),
    "review_queue": ("mlflow.genai.review_queues.ReviewQueue", {}, {}),
    "issue": ("mlflow.entities.Issue", {}, {"trace_count": "counted from assessments"}),
    "skill": (
        "mlflow.entities.Skill",
        {"creation_timestamp": "created_at", "last_updated_timestamp": "last_updated_at"},
        dict.fromkeys(("status", "latest_version", "source_type"), "derived from the versions"),
    ),
    "skill_version": (
        "mlflow.entities.SkillVersion",
        {"creation_timestamp": "created_at", "last_updated_timestamp": "last_updated_at"},
        {"aliases": "in the skill"},
    ),
}


def properties_of(entity: type) -> set[str]:
    """The public properties or fields of an entity class."""
    fields = getattr(entity, "__dataclass_fields__", {})
    named = {name for name, value in inspect.getmembers(entity) if isinstance(value, property)}
    return {name.lstrip("_") for name in {*named, *fields}}


@pytest.mark.parametrize("kind", PROPERTIES)
def test_every_property_of_an_entity_is_archived_or_listed(kind: str) -> None:
    """A property that a new MLflow adds to an entity, and nobody thought of, fails here."""
    where, names, left_out = PROPERTIES[kind]
    module, _, name = where.rpartition(".")
    entity = getattr(importlib.import_module(module), name, None)
    if entity is None and kind in ("skill", "skill_version"):
        pytest.skip("MLflow has skills since 3.18")
    assert entity is not None
    record: type[Record] = KINDS[kind].type
    fields = set(record.__struct_fields__)
    forgotten = {prop for prop in properties_of(entity) if names.get(prop, prop) not in fields and prop not in left_out}
    assert forgotten == set()


def test_every_property_of_an_assessment_is_archived() -> None:
    """The same for assessments, which are inside of traces."""
    names = {"name": "assessment_name", "create_time_ms": "create_time", "last_update_time_ms": "last_update_time"}
    left_out = {
        "trace_id": "that of the trace",
        "source": "source_type and source_id",
        "expectation": "the value",
        "feedback": "the value",
        "issue": "the value",
    }
    found = properties_of(MlflowAssessment)
    assert {
        name for name in found if names.get(name, name) not in Assessment.__struct_fields__ and name not in left_out
    } == set()
