"""Defects that a pack answered with success: something was missing, cut or altered, and no problem or note said so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.span import Span
from mlflow.tracing.otel.otel_archival import spans_to_traces_data_pb

from mlflow_bundle import open as open_bundle
from mlflow_bundle.errors import BundleError, IncompleteError, LimitError, ServerError, StorageError
from mlflow_bundle.tracking import pack
from tests.fixtures.server import MlflowServer
from tests.tracking.http_peer import forward, serve
from tests.tracking.moving import execute, hide_rows, rows


def told(bundle: Path, uri: str) -> bool:
    """Whether a pack says that something is missing: it raises, or is partial, or has a note."""
    try:
        report = pack(bundle=bundle, tracking_uri=uri)
    except BundleError:
        return True
    # A note about the folder of artifacts, which no test here makes, says nothing of what was lost.
    return report.state != "complete" or any("does not exist on this machine" not in note for note in report.notes)


def a_trace(uri: str) -> str:
    """A trace of three spans in a database; its id."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id="0")  # another test may have left its own
    with mlflow.start_span("root") as root:
        for name in ("one", "two"):
            with mlflow.start_span(name):
                pass
    mlflow.flush_trace_async_logging()
    return str(root.trace_id)


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["file", "rows"])
def test_archived_spans_that_file_and_rows_do_not_both_have_are_told(empty_mlflow: str, tmp_path: Path, lacks: str) -> None:
    """A span that only the file has, which MLflow shows, is archived or told of; so is one that only a row names."""
    trace_id = a_trace(empty_mlflow)
    found = [
        Span.from_dict(json.loads(text)) for (text,) in rows(empty_mlflow, "SELECT content FROM spans ORDER BY name = 'two'")
    ]
    assert len(found) == 3
    (tmp_path / "traces.pb").write_bytes(spans_to_traces_data_pb(found if lacks == "rows" else found[:2]))
    execute(
        empty_mlflow,
        "UPDATE spans SET content = ''",
        *(["DELETE FROM spans WHERE name = 'two'"] if lacks == "rows" else []),
        "UPDATE trace_tags SET value = 'ARCHIVE_REPO' WHERE key = 'mlflow.trace.spansLocation'",
        f"INSERT INTO trace_tags (key, value, request_id) VALUES ('mlflow.trace.archiveLocation', '{tmp_path}', '{trace_id}')",
    )
    assert told(tmp_path / "b", empty_mlflow) == (lacks == "file")
    if lacks == "rows":
        with open_bundle(tmp_path / "b") as archive:
            shown = MlflowClient(empty_mlflow).get_trace(trace_id).data.spans
            assert len(archive.spans()) == len(shown) == 3


def test_an_entity_that_its_own_key_does_not_find_is_told(empty_mlflow: str, tmp_path: Path) -> None:
    """SQLite keeps bytes in a column of texts: the key is listed, and finds nothing."""
    execute(empty_mlflow, "INSERT INTO registered_models (name, workspace) VALUES (CAST('m' AS BLOB), 'default')")
    assert told(tmp_path / "b", empty_mlflow)


def test_an_entity_that_an_index_lost_is_told(empty_mlflow: str, tmp_path: Path) -> None:
    """A damaged index hides a row that the table has. A pack does not say that all is there."""
    client = MlflowClient(empty_mlflow)
    experiment = client.create_experiment("one", artifact_location=(tmp_path / "files").as_uri())
    (tmp_path / "files").mkdir()
    for name in ("kept", "hidden"):
        client.create_run(experiment, run_name=name)
    assert not told(tmp_path / "before", empty_mlflow)
    hide_rows(empty_mlflow.removeprefix("sqlite:///"), "runs", "name = 'hidden'")
    assert told(tmp_path / "b", empty_mlflow)


