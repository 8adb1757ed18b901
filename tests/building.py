"""What the tests of the core build bundles from: series, records, files, and a whole pack without MLflow."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mlflow_bundle._base import Base
from mlflow_bundle._limits import Targets
from mlflow_bundle._manifest import Committed, ensure_marker, snapshots
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._storage import Storage
from mlflow_bundle.records import Experiment, KeyValue, Problem, Run, Scope, Source

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


@dataclass
class Content:
    """What a little archive holds: runs by id, their points (without owner) and files."""

    experiments: list[Experiment] = field(default_factory=lambda: [Experiment(experiment_id="1", name="churn")])
    runs: list[Run] = field(default_factory=list)
    points: dict[str, list[tuple[str, int, int, float]]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)


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
        rows = [(number, *point) for number, run in enumerate(content.runs) for point in content.points.get(run.run_id, [])]
        packer.add_series(series(sorted(rows, key=archive_order)))
        packer.end_series()
        for run in content.runs:
            files = content.files.get(run.run_id, {})
            packer.add_files(
                [FileRow(path=path, size=len(data), sha256=packer.blobs.add_bytes(data)) for path, data in files.items()]
            )
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
