"""Metric files as columns: parsed whole and many at once; only files of mixed or broken lines are read line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from mlflow_bundle.errors import BundleError
from mlflow_bundle.tracking.filestore._layout import broken, read_lines

__all__ = ["MODEL_LINES", "RUN_LINES", "PointFile", "read_points"]

Lines = Mapping[int, tuple[str, ...]]

_POINT: Final = ("timestamp", "value", "step")
_DATASET: Final = ("dataset_name", "dataset_digest")
#: The columns of a line of a run's metric file by their number. The first releases had no steps.
RUN_LINES: Final[Lines] = MappingProxyType({2: _POINT[:2], 3: _POINT, 5: (*_POINT, *_DATASET)})
#: The same for the metrics of a logged model.
MODEL_LINES: Final[Lines] = MappingProxyType({4: (*_POINT, "run_id"), 6: (*_POINT, "run_id", *_DATASET)})

_TYPES: Final = {
    "timestamp": pa.int64(),
    "value": pa.float64(),
    "step": pa.int64(),
    "run_id": pa.string(),
    "dataset_name": pa.string(),
    "dataset_digest": pa.string(),
}
#: Nobody can tell a whole last line from one that lacks digits of its step.
_CUT_OFF: Final = "the last line has no end and may be cut off, so that it is left out; if it is whole, add a line break"
_INT64: Final = range(-(2**63), 2**63)
_PARSE: Final = csv.ParseOptions(delimiter=" ", quote_char=False, double_quote=False, ignore_empty_lines=False)


class PointFile(NamedTuple):
    """A metric file: the number of its owner, its key, and where it lies."""

    owner: int
    key: str
    path: str


def read_points(
    files: Sequence[PointFile], schema: pa.Schema, lines: Lines, unreadable: list[tuple[int, BundleError]]
) -> pa.Table:
    """The points of some files, file by file, as a table of ``schema``: ``owner``, ``key`` and columns of ``lines``.

    What cannot be read goes to ``unreadable`` with the number of its owner: a file, or the lines of one that are no points.
    """
    groups: dict[int, list[tuple[PointFile, bytes, int]]] = {}
    tables = []
    for file in files:
        try:
            data = read_lines(file.path)
        except BundleError as error:
            unreadable.append((file.owner, error))
            continue
        if not data:
            unreadable.append((file.owner, broken(file.path, "the metric file is empty")))
            continue
        if not data.endswith(b"\n"):
            unreadable.append((file.owner, broken(file.path, _CUT_OFF)))
            data = data[: data.rfind(b"\n") + 1]
        count = data.count(b"\n")
        if count:
            groups.setdefault(_fields(data, count, lines), []).append((file, data, count))
    for fields, group in groups.items():
        if fields and (table := _columns(group, lines[fields], schema)) is not None:
            tables.append(table)
            continue
        for one in group:
            table = _columns([one], lines[fields], schema) if fields and len(group) > 1 else None
            tables.append(table if table is not None else _line_by_line(one[0], one[1], schema, lines, unreadable))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _fields(data: bytes, count: int, lines: Lines) -> int:
    """How many fields each line has, if all may have as many; else 0."""
    spaces, rest = divmod(data.count(b" "), count)
    return spaces + 1 if not rest and spaces + 1 in lines else 0


def _columns(group: Sequence[tuple[PointFile, bytes, int]], names: Sequence[str], schema: pa.Schema) -> pa.Table | None:
    """The points of files of one form, parsed together; None where a line is not of that form."""
    wanted = [name for name in names if name in schema.names]
    options = csv.ConvertOptions(
        column_types={name: _TYPES[name] for name in wanted}, include_columns=wanted, null_values=[], strings_can_be_null=False
    )
    data = b"".join(data for _, data, _ in group)
    read = csv.ReadOptions(column_names=list(names), block_size=max(1 << 20, min(len(data), 1 << 24)))
    try:
        parsed = csv.read_csv(pa.BufferReader(data), read_options=read, parse_options=_PARSE, convert_options=options)
    except pa.ArrowInvalid:
        return None
    counts = [count for _, _, count in group]
    if parsed.num_rows != sum(counts) or any(column.null_count for column in parsed.columns):
        return None
    columns: dict[str, Any] = {name: parsed.column(name) for name in wanted}
    columns["owner"] = pa.array(np.repeat(np.array([file.owner for file, _, _ in group], dtype=np.int32), counts))
    keys = pa.array([file.key for file, _, _ in group], pa.string())
    columns["key"] = keys.take(pa.array(np.repeat(np.arange(len(group)), counts)))
    return _table(columns, parsed.num_rows, schema)


def _table(columns: Mapping[str, Any], rows: int, schema: pa.Schema) -> pa.Table:
    """The columns in the order of the schema; steps that old files lack are 0, as MLflow reads them."""
    missing = {"step": pa.array(np.zeros(rows, dtype=np.int64))}
    found = {**missing, **columns}
    return pa.table([found[f.name] if f.name in found else pa.nulls(rows, f.type) for f in schema], schema=schema)


def _line_by_line(
    file: PointFile, data: bytes, schema: pa.Schema, lines: Lines, unreadable: list[tuple[int, BundleError]]
) -> pa.Table:
    """The points of one file whose lines differ, by MLflow's own rules for each line."""
    points: list[dict[str, Any]] = []
    wrong: list[tuple[int, ValueError]] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            points.append(_point(line.decode().strip().split(" "), lines))
        except ValueError as error:
            wrong.append((number, error))
    if wrong:
        number, first = wrong[0]
        more = f" (and {len(wrong) - 1:,} more lines)" if len(wrong) > 1 else ""
        unreadable.append((file.owner, broken(file.path, f"line {number} is no point of a metric: {first}{more}")))
    columns = {name: pa.array([point.get(name) for point in points], _TYPES[name]) for name in _TYPES if name in schema.names}
    columns["owner"] = pa.array([file.owner] * len(points), pa.int32())
    columns["key"] = pa.array([file.key] * len(points), pa.string())
    return _table(columns, len(points), schema)


def _point(fields: Sequence[str], lines: Lines) -> dict[str, Any]:
    """One line. A name of a dataset may hold spaces, which MLflow writes and cannot read.

    Raises:
        ValueError: it is no point.
    """
    longest = max(lines)
    if len(fields) > longest:
        fields = [*fields[: longest - 2], " ".join(fields[longest - 2 : -1]), fields[-1]]
    names = lines.get(len(fields))
    if names is None:
        raise ValueError(f"it has {len(fields)} fields")
    point: dict[str, Any] = dict(zip(names, fields, strict=True))
    point["timestamp"], point["value"] = _integer(point["timestamp"]), float(point["value"])
    point["step"] = _integer(point.get("step", "0"))
    return point


def _integer(text: str) -> int:
    number = int(text)
    if number not in _INT64:
        raise ValueError(f"{text} does not fit into 64 bits")
    return number
