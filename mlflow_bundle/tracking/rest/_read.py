"""A tracking server as a source: experiments, runs, metric histories and files by REST; the other kinds by their readers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import LoggedModel, ModelVersion, SkillVersion, Trace
from mlflow_bundle.errors import NotFoundError, ServerError, StorageError, UsageError
from mlflow_bundle.kinds import PARENT_TAG
from mlflow_bundle.records import Experiment, Problem, Record, Run, Source, order_key, record_id
from mlflow_bundle.tracking._port import ArtifactStore, EntityQuery, RunQuery
from mlflow_bundle.tracking._rest import RefusedError, RestClient
from mlflow_bundle.tracking.artifacts import artifact_store, empty_destination
from mlflow_bundle.tracking.artifacts._local import local_path
from mlflow_bundle.tracking.artifacts._own import NoArtifacts, own_location
from mlflow_bundle.tracking.rest._answers import (
    IDS_PER_SEARCH,
    RunAnswer,
    RunPage,
    SearchRuns,
    all_runs,
    chunks,
    get_run,
    model_links,
    quoted,
    runs_among,
    search_runs,
)
from mlflow_bundle.tracking.rest._entities_read import EntityReader
from mlflow_bundle.tracking.rest._features import SourceServer
from mlflow_bundle.tracking.rest._history import HistoryReader, prefetched

__all__ = ["RestSource"]

_JOBS: Final = 4
_RUNS_PER_PAGE: Final = 500
#: Experiment ids in one search: some databases bind at most 2,100 values.
_EXPERIMENTS_PER_SEARCH: Final = 1_000
#: Up to so many runs are asked for one by one.
_FEW_RUNS: Final = 20
#: From so many parents on, reading all nested runs is cheaper than one search per parent.
_MANY_PARENTS: Final = 200
_VIEWS: Final = {"all": "ALL", "active": "ACTIVE_ONLY", "deleted": "DELETED_ONLY"}
_BY_START: Final = ("attributes.start_time ASC",)
_ABSENT: Final = tuple(
    f"run.{field}" for field in ("deleted_time", "source_type", "source_name", "entry_point_name", "source_version")
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class RestSource:
    """Reads a tracking server. Implements ``MlflowSource``.

    ``artifacts_destination`` is where the server keeps the artifacts it serves, if the caller may read them there directly;
    ``storage_options`` are fsspec options for that place and for artifact URIs outside the server. ``jobs`` is the number of
    requests at a time.

    Raises:
        ServerError: the server does not answer, or refuses.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        artifacts_destination: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        jobs: int | None = None,
    ) -> None:
        threads = jobs or _JOBS
        self._client = RestClient(tracking_uri)
        self._server = SourceServer(self._client, threads=threads)
        self._artifacts_destination = artifacts_destination
        self._storage_options = storage_options
        self._threads = threads
        self._version = self._client.version()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="mlflow-bundle-rest")
        self._histories = HistoryReader(self._client, threads=threads, client_of=self._client_of_run)
        #: Who is asked about a run, on a server with several workspaces.
        self._run_homes: dict[str, RestClient] = {}
        self._nothing = False
        self._metric_keys: dict[str, tuple[str, ...]] = {}
        self._key_sets: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._entities = EntityReader(self._server, self._open_store)

    @property
    def description(self) -> Source:
        return Source(kind="rest", uri=self._client.uri, version=self._version, absent=(*_ABSENT, *self._entities.absent))

    def experiments(self) -> list[Experiment]:
        """Every experiment of every workspace, active and deleted, in archive order."""
        found = sorted(self._server.experiments(), key=order_key)
        self._nothing = not found
        return found

    def runs(self, query: RunQuery) -> Iterator[list[Run]]:
        """The runs that match, in archive order over all experiments, in batches of at most 500.

        Raises:
            UsageError: the server does not understand the filter.
        """
        ids = self._experiment_ids() if query.experiment_ids is None else query.experiment_ids
        if query.run_ids is not None:
            merged: Iterable[Run] = sorted(self._selected(ids, query, query.run_ids), key=order_key)
        else:
            pages = [prefetched(self._executor, self._in_order(some, query)) for some in self._side_by_side(ids)]
            merged = heapq.merge(*(chain.from_iterable(stream) for stream in pages), key=order_key)
        batch: list[Run] = []
        for run in merged:
            batch.append(run)
            if len(batch) == _RUNS_PER_PAGE:
                yield self._complete(batch)
                batch = []
        if batch:
            yield self._complete(batch)

    def runs_by_id(self, run_ids: Sequence[str]) -> list[Run]:
        """These runs as far as they exist, in archive order."""
        wanted = list(dict.fromkeys(run_ids))
        if len(wanted) <= _FEW_RUNS:
            return sorted(self._one_by_one(wanted), key=order_key)
        return self._complete(sorted(self._selected(self._experiment_ids(), RunQuery(), wanted), key=order_key))

    def children(self, run_ids: Sequence[str]) -> list[Run]:
        """The runs whose ``mlflow.parentRunId`` tag names one of these, in archive order."""
        parents = set(run_ids)
        if len(parents) > _MANY_PARENTS:
            filters = [f"tags.`{PARENT_TAG}` LIKE '%'"]
        else:
            filters = [f"tags.`{PARENT_TAG}` = {quoted(parent)}" for parent in sorted(parents)]
        ids = self._experiment_ids()
        searches = [
            SearchRuns(group, filter=text, run_view_type="ALL", order_by=_BY_START)
            for text in filters
            for _, home in self._server.by_home(ids)
            for group in chunks(home, _EXPERIMENTS_PER_SEARCH)
        ]
        asked = self._map(lambda search: all_runs(self._home(search.experiment_ids[0]), search), searches)
        answers = chain.from_iterable(asked)
        found = {run.run_id: run for run in answers if run.tag(PARENT_TAG) in parents}
        return self._complete(sorted((self._record(run) for run in found.values()), key=order_key))

    def metric_counts(self, run_ids: Sequence[str]) -> None:
        """None: a server does not tell the length of a history."""

    def metrics(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The whole metric histories of these runs as sorted tables of ``SERIES_SCHEMA``, mostly below a million rows.

        Raises:
            NotFoundError: a run does not exist.
        """
        unknown = [run_id for run_id in run_ids if run_id not in self._metric_keys]
        if unknown:
            self.runs_by_id(unknown)
        try:
            keys = [self._metric_keys[run_id] for run_id in run_ids]
        except KeyError as error:
            raise NotFoundError(f"the run {error.args[0]} is not on the MLflow server {self._client.uri}") from None
        return self._histories.tables(run_ids, keys)

    def artifacts(self, record: Record) -> ArtifactStore:
        """The files of a run, logged model, trace or version, through the server or where its location points."""
        client = self._client
        if isinstance(record, Trace):
            return self._entities.trace_files(record)
        if isinstance(record, ModelVersion | SkillVersion):
            location = own_location(record)
            if location is None:
                return NoArtifacts()
            _must_be_here(location, record)
            client = self._server.workspace(record.workspace).client
        else:
            assert isinstance(record, Run | LoggedModel)
            location = record.artifact_uri or ""
            client = self._home(record.experiment_id)
        return self._open_store(location, record_id(record), client, kind=str(record.__struct_config__.tag))

    def _open_store(
        self, location: str, identity: str, client: RestClient | None = None, *, kind: str = "run"
    ) -> ArtifactStore:
        return artifact_store(
            location,
            client=client or self._client,
            run_id=identity,
            kind=kind,
            artifacts_destination=self._artifacts_destination,
            storage_options=self._storage_options,
        )

    def kinds(self) -> Sequence[str]:
        """The kinds beside experiments and runs that the server has, in archive order; it is asked once."""
        return self._entities.kinds

    def entities(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records of a kind that match, in archive order, in batches of at most 1,000."""
        return self._entities.read(kind, query)

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``model_metrics/1`` or ``spans/1`` as bounded tables of ``ROW_SCHEMAS``."""
        return self._entities.rows(table, ids)

    def problems(self) -> list[Problem]:
        """What could not be read so far: kinds that this user may not read, and what is hidden in deleted experiments."""
        return self._entities.problems()

    def notes(self) -> list[str]:
        """What may be missing without being an error."""
        said = [*self._entities.notes(), *empty_destination(self._artifacts_destination, self._storage_options)]
        if self._nothing:
            said.append("the server shows no experiment at all: nothing was there, or nothing may be seen")
        if purged := self._histories.purged:
            run_id, key = min(purged)
            said.append(
                f"{len(purged):,} metrics have a last value and no history: an archive holds histories, so that these values"
                f" are left out (for example {key!r} of run {run_id})"
            )
        return said

    def close(self) -> None:
        """Stop the threads. Requests under way are finished first."""
        self._histories.close()
        self._server.close()
        self._executor.shutdown(cancel_futures=True)

    def _map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return bounded_map(self._executor, function, items, 2 * self._threads)

    def _experiment_ids(self) -> tuple[str, ...]:
        return tuple(experiment.experiment_id for experiment in self._server.experiments())

    def _home(self, experiment_id: str) -> RestClient:
        """Who is asked about what is in an experiment."""
        return self._server.home(experiment_id).client

    def _client_of_run(self, run_id: str) -> RestClient:
        return self._run_homes.get(run_id, self._server.workspaces[0].client)

    def _side_by_side(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        """The experiments in as many groups as there are threads, so that their runs are read at the same time."""
        for _, some in self._server.by_home(ids):
            groups = max(min(self._threads, len(some)), -(-len(some) // _EXPERIMENTS_PER_SEARCH))
            yield from (some[start::groups] for start in range(groups))

    def _complete(self, runs: list[Run]) -> list[Run]:
        """The runs with their logged models, which no bulk request tells: each run is asked for, wherever the server has logged
        models at all. A run may read a model of another experiment."""
        if not any(run.model_outputs for run in runs) and not self._entities.has_logged_models():
            return runs
        return list(self._map(lambda run: model_links(self._home(run.experiment_id), run), runs))

    def _record(self, answer: RunAnswer) -> Run:
        """The run as a record; its metric keys are remembered, equal sets once."""
        keys = answer.metric_keys
        self._metric_keys[answer.run_id] = self._key_sets.setdefault(keys, keys)
        if len(self._server.workspaces) > 1:
            self._run_homes[answer.run_id] = self._home(answer.info.experiment_id)
        return answer.record()

    def _in_order(self, ids: Sequence[str], query: RunQuery) -> Iterator[list[Run]]:
        """Pages of the runs of some experiments, by start time and id.

        The next page is asked for by start time rather than by position, so that runs which appear or vanish meanwhile
        neither hide nor double others. Runs of the last start time wait for the next page: only then are all of them known.
        """
        seen: set[str] = set()
        waiting: list[Run] = []
        since, token = query.since, ""
        while ids:
            page = self._search(ids, query, since, token)
            found = [self._record(answer) for answer in page.runs]
            times = [order_key(run)[0] for run in found]
            if times != sorted(times):
                raise ServerError(f"the MLflow server {self._client.uri} does not order runs by start time as asked")
            waiting += [run for run in found if run.run_id not in seen]
            seen.update(run.run_id for run in found)
            waiting.sort(key=order_key)
            if not page.next_page_token:
                yield waiting
                return
            last = found[-1].start_time if found else UNSET
            if isinstance(last, int) and last != since:
                since, token = last, ""
                ready = [run for run in waiting if order_key(run)[0] < last]
                waiting = waiting[len(ready) :]
                yield ready
            else:
                token = page.next_page_token

    def _search(self, ids: Sequence[str], query: RunQuery, since: int | None, token: str = "") -> RunPage:
        search = msgspec.structs.replace(
            _search_of(ids, query, since), max_results=_RUNS_PER_PAGE, order_by=_BY_START, page_token=token
        )
        with self._understood(query):
            return search_runs(self._home(ids[0]), search)

    @contextmanager
    def _understood(self, query: RunQuery) -> Iterator[None]:
        """Say of a refusal that it is about the filter of the user, where he gave one."""
        try:
            yield
        except RefusedError as error:
            if query.filter and error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                hint = "see https://mlflow.org/docs/latest/search-runs.html for the syntax"
                raise UsageError(f"the server refused the filter {query.filter!r}: {error}", hint=hint) from error
            raise

    def _selected(self, ids: Sequence[str], query: RunQuery, run_ids: Sequence[str]) -> list[Run]:
        """Those of the runs that match the query, in no order."""
        jobs = [
            (group, some)
            for some in chunks(list(dict.fromkeys(run_ids)), IDS_PER_SEARCH)
            for _, home in self._server.by_home(ids)
            for group in chunks(home, _EXPERIMENTS_PER_SEARCH)
        ]

        def ask(job: tuple[Sequence[str], Sequence[str]]) -> Sequence[RunAnswer]:
            with self._understood(query):
                return runs_among(self._home(job[0][0]), _search_of(job[0], query, query.since), job[1])

        return [self._record(answer) for answers in self._map(ask, jobs) for answer in answers]

    def _one_by_one(self, run_ids: Sequence[str]) -> list[Run]:
        return [self._record(answer) for answer in self._map(self._get_run, run_ids) if answer is not None]

    def _get_run(self, run_id: str) -> RunAnswer | None:
        for workspace in self._server.workspaces:
            try:
                return get_run(workspace.client, run_id)
            except RefusedError as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return None


def _search_of(ids: Sequence[str], query: RunQuery, since: int | None) -> SearchRuns:
    """The search for the runs of some experiments that match."""
    filters = [query.filter.strip()]
    filters += [f"attributes.start_time >= {since}"] if since is not None else []
    filters += [f"attributes.start_time <= {query.until}"] if query.until is not None else []
    return SearchRuns(ids, filter=" AND ".join(text for text in filters if text), run_view_type=_VIEWS[query.lifecycle])


def _must_be_here(location: str, version: ModelVersion | SkillVersion) -> None:
    """A server does not list the files of a version: a folder has to be on this machine too.

    Raises:
        StorageError: it is not, so that nobody can say which files there are.
    """
    if location.startswith(("/", "file:")) and not Path(local_path(location)).is_dir():
        raise StorageError(
            f"the folder {location} of version {version.version} of {version.name!r} is not on this machine",
            hint="run on the machine of the server, or where its folder is mounted",
        )
