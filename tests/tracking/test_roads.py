"""Every road there and back, on real servers and databases: nothing lost, nothing altered, nothing doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import mlflow_bundle as bundle
from tests.fixtures.content import ContentSummary, make_awkward_content
from tests.fixtures.s3 import Bucket
from tests.fixtures.server import MlflowServer, ServerFactory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(start_server: ServerFactory) -> tuple[MlflowServer, ContentSummary]:
    """A server with awkward content that nobody changes."""
    server = start_server()
    return server, make_awkward_content(server.url)


@pytest.fixture(scope="module")
def odd_source(start_server: ServerFactory) -> tuple[MlflowServer, ContentSummary]:
    """A server that also holds files whose names no client can address."""
    server = start_server()
    return server, make_awkward_content(server.url, disk=Path(server.artifacts_destination))


def _post(url: str, path: str, body: dict[str, Any]) -> Any:
    answer = requests.post(f"{url}/api/2.0/mlflow/{path}", json=body, timeout=60)
    answer.raise_for_status()
    return json.loads(answer.text)


def _get(url: str, endpoint: str, **params: Any) -> Any:
    answer = requests.get(f"{url}/api/2.0/mlflow/{endpoint}", params=params, timeout=60)
    answer.raise_for_status()
    return json.loads(answer.text)


def _runs(url: str) -> Iterator[dict[str, Any]]:
    experiments = _post(url, "experiments/search", {"view_type": "ALL", "max_results": 1000})["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]
    token = None
    while True:
        body = {"experiment_ids": ids, "run_view_type": "ALL", "max_results": 500}
        page = _post(url, "runs/search", body | ({"page_token": token} if token else {}))
        yield from page.get("runs", [])
        token = page.get("next_page_token")
        if not token:
            return


def _sorted(value: Any) -> Any:
    """Lists of an answer in an order of their own: servers promise none for tags, params and inputs."""
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def answers(url: str) -> dict[str, Any]:
    """Every read answer of a server about experiments and runs, metric histories and artifact listings included."""
    found: dict[str, Any] = {}
    for view in ("ALL", "ACTIVE_ONLY", "DELETED_ONLY"):
        listed = _post(url, "experiments/search", {"view_type": view, "max_results": 1000})
        found[f"experiments {view}"] = _sorted(listed)
        for experiment in listed.get("experiments", []):
            found[f"experiment {experiment['experiment_id']}"] = _sorted(
                _get(url, "experiments/get", experiment_id=experiment["experiment_id"])
            )
    for run in _runs(url):
        run_id = run["info"]["run_id"]
        found[f"search {run_id}"] = _sorted(run)
        found[f"run {run_id}"] = _sorted(_get(url, "runs/get", run_id=run_id))
        for metric in run["data"].get("metrics", []):
            history = _get(url, "metrics/get-history", run_id=run_id, metric_key=metric["key"])
            found[f"history {run_id} {metric['key']}"] = _sorted(history)
        for path in _artifacts(url, run_id, ""):
            found[f"file {run_id} {path[0]}"] = path[1]
    return found


def _artifacts(url: str, run_id: str, folder: str) -> Iterator[tuple[str, Any]]:
    try:
        listed = _get(url, "artifacts/list", run_id=run_id, **({"path": folder} if folder else {})).get("files", [])
    except requests.HTTPError as error:  # a folder whose name no client can address: the refusal is the answer
        yield folder, error.response.status_code
        return
    for entry in listed:
        if entry.get("is_dir"):
            yield from _artifacts(url, run_id, entry["path"])
        else:
            yield entry["path"], entry.get("file_size")


def test_database_to_database_every_rest_answer_is_equal(
    odd_source: tuple[MlflowServer, ContentSummary], start_server: ServerFactory, tmp_path: Path
) -> None:
    """Two servers on the two databases give the same answer to every read request."""
    server, content = odd_source
    packed = bundle.pack(
        None,
        tmp_path / "b",
        tracking_uri=server.backend_store_uri,
        artifacts_destination=server.artifacts_destination,
    )
    assert packed.state == "complete"
    assert packed.counts["run"] == len(content.runs)
    assert packed.counts["metric_point"] == content.point_count
    assert packed.counts["file"] == content.file_count
    assert packed.counts["file_bytes"] == content.file_bytes
    target = f"sqlite:///{tmp_path}/target.db"
    report = bundle.unpack(tmp_path / "b", tracking_uri=target, artifacts_destination=tmp_path / "served")
    assert report.problems == ()
    assert (report.runs_restored, report.runs_failed) == (len(content.runs), 0)
    assert (report.metric_points, report.files) == (content.point_count, content.file_count)
    second = start_server(backend_store_uri=target, artifacts_destination=str(tmp_path / "served"))
    assert answers(second.url) == answers(server.url)
    again = bundle.pack(None, tmp_path / "c", tracking_uri=target, artifacts_destination=tmp_path / "served")
    assert again.logical_root == packed.logical_root


def test_sqlite_postgresql_sqlite(
    awkward_database: tuple[str, ContentSummary], postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """Through SQLite, PostgreSQL and SQLite again the logical root stays the same."""
    uri, content = awkward_database
    first = bundle.pack(None, tmp_path / "a", tracking_uri=uri)
    postgres = postgres_database()
    bundle.unpack(tmp_path / "a", tracking_uri=postgres, artifact_root=tmp_path / "pg-files")
    second = bundle.pack(None, tmp_path / "b", tracking_uri=postgres)
    assert second.logical_root == first.logical_root
    bundle.unpack(tmp_path / "b", tracking_uri=f"sqlite:///{tmp_path}/t.db", artifact_root=tmp_path / "files")
    third = bundle.pack(None, tmp_path / "c.zip", tracking_uri=f"sqlite:///{tmp_path}/t.db")
    assert third.logical_root == first.logical_root
    assert third.counts["metric_point"] == content.point_count


def test_reading_a_server_equals_reading_its_database(source: tuple[MlflowServer, ContentSummary], tmp_path: Path) -> None:
    """Both readers find the same runs, points and files; only what no REST answer holds differs."""
    server, content = source
    bundle.pack(None, tmp_path / "rest", tracking_uri=server.url)
    bundle.pack(
        None,
        tmp_path / "db",
        tracking_uri=server.backend_store_uri,
        artifacts_destination=server.artifacts_destination,
    )
    with bundle.open(tmp_path / "rest") as rest, bundle.open(tmp_path / "db") as database:
        assert {**rest.snapshot.counts, "workspace": 1} == database.snapshot.counts
        assert rest.snapshot.counts["metric_point"] == content.point_count
        left, right = rest._reader.view("run"), database._reader.view("run")
        assert rest.reader.digests("run").drop("record_digest") == database.reader.digests("run").drop("record_digest")
        for column in ("run_id", "params", "tags", "latest_metrics", "start_time", "end_time"):
            assert left[column].to_pylist().__repr__() == right[column].to_pylist().__repr__(), column
        hidden = {"deleted_time", "source_type", "source_name", "entry_point_name", "source_version"}
        for one, other in zip(rest.records("run"), database.records("run"), strict=True):
            for field in one.__struct_fields__:
                if field not in hidden:
                    assert getattr(one, field) == getattr(other, field), field
        assert list(rest.records("experiment")) == list(database.records("experiment"))


def _content_of(place: Path | str, **options: Any) -> dict[str, Any]:
    """What a bundle holds, by what a run was called and not by its id."""
    with bundle.open(place, **options) as archive:
        runs = {run.run_id: run for run in archive.records("run")}
        names = {e.experiment_id: e.name for e in archive.records("experiment")}
        original = {
            run_id: next((t.value for t in run.tags if t.key == "mlflow_bundle.source.run_id"), run_id)
            for run_id, run in runs.items()
        }
        columns = (archive.reader.digests("run")[name].to_pylist() for name in ("id", "metrics/1", "files/1"))
        digests = {run: (metric, files) for run, metric, files in zip(*columns, strict=True)}
        content = {}
        for run_id, run in runs.items():
            tags = {t.key: t.value for t in run.tags if not t.key.startswith("mlflow_bundle.")}
            if "mlflow.parentRunId" in tags:
                tags["mlflow.parentRunId"] = original.get(tags["mlflow.parentRunId"], tags["mlflow.parentRunId"])
            content[original[run_id]] = {
                "experiment": names[run.experiment_id],
                "name": run.run_name,
                "user": run.user_id,
                "status": run.status,
                "times": (run.start_time, run.end_time),
                "stage": run.lifecycle_stage,
                "params": run.params,
                "tags": tags,
                "inputs": run.inputs,
                "metrics": digests[run_id][0],
                "files": digests[run_id][1],
            }
        return content


def test_server_to_server(source: tuple[MlflowServer, ContentSummary], start_server: ServerFactory, tmp_path: Path) -> None:
    """Through REST everything but the ids arrives; a second unpack changes nothing; a later pack of the target agrees."""
    server, content = source
    target = start_server()
    bundle.pack(None, tmp_path / "a", tracking_uri=server.url)
    report = bundle.unpack(tmp_path / "a", tracking_uri=target.url)
    assert report.problems == ()
    assert (report.runs_restored, report.runs_failed) == (len(content.runs), 0)
    assert report.metric_points == content.point_count
    before = answers(target.url)
    again = bundle.unpack(tmp_path / "a", tracking_uri=target.url)
    assert (again.runs_restored, again.runs_already_there) == (0, len(content.runs))
    assert answers(target.url) == before
    bundle.pack(None, tmp_path / "b", tracking_uri=target.url)
    assert _content_of(tmp_path / "b") == _content_of(tmp_path / "a")


def test_database_to_server_and_back(
    awkward_database: tuple[str, ContentSummary], start_server: ServerFactory, tmp_path: Path
) -> None:
    """What a server cannot hold is said before the first write; the rest arrives, and comes back into a database."""
    uri, content = awkward_database
    target = start_server()
    bundle.pack(None, tmp_path / "a", tracking_uri=uri)
    report = bundle.unpack(tmp_path / "a", tracking_uri=target.url, allow_partial=True)
    odd = {path for files in content.odd_files.values() for path in files}
    assert {problem.path for problem in report.problems} <= odd
    assert report.runs_restored + report.runs_failed == len(content.runs)
    assert report.metric_points == content.point_count
    bundle.pack(None, tmp_path / "b", tracking_uri=target.url, allow_partial=True)
    back = bundle.unpack(tmp_path / "b", tracking_uri=f"sqlite:///{tmp_path}/back.db")
    assert back.problems == ()
    assert back.runs_restored == len(content.runs)


@pytest.mark.parametrize("form", ["s3", "s3-zip", "memory"])
def test_a_bundle_anywhere(awkward_database: tuple[str, ContentSummary], s3_bucket: Bucket, tmp_path: Path, form: str) -> None:
    """A bundle in a bucket, as one file in a bucket, or in memory is packed twice, verified and restored like a local one."""
    uri, content = awkward_database
    place = {"s3": f"s3://{s3_bucket.name}/b", "s3-zip": f"s3://{s3_bucket.name}/b.zip", "memory": "memory://roads/b"}[form]
    options = {} if form == "memory" else {"storage_options": s3_bucket.storage_options}
    first = bundle.pack(None, place, tracking_uri=uri, **options)
    bundle.pack(None, place, tracking_uri=uri, **options)  # files younger than two seconds get their stamp only now
    third = bundle.pack(None, place, tracking_uri=uri, **options)
    assert (third.new_objects, third.logical_root) == (0, first.logical_root)
    report = bundle.verify(place, **options)
    assert report.problems == ()
    restored = bundle.unpack(place, tracking_uri=f"sqlite:///{tmp_path}/t.db", **options)
    assert (restored.runs_restored, restored.problems) == (len(content.runs), ())
    again = bundle.pack(None, tmp_path / "again", tracking_uri=f"sqlite:///{tmp_path}/t.db")
    assert again.logical_root == first.logical_root


@pytest.mark.parametrize("artifacts", ["local", "s3"])
def test_artifacts_wherever_they_lie(
    start_server: ServerFactory,
    s3_bucket: Bucket,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    artifacts: str,
) -> None:
    """A server that does not serve artifacts: runs point to a local folder or to S3, read directly and restored directly."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_bucket.storage_options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_bucket.storage_options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server)
    roots = {"local": str(tmp_path / "one"), "s3": f"s3://{s3_bucket.name}/one"}
    second = {"local": str(tmp_path / "two"), "s3": f"s3://{s3_bucket.name}/two"}
    server = start_server(serve_artifacts=False, default_artifact_root=roots[artifacts])
    content = make_awkward_content(server.url)
    packed = bundle.pack(None, tmp_path / "b", tracking_uri=server.url)
    assert (packed.counts["file"], packed.counts["file_bytes"]) == (content.file_count, content.file_bytes)
    target = start_server(serve_artifacts=False, default_artifact_root=second[artifacts])
    report = bundle.unpack(tmp_path / "b", tracking_uri=target.url)
    assert report.problems == ()
    assert report.files == content.file_count


@pytest.mark.parametrize("kind", ["server", "database"])
def test_a_killed_unpack_is_finished_by_the_next(
    source: tuple[MlflowServer, ContentSummary], start_server: ServerFactory, tmp_path: Path, kind: str
) -> None:
    """After kill -9 in the middle, running again restores the rest; nothing is doubled and no half run stays."""
    server, content = source
    bundle.pack(None, tmp_path / "a", tracking_uri=server.url)
    target = start_server().url if kind == "server" else f"sqlite:///{tmp_path}/t.db"
    script = f"import mlflow_bundle as b; b.unpack({str(tmp_path / 'a')!r}, tracking_uri={target!r})"
    killed = 0
    for delay in (4.0, 5.0, 6.0):
        process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.getcwd()})
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    report = bundle.unpack(tmp_path / "a", tracking_uri=target)
    assert report.problems == ()
    assert report.runs_restored + report.runs_already_there == len(content.runs)
    bundle.pack(None, tmp_path / "b", tracking_uri=target)
    left, right = _content_of(tmp_path / "b"), _content_of(tmp_path / "a")
    assert left == right
    assert killed
