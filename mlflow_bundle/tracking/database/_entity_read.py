"""Reads entities of every kind out of a database, by the map of ``_entities``: in bulk, in archive order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, repeat
from operator import itemgetter
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
        named = {column: name for name, column in entity.fields.items()}
        key = self._key(entity)
        parent = ["dataset_id"] if entity.kind == "dataset_record" else []
        columns = [*key, *([entity.created] if entity.created else []), *parent]
        forms = [(column, self._form(entity, named[column])) for column in columns]
        lists = self._columns(entity.table, forms, self._where(entity, query))
        keys = list(zip(*lists[: len(key)], strict=True))
        if not entity.created:
            return keys
        names = [named[column] for column in key]
        identities = lists[0] if len(key) == 1 else [_identity(entity.kind, names, values) for values in keys]
        times = [NO_TIME if time is None else time for time in lists[len(key)]]
        owners = lists[-1] if parent else [identity.rpartition("/")[0] for identity in identities]
        wanted, parents = (None if ids is None else set(ids) for ids in (query.ids, query.parents))
        found = [
            (time, identity, key)
            for time, identity, owner, key in zip(times, identities, owners, keys, strict=True)
            if (wanted is None or identity in wanted) and (parents is None or owner in parents)
        ]
        return [key for _, _, key in sorted(found, key=itemgetter(0, 1))]

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
        forms = [(column, self._form(entity, name)) for name, column in own.items()]
        lists = self._columns(entity.table, [*forms, *extra.items()], condition)
        columns = {name: _shown(values, form) for name, values, (_, form) in zip(own, lists, forms, strict=False)}
        if entity.kind == "dataset_record" and "outputs" in columns:
            columns["outputs"] = [None if text is None else unwrapped(text) for text in columns["outputs"]]
        if entity.kind == "logged_model" and "status" in columns:
            columns["status"] = [LOGGED_MODEL_STATUS.get(n, None if n is None else str(n)) for n in columns["status"]]
        children = {child.field: self._children(entity, child, key, keys) for child in entity.children}
        names = {column: name for name, column in own.items()}
        identities = zip(*(columns[names[column]] for column in key), strict=True)
        more = zip(*lists[len(own) :], strict=True) if extra else repeat(())
        records: dict[Key, Record] = {}
        for identity, fields, beside in zip(identities, _rows(columns), more, strict=False):
            for name, found in children.items():
                fields[name] = found.get(identity, ())
            if entity.kind == "trace":
                complete_trace(fields, dict(zip(extra, beside, strict=True)))
            records[identity] = entity.type(**fields)
        return [records[key] for key in keys if key in records]

    def _among(self, entity: Entity, key: Sequence[str], keys: Sequence[Key], names: Sequence[str]) -> str:
        """The condition that a row belongs to one of the keys; ``names`` are the columns that hold them."""
        fields = {column: name for name, column in entity.fields.items()}
        texts = [self._form(entity, fields[column]) == "text" for column in key]
        if len(key) == 1:
            return f"{names[0]} IN {literals(value for (value,) in keys)}"

        def spelled(row: Key) -> str:
            return ", ".join(literal(value) if text else str(int(value)) for value, text in zip(row, texts, strict=True))

        return f"({', '.join(names)}) IN (VALUES {', '.join(f'({spelled(row)})' for row in keys)})"

    def _columns(self, table: str, columns: Sequence[tuple[str, Form]], condition: str) -> list[list[Any]]:
        """The values of these columns in all rows that meet a condition."""
        chosen = ", ".join(self._expression(column, form) for column, form in columns)
        schema = pa.schema([pa.field(f"{number}", _ARROW[form]) for number, (_, form) in enumerate(columns)])
        return [
            column.to_pylist() for column in self._db.fetch(f"SELECT {chosen} FROM {table} WHERE {condition}", schema).columns
        ]

    def _children(self, entity: Entity, child: Child, key: Sequence[str], keys: Sequence[Key]) -> dict[Key, tuple[Any, ...]]:
        """The rows of a child table by owner."""
        if child.table not in self._tables:
            return {}
        parents = {parent: column for column, parent in child.link.items()}
        link = {parents[parent]: parent for parent in key}
        where = self._among(entity, key, keys, list(link))
        where += "".join(f" AND {column} = {literal(value)}" for column, value in child.constants.items())
        named = {column: name for name, column in entity.fields.items()}
        own = {name: column for name, column in child.columns.items() if self._has(child.table, column)}
        forms = [(column, CHILD_FORMS.get((child.table, name), "text")) for name, column in own.items()]
        links = [(column, self._form(entity, named[parent])) for column, parent in link.items()]
        ordered = [*links, *((own[name], CHILD_FORMS.get((child.table, name), "text")) for name in child.order if name in own)]
        where += " ORDER BY " + ", ".join(self._rank(column, form) for column, form in ordered)
        lists = self._columns(child.table, [*links, *forms], where)
        owners, lists = zip(*lists[: len(link)], strict=True), lists[len(link) :]
        columns = {name: _shown(values, form) for name, values, (_, form) in zip(own, lists, forms, strict=True)}
        rows = zip(owners, self._values(child, columns), strict=True)
        return {owner: tuple(value for _, value in group) for owner, group in groupby(rows, key=itemgetter(0))}

    def _values(self, child: Child, columns: dict[str, list[Any]]) -> Iterable[Any]:
        """What a record holds of each row of a child table."""
        if child.field == "prompts":
            parts = (text.rpartition("/") for text in columns[""])
            return (e.PromptLink(name=name, version=version) for name, _, version in parts)
        if child.type is None:
            return columns[""]
        if child.type is e.KeyValue:
            self._refuse_null(child, columns)
            return (e.KeyValue(key=key, value=value) for key, value in zip(columns["key"], columns["value"], strict=True))
        if child.type is e.Assessment:
            columns["metadata"] = [_metadata(text) for text in columns["metadata"]]
        kind = child.type
        return (kind(**fields) for fields in _rows(columns))

    def _refuse_null(self, child: Child, columns: Mapping[str, Sequence[Any]]) -> None:
        for key, value in zip(columns["key"], columns["value"], strict=True):
            if value is None:
                raise CorruptError(
                    f"in the database {self._db.uri.shown}, {key!r} in the table {child.table} has the value NULL, "
                    "which MLflow itself cannot serve",
                    code="column",
                    hint="set a value or delete that row",
                )

    # -- forms -----------------------------------------------------------------------------------------------------

    def _form(self, entity: Entity, name: str) -> Form:
        return "text" if name in entity.ids else entity.forms.get(name, "text")

    def _type(self, entity: Entity, name: str) -> pa.DataType:
        return _ARROW[self._form(entity, name)]

    def _rank(self, column: str, form: Form) -> str:
        """What orders rows by a column: texts by their bytes, NULL last."""
        collation = ' COLLATE "C"' if form == "text" and not self._db.uri.is_sqlite else ""
        return f"{self._expression(column, form)}{collation} NULLS LAST"

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


def _shown(values: list[Any], form: Form) -> list[Any]:
    """A column as records have it: truth values for flags, texts for decimals."""
    if form not in ("flag", "decimal"):
        return values
    convert = bool if form == "flag" else repr
    return [None if value is None else convert(value) for value in values]


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[Fields]:
    """Columns as rows without what is NULL."""
    for row in zip(*columns.values(), strict=True):
        yield {name: value for name, value in zip(columns, row, strict=True) if value is not None}


def _identity(kind: str, names: Sequence[str], values: Key) -> str:
    """The id of the record with this key."""
    fields = {name: UNSET if value is None else value for name, value in zip(names, values, strict=True)}
    return KINDS[kind].identify(SimpleNamespace(**{"workspace": UNSET, **fields}))


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
