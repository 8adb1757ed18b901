"""What a database holds that no reader comes by: told as notes, because nothing of it is in an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.tracking.database._connection import Column, Connection, literals
from mlflow_bundle.tracking.database._entities import ENTITIES
from mlflow_bundle.tracking.database._not_archived import NOT_ARCHIVED
from mlflow_bundle.tracking.database._traces_read import EXTRA_COLUMNS

__all__ = ["archived_columns", "unread"]

#: Columns that the roads of experiments, runs and owned tables read, which are not rows of ``ENTITIES``.
_READ_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "experiments": (
            *("experiment_id", "name", "workspace", "artifact_location"),
            *("lifecycle_stage", "creation_time", "last_update_time"),
        ),
        "experiment_tags": ("experiment_id", "key", "value"),
        "runs": (
            *("run_uuid", "experiment_id", "name", "user_id", "status", "start_time", "end_time", "deleted_time"),
            *("lifecycle_stage", "artifact_uri", "source_type", "source_name", "entry_point_name", "source_version"),
        ),
        "params": ("key", "value", "run_uuid"),
        "tags": ("key", "value", "run_uuid"),
        "metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
        "datasets": (
            *("experiment_id", "name", "digest", "dataset_source_type"),
            *("dataset_source", "dataset_schema", "dataset_profile"),
        ),
        "inputs": ("source_type", "source_id", "destination_type", "destination_id", "step"),
        "input_tags": ("input_uuid", "name", "value"),
        "logged_model_metrics": (
            *("model_id", "experiment_id", "metric_name", "metric_timestamp_ms", "metric_step", "metric_value"),
            *("run_id", "dataset_name", "dataset_digest"),
        ),
        "spans": tuple(name for name in TABLES["spans/1"].schema.names if name != "experiment_id"),
        "trace_info": tuple(EXTRA_COLUMNS),
    }
)
#: Tables of links, the columns that say what is linked, and the kinds of links that readers follow.
_LINKS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = MappingProxyType(
    {
        "inputs": (("DATASET", "RUN"), ("RUN_INPUT", "MODEL_INPUT"), ("RUN_OUTPUT", "MODEL_OUTPUT")),
        "entity_associations": (
            *(("trace", "run"), ("trace", "prompt_version")),
            ("evaluation_dataset", "experiment"),
        ),
    }
)
#: Runs of one SQL ``IN``, and the number of runs from which on asking about all is quicker.
_RUNS: Final = 1_000
_ALL_FROM: Final = 20_000
_NUMBER: Final = pa.schema([pa.field("n", pa.int64(), nullable=False)])
_KIND_OF_LINK: Final = pa.schema(
    [pa.field("source", pa.string()), pa.field("destination", pa.string()), pa.field("n", pa.int64(), nullable=False)]
)
_EXAMPLE: Final = pa.schema(
    [pa.field("n", pa.int64(), nullable=False), pa.field("run", pa.string()), pa.field("name", pa.string())]
)


def archived_columns() -> dict[str, set[str]]:
    """Every column that is read, by table."""
    found: dict[str, set[str]] = {table: set(columns) for table, columns in _READ_ELSEWHERE.items()}
    for entity in ENTITIES.values():
        found.setdefault(entity.table, set()).update(entity.fields.values(), entity.key)
        for child in entity.children:
            columns = found.setdefault(child.table, set())
            columns.update(child.columns.values(), child.link, child.constants)
    return found


def unread(connection: Connection, tables: Mapping[str, Mapping[str, Column]], run_ids: Sequence[str]) -> list[str]:
    """A sentence for each kind of content that is there and is read by nobody. ``tables`` are all columns, by table;
    ``run_ids`` are the runs whose metrics matter."""
    return [
        *_unknown(connection, tables),
        *_unknown_links(connection, tables),
        *_inputs_of_nothing(connection, tables),
        *_lost_points(connection, tables, run_ids),
    ]


def _unknown(connection: Connection, tables: Mapping[str, Mapping[str, Column]]) -> Iterator[str]:
    """Tables and columns that MLflow did not have when this was written, or that are somebody else's, and are in use."""
    known = archived_columns()
    for table, columns in sorted(tables.items()):
        if table in NOT_ARCHIVED:
            continue
        if table not in known:
            if rows := _count(connection, f'SELECT COUNT(*) FROM "{table}"'):
                yield f"the table {table} ({rows:,} rows) is no part of the MLflow that this version knows: it is left out"
            continue
        for column in sorted(columns.keys() - known[table]):
            if f"{table}.{column}" not in NOT_ARCHIVED and _count(connection, _in_use(table, column)):
                yield f"the column {table}.{column} is no part of the MLflow that this version knows: it is left out"


