"""``pack``: what it reports, how it selects, and how it ends."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

import mlflow_bundle
from tests.cli.conftest import EVIL, Archived, Command


def test_summary(command: Command, archived: Archived, tmp_path: Path) -> None:
    """The summary is on stderr: what was packed, what was new, the snapshot and its digest; stdout stays empty."""
    done = command("pack", tmp_path / "b", "--tracking-uri", archived.uri)
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    assert lines[0] == "packed 6 experiments, 8 runs, 81 points, 4 files"
    assert lines[1].endswith("; 0 already there")
    with mlflow_bundle.open(tmp_path / "b") as bundle:
        assert lines[2:] == [f"snapshot {bundle.snapshot_id}", f"root {bundle.root_digest}"]
    again = command("pack", tmp_path / "b", "--tracking-uri", archived.uri)
    assert again.err.splitlines()[1].startswith("0 new objects, 0 B; ")
    assert max(map(len, lines)) <= 80


def test_json(command: Command, archived: Archived, tmp_path: Path) -> None:
    """The whole report is one JSON document, and stderr is silent."""
    done = command("pack", tmp_path / "b", "--tracking-uri", archived.uri, "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    with mlflow_bundle.open(tmp_path / "b") as bundle:
        assert report["snapshot"] == bundle.snapshot_id
        assert report["root_digest"] == bundle.root_digest
        assert report["counts"] == bundle.snapshot.counts
    assert (report["state"], report["problems"]) == ("complete", [])


def test_selection(command: Command, archived: Archived, tmp_path: Path) -> None:
    """Every selecting option reaches the pack."""
    run = archived.runs["child"]
    cases: list[tuple[list[str], set[str]]] = [
        (["--experiment", "a*"], {"b/c", "c/d"}),
        (["--experiment", "a", "--experiment", EVIL], {"b/c", EVIL}),
        (["--run", run], {"parent", "child"}),
        (["--run", archived.runs["parent"], "--descendants"], {"parent", "child"}),
        (["--filter", "attributes.run_name = 'twice'"], {"twice", "twice again"}),
        (["--since", "2023-11-14T22:13:26"], {EVIL, "in deleted"}),
        (["--until", "2023-11-14T22:13:20.000"], {"parent"}),
        (["--experiment", "gone", "--lifecycle", "deleted"], {"in deleted"}),
    ]
    for number, (words, expected) in enumerate(cases):
        done = command("pack", tmp_path / str(number), "--tracking-uri", archived.uri, *words)
        assert done.code == 0, (words, done.err)
        with mlflow_bundle.open(tmp_path / str(number)) as bundle:
            assert set(bundle.runs()["run_id"].to_pylist()) == {archived.runs[name] for name in expected}, words


def test_dry_run(command: Command, archived: Archived, tmp_path: Path) -> None:
    """It counts what is selected, as data on stdout, and writes nothing at all."""
    done = command("pack", tmp_path / "b", "--tracking-uri", archived.uri, "--experiment", "a*", "--dry-run")
    assert (done.code, done.out) == (0, "a: 1 run\na/b: 1 run\n")
    assert "would pack 2 experiments, 2 runs" in done.err
    report = json.loads(command("pack", tmp_path / "b", "--tracking-uri", archived.uri, "--dry-run", "--json").out)
    assert report["counts"] == {"experiment": 6, "run": 8, "workspace": 1}
    assert list(tmp_path.iterdir()) == []


def test_dry_run_looks_at_the_place(command: Command, archived: Archived, tmp_path: Path) -> None:
    """Where nothing can be packed to, a dry run ends as the pack would."""
    (tmp_path / "plain.txt").write_text("words")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("words")
    for name, code in (("plain.txt", 10), ("foreign", 1), ("plain.txt/x", 1), ("plain.txt/x.zip", 1), ("/proc/x", 1)):
        words = ["pack", tmp_path / name, "--tracking-uri", archived.uri]
        dry, real = command(*words, "--dry-run"), command(*words)
        assert (dry.code, dry.out, dry.err) == (real.code, real.out, real.err)
        assert dry.code == code
    for name in ("new/b", "new/b.zip"):
        assert command("pack", tmp_path / name, "--tracking-uri", archived.uri, "--dry-run").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "plain.txt"]


def test_no_place(command: Command, archived: Archived) -> None:
    """An empty name of a bundle, as of a variable that is not set, is wrong usage, and the hint says what a name is."""
    done = command("pack", "", "--tracking-uri", archived.uri)
    assert (done.code, done.err.splitlines()[1][:20]) == (2, "hint: name a folder,")


def test_dry_run_tells_what_cannot_be_read(command: Command, tmp_path: Path) -> None:
    """What a pack could not read is told before anything is written: here an experiment on a disk that is not mounted."""
    (tmp_path / "mlruns/0").mkdir(parents=True)
    (tmp_path / "mlruns/0/meta.yaml").write_text("experiment_id: '0'\nname: Default\nlifecycle_stage: active\n")
    (tmp_path / "mlruns/1").symlink_to("/no/such/disk")
    words = ["pack", tmp_path / "b", "--tracking-uri", tmp_path / "mlruns", "--dry-run"]
    done = command(*words)
    assert (done.code, "is a link that leads nowhere" in done.err) == (3, True)
    assert [problem["id"] for problem in json.loads(command(*words, "--json").out)["problems"]] == ["1"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--experiment", "chrun"], 1, "did you mean 'churn'?"),
        (["--run", "0" * 32], 1, "no run with the id"),
        (["--experiment", "zzzzzz*"], 1, "hint: there are "),
        (["--since", "yesterday"], 2, "'yesterday' is not a time"),
        (["--since", "2024-01-02", "--until", "2024-01-01"], 2, "is later than"),
        (["--filter", "metrics.loss <"], 2, "wrong filter"),
        (["--storage-option", "x"], 2, "KEY=VALUE"),
        (["--storage-option", "x"], 2, "hint: for example --storage-option"),
        (["--tracking-uri", "postgresql://u:secret@localhost:1/x"], 1, "does not answer: connection refused\nhint: start the"),
        (["--tracking-uri", "nonsense://x"], 2, "nonsense"),
        (["--tracking-uri", "sqlite:///nowhere.db"], 1, "no database file"),
    ],
)
def test_wrong_input(command: Command, archived: Archived, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    """Each wrong selection or source has its sentence and exit code, and leaves no bundle."""
    done = command("pack", tmp_path / "b", "--tracking-uri", archived.uri, *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert not (tmp_path / "b").exists()


def test_no_source(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any tracking URI it says how to give one; MLflow's variable is one way, mlflow.db here another."""
    monkeypatch.chdir(tmp_path)
    done = command("pack", "b")
    assert done.code == 2
    assert "MLFLOW_TRACKING_URI" in done.err


