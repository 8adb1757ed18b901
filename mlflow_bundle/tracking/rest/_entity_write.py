"""All kinds beside experiments and runs at a server: which writer restores which kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_bundle.entities import Record, Run
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking.rest._evaluation_write import EvaluationWriter
from mlflow_bundle.tracking.rest._logged_models_write import LoggedModelWriter
from mlflow_bundle.tracking.rest._registry_write import RegistryWriter
from mlflow_bundle.tracking.rest._road import Server
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
        self._traces = TraceWriter(server, doomed_experiments=doomed_experiments)
        self._models = LoggedModelWriter(server)
        registry = RegistryWriter(server)
        evaluation = EvaluationWriter(server)
        self._roads = {
            "logged_model": _Road(self._models.restore, self._models.cannot_hold),
            "registered_model": _Road(registry.restore_models, registry.cannot_hold),
            "model_version": _Road(registry.restore_versions, registry.cannot_hold),
            "trace": _Road(self._traces.restore, self._traces.cannot_hold),
            "evaluation_dataset": _Road(evaluation.restore_datasets, evaluation.cannot_hold),
            "dataset_record": _Road(evaluation.restore_records, evaluation.cannot_hold),
            "scorer": _Road(evaluation.restore_scorers, evaluation.cannot_hold),
            "label_schema": _Road(evaluation.restore_schemas, evaluation.cannot_hold),
            "review_queue": _Road(evaluation.restore_queues, evaluation.cannot_hold),
            "issue": _Road(evaluation.restore_issues, evaluation.cannot_hold),
        }

    def kinds(self) -> frozenset[str]:
        """The kinds that have a road."""
        return frozenset(self._roads)

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the server would refuse, cut or alter."""
        return self._roads[str(record.__struct_config__.tag)].cannot_hold(record)

    def restore(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Write entities of one kind."""
        return self._roads[kind].restore(planned, ids, open_blob, options)

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs their logged models."""
        return self._models.link_runs(runs, ids)

    def after_deletions(self) -> list[EntityResult]:
        """Post the assessments that the deletion of runs and experiments would have taken away."""
        return self._traces.after_deletions()
