"""Evaluation and review at a server: datasets with their records, scorers, label schemas, review queues, issues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Final, cast

from msgspec import UNSET

from mlflow_bundle.entities import DatasetRecord, EvaluationDataset, Issue, LabelSchema, Record, ReviewQueue, Scorer
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import SOURCE_TAG_PREFIX, EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._expected import keep_earlier
from mlflow_bundle.tracking.rest._road import DIFFERS, SOURCE_BUNDLE, Server, not_restored, pages, tag_map

__all__ = ["API3", "EvaluationWriter"]

API3: Final = "/api/3.0/mlflow/"
_PAGE: Final = 1_000
_RECORDS: Final = 500
_USER_TAG: Final = "mlflow.user"
_DATASET_KEPT: Final = (
    "dataset_id",
    "created_time",
    "last_update_time",
    "created_by",
    "last_updated_by",
    "digest",
)
_SOURCE_DATASET: Final = SOURCE_TAG_PREFIX + "dataset_id"
_NO_IDS: Final = "a server gives new ids and times to {}; the archive keeps the old ones"
_DEFAULT_SCHEMA: Final = "Feedback"


class EvaluationWriter:
    """Restores what experiments hold beside runs, models and traces. Everything is found again by its name, so that a
    second restore doubles nothing; datasets, whose names are not unique, by their source tags."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = Lock()
        self._datasets: dict[str, str] | None = None
        self._lists: dict[tuple[str, str], list[dict[str, Any]]] = {}

    # -- checks ----------------------------------------------------------------------------------------------------

    def cannot_hold(self, record: Record) -> list[Problem]:
        """Scorers that are program code, which a stock server refuses."""
        if not isinstance(record, Scorer):
            return []
        code = [version.scorer_version for version in record.versions if _is_code(version.serialized_scorer)]
        if not code:
            return []
        message = (
            f"scorer {record.scorer_name!r}: its versions {', '.join(map(str, code))} are program code, which a server refuses "
            "unless MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS is set there"
        )
        return [Problem(code="cannot-hold", kind="scorer", id=record_id(record), message=message)]

    # -- datasets --------------------------------------------------------------------------------------------------

    def restore_datasets(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each dataset, or take up the one that an earlier restore made."""
        there = self._datasets_there()

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            dataset = cast("EvaluationDataset", plan.record)
            experiments = [ids.new("experiment", name) for name in dataset.experiment_ids]
            known = there.get(dataset.dataset_id)
            result.action = "restored" if known is None else "there"
            if known is None:
                known = self._create_dataset(dataset, experiments)
            result.target_id = known
            ids.add("evaluation_dataset", dataset.dataset_id, known)
            self._compare_dataset(dataset, result, experiments)

        return self._server.each("evaluation_dataset", planned, one)

    def _datasets_there(self) -> dict[str, str]:
        """Datasets of this archive at the target: archived id -> id."""
        if self._datasets is None:

            def ask(token: str) -> Any:
                body = {"max_results": _PAGE, **({"page_token": token} if token else {})}
                return self._server.post("datasets/search", body, api=API3)

            self._datasets = {}
            for dataset in pages(ask, "datasets"):
                tags = json.loads(dataset.get("tags") or "{}")
                if tags.get(SOURCE_BUNDLE) == self._server.bundle_id and _SOURCE_DATASET in tags:
                    self._datasets[tags[_SOURCE_DATASET]] = dataset["dataset_id"]
        return self._datasets

    def _create_dataset(self, dataset: EvaluationDataset, experiments: Sequence[str]) -> str:
        tags = tag_map(dataset.tags)
        ours = self._server.source_tags(dataset, *_DATASET_KEPT)
        keep_earlier(tags, ours)
        if isinstance(dataset.created_by, str):
            tags.setdefault(_USER_TAG, dataset.created_by)
        body = {"name": dataset.name, "experiment_ids": experiments, "tags": json.dumps({**tags, **ours})}
        return str(self._server.post("datasets/create", body, api=API3)["dataset"]["dataset_id"])

    def _compare_dataset(self, dataset: EvaluationDataset, result: EntityResult, experiments: Sequence[str]) -> None:
        found = self._server.get(f"datasets/{result.target_id}", api=API3)["dataset"]
        linked = self._server.get(f"datasets/{result.target_id}/experiment-ids", api=API3).get("experiment_ids", [])
        tags = json.loads(found.get("tags") or "{}")
        own = {tag.key: tag.value for tag in dataset.tags if not tag.key.startswith(SOURCE_TAG_PREFIX)}
        _expect(result, "name", dataset.name, found.get("name"))
        _expect(result, "experiments", sorted(experiments), sorted(set(linked) & set(experiments)))
        _expect(result, "tags", own, {key: tags.get(key) for key in own})

    def restore_records(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Add the records of datasets, many in a request. Those with the same inputs are one, as everywhere in MLflow."""
        results = [EntityResult(kind="dataset_record", source_id=record_id(plan.record)) for plan in planned]
        by_dataset: dict[str, list[tuple[DatasetRecord, EntityResult]]] = {}
        for plan, result in zip(planned, results, strict=True):
            record = cast("DatasetRecord", plan.record)
            by_dataset.setdefault(record.dataset_id, []).append((record, result))
        for dataset_id, pairs in by_dataset.items():
            target = ids.find("evaluation_dataset", dataset_id)
            for some in chunks(pairs, _RECORDS):
                self._add_records(target, some)
        return results

    def _add_records(self, target: str | None, pairs: Sequence[tuple[DatasetRecord, EntityResult]]) -> None:
        if target is None:
            for _, result in pairs:
                result.action = "failed"
                result.problems.append(not_restored(result, "its dataset was not restored"))
            return
        there = self._records_of(target)
        missing = []
        for record, result in pairs:
            if _canonical(_loaded(record.inputs)) in there:
                result.action = "there"
            else:
                missing.append((record, result))
        if missing:
            body = {"records": "[" + ",".join(_record_text(record) for record, _ in missing) + "]"}
            first = missing[0][1]
            self._server.guard(first, lambda: self._server.post(f"datasets/{target}/records", body, api=API3))
            if first.action == "failed":
                for _, result in missing[1:]:
                    result.action = "failed"
                    result.problems.append(not_restored(result, f"as {first.source_id}"))
                return
            there = self._records_of(target)
        for record, result in pairs:
            self._compare_record(record, result, there.get(_canonical(_loaded(record.inputs))))

    def _records_of(self, target: str) -> dict[str, dict[str, Any]]:
        """The records of a dataset by their inputs."""

        def ask(token: str) -> Any:
            params = {"max_results": _PAGE, **({"page_token": token} if token else {})}
            answer = self._server.get(f"datasets/{target}/records", params, api=API3)
            return {**answer, "records": json.loads(answer.get("records") or "[]")}

        return {_canonical(item.get("inputs")): item for item in pages(ask, "records")}

    def _compare_record(self, record: DatasetRecord, result: EntityResult, item: Mapping[str, Any] | None) -> None:
        if item is None:
            result.action = "failed"
            result.problems.append(not_restored(result, "it was not read back from the target", code=DIFFERS))
            return
        result.target_id = str(item["dataset_record_id"])
        result.notes.append(_NO_IDS.format("records of evaluation datasets"))
        for name in ("outputs", "expectations", "tags"):
            wanted = _loaded(getattr(record, name))
            if wanted and _canonical(wanted) != _canonical(item.get(name)):
                _expect(result, name, wanted, item.get(name))

    # -- scorers ---------------------------------------------------------------------------------------------------

    def restore_scorers(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Register the versions of each scorer in order; numbers between them are registered and deleted."""

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            scorer = cast("Scorer", plan.record)
            experiment = self._experiment(scorer.experiment_id, result, ids)
            if experiment is None:
                return
            result.target_id = f"{experiment}/{scorer.scorer_name}"
            self._restore_scorer(scorer, experiment, result)
            if result.action != "failed":
                self._online(scorer, experiment, result, options)
                if isinstance(scorer.scorer_id, str):
                    self._map_scorer(scorer, experiment, ids)

        return self._server.each("scorer", planned, one)

    def _scorer_versions(self, experiment: str, name: str) -> dict[int, dict[str, Any]]:
        listed = self._server.get("scorers/list", {"experiment_id": experiment}, api=API3).get("scorers", [])
        if all(scorer.get("scorer_name", scorer.get("name")) != name for scorer in listed):
            return {}
        versions = self._server.get("scorers/versions", {"experiment_id": experiment, "name": name}, api=API3)
        return {int(version["scorer_version"]): version for version in versions.get("scorers", [])}

    def _restore_scorer(self, scorer: Scorer, experiment: str, result: EntityResult) -> None:
        there = self._scorer_versions(experiment, scorer.scorer_name)
        missing = [version for version in scorer.versions if version.scorer_version not in there]
        if not missing:
            result.action = "there"
        highest = max(there, default=0)
        gaps = []
        for version in missing:
            if version.scorer_version <= highest:
                message = f"version {version.scorer_version} cannot be registered after version {highest}"
                result.problems.append(not_restored(result, message, code="version-taken"))
                result.action = "left out"
                continue
            while highest < version.scorer_version:
                body = {
                    "experiment_id": experiment,
                    "name": scorer.scorer_name,
                    "serialized_scorer": version.serialized_scorer,
                }
                highest = int(self._server.post("scorers/register", body, api=API3)["version"])
                if highest < version.scorer_version:
                    gaps.append(highest)
        # Only now: a server counts on from the highest version that it has, and would give a deleted number again.
        for gap in gaps:
            made = {"experiment_id": experiment, "name": scorer.scorer_name, "version": gap}
            self._server.post("scorers/delete", made, method="DELETE", api=API3)
        found = self._scorer_versions(experiment, scorer.scorer_name)
        for version in scorer.versions:
            text = found.get(version.scorer_version, {}).get("serialized_scorer")
            _expect(result, f"version {version.scorer_version}", _loaded(version.serialized_scorer), _loaded(text or UNSET))
        result.notes.append(_NO_IDS.format("scorers"))

    def _online(self, scorer: Scorer, experiment: str, result: EntityResult, options: RestoreOptions) -> None:
        for config in scorer.online:
            rate = float(config.sample_rate or 0) if options.online_scoring else 0.0
            body = {"experiment_id": experiment, "name": scorer.scorer_name, "sample_rate": rate}
            if isinstance(config.filter_string, str):
                body["filter_string"] = config.filter_string
            self._server.post("scorers/online-config", body, method="PUT", api=API3)
            if rate != float(config.sample_rate or 0):
                result.notes.append("online scoring is restored with sample rate 0 (--online-scoring restores the rates)")

    def _map_scorer(self, scorer: Scorer, experiment: str, ids: IdMap) -> None:
        for version in self._scorer_versions(experiment, scorer.scorer_name).values():
            if version.get("scorer_id"):
                ids.add("scorer_id", str(scorer.scorer_id), str(version["scorer_id"]))

    # -- label schemas, queues, issues -----------------------------------------------------------------------------

    def restore_schemas(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each label schema that its experiment does not have under this name."""

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            schema = cast("LabelSchema", plan.record)
            experiment = self._experiment(schema.experiment_id, result, ids)
            if experiment is None:
                return
            found = self._listed("label-schemas/list", experiment, "label_schemas").get(schema.name)
            if found is None:
                body = _schema_body(schema, experiment)
                found = self._server.post("label-schemas/create", body, api=API3)["label_schema"]
                result.notes.append(_NO_IDS.format("label schemas"))
            else:
                result.action = "there"
            result.target_id = found["schema_id"]
            ids.add("label_schema", schema.schema_id, found["schema_id"])
            _expect(result, "type", (schema.type or "").upper(), str(found.get("type", "")).upper())
            _expect(result, "instruction", schema.instruction or "", found.get("instruction") or "")
            _expect(result, "enable_comment", bool(schema.enable_comment), bool(found.get("enable_comment")))

        return self._server.each("label_schema", planned, one)

    def restore_queues(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each review queue with its users and schemas, add its traces and set their state."""

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            queue = cast("ReviewQueue", plan.record)
            experiment = self._experiment(queue.experiment_id, result, ids)
            if experiment is None:
                return
            found = self._listed("review-queues/list", experiment, "review_queues").get(queue.name)
            if found is None:
                body = {
                    "experiment_id": experiment,
                    "name": queue.name,
                    "queue_type": (queue.queue_type or "CUSTOM").upper(),
                    "users": queue.users,
                    "schema_ids": [ids.new("label_schema", schema) for schema in queue.schema_ids],
                }
                found = self._server.post("review-queues/create", body, api=API3)["review_queue"]
                result.notes.append(_NO_IDS.format("review queues"))
            else:
                result.action = "there"
            result.target_id = found["queue_id"]
            self._fill_queue(queue, result)

        return self._server.each("review_queue", planned, one)

    def _fill_queue(self, queue: ReviewQueue, result: EntityResult) -> None:
        there = self._queue_items(str(result.target_id))
        missing = [item for item in queue.items if item.item_id not in there]
        for some in chunks(missing, 100):
            body = {"queue_id": result.target_id, "item_ids": [item.item_id for item in some]}
            self._server.post("review-queues/items/add", body, api=API3)
        for item in missing:
            if (item.status or "PENDING").upper() != "PENDING":
                body = {"queue_id": result.target_id, "item_id": item.item_id, "status": str(item.status).upper()}
                if isinstance(item.completed_by, str):
                    body["completed_by"] = item.completed_by
                self._server.post("review-queues/items/set-status", body, api=API3)
        found = self._queue_items(str(result.target_id))
        for item in queue.items:
            status = str(found.get(item.item_id, {}).get("status", "")).upper()
            _expect(result, f"the state of {item.item_id}", (item.status or "PENDING").upper(), status)

    def _queue_items(self, queue_id: str) -> dict[str, dict[str, Any]]:
        def ask(token: str) -> Any:
            params = {"queue_id": queue_id, **({"page_token": token} if token else {})}
            return self._server.get("review-queues/items/list", params, api=API3)

        return {item["item_id"]: item for item in pages(ask, "items")}

    def restore_issues(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Create each issue that its experiment does not have with this name and description."""

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            issue = cast("Issue", plan.record)
            experiment = self._experiment(issue.experiment_id, result, ids)
            if experiment is None:
                return
            body = _issue_body(issue, experiment, ids)
            same = [found for found in self._issues(experiment) if _same_issue(found, body)]
            if same:
                result.action = "there"
            found = same[0] if same else self._server.post("issues", body, api=API3)["issue"]
            result.target_id = found["issue_id"]
            ids.add("issue", issue.issue_id, found["issue_id"])
            for name in ("status", "severity", "root_causes", "categories", "created_by"):
                _expect(result, name, body.get(name) or None, found.get(name) or None)
            result.notes.append(_NO_IDS.format("issues"))

        return self._server.each("issue", planned, one)

    def _issues(self, experiment: str) -> list[dict[str, Any]]:
        def ask(token: str) -> Any:
            body = {"experiment_id": experiment, **({"page_token": token} if token else {})}
            return self._server.post("issues/search", body, api=API3)

        with self._lock:
            if ("issue", experiment) not in self._lists:
                self._lists["issue", experiment] = pages(ask, "issues")
            return self._lists["issue", experiment]

    def _listed(self, endpoint: str, experiment: str, member: str) -> dict[str, dict[str, Any]]:
        """What the experiment has already, by name; asked once, before anything is created there."""

        def ask(token: str) -> Any:
            params = {"experiment_id": experiment, **({"page_token": token} if token else {})}
            return self._server.get(endpoint, params, api=API3)

        with self._lock:
            if (endpoint, experiment) not in self._lists:
                self._lists[endpoint, experiment] = pages(ask, member)
            return {item["name"]: item for item in self._lists[endpoint, experiment]}

    def _experiment(self, archived: str, result: EntityResult, ids: IdMap) -> str | None:
        found = ids.find("experiment", archived)
        if found is None:
            result.action = "failed"
            result.problems.append(not_restored(result, f"its experiment {archived} was not restored"))
        return found


def _expect(result: EntityResult, what: str, expected: Any, actual: Any) -> None:
    """What was read back has to be what is in the archive."""
    if expected != actual:
        message = f"read back from the target: {what} is {actual!r:.60} instead of {expected!r:.60}"
        result.problems.append(not_restored(result, message, code=DIFFERS))
        result.action = "failed"


def _loaded(text: Any) -> Any:
    return json.loads(text) if isinstance(text, str) else None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_code(serialized: str) -> bool:
    members = _loaded(serialized)
    return isinstance(members, dict) and members.get("call_source") is not None


def _record_text(record: DatasetRecord) -> str:
    """A record as a server takes it: the texts of the archive, put together as they are."""
    members = [f'"inputs":{record.inputs}']
    members += [f'"outputs":{record.outputs if isinstance(record.outputs, str) else "null"}']
    for name in ("expectations", "tags", "source"):
        text = getattr(record, name)
        if isinstance(text, str) and text != "null":
            members.append(f'"{name}":{text}')
    return "{" + ",".join(members) + "}"


def _schema_body(schema: LabelSchema, experiment: str) -> dict[str, Any]:
    config = {name: value for name, value in (_loaded(schema.input_config) or {}).items() if value is not None}
    body: dict[str, Any] = {
        "experiment_id": experiment,
        "name": schema.name,
        "type": (schema.type or "FEEDBACK").upper(),
        "input": {str(schema.input_type): config},
    }
    for name in ("instruction", "enable_comment"):
        if getattr(schema, name) is not UNSET:
            body[name] = getattr(schema, name)
    return body


def _issue_body(issue: Issue, experiment: str, ids: IdMap) -> dict[str, Any]:
    body: dict[str, Any] = {"experiment_id": experiment, "name": issue.name, "description": issue.description or ""}
    for name in ("status", "severity", "created_by"):
        if getattr(issue, name) is not UNSET:
            body[name] = getattr(issue, name)
    for name in ("root_causes", "categories"):
        if isinstance(getattr(issue, name), str):
            body[name] = _loaded(getattr(issue, name))
    if issue.source_run_id:
        body["source_run_id"] = ids.new("run", issue.source_run_id)
    return body


def _same_issue(found: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    return all((found.get(name) or None) == (body.get(name) or None) for name in ("name", "description", "source_run_id"))
