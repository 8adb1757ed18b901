"""Logged models with their metrics, registered models, prompts and their versions, read over REST."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
import pyarrow as pa

from mlflow_bundle.entities import LoggedModel, ModelVersion, Record, RegisteredModel
from mlflow_bundle.errors import NotFoundError
from mlflow_bundle.kinds import PROMPT_TAG
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ROW_SCHEMAS, EntityQuery
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.rest._answers import chunks, quoted
from mlflow_bundle.tracking.rest._features import SourceServer, Workspaced
from mlflow_bundle.tracking.rest._listing import Answer, listed, pages, record, single
from mlflow_bundle.tracking.rest._releases import PROMPTS_SINCE, release_of

__all__ = ["LoggedModels", "ModelRegistry"]

_MODELS: Final = f"{API}logged-models"
_SEARCH: Final = f"{_MODELS}/search"
_MODELS_PER_PAGE: Final = 500
#: Models whose metrics are asked for in one request.
_MODELS_PER_ROWS: Final = 50
_EXPERIMENTS_PER_SEARCH: Final = 1_000
#: Up to so many models are asked for by name.
_FEW_NAMES: Final = 20
_STATUS: Final = "LOGGED_MODEL_"
#: Searches leave prompts out unless they are asked for.
_PROMPTS: Final = f"tags.`{PROMPT_TAG}` = 'true'"


class _List(NamedTuple):
    """A paged list of the registry: its endpoint, the member with the items, how many a page, what tells items apart."""

    path: str
    member: str
    size: int
    by: tuple[str, ...]

    def tell_apart(self, item: Answer) -> tuple[Any, ...]:
        return tuple(item.get(name) for name in self.by)


_REGISTERED: Final = _List(f"{API}registered-models/search", "registered_models", 1_000, ("name",))
_VERSIONS: Final = _List(f"{API}model-versions/search", "model_versions", 5_000, ("name", "version"))
_BY_CREATION: Final = ({"field_name": "creation_timestamp", "ascending": True}, {"field_name": "model_id", "ascending": True})


class _Place(msgspec.Struct):
    """The answer of ``model-versions/get-download-uri``."""

    artifact_uri: str | None = None


class _Data(msgspec.Struct):
    params: list[Answer] = []


class _Model(msgspec.Struct):
    """A logged model without its metrics, which are not decoded."""

    info: Answer
    data: _Data = msgspec.field(default_factory=_Data)

    def record(self, *, deleted: bool) -> LoggedModel:
        status = str(self.info.get("status", "")).removeprefix(_STATUS).removeprefix("UPLOAD_")
        return record(
            LoggedModel,
            self.info,
            params=self.data.params,
            status=status or None,
            lifecycle_stage="deleted" if deleted else "active",
        )


class _OneModel(msgspec.Struct):
    model: _Model


class _Metric(msgspec.Struct, gc=False):
    key: str
    value: float = 0.0
    timestamp: int = 0
    step: int = 0
    run_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""


class _Owner(msgspec.Struct):
    model_id: str


class _Metrics(msgspec.Struct):
    metrics: list[_Metric] = []


class _ModelMetrics(msgspec.Struct):
    """A logged model's metrics, and nothing else of it."""

    info: _Owner
    data: _Metrics = msgspec.field(default_factory=_Metrics)


class _OneModelMetrics(msgspec.Struct):
    model: _ModelMetrics


