"""The server's answers about experiments and runs: typed, and turned into records. A field that is missing stays absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import ModelInput, ModelOutput
from mlflow_bundle.records import Dataset, DatasetInput, Experiment, KeyValue, Run
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.rest._listing import steady

__all__ = [
    "IDS_PER_SEARCH",
    "OneRun",
    "RunAnswer",
    "RunPage",
    "SearchRuns",
    "all_runs",
    "chunks",
    "experiments",
    "get_run",
    "model_links",
    "of_all_runs",
    "quoted",
    "run_ids",
    "runs_among",
    "search_runs",
]

_SEARCH_RUNS: Final = f"{API}runs/search"
_SEARCH_EXPERIMENTS: Final = f"{API}experiments/search"
_EXPERIMENTS_PER_PAGE: Final = 1_000
#: Runs that are searched for by id in one request.
IDS_PER_SEARCH: Final = 200
_RUNS_PER_PAGE: Final = 500
_STAGES: Final = {"ALL": ("active", "deleted"), "ACTIVE_ONLY": ("active",), "DELETED_ONLY": ("deleted",)}

Text = str | UnsetType
Lifecycle = Literal["active", "deleted"]
Item = TypeVar("Item")


def quoted(text: str) -> str:
    """``text`` as a string of MLflow's filter language, which knows no escapes."""
    quote = '"' if "'" in text else "'"
    return f"{quote}{text}{quote}"


class _Pair(msgspec.Struct):
    key: str = ""
    value: str = ""


class _Key(msgspec.Struct):
    key: str = ""


class _RunInfo(msgspec.Struct):
    experiment_id: str = ""
    run_id: str = ""
    run_uuid: str = ""
    run_name: Text = UNSET
    user_id: Text = UNSET
    status: Text = UNSET
    start_time: int | UnsetType = UNSET
    end_time: int | UnsetType = UNSET
    lifecycle_stage: Lifecycle = "active"
    artifact_uri: Text = UNSET


class _RunData(msgspec.Struct):
    metrics: tuple[_Key, ...] = ()
    params: tuple[_Pair, ...] = ()
    tags: tuple[_Pair, ...] = ()


class _Dataset(msgspec.Struct):
    name: str = ""
    digest: str = ""
    source_type: Text = UNSET
    source: Text = UNSET
    schema: Text = UNSET
    profile: Text = UNSET


class _DatasetInput(msgspec.Struct):
    dataset: _Dataset = msgspec.field(default_factory=_Dataset)
    tags: tuple[_Pair, ...] = ()


class _Inputs(msgspec.Struct):
    dataset_inputs: tuple[_DatasetInput, ...] = ()
    model_inputs: tuple[ModelInput, ...] = ()


class _Outputs(msgspec.Struct):
    model_outputs: tuple[ModelOutput, ...] = ()


class _Links(msgspec.Struct):
    inputs: _Inputs = msgspec.field(default_factory=_Inputs)
    outputs: _Outputs = msgspec.field(default_factory=_Outputs)


class _LinksOfRun(msgspec.Struct):
    run: _Links


