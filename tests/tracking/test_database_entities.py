"""Entities from database to database: derived columns, workspaces, what a database cannot hold, used targets, old schemas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow.entities import (
    Assessment,
    AssessmentSource,
    Dataset,
    DatasetInput,
    Expectation,
    Feedback,
    Metric,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities.assessment import IssueReference
from mlflow.entities.span import Span
from mlflow.entities.workspace import Workspace
from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore as WorkspacesOfModels
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore as WorkspacesOfExperiments
from mlflow.store.workspace.sqlalchemy_store import SqlAlchemyStore as WorkspaceStore
from mlflow.tracing.utils import build_otel_context
from mlflow.utils.workspace_context import WorkspaceContext
from opentelemetry.sdk.trace import ReadableSpan

import mlflow_bundle as bundle
from mlflow_bundle.entities import DatasetRecord
from mlflow_bundle.records import record_id
from mlflow_bundle.tracking._port import EntityQuery
from mlflow_bundle.tracking.database._read import DatabaseSource
from tests.tracking.moving import every_row, execute, make_database, rows

pytestmark = pytest.mark.slow


def unpacked(place: Path, target: str, **options: Any) -> bundle.UnpackReport:
    """Restore a bundle completely, and say so."""
    report = bundle.unpack(place, tracking_uri=target, **options)
    assert report.problems == ()
    return report


def packed(uri: str, place: Path) -> Path:
    """A complete bundle of a database."""
    report = bundle.pack(bundle=place, tracking_uri=uri)
    assert (report.state, report.problems) == ("complete", ())
    return place


# -- derived columns ---------------------------------------------------------------------------------------------------


def span(number: int, trace_id: str, attributes: dict[str, Any], parent: int | None = None) -> Span:
    """A finished span. Attributes are JSON texts inside, as MLflow writes them."""
    trace = int(trace_id.removeprefix("tr-"), 16)
    return Span(
        ReadableSpan(
            name=f"span {number}\nü",
            context=build_otel_context(trace, number),
            parent=None if parent is None else build_otel_context(trace, parent),
            start_time=1_700_000_000_000_000_000 + number,
            end_time=1_700_000_000_000_000_777 + number * 3,
            attributes={
                "mlflow.traceRequestId": json.dumps(trace_id),
                **{key: json.dumps(value) for key, value in attributes.items()},
            },
        )
    )


def trace_of(store: SqlAlchemyStore, experiment: str, number: int, tags: dict[str, str], metadata: dict[str, str]) -> str:
    """A trace without spans."""
    info = TraceInfo(
        trace_id=f"tr-{number:032x}",
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=1_700_000_000_000 + number,
        execution_duration=number,
        state=TraceState.OK,
        tags=tags,
        trace_metadata=metadata,
    )
    return str(store.start_trace(info).trace_id)


def judgements(trace_id: str) -> list[Assessment]:
    """Values of every shape that charts read otherwise."""
    source = AssessmentSource("LLM_JUDGE", "judge")
    values: list[Any] = [
        True,
        False,
        0,
        0.25,
        -7,
        10**400,
        float("nan"),
        float("inf"),
        "yes",
        " NO ",
        "maybe",
        [1],
        {"a": None},
    ]
    found: list[Assessment] = [Feedback(name=f"f{n}", value=value, source=source) for n, value in enumerate(values)]
    found.append(Expectation(name="e", value="Yes", source=source))
    found.append(IssueReference(issue_id="iss-1", issue_name="slow", source=source))
    for one in found:
        one.trace_id = trace_id
    return found


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow's own store in which every column that it derives has a hard case."""
    folder = tmp_path_factory.mktemp("derived")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    store = SqlAlchemyStore(uri, str(folder / "artifacts"))
    experiment = store.create_experiment("derived")
    usage = {"input_tokens": 3, "output_tokens": 2**62, "total_tokens": 0, "cache_read_input_tokens": 1}
    more = {
        "mlflow.trace.tokenUsage": json.dumps(usage),
        "mlflow.trace.cost": json.dumps({"total_cost": 1e-300, "input_cost": 0}),
    }
    whole = trace_of(store, experiment, 1, {"mlflow.traceName": "ü" * 4000}, {**more, "mlflow.trace.session": "s" * 250})
    trace_of(store, experiment, 2, {}, {"mlflow.trace.session": ""})
    cost = {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3}
    model = {"mlflow.llm.model": "m" * 600, "mlflow.llm.provider": "p", "mlflow.llm.cost": cost, "mlflow.spanType": "LLM"}
    store.log_spans(experiment, [span(1, whole, {}), span(2, whole, model, 1), span(3, whole, {"mlflow.llm.model": 5}, 1)])
    for assessment in judgements(whole):
        store.create_assessment(assessment)
    dataset = store.create_dataset("data", tags={"t": "v"}, experiment_ids=[experiment, "0"])
    inputs = [{"ü": 1, "a": {"z": 1, "b": [1.0, 1e300, None]}}, {"b": 1, "a": 2}, {"a": True}, {"a": "\x00\ud83d\ude00"}]
    store.upsert_dataset_records(dataset.dataset_id, [{"inputs": one, "outputs": None} for one in inputs])
    store.create_review_queue(experiment, name="ÄSTRA İx", queue_type="custom")
    store.create_mcp_server_version({"name": "com.example/some-server", "version": "10.2.3-rc.1+build", "description": "d"})
    run = store.create_run(experiment, "me", 1, [], "run")
    points = [(0.5, 1), (float("nan"), 1), (float("inf"), 2), (float("-inf"), 3), (-0.0, 3), (float("nan"), 3)]
    store.log_batch(run.info.run_id, [Metric("m", value, 5, step) for value, step in points], [], [])
    store.log_inputs(run.info.run_id, [DatasetInput(Dataset("d", "1", "local", "{}"), [])])
    created = store.create_logged_model(experiment, "model", run.info.run_id, [], [], "type")
    linked = [
        Metric("m", value, n, n, model_id=created.model_id, run_id=run.info.run_id) for n, (value, _) in enumerate(points)
    ]
    store.log_batch(run.info.run_id, linked, [], [])
    store.engine.dispose()
    return uri


