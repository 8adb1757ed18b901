"""A damaged bundle, and then a mended one, unpacked over each other: what a restore could not know or have is done again."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelTag, Metric
from mlflow.tracking._tracking_service.utils import _get_store

import mlflow_bundle as bundle
from mlflow_bundle._bundle import open_bundle
from tests.fixtures.server import MlflowServer
from tests.tracking.test_newer_snapshot import START, Moving

pytestmark = pytest.mark.slow


@pytest.fixture
def estate_of_two(empty_mlflow: str, tmp_path: Path, server: MlflowServer) -> Iterator[Moving]:
    """A source, a bundle and a server. MLflow looks up the logged model that a version names at the default tracking URI."""
    mlflow.set_tracking_uri(empty_mlflow)
    yield Moving(MlflowClient(empty_mlflow), empty_mlflow, tmp_path, server, MlflowClient(server.url))
    mlflow.set_tracking_uri(None)


@contextmanager
def lost(place: Path, *roles: str, kind: str | None = None, snapshot: str | None = None) -> Iterator[None]:
    """The bundle without the objects of these roles (and of this kind), which come back at the end."""
    with open_bundle(place, snapshot=snapshot) as archive:
        paths = [ref.path for ref in archive.objects if ref.role in roles and (kind is None or ref.kind == kind)]
    assert paths
    for path in paths:
        shutil.copy(place / path, place / f"{path}.away")
        (place / path).unlink()
    yield
    for path in paths:
        (place / f"{path}.away").rename(place / path)


def outcome(report: bundle.UnpackReport, kind: str) -> dict[str, int]:
    """The counts of a kind that are not 0."""
    (one,) = [one for one in report.entities if one.kind == kind]
    names = ("restored", "there", "merged", "left_out", "failed")
    return {name: count for name in names if (count := getattr(one, name))}


def set_all(moving: Moving, ids: tuple[str, str, str], model: str, value: str) -> None:
    """Give a run, its child, a logged model and a version a new tag or description."""
    parent, child, logged = ids
    for run in (parent, child):
        moving.client.set_tag(run, "t", value)
    _get_store(moving.uri).set_logged_model_tags(logged, [LoggedModelTag("t", value)])
    moving.client.update_model_version(model, "1", description=value)


def test_digests_without_a_view(estate_of_two: Moving, request: pytest.FixtureRequest) -> None:
    """Of entities whose view is damaged each snapshot is another one: what was restored of it is no other's, damaged or not."""
    moving, model = estate_of_two, str(request.node.name)
    client = moving.client
    parent = moving.new_run(model)
    experiment = client.get_run(parent).info.experiment_id
    child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    logged = _get_store(moving.uri).create_logged_model(experiment, "model", parent).model_id
    client.create_registered_model(model)
    client.create_model_version(model, f"models:/{logged}", parent)
    snapshots = {}
    for value in ("a", "b", "c"):
        set_all(moving, (parent, child, logged), model, value)
        snapshots[value] = moving.pack()
    damaged = {"a": False, "b": True, "c": True}
    for value in ("a", "b", "a", "c", "b", "b"):
        if damaged[value]:
            with lost(moving.folder / "bundle", "views", snapshot=snapshots[value]):
                report = moving.unpack(snapshots[value], allow_partial=True)
        else:
            report = moving.unpack(snapshots[value])
        assert report.runs_failed == 0
        for run in (parent, child):
            assert moving.run_of(report, run).data.tags["t"] == value
        assert moving.target.get_logged_model(report.ids["logged_model"][logged]).tags["t"] == value
        assert moving.target.get_model_version(model, "1").description == value
    assert (report.runs_restored, report.runs_already_there) == (0, 2)


def test_names_of_a_lost_run(estate_of_two: Moving, request: pytest.FixtureRequest) -> None:
    """A logged model and a version that name a run whose record is lost are not restored as archived, nor ever silently wrong:
    what a server cannot change afterwards stays a problem, and what it can change follows."""
    moving, name = estate_of_two, str(request.node.name)
    client = moving.client
    run = moving.new_run(name)
    experiment = client.get_run(run).info.experiment_id
    made, measured = (
        _get_store(moving.uri).create_logged_model(experiment, one, of).model_id for one, of in (("m", run), ("p", None))
    )
    client.log_batch(run, [Metric("of model", 0.25, START, 1, measured, run_id=run)])
    client.create_registered_model(name)
    free = _get_store(moving.uri).create_logged_model(experiment, "free", None).model_id
    client.create_model_version(name, f"runs:/{run}/model", run)
    client.create_model_version(name, f"models:/{free}")
    moving.pack()
    with lost(moving.folder / "bundle", "records", kind="run"):
        report = moving.unpack(allow_partial=True)
    told = {(problem.kind, problem.id) for problem in report.problems if run in problem.message}
    assert {("logged_model", made), ("logged_model", measured), ("model_version", f"{name}/1")} <= told
    assert outcome(report, "logged_model") == {"restored": 1, "failed": 2}
    assert outcome(report, "model_version") == {"restored": 1, "failed": 1}
    for _ in range(2):
        report = moving.unpack()
        assert (report.runs_restored + report.runs_already_there, report.runs_failed) == (1, 0)
        assert {(problem.kind, problem.id) for problem in report.problems} == {
            ("logged_model", made),
            ("model_version", f"{name}/1"),
        }
        assert all(report.run_ids[run][:8] in problem.message for problem in report.problems)
    (point,) = moving.target.get_logged_model(report.ids["logged_model"][measured]).metrics
    assert (point.value, point.run_id) == (0.25, report.run_ids[run])


