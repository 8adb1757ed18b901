"""A restore to a real server whose process is killed again and again, and finished: as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelParameter, Metric
from mlflow.genai.label_schemas.label_schemas import InputText
from mlflow.tracking._tracking_service.utils import _get_store

import mlflow_bundle as bundle
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.http_peer import forward, serve

pytestmark = pytest.mark.slow

UNPACK = "import sys, mlflow_bundle\nmlflow_bundle.unpack(sys.argv[1], tracking_uri=sys.argv[2], jobs=int(sys.argv[3]))\n"
#: What of a server must be the same, however often the restore was stopped; ids and times differ.
SAME: dict[str, str] = {
    "versions": "SELECT name, version, current_stage FROM model_versions",
    "descriptions": "SELECT name, version, description, run_link FROM model_versions WHERE current_stage != 'Deleted_Internal'",
    "files of their own": "SELECT v.name, v.version, m.status FROM model_versions v JOIN logged_models m "
    "ON v.source = 'models:/' || m.model_id",
    "version tags": "SELECT t.name, t.version, t.key, t.value FROM model_version_tags t JOIN model_versions v "
    "ON t.name = v.name AND t.version = v.version WHERE v.current_stage != 'Deleted_Internal'",
    "model tags": "SELECT name, key, value FROM registered_model_tags",
    "aliases": "SELECT name, alias, version FROM registered_model_aliases",
    "scorers": "SELECT scorer_name, scorer_version, serialized_scorer FROM scorers JOIN scorer_versions USING (scorer_id)",
    "online": "SELECT scorer_name, sample_rate, filter_string FROM scorers JOIN online_scoring_configs USING (scorer_id)",
    "datasets": "SELECT name FROM evaluation_datasets",
    "dataset tags": "SELECT key, value FROM evaluation_dataset_tags",
    "dataset links": "SELECT source_type, destination_type FROM entity_associations",
    "records": "SELECT inputs, outputs, expectations, tags FROM evaluation_dataset_records",
    "logged models": "SELECT name, status, lifecycle_stage FROM logged_models",
    "params": "SELECT param_key, param_value FROM logged_model_params",
    "metrics": "SELECT metric_name, metric_step, metric_value FROM logged_model_metrics",
    "schemas": "SELECT name, type, input_config FROM label_schemas",
    "queues": "SELECT name FROM review_queues",
    "issues": "SELECT name, description, status FROM issues",
}


@pytest.fixture
def archive(empty_mlflow: str, tmp_path: Path) -> str:
    """A bundle of a registry with gaps, of scorers with gaps, and of everything else that a server names by itself."""
    client, store = MlflowClient(empty_mlflow), _get_store(empty_mlflow)
    experiment = client.create_experiment("e")
    run = client.create_run(experiment).info.run_id
    for number in range(3):
        params = [LoggedModelParameter("p", str(number))]
        made = store.create_logged_model(experiment, f"model {number}", run, params=params)
        client.log_batch(run, metrics=[Metric("m", 0.5, 7, step, made.model_id, run_id=run) for step in range(3)])
    store.delete_logged_model(made.model_id)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights").write_bytes(b"12345")
    _registry(client, {"a": {"source": (tmp_path / "own").as_uri()}, "b": {"source": f"runs:/{run}/model", "run_id": run}})
    for name in ("polite", "short"):
        for number in range(4):
            store.register_scorer(experiment, name, json.dumps({"name": name, "builtin_scorer_class": "Safety", "n": number}))
        for number in (1, 3):
            store.delete_scorer(experiment, name, number)
        store.upsert_online_scoring_config(experiment, name, 0.0, "status = 'OK'")
    for name in ("one", "one", "other"):
        dataset = store.create_dataset(name, {"t": "v"}, [experiment])
        store.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"n": n}, "outputs": {"o": n}} for n in range(700)])
        store.create_issue(experiment, "issue", name)
        store.create_label_schema(experiment, name=f"schema {dataset.dataset_id}", type="feedback", input=InputText())
    store.create_review_queue(experiment, name="queue", queue_type="custom", users=["ann"])
    bundle.pack(bundle=tmp_path / "archive", tracking_uri=empty_mlflow)
    return str(tmp_path / "archive")


def _registry(client: MlflowClient, places: Mapping[str, Mapping[str, str]]) -> None:
    gone = {"a": (1, 3, 4, 9), "b": (2, 11, 12), "prompt": (2, 11, 12)}
    for name in ("a", "b"):
        client.create_registered_model(name, tags={"t": "x\ny"}, description=name)
        for number in range(1, 13):
            client.create_model_version(name, **places[name], tags={"n": str(number)}, description=f"d{number}")
        for number in gone[name]:
            client.delete_model_version(name, str(number))
        client.set_registered_model_alias(name, "live", "10")
    client.transition_model_version_stage("a", "5", "Production")
    for number in range(1, 13):
        client.register_prompt("prompt", f"Say {number}", tags={"n": str(number)})
    for number in gone["prompt"]:
        client.delete_prompt_version("prompt", str(number))
    client.set_prompt_alias("prompt", "live", 10)


def content(server: MlflowServer) -> dict[str, list[tuple[Any, ...]]]:
    """What a server has, as far as it must be the same."""
    path = server.backend_store_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return {name: sorted(map(repr, database.execute(sql))) for name, sql in SAME.items()}


def test_a_restore_that_is_killed_again_and_again(
    archive: str, start_server: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed at random moments, before or after a write arrives, and started again until it gets to the end
    leaves what an undisturbed restore leaves: nothing doubled, no placeholder, every number the same, even the next ones."""
    undisturbed, disturbed = start_server(), start_server()
    report = bundle.unpack(archive, tracking_uri=undisturbed.url)
    assert report.problems == ()
    chance = random.Random(20261121)
    kills = 0
    while _killed(archive, disturbed, chance):
        kills += 1
    assert kills >= 5
    expected, found = content(undisturbed), content(disturbed)
    for name in SAME:
        assert found[name] == expected[name], name
    report = bundle.unpack(archive, tracking_uri=disturbed.url)
    assert report.problems == ()
    assert [outcome for outcome in report.entities if outcome.there != outcome.selected] == []
    assert content(disturbed) == expected
    for server in (undisturbed, disturbed):
        client = MlflowClient(server.url)
        assert [int(client.create_model_version(name, "s3://bucket/model").version) for name in "ab"] == [13, 13]


def _killed(archive: str, server: MlflowServer, chance: random.Random) -> bool:
    """Unpack in a process of its own that is killed at one of its next writes; whether it did not get to its end."""
    left = chance.randint(1, 45)
    before = chance.random() < 0.5

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        nonlocal left
        writes = method != "GET" and not path.endswith("/search")
        left -= writes
        if not writes or left > 0:
            return forward(server.url, method, path, body)
        if not before:
            forward(server.url, method, path, body)
        os.kill(child.pid, signal.SIGKILL)
        return None

    with serve(answer) as peer:
        command = [sys.executable, "-c", UNPACK, archive, peer.url, str(chance.choice((1, 4)))]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, errors = child.communicate()
    assert child.returncode in (0, -signal.SIGKILL), errors.decode()
    return child.returncode != 0
