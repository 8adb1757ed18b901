"""Servers and databases of earlier MLflow releases, as sources and as targets: what they have comes through, what they lack is
said before anything is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

import mlflow_bundle as bundle
from mlflow_bundle.entities import KeyValue, Record
from mlflow_bundle.errors import CannotHoldError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import DatasetInput, Run
from tests.fixtures.estate import KINDS_HERE, Estate
from tests.fixtures.old_servers import RELEASES, OldServer, OldServers
from tests.fixtures.server import ServerFactory

pytestmark = [pytest.mark.compat, pytest.mark.slow]

REGISTRY = {"registered_model", "model_version"}
#: The kinds beside experiments and runs that a server of each release has.
KINDS_OF: Mapping[str, set[str]] = {
    "1.30.1": REGISTRY,
    "2.8.1": REGISTRY,
    "2.22": {*REGISTRY, "trace"},
    "3.4": {*REGISTRY, "trace", "logged_model", "evaluation_dataset", "dataset_record", "scorer", "webhook"},
}
#: Fields of those kinds that it does not have.
LACKS: Mapping[str, set[str]] = {
    "1.30.1": {"run.inputs", "run.model_inputs", "run.model_outputs", "registered_model.aliases"},
    "2.8.1": {"run.model_inputs", "run.model_outputs"},
    "2.22": {"run.model_inputs", "run.model_outputs", "trace.assessments", "trace.run_ids", "trace.prompts"},
    "3.4": {"trace.prompts", "dataset_record.outputs", "scorer.online"},
}
#: A trace without spans: releases from 3.4 to 3.6 have spans that they do not hand out, and do not say which.
UNTOLD = {"3.4": [("spans-unreadable", "tr-" + "ab" * 16)]}
#: What a restore changes on purpose.
POLICY = {("webhook", "status")}
#: Under uvicorn this release fails to send files whose names are not ASCII.
CANNOT_SEND_NAMES = "3.4"

Records = dict[tuple[str, str], Record]


def records(place: str | Path) -> Records:
    """Every record of the newest snapshot, by kind and id."""
    with bundle.open(place) as archive:
        return {(kind, record_id(record)): record for kind in archive.kinds() for record in archive.records(kind)}


def of_kind(found: Records, kind: str) -> dict[str, Any]:
    """The records of one kind by id."""
    return {identity: record for (name, identity), record in found.items() if name == kind}


def pairs(values: tuple[KeyValue, ...]) -> dict[str, str]:
    """Tags or params by key."""
    return {pair.key: pair.value for pair in values}


def differing(wanted: Records, found: Records) -> set[tuple[str, str]]:
    """(kind, member) of what two archives say differently, where both say something; locations may differ."""
    different = set()
    for (kind, identity), record in wanted.items():
        for name in record.__struct_fields__:
            one, other = plain(getattr(record, name)), plain(getattr(found[kind, identity], name))
            if UNSET not in (one, other) and one != other and name not in KINDS[kind].locations:
                different.add((kind, name))
    return different


def plain(value: Any) -> Any:
    """A value; the datasets of a run without empty texts, which a server does not tell."""
    if isinstance(value, tuple) and value and isinstance(value[0], DatasetInput):
        kept = [(entry.dataset, entry.tags) for entry in value]
        return [(replace(one, schema=one.schema or UNSET, profile=one.profile or UNSET), tags) for one, tags in kept]
    return value


def dump(path: Path) -> list[str]:
    """All rows of all tables of a SQLite database."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return list(database.iterdump())


