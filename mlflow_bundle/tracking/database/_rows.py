"""Records as rows of MLflow's tables, in the columns that a database takes in bulk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle.records import DatasetInput, KeyValue, Run
from mlflow_bundle.tracking.database._connection import Connection, literals
from mlflow_bundle.tracking.database._read import RUN_COLUMNS

__all__ = ["append_experiment", "append_experiment_tags", "append_runs", "known_datasets", "read_texts"]

#: (experiment id, name, digest): what makes a dataset the same one.
DatasetKey = tuple[str, str, str]
_Rows = list[dict[str, Any]]

_IN_RUN: Final = {"key": pa.string(), "value": pa.string(), "run_uuid": pa.string()}
_ONE_TEXT: Final = pa.schema([pa.field("text", pa.string(), nullable=False)])
_TIMES: Final = {"creation_time": pa.int64(), "last_update_time": pa.int64()}


def read_texts(connection: Connection, sql: str) -> list[str]:
    """One text column, read in a transaction of its own."""
    found: list[str] = connection.fetch(sql, _ONE_TEXT).column(0).to_pylist()
    connection.commit()
    return found


def append_experiment(connection: Connection, row: Mapping[str, Any]) -> None:
    """Insert one row of ``experiments``."""
    kinds = {name: _TIMES.get(name, pa.string()) for name in row} | {"experiment_id": _id_type(connection)}
    _append(connection, "experiments", [row], kinds)


def append_experiment_tags(connection: Connection, experiment_id: str, tags: Iterable[KeyValue]) -> None:
    """Insert tags of one experiment."""
    rows = [{"key": tag.key, "value": tag.value, "experiment_id": int(experiment_id)} for tag in tags]
    kinds = {"key": pa.string(), "value": pa.string(), "experiment_id": _id_type(connection)}
    _append(connection, "experiment_tags", rows, kinds)


def append_runs(connection: Connection, runs: Sequence[Run], datasets: Mapping[DatasetKey, str]) -> None:
    """Insert runs with params, tags and dataset inputs. ``datasets`` are those that are there, from ``known_datasets``."""
    rows = [{column: getattr(run, name) for name, (column, _) in RUN_COLUMNS.items()} for run in runs]
    for row in rows:
        row["experiment_id"] = int(row["experiment_id"])
    _append(connection, "runs", rows, dict(RUN_COLUMNS.values()) | {"experiment_id": _id_type(connection)})
    for name in ("params", "tags"):
        pairs = [{"key": p.key, "value": p.value, "run_uuid": run.run_id} for run in runs for p in getattr(run, name)]
        _append(connection, name, pairs, _IN_RUN)
    _append_inputs(connection, runs, dict(datasets))


def _append_inputs(connection: Connection, runs: Iterable[Run], known: dict[DatasetKey, str]) -> None:
    """Insert the inputs of runs, and each dataset that is not known once. Ids are made of the content, never at random."""
    datasets, inputs, tags = _Rows(), _Rows(), _Rows()
    for run in runs:
        for entry in run.inputs:
            key = (run.experiment_id, entry.dataset.name, entry.dataset.digest)
            if key not in known:
                known[key] = _uuid("dataset", *key)
                datasets.append(_dataset_row(entry, key, known[key]))
            edge = {"source_type": "DATASET", "source_id": known[key], "destination_type": "RUN", "destination_id": run.run_id}
            input_id = _uuid("input", known[key], run.run_id)
            inputs.append({"input_uuid": input_id, **edge, "step": 0})
            tags += [{"input_uuid": input_id, "name": tag.key, "value": tag.value} for tag in entry.tags]
        inputs += _model_links(run)
    for name, rows, kinds in (
        ("datasets", datasets, {"experiment_id": _id_type(connection)}),
        ("inputs", inputs, {"step": pa.int64()}),
        ("input_tags", tags, {}),
    ):
        if rows:
            _append(connection, name, rows, dict.fromkeys(rows[0], pa.string()) | kinds)


def _model_links(run: Run) -> _Rows:
    """The logged models that a run read and made, as MLflow keeps them."""
    read = [("RUN_INPUT", "MODEL_INPUT", link.model_id, 0) for link in run.model_inputs]
    made = [("RUN_OUTPUT", "MODEL_OUTPUT", link.model_id, link.step) for link in run.model_outputs]
    return [
        {
            "input_uuid": _uuid(source, run.run_id, model),
            "source_type": source,
            "source_id": run.run_id,
            "destination_type": destination,
            "destination_id": model,
            "step": step,
        }
        for source, destination, model, step in (*read, *made)
    ]


def _dataset_row(entry: DatasetInput, key: DatasetKey, dataset_id: str) -> dict[str, Any]:
    experiment_id, name, digest = key
    return {
        "dataset_uuid": dataset_id,
        "experiment_id": int(experiment_id),
        "name": name,
        "digest": digest,
        "dataset_source_type": entry.dataset.source_type,
        "dataset_source": entry.dataset.source,
        "dataset_schema": entry.dataset.schema,
        "dataset_profile": entry.dataset.profile,
    }


def known_datasets(connection: Connection, runs: Iterable[Run]) -> dict[DatasetKey, str]:
    """The ids of the datasets of these runs that the database has already."""
    wanted = {(int(run.experiment_id), entry.dataset.digest) for run in runs for entry in run.inputs}
    if not wanted:
        return {}
    experiments = ", ".join(str(number) for number in sorted({number for number, _ in wanted}))
    sql = (
        "SELECT CAST(experiment_id AS VARCHAR), name, digest, dataset_uuid FROM datasets "
        f"WHERE experiment_id IN ({experiments}) AND digest IN {literals(sorted({digest for _, digest in wanted}))}"
    )
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("experiment", "name", "digest", "uuid")])
    columns = [column.to_pylist() for column in connection.fetch(sql, schema).columns]
    return {(experiment, name, digest): uuid for experiment, name, digest, uuid in zip(*columns, strict=True)}


def _id_type(connection: Connection) -> pa.DataType:
    """The type of experiment ids, which PostgreSQL takes in its own width only."""
    return pa.int64() if connection.uri.is_sqlite else pa.int32()


def _append(connection: Connection, name: str, rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, pa.DataType]) -> None:
    """Insert rows; what is absent becomes NULL."""
    if rows:
        columns = {
            column: pa.array([None if row[column] is UNSET else row[column] for row in rows], kind)
            for column, kind in kinds.items()
        }
        connection.append(name, pa.table(columns))


def _uuid(*parts: str) -> str:
    """32 hex digits that depend on these texts alone, like the random ones that MLflow gives."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