def test_derived_columns_are_those_of_mlflow(derived: str, tmp_path: Path) -> None:
    """What MLflow computes from other columns is, after a restore, what its own store had written, hard cases included."""
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    unpacked(packed(derived, tmp_path / "b"), target)
    first, second = every_row(derived), every_row(target)
    assert {name for name in first if first[name] != second[name]} == set()
    assert sum(map(len, first.values())) > 60


# -- workspaces --------------------------------------------------------------------------------------------------------


@contextmanager
def inside(workspace: str) -> Iterator[None]:
    """MLflow's own stores work in this workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
        with WorkspaceContext(workspace):
            yield


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with three workspaces, made by MLflow's own stores, in which names are the same."""
    folder = tmp_path_factory.mktemp("divided")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    experiments, models = WorkspacesOfExperiments(uri, str(folder / "artifacts")), WorkspacesOfModels(uri)
    workspaces = WorkspaceStore(uri)
    workspaces.create_workspace(Workspace("team-a", "the first\nteam", trace_archival_retention="30d"))
    workspaces.create_workspace(Workspace("team-b"))
    for number, name in enumerate(("default", "team-a", "team-b")):
        with inside(name):
            experiment = experiments.create_experiment("same")
            run = experiments.create_run(experiment, "me", number, [], f"run of {name}")
            experiments.log_batch(run.info.run_id, [Metric("m", number, 1, 1)], [], [])
            trace_of(experiments, experiment, number + 100, {}, {})
            experiments.create_experiment(f"only {name}")
            models.create_registered_model("model", description=name)
            models.create_model_version("model", "somewhere", run.info.run_id)
            models.create_registered_model(f"model-{name}")
            dataset = experiments.create_dataset("data", experiment_ids=[experiment])
            experiments.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"n": number}}])
    experiments.engine.dispose()
    models.engine.dispose()
    return uri