# -- as a source -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_an_old_server_is_packed_whole_and_restored_to_the_newest(
    release: str, old_servers: OldServers, start_server: ServerFactory, tmp_path: Path
) -> None:
    """What the release's own client wrote is in the archive, from the server and from its database, what the release lacks is
    named, and a database and a server of the newest release take all of it."""
    old = old_servers.filled(release)
    place, direct = tmp_path / "served", tmp_path / "direct"
    files = old.server.artifacts_destination
    report = bundle.pack(
        bundle=place, tracking_uri=old.url, artifacts_destination=files if release == CANNOT_SEND_NAMES else None
    )
    assert (report.state, report.problems) == ("complete", ())
    assert bundle.verify(str(place)).problems == ()
    with bundle.open(place) as archive:
        absent = set(archive.snapshot.source.absent)
    assert absent & set(KINDS) == set(KINDS) - KINDS_OF[release] - {"experiment", "run"}
    assert absent >= LACKS[release]

    found = records(place)
    assert_runs(found, old.made, place)
    assert_registry(found, old.made)
    assert_newer_kinds(found, old.made, place)

    assert bundle.pack(bundle=direct, tracking_uri=old.database_uri, artifacts_destination=files).problems == ()
    assert bundle.verify(str(direct)).problems == ()
    stored = records(direct)
    assert found.keys() <= stored.keys()
    assert differing(found, stored) == set()
    more = [record for key, record in stored.items() if key not in found]
    assert {getattr(record, "current_stage", record) for record in more} <= {"Deleted_Internal"}

    for source in (place, direct):
        target = f"sqlite:///{tmp_path / source.name}.db"
        assert bundle.unpack(source, tracking_uri=target).problems == ()
        again = tmp_path / f"{source.name}-again"
        assert bundle.pack(bundle=again, tracking_uri=target).problems == ()
        assert differing(records(source), records(again)) <= POLICY

    newest = start_server(env={"MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"})
    restored = bundle.unpack(place, tracking_uri=newest.url)
    assert restored.problems == ()
    assert restored.runs_restored == len(old.made["runs"])
    counted = bundle.pack(bundle=tmp_path / "newest", tracking_uri=newest.url).counts
    newest.stop()
    assert {kind: counted.get(kind) for kind in report.counts} == dict(report.counts)


def assert_runs(found: Records, made: dict[str, Any], place: Path) -> None:
    """The experiments and runs of the archive are those that the client wrote."""
    experiments = of_kind(found, "experiment")
    assert experiments.keys() == made["experiments"].keys()
    for identity, book in made["experiments"].items():
        experiment = experiments[identity]
        assert (experiment.name, experiment.lifecycle_stage) == (book["name"], book["lifecycle_stage"])
        assert book["tags"].items() <= pairs(experiment.tags).items()
    runs = of_kind(found, "run")
    assert runs.keys() == made["runs"].keys()
    with bundle.open(place) as archive:
        points: dict[str, list[list[Any]]] = {identity: [] for identity in runs}
        ids = list(runs)
        for table in archive.series(ids):
            for row in table.to_pylist():
                points[ids[row["owner"]]].append([row["key"], row["step"], row["timestamp"], repr(row["value"])])
        files: dict[str, dict[str, str]] = {identity: {} for identity in runs}
        for row in archive.files_of(ids).to_pylist():
            files[row["run_id"]][row["path"]] = row["sha256"]
    for identity, book in made["runs"].items():
        assert_run(runs[identity], book)
        assert sorted(points[identity]) == sorted(book["points"])
        assert files[identity] == book["files"]


def assert_run(run: Run, book: dict[str, Any]) -> None:
    """The record of a run is what the client wrote."""
    for name in ("experiment_id", "run_name", "user_id", "status", "start_time", "lifecycle_stage"):
        assert getattr(run, name) == book[name], name
    assert (run.end_time or None) == book["end_time"]
    assert pairs(run.params) == book["params"]
    assert book["tags"].items() <= pairs(run.tags).items()
    inputs = [[entry.dataset.name, entry.dataset.digest, pairs(entry.tags)] for entry in run.inputs]
    assert inputs == [[dataset["name"], dataset["digest"], tags] for dataset, tags in book["inputs"]]
    assert [[link.model_id, link.step] for link in run.model_outputs] == book.get("outputs", [])


