"""What a target cannot hold is told before the first write: names that are taken within an experiment, and references."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.genai.label_schemas import InputText
from mlflow.genai.scorers import Guidelines
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as ModelStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.rest_utils import MlflowHostCreds

import mlflow_bundle as bundle
from mlflow_bundle.entities import (
    LabelSchema,
    McpAccessEndpoint,
    McpAlias,
    McpServer,
    McpServerVersion,
    Record,
    RegisteredModel,
    ReviewQueue,
)
from mlflow_bundle.tracking._connect import connect_target
from mlflow_bundle.tracking._entities import EntityRestore
from mlflow_bundle.tracking._gather import Gathered
from mlflow_bundle.tracking._left_out import LeftOut
from mlflow_bundle.tracking._port import EntityResult, IdMap, RestoreOptions
from mlflow_bundle.tracking._workspaces import Homes
from tests.fixtures.server import MlflowServer
from tests.tracking.entity_writing import Restoring, actions, messages
from tests.tracking.moving import rows

pytestmark = pytest.mark.slow

GOOD = Path(__file__).parents[2] / "spec" / "v1" / "fixtures" / "good"


def judged(uri: str, *names: str) -> list[str]:
    """Experiments, the last of which has a label schema, a review queue and a scorer."""
    store = SqlAlchemyStore(uri, str(Path(uri.removeprefix("sqlite:///")).parent / "mlruns"))
    made = [str(store.create_experiment(name)) for name in names]
    store.create_label_schema(made[-1], name="question", type="feedback", input=InputText())
    store.create_review_queue(made[-1], name="Queue", queue_type="custom")
    store.register_scorer(made[-1], "judge", Guidelines(name="judge", guidelines="be kind").model_dump_json())
    store.engine.dispose()
    return made


def test_names_that_an_experiment_has_already(empty_mlflow: str, empty_database_file: Path, tmp_path: Path) -> None:
    """Another schema, queue or scorer of the same name in the experiment that is merged into is told before the first write,
    and stays; with everything else restored, a prompt names the experiments that came, by their ids here."""
    source = f"sqlite:///{tmp_path / 'source.db'}"
    (tmp_path / "source.db").write_bytes(empty_database_file.read_bytes())
    gone, _ = judged(source, "gone", "judged")
    models = ModelStore(source)
    models.create_registered_model("prompt")
    models.engine.dispose()
    listed = {"mlflow.prompt.is_prompt": "true", "_mlflow_experiment_ids": f",{gone},2,"}
    for key, value in listed.items():
        change(source, f"INSERT INTO registered_model_tags (key, value, name) VALUES ('{key}', '{value}', 'prompt')")
    place = tmp_path / "b"
    bundle.pack(bundle=place, tracking_uri=source)
    *_, there = judged(empty_mlflow, "taking an id", "and another", "gone", "judged")
    change(empty_mlflow, "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'gone'")
    kinds = ("label_schemas", "review_queues", "scorers")
    before = {table: rows(empty_mlflow, f"SELECT * FROM {table}") for table in kinds}
    report = bundle.unpack(place, tracking_uri=empty_mlflow, dry_run=True)
    taken = {
        problem.kind for problem in report.problems if f"the experiment {there} has another one of its name" in problem.message
    }
    assert taken == {"label_schema", "review_queue", "scorer"}
    report = bundle.unpack(place, tracking_uri=empty_mlflow, allow_partial=True)
    assert {table: rows(empty_mlflow, f"SELECT * FROM {table}") for table in kinds} == before
    counted = {o.kind: (o.restored, o.left_out, o.failed) for o in report.entities}
    assert {kind: counted[kind] for kind in taken} == dict.fromkeys(taken, (0, 1, 0))
    assert counted["registered_model"] == (1, 0, 0)
    assert rows(empty_mlflow, "SELECT value FROM registered_model_tags WHERE key = '_mlflow_experiment_ids'") == [
        (f",{there},",)
    ]
    assert "links of prompts to experiments that are not restored are left out" in report.notes


def change(uri: str, sql: str) -> None:
    """Change a database behind MLflow's back."""
    import sqlite3  # noqa: PLC0415

    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        connection.execute(sql)
        connection.commit()


