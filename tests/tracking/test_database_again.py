"""What a database that has an older restore gets, keeps, and is told of."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities.trace_info import TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracking._tracking_service.utils import _get_store

import mlflow_bundle as bundle
from mlflow_bundle.errors import CannotHoldError, ServerError
from mlflow_bundle.tracking.database import _write
from mlflow_bundle.tracking.database._write import DatabaseTarget

START = 1_700_000_000_000

pytestmark = pytest.mark.slow


def execute(uri: str, sql: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement behind MLflow's back."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        return database.execute(sql, values).fetchall()


@pytest.fixture
def target(tmp_path: Path) -> str:
    """The URI of a database that does not exist yet."""
    return f"sqlite:///{tmp_path}/restored/target.db"


def again(source: str, target: str, tmp_path: Path, **options: bool) -> bundle.UnpackReport:
    """Pack the source and unpack it into the target, and do not mind problems."""
    bundle.pack(bundle=tmp_path / "bundle", tracking_uri=source)
    return bundle.unpack(tmp_path / "bundle", tracking_uri=target, allow_partial=True, **options)


def outcome(report: bundle.UnpackReport, kind: str) -> dict[str, int]:
    """What became of the entities of a kind, without what is zero."""
    (found,) = [one for one in report.entities if one.kind == kind]
    names = ("restored", "there", "merged", "left_out", "failed")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


def test_online_scoring_is_switched_on_later(empty_mlflow: str, target: str, tmp_path: Path) -> None:
    """A restore with sample rates over one without sets them; a rate that somebody else set stays and is told."""
    store = _get_store(empty_mlflow)
    experiment = store.create_experiment("judged")
    store.register_scorer(experiment, "judge", "{}")
    execute(
        empty_mlflow,
        "INSERT INTO online_scoring_configs (online_scoring_config_id, scorer_id, sample_rate, experiment_id)"
        " SELECT 'o-1', scorer_id, 0.25, experiment_id FROM scorers",
    )
    rates = "SELECT sample_rate FROM online_scoring_configs"
    again(empty_mlflow, target, tmp_path)
    assert execute(target, rates) == [(0.0,)]
    report = again(empty_mlflow, target, tmp_path, online_scoring=True)
    assert (report.problems, outcome(report, "scorer"), execute(target, rates)) == ((), {"merged": 1}, [(0.25,)])
    report = again(empty_mlflow, target, tmp_path, online_scoring=True)
    assert (report.problems, outcome(report, "scorer")) == ((), {"there": 1})
    report = again(empty_mlflow, target, tmp_path)
    assert (report.problems, outcome(report, "scorer"), execute(target, rates)) == ((), {"merged": 1}, [(0.25,)])
    assert any("keeps its sample rates" in note for note in report.notes)


def test_rows_and_members_that_a_newer_snapshot_lacks(empty_mlflow: str, target: str, tmp_path: Path) -> None:
    """Spans and an attribute that the source has no longer are kept and told, by the kind of their owner."""
    store = _get_store(empty_mlflow)
    experiment = MlflowClient(empty_mlflow).create_experiment("traced")
    place = TraceLocation.from_experiment_id(experiment)
    store.start_trace(TraceInfo("tr-1", place, START, TraceState.OK, request_preview="asked"))
    execute(
        empty_mlflow,
        "INSERT INTO spans (trace_id, experiment_id, span_id, status, start_time_unix_nano, content)"
        " VALUES ('tr-1', ?, 's-1', 'OK', 1, '{}')",
        experiment,
    )
    assert again(empty_mlflow, target, tmp_path).problems == ()
    execute(empty_mlflow, "DELETE FROM spans")
    execute(empty_mlflow, "UPDATE trace_info SET request_preview = NULL")
    report = again(empty_mlflow, target, tmp_path)
    assert (report.problems, outcome(report, "trace")) == ((), {"merged": 1})
    told = " ".join(report.notes)
    assert "keeps its spans" in told
    assert "keeps its request_preview" in told
    assert execute(target, "SELECT request_preview FROM trace_info") == [("asked",)]


@pytest.mark.parametrize("name", ["old", "older"])
def test_a_deleted_experiment_that_got_another_id_is_found_again(
    empty_mlflow: str, target: str, tmp_path: Path, name: str
) -> None:
    """A second unpack takes it for what the first one made, under either name; a deleted one of somebody else it refuses."""
    client = MlflowClient(empty_mlflow)
    old = client.create_experiment("old")
    client.create_run(old)
    client.delete_experiment(old)
    bundle.pack(bundle=tmp_path / "bundle", tracking_uri=empty_mlflow)
    there = MlflowClient(target)
    taken = there.create_experiment("mine")
    rename = {"old": name} if name != "old" else {}
    for restored in (1, 0):
        report = bundle.unpack(tmp_path / "bundle", tracking_uri=target, rename=rename)
        assert (report.problems, report.runs_restored, report.runs_already_there) == ((), restored, 1 - restored)
    assert old == taken
    found = execute(target, "SELECT name, lifecycle_stage FROM experiments WHERE experiment_id > 0 ORDER BY experiment_id")
    assert found == [("mine", "active"), (name, "deleted")]
    execute(target, "UPDATE experiments SET creation_time = creation_time + 1 WHERE name = ?", name)
    with pytest.raises(CannotHoldError, match="has a deleted experiment named"):
        bundle.unpack(tmp_path / "bundle", tracking_uri=target, rename=rename)


def test_an_experiment_that_was_deleted_since_stays_as_it_was_restored(empty_mlflow: str, target: str, tmp_path: Path) -> None:
    """A database is only added to: the experiment that is there keeps its stage, as the note says."""
    client = MlflowClient(empty_mlflow)
    experiment = client.create_experiment("x")
    client.create_run(experiment)
    assert again(empty_mlflow, target, tmp_path).problems == ()
    client.delete_experiment(experiment)
    stages = "SELECT lifecycle_stage FROM experiments WHERE name = 'x'"
    for _ in range(2):
        report = again(empty_mlflow, target, tmp_path)
        (note,) = [one for one in report.notes if "'x'" in one]
        assert "keeps what differs: lifecycle_stage (active, in the archive deleted)" in note
        assert execute(target, stages) == [("active",)]
    assert execute(empty_mlflow, stages) == [("deleted",)]


def test_other_files_of_a_logged_model_are_told(empty_mlflow: str, target: str, tmp_path: Path) -> None:
    """Files that lie at the place of a logged model and are not in the archive are told; it counts as merged then."""
    store = _get_store(empty_mlflow)
    model = store.create_logged_model(store.create_experiment("models"), "model")
    place = Path(model.artifact_location)
    place.mkdir(parents=True)
    (place / "weights").write_bytes(b"archived")
    assert again(empty_mlflow, target, tmp_path).problems == ()
    (file,) = (tmp_path / "restored").rglob("weights")
    file.with_name("mine").write_bytes(b"of the target")
    report = again(empty_mlflow, target, tmp_path)
    assert (report.problems, outcome(report, "logged_model")) == ((), {"merged": 1})
    assert any("1 other files lie at the artifact location of the logged model" in note for note in report.notes)


def test_a_target_that_cannot_be_opened_leaves_nothing_open(
    empty_mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the columns cannot be read, the connection is closed and the draft of a new database is removed."""

    def fail(connection: object) -> None:
        opened.append(connection)
        raise ServerError("gone")

    opened: list[object] = []
    closed: list[object] = []
    close = _write.Connection.close
    monkeypatch.setattr(_write, "columns_of", fail)
    monkeypatch.setattr(_write.Connection, "close", lambda self: (closed.append(self), close(self)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "drafts"))
    (tmp_path / "drafts").mkdir()
    for uri in (empty_mlflow, f"sqlite:///{tmp_path}/new.db"):
        with pytest.raises(ServerError, match="gone"):
            DatabaseTarget(uri, bundle_id="test")
    assert all(one in closed for one in opened)
    assert len(opened) == 2
    assert list((tmp_path / "drafts").iterdir()) == []
