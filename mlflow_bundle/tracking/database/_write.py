"""An MLflow database as a target: ids, times and deleted state stay exactly as they were."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Final

import msgspec
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle.errors import BundleError, CannotHoldError, ServerError, UsageError
from mlflow_bundle.records import Experiment, KeyValue, Problem, Record, Run, Source, record_id
from mlflow_bundle.tracking._port import (
    ArtifactStore,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    PlannedRun,
    RestoredRun,
    RestoreOptions,
    RunResult,
    TargetExperiment,
)
from mlflow_bundle.tracking._workspaces import Homes
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.database._connection import Connection, DatabaseUri, columns_of, literal, parse_uri
from mlflow_bundle.tracking.database._entity_expected import location_of
from mlflow_bundle.tracking.database._entity_limits import EntityLimits
from mlflow_bundle.tracking.database._entity_rows import Tables
from mlflow_bundle.tracking.database._entity_write import EntityRestorer
from mlflow_bundle.tracking.database._limits import Limits
from mlflow_bundle.tracking.database._places import Places
from mlflow_bundle.tracking.database._read import DatabaseSource
from mlflow_bundle.tracking.database._rows import append_experiment, append_experiment_tags, read_texts
from mlflow_bundle.tracking.database._run_write import RunRestorer, existing_runs, expected_run
from mlflow_bundle.tracking.database._schema import place_database, prepare_database

__all__ = ["DatabaseTarget"]

#: Memory that SQLite may use for pages: indexes of millions of points are filled in random order.
_SQLITE_CACHE_KIB: Final = 50_000


class DatabaseTarget:
    """An MLflow database as a target, empty, missing (SQLite) or used.

    ``artifact_root`` is the folder or URI below which artifact files go, as ``<root>/<experiment id>/<run id>/artifacts``; for
    SQLite it is ``mlruns`` beside the file unless said otherwise. ``artifacts_destination`` is the option of the same name of a
    server that will serve this database: what lay behind a server stays at ``mlflow-artifacts:``, and its files go there.

    Experiment ids stay where they are free and the database has a place for them. ``notes`` say where it has none, and what
    merging an experiment left as it was. ``absent`` are the kinds and members that the source of the archive does not offer
    (``Source.absent``): what else the archive lacks of an entity that is there is noted. Without ``read_back``, runs count as
    restored when they are written.

    Raises:
        UnsupportedError: the schema is not that of the installed MLflow; it is never upgraded here.
        ServerError: the database cannot be reached, or is locked.
    """

    def __init__(
        self,
        uri: str,
        *,
        artifact_root: str | None = None,
        artifacts_destination: str | None = None,
        bundle_id: str,
        storage_options: Mapping[str, Any] | None = None,
        workspace: str | None = None,
        absent: Iterable[str] = (),
        read_back: bool = True,
    ) -> None:
        self._wanted = parse_uri(uri)
        self._uri, self._draft = _draft(self._wanted)
        self.bundle_id = bundle_id
        self.notes: list[str] = []
        self._destination = artifacts_destination
        self._storage_options = storage_options
        self._absent, self._read_back = frozenset(absent), read_back
        self._places = Places(self._wanted, artifact_root, artifacts_destination)
        self._restorer: EntityRestorer | None = None
        #: Experiments that were there and are not merged into yet, by id: read when the first one is.
        self._unmerged: dict[str, Experiment] = {}
        self._lock = threading.RLock()
        with ExitStack() as stack:
            if self._draft is not None:
                stack.callback(self._draft.cleanup)
            revision = prepare_database(self._uri)
            self._db = self._connect()
            stack.callback(self._db.close)
            tables = columns_of(self._db)
            stack.pop_all()
        self._limits = Limits(tables, is_sqlite=self._uri.is_sqlite)
        self._homes = Homes(workspace, "workspaces" in tables and "workspace" in tables["experiments"])
        self._description = Source(kind=self._uri.dialect, uri=self._wanted.shown, version=f"schema {revision}")

    def _connect(self) -> Connection:
        connection = Connection(self._uri, read_only=False)
        try:
            if self._uri.is_sqlite:
                connection.run(f"PRAGMA cache_size = -{_SQLITE_CACHE_KIB}")
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def _settle(self) -> None:
        """Put a database that did not exist in its place: until the first write it is a draft elsewhere."""
        if self._draft is None:
            return
        self._db.close()
        place_database(self._uri, self._wanted)
        self._draft.cleanup()
        self._uri, self._draft = self._wanted, None
        self._db = self._connect()
        self._restorer = None

    @property
    def description(self) -> Source:
        """What this target is."""
        return self._description

    @property
    def has_workspaces(self) -> bool:
        """Whether the schema has workspaces: that of the installed MLflow, which may be an older one."""
        return self._homes.offered

    @property
    def keeps_ids(self) -> bool:
        """True: runs keep their ids, and experiments keep theirs where they are free."""
        return True

    def experiments(self) -> list[TargetExperiment]:
        """Every experiment that is there."""
        with self._look() as source:
            return [
                TargetExperiment(
                    e.experiment_id,
                    e.name,
                    e.lifecycle_stage,
                    creation_time=e.creation_time or None,
                    workspace=e.workspace or "",
                    tags=e.tags,
                )
                for e in source.experiments()
            ]

    def _look(self) -> closing[DatabaseSource]:
        """The database as it is now, through a connection of its own."""
        source = DatabaseSource(self._uri.text, artifacts_destination=self._destination, storage_options=self._storage_options)
        return closing(source)

    @contextmanager
    def _rolled_back(self) -> Iterator[None]:
        """End the open transaction when an error leaves the block, so that no lock outlives it."""
        try:
            yield
        except BaseException:
            # Where a full disk ended the transaction, its end fails as well, and says nothing of the cause.
            with suppress(BundleError):
                self._db.rollback()
            raise

    def cannot_hold_experiment(self, experiment: Experiment) -> list[Problem]:
        """What of this experiment the database would refuse. An id that it has no place for is no loss, and only noted."""
        if self._limits.experiment_id(experiment.experiment_id) is None:
            note = (
                f"the experiment {experiment.name!r} gets another id: the database has no place for {experiment.experiment_id}"
            )
            if note not in self.notes:
                self.notes.append(note)
        return self._limits.experiment(experiment)[1]

    def cannot_hold_run(self, run: Run) -> list[Problem]:
        """What of this run the database would refuse, its artifact location as it would be here included."""
        return self._limits.run(expected_run(run, self._places, run.experiment_id))[1]

    def cannot_hold_key(self, key: str) -> str | None:
        """Why the database would refuse this metric key, or None."""
        return self._limits.key(key)

    def restored_runs(self, experiment_id: str, source_run_ids: Sequence[str]) -> Mapping[str, RestoredRun]:  # noqa: ARG002
        """The runs that exist already. None counts as complete before ``restore`` has compared it with the archive."""
        with self._lock:
            return {run_id: RestoredRun(run_id, complete=False) for run_id in existing_runs(self._db, source_run_ids)}

    # -- experiments ------------------------------------------------------------------------------------------------------

    def place_experiment(
        self, experiment: Experiment, *, name: str, existing: TargetExperiment | None, workspace: str = ""
    ) -> str:
        """Create the experiment under ``name``, or add its tags to the existing one. Returns its id at the target.

        Raises:
            CannotHoldError: the database cannot hold an experiment of this id or name.
        """
        tags, problems, possible = self._limits.experiment(msgspec.structs.replace(experiment, name=name))
        if not possible:
            raise CannotHoldError(f"the experiment {name!r} cannot be held: {problems[0].message}", problems)
        with self._lock:
            self._settle()
        with self._lock, self._rolled_back():
            if existing is not None:
                self._merge(experiment, tags, existing)
                return existing.experiment_id
            experiment_id = self._free_id(experiment.experiment_id)
            moved = msgspec.structs.replace(experiment, name=name, workspace=workspace or UNSET, tags=tags)
            self._insert_experiment(moved, experiment_id)
            return experiment_id

    def _free_id(self, wanted: str) -> str:
        """The id itself where it is free and can be held, else the next one."""
        taken = {int(text) for text in read_texts(self._db, "SELECT CAST(experiment_id AS VARCHAR) FROM experiments")}
        number = self._limits.experiment_id(wanted)
        return str(number if number is not None and number not in taken else max(taken, default=0) + 1)

    def _insert_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        row = {
            "experiment_id": int(experiment_id),
            "name": experiment.name,
            "artifact_location": self._places.of_experiment(
                experiment.artifact_location, experiment.experiment_id, experiment_id
            ),
            "lifecycle_stage": experiment.lifecycle_stage,
            "creation_time": experiment.creation_time,
            "last_update_time": experiment.last_update_time,
        }
        if experiment.workspace:
            row["workspace"] = experiment.workspace
            self._add_workspace(experiment.workspace)
        append_experiment(self._db, row)
        append_experiment_tags(self._db, experiment_id, experiment.tags)
        if not self._uri.is_sqlite:
            self._db.run(_MOVE_SEQUENCE)
        self._db.commit()

    def _add_workspace(self, workspace: str) -> None:
        """Make a workspace of which nothing but the name is known: a server shows nothing of one that does not exist."""
        name = literal(workspace)
        self._db.run(
            f"INSERT INTO workspaces (name) SELECT {name} WHERE NOT EXISTS (SELECT 1 FROM workspaces WHERE name = {name})"
        )

    def _merge(self, experiment: Experiment, tags: Iterable[KeyValue], existing: TargetExperiment) -> None:
        """Add the tags that are missing. What is there stays, and a note says where it differs."""
        if existing.experiment_id not in self._unmerged:
            with self._look() as source:
                self._unmerged = {e.experiment_id: e for e in source.experiments()}
        there = self._unmerged.pop(existing.experiment_id, None)
        if there is None:
            raise UsageError(f"the database has no experiment {existing.experiment_id}")
        values = {tag.key: tag.value for tag in there.tags}
        append_experiment_tags(self._db, existing.experiment_id, [tag for tag in tags if tag.key not in values])
        self._db.commit()
        kept = [f"the tag {tag.key!r}" for tag in tags if values.get(tag.key, tag.value) != tag.value]
        kept += [
            f"{field} ({getattr(there, field)}, in the archive {getattr(experiment, field)})"
            for field in ("lifecycle_stage", "creation_time", "last_update_time")
            if getattr(experiment, field) not in {UNSET, getattr(there, field)}
        ]
        if kept:
            self.notes.append(f"the experiment {existing.name!r} was there and keeps what differs: {', '.join(kept)}")

    def finish_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        """Nothing: one that is made here has its state from the start, and one that was there keeps its own."""

    # -- runs -------------------------------------------------------------------------------------------------------------

    def restore(self, runs: Sequence[PlannedRun], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> list[RunResult]:
        """Write these runs, read them back and compare. A run that is there already is compared, and only files that it lacks
        are added.

        Raises:
            UsageError: there are files to write and nobody said where to.
            ServerError: the database is gone or locked.
        """
        with self._lock, self._rolled_back():
            restorer = RunRestorer(
                self._db,
                limits=self._limits,
                places=self._places,
                open_store=self._store_of,
                look=self._look,
                read_back=self._read_back,
            )
            return restorer.restore(runs, metrics, open_blob)

    # -- all other kinds --------------------------------------------------------------------------------------------------

    @property
    def _entities(self) -> EntityRestorer:
        if self._restorer is None:
            tables = Tables(self._db, columns_of(self._db))
            limits = EntityLimits(self._db, tables, self._limits, self._homes)
            self._restorer = EntityRestorer(
                self._db,
                tables,
                limits=limits,
                places=self._places,
                open_store=self._store_of,
                homes=self._homes,
                absent=self._absent,
            )
            self._db.commit()
        return self._restorer

    def _store_of(self, record: Record) -> ArtifactStore:
        if not (location := location_of(record)):
            raise UsageError(f"{record_id(record)} has no artifact location")
        return artifact_store(
            location,
            client=None,
            run_id=record_id(record),
            artifacts_destination=self._destination,
            storage_options=self._storage_options,
        )

    def kinds(self) -> frozenset[str]:
        """The kinds beside experiments and runs that this database can hold."""
        return self._entities.kinds()

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the database would refuse."""
        return self._entities.cannot_hold(record)

    def row_limits(self, table: str) -> Callable[[pa.Table], Sequence[str]] | None:
        """What says which rows the database would refuse. SQLite takes all."""
        return self._entities.row_limits(table)

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """Why the experiment at the target cannot have this record, because of another one of its name, or None."""
        return self._entities.name_taken(record, experiment_id)

    def restore_entities(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Write these entities, read them back and compare. See ``MlflowTarget.restore_entities``."""
        with self._lock:
            self._settle()
        with self._lock, self._rolled_back():
            if self._homes.offered and kind != "workspace":
                workspaces = [getattr(one.record, "workspace", None) for one in planned]
                for home in sorted({self._homes.of(one) for one in workspaces if one is not None}):
                    self._add_workspace(home)
            self._db.commit()
            return self._entities.restore(kind, planned, ids, open_blob, options)

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:  # noqa: ARG002
        """Nothing: links to models are written with the runs, which keep their ids as models do."""
        return []

    def after_deletions(self) -> list[EntityResult]:
        """Nothing: deleting changes a state here, and takes nothing away."""
        return []

    def close(self) -> None:
        """End the connection."""
        self._db.close()
        if self._draft is not None:
            self._draft.cleanup()


def _draft(uri: DatabaseUri) -> tuple[DatabaseUri, tempfile.TemporaryDirectory[str] | None]:
    """A place for a SQLite database that does not exist yet, so that nothing is written before the first experiment is."""
    if uri.path is None or uri.path.exists():
        return uri, None
    nearest = next(parent for parent in uri.path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        what = f"the folder {str(uri.path.parent)!r} of the database cannot be made: {nearest} is a file"
        raise ServerError(what, hint="name a place that can be written")
    folder = tempfile.TemporaryDirectory(prefix="mlflow-bundle-")
    return parse_uri(f"sqlite:///{folder.name}/{uri.path.name}"), folder


#: Lets the next experiment that PostgreSQL numbers itself come after those that brought their own numbers.
_SEQUENCE: Final = "pg_get_serial_sequence('experiments', 'experiment_id')::regclass"
_MOVE_SEQUENCE: Final = (
    f"SELECT setval({_SEQUENCE}, top) FROM (SELECT MAX(experiment_id) AS top FROM experiments) AS ids "
    f"WHERE top > COALESCE(pg_sequence_last_value({_SEQUENCE}), 0)"
)
