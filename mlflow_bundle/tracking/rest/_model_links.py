"""The logged models that runs of a server have read and made, and runs that are written to after they were restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import cast

from mlflow_bundle.entities import Run
from mlflow_bundle.tracking._port import DIFFERS, EntityResult, IdMap, PlannedEntity
from mlflow_bundle.tracking.rest._road import Server, not_restored

__all__ = ["ModelLinks", "WritableRuns"]


@dataclass(slots=True)
class _Run:
    lock: Lock = field(default_factory=Lock)
    deleted: bool | None = None
    metrics: frozenset[str] = frozenset()
    users: int = 0


class WritableRuns:
    """Runs that are written to by several threads: a deleted one takes nothing, so it is active meanwhile."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = Lock()
        self._known: dict[str, _Run] = {}

    @contextmanager
    def writable(self, run_id: str, *, deleted: bool | None = None) -> Iterator[frozenset[str]]:
        """Hold a run open. ``deleted`` says what it is, where that is known; else the run is asked for, and the names of the
        metrics that it had then are given."""
        with self._lock:
            run = self._known.setdefault(run_id, _Run(deleted=deleted))
        with run.lock:
            if run.deleted is None:
                found = self._server.get("runs/get", {"run_id": run_id})["run"]
                run.deleted = found["info"].get("lifecycle_stage") == "deleted"
                run.metrics = frozenset(metric["key"] for metric in found.get("data", {}).get("metrics", []))
            if run.deleted and not run.users:
                self._server.post("runs/restore", {"run_id": run_id})
            run.users += 1
        try:
            yield run.metrics
        finally:
            with run.lock:
                run.users -= 1
                if run.deleted and not run.users:
                    self._server.post("runs/delete", {"run_id": run_id})


class ModelLinks:
    """Restores the inputs and outputs of runs that name logged models."""

    def __init__(self, server: Server, runs: WritableRuns) -> None:
        self._server, self._runs = server, runs

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs the model inputs and outputs of their records, as far as they do not have them."""
        planned = {run.run_id: target for run, target in runs}

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            run = cast("Run", plan.record)
            result.target_id = planned[run.run_id]
            self._link(run, result, ids)

        return self._server.each("run", [PlannedEntity(record=run) for run, _ in runs], one)

    def _link(self, run: Run, result: EntityResult, ids: IdMap) -> None:
        target = str(result.target_id)
        there, deleted = self._links_of(target)
        inputs = {ids.new("logged_model", link.model_id) for link in run.model_inputs}
        outputs = {(ids.new("logged_model", link.model_id), link.step) for link in run.model_outputs}
        new_inputs, new_outputs = inputs - there[0], outputs - there[1]
        if not new_inputs and not new_outputs:
            return
        with self._runs.writable(target, deleted=deleted):
            if new_inputs:
                read = [{"model_id": model} for model in sorted(new_inputs)]
                self._server.post("runs/log-inputs", {"run_id": target, "models": read})
            if new_outputs:
                made = [{"model_id": model, "step": step} for model, step in sorted(new_outputs)]
                self._server.post("runs/outputs", {"run_id": target, "models": made})
        found, _ = self._links_of(target)
        if not (inputs <= found[0] and outputs <= found[1]):
            result.action = "failed"
            message = "its links to logged models were not all read back from the target"
            result.problems.append(not_restored(result, message, code=DIFFERS))

    def _links_of(self, run_id: str) -> tuple[tuple[set[str], set[tuple[str, int]]], bool]:
        """The models that the run has read and made, and whether it is deleted."""
        run = self._server.get("runs/get", {"run_id": run_id})["run"]
        inputs = {link["model_id"] for link in run.get("inputs", {}).get("model_inputs", [])}
        outputs = {(link["model_id"], int(link.get("step", 0))) for link in run.get("outputs", {}).get("model_outputs", [])}
        return (inputs, outputs), run["info"].get("lifecycle_stage") == "deleted"
