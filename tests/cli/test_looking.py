"""``ls``, ``show`` and ``log``: what people and programs see of an archive."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from rich.cells import cell_len

import mlflow_bundle
from mlflow_bundle._storage import open_storage
from mlflow_bundle.cli._curves import curve
from mlflow_bundle.cli._output import clean
from mlflow_bundle.entities import KeyValue, ModelInput, ModelOutput, ModelVersion
from tests.building import everything_of, pack_content
from tests.cli.conftest import EVIL, START, Archived, Command, in_terminal


def test_experiments(command: Command, archived: Archived) -> None:
    """One line an experiment; deleted ones are marked; the long form has state, runs and time."""
    names = command("ls", archived.bundle).out.splitlines()
    assert set(names) == {"Default", "churn", "a", "a/b", clean(EVIL), "gone (deleted)"}
    long = command("ls", "-l", archived.bundle).out
    assert "ID  STATE" in long
    assert any(line.split()[:3] == ["1", "active", "4"] and line.endswith("churn") for line in long.splitlines())


def test_runs(command: Command, archived: Archived) -> None:
    """One line a run, its id first; the long form has short ids that still lead to the run."""
    lines = command("ls", archived.bundle, "churn").out.splitlines()
    assert lines[0].split() == [archived.runs["parent"], "parent"]
    assert len(lines) == 4
    row = command("ls", "-l", archived.bundle, "churn").out.splitlines()[1].split()
    assert row[1:] == ["FINISHED", "2023-11-14", "22:13", "11", "4", "parent"]
    assert archived.runs["parent"].startswith(row[0])
    assert command("show", archived.bundle, row[0]).code == 0


def test_files(command: Command, archived: Archived) -> None:
    """Folders end with a slash; each line continues the path that was given."""
    listed = command("ls", archived.bundle, "churn/parent").out.splitlines()
    assert set(listed) == {"artifacts/model/", "artifacts/plain.txt", "artifacts/odd\\n\\x1b[2J.txt"}
    assert set(command("ls", archived.bundle, "churn/parent/artifacts/model").out.splitlines()) == {"deep er/", "weights.txt"}
    long = command("ls", "-l", archived.bundle, "churn/parent/artifacts/model").out
    assert "1 file" in long
    assert "7 B" in long
    assert command("ls", archived.bundle, "churn/parent/artifacts/plain.txt").out == "plain.txt\n"
    assert command("ls", archived.bundle, "churn/child").out == ""


def test_ls_json(command: Command, archived: Archived) -> None:
    """The JSON form has exact names and every count."""
    top = json.loads(command("ls", archived.bundle, "--json").out)
    assert (top["kind"], top["bundle"]) == ("bundle", archived.bundle)
    by_name = {entry["name"]: entry for entry in top["entries"]}
    assert (by_name[EVIL]["runs"], by_name["gone"]["lifecycle_stage"]) == (1, "deleted")
    runs = json.loads(command("ls", archived.bundle, "churn", "--json").out)
    assert (
        runs["entries"][0] | {"metric_points": 11, "files": 4, "start_time": START, "status": "FINISHED"} == runs["entries"][0]
    )
    files = json.loads(command("ls", archived.bundle, "churn/parent", "--json").out)["entries"]
    assert {"kind": "folder", "name": "artifacts/model/", "files": 2, "size": 13} in files
    assert "artifacts/odd\n\x1b[2J.txt" in {entry["name"] for entry in files}


@pytest.mark.parametrize("words", [["ls"], ["ls", "-l"], ["ls", "churn/parent"], ["show", "churn/parent"], ["log"], ["show"]])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_names_never_reach_the_terminal_raw(command: Command, archived: Archived, words: list[str], form: list[str]) -> None:
    """No control character, escape sequence or mark of direction of any name, tag or path is printed, in no form."""
    name, *rest = words
    for extra in ([], [EVIL], [f"{EVIL}/{EVIL}"]) if words in (["ls"], ["show"]) else ([],):
        done = command(name, archived.bundle, *rest, *extra, *form)
        assert (done.code, done.err) == (0, "")
        assert done.out.replace("\n", "").isprintable()


def test_errors_do_not_print_names_raw(command: Command, archived: Archived) -> None:
    """Neither do errors that quote what was asked for."""
    done = command("show", archived.bundle, f"{EVIL}/\x1b[2Jnothing")
    assert done.code == 1
    assert done.err.replace("\n", "").isprintable()


def test_show_snapshot(command: Command, archived: Archived) -> None:
    """The overview has digests, state, source, scope and counts."""
    with mlflow_bundle.open(archived.bundle) as bundle:
        root, logical, stem = bundle.root_digest, bundle.snapshot.logical.root, bundle.snapshot_id
    out = command("show", archived.bundle).out
    for text in (root, logical, f"snapshot {stem}  complete", "6 experiments, 8 runs, 81 points, 4 files", "everything"):
        assert text in out
    document = json.loads(command("show", archived.bundle, "--json").out)
    assert (document["root_digest"], document["logical_root"], document["counts"]["run"]) == (root, logical, 8)
    assert (document["snapshots"], document["state"], document["problems"]) == (1, "complete", [])


def test_show_experiment(command: Command, archived: Archived) -> None:
    """An experiment with its attributes and what its runs add up to."""
    document = json.loads(command("show", archived.bundle, "churn", "--json").out)
    assert (document["kind"], document["runs"], document["run_states"]) == ("experiment", 4, {"FINISHED": 4})
    assert (document["metric_points"], document["files"]) == (41, 4)
    out = command("show", archived.bundle, "churn").out
    assert "4 (4 FINISHED)" in out
    assert "artifact location" in out


def test_show_run(command: Command, archived: Archived) -> None:
    """A run with everything but its histories: attributes, params, tags, latest metrics, NaN too, and files."""
    run = archived.runs["parent"]
    document = json.loads(command("show", archived.bundle, run[:12], "--json").out)
    assert (document["run_id"], document["experiment_name"], document["metric_points"]) == (run, "churn", 11)
    latest = {point["key"]: point for point in document["latest_metrics"]}
    assert latest["loss"] == {"key": "loss", "value": 0.1, "timestamp": START + 9, "step": 9}
    assert latest["not a number"]["value"] == "NaN"
    assert {"key": "note", "value": "two\nlines \x1b[1m"} in document["tags"]
    assert {file["path"] for file in document["files"]} >= {"plain.txt", "model/weights.txt"}
    out = command("show", archived.bundle, "churn/parent").out
    for text in (
        "params (1):",
        "  rate  0.1",
        "two\\nlines \\x1b[1m",
        "  loss          0.1",
        "NaN",
        "files (4, ",
        "2023-11-14 22:13:20 UTC",
    ):
        assert text in out
    assert json.loads(command("show", archived.bundle, "churn/child", "--json").out)["files"] == []


def test_show_prints_no_language(command: Command, tmp_path: Path) -> None:
    """What has parts is a line of JSON each, and logged models of a run are lines like its datasets: no Python, no ``\\n``."""
    content, tags = everything_of(2), (KeyValue(key="größe", value="two\nlines \u202e"), KeyValue(key="b", value=""))
    linked = {"model_inputs": (ModelInput(model_id="m-0001"),), "model_outputs": (ModelOutput(model_id="m-0000", step=1234),)}
    content.runs[0] = structs.replace(content.runs[0], **linked)
    content.entities = [
        structs.replace(record, tags=tags) if isinstance(record, ModelVersion) else record for record in content.entities
    ]
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content)
    lines = command("show", str(tmp_path / "b"), "shop/1").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.split() == ["tags", "2"])
    shown = [line.strip() for line in lines[at + 1 : at + 3]]
    assert shown == ['{"key": "größe", "value": "two\\nlines \\u202e"}', '{"key": "b", "value": ""}']
    assert [json.loads(line)["value"] for line in shown] == [tag.value for tag in tags]
    run = command("show", str(tmp_path / "b"), content.runs[0].run_id).out
    assert "{'" not in run
    lines = run.splitlines()
    assert "model read m-0001" in lines
    assert "model made m-0000 (step 1,234)" in lines
    assert not any(line.startswith(("model inputs", "model outputs")) for line in lines)


def test_show_what_cannot_be_shown(command: Command, archived: Archived) -> None:
    """A file is not shown but printed with another command, and says so."""
    done = command("show", archived.bundle, "churn/parent/artifacts/plain.txt")
    assert done.code == 2
    assert "mlflow-bundle cat" in done.err


def test_log(command: Command, archived: Archived, tmp_path: Path) -> None:
    """Every snapshot with its state, scope, counts, size and root digest, the newest first; one of them on request."""
    stems = []
    for experiment in ("a", "churn"):
        report = mlflow_bundle.pack(experiment, tmp_path / "b", tracking_uri=archived.uri)
        stems.append(report.snapshot)
    out = command("log", tmp_path / "b").out
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("snapshot")] == [f"snapshot {stem}  complete" for stem in reversed(stems)]
    assert f"  root  {report.root_digest}" in lines
    assert "  of    --experiment churn" in lines
    assert any(line.startswith("  has   1 experiment, 4 runs, 41 points, 4 files") for line in lines)
    document = json.loads(command("log", tmp_path / "b", "--json").out)
    assert [entry["snapshot"] for entry in document["snapshots"]] == stems[::-1]
    assert document["snapshots"][0]["changes"]["run"] == 3
    assert document["snapshots"][1]["changes"]["run"] == 1
    assert document["snapshots"][1]["new_objects"] == document["snapshots"][1]["objects"]
    assert any(line.startswith("  adds  ") and "+3 runs" in line for line in lines)
    assert document["snapshots"][0]["root_digest"] == report.root_digest
    one = json.loads(command("log", tmp_path / "b", "--json", "--snapshot", stems[0]).out)
    assert [entry["counts"]["run"] for entry in one["snapshots"]] == [1]
    older = json.loads(command("ls", tmp_path / "b", "--snapshot", stems[0], "--json").out)
    assert [entry["name"] for entry in older["entries"]] == ["a"]


def test_trees(command: Command, archived: Archived) -> None:
    """Experiments, runs below their parents, files below their folders; names harmless; nothing cut in a pipe."""
    out = command("ls", archived.bundle, "--tree").out
    lines = out.splitlines()
    assert lines[0].endswith(" experiments")
    parent, child = (
        lines.index(f"│   ├── {archived.runs['parent']} parent  4 files"),
        f"{archived.runs['child']} child  0 files",
    )
    assert lines[parent + 1] == f"│   │   └── {child}"
    assert "\x1b" not in out
    run = command("ls", archived.bundle, "churn/parent", "--tree").out.splitlines()
    assert run[0] == f"{archived.runs['parent']} parent"
    (folder,) = [number for number, line in enumerate(run) if line.endswith("model/")]
    assert "    " in run[folder + 1][:4] or "│" in run[folder + 1][:4]
    assert any("weights.txt  " in line for line in run)
    below = command("ls", archived.bundle, "churn/parent/artifacts/model", "--tree").out
    assert below.splitlines()[0] == "model"
    assert "weights.txt" in below


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_curves_are_for_terminals(command: Command, archived: Archived) -> None:
    """On a terminal each metric has its curve; in a pipe there is its time instead."""
    shown = in_terminal(["show", archived.bundle, "churn/parent"], "stdout")
    (loss,) = [line for line in shown.splitlines() if line.strip().startswith("loss")]
    assert "█" in loss
    assert "▁" in loss
    assert not {"█", "▁"} & set(command("show", archived.bundle, "churn/parent").out)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        ([math.nan], ""),
        ([3.0], "▄"),
        ([1.0, 1.0], "▄▄"),
        ([0.0, 1.0], "▁█"),
        ([0.0, math.nan, math.inf, 7.0], "▁  █"),
        ([-1e308, 1e308], "▁█"),
        ([5e-324, 0.0], "█▁"),
        (list(range(8)), "▁▂▃▄▅▆▇█"),
        (list(range(160)), "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"),
    ],
)
def test_curves(values: list[float], text: str) -> None:
    """A curve spans the finite values from the lowest to the highest block, in at most 16 letters."""
    assert curve(np.array(values)) == text


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_of_80_columns(archived: Archived) -> None:
    """On a terminal, everything but addresses fits into its width."""
    for words in (
        ["ls", "-l"],
        ["ls", "-l", "churn"],
        ["ls", "-l", EVIL],
        ["ls", "-l", "churn/parent/artifacts"],
        ["log"],
        ["show"],
        ["show", "churn/parent"],
        ["ls", "--tree"],
        ["ls", "--tree", "churn/parent"],
    ):
        name, *rest = words
        options = [word for word in rest if word.startswith("-")]
        lines = in_terminal([name, *options, archived.bundle, *rest[len(options) :]], "stdout").splitlines()
        assert lines
        addresses = (archived.bundle, archived.uri, "artifact uri")
        assert [line for line in lines if cell_len(line) > 80 and not any(word in line for word in addresses)] == []
