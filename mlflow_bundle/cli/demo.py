"""``mlflow-bundle demo``: a small real training history, packed, verified, queried, restored, and compared."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle.cli._demo_scripts import ASK, QUERY, TRAIN
from mlflow_bundle.cli._options import common, pass_state
from mlflow_bundle.cli._output import State, clean, plain, put
from mlflow_bundle.errors import BundleError, UsageError

__all__ = ["demo"]

_COMMAND: Final = "mlflow-bundle"
#: What every shell has, for systems whose shell is another.
_SHELL: Final = {
    "cat": "import sys; sys.stdout.write(open(sys.argv[1], encoding='utf-8').read())",
    "mkdir": "import os, sys; os.mkdir(sys.argv[1])",
}
_FIRST: Final = (
    ("Train a model with four learning rates, and log it to MLflow.", "python train.py"),
    (
        "Pack everything that the database and its artifact folder hold.",
        f"{_COMMAND} pack churn.mlbundle --tracking-uri sqlite:///training.db",
    ),
    ("Prove that every byte is there.", f"{_COMMAND} verify churn.mlbundle"),
    ("Look inside, without MLflow.", f"{_COMMAND} ls -l churn.mlbundle churn"),
    ("", f"{_COMMAND} show churn.mlbundle churn/rate-1.0"),
    ("", f"{_COMMAND} cat churn.mlbundle churn/rate-1.0/artifacts/model/weights.json"),
    ("Ask questions with pandas.", "cat query.py"),
    ("", "python query.py"),
)
_DUCKDB: Final = (
    ("Or with DuckDB alone: an archive is plain Parquet, Zstandard and ZIP.", "cat ask.py"),
    ("", "python ask.py"),
)
_LAST: Final = (
    ("Restore into a second database.", "mkdir restored"),
    ("", f"{_COMMAND} unpack churn.mlbundle --tracking-uri sqlite:///restored/mlflow.db"),
    ("Pack that one too, to compare.", f"{_COMMAND} pack again.mlbundle --tracking-uri sqlite:///restored/mlflow.db"),
)


@dataclass(slots=True)
class _Step:
    """One command, as it was run and what it said."""

    command: str
    exit_code: int = 0
    seconds: float = 0.0
    output: str = ""


@dataclass(slots=True)
class _Demo:
    """The folder of the demo and the steps so far."""

    folder: Path
    state: State
    steps: list[_Step] = field(default_factory=list)

    def tell(self, line: str = "") -> None:
        """A line for people; with ``--json`` nothing."""
        if not self.state.json:
            put(line)

    def run(self, title: str, command: str) -> None:
        """Run one command and show it with its output.

        Raises:
            BundleError: it failed.
        """
        if title:
            self.tell(f"\n# {title}")
        self.tell(f"$ {command}")
        sys.stdout.flush()
        started = time.monotonic()
        done = subprocess.run(  # noqa: S603 - our own commands, no shell
            _arguments(command.split()),
            cwd=self.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        self.steps.append(_Step(command, done.returncode, round(time.monotonic() - started, 3), done.stdout))
        for line in done.stdout.splitlines():
            self.tell(clean(line))
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
            raise BundleError(
                f"`{command}` ended with {done.returncode}: {last}", code="demo-step", hint=f"look into {self.folder}"
            )


@click.command()
@click.argument("folder", metavar="[DIR]", default=None, required=False, type=click.Path(path_type=Path, file_okay=False))
@common
@pass_state
def demo(state: State, folder: Path | None) -> int:
    """Train, pack, verify, query, restore and compare: a tour of the whole.

    It works in DIR, which must be new or empty, or in a temporary folder, which stays. Each step is shown with the command
    behind it.
    """
    tour = _Demo(_prepared(folder), state)
    tour.tell(f"$ cd {tour.folder}")
    for title, command in _commands():
        tour.run(title, command)
    first, second = (_logical_root(tour.folder / name) for name in ("churn.mlbundle", "again.mlbundle"))
    equal = first == second
    if state.json:
        state.put({"folder": str(tour.folder), "steps": plain(tour.steps), "logical_roots": [first, second], "equal": equal})
        return 0 if equal else 1
    for line in _end(tour.folder, first, second):
        put(line)
    return 0 if equal else 1


def _commands() -> Iterator[tuple[str, str]]:
    yield from _FIRST
    if importlib.util.find_spec("duckdb"):
        yield from _DUCKDB
    yield from _LAST


def _prepared(folder: Path | None) -> Path:
    """The folder with the scripts in it.

    Raises:
        UsageError: it holds something.
    """
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="mlflow-bundle-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="name a new folder, or none")
    for name, text in (("train.py", TRAIN), ("query.py", QUERY), ("ask.py", ASK)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder.resolve()


def _arguments(words: Sequence[str]) -> list[str]:
    """The same program in this Python, wherever its scripts are installed."""
    program, rest = words[0], list(words[1:])
    if program == _COMMAND:
        return [sys.executable, "-m", "mlflow_bundle", *rest]
    if program in _SHELL:
        return [sys.executable, "-c", _SHELL[program], *rest]
    return [sys.executable, *rest]


def _environment() -> dict[str, str]:
    """The environment without the user's settings of MLflow, and with this very package."""
    kept: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, kept.get("PYTHONPATH"))))
    quiet = {"MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
    return {**kept, **quiet, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


def _logical_root(bundle: Path) -> str:
    with open_bundle(bundle) as archive:
        return archive.snapshot.logical.root


def _end(folder: Path, first: str, second: str) -> Iterator[str]:
    """The comparison, where things are, and what to try."""
    yield "\n# What was restored is what was packed, if both have one logical root."
    yield f"churn.mlbundle  {first}"
    yield f"again.mlbundle  {second}"
    yield "They are the same." if first == second else "THEY DIFFER: please report this."
    yield f"\nEverything is in {folder}. Try there:"
    for line in (
        f"{_COMMAND} show churn.mlbundle",
        f"{_COMMAND} pack churn.mlbundle --tracking-uri sqlite:///training.db   # nothing new to write",
        f"{_COMMAND} pack churn.mlbundle.zip --tracking-uri sqlite:///training.db   # in one file",
        "mlflow server --backend-store-uri sqlite:///restored/mlflow.db   # the restored runs in the UI",
    ):
        yield f"  {line}"
