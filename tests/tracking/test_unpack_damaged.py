"""An unpack of a damaged bundle: nothing is lost beyond the damage, nothing is silent, and a mended bundle completes it."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, TraceInfo, TraceLocation, TraceState
from mlflow.tracking._tracking_service.utils import _get_store
from msgspec.structs import replace

import mlflow_bundle as bundle
from mlflow_bundle._bundle import open_bundle
from mlflow_bundle._storage import open_storage
from mlflow_bundle.errors import CorruptError, NotFoundError
from mlflow_bundle.records import KeyValue, record_id
from tests.building import content_of, pack_content
from tests.fixtures.estate import Estate
from tests.fixtures.server import MlflowServer
from tests.tracking.test_newer_snapshot import span_of

START = 1_700_000_000_000

#: Kinds that others belong to or name.
NAMED = ("experiment", "run", "logged_model", "registered_model", "evaluation_dataset", "mcp_server")

pytestmark = pytest.mark.slow

Counts = dict[str, int]


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x11
    path.write_bytes(data)


def at_target(report: bundle.UnpackReport) -> Counts:
    """How many of each kind are at the target as they should be."""
    counts = {one.kind: one.restored + one.there + one.merged for one in report.entities}
    return counts | {"run": report.runs_restored + report.runs_already_there}


def not_there(report: bundle.UnpackReport) -> int:
    """How many selected entities are told not to be at the target as they should be."""
    return report.runs_failed + sum(one.left_out + one.failed for one in report.entities)


@pytest.fixture(scope="module")
def whole(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every kind."""
    place = tmp_path_factory.mktemp("damaged") / "whole"
    assert bundle.pack(bundle=place, tracking_uri=estate.uri).problems == ()
    return place


def objects_of(place: Path) -> list[tuple[str, str]]:
    """The role and the path of every object."""
    with open_bundle(place) as archive:
        return [(ref.role, ref.path) for ref in archive.objects]


def of_every_sort(place: Path) -> list[tuple[str, str]]:
    """The role and the path of the tables, views and contents, and of the records that others belong to or name."""
    with open_bundle(place) as archive:
        return [(ref.role, ref.path) for ref in archive.objects if ref.role != "records" or ref.kind in NAMED]


def test_any_object(whole: Path, tmp_path: Path) -> None:
    """Whatever object is lost, cut off or altered (every fourth one is): the unpack goes through, tells it, counts nothing as
    restored that is not, and the next one of the whole bundle completes the target."""
    place = tmp_path / "bundle"
    shutil.copytree(whole, place)
    healthy = bundle.unpack(whole, tracking_uri=f"sqlite:///{tmp_path}/whole.db")
    expected = at_target(healthy)
    for number, (role, path) in enumerate(of_every_sort(whole)[::4]):
        (lose, cut, flip)[number % 3](place / path)
        uri = f"sqlite:///{tmp_path}/{number}/target.db"
        (tmp_path / str(number)).mkdir()
        report = bundle.unpack(place, tracking_uri=uri, allow_partial=True)
        if role not in ("packs", "blobs"):  # of these, only the bytes that files need are read
            assert any(problem.object == path for problem in report.problems)
        assert at_target(report) == expected or report.problems
        assert not_there(report) - not_there(healthy) == sum(expected.values()) - sum(at_target(report).values())
        shutil.copy(whole / path, place / path)
        mended = bundle.unpack(place, tracking_uri=uri, allow_partial=True)
        # An endpoint of the gateway that was restored without its experiment stays without it.
        assert [problem for problem in mended.problems if problem.kind != "gateway_endpoint"] == []
        assert at_target(mended) | {"gateway_endpoint": 1} == expected


