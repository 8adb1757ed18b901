"""Records of every kind as rows of MLflow's tables, by the map of ``_entities``: the reverse of ``_entity_read``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle.entities import Assessment, DatasetRecord, LoggedModel, PromptLink, Record, Trace
from mlflow_bundle.tracking.database._connection import Column, Connection
from mlflow_bundle.tracking.database._derived import DERIVED, DERIVED_OF_CHILDREN, DERIVED_ROWS, PROMOTED, association
from mlflow_bundle.tracking.database._entities import CHILD_FORMS, ENTITIES, LOGGED_MODEL_STATUS, Child, Entity
from mlflow_bundle.tracking.database._entity_read import WRAPPER
from mlflow_bundle.tracking.database._traces_read import LOCATION_TAGS

__all__ = ["Part", "Tables", "parts_of", "rows_of"]

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]

_STATUS: Final = {name: number for number, name in LOGGED_MODEL_STATUS.items()}
_DEFAULT_WORKSPACE: Final = "default"
_TYPES: Final = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("table", "column", "type")])
_POSTGRESQL: Final[Mapping[str, pa.DataType]] = {
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "boolean": pa.bool_(),
    "double precision": pa.float64(),
    "real": pa.float32(),
}


class Part(NamedTuple):
    """A row of a record: its own one, or that of one ``item`` of the tuple ``field``."""

    table: str
    row: Row
    field: str = ""
    item: Any = None


class Tables:
    """The types of a database's columns, and rows of records in them."""

    def __init__(self, connection: Connection, columns: Mapping[str, Mapping[str, Column]]) -> None:
        self._db = connection
        self.columns = columns
        self._types: dict[tuple[str, str], str] = {}
        if not connection.uri.is_sqlite:
            sql = (
                "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns "
                "WHERE table_schema = current_schema()"
            )
            found = connection.fetch(sql, _TYPES)
            for table, column, kind in zip(*(c.to_pylist() for c in found.columns), strict=True):
                self._types[table, column] = kind

    def is_json(self, table: str, column: str) -> bool:
        """Whether the database itself looks into the JSON of a column."""
        return self._types.get((table, column)) in ("json", "jsonb")

    def _arrow(self, table: str, column: str, values: list[Any]) -> pa.Array:
        if self._db.uri.is_sqlite:
            plain = [int(value) if isinstance(value, bool) else value for value in values]
            return pa.array(plain)
        return pa.array(values, _POSTGRESQL.get(self._types[table, column], pa.string()))

    def append(self, table: str, rows: list[Row]) -> None:
        """Insert rows, which all have the same columns; what is absent becomes NULL. Schemas of earlier releases have no place
        for some columns and tables."""
        there = self.columns.get(table)
        if not rows or there is None:
            return
        names = [name for name in rows[0] if name in there]
        columns = {name: self._arrow(table, name, [_stored(name, row[name]) for row in rows]) for name in names}
        absent = {name: column for name, column in columns.items() if column.null_count == len(column)}
        columns = {name: column for name, column in columns.items() if name not in absent}
        self._db.append(table, pa.table(columns))

    def append_columns(self, table: str, rows: pa.Table) -> None:
        """Insert rows that are columns already, each as its column takes it."""
        there = self.columns[table]
        columns = {}
        for name in rows.column_names:
            column = rows.column(name)
            if name in there and column.null_count < len(column):
                kind = None if self._db.uri.is_sqlite else _POSTGRESQL.get(self._types[table, name])
                columns[name] = column if kind is None else column.cast(kind)
        self._db.append(table, pa.table(columns))


def _stored(column: str, value: Any) -> Any:
    """A value as a database takes it. Experiment ids are texts in records and numbers in tables."""
    if value is UNSET:
        return None
    return int(value) if column == "experiment_id" and isinstance(value, str) else value


def rows_of(record: Record) -> Rows:
    """(table, row) of everything that a record says, its own row first."""
    return ((part.table, part.row) for part in parts_of(record))


def parts_of(record: Record) -> Iterator[Part]:
    """Everything that a record says as rows, its own row first, with the item of the record that each row is of."""
    entity = ENTITIES[str(record.__struct_config__.tag)]
    own: Row = {column: _value(entity, name, getattr(record, name)) for name, column in entity.fields.items()}
    if "workspace" in own and own["workspace"] in (UNSET, ""):
        own["workspace"] = _DEFAULT_WORKSPACE
    if isinstance(record, LoggedModel):
        own["status"] = _STATUS.get(record.status or "", 0)
    if isinstance(record, DatasetRecord) and isinstance(record.outputs, str) and record.outputs != "null":
        own["outputs"] = WRAPPER + record.outputs + "}"
    derived = DERIVED.get(entity.kind)
    yield Part(entity.table, own | (derived(record) if derived else {}))
    for child in entity.children:
        for item in _items(record, child):
            yield Part(child.table, _child_row(record, own, child, item), child.field, item)
    if entity.kind in DERIVED_ROWS:
        yield from (Part(table, row) for table, row in DERIVED_ROWS[entity.kind](record))


def _value(entity: Entity, name: str, value: Any) -> Any:
    if value is UNSET:
        return UNSET
    form = entity.forms.get(name)
    if name in entity.ids:
        return int(value) if value.isascii() and value.lstrip("-").isdigit() else value
    return float(value) if form == "decimal" else value


def _items(record: Record, child: Child) -> list[Any]:
    """What a record has for the rows of a child table; the location tags of a trace are tags again."""
    items = list(getattr(record, child.field))
    if isinstance(record, Trace) and child.field in PROMOTED:
        items = [item for item in items if item.key not in PROMOTED[child.field]]
        if child.field == "tags":
            kept = {key: getattr(record, field) for field, key in LOCATION_TAGS.items()}
            items += [_Pair(key, value) for key, value in kept.items() if value is not UNSET]
    return items


class _Pair:
    """A tag that a record has as a field."""

    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value


def _child_row(record: Record, own: Row, child: Child, item: Any) -> Row:
    row: Row = {column: own[parent] for column, parent in child.link.items()}
    row |= child.constants
    for name, column in child.columns.items():
        if name:
            value = getattr(item, name)
            form = CHILD_FORMS.get((child.table, name))
            row[column] = float(value) if form == "decimal" and value is not UNSET else value
        else:
            row[column] = f"{item.name}/{item.version}" if isinstance(item, PromptLink) else item
    if isinstance(item, Assessment):
        row["assessment_metadata"] = json.dumps({m.key: m.value for m in item.metadata}) if item.metadata else UNSET
    if child.table == "entity_associations":
        row |= association(record, child.field, str(row["destination_id"]))
    derived = DERIVED_OF_CHILDREN.get(child.table)
    return row | derived(record, item) if derived else row
