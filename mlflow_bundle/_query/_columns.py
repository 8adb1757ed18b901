"""The columns of the objects as DuckDB reads them: SQL types and expressions, from records and table specifications."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from mlflow_bundle.entities import KeyValue

__all__ = [
    "Column",
    "arrow_columns",
    "identifier",
    "list_column",
    "literal",
    "record_columns",
    "time_columns",
    "timestamps",
]

_TEXTS: Final = "MAP(VARCHAR, VARCHAR)"
_SCALARS: Final = {msgspec.inspect.IntType: "BIGINT", msgspec.inspect.BoolType: "BOOLEAN"}
_ARROW: Final = {pa.string(): "VARCHAR", pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.float64(): "DOUBLE"}
#: Integers of records that are milliseconds since 1970.
_TIME: Final = re.compile(r"(.*_(?:time|timestamp|at))(?:_ms)?")
#: Milliseconds that are a date in every program, those of the years 1 to 9999: users log nanoseconds where these belong.
_FIRST: Final = -62_135_596_800_000
_LAST: Final = 253_402_300_799_999


class Column(NamedTuple):
    """A column of a source, and the expression that a view shows for it."""

    name: str
    type: str
    shown: str


def identifier(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def arrow_columns(schema: pa.Schema) -> list[Column]:
    """The columns of a Parquet table."""
    return [Column(field.name, _arrow_type(field.type), identifier(field.name)) for field in schema]


def _arrow_type(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"MAP({_arrow_type(kind.key_type)}, {_arrow_type(kind.item_type)})"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{identifier(field.name)} {_arrow_type(field.type)}' for field in kind)})"
    return _ARROW[kind]


def record_columns(record: type[Any]) -> list[Column]:
    """The members of a record: its JSON types, and tags and params shown as maps."""
    return [Column(name, _json_type(kind), _shown(identifier(name), kind, depth=0)) for name, kind in _fields(record)]


def list_column(record: type[Any], name: str) -> tuple[str, list[Column]]:
    """A list of a record: the expression that shows it, and the columns of its entries, each of which is called ``item``."""
    kind = dict(_fields(record))[name]
    assert isinstance(kind, msgspec.inspect.VarTupleType)
    assert isinstance(kind.item_type, msgspec.inspect.StructType)
    items = [Column(inner, _json_type(type_), f"item.{identifier(inner)}") for inner, type_ in _fields(kind.item_type.cls)]
    return _shown(identifier(name), kind, depth=0), items


def _fields(record: type[Any]) -> tuple[tuple[str, msgspec.inspect.Type], ...]:
    info = msgspec.inspect.type_info(record)
    assert isinstance(info, msgspec.inspect.StructType)
    return tuple((field.encode_name, field.type) for field in info.fields)


def _json_type(kind: msgspec.inspect.Type) -> str:
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return f"{_json_type(kind.item_type)}[]"
    if isinstance(kind, msgspec.inspect.StructType):
        members = (f"{identifier(name)} {_json_type(inner)}" for name, inner in _fields(kind.cls))
        return f"STRUCT({', '.join(members)})"
    return _SCALARS.get(type(kind), "VARCHAR")


def _shown(value: str, kind: msgspec.inspect.Type, *, depth: int) -> str:
    """The expression for a member: lists of pairs as maps, lists that a record leaves out empty."""
    if isinstance(kind, msgspec.inspect.StructType) and _has_pairs(kind):
        members = (
            f"{identifier(name)} := {_shown(f'{value}.{identifier(name)}', k, depth=depth)}" for name, k in _fields(kind.cls)
        )
        return f"CASE WHEN {value} IS NOT NULL THEN struct_pack({', '.join(members)}) END"
    if not isinstance(kind, msgspec.inspect.VarTupleType):
        return value
    listed = f"coalesce({value}, [])"
    if _is_pair(kind.item_type):
        return f"map_from_entries({listed})"
    if _has_pairs(kind.item_type):
        item = f"i{depth}"
        return f"list_transform({listed}, lambda {item}: {_shown(item, kind.item_type, depth=depth + 1)})"
    return listed


def _is_pair(kind: msgspec.inspect.Type) -> bool:
    return isinstance(kind, msgspec.inspect.StructType) and kind.cls is KeyValue


def _has_pairs(kind: msgspec.inspect.Type) -> bool:
    """Whether there is a list of pairs anywhere in it."""
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return _is_pair(kind.item_type) or _has_pairs(kind.item_type)
    return isinstance(kind, msgspec.inspect.StructType) and any(_has_pairs(inner) for _, inner in _fields(kind.cls))


def time_columns(columns: Iterable[tuple[str, str, str]]) -> list[str]:
    """The expressions of a view: each integer time as ``NAME`` (a timestamp in UTC) and ``NAME_ms``. Takes columns."""
    listed: list[str] = []
    for name, kind, shown in columns:
        time = _TIME.fullmatch(name) if kind == "BIGINT" else None
        if time:
            listed += timestamps(shown, time[1])
        else:
            listed.append(shown if shown == identifier(name) else f"{shown} AS {identifier(name)}")
    return listed


def timestamps(value: str, name: str) -> Sequence[str]:
    """Milliseconds as a timestamp, null before the year 1 and after 9999, and as they are."""
    inside = f"CASE WHEN {value} BETWEEN {_FIRST} AND {_LAST} THEN epoch_ms({value}) END"
    return f"{inside} AS {identifier(name)}", f"{value} AS {identifier(f'{name}_ms')}"
