"""Model versions in databases: files of their own, outside of runs and logged models, and numbers beyond all use."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

import mlflow_bundle as bundle
from mlflow_bundle.errors import CannotHoldError

pytestmark = pytest.mark.slow


def test_the_place_of_the_source_is_left_alone(empty_database_file: Path, tmp_path: Path) -> None:
    """What lies there now is somebody's; the files of the archive go below the target's artifact root, and a second restore
    finds them there."""
    for name in ("source.db", "target.db"):
        (tmp_path / name).write_bytes(empty_database_file.read_bytes())
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "weights.bin").write_bytes(b"archived")
    source, target = (f"sqlite:///{tmp_path / name}" for name in ("source.db", "target.db"))
    client = mlflow.MlflowClient(source, source)
    for name in ("by hand", "by-hand", "by%hand"):
        client.create_registered_model(name)
        client.create_model_version(name, str(exported))
    assert bundle.pack(bundle=tmp_path / "b", tracking_uri=source).counts["file"] == 3
    (exported / "weights.bin").write_bytes(b"newer")

    for merged in (False, True):
        report = bundle.unpack(tmp_path / "b", tracking_uri=target, artifact_root=tmp_path / "root")
        assert report.problems == ()
        (outcome,) = (one for one in report.entities if one.kind == "model_version")
        assert (outcome.restored, outcome.there) == ((0, 3) if merged else (3, 0))
    assert (exported / "weights.bin").read_bytes() == b"newer"
    reader = mlflow.MlflowClient(target, target)
    places = {reader.get_model_version_download_uri(name, "1") for name in ("by hand", "by-hand", "by%hand")}
    assert len(places) == 3
    for place in places:
        assert (tmp_path / "root").resolve() in Path(place).resolve().parents
        assert (Path(place) / "weights.bin").read_bytes() == b"archived"


def test_numbers_that_postgresql_cannot_hold(
    empty_database_file: Path, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """A version beyond 32 bits is told before the first write, and left out where that is allowed."""
    (tmp_path / "source.db").write_bytes(empty_database_file.read_bytes())
    source, target = f"sqlite:///{tmp_path / 'source.db'}", postgres_database()
    client = mlflow.MlflowClient(source, source)
    client.create_registered_model("m")
    for _ in range(2):
        client.create_model_version("m", "somewhere")
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection:
        connection.execute("UPDATE model_versions SET version = 3000000000 WHERE version = 2")
        connection.commit()
    mlflow.MlflowClient(target, target).search_experiments()  # makes the tables
    bundle.pack(bundle=tmp_path / "b", tracking_uri=source)
    with pytest.raises(CannotHoldError, match="3,000,000,000"):
        bundle.unpack(tmp_path / "b", tracking_uri=target, artifact_root=tmp_path / "root")
    report = bundle.unpack(tmp_path / "b", tracking_uri=target, artifact_root=tmp_path / "root", allow_partial=True)
    (outcome,) = (one for one in report.entities if one.kind == "model_version")
    assert (outcome.restored, outcome.left_out) == (1, 1)
    assert [problem.id for problem in report.problems] == ["m/3000000000"]
