"""Evaluation datasets at a server, with their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import DatasetRecord, EvaluationDataset
from mlflow_bundle.errors import AuthError, ServerError
from mlflow_bundle.kinds import record_id
from mlflow_bundle.tracking._port import (
    DIFFERS,
    SOURCE_TAG_PREFIX,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking.rest._evaluation_common import API3, NO_IDS, NO_USERS, canonical, expect, loaded
from mlflow_bundle.tracking.rest._expected import keep_earlier
from mlflow_bundle.tracking.rest._once import create_once
from mlflow_bundle.tracking.rest._road import SOURCE_BUNDLE, Server, not_restored, paged, tag_map

__all__ = ["DatasetWriter"]

_PAGE: Final = 1_000
#: Records and characters of a request.
_RECORDS: Final = 500
_CHARS: Final = 8_000_000
_USER_TAG: Final = "mlflow.user"
_KEPT: Final = (
    "dataset_id",
    "created_time",
    "last_update_time",
    "created_by",
    "last_updated_by",
    "digest",
)
_SOURCE_DATASET: Final = SOURCE_TAG_PREFIX + "dataset_id"
#: What a server says where it is not the content that it does not like.
_BUSY: Final = (408, 429, 502, 503, 504)
_COMPARED: Final = ("outputs", "expectations", "tags", "source")


@dataclass(slots=True)
class _Dataset:
    """The records of a dataset at the target: digest of the inputs -> id and digest of the rest. ``token`` is that of the last
    page, where reading goes on: a server gives records by time."""

    there: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    token: str = ""
    is_read: bool = False


Pair = tuple[DatasetRecord, EntityResult]


class DatasetWriter:
    """Restores datasets, then their records. The records with the same inputs are one, as everywhere in MLflow."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._datasets: dict[str, str] | None = None
        self._records: dict[str, _Dataset] = {}
        #: The datasets that were restored, by id at the target.
        self._finished: dict[str, EvaluationDataset] = {}

    # -- datasets --------------------------------------------------------------------------------------------------

    def restore(self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions) -> list[EntityResult]:
        """Create each dataset, or take up the one that an earlier restore made."""
        if self._datasets is None:
            self._datasets = self._restored()
        there = self._datasets

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            dataset = cast("EvaluationDataset", plan.record)
            # Not under the archived id: at the target that is another experiment.
            experiments = [found for name in dataset.experiment_ids if (found := ids.find("experiment", name))]
            if len(experiments) < len(dataset.experiment_ids):
                result.notes.append("links of evaluation datasets to experiments that are not restored are left out")
            known = there.get(dataset.dataset_id)
            if known is None:
                known = self._create(dataset, experiments)
                self._records[known] = _Dataset(is_read=True)
            else:
                result.action = "there"
                self._link(known, experiments)
            result.target_id = known
            ids.add("evaluation_dataset", dataset.dataset_id, known)
            self._compare(dataset, result, experiments)
            self._finished[known] = dataset

        return self._server.each("evaluation_dataset", planned, one)

    def _restored(self) -> dict[str, str]:
        """Archived datasets at the target: archived id -> id."""

        def ask(token: str) -> Any:
            body = {"max_results": _PAGE, **({"page_token": token} if token else {})}
            return self._server.post("datasets/search", body, api=API3)

        found = {}
        for dataset in paged(ask, "datasets"):
            tags = json.loads(dataset.get("tags") or "{}")
            if (archived := self._server.archived_id(tags, _SOURCE_DATASET)) is not None:
                found[archived] = str(dataset["dataset_id"])
        return found

    def _tags(self, dataset: EvaluationDataset) -> dict[str, str]:
        """The tags of the dataset at the target. A server takes its user from one of them."""
        tags = tag_map(dataset.tags)
        ours = self._server.source_tags(dataset, *_KEPT)
        keep_earlier(tags, ours)
        if isinstance(dataset.created_by, str):
            tags.setdefault(_USER_TAG, dataset.created_by)
        return tags | ours

    def _create(self, dataset: EvaluationDataset, experiments: Sequence[str]) -> str:
        body = {"name": dataset.name, "experiment_ids": experiments, "tags": json.dumps(self._tags(dataset))}

        def find() -> dict[str, Any] | None:
            made = self._restored().get(dataset.dataset_id)
            return None if made is None else {"dataset": {"dataset_id": made}}

        return str(create_once(self._server.client, "datasets/create", body, find, api=API3)["dataset"]["dataset_id"])

    def _linked(self, target: str) -> set[str]:
        return set(self._server.get(f"datasets/{target}/experiment-ids", api=API3).get("experiment_ids", []))

    def _link(self, target: str, experiments: Sequence[str]) -> None:
        """Link a dataset that is there to the experiments that it is not in yet."""
        missing = sorted(set(experiments) - self._linked(target))
        if missing:
            self._server.post(f"datasets/{target}/add-experiments", {"experiment_ids": missing}, api=API3)

    def _compare(self, dataset: EvaluationDataset, result: EntityResult, experiments: Sequence[str]) -> None:
        """A dataset that was made has to be like the archive; one that was there keeps what it has."""
        found = self._server.get(f"datasets/{result.target_id}", api=API3)["dataset"]
        there = json.loads(found.get("tags") or "{}")
        tags = self._tags(dataset)
        if result.action == "there":
            # Another archive may have brought it.
            del tags[SOURCE_BUNDLE]
        expect(result, "experiments", sorted(experiments), sorted(self._linked(str(result.target_id)) & set(experiments)))
        compared = {"name": (dataset.name, found.get("name")), "tags": (tags, {key: there.get(key) for key in tags})}
        was_there = result.action == "there"
        for what, (wanted, actual) in compared.items():
            if was_there and wanted != actual:
                result.keeps(f"the evaluation dataset {dataset.name!r} keeps its own {what}")
            else:
                expect(result, what, wanted, actual)

    def finish(self) -> list[EntityResult]:
        """Say of datasets whose records are there what a server has made of these, where the archive has something else."""
        finished, self._finished = self._finished, {}

        def one(pair: tuple[str, EvaluationDataset]) -> EntityResult:
            target, dataset = pair
            result = EntityResult(kind="evaluation_dataset", source_id=dataset.dataset_id)
            self._server.guard(result, lambda: self._compare_derived(target, dataset, result))
            return result

        told = [pair for pair in finished.items() if pair[1].schema or pair[1].profile]
        return list(bounded_map(self._server.executor, one, told, self._server.window))

    def _compare_derived(self, target: str, dataset: EvaluationDataset, result: EntityResult) -> None:
        found = self._server.get(f"datasets/{target}", api=API3)["dataset"]
        for name in ("schema", "profile"):
            if canonical(loaded(getattr(dataset, name))) != canonical(loaded(found.get(name))):
                what = f"the evaluation dataset {dataset.name!r} has another {name}"
                result.notes.append(
                    f"{what}, which a server makes of the records that it is sent; the archive keeps the old one"
                )

    # -- records ---------------------------------------------------------------------------------------------------

    def restore_records(
        self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, __: RestoreOptions
    ) -> list[EntityResult]:
        """Add the records of datasets, many in a request, several datasets at a time."""
        results = [EntityResult(kind="dataset_record", source_id=record_id(plan.record)) for plan in planned]
        by_dataset: dict[str, list[Pair]] = {}
        for plan, result in zip(planned, results, strict=True):
            record = cast("DatasetRecord", plan.record)
            target = ids.find("evaluation_dataset", record.dataset_id)
            if target is None:
                result.action = "failed"
                result.problems.append(not_restored(result, "its dataset was not restored"))
            else:
                by_dataset.setdefault(target, []).append((record, result))

        def one(group: tuple[str, list[Pair]]) -> None:
            target, pairs = group
            first = EntityResult(kind="dataset_record", source_id=pairs[0][1].source_id)
            self._server.guard(first, lambda: self._add(target, pairs))
            for _, result in pairs if first.problems else ():
                if result.target_id is None and result.action != "failed":
                    result.action = "failed"
                    result.problems.append(not_restored(result, first.problems[0].message))

        for _done in bounded_map(self._server.executor, one, by_dataset.items(), self._server.window):
            pass
        return results

    def _add(self, target: str, pairs: Sequence[Pair]) -> None:
        """Send what is not there, read it back and compare. What is there stays as it is."""
        state = self._records.setdefault(target, _Dataset())
        if not state.is_read:
            self._read_on(target, state)
        missing = []
        for record, result in pairs:
            known = state.there.get(_inputs(record))
            if known is None:
                missing.append((record, result))
                continue
            result.action, result.target_id = "there", known[0]
            if known[1] != _rest({name: loaded(getattr(record, name)) for name in _COMPARED}):
                result.keeps("records of evaluation datasets that differ at the target keep what they have there")
        # A server fails at an object among the outputs of a dataset after it has seen another kind of output.
        missing.sort(key=lambda pair: not str(pair[0].outputs or "").startswith("{"))
        for some in _requests(missing):
            self._send(target, some)
        sent = [(record, result) for record, result in missing if result.action != "failed"]
        found = self._read_on(target, state) if sent else {}
        if any(_inputs(record) not in found for record, _ in sent):
            # The clock of the server went back: they are not behind those that were there.
            state.token = ""
            found = self._read_on(target, state)
        for record, result in sent:
            _compare_record(record, result, found.get(_inputs(record)))

    def _send(self, target: str, pairs: Sequence[Pair]) -> None:
        """Send records. A server takes all of a request or nothing: where it refuses, each half is tried, so that a record
        that it does not take fails alone."""
        body = {"records": "[" + ",".join(_record_text(record) for record, _ in pairs) + "]"}
        path = f"{API3}datasets/{target}/records"
        try:
            self._server.client.post_json(path, body, retry=False)
        except AuthError:
            raise
        except ServerError as error:
            if error.status is None or error.status in _BUSY:
                self._server.client.post_json(path, body)
            elif len(pairs) > 1:
                middle = len(pairs) // 2
                self._send(target, pairs[:middle])
                self._send(target, pairs[middle:])
            else:
                result = pairs[0][1]
                result.action = "failed"
                result.problems.append(not_restored(result, error.message))

    def _read_on(self, target: str, state: _Dataset) -> dict[bytes, dict[str, Any]]:
        """Read the records from the last page on; what is read for the first time is remembered."""
        found: dict[bytes, dict[str, Any]] = {}
        while True:
            params = {"max_results": _PAGE, **({"page_token": state.token} if state.token else {})}
            answer = self._server.get(f"datasets/{target}/records", params, api=API3)
            for item in json.loads(answer.get("records") or "[]"):
                key = _digest(item.get("inputs"))
                if state.is_read:
                    found[key] = item
                state.there[key] = str(item["dataset_record_id"]), _rest(item)
            if not answer.get("next_page_token"):
                state.is_read = True
                return found
            state.token = answer["next_page_token"]


