"""A newer snapshot unpacked over an older restore: what is new arrives, or a problem or a note says that it does not."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import (
    AssessmentSource,
    Feedback,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Param,
    RunTag,
    Span,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities.assessment import FeedbackValue
from mlflow.exceptions import MlflowException
from mlflow.genai.label_schemas.label_schemas import InputText
from mlflow.tracking._tracking_service.utils import _get_store

import mlflow_bundle as bundle
from mlflow_bundle.errors import AuthError
from tests.fixtures.server import MlflowServer
from tests.tracking.http_peer import forward, serve
from tests.tracking.moving import execute

START = 1_700_000_000_000
SOURCE = "mlflow_bundle.source."
RESTORE = "mlflow_bundle.restore"

pytestmark = pytest.mark.slow


@dataclass
class Moving:
    """A source that changes, a bundle with a snapshot of each state, and a server that they are unpacked to."""

    client: MlflowClient
    uri: str
    folder: Path
    server: MlflowServer
    target: MlflowClient

    def pack(self) -> str:
        report = bundle.pack(bundle=self.folder / "bundle", tracking_uri=self.uri)
        assert report.problems == ()
        assert report.snapshot is not None
        return report.snapshot

    def unpack(self, snapshot: str | None = None, **options: Any) -> bundle.UnpackReport:
        return bundle.unpack(self.folder / "bundle", tracking_uri=self.server.url, snapshot=snapshot, **options)

    def new_experiment(self, name: str, **options: Any) -> str:
        place = str(self.folder / "artifacts" / name)
        experiment: str = self.client.create_experiment(name, artifact_location=place, **options)
        return experiment

    def new_run(self, name: str) -> str:
        run: str = self.client.create_run(self.new_experiment(name), start_time=START).info.run_id
        return run

    def file(self, run: str, path: str, text: str) -> None:
        self.client.log_text(run, text, path)

    def experiment_of(self, report: bundle.UnpackReport, experiment: str) -> str:
        return next(str(one.id) for one in report.experiments if one.source_id == experiment)

    def run_of(self, report: bundle.UnpackReport, run: str) -> Any:
        return self.target.get_run(report.run_ids[run])


@pytest.fixture
def moving(empty_mlflow: str, tmp_path: Path, server: MlflowServer) -> Moving:
    return Moving(MlflowClient(empty_mlflow), empty_mlflow, tmp_path, server, MlflowClient(server.url))


def counts(report: bundle.UnpackReport) -> tuple[int, int, int]:
    """Runs that were restored, were there already, and failed."""
    return report.runs_restored, report.runs_already_there, report.runs_failed


def points(client: MlflowClient, run: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run, key))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_that_went_on(moving: Moving, request: pytest.FixtureRequest) -> None:
    """Points, params, tags, files, name and state that a run got after the first snapshot all arrive with the second, and the
    run counts as restored; a third unpack finds it there."""
    client = moving.client
    experiment = moving.new_experiment(request.node.name)
    run = client.create_run(experiment, start_time=START, run_name="before").info.run_id
    still = client.create_run(experiment, start_time=START, run_name="still").info.run_id
    client.log_batch(run, [Metric("loss", 1.0, START, 0)], [Param("p", "1")], [RunTag("t", "old"), RunTag("gone", "x")])
    moving.file(run, "notes.txt", "one")
    moving.file(run, "more/gone.txt", "1")
    moving.pack()
    first = moving.unpack()
    assert (first.problems, counts(first)) == ((), (2, 0, 0))

    client.log_batch(
        run, [Metric("loss", 0.5, START + 1, 1), Metric("acc", 0.1, START, 0)], [Param("q", "2")], [RunTag("t", "new")]
    )
    client.delete_tag(run, "gone")
    (moving.folder / "artifacts" / request.node.name / run / "artifacts/more/gone.txt").unlink()
    client.update_run(run, name="after")
    moving.file(run, "notes.txt", "two")
    moving.file(run, "more/notes.txt", "three")
    client.set_terminated(run, "FAILED", end_time=START + 9)
    moving.pack()
    second = moving.unpack()
    assert (second.problems, counts(second)) == ((), (1, 1, 0))
    assert any("brought up to date" in note for note in second.notes)
    assert any("'gone' besides" in note for note in second.notes)
    assert "the run at the target has the file 'more/gone.txt' besides" in second.notes
    assert second.run_ids == first.run_ids

    there = second.run_ids[run]
    found = moving.target.get_run(there)
    assert points(moving.target, there, "loss") == [(0, 1.0), (1, 0.5)]
    assert points(moving.target, there, "acc") == [(0, 0.1)]
    assert found.data.params == {"p": "1", "q": "2"}
    assert (found.data.tags["t"], found.data.tags["mlflow.runName"]) == ("new", "after")
    assert (found.info.run_name, found.info.status, found.info.end_time) == ("after", "FAILED", START + 9)
    assert moving.target.get_run(second.run_ids[still]).info.status == "RUNNING"
    names = sorted(path.path for path in moving.target.list_artifacts(there))
    assert names == ["more", "notes.txt"]
    place = Path(moving.target.download_artifacts(there, "", str(moving.folder)))
    assert ((place / "notes.txt").read_text(), (place / "more/notes.txt").read_text()) == ("two", "three")
    third = moving.unpack()
    assert (third.problems, counts(third)) == ((), (0, 2, 0))


def test_what_cannot_be_brought_up_to_date(moving: Moving, request: pytest.FixtureRequest) -> None:
    """A param that the target has otherwise and a point that the archive does not have are problems as often as it is tried;
    everything else of the run arrives."""
    client = moving.client
    run = moving.new_run(request.node.name)
    moving.pack()
    there = moving.unpack().run_ids[run]
    moving.target.log_param(there, "p", "theirs")
    moving.target.log_metric(there, "own", 3.0, timestamp=START, step=0)
    client.log_batch(run, [Metric("loss", 1.0, START, 0)], [Param("p", "ours"), Param("q", "2")], [RunTag("t", "new")])
    moving.pack()
    for _ in range(2):
        report = moving.unpack()
        assert counts(report) == (0, 0, 1)
        told = " ".join(problem.message for problem in report.problems)
        assert "'theirs' where 'ours' was expected" in told
        assert "2 metric points were read back from the target where 1 were expected" in told
        found = moving.target.get_run(there)
        assert (found.data.params, found.data.tags["t"]) == ({"p": "theirs", "q": "2"}, "new")
        assert points(moving.target, there, "loss") == [(0, 1.0)]
        assert found.data.tags[RESTORE] == "started"


def test_an_older_snapshot_over_a_newer_restore(moving: Moving, request: pytest.FixtureRequest) -> None:
    """What the older snapshot does not have is a problem or a note, and unpacking the newer one again mends it."""
    client = moving.client
    run = moving.new_run(request.node.name)
    client.log_batch(run, [Metric("loss", 1.0, START, 0)])
    older = moving.pack()
    client.log_batch(run, [Metric("loss", 0.5, START, 1)], [Param("p", "1")])
    moving.pack()
    moving.unpack()
    report = moving.unpack(older)
    assert counts(report) == (0, 0, 1)
    assert ["2 metric points were read back" in problem.message for problem in report.problems] == [True]
    assert any("the param 'p' besides" in note for note in report.notes)
    mended = moving.unpack()
    assert (mended.problems, counts(mended)) == ((), (1, 0, 0))


def test_a_run_that_was_deleted_or_came_back(moving: Moving, request: pytest.FixtureRequest) -> None:
    """A run that is deleted in the newer snapshot is deleted at the target, one that came back is active there."""
    client = moving.client
    experiment = moving.new_experiment(request.node.name)
    runs = [client.create_run(experiment, start_time=START + number).info.run_id for number in range(2)]
    client.delete_run(runs[0])
    moving.pack()
    moving.unpack()
    client.restore_run(runs[0])
    client.delete_run(runs[1])
    moving.pack()
    report = moving.unpack()
    assert (report.problems, counts(report)) == ((), (2, 0, 0))
    assert [moving.run_of(report, run).info.lifecycle_stage for run in runs] == ["active", "deleted"]
    assert not [key for key in moving.run_of(report, runs[0]).data.tags if key == SOURCE + "deleted_time"]
    assert counts(moving.unpack()) == (0, 2, 0)


def test_an_update_that_is_interrupted(moving: Moving, request: pytest.FixtureRequest) -> None:
    """A run whose update was stopped in between is complete for neither snapshot, and the next unpack finishes it."""
    client, run = moving.client, moving.new_run(request.node.name)
    moving.pack()
    there = moving.unpack().run_ids[run]
    client.log_batch(run, [Metric("loss", 1.0, START, 0)], [], [RunTag("t", "new")])
    moving.pack()

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        if path.endswith("runs/log-batch"):
            return 401, b"{}", None
        return forward(moving.server.url, method, path, body)

    with serve(answer) as peer, pytest.raises(AuthError):
        bundle.unpack(moving.folder / "bundle", tracking_uri=peer.url)
    assert moving.target.get_run(there).data.tags[RESTORE] == "started"
    report = moving.unpack()
    assert (report.problems, counts(report)) == ((), (1, 0, 0))
    assert (points(moving.target, there, "loss"), moving.target.get_run(there).data.tags["t"]) == ([(0, 1.0)], "new")


# -- experiments -------------------------------------------------------------------------------------------------------


def test_tags_of_an_experiment_without_new_runs(moving: Moving, request: pytest.FixtureRequest) -> None:
    """New tags and new values of an experiment that a restore made arrive, though it has no new run; what somebody changed
    at the target stays until the archive says something new."""
    client = moving.client
    experiment = moving.new_experiment(request.node.name, tags={"a": "old", "b": "1"})
    client.create_run(experiment, start_time=START)
    moving.pack()
    there = moving.experiment_of(moving.unpack(), experiment)
    moving.target.set_experiment_tag(there, "b", "theirs")
    assert any("keeps its own value of the tag 'b'" in note for note in moving.unpack().notes)
    client.set_experiment_tag(experiment, "a", "new")
    client.set_experiment_tag(experiment, "c", "3")
    moving.pack()
    report = moving.unpack()
    assert (report.problems, counts(report)) == ((), (0, 1, 0))
    tags = moving.target.get_experiment(there).tags
    assert {key: tags[key] for key in "abc"} == {"a": "new", "b": "1", "c": "3"}
    assert not [note for note in moving.unpack().notes if "keeps its own" in note and request.node.name in note]


def test_an_experiment_that_came_back(moving: Moving, request: pytest.FixtureRequest) -> None:
    """An experiment that was deleted in the first snapshot is active after the second, each of its runs in its own state."""
    client = moving.client
    experiment = moving.new_experiment(request.node.name)
    runs = [client.create_run(experiment, start_time=START + number).info.run_id for number in range(2)]
    client.delete_run(runs[0])
    client.delete_experiment(experiment)
    moving.pack()
    there = moving.experiment_of(moving.unpack(), experiment)
    client.restore_experiment(experiment)
    client.delete_run(runs[0])
    moving.pack()
    report = moving.unpack()
    assert report.problems == ()
    assert moving.target.get_experiment(there).lifecycle_stage == "active"
    assert [moving.run_of(report, run).info.lifecycle_stage for run in runs] == ["deleted", "active"]


def test_an_experiment_that_is_refused(moving: Moving, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment that the server refuses is a problem and its runs fail; all others are restored. Once it is taken, a
    second unpack restores the rest."""
    name = request.node.name
    runs = {what: moving.new_run(f"{name} {what}") for what in "ab"}

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        if path.endswith("experiments/create") and f"{name} a".encode() in body:
            return 400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "not this one"}', None
        return forward(moving.server.url, method, path, body)

    moving.pack()
    with serve(answer) as peer:
        report = bundle.unpack(moving.folder / "bundle", tracking_uri=peer.url)
    assert counts(report) == (1, 0, 1)
    (problem,) = [problem for problem in report.problems if problem.kind == "experiment"]
    assert problem.code == "not-restored"
    assert "not this one" in problem.message
    assert list(report.run_ids) == [runs["b"]]
    again = moving.unpack()
    assert (again.problems, counts(again)) == ((), (1, 1, 0))


