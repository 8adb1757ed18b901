"""Restores entities of every kind into a database: rows in bulk, files beside them, everything read back and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET
from msgspec.structs import replace

from mlflow_bundle._series import segments
from mlflow_bundle.entities import LoggedModel, Record, Scorer, SkillVersion, Trace, Workspace
from mlflow_bundle.errors import ServerError
from mlflow_bundle.kinds import KINDS, order_key, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._compare import record_differences
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    ROW_NOUNS,
    ROW_SCHEMAS,
    ArtifactStore,
    EntityQuery,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking._spans import IN_DATABASE
from mlflow_bundle.tracking._workspaces import Homes
from mlflow_bundle.tracking.database._connection import Connection, literal, literals
from mlflow_bundle.tracking.database._entity_expected import ExpectedEntities, location_of
from mlflow_bundle.tracking.database._entity_limits import EntityLimits
from mlflow_bundle.tracking.database._entity_read import EntityReader
from mlflow_bundle.tracking.database._entity_rows import Row, Tables, rows_of
from mlflow_bundle.tracking.database._files import compare_files, complete_files, write_new_files
from mlflow_bundle.tracking.database._owned_read import OwnedReader
from mlflow_bundle.tracking.database._places import Places, same_place
from mlflow_bundle.tracking.database._points import model_rows_as_held
from mlflow_bundle.tracking.database._rows import read_texts

__all__ = ["EntityRestorer"]

_TRACES_JSON: Final = "traces.json"
#: Kinds that cannot come back: a secret that was never archived.
_NEVER: Final = ("gateway_secret",)
#: Kinds that get more parts as time goes on. The time when they were made tells whether two of one name are the same.
_GROWING: Final = ("registered_model", "mcp_server", "skill")
#: The table of the rows of a kind, in an archive and here, and the column of their owner.
_OWNED: Final = {
    "trace": ("spans/1", "spans", "trace_id"),
    "logged_model": ("model_metrics/1", "logged_model_metrics", "model_id"),
}


@dataclass(slots=True)
class _Work:
    """One entity on its way. ``expected`` is the record as it has to read back. ``elsewhere`` is where the files of one that is
    there lie, if that is not where they would go now. ``changed``: it was there, and got something."""

    plan: PlannedEntity
    expected: Record
    result: EntityResult
    exists: bool = False
    elsewhere: str = ""
    changed: bool = False

    @property
    def has_rows(self) -> bool:
        """Whether the rows are in the database, and not in a file of a trace, which old releases do not mark."""
        if not isinstance(self.expected, Trace):
            return True
        in_database = getattr(self.expected, "spans_location", UNSET) == IN_DATABASE
        return in_database or all(path != _TRACES_JSON for path, _, _ in self.plan.files)

    def fail(self, message: str, code: str, path: str = "") -> None:
        self.result.action = "failed"
        self.report(message, code, path)

    def report(self, message: str, code: str, path: str = "") -> None:
        kind, identity = self.result.kind, self.result.source_id
        text = f"{kind.replace('_', ' ')} {identity}: {message}"
        self.result.problems.append(Problem(code=code, message=text, kind=kind, id=identity, path=path))


class EntityRestorer:
    """Writes entities through one connection. ``open_store`` gives the artifact store of a record by its location. ``absent``
    are the kinds and members that the source of the archive does not offer (``Source.absent``)."""

    def __init__(
        self,
        connection: Connection,
        tables: Tables,
        *,
        limits: EntityLimits,
        places: Places,
        open_store: Callable[[Record], ArtifactStore],
        homes: Homes,
        absent: Container[str] = (),
    ) -> None:
        self._db, self._tables, self._limits, self._places = connection, tables, limits, places
        self._open_store = open_store
        self._absent = absent
        self._expected = ExpectedEntities(connection, places, homes)
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
        self._expected.look_up(planned)
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
                self._take_existing(work, there, options)
        self._write_files([work for work in new if work.plan.files], open_blob)
        self._insert([work for work in new if work.result.action != "failed"])
        if kind in _OWNED:
            self._add_rows(kind, [work for work in alive if work.exists and work.result.action != "failed"])
        self._compare(kind, [work for work in alive if work.result.action != "failed"], open_blob)
        for work in works:
            if work.result.target_id is not None:
                ids.add(kind, work.result.source_id, work.result.target_id)
        return [work.result for work in works]

    # -- what it becomes here ------------------------------------------------------------------------------------------

    def _work(self, kind: str, plan: PlannedEntity, ids: IdMap, options: RestoreOptions) -> _Work:
        result = EntityResult(kind=kind, source_id=record_id(plan.record))
        expected = self._expected.of(plan, result, ids, options)
        work = _Work(plan, expected, result)
        if plan.rows is not None and plan.rows.num_rows and not self._db.uri.is_sqlite:
            rows, lost = self._limits.rows_held(next(table for table in KINDS[kind].tables if table in ROW_SCHEMAS), plan.rows)
            work.plan = plan = dataclasses.replace(plan, rows=rows)
            for sentence in lost:
                work.report(sentence, CANNOT_HOLD)
        if kind == "logged_model" and plan.rows is not None and plan.rows.num_rows:
            rows, notes, doubled = model_rows_as_held(plan.rows, sqlite=self._db.uri.is_sqlite)
            work.plan = dataclasses.replace(plan, rows=rows)
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
        if plan.files and isinstance(expected, SkillVersion) and not self._places.served:
            work.fail("a server keeps its content, and where is not named (artifacts_destination)", CANNOT_HOLD)
            result.action = "left out"
            return work
        result.target_id = record_id(expected)
        return work

    # -- what is there -------------------------------------------------------------------------------------------------

    def _found(self, kind: str, works: Sequence[_Work]) -> dict[str, Record]:
        wanted = tuple(record_id(work.expected) for work in works)
        if not wanted:
            return {}
        return {record_id(record): record for batch in self._reader.read(kind, EntityQuery(ids=wanted)) for record in batch}

    def _take_existing(self, work: _Work, there: Record, options: RestoreOptions) -> None:
        """An entity that is there is never changed: the same one counts as there, another one is a problem.

        A registered model of an earlier restore may have changed since, at either end: its new versions are welcome. Online
        scoring that an earlier restore switched off is switched on where that is asked for.
        """
        if not same_place(location := location_of(there), location_of(work.expected)):
            work.elsewhere = location
        stays = {name: getattr(there, name) for name in KINDS[work.result.kind].locations}
        work.expected = replace(work.expected, **stays)
        rates = _other_rates(work, there)
        differences, unsaid = _differences(work.expected, there), self._unsaid(work, there)
        if not differences:
            work.result.action = "there"
            self._set_rates(work, rates, switch_on=options.online_scoring)
        elif isinstance(work.expected, Workspace):
            work.expected = self._complete_workspace(work, there)
        elif work.result.kind in _GROWING and order_key(work.expected)[0] == order_key(there)[0]:
            work.expected, work.result.action = there, "merged"
            what = f"the {work.result.kind.replace('_', ' ')} {record_id(there)} was there and keeps what differs"
            work.result.notes.append(f"{what}: {', '.join(differences)}")
        else:
            work.fail(f"the database has another one of this id: {differences[0]}", "exists-differs")
        for name in unsaid:
            what = work.result.kind.replace("_", " ")
            work.result.keeps(f"a {what} that was there keeps its {name}: this snapshot has none")

    def _set_rates(self, work: _Work, rates: Mapping[str, tuple[str, str]], *, switch_on: bool) -> None:
        """Give a scorer that is there the sample rates that it lacks (config id -> wanted, there), where they are asked for."""
        asked = {
            config: wanted for config, (wanted, there) in rates.items() if switch_on and _is_rate(wanted) and not float(there)
        }
        for config, wanted in asked.items():
            where = f"online_scoring_config_id = {literal(config)}"
            self._db.run(f"UPDATE online_scoring_configs SET sample_rate = {float(wanted)!r} WHERE {where}")
        if asked:
            assert isinstance(work.expected, Scorer)
            online = [
                replace(one, sample_rate=asked.get(str(one.online_scoring_config_id), one.sample_rate))
                for one in work.expected.online
            ]
            work.expected = replace(work.expected, online=tuple(online))
            work.changed, work.result.action = True, "merged"
            self._db.commit()
        if asked.keys() != rates.keys():
            work.result.keeps("a scorer that was there keeps its sample rates of online scoring")

    def _unsaid(self, work: _Work, there: Record) -> list[str]:
        """The members that the database has, and the archived record not, although its source could have told them."""
        return [
            name
            for name in there.__struct_fields__
            if getattr(work.plan.record, name) is UNSET
            and getattr(work.expected, name) is UNSET
            and getattr(there, name) is not UNSET
            and f"{work.result.kind}.{name}" not in self._absent
        ]

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
        return replace(there, **lacking)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_files(self, works: Sequence[_Work], open_blob: OpenBlob) -> None:
        for work in works:
            store, result = partial(self._open_store, work.expected), work.result
            problems, notes = write_new_files(store, work.plan.files, open_blob, result.kind, result.source_id)
            result.problems += problems
            result.notes += notes

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

    def _add_rows(self, kind: str, works: Sequence[_Work]) -> None:
        """Give entities that are there without any rows those of the archive: an earlier restore was of a damaged one."""
        rows, table, column = _OWNED[kind]
        asked = {record_id(w.expected): w for w in works if w.plan.rows is not None and w.plan.rows.num_rows and w.has_rows}
        if not asked:
            return
        query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} IN {literals(asked)}"
        bare = sorted(asked.keys() - set(read_texts(self._db, query)))
        self._db.commit()  # a transaction that wrote after it had read could not wait for another writer of SQLite
        for work in (asked[identity] for identity in bare):
            try:
                (self._append_spans if kind == "trace" else self._append_model_metrics)([work])
                self._db.commit()
            except ServerError as error:
                self._db.rollback()
                if error.code != "refused":
                    raise
                work.fail(error.message, "refused")
                continue
            work.changed, work.result.action = True, "merged"
            what = kind.replace("_", " ")
            work.result.notes.append(f"a {what} that was there without any {ROW_NOUNS[rows]} got those of the archive")

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
            if rows is not None and rows.num_rows and work.has_rows:
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
            elif work.changed or not work.exists:
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
        result, store, files = work.result, partial(self._open_store, work.expected), work.plan.files
        if work.exists:
            found, problems = complete_files(store, files, open_blob, result.kind, result.source_id, elsewhere=work.elsewhere)
        else:
            found, problems = compare_files(store, files, result.kind, result.source_id), []
        result.files, result.file_bytes = found.files, found.bytes
        for note in found.notes:
            result.keeps(note)
        named = {problem.path for problem in (*result.problems, *problems) if problem.path}
        result.problems += [*problems, *(problem for problem in found.problems if problem.path not in named)]
        for path, _, _ in found.missing:
            if path not in named:
                work.fail(f"the file {path!r} is not there", "file-missing", path)
        if any(problem.path for problem in result.problems) or found.problems:
            result.action = "failed"
        elif found.added:
            result.action = "merged"

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
            if work.result.action == "failed":
                continue
            if wanted is None or not wanted.num_rows:
                if number in found and work.exists:
                    what = f"a {work.result.kind.replace('_', ' ')} that was there"
                    work.result.keeps(f"{what} keeps its {ROW_NOUNS[table]}: this snapshot has none")
                continue
            there = pa.concat_tables(found[number]).combine_chunks() if number in found else wanted.slice(0, 0)
            work.result.rows = there.num_rows
            if not _same_rows(there, wanted):
                if table == "spans/1" and not work.has_rows:
                    continue
                work.fail(f"{there.num_rows} rows were read back where {wanted.num_rows} were expected, or others", DIFFERS)


def _other_rates(work: _Work, there: Record) -> dict[str, tuple[str, str]]:
    """The sample rates of a scorer (config id -> wanted, there) that are others there. The scorer is expected with those."""
    if not isinstance(work.expected, Scorer) or not isinstance(there, Scorer):
        return {}
    found = {str(one.online_scoring_config_id): one.sample_rate or "0.0" for one in there.online}
    wanted = {str(one.online_scoring_config_id): one.sample_rate or "0.0" for one in work.expected.online}
    rates = {config: (rate, found[config]) for config, rate in wanted.items() if found.get(config, rate) != rate}
    online = [
        replace(one, sample_rate=found.get(str(one.online_scoring_config_id), one.sample_rate)) for one in work.expected.online
    ]
    work.expected = replace(work.expected, online=tuple(online))
    return rates


def _is_rate(text: str) -> bool:
    return 0 < float(text) <= 1


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
    return record_differences(expected, replace(found, **unsaid))


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
