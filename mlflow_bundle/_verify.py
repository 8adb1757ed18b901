"""Verification: every check yields problems as data (spec/v1.md, section 11)."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import Committed
from mlflow_bundle._storage import Storage
from mlflow_bundle.records import Problem

__all__ = ["Report", "verify_snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification found."""

    problems: tuple[Problem, ...]


def verify_snapshot(
    storage: Storage,
    committed: Committed,
    *,
    level: str = "full",
    subset: tuple[int, int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    raise NotImplementedError