# -- logged models and the registry ------------------------------------------------------------------------------------


def outcome(report: bundle.UnpackReport, kind: str) -> dict[str, int]:
    """What became of the entities of a kind, without what is zero."""
    (found,) = [one for one in report.entities if one.kind == kind]
    names = ("restored", "there", "merged", "left_out", "failed")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


def test_a_logged_model_that_went_on(moving: Moving, request: pytest.FixtureRequest) -> None:
    """Tags, params, points, files and the state of a logged model that came later arrive; a deleted one that an earlier
    restore left deleted is there, and one that is deleted since is deleted."""
    client, store = moving.client, _get_store(moving.uri)
    experiment = moving.new_experiment(request.node.name)
    run = client.create_run(experiment, start_time=START).info.run_id
    going, doomed, gone = (store.create_logged_model(experiment, name, run).model_id for name in ("going", "doomed", "gone"))
    store.delete_logged_model(gone)
    place = Path(store.get_logged_model(going).artifact_location)
    place.mkdir(parents=True)
    (place / "old").touch()
    moving.pack()
    first = moving.unpack()
    assert (first.problems, outcome(first, "logged_model")) == ((), {"restored": 3})

    store.set_logged_model_tags(going, [LoggedModelTag("t", "new")])
    store.log_logged_model_params(going, [LoggedModelParameter("p", "1")])
    client.log_batch(run, [Metric("m", 0.5, START, 1, going, run_id=run)])
    store.finalize_logged_model(going, LoggedModelStatus.READY)
    (place / "old").rename(place / "weights")
    (place / "weights").write_bytes(b"12345")
    store.delete_logged_model(doomed)
    moving.pack()
    second = moving.unpack()
    assert (second.problems, outcome(second, "logged_model")) == ((), {"restored": 2, "there": 1})
    assert second.ids["logged_model"] == first.ids["logged_model"]
    there = second.ids["logged_model"][going]
    found = moving.target.get_logged_model(there)
    assert (found.status, found.params, found.tags["t"]) == (LoggedModelStatus.READY, {"p": "1"}, "new")
    assert [(point.key, point.value) for point in found.metrics] == [("m", 0.5)]
    assert [file.path for file in moving.target.list_logged_model_artifacts(there)] == ["old", "weights"]
    assert "the logged model at the target has the file 'old' besides" in second.notes
    with pytest.raises(MlflowException):
        moving.target.get_logged_model(second.ids["logged_model"][doomed])
    third = moving.unpack()
    assert (third.problems, outcome(third, "logged_model")) == ((), {"there": 3})


