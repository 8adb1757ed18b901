"""The hand-made content of the fixtures, and the one way in which it becomes a bundle."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from _fixture_entities import ENTITIES, FILES, ROWS, START, pairs

from mlflow_bundle import _layout
from mlflow_bundle._base import Base
from mlflow_bundle._codec import encode
from mlflow_bundle._limits import WRITER_TARGETS, Targets
from mlflow_bundle._manifest import read_marker, snapshots
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._readme import BUNDLE_README
from mlflow_bundle._series import sort_series
from mlflow_bundle._storage import open_storage
from mlflow_bundle.entities import ModelInput, ModelOutput
from mlflow_bundle.records import (
    FORMAT,
    LAYOUT,
    Dataset,
    DatasetInput,
    Experiment,
    Marker,
    Problem,
    Record,
    Run,
    Scope,
    Source,
    order_key,
)
from mlflow_bundle.tracking._port import ROW_SCHEMAS, SERIES_SCHEMA

#: 2026-11-21T00:00:00Z in milliseconds.
NOW: Final = 1_795_219_200_000
BUNDLE_ID: Final = "5eed0000000040008000000000000001"
#: So small that a few hundred bytes of content make several objects of every role.
TINY: Final = Targets(
    frame_bytes=512,
    records_bytes=1_200,
    metric_rows=40,
    file_rows=3,
    index_rows=6,
    pack_bytes=600,
    pack_entries=4,
    rows_bytes=400,
    blob_bytes=256,
    split_bytes=1_000,
    part_bytes=400,
    merge_width=2,
)

Point = tuple[str, int, int, float]
"""key, step, timestamp in milliseconds, value"""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one snapshot shall hold. Metrics are by run id, files by the id of their owner; a file that is None could not be
    read. ``others`` are records of all other kinds, ``rows`` what belongs to them, by table and owner: tuples in the order of
    ``ROW_SCHEMAS``, without the owner."""

    experiments: Sequence[Experiment] = ()
    runs: Sequence[Run] = ()
    metrics: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, bytes | None]] = field(default_factory=dict)
    others: Sequence[Record] = ()
    rows: Mapping[str, Mapping[str, Sequence[tuple[Any, ...]]]] = field(default_factory=dict)


def pack_content(
    place: Path,
    content: Content,
    *,
    created_at: int = NOW,
    targets: Targets = WRITER_TARGETS,
    scope: Scope | None = None,
    problems: Sequence[Problem] = (),
    notes: Sequence[str] = (),
) -> str:
    """Add a snapshot to the bundle at ``place``, on top of its newest one. Returns the name of the snapshot."""
    with closing(open_storage(place, create=True)) as storage:
        if storage.size(_layout.MARKER) is None:
            storage.put_bytes(BUNDLE_README.encode(), _layout.README)
            storage.put_bytes(encode(Marker(format=FORMAT, layout=LAYOUT, bundle_id=BUNDLE_ID)), _layout.MARKER)
        newest = next(snapshots(storage), None)
        base = None if newest is None else Base(storage, newest)
        with closing(Packer(storage, read_marker(storage), base=base, targets=targets)) as packer:
            for record in sorted((*content.experiments, *content.runs, *content.others), key=order_key):
                packer.add(record)
            packer.add_series(_series(packer.ids["run"], content.metrics))
            packer.end_series()
            for table, rows in content.rows.items():
                owners = packer.ids["trace" if table == "spans/1" else "logged_model"]
                packer.add_rows(table, _rows(table, owners, rows))
                packer.end_rows(table)
            for kind in ("run", "logged_model", "model_version", "trace"):
                for owner in packer.ids[kind]:
                    files = content.files.get(owner, {}).items()
                    packer.add_files([_stored(packer, path, data) for path, data in files], kind=kind)
            committed = packer.commit(
                created_at=created_at,
                scope=scope or Scope(),
                source=Source(kind="database", uri="sqlite:///mlflow.db", version="3.17.2"),
                parents=[newest.stem] if newest else [],
                problems=problems,
                notes=notes,
            )
    return committed.stem


def _series(run_ids: Sequence[str], metrics: Mapping[str, Sequence[Point]]) -> pa.Table:
    rows = [(owner, *point) for owner, run in enumerate(run_ids) for point in metrics.get(run, ())]
    columns = zip(*rows, strict=True) if rows else [()] * len(SERIES_SCHEMA)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SERIES_SCHEMA, strict=True)]
    return sort_series(pa.Table.from_arrays(arrays, schema=SERIES_SCHEMA))


def _rows(table: str, owners: Sequence[str], rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> pa.Table:
    listed = [(number, *row) for number, owner in enumerate(owners) for row in rows.get(owner, ())]
    schema = ROW_SCHEMAS[table]
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in listed], schema=schema)


def _stored(packer: Packer, path: str, data: bytes | None) -> FileRow:
    if data is None:
        return FileRow(path=path, size=7, sha256=None, state="unreadable")
    sha256, size = packer.blobs.add_stream(io.BytesIO(data), len(data))
    return FileRow(path=path, size=size, sha256=sha256, stamp="2026-11-20T00:00:00Z" if len(data) % 2 else None)


