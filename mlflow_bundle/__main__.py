"""The process of the command ``mlflow-bundle``, which is ``python -m mlflow_bundle`` as well."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

_INTERRUPTED = 130
_SIGNALLED = 128
#: What else ends the command as Ctrl-C does: a supervisor, a terminal that is closed (Windows has no such signal).
_ENDING = ("SIGTERM", "SIGHUP")


class _Ended(KeyboardInterrupt):
    """A signal that ends the command, with the exit code that shells expect then."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = _SIGNALLED + number


def main() -> None:
    """Load the command and run it. Loading takes half a second, in which Ctrl-C is no reason for a traceback either."""
    try:
        _heed_signals()
        from mlflow_bundle.cli import main as command  # noqa: PLC0415

        command()
    except KeyboardInterrupt as error:
        with suppress(OSError):
            print("mlflow-bundle: interrupted", file=sys.stderr, flush=True)  # noqa: T201 - what would print it is not loaded
        os._exit(getattr(error, "exit_code", _INTERRUPTED))


def _heed_signals() -> None:
    """Let these signals clean up before the end. One that is ignored already, as below ``nohup``, stays ignored."""
    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    if number != signal.SIGTERM:  # a terminal says it several times, the cleaning needs a while
        signal.signal(number, signal.SIG_IGN)
    raise _Ended(number)


if __name__ == "__main__":
    main()
