"""Results and whole bundles as files. A file is there when it is whole, and none is overwritten."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_bundle._query._columns import identifier, literal
from mlflow_bundle._query._connect import sql_errors
from mlflow_bundle._query._views import VIEWS
from mlflow_bundle.errors import StorageError, UsageError

__all__ = ["export_tables", "write_parquet"]


def write_parquet(table: pa.Table, place: Path) -> None:
    """Write a result as a new Parquet file.

    Raises:
        UsageError: there is a file already, or the folder is missing, or Parquet has no such type.
        StorageError: the folder cannot be written.
    """
    with _new(place) as unfinished:
        try:
            pq.write_table(table, unfinished, compression="zstd")
        except pa.ArrowNotImplementedError as error:
            raise UsageError(f"Parquet cannot hold the result: {error}", hint="cast the column in the SQL") from error


def export_tables(connection: Any, place: Path) -> list[str]:
    """Write all views of a connection as tables of a new DuckDB file. Returns their names.

    Raises:
        UsageError: there is a file already, or the folder is missing.
        StorageError: an object cannot be read, or the folder cannot be written.
    """
    with _new(place) as unfinished:
        with sql_errors():
            connection.execute(f"ATTACH {literal(str(unfinished))} AS exported")
        try:
            with sql_errors():
                for name in VIEWS:
                    connection.execute(f"CREATE TABLE exported.{identifier(name)} AS FROM {identifier(name)}")
        finally:
            connection.execute("DETACH exported")
    return list(VIEWS)


@contextlib.contextmanager
def _new(place: Path) -> Iterator[Path]:
    """A path beside ``place`` that takes its name when all went well."""
    if not place.parent.is_dir():
        raise UsageError(f"there is no folder {place.parent}", hint="make it first, or choose another")
    unfinished = place.parent / f".mlflow-bundle-{secrets.token_hex(6)}"
    try:
        if place.exists():
            raise UsageError(f"{place} exists already", hint="choose another name, or remove it first")
        unfinished.touch()  # says now whether the folder takes files
        unfinished.unlink()
        yield unfinished
        unfinished.replace(place)
    except OSError as error:
        raise StorageError(
            f"{place} cannot be written: {error.strerror or error}", hint="choose another name or folder"
        ) from error
    finally:
        for left in (unfinished, unfinished.with_name(f"{unfinished.name}.wal")):
            with contextlib.suppress(OSError):  # of a place that takes no files at all: the sentence above says so
                left.unlink(missing_ok=True)
