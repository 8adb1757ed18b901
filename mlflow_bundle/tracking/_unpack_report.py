"""What an unpack did, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow_bundle._html import Shown
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._entities import EntityOutcome
from mlflow_bundle.tracking._plan import Action

__all__ = ["ExperimentOutcome", "UnpackReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentOutcome:
    """Where an archived experiment went. ``runs`` are those selected from it."""

    source_id: str
    id: str | None
    name: str
    action: Action
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackReport(Shown):
    """What an unpack did. A run counts as restored when it was read back from the target and compared without a difference.

    ``runs_planned`` are those that a dry run would restore. ``run_ids`` maps archived ids to those at the target.
    ``entities`` has the counts of every other kind, ``ids`` their archived ids and those at the target, by kind.
    Sizes are bytes; ``seconds`` is wall time.
    """

    bundle: str
    snapshot: str
    target: str
    target_kind: str
    dry_run: bool
    experiments: tuple[ExperimentOutcome, ...]
    runs_selected: int
    runs_restored: int = 0
    runs_already_there: int = 0
    runs_failed: int = 0
    runs_planned: int = 0
    metric_points: int = 0
    files: int = 0
    file_bytes: int = 0
    run_ids: Mapping[str, str] = field(default_factory=dict)
    entities: tuple[EntityOutcome, ...] = ()
    ids: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
