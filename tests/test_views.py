"""The runs view answers as ``mlflow.search_runs`` does."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import ViewType

import mlflow_bundle as bundle
from mlflow_bundle._codec import encode
from mlflow_bundle._manifest import objects_of
from mlflow_bundle._owners import NO_ROWS
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import open_table
from mlflow_bundle._views import RUNS_VIEW, wide_runs
from mlflow_bundle.records import KINDS, record_id
from tests.building import TINY, Content, everything_of, pack_content, rows_digest
from tests.fixtures.content import ContentSummary


@pytest.fixture(scope="module")
def archive(
    awkward_database: tuple[str, ContentSummary], tmp_path_factory: pytest.TempPathFactory
) -> tuple[bundle.Bundle, str]:
    """The awkward database in a bundle with many small objects, and its tracking URI."""
    uri, _ = awkward_database
    folder = tmp_path_factory.mktemp("views") / "b"
    bundle.pack(None, folder, tracking_uri=uri, targets=bundle.Targets(records_bytes=4_000, metric_rows=500, file_rows=10))
    return bundle.open(folder), uri


def plain(value: Any) -> Any:
    """A cell without the differences between pandas' and Arrow's spelling of nothing."""
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def test_wide_runs_are_those_of_search_runs(archive: tuple[bundle.Bundle, str]) -> None:
    """Every column and every cell of ``mlflow.search_runs`` over all experiments, deleted ones included, is there."""
    opened, uri = archive
    with contextlib.chdir(Path(uri.removeprefix("sqlite:///")).parent):
        client = mlflow.MlflowClient(uri)
        experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
        mlflow.set_tracking_uri(uri)
        try:
            expected = mlflow.search_runs(experiments, run_view_type=ViewType.ALL, max_results=50_000)
        finally:
            mlflow.set_tracking_uri(None)
    assert isinstance(expected, pd.DataFrame)
    found = opened.runs(wide=True).to_pandas()
    assert sorted(found.columns) == sorted(expected.columns)
    rows = {row["run_id"]: row for row in expected.to_dict("records")}
    assert sorted(found["run_id"]) == sorted(rows)
    for row in found.to_dict("records"):
        wanted = rows[row["run_id"]]
        assert {name: plain(row[name]) for name in wanted} == {name: plain(value) for name, value in wanted.items()}


def test_nan_is_told_from_nothing(archive: tuple[bundle.Bundle, str]) -> None:
    """A latest value that is NaN is NaN, and the metrics that a run has not are null."""
    table = archive[0].runs(wide=True)
    values = table.column("metrics.nan duplicates")
    assert values.null_count == table.num_rows - 1
    (value,) = values.drop_null().to_pylist()
    assert math.isnan(value)


NAMES = st.sampled_from(["a", "b", "ü", "a.b", ""])
ROWS = st.lists(
    st.tuples(st.dictionaries(NAMES, st.floats(allow_nan=False)), st.dictionaries(NAMES, st.text(max_size=3)), st.booleans()),
    max_size=8,
)


@given(ROWS, st.integers(0, 3), st.integers(0, 3))
def test_maps_become_columns(rows: list[tuple[dict[str, float], dict[str, str], bool]], skip: int, chunk: int) -> None:
    """Each key of a map is a column, sorted by name, with the value of each run or null, in slices and chunks too."""
    defaults: dict[str, Any] = {field.name: "" if pa.types.is_string(field.type) else 0 for field in RUNS_VIEW.schema}
    defaults |= {"tags": [], "start_time": None, "end_time": None}
    documents = [
        {
            **defaults,
            "run_id": str(number),
            "params": list(params.items()),
            "latest_metrics": [(key, {"value": value, "timestamp": 1, "step": 2}) for key, value in metrics.items()],
        }
        for number, (metrics, params, _) in enumerate(rows)
    ]
    whole = pa.Table.from_pylist(documents, schema=RUNS_VIEW.schema)
    view = pa.concat_tables([whole.slice(0, chunk), whole.slice(chunk)]).slice(skip)
    wide = wide_runs(view)
    rest = rows[skip:]
    expected = [f"metrics.{key}" for key in sorted({key for metrics, _, _ in rest for key in metrics})]
    expected += [f"params.{key}" for key in sorted({key for _, params, _ in rest for key in params})]
    assert wide.column_names == ["run_id", "experiment_id", "status", "artifact_uri", "start_time", "end_time", *expected]
    for number, (metrics, params, _) in enumerate(rest):
        for name in expected:
            source: dict[str, Any] = metrics if name.startswith("metrics.") else params
            assert wide.column(name)[number].as_py() == source.get(name.partition(".")[2])


def test_the_view_of_an_entity_says_where_everything_lies(tmp_path: Path) -> None:
    """Each row of an entity view has the frame and digest of its record, and the rows, digest and place of what it owns."""
    content = everything_of(30)
    with open_storage(tmp_path / "b", create=True) as storage:
        committed, _ = pack_content(storage, content, targets=replace(TINY, records_bytes=800))
        refs = [ref for ref in objects_of(storage, committed.snapshot) if ref.role in ("records", "views")]
        for kind in ("logged_model", "model_version", "trace"):
            shards = [ref for ref in refs if (ref.role, ref.kind) == ("records", kind)]
            views = [ref for ref in refs if (ref.role, ref.kind) == ("views", kind)]
            assert [ref.rows for ref in views] == [ref.rows for ref in shards]
            assert len(views) > 2
            records = [r for r in content.entities if str(r.__struct_config__.tag) == kind]
            rows = [row for ref in views for row in read_table(storage, ref.path, "entity_view/1").to_pylist()]
            assert [row["id"] for row in rows] == [record_id(record) for record in records]
            for row, record in zip(rows, records, strict=True):
                check_place(storage, content, kind, row, encode(record))


def check_place(storage: Storage, content: Content, kind: str, row: dict[str, Any], line: bytes) -> None:
    """Compare a row of a view with what the objects hold."""
    assert row["experiment_id"] == (None if kind == "model_version" else "1")
    frame = storage.read_range(row["record_object"], row["frame_offset"], row["frame_length"])
    assert line in zstandard.ZstdDecompressor().decompress(frame).split(b"\n")
    assert row["record_digest"] == hashlib.sha256(line).hexdigest()
    files = content.entity_files.get((kind, row["id"]), {})
    assert row["file_rows"] == len(files)
    if files:
        found = read_table(storage, row["file_object"], "files/1").slice(row["file_start"], row["file_rows"])
        assert found.column("path").to_pylist() == sorted(files)
        assert set(found.column("owner_id").to_pylist()) == {row["id"]}
    table = next((name for name in KINDS[kind].tables if name != "files/1"), "")
    owned = content.rows.get((table, row["id"]), [])
    assert (row["table_rows"], row["table_digest"]) == (len(owned), rows_digest(table, owned) if owned else NO_ROWS)
    assert (row["table_object"] is None) == (not owned)
    if owned:
        found = read_table(storage, row["table_object"], table).slice(row["table_start"], row["table_rows"])
        assert set(found.column(str(TABLES[table].owner)).to_pylist()) == {row["id"]}


def read_table(storage: Storage, path: str, table: str) -> pa.Table:
    return open_table(io.BytesIO(storage.read(path)), TABLES[table], name=path).read()
