"""From the YAML of a file store to records. What follows in other files (tags, params, links) is added by ``_complete``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, cast

import msgspec
from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import Dataset, Experiment, KeyValue, LoggedModel, ModelVersion, RegisteredModel, Run, Trace
from mlflow_bundle.tracking.rest._trace_answers import OldTrace, TraceAnswer

__all__ = [
    "completed",
    "dataset_of",
    "experiment_of",
    "integer",
    "leftovers",
    "logged_model_of",
    "registered_model_of",
    "run_of",
    "text",
    "trace_of",
    "version_of",
]

Meta = Mapping[str, Any]
Stage = Literal["active", "deleted"]

#: Beyond it no document of a bundle holds an integer.
_EXACT: Final = 2**53 - 1
#: MLflow's numbers for states, as its protocol buffers have them.
_RUN_STATUS: Final = MappingProxyType({1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"})
_SOURCE_TYPE: Final = MappingProxyType({1: "NOTEBOOK", 2: "JOB", 3: "PROJECT", 4: "LOCAL", 1000: "UNKNOWN"})
_MODEL_STATUS: Final = MappingProxyType({0: "UNSPECIFIED", 1: "PENDING", 2: "READY", 3: "FAILED"})

_EXPERIMENT: Final = ("artifact_location", "workspace")
_RUN: Final = ("user_id", "artifact_uri", "source_name", "entry_point_name", "source_version")
_LOGGED_MODEL: Final = ("status_message", "model_type", "source_run_id")
_VERSION: Final = (
    "workspace",
    "user_id",
    "current_stage",
    "description",
    "source",
    "storage_location",
    "run_id",
    "run_link",
    "status",
    "status_message",
)
#: What of a trace is not in its YAML.
_IN_FILES: Final = ("tags", "trace_metadata", "assessments", "artifact_uri", "spans_location", "archive_location")
_TIMES: Final = ("creation_timestamp", "last_updated_timestamp")
#: Entries of the YAML that are read, or that repeat what is read elsewhere, by kind.
_KNOWN: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "experiment": frozenset(
            {*_EXPERIMENT, "experiment_id", "name", "lifecycle_stage", "creation_time", "last_update_time", "tags"}
        ),
        "run": frozenset(
            {*_RUN, "run_id", "run_uuid", "experiment_id", "run_name", "name", "status", "start_time", "end_time"}
            | {"deleted_time", "lifecycle_stage", "source_type"}
        ),
        "logged_model": frozenset(
            {*_LOGGED_MODEL, *_TIMES, "model_id", "experiment_id", "name", "artifact_location", "status", "lifecycle_stage"}
        ),
        "registered_model": frozenset({*_TIMES, "name", "workspace", "description", "aliases", "latest_versions"}),
        "model_version": frozenset({*_VERSION, *_TIMES, "name", "version", "aliases"}),
        "trace": frozenset(
            {"trace_id", "request_id", "experiment_id", "trace_location", "request_time", "timestamp_ms", "state", "status"}
            | {"execution_duration_ms", "execution_time_ms", "client_request_id", "request_preview", "response_preview"}
            | {"assessments"}
        ),
    }
)


def leftovers(kind: str, meta: Meta) -> list[str]:
    """The entries of the YAML that say something and that no record has a place for."""
    known = _KNOWN[kind]
    return [str(name) for name, value in meta.items() if name not in known and value not in (None, "", [], {})]


def text(meta: Meta, name: str) -> str | UnsetType:
    """A text; absent where the YAML has none or null.

    Raises:
        ValueError: it is something else.
    """
    value = meta.get(name)
    if value is None:
        return UNSET
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {value!r} and no text")  # noqa: TRY004 - a value of the wrong form, not a wrong call
    return value


def integer(meta: Meta, name: str) -> int | UnsetType:
    """An integer; absent where the YAML has none or null.

    Raises:
        ValueError: it is something else, or beyond 2^53.
    """
    value = meta.get(name)
    if value is None:
        return UNSET
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _EXACT:
        raise ValueError(f"{name!r} is {value!r} and no integer below 2^53")
    return value


def _name(meta: Meta, name: str) -> str:
    """A text that must be there; old releases wrote ids as numbers."""
    value = meta.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is missing")  # noqa: TRY004
    return value


def _same(meta: Meta, name: str, folder: str) -> str:
    """An id that must be that of the folder: MLflow ignores what is in a folder of another name."""
    found = _name(meta, name)
    if found != folder:
        raise ValueError(f"{name!r} is {found!r} in the folder {folder!r}")
    return found


def _must(meta: Meta, *names: str) -> None:
    """Entries that MLflow itself cannot do without; a file that was cut at the end of a line lacks the last of them."""
    for name in names:
        if name not in meta:
            raise ValueError(f"{name!r} is missing")


def _stage(meta: Meta) -> Stage:
    stage = meta.get("lifecycle_stage") or "active"
    if stage not in ("active", "deleted"):
        raise ValueError(f"'lifecycle_stage' is {stage!r}")
    return cast("Stage", stage)


def _named(meta: Meta, name: str, names: Mapping[int, str]) -> str | UnsetType:
    """A state that MLflow writes as a number."""
    value = meta.get(name)
    if value is None or isinstance(value, str):
        return UNSET if value is None else value
    if value not in names:
        raise ValueError(f"{name!r} is {value!r}, which is the number of no state")
    return names[value]


def _all(read: Callable[[Meta, str], Any], meta: Meta, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    return ((name, read(meta, name)) for name in names)


def experiment_of(meta: Meta, folder: str, *, in_trash: bool, tags: tuple[KeyValue, ...]) -> Experiment:
    """
    Raises:
        ValueError: the YAML is not that of the experiment in this folder.
    """
    return Experiment(
        experiment_id=_same(meta, "experiment_id", folder),
        name=_name(meta, "name"),
        lifecycle_stage="deleted" if in_trash else _stage(meta),
        creation_time=integer(meta, "creation_time"),
        last_update_time=integer(meta, "last_update_time"),
        **dict(_all(text, meta, _EXPERIMENT)),
        tags=tags,
    )


def run_of(meta: Meta, folder: str, experiment_id: str) -> Run:
    """
    Raises:
        ValueError: the YAML is not that of the run in this folder.
    """
    _must(meta, "user_id", "start_time", "end_time")
    _same(meta, "experiment_id", experiment_id)
    return Run(
        run_id=_same(meta, "run_id" if "run_id" in meta else "run_uuid", folder),
        experiment_id=experiment_id,
        run_name=text(meta, "run_name") or text(meta, "name") or UNSET,
        status=_named(meta, "status", _RUN_STATUS) or "RUNNING",
        start_time=integer(meta, "start_time"),
        end_time=integer(meta, "end_time"),
        deleted_time=integer(meta, "deleted_time"),
        lifecycle_stage=_stage(meta),
        source_type=_named(meta, "source_type", _SOURCE_TYPE),
        **dict(_all(text, meta, _RUN)),
    )


def dataset_of(meta: Meta) -> Dataset:
    """
    Raises:
        ValueError: the YAML is not that of a dataset.
    """
    fields = dict(_all(text, meta, ("source_type", "source", "schema", "profile")))
    return Dataset(name=_name(meta, "name"), digest=_name(meta, "digest"), **fields)


def logged_model_of(meta: Meta, folder: str, experiment_id: str) -> LoggedModel:
    """
    Raises:
        ValueError: the YAML is not that of the logged model in this folder.
    """
    _must(meta, "status")
    _same(meta, "experiment_id", experiment_id)
    return LoggedModel(
        model_id=_same(meta, "model_id", folder),
        experiment_id=experiment_id,
        name=_name(meta, "name"),
        artifact_uri=text(meta, "artifact_location"),
        creation_timestamp_ms=integer(meta, "creation_timestamp"),
        last_updated_timestamp_ms=integer(meta, "last_updated_timestamp"),
        status=_named(meta, "status", _MODEL_STATUS),
        lifecycle_stage=_stage(meta),
        **dict(_all(text, meta, _LOGGED_MODEL)),
    )


def registered_model_of(meta: Meta, folder: str) -> RegisteredModel:
    """
    Raises:
        ValueError: the YAML is not that of the registered model in this folder.
    """
    fields = dict(_all(integer, meta, _TIMES))
    return RegisteredModel(
        name=_same(meta, "name", folder), workspace=text(meta, "workspace"), description=text(meta, "description"), **fields
    )


def version_of(meta: Meta, folder: str, model: str) -> ModelVersion:
    """
    Raises:
        ValueError: the YAML is not that of the version in this folder.
    """
    _same(meta, "name", model)
    number = _name(meta, "version")
    if not number.isascii() or not number.isdigit() or folder != f"version-{number}":
        raise ValueError(f"'version' is {number!r} in the folder {folder!r}")
    fields = {**dict(_all(integer, meta, _TIMES)), **dict(_all(text, meta, _VERSION))}
    return ModelVersion(name=model, version=int(number), **fields)


def trace_of(meta: Meta, folder: str, experiment_id: str) -> Trace:
    """The YAML has the form of the REST API, of version 3 or 2, but for the duration, which is in milliseconds.

    Raises:
        ValueError: the YAML is not that of the trace in this folder.
    """
    answer = {name: value for name, value in meta.items() if value is not None and name != "assessments"}
    if "trace_id" not in meta:
        _same(meta, "request_id", folder)
        return msgspec.convert({**answer, "experiment_id": _same(meta, "experiment_id", experiment_id)}, OldTrace).record()
    _same(meta, "trace_id", folder)
    record = msgspec.convert(answer, TraceAnswer).record()
    if record.experiment_id != experiment_id:
        raise ValueError(f"it belongs to the experiment {record.experiment_id!r} and lies in {experiment_id!r}")
    return msgspec.structs.replace(record, execution_duration=integer(meta, "execution_duration_ms"))


def completed(trace: Trace, *, tags: Sequence[KeyValue], metadata: Sequence[KeyValue], assessments: Sequence[Meta]) -> Trace:
    """The trace with what lies in files of its own.

    Raises:
        ValueError: something of it is not what it should be.
    """
    answer = {
        "trace_id": trace.trace_id,
        "tags": {tag.key: tag.value for tag in tags},
        "trace_metadata": {entry.key: entry.value for entry in metadata},
        "assessments": assessments,
    }
    read = msgspec.convert(answer, TraceAnswer)
    if unknown := read.unknown_assessments:
        raise ValueError(f"the assessment {unknown[0]!r} is of a kind that this version does not know")
    found = read.record()
    return msgspec.structs.replace(trace, **{name: getattr(found, name) for name in _IN_FILES})
