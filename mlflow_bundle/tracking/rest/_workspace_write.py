"""A tracking server with workspaces as a target: each workspace is a target of its own, and gets what belongs into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from mlflow_bundle.entities import Experiment, Record, Run, Workspace
from mlflow_bundle.errors import ServerError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import Problem, Source
from mlflow_bundle.tracking._port import (
    EntityResult,
    IdMap,
    MlflowTarget,
    OpenBlob,
    PlannedEntity,
    PlannedRun,
    RestoredRun,
    RestoreOptions,
    RunResult,
    TargetExperiment,
)
from mlflow_bundle.tracking._rest import RefusedError, RestClient
from mlflow_bundle.tracking._workspaces import DEFAULT_WORKSPACE, Homes
from mlflow_bundle.tracking.rest._features import API3, Features
from mlflow_bundle.tracking.rest._road import not_restored
from mlflow_bundle.tracking.rest._write import RestTarget

__all__ = ["WorkspacesTarget", "rest_target"]

_WORKSPACES: Final = f"{API3}workspaces"
_KIND: Final = "workspace"
_PLACES: Final = "a server keeps the files of a workspace where it is told to: where {} had them is in the archive only"


def rest_target(
    tracking_uri: str,
    *,
    bundle_id: str,
    storage_options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    workspace: str | None = None,
) -> MlflowTarget:
    """A tracking server as a target, whether it has workspaces or not. ``workspace`` is the one that everything goes into.

    Raises:
        ServerError: the server does not answer, or refuses.
    """
    client = RestClient(tracking_uri)
    client.version()  # known to all clients that are made of this one

    def open_target(client: RestClient) -> RestTarget:
        return RestTarget(client, bundle_id=bundle_id, storage_options=storage_options, jobs=jobs)

    if not Features(client, map).info.workspaces_enabled:
        return open_target(client)
    return WorkspacesTarget(client, open_target, Homes(workspace, offered=True))


class WorkspacesTarget:
    """Writes to a tracking server with workspaces. Implements ``MlflowTarget``.

    A workspace is made when the first thing goes into it. All runs of one call of ``restore`` belong to one workspace.

    Raises:
        ServerError: the server does not answer, or refuses.
    """

    def __init__(self, client: RestClient, open_target: Callable[[RestClient], RestTarget], homes: Homes) -> None:
        self._client, self._open_target, self._homes = client, open_target, homes
        self._default = open_target(client)
        self._targets: dict[str, RestTarget] = {}
        self._there = {str(found["name"]) for found in self._listed()}
        #: The workspaces of experiments, by id at the target and by archived id, and of archived evaluation datasets.
        self._placed: dict[str, str] = {}
        self._archived: dict[str, str] = {}
        self._datasets: dict[str, str] = {}
        # What a list of the server may lack is told, too.
        self.notes = client.doubts

    @property
    def description(self) -> Source:
        return self._default.description

    @property
    def has_workspaces(self) -> bool:
        """True."""
        return True

    @property
    def keeps_ids(self) -> bool:
        """False: a server gives new ids."""
        return False

    # -- workspaces ------------------------------------------------------------------------------------------------

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.get_json(_WORKSPACES).get("workspaces", [])
        return found

    def _at(self, workspace: str) -> RestTarget:
        """The target for one workspace, which may not exist yet."""
        if workspace not in self._targets:
            self._targets[workspace] = self._open_target(self._client.in_workspace(workspace))
            self._targets[workspace].notes = self.notes
        return self._targets[workspace]

    def _made(self, workspace: str) -> RestTarget:
        """The target for one workspace, which exists."""
        if workspace not in self._there:
            self._create({"name": workspace})
        return self._at(workspace)

    def _create(self, body: Mapping[str, Any]) -> None:
        """Make a workspace. When the first try of a repeated request has made it already, all is well."""
        try:
            self._client.post_json(_WORKSPACES, body)
        except RefusedError as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._there.add(str(body["name"]))

    def _home(self, record: Record) -> str:
        """The workspace at the target that a record goes to."""
        if isinstance(record, Workspace):
            return record.name
        kind = KINDS[str(record.__struct_config__.tag)]
        if hasattr(record, "workspace"):
            home = self._homes.of(record.workspace)
            if kind.name == "evaluation_dataset":
                self._datasets[record_id(record)] = home
            return home
        if kind.name == "dataset_record":
            return self._datasets[record.dataset_id]  # type: ignore[attr-defined] # it is a DatasetRecord
        return self._archived.get(kind.experiments(record)[0], DEFAULT_WORKSPACE)

    def _restore_workspaces(self, planned: Sequence[PlannedEntity]) -> list[EntityResult]:
        results = []
        for plan in planned:
            record, result = plan.record, EntityResult(kind=_KIND, source_id=record_id(plan.record))
            assert isinstance(record, Workspace)
            results.append(result)
            try:
                self._restore_workspace(record, result)
            except ServerError as error:
                if error.status is None:
                    raise
                result.action = "failed"
                result.problems.append(not_restored(result, error.message))
        return results

    def _restore_workspace(self, record: Workspace, result: EntityResult) -> None:
        """Make a workspace, or find out what one of that name has otherwise."""
        result.target_id = record.name
        kept: dict[str, Any] = {"description": record.description} if record.description else {}
        if record.trace_archival_retention:
            kept["trace_archival_config"] = {"retention": record.trace_archival_retention}
        was_there = record.name in self._there
        if was_there:
            result.action = "there"
        else:
            self._create({"name": record.name, **kept})
        found = next((one for one in self._listed() if one["name"] == record.name), {})
        for name, value in kept.items():
            actual = found.get(name)
            if isinstance(value, dict):
                actual = {key: (actual or {}).get(key) for key in value}
            if actual == value:
                continue
            message = f"the workspace {record.name!r} has its own {name}"
            if was_there:
                result.keeps(message)
            else:
                result.problems.append(not_restored(result, message))
                result.action = "failed"
        if record.default_artifact_root or record.trace_archival_location:
            result.notes.append(_PLACES.format("archived workspaces"))

    # -- experiments and runs --------------------------------------------------------------------------------------

    def experiments(self) -> list[TargetExperiment]:
        """Every experiment of the workspaces that anything can go to."""
        found = []
        for workspace in sorted(self._there if self._homes.wanted is None else self._there & {self._homes.wanted}):
            for experiment in self._at(workspace).experiments():
                self._placed[experiment.experiment_id] = workspace
                found.append(experiment)
        return found

    def cannot_hold_experiment(self, experiment: Experiment) -> list[Problem]:
        """Tags and names that this release of the server refuses."""
        self._archived[experiment.experiment_id] = self._homes.of(experiment.workspace)
        return self._default.cannot_hold_experiment(experiment)

    def cannot_hold_run(self, run: Run) -> list[Problem]:
        """Params, tags, datasets and names that this release of the server refuses, cuts or alters."""
        return self._default.cannot_hold_run(run)

    def cannot_hold_key(self, key: str) -> str | None:
        """Why the server would refuse this metric key, or None."""
        return self._default.cannot_hold_key(key)

    def restored_runs(self, experiment_id: str, source_run_ids: Sequence[str]) -> Mapping[str, RestoredRun]:
        """Those of these archived runs that are at the target already, by archived id."""
        return self._at(self._placed[experiment_id]).restored_runs(experiment_id, source_run_ids)

    def place_experiment(
        self, experiment: Experiment, *, name: str, existing: TargetExperiment | None, workspace: str = ""
    ) -> str:
        """Create the experiment in its workspace, or add the tags that an existing one lacks. Returns its id."""
        placed = self._made(workspace).place_experiment(experiment, name=name, existing=existing)
        self._placed[placed] = workspace
        self._archived[experiment.experiment_id] = workspace
        return placed

    def restore(self, runs: Sequence[PlannedRun], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> list[RunResult]:
        """Write these runs of one workspace, read them back, compare, and mark them complete."""
        homes = {self._placed[run.experiment_id] for run in runs}
        assert len(homes) <= 1, "runs of one workspace at a time"
        return self._at(homes.pop()).restore(runs, metrics, open_blob) if homes else []

    def finish_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        """Set what must come last: the deleted state of the experiment, and of its runs where that changed them."""
        self._at(self._placed[experiment_id]).finish_experiment(experiment, experiment_id)

    # -- all other kinds -------------------------------------------------------------------------------------------

    def kinds(self) -> frozenset[str]:
        """The kinds beside experiments and runs that this server can hold."""
        return self._default.kinds() | {_KIND}

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the server would refuse, cut or alter."""
        return [] if isinstance(record, Workspace) else self._at(self._home(record)).cannot_hold(record)

    def row_limits(self, table: str) -> Callable[[pa.Table], Sequence[str]] | None:  # noqa: ARG002
        """None: a server that refuses spans or metrics gets them in another way, or says so."""
        return None

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """Why the experiment at the target cannot have this record, because of another one of its name, or None."""
        return self._at(self._placed[experiment_id]).name_taken(record, experiment_id)

    def restore_entities(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Write these entities, each into its workspace, read them back and compare. See ``MlflowTarget``."""
        if kind == _KIND:
            return self._restore_workspaces(planned)
        groups: dict[str, list[int]] = {}
        for number, plan in enumerate(planned):
            groups.setdefault(self._home(plan.record), []).append(number)
        results: dict[int, EntityResult] = {}
        for home, numbers in groups.items():
            some = self._made(home).restore_entities(kind, [planned[number] for number in numbers], ids, open_blob, options)
            results.update(zip(numbers, some, strict=True))
        return [results[number] for number in range(len(planned))]

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs the model inputs and outputs of their records."""
        groups: dict[str, list[tuple[Run, str]]] = {}
        for run, target_id in runs:
            groups.setdefault(self._archived[run.experiment_id], []).append((run, target_id))
        return [result for home, some in groups.items() for result in self._at(home).link_runs(some, ids)]

    def after_deletions(self) -> list[EntityResult]:
        """Finish in every workspace what had to wait until runs and experiments are deleted."""
        return [result for target in self._targets.values() for result in target.after_deletions()]

    def close(self) -> None:
        """Stop the threads. Requests under way are finished first."""
        for target in (self._default, *self._targets.values()):
            target.close()
