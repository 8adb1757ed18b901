"""Nothing is left out of a snapshot without a word: what a source holds and no record gets is read, a note, or a problem."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import msgspec
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput
from mlflow.genai.label_schemas.label_schemas import InputText
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.rest_utils import MlflowHostCreds

from mlflow_bundle import verify
from mlflow_bundle.entities import LabelSchema, ModelVersion, Trace
from mlflow_bundle.errors import CorruptError, IncompleteError, NotFoundError, ServerError, StorageError, UsageError
from mlflow_bundle.records import Record
from mlflow_bundle.tracking import pack
from mlflow_bundle.tracking._port import EntityQuery, MlflowSource, RunQuery
from mlflow_bundle.tracking._rest import API, RestClient
from mlflow_bundle.tracking.artifacts._folders import Folders
from mlflow_bundle.tracking.artifacts._fsspec import FsspecArtifacts
from mlflow_bundle.tracking.database._connection import parse_uri
from mlflow_bundle.tracking.database._read import DatabaseSource
from mlflow_bundle.tracking.database._schema import prepare_database
from mlflow_bundle.tracking.filestore._read import FileSource
from mlflow_bundle.tracking.rest._features import KNOWN, Features
from mlflow_bundle.tracking.rest._listing import pages
from mlflow_bundle.tracking.rest._read import RestSource
from mlflow_bundle.tracking.rest._trace_answers import TraceAnswer
from tests.fixtures.estate import Estate
from tests.fixtures.s3 import Bucket
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.http_peer import forward, serve
from tests.tracking.moving import execute, rows

Spans = dict[tuple[str, str], Any]


def records(source: MlflowSource, kind: str) -> list[Record]:
    """All records of a kind."""
    return [record for batch in source.entities(kind, EntityQuery()) for record in batch]


def spans(source: MlflowSource) -> Spans:
    """What every span says, by trace and span."""
    ids = sorted(record.trace_id for record in records(source, "trace") if isinstance(record, Trace))
    found = [row for table in source.rows("spans/1", ids) for row in table.to_pylist()]
    return {(ids[row["owner"]], row["span_id"]): json.loads(row["content"]) for row in found}


def archive_traces(uri: str, place: Path) -> None:
    """Let MLflow itself move the spans of all traces out of the database."""
    execute(uri, "UPDATE trace_info SET timestamp_ms = 1000000")
    store = SqlAlchemyStore(uri, str(place / "unused"))
    archived = store.archive_traces(resolved_trace_archival_location=place.as_uri(), broader_retention="1d")
    store.engine.dispose()
    assert archived >= 4
    assert rows(uri, "SELECT MAX(content) FROM spans") == [("",)]


@pytest.fixture(scope="module")
def archived(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The URI of a database whose spans lie in files, and where those are. It must not be changed."""
    home = tmp_path_factory.mktemp("archived")
    shutil.copy(estate.folder / "mlflow.db", home / "mlflow.db")
    archive_traces(f"sqlite:///{home / 'mlflow.db'}", home / "archive")
    return f"sqlite:///{home / 'mlflow.db'}", home / "archive"


# -- databases ---------------------------------------------------------------------------------------------------------


def test_archived_spans_of_a_database_are_read(estate: Estate, archived: tuple[str, Path]) -> None:
    """Spans that MLflow moved into files say what they said in the database; nothing is wrong, and nothing to be noted."""
    with closing(DatabaseSource(estate.uri)) as before, closing(DatabaseSource(archived[0])) as after:
        assert spans(after) == spans(before) != {}
        assert (after.problems(), after.notes()) == ([], [])


