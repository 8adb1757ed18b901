"""The tool that users have today, ``databricks-mlflow-export-import``, run as the commands that it installs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

__all__ = ["PEER", "Peer", "find_peer"]

PEER: Final = "databricks-mlflow-export-import==1.2.1"


class Peer:
    """The peer in its own virtual environment. Seconds are without the start of its commands, as those of ours are."""

    def __init__(self, home: Path, log: Path) -> None:
        self._bin = home / ("Scripts" if os.name == "nt" else "bin")
        self._log = log

    @cached_property
    def start(self) -> float:
        """Seconds until a command has imported everything and could begin."""
        return median(self._run("export-experiment", "--help", url="http://127.0.0.1:9") for _ in range(3))

    def export(self, url: str, experiment: str, folder: Path, *, run_ids: Sequence[str] = ()) -> float:
        """Export an experiment, or some of its runs. Returns seconds."""
        chosen = ["--run-ids", ",".join(run_ids)] if run_ids else []
        taken = self._run("export-experiment", "--experiment", experiment, "--output-dir", str(folder), *chosen, url=url)
        return taken - self.start

    def export_models(self, url: str, folder: Path) -> float:
        """Export all registered models with their versions and the runs of these. Returns seconds."""
        return self._run("export-models", "--models", "all", "--output-dir", str(folder), url=url) - self.start

    def import_(self, url: str, folder: Path, name: str) -> float:
        """Import what ``export`` wrote as the experiment ``name``. Returns seconds."""
        return self._run("import-experiment", "--experiment-name", name, "--input-dir", str(folder), url=url) - self.start

    def _run(self, command: str, *arguments: str, url: str) -> float:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_", "PYTHON"))}
        env |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self._log.open("ab") as log:
            started = time.perf_counter()
            subprocess.run([self._bin / command, *arguments], env=env, stdout=log, stderr=log, cwd=self._log.parent, check=True)
            return time.perf_counter() - started


def find_peer(home: Path | None, scratch: Path) -> Peer:
    """The peer in the virtual environment ``home``; without one, in one that is made once in the user's cache."""
    if home is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        home = cache / "mlflow-bundle-benchmarks" / f"{PEER.replace('==', '-')}-mlflow-{version('mlflow')}"
        if not (home / "complete").exists():
            print(f"installing {PEER} into {home} (once)", file=sys.stderr)
            venv.create(home, clear=True, with_pip=True)
            python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
            subprocess.run([python, "-m", "pip", "install", "-q", PEER, f"mlflow=={version('mlflow')}"], check=True)
            (home / "complete").touch()
    return Peer(home, scratch / "peer.log")
