"""A small real database with names that are hard to show, and the archive of it that the commands read."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

import mlflow_bundle
from mlflow_bundle import cli

START = 1_700_000_000_000
EVIL = "evil \x1b[31mred\x1b[0m \u202etxt.exe\u2066 \x9b2J"
PROJECT = Path(mlflow_bundle.__file__).parents[1]


@dataclass(frozen=True)
class Archived:
    """A database, its archive, and the ids of its runs by name."""

    uri: str
    bundle: str
    runs: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said where."""

    code: int
    out: str
    err: str
    raw: bytes = b""


if sys.platform != "win32":
    import fcntl
    import termios

Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Archived:
    """The database and its archive. Nobody may change either."""
    home = tmp_path_factory.mktemp("cli")
    uri = f"sqlite:///{home}/mlflow.db"
    with contextlib.chdir(home):
        runs = _content(uri, home / "artifacts")
    bundle = str(home / "archive.mlbundle")
    mlflow_bundle.pack(None, bundle, tracking_uri=uri)
    return Archived(uri, bundle, runs)


def _content(uri: str, artifacts: Path) -> dict[str, str]:
    client = MlflowClient(uri)
    runs: dict[str, str] = {}

    def experiment(name: str) -> str:
        made: str = client.create_experiment(name, artifact_location=str(artifacts / str(len(runs))))
        return made

    def run(where: str, name: str, parent: str | None = None) -> str:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        made: str = client.create_run(where, start_time=START + 1000 * len(runs), run_name=name, tags=tags).info.run_id
        runs[name] = made
        client.log_batch(
            made,
            metrics=[Metric("loss", 1 / (step + 1), START + step, step) for step in range(10)],
            params=[Param("rate", "0.1")],
            tags=[RunTag("note", "two\nlines \x1b[1m")],
        )
        client.set_terminated(made, "FINISHED", START + 5000)
        return made

    churn = experiment("churn")
    parent = run(churn, "parent")
    run(churn, "child", parent)
    client.log_metric(parent, "not a number", float("nan"), START, 3)
    client.log_text(parent, "weights", "model/weights.txt")
    client.log_text(parent, "deeper", "model/deep er/größe.txt")
    client.log_text(parent, "plain", "plain.txt")
    folder = Path(client.get_run(parent).info.artifact_uri)
    (folder / "odd\n\x1b[2J.txt").write_text("odd")
    run(churn, "twice")
    client.update_run(run(churn, "twice again"), name="twice")
    run(experiment("a"), "b/c")
    run(experiment("a/b"), "c/d")
    run(experiment(EVIL), EVIL)
    gone = experiment("gone")
    run(gone, "in deleted")
    client.delete_experiment(gone)
    return runs


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``mlflow-bundle`` in this process."""
    for name in ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str | Path) -> Outcome:
        capsysbinary.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Outcome(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), out)

    return run


def popen(arguments: Sequence[str | Path], **options: object) -> subprocess.Popen[bytes]:
    """Start ``mlflow-bundle`` as a process of its own."""
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**clean, "PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    words = [sys.executable, "-m", "mlflow_bundle", *map(str, arguments)]
    return subprocess.Popen(words, **{"env": environment, "stdin": subprocess.DEVNULL, **options})  # type: ignore[call-overload]


def process(*arguments: str | Path, **options: object) -> Outcome:
    """Run ``mlflow-bundle`` as a process of its own, without a terminal."""
    running = popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    out, err = running.communicate(timeout=300)
    return Outcome(running.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), out)


def in_terminal(words: Sequence[str | Path], stream: str, *, columns: int = 80, **options: object) -> str:
    """What a command shows on a terminal that is its stdout or stderr."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    running = popen(words, **{stream: theirs, **options})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other side is closed
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert running.wait(timeout=60) == 0
    return shown.decode().replace("\r\n", "\n")
