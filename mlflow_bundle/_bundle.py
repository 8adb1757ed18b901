"""``Bundle``: an archive opened for reading, as tables, records, series and files of one snapshot."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._blobs import BlobReader
from mlflow_bundle._html import card
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import Committed, find_snapshot, objects_of, read_marker, snapshots
from mlflow_bundle._query import _connect
from mlflow_bundle._reader import FILES, RUN_COLUMNS, Reader, owner_kind
from mlflow_bundle._record_tables import record_table, unnested
from mlflow_bundle._salvage import SalvageReader
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._text import age_text, bytes_text, counts_text, plural, time_text
from mlflow_bundle._verify._levels import Report, unreadable_report, verify_snapshot, verify_storage
from mlflow_bundle._views import unfolded, wide_runs
from mlflow_bundle.errors import CorruptError, LimitError, NotFoundError, UsageError
from mlflow_bundle.records import KINDS, ObjectRef, Record, Run, Snapshot

__all__ = ["Bundle", "open_bundle", "salvage", "verify"]

_OF_EXPERIMENT: Final = ("experiment_id", "experiment_name")
_FILE_COLUMNS: Final = ("owner_id", "path", "size", "sha256", "state")


def open_bundle(
    url: str | os.PathLike[str],
    *,
    snapshot: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Bundle:
    """Open a bundle at a path, any fsspec URL, or in one ZIP file. MLflow is not needed.

    ``snapshot`` is the beginning of a snapshot's name, id or root digest; without it the newest is read.

    Raises:
        BundleNotFoundError: there is no bundle.
        NotFoundError: it has no such snapshot, or none at all.
        UnsupportedError: it needs a newer release.
        UsageError: no file system knows the URL, its package is not installed, or its options are wrong.
        CorruptError: a bundle in one file is not whole, or the document of the snapshot is damaged.
        LimitError: the document of the snapshot is larger than ``limits`` allow.
        StorageError: the storage failed or refused.
    """
    storage = open_storage(url, storage_options=storage_options)
    try:
        read_marker(storage, limits=limits)
        return Bundle(storage, find_snapshot(storage, snapshot, limits=limits), limits=limits)
    except BaseException:
        storage.close()
        raise


def verify(
    url: str | os.PathLike[str],
    *,
    level: str = "full",
    subset: tuple[int, int] | None = None,
    snapshot: str | None = None,
    all_snapshots: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Check a snapshot of a bundle, by default the newest, or ``all_snapshots`` with each object read once.

    ``level`` is ``structure`` (every object is there with its size), ``tables`` (records, tables and the logical root are
    right too) or ``full`` (every byte). ``subset=(k, n)`` of ``full`` checks the bytes of the k-th of n parts of the packs and
    blobs, so that n runs cover all. Problems are returned, not raised, and it never stops at the first; a damaged marker or
    snapshot document is a problem too.

    Raises:
        BundleNotFoundError, NotFoundError: there is nothing to check.
        StorageError: the storage cannot be listed.
        UsageError: an unknown level, or a subset that is none.
    """
    try:
        storage = open_storage(url, storage_options=storage_options)
    except (CorruptError, LimitError) as error:
        return unreadable_report(error, level=level)
    with storage:
        return verify_storage(
            storage, snapshot=snapshot, level=level, subset=subset, all_snapshots=all_snapshots, limits=limits
        )


