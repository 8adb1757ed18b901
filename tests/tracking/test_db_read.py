"""Reading MLflow's databases: SQLite and PostgreSQL, every schema, every awkward row."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import ViewType
from msgspec import UNSET

from mlflow_bundle._series import series_digests, sort_series
from mlflow_bundle.errors import (
    AuthError,
    BundleError,
    CorruptError,
    NotFoundError,
    ServerError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from mlflow_bundle.records import KINDS, Run, order_key
from mlflow_bundle.tracking._port import SERIES_SCHEMA, RunQuery
from mlflow_bundle.tracking.database import _points_read
from mlflow_bundle.tracking.database import _read as _db_read
from mlflow_bundle.tracking.database._connection import parse_uri
from mlflow_bundle.tracking.database._read import DatabaseSource
from tests.fixtures.content import ContentSummary
from tests.tracking.moving import execute, file_of, make_database, move, rows

Awkward = tuple[str, ContentSummary]


@contextlib.contextmanager
def reading(uri: str, **options: Any) -> Iterator[DatabaseSource]:
    source = DatabaseSource(uri, **options)
    try:
        yield source
    finally:
        source.close()


def all_runs(source: DatabaseSource, query: RunQuery | None = None) -> list[Run]:
    return [run for batch in source.runs(query or RunQuery()) for run in batch]


def ids_of(source: DatabaseSource, **query: Any) -> list[str]:
    return [run.run_id for run in all_runs(source, RunQuery(**query))]


@pytest.fixture
def copy(awkward_database: Awkward, tmp_path: Path) -> str:
    """A copy of the awkward database that the test may change."""
    target = tmp_path / "copy.db"
    with (
        contextlib.closing(sqlite3.connect(file_of(awkward_database[0]))) as source,
        contextlib.closing(sqlite3.connect(target)) as made,
    ):
        source.backup(made)
    return f"sqlite:///{target}"


@pytest.fixture(scope="module")
def in_postgresql(awkward_database: Awkward, postgres_database: Callable[[], str]) -> str:
    """The awkward content in PostgreSQL, without files."""
    uri = postgres_database()
    results, _ = move(awkward_database[0], uri)
    assert [result.problems for result in results if result.problems] == []
    return uri


# -- records --------------------------------------------------------------------------------------------------------------


def test_experiments_have_every_column(awkward_database: Awkward) -> None:
    """Experiments come in archive order with exactly what the table and its tags hold."""
    uri, _ = awkward_database
    with reading(uri) as source:
        found = source.experiments()
    columns = "experiment_id, name, lifecycle_stage, artifact_location, creation_time, last_update_time, workspace"
    tags: dict[int, dict[str, str]] = {}
    for owner, key, value in rows(uri, "SELECT experiment_id, key, value FROM experiment_tags"):
        tags.setdefault(owner, {})[key] = value
    expected = {str(row[0]): (*row[1:], tags.get(row[0], {})) for row in rows(uri, f"SELECT {columns} FROM experiments")}
    assert {
        e.experiment_id: (
            e.name,
            e.lifecycle_stage,
            e.artifact_location,
            e.creation_time,
            e.last_update_time,
            e.workspace,
            {tag.key: tag.value for tag in e.tags},
        )
        for e in found
    } == expected
    assert found == sorted(found, key=order_key)
    assert {e.lifecycle_stage for e in found} == {"active", "deleted"}


def test_runs_have_every_column(awkward_database: Awkward, copy: str) -> None:
    """Runs hold every column of their table, also those that no REST API returns; NULL is an absent field."""
    named = awkward_database[1].runs["texts"]
    execute(
        copy,
        "UPDATE runs SET source_type = 'PROJECT', source_name = 'n', entry_point_name = 'e', source_version = 'v', "
        f"deleted_time = 7 WHERE run_uuid = '{named}'",
    )
    fields = [name for name in Run.__struct_fields__ if name in _db_read.RUN_COLUMNS]
    columns = [_db_read.RUN_COLUMNS[name][0] for name in fields]
    expected = {row[0]: list(map(_text_id, fields, row)) for row in rows(copy, f"SELECT {', '.join(columns)} FROM runs")}
    with reading(copy) as source:
        found = {run.run_id: [getattr(run, name) for name in fields] for run in all_runs(source)}
    assert found == expected
    assert UNSET not in found[named]


def _text_id(name: str, value: Any) -> Any:
    if value is None:
        return UNSET
    return str(value) if name == "experiment_id" else value


def test_runs_equal_what_mlflow_returns(awkward_database: Awkward) -> None:
    """Params, tags, dataset inputs with their tags, and what REST knows of a run are those of MLflow's own client."""
    uri, summary = awkward_database
    client = MlflowClient(uri)
    with reading(uri) as source:
        found = all_runs(source)
    assert sorted(run.run_id for run in found) == sorted(summary.run_ids)
    for run in found:
        wanted = client.get_run(run.run_id)
        assert {p.key: p.value for p in run.params} == wanted.data.params
        assert {t.key: t.value for t in run.tags} == wanted.data.tags
        assert [p.key for p in run.params] == sorted(wanted.data.params)
        inputs = {
            (i.dataset.name, i.dataset.digest): (
                i.dataset.source_type,
                i.dataset.source,
                i.dataset.schema,
                i.dataset.profile,
                {t.key: t.value for t in i.tags},
            )
            for i in wanted.inputs.dataset_inputs
        }
        assert {
            (i.dataset.name, i.dataset.digest): (
                i.dataset.source_type,
                i.dataset.source,
                i.dataset.schema or None,
                i.dataset.profile or None,
                {t.key: t.value for t in i.tags},
            )
            for i in run.inputs
        } == inputs
        info = wanted.info
        assert (run.run_name, run.status, run.start_time, run.end_time or None, run.lifecycle_stage, run.artifact_uri) == (
            info.run_name,
            info.status,
            info.start_time,
            info.end_time,
            info.lifecycle_stage,
            info.artifact_uri,
        )
    assert any(len(run.inputs) == 3 for run in found)


