"""``query``: results for people, for pipes and as files; errors with their place; nothing raw on a terminal."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

import mlflow_bundle
from mlflow_bundle._storage import open_storage
from tests.building import content_of, pack_content
from tests.cli.conftest import EVIL, Archived, Command, in_terminal

SQL = (
    "select run_name, metrics['loss'] as loss, metrics['not a number'] as nan from runs"
    " where experiment_name = 'churn' order by 1"
)


def test_a_pipe_gets_lines_with_tabs(command: Command, archived: Archived) -> None:
    """A head, then a line a row; nothing is cut."""
    done = command("query", archived.bundle, SQL)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[:3] == ["run_name\tloss\tnan", "child\t0.1\t", "parent\t0.1\tNaN"]


def test_csv_is_exact(command: Command, archived: Archived) -> None:
    """A program reads back what the archive holds, line breaks and escapes included."""
    done = command("query", archived.bundle, "select key, value from tags where key = 'note' limit 1", "--csv")
    assert list(csv.reader(io.StringIO(done.raw.decode(), newline=""))) == [["key", "value"], ["note", "two\nlines \x1b[1m"]]


def test_json_has_names_types_and_rows(command: Command, archived: Archived) -> None:
    """One document, maps as objects, numbers that JSON lacks as texts."""
    document = json.loads(command("query", archived.bundle, SQL, "--json").out)
    assert document["columns"][0] == {"name": "run_name", "type": "string"}
    assert document["rows"][1] == {"run_name": "parent", "loss": 0.1, "nan": "NaN"}
    sql = "select tags, start_time, start_time::date d, 'x'::blob b, [1] l, {'a': 1} s, 1.5::decimal(3,1) n from runs limit 1"
    row = json.loads(command("query", archived.bundle, sql, "--json").out)["rows"][0]
    assert isinstance(row["tags"], dict)
    assert row["start_time"].startswith("2023-11-14 22:13")
    assert (row["d"], row["b"], row["l"], row["s"], row["n"]) == ("2023-11-14", "eA==", [1], {"a": 1}, "1.5")
    assert command("query", archived.bundle, "select 1 as a, 2 as A", "--json").code in (0, 2)


def test_times_without_a_date(command: Command, tmp_path: Path) -> None:
    """A point logged at nanoseconds, and a time beyond Python's that SQL makes, are told in every form."""
    content = content_of(1, points=0)
    content.points[content.runs[0].run_id] = [("loss", 0, 1_700_000_000_000_000_000, 0.5)]
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content)
    sql = "select timestamp, timestamp_ms, '12000-01-01'::date as later, 'infinity'::timestamp as never from metrics"
    row = json.loads(command("query", tmp_path / "b", sql, "--json").out)["rows"][0]
    assert (row["timestamp"], row["timestamp_ms"], row["later"]) == (None, 1_700_000_000_000_000_000, "12000-01-01")
    assert "out of range" in row["never"]
    for form, between in (([], "\t"), (["--csv"], ",")):
        done = command("query", tmp_path / "b", sql, *form)
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[1].split(between)[:3] == ["", "1700000000000000000", "12000-01-01"]
    assert "NULL" in in_terminal(["query", tmp_path / "b", sql], "stdout", columns=200)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_names_never_reach_the_terminal_raw(command: Command, archived: Archived, form: list[str]) -> None:
    """Neither names and tags of the archive nor the SQL of an error are printed raw."""
    for sql in (
        "select * from runs",
        "select * from experiments",
        "select * from tags",
        f'select 1 as "{EVIL}"',
        f"select '{EVIL}'",
    ):
        done = command("query", archived.bundle, sql, *form)
        assert (done.code, done.err) == (0, "")
        assert done.out.replace("\n", "").replace("\t", "").isprintable()
    done = command("query", archived.bundle, f"select '{EVIL}', nope from runs", *form)
    assert done.code == 2
    assert done.err.replace("\n", "").isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_gets_a_table_that_fits(archived: Archived) -> None:
    """Every line fits 80 columns, also of a wide result, and CSV is harmless there."""
    shown = in_terminal(["query", archived.bundle, "select * from runs"], "stdout")
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.startswith("run_id")
    shown = in_terminal(["query", archived.bundle, "from tags", "--csv"], "stdout")
    assert shown.replace("\n", "").isprintable()


