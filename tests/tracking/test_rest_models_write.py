"""Logged models restored to a real server, and what versions and runs say of them: references rewritten, nothing doubled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from mlflow_bundle.entities import LoggedModel, ModelInput, ModelOutput, ModelVersion, RegisteredModel, Run
from mlflow_bundle.tracking._port import PlannedEntity
from mlflow_bundle.tracking.rest import _logged_models_write
from tests.fixtures.server import MlflowServer
from tests.tracking.entity_writing import Restoring, actions, messages, points, tags

RUN, DELETED_RUN, LOST_RUN = "a" * 32, "b" * 32, "c" * 32
FIRST, SECOND, GONE = f"m-{'1' * 32}", f"m-{'2' * 32}", f"m-{'3' * 32}"


@pytest.fixture
def restoring(server: MlflowServer, request: pytest.FixtureRequest) -> Restoring:
    """Restores of an archive of this test's own, with an experiment, a run and a deleted run."""
    restoring = Restoring(server, f"bundle of {request.node.name}")
    experiment = restoring.experiment("7")
    restoring.run(RUN, experiment)
    restoring.client.delete_run(restoring.run(DELETED_RUN, experiment))
    return restoring


def model(model_id: str = FIRST, **fields: Any) -> LoggedModel:
    return LoggedModel(model_id=model_id, experiment_id="7", **{"name": "model", "status": "READY", **fields})


def stage(restoring: Restoring, archived: str) -> str:
    """The lifecycle stage of a run at the target."""
    return str(restoring.client.get_run(restoring.ids.new("run", archived)).info.lifecycle_stage)


# -- logged models -----------------------------------------------------------------------------------------------------


def full_model(restoring: Restoring) -> PlannedEntity:
    """A model with something of everything."""
    rows = [
        {
            "key": "acc",
            "step": step,
            "timestamp": 5,
            "value": 0.1 * step,
            "run_id": run,
            "dataset_name": name,
            "dataset_digest": name,
        }
        for step, run, name in ((-2, RUN, None), (1, RUN, "data"), (1, DELETED_RUN, "data"), (2, DELETED_RUN, None))
    ]
    rows += [{"key": f"k{number}", "step": 0, "timestamp": 6, "value": float(number), "run_id": RUN} for number in range(1_200)]
    content = f"artifact_path: s3://old/place\nmodel_id: {FIRST}\nrun_id: {RUN}\nx: '{FIRST}'\n".encode()
    record = model(
        model_type="agent",
        source_run_id=RUN,
        artifact_uri="s3://old/place",
        creation_timestamp_ms=5,
        status_message="fine",
        params=tags(**{f"p{number:03}": str(number) for number in range(250)}),
        tags=tags(t="a\nb", empty=""),
    )
    files = (restoring.file("MLmodel", content), restoring.file("deep/ü.bin", bytes(range(256))), restoring.file("empty", b""))
    return PlannedEntity(record=record, rows=points(rows), files=files)


def test_everything_of_a_logged_model_comes_back(restoring: Restoring, tmp_path: Any) -> None:
    """Attributes, params, tags, files and every metric with its run and dataset come back; ``MLmodel`` is rewritten on the
    way, a deleted run is deleted again, what is counted was read back, and a second restore changes nothing."""
    planned = full_model(restoring)
    (result,) = restoring.restore(("logged_model", [planned]))
    assert messages([result]) == []
    assert (result.action, result.rows, result.files) == ("restored", 1_204, 3)
    made = str(result.target_id)
    found = restoring.client.get_logged_model(made)
    assert (found.name, found.model_type, found.source_run_id) == ("model", "agent", restoring.ids.new("run", RUN))
    assert found.params == {f"p{number:03}": str(number) for number in range(250)}
    assert {key: found.tags[key] for key in ("t", "empty")} == {"t": "a\nb", "empty": ""}
    kept = {
        name: found.tags[f"mlflow_bundle.source.{name}"] for name in ("model_id", "creation_timestamp_ms", "status_message")
    }
    assert kept == {"model_id": FIRST, "creation_timestamp_ms": "5", "status_message": "fine"}
    metrics = {(m.key, m.step, m.run_id, m.value, m.dataset_name, m.dataset_digest) for m in found.metrics}
    runs = {run: restoring.ids.new("run", run) for run in (RUN, DELETED_RUN)}
    wanted = {
        (row["key"], row["step"], runs[row["run_id"]], row["value"], row["dataset_name"], row["dataset_digest"])
        for row in planned.rows.to_pylist()
    }
    assert metrics == wanted
    assert stage(restoring, DELETED_RUN) == "deleted"
    with restoring.target() as target:
        store = target._store(found.artifact_location, made)
        assert sorted(info.path for info in store.walk()) == ["MLmodel", "deep/ü.bin", "empty"]
        with store.open("MLmodel") as stream:
            text = stream.read().decode()
    assert text == f"artifact_path: {found.artifact_location}\nmodel_id: {made}\nrun_id: {runs[RUN]}\nx: '{FIRST}'\n"
    before = restoring.database()
    assert actions(restoring.restore(("logged_model", [planned]))) == {FIRST: "there"}
    assert restoring.database() == before


