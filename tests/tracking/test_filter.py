"""MLflow's filter strings over records."""

from __future__ import annotations

import math

import pytest

from mlflow_bundle.errors import UsageError
from mlflow_bundle.records import Dataset, DatasetInput, KeyValue, Run
from mlflow_bundle.tracking._filter import matching


def _run(run_id: str, **fields: object) -> Run:
    return Run(run_id=run_id, experiment_id="1", **fields)  # type: ignore[arg-type]


FULL = _run(
    "full",
    run_name="Nice name",
    user_id="ünal",
    status="FINISHED",
    start_time=1000,
    end_time=2000,
    artifact_uri="s3://bucket/1/full/artifacts",
    params=(KeyValue(key="lr", value="0.1"), KeyValue(key="multi", value="a\nb")),
    tags=(KeyValue(key="team", value="größe"), KeyValue(key="a b", value="1")),
    inputs=(
        DatasetInput(dataset=Dataset(name="iris", digest="abc"), tags=(KeyValue(key="mlflow.data.context", value="train"),)),
    ),
)
BARE = _run("bare")
TAG_NAMED = _run("tagged", run_name="", start_time=0, tags=(KeyValue(key="mlflow.runName", value="old name"),))
RUNS = [FULL, BARE, TAG_NAMED]
LATEST = {"full": {"loss": 0.25, "bad": math.nan, "größe": math.inf}, "tagged": {"loss": 3.0}}


@pytest.mark.parametrize(
    ("filter_string", "expected"),
    [
        ("metrics.loss < 1", ["full"]),
        ("metrics.loss >= 0.25", ["full", "tagged"]),
        ("metrics.bad = 0", []),
        ("metrics.bad < 1", []),
        ("metrics.bad != 0", ["full"]),
        ("metrics.`größe` > 1e300", ["full"]),
        ("metrics.none != 1", []),
        ("params.lr = '0.1'", ["full"]),
        ("params.lr LIKE '0%'", ["full"]),
        ("params.lr IS NULL", ["bare", "tagged"]),
        ("params.lr IS NOT NULL", ["full"]),
        ("tags.team = 'größe'", ["full"]),
        ("tags.`a b` = '1'", ["full"]),
        ("tags.team ILIKE 'GR%'", ["full"]),
        ("attributes.status = 'FINISHED'", ["full"]),
        ("attributes.status != 'FAILED'", ["full"]),
        ("attributes.user_id = 'ünal'", ["full"]),
        ("attributes.start_time >= 0", ["full", "tagged"]),
        ("attributes.start_time < 1000", ["tagged"]),
        ("end_time > 1", ["full"]),
        ("run_name = 'Nice name'", ["full"]),
        ("attributes.run_name = 'old name'", ["tagged"]),
        ("attributes.run_id IN ('bare', 'full')", ["full", "bare"]),
        ("attributes.artifact_uri LIKE 's3:%'", ["full"]),
        ("datasets.name = 'iris' AND dataset.context = 'train'", ["full"]),
        ("datasets.digest = 'x'", []),
        ("metrics.loss > 0 and params.lr = '0.1' and tags.team = 'größe'", ["full"]),
        ("", ["full", "bare", "tagged"]),
    ],
)
def test_a_filter_selects_what_mlflow_would(filter_string: str, expected: list[str]) -> None:
    """Every kind of clause, over runs that lack the attribute as well, in the order of the runs."""
    assert [run.run_id for run in matching(RUNS, LATEST, filter_string)] == expected


@pytest.mark.parametrize(
    "filter_string",
    [
        "metrics.loss <",
        "loss < 1",
        "metrics.loss < 'x'",
        "params.lr = 1",
        "params.lr > '1'",
        "attributes.nonsense = 'x'",
        "attributes.status IN 'x'",
        "metrics.loss > 1 OR metrics.loss < 0",
        "metrics.nothing > 1 AND params.lr > '1'",
        "a; b",
    ],
)
@pytest.mark.parametrize("runs", [RUNS, []], ids=["some", "none"])
def test_a_wrong_filter_is_an_error_even_without_runs(filter_string: str, runs: list[Run]) -> None:
    """Every clause is checked, also behind one that no run meets, and the message is MLflow's."""
    with pytest.raises(UsageError, match=r"wrong filter: .+"):
        matching(list(runs), LATEST, filter_string)
