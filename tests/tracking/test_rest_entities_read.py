"""Every kind but runs and traces, read from a real server and compared with what MLflow's own client shows of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import (
    GatewayEndpointModelConfig,
    GatewayEndpointTag,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities.gateway_budget_policy import (
    BudgetAction,
    BudgetDuration,
    BudgetDurationUnit,
    BudgetTargetScope,
    BudgetUnit,
)
from mlflow.entities.gateway_endpoint import FallbackConfig, FallbackStrategy, GatewayModelLinkageType, RoutingStrategy
from mlflow.entities.gateway_guardrail import GuardrailAction, GuardrailStage
from mlflow.entities.issue import IssueSeverity
from mlflow.entities.mcp_server_version import ConnectOptionSettings, MCPTool
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent, WebhookStatus
from mlflow.genai.label_schemas.label_schemas import (
    InputCategorical,
    InputNumeric,
    InputPassFail,
    InputText,
    LabelSchemaType,
)
from mlflow.genai.review_queues import ReviewQueueType, ReviewStatus
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds
from msgspec import UNSET

from mlflow_bundle.entities import ModelVersion, Record
from mlflow_bundle.errors import NotFoundError, ServerError, StorageError, UnsupportedError
from mlflow_bundle.kinds import KINDS, order_key, record_id
from mlflow_bundle.tracking._port import ROW_SCHEMAS, EntityQuery, RunQuery
from mlflow_bundle.tracking._rest import API, RestClient
from mlflow_bundle.tracking.artifacts._http import ModelArtifacts
from mlflow_bundle.tracking.artifacts._own import own_location
from mlflow_bundle.tracking.rest import _entities_read, _models_read
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._read import RestSource
from tests.fixtures.estate import KINDS_HERE
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.http_peer import forward, serve

SECRETS = ("sk-very-secret-0123456789", "webhook-secret-0123456789", "region-of-the-secret")
ICON = "https://93.184.216.34/icon.png"


@dataclass
class Made:
    """A server, MLflow's own clients of it, and the ids of what was made there."""

    server: MlflowServer
    client: MlflowClient
    store: RestStore
    registry: RegistryStore
    ids: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def made(start_server: ServerFactory) -> Made:
    """A server with something of every kind."""
    server = start_server()
    credentials = partial(MlflowHostCreds, server.url)
    content = Made(server, MlflowClient(server.url), RestStore(credentials), RegistryStore(credentials))
    for make in (_make_models, _make_registry, _make_datasets, _make_gateway, _make_scorers, _make_review, _make_server_wide):
        make(content)
    return content


@pytest.fixture(scope="module")
def source(made: Made) -> Iterator[RestSource]:
    source = RestSource(made.server.url)
    yield source
    source.close()


def _make_models(made: Made) -> None:
    client, store, ids = made.client, made.store, made.ids
    for name in ("models", "models elsewhere", "gone"):
        ids[name] = client.create_experiment(name)
    ids["run"] = client.create_run(ids["models"]).info.run_id
    ids["reader"] = client.create_run(ids["models elsewhere"]).info.run_id
    full = store.create_logged_model(
        ids["models"],
        "full",
        ids["run"],
        [LoggedModelTag("b", "ü"), LoggedModelTag("a", "")],
        [LoggedModelParameter("z", "1"), LoggedModelParameter("a", "")],
        "agent",
    )
    ids["full"] = full.model_id
    for name in ("bare", "failed", "deleted", "in gone"):
        ids[name] = store.create_logged_model(ids["gone" if name == "in gone" else "models"], name).model_id
    store.finalize_logged_model(ids["full"], LoggedModelStatus.READY)
    store.finalize_logged_model(ids["failed"], LoggedModelStatus.FAILED)
    metrics = [Metric("loss", 0.1 + step, 5 + step, step, model_id=ids["full"]) for step in (3, 1, 2)]
    metrics += [Metric("acc", 0.5, 9, -4, ids["full"], dataset_name="data", dataset_digest="digest")]
    metrics += [Metric("acc", 0.25, 9, 0, ids["deleted"])]
    client.log_batch(ids["run"], metrics=metrics)
    store.log_outputs(ids["run"], [LoggedModelOutput(ids["full"], 7), LoggedModelOutput(ids["deleted"], 0)])
    store.log_inputs(ids["reader"], models=[LoggedModelInput(ids["full"]), LoggedModelInput(ids["bare"])])
    store.delete_logged_model(ids["deleted"])
    client.delete_experiment(ids["gone"])


def _make_registry(made: Made) -> None:
    client, ids = made.client, made.ids
    client.create_registered_model("model", tags={"b": "1", "a": ""}, description="words")
    client.create_registered_model("empty")
    client.create_model_version("model", f"models:/{ids['full']}", run_id=ids["run"], model_id=ids["full"], tags={"t": "v"})
    client.create_model_version("model", "s3://elsewhere/a")
    client.create_model_version("model", "s3://elsewhere/b", run_link="https://example.org/run", description="text")
    client.delete_model_version("model", "2")
    client.set_registered_model_alias("model", "z", "1")
    client.set_registered_model_alias("model", "a", "3")
    client.transition_model_version_stage("model", "3", "Production")
    client.register_prompt("prompt", "Say {{it}}", commit_message="first", tags={"x": "y"})
    client.register_prompt("prompt", "Say {{it}} twice")
    client.set_prompt_alias("prompt", "live", 2)


