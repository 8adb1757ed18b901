"""Webhooks, gateway, MCP registry and workspaces restored to real servers: nothing lost in silence, nothing doubled."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
from msgspec import UNSET
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import mlflow_bundle as bundle
from mlflow_bundle.entities import Record, Scorer
from mlflow_bundle.errors import CannotHoldError, ServerError, UsageError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.tracking import _batches, _rest
from mlflow_bundle.tracking._rest import API, RestClient
from mlflow_bundle.tracking.rest import _once
from mlflow_bundle.tracking.rest._features import API3
from tests.fixtures.server import MlflowServer, ServerFactory

pytestmark = pytest.mark.slow

#: Texts that no bundle may hold.
SECRETS = ("sk-planted-key", "planted-webhook-secret")
ICON = "https://93.184.216.34/icon.png"
GATEWAY = f"{API3}gateway/"
MCP = f"{API3}mcp-servers"
CONFIGURATION = (
    "webhook",
    "gateway_secret",
    "gateway_model_definition",
    "gateway_endpoint",
    "budget_policy",
    "guardrail",
    "mcp_server",
    "mcp_server_version",
    "mcp_access_endpoint",
)
_NUMBERS = count()


@pytest.fixture(scope="module")
def server(start_server: ServerFactory) -> MlflowServer:
    """A server with workspaces: each test has one of its own to restore into."""
    return start_server(extra=["--enable-workspaces"])


@pytest.fixture(scope="module")
def plain(start_server: ServerFactory) -> MlflowServer:
    """A server without workspaces and with the gateway switched off."""
    return start_server(env={"MLFLOW_ENABLE_AI_GATEWAY": "false"})


def new_workspace(server: MlflowServer, *secrets: str) -> str:
    """A new empty workspace, with secrets of these names typed in."""
    name = f"target-{next(_NUMBERS)}"
    root = RestClient(server.url)
    root.post_json(f"{API3}workspaces", {"name": name})
    make_secrets(root.in_workspace(name), *secrets)
    return name


def make_secrets(client: RestClient, *names: str) -> dict[str, str]:
    """Secrets of the gateway; their ids by name."""
    ids = {}
    for name in names:
        body = {"secret_name": name, "secret_value": {"api_key": SECRETS[0]}, "provider": "openai", "created_by": "ann"}
        ids[name] = client.post_json(f"{GATEWAY}secrets/create", body)["secret"]["secret_id"]
    return ids


def make_gateway(client: RestClient, experiment: str) -> None:
    """Everything that the gateway has, with makers and changers, links of every type, and two budgets that are alike."""

    def post(path: str, body: Mapping[str, Any]) -> Any:
        return client.post_json(GATEWAY + path, body)

    ids = make_secrets(client, "key", "other key")
    definitions = []
    for number, secret in enumerate(("key", "key", "other key")):
        body = {"name": f"model {number}", "secret_id": ids[secret], "provider": "openai", "model_name": f"gpt-{number}"}
        made = post("model-definitions/create", {**body, "created_by": "ann"})["model_definition"]
        definitions.append(made["model_definition_id"])
    post("model-definitions/update", {"model_definition_id": definitions[0], "updated_by": "bob"})
    links = [(definitions[0], "PRIMARY", 0.3), (definitions[1], "PRIMARY", 0.7), (definitions[2], "FALLBACK", 1.0)]
    configs = [{"model_definition_id": one, "linkage_type": how, "weight": weight} for one, how, weight in links]
    configs.append({"model_definition_id": definitions[0], "linkage_type": "FALLBACK", "weight": 1.0, "fallback_order": 0})
    configs[2]["fallback_order"] = 1
    body = {"name": "judge-model", "model_configs": configs, "created_by": "ann", "experiment_id": experiment}
    fallback = {"strategy": "SEQUENTIAL", "max_attempts": 2}
    body |= {"routing_strategy": "REQUEST_BASED_TRAFFIC_SPLIT", "fallback_config": fallback, "usage_tracking": True}
    endpoint = post("endpoints/create", body)["endpoint"]["endpoint_id"]
    post("endpoints/set-tag", {"endpoint_id": endpoint, "key": "team", "value": "ü\nx"})
    post("endpoints/update", {"endpoint_id": endpoint, "updated_by": "bob"})
    plain = {"name": "plain", "model_configs": configs[:1], "usage_tracking": False}
    post("endpoints/create", plain)
    tracked = post("endpoints/create", {**plain, "name": "tracked", "usage_tracking": True})["endpoint"]
    assert tracked["experiment_id"]
    budget = {"budget_unit": "USD", "budget_amount": 0.1, "duration": {"unit": "DAYS", "value": 3}, "budget_action": "ALERT"}
    for _ in range(2):
        post("budgets/create", {**budget, "target_scope": "GLOBAL", "created_by": "ann"})
    of_endpoint = {**budget, "target_scope": "ENDPOINT", "target_value": endpoint, "budget_action": "REJECT"}
    made = post("budgets/create", of_endpoint)["budget_policy"]
    post("budgets/update", {"budget_policy_id": made["budget_policy_id"], "updated_by": "bob"})
    judge = {
        "name": "judge",
        "instructions_judge_pydantic_data": {"instructions": "{{inputs}}?", "model": "gateway:/judge-model"},
    }
    scorer = {"experiment_id": experiment, "name": "judge", "serialized_scorer": json.dumps(judge)}
    scorer_id = client.post_json(f"{API3}scorers/register", scorer)["scorer_id"]
    binding = {"endpoint_id": tracked["endpoint_id"], "resource_type": "scorer", "resource_id": scorer_id, "created_by": "ann"}
    post("endpoints/bindings/create", binding)
    rail = {"name": "guard", "scorer_id": scorer_id, "scorer_version": 1, "stage": "BEFORE", "action": "SANITIZATION"}
    guardrail = post("guardrails/create", {**rail, "action_endpoint_id": endpoint})["guardrail"]["guardrail_id"]
    post("guardrails/add-to-endpoint", {"endpoint_id": endpoint, "guardrail_id": guardrail, "execution_order": 2})
    post("guardrails/add-to-endpoint", {"endpoint_id": tracked["endpoint_id"], "guardrail_id": guardrail})
    post("guardrails/create", {**rail, "name": "alone", "stage": "AFTER", "action": "VALIDATION"})


def make_webhooks(client: RestClient) -> None:
    """An active webhook with a secret, and one with a password in its URL."""
    events = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}, {"entity": "MODEL_VERSION_TAG", "action": "SET"}]
    hook = {"name": "hook", "url": "https://93.184.216.34/hook", "events": events, "status": "ACTIVE", "secret": SECRETS[1]}
    client.post_json(f"{API}webhooks", {**hook, "description": "tells\nsomebody"})
    client.post_json(f"{API}webhooks", {**hook, "url": f"https://me:{SECRETS[0]}@93.184.216.34/hook", "events": events[:1]})


def make_mcp(client: RestClient) -> None:
    """Servers with and without words of their own, versions in every state, aliases, tags and endpoints."""

    def post(path: str, body: Mapping[str, Any], method: str = "POST") -> Any:
        return client.post_json(MCP + path, body, method=method)

    post("", {"name": "org.example/plain", "description": "its own", "icons": [{"src": ICON, "sizes": ["1x1"]}]})
    post("/org.example/plain", {"display_name": "Plain ü"}, "PATCH")
    post("/org.example/plain/tags", {"key": "k", "value": "v\nw"})
    post("", {"name": "org.example/full"})
    for version, status in (("1.0.0", "active"), ("1.1.0-rc.1", "draft"), ("2.0.0", "active"), ("3.0.0", "draft")):
        document = {"name": "org.example/full", "version": version, "description": "of a version", "extra": {"b": 1, "a": 2.5}}
        body = {"server_json": {**document, "icons": [{"src": ICON}]}, "status": status, "source": "somewhere"}
        body["tools"] = [{"name": "tool", "inputSchema": {"type": "object"}}]
        post("/org.example/full/versions", {**body, "connect_options": {"x": {"hidden": True}}})
    post("/org.example/full/versions/1.0.0", {"status": "deprecated"}, "PATCH")
    post("/org.example/full/versions/3.0.0", {}, "DELETE")
    post("/org.example/full/versions/2.0.0/tags", {"key": "k", "value": "v"})
    post("/org.example/full/aliases", {"alias": "live", "version": "2.0.0"})
    post("/org.example/full/aliases", {"alias": "old", "version": "1.0.0"})
    for target in ({"server_alias": "live"}, {"server_alias": "latest"}, {"server_version": "1.0.0"}):
        body = {
            "url": "https://93.184.216.34/mcp",
            "transport_type": "sse" if "server_version" in target else "streamable-http",
        }
        post("/org.example/full/endpoints", {**body, **target})


@pytest.fixture(scope="module")
def packed(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Configuration of every kind, in a workspace of its own, as a bundle."""
    root = RestClient(server.url)
    root.post_json(f"{API3}workspaces", {"name": "source"})
    client = root.in_workspace("source")
    experiment = client.post_json(f"{API}experiments/create", {"name": "judged"})["experiment_id"]
    make_webhooks(client)
    make_gateway(client, experiment)
    make_mcp(client)
    place = str(tmp_path_factory.mktemp("config") / "packed")
    return pack(server, "source", place)


