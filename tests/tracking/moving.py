"""Moves content from a database straight into another, and shows a database as plain rows."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import sqlite3
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import alembic.command
import pyarrow.parquet as pq
import sqlalchemy
import zstandard
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

from mlflow_bundle.tracking._port import OpenBlob, PlannedRun, RunQuery, RunResult
from mlflow_bundle.tracking.database._read import DatabaseSource
from mlflow_bundle.tracking.database._write import DatabaseTarget

TABLES = (
    "experiments",
    "experiment_tags",
    "runs",
    "params",
    "tags",
    "metrics",
    "latest_metrics",
    "datasets",
    "inputs",
    "input_tags",
)

#: Tables and columns that a restored database does not repeat as they were, and why. All others are the same to the last byte.
UNLIKE: Mapping[str, str] = {
    "alembic_version": "of the schema",
    "jobs": "state of a running server",
    "job_locks": "state of a running server",
    "scheduler_leases": "state of a running server",
    "secrets": "never archived but for their names",
    "sql_assessment_daily_rollups": "MLflow rebuilds it",
    "sql_span_cost_daily_rollups": "MLflow rebuilds it",
    "sql_trace_metric_daily_rollups": "MLflow rebuilds it",
    "sql_trace_rollup_rebuild_queue": "MLflow rebuilds it",
    "datasets.dataset_uuid": "random",
    "inputs.input_uuid": "random",
    "inputs.source_id": "the random number of a dataset; the names of datasets are compared with the records",
    "input_tags.input_uuid": "random",
    "entity_associations.association_id": "random",
    "entity_associations.created_time": "no record says when a link was made: that of the entity stands in",
    "trace_info.db_payload_generation": "counts concurrent writes",
    "experiments.artifact_location": "the files lie elsewhere",
    "runs.artifact_uri": "the files lie elsewhere",
    "logged_models.artifact_location": "the files lie elsewhere",
    "model_versions.storage_location": "the files lie elsewhere",
    "trace_tags.value": "one of them says where the files lie; all are compared with the records",
    "webhooks.status": "restored disabled",
    "webhooks.url": "without its password",
    "webhooks.secret": "a secret",
    "online_scoring_configs.sample_rate": "restored as 0",
    "model_definitions.secret_id": "a secret",
}

Rows = list[tuple[Any, ...]]


def file_of(uri: str) -> str:
    """The file of a ``sqlite:///`` URI."""
    return uri.removeprefix("sqlite:///")


def execute(uri: str, *statements: str) -> None:
    """Run SQL on a SQLite database past everything."""
    with contextlib.closing(sqlite3.connect(file_of(uri))) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def rows(uri: str, sql: str) -> Rows:
    """The answer of a query, read through SQLAlchemy and not through ADBC."""
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(sql))]
    finally:
        engine.dispose()


def content(uri: str) -> dict[str, Rows]:
    """Every row that experiments and runs have, without artifact locations and without the ids that MLflow gives at random."""
    experiments = "experiment_id, name, workspace, lifecycle_stage, creation_time, last_update_time"
    runs = (
        "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, deleted_time, "
        "source_version, lifecycle_stage, experiment_id"
    )
    points = "run_uuid, key, step, timestamp, value, CAST(is_nan AS INTEGER)"
    datasets = "d.experiment_id, d.name, d.digest, d.dataset_source_type, d.dataset_source, d.dataset_schema, d.dataset_profile"
    inputs = "inputs i JOIN datasets d ON d.dataset_uuid = i.source_id"
    queries = {
        "experiments": f"SELECT {experiments} FROM experiments",
        "experiment_tags": "SELECT experiment_id, key, value FROM experiment_tags",
        "runs": f"SELECT {runs} FROM runs",
        "params": "SELECT run_uuid, key, value FROM params",
        "tags": "SELECT run_uuid, key, value FROM tags",
        "metrics": f"SELECT {points} FROM metrics",
        "latest_metrics": f"SELECT {points} FROM latest_metrics",
        "datasets": f"SELECT {datasets} FROM datasets d",
        "inputs": f"SELECT i.destination_id, i.source_type, i.destination_type, i.step, {datasets} FROM {inputs}",
        "input_tags": "SELECT i.destination_id, d.experiment_id, d.name, d.digest, t.name, t.value "
        f"FROM input_tags t JOIN ({inputs}) ON i.input_uuid = t.input_uuid",
    }
    assert tuple(queries) == TABLES
    return {table: sorted(rows(uri, sql), key=repr) for table, sql in queries.items()}