class Bundle:
    """One snapshot of a bundle. Tables are ``pyarrow.Table``; times are milliseconds since 1970, sizes are bytes.

    Everything is read on demand, and what is read is checked. Use it as a context manager, or ``close`` it.

    Raises (whatever reads): ``CorruptError`` for bytes that are not what they should be, ``NotFoundError`` with the code
    ``object-missing`` for objects that are not there, ``LimitError`` for what is larger than the limits allow, ``StorageError``
    where the storage fails or refuses. What gives an iterator raises while that is read.
    """

    def __init__(
        self,
        storage: Storage,
        committed: Committed,
        *,
        limits: Limits = DEFAULT_LIMITS,
        damaged: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._storage = storage
        self._committed = committed
        self._limits = limits
        self._reader = SalvageReader(storage, committed, limits, damaged) if damaged else Reader(storage, committed, limits)
        self._sessions: dict[bool, _connect.Session] = {}
        self._verified: Report | None = None
        self._verified_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release files and connections."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._storage.close()

    def __repr__(self) -> str:
        return f"<Bundle {self.url!r} snapshot {self.snapshot_id} ({self.snapshot.state}): {counts_text(self.snapshot.counts)}>"

    def _repr_html_(self) -> str:
        document = self.snapshot
        verified = self._verified
        state = f"{document.state}, {len(document.problems):,} problems" if document.problems else document.state
        found = "not by this object"
        if verified is not None:
            said = "no problems" if verified.ok else f"{len(verified.problems):,} problems"
            found = f"{time_text(self._verified_at)}, level {verified.level}: {said}"
        pairs = {
            "bundle": self.url,
            "snapshot": self.snapshot_id,
            "state": state,
            "made": f"{time_text(document.created_at)} ({age_text(time.time_ns() // 1_000_000 - document.created_at)} ago)",
            "source": f"{document.source.uri} ({document.source.kind} {document.source.version})",
            "holds": counts_text(document.counts),
            "files": bytes_text(document.counts.get("file_bytes", 0)),
            "stored": f"{plural(len(self.objects), 'object')}, {bytes_text(sum(ref.size for ref in self.objects))}",
            "verified": found,
            "root digest": self.root_digest,
        }
        return card("Bundle", pairs.items())

    @property
    def url(self) -> str:
        """Where the bundle lies, without credentials."""
        return self._storage.url

    @property
    def snapshot(self) -> Snapshot:
        """The document of this snapshot: counts, scope, source, state, problems."""
        return self._committed.snapshot

    @property
    def snapshot_id(self) -> str:
        """The name of this snapshot."""
        return self._committed.stem

    @property
    def root_digest(self) -> str:
        """SHA-256 of the snapshot document; it reaches every byte of the snapshot."""
        return self._committed.digest

    def snapshots(self) -> list[Committed]:
        """All snapshots of the bundle, newest first."""
        return list(snapshots(self._storage, limits=self._limits))

    def at(self, snapshot: str) -> Bundle:
        """The same bundle at another snapshot. Both share the storage: closing one closes both.

        Raises:
            NotFoundError: there is no such snapshot, or more than one.
            UnsupportedError: it needs a newer release.
        """
        return Bundle(self._storage, find_snapshot(self._storage, snapshot, limits=self._limits), limits=self._limits)

    @property
    def storage(self) -> Storage:
        """Where its files lie."""
        return self._storage

    @property
    def reader(self) -> Reader:
        """What lies where in this snapshot: for file systems and the like. It is not for several threads at once."""
        return self._reader

    @property
    def objects(self) -> list[ObjectRef]:
        """Every object that this snapshot needs."""
        return self._reader.objects

    # -- records ---------------------------------------------------------------------------------------------------

    def kinds(self) -> list[str]:
        """The kinds of records in this snapshot, known to this release or not."""
        return sorted(self.snapshot.logical.kinds, key=lambda kind: (kind not in KINDS, kind))

    def records(self, kind: str) -> Iterator[Record]:
        """The records of a kind in archive order, an object at a time.

        Raises:
            UsageError: this release does not know the kind.
        """
        return self._reader.records(_known(kind))

    def record(self, kind: str, id: str) -> Record:  # noqa: A002 - it is the id
        """One record by its id (``kinds.record_id``). Runs, logged models, model versions and traces are found without reading
        the others.

        Raises:
            NotFoundError: it is not in this snapshot.
            UsageError: this release does not know the kind.
        """
        return self._reader.record(_known(kind), id)

    def run(self, run_id: str) -> Run:
        """One run, read without the others.

        Raises:
            NotFoundError: it is not in this snapshot.
        """
        return cast("Run", self._reader.record("run", run_id))

    # -- tables of entities ----------------------------------------------------------------------------------------

    def table(self, kind: str) -> pa.Table:
        """The records of a kind as a table: a column a field, tags and params as maps, other lists as lists, absent as null.

        Raises:
            UsageError: this release does not know the kind.
        """
        return record_table(kind, self.records(kind))

    def experiments(self) -> pa.Table:
        """One row an experiment, its tags as a map."""
        return self.table("experiment")

    def runs(
        self,
        *,
        experiment: str | None = None,
        where: pc.Expression | None = None,
        columns: Sequence[str] | None = None,
        wide: bool = False,
    ) -> pa.Table:
        """One row a run, with its params, tags and latest metrics as maps and its numbers of metric points and files.

        ``experiment`` is a name or an id, ``where`` an expression of ``pyarrow.compute`` over these columns, such as
        ``field("status") == "FAILED"``. ``columns`` are the columns of the result; only what is needed is read.
        ``wide`` gives the columns of ``mlflow.search_runs`` instead: ``metrics.*``, ``params.*``, ``tags.*``, UTC timestamps.

        Raises:
            UsageError: no such column.
        """
        if wide and columns is not None:
            raise UsageError("wide and columns exclude each other")
        return _chosen_runs(self._reader, experiment, where, columns, wide=wide)

    def params(self) -> pa.Table:
        """One row a param: ``run_id, key, value``."""
        return unfolded(self._reader.runs(), "params")

    def tags(self) -> pa.Table:
        """One row a tag of a run: ``run_id, key, value``."""
        return unfolded(self._reader.runs(), "tags")

    def latest_metrics(self, run_ids: Sequence[str] | None = None) -> pa.Table:
        """One row a series: ``run_id, key`` and its latest ``value``, ``timestamp`` and ``step`` by MLflow's rule. Of all runs,
        or of those among ``run_ids`` that are in the snapshot."""
        runs = self._reader.runs()
        if run_ids is not None:
            runs = runs.filter(pc.is_in(runs.column("run_id"), value_set=pa.array(run_ids, pa.string())))
        table = unfolded(runs, "latest_metrics")
        value, timestamp, step = table.column("value").combine_chunks().flatten()
        return pa.table({"run_id": table["run_id"], "key": table["key"], "value": value, "timestamp": timestamp, "step": step})

    def models(self) -> pa.Table:
        """One row a logged model, with its params and tags as maps."""
        return self.table("logged_model")

    def registered_models(self) -> pa.Table:
        """One row a registered model or prompt, with its tags as a map and its aliases."""
        return self.table("registered_model")

    def model_versions(self) -> pa.Table:
        """One row a version of a registered model or prompt, with its tags as a map."""
        return self.table("model_version")

    def traces(self) -> pa.Table:
        """One row a trace, with its tags and metadata as maps, its assessments, and the runs and prompts it is linked to."""
        return self.table("trace")

    def assessments(self) -> pa.Table:
        """One row an assessment: ``trace_id, experiment_id`` of its trace, then its own fields."""
        return unnested(self.traces(), "assessments", ["trace_id", "experiment_id"])

    # -- tables of rows --------------------------------------------------------------------------------------------

    def metrics(self, *, run_id: str | None = None, key: str | None = None) -> pa.Table:
        """Metric points: ``experiment_id, run_id, key, step, timestamp, value``. One run's are read without the others'.

        Raises:
            NotFoundError: the run is not in this snapshot.
        """
        table = self._rows("metrics/1", run_id)
        return table if key is None else table.filter(pc.equal(table.column("key"), key))

    def model_metrics(self, *, model_id: str | None = None) -> pa.Table:
        """Metrics of logged models, each with the run and the dataset that it was measured on.

        Raises:
            NotFoundError: the model is not in this snapshot.
        """
        return self._rows("model_metrics/1", model_id)

    def spans(self, *, trace_id: str | None = None) -> pa.Table:
        """One row a span; ``content`` is its whole JSON text. One trace's are read without the others'.

        Raises:
            NotFoundError: the trace is not in this snapshot.
        """
        return self._rows("spans/1", trace_id)

    def _rows(self, table: str, owner: str | None) -> pa.Table:
        if owner is None:
            return self._reader.whole(table)
        return self._reader.owned(owner_kind(table), table, [owner])

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``metrics/1`` (of runs), ``model_metrics/1`` (of logged models) or ``spans/1`` (of traces) that belong to
        some owners: bounded tables ``owner`` (place in ``ids``), then the columns of the table without the ids.

        Raises:
            NotFoundError: one of the owners is not in this snapshot.
            UsageError: there is no such table.
        """
        owner_kind(table)
        return self._reader.rows(table, ids)

    def series(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metric points of some runs: bounded tables ``owner`` (place in ``run_ids``), ``key, step, timestamp, value``.

        Raises:
            NotFoundError: one of the runs is not in this snapshot.
        """
        return self._reader.rows("metrics/1", run_ids)

    def metric_rows(self, run_ids: Sequence[str]) -> list[int]:
        """The number of metric points of each run.

        Raises:
            NotFoundError: one of the runs is not in this snapshot.
        """
        return self._reader.counts("run", "metrics/1", run_ids)

    # -- files -----------------------------------------------------------------------------------------------------

    def files(self, *, run_id: str | None = None, kind: str = "run", id: str | None = None) -> pa.Table:  # noqa: A002
        """Artifact files of the entities of a kind, or of one of them: ``run_id`` (``owner_id`` for other kinds than runs),
        ``path, size, sha256, state``; ``state`` is ``ok`` or ``unreadable``. One entity's are read without the others'.

        Raises:
            NotFoundError: the entity is not in this snapshot.
            UsageError: this release does not know the kind, or a run and another entity are named at once.
        """
        _known(kind)
        if run_id is not None and (id is not None or kind != "run"):
            other = f"id {id!r}" if id is not None else f"the kind {kind!r}"
            raise UsageError(f"run_id and {other} exclude each other", hint="run_id names a run; kind and id name any entity")
        owner = id if run_id is None else run_id
        if owner is not None:
            return self._named(kind, self._reader.owned(kind, FILES, [owner]))
        table = self._reader.whole(FILES, ["owner_kind", *_FILE_COLUMNS])
        return self._named(kind, table.filter(pc.equal(table.column("owner_kind"), kind)))

    def files_of(self, run_ids: Sequence[str]) -> pa.Table:
        """The artifact files of some runs: ``run_id, path, size, sha256, state``.

        Raises:
            NotFoundError: one of the runs is not in this snapshot.
        """
        return self._named("run", self._reader.owned("run", FILES, run_ids))

    def files_of_entities(self, kind: str, ids: Sequence[str]) -> pa.Table:
        """The files of some entities of a kind: ``owner_id, path, size, sha256, state``.

        Raises:
            NotFoundError: one of the entities is not in this snapshot.
            UsageError: this release does not know the kind.
        """
        return self._reader.owned(_known(kind), FILES, ids, _FILE_COLUMNS)

    def _named(self, kind: str, files: pa.Table) -> pa.Table:
        table = files.select(list(_FILE_COLUMNS))
        return table.rename_columns(["run_id", *_FILE_COLUMNS[1:]]) if kind == "run" else table

    @cached_property
    def blobs(self) -> BlobReader:
        """The file contents of this snapshot, by SHA-256."""
        refs = self._reader.refs(_layout.INDEX)
        return BlobReader(self._storage, refs, self._limits, rebuilt=self._reader.rebuilt_index)

    def open_file(self, owner: str, path: str, *, kind: str = "run") -> AbstractContextManager[BinaryIO]:
        """One artifact file of a run, or of an entity of another kind, as a stream; reading it to the end checks its SHA-256.

        Raises:
            NotFoundError: there is no such entity, it has no such file, or that could not be read when the snapshot was made.
            UsageError: this release does not know the kind.
        """
        files = self._reader.owned(_known(kind), FILES, [owner])
        found = files.filter(pc.equal(files.column("path"), path)).to_pylist()
        name = f"{kind.replace('_', ' ')} {owner}"
        if not found:
            raise NotFoundError(f"{name} has no file {path!r}", code="file-not-found")
        if found[0]["sha256"] is None:
            raise NotFoundError(f"file {path!r} of {name} could not be read when it was packed", code="file-missing")
        return self.blobs.open(found[0]["sha256"])

    # -- SQL -------------------------------------------------------------------------------------------------------

    def duckdb(self, con: Any = None, *, schema: str | None = None, all_snapshots: bool = False) -> Any:
        """A DuckDB connection with a view for every kind and table of this snapshot: ``runs``, ``params``, ``metrics`` and more
        (``SHOW TABLES``). Nothing is read before it is asked for, and SHA-256 is not checked. Keep the bundle open meanwhile.

        ``con`` is a connection to add temporary views to; without it a new one in memory is yours to close. ``schema`` attaches
        the views under that name instead, for several bundles on one connection. ``all_snapshots`` puts a column ``snapshot``
        first and takes every snapshot of the bundle.

        Raises:
            UnsupportedError: DuckDB is not installed.
        """
        made = con if con is not None else _connect.connect()
        sources = self._sources(all_snapshots)
        temporary = con is not None
        _connect.add_views(made, self._storage, sources, labelled=all_snapshots, schema=schema, temporary=temporary)
        return made

    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, all_snapshots: bool = False
    ) -> pa.Table:
        """The result of a query over the views of ``duckdb``, on a connection that stays until ``close``. ``params`` are the
        values of ``?``, or by name of ``$name``.

        Raises:
            UsageError: the SQL is wrong; a note of the error has the line and the place.
            UnsupportedError: DuckDB is not installed.
        """
        if all_snapshots not in self._sessions:
            sources = self._sources(all_snapshots)
            self._sessions[all_snapshots] = _connect.Session(self._storage, sources, labelled=all_snapshots)
        return self._sessions[all_snapshots].ask(query, params)

    def views_sql(self, root: str | None = None, *, all_snapshots: bool = False) -> str:
        """The views of ``duckdb`` as SQL text for DuckDB alone: ``CREATE VIEW`` statements over the objects of this snapshot.

        ``root`` is where the folder of the bundle will be, without it where it is now; ``""`` makes the paths relative. DuckDB
        takes a records object that was cut off for a shorter one: verify the bundle first.

        Raises:
            UsageError: the bundle is one file, which DuckDB cannot look into.
        """
        if root is None:
            root = _connect.place_of(self._storage)
        title = f"The views of snapshot {self.snapshot_id} of an mlflow-bundle, for DuckDB 1.3 or newer"
        return _connect.views_script(self._sources(all_snapshots), root, labelled=all_snapshots, title=title)

    def _sources(self, all_snapshots: bool) -> list[_connect.Source]:
        if not all_snapshots:
            return [_connect.Source(self.snapshot_id, self.objects)]
        return [
            _connect.Source(one.stem, objects_of(self._storage, one.snapshot, limits=self._limits)) for one in self.snapshots()
        ]

    # -- checks ----------------------------------------------------------------------------------------------------

    def verify(self, *, level: str = "full", subset: tuple[int, int] | None = None) -> Report:
        """Check this snapshot; see ``mlflow_bundle.verify``."""
        report = verify_snapshot(self._storage, self._committed, level=level, subset=subset, limits=self._limits)
        self._verified, self._verified_at = report, time.time_ns() // 1_000_000
        return report


