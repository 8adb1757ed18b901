"""Results of SQL for people and programs: a table that fits the terminal, tab- or comma-separated lines, JSON values."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from typing import Any, Final

import pyarrow as pa
from rich.cells import cell_len

from mlflow_bundle.cli._output import clean, fitted, plain, plural, put, put_bytes, say, table
from mlflow_bundle.errors import UsageError

__all__ = ["json_rows", "put_csv", "put_table"]

#: As many rows are shown on a terminal, and columns at least this wide.
_SHOWN_ROWS: Final = 500
_LEAST_WIDTH: Final = 8
_BATCH: Final = 2_000


def json_rows(result: pa.Table) -> list[dict[str, Any]]:
    """The rows as JSON values: times as texts, bytes in base64, maps as objects, NaN and infinities as MLflow's texts."""
    if len(set(result.column_names)) < result.num_columns:
        raise UsageError("two columns have the same name", hint="name them with AS")
    return [dict(zip(result.column_names, row, strict=True)) for row in _rows(result)]


def put_csv(result: pa.Table) -> None:
    """Comma-separated lines as RFC 4180 has them; on a terminal, what it would act upon is escaped."""
    shown = clean if sys.stdout.isatty() else str
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in _lines(result):
        writer.writerow([shown(cell) for cell in row])
        put_bytes(text.getvalue().encode())
        text.seek(0)
        text.truncate()


def put_table(result: pa.Table) -> None:
    """A table on a terminal, cut to its width; elsewhere tab-separated lines with everything."""
    if not result.num_columns:
        return
    if not sys.stdout.isatty():
        for row in _lines(result):
            put("\t".join(map(clean, row)))
        return
    head, *rows = ([clean(cell) for cell in row] for row in _lines(result.slice(0, _SHOWN_ROWS), null="NULL"))
    widths = [max(cell_len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    chosen, widths = _fitting(widths, shutil.get_terminal_size().columns)
    right = [place for place, column in enumerate(chosen) if _is_number(result.schema.field(column).type)]
    cut = [[fitted(row[c], width) for c, width in zip(chosen, widths, strict=True)] for row in [head, *rows]]
    table(cut[0], cut[1:], right=right)
    hidden = {"row": result.num_rows - len(rows), "column": len(head) - len(chosen)}
    if any(hidden.values()):
        more = " and ".join(plural(count, noun) for noun, count in hidden.items() if count)
        say(f"{more} more; --csv, --json and --parquet FILE give everything")


def _fitting(widths: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """The columns that a terminal has room for, and how wide each is shown: the widest are cut first."""
    chosen = list(range(len(widths)))
    while len(chosen) > 1 and sum(min(widths[c], _LEAST_WIDTH) + 2 for c in chosen) - 2 > room:
        del chosen[-1]
    shown = [widths[c] for c in chosen]
    while sum(shown) + 2 * (len(shown) - 1) > room and max(shown) > _LEAST_WIDTH:
        widest = shown.index(max(shown))
        shown[widest] -= 1
    return chosen, shown


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _lines(result: pa.Table, *, null: str = "") -> Iterator[list[str]]:
    """The head, then every row, as texts."""
    yield list(result.column_names)
    for row in _rows(result):
        yield [null if value is None else _text(value) for value in row]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _rows(result: pa.Table) -> Iterator[list[Any]]:
    """The rows as JSON values, a batch of them in memory."""
    for start in range(0, result.num_rows, _BATCH):
        part = result.slice(start, _BATCH)
        columns = [_values(column, field.type) for column, field in zip(part.columns, part.schema, strict=True)]
        yield from map(list, zip(*columns, strict=True))


def _values(column: pa.ChunkedArray, kind: pa.DataType) -> list[Any]:
    try:
        return [_value(value, kind) for value in column.to_pylist()]
    except (OverflowError, ValueError):
        if not pa.types.is_temporal(kind):
            raise
        return [_time(scalar, kind) for scalar in column]


def _time(scalar: pa.Scalar, kind: pa.DataType) -> Any:
    """A time that SQL made, as Arrow says it where Python has no such year."""
    try:
        return _value(scalar.as_py(), kind)
    except (OverflowError, ValueError):
        return scalar.cast(pa.string()).as_py()


def _value(value: Any, kind: pa.DataType) -> Any:
    """A value of Arrow as one of JSON."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if pa.types.is_map(kind):
        return {_text(_value(key, kind.key_type)): _value(item, kind.item_type) for key, item in value}
    if pa.types.is_struct(kind):
        return {field.name: _value(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_value(item, kind.value_type) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, float):
        return plain(value)
    return value.isoformat() if isinstance(value, date | time) else str(value)
