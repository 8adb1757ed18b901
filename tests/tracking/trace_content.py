"""Awkward traces on a real server, made with MLflow's own API where it can make them, else with plain requests."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlflow
import requests
from mlflow import MlflowClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

API = "/api/2.0/mlflow/"
API3 = "/api/3.0/mlflow/"
ATTACHMENT = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


@dataclass
class TraceContent:
    """What was made: experiments, runs, and the traces by what they are there for."""

    experiment: str
    deleted: str
    run: str
    other_run: str
    deleted_run: str
    prompt: str
    issue: str
    traces: dict[str, str] = field(default_factory=dict)


def post(url: str, path: str, body: Mapping[str, Any], *, method: str = "POST") -> Any:
    """Send JSON and return the answer's."""
    answer = requests.request(method, url + path, json=body, timeout=60)
    answer.raise_for_status()
    return answer.json()


def send_spans(url: str, experiment: str, *spans: Mapping[str, Any]) -> None:
    """Send spans by OTLP, as another program would. ``attributes`` are texts; ``parent`` and ``kind`` may be missing."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add().scope_spans.add()
    for span in spans:
        added = group.spans.add(
            trace_id=bytes.fromhex(span["trace"]),
            span_id=bytes.fromhex(span["span"]),
            parent_span_id=bytes.fromhex(span.get("parent", "")),
            name=span["name"],
            start_time_unix_nano=span["start"],
            end_time_unix_nano=span["end"],
            kind=span.get("kind", 0),
        )
        for key, value in span.get("attributes", {}).items():
            added.attributes.add(key=key).value.string_value = value
    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    requests.post(f"{url}/v1/traces", request.SerializeToString(), headers=headers, timeout=60).raise_for_status()


def start(url: str, experiment: str, trace_id: str, at: str = "2026-03-01T10:00:00.123Z", **info: Any) -> None:
    """Start a trace by REST."""
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    body = {"trace_id": trace_id, "trace_location": location, "request_time": at, "state": "OK", **info}
    post(url, f"{API3}traces", {"trace": {"trace_info": body}})


def assess(url: str, trace_id: str, name: str, **more: Any) -> str:
    """Create an assessment and return its id."""
    body = {"assessment_name": name, "source": {"source_type": "HUMAN", "source_id": "me@example.org"}, **more}
    answer = post(url, f"{API3}traces/{trace_id}/assessments", {"assessment": {"trace_id": trace_id, **body}})
    return str(answer["assessment"]["assessment_id"])


def old_span(trace_id: str) -> dict[str, Any]:
    """A span as MLflow 2 wrote it."""
    return {
        "name": "predict",
        "context": {"span_id": "0x1122334455667788", "trace_id": "0x" + "ab" * 16},
        "parent_id": None,
        "start_time": 1_700_000_000_000_000_000,
        "end_time": 1_700_000_000_500_000_000,
        "status_code": "OK",
        "status_message": "",
        "attributes": {"mlflow.traceRequestId": json.dumps(trace_id), "mlflow.spanType": '"LLM"'},
        "events": [],
    }


def make_traces(url: str, *, prefix: str = "") -> TraceContent:
    """Make all of it. Takes a few seconds."""
    client = MlflowClient(url)
    experiment = client.create_experiment(f"{prefix}traces {uuid.uuid4().hex[:6]}")
    deleted = client.create_experiment(f"{prefix}deleted traces {uuid.uuid4().hex[:6]}")
    run, other_run, gone = (client.create_run(experiment).info.run_id for _ in range(3))
    prompt = f"prompt-{uuid.uuid4().hex[:6]}"
    for text in ("one {{x}}", "two {{x}}"):
        client.register_prompt(name=prompt, template=text)
    issue = post(url, f"{API3}issues", {"experiment_id": experiment, "name": "slow", "description": "too slow"})
    content = TraceContent(experiment, deleted, run, other_run, gone, prompt, issue["issue"]["issue_id"])
    content.traces["api"] = _by_api(url, experiment, big=False)
    content.traces["beyond int64"] = _by_api(url, experiment, big=True)
    _by_rest(url, content)
    _linked(url, content)
    client.delete_run(gone)
    return content


def _by_api(url: str, experiment: str, *, big: bool) -> str:
    """A trace as a program makes it. With an integer beyond 64 bits in every span, none can be sent and all become a file.

    In every span, for MLflow sends spans in batches by the clock: with it in one only, the others may get through.
    """
    number = 2**70 if big else 7
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(url)
    mlflow.set_experiment(experiment_id=experiment)
    try:
        with mlflow.start_span("root ü", span_type="AGENT") as root:
            root.set_inputs({"q": "héllo 😀", "f": 1.5e-7, "nan": float("nan"), "n": number})
            values = {"i": 5, "big": 2**62, "b": True, "none": None, "f": 1e22, "e": "", "l": [1, "a", None, {"x": 1.0}]}
            texts = {"json": '{"a":1}', "number": "123", "text": '"q"', "line": "a\nb\tc"}
            for key, value in {**values, **texts}.items():
                root.set_attribute(key, value)
            root.add_event(mlflow.entities.SpanEvent("ev", attributes={"k": "v", "i": 3, "f": 2.0, "l": ["a", "b"]}))
            with mlflow.start_span("child", span_type="LLM") as child:
                child.set_inputs([{"role": "user", "content": "x"}])
                child.set_outputs({"r": [1, 2, number]})
                child.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
                child.set_attribute("mlflow.llm.model", "a-model")
                child.add_link(mlflow.entities.Link(trace_id="tr-" + "12" * 16, span_id="34" * 8, attributes={"why": "so"}))
            metadata = {"mlflow.trace.session": "session-1", "mlflow.trace.user": "me"}
            mlflow.update_current_trace(tags={"line": "v\nw"}, metadata=metadata, client_request_id="request-1")
            with mlflow.start_span("bad") as bad:
                bad.set_attribute("number", number)
                bad.set_status("ERROR")
                bad.record_exception(ValueError("boom"))
            root.set_outputs("bye")
        mlflow.flush_trace_async_logging()
    finally:
        mlflow.set_tracking_uri(before)
    return str(root.trace_id)


def _by_rest(url: str, content: TraceContent) -> None:
    """Traces that only other programs, older releases or accidents make."""
    now = time.time_ns()
    partial, foreign, tagged, bare, old, gone = (uuid.uuid4().hex for _ in range(6))
    send_spans(
        url,
        content.experiment,
        {
            "trace": partial,
            "span": "01" * 8,
            "parent": "02" * 8,
            "name": "no root",
            "start": now,
            "end": now + 5_000_000,
            "attributes": {
                "mlflow.spanInputs": json.dumps({"image": f"mlflow-attachment://{ATTACHMENT}?trace_id=tr-{partial}"})
            },
        },
    )
    raw = {"gen_ai.operation.name": "chat", "raw": "no json", "half": '{"a": "\\ud800"}', "escaped": '{"a":"\\u00fc"}'}
    send_spans(
        url,
        content.experiment,
        {"trace": foreign, "span": "03" * 8, "name": "foreign", "start": now + 7, "end": now + 9, "attributes": raw},
    )
    # Tags that were changed after the span had brought them.
    send_spans(
        url,
        content.experiment,
        {
            "trace": tagged,
            "span": "04" * 8,
            "name": "tagged",
            "start": now + 8_000_000,
            "end": now + 9_000_000,
            "attributes": {"mlflow.traceTag.stage": "first", "mlflow.traceTag.gone": "x", "user.id": "someone"},
        },
    )
    post(url, f"{API3}traces/tr-{tagged}/tags", {"key": "stage", "value": "second"}, method="PATCH")
    post(url, f"{API3}traces/tr-{tagged}/tags", {"key": "gone"}, method="DELETE")
    start(url, content.experiment, f"tr-{bare}", state="IN_PROGRESS", tags={"empty": ""}, trace_metadata={"m": "n"})
    start(url, content.experiment, old, execution_duration="1.500s", trace_metadata={"mlflow.trace_schema.version": "2"})
    payload = {"spans": [old_span(old)], "request": '{"x": 1}', "response": None}
    _put(url, content.experiment, old, "traces.json", json.dumps(payload).encode())
    _put(url, content.experiment, f"tr-{partial}", f"attachments/{ATTACHMENT}", b"\x89PNG\x00")
    send_spans(
        url, content.deleted, {"trace": gone, "span": "05" * 8, "name": "in a deleted experiment", "start": now, "end": now + 1}
    )
    names = {"partial": partial, "foreign": foreign, "tagged": tagged, "bare": bare, "deleted": gone}
    content.traces |= {name: f"tr-{identity}" for name, identity in names.items()} | {"old": old}


def _put(url: str, experiment: str, trace_id: str, path: str, data: bytes) -> None:
    place = f"{url}/api/2.0/mlflow-artifacts/artifacts/{experiment}/traces/{trace_id}/artifacts/{path}"
    requests.put(place, data, timeout=60).raise_for_status()


def _linked(url: str, content: TraceContent) -> None:
    """Assessments of all types, overridden ones, and links to runs, prompts, issues."""
    api, partial = content.traces["api"], content.traces["partial"]
    in_run = {"mlflow.assessment.sourceRunId": content.run}
    first = assess(url, api, "quality", feedback={"value": 0.5}, rationale="so so", metadata=in_run)
    second = assess(url, api, "quality", feedback={"value": 0.75}, overrides=first)
    assess(url, api, "quality", feedback={"value": {"a": "b"}}, overrides=second, span_id="0102030405060708")
    assess(url, api, "broken", feedback={"value": None, "error": {"error_code": "E", "error_message": "m"}})
    expected = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": '{"b": [1, 2.5], "a": null}'}}
    assess(url, api, "expected", expectation=expected)
    assess(url, api, "expected text", expectation={"value": "text"})
    assess(url, api, content.issue, issue={"issue_name": "slow"}, rationale="it took long")
    assess(url, content.traces["deleted"], "in vain", feedback={"value": "yes"})
    post(url, f"{API}traces/link-to-run", {"run_id": content.run, "trace_ids": [api, partial]})
    post(url, f"{API}traces/link-to-run", {"run_id": content.other_run, "trace_ids": [api]})
    post(url, f"{API}traces/link-to-run", {"run_id": content.deleted_run, "trace_ids": [partial]})
    versions = [{"name": content.prompt, "version": version} for version in ("1", "2")]
    post(url, f"{API}traces/link-prompts", {"trace_id": api, "prompt_versions": versions})
    made_in = {"mlflow.sourceRun": content.other_run, "mlflow.modelId": "m-" + "0" * 32}
    start(url, content.experiment, "tr-" + uuid.uuid5(uuid.NAMESPACE_URL, content.run).hex, trace_metadata=made_in)
    content.traces["made in a run"] = "tr-" + uuid.uuid5(uuid.NAMESPACE_URL, content.run).hex
    MlflowClient(url).delete_experiment(content.deleted)
