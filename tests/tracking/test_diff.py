"""Archives against what a live MLflow holds now: servers, databases and file stores, without writing anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

import mlflow_bundle as bundle
from mlflow_bundle.cli import run as command
from mlflow_bundle.errors import BundleNotFoundError, NotFoundError, UsageError
from tests.fixtures.server import MlflowServer


def some_run(uri: str, folder: Path, name: str) -> tuple[MlflowClient, str, str]:
    """An experiment with one run that has a metric and a file: the client, and the ids of both."""
    client = MlflowClient(uri)
    experiment = client.create_experiment(name)
    run: str = client.create_run(experiment).info.run_id
    client.log_batch(run, metrics=[Metric("loss", 0.5, 1_700_000_000_000, 0)])
    (folder / "notes.txt").write_text("notes")
    client.log_artifact(run, str(folder / "notes.txt"))
    return client, experiment, run


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["server", "database"])
def live(request: pytest.FixtureRequest, empty_mlflow: str) -> str:
    """A server, or a database that is read directly."""
    if request.param == "database":
        return empty_mlflow
    server: MlflowServer = request.getfixturevalue("mlflow_server")
    return server.url


@pytest.mark.slow
def test_is_my_backup_current(live: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Right after a pack nothing differs; what happens then is told, in both directions; and the bundle is left as it was."""
    client, experiment, run = some_run(live, tmp_path, f"diff {tmp_path.name}")
    place = tmp_path / "b"
    bundle.pack(f"diff {tmp_path.name}", place, tracking_uri=live)
    before = files_below(place)
    assert bundle.diff(place, live).equal
    assert command(["diff", live, str(place)]) == 0
    client.log_metric(run, "loss", 0.25, timestamp=1_700_000_000_001, step=1)
    client.set_tag(run, "new", "tag")
    (tmp_path / "more.txt").write_text("more")
    client.log_artifact(run, str(tmp_path / "more.txt"))
    other = client.create_run(experiment).info.run_id
    found = bundle.diff(place, live)
    assert (found.before.url, found.after.url) == (str(place), live)
    assert {(change.kind, change.id, change.what) for change in found.changes} == {
        ("run", run, "changed"),
        ("run", other, "added"),
    }
    details = {detail.what: (detail.before, detail.after) for change in found.changes for detail in change.details}
    assert details["metric 'loss'"] == ("1 point, last 0.5 at step 0", "2 points, last 0.25 at step 1")
    assert details["tag 'new'"] == (None, "tag")
    assert details["file 'more.txt'"][0] is None
    assert set(details) == {"metric 'loss'", "tag 'new'", "file 'more.txt'"}
    capsysbinary.readouterr()
    assert command(["diff", live, str(place), "--json"]) == 4
    told = json.loads(capsysbinary.readouterr().out)
    assert told["equal"] is False
    assert told["counts"] == {"run": {"changed": 1, "removed": 1}}
    assert files_below(place) == before
    bundle.pack(f"diff {tmp_path.name}", place, tracking_uri=live)
    assert bundle.diff(place, live).equal


