"""Servers of a newer MLflow, which keeps the kinds of spans: between two of them, from older ones and to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

import mlflow_bundle as bundle
from mlflow_bundle.tracking.rest._features import API3
from tests.fixtures.newer import Newer
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.trace_content import make_traces, post, send_spans

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def new_server(newer: Newer, start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    """A server of the newer release with its own tables."""
    return start_server(backend_store_uri=f"sqlite:///{tmp_path_factory.mktemp('new')}/mlflow.db", env=newer.env)


def spans(url: str) -> dict[str, list[Any]]:
    """What a server answers about the spans of all its traces, by trace."""
    found = post(url, f"{API3}experiments/search".replace("3.0", "2.0"), {"max_results": 100, "view_type": "ALL"})[
        "experiments"
    ]
    places = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one["experiment_id"]}} for one in found]
    traces = post(url, f"{API3}traces/search", {"locations": places, "max_results": 100}).get("traces", [])
    with_spans = (one["trace_id"] for one in traces if one["tags"].get("mlflow.trace.spansLocation") == "TRACKING_STORE")
    return {trace_id: answer(url, trace_id) for trace_id in with_spans}


def answer(url: str, trace_id: str) -> list[Any]:
    """The spans of a trace in their order."""
    got = requests.get(f"{url}{API3}traces/get", params={"trace_id": trace_id}, timeout=60)
    got.raise_for_status()
    return sorted(got.json()["trace"].get("spans", []), key=lambda span: str(span["span_id"]))


def test_kinds_of_spans_survive(new_server: MlflowServer, newer: Newer, start_server: ServerFactory, tmp_path: Path) -> None:
    """From a newer server to another one each span answers the same; one that keeps no kinds gets other kinds in a file."""
    made = make_traces(new_server.url)
    plain = {"start": 1_700_000_000_000_000_000, "end": 1_700_000_001_000_000_000}
    calls = {"trace": "c0" * 16, "span": "c1" * 8, "name": "calls", "kind": 3, **plain}
    send_spans(new_server.url, made.experiment, calls)
    report = bundle.pack(bundle=tmp_path / "b", tracking_uri=new_server.url)
    assert (report.state, report.problems) == ("complete", ())
    with bundle.open(tmp_path / "b") as archive:
        contents = [json.loads(text) for text in archive.spans(trace_id="tr-" + "c0" * 16).column("content").to_pylist()]
    assert [one["kind"] for one in contents] == ["SPAN_KIND_CLIENT"]

    target = start_server(backend_store_uri=f"sqlite:///{tmp_path}/target.db", env=newer.env)
    restored = bundle.unpack(tmp_path / "b", tracking_uri=target.url, allow_partial=True)
    assert not [problem for problem in restored.problems if problem.code == "restored-differs"]
    assert spans(target.url).items() <= spans(new_server.url).items()
    assert "tr-" + "c0" * 16 in spans(target.url)

    if newer.env:
        old = start_server()
        kept = bundle.unpack(tmp_path / "b", tracking_uri=old.url, allow_partial=True)
        assert not [problem for problem in kept.problems if problem.code == "restored-differs"]
        assert any("releases before 3.18" in note or "before 3.18" in note for note in kept.notes)


def test_spans_of_older_servers_survive(newer: Newer, start_server: ServerFactory, tmp_path: Path) -> None:
    """Spans without a kind are those of the usual one at a newer server: no difference, no problem."""
    old = start_server()
    make_traces(old.url)
    assert bundle.pack(bundle=tmp_path / "b", tracking_uri=old.url).state == "complete"
    target = start_server(backend_store_uri=f"sqlite:///{tmp_path}/target.db", env=newer.env)
    restored = bundle.unpack(tmp_path / "b", tracking_uri=target.url, allow_partial=True)
    assert not [problem for problem in restored.problems if problem.code == "restored-differs"]
    (traces,) = (one for one in restored.entities if one.kind == "trace")
    assert (traces.failed, traces.left_out) == (0, 0)
    assert traces.restored