def test_a_missing_file_of_archived_spans_is_a_problem(archived: tuple[str, Path], tmp_path: Path) -> None:
    """Without the file the spans are lost: a pack says of which trace, and commits only when that is allowed."""
    uri, place = archived
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    shutil.copytree(place, tmp_path / "archive")
    lost, *_ = sorted((tmp_path / "archive").rglob("traces.pb"))
    lost.unlink()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    key = "mlflow.trace.archiveLocation"
    execute(uri, f"UPDATE trace_tags SET value = REPLACE(value, '{place}', '{tmp_path}/archive') WHERE key = '{key}'")
    trace_id = lost.parts[-3]
    with pytest.raises(IncompleteError, match=trace_id):
        pack(bundle=tmp_path / "b", tracking_uri=uri)
    report = pack(bundle=tmp_path / "b", tracking_uri=uri, allow_partial=True)
    assert [problem.id for problem in report.problems] == [trace_id]
    assert 0 < report.counts["span"] < len(rows(uri, "SELECT 1 FROM spans"))


def test_spans_that_are_nowhere_are_noted(estate: Estate, tmp_path: Path) -> None:
    """A trace that had spans, by its own metadata, and has none in the database or in files, is told."""
    shutil.copy(estate.folder / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ((trace_id,),) = rows(uri, "SELECT MIN(trace_id) FROM spans")
    execute(uri, f"DELETE FROM spans WHERE trace_id = '{trace_id}'")
    with closing(DatabaseSource(uri)) as source:
        spans(source)
        assert [trace_id in note for note in source.notes()] == [True]


@pytest.mark.parametrize(
    ("kind", "table", "key", "column"),
    [
        ("run", "runs", "run_uuid", "user_id"),
        ("trace", "trace_info", "request_id", "client_request_id"),
        ("logged_model", "logged_models", "model_id", "status_message"),
        ("registered_model", "registered_models", "name", "description"),
        ("evaluation_dataset", "evaluation_datasets", "dataset_id", "digest"),
    ],
)
def test_one_that_cannot_be_read_does_not_stop_the_rest(
    estate: Estate, tmp_path: Path, kind: str, table: str, key: str, column: str
) -> None:
    """An entity with a column that no record can hold is a problem that names it; with ``allow_partial`` all others are packed,
    and the archive is sound."""
    shutil.copy(estate.folder / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ((lost, count),) = rows(uri, f"SELECT MIN({key}), COUNT(*) FROM {table}")
    execute(uri, f"UPDATE {table} SET {column} = x'ff' WHERE {key} = '{lost}'")
    with pytest.raises(IncompleteError, match=f"{lost}: the column '{column}' of {table} "):
        pack(bundle=tmp_path / "b", tracking_uri=uri)
    report = pack(bundle=tmp_path / "b", tracking_uri=uri, allow_partial=True)
    assert [(problem.kind, problem.id) for problem in report.problems] == [(kind, lost)]
    assert report.counts.get(kind, 0) == count - 1
    named = {"run": "run", "logged_model": "logged_model", "registered_model": "model"}
    if kind in named:
        with pytest.raises(CorruptError, match=f"{lost}: the column '{column}' of {table} "):
            pack(bundle=tmp_path / "b", tracking_uri=uri, **{named[kind]: lost})
    assert verify(tmp_path / "b").problems == ()


def test_what_no_record_has_a_place_for_is_noted(empty_mlflow: str, tmp_path: Path) -> None:
    """Tables, columns, links and values that are in use and not read are named; those without content are not."""
    client = MlflowClient(empty_mlflow)
    place = (tmp_path / "files").as_uri()
    run = client.create_run(client.create_experiment("one", artifact_location=place)).info.run_id
    (tmp_path / "files").mkdir()
    assert pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow).notes == ()
    execute(
        empty_mlflow,
        "CREATE TABLE users (id INT)",
        "CREATE TABLE unused (id INT)",
        "INSERT INTO users VALUES (1), (2)",
        "ALTER TABLE runs ADD COLUMN mood TEXT",
        "ALTER TABLE runs ADD COLUMN nobody TEXT",
        "UPDATE runs SET mood = 'good'",
        f"INSERT INTO inputs VALUES ('i1', 'PLANET', 'mars', 'RUN', '{run}', 0)",
        f"INSERT INTO inputs VALUES ('i2', 'DATASET', 'gone', 'RUN', '{run}', 0)",
        "INSERT INTO entity_associations VALUES ('a1', 'model', 'm', 'trace', 't', 1)",
        f"INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES ('purged', 0.5, 1, 2, 0, '{run}')",
    )
    notes = pack(bundle=tmp_path / "b", tracking_uri=empty_mlflow).notes
    for text in ("users (2 rows)", "runs.mood", "'PLANET' and 'RUN'", f"of run {run}", "'model' and 'trace'", "'purged'"):
        assert sum(text in note for note in notes) == 1, (text, notes)
    assert len(notes) == 6


def test_what_is_left_out_of_postgresql_is_noted(postgres_database: Callable[[], str]) -> None:
    """The same questions have the same answers in the other dialect."""
    uri = postgres_database()
    prepare_database(parse_uri(uri))
    with closing(DatabaseSource(uri)) as source:
        assert source.notes() == []
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE users (id INT)",
            "INSERT INTO users VALUES (1)",
            "ALTER TABLE runs ADD COLUMN mood TEXT DEFAULT 'good'",
            "INSERT INTO experiments (experiment_id, name, workspace) VALUES (7, 'e', 'default')",
            "INSERT INTO runs (run_uuid, experiment_id) VALUES ('r', 7)",
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES ('k', 1, 1, 1, false, 'r')",
            "INSERT INTO inputs VALUES ('i1', 'PLANET', 'mars', 'RUN', 'r', 0)",
            "INSERT INTO inputs VALUES ('i2', 'DATASET', 'gone', 'RUN', 'r', 0)",
        ):
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()
    with closing(DatabaseSource(uri)) as source:
        assert len(source.notes()) == 4
        assert source.metric_counts(["r"]) == [0]
        assert len(source.notes()) == 5


