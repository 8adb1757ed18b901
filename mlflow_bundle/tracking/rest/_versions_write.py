"""Versions of registered models and prompts at a server, with the numbers that they had.

A server numbers versions itself and never gives a number twice, not even that of a deleted version, which nobody is shown.
Gaps are filled with placeholders that are deleted at once. Numbers are kept exactly: a version whose number is used up at the
target is left out, and reported. Where the last versions of the target are deleted ones, only a try tells the next number, and
the number of that try is used up too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from msgspec import UNSET

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import KeyValue, ModelVersion
from mlflow_bundle.kinds import record_id
from mlflow_bundle.tracking._port import DIFFERS, SOURCE_TAG_PREFIX, EntityResult, IdMap, OpenBlob, PlannedEntity
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._expected import COMPLETE, DIGEST_TAG, RESTORE_TAG, STARTED, completion
from mlflow_bundle.tracking.rest._once import create_once, delete_once
from mlflow_bundle.tracking.rest._registry_common import (
    PROMPT_TAG,
    RESERVED_ALIAS,
    Answer,
    Registry,
    TargetModel,
    aliases_of,
    as_list,
)
from mlflow_bundle.tracking.rest._road import SOURCE_BUNDLE, Server, not_restored, tag_map
from mlflow_bundle.tracking.rest._version_source import VersionSources

__all__ = ["LAST_VERSION", "VersionWriter"]

#: A tag of the registered model: the number of its last version, where that is a deleted one and nobody is shown it.
LAST_VERSION: Final = SOURCE_TAG_PREFIX + "last_version"
_PLACEHOLDER: Final = "placeholder"
#: The state of a version that may get a number which is not its own, and is deleted then. No version keeps it, so that no user
#: copies it, and what has it may be deleted.
_TRYING: Final = "trying"
_PLACEHOLDER_SOURCE: Final = "s3://mlflow-bundle/placeholder"
_PROMPT_SOURCE: Final = "prompt-template"
_DELETED: Final = "Deleted_Internal"
_NO_STAGES: Final = (UNSET, "", "None")
#: The archived id of the version, model and number: a user's copy of it in another model has its tags.
_SOURCE_VERSION: Final = SOURCE_TAG_PREFIX + "version"
#: What MLflow writes where a user copies a version; the copy has all tags of that.
_COPIED_FROM: Final = re.compile(r"models:/.+/\d+")
#: What says where an archived version lay.
_PLACES: Final = (SOURCE_TAG_PREFIX + "source", SOURCE_TAG_PREFIX + "run_id")
_TAKEN: Final = "version-taken"
_MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
_KEPT: Final = (
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


class _NoSourceError(Exception):
    """The logged model of a version is not at the target."""


@dataclass(slots=True)
class _Job:
    """A version on its way. ``made`` is the request that created it, empty where an earlier restore did."""

    model: TargetModel
    plan: PlannedEntity
    result: EntityResult
    tags: dict[str, str]
    made: dict[str, Any] = field(default_factory=dict)
    alive: bool = False

    @property
    def version(self) -> ModelVersion:
        """The archived record."""
        return cast("ModelVersion", self.plan.record)

    @property
    def deleted(self) -> bool:
        """Whether the archive has just its number."""
        return self.version.current_stage == _DELETED

    @property
    def staged(self) -> bool:
        """Whether it needs a second request that sets its stage."""
        return self.version.current_stage not in _NO_STAGES


class VersionWriter:
    """Restores the versions of ``models``, which are those at the target by archived id."""

    def __init__(self, server: Server, registry: Registry, models: MutableMapping[str, TargetModel]) -> None:
        self._server, self._registry, self._models = server, registry, models
        self._sources = VersionSources(server)

    def restore(self, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob) -> list[EntityResult]:
        """Create the versions of each model in the order of their numbers, several models at a time."""
        groups = [
            list(group) for _, group in itertools.groupby(planned, key=lambda plan: record_id(plan.record).rpartition("/")[0])
        ]
        one = partial(self._restore_group, ids=ids, open_blob=open_blob)
        found = list(bounded_map(self._server.executor, one, groups, self._server.window))
        results = [result for group in found for result in group]
        last = [group[-1] for group in found]
        self._check_aliases(last)
        for result in results:
            if result.action == "failed" and (model := self._models.get(result.source_id.rpartition("/")[0])):
                model.failed = True
        self.note_digests({result.source_id.rpartition("/")[0]: result for result in last})
        return results

    def note_digests(self, results: Mapping[str, EntityResult], *, at_last: bool = False) -> None:
        """Note of the registered models with these archived ids which content they have, once they have all their aliases;
        ``at_last`` also of those that do not get some, because the versions are not for this server."""

        def note(pair: tuple[str, EntityResult]) -> None:
            source, result = pair
            model = self._models.get(source)
            if model is None or model.failed or not model.digest or result.action == "failed":
                return
            if model.has_aliases or at_last:
                body = {"name": model.name, "key": DIGEST_TAG, "value": model.digest}
                self._server.guard(result, lambda: cast("None", self._server.post("registered-models/set-tag", body)))
                model.digest = ""

        for _ in bounded_map(self._server.executor, note, results.items(), self._server.window):
            pass

    def _restore_group(self, group: Sequence[PlannedEntity], *, ids: IdMap, open_blob: OpenBlob) -> list[EntityResult]:
        results = [EntityResult(kind="model_version", source_id=record_id(plan.record)) for plan in group]
        model = self._models.get(results[0].source_id.rpartition("/")[0])
        if model is None:
            return _all_failed(results, "its registered model was not restored")
        jobs = [_Job(model, plan, result, self._tags(plan, ids, result)) for plan, result in zip(group, results, strict=True)]
        guard = self._server.guard
        guard(results[0], lambda: self._look(model, jobs))
        if results[0].action == "failed":
            return _all_failed(results[1:], f"as {results[0].source_id}", before=results[:1])
        for job in jobs:
            guard(job.result, partial(self._restore, job, ids, open_blob))
        self._read_back(model, [job for job in jobs if job.alive and job.result.action != "failed"])
        guard(results[-1], lambda: self._forget(model))
        guard(results[-1], lambda: self._set_aliases(model, results[-1]))
        return results

    def _tags(self, plan: PlannedEntity, ids: IdMap, result: EntityResult) -> dict[str, str]:
        return {**self._registry.tags(cast("ModelVersion", plan.record), ids, _KEPT), _SOURCE_VERSION: result.source_id}

    def _look(self, model: TargetModel, jobs: Sequence[_Job]) -> None:
        """Find out which numbers are used. What an interrupted restore left unfinished is a placeholder from now on."""
        if model.next is not None:
            return
        model.there = self._registry.versions(model, [job.version.version for job in jobs] if "'" in model.name else ())
        model.used = max(model.used, *model.there, 0)
        archived = jobs[0].result.source_id.rpartition("/")[0]
        for number, found in list(model.there.items()):
            tags = tag_map(found.get("tags", []))
            is_left = tags.get(RESTORE_TAG) in (_PLACEHOLDER, _TRYING) and tags.get(SOURCE_BUNDLE) == self._server.bundle_id
            if is_left and not _is_copy(found) and not self._is_ours(found, f"{archived}/{number}"):
                model.there[number] = {}

    def _is_ours(self, found: Answer, source_id: str) -> bool:
        """Whether the version at the target is a restore of this archived one. Earlier releases of this tool noted the number
        alone, which a user's copy in another model may have as well."""
        tags = tag_map(found.get("tags", []))
        noted = tags.get(_SOURCE_VERSION)
        is_it = noted == source_id or (noted == source_id.rpartition("/")[2] and not _is_copy(found))
        return is_it and tags.get(SOURCE_BUNDLE) == self._server.bundle_id

    def _restore(self, job: _Job, ids: IdMap, open_blob: OpenBlob) -> None:
        """Make the version, unless its number is used up already."""
        model, number, result = job.model, job.version.version, job.result
        result.target_id = f"{model.name}/{number}"
        if found := model.there.get(number):
            tags = tag_map(found.get("tags", []))
            if not self._is_ours(found, result.source_id):
                self._leave_out(job, "the target has another version of this number; numbers are kept exactly")
            elif tags.get(RESTORE_TAG) == COMPLETE and tags.get(DIGEST_TAG, "") == job.plan.digest:
                result.action = "there"
            else:
                self._take_up(job, found, ids, open_blob)
        elif number <= model.used and job.deleted:
            result.action = "there"
        elif number <= model.used:
            self._leave_out(job, "its number was used up at the target by a version that is deleted; numbers are kept exactly")
        elif job.deleted:
            self._use_up(job)
        else:
            self._make(job, ids, open_blob)

    def _take_up(self, job: _Job, found: Answer, ids: IdMap, open_blob: OpenBlob) -> None:
        """Finish a version that an earlier restore left unfinished, or made of another snapshot."""
        tags, result = tag_map(found.get("tags", [])), job.result
        if job.deleted:
            result.action = "failed"
            result.problems.append(not_restored(result, "it is deleted in this snapshot; the target keeps the one that it has"))
            return
        job.alive = True
        at = {"name": job.model.name, "version": str(job.version.version)}
        for key, value in {RESTORE_TAG: STARTED, **job.tags}.items():
            # Where it lies cannot change: reading back finds that the archive says something else.
            if tags.get(key) != value and key not in _PLACES:
                self._server.post("model-versions/set-tag", {**at, "key": key, "value": value})
        if (found.get("description") or "") != (job.version.description or ""):
            body = {**at, "description": job.version.description or ""}
            self._server.post("model-versions/update", body, method="PATCH")
        if (found.get("current_stage") or "None") != (job.version.current_stage or "None"):
            self._set_stage(job)
        self._compare_place(job, found, ids, open_blob)
        if tags.get(RESTORE_TAG) == COMPLETE and result.action != "failed":
            result.notes.append("a model version of an earlier restore was brought up to date")

    def _compare_place(self, job: _Job, found: Answer, ids: IdMap, open_blob: OpenBlob) -> None:
        """Send the files of a version that is there to where it says that they are. It never says another place again."""
        if job.plan.files and not self._sources.is_carried(job.result.source_id, str(found.get("source", ""))):
            message = f"its files have no place: the one at the target names {found.get('source')!r}, which cannot be changed"
            job.result.problems.append(not_restored(job.result, message, code=DIFFERS))
            job.result.action = "failed"
            return
        where = self._sources.of(job.plan, job.version, job.result, ids, open_blob)
        is_elsewhere = where["source"] != found.get("source")
        job.made = self._without_model(job, where) if is_elsewhere and self._sources.is_dead(where) else where

    def _leave_out(self, job: _Job, message: str) -> None:
        job.result.problems.append(not_restored(job.result, message, code=_TAKEN))
        job.result.action, job.result.target_id = "left out", None

    def _make(self, job: _Job, ids: IdMap, open_blob: OpenBlob) -> None:
        """Create the version under its number, after placeholders for the free numbers below it."""
        model, wanted = job.model, job.version.version
        where = self._sources.of(job.plan, job.version, job.result, ids, open_blob)
        while True:
            # Where the next number is not known, this may be the wanted one. What turns out to be another is deleted.
            known = model.next is not None
            body = self._placeholder(model) if known and model.next != wanted else self._body(job, where, known=known)
            number = self._create(job, body)
            if number == wanted:
                job.made, job.alive = body, True
                if job.staged:
                    self._set_stage(job)
                return
            self._delete(model, number)
            if number > wanted:
                self._leave_out(job, f"the target would make it {number}; numbers are kept exactly")
                return

    def _use_up(self, job: _Job) -> None:
        """Create placeholders up to the number of a deleted version."""
        model, wanted = job.model, job.version.version
        while model.used < wanted:
            number = self._create(job, self._placeholder(model))
            if number >= wanted:
                # The placeholder tells that the number is used up until the tag does, or a version above it.
                model.there[number] = {}
                job.result.action = "restored" if number == wanted else "there"
                return
            self._delete(model, number)

    def _forget(self, model: TargetModel) -> None:
        """Delete the placeholders that stand for deleted versions."""
        left = [number for number, found in model.there.items() if not found]
        if left and max(left) == model.used:
            body = {"name": model.name, "key": LAST_VERSION, "value": str(model.used)}
            self._server.post("registered-models/set-tag", body)
        for number in left:
            self._delete(model, number)
            del model.there[number]

    # -- requests --------------------------------------------------------------------------------------------------

    def _create(self, job: _Job, body: dict[str, Any]) -> int:
        """Create the next version; its number."""
        model = job.model

        def find() -> Answer | None:
            for number, found in self._registry.versions(model, [model.used + 1]).items():
                if number > model.used and tag_map(found.get("tags", [])) == tag_map(body["tags"]):
                    return {"model_version": found}
            if self._sources.is_dead(body):
                raise _NoSourceError
            return None

        try:
            answer = create_once(self._server.client, "model-versions/create", body, find)
        except _NoSourceError:
            return self._create(job, self._without_model(job, body))
        except RefusedError:
            if self._sources.is_dead(body):
                return self._create(job, self._without_model(job, body))
            raise
        number = int(answer["model_version"]["version"])
        model.used, model.next = number, number + 1
        return number

    def _without_model(self, job: _Job, body: dict[str, Any]) -> dict[str, Any]:
        """The request of a version whose logged model is deleted, of which a server makes no version: it names its run."""
        message = f"its source {body['source']} is deleted or not at the target"
        if not body.get("run_id"):
            raise RefusedError(message, error_code=_MISSING, status=404)
        job.result.notes.append("versions of a logged model that is deleted name their run instead")
        body["source"] = self._sources.lost(body["run_id"])
        del body["model_id"]
        return body

    def _delete(self, model: TargetModel, number: int) -> None:
        body = {"name": model.name, "version": str(number)}
        delete_once(lambda: self._server.post("model-versions/delete", body, method="DELETE"))

    def _placeholder(self, model: TargetModel) -> dict[str, Any]:
        tags = {RESTORE_TAG: _PLACEHOLDER, SOURCE_BUNDLE: self._server.bundle_id}
        if model.prompt:
            tags[PROMPT_TAG] = "true"
        source = _PROMPT_SOURCE if model.prompt else _PLACEHOLDER_SOURCE
        return {"name": model.name, "source": source, "tags": as_list(tags)}

    def _body(self, job: _Job, where: Mapping[str, str], *, known: bool) -> dict[str, Any]:
        """The request that creates the version. It is whole with this one request, unless it has a stage, lacks a file, or
        might be deleted again, because its number is not the wanted one."""
        unfinished = [KeyValue(key=RESTORE_TAG, value=STARTED if known else _TRYING)]
        is_whole = known and not job.staged and job.result.action != "failed"
        state = completion(job.plan.digest) if is_whole else unfinished
        body: dict[str, Any] = {"name": job.model.name, "tags": [*as_list(job.tags), *state], **where}
        for name in ("description", "run_link"):
            if getattr(job.version, name):
                body[name] = getattr(job.version, name)
        return body

    def _set_stage(self, job: _Job) -> None:
        at = {"name": job.model.name, "version": str(job.version.version)}
        stage = {"stage": job.version.current_stage or "None", "archive_existing_versions": False}
        self._server.post("model-versions/transition-stage", {**at, **stage})

    # -- reading back ----------------------------------------------------------------------------------------------

    def _read_back(self, model: TargetModel, made: Sequence[_Job]) -> None:
        """Read all versions back, compare those that were made, and mark them complete."""
        if not made:
            return
        first = EntityResult(kind="model_version", source_id=made[0].result.source_id)
        self._server.guard(first, lambda: self._compare(model, made))
        if first.action == "failed":
            # What was not compared does not count.
            for job in made:
                job.result.action = "failed"
            made[0].result.problems += first.problems
            _all_failed([job.result for job in made[1:]], f"as {first.source_id}")

    def _compare(self, model: TargetModel, made: Sequence[_Job]) -> None:
        placeholders = [number for number, found in model.there.items() if not found]
        model.there = self._registry.versions(model, [job.version.version for job in made])
        model.there |= {number: {} for number in placeholders}
        for job in made:
            found = model.there.get(job.version.version, {})
            for message in _differences(job, found):
                job.result.problems.append(not_restored(job.result, message, code=DIFFERS))
                job.result.action = "failed"
            failed = job.result.action == "failed"
            there = tag_map(found.get("tags", []))
            at = {"name": model.name, "version": str(job.version.version)}
            for tag in [KeyValue(key=RESTORE_TAG, value=STARTED)] if failed else completion(job.plan.digest):
                if found and there.get(tag.key) != tag.value:
                    self._server.post("model-versions/set-tag", {**at, "key": tag.key, "value": tag.value})

    def _set_aliases(self, model: TargetModel, result: EntityResult) -> None:
        """The aliases of the model that name versions of this archive; one that is set to something else stays."""
        for alias in model.aliases:
            if model.set_aliases.get(alias.alias) == alias.version or RESERVED_ALIAS.fullmatch(alias.alias):
                continue
            if alias.alias in model.set_aliases and not model.is_old:
                result.notes.append(f"the model {model.name!r} keeps its own alias {alias.alias!r}")
            elif not model.there.get(alias.version):
                what = f"the alias {alias.alias!r} of {model.name!r} names version {alias.version}, which is not there"
                result.notes.append(what)
            else:
                body = {"name": model.name, "alias": alias.alias, "version": str(alias.version)}
                self._server.post("registered-models/alias", body)
                model.sent_aliases[alias.alias] = alias.version

    def _check_aliases(self, last: Sequence[EntityResult]) -> None:
        """Read the aliases back. What is missing is a problem of the last version of the model."""
        models = {result.source_id.rpartition("/")[0]: result for result in last}
        sent = {source: model for source in models if (model := self._models.get(source)) and model.sent_aliases}
        found = self._registry.models([model.name for model in sent.values()]) if sent else {}
        for source, model in sent.items():
            there = aliases_of(found.get(model.name, {}))
            for alias, version in model.sent_aliases.items():
                if there.get(alias) != version:
                    message = f"the alias {alias!r} of {model.name!r} is {there.get(alias)} instead of {version}"
                    models[source].problems.append(not_restored(models[source], message, code=DIFFERS))
                    models[source].action = "failed"


