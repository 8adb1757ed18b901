"""The tables of a bundle as Parquet files: each is written to a temporary file when it is read for the first time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.records import KINDS

__all__ = ["TABLE_FILES", "write_table"]

Tables = Callable[[Bundle], Iterator[pa.Table]]


def _one(method: Callable[[Bundle], pa.Table]) -> Tables:
    return lambda bundle: iter([method(bundle)])


def _kind(kind: str, bundle: Bundle) -> Iterator[pa.Table]:
    yield bundle.table(kind)


def _rows(table: str, bundle: Bundle) -> Iterator[pa.Table]:
    """The rows of a table, an object at a time."""
    spec = TABLES[table]
    yield spec.schema.empty_table()
    for ref in bundle.reader.refs(spec.role):
        yield bundle.reader.table(ref, spec)


def _plural(kind: str) -> str:
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


#: Every table by the name of its file, and how its rows are read: in parts where they may be many.
TABLE_FILES: Final[Mapping[str, Tables]] = {
    "runs": _one(Bundle.runs),
    "params": _one(Bundle.params),
    "tags": _one(Bundle.tags),
    "latest_metrics": _one(Bundle.latest_metrics),
    "metrics": partial(_rows, "metrics/1"),
    "model_metrics": partial(_rows, "model_metrics/1"),
    "spans": partial(_rows, "spans/1"),
    "files": partial(_rows, "files/1"),
    "assessments": _one(Bundle.assessments),
    **{_plural(name): partial(_kind, name) for name in KINDS if name != "run"},
}


def write_table(bundle: Bundle, name: str, place: Path) -> None:
    """Write a table as a Parquet file. It is there when it is whole."""
    unfinished = place.with_suffix(".unfinished")
    parts = TABLE_FILES[name](bundle)
    first = next(parts)
    with pq.ParquetWriter(unfinished, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)
    unfinished.replace(place)
