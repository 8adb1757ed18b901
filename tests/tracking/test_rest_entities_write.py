"""Registered models, prompts, versions and logged models restored to a real server: exact numbers, nothing doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException

from mlflow_bundle.entities import Alias, LoggedModel, ModelVersion, RegisteredModel
from mlflow_bundle.tracking._port import EntityQuery, PlannedEntity
from mlflow_bundle.tracking.rest import _once
from mlflow_bundle.tracking.rest._read import RestSource
from tests.fixtures.server import MlflowServer
from tests.tracking.entity_writing import Restoring, actions, messages, tags
from tests.tracking.http_peer import forward, serve

SOURCE = "s3://elsewhere/model"
DELETED = "Deleted_Internal"
PROMPT = {"mlflow.prompt.is_prompt": "true", "mlflow.prompt.text": "Say {{it}}"}


@pytest.fixture
def restoring(server: MlflowServer, request: pytest.FixtureRequest) -> Restoring:
    """Restores of an archive of this test's own."""
    return Restoring(server, f"bundle of {request.node.name}")


def version(name: str, number: int, **fields: Any) -> ModelVersion:
    return ModelVersion(name=name, version=number, **{"source": SOURCE, "current_stage": "None", **fields})


def numbers(restoring: Restoring, name: str) -> dict[int, str]:
    """All versions of a model with their stages, deleted ones too."""
    return dict(restoring.rows(f"SELECT version, current_stage FROM model_versions WHERE name = '{name}'"))


def next_number(restoring: Restoring, name: str) -> int:
    """The number that the server gives next."""
    return int(restoring.client.create_model_version(name, SOURCE).version)


# -- version numbers ---------------------------------------------------------------------------------------------------


def test_numbers_are_exact(restoring: Restoring) -> None:
    """Gaps, deleted versions in the middle and at the end, and numbers of two digits come back, and the next is that which the
    source would give; a second and a third restore change nothing."""
    aliases = (Alias(alias="a", version=12),)
    model = RegisteredModel(name="exact", description="one\ntwo", tags=tags(lines="x\ny"), aliases=aliases)
    live = {1: "None", 2: "Production", 5: "Production", 10: "Staging", 12: "Archived"}
    gone = {3: DELETED, 13: DELETED, 15: DELETED}
    versions = [version("exact", number, current_stage=stage) for number, stage in sorted((live | gone).items())]
    batches = (("registered_model", [model]), ("model_version", versions))
    results = restoring.restore(*batches)
    assert messages(results) == []
    assert set(actions(results).values()) == {"restored"}
    found = numbers(restoring, "exact")
    assert {number: stage for number, stage in found.items() if stage != DELETED} == live
    assert sorted(found) == list(range(1, 16))
    assert restoring.client.get_registered_model("exact").aliases == {"a": "12"}
    before = restoring.database()
    for _ in range(2):
        again = restoring.restore(*batches)
        assert (messages(again), set(actions(again).values())) == ([], {"there"})
        assert restoring.database() == before
    assert next_number(restoring, "exact") == 16


def test_everything_of_a_version_comes_back(restoring: Restoring) -> None:
    """Tags with newlines, description, link and alias come back; user, times and status stand in source tags."""
    told = {"creation_timestamp": 5, "last_updated_timestamp": 6, "user_id": "ann", "status": "READY", "status_message": "fine"}
    content = version(
        "whole", 1, tags=tags(t="a\nb", empty="", long="x" * 100_000), description="d\ne", run_link="http://x/y", **told
    )
    model = RegisteredModel(name="whole", creation_timestamp=3, last_updated_timestamp=4, tags=tags(long="y" * 5_000))
    results = restoring.restore(("registered_model", [model]), ("model_version", [content]))
    assert messages(results) == []
    found = restoring.client.get_model_version("whole", "1")
    assert {key: found.tags[key] for key in ("t", "empty", "long")} == {"t": "a\nb", "empty": "", "long": "x" * 100_000}
    assert (found.description, found.run_link, found.source) == ("d\ne", "http://x/y", SOURCE)
    kept = {key.removeprefix("mlflow_bundle.source."): value for key, value in found.tags.items() if ".source." in key}
    origin = {"bundle_id": restoring.bundle_id, "version": "whole/1", "source": SOURCE}
    assert kept == origin | {k: str(v) for k, v in told.items()}
    found = restoring.client.get_registered_model("whole")
    assert found.tags["long"] == "y" * 5_000
    assert found.tags["mlflow_bundle.source.creation_timestamp"] == "3"


