"""Measures work in fresh Python processes: seconds without their start, and their peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

__all__ = ["Done", "Row", "alternate", "do", "processors", "rate"]

_REPOSITORY: Final = Path(__file__).parents[2]
#: Seconds after which works are not repeated any more: the longer they take, the less the machine's moods matter.
_ENOUGH: Final = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. ``met`` is None where there is no target. ``notes`` are printed below the table."""

    work: str
    ours: str
    theirs: str
    ratio: str
    target: str
    met: bool | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Work done in a process of its own, without its start and imports: ``seconds`` of wall time and ``processor`` seconds of
    all its threads, which a busy machine changes less; its peak memory in bytes, and its answer."""

    seconds: float
    processor: float
    peak: int
    answer: dict[str, Any] = field(default_factory=dict)


def do(work: str, **options: Any) -> Done:
    """Run one function of ``ours.py`` or ``bare.py``, such as ``ours.pack``, in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.child", work, json.dumps(options, default=str)]
    run = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{work} failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}")
    told = json.loads(run.stdout.splitlines()[-1])
    return Done(told["seconds"], told["processor"], told["peak"], told["answer"])


def alternate(rounds: int, *works: Callable[[int], Done]) -> list[Done]:
    """Do several works in turn, ``rounds`` times or until a minute is over; of each the one with the median seconds.

    A work gets the number of its round.
    """
    done: list[list[Done]] = [[] for _ in works]
    until = time.monotonic() + _ENOUGH
    for number in range(rounds):
        if number and time.monotonic() > until:
            break
        for work, results in zip(works, done, strict=True):
            results.append(work(number))
    return [_middle(results) for results in done]


def _middle(results: list[Done]) -> Done:
    middle = median(result.seconds for result in results)
    return min(results, key=lambda result: abs(result.seconds - middle))


def processors(ours: Done, theirs: Done) -> str:
    """A note: what both took of the processors."""
    return f"{ours.processor:.2f} s of processor time of ours, {theirs.processor:.2f} s of theirs"


def rate(points: int, seconds: float) -> str:
    """``12,345 points/s``."""
    return f"{points / seconds:,.0f} points/s"
