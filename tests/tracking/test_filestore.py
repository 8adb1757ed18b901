"""File stores are read straight from their folders, of every release, and nothing of them is lost or left out in silence."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec import UNSET

import mlflow_bundle as bundle
from mlflow_bundle import entities as e
from mlflow_bundle.errors import CorruptError, IncompleteError, NotFoundError, UnsupportedError, UsageError
from mlflow_bundle.kinds import order_key
from mlflow_bundle.tracking._connect import connect_source, resolve_tracking_uri
from mlflow_bundle.tracking._port import ROW_SCHEMAS, SERIES_SCHEMA, EntityQuery, RunQuery
from mlflow_bundle.tracking.filestore import _read
from mlflow_bundle.tracking.filestore._layout import read_pairs
from mlflow_bundle.tracking.filestore._points import MODEL_LINES, RUN_LINES, PointFile, read_points
from mlflow_bundle.tracking.filestore._read import FileSource
from tests.fixtures.filestores import OLD_EXPERIMENT, OLD_RUN, mlflow_answers, write_tree
from tests.fixtures.server import ServerFactory

RUN = "a" * 32


def read_all(source: FileSource, query: RunQuery | None = None) -> list[e.Run]:
    return [run for batch in source.runs(query or RunQuery()) for run in batch]


def entities(source: FileSource, kind: str, query: EntityQuery | None = None) -> list[Any]:
    return [record for batch in source.entities(kind, query or EntityQuery()) for record in batch]


def points_of(source: FileSource, run_id: str) -> dict[str, list[tuple[int, int, str]]]:
    found: dict[str, list[tuple[int, int, str]]] = {}
    for table in source.metrics([run_id]):
        assert table.schema == SERIES_SCHEMA
        for row in table.to_pylist():
            found.setdefault(row["key"], []).append((row["step"], row["timestamp"], repr(row["value"])))
    return found


def named(runs: list[e.Run], name: str) -> e.Run:
    return next(run for run in runs if run.run_name == name)


def experiment_folder(store: Path, name: str) -> Path:
    return next(meta.parent for meta in store.rglob("meta.yaml") if f"name: {name}\n" in meta.read_text())


def small_store(root: Path, files: dict[str, str] | None = None) -> Path:
    """A store with one run, and whatever files a test wants in it."""
    run = OLD_RUN.format(run=RUN)
    return write_tree(
        root, {"0/meta.yaml": OLD_EXPERIMENT, f"0/{RUN}/meta.yaml": run, f"0/{RUN}/metrics/": "", **(files or {})}
    )


# -- the whole of a store -------------------------------------------------------------------------------------------------


def explained(found: dict[str, Any]) -> dict[str, Any]:
    """MLflow's answers without what a file store and a database say differently of the same thing."""
    found["experiments"].pop("0")  # made anew with the database
    for run in found["runs"].values():
        for key, points in run["histories"].items():
            # A database keeps a repeated point once, SQLite has no -0.0; MLflow's file store forgets steps beside a dataset.
            no_step = key in ("with data", "acc")
            run["histories"][key] = sorted({(0 if no_step else s, t, "0.0" if v == "-0.0" else v) for s, t, v in points})
        run["latest"].pop("acc", None)
    for model in found["models"].values():
        model["status_message"] = model["status_message"] or None  # REST has no null texts
        model["metrics"] = [
            row for row in model["metrics"] if row[3] == "0.7"
        ]  # SQLite has 0 for NaN; a file store shows only the latest
    for trace in found["traces"].values():
        for assessment in trace["info"]["assessments"]:
            assessment.setdefault("valid", True)  # nothing says otherwise of an expectation
    return found


@pytest.mark.slow
def test_a_file_store_comes_back_as_a_database_that_answers_the_same(
    file_store: Path, tmp_path: Path, empty_mlflow: str, start_server: ServerFactory
) -> None:
    """Pack ./mlruns, verify, unpack into SQLite: a new server says of everything what MLflow says of the file store."""
    packed = bundle.pack(bundle=tmp_path / "all.mlbundle", tracking_uri=file_store)
    assert packed.state == "complete"
    assert packed.counts["run"] == 10
    assert not bundle.verify(tmp_path / "all.mlbundle").problems
    report = bundle.unpack(tmp_path / "all.mlbundle", tracking_uri=empty_mlflow)
    assert not report.problems
    server = start_server(backend_store_uri=empty_mlflow, serve_artifacts=False)
    before, after = (explained(mlflow_answers(uri, tmp_path)) for uri in (f"file://{file_store}", server.url))
    for part, content in before.items():
        assert content.keys() == after[part].keys(), part
        for identity, answer in content.items():
            assert answer == after[part][identity], (part, identity)
    assert len(before["runs"]) == 10
    assert len(before["traces"]) == 6
    assert sum(len(run["files"]) for run in before["runs"].values()) >= 3