@pytest.fixture
def lively(empty_mlflow: str, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The name of an experiment with runs, a logged model and a trace that have rows and files, and its bundle."""
    name, client, store = str(request.node.name), MlflowClient(empty_mlflow), _get_store(empty_mlflow)
    experiment = client.create_experiment(name, artifact_location=str(tmp_path / "files"))
    for number in range(3):
        run = client.create_run(experiment, run_name=f"run {number}", tags={"t": str(number)}).info.run_id
        client.log_param(run, "p", number)
        client.log_metric(run, "m", 0.5 + number, START, 1)
        for path in ("one.txt", "two.txt"):
            client.log_text(run, f"{path} of {number}", path)
    model = store.create_logged_model(experiment, "model", run)
    client.log_batch(run, [Metric("of model", 0.25, START, 1, model.model_id, run_id=run)])
    Path(model.artifact_location).mkdir(parents=True)
    for path in ("a.bin", "b.bin"):
        (Path(model.artifact_location) / path).write_text(f"{path} of the model")
    trace = "tr-" + uuid.uuid4().hex
    place = TraceLocation.from_experiment_id(experiment)
    store.start_trace(TraceInfo(trace, place, START, TraceState.OK, tags={"t": "1"}))
    store.log_spans(experiment, [span_of(trace, 1, ended=True), span_of(trace, 2, ended=True)])
    assert bundle.pack(bundle=tmp_path / "whole", tracking_uri=empty_mlflow).problems == ()
    shutil.copytree(tmp_path / "whole", tmp_path / "bundle")
    return name, tmp_path / "bundle"


def mend(place: Path) -> None:
    """The objects as they were."""
    shutil.copytree(place.with_name("whole"), place, dirs_exist_ok=True)


def test_a_server_and_lost_tables(server: MlflowServer, lively: tuple[str, Path]) -> None:
    """What a server can get of runs, models and traces whose rows are all lost is there, none of it counts as restored, and
    the mended bundle completes it."""
    (name, place), client = lively, MlflowClient(server.url)
    for role, path in objects_of(place):
        if role in ("metrics", "model_metrics", "spans", "files"):
            lose(place / path)
    report = bundle.unpack(place, tracking_uri=server.url, allow_partial=True)
    assert (report.runs_restored, report.runs_failed) == (0, 3)
    assert {one.kind: one.failed for one in report.entities if one.failed} == {"logged_model": 1, "trace": 1}
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["p"] for run in runs) == ["0", "1", "2"]
    assert not any(run.data.metrics for run in runs)
    mend(place)
    report = bundle.unpack(place, tracking_uri=server.url)
    assert (report.problems, report.runs_restored) == ((), 3)
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.metrics["m"] for run in runs) == [0.5, 1.5, 2.5]
    assert all(len(client.list_artifacts(run.info.run_id)) == 2 for run in runs)
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert [metric.value for metric in model.metrics] == [0.25]
    (trace,) = client.search_traces(locations=[experiment.experiment_id])
    assert len(trace.data.spans) == 2


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_database_and_lost_tables(
    postgres_database: Callable[[], str], lively: tuple[str, Path], tmp_path: Path, dialect: str
) -> None:
    """The same of a database. What the mended bundle adds to what is there is told."""
    _, place = lively
    uri = postgres_database() if dialect == "postgresql" else f"sqlite:///{tmp_path}/target.db"
    for role, path in objects_of(place):
        if role in ("metrics", "model_metrics", "spans", "files"):
            lose(place / path)
    report = bundle.unpack(place, tracking_uri=uri, artifact_root=tmp_path / "root", allow_partial=True)
    assert (report.runs_restored, report.runs_failed, report.metric_points) == (0, 3, 0)
    assert {one.kind: one.failed for one in report.entities if one.failed} == {"logged_model": 1, "trace": 1}
    mend(place)
    report = bundle.unpack(place, tracking_uri=uri, artifact_root=tmp_path / "root")
    assert (report.problems, report.runs_restored, report.metric_points, report.files) == ((), 3, 4, 6)
    for what in ("run that was there without any metric", "model that was there without any metric", "trace that was there"):
        assert any(what in note for note in report.notes)
    bundle.pack(bundle=tmp_path / "again", tracking_uri=uri)
    with open_bundle(place) as first, open_bundle(tmp_path / "again") as second:
        for name in ("metric_point", "model_metric_point", "span", "file", "file_bytes"):
            assert first.snapshot.counts[name] == second.snapshot.counts[name]


@pytest.mark.parametrize("road", ["server", "database"])
def test_a_damaged_file(server: MlflowServer, lively: tuple[str, Path], tmp_path: Path, road: str) -> None:
    """Of a run and a model one of whose files is damaged all other files arrive; neither counts as restored before the damaged
    one arrives, too."""
    _, place = lively
    uri = server.url if road == "server" else f"sqlite:///{tmp_path}/target.db"
    pack = next(place / path for role, path in objects_of(place) if role == "packs")
    data = pack.read_bytes()
    for text in (b"one.txt of 1", b"a.bin of the model"):
        assert text in data
        data = data.replace(text, text.upper())
    pack.write_bytes(data)
    report = bundle.unpack(place, tracking_uri=uri, allow_partial=True)
    assert (report.runs_restored, report.runs_failed, report.files) == (2, 1, 5)
    (model,) = [one for one in report.entities if one.kind == "logged_model"]
    assert model.failed == 1
    assert {(problem.kind, problem.path) for problem in report.problems} == {("run", "one.txt"), ("logged_model", "a.bin")}
    mend(place)
    report = bundle.unpack(place, tracking_uri=uri)
    assert report.problems == ()
    assert (report.runs_restored + report.runs_already_there, report.runs_failed) == (3, 0)
    (model,) = [one for one in report.entities if one.kind == "logged_model"]
    assert (model.failed, model.there, model.restored + model.merged) == (0, 0, 1)


@pytest.mark.parametrize("role", ["files", "packs"])
def test_files_of_a_version(server: MlflowServer, empty_mlflow: str, tmp_path: Path, role: str) -> None:
    """Versions whose own files are lost keep their numbers at a server, are not restored, and get their files when they can."""
    client, target, name = MlflowClient(empty_mlflow), MlflowClient(server.url), f"versions {role}"
    client.create_registered_model(name)
    for number in "12":
        client.create_model_version(name, "runs:/x/y")
        (tmp_path / "own" / number).mkdir(parents=True)
        (tmp_path / "own" / number / "weights.bin").write_text(f"weights {number}")
    with closing(sqlite3.connect(empty_mlflow.removeprefix("sqlite:///"))) as database, database:
        places = "UPDATE model_versions SET source = ? || version, storage_location = ? || version"
        database.execute(places, [f"{tmp_path}/own/"] * 2)
    bundle.pack(bundle=tmp_path / "whole", tracking_uri=empty_mlflow)
    shutil.copytree(tmp_path / "whole", tmp_path / "bundle")
    for _, path in (found for found in objects_of(tmp_path / "bundle") if found[0] == role):
        lose(tmp_path / "bundle" / path)
    for place, counts in (("bundle", (0, 2, 0)), ("whole", (2, 0, 2))):
        report = bundle.unpack(tmp_path / place, tracking_uri=server.url, allow_partial=True)
        (outcome,) = [one for one in report.entities if one.kind == "model_version"]
        assert (outcome.restored, outcome.failed, outcome.files) == counts
        assert {str(version.version) for version in target.search_model_versions(f"name = '{name}'")} == {"1", "2"}
    assert report.problems == ()


def test_without_allow_partial(lively: tuple[str, Path], tmp_path: Path) -> None:
    """A damaged object stops the unpack before anything is written, and the hint says what can be done."""
    _, place = lively
    lose(next(place / path for role, path in objects_of(place) if role == "spans"))
    with pytest.raises(CorruptError) as raised:
        bundle.unpack(place, tracking_uri=f"sqlite:///{tmp_path}/target.db")
    assert "--allow-partial restores the rest" in str(raised.value.hint)
    assert not (tmp_path / "target.db").exists()


@pytest.fixture
def whole_runs(tmp_path: Path) -> Path:
    """A bundle of ten runs, each with its number as a param and its number and a half as the latest value of a metric."""
    content = content_of(10)
    content.files = {}
    content.runs = [replace(run, params=(KeyValue("p", str(number)),)) for number, run in enumerate(content.runs)]
    content.points = {
        run.run_id: [("m", 1, START, 100.0), ("m", 2, START, number + 0.5)] for number, run in enumerate(content.runs)
    }
    with open_storage(tmp_path / "runs", create=True) as storage:
        pack_content(storage, content)
    return tmp_path / "runs"


def test_a_filter_on_metrics(whole_runs: Path, tmp_path: Path) -> None:
    """Where the view of runs is damaged, a filter on metrics selects them by their points."""
    for role, path in objects_of(whole_runs):
        if role == "views":
            lose(whole_runs / path)
    for name, condition, count in (("few", "metrics.m > 5.5", 4), ("all", "metrics.m >= 0.5 AND params.p != 'x'", 10)):
        uri = f"sqlite:///{tmp_path}/{name}.db"
        report = bundle.unpack(whole_runs, tracking_uri=uri, filter=condition, allow_partial=True)
        assert report.runs_restored == count
        assert not [problem for problem in report.problems if problem.code == "filter-undecided"]


def test_a_filter_on_lost_metrics(whole_runs: Path, tmp_path: Path) -> None:
    """Where nobody can tell whether runs match a filter, that is a problem which names them, and only those."""
    for role, path in objects_of(whole_runs):
        if role in ("views", "metrics"):
            lose(whole_runs / path)
    condition, uri = "metrics.m > 0 AND params.p != '5'", f"sqlite:///{tmp_path}/target.db"
    report = bundle.unpack(whole_runs, tracking_uri=uri, filter=condition, allow_partial=True, dry_run=True)
    assert report.runs_restored == 0
    (problem,) = [problem for problem in report.problems if problem.code == "filter-undecided"]
    assert len(problem.runs) == 9
    report = bundle.unpack(whole_runs, tracking_uri=uri, filter="params.p != '5'", allow_partial=True, dry_run=True)
    assert not [problem for problem in report.problems if problem.code == "filter-undecided"]
    assert {problem.message.split(" because")[0].rpartition("its ")[2] for problem in report.problems if problem.id} == {
        "metric points may be lost,"
    }


def test_a_lost_record_that_is_named(whole_runs: Path, tmp_path: Path) -> None:
    """A run that is named and whose record is lost is told to be lost; without a view it may be."""
    with open_bundle(whole_runs) as archive:
        run = next(iter(archive.records("run")))
        lost = [whole_runs / ref.path for ref in archive.objects if ref.role == "records" and ref.kind == "run"]
        views = [whole_runs / ref.path for ref in archive.objects if ref.role == "views"]
    for path in lost:
        lose(path)
    named: dict[str, Any] = {"run": record_id(run), "allow_partial": True, "tracking_uri": f"sqlite:///{tmp_path}/target.db"}
    with pytest.raises(CorruptError, match="10 run records are lost"):
        bundle.unpack(whole_runs, **named)
    for path in views:
        lose(path)
    with pytest.raises(NotFoundError) as raised:
        bundle.unpack(whole_runs, **named)
    assert "10 run records are lost" in str(raised.value.hint)


def test_a_dry_run_and_lost_tables(lively: tuple[str, Path], tmp_path: Path) -> None:
    """A dry run tells every loss that the unpack tells, of each run and of each other entity."""
    _, place = lively
    for role, path in objects_of(place):
        if role in ("metrics", "model_metrics", "spans", "files"):
            lose(place / path)
    planned, done = (
        bundle.unpack(place, tracking_uri=f"sqlite:///{tmp_path}/target.db", allow_partial=True, dry_run=dry_run)
        for dry_run in (True, False)
    )
    assert {problem.kind for problem in done.problems if problem.id} == {"run", "logged_model", "trace"}
    assert set(planned.problems) == set(done.problems)
