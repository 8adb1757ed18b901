"""What an unpack leaves out because what it belongs to is not at the target: never sent, always counted and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from mlflow_bundle.entities import Record
from mlflow_bundle.kinds import KINDS, Reference, full_name, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._gather import Gathered
from mlflow_bundle.tracking._port import PARENTS
from mlflow_bundle.tracking._workspaces import Homes, Named

__all__ = ["LeftOut", "name_collisions"]

#: Kinds that belong to an entity of another kind and cannot be without it.
_OWNERS: Final = {
    **PARENTS,
    "mcp_server_version": "mcp_server",
    "mcp_access_endpoint": "mcp_server",
    "skill_version": "skill",
}
#: Kinds whose names are unique within a workspace.
_NAMED: Final = ("registered_model", "gateway_model_definition", "gateway_endpoint", "mcp_server", "skill")


class LeftOut:
    """The entities that do not arrive at the target, and with them what belongs to them."""

    def __init__(self) -> None:
        self._gone: set[Reference] = set()

    def add(self, kind: str, identity: str) -> None:
        """This one does not arrive."""
        self._gone.add((kind, identity))

    def has(self, kind: str, identity: str) -> bool:
        """Whether this one does not arrive."""
        return (kind, identity) in self._gone

    def because_of(self, record: Record) -> Reference | None:
        """What this record belongs to and does not arrive, or that it is left out itself; None where it can be sent.

        An entity in several experiments is left out when none of them arrives.
        """
        if not self._gone:
            return None
        kind, identity = str(record.__struct_config__.tag), record_id(record)
        if (kind, identity) in self._gone:
            return kind, identity
        experiments = [("experiment", one) for one in KINDS[kind].experiments(record)]
        if experiments and all(one in self._gone for one in experiments):
            return experiments[0]
        owner = _OWNERS.get(kind)
        references = KINDS[kind].references(record) if owner else ()
        return next((one for one in references if one[0] == owner and one in self._gone), None)

    def problems(self, kind: str, counts: Counter[Reference]) -> Iterator[Problem]:
        """A problem for each reason that records of a kind are left out."""
        for (owner, identity), count in counts.items():
            if (owner, identity) in self._gone and owner != kind:
                yield Problem(
                    code="owner-left-out",
                    kind=kind,
                    message=f"{count:,} {kind} left out: the {owner} {identity!r} that it belongs to is",
                )


def name_collisions(gathered: Gathered, homes: Homes) -> list[Problem]:
    """One problem for each entity whose name another one has at the target, where several workspaces go into one."""
    problems = []
    for kind in _NAMED:
        if not gathered.counts.get(kind):
            continue
        named = [
            Named(record_id(record), str(full_name(record)), getattr(record, "workspace", UNSET))
            for record in gathered.records(kind)
        ]
        problems += [
            Problem(
                code="name-collision",
                kind=kind,
                id=one.id,
                message=(
                    f"the {kind.replace('_', ' ')} {one.name!r} of the workspace {one.home!r} is left out, because the one of"
                    f" the workspace {keeper.home!r} gets this name: restore it into another workspace"
                ),
            )
            for one, keeper in homes.collisions(named)
        ]
    return problems
