"""A file store such as ``./mlruns`` as a source, read straight from its folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._series import sort_series
from mlflow_bundle._spool import latest_points
from mlflow_bundle.entities import LoggedModel, ModelVersion, Record, Run, Trace
from mlflow_bundle.errors import BundleError, CorruptError, UsageError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import Experiment, Problem, Source
from mlflow_bundle.tracking._filter import matching
from mlflow_bundle.tracking._port import ROW_ORDER, ROW_SCHEMAS, SERIES_SCHEMA, ArtifactStore, EntityQuery, RunQuery
from mlflow_bundle.tracking._spans import SPAN_SIGNS, span_texts, span_values, spans_not_found, spans_table
from mlflow_bundle.tracking.artifacts import empty_destination
from mlflow_bundle.tracking.artifacts._own import NoArtifacts, own_location
from mlflow_bundle.tracking.filestore import _layout as layout
from mlflow_bundle.tracking.filestore._catalogue import KINDS_OF_STORE, Catalogue, problem_of
from mlflow_bundle.tracking.filestore._complete import Completer, parent_in
from mlflow_bundle.tracking.filestore._index import Entry, Index
from mlflow_bundle.tracking.filestore._layout import broken, files_below, read_text, store_folder
from mlflow_bundle.tracking.filestore._places import Places
from mlflow_bundle.tracking.filestore._points import MODEL_LINES, RUN_LINES, Lines, PointFile, read_points
from mlflow_bundle.tracking.rest._trace_answers import ARTIFACT_LOCATION, SOURCE_RUN

__all__ = ["FileSource"]

#: Bytes of metric files, or of spans, that are parsed at a time.
CHUNK_BYTES: Final = 8 << 20
_TRACES_JSON: Final = "traces.json"
#: What file stores have no place for, beside whole kinds.
_ABSENT_FIELDS: Final = ("trace.run_ids", "trace.prompts")
_FIRST: Final = ("experiment", "run")


class FileSource:
    """A file store as a source. It never writes, and shows each kind of entity as it was when it was first asked for.

    ``uri`` is a folder or a ``file:`` URI. ``artifacts_destination`` is where a server that serves this store keeps what it
    calls ``mlflow-artifacts:``. ``storage_options`` are for fsspec.

    A step that the files hold is kept also where MLflow shows 0 (metrics with a dataset). What cannot be read is a
    problem that names the file; everything else goes on.

    Raises:
        NotFoundError: no such folder, or nothing of MLflow in it.
    """

    def __init__(
        self, uri: str, *, artifacts_destination: str | None = None, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self._catalogue = Catalogue(store_folder(uri))
        #: In the order in which they were found, each once.
        self._problems: dict[Problem, None] = dict.fromkeys(self._catalogue.problems)
        self._completer = Completer(self._report)
        self._places = Places(artifacts_destination, storage_options)
        self._destination, self._storage_options = artifacts_destination, storage_options
        #: Traces that had spans, by their own metadata, and whose file of spans is not there.
        self._without_spans: list[str] = []
        self._description = Source(
            kind="file",
            uri=Path(self._catalogue.root).as_uri(),
            absent=(*(kind for kind in KINDS if kind not in (*_FIRST, *KINDS_OF_STORE)), *_ABSENT_FIELDS),
        )

    @property
    def description(self) -> Source:
        """What this source is: ``uri`` names the folder, ``absent`` what file stores have no place for."""
        return self._description

    def experiments(self) -> list[Experiment]:
        """Every experiment, active and deleted, in archive order."""
        return list(self._catalogue.experiments)

    # -- runs ------------------------------------------------------------------------------------------------------

    def runs(self, query: RunQuery) -> Iterator[list[Run]]:
        """The runs that match, in archive order, in batches of at most 1,000.

        Raises:
            UsageError: the filter string is wrong.
            CorruptError: a run that the query names cannot be read.
        """
        if query.filter:
            matching([], {}, query.filter)
        index = self._catalogue.index("run", query.experiment_ids)
        broken_runs = self._tell_broken(index, query.experiment_ids, query.run_ids)
        if query.run_ids is not None and broken_runs:
            raise CorruptError(broken_runs[0].message, code=broken_runs[0].code)
        for batch in index.batches(_chosen(query.experiment_ids, query.run_ids, query.since, query.until)):
            if query.lifecycle != "all":
                batch = [(run, folder) for run, folder in batch if cast("Run", run).lifecycle_stage == query.lifecycle]  # noqa: PLW2901
            runs = [cast("Run", self._completer.complete(run, folder)) for run, folder in batch]
            if query.filter and runs:
                runs = matching(runs, self._latest(runs) if "metric" in query.filter.lower() else {}, query.filter)
            if runs:
                yield runs

    def runs_by_id(self, run_ids: Sequence[str]) -> list[Run]:
        """These runs as far as they exist, in archive order."""
        wanted = frozenset(run_ids)
        places = [e for e, folder in self._catalogue.folders.items() if any(os.path.isdir(f"{folder}/{run}") for run in wanted)]  # noqa: PTH112
        index = self._catalogue.index("run", places)
        self._tell_broken(index, None, wanted)
        return [
            cast("Run", self._completer.complete(run, folder))
            for batch in index.batches(lambda entry: entry.id in wanted)
            for run, folder in batch
        ]

    def children(self, run_ids: Sequence[str]) -> list[Run]:
        """The runs whose ``mlflow.parentRunId`` tag names one of these, in archive order."""
        wanted = frozenset(run_ids)
        index = self._catalogue.index("run")
        return [
            cast("Run", self._completer.complete(run, folder))
            for batch in index.batches(lambda entry: parent_in(entry.folder) in wanted)
            for run, folder in batch
        ]

    def _tell_broken(
        self, index: Index, experiment_ids: Sequence[str] | None, ids: Sequence[str] | frozenset[str] | None
    ) -> list[Problem]:
        """Report what of the entities in question cannot be read."""
        found = [
            problem
            for experiment_id, identity, problem in index.broken
            if (experiment_ids is None or experiment_id in experiment_ids) and (ids is None or identity in ids)
        ]
        for problem in found:
            self._report(problem)
        return found

    def _report(self, problem: Problem) -> None:
        self._problems.setdefault(problem)

    # -- metrics of runs -------------------------------------------------------------------------------------------

    def metric_counts(self, run_ids: Sequence[str]) -> None:
        """Not known before the files are read."""
        del run_ids

    def metrics(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metric histories of these runs as tables of ``SERIES_SCHEMA``, from some 8 MiB of files at a time.

        Only the file of one metric of one run is never divided.
        """
        if len(set(run_ids)) != len(run_ids):
            raise UsageError("the metrics of one run are asked for twice")
        for table in self._points("run", run_ids, SERIES_SCHEMA, RUN_LINES):
            yield sort_series(table)

    def _points(self, kind: str, ids: Sequence[str], schema: pa.Schema, lines: Lines) -> Iterator[pa.Table]:
        """The points of these owners, unsorted within each table; the keys of an owner ascend from table to table."""
        chunk: list[PointFile] = []
        size = 0
        for owner, identity in enumerate(ids):
            folder = self._folder(kind, identity)
            for file, length in self._metric_files(kind, identity, owner, folder) if folder else ():
                chunk.append(file)
                size += length
                if size >= CHUNK_BYTES:
                    yield self._read_points(chunk, kind, ids, schema, lines)
                    chunk, size = [], 0
        if chunk:
            yield self._read_points(chunk, kind, ids, schema, lines)

    def _metric_files(self, kind: str, identity: str, owner: int, folder: str) -> list[tuple[PointFile, int]]:
        unreadable: list[BundleError] = []
        found = sorted(files_below(f"{folder}/{layout.METRICS}", unreadable))
        if not os.path.isdir(folder):  # noqa: PTH112
            unreadable.append(broken(folder, "the folder vanished while it was being read"))
        self._problem(kind, identity, unreadable)
        return [(PointFile(owner, key, path), _size(path)) for key, path in found]

    def _read_points(
        self, files: Sequence[PointFile], kind: str, ids: Sequence[str], schema: pa.Schema, lines: Lines
    ) -> pa.Table:
        unreadable: list[tuple[int, BundleError]] = []
        table = read_points(files, schema, lines, unreadable)
        for owner, error in unreadable:
            self._problem(kind, ids[owner], [error])
        return table

    def _latest(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """The latest value of each metric by MLflow's rule."""
        ids = [run.run_id for run in runs]
        latest: dict[str, dict[str, float]] = {run_id: {} for run_id in ids}
        for table in self._points("run", ids, SERIES_SCHEMA, RUN_LINES):
            points = latest_points(sort_series(table))
            for owner, key, value in zip(*(points.column(n).to_pylist() for n in ("owner", "key", "value")), strict=True):
                latest[ids[owner]][key] = value
        return latest

    def _folder(self, kind: str, identity: str) -> str | None:
        index = self._catalogue.index(kind, ())
        return index.folder(identity) or self._catalogue.index(kind).folder(identity)

    def _problem(self, kind: str, identity: str, errors: Sequence[BundleError]) -> None:
        for error in errors:
            folder = self._folder(kind, identity) or ""
            homes = [experiment for experiment, home in self._catalogue.folders.items() if folder.startswith(f"{home}/")]
            self._report(problem_of(kind, identity, error, homes[0] if homes else ""))

    # -- files, and all other kinds --------------------------------------------------------------------------------

    def artifacts(self, record: Record) -> ArtifactStore:
        """The files of a run, logged model, trace or model version."""
        kind, identity = str(record.__struct_config__.tag), record_id(record)
        if isinstance(record, ModelVersion):
            own = own_location(record)
            return NoArtifacts() if own is None else self._places.store(kind, identity, own, None)
        location = getattr(record, "artifact_uri", UNSET) or ""
        return self._places.store(kind, identity, location, self._folder(kind, identity))

    def kinds(self) -> Sequence[str]:
        """Logged models, the registry, traces."""
        return KINDS_OF_STORE

    def entities(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records of a kind that match, in archive order."""
        index = self._catalogue.index(kind, None if KINDS[kind].is_server_wide else query.experiment_ids)
        self._tell_broken(index, query.experiment_ids, query.ids)
        parents = None if query.parents is None else set(query.parents)
        keep = _chosen(query.experiment_ids, query.ids)
        runs = None if query.run_ids is None else set(query.run_ids)
        for batch in index.batches(lambda entry: keep(entry) and (parents is None or entry.id.rpartition("/")[0] in parents)):
            found = (self._completer.complete(record, folder) for record, folder in batch)
            kept = [record for record in found if runs is None or self._names(record, runs)]
            if kept:
                yield kept

    def _names(self, record: Record, runs: set[str]) -> bool:
        """Whether the record names one of these runs."""
        if isinstance(record, Trace):
            return any(entry.key == SOURCE_RUN and entry.value in runs for entry in record.trace_metadata)
        if isinstance(record, LoggedModel):
            return record.source_run_id in runs
        return isinstance(record, ModelVersion) and record.run_id in runs

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``model_metrics/1`` or ``spans/1`` of these owners, from some 8 MiB of files at a time."""
        if table == "spans/1":
            yield from self._spans(ids)
            return
        order = [(name, "ascending") for name in ("owner", *ROW_ORDER[table], "value", "dataset_name", "dataset_digest")]
        for points in self._points("logged_model", ids, ROW_SCHEMAS[table], MODEL_LINES):
            yield points.sort_by(order)

    def _spans(self, ids: Sequence[str]) -> Iterator[pa.Table]:
        found: list[tuple[int, list[dict[str, Any]]]] = []
        size = 0
        for owner, trace_id in enumerate(ids):
            spans = self._spans_of(trace_id)
            size += sum(len(span["content"]) for span in spans)
            found.append((owner, spans))
            if size >= CHUNK_BYTES:
                yield spans_table(found)
                found, size = [], 0
        yield spans_table(found)

    def _spans_of(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace, from the file among its artifacts."""
        folder = self._folder("trace", trace_id)
        tag = f"{folder}/{layout.TAGS}/{ARTIFACT_LOCATION}"
        try:
            location = read_text(tag) if os.path.exists(tag) else ""  # noqa: PTH110
            store = self._places.store("trace", trace_id, location, folder)
            if _TRACES_JSON not in {info.path for info in store.walk()}:
                if any(os.path.exists(f"{folder}/{layout.TRACE_METADATA}/{sign}") for sign in SPAN_SIGNS):  # noqa: PTH110
                    self._without_spans.append(trace_id)
                return []
            with store.open(_TRACES_JSON) as stream:
                return [span_values(text) for text in span_texts(stream.read())]
        except (BundleError, ValueError, KeyError, TypeError) as error:
            why = broken(f"{_TRACES_JSON} of the trace {trace_id}", str(error))
            self._problem("trace", trace_id, [why])
            return []

    def problems(self) -> list[Problem]:
        """What could not be read so far: whole entities, and parts of entities that were yielded without them."""
        return list(self._problems)

    def notes(self) -> list[str]:
        """What was left out as none of MLflow's, and which files were read elsewhere than the store says."""
        lost = spans_not_found(self._without_spans)
        empty = empty_destination(self._destination, self._storage_options)
        return [*self._catalogue.notes(), *self._places.notes(), *lost, *empty]

    def close(self) -> None:
        """Remove the temporary files."""
        self._catalogue.close()


def _chosen(
    experiment_ids: Sequence[str] | None, ids: Sequence[str] | None, since: int | None = None, until: int | None = None
) -> Callable[[Entry], bool]:
    """Which entries a query means, as far as they themselves tell. Times are milliseconds, both inclusive."""
    experiments = None if experiment_ids is None else frozenset(experiment_ids)
    wanted = None if ids is None else frozenset(ids)
    timed = since is not None or until is not None
    low, high = (-(2**63) if since is None else since), (2**53 - 2 if until is None else until)

    def keep(entry: Entry) -> bool:
        return (
            (experiments is None or entry.experiment_id in experiments)
            and (wanted is None or entry.id in wanted)
            and (not timed or low <= entry.time <= high)
        )

    return keep


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0