class LoggedModels:
    """The logged models of all workspaces of a server.

    Deleted ones are in no list: they are read where their ids are known, from runs, versions and the user. The server tells
    neither ``status_message`` nor the lifecycle stage; a model that can be read and is in no search is a deleted one.
    """

    def __init__(self, server: SourceServer) -> None:
        self._server = server
        #: Where the models are that were read so far: experiment, workspace, and whether searches show them.
        self._seen: dict[str, tuple[str, Workspaced, bool]] = {}
        #: Models that vanished between the reading of their records and that of their metrics.
        self.problems: list[Problem] = []

    def read(self, query: EntityQuery) -> Iterable[Record]:
        """The logged models that may match, in archive order unless they are asked for by id."""
        if query.ids is not None:
            return list(self._by_id(query.ids))
        streams = [self._in_order(home, group) for home, group in self._groups(query.experiment_ids)]
        return chain.from_iterable(streams)

    def any(self) -> bool:
        """Whether there is a logged model that is not deleted."""
        searches = [(home, {"experiment_ids": group, "max_results": 1}) for home, group in self._groups(None)]
        return any(next(pages(home.client, _SEARCH, "models", body, post=True)) for home, body in searches)

    def _groups(self, experiment_ids: Sequence[str] | None) -> Iterator[tuple[Workspaced, Sequence[str]]]:
        """The experiments (all: None) that one search takes."""
        if experiment_ids is None:
            experiment_ids = [experiment.experiment_id for experiment in self._server.experiments()]
        for home, ids in self._server.by_home(experiment_ids):
            yield from ((home, group) for group in chunks(ids, _EXPERIMENTS_PER_SEARCH))

    def _in_order(self, workspace: Workspaced, ids: Sequence[str]) -> Iterator[LoggedModel]:
        """The models of some experiments by time and id.

        The next page is asked for by time rather than by position, so that models that vanish meanwhile hide no others.
        """
        seen: set[str] = set()
        since: int | None = None
        while ids:
            body: dict[str, Any] = {"experiment_ids": ids, "max_results": _MODELS_PER_PAGE, "order_by": _BY_CREATION}
            if since is not None:
                body["filter"] = f"creation_timestamp >= {since}"
            new = []
            for page in pages(workspace.client, _SEARCH, "models", body, item=_Model, post=True):
                new = [model for model in page if model.info["model_id"] not in seen]
                for model in new:
                    seen.add(model.info["model_id"])
                    yield self._note(workspace, model, listed=True)
                latest = new[-1].info.get("creation_timestamp_ms") if new else None
                if len(page) == _MODELS_PER_PAGE and latest not in (None, since):
                    since = latest
                    break
            else:
                return

    def _note(self, workspace: Workspaced, model: _Model, *, listed: bool) -> LoggedModel:
        found = model.record(deleted=not listed)
        self._seen[found.model_id] = (found.experiment_id, workspace, listed)
        return found

    def _by_id(self, ids: Sequence[str]) -> Iterator[LoggedModel]:
        """These models as far as they exist, deleted ones too, in no order."""
        found = [answer for answer in self._server.map(self._get, dict.fromkeys(ids)) if answer is not None]
        shown = self._shown([(workspace, model.info["experiment_id"], model.info["model_id"]) for workspace, model in found])
        for workspace, model in found:
            yield self._note(workspace, model, listed=model.info["model_id"] in shown)

    def _get(self, model_id: str) -> tuple[Workspaced, _Model] | None:
        for workspace in self._server.workspaces:
            answer = _one_model(workspace.client, model_id, _OneModel)
            if answer is not None:
                return workspace, answer.model
        return None

    def _shown(self, models: Sequence[tuple[Workspaced, str, str]]) -> set[str]:
        """Those of the models (workspace, experiment, id) that a search shows: the others are deleted."""
        shown: set[str] = set()
        groups: dict[str | None, list[tuple[Workspaced, str, str]]] = defaultdict(list)
        for model in models:
            groups[model[0].name].append(model)
        for group in groups.values():
            for some in chunks(group, _MODELS_PER_ROWS):
                page = self._search(some[0][0], [(experiment, model) for _, experiment, model in some], _ModelMetrics)
                shown.update(model.info.model_id for model in page)
        return shown

    def _search(self, workspace: Workspaced, models: Sequence[tuple[str, str]], item: Any) -> list[Any]:
        """Those of the models (experiment, id) that are not deleted."""
        body = {
            "experiment_ids": sorted({experiment for experiment, _ in models}),
            "filter": f"model_id IN ({', '.join(quoted(model) for _, model in models)})",
            "max_results": len(models) + 1,
        }
        return list(chain.from_iterable(pages(workspace.client, _SEARCH, "models", body, item=item, post=True)))

    def rows(self, ids: Sequence[str]) -> Iterator[pa.Table]:
        """All metrics of these models as tables of ``ROW_SCHEMAS["model_metrics/1"]``.

        Raises:
            NotFoundError: one of them does not exist.
        """
        unknown = [model_id for model_id in dict.fromkeys(ids) if model_id not in self._seen]
        list(self._by_id(unknown))
        groups = [range(start, min(start + _MODELS_PER_ROWS, len(ids))) for start in range(0, len(ids), _MODELS_PER_ROWS)]
        for table in self._server.map(lambda owners: self._table(ids, owners), groups):
            if table.num_rows:
                yield table

    def _table(self, ids: Sequence[str], owners: Sequence[int]) -> pa.Table:
        metrics: dict[str, list[_Metric]] = {}
        groups: dict[str | None, list[str]] = defaultdict(list)
        for owner in owners:
            if ids[owner] not in self._seen:
                raise NotFoundError(f"the logged model {ids[owner]} is not on the MLflow server {self._server.client.uri}")
            groups[self._seen[ids[owner]][1].name].append(ids[owner])
        for group in groups.values():
            workspace = self._seen[group[0]][1]
            shown = [(self._seen[model][0], model) for model in group if self._seen[model][2]]
            page = self._search(workspace, shown, _ModelMetrics) if shown else []
            metrics |= {model.info.model_id: model.data.metrics for model in page}
            for model_id in group:
                if model_id not in metrics:
                    answer = _one_model(workspace.client, model_id, _OneModelMetrics)
                    metrics[model_id] = answer.model.data.metrics if answer is not None else []
                    if answer is None:
                        self._report_gone(model_id)
        return _table(ids, owners, metrics)

    def _report_gone(self, model_id: str) -> None:
        message = f"the metrics of logged model {model_id} cannot be read: it was deleted while the server was being read"
        experiments = (self._seen[model_id][0],)
        self.problems.append(
            Problem(code="vanished", kind="logged_model", id=model_id, message=message, experiments=experiments)
        )


