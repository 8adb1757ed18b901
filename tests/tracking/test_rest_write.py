"""Runs restored to a real tracking server: all of it arrives, is read back, and nothing is doubled or claimed too early."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from msgspec import UNSET

from mlflow_bundle._series import series_digests, sort_series
from mlflow_bundle.errors import CorruptError, ServerError
from mlflow_bundle.records import Dataset, DatasetInput, Experiment, KeyValue, Run
from mlflow_bundle.tracking._port import SERIES_SCHEMA, SOURCE_TAG_PREFIX, PlannedRun, RunQuery, RunResult, TargetExperiment
from mlflow_bundle.tracking.rest import _once
from mlflow_bundle.tracking.rest._limits import Limits
from mlflow_bundle.tracking.rest._read import RestSource
from mlflow_bundle.tracking.rest._write import RestTarget
from tests.fixtures.content import START, ContentSummary, make_awkward_content
from tests.fixtures.server import MlflowServer
from tests.tracking.http_peer import forward, serve

PARENT = "mlflow.parentRunId"
RUN_NAME = "mlflow.runName"
RESTORE = "mlflow_bundle.restore"


class Blobs:
    """File contents by their SHA-256, as an archive keeps them."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def add(self, path: str, content: bytes) -> tuple[str, int, str]:
        sha256 = hashlib.sha256(content).hexdigest()
        self._contents[sha256] = content
        return path, len(content), sha256

    @contextlib.contextmanager
    def open(self, sha256: str) -> Iterator[BinaryIO]:
        if sha256 not in self._contents:
            raise CorruptError(f"no blob {sha256}")
        yield io.BytesIO(self._contents[sha256])


@pytest.fixture(scope="module")
def content(mlflow_server: MlflowServer) -> ContentSummary:
    return make_awkward_content(mlflow_server.url, prefix="rest write ")


@pytest.fixture(scope="module")
def source(mlflow_server: MlflowServer) -> Iterator[RestSource]:
    source = RestSource(mlflow_server.url)
    yield source
    source.close()


@pytest.fixture
def connect() -> Iterator[Callable[[str], RestTarget]]:
    """Open targets that are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def open_target(url: str, bundle_id: str = "bundle-1") -> RestTarget:
            target = RestTarget(url, bundle_id=bundle_id)
            stack.callback(target.close)
            return target

        yield open_target


@pytest.fixture
def target(mlflow_server: MlflowServer, connect: Callable[[str], RestTarget]) -> RestTarget:
    return connect(mlflow_server.url)


@pytest.fixture
def place(target: RestTarget, request: pytest.FixtureRequest) -> str:
    """A new experiment of this test at the target."""
    return target.place_experiment(Experiment(experiment_id="77", name="x"), name=request.node.name, existing=None)


def make_run(number: int, **fields: object) -> Run:
    """An archived run; numbers make ids."""
    defaults = {"run_name": f"run {number}", "user_id": "ann", "status": "FINISHED", "start_time": START, "end_time": START + 9}
    name_tag = KeyValue(key=RUN_NAME, value=f"run {number}")
    usual = {"run_id": f"{number:032x}", "experiment_id": "77", "tags": (name_tag,), **defaults}
    return Run(**{**usual, **fields})  # type: ignore[arg-type]


def series(rows: Iterable[tuple[int, str, int, int, float]]) -> pa.Table:
    """A sorted table of owner, key, step, timestamp, value."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SERIES_SCHEMA, strict=True)]
    return sort_series(pa.Table.from_arrays(arrays, schema=SERIES_SCHEMA))


NOTHING = SERIES_SCHEMA.empty_table()


def restore(
    target: RestTarget, runs: Sequence[Run], experiment_id: str, tables: Iterable[pa.Table] = (), blobs: Blobs | None = None
) -> list[RunResult]:
    planned = [PlannedRun(source=run, experiment_id=experiment_id) for run in runs]
    return target.restore(planned, iter(tables), (blobs or Blobs()).open)


def tags_of(client: MlflowClient, run_id: str | None) -> dict[str, str]:
    return dict(client.get_run(run_id).data.tags)