def _requests(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """The records in pieces that a request may have."""
    some: list[Pair] = []
    size = 0
    for record, result in pairs:
        chars = len(_record_text(record))
        if some and (len(some) == _RECORDS or size + chars > _CHARS):
            yield some
            some, size = [], 0
        some.append((record, result))
        size += chars
    if some:
        yield some


def _compare_record(record: DatasetRecord, result: EntityResult, item: Mapping[str, Any] | None) -> None:
    if item is None:
        result.action = "failed"
        result.problems.append(not_restored(result, "it was not read back from the target", code=DIFFERS))
        return
    result.target_id = str(item["dataset_record_id"])
    result.notes.append(NO_IDS.format("records of evaluation datasets"))
    for name in _COMPARED:
        wanted = loaded(getattr(record, name))
        if canonical(_plain(wanted)) != canonical(_plain(item.get(name))):
            expect(result, name, wanted, item.get(name))
    if any(
        isinstance(wanted := getattr(record, name), str) and (item.get(name) or "") != wanted
        for name in ("created_by", "last_updated_by")
    ):
        result.notes.append(NO_USERS.format("records of evaluation datasets, unless their tag mlflow.user says it"))
    if any(getattr(record, name) and item.get(name) != getattr(record, name) for name in ("source_id", "source_type")):
        result.notes.append("a server makes the id and type of a record's source of the source itself; the archive knows both")


def _plain(value: Any) -> Any:
    """A value as it is compared: a server tells no empty object apart from nothing."""
    return None if value == {} else value


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(canonical(value).encode(), digest_size=16).digest()


def _rest(members: Mapping[str, Any]) -> bytes:
    """The digest of everything but the inputs."""
    return _digest([_plain(members.get(name)) for name in _COMPARED])


def _inputs(record: DatasetRecord) -> bytes:
    return _digest(loaded(record.inputs))


def _record_text(record: DatasetRecord) -> str:
    """A record as a server takes it: the texts of the archive, put together as they are."""
    members = [f'"inputs":{record.inputs}']
    members += [f'"outputs":{record.outputs if isinstance(record.outputs, str) else "null"}']
    for name in ("expectations", "tags", "source"):
        text = getattr(record, name)
        if isinstance(text, str) and text != "null":
            members.append(f'"{name}":{text}')
    return "{" + ",".join(members) + "}"
