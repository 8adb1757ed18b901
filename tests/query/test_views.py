"""The views say what the frames say, from a folder, from S3 and from one file, and DuckDB alone gets the same ones."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec.structs import replace

import mlflow_bundle as bundle
from mlflow_bundle._query._columns import identifier, literal, record_columns, time_columns
from mlflow_bundle._query._views import VIEWS, view_query
from mlflow_bundle._storage import open_storage
from mlflow_bundle.entities import Experiment, KeyValue
from mlflow_bundle.errors import StorageError, UnsupportedError, UsageError
from mlflow_bundle.kinds import KINDS
from tests.building import Content, content_of, everything_of, pack_content, run_of
from tests.fixtures.s3 import Bucket

ODD = "quote' \" ; drop table runs; -- \x1b[31m \u202e ünïcode \x00 \\ %"


def odd_content() -> Content:
    """Names that SQL could stumble over, in every place of a run."""
    content = everything_of(12)
    content.experiments.append(Experiment(experiment_id="2", name=ODD, tags=(KeyValue(key=ODD, value=ODD),)))
    content.runs.append(run_of(99, experiment="2", tags={ODD: ODD}))
    content.points[content.runs[-1].run_id] = [(ODD, 0, 2**62, float("nan")), (ODD, 1, -5, float("inf"))]
    content.files[content.runs[-1].run_id] = {"a'b\".txt": b"x"}
    return content


@pytest.fixture(params=["folder", "s3", "zip", "odd folder"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bundle.Bundle]:
    """A bundle of everything, in every kind of place."""
    options: dict[str, Any] = {}
    url = str(tmp_path / "b")
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        url, options = f"s3://{bucket.name}/b", bucket.storage_options
    elif request.param == "zip":
        url += ".mlbundle.zip"
    elif request.param == "odd folder":
        url = str(tmp_path / 'it\'s [a] * "folder"?')
    with open_storage(url, storage_options=options, create=True) as storage:
        pack_content(storage, odd_content())
    with bundle.open(url, storage_options=options) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle in a folder."""
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, odd_content())
    return tmp_path / "b"


def rows(con: Any, sql: str) -> list[tuple[Any, ...]]:
    """What DuckDB answers."""
    found: list[tuple[Any, ...]] = con.execute(sql).fetchall()
    return found


def test_every_view_has_the_rows_of_its_frame(archive: bundle.Bundle) -> None:
    """Every view can be read whole from every kind of place, and has as many rows as the bundle has of it."""
    con = archive.duckdb()
    found = {name: rows(con, f"select count(*) from (select * from {name})")[0][0] for name in VIEWS}
    for kind in KINDS:
        name = "runs" if kind == "run" else "models" if kind == "logged_model" else None
        name = name or next(n for n in (f"{kind}s", f"{kind[:-1]}ies") if n in VIEWS)
        assert found[name] == sum(1 for _ in archive.records(kind)), kind
    for name in ("params", "tags", "metrics", "latest_metrics", "model_metrics", "spans", "assessments"):
        assert found[name] == getattr(archive, name)().num_rows > 0, name
    assert found["files"] == archive.snapshot.counts["file"]
    con.close()


def test_values_are_those_of_the_frames(archive: bundle.Bundle) -> None:
    """Runs, params, tags, points and files come out as they went in, also where their names are odd."""
    sql = "select run_id, run_name, experiment_name, params, tags, start_time_ms from runs order by run_id"
    names = ["run_id", "run_name", "experiment_name", "params", "tags", "start_time"]
    assert [tuple(row.values()) for row in archive.sql(sql).to_pylist()] == [
        tuple(row.values()) for row in archive.runs().select(names).sort_by("run_id").to_pylist()
    ]
    odd = archive.sql(
        "select key, step, timestamp, timestamp_ms, value from metrics where key = $key", {"key": ODD}
    ).to_pylist()
    assert [(row["key"], row["step"], row["timestamp_ms"]) for row in odd] == [(ODD, 0, 2**62), (ODD, 1, -5)]
    assert odd[0]["timestamp"] is None
    assert odd[1]["timestamp"].year == 1969
    assert str(odd[0]["value"]) == "nan"
    assert odd[1]["value"] == float("inf")
    assert archive.sql("select path from files where path like ?", ["a'%"]).to_pylist() == [{"path": "a'b\".txt"}]
    assert archive.sql("select tags[?] as t from experiments where name = ?", [ODD, ODD]).to_pylist() == [{"t": ODD}]


