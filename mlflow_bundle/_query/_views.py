"""The views: for each its SQL over the objects of one snapshot (spec/v1.md, 4 and 5), whatever place the objects are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from mlflow_bundle import _layout
from mlflow_bundle._limits import DEFAULT_LIMITS
from mlflow_bundle._query._columns import (
    Column,
    arrow_columns,
    identifier,
    list_column,
    literal,
    record_columns,
    time_columns,
    timestamps,
)
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle.kinds import KINDS
from mlflow_bundle.records import ObjectRef

__all__ = ["VIEWS", "view_query"]

#: The members of lists in records that are views of their own: the kind, its list, the columns of the record that are kept.
_UNNESTED: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = MappingProxyType(
    {
        "dataset_inputs": ("run", "inputs", ("run_id", "experiment_id")),
        "model_inputs": ("run", "model_inputs", ("run_id", "experiment_id")),
        "model_outputs": ("run", "model_outputs", ("run_id", "experiment_id")),
        "aliases": ("registered_model", "aliases", ("name", "workspace")),
        "assessments": ("trace", "assessments", ("trace_id", "experiment_id")),
        "trace_prompts": ("trace", "prompts", ("trace_id", "experiment_id")),
        "scorer_versions": ("scorer", "versions", ("experiment_id", "scorer_name")),
        "review_items": ("review_queue", "items", ("queue_id", "experiment_id")),
    }
)
_PROMPT: Final = "coalesce(map_extract_value(tags, 'mlflow.prompt.is_prompt') = 'true', false)"


class _Objects:
    """The objects of a snapshot as sources of queries. ``prefix`` comes before their paths."""

    def __init__(self, refs: Sequence[ObjectRef], prefix: str) -> None:
        self._refs, self._prefix = refs, prefix

    def _paths(self, role: str, kind: str | None = None) -> str:
        found = (ref.path for ref in self._refs if ref.role == role and (kind is None or ref.kind == kind))
        return ", ".join(literal(self._prefix + path) for path in found)

    def records(self, kind: str) -> str:
        """The records of a kind, a column for each member."""
        columns = record_columns(KINDS[kind].type)
        paths = self._paths(_layout.RECORDS, kind)
        types = ", ".join(f"{identifier(column.name)}: {literal(column.type)}" for column in columns)
        options = f"maximum_object_size = {DEFAULT_LIMITS.line_bytes}, columns = {{{types}}}"
        return (
            f"read_json([{paths}], format = 'newline_delimited', compression = 'zstd', {options})"
            if paths
            else _nothing(columns)
        )

    def table(self, spec: TableSpec, kind: str | None = None) -> str:
        """The rows of a table."""
        paths = self._paths(spec.role, kind)
        return f"read_parquet([{paths}])" if paths else _nothing(arrow_columns(spec.schema))


def _nothing(columns: Sequence[Column]) -> str:
    """No row, but the columns."""
    return f"(SELECT {', '.join(f'NULL::{column.type} AS {identifier(column.name)}' for column in columns)} WHERE false)"


def _kind(kind: str, *, extra: str = "") -> Callable[[_Objects], str]:
    """A view with all members of the records of a kind."""

    def query(objects: _Objects) -> str:
        shown = f"SELECT {', '.join(time_columns(record_columns(KINDS[kind].type)))} FROM {objects.records(kind)}"
        return f"SELECT *, {extra} FROM ({shown})" if extra else shown

    return query


def _unnested(kind: str, member: str, kept: Sequence[str]) -> Callable[[_Objects], str]:
    """A view with a row for each member of a list in the records of a kind."""
    names = ", ".join(map(identifier, kept))
    listed, items = list_column(KINDS[kind].type, member)

    def query(objects: _Objects) -> str:
        rows = f"SELECT {names}, unnest({listed}) AS item FROM {objects.records(kind)}"
        return f"SELECT {names}, {', '.join(time_columns(items))} FROM ({rows})"

    return query


def _runs(objects: _Objects) -> str:
    latest = (
        "map_from_entries(list_transform(map_entries(latest_metrics), lambda e: struct_pack(k := e.key, v := e.value.value)))"
    )
    names = ["run_id", "experiment_id", "experiment_name", "run_name", "status"]
    times = [*timestamps("start_time", "start_time"), *timestamps("end_time", "end_time")]
    rest = ["lifecycle_stage", "user_id", "params", f"{latest} AS metrics", "tags", "artifact_uri"]
    counts = ["metric_rows AS metric_points", "file_rows AS files"]
    return f"SELECT {', '.join([*names, *times, *rest, *counts])} FROM {objects.table(TABLES['runs_view/1'], 'run')}"


def _pairs(member: str) -> Callable[[_Objects], str]:
    """Params or tags of runs in the long form."""

    def query(objects: _Objects) -> str:
        rows = f"SELECT run_id, experiment_id, unnest(map_entries({member})) AS item"
        return (
            "SELECT run_id, experiment_id, item.key AS key, item.value AS value"
            f" FROM ({rows} FROM {objects.table(TABLES['runs_view/1'], 'run')})"
        )

    return query


def _latest_metrics(objects: _Objects) -> str:
    view = objects.table(TABLES["runs_view/1"], "run")
    rows = f"SELECT run_id, experiment_id, unnest(map_entries(latest_metrics)) AS item FROM {view}"
    columns = ["item.key AS key", "item.value.value AS value", "item.value.step AS step"]
    times = timestamps("item.value.timestamp", "timestamp")
    return f"SELECT run_id, experiment_id, {', '.join([*columns, *times])} FROM ({rows})"


def _points(table: str) -> Callable[[_Objects], str]:
    """Metric points of runs or of logged models."""
    spec = TABLES[table]
    names = [identifier(name) for name in spec.schema.names if name != "timestamp"]
    shown = ", ".join([*names, *timestamps('"timestamp"', "timestamp")])
    return lambda objects: f"SELECT {shown} FROM {objects.table(spec)}"


def _spans(objects: _Objects) -> str:
    spec = TABLES["spans/1"]
    times = [f"make_timestamp_ns({name}_time_unix_nano) AS {name}_time" for name in ("start", "end")]
    duration = "(end_time_unix_nano - start_time_unix_nano) / 1e6 AS duration_ms"
    return f"SELECT {', '.join([*map(identifier, spec.schema.names), *times, duration])} FROM {objects.table(spec)}"


def _files(objects: _Objects) -> str:
    run = "CASE WHEN owner_kind = 'run' THEN owner_id END AS run_id"
    return f"SELECT owner_kind, owner_id, {run}, path, size, sha256, state FROM {objects.table(TABLES['files/1'])}"


def _prompts(objects: _Objects) -> str:
    return f"SELECT * EXCLUDE (is_prompt) FROM ({VIEWS['registered_models'](objects)}) WHERE is_prompt"


def _prompt_versions(objects: _Objects) -> str:
    template = "map_extract_value(tags, 'mlflow.prompt.text') AS template"
    return f"SELECT * EXCLUDE (is_prompt), {template} FROM ({VIEWS['model_versions'](objects)}) WHERE is_prompt"


def _plural(kind: str) -> str:
    return "models" if kind == "logged_model" else f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


_EXTRA: Final = {"registered_model": f"{_PROMPT} AS is_prompt", "model_version": f"{_PROMPT} AS is_prompt"}
_PLAIN: Final = {_plural(kind): _kind(kind, extra=_EXTRA.get(kind, "")) for kind in KINDS if kind != "run"}

#: Every view by its name: what gives its SQL for some objects.
VIEWS: Final[Mapping[str, Callable[[_Objects], str]]] = MappingProxyType(
    {
        "experiments": _PLAIN["experiments"],
        "runs": _runs,
        "params": _pairs("params"),
        "tags": _pairs("tags"),
        "metrics": _points("metrics/1"),
        "latest_metrics": _latest_metrics,
        "files": _files,
        "run_records": _kind("run"),
        **_PLAIN,
        "model_metrics": _points("model_metrics/1"),
        "spans": _spans,
        "prompts": _prompts,
        "prompt_versions": _prompt_versions,
        **{name: _unnested(*of) for name, of in _UNNESTED.items()},
    }
)


def view_query(name: str, refs: Sequence[ObjectRef], prefix: str) -> str:
    """The SQL of a view over the objects of a snapshot, at paths that begin with ``prefix``."""
    return VIEWS[name](_Objects(refs, prefix))