def salvage(bundle: Bundle, damaged: Mapping[str, str]) -> Bundle:
    """The same snapshot, read as far as ``damaged`` objects (with the codes of their damage) allow; closed with it."""
    return Bundle(bundle._storage, bundle._committed, limits=bundle._limits, damaged=damaged)  # noqa: SLF001


def _chosen_runs(
    reader: Reader, experiment: str | None, where: pc.Expression | None, columns: Sequence[str] | None, *, wide: bool
) -> pa.Table:
    """Rows and columns of the view of the runs."""
    if unknown := [name for name in columns or () if name not in RUN_COLUMNS]:
        raise UsageError(f"runs have no column {unknown[0]!r}", hint=f"one of {', '.join(RUN_COLUMNS)}")
    if isinstance(where, str):
        raise UsageError("where is a pyarrow expression, and no text", hint='for example pc.field("status") == "FINISHED"')
    # What an expression needs, nobody can ask it.
    needed = None if columns is None or where is not None else [*columns, *(_OF_EXPERIMENT if experiment is not None else ())]
    view = reader.view_columns("run", list(dict.fromkeys(needed))) if needed else reader.runs()
    if experiment is not None:
        own = [pc.equal(view.column(name), experiment) for name in _OF_EXPERIMENT]
        view = view.filter(pc.or_kleene(*own))
    try:
        view = view if where is None else view.filter(where)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
        raise UsageError(
            f"where cannot be used: {str(error).splitlines()[0]}", hint=f"columns are {', '.join(RUN_COLUMNS)}"
        ) from error
    return wide_runs(view) if wide else view if columns is None else view.select(list(columns))


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"this release knows no records of the kind {kind!r}", hint=f"one of {', '.join(KINDS)}")
    return kind