def _restore_all(source: RestSource, target: RestTarget, content: ContentSummary) -> dict[str, RunResult]:
    """Copy all experiments of the content, as unpack does: parents first."""
    results: dict[str, RunResult] = {}
    wanted = set(content.experiments.values())
    for experiment in source.experiments():
        if experiment.experiment_id not in wanted:
            continue
        there = target.place_experiment(experiment, name="restored " + experiment.name, existing=None)
        runs = [run for batch in source.runs(RunQuery(experiment_ids=(experiment.experiment_id,))) for run in batch]
        blobs = Blobs()
        planned = []
        for run in runs:
            store = source.artifacts(run)
            files = []
            for info in store.walk():
                with store.open(info.path) as stream:
                    files.append(blobs.add(info.path, stream.read()))
            parent = next((tag.value for tag in run.tags if tag.key == PARENT), "")
            known = results[parent].run_id if parent in results else None
            planned.append(PlannedRun(source=run, experiment_id=there, parent_id=known, files=tuple(files)))
        metrics = source.metrics([run.run_id for run in runs])
        results |= {result.source_run_id: result for result in target.restore(planned, metrics, blobs.open)}
        target.finish_experiment(experiment, there)
    return results


def test_everything_arrives(content: ContentSummary, source: RestSource, mlflow_server: MlflowServer) -> None:
    """Every attribute, param, tag, dataset input, point and file of awkward content arrives; what ids allow is equal."""
    target = RestTarget(mlflow_server.url, bundle_id="bundle-all")
    results = _restore_all(source, target, content)
    assert set(results) == set(content.run_ids)
    assert [problem for result in results.values() for problem in result.problems] == []
    originals = {run.run_id: run for run in source.runs_by_id(content.run_ids)}
    restored = {run.run_id: run for run in source.runs_by_id([str(result.run_id) for result in results.values()])}
    for run_id, original in originals.items():
        found = restored[str(results[run_id].run_id)]
        ours = {tag.key: tag.value for tag in found.tags if tag.key.startswith("mlflow_bundle.")}
        assert ours[RESTORE] == "complete"
        assert ours[SOURCE_TAG_PREFIX + "run_id"] == run_id
        assert ours[SOURCE_TAG_PREFIX + "experiment_id"] == original.experiment_id
        assert ours[SOURCE_TAG_PREFIX + "artifact_uri"] == original.artifact_uri
        assert ours[SOURCE_TAG_PREFIX + "lifecycle_stage"] == original.lifecycle_stage
        tags = {tag.key: tag.value for tag in found.tags if tag.key not in ours}
        if SOURCE_TAG_PREFIX + "parent_run_id" in ours:
            assert tags[PARENT] == results[ours[SOURCE_TAG_PREFIX + "parent_run_id"]].run_id
            tags[PARENT] = ours[SOURCE_TAG_PREFIX + "parent_run_id"]
        same = msgspec.structs.replace(
            found,
            run_id=run_id,
            experiment_id=original.experiment_id,
            artifact_uri=original.artifact_uri,
            tags=tuple(KeyValue(key=key, value=value) for key, value in sorted(tags.items())),
        )
        assert same == original
        assert results[run_id].files == len(content.files[run_id])
        assert results[run_id].file_bytes == sum(size for size, _ in content.files[run_id].values())
    ids = [str(results[run_id].run_id) for run_id in content.run_ids]
    digests = series_digests(source.metrics(ids), len(ids))
    assert digests == series_digests(source.metrics(content.run_ids), len(ids))
    assert [rows for rows, _ in digests] == [results[run_id].metric_points for run_id in content.run_ids]
    target.close()


