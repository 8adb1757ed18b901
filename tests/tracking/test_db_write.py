"""Restoring into MLflow's databases: every row as it was, nothing doubled, nothing altered, nothing half visible."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.store.db.utils import _get_latest_schema_revision
from msgspec import UNSET, structs

from mlflow_bundle.errors import ServerError, UnsupportedError, UsageError
from mlflow_bundle.records import Dataset, DatasetInput, Experiment, KeyValue, Run
from mlflow_bundle.tracking._port import SERIES_SCHEMA, PlannedRun, RunQuery, RunResult, TargetExperiment
from mlflow_bundle.tracking.database import _connection as _db
from mlflow_bundle.tracking.database import _read as _db_read
from mlflow_bundle.tracking.database import _schema as _db_schema
from mlflow_bundle.tracking.database._connection import parse_uri
from mlflow_bundle.tracking.database._places import Places
from mlflow_bundle.tracking.database._read import DatabaseSource
from mlflow_bundle.tracking.database._write import DatabaseTarget
from tests.fixtures.content import ContentSummary
from tests.tracking.moving import TABLES, Blobs, content, execute, file_of, make_database, move, place, restore, rows

Awkward = tuple[str, ContentSummary]
Opened = Callable[..., DatabaseTarget]


@pytest.fixture(scope="module")
def bare_file(empty_database_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("bare") / "mlflow.db"
    shutil.copy(empty_database_file, path)
    execute(f"sqlite:///{path}", "DELETE FROM experiments")
    return path


@pytest.fixture
def bare(bare_file: Path, tmp_path: Path) -> str:
    """A fresh database without even the default experiment."""
    (tmp_path / "target").mkdir()
    shutil.copy(bare_file, tmp_path / "target" / "mlflow.db")
    return f"sqlite:///{tmp_path}/target/mlflow.db"


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens targets and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def open_target(uri: str, **options: Any) -> DatabaseTarget:
            target = DatabaseTarget(uri, bundle_id="test", **options)
            stack.callback(target.close)
            return target

        yield open_target


def series(*points: tuple[str, int, int, float], owner: int = 0) -> pa.Table:
    columns = [[owner] * len(points), *(list(column) for column in zip(*points, strict=True))] if points else [[]] * 5
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SERIES_SCHEMA, strict=True)], schema=SERIES_SCHEMA)


def simple_run(run_id: str = "r1", **fields: Any) -> Run:
    usual = {"run_name": "name", "user_id": "u", "status": "FINISHED", "start_time": 5, "artifact_uri": "/old/0/r1"}
    return Run(**{"run_id": run_id, "experiment_id": "0", **usual, **fields})


def simple_restore(
    target: DatabaseTarget, runs: Sequence[Run], tables: Sequence[pa.Table] = (), files: dict[str, bytes] | None = None
) -> list[RunResult]:
    """Restore hand-made runs into experiment 0, each with the same files."""
    if not target.experiments():
        target.place_experiment(Experiment(experiment_id="0", name="Default"), name="Default", existing=None)
    blobs = {hashlib.sha256(data).hexdigest(): data for data in (files or {}).values()}
    listing = tuple((path, len(data), hashlib.sha256(data).hexdigest()) for path, data in (files or {}).items())

    def open_blob(sha256: str) -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(blobs[sha256])

    planned = [PlannedRun(source=run, experiment_id="0", files=listing) for run in runs]
    return target.restore(planned, iter(tables), open_blob)


def failures(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    return [(problem.code, problem.message) for result in results for problem in result.problems]


# -- there and back -------------------------------------------------------------------------------------------------------


def test_sqlite_to_sqlite_every_row(awkward_database: Awkward, bare: str) -> None:
    """All rows of all ten tables are equal, the latest metrics as MLflow has computed them included."""
    uri, summary = awkward_database
    results, notes = move(uri, bare, files=True)
    assert failures(results) == []
    before, after = content(uri), content(bare)
    for table in TABLES:
        assert before[table], table
        assert after[table] == before[table], table
    assert notes == ()
    assert sorted(result.run_id or "" for result in results) == sorted(summary.run_ids)
    assert sum(result.metric_points for result in results) == summary.point_count
    assert sum(result.files for result in results) == summary.file_count
    assert sum(result.file_bytes for result in results) == summary.file_bytes


def test_the_schema_stays_as_it_was(awkward_database: Awkward, bare: str) -> None:
    """Indexes that are made anew for speed are the same afterwards, a user's own among them, and the file is sound."""
    execute(bare, "CREATE INDEX own ON metrics (step, value DESC) WHERE step > 3")
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    before = rows(bare, schema)
    assert failures(move(awkward_database[0], bare)[0]) == []
    assert rows(bare, schema) == before
    assert rows(bare, "PRAGMA integrity_check") == [("ok",)]