def test_times_that_are_no_dates_are_null(tmp_path: Path) -> None:
    """Users log nanoseconds where milliseconds belong: the number stays, and an answer can be read, in Python too."""
    odd = {-62_135_596_800_001: None, -62_135_596_800_000: 1, 253_402_300_799_999: 9999, 253_402_300_800_000: None}
    content = content_of(1)
    run = content.runs[0]
    content.runs[0] = replace(run, start_time=1_700_000_000_000_000, end_time=-(2**53 - 1))
    content.points[run.run_id] = [("loss", step, at, 0.5) for step, at in enumerate(odd)]
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content)
    with bundle.open(tmp_path / "b") as archive:
        points = archive.sql("select timestamp, timestamp_ms from metrics order by step").to_pylist()
        assert [row["timestamp_ms"] for row in points] == list(odd)
        assert [row["timestamp"] and row["timestamp"].year for row in points] == list(odd.values())
        (row,) = archive.sql("select start_time, start_time_ms, end_time from runs").to_pylist()
        assert row == {"start_time": None, "start_time_ms": 1_700_000_000_000_000, "end_time": None}


def test_an_absent_kind_is_an_empty_view_with_its_columns(tmp_path: Path) -> None:
    """An empty bundle and one of everything have the same views with the same columns of the same types."""
    for name, content in (("empty", Content(experiments=[])), ("full", odd_content())):
        with open_storage(tmp_path / name, create=True) as storage:
            pack_content(storage, content)
    with bundle.open(tmp_path / "empty") as empty, bundle.open(tmp_path / "full") as full:
        for name in VIEWS:
            described = [one.sql(f"describe {name}").to_pylist() for one in (empty, full)]
            assert described[0] == described[1], name
            assert empty.sql(f"from {name}").num_rows == 0


def test_duckdb_alone_gets_the_same_views(folder: Path, tmp_path: Path) -> None:
    """The SQL text works in a connection that knows nothing of this package, also where the folder was moved to."""
    with bundle.open(folder) as archive:
        here, moved = archive.views_sql(), archive.views_sql(str(tmp_path / "it's there"))
        expected = {name: archive.sql(f"select count(*) as n from (select * from {name})")["n"][0].as_py() for name in VIEWS}
    shutil.copytree(folder, tmp_path / "it's there")
    for text in (here, moved):
        with duckdb.connect() as con:
            con.execute(text)
            assert {name: rows(con, f"select count(*) from (select * from {name})")[0][0] for name in VIEWS} == expected
        shutil.rmtree(folder, ignore_errors=True)


def test_one_file_has_no_views_for_duckdb_alone(tmp_path: Path) -> None:
    """It is said, with the next step; with a root the text is for the unzipped folder."""
    with open_storage(tmp_path / "b.zip", create=True) as storage:
        pack_content(storage, content_of(2))
    with bundle.open(tmp_path / "b.zip") as archive:
        with pytest.raises(UsageError, match="one file") as raised:
            archive.views_sql()
        assert "unzip" in (raised.value.hint or "")
        assert "'/there/objects/views/" in archive.views_sql("/there")
        with pytest.raises(UsageError, match="pattern"):
            archive.views_sql("/a*")


def test_only_one_snapshot_is_seen_and_all_where_it_is_asked(tmp_path: Path) -> None:
    """The views hold one snapshot's objects, whatever else lies there; with all snapshots each row says of which it is."""
    with open_storage(tmp_path / "b", create=True) as storage:
        first, _ = pack_content(storage, content_of(3))
        second, _ = pack_content(storage, content_of(5))
    with bundle.open(tmp_path / "b") as archive:
        assert archive.sql("select count(*) as n from runs")["n"].to_pylist() == [5]
        assert archive.at(first.stem).sql("select count(*) as n from metrics")["n"].to_pylist() == [30]
        counted = archive.sql("select snapshot, count(*) as n from runs group by all order by n", all_snapshots=True)
        assert counted.to_pylist() == [{"snapshot": first.stem, "n": 3}, {"snapshot": second.stem, "n": 5}]
        assert archive.sql("describe webhooks", all_snapshots=True)["column_name"][0].as_py() == "snapshot"
        for bundle_at, runs in ((archive.at(first.stem), 3), (archive, 5)):
            with duckdb.connect() as con:
                con.execute(bundle_at.views_sql())
                assert rows(con, "select count(*) from runs") == [(runs,)]


