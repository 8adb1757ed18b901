"""``unpack``: what it reports, and that its options reach the restore."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

import mlflow_bundle
from tests.cli.conftest import Archived, Command


def _runs(uri: str, place: Path) -> dict[str, int]:
    """Experiment names and numbers of runs at a target, as packed from it."""
    mlflow_bundle.pack(None, place, tracking_uri=uri)
    with mlflow_bundle.open(place) as bundle:
        names = bundle.runs()["experiment_name"].to_pylist()
        return {name: names.count(name) for name in bundle.experiments()["name"].to_pylist()}


def test_restore_twice(command: Command, archived: Archived, tmp_path: Path) -> None:
    """The first time restores, the second finds everything there; the logical root is that of the archive."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = command("unpack", archived.bundle, "--tracking-uri", uri)
    assert (first.code, first.out) == (0, "")
    assert "restored 8 runs, 81 points, 4 files (" in first.err
    assert "0 already there, 0 failed, 0 problems" in first.err
    second = command("unpack", archived.bundle, "--tracking-uri", uri)
    assert second.code == 0
    assert "8 already there, 0 failed, 0 problems" in second.err
    report = mlflow_bundle.pack(None, tmp_path / "again", tracking_uri=uri)
    with mlflow_bundle.open(archived.bundle) as bundle:
        assert report.logical_root == bundle.snapshot.logical.root


def test_json_and_selection(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A selection and a new name reach the restore, and the report is one JSON document."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["--experiment", "a*", "--rename", "a/b=renamed", "--tracking-uri", uri, "--json"]
    done = command("unpack", archived.bundle, *words)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert (report["runs_restored"], report["runs_failed"], report["dry_run"]) == (2, 0, False)
    assert {experiment["name"] for experiment in report["experiments"]} == {"a", "renamed"}
    found = _runs(uri, tmp_path / "again")
    assert (found["a"], found["renamed"]) == (1, 1)
    assert "a/b" not in found


def test_dry_run(command: Command, archived: Archived, tmp_path: Path) -> None:
    """It says what would happen, as data, and writes nothing."""
    done = command("unpack", archived.bundle, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--dry-run")
    assert done.code == 0
    assert "experiment churn: 4 runs, new" in done.out.splitlines()
    assert "would restore 8 runs" in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_cut_off(command: Command, archived: Archived, tmp_path: Path) -> None:
    """An object that is cut off is told before anything is written; all that it is not about is restored when that is asked
    for."""
    bundle, target = tmp_path / "cut", tmp_path / "mlflow.db"
    shutil.copytree(archived.bundle, bundle)
    with mlflow_bundle.open(bundle) as archive:
        path = bundle / next(ref.path for ref in archive.objects if ref.role == "metrics")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    done = command("unpack", bundle, "--tracking-uri", f"sqlite:///{target}")
    assert done.code == 1
    assert "is damaged" in done.err
    assert "--allow-partial restores the rest" in done.err
    assert not target.exists()
    words = ["unpack", bundle, "--tracking-uri", f"sqlite:///{target}", "--allow-partial", "--json"]
    planned = command(*words, "--dry-run")
    assert (planned.code, target.exists()) == (3, False)
    assert path.name in planned.out
    done = command(*words)
    report = json.loads(done.out)
    assert (done.code, report["runs_selected"]) == (3, report["runs_restored"] + report["runs_failed"])
    assert report["runs_failed"] > 0
    assert sum(_runs(f"sqlite:///{target}", tmp_path / "again").values()) == report["runs_selected"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--rename", "chrun=x"], 1, "did you mean 'churn'?"),
        (["--rename", "churn"], 2, "OLD=NEW"),
        (["--rename", "churn"], 2, "hint: for example --rename"),
        (["--rename", "zzzzzz=b"], 1, "hint: there are "),
        (["--run", "deadbeef"], 1, "hint: a run is named by its whole id"),
        (["--tracking-uri", "sqlite:////proc/x.db"], 1, "hint: name a place that can be written"),
        (["--tracking-uri", "postgresql://u:secret@localhost:1/x"], 1, "does not answer: connection refused\nhint: start the"),
        (["--rename", "churn=a"], 2, "would be named 'a'"),
        (["--experiment", "chrun"], 1, "did you mean 'churn'?"),
        (["--snapshot", "zzz"], 1, "no snapshot named"),
        (["--since", "soon"], 2, "is not a time"),
        (["--filter", "nonsense"], 2, "wrong filter"),
    ],
)
def test_wrong_input(command: Command, archived: Archived, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    """Each wrong request has its sentence and exit code."""
    done = command("unpack", archived.bundle, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_no_bundle(command: Command, tmp_path: Path) -> None:
    """Without a bundle it ends with 10, and no database was made."""
    done = command("unpack", tmp_path / "nothing", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert done.code == 10
    assert list(tmp_path.iterdir()) == []


def test_dead_server(command: Command, archived: Archived, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there ends with 1 and what to do."""
    done = command("unpack", archived.bundle, "--tracking-uri", "http://127.0.0.1:9")
    assert done.code == 1
    assert "does not answer" in done.err


def test_a_file_store_is_no_default_target(
    command: Command, archived: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a file store, which cannot be written, the embedded database is the default, and else nothing is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns" / "1").mkdir(parents=True)
    (tmp_path / "mlruns" / "1" / "meta.yaml").write_text("experiment_id: '1'\nname: e\n", "utf-8")
    done = command("unpack", archived.bundle, "--dry-run")
    assert done.code == 2
    assert "no MLflow server or database to restore into is named" in done.err
    assert "./mlruns" not in done.err
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_experiment_by_name("Default")
    done = command("unpack", archived.bundle, "--dry-run")
    assert done.code == 0, done.err
    assert "to sqlite:///mlflow.db; nothing was written" in done.err
