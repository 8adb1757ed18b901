"""``verify``: no problems end with 0, problems are data with 4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mlflow_bundle
from tests.cli.conftest import Archived, Command


@pytest.mark.parametrize("options", [[], ["--level", "structure"], ["--level", "tables"], ["--subset", "2/3"]])
def test_whole(command: Command, archived: Archived, options: list[str]) -> None:
    """A whole bundle has no problems at any level: nothing on stdout, a summary on stderr."""
    done = command("verify", archived.bundle, *options)
    assert (done.code, done.out) == (0, "")
    assert "no problems at level " in done.err
    assert mlflow_bundle.open(archived.bundle).root_digest in done.err
    document = json.loads(command("verify", archived.bundle, *options, "--json").out)
    assert (document["ok"], document["problems"]) == (True, [])
    assert bool(document["not_covered"][1:]) == bool(options)


def test_damage(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A flipped byte and a missing object each give a line with code and object, and the exit code is 4."""
    bundle = tmp_path / "b"
    shutil.copytree(archived.bundle, bundle)
    metrics = next((bundle / "objects/metrics").iterdir())
    data = bytearray(metrics.read_bytes())
    data[len(data) // 2] ^= 1
    metrics.chmod(0o644)
    metrics.write_bytes(data)
    next((bundle / "objects/packs").rglob("*.zip")).unlink()
    done = command("verify", bundle)
    assert done.code == 4
    assert len(done.out.splitlines()) >= 2
    assert metrics.name in done.out
    assert "problem" in done.err
    document = json.loads(command("verify", bundle, "--json").out)
    assert not document["ok"]
    assert all({"code", "message"} <= problem.keys() for problem in document["problems"])
    assert {archived.runs["parent"]} <= {run for problem in document["problems"] for run in problem["runs"]}


def test_what_cannot_even_be_read(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A damaged marker is a problem that was found, not a failure to look."""
    bundle = tmp_path / "b"
    shutil.copytree(archived.bundle, bundle)
    marker = bundle / "mlflow-bundle.json"
    marker.chmod(0o644)
    marker.write_text("{torn")
    done = command("verify", bundle)
    assert done.code == 4
    assert "mlflow-bundle.json" in done.out
    document = json.loads(command("verify", bundle, "--json").out)
    assert (document["ok"], len(document["problems"])) == (False, 1)


@pytest.mark.parametrize("subset", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_wrong_subset(command: Command, archived: Archived, subset: str) -> None:
    """A part that does not exist is a wrong use."""
    done = command("verify", archived.bundle, "--subset", subset)
    assert done.code == 2
    assert "K/N" in done.err


def test_all_snapshots(command: Command, archived: Archived, tmp_path: Path) -> None:
    """Every snapshot is checked on request, and one of them or all, not both."""
    reports = [mlflow_bundle.pack(name, tmp_path / "b", tracking_uri=archived.uri) for name in ("a", "churn")]
    done = command("verify", tmp_path / "b", "--all-snapshots", "--json")
    assert done.code == 0
    assert set(json.loads(done.out)["snapshots"]) == {report.snapshot for report in reports}
    assert command("verify", tmp_path / "b", "--all-snapshots", "--snapshot", reports[0].snapshot).code == 2


def test_older_snapshot(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A snapshot is chosen by the beginning of its id."""
    first = mlflow_bundle.pack("a", tmp_path / "b", tracking_uri=archived.uri)
    mlflow_bundle.pack(None, tmp_path / "b", tracking_uri=archived.uri)
    done = command("verify", tmp_path / "b", "--snapshot", first.root_digest[:20], "--json")
    assert done.code == 0
    assert json.loads(done.out)["snapshot"] == first.snapshot


@pytest.mark.parametrize("words", [["verify"], ["ls"], ["log"]])
def test_a_file_that_is_no_zip_file(command: Command, tmp_path: Path, words: list[str]) -> None:
    """No bundle is there, whatever the name of the file promises: 10, and one sentence."""
    (tmp_path / "bad.zip").write_bytes(b"no zip\n")
    done = command(*words, tmp_path / "bad.zip")
    assert (done.code, done.out) == (10, "")
    assert "the file is not a ZIP file" in done.err
