"""All kinds of entities of a tracking server but experiments, runs and traces: which reader has which kind.

The readers of this module are those of evaluation and review: datasets and their records, scorers, label schemas, review
queues, issues. Values that MLflow's API spells in capitals and its database in small letters are kept in small letters.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa

from mlflow_bundle.entities import DatasetRecord, EvaluationDataset, Issue, LabelSchema, Record, ReviewQueue, Scorer, Trace
from mlflow_bundle.errors import AuthError, ServerError, UnsupportedError
from mlflow_bundle.kinds import KINDS, order_key
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._matching import matches
from mlflow_bundle.tracking._port import ArtifactStore, EntityQuery
from mlflow_bundle.tracking._rest import RefusedError, RestClient
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._config_read import ConfigurationReader
from mlflow_bundle.tracking.rest._features import API3, SourceServer, Workspaced
from mlflow_bundle.tracking.rest._listing import Answer, decimal, in_batches, json_text, listed, record, single
from mlflow_bundle.tracking.rest._models_read import LoggedModels, ModelRegistry
from mlflow_bundle.tracking.rest._traces_read import TraceReader

__all__ = ["EntityReader"]

Reader = Callable[[EntityQuery], Iterable[Record]]

_PAGE: Final = 1_000
#: Up to so many experiments are asked about one by one where all could be asked about at once.
_FEW: Final = 20
_SCORERS_PER_REQUEST: Final = 50
_REFUSED: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
#: The name of the label schema that a server makes when label schemas are listed for the first time.
_DEFAULT_SCHEMA: Final = "Feedback"
#: The members of each input of a label schema as a database keeps them, and what stands for a missing one.
_INPUTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "pass_fail": {"positive_label": "", "negative_label": ""},
    "categorical": {"options": [], "multi_select": False},
    "numeric": {"min_value": None, "max_value": None},
    "text": {"max_length": None},
}
#: What no server tells by REST. Entities of deleted experiments are there, and refused.
_NEVER: Final[Mapping[str, tuple[str, ...]]] = {
    "logged_model": ("status_message", "unknown_deleted_ones"),
    "model_version": ("deleted_ones",),
    "trace": ("assessments.run_id", "integers_in_assessments", "links_to_deleted_prompts"),
    "scorer": ("in_deleted_experiments",),
    "label_schema": ("in_deleted_experiments", "unused_and_never_listed"),
    "review_queue": ("in_deleted_experiments",),
    "webhook": ("deleted_timestamp",),
    "skill_version": ("deleted_ones",),
}


class EntityReader:
    """Every kind that the server has, each in archive order."""

    def __init__(self, server: SourceServer, open_store: Callable[[str, str, RestClient], ArtifactStore]) -> None:
        self._server = server
        self._models = LoggedModels(server)
        self._traces = TraceReader(server, self._experiments_in, open_store)
        self._has_models: bool | None = None
        registry, evaluation = ModelRegistry(server), _Evaluation(server)
        self._evaluation = evaluation
        self._readers: Mapping[str, Reader] = {
            "logged_model": self._models.read,
            "registered_model": registry.models,
            "model_version": registry.versions,
            "evaluation_dataset": evaluation.datasets,
            "scorer": evaluation.scorers,
            "label_schema": evaluation.label_schemas,
            "review_queue": evaluation.queues,
            "issue": evaluation.issues,
            **ConfigurationReader(server).readers,
        }
        self._dataset_records = evaluation.dataset_records

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that the server has, in archive order."""
        return tuple(kind for kind in KINDS if kind in self._server.features.offered)

    @property
    def absent(self) -> tuple[str, ...]:
        """The kinds and fields that the server does not offer."""
        never = [f"{kind}.{name}" for kind in self.kinds for name in _NEVER.get(kind, ())]
        if self._has_models is False and "logged_model" in self.kinds:
            # Runs are not asked one by one what they read, where no search shows a model.
            never.append("run.model_inputs_of_deleted_models")
        return (*self._server.features.absent, *never)

    def read(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records of a kind that match, in archive order, in batches of at most 1,000.

        Raises:
            UnsupportedError: the server has no such kind.
        """
        if kind not in self.kinds:
            raise UnsupportedError(f"the MLflow server {self._server.client.uri} has no {kind}")
        return self._permitted(kind, query)

    def _permitted(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records that match, as far as this user may read them; the rest becomes a problem."""
        read = self._dataset_records if kind == "dataset_record" else self._readers.get(kind)
        try:
            if read is None:
                for batch in self._traces.entities(query):
                    yield [*batch]
            else:
                yield from in_batches(filter(matches(kind, query), read(query)), in_order=kind == "dataset_record")
        except AuthError as error:
            self._server.forbid(kind, error)

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metrics of logged models, or the spans of traces.

        Raises:
            NotFoundError: a logged model does not exist.
        """
        return self._traces.rows(ids) if table == "spans/1" else self._models.rows(ids)

    def trace_files(self, trace: Trace) -> ArtifactStore:
        """The files of a trace."""
        return self._traces.artifacts(trace, self._server.home(trace.experiment_id).client)

    def problems(self) -> list[Problem]:
        """The kinds that this user may not read, and what could not be read of traces so far."""
        return [*self._server.forbidden, *self._models.problems, *self._traces.problems]

    def notes(self) -> list[str]:
        """What cannot be read without changing the server, and what it seems to hide."""
        return [*self._server.notes(), *self._evaluation.notes(), *self._traces.notes()]

    def _experiments_in(self, workspace: str | None) -> list[str]:
        """The experiments of a workspace, deleted ones too."""
        ids = [experiment.experiment_id for experiment in self._server.experiments()]
        return next((group for home, group in self._server.by_home(ids) if home.name == workspace), [])

    def has_logged_models(self) -> bool:
        """Whether the server has any logged model that is not deleted; asked once."""
        if self._has_models is None:
            self._has_models = "logged_model" in self.kinds and self._models.any()
        return self._has_models


class _Evaluation:
    """Evaluation datasets, scorers, label schemas, review queues and issues of all workspaces of a server."""

    def __init__(self, server: SourceServer) -> None:
        self._server = server
        self._unopened: set[str] = set()

    def notes(self) -> list[str]:
        """What could not be asked for."""
        if not self._unopened:
            return []
        count = f"the label schemas of {len(self._unopened):,} experiments were not listed"
        why = "because a server writes a default one into each that is listed for the first time"
        return [f"{count}, {why}: only those that review queues use are known"]

    # -- datasets --

    def datasets(self, query: EntityQuery) -> Iterator[EvaluationDataset]:
        """The datasets; the experiments of each are asked for one by one, because a list does not tell them."""
        del query
        found = list(self._datasets())
        for (workspace, answer), ids in zip(found, self._server.map(self._experiments_of, found), strict=True):
            tags = json.loads(answer.get("tags") or "{}")
            yield record(
                EvaluationDataset,
                answer,
                workspace=workspace.name,
                tags=[{"key": key, "value": value} for key, value in tags.items()],
                experiment_ids=sorted(ids),
            )

    def _datasets(self) -> Iterator[tuple[Workspaced, Answer]]:
        asked = {"max_results": _PAGE, "order_by": ["created_time ASC"]}
        for workspace in self._server.workspaces:
            found = listed(workspace.client, f"{API3}datasets/search", "datasets", asked, by=("dataset_id",), post=True)
            yield from ((workspace, answer) for answer in found)

    def _experiments_of(self, dataset: tuple[Workspaced, Answer]) -> list[str]:
        workspace, answer = dataset
        path = f"{API3}datasets/{answer['dataset_id']}/experiment-ids"
        found: _ExperimentIds = workspace.client.get_json(path, answer=_ExperimentIds)
        return [str(experiment_id) for experiment_id in found.experiment_ids]

    def dataset_records(self, query: EntityQuery) -> Iterator[Record]:
        """The records of all datasets in archive order, page by page: no dataset is ever held as a whole."""
        parents = None if query.parents is None else frozenset(query.parents)
        chosen = [
            (workspace, answer["dataset_id"])
            for workspace, answer in self._datasets()
            if parents is None or answer["dataset_id"] in parents
        ]
        first = self._server.map(lambda one: _record_page(*one), chosen)
        streams = [_records_of(*dataset, page) for dataset, page in zip(chosen, first, strict=True)]
        return heapq.merge(*streams, key=order_key)

    # -- scorers --

    def scorers(self, query: EntityQuery) -> Iterator[Scorer]:
        """The scorers of all active experiments with all versions. A judge that uses the gateway names its endpoint, as the
        server shows it. Those of deleted experiments are refused by the server."""
        latest = list(self._latest_scorers(query))
        online = self._online([(workspace, str(scorer.get("scorer_id") or "")) for workspace, scorer in latest])
        for (_, scorer), versions in zip(latest, self._server.map(self._scorer_versions, latest), strict=True):
            yield record(
                Scorer,
                scorer,
                experiment_id=str(scorer["experiment_id"]),
                versions=sorted(versions, key=lambda version: int(version["scorer_version"])),
                online=sorted(
                    online.get(str(scorer.get("scorer_id")), []), key=lambda config: str(config["online_scoring_config_id"])
                ),
            )

    def _latest_scorers(self, query: EntityQuery) -> Iterator[tuple[Workspaced, Answer]]:
        """The newest version of each scorer: all experiments at once where the server can do that."""
        path, by = f"{API3}scorers/list", ("experiment_id", "scorer_name")
        if query.experiment_ids is None or len(query.experiment_ids) > _FEW:
            try:
                everything = [
                    (workspace, answer)
                    for workspace in self._server.workspaces
                    for answer in listed(workspace.client, path, "scorers", {}, by=by)
                ]
            except RefusedError as error:
                # Earlier releases insist on one experiment.
                if error.error_code not in _REFUSED:
                    raise
            else:
                yield from everything
                return
        yield from self._of_each_experiment(query, path, "scorers", by)

    def _scorer_versions(self, scorer: tuple[Workspaced, Answer]) -> list[Answer]:
        workspace, latest = scorer
        if int(latest["scorer_version"]) == 1:
            return [latest]
        params = {"experiment_id": str(latest["experiment_id"]), "name": latest["scorer_name"]}
        return listed(workspace.client, f"{API3}scorers/versions", "scorers", params, by=("scorer_version",))

    def _online(self, scorers: Iterable[tuple[Workspaced, str]]) -> dict[str, list[Answer]]:
        """The online scoring of these scorers by scorer id; servers before 3.9 have none."""
        groups: dict[str | None, list[tuple[Workspaced, str]]] = defaultdict(list)
        for workspace, scorer_id in scorers:
            if scorer_id:
                groups[workspace.name].append((workspace, scorer_id))
        found: dict[str, list[Answer]] = defaultdict(list)
        for group in groups.values():
            for some in chunks(group, _SCORERS_PER_REQUEST):
                params = {"scorer_ids": [scorer_id for _, scorer_id in some]}
                try:
                    path = f"{API3}scorers/online-configs"
                    answer: _OnlineConfigs = some[0][0].client.get_json(path, params, answer=_OnlineConfigs)
                except RefusedError as error:
                    if error.endpoint_missing:
                        return {}
                    raise
                for config in answer.configs:
                    found[config["scorer_id"]].append({**config, "sample_rate": decimal(config.get("sample_rate"))})
        return found

    # -- label schemas, queues, issues --

    def label_schemas(self, query: EntityQuery) -> Iterator[LabelSchema]:
        """The label schemas of all active experiments, without making any.

        Listing the schemas of an experiment writes a default one, unless it is there. So only experiments that have it are
        listed. In the others, which nobody ever opened for review, schemas are known from the queues that use them; a
        schema there that no queue uses cannot be found without changing the server.
        """
        active = self._active(query)
        has_default = list(self._server.map(self._has_default_schema, active))
        opened = [one for one, there in zip(active, has_default, strict=True) if there]
        for _, schema in self._each(opened, f"{API3}label-schemas/list", "label_schemas", ("schema_id",)):
            yield _label_schema(schema)
        unopened = {experiment for (_, experiment), there in zip(active, has_default, strict=True) if not there}
        self._unopened |= unopened
        named = {
            (workspace, schema_id)
            for workspace, queue in self._queues(query)
            if str(queue["experiment_id"]) in unopened
            for schema_id in queue.get("schema_ids", [])
        }
        for found in self._server.map(self._schema, sorted(named, key=lambda one: one[1])):
            if found is not None:
                yield _label_schema(found)

    def _has_default_schema(self, experiment: tuple[Workspaced, str]) -> bool:
        workspace, experiment_id = experiment
        params = {"experiment_id": experiment_id, "name": _DEFAULT_SCHEMA}
        try:
            schema = single(workspace.client, f"{API3}label-schemas/get-by-name", "label_schema", params)
        except RefusedError as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return bool(schema.get("is_default"))

    def _schema(self, named: tuple[Workspaced, str]) -> Answer | None:
        """A label schema by id; None where a queue names one that was deleted."""
        workspace, schema_id = named
        try:
            return single(workspace.client, f"{API3}label-schemas/get", "label_schema", {"schema_id": schema_id})
        except RefusedError as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def queues(self, query: EntityQuery) -> Iterator[ReviewQueue]:
        """The review queues of all active experiments with their items."""
        found = list(self._queues(query))
        for (_, queue), items in zip(found, self._server.map(self._items, found), strict=True):
            yield record(
                ReviewQueue,
                _in_small_letters(queue, "queue_type"),
                users=sorted(queue.get("users", [])),
                schema_ids=sorted(queue.get("schema_ids", [])),
                items=sorted(
                    (_in_small_letters(item, "item_type", "status") for item in items), key=lambda item: str(item["item_id"])
                ),
            )

    def _queues(self, query: EntityQuery) -> Iterator[tuple[Workspaced, Answer]]:
        return self._of_each_experiment(query, f"{API3}review-queues/list", "review_queues", ("queue_id",))

    def _items(self, queue: tuple[Workspaced, Answer]) -> list[Answer]:
        workspace, answer = queue
        params = {"queue_id": answer["queue_id"], "max_results": _PAGE}
        return listed(workspace.client, f"{API3}review-queues/items/list", "items", params, by=("item_type", "item_id"))

    def issues(self, query: EntityQuery) -> Iterator[Issue]:
        """The issues of all experiments."""
        del query
        for workspace in self._server.workspaces:
            params = {"max_results": _PAGE}
            for issue in listed(workspace.client, f"{API3}issues/search", "issues", params, by=("issue_id",), post=True):
                texts = {name: json_text(issue.get(name)) for name in ("root_causes", "categories")}
                metadata = issue.get("metadata")
                yield record(Issue, issue, **texts, metadata=json_text(metadata and dict(sorted(metadata.items()))))

    # -- experiments --

    def _active(self, query: EntityQuery) -> list[tuple[Workspaced, str]]:
        """The active experiments that the query is about."""
        wanted = None if query.experiment_ids is None else set(query.experiment_ids)
        ids = [
            experiment.experiment_id
            for experiment in self._server.experiments()
            if experiment.lifecycle_stage == "active" and (wanted is None or experiment.experiment_id in wanted)
        ]
        return [(home, experiment_id) for home, group in self._server.by_home(ids) for experiment_id in group]

    def _of_each_experiment(
        self, query: EntityQuery, path: str, member: str, by: Sequence[str]
    ) -> Iterator[tuple[Workspaced, Answer]]:
        return self._each(self._active(query), path, member, by)

    def _each(
        self, experiments: Sequence[tuple[Workspaced, str]], path: str, member: str, by: Sequence[str]
    ) -> Iterator[tuple[Workspaced, Answer]]:
        """A list of every one of these experiments; one that was deleted meanwhile has nothing."""

        def ask(experiment: tuple[Workspaced, str]) -> list[Answer]:
            workspace, experiment_id = experiment
            try:
                return listed(workspace.client, path, member, {"experiment_id": experiment_id}, by=by)
            except RefusedError as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise

        for (workspace, _), answers in zip(experiments, self._server.map(ask, experiments), strict=True):
            yield from ((workspace, answer) for answer in answers)


class _ExperimentIds(msgspec.Struct):
    experiment_ids: list[Any] = []


class _OnlineConfigs(msgspec.Struct):
    configs: list[Answer] = []


class _RecordPage(msgspec.Struct):
    """A page of the records of a dataset, which come as JSON within JSON, also where there are none."""

    records: str
    next_page_token: str = ""


def _record_page(workspace: Workspaced, dataset_id: str, token: str = "") -> _RecordPage:
    params = {"max_results": _PAGE, **({"page_token": token} if token else {})}
    page: _RecordPage = workspace.client.get_json(f"{API3}datasets/{dataset_id}/records", params, answer=_RecordPage)
    return page


def _records_of(workspace: Workspaced, dataset_id: str, page: _RecordPage) -> Iterator[DatasetRecord]:
    """The records of a dataset, whose first page is there. The server gives them by time; those of the last time wait for the
    next page, because only then all of them are known and can be put in order of their ids."""
    waiting: dict[str, DatasetRecord] = {}
    while True:
        found = [_dataset_record(answer) for answer in json.loads(page.records)]
        times = [order_key(one)[0] for one in (*waiting.values(), *found)]
        if times != sorted(times):
            raise ServerError(f"the MLflow server does not order the records of dataset {dataset_id} by time")
        waiting |= {one.dataset_record_id: one for one in found}
        ready = [one for one in waiting.values() if order_key(one)[0] < times[-1]]
        for one in sorted(ready, key=order_key):
            del waiting[one.dataset_record_id]
            yield one
        if not page.next_page_token:
            break
        page = _record_page(workspace, dataset_id, page.next_page_token)
    yield from sorted(waiting.values(), key=order_key)


def _dataset_record(answer: Answer) -> DatasetRecord:
    texts = {name: json_text(answer.get(name)) for name in ("inputs", "outputs", "expectations", "tags", "source")}
    return record(DatasetRecord, answer, **texts)


def _label_schema(answer: Answer) -> LabelSchema:
    """The label schema with its input as a database keeps it: a type, and a JSON object with all members of that type."""
    input_type, given = next(iter(answer.get("input", {}).items()), (None, {}))
    config = None if input_type is None else {**_INPUTS.get(input_type, {}), **given}
    return record(
        LabelSchema,
        _in_small_letters(answer, "type"),
        input_type=input_type,
        input_config=json_text(config),
        created_time=answer.get("created_at"),
        last_update_time=answer.get("last_updated_at"),
    )


def _in_small_letters(answer: Answer, *names: str) -> Answer:
    return {**answer, **{name: str(answer[name]).lower() for name in names if answer.get(name)}}
