"""A tracking server as a target: experiments and runs by REST, with new ids and ``mlflow_bundle.source.*`` tags."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import starmap
from typing import Any, Final, NamedTuple

import pyarrow as pa

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.records import Experiment, Problem, Record, Run, Source
from mlflow_bundle.tracking._port import (
    DIFFERS,
    SOURCE_TAG_PREFIX,
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
    run_problem,
)
from mlflow_bundle.tracking._rest import API, RestClient
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.rest._answers import RunAnswer, SearchRuns, chunks, experiments, of_all_runs
from mlflow_bundle.tracking.rest._entity_write import EntityWriter
from mlflow_bundle.tracking.rest._expected import COMPLETE, DIGEST_TAG, RESTORE_TAG, expect
from mlflow_bundle.tracking.rest._experiments_write import ExperimentWriter
from mlflow_bundle.tracking.rest._history import HistoryReader
from mlflow_bundle.tracking.rest._limits import Limits
from mlflow_bundle.tracking.rest._restore import Job, Restorer
from mlflow_bundle.tracking.rest._road import Server

__all__ = ["RestTarget"]

_JOBS: Final = 6
#: Up to so many archived runs are looked for one by one; for more, all restored runs of the experiment are listed.
_FEW_RUNS: Final = 20
_ABSENT: Final = ("run.run_id", "run.deleted_time", "experiment.experiment_id", "experiment.creation_time")
_SOURCE_EXPERIMENT: Final = SOURCE_TAG_PREFIX + "experiment_id"
_SOURCE_BUNDLE: Final = SOURCE_TAG_PREFIX + "bundle_id"
_SOURCE_RUN: Final = SOURCE_TAG_PREFIX + "run_id"
_SOURCE_STAGE: Final = SOURCE_TAG_PREFIX + "lifecycle_stage"
#: Every run of any archive.
_RESTORED: Final = f"tags.`{_SOURCE_RUN}` LIKE '%'"
#: New experiments that are searched at a time.
_EXPERIMENTS: Final = 50


class _There(NamedTuple):
    """What is kept of a run at the target: its experiment there, the archived run that it comes from (or empty), its state."""

    experiment_id: str
    source_id: str
    run: RestoredRun


class RestTarget:
    """Writes to a tracking server, or to one workspace of it. Implements ``MlflowTarget``.

    ``tracking_uri`` is that of the server, or a client for one of its workspaces. ``bundle_id`` names the archive in the
    source tags. ``storage_options`` are fsspec's for artifact URIs outside of the server; ``jobs`` is the number of requests at
    a time. ``notes`` collects what merging into existing experiments left as it was.

    Raises:
        ServerError: the server does not answer, or refuses.
    """

    def __init__(
        self,
        tracking_uri: str | RestClient,
        *,
        bundle_id: str,
        storage_options: Mapping[str, Any] | None = None,
        jobs: int | None = None,
    ) -> None:
        threads = jobs or _JOBS
        self._client = RestClient(tracking_uri) if isinstance(tracking_uri, str) else tracking_uri
        self._bundle_id = bundle_id
        self._storage_options = storage_options
        version = self._client.version()
        self._description = Source(kind="rest", uri=self._client.uri, version=version, absent=_ABSENT)
        self._limits = Limits.of(version)
        self._window = 2 * threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="mlflow-bundle-restore")
        self._reader = HistoryReader(self._client, threads=min(threads, 4))
        #: Experiments that were deleted and are writable until ``finish_experiment``.
        self._revived: set[str] = set()
        self._restorer = Restorer(
            self._client,
            self._reader,
            self._executor,
            limits=self._limits,
            window=self._window,
            open_store=self._store,
            revived=self._revived,
        )
        self._entities = EntityWriter(
            Server(self._client, self._executor, self._window, bundle_id, self._store),
            doomed_experiments=lambda: self._doomed,
        )
        self._experiments = ExperimentWriter(self._client, limits=self._limits, bundle_id=bundle_id, tell=self._tell)
        #: Experiments that ``finish_experiment`` will delete.
        self._doomed: set[str] = set()
        #: Experiments that were deleted when they were listed.
        self._deleted: set[str] = set()
        #: Experiments that were made.
        self._new: set[str] = set()
        #: The archived ids of runs that were made, by experiment, and the runs of those that are there more than once.
        self._made: dict[str, set[str]] = defaultdict(set)
        self._doubles: dict[str, list[str]] = {}
        # What a list of the server may lack is told, too.
        self.notes = self._client.doubts

    @property
    def description(self) -> Source:
        return self._description

    @property
    def has_workspaces(self) -> bool:
        """False: everything goes into one place."""
        return False

    @property
    def keeps_ids(self) -> bool:
        """False: a server gives new ids."""
        return False

    def experiments(self) -> list[TargetExperiment]:
        """Every experiment of the server; ``source_id`` is told for those that came from this archive."""
        return [self._target_experiment(experiment) for experiment in experiments(self._client)]

    def _target_experiment(self, experiment: Experiment) -> TargetExperiment:
        tags = {tag.key: tag.value for tag in experiment.tags}
        ours = tags.get(_SOURCE_BUNDLE) == self._bundle_id
        if experiment.lifecycle_stage == "deleted":
            self._deleted.add(experiment.experiment_id)
        return TargetExperiment(
            experiment.experiment_id,
            experiment.name,
            experiment.lifecycle_stage,
            tags.get(_SOURCE_EXPERIMENT) if ours else None,
            workspace=experiment.workspace or "",
            tags=experiment.tags,
        )

    def cannot_hold_experiment(self, experiment: Experiment) -> list[Problem]:
        """Tags and names that this release of the server refuses."""
        return self._limits.experiment_problems(experiment)

    def cannot_hold_run(self, run: Run) -> list[Problem]:
        """Params, tags, datasets and names that this release of the server refuses, cuts or alters."""
        return [*self._entities.cannot_hold_run(run), *self._limits.run_problems(self._entities.without(run))]

    def cannot_hold_key(self, key: str) -> str | None:
        """Why the server would refuse this metric key, or None."""
        return self._limits.key(key)

    def restored_runs(self, experiment_id: str, source_run_ids: Sequence[str]) -> Mapping[str, RestoredRun]:
        """Those of these archived runs that are at the target already, by archived id."""
        if len(source_run_ids) <= _FEW_RUNS:
            filters = [f"tags.`{_SOURCE_RUN}` = '{run_id}'" for run_id in source_run_ids]
        else:
            filters = [_RESTORED]
        found: dict[str, RestoredRun] = {}
        for source, run in self._ours([experiment_id], filters, set(source_run_ids)):
            known = found.get(source)
            if known is None or (run.deleted, not run.complete) < (known.deleted, not known.complete):
                found[source] = run
        return found

    def _ours(
        self, experiment_ids: Sequence[str], filters: Sequence[str], wanted: Collection[str]
    ) -> Iterator[tuple[str, RestoredRun]]:
        """The runs that come from the archived ones that are ``wanted``, and remember of which there are several."""
        alike: dict[tuple[str, str], list[str]] = defaultdict(list)
        for place, source, run in self._search(experiment_ids, filters):
            if source in wanted:
                if not run.deleted:
                    alike[place, source].append(run.run_id)
                yield source, run
        self._doubles |= {source: runs for (_, source), runs in alike.items() if len(runs) > 1}

    def _restored_run(self, answer: RunAnswer) -> RestoredRun:
        # Interrupted between the last tag and the deletion; in a revived experiment everything is active for a while.
        was, stage, place = answer.tag(_SOURCE_STAGE), answer.info.lifecycle_stage, answer.info.experiment_id
        is_undeleted = (was, stage) == ("deleted", "active") and place not in self._revived
        # With a deleted experiment its runs come back.
        is_gone = (was, stage) == ("active", "deleted") and place not in self._deleted
        complete = answer.tag(RESTORE_TAG) == COMPLETE and not is_undeleted
        return RestoredRun(answer.run_id, complete, answer.tag(DIGEST_TAG) or "", deleted=is_gone)

    def _search(self, experiment_ids: Sequence[str], filters: Sequence[str], view: str = "ALL") -> Iterator[_There]:
        searches = [SearchRuns(list(experiment_ids), filter=text, run_view_type=view) for text in filters]
        ask = partial(of_all_runs, self._client, make=self._there, key=lambda there: there.run.run_id)
        for found in bounded_map(self._executor, ask, searches, self._window):
            yield from found

    def _there(self, answer: RunAnswer) -> _There:
        return _There(answer.info.experiment_id, answer.tag(_SOURCE_RUN) or "", self._restored_run(answer))

    def place_experiment(
        self,
        experiment: Experiment,
        *,
        name: str,
        existing: TargetExperiment | None,
        workspace: str = "",  # noqa: ARG002
    ) -> str:
        """Create the experiment, or add the tags that an existing one lacks. Returns its id at the target.

        One that this tool made of another snapshot gets the values of this one. Apart from that, tags of an existing
        experiment are never changed: a difference becomes one of ``notes``. A deleted one is restored until
        ``finish_experiment``.
        """
        there = self._experiments.place(experiment, name=name, existing=existing)
        if existing is None:
            self._new.add(there)
        if experiment.lifecycle_stage == "deleted":
            self._doomed.add(there)
        if existing is not None and existing.lifecycle_stage == "deleted":
            self._revived.add(there)
        return there

    def restore(self, runs: Sequence[PlannedRun], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> list[RunResult]:
        """Write these runs, read them back, compare, and mark them complete. See ``MlflowTarget.restore``.

        Raises:
            AuthError, ServerError: the target refuses everything, or is gone. Running again finishes the rest.
        """
        jobs = [
            Job(
                planned,
                expect(replace(planned, source=self._entities.without(planned.source)), self._limits, self._bundle_id),
                RunResult(source_run_id=planned.source.run_id, problems=self.cannot_hold_run(planned.source)),
            )
            for planned in runs
        ]
        for planned in runs:
            if planned.target_run_id is None:
                self._made[planned.experiment_id].add(planned.source.run_id)
        self._restorer.restore(jobs, metrics, open_blob)
        return [job.result for job in jobs]

    def finish_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        """Set what must come last: the deleted state of the experiment, and of its runs where that changed them."""
        if experiment.lifecycle_stage == "deleted":
            active = self._staged(experiment_id, "active", "ACTIVE_ONLY")
            self._experiments.set_stage(experiment_id, "deleted")
            # Deleting an experiment deletes its runs; a few may be active in it nevertheless.
            endpoint, changed = "runs/restore", active
        elif experiment_id in self._revived:
            endpoint, changed = "runs/delete", self._staged(experiment_id, "deleted", "ACTIVE_ONLY")
        else:
            endpoint, changed = "", []
        for _ in bounded_map(self._executor, lambda run_id: self._post(endpoint, {"run_id": run_id}), changed, self._window):
            pass
        self._revived.discard(experiment_id)
        self._experiments.finished(experiment, experiment_id)

    def _staged(self, experiment_id: str, stage: str, view: str) -> list[str]:
        """Complete runs of the archive that were in this lifecycle stage there."""
        filters = [f"tags.`{_SOURCE_STAGE}` = '{stage}' AND tags.`{RESTORE_TAG}` = '{COMPLETE}'"]
        return [there.run.run_id for there in self._search([experiment_id], filters, view)]

    def kinds(self) -> frozenset[str]:
        """The kinds beside experiments and runs that this server can hold."""
        return self._entities.kinds()

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the server would refuse, cut or alter."""
        return self._entities.cannot_hold(record)

    def row_limits(self, table: str) -> Callable[[pa.Table], Sequence[str]] | None:  # noqa: ARG002
        """None: a server that refuses spans or metrics gets them in another way, or says so."""
        return None

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """Why the experiment at the target cannot have this record, because of another one of its name, or None."""
        return self._entities.name_taken(record, experiment_id)

    def restore_entities(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Write these entities, read them back and compare. See ``MlflowTarget.restore_entities``."""
        return self._entities.restore(kind, planned, ids, open_blob, options)

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs the model inputs and outputs of their records."""
        return self._entities.link_runs(runs, ids)

    def after_deletions(self) -> list[EntityResult]:
        """Finish what had to wait until runs and experiments are deleted (see ``EntityWriter.after_deletions``), and read the
        experiments back. Tell which runs are there twice, because of another unpack at the same time or at any time before."""
        self._look_for_doubles()
        return [*self._entities.after_deletions(), *self._experiments.check(), *starmap(_twice, self._doubles.items())]

    def _look_for_doubles(self) -> None:
        """Search the target for all runs that were made: another unpack may have made them at the same time. What is in new
        experiments comes from this one, and so is listed together."""
        made, self._made = self._made, defaultdict(set)
        for some in chunks([experiment for experiment in made if experiment in self._new], _EXPERIMENTS):
            for _ in self._ours(some, [_RESTORED], set().union(*(made[experiment] for experiment in some))):
                pass
        for experiment in made.keys() - self._new:
            self.restored_runs(experiment, sorted(made[experiment]))

    def close(self) -> None:
        """Stop the threads. Requests under way are finished first."""
        self._reader.close()
        self._executor.shutdown(cancel_futures=True)

    def _tell(self, note: str) -> None:
        self.notes.append(note)

    def _post(self, endpoint: str, body: Mapping[str, Any]) -> None:
        self._client.post_json(API + endpoint, body)

    def _store(self, artifact_uri: str, run_id: str) -> ArtifactStore:
        return artifact_store(
            artifact_uri,
            client=self._client,
            run_id=run_id,
            artifacts_destination=None,
            storage_options=self._storage_options,
        )


def _twice(source_id: str, runs: Sequence[str]) -> EntityResult:
    """The problem of an archived run that is at the target more than once."""
    message = f"run {source_id} is at the target {len(runs)} times, as {', '.join(runs)}: delete all of them but one"
    problems = [run_problem(source_id, message, code=DIFFERS)]
    return EntityResult(kind="run", source_id=source_id, action="failed", problems=problems)
