"""The configuration of a server is restored by one mechanism: find, create or complete, read back with the reader, compare.

Most of it has no tags, so that what an archived entity became is known by its name, or by being equal in everything. A road
says for one kind what makes two entities the same and which requests make one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._redact import REDACTED
from mlflow_bundle.entities import Record, Webhook
from mlflow_bundle.errors import NotFoundError, ServerError
from mlflow_bundle.kinds import order_key, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._compare import record_differences
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    EntityQuery,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking._rest import API, RefusedError
from mlflow_bundle.tracking.rest._config_read import ConfigurationReader
from mlflow_bundle.tracking.rest._features import SourceServer, Workspaced
from mlflow_bundle.tracking.rest._once import create_once
from mlflow_bundle.tracking.rest._road import Server, not_restored

__all__ = ["ConfigWriter", "Road", "WebhookRoad", "given_anew"]

_TAKEN: Final = "name-taken"
_MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
_NOT_IMPLEMENTED: Final = 501
_TIMES: Final = frozenset({"created_at", "last_updated_at", "creation_timestamp", "last_updated_timestamp"})
_USERS: Final = frozenset({"created_by", "last_updated_by"})


class Road:
    """How the entities of one kind are restored. Here is what holds for kinds of which nothing special is to be said.

    ``given`` are members that a server gives itself, ``mild`` those that differ without consequences where an entity was at
    the target already, and ``essential`` those by which one of the same name is another thing.
    """

    kind: ClassVar[str]
    given: ClassVar[frozenset[str]] = _TIMES | {"workspace"}
    mild: ClassVar[frozenset[str]] = _USERS
    essential: ClassVar[frozenset[str]] = frozenset()
    #: What a note says that a server gives anew, empty where tags carry it.
    anew: ClassVar[str] = "ids and times"
    #: Whether a restore can make such an entity at all.
    makes: ClassVar[bool] = True

    def __init__(self, server: Server) -> None:
        self.server = server
        #: Searches the target for an entity that no other one has become.
        self.look: Callable[[Road, Any], Record | None] = lambda *_: None

    def key(self, record: Any) -> Hashable:
        """What tells entities of this kind at the target apart."""
        return str(record.name)

    def refusal(self, record: Any, ids: IdMap) -> str | None:  # noqa: ARG002
        """Why the server cannot have this entity, or None. ``ids`` has what of the kinds before will be there."""
        return None

    def buried(self, record: Any) -> bool:  # noqa: ARG002
        """Whether the entity is one that a server does not show: it is restored by ``create`` and not read back."""
        return False

    def expected(self, record: Any, ids: IdMap) -> Any:  # noqa: ARG002
        """The record as it has to be read back, references rewritten. Raises NotFoundError: one of these is not there."""
        return record

    def bare(self, record: Any) -> Any:
        """The record without what a server gives anew, everything in one spelling."""
        return given_anew(record, self.given)

    def seen(self, wanted: Any, found: Any) -> Any:
        """What of the entity at the target is compared: tags that it has besides are nobody's business. Both are bare."""
        if not hasattr(wanted, "tags"):
            return found
        names = {tag.key for tag in wanted.tags}
        return replace(found, tags=tuple(tag for tag in found.tags if tag.key in names))

    def create(self, wanted: Any, result: EntityResult) -> None:
        """Make the entity."""
        raise NotImplementedError

    def complete(self, wanted: Any, found: Any) -> bool:  # noqa: ARG002
        """Add what the entity at the target lacks; what it has otherwise stays. Returns whether anything was sent."""
        return False

    def settle(self, wanted: Any, result: EntityResult) -> None:
        """Do what follows once the entity is at the target as it should be."""

    def line(self, record: Any) -> Hashable:
        """Entities of one line are made one after the other, in the order in which they are given."""
        return record_id(record)

    def make(self, endpoint: str, body: Mapping[str, Any], wanted: Any, *, api: str = API) -> Any:
        """Send the request that makes the entity, once: where its answer is lost, the target is searched for the entity.

        Returns the answer, or the record that was found.
        """
        return create_once(self.server.client, endpoint, body, lambda: self.look(self, wanted), api=api)


@dataclass(slots=True)
class _Job:
    """An entity on its way. ``found`` is what the target has for it."""

    record: Record
    result: EntityResult
    wanted: Any = None
    found: Any = None
    was_there: bool = False
    open: bool = True


class _Place(SourceServer):
    """The server or workspace that is written to, for the reader of its configuration, with the threads of the target or, in
    one of these, without any."""

    def __init__(self, server: Server, *, in_thread: bool = False) -> None:
        super().__init__(server.client, threads=1)
        self._server, self._in_thread = server, in_thread
        self.workspaces = (Workspaced(None, server.client),)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        if self._in_thread:
            return map(function, items)
        return bounded_map(self._server.executor, function, items, self._server.window)


