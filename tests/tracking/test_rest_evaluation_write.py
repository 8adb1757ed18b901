"""Evaluation datasets and scorers restored to a real server, whole and once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from mlflow.store.tracking.rest_store import RestStore

from mlflow_bundle.entities import (
    DatasetRecord,
    EvaluationDataset,
    Issue,
    LabelSchema,
    OnlineScoring,
    ReviewQueue,
    Scorer,
    ScorerVersion,
)
from mlflow_bundle.tracking._port import PlannedEntity
from mlflow_bundle.tracking.rest import _once, _scorers_write
from tests.fixtures.server import MlflowServer
from tests.tracking.entity_writing import Restoring, Stopped, actions, messages, rest_store, stop, tags
from tests.tracking.http_peer import forward, serve


@pytest.fixture
def restoring(server: MlflowServer, request: pytest.FixtureRequest) -> Restoring:
    """Restores of an archive of this test's own, with two experiments."""
    restoring = Restoring(server, f"bundle of {request.node.name}")
    restoring.experiment("7")
    restoring.experiment("8")
    return restoring


@pytest.fixture
def store(server: MlflowServer) -> RestStore:
    return rest_store(server)


# -- datasets ----------------------------------------------------------------------------------------------------------


def dataset(identity: str = "d-1", **fields: Any) -> EvaluationDataset:
    return EvaluationDataset(dataset_id=identity, **{"name": "questions", "experiment_ids": ("7", "8"), **fields})


def record(number: int, identity: str = "d-1", **fields: Any) -> DatasetRecord:
    inputs = json.dumps({"q": f"question {number} ü", "n": number})
    return DatasetRecord(dataset_record_id=f"{identity}-{number}", dataset_id=identity, **{"inputs": inputs, **fields})


def stored(store: RestStore, target: str) -> list[Any]:
    """All records that a server has in a dataset."""
    found: list[Any] = []
    token = None
    while True:
        page, token = store._load_dataset_records(target, max_results=1_000, page_token=token)
        found += page
        if not token:
            return found


def test_datasets_come_back_whole(restoring: Restoring, store: RestStore) -> None:
    """A dataset comes back with tags, user and both experiments; what no API sets stands in source tags; two of one name are
    two; a link that is missing is added; a second restore changes nothing."""
    told = {"created_time": 5, "last_update_time": 6, "digest": "abc", "last_updated_by": "bob"}
    batch = [dataset(tags=tags(a="x\ny"), created_by="ann", **told), dataset("d-2"), dataset("d-3", experiment_ids=())]
    results = restoring.restore(("evaluation_dataset", batch))
    assert (messages(results), set(actions(results).values())) == ([], {"restored"})
    assert len({result.target_id for result in results}) == 3
    target = str(results[0].target_id)
    found = store.get_dataset(target)
    assert (found.name, found.created_by, found.tags["a"]) == ("questions", "ann", "x\ny")
    assert {name: found.tags[f"mlflow_bundle.source.{name}"] for name in told} == {n: str(v) for n, v in told.items()}
    experiments = sorted(restoring.ids.new("experiment", one) for one in ("7", "8"))
    assert sorted(store.get_dataset_experiment_ids(target)) == experiments
    before = restoring.database()
    assert set(actions(restoring.restore(("evaluation_dataset", batch))).values()) == {"there"}
    assert restoring.database() == before
    store.remove_dataset_from_experiments(target, experiments[:1])
    results = restoring.restore(("evaluation_dataset", batch))
    assert (messages(results), sorted(store.get_dataset_experiment_ids(target))) == ([], experiments)


def test_datasets_are_linked_to_restored_experiments_only(restoring: Restoring, store: RestStore) -> None:
    """An experiment that was not restored is no link, though the target has one of its number, and the report says so."""
    (result,) = restoring.restore(("evaluation_dataset", [dataset(experiment_ids=("0", "7"))]))
    assert (result.action, result.problems) == ("restored", [])
    assert store.get_dataset_experiment_ids(str(result.target_id)) == [restoring.ids.new("experiment", "7")]
    assert any("experiments that are not restored" in note for note in result.notes)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1_001, 2_500])