def test_traces_of_an_experiment_with_a_negative_id_come_along(empty_mlflow: str, tmp_path: Path) -> None:
    """Runs and the other kinds understand the same ids of experiments."""
    execute(
        empty_mlflow,
        "INSERT INTO experiments (experiment_id, name, lifecycle_stage, workspace, artifact_location)"
        f" VALUES (-5, 'odd', 'active', 'default', '{tmp_path}')",
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-1', -5, 1, 'OK')",
    )
    report = pack("odd", tmp_path / "b", tracking_uri=empty_mlflow)
    assert report.counts.get("trace") == 1


NANOSECONDS = 1_700_000_000_000_000_000


def test_a_run_with_a_start_in_nanoseconds_does_not_stop_the_others(empty_mlflow: str, tmp_path: Path) -> None:
    """No archive can hold that number: the run is named, and a partial snapshot has all but it and what belongs to it."""
    client = MlflowClient(empty_mlflow)
    experiment = client.create_experiment("one", artifact_location=(tmp_path / "files").as_uri())
    runs = {}
    for name, start in [("first", 1), ("odd", NANOSECONDS), ("last", 2)]:
        runs[name] = client.create_run(experiment, run_name=name, start_time=start).info.run_id
        client.log_metric(runs[name], "m", start, step=1)
        client.log_text(runs[name], name, "name.txt")
    said = f"run {runs['odd']} has the number {NANOSECONDS}"
    with pytest.raises(IncompleteError, match=said) as caught:
        pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow)
    assert not list((tmp_path / "b").glob("snapshots/*"))
    report = pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow, allow_partial=True)
    assert report.state == "partial"
    (problem,) = report.problems
    assert caught.value.problems == (problem,)
    assert (problem.code, problem.kind, problem.id) == ("number-too-large", "run", runs["odd"])
    assert (problem.experiments, problem.runs) == ((experiment,), (runs["odd"],))
    kept = [runs["first"], runs["last"]]
    with open_bundle(tmp_path / "b") as archive:
        assert archive.verify().ok
        assert archive.runs().column("run_id").to_pylist() == kept
        assert archive.metrics().column("value").to_pylist() == [1.0, 2.0]
        assert archive.files_of(kept).column("run_id").to_pylist() == kept
    assert (report.counts["run"], report.counts["metric_point"], report.counts["file"]) == (2, 2, 2)


def test_other_entities_that_no_archive_can_hold_are_told_with_what_belongs_to_them(empty_mlflow: str, tmp_path: Path) -> None:
    """A trace is left out with its spans, a registered model with its versions, each by its name; an experiment never is."""
    execute(
        empty_mlflow,
        "INSERT INTO experiments (experiment_id, name, lifecycle_stage, workspace, artifact_location)"
        f" VALUES (5, 'odd', 'active', 'default', '{tmp_path}')",
        f"INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-1', 5, {NANOSECONDS}, 'OK')",
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-2', 5, 1, 'OK')",
        *(
            "INSERT INTO spans (trace_id, experiment_id, span_id, status, start_time_unix_nano, content)"
            f" VALUES ('tr-{number}', 5, 's-{number}', 'OK', 1, '{{}}')"
            for number in (1, 2)
        ),
        *(
            f"INSERT INTO registered_models (name, creation_time, workspace) VALUES ('{name}', {time}, 'default')"
            for name, time in [("bad", NANOSECONDS), ("good", 1)]
        ),
        *(
            "INSERT INTO model_versions (name, version, creation_time, workspace, current_stage, source, status)"
            f" VALUES ('{name}', 1, 1, 'default', 'None', '{tmp_path}', 'READY')"
            for name in ("bad", "good")
        ),
    )
    report = pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow, allow_partial=True)
    assert sorted((problem.code, problem.kind, problem.id) for problem in report.problems) == [
        ("number-too-large", "registered_model", "bad"),
        ("number-too-large", "trace", "tr-1"),
        ("owner-left-out", "model_version", "bad/1"),
    ]
    with open_bundle(tmp_path / "b") as archive:
        assert archive.verify().ok
        assert archive.spans().column("span_id").to_pylist() == ["s-2"]
        for kind in ("registered_model", "model_version"):
            assert [record.name for record in archive.records(kind)] == ["good"]
    execute(empty_mlflow, f"UPDATE experiments SET creation_time = {NANOSECONDS} WHERE experiment_id = 5")
    with pytest.raises(LimitError, match="experiment 5 has the number"):
        pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow, allow_partial=True)