def test_errors_show_the_line_and_the_place(command: Command, archived: Archived) -> None:
    """One sentence, the line, a caret below the place, exit code 2; in JSON the same."""
    done = command("query", archived.bundle, "select run_name,\n nope\nfrom runs")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[:3] == [
        'mlflow-bundle: SQL: Referenced column "nope" not found in FROM clause',
        "LINE 2:  nope",
        "         ^^^^",
    ]
    error = json.loads(command("query", archived.bundle, "selct 1", "--json").err)["error"]
    assert (error["code"], error["place"].splitlines()[0]) == ("sql", "LINE 1: selct 1")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["select 1", "--views"],
        ["select 1", "--export", "x.duckdb"],
        ["--views", "--export", "x.duckdb"],
        ["select 1", "--csv", "--json"],
        ["select 1", "--csv", "--parquet", "x.parquet"],
        ["select 1", "--snapshot", "2", "--all-snapshots"],
    ],
)
def test_what_contradicts_itself_is_wrong_usage(command: Command, archived: Archived, words: list[str]) -> None:
    """Exit code 2 and a sentence, and nothing is written."""
    done = command("query", archived.bundle, *words)
    assert (done.code, done.out) == (2, "")
    assert not Path("x.duckdb").exists()


def test_a_folder_that_takes_no_file_is_said(command: Command, archived: Archived, tmp_path: Path) -> None:
    """What cannot be written ends with 1, as in every command; a folder that is not there is wrong usage of that path."""
    name = "x" * 300
    for words in (["select 1", "--parquet"], ["--export"]):
        done = command("query", archived.bundle, *words, str(tmp_path / name))
        assert done.code == 1
        assert "cannot be written" in done.err
        (tmp_path / "file").touch()
        done = command("query", archived.bundle, *words, str(tmp_path / "file" / "x"))
        assert (done.code, done.err.splitlines()[0]) == (2, f"mlflow-bundle: there is no folder {tmp_path / 'file'}")
    assert command("query", archived.bundle, "  ").code == 2


def test_files_are_written_once(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A Parquet file of the result and a DuckDB file of everything; what is there already stays."""
    parquet, export = tmp_path / "it's.parquet", tmp_path / "it's.duckdb"
    assert command("query", archived.bundle, SQL, "--parquet", parquet).code == 0
    with mlflow_bundle.open(archived.bundle) as archive:
        assert pq.read_table(parquet).num_rows == archive.sql(SQL).num_rows == 4
        assert command("query", archived.bundle, "--export", export).code == 0
        with duckdb.connect(str(export), read_only=True) as con:
            assert con.execute("select count(*) from metrics").fetchall() == [(archive.metrics().num_rows,)]
            assert con.execute("select count(*) from webhooks").fetchall() == [(0,)]
    before = export.read_bytes()
    for words in (["--export", export], [SQL, "--parquet", parquet], [SQL, "--parquet", tmp_path / "no" / "x.parquet"]):
        done = command("query", archived.bundle, *words)
        assert (done.code, done.out) == (2, "")
    assert export.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"it's.parquet", "it's.duckdb"}


def test_views_for_duckdb_alone(command: Command, archived: Archived) -> None:
    """The printed text gives DuckDB the views, without this package."""
    text = command("query", archived.bundle, "--views").out
    with duckdb.connect() as con, mlflow_bundle.open(archived.bundle) as archive:
        con.execute(text)
        assert con.execute("select count(*) from runs").fetchall() == [(archive.runs().num_rows,)]


def test_all_snapshots_say_which(command: Command, archived: Archived) -> None:
    """The snapshot is a column."""
    lines = command(
        "query", archived.bundle, "select snapshot, count(*) from runs group by 1", "--all-snapshots"
    ).out.splitlines()
    with mlflow_bundle.open(archived.bundle) as archive:
        assert lines[1].split("\t") == [archive.snapshot_id, str(archive.runs().num_rows)]