def pack(server: MlflowServer, workspace: str, place: str | Path) -> str:
    """One workspace of a server as a bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_WORKSPACE", workspace)
        report = bundle.pack(bundle=place, tracking_uri=server.url)
    assert (report.state, report.problems) == ("complete", ())
    return str(place)


def records(place: str | Path, *kinds: str) -> list[Record]:
    """The records of these kinds, in archive order."""
    with bundle.open(place) as archive:
        return [record for kind in kinds if kind in archive.kinds() for record in archive.records(kind)]


#: What a server gives anew, for every kind of configuration.
ANEW = {"workspace", "created_at", "last_updated_at", "creation_timestamp", "last_updated_timestamp", "mapping_id"}
USERS = {"created_by", "last_updated_by"}
#: What else cannot be as it was, or is changed on purpose.
CHANGED: Mapping[str, set[str]] = {
    "webhook": {"webhook_id", "status"},
    "gateway_secret": {"secret_id"},
    "gateway_model_definition": {"model_definition_id"},
    "gateway_endpoint": {"endpoint_id"},
    "budget_policy": {"budget_policy_id"},
    "guardrail": {"guardrail_id"} | USERS,
    "mcp_server": USERS,
    "mcp_server_version": USERS,
    "mcp_access_endpoint": {"id"} | USERS,
}
#: The members by which records name each other.
NAMES = {"model_definition_id", "secret_id", "experiment_id", "endpoint_id", "action_endpoint_id", "target_value", "scorer_id"}


def content(place: str | Path) -> list[str]:
    """The configuration in a bundle without what cannot be as it was, each reference by the name that it leads to."""
    names: dict[str, str] = {}
    for record in records(place, "experiment", "scorer", "gateway_secret", "gateway_model_definition", "gateway_endpoint"):
        identity = record.scorer_id if isinstance(record, Scorer) else record_id(record)
        name = next(getattr(record, one) for one in ("name", "secret_name", "scorer_name") if hasattr(record, one))
        names[str(identity)] = f"the {record.__struct_config__.tag} {name}"
    found = []
    for record in records(place, *CONFIGURATION):
        kind = str(record.__struct_config__.tag)
        shown = {name: value for name, value in _members(record).items() if name not in CHANGED[kind]}
        found.append(f"{kind} {_shown(shown, names)}")
    return sorted(found)


def _members(value: Any) -> dict[str, Any]:
    members = {name: getattr(value, name) for name in value.__struct_fields__}
    return {name: member for name, member in members.items() if member is not UNSET and name not in ANEW}


def _shown(value: Any, names: Mapping[str, str]) -> str:
    if isinstance(value, tuple):
        kept = [item for item in value if not str(getattr(item, "key", "")).startswith("mlflow_bundle.")]
        return str(sorted(_shown(item, names) for item in kept))
    if hasattr(value, "__struct_fields__"):
        value = _members(value)
    if isinstance(value, dict):
        shown = {
            name: names.get(member, member) if name in NAMES | {"resource_id"} else member for name, member in value.items()
        }
        return str({name: _shown(member, names) for name, member in shown.items()})
    for old, name in names.items():  # a fall-back names its models in a text
        value = str(value).replace(f'"{old}"', name) if len(old) > 20 else value
    return str(value)


def outcomes(report: bundle.UnpackReport) -> dict[str, tuple[int, int, int]]:
    """For each kind of configuration how many were restored, left out, failed."""
    return {one.kind: (one.restored, one.left_out, one.failed) for one in report.entities if one.kind in CONFIGURATION}


# -- configuration -----------------------------------------------------------------------------------------------------


def test_everything_survives(packed: str, server: MlflowServer, tmp_path: Path) -> None:
    """Where the secrets are typed in again, every member of every kind comes back, but for what the lists here name."""
    target = new_workspace(server, "key", "other key")
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert report.problems == ()
    counts = {one.kind: one.selected for one in report.entities}
    assert outcomes(report) == {kind: (0 if kind == "gateway_secret" else counts[kind], 0, 0) for kind in CONFIGURATION}
    assert content(pack(server, target, tmp_path / "again")) == content(packed)


def test_a_second_restore_adds_nothing(packed: str, server: MlflowServer) -> None:
    """Whatever is there already is found again, by its name or by being equal: not one row of the database changes."""
    target = new_workspace(server, "key", "other key")
    bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    before = rows(server)
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert report.problems == ()
    assert {one.kind for one in report.entities if one.restored or one.merged or one.failed} == set()
    assert rows(server) == before


def rows(server: MlflowServer) -> list[str]:
    """All rows of all tables."""
    path = server.backend_store_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return sorted(database.iterdump())


@pytest.mark.parametrize("answered", [False, True])
def test_an_interrupted_restore_is_finished(packed: str, server: MlflowServer, tmp_path: Path, *, answered: bool) -> None:
    """Wherever the line to the server breaks, before a request or before its answer, running again makes the rest, once."""
    for cut in range(6 if answered else 3, 95, 25):
        target = new_workspace(server, "key", "other key")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_once, "_WAITS", (0.01,))
            patch.setattr(_rest, "http_request", breaking(cut, answered=answered))
            with pytest.raises(ServerError):
                bundle.unpack(packed, tracking_uri=server.url, workspace=target, jobs=1)
        report = bundle.unpack(packed, tracking_uri=server.url, workspace=target)
        assert report.problems == (), cut
        assert content(pack(server, target, tmp_path / str(cut))) == content(packed), cut


def breaking(after: int, *, answered: bool) -> Callable[..., Any]:
    """MLflow's own request function, until so many requests that write were sent: then the line is dead."""
    ask, sent = _rest.http_request, count(1)

    def send(creds: Any, path: str, method: str, **options: Any) -> Any:
        if method != "GET" and next(sent) >= after:
            if answered:
                ask(creds, path, method, **options)
            raise requests.ConnectionError("the line is dead")
        return ask(creds, path, method, **options)

    return send


