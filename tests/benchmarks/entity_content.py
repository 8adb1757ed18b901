"""Makes many models, traces and evaluation records quickly: rows written straight into a database that MLflow created."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["EXPERIMENT", "add_dataset", "add_registry", "add_traces"]

#: The name of the experiment that everything is in.
EXPERIMENT: Final = "entities"
_BASE_TIME: Final = 1_780_000_000_000
_MINUTE: Final = 60_000
_SPAN_NANOSECONDS: Final = 1_000_000


def _id(*parts: object, digits: int = 32) -> str:
    """An id that is the same each time."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:digits]


def _experiment(connection: sqlite3.Connection, artifacts: str) -> int:
    (number,) = connection.execute("SELECT MAX(experiment_id) + 1 FROM experiments").fetchone()
    row = (number, EXPERIMENT, f"{artifacts}/{number}", "active", _BASE_TIME, _BASE_TIME, "default")
    names = "experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace"
    _insert(connection, "experiments", names, [row])
    return int(number)


def _insert(connection: sqlite3.Connection, table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    places = ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)


def add_registry(path: Path, *, models: int, versions: int, artifacts: str) -> None:
    """Registered models, each with a run that all its versions come from; every version has a tag, an alias names the last."""
    names = [f"model-{number:05d}" for number in range(models)]
    runs = {name: _id("run", name) for name in names}
    with sqlite3.connect(path) as connection:
        number = _experiment(connection, artifacts)
        _insert(
            connection,
            "runs",
            "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
            "source_version, lifecycle_stage, artifact_uri, experiment_id",
            [
                (run, name, "UNKNOWN", "", "", "benchmark", "FINISHED", start, start, "", "active", where, number)
                for start, (name, run) in enumerate(runs.items(), _BASE_TIME)
                for where in (f"{artifacts}/{number}/{run}/artifacts",)
            ],
        )
        stamps = "creation_time, last_updated_time, description, workspace"
        rows: list[tuple[Any, ...]] = [
            (name, _BASE_TIME + place, _BASE_TIME + place, f"the model {name}", "default") for place, name in enumerate(names)
        ]
        _insert(connection, "registered_models", f"name, {stamps}", rows)
        every = [(name, version) for name in names for version in range(1, versions + 1)]
        _insert(
            connection,
            "model_versions",
            f"name, version, {stamps}, user_id, current_stage, source, run_id, status",
            [
                (name, version, _BASE_TIME, _BASE_TIME, "good", "default", "benchmark", "None", source, runs[name], "READY")
                for name, version in every
                for source in (f"{artifacts}/{number}/{runs[name]}/artifacts/model",)
            ],
        )
        tags: list[tuple[Any, ...]] = [("stage", "candidate", name, version, "default") for name, version in every]
        _insert(connection, "model_version_tags", "key, value, name, version, workspace", tags)
        aliases: list[tuple[Any, ...]] = [(name, "champion", versions, "default") for name in names]
        _insert(connection, "registered_model_aliases", "name, alias, version, workspace", aliases)
    connection.close()


