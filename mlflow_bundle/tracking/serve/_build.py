"""Makes the SQLite database of MLflow that holds the metadata of a snapshot, all of it, and no files."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from mlflow_bundle._bundle import Bundle
from mlflow_bundle.entities import ModelVersion
from mlflow_bundle.kinds import record_id
from mlflow_bundle.plugins._names import part_of
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._select import Selection
from mlflow_bundle.tracking._unpack import restore
from mlflow_bundle.tracking.database._connection import Connection, parse_uri
from mlflow_bundle.tracking.database._schema import prepare_database
from mlflow_bundle.tracking.database._write import DatabaseTarget
from mlflow_bundle.tracking.serve._load import load
from mlflow_bundle.tracking.serve._whole import is_whole, keep

__all__ = ["build"]

_DEFAULT: Final = "Default"
_STORE: Final = "mlflow.store.tracking.sqlalchemy_store"
#: For a file that nobody else sees and that can be made again.
_CARELESS: Final = ("synchronous = OFF", "journal_mode = MEMORY", "temp_store = MEMORY", "cache_size = -100000")
_INDEXES: Final = (
    "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name IN ('metrics', 'latest_metrics') AND sql IS NOT NULL"
)
_TWO_TEXTS: Final = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("name", "sql")])


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
    is read back from it, and the indexes of its metrics are made when all points are there."""

    def __init__(self, uri: str, **options: Any) -> None:
        self.indexes: dict[str, str] = {}
        super().__init__(uri, read_back=False, **options)

    def _connect(self) -> Connection:
        connection = super()._connect()
        connection.set_pragmas(*_CARELESS)
        names, definitions = (column.to_pylist() for column in connection.fetch(_INDEXES, _TWO_TEXTS).columns)
        for name in names:
            connection.run(f'DROP INDEX "{name}"')
        connection.commit()
        self.indexes |= dict(zip(names, definitions, strict=True))
        return connection


def build(archive: Bundle, path: Path, *, empty: Path, root: str, callback: Callback = DEFAULT_CALLBACK) -> tuple[Problem, ...]:
    """Make the database ``path``, a new file in a folder that nobody else writes into. ``empty`` is where MLflow's database
    with nothing in it is kept, made where it is not there. ``root`` is where the new one says that all artifacts lie: below
    it, as MLflow lays them out. Returns what MLflow's database cannot hold."""
    # Seconds, in which this thread mostly waits for SQLite.
    with ThreadPoolExecutor(1, thread_name_prefix="mlflow-bundle-import") as other:
        importing = other.submit(load, _STORE)
        if not is_whole(empty):
            importing.result()
            made = path.with_name(empty.name)
            prepare_database(parse_uri(f"sqlite:///{made}"))
            keep(made, empty)
        shutil.copyfile(empty, path)
        problems = _fill(archive, path, root, callback)
        importing.result()
    _ask_first(path, root)
    return problems


def _fill(archive: Bundle, path: Path, root: str, callback: Callback) -> tuple[Problem, ...]:
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


def _ask_first(path: Path, root: str) -> None:
    """Let MLflow write what it writes when it is asked for the first time: the default question of every experiment."""
    from mlflow.entities import ViewType  # noqa: PLC0415
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415 - it comes with the server too

    if not hasattr(SqlAlchemyStore, "_ensure_default_label_schema"):
        return

    class Store(SqlAlchemyStore):  # type: ignore[misc]
        """One that sees all workspaces at once, which the usual one refuses to open."""

        def _initialize_store_state(self) -> None:
            pass

    store = Store(f"sqlite:///{path}", root)
    token: str | None = None
    while True:
        page = store.search_experiments(view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token)
        for experiment in page:
            store.list_label_schemas(experiment.experiment_id, max_results=1)
        if not (token := page.token):
            break
    store.engine.dispose()