def test_a_connection_of_the_caller(folder: Path, tmp_path: Path) -> None:
    """Views join with the caller's tables, several bundles have schemas, and nothing of it is kept in the caller's file."""
    with bundle.open(folder) as archive, duckdb.connect(str(tmp_path / "own.duckdb")) as con:
        con.execute("create table wanted as select 'run 3' as run_name")
        assert archive.duckdb(con) is con
        assert rows(con, "select count(*) from runs join wanted using (run_name)") == [(1,)]
        archive.duckdb(con, schema="be'fo\"re")
        assert rows(con, 'select count(*) from "be\'fo""re".runs') == [(13,)]
    with duckdb.connect(str(tmp_path / "own.duckdb")) as con:
        assert rows(con, "select count(*) from duckdb_views() where not internal") == [(0,)]


@pytest.mark.parametrize(
    ("sql", "place"),
    [
        ("select run_name frm runs", "LINE 1: select run_name frm runs\n                            ^^^^"),
        ("select\n  nope\nfrom runs", "LINE 2:   nope\n          ^^^^"),
        ("select * from runz", "LINE 1: select * from runz\n                      ^^^^"),
        ("select cast(run_name as int) from runs", None),
        ("select count(*) from read_parquet('/nowhere')", None),
    ],
)
def test_errors_point_at_the_place(folder: Path, sql: str, place: str | None) -> None:
    """Wrong SQL is one sentence without line breaks, and a note with the line and its place."""
    with bundle.open(folder) as archive, pytest.raises((UsageError, StorageError)) as raised:
        archive.sql(sql)
    assert "\n" not in raised.value.message
    if place is not None:
        assert raised.value.code == "sql"
        assert raised.value.__notes__ == [place]


def test_a_damaged_object_is_an_error_of_this_package(folder: Path) -> None:
    """Bytes that are no Parquet, and an object that is missing, end in one sentence and no wrong rows."""
    with bundle.open(folder) as archive:
        metrics = next(ref.path for ref in archive.objects if ref.role == "metrics")
        records = next(ref.path for ref in archive.objects if ref.role == "records" and ref.kind == "run")
    asked = {metrics: "select max(value) from metrics", records: "select count(run_id) from run_records"}
    for path, query in asked.items():
        data = (folder / path).read_bytes()
        for broken in (b"x" * len(data), data[: len(data) // 2], None):
            (folder / path).unlink()
            if broken is not None:
                (folder / path).write_bytes(broken)
            with bundle.open(folder) as archive, pytest.raises(StorageError) as raised:
                archive.sql(query)
            assert "Traceback" not in f"{raised.value.message} {raised.value.hint}"
            if broken is None:
                (folder / path).touch()


def test_a_view_can_be_asked_again_when_its_object_is_back(folder: Path) -> None:
    """An object that could not be read for a while leaves no view missing."""
    victim = next((folder / "objects" / "metrics").iterdir())
    away = victim.rename(folder / "away")
    with bundle.open(folder) as archive:
        with pytest.raises(StorageError):
            archive.sql("select count(value) from metrics")
        away.rename(victim)
        assert archive.sql("select count(*) > 0 as found from metrics")["found"].to_pylist() == [True]


def test_without_duckdb_one_sentence_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing optional package is an error with the next step."""
    real = builtins.__import__

    def no_duckdb(name: str, *rest: Any, **named: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *rest, **named)

    with bundle.open(folder) as archive:
        monkeypatch.setattr(builtins, "__import__", no_duckdb)
        with pytest.raises(UnsupportedError, match="DuckDB") as raised:
            archive.sql("select 1")
    assert (raised.value.hint or "").startswith("pip install duckdb, ")


def test_every_time_of_a_record_is_a_timestamp() -> None:
    """What a record calls milliseconds is a timestamp and the milliseconds in its view, and nothing else is."""
    for kind in KINDS.values():
        shown = " ".join(time_columns(record_columns(kind.type)))
        for name, hint in kind.type.__annotations__.items():
            base = name.removesuffix("_ms")
            is_time = str(hint) == "Milliseconds" and name != "execution_duration"
            assert (f'AS "{base}_ms"' in shown) == is_time or name not in kind.type.__struct_fields__, (kind.name, name)


def test_texts_in_sql_are_quoted() -> None:
    """Quotes in names and texts do not end them."""
    with duckdb.connect() as con:
        assert rows(con, f"select {literal(ODD.replace(chr(0), ''))} as {identifier('a')}") == [(ODD.replace(chr(0), ""),)]
        assert con.execute(f"select 1 as {identifier('x')}").description[0][0] == "x"
        assert all(con.execute(view_query(name, [], "it's")).fetchall() == [] for name in VIEWS)
