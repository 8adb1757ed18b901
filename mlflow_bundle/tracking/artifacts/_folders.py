"""Which entities have a folder of files at all: the place of their folders is listed once, rather than each of them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Protocol, runtime_checkable

from mlflow_bundle.tracking._port import ArtifactStore

__all__ = ["Folders", "folders_of"]


@runtime_checkable
class _Listable(Protocol):
    """A store that can tell what lies at its root without looking further down."""

    def folders(self) -> frozenset[str] | None: ...


def folders_of(store: ArtifactStore) -> frozenset[str] | None:
    """The names of all that lies at the root of a store, in lower case; None where nobody can tell."""
    return store.folders() if isinstance(store, _Listable) else None


class Folders:
    """The folders in the places where entities keep theirs: ``<place>/<id>`` or below. Each place is listed once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: dict[str, frozenset[str] | None] = {}

    def lack(self, location: str, identity: str, open_store: Callable[[str], ArtifactStore]) -> bool:
        """Whether there is surely no folder for the entity with this id, whose files should lie at ``location``.
        ``open_store`` opens the store at a place."""
        place, found, below = location.partition(f"/{identity}")
        if not found or below[:1] not in ("", "/"):
            return False
        with self._lock:
            if place not in self._known:
                self._known[place] = folders_of(open_store(place))
            there = self._known[place]
        return there is not None and identity.casefold() not in there