def test_a_destination_that_is_not_there_is_refused(empty_mlflow: str, tmp_path: Path) -> None:
    """Files behind a server are read in the folder that the caller names: a misspelled one is an error before anything is
    packed, and an empty one, as of a disk that is not mounted, is noted."""
    client = MlflowClient(empty_mlflow)
    run = client.create_run(client.create_experiment("behind", artifact_location="mlflow-artifacts:/7")).info.run_id
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": empty_mlflow}
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "misspelled", tmp_path / "file"):
        with pytest.raises(UsageError, match=str(wrong)):
            pack(artifacts_destination=wrong, **asked)
    assert not (tmp_path / "b").exists()
    (tmp_path / "right").mkdir()
    assert [str(tmp_path / "right") in note for note in pack(artifacts_destination=tmp_path / "right", **asked).notes] == [True]
    (tmp_path / f"right/7/{run}/artifacts").mkdir(parents=True)
    assert pack(artifacts_destination=tmp_path / "right", **asked).notes == ()


# -- places of files ---------------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_not_an_empty_one(s3_bucket: Bucket, empty_mlflow: str, tmp_path: Path) -> None:
    """Runs in a bucket that does not exist have files that cannot be listed; those in an empty one have none."""
    client = MlflowClient(empty_mlflow)
    for name in (s3_bucket.name, "no-such-bucket"):
        client.create_run(client.create_experiment(name, artifact_location=f"s3://{name}/mlruns"))
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": empty_mlflow}
    asked["artifact_storage_options"] = s3_bucket.storage_options
    with pytest.raises(IncompleteError, match="no-such-bucket") as error:
        pack(**asked)
    assert len(error.value.problems) == 1
    assert pack(experiment=s3_bucket.name, **asked).counts["file"] == 0


def test_an_empty_prefix_of_a_bucket_is_noted(s3_bucket: Bucket, empty_mlflow: str, tmp_path: Path) -> None:
    """A misspelled prefix cannot be told from one where nothing was logged yet: a note says that nothing lies there."""
    place = f"s3://{s3_bucket.name}/mlruns"
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": empty_mlflow, "artifacts_destination": place}
    asked["artifact_storage_options"] = s3_bucket.storage_options
    assert [place in note for note in pack(**asked).notes] == [True]
    FsspecArtifacts(place, s3_bucket.storage_options)._fs.pipe_file(f"{s3_bucket.name}/mlruns/0/a", b"a")
    assert pack(**asked).notes == ()


