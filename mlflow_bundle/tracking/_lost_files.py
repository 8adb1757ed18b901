"""Entities without a single file, whose files may only be out of reach: on a disk that is not mounted, or deleted since."""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from mlflow_bundle._base import Base
from mlflow_bundle._text import plural
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._files import NOT_LISTED, Owner, problem_of
from mlflow_bundle.tracking.artifacts._local import local_path

__all__ = ["LostFiles"]

#: How far above the artifact location of an entity the place for the files of all lies.
_ROOTS: Final = {"run": 2, "logged_model": 3, "trace": 3}

_State = Literal["there", "empty", "absent"]


class LostFiles:
    """What is to be said of the entities of a pack that have no file. ``source`` is the kind of the source; ``base``, the
    snapshot that the pack builds on, knows which had some; ``destination`` is what ``mlflow-artifacts:`` stands for."""

    def __init__(self, source: str, base: Base | None, destination: str | None) -> None:
        self._source, self._base = source, base
        here = destination and (destination.startswith("file:") or "://" not in destination)
        self._destination = Path(local_path(str(destination))).absolute().as_uri() if here else None
        self._unlisted = {
            (problem.kind, problem.id)
            for problem in (base.committed.snapshot.problems if base else ())
            if problem.code == NOT_LISTED
        }
        self._states: dict[str, _State] = {}
        self._elsewhere: Counter[tuple[str, str]] = Counter()
        self._gone: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def look(self, owner: Owner) -> None:
        """Take the next entity without files. It is a problem where there were some and the folder of its experiment is not
        there, or empty: that may lie on a disk that is not mounted, or on another machine."""
        had = self._base is not None and self._base.has_files(owner.kind, owner.id)
        if had or (owner.kind, owner.id) in self._unlisted:
            folder = self._folder(owner, above=_ROOTS.get(owner.kind, 0) - 1)
            if folder and self._state(folder) != "there":
                why = f"nothing lies below {folder} any more; if it is gone for good, a full pack (--full) goes without"
                self.problems.append(problem_of(NOT_LISTED, owner, "", f"files of {owner.text}: {why}"))
            elif had:
                self._gone[owner.kind] += 1
            return
        root = self._folder(owner, above=_ROOTS.get(owner.kind, 0))
        if root and self._source != "file" and self._state(root) == "absent":  # a file store says it for itself
            self._elsewhere[owner.kind, root] += 1

    def notes(self) -> list[str]:
        """What may be missing without being an error."""
        return [
            *(
                f"the files of {_counted(kind, count)} lie below {root}, which does not exist on this machine: none were"
                " archived"
                for (kind, root), count in self._elsewhere.items()
            ),
            *(
                f"{_counted(kind, count)} had files in an earlier snapshot and {'have' if count > 1 else 'has'} none any more"
                for kind, count in self._gone.items()
            ),
        ]

    def _state(self, folder: str) -> _State:
        return self._states.get(folder) or self._states.setdefault(folder, _state(folder))

    def _folder(self, owner: Owner, *, above: int) -> str | None:
        """The folder here so far above the location of its files. Those of runs and logged models a server lists itself."""
        uri = getattr(owner.record, "artifact_uri", "") or ""
        served = self._source == "rest" and owner.kind != "trace"
        if self._destination is not None and uri.startswith("mlflow-artifacts:"):
            uri, served = f"{self._destination}/{urlsplit(uri).path.strip('/')}", False
        if served or owner.kind not in _ROOTS or not uri.startswith(("/", "file:")):
            return None
        place, *below = uri.rsplit("/", above + 1)
        return _local(place) if len(below) > above else None


_local: Final = lru_cache(local_path)


def _state(folder: str) -> _State:
    """Whether the folder is there, and has anything in it."""
    if not os.path.isdir(folder):  # noqa: PTH112
        return "absent"
    try:
        with os.scandir(folder) as entries:
            return "there" if next(entries, None) else "empty"
    except OSError:  # what is in it is a problem already, where anything is
        return "there"


def _counted(kind: str, count: int) -> str:
    return plural(count, kind.replace("_", " "))
