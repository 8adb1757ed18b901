"""``cat`` and ``get`` take the paths of ``mlflow-bundle://`` too."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlflow_bundle import cli
from tests.plugins.conftest import ODD_FILES, Place, Shelf


def test_cat(shelf: Shelf, local: Place, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A file of a model by version and by alias, a table, a file of a run; as bytes and as JSON."""
    said = []
    for path in (
        "models/forecaster ü/1/MLmodel",
        "models/forecaster ü/@champion/MLmodel",
        f"logged_models/{shelf.model_id}/MLmodel",
    ):
        assert cli.run(["cat", local.url, path]) == 0
        said.append(capsysbinary.readouterr().out)
    assert b"sklearn" in said[0]
    assert said[0] == said[1] == said[2]
    assert cli.run(["cat", local.url, "tables/metrics.parquet"]) == 0
    assert pq.read_table(io.BytesIO(capsysbinary.readouterr().out)).num_rows == 50
    assert cli.run(["cat", local.url, f"experiments/churn/runs/{shelf.run_id}/artifacts/ha%23sh.txt", "--json"]) == 0
    document = json.loads(capsysbinary.readouterr().out)
    assert (document["path"], document["size"], "run_id" in document) == ("ha#sh.txt", 9, False)


def test_get(shelf: Shelf, local: Place, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A version is copied as a folder, and files of a run get the names that they have in MLflow."""
    assert cli.run(["get", local.url, "models/forecaster ü/4", str(tmp_path / "own")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "own").iterdir()} == {"own.txt": "own"}
    assert cli.run(["get", local.url, f"experiments/churn/runs/{shelf.run_id}", str(tmp_path / "run")]) == 0
    for number, name in enumerate(ODD_FILES):
        assert (tmp_path / "run/artifacts" / name).read_text() == f"content {number}"
    assert cli.run(["get", local.url, "tables/runs.parquet", str(tmp_path)]) == 0
    assert pq.read_table(tmp_path / "runs.parquet").num_rows == 1
    capsysbinary.readouterr()
    assert cli.run(["get", local.url, "models/nobody", str(tmp_path / "x")]) == 1
    assert b"no experiment or run 'models'" in capsysbinary.readouterr().err


def test_cat_needs_a_file(local: Place, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A folder of the file system is no file either."""
    assert cli.run(["cat", local.url, "models/forecaster ü"]) == 2
    assert b"is not a file" in capsysbinary.readouterr().err