def test_a_name_that_is_taken_gets_what_it_lacks(restoring: Restoring) -> None:
    """Versions merge into a model of that name where their numbers are free; a taken number is left out and reported, what
    the model has stays, and a second restore does nothing."""
    client = restoring.client
    client.create_registered_model("taken", tags={"mine": "1", "both": "mine"}, description="mine")
    for _ in range(3):
        client.create_model_version("taken", "s3://mine/model")
    client.set_registered_model_alias("taken", "both", "1")
    model = RegisteredModel(
        name="taken",
        description="theirs",
        tags=tags(both="theirs", theirs="2"),
        aliases=(Alias(alias="both", version=6), Alias(alias="theirs", version=6)),
    )
    batches = (("registered_model", [model]), ("model_version", [version("taken", number) for number in (2, 4, 6, 11)]))
    with restoring.target() as target:
        (merged,) = target.restore_entities(
            "registered_model", [PlannedEntity(record=model)], restoring.ids, restoring.open_blob, None
        )
    assert merged.action == "merged"
    assert [note for note in merged.notes if "keeps its own" in note] == merged.notes
    results = restoring.restore(*batches)
    assert actions(results) == {"taken/2": "left out", "taken/4": "restored", "taken/6": "restored", "taken/11": "restored"}
    assert [problem.code for result in results for problem in result.problems] == ["version-taken"]
    assert [number for number, stage in numbers(restoring, "taken").items() if stage != DELETED] == [1, 2, 3, 4, 6, 11]
    assert client.get_model_version("taken", "2").source == "s3://mine/model"
    found = client.get_registered_model("taken")
    assert (found.description, found.aliases) == ("mine", {"both": "1", "theirs": "6"})
    assert {key: found.tags[key] for key in ("mine", "both", "theirs")} == {"mine": "1", "both": "mine", "theirs": "2"}
    before = restoring.database()
    again = restoring.restore(*batches)
    assert actions(again) == {"taken/2": "left out", "taken/4": "there", "taken/6": "there", "taken/11": "there"}
    assert restoring.database() == before


def test_numbers_that_were_used_up_unseen(restoring: Restoring) -> None:
    """Where the target deleted its last versions, their numbers are gone: those versions are left out and reported, those
    above are exact, and no placeholder stays."""
    client = restoring.client
    client.create_registered_model("unseen")
    for number in range(1, 7):
        client.create_model_version("unseen", SOURCE)
        if number > 3:
            client.delete_model_version("unseen", str(number))
    versions = [version("unseen", number) for number in (4, 6, 9)] + [version("unseen", 10, current_stage=DELETED)]
    results = restoring.restore(("registered_model", [RegisteredModel(name="unseen")]), ("model_version", versions))
    assert actions(results) == {"unseen/4": "left out", "unseen/6": "left out", "unseen/9": "restored", "unseen/10": "restored"}
    assert [number for number, stage in numbers(restoring, "unseen").items() if stage != DELETED] == [1, 2, 3, 9]
    assert next_number(restoring, "unseen") == 11


def test_a_prompt_and_a_model_of_one_name(restoring: Restoring) -> None:
    """A model is not merged into a prompt of that name: it is left out with its versions, and the prompt stays as it is."""
    other = Restoring(restoring.server, "another bundle")
    other.restore(("registered_model", [RegisteredModel(name="both.things", tags=tags(**PROMPT))]))
    before = restoring.database()
    model = RegisteredModel(name="both.things")
    (result,) = restoring.restore(("registered_model", [model]))
    assert (result.action, [problem.code for problem in result.problems]) == ("left out", ["name-taken"])
    (result,) = restoring.restore(("registered_model", [model]), ("model_version", [version("both.things", 1)]))
    assert result.action == "failed"
    assert restoring.database() == before