def _make_datasets(made: Made) -> None:
    store, ids = made.store, made.ids
    tags = {"a": "b", "mlflow.user": "someone"}
    ids["dataset"] = store.create_dataset("dataset", tags, [ids["models elsewhere"], ids["models"]]).dataset_id
    ids["other dataset"] = store.create_dataset("other").dataset_id
    trace = {"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}
    full = {"inputs": {"q": "é", "n": [1.0, None]}, "outputs": {"o": 1}, "expectations": {"e": 2}, "tags": {"t": "u"}}
    store.upsert_dataset_records(ids["dataset"], [{**full, "source": trace}, {"inputs": {"q": 2}, "outputs": None}])
    for start in range(0, 60, 20):
        store.upsert_dataset_records(ids["other dataset"], [{"inputs": {"q": number}} for number in range(start, start + 20)])
        store.upsert_dataset_records(ids["dataset"], [{"inputs": {"n": number}} for number in range(start, start + 20)])


def _make_gateway(made: Made) -> None:
    store, ids = made.store, made.ids
    secret = store.create_gateway_secret("key", {"api_key": SECRETS[0]}, "openai", {"region": SECRETS[2]}, "someone")
    ids["secret"] = secret.secret_id
    models = [store.create_gateway_model_definition(name, ids["secret"], "openai", "gpt", "someone") for name in ("m1", "m2")]
    ids["definition"] = models[0].model_definition_id
    endpoint = store.create_gateway_endpoint(
        "endpoint",
        [
            GatewayEndpointModelConfig(models[0].model_definition_id, GatewayModelLinkageType.PRIMARY, 0.5),
            GatewayEndpointModelConfig(models[1].model_definition_id, GatewayModelLinkageType.FALLBACK, fallback_order=0),
        ],
        "someone",
        RoutingStrategy.REQUEST_BASED_TRAFFIC_SPLIT,
        FallbackConfig(FallbackStrategy.SEQUENTIAL, 3),
        ids["models"],
        True,
    )
    ids["endpoint"] = endpoint.endpoint_id
    store.set_gateway_endpoint_tag(ids["endpoint"], GatewayEndpointTag("k", "v"))
    ids["budget"] = store.create_budget_policy(
        BudgetUnit.USD, 0.1, BudgetDuration(BudgetDurationUnit.DAYS, 3), BudgetTargetScope.GLOBAL, BudgetAction.ALERT, "someone"
    ).budget_policy_id


def _make_scorers(made: Made) -> None:
    store, ids = made.store, made.ids
    plain = {"name": "plain", "builtin_scorer_class": "Safety", "builtin_scorer_pydantic_data": {"name": "plain"}}
    judge = {"name": "judge", "instructions_judge_pydantic_data": {"instructions": "{{inputs}}?", "model": "gateway:/endpoint"}}
    for number in range(3):
        store.register_scorer(ids["models"], "plain", json.dumps({**plain, "number": number}))
    store.delete_scorer(ids["models"], "plain", 2)
    scorer = store.register_scorer(ids["models elsewhere"], "judge", json.dumps(judge))
    store.upsert_online_scoring_config(ids["models elsewhere"], "judge", 0.25, "status = 'OK'")
    ids["scorer"] = scorer.scorer_id
    guardrail = store.create_gateway_guardrail(
        "guardrail", scorer.scorer_id, 1, GuardrailStage.BEFORE, GuardrailAction.SANITIZATION, ids["endpoint"]
    )
    ids["guardrail"] = guardrail.guardrail_id
    store.add_guardrail_to_endpoint(ids["endpoint"], ids["guardrail"], 1)


def _make_review(made: Made) -> None:
    store, ids = made.store, made.ids
    inputs = [InputPassFail("good", "bad"), InputCategorical(["a", "b"], multi_select=True), InputNumeric(1, None), InputText()]
    schemas = []
    for number, wanted in enumerate(inputs):
        kind = LabelSchemaType.EXPECTATION if number else LabelSchemaType.FEEDBACK
        extra = {"instruction": "look", "enable_comment": True} if number == 0 else {}
        schemas.append(store.create_label_schema(ids["models"], name=f"schema {number}", type=kind, input=wanted, **extra))
    store.list_label_schemas(ids["models"])
    unlisted = store.create_label_schema(
        ids["models elsewhere"], name="used", type=LabelSchemaType.FEEDBACK, input=InputText(max_length=9)
    )
    ids["unlisted"] = unlisted.schema_id
    place = TraceLocation.from_experiment_id(ids["models"])
    trace_ids = [f"tr-{number:032x}" for number in range(2)]
    for trace_id in trace_ids:
        store.start_trace(TraceInfo(trace_id, place, 1_000, TraceState.OK, execution_duration=1))
    queue = store.create_review_queue(
        ids["models"], name="Queue", queue_type=ReviewQueueType.CUSTOM, users=["Zoe", "ann"], schema_ids=[schemas[1].schema_id]
    )
    ids["queue"] = queue.queue_id
    store.add_items_to_review_queue(ids["queue"], item_ids=trace_ids)
    store.set_review_queue_item_status(ids["queue"], item_id=trace_ids[0], status=ReviewStatus.COMPLETE, completed_by="ann")
    store.create_review_queue(
        ids["models elsewhere"], name="Other", queue_type=ReviewQueueType.CUSTOM, schema_ids=[unlisted.schema_id]
    )
    store.create_issue(
        ids["models"], "issue", "it fails", severity=IssueSeverity.HIGH, root_causes=["b", "a"], source_run_id=ids["run"]
    )
    store.create_issue(ids["models elsewhere"], "bare issue", "-")


def _make_server_wide(made: Made) -> None:
    store, ids = made.store, made.ids
    events = [WebhookEvent(WebhookEntity.REGISTERED_MODEL, WebhookAction.CREATED)]
    events += [WebhookEvent(WebhookEntity.MODEL_VERSION, WebhookAction.CREATED)]
    webhook = made.client.create_webhook(
        "hook", "https://93.184.216.34/hook", events, description="words", secret=SECRETS[1], status=WebhookStatus.DISABLED
    )
    ids["webhook"] = webhook.webhook_id
    store.create_mcp_server("org.example/plain", icons=[{"src": ICON, "sizes": ["1x1"]}], description="its own")
    store.create_mcp_server("org.example/full")
    for version in ("1.0.0", "1.1.0"):
        document = {"name": "org.example/full", "version": version, "description": "of a version", "extra": {"b": 1, "a": 2.5}}
        tool = MCPTool.from_dict({"name": "tool", "inputSchema": {"type": "object"}})
        store.create_mcp_server_version(
            {**document, "icons": [{"src": ICON}]},
            "somewhere",
            tools=[tool],
            connect_options={"x": ConnectOptionSettings(True)},
        )
    store.set_mcp_server_tag("org.example/full", "k", "v")
    store.set_mcp_server_version_tag("org.example/full", "1.0.0", "k", "v")
    store.set_mcp_server_alias("org.example/full", "live", "1.0.0")
    store.create_mcp_access_endpoint("org.example/full", "https://93.184.216.34/mcp", server_alias="live")
    store.create_mcp_access_endpoint("org.example/full", "https://93.184.216.34/mcp1", server_version="1.1.0")


def _read(source: RestSource, kind: str, **restrictions: tuple[str, ...]) -> list[Any]:
    batches = list(source.entities(kind, EntityQuery(**restrictions)))
    assert all(0 < len(batch) <= 1_000 for batch in batches)
    found = [record for batch in batches for record in batch]
    assert all(type(record) is KINDS[kind].type for record in found)
    assert found == sorted(found, key=order_key)
    assert len({record_id(record) for record in found}) == len(found)
    return found


def _by_name(records: Sequence[Any], name: str = "name") -> dict[str, Any]:
    return {getattr(record, name): record for record in records}


def _same(record: Record, shown: Any, *names: str, **spelled: str) -> None:
    """The fields of the record are what MLflow's entity says, absent where that has None. MLflow's client makes empty texts
    of some that are absent."""
    for name, theirs in {**dict.fromkeys(names), **spelled}.items():
        wanted, read = getattr(shown, theirs or name), getattr(record, name)
        assert read == wanted or (read is UNSET and wanted in (None, "")), name


def _pairs(pairs: Sequence[Any]) -> dict[str, str]:
    assert [pair.key for pair in pairs] == sorted(pair.key for pair in pairs)
    return {pair.key: pair.value for pair in pairs}


def _content(server: MlflowServer) -> list[str]:
    """All rows of all tables."""
    path = server.backend_store_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return list(database.iterdump())


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("evaluation_dataset", "/experiment-ids"),
        ("dataset_record", "/records"),
        ("scorer", "scorers/online-configs"),
        ("scorer", "scorers/versions"),
        ("label_schema", "label-schemas/get-by-name"),
        ("logged_model", "logged-models/search"),
        ("registered_model", "registered-models/search"),
        ("model_version", "get-download-uri"),
        ("mcp_server", "mcp-servers/org.example/full/versions/"),
        ("review_queue", "review-queues/items"),
        ("guardrail", "guardrails/list-for-endpoint"),
    ],
)
def test_json_of_somebody_else_is_no_part_of_a_record(made: Made, kind: str, path: str) -> None:
    """An answer 200 in which nothing is known, as of a gateway that is busy, never makes a record without that part."""

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        return (200, b'{"status": "busy"}', None) if path in asked else forward(made.server.url, method, asked, body)

    with serve(answer) as peer:
        source = RestSource(peer.url)
        with pytest.raises(ServerError, match="something else than MLflow's JSON"):
            _read(source, kind)
        source.close()