def run_id(number: int) -> str:
    """A fixed run id."""
    return f"{number:032x}"


def bits(number: int) -> float:
    """The double with these 64 bits."""
    value: float = struct.unpack("<d", struct.pack("<Q", number))[0]
    return value


#: One experiment, one run, three points, one file: the example of the specification.
MINIMAL: Final = Content(
    experiments=[Experiment(experiment_id="1", name="churn", artifact_location="mlflow-artifacts:/1", creation_time=START)],
    runs=[
        Run(
            run_id=run_id(0xA1),
            experiment_id="1",
            run_name="first",
            user_id="ada",
            status="FINISHED",
            start_time=START + 1,
            end_time=START + 60_001,
            artifact_uri=f"mlflow-artifacts:/1/{run_id(0xA1)}/artifacts",
            params=pairs(lr="0.1"),
            tags=pairs(team="größe"),
        )
    ],
    metrics={run_id(0xA1): [("loss", 0, START + 10, 0.5), ("loss", 1, START + 20, 0.25), ("acc", 1, START + 20, 0.75)]},
    files={run_id(0xA1): {"model/notes.txt": b"hello, archive\n"}},
)


def _awkward_points() -> list[Point]:
    values = (bits(0x7FF8000000000000), bits(0x7FF8000000000001), bits(0xFFF8000000000000), float("inf"), float("-inf"))
    more = (-0.0, 0.0, 5e-324, 1.7976931348623157e308)
    points = [("same place", 3, START, value) for value in (*values, *more)]
    points += [("steps", step, START, 1.0) for step in (-(2**63), -1, 0, 2**63 - 1)]
    points += [("twice", 1, START, 2.5)] * 2
    points += [(key, 0, START, 1.0) for key in ("a", "a/b", "größe", "日本語", "😀", "Z")]
    return points


def _noise(seed: int, size: int) -> bytes:
    """Bytes that do not shrink, always the same."""
    state, out = seed, bytearray()
    while len(out) < size:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(state >> 56)
    return bytes(out)


def _plain(number: int, **more: object) -> Run:
    fields = {
        "run_id": run_id(number),
        "experiment_id": "1",
        "run_name": f"run {number}",
        "status": "FINISHED",
        "start_time": START + number,
        "end_time": START + number + 1_000,
        "params": pairs(lr=str(number / 100)),
    }
    return Run(**(fields | more))  # type: ignore[arg-type]


_DATASET: Final = Dataset(
    name="träning",
    digest="0badf00d",
    source_type="http",
    source='{"url": "https://example.org/d.csv"}',
    profile='{"rows": 1.50}',
)

#: Everything that layout 1 can say.
FULL: Final = Content(
    experiments=[
        Experiment(
            experiment_id="0", name="Default", artifact_location="./mlruns/0", creation_time=START, last_update_time=START
        ),
        Experiment(experiment_id="1", name="équipe/実験 😀", tags=pairs(team="größe", empty="", lines="a\nb\r\n\t\x01")),
        Experiment(experiment_id="7", name="gone", lifecycle_stage="deleted", creation_time=START - 5, workspace="default"),
    ],
    runs=[
        _plain(1, user_id="ünal", tags=pairs(note='"quoted" \\ and / and 日本 \u2028', **{"mlflow.parentRunId": run_id(2)})),
        _plain(2, status="KILLED", inputs=(DatasetInput(dataset=_DATASET, tags=pairs(**{"mlflow.data.context": "training"})),)),
        _plain(
            3, lifecycle_stage="deleted", deleted_time=START + 9, experiment_id="7", source_type="LOCAL", source_name="t.py"
        ),
        Run(run_id=run_id(4), experiment_id="1"),
        _plain(16, model_inputs=(ModelInput(model_id="m-plain"),), model_outputs=(ModelOutput(model_id="m-gone", step=3),)),
        *(_plain(number) for number in range(5, 16)),
    ],
    metrics={
        run_id(1): _awkward_points(),
        run_id(3): [("deleted too", 0, START, 1.5)],
        **{run_id(n): [(f"k{k}", s, START + s, s / (k + n)) for k in range(2) for s in range(n)] for n in range(5, 16)},
    },
    files={
        run_id(1): {
            "model/größe 日本.bin": _noise(1, 300),
            "model/MLmodel": b"flavors: {}\n",
            "empty": b"",
            "zeros.txt": b"0" * 250,
            "split.bin": _noise(2, 1_050),
            "a b/#%?&=+'.txt": b"odd name\n",
        },
        run_id(3): {"model/MLmodel": b"flavors: {}\n", "lone": _noise(3, 40)},
        **{run_id(n): {"log.txt": f"log of {n}\n".encode() * n, "same.txt": b"same everywhere\n"} for n in range(5, 12)},
        **FILES,
    },
    others=ENTITIES,
    rows=ROWS,
)
