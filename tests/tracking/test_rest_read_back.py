"""A server that answers 200 and keeps something else: every field of every kind is compared when it is read back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import requests

from mlflow_bundle.entities import (
    Alias,
    Assessment,
    DatasetRecord,
    EvaluationDataset,
    Issue,
    LabelSchema,
    OnlineScoring,
    Record,
    RegisteredModel,
    ReviewItem,
    ReviewQueue,
    Scorer,
    ScorerVersion,
    Trace,
    Webhook,
    WebhookEvent,
)
from mlflow_bundle.tracking._port import EntityResult, PlannedEntity
from tests.fixtures.server import MlflowServer
from tests.tracking.entity_writing import Restoring, actions, messages, tags
from tests.tracking.http_peer import serve

pytestmark = pytest.mark.slow

Change = Callable[[Any], Any]


@pytest.fixture
def honest(server: MlflowServer, request: pytest.FixtureRequest) -> Restoring:
    """Restores of an archive of this test's own, with an experiment and a run."""
    restoring = Restoring(server, f"bundle of {request.node.name}")
    restoring.run("r" * 32, restoring.experiment("7"))
    return restoring


def altered(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        moved = re.sub(r"^20\d\d-", "1999-", value)
        digits = moved if moved != value else re.sub(r"^\d+(?=s$|\.\d+s$)", "77", value)
        return digits if digits != value else value + " x"
    return {} if isinstance(value, dict) else []


def lies_about(member: str, change: Change = altered) -> Change:
    """Change what an answer says of a member, wherever that is."""

    def lie(node: Any) -> Any:
        if isinstance(node, list):
            return [lie(one) for one in node]
        if not isinstance(node, dict):
            return node
        return {name: change(value) if name == member else lie(value) for name, value in node.items()}

    return lie


@contextmanager
def through(honest: Restoring, path: str, lie: Change) -> Iterator[Restoring]:
    """The same restores through a proxy that alters the JSON of the answers of one endpoint."""

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        headers = {"Content-Type": "application/json"}
        if asked == "/v1/traces":
            headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": honest.ids.new("experiment", "7")}
        real = requests.request(method, honest.server.url + asked, data=body or None, headers=headers, timeout=60)
        content = real.content
        if re.search(path, f"{method} {asked}") and real.ok and content[:1] in b"{[":
            content = json.dumps(lie(json.loads(content))).encode()
        return real.status_code, content, None

    with serve(answer) as peer:
        lying = Restoring(honest.server, honest.bundle_id, url=peer.url)
        lying.ids, lying._blobs = honest.ids, honest._blobs
        yield lying


# -- traces ------------------------------------------------------------------------------------------------------------

TRACE = "0123456789abcdef0123456789abcdef"
SPAN = "0123456789abcdef"
INFOS, SPANS, FOUND = "batchGetInfos", "get-trace-artifact", "POST .*traces/search$"


def judgement(identity: str, kind: Any, value: Any, **fields: Any) -> Assessment:
    """An assessment that says everything."""
    told = {"create_time": 1_700_000_000_001, "last_update_time": 1_700_000_000_002, "rationale": "so", "source_id": "ann"}
    return Assessment(
        assessment_id=identity,
        assessment_name=f"name of {identity}",
        assessment_type=kind,
        value=json.dumps(value),
        source_type="HUMAN",
        **{**told, **fields},
    )


def a_trace(number: int) -> PlannedEntity:
    """A trace with everything: a span, feedback that overrides other feedback, an error, an expectation, a run."""
    otel = f"{number:032x}"
    trace_id = f"tr-{otel}"
    error = json.dumps({"error_code": "E", "error_message": "m", "stack_trace": None})
    judged = (
        judgement("a-1", "feedback", True, valid=False),
        judgement("a-2", "feedback", {"deep": [1.5, None], "no": None}, overrides="a-1", span_id=SPAN, metadata=tags(k="v")),
        judgement("a-3", "feedback", None, error=error),
        judgement("a-4", "expectation", {"n": 2**60}, rationale=msgspec.UNSET),
    )
    content = {
        "trace_id": _base64(otel),
        "span_id": _base64(SPAN),
        "parent_span_id": None,
        "name": "root",
        "start_time_unix_nano": 1_700_000_000_000_000_000,
        "end_time_unix_nano": 1_700_000_001_000_000_000,
        "events": [{"name": "event", "time_unix_nano": 1_700_000_000_500_000_000, "attributes": {"a": "b"}}],
        "status": {"code": "STATUS_CODE_ERROR", "message": "broken"},
        "attributes": {"mlflow.traceRequestId": json.dumps(trace_id), "plain": '"text"', "number": "1"},
        "links": [],
    }
    row = {"span_id": SPAN, "content": json.dumps(content)}
    rows = pa.Table.from_pylist([row], schema=pa.schema([("span_id", pa.string()), ("content", pa.string())]))
    record = Trace(
        trace_id=trace_id,
        experiment_id="7",
        request_time=1_700_000_000_000,
        execution_duration=1_000,
        state="ERROR",
        client_request_id=f"client {number}",
        request_preview="asked",
        response_preview="answered",
        spans_location="TRACKING_STORE",
        tags=tags(own="tag"),
        trace_metadata=tags(own="metadata"),
        assessments=judged,
        run_ids=("r" * 32,),
    )
    return PlannedEntity(record=record, rows=rows)


def _base64(digits: str) -> str:
    import base64  # noqa: PLC0415

    return base64.b64encode(bytes.fromhex(digits)).decode()


def in_info(member: str, change: Change = altered) -> tuple[str, Change]:
    return INFOS, lies_about(member, change)


TRACE_LIES: Mapping[str, tuple[str, Change]] = {
    **{
        name: in_info(name)
        for name in ("request_time", "execution_duration", "state", "client_request_id", "request_preview", "response_preview")
    },
    **{name: in_info(name) for name in ("create_time", "last_update_time", "rationale", "source_type", "source_id", "span_id")},
    **{name: in_info(name) for name in ("assessment_name", "overrides", "error_code", "error_message")},
    "invalid becomes valid": in_info("valid", lambda _: True),
    "valid becomes invalid": in_info("valid", lambda _: False),
    "a tag": in_info("tags", lambda found: {**found, "own": "other"}),
    "no tag": in_info("tags", lambda found: {key: value for key, value in found.items() if key != "own"}),
    "metadata": in_info("trace_metadata", lambda found: {**found, "own": "other"}),
    "metadata of an assessment": in_info("metadata", lambda _: {"k": "w"}),
    "no assessments": in_info("assessments"),
    "one assessment less": in_info("assessments", lambda found: found[1:]),
    "true becomes 1": in_info("feedback", lambda found: {**found, "value": 1} if found.get("value") is True else found),
    "no error": in_info("feedback", lambda found: {name: part for name, part in found.items() if name != "error"}),
    "a null is dropped": in_info(
        "value", lambda found: {k: v for k, v in found.items() if v is not None} if isinstance(found, dict) else found
    ),
    "an expectation": in_info("expectation", lambda _: {"serialized_value": {"value": '{"n": 1152921504606846977}'}}),
    "no trace": in_info("trace_infos"),
    "another experiment": in_info("experiment_id", lambda _: "0"),
    "no spans": (SPANS, lies_about("spans")),
    "no link": (FOUND, lies_about("traces")),
    **{
        f"{name} of a span": (SPANS, lies_about(name))
        for name in ("name", "start_time_unix_nano", "end_time_unix_nano", "events", "attributes", "message", "plain", "number")
    },
}


@pytest.fixture
def number(request: pytest.FixtureRequest) -> int:
    """A number of this test's own."""
    import zlib  # noqa: PLC0415

    return zlib.crc32(request.node.name.encode()) + 1


def test_a_trace_comes_back_without_a_word(honest: Restoring, number: int) -> None:
    """Without a lie there is no problem: the cases below fail for their own reason. The proxy itself changes nothing."""
    with through(honest, INFOS, lambda found: found) as restoring:
        (result,) = restoring.restore(("trace", [a_trace(number)]))
    assert (messages([result]), result.action, result.rows) == ([], "restored", 1)


@pytest.mark.parametrize("lie", TRACE_LIES)
def test_every_field_of_a_trace_is_compared(honest: Restoring, number: int, lie: str) -> None:
    """Whatever a server makes of a trace while it says 200, the trace is not counted as restored."""
    path, change = TRACE_LIES[lie]
    with through(honest, path, change) as restoring:
        (result,) = restoring.restore(("trace", [a_trace(number)]))
    assert result.action == "failed"
    assert result.problems


# -- all other kinds ---------------------------------------------------------------------------------------------------

JUDGE = json.dumps({"name": "judge", "instructions": "be kind"})


def batches(name: str) -> dict[str, tuple[str, Sequence[Record]]]:
    """An entity of each kind with everything that a server takes, after what it needs."""
    dataset = EvaluationDataset(
        dataset_id="d", name=name, experiment_ids=("7",), created_by="ann", digest="abc", tags=tags(own="tag")
    )
    schema = LabelSchema(
        schema_id="s",
        experiment_id="7",
        name="question",
        type="feedback",
        instruction="do",
        enable_comment=True,
        input_type="text",
        input_config='{"max_length": 9}',
    )
    queue = ReviewQueue(
        queue_id="q",
        experiment_id="7",
        name="Queue",
        queue_type="custom",
        users=("ann",),
        schema_ids=("s",),
        items=(ReviewItem(item_type="trace", item_id=f"tr-{name}", status="complete", completed_by="ann"),),
    )
    issue = Issue(
        issue_id="i",
        experiment_id="7",
        name="slow",
        description="very",
        status="resolved",
        severity="high",
        root_causes='["db"]',
        categories='["speed"]',
        source_run_id="r" * 32,
        created_by="ann",
    )
    scorer = Scorer(
        experiment_id="7",
        scorer_name="judge",
        scorer_id="x",
        versions=(ScorerVersion(scorer_version=1, serialized_scorer=JUDGE),),
        online=(OnlineScoring(sample_rate="0.5", filter_string="status = 'OK'"),),
    )
    webhook = Webhook(
        webhook_id="w",
        name=name,
        url="https://93.184.216.34/x",
        description="calls",
        events=(WebhookEvent(entity="registered_model", action="created"),),
    )
    record = DatasetRecord(
        dataset_record_id="e",
        dataset_id="d",
        inputs='{"q": 1}',
        outputs='{"a": true}',
        expectations='{"e": 1}',
        tags='{"t": "v"}',
    )
    model = RegisteredModel(name=name, description="words", tags=tags(own="tag"))
    return {
        "evaluation_dataset": ("evaluation_dataset", [dataset]),
        "dataset_record": ("dataset_record", [record]),
        "scorer": ("scorer", [scorer]),
        "label_schema": ("label_schema", [schema]),
        "review_queue": ("review_queue", [queue]),
        "issue": ("issue", [issue]),
        "webhook": ("webhook", [webhook]),
        "registered_model": ("registered_model", [model]),
    }


BEFORE = {"dataset_record": ("evaluation_dataset",), "review_queue": ("label_schema",)}
#: kind, what is read back, member, and what else is done with it.
LIES: Sequence[tuple[str, str, str, Change]] = [
    ("evaluation_dataset", r"GET .*datasets/d-\w+$", "name", altered),
    ("evaluation_dataset", r"GET .*datasets/d-\w+$", "tags", lambda text: text.replace('"own": "tag"', '"own": "other"')),
    ("evaluation_dataset", r"GET .*datasets/d-\w+$", "tags", lambda text: text.replace("source.digest", "source.other")),
    ("evaluation_dataset", "GET .*experiment-ids", "experiment_ids", altered),
    *(
        ("dataset_record", "GET .*records", "records", lambda text, old=old, new=new: text.replace(old, new))
        for old, new in (('"a": true', '"a": 1'), ('"e": 1', '"e": 2'), ('"t": "v"', '"t": "w"'), ('"q": 1', '"q": 1.0'))
    ),
    ("scorer", "GET .*scorers/versions", "serialized_scorer", lambda text: text.replace("kind", "cruel")),
    ("scorer", "GET .*online-configs", "sample_rate", altered),
    ("scorer", "GET .*online-configs", "filter_string", altered),
    ("scorer", "GET .*online-configs", "configs", altered),
    *(
        ("label_schema", "GET .*label-schemas/list", name, altered)
        for name in ("name", "instruction", "enable_comment", "type")
    ),
    ("label_schema", "GET .*label-schemas/list", "max_length", altered),
    *(("review_queue", "GET .*review-queues/list", name, altered) for name in ("queue_type", "users", "schema_ids")),
    ("review_queue", "GET .*review-queues/list", "name", str.upper),
    *(("review_queue", "GET .*items/list", name, altered) for name in ("status", "completed_by", "items")),
    *(
        ("issue", "POST .*issues/search", name, altered)
        for name in ("name", "description", "status", "severity", "root_causes", "categories", "source_run_id", "created_by")
    ),
    ("issue", "POST .*issues/search", "issues", altered),
    *(("webhook", "GET .*webhooks", name, altered) for name in ("name", "url", "description", "events")),
    ("webhook", "GET .*webhooks", "status", lambda _: "ACTIVE"),
    ("registered_model", "GET .*registered-models/get", "description", altered),
    ("registered_model", "GET .*registered-models/get", "tags", altered),
]


def restored_all(restoring: Restoring, honest: Restoring, kind: str, name: str) -> list[EntityResult]:
    """Restore an entity of a kind; what it needs is restored without a lie."""
    wanted = batches(name)
    for other in BEFORE.get(kind, ()):
        honest.restore(wanted[other])
    if kind == "review_queue":
        experiment = honest.ids.new("experiment", "7")
        body = {
            "trace_id": f"tr-{name}",
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}},
            "request_time": "2026-01-01T00:00:00Z",
            "state": "OK",
        }
        url = f"{honest.server.url}/api/3.0/mlflow/traces"
        requests.post(url, json={"trace": {"trace_info": body}}, timeout=60).raise_for_status()
    return restoring.restore(wanted[kind])


