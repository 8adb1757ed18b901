"""Reads runs out of an MLflow database, of any schema from MLflow 1.30 on, in one read transaction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import pyarrow as pa
from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import ModelInput, ModelOutput, ModelVersion, Record, SkillVersion
from mlflow_bundle.errors import CorruptError, NotFoundError
from mlflow_bundle.kinds import PARENT_TAG
from mlflow_bundle.records import Dataset, DatasetInput, Experiment, KeyValue, Problem, Run, Source, order_key, record_id
from mlflow_bundle.tracking._filter import matching
from mlflow_bundle.tracking._port import ArtifactStore, EntityQuery, RunQuery, run_problem
from mlflow_bundle.tracking.artifacts import artifact_store, empty_destination
from mlflow_bundle.tracking.artifacts._folders import Folders
from mlflow_bundle.tracking.artifacts._own import NoArtifacts, own_location, stored_location
from mlflow_bundle.tracking.database._archived_spans import ArchivedSpans
from mlflow_bundle.tracking.database._connection import (
    Connection,
    columns_of,
    experiment_numbers,
    literals,
    not_found,
    parse_uri,
    revision_of,
    slices,
)
from mlflow_bundle.tracking.database._entity_read import EntityReader
from mlflow_bundle.tracking.database._owned_read import OwnedReader
from mlflow_bundle.tracking.database._points_read import PointReader
from mlflow_bundle.tracking.database._sound import sound
from mlflow_bundle.tracking.database._unread import archived_columns, unread
from mlflow_bundle.tracking.database._untold import Untold

__all__ = ["DatabaseSource"]

#: Runs of one batch, and ids of one SQL ``IN``.
BATCH_RUNS: Final = 1000

_REQUIRED_TABLES: Final = ("experiments", "runs", "metrics", "params", "tags")
#: What newer schemas have and older ones lack.
_LATER: Final = (
    ("experiments", "creation_time"),
    ("experiments", "last_update_time"),
    ("experiments", "workspace"),
    ("experiment_tags", ""),
    ("runs", "deleted_time"),
    ("datasets", ""),
    ("inputs", ""),
    ("input_tags", ""),
)


def _schema(*columns: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in columns])


_TEXT, _INTEGER = pa.string(), pa.int64()
_EXPERIMENT_COLUMNS: Final = _schema(
    ("experiment_id", _INTEGER, False),
    ("name", _TEXT, False),
    ("lifecycle_stage", _TEXT, True),
    ("artifact_location", _TEXT, True),
    ("creation_time", _INTEGER, True),
    ("last_update_time", _INTEGER, True),
    ("workspace", _TEXT, True),
)
#: Columns of the table ``runs`` by the field of a record.
RUN_COLUMNS: Final[Mapping[str, tuple[str, pa.DataType]]] = {
    "run_id": ("run_uuid", _TEXT),
    "experiment_id": ("experiment_id", _INTEGER),
    "run_name": ("name", _TEXT),
    "user_id": ("user_id", _TEXT),
    "status": ("status", _TEXT),
    "start_time": ("start_time", _INTEGER),
    "end_time": ("end_time", _INTEGER),
    "deleted_time": ("deleted_time", _INTEGER),
    "lifecycle_stage": ("lifecycle_stage", _TEXT),
    "artifact_uri": ("artifact_uri", _TEXT),
    "source_type": ("source_type", _TEXT),
    "source_name": ("source_name", _TEXT),
    "entry_point_name": ("entry_point_name", _TEXT),
    "source_version": ("source_version", _TEXT),
}
_IDS: Final = _schema(("run_uuid", _TEXT, False))
_PAIRS: Final = _schema(("owner", _TEXT, False), ("key", _TEXT, False), ("value", _TEXT, True))
_INPUTS: Final = _schema(
    ("run_uuid", _TEXT, False),
    ("input_uuid", _TEXT, False),
    ("name", _TEXT, False),
    ("digest", _TEXT, False),
    ("source_type", _TEXT, True),
    ("source", _TEXT, True),
    ("schema", _TEXT, True),
    ("profile", _TEXT, True),
)
_LINKS: Final = _schema(("run_uuid", _TEXT, False), ("model_id", _TEXT, False), ("step", _INTEGER, False))


class DatabaseSource:
    """An MLflow database as a source. It never writes, and shows the database as it was when it was opened.

    NULL is an absent field; a NULL ``lifecycle_stage`` is MLflow's default, active. What no record can hold raises.

    ``uri`` is a database URI as MLflow takes it. ``artifacts_destination`` is where a server that serves this database keeps
    what it calls ``mlflow-artifacts:``. ``storage_options`` are for fsspec.

    Raises:
        UnsupportedError: a kind of database that is not supported.
        NotFoundError: no such database, or no MLflow tables in it.
        ServerError: the database cannot be read.
    """

    def __init__(
        self, uri: str, *, artifacts_destination: str | None = None, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        parsed = parse_uri(uri)
        self._destination = artifacts_destination
        self._storage_options = storage_options
        self._folders = Folders()
        self._db = Connection(parsed, read_only=True)
        try:
            self._tables = columns_of(self._db)
            self._require_mlflow()
            revision = revision_of(self._db, self._tables)
            self._entities = EntityReader(self._db, self._tables)
        except BaseException:
            self._db.close()
            raise
        self._description = Source(
            kind=parsed.dialect,
            uri=parsed.shown,
            version=f"schema {revision}" if revision else "",
            absent=(
                *(f"{table}.{column}".rstrip(".") for table, column in _LATER if not self._has(table, column or None)),
                *self._entities.absent(),
            ),
        )
        self._archived = ArchivedSpans(self._db, self._store)
        self._owned = OwnedReader(self._db, self._tables, self.artifacts, self._archived)
        self._points = PointReader(self._db, self._tables)
        self._untold = Untold(self._db, self._tables, archived_columns())
        #: The runs whose metrics are being read, and whether everything is asked for.
        self._runs: Sequence[str] = ()
        self._whole = False
        self._rows_of_runs: Counter[str] = Counter()
        #: What could not be read, by kind and id: a pack may ask for the same several times.
        self._broken: dict[tuple[str, str], Problem] = {}

    @property
    def description(self) -> Source:
        """What this source is. ``version`` is the revision of its schema, ``absent`` what that schema has no place for."""
        return self._description

    def _require_mlflow(self) -> None:
        for table in _REQUIRED_TABLES:
            if table not in self._tables:
                raise NotFoundError(
                    f"the database {self._db.uri.shown} is not MLflow's: it has no table {table!r}",
                    hint="name the database that MLflow writes, for example sqlite:///mlflow.db",
                )

    def _has(self, table: str, column: str | None = None) -> bool:
        return table in self._tables and (column is None or column in self._tables[table])

    def _select(self, table: str, columns: Iterable[str]) -> str:
        """The columns for a SELECT; those that the schema lacks are NULL."""
        return ", ".join(name if self._has(table, name) else f"NULL AS {name}" for name in columns)

    def experiments(self) -> list[Experiment]:
        """Every experiment, active and deleted, in archive order."""
        tags = self._pairs("SELECT CAST(experiment_id AS VARCHAR), key, value FROM experiment_tags", "experiment_tags")
        columns = self._select("experiments", _EXPERIMENT_COLUMNS.names)
        rows = self._db.fetch(f"SELECT {columns} FROM experiments", _EXPERIMENT_COLUMNS)
        found = []
        for row in rows.to_pylist():
            fields = {name: value for name, value in row.items() if value is not None}
            fields["experiment_id"] = str(row["experiment_id"])
            found.append(Experiment(**fields, tags=tags.get(fields["experiment_id"], ())))
        return sorted(found, key=order_key)

    def _pairs(self, sql: str, table: str) -> dict[str, tuple[KeyValue, ...]]:
        """Tags or params by owner, sorted by key. The query gives owner, key and value."""
        if not self._has(table):
            return {}
        pairs: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for owner, key, value in zip(*(column.to_pylist() for column in self._db.fetch(sql, _PAIRS).columns), strict=True):
            if value is None:
                raise CorruptError(
                    f"in the database {self._db.uri.shown}, {key!r} of {owner!r} in the table {table} has the value NULL, "
                    "which MLflow itself cannot serve",
                    code="column",
                    hint="set a value or delete that row",
                )
            pairs[owner].append((key, value))
        return {owner: tuple(KeyValue(key=key, value=value) for key, value in sorted(found)) for owner, found in pairs.items()}

    def runs(self, query: RunQuery) -> Iterator[list[Run]]:
        """The runs that match, in archive order, in batches of at most 1,000.

        Raises:
            UsageError: the filter string is wrong.
        """
        if query.filter:
            matching([], {}, query.filter)
        whole = query == RunQuery()
        self._whole |= whole
        where = self._where(query)
        ids = self._ordered_ids(where)
        for start in range(0, len(ids), BATCH_RUNS):
            wanted = ids[start : start + BATCH_RUNS].to_pylist()
            batch = self._sound(wanted)
            if len(batch) + sum(("run", run_id) in self._broken for run_id in wanted) != len(wanted):
                raise not_found(self._db, "runs")
            if whole:
                params, tags = (sum(map(len, pairs)) for pairs in ((r.params for r in batch), (r.tags for r in batch)))
                self._rows_of_runs.update(runs=len(batch), params=params, tags=tags)
            if query.filter:
                batch = matching(batch, self._points.latest([run.run_id for run in batch]), query.filter)
            if batch:
                yield batch

    def _where(self, query: RunQuery) -> str:
        conditions = ["1 = 1"]
        if query.experiment_ids is not None:
            numbers = experiment_numbers(query.experiment_ids)
            conditions.append(f"experiment_id IN ({', '.join(numbers)})" if numbers else "1 = 0")
        if query.run_ids is not None:
            conditions.append(f"run_uuid IN {literals(query.run_ids)}" if query.run_ids else "1 = 0")
        if query.since is not None:
            conditions.append(f"start_time >= {int(query.since)}")
        if query.until is not None:
            conditions.append(f"start_time <= {int(query.until)}")
        if query.lifecycle != "all":
            conditions.append(f"COALESCE(lifecycle_stage, 'active') = '{query.lifecycle}'")
        return " AND ".join(conditions)

    def _ordered_ids(self, where: str) -> pa.ChunkedArray:
        """Ids in archive order: some 36 bytes each, so that runs can be loaded in any number of batches from one sort."""
        order = f"(start_time IS NULL), start_time, {self._db.bytewise('run_uuid')}"
        return self._db.fetch(f"SELECT run_uuid FROM runs WHERE {where} ORDER BY {order}", _IDS).column(0)

    def runs_by_id(self, run_ids: Sequence[str]) -> list[Run]:
        """These runs as far as they exist, in archive order."""
        found = [run for ids in slices(sorted(set(run_ids)), BATCH_RUNS) for run in self._sound(ids)]
        return sorted(found, key=order_key)

    def children(self, run_ids: Sequence[str]) -> list[Run]:
        """The runs whose ``mlflow.parentRunId`` tag names one of these, in archive order."""
        found: set[str] = set()
        for ids in slices(sorted(set(run_ids)), BATCH_RUNS):
            sql = f"SELECT run_uuid FROM tags WHERE key = '{PARENT_TAG}' AND value IN {literals(ids)}"
            found.update(self._db.fetch(sql, _IDS).column(0).to_pylist())
        return self.runs_by_id(sorted(found))

    def _sound(self, ids: Sequence[str]) -> list[Run]:
        """The same as ``_load`` gives, without those that cannot be read: they become problems."""

        def broken(run_id: str, error: CorruptError) -> None:
            self._note_broken(run_problem(run_id, f"run {run_id}: {error.message}", code=error.code))

        return sound(self._load, ids, broken)

    def _note_broken(self, problem: Problem) -> None:
        self._broken[problem.kind, problem.id] = problem

    def _load(self, ids: Sequence[str]) -> list[Run]:
        """Complete records of these runs as far as they exist, in this order."""
        chosen = f"WHERE run_uuid IN {literals(ids)}"
        params = self._pairs(f"SELECT run_uuid, key, value FROM params {chosen}", "params")
        tags = self._pairs(f"SELECT run_uuid, key, value FROM tags {chosen}", "tags")
        inputs = self._inputs(ids)
        read, made = self._models_of(ids, "RUN_INPUT"), self._models_of(ids, "RUN_OUTPUT")
        columns = self._select("runs", (column for column, _ in RUN_COLUMNS.values()))
        schema = pa.schema([pa.field(name, kind, nullable=name != "run_id") for name, (_, kind) in RUN_COLUMNS.items()])
        rows = self._db.fetch(f"SELECT {columns} FROM runs {chosen}", schema).to_pylist()
        runs = {}
        for row in rows:
            run_id = row["run_id"]
            fields = {name: value for name, value in row.items() if value is not None}
            if "experiment_id" not in fields:
                raise CorruptError(
                    f"the run {run_id!r} in the database {self._db.uri.shown} belongs to no experiment",
                    code="column",
                    hint="set its experiment_id or delete it; MLflow shows no such run",
                )
            fields["experiment_id"] = str(fields["experiment_id"])
            runs[run_id] = Run(
                **fields,
                params=params.get(run_id, ()),
                tags=tags.get(run_id, ()),
                inputs=inputs.get(run_id, ()),
                model_inputs=tuple(ModelInput(model_id=model) for model, _ in read.get(run_id, ())),
                model_outputs=tuple(ModelOutput(model_id=model, step=step) for model, step in made.get(run_id, ())),
            )
        return [runs[run_id] for run_id in ids if run_id in runs]

    def _inputs(self, ids: Sequence[str]) -> dict[str, tuple[DatasetInput, ...]]:
        """Dataset inputs by run, sorted by name and digest."""
        if not (self._has("datasets") and self._has("inputs")):
            return {}
        condition = f"i.source_type = 'DATASET' AND i.destination_type = 'RUN' AND i.destination_id IN {literals(ids)}"
        joined = "input_tags t JOIN inputs i ON i.input_uuid = t.input_uuid"
        tags = self._pairs(f"SELECT t.input_uuid, t.name, t.value FROM {joined} WHERE {condition}", "input_tags")
        sql = (
            "SELECT i.destination_id, i.input_uuid, d.name, d.digest, d.dataset_source_type, d.dataset_source, "
            "d.dataset_schema, d.dataset_profile FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id "
            f"WHERE {condition}"
        )
        found: defaultdict[str, list[DatasetInput]] = defaultdict(list)
        for row in self._db.fetch(sql, _INPUTS).to_pylist():
            run_id, input_id = row.pop("run_uuid"), row.pop("input_uuid")
            dataset = Dataset(**{name: value for name, value in row.items() if value is not None})
            found[run_id].append(DatasetInput(dataset=dataset, tags=tags.get(input_id, ())))
        key = lambda item: (item.dataset.name, item.dataset.digest)  # noqa: E731
        return {run_id: tuple(sorted(items, key=key)) for run_id, items in found.items()}

    def _models_of(self, ids: Sequence[str], edge: str) -> dict[str, list[tuple[str, int]]]:
        """The logged models (and steps) that runs are linked to, sorted."""
        if not self._has("inputs", "step"):
            return {}
        condition = f"source_type = '{edge}' AND source_id IN {literals(ids)}"
        found: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        table = self._db.fetch(f"SELECT source_id, destination_id, step FROM inputs WHERE {condition}", _LINKS)
        for run_id, model, step in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found[run_id].append((model, step))
        return {run_id: sorted(links) for run_id, links in found.items()}

    def metric_counts(self, run_ids: Sequence[str]) -> Sequence[int]:
        """The number of metric points of each run, from an index of the database."""
        self._runs = run_ids
        return self._points.counts(run_ids)

    def metrics(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metric histories of these runs as tables of ``SERIES_SCHEMA``, at most some million rows at a time."""
        return self._points.series(run_ids)

    def artifacts(self, record: Record) -> ArtifactStore:
        """The files of a run, logged model, trace or version. One without a location of its own has none."""
        location: str | UnsetType | None
        if isinstance(record, SkillVersion):
            location = stored_location(record)
        else:
            location = own_location(record) if isinstance(record, ModelVersion) else getattr(record, "artifact_uri", UNSET)
        identity = record_id(record)
        if not location or self._folders.lack(location, identity, partial(self._store, identity)):
            return NoArtifacts()
        return self._store(identity, location)

    def _store(self, identity: str, location: str) -> ArtifactStore:
        return artifact_store(
            location,
            client=None,
            run_id=identity,
            artifacts_destination=self._destination,
            storage_options=self._storage_options,
        )

    def kinds(self) -> Sequence[str]:
        """The kinds beside experiments and runs that this schema knows."""
        return self._entities.kinds()

    def entities(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records of a kind that match, in archive order."""
        return self._entities.read(kind, query, broken=self._note_broken)

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``model_metrics/1`` or ``spans/1`` of these owners."""
        return self._owned.rows(table, ids)

    def problems(self) -> list[Problem]:
        """What could not be read, so far."""
        hidden = self._untold.problems(self._rows_read()) if self._whole else []
        return [*self._broken.values(), *self._owned.problems, *self._archived.problems, *hidden]

    def _rows_read(self) -> dict[str, int]:
        """The rows that were read when everything was asked for, by table."""
        return {**self._entities.read_whole, **self._owned.read, **self._rows_of_runs, **self._points.read}

    def notes(self) -> list[str]:
        """What the database holds that no record has a place for."""
        return [
            *unread(self._db, self._tables, self._runs),
            *(self._untold.notes(self._rows_read()) if self._whole else ()),
            *self._archived.notes(),
            *empty_destination(self._destination, self._storage_options),
        ]

    def close(self) -> None:
        """End the read transaction."""
        self._db.close()