def test_all_records_come_back(restoring: Restoring, store: RestStore, count: int) -> None:
    """More records than a page or a request has arrive whole, each once and with its own id; restored again, interrupted in
    between or not, none is doubled or touched."""
    extra = {"outputs": '{"a": 1.5}', "expectations": '{"e": ["x", null]}', "tags": '{"k": "v"}'}
    records = [record(number, **(extra if number % 3 else {})) for number in range(count)]
    batches = (("evaluation_dataset", [dataset()]), ("dataset_record", records))
    (made, *_) = restoring.restore(batches[0])
    target = str(made.target_id)
    some = restoring.restore(batches[0], ("dataset_record", records[300:1_000]))
    assert set(actions(some).values()) == {"restored"}
    results = restoring.restore(*batches)
    assert messages(results) == []
    assert [result.action for result in results] == ["there" if 300 <= n < 1_000 else "restored" for n in range(count)]
    found = {one.dataset_record_id: one for one in stored(store, target)}
    assert len(found) == count == len({result.target_id for result in results})
    for one, result in zip(records, results, strict=True):
        there = found[str(result.target_id)]
        for name in ("inputs", "outputs", "expectations", "tags"):
            archived = getattr(one, name)
            assert (getattr(there, name) or None) == (json.loads(archived) if isinstance(archived, str) else None), name
    before = restoring.database()
    assert set(actions(restoring.restore(*batches)).values()) == {"there"}
    assert restoring.database() == before


VALUES = ["null", "0", '""', "false", "[]", "{}", '"text"', "[1, null]", "1e300", '{"deep": {"x": [1.0, -0.5]}}', "true"]


def test_values_of_records_are_exact(restoring: Restoring, store: RestStore) -> None:
    """Every JSON value comes back as an output, false, zero and empty ones too; sources and expectations as they are."""
    source = '{"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}'
    records = [record(number, outputs=value) for number, value in enumerate(VALUES)]
    records += [
        record(100, source=source, source_type="TRACE"),
        record(101, expectations='{"a": null, "b": {"c": []}}', tags='{"mlflow.user": "ann"}', created_by="ann"),
        record(102, inputs='{"a": {}}'),
        record(103, inputs='{"a": null}'),
        record(104, inputs='{"a": 1}'),
        record(105, inputs='{"a": 1.0}'),
        record(106, inputs="{}"),
    ]
    batches = (("evaluation_dataset", [dataset()]), ("dataset_record", records))
    results = restoring.restore(*batches)
    assert (messages(results), set(actions(results).values())) == ([], {"restored"})
    found = {one.dataset_record_id: one for one in stored(store, restoring.ids.new("evaluation_dataset", "d-1"))}
    by_id = {result.source_id: found[str(result.target_id)] for result in results}
    assert len(found) == len(records)
    for number, value in enumerate(VALUES):
        assert json.dumps(by_id[f"d-1-{number}"].outputs) in (value, json.dumps(json.loads(value)))
    assert by_id["d-1-100"].source.to_dict() == json.loads(source)
    assert by_id["d-1-101"].created_by == "ann"
    for archived in records[-5:]:
        assert json.dumps(by_id[archived.dataset_record_id].inputs) == archived.inputs
    notes = [note for result in restoring.restore(*batches) for note in result.notes]
    assert notes == []


@pytest.mark.slow
def test_a_refused_record_fails_alone(restoring: Restoring, store: RestStore) -> None:
    """Of 1,000 records the server takes all but the two that it refuses, which are reported by their ids."""
    records = [record(number) for number in range(1_000)]
    for number in (123, 777):
        records[number] = record(number, source='{"source_type": "NOBODY KNOWS IT", "source_data": {}}')
    results = restoring.restore(("evaluation_dataset", [dataset()]), ("dataset_record", records))
    assert [result.source_id for result in results if result.action == "failed"] == ["d-1-123", "d-1-777"]
    assert {result.action for result in results} == {"failed", "restored"}
    assert [problem.id for result in results for problem in result.problems] == ["d-1-123", "d-1-777"]
    assert len(stored(store, restoring.ids.new("evaluation_dataset", "d-1"))) == 998


