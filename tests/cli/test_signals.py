"""Signals other than that of Ctrl-C end the command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Archived, popen

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_ends_a_pack_that_waits(tmp_path: Path, *, ignored: bool) -> None:
    """The end of a terminal ends it, but for one below ``nohup``; a supervisor ends any. One sentence, and an exit code."""
    hang_up = signal.SIG_IGN if ignored else signal.SIG_DFL
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = popen(
            ["pack", tmp_path / "b", "--tracking-uri", f"http://127.0.0.1:{server.getsockname()[1]}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, hang_up),
        )
        server.settimeout(120)
        connection, _ = server.accept()
        time.sleep(0.2)
        running.send_signal(signal.SIGHUP)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(timeout=1)
            running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
        connection.close()
    assert (running.returncode, out) == (128 + (signal.SIGTERM if ignored else signal.SIGHUP), b"")
    assert err.decode().splitlines()[0] == "mlflow-bundle: interrupted"
    assert b"Traceback" not in err


@pytest.mark.slow
def test_a_terminated_restore_leaves_no_temporary_folder(archived: Archived, tmp_path: Path) -> None:
    """The draft of a new database is removed, and nothing is at its place."""
    script = """
import os, runpy, signal, sys
from mlflow_bundle.tracking.database import _write

def prepare(uri):
    assert os.listdir(os.environ["TMPDIR"])
    os.kill(os.getpid(), signal.SIGTERM)

_write.prepare_database = prepare
runpy.run_module("mlflow_bundle", run_name="__main__")
"""
    (tmp_path / "tmp").mkdir()
    words = ["unpack", archived.bundle, "--tracking-uri", f"sqlite:///{tmp_path}/new/mlflow.db"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, b""), done.stderr.decode()
    assert done.stderr.decode().splitlines()[-2] == "mlflow-bundle: interrupted"
    assert list(tmp_path.rglob("*")) == [tmp_path / "tmp"]


@pytest.mark.slow
def test_a_server_that_is_terminated_stops(archived: Archived, tmp_path: Path) -> None:
    """The end of ``serve`` is the usual one, whichever signal asks for it."""
    running = popen(
        ["serve", archived.bundle, "--port", "0", "--no-open", "--cache", tmp_path / "cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.readline().startswith(b"http://")
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err.decode().splitlines()[-1]) == (0, "stopped")
