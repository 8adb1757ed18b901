"""What a database would refuse of a record. SQLite enforces no lengths; PostgreSQL does, and refuses NUL characters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from mlflow_bundle.records import DatasetInput, Experiment, KeyValue, Problem, Run
from mlflow_bundle.tracking._port import CANNOT_HOLD, run_problem
from mlflow_bundle.tracking.database._connection import Column

__all__ = ["Limits"]

_STATUSES: Final = frozenset({"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"})
_SOURCE_TYPES: Final = frozenset({"NOTEBOOK", "JOB", "LOCAL", "UNKNOWN", "PROJECT"})
#: Attributes of a run that may be left out, with the column that holds them.
_OPTIONAL: Final = {
    "run_name": "name",
    "user_id": "user_id",
    "source_type": "source_type",
    "source_name": "source_name",
    "entry_point_name": "entry_point_name",
    "source_version": "source_version",
}
_NO_JSON: Final = re.compile(r"NaN|Infinity|\\u0000")
_DATASET_COLUMNS: Final = {
    "name": "name",
    "digest": "digest",
    "source_type": "dataset_source_type",
    "source": "dataset_source",
    "schema": "dataset_schema",
    "profile": "dataset_profile",
}


def _is_plain_json(text: str) -> bool:
    """Whether a text is JSON as the standard has it."""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


class Limits:
    """The limits of one database, from its reflected columns."""

    def __init__(self, tables: Mapping[str, Mapping[str, Column]], *, is_sqlite: bool) -> None:
        self._tables = tables
        self._is_sqlite = is_sqlite
        self._ids = range(-(2**63), 2**63) if is_sqlite else range(-(2**31), 2**31)

    def text(self, table: str, column: str, value: str) -> str | None:
        """Why this text cannot go into the column, or None."""
        if not self._is_sqlite and "\0" in value:
            return "it holds a NUL character"
        length = self._tables[table][column].length
        if length is not None and len(value) > length:
            return f"it has {len(value):,} characters where the database holds {length:,}"
        return None

    def value(self, table: str, column: str, value: Any, *, is_json: bool) -> str | None:
        """Why a value of any type cannot go into the column, or None."""
        if isinstance(value, str):
            if is_json and not self._is_sqlite and _NO_JSON.search(value) and not _is_plain_json(value):
                return "it is JSON with NaN or an infinity, which the database refuses"
            return self.text(table, column, value)
        bits = self._tables[table][column].bits
        if isinstance(value, int) and bits is not None and value not in range(-(2 ** (bits - 1)), 2 ** (bits - 1)):
            return f"it is {value:,}, beyond the integers of {bits} bits that the database holds"
        return None

    def experiment_id(self, text: str) -> int | None:
        """The id of an experiment as the database holds it; None where it is no integer of its size."""
        is_integer = text.isascii() and text.removeprefix("-").isdigit()
        return int(text) if is_integer and int(text) in self._ids else None

    def key(self, key: str) -> str | None:
        """Why this metric key cannot be held, or None."""
        return self.text("metrics", "key", key)

    def _pair(self, table: str, pair: KeyValue, *, name: str = "key") -> str | None:
        reason = self.text(table, name, pair.key)
        return f"its name: {reason}" if reason else self.text(table, "value", pair.value)

    def experiment(self, experiment: Experiment) -> tuple[tuple[KeyValue, ...], list[Problem], bool]:
        """The tags that can be held, the problems, and whether the experiment can be held at all."""
        fatal = []
        number = experiment.experiment_id
        if reason := self.text("experiments", "name", experiment.name):
            fatal.append(f"the name: {reason}")
        kept, reasons = self._pairs("experiment_tags", experiment.tags, "the tag")
        problems = [
            Problem(code=CANNOT_HOLD, message=message, kind="experiment", id=number, experiments=(number,))
            for message in (*fatal, *reasons)
        ]
        return kept, problems, not fatal

    def run(self, run: Run) -> tuple[Run | None, list[Problem]]:
        """The run without what cannot be held (None: not at all), and a problem for each thing that is missing."""
        if fatal := list(self._fatal(run)):
            return None, [run_problem(run.run_id, f"the run is left out: {reason}") for reason in fatal]
        changes: dict[str, Any] = {}
        reasons: list[str] = []
        for field, column in _OPTIONAL.items():
            if reason := self._attribute(run, field, column):
                # MLflow cannot show a run whose user is NULL.
                changes[field] = "" if field == "user_id" else UNSET
                reasons.append(f"{field} is left out: {reason}")
        changes["params"], found = self._pairs("params", run.params, "the param")
        reasons += found
        changes["tags"], found = self._pairs("tags", run.tags, "the tag")
        reasons += found
        changes["inputs"], found = self._inputs(run.inputs)
        reasons += found
        return msgspec.structs.replace(run, **changes), [run_problem(run.run_id, reason) for reason in reasons]

    def _fatal(self, run: Run) -> Iterator[str]:
        for field, column in (("run_id", "run_uuid"), ("artifact_uri", "artifact_uri")):
            value = getattr(run, field)
            if value is not UNSET and (reason := self.text("runs", column, value)):
                yield f"its {field}: {reason}"
        if run.status is not UNSET and run.status not in _STATUSES:
            yield f"MLflow's databases know no status {run.status!r}"
        if "\0" in run.run_id:
            yield "its run_id holds a NUL character"

    def _attribute(self, run: Run, field: str, column: str) -> str | None:
        value = getattr(run, field)
        if value is UNSET:
            return None
        if field == "source_type" and value not in _SOURCE_TYPES:
            return f"MLflow's databases know no source type {value!r}"
        return self.text("runs", column, value)

    def _pairs(self, table: str, pairs: Collection[KeyValue], what: str) -> tuple[tuple[KeyValue, ...], list[str]]:
        kept: dict[str, KeyValue] = {pair.key: pair for pair in pairs}
        if self._is_sqlite and len(kept) == len(pairs):  # it holds any text
            return tuple(pairs), []
        kept.clear()
        reasons = []
        for pair in pairs:
            reason = "there is another one of this name" if pair.key in kept else self._pair(table, pair)
            if reason:
                reasons.append(f"{what} {pair.key[:60]!r} is left out: {reason}")
            else:
                kept[pair.key] = pair
        return tuple(kept.values()), reasons

    def _inputs(self, inputs: Iterable[DatasetInput]) -> tuple[tuple[DatasetInput, ...], list[str]]:
        kept: dict[tuple[str, str], DatasetInput] = {}
        reasons = []
        for entry in inputs:
            identity = (entry.dataset.name, entry.dataset.digest)
            reason = "the run has another input of this name and digest" if identity in kept else self._input(entry)
            if reason:
                reasons.append(f"the dataset input {identity[0][:60]!r} is left out: {reason}")
            else:
                kept[identity] = entry
        return tuple(kept.values()), reasons

    def _input(self, entry: DatasetInput) -> str | None:
        for field, column in _DATASET_COLUMNS.items():
            value = getattr(entry.dataset, field)
            if value is UNSET and not self._tables["datasets"][column].nullable:
                return f"its {field} is absent, and the database needs one"
            if value is not UNSET and (reason := self.text("datasets", column, value)):
                return f"its {field}: {reason}"
        names = [tag.key for tag in entry.tags]
        if len(set(names)) != len(names):
            return "it has two tags of one name"
        reasons = (self._pair("input_tags", tag, name="name") for tag in entry.tags)
        return next((f"a tag of it: {reason}" for reason in reasons if reason), None)
