"""How long ``mlflow-bundle serve`` takes until it sends the page of the UI and until it answers, new and cached, against
MLflow's own server on the same database.

python -m tests.benchmarks.serve [--runs 10000] [--keys 5] [--steps 20]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlflow_bundle
from tests.benchmarks.content import Content, add_experiment, new_database
from tests.fixtures.server import free_port

__all__ = ["main"]

_TIMEOUT: Final = 600


@dataclass(frozen=True)
class _Ready:
    """Seconds from the start of a process until its server sends the page of the UI, and until it answers a search for runs."""

    page: float
    answer: float

    def __str__(self) -> str:
        return f"page {self.page:5.1f} s   answer {self.answer:5.1f} s"


def _ready(command: list[str], port: int, folder: Path, rows: int = 1) -> _Ready:
    url = f"http://127.0.0.1:{port}"
    question = urllib.request.Request(
        f"{url}/api/2.0/mlflow/runs/search",
        data=b'{"experiment_ids": ["1"], "max_results": %d}' % rows,
        headers={"content-type": "application/json"},
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    started = time.monotonic()
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=clean | settings, stdout=log, stderr=log, start_new_session=True)
    try:
        while time.monotonic() - started < _TIMEOUT and process.poll() is None:
            with suppress(OSError):
                with urllib.request.urlopen(url, timeout=60) as answer:
                    assert b"<html" in answer.read()
                page = time.monotonic() - started
                with urllib.request.urlopen(question, timeout=60) as answer:
                    assert b"run_id" in answer.read()
                return _Ready(page, time.monotonic() - started)
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
    raise RuntimeError(f"it did not start: {(folder / 'server.log').read_text()}")


def _ours(bundle: Path, cache: Path, rows: int = 1) -> _Ready:
    port = free_port()
    words = ["-m", "mlflow_bundle", "serve", str(bundle), "--port", str(port), "--no-open", "--cache", str(cache)]
    return _ready([sys.executable, *words], port, bundle.parent, rows)


def _theirs(database: Path) -> _Ready:
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{database}", "--workers", "1"]
    return _ready([sys.executable, "-m", "mlflow", "server", "--port", str(port), *store], port, database.parent)


def _forget(cache: Path) -> None:
    """Leave nothing of an archive in a cache, and MLflow's empty tables."""
    for path in (cache / "serve").glob("[0-9a-f]*-*"):
        if not path.name.startswith("empty-"):
            path.unlink()


def main() -> None:
    """Print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    content = Content("serve", given.runs, given.keys, given.steps)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        database = new_database(room / "template.db", room / "mlflow.db")
        add_experiment(database, content, artifacts=str(room / "artifacts"))
        mlflow_bundle.pack(None, room / "b", tracking_uri=f"sqlite:///{database}")
        print(f"{content}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print(f"mlflow-bundle serve, first   {_ours(room / 'b', room / 'cache')}   MLflow's tables are made too")
        _forget(room / "cache")
        print(f"mlflow-bundle serve, new     {_ours(room / 'b', room / 'cache')}   target 10 s")
        print(f"mlflow-bundle serve, cached  {_ours(room / 'b', room / 'cache')}   target 2 s; the question was asked before")
        print(f"mlflow-bundle serve, cached  {_ours(room / 'b', room / 'cache', rows=2)}   a question that nobody has asked")
        print(f"mlflow server, same database {_theirs(database)}")


if __name__ == "__main__":
    main()