@pytest.mark.slow
def test_a_database_and_its_server_say_the_same(
    mlflow_server: MlflowServer, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What a server never tells is no difference, and named in one line; what it does tell is compared as ever."""
    name = f"diff common {tmp_path.name}"
    client, experiment, run = some_run(mlflow_server.url, tmp_path, name)
    client.delete_run(client.create_run(experiment).info.run_id)
    client.delete_logged_model(client.create_logged_model(experiment, name="gone").model_id)
    place = str(tmp_path / "b")
    bundle.pack(
        name, place, tracking_uri=mlflow_server.backend_store_uri, artifacts_destination=mlflow_server.artifacts_destination
    )
    found = bundle.diff(place, mlflow_server.url)
    assert (found.changes, found.equal) == ((), True)
    assert found.before.logical_root != found.after.logical_root
    assert {"run.source_type", "run.deleted_time", "logged_model.unknown_deleted_ones"} <= set(found.not_compared)
    client.set_tag(run, "new", "tag")
    assert command(["diff", place, mlflow_server.url]) == 4
    out, err = capsysbinary.readouterr()
    assert out.decode() == f"~ run {run} {client.get_run(run).info.run_name}\n    + tag 'new': tag\n"
    assert b"not compared, because only one side tells it: " in err
    assert bundle.diff(place, place).not_compared == ()


def test_two_live_sides(empty_mlflow: str, tmp_path: Path) -> None:
    """A database that was restored from another one says the same."""
    some_run(empty_mlflow, tmp_path, "both")
    bundle.pack(None, tmp_path / "b", tracking_uri=empty_mlflow)
    copy = f"sqlite:///{tmp_path / 'copy.db'}"
    bundle.unpack(tmp_path / "b", tracking_uri=copy, artifact_root=str(tmp_path / "files"))
    found = bundle.diff(empty_mlflow, copy)
    assert found.equal, found.changes


def test_the_command_tells_it_to_people(empty_mlflow: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A line for each entity and each thing of it on stdout, escaped; who was compared, and sums, on stderr; code 4."""
    client, _, run = some_run(empty_mlflow, tmp_path, "told")
    place = str(tmp_path / "b")
    bundle.pack(None, place, tracking_uri=empty_mlflow)
    assert command(["diff", place]) == 2
    assert b"no earlier snapshot" in capsysbinary.readouterr().err
    client.set_tag(run, "evil", "\x1b[31mred\x1b[0m \u202e")
    bundle.pack(None, place, tracking_uri=empty_mlflow)
    assert command(["diff", place]) == 4
    out, err = capsysbinary.readouterr()
    assert f"~ run {run}".encode() in out
    assert b"    + tag 'evil': \\x1b[31mred\\x1b[0m \\u202e\n" in out
    assert b"run: 1 changed" in err
    assert command(["diff", place, "--brief"]) == 4
    assert capsysbinary.readouterr().out.count(b"\n") == 1
    assert command(["diff", place, place]) == 0
    assert b"both say the same" in capsysbinary.readouterr().err


def test_aliases_are_told_by_their_names(empty_mlflow: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """An alias that moved has both versions, and one that went has its name."""
    client = MlflowClient(empty_mlflow)
    client.create_registered_model("shop")
    for _ in range(2):
        client.create_model_version("shop", source=str(tmp_path))
    for alias in ("champion", "old"):
        client.set_registered_model_alias("shop", alias, "1")
    place = str(tmp_path / "b")
    bundle.pack(None, place, tracking_uri=empty_mlflow)
    client.set_registered_model_alias("shop", "champion", "2")
    client.delete_registered_model_alias("shop", "old")
    assert command(["diff", place, empty_mlflow]) == 4
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert [line for line in lines if "alias" in line] == [
        "    ~ alias 'champion': version: 1 -> 2",
        "    - alias 'old'",
        "    - alias 'old': version: 1",
    ]


def test_what_cannot_be_read(empty_mlflow: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A partial snapshot says the same as its source, with what could not be read of it and code 3; and 4 when they differ."""
    client, _, run = some_run(empty_mlflow, tmp_path, "partial")
    folder = Path(client.get_run(run).info.artifact_uri.removeprefix("file://"))
    (folder / "loop").symlink_to("loop")
    place = str(tmp_path / "b")
    assert bundle.pack(None, place, tracking_uri=empty_mlflow, allow_partial=True).state == "partial"
    found = bundle.diff(place, empty_mlflow)
    assert (found.equal, [problem.id for problem in found.problems]) == (True, [run])
    assert command(["diff", place, empty_mlflow]) == 3
    err = capsysbinary.readouterr().err
    assert b"both say the same, but not everything could be read" in err
    assert b"loop" in err
    assert b"--allow-partial" not in err
    assert command(["diff", place, empty_mlflow, "--json"]) == 3
    assert [problem["path"] for problem in json.loads(capsysbinary.readouterr().out)["problems"]] == ["loop"]
    client.set_tag(run, "new", "tag")
    assert command(["diff", place, empty_mlflow]) == 4


def test_what_cannot_be_compared(empty_mlflow: str, tmp_path: Path) -> None:
    """Nothing there, no such snapshot, a snapshot of a server: one error each, by what it is."""
    some_run(empty_mlflow, tmp_path, "odd")
    bundle.pack(None, tmp_path / "b", tracking_uri=empty_mlflow)
    with pytest.raises(BundleNotFoundError):
        bundle.diff(tmp_path / "none", tmp_path / "b")
    with pytest.raises(NotFoundError):
        bundle.diff(tmp_path / "b", tmp_path / "b", after_snapshot="1999")
    with pytest.raises(UsageError, match="is no bundle"):
        bundle.diff(tmp_path / "b", empty_mlflow, after_snapshot="2026")
