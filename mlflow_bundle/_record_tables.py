"""Records as ``pyarrow.Table``: one column a field, whatever the kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from mlflow_bundle.entities import KeyValue
from mlflow_bundle.records import KINDS

__all__ = ["record_table", "unnested"]

_BATCH: Final = 10_000
_TEXTS: Final = pa.map_(pa.string(), pa.string())
_SCALARS: Final = {msgspec.inspect.IntType: pa.int64(), msgspec.inspect.BoolType: pa.bool_()}
_Convert = Callable[[Any], Any]


def record_table(kind: str, records: Iterable[Any]) -> pa.Table:
    """The records of a kind, one a row. Tags and params are maps, other lists are lists, absent fields are null."""
    columns = _columns(KINDS[kind].type)
    schema = pa.schema([pa.field(name, type_) for name, type_, _ in columns])
    parts, source = [schema.empty_table()], iter(records)
    while batch := list(islice(source, _BATCH)):
        arrays = [pa.array([convert(getattr(r, name)) for r in batch], type_) for name, type_, convert in columns]
        parts.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(parts)


def unnested(table: pa.Table, column: str, keep: Sequence[str]) -> pa.Table:
    """The entries of a list column as rows: the columns ``keep`` of the row that each is from, then its own fields."""
    lists = table.column(column).combine_chunks()
    parents, entries = pc.list_parent_indices(lists), lists.flatten()
    kept = table.select(list(keep)).take(parents)
    fields = {field.name: entries.field(number) for number, field in enumerate(lists.type.value_type)}
    return pa.table({**{name: kept.column(name) for name in keep}, **fields})


def _columns(record: type[Any]) -> list[tuple[str, pa.DataType, _Convert]]:
    """Name, Arrow type and conversion of each field of a document."""
    info = msgspec.inspect.type_info(record)
    assert isinstance(info, msgspec.inspect.StructType)
    return [(field.name, *_arrow(field.type)) for field in info.fields]


def _arrow(kind: msgspec.inspect.Type) -> tuple[pa.DataType, _Convert]:
    """The Arrow type of a field, and what makes its values."""
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return _many(kind.item_type)
    if isinstance(kind, msgspec.inspect.StructType):
        columns = _columns(kind.cls)
        return pa.struct([pa.field(name, type_) for name, type_, _ in columns]), _one(columns)
    return _SCALARS.get(type(kind), pa.string()), _present


def _many(item: msgspec.inspect.Type) -> tuple[pa.DataType, _Convert]:
    if isinstance(item, msgspec.inspect.StructType) and item.cls is KeyValue:
        return _TEXTS, lambda pairs: [(pair.key, pair.value) for pair in pairs]
    type_, convert = _arrow(item)
    return pa.list_(type_), lambda items: [convert(one) for one in items]


def _one(columns: Sequence[tuple[str, pa.DataType, _Convert]]) -> _Convert:
    return lambda value: None if value is UNSET else {name: convert(getattr(value, name)) for name, _, convert in columns}


def _present(value: Any) -> Any:
    return None if value is UNSET else value