def _one_model(client: RestClient, model_id: str, answer: Any) -> Any:
    """A logged model, deleted or not; None where it does not exist."""
    try:
        return client.get_json(f"{_MODELS}/{quote(model_id, safe='')}", {"allow_deleted": "true"}, answer=answer)
    except RefusedError as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _table(ids: Sequence[str], owners: Sequence[int], metrics: Mapping[str, Sequence[_Metric]]) -> pa.Table:
    """The metrics of the owners as columns, each owner's in archive order."""
    rows = []
    for owner in owners:
        points = sorted(metrics[ids[owner]], key=lambda point: (point.key, point.step, point.timestamp, point.run_id))
        rows += [(owner, point) for point in points]
    columns: dict[str, list[Any]] = {
        "owner": [owner for owner, _ in rows],
        **{name: [getattr(point, name) for _, point in rows] for name in ("key", "step", "timestamp", "value", "run_id")},
        **{name: [getattr(point, name) or None for _, point in rows] for name in ("dataset_name", "dataset_digest")},
    }
    schema = ROW_SCHEMAS["model_metrics/1"]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


class ModelRegistry:
    """Registered models, prompts and their versions, in all workspaces of a server.

    Deleted versions are in no answer: only a database keeps them. Searches leave prompts out unless they are asked for, so
    that everything is asked for twice; releases before 2.21 know no prompts and show them, or refuse the second question.
    """

    def __init__(self, server: SourceServer) -> None:
        self._server = server

    def models(self, query: EntityQuery) -> Iterator[RegisteredModel]:
        """The registered models and prompts that may match. Only here are aliases complete."""
        for workspace, found in self._everything(_REGISTERED, query.ids):
            aliases = sorted(found.get("aliases") or [], key=lambda alias: str(alias["alias"]))
            yield record(RegisteredModel, found, workspace=workspace.name, aliases=aliases)

    def versions(self, query: EntityQuery) -> Iterator[ModelVersion]:
        """The versions that may match, each with the place where its files are."""
        parents = query.parents
        if query.ids is not None:
            parents = tuple({identity.rpartition("/")[0] for identity in query.ids})
        found = list(self._everything(_VERSIONS, parents))
        found += self._hidden(found)
        for (workspace, answer), place in zip(found, self._server.map(self._location, found), strict=True):
            yield record(ModelVersion, answer, workspace=workspace.name, storage_location=place)

    def _everything(self, which: _List, ids: Sequence[str] | None) -> Iterator[tuple[Workspaced, Answer]]:
        """Models or versions of all workspaces: at least those of the named models, where they are few, else all."""
        for workspace in self._server.workspaces:
            filters = [""]
            if ids is not None and len(ids) <= _FEW_NAMES and not any("'" in name for name in ids):
                filters = [f"name = '{_in(workspace, name)}'" for name in ids]
            found: dict[tuple[Any, ...], Answer] = {}
            for text in filters:
                for answer in _searched(workspace.client, which, text):
                    found.setdefault(which.tell_apart(answer), answer)
            yield from ((workspace, answer) for answer in found.values())

    def _hidden(self, found: Sequence[tuple[Workspaced, Answer]]) -> Iterator[tuple[Workspaced, Answer]]:
        """Versions that are no prompts of models that have a version which is one: no search shows them."""
        numbers: dict[tuple[str | None, str], set[int]] = defaultdict(set)
        prompts: dict[tuple[str | None, str], Workspaced] = {}
        for workspace, answer in found:
            numbers[workspace.name, answer["name"]].add(int(answer["version"]))
            if any(tag.get("key") == PROMPT_TAG and tag.get("value") == "true" for tag in answer.get("tags") or ()):
                prompts[workspace.name, answer["name"]] = workspace
        ids = tuple({name if home in (None, "default") else f"{home}/{name}" for home, name in prompts})
        asked = []
        for workspace, model in self._everything(_REGISTERED, ids) if prompts else ():
            key = (workspace.name, model["name"])
            last = max((int(version["version"]) for version in model.get("latest_versions") or ()), default=0)
            if key in prompts:
                asked += [(workspace, model["name"], number) for number in range(1, last + 1) if number not in numbers[key]]
        yield from (answer for answer in self._server.map(_version, asked) if answer is not None)

    def _location(self, found: tuple[Workspaced, Answer]) -> str | None:
        """Where the files of a version are. It differs from ``source`` only where that names another model; unknown when
        the version, or the logged model that it was made of, was deleted since it was listed."""
        workspace, version = found
        source: str = version.get("source") or ""
        if self._server.client.version() and not source.startswith("models:"):
            return source or None
        params = {"name": version["name"], "version": version["version"]}
        try:
            answer: _Place = workspace.client.get_json(f"{API}model-versions/get-download-uri", params, answer=_Place)
        except RefusedError as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return answer.artifact_uri


def _version(asked: tuple[Workspaced, str, int]) -> tuple[Workspaced, Answer] | None:
    """A version; None where it was deleted."""
    workspace, name, number = asked
    try:
        params = {"name": name, "version": str(number)}
        return workspace, single(workspace.client, f"{API}model-versions/get", "model_version", params)
    except RefusedError as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _searched(client: RestClient, which: _List, text: str) -> Iterator[Answer]:
    """What a filter finds among models, and then among prompts."""
    params = {"max_results": which.size, **({"filter": text} if text else {})}
    yield from listed(client, which.path, which.member, params, by=which.by)
    params["filter"] = f"{text} AND {_PROMPTS}" if text else _PROMPTS
    try:
        yield from listed(client, which.path, which.member, params, by=which.by)
    except RefusedError as error:
        # Releases that know no prompts know no filters over tags either, or not for versions.
        knows_prompts = (version := client.version()) and release_of(version) >= PROMPTS_SINCE
        if knows_prompts or error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise


def _in(workspace: Workspaced, identity: str) -> str:
    """The name within a workspace of a model whose id may begin with the name of the workspace."""
    return identity if workspace.name in (None, "default") else identity.removeprefix(f"{workspace.name}/")