def test_through_postgresql_and_back_every_row(
    awkward_database: Awkward, bare: str, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """SQLite to an empty PostgreSQL and from there to SQLite: all rows of all tables stay equal, and so do the files."""
    uri, summary = awkward_database
    middle = postgres_database()
    results, _ = move(uri, middle, files=True, artifact_root=str(tmp_path / "root"))
    assert failures(results) == []
    expected = content(uri)
    assert content(middle) == expected
    results, _ = move(middle, bare, files=True)
    assert failures(results) == []
    assert content(bare) == expected
    assert sum(result.file_bytes for result in results) == summary.file_bytes


def test_mlflow_shows_the_restored_runs(awkward_database: Awkward, bare: str) -> None:
    """MLflow's own client finds every run in the target as in the source, but for the artifact location."""
    uri, summary = awkward_database
    move(uri, bare)
    one, other = MlflowClient(uri), MlflowClient(bare)
    for run_id in summary.run_ids:
        wanted, found = one.get_run(run_id).to_dictionary(), other.get_run(run_id).to_dictionary()
        wanted["info"].pop("artifact_uri")
        below = f"mlruns/{found['info']['experiment_id']}/{run_id}/artifacts"
        assert found["info"].pop("artifact_uri") == str(Path(file_of(bare)).parent / below)
        assert _in_order(found) == _in_order(wanted)
    history = other.get_metric_history(summary.runs["long"], "long")
    assert len(history) == len(summary.points[summary.runs["long"]])
    made = other.create_experiment("made afterwards")
    assert int(made) > max(int(experiment) for experiment in summary.experiments.values())


def _in_order(value: Any) -> str:
    """A text that is the same for the same content: order means nothing, and NaN is NaN."""
    if isinstance(value, dict):
        return str({key: _in_order(value[key]) for key in sorted(value)})
    return str(sorted(map(_in_order, value))) if isinstance(value, list) else repr(value)


def test_a_missing_database_is_made(awkward_database: Awkward, tmp_path: Path) -> None:
    """A file and folders that do not exist are made with MLflow's own schema, and nothing else is left beside it."""
    target = tmp_path / "new" / "folder" / "mlflow.db"
    results, _ = move(awkward_database[0], f"sqlite:///{target}")
    assert failures(results) == []
    assert [path.name for path in target.parent.iterdir()] == ["mlflow.db"]
    assert MlflowClient(f"sqlite:///{target}").search_experiments()


def test_ids_stay_where_there_are_gaps(bare: str, tmp_path: Path, bare_file: Path) -> None:
    """Experiment ids are not numbered anew, and a file store's long ids fit into SQLite."""
    source = f"sqlite:///{tmp_path}/source.db"
    shutil.copy(bare_file, file_of(source))
    execute(
        source,
        *(
            f"INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES ({number}, 'e{number}', 'active')"
            for number in (3, 17, 123456789012345678)
        ),
        "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', 17, 'active')",
    )
    results, _ = move(source, bare)
    assert failures(results) == []
    assert content(bare) == content(source)


# -- again, and into what is there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_twice_changes_nothing(
    awkward_database: Awkward, bare: str, postgres_database: Callable[[], str], tmp_path: Path, backend: str
) -> None:
    """The second time every run is found to be there with the same content, and no row changes."""
    target = bare if backend == "sqlite" else postgres_database()
    options = {"artifact_root": str(tmp_path / "root")}
    move(awkward_database[0], target, files=True, **options)
    before = {table: rows(target, f"SELECT * FROM {table}") for table in TABLES}
    results, notes = move(awkward_database[0], target, files=True, **options)
    assert failures(results) == []
    assert [result.notes for result in results] == [[] for _ in results]
    assert notes == ()
    assert {table: rows(target, f"SELECT * FROM {table}") for table in TABLES} == before


def test_into_its_own_source_nothing_changes(awkward_database: Awkward, tmp_path: Path) -> None:
    """A database restored over itself is complete: where its files lie stays as it was."""
    uri = awkward_database[0]
    copy = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file_of(uri))) as one, contextlib.closing(sqlite3.connect(copy)) as two:
        one.backup(two)
    results, notes = move(uri, f"sqlite:///{copy}", files=True)
    assert failures(results) == []
    assert notes == ()
    assert {t: rows(f"sqlite:///{copy}", f"SELECT * FROM {t}") for t in TABLES} == {
        t: rows(uri, f"SELECT * FROM {t}") for t in TABLES
    }


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_into_a_used_database(
    awkward_database: Awkward, empty_mlflow: str, postgres_database: Callable[[], str], tmp_path: Path, backend: str
) -> None:
    """Experiments with a name that is there are merged, those whose id is taken get another; what was there stays."""
    uri, summary = awkward_database
    used = empty_mlflow if backend == "sqlite" else postgres_database()
    client = MlflowClient(used)
    location = str(tmp_path / "theirs")
    taken = client.create_experiment("somebody else's", artifact_location=location)
    theirs = client.create_run(taken, start_time=1)
    client.log_metric(theirs.info.run_id, "loss", 1.0, 2, 3)
    shared = client.create_experiment("churn", artifact_location=location, tags={"team": "another", "own": "x"})
    assert taken in summary.experiments.values()
    before = content(used)
    results, notes = move(uri, used, artifact_root=str(tmp_path / "root"))
    assert failures(results) == []
    after, source = content(used), content(uri)
    ids = {int(old): int(new) for old, new in _ids_by_name(uri, used).items()}
    assert ids[0] == 0
    assert ids[int(summary.experiments["churn"])] == int(shared)
    assert len(set(ids.values())) == len(ids)
    assert int(taken) not in ids.values()
    for table in TABLES:
        if table not in {"experiments", "experiment_tags"}:
            moved = [_with_new_id(table, row, ids) for row in source[table]]
            assert sorted([*before[table], *moved], key=repr) == after[table], table
    assert client.get_experiment(shared).tags == {
        "team": "another",
        "own": "x",
        "note": "two\nlines\r\nand a\ttab",
        "empty": "",
    }
    assert any("'team'" in note for note in notes)
    assert client.create_experiment("made afterwards") not in {str(new) for new in ids.values()}


def _ids_by_name(source: str, target: str) -> dict[str, str]:
    names = {name: number for number, name in rows(target, "SELECT experiment_id, name FROM experiments")}
    return {number: names[name] for number, name in rows(source, "SELECT experiment_id, name FROM experiments")}


