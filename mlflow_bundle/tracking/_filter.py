"""MLflow's filter strings over records, evaluated by MLflow itself, so that they mean what they mean there."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from mlflow_bundle.errors import UsageError
from mlflow_bundle.records import Run

if TYPE_CHECKING:
    import mlflow.entities

__all__ = ["matching", "undecided"]

_RUN_NAME_TAG = "mlflow.runName"


def matching(runs: list[Run], latest_metrics: Mapping[str, Mapping[str, float]], filter_string: str) -> list[Run]:
    """The runs that an MLflow filter string selects, in their order.

    ``latest_metrics`` holds the latest value of each metric key by run id; a run that it lacks has no metrics.

    Raises:
        UsageError: the filter string is wrong; the message is MLflow's.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - costs a second, needed only here
    from mlflow.utils.search_utils import SearchUtils  # noqa: PLC0415

    try:
        _check(filter_string)
        entities = [_entity(run, latest_metrics.get(run.run_id, {})) for run in runs]
        chosen = {entity.info.run_id for entity in SearchUtils.filter(entities, filter_string)}
    except MlflowException as error:
        raise UsageError(f"wrong filter: {error.message}", hint="the syntax is that of mlflow.search_runs") from error
    except ValueError as error:
        raise UsageError(f"wrong filter {filter_string!r}: {error}") from error
    return [run for run in runs if run.run_id in chosen]


def undecided(runs: list[Run], filter_string: str) -> list[Run]:
    """Of runs whose metrics nobody knows, those that a filter string may or may not select: it asks for metrics, and they meet
    all of its other conditions. ``matching`` has accepted it."""
    from mlflow.utils.search_utils import SearchUtils  # noqa: PLC0415

    clauses = SearchUtils.parse_search_filter(filter_string)
    others = [clause for clause in clauses if clause["type"] != "metric"]
    if len(others) == len(clauses):
        return []
    meets = SearchUtils._does_run_match_clause  # noqa: SLF001 - the public way takes the text of a filter, not its clauses
    entities = ((run, _entity(run, {})) for run in runs)
    return [run for run, entity in entities if all(meets(entity, clause) for clause in others)]


def _check(filter_string: str) -> None:
    """Raise for every wrong clause, also for one that no run would reach."""
    from mlflow.utils.search_utils import SearchUtils  # noqa: PLC0415

    nobody = _entity(Run(run_id="", experiment_id=""), {})
    for clause in SearchUtils.parse_search_filter(filter_string):
        SearchUtils._does_run_match_clause(nobody, clause)  # noqa: SLF001 - the public way stops at the first clause that fails


def _entity(run: Run, latest: Mapping[str, float]) -> mlflow.entities.Run:
    from mlflow import entities  # noqa: PLC0415

    name = _or_none(run.run_name) or next((tag.value for tag in run.tags if tag.key == _RUN_NAME_TAG), None)
    info = SimpleNamespace(  # MLflow's own class refuses what databases hold: a run without user or start time
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        user_id=_or_none(run.user_id),
        status=_or_none(run.status),
        start_time=_or_none(run.start_time),
        end_time=_or_none(run.end_time),
        lifecycle_stage=run.lifecycle_stage,
        artifact_uri=_or_none(run.artifact_uri),
        run_name=name,
    )
    data = entities.RunData(
        metrics=[entities.Metric(key, value, 0, 0) for key, value in latest.items()],
        params=[entities.Param(param.key, param.value) for param in run.params],
        tags=[entities.RunTag(tag.key, tag.value) for tag in run.tags],
    )
    inputs = [
        entities.DatasetInput(
            entities.Dataset(found.dataset.name, found.dataset.digest, "", ""),
            [entities.InputTag(tag.key, tag.value) for tag in found.tags],
        )
        for found in run.inputs
    ]
    return entities.Run(info, data, entities.RunInputs(inputs))


def _or_none(value: Any) -> Any:
    return None if value is UNSET else value