def test_a_deleted_logged_model_that_changed(moving: Moving, request: pytest.FixtureRequest) -> None:
    """Of a logged model that is deleted at the target, what the newer snapshot has otherwise is a problem each time."""
    store, experiment = _get_store(moving.uri), moving.new_experiment(request.node.name)
    gone, back = (store.create_logged_model(experiment, name, tags=[LoggedModelTag("t", "old")]).model_id for name in "ab")
    for model in (gone, back):
        store.delete_logged_model(model)
    moving.pack()
    moving.unpack()
    execute(moving.uri, f"UPDATE logged_model_tags SET tag_value = 'new' WHERE model_id = '{gone}'")
    execute(moving.uri, f"UPDATE logged_models SET lifecycle_stage = 'active' WHERE model_id = '{back}'")
    moving.pack()
    for _ in range(2):
        report = moving.unpack()
        assert outcome(report, "logged_model") == {"failed": 2}
        told = {problem.id: problem.message for problem in report.problems}
        assert "{'t': 'new'}" in told[gone]
        assert "the archive has it active" in told[back]


def test_a_registry_that_went_on(moving: Moving, request: pytest.FixtureRequest) -> None:
    """Descriptions, tags, stages, new versions and aliases that moved arrive at models that a restore made, as do those of
    prompts; models of somebody else keep what they have, and that is told."""
    client, names = moving.client, [f"{request.node.name} {what}" for what in ("ours", "taken")]
    moving.target.create_registered_model(names[1], description="theirs")
    run = moving.new_run(request.node.name)
    source = f"runs:/{run}/model"
    for name in names:
        client.create_registered_model(name, description="old", tags={"t": "old"})
        client.create_model_version(name, source, run, description="old", tags={"t": "old"})
        client.set_registered_model_alias(name, "live", 1)
    client.register_prompt(f"{request.node.name}.prompt", "Say 1")
    client.set_prompt_alias(f"{request.node.name}.prompt", "live", 1)
    moving.pack()
    first = moving.unpack()
    assert (first.problems, outcome(first, "registered_model")) == ((), {"restored": 2, "merged": 1})
    same = moving.unpack()
    assert (same.problems, outcome(same, "registered_model")) == ((), {"there": 2, "merged": 1})
    assert outcome(same, "model_version") == {"there": 3}

    for name in names:
        client.update_registered_model(name, description="new")
        client.set_registered_model_tag(name, "t", "new")
        client.set_registered_model_tag(name, "u", "new")
        client.update_model_version(name, 1, description="new")
        client.set_model_version_tag(name, 1, "t", "new")
        client.transition_model_version_stage(name, 1, "Production")
        client.create_model_version(name, source, run)
        client.set_registered_model_alias(name, "live", 2)
        client.set_registered_model_alias(name, "old", 1)
    client.register_prompt(f"{request.node.name}.prompt", "Say 2")
    client.set_prompt_alias(f"{request.node.name}.prompt", "live", 2)
    moving.pack()
    second = moving.unpack()
    assert (second.problems, outcome(second, "registered_model")) == ((), {"restored": 2, "merged": 1})
    assert outcome(second, "model_version") == {"restored": 5, "there": 1}
    ours, taken = (moving.target.get_registered_model(name) for name in names)
    assert (ours.description, ours.tags["t"], ours.tags["u"], ours.aliases) == ("new", "new", "new", {"live": "2", "old": "1"})
    assert (taken.description, taken.tags["u"], taken.aliases) == ("theirs", "new", {"live": "1", "old": "1"})
    told = " ".join(second.notes)
    assert f"'{names[1]}' keeps its own description" in told
    assert f"'{names[1]}' keeps its own alias 'live'" in told
    for name in names:
        version = moving.target.get_model_version(name, "1")
        assert (version.description, version.tags["t"], version.current_stage) == ("new", "new", "Production")
    assert moving.target.get_prompt_version_by_alias(f"{request.node.name}.prompt", "live").version == 2
    third = moving.unpack()
    assert (third.problems, outcome(third, "registered_model")) == ((), {"there": 2, "merged": 1})
    assert outcome(third, "model_version") == {"there": 6}


