"""Everything that an MLflow can hold, archived, and opened by ``mlflow-bundle serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlflow_bundle
from tests.fixtures.estate import Estate

START_SECONDS = 300


@dataclass(frozen=True)
class Served:
    """A served archive: its URL, its database as a tracking URI, the bundle, the cache folder, and whether something in that
    was damaged."""

    url: str
    tracking_uri: str
    bundle: str
    cache: Path
    damaged: bool


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The environment of a user without settings, with a cache folder of the tests, in which MLflow sees no test."""
    known = ("MLFLOW_", "_MLFLOW_", "PYTEST_", "CI", "GITHUB_ACTIONS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(known)}
    return {**clean, "MLFLOW_BUNDLE_CACHE": str(cache), "GIT_PYTHON_REFRESH": "quiet", **more}


@contextlib.contextmanager
def serving(bundle: str, cache: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """``mlflow-bundle serve`` on a free port, until the block ends; it must end by itself when it is interrupted, and leave
    nothing in its working folder."""
    command = [sys.executable, "-m", "mlflow_bundle", "serve", bundle, "--port", "0", "--no-open", "--json", *options]
    log = cache.parent / f"{cache.name}.log"
    cache.parent.mkdir(parents=True, exist_ok=True)
    here = Path(tempfile.mkdtemp(prefix="here-", dir=cache.parent))
    with log.open("wb") as talk:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=talk,
            stdin=subprocess.DEVNULL,
            env=environment(cache, **(env or {})),
            cwd=here,
        )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.rstrip() == b"}":
                break
        assert lines, f"it did not start:\n{log.read_text()}"
        told = json.loads(b"".join(lines))
        yield Served(told["url"], told["tracking_uri"], bundle, cache, told["damaged"])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, log.read_text()
        assert list(here.iterdir()) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def estate_bundle(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The archive of everything."""
    bundle = tmp_path_factory.mktemp("served") / "estate.mlbundle"
    mlflow_bundle.pack(None, bundle, tracking_uri=estate.uri)
    return str(bundle)


@pytest.fixture(scope="session")
def served(estate_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """That archive, served."""
    with serving(estate_bundle, tmp_path_factory.mktemp("cache") / "cache") as running:
        yield running