def test_runs_come_in_archive_order_in_batches(awkward_database: Awkward, copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start time, then the bytes of the id; no start time last; no batch longer than it may be; no run twice or missing."""
    first, second = awkward_database[1].run_ids[:2]
    execute(copy, f"UPDATE runs SET start_time = NULL WHERE run_uuid IN ('{first}', '{second}')")
    monkeypatch.setattr(_db_read, "BATCH_RUNS", 7)
    with reading(copy) as source:
        batches = list(source.runs(RunQuery()))
    found = [run for batch in batches for run in batch]
    assert found == sorted(found, key=order_key)
    assert {run.run_id for run in found[-2:]} == {first, second}
    assert {len(batch) for batch in batches[:-1]} == {7}
    assert sorted(run.run_id for run in found) == sorted(awkward_database[1].run_ids)


def test_null_columns_are_absent_fields(copy: str) -> None:
    """A run and an experiment of which every column that may be NULL is NULL are read, and nothing is invented."""
    execute(
        copy,
        "INSERT INTO experiments (experiment_id, name) VALUES (900, 'bare')",
        "INSERT INTO runs (run_uuid, experiment_id) VALUES ('bare', 900)",
        "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source) "
        "VALUES ('u', 900, 'd', 'x', 'local', '')",
        "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id) "
        "VALUES ('i', 'DATASET', 'u', 'RUN', 'bare')",
    )
    with reading(copy) as source:
        (run,) = source.runs_by_id(["bare"])
        experiment = next(e for e in source.experiments() if e.experiment_id == "900")
    set_fields = {name for name in run.__struct_fields__ if getattr(run, name) is not UNSET}
    assert set_fields == {
        "run_id",
        "experiment_id",
        "lifecycle_stage",
        "params",
        "tags",
        "inputs",
        "model_inputs",
        "model_outputs",
    }
    assert (run.inputs[0].dataset.source, run.inputs[0].dataset.schema, run.inputs[0].dataset.profile) == ("", UNSET, UNSET)
    assert (experiment.creation_time, experiment.artifact_location) == (UNSET, UNSET)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET start_time = 'yesterday' WHERE run_uuid = '{run}'",
        "UPDATE runs SET start_time = 1.5 WHERE run_uuid = '{run}'",
        "UPDATE runs SET name = x'ff' WHERE run_uuid = '{run}'",
        "UPDATE runs SET name = CAST(x'ff' AS TEXT) WHERE run_uuid = '{run}'",
        "UPDATE runs SET experiment_id = NULL WHERE run_uuid = '{run}'",
        "UPDATE params SET value = x'00ff' WHERE run_uuid = '{run}'",
        "UPDATE tags SET value = NULL WHERE run_uuid = '{run}'",
    ],
)
def test_a_run_with_a_value_of_a_wrong_type_is_a_problem(awkward_database: Awkward, copy: str, statement: str) -> None:
    """SQLite lets any column hold anything: what a record cannot hold is never cast or dropped. The run is left out and named,
    all others are read."""
    run_id = awkward_database[1].runs["texts"]
    with reading(copy) as source:
        others = [run for run in all_runs(source) if run.run_id != run_id]
    execute(copy, statement.format(run=run_id))
    with reading(copy) as source:
        assert all_runs(source) == others
        assert source.runs_by_id([run_id, others[0].run_id]) == others[:1]
        assert [(problem.kind, problem.id, problem.runs) for problem in source.problems()] == [("run", run_id, (run_id,))]


def test_an_error_of_a_column_says_where_and_what(awkward_database: Awkward, copy: str) -> None:
    """The message names column, table and a value; the hint is about the database and no bundle."""
    execute(copy, f"UPDATE runs SET start_time = 'yesterday' WHERE run_uuid = '{awkward_database[1].runs['texts']}'")
    with reading(copy) as source:
        list(source.runs(RunQuery()))
        (problem,) = source.problems()
    assert "the column 'start_time' of runs in the database" in problem.message
    assert "'yesterday'" in problem.message
    execute(copy, "UPDATE experiments SET creation_time = 'x'")
    with reading(copy) as source, pytest.raises(CorruptError, match="'creation_time' of experiments") as error:
        source.experiments()
    assert "typeof()" in str(error.value.hint)


@pytest.mark.parametrize("statement", ["UPDATE experiments SET creation_time = 'x'", "UPDATE experiment_tags SET value = NULL"])
def test_an_experiment_with_a_value_of_a_wrong_type_is_an_error(copy: str, statement: str) -> None:
    """Without its experiment no run can be archived: this one raises."""
    execute(copy, statement)
    with reading(copy) as source, pytest.raises(CorruptError):
        source.experiments()


@pytest.mark.parametrize("column", ["step", "timestamp", "value", "key"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_metric_of_a_wrong_type_is_an_error(
    awkward_database: Awkward, copy: str, column: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for metric points, wherever in a history they stand."""
    run_id = awkward_database[1].runs["long"]
    execute(copy, f"UPDATE metrics SET {column} = x'ff' WHERE run_uuid = '{run_id}' AND step = 20000")
    if streamed:
        monkeypatch.setattr(_points_read, "STREAMED_POINTS", 100)
        monkeypatch.setattr(_points_read, "CHUNK_POINTS", 4000)
    with reading(copy) as source, pytest.raises(BundleError) as raised:
        list(source.metrics([run_id]))
    assert isinstance(raised.value, CorruptError | ServerError)


# -- selection ------------------------------------------------------------------------------------------------------------


def test_queries_restrict_the_runs(awkward_database: Awkward) -> None:
    """Experiments, ids, times (both ends inclusive) and lifecycle restrict alone and together."""
    uri, summary = awkward_database
    with reading(uri) as source:
        everything = all_runs(source)
        times = sorted({run.start_time for run in everything})
        since, until = times[2], times[-3]
        deleted = next(iter(summary.deleted_experiments))
        some = (summary.run_ids[3], summary.run_ids[0], "none", "it's")
        for query, accepts in (
            (RunQuery(experiment_ids=(deleted, "77", "no number")), lambda r: r.experiment_id == deleted),
            (RunQuery(experiment_ids=()), lambda _: False),
            (RunQuery(run_ids=some), lambda r: r.run_id in some),
            (RunQuery(run_ids=()), lambda _: False),
            (RunQuery(since=since, until=until), lambda r: since <= r.start_time <= until),
            (RunQuery(lifecycle="active"), lambda r: r.lifecycle_stage == "active"),
            (RunQuery(lifecycle="deleted", until=until), lambda r: r.lifecycle_stage == "deleted" and r.start_time <= until),
        ):
            assert all_runs(source, query) == [run for run in everything if accepts(run)], query
        assert len(ids_of(source, since=since, until=until)) < len(everything)
        assert ids_of(source, since=since) != ids_of(source, since=since + 1)
        assert ids_of(source, until=until) != ids_of(source, until=until - 1)


@pytest.mark.parametrize(
    "filter_string",
    [
        "metrics.loss > 1.5",
        "metrics.`nan duplicates` != 7",
        "metrics.`nan duplicates` < 7",
        "params.p1 LIKE '0.%' AND attributes.start_time >= 1700000002000",
        "tags.`unicode/ключ` = '😀'",
        "attributes.status = 'KILLED'",
        "attributes.run_name LIKE 'same%'",
        "datasets.name = 'shared'",
        "dataset.context = 'test'",
        "params.empty = ''",
        "params.nothing IS NULL",
    ],
)
def test_filters_select_what_mlflow_selects(awkward_database: Awkward, filter_string: str) -> None:
    """A filter string selects the runs that MLflow's own search finds with it."""
    uri, summary = awkward_database
    ids = [e.experiment_id for e in MlflowClient(uri).search_experiments(view_type=ViewType.ALL)]
    wanted = MlflowClient(uri).search_runs(ids, filter_string, run_view_type=ViewType.ALL, max_results=1000)
    with reading(uri) as source:
        found = ids_of(source, filter=filter_string)
    assert sorted(found) == sorted(run.info.run_id for run in wanted)
    assert len(found) < len(summary.run_ids) or "NULL" in filter_string


def test_a_wrong_filter_is_a_usage_error(empty_mlflow: str) -> None:
    """Also where there is no run that it could be tried on."""
    with reading(empty_mlflow) as source, pytest.raises(UsageError, match="wrong filter"):
        list(source.runs(RunQuery(filter="params.x > 1")))


def test_runs_by_id_and_children(awkward_database: Awkward) -> None:
    """Runs by id, as far as they exist, and the children of runs, in archive order and each once."""
    uri, summary = awkward_database
    parent, child = summary.runs["parent"], summary.runs["child"]
    with reading(uri) as source:
        assert [r.run_id for r in source.runs_by_id([child, "none", parent, child])] == [parent, child]
        assert source.runs_by_id([]) == []
        expected = {run for run, of in summary.parents.items() if of in {parent, child}}
        children = source.children([parent, child, "it's none"])
        assert {run.run_id for run in children} == expected
        assert children == sorted(children, key=order_key)
        assert source.children(["none"]) == []
        assert [r.run_id for r in source.children(["0" * 32])] == [summary.runs["orphan"]]


# -- metrics --------------------------------------------------------------------------------------------------------------


def _points(source: DatabaseSource, run_ids: list[str]) -> dict[str, list[tuple[str, int, int, str]]]:
    found: dict[str, list[tuple[str, int, int, str]]] = {run_id: [] for run_id in run_ids}
    for table in source.metrics(run_ids):
        assert table.schema.equals(SERIES_SCHEMA)
        for row in table.to_pylist():
            found[run_ids[row["owner"]]].append((row["key"], row["step"], row["timestamp"], repr(row["value"])))
    return found


def test_metrics_are_complete_and_exact(awkward_database: Awkward) -> None:
    """Every point that was logged comes back bit for bit, NaN included, in order, and the counts say how many."""
    uri, summary = awkward_database
    with reading(uri) as source:
        found = _points(source, summary.run_ids)
        assert source.metric_counts([*summary.run_ids, "none"]) == [len(summary.points[i]) for i in summary.run_ids] + [0]

    def place(point: tuple[str, int, int, float]) -> tuple[bytes, int, int, bool, float]:
        key, step, timestamp, value = point
        return key.encode(), step, timestamp, math.isnan(value), 0.0 if math.isnan(value) else value

    for run_id, points in summary.points.items():
        assert found[run_id] == [(k, s, t, repr(v)) for k, s, t, v in sorted(points, key=place)]


@pytest.mark.parametrize(("chunk", "streamed"), [(1, 10_000_000), (50, 200), (5_000, 10_000), (250_000, 500_000)])
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_metrics_are_the_same_in_any_chunks(
    awkward_database: Awkward, in_postgresql: str, backend: str, chunk: int, streamed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks and streams give the same sorted rows in the asked order, and never more at once than they may."""
    uri, summary = awkward_database
    ids = summary.run_ids[::-1]
    with reading(uri) as source:
        expected = series_digests(source.metrics(ids), len(ids))
    monkeypatch.setattr(_points_read, "CHUNK_POINTS", chunk)
    monkeypatch.setattr(_points_read, "STREAMED_POINTS", streamed)
    with reading(uri if backend == "sqlite" else in_postgresql) as source:
        tables = list(source.metrics(ids))
    owners = np.concatenate([table["owner"].to_numpy() for table in tables])
    assert np.all(np.diff(owners) >= 0)
    assert series_digests(tables, len(ids)) == series_digests(map(sort_series, tables), len(ids)) == expected
    longest = max(len(points) for points in summary.points.values() if len(points) <= streamed)
    assert max(table.num_rows for table in tables) <= max(chunk, longest)


def test_the_first_counts_may_be_of_all_runs(awkward_database: Awkward, monkeypatch: pytest.MonkeyPatch) -> None:
    """For very many ids one scan counts all points, with the same result."""
    uri, summary = awkward_database
    with reading(uri) as source:
        expected = source.metric_counts(summary.run_ids)
        monkeypatch.setattr(_points_read, "_COUNT_ALL_FROM", 1)
        assert source.metric_counts(summary.run_ids) == expected


def test_ties_that_an_index_leaves_open_are_sorted(copy: str) -> None:
    """Points of one key and step that were logged out of order come out by timestamp and value, NaN last."""
    logged = [(5, 1.0, 0), (3, 2.0, 0), (3, 0.0, 1), (3, -1.0, 0), (4, 0.5, 0)]
    execute(copy, "INSERT INTO runs (run_uuid, experiment_id) VALUES ('ties', 0)")
    execute(
        copy,
        *(
            "INSERT INTO metrics (key, step, timestamp, value, is_nan, run_uuid) "
            f"VALUES ('k', 7, {time}, {value}, {nan}, 'ties')"
            for time, value, nan in logged
        ),
    )
    with reading(copy) as source:
        (table,) = source.metrics(["ties"])
    assert list(zip(table["timestamp"].to_pylist(), map(repr, table["value"].to_pylist()), strict=True)) == [
        (3, "-1.0"),
        (3, "2.0"),
        (3, "nan"),
        (4, "0.5"),
        (5, "1.0"),
    ]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_stream_may_be_left_and_others_go_on(
    awkward_database: Awkward, in_postgresql: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the tables of a stream other questions are answered; a stream left early keeps nothing from closing."""
    uri, summary = awkward_database
    monkeypatch.setattr(_points_read, "CHUNK_POINTS", 400)
    monkeypatch.setattr(_points_read, "STREAMED_POINTS", 1000)
    long = summary.runs["long"]
    source = DatabaseSource(uri if backend == "sqlite" else in_postgresql)
    first, second = source.metrics([long]), source.metrics([long])
    rows_read = next(first).num_rows
    assert next(second).num_rows == rows_read
    assert source.runs_by_id([long])
    rows_read += sum(table.num_rows for table in first)
    assert rows_read == len(summary.points[long])
    source.close()
    source.close()
    with pytest.raises(BundleError):
        source.runs_by_id([long])


def test_a_run_is_asked_for_once(awkward_database: Awkward) -> None:
    """The owners of rows would be ambiguous otherwise."""
    uri, summary = awkward_database
    with reading(uri) as source, pytest.raises(UsageError, match="twice"):
        list(source.metrics([summary.run_ids[0]] * 2))


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_threads_share_one_source(
    awkward_database: Awkward, in_postgresql: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams, chunks and records may be read by several threads at once; each gets its own rows."""
    uri, summary = awkward_database
    monkeypatch.setattr(_points_read, "CHUNK_POINTS", 500)
    monkeypatch.setattr(_points_read, "STREAMED_POINTS", 1000)
    with reading(uri) as source:
        expected = series_digests(source.metrics(summary.run_ids), len(summary.run_ids))
        runs = all_runs(source)
    with reading(uri if backend == "sqlite" else in_postgresql) as source, ThreadPoolExecutor(4) as executor:
        series = [
            executor.submit(lambda: series_digests(source.metrics(summary.run_ids), len(summary.run_ids))) for _ in range(3)
        ]
        records = [executor.submit(all_runs, source) for _ in range(3)]
        assert [future.result() for future in series] == [expected] * 3
        for future in records:
            assert [run.run_id for run in future.result()] == [run.run_id for run in runs]


def test_artifacts_are_those_of_the_run(awkward_database: Awkward) -> None:
    """Every file of every run, by path, size and content."""
    uri, summary = awkward_database
    with reading(uri) as source:
        for run in all_runs(source):
            store = source.artifacts(run)
            found = {}
            for info in store.walk():
                with store.open(info.path) as file:
                    data = file.read()
                assert info.size == len(data)
                found[info.path] = (len(data), hashlib.sha256(data).hexdigest())
            assert found == summary.files[run.run_id]


def test_a_run_without_a_location_has_no_files(copy: str) -> None:
    """Where ``artifact_uri`` is NULL there is nothing to list, and the working folder is not taken for it."""
    execute(copy, "INSERT INTO runs (run_uuid, experiment_id) VALUES ('nowhere', 0)")
    with reading(copy) as source:
        store = source.artifacts(source.runs_by_id(["nowhere"])[0])
        assert list(store.walk()) == []
        with pytest.raises(StorageError):
            store.open("x")


# -- schemas --------------------------------------------------------------------------------------------------------------

#: What experiments and runs are made of, and all other kinds, each of which a schema has or is said to lack.
RUN_TABLES = {"experiments", "experiment_tags", "runs", "datasets", "inputs", "input_tags"}
OTHER_KINDS = KINDS.keys() - {"experiment", "run"}
#: The last revision of MLflow 1.30, 2.4, 2.7, 2.8, 2.14, 2.22, 3.0 and one before workspaces.
REVISIONS = {
    "97727af70f4d": {"experiments.workspace", "datasets", "inputs", "input_tags"},
    "7f2a7d5fae7d": {"experiments.workspace"},
    "2d6e25af4d3e": {"experiments.workspace"},
    "acf3f17fdcc7": {"experiments.workspace"},
    "867495a8f9d4": {"experiments.workspace"},
    "0584bdc529eb": {"experiments.workspace"},
    "6953534de441": {"experiments.workspace"},
    "c8d9e0f1a2b3": {"experiments.workspace"},
    "heads": set(),
}


OLD_RUN = {
    "run_uuid": "'r1'",
    "name": "''",
    "status": "'FINISHED'",
    "start_time": "9",
    "deleted_time": "8",
    "lifecycle_stage": "'deleted'",
    "experiment_id": "3",
    "source_type": "'LOCAL'",
}
OLD_DATASET = {
    "dataset_uuid": "'u'",
    "experiment_id": "3",
    "name": "'iris'",
    "digest": "'abc'",
    "dataset_source_type": "'local'",
    "dataset_source": "'{}'",
}
OLD_INPUT = {
    "input_uuid": "'i'",
    "source_type": "'DATASET'",
    "source_id": "'u'",
    "destination_type": "'RUN'",
    "destination_id": "'r1'",
}


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_schema_is_read(revision: str, backend: str, tmp_path: Path, postgres_database: Callable[[], str]) -> None:
    """Databases of MLflow 1.30 to today are read as they are; what their schema lacks is absent and named."""
    uri = f"sqlite:///{tmp_path}/old.db" if backend == "sqlite" else postgres_database()
    make_database(uri, revision)
    statements = [
        "INSERT INTO experiments (experiment_id, name, lifecycle_stage, creation_time) VALUES (3, 'old', 'active', 5)",
        "INSERT INTO experiment_tags (key, value, experiment_id) VALUES ('team', 'größe', 3)",
        f"INSERT INTO runs ({', '.join(OLD_RUN)}) VALUES ({', '.join(OLD_RUN.values())})",
        "INSERT INTO params (key, value, run_uuid) VALUES ('p', '1', 'r1')",
        "INSERT INTO tags (key, value, run_uuid) VALUES ('mlflow.runName', 'old name', 'r1')",
    ]
    metric = "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid)"
    for step, value, nan in ((2, 0, "true"), (1, 0.5, "false"), (-1, 1e308, "false")):
        statements.append(f"{metric} VALUES ('m', {value}, {step}, {step}, {nan}, 'r1')")
    with_datasets = "datasets" not in REVISIONS[revision]
    if with_datasets:
        statements += [
            f"INSERT INTO datasets ({', '.join(OLD_DATASET)}) VALUES ({', '.join(OLD_DATASET.values())})",
            f"INSERT INTO inputs ({', '.join(OLD_INPUT)}) VALUES ({', '.join(OLD_INPUT.values())})",
            "INSERT INTO input_tags (input_uuid, name, value) VALUES ('i', 'mlflow.data.context', 'train')",
        ]
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()
    with reading(uri) as source:
        of_runs = {name for name in source.description.absent if name.partition(".")[0] in RUN_TABLES}
        assert of_runs == REVISIONS[revision]
        assert set(source.kinds()) | {name for name in source.description.absent if name in KINDS} == OTHER_KINDS
        (experiment,) = source.experiments()
        assert (experiment.experiment_id, experiment.name, experiment.creation_time) == ("3", "old", 5)
        assert experiment.workspace == (UNSET if "experiments.workspace" in REVISIONS[revision] else "default")
        assert [(t.key, t.value) for t in experiment.tags] == [("team", "größe")]
        (run,) = all_runs(source, RunQuery(filter="attributes.run_name = 'old name'"))
        assert (run.run_name, run.status, run.start_time, run.deleted_time) == ("", "FINISHED", 9, 8)
        assert (run.lifecycle_stage, run.source_type, run.experiment_id) == ("deleted", "LOCAL", "3")
        assert [(p.key, p.value) for p in run.params] == [("p", "1")]
        assert [i.dataset.name for i in run.inputs] == (["iris"] if with_datasets else [])
        assert [t.value for i in run.inputs for t in i.tags] == (["train"] if with_datasets else [])
        (table,) = source.metrics(["r1"])
        assert table["step"].to_pylist() == [-1, 1, 2]
        assert list(map(repr, table["value"].to_pylist())) == ["1e+308", "0.5", "nan"]


# -- one state, nothing written -------------------------------------------------------------------------------------------


def test_reading_leaves_the_file_as_it_was(awkward_database: Awkward) -> None:
    """Bytes and time of change of the database stay the same, and no file appears beside it."""
    uri, summary = awkward_database
    path = Path(file_of(uri))
    before = path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest(), sorted(path.parent.iterdir())
    with reading(uri) as source:
        source.experiments()
        all_runs(source, RunQuery(filter="metrics.loss > 0"))
        list(source.metrics(summary.run_ids))
    assert (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest(), sorted(path.parent.iterdir())) == before


def test_reading_needs_no_mlflow(awkward_database: Awkward) -> None:
    """Importing MLflow costs more than reading most databases."""
    code = (
        "import sys; from mlflow_bundle.tracking.database._read import DatabaseSource as S; "
        "from mlflow_bundle.tracking._port import RunQuery; "
        f"s = S({awkward_database[0]!r}); print(sum(len(b) for b in s.runs(RunQuery()))); s.experiments(); s.close(); "
        "assert not {'mlflow', 'sqlalchemy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(awkward_database[1].run_ids)


def _insert_elsewhere(uri: str, run_id: str, mode: str) -> str:
    """Insert a run as another process does; locks of one process do not keep its own libraries from each other."""
    code = (
        "import sqlite3\n"
        f"c = sqlite3.connect({file_of(uri)!r}, isolation_level=None, timeout=0.1)\n"
        "try:\n"
        f"    c.execute('PRAGMA journal_mode = {mode}')\n"
        f"    c.execute(\"INSERT INTO runs (run_uuid, experiment_id) VALUES ('{run_id}', 0)\")\n"
        "    print('written')\n"
        "except sqlite3.OperationalError as error:\n"
        "    print(error)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("mode", "answer"), [("wal", "written"), ("delete", "database is locked")])
def test_a_sqlite_database_is_read_as_it_was_when_opened(copy: str, mode: str, answer: str) -> None:
    """What a server writes meanwhile is not seen: with a log it goes on writing, without one it waits."""
    assert _insert_elsewhere(copy, "before", mode) == "written"
    with reading(copy) as source:
        assert _insert_elsewhere(copy, "after", mode) == answer
        ids = ids_of(source)
        assert "before" in ids
        assert "after" not in ids
    assert _insert_elsewhere(copy, "later", mode) == "written"
    with reading(copy) as source:
        assert {"before", "later"} <= set(ids_of(source))


def test_a_postgresql_database_is_read_as_it_was_when_opened(in_postgresql: str) -> None:
    """All queries see one snapshot, which no other client is kept from changing."""
    with reading(in_postgresql) as source:
        before = ids_of(source)
        engine = sqlalchemy.create_engine(in_postgresql)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO runs (run_uuid, experiment_id) VALUES ('later', 0)"))
        assert ids_of(source) == before
        with reading(in_postgresql) as second:
            assert set(ids_of(second)) == {*before, "later"}
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("DELETE FROM runs WHERE run_uuid = 'later'"))
        engine.dispose()
        with pytest.raises(ServerError, match="read-only"):
            source._db.run("DELETE FROM runs")


def test_a_change_behind_the_locks_is_an_error(copy: str) -> None:
    """A writer that the lock does not stop (here another copy of SQLite in this process) makes reading fail, not err."""
    with reading(copy) as source:
        execute(copy, "INSERT INTO runs (run_uuid, experiment_id) VALUES ('sneaked in', 0)")
        with pytest.raises(ServerError, match="changed while it was read"):
            list(source.runs(RunQuery()))


@contextlib.contextmanager
def _without_rights() -> Iterator[None]:
    """As somebody who may not write everywhere, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_wal_database_in_a_folder_that_cannot_be_written_is_read(copy: str) -> None:
    """A database at rest in WAL mode needs no helper files to be read; a change meanwhile is an error."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "mlflow.db"
        Path(file_of(copy)).rename(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
        folder.chmod(0o555)
        try:
            with _without_rights():
                source = DatabaseSource(f"sqlite:///{path}")
            assert ids_of(source)
            assert list(folder.iterdir()) == [path]
            with path.open("ab") as file:
                file.write(b"\0" * 4096)
            with pytest.raises(ServerError, match="changed while it was read"):
                source.experiments()
            source.close()
        finally:
            folder.chmod(0o755)


# -- what is no such database ---------------------------------------------------------------------------------------------


def test_a_missing_file_is_not_found_and_not_made(tmp_path: Path) -> None:
    """SQLite would make an empty database there."""
    with pytest.raises(NotFoundError, match="no database file") as raised:
        DatabaseSource(f"sqlite:///{tmp_path}/none.db")
    assert raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_and_databases_are_refused(tmp_path: Path, postgres_database: Callable[[], str]) -> None:
    """A text file, a folder, an empty file, a database of something else: each in one sentence."""
    text = tmp_path / "text.db"
    text.write_text("this is no database, whatever its name says" * 10)
    empty = tmp_path / "empty.db"
    empty.touch()
    other = f"sqlite:///{tmp_path}/other.db"
    execute(other, "CREATE TABLE runs (x INTEGER)")
    for uri, kind in (
        (f"sqlite:///{text}", ServerError),
        (f"sqlite:///{tmp_path}", NotFoundError),
        (f"sqlite:///{empty}", NotFoundError),
        (other, NotFoundError),
        (postgres_database(), NotFoundError),
    ):
        with pytest.raises(kind):
            DatabaseSource(uri)


def test_a_damaged_database_is_corrupt(copy: str, awkward_database: Awkward) -> None:
    """Pages overwritten in the middle of the file raise an error instead of giving fewer rows."""
    path = Path(file_of(copy))
    data = bytearray(path.read_bytes())
    for start in range(4096 * 40, len(data), 4096):
        data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises((CorruptError, ServerError)):
        _read_everything(copy)


def _read_everything(uri: str) -> None:
    with reading(uri) as source:
        list(source.metrics(ids_of(source)))


def test_databases_that_are_not_supported_are_named() -> None:
    """Another dialect, a database in memory, and what is no URI."""
    for uri in ("mysql://u:secret@h/db", "mssql+pyodbc://h/db", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(UnsupportedError) as raised:
            parse_uri(uri)
        assert "secret" not in str(raised.value)
    with pytest.raises(UsageError):
        parse_uri("mlflow.db")


def test_uris_mean_what_they_mean_to_mlflow() -> None:
    """Three slashes are a relative path, four an absolute one; drivers of PostgreSQL and options stay or go as they must."""
    assert parse_uri("sqlite:///rel.db").path == Path("rel.db")
    assert parse_uri("sqlite:////abs/a b%20.db").path == Path("/abs/a b%20.db")
    assert parse_uri("sqlite+pysqlite:////abs/x.db").path == Path("/abs/x.db")
    assert parse_uri("sqlite:///file:/abs/x.db?mode=ro&uri=true").path == Path("/abs/x.db")
    uri = parse_uri("postgresql+psycopg2://u:p%40w@h:5/db?sslmode=require")
    assert uri.libpq == "postgresql://u:p%40w@h:5/db?sslmode=require"
    assert "p%40w" not in uri.shown + repr(uri)


def test_postgresql_errors_are_told_apart(postgres_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No such database, no such role, no such server; no message holds a password."""
    uri = postgres_database()
    for wrong, kind in (
        (uri.replace("/database_", "/nowhere_"), NotFoundError),
        (uri.replace("postgres:@", "nobody:secret@"), AuthError),
        ("postgresql://u:secret@127.0.0.1:1/db", ServerError),
    ):
        with pytest.raises(kind) as raised:
            DatabaseSource(wrong)
        assert "secret" not in str(raised.value)


def test_an_odd_path_is_opened(copy: str, tmp_path: Path) -> None:
    """Characters that mean something in a URI are only characters of a file name."""
    odd = tmp_path / "a b%20#ü.db"
    Path(file_of(copy)).rename(odd)
    with reading(f"sqlite:///{odd}") as source:
        assert ids_of(source)


def test_the_description_has_no_password(in_postgresql: str) -> None:
    """The redacted URI, the kind and the revision of the schema describe a source."""
    with reading(in_postgresql.replace("postgres:@", "postgres:secret@")) as source:
        assert source.description.kind == "postgresql"
        assert "secret" not in source.description.uri
        assert source.description.version.startswith("schema ")


def test_mlflow_agrees_on_the_latest_metrics(awkward_database: Awkward) -> None:
    """What filters see as the latest value of a metric is what MLflow shows."""
    uri, summary = awkward_database
    with reading(uri) as source:
        latest = source._points.latest(summary.run_ids)
    for run_id in summary.run_ids:
        assert repr(dict(sorted(latest.get(run_id, {}).items()))) == repr(
            dict(sorted(mlflow.MlflowClient(uri).get_run(run_id).data.metrics.items()))
        )