def test_every_kind_is_offered(source: RestSource) -> None:
    """A server of the newest release has every kind, but no workspaces unless it is started with them; what REST never tells
    is named."""
    kinds = source.kinds()
    assert set(KINDS_HERE) - set(kinds) == {"workspace", "experiment", "run"}
    assert list(kinds) == [kind for kind in KINDS if kind in kinds]
    absent = source.description.absent
    assert "workspace" in absent
    assert {"logged_model.status_message", "model_version.deleted_ones", "scorer.in_deleted_experiments"} <= set(absent)
    with pytest.raises(UnsupportedError, match="workspace"):
        source.entities("workspace", EntityQuery())
    assert source.problems() == []


def test_reading_changes_nothing(made: Made, source: RestSource) -> None:
    """After everything was read the database of the server is the same, row for row: no default label schema either."""
    before = _content(made.server)
    for kind in source.kinds():
        _read(source, kind)
    list(source.rows("model_metrics/1", [made.ids["full"]]))
    assert _content(made.server) == before


def test_no_secret_is_read(source: RestSource) -> None:
    """Neither keys of the gateway nor those of webhooks, nor what MLflow shows in their place, are in any record."""
    everything = repr([_read(source, kind) for kind in source.kinds()])
    assert not [secret for secret in (*SECRETS, "sk-...", "...6789") if secret in everything]