def test_mlflows_own_variable(command: Command, archived: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI names the source, as everywhere in MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", archived.uri)
    assert command("pack", tmp_path / "b", "--experiment", "a").code == 0


def test_foreign_place(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A folder with other files in it is refused and left as it is."""
    (tmp_path / "photo.jpg").write_bytes(b"x")
    done = command("pack", tmp_path, "--tracking-uri", archived.uri)
    assert done.code == 1
    assert "holds other files" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_in_the_path(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A place below a file is refused with a sentence, without the words of the system."""
    (tmp_path / "plain.txt").write_text("x")
    done = command("pack", tmp_path / "plain.txt" / "o", "--tracking-uri", archived.uri)
    assert done.code == 1
    assert "plain.txt/o: part of the path is a file\nhint: " in done.err
    assert "Errno" not in done.err


def test_features_for_writers(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A bundle that needs a feature to be written into is read, and refused to `pack` with the next step."""
    newer = tmp_path / "newer"
    shutil.copytree(archived.bundle, newer)
    marker = newer / "mlflow-bundle.json"
    says = json.loads(marker.read_text())
    says["requires"]["write"] = ["tomorrow"]
    marker.write_text(json.dumps(says))
    assert command("ls", newer).code == 0
    done = command("pack", newer, "--tracking-uri", archived.uri)
    assert done.code == 1
    assert "lacks: tomorrow\nhint: a newer mlflow-bundle writes it" in done.err


def test_unreadable_files(command: Command, archived: Archived, tmp_path: Path) -> None:
    """What cannot be read fails the pack with 1 and nothing committed, or with --allow-partial gives a partial one and 3."""
    database = _with_unreachable_artifacts(archived, tmp_path)
    words = ["pack", tmp_path / "b", "--tracking-uri", f"sqlite:///{database}", "--experiment", "a"]
    done = command(*words)
    assert done.code == 1
    assert "nothing was committed" in done.err
    assert "--allow-partial" in done.err
    problems = json.loads(command(*words, "--json").err)["error"]["problems"]
    assert problems[0]["runs"] == [archived.runs["b/c"]]
    assert command("log", tmp_path / "b").code == 1
    partial = command(*words, "--allow-partial")
    assert partial.code == 3
    assert "the snapshot is partial: 1 thing could not be read" in partial.err
    assert "could not be read (1):" in command("show", tmp_path / "b").out
    assert "lacks 1 thing" in command("log", tmp_path / "b").out


def _with_unreachable_artifacts(archived: Archived, folder: Path) -> Path:
    """A copy of the database in which a run's artifacts lie where no file system is."""
    database = folder / "copy.db"
    shutil.copy(archived.uri.removeprefix("sqlite:///"), database)
    with sqlite3.connect(database) as connection:
        connection.execute("update runs set artifact_uri = 'nonsense://x/y' where run_uuid = ?", [archived.runs["b/c"]])
    connection.close()
    return database


def test_files_that_may_be_missing_are_told_last(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact folder that is not there is no proof of a loss: a first snapshot is complete, and the last line names it."""
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "gone" / "1")))
    done = command("pack", tmp_path / "b", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert done.code == 0, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("note: the files of 1 run lie below ")
    assert str(tmp_path / "gone") in last
    with mlflow_bundle.open(tmp_path / "b") as archive:
        assert archive.snapshot.state == "complete"
