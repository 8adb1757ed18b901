"""A small real database with a model, odd names and every way in which a version names its files, archived to three places."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from sklearn.linear_model import LinearRegression

import mlflow_bundle
from tests.fixtures.s3 import Bucket

START = 1_700_000_000_000
NAMES = ("churn", "a/b", "..", "%41 [x]*?.txt", "evil \x1b[31m \u202etxt::exe", "größe 日本")
ODD_FILES = ("plain.txt", "deep er/größe.txt", "100%.txt", "what?.txt", "ha#sh.txt", "[x]*.txt", "new\nline.txt", "ab::c.txt")


@dataclass(frozen=True)
class Shelf:
    """A database, and what is in it."""

    uri: str
    folder: Path
    experiments: Mapping[str, str]
    run_id: str
    model_id: str


@dataclass(frozen=True)
class Place:
    """A bundle somewhere, and the options of its file system."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """The database. Nobody may change it."""
    home = tmp_path_factory.mktemp("shelf")
    uri = f"sqlite:///{home}/mlflow.db"
    before = mlflow.get_tracking_uri()
    try:
        with contextlib.chdir(home):
            mlflow.set_tracking_uri(uri)
            return _filled(uri, home)
    finally:
        mlflow.set_tracking_uri(before)


def _filled(uri: str, home: Path) -> Shelf:
    client = MlflowClient(uri)
    ids = {name: client.create_experiment(name) for name in NAMES}
    run_id = client.create_run(ids["churn"], start_time=START, run_name="first").info.run_id
    for step in range(50):
        client.log_metric(run_id, "loss", 1 / (step + 1), START + step, step)
    client.log_param(run_id, "rate", "0.1")
    artifacts = Path(client.get_run(run_id).info.artifact_uri)
    for number, name in enumerate(ODD_FILES):
        (artifacts / name).parent.mkdir(parents=True, exist_ok=True)
        (artifacts / name).write_bytes(f"content {number}".encode())
    (artifacts / "large.bin").write_bytes(np.random.default_rng(1).bytes(6 << 20))
    (artifacts / "long.csv").write_text("x,y\n" + "1,2\n" * 50_000)
    model = LinearRegression().fit(np.arange(10.0).reshape(-1, 1), 3 * np.arange(10.0) + 1)
    with mlflow.start_run(run_id):
        logged = mlflow.sklearn.log_model(model, name="model", registered_model_name="forecaster ü")
    own = home / "elsewhere"
    own.mkdir()
    (own / "own.txt").write_text("own")
    client.create_model_version("forecaster ü", f"runs:/{run_id}/deep er", run_id)
    client.create_model_version("forecaster ü", str(artifacts / "deep er"), run_id)
    client.create_model_version("forecaster ü", str(own))
    client.set_registered_model_alias("forecaster ü", "champion", "1")
    client.set_terminated(run_id, "FINISHED", START + 5000)
    return Shelf(uri, home, ids, run_id, logged.model_id)


@pytest.fixture(scope="session")
def local(shelf: Shelf) -> Place:
    """The archive in a folder."""
    mlflow_bundle.pack(None, shelf.folder / "archive.mlbundle", tracking_uri=shelf.uri)
    return Place(str(shelf.folder / "archive.mlbundle"))


@pytest.fixture(params=["folder", "zip", "s3"])
def place(request: pytest.FixtureRequest, shelf: Shelf, local: Place, s3_bucket: Bucket) -> Place:
    """The archive in a folder, in one ZIP file, and on S3."""
    if request.param == "folder":
        return local
    if request.param == "zip":
        path = shelf.folder / "archive.mlbundle.zip"
        if not path.exists():
            mlflow_bundle.pack(None, path, tracking_uri=shelf.uri)
        return Place(str(path))
    url = f"s3://{s3_bucket.name}/archive"
    mlflow_bundle.pack(None, url, tracking_uri=shelf.uri, storage_options=s3_bucket.storage_options)
    return Place(url, s3_bucket.storage_options)