def _all_failed(results: Sequence[EntityResult], message: str, *, before: Sequence[EntityResult] = ()) -> list[EntityResult]:
    for result in results:
        result.action = "failed"
        result.problems.append(not_restored(result, message))
    return [*before, *results]


def _is_copy(found: Answer) -> bool:
    """Whether a user copied this version at the target from another one, with all its tags."""
    source = str(found.get("source", ""))
    return bool(_COPIED_FROM.fullmatch(source)) and tag_map(found.get("tags", [])).get(_PLACES[0]) != source


def _differences(job: _Job, found: Answer) -> list[str]:
    """What of the version is not at the target as it should be."""
    if not found:
        return ["it was not read back from the target"]
    version, tags = job.version, tag_map(found.get("tags", []))
    wanted: dict[str, tuple[Any, Any]] = {
        "description": (version.description or "", found.get("description") or ""),
        "run_link": (version.run_link or "", found.get("run_link") or ""),
        "current_stage": (version.current_stage or "None", found.get("current_stage") or "None"),
        **{name: (job.made[name], found.get(name)) for name in ("source", "run_id") if name in job.made},
        **{f"the tag {key!r}": (value, tags.get(key)) for key, value in job.tags.items()},
    }
    return [
        f"read back from the target: {what} is {actual!r:.60} instead of {expected!r:.60}"
        for what, (expected, actual) in wanted.items()
        if expected != actual
    ]
