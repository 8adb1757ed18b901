"""The demo really does what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow_bundle
from tests.cli.conftest import Command, process


def test_demo(tmp_path: Path) -> None:
    """Each step is shown with its command and its output, and both archives have one logical root."""
    done = process("demo", tmp_path / "tour")
    assert (done.code, done.err) == (0, ""), done.out
    for text in (
        "$ python train.py",
        "$ mlflow-bundle pack churn.mlbundle --tracking-uri sqlite:///training.db",
        "packed 2 experiments, 5 runs, 321 points, 4 files",
        "no problems at level full",
        "restored 5 runs, 321 points, 4 files",
        "They are the same.",
    ):
        assert text in done.out
    roots = []
    for name in ("churn", "again"):
        with mlflow_bundle.open(tmp_path / "tour" / f"{name}.mlbundle") as bundle:
            roots.append(bundle.snapshot.logical.root)
            assert done.out.count(bundle.snapshot.logical.root) == 2
    assert roots[0] == roots[1]


def test_demo_json(tmp_path: Path) -> None:
    """The JSON form has every command with its exit code, seconds and output."""
    done = process("demo", tmp_path, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["equal"]
    assert document["folder"] == str(tmp_path)
    assert {step["exit_code"] for step in document["steps"]} == {0}


def test_demo_needs_room(command: Command, tmp_path: Path) -> None:
    """A folder that holds something is refused."""
    (tmp_path / "mine").write_text("")
    done = command("demo", tmp_path)
    assert done.code == 2
    assert "is not empty" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
