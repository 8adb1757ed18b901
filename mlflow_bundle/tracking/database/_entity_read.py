"""Reads entities of every kind out of a database, by the map of ``_entities``: in bulk, in archive order."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle import entities as e
from mlflow_bundle.entities import Record
from mlflow_bundle.errors import CorruptError
from mlflow_bundle.kinds import KINDS, NO_TIME, order_key
from mlflow_bundle.tracking._port import EntityQuery
from mlflow_bundle.tracking.database._connection import Column, Connection, literal, literals
from mlflow_bundle.tracking.database._entities import CHILD_FORMS, ENTITIES, LOGGED_MODEL_STATUS, Child, Entity, Form
from mlflow_bundle.tracking.database._traces_read import EXTRA_COLUMNS, complete_trace

__all__ = ["WRAPPER", "EntityReader", "unwrapped"]

_BATCH: Final = 1_000
_ARROW: Final[Mapping[Form, pa.DataType]] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "flag": pa.int64(),
    "decimal": pa.float64(),
}
Fields = dict[str, Any]
Key = tuple[Any, ...]


class EntityReader:
    """The entities of one database, read through its connection. ``tables`` are its columns, by table."""

    def __init__(self, connection: Connection, tables: Mapping[str, Mapping[str, Column]]) -> None:
        self._db = connection
        self._tables = tables

    def kinds(self) -> list[str]:
        """The kinds whose table the schema has, in archive order."""
        return [kind for kind in KINDS if kind in ENTITIES and ENTITIES[kind].table in self._tables]

    def absent(self) -> list[str]:
        """What the schema has no place for: kinds, and fields of kinds."""
        missing = []
        for kind, entity in ENTITIES.items():
            if entity.table not in self._tables:
                missing.append(kind)
                continue
            missing += [f"{kind}.{name}" for name, column in entity.fields.items() if not self._has(entity.table, column)]
            missing += [f"{kind}.{child.field}" for child in entity.children if child.table not in self._tables]
        return missing

    def _has(self, table: str, column: str) -> bool:
        return column in self._tables.get(table, {})

    # -- which ones ------------------------------------------------------------------------------------------------

    def read(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records that match, in archive order, in batches of at most 1,000."""
        entity = ENTITIES[kind]
        keys = self._keys(entity, query)
        if not entity.created:
            found = [record for some in _slices(keys, _BATCH) for record in self._load(entity, some)]
            found.sort(key=order_key)
            yield from _slices(found, _BATCH)
            return
        for some in _slices(keys, _BATCH):
            yield self._load(entity, some)

    def _keys(self, entity: Entity, query: EntityQuery) -> list[Key]:
        """The keys of the entities that match, in archive order."""
        fields = {column: name for name, column in entity.fields.items()}
        columns = [*self._key(entity), *([entity.created] if entity.created else [])]
        parent = "dataset_id" if entity.kind == "dataset_record" else None
        if parent:
            columns.append(parent)
        schema = pa.schema([pa.field(name, self._type(entity, fields[name])) for name in columns])
        chosen = ", ".join(self._expression(name, self._form(entity, fields[name])) for name in columns)
        where = self._where(entity, query)
        rows = self._db.fetch(f"SELECT {chosen} FROM {entity.table} WHERE {where}", schema)
        known = KINDS[entity.kind]
        wanted = None if query.ids is None else set(query.ids)
        parents = None if query.parents is None else set(query.parents)
        found = []
        for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            values = dict(zip(columns, row, strict=True))
            key = tuple(values[name] for name in self._key(entity))
            if not entity.created:
                found.append((NO_TIME, "", key))
                continue
            named = SimpleNamespace(**{fields[name]: UNSET if value is None else value for name, value in values.items()})
            if not hasattr(named, "workspace"):
                named.workspace = UNSET
            identity = known.identify(named)
            if wanted is not None and identity not in wanted:
                continue
            if parents is not None and (values["dataset_id"] if parent else identity.rpartition("/")[0]) not in parents:
                continue
            created = values[entity.created]
            found.append((NO_TIME if created is None else created, identity, key))
        found.sort(key=lambda item: (item[0], item[1]))
        return [key for _, _, key in found]

    def _key(self, entity: Entity) -> list[str]:
        """The columns of the primary key; schemas without workspaces have one less."""
        return [name for name in entity.key if self._has(entity.table, name)]

    def _where(self, entity: Entity, query: EntityQuery) -> str:
        conditions = ["1 = 1"]
        if query.experiment_ids is not None:
            conditions.append(self._in_experiments(entity, query.experiment_ids))
        if query.run_ids is not None:
            conditions.append(self._of_runs(entity, query.run_ids))
        return " AND ".join(conditions)

    def _in_experiments(self, entity: Entity, experiment_ids: Sequence[str]) -> str:
        numbers = [str(int(text)) for text in experiment_ids if text.isascii() and text.isdigit()]
        if not numbers:
            return "1 = 0"
        if entity.kind == "evaluation_dataset":
            linked = literals(numbers)
            return (
                f"dataset_id IN (SELECT source_id FROM entity_associations WHERE source_type = 'evaluation_dataset' "
                f"AND destination_type = 'experiment' AND destination_id IN {linked})"
            )
        return f"experiment_id IN ({', '.join(numbers)})"

    def _of_runs(self, entity: Entity, run_ids: Sequence[str]) -> str:
        """The entities that name one of these runs, found with a temporary list where there are many."""
        parts = []
        for some in _slices(run_ids, _BATCH):
            runs = literals(some)
            if entity.kind == "logged_model":
                linked = (
                    f"SELECT destination_id FROM inputs WHERE source_type = 'RUN_INPUT' AND source_id IN {runs} UNION "
                    f"SELECT destination_id FROM inputs WHERE source_type = 'RUN_OUTPUT' AND source_id IN {runs}"
                )
                parts.append(f"source_run_id IN {runs} OR model_id IN ({linked})")
            elif entity.kind == "model_version":
                parts.append(f"run_id IN {runs}")
            elif entity.kind == "trace":
                linked = f"SELECT request_id FROM trace_request_metadata WHERE key = 'mlflow.sourceRun' AND value IN {runs}"
                if "entity_associations" in self._tables:
                    linked += (
                        " UNION SELECT source_id FROM entity_associations WHERE source_type = 'trace' "
                        f"AND destination_type = 'run' AND destination_id IN {runs}"
                    )
                parts.append(f"request_id IN ({linked})")
        return f"({' OR '.join(parts)})" if parts else "1 = 0"

    # -- what they hold --------------------------------------------------------------------------------------------

    def _load(self, entity: Entity, keys: Sequence[Key]) -> list[Record]:
        """The complete records with these keys, in their order."""
        if not keys:
            return []
        key = self._key(entity)
        condition = self._among(entity, key, keys, key)
        own = {name: column for name, column in entity.fields.items() if self._has(entity.table, column)}
        extra = EXTRA_COLUMNS if entity.kind == "trace" else {}
        extra = {column: form for column, form in extra.items() if self._has(entity.table, column)}
        forms: list[tuple[str, str, Form]] = [(name, column, self._form(entity, name)) for name, column in own.items()]
        forms += [("+" + column, column, form) for column, form in extra.items()]
        rows = self._rows(entity.table, [(name, column, form) for name, column, form in forms], condition)
        by_key = {column: name for name, column in own.items()}
        children = {child.field: self._children(entity, child, key, keys) for child in entity.children}
        records: dict[Key, Record] = {}
        for row in rows:
            identity = tuple(row[by_key[column]] for column in key)
            fields = {
                name: self._value(entity, name, value) for name, value in row.items() if name[0] != "+" and value is not None
            }
            for child in entity.children:
                fields[child.field] = children[child.field].get(identity, ())
            if entity.kind == "trace":
                complete_trace(fields, {name[1:]: value for name, value in row.items() if name[0] == "+"})
            if entity.kind == "dataset_record" and "outputs" in fields:
                fields["outputs"] = unwrapped(fields["outputs"])
            if entity.kind == "logged_model" and "status" in fields:
                fields["status"] = LOGGED_MODEL_STATUS.get(fields["status"], str(fields["status"]))
            records[identity] = entity.type(**fields)
        return [records[key] for key in keys if key in records]

    def _value(self, entity: Entity, name: str, value: Any) -> Any:
        form = self._form(entity, name)
        if form == "flag":
            return bool(value)
        return repr(value) if form == "decimal" else value

    def _among(self, entity: Entity, key: Sequence[str], keys: Sequence[Key], names: Sequence[str]) -> str:
        """The condition that a row belongs to one of the keys; ``names`` are the columns that hold them."""
        fields = {column: name for name, column in entity.fields.items()}
        texts = [self._form(entity, fields[column]) == "text" for column in key]
        if len(key) == 1:
            return f"{names[0]} IN {literals(value for (value,) in keys)}"

        def spelled(row: Key) -> str:
            return ", ".join(literal(value) if text else str(int(value)) for value, text in zip(row, texts, strict=True))

        return f"({', '.join(names)}) IN (VALUES {', '.join(f'({spelled(row)})' for row in keys)})"

    def _rows(self, table: str, columns: Sequence[tuple[str, str, Form]], condition: str) -> list[Fields]:
        chosen = ", ".join(self._expression(column, form) for _, column, form in columns)
        schema = pa.schema([pa.field(f"{number}", _ARROW[form]) for number, (_, _, form) in enumerate(columns)])
        found = self._db.fetch(f"SELECT {chosen} FROM {table} WHERE {condition}", schema)
        names = [name for name, _, _ in columns]
        lists = [column.to_pylist() for column in found.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]

    def _children(self, entity: Entity, child: Child, key: Sequence[str], keys: Sequence[Key]) -> dict[Key, tuple[Any, ...]]:
        """The rows of a child table by owner."""
        if child.table not in self._tables:
            return {}
        parents = {parent: column for column, parent in child.link.items()}
        link = {parents[parent]: parent for parent in key}
        where = self._among(entity, key, keys, list(link))
        where += "".join(f" AND {column} = {literal(value)}" for column, value in child.constants.items())
        named = {column: name for name, column in entity.fields.items()}
        columns: list[tuple[str, str, Form]] = [(f"@{c}", c, self._form(entity, named[p])) for c, p in link.items()]
        columns += [
            (name, column, CHILD_FORMS.get((child.table, name), "text"))
            for name, column in child.columns.items()
            if self._has(child.table, column)
        ]
        build = self._builder(child)
        found: defaultdict[Key, list[tuple[Any, Any]]] = defaultdict(list)
        for row in self._rows(child.table, columns, where):
            owner = tuple(row.pop(f"@{column}") for column in link)
            rank = tuple((value is None, value) for value in (row.get(name) for name in child.order))
            found[owner].append((rank, build(row)))
        return {owner: tuple(value for _, value in sorted(items, key=lambda item: item[0])) for owner, items in found.items()}

    def _builder(self, child: Child) -> Callable[[Fields], Any]:
        if child.field == "prompts":
            return lambda row: e.PromptLink(name=row[""].rpartition("/")[0], version=row[""].rpartition("/")[2])
        if child.type is None:
            return lambda row: row[""]
        if child.type is e.KeyValue:
            return lambda row: self._pair(child, row)
        kind = child.type

        def build(row: Fields) -> Any:
            fields: Fields = {}
            for name, value in row.items():
                if value is None:
                    continue
                form = CHILD_FORMS.get((child.table, name))
                fields[name] = bool(value) if form == "flag" else repr(value) if form == "decimal" else value
            if kind is e.Assessment:
                fields["metadata"] = _metadata(row.get("metadata"))
            return kind(**fields)

        return build

    def _pair(self, child: Child, row: Fields) -> e.KeyValue:
        if row["value"] is None:
            raise CorruptError(
                f"in the database {self._db.uri.shown}, {row['key']!r} in the table {child.table} has the value NULL, "
                "which MLflow itself cannot serve",
                code="column",
                hint="set a value or delete that row",
            )
        return e.KeyValue(key=row["key"], value=row["value"])

    # -- forms -----------------------------------------------------------------------------------------------------

    def _form(self, entity: Entity, name: str) -> Form:
        return "text" if name in entity.ids else entity.forms.get(name, "text")

    def _type(self, entity: Entity, name: str) -> pa.DataType:
        return _ARROW[self._form(entity, name)]

    def _expression(self, column: str, form: Form) -> str:
        """A column as the type that is asked for, in either dialect."""
        sqlite = self._db.uri.is_sqlite
        if form == "text":
            return f"CAST({column} AS TEXT)"
        if form == "decimal":
            return f"CAST({column} AS {'REAL' if sqlite else 'DOUBLE PRECISION'})"
        if form == "flag" and not sqlite:
            return f"CAST({column} AS INT)"
        return column if sqlite else f"CAST({column} AS BIGINT)"


#: MLflow keeps the outputs of a record inside an object with this one member.
WRAPPER: Final = '{"mlflow_wrapped": '


def unwrapped(outputs: str) -> str:
    """The JSON text of the outputs of a dataset record as every API shows them."""
    return outputs[len(WRAPPER) : -1] if outputs.startswith(WRAPPER) and outputs.endswith("}") else outputs


def _metadata(text: str | None) -> tuple[e.KeyValue, ...]:
    """The metadata of an assessment, sorted by key."""
    members = json.loads(text) if text else {}
    pairs = [e.KeyValue(key=k, value=v if isinstance(v, str) else json.dumps(v)) for k, v in (members or {}).items()]
    return tuple(sorted(pairs, key=lambda pair: pair.key.encode("utf-8", "surrogatepass")))


def _slices(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