@pytest.mark.parametrize("kind", batches("x"))
def test_everything_comes_back_without_a_word(honest: Restoring, number: int, kind: str) -> None:
    """Without a lie there is no problem."""
    with through(honest, "nothing", altered) as restoring:
        results = restored_all(restoring, honest, kind, f"n{number}")
    assert (messages(results), set(actions(results).values())) == ([], {"restored"})


@pytest.mark.parametrize("case", range(len(LIES)), ids=lambda case: f"{LIES[case][0]} {LIES[case][2]} {case}")
def test_every_field_is_compared(honest: Restoring, number: int, case: int) -> None:
    """Whatever a server makes of an entity while it says 200, the entity is not counted as restored."""
    kind, path, member, change = LIES[case]
    with through(honest, path, lies_about(member, change)) as restoring:
        (result,) = restored_all(restoring, honest, kind, f"n{number}")
    assert result.action == "failed"
    assert result.problems


def test_aliases_of_a_model_without_versions_are_told(honest: Restoring) -> None:
    """An alias whose model comes without any version cannot be set, and the report says so."""
    model = RegisteredModel(name=honest.bundle_id.replace(" ", "-"), aliases=(Alias(alias="champion", version=3),))
    with honest.target() as target:
        planned = [PlannedEntity(record=model)]
        from mlflow_bundle.tracking._port import RestoreOptions  # noqa: PLC0415

        (result,) = target.restore_entities("registered_model", planned, honest.ids, honest.open_blob, RestoreOptions())
        assert result.action == "restored"
        (told,) = target.after_deletions()
    assert "the alias 'champion'" in told.notes[0]