def test_names_of_all_workspaces_are_found_by_their_ids(divided: str, tmp_path: Path) -> None:
    """Each entity is found by its id, and each part by the id of what it belongs to, and no other of the same name is."""
    shutil.copy(divided.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    rows_of_servers = "('a/b', 'default', 1, 1), ('a/b', 'team-a', 1, 1)"
    execute(uri, f"INSERT INTO mcp_servers (name, workspace, created_at, last_updated_at) VALUES {rows_of_servers}")
    with closing(DatabaseSource(uri)) as source:
        for kind in ("registered_model", "model_version", "mcp_server", "dataset_record"):
            everything = [record for batch in source.entities(kind, EntityQuery()) for record in batch]
            assert len(everything) >= 2
            for record in everything:
                (found,) = source.entities(kind, EntityQuery(ids=(record_id(record),)))
                assert found == [record]
            assert list(source.entities(kind, EntityQuery(ids=("none", "team-a/none/1")))) == []
        (versions,) = source.entities("model_version", EntityQuery(parents=("team-a/model",)))
        assert [record_id(version) for version in versions] == ["team-a/model/1"]
        one = everything[0]
        assert isinstance(one, DatasetRecord)
        assert list(source.entities("dataset_record", EntityQuery(parents=(one.dataset_id,)))) == [[one]]


def test_workspaces_stay(divided: str, tmp_path: Path) -> None:
    """Everything is in the workspace that it was in, each workspace with its attributes, and MLflow itself finds it there."""
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    unpacked(packed(divided, tmp_path / "b"), target)
    first, second = every_row(divided), every_row(target)
    assert {name for name in first if first[name] != second[name]} == set()
    store, models = WorkspacesOfExperiments(target, str(tmp_path)), WorkspacesOfModels(target)
    for name in ("default", "team-a", "team-b"):
        with inside(name):
            experiment = store.get_experiment_by_name("same")
            assert [run.info.run_name for run in store.search_runs([experiment.experiment_id], "", 3)] == [f"run of {name}"]
            assert models.get_registered_model("model").description == name
    store.engine.dispose()
    models.engine.dispose()
    assert bundle.verify(packed(target, tmp_path / "again")).problems == ()
    with bundle.open(tmp_path / "b") as one, bundle.open(tmp_path / "again") as other:
        assert one.snapshot.logical.root == other.snapshot.logical.root


def test_one_workspace_takes_everything_but_names_that_collide(divided: str, tmp_path: Path) -> None:
    """Names that collide in one workspace are told before anything is written; the rest arrives there, and nothing is mixed."""
    place, target = packed(divided, tmp_path / "b"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(bundle.CannotHoldError) as refused:
        bundle.unpack(place, tracking_uri=target, workspace="team-b")
    assert not (tmp_path / "mlflow.db").exists()
    collisions = [(problem.kind, problem.id) for problem in refused.value.problems if problem.code == "name-collision"]
    assert collisions == [
        ("experiment", "1"),
        ("experiment", "3"),
        ("registered_model", "model"),
        ("registered_model", "team-a/model"),
    ]
    report = bundle.unpack(place, tracking_uri=target, workspace="team-b", allow_partial=True)
    assert set(report.problems) == set(refused.value.problems)
    assert rows(target, "SELECT name, workspace FROM experiments ORDER BY 1") == [
        ("Default", "team-b"),
        ("only default", "team-b"),
        ("only team-a", "team-b"),
        ("only team-b", "team-b"),
        ("same", "team-b"),
    ]
    assert rows(target, "SELECT name FROM runs") == [("run of team-b",)]
    assert rows(target, "SELECT description FROM registered_models WHERE name = 'model'") == [("team-b",)]
    assert rows(target, "SELECT name, version, workspace FROM model_versions") == [("model", 1, "team-b")]
    assert rows(target, "SELECT experiment_id FROM trace_info") == rows(
        target, "SELECT experiment_id FROM experiments WHERE name = 'same'"
    )
    assert rows(target, "SELECT name FROM workspaces ORDER BY 1") == [("default",), ("team-b",)]
    assert {o.kind: o.left_out for o in report.entities if o.left_out} == {
        "workspace": 2,
        "registered_model": 2,
        "model_version": 2,
        "trace": 2,
        "evaluation_dataset": 2,
        "dataset_record": 2,
    }


def test_an_experiment_that_collides_can_be_renamed(divided: str, tmp_path: Path) -> None:
    """``workspace/name`` renames the experiment of one workspace, and both arrive in one."""
    place, target = packed(divided, tmp_path / "b"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    renamed = {"team-a/same": "same of a", "default/same": "same of default"}
    report = bundle.unpack(place, tracking_uri=target, experiment="same", workspace="team-b", rename=renamed)
    assert report.problems == ()
    assert rows(target, "SELECT e.name, r.name FROM experiments e JOIN runs r USING (experiment_id) ORDER BY 1") == [
        ("same", "run of team-b"),
        ("same of a", "run of team-a"),
        ("same of default", "run of default"),
    ]


def test_a_workspace_that_is_there_gets_what_it_lacks(divided: str, empty_mlflow: str, tmp_path: Path) -> None:
    """What a workspace of the target says of itself stays and is noted; what it does not say is added."""
    store = WorkspaceStore(empty_mlflow)
    store.create_workspace(Workspace("team-a", "another"))
    report = unpacked(packed(divided, tmp_path / "b"), empty_mlflow)
    found = rows(empty_mlflow, "SELECT description, trace_archival_retention FROM workspaces WHERE name = 'team-a'")
    assert found == [("another", "30d")]
    assert any("team-a keeps its own description" in note for note in report.notes)


# -- used databases ----------------------------------------------------------------------------------------------------


def test_other_content_of_the_same_names_is_told_before_and_never_mixed(derived: str, divided: str, tmp_path: Path) -> None:
    """A model of the target keeps its versions to itself; the archived one is left out, and everything else arrives."""
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    unpacked(packed(derived, tmp_path / "first"), target)
    models = WorkspacesOfModels(target)
    with inside("default"):
        models.create_registered_model("model", description="mine")
    models.engine.dispose()
    before = every_row(target)
    place = packed(divided, tmp_path / "b")
    with pytest.raises(bundle.CannotHoldError) as refused:
        bundle.unpack(place, tracking_uri=target)
    assert every_row(target) == before
    assert [(problem.kind, problem.id) for problem in refused.value.problems] == [
        ("registered_model", "model"),
        ("model_version", ""),
    ]
    report = bundle.unpack(place, tracking_uri=target, allow_partial=True)
    assert {o.kind: o.left_out + o.failed for o in report.entities if o.left_out + o.failed} == {
        "registered_model": 1,
        "model_version": 1,
    }
    assert rows(target, "SELECT description FROM registered_models WHERE name = 'model' AND workspace = 'default'") == [
        ("mine",)
    ]
    assert rows(target, "SELECT workspace FROM model_versions ORDER BY 1") == [("team-a",), ("team-b",)]
    ids = {e.source_id: e.id for e in report.experiments}
    assert ids["1"] != "1"
    assert rows(target, f"SELECT COUNT(*) FROM trace_info WHERE experiment_id = {ids['1']}") == [(1,)]
    after = every_row(target)
    for name, lines in before.items():
        assert [line for line in lines if line not in after[name]] == [], name


def test_newer_versions_of_a_model_that_is_there(divided: str, tmp_path: Path) -> None:
    """A model that an earlier restore brought gets the versions that a newer archive has; what it says of itself stays."""
    target, source = f"sqlite:///{tmp_path / 'mlflow.db'}", f"sqlite:///{tmp_path / 'source.db'}"
    unpacked(packed(divided, tmp_path / "b"), source)
    unpacked(tmp_path / "b", target)
    models = WorkspacesOfModels(source)
    with inside("team-a"):
        models.create_model_version("model", "elsewhere")
        models.update_registered_model("model", "newer")
    models.engine.dispose()
    report = bundle.unpack(packed(source, tmp_path / "newer"), tracking_uri=target)
    assert {
        (o.kind, o.restored, o.merged, o.failed) for o in report.entities if o.kind.startswith(("model", "registered"))
    } == {
        ("registered_model", 0, 1, 0),
        ("model_version", 1, 0, 0),
    }
    assert any("description" in note and "team-a/model" in note for note in report.notes)
    found = rows(target, "SELECT version, source FROM model_versions WHERE workspace = 'team-a' ORDER BY 1")
    assert [version for version, _ in found] == [1, 2]


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


def test_postgresql_and_back_every_row(derived: str, postgres_database: Callable[[], str], tmp_path: Path) -> None:
    """By way of PostgreSQL each row of each table comes back as it was, derived columns and awkward numbers included."""
    middle, target = postgres_database(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    unpacked(packed(derived, tmp_path / "b"), middle, artifact_root=tmp_path / "files")
    unpacked(packed(middle, tmp_path / "back"), target)
    first, second = every_row(derived), every_row(target)
    assert {name for name in first if first[name] != second[name]} == set()


#: What PostgreSQL refuses, planted past MLflow's own checks: SQL for SQLite, and the problem that names it.
NUL_IN_A_SPAN = """
INSERT INTO spans (
    trace_id, experiment_id, span_id, name, type, status, start_time_unix_nano, end_time_unix_nano, content
) SELECT request_id, experiment_id, '00000000000000aa', 'nul' || char(0), 'X', 'OK', 1, 2, '{}'
FROM trace_info WHERE request_id LIKE '%4'
"""
REFUSED = (
    (
        NUL_IN_A_SPAN,
        "1 spans rows are left out: name: it holds a NUL character",
    ),
    (
        "UPDATE registered_models SET description = printf('%.*c', 6000, 'x') WHERE name || workspace = 'modeldefault'",
        "description is left out",
    ),
    ("INSERT INTO registered_model_tags VALUES ('t', printf('%.*c', 6000, 'x'), 'model', 'default')", "one of tags ('t')"),
    (
        "INSERT INTO trace_tags VALUES ('nul', 'a' || char(0) || 'b', (SELECT MIN(request_id) FROM trace_info))",
        "one of tags ('nul')",
    ),
    (
        "UPDATE trace_info SET client_request_id = printf('%.*c', 60, 'x') WHERE request_id LIKE '%4'",
        "client_request_id is left out",
    ),
    (
        "UPDATE trace_info SET session_id = printf('%.*c', 300, 'x') WHERE request_id LIKE '%5'",
        "mlflow.trace.session is left out",
    ),
    (
        "UPDATE evaluation_dataset_records SET expectations = '{\"a\": Infinity}' WHERE inputs LIKE '%0%'",
        "expectations is left out",
    ),
    (
        "UPDATE evaluation_dataset_records SET inputs = '{\"n\": NaN}' WHERE inputs LIKE '%1%'",
        "evaluation_dataset_records.inputs",
    ),
    ("UPDATE evaluation_datasets SET name = 'nul' || char(0) WHERE workspace = 'team-b'", "evaluation_datasets.name"),
)


def test_what_postgresql_cannot_hold(divided: str, postgres_database: Callable[[], str], tmp_path: Path) -> None:
    """Too long texts, NUL characters and infinities in JSON are told before a write, then left out alone; all else arrives."""
    source = tmp_path / "source.db"
    shutil.copy(divided.removeprefix("sqlite:///"), source)
    execute(f"sqlite:///{source}", *(statement for statement, _ in REFUSED))
    place, target = packed(f"sqlite:///{source}", tmp_path / "b"), postgres_database()
    with pytest.raises(bundle.CannotHoldError) as refused:
        bundle.unpack(place, tracking_uri=target, artifact_root=tmp_path / "files")
    messages = [problem.message for problem in refused.value.problems]
    ((lost,),) = rows(f"sqlite:///{source}", "SELECT dataset_id FROM evaluation_datasets WHERE workspace = 'team-b'")
    assert [text for _, text in REFUSED if not any(text in message for message in messages)] == []
    assert [message for message in messages if not any(text in message for _, text in REFUSED)] == [
        f"1 dataset_record left out: the evaluation_dataset {lost!r} that it belongs to is"
    ]
    assert rows(target, "SELECT COUNT(*) FROM experiments") == [(0,)]
    report = bundle.unpack(place, tracking_uri=target, artifact_root=tmp_path / "files", allow_partial=True)
    assert set(report.problems) == set(refused.value.problems)
    assert {o.kind: o.left_out + o.failed for o in report.entities if o.left_out + o.failed} == {
        "evaluation_dataset": 1,
        "dataset_record": 2,
    }
    assert rows(target, "SELECT COUNT(*) FROM trace_tags WHERE key = 'nul'") == [(0,)]
    assert rows(target, "SELECT description FROM registered_models WHERE name = 'model' ORDER BY workspace") == [
        (None,),
        ("team-a",),
        ("team-b",),
    ]


def test_wide_experiment_ids_become_others(divided: str, postgres_database: Callable[[], str], tmp_path: Path) -> None:
    """The 18 digits of file stores do not fit PostgreSQL: it is said, and all of the experiment gets another id."""
    source, wide = tmp_path / "source.db", 123456789012345678
    shutil.copy(divided.removeprefix("sqlite:///"), source)
    columns = "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
    tables = [table for (table,) in rows(f"sqlite:///{source}", f"{columns} AND c.name = 'experiment_id'")]
    linked = "destination_type = 'experiment' AND destination_id = '1'"
    execute(
        f"sqlite:///{source}",
        *(f"UPDATE {table} SET experiment_id = {wide} WHERE experiment_id = 1" for table in tables),
        f"UPDATE entity_associations SET destination_id = '{wide}' WHERE {linked}",
        f"INSERT INTO registered_model_tags VALUES ('_mlflow_experiment_ids', ',2,{wide},', 'model', 'default')",
    )
    place, target = packed(f"sqlite:///{source}", tmp_path / "b"), postgres_database()
    told = bundle.unpack(place, tracking_uri=target, artifact_root=tmp_path / "files", dry_run=True)
    assert any(str(wide) in note for note in told.notes)
    report = unpacked(place, target, artifact_root=tmp_path / "files")
    (new,) = [e.id for e in report.experiments if e.source_id == str(wide)]
    assert rows(target, f"SELECT name FROM runs WHERE experiment_id = {new}") == [("run of default",)]
    assert rows(target, f"SELECT COUNT(*) FROM trace_info WHERE experiment_id = {new}") == [(1,)]
    assert rows(target, f"SELECT COUNT(*) FROM entity_associations WHERE destination_id = '{new}'") == [(1,)]
    assert rows(target, "SELECT value FROM registered_model_tags") == [(f",2,{new},",)]


# -- old schemas -------------------------------------------------------------------------------------------------------

#: Revisions of MLflow 1.30, 2.8, 2.14, 2.22, 3.0 and one shortly before workspaces.
OLD = ("97727af70f4d", "acf3f17fdcc7", "867495a8f9d4", "0584bdc529eb", "6953534de441", "c8d9e0f1a2b3")
TRACE = "tr-" + "ab" * 16
USAGE = '{"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}'
#: Rows of every age; a schema takes those whose tables it has, and of them the columns.
OLD_ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("experiments", {"experiment_id": 7, "name": "old", "lifecycle_stage": "active", "artifact_location": "/nowhere/7"}),
    (
        "runs",
        {
            "run_uuid": "r" * 32,
            "name": "run",
            "status": "FINISHED",
            "lifecycle_stage": "active",
            "experiment_id": 7,
            "source_type": "LOCAL",
            "user_id": "me",
            "artifact_uri": "/nowhere/7/r",
        },
    ),
    ("registered_models", {"name": "model", "creation_time": 5, "last_updated_time": 6, "description": "d\nü"}),
    ("registered_model_tags", {"name": "model", "key": "k", "value": "v"}),
    ("registered_model_aliases", {"name": "model", "alias": "best", "version": 10}),
    *(
        (
            "model_versions",
            {
                "name": "model",
                "version": n,
                "creation_time": n,
                "last_updated_time": n,
                "current_stage": "Staging",
                "source": f"runs:/{'r' * 32}/m",
                "run_id": "r" * 32,
                "status": "READY",
                "description": "x",
            },
        )
        for n in (1, 2, 10)
    ),
    ("model_version_tags", {"name": "model", "version": 10, "key": "k", "value": "v"}),
    (
        "trace_info",
        {
            "request_id": TRACE,
            "experiment_id": 7,
            "timestamp_ms": 1000,
            "execution_time_ms": 5,
            "status": "OK",
            "client_request_id": "c",
            "request_preview": "q",
            "response_preview": "a",
        },
    ),
    ("trace_tags", {"request_id": TRACE, "key": "mlflow.traceName", "value": "name ü"}),
    ("trace_tags", {"request_id": TRACE, "key": "mlflow.artifactLocation", "value": "/nowhere/7/traces/1/artifacts"}),
    ("trace_tags", {"request_id": TRACE, "key": "t", "value": "v"}),
    ("trace_request_metadata", {"request_id": TRACE, "key": "mlflow.trace.session", "value": "s"}),
    ("trace_request_metadata", {"request_id": TRACE, "key": "mlflow.trace.tokenUsage", "value": USAGE}),
    ("trace_request_metadata", {"request_id": TRACE, "key": "plain", "value": "v"}),
    (
        "logged_models",
        {
            "model_id": "m-" + "1" * 32,
            "experiment_id": 7,
            "name": "logged",
            "artifact_location": "/nowhere/7/models/1",
            "creation_timestamp_ms": 3,
            "last_updated_timestamp_ms": 4,
            "status": 2,
            "lifecycle_stage": "active",
            "model_type": "agent",
            "source_run_id": "r" * 32,
        },
    ),
    ("logged_model_params", {"model_id": "m-" + "1" * 32, "experiment_id": 7, "param_key": "p", "param_value": "1"}),
    (
        "logged_model_metrics",
        {
            "model_id": "m-" + "1" * 32,
            "experiment_id": 7,
            "metric_name": "acc",
            "metric_timestamp_ms": 5,
            "metric_step": 1,
            "metric_value": 0.5,
            "run_id": "r" * 32,
        },
    ),
    (
        "assessments",
        {
            "assessment_id": "a-1",
            "trace_id": TRACE,
            "name": "good",
            "assessment_type": "feedback",
            "value": "0.5",
            "created_timestamp": 9,
            "last_updated_timestamp": 10,
            "source_type": "HUMAN",
            "source_id": "me",
            "valid": True,
        },
    ),
    (
        "spans",
        {
            "trace_id": TRACE,
            "experiment_id": 7,
            "span_id": "0" * 16,
            "name": "s",
            "type": "LLM",
            "status": "OK",
            "start_time_unix_nano": 1,
            "end_time_unix_nano": 5,
            "content": "{}",
        },
    ),
)


def fill_old(uri: str) -> None:
    """Put ``OLD_ROWS`` into a database as far as its schema goes."""
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for name, row in OLD_ROWS:
            if name in tables.tables:
                known = {column.name for column in tables.tables[name].columns}
                connection.execute(tables.tables[name].insert().values({k: v for k, v in row.items() if k in known}))
    engine.dispose()


@pytest.mark.parametrize("revision", OLD)
def test_an_old_schema_becomes_what_its_upgrade_becomes(revision: str, tmp_path: Path) -> None:
    """An old database restored into a new one has the rows that MLflow's own upgrade of it makes."""
    source, upgraded, target = (f"sqlite:///{tmp_path / name}.db" for name in ("old", "upgraded", "new"))
    make_database(source, revision)
    fill_old(source)
    place = packed(source, tmp_path / "b")
    shutil.copy(tmp_path / "old.db", tmp_path / "upgraded.db")
    make_database(upgraded, "heads")
    unpacked(place, target)
    first, second = every_row(upgraded), every_row(target)
    assert {name: (first[name], second[name]) for name in first if first[name] != second[name]} == {}
