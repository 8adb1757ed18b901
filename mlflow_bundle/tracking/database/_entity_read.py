"""Reads entities of every kind out of a database, by the map of ``_entities``: in bulk, in archive order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, repeat
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, structs

from mlflow_bundle import entities as e
from mlflow_bundle.entities import Record
from mlflow_bundle.errors import CorruptError
from mlflow_bundle.kinds import KINDS, NO_TIME, order_key
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import EntityQuery
from mlflow_bundle.tracking.database._connection import (
    Column,
    Connection,
    experiment_numbers,
    literal,
    literals,
    not_found,
    slices,
)
from mlflow_bundle.tracking.database._entities import CHILD_FORMS, ENTITIES, LOGGED_MODEL_STATUS, Child, Entity, Form
from mlflow_bundle.tracking.database._sound import sound
from mlflow_bundle.tracking.database._traces_read import EXTRA_COLUMNS, complete_trace
from mlflow_bundle.tracking.database._wanted import PLACE, Wanted

__all__ = ["WRAPPER", "EntityReader", "unwrapped"]

_BATCH: Final = 1_000
#: Beside the columns of keys, which no table of MLflow calls so.
_ID, _TIME = "archive id", "archive time"
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
        #: The rows that were read where everything was asked for, by table.
        self.read_whole: Counter[str] = Counter()

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

    def read(
        self, kind: str, query: EntityQuery, *, broken: Callable[[Problem], object] | None = None
    ) -> Iterator[list[Record]]:
        """The records that match, in archive order, in batches of at most 1,000. ``broken`` takes a problem for each that
        cannot be read.

        Raises:
            CorruptError: an entity cannot be read, and nobody takes it as a problem.
        """
        entity = ENTITIES[kind]
        found = self._keys(entity, query)
        load = partial(self._load, entity, whole=query == EntityQuery())
        keys = (_tuples(found.slice(start, _BATCH)) for start in range(0, found.num_rows, _BATCH))
        if broken is not None:

            def tell(key: Key, error: CorruptError) -> None:
                broken(self._problem(entity, key, error))

            load = partial(sound, load, broken=tell)
        batches = map(load, keys)
        if entity.created:
            yield from batches
        else:
            yield from slices(sorted((record for batch in batches for record in batch), key=order_key), _BATCH)

    def _keys(self, entity: Entity, query: EntityQuery) -> pa.Table:
        """The keys of the entities that match, in archive order where it is one of times and ids; else in any."""
        key = self._key(entity)
        parent = ["dataset_id"] if entity.kind == "dataset_record" else []
        found = self._columns(entity, [*key, *([entity.created] if entity.created else []), *parent], query)
        if not entity.created:
            return found
        identities = found.column(0)
        if len(key) > 1:
            identities = pa.array(_identities(entity, key, _tuples(found.select(key))), pa.string())
        found = found.append_column(_ID, identities)
        found = found.append_column(_TIME, pc.fill_null(found.column(entity.created), NO_TIME))
        if query.ids is not None:
            found = found.filter(pc.is_in(found.column(_ID), pa.array(query.ids, pa.string())))
        if query.parents is not None:
            before = (identity.rpartition("/")[0] for identity in found.column(_ID).to_pylist())
            owners = found.column(*parent) if parent else pa.array(before, pa.string())
            found = found.filter(pc.is_in(owners, pa.array(query.parents, pa.string())))
        return found.select(key).take(pc.sort_indices(found, [(_TIME, "ascending"), (_ID, "ascending")]))

    def _key(self, entity: Entity) -> list[str]:
        """The columns of the primary key; schemas without workspaces have one less."""
        return [name for name in entity.key if self._has(entity.table, name)]

    def _where(self, entity: Entity, query: EntityQuery) -> str:
        conditions = ["1 = 1"]
        if query.experiment_ids is not None:
            conditions.append(self._in_experiments(entity, query.experiment_ids))
        if query.run_ids is not None:
            conditions.append(self._of_runs(entity, query.run_ids))
        # Else the keys of the whole table would be read for each batch.
        if query.ids is not None and len(query.ids) <= _BATCH and entity.created:
            conditions.append(self._of_ids(entity, query.ids))
        if query.parents is not None and len(query.parents) <= _BATCH:
            column = "dataset_id" if entity.kind == "dataset_record" else "name"
            conditions.append(_one_of(column, query.parents if column == "dataset_id" else _names(query.parents, 0)))
        return " AND ".join(conditions)

    def _of_ids(self, entity: Entity, ids: Sequence[str]) -> str:
        """What holds for the entities with these ids, and where a key has several columns, for some others too."""
        if len(entity.key) == 1:
            return _one_of(entity.key[0], ids)
        return _one_of("name", _names(ids, len(entity.key) - entity.key.index("name") - 1))

    def _in_experiments(self, entity: Entity, experiment_ids: Sequence[str]) -> str:
        numbers = experiment_numbers(experiment_ids)
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
        """The entities that name one of these runs."""
        parts = []
        for some in slices(run_ids, _BATCH):
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

    def _problem(self, entity: Entity, key: Key, error: CorruptError) -> Problem:
        (identity,) = _identities(entity, self._key(entity), [key])
        message = f"{entity.kind.replace('_', ' ')} {identity}: {error.message}"
        return Problem(code=error.code, message=message, kind=entity.kind, id=identity)

    def _load(self, entity: Entity, keys: Sequence[Key], *, whole: bool) -> list[Record]:
        """The complete records with these keys, in their order."""
        if not keys:
            return []
        wanted, key = Wanted(self._db, keys), self._key(entity)
        own = {name: column for name, column in entity.fields.items() if self._has(entity.table, column)}
        forms: dict[str, tuple[str, Form]] = {name: (column, self._form(entity, name)) for name, column in own.items()}
        extra = EXTRA_COLUMNS if entity.kind == "trace" else {}
        forms |= {column: (column, form) for column, form in extra.items() if self._has(entity.table, column)}
        found = self._rows(wanted, entity.table, key, forms, entity.type)
        if found.num_rows != len(keys):
            raise not_found(self._db, entity.table)
        columns = {name: _shown(found.column(name), form) for name, (_, form) in forms.items() if name in own}
        if "outputs" in columns and entity.kind == "dataset_record":
            columns["outputs"] = [text if text is UNSET else unwrapped(text) for text in columns["outputs"]]
        if "status" in columns and entity.kind == "logged_model":
            columns["status"] = [n if n is UNSET else LOGGED_MODEL_STATUS.get(n, str(n)) for n in columns["status"]]
        places = found.column(PLACE.name).to_pylist()
        for child in entity.children:
            items = self._children(wanted, child, key, len(keys))
            columns[child.field] = [items[place] for place in places]
        if whole:
            self.read_whole.update(wanted.read)
        rows = _rows(columns)
        if entity.kind == "trace":
            rows = _completed(rows, {name: found.column(name) for name in forms if name not in own})
        return [entity.type(**fields) for fields in rows]

    def _rows(
        self,
        wanted: Wanted,
        table: str,
        link: Sequence[str],
        forms: Mapping[str, tuple[str, Form]],
        kind: type[e.Document] | None,
        *,
        order: Sequence[str] = (),
        condition: str = "",
    ) -> pa.Table:
        """The columns of a table in the rows of these owners. ``forms`` are column and form by the name in the answer; those
        that a ``kind`` cannot do without are not NULL."""
        needed = {field.name for field in structs.fields(kind) if field.required} if kind else set()
        fields = [pa.field(name, _ARROW[form], nullable=name not in needed) for name, (_, form) in forms.items()]
        chosen = [self._expression(f"{table}.{column}", form) for column, form in forms.values()]
        return wanted.rows(table, link, chosen, pa.schema([PLACE, *fields]), order=order, condition=condition)

    def _columns(self, entity: Entity, columns: Sequence[str], query: EntityQuery) -> pa.Table:
        """These columns of the entities that match."""
        named = {column: name for name, column in entity.fields.items()}
        forms = {column: self._form(entity, named[column]) for column in columns}
        chosen = ", ".join(self._expression(column, form) for column, form in forms.items())
        schema = pa.schema([pa.field(column, _ARROW[form]) for column, form in forms.items()])
        return self._db.fetch(f"SELECT {chosen} FROM {entity.table} WHERE {self._where(entity, query)}", schema)

    def _children(self, wanted: Wanted, child: Child, key: Sequence[str], owners: int) -> Sequence[tuple[Any, ...]]:
        """What each owner has in a child table."""
        if child.table not in self._tables:
            return [()] * owners
        parents = {parent: column for column, parent in child.link.items()}
        forms: dict[str, tuple[str, Form]] = {
            name: (column, CHILD_FORMS.get((child.table, name), "text"))
            for name, column in child.columns.items()
            if self._has(child.table, column)
        }
        found = self._rows(
            wanted,
            child.table,
            [parents[parent] for parent in key],
            forms,
            None if child.type is e.KeyValue else child.type,
            order=[name for name in child.order if name in forms],
            condition=" AND ".join(f"{child.table}.{column} = {literal(value)}" for column, value in child.constants.items()),
        )
        if not found.num_rows:
            return [()] * owners
        items = self._values(child, found, {name: _shown(found.column(name), form) for name, (_, form) in forms.items()})
        ends = np.searchsorted(found.column(PLACE.name).to_numpy(), np.arange(owners + 1)).tolist()
        return [tuple(items[start:end]) for start, end in pairwise(ends)]

    def _values(self, child: Child, found: pa.Table, columns: dict[str, list[Any]]) -> list[Any]:
        """What a record holds of each row of a child table."""
        if child.field == "prompts":
            parts = (text.rpartition("/") for text in columns[""])
            return [e.PromptLink(name=name, version=version) for name, _, version in parts]
        if child.type is None:
            return columns[""]
        if child.type is e.KeyValue:
            self._refuse_null(child, found)
            return [e.KeyValue(key=key, value=value) for key, value in zip(columns["key"], columns["value"], strict=True)]
        if child.type is e.Assessment:
            ids = columns["assessment_id"]
            columns["metadata"] = [self._metadata(text, owner) for text, owner in zip(columns["metadata"], ids, strict=True)]
        kind = child.type
        return [kind(**fields) for fields in _rows(columns)]

    def _metadata(self, text: str | None, assessment_id: str) -> tuple[e.KeyValue, ...]:
        """The metadata of an assessment, sorted by key."""
        try:
            members = json.loads(text) if text else None
            pairs = [e.KeyValue(key=k, value=v if isinstance(v, str) else json.dumps(v)) for k, v in (members or {}).items()]
        except (ValueError, AttributeError) as error:
            raise CorruptError(
                f"in the database {self._db.uri.shown}, the metadata of the assessment {assessment_id!r} in the table "
                f"assessments is no JSON object: {error}",
                code="column",
                hint="correct that value or delete that row",
            ) from error
        return tuple(sorted(pairs, key=lambda pair: pair.key.encode("utf-8", "surrogatepass")))

    def _refuse_null(self, child: Child, found: pa.Table) -> None:
        if found.column("value").null_count:
            key = found.filter(found.column("value").is_null()).column("key")[0].as_py()
            raise CorruptError(
                f"in the database {self._db.uri.shown}, {key!r} in the table {child.table} has the value NULL, "
                "which MLflow itself cannot serve",
                code="column",
                hint="set a value or delete that row",
            )

    # -- forms -----------------------------------------------------------------------------------------------------

    def _form(self, entity: Entity, name: str) -> Form:
        return "text" if name in entity.ids else entity.forms.get(name, "text")

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


def _one_of(column: str, texts: Iterable[str]) -> str:
    possible = [text for text in texts if "\0" not in text]
    return f"{column} IN {literals(possible)}" if possible else "1 = 0"


def _names(ids: Iterable[str], more: int) -> set[str]:
    """Every name that may be in ids, which may begin with a workspace and have this number of parts behind the name."""
    parts = [identity.split("/") for identity in ids]
    return {"/".join(some[start : len(some) - more]) for some in parts for start in range(len(some) - more)}


def _shown(column: pa.ChunkedArray, form: Form) -> list[Any]:
    """A column as records have it: truth values for flags, texts for decimals, ``UNSET`` for NULL."""
    values = column.to_pylist()
    if form in ("flag", "decimal"):
        convert: Callable[[Any], Any] = bool if form == "flag" else repr
        values = [None if value is None else convert(value) for value in values]
    return [UNSET if value is None else value for value in values] if column.null_count else values


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[Fields]:
    """Columns as rows."""
    names = tuple(columns)
    return (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _completed(rows: Iterable[Fields], extra: Mapping[str, pa.ChunkedArray]) -> Iterator[Fields]:
    """The rows of traces with what stands in columns of their own."""
    used = {name: column for name, column in extra.items() if name == "trace_name" or column.null_count < len(column)}
    beside = {name: column.to_pylist() for name, column in used.items()}
    for fields, values in zip(rows, _rows(beside) if beside else repeat({}), strict=False):
        complete_trace(fields, values)
        yield fields


def _identities(entity: Entity, key: Sequence[str], values: Iterable[Key]) -> Iterator[str]:
    """The ids of the records with these keys."""
    named = {column: name for name, column in entity.fields.items()}
    names, identify = [named[column] for column in key], KINDS[entity.kind].identify
    for some in values:
        fields = {name: UNSET if value is None else value for name, value in zip(names, some, strict=True)}
        yield identify(SimpleNamespace(**{"workspace": UNSET, **fields}))


def _tuples(table: pa.Table) -> list[Key]:
    """The rows of a table."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


#: MLflow keeps the outputs of a record inside an object with this one member.
WRAPPER: Final = '{"mlflow_wrapped": '


def unwrapped(outputs: str) -> str:
    """The JSON text of the outputs of a dataset record as every API shows them."""
    return outputs[len(WRAPPER) : -1] if outputs.startswith(WRAPPER) and outputs.endswith("}") else outputs
