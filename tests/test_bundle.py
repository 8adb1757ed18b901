"""An opened archive gives what MLflow gives, a part of it without the rest, and nothing that is damaged."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.entities import ViewType

import mlflow_bundle as bundle
from mlflow_bundle._limits import Limits, Targets
from mlflow_bundle._manifest import find_snapshot
from mlflow_bundle._storage import open_storage
from mlflow_bundle._storage._local import LocalStorage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._text import counts_text
from mlflow_bundle.errors import BundleNotFoundError, CorruptError, LimitError, NotFoundError, UsageError
from mlflow_bundle.records import KINDS, ObjectRef, Record, record_id
from tests.building import PLAIN, TINY, Content, content_of, everything_of, pack_content, plain_rows, plain_schema
from tests.fixtures.content import ContentSummary

#: Many objects of each role, and row groups of many runs.
TARGETS = Targets(records_bytes=4_000, frame_bytes=1_000, metric_rows=3_000, file_rows=10, pack_bytes=3_000, index_rows=30)


@pytest.fixture(scope="module")
def folder(awkward_database: tuple[str, ContentSummary], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The awkward database, packed."""
    place = tmp_path_factory.mktemp("bundle") / "b"
    bundle.pack(None, place, tracking_uri=awkward_database[0], targets=TARGETS)
    return place


@pytest.fixture(scope="module")
def archive(folder: Path) -> Iterator[bundle.Bundle]:
    with bundle.open(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(awkward_database: tuple[str, ContentSummary]) -> MlflowClient:
    with contextlib.chdir(Path(awkward_database[0].removeprefix("sqlite:///")).parent):
        return MlflowClient(awkward_database[0])


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, MlflowRun]:
    """Every run that MLflow shows, by id."""
    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    found = client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=10_000)
    return {run.info.run_id: run for run in found}


# -- what MLflow says ------------------------------------------------------------------------------------------------------


def test_experiments_are_those_of_mlflow(archive: bundle.Bundle, client: MlflowClient) -> None:
    """Every experiment with its name, state, location, times and tags."""
    expected = {e.experiment_id: e for e in client.search_experiments(view_type=ViewType.ALL)}
    rows = archive.experiments().to_pylist()
    assert sorted(row["experiment_id"] for row in rows) == sorted(expected)
    for row in rows:
        experiment = expected[row["experiment_id"]]
        for name in ("name", "lifecycle_stage", "artifact_location", "creation_time", "last_update_time"):
            assert row[name] == getattr(experiment, name), name
        assert dict(row["tags"]) == dict(experiment.tags)


def test_runs_are_those_of_mlflow(archive: bundle.Bundle, runs: dict[str, MlflowRun]) -> None:
    """Every run with its attributes, params and tags, in the table and as a record."""
    rows = archive.runs().to_pylist()
    assert sorted(row["run_id"] for row in rows) == sorted(runs)
    for row in rows:
        info, data = runs[row["run_id"]].info, runs[row["run_id"]].data
        record = archive.run(row["run_id"])
        for name in ("experiment_id", "run_name", "status", "start_time", "lifecycle_stage", "artifact_uri", "user_id"):
            assert row[name] == getattr(info, name) == getattr(record, name), name
        assert row["end_time"] == info.end_time
        assert dict(row["params"]) == data.params == {p.key: p.value for p in record.params}
        assert dict(row["tags"]) == data.tags == {t.key: t.value for t in record.tags}


def test_dataset_inputs_are_those_of_mlflow(archive: bundle.Bundle, runs: dict[str, MlflowRun]) -> None:
    """Every dataset of a run with its texts and tags."""
    compared = 0
    for run_id, run in runs.items():
        expected = [
            (
                d.dataset.name,
                d.dataset.digest,
                d.dataset.source_type,
                d.dataset.source,
                d.dataset.schema,
                d.dataset.profile,
                sorted((t.key, t.value) for t in d.tags),
            )
            for d in run.inputs.dataset_inputs
        ]
        found = []
        for given in archive.run(run_id).inputs:
            d = given.dataset
            texts: list[Any] = [d.source_type, d.source, d.schema, d.profile]
            texts = [text if isinstance(text, str) else None for text in texts]
            found.append((d.name, d.digest, *texts, sorted((t.key, t.value) for t in given.tags)))
        assert sorted(found, key=str) == sorted(expected, key=str)
        compared += len(found)
    assert compared >= 5