def assert_registry(found: Records, made: dict[str, Any]) -> None:
    """Registered models, versions with their numbers, stages, tags and aliases, and prompts are those that the client wrote."""
    models, versions = of_kind(found, "registered_model"), of_kind(found, "model_version")
    assert models.keys() == {*made["models"], *(["greet"] if made["prompt"] else [])}
    for name, book in made["models"].items():
        model = models[name]
        assert (model.description or "", pairs(model.tags)) == (book["description"], book["tags"])
        assert {alias.alias: str(alias.version) for alias in model.aliases} == book["aliases"]
        assert {str(one.version) for one in versions.values() if one.name == name} == book["versions"].keys()
        for number, expected in book["versions"].items():
            version = versions[f"{name}/{number}"]
            assert (version.run_id, version.description) == (expected["run_id"], expected["description"])
            assert (version.current_stage, pairs(version.tags)) == (expected["stage"], expected["tags"])
    if made["prompt"]:
        texts = {str(one.version): pairs(one.tags)["mlflow.prompt.text"] for one in versions.values() if one.name == "greet"}
        assert texts == made["prompt"]["versions"]
        assert {alias.alias: str(alias.version) for alias in models["greet"].aliases} == made["prompt"]["aliases"]


def assert_newer_kinds(found: Records, made: dict[str, Any], place: Path) -> None:
    """Traces with spans and judgements, logged models, datasets, scorers and webhooks are those that the client wrote."""
    traces = of_kind(found, "trace")
    assert traces.keys() == made["traces"].keys()
    with bundle.open(place) as archive:
        for identity, book in made["traces"].items():
            trace = traces[identity]
            assert (trace.state, trace.request_time, pairs(trace.tags)["tag"]) == (book["state"], book["time"], book["tag"])
            contents = [
                json.loads(text) for table in archive.rows("spans/1", [identity]) for text in table["content"].to_pylist()
            ]
            assert sorted(essence(span) for span in contents) == book["spans"]
    if made["judged"]:
        assert sorted(one.assessment_name for one in traces[made["judged"]["trace"]].assessments) == made["judged"]["names"]
    models = of_kind(found, "logged_model")
    assert models.keys() == made["logged_models"].keys()
    for identity, book in made["logged_models"].items():
        model = models[identity]
        assert (model.name, model.model_type, model.status) == (book["name"], book["model_type"], "READY")
        assert (model.experiment_id, model.source_run_id) == (book["experiment_id"], book["run"])
        assert (pairs(model.params), book["tags"].items() <= pairs(model.tags).items()) == (book["params"], True)
        with bundle.open(place) as archive:
            assert archive.files_of_entities("logged_model", [identity])["path"].to_pylist() == book["files"]
    evaluation = made["evaluation"]
    if evaluation:
        assert of_kind(found, "evaluation_dataset").keys() == {evaluation["dataset"]}
        assert len(of_kind(found, "dataset_record")) == evaluation["records"]
        (scorer,) = of_kind(found, "scorer").values()
        assert (scorer.scorer_name, len(scorer.versions)) == (evaluation["scorer"], evaluation["scorer_versions"])
        assert [hook.name for hook in of_kind(found, "webhook").values()] == [evaluation["webhook"]]


def essence(span: dict[str, Any]) -> list[str]:
    """The name of a span, its inputs and its outputs."""
    attributes = span["attributes"]
    values = (attributes.get("mlflow.spanInputs", "null"), attributes.get("mlflow.spanOutputs", "null"))
    return [span["name"], *(json.dumps(json.loads(value)) for value in values)]


def test_an_old_server_on_files_has_no_registry(old_servers: OldServers, tmp_path: Path) -> None:
    """MLflow 1 refuses every question about registered models where runs are files: that is an absent kind, not an error."""
    server = old_servers.start("1.30.1", str(tmp_path / "mlruns"))
    assert bundle.pack(bundle=tmp_path / "b", tracking_uri=server.url).state == "complete"
    with bundle.open(tmp_path / "b") as archive:
        assert set(KINDS) - set(archive.snapshot.source.absent) == {"experiment", "run"}
        assert archive.snapshot.counts["experiment"] == 1


# -- as a target -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle with every kind."""
    place = str(tmp_path_factory.mktemp("packed") / "estate")
    assert bundle.pack(bundle=place, tracking_uri=estate.uri).state == "complete"
    return place


