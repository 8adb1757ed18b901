"""A real tracking server read by REST: every attribute, every point, in archive order, whatever the page sizes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from msgspec import UNSET

from mlflow_bundle._series import series_digests, sort_series
from mlflow_bundle.errors import NotFoundError, UsageError
from mlflow_bundle.records import Run, order_key
from mlflow_bundle.tracking._port import SERIES_SCHEMA, RunQuery
from mlflow_bundle.tracking.rest import _history as _rest_history
from mlflow_bundle.tracking.rest import _read as _rest_read
from mlflow_bundle.tracking.rest._read import RestSource
from tests.fixtures.content import START, ContentSummary, make_awkward_content
from tests.fixtures.server import MlflowServer


@pytest.fixture(scope="module")
def content(mlflow_server: MlflowServer) -> ContentSummary:
    """Awkward content on the session's server, in experiments of this module."""
    return make_awkward_content(mlflow_server.url, prefix="rest read ", disk=Path(mlflow_server.artifacts_destination))


@pytest.fixture(scope="module")
def source(mlflow_server: MlflowServer) -> Iterator[RestSource]:
    source = RestSource(mlflow_server.url)
    yield source
    source.close()


@pytest.fixture(scope="module")
def everything(content: ContentSummary, source: RestSource) -> list[Run]:
    """All runs of the module's experiments."""
    return _runs(source, RunQuery(experiment_ids=tuple(content.experiments.values())))


def _runs(source: RestSource, query: RunQuery) -> list[Run]:
    return [run for batch in source.runs(query) for run in batch]


def _ids(runs: Sequence[Run]) -> list[str]:
    return [run.run_id for run in runs]


def test_experiments_are_whole(content: ContentSummary, source: RestSource, mlflow_server: MlflowServer) -> None:
    """Every experiment comes with each of its attributes and tags, deleted ones too, in archive order."""
    found = {experiment.experiment_id: experiment for experiment in source.experiments()}
    client = MlflowClient(mlflow_server.url)
    for name, experiment_id in content.experiments.items():
        wanted, read = client.get_experiment(experiment_id), found[experiment_id]
        assert read.name == name == wanted.name
        assert read.lifecycle_stage == wanted.lifecycle_stage
        assert (read.lifecycle_stage == "deleted") == (experiment_id in content.deleted_experiments)
        assert read.artifact_location == wanted.artifact_location
        assert read.creation_time == wanted.creation_time
        assert read.last_update_time == wanted.last_update_time
        assert {tag.key: tag.value for tag in read.tags} == wanted.tags
        assert [tag.key for tag in read.tags] == sorted(wanted.tags)
    assert list(found.values()) == sorted(found.values(), key=order_key)


def test_runs_are_whole(content: ContentSummary, everything: list[Run], mlflow_server: MlflowServer) -> None:
    """Every run comes once, with each attribute, param, tag and dataset input that MLflow's own client shows."""
    assert sorted(_ids(everything)) == sorted(content.run_ids)
    assert everything == sorted(everything, key=order_key)
    client = MlflowClient(mlflow_server.url)
    for run in everything:
        wanted = client.get_run(run.run_id)
        for name in ("experiment_id", "run_name", "user_id", "status", "start_time", "lifecycle_stage", "artifact_uri"):
            assert getattr(run, name) == getattr(wanted.info, name), name
        assert run.end_time == (wanted.info.end_time or UNSET)
        assert [(tag.key, tag.value) for tag in run.tags] == sorted(wanted.data.tags.items())
        assert [(param.key, param.value) for param in run.params] == sorted(wanted.data.params.items())
        inputs = sorted(wanted.inputs.dataset_inputs, key=lambda entry: (entry.dataset.name, entry.dataset.digest))
        assert len(run.inputs) == len(inputs)
        for read, entry in zip(run.inputs, inputs, strict=True):
            for name in ("name", "digest", "source_type", "source", "schema", "profile"):
                assert (getattr(read.dataset, name) or None) == getattr(entry.dataset, name), name
            assert [(tag.key, tag.value) for tag in read.tags] == sorted((tag.key, tag.value) for tag in entry.tags)


def test_what_rest_does_not_offer_stays_absent(everything: list[Run], source: RestSource) -> None:
    """Columns without an endpoint are absent in the records and named in the description."""
    for field in ("deleted_time", "source_type", "source_name", "entry_point_name", "source_version"):
        assert all(getattr(run, field) is UNSET for run in everything)
        assert f"run.{field}" in source.description.absent
    assert source.description.version[0].isdigit()