def _in_use(table: str, column: str) -> str:
    return f'SELECT COUNT(*) FROM (SELECT 1 FROM "{table}" WHERE "{column}" IS NOT NULL LIMIT 1) AS used'


def _unknown_links(connection: Connection, tables: Mapping[str, Mapping[str, Column]]) -> Iterator[str]:
    for table, followed in _LINKS.items():
        if table in tables:
            sql = f"SELECT source_type, destination_type, COUNT(*) FROM {table} GROUP BY source_type, destination_type"
            for link in connection.fetch(sql, _KIND_OF_LINK).to_pylist():
                if (link["source"], link["destination"]) not in followed:
                    kind = f"{link['source']!r} and {link['destination']!r}"
                    yield f"{link['n']:,} rows of {table} link {kind}, which no archive has a place for: they are left out"


def _inputs_of_nothing(connection: Connection, tables: Mapping[str, Mapping[str, Column]]) -> Iterator[str]:
    """Inputs of runs that name a dataset which is not there: MLflow does not show them either."""
    if "inputs" in tables and "datasets" in tables:
        sql = (
            "SELECT COUNT(*), MIN(i.destination_id), MIN(i.source_id) FROM inputs i "
            "WHERE i.source_type = 'DATASET' AND i.destination_type = 'RUN' "
            "AND NOT EXISTS (SELECT 1 FROM datasets d WHERE d.dataset_uuid = i.source_id)"
        )
        count, run, _ = connection.fetch(sql, _EXAMPLE).to_pylist()[0].values()
        if count:
            yield f"{count:,} inputs of runs name a dataset that is not there, and are left out (for example of run {run})"


def _lost_points(connection: Connection, tables: Mapping[str, Mapping[str, Column]], run_ids: Sequence[str]) -> Iterator[str]:
    """Last values of metrics whose history was purged. The whole key is compared, so that an index answers."""
    if "latest_metrics" not in tables:
        return
    # SQLite would take the index of the runs, and go through all points of a run for each of its metrics: + forbids it that.
    run = "+m.run_uuid" if connection.uri.is_sqlite else "m.run_uuid"
    sql = (
        "SELECT COUNT(*), MIN(l.run_uuid), MIN(l.key) FROM latest_metrics l WHERE NOT EXISTS (SELECT 1 FROM metrics m "
        f"WHERE m.key = l.key AND m.timestamp = l.timestamp AND m.step = l.step AND {run} = l.run_uuid)"
    )
    queries = [sql]
    if len(run_ids) < _ALL_FROM:
        some = (run_ids[start : start + _RUNS] for start in range(0, len(run_ids), _RUNS))
        queries = [f"{sql} AND l.run_uuid IN {literals(ids)}" for ids in some]
    found = [row for query in queries for row in connection.fetch(query, _EXAMPLE).to_pylist() if row["n"]]
    if found:
        yield (
            f"{sum(row['n'] for row in found):,} metrics have a last value that is in no history of theirs any more: an archive"
            f" holds histories, so that these values are left out (for example in run {found[0]['run']}, for example of"
            f" {found[0]['name']!r})"
        )


def _count(connection: Connection, sql: str) -> int:
    return int(connection.fetch(sql, _NUMBER).column(0)[0].as_py())