def test_what_needs_a_secret_is_told_before_the_first_write(packed: str, server: MlflowServer) -> None:
    """Without the secrets nothing is written, and everything that hangs on them is named. With ``allow_partial`` the rest is
    restored, and all of it when the secrets are typed in later."""
    target = new_workspace(server, "key")
    before = rows(server)
    with pytest.raises(CannotHoldError) as caught:
        bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert rows(server) == before
    told = {(problem.kind, problem.code) for problem in caught.value.problems}
    gateway = ("gateway_model_definition", "gateway_endpoint", "budget_policy", "guardrail", "scorer")
    assert told == {(kind, "cannot-hold") for kind in gateway}
    assert "'other key'" in next(one.message for one in caught.value.problems if one.kind == gateway[0])
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target, allow_partial=True)
    found = outcomes(report)
    assert {kind: found[kind][1:] for kind in gateway[:-1]} == dict(
        zip(gateway, [(1, 0), (1, 0), (1, 0), (2, 0)], strict=False)
    )
    assert found["gateway_secret"] == (0, 1, 0)
    assert all(found[kind][1:] == (0, 0) for kind in ("webhook", "mcp_server", "mcp_server_version", "mcp_access_endpoint"))
    make_secrets(RestClient(server.url).in_workspace(target), "other key")
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert report.problems == ()