def _with_new_id(table: str, row: tuple[Any, ...], ids: dict[int, int]) -> tuple[Any, ...]:
    """A row of ``content`` as it is where experiments have other ids."""
    place = {"runs": 12, "datasets": 0, "inputs": 4, "input_tags": 1}.get(table)
    return row if place is None else (*row[:place], ids[row[place]], *row[place + 1 :])


def test_another_content_under_the_same_id_is_left_alone(awkward_database: Awkward, bare: str) -> None:
    """A run that is there with other content is a problem of that run, named by what differs, and nothing is altered."""
    uri, summary = awkward_database
    move(uri, bare)
    named, numbers = summary.runs["texts"], summary.runs["long"]
    execute(
        bare,
        f"UPDATE params SET value = 'other' WHERE run_uuid = '{named}' AND key = 'number'",
        f"UPDATE metrics SET value = -1 WHERE run_uuid = '{numbers}' AND step = 7",
    )
    before = content(bare)
    results, _ = move(uri, bare, files=True)
    assert content(bare) == before
    found = {result.source_run_id: failures([result]) for result in results if result.problems}
    assert {run_id: [code for code, _ in problems] for run_id, problems in found.items()} == {
        named: ["run-differs"],
        numbers: ["metrics-differ"],
    }
    assert "'number'" in found[named][0][1]


def test_files_that_an_existing_run_lacks_are_added(bare: str, opened: Opened) -> None:
    """A run whose files were lost gets them back; a file that is there with another content is a problem and stays."""
    target = opened(bare)
    files = {"a.txt": b"first", "deep/b.bin": b"second" * 1000}
    assert failures(simple_restore(target, [simple_run()], files=files)) == []
    root = Path(file_of(bare)).parent / "mlruns/0/r1/artifacts"
    assert {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()} == files
    (root / "a.txt").unlink()
    (result,) = simple_restore(target, [simple_run()], files=files)
    assert (result.problems, result.files) == ([], 2)
    assert (root / "a.txt").read_bytes() == b"first"
    (root / "a.txt").write_bytes(b"theirs")
    assert [code for code, _ in failures(simple_restore(target, [simple_run()], files=files))] == ["file-differs"]
    assert (root / "a.txt").read_bytes() == b"theirs"


def test_restored_runs_are_those_that_exist(awkward_database: Awkward, bare: str, opened: Opened) -> None:
    """None counts as complete before it was compared."""
    uri, summary = awkward_database
    target = opened(bare)
    assert target.restored_runs("0", summary.run_ids) == {}
    move(uri, bare)
    found = target.restored_runs("0", [*summary.run_ids, "none", "it's\0"])
    assert sorted(found) == sorted(summary.run_ids)
    assert not any(run.complete for run in found.values())


# -- deleted experiments --------------------------------------------------------------------------------------------------


def test_a_deleted_experiment_is_deleted_where_it_is_made(bare: str, opened: Opened) -> None:
    """A new one is deleted from the start with its own times; an existing one keeps its state, and a note says so."""
    target = opened(bare)
    gone = Experiment(experiment_id="4", name="gone", lifecycle_stage="deleted", creation_time=1, last_update_time=2)
    assert target.place_experiment(gone, name="gone", existing=None) == "4"
    target.finish_experiment(gone, "4")
    kept = Experiment(experiment_id="5", name="kept")
    assert target.place_experiment(kept, name="renamed", existing=None) == "5"
    target.finish_experiment(kept, "5")
    there = next(e for e in target.experiments() if e.name == "renamed")
    assert target.place_experiment(structs.replace(gone, name="renamed"), name="renamed", existing=there) == "5"
    (note,) = target.notes
    assert note.startswith("the experiment 'renamed' was there and keeps what differs: lifecycle_stage (active, in the archive")
    target.finish_experiment(gone, "5")
    assert rows(bare, "SELECT name, lifecycle_stage, last_update_time FROM experiments ORDER BY name") == [
        ("gone", "deleted", 2),
        ("renamed", "active", None),
    ]


# -- a database that takes no more ----------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_half_written(bare: str, opened: Opened) -> None:
    """SQLite ends the transaction itself then: the cause is told, and what comes later is one transaction again."""
    target = opened(bare)
    simple_restore(target, [])
    target._db.set_pragmas("max_page_count = 1")  # no page more than there are
    many = series(*(("m", step, step, 0.5) for step in range(20_000)))
    with pytest.raises(ServerError, match="no space is left for the database") as raised:
        simple_restore(target, [simple_run()], [many])
    assert (raised.value.code, raised.value.hint) == ("full", "free some, run again")
    assert rows(bare, "SELECT COUNT(*) FROM runs") == [(0,)]
    target._db.set_pragmas("max_page_count = 1000000")
    target._db.run("UPDATE experiments SET name = 'half written'")
    target._db.rollback()
    assert rows(bare, "SELECT name FROM experiments") == [("Default",)]
    assert failures(simple_restore(target, [simple_run()], [many])) == []