class ConfigWriter:
    """Restores entities by their road. ``predicted`` has the ids at the target, as far as they are known before a write."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._readers = ConfigurationReader(_Place(server)).readers
        self._single_readers = ConfigurationReader(_Place(server, in_thread=True)).readers
        self._known: dict[str, dict[Hashable, list[Record]]] = {}
        self._claimed: dict[str, set[str]] = defaultdict(set)
        self.predicted = IdMap()

    def read(self, kind: str) -> list[Record]:
        """What the target has of a kind, in archive order. A server without that kind, or a workspace that is not made yet,
        has nothing."""
        try:
            return sorted(self._readers[kind](EntityQuery()), key=order_key)
        except RefusedError as error:
            if error.error_code != _MISSING and not error.endpoint_missing:
                raise
        except ServerError as error:
            if error.status != _NOT_IMPLEMENTED:
                raise
        return []

    def look(self, road: Road, wanted: Any) -> Record | None:
        """What the target has for an entity that may have just been made, read in a thread."""
        claimed = self._claimed[road.kind]
        found = sorted(self._single_readers[road.kind](EntityQuery()), key=order_key)
        return next((one for one in found if road.key(one) == road.key(wanted) and record_id(one) not in claimed), None)

    # -- before the first write ------------------------------------------------------------------------------------

    def cannot_hold(self, road: Road, record: Any) -> list[Problem]:
        """Why this record cannot be restored, as far as it can be known; the target is asked what it has."""
        result = EntityResult(kind=road.kind, source_id=record_id(record))
        if road.buried(record):
            return []
        try:
            wanted = road.expected(record, self.predicted)
        except NotFoundError as error:
            return [not_restored(result, road.refusal(record, self.predicted) or error.message, code=CANNOT_HOLD)]
        found = next(iter(self._at_target(road).get(road.key(wanted), ())), None)
        if found is not None:
            if taken := self._taken(road, wanted, found):
                return [not_restored(result, taken, code=_TAKEN)]
            self.predicted.add(road.kind, record_id(record), record_id(found))
            return []
        if why := road.refusal(record, self.predicted):
            return [not_restored(result, why, code=CANNOT_HOLD)]
        if road.makes:
            self.predicted.add(road.kind, record_id(record), record_id(record))
            self._at_target(road)[road.key(wanted)] = []
        return []

    def expects(self, road: Road, key: Hashable) -> bool:
        """Whether the target has such an entity, or will have it."""
        return key in self._at_target(road)

    def _at_target(self, road: Road) -> dict[Hashable, list[Record]]:
        """What the target has of a kind, by what tells entities apart, read once."""
        if road.kind not in self._known:
            self._known[road.kind] = {}
            for one in self.read(road.kind):
                self._known[road.kind].setdefault(road.key(one), []).append(one)
        return self._known[road.kind]

    def _taken(self, road: Road, wanted: Any, found: Any) -> str | None:
        other = [name for name in sorted(road.essential) if getattr(road.bare(wanted), name) != getattr(road.bare(found), name)]
        if not other:
            return None
        names = ", ".join(other)
        return f"the target has another {road.kind.replace('_', ' ')} {getattr(wanted, 'name', '')!r}: its {names} differs"

    # -- restore ---------------------------------------------------------------------------------------------------

    def restore(
        self, road: Road, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Find, create or complete, read back and compare."""
        road.look = self.look
        jobs = [_Job(plan.record, EntityResult(kind=road.kind, source_id=record_id(plan.record))) for plan in planned]
        for job in jobs:
            self._server.guard(job.result, lambda job=job: self._prepare(road, job, ids))  # type: ignore[misc]
            job.open = job.open and job.result.action == "restored"
        self._find(road, jobs)
        for job in jobs:
            if job.open and job.found is None and (why := road.refusal(job.record, ids)):
                self._leave_out(job, why, CANNOT_HOLD)
        self._each(road, jobs, lambda job: self._send(road, job))
        self._find(road, jobs)
        self._each(road, jobs, lambda job: self._check(road, job))
        for job in jobs:
            if job.result.target_id is not None and job.result.action != "failed":
                ids.add(road.kind, job.result.source_id, job.result.target_id)
        self._each(road, jobs, lambda job: road.settle(job.wanted, job.result))
        return [job.result for job in jobs]

    def _each(self, road: Road, jobs: Sequence[_Job], step: Callable[[_Job], None]) -> None:
        """Do a step of every open job with the threads, those of a line by one of them; a failure closes its job."""
        lines: dict[Hashable, list[_Job]] = defaultdict(list)
        for job in jobs:
            if job.open:
                lines[road.line(job.record)].append(job)

        def one(line: Sequence[_Job]) -> None:
            for job in line:
                self._server.guard(job.result, partial(step, job))
                job.open = job.open and job.result.action not in ("failed", "left out")

        for _ in bounded_map(self._server.executor, one, lines.values(), self._server.window):
            pass

    def _prepare(self, road: Road, job: _Job, ids: IdMap) -> None:
        try:
            job.wanted = road.expected(job.record, ids)
        except NotFoundError as error:
            why = road.refusal(job.record, ids)
            self._leave_out(job, why or error.message, CANNOT_HOLD)

    def _leave_out(self, job: _Job, why: str, code: str) -> None:
        job.result.action, job.open = "left out", False
        job.result.problems.append(not_restored(job.result, why, code=code))

    def _find(self, road: Road, jobs: Sequence[_Job]) -> None:
        """Give each job what the target has for it: what it had before, as it is now, else one that no other job has."""
        claimed = self._claimed[road.kind]
        free: dict[Hashable, list[Record]] = defaultdict(list)
        now = {}
        for record in self.read(road.kind) if any(job.open for job in jobs) else ():
            now[record_id(record)] = record
            if record_id(record) not in claimed:
                free[road.key(record)].append(record)
        for job in jobs:
            if not job.open or road.buried(job.record):
                continue
            if job.found is not None:
                job.found = now.get(record_id(job.found))
            elif alike := free[road.key(job.wanted)]:
                job.found = alike.pop(0)
                claimed.add(record_id(job.found))

    def _send(self, road: Road, job: _Job) -> None:
        """Create what is not there, complete what is."""
        if job.found is None:
            road.create(job.wanted, job.result)
            return
        job.was_there = True
        job.result.action = "there"
        if taken := self._taken(road, job.wanted, job.found):
            self._leave_out(job, taken, _TAKEN)
        elif road.complete(job.wanted, job.found):
            job.result.action = "merged"

    def _check(self, road: Road, job: _Job) -> None:
        """What was read back has to be what is in the archive; what was there before may differ, and that is told."""
        result = job.result
        if road.buried(job.record):
            return
        if job.found is None:
            result.action = "failed"
            result.problems.append(not_restored(result, "it was not read back from the target", code=DIFFERS))
            return
        result.target_id = record_id(job.found)
        for difference in self._differences(road, job):
            if job.was_there:
                result.keeps(f"{_called(job.record)} stays as it is at the target: {difference}")
            else:
                result.problems.append(not_restored(result, f"read back from the target: {difference}", code=DIFFERS))
                result.action = "failed"
        if road.anew and not job.was_there:
            result.notes.append(f"a server gives new {road.anew} to {_many(road.kind)}; the archive keeps the old ones")

    def _differences(self, road: Road, job: _Job) -> list[str]:
        """What the entity at the target lacks or has otherwise."""
        wanted, found = road.bare(job.wanted), road.bare(job.found)
        found = road.seen(wanted, found)
        if job.was_there:
            wanted, found = given_anew(wanted, road.mild), given_anew(found, road.mild)
        return record_differences(wanted, found)


