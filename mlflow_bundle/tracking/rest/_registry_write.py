"""Registered models and prompts at a server: made, or completed where one of that name is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from mlflow_bundle.entities import ModelVersion, RegisteredModel
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    SOURCE_TAG_PREFIX,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking._references import EXPERIMENTS_OF_PROMPT, prompt_experiments
from mlflow_bundle.tracking.rest._expected import DIGEST_TAG, STARTED
from mlflow_bundle.tracking.rest._once import create_once
from mlflow_bundle.tracking.rest._registry_common import (
    RESERVED_ALIAS,
    Answer,
    Registry,
    TargetModel,
    aliases_of,
    as_list,
    is_prompt,
)
from mlflow_bundle.tracking.rest._road import SOURCE_BUNDLE, Server, not_restored, tag_map
from mlflow_bundle.tracking.rest._versions_write import LAST_VERSION, VersionWriter

__all__ = ["RegistryWriter"]

_KEPT: Final = ("creation_timestamp", "last_updated_timestamp", "workspace")
_NAME: Final = re.compile(r"[/:]")


class RegistryWriter:
    """Restores registered models, then their versions."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._registry = Registry(server)
        self._models: dict[str, TargetModel] = {}
        self._versions = VersionWriter(server, self._registry, self._models)
        #: Models whose versions were restored, and their aliases with these.
        self._with_versions: set[str] = set()

    def cannot_hold(self, record: RegisteredModel | ModelVersion) -> list[Problem]:
        """Names and tags that a server refuses, and aliases that it reserves."""
        kind = str(record.__struct_config__.tag)
        reasons = [
            f"the tag {tag.key!r} is left out: {why}" for tag in record.tags if (why := self._registry.refusal(kind, tag))
        ]
        if isinstance(record, RegisteredModel):
            reserved = [alias.alias for alias in record.aliases if RESERVED_ALIAS.fullmatch(alias.alias)]
            reasons += [f"the alias {alias!r} is left out: the server reserves it" for alias in reserved]
            if _NAME.search(record.name):
                reasons.append("the server takes no name with a slash or a colon")
        what = f"{kind.replace('_', ' ')} {record_id(record)}"
        return [Problem(code=CANNOT_HOLD, kind=kind, id=record_id(record), message=f"{what}: {why}") for why in reasons]

    def restore_models(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each model, bring the one that an earlier restore made up to date, or complete somebody else's."""
        models = {record_id(plan.record): cast("RegisteredModel", plan.record) for plan in planned}
        names = [model.name for model in models.values()]
        there = self._registry.models(names)
        tags = {source: self._registry.tags(model, ids, _KEPT) for source, model in models.items()}

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            model = cast("RegisteredModel", plan.record)
            found = there.get(model.name)
            for tag in model.tags:
                if tag.key == EXPERIMENTS_OF_PROMPT:
                    result.notes += prompt_experiments(tag.value, ids)[1]
            target = _target(model, found, plan.digest)
            if found is None:
                self._create(model, {**tags[result.source_id], **({DIGEST_TAG: STARTED} if plan.digest else {})})
            elif is_prompt(tag_map(found.get("tags", []))) != is_prompt(tags[result.source_id]):
                self._leave_out(result, prompt=target.prompt)
                return
            elif target.is_old:
                self._update(model, found, result, tags[result.source_id])
            else:
                self._merge(model, found, result, tags[result.source_id])
            result.target_id = model.name
            self._models[result.source_id] = target
            ids.add("registered_model", result.source_id, model.name)

        results = self._server.each("registered_model", planned, one)
        found = self._registry.models([models[result.source_id].name for result in results if result.target_id])
        for result in results:
            if result.target_id is not None:
                made = result.target_id not in there or self._models[result.source_id].is_old
                _compare(models[result.source_id], found.get(result.target_id, {}), result, tags[result.source_id], made)
        # Those that have other aliases are finished when these are set.
        self._versions.note_digests({result.source_id: result for result in results})
        return results

    def _create(self, model: RegisteredModel, tags: Mapping[str, str]) -> None:
        body: dict[str, Any] = {"name": model.name, "tags": as_list(tags)}
        if isinstance(model.description, str):
            body["description"] = model.description

        def find() -> Answer | None:
            return self._registry.model(model.name)

        create_once(self._server.client, "registered-models/create", body, find)

    def _leave_out(self, result: EntityResult, *, prompt: bool) -> None:
        what = "a prompt" if prompt else "a registered model that is no prompt"
        result.problems.append(not_restored(result, f"the target has {what} of this name", code="name-taken"))
        result.action = "left out"

    def _update(self, model: RegisteredModel, found: Answer, result: EntityResult, tags: Mapping[str, str]) -> None:
        """Give the model that an earlier restore made of another snapshot the tags and the description of this one."""
        present = tag_map(found.get("tags", []))
        for key, value in {DIGEST_TAG: STARTED, **tags}.items():
            if present.get(key) != value:
                self._server.post("registered-models/set-tag", {"name": model.name, "key": key, "value": value})
        if (found.get("description") or "") != (model.description or ""):
            body = {"name": model.name, "description": model.description or ""}
            self._server.post("registered-models/update", body, method="PATCH")
        if present[DIGEST_TAG] != STARTED:
            result.notes.append("a registered model of an earlier restore was brought up to date")

    def _merge(self, model: RegisteredModel, found: Answer, result: EntityResult, tags: Mapping[str, str]) -> None:
        """Add what the model at the target does not have; what it has stays."""
        present = tag_map(found.get("tags", []))
        for key, value in tags.items():
            if key not in present:
                self._server.post("registered-models/set-tag", {"name": model.name, "key": key, "value": value})
            elif present[key] != value and not key.startswith(SOURCE_TAG_PREFIX):
                result.notes.append(f"the registered model {model.name!r} keeps its own value of the tag {key!r}")
        if (found.get("description") or "") != (model.description or ""):
            result.notes.append(f"the registered model {model.name!r} keeps its own description")
        ours = present.get(SOURCE_BUNDLE) == self._server.bundle_id
        result.action = "there" if ours and not result.notes else "merged"

    def restore_versions(
        self, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, _: RestoreOptions
    ) -> list[EntityResult]:
        """Create the versions of each model in the order of their numbers, then set its aliases."""
        self._with_versions |= {record_id(plan.record).rpartition("/")[0] for plan in planned}
        return self._versions.restore(planned, ids, open_blob)

    def finish(self) -> list[EntityResult]:
        """Say of aliases of models without any version that they name none, and note that all was done that can be."""
        results = [EntityResult(kind="registered_model", source_id=source) for source in self._models]
        self._versions.note_digests({result.source_id: result for result in results}, at_last=True)
        results = [result for result in results if result.problems]
        for source, model in self._models.items():
            lost = [alias for alias in model.aliases if model.set_aliases.get(alias.alias) != alias.version]
            if source not in self._with_versions and lost:
                what = "the alias {!r} of {!r} names version {}, which is not there"
                told = [what.format(alias.alias, model.name, alias.version) for alias in lost]
                results.append(EntityResult(kind="registered_model", source_id=source, notes=told))
        self._models.clear()
        return results


def _target(model: RegisteredModel, found: Answer | None, digest: str) -> TargetModel:
    """What is known of the model at the target before its versions are looked at."""
    if found is None:
        prompt = is_prompt(tag_map(model.tags))
        return TargetModel(model.name, prompt, model.aliases, next=1, digest=digest)
    tags = tag_map(found.get("tags", []))
    used = int(tags.get(LAST_VERSION, 0))
    is_old = tags.get(DIGEST_TAG, digest) != digest
    target = TargetModel(model.name, is_prompt(tags), model.aliases, aliases_of(found), used=used, is_old=is_old)
    target.digest = digest if is_old else ""
    return target


def _compare(model: RegisteredModel, found: Answer, result: EntityResult, tags: Mapping[str, str], created: bool) -> None:
    """What was read back has to have everything; what was created has to be like the archive in everything."""
    present = tag_map(found.get("tags", []))
    missing = [key for key, value in tags.items() if key not in present or (created and present[key] != value)]
    what = [f"the tags {', '.join(missing)}"] if missing else []
    if created and (found.get("description") or "") != (model.description or ""):
        what.append("the description")
    if what:
        result.problems.append(not_restored(result, f"read back from the target: {' and '.join(what)} differ", code=DIFFERS))
        result.action = "failed"
