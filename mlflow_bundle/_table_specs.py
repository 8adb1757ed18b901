"""The schemas and write options of the Parquet tables of a bundle: a table role is a row of ``TABLES`` (spec/v1.md, 5)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec
import pyarrow as pa

from mlflow_bundle import _layout

__all__ = ["TABLES", "TableSpec"]


class TableSpec(msgspec.Struct, frozen=True):
    """How the tables of one role are written. ``owner`` is the column of whose rows are together, and that row groups try not
    to cut. ``digested`` are the columns that the digest of an owner's rows covers, where it is that of plain rows.
    ``weighed`` is the column of long texts, by whose bytes row groups are cut too."""

    role: str
    name: str
    schema: pa.Schema
    sorting: tuple[str, ...] = ()
    dictionary: tuple[str, ...] = ()
    encodings: Mapping[str, str] = MappingProxyType({})
    owner: str | None = None
    digested: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    weighed: str | None = None


def _required(*columns: tuple[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in columns]


_METRICS: Final = TableSpec(
    _layout.METRICS,
    "metrics/1",
    pa.schema(
        _required(
            ("experiment_id", pa.string()),
            ("run_id", pa.string()),
            ("key", pa.string()),
            ("step", pa.int64()),
            ("timestamp", pa.int64()),
            ("value", pa.float64()),
        )
    ),
    dictionary=("experiment_id", "run_id", "key"),
    encodings={"step": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
    owner="run_id",
)
_FILES: Final = TableSpec(
    _layout.FILES,
    "files/1",
    pa.schema(
        [
            *_required(
                ("owner_kind", pa.string()),
                ("owner_id", pa.string()),
                ("path", pa.string()),
                ("size", pa.int64()),
            ),
            pa.field("sha256", pa.string()),
            pa.field("state", pa.string(), nullable=False),
            pa.field("stamp", pa.string()),
        ]
    ),
    dictionary=("owner_kind", "owner_id", "path", "sha256", "state"),
    encodings={"size": "DELTA_BINARY_PACKED"},
    owner="owner_id",
)
_INDEX: Final = TableSpec(
    _layout.INDEX,
    "index/1",
    pa.schema(
        _required(
            ("sha256", pa.string()),
            ("part", pa.int32()),
            ("object", pa.string()),
            ("offset", pa.int64()),
            ("length", pa.int64()),
            ("codec", pa.string()),
            ("raw_length", pa.int64()),
        )
    ),
    sorting=("sha256", "part"),
    dictionary=("object", "codec"),
)
_STRINGS: Final = pa.map_(pa.string(), pa.string())
_LATEST: Final = pa.map_(pa.string(), pa.struct([("value", pa.float64()), ("timestamp", pa.int64()), ("step", pa.int64())]))
_RUNS_VIEW: Final = TableSpec(
    _layout.VIEWS,
    "runs_view/1",
    pa.schema(
        [
            *_required(("run_id", pa.string()), ("experiment_id", pa.string())),
            pa.field("experiment_name", pa.string()),
            pa.field("run_name", pa.string()),
            pa.field("user_id", pa.string()),
            pa.field("status", pa.string()),
            pa.field("start_time", pa.int64()),
            pa.field("end_time", pa.int64()),
            *_required(("lifecycle_stage", pa.string())),
            pa.field("artifact_uri", pa.string()),
            *_required(("params", _STRINGS), ("tags", _STRINGS), ("latest_metrics", _LATEST)),
            *_required(
                ("record_object", pa.string()),
                ("frame_offset", pa.int64()),
                ("frame_length", pa.int64()),
                ("record_digest", pa.string()),
                ("metric_rows", pa.int64()),
                ("metric_digest", pa.string()),
                ("file_rows", pa.int64()),
                ("file_digest", pa.string()),
            ),
            pa.field("metric_object", pa.string()),
            *_required(("metric_start", pa.int64())),
            pa.field("file_object", pa.string()),
            *_required(("file_start", pa.int64())),
        ]
    ),
    dictionary=(
        "experiment_id",
        "experiment_name",
        "user_id",
        "status",
        "lifecycle_stage",
        "record_object",
        "metric_object",
        "file_object",
    ),
)

_MODEL_METRICS: Final = TableSpec(
    _layout.MODEL_METRICS,
    "model_metrics/1",
    pa.schema(
        [
            *_required(
                ("experiment_id", pa.string()),
                ("model_id", pa.string()),
                ("key", pa.string()),
                ("step", pa.int64()),
                ("timestamp", pa.int64()),
            ),
            pa.field("value", pa.float64()),
            *_required(("run_id", pa.string())),
            pa.field("dataset_name", pa.string()),
            pa.field("dataset_digest", pa.string()),
        ]
    ),
    dictionary=("experiment_id", "model_id", "key", "run_id", "dataset_name", "dataset_digest"),
    encodings={"step": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
    owner="model_id",
    digested=("key", "step", "timestamp", "value", "run_id", "dataset_name", "dataset_digest"),
    order=("key", "step", "timestamp", "run_id"),
)
_SPANS: Final = TableSpec(
    _layout.SPANS,
    "spans/1",
    pa.schema(
        [
            *_required(("experiment_id", pa.string()), ("trace_id", pa.string()), ("span_id", pa.string())),
            pa.field("parent_span_id", pa.string()),
            pa.field("name", pa.string()),
            pa.field("type", pa.string()),
            *_required(("status", pa.string()), ("start_time_unix_nano", pa.int64())),
            pa.field("end_time_unix_nano", pa.int64()),
            *_required(("content", pa.string())),
            pa.field("input_cost", pa.float64()),
            pa.field("output_cost", pa.float64()),
            pa.field("total_cost", pa.float64()),
            pa.field("model_name", pa.string()),
            pa.field("model_provider", pa.string()),
        ]
    ),
    dictionary=("experiment_id", "trace_id", "name", "type", "status", "model_name", "model_provider"),
    encodings={"start_time_unix_nano": "DELTA_BINARY_PACKED", "end_time_unix_nano": "DELTA_BINARY_PACKED"},
    owner="trace_id",
    digested=("span_id", "parent_span_id", "name", "type", "status", "start_time_unix_nano", "end_time_unix_nano", "content"),
    order=("start_time_unix_nano", "span_id"),
    weighed="content",
)
#: Where the record and the rows of each entity lie, for the kinds that own tables and are no runs.
_ENTITY_VIEW: Final = TableSpec(
    _layout.VIEWS,
    "entity_view/1",
    pa.schema(
        [
            *_required(("id", pa.string())),
            pa.field("experiment_id", pa.string()),
            *_required(
                ("record_object", pa.string()),
                ("frame_offset", pa.int64()),
                ("frame_length", pa.int64()),
                ("record_digest", pa.string()),
                ("table_rows", pa.int64()),
                ("table_digest", pa.string()),
                ("file_rows", pa.int64()),
                ("file_digest", pa.string()),
            ),
            pa.field("table_object", pa.string()),
            *_required(("table_start", pa.int64())),
            pa.field("file_object", pa.string()),
            *_required(("file_start", pa.int64())),
        ]
    ),
    dictionary=("experiment_id", "record_object", "table_object", "file_object"),
)

#: Every table that a bundle may hold, by the schema name in its key_value_metadata.
TABLES: Final[Mapping[str, TableSpec]] = MappingProxyType(
    {spec.name: spec for spec in (_METRICS, _MODEL_METRICS, _SPANS, _FILES, _INDEX, _RUNS_VIEW, _ENTITY_VIEW)}
)