def test_a_version_that_cannot_follow(moving: Moving, request: pytest.FixtureRequest) -> None:
    """A version that is deleted in the newer snapshot, and one whose source is another there, are problems each time."""
    client, name = moving.client, request.node.name
    client.create_registered_model(name)
    run = moving.new_run(name)
    for _ in range(3):
        client.create_model_version(name, f"runs:/{run}/model", run)
    moving.pack()
    moving.unpack()
    client.delete_model_version(name, "1")
    execute(moving.uri, f"UPDATE model_versions SET source = 'runs:/{run}/other' WHERE name = '{name}' AND version = 2")
    moving.pack()
    for _ in range(2):
        report = moving.unpack()
        assert outcome(report, "model_version") == {"there": 1, "failed": 2}
        told = {problem.id: problem.message for problem in report.problems}
        assert "it is deleted in this snapshot" in told[f"{name}/1"]
        assert "the tag 'mlflow_bundle.source.source'" in told[f"{name}/2"]


# -- traces ------------------------------------------------------------------------------------------------------------


def span_of(trace_id: str, number: int, *, ended: bool) -> Span:
    """A span of a trace; the first one is the root."""
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode(),
            "span_id": base64.b64encode(bytes([number] * 8)).decode(),
            "parent_span_id": base64.b64encode(bytes([1] * 8)).decode() if number > 1 else None,
            "name": f"span {number}",
            "start_time_unix_nano": START * 1_000_000,
            "end_time_unix_nano": START * 1_000_000 + 7_000_000 if ended else None,
            "events": [],
            "status": {"code": "STATUS_CODE_OK" if ended else "STATUS_CODE_UNSET", "message": ""},
            "attributes": {"mlflow.traceRequestId": json.dumps(trace_id)},
        }
    )


