"""Registered models, prompts and their versions at a server, with the version numbers that they had.

A server numbers versions itself and never gives a number twice: gaps are filled with placeholders that are deleted at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from msgspec import UNSET

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Alias, KeyValue, ModelVersion, RegisteredModel
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import SOURCE_TAG_PREFIX, EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._expected import COMPLETE, RESTORE_TAG, STARTED, keep_earlier
from mlflow_bundle.tracking.rest._road import DIFFERS, SOURCE_BUNDLE, Server, not_restored, tag_map

__all__ = ["RegistryWriter"]

_PLACEHOLDER: Final = "placeholder"
_PLACEHOLDER_SOURCE: Final = "s3://mlflow-bundle/placeholder"
_PROMPT_TAG: Final = "mlflow.prompt.is_prompt"
_PROMPT_SOURCE: Final = "prompt-template"
_DELETED: Final = "Deleted_Internal"
_NO_STAGES: Final = (UNSET, "", "None")
_MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
_SOURCE_VERSION: Final = SOURCE_TAG_PREFIX + "version"
_MODEL_KEPT: Final = ("creation_timestamp", "last_updated_timestamp", "workspace")
_VERSION_KEPT: Final = (
    "version",
    "creation_timestamp",
    "last_updated_timestamp",
    "user_id",
    "status",
    "status_message",
    "source",
    "storage_location",
    "run_id",
)
_RUNS_OF_PROMPT: Final = "mlflow.prompt.associatedRunIds"
_EXPERIMENTS_OF_PROMPT: Final = "_mlflow_experiment_ids"
#: Where an id stands in the location of artifacts, and what follows the root of these.
_IN_MODEL: Final = re.compile(r"/(m-[0-9a-f]{32})/artifacts(/.*)?$")
_IN_RUN: Final = re.compile(r"/([0-9a-f]{32})/artifacts(/.*)?$")
_TAG_CHARS: Final = {"registered_model": 5_000, "model_version": 100_000}
_RESERVED_ALIAS: Final = re.compile(r"latest|v\d+", re.IGNORECASE)


@dataclass(slots=True)
class _Model:
    """A registered model at the target."""

    name: str
    prompt: bool
    created: bool
    aliases: tuple[Alias, ...] = ()
    there: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Job:
    """A version on its way."""

    model: _Model
    plan: PlannedEntity
    result: EntityResult
    ids: IdMap
    open_blob: OpenBlob

    @property
    def version(self) -> ModelVersion:
        """The archived record."""
        return cast("ModelVersion", self.plan.record)


class RegistryWriter:
    """Restores registered models, then their versions."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._models: dict[str, _Model] = {}

    def cannot_hold(self, record: RegisteredModel | ModelVersion) -> list[Problem]:
        """Tags that are longer than a server takes, and aliases that it reserves."""
        kind = str(record.__struct_config__.tag)
        reasons = [
            f"the tag {tag.key!r} is left out: it has {len(tag.value)} characters, the server takes {_TAG_CHARS[kind]}"
            for tag in record.tags
            if len(tag.value) > _TAG_CHARS[kind]
        ]
        if isinstance(record, RegisteredModel):
            reserved = [alias.alias for alias in record.aliases if _RESERVED_ALIAS.fullmatch(alias.alias)]
            reasons += [f"the alias {alias!r} is left out: the server reserves it" for alias in reserved]
        what = f"{kind.replace('_', ' ')} {record_id(record)}"
        return [Problem(code="cannot-hold", kind=kind, id=record_id(record), message=f"{what}: {why}") for why in reasons]

    def _tags(self, record: RegisteredModel | ModelVersion, *kept: str) -> dict[str, str]:
        """The tags that a server takes, and where the entity comes from."""
        chars = _TAG_CHARS[str(record.__struct_config__.tag)]
        tags = {tag.key: tag.value for tag in record.tags if len(tag.value) <= chars}
        ours = self._server.source_tags(record, *kept)
        keep_earlier(tags, ours)
        return tags | ours

    # -- registered models -----------------------------------------------------------------------------------------

    def restore_models(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each model, or complete the one of that name."""

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            self._restore_model(cast("RegisteredModel", plan.record), result, ids)
            ids.add("registered_model", result.source_id, result.target_id or result.source_id)

        return self._server.each("registered_model", planned, one)

    def _restore_model(self, model: RegisteredModel, result: EntityResult, ids: IdMap) -> None:
        tags = self._tags(model, *_MODEL_KEPT)
        tags |= _rewritten(tags, ids)
        found = self._registered(model.name)
        created = found is None
        if found is None:
            body: dict[str, Any] = {"name": model.name, "tags": _as_list(tags)}
            if isinstance(model.description, str):
                body["description"] = model.description
            self._server.post("registered-models/create", body)
        else:
            present = tag_map(found.get("tags", []))
            ours = present.get(SOURCE_BUNDLE) == self._server.bundle_id
            result.action = "there" if ours else "merged"
            for key, value in tags.items():
                if key not in present:
                    self._server.post("registered-models/set-tag", {"name": model.name, "key": key, "value": value})
                elif present[key] != value and not key.startswith(SOURCE_TAG_PREFIX):
                    result.notes.append(f"the registered model {model.name!r} keeps its own value of the tag {key!r}")
            if (found.get("description") or "") != (model.description or ""):
                result.notes.append(f"the registered model {model.name!r} keeps its own description")
        result.target_id = model.name
        prompt = any(tag.key == _PROMPT_TAG and tag.value.lower() == "true" for tag in model.tags)
        self._models[result.source_id] = _Model(model.name, prompt, created, model.aliases)
        self._compare_model(model, result, tags, created=created)

    def _registered(self, name: str) -> dict[str, Any] | None:
        try:
            answer = self._server.get("registered-models/get", {"name": name})
        except RefusedError as error:
            if error.error_code == _MISSING:
                return None
            raise
        return cast("dict[str, Any]", answer["registered_model"])

    def _compare_model(self, model: RegisteredModel, result: EntityResult, tags: Mapping[str, str], *, created: bool) -> None:
        found = self._registered(model.name) or {}
        present = tag_map(found.get("tags", []))
        missing = [key for key, value in tags.items() if key not in present or (created and present[key] != value)]
        if missing or (created and (found.get("description") or "") != (model.description or "")):
            what = f"the tags {', '.join(missing)}" if missing else "the description"
            result.problems.append(not_restored(result, f"{what} differ when read back", code=DIFFERS))
            result.action = "failed"

    # -- versions --------------------------------------------------------------------------------------------------

    def restore_versions(
        self, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, _: RestoreOptions
    ) -> list[EntityResult]:
        """Create the versions of each model in the order of their numbers, then set its aliases."""
        groups = [
            list(group) for _, group in itertools.groupby(planned, key=lambda plan: record_id(plan.record).rpartition("/")[0])
        ]

        def one(group: list[PlannedEntity]) -> list[EntityResult]:
            return self._restore_group(group, ids, open_blob)

        return [
            result for results in bounded_map(self._server.executor, one, groups, self._server.window) for result in results
        ]

    def _restore_group(self, group: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob) -> list[EntityResult]:
        results = [EntityResult(kind="model_version", source_id=record_id(plan.record)) for plan in group]
        model = self._models.get(results[0].source_id.rpartition("/")[0])
        if model is None:
            for result in results:
                result.action = "failed"
                result.problems.append(not_restored(result, "its registered model was not restored"))
            return results
        for plan, result in zip(group, results, strict=True):
            self._server.guard(result, partial(self._restore_version, _Job(model, plan, result, ids, open_blob)))
        self._server.guard(results[-1], lambda: self._set_aliases(model, results[-1]))
        return results

    def _restore_version(self, job: _Job) -> None:
        model, version, result = job.model, job.version, job.result
        result.target_id = f"{model.name}/{version.version}"
        deleted = version.current_stage == _DELETED
        found = None if model.created else self._version(model.name, version.version)
        tags = tag_map(found.get("tags", [])) if found else {}
        if found and tags.get(RESTORE_TAG) == _PLACEHOLDER:
            self._delete(model.name, version.version)
            if not deleted:
                result.problems.append(not_restored(result, "an interrupted restore has used its number up"))
                result.action = "failed"
            return
        if found and (tags.get(SOURCE_BUNDLE), tags.get(_SOURCE_VERSION)) != (self._server.bundle_id, str(version.version)):
            message = "the target has another version of this number; numbers are kept exactly"
            result.problems.append(not_restored(result, message, code="version-taken"))
            result.action = "left out"
            return
        if found and tags.get(RESTORE_TAG) == COMPLETE:
            model.there.add(version.version)
            result.action = "there"
            return
        if found is None:
            made = self._make(job, deleted=deleted)
            if not made or deleted:
                return
        self._finish(model, version, result)

    def _make(self, job: _Job, *, deleted: bool) -> bool:
        """Create the version under its number, after placeholders for the numbers below it that are free."""
        model, version, result = job.model, job.version, job.result
        body = self._placeholder(model) if deleted else self._body(job)
        while True:
            number = self._next(model, version.version, body)
            if number == version.version:
                break
            if number > version.version:
                self._delete(model.name, number)
                if deleted:
                    result.action = "there"
                    return True
                message = f"its number is used up at the target, which would make it {number}; numbers are kept exactly"
                result.problems.append(not_restored(result, message, code="version-taken"))
                result.action = "left out"
                return False
        if deleted:
            self._delete(model.name, version.version)
        return True

    def _next(self, model: _Model, wanted: int, body: Mapping[str, Any]) -> int:
        """Create the next version: the wanted one where its turn has come, else a placeholder that is deleted at once."""
        turn = max(model.there, default=0) + 1 if model.created else None
        placeholder = turn is not None and turn < wanted
        number = self._create(self._placeholder(model) if placeholder else body)
        if number < wanted:
            self._delete(model.name, number)
        model.there.add(number)
        return number

    def _create(self, body: Mapping[str, Any]) -> int:
        return int(self._server.post("model-versions/create", body)["model_version"]["version"])

    def _delete(self, name: str, version: int) -> None:
        self._server.post("model-versions/delete", {"name": name, "version": str(version)}, method="DELETE")

    def _placeholder(self, model: _Model) -> dict[str, Any]:
        tags = {RESTORE_TAG: _PLACEHOLDER, SOURCE_BUNDLE: self._server.bundle_id}
        if model.prompt:
            tags[_PROMPT_TAG] = "true"
        source = _PROMPT_SOURCE if model.prompt else _PLACEHOLDER_SOURCE
        return {"name": model.name, "source": source, "tags": _as_list(tags)}

    def _body(self, job: _Job) -> dict[str, Any]:
        """The request that creates the version, its references rewritten."""
        version, result, ids = job.version, job.result, job.ids
        tags = {**self._tags(version, *_VERSION_KEPT), RESTORE_TAG: STARTED}
        tags |= _rewritten(tags, ids)
        body: dict[str, Any] = {"name": job.model.name, "tags": _as_list(tags)}
        for name in ("description", "run_link"):
            if getattr(version, name):
                body[name] = getattr(version, name)
        if version.run_id:
            run = ids.find("run", version.run_id)
            if run is None:
                result.notes.append(f"versions keep the id of a run that was not restored, as {result.source_id}")
            body["run_id"] = run or version.run_id
        if job.plan.files:
            carrier = self._carry(job)
            return {**body, "source": f"models:/{carrier}", "model_id": carrier}
        return {**body, **self._source(str(version.source or ""), ids)}

    def _source(self, source: str, ids: IdMap) -> dict[str, str]:
        """Where the model of a version lies at the target."""
        if source.startswith("models:/m-"):
            model = ids.new("logged_model", source.removeprefix("models:/"))
            return {"source": f"models:/{model}", "model_id": model}
        if source.startswith("runs:/"):
            run, _, path = source.removeprefix("runs:/").partition("/")
            return {"source": f"runs:/{ids.new('run', run)}/{path}"}
        if (match := _IN_MODEL.search(source)) and (model := ids.find("logged_model", match[1]) or ""):
            info = self._server.get(f"logged-models/{model}", {"allow_deleted": "true"})["model"]["info"]
            return {"source": info["artifact_uri"] + (match[2] or ""), "model_id": model}
        if (match := _IN_RUN.search(source)) and (run := ids.find("run", match[1]) or ""):
            info = self._server.get("runs/get", {"run_id": run})["run"]["info"]
            return {"source": info["artifact_uri"] + (match[2] or ""), "run_id": run}
        return {"source": source}

    def _carry(self, job: _Job) -> str:
        """A logged model that holds the files of a version whose source was outside of all runs and logged models."""
        version = job.version
        tags = self._server.source_tags(version, "source", "version")
        body = {"experiment_id": "0", "name": _plain_name(version.name), "tags": _as_list(tags)}
        info = self._server.post("logged-models", body)["model"]["info"]
        store = self._server.open_store(info["artifact_uri"], info["model_id"])
        self._server.send_files(job.plan, job.result, store, job.open_blob)
        status = {"model_id": info["model_id"], "status": 2}
        self._server.post(f"logged-models/{info['model_id']}", status, method="PATCH")
        job.result.notes.append("versions with files of their own got a logged model in the experiment 0 that holds them")
        return str(info["model_id"])

    def _finish(self, model: _Model, version: ModelVersion, result: EntityResult) -> None:
        """Set the stage, read the version back, compare, and mark it complete."""
        at = {"name": model.name, "version": str(version.version)}
        if version.current_stage not in _NO_STAGES:
            stage = {"stage": version.current_stage, "archive_existing_versions": False}
            self._server.post("model-versions/transition-stage", {**at, **stage})
        model.there.add(version.version)
        found = self._version(model.name, version.version) or {}
        tags = tag_map(found.get("tags", []))
        own = [tag for tag in version.tags if not tag.key.startswith(SOURCE_TAG_PREFIX) and tag.key != RESTORE_TAG]
        rewritten = (_RUNS_OF_PROMPT, _EXPERIMENTS_OF_PROMPT)
        wanted: dict[str, tuple[Any, Any]] = {
            "description": (version.description or "", found.get("description") or ""),
            "run_link": (version.run_link or "", found.get("run_link") or ""),
            "current_stage": (version.current_stage or "None", found.get("current_stage") or "None"),
            **{
                f"the tag {tag.key!r}": (tag.value, tags.get(tag.key))
                for tag in own
                if len(tag.value) <= _TAG_CHARS["model_version"] and tag.key not in rewritten
            },
        }
        for what, (expected, actual) in wanted.items():
            if expected != actual:
                message = f"read back from the target: {what} is {actual!r:.60} instead of {expected!r:.60}"
                result.problems.append(not_restored(result, message, code=DIFFERS))
                result.action = "failed"
        if result.action != "failed":
            self._server.post("model-versions/set-tag", {**at, "key": RESTORE_TAG, "value": COMPLETE})

    def _version(self, name: str, version: int) -> dict[str, Any] | None:
        try:
            answer = self._server.get("model-versions/get", {"name": name, "version": str(version)})
        except RefusedError as error:
            if error.error_code == _MISSING:
                return None
            raise
        return cast("dict[str, Any]", answer["model_version"])

    def _set_aliases(self, model: _Model, result: EntityResult) -> None:
        """The aliases of the model that name versions of this archive; one that is set to something else stays."""
        found = self._registered(model.name) or {}
        there = {alias["alias"]: int(alias["version"]) for alias in found.get("aliases", [])}
        for alias in model.aliases:
            if _RESERVED_ALIAS.fullmatch(alias.alias) or there.get(alias.alias) == alias.version:
                continue
            if alias.alias in there:
                result.notes.append(f"the model {model.name!r} keeps its own alias {alias.alias!r}")
            elif self._version(model.name, alias.version) is None:
                result.notes.append(
                    f"the alias {alias.alias!r} of {model.name!r} names version {alias.version}, which is not there"
                )
            else:
                body = {"name": model.name, "alias": alias.alias, "version": str(alias.version)}
                self._server.post("registered-models/alias", body)


def _as_list(tags: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value) for key, value in tags.items()]


def _rewritten(tags: Mapping[str, str], ids: IdMap) -> dict[str, str]:
    """The tags of a prompt that hold ids, with those of the target; the old texts go into source tags."""
    changed = {}
    if _RUNS_OF_PROMPT in tags:
        changed[_RUNS_OF_PROMPT] = ",".join(ids.new("run", run) for run in tags[_RUNS_OF_PROMPT].split(","))
    if _EXPERIMENTS_OF_PROMPT in tags:
        parts = tags[_EXPERIMENTS_OF_PROMPT].split(",")
        changed[_EXPERIMENTS_OF_PROMPT] = ",".join(ids.new("experiment", part) if part else "" for part in parts)
    return changed | {SOURCE_TAG_PREFIX + "tags." + key: tags[key] for key in changed}


def _plain_name(name: str) -> str:
    """A name that a logged model may have."""
    return re.sub(r"[/:.%\"']", "_", name)
