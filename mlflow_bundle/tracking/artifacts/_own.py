"""Files that belong to a version of a model or a skill itself, and a store for entities that have none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import BinaryIO, Final

from msgspec import UNSET

from mlflow_bundle.entities import ModelVersion, SkillVersion
from mlflow_bundle.errors import StorageError
from mlflow_bundle.tracking._port import FileInfo

__all__ = ["NoArtifacts", "own_location", "stored_location"]

_PLACE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:|/|\\\\")
#: The stage of deleted versions, of which a database keeps the number and little else.
_DELETED: Final = "Deleted_Internal"
_ELSEWHERE: Final = ("runs:", "models:")
#: What a skill has as the type of its source where the server keeps it.
_UPLOADED: Final = "mlflow"
_DEFAULT_WORKSPACE: Final = "default"


def own_location(version: ModelVersion | SkillVersion) -> str | None:
    """Where the version has files of its own; None where it has none.

    Most versions point into the artifacts of the run or the logged model that they name: those files are archived there. A
    prompt points nowhere. What lies anywhere else, also below a run that the version does not name, belongs to the version.
    Of skills, those have files that were uploaded to the server; the others name a repository, an image or a ZIP file.
    """
    if isinstance(version, SkillVersion):
        return version.source or None if version.source_type == _UPLOADED else None
    if version.current_stage == _DELETED:
        return None
    location = next((place for place in (version.storage_location, version.source) if isinstance(place, str) and place), "")
    if not _PLACE.match(location) or location.startswith(_ELSEWHERE):
        return None
    steps = re.split(r"[/\\]+", location)
    model = version.source.removeprefix("models:/") if isinstance(version.source, str) else ""
    named = [(owner, "artifacts") for owner in (version.run_id, model) if owner]
    return None if any(step in named for step in pairwise(steps)) else location


def stored_location(version: SkillVersion) -> str | None:
    """The same of a skill where no server stands between, which puts the name of the workspace before the path."""
    location = own_location(version)
    if location is None or version.workspace in (UNSET, "", _DEFAULT_WORKSPACE):
        return location
    scheme, _, path = location.partition(":")
    return f"{scheme}:/workspaces/{version.workspace}/{path.lstrip('/')}"


class NoArtifacts:
    """The store of an entity without files."""

    def walk(self) -> Iterator[FileInfo]:
        """Nothing."""
        return iter(())

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """
        Raises:
            StorageError: always.
        """
        raise StorageError(f"there is no file {path!r} here")

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """
        Raises:
            StorageError: always.
        """
        del content, size
        raise StorageError(f"there is no place for the file {path!r} here")
