"""``mlflow-bundle serve``: the stock server answers of an archive what it answered of the source, and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from fsspec.callbacks import DEFAULT_CALLBACK
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import mlflow_bundle
from mlflow_bundle.errors import StorageError, UsageError
from mlflow_bundle.tracking.database import _schema
from mlflow_bundle.tracking.database._revision import head_revision
from mlflow_bundle.tracking.serve import Metadata, _fill, _server, listening, metadata_of
from tests.fixtures.answers import differences, every_answer
from tests.fixtures.estate import Estate
from tests.fixtures.server import MlflowServer
from tests.serve.conftest import Served, environment, serving

#: What an archive says otherwise, and why.
EXPECTED = (
    r"\.(artifact_uri|artifactUri|artifact_location|artifactLocation|root_uri|rootUri|storage_location)$",  # in the bundle
    r"mlflow\.artifactLocation",
    r"/webhooks.*\.(status|url)$",  # disabled, and without the password in the URL
    r"model_definition.*\.secret_(id|name)$",  # secrets are never archived
    r"gateway/secrets",
    r"model-definitions/list \| \.model_definitions\[[sd]-1\]",
    r"label-schemas/.*",  # the default question is made by whoever is asked first, with a time and an id of its own
)
#: Everything that asks with another method than GET.
QUESTIONS = {
    "experiments/search",
    "experiments/search-datasets",
    "runs/search",
    "logged-models/search",
    "registered-models/get-latest-versions",
    "datasets/search",
    "issues/search",
    "prompt-optimization/jobs/search",
    "traces/batchGetInfos",
    "traces/calculate-filter-correlation",
    "traces/metrics",
    "traces/search",
    "ui-telemetry",
    "/graphql",
}


def ask(url: str, method: str, path: str, body: object = None) -> tuple[int, str]:
    """Status and text of an answer."""
    data = json.dumps(body or {}).encode() if method != "GET" else None
    request = urllib.request.Request(url + path, data=data, method=method, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_every_answer_is_that_of_the_source(served: Served, estate_server: MlflowServer) -> None:
    """Every read endpoint, asked about every entity, answers as the source server does; locations and secrets apart."""
    ours, theirs = every_answer(served.url), every_answer(estate_server.url)
    assert len(theirs) > 200
    assert differences(theirs, ours, ignore=EXPECTED) == []
    assert [request for request, answer in ours.items() if "readonly database" in str(answer)] == []


@pytest.mark.slow
def test_questions_of_reviewers(served: Served, estate: Estate) -> None:
    """The archived questions are listed, and for experiments without one MLflow's own default, which it makes when asked."""
    with sqlite3.connect(f"file:{estate.folder}/mlflow.db?mode=ro", uri=True) as connection:
        archived = {row[0] for row in connection.execute("SELECT schema_id FROM label_schemas WHERE is_default = 0")}
    found = set()
    for experiment in (estate.models, estate.traces, "0"):
        status, text = ask(served.url, "GET", f"/api/3.0/mlflow/label-schemas/list?experiment_id={experiment}&max_results=100")
        assert status == 200
        schemas = json.loads(text)["label_schemas"]
        assert any(schema["is_default"] for schema in schemas)
        found |= {schema["schema_id"] for schema in schemas if not schema["is_default"]}
    assert found == archived


@pytest.mark.slow
def test_every_write_is_refused(served: Served) -> None:
    """Each route of MLflow's server that is no question is answered 403, with a sentence in the form of MLflow's errors."""
    from mlflow.server import app  # noqa: PLC0415 - seconds, for one test

    before = Path(served.tracking_uri.partition("file:")[2].partition("?")[0]).read_bytes()
    asked, refused = set(), 0
    for rule in app.url_map.iter_rules():
        for method in rule.methods - {"GET", "HEAD", "OPTIONS"}:
            path = str(rule)
            if any(path.endswith(question) for question in QUESTIONS):
                asked.add(next(question for question in QUESTIONS if path.endswith(question)))
                continue
            status, text = ask(served.url, method, "/".join("x" if "<" in step else step for step in path.split("/")))
            assert status == 403, (method, path, text)
            assert json.loads(text)["error_code"] == "PERMISSION_DENIED"
            assert "nothing in it can be changed" in json.loads(text)["message"]
            refused += 1
    assert refused > 100
    assert asked == QUESTIONS
    for path in (
        "/v1/traces",
        "/ajax-api/3.0/jobs/",
        "/gateway/chat/mlflow/invocations",
        "/ajax-api/3.0/mlflow/assistant/message",
    ):
        assert ask(served.url, "POST", path)[0] == 403
    assert Path(served.tracking_uri.partition("file:")[2].partition("?")[0]).read_bytes() == before