def every_row(uri: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table without what is ``UNLIKE``, computed and derived columns included, in one order."""
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    found: dict[str, list[dict[str, Any]]] = {}
    with engine.connect() as connection:
        for name, table in tables.tables.items():
            columns = [column for column in table.columns if f"{name}.{column.name}" not in UNLIKE]
            if name not in UNLIKE:
                rows = [dict(row._mapping) for row in connection.execute(sqlalchemy.select(*columns))]
                found[name] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))
    engine.dispose()
    return found


def make_database(uri: str, revision: str) -> None:
    """Make a database as MLflow's own migrations make it up to a revision, or upgrade one to it."""
    engine = sqlalchemy.create_engine(uri)
    if not sqlalchemy.inspect(engine).has_table("alembic_version"):
        InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
    engine.dispose()


def everything_in(folder: Path) -> bytes:
    """All bytes of a bundle, as they lie and with every compression undone."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        parts.append(data)
        if path.suffix == ".zst":
            parts.append(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read())
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                parts += [archive.read(name) for name in archive.namelist()]
        elif path.suffix == ".parquet":
            parts.append(str(pq.read_table(path).to_pylist()).encode())
    parts += [gzip.decompress(part) for part in parts if part[:2] == b"\x1f\x8b"]
    return b"\n".join(parts)


class Blobs:
    """File contents by SHA-256, read from the artifacts of a source. ``allowed``: how many may be opened before it fails."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Any, str]] = {}
        self.allowed: int | None = None

    def plan(self, store: Any) -> tuple[tuple[str, int, str], ...]:
        """The files of one run as ``PlannedRun`` wants them."""
        files = []
        for info in sorted(store.walk(), key=lambda info: info.path):
            with store.open(info.path) as file:
                data = file.read()
            sha256 = hashlib.sha256(data).hexdigest()
            self._places[sha256] = (store, info.path)
            files.append((info.path, len(data), sha256))
        return tuple(files)

    def open(self, sha256: str) -> AbstractContextManager[BinaryIO]:
        if self.allowed is not None:
            if self.allowed == 0:
                raise KeyboardInterrupt
            self.allowed -= 1
        store, path = self._places[sha256]
        opened: AbstractContextManager[BinaryIO] = store.open(path)
        return opened


def place(source: DatabaseSource, target: DatabaseTarget) -> dict[str, str]:
    """Place every experiment, merging by name; returns the ids at the target."""
    there = {experiment.name: experiment for experiment in target.experiments()}
    return {
        experiment.experiment_id: target.place_experiment(experiment, name=experiment.name, existing=there.get(experiment.name))
        for experiment in source.experiments()
    }


def restore(
    source: DatabaseSource, target: DatabaseTarget, ids: dict[str, str], blobs: Blobs | None, query: RunQuery | None = None
) -> Iterator[list[RunResult]]:
    """Restore the runs of a source batch by batch. Without ``blobs`` no files."""
    for batch in source.runs(query or RunQuery()):
        planned = [
            PlannedRun(
                source=run,
                experiment_id=ids[run.experiment_id],
                files=blobs.plan(source.artifacts(run)) if blobs else (),
            )
            for run in batch
        ]
        opener: OpenBlob = blobs.open if blobs else _nothing
        yield target.restore(planned, source.metrics([run.run_id for run in batch]), opener)


def _nothing(sha256: str) -> AbstractContextManager[BinaryIO]:
    raise AssertionError(f"no file {sha256} was planned")


def move(source_uri: str, target_uri: str, *, files: bool = False, **options: Any) -> tuple[list[RunResult], Sequence[str]]:
    """Everything of one database into another: the results of all runs, and the notes of the target."""
    source = DatabaseSource(source_uri)
    target = DatabaseTarget(target_uri, bundle_id="test", **options)
    try:
        ids = place(source, target)
        results = [result for batch in restore(source, target, ids, Blobs() if files else None) for result in batch]
        for experiment in source.experiments():
            target.finish_experiment(experiment, ids[experiment.experiment_id])
        return results, tuple(target.notes)
    finally:
        source.close()
        target.close()


def hide_rows(path: str, table: str, rows_of: str) -> None:
    """Let every index of a table be one without these rows."""
    root = "(SELECT rootpage FROM sqlite_master WHERE name = 'lost')"
    for (name,) in _ask(path, f"SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = '{table}'"):
        columns = ", ".join(str(row[2]) for row in _ask(path, f'PRAGMA index_info("{name}")'))
        _ask(
            path,
            f"CREATE TABLE other AS SELECT * FROM {table} WHERE NOT ({rows_of})",
            f"CREATE INDEX lost ON other ({columns})",
        )
        _ask(
            path,
            "PRAGMA writable_schema = 1",
            f"UPDATE sqlite_master SET rootpage = {root} WHERE name = '{name}'",
            "DELETE FROM sqlite_master WHERE name IN ('other', 'lost')",
        )


def _ask(path: str, *statements: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]
