"""Errors, exit codes, streams and signals of every command."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_bundle.cli import _command
from tests.cli.conftest import PROJECT, Archived, Command, popen, process

READING = ("verify", "ls", "show", "log")


def test_help_and_version(command: Command) -> None:
    """Help goes to stdout, also where nothing is asked for, and no line is wider than a terminal."""
    for words in ([], ["--help"], ["-h"]):
        done = command(*words)
        assert (done.code, done.err) == (0, "")
        assert "unpack" in done.out
    assert command("--version").out.startswith("mlflow-bundle ")
    for name in _command.commands:
        lines = command(name, "--help").out.splitlines()
        assert max(map(len, lines)) <= 80, name


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["ls"],
        ["ls", "x", "--nonsense"],
        ["pack", "x", "--jobs", "0"],
        ["verify", "x", "--level", "deep"],
        ["ls", "a", "b", "c"],
    ],
)
def test_wrong_usage(command: Command, words: list[str]) -> None:
    """A command, option or value that does not exist ends with 2 and says where help is."""
    done = command(*words)
    assert (done.code, done.out) == (2, "")
    assert "--help` explains it" in done.err


def test_close_command_names(command: Command) -> None:
    """A mistyped command gets a suggestion."""
    assert "Did you mean" in command("unpac").err


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("place", ["missing", "empty", "foreign folder", "foreign file"])
def test_no_bundle_there(command: Command, tmp_path: Path, name: str, place: str) -> None:
    """A missing, empty or foreign bundle ends with 10, one sentence and the next step."""
    target = tmp_path / place
    if place == "empty":
        target.mkdir()
    elif place == "foreign folder":
        target.mkdir()
        (target / "photo.jpg").write_bytes(b"x")
    elif place == "foreign file":
        target.write_bytes(b"something else")
    done = command(name, target)
    assert (done.code, done.out) == (10, "")
    first, second = done.err.splitlines()
    assert first.startswith("mlflow-bundle: ")
    assert second.startswith("hint: ")


def test_newer_layout(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A bundle of a later layout ends with 1 and says what to install."""
    newer = tmp_path / "newer"
    shutil.copytree(archived.bundle, newer)
    marker = newer / "mlflow-bundle.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"layout": 2}))
    done = command("ls", newer)
    assert (done.code, done.out) == (1, "")
    assert "layout 2" in done.err
    assert "pip install --upgrade" in done.err


def test_marker_that_is_none(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A marker that is not JSON ends with 10, and with the next step."""
    broken = tmp_path / "broken"
    shutil.copytree(archived.bundle, broken)
    (broken / "mlflow-bundle.json").write_text("hello")
    for words in (["ls"], ["show"], ["log"], ["pack", "--tracking-uri", archived.uri]):
        done = command(words[0], broken, *words[1:])
        assert (done.code, done.out) == (10, "")
        assert "hint: take mlflow-bundle.json from a copy" in done.err


def test_damaged_bundles_have_a_next_step(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A missing object, cut snapshots and a cut ZIP file are told with what to do, and none of them looks like no bundle."""
    for number, pattern in enumerate(("objects/records/*", "snapshots/*")):
        broken = tmp_path / str(number)
        shutil.copytree(archived.bundle, broken)
        for file in broken.glob(pattern):
            file.unlink() if number == 0 else file.write_bytes(file.read_bytes()[:100])
        done = command("ls", broken)
        assert done.code == 1
        assert ("is missing in ", "has no whole snapshot: ")[number] in done.err
        assert "hint: `mlflow-bundle verify`" in done.err
    whole = tmp_path / "whole.zip"
    assert command("pack", whole, "--tracking-uri", archived.uri).code == 0
    whole.write_bytes(whole.read_bytes()[:5000])
    done = command("ls", whole)
    assert done.code == 1
    assert "is not a whole ZIP file" in done.err
    assert "hint: `mlflow-bundle verify`" in done.err


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("traces", "did you mean 'trace'"),
        ("run", "every run is listed without --kind"),
        ("runs", "every run is listed without --kind"),
        ("experiments", "every experiment is listed without --kind"),
        ("zzzzz", "the kinds are workspace, "),
    ],
)
def test_names_of_kinds(command: Command, archived: Archived, kind: str, said: str) -> None:
    """A wrong kind is answered with those that are nearly the same, else with all of them."""
    done = command("ls", archived.bundle, "--kind", kind)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["report", "BUNDLE", "-o", "s3://bucket/x"],
        ["query", "BUNDLE", "select 1", "--parquet", "s3://bucket/x"],
        ["query", "BUNDLE", "--export", "s3://bucket/x"],
        ["get", "BUNDLE", "churn", "s3://bucket/x"],
    ],
)
def test_what_is_written_here_takes_no_url(command: Command, archived: Archived, words: list[str]) -> None:
    """A URL is not taken for the path of a folder ``s3:``."""
    done = command(*(archived.bundle if word == "BUNDLE" else word for word in words))
    assert (done.code, done.out) == (2, "")
    assert "'s3://bucket/x' is a URL" in done.err