def test_params_and_tags_are_tables(archive: bundle.Bundle, runs: dict[str, MlflowRun]) -> None:
    """One row each param and each tag, of all runs."""
    for table, of in ((archive.params(), lambda run: run.data.params), (archive.tags(), lambda run: run.data.tags)):
        found = {(row["run_id"], row["key"]): row["value"] for row in table.to_pylist()}
        assert found == {(run_id, key): value for run_id, run in runs.items() for key, value in of(run).items()}
        assert len(found) == table.num_rows


def bits(value: float) -> object:
    """A value so that NaN equals NaN, as it comes out of a database: without the sign of zero."""
    return "nan" if math.isnan(value) else value + 0.0


def test_metric_histories_are_those_of_mlflow(archive: bundle.Bundle, client: MlflowClient, runs: dict[str, MlflowRun]) -> None:
    """For each run and key, the points are those that MLflow's own client returns, none more, none less, in order."""
    compared = 0
    for run_id, run in runs.items():
        table = archive.metrics(run_id=run_id)
        assert sorted(set(table.column("key").to_pylist())) == sorted(run.data.metrics)
        keys = sorted(run.data.metrics)
        for key in keys if len(keys) < 20 else keys[::60]:
            expected = [(m.step, m.timestamp, bits(m.value)) for m in client.get_metric_history(run_id, key)]
            part = archive.metrics(run_id=run_id, key=key)
            columns = [part.column(name).to_pylist() for name in ("step", "timestamp", "value")]
            found = [(step, stamp, bits(value)) for step, stamp, value in zip(*columns, strict=True)]
            assert Counter(found) == Counter(expected)
            assert [point[:2] for point in found] == sorted(point[:2] for point in found)
            compared += len(found)
    assert compared > 30_000


def test_all_metrics_are_those_of_the_runs(archive: bundle.Bundle, awkward_database: tuple[str, ContentSummary]) -> None:
    """The table of all points has as many rows as were logged, and those of each run."""
    table = archive.metrics()
    assert table.num_rows == awkward_database[1].point_count == archive.snapshot.counts["metric_point"]
    rows = Counter(table.column("run_id").to_pylist())
    assert rows == Counter({run: len(points) for run, points in awkward_database[1].points.items() if points})
    ids = list(awkward_database[1].points)
    assert archive.metric_rows(ids) == [rows[run] for run in ids]


def test_latest_metrics_are_those_of_mlflow(archive: bundle.Bundle, runs: dict[str, MlflowRun]) -> None:
    """The latest value of each series is the one that MLflow shows for the run."""
    found = {(row["run_id"], row["key"]): bits(row["value"]) for row in archive.latest_metrics().to_pylist()}
    assert found == {(run_id, key): bits(value) for run_id, run in runs.items() for key, value in run.data.metrics.items()}


def test_files_are_those_that_were_logged(archive: bundle.Bundle, awkward_database: tuple[str, ContentSummary]) -> None:
    """Every file of every run, odd names included, with size, digest and content; no other."""
    _, made = awkward_database
    table = archive.files()
    found: dict[str, dict[str, tuple[int, str]]] = {run: {} for run in made.files}
    for row in table.to_pylist():
        assert row["state"] == "ok"
        found[row["run_id"]][row["path"]] = (row["size"], row["sha256"])
    assert found == made.files
    assert table.num_rows == made.file_count
    for run, files in made.files.items():
        assert archive.files(run_id=run).column("path").to_pylist() == sorted(files, key=lambda path: path.encode())
        for path, (size, sha256) in files.items():
            with archive.open_file(run, path) as stream:
                data = stream.read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)


def test_several_runs_at_once_are_the_same_as_each(archive: bundle.Bundle, runs: dict[str, MlflowRun]) -> None:
    """``series`` and ``files_of`` give for any runs, in any order, what each run has."""
    ids = sorted(runs)
    for chosen in (ids, ids[::-1], ids[1::3], []):
        tables = list(archive.series(chosen))
        merged = pa.concat_tables(tables).to_pylist() if tables else []
        by_owner: dict[int, list[tuple[Any, ...]]] = {}
        for row in merged:
            by_owner.setdefault(row["owner"], []).append((row["key"], row["step"], row["timestamp"], bits(row["value"])))
        for owner, run in enumerate(chosen):
            own = archive.metrics(run_id=run).to_pylist()
            assert by_owner.get(owner, []) == [(r["key"], r["step"], r["timestamp"], bits(r["value"])) for r in own]
        files = archive.files_of(chosen).to_pylist()
        assert files == [row for run in chosen for row in archive.files(run_id=run).to_pylist()]


