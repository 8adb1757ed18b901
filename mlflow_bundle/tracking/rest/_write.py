"""A tracking server as a target: experiments and runs by REST, with new ids and ``mlflow_bundle.source.*`` tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._codec import encode
from mlflow_bundle._digests import hex_of
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import ServerError
from mlflow_bundle.records import Experiment, KeyValue, Problem, Record, Run, Source
from mlflow_bundle.tracking._port import (
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
)
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.rest._answers import RunAnswer, SearchRuns, all_runs, experiments
from mlflow_bundle.tracking.rest._entity_write import EntityWriter
from mlflow_bundle.tracking.rest._expected import COMPLETE, DIGEST_TAG, RESTORE_TAG, expect, keep_earlier
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
        self._restorer = Restorer(
            self._client,
            self._reader,
            self._executor,
            limits=self._limits,
            window=self._window,
            open_store=self._store,
        )
        self._entities = EntityWriter(
            Server(self._client, self._executor, self._window, bundle_id, self._store),
            doomed_experiments=lambda: self._doomed,
        )
        #: Experiments that were deleted and are writable until ``finish_experiment``.
        self._revived: set[str] = set()
        #: Experiments that ``finish_experiment`` will delete.
        self._doomed: set[str] = set()
        self.notes: list[str] = []

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
            filters = [f"tags.`{_SOURCE_RUN}` LIKE '%'"]
        wanted = set(source_run_ids)
        found: dict[str, RestoredRun] = {}
        for answer in self._search(experiment_id, filters):
            source = answer.tag(_SOURCE_RUN) or ""
            complete = self._is_complete(answer, experiment_id)
            if source in wanted and (complete or source not in found):
                found[source] = RestoredRun(answer.run_id, complete, answer.tag(DIGEST_TAG) or "")
        return found

    def _is_complete(self, answer: RunAnswer, experiment_id: str) -> bool:
        if answer.tag(RESTORE_TAG) != COMPLETE:
            return False
        # Interrupted between the last tag and the deletion; in a revived experiment everything is active for a while.
        undeleted = answer.tag(_SOURCE_STAGE) == "deleted" and answer.info.lifecycle_stage == "active"
        return not undeleted or experiment_id in self._revived

    def _search(self, experiment_id: str, filters: Sequence[str], view: str = "ALL") -> Iterator[RunAnswer]:
        searches = [SearchRuns([experiment_id], filter=text, run_view_type=view) for text in filters]
        for answers in bounded_map(self._executor, partial(all_runs, self._client), searches, self._window):
            yield from answers

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
        digest = hex_of(encode(experiment))
        tags = {tag.key: tag.value for tag in experiment.tags if self._limits.experiment_tag(tag) is None}
        ours = self._source_tags(experiment)
        keep_earlier(tags, ours)
        tags |= ours
        made = {**tags, DIGEST_TAG: digest}
        there = self._create_experiment(name, made) if existing is None else existing.experiment_id
        if experiment.lifecycle_stage == "deleted":
            self._doomed.add(there)
        if existing is None:
            return there
        if existing.lifecycle_stage == "deleted":
            self._post("experiments/restore", {"experiment_id": there})
            self._revived.add(there)
        present = self._experiment_tags(there)
        is_old = present.get(DIGEST_TAG, digest) != digest
        # The digest comes last: where this is interrupted, the next restore does it again.
        for key, value in (made if is_old else tags).items():
            if key not in present or (is_old and present[key] != value):
                self._post("experiments/set-experiment-tag", {"experiment_id": there, "key": key, "value": value})
            elif present[key] != value:
                self.notes.append(f"the experiment {existing.name!r} keeps its own value of the tag {key!r}")
        return there

    def _source_tags(self, experiment: Experiment) -> dict[str, str]:
        kept: dict[str, object] = {
            "experiment_id": experiment.experiment_id,
            "bundle_id": self._bundle_id,
            "creation_time": experiment.creation_time,
            "last_update_time": experiment.last_update_time,
            "lifecycle_stage": experiment.lifecycle_stage,
            "artifact_location": experiment.artifact_location,
            "workspace": experiment.workspace if experiment.workspace != "default" else UNSET,
        }
        for tag in experiment.tags:
            if tag.key == "mlflow.trace.archiveNow":
                kept["tags." + tag.key] = tag.value
        return {SOURCE_TAG_PREFIX + key: str(value) for key, value in kept.items() if value is not UNSET}

    def _create_experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Create an experiment; when the answer is lost, see whether it is there before asking again."""
        body = {"name": name, "tags": [KeyValue(key=key, value=value) for key, value in tags.items()]}
        try:
            answer = self._client.post_json(f"{API}experiments/create", body)
        except RefusedError as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                # The first try of a repeated request may have made it, under the tags that it sent.
                return self._made_by_us(name, tags, error)
            raise
        return str(answer["experiment_id"])

    def _made_by_us(self, name: str, tags: Mapping[str, str], error: ServerError) -> str:
        answer = self._client.get_json(f"{API}experiments/get-by-name", {"experiment_name": name})["experiment"]
        if {tag["key"]: tag["value"] for tag in answer.get("tags", [])} != tags:
            raise error
        return str(answer["experiment_id"])

    def _experiment_tags(self, experiment_id: str) -> dict[str, str]:
        answer = self._client.get_json(f"{API}experiments/get", {"experiment_id": experiment_id})
        return {tag["key"]: tag.get("value", "") for tag in answer["experiment"].get("tags", [])}

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
        self._restorer.restore(jobs, metrics, open_blob)
        return [job.result for job in jobs]

    def finish_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        """Set what must come last: the deleted state of the experiment, and of its runs where that changed them."""
        if experiment.lifecycle_stage == "deleted":
            active = self._staged(experiment_id, "active", "ACTIVE_ONLY")
            self._post("experiments/delete", {"experiment_id": experiment_id})
            # Deleting an experiment deletes its runs; a few may be active in it nevertheless.
            endpoint, changed = "runs/restore", active
        elif experiment_id in self._revived:
            endpoint, changed = "runs/delete", self._staged(experiment_id, "deleted", "ACTIVE_ONLY")
        else:
            return
        for _ in bounded_map(self._executor, lambda run_id: self._post(endpoint, {"run_id": run_id}), changed, self._window):
            pass
        self._revived.discard(experiment_id)

    def _staged(self, experiment_id: str, stage: str, view: str) -> list[str]:
        """Complete runs of the archive that were in this lifecycle stage there."""
        filters = [f"tags.`{_SOURCE_STAGE}` = '{stage}' AND tags.`{RESTORE_TAG}` = '{COMPLETE}'"]
        return [answer.run_id for answer in self._search(experiment_id, filters, view)]

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
        """Finish what had to wait until runs and experiments are deleted. See ``EntityWriter.after_deletions``."""
        return self._entities.after_deletions()

    def close(self) -> None:
        """Stop the threads. Requests under way are finished first."""
        self._reader.close()
        self._executor.shutdown(cancel_futures=True)

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
