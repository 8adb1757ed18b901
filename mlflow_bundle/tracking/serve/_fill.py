"""Fills an empty database of MLflow with the metadata of a snapshot, all of it, and no files."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
from fsspec.callbacks import Callback

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle._limits import KIB
from mlflow_bundle.entities import ModelVersion
from mlflow_bundle.kinds import record_id
from mlflow_bundle.plugins._names import part_of
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._select import Selection
from mlflow_bundle.tracking._unpack import restore
from mlflow_bundle.tracking.database._connection import Connection
from mlflow_bundle.tracking.database._write import DatabaseTarget

__all__ = ["fill"]

_DEFAULT: Final = "Default"
#: For a file that nobody else sees and that can be made again.
_CARELESS: Final = ("synchronous = OFF", "journal_mode = MEMORY", "temp_store = MEMORY", "cache_size = -100000")
#: Bytes of a page of a large database, and rows from which one is large: with SQLite's own 4 KiB it takes a fifth longer, but
#: each of MLflow's 200 tables and indexes has a page of its own.
_PAGE: Final = 32 * KIB
_MANY: Final = 100_000
#: What a snapshot counts and MLflow's database does not hold.
_NOT_ROWS: Final = ("file", "file_bytes")
#: The indexes of metrics: name, definition, table and columns as a text that starts that of an index with more columns.
_INDEXES: Final = (
    "SELECT name, sql, tbl_name || ':' || (SELECT GROUP_CONCAT(name, ',') || ',' FROM pragma_index_info(m.name)) AS columns"
    " FROM sqlite_master AS m WHERE type = 'index' AND tbl_name IN ('metrics', 'latest_metrics') AND sql IS NOT NULL"
)
_THREE_TEXTS: Final = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("name", "sql", "columns")])


class _WithoutFiles(Bundle):
    """An open bundle that tells of no files, so that a restore of it writes none."""

    def __init__(self, archive: Bundle) -> None:
        vars(self).update(vars(archive))

    def files_of(self, run_ids: Sequence[str]) -> pa.Table:
        """None."""
        del run_ids
        return super().files_of([])

    def files_of_entities(self, kind: str, ids: Sequence[str]) -> pa.Table:
        """None."""
        del ids
        return super().files_of_entities(kind, [])


class _Scratch(DatabaseTarget):
    """A new database that nobody sees until it is done, and that can be made again: it need not survive a power loss, nothing
    is read back from it, and the indexes of its metrics are made when all points are there, but for those that another one
    begins with."""

    def __init__(self, uri: str, **options: Any) -> None:
        self.indexes: dict[str, str] = {}
        super().__init__(uri, read_back=False, **options)

    def _connect(self) -> Connection:
        connection = super()._connect()
        connection.set_pragmas(*_CARELESS)
        found = list(zip(*(column.to_pylist() for column in connection.fetch(_INDEXES, _THREE_TEXTS).columns), strict=True))
        for name, definition, columns in found:
            connection.run(f'DROP INDEX "{name}"')
            if not any(longer != columns and longer.startswith(columns) for _, _, longer in found):
                self.indexes[name] = definition
        connection.commit()
        return connection


def fill(
    bundle: str,
    snapshot: str,
    path: Path,
    root: str,
    storage_options: Mapping[str, Any] | None,
    *,
    callback: Callback,
) -> tuple[Problem, ...]:
    """Fill the database ``path``, which is empty and nobody else looks at. ``root`` is where it says that all artifacts lie:
    below it, as MLflow lays them out. Returns what MLflow's database cannot hold."""
    with open_bundle(bundle, snapshot=snapshot, storage_options=storage_options) as archive:
        return _fill(archive, path, root, callback)


def _fill(archive: Bundle, path: Path, root: str, callback: Callback) -> tuple[Problem, ...]:
    if sum(count for name, count in archive.snapshot.counts.items() if name not in _NOT_ROWS) >= _MANY:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            connection.execute("VACUUM")
    made: list[_Scratch] = []

    def connect() -> DatabaseTarget:
        made.append(_Scratch(f"sqlite:///{path}", bundle_id=archive.snapshot.bundle_id, artifact_root=root))
        return made[0]

    report = restore(
        _WithoutFiles(archive), connect, Selection.of(), online_scoring=True, allow_partial=True, callback=callback
    )
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for pragma in _CARELESS:
            connection.execute(f"PRAGMA {pragma}")
        for definition in made[0].indexes.values():
            connection.execute(definition)
        for version in _with_own_files(archive):
            place = f"{root}/models/{part_of(record_id(version).rpartition('/')[0])}/{version.version}"
            connection.execute(
                "UPDATE model_versions SET storage_location = ? WHERE name = ? AND version = ? AND workspace = ?",
                (place, version.name, version.version, version.workspace or "default"),
            )
        _add_default_experiment(connection)
    return report.problems


def _with_own_files(archive: Bundle) -> Iterator[ModelVersion]:
    """The versions whose files are no artifacts of a run or a logged model."""
    owners = set(archive.files(kind="model_version").column("owner_id").to_pylist())
    for version in archive.records("model_version") if owners else ():
        if record_id(version) in owners:
            yield cast("ModelVersion", version)


def _add_default_experiment(connection: sqlite3.Connection) -> None:
    """MLflow makes an experiment 0 where there is none, and cannot in a database that is only read: a deleted one will do."""
    if connection.execute("SELECT 1 FROM experiments WHERE experiment_id = 0").fetchone():
        return
    taken = {name for (name,) in connection.execute("SELECT name FROM experiments")}
    name = _DEFAULT
    while name in taken:
        name += "_"
    connection.execute(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
        " VALUES (0, ?, '', 'deleted', 'default')",
        (name,),
    )