def given_anew(record: Any, names: Iterable[str]) -> Any:
    """The struct without these members, in the structs that it holds too; ids that cannot be absent are empty."""
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if field.name in names:
            changes[field.name] = field.default if field.default is not msgspec.NODEFAULT else ""
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            changes[field.name] = tuple(given_anew(inner, names) for inner in value)
    return replace(record, **changes)


def _called(record: Any) -> str:
    return f"the {str(record.__struct_config__.tag).replace('_', ' ')} {getattr(record, 'name', record_id(record))!r}"


def _many(kind: str) -> str:
    words = kind.replace("_", " ")
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


class WebhookRoad(Road):
    """Webhooks, disabled: nothing that a restore brings may call anybody. Two of the same content are two."""

    kind = "webhook"
    given = Road.given | {"webhook_id"}
    mild = frozenset({"status"})

    def key(self, record: Webhook) -> Hashable:
        return record.name, record.url, record.description or "", record.events

    def buried(self, record: Webhook) -> bool:
        return record.deleted_timestamp is not UNSET

    def expected(self, record: Webhook, ids: IdMap) -> Webhook:  # noqa: ARG002
        return replace(record, status="DISABLED", description=record.description or UNSET)

    def create(self, wanted: Webhook, result: EntityResult) -> None:
        if self.buried(wanted):
            result.action = "left out"
            result.notes.append("deleted webhooks stay in the archive only")
            return
        events = [{"entity": event.entity.upper(), "action": event.action.upper()} for event in wanted.events]
        body = {"name": wanted.name, "url": wanted.url, "events": events, "status": "DISABLED"}
        if wanted.description:
            body["description"] = wanted.description
        self.make("webhooks", body, wanted)
        result.notes.append("webhooks are restored disabled, without the secrets that sign their calls")
        if REDACTED in wanted.url:
            result.notes.append(f"the URL of the webhook {wanted.name!r} lacks its secret: put it in before enabling it")
