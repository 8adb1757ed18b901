"""What the tests of the core build bundles from: series, records, files, and a whole pack without MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_bundle._base import Base
from mlflow_bundle._limits import Targets
from mlflow_bundle._manifest import Committed, ensure_marker, snapshots
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.entities import (
    Alias,
    Assessment,
    DatasetRecord,
    EvaluationDataset,
    LoggedModel,
    ModelVersion,
    PromptLink,
    RegisteredModel,
    Scorer,
    ScorerVersion,
    Trace,
)
from mlflow_bundle.records import Experiment, KeyValue, Problem, Record, Run, Scope, Source, record_id

START = 1_700_000_000_000
SERIES = pa.schema(
    [
        pa.field("owner", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
#: Targets so small that a few runs fill several objects of every role.
TINY = Targets(
    frame_bytes=600,
    records_bytes=3_000,
    metric_rows=120,
    rows_bytes=3_000,
    file_rows=12,
    index_rows=40,
    pack_bytes=2_000,
    pack_entries=20,
    blob_bytes=1_000,
    split_bytes=6_000,
    part_bytes=2_500,
)

Point = tuple[int, str, int, int, float]
"""owner, key, step, timestamp in milliseconds, value"""


def series(points: Iterable[Point]) -> pa.Table:
    """Points as a ``SERIES_SCHEMA`` table, in the order given."""
    columns = list(zip(*points, strict=True)) or [()] * 5
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SERIES, strict=True)], schema=SERIES)


def points_of(table: pa.Table) -> list[tuple[int, str, int, int, bytes]]:
    """The rows of a series table, values as their eight bytes, so that NaN and -0.0 compare."""
    columns = [table.column(name).to_pylist() for name in SERIES.names]
    return [(*row[:4], struct.pack("<d", row[4])) for row in zip(*columns, strict=True)]


def archive_order(point: Point) -> tuple[int, bytes, int, int, int]:
    """The sort key of a point as the specification says it."""
    bits = struct.unpack("<q", struct.pack("<d", point[4]))[0]
    total = bits if bits >= 0 else -(bits & (2**63 - 1)) - 1
    return (point[0], point[1].encode(), point[2], point[3], total)


def realistic_series(owners: int, keys: int, steps: int, *, seed: int = 5) -> pa.Table:
    """Sorted histories as training writes them: losses that fall with noise, a point each few seconds with jitter."""
    source = np.random.default_rng(seed)
    rows = keys * steps
    tables = []
    for owner in range(owners):
        step = np.tile(np.arange(steps), keys)
        stamp = np.tile(START + owner * 10**7 + np.cumsum(source.integers(4_900, 5_100, steps)), keys)
        value = np.exp(-step / steps) + source.normal(0, 0.05, rows)
        names = pa.array(sorted(f"metric_{k}" for k in range(keys))).take(pa.array(np.repeat(np.arange(keys), steps)))
        columns = [pa.array(np.full(rows, owner), pa.int32()), names, pa.array(step), pa.array(stamp), pa.array(value)]
        tables.append(pa.Table.from_arrays(columns, schema=SERIES))
    return pa.concat_tables(tables)


Row = dict[str, Any]
"""The columns of a plain row by name, without the ids of its owner and experiment."""


@dataclass
class Content:
    """What a little archive holds: runs by id, their points (without owner) and files; then other records, their rows by
    table and id, and their files by kind and id."""

    experiments: list[Experiment] = field(default_factory=lambda: [Experiment(experiment_id="1", name="churn")])
    runs: list[Run] = field(default_factory=list)
    points: dict[str, list[tuple[str, int, int, float]]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    entities: list[Record] = field(default_factory=list)
    rows: dict[tuple[str, str], list[Row]] = field(default_factory=dict)
    entity_files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)


def run_of(number: int, *, experiment: str = "1", tags: Mapping[str, str] | None = None) -> Run:
    """A run with everything in its place."""
    return Run(
        run_id=hashlib.md5(str(number).encode()).hexdigest(),
        experiment_id=experiment,
        run_name=f"run {number}",
        user_id="me",
        status="FINISHED",
        start_time=START + 1000 * number,
        end_time=START + 1000 * number + 500,
        artifact_uri=f"mlflow-artifacts:/1/{number}/artifacts",
        params=(KeyValue(key="lr", value=f"{number}e-3"),),
        tags=tuple(KeyValue(key=key, value=value) for key, value in (tags or {"team": "größe"}).items()),
    )


def content_of(runs: int, *, files: int = 2, points: int = 10) -> Content:
    """A little archive of many equal runs with their own values and files."""
    content = Content()
    for number in range(runs):
        run = run_of(number)
        content.runs.append(run)
        content.points[run.run_id] = [("loss", step, START + step, step / (number + 1)) for step in range(points)]
        content.files[run.run_id] = {f"f{i}.txt": f"file {i} of {number} ".encode() * 5 for i in range(files)}
    return content


#: The tables of plain rows, and the kind of their owners.
PLAIN = {"model_metrics/1": "logged_model", "spans/1": "trace"}


def plain_schema(table: str) -> pa.Schema:
    """The columns of a table of plain rows as sources give them: ``owner`` in place of the ids."""
    spec = TABLES[table]
    ids = ("experiment_id", spec.owner)
    return pa.schema([SERIES.field("owner"), *(column for column in spec.schema if column.name not in ids)])


def plain_rows(table: str, ids: Mapping[str, Sequence[str]], rows: Mapping[tuple[str, str], Sequence[Row]]) -> pa.Table:
    """The rows of a table for the owners of these ids."""
    owners = enumerate(ids[PLAIN[table]])
    found = [{"owner": number, **row} for number, owner in owners for row in rows.get((table, owner), ())]
    return pa.Table.from_pylist(found, schema=plain_schema(table))


def rows_digest(table: str, rows: Sequence[Row]) -> str:
    """The digest of an owner's plain rows as the specification says it."""

    def value(row: Row, name: str) -> Any:
        found = row.get(name)
        return struct.pack(">d", found).hex() if isinstance(found, float) else found

    lines = [[value(row, name) for name in TABLES[table].digested] for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(packer: Packer, files: Mapping[str, bytes]) -> list[FileRow]:
    return [FileRow(path=path, size=len(data), sha256=packer.blobs.add_bytes(data)) for path, data in files.items()]


def span_of(trace: int, number: int) -> Row:
    """A span with everything in its place but what a root has not."""
    return {
        "span_id": f"{number:016x}",
        "parent_span_id": f"{number - 1:016x}" if number else None,
        "name": f"step {number}",
        "type": "LLM" if number % 2 else None,
        "status": "OK",
        "start_time_unix_nano": (START + trace) * 10**6 + number,
        "end_time_unix_nano": (START + trace) * 10**6 + 100 if number else None,
        "content": json.dumps({"inputs": {"question": "größe\n" * number, "n": trace}}, ensure_ascii=False),
        "input_cost": 0.1 if number else None,
    }


def model_metric_of(model: int, number: int) -> Row:
    """A point of a logged model, some with a dataset, some without a value."""
    return {
        "key": f"k{number // 3}",
        "step": number,
        "timestamp": START + number,
        "value": None if number == 4 else (math.nan, -0.0, 1 / 3)[number % 3] * model,
        "run_id": f"r{number}",
        "dataset_name": "d" if number % 2 else None,
        "dataset_digest": "1" if number % 2 else None,
    }


def everything_of(count: int, *, spans: int = 5) -> Content:
    """``count`` entities of every kind that owns tables, and one of every other kind, with rows and files for some."""
    content = content_of(count)
    tags = (KeyValue(key="a", value="ü"), KeyValue(key="b", value=""))
    for n in range(count):
        model = LoggedModel(model_id=f"m-{n:04}", experiment_id="1", name="m", creation_timestamp_ms=START + n, tags=tags)
        content.entities.append(model)
        content.rows["model_metrics/1", model.model_id] = [model_metric_of(n, i) for i in range(n % 4 * 2)]
        content.entity_files["logged_model", model.model_id] = {"MLmodel": f"model {n}".encode(), "b/w.bin": bytes(n)}
    content.entities.append(RegisteredModel(name="shop", creation_timestamp=START, aliases=(Alias(alias="best", version=2),)))
    for n in range(count):
        content.entities.append(ModelVersion(name="shop", version=n + 1, creation_timestamp=START + n, source="models:/m-0001"))
        content.entity_files["model_version", f"shop/{n + 1}"] = {"own": b"own"} if n % 3 == 0 else {}
    for n in range(count):
        trace = trace_of(n)
        content.entities.append(trace)
        content.rows["spans/1", trace.trace_id] = [span_of(n, i) for i in range(spans if n % 5 else 0)]
        content.entity_files["trace", trace.trace_id] = {"attachments/x": b"x" * n} if n % 4 == 1 else {}
    content.entities.append(EvaluationDataset(dataset_id="d-1", name="questions", experiment_ids=("1",), tags=tags))
    content.entities += [DatasetRecord(dataset_record_id=f"dr-{n}", dataset_id="d-1", inputs="null") for n in range(3)]
    version = ScorerVersion(scorer_version=1, serialized_scorer="{}")
    content.entities.append(Scorer(experiment_id="1", scorer_name="s", versions=(version,)))
    return content


def trace_of(number: int) -> Trace:
    """A trace with an assessment and links."""
    return Trace(
        trace_id=f"tr-{number:032x}",
        experiment_id="1",
        request_time=START + number,
        state="OK",
        artifact_uri=f"mlflow-artifacts:/1/traces/{number}",
        tags=(KeyValue(key="mlflow.traceName", value=f"ask {number}"),),
        assessments=(
            Assessment(
                assessment_id=f"a-{number}",
                assessment_name="good",
                assessment_type="feedback",
                value="true",
                metadata=(KeyValue(key="m", value="1"),),
            ),
        ),
        run_ids=(run_of(number).run_id,),
        prompts=(PromptLink(name="p", version="1"),),
    )


def pack_content(
    storage: Storage,
    content: Content,
    *,
    targets: Targets = TINY,
    full: bool = False,
    created_at: int | None = None,
    problems: Sequence[Problem] = (),
) -> tuple[Committed, Packer]:
    """Add a snapshot of the content to a bundle, on top of its newest snapshot unless ``full``."""
    marker = ensure_marker(storage)
    newest = next(snapshots(storage), None)
    base = None if newest is None or full else Base(storage, newest)
    packer = Packer(storage, marker, base=base, targets=targets)
    try:
        for record in [*content.experiments, *content.runs]:
            packer.add(record)
        for record in content.entities:
            packer.add(record)
        points = [(number, *point) for number, run in enumerate(content.runs) for point in content.points.get(run.run_id, [])]
        packer.add_series(series(sorted(points, key=archive_order)))
        packer.end_series()
        for table in PLAIN:
            packer.add_rows(table, plain_rows(table, packer.ids, content.rows))
        for run in content.runs:
            packer.add_files(_stored(packer, content.files.get(run.run_id, {})))
        for record in content.entities:
            kind, identity = str(record.__struct_config__.tag), record_id(record)
            if files := content.entity_files.get((kind, identity)):
                packer.add_files(_stored(packer, files), kind=kind, owner=identity)
        committed = packer.commit(
            created_at=created_at or (newest.snapshot.created_at + 1000 if newest else START),
            scope=Scope(),
            source=Source(kind="test", uri="test:"),
            parents=[newest.stem] if newest else [],
            problems=problems,
            notes=(),
        )
    finally:
        packer.close()
    return committed, packer