def test_packing_again_gives_the_same_and_writes_nothing(
    file_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second pack, under another spelling of the same folder, has the same logical root and no new object."""
    monkeypatch.chdir(file_store.parent)
    first = bundle.pack(bundle=tmp_path / "x.mlbundle", tracking_uri="./mlruns")
    for uri in (f"file://{file_store}", str(file_store), "mlruns"):
        again = bundle.pack(bundle=tmp_path / "x.mlbundle", tracking_uri=uri)
        assert (again.logical_root, again.new_objects) == (first.logical_root, 0), uri
        assert again.problems == ()
        assert again.notes == ()


def test_a_pack_of_a_file_store_does_not_import_mlflow(file_store: Path, tmp_path: Path) -> None:
    """Reading YAML and text needs no MLflow, which costs a second and 150 MB."""
    code = (
        "import sys, mlflow_bundle; mlflow_bundle.pack(bundle=sys.argv[2], tracking_uri=sys.argv[1]);"
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(file_store), str(tmp_path / "x.mlbundle")], check=True)


def test_records_come_in_archive_order_and_complete(file_store: Path) -> None:
    """Experiments, runs and entities are sorted by time and id; awkward texts, links and states are all there."""
    source = FileSource(str(file_store))
    experiments, runs = source.experiments(), read_all(source)
    kinds = {kind: entities(source, kind) for kind in source.kinds()}
    for records in (experiments, runs, *kinds.values()):
        assert [order_key(record) for record in records] == sorted(order_key(record) for record in records)
    states = {experiment.name: experiment.lifecycle_stage for experiment in experiments}
    assert states == {"Default": "active", "churn ü": "active", "elsewhere": "active", "doomed": "deleted"} | dict.fromkeys(
        ("models", "traces"), "active"
    )
    churn = next(experiment for experiment in experiments if experiment.name == "churn ü")
    assert {tag.key: tag.value for tag in churn.tags}["owner/team"] == "a"
    first = named(runs, "first")
    assert [(p.key, p.value) for p in first.params] == [("a/b/c", "1"), ("empty", ""), ("text", "x\r\ny ü\n")]
    assert {tag.key: tag.value for tag in first.tags}.items() >= {("nested/tag", "v"), ("lines", "one\ntwo\n")}
    assert (first.status, first.source_type, first.deleted_time) == ("FINISHED", "LOCAL", UNSET)
    dataset = first.inputs[0]
    assert (dataset.dataset.name, dataset.dataset.source_type) == ("data", "code")
    assert isinstance(dataset.dataset.profile, str)
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("k", "v"), ("mlflow.data.context", "training")]
    deleted = named(runs, "deleted")
    assert deleted.lifecycle_stage == "deleted"
    assert isinstance(deleted.deleted_time, int)
    assert named(runs, "failed").status == "FAILED"
    (model, doomed) = kinds["logged_model"]
    assert [link.model_id for link in named(runs, "reads").model_inputs] == [model.model_id]
    assert [(link.model_id, link.step) for link in named(runs, "makes").model_outputs] == [(model.model_id, 3)]
    assert (model.status, doomed.status, doomed.lifecycle_stage) == ("READY", "FAILED", "deleted")
    assert [(p.key, p.value) for p in model.params] == [("a", "1"), ("n/m", "x")]
    assert source.problems() == []
    source.close()


def test_the_registry_and_the_traces_of_a_file_store(file_store: Path) -> None:
    """Versions beside gaps, aliases, stages; traces with spans, judgements and metadata, also one of version 2 of the API."""
    source = FileSource(str(file_store))
    models = {model.name: model for model in entities(source, "registered_model")}
    assert models.keys() == {"churn.v1", "empty model ü", "own files", "greet"}
    assert [(a.alias, a.version) for a in models["churn.v1"].aliases] == [("champion", 10)]
    assert models["churn.v1"].description == "first\nsecond"
    versions = {version.version: version for version in entities(source, "model_version", EntityQuery(parents=("churn.v1",)))}
    assert set(versions) == set(range(1, 13))
    assert (versions[3].current_stage, versions[4].current_stage) == ("Deleted_Internal", "Production")
    (own,) = entities(source, "model_version", EntityQuery(ids=("own files/1",)))
    assert [info.path for info in source.artifacts(own).walk()] == ["model.bin"]
    traces = entities(source, "trace")
    judged = next(trace for trace in traces if len(trace.assessments) == 3)
    by_name = {(a.assessment_name, a.valid): a for a in judged.assessments}
    assert (by_name["good", False].value, by_name["good", True].value) == ("true", "false")
    assert by_name["good", True].overrides == by_name["good", False].assessment_id
    error = json.loads(str(by_name["broken", True].error))
    assert error == {"error_code": "E", "error_message": "message", "stack_trace": "stack"}
    assert judged.client_request_id == "c0"
    assert not any(tag.key == "mlflow.artifactLocation" for tag in judged.tags)
    assert {entry.key: entry.value for entry in judged.trace_metadata}["mlflow.trace.session"] == "s1"
    (old,) = [trace for trace in traces if trace.request_time == 1_500_000_000_000]
    assert (old.state, old.execution_duration) == ("IN_PROGRESS", UNSET)
    ids = [trace.trace_id for trace in traces]
    spans = pa.concat_tables(source.rows("spans/1", ids))
    assert spans.schema == ROW_SCHEMAS["spans/1"]
    counts = np.bincount(spans.column("owner").to_numpy(), minlength=len(ids))
    assert counts[ids.index(judged.trace_id)] == 2
    assert counts[ids.index(old.trace_id)] == 0
    run = next(run for run in read_all(source) if run.run_name and run.experiment_id == judged.experiment_id)
    assert len(entities(source, "trace", EntityQuery(run_ids=(run.run_id,)))) == 1
    source.close()


def test_metrics_of_logged_models_have_their_runs_and_datasets(file_store: Path) -> None:
    """Each line of a logged model's metric file is a row, with and without a dataset."""
    source = FileSource(str(file_store))
    ids = [model.model_id for model in entities(source, "logged_model")]
    rows = pa.concat_tables(source.rows("model_metrics/1", ids)).to_pylist()
    assert [(row["owner"], row["step"], row["timestamp"]) for row in rows] == [
        (0, -2, 1_700_000_000_000),
        (0, 1, 1_700_000_000_001),
        (0, 1, 1_700_000_000_002),
    ]
    assert [row["dataset_name"] for row in rows] == [None, None, "data"]
    assert math.isnan(rows[1]["value"])
    assert all(row["run_id"] == named(read_all(source), "makes").run_id for row in rows)
    source.close()


def test_metric_histories_are_those_of_the_files(file_store: Path) -> None:
    """Repeated points, infinities, NaN, -0.0 and keys with slashes come as they were logged, and steps beside a dataset."""
    source = FileSource(str(file_store))
    found = points_of(source, named(read_all(source), "first").run_id)
    assert found.keys() == {"train/loss", "odd values", "train/acc: 5-x", "train.loss", "with data"}
    assert len(found["train/loss"]) == 502
    assert found["train/loss"][3:6] == [(3, 1_700_000_000_003, "0.25")] * 3
    assert [value for _, _, value in found["odd values"]] == [
        "nan",
        "inf",
        "-inf",
        "-0.0",
        "5e-324",
        repr(1.7976931348623157e308),
        "0.1",
    ]
    assert found["train/acc: 5-x"] == [(-7, 1, "0.5")]
    assert found["with data"] == [(4, 1_700_000_000_004, "0.75")]
    source.close()


def test_a_run_that_is_longer_than_a_chunk_stays_in_order(file_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the chunks: the same points in the same order, owners never interleaved."""
    source = FileSource(str(file_store))
    ids = [run.run_id for run in read_all(source)]
    whole = pa.concat_tables(source.metrics(ids)).combine_chunks()
    monkeypatch.setattr(_read, "CHUNK_BYTES", 1)
    tables = list(source.metrics(ids))
    assert len(tables) > 5
    pieces = pa.concat_tables(tables).combine_chunks()
    assert pieces.drop_columns(["value"]).equals(whole.drop_columns(["value"]))
    np.testing.assert_array_equal(pieces.column("value").to_numpy(), whole.column("value").to_numpy())
    source.close()


# -- metric files ---------------------------------------------------------------------------------------------------------


def parsed(
    folder: Path, *contents: str, lines: Any = RUN_LINES, schema: pa.Schema = SERIES_SCHEMA
) -> tuple[list[Any], list[str]]:
    """What is read of files with these contents: rows, and the messages of what cannot be read."""
    files = []
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content.encode())
        files.append(PointFile(number, f"k{number}", str(folder / str(number))))
    unreadable: list[Any] = []
    rows = read_points(files, schema, lines, unreadable).to_pylist()
    rows.sort(key=lambda row: row["owner"])
    return rows, [error.message for _, error in unreadable]


def test_lines_of_all_releases_mean_what_they_mean_to_mlflow(tmp_path: Path) -> None:
    """Two, three and five fields, mixed in one file or not, with Windows line ends."""
    contents = (
        "5 0.5\n6 1\n",
        "5 0.5 1\n6 nan 2\n",
        "5 0.5 1 data d1\n",
        "5 0.5\n6 1e3 7\n8 -inf 9 my data d2\n",
        "1 2 3\r\n4 5 6\r\n",
    )
    rows, wrong = parsed(tmp_path, *contents)
    assert wrong == []
    shown = [(row["owner"], row["timestamp"], repr(row["value"]), row["step"]) for row in rows]
    assert shown == [
        (0, 5, "0.5", 0),
        (0, 6, "1.0", 0),
        (1, 5, "0.5", 1),
        (1, 6, "nan", 2),
        (2, 5, "0.5", 1),
        (3, 5, "0.5", 0),
        (3, 6, "1000.0", 7),
        (3, 8, "-inf", 9),
        (4, 1, "2.0", 3),
        (4, 4, "5.0", 6),
    ]


@pytest.mark.parametrize(
    ("content", "line", "kept"),
    [
        ("1 0.5 1\n2\n3 0.5 3\n", 2, 2),
        ("1 0.5 1\n\n3 0.5 3\n", 2, 2),
        ("1 half 1\n", 1, 0),
        ("1 0.5 1\n2 0.5 x\n", 2, 1),
        ("1 0.5 1.5\n", 1, 0),
        ("99999999999999999999 0.5 1\n", 1, 0),
        ("1 0.5 1 y\n", 1, 0),
        ("1 True 1\n", 1, 0),
    ],
)
def test_a_line_that_is_no_point_is_named(tmp_path: Path, content: str, line: int, kept: int) -> None:
    """The file and the line are named, all other points are kept, and so are those of files beside it."""
    rows, wrong = parsed(tmp_path, content, "1 0.5 1\n")
    assert len(rows) == kept + 1
    (message,) = wrong
    assert f"{tmp_path}/0: line {line} " in message


def test_an_empty_metric_file_is_named(tmp_path: Path) -> None:
    """MLflow cannot read a run that has one."""
    rows, (message,) = parsed(tmp_path, "")
    assert rows == []
    assert message == f"{tmp_path}/0: the metric file is empty"


@pytest.mark.parametrize(
    ("content", "kept"),
    [("1 0.5 1\n2 0.8", 1), ("1 0.5 1\n2 0.75 1", 1), ("1 0.5 1", 0), ("1 0.5 1\n2 0.5 2 data d", 1), ("1 0.5\n2 1 3\n4", 2)],
)
def test_a_last_line_that_may_be_cut_off_is_no_point(tmp_path: Path, content: str, kept: int) -> None:
    """A last line without an end is named and left out, because digits of its step may be missing."""
    rows, (message,) = parsed(tmp_path, content)
    assert len(rows) == kept
    assert message.startswith(f"{tmp_path}/0: the last line has no end")


def test_what_is_being_written_is_looked_at_again(tmp_path: Path) -> None:
    """A tag that MLflow just emptied to write it anew has its new value; one that is empty for good is not waited for."""
    (tmp_path / "rewritten").write_text("")
    writer = threading.Timer(0.15, (tmp_path / "rewritten").write_text, ("new",))
    writer.start()
    unreadable: list[Any] = []
    (pair,) = read_pairs(str(tmp_path), unreadable)
    writer.join()
    assert (pair.value, unreadable) == ("new", [])
    for number in range(100):
        (tmp_path / f"{number}").write_text("")
        os.utime(tmp_path / f"{number}", (1, 1))
    before = time.monotonic()
    assert sum(pair.value == "" for pair in read_pairs(str(tmp_path), unreadable)) == 100
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    "value", ["0.1", "1e400", "-1E-3", "+5", "1_000.5", "inf", "-Infinity", "NaN", "4.9e-324", "123456789012345678901"]
)
def test_numbers_mean_what_they_mean_to_python(tmp_path: Path, value: str) -> None:
    """Columns are parsed as the very same doubles that MLflow's own reader makes of them."""
    rows, wrong = parsed(tmp_path, f"1 {value} 2\n", "7 0.25 3\n")
    assert wrong == []
    assert repr(rows[0]["value"]) == repr(float(value))
    assert rows[1]["value"] == 0.25


def test_the_metrics_of_models_may_have_datasets_with_spaces_in_their_names(tmp_path: Path) -> None:
    """MLflow writes such lines and cannot read them; the digest is the last field."""
    schema = ROW_SCHEMAS["model_metrics/1"]
    rows, wrong = parsed(
        tmp_path, "1 0.5 2 r1\n3 0.5 4 r1 my big data d1\n", "1 0.5 2 r1 x\n", lines=MODEL_LINES, schema=schema
    )
    assert [(row["run_id"], row["dataset_name"], row["dataset_digest"]) for row in rows] == [
        ("r1", None, None),
        ("r1", "my big data", "d1"),
    ]
    assert len(wrong) == 1


def test_points_are_read_in_columns(tmp_path: Path) -> None:
    """A hundred thousand points are read without a Python call for each of them."""
    store = small_store(tmp_path / "mlruns", {f"0/{RUN}/metrics/m": "".join(f"{n} {n / 7} {n}\n" for n in range(100_000))})
    source = FileSource(str(store))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        rows = sum(table.num_rows for table in source.metrics([RUN]))
    finally:
        sys.setprofile(None)
    assert rows == 100_000
    assert calls < 10_000


# -- which runs -----------------------------------------------------------------------------------------------------------


def test_queries_choose_runs(file_store: Path) -> None:
    """By experiment, id, time, lifecycle and MLflow's own filter strings, metrics included; parents and children."""
    source = FileSource(str(file_store))
    runs = read_all(source)
    first, child = named(runs, "first"), named(runs, "child")

    def names(**query: Any) -> set[Any]:
        return {run.run_name for run in read_all(source, RunQuery(**query))}

    assert names(run_ids=(first.run_id, "no such run")) == {"first"}
    assert names(experiment_ids=(first.experiment_id,)) >= {"first", "child", "deleted", "failed"}
    assert names(experiment_ids=("17",)) == set()
    assert names(until=1_600_000_000_000) == {"failed"}
    assert "failed" not in names(since=1_600_000_000_001)
    assert names(experiment_ids=(first.experiment_id,), lifecycle="deleted") == {"deleted"}
    assert names(filter="metrics.`train.loss` = 1 and params.`a/b/c` = '1'") == {"first"}
    assert names(filter="metrics.`train/loss` < 0.0021") == {"first"}
    assert names(filter="attributes.run_name = 'child'") == {"child"}
    assert names(filter="metrics.nothing > 1") == set()
    with pytest.raises(UsageError, match="wrong filter"):
        names(filter="nonsense ==")
    assert [run.run_id for run in source.runs_by_id([child.run_id, "x", first.run_id])] == [first.run_id, child.run_id]
    assert [run.run_id for run in source.children([first.run_id])] == [child.run_id]
    source.close()


def test_one_experiment_is_packed_without_the_others(file_store: Path, tmp_path: Path) -> None:
    """A selection by name takes along its own entities only."""
    packed = bundle.pack("traces", tmp_path / "x.mlbundle", tracking_uri=file_store)
    assert packed.counts["experiment"] == 1
    assert packed.counts["trace"] == 6
    assert "registered_model" not in packed.counts


# -- old, moved and damaged stores ----------------------------------------------------------------------------------------


def test_the_layout_of_the_first_releases(old_file_store: Path) -> None:
    """Ids as numbers, metrics without steps, names and sources in the YAML, relative locations."""
    source = FileSource(str(old_file_store))
    (experiment,) = source.experiments()
    assert experiment == e.Experiment(experiment_id="0", name="Default", artifact_location="./mlruns/0")
    (run,) = read_all(source)
    assert (run.run_id, run.experiment_id, run.run_name) == ("a1" * 16, "0", "old name")
    assert (run.status, run.source_type, run.source_name, run.entry_point_name) == ("FINISHED", "PROJECT", "train.py", "main")
    assert run.source_version == "3f786850e387550fdab836ed7e6dc881de23001b"
    assert points_of(source, run.run_id) == {
        "loss": [(0, 1_540_000_000, "0.5"), (0, 1_540_000_001, "0.25"), (0, 1_540_000_001, "0.25")],
        "later": [(0, 1_540_000_000, "0.5"), (7, 1_540_000_001_000, "0.25")],
    }
    assert [info.path for info in source.artifacts(run).walk()] == ["model/MLmodel"]
    assert source.problems() == []
    source.close()


def test_a_store_that_was_moved_gives_its_own_files(file_store: Path, tmp_path: Path) -> None:
    """Where the locations in the YAML lead nowhere, the folders of the store are read, and a note says so."""
    moved = shutil.copytree(file_store, tmp_path / "moved" / "mlruns")
    here = bundle.pack(bundle=tmp_path / "a.mlbundle", tracking_uri=file_store)
    for meta in [*moved.rglob("*.yaml"), *moved.rglob("mlflow.artifactLocation")]:
        meta.write_text(meta.read_text().replace(str(file_store.parent), "/no/such/place"))
    packed = bundle.pack(bundle=tmp_path / "b.mlbundle", tracking_uri=moved)
    assert packed.state == "complete"
    # The two that lie outside of the store did not move with it.
    assert packed.counts["file"] == here.counts["file"] - 2
    assert any("run artifact folders below /no/such/place/mlruns are not on this machine" in note for note in packed.notes)
    assert any("/no/such/place" in note and "nothing of them was archived" in note for note in packed.notes)


Damage = Callable[[Path], str]


def _cut(store: Path) -> str:
    meta = next(experiment_folder(store, "churn ü").glob("*/meta.yaml"))
    meta.write_bytes(meta.read_bytes()[:150])
    return str(meta)


def _empty(store: Path) -> str:
    meta = next(experiment_folder(store, "churn ü").glob("*/meta.yaml"))
    meta.write_bytes(b"")
    return str(meta)


def _cut_at_a_line(store: Path) -> str:
    meta = next(experiment_folder(store, "churn ü").glob("*/meta.yaml"))
    meta.write_text("".join(meta.read_text().splitlines(keepends=True)[:-1]))
    return str(meta)


def _no_meta(store: Path) -> str:
    meta = next(experiment_folder(store, "churn ü").glob("*/meta.yaml"))
    meta.unlink()
    return str(meta)


def _experiment(store: Path) -> str:
    meta = experiment_folder(store, "churn ü") / "meta.yaml"
    meta.write_text("name: [\n")
    return str(meta)


def _other_experiment(store: Path) -> str:
    meta = next(experiment_folder(store, "churn ü").glob("*/meta.yaml"))
    meta.write_text(meta.read_text().replace("experiment_id: '", "experiment_id: '9"))
    return str(meta)


def _metric(store: Path) -> str:
    metric = next(store.rglob("metrics/train.loss"))
    metric.write_bytes(b"1 0.5 1\n17\n")
    return str(metric)


def _param(store: Path) -> str:
    param = next(store.rglob("params/text"))
    param.write_bytes(b"\xff\xfe")
    return str(param)


def _dataset(store: Path) -> str:
    dataset = next(experiment_folder(store, "churn ü").glob("datasets/*/meta.yaml"))
    dataset.unlink()
    return str(dataset)


def _judgement(store: Path) -> str:
    judgement = next(store.rglob("assessments/*.yaml"))
    judgement.write_text("assessment_name: x\n")
    return str(judgement)


def _spans(store: Path) -> str:
    # The locations of a copy still lead to the original.
    for tag in store.rglob("mlflow.artifactLocation"):
        tag.write_text(str(tag.parent.parent / "artifacts"))
    next(store.rglob("traces.json")).write_text("{")
    return "traces.json"


def _logged_model(store: Path) -> str:
    meta = next(store.glob("*/models/*/meta.yaml"))
    meta.write_bytes(b"")
    return str(meta)


def _version(store: Path) -> str:
    meta = store / "models/churn.v1/version-5/meta.yaml"
    meta.write_text(meta.read_text().replace("version: 5", "version: 6"))
    return str(meta)


def _alias(store: Path) -> str:
    (store / "models/churn.v1/aliases/champion").write_text("ten")
    return str(store / "models/churn.v1/aliases/champion")


def _pipe(store: Path) -> str:
    path = next(store.rglob("params/text")).with_name("pipe")
    os.mkfifo(path)
    return str(path)


DAMAGE: tuple[Damage, ...] = (
    _cut, _empty, _cut_at_a_line, _no_meta, _experiment, _other_experiment, _metric, _param, _dataset, _judgement, _spans,
    _logged_model, _version, _alias, _pipe,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__[1:])
def test_nothing_damaged_is_skipped_in_silence(file_store_copy: Path, tmp_path: Path, damage: Damage) -> None:
    """Each kind of damage refuses the pack and names the file; a partial pack keeps all the rest and is verified."""
    path = damage(file_store_copy)
    place = tmp_path / "x.mlbundle"
    with pytest.raises(IncompleteError) as raised:
        bundle.pack(bundle=place, tracking_uri=file_store_copy)
    assert any(path in problem.message for problem in raised.value.problems)
    packed = bundle.pack(bundle=place, tracking_uri=file_store_copy, allow_partial=True)
    assert packed.state == "partial"
    assert any(path in problem.message for problem in packed.problems)
    assert packed.counts["run"] >= 5
    assert not bundle.verify(place).problems


def test_damage_elsewhere_does_not_touch_a_selection(file_store_copy: Path, tmp_path: Path) -> None:
    """A torn run of another experiment is no problem of this one; one that is named is an error that names the file."""
    path = _cut(file_store_copy)
    assert bundle.pack("traces", tmp_path / "x.mlbundle", tracking_uri=file_store_copy).state == "complete"
    source = FileSource(str(file_store_copy))
    with pytest.raises(CorruptError, match="the file is cut off"):
        read_all(source, RunQuery(run_ids=(Path(path).parent.name,)))
    source.close()


def test_folders_of_somebody_else_are_noted(file_store_copy: Path, tmp_path: Path) -> None:
    """A folder without any YAML is no run and no experiment, which a note says; YAML entries without a place, too."""
    (experiment_folder(file_store_copy, "traces") / "notebooks" / "deep").mkdir(parents=True)
    (file_store_copy / ".ipynb_checkpoints").mkdir()
    meta = file_store_copy / "models/greet/meta.yaml"
    meta.write_text(meta.read_text().replace("deployment_job_id: null", "deployment_job_id: job"))
    packed = bundle.pack(bundle=tmp_path / "x.mlbundle", tracking_uri=file_store_copy)
    assert packed.state == "complete"
    notes = "\n".join(packed.notes)
    assert "no run (for example" in notes
    assert ".ipynb_checkpoints" in notes
    assert "'deployment_job_id'" in notes


def test_a_run_in_two_places_is_kept_once(tmp_path: Path) -> None:
    """The second folder of the same id is a problem."""
    store = small_store(tmp_path / "mlruns")
    meta = OLD_RUN.format(run=RUN).replace("experiment_id: 0", "experiment_id: 1")
    write_tree(
        store, {"1/meta.yaml": OLD_EXPERIMENT.replace("experiment_id: 0", "experiment_id: 1"), f"1/{RUN}/meta.yaml": meta}
    )
    source = FileSource(str(store))
    assert len(read_all(source)) == 1
    (problem,) = source.problems()
    assert f"{store}/1/{RUN}: the run is in {store}/0/{RUN}, too; the run was left out" == problem.message
    assert (problem.kind, problem.id, problem.experiments, problem.runs) == ("run", RUN, ("1",), (RUN,))
    source.close()


def test_what_is_no_file_store_is_refused(tmp_path: Path, file_store: Path) -> None:
    """No such folder, a folder of something else (the artifacts of a database), another machine; nothing is restored there."""
    write_tree(tmp_path, {f"mlruns/1/{RUN}/artifacts/x": "x"})
    with pytest.raises(NotFoundError, match="is no file store") as raised:
        FileSource(str(tmp_path / "mlruns"))
    assert "sqlite:///mlflow.db" in str(raised.value.hint)
    with pytest.raises(NotFoundError, match="there is no folder"):
        connect_source(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="another machine"):
        connect_source("file://host/mlruns")
    bundle.pack("elsewhere", tmp_path / "x.mlbundle", tracking_uri=file_store)
    with pytest.raises(UnsupportedError, match="nothing can be restored into one"):
        bundle.unpack(tmp_path / "x.mlbundle", tracking_uri=tmp_path / "mlruns")


def test_the_default_is_mlruns_where_it_holds_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in MLflow: a file store with experiments goes before the embedded database, a folder of artifacts does not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="no MLflow server"):
        resolve_tracking_uri(None)
    write_tree(tmp_path, {"mlflow.db": "", f"mlruns/1/{RUN}/artifacts/x": "x"})
    assert resolve_tracking_uri(None) == "sqlite:///mlflow.db"
    small_store(tmp_path / "mlruns")
    assert resolve_tracking_uri(None) == "./mlruns"


# -- layouts between the first releases and today's -----------------------------------------------------------------------


def test_traces_as_version_2_of_the_api_wrote_them(tmp_path: Path) -> None:
    """MLflow 2.14 to 2.21 wrote other names into the YAML of a trace, and spans of another form."""
    folder = "0/traces/abc"
    meta = "execution_time_ms: 12\nexperiment_id: '0'\nrequest_id: abc\nstatus: OK\ntimestamp_ms: 1700000000000\n"
    span = {
        "name": "outer",
        "context": {"span_id": "0x00000000000000aa", "trace_id": "0x000000000000000000000000000000bb"},
        "parent_id": None,
        "start_time": 5,
        "end_time": 9,
        "status_code": "OK",
        "status_message": "",
        "attributes": {"mlflow.spanType": '"TOOL"'},
        "events": [],
    }
    store = small_store(
        tmp_path / "mlruns",
        {
            f"{folder}/trace_info.yaml": meta,
            f"{folder}/tags/mlflow.traceName": "outer",
            f"{folder}/request_metadata/k": "v",
            f"{folder}/artifacts/traces.json": json.dumps({"spans": [span]}),
        },
    )
    source = FileSource(str(store))
    (trace,) = entities(source, "trace")
    assert trace == e.Trace(
        trace_id="abc",
        experiment_id="0",
        request_time=1_700_000_000_000,
        execution_duration=12,
        state="OK",
        tags=(e.KeyValue(key="mlflow.traceName", value="outer"),),
        trace_metadata=(e.KeyValue(key="k", value="v"),),
    )
    (row,) = pa.concat_tables(source.rows("spans/1", ["abc"])).to_pylist()
    assert (row["name"], row["type"], row["status"], row["start_time_unix_nano"]) == ("outer", "TOOL", "OK", 5)
    assert json.loads(row["content"]) == span
    assert source.problems() == []
    source.close()


@pytest.mark.parametrize(("before", "after"), [("name: old name", "name: ''"), ("name: old name", "run_name: null")])
def test_the_name_of_a_run_may_be_in_its_tag_only(tmp_path: Path, before: str, after: str) -> None:
    """MLflow 1.x kept the name of a run in a tag; one without a name has none."""
    store = small_store(tmp_path / "mlruns")
    meta = store / f"0/{RUN}/meta.yaml"
    meta.write_text(meta.read_text().replace(before, after))
    assert read_all(FileSource(str(store)))[0].run_name is UNSET
    write_tree(store, {f"0/{RUN}/tags/mlflow.runName": "from the tag"})
    assert read_all(FileSource(str(store)))[0].run_name == "from the tag"


@pytest.mark.parametrize("in_trash", [False, True])
def test_deleted_experiments_are_found_by_their_place_and_by_their_state(tmp_path: Path, in_trash: bool) -> None:
    """An experiment in .trash is deleted whatever its YAML says, and so is one whose YAML says it."""
    meta = OLD_EXPERIMENT if in_trash else OLD_EXPERIMENT.replace("active", "deleted")
    home = ".trash/0" if in_trash else "0"
    artifact = f"{home}/{RUN}/artifacts/x.txt"
    run = OLD_RUN.format(run=RUN).replace("./mlruns", str(tmp_path / "mlruns"))
    store = write_tree(tmp_path / "mlruns", {f"{home}/meta.yaml": meta, f"{home}/{RUN}/meta.yaml": run, artifact: "x"})
    source = FileSource(str(store))
    assert [experiment.lifecycle_stage for experiment in source.experiments()] == ["deleted"]
    (found,) = read_all(source)
    assert [info.path for info in source.artifacts(found).walk()] == ["x.txt"]
    assert source.notes() == []
    source.close()


def test_repeated_metrics_of_a_logged_model_are_kept_once_in_a_database(
    file_store_copy: Path, tmp_path: Path, empty_mlflow: str
) -> None:
    """The same row twice is one row and a note, another value in its place a problem; NaN is 0 in SQLite, as in MLflow."""
    metric = next(file_store_copy.glob("*/models/*/metrics/acc"))
    lines = metric.read_text().splitlines(keepends=True)
    metric.write_text("".join([*lines, lines[-1], lines[0].replace(" 0.5 ", " 0.75 ")]))
    packed = bundle.pack(bundle=tmp_path / "x.mlbundle", tracking_uri=file_store_copy)
    assert packed.counts["model_metric_point"] == 5
    report = bundle.unpack(tmp_path / "x.mlbundle", tracking_uri=empty_mlflow)
    (problem,) = report.problems
    assert "1 metric rows have the key, step, timestamp and run of another one" in problem.message
    assert any("1 metric rows that repeat another one exactly are kept once" in note for note in report.notes)
    assert any("1 metric values that are not a number are 0 in SQLite" in note for note in report.notes)
    source = connect_source(empty_mlflow)
    ids = [record.model_id for batch in source.entities("logged_model", EntityQuery()) for record in batch]  # type: ignore[attr-defined]
    rows = pa.concat_tables(source.rows("model_metrics/1", ids)).to_pylist()
    assert [(row["step"], row["value"], row["dataset_name"]) for row in rows] == [
        (-2, 0.5, None),
        (1, 0.0, None),
        (1, 0.7, "data"),
    ]
    source.close()
