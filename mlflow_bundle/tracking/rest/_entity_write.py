"""All kinds beside experiments and runs at a server: which writer restores which kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Record, Run
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import CANNOT_HOLD, EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions, run_problem
from mlflow_bundle.tracking.rest._config_write import ConfigWriter, Road, WebhookRoad
from mlflow_bundle.tracking.rest._evaluation_write import EvaluationWriter
from mlflow_bundle.tracking.rest._features import TRACES_3, Features
from mlflow_bundle.tracking.rest._gateway_write import BudgetRoad, DefinitionRoad, EndpointRoad, GuardrailRoad, SecretRoad
from mlflow_bundle.tracking.rest._judges_write import JudgeWriter
from mlflow_bundle.tracking.rest._logged_models_write import LoggedModelWriter
from mlflow_bundle.tracking.rest._mcp_write import McpAccessRoad, McpServerRoad, McpVersionRoad
from mlflow_bundle.tracking.rest._registry_write import RegistryWriter
from mlflow_bundle.tracking.rest._releases import holdable, lacking, no_place, without
from mlflow_bundle.tracking.rest._road import Server
from mlflow_bundle.tracking.rest._skills_write import SkillRoad, SkillVersionRoad
from mlflow_bundle.tracking.rest._traces_write import TraceWriter

__all__ = ["EntityWriter"]

Restore = Callable[[Sequence[PlannedEntity], IdMap, OpenBlob, RestoreOptions], list[EntityResult]]


@dataclass(frozen=True, slots=True)
class _Road:
    restore: Restore
    cannot_hold: Callable[[Any], list[Problem]]


class EntityWriter:
    """Writes entities to a server by the road of their kind."""

    def __init__(self, server: Server, *, doomed_experiments: Callable[[], Collection[str]]) -> None:
        self._features = Features(
            server.client, lambda function, items: bounded_map(server.executor, function, items, server.window)
        )
        self._traces = TraceWriter(server, doomed_experiments=doomed_experiments)
        self._models = LoggedModelWriter(server)
        self._registry = registry = RegistryWriter(server)
        self._evaluation = evaluation = EvaluationWriter(server)
        self._roads = {
            "logged_model": _Road(self._models.restore, self._models.cannot_hold),
            "registered_model": _Road(registry.restore_models, registry.cannot_hold),
            "model_version": _Road(registry.restore_versions, registry.cannot_hold),
            "trace": _Road(self._traces.restore, self._traces.cannot_hold),
            "evaluation_dataset": _Road(evaluation.restore_datasets, evaluation.cannot_hold),
            "dataset_record": _Road(evaluation.restore_records, evaluation.cannot_hold),
            "label_schema": _Road(evaluation.restore_schemas, evaluation.cannot_hold),
            "review_queue": _Road(evaluation.restore_queues, evaluation.cannot_hold),
            "issue": _Road(evaluation.restore_issues, evaluation.cannot_hold),
        }
        secrets, self._mcp, self._skills = SecretRoad(server), McpServerRoad(server), SkillRoad(server)
        definitions = DefinitionRoad(server, secrets)
        self._endpoints = EndpointRoad(server, definitions)
        gateway: list[Road] = [secrets, definitions, self._endpoints, BudgetRoad(server), GuardrailRoad(server)]
        registry_of_mcp: list[Road] = [self._mcp, McpVersionRoad(server, self._mcp), McpAccessRoad(server, self._mcp)]
        writer = ConfigWriter(server)
        for road in (WebhookRoad(server), *gateway, *registry_of_mcp, self._skills):
            self._roads[road.kind] = _Road(partial(writer.restore, road), partial(writer.cannot_hold, road))
        versions = SkillVersionRoad(server, self._skills, self._features)
        self._roads[versions.kind] = _Road(partial(versions.restore, writer), partial(writer.cannot_hold, versions))
        judges = JudgeWriter(evaluation.restore_scorers, evaluation.cannot_hold, self._endpoints, writer)
        self._roads["scorer"] = _Road(judges.restore, judges.cannot_hold)

    def kinds(self) -> frozenset[str]:
        """The kinds that have a road and that the server offers. Traces by version 2 of the API would get new ids: none."""
        offered = self._features.offered
        return frozenset(self._roads) & (offered if TRACES_3 in offered else offered - {"trace"})

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the server has no place for, and would refuse, cut or alter."""
        kind, here = str(record.__struct_config__.tag), (self._features.offered, self._features.release)
        if reason := no_place(record, *here):
            return [_cannot_hold(kind, record, reason)]
        problems = [_cannot_hold(kind, record, reason) for reason in lacking(record, *here)]
        return [*problems, *self._roads[kind].cannot_hold(without(record, self._features.release))]

    def cannot_hold_run(self, run: Run) -> list[Problem]:
        """What of this run the server has no place for."""
        reasons = lacking(run, self._features.offered, self._features.release)
        return [run_problem(run.run_id, f"run {run.run_id}: {reason}") for reason in reasons]

    def without(self, run: Run) -> Run:
        """The run without what the server has no place for."""
        return without(run, self._features.release)

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """Why the experiment cannot have this record, because of another one of its name."""
        return self._evaluation.name_taken(record, experiment_id)

    def restore(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Write entities of one kind, as far as the server has a place for them."""
        here = (self._features.offered, self._features.release)
        results = {
            number: EntityResult(kind=kind, source_id=record_id(plan.record), action="left out")
            for number, plan in enumerate(planned)
            if no_place(plan.record, *here)
        }
        sent = [(number, holdable(plan, *here)) for number, plan in enumerate(planned) if number not in results]
        written = self._roads[kind].restore([plan for _, plan in sent], ids, open_blob, options)
        results.update(zip((number for number, _ in sent), written, strict=True))
        return [results[number] for number in range(len(planned))]

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs their logged models, where the server knows such links."""
        kept = [(self.without(run), target_id) for run, target_id in runs]
        linked = [(run, target_id) for run, target_id in kept if run.model_inputs or run.model_outputs]
        return self._models.link_runs(linked, ids)

    def after_deletions(self) -> list[EntityResult]:
        """Bind endpoints of the gateway to what uses them, mark what is complete now, and post the assessments that the
        deletion of runs and experiments would have taken away. Tell what came to nothing of models and datasets."""
        told = [*self._registry.finish(), *self._evaluation.finish()]
        registries = [*self._mcp.finish(), *self._skills.finish()]
        return [*told, *self._endpoints.bind(), *registries, *self._traces.after_deletions()]


def _cannot_hold(kind: str, record: Record, reason: str) -> Problem:
    identity = record_id(record)
    return Problem(code=CANNOT_HOLD, kind=kind, id=identity, message=f"{kind.replace('_', ' ')} {identity}: {reason}")
