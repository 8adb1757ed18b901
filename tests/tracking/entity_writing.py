"""Restores single entities to a real server, and shows what is in its database."""

from __future__ import annotations

import hashlib
import io
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
from mlflow import MlflowClient
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds

from mlflow_bundle.entities import KeyValue, Record
from mlflow_bundle.tracking._port import ROW_SCHEMAS, EntityResult, IdMap, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking.rest._write import RestTarget
from tests.fixtures.server import MlflowServer

#: Columns that tell when something was last looked at.
VOLATILE = ("last_updated_time", "last_update_time", "last_updated_timestamp_ms")


class Stopped(BaseException):
    """The process ends here."""


def stop(*_: Any, **__: Any) -> None:
    """What a step is replaced with, so that the process ends at it."""
    raise Stopped


def rest_store(server: MlflowServer) -> RestStore:
    """MLflow's own view of a server."""
    return RestStore(partial(MlflowHostCreds, server.url))


class Restoring:
    """Restores of one archive to one server. Each ``target`` is a restore of its own, as a new process would make it."""

    def __init__(self, server: MlflowServer, bundle_id: str, url: str = "") -> None:
        self.server, self.bundle_id = server, bundle_id
        self.url = url or server.url
        self.client = MlflowClient(server.url)
        self.ids = IdMap()
        self._blobs: dict[str, bytes] = {}

    def experiment(self, archived: str) -> str:
        """A new experiment that stands for an archived one."""
        made: str = self.client.create_experiment(f"{self.bundle_id} {archived}")
        self.ids.add("experiment", archived, made)
        return made

    def run(self, archived: str, experiment: str) -> str:
        """A new run that stands for an archived one."""
        made: str = self.client.create_run(experiment).info.run_id
        self.ids.add("run", archived, made)
        return made

    def file(self, path: str, content: bytes) -> tuple[str, int, str]:
        """A file as ``PlannedEntity`` wants it."""
        sha256 = hashlib.sha256(content).hexdigest()
        self._blobs[sha256] = content
        return path, len(content), sha256

    @contextmanager
    def open_blob(self, sha256: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(self._blobs[sha256])

    @contextmanager
    def target(self) -> Iterator[RestTarget]:
        target = RestTarget(self.url, bundle_id=self.bundle_id)
        try:
            yield target
        finally:
            target.close()

    def restore(self, *batches: tuple[str, Sequence[Record | PlannedEntity]], online: bool = False) -> list[EntityResult]:
        """Restore some entities, kind after kind, with a new target. The results of the last kind."""
        results: list[EntityResult] = []
        options = RestoreOptions(online_scoring=online)
        with self.target() as target:
            for kind, entities in batches:
                planned = [entity if isinstance(entity, PlannedEntity) else PlannedEntity(record=entity) for entity in entities]
                results = target.restore_entities(kind, planned, self.ids, self.open_blob, options)
        return results

    def database(self) -> list[str]:
        """Every row of every table of the server, without times that tell when something was last looked at."""
        path = self.server.backend_store_uri.removeprefix("sqlite:///")
        found = []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
            for table in tables:
                rows = [dict(row) for row in database.execute(f'SELECT * FROM "{table}"')]
                found += sorted(table + repr({k: v for k, v in row.items() if k not in VOLATILE}) for row in rows)
        return found

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The answer of a query to the database of the server."""
        path = self.server.backend_store_uri.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return list(database.execute(sql))


def tags(**values: str) -> tuple[KeyValue, ...]:
    """Tags in archive order."""
    return tuple(KeyValue(key=key, value=values[key]) for key in sorted(values))


def points(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Metric points of logged models."""
    schema = pa.schema([field for field in ROW_SCHEMAS["model_metrics/1"] if field.name != "owner"])
    return pa.Table.from_pylist([{"dataset_name": None, "dataset_digest": None, **row} for row in rows], schema=schema)


def actions(results: Sequence[EntityResult]) -> dict[str, str]:
    """What became of each entity, by archived id."""
    return {result.source_id: result.action for result in results}


def messages(results: Sequence[EntityResult]) -> list[str]:
    """What the problems say."""
    return [problem.message for result in results for problem in result.problems]
