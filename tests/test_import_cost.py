"""Reading an archive loads neither MLflow nor anything else that takes seconds or hundreds of megabytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_bundle._storage import open_storage
from tests.building import content_of, pack_content

#: What packing or a user's analysis needs, and reading does not.
HEAVY = [
    "mlflow",
    "duckdb",
    "sqlalchemy",
    "alembic",
    "boto3",
    "botocore",
    "s3fs",
    "adbc_driver_manager",
    "click",
    "rich",
    "google",
]

READ = """
import json, sys
import mlflow_bundle as bundle
archive = bundle.open(sys.argv[1])
archive.experiments(), archive.params(), archive.tags(), archive.runs(wide=True), archive.latest_metrics(), archive.snapshots()
run = archive.runs()["run_id"][0].as_py()
archive.run(run), archive.metrics(run_id=run), archive.metrics(), archive.files()
with archive.open_file(run, "f0.txt") as stream:
    stream.read()
"""
LOADED = "\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded_by(script: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded at the end of a script."""
    done = subprocess.run([sys.executable, "-c", script + LOADED, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    with open_storage(tmp_path / "bundle", create=True) as storage:
        pack_content(storage, content_of(5))
    return str(tmp_path / "bundle")


def test_opening_is_light(folder: str) -> None:
    """``import mlflow_bundle`` and opening a local bundle load none of the heavy packages."""
    script = "import json, sys\nimport mlflow_bundle as bundle\nbundle.open(sys.argv[1]).snapshot.counts"
    assert loaded_by(script, folder).isdisjoint({*HEAVY, "pandas"})


def test_reading_is_light(folder: str) -> None:
    """Reading everything in it loads none of them either; but pyarrow itself loads pandas where that is installed."""
    assert loaded_by(READ, folder).isdisjoint(HEAVY)


def test_verifying_is_light(folder: str) -> None:
    """Neither does verifying it to the last byte."""
    script = "import json, sys\nimport mlflow_bundle as bundle\nassert not bundle.verify(sys.argv[1]).problems"
    assert loaded_by(script, folder).isdisjoint(HEAVY)
