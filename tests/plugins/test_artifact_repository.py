"""MLflow reads artifacts and loads models straight from a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

import mlflow_bundle
from mlflow_bundle.plugins import _places
from mlflow_bundle.plugins.artifact_repository import BundleArtifactRepository
from tests.plugins.conftest import ODD_FILES, Place, Shelf


def test_models_load(shelf: Shelf, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered version, an alias and a logged model load from a folder, a ZIP file and S3."""
    monkeypatch.setenv("MLFLOW_BUNDLE_STORAGE_OPTIONS", json.dumps(place.options))
    for path in ("models/forecaster ü/1", "models/forecaster ü/@champion", f"logged_models/{shelf.model_id}"):
        model = mlflow.sklearn.load_model(f"mlflow-bundle://{path}::{place.url}")
        assert model.predict(np.array([[3.0]])) == pytest.approx([10.0])


def test_model_of_a_snapshot(shelf: Shelf, local: Place) -> None:
    """A snapshot is named in the URI."""
    with mlflow_bundle.open(local.url) as archive:
        uri = f"mlflow-bundle://models/forecaster ü/1?snapshot={archive.snapshot_id}::{local.url}"
    assert mlflow.pyfunc.load_model(uri).predict(np.array([[3.0]])) == pytest.approx([10.0])


def test_served_uris(shelf: Shelf, local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a served archive says is found where the bundle was noted to be, or where the environment says that it is."""
    with mlflow_bundle.open(local.url) as archive:
        digest = archive.root_digest.removeprefix("sha256:")
    uri = f"mlflow-bundle://{digest}/{shelf.experiments['churn']}/{shelf.run_id}/artifacts"
    monkeypatch.setenv("MLFLOW_BUNDLE_CACHE", str(tmp_path))
    with pytest.raises(MlflowException, match="nobody on this machine knows"):
        list_artifacts(uri)
    _places.remember(digest, local.url, tmp_path)
    repository = get_artifact_repository(uri)
    assert isinstance(repository, BundleArtifactRepository)
    listed = {info.path: info for info in repository.list_artifacts()}
    assert {name.partition("/")[0] for name in ODD_FILES} <= listed.keys()
    assert (listed["large.bin"].file_size, listed["deep er"].is_dir) == (6 << 20, True)
    assert [info.path for info in repository.list_artifacts("deep er")] == ["deep er/größe.txt"]
    assert repository.list_artifacts("plain.txt") == repository.list_artifacts("nope") == []
    for number, name in enumerate(ODD_FILES):
        assert Path(repository.download_artifacts(name)).read_text() == f"content {number}"
    (tmp_path / "places" / f"{digest}.json").unlink()
    monkeypatch.setenv("MLFLOW_BUNDLE_LOCATION", local.url)
    assert Path(download_artifacts(f"{uri}/deep er")).joinpath("größe.txt").read_text() == "content 1"


def test_errors_and_writes(shelf: Shelf, local: Place, tmp_path: Path) -> None:
    """A missing file, a missing bundle and a write are MLflow's own errors, with a sentence."""
    root = f"experiments/churn/runs/{shelf.run_id}/artifacts"
    with pytest.raises(MlflowException, match=r"nope\.txt"):
        download_artifacts(f"mlflow-bundle://{root}/nope.txt::{local.url}")
    with pytest.raises(MlflowException, match="no bundle at"):
        download_artifacts(f"mlflow-bundle://{root}/plain.txt::{tmp_path}/nope")
    repository = get_artifact_repository(f"mlflow-bundle://{root}::{local.url}")
    (tmp_path / "x").write_text("x")
    for write in (
        lambda: repository.log_artifact(str(tmp_path / "x")),
        lambda: repository.log_artifacts(str(tmp_path)),
        lambda: repository.delete_artifacts("plain.txt"),
    ):
        with pytest.raises(MlflowException, match="read-only") as caught:
            write()
        assert caught.value.error_code == "PERMISSION_DENIED"


def test_bare_name(shelf: Shelf, local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle in the working folder is named without a folder, although MLflow cuts a URI at its last slash."""
    (tmp_path / "here.mlbundle").symlink_to(local.url)
    monkeypatch.chdir(tmp_path)
    model = mlflow.pyfunc.load_model(f"mlflow-bundle://logged_models/{shelf.model_id}::here.mlbundle")
    assert model.predict(np.array([[3.0]])) == pytest.approx([10.0])
    with pytest.raises(MlflowException, match=r"no bundle at nope\.mlbundle \("):
        mlflow.pyfunc.load_model("mlflow-bundle://models/forecaster/1::nope.mlbundle")