class RunAnswer(msgspec.Struct):
    """A run as ``runs/search`` and ``runs/get`` answer it. Of its metrics only the keys are decoded."""

    info: _RunInfo = msgspec.field(default_factory=_RunInfo)
    data: _RunData = msgspec.field(default_factory=_RunData)
    inputs: _Inputs = msgspec.field(default_factory=_Inputs)
    outputs: _Outputs = msgspec.field(default_factory=_Outputs)

    @property
    def run_id(self) -> str:
        """The id, which early releases call ``run_uuid``."""
        return self.info.run_id or self.info.run_uuid

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The keys of the metrics that the run has, sorted."""
        return tuple(sorted(metric.key for metric in self.data.metrics))

    def tag(self, key: str) -> str | None:
        """The value of a tag, None where the run has no such tag."""
        return next((tag.value for tag in self.data.tags if tag.key == key), None)

    def record(self) -> Run:
        """The run as a record: params, tags and input tags by key, inputs by name and digest, models by id.

        A search does not tell ``model_inputs``, nor in earlier releases ``model_outputs``: see ``model_links``.
        """
        info = self.info
        return Run(
            run_id=self.run_id,
            experiment_id=info.experiment_id,
            run_name=info.run_name,
            user_id=info.user_id,
            status=info.status,
            start_time=info.start_time,
            end_time=info.end_time,
            lifecycle_stage=info.lifecycle_stage,
            artifact_uri=info.artifact_uri,
            params=_pairs(self.data.params),
            tags=_pairs(self.data.tags),
            inputs=_inputs(self.inputs.dataset_inputs),
            model_inputs=_by_id(self.inputs.model_inputs),
            model_outputs=_by_id_and_step(self.outputs.model_outputs),
        )


class RunPage(msgspec.Struct):
    """A page of ``runs/search``."""

    runs: tuple[RunAnswer, ...] = ()
    next_page_token: str = ""


class OneRun(msgspec.Struct):
    """The answer of ``runs/get``."""

    run: RunAnswer


class _Experiment(msgspec.Struct):
    experiment_id: str
    name: str
    lifecycle_stage: Lifecycle = "active"
    artifact_location: Text = UNSET
    creation_time: int | UnsetType = UNSET
    last_update_time: int | UnsetType = UNSET
    workspace: Text = UNSET
    tags: tuple[_Pair, ...] = ()

    def record(self) -> Experiment:
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "tags"}
        return Experiment(**fields, tags=_pairs(self.tags))


class _ExperimentPage(msgspec.Struct):
    experiments: tuple[_Experiment, ...] = ()
    next_page_token: str = ""


def _pairs(pairs: Sequence[_Pair]) -> tuple[KeyValue, ...]:
    # Strings sort by code point, which is the order of their UTF-8 bytes.
    return tuple(KeyValue(key=pair.key, value=pair.value) for pair in sorted(pairs, key=lambda pair: pair.key))


def _inputs(inputs: Sequence[_DatasetInput]) -> tuple[DatasetInput, ...]:
    in_order = sorted(inputs, key=lambda entry: (entry.dataset.name, entry.dataset.digest))
    return tuple(
        DatasetInput(dataset=Dataset(**msgspec.structs.asdict(entry.dataset)), tags=_pairs(entry.tags)) for entry in in_order
    )


def _by_id(links: Sequence[ModelInput]) -> tuple[ModelInput, ...]:
    return tuple(sorted(links, key=lambda link: link.model_id))


def _by_id_and_step(links: Sequence[ModelOutput]) -> tuple[ModelOutput, ...]:
    return tuple(sorted(links, key=lambda link: (link.model_id, link.step)))


class SearchRuns(msgspec.Struct, omit_defaults=True):
    """The body of ``runs/search``."""

    experiment_ids: Sequence[str]
    filter: str = ""
    run_view_type: str = ""
    max_results: int = 0
    order_by: tuple[str, ...] = ()
    page_token: str = ""


def search_runs(client: RestClient, search: SearchRuns) -> RunPage:
    """One page of runs."""
    page: RunPage = client.post_json(_SEARCH_RUNS, search, answer=RunPage)
    return page


def all_runs(client: RestClient, search: SearchRuns) -> list[RunAnswer]:
    """All that a search finds, each once."""
    return steady(client, _SEARCH_RUNS, lambda: _pages(client, search), lambda run: run.run_id)


def of_all_runs(
    client: RestClient, search: SearchRuns, *, make: Callable[[RunAnswer], Item], key: Callable[[Item], str]
) -> list[Item]:
    """What ``make`` keeps of each run that a search finds, each once by ``key``. Of the runs themselves only a page is kept."""
    return steady(client, _SEARCH_RUNS, lambda: (list(map(make, runs)) for runs in _pages(client, search)), key)


def run_ids(client: RestClient, search: SearchRuns) -> list[str]:
    """The ids of all that a search finds, each once."""
    return of_all_runs(client, search, make=lambda run: run.run_id, key=str)


def _pages(client: RestClient, search: SearchRuns) -> Iterator[tuple[RunAnswer, ...]]:
    token = ""
    while True:
        page = search_runs(client, msgspec.structs.replace(search, max_results=_RUNS_PER_PAGE, page_token=token))
        yield page.runs
        token = page.next_page_token
        if not token:
            return


def runs_among(client: RestClient, search: SearchRuns, run_ids: Sequence[str]) -> Sequence[RunAnswer]:
    """Those of these runs, at most ``IDS_PER_SEARCH``, that the search would find, in no order.

    Raises:
        RefusedError: the server does not understand the filter.
    """
    names = ", ".join(f"'{run_id}'" for run_id in run_ids)
    among = f"attributes.run_id IN ({names})"
    text = f"{search.filter} AND {among}" if search.filter else among
    try:
        return search_runs(client, msgspec.structs.replace(search, filter=text, max_results=len(run_ids))).runs
    except RefusedError as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
    # MLflow 1 does not understand lists where its parser of SQL is newer than itself.
    if search.filter:
        wanted = set(run_ids)
        return [run for run in all_runs(client, search) if run.run_id in wanted]
    found = [run for run_id in run_ids if (run := _run_if_there(client, run_id)) is not None]
    places, stages = set(search.experiment_ids), _STAGES[search.run_view_type]
    return [run for run in found if run.info.experiment_id in places and run.info.lifecycle_stage in stages]


def _run_if_there(client: RestClient, run_id: str) -> RunAnswer | None:
    try:
        return get_run(client, run_id)
    except RefusedError as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def get_run(client: RestClient, run_id: str) -> RunAnswer:
    """One run.

    Raises:
        RefusedError: it does not exist (``RESOURCE_DOES_NOT_EXIST``).
    """
    answer: OneRun = client.get_json(f"{API}runs/get", {"run_id": run_id}, answer=OneRun)
    return answer.run


def model_links(client: RestClient, run: Run) -> Run:
    """The run with the logged models that it read and made."""
    answer: _LinksOfRun = client.get_json(f"{API}runs/get", {"run_id": run.run_id}, answer=_LinksOfRun)
    inputs, outputs = answer.run.inputs.model_inputs, answer.run.outputs.model_outputs
    if not inputs and not outputs:
        return run
    return msgspec.structs.replace(run, model_inputs=_by_id(inputs), model_outputs=_by_id_and_step(outputs))


def experiments(client: RestClient) -> list[Experiment]:
    """Every experiment, active and deleted, each once."""

    def read() -> Iterator[Sequence[_Experiment]]:
        body: dict[str, object] = {
            "view_type": "ALL",
            "max_results": _EXPERIMENTS_PER_PAGE,
            "order_by": ["creation_time ASC", "experiment_id ASC"],
        }
        while True:
            page: _ExperimentPage = client.post_json(_SEARCH_EXPERIMENTS, body, answer=_ExperimentPage)
            yield page.experiments
            if not page.next_page_token:
                return
            body["page_token"] = page.next_page_token

    return [found.record() for found in steady(client, _SEARCH_EXPERIMENTS, read, lambda found: found.experiment_id)]


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in pieces of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))
