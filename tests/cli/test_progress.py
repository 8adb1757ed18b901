"""Progress is for terminals, on stderr, and never in the way of data."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fsspec.callbacks import DEFAULT_CALLBACK
from rich.console import Console
from rich.progress import Progress

from mlflow_bundle.cli._output import State
from mlflow_bundle.cli._progress import _Numbers, _Phases, progress
from tests.cli.conftest import Archived, in_terminal


def test_nothing_where_there_is_no_terminal() -> None:
    """Without a terminal the callback does nothing."""
    for state in (State(), State(json=True), State(progress=False)):
        with progress(state, "start") as callback:
            assert callback is DEFAULT_CALLBACK


def test_phases_count() -> None:
    """A phase shows how far it is, of how much, how fast, and what is left; bytes in their units."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with Progress(_Numbers(), console=console, auto_refresh=False) as bars:
        callback = _Phases(bars, bars.add_task("start", total=None))
        runs, copied = callback.branched("runs", ""), callback.branched("bytes", "")
        runs.set_size(12_040)
        for _ in range(4):
            runs.relative_update(301)
        copied.relative_update(3 << 20)
        _, task, sized = bars.tasks
        column = _Numbers()
        assert column.render(task).plain.startswith("1,204 of 12,040")
        assert column.render(task).plain.endswith(" left")
        assert column.render(sized).plain.startswith("3.0 MiB")
        assert not bars.tasks[0].visible
        runs.close()
        assert column.render(task).plain.startswith("1,204 of 1,204")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("options", "shown"), [([], True), (["--no-progress"], False), (["--json"], False)])
def test_on_a_terminal(archived: Archived, tmp_path: Path, options: Sequence[str], shown: bool) -> None:
    """With a terminal on stderr there are bars, unless asked not to; stdout is never touched by them."""
    words = ["pack", tmp_path / "b", "--tracking-uri", archived.uri, *options]
    with (tmp_path / "out").open("wb") as out:
        err = in_terminal(words, "stderr", stdout=out)
    assert ("runs" in err and "\x1b[2K" in err) == shown
    assert b"\x1b" not in (tmp_path / "out").read_bytes()
    assert ("packed 6 experiments" in err) == (options != ["--json"])
