"""Adds to records what lies in files of their own: params, tags, inputs, aliases, judgements."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import UNSET

from mlflow_bundle.entities import (
    Alias,
    Dataset,
    DatasetInput,
    KeyValue,
    LoggedModel,
    ModelInput,
    ModelOutput,
    ModelVersion,
    Record,
    RegisteredModel,
    Run,
    Trace,
)
from mlflow_bundle.errors import BundleError
from mlflow_bundle.kinds import PARENT_TAG, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking.filestore import _layout as layout
from mlflow_bundle.tracking.filestore._catalogue import problem_of
from mlflow_bundle.tracking.filestore._layout import as_pairs, broken, files_below, read_meta, read_pairs, subfolders
from mlflow_bundle.tracking.filestore._records import completed, dataset_of

__all__ = ["Completer", "parent_in"]

_RUN_NAME: Final = "mlflow.runName"
_DATASETS: Final = 256

_R = TypeVar("_R", bound=Record)


class Completer:
    """Completes records. ``report`` gets what cannot be read of them."""

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report
        self._dataset = lru_cache(_DATASETS)(_read_dataset)

    def complete(self, record: Record, folder: str) -> Record:
        """The record with all that its folder holds."""
        unreadable: list[BundleError] = []
        found: Record
        if isinstance(record, Run):
            found = self._run(record, folder, unreadable)
        elif isinstance(record, LoggedModel):
            found = _replaced(
                record,
                params=read_pairs(f"{folder}/{layout.PARAMS}", unreadable),
                tags=read_pairs(f"{folder}/{layout.TAGS}", unreadable),
            )
        elif isinstance(record, RegisteredModel):
            tags = read_pairs(f"{folder}/{layout.TAGS}", unreadable)
            found = _replaced(record, tags=tags, aliases=_aliases(folder, unreadable))
        elif isinstance(record, ModelVersion):
            found = _replaced(record, tags=read_pairs(f"{folder}/{layout.TAGS}", unreadable))
        else:
            found = _trace(cast("Trace", record), folder, unreadable)
        if not os.path.isdir(folder):  # noqa: PTH112
            unreadable.append(broken(folder, "the folder vanished while it was being read"))
        kind, experiment_id = str(record.__struct_config__.tag), getattr(record, "experiment_id", "")
        for error in unreadable:
            self._report(problem_of(kind, record_id(record), error, experiment_id))
        return found

    def _run(self, run: Run, folder: str, unreadable: list[BundleError]) -> Run:
        tags = read_pairs(f"{folder}/{layout.TAGS}", unreadable)
        name = run.run_name or next((tag.value for tag in tags if tag.key == _RUN_NAME), UNSET)
        datasets, models = self._inputs(folder, unreadable)
        return _replaced(
            run,
            run_name=name,
            params=read_pairs(f"{folder}/{layout.PARAMS}", unreadable),
            tags=tags,
            inputs=datasets,
            model_inputs=models,
            model_outputs=_outputs(folder, unreadable),
        )

    def _inputs(self, folder: str, unreadable: list[BundleError]) -> tuple[tuple[DatasetInput, ...], tuple[ModelInput, ...]]:
        datasets, models = [], []
        home = f"{folder}/{layout.INPUTS}"
        for name in subfolders(home) if os.path.isdir(home) else ():  # noqa: PTH112
            path = f"{home}/{name}/{layout.META}"
            try:
                meta = read_meta(path)
                kind, source = _link(meta, path)
                if kind == "DATASET":
                    # An experiment's folder is above that of its runs.
                    dataset = self._dataset(f"{os.path.dirname(folder)}/{layout.DATASETS}/{source}")  # noqa: PTH120
                    datasets.append(DatasetInput(dataset=dataset, tags=_tags_of(meta)))
                elif kind == "MODEL":
                    models.append(ModelInput(model_id=source))
                else:
                    raise broken(path, f"it is the input of an unknown kind {kind!r}")
            except BundleError as error:
                unreadable.append(error)
        datasets.sort(key=lambda item: (item.dataset.name, item.dataset.digest))
        return tuple(datasets), tuple(sorted(models, key=lambda link: link.model_id))


def _replaced(record: _R, **fields: Any) -> _R:
    return msgspec.structs.replace(record, **fields)


def _read_dataset(folder: str) -> Dataset:
    path = f"{folder}/{layout.META}"
    try:
        return dataset_of(read_meta(path))
    except ValueError as error:
        raise broken(path, str(error)) from error


def _link(meta: Mapping[str, Any], path: str) -> tuple[str, str]:
    """What kind of thing an input is, and its id."""
    kind, source = meta.get("source_type"), meta.get("source_id")
    if not isinstance(kind, str) or not isinstance(source, str):
        raise broken(path, "'source_type' or 'source_id' is missing")
    return kind, source


def _tags_of(meta: Mapping[str, Any]) -> tuple[KeyValue, ...]:
    return as_pairs({str(key): str(value) for key, value in (meta.get("tags") or {}).items()})


def _outputs(folder: str, unreadable: list[BundleError]) -> tuple[ModelOutput, ...]:
    home = f"{folder}/{layout.OUTPUTS}"
    found = []
    for name in subfolders(home) if os.path.isdir(home) else ():  # noqa: PTH112
        path = f"{home}/{name}/{layout.META}"
        try:
            meta = read_meta(path)
            step = meta.get("step", 0)
            if not isinstance(step, int):
                raise broken(path, f"'step' is {step!r} and no integer")
            found.append(ModelOutput(model_id=_link(meta, path)[1], step=step))
        except BundleError as error:
            unreadable.append(error)
    return tuple(sorted(found, key=lambda link: (link.model_id, link.step)))


def _aliases(folder: str, unreadable: list[BundleError]) -> tuple[Alias, ...]:
    found = []
    for pair in read_pairs(f"{folder}/{layout.ALIASES}", unreadable):
        if pair.value.strip().isdecimal():
            found.append(Alias(alias=pair.key, version=int(pair.value)))
        else:
            path = f"{folder}/{layout.ALIASES}/{pair.key}"
            unreadable.append(broken(path, f"{pair.value!r} is no version"))
    return tuple(found)


def _trace(trace: Trace, folder: str, unreadable: list[BundleError]) -> Trace:
    assessments = []
    for _, path in sorted(files_below(f"{folder}/{layout.ASSESSMENTS}", unreadable)):
        try:
            meta = read_meta(path)
            completed(trace, tags=(), metadata=(), assessments=[meta])
            assessments.append(meta)
        except BundleError as error:
            unreadable.append(error)
        except (ValueError, msgspec.ValidationError) as error:
            unreadable.append(broken(path, str(error)))
    tags = read_pairs(f"{folder}/{layout.TAGS}", unreadable)
    return completed(
        trace, tags=tags, metadata=read_pairs(f"{folder}/{layout.TRACE_METADATA}", unreadable), assessments=assessments
    )


def parent_in(folder: str) -> str | None:
    """The parent of the run in a folder, from the file of its tag."""
    path = f"{folder}/{layout.TAGS}/{PARENT_TAG}"
    return layout.read_text(path) if os.path.exists(path) else None  # noqa: PTH110
