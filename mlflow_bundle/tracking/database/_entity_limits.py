"""What a database holds of an entity: all of it, all but some parts, which are named, or nothing.

What cannot be held is left out alone: a tag, an assessment, an attribute that may be NULL. Only where a key, an attribute that
must be there or a name that another entity has is concerned, the whole entity is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from mlflow_bundle.entities import KeyValue, LabelSchema, Record, ReviewQueue, Scorer, Trace
from mlflow_bundle.kinds import full_name, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import CANNOT_HOLD, LEFT_OUT
from mlflow_bundle.tracking._workspaces import Homes
from mlflow_bundle.tracking.database._connection import Connection
from mlflow_bundle.tracking.database._derived import as_columns_show, scorer_id_of
from mlflow_bundle.tracking.database._entities import ENTITIES
from mlflow_bundle.tracking.database._entity_rows import Part, Tables, parts_of
from mlflow_bundle.tracking.database._limits import Limits
from mlflow_bundle.tracking.database._traces_read import NAME_TAG, SESSION_KEY

__all__ = ["EntityLimits"]

#: Kinds whose name may be taken by another entity of the database, with the column that tells whether it is the same one.
_NAMED: Final[Mapping[str, str]] = {
    "registered_model": "creation_time",
    "mcp_server": "created_at",
    "skill": "created_at",
    "gateway_model_definition": "model_definition_id",
    "gateway_endpoint": "endpoint_id",
}
#: The member that says what is somewhere else at the target anyway.
_HOME: Final = "workspace"
#: ``full_name`` in the words of a database.
_FULL_NAME: Final = "CASE organization WHEN '' THEN name ELSE '@' || organization || '/' || name END"
#: Columns of ``trace_info`` that hold a tag or a metadata entry: the field of the record and the key.
_PROMOTED: Final = {"trace_name": ("tags", NAME_TAG), "session_id": ("trace_metadata", SESSION_KEY)}
#: Tables of rows by the table of the database, with the columns that have other names there.
_ROWS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "model_metrics/1": ("logged_model_metrics", {"key": "metric_name"}),
    "spans/1": ("spans", {}),
}
#: Kinds whose names are unique within an experiment: table, column of the name, column of the id.
_IN_EXPERIMENT: Final[Mapping[str, tuple[str, str, str]]] = {
    "label_schema": ("label_schemas", "name", "schema_id"),
    "review_queue": ("review_queues", "name_key", "queue_id"),
    "scorer": ("scorers", "scorer_name", "scorer_id"),
}
_TAKEN_THERE: Final = pa.schema([pa.field(name, pa.string()) for name in ("name", "identity")])
_TAKEN: Final = pa.schema([pa.field(name, pa.string()) for name in ("workspace", "name", "identity")])


class EntityLimits:
    """The limits of one database for records of every kind but experiments and runs."""

    def __init__(self, connection: Connection, tables: Tables, limits: Limits, homes: Homes) -> None:
        self._db, self._tables, self._limits, self._homes = connection, tables, limits, homes
        self._taken: dict[str, dict[tuple[str, str], str]] = {}
        self._taken_there: dict[tuple[str, str], dict[str, str]] = {}
        self._lacking: dict[str, list[str]] = {}

    def held(self, record: Record) -> tuple[Record | None, list[Problem]]:
        """The record without what cannot be held (None: not at all), and a problem for each thing that is missing."""
        if isinstance(record, Trace):
            record, lost = as_columns_show(record)
        else:
            lost = []
        changes: dict[str, Any] = {}
        dropped: dict[str, set[int]] = {}
        if name_taken := self._other(record):
            return None, [self._problem(record, f"it is left out: {name_taken}", LEFT_OUT)]
        for field in self._placeless(record):
            changes[field] = next(info.default for info in msgspec.structs.fields(record) if info.name == field)
            lost.append(f"{field} is left out: the database has no place for it, its schema is older")
        for part, column, why in self._refused(record):
            name = self._field(record, part, column)
            if name is None:
                return None, [self._problem(record, f"it is left out: {part.table}.{column}: {why}", LEFT_OUT)]
            if part.field:
                dropped.setdefault(part.field, set()).add(id(part.item))
                lost.append(f"{_called(part)} is left out: {column}: {why}")
            elif column in _PROMOTED:
                field, key = _PROMOTED[column]
                changes[field] = tuple(pair for pair in changes.get(field, getattr(record, field)) if pair.key != key)
                lost.append(f"{key} is left out: {why}")
            else:
                changes[name] = UNSET
                lost.append(f"{name} is left out: {why}")
        for field, items in dropped.items():
            changes[field] = tuple(item for item in changes.get(field, getattr(record, field)) if id(item) not in items)
        return msgspec.structs.replace(record, **changes), [self._problem(record, sentence) for sentence in lost]

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """That the experiment has another entity of this name, as it was before the first one was written."""
        kind = str(record.__struct_config__.tag)
        if kind not in _IN_EXPERIMENT:
            return None
        table, column, key = _IN_EXPERIMENT[kind]
        if (kind, experiment_id) not in self._taken_there:
            sql = f"SELECT {column}, {key} FROM {table} WHERE experiment_id = {int(experiment_id)}"
            names, identities = (found.to_pylist() for found in self._db.fetch(sql, _TAKEN_THERE).columns)
            self._taken_there[kind, experiment_id] = dict(zip(names, identities, strict=True))
        name, identity = _named_in(record, experiment_id)
        found = self._taken_there[kind, experiment_id].get(name)
        return None if found in (None, identity) else f"the experiment {experiment_id} has another one of its name ({found})"

    def rows_held(self, table: str, rows: pa.Table) -> tuple[pa.Table, list[str]]:
        """The rows of ``model_metrics/1`` or ``spans/1`` that the database takes, and what is missing, a sentence each."""
        held, names = _ROWS[table]
        columns = self._tables.columns[held]
        lost = []
        for field in rows.schema:
            column = columns.get(names.get(field.name, field.name))
            if column is None or not pa.types.is_string(field.type):
                continue
            values = rows.column(field.name)
            suspects = pc.match_substring(values, "\0")
            if column.length is not None:
                suspects = pc.or_(suspects, pc.greater(pc.utf8_length(values), column.length))
            suspects = pc.fill_null(suspects, False)
            reasons = [self._limits.text(held, column.name, text) for text in values.filter(suspects).to_pylist()]
            if any(reasons):
                lost.append(f"{len(reasons):,} {table.partition('/')[0]} rows are left out: {field.name}: {reasons[0]}")
                rows = rows.filter(pc.invert(suspects))
        return rows, lost

    def _placeless(self, record: Record) -> list[str]:
        """The members of a record that the schema has no column or table for."""
        kind = str(record.__struct_config__.tag)
        if kind not in self._lacking:
            entity, columns = ENTITIES[kind], self._tables.columns
            own = [field for field, column in entity.fields.items() if column not in columns[entity.table]]
            several = [child.field for child in entity.children if child.table not in columns]
            self._lacking[kind] = [field for field in (*own, *several) if field != _HOME]
        return [field for field in self._lacking[kind] if getattr(record, field) not in (UNSET, ())]

    def _refused(self, record: Record) -> Iterator[tuple[Part, str, str]]:
        """Every value of a record that the database refuses: the row, the column, and why. SQLite takes everything."""
        if self._db.uri.is_sqlite:
            return
        for part in parts_of(record):
            for column, value in part.row.items():
                # The id of an experiment becomes that of its restore.
                if column in self._tables.columns.get(part.table, ()) and column != "experiment_id":
                    is_json = self._tables.is_json(part.table, column)
                    if why := self._limits.value(part.table, column, value, is_json=is_json):
                        yield part, column, why

    def _field(self, record: Record, part: Part, column: str) -> str | None:
        """What can be left out so that the rest can be held; None where nothing but the whole entity."""
        if part.field:
            return part.field if any(item is part.item for item in getattr(record, part.field)) else None
        if column in _PROMOTED and part.table == "trace_info":
            return column
        entity = ENTITIES[str(record.__struct_config__.tag)]
        names = {held: name for name, held in entity.fields.items()}
        if column in entity.key or column not in names or not self._tables.columns[part.table][column].nullable:
            return None
        return names[column]

    def _problem(self, record: Record, sentence: str, code: str = CANNOT_HOLD) -> Problem:
        kind, identity = str(record.__struct_config__.tag), record_id(record)
        return Problem(code=code, kind=kind, id=identity, message=f"{kind.replace('_', ' ')} {identity}: {sentence}")

    def _other(self, record: Record) -> str | None:
        """That the database has another entity of this name, which is neither changed nor mixed with this one."""
        kind = str(record.__struct_config__.tag)
        column = _NAMED.get(kind)
        if column is None:
            return None
        field = next(name for name, held in ENTITIES[kind].fields.items() if held == column)
        name, identity = full_name(record), getattr(record, field)
        found = self._names(kind, column).get((self._homes.of(getattr(record, "workspace", UNSET)), name))
        if found is None or identity is UNSET or found == str(identity):
            return None
        return f"the database has another one named {name!r}, made at another time or with another id"

    def _names(self, kind: str, column: str) -> Mapping[tuple[str, str], str]:
        """The names that were there before the first entity of this kind was written, with what identifies their owners."""
        if kind not in self._taken:
            table = ENTITIES[kind].table
            workspace = "workspace" if self._homes.offered else "''"
            name = _FULL_NAME if "organization" in ENTITIES[kind].key else "name"
            sql = f"SELECT {workspace}, {name}, CAST({column} AS VARCHAR) FROM {table}"
            rows = zip(*(found.to_pylist() for found in self._db.fetch(sql, _TAKEN).columns), strict=True)
            self._taken[kind] = {(home, name): identity for home, name, identity in rows if identity is not None}
        return self._taken[kind]


def _named_in(record: Record, experiment_id: str) -> tuple[str, str]:
    """The name that is unique within an experiment, as the database has it, and the id."""
    if isinstance(record, Scorer):
        return record.scorer_name, record.scorer_id or scorer_id_of(experiment_id, record.scorer_name)
    if isinstance(record, ReviewQueue):
        return record.name.lower(), record.queue_id
    assert isinstance(record, LabelSchema)
    return record.name, record.schema_id


def _called(part: Part) -> str:
    """How people call one item of a record."""
    item = part.item
    name = item if isinstance(item, str) else item.key if isinstance(item, KeyValue) else msgspec.structs.astuple(item)[0]
    return f"one of {part.field} ({str(name)[:60]!r})"