def logged(uri: str, folder: Path, *, names: Sequence[str] = ("one", "two")) -> list[str]:
    """Runs of one experiment, each with a file below ``folder``; their ids."""
    client = MlflowClient(uri)
    experiment = client.create_experiment("files", artifact_location=f"{folder}/1")
    runs = [client.create_run(experiment, run_name=name).info.run_id for name in names]
    for run in runs:
        client.log_text(run, run, "a.txt")
    return runs


@pytest.mark.parametrize("empty", [False, True])
def test_files_below_a_place_that_is_not_mounted_any_more_are_problems(empty_mlflow: str, tmp_path: Path, empty: bool) -> None:
    """Files that the last snapshot has are not gone because the folder of all is not there, or is an empty mount point. This
    holds for every later pack, until the files are there again or everything is read anew."""
    mounted = tmp_path / "mounted"
    runs = logged(empty_mlflow, mounted)
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": empty_mlflow}
    pack(**asked)
    mounted.rename(tmp_path / "elsewhere")
    if empty:
        mounted.mkdir()
    for _ in range(2):
        with pytest.raises(IncompleteError, match=f"nothing lies below {mounted}") as error:
            pack(**asked)
        assert {(problem.kind, problem.id) for problem in error.value.problems} == {("run", run) for run in runs}
        assert pack(allow_partial=True, **asked).state == "partial"
    anew = pack(full=True, **asked)
    assert (anew.state, [str(mounted) in note for note in anew.notes]) == ("complete", [] if empty else [True])
    if empty:
        mounted.rmdir()
    (tmp_path / "elsewhere").rename(mounted)
    assert (pack(**asked).counts["file"], pack(**asked).notes) == (2, ())


