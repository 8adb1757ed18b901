"""Progress on stderr: a bar for each phase of the work, with its rate and the time that is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from mlflow_bundle.cli._output import State, bytes_text, clean

__all__ = ["progress"]

#: Phases that count bytes.
_BYTES: Final = frozenset({"bytes"})


@contextmanager
def progress(state: State, start: str) -> Iterator[Callback]:
    """A callback whose branches are shown as bars; ``start`` stands there until the first one.

    Nothing is shown with ``--json`` or ``--no-progress``, or where stderr is no terminal.
    """
    if state.json or not state.progress or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield DEFAULT_CALLBACK
        return
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), _Numbers())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        yield _Phases(bars, bars.add_task(start, total=None))


class _Phases(Callback):  # type: ignore[misc]
    """The whole work: each branch is a phase."""

    def __init__(self, bars: Progress, start: TaskID) -> None:
        super().__init__()
        self._bars, self._start = bars, start

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        """A phase by its name."""
        del path_2, kwargs
        self._bars.update(self._start, visible=False)
        return _Phase(self._bars, path_1)


class _Phase(Callback):  # type: ignore[misc]
    """One bar."""

    def __init__(self, bars: Progress, name: str) -> None:
        super().__init__()
        self._bars = bars
        self._task = bars.add_task(clean(name), total=None, unit="bytes" if name in _BYTES else "")

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Show the new value and size."""
        del hook_name, kwargs
        self._bars.update(self._task, completed=self.value, total=self.size)

    def close(self) -> None:
        """The phase is over."""
        self._bars.update(self._task, completed=self.value, total=self.value)
        self._bars.stop_task(self._task)


class _Numbers(ProgressColumn):
    """``1,204 of 12,040   310/s   0:00:35 left``."""

    def render(self, task: Task) -> Text:
        """The numbers of one phase."""
        if task.total is None and not task.completed:
            return Text(_duration(task.elapsed))
        show = bytes_text if task.fields.get("unit") else "{:,}".format
        parts = [show(int(task.completed)) + (f" of {show(int(task.total))}" if task.total is not None else "")]
        if speed := task.finished_speed or task.speed:
            parts.append(f"{show(int(speed))}/s")
        over = task.finished or task.total is None
        parts.append(_duration(task.elapsed) if over else f"{_duration(task.time_remaining)} left")
        return Text("  ".join(parts))


def _duration(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