def test_names_of_a_run_without_its_experiment(estate_of_two: Moving, request: pytest.FixtureRequest) -> None:
    """So do names of a run that is left out because the record of its experiment is lost."""
    moving, name = estate_of_two, str(request.node.name)
    run = moving.new_run(name)
    moving.client.create_registered_model(name)
    moving.client.create_model_version(name, f"runs:/{run}/model", run)
    moving.pack()
    with lost(moving.folder / "bundle", "records", kind="experiment"):
        report = moving.unpack(allow_partial=True)
    assert any(problem.message.startswith("1 run left out: ") for problem in report.problems)
    assert outcome(report, "model_version") == {"failed": 1}
    assert outcome(moving.unpack(), "model_version") == {"failed": 1}


def test_versions_without_view_and_files(estate_of_two: Moving, request: pytest.FixtureRequest) -> None:
    """Where nobody knows which versions have files of their own, each keeps its source, and the mended bundle completes it."""
    moving, name = estate_of_two, str(request.node.name)
    client, target = moving.client, moving.target
    run = moving.new_run(name)
    moving.file(run, "file.txt", "text")
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{run}/model", run)
    client.create_prompt(f"{name}-prompt")
    client.create_prompt_version(f"{name}-prompt", "template")
    moving.pack()
    with lost(moving.folder / "bundle", "files"), lost(moving.folder / "bundle", "views", kind="model_version"):
        report = moving.unpack(allow_partial=True)
    assert outcome(report, "model_version") == {"failed": 2}
    assert target.get_model_version(name, "1").source == f"runs:/{report.run_ids[run]}/model"
    carried = [model.tags.get("mlflow_bundle.source.carrier_of", "") for model in target.search_logged_models(["0"])]
    assert not any(version.startswith(name) for version in carried)
    report = moving.unpack()
    assert report.problems == ()
    assert outcome(report, "model_version") == {"restored": 2}


def test_runs_of_a_database_that_get_more(estate_of_two: Moving, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Runs of a database that get their missing points or files count as restored, and these are counted; others are there."""
    moving, uri = estate_of_two, f"sqlite:///{tmp_path}/target.db"
    full = moving.new_run(str(request.node.name))
    experiment = moving.client.get_run(full).info.experiment_id
    filed, plain = (moving.client.create_run(experiment).info.run_id for _ in range(2))
    moving.client.log_metric(full, "m", 0.5, START, 1)
    moving.file(filed, "one.txt", "text")
    moving.client.set_tag(plain, "t", "1")
    moving.pack()

    def unpack(**options: Any) -> bundle.UnpackReport:
        return bundle.unpack(moving.folder / "bundle", tracking_uri=uri, artifact_root=tmp_path / "root", **options)

    for role, points, files in (("metrics", 1, 0), ("files", 0, 1)):
        for path in (tmp_path / "target.db", tmp_path / "root"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with lost(moving.folder / "bundle", role):
            assert unpack(allow_partial=True).runs_failed == 1
        report = unpack()
        assert (report.runs_restored, report.runs_already_there, report.problems) == (1, 2, ())
        assert (report.metric_points, report.files) == (points, files)
        report = unpack()
        assert (report.runs_restored, report.runs_already_there, report.metric_points, report.files) == (0, 3, 0, 0)


def test_a_model_with_a_file_of_traces(estate_of_two: Moving, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A logged model of a database gets its lost points, whatever its files are called."""
    moving, target = estate_of_two, tmp_path / "target.db"
    run = moving.new_run(str(request.node.name))
    experiment = moving.client.get_run(run).info.experiment_id
    model = _get_store(moving.uri).create_logged_model(experiment, "model", run)
    moving.client.log_batch(run, [Metric("of model", 0.25, START, 1, model.model_id, run_id=run)])
    Path(model.artifact_location).mkdir(parents=True)
    (Path(model.artifact_location) / "traces.json").write_text("{}")
    moving.pack()
    with lost(moving.folder / "bundle", "model_metrics"):
        bundle.unpack(moving.folder / "bundle", tracking_uri=f"sqlite:///{target}", allow_partial=True)
    report = bundle.unpack(moving.folder / "bundle", tracking_uri=f"sqlite:///{target}")
    assert report.problems == ()
    with closing(sqlite3.connect(target)) as database:
        assert database.execute("SELECT metric_value FROM logged_model_metrics").fetchall() == [(0.25,)]
