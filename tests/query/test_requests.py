"""What questions cost on object storage: requests and bytes, counted where they leave for the S3 server."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

import mlflow_bundle as bundle
from mlflow_bundle import _lookup, _row_groups
from mlflow_bundle._limits import MIB, Limits, Targets
from mlflow_bundle._storage import Pieces, SparseFile, open_storage
from mlflow_bundle.errors import LimitError, NotFoundError, UsageError
from tests.benchmarks.query import counted, run_id, write_bundle
from tests.building import content_of, everything_of, pack_content, run_of
from tests.fixtures.s3 import Bucket


@pytest.mark.slow
def test_questions_to_a_hundred_thousand_runs(s3_bucket: Bucket) -> None:
    """The list of runs, and one run's series wherever it lies, take at most 5 requests; a series less than 2 MiB."""
    url, runs = f"s3://{s3_bucket.name}/b", 100_000
    with open_storage(url, storage_options=s3_bucket.storage_options) as storage:
        write_bundle(storage, runs=runs, points=20)

    def opened() -> bundle.Bundle:
        return bundle.open(url, storage_options=s3_bucket.storage_options)

    with counted() as traffic, opened():
        assert len(traffic.requests) <= 4
    for number in (0, runs // 2, runs - 1):
        with opened() as archive, counted() as traffic:
            points = archive.metrics(run_id=run_id(number), key="loss")
        assert (points["run_id"].unique().to_pylist(), points["step"].to_pylist()) == ([run_id(number)], list(range(10)))
        assert len(traffic.requests) <= 5, traffic.requests
        assert traffic.bytes < 2 * MIB
    with opened() as archive:
        with counted() as traffic:
            assert archive.runs().num_rows == runs
        assert len(traffic.requests) <= 5, traffic.requests
        with counted() as traffic:
            assert archive.runs(experiment="experiment 3", where=pc.field("status") == "FAILED").num_rows == 1_111
        assert not traffic.requests
    with opened() as archive, counted() as traffic:
        found = archive.sql("select run_name from runs order by metrics['accuracy'] desc limit 1")
        assert found.num_rows == 1
        assert traffic.bytes < 10 * MIB


@pytest.fixture
def small_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views have the digests of their ids even when they are small."""
    monkeypatch.setattr(_lookup, "_LEAST_ROWS", 1)


@pytest.mark.parametrize("digest", [3, 1])
def test_a_lookup_finds_what_the_whole_view_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_lookups: None, digest: int
) -> None:
    """Rows and files of every run, model, version and trace are the same with digests and without, also where many collide."""
    monkeypatch.setattr(_lookup, "_DIGEST", digest)
    content = everything_of(300)
    for number, run in enumerate(content.runs):
        if number % 7 == 0:
            content.points.pop(run.run_id)
        if number % 5 == 0:
            content.files.pop(run.run_id)
    targets = Targets(records_bytes=60_000, metric_rows=1_000, file_rows=100, rows_bytes=20_000)
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content, targets=targets)
    with bundle.open(tmp_path / "b") as quick, bundle.open(tmp_path / "b") as whole:
        for kind in ("run", "logged_model", "model_version", "trace"):
            whole.reader.view(kind)
            for identity in whole.reader.digests(kind)["id"].to_pylist()[::9]:
                assert quick.files(kind=kind, id=identity) == whole.files(kind=kind, id=identity)
                for method, name, of in (("metrics", "run_id", "run"), ("spans", "trace_id", "trace")):
                    if kind == of:
                        asked = {name: identity}
                        assert getattr(quick, method)(**asked) == getattr(whole, method)(**asked)
            assert kind not in quick.reader._views
        with pytest.raises(NotFoundError):
            quick.metrics(run_id="nobody")


def test_wrong_digests_lead_nowhere_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_lookups: None
) -> None:
    """Digests are hints: with those of other ids, of too few rows, or with no base64, the rows are found all the same."""
    expected = None
    for name, note in (("none", b""), ("others", b"AAAA" * 30), ("few", b"AAAA"), ("text", b"?!")):
        monkeypatch.setattr("mlflow_bundle._packer.id_notes", lambda ids, note=note: {b"mlflow_bundle.ids": note})
        with open_storage(tmp_path / name, create=True) as storage:
            pack_content(storage, content_of(30))
        with bundle.open(tmp_path / name) as archive:
            found = archive.metrics(run_id=run_of(17).run_id)
        assert found.num_rows == 10
        assert expected is None or found == expected
        expected = found


def test_runs_are_filtered_and_cut(tmp_path: Path) -> None:
    """An experiment by name or id, an expression, and columns give those rows and columns; what is wrong is said."""
    content = content_of(9)
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content)
    for first in (None, "runs"):
        with bundle.open(tmp_path / "b") as archive:
            if first:
                archive.runs()
            assert archive.runs(experiment="churn") == archive.runs(experiment="1") == archive.runs()
            assert archive.runs(experiment="nothing").num_rows == 0
            table = archive.runs(where=pc.field("run_name") == "run 3", columns=["status", "run_name"])
            assert table.to_pylist() == [{"status": "FINISHED", "run_name": "run 3"}]
            assert archive.runs(experiment="1", columns=["run_id"]) == archive.runs().select(["run_id"])
            assert archive.runs(experiment="1", wide=True).num_rows == 9
            for wrong in ({"columns": ["nope"]}, {"where": pc.field("nope") == 1}, {"wide": True, "columns": ["run_id"]}):
                with pytest.raises(UsageError):
                    archive.runs(**wrong)  # type: ignore[arg-type]


def test_a_sparse_file_gives_the_bytes_of_the_file() -> None:
    """Whatever is read in whatever order, the bytes are those of the whole, and little is read twice."""
    source = np.random.default_rng(3)
    data, fetched = source.bytes(300_000), 0

    def fetch(path: str, start: int, length: int) -> bytes:
        nonlocal fetched
        assert path == "a"
        assert 0 <= start <= start + length <= len(data)
        fetched += length
        return data[start : start + length]

    for tail, limit in product((0, 1, 65_536, 10**6), (0, 100_000, 10**6)):
        file = SparseFile(Pieces(fetch, least=1_000, limit=limit), "a", len(data), tail=tail)
        for start in [len(data) - 8, len(data), 0, *map(int, source.integers(0, len(data), 200))]:
            length = int(source.integers(0, 70_000))
            file.seek(start)
            assert file.read(length) == data[start : start + length]
            assert file.tell() == min(start + length, len(data))
        file.seek(-10, 2)
        assert file.read() == data[-10:]


def test_two_threads_decode_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs and the views are the same by one thread and by two, for a bundle of any size; so is what a limit refuses."""
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, everything_of(30))
    found = []
    for large in (0, 10**9):
        monkeypatch.setattr(_row_groups, "_LARGE", large)
        with bundle.open(tmp_path / "b") as archive:
            found.append([archive.runs(), archive.files(), *(archive.reader.view(kind) for kind in ("run", "trace"))])
        with (
            bundle.open(tmp_path / "b", limits=Limits(row_group_bytes=100)) as archive,
            pytest.raises(LimitError, match="row group"),
        ):
            archive.runs()
    assert found[0] == found[1]
    assert found[0][0].num_rows == 30


def test_a_column_is_not_taken_for_a_view(tmp_path: Path) -> None:
    """A query that subscripts a column named like a view opens no object for that view."""
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content_of(3))
    with bundle.open(tmp_path / "b") as archive:
        assert archive.sql("select params ['x'], metrics['y'] from runs").num_rows == 3
        missing = archive._sessions[False]._missing
        assert {"params", "metrics"} <= set(missing)
        assert "runs" not in missing
        assert archive.sql("select count(*) from metrics, params").num_rows == 1