# -- other kinds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content() -> Content:
    return everything_of(20)


@pytest.fixture(scope="module")
def everything(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bundle.Bundle]:
    """An archive with entities of many kinds in many small objects."""
    folder = tmp_path_factory.mktemp("everything") / "b"
    with open_storage(folder, create=True) as storage:
        pack_content(storage, content)
    with bundle.open(folder) as opened:
        yield opened


def of_kind(content: Content, kind: str) -> list[Record]:
    return [record for record in content.entities if str(record.__struct_config__.tag) == kind]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_records_of_every_kind(everything: bundle.Bundle, content: Content, kind: str) -> None:
    """Each record comes back as it was, all together in archive order and each by its id; the table has a row for each."""
    records = {"experiment": content.experiments, "run": content.runs}.get(kind) or of_kind(content, kind)
    assert list(everything.records(kind)) == records
    assert [everything.record(kind, record_id(record)) for record in records] == list(records)
    table = everything.table(kind)
    assert table.num_rows == len(records)
    with pytest.raises(NotFoundError) as raised:
        everything.record(kind, "none")
    assert raised.value.code == f"{kind.replace('_', '-')}-not-found"


def test_the_tables_of_entities_have_names(everything: bundle.Bundle, content: Content) -> None:
    """Models, versions, traces and assessments are tables with a row for each."""
    tables = {
        "logged_model": everything.models(),
        "registered_model": everything.registered_models(),
        "model_version": everything.model_versions(),
        "trace": everything.traces(),
    }
    for kind, table in tables.items():
        assert table.equals(everything.table(kind))
        assert table.num_rows == len(of_kind(content, kind))
    assessments = everything.assessments()
    assert assessments.column("assessment_id").to_pylist() == [f"a-{n}" for n in range(20)]
    assert assessments.column_names[:2] == ["trace_id", "experiment_id"]


@pytest.mark.parametrize("table", PLAIN)
def test_rows_are_those_of_their_owners(everything: bundle.Bundle, content: Content, table: str) -> None:
    """All rows, those of one owner, and those of some, are what was packed, column by column."""
    ids = [record_id(record) for record in of_kind(content, PLAIN[table])]
    whole = everything.spans() if table == "spans/1" else everything.model_metrics()
    expected = plain_rows(table, {PLAIN[table]: ids}, content.rows)
    assert whole.schema == TABLES[table].schema
    assert set(whole.column("experiment_id").to_pylist()) == {"1"}
    assert whole.column(str(TABLES[table].owner)).to_pylist() == [ids[n] for n in expected.column("owner").to_pylist()]
    columns = expected.column_names[1:]
    assert repr(whole.select(columns).to_pylist()) == repr(expected.select(columns).to_pylist())
    for identity in ids:
        one = everything.spans(trace_id=identity) if table == "spans/1" else everything.model_metrics(model_id=identity)
        own = plain_rows(table, {PLAIN[table]: [identity]}, content.rows)
        assert repr(one.select(columns).to_pylist()) == repr(own.select(columns).to_pylist())
    for chosen in (ids, ids[::-1], ids[1::2], ids[::3], []):
        found = pa.concat_tables([plain_schema(table).empty_table(), *everything.rows(table, chosen)])
        assert repr(found.to_pylist()) == repr(plain_rows(table, {PLAIN[table]: chosen}, content.rows).to_pylist())
    with pytest.raises(NotFoundError):
        list(everything.rows(table, ["none"]))