def test_what_fails_in_the_end_counts_as_failed(empty_mlflow: str) -> None:
    """An entity that was counted and whose last step fails is a failed one, whatever it was counted as, and once."""
    place = next(path for path in sorted(GOOD.iterdir()) if path.is_dir() or path.suffix == ".zip")
    with bundle.open(place) as archive, closing(connect_target(empty_mlflow, bundle_id="b")) as target:
        gathered = Gathered()
        model = RegisteredModel(name="m")
        gathered.take("registered_model", [[model]])
        work = EntityRestore(
            archive,
            target,
            gathered,
            ids=IdMap(),
            options=RestoreOptions(),
            left_out=LeftOut(),
            homes=Homes(None, offered=False),
        )
        for action in ("restored", "there", "merged"):
            work.take(EntityResult(kind="registered_model", source_id=action, action=action))  # type: ignore[arg-type]
        for identity in ("there", "there", "restored"):
            work.finish(EntityResult(kind="registered_model", source_id=identity, action="failed"))
        (outcome,) = work.outcomes()
        gathered.close()
    assert (outcome.restored, outcome.there, outcome.merged, outcome.failed) == (0, 0, 1, 2)


# -- a server ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def restoring(server: MlflowServer, request: pytest.FixtureRequest) -> Restoring:
    """Restores of an archive of this test's own, with an experiment."""
    restoring = Restoring(server, f"bundle of {request.node.name}")
    restoring.experiment("7")
    return restoring


def access(identity: str, **target: str) -> McpAccessEndpoint:
    return McpAccessEndpoint(
        id=identity, server_name="org.example/server", url="https://93.184.216.34/mcp", transport_type="sse", **target
    )


def test_access_endpoints_of_what_is_not_there(restoring: Restoring) -> None:
    """An access endpoint that leads to a version or an alias that does not arrive is told before the first write, and is left
    out; those of what arrives, or is at the target already, come."""
    server = McpServer(
        name="org.example/server", aliases=(McpAlias(alias="live", version="1.0.0"), McpAlias(alias="ghost", version="9.0.0"))
    )
    text = '{"name": "org.example/server", "version": "1.0.0", "description": "d"}'
    version = McpServerVersion(name="org.example/server", version="1.0.0", server_json=text, status="active")
    later = text.replace("1.0", "2.0")
    buried = McpServerVersion(name="org.example/server", version="2.0.0", server_json=later, status="deleted")
    endpoints = [
        access("a", server_version="1.0.0"),
        access("b", server_alias="live"),
        access("c", server_alias="latest"),
        access("d", server_version="9.0.0"),
        access("e", server_alias="ghost"),
        access("f", server_alias="unheard of"),
        access("g", server_version="2.0.0"),
    ]
    kinds: dict[str, list[Record]] = {
        "mcp_server": [server],
        "mcp_server_version": [version, buried],
        "mcp_access_endpoint": list(endpoints),
    }
    with restoring.target() as target:
        told = [problem for records in kinds.values() for record in records for problem in target.cannot_hold(record)]
    assert [problem.id for problem in told] == ["d", "e", "f", "g"]
    results = restoring.restore(*kinds.items())
    assert actions(results) == dict.fromkeys("abc", "restored") | dict.fromkeys("defg", "left out")
    assert messages(results) == [problem.message for problem in told]
    with restoring.target() as target:
        assert target.cannot_hold(access("h", server_version="1.0.0")) == []
        assert target.cannot_hold(access("i", server_alias="live")) == []


def test_names_of_another_type_at_a_server(restoring: Restoring, server: MlflowServer) -> None:
    """A schema or queue of the same name and of another type is told; nothing is written by asking, not even the default
    question; one of the same type is taken up."""
    store = RestStore(partial(MlflowHostCreds, server.url))
    experiment = restoring.ids.new("experiment", "7")

    def schema(name: str) -> LabelSchema:
        return LabelSchema(schema_id="s", experiment_id="7", name=name, type="feedback", input_type="text", input_config="{}")

    def queue(name: str) -> ReviewQueue:
        return ReviewQueue(queue_id="q", experiment_id="7", name=name, queue_type="custom")

    asked: list[Any] = [schema("question"), schema("Feedback"), queue("QUEUE"), RegisteredModel(name="m", tags=())]
    with restoring.target() as target:
        assert [target.name_taken(record, experiment) for record in asked] == [None] * 4
    sql = f"SELECT COUNT(*) FROM label_schemas WHERE experiment_id = {experiment}"
    assert restoring.rows(sql) == [(0,)]
    store.create_label_schema(experiment, name="question", type="expectation", input=InputText())
    store.create_review_queue(experiment, name="Queue", queue_type="custom")
    with restoring.target() as target:
        told = [target.name_taken(record, experiment) for record in asked]
    assert told == [f"the experiment {experiment} has another one named 'question', of the type EXPECTATION", None, None, None]