def test_traces_that_went_on(moving: Moving, request: pytest.FixtureRequest) -> None:
    """A trace that was under way gets its end, its later spans, tags, judgements and changed judgements; what was changed at
    the target alone stays, and that is told."""
    experiment, store = moving.new_experiment(request.node.name), _get_store(moving.uri)
    bare, spanned, still, tagged = ("tr-" + uuid.uuid4().hex for _ in range(4))
    place = TraceLocation.from_experiment_id(experiment)
    for trace in (bare, spanned, still, tagged):
        state = TraceState.OK if trace in (still, tagged) else TraceState.IN_PROGRESS
        store.start_trace(TraceInfo(trace, place, START, state, tags={"t": "old"}, trace_metadata={"m": "old"}))
    store.log_spans(experiment, [span_of(spanned, 1, ended=True)])
    source = AssessmentSource("HUMAN", "me@example.com")
    judged = store.create_assessment(Feedback(name="good", value=1.0, source=source, trace_id=still)).assessment_id
    moving.pack()
    first = moving.unpack()
    assert (first.problems, outcome(first, "trace")) == ((), {"restored": 4})
    same = moving.unpack()
    assert (same.problems, outcome(same, "trace")) == ((), {"there": 4})

    moving.target.set_trace_tag(bare, "own", "mine")
    for trace in (bare, spanned):
        more = {"tags": {"t": "new", "u": "new"}, "trace_metadata": {"m": "new", "n": "new"}, "response_preview": "done"}
        store.start_trace(TraceInfo(trace, place, START, TraceState.OK, execution_duration=9, **more))
    store.log_spans(experiment, [span_of(spanned, 2, ended=True)])
    store.update_assessment(still, judged, feedback=FeedbackValue(0.0), rationale="no")
    store.create_assessment(Feedback(name="other", value="x", source=source, trace_id=still))
    store.set_trace_tag(still, "t", "new")
    store.set_trace_tag(tagged, "t", "new")
    store.set_trace_tag(tagged, "u", "new")
    moving.pack()
    second = moving.unpack()
    assert (second.problems, outcome(second, "trace")) == ((), {"merged": 4})
    there = _get_store(moving.server.url)
    for trace in (bare, spanned):
        found = there.get_trace_info(trace)
        assert (found.state, found.execution_duration, found.response_preview) == (TraceState.OK, 9, "done")
        assert {key: found.tags[key] for key in "tu"} == {"t": "new", "u": "new"}
        assert {key: found.trace_metadata[key] for key in "mn"} == {"m": "new", "n": "new"}
    assert there.get_trace_info(bare).tags["own"] == "mine"
    assert sorted(span.name for span in moving.target.get_trace(spanned).data.spans) == ["span 1", "span 2"]
    found = there.get_trace_info(still)
    assert {one.name: one.feedback.value for one in found.assessments} == {"good": 0.0, "other": "x"}
    assert found.tags["t"] == "new"
    found = there.get_trace_info(tagged)
    assert (found.tags["t"], found.tags["u"]) == ("old", "new")
    told = " ".join(second.notes)
    assert "stays as it is: the tag 't' is 'old' instead of 'new'" in told
    assert "the tag 'own' besides" in told
    third = moving.unpack()
    assert (third.problems, outcome(third, "trace")) == ((), {"there": 2, "merged": 2})