@pytest.mark.parametrize("kind", ["logged_model", "model_version", "trace"])
def test_files_of_every_kind(everything: bundle.Bundle, content: Content, kind: str) -> None:
    """Files are listed for all owners of a kind, for some and for one, and open with their content."""
    expected = [
        (record_id(record), path, data)
        for record in of_kind(content, kind)
        for path, data in sorted(content.entity_files.get((kind, record_id(record)), {}).items())
    ]
    assert len(expected) > 3
    listed = [(owner, path, len(data), hashlib.sha256(data).hexdigest(), "ok") for owner, path, data in expected]
    assert rows_of(everything.files(kind=kind)) == listed
    ids = [record_id(record) for record in of_kind(content, kind)]
    assert rows_of(everything.files_of_entities(kind, ids)) == listed
    for owner in ids:
        assert rows_of(everything.files(kind=kind, id=owner)) == [row for row in listed if row[0] == owner]
    for owner, path, data in expected:
        with everything.open_file(owner, path, kind=kind) as stream:
            assert stream.read() == data
    with pytest.raises(NotFoundError, match=f"{kind.replace('_', ' ')} {ids[0]} has no file 'none'"):
        everything.open_file(ids[0], "none", kind=kind)


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    assert table.column_names == ["owner_id", "path", "size", "sha256", "state"]
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_an_unknown_kind_is_a_mistake(everything: bundle.Bundle) -> None:
    """A kind that this release does not know is named, with those that it knows."""
    for call in (lambda: everything.records("spam"), lambda: everything.record("spam", "1"), lambda: everything.table("spam")):
        with pytest.raises(UsageError, match="spam"):
            call()


def test_calls_that_contradict_themselves(everything: bundle.Bundle) -> None:
    """A run and another entity at once, a table that is none or not of one kind, an unknown kind: nothing is guessed."""
    run = everything.runs()["run_id"][0].as_py()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("id 'm-0001'", lambda: everything.files(run_id=run, id="m-0001")),
        ("the kind 'trace'", lambda: everything.files(run_id=run, kind="trace")),
        ("no text", lambda: everything.runs(where="status = 'FINISHED'")),  # type: ignore[arg-type]
        ("no table 'files/1'", lambda: everything.rows("files/1", [])),
        ("no table 'nonsense'", lambda: everything.rows("nonsense", [])),
        ("nonsense", lambda: everything.files_of_entities("nonsense", ["1"])),
        ("nonsense", lambda: everything.files_of_entities("nonsense", [])),
        ("nonsense", lambda: everything.files(kind="nonsense")),
        ("nonsense", lambda: everything.open_file(run, "f0.txt", kind="nonsense")),
    ]
    for text, call in calls:
        with pytest.raises(UsageError, match=text) as raised:
            call()
        assert raised.value.hint
    with pytest.raises(UsageError) as raised:
        everything.rows("files/1", [])
    assert "metrics/1, model_metrics/1, spans/1" in str(raised.value.hint)
    assert everything.files(run_id=run).equals(everything.files(id=run))


def test_owners_that_are_not_there(everything: bundle.Bundle) -> None:
    """Whatever is asked of a run, model or trace that is not in the snapshot raises ``NotFoundError``."""
    calls: list[Callable[[], object]] = [
        lambda: everything.metrics(run_id="x"),
        lambda: everything.model_metrics(model_id="x"),
        lambda: everything.spans(trace_id="x"),
        lambda: list(everything.series(["x"])),
        lambda: everything.metric_rows(["x"]),
        lambda: everything.files_of(["x"]),
        lambda: everything.files_of_entities("trace", ["x"]),
        lambda: everything.files(kind="trace", id="x"),
        lambda: everything.open_file("x", "y", kind="trace"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="'x' in snapshot"):
            call()


def test_a_bundle_at_another_snapshot_shares_the_storage(tmp_path: Path) -> None:
    """Closing one of them closes the storage of both: that of a ZIP file answers no more."""
    with open_storage(tmp_path / "b.zip", create=True) as storage:
        pack_content(storage, content_of(2))
    archive = bundle.open(tmp_path / "b.zip")
    other = archive.at(archive.snapshot_id)
    assert other.runs().num_rows == 2
    other.close()
    with pytest.raises((ValueError, bundle.BundleError)):
        archive.experiments()


@pytest.mark.parametrize("limits", [Limits(row_group_rows=3), Limits(row_group_bytes=300)])
def test_a_row_group_beyond_the_limits_is_refused(everything: bundle.Bundle, limits: Limits) -> None:
    """A table whose row group would take too much memory is not read, whole or in part."""
    with bundle.open(everything.url, limits=limits) as archive:
        for call in (archive.spans, archive.metrics, archive.model_metrics, archive.runs, lambda: archive.files(kind="trace")):
            with pytest.raises(LimitError) as raised:
                call()
            assert raised.value.code == "E094"


# -- parts without the rest ------------------------------------------------------------------------------------------------


class Counting(LocalStorage):
    """A folder that counts the bytes that are read of each object."""

    read_bytes: Counter[str]

    def read(self, path: str) -> bytes:
        data = super().read(path)
        self.read_bytes[path] += len(data)
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        self.read_bytes[path] += length
        return super().read_range(path, start, length)

    def open(self, path: str) -> BinaryIO:
        return _Counted(super().open(path), self.read_bytes, path)  # type: ignore[return-value]


class _Counted:
    def __init__(self, file: BinaryIO, counter: Counter[str], path: str) -> None:
        self._file, self._counter, self._path = file, counter, path

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._counter[self._path] += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.fixture
def counted(tmp_path: Path) -> tuple[bundle.Bundle, Counter[str]]:
    """An archive of 400 runs in few large objects, and what is read of it."""
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content_of(400, points=400), targets=Targets(frame_bytes=8_000))
    storage = Counting(str(tmp_path / "b"), tmp_path / "b")
    storage.read_bytes = Counter()
    return bundle.Bundle(storage, find_snapshot(storage, None)), storage.read_bytes