def test_a_server_without_the_gateway(packed: str, plain: MlflowServer) -> None:
    """What a server has not switched on is told before the first write, kind by kind."""
    before = rows(plain)
    with pytest.raises(CannotHoldError) as caught:
        bundle.unpack(packed, tracking_uri=plain.url)
    told = {problem.kind for problem in caught.value.problems if problem.code == "kind-not-held"}
    assert told == {"workspace", *CONFIGURATION[2:6]}
    assert rows(plain) == before


def test_another_thing_of_the_same_name(packed: str, server: MlflowServer) -> None:
    """Names that the target has given to something else are told before the first write, and what they name stays."""
    target = new_workspace(server, "key", "other key")
    client = RestClient(server.url).in_workspace(target)
    secret = client.get_json(f"{GATEWAY}secrets/list")["secrets"][0]["secret_id"]
    body = {"name": "model 0", "secret_id": secret, "provider": "openai", "model_name": "another"}
    made = client.post_json(f"{GATEWAY}model-definitions/create", body)["model_definition"]
    document = {"server_json": {"name": "org.example/full", "version": "2.0.0", "other": 1}}
    client.post_json(f"{MCP}/org.example/full/versions", document)
    before = rows(server)
    with pytest.raises(CannotHoldError) as caught:
        bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert rows(server) == before
    taken = {(problem.kind, problem.code) for problem in caught.value.problems if problem.code == "name-taken"}
    assert taken == {("gateway_model_definition", "name-taken"), ("mcp_server_version", "name-taken")}
    told = [problem.message for problem in caught.value.problems if problem.kind == "gateway_endpoint"]
    assert len(told) == 3
    assert all("needs the model definition" in message for message in told)
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target, allow_partial=True)
    assert any("the alias 'live' of 'org.example/full' names version 2.0.0" in note for note in report.notes)
    assert {one.kind for one in report.entities if one.failed} & set(CONFIGURATION[2:6]) == set()
    assert not {new for ids in report.ids.values() for new in ids.values()} & {"None", made["model_definition_id"]}
    assert outcomes(report)["gateway_model_definition"] == (2, 1, 0)
    shown = client.get_json(f"{GATEWAY}model-definitions/get", {"model_definition_id": made["model_definition_id"]})
    assert shown["model_definition"]["model_name"] == "another"
    assert client.get_json(f"{MCP}/org.example/full/versions/2.0.0")["server_json"]["other"] == 1