def test_deleted_models_stay_deleted(restoring: Restoring) -> None:
    """A deleted model comes back deleted and is found again, however often it is restored."""
    batch = [model(GONE, lifecycle_stage="deleted"), model(FIRST, status="FAILED"), model(SECOND, status="PENDING")]
    results = restoring.restore(("logged_model", batch))
    assert (messages(results), set(actions(results).values())) == ([], {"restored"})
    stages = "SELECT t.tag_value, m.lifecycle_stage, m.status FROM logged_models m JOIN logged_model_tags t USING (model_id) "
    stages += f"WHERE t.tag_key = 'mlflow_bundle.source.model_id' AND m.experiment_id = {restoring.ids.new('experiment', '7')}"
    assert sorted(restoring.rows(stages)) == [(FIRST, "active", 3), (SECOND, "active", 1), (GONE, "deleted", 2)]
    before = restoring.database()
    for _ in range(2):
        assert set(actions(restoring.restore(("logged_model", batch))).values()) == {"there"}
        assert restoring.database() == before


@pytest.mark.parametrize("step", ["_send_metrics", "_complete", "_delete"])
def test_an_interrupted_model_is_finished(restoring: Restoring, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that stops anywhere, between the completion of a model and its deletion too, is finished by the next."""
    planned = PlannedEntity(record=model(GONE, lifecycle_stage="deleted"), rows=full_model(restoring).rows)

    class Stopped(BaseException):
        """The process ends here."""

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(_logged_models_write.LoggedModelWriter, step, stop)
        with pytest.raises(Stopped):
            restoring.restore(("logged_model", [planned]))
    (result,) = restoring.restore(("logged_model", [planned]))
    assert (messages([result]), result.action) == ([], "restored")
    experiment = restoring.ids.new("experiment", "7")
    assert restoring.rows(f"SELECT lifecycle_stage FROM logged_models WHERE experiment_id = {experiment}") == [("deleted",)]
    counted = f"SELECT count(*) FROM logged_model_metrics WHERE experiment_id = {experiment}"
    assert restoring.rows(counted) == [(1_204,)]
    assert actions(restoring.restore(("logged_model", [planned]))) == {GONE: "there"}


def test_many_models_of_one_deleted_run(restoring: Restoring) -> None:
    """Several threads that write to one deleted run keep it open for each other, and it is deleted at the end."""
    rows = points([{"key": "k", "step": n, "timestamp": 1, "value": 1.0, "run_id": DELETED_RUN} for n in range(20)])
    planned = [PlannedEntity(record=model(f"m-{number:032x}"), rows=rows) for number in range(12)]
    results = restoring.restore(("logged_model", planned))
    assert (messages(results), [result.rows for result in results]) == ([], [20] * 12)
    assert stage(restoring, DELETED_RUN) == "deleted"


def link(restoring: Restoring, runs: Sequence[Run]) -> list[str]:
    """Link runs; what the problems say."""
    with restoring.target() as target:
        return messages(target.link_runs([(run, restoring.ids.new("run", run.run_id)) for run in runs], restoring.ids))


def test_runs_get_their_models(restoring: Restoring) -> None:
    """Two models made in one run at their steps, a model read by another run, a deleted one: all links come back, once."""
    restoring.restore(("logged_model", [model(FIRST, source_run_id=RUN), model(SECOND, source_run_id=RUN)]))
    made = (ModelOutput(model_id=FIRST, step=3), ModelOutput(model_id=SECOND, step=-1))
    runs = [
        Run(run_id=RUN, experiment_id="7", model_outputs=made),
        Run(run_id=DELETED_RUN, experiment_id="7", model_inputs=(ModelInput(model_id=FIRST),), model_outputs=made[:1]),
    ]
    assert link(restoring, runs) == []
    first, second = (restoring.ids.new("logged_model", one) for one in (FIRST, SECOND))
    found = restoring.client.get_run(restoring.ids.new("run", RUN))
    assert {(one.model_id, one.step) for one in found.outputs.model_outputs} == {(first, 3), (second, -1)}
    found = restoring.client.get_run(restoring.ids.new("run", DELETED_RUN))
    assert [one.model_id for one in found.inputs.model_inputs] == [first]
    assert stage(restoring, DELETED_RUN) == "deleted"
    before = restoring.database()
    assert link(restoring, runs) == []
    assert restoring.database() == before


# -- where versions come from ------------------------------------------------------------------------------------------


def versions(restoring: Restoring, name: str, planned: Sequence[PlannedEntity | ModelVersion]) -> list[Any]:
    """Restore versions of a model of this test's own, twice; the second time nothing changes."""
    batches = (("registered_model", [RegisteredModel(name=name)]), ("model_version", planned))
    results = restoring.restore(*batches)
    before = restoring.database()
    again = restoring.restore(*batches)
    assert [two.action for one, two in zip(results, again, strict=True) if one.action == "restored"] == ["there"] * len(results)
    assert restoring.database() == before
    return results


def test_sources_lead_to_what_was_restored(restoring: Restoring) -> None:
    """A version names the logged model or the run at the target, however its source was spelled."""
    restoring.restore(("logged_model", [model(FIRST, source_run_id=RUN)]))
    sources = {
        1: (f"models:/{FIRST}", RUN),
        2: (f"runs:/{RUN}/deep/model", RUN),
        3: (f"s3://old/7/{RUN}/artifacts/model", RUN),
        4: (f"mlflow-artifacts:/7/models/{FIRST}/artifacts", RUN),
        5: (f"/old/disk/mlruns/7/{RUN}/artifacts/model", RUN),
    }
    planned = [ModelVersion(name="led", version=n, source=source, run_id=run) for n, (source, run) in sources.items()]
    assert messages(versions(restoring, "led", planned)) == []
    run, made = restoring.ids.new("run", RUN), restoring.ids.new("logged_model", FIRST)
    files = restoring.client.get_run(run).info.artifact_uri
    found = {int(one.version): one for one in restoring.client.search_model_versions("name = 'led'")}
    assert {number: one.source for number, one in found.items()} == {
        1: f"models:/{made}",
        2: f"runs:/{run}/deep/model",
        3: f"{files}/model",
        4: restoring.client.get_logged_model(made).artifact_location,
        5: f"{files}/model",
    }
    assert {one.run_id for one in found.values()} == {run}
    assert {number: one.tags["mlflow_bundle.source.source"] for number, one in found.items()} == {
        number: source for number, (source, _) in sources.items()
    }


def test_versions_of_what_is_not_there(restoring: Restoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version whose run is not in the archive, or whose logged model is deleted, keeps its number, its old run id and, in a
    tag, its source; one that a server takes from nowhere fails with its reason, and its number stays free of others."""
    restoring.restore(("logged_model", [model(GONE, lifecycle_stage="deleted", source_run_id=RUN)]))
    planned = [
        ModelVersion(name="lost", version=1, source=f"runs:/{LOST_RUN}/model", run_id=LOST_RUN),
        ModelVersion(name="lost", version=2, source=f"mlflow-artifacts:/7/{LOST_RUN}/artifacts/deep/model", run_id=LOST_RUN),
        ModelVersion(name="lost", version=4, source=f"models:/{GONE}", run_id=RUN),
        ModelVersion(name="lost", version=5, source="s3://bucket/model"),
    ]
    results = versions(restoring, "lost", planned)
    assert messages(results) == []
    assert sum("was not restored" in note for result in results for note in result.notes) >= 2
    found = {int(one.version): one for one in restoring.client.search_model_versions("name = 'lost'")}
    run = restoring.ids.new("run", RUN)
    assert {number: (one.source, one.run_id or "") for number, one in found.items()} == {
        1: (f"runs:/{LOST_RUN}/model", LOST_RUN),
        2: (f"runs:/{LOST_RUN}/deep/model", LOST_RUN),
        4: (f"runs:/{run}/model", run),
        5: ("s3://bucket/model", ""),
    }
    nowhere = [
        ModelVersion(name="nowhere", version=n, source=source) for n, source in ((1, "/old/disk/model"), (2, "s3://b/m"))
    ]
    failed, restored = restoring.restore(("registered_model", [RegisteredModel(name="nowhere")]), ("model_version", nowhere))
    assert (failed.action, restored.action) == ("failed", "restored")
    assert "/old/disk/model" in messages([failed])[0]
    with pytest.raises(MlflowException):
        restoring.client.get_model_version("nowhere", "1")


def test_files_of_a_version_itself(restoring: Restoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that belong to no run and no logged model get a logged model of their own; a restore that is stopped between its
    creation and that of the version makes no second one."""
    record = ModelVersion(name="own.files", version=1, source="s3://bucket/elsewhere")
    planned = PlannedEntity(record=record, files=(restoring.file("MLmodel", b"flavors: {}\n"), restoring.file("a/b", b"1")))
    batches = (("registered_model", [RegisteredModel(name="own.files")]), ("model_version", [planned]))

    class Stopped(BaseException):
        """The process ends here."""

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("mlflow_bundle.tracking.rest._versions_write.VersionWriter._create", stop)
        with pytest.raises(Stopped):
            restoring.restore(*batches)
    (result,) = restoring.restore(*batches)
    assert (messages([result]), result.action, result.files, result.file_bytes) == ([], "restored", 2, 13)
    carriers = restoring.rows("SELECT model_id FROM logged_model_tags WHERE tag_value = 'own.files/1'")
    found = restoring.client.get_model_version("own.files", "1")
    assert [f"models:/{carrier}" for (carrier,) in carriers] == [found.source]
    place = restoring.client.get_logged_model(carriers[0][0]).artifact_location
    with restoring.target() as target:
        assert sorted(info.path for info in target._store(place, carriers[0][0]).walk()) == ["MLmodel", "a/b"]
    assert restoring.client.get_model_version_download_uri("own.files", "1") == place
    before = restoring.database()
    assert actions(restoring.restore(*batches)) == {"own.files/1": "there"}
    assert restoring.database() == before