# -- what is found by its name or by what it says ----------------------------------------------------------------------

#: SQL that changes an entity of each kind in the source, and a word of what is told of it.
CHANGES: dict[str, tuple[str, str]] = {
    "evaluation_dataset": ("UPDATE evaluation_dataset_tags SET value = 'new' WHERE key = 't'", "tags"),
    "dataset_record": ("UPDATE evaluation_dataset_records SET expectations = '{\"a\": 2}'", "keep what they have there"),
    "label_schema": ("UPDATE label_schemas SET instruction = 'new', enable_comment = 1", "keeps its own enable_comment"),
    "review_queue": ("UPDATE review_queue_users SET user_id = 'new'", "keeps its own users"),
    "issue": ("UPDATE issues SET status = 'resolved', severity = 'low'", "issues that differ at the target"),
    "scorer": ("UPDATE scorer_versions SET serialized_scorer = REPLACE(serialized_scorer, '7', '8')", "has another version 1"),
    "mcp_server": ("UPDATE mcp_servers SET description = 'new', display_name = 'new'", "description is 'old'"),
    "mcp_server_version": ("UPDATE mcp_server_versions SET status = 'deprecated'", "status is 'active'"),
}


def make_others(moving: Moving, name: str) -> None:
    """One entity of each kind of ``CHANGES``."""
    store, experiment = _get_store(moving.uri), moving.new_experiment(name)
    dataset = store.create_dataset(name, {"t": "old"}, [experiment])
    store.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"n": 1}, "expectations": {"a": 1}}])
    store.create_label_schema(experiment, name="schema", type="feedback", input=InputText(), instruction="old")
    store.create_review_queue(experiment, name="queue", queue_type="custom", users=["ann"])
    store.create_issue(experiment, "issue", "it is slow")
    store.register_scorer(experiment, "scorer", json.dumps({"name": "scorer", "builtin_scorer_class": "Safety", "n": 7}))
    times = {"created_at": START, "last_updated_at": START}
    server = {"workspace": "default", "name": f"org.example/{name}", **times}
    document = json.dumps({"name": server["name"], "version": "1.0.0"})
    numbers = {"version_major": 1, "version_minor": 0, "version_patch": 0, "version_prerelease_sort_key": "~"}
    rows = {
        "mcp_servers": {**server, "description": "old"},
        "mcp_server_versions": {**server, **numbers, "version": "1.0.0", "server_json": document, "status": "active"},
    }
    for table, row in rows.items():
        values = ", ".join(repr(value) for value in row.values())
        execute(moving.uri, f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})")


