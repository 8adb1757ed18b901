"""Functions that are called in a process of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback

from mlflow_bundle.errors import NotFoundError, ServerError
from mlflow_bundle.tracking.serve._process import in_own_process

HERE = __name__


class Seen(Callback):
    """Notes what its branches are told."""

    def __init__(self, name: str = "", events: list[tuple[str, str, int | None, int]] | None = None) -> None:
        super().__init__()
        self.name, self.events = name, [] if events is None else events

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        """A branch that notes it in the same place."""
        return Seen(path_1, self.events)

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Note the new value."""
        self.events.append(("value", self.name, self.size, self.value))

    def close(self) -> None:
        """Note the end."""
        self.events.append(("over", self.name, self.size, self.value))


def count(number: int, *, callback: Callback) -> tuple[int, int]:
    """Print, and tell progress."""
    print("not an answer")
    os.write(1, b"nor is this")
    progress = callback.branched("counted", "")
    progress.set_size(number)
    for _ in range(number):
        progress.relative_update()
    progress.close()
    return os.getpid(), number


def fail(error: BaseException, *, callback: Callback) -> None:
    """Raise it."""
    raise error


def die(*, callback: Callback) -> None:
    """End without an answer."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(started: Path, *, callback: Callback) -> None:
    """Say who it is, and wait for ever."""
    started.write_text(str(os.getpid()))
    time.sleep(600)


def test_the_result_and_the_progress_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    """What the function prints is no answer and does not get into the output of this process."""
    seen = Seen()
    process, number = in_own_process((HERE, "count"), 2, callback=seen)
    assert (process != os.getpid(), number) == (True, 2)
    assert seen.events == [
        ("value", "counted", 2, 0),
        ("value", "counted", 2, 1),
        ("value", "counted", 2, 2),
        ("value", "counted", 2, 2),
        ("over", "counted", 2, 2),
    ]
    assert capfd.readouterr().out == ""


def test_an_error_comes_back() -> None:
    """With its hint."""
    with pytest.raises(NotFoundError, match="nothing there") as caught:
        in_own_process((HERE, "fail"), NotFoundError("nothing there", hint="look elsewhere"), callback=Seen())
    assert caught.value.hint == "look elsewhere"


def test_a_process_that_is_killed_is_an_error() -> None:
    """One sentence, with what it ended with."""
    with pytest.raises(ServerError, match="ended with -9"):
        in_own_process((HERE, "die"), callback=Seen())


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_both(tmp_path: Path) -> None:
    """Whoever interrupts this process does not wait for the other one, which is gone then."""
    started = tmp_path / "started"
    # Fixtures of other tests load ADBC's DB-API, whose handler does not interrupt a read.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        while not (started.is_file() and started.read_text()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_own_process((HERE, "sleep"), started, callback=Seen())
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 300
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
