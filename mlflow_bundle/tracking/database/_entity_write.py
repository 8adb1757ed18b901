"""Restores entities of every kind into a database: rows in bulk, files beside them, everything read back and compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._series import segments
from mlflow_bundle.entities import (
    GatewayEndpoint,
    GatewayModelDefinition,
    KeyValue,
    LoggedModel,
    ModelVersion,
    Record,
    RegisteredModel,
    Scorer,
    Trace,
    Webhook,
    Workspace,
)
from mlflow_bundle.errors import ServerError
from mlflow_bundle.kinds import KINDS, order_key, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._compare import record_differences
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    ROW_SCHEMAS,
    ArtifactStore,
    EntityQuery,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking._references import EXPERIMENTS_OF_PROMPT, prompt_experiments
from mlflow_bundle.tracking._workspaces import Homes
from mlflow_bundle.tracking.artifacts._own import own_location
from mlflow_bundle.tracking.database._connection import Connection, literal, literals
from mlflow_bundle.tracking.database._derived import scorer_id_of
from mlflow_bundle.tracking.database._entity_limits import EntityLimits
from mlflow_bundle.tracking.database._entity_read import EntityReader
from mlflow_bundle.tracking.database._entity_rows import Row, Tables, rows_of
from mlflow_bundle.tracking.database._files import compare_files, write_files
from mlflow_bundle.tracking.database._owned_read import OwnedReader
from mlflow_bundle.tracking.database._places import Places
from mlflow_bundle.tracking.database._points import model_rows_as_held

__all__ = ["EntityRestorer"]

_IN_DATABASE: Final = "TRACKING_STORE"
_TRACES_JSON: Final = "traces.json"
_ARCHIVED: Final = "ARCHIVE_REPO"
#: Kinds that cannot come back: a secret that was never archived.
_NEVER: Final = ("gateway_secret",)
#: Kinds that get more parts as time goes on. The time when they were made tells whether two of one name are the same.
_GROWING: Final = ("registered_model", "mcp_server")
_IN_MODEL: Final = re.compile(r"/(m-[0-9a-f]{32})/artifacts(/.*)?$")
_IN_RUN: Final = re.compile(r"/([0-9a-f]{32})/artifacts(/.*)?$")


@dataclass(slots=True)
class _Work:
    """One entity on its way. ``expected`` is the record as it has to read back."""

    plan: PlannedEntity
    expected: Record
    result: EntityResult
    exists: bool = False

    @property
    def has_spans(self) -> bool:
        """Whether the spans of a trace are in the database, and not in a file of it, which old releases do not mark."""
        in_database = getattr(self.expected, "spans_location", UNSET) == _IN_DATABASE
        return in_database or all(path != _TRACES_JSON for path, _, _ in self.plan.files)

    def fail(self, message: str, code: str, path: str = "") -> None:
        self.result.action = "failed"
        self.report(message, code, path)

    def report(self, message: str, code: str, path: str = "") -> None:
        kind, identity = self.result.kind, self.result.source_id
        text = f"{kind.replace('_', ' ')} {identity}: {message}"
        self.result.problems.append(Problem(code=code, message=text, kind=kind, id=identity, path=path))


class EntityRestorer:
    """Writes entities through one connection. ``open_store`` gives the artifact store of a record by its location."""

    def __init__(
        self,
        connection: Connection,
        tables: Tables,
        *,
        limits: EntityLimits,
        places: Places,
        open_store: Callable[[Record], ArtifactStore],
        homes: Homes,
    ) -> None:
        self._db, self._tables, self._limits, self._places = connection, tables, limits, places
        self._open_store = open_store
        self._homes = homes
        self._reader = EntityReader(connection, tables.columns)
        self._owned = OwnedReader(connection, tables.columns, open_store)

    def kinds(self) -> frozenset[str]:
        """The kinds that the schema has a table for, without those that were never archived whole."""
        return frozenset(kind for kind in self._reader.kinds() if kind not in _NEVER)

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the database would refuse."""
        return self._limits.held(record)[1]

    def row_limits(self, table: str) -> Callable[[pa.Table], Sequence[str]] | None:
        """What says which rows the database would refuse. SQLite takes all."""
        return None if self._db.uri.is_sqlite else lambda rows: self._limits.rows_held(table, rows)[1]

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """That the experiment has another entity of this name."""
        return self._limits.name_taken(record, experiment_id)

    def restore(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """See ``MlflowTarget.restore_entities``."""
        works = [self._work(kind, plan, ids, options) for plan in planned]
        alive = [work for work in works if work.result.action not in ("failed", "left out")]
        found = self._found(kind, alive)
        new = []
        for work in alive:
            there = found.get(record_id(work.expected))
            work.exists = there is not None
            if there is None:
                new.append(work)
            else:
                self._take_existing(work, there)
        self._write_files([work for work in new if work.plan.files], open_blob)
        self._insert([work for work in new if work.result.action != "failed"])
        self._compare(kind, [work for work in alive if work.result.action != "failed"], open_blob)
        for work in works:
            if work.result.target_id is not None:
                ids.add(kind, work.result.source_id, work.result.target_id)
        return [work.result for work in works]

    # -- what it becomes here ------------------------------------------------------------------------------------------

    def _work(self, kind: str, plan: PlannedEntity, ids: IdMap, options: RestoreOptions) -> _Work:
        result = EntityResult(kind=kind, source_id=record_id(plan.record))
        expected = self._expected(plan.record, result, ids, options)
        if isinstance(expected, ModelVersion):
            expected = self._version(expected, has_files=bool(plan.files))
        work = _Work(plan, expected, result)
        if plan.rows is not None and plan.rows.num_rows and not self._db.uri.is_sqlite:
            rows, lost = self._limits.rows_held(next(table for table in KINDS[kind].tables if table in ROW_SCHEMAS), plan.rows)
            work.plan = plan = replace(plan, rows=rows)
            for sentence in lost:
                work.report(sentence, CANNOT_HOLD)
        if kind == "logged_model" and plan.rows is not None and plan.rows.num_rows:
            rows, notes, doubled = model_rows_as_held(plan.rows, sqlite=self._db.uri.is_sqlite)
            work.plan = replace(plan, rows=rows)
            result.notes += notes
            if doubled:
                work.report(f"{doubled} metric rows have the key, step, timestamp and run of another one", CANNOT_HOLD)
        held, problems = self._limits.held(expected)
        result.problems += problems
        if held is None:
            result.action = "left out"
            return work
        work.expected = held
        if plan.files and not self._places.writes:
            work.fail("it has files, and no place for them is named (artifact_root)", CANNOT_HOLD)
            result.action = "left out"
            return work
        result.target_id = record_id(expected)
        return work

    def _expected(self, record: Record, result: EntityResult, ids: IdMap, options: RestoreOptions) -> Record:
        """The record as it has to be at this target: references and places rewritten, nothing active that costs or tells."""
        changes = _in_experiments(record, result, ids)
        if hasattr(record, "workspace"):
            changes["workspace"] = self._homes.of(record.workspace) or UNSET
        experiment = changes.get("experiment_id", "")
        if isinstance(record, LoggedModel):
            changes["artifact_uri"] = self._places.of_model(record, experiment)
        elif isinstance(record, Trace):
            changes["artifact_uri"] = self._places.of_trace(record, experiment)
            if record.spans_location == _ARCHIVED:
                changes |= {"spans_location": _IN_DATABASE, "archive_location": UNSET}
                result.notes.append("traces that were archived outside of the database have their spans in it again")
        elif isinstance(record, Webhook):
            changes["status"] = "DISABLED"
            if record.status != "DISABLED":
                result.notes.append("webhooks are restored disabled and without their secrets")
        elif isinstance(record, GatewayModelDefinition) and record.secret_id is not UNSET:
            changes["secret_id"] = UNSET
            result.notes.append("model definitions of the gateway are restored without their secrets: type them in again")
        elif isinstance(record, Scorer) and record.online and not options.online_scoring:
            changes["online"] = tuple(msgspec.structs.replace(one, sample_rate="0.0") for one in record.online)
            result.notes.append("online scoring is restored with sample rate 0 (--online-scoring restores the rates)")
        if isinstance(record, Scorer) and record.scorer_id is UNSET:
            changes["scorer_id"] = scorer_id_of(str(experiment or record.experiment_id), record.scorer_name)
        return msgspec.structs.replace(record, **changes)

    def _version(self, version: ModelVersion, *, has_files: bool) -> ModelVersion:
        """A version whose places follow the artifacts of the run or the logged model that they lie in.

        Files in neither never go back to where the source has them, which may be in use: they get a place of this target.
        """
        changes = {}
        for name in ("source", "storage_location"):
            value = getattr(version, name)
            if isinstance(value, str) and not value.startswith(("models:", "runs:")):
                changes[name] = self._moved(value)
        own = own_location(version) if has_files else None
        if own is not None:
            moved = self._moved(own)
            changes["storage_location"] = self._places.of_version(version, own) if moved == own else moved
        return msgspec.structs.replace(version, **changes)

    def _moved(self, location: str) -> str:
        for pattern, sql in (
            (_IN_MODEL, "SELECT artifact_location FROM logged_models WHERE model_id IN {}"),
            (_IN_RUN, "SELECT artifact_uri FROM runs WHERE run_uuid IN {}"),
        ):
            match = pattern.search(location)
            if match:
                found = self._db.fetch(sql.format(literals([match[1]])), pa.schema([("location", pa.string())])).column(0)
                if len(found) and found[0].as_py():
                    return str(found[0].as_py()) + (match[2] or "")
        return location

    # -- what is there -------------------------------------------------------------------------------------------------

    def _found(self, kind: str, works: Sequence[_Work]) -> dict[str, Record]:
        wanted = tuple(record_id(work.expected) for work in works)
        if not wanted:
            return {}
        return {record_id(record): record for batch in self._reader.read(kind, EntityQuery(ids=wanted)) for record in batch}

    def _take_existing(self, work: _Work, there: Record) -> None:
        """An entity that is there is never changed: the same one counts as there, another one is a problem.

        A registered model of an earlier restore may have changed since, at either end: its new versions are welcome.
        """
        stays = {name: getattr(there, name) for name in KINDS[work.result.kind].locations}
        work.expected = msgspec.structs.replace(work.expected, **stays)
        differences = _differences(work.expected, there)
        if not differences:
            work.result.action = "there"
        elif isinstance(work.expected, Workspace):
            work.expected = self._complete_workspace(work, there)
        elif work.result.kind in _GROWING and order_key(work.expected)[0] == order_key(there)[0]:
            work.expected, work.result.action = there, "merged"
            what = f"the {work.result.kind.replace('_', ' ')} {record_id(there)} was there and keeps what differs"
            work.result.notes.append(f"{what}: {', '.join(differences)}")
        else:
            work.fail(f"the database has another one of this id: {differences[0]}", "exists-differs")

    def _complete_workspace(self, work: _Work, there: Record) -> Record:
        """Give a workspace that is there what it lacks; what it has it keeps. Returns how it is then."""
        assert isinstance(work.plan.record, Workspace)
        work.result.action = "merged"
        archived = msgspec.structs.asdict(work.plan.record)
        own = {name: value for name, value in msgspec.structs.asdict(there).items() if value is not UNSET}
        lacking = {name: value for name, value in archived.items() if name not in own and value is not UNSET}
        kept = [name for name, value in own.items() if archived[name] not in (UNSET, value)]
        if kept:
            work.result.notes.append(f"the workspace {record_id(there)} keeps its own {', '.join(kept)}")
        if lacking:
            values = ", ".join(f"{name} = {literal(value)}" for name, value in lacking.items())
            self._db.run(f"UPDATE workspaces SET {values} WHERE name = {literal(record_id(there))}")
            self._db.commit()
        return msgspec.structs.replace(there, **lacking)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_files(self, works: Sequence[_Work], open_blob: OpenBlob) -> None:
        for work in works:
            store = self._open_store(work.expected)
            for problem in write_files(store, work.plan.files, open_blob, work.result.kind, work.result.source_id):
                work.result.problems.append(problem)
                work.result.action = "failed"

    def _insert(self, works: Sequence[_Work]) -> None:
        """All in one transaction; where the database refuses one of them, each in its own."""
        if not works:
            return
        try:
            self._insert_together(works)
            self._db.commit()
        except ServerError as error:
            self._db.rollback()
            if error.code != "refused":
                raise
            if len(works) == 1:
                works[0].fail(error.message, "refused")
                return
            for work in works:
                self._insert([work])

    def _insert_together(self, works: Sequence[_Work]) -> None:
        tables: dict[str, list[Row]] = {}
        for work in works:
            for table, row in rows_of(work.expected):
                tables.setdefault(table, []).append(row)
        for table, rows in tables.items():
            self._tables.append(table, rows)
        self._append_model_metrics([work for work in works if isinstance(work.expected, LoggedModel)])
        self._append_spans([work for work in works if isinstance(work.expected, Trace)])

    def _append_model_metrics(self, works: Sequence[_Work]) -> None:
        rows: list[Row] = []
        for work in works:
            if work.plan.rows is not None:
                model = cast("LoggedModel", work.expected)
                rows += [_metric_row(model, row) for row in work.plan.rows.to_pylist()]
        self._tables.append("logged_model_metrics", rows)

    def _append_spans(self, works: Sequence[_Work]) -> None:
        """Spans of traces that keep them in the database, in columns. Those of others are in a file of the trace."""
        parts = []
        for work in works:
            trace, rows = cast("Trace", work.expected), work.plan.rows
            if rows is not None and rows.num_rows and work.has_spans:
                ids = [pa.repeat(trace.trace_id, rows.num_rows), pa.repeat(int(trace.experiment_id), rows.num_rows)]
                parts.append(pa.table([*ids, *rows.columns], names=["trace_id", "experiment_id", *rows.column_names]))
        if parts:
            self._tables.append_columns("spans", pa.concat_tables(parts))

    # -- reading back --------------------------------------------------------------------------------------------------

    def _compare(self, kind: str, works: Sequence[_Work], open_blob: OpenBlob) -> None:
        found = self._found(kind, works)
        self._db.commit()
        for work in works:
            there = found.get(record_id(work.expected))
            if there is None:
                work.fail("it was not read back from the target", DIFFERS)
            elif not work.exists:
                for difference in _differences(work.expected, there):
                    work.fail(f"read back from the target: {difference}", DIFFERS)
            self._compare_files(work, open_blob)
        for table in KINDS[kind].tables:
            if table in ROW_SCHEMAS:
                self._compare_rows(table, works)
        self._db.commit()

    def _compare_files(self, work: _Work, open_blob: OpenBlob) -> None:
        if not work.plan.files:
            return
        result = work.result
        found = compare_files(lambda: self._open_store(work.expected), work.plan.files, result.kind, result.source_id)
        if found.missing and work.exists:
            problems = write_files(self._open_store(work.expected), found.missing, open_blob, result.kind, result.source_id)
            if not problems:
                result.action = "merged"
                found = compare_files(lambda: self._open_store(work.expected), work.plan.files, result.kind, result.source_id)
        result.files, result.file_bytes = found.files, found.bytes
        result.problems += found.problems
        for path, _, _ in found.missing:
            work.fail(f"the file {path!r} is not there", "file-missing", path)
        if found.problems:
            result.action = "failed"

    def _compare_rows(self, table: str, works: Sequence[_Work]) -> None:
        """Rows as they were planned, but for those that are no rows of the database."""
        ids = [record_id(work.expected) for work in works]
        found: dict[int, list[pa.Table]] = {}
        for rows in self._owned.rows(table, ids):
            columns = rows.drop_columns(["owner"])
            for owner, start, end in segments(rows.column("owner").to_numpy()):
                found.setdefault(owner, []).append(columns.slice(start, end - start))
        for number, work in enumerate(works):
            wanted = work.plan.rows
            if wanted is None or not wanted.num_rows or work.result.action == "failed":
                continue
            there = pa.concat_tables(found[number]).combine_chunks() if number in found else wanted.slice(0, 0)
            work.result.rows = there.num_rows
            if not _same_rows(there, wanted):
                if table == "spans/1" and not work.has_spans:
                    continue
                work.fail(f"{there.num_rows} rows were read back where {wanted.num_rows} were expected, or others", DIFFERS)


def _in_experiments(record: Record, result: EntityResult, ids: IdMap) -> dict[str, Any]:
    """The members that name experiments, by their ids here. A link to one that is not restored would lead to a stranger."""
    changes: dict[str, Any] = {}
    if isinstance(one := getattr(record, "experiment_id", UNSET), str):
        changes["experiment_id"] = ids.find("experiment", one) or UNSET
    if isinstance(several := getattr(record, "experiment_ids", UNSET), tuple):
        changes["experiment_ids"] = tuple(sorted(filter(None, (ids.find("experiment", one) for one in several))))
        if len(changes["experiment_ids"]) < len(several):
            result.notes.append("links of evaluation datasets to experiments that are not restored are left out")
    elif isinstance(record, GatewayEndpoint) and record.experiment_id and changes["experiment_id"] is UNSET:
        result.notes.append("links of endpoints of the gateway to experiments that are not restored are left out")
    if isinstance(record, RegisteredModel):
        tags = {tag.key: tag.value for tag in record.tags}
        if listed := tags.get(EXPERIMENTS_OF_PROMPT):
            tags[EXPERIMENTS_OF_PROMPT], notes = prompt_experiments(listed, ids)
            changes["tags"] = tuple(KeyValue(key=key, value=value) for key, value in tags.items())
            result.notes += notes
    return changes


def _same_rows(there: pa.Table, wanted: pa.Table) -> bool:
    """Whether the rows are the same, where a NaN is the same as another."""
    if there.num_rows != wanted.num_rows:
        return False
    for name in there.column_names:
        one, other = there.column(name), wanted.column(name)
        if name == "value":
            if not np.array_equal(one.to_numpy(), other.to_numpy(), equal_nan=True):
                return False
        elif not one.equals(other):
            return False
    return True


def _differences(expected: Record, found: Record) -> list[str]:
    """What differs, where the expected record says something at all."""
    unsaid = {name: UNSET for name in expected.__struct_fields__ if getattr(expected, name) is UNSET}
    return record_differences(expected, msgspec.structs.replace(found, **unsaid))


def _metric_row(model: LoggedModel, row: Row) -> Row:
    return {
        "model_id": model.model_id,
        "experiment_id": model.experiment_id,
        "metric_name": row["key"],
        "metric_timestamp_ms": row["timestamp"],
        "metric_step": row["step"],
        "metric_value": row["value"],
        "run_id": row["run_id"],
        "dataset_name": row["dataset_name"],
        "dataset_digest": row["dataset_digest"],
    }