def test_what_was_changed_since_stays(packed: str, server: MlflowServer) -> None:
    """What somebody changed after a restore is neither put back nor made a second time, and the report says so."""
    target = new_workspace(server, "key", "other key")
    bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    client = RestClient(server.url).in_workspace(target)
    hook = client.get_json(f"{API}webhooks")["webhooks"][0]["webhook_id"]
    client.post_json(f"{API}webhooks/{hook}", {"status": "ACTIVE"}, method="PATCH")
    client.post_json(f"{MCP}/org.example/plain", {"description": "changed"}, method="PATCH")
    client.post_json(f"{MCP}/org.example/full/versions/1.0.0", {"status": "active"}, method="PATCH")
    client.post_json(f"{MCP}/org.example/full/aliases", {"alias": "old", "version": "2.0.0"})
    before = rows(server)
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert report.problems == ()
    assert rows(server) == before
    told = " ".join(report.notes)
    assert "'org.example/plain' stays as it is" in told
    assert "'changed'" in told
    assert "keeps its own alias 'old'" in told


def test_no_secret_is_archived_and_nothing_calls_anybody(packed: str, server: MlflowServer) -> None:
    """Keys and passwords are nowhere in the bundle; restored webhooks are disabled, and one without its password is named."""
    everything = repr(records(packed, *KINDS))
    assert "org.example/full" in everything
    assert not [secret for secret in SECRETS if secret in everything]
    target = new_workspace(server)
    report = bundle.unpack(packed, tracking_uri=server.url, workspace=target, allow_partial=True)
    hooks = RestClient(server.url).in_workspace(target).get_json(f"{API}webhooks")["webhooks"]
    assert [hook["status"] for hook in hooks] == ["DISABLED", "DISABLED"]
    assert any("lacks its secret" in note for note in report.notes), [record.url for record in records(packed, "webhook")]


def test_the_experiment_of_an_endpoint_knows_its_new_id(packed: str, server: MlflowServer) -> None:
    """The experiment that a server made for an endpoint names the restored endpoint, and keeps the old id beside."""
    target = new_workspace(server, "key", "other key")
    bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    client = RestClient(server.url).in_workspace(target)
    named = client.get_json(f"{API}experiments/get-by-name", {"experiment_name": "gateway/tracked"})["experiment"]
    tags = {tag["key"]: tag["value"] for tag in named["tags"]}
    endpoint = client.get_json(f"{GATEWAY}endpoints/get", {"endpoint_id": tags["mlflow.experiment.sourceId"]})["endpoint"]
    assert (endpoint["name"], endpoint["experiment_id"]) == ("tracked", named["experiment_id"])
    assert tags["mlflow_bundle.source.tags.mlflow.experiment.sourceId"].startswith("e-")


