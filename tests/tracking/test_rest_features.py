"""What a server offers, found out by asking it, and what servers of earlier releases have no place for."""

from __future__ import annotations

import json

import pytest

from mlflow_bundle.entities import Alias, DatasetRecord, KeyValue, ModelInput, ModelVersion, RegisteredModel, Run
from mlflow_bundle.errors import AuthError
from mlflow_bundle.kinds import KINDS
from mlflow_bundle.tracking._port import PlannedEntity
from mlflow_bundle.tracking._rest import RestClient
from mlflow_bundle.tracking.rest._features import TRACES_3, Features
from mlflow_bundle.tracking.rest._releases import OLDEST, holdable, lacking, no_place, release_of, without
from tests.tracking.http_peer import serve

ALL = frozenset(KINDS)
NO_MODELS = ALL - {"logged_model"}


def features(url: str) -> Features:
    """The features of a server."""
    return Features(RestClient(url), map)


def answering(statuses: dict[str, int], others: int = 200, release: str = "3.17.2"):  # type: ignore[no-untyped-def]
    """A server of a release that answers paths with these parts by these statuses."""

    def answer(_: str, path: str, __: bytes) -> tuple[int, bytes, None]:
        if path == "/version":
            return 200, release.encode(), None
        status = next((status for part, status in statuses.items() if part in path), others)
        return status, b"{}" if status == 200 else json.dumps({"message": "no"}).encode(), None

    return answer


def test_what_may_not_be_touched_is_there() -> None:
    """A refusal for want of permission says nothing about what the server has; a missing endpoint and one that is not
    implemented do."""
    with serve(answering({"webhooks": 403, "scorers": 404, "issues": 405, "review-queues": 501})) as peer:
        found = features(peer.url)
        assert "webhook" in found.offered
        assert {"scorer", "issue", "review_queue"}.isdisjoint(found.offered)
        assert set(found.absent) == {"scorer", "issue", "review_queue", "workspace"}


def test_a_user_that_the_server_does_not_know_is_told() -> None:
    """Without credentials nothing is known of a server."""
    with serve(answering({"webhooks": 401})) as peer, pytest.raises(AuthError, match="401"):
        _ = features(peer.url).offered


def test_traces_of_version_2_are_traces() -> None:
    """A server that knows only version 2 of the API of traces has traces, and not those of version 3."""
    with serve(answering({"/api/3.0/": 404}, release="2.22.5")) as peer:
        found = features(peer.url)
        assert "trace" in found.offered
        assert TRACES_3 not in found.offered
        assert {"trace.assessments", "trace.run_ids"} <= set(found.absent)


def test_a_server_without_a_name_is_the_oldest() -> None:
    """Servers before 2.0 do not say their release; what they lack is named field by field."""
    assert (release_of(""), release_of("2.22.5"), release_of("3.4.0rc1")) == (OLDEST, (2, 22), (3, 4))
    with serve(answering({"/api/3.0/": 404, "/version": 404, "traces": 404, "logged-models": 404}, release="")) as peer:
        found = features(peer.url)
        assert found.release == OLDEST
        assert {"trace", "logged_model", "run.inputs", "registered_model.aliases"} <= set(found.absent)
        assert "trace.assessments" not in found.absent


def test_a_server_that_says_less_of_itself_is_understood() -> None:
    """Servers of 3.9 say of themselves only where they keep things, if that: they have no workspaces yet."""
    for said in (b'{"store_type": "SqlStore"}', b'{"store_type": null}', b"{}"):
        with serve(lambda *_, said=said: (200, said, None)) as peer:
            assert features(peer.url).info.workspaces_enabled is None


def test_fields_that_a_release_lacks_are_named_and_taken_out() -> None:
    """A field with content that the release does not know is told and left out; the same record is whole at a newer one."""
    run = Run(run_id="r", experiment_id="0", model_inputs=(ModelInput(model_id="m-1"),))
    model = RegisteredModel(name="m", aliases=(Alias(alias="a", version=1),))
    row = DatasetRecord(dataset_record_id="d", dataset_id="x", outputs='{"a": 1}')
    for record, field, since in ((run, "model_inputs", (3, 0)), (model, "aliases", (2, 3)), (row, "outputs", (3, 5))):
        before = (since[0], since[1] - 1) if since[1] else (since[0] - 1, 99)
        (told,) = lacking(record, ALL, before)
        assert field.replace("_", " ") in told
        assert not getattr(without(record, before), field)
        assert lacking(record, ALL, since) == []
        assert without(record, since) == record
    assert lacking(DatasetRecord(dataset_record_id="d", dataset_id="x", outputs="null"), ALL, (3, 4)) == []


def test_prompts_and_versions_of_logged_models_need_a_place() -> None:
    """A prompt has no place before 2.21, a version of a logged model none where there are no logged models."""
    prompt = RegisteredModel(name="p", tags=(KeyValue(key="mlflow.prompt.is_prompt", value="true"),))
    assert "2.21" in (no_place(prompt, ALL, (2, 20)) or "")
    assert no_place(prompt, ALL, (2, 21)) is None
    version = ModelVersion(name="v", version=1, source="models:/m-" + "0" * 32)
    assert "3.0" in (no_place(version, NO_MODELS, (2, 22)) or "")
    assert no_place(version, ALL, (3, 0)) is None


def test_files_without_a_run_need_logged_models() -> None:
    """The files of a version that lie outside of all runs are told and left out where no logged model can hold them."""
    version = ModelVersion(name="v", version=1, source="s3://bucket/model")
    plan = PlannedEntity(record=version, files=(("model.bin", 1, "0" * 64),))
    assert [text.startswith("its files are left out") for text in lacking(version, NO_MODELS, (2, 22))] == [True]
    assert holdable(plan, NO_MODELS, (2, 22)).files == ()
    assert holdable(plan, ALL, (3, 0)) is plan
