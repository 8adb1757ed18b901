"""Label schemas, review queues and issues at a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Final, cast

from msgspec import UnsetType

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Issue, LabelSchema, Record, ReviewItem, ReviewQueue
from mlflow_bundle.kinds import record_id
from mlflow_bundle.tracking._port import EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._evaluation_common import API3, NO_IDS, NO_TIMES, NO_USERS, expect, loaded, restored_experiment
from mlflow_bundle.tracking.rest._once import create_once
from mlflow_bundle.tracking.rest._releases import release_of
from mlflow_bundle.tracking.rest._road import Server, paged

__all__ = ["ReviewWriter"]

_ITEMS: Final = 100
_PAGE: Final = 1_000
_PENDING: Final = "PENDING"
#: What tells issues apart whose ids say nothing.
_TELLING: Final = ("name", "description", "source_run_id")
_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"
#: From this release on an issue may be made with an id of this form.
_KEPT_SINCE: Final = (3, 18)
_TAKEN_ID: Final = re.compile(r"iss-[A-Za-z0-9_-]{1,32}")

Answer = dict[str, Any]


class ReviewWriter:
    """Restores what reviewers work with. Schemas and queues are found again by their names; issues, whose names are not unique,
    by their ids where the server has kept these, else by name, description and run, each archived one by another one of the
    target."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = Lock()
        self._schemas: dict[str, dict[str, Answer]] = {}
        self._queues: dict[str, dict[str, Answer]] = {}
        self._issues: dict[str, list[Answer]] = {}
        #: The archived ids of the issues of a batch.
        self._archived: set[str] = set()

    def name_taken(self, record: Record, experiment: str) -> str | None:
        """Why an experiment cannot have this schema or queue: it has one of this name and of another type."""
        if isinstance(record, LabelSchema):
            there, wanted = self._schema_type(record.name, experiment), (record.type or "FEEDBACK").upper()
        elif isinstance(record, ReviewQueue):
            if experiment not in self._queues:
                self._queues[experiment] = self._queues_in(experiment)
            found = self._queues[experiment].get(record.name.casefold(), {})
            there, wanted = str(found.get("queue_type") or ""), (record.queue_type or "CUSTOM").upper()
        else:
            return None
        if there.upper() in ("", wanted):
            return None
        return f"the experiment {experiment} has another one named {record.name!r}, of the type {there}"

    def _schema_type(self, name: str, experiment: str) -> str:
        """The type of the schema of this name, empty where there is none. Not by the list, whose first reader makes one."""
        asked = {"experiment_id": experiment, "name": name}
        try:
            found = self._server.get("label-schemas/get-by-name", asked, api=API3)["label_schema"]
        except RefusedError as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return ""
            raise
        return str(found.get("type") or "")

    # -- label schemas ---------------------------------------------------------------------------------------------

    def restore_schemas(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each label schema that its experiment does not have under this name, and read them back."""
        self._ask(self._schemas, self._schemas_in, planned, ids)

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            schema = cast("LabelSchema", plan.record)
            experiment = restored_experiment(schema.experiment_id, result, ids)
            if experiment is None:
                return
            found = self._schemas[experiment].get(schema.name)
            if found is None:
                found = self._create_schema(schema, experiment)
                result.notes += _given_anew("label schemas", schema.created_by)
                if schema.is_default:
                    result.notes.append(f"the default label schema {schema.name!r} is one like all others at the target")
            else:
                result.action = "there"
            result.target_id = str(found["schema_id"])
            ids.add("label_schema", schema.schema_id, result.target_id)

        results = self._server.each("label_schema", planned, one)
        if any(result.action == "restored" for result in results):
            self._schemas.clear()
            self._ask(self._schemas, self._schemas_in, planned, ids)
        for plan, result in zip(planned, results, strict=True):
            if result.target_id is not None:
                schema = cast("LabelSchema", plan.record)
                _compare_schema(schema, result, self._schemas[ids.new("experiment", schema.experiment_id)])
        return results

    def _schemas_in(self, experiment: str) -> dict[str, Answer]:
        return {item["name"]: item for item in self._listed("label-schemas/list", experiment, "label_schemas")}

    def _create_schema(self, schema: LabelSchema, experiment: str) -> Answer:
        config = {name: value for name, value in (loaded(schema.input_config) or {}).items() if value is not None}
        body: dict[str, Any] = {
            "experiment_id": experiment,
            "name": schema.name,
            "type": (schema.type or "FEEDBACK").upper(),
            "input": {str(schema.input_type): config},
        }
        for name in ("instruction", "enable_comment"):
            if getattr(schema, name):
                body[name] = getattr(schema, name)

        def find() -> Answer | None:
            found = self._schemas_in(experiment).get(schema.name)
            return None if found is None else {"label_schema": found}

        answer = create_once(self._server.client, "label-schemas/create", body, find, api=API3)
        return cast("Answer", answer["label_schema"])

    # -- review queues ---------------------------------------------------------------------------------------------

    def restore_queues(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each review queue with its users and schemas, add its traces, set their states and read them back."""
        self._ask(self._queues, self._queues_in, planned, ids)

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            queue = cast("ReviewQueue", plan.record)
            experiment = restored_experiment(queue.experiment_id, result, ids)
            if experiment is None:
                return
            schemas = [ids.new("label_schema", schema) for schema in queue.schema_ids]
            found = self._queues[experiment].get(queue.name.casefold())
            if found is None:
                found = self._create_queue(queue, experiment, schemas)
                result.notes += _given_anew("review queues", queue.created_by)
            else:
                result.action = "there"
            result.target_id = str(found["queue_id"])
            self._add_items(queue, result)

        results = self._server.each("review_queue", planned, one)
        if any(result.action == "restored" for result in results):
            self._queues.clear()
            self._ask(self._queues, self._queues_in, planned, ids)
        for plan, result in zip(planned, results, strict=True):
            if result.target_id is not None:
                queue = cast("ReviewQueue", plan.record)
                found = self._queues[ids.new("experiment", queue.experiment_id)].get(queue.name.casefold(), {})
                _compare_queue(queue, result, found, [ids.new("label_schema", schema) for schema in queue.schema_ids])
        pairs = [
            (cast("ReviewQueue", plan.record), result)
            for plan, result in zip(planned, results, strict=True)
            if result.target_id is not None and result.action != "failed"
        ]
        self._set_states(pairs)
        return results

    def _queues_in(self, experiment: str) -> dict[str, Answer]:
        """The queues of an experiment by name: names differ by more than their case."""
        return {item["name"].casefold(): item for item in self._listed("review-queues/list", experiment, "review_queues")}

    def _create_queue(self, queue: ReviewQueue, experiment: str, schemas: Sequence[str]) -> Answer:
        body = {
            "experiment_id": experiment,
            "name": queue.name,
            "queue_type": (queue.queue_type or "CUSTOM").upper(),
            "users": queue.users,
            "schema_ids": schemas,
        }

        def find() -> Answer | None:
            found = self._queues_in(experiment).get(queue.name.casefold())
            return None if found is None else {"review_queue": found}

        answer = create_once(self._server.client, "review-queues/create", body, find, api=API3)
        return cast("Answer", answer["review_queue"])

    def _items(self, queue_id: str) -> dict[str, Answer]:
        def ask(token: str) -> Any:
            params = {"queue_id": queue_id, "max_results": _PAGE, **({"page_token": token} if token else {})}
            return self._server.get("review-queues/items/list", params, api=API3)

        return {item["item_id"]: item for item in paged(ask, "items")}

    def _add_items(self, queue: ReviewQueue, result: EntityResult) -> None:
        """Add the traces; those that are there keep their state."""
        for some in chunks(queue.items, _ITEMS):
            body = {"queue_id": result.target_id, "item_ids": [item.item_id for item in some]}
            self._server.post("review-queues/items/add", body, api=API3)

    def _set_states(self, pairs: Sequence[tuple[ReviewQueue, EntityResult]]) -> None:
        """Set the states of items that are still pending, all queues at a time, then compare."""
        there = dict(zip([str(result.target_id) for _, result in pairs], self._all_items(pairs), strict=True))
        waiting = [
            (item, result)
            for queue, result in pairs
            for item in queue.items
            if _state(item) != _PENDING and _state_of(there[str(result.target_id)].get(item.item_id)) == _PENDING
        ]

        def one(pair: tuple[ReviewItem, EntityResult]) -> None:
            item, result = pair
            body = {"queue_id": result.target_id, "item_id": item.item_id, "status": _state(item)}
            if isinstance(item.completed_by, str):
                body["completed_by"] = item.completed_by
            self._server.guard(
                result, lambda: cast("None", self._server.post("review-queues/items/set-status", body, api=API3))
            )

        for _ in bounded_map(self._server.executor, one, waiting, self._server.window):
            pass
        touched = {str(result.target_id) for _, result in waiting}
        again = [(queue, result) for queue, result in pairs if str(result.target_id) in touched]
        there |= dict(zip([str(result.target_id) for _, result in again], self._all_items(again), strict=True))
        for queue, result in pairs:
            _compare_items(queue, result, there[str(result.target_id)])

    def _all_items(self, pairs: Sequence[tuple[ReviewQueue, EntityResult]]) -> list[dict[str, Answer]]:
        queues = [str(result.target_id) for _, result in pairs]
        return list(bounded_map(self._server.executor, self._items, queues, self._server.window))

    # -- issues ----------------------------------------------------------------------------------------------------

    def restore_issues(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each issue for which its experiment does not have one with this name and description, and read them back."""
        self._ask(self._issues, self._issues_in, planned, ids)
        self._archived = {record_id(plan.record) for plan in planned}
        bodies: dict[str, dict[str, Any]] = {}

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            issue = cast("Issue", plan.record)
            experiment = restored_experiment(issue.experiment_id, result, ids)
            if experiment is None:
                return
            body = bodies[result.source_id] = _issue_body(issue, experiment, ids)
            found = self._claim(experiment, issue.issue_id, body)
            result.action = "restored" if found is None else "there"
            if found is None:
                found = self._create_issue(experiment, issue.issue_id, body)
                kept = found["issue_id"] == issue.issue_id
                result.notes.append((NO_TIMES if kept else NO_IDS).format("issues"))
                self._name_changer(issue, str(found["issue_id"]), body)
            elif any(_differs(found, name, wanted) for name, wanted in (body | _changer(issue, body)).items()):
                result.keeps("issues that differ at the target keep what they have there")
            result.target_id = str(found["issue_id"])
            ids.add("issue", issue.issue_id, result.target_id)

        results = self._server.each("issue", planned, one)
        made = [result for result in results if result.action == "restored" and result.target_id is not None]
        experiments = sorted({bodies[result.source_id]["experiment_id"] for result in made})
        found = {issue["issue_id"]: issue for experiment in experiments for issue in self._issues_in(experiment)}
        for result in made:
            for name, wanted in bodies[result.source_id].items():
                expect(result, name, wanted or None, _told_of(found.get(str(result.target_id), {}), name, wanted))
        return results

    def _issues_in(self, experiment: str) -> list[Answer]:
        """The issues of an experiment, the oldest first."""

        def ask(token: str) -> Any:
            body = {"experiment_id": experiment, "max_results": _PAGE, **({"page_token": token} if token else {})}
            return self._server.post("issues/search", body, api=API3)

        return sorted(paged(ask, "issues"), key=lambda issue: int(issue.get("created_timestamp") or 0))

    def _claim(self, experiment: str, archived: str, body: Mapping[str, Any]) -> Answer | None:
        """Take an issue that is this one, or else is like it and no other archived one; no other takes it then."""
        with self._lock:
            there = self._issues[experiment]
            same = [issue for issue in there if issue["issue_id"] == archived]
            alike = [issue for issue in there if _same_issue(issue, body) and issue["issue_id"] not in self._archived]
            found = next(iter(same + alike), None)
            if found is not None:
                there.remove(found)
            return found

    def _create_issue(self, experiment: str, archived: str, body: dict[str, Any]) -> Answer:
        """Make an issue, with its id where the server takes one and nobody has it."""
        if release_of(self._server.client.version()) >= _KEPT_SINCE and _TAKEN_ID.fullmatch(archived):
            try:
                return self._create_once(experiment, {**body, "issue_id": archived})
            except RefusedError as error:
                if error.error_code != _EXISTS:
                    raise
        return self._create_once(experiment, body)

    def _name_changer(self, issue: Issue, target: str, body: dict[str, Any]) -> None:
        """Tell the server who changed the issue last, which is another one than who made it."""
        if changer := _changer(issue, body):
            self._server.post(f"issues/{target}", {"issue_id": target, **changer}, method="PATCH", api=API3)
            body |= changer

    def _create_once(self, experiment: str, body: dict[str, Any]) -> Answer:
        def find() -> Answer | None:
            with self._lock:
                known = {issue["issue_id"] for issue in self._issues[experiment]}
            by = ("issue_id",) if "issue_id" in body else _TELLING
            like = [issue for issue in self._issues_in(experiment) if _same_issue(issue, body, by)]
            new = [issue for issue in like if issue["issue_id"] not in known]
            return {"issue": new[-1]} if new else None

        return cast("Answer", create_once(self._server.client, "issues", body, find, api=API3)["issue"])

    # -- lists -----------------------------------------------------------------------------------------------------

    def _ask(self, known: dict[str, Any], ask: Callable[[str], Any], planned: Sequence[PlannedEntity], ids: IdMap) -> None:
        """What the experiments of these entities have already; asked once, before anything is created there."""
        archived = {cast("Any", plan.record).experiment_id for plan in planned}
        wanted = sorted({found for name in archived if (found := ids.find("experiment", name))} - known.keys())
        known.update(zip(wanted, bounded_map(self._server.executor, ask, wanted, self._server.window), strict=True))

    def _listed(self, endpoint: str, experiment: str, member: str) -> Iterator[Answer]:
        def ask(token: str) -> Any:
            params = {"experiment_id": experiment, **({"page_token": token} if token else {})}
            return self._server.get(endpoint, params, api=API3)

        return paged(ask, member)


def _compare_schema(schema: LabelSchema, result: EntityResult, there: Mapping[str, Answer]) -> None:
    """A schema that was made has to be like the archive; one that was there keeps what it has."""
    found = there.get(schema.name, {})
    input_type, config = next(iter(found.get("input", {}).items()), ("", {}))
    compared = {
        "type": ((schema.type or "feedback").upper(), str(found.get("type", "")).upper()),
        "instruction": (schema.instruction or "", found.get("instruction") or ""),
        "enable_comment": (bool(schema.enable_comment), bool(found.get("enable_comment"))),
        "input": (
            {str(schema.input_type): _told(loaded(schema.input_config) or {})},
            {input_type: _told(config)},
        ),
    }
    was_there = result.action == "there"
    for what, (wanted, actual) in compared.items():
        if was_there and wanted != actual and what != "type":
            result.keeps(f"the label schema {schema.name!r} keeps its own {what}")
        else:
            expect(result, what, wanted, actual)


def _compare_queue(queue: ReviewQueue, result: EntityResult, found: Mapping[str, Any], schemas: Sequence[str]) -> None:
    """A queue that was made has to be like the archive; one that was there keeps what it has, but is of the same type."""
    compared = {
        "type": ((queue.queue_type or "CUSTOM").upper(), str(found.get("queue_type", "")).upper()),
        "name": (queue.name, found.get("name")),
        "users": (sorted(user.lower() for user in queue.users), sorted(found.get("users", []))),
        "questions": (sorted(schemas), sorted(found.get("schema_ids", []))),
    }
    was_there = result.action == "there"
    for what, (wanted, actual) in compared.items():
        if was_there and wanted != actual and what != "type":
            result.keeps(f"the review queue {queue.name!r} keeps its own {what}")
        else:
            expect(result, what, wanted, actual)


def _given_anew(what: str, user: str | UnsetType) -> list[str]:
    """What notes say that a server gives anew."""
    return [NO_IDS.format(what), *([NO_USERS.format(what)] if user else [])]


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the input of a schema says beside what is so anyway. A server keeps its limits as doubles."""
    told = {name: value for name, value in config.items() if value is not None and value is not False}
    return {name: float(value) if type(value) is int else value for name, value in told.items()}


def _state(item: ReviewItem) -> str:
    return (item.status or _PENDING).upper()


def _state_of(found: Mapping[str, Any] | None) -> str:
    return str((found or {}).get("status", "")).upper()


def _compare_items(queue: ReviewQueue, result: EntityResult, there: Mapping[str, Answer]) -> None:
    """Every item has to be there in its state, or in one that it got at the target."""
    was_there = result.action in ("there", "merged")
    for item in queue.items:
        found = there.get(item.item_id)
        if was_there and found is not None and _state_of(found) not in (_state(item), _PENDING):
            result.keeps(f"items of the review queue {queue.name!r} keep the state that they have at the target")
            continue
        expect(result, f"the state of {item.item_id}", _state(item), _state_of(found))
        if _state(item) != _PENDING and result.action == "restored":
            expect(result, f"who reviewed {item.item_id}", item.completed_by or None, (found or {}).get("completed_by") or None)


def _issue_body(issue: Issue, experiment: str, ids: IdMap) -> dict[str, Any]:
    body: dict[str, Any] = {"experiment_id": experiment, "name": issue.name, "description": issue.description or ""}
    for name in ("status", "severity", "created_by"):
        if getattr(issue, name):
            body[name] = getattr(issue, name)
    for name in ("root_causes", "categories", "metadata"):
        if isinstance(getattr(issue, name), str):
            body[name] = loaded(getattr(issue, name))
    if isinstance(issue.last_seen_timestamp, int):
        body["last_seen_timestamp"] = issue.last_seen_timestamp
    if issue.source_run_id:
        body["source_run_id"] = ids.new("run", issue.source_run_id)
    return body


def _changer(issue: Issue, body: Mapping[str, Any]) -> dict[str, Any]:
    """Who changed an issue last, where that is not who made it and the server has a place for it."""
    changer = issue.last_updated_by
    return {"last_updated_by": changer} if changer and changer != body.get("created_by") else {}


def _told_of(found: Mapping[str, Any], name: str, wanted: Any) -> Any:
    """A member of an issue in an answer, where large numbers are texts."""
    value = found.get(name) or None
    return int(value) if isinstance(wanted, int) and isinstance(value, str) else value


def _differs(found: Mapping[str, Any], name: str, wanted: Any) -> bool:
    return bool(_told_of(found, name, wanted) != (wanted or None))


def _same_issue(found: Mapping[str, Any], body: Mapping[str, Any], by: Sequence[str] = _TELLING) -> bool:
    return all((found.get(name) or None) == (body.get(name) or None) for name in by)