def test_an_answer_that_is_lost_doubles_nothing(restoring: Restoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server makes a version, a model or a prompt and its answer is lost, it is found and not made again."""
    monkeypatch.setattr(_once, "_WAITS", (0, 0, 0))
    lost: set[str] = set()

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        said = forward(restoring.server.url, method, path, body)
        if method != "POST" or not path.endswith(("/create", "/logged-models")) or body.decode() in lost:
            return said
        lost.add(body.decode())
        return None

    experiment = restoring.experiment("1")
    with serve(answer) as peer:
        restoring.url = peer.url
        batches = (
            ("logged_model", [LoggedModel(model_id=f"m-{'7' * 32}", experiment_id="1", name="once")]),
            ("registered_model", [RegisteredModel(name="once"), RegisteredModel(name="asked", tags=tags(**PROMPT))]),
            ("model_version", [version("asked", 2, source="prompt-template", tags=tags(**PROMPT)), version("once", 1)]),
        )
        results = restoring.restore(*batches)
    assert len(lost) == 6
    assert messages(results) == []
    assert {name: sorted(numbers(restoring, name)) for name in ("once", "asked")} == {"once": [1], "asked": [1, 2]}
    assert restoring.rows(f"SELECT count(*) FROM logged_models WHERE experiment_id = {experiment}") == [(1,)]


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_prompts_come_back_whole(restoring: Restoring, mlflow_server: MlflowServer) -> None:
    """Twelve versions of a prompt with text and chat templates, response format, model config, tags and aliases are loaded at
    the target as they are at the source, and nothing changes with a second restore."""
    made = MlflowClient(mlflow_server.url)
    for number in range(12):
        template: Any = f"Say {{{{it}}}}\n{number}" if number % 3 else [{"role": "user", "content": f"hi {{{{x}}}} {number}"}]
        made.register_prompt(
            "restored-prompt",
            template,
            commit_message=f"c{number}",
            tags={"n": str(number)},
            response_format={"type": "object", "properties": {"a": {"type": "string"}}} if number % 2 else None,
            model_config={"model_name": "gpt", "temperature": 0.5} if number % 4 == 1 else None,
        )
    made.delete_prompt_version("restored-prompt", "7")
    made.set_prompt_alias("restored-prompt", "live", 11)
    with _reading(mlflow_server.url) as read:
        models = [model for model in read("registered_model") if model.name == "restored-prompt"]
        versions = sorted(read("model_version", parents=("restored-prompt",)), key=lambda one: one.version)
    batches = (("registered_model", models), ("model_version", [one for one in versions if one.name == "restored-prompt"]))
    results = restoring.restore(*batches)
    assert (messages(results), len(results)) == ([], 11)

    def shown(client: MlflowClient, name: str) -> dict[str, Any]:
        prompt: PromptVersion = client.load_prompt(name)
        members = ("name", "version", "template", "response_format", "model_config", "commit_message", "aliases")
        own = {key: value for key, value in prompt.tags.items() if not key.startswith("mlflow_bundle.")}
        return {member: getattr(prompt, member) for member in members} | {"tags": own}

    for name in (*(f"prompts:/restored-prompt/{n}" for n in range(1, 13) if n != 7), "prompts:/restored-prompt@live"):
        assert shown(restoring.client, name) == shown(made, name), name
    with pytest.raises(MlflowException):
        restoring.client.load_prompt("prompts:/restored-prompt/7")
    before = restoring.database()
    assert set(actions(restoring.restore(*batches)).values()) == {"there"}
    assert restoring.database() == before


@contextmanager
def _reading(url: str) -> Iterator[Callable[..., list[Any]]]:
    """Everything of a kind that a server has."""
    source = RestSource(url)
    try:
        yield lambda kind, **query: [one for batch in source.entities(kind, EntityQuery(**query)) for one in batch]
    finally:
        source.close()
