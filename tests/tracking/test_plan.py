"""What an unpack finds out before the first write."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

import mlflow_bundle as bundle
from tests.fixtures.server import ServerFactory

pytestmark = pytest.mark.slow


def test_an_experiment_is_found_again_whatever_its_name_is(empty_mlflow: str, tmp_path: Path) -> None:
    """What came after an experiment was renamed, at the source or at the target, goes to where it was restored; a note says
    how it is called there. A new experiment of its old name is a problem, unless it is to have another name."""
    client, target = MlflowClient(empty_mlflow), f"sqlite:///{tmp_path}/target.db"
    experiment = client.create_experiment("first")
    client.create_run(experiment)
    bundle.pack(bundle=tmp_path / "bundle", tracking_uri=empty_mlflow)
    bundle.unpack(tmp_path / "bundle", tracking_uri=target)

    client.rename_experiment(experiment, "second")
    client.create_run(experiment)
    bundle.pack(bundle=tmp_path / "bundle", tracking_uri=empty_mlflow)
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=target)
    assert (report.problems, report.runs_restored, report.runs_already_there) == ((), 1, 1)
    assert any("'second' is called 'first' at the target" in note for note in report.notes)
    found = MlflowClient(target)
    assert found.get_experiment_by_name("second") is None
    assert len(found.search_runs([experiment])) == 2

    client.create_run(client.create_experiment("first"))
    bundle.pack(bundle=tmp_path / "bundle", tracking_uri=empty_mlflow)
    with pytest.raises(bundle.CannotHoldError) as raised:
        bundle.unpack(tmp_path / "bundle", tracking_uri=target)
    assert [problem.code for problem in raised.value.problems] == ["experiment-name-taken"]
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=target, rename={"first": "third"})
    assert (report.problems, report.runs_restored, report.runs_already_there) == ((), 1, 2)
    assert found.get_experiment_by_name("third") is not None


def test_a_child_follows_its_parent(start_server: ServerFactory, empty_mlflow: str, tmp_path: Path) -> None:
    """A run whose parent is lost at the target, and restored as another one, names that; while nothing changes, nothing is
    done twice, whatever is selected."""
    client, server = MlflowClient(empty_mlflow), start_server()
    target = MlflowClient(server.url)
    experiment = client.create_experiment("family")
    parent = client.create_run(experiment).info.run_id
    child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    bundle.pack(bundle=tmp_path / "bundle", tracking_uri=empty_mlflow)
    first = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert (first.problems, first.runs_restored) == ((), 2)
    for selected in (child, parent, None):
        report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url, run=selected)
        assert (report.problems, report.runs_restored) == ((), 0)
    target.set_tag(first.run_ids[parent], "mlflow_bundle.source.run_id", "lost")
    report = bundle.unpack(tmp_path / "bundle", tracking_uri=server.url)
    assert (report.problems, report.runs_restored) == ((), 2)
    assert report.run_ids[child] == first.run_ids[child]
    assert report.run_ids[parent] != first.run_ids[parent]
    assert target.get_run(report.run_ids[child]).data.tags["mlflow.parentRunId"] == report.run_ids[parent]