def test_experiments_keep_what_rest_cannot_set(source: RestSource, target: RestTarget, place: str) -> None:
    """Ids, times, location and lifecycle of an archived experiment become source tags; its own tags stay."""
    archived = Experiment(
        experiment_id="5",
        name="n",
        lifecycle_stage="deleted",
        artifact_location="s3://b/5",
        creation_time=7,
        last_update_time=8,
        workspace="team",
        tags=(KeyValue(key="a", value="x\ny"), KeyValue(key="mlflow.trace.archiveNow", value="{}")),
    )
    there = target.place_experiment(archived, name="kept " + place, existing=None)
    found = next(experiment for experiment in source.experiments() if experiment.experiment_id == there)
    tags = {tag.key.removeprefix(SOURCE_TAG_PREFIX): tag.value for tag in found.tags}
    assert len(tags.pop("digest")) == 64
    assert tags == {
        "a": "x\ny",
        "artifact_location": "s3://b/5",
        "bundle_id": "bundle-1",
        "creation_time": "7",
        "experiment_id": "5",
        "last_update_time": "8",
        "lifecycle_stage": "deleted",
        "tags.mlflow.trace.archiveNow": "{}",
        "workspace": "team",
    }
    assert TargetExperiment(there, "kept " + place, "active", "5", workspace="default") in target.experiments()
    assert "archive its traces" in target.cannot_hold_experiment(archived)[0].message


def test_experiments_of_other_bundles_are_not_ours(
    target: RestTarget, place: str, mlflow_server: MlflowServer, connect: Callable[..., RestTarget]
) -> None:
    """Two servers both have an experiment 77: only the one restored from this bundle is recognised."""
    assert next(e for e in target.experiments() if e.experiment_id == place).source_id == "77"
    other = connect(mlflow_server.url, "another bundle")
    assert next(e for e in other.experiments() if e.experiment_id == place).source_id is None


def test_merging_adds_tags_and_changes_none(target: RestTarget, mlflow_server: MlflowServer) -> None:
    """An existing experiment keeps its values; the difference is noted."""
    client = MlflowClient(mlflow_server.url)
    there = client.create_experiment("merged", tags={"a": "old"})
    archived = Experiment(experiment_id="6", name="merged", tags=(KeyValue(key="a", value="new"), KeyValue(key="b", value="2")))
    assert target.place_experiment(archived, name="merged", existing=TargetExperiment(there, "merged", "active")) == there
    tags = client.get_experiment(there).tags
    assert (tags["a"], tags["b"]) == ("old", "2")
    assert target.notes == ["the experiment 'merged' keeps its own value of the tag 'a'"]


def test_what_sql_changes_is_noted(target: RestTarget, place: str, source: RestSource) -> None:
    """Infinities, -0.0 and repeated points are stored as SQL can, counted, and no problem; NaN and denormals are exact."""
    values = (math.inf, -math.inf, -0.0, math.nan, 5e-324, 1e308)
    rows = [(0, "v", step, START, value) for step, value in enumerate(values)]
    rows += [(0, "w", 1, START, 0.5)] * 3 + [(0, "z", 1, START, -0.0), (0, "z", 1, START, 0.0)] + [(0, "n", 1, 5, math.nan)] * 2
    table = series(rows)
    (result,) = restore(target, [make_run(1)], place, [table.slice(0, 4), table.slice(4)])
    assert result.problems == []
    assert result.metric_points == 9
    assert sorted(result.notes) == [
        "2 infinite metric values are kept as the largest double",
        "2 metric values of -0.0 are kept as 0.0",
        "4 repeated metric points are kept once",
    ]
    found = [(row["key"], str(row["value"])) for part in source.metrics([str(result.run_id)]) for row in part.to_pylist()]
    assert found == [
        ("n", "nan"),
        ("v", "1.7976931348623157e+308"),
        ("v", "-1.7976931348623157e+308"),
        ("v", "0.0"),
        ("v", "nan"),
        ("v", "5e-324"),
        ("v", "1e+308"),
        ("w", "0.5"),
        ("z", "0.0"),
    ]


def test_long_series_and_wide_runs(target: RestTarget, place: str, source: RestSource) -> None:
    """60,000 points on one key and 1,200 keys on one run arrive point by point."""
    rows = [(0, "long", step, START + step, step / 7) for step in range(-30_000, 30_000)]
    rows += [(1, f"key {number}", 0, START, number / 3) for number in range(1_200)]
    table = series(rows)
    results = restore(target, [make_run(1), make_run(2)], place, [table])
    assert [(result.metric_points, result.problems, result.notes) for result in results] == [(60_000, [], []), (1_200, [], [])]
    digests = series_digests(source.metrics([str(result.run_id) for result in results]), 2)
    assert digests == series_digests([table], 2)


