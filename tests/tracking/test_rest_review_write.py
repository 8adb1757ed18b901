"""Label schemas, review queues and issues restored to a real server, whole and once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from mlflow.entities import TraceInfo, TraceLocation, TraceState
from mlflow.entities.issue import IssueStatus
from mlflow.store.tracking.rest_store import RestStore

from mlflow_bundle.entities import Issue, LabelSchema, ReviewItem, ReviewQueue
from tests.fixtures.server import MlflowServer
from tests.tracking.entity_writing import Restoring, Stopped, actions, messages, rest_store, stop


@pytest.fixture
def restoring(server: MlflowServer, request: pytest.FixtureRequest) -> Restoring:
    """Restores of an archive of this test's own, with an experiment."""
    restoring = Restoring(server, f"bundle of {request.node.name}")
    restoring.experiment("7")
    return restoring


@pytest.fixture
def store(server: MlflowServer) -> RestStore:
    return rest_store(server)


def schema(name: str, kind: str = "text", config: str = '{"max_length": 9}', **fields: Any) -> LabelSchema:
    archived = {"type": "feedback", "instruction": "do\nit", "enable_comment": True}
    return LabelSchema(
        schema_id=f"s-{name}", experiment_id="7", name=name, input_type=kind, input_config=config, **{**archived, **fields}
    )


SCHEMAS = [
    schema("text"),
    schema("choice", "categorical", '{"options": ["a", "ü"], "multi_select": true}', type="expectation"),
    schema("one of", "categorical", '{"options": ["a"], "multi_select": false}', enable_comment=False),
    schema("number", "numeric", '{"min_value": 0.5, "max_value": null}', type="expectation"),
    schema("pass", "pass_fail", '{"positive_label": "yes", "negative_label": "no"}'),
]


def test_label_schemas_come_back(restoring: Restoring, store: RestStore) -> None:
    """Schemas of every type of input come back; one that is changed at the target stays, and the report says so."""
    results = restoring.restore(("label_schema", SCHEMAS))
    assert (messages(results), set(actions(results).values())) == ([], {"restored"})
    experiment = restoring.ids.new("experiment", "7")
    for archived in SCHEMAS:
        found = store.get_label_schema_by_name(experiment, archived.name)
        assert (str(found.type), found.instruction, found.enable_comment) == (
            archived.type,
            archived.instruction,
            archived.enable_comment,
        )
        assert vars(found.input) == json.loads(str(archived.input_config))
        assert restoring.ids.new("label_schema", archived.schema_id) == found.schema_id
    before = restoring.database()
    assert set(actions(restoring.restore(("label_schema", SCHEMAS))).values()) == {"there"}
    assert restoring.database() == before
    store.update_label_schema(restoring.ids.new("label_schema", "s-text"), instruction="mine")
    results = restoring.restore(("label_schema", SCHEMAS))
    assert (messages(results), [note for result in results for note in result.notes]) == (
        [],
        ["the label schema 'text' keeps its own instruction"],
    )


def queue(items: Sequence[tuple[str, str, str | None]]) -> ReviewQueue:
    found = tuple(
        ReviewItem(item_type="trace", item_id=item, status=status, **({"completed_by": who} if who else {}))
        for item, status, who in items
    )
    schemas = ("s-text", "s-choice")
    users = ("ann@example.com", "bob")
    return ReviewQueue(
        queue_id="q", experiment_id="7", name="To Review", queue_type="custom", users=users, schema_ids=schemas, items=found
    )


def make_traces(store: RestStore, restoring: Restoring, count: int) -> list[str]:
    place = TraceLocation.from_experiment_id(restoring.ids.new("experiment", "7"))
    made = [f"tr-{restoring.ids.new('experiment', '7')}-{number:04}" for number in range(count)]
    for trace_id in made:
        store.start_trace(TraceInfo(trace_id, place, 1_000, TraceState.OK, execution_duration=1))
    return made


@pytest.mark.slow
def test_review_queues_come_back(restoring: Restoring, store: RestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue comes back with users, questions and more items than a page has, each in its state; one that was interrupted
    before the states is finished; a review that was done at the target since stays."""
    made = make_traces(store, restoring, 120)
    states = {0: ("complete", "ann@example.com"), 1: ("declined", "bob"), 119: ("complete", "bob")}
    archived = queue([(item, *states.get(number, ("pending", None))) for number, item in enumerate(made)])
    batches = (("label_schema", SCHEMAS), ("review_queue", [archived]))
    with monkeypatch.context() as patch:
        patch.setattr("mlflow_bundle.tracking.rest._review_write.ReviewWriter._set_states", stop)
        with pytest.raises(Stopped):
            restoring.restore(*batches)
    (result,) = restoring.restore(*batches)
    assert (messages([result]), result.action) == ([], "there")
    target = str(result.target_id)
    found = store.get_review_queue(target)
    assert (found.name, sorted(found.users)) == ("To Review", ["ann@example.com", "bob"])
    assert sorted(found.schema_ids) == sorted(restoring.ids.new("label_schema", one) for one in archived.schema_ids)
    items = {item.item_id: item for item in store.list_review_queue_items(target, max_results=1_000)}
    assert {item: (str(one.status), one.completed_by) for item, one in items.items()} == {
        item: states.get(number, ("pending", None)) for number, item in enumerate(made)
    }
    before = restoring.database()
    assert actions(restoring.restore(*batches)) == {"q": "there"}
    assert restoring.database() == before
    store.set_review_queue_item_status(target, item_id=made[2], status="complete", completed_by="me")
    (result,) = restoring.restore(*batches)
    assert (messages([result]), len(result.notes)) == ([], 1)


def test_issues_come_back(restoring: Restoring, store: RestStore) -> None:
    """Issues come back with every attribute; two that are alike are two, also where a restore was interrupted between them."""
    run = restoring.run("r" * 32, restoring.ids.new("experiment", "7"))
    full = Issue(
        issue_id="i-1",
        experiment_id="7",
        name="slow",
        description="it is\nslow",
        status="resolved",
        severity="high",
        root_causes='["db", "net"]',
        categories='["speed"]',
        source_run_id="r" * 32,
        created_by="ann",
    )
    alike = [Issue(issue_id=f"i-{number}", experiment_id="7", name="twice", description="-") for number in (2, 3, 4)]
    restoring.restore(("issue", alike[:1]))
    results = restoring.restore(("issue", [full, *alike]))
    assert (messages(results), list(actions(results).values())) == ([], ["restored", "there", "restored", "restored"])
    assert len({result.target_id for result in results}) == 4
    found = store.get_issue(str(results[0].target_id))
    assert (found.status, found.root_causes, found.categories) == (IssueStatus.RESOLVED, ["db", "net"], ["speed"])
    assert (found.source_run_id, found.created_by, found.description) == (run, "ann", "it is\nslow")
    before = restoring.database()
    again = restoring.restore(("issue", [full, *alike]))
    assert set(actions(again).values()) == {"there"}
    assert len({result.target_id for result in again}) == 4
    assert restoring.database() == before