def test_small_pages_hide_and_double_nothing(
    content: ContentSummary, everything: list[Run], source: RestSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pages smaller than the number of runs of one start time the same runs come in the same order."""
    assert max(Counter(run.start_time for run in everything).values()) > 3
    monkeypatch.setattr(_rest_read, "_RUNS_PER_PAGE", 3)
    batches = list(source.runs(RunQuery(experiment_ids=tuple(content.experiments.values()))))
    assert max(map(len, batches)) <= 3
    assert [run for batch in batches for run in batch] == everything


def test_runs_that_vanish_while_pages_are_read_hide_no_others(
    content: ContentSummary, source: RestSource, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting runs that were read already does not shift later ones out of sight."""
    client = MlflowClient(mlflow_server.url)
    experiment = client.create_experiment("rest read vanishing")
    made = [client.create_run(experiment, start_time=START + number).info.run_id for number in range(12)]
    monkeypatch.setattr(_rest_read, "_RUNS_PER_PAGE", 2)
    found: list[str] = []
    for batch in source.runs(RunQuery(experiment_ids=(experiment,), lifecycle="active")):
        found += _ids(batch)
        client.delete_run(batch[0].run_id)
    assert found == made


def test_lifecycle_and_times_select(content: ContentSummary, everything: list[Run], source: RestSource) -> None:
    """Lifecycle, since and until (both inclusive) and the user's filter restrict, alone and together."""
    ids = tuple(content.experiments.values())
    for stage in ("active", "deleted"):
        wanted = [run for run in everything if run.lifecycle_stage == stage]
        assert _runs(source, RunQuery(experiment_ids=ids, lifecycle=stage)) == wanted
        assert wanted
    between = _runs(source, RunQuery(experiment_ids=ids, since=START + 1, until=START + 3))
    assert between == [run for run in everything if START + 1 <= (run.start_time or 0) <= START + 3]
    assert {run.start_time for run in between} >= {START + 1, START + 3}
    failed = _runs(source, RunQuery(experiment_ids=ids, filter="attributes.status = 'FAILED'", until=START, lifecycle="active"))
    assert failed == [
        run
        for run in everything
        if run.status == "FAILED" and (run.start_time or 0) <= START and run.lifecycle_stage == "active"
    ]
    assert failed


def test_selected_ids_obey_the_rest_of_the_query(content: ContentSummary, everything: list[Run], source: RestSource) -> None:
    """Named runs are restricted by filter and lifecycle like others; runs that do not exist are left out."""
    wanted = [run for run in everything if run.lifecycle_stage == "deleted"]
    assert _runs(source, RunQuery(run_ids=(*_ids(everything), "f" * 32), lifecycle="deleted")) == wanted
    assert _runs(source, RunQuery(experiment_ids=())) == []


def test_a_filter_that_the_server_refuses_is_the_callers_error(content: ContentSummary, source: RestSource) -> None:
    """The message quotes the filter."""
    with pytest.raises(UsageError, match="nonsense"):
        _runs(source, RunQuery(filter="nonsense >"))


def test_runs_are_found_by_id(everything: list[Run], source: RestSource) -> None:
    """A few and many ids give the same records in archive order; unknown and repeated ids add nothing."""
    few = everything[:5]
    assert source.runs_by_id([*reversed(_ids(few)), "e" * 32, few[0].run_id]) == few
    assert len(everything) > _rest_read._FEW_RUNS
    assert source.runs_by_id([*reversed(_ids(everything)), "e" * 32]) == everything


@pytest.mark.parametrize("many", [0, 200])
def test_children_are_found_wherever_they_are(
    many: int, content: ContentSummary, source: RestSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children in other experiments and deleted ones are found, one search per parent or all nested runs at once."""
    monkeypatch.setattr(_rest_read, "_MANY_PARENTS", many)
    parents = [content.runs["parent"], content.runs["child"]]
    wanted = {child for child, parent in content.parents.items() if parent in parents}
    found = source.children(parents)
    assert set(_ids(found)) == wanted
    assert len(found) == len(wanted) >= 5
    assert found == sorted(found, key=order_key)
    assert source.children([]) == []


def _kept(value: float) -> float:
    """What SQLite makes of a value."""
    return math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value + 0.0


def _expected(content: ContentSummary, run_ids: Sequence[str]) -> pa.Table:
    rows = [
        (owner, key, step, timestamp, _kept(value))
        for owner, run_id in enumerate(run_ids)
        for key, step, timestamp, value in content.points[run_id]
    ]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SERIES_SCHEMA, strict=True)]
    return sort_series(pa.Table.from_arrays(columns, schema=SERIES_SCHEMA))


def _same(tables: Sequence[pa.Table], wanted: pa.Table, owners: int) -> bool:
    """Bit for bit the same rows in the same order."""
    assert all(table.schema == SERIES_SCHEMA for table in tables)
    found = pa.concat_tables(tables)
    for name in ("owner", "key", "step", "timestamp"):
        if found.column(name).to_pylist() != wanted.column(name).to_pylist():
            return False
    bits = [table.column("value").to_numpy().view(np.int64) for table in (found, wanted)]
    return bool((bits[0] == bits[1]).all()) and series_digests(tables, owners) == series_digests([wanted], owners)


def test_histories_are_whole(content: ContentSummary, everything: list[Run], source: RestSource) -> None:
    """Every point of every run comes, sorted: NaN, denormals, negative and extreme steps, equal steps, long and wide runs."""
    run_ids = _ids(everything)
    assert _same(list(source.metrics(run_ids)), _expected(content, run_ids), len(run_ids))
    assert source.metric_counts(run_ids) is None


def test_histories_do_not_depend_on_the_way(
    content: ContentSummary, everything: list[Run], mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small groups of runs, groups that turn out too large, and answers at the cap give the same points."""
    run_ids = _ids(everything)
    wanted = _expected(content, run_ids)
    monkeypatch.setattr(_rest_history, "_GROUP_ROWS", 60)
    monkeypatch.setattr(_rest_history, "_GROUP_ROWS_MAX", 200)
    source = RestSource(mlflow_server.url)
    tables = list(source.metrics(run_ids))
    source.close()
    assert len(tables) > 10
    longest = max(Counter(point[0] for points in content.points.values() for point in points).values())
    assert max(table.num_rows for table in tables) <= max(longest, 2000)
    assert _same(tables, wanted, len(run_ids))


def test_histories_without_the_bulk_endpoint(
    content: ContentSummary, everything: list[Run], mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without ``get-history-bulk`` is read run by run and page by page, with the same result."""
    run_ids = _ids(everything)
    monkeypatch.setattr(_rest_history, "_BULK", "/ajax-api/2.0/mlflow/metrics/no-such-endpoint")
    monkeypatch.setattr(_rest_history, "_PAGE_POINTS", 7_000)
    source = RestSource(mlflow_server.url, jobs=8)
    assert _same(list(source.metrics(run_ids)), _expected(content, run_ids), len(run_ids))
    assert not source._histories._bulk
    source.close()


def test_a_page_border_between_equal_points_loses_nothing(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.0 and NaN at one time and step are a tie for the server's pages; both come exactly once."""
    client = MlflowClient(mlflow_server.url)
    run_id = client.create_run("0", start_time=START).info.run_id
    points = [("m", step, START, value) for step in range(5) for value in (math.nan, 0.0)]
    client.log_batch(run_id, metrics=[Metric(key, value, timestamp, step) for key, step, timestamp, value in points])
    monkeypatch.setattr(_rest_history, "_BULK", "/no-such-endpoint")
    monkeypatch.setattr(_rest_history, "_PAGE_POINTS", 3)
    source = RestSource(mlflow_server.url)
    found = [(row["step"], str(row["value"])) for table in source.metrics([run_id]) for row in table.to_pylist()]
    source.close()
    assert found == [(step, value) for step in range(5) for value in ("0.0", "nan")]


def test_a_run_that_does_not_exist_has_no_history(source: RestSource) -> None:
    """Asking for the points of an unknown run is an error, not an empty table."""
    with pytest.raises(NotFoundError, match="d" * 32):
        list(source.metrics(["d" * 32]))


def test_files_of_a_run_are_readable(content: ContentSummary, everything: list[Run], source: RestSource) -> None:
    """The artifact store of a run lists and opens its files."""
    run_id = content.runs["files"]
    store = source.artifacts(next(run for run in everything if run.run_id == run_id))
    found = {}
    for info in store.walk():
        with store.open(info.path) as stream:
            data = stream.read()
        found[info.path] = (len(data), hashlib.sha256(data).hexdigest())
    assert found == content.files[run_id]