def test_an_error_of_the_rollback_hides_no_cause(bare: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is gone can undo nothing: what is raised is why it is gone."""
    target = opened(bare)

    def fail(why: str) -> Callable[..., None]:
        def raise_it(*_: object) -> None:
            raise ServerError(why)

        return raise_it

    monkeypatch.setattr(target, "_insert_experiment", fail("the cause"))
    monkeypatch.setattr(target._db, "rollback", fail("no rollback either"))
    with pytest.raises(ServerError, match="the cause"):
        target.place_experiment(Experiment(experiment_id="0", name="Default"), name="Default", existing=None)


def test_a_database_that_must_not_be_written_is_said(bare: str, opened: Opened) -> None:
    """The sentence says what is wrong, and the hint what to do."""
    target = opened(bare)
    target._db.set_pragmas("query_only = 1")
    with pytest.raises(ServerError, match="cannot be written") as raised:
        target.place_experiment(Experiment(experiment_id="0", name="Default"), name="Default", existing=None)
    assert (raised.value.code, raised.value.hint) == ("read-only", "let this user write the file and its folder")


# -- points ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_repeated_points_are_kept_once_and_said(
    bare: str, postgres_database: Callable[[], str], opened: Opened, backend: str
) -> None:
    """What the primary key of MLflow takes once is kept once, over the borders of tables too, with a note and no problem."""
    target = opened(bare if backend == "sqlite" else postgres_database())
    nan, odd_nan = float("nan"), np.uint64(0x7FF8000000000123).view(np.float64)
    tables = [
        series(("a", 1, 1, 0.5), ("a", 1, 1, 0.5), ("a", 1, 1, nan), ("a", 1, 1, odd_nan)),
        series(("a", 1, 1, nan), ("a", 1, 2, nan), ("b", 1, 2, nan), ("c", 0, 0, -0.0)),
        series(("c", 0, 0, 0.0), ("c", 1, 0, -0.0)),
    ]
    (result,) = simple_restore(target, [simple_run()], tables)
    assert result.problems == []
    assert result.metric_points == 6
    assert any("4 metric points that repeat" in note for note in result.notes)
    assert any("-0.0" in note for note in result.notes) == (backend == "sqlite")
    (again,) = simple_restore(target, [simple_run()], tables)
    assert again.problems == []
    with contextlib.closing(DatabaseSource(target._uri.text)) as source:
        (table,) = source.metrics(["r1"])
    zero = "0.0" if backend == "sqlite" else "-0.0"
    assert [(r["key"], r["step"], r["timestamp"], repr(r["value"])) for r in table.to_pylist()] == [
        ("a", 1, 1, "0.5"),
        ("a", 1, 1, "nan"),
        ("a", 1, 2, "nan"),
        ("b", 1, 2, "nan"),
        ("c", 0, 0, zero),
        ("c", 1, 0, zero),
    ]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_values_at_their_limits_stay(bare: str, postgres_database: Callable[[], str], opened: Opened, backend: str) -> None:
    """Infinities, denormals, the largest and smallest integers go in and come out bit for bit."""
    target = opened(bare if backend == "sqlite" else postgres_database())
    values = sorted([float("-inf"), -1.7976931348623157e308, -5e-324, 5e-324, 0.1, 2.0**53 + 2, float("inf")])
    points = [("k", step, time, value) for step in (-(2**63), 0, 2**63 - 1) for time in (0, 2**62) for value in values]
    (result,) = simple_restore(target, [simple_run()], [series(*points)])
    assert result.problems == []
    assert result.metric_points == len(points)
    with contextlib.closing(DatabaseSource(target._uri.text)) as source:
        (table,) = source.metrics(["r1"])
    assert list(map(tuple, table.drop(["owner"]).to_pandas().itertuples(index=False))) == points


def test_the_latest_point_may_lie_in_any_table(bare: str, opened: Opened) -> None:
    """The latest metric of a series that spans tables is the greatest (step, timestamp, value), NaN counted as zero."""
    target = opened(bare)
    tables = [
        series(("a", 1, 1, 9.0), ("b", 5, 5, -1.0)),
        series(("b", 5, 5, 2.0), ("b", 5, 5, float("nan")), ("c", 1, 9, -3.0), ("c", 1, 9, float("nan"))),
        series(("c", 2, 0, -8.0), ("d", 0, 0, float("nan"))),
    ]
    assert failures(simple_restore(target, [simple_run()], tables)) == []
    latest = MlflowClient(bare).get_run("r1").data.metrics
    assert repr(dict(sorted(latest.items()))) == "{'a': 9.0, 'b': 2.0, 'c': -8.0, 'd': nan}"


# -- what a database cannot hold ------------------------------------------------------------------------------------------


def pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=value)


def _oversized() -> Run:
    dataset = Dataset(name="ok", digest="d", source_type="t", source="s")
    return simple_run(
        run_name="n" * 251,
        user_id="u" * 257,
        source_type="SOMETHING",
        source_version="v" * 51,
        params=(
            KeyValue(key="k" * 251, value="x"),
            KeyValue(key="long", value="v" * 8001),
            KeyValue(key="ok", value="ü" * 8000),
        ),
        tags=(pair("nul", "a\0b"), pair("ok", "v")),
        inputs=(
            DatasetInput(dataset=structs.replace(dataset, name="n" * 501)),
            DatasetInput(dataset=Dataset(name="no source", digest="d")),
            DatasetInput(dataset=dataset, tags=(pair("a", "b"),)),
        ),
    )


def test_postgresql_says_what_it_cannot_hold_and_keeps_the_rest(postgres_database: Callable[[], str], opened: Opened) -> None:
    """Lengths, NUL characters and absent values are named one by one before anything is written; the rest is restored."""
    uri = postgres_database()
    target = opened(uri)
    run = _oversized()
    said = target.cannot_hold_run(run)
    assert {problem.code for problem in said} == {"cannot-hold"}
    assert all(problem.runs == ("r1",) for problem in said)
    named = (
        "run_name",
        "user_id",
        "source_type is left out",
        "source_version",
        "'kkk",
        "'long'",
        "'nul'",
        "'nnn",
        "'no source'",
    )
    assert [sum(name in problem.message for problem in said) for name in named] == [1] * 9
    assert len(said) == 9
    assert target.cannot_hold_key("k" * 250) is None
    assert target.cannot_hold_key("k" * 251)
    assert target.cannot_hold_key("a\0b")
    tables = [series(("a\0b", 1, 1, 1.0), ("k" * 251, 1, 1, 1.0), ("ok", 1, 1, 1.0))]
    (result,) = simple_restore(target, [run], tables)
    assert len(result.problems) == 11
    assert {problem.code for problem in result.problems} == {"cannot-hold"}
    with contextlib.closing(DatabaseSource(uri)) as source:
        (found,) = source.runs_by_id(["r1"])
        (table,) = source.metrics(["r1"])
    assert table["key"].to_pylist() == ["ok"]
    assert ([p.key for p in found.params], [t.key for t in found.tags], [i.dataset.name for i in found.inputs]) == (
        ["ok"],
        ["ok"],
        ["ok"],
    )
    assert (found.run_name, found.user_id, found.source_type) == (UNSET, "", UNSET)
    assert MlflowClient(uri).get_run("r1").data.params == {"ok": "ü" * 8000}


def test_sqlite_holds_what_is_longer(bare: str, opened: Opened) -> None:
    """SQLite enforces no length: long values and NUL characters are no problem there and come back whole."""
    target = opened(bare)
    run = structs.replace(_oversized(), source_type="JOB", inputs=())
    assert target.cannot_hold_run(run) == []
    (result,) = simple_restore(target, [run], [series(("a\0b", 1, 1, 1.0), ("k" * 251, 1, 1, 1.0))])
    assert result.problems == []
    assert result.metric_points == 2


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_run_that_cannot_be_held_is_left_out(
    bare: str, postgres_database: Callable[[], str], opened: Opened, backend: str
) -> None:
    """An unknown status, an id with NUL: the run is a problem, the others are restored with their own points."""
    target = opened(bare if backend == "sqlite" else postgres_database())
    runs = [simple_run("good"), simple_run("odd", status="UNKNOWN"), simple_run("nul\0", artifact_uri=UNSET), simple_run("r2")]
    tables = [series((f"k{owner}", 1, 1, float(owner)), owner=owner) for owner in range(4)]
    results = simple_restore(target, runs, tables)
    assert [(result.run_id, bool(result.problems)) for result in results] == [
        ("good", False),
        (None, True),
        (None, True),
        ("r2", False),
    ]
    assert rows(target._uri.text, "SELECT run_uuid, key, value FROM metrics ORDER BY 1") == [
        ("good", "k0", 0.0),
        ("r2", "k3", 3.0),
    ]


@pytest.mark.parametrize(("number", "sqlite_holds"), [("3000000000", True), ("10000000000000000000", False), ("seven", False)])
def test_an_experiment_id_that_does_not_fit_becomes_another(
    bare: str, postgres_database: Callable[[], str], opened: Opened, number: str, sqlite_holds: bool
) -> None:
    """Beyond 32 bits PostgreSQL cannot hold an id, beyond 64 nobody; a name that is no number is none: that is said."""
    experiment = Experiment(experiment_id=number, name="e")
    for target, holds in ((opened(bare), sqlite_holds), (opened(postgres_database()), False)):
        assert target.cannot_hold_experiment(experiment) == []
        assert any(number in note for note in target.notes) is not holds
        assert target.place_experiment(experiment, name="e", existing=None) == (number if holds else "1")


def test_an_experiment_goes_to_the_workspace_that_is_named(bare: str, opened: Opened) -> None:
    """The workspace is made where it is missing; without one, the experiment is in the default one."""
    target = opened(bare)
    for number, name, workspace in (("1", "a", "team-a"), ("2", "b", ""), ("3", "c", "default")):
        experiment = Experiment(experiment_id=number, name=name, workspace="team-b")
        target.place_experiment(experiment, name=name, existing=None, workspace=workspace)
    assert rows(bare, "SELECT name, workspace FROM experiments ORDER BY 1") == [
        ("a", "team-a"),
        ("b", "default"),
        ("c", "default"),
    ]
    assert rows(bare, "SELECT name FROM workspaces ORDER BY 1") == [("default",), ("team-a",)]


# -- a run that fails, a write that lies ----------------------------------------------------------------------------------


def test_one_refused_run_does_not_stop_the_others(bare: str, opened: Opened) -> None:
    """Where the database itself refuses a run, that one has a problem and leaves nothing, and the others are restored."""
    execute(
        bare,
        "CREATE TRIGGER no BEFORE INSERT ON params WHEN NEW.run_uuid = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: no'); END",
    )
    target = opened(bare)
    runs = [simple_run(name, params=(KeyValue(key="p", value=name),)) for name in ("a", "bad", "c")]
    results = simple_restore(target, runs, [series(("k", 1, 1, float(n)), owner=n) for n in range(3)])
    assert [[problem.code for problem in result.problems] for result in results] == [[], ["refused"], []]
    assert rows(bare, "SELECT run_uuid FROM runs ORDER BY 1") == [("a",), ("c",)]
    assert rows(bare, "SELECT run_uuid, value FROM metrics ORDER BY 1") == [("a", 0.0), ("c", 2.0)]
    assert rows(bare, "SELECT run_uuid FROM latest_metrics ORDER BY 1") == [("a",), ("c",)]


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("AFTER INSERT ON params BEGIN UPDATE params SET value = 'x' WHERE run_uuid = NEW.run_uuid; END", "run-differs"),
        ("AFTER INSERT ON runs BEGIN UPDATE runs SET end_time = 77 WHERE run_uuid = NEW.run_uuid; END", "run-differs"),
        ("AFTER INSERT ON metrics BEGIN DELETE FROM metrics WHERE step = 2; END", "metrics-differ"),
        ("AFTER INSERT ON metrics BEGIN UPDATE metrics SET value = value + 1 WHERE step = 2; END", "metrics-differ"),
        ("AFTER INSERT ON metrics WHEN NEW.step = 2 BEGIN DELETE FROM runs WHERE run_uuid = 'r1'; END", "not-restored"),
    ],
)
def test_a_database_that_alters_what_it_is_given_is_caught(bare: str, opened: Opened, statement: str, code: str) -> None:
    """What reads back otherwise than it was written is a problem of the run."""
    execute(bare, f"CREATE TRIGGER liar {statement}")
    run = simple_run(params=(KeyValue(key="p", value="1"),))
    (result,) = simple_restore(opened(bare), [run], [series(("k", 1, 1, 1.0), ("k", 2, 1, 2.0))])
    assert [problem.code for problem in result.problems] == [code]


def test_a_file_with_another_content_is_caught(bare: str, opened: Opened) -> None:
    """A blob that is not what its digest says reads back differently and is a problem of that file."""
    target = opened(bare)
    target.place_experiment(Experiment(experiment_id="0", name="Default"), name="Default", existing=None)
    planned = PlannedRun(source=simple_run(), experiment_id="0", files=(("a", 3, hashlib.sha256(b"abc").hexdigest()),))
    (result,) = target.restore([planned], iter(()), lambda _: io.BytesIO(b"abd"))
    assert [(problem.code, problem.path) for problem in result.problems] == [("file-differs", "a")]


def test_a_file_that_cannot_be_written_is_named(bare: str, opened: Opened) -> None:
    """The run is restored with its other files, and the missing one is a problem; the next time it is added."""
    target = opened(bare)
    root = Path(file_of(bare)).parent / "mlruns/0/r1/artifacts"
    root.mkdir(parents=True)
    (root / "deep").write_text("in the way of a folder")
    files = {"a.txt": b"first", "deep/b.txt": b"second"}
    (result,) = simple_restore(target, [simple_run()], files=files)
    assert [problem.path for problem in result.problems] == ["deep/b.txt"]
    assert result.files == 1
    (root / "deep").unlink()
    (result,) = simple_restore(target, [simple_run()], files=files)
    assert (result.problems, result.files) == ([], 2)


def test_what_lies_at_the_place_of_a_new_run_stays(bare: str, opened: Opened) -> None:
    """A file with another content is a problem and not overwritten; one with the archived content is fine, and noted."""
    root = Path(file_of(bare)).parent / "mlruns/0/r1/artifacts"
    root.mkdir(parents=True)
    (root / "a.txt").write_bytes(b"theirs")
    (root / "b.txt").write_bytes(b"second")
    files = {"a.txt": b"first", "b.txt": b"second", "c.txt": b"third"}
    (result,) = simple_restore(opened(bare), [simple_run()], files=files)
    assert [(problem.code, problem.path) for problem in result.problems] == [("file-differs", "a.txt")]
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {**files, "a.txt": b"theirs"}
    assert any("lay at their place already" in note for note in result.notes)


def test_nothing_is_written_into_a_place_that_the_target_does_not_give(bare: str, opened: Opened, tmp_path: Path) -> None:
    """The files of a run that is there stay where they are; those that it lacks there are problems, written nowhere."""
    files = {"a.txt": b"first"}
    assert failures(simple_restore(opened(bare, artifact_root=str(tmp_path / "one")), [simple_run()], files=files)) == []
    other = opened(bare, artifact_root=str(tmp_path / "two"))
    (result,) = simple_restore(other, [simple_run()], files=files)
    assert result.problems == []
    assert any("stay where they are" in note for note in result.notes)
    (tmp_path / "one/0/r1/artifacts/a.txt").unlink()
    (result,) = simple_restore(other, [simple_run()], files=files)
    assert [(problem.code, problem.path) for problem in result.problems] == [("file-missing", "a.txt")]
    assert not list(tmp_path.glob("*/**/a.txt"))


def test_a_dataset_that_differs_is_a_problem(bare: str, opened: Opened) -> None:
    """MLflow keeps one dataset of a name and digest in an experiment: another source of it cannot be kept, and is said."""

    def run(run_id: str, source: str) -> Run:
        dataset = Dataset(name="d", digest="x", source_type="local", source=source)
        return simple_run(run_id, inputs=(DatasetInput(dataset=dataset, tags=(KeyValue(key="k", value=run_id),)),))

    target = opened(bare)
    results = simple_restore(target, [run("a", "1"), run("b", "1")])
    assert failures(results) == []
    assert rows(bare, "SELECT COUNT(*) FROM datasets") == [(1,)]
    (result,) = simple_restore(target, [run("c", "2")])
    assert [problem.code for problem in result.problems] == ["run-differs"]
    assert "source" in result.problems[0].message
    assert rows(bare, "SELECT dataset_source FROM datasets") == [("1",)]


# -- interruptions --------------------------------------------------------------------------------------------------------


def test_an_error_in_the_middle_leaves_no_run(awkward_database: Awkward, bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at any file or table of points, no run of that batch is visible; the next time all are restored."""
    uri = awkward_database[0]
    monkeypatch.setattr(_db_read, "BATCH_RUNS", 20)
    expected = content(uri)
    for allowed in (0, 1, 5, 12):
        source, target = DatabaseSource(uri), DatabaseTarget(bare, bundle_id="test")
        ids, blobs = place(source, target), Blobs()
        blobs.allowed = allowed
        with pytest.raises(KeyboardInterrupt):
            list(restore(source, target, ids, blobs))
        target.close()
        source.close()
        whole = {row[0]: row for row in expected["runs"]}
        there = content(bare)
        assert all(whole[row[0]] == row for row in there["runs"])
        ids_there = {row[0] for row in there["runs"]}
        assert [row for row in expected["metrics"] if row[0] in ids_there] == there["metrics"]

    def broken() -> Iterator[pa.Table]:
        yield series(("k", 1, 1, 1.0))
        raise OSError("the archive is gone")

    target = DatabaseTarget(bare, bundle_id="test")
    before = content(bare)
    with pytest.raises(OSError, match="gone"):
        target.restore([PlannedRun(source=simple_run(), experiment_id="0")], broken(), lambda _: io.BytesIO())
    assert content(bare) == before
    assert failures(simple_restore(target, [simple_run("later")], [series(("k", 1, 1, 1.0))])) == []
    execute(bare, *(f"DELETE FROM {t} WHERE run_uuid = 'later'" for t in ("metrics", "latest_metrics", "runs")))
    target.close()
    results, _ = move(uri, bare, files=True)
    assert failures(results) == []
    assert content(bare) == expected


@pytest.mark.slow
def test_a_killed_process_leaves_no_half_run(awkward_database: Awkward, bare: str) -> None:
    """After kill -9 while the rows of a batch are being written, nothing of it is visible; the next time all is restored."""
    uri = awkward_database[0]
    code = f"""
import os, signal, threading, time
from mlflow_bundle.tracking.database import _points as _db_points
from tests.tracking.moving import move
insert = _db_points.PointStage.insert
def killed(self, condition="1 = 1"):
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    insert(self, condition)
    time.sleep(10)
_db_points.PointStage.insert = killed
move({uri!r}, {bare!r}, files=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    there = content(bare)
    assert (there["runs"], there["metrics"], there["params"]) == ([], [], [])
    results, _ = move(uri, bare, files=True)
    assert failures(results) == []
    assert content(bare) == content(uri)


def test_a_locked_database_is_said(awkward_database: Awkward, bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program writes, restoring waits, then says what to do; when it is done, restoring works."""
    monkeypatch.setattr(_db, "BUSY_MILLISECONDS", 300)
    code = (
        f"import sqlite3, sys; c = sqlite3.connect({file_of(bare)!r}, isolation_level=None); c.execute('BEGIN IMMEDIATE'); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ServerError, match="locked by another program") as raised:
            move(awkward_database[0], bare)
        assert raised.value.hint
        other.communicate()
    assert failures(move(awkward_database[0], bare)[0]) == []


# -- databases that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_another_schema_is_refused_and_not_upgraded(backend: str, tmp_path: Path, postgres_database: Callable[[], str]) -> None:
    """An older database stays as it is, and the hint says how to upgrade it."""
    uri = f"sqlite:///{tmp_path}/old.db" if backend == "sqlite" else postgres_database()
    make_database(uri, "0584bdc529eb")
    with pytest.raises(UnsupportedError, match="0584bdc529eb") as raised:
        DatabaseTarget(uri, bundle_id="test")
    assert "mlflow db upgrade" in (raised.value.hint or "")
    assert rows(uri, "SELECT version_num FROM alembic_version") == [("0584bdc529eb",)]


def test_the_revision_is_that_of_the_installed_mlflow() -> None:
    """Read from the sources of the migrations, it is the one that MLflow itself asks for."""
    assert _db_schema.head_revision() == _get_latest_schema_revision()


def test_an_existing_database_needs_no_mlflow(bare: str) -> None:
    """MLflow is imported only to make the tables of an empty database."""
    code = (
        "import sys; from mlflow_bundle.tracking.database._write import DatabaseTarget; "
        f"t = DatabaseTarget({bare!r}, bundle_id='b'); t.experiments(); t.close(); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    """MLflow's tables are not added to those of another program."""
    uri = f"sqlite:///{tmp_path}/other.db"
    execute(uri, "CREATE TABLE mine (x INTEGER)")
    with pytest.raises(UnsupportedError, match="not MLflow's"):
        DatabaseTarget(uri, bundle_id="test")
    assert rows(uri, "SELECT name FROM sqlite_master") == [("mine",)]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """A file in the way of the folder gives one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="cannot be made"):
        DatabaseTarget(f"sqlite:///{tmp_path}/file/mlflow.db", bundle_id="test")


def test_a_database_is_put_in_place_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system has no hard links, such as exFAT, a new database gets its place too, and replaces none there."""

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    draft, place = (parse_uri(f"sqlite:///{tmp_path}/{name}.db") for name in ("draft", "deep/er/place"))
    (tmp_path / "draft.db").write_bytes(b"new")
    _db_schema.place_database(draft, place)
    assert (tmp_path / "deep/er/place.db").read_bytes() == b"new"
    (tmp_path / "deep/er/place.db").write_bytes(b"of somebody else")
    with pytest.raises(ServerError, match="meanwhile"):
        _db_schema.place_database(draft, place)
    monkeypatch.undo()
    with pytest.raises(ServerError, match="meanwhile"):
        _db_schema.place_database(draft, place)
    assert os.listdir(tmp_path / "deep/er") == ["place.db"]
    assert (tmp_path / "deep/er/place.db").read_bytes() == b"of somebody else"


# -- locations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "destination", "experiment", "run"),
    [
        (None, None, "{home}/mlruns/9", "{home}/mlruns/9/r1/artifacts"),
        ("s3://bucket/root/", None, "s3://bucket/root/9", "s3://bucket/root/9/r1/artifacts"),
        ("mlflow-artifacts:/", None, "mlflow-artifacts:/9", "mlflow-artifacts:/9/r1/artifacts"),
        ("/some/where/", None, "/some/where/9", "/some/where/9/r1/artifacts"),
        (None, "/dest", "mlflow-artifacts:/9", "mlflow-artifacts:/9/r1/artifacts"),
        ("/some/where", "/dest", "/some/where/9", "/some/where/9/r1/artifacts"),
    ],
)
def test_locations_are_rewritten(tmp_path: Path, root: str | None, destination: str | None, experiment: str, run: str) -> None:
    """Every way to name a root, for locations that were local or in a bucket."""
    places = Places(parse_uri(f"sqlite:///{tmp_path}/mlflow.db"), root, destination)
    for old in ("/old/mlruns/4", "s3://old/4", UNSET):
        assert places.of_experiment(old, "4", "9") == experiment.format(home=tmp_path)
        assert places.of_run(simple_run(artifact_uri=old), "9") == run.format(home=tmp_path)


@pytest.mark.parametrize(
    ("old", "source_id", "target_id", "kept"),
    [
        ("mlflow-artifacts:/4/r1/artifacts", "4", "4", "mlflow-artifacts:/4/r1/artifacts"),
        ("mlflow-artifacts:/4/r1/artifacts", "4", "9", "mlflow-artifacts:/9/r1/artifacts"),
        ("mlflow-artifacts:/own/4/r1/artifacts", "4", "9", "mlflow-artifacts:/own/4/r1/artifacts"),
        ("mlflow-artifacts://old.host:5000/4/r1/artifacts", "4", "4", "mlflow-artifacts:/4/r1/artifacts"),
        ("mlflow-artifacts:/44/r1/artifacts", "4", "9", "mlflow-artifacts:/44/r1/artifacts"),
    ],
)
def test_what_lies_behind_a_server_stays_there(old: str, source_id: str, target_id: str, kept: str) -> None:
    """With a destination, proxied locations stay; only the id of an experiment that got another one changes."""
    places = Places(parse_uri("sqlite:////db/mlflow.db"), None, "/dest")
    assert places.of_run(simple_run(artifact_uri=old, experiment_id=source_id), target_id) == kept
    assert places.of_experiment(old, source_id, target_id) == kept


def test_files_behind_a_server_go_below_its_destination(bare: str, opened: Opened, tmp_path: Path) -> None:
    """They lie where a server with that option looks for them."""
    target = opened(bare, artifacts_destination=str(tmp_path / "dest"))
    run = simple_run(artifact_uri="mlflow-artifacts:/0/r1/artifacts")
    assert failures(simple_restore(target, [run], files={"m/a.txt": b"content"})) == []
    assert (tmp_path / "dest/0/r1/artifacts/m/a.txt").read_bytes() == b"content"
    assert rows(bare, "SELECT artifact_uri FROM runs") == [("mlflow-artifacts:/0/r1/artifacts",)]


def test_postgresql_needs_a_place_for_files(postgres_database: Callable[[], str], opened: Opened, tmp_path: Path) -> None:
    """Without one nothing is written; runs without files need none, and keep their locations."""
    uri = postgres_database()
    with pytest.raises(UsageError, match="no place") as raised:
        simple_restore(opened(uri), [simple_run()], files={"a": b"1"})
    assert "artifact_root" in (raised.value.hint or "")
    assert rows(uri, "SELECT COUNT(*) FROM runs") == [(0,)]
    assert failures(simple_restore(opened(uri), [simple_run()])) == []
    assert rows(uri, "SELECT artifact_uri FROM runs") == [("/old/0/r1",)]
    long = opened(uri, artifact_root=f"/{'x' * 200}")
    assert [problem.code for problem in long.cannot_hold_run(simple_run())] == ["cannot-hold"]


def test_relations_to_parents_are_kept(bare: str, opened: Opened) -> None:
    """The parent tag names the parent at the target, where its id is known to be another one."""
    target = opened(bare)
    target.place_experiment(Experiment(experiment_id="0", name="Default"), name="Default", existing=None)
    run = simple_run(tags=(KeyValue(key="mlflow.parentRunId", value="old"),))
    planned = PlannedRun(source=run, experiment_id="0", parent_id="new")
    (result,) = target.restore([planned], iter(()), lambda _: io.BytesIO())
    assert result.problems == []
    assert rows(bare, "SELECT value FROM tags") == [("new",)]


def test_an_unknown_experiment_is_a_usage_error(bare: str, opened: Opened) -> None:
    """Merging into an experiment that is not there is a mistake of the caller."""
    missing = TargetExperiment("77", "none", "active")
    with pytest.raises(UsageError, match="77"):
        opened(bare).place_experiment(Experiment(experiment_id="1", name="e"), name="e", existing=missing)


def test_selected_runs_only(awkward_database: Awkward, bare: str, opened: Opened) -> None:
    """A part of a source restores that part, with the points of the right runs."""
    uri, summary = awkward_database
    chosen = (summary.runs["points"], summary.runs["wide"])
    target = opened(bare)
    with contextlib.closing(DatabaseSource(uri)) as source:
        ids = place(source, target)
        results = [r for batch in restore(source, target, ids, None, RunQuery(run_ids=chosen)) for r in batch]
    assert failures(results) == []
    assert content(bare)["metrics"] == [row for row in content(uri)["metrics"] if row[0] in chosen]
    assert os.path.exists(file_of(bare))