@pytest.mark.slow
def test_without_a_server(served: Served, estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client works on the file itself: runs, metrics, files, models; a write is refused by the database."""
    monkeypatch.setenv("MLFLOW_BUNDLE_CACHE", str(served.cache))
    ours, theirs = MlflowClient(served.tracking_uri), MlflowClient(estate.uri)
    run, source = ours.get_run(estate.run_id), theirs.get_run(estate.run_id)
    assert run.data.to_dictionary() == source.data.to_dictionary()
    assert ours.get_metric_history(estate.run_id, "loss") == theirs.get_metric_history(estate.run_id, "loss")
    assert [info.path for info in ours.list_artifacts(estate.run_id, "notes")] == ["notes/ü.txt"]
    fetched = Path(ours.download_artifacts(estate.run_id, "notes/ü.txt")).read_bytes()
    assert fetched == Path(source.info.artifact_uri, "notes/ü.txt").read_bytes()
    assert [v.version for v in ours.search_model_versions()] == [v.version for v in theirs.search_model_versions()]
    mlflow.set_tracking_uri(served.tracking_uri)
    try:
        assert len(mlflow.search_runs(experiment_ids=[estate.models])) == 2
    finally:
        mlflow.set_tracking_uri(None)
    with pytest.raises(MlflowException, match="readonly database"):
        ours.create_experiment("new")


@pytest.mark.slow
def test_the_database_is_made_once(estate_bundle: str, tmp_path: Path) -> None:
    """It is kept by root digest: the next time it is found, also for a copy of the bundle, whose place is then noted."""
    copy = tmp_path / "copy"
    shutil.copytree(estate_bundle, copy)
    first = metadata_of(estate_bundle, cache=tmp_path / "cache")
    again = metadata_of(estate_bundle, cache=tmp_path / "cache")
    third = metadata_of(copy, cache=tmp_path / "cache")
    with mlflow_bundle.open(copy) as archive:
        place = json.loads((tmp_path / f"cache/places/{archive.root_digest.removeprefix('sha256:')}.json").read_text())
    assert (first.made, again.made, third.made) == (True, False, False)
    assert first.path == again.path == third.path
    assert place == {"bundle": str(copy)}
    stems = {first.path.stem, f"empty-{head_revision()}"}
    kept = {path.name for path in (tmp_path / "cache/serve").iterdir()}
    assert kept == {f"{stem}.{suffix}" for stem in stems for suffix in ("db", "sha256")}


def one_experiment(folder: Path) -> Path:
    """A bundle of one experiment with a run."""
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("only", artifact_location=str(folder / "a"))
    client.log_metric(client.create_run(experiment).info.run_id, "loss", 0.5)
    mlflow_bundle.pack("only", folder / "b", tracking_uri=uri)
    return folder / "b"


def _names(metadata: Metadata) -> list[str]:
    """What MLflow reads."""
    return [experiment.name for experiment in MlflowClient(metadata.uri).search_experiments()]


def test_a_second_archive_needs_no_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's empty database is kept too, and copied for every other archive."""
    bundle = one_experiment(tmp_path)
    metadata_of(bundle, cache=tmp_path / "cache").path.unlink()
    monkeypatch.setattr(_schema, "_create_tables", None)
    again = metadata_of(bundle, cache=tmp_path / "cache")
    assert again.made
    assert _names(again) == ["only"]


def _replace_text(path: Path) -> None:
    """Another name for the experiment, of the same length; where there is none, as in the empty database, one byte less."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"only", b"0nly") if b"only" in data else data[:-1])


def _clear_pages(path: Path) -> None:
    """Nothing but zeros in the second half."""
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + bytes(path.stat().st_size - half))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another text": _replace_text,
    "empty pages": _clear_pages,
    "no checksum": lambda path: path.with_suffix(".sha256").unlink(),
    "half a checksum": lambda path: os.truncate(path.with_suffix(".sha256"), 32),
    "empty": lambda path: os.truncate(path, 0),
    "shorter": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096),
    "torn": lambda path: os.truncate(path, path.stat().st_size - 100),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(4096)),
    "another file": lambda path: path.write_text("not a database" * 1000),
    "no tables": lambda path: (path.unlink(), sqlite3.connect(path).execute("CREATE TABLE a (b)").connection.close()),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_in_the_cache_is_made_anew(damage: str, tmp_path: Path) -> None:
    """The database of an archive and the empty one; that it was damaged is told."""
    bundle = one_experiment(tmp_path)
    first = metadata_of(bundle, cache=tmp_path / "cache")
    assert not first.damaged
    for path in (tmp_path / "cache/serve").glob("*.db"):
        DAMAGES[damage](path)
    again = metadata_of(bundle, cache=tmp_path / "cache")
    assert (again.path, again.made, again.damaged) == (first.path, True, True)
    assert _names(again) == ["only"]
    assert not metadata_of(bundle, cache=tmp_path / "cache").made


@pytest.mark.slow
def test_a_damaged_database_is_not_served(tmp_path: Path) -> None:
    """The command says that it was damaged, and serves a new one."""
    bundle = one_experiment(tmp_path)
    path = metadata_of(bundle, cache=tmp_path / "cache").path
    os.truncate(path, 8192)
    with serving(str(bundle), tmp_path / "cache") as running:
        status, text = ask(running.url, "POST", "/api/2.0/mlflow/experiments/search", {"max_results": 10})
    assert status == 200
    assert [experiment["name"] for experiment in json.loads(text)["experiments"]] == ["only"]
    assert running.damaged


def _indexes(path: Path) -> dict[str, tuple[str, ...]]:
    """The columns of all indexes, after the name of their table, by name."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        named = connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index'").fetchall()
        columns = {name: connection.execute(f'PRAGMA index_info("{name}")').fetchall() for name, _ in named}
    connection.close()
    return {name: (table, *(column for _, _, column in columns[name])) for name, table in named}


