"""Which records a query means, for sources that look at each of them."""

from __future__ import annotations

from collections.abc import Callable

from mlflow_bundle.kinds import KINDS
from mlflow_bundle.records import Record
from mlflow_bundle.tracking._port import PARENTS, EntityQuery

__all__ = ["matches"]


def matches(kind: str, query: EntityQuery) -> Callable[[Record], bool]:
    """Whether a record of a kind meets all restrictions of the query."""
    known = KINDS[kind]
    ids = None if query.ids is None else frozenset(query.ids)
    experiments = None if query.experiment_ids is None else frozenset(query.experiment_ids)
    named = [
        frozenset((other, name) for name in names)
        for other, names in (("run", query.run_ids), (PARENTS.get(kind, ""), query.parents))
        if names is not None
    ]

    def meets(record: Record) -> bool:
        if ids is not None and known.identify(record) not in ids:
            return False
        if experiments is not None and experiments.isdisjoint(known.experiments(record)):
            return False
        return not named or all(not some.isdisjoint(known.references(record)) for some in named)

    return meets