def test_what_the_server_cannot_hold_is_left_out_and_named(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """Only that item is missing, every one has a problem, and the pure check says the same before anything is sent."""
    run = make_run(
        1,
        user_id="u" * 257,
        params=(KeyValue(key="ok", value="1"), KeyValue(key="long", value="p" * 6001), KeyValue(key="a//b", value="1")),
        tags=(KeyValue(key=RUN_NAME, value="run 1"), KeyValue(key="long", value="t" * 8001), KeyValue(key="q?", value="1")),
        inputs=(
            DatasetInput(dataset=Dataset(name="fine", digest="1", source_type="s", source="{}")),
            DatasetInput(dataset=Dataset(name="n" * 501, digest="1", source_type="s", source="{}")),
        ),
    )
    before = target.cannot_hold_run(run)
    assert len(before) == 6
    keys = ["k" * 251, "../up", "/abs", "bad!", "new\n\nline", "."]
    assert all(target.cannot_hold_key(key) for key in keys)
    rows = [(0, key, 1, START, 1.0) for key in keys] + [(0, "fine", 1, START, 1.0), (0, "fine", 1, -5, 1.0)]
    (result,) = restore(target, [run], place, [series(rows)])
    assert result.problems[:6] == before
    assert len(result.problems) == 6 + len(keys) + 1
    assert {problem.code for problem in result.problems} == {"cannot-hold"}
    assert result.metric_points == 1
    found = MlflowClient(mlflow_server.url).get_run(str(result.run_id))
    assert found.data.params == {"ok": "1"}
    assert found.info.user_id == ""
    assert [entry.dataset.name for entry in found.inputs.dataset_inputs] == ["fine"]
    assert found.data.tags[RESTORE] == "complete"


@pytest.mark.parametrize(
    "key", ["a:b", "a b", "ключ", "k" * 250, "a/b", "a\n", "..a", "a..", "../a", "", "a/", "é!", "x" * 251]
)
def test_the_key_rules_are_the_servers(key: str, target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """The check agrees with the real server about every kind of key."""
    client = MlflowClient(mlflow_server.url)
    run_id = client.create_run(place).info.run_id
    body = {"run_id": run_id, "metrics": [{"key": key, "value": 1, "timestamp": 1, "step": 1}]}
    status, _, _ = forward(mlflow_server.url, "POST", "/api/2.0/mlflow/runs/log-batch", json.dumps(body).encode())
    assert (target.cannot_hold_key(key) is None) == (status == 200)


def test_limits_follow_the_release() -> None:
    """Older servers take less; one that names no release is taken for an old one."""
    param, tag = KeyValue(key="k", value="v" * 501), KeyValue(key="k", value="v" * 5001)
    assert Limits.of("1.30.1").param(param)
    assert Limits.of("").param(param)
    assert not Limits.of("2.8.0").param(param)
    assert Limits.of("2.17.2").tag(tag)
    assert not Limits.of("2.18.0").tag(tag)
    assert Limits.of("3.15.0").experiment_tag(tag)
    assert not Limits.of("3.16.0").experiment_tag(tag)
    assert Limits.of("2.15.1").key("a:b")
    assert not Limits.of("2.16.0").key("a:b")
    assert not Limits.of("3.17.2").key("a\n")
    assert Limits.of("3.18.0").key("a\n")
    blank = Experiment(experiment_id="1", name=" ", lifecycle_stage="active")
    assert not Limits.of("3.17.2").experiment_problems(blank)
    assert len(Limits.of("3.18.0").experiment_problems(blank)) == 1


@pytest.mark.parametrize(
    ("name", "tag", "shown", "shown_tag"),
    [
        ("n", "n", "n", "n"),
        ("n", None, "n", None),
        (UNSET, "t", "t", "t"),
        ("", "t", "t", "t"),
        (UNSET, None, f"{1:032x}", None),
        ("n", "t", "n", "n"),
        ("n" * 251, "n" * 251, "n" * 250, "n" * 250),
    ],
)
def test_names_are_kept_as_far_as_a_server_can(
    name: str, tag: str | None, shown: str, shown_tag: str | None, target: RestTarget, place: str, mlflow_server: MlflowServer
) -> None:
    """Name and name tag are equal at a server; whatever was different is in a source tag, a note or a problem."""
    tags = () if tag is None else (KeyValue(key=RUN_NAME, value=tag),)
    (result,) = restore(target, [make_run(1, run_name=name, tags=tags)], place)
    found = MlflowClient(mlflow_server.url).get_run(str(result.run_id))
    assert found.info.run_name == shown
    assert found.data.tags.get(RUN_NAME) == shown_tag
    assert found.data.tags[RESTORE] == "complete"
    changed = (name or None) != shown or tag != shown_tag
    assert bool(result.problems or result.notes) == changed


def test_absent_attributes_are_noted(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """A server cannot leave out user, status and start time: the journal says that they were absent."""
    (result,) = restore(target, [make_run(1, user_id=UNSET, status=UNSET, start_time=UNSET, end_time=UNSET)], place)
    assert result.problems == []
    assert "user_id, status, start_time" in result.notes[0]
    assert tags_of(MlflowClient(mlflow_server.url), result.run_id)[SOURCE_TAG_PREFIX + "absent"] == "user_id,status,start_time"


def test_columns_without_an_endpoint_become_tags(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """What only a database can hold travels in source tags; MLflow's own defaults need none."""
    run = make_run(1, deleted_time=5, source_type="JOB", source_name="a.py", entry_point_name="main", source_version="abc")
    plain = make_run(2, source_type="UNKNOWN", source_name="", entry_point_name="", source_version="")
    results = restore(target, [run, plain], place)
    first, second = (tags_of(MlflowClient(mlflow_server.url), result.run_id) for result in results)
    for column, value in {"deleted_time": "5", "source_type": "JOB", "source_name": "a.py", "entry_point_name": "main"}.items():
        assert first[SOURCE_TAG_PREFIX + column] == value
        assert SOURCE_TAG_PREFIX + column not in second


def test_the_tags_of_an_earlier_restore_are_kept(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """A run that was restored once already keeps its first source tags, as JSON in one tag."""
    earlier = {SOURCE_TAG_PREFIX + "run_id": "first", RESTORE: "complete"}
    tags = tuple(KeyValue(key=key, value=value) for key, value in {RUN_NAME: "run 1", **earlier}.items())
    (result,) = restore(target, [make_run(1, tags=tags)], place)
    found = tags_of(MlflowClient(mlflow_server.url), result.run_id)
    assert found[SOURCE_TAG_PREFIX + "run_id"] == f"{1:032x}"
    assert json.loads(found[SOURCE_TAG_PREFIX + "earlier"]) == earlier
    assert result.problems == []


def test_an_experiment_that_was_restored_before_is_known_again(target: RestTarget, request: pytest.FixtureRequest) -> None:
    """An experiment with the tags of an earlier restore is one of this archive all the same, and keeps those as JSON."""
    earlier = {SOURCE_TAG_PREFIX + "experiment_id": "first", SOURCE_TAG_PREFIX + "bundle_id": "another"}
    archived = Experiment(
        experiment_id="78", name="x", tags=tuple(KeyValue(key=key, value=value) for key, value in earlier.items())
    )
    there = target.place_experiment(archived, name=request.node.name, existing=None)
    (found,) = [one for one in target.experiments() if one.experiment_id == there]
    assert found.source_id == "78"
    client = MlflowClient(target.description.uri)
    assert json.loads(client.get_experiment(there).tags[SOURCE_TAG_PREFIX + "earlier"]) == earlier


def test_many_tags_and_params_and_large_ones(target: RestTarget, place: str, source: RestSource) -> None:
    """More tags and params than one request takes, by number and by bytes, all arrive."""
    params = tuple(KeyValue(key=f"p{number:03}", value="\n😀" * 3000) for number in range(250))
    tags = tuple(KeyValue(key=f"t{number:03}", value="ü" * 8000) for number in range(250))
    (result,) = restore(target, [make_run(1, params=params, tags=(KeyValue(key=RUN_NAME, value="run 1"), *tags))], place)
    assert result.problems == []
    (found,) = source.runs_by_id([str(result.run_id)])
    assert found.params == params
    assert tuple(tag for tag in found.tags if tag.key[0] == "t") == tags


def _dying(table: pa.Table) -> Iterator[pa.Table]:
    yield table
    raise KeyboardInterrupt


def test_a_killed_restore_is_finished_and_not_doubled(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """What was begun is recognised as unfinished, completed under the same id, and complete ones are told apart."""
    runs = [make_run(number, lifecycle_stage="deleted" if number == 2 else "active") for number in range(30)]
    ids = [run.run_id for run in runs]
    table = series([(owner, "m", step, START, float(step)) for owner in range(30) for step in range(40)])
    half = table.slice(0, 500)
    planned = [PlannedRun(source=run, experiment_id=place) for run in runs]
    with pytest.raises(KeyboardInterrupt):
        target.restore(planned, _dying(half), Blobs().open)
    begun = target.restored_runs(place, ids)
    assert set(begun) == set(ids)
    assert not any(run.complete for run in begun.values())
    again = [PlannedRun(source=run, experiment_id=place, target_run_id=begun[run.run_id].run_id) for run in runs]
    results = target.restore(again, iter([table]), Blobs().open)
    assert all(result.problems == [] and result.metric_points == 40 for result in results)
    assert [result.run_id for result in results] == [begun[run.run_id].run_id for run in runs]
    for some in (ids, ids[:3]):
        done = target.restored_runs(place, some)
        assert set(done) == set(some)
        assert all(run.complete for run in done.values())
    client = MlflowClient(mlflow_server.url)
    assert len(client.search_runs([place], run_view_type=ViewType.ALL)) == 30
    assert [run.info.run_id for run in client.search_runs([place], run_view_type=ViewType.DELETED_ONLY)] == [
        begun[ids[2]].run_id
    ]


def test_a_deletion_that_did_not_happen_is_made_up_for(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """Killed between the last tag and the deletion, the run counts as unfinished and is deleted by the next restore."""
    run = make_run(1, lifecycle_stage="deleted")
    (result,) = restore(target, [run], place)
    client = MlflowClient(mlflow_server.url)
    client.restore_run(str(result.run_id))
    begun = target.restored_runs(place, [run.run_id])[run.run_id]
    assert not begun.complete
    target.restore([PlannedRun(source=run, experiment_id=place, target_run_id=begun.run_id)], iter(()), Blobs().open)
    assert client.get_run(begun.run_id).info.lifecycle_stage == "deleted"
    assert target.restored_runs(place, [run.run_id])[run.run_id].complete


def test_a_deleted_experiment_is_written_and_deleted_again(
    mlflow_server: MlflowServer, connect: Callable[..., RestTarget]
) -> None:
    """Restoring into it revives it for a while; a run that was active in it is active afterwards, all others deleted."""
    archived = Experiment(experiment_id="90", name="gone", lifecycle_stage="deleted")
    target = connect(mlflow_server.url)
    there = target.place_experiment(archived, name="gone 90", existing=None)
    first = make_run(1, lifecycle_stage="deleted")
    restore(target, [first], there)
    target.finish_experiment(archived, there)
    existing = next(experiment for experiment in target.experiments() if experiment.experiment_id == there)
    assert existing.lifecycle_stage == "deleted"
    assert target.place_experiment(archived, name="gone 90", existing=existing) == there
    assert target.restored_runs(there, [first.run_id])[first.run_id].complete
    assert restore(target, [make_run(2, lifecycle_stage="active")], there)[0].problems == []
    target.finish_experiment(archived, there)
    client = MlflowClient(mlflow_server.url)
    assert client.get_experiment(there).lifecycle_stage == "deleted"
    stages = {run.data.tags[SOURCE_TAG_PREFIX + "run_id"]: run.info.lifecycle_stage for run in _all(client, there)}
    assert stages == {first.run_id: "deleted", f"{2:032x}": "active"}


def test_an_experiment_that_the_user_deleted_comes_back_as_it_was(
    mlflow_server: MlflowServer, target: RestTarget, place: str
) -> None:
    """Reviving makes all runs active; those that the archive has as deleted are deleted again."""
    archived = Experiment(experiment_id="77", name="x")
    restore(target, [make_run(1, lifecycle_stage="deleted"), make_run(2)], place)
    client = MlflowClient(mlflow_server.url)
    client.delete_experiment(place)
    existing = next(experiment for experiment in target.experiments() if experiment.experiment_id == place)
    target.place_experiment(archived, name=existing.name, existing=existing)
    target.finish_experiment(archived, place)
    stages = {run.data.tags[SOURCE_TAG_PREFIX + "run_id"]: run.info.lifecycle_stage for run in _all(client, place)}
    assert stages == {f"{1:032x}": "deleted", f"{2:032x}": "active"}
    assert client.get_experiment(place).lifecycle_stage == "active"


def _all(client: MlflowClient, experiment_id: str) -> list:
    return list(client.search_runs([experiment_id], run_view_type=ViewType.ALL))


def test_files_arrive_and_bad_ones_are_named(target: RestTarget, place: str, mlflow_server: MlflowServer) -> None:
    """Files are read back by content; one that the archive or the server cannot give stops neither others nor other runs."""
    blobs = Blobs()
    good = (blobs.add("a/größe 1.txt", b"one"), blobs.add("empty", b""), blobs.add("big.bin", b"x" * 3_000_000))
    lost = ("lost.bin", 3, "0" * 64)
    odd = blobs.add("ha#sh.txt", b"odd")
    planned = [
        PlannedRun(source=make_run(1), experiment_id=place, files=(*good, lost, odd)),
        PlannedRun(source=make_run(2), experiment_id=place, files=good),
    ]
    bad, fine = target.restore(planned, iter(()), blobs.open)
    assert {(problem.code, problem.path) for problem in bad.problems} == {
        ("not-restored", "lost.bin"),
        ("not-restored", "ha#sh.txt"),
    }
    assert (bad.files, bad.file_bytes) == (fine.files, fine.file_bytes) == (3, 3_000_003)
    assert fine.problems == []
    client = MlflowClient(mlflow_server.url)
    assert tags_of(client, bad.run_id)[RESTORE] == "started"
    assert tags_of(client, fine.run_id)[RESTORE] == "complete"
    path = Path(mlflow_server.artifacts_destination) / place / str(fine.run_id) / "artifacts/a/größe 1.txt"
    assert path.read_bytes() == b"one"


@pytest.mark.parametrize(
    ("endpoint", "change"),
    [
        ("log-batch", lambda body: re.sub(rb'"step":3\b', b'"step":4', body)),
        ("log-batch", lambda body: body.replace(b'"value":"p1"', b'"value":"p2"')),
        ("create", lambda body: body.replace(b'"value":"t1"', b'"value":"t2"')),
        ("create", lambda body: body.replace(b'"user_id":"ann"', b'"user_id":"bob"')),
        ("create", lambda body: body.replace(str(START).encode(), b"1")),
        ("log-inputs", lambda body: body.replace(b'"source":"{}"', b'"source":"[]"')),
        ("log-inputs", lambda body: body.replace(b'"value":"train"', b'"value":"test"')),
        ("update", lambda body: body.replace(b'"FAILED"', b'"KILLED"')),
        ("update", lambda body: body.replace(str(START + 9).encode(), b"2")),
        ("runs/delete", None),
    ],
)
def test_whatever_arrives_differently_is_found(
    endpoint: str, change: Callable[[bytes], bytes] | None, mlflow_server: MlflowServer, connect: Callable[..., RestTarget]
) -> None:
    """A request that is altered on its way to the server is noticed when it is read back, and the run is not complete."""
    altered = 0

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
        nonlocal altered
        if path.endswith(endpoint) and change is None:
            altered += 1
            return 200, b"{}", None
        if path.endswith(endpoint) and change is not None:
            altered += change(body) != body
            body = change(body)
        return forward(mlflow_server.url, method, path, body)

    dataset = Dataset(name=f"d {endpoint} {altered}", digest="1", source_type="local", source="{}")
    run = make_run(
        1,
        status="FAILED",
        lifecycle_stage="deleted",
        params=(KeyValue(key="p", value="p1"),),
        tags=(KeyValue(key=RUN_NAME, value="run 1"), KeyValue(key="t", value="t1")),
        inputs=(DatasetInput(dataset=dataset, tags=(KeyValue(key="context", value="train"),)),),
    )
    with serve(answer) as peer:
        target = connect(peer.url)
        there = target.place_experiment(Experiment(experiment_id="1", name="x"), name=peer.url, existing=None)
        (result,) = restore(target, [run], there, [series([(0, "m", step, START, 1.0) for step in range(5)])])
        assert altered
        assert {problem.code for problem in result.problems} == {"restored-differs"}
        assert not target.restored_runs(there, [run.run_id])[run.run_id].complete


def test_a_lost_answer_does_not_double_a_run(
    mlflow_server: MlflowServer, connect: Callable[..., RestTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server created a run but its answer was lost, that run is found and used."""
    monkeypatch.setattr(_once, "_WAITS", (0.1, 0.1))
    lost = 0

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        nonlocal lost
        said = forward(mlflow_server.url, method, path, body)
        if path.endswith("runs/create") and not lost:
            lost += 1
            return None
        return said

    with serve(answer) as peer:
        target = connect(peer.url)
        there = target.place_experiment(Experiment(experiment_id="1", name="x"), name=peer.url, existing=None)
        (result,) = restore(target, [make_run(1)], there)
    assert lost == 1
    assert result.problems == []
    assert [run.info.run_id for run in _all(MlflowClient(mlflow_server.url), there)] == [result.run_id]


def test_one_refused_run_does_not_stop_the_others(target: RestTarget, place: str) -> None:
    """A run in an experiment that is gone is a problem of its own."""
    planned = [
        PlannedRun(source=make_run(1), experiment_id="987654"),
        PlannedRun(source=make_run(2), experiment_id=place),
    ]
    table = series([(owner, "m", step, START, 1.0) for owner in range(2) for step in range(5)])
    bad, fine = target.restore(planned, iter([table]), Blobs().open)
    assert bad.run_id is None
    assert "RESOURCE_DOES_NOT_EXIST" in bad.problems[0].message
    assert (fine.problems, fine.metric_points) == ([], 5)


def test_a_target_that_dies_raises(
    mlflow_server: MlflowServer, connect: Callable[..., RestTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is gone in the middle is one error; what it has is unfinished."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None] | None:
        return None if path.endswith("log-batch") else forward(mlflow_server.url, method, path, body)

    with serve(answer) as peer:
        target = connect(peer.url)
        there = target.place_experiment(Experiment(experiment_id="1", name="x"), name=peer.url, existing=None)
        with pytest.raises(ServerError, match="does not answer"):
            restore(target, [make_run(1)], there, [series([(0, "m", 1, START, 1.0)])])
        assert not target.restored_runs(there, [f"{1:032x}"])[f"{1:032x}"].complete


def test_datasets_of_many_runs_at_once(target: RestTarget, place: str) -> None:
    """Runs that bring the same new dataset at the same time do not trip over each other; their own tags stay apart."""
    dataset = Dataset(name="shared", digest="1", source_type="local", source="{}", schema="s", profile="p")
    runs = [
        make_run(number, inputs=(DatasetInput(dataset=dataset, tags=(KeyValue(key="n", value=str(number)),)),))
        for number in range(24)
    ]
    assert [problem for result in restore(target, runs, place) for problem in result.problems] == []


def test_a_dataset_that_the_target_has_differently_is_a_problem(target: RestTarget, place: str) -> None:
    """A server keeps one dataset per experiment, name and digest: another content under them cannot be restored."""
    first, second = (Dataset(name="d", digest="1", source_type="local", source=text) for text in ("{}", "[]"))
    runs = [make_run(number, inputs=(DatasetInput(dataset=dataset),)) for number, dataset in enumerate((first, second))]
    results = [restore(target, [run], place)[0] for run in runs]
    assert results[0].problems == []
    assert "'d'" in results[1].problems[0].message