@pytest.mark.parametrize("is_large", [False, True])
def test_only_large_archives_have_large_pages(is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table takes at least a page: with large ones that of a single run would take 7 MB."""
    bundle = one_experiment(tmp_path)
    metadata_of(bundle, cache=tmp_path / "cache")
    if is_large:
        monkeypatch.setattr(_fill, "_MANY", 3)
    path = shutil.copy(next((tmp_path / "cache/serve").glob("empty-*.db")), tmp_path / "new.db")
    _fill.fill(str(bundle), None, path, "mlflow-bundle://x", None, callback=DEFAULT_CALLBACK)
    assert (path.stat().st_size < 2_000_000) is not is_large
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (1,)
    connection.close()


def test_all_is_found_as_fast_as_in_mlflows_own_database(tmp_path: Path) -> None:
    """Every index of MLflow is there, but for those of metrics with which another one begins."""
    path = metadata_of(one_experiment(tmp_path), cache=tmp_path / "cache").path
    wanted, there = _indexes(path.with_name(f"empty-{head_revision()}.db")), _indexes(path)
    assert len(wanted) > 50
    assert there == {name: columns for name, columns in wanted.items() if name in there}
    for name in wanted.keys() - there.keys():
        assert wanted[name][0] in ("metrics", "latest_metrics")
        assert any(columns[: len(wanted[name])] == wanted[name] for columns in there.values())


@pytest.mark.slow
@pytest.mark.parametrize("to_serve", [False, True])
def test_a_server_is_imported_where_one_is_to_be_started(to_serve: bool, tmp_path: Path) -> None:
    """While the database is made, and not for who wants just that."""
    made = f"metadata_of({str(one_experiment(tmp_path))!r}, cache=Path({str(tmp_path / 'cache')!r}), to_serve={to_serve}).made"
    script = "import sys; from pathlib import Path; from mlflow_bundle.tracking.serve import metadata_of\n"
    script += f"print({made}, 'mlflow.server.fastapi_app' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.split() == ["True", str(to_serve)]


def test_the_working_folder_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens the database in Python finds nothing new in the working folder. (Servers: see ``serving``.)"""
    metadata = metadata_of(one_experiment(tmp_path), cache=tmp_path / "cache")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    mlflow.set_tracking_uri(metadata.uri)
    try:
        assert len(mlflow.search_runs(experiment_names=["only"])) == 1
        assert MlflowClient().search_registered_models() == []
    finally:
        mlflow.set_tracking_uri(None)
    assert list(here.iterdir()) == []


def test_an_archive_without_the_default_experiment(tmp_path: Path) -> None:
    """MLflow wants an experiment 0, and gets a deleted one where none is archived, which no list of active ones shows."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    client.create_experiment("only", artifact_location=str(tmp_path / "a"))
    mlflow_bundle.pack("only", tmp_path / "b", tracking_uri=uri)
    metadata = metadata_of(tmp_path / "b", cache=tmp_path / "cache")
    assert [experiment.name for experiment in MlflowClient(metadata.uri).search_experiments()] == ["only"]
    assert not metadata.has_workspaces


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """One sentence that names the folder, and how to name another one."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).create_experiment("only", artifact_location=str(tmp_path / "a"))
    mlflow_bundle.pack(None, tmp_path / "b", tracking_uri=uri)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written") as caught:
        metadata_of(tmp_path / "b", cache=tmp_path / "cache")
    assert "--cache" in str(caught.value.hint)


def test_port_in_use() -> None:
    """It is said before anything costly is done, with the way out."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use") as caught, listening("127.0.0.1", port):
            pass
    assert "--port 0" in str(caught.value.hint)
    with pytest.raises(UsageError, match="cannot be listened on"), listening("192.0.2.1", 0):
        pass


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not installed is named, and how to get it."""
    monkeypatch.setattr(_server, "_NEEDED", ("fastapi", "no_such_package_of_this_test"))
    with pytest.raises(UsageError, match="needs no_such_package_of_this_test") as caught, listening("127.0.0.1", 0):
        pass
    assert caught.value.hint == "pip install mlflow"


@pytest.mark.parametrize("case", ["nothing there", "newer"])
def test_what_cannot_be_served(case: str, tmp_path: Path) -> None:
    """No bundle, or one that needs a newer release: one sentence and the next step, and no traceback."""
    bundle = tmp_path / "b"
    if case == "newer":
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        MlflowClient(uri).create_experiment("only", artifact_location=str(tmp_path / "a"))
        mlflow_bundle.pack(None, bundle, tracking_uri=uri)
        marker = json.loads((bundle / "mlflow-bundle.json").read_text())
        marker["requires"] = {"read": ["of-the-future"], "write": []}
        (bundle / "mlflow-bundle.json").chmod(0o644)
        (bundle / "mlflow-bundle.json").write_text(json.dumps(marker))
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_bundle", "serve", str(bundle), "--port", "0"],
        capture_output=True,
        text=True,
        env=environment(tmp_path / "cache"),
        check=False,
    )
    assert done.returncode == (1 if case == "newer" else 10)
    assert done.stdout == ""
    first, hint = done.stderr.strip().splitlines()
    assert first.startswith("mlflow-bundle: ")
    assert hint.startswith("hint: ")
    if case == "newer":
        assert "of-the-future" in first