def read_of(archive: bundle.Bundle, counter: Counter[str], role: str) -> float:
    """Which share of the objects of a role was read."""
    refs = [ref for ref in archive.objects if ref.role == role and ref.kind != "experiment"]
    return sum(counter[ref.path] for ref in refs) / sum(ref.size for ref in refs)


def test_one_run_is_one_range(counted: tuple[bundle.Bundle, Counter[str]]) -> None:
    """A run is read from the view and one frame, without its neighbours and without any table."""
    archive, counter = counted
    run = archive.runs()["run_id"][200].as_py()
    archive.run(run)
    assert 0 < read_of(archive, counter, "records") < 0.2
    assert read_of(archive, counter, "metrics") == read_of(archive, counter, "files") == read_of(archive, counter, "packs") == 0


def test_one_series_is_one_row_group(counted: tuple[bundle.Bundle, Counter[str]]) -> None:
    """The points of a run are read from its row group, not from the whole object."""
    archive, counter = counted
    run = archive.runs()["run_id"][200].as_py()
    assert archive.metrics(run_id=run).num_rows == 400
    assert 0 < read_of(archive, counter, "metrics") < 0.95
    assert read_of(archive, counter, "records") == read_of(archive, counter, "packs") == 0


def test_one_file_is_one_range(counted: tuple[bundle.Bundle, Counter[str]]) -> None:
    """A small file is read from its pack without the others."""
    archive, counter = counted
    run = archive.runs()["run_id"][200].as_py()
    with archive.open_file(run, "f0.txt") as stream:
        assert stream.read() == b"file 0 of 200 " * 5
    assert 0 < read_of(archive, counter, "packs") < 0.01
    assert read_of(archive, counter, "records") == read_of(archive, counter, "metrics") == 0


def test_one_trace_is_one_range_and_one_row_group(tmp_path: Path) -> None:
    """A trace and its spans are read from the view, one frame and one row group, without the others."""
    content = everything_of(60)
    for (table, _), rows in content.rows.items():
        for number, row in enumerate(rows if table == "spans/1" else ()):
            row["content"] = random.Random(number).randbytes(50_000).hex()
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content, targets=Targets(frame_bytes=8_000))
    storage = Counting(str(tmp_path / "b"), tmp_path / "b")
    counter = storage.read_bytes = Counter[str]()
    archive = bundle.Bundle(storage, find_snapshot(storage, None))
    trace = record_id(of_kind(content, "trace")[31])
    archive.record("trace", trace)
    assert not read_of(archive, counter, "spans")
    traces = [ref for ref in archive.objects if (ref.role, ref.kind) == ("records", "trace")]
    assert 0 < sum(counter[ref.path] for ref in traces) < sum(ref.size for ref in traces) / 2
    assert archive.spans(trace_id=trace).num_rows == 5
    assert 0 < read_of(archive, counter, "spans") < 0.8
    assert read_of(archive, counter, "metrics") == read_of(archive, counter, "files") == read_of(archive, counter, "packs") == 0


# -- what is not there, and what is damaged --------------------------------------------------------------------------------


def test_what_is_not_there_is_named(archive: bundle.Bundle, tmp_path: Path) -> None:
    """An unknown run, file, snapshot or bundle raises ``NotFoundError`` with a code of its own."""
    run = archive.runs()["run_id"][0].as_py()
    calls = {
        "run-not-found": lambda: archive.run("0" * 31 + "x"),
        "file-not-found": lambda: archive.open_file(run, "no such file"),
        "snapshot-not-found": lambda: archive.at("ffffffff"),
    }
    for code, call in calls.items():
        with pytest.raises(NotFoundError) as raised:
            call()
        assert raised.value.code == code
    for call in (archive.metrics, archive.files):
        with pytest.raises(NotFoundError, match="no run 'x'"):
            call(run_id="x")
    assert archive.metrics(run_id=run, key="no such key").num_rows == 0
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BundleNotFoundError):
            bundle.open(place)
    assert not (tmp_path / "nothing").exists()