def test_logged_models_are_whole(made: Made, source: RestSource) -> None:
    """Every logged model that is not deleted comes with each attribute, those of deleted experiments too."""
    found = _by_name(_read(source, "logged_model"), "model_id")
    assert set(found) == {made.ids[name] for name in ("full", "bare", "failed", "in gone")}
    for model_id, model in found.items():
        shown = made.store.get_logged_model(model_id)
        _same(
            model,
            shown,
            "experiment_id",
            "name",
            "model_type",
            "source_run_id",
            artifact_uri="artifact_location",
            creation_timestamp_ms="creation_timestamp",
            last_updated_timestamp_ms="last_updated_timestamp",
        )
        assert model.status == str(shown.status)
        assert model.lifecycle_stage == "active"
        assert _pairs(model.params) == shown.params
        assert _pairs(model.tags) == shown.tags
    assert _pairs(found[made.ids["full"]].params) == {"a": "", "z": "1"}
    assert [found[made.ids[name]].status for name in ("full", "bare", "failed")] == ["READY", "PENDING", "FAILED"]


def test_deleted_logged_models_are_found_by_id(made: Made, source: RestSource) -> None:
    """Models are found by their ids, deleted ones as deleted; ids that do not exist add nothing."""
    wanted = {made.ids[name] for name in ("deleted", "full", "in gone")}
    found = _by_name(_read(source, "logged_model", ids=(*wanted, "m-nothing")), "model_id")
    assert set(found) == wanted
    assert {model_id for model_id, model in found.items() if model.lifecycle_stage == "deleted"} == {made.ids["deleted"]}


def test_logged_models_are_selected(made: Made, source: RestSource) -> None:
    """By experiment, by the run that made them, and by both."""
    ids = made.ids
    assert len(_read(source, "logged_model", experiment_ids=(ids["models"],))) == 3
    assert [model.name for model in _read(source, "logged_model", run_ids=(ids["run"],))] == ["full"]
    assert _read(source, "logged_model", run_ids=(ids["run"],), experiment_ids=(ids["gone"],)) == []