def add_traces(path: Path, *, traces: int, spans: int, artifacts: str) -> None:
    """Traces of a chain of spans, with a tag, metadata, inputs and outputs."""
    with sqlite3.connect(path) as connection:
        number = _experiment(connection, artifacts)
        ids = [f"tr-{_id('trace', place)}" for place in range(traces)]
        _insert(
            connection,
            "trace_info",
            "request_id, experiment_id, timestamp_ms, execution_time_ms, status, request_preview, response_preview, "
            "db_payload_generation, trace_name, session_id",
            [
                (trace, number, _BASE_TIME + place, spans, "OK", f'{{"n": {place}}}', f"{place}", 1, "answer", f"{place // 10}")
                for place, trace in enumerate(ids)
            ],
        )
        tags: list[tuple[Any, ...]] = [
            ("mlflow.artifactLocation", f"{artifacts}/{number}/traces/{trace}", trace) for trace in ids
        ]
        tags += [("team", "search", trace) for trace in ids]
        tags += [("mlflow.trace.spansLocation", "TRACKING_STORE", trace) for trace in ids]
        _insert(connection, "trace_tags", "key, value, request_id", tags)
        metadata: list[tuple[Any, ...]] = [("mlflow.trace_schema.version", "3", trace) for trace in ids]
        metadata += [("mlflow.user", "benchmark", trace) for trace in ids]
        _insert(connection, "trace_request_metadata", "key, value, request_id", metadata)
        columns = "trace_id, experiment_id, span_id, parent_span_id, name, type, status, start_time_unix_nano, "
        columns += "end_time_unix_nano, content"
        for place, trace in enumerate(ids):
            _insert(connection, "spans", columns, list(_spans(trace, number, _BASE_TIME + place, spans)))
    connection.close()


def _spans(trace: str, experiment: int, time: int, count: int) -> Iterator[tuple[Any, ...]]:
    """A root with a chain of children. Contents are as MLflow writes them: ids in base64, attributes as JSON texts."""
    parent = None
    for place in range(count):
        span = _id("span", trace, place, digits=16)
        start = time * 1_000_000 + place * _SPAN_NANOSECONDS
        end = time * 1_000_000 + count * _SPAN_NANOSECONDS
        kind, name = ("CHAIN", "answer") if place == 0 else ("RETRIEVER", f"step {place}")
        texts = {
            "mlflow.traceRequestId": trace,
            "mlflow.spanType": kind,
            "mlflow.spanInputs": {"question": f"what is {place}?", "context": ["a passage of some length"] * 4},
            "mlflow.spanOutputs": {"answer": f"it is {place}", "score": place / 7},
        }
        content: dict[str, Any] = {
            "trace_id": _base64(trace.removeprefix("tr-")),
            "span_id": _base64(span),
            "parent_span_id": None if parent is None else _base64(parent),
            "name": name,
            "start_time_unix_nano": start,
            "end_time_unix_nano": end,
            "events": [],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {key: json.dumps(value) for key, value in texts.items()},
            "links": [],
        }
        yield (trace, experiment, span, parent, name, kind, "OK", start, end, json.dumps(content))
        parent = span


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def add_dataset(path: Path, *, records: int, artifacts: str) -> None:
    """One evaluation dataset with many records."""
    dataset = f"d-{_id('dataset')}"
    with sqlite3.connect(path) as connection:
        number = _experiment(connection, artifacts)
        stamps = (_BASE_TIME, _BASE_TIME, "benchmark", "benchmark")
        times = "created_time, last_update_time, created_by, last_updated_by"
        _insert(
            connection,
            "evaluation_datasets",
            f"dataset_id, name, digest, workspace, {times}",
            [(dataset, "questions", "12345678", "default", *stamps)],
        )
        _insert(
            connection,
            "entity_associations",
            "association_id, source_type, source_id, destination_type, destination_id, created_time",
            [(f"a-{_id('link')}", "evaluation_dataset", dataset, "experiment", str(number), _BASE_TIME)],
        )
        rows = []
        for place in range(records):
            inputs = json.dumps({"question": f"question {place}", "number": place})
            texts = (json.dumps({"answer": f"answer {place}"}), "{}", json.dumps({"source_type": "HUMAN", "source_data": {}}))
            digest = hashlib.sha256(inputs.encode()).hexdigest()
            moment = _BASE_TIME + place % _MINUTE
            rows.append((f"dr-{_id(place)}", dataset, inputs, *texts, "HUMAN", moment, moment, *stamps[2:], digest))
        columns = f"dataset_record_id, dataset_id, inputs, expectations, tags, source, source_type, {times}, input_hash"
        _insert(connection, "evaluation_dataset_records", columns, rows)
    connection.close()