def test_a_metric_file_that_was_cut_off_is_told(file_store_copy: Path, tmp_path: Path) -> None:
    """The last line of a metric file without its end may lack its step, or digits of it."""
    metric = next(path for path in sorted(file_store_copy.rglob("metrics/*")) if path.is_file())
    with metric.open("ab") as file:
        file.write(b"1700000000002 0.8")  # of "1700000000002 0.875 12\n"
    with pytest.raises(BundleError, match=str(metric)):
        pack(bundle=tmp_path / "b", tracking_uri=str(file_store_copy))


@pytest.mark.parametrize("role", ["metrics", "records"])
def test_a_full_pack_does_not_call_a_damaged_object_complete(empty_mlflow: str, tmp_path: Path, role: str) -> None:
    """The pack has the right bytes in its hands when it finds an object of the same name and size."""
    client = MlflowClient(empty_mlflow)
    experiment = client.create_experiment("one", artifact_location=(tmp_path / "files").as_uri())
    (tmp_path / "files").mkdir()
    client.log_metric(client.create_run(experiment).info.run_id, "m", 0.5)
    pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow)
    with open_bundle(tmp_path / "b") as archive:
        path = tmp_path / "b" / next(ref.path for ref in archive.objects if ref.role == role)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x40
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(StorageError, match=f"{path.name} in .* other bytes than its name says"):
        pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow, full=True)


def _foreign(path: str) -> Callable[[str, bytes], bool]:
    return lambda asked, body: path in asked and (b"page_token" in body or "page_token" in asked)


@pytest.mark.slow
def test_a_page_that_is_none_of_mlflows_ends_no_list(server: MlflowServer, tmp_path: Path) -> None:
    """JSON of somebody else with the status 200, as of a gateway, is no last page of a list."""
    path = server.backend_store_uri.removeprefix("sqlite:///")
    names = [(f"model{number:05}", number) for number in range(1_200)]
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.executemany(
            "INSERT INTO registered_models (name, creation_time, last_updated_time, workspace) VALUES (?, ?, 1, 'default')",
            names,
        )
    foreign = _foreign("registered-models/search")

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        return (200, b'{"status": "busy"}', None) if foreign(asked, body) else forward(server.url, method, asked, body)

    with serve(answer) as peer, pytest.raises(ServerError, match="of which nothing is known"):
        pack(bundle=tmp_path / "b", tracking_uri=peer.url)


@pytest.mark.slow
def test_what_is_deleted_between_two_pages_hides_nothing(server: MlflowServer, tmp_path: Path) -> None:
    """Pages are cut by position: models that vanish from the first page must not make others fall between the two."""
    path = server.backend_store_uri.removeprefix("sqlite:///")
    names = [(f"other{number:05}", number) for number in range(1_200)]
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.execute("DELETE FROM registered_models")
        connection.executemany(
            "INSERT INTO registered_models (name, creation_time, last_updated_time, workspace) VALUES (?, ?, 1, 'default')",
            names,
        )
    gone = ["other00003", "other00004"]

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        if "registered-models/search" in asked and "page_token" in asked:
            with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
                connection.executemany("DELETE FROM registered_models WHERE name = ?", [(name,) for name in gone])
        return forward(server.url, method, asked, body)

    with serve(answer) as peer:
        pack(bundle=tmp_path / "b", tracking_uri=peer.url)
    with open_bundle(tmp_path / "b") as archive:
        found = set(archive.registered_models().column("name").to_pylist())
    assert {name for name, _ in names} - found - set(gone) == set()
