"""What a pack keeps on disk comes back as it was, and the latest point of a series is the one that MLflow shows."""

from __future__ import annotations

import itertools
import math
import struct

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_bundle._series import sort_series
from mlflow_bundle._spool import LATEST_SCHEMA, LatestSpool, LineSpool, latest_points
from mlflow_bundle._views import latest_maps
from tests.building import START, Point, archive_order, series

VALUES = st.sampled_from([-1.0, -5e-324, 0.0, 5e-324, 1.0, 2.5, math.inf, -math.inf, math.nan]) | st.floats(-3, 3)


def stored_once(point: Point) -> tuple[int, str, int, int, object]:
    """What MLflow's database allows once: NaN and the two zeros are each one value to it."""
    return (point[0], point[1], point[2], point[3], "nan" if math.isnan(point[4]) else point[4] + 0.0)


#: A database holds one point for each key, step, time and value, and one NaN.
HISTORIES: st.SearchStrategy[list[Point]] = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "ü"]), st.integers(-1, 1), st.integers(0, 1), VALUES),
    max_size=30,
    unique_by=stored_once,
)


def latest_by_hand(points: list[Point]) -> dict[tuple[int, str], set[tuple[int, int, bytes]]]:
    """For each series the points that are latest by MLflow's rule: the greatest (step, time, value), NaN as zero."""
    found: dict[tuple[int, str], tuple[int, int, float]] = {}
    for owner, key, step, stamp, value in points:
        rank = (step, stamp, 0.0 if math.isnan(value) else value)
        found[owner, key] = max(found.get((owner, key), rank), rank)
    latest: dict[tuple[int, str], set[tuple[int, int, bytes]]] = {series: set() for series in found}
    for owner, key, step, stamp, value in points:
        if (step, stamp, 0.0 if math.isnan(value) else value) == found[owner, key]:
            latest[owner, key].add((step, stamp, struct.pack("<d", value)))
    return latest


def as_dict(latest: pa.Table) -> dict[tuple[int, str], tuple[int, int, bytes]]:
    rows = latest.to_pylist()
    assert len({(row["owner"], row["key"]) for row in rows}) == len(rows)
    return {(row["owner"], row["key"]): (row["step"], row["timestamp"], struct.pack("<d", row["value"])) for row in rows}


@given(HISTORIES, st.booleans())
def test_latest_points_follow_the_rule_of_mlflow(points: list[Point], encoded: bool) -> None:
    """One point a series, the greatest by step, time and value, where NaN counts as zero."""
    table = series(sorted(points, key=archive_order))
    if encoded:
        table = table.set_column(1, "key", table.column("key").combine_chunks().dictionary_encode())
    found, expected = as_dict(latest_points(table)), latest_by_hand(points)
    assert found.keys() == expected.keys()
    for name, point in found.items():
        assert point in expected[name]


@given(HISTORIES, st.lists(st.integers(0, 30), max_size=4))
def test_latest_points_of_series_that_span_tables(points: list[Point], cuts: list[int]) -> None:
    """Where the tables were cut makes no difference, not even between a NaN and what it ties with."""
    table = series(sorted(points, key=archive_order))
    borders = sorted({0, len(points), *(cut for cut in cuts if cut < len(points))})
    parts = [latest_points(table.slice(a, b - a)) for a, b in itertools.pairwise(borders)]
    whole = latest_maps(latest_points(table), 0, 3)
    assert str(latest_maps(pa.concat_tables([LATEST_SCHEMA.empty_table(), *parts]), 0, 3)) == str(whole)


@pytest.mark.parametrize(
    "values", [(math.nan, 1.0), (1.0, math.nan), (math.nan, -1.0), (-1.0, math.nan), (3.0, 1.0, 2.0), (math.nan, -1.0, 0.5)]
)
def test_latest_points_are_those_of_a_real_mlflow(values: tuple[float, ...], empty_mlflow: str) -> None:
    """MLflow, given several values of one step and time in any order, shows the same one as the latest."""
    client = MlflowClient(empty_mlflow)
    run = client.create_run("0").info.run_id
    for value in values:
        client.log_batch(run, metrics=[Metric("m", value, START, 1)])
    shown = client.get_run(run).data.metrics["m"]
    table = sort_series(series([(0, "m", 1, START, value) for value in values]))
    assert str(latest_points(table).column("value").to_pylist()) == str([shown])


@given(st.lists(st.binary(max_size=300).map(lambda data: data.replace(b"\n", b" ")), max_size=30))
def test_lines_can_be_read_again_and_again(lines: list[bytes]) -> None:
    """A spool gives its lines in order, as often as it is asked."""
    spool = LineSpool()
    for line in lines:
        spool.add(line)
    for _ in range(3):
        assert list(spool.lines()) == lines
    spool.close()


@given(HISTORIES, st.lists(st.integers(0, 4), max_size=5), st.integers(1, 8))
def test_latest_points_come_by_owner(points: list[Point], stops: list[int], size: int) -> None:
    """Rows are handed out once each, in order, up to the owner that was asked for."""
    table = latest_points(series(sorted(points, key=archive_order)))
    spool = LatestSpool()
    for start in range(0, table.num_rows, size):
        spool.add(table.slice(start, size))
    rows = table.to_pylist()
    taken = 0
    for stop in sorted({*stops, 4}):
        found = spool.until(stop).to_pylist()
        expected = [row for row in rows[taken:] if row["owner"] < stop]
        assert str(found) == str(expected)
        taken += len(found)
    assert taken == len(rows)
    spool.close()


@pytest.mark.parametrize(
    ("values", "latest"),
    [
        ([5.0, math.nan, math.nan], 5.0),
        ([-1.0, math.nan], math.nan),
        ([-math.nan, -1.0], -math.nan),
        ([-math.nan, 2.0], 2.0),
        ([-0.0, 0.0, math.nan], math.nan),
    ],
)
def test_of_points_that_tie_the_greatest_is_the_latest(values: list[float], latest: float) -> None:
    """A NaN counts as zero, whatever its sign and however many there are; of equal values the last in table order is taken."""
    columns = {
        "owner": [0] * len(values),
        "key": ["k"] * len(values),
        "step": [1] * len(values),
        "timestamp": [2] * len(values),
    }
    table = pa.table({**columns, "value": values})
    (found,) = latest_points(table).column("value").to_pylist()
    assert struct.pack("<d", found) == struct.pack("<d", latest)
