"""Where the files of runs, logged models, traces and versions lie, also when the whole store was moved to another place."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlflow_bundle.tracking._port import ArtifactStore
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.artifacts._local import LocalArtifacts, local_path
from mlflow_bundle.tracking.artifacts._own import NoArtifacts
from mlflow_bundle.tracking.filestore._layout import ARTIFACTS, TRASH

__all__ = ["Places"]

#: A location of a store is this many folders above that of an entity in it: experiment, and folder of the kind.
_ABOVE: Final = {"run": 3, "logged_model": 4, "trace": 4}


class Places:
    """Opens artifact stores. ``artifacts_destination`` is what ``mlflow-artifacts:`` stands for, ``storage_options`` are for
    fsspec."""

    def __init__(self, artifacts_destination: str | None, storage_options: Mapping[str, Any] | None) -> None:
        self._destination, self._options = artifacts_destination, storage_options
        self._own: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._gone: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def store(self, kind: str, identity: str, location: str, folder: str | None) -> ArtifactStore:
        """The files of an entity that says they lie at ``location`` and has ``folder`` in the store.

        MLflow writes absolute locations. Where that folder does not exist and the entity's own does, the store was moved.
        """
        own = None if folder is None else os.path.join(folder, ARTIFACTS)  # noqa: PTH118 - called for every run
        if own is not None and not location:
            return LocalArtifacts(own)
        if own is not None and (location.startswith("file:") or "://" not in location):
            named = os.path.normpath(local_path(location))
            if named in (own, own.replace(f"/{TRASH}/", "/", 1)):  # a deleted experiment is moved, its locations are not
                return LocalArtifacts(own)
            if not os.path.isabs(named) or not os.path.isdir(named):  # noqa: PTH112, PTH117
                if _is_home_of(named, own):
                    self._own[kind, _place(kind, named)].add(identity)
                    return LocalArtifacts(own)
                if not Path(_place(kind, named)).is_dir():
                    self._gone[kind, _place(kind, named)].add(identity)
        if not location:
            return NoArtifacts()
        return artifact_store(
            location,
            client=None,
            run_id=identity,
            artifacts_destination=self._destination,
            storage_options=self._options,
        )

    def notes(self) -> list[str]:
        """A sentence for each kind and place that does not exist here."""
        read = "their own folders in the file store were read instead"
        return [
            f"{kind.replace('_', ' ')} artifact folders below {place} are not on this machine ({len(ids):,} of them): {what}"
            for found, what in ((self._own, read), (self._gone, "nothing of them was archived"))
            for (kind, place), ids in sorted(found.items())
        ]


def _is_home_of(named: str, own: str) -> bool:
    """Whether the folder ``own`` stands for ``named``, which is not there: it has the same place, or holds files."""
    if not os.path.isdir(own):  # noqa: PTH112
        return False
    with os.scandir(own) as entries:
        return Path(named).parts[-2:] == Path(own).parts[-2:] or any(True for _ in entries)


def _place(kind: str, named: str) -> str:
    """The folder of the whole store that an artifact folder would lie in."""
    return str([Path(named), *Path(named).parents][: _ABOVE.get(kind, 0) + 1][-1])