def test_small_pages_of_logged_models_hide_and_double_nothing(source: RestSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages smaller than the number of models give the same models."""
    everything = _read(source, "logged_model")
    for size in (1, 2, 3):
        monkeypatch.setattr(_models_read, "_MODELS_PER_PAGE", size)
        assert _read(source, "logged_model") == everything


def test_model_metrics_are_whole(made: Made, source: RestSource) -> None:
    """Every metric of a logged model, also of a deleted one, in order, with its run and dataset."""
    ids = [made.ids[name] for name in ("bare", "full", "deleted")]
    tables = list(source.rows("model_metrics/1", ids))
    assert all(table.schema == ROW_SCHEMAS["model_metrics/1"] for table in tables)
    rows = [tuple(row.values()) for table in tables for row in table.to_pylist()]
    run = made.ids["run"]
    assert rows == [
        (1, "acc", -4, 9, 0.5, run, "data", "digest"),
        *((1, "loss", step, 5 + step, 0.1 + step, run, None, None) for step in (1, 2, 3)),
        (2, "acc", 0, 9, 0.25, run, None, None),
    ]
    with pytest.raises(NotFoundError, match="m-nothing"):
        list(source.rows("model_metrics/1", ["m-nothing"]))


def test_runs_name_their_models(made: Made, source: RestSource) -> None:
    """What a run made and read comes with it however it is found, also where the models are in another experiment."""
    ids = made.ids
    wanted = {run_id: made.client.get_run(run_id) for run_id in (ids["run"], ids["reader"])}
    ways = [
        [run for batch in source.runs(RunQuery()) for run in batch],
        [run for batch in source.runs(RunQuery(run_ids=tuple(wanted))) for run in batch],
        source.runs_by_id(list(wanted)),
    ]
    for runs in ways:
        found = {run.run_id: run for run in runs if run.run_id in wanted}
        assert set(found) == set(wanted)
        for run_id, shown in wanted.items():
            outputs = {(link.model_id, link.step) for link in shown.outputs.model_outputs}
            assert [(link.model_id, link.step) for link in found[run_id].model_outputs] == sorted(outputs)
            inputs = {link.model_id for link in shown.inputs.model_inputs}
            assert [link.model_id for link in found[run_id].model_inputs] == sorted(inputs)
        assert len(found[ids["run"]].model_outputs) == len(found[ids["reader"]].model_inputs) == 2


def test_registered_models_are_whole(made: Made, source: RestSource) -> None:
    """Registered models and prompts come with each attribute, tag and alias."""
    found = _by_name(_read(source, "registered_model"))
    assert set(found) == {"model", "empty", "prompt"}
    for name, model in found.items():
        shown = made.registry.get_registered_model(name)
        _same(model, shown, "creation_timestamp", "last_updated_timestamp", "description")
        assert {alias.alias: alias.version for alias in model.aliases} == {
            alias: int(version) for alias, version in shown.aliases.items()
        }
        assert [alias.alias for alias in model.aliases] == sorted(shown.aliases)
    assert _pairs(found["model"].tags) == {"a": "", "b": "1"}
    assert _pairs(found["prompt"].tags)["mlflow.prompt.is_prompt"] == "true"
    assert [record_id(model) for model in _read(source, "registered_model", ids=("prompt", "nothing"))] == ["prompt"]


def test_model_versions_are_whole(made: Made, source: RestSource) -> None:
    """Versions of models and prompts come with each attribute, and the place of their files."""
    found = {record_id(version): version for version in _read(source, "model_version")}
    assert set(found) == {"model/1", "model/3", "prompt/1", "prompt/2"}
    for version in found.values():
        shown = made.registry.get_model_version(version.name, str(version.version))
        _same(
            version,
            shown,
            "creation_timestamp",
            "last_updated_timestamp",
            "user_id",
            "current_stage",
            "description",
            "source",
            "run_id",
            "run_link",
            "status",
            "status_message",
        )
        assert _pairs(version.tags) == shown.tags
        assert version.storage_location == made.registry.get_model_version_download_uri(version.name, str(version.version))
    assert found["model/3"].current_stage == "Production"
    assert _pairs(found["prompt/2"].tags)["mlflow.prompt.text"] == "Say {{it}} twice"


def test_model_versions_are_selected(made: Made, source: RestSource) -> None:
    """By model, by run and by id; a model that does not exist has none."""
    ids = [record_id(version) for version in _read(source, "model_version", parents=("prompt", "nothing"))]
    assert ids == ["prompt/1", "prompt/2"]
    assert [version.version for version in _read(source, "model_version", run_ids=(made.ids["run"],))] == [1]
    assert [version.version for version in _read(source, "model_version", ids=("model/3", "model/2"))] == [3]


def test_files_belong_to_one_owner(made: Made, source: RestSource, tmp_path: Path) -> None:
    """The files of a logged model are its own. A version that points to its run or model, and a prompt, have none; a version
    that points anywhere else has those that lie there."""
    (tmp_path / "weights").write_bytes(b"1234")
    made.client.log_model_artifact(made.ids["full"], str(tmp_path / "weights"))
    (model,) = _read(source, "logged_model", ids=(made.ids["full"],))
    assert [(info.path, info.size) for info in source.artifacts(model).walk()] == [("weights", 4)]
    with source.artifacts(model).open("weights") as stream:
        assert stream.read() == b"1234"
    versions = {record_id(version): version for version in _read(source, "model_version")}
    for identity in ("model/1", "prompt/1", "prompt/2"):
        assert own_location(versions[identity]) is None
        assert list(source.artifacts(versions[identity]).walk()) == []
    assert own_location(versions["model/3"]) == "s3://elsewhere/b"
    local = ModelVersion(name="model", version=9, source=tmp_path.as_uri(), run_id=made.ids["run"])
    assert [info.path for info in source.artifacts(local).walk()] == ["weights"]
    with pytest.raises(StorageError, match="not on this machine"):
        source.artifacts(ModelVersion(name="model", version=9, source=f"{tmp_path}/nothing"))


def test_files_of_logged_models_come_from_the_server_itself(made: Made, tmp_path: Path) -> None:
    """Where the place of a logged model is the server's alone, the server lists and delivers its files."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "leaf").write_bytes(b"12345")
    made.client.log_model_artifacts(made.ids["failed"], str(tmp_path))
    store = ModelArtifacts(RestClient(made.server.url), made.ids["failed"])
    assert [(info.path, info.size) for info in store.walk()] == [("deep/er/leaf", 5)]
    with store.open("deep/er/leaf") as stream:
        assert stream.read() == b"12345"


@pytest.mark.parametrize(
    ("version", "location"),
    [
        (ModelVersion(name="n", version=1, source="mlflow-artifacts:/1/R/artifacts/model", run_id="R"), None),
        (ModelVersion(name="n", version=1, source="C:\\runs\\R\\artifacts\\model", run_id="R"), None),
        (ModelVersion(name="n", version=1, source="s3://b/1/R/artifacts/m", run_id="S"), "s3://b/1/R/artifacts/m"),
        (ModelVersion(name="n", version=1, source="models:/m-1", storage_location="s3://b/models/m-1/artifacts"), None),
        (ModelVersion(name="n", version=1, source="models:/o/2", storage_location="s3://b/x", run_id=""), "s3://b/x"),
        (ModelVersion(name="n", version=1, source="runs:/R/model", run_id="R"), None),
        (ModelVersion(name="n", version=1, source="dummy-source"), None),
        (ModelVersion(name="n", version=1), None),
    ],
)
def test_own_files_are_those_that_nobody_else_has(version: ModelVersion, location: str | None) -> None:
    """Only a place outside of the artifacts of the run and the logged model that the version names is its own."""
    assert own_location(version) == location


def test_evaluation_datasets_are_whole(made: Made, source: RestSource) -> None:
    """Datasets come with each attribute, tag and experiment."""
    found = _by_name(_read(source, "evaluation_dataset"))
    assert set(found) == {"dataset", "other"}
    for dataset in found.values():
        shown = made.store.get_dataset(dataset.dataset_id)
        _same(
            dataset,
            shown,
            "name",
            "schema",
            "profile",
            "digest",
            "created_time",
            "last_update_time",
            "created_by",
            "last_updated_by",
        )
        assert _pairs(dataset.tags) == (shown.tags or {})
        assert list(dataset.experiment_ids) == sorted(made.store.get_dataset_experiment_ids(dataset.dataset_id))
    assert found["dataset"].experiment_ids == tuple(sorted((made.ids["models"], made.ids["models elsewhere"])))
    experiment = (made.ids["models"],)
    assert [one.name for one in _read(source, "evaluation_dataset", experiment_ids=experiment)] == ["dataset"]


def test_dataset_records_are_whole(made: Made, source: RestSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records come with each value as JSON text, in the order of their times over all datasets, whatever the page size."""
    everything = _read(source, "dataset_record")
    assert len(everything) == 122
    shown = {
        record.dataset_record_id: record
        for name in ("dataset", "other dataset")
        for record in made.store._load_dataset_records(made.ids[name])[0]
    }
    assert set(shown) == {record.dataset_record_id for record in everything}
    for record in everything:
        wanted = shown[record.dataset_record_id]
        _same(record, wanted, "dataset_id", "created_time", "last_update_time", "created_by", "last_updated_by", "source_id")
        for name in ("inputs", "outputs", "expectations", "tags"):
            value, text = getattr(wanted, name), getattr(record, name)
            assert (text is UNSET) if value is None else json.loads(text) == value, name
    full = next(record for record in everything if record.source is not UNSET)
    assert full.inputs == '{"q": "\\u00e9", "n": [1.0, null]}'
    assert full.source_type == "TRACE"
    assert json.loads(full.source) == {"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}
    monkeypatch.setattr(_entities_read, "_PAGE", 7)
    assert _read(source, "dataset_record") == everything
    assert len(_read(source, "dataset_record", parents=(made.ids["dataset"],))) == 62


def test_scorers_are_whole(made: Made, source: RestSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers come with all their versions and how they judge new traces, from one list or experiment by experiment."""
    everything = _read(source, "scorer")
    found = _by_name(everything, "scorer_name")
    assert [version.scorer_version for version in found["plain"].versions] == [1, 3]
    assert found["judge"].scorer_id == made.ids["scorer"]
    for scorer in everything:
        shown = made.store.list_scorer_versions(scorer.experiment_id, scorer.scorer_name)
        assert [version.serialized_scorer for version in scorer.versions] == [version._serialized_scorer for version in shown]
        assert [version.creation_time for version in scorer.versions] == [version.creation_time for version in shown]
    (online,) = found["judge"].online
    (config,) = made.store.get_online_scoring_configs([made.ids["scorer"]])
    assert online.online_scoring_config_id == config.online_scoring_config_id
    assert (online.sample_rate, online.filter_string) == ("0.25", "status = 'OK'")
    assert found["plain"].online == ()
    one = made.ids["models"]
    assert [scorer.scorer_name for scorer in _read(source, "scorer", experiment_ids=(one,))] == ["plain"]
    monkeypatch.setattr(_entities_read, "_FEW", 10_000)
    assert _read(source, "scorer", experiment_ids=(one, made.ids["models elsewhere"], made.ids["gone"])) == everything


def test_label_schemas_are_whole(made: Made, source: RestSource) -> None:
    """Schemas come with each attribute and input; where none was ever listed, those that a queue uses."""
    found = _by_name(_read(source, "label_schema"))
    assert set(found) == {"Feedback", *(f"schema {number}" for number in range(4)), "used"}
    for schema in found.values():
        shown = made.store.get_label_schema(schema.schema_id)
        _same(schema, shown, "experiment_id", "instruction", "enable_comment", "created_by", "is_default")
        assert (schema.created_time, schema.last_update_time) == (shown.created_at, shown.updated_at)
        assert schema.type == str(shown.type)
        assert json.loads(schema.input_config) == vars(shown.input)
    types = [found[f"schema {number}"].input_type for number in range(4)]
    assert types == ["pass_fail", "categorical", "numeric", "text"]
    assert found["schema 2"].input_config == '{"min_value": 1.0, "max_value": null}'
    assert found["Feedback"].is_default is True


def test_review_queues_are_whole(made: Made, source: RestSource) -> None:
    """Queues come with users, schemas and items with their states."""
    found = _by_name(_read(source, "review_queue"))
    assert set(found) == {"Queue", "Other"}
    queue, shown = found["Queue"], made.store.get_review_queue(made.ids["queue"])
    _same(queue, shown, "queue_id", "experiment_id", "created_by", "creation_time_ms", "last_update_time_ms")
    assert queue.queue_type == str(shown.queue_type) == "custom"
    assert list(queue.users) == sorted(shown.users) == ["ann", "zoe"]
    assert list(queue.schema_ids) == sorted(shown.schema_ids)
    items = {item.item_id: item for item in made.store.list_review_queue_items(made.ids["queue"])}
    assert [item.item_id for item in queue.items] == sorted(items)
    assert len(items) == 2
    for item in queue.items:
        wanted = items[item.item_id]
        _same(item, wanted, "completed_by", "completed_time_ms", "creation_time_ms", "last_update_time_ms")
        assert (item.item_type, item.status) == (str(wanted.item_type), str(wanted.status))
    assert {item.status for item in queue.items} == {"pending", "complete"}


def test_issues_are_whole(made: Made, source: RestSource) -> None:
    """Issues come with each attribute; lists are JSON texts in their order."""
    found = _by_name(_read(source, "issue"))
    assert set(found) == {"issue", "bare issue"}
    for issue in found.values():
        shown = made.store.get_issue(issue.issue_id)
        _same(
            issue,
            shown,
            "experiment_id",
            "description",
            "source_run_id",
            "created_timestamp",
            "last_updated_timestamp",
            "created_by",
        )
        assert issue.status == str(shown.status)
    assert found["issue"].severity == "high"
    assert (found["issue"].root_causes, found["issue"].categories) == ('["b", "a"]', UNSET)
    assert [issue.name for issue in _read(source, "issue", experiment_ids=(made.ids["models"],))] == ["issue"]


def test_webhooks_are_whole(made: Made, source: RestSource) -> None:
    """A webhook comes with each attribute and event, and without its secret."""
    (webhook,) = _read(source, "webhook")
    shown = made.client.get_webhook(made.ids["webhook"])
    _same(webhook, shown, "webhook_id", "name", "url", "description", "creation_timestamp", "last_updated_timestamp")
    assert webhook.status == "DISABLED"
    assert [(event.entity, event.action) for event in webhook.events] == [
        ("model_version", "created"),
        ("registered_model", "created"),
    ]


def test_the_gateway_is_whole(made: Made, source: RestSource) -> None:
    """Secrets as stubs, model definitions, endpoints with models, uses and tags, budgets."""
    store, who = made.store, ("created_by", "created_at", "last_updated_by", "last_updated_at")
    (secret,) = _read(source, "gateway_secret")
    _same(secret, store.get_secret_info(made.ids["secret"]), "secret_id", "secret_name", "provider", *who)
    for definition in _read(source, "gateway_model_definition"):
        shown = store.get_gateway_model_definition(definition.model_definition_id)
        _same(definition, shown, "name", "secret_id", "provider", "model_name", *who)
    (endpoint,) = _read(source, "gateway_endpoint")
    shown = store.get_gateway_endpoint(made.ids["endpoint"])
    _same(endpoint, shown, "endpoint_id", "name", "experiment_id", "usage_tracking", *who)
    assert endpoint.routing_strategy == "REQUEST_BASED_TRAFFIC_SPLIT"
    assert _pairs(endpoint.tags) == {"k": "v"}
    mappings = {mapping.mapping_id: mapping for mapping in shown.model_mappings}
    assert [mapping.mapping_id for mapping in endpoint.model_mappings] == sorted(mappings)
    for mapping in endpoint.model_mappings:
        wanted = mappings[mapping.mapping_id]
        _same(mapping, wanted, "model_definition_id", "fallback_order", "created_by", "created_at")
        assert mapping.linkage_type == wanted.linkage_type.value
        assert mapping.weight == repr(wanted.weight)
    fallback = next(mapping for mapping in endpoint.model_mappings if mapping.linkage_type == "FALLBACK")
    assert json.loads(endpoint.fallback_config_json) == {
        "strategy": "SEQUENTIAL",
        "max_attempts": 3,
        "model_definition_ids": [fallback.model_definition_id],
    }
    bindings = {binding.resource_id: binding for binding in store.list_endpoint_bindings(made.ids["endpoint"])}
    assert [binding.resource_id for binding in endpoint.bindings] == sorted(bindings) == [made.ids["scorer"]]
    _same(endpoint.bindings[0], bindings[made.ids["scorer"]], "display_name", *who)
    (budget,) = _read(source, "budget_policy")
    _same(budget, store.get_budget_policy(made.ids["budget"]), "budget_policy_id", "target_value", *who)
    assert (budget.budget_unit, budget.budget_amount, budget.duration_unit, budget.duration_value) == ("USD", "0.1", "DAYS", 3)
    assert (budget.target_scope, budget.budget_action) == ("GLOBAL", "ALERT")


def test_guardrails_are_whole(made: Made, source: RestSource) -> None:
    """A guardrail comes with its scorer, the id (not the name) of its endpoint, and the endpoints that it protects."""
    (guardrail,) = _read(source, "guardrail")
    shown = made.store.get_gateway_guardrail(made.ids["guardrail"])
    _same(guardrail, shown, "guardrail_id", "name", "created_by", "created_at", "last_updated_by", "last_updated_at")
    assert (guardrail.stage, guardrail.action) == ("BEFORE", "SANITIZATION")
    assert (guardrail.scorer_id, guardrail.scorer_version) == (made.ids["scorer"], 1)
    assert guardrail.action_endpoint_id == made.ids["endpoint"]
    (config,) = guardrail.configs
    (wanted,) = made.store.list_endpoint_guardrail_configs(made.ids["endpoint"])
    _same(config, wanted, "endpoint_id", "execution_order", "created_by", "created_at")


def test_the_mcp_registry_is_whole(made: Made, source: RestSource) -> None:
    """Servers have only what is their own, versions their documents and tools, and access endpoints what they name."""
    times = {"created_at": "creation_timestamp", "last_updated_at": "last_updated_timestamp"}
    servers = _by_name(_read(source, "mcp_server"))
    assert set(servers) == {"org.example/plain", "org.example/full"}
    for server in servers.values():
        shown = made.store.get_mcp_server(server.name)
        _same(server, shown, "display_name", "workspace", "created_by", "last_updated_by", **times)
        assert _pairs(server.tags) == shown.tags
        assert {alias.alias: alias.version for alias in server.aliases} == shown.aliases
    assert servers["org.example/plain"].description == "its own"
    assert json.loads(servers["org.example/plain"].icons) == [{"src": ICON, "sizes": ["1x1"]}]
    assert servers["org.example/full"].description is UNSET
    assert servers["org.example/full"].icons is UNSET
    versions = _read(source, "mcp_server_version")
    assert [version.version for version in versions] == ["1.0.0", "1.1.0"]
    for version in versions:
        shown = made.store.get_mcp_server_version(version.name, version.version)
        _same(version, shown, "source", "workspace", "created_by", "last_updated_by", **times)
        assert version.status == str(shown.status)
        assert json.loads(version.server_json) == shown.server_json
        assert json.loads(version.tools) == [{"name": "tool", "inputSchema": {"type": "object"}}]
        assert json.loads(version.connect_options) == {"x": {"hidden": True}}
        assert _pairs(version.tags) == shown.tags
    endpoints = _by_name(_read(source, "mcp_access_endpoint"), "url")
    assert endpoints["https://93.184.216.34/mcp"].server_alias == "live"
    assert endpoints["https://93.184.216.34/mcp1"].server_version == "1.1.0"
    for endpoint in endpoints.values():
        shown = made.store.get_mcp_access_endpoint(endpoint.server_name, endpoint.id)
        _same(endpoint, shown, "workspace", "server_alias", "server_version", "created_by", "last_updated_by", **times)
        assert endpoint.transport_type == str(shown.transport_type)


@pytest.mark.slow
def test_every_workspace_is_read(start_server: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server with workspaces everything comes from all of them, each entity with its workspace: runs with their points
    and files too. A user who chose a workspace gets that one."""
    server = start_server(extra=["--enable-workspaces"])
    root = RestClient(server.url)
    root.post_json(f"{API3}workspaces", {"name": "team", "description": "words"})
    made = {name: _make_in_workspace(root.in_workspace(name), number) for number, name in enumerate(("default", "team"))}
    source = RestSource(server.url)
    try:
        workspaces = _by_name(_read(source, "workspace"))
        assert set(workspaces) == {"default", "team"}
        assert workspaces["team"].description == "words"
        homes = {experiment.experiment_id: experiment.workspace for experiment in source.experiments()}
        runs = [run for batch in source.runs(RunQuery()) for run in batch]
        assert {run.run_id: homes[run.experiment_id] for run in runs} == {made[name]["run"]: name for name in made}
        assert [len(run.model_inputs) for run in runs] == [1, 1]
        assert source.runs_by_id([run.run_id for run in runs]) == runs
        points = [row for table in source.metrics([run.run_id for run in runs]) for row in table.to_pylist()]
        assert [(row["owner"], row["value"]) for row in points] == [
            (owner, float(list(made).index(homes[run.experiment_id]))) for owner, run in enumerate(runs)
        ]
        for run in runs:
            assert [info.path for info in source.artifacts(run).walk()] == ["file.txt"]
        for kind in ("registered_model", "model_version", "evaluation_dataset", "mcp_server"):
            assert sorted(record.workspace for record in _read(source, kind)) == ["default", "team"], kind
        assert sorted(record_id(model) for model in _read(source, "registered_model")) == ["same", "team/same"]
        assert [record_id(model) for model in _read(source, "model_version", parents=("team/same",))] == ["team/same/1"]
        models = _by_name(_read(source, "logged_model"), "model_id")
        assert set(models) == {found["model"] for found in made.values()}
        rows = [row for table in source.rows("model_metrics/1", list(models)) for row in table.to_pylist()]
        assert [row["value"] for row in rows] == [0.0, 1.0]
        assert {scorer.experiment_id for scorer in _read(source, "scorer")} == {found["experiment"] for found in made.values()}
    finally:
        source.close()
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    source = RestSource(server.url)
    try:
        assert [record_id(model) for model in _read(source, "registered_model")] == ["team/same"]
        assert [run.run_id for batch in source.runs(RunQuery()) for run in batch] == [made["team"]["run"]]
    finally:
        source.close()


def _make_in_workspace(client: RestClient, number: int) -> dict[str, str]:
    """A little of everything, in one workspace."""
    experiment = client.post_json(f"{API}experiments/create", {"name": "same"})["experiment_id"]
    run = client.post_json(f"{API}runs/create", {"experiment_id": experiment, "start_time": 5})["run"]["info"]
    model = client.post_json(f"{API}logged-models", {"experiment_id": experiment, "name": "same"})["model"]["info"]["model_id"]
    point = {"key": "m", "value": number, "timestamp": 1, "step": 0, "model_id": model}
    client.post_json(f"{API}runs/log-batch", {"run_id": run["run_id"], "metrics": [point]})
    client.post_json(f"{API}runs/log-inputs", {"run_id": run["run_id"], "models": [{"model_id": model}]})
    client.put("/api/2.0/mlflow-artifacts/artifacts/" + run["artifact_uri"].partition(":/")[2] + "/file.txt", BytesIO(b"x"), 1)
    client.post_json(f"{API}registered-models/create", {"name": "same"})
    client.post_json(f"{API}model-versions/create", {"name": "same", "source": "s3://elsewhere/a"})
    client.post_json(f"{API3}datasets/create", {"name": "same", "experiment_ids": [experiment]})
    client.post_json(f"{API3}mcp-servers", {"name": "org.example/same"})
    judge = {"name": "same", "builtin_scorer_class": "Safety", "builtin_scorer_pydantic_data": {"name": "same"}}
    body = {"experiment_id": experiment, "name": "same", "serialized_scorer": json.dumps(judge)}
    client.post_json(f"{API3}scorers/register", body)
    return {"experiment": experiment, "run": run["run_id"], "model": model}