def test_errors_as_json(command: Command, archived: Archived, tmp_path: Path) -> None:
    """With --json an error is one JSON document on stderr with code, message and hint, and stdout stays empty."""
    for words, code, error in (
        (["ls", tmp_path, "--json"], 10, "bundle-not-found"),
        (["--json", "nonsense"], 2, "usage"),
        (["cat", archived.bundle, "churn", "--json"], 2, "usage"),
        (["show", archived.bundle, "chrun", "--json"], 1, "path-not-found"),
        (["ls", archived.bundle, "--snapshot", "zzz", "--json"], 1, "snapshot-not-found"),
    ):
        done = command(*words)
        assert (done.code, done.out) == (code, ""), words
        document = json.loads(done.err)["error"]
        assert document["code"] == error
        assert {"code", "message", "hint"} <= document.keys()


def test_unexpected_errors_are_one_sentence(command: Command, archived: Archived, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect shows no traceback, unless --debug asks for it."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("inner\x1b")

    monkeypatch.setattr(importlib.import_module("mlflow_bundle.cli.ls"), "open_bundle", broken)
    done = command("ls", archived.bundle)
    assert done.code == 1
    assert done.err.splitlines() == [
        "mlflow-bundle: unexpected KeyError: 'inner\\x1b'",
        "hint: this is a defect of mlflow-bundle; --debug shows more",
    ]
    assert "Traceback" in command("ls", archived.bundle, "--debug").err
    assert "Traceback" in command("--debug", "ls", archived.bundle).err
    document = json.loads(command("ls", archived.bundle, "--debug", "--json").err)["error"]
    assert document["code"] == "unexpected"
    assert "KeyError" in document["traceback"]


def test_errors_of_the_system_are_one_sentence(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A folder that cannot be made is named with the reason."""
    (tmp_path / "file").write_text("in the way")
    done = command("get", archived.bundle, "churn/parent/artifacts/plain.txt", tmp_path / "file" / "x")
    assert done.code == 1
    assert "/file/x cannot be written: " in done.err


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "-l"], ["show"], ["log"], ["cat", "churn/parent/artifacts/plain.txt"], ["ls", "churn/parent"]]
)
def test_looking_inside_never_imports_mlflow(archived: Archived, words: list[str]) -> None:
    """Reading commands run without MLflow being imported, and so without its second of start."""
    name, *rest = words
    script = "import os, sys; from mlflow_bundle.cli import run; os._exit(run(sys.argv[1:]) or 99 * ('mlflow' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script, name, archived.bundle, *rest],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away(archived: Archived) -> None:
    """``mlflow-bundle log | head -0`` ends quietly with the code of a broken pipe."""
    for words in (["log", archived.bundle], ["cat", archived.bundle, "churn/parent/artifacts/plain.txt", "--json"]):
        read, write = os.pipe()
        os.close(read)
        running = popen(words, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        _, err = running.communicate(timeout=120)
        assert (running.returncode, err) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_in_the_middle(archived: Archived, unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mlflow-bundle report -o - | head -1`` too, where a pipe takes only a part of a large page at once."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    running = popen(["report", archived.bundle, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.read(100)
    running.stdout.close()
    assert running.wait(120) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_stdout_that_cannot_be_written(archived: Archived) -> None:
    """A full disk behind stdout is an error, not a success with lost output."""
    with Path("/dev/full").open("wb") as full:
        running = popen(["log", archived.bundle], stdout=full, stderr=subprocess.PIPE)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 1
    assert err.decode().splitlines() == ["mlflow-bundle: stdout cannot be written: No space left on device"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs preexec_fn")
@pytest.mark.parametrize(
    ("stream", "words", "code", "said"),
    [
        (1, ["log", "BUNDLE"], 1, "mlflow-bundle: stdout cannot be written: Bad file descriptor\n"),
        (2, ["log", "BUNDLE"], 0, ""),
        (2, ["log", "nowhere"], 10, ""),
    ],
)
def test_streams_that_are_closed(archived: Archived, stream: int, words: list[str], code: int, said: str) -> None:
    """A closed stdout is an error of one sentence, not a success with lost output; a closed stderr changes no exit code."""
    given = [archived.bundle if word == "BUNDLE" else word for word in words]
    done = process(*given, preexec_fn=lambda: os.close(stream))
    assert (done.code, done.err) == (code, said)


def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C while a server does not answer ends with 130 and one sentence; nothing was committed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        running = popen(["pack", tmp_path / "b", "--tracking-uri", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        server.settimeout(120)
        connection, _ = server.accept()
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        connection.close()
    assert (running.returncode, out) == (130, b"")
    assert err.decode().splitlines()[0] == "mlflow-bundle: interrupted"
    assert b"Traceback" not in err
    assert not list(tmp_path.glob("b/snapshots/*"))


def test_interrupt_while_it_is_loaded() -> None:
    """Ctrl-C in the first moments, in which modules are imported, ends in the same way."""
    script = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "pyarrow":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["mlflow-bundle", "--version"]
runpy.run_module("mlflow_bundle", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"mlflow-bundle: interrupted\n")


def test_dead_server(tmp_path: Path) -> None:
    """A server that is not there ends with 1 and what to do, and leaves nothing behind."""
    done = process("pack", tmp_path / "b", "--tracking-uri", "http://127.0.0.1:9")
    assert (done.code, done.out) == (1, "")
    assert "does not answer" in done.err
    assert "hint: start the server" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "b").exists()


def test_module_is_the_command(archived: Archived) -> None:
    """``python -m mlflow_bundle`` runs as a process, with data on stdout only."""
    done = process("ls", archived.bundle)
    assert (done.code, done.err) == (0, "")
    assert "churn" in done.out.splitlines()
