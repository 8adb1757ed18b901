"""Calls a function in a process of its own, so that this one can load MLflow on another processor meanwhile."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any, Final

from fsspec.callbacks import Callback

from mlflow_bundle.errors import BundleError, ServerError
from mlflow_bundle.tracking.serve._load import load

__all__ = ["in_own_process"]

#: What is started searches for modules where this process does, and nowhere else. The one that waits for its answer ends it.
_START: Final = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = sys.argv[1:];"
    f" from {__name__} import _answer; _answer()"
)

#: (name of a branch, its size, its value, whether it is over)
_Progress = tuple[str, int | None, int, bool]


def in_own_process(function: tuple[str, str], *args: object, callback: Callback) -> Any:
    """What a function, named by module and name, returns for ``args`` and a ``callback``, whose branches are passed on to the
    one given here.

    Raises:
        BundleError, OSError: what the function raised.
        ServerError: the process ended without an answer.
    """
    command = [sys.executable, "-c", _START, *sys.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603 - ourselves
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, args), process.stdin)
            process.stdin.close()
            error, result = _follow(process.stdout, callback)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            error, result = ServerError(f"a process that reads the archive ended with {process.wait()}"), None
        except BaseException:
            process.kill()
            raise
    if error is not None:
        raise error
    return result


def _follow(events: IO[bytes], callback: Callback) -> tuple[BaseException | None, Any]:
    """Pass on the progress that the other process tells, until it tells what came of it."""
    branches: dict[str, Callback] = {}
    while True:
        progress: _Progress | None
        progress, error, result = pickle.load(events)  # noqa: S301 - written by ourselves
        if progress is None:
            return error, result
        name, size, value, over = progress
        if name not in branches:
            branches[name] = callback.branched(name, "")
        branches[name].size = size
        branches[name].absolute_update(value)
        if over:
            branches.pop(name).close()


def _answer() -> None:
    """Be the other process."""
    with os.fdopen(os.dup(1), "wb") as events:
        # What a library prints is no answer.
        os.dup2(2, 1)

        def tell(progress: _Progress | None, error: BaseException | None = None, result: object = None) -> None:
            pickle.dump((progress, error, result), events)
            events.flush()

        (module, name), args = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by ourselves
        try:
            result = getattr(load(module), name)(*args, callback=_Told(tell))
        except (BundleError, OSError) as error:
            tell(None, error)
        else:
            tell(None, None, result)


class _Told(Callback):  # type: ignore[misc]
    """Tells how its branches go on."""

    def __init__(self, tell: Callable[[_Progress], None], name: str = "") -> None:
        super().__init__()
        self._tell, self._name = tell, name

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        """A phase by its name."""
        del path_2, kwargs
        return _Told(self._tell, path_1)

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Tell the new value and size."""
        del hook_name, kwargs
        self._tell((self._name, self.size, self.value, False))

    def close(self) -> None:
        """The phase is over."""
        self._tell((self._name, self.size, self.value, True))
