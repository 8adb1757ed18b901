"""What an unpack must neither lose, double, nor damage without a word."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.tracking._tracking_service.utils import _get_store

import mlflow_bundle as bundle
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.http_peer import forward, serve

START = 1_700_000_000_000
UNPACK = "import sys, mlflow_bundle as b; b.unpack(sys.argv[1], tracking_uri=sys.argv[2])"

pytestmark = pytest.mark.slow

Answer = tuple[int, bytes, int | None]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name of this test's own."""
    return str(request.node.name)


def pack(uri: str, tmp_path: Path) -> str:
    """Pack into the bundle of this test; the name of the snapshot."""
    report = bundle.pack(bundle=tmp_path / "bundle", tracking_uri=uri)
    assert report.problems == ()
    return str(report.snapshot)


def two_models(client: MlflowClient, name: str) -> list[str]:
    """Two registered models with a version each, of one run: their names."""
    run = client.create_run(client.create_experiment(name)).info.run_id
    models = [f"{what} {name}" for what in "ab"]
    for model in models:
        client.create_registered_model(model)
        client.create_model_version(model, f"runs:/{run}/x", run, description="archived")
    return models


def change(uri: str, sql: str, *values: object) -> None:
    """Change a database behind MLflow's back."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        database.execute(sql, values)
        database.commit()


def through(
    server: MlflowServer, tmp_path: Path, alter: Callable[[str, str, bytes], Answer | bytes | None]
) -> bundle.UnpackReport:
    """Unpack through a proxy that answers itself, sends another body, or does nothing."""

    def answer(method: str, path: str, body: bytes) -> Answer | None:
        said = alter(method, path, body)
        return said if isinstance(said, tuple) else forward(server.url, method, path, body if said is None else said)

    with serve(answer) as peer:
        return bundle.unpack(tmp_path / "bundle", tracking_uri=peer.url)


def test_files_of_the_source_beside_the_target(empty_database_file: Path, tmp_path: Path, name: str) -> None:
    """A restore into a new database beside the one of the source leaves the files of the source as they are."""
    shutil.copy(empty_database_file, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment(name, artifact_location=str(tmp_path / "mlruns" / "1"))
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "old", "notes.txt")
    pack(uri, tmp_path)
    client.log_text(run, "new work", "notes.txt")
    bundle.unpack(tmp_path / "bundle", tracking_uri=f"sqlite:///{tmp_path}/restored.db", allow_partial=True)
    assert (tmp_path / "mlruns" / experiment / run / "artifacts" / "notes.txt").read_text() == "new work"


def test_a_copy_that_a_user_made_of_a_version(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A version that a user of the target copied from one that is not finished is his: the next unpack does not delete it."""
    client, target = MlflowClient(empty_mlflow), MlflowClient(server.url)
    models = two_models(client, name)
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    change(empty_mlflow, "UPDATE model_versions SET source = replace(source, '/x', '/y') WHERE name = ?", models[0])
    pack(empty_mlflow, tmp_path)
    assert bundle.unpack(tmp_path / "bundle", tracking_uri=server.url).problems
    copied = target.copy_model_version(f"models:/{models[0]}/1", models[1])
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert target.get_model_version(models[1], copied.version).version == copied.version


def test_a_copy_under_the_same_number(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A version that a user of the target copied from a restored one keeps his words, whatever the archive has of its name."""
    client, target = MlflowClient(empty_mlflow), MlflowClient(server.url)
    models = two_models(client, name)
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url, model=models[0])
    target.copy_model_version(f"models:/{models[0]}/1", models[1])
    target.update_model_version(models[1], "1", description="mine")
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url, allow_partial=True)
    assert target.get_model_version(models[1], "1").description == "mine"


def test_a_version_that_an_older_release_restored(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A restored version whose source tag names its number alone, as it did once, is still known; a copy of one is not."""
    client, target = MlflowClient(empty_mlflow), MlflowClient(server.url)
    models = two_models(client, name)
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url, model=models[0])
    target.set_model_version_tag(models[0], "1", "mlflow_bundle.source.version", "1")
    target.copy_model_version(f"models:/{models[0]}/1", models[1])
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert [problem.id for problem in report.problems] == [f"{models[1]}/1"]
    assert next(one for one in report.entities if one.kind == "model_version").there == 1


