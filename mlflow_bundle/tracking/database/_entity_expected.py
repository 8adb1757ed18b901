"""What archived entities have to be in a database: references and places rewritten, nothing active that costs or tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle.entities import (
    GatewayEndpoint,
    GatewayModelDefinition,
    KeyValue,
    LoggedModel,
    ModelVersion,
    Record,
    RegisteredModel,
    Scorer,
    SkillVersion,
    Trace,
    Webhook,
)
from mlflow_bundle.tracking._port import EntityResult, IdMap, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking._references import EXPERIMENTS_OF_PROMPT, prompt_experiments
from mlflow_bundle.tracking._spans import ARCHIVED, IN_DATABASE
from mlflow_bundle.tracking._workspaces import Homes
from mlflow_bundle.tracking.artifacts._own import own_location, stored_location
from mlflow_bundle.tracking.database._connection import Connection, literals
from mlflow_bundle.tracking.database._derived import scorer_id_of
from mlflow_bundle.tracking.database._places import Places

__all__ = ["ExpectedEntities", "location_of"]

#: Locations in the artifacts of a logged model or a run, and how the database is asked where those lie.
_INSIDE: Final = (
    (
        re.compile(r"/(m-[0-9a-f]{32})/artifacts(/.*)?$"),
        "SELECT model_id, artifact_location FROM logged_models WHERE model_id IN {}",
    ),
    (re.compile(r"/([0-9a-f]{32})/artifacts(/.*)?$"), "SELECT run_uuid, artifact_uri FROM runs WHERE run_uuid IN {}"),
)
_LOCATIONS: Final = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("location", pa.string())])


def location_of(record: Record) -> str:
    """Where the files of a record lie; empty where it says nothing."""
    if isinstance(record, SkillVersion):
        return stored_location(record) or ""
    return getattr(record, "artifact_uri", UNSET) or getattr(record, "storage_location", UNSET) or ""


class ExpectedEntities:
    """The rules for one database."""

    def __init__(self, connection: Connection, places: Places, homes: Homes) -> None:
        self._db, self._places, self._homes = connection, places, homes
        #: Where the artifacts of logged models and runs lie here, by id, as far as versions of this batch are in them.
        self._locations: dict[str, str] = {}

    def look_up(self, planned: Iterable[PlannedEntity]) -> None:
        """Ask the database, all at once, where that lies which versions of registered models point into."""
        versions = [plan.record for plan in planned if isinstance(plan.record, ModelVersion)]
        places = [place for version in versions for place in _places_of(version)]
        self._locations = {}
        for pattern, sql in _INSIDE:
            if wanted := sorted({match[1] for place in places if (match := pattern.search(place))}):
                found = self._db.fetch(sql.format(literals(wanted)), _LOCATIONS)
                pairs = zip(*(column.to_pylist() for column in found.columns), strict=True)
                self._locations |= {identity: location for identity, location in pairs if location}

    def of(self, plan: PlannedEntity, result: EntityResult, ids: IdMap, options: RestoreOptions) -> Record:
        """The record as it has to read back. What is left out or switched off on purpose becomes a note of the result."""
        record = plan.record
        changes = _in_experiments(record, result, ids)
        if hasattr(record, "workspace"):
            changes["workspace"] = self._homes.of(record.workspace) or UNSET
        experiment = changes.get("experiment_id", "")
        if isinstance(record, LoggedModel):
            changes["artifact_uri"] = self._places.of_model(record, experiment)
        elif isinstance(record, Trace):
            changes["artifact_uri"] = self._places.of_trace(record, experiment)
            if record.spans_location == ARCHIVED:
                changes |= {"spans_location": IN_DATABASE, "archive_location": UNSET}
                result.notes.append("traces that were archived outside of the database have their spans in it again")
        elif isinstance(record, Webhook):
            changes["status"] = "DISABLED"
            if record.status != "DISABLED":
                result.notes.append("webhooks are restored disabled and without their secrets")
        elif isinstance(record, GatewayModelDefinition) and record.secret_id is not UNSET:
            changes["secret_id"] = UNSET
            result.notes.append("model definitions of the gateway are restored without their secrets: type them in again")
        elif isinstance(record, SkillVersion) and plan.files:
            changes["source"] = self._places.of_skill(record)
        elif isinstance(record, Scorer) and record.online and not options.online_scoring:
            changes["online"] = tuple(msgspec.structs.replace(one, sample_rate="0.0") for one in record.online)
            result.notes.append("online scoring is restored with sample rate 0 (--online-scoring restores the rates)")
        if isinstance(record, Scorer) and record.scorer_id is UNSET:
            changes["scorer_id"] = scorer_id_of(str(experiment or record.experiment_id), record.scorer_name)
        expected = msgspec.structs.replace(record, **changes)
        return self._version(expected, has_files=bool(plan.files)) if isinstance(expected, ModelVersion) else expected

    def _version(self, version: ModelVersion, *, has_files: bool) -> ModelVersion:
        """A version whose places follow the artifacts of the run or the logged model that they lie in.

        Files in neither never go back to where the source has them, which may be in use: they get a place of this target.
        """
        changes = {}
        for name in ("source", "storage_location"):
            value = getattr(version, name)
            if isinstance(value, str) and not value.startswith(("models:", "runs:")):
                changes[name] = self._moved(value)
        own = own_location(version) if has_files else None
        if own is not None:
            moved = self._moved(own)
            changes["storage_location"] = self._places.of_version(version, own) if moved == own else moved
        return msgspec.structs.replace(version, **changes)

    def _moved(self, location: str) -> str:
        for pattern, _ in _INSIDE:
            if (match := pattern.search(location)) and match[1] in self._locations:
                return self._locations[match[1]] + (match[2] or "")
        return location


def _places_of(version: ModelVersion) -> Iterator[str]:
    return (place for place in (version.source, version.storage_location) if isinstance(place, str))


def _in_experiments(record: Record, result: EntityResult, ids: IdMap) -> dict[str, Any]:
    """The members that name experiments, by their ids here. A link to one that is not restored would lead to a stranger."""
    changes: dict[str, Any] = {}
    if isinstance(one := getattr(record, "experiment_id", UNSET), str):
        changes["experiment_id"] = ids.find("experiment", one) or UNSET
    if isinstance(several := getattr(record, "experiment_ids", UNSET), tuple):
        changes["experiment_ids"] = tuple(sorted(filter(None, (ids.find("experiment", one) for one in several))))
        if len(changes["experiment_ids"]) < len(several):
            result.notes.append("links of evaluation datasets to experiments that are not restored are left out")
    elif isinstance(record, GatewayEndpoint) and record.experiment_id and changes["experiment_id"] is UNSET:
        result.notes.append("links of endpoints of the gateway to experiments that are not restored are left out")
    if isinstance(record, RegisteredModel):
        tags = {tag.key: tag.value for tag in record.tags}
        if listed := tags.get(EXPERIMENTS_OF_PROMPT):
            tags[EXPERIMENTS_OF_PROMPT], notes = prompt_experiments(listed, ids)
            changes["tags"] = tuple(KeyValue(key=key, value=value) for key, value in tags.items())
            result.notes += notes
    return changes
