"""What servers of earlier releases have no place for: fields of records, and records that need what is not there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

import msgspec

from mlflow_bundle.entities import ModelVersion, Record, RegisteredModel
from mlflow_bundle.kinds import KINDS, PROMPT_TAG
from mlflow_bundle.tracking._port import PlannedEntity
from mlflow_bundle.tracking.artifacts._own import own_location

__all__ = ["FIELDS_SINCE", "OLDEST", "PROMPTS_SINCE", "Release", "holdable", "lacking", "no_place", "release_of", "without"]

Release = tuple[int, int]

#: The release that is assumed where a server does not name its own; they all do since 2.0.
OLDEST: Final[Release] = (1, 30)
#: Fields that records have, and the first release whose servers know them.
FIELDS_SINCE: Final[Mapping[str, Mapping[str, Release]]] = {
    "run": {"inputs": (2, 4), "model_inputs": (3, 0), "model_outputs": (3, 0)},
    "registered_model": {"aliases": (2, 3)},
    "trace": {
        "client_request_id": (3, 0),
        "request_preview": (3, 0),
        "response_preview": (3, 0),
        "assessments": (3, 0),
        "run_ids": (3, 3),
        "prompts": (3, 7),
    },
    "dataset_record": {"outputs": (3, 5)},
    "scorer": {"online": (3, 9)},
    "issue": {"metadata": (3, 18), "last_seen_timestamp": (3, 18), "last_updated_by": (3, 18)},
}
PROMPTS_SINCE: Final[Release] = (2, 21)
_LOGGED_MODEL: Final = "logged_model"
_NOTHING: Final = ("null", (), "")

AnyRecord = TypeVar("AnyRecord", bound=Record)


def release_of(version: str) -> Release:
    """(major, minor) of the release that a server names, the oldest that is supported where it names none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else OLDEST


def no_place(record: Record, offered: Collection[str], release: Release) -> str | None:
    """Why a server that offers these kinds has no place for this record at all, or None."""
    if not isinstance(record, RegisteredModel | ModelVersion):
        return None
    if release < PROMPTS_SINCE and any(tag.key == PROMPT_TAG and tag.value.lower() == "true" for tag in record.tags):
        return "it is left out: it is a prompt, and the server knows none (releases before 2.21)"
    references = KINDS[str(record.__struct_config__.tag)].references(record)
    models = [identity for kind, identity in references if kind == _LOGGED_MODEL]
    if models and _LOGGED_MODEL not in offered:
        return f"it is left out: it is made of the logged model {models[0]}, and the server knows none (releases before 3.0)"
    return None


def lacking(record: Record, offered: Collection[str], release: Release) -> list[str]:
    """What of this record a server has no place for, a sentence each."""
    found = []
    for field, since in _missing(record, release).items():
        if getattr(record, field) not in (_default(record, field), *_NOTHING):
            known = ".".join(map(str, since))
            name = f"{field.replace('_', ' ')} {'are' if field.endswith('s') else 'is'}"
            found.append(f"its {name} left out: the server knows none (releases before {known})")
    if isinstance(record, ModelVersion) and _LOGGED_MODEL not in offered and own_location(record) is not None:
        found.append("its files are left out: they are in no run, and the server has no logged models to hold them")
    return found


def holdable(plan: PlannedEntity, offered: Collection[str], release: Release) -> PlannedEntity:
    """The entity without what ``lacking`` names."""
    record = without(plan.record, release)
    files = () if isinstance(record, ModelVersion) and _LOGGED_MODEL not in offered else plan.files
    return plan if record is plan.record and files is plan.files else dataclasses.replace(plan, record=record, files=files)


def without(record: AnyRecord, release: Release) -> AnyRecord:
    """The record without the fields that servers of a release do not know."""
    fields = _missing(record, release)
    return msgspec.structs.replace(record, **{field: _default(record, field) for field in fields}) if fields else record


def _missing(record: Record, release: Release) -> dict[str, Release]:
    fields = FIELDS_SINCE.get(str(record.__struct_config__.tag), {})
    return {field: since for field, since in fields.items() if release < since}


def _default(record: Record, field: str) -> Any:
    return next(info.default for info in msgspec.structs.fields(record) if info.name == field)
