"""A bundle of a source that is written to meanwhile: every reference in it resolves, or is told, and it verifies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mlflow_bundle as bundle
from mlflow_bundle.errors import IncompleteError
from mlflow_bundle.kinds import KINDS, record_id
from tests.fixtures.server import ServerFactory

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "fixtures" / "writer_script.py"


@contextmanager
def written_to(uri: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process writes to this MLflow, has done so for a while, and goes on."""
    environment = {**os.environ, "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    with (folder / "writer.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), uri], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n", (folder / "writer.log").read_text()
            yield process
            assert process.poll() is None, (folder / "writer.log").read_text()
        finally:
            process.kill()
            process.wait()


def check(place: Path, report: bundle.PackReport, may_lack: set[str]) -> dict[str, int]:
    """Every record that is named is there, or, of some kinds, a note tells how many are not. Returns the counts of kinds."""
    assert (report.state, report.problems) == ("complete", ())
    assert bundle.verify(place).problems == ()
    with bundle.open(place) as archive:
        there = {kind: {record_id(record) for record in archive.records(kind)} for kind in archive.kinds()}
        named: dict[str, set[str]] = {}
        for kind in archive.kinds():
            for record in archive.records(kind):
                for other, identity in KINDS[kind].references(record):
                    named.setdefault(other, set()).add(identity)
        dangling = {kind: len(ids - there.get(kind, set())) for kind, ids in named.items() if ids - there.get(kind, set())}
        for kind, count in dangling.items():
            assert any(note.startswith(f"{count:,} {kind.replace('_', ' ')} ids") for note in report.notes), (
                kind,
                report.notes,
            )
        assert dangling.keys() <= may_lack
        spans = archive.rows("spans/1", sorted(there["trace"]))
        assert sum(table.num_rows for table in spans) >= len(there["trace"])
        return {kind: len(ids) for kind, ids in there.items()}


def packed(place: Path, uri: str) -> bundle.PackReport:
    """A pack. One during which a trace went whose record it had read already commits nothing and says so: then once more."""
    try:
        return bundle.pack(bundle=place, tracking_uri=uri)
    except IncompleteError as error:
        if not all(f"Trace with ID {problem.id} is not found" in problem.message for problem in error.problems):
            raise
    return bundle.pack(bundle=place, tracking_uri=uri)


def rounds(uri: str, folder: Path, *, may_lack: Collection[str] = ("trace",), least: int = 3, most: int = 40) -> None:
    """Pack again and again into one bundle while it is written, and check each snapshot, until some show what was written.

    What is only marked as deleted is in the bundle, so that a trace alone can be gone."""
    seen: list[dict[str, int]] = []
    with written_to(uri, folder):
        while len(seen) < most and (len(seen) < least or seen[-1]["run"] == seen[0]["run"]):
            report = packed(folder / "b", uri)
            seen.append(check(folder / "b", report, set(may_lack)))
    assert all(count["run"] >= 9 and count["trace"] >= 4 for count in seen)
    assert seen[-1]["run"] > seen[0]["run"], "nothing was written meanwhile"


def test_a_server_that_is_written_to(start_server: ServerFactory, tmp_path: Path) -> None:
    """Through REST, which has no transactions, no reference leads out of the snapshot untold. A server reads what a run names
    after it has listed the runs, so that a model can name a run that began in between."""
    rounds(start_server().url, tmp_path, may_lack=("trace", "run"))


def test_a_postgresql_that_is_written_to(postgres_database: Callable[[], str], tmp_path: Path) -> None:
    """A PostgreSQL database is read in one transaction, and writers do not wait."""
    rounds(postgres_database(), tmp_path)


def test_a_sqlite_that_is_written_to(empty_mlflow: str, tmp_path: Path) -> None:
    """A SQLite database is read in one transaction; a writer waits for it at most."""
    rounds(empty_mlflow, tmp_path)
