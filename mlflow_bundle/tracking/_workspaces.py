"""Where the content of archived workspaces goes at a target, and which names collide where several go into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from msgspec import UnsetType

__all__ = ["DEFAULT_WORKSPACE", "Homes", "Named"]

#: The workspace that every server has.
DEFAULT_WORKSPACE: Final = "default"


@dataclass(frozen=True, slots=True)
class Named:
    """An archived entity whose name is unique within a workspace. ``name`` is the one that it will have."""

    id: str
    name: str
    workspace: str | UnsetType

    @property
    def home(self) -> str:
        """The archived workspace."""
        return self.workspace or DEFAULT_WORKSPACE


@dataclass(frozen=True, slots=True)
class Homes:
    """The rule for workspaces at one target.

    ``offered``: whether the target has workspaces; where not, everything is in one place. ``wanted``: the workspace that
    everything goes into; None keeps every archived workspace.
    """

    wanted: str | None
    offered: bool

    def of(self, workspace: str | UnsetType) -> str:
        """The workspace at the target of what was in an archived one; empty where the target has none."""
        return (self.wanted or workspace or DEFAULT_WORKSPACE) if self.offered else ""

    def keeps(self, workspace: str) -> bool:
        """Whether an archived workspace is at the target under its own name."""
        return self.offered and self.of(workspace) == workspace

    def collisions(self, entities: Iterable[Named]) -> list[tuple[Named, Named]]:
        """(the one that cannot have its name, the one that has it): names that are unique in the archive and not at the target.

        The name stays with what comes from the workspace that everything goes into, else from the default one, else with the
        first.
        """
        groups: dict[tuple[str, str], list[Named]] = {}
        for entity in entities:
            groups.setdefault((self.of(entity.workspace), entity.name), []).append(entity)
        found = []
        for group in groups.values():
            if len(group) > 1:
                keeper = min(group, key=lambda one: (one.home != self.wanted, one.home != DEFAULT_WORKSPACE))
                found += [(one, keeper) for one in group if one is not keeper and one.home != keeper.home]
        return found
