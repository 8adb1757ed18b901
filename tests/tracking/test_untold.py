"""What even a pack of everything does not come by is told: rows without owners, and rows that a damaged index hides."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from mlflow_bundle.errors import IncompleteError
from mlflow_bundle.tracking import pack, unpack
from mlflow_bundle.tracking._port import RunQuery
from mlflow_bundle.tracking.database._connection import parse_uri
from mlflow_bundle.tracking.database._entities import ENTITIES
from mlflow_bundle.tracking.database._read import DatabaseSource
from mlflow_bundle.tracking.database._schema import prepare_database
from mlflow_bundle.tracking.database._unread import archived_columns
from mlflow_bundle.tracking.database._untold import LINKS
from tests.fixtures.estate import Estate
from tests.tracking.moving import execute, hide_rows, rows


def notes(uri: str) -> list[str]:
    """What is noted of rows without owners when everything is read."""
    with closing(DatabaseSource(uri)) as source:
        list(source.runs(RunQuery()))
        return [note for note in source.notes() if "belong to" in note]


def test_every_table_is_read_by_itself_or_by_an_owner() -> None:
    """A table that is archived and that no link names would lose rows without a word."""
    by_itself = {"experiments", "runs", *(entity.table for entity in ENTITIES.values())}
    assert {link.table for link in LINKS} | by_itself == set(archived_columns())


@pytest.mark.slow
def test_rows_of_what_is_missing_are_noted(estate: Estate, tmp_path: Path) -> None:
    """Whatever table lacks the rows that others belong to: these are counted, table by table; where none lack, none are."""
    shutil.copy(estate.folder / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert notes(uri) == []
    there = {name for (name,) in rows(uri, "SELECT name FROM sqlite_master")}
    links = [link for link in LINKS if link.table in there]
    execute(uri, *(f"DELETE FROM {owner}" for owner in sorted({link.owner for link in links} - {"inputs"})))
    found, told = notes(uri), set()
    for link in links:
        constants = " AND ".join(f"{column} = '{value}'" for column, value in link.constants.items())
        ((count,),) = rows(uri, f"SELECT COUNT(*) FROM {link.table} WHERE {constants or '1'}")
        if count and link.table not in ("inputs", "input_tags", "datasets", "entity_associations"):
            assert [n for n in found if n.startswith(f"{count:,} rows of {link.table} belong to what is not in {link.owner}")]
            told.add(link.table)
    assert {"params", "tags", "metrics", "spans", "trace_tags", "assessments", "registered_model_aliases"} < told
    assert sum(" rows of inputs " in note for note in found) == 1
    execute(uri, "DELETE FROM inputs")
    assert any(" rows of input_tags belong to what is not in inputs" in note for note in notes(uri))


def test_rows_of_what_is_missing_in_postgresql_are_noted(postgres_database: Callable[[], str]) -> None:
    """The same question has the same answer in the other dialect."""
    uri = postgres_database()
    prepare_database(parse_uri(uri))
    assert notes(uri) == []
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for statement in (
            "SET session_replication_role = replica",
            "INSERT INTO metrics VALUES ('k', 1, 1, 'gone', 1, false), ('k', 1, 2, 'gone', 1, false)",
            "INSERT INTO params VALUES ('k', 'v', 'gone')",
            "INSERT INTO registered_model_tags (workspace, name, key, value) VALUES ('default', 'm', 'k', 'v')",
        ):
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()
    assert {note.partition(",")[0] for note in notes(uri)} == {
        "2 rows of metrics belong to what is not in runs",
        "1 rows of params belong to what is not in runs",
        "1 rows of registered_model_tags belong to what is not in registered_models",
    }


@pytest.mark.parametrize("table", ["params", "tags", "metrics", "experiments"])
def test_rows_that_an_index_lost_are_a_problem(empty_mlflow: str, tmp_path: Path, table: str) -> None:
    """What is looked up through a damaged index is not found: a pack names the table and what to do, and commits nothing."""
    client = MlflowClient(empty_mlflow)
    (tmp_path / "files").mkdir()
    run = client.create_run(client.create_experiment("one", artifact_location=(tmp_path / "files").as_uri())).info.run_id
    names = ("a", "b")
    client.log_batch(run, [Metric(k, 1, 1, 1) for k in names], [Param(k, "v") for k in names], [RunTag(k, "v") for k in names])
    hide_rows(empty_mlflow.removeprefix("sqlite:///"), table, "name = 'one'" if table == "experiments" else "key = 'b'")
    with pytest.raises(IncompleteError, match=f"table {table} has .* REINDEX {table}"):
        pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow)


def test_points_without_a_run_are_no_damage(empty_mlflow: str, tmp_path: Path) -> None:
    """Points that are not read because their run is missing are a note, and not taken for a damaged index."""
    execute(empty_mlflow, "INSERT INTO metrics VALUES ('k', 1, 1, 'gone', 1, 0), ('k', 1, 2, 'gone', 1, 0)")
    report = pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow)
    assert report.state == "complete"
    assert sum("2 rows of metrics belong to" in note for note in report.notes) == 1


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_metadata_that_are_no_json_object_are_named(empty_mlflow: str, tmp_path: Path, text: str) -> None:
    """A pack names the trace, the table and the assessment, instead of ending in the error of a parser."""
    execute(
        empty_mlflow,
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-1', 0, 1, 'OK')",
        "INSERT INTO assessments (assessment_id, trace_id, name, assessment_type, value, created_timestamp,"
        " last_updated_timestamp, source_type, valid, assessment_metadata, experiment_id, trace_timestamp_ms,"
        f" is_numeric_value) VALUES ('a-1', 'tr-1', 'n', 'feedback', '1', 1, 1, 'HUMAN', 1, '{text}', 0, 1, 1)",
    )
    with pytest.raises(IncompleteError, match=r"trace tr-1: .* 'a-1' in the table assessments"):
        pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow)


def test_json_that_is_none_is_restored_as_it_was(empty_mlflow: str, empty_database_file: Path, tmp_path: Path) -> None:
    """Values and inputs that a source holds although they are no JSON come back as they were."""
    execute(
        empty_mlflow,
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-1', 0, 1, 'OK')",
        "INSERT INTO assessments (assessment_id, trace_id, name, assessment_type, value, created_timestamp,"
        " last_updated_timestamp, source_type, valid, experiment_id, trace_timestamp_ms, is_numeric_value)"
        " VALUES ('a-1', 'tr-1', 'n', 'feedback', '{{', 1, 1, 'HUMAN', 1, 0, 1, 0)",
        "INSERT INTO evaluation_datasets (dataset_id, name, created_time, last_update_time, workspace)"
        " VALUES ('d-1', 'd', 1, 1, 'default')",
        "INSERT INTO evaluation_dataset_records (dataset_record_id, dataset_id, inputs, created_time, last_update_time,"
        " input_hash) VALUES ('r-1', 'd-1', '{{', 1, 1, 'h')",
    )
    pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow)
    target = f"sqlite:///{tmp_path / 'target.db'}"
    shutil.copy(empty_database_file, tmp_path / "target.db")
    unpack(tmp_path / "b", tracking_uri=target)
    assert rows(target, "SELECT value FROM assessments") == rows(target, "SELECT inputs FROM evaluation_dataset_records")
    assert rows(target, "SELECT value FROM assessments") == [("{{",)]
