"""Where the artifacts of restored experiments and runs lie, as a database says it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import LoggedModel, ModelVersion, SkillVersion, Trace
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Run
from mlflow_bundle.tracking.artifacts._local import local_path
from mlflow_bundle.tracking.database._connection import DatabaseUri

__all__ = ["Places", "same_place"]

_PROXY_SCHEME: Final = "mlflow-artifacts:"


def same_place(one: str, other: str) -> bool:
    """Whether two locations are one: a folder of this machine may be spelt as a path or as a ``file:`` URI."""
    first, second = (local_path(location) if location.startswith("file:") else location for location in (one, other))
    return first == second


class Places:
    """The rule for artifact locations at one target.

    With ``artifacts_destination`` a server will serve the database, and what lay behind a server stays at
    ``mlflow-artifacts:``. Everything else goes to ``<root>/<experiment id>/<run id>/artifacts``. ``root`` is None where nobody
    named one: locations then stay as they were, and no file can be written.
    """

    def __init__(self, uri: DatabaseUri, artifact_root: str | None, artifacts_destination: str | None) -> None:
        self._served = artifacts_destination is not None
        self.root: str | None = None
        if artifact_root is not None:
            self.root = artifact_root.rstrip("/") if "://" in artifact_root else _absolute(artifact_root)
        elif self._served:
            self.root = _PROXY_SCHEME
        elif uri.path is not None:
            self.root = str(uri.path.absolute().parent / "mlruns")

    def of_experiment(self, location: str | UnsetType, source_id: str, target_id: str) -> str | UnsetType:
        """The location of an experiment that has the id ``source_id`` in the archive."""
        kept = self._proxied(location, source_id, target_id)
        if kept is not None:
            return kept
        return location if self.root is None else f"{self.root}/{target_id}"

    def of_run(self, run: Run, target_id: str) -> str | UnsetType:
        """The location of an archived run in the experiment ``target_id``."""
        kept = self._proxied(run.artifact_uri, run.experiment_id, target_id)
        if kept is not None:
            return kept
        return run.artifact_uri if self.root is None else f"{self.root}/{target_id}/{run.run_id}/artifacts"

    @property
    def writes(self) -> bool:
        """Whether there is a place for files."""
        return self.root is not None

    @property
    def served(self) -> bool:
        """Whether a server will give out what lies behind ``mlflow-artifacts:``."""
        return self._served

    def of_model(self, model: LoggedModel, target_id: str) -> str | UnsetType:
        """The location of an archived logged model in the experiment ``target_id``."""
        return self._below(model.artifact_uri, model.experiment_id, target_id, f"models/{model.model_id}/artifacts")

    def of_trace(self, trace: Trace, target_id: str) -> str | UnsetType:
        """The location of an archived trace in the experiment ``target_id``. One without a location gets none."""
        if trace.artifact_uri is UNSET:
            return UNSET
        return self._below(trace.artifact_uri, trace.experiment_id, target_id, f"traces/{trace.trace_id}/artifacts")

    def of_version(self, version: ModelVersion, location: str) -> str:
        """The location of the files that an archived version of a registered model has for itself, at ``location`` so far."""
        kept = self._proxied(location, "", "")
        if kept is not None or self.root is None:
            return kept or location
        model = record_id(version).rpartition("/")[0]
        # Names may hold what no path can, and two workspaces one name.
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", version.name)[:64]
        return f"{self.root}/models/{readable}-{hashlib.sha256(model.encode()).hexdigest()[:12]}/{version.version}"

    def of_skill(self, version: SkillVersion) -> str | UnsetType:
        """The location of the content of an archived version of a skill, which MLflow gives out by its server only."""
        return self._proxied(version.source, "", "") or version.source

    def _below(self, location: str | UnsetType, source_id: str, target_id: str, path: str) -> str | UnsetType:
        kept = self._proxied(location, source_id, target_id)
        if kept is not None:
            return kept
        return location if self.root is None else f"{self.root}/{target_id}/{path}"

    def _proxied(self, location: str | UnsetType, source_id: str, target_id: str) -> str | None:
        """A location behind a server as it stays, with the experiment id of this target, without the name of the old server."""
        if not self._served or not location or not location.startswith(_PROXY_SCHEME):
            return None
        path = location.removeprefix(_PROXY_SCHEME)
        if path.startswith("//"):
            path = "/" + path[2:].partition("/")[2]
        parts = path.split("/")
        if source_id != target_id and parts[1:2] == [source_id]:
            parts[1] = target_id
        return _PROXY_SCHEME + "/".join(parts)


def _absolute(root: str) -> str:
    """A local root as it means the same from every working folder; ``mlflow-artifacts:`` and ``file:`` stay."""
    return root.rstrip("/") if root.startswith((_PROXY_SCHEME, "file:")) else str(Path(root).absolute())