@pytest.mark.parametrize("release", RELEASES)
def test_an_old_server_says_first_what_it_cannot_hold_and_takes_the_rest(
    release: str, old_servers: OldServers, packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first write every kind and every record that the server has no place for is named; with --allow-partial the
    rest arrives, is read back, and is not doubled by a second restore."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    old = OldServer(release, old_servers.start(release), {})
    before = dump(old.database)
    planned = bundle.unpack(packed, tracking_uri=old.url, dry_run=True)
    whole = {problem.kind for problem in planned.problems if problem.code == "kind-not-held"}
    held = KINDS_OF[release] - ({"trace"} if release == "2.22" else set())
    assert whole == set(KINDS_HERE) - held - {"experiment", "run", "workspace", "gateway_secret"}
    with pytest.raises(CannotHoldError, match="nothing was written") as refused:
        bundle.unpack(packed, tracking_uri=old.url)
    assert told(refused.value.problems) == told(planned.problems)
    assert dump(old.database) == before

    report = bundle.unpack(packed, tracking_uri=old.url, allow_partial=True)
    unexpected = [problem for problem in report.problems if not is_told(problem, planned.problems)]
    assert [problem.path for problem in unexpected] == (["notes/ü.txt"] if release == CANNOT_SEND_NAMES else [])
    outcomes = {outcome.kind: outcome for outcome in report.entities}
    for kind in held:
        outcome = outcomes[kind]
        assert outcome.restored + outcome.left_out == outcome.selected, kind
        assert outcome.left_out == left_out(packed, release).get(kind, 0), kind
    assert {kind for kind in outcomes.keys() - held if outcomes[kind].restored} == set()
    assert_arrived(old, packed, release, tmp_path)

    second = bundle.unpack(packed, tracking_uri=old.url, allow_partial=True)
    assert second.runs_restored == 0
    assert {outcome.kind for outcome in second.entities if outcome.restored} == set()


def told(problems: tuple[Any, ...]) -> set[tuple[str, str, str]]:
    """What problems are about."""
    return {(problem.code, problem.kind, problem.id) for problem in problems}


def is_told(problem: Any, planned: tuple[Any, ...]) -> bool:
    """Whether a problem was named before the first write. What belongs to what was left out is told of once more."""
    return (problem.code, problem.kind, problem.id) in told(planned) or problem.code == "owner-left-out"


def left_out(packed: str, release: str) -> dict[str, int]:
    """How many records of kinds that the server has it has no place for: prompts, and versions of logged models."""
    number = tuple(map(int, release.split(".")[:2]))
    models, versions = of_kind(records(packed), "registered_model"), of_kind(records(packed), "model_version")
    prompts = {name for name, model in models.items() if "mlflow.prompt.is_prompt" in pairs(model.tags)}
    of_logged = [one for one in versions.values() if str(one.source).startswith("models:/m-")]
    of_prompts = [one for one in versions.values() if one.name in prompts]
    return {
        "registered_model": len(prompts) if number < (2, 21) else 0,
        "model_version": (len(of_prompts) if number < (2, 21) else 0) + (len(of_logged) if number < (3, 0) else 0),
    }


def assert_arrived(old: OldServer, packed: str, release: str, folder: Path) -> None:
    """An archive of the old server has the content of the restored one."""
    place = folder / "back"
    files = old.server.artifacts_destination
    report = bundle.pack(bundle=place, tracking_uri=old.url, artifacts_destination=files, allow_partial=True)
    assert [(problem.code, problem.id) for problem in report.problems] == UNTOLD.get(release, [])
    wanted, found = records(packed), records(place)
    there = {run.run_name: run for run in of_kind(found, "run").values()}
    for run in of_kind(wanted, "run").values():
        back = there[run.run_name]
        assert (back.status, back.start_time, back.end_time) == (run.status, run.start_time, run.end_time)
        assert (back.params, back.lifecycle_stage) == (run.params, run.lifecycle_stage)
        assert (
            pairs(run.tags).items() - pairs(back.tags).items()
            == {item for item in pairs(run.tags).items() if item[0].startswith("mlflow.")} - pairs(back.tags).items()
        )
        assert len(back.inputs) == (0 if "run.inputs" in LACKS[release] else len(run.inputs))
    models = of_kind(found, "registered_model")
    assert {"churn.v1", "empty model ü"} <= models.keys()
    assert (models["churn.v1"].description, pairs(models["churn.v1"].tags)["lines"]) == ("first\nsecond", "x\ny")
    assert set(of_kind(found, "model_version")) <= set(of_kind(wanted, "model_version"))