def test_what_changed_at_the_target_stays(restoring: Restoring, store: RestStore) -> None:
    """A record that somebody has changed since its restore keeps what it has there, and the report says so."""
    batches = (
        ("evaluation_dataset", [dataset()]),
        ("dataset_record", [record(number, tags='{"k": "v"}') for number in (1, 2)]),
    )
    restoring.restore(*batches)
    target = restoring.ids.new("evaluation_dataset", "d-1")
    store.upsert_dataset_records(target, [{"inputs": json.loads(str(record(1).inputs)), "tags": {"k": "mine"}}])
    results = restoring.restore(*batches)
    assert [(result.action, len(result.notes)) for result in results] == [("merged", 1), ("there", 0)]
    assert sorted(one.tags["k"] for one in stored(store, target)) == ["mine", "v"]


def test_records_of_a_dataset_that_is_not_there(restoring: Restoring) -> None:
    """Without its dataset a record fails with the reason."""
    (result,) = restoring.restore(("dataset_record", [record(1)]))
    assert (result.action, messages([result])) == ("failed", ["dataset record d-1-1: its dataset was not restored"])


@pytest.mark.slow
def test_requests_for_records_are_few(restoring: Restoring) -> None:
    """2,500 records need one request for 500 of them, and about one page to read each of those back."""
    with serve(partial(forward, restoring.server.url)) as peer:
        restoring.url = peer.url
        restoring.restore(("evaluation_dataset", [dataset()]))
        peer.requests.clear()
        with restoring.target() as target:
            for start in range(0, 2_500, 500):
                planned = [PlannedEntity(record=record(number)) for number in range(start, start + 500)]
                target.restore_entities("dataset_record", planned, restoring.ids, restoring.open_blob, None)
        sent = [method for method, path in peer.requests if "/records" in path]
        assert sent.count("POST") == 5
        assert len(sent) <= 15


# -- scorers -----------------------------------------------------------------------------------------------------------


def scorer(name: str = "polite", numbers: Sequence[int] = (1, 3, 12), **fields: Any) -> Scorer:
    versions = [
        ScorerVersion(
            scorer_version=number,
            serialized_scorer=json.dumps({"name": name, "builtin_scorer_class": "Safety", "number": number, "text": "ü\n"}),
        )
        for number in numbers
    ]
    return Scorer(experiment_id="7", scorer_name=name, versions=tuple(versions), **fields)


def scorer_versions(store: RestStore, restoring: Restoring, name: str = "polite") -> dict[int, Any]:
    listed = store.list_scorer_versions(restoring.ids.new("experiment", "7"), name)
    return {one.scorer_version: json.loads(one._serialized_scorer) for one in listed}


def wanted(scorer: Scorer) -> dict[int, Any]:
    return {version.scorer_version: json.loads(version.serialized_scorer) for version in scorer.versions}


def test_scorers_come_back_with_their_numbers(restoring: Restoring, store: RestStore) -> None:
    """Versions with gaps come back under their numbers with their texts, and nothing is registered twice."""
    batch = ("scorer", [scorer(), scorer("other name ü", (2,))])
    results = restoring.restore(batch)
    assert (messages(results), set(actions(results).values())) == ([], {"restored"})
    assert scorer_versions(store, restoring) == wanted(scorer())
    assert list(scorer_versions(store, restoring, "other name ü")) == [2]
    before = restoring.database()
    assert set(actions(restoring.restore(batch)).values()) == {"there"}
    assert restoring.database() == before


