"""The views: derived tables that answer questions about many runs without reading records, and that say where the record
and the rows of each entity lie (spec/v1.md, 5.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._owners import NO_ROWS
from mlflow_bundle._record_shards import Place
from mlflow_bundle._shards import OwnerRows
from mlflow_bundle._spool import latest_points
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle.records import KeyValue, Run

__all__ = ["ENTITY_VIEW", "RUNS_VIEW", "entity_view", "latest_maps", "runs_view", "unfolded", "wide_runs"]

RUNS_VIEW: Final = TABLES["runs_view/1"]
ENTITY_VIEW: Final = TABLES["entity_view/1"]
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


def runs_view(
    runs: Sequence[Run],
    places: Sequence[Place],
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
        **_places(places),
        **_rows("metric", metrics, owners),
        **_rows("file", files, owners),
    }
    return _view(columns, RUNS_VIEW)


def entity_view(
    ids: Sequence[str],
    experiments: Sequence[str],
    places: Sequence[Place],
    *,
    first: int,
    rows: OwnerRows | None,
    files: OwnerRows,
) -> pa.Table:
    """The view rows of consecutive entities of a kind, the first of which is owner ``first`` of the tables. ``rows`` is the
    table of the kind that is not that of the files, None where it has none."""
    owners = range(first, first + len(ids))
    columns: dict[str, Any] = {
        "id": ids,
        "experiment_id": [experiment or None for experiment in experiments],
        **_places(places),
        **_rows("table", rows, owners),
        **_rows("file", files, owners),
    }
    return _view(columns, ENTITY_VIEW)


def _places(places: Sequence[Place]) -> dict[str, Any]:
    return {
        "record_object": [place.object for place in places],
        "frame_offset": [place.frame_offset for place in places],
        "frame_length": [place.frame_length for place in places],
        "record_digest": [place.digest for place in places],
    }


def _rows(name: str, rows: OwnerRows | None, owners: range) -> dict[str, Any]:
    """What a view says of the rows of a table."""
    some, count = slice(owners.start, owners.stop), len(owners)
    columns: dict[str, Any] = {
        "rows": rows.rows[some] if rows else [0] * count,
        "digest": rows.digests[some] if rows else [NO_ROWS] * count,
        "object": rows.objects[some] if rows else [None] * count,
        "start": rows.starts[some] if rows else [0] * count,
    }
    return {f"{name}_{what}": column for what, column in columns.items()}


def _view(columns: dict[str, Any], spec: TableSpec) -> pa.Table:
    return pa.Table.from_arrays([_array(columns[field.name], field.type) for field in spec.schema], schema=spec.schema)


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
    return table.column(name).combine_chunks()


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
    array = view.column(column).combine_chunks()
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


def unfolded(view: pa.Table, column: str) -> pa.Table:
    """A map column as rows of ``run_id, key, value``."""
    array = view.column(column).combine_chunks()
    lengths = np.diff(array.offsets.to_numpy())
    runs = view.column("run_id").take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
    first, last = array.offsets[0].as_py() if len(array) else 0, array.offsets[-1].as_py() if len(array) else 0
    keys, values = array.keys.slice(first, last - first), array.items.slice(first, last - first)
    return pa.table([runs, keys, values], names=["run_id", "key", "value"])
