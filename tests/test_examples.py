"""The examples do what they say, on real data: each is run as a user would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

import mlflow_bundle as bundle
from tests.fixtures.s3 import Bucket

EXAMPLES = Path(__file__).parent.parent / "examples"
FIXTURES = EXAMPLES.parent / "spec" / "v1" / "fixtures" / "good"
START = 1_700_000_000_000


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A database with an experiment of three runs and a logged scikit-learn model, and an archive of it."""
    home = tmp_path_factory.mktemp("examples")
    script = f"""
import mlflow, numpy
from sklearn.linear_model import LinearRegression
mlflow.set_tracking_uri("sqlite:///{home}/mlflow.db")
mlflow.create_experiment("churn", artifact_location="{home}/artifacts")
mlflow.set_experiment("churn")
with mlflow.start_run(run_name="model"):
    model = LinearRegression().fit(numpy.array([[0.0], [1.0]]), numpy.array([1.0, 3.0]))
    mlflow.sklearn.log_model(model, name="line", registered_model_name="line")
"""
    subprocess.run([sys.executable, "-c", script], cwd=home, check=True, capture_output=True)
    uri = f"sqlite:///{home}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("churn").experiment_id
    for depth in range(3):
        run = client.create_run(experiment, run_name=f"depth {depth}", start_time=START + depth).info.run_id
        losses = [Metric("loss", 1 / (step + 1 + depth), START + step, step) for step in range(10)]
        client.log_batch(run, [*losses, Metric("accuracy", 0.5 + depth / 10, START, 0)], [Param("depth", str(depth))])
        client.set_terminated(run)
    bundle.pack(None, home / "churn.mlbundle.zip", tracking_uri=uri)
    return uri, home / "churn.mlbundle.zip"


def example(name: str, *words: str, cwd: Path, **environment: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed_and_run() -> None:
    """The README of the examples names each of them, and each has a test here."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"\]\(([a-z_]+\.py)\)", (EXAMPLES / "README.md").read_text("utf-8"))) == names
    assert set(re.findall(r'example\(\s*"([a-z_]+\.py)"', Path(__file__).read_text("utf-8"))) == names


@pytest.mark.slow
def test_nightly_backup(churn: tuple[str, Path], s3_bucket: Bucket, tmp_path: Path) -> None:
    """Two nights make two snapshots in a bucket, the second without anything new; damage ends with another code."""
    options = s3_bucket.storage_options
    environment = {
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_ENDPOINT_URL": options["endpoint_url"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    place = f"s3://{s3_bucket.name}/backups"
    first = example("nightly_backup.py", churn[0], place, cwd=tmp_path, **environment)
    second = example("nightly_backup.py", churn[0], place, cwd=tmp_path, **environment)
    assert ": 4 runs, " in first
    assert ", 0 new bytes, " in second
    with bundle.open(place, storage_options=options) as archive:
        assert len(archive.snapshots()) == 2
        assert archive.root_digest in second
    local = tmp_path / "local"
    example("nightly_backup.py", churn[0], str(local), cwd=tmp_path)
    series = max((local / "objects" / "metrics").iterdir(), key=lambda path: path.stat().st_size)
    series.write_bytes(series.read_bytes()[:-1] + b"?")
    with pytest.raises(AssertionError, match="does not have the SHA-256 of its name"):
        example("nightly_backup.py", churn[0], str(local), cwd=tmp_path)


@pytest.mark.slow
def test_hand_over(churn: tuple[str, Path], tmp_path: Path) -> None:
    """A ZIP file that verifies and holds the experiment only, and a page."""
    printed = example("hand_over.py", churn[0], "churn", cwd=tmp_path)
    assert bundle.verify(tmp_path / "churn.mlbundle.zip").ok
    with bundle.open(tmp_path / "churn.mlbundle.zip") as archive:
        assert archive.root_digest in printed
        assert archive.experiments().column("name").to_pylist() == ["churn"]
    assert "depth 2" in (tmp_path / "churn.html").read_text("utf-8")


@pytest.mark.slow
def test_ask_with_duckdb(churn: tuple[str, Path], tmp_path: Path) -> None:
    """The best runs in order, and a mean by a param."""
    lines = example("ask_with_duckdb.py", str(churn[1]), cwd=tmp_path).splitlines()
    best = [line.split() for line in lines if line.startswith(" ") and "churn" in line]
    assert [row[-1] for row in best] == ["0.7", "0.6", "0.5"]
    assert any("mean_accuracy" in line for line in lines)


@pytest.mark.slow
def test_ask_with_pandas(churn: tuple[str, Path], tmp_path: Path) -> None:
    """The runs with their params as columns, and a series."""
    printed = example("ask_with_pandas.py", str(churn[1]), cwd=tmp_path)
    assert "params.depth" in printed
    assert "count" in printed


@pytest.mark.slow
def test_load_model(churn: tuple[str, Path], tmp_path: Path) -> None:
    """MLflow loads a model out of the ZIP file."""
    printed = example("load_model.py", str(churn[1]), cwd=tmp_path)
    assert "line m-" in printed
    assert "mlflow.pyfunc.loaded_model" in printed


@pytest.mark.slow
def test_open_in_the_ui(churn: tuple[str, Path], tmp_path: Path) -> None:
    """The stock server shows the archived experiments and runs; nothing is left running."""
    printed = example("open_in_the_ui.py", str(churn[1]), cwd=tmp_path, MLFLOW_BUNDLE_CACHE=str(tmp_path / "cache"))
    assert printed.startswith("open http://127.0.0.1:")
    assert "1 churn 4" in printed


@pytest.mark.parametrize(
    ("name", "words", "code", "sentence"),
    [
        ("ask_with_duckdb.py", ["nowhere"], 1, "there is no bundle at nowhere"),
        ("ask_with_pandas.py", ["nowhere"], 1, "there is no bundle at nowhere"),
        ("load_model.py", ["nowhere"], 1, "there is no bundle at nowhere"),
        ("open_in_the_ui.py", ["nowhere"], 10, "there is no bundle at nowhere"),
        ("hand_over.py", ["sqlite:///nothing.db", "churn"], 1, "there is no database file 'nothing.db'"),
        ("nightly_backup.py", ["sqlite:///nothing.db", "b"], 1, "there is no database file 'nothing.db'"),
        ("load_model.py", [str(FIXTURES / "minimal")], 1, "has no logged model"),
        ("ask_with_pandas.py", [str(FIXTURES / "empty")], 1, "has no runs"),
        ("ask_with_pandas.py", [], 1, "Data frames out of an archive: "),
        ("hand_over.py", ["sqlite:///nothing.db"], 1, "Give one experiment to a colleague: "),
        ("nightly_backup.py", ["a", "b", "c"], 1, "Back up a tracking server every night"),
        ("open_in_the_ui.py", ["a", "b"], 1, "Open an archive in the stock MLflow UI"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    name: str, words: list[str], code: int, sentence: str, tmp_path: Path
) -> None:
    """A wrong path or number of arguments ends every example with a sentence and an exit code, without a traceback."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