def test_an_artifacts_destination_that_is_not_mounted_any_more_is_a_problem(empty_mlflow: str, tmp_path: Path) -> None:
    """The same holds for files that a server keeps behind ``mlflow-artifacts:``."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    client = MlflowClient(empty_mlflow)
    run = client.create_run(client.create_experiment("served", artifact_location="mlflow-artifacts:/1")).info.run_id
    (mounted / "1" / run / "artifacts").mkdir(parents=True)
    (mounted / "1" / run / "artifacts/a.txt").write_text("a")
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": empty_mlflow, "artifacts_destination": mounted}
    assert pack(**asked).counts["file"] == 1
    mounted.rename(tmp_path / "elsewhere")
    mounted.mkdir()
    with pytest.raises(IncompleteError, match=f"nothing lies below {mounted}/1"):
        pack(**asked)


def test_files_that_are_gone_are_noted(empty_mlflow: str, tmp_path: Path) -> None:
    """A run that had files and has none any more, where others still have theirs, is counted in a note, once."""
    lost, _ = logged(empty_mlflow, tmp_path / "files")
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": empty_mlflow}
    pack(**asked)
    shutil.rmtree(tmp_path / "files/1" / lost)
    assert pack(**asked).notes == ("1 run had files in an earlier snapshot and has none any more",)
    assert pack(**asked).notes == ()


def test_a_file_in_the_place_of_a_folder_is_told(s3_bucket: Bucket) -> None:
    """An object where a folder of artifacts should be, or whose name ends as that of a folder, cannot be archived: it is an
    error, after all the other files. Empty ones are marks of folders."""
    options = s3_bucket.storage_options
    place = FsspecArtifacts(f"s3://{s3_bucket.name}", options)
    for path, content in {
        "one.pkl": b"a",
        "run/a/": b"b",
        "run/a/b": b"c",
        "fine/": b"",
        "fine/a/": b"",
        "fine/a/b": b"d",
    }.items():
        place._fs.pipe_file(f"{s3_bucket.name}/{path}", content)
    for path, others in {"one.pkl": [], "run": ["a/b"]}.items():
        found = []
        with pytest.raises(StorageError, match="is a file where a folder"):
            found.extend(info.path for info in FsspecArtifacts(f"s3://{s3_bucket.name}/{path}", options).walk())
        assert found == others
    assert [info.path for info in FsspecArtifacts(f"s3://{s3_bucket.name}/fine", options).walk()] == ["a/b"]
    assert not Folders().lack("s3://no-such-bucket/x/artifacts", "x", lambda uri: FsspecArtifacts(uri, options))


def test_links_that_lead_nowhere_are_problems_of_a_file_store(tmp_path: Path) -> None:
    """An experiment, a run or a model whose folder is on a disk that is not mounted is left out, and named."""
    home = tmp_path / "mlruns"
    (home / "0").mkdir(parents=True)
    (home / "0/meta.yaml").write_text("experiment_id: '0'\nname: Default\nlifecycle_stage: active\n")
    (home / "models/model").mkdir(parents=True)
    (home / "models/model/meta.yaml").write_text("name: model\ncreation_timestamp: 1\nlast_updated_timestamp: 1\n")
    for path in ("1", "0/abc", "0/traces", "models/other", "models/model/version-2"):
        (home / path).symlink_to("/no/such/disk")
    with pytest.raises(IncompleteError) as error:
        pack(bundle=tmp_path / "b", tracking_uri=str(home))
    found = {(problem.kind, problem.id) for problem in error.value.problems}
    wanted = {("experiment", "1"), ("run", "abc"), ("registered_model", "other"), ("model_version", "model/2")}
    assert found >= wanted
    with closing(FileSource(str(home))) as source:
        assert [experiment.name for experiment in source.experiments()] == ["Default"]


# -- servers -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_not_called_missing(tmp_path: Path) -> None:
    """An experiment of a file store whose file is damaged is there: named by its id, the error says so. Its name nobody knows:
    the hint says that there is one such."""
    for number, name in ((0, "Default"), (17, "[torn")):
        (tmp_path / f"mlruns/{number}").mkdir(parents=True)
        text = f"experiment_id: '{number}'\nname: {name}\nlifecycle_stage: active\n"
        (tmp_path / f"mlruns/{number}/meta.yaml").write_text(text)
    asked: dict[str, Any] = {"bundle": tmp_path / "b", "tracking_uri": tmp_path / "mlruns"}
    with pytest.raises(CorruptError, match=r"17/meta\.yaml: the file is not YAML") as error:
        pack("17", **asked)
    assert "verify" not in str(error.value.hint)
    with pytest.raises(NotFoundError, match="'torn'") as missing:
        pack("torn", **asked)
    assert missing.value.hint == "1 experiment cannot be read: only the id is known (for example 17)"


def test_an_empty_answer_is_no_empty_list() -> None:
    """A proxy that answers 200 without a body has not said that there is nothing."""
    with serve(lambda *_: (200, b"", None)) as peer:
        client = RestClient(peer.url)
        for asked in (
            lambda: client.get_json(f"{API}experiments/get"),
            lambda: list(pages(client, f"{API}registered-models/search", "registered_models", {})),
            lambda: RestSource(peer.url).experiments(),
        ):
            with pytest.raises(ServerError, match="something else than MLflow's JSON"):
                asked()


def test_endpoints_that_a_release_has_and_the_server_hides_are_noted() -> None:
    """A proxy in front of a new server that lets only some paths through is not taken for an old server."""

    def answer(version: bytes, method: str, path: str, body: bytes) -> tuple[int, bytes, None]:
        del method, body
        if path == "/version":
            return 200, version, None
        return (200, b"{}", None) if "registered-models" in path or "traces" in path else (404, b"no such page", None)

    noted: dict[bytes, list[str]] = {}
    for version in (b"2.1.0", b"3.11.0", b"99.1.0"):
        with serve(partial(answer, version)) as peer:
            noted[version] = Features(RestClient(peer.url), map).notes()
    assert noted[b"2.1.0"] == []
    assert [kind for kind in ("issue", "scorer", "webhook") if not any(kind in note for note in noted[b"3.11.0"])] == []
    assert any("workspaces" in note for note in noted[b"3.11.0"])
    assert not any(kind in note for kind in ("mcp", "trace", "registered_model") for note in noted[b"3.11.0"])
    assert any("MLflow 99.1.0" in note for note in noted[b"99.1.0"])


def test_the_newest_known_release_is_the_installed_one() -> None:
    """Whoever moves on to a newer MLflow looks through its answers first."""
    installed = tuple(map(int, mlflow.__version__.split(".")[:2]))
    assert installed <= KNOWN


def test_a_judgement_of_an_unknown_kind_is_not_an_empty_one() -> None:
    """An assessment that is neither feedback, expectation nor issue is left out and named."""
    known = {"assessment_id": "a-1", "feedback": {}}
    answer = msgspec.convert({"trace_id": "t", "assessments": [known, {"assessment_id": "a-2", "novelty": {}}]}, TraceAnswer)
    assert [one.assessment_id for one in answer.record().assessments] == ["a-1"]
    assert answer.unknown_assessments == ["a-2"]


@pytest.fixture(scope="module")
def server(archived: tuple[str, Path], start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    """A server on a copy of the archived estate."""
    copy = tmp_path_factory.mktemp("server") / "mlflow.db"
    shutil.copy(archived[0].removeprefix("sqlite:///"), copy)
    # A server cannot decrypt what was planted.
    execute(f"sqlite:///{copy}", "UPDATE webhooks SET secret = NULL")
    return start_server(backend_store_uri=f"sqlite:///{copy}")


@contextmanager
def altered(server: MlflowServer, alter: Callable[[bytes], bytes]) -> Iterator[RestSource]:
    """A source whose answers pass through a function."""

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
        status, content, claimed = forward(server.url, method, path, body)
        return status, alter(content), claimed

    with serve(answer) as peer, closing(RestSource(peer.url)) as source:
        yield source


@pytest.mark.slow
def test_versions_that_no_search_shows_are_read(server: MlflowServer) -> None:
    """A version that is no prompt, of a model that has a version which is one, is in no list of a server; it is read."""
    client = RegistryStore(partial(MlflowHostCreds, server.url))
    client.create_registered_model("mixed'up")
    for _ in range(4):
        client.create_model_version("mixed'up", "s3://elsewhere/a")
    client.delete_model_version("mixed'up", "3")
    asked = MlflowClient(server.url)
    asked.set_model_version_tag("mixed'up", "2", "mlflow.prompt.is_prompt", "true")
    with closing(RestSource(server.url)) as source:
        found = [
            one.version for one in records(source, "model_version") if isinstance(one, ModelVersion) and one.name == "mixed'up"
        ]
    assert sorted(found) == [1, 2, 4]


@pytest.mark.slow
def test_links_to_prompts_with_quotes_are_read(server: MlflowServer) -> None:
    """A quote in the name of a prompt hides no link of a trace."""
    client = MlflowClient(server.url)
    name = "it's one"
    registry = RegistryStore(partial(MlflowHostCreds, server.url))
    registry.create_registered_model(name)
    registry.create_model_version(name, "s3://elsewhere/a")
    client.set_model_version_tag(name, "1", "mlflow.prompt.is_prompt", "true")
    path = server.backend_store_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        ((trace_id,),) = connection.execute("SELECT MIN(request_id) FROM trace_info").fetchall()
        row = ("a-quote", "trace", trace_id, "prompt_version", f"{name}/1", 1)
        connection.execute(
            "INSERT INTO entity_associations (association_id, source_type, source_id, destination_type, destination_id,"
            " created_time) VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        connection.commit()
    with closing(RestSource(server.url)) as source:
        linked = {one.trace_id: one.prompts for one in records(source, "trace") if isinstance(one, Trace)}
    assert (name, "1") in {(link.name, link.version) for link in linked[trace_id]}


@pytest.mark.slow
def test_label_schemas_that_cannot_be_listed_are_noted(server: MlflowServer) -> None:
    """A label schema of an experiment whose schemas nobody ever listed is not found, which the source says."""
    experiment = MlflowClient(server.url).create_experiment("never opened")
    store = RestStore(partial(MlflowHostCreds, server.url))
    store.create_label_schema(experiment, name="hidden", type="feedback", input=InputText())
    with closing(RestSource(server.url)) as source, closing(DatabaseSource(server.backend_store_uri)) as database:
        shown, there = (
            {one.name for one in records(some, "label_schema") if isinstance(one, LabelSchema)} for some in (source, database)
        )
        assert "hidden" in there - shown
        assert [note for note in source.notes() if "label schemas of" in note]
        assert not database.notes()


@pytest.mark.slow
def test_histories_that_were_purged_are_noted(server: MlflowServer) -> None:
    """A metric that a server shows with a last value and no history is told: an archive holds histories."""
    client = MlflowClient(server.url)
    runs = [client.create_run("0").info.run_id for _ in range(3)]
    for run in runs:
        client.log_metric(run, "kept", 1.0)
        client.log_metric(run, "purged", 1.0)
    execute(server.backend_store_uri, f"DELETE FROM metrics WHERE run_uuid = '{runs[1]}' AND key = 'purged'")
    with closing(RestSource(server.url)) as source:
        assert sum(table.num_rows for table in source.metrics(runs)) == 5
        assert [note for note in source.notes() if "1 metrics" in note and runs[1] in note and "'purged'" in note]
    execute(server.backend_store_uri, f"DELETE FROM latest_metrics WHERE run_uuid = '{runs[1]}' AND key = 'purged'")


@pytest.mark.slow
def test_archived_spans_whose_file_is_gone_are_a_problem_of_a_server(server: MlflowServer, archived: tuple[str, Path]) -> None:
    """A server answers for such a trace that there are no spans; the trace had some."""
    lost, *_ = sorted(archived[1].rglob("traces.pb"))
    hidden = lost.rename(lost.with_name("elsewhere"))
    try:
        with closing(RestSource(server.url)) as source:
            found = spans(source)
            assert [problem.id for problem in source.problems()] == [lost.parts[-3]]
        assert found
    finally:
        hidden.rename(lost)


@pytest.mark.slow
def test_unknown_judgements_of_a_server_are_problems(server: MlflowServer) -> None:
    """What a newer server may answer becomes a problem of the trace, and everything else is read."""
    with altered(server, lambda content: content.replace(b'"feedback":', b'"novelty":')) as source:
        traces = records(source, "trace")
        assert traces
        assert {problem.code for problem in source.problems()} == {"assessment-unknown"}


@pytest.mark.slow
def test_models_that_vanish_meanwhile_are_problems(server: MlflowServer) -> None:
    """A logged model that is purged between its record and its metrics is told."""
    store = RestStore(partial(MlflowHostCreds, server.url))
    model = store.create_logged_model("0", "short-lived").model_id
    with closing(RestSource(server.url)) as source:
        assert model in {getattr(one, "model_id", "") for one in records(source, "logged_model")}
        execute(server.backend_store_uri, f"DELETE FROM logged_models WHERE model_id = '{model}'")
        list(source.rows("model_metrics/1", [model]))
        assert [problem.id for problem in source.problems()] == [model]


@pytest.mark.slow
def test_inputs_of_deleted_models_are_named_as_absent(start_server: ServerFactory) -> None:
    """Where all logged models are deleted, no search tells what runs read: the source says so."""
    server = start_server()
    store = RestStore(partial(MlflowHostCreds, server.url))
    run = MlflowClient(server.url).create_run("0").info.run_id
    model = store.create_logged_model("0", "gone").model_id
    store.log_inputs(run, models=[LoggedModelInput(model)])
    absent = "run.model_inputs_of_deleted_models"
    for deleted in (False, True):
        with closing(RestSource(server.url)) as source:
            (found,) = source.runs_by_id([run])
            listed = [one for batch in source.runs(RunQuery()) for one in batch if one.run_id == run]
            assert (found.model_inputs == listed[0].model_inputs) is not deleted
            assert (absent in source.description.absent) is deleted
        if not deleted:
            store.delete_logged_model(model)
