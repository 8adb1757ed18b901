"""The registry of skills at a server: skills, and their versions with the numbers that they had.

A server numbers the versions of a skill itself and never gives a number twice, not even that of a deleted version, which it
shows to nobody. Gaps are filled with placeholders that are deleted at once. Numbers are kept exactly: a version whose number is
used up at the target is left out, and reported. Before a version is deleted its number becomes a tag of the skill, so that an
interrupted restore knows the next one. Where a skill was at the target before only a try tells that, and the number of that try
is used up too.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from mlflow_bundle.entities import Skill, SkillVersion
from mlflow_bundle.kinds import full_name, record_id
from mlflow_bundle.tracking._port import SOURCE_TAG_PREFIX, EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking.artifacts._own import own_location
from mlflow_bundle.tracking.rest._config_write import ConfigWriter
from mlflow_bundle.tracking.rest._expected import RESTORE_TAG, STARTED
from mlflow_bundle.tracking.rest._features import API3, Features, Workspaced
from mlflow_bundle.tracking.rest._listing import Answer
from mlflow_bundle.tracking.rest._once import create_once, delete_once, once
from mlflow_bundle.tracking.rest._road import Server, not_restored
from mlflow_bundle.tracking.rest._skill_content import Files, check_content, upload
from mlflow_bundle.tracking.rest._skills_read import skill_versions
from mlflow_bundle.tracking.rest._tagged_roads import OwnerRoad, VersionRoad, asked

__all__ = ["SkillRoad", "SkillVersionRoad"]

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ORGANIZATION: Final = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")
_NAME_CHARS: Final = 64
_REMOTE: Final = ("git", "oci", "zip")
_UPLOADED: Final = "mlflow"
#: What says where the content of a version is.
_CONTENT: Final = ("source_type", "source", "ref", "subpath", "digest")
_PLACEHOLDER: Final = {"source_type": "git", "source": "https://mlflow-bundle.invalid/placeholder.git", "status": "draft"}
#: A tag of the skill: the highest number of a version that was deleted here, which nobody is shown.
_LAST_VERSION: Final = SOURCE_TAG_PREFIX + "last_version"
_TAKEN: Final = "version-taken"


class SkillRoad(OwnerRoad):
    """Skills."""

    kind = "skill"
    registry = "skills"
    noun = "skill"

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        #: Skills that have been made just now, and so have no version.
        self.made: set[str] = set()

    def refusal(self, record: Skill, ids: IdMap) -> str | None:  # noqa: ARG002
        names = [(record.name, _NAME), *([(record.organization, _ORGANIZATION)] if record.organization else [])]
        if all(form.fullmatch(name) and len(name) <= _NAME_CHARS for name, form in names):
            return None
        return (
            "a server takes names of at most 64 small letters, digits and single hyphens,"
            " in names of organizations also periods, and no others"
        )

    def expected(self, record: Skill, ids: IdMap) -> Any:
        # What a restore noted of another server means nothing here.
        return super().expected(replace(record, tags=tuple(tag for tag in record.tags if tag.key != _LAST_VERSION)), ids)

    def request(self, wanted: Skill) -> dict[str, Any]:
        return {**super().request(wanted), "organization": wanted.organization}

    def create(self, wanted: Skill, result: EntityResult) -> None:
        super().create(wanted, result)
        self.made.add(full_name(wanted))


@dataclass(slots=True)
class _Numbers:
    """The numbers of the versions of a skill. No number up to ``last`` is free; ``exact``: all others are. ``noted`` is the
    one in the tag of the skill."""

    last: int = 0
    exact: bool = False
    noted: int = 0
    #: The versions that the target showed before this restore, and the placeholders that an interrupted one has left.
    shown: dict[int, Answer] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)


class SkillVersionRoad(VersionRoad):
    """Versions of skills. Those that were uploaded come with their files."""

    kind = "skill_version"
    essential = frozenset(_CONTENT)

    def __init__(self, server: Server, skills: SkillRoad, features: Features) -> None:
        super().__init__(server, skills)
        self._skills, self._features = skills, features
        self._numbers: dict[str, _Numbers] = {}
        #: What is being restored, by archived id.
        self._plans: dict[str, PlannedEntity] = {}
        self._open_blob: OpenBlob | None = None

    def restore(
        self, writer: ConfigWriter, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Restore the versions of each skill in the order of their numbers."""
        self._plans, self._open_blob = {record_id(plan.record): plan for plan in planned}, open_blob
        in_order = sorted(planned, key=lambda plan: int(getattr(plan.record, "version", 0)))
        results = {result.source_id: result for result in writer.restore(self, in_order, ids, open_blob, options)}
        return [results[record_id(plan.record)] for plan in planned]

    def line(self, record: SkillVersion) -> Hashable:
        return full_name(record)

    def kept(self, record: SkillVersion) -> tuple[str, ...]:
        return (*super().kept(record), *(("source",) if _is_uploaded(record) else ()))

    def bare(self, record: SkillVersion) -> Any:
        bare: SkillVersion = super().bare(record)
        return replace(bare, status=bare.status or "draft", source=UNSET if _is_uploaded(bare) else bare.source)

    def refusal(self, record: SkillVersion, ids: IdMap) -> str | None:  # noqa: ARG002
        if self.buried(record):
            return None
        if _is_uploaded(record):
            if record.subpath:
                return "it is a part of other content at its server, and there is no way to point at such content"
            if self._features.info.artifact_serving_enabled is False:
                return "it was uploaded, and this server keeps no files (--no-serve-artifacts)"
            plan = self._plans.get(record_id(record))
            if plan is not None and not plan.files:
                return "the archive has no files of it, and a server makes such a version of its files only"
        elif record.source_type not in _REMOTE or not record.source:
            return "a server wants to know a repository, an image or a ZIP file that it comes from"
        if record.version <= self._of(record).last:
            return "its number is used up at the target; numbers are kept exactly"
        return None

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _of(self, record: SkillVersion) -> _Numbers:
        """The numbers of the skill of a version."""
        name = full_name(record)
        if name not in self._numbers or (name in self._skills.made and not self._numbers[name].exact):
            self._numbers[name] = _Numbers(exact=True) if name in self._skills.made else self._asked(record)
        return self._numbers[name]

    def _asked(self, record: SkillVersion) -> _Numbers:
        place = self._skills.place(record)
        skill = asked(self.server, place)
        if skill is None:
            return _Numbers()
        shown = {int(one["version"]): one for one in self._shown(skill)}
        left = [number for number, one in shown.items() if one.get("source") == _PLACEHOLDER["source"]]
        tags = skill.get("tags", {})
        noted = int(tags[_LAST_VERSION]) if tags.get(_LAST_VERSION, "").isdecimal() else 0
        return _Numbers(max([noted, *shown]), tags.get(RESTORE_TAG) == STARTED, noted, shown, left)

    def _shown(self, skill: Answer) -> list[Answer]:
        """The versions of a skill that the target shows."""
        return skill_versions(Workspaced(None, self.server.client), skill)

    # -- requests --------------------------------------------------------------------------------------------------

    def create(self, wanted: SkillVersion, result: EntityResult) -> None:
        numbers = self._of(wanted)
        while numbers.left:
            self._delete(wanted, numbers, numbers.left[-1])
            numbers.left.pop()
        if self.buried(wanted):
            self._bury(wanted, numbers, result)
            return
        found = self._make(wanted, numbers, result)
        if found is None:
            why = "its number was used up at the target meanwhile or by a version that is deleted; numbers are kept exactly"
            result.problems.append(not_restored(result, why, code=_TAKEN))
            result.action = "left out"
            return
        self.tag(wanted, RESTORE_TAG, STARTED)
        self.advance(wanted, str(found["status"]))
        self.tag_missing(wanted, {RESTORE_TAG: STARTED})
        if _is_uploaded(wanted):
            uploaded = msgspec.structs.replace(wanted, source=str(found.get("source") or ""))
            store = self.server.open_store(own_location(uploaded) or "", result.source_id)
            check_content(store, self._plans[result.source_id].files, result)

    def _make(self, wanted: SkillVersion, numbers: _Numbers, result: EntityResult) -> Answer | None:
        """Make the version under its number, after placeholders for the free numbers below it; None where it is not free."""
        files = self._plans[result.source_id].files if _is_uploaded(wanted) and not self.buried(wanted) else ()
        while numbers.last < wanted.version:
            fills = numbers.exact and numbers.last + 1 != wanted.version
            if fills:
                found = self._send(wanted, _PLACEHOLDER, (), numbers)
            else:
                # Where the next number is not known, it may be another: a draft can be deleted.
                found = self._send(wanted, _body(wanted, certain=numbers.exact), files, numbers)
            if found["version"] == wanted.version and not fills:
                return found
            self._delete(wanted, numbers, found["version"], str(found["status"]))
        return None

    def _bury(self, wanted: SkillVersion, numbers: _Numbers, result: EntityResult) -> None:
        """Use up the number of a deleted version."""
        there = numbers.shown.get(wanted.version)
        if there is not None and there.get("source") != _PLACEHOLDER["source"]:
            body = _body(wanted, certain=False)
            if full_name(wanted) in self._skills.unfinished and all(there.get(name) == body[name] for name in body):
                self._delete(wanted, numbers, wanted.version)  # made by an interrupted restore
            else:
                result.action = "there"
                result.keeps(
                    f"the target keeps version {wanted.version} of {full_name(wanted)!r}, which the archive has as deleted"
                )
        elif wanted.version <= numbers.last or self._make(wanted, numbers, result) is None:
            result.action = "there"
        else:
            self._delete(wanted, numbers, wanted.version)
        if _is_uploaded(wanted) or wanted.tags:
            result.notes.append("files and tags of deleted versions of skills stay in the archive only")

    def _send(self, wanted: SkillVersion, body: dict[str, Any], files: Files, numbers: _Numbers) -> Answer:
        """Make the next version of the skill, once."""
        endpoint = f"{self._skills.place(wanted)}/versions"

        def find() -> Answer | None:
            shown = self._shown({"name": wanted.name, "organization": wanted.organization})
            new = [one for one in shown if one["version"] > numbers.last]
            return next((one for one in new if all(one.get(name) == value for name, value in body.items())), None)

        if files:
            assert self._open_blob is not None
            with upload(body, files, self._open_blob) as (content, headers):
                send = partial(self.server.client.post_bytes, API3 + endpoint, content.read(), headers=headers, retries=0)
                answer = once(lambda: msgspec.json.decode(send()), find)
        else:
            answer = create_once(self.server.client, endpoint, body, find, api=API3)
        numbers.last, numbers.exact = int(answer["version"]), True
        found: Answer = answer
        return found

    def _delete(self, wanted: SkillVersion, numbers: _Numbers, number: int, status: str = "draft") -> None:
        """Delete a version that is a draft, or was made active."""
        version = replace(wanted, version=number)
        if number > numbers.noted:
            self._skills.tag(wanted, _LAST_VERSION, str(number))
            numbers.noted = number
        if status == "active":
            self.change(version, {"status": "draft"})
        delete_once(lambda: self.server.post(self.place(version), {}, method="DELETE", api=API3))


def _is_uploaded(record: SkillVersion) -> bool:
    return record.source_type == _UPLOADED


def _body(wanted: SkillVersion, *, certain: bool) -> dict[str, Any]:
    """The request that makes the version; of a deleted one that no request can make, that of a placeholder."""
    if wanted.status == "deleted" and (wanted.source_type not in _REMOTE or not wanted.source):
        return _PLACEHOLDER
    names = ("digest",) if _is_uploaded(wanted) else _CONTENT
    body = {name: value for name in names if isinstance(value := getattr(wanted, name), str)}
    body["status"] = "active" if certain and wanted.status in ("active", "deprecated") else "draft"
    return body