@pytest.mark.slow
def test_one_file_and_s3(tmp_path: Path, s3_bucket: object) -> None:
    """An archive in one ZIP file and one on S3 are served with their artifacts."""
    uri, options = f"sqlite:///{tmp_path}/mlflow.db", s3_bucket.storage_options
    client = MlflowClient(uri)
    experiment = client.create_experiment("files", artifact_location=str(tmp_path / "a"))
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "hello", "notes/größe.txt")
    zipped, remote = str(tmp_path / "b.mlbundle.zip"), f"s3://{s3_bucket.name}/b"
    mlflow_bundle.pack(None, zipped, tracking_uri=uri)
    mlflow_bundle.pack(None, remote, tracking_uri=uri, storage_options=options)
    told = [f"--storage-option={key}={json.dumps(value)}" for key, value in options.items()]
    for bundle, more in ((zipped, []), (remote, told)):
        with serving(bundle, tmp_path / "cache", *more) as running:
            path = f"/get-artifact?run_uuid={run}&path=notes/gr%C3%B6%C3%9Fe.txt"
            assert ask(running.url, "GET", path) == (200, "hello")


@pytest.mark.slow
def test_workspaces(tmp_path: Path) -> None:
    """What is in another workspace than the default one is found there."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).create_experiment("elsewhere", artifact_location=str(tmp_path / "a"))
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("INSERT INTO workspaces (name) VALUES ('team')")
        connection.execute("UPDATE experiments SET workspace = 'team' WHERE name = 'elsewhere'")
    connection.close()
    mlflow_bundle.pack(None, tmp_path / "b", tracking_uri=uri)
    with serving(str(tmp_path / "b"), tmp_path / "cache") as running:
        question = urllib.request.Request(
            f"{running.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=elsewhere",
            headers={"X-MLFLOW-WORKSPACE": "team"},
        )
        with urllib.request.urlopen(question, timeout=60) as answer:
            assert json.load(answer)["experiment"]["name"] == "elsewhere"
        assert ask(running.url, "GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=elsewhere")[0] == 404