def test_bindings_are_read_back(packed: str, server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a server did not bind an endpoint to what uses it, though it answered so, is a problem; the next restore does it."""
    target, ask = new_workspace(server, "key", "other key"), _rest.http_request

    def send(creds: Any, path: str, method: str, **options: Any) -> Any:
        if path.endswith("endpoints/bindings/create"):
            return ask(creds, path.replace("create", "list"), "GET", extra_headers=options["extra_headers"])
        return ask(creds, path, method, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_rest, "http_request", send)
        report = bundle.unpack(packed, tracking_uri=server.url, workspace=target)
    assert [problem.kind for problem in report.problems] == ["gateway_endpoint"]
    assert "was not read back" in report.problems[0].message
    assert outcomes(report)["gateway_endpoint"][2] == 1
    assert bundle.unpack(packed, tracking_uri=server.url, workspace=target).problems == ()


# -- workspaces --------------------------------------------------------------------------------------------------------


def make_in_workspace(client: RestClient, number: int) -> None:
    """A little of everything in one workspace, under names that every workspace has."""
    experiment = client.post_json(f"{API}experiments/create", {"name": "same"})["experiment_id"]
    own = client.post_json(f"{API}experiments/create", {"name": f"own {number}"})["experiment_id"]
    runs = []
    for place in (experiment, own):
        run = client.post_json(f"{API}runs/create", {"experiment_id": place, "start_time": 5 + number})["run"]["info"]
        model = client.post_json(f"{API}logged-models", {"experiment_id": place, "name": "same"})["model"]["info"]["model_id"]
        client.post_json(f"{API}logged-models", {"experiment_id": place, "name": "beside"})
        point = {"key": "m", "value": number, "timestamp": 1, "step": 0, "model_id": model}
        client.post_json(f"{API}runs/log-batch", {"run_id": run["run_id"], "metrics": [point]})
        client.post_json(f"{API}runs/log-inputs", {"run_id": run["run_id"], "models": [{"model_id": model}]})
        path = run["artifact_uri"].partition(":/")[2] + "/file.txt"
        content = str(number).encode()
        client.put("/api/2.0/mlflow-artifacts/artifacts/" + path, BytesIO(content), len(content))
        runs.append((run["run_id"], model))
    client.post_json(f"{API}registered-models/create", {"name": "same", "description": str(number)})
    client.post_json(f"{API}registered-models/create", {"name": f"own {number}"})
    for name, (run_id, model) in zip(("same", f"own {number}"), runs, strict=True):
        version = {"name": name, "source": f"models:/{model}", "run_id": run_id, "model_id": model}
        client.post_json(f"{API}model-versions/create", version)
    dataset = client.post_json(f"{API3}datasets/create", {"name": "same", "experiment_ids": [own]})["dataset"]["dataset_id"]
    client.post_json(f"{API3}datasets/{dataset}/records", {"records": json.dumps([{"inputs": {"q": number}}])})
    client.post_json(MCP, {"name": "org.example/same", "description": str(number)})
    document = {"name": "org.example/same", "version": f"{number}.0.0"}
    client.post_json(f"{MCP}/org.example/same/versions", {"server_json": document, "status": "active"})
    judge = {"name": "same", "builtin_scorer_class": "Safety", "builtin_scorer_pydantic_data": {"name": "same"}}
    client.post_json(f"{API3}scorers/register", {"experiment_id": own, "name": "same", "serialized_scorer": json.dumps(judge)})
    make_trace(client, own, number)
    gone = client.post_json(f"{API}experiments/create", {"name": f"gone {number}"})["experiment_id"]
    client.post_json(f"{API3}issues", {"experiment_id": own, "name": "same", "description": str(number)})
    client.post_json(f"{API}experiments/delete", {"experiment_id": gone})
    events = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]
    client.post_json(f"{API}webhooks", {"name": f"hook-{number}", "url": "https://93.184.216.34/hook", "events": events})


def make_trace(client: RestClient, experiment: str, number: int) -> None:
    """A trace with a span and a judgement."""
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=bytes.fromhex(f"{number + 1:032x}"),
            span_id=bytes.fromhex(f"{number + 1:016x}"),
            name=f"span {number}",
            start_time_unix_nano=1_700_000_000_000_000_000,
            end_time_unix_nano=1_700_000_000_000_000_005,
        )
    )
    span.attributes.add(key="a").value.string_value = "b"
    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    client.post_bytes("/v1/traces", request.SerializeToString(), headers=headers)
    trace_id = f"tr-{number + 1:032x}"
    judgement = {"assessment_name": "good", "feedback": {"value": True}, "source": {"source_type": "HUMAN", "source_id": "ann"}}
    client.post_json(f"{API3}traces/{trace_id}/assessments", {"assessment": {"trace_id": trace_id, **judgement}})


@pytest.fixture(scope="module")
def teams(start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three workspaces with the same names in them, as a bundle."""
    server = start_server(extra=["--enable-workspaces"])
    root = RestClient(server.url)
    for name in ("team-a", "team-b"):
        root.post_json(f"{API3}workspaces", {"name": name, "description": f"words of {name}"})
    for number, name in enumerate(("default", "team-a", "team-b")):
        make_in_workspace(root.in_workspace(name), number)
    place = str(tmp_path_factory.mktemp("teams") / "packed")
    report = bundle.pack(bundle=place, tracking_uri=server.url)
    assert (report.state, report.problems) == ("complete", ())
    server.stop()
    return place


def by_workspace(server: MlflowServer, name: str | None) -> dict[str, list[str]]:
    """What a workspace of a server has: names of each kind, and what its runs say."""
    root = RestClient(server.url)
    client = root.in_workspace(name) if name else root
    found: dict[str, list[str]] = {}
    experiments = client.get_json(f"{API}experiments/search", {"max_results": 100, "view_type": "ALL"})["experiments"]
    named = {one["experiment_id"]: one["name"] for one in experiments}
    found["experiment"] = sorted(f"{one['name']} {one['lifecycle_stage']}" for one in experiments)
    searched = client.post_json(f"{API}runs/search", {"experiment_ids": list(named), "max_results": 100}).get("runs", [])
    runs = [client.get_json(f"{API}runs/get", {"run_id": run["info"]["run_id"]})["run"] for run in searched]
    models_read = {run["info"]["run_id"]: len(run["inputs"].get("model_inputs", [])) for run in runs}
    found["run"] = sorted(
        f"{named[run['info']['experiment_id']]} {run['data']['metrics'][0]['value']} {models_read[run['info']['run_id']]}"
        for run in runs
    )
    models = client.get_json(f"{API}registered-models/search", {"max_results": 100}).get("registered_models", [])
    found["registered_model"] = sorted(f"{one['name']} {one.get('description', '')}" for one in models)
    versions = client.get_json(f"{API}model-versions/search", {"max_results": 100}).get("model_versions", [])
    found["model_version"] = sorted(f"{one['name']} {one['version']}" for one in versions)
    ids = {run["info"]["run_id"] for run in runs}
    assert {one["run_id"] for one in versions} <= ids, "versions name runs of their workspace"
    found["mcp_server"] = sorted(f"{one['name']} {one['description']}" for one in client.get_json(MCP)["mcp_servers"])
    found["webhook"] = sorted(one["name"] for one in client.get_json(f"{API}webhooks").get("webhooks", []))
    datasets = client.post_json(f"{API3}datasets/search", {"max_results": 100}).get("datasets", [])
    found["evaluation_dataset"] = [one["name"] for one in datasets]
    places = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one}} for one in named]
    traces = client.post_json(f"{API3}traces/search", {"locations": places, "max_results": 100}).get("traces", [])
    found["trace"] = sorted(
        f"{one['trace_id']} {len(one['assessments'])} {len(spans_of(client, one['trace_id']))}" for one in traces
    )
    issues = client.post_json(f"{API3}issues/search", {"max_results": 100}).get("issues", [])
    found["issue"] = sorted(one["description"] for one in issues)
    return found


