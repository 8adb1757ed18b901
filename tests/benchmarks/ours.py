"""The work that is measured, ready to begin. See ``child.py``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import mlflow_bundle

__all__ = ["pack", "unpack"]

Work = Callable[[], dict[str, Any]]


def _load(uri: str, way: str) -> None:
    """Import what the work will need. Only the REST road needs MLflow, so only that one pays for its memory."""
    road = "rest" if uri.startswith("http") else "database"
    importlib.import_module(f"mlflow_bundle.tracking.{road}._{way}")
    if road == "rest":
        importlib.import_module("mlflow")


def pack(**options: Any) -> Work:
    """``mlflow_bundle.pack``."""
    _load(options["tracking_uri"], "read")
    function = mlflow_bundle.pack

    def work() -> dict[str, Any]:
        report = function(**options)
        return {
            "counts": dict(report.counts),
            "points": report.counts["metric_point"],
            "runs": report.counts["run"],
            "file_bytes": report.counts["file_bytes"],
            "new_objects": report.new_objects,
            "state": report.state,
            "logical_root": report.logical_root,
        }

    return work


def unpack(**options: Any) -> Work:
    """``mlflow_bundle.unpack``."""
    _load(options["tracking_uri"], "write")
    function = mlflow_bundle.unpack

    def work() -> dict[str, Any]:
        report = function(**options)
        assert not report.problems, report.problems[:3]
        restored = {outcome.kind: outcome.restored for outcome in report.entities}
        return {"points": report.metric_points, "runs": report.runs_restored, "restored": restored}

    return work