def test_the_parent_that_came_later(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A run whose parent failed at first names the parent at the target once that is restored."""
    client = MlflowClient(empty_mlflow)
    experiment = client.create_experiment(name)
    parent = client.create_run(experiment, run_name="PARENT").info.run_id
    child = client.create_run(experiment, run_name="child", tags={"mlflow.parentRunId": parent}).info.run_id
    pack(empty_mlflow, tmp_path)

    def alter(_: str, path: str, body: bytes) -> Answer | None:
        refused = path.endswith("runs/create") and b"PARENT" in body
        return (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}', None) if refused else None

    assert through(server, tmp_path, alter).runs_failed == 1
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert report.problems == ()
    found = MlflowClient(server.url).get_run(report.run_ids[child])
    assert found.data.tags["mlflow.parentRunId"] == report.run_ids[parent]


def test_an_experiment_that_was_renamed(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """Runs of an experiment that got another name are not restored a second time without a word."""
    client = MlflowClient(empty_mlflow)
    experiment = client.create_experiment(name)
    client.create_run(experiment)
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    client.rename_experiment(experiment, name + " renamed")
    pack(empty_mlflow, tmp_path)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert (report.problems, report.runs_restored) == ((), 0)
    assert any(f"is called {name!r} at the target" in note for note in report.notes)


@pytest.mark.parametrize("road", ["server", "database"])
def test_files_of_a_version_that_came_later(
    server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str, road: str
) -> None:
    """A version whose own files are in the second snapshot only gets them where it says that its files are, or a problem; the
    place of the source is not written to."""
    client, place = MlflowClient(empty_mlflow), f"memory://bucket/later-{road}"
    client.create_registered_model(name)
    client.create_model_version(name, "runs:/x/y")
    change(empty_mlflow, "UPDATE model_versions SET source = ?, storage_location = ?", place, place)
    target = server.url if road == "server" else f"sqlite:///{tmp_path}/target.db"
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=target)
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/bucket/later-{road}/model.bin", b"weights")
    pack(empty_mlflow, tmp_path)
    memory.rm(f"/bucket/later-{road}", recursive=True)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=target, allow_partial=True)
    assert not memory.exists(f"/bucket/later-{road}/model.bin")
    assert [(problem.kind, problem.id) for problem in report.problems] == [("model_version", f"{name}/1")]


def test_experiments_are_read_back(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A tag of an experiment that a server drops, and a deletion that it does not do, are problems."""
    client = MlflowClient(empty_mlflow)
    client.create_experiment(name, tags={"mine": "important"})
    client.delete_experiment(client.create_experiment(name + " deleted"))
    pack(empty_mlflow, tmp_path)

    def alter(_: str, path: str, body: bytes) -> Answer | bytes | None:
        if path.endswith("experiments/delete"):
            return 200, b"{}", None
        if not path.endswith("experiments/create"):
            return None
        asked = json.loads(body)
        return json.dumps({**asked, "tags": [tag for tag in asked["tags"] if tag["key"] != "mine"]}).encode()

    assert len(through(server, tmp_path, alter).problems) == 2


def test_a_deleted_model_is_read_back(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A logged model that a server does not delete is a problem."""
    store = _get_store(empty_mlflow)
    store.delete_logged_model(store.create_logged_model(store.create_experiment(name), "model").model_id)
    pack(empty_mlflow, tmp_path)

    def alter(method: str, path: str, _: bytes) -> Answer | None:
        return (200, b"{}", None) if method == "DELETE" and "logged-models" in path else None

    assert through(server, tmp_path, alter).problems


def test_a_run_that_was_deleted_at_the_target(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A run that somebody deleted at the target since is not just there: it is active again, or a note or problem says so."""
    client, target = MlflowClient(empty_mlflow), MlflowClient(server.url)
    run = client.create_run(client.create_experiment(name)).info.run_id
    pack(empty_mlflow, tmp_path)
    there = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url).run_ids[run]
    target.delete_run(there)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert report.problems == ()
    assert target.get_run(there).info.lifecycle_stage == "deleted"
    assert any("were deleted at the target since" in note for note in report.notes)


def test_two_bundles_of_one_source(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """What another bundle of the same source brought is known for every kind, as it is for runs, or the second one is told."""
    store, target = _get_store(empty_mlflow), MlflowClient(server.url)
    experiment = store.create_experiment(name)
    run = MlflowClient(empty_mlflow).create_run(experiment).info.run_id
    store.create_logged_model(experiment, "model", run)
    for place in ("one", "two"):
        bundle.pack(bundle=tmp_path / place, tracking_uri=empty_mlflow)
        report = bundle.unpack(tmp_path / place, tracking_uri=server.url)
    there = next(str(one.id) for one in report.experiments if one.name == name)
    assert len(target.search_runs([there])) == 1
    assert len(target.search_logged_models([there])) == 1
    assert report.problems == ()


def test_two_unpacks_at_once(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """Two unpacks of one bundle into one server at the same time double no run, or the next unpack says it."""
    client, target = MlflowClient(empty_mlflow), MlflowClient(server.url)
    experiment = client.create_experiment(name)
    for number in range(30):
        client.create_run(experiment, start_time=START + number)
    pack(empty_mlflow, tmp_path)
    there = target.create_experiment(name)
    command = [sys.executable, "-c", UNPACK, str(tmp_path / "bundle"), server.url]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, said = process.communicate()
        assert process.returncode == 0, said
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert len(target.search_runs([there], max_results=1_000)) == 30 or report.problems


def test_another_unpack_meanwhile(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A run that another unpack makes before this one does is there twice: this unpack says so itself."""
    client = MlflowClient(empty_mlflow)
    run = client.create_run(client.create_experiment(name)).info.run_id
    pack(empty_mlflow, tmp_path)
    others: list[bundle.UnpackReport] = []

    def alter(_: str, path: str, __: bytes) -> None:
        if path.endswith("runs/create") and not others:
            others.append(bundle.unpack(tmp_path / "bundle", tracking_uri=server.url))

    report = through(server, tmp_path, alter)
    assert (others[0].runs_restored, others[0].problems) == (1, ())
    assert (report.runs_restored, report.runs_failed) == (0, 1)
    assert [problem.runs for problem in report.problems] == [(run,)]
    assert "2 times" in report.problems[0].message


def test_what_a_newer_snapshot_lacks(empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A text that the source has no longer, and the restored database has, is told."""
    client = MlflowClient(empty_mlflow)
    client.create_registered_model(name, description="words")
    target = f"sqlite:///{tmp_path}/target.db"
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=target)
    change(empty_mlflow, "UPDATE registered_models SET description = NULL")
    pack(empty_mlflow, tmp_path)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=target, allow_partial=True)
    assert any("description" in told for told in (*report.notes, *(problem.message for problem in report.problems)))


def test_lost_answers(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A deletion that is asked for again because its answer was lost is no failure, nor is a file that is sent again."""
    client, store = MlflowClient(empty_mlflow), _get_store(empty_mlflow)
    experiment = client.create_experiment(name)
    client.log_text(client.create_run(experiment).info.run_id, "words", "notes.txt")
    store.delete_logged_model(store.create_logged_model(experiment, "model").model_id)
    for _ in range(2):
        store.register_scorer(experiment, "judge", json.dumps({"name": "judge"}))
    store.delete_scorer(experiment, "judge", 1)
    client.delete_experiment(client.create_experiment(name + " deleted"))
    pack(empty_mlflow, tmp_path)
    lost: set[str] = set()

    def answer(method: str, path: str, body: bytes) -> Answer | None:
        said = forward(server.url, method, path, body)
        what = f"{method} {path.partition('?')[0].rpartition('/')[2]}"
        is_lost = what in ("POST delete", "DELETE delete", "PUT notes.txt") or (method == "DELETE" and "logged-models" in path)
        if not is_lost or what in lost:
            return said
        lost.add(what)
        return None

    with serve(answer) as peer:
        report = bundle.unpack(tmp_path / "bundle", tracking_uri=peer.url)
    assert report.problems == ()
    assert len(lost) == 4


def test_a_run_that_came_back_at_the_target(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A run that the archive has deleted, and that somebody restored at the target since, is not deleted without a word."""
    client, target = MlflowClient(empty_mlflow), MlflowClient(server.url)
    run = client.create_run(client.create_experiment(name)).info.run_id
    client.delete_run(run)
    pack(empty_mlflow, tmp_path)
    there = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url).run_ids[run]
    target.restore_run(there)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert any("active at the target" in note for note in report.notes)


def test_a_metric_of_a_model_that_its_run_lacks(server: MlflowServer, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A point that only a logged model has is told, because a server gives it to the run, too; one that both have is not."""
    client, store = MlflowClient(empty_mlflow), _get_store(empty_mlflow)
    experiment = client.create_experiment(name)
    run = client.create_run(experiment).info.run_id
    for key in ("both", "lost"):
        model = store.create_logged_model(experiment, key, run).model_id
        client.log_batch(run, [Metric(key, 0.5, START, 1, model, run_id=run)])
    for table in ("metrics", "latest_metrics"):
        change(empty_mlflow, f"DELETE FROM {table} WHERE key = 'lost'")
    pack(empty_mlflow, tmp_path)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert report.problems == ()
    assert [note for note in report.notes if "added to these runs" in note and "times" not in note]


def test_an_experiment_of_another_archive_keeps_its_tags(
    server: MlflowServer, empty_mlflow: str, empty_database_file: Path, tmp_path: Path, name: str
) -> None:
    """An experiment of the same name and id out of another source is merged into, and no tag of it is changed, not silently."""
    shutil.copy(empty_database_file, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    for uri in (empty_mlflow, other):
        MlflowClient(uri).create_experiment(name, tags={"mlflow.note.content": f"of {uri}"})
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    target = MlflowClient(server.url)
    there = target.get_experiment_by_name(name).experiment_id
    target.set_experiment_tag(there, "mlflow.note.content", "mine")
    before = target.get_experiment(there).tags
    bundle.pack(bundle=tmp_path / "stranger", tracking_uri=other)
    report = bundle.unpack(tmp_path / "stranger", tracking_uri=server.url)
    assert target.get_experiment(there).tags == before
    assert any("keeps its own value of the tag 'mlflow.note.content'" in note for note in report.notes)


def test_a_place_that_is_spelt_otherwise(empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A folder is the same place as its ``file:`` URI: files that came later are written there."""
    client = MlflowClient(empty_mlflow)
    run = client.create_run(client.create_experiment(name, artifact_location=str(tmp_path / "files"))).info.run_id
    client.log_text(run, "first", "one.txt")
    target, root = f"sqlite:///{tmp_path}/target.db", tmp_path / "root"
    pack(empty_mlflow, tmp_path)
    bundle.unpack(tmp_path / "bundle", tracking_uri=target, artifact_root=root)
    client.log_text(run, "second", "two.txt")
    pack(empty_mlflow, tmp_path)
    assert bundle.unpack(tmp_path / "bundle", tracking_uri=target, artifact_root=root.as_uri()).problems == ()
    assert [path.read_text() for path in root.rglob("two.txt")] == ["second"]


def test_a_place_that_cannot_be_listed(start_server: ServerFactory, empty_mlflow: str, tmp_path: Path, name: str) -> None:
    """A run without files is brought up to date though nobody here can look where its server keeps files; a note says so."""
    server = start_server(default_artifact_root="nowhere://bucket", serve_artifacts=False)
    client = MlflowClient(empty_mlflow)
    run = client.create_run(client.create_experiment(name)).info.run_id
    pack(empty_mlflow, tmp_path)
    assert bundle.unpack(tmp_path / "bundle", tracking_uri=server.url).problems == ()
    client.set_tag(run, "new", "yes")
    pack(empty_mlflow, tmp_path)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert report.problems == ()
    assert any("cannot be listed from here" in note for note in report.notes)
