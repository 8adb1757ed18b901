"""Scorers that ask the gateway: they come after its endpoints, and not at all where the server will not have these."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from msgspec.structs import replace

from mlflow_bundle.entities import Scorer
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import CANNOT_HOLD, EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking.rest._config_write import ConfigWriter
from mlflow_bundle.tracking.rest._gateway_write import EndpointRoad
from mlflow_bundle.tracking.rest._road import not_restored

__all__ = ["JudgeWriter", "asked_endpoints"]

#: How a scorer names the endpoint that it asks.
_ASKS: Final = "gateway:/"

Restore = Callable[[Sequence[PlannedEntity], IdMap, OpenBlob, RestoreOptions], list[EntityResult]]


class JudgeWriter:
    """Restores scorers by the road of all scorers, those that ask the gateway with the endpoints of the target."""

    def __init__(
        self, restore: Restore, cannot_hold: Callable[[Scorer], list[Problem]], endpoints: EndpointRoad, writer: ConfigWriter
    ) -> None:
        self._restore, self._cannot_hold = restore, cannot_hold
        self._endpoints, self._writer = endpoints, writer

    def cannot_hold(self, record: Scorer) -> list[Problem]:
        """What a server refuses of any scorer, and endpoints that it will not have."""
        problems = [*self._cannot_hold(record), *self._missing(record)]
        if isinstance(record.scorer_id, str) and not problems:
            self._writer.predicted.add("scorer_id", record.scorer_id, record.scorer_id)
        return problems

    def _missing(self, record: Scorer) -> list[Problem]:
        asked = {name for version in self._named(record).versions for name in asked_endpoints(version.serialized_scorer)}
        missing = sorted(name for name in asked if not self._writer.expects(self._endpoints, name))
        result = EntityResult(kind="scorer", source_id=f"{record.experiment_id}/{record.scorer_name}")
        why = "it asks the endpoint {!r} of the gateway, which the target does not have"
        return [not_restored(result, why.format(name), code=CANNOT_HOLD) for name in missing]

    def _named(self, record: Scorer) -> Scorer:
        """The scorer as a server takes it: a database has the id of the endpoint where a server wants the name."""
        names = self._endpoints.names
        versions = []
        for version in record.versions:
            text = version.serialized_scorer
            for asked in asked_endpoints(text) & names.keys():
                text = text.replace(json.dumps(_ASKS + asked), json.dumps(_ASKS + names[asked]))
            versions.append(replace(version, serialized_scorer=text))
        return replace(record, versions=tuple(versions))

    def restore(
        self, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Restore those that ask nobody, or somebody who is there."""
        results: dict[int, EntityResult] = {}
        sent: dict[int, PlannedEntity] = {}
        for number, plan in enumerate(planned):
            record = cast("Scorer", plan.record)
            if missing := self._missing(record):
                identity = missing[0].id
                results[number] = EntityResult(kind="scorer", source_id=identity, action="left out", problems=missing)
            else:
                sent[number] = dataclasses.replace(plan, record=self._named(record))
        results.update(zip(sent, self._restore(list(sent.values()), ids, open_blob, options), strict=True))
        return [results[number] for number in range(len(planned))]


def asked_endpoints(serialized_scorer: str) -> set[str]:
    """The endpoints of the gateway that a scorer asks, by name or, in a database, by id."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict) and isinstance(model := value.get("model"), str) and model.startswith(_ASKS):
            found.add(model.removeprefix(_ASKS))
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                look(inner)

    look(json.loads(serialized_scorer))
    return found