@pytest.mark.parametrize("after", range(1, 13, 2))
def test_an_interrupted_scorer_is_finished(
    restoring: Restoring, store: RestStore, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a restore stops, the next registers what is missing and leaves no placeholder."""
    register, calls = _scorers_write.ScorerWriter._register, []

    def register_some(*args: Any) -> int:
        calls.append(args)
        if len(calls) > after:
            raise Stopped
        return register(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_scorers_write.ScorerWriter, "_register", register_some)
        patch.setattr(_scorers_write.ScorerWriter, "_delete", stop)
        with pytest.raises(Stopped):
            restoring.restore(("scorer", [scorer()]))
    (result,) = restoring.restore(("scorer", [scorer()]))
    assert (messages([result]), result.action) == ([], "restored")
    assert scorer_versions(store, restoring) == wanted(scorer())


def test_a_scorer_of_that_name(restoring: Restoring, store: RestStore) -> None:
    """Where the experiment has a scorer of that name, its versions stay; what cannot have its number is left out."""
    experiment = restoring.ids.new("experiment", "7")
    for number in range(2):
        store.register_scorer(experiment, "polite", json.dumps({"name": "polite", "mine": number}))
    (result,) = restoring.restore(("scorer", [scorer()]))
    assert (result.action, [problem.code for problem in result.problems]) == ("left out", ["version-taken"])
    assert scorer_versions(store, restoring) == {
        1: {"name": "polite", "mine": 0},
        2: {"name": "polite", "mine": 1},
        **{number: text for number, text in wanted(scorer()).items() if number > 1},
    }


def test_an_answer_that_is_lost_doubles_nothing(
    restoring: Restoring, store: RestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server makes a dataset, scorer, schema, queue or issue and its answer is lost, it is found again."""
    monkeypatch.setattr(_once, "_WAITS", (0, 0, 0))
    lost: set[tuple[str, bytes]] = set()

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        said = forward(restoring.server.url, method, path, body)
        creates = method == "POST" and path.endswith(("/create", "/register", "/issues"))
        if not creates or (path, body) in lost:
            return said
        lost.add((path, body))
        return None

    with serve(answer) as peer:
        restoring.url = peer.url
        for batch in (
            ("evaluation_dataset", [dataset()]),
            ("scorer", [scorer(numbers=(1, 2))]),
            (
                "label_schema",
                [LabelSchema(schema_id="s", experiment_id="7", name="asked", input_type="text", input_config="{}")],
            ),
            ("review_queue", [ReviewQueue(queue_id="q", experiment_id="7", name="Queue", queue_type="custom")]),
            ("issue", [Issue(issue_id="i", experiment_id="7", name="slow", description="d")]),
        ):
            results = restoring.restore(batch)
            assert messages(results) == []
    assert len(lost) == 6
    experiment = restoring.ids.new("experiment", "7")
    for table in ("label_schemas", "review_queues", "issues", "scorers"):
        extra = "AND name != 'Feedback'" if table == "label_schemas" else ""
        assert restoring.rows(f"SELECT count(*) FROM {table} WHERE experiment_id = {experiment} {extra}") == [(1,)], table
    assert list(scorer_versions(store, restoring)) == [1, 2]
    assert len(store.search_datasets([experiment])) == 1


def test_online_scoring(restoring: Restoring, store: RestStore) -> None:
    """A scorer comes back with sample rate 0 and its filter; what somebody sets at the target afterwards stays."""
    online = (OnlineScoring(sample_rate="0.25", filter_string="status = 'OK'"),)
    (result,) = restoring.restore(("scorer", [scorer(online=online, scorer_id="s")]))
    assert any("sample rate 0" in note for note in result.notes)
    there = restoring.ids.new("scorer_id", "s")
    (config,) = store.get_online_scoring_configs([there])
    assert (config.sample_rate, config.filter_string) == (0.0, "status = 'OK'")
    store.upsert_online_scoring_config(restoring.ids.new("experiment", "7"), "polite", 0.0, "status = 'ERROR'")
    restoring.restore(("scorer", [scorer(online=online, scorer_id="s")]))
    (config,) = store.get_online_scoring_configs([there])
    assert config.filter_string == "status = 'ERROR'"