def test_what_keeps_what_it_has(moving: Moving, request: pytest.FixtureRequest) -> None:
    """An entity that is found by its name, or by what it says, and says something else in the newer snapshot is not counted
    as there, and what it keeps is told; unpacked again without a change, it is there."""
    make_others(moving, request.node.name)
    moving.pack()
    first = moving.unpack()
    assert first.problems == ()
    assert {kind: outcome(first, kind) for kind in CHANGES} == {kind: {"restored": 1} for kind in CHANGES}
    same = moving.unpack()
    assert {kind: outcome(same, kind) for kind in CHANGES} == {kind: {"there": 1} for kind in CHANGES}

    for kind, (statement, word) in reversed(CHANGES.items()):
        execute(moving.uri, statement)
        moving.pack()
        report = moving.unpack()
        told = " ".join([*report.notes, *(problem.message for problem in report.problems)])
        assert word in told, (kind, told)
        assert "there" not in outcome(report, kind), kind


# -- databases ---------------------------------------------------------------------------------------------------------


def test_a_database_reports_each_difference(moving: Moving, request: pytest.FixtureRequest) -> None:
    """A database is only added to: runs, traces and models that went on since an older restore are problems, one for each
    difference; new ones arrive, tags that an experiment lacks too."""
    client, store = moving.client, _get_store(moving.uri)
    target = f"sqlite:///{moving.folder / 'restored.db'}"
    experiment = moving.new_experiment(request.node.name, tags={"a": "old"})
    empty = moving.new_experiment(f"{request.node.name} empty", tags={"a": "old"})
    run = client.create_run(experiment, start_time=START).info.run_id
    model = store.create_logged_model(experiment, "model", run).model_id
    trace = "tr-" + uuid.uuid4().hex
    place = TraceLocation.from_experiment_id(experiment)
    store.start_trace(TraceInfo(trace, place, START, TraceState.IN_PROGRESS))
    make_others(moving, f"{request.node.name}-others")
    client.create_registered_model("registered", description="old")
    moving.pack()
    assert bundle.unpack(moving.folder / "bundle", tracking_uri=target).problems == ()

    client.log_batch(run, [Metric("loss", 1.0, START, 0)], [Param("p", "1")], [RunTag("t", "new")])
    moving.file(run, "notes.txt", "one")
    new = client.create_run(experiment, start_time=START + 1).info.run_id
    for one in (experiment, empty):
        client.set_experiment_tag(one, "a", "new")
        client.set_experiment_tag(one, "b", "new")
    store.set_logged_model_tags(model, [LoggedModelTag("t", "new")])
    store.start_trace(TraceInfo(trace, place, START, TraceState.OK, execution_duration=9))
    for statement, _ in CHANGES.values():
        execute(moving.uri, statement)
    client.update_registered_model("registered", description="new")
    moving.pack()
    report = bundle.unpack(moving.folder / "bundle", tracking_uri=target)
    assert counts(report) == (1, 0, 1)
    assert report.run_ids[new] == new
    told = {(problem.kind, problem.id) for problem in report.problems}
    assert {("run", run), ("logged_model", model), ("trace", trace)} <= told
    of_run = " ".join(problem.message for problem in report.problems if problem.id == run)
    assert all(what in of_run for what in ("param 'p' is missing", "tag 't' is missing", "0 metric points where 1 belong"))
    told_kinds = {kind for kind, _ in told}
    for kind in CHANGES.keys() - {"mcp_server", "dataset_record"}:
        assert (kind in told_kinds, outcome(report, kind)) == (True, {"failed": 1}), kind
    assert outcome(report, "dataset_record") == {"left_out": 1}  # its dataset is another one
    notes = " ".join(report.notes)
    assert "'old' where 'new' was expected" in notes
    assert outcome(report, "registered_model") == outcome(report, "mcp_server") == {"merged": 1}
    there = MlflowClient(target)
    for one in (experiment, empty):
        assert there.get_experiment(one).tags == {"a": "old", "b": "new"}
        assert f"the experiment {there.get_experiment(one).name!r} was there and keeps what differs: the tag 'a'" in notes