def spans_of(client: RestClient, trace_id: str) -> list[Any]:
    """The spans of a trace as the server gives them back."""
    found: list[Any] = client.get_json(f"{API3}traces/get", {"trace_id": trace_id})["trace"].get("spans", [])
    return found


def expected_in(*numbers: int, same: int) -> dict[str, list[str]]:
    """What a workspace has that got these, of which one gave its things the names that all of them have."""
    own = sorted(f"own {number}" for number in numbers)
    return {
        "experiment": sorted(
            [*(f"{one} active" for one in own), "same active", *(f"gone {number} deleted" for number in numbers)]
        ),
        "run": sorted([*(f"own {number} {number}.0 1" for number in numbers), f"same {same}.0 1"]),
        "registered_model": sorted([*(f"{one} " for one in own), f"same {same}"]),
        "model_version": sorted([*(f"{one} 1" for one in own), "same 1"]),
        "mcp_server": [f"org.example/same {same}"],
        "webhook": sorted(f"hook-{number}" for number in numbers),
        "evaluation_dataset": ["same"] * len(numbers),
        "trace": [f"tr-{number + 1:032x} 1 1" for number in numbers],
        "issue": [str(number) for number in numbers],
    }


def without_default(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without the experiment that every workspace may have."""
    return {**found, "experiment": [name for name in found["experiment"] if name != "Default active"]}


@pytest.fixture(scope="module")
def empty(start_server: ServerFactory) -> MlflowServer:
    """A server with workspaces and nothing in it."""
    return start_server(extra=["--enable-workspaces"])


def test_workspaces_come_back_under_their_names(teams: str, empty: MlflowServer) -> None:
    """Each workspace is made and gets its own things, equal names beside each other; a second restore adds nothing."""
    report = bundle.unpack(teams, tracking_uri=empty.url)
    assert report.problems == ()
    for number, name in enumerate(("default", "team-a", "team-b")):
        assert without_default(by_workspace(empty, name)) == expected_in(number, same=number), name
    root = RestClient(empty.url)
    listed = {one["name"]: one.get("description") for one in root.get_json(f"{API3}workspaces")["workspaces"]}
    assert {name: listed[name] for name in ("team-a", "team-b")} == {"team-a": "words of team-a", "team-b": "words of team-b"}
    before = rows(empty)
    again = bundle.unpack(teams, tracking_uri=empty.url)
    assert (again.problems, again.runs_already_there) == ((), 6)
    assert {one.kind for one in again.entities if one.restored or one.failed} == set()
    assert rows(empty) == before


def test_files_go_with_their_runs(teams: str, empty: MlflowServer, tmp_path: Path) -> None:
    """The artifacts of runs in workspaces lie where the server looks for them, each with its own content."""
    bundle.unpack(teams, tracking_uri=empty.url)
    report = bundle.pack(bundle=tmp_path / "again", tracking_uri=empty.url)
    assert (report.state, report.problems) == ("complete", ())
    found = []
    with bundle.open(tmp_path / "again") as archive:
        homes = {one.experiment_id: one.workspace for one in archive.records("experiment")}
        for run in archive.records("run"):
            row = archive.files_of([run.run_id]).to_pylist()[0]
            with archive.blobs.open(row["sha256"]) as content:
                found.append((homes[run.experiment_id], content.read()))
    assert sorted(found) == [(name, str(n).encode()) for n, name in enumerate(("default", "team-a", "team-b")) for _ in "ab"]


def test_several_workspaces_into_one(teams: str, server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would get a name twice is told before the first write; then one keeps it, others are left out, nothing merges.
    What belongs to those is told of once, however many batches it comes in."""
    monkeypatch.setattr(_batches, "_RECORDS", 1)
    target = new_workspace(server)
    before = rows(server)
    with pytest.raises(CannotHoldError) as caught:
        bundle.unpack(teams, tracking_uri=server.url, workspace=target)
    assert rows(server) == before
    told = sorted(problem.kind for problem in caught.value.problems if problem.code == "name-collision")
    assert told == sorted(["experiment", "mcp_server", "registered_model"] * 2)
    report = bundle.unpack(teams, tracking_uri=server.url, workspace=target, allow_partial=True)
    told = sorted(problem.message for problem in caught.value.problems if problem.code == "owner-left-out")
    assert sum(message.startswith("2 logged_model left out") for message in told) == 2
    assert told == sorted(problem.message for problem in report.problems if problem.code == "owner-left-out")
    assert without_default(by_workspace(server, target)) == expected_in(0, 1, 2, same=0)
    made = {one["name"] for one in RestClient(server.url).get_json(f"{API3}workspaces")["workspaces"]}
    assert made & {"team-a", "team-b"} == set()
    assert any("team-a" in note and target in note for note in report.notes)
    again = bundle.unpack(teams, tracking_uri=server.url, workspace=target, allow_partial=True)
    assert {one.kind for one in again.entities if one.restored or one.failed} == set()
    assert without_default(by_workspace(server, target)) == expected_in(0, 1, 2, same=0)


def test_a_rename_resolves_a_collision(teams: str, server: MlflowServer) -> None:
    """An experiment that is called by its workspace gets another name there, and comes beside the one that keeps its own."""
    target = new_workspace(server)
    rename = {"team-a/same": "same a", "team-b/same": "same b"}
    bundle.unpack(teams, tracking_uri=server.url, workspace=target, rename=rename, allow_partial=True)
    runs = by_workspace(server, target)["run"]
    assert [run for run in runs if run.startswith("same")] == ["same 0.0 1", "same a 1.0 1", "same b 2.0 1"]


def test_workspaces_into_a_server_that_has_none(teams: str, plain: MlflowServer) -> None:
    """Everything goes into one place, which is told before the first write, with the names that only one can have."""
    before = rows(plain)
    with pytest.raises(CannotHoldError) as caught:
        bundle.unpack(teams, tracking_uri=plain.url)
    assert rows(plain) == before
    assert {problem.code for problem in caught.value.problems} == {"kind-not-held", "name-collision", "owner-left-out"}
    with pytest.raises(UsageError, match="has no workspaces"):
        bundle.unpack(teams, tracking_uri=plain.url, workspace="team-a")
    report = bundle.unpack(teams, tracking_uri=plain.url, allow_partial=True)
    assert without_default(by_workspace(plain, None)) == expected_in(0, 1, 2, same=0)
    assert any("team-b" in note for note in report.notes)


def test_a_part_of_a_workspace_makes_it(teams: str, start_server: ServerFactory) -> None:
    """Where the archive brings no record of a workspace along, the workspace is made for what goes into it."""
    server = start_server(extra=["--enable-workspaces"])
    report = bundle.unpack(teams, tracking_uri=server.url, experiment="own 1")
    assert report.problems == ()
    assert by_workspace(server, "team-a")["run"] == ["own 1 1.0 1"]
    assert without_default(by_workspace(server, "default"))["experiment"] == []