def test_older_snapshots_stay_as_they_were(tmp_path: Path) -> None:
    """Each snapshot opens by its name and says what it said, whatever came after it."""
    with open_storage(tmp_path / "b", create=True) as storage:
        first, _ = pack_content(storage, content_of(5))
        second, _ = pack_content(storage, content_of(9))
    with bundle.open(tmp_path / "b") as archive:
        assert [one.stem for one in archive.snapshots()] == [second.stem, first.stem]
        assert archive.snapshot_id == second.stem
        assert archive.root_digest == second.digest
        assert archive.runs().num_rows == 9
        assert archive.at(first.stem).runs().num_rows == 5
    with bundle.open(tmp_path / "b", snapshot=first.digest) as archive:
        assert archive.runs().num_rows == 5
        said = f"snapshot {first.stem} (complete): {counts_text(first.snapshot.counts)}"
        assert repr(archive) == f"<Bundle {str(tmp_path / 'b')!r} {said}>"


def read_everything(archive: bundle.Bundle) -> list[Any]:
    """All that can be read, one by one and as tables."""
    everything: list[Any] = [list(archive.records(kind)) for kind in KINDS]
    everything += [repr(table.to_pylist()) for table in (archive.metrics(), archive.model_metrics(), archive.spans())]
    for kind in KINDS.values():
        if not kind.tables:
            continue
        everything.append(archive.files(kind=kind.name))
        for record in archive.records(kind.name):
            identity = record_id(record)
            files = archive.files_of_entities(kind.name, [identity])
            everything += [archive.record(kind.name, identity), files]
            for path in files["path"].to_pylist():
                with archive.open_file(identity, path, kind=kind.name) as stream:
                    everything.append(stream.read())
            for table in kind.tables[:-1]:
                everything += [repr(rows.to_pylist()) for rows in archive.rows(table, [identity])]
    return everything


def objects_to_damage(folder: Path) -> list[ObjectRef]:
    with bundle.open(folder) as archive:
        largest_of_each = {(ref.role, str(ref.kind)): ref for ref in sorted(archive.objects, key=lambda ref: ref.size)}
        return list(largest_of_each.values())


@pytest.mark.slow
def test_damage_never_gives_other_answers(tmp_path: Path) -> None:
    """Whatever byte of whatever object is flipped: reading raises ``CorruptError``, or what was read is right."""
    good = tmp_path / "good"
    with open_storage(good, create=True) as storage:
        content = everything_of(4)
        content.files[content.runs[2].run_id]["large"] = bytes(range(256)) * 8
        pack_content(storage, content, targets=TINY)
    with bundle.open(good) as archive:
        expected = read_everything(archive)
    noticed = Counter[str]()
    for ref in objects_to_damage(good):
        bad = tmp_path / "bad"
        shutil.copytree(good, bad)
        data = (bad / ref.path).read_bytes()
        for at in range(0, len(data), max(1, len(data) // 25)):
            (bad / ref.path).write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            with bundle.open(bad) as archive:
                try:
                    assert read_everything(archive) == expected, (ref.path, at)
                except CorruptError:
                    noticed[ref.role] += 1
        shutil.rmtree(bad)
    assert set(noticed) == {"records", "metrics", "model_metrics", "spans", "files", "index", "views", "packs", "blobs"}


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_lost_object_is_an_error(tmp_path: Path, damage: str) -> None:
    """An object that is missing or too short raises, and never looks like less content."""
    good = tmp_path / "good"
    with open_storage(good, create=True) as storage:
        pack_content(storage, everything_of(4), targets=TINY)
    for ref in objects_to_damage(good):
        bad = tmp_path / "bad"
        shutil.copytree(good, bad)
        if damage == "removed":
            (bad / ref.path).unlink()
        else:
            data = (bad / ref.path).read_bytes()
            (bad / ref.path).write_bytes(data[: len(data) // 2])
        with bundle.open(bad) as archive, pytest.raises((CorruptError, NotFoundError)):
            read_everything(archive)
        shutil.rmtree(bad)
