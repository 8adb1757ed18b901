"""The runs view: a derived table that answers questions about many runs without reading records (spec/v1.md, 5.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._shards import OwnerRows
from mlflow_bundle._spool import latest_points
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.records import KeyValue, Run

__all__ = ["RUNS_VIEW", "RunPlace", "latest_maps", "runs_view", "wide_runs"]

RUNS_VIEW: Final = TABLES["runs_view/1"]
_RECORD_FIELDS: Final = (
    "run_id",
    "experiment_id",
    "run_name",
    "user_id",
    "status",
    "start_time",
    "end_time",
    "lifecycle_stage",
    "artifact_uri",
)


class RunPlace(msgspec.Struct):
    """Where the record of a run lies: object, zstd frame (offset and length in bytes), and its digest."""

    object: str
    frame_offset: int
    frame_length: int
    digest: str


def runs_view(
    runs: Sequence[Run],
    places: Sequence[RunPlace],
    *,
    first: int,
    metrics: OwnerRows,
    files: OwnerRows,
    latest: pa.Table,
    experiment_names: Mapping[str, str],
) -> pa.Table:
    """The view rows of consecutive runs, the first of which is owner ``first`` of the tables."""
    owners = range(first, first + len(runs))
    columns: dict[str, Any] = {
        name: [None if (value := getattr(run, name)) is UNSET else value for run in runs] for name in _RECORD_FIELDS
    }
    columns |= {
        "experiment_name": [experiment_names.get(run.experiment_id) for run in runs],
        "params": _maps([run.params for run in runs]),
        "tags": _maps([run.tags for run in runs]),
        "latest_metrics": latest_maps(latest, first, len(runs)),
        "record_object": [place.object for place in places],
        "frame_offset": [place.frame_offset for place in places],
        "frame_length": [place.frame_length for place in places],
        "record_digest": [place.digest for place in places],
        "metric_rows": [metrics.rows[i] for i in owners],
        "metric_digest": [metrics.digests[i] for i in owners],
        "metric_object": [metrics.objects[i] for i in owners],
        "metric_start": [metrics.starts[i] for i in owners],
        "file_rows": [files.rows[i] for i in owners],
        "file_digest": [files.digests[i] for i in owners],
        "file_object": [files.objects[i] for i in owners],
        "file_start": [files.starts[i] for i in owners],
    }
    arrays = [_array(columns[field.name], field.type) for field in RUNS_VIEW.schema]
    return pa.Table.from_arrays(arrays, schema=RUNS_VIEW.schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _maps(entries: Sequence[Sequence[KeyValue]]) -> pa.Array:
    """One map of strings for each list of tags or params."""
    offsets = np.cumsum([0, *(len(entry) for entry in entries)])
    keys = [item.key for entry in entries for item in entry]
    values = [item.value for entry in entries for item in entry]
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(keys, pa.string()), pa.array(values, pa.string()))


def latest_maps(latest: pa.Table, first: int, count: int) -> pa.Array:
    """One map of latest points for each of ``count`` owners, from rows of ``LATEST_SCHEMA`` by owner."""
    # A series that spans tables was noted once for each of them.
    latest = latest_points(latest).combine_chunks()
    owner = latest.column("owner").to_numpy()
    offsets = np.searchsorted(owner, np.arange(first, first + count + 1))
    value, timestamp, step = (_flat(latest, name) for name in ("value", "timestamp", "step"))
    points = pa.StructArray.from_arrays([value, timestamp, step], names=["value", "timestamp", "step"])
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), _flat(latest, "key"), points)


def _flat(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def wide_runs(view: pa.Table) -> pa.Table:
    """The columns of ``mlflow.search_runs``: one for each metric, param and tag key, absent values null."""
    time = pa.timestamp("ms", tz="UTC")
    columns: dict[str, Any] = {name: view.column(name) for name in ("run_id", "experiment_id", "status", "artifact_uri")}
    columns |= {name: view.column(name).cast(time) for name in ("start_time", "end_time")}
    columns |= _spread(view, "latest_metrics", "metrics", lambda points: points.flatten()[0])
    columns |= _spread(view, "params", "params", lambda values: values)
    columns |= _spread(view, "tags", "tags", lambda values: values)
    return pa.table(columns)


def _spread(view: pa.Table, column: str, prefix: str, of: Callable[[pa.Array], pa.Array]) -> dict[str, pa.Array]:
    """A map column as one column a key."""
    maps = view.column(column).combine_chunks()
    array = pa.concat_arrays(maps.chunks) if isinstance(maps, pa.ChunkedArray) else maps
    if not len(array):
        return {}
    offsets = array.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    encoded = array.keys.slice(first, last - first).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(array)), np.diff(offsets))
    values = of(array.items.slice(first, last - first))
    names = encoded.dictionary.to_pylist()
    by_key = np.argsort(codes, kind="stable")
    borders = np.searchsorted(codes[by_key], np.arange(len(names) + 1))
    spread = {}
    for name, start, end in sorted(zip(names, borders, borders[1:], strict=False)):
        places = by_key[start:end]
        source = np.full(len(array), -1)
        source[rows[places]] = places
        spread[f"{prefix}.{name}"] = values.take(pa.array(source, mask=source < 0))
    return spread
