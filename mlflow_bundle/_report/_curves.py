"""Metric series thinned out for a page: evenly chosen points, the first and the last always among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from mlflow_bundle._bundle import Bundle

__all__ = ["Curve", "sampled_curves"]

#: Points of all curves of a page together, and the least and the most of one.
_POINTS: Final = 600_000
_LEAST, _MOST = 16, 400
#: Runs whose points are asked for at once.
_RUNS: Final = 500

Array = np.ndarray[Any, Any]


class Curve(NamedTuple):
    """The points of one metric of one run that a page draws, out of ``rows`` that were logged."""

    run: int
    key: str
    rows: int
    steps: list[int]
    values: list[float | None]


def sampled_curves(archive: Bundle, run_ids: Sequence[str], series: int) -> Iterator[Curve]:
    """The curves of these runs (``run`` is the place in ``run_ids``); ``series`` is how many there are in all."""
    most = min(max(_POINTS // max(series, 1), _LEAST), _MOST)
    for start in range(0, len(run_ids), _RUNS):
        yield from _of(archive.rows("metrics/1", run_ids[start : start + _RUNS]), start, most)


def _of(tables: Iterator[pa.Table], first: int, most: int) -> Iterator[Curve]:
    """The curves of tables in which a series may begin in one and end in another."""
    held = _Held()
    for table in tables:
        owners = table.column("owner").to_numpy()
        keys = table.column("key").combine_chunks().dictionary_encode()
        keys = pa.concat_arrays(keys.chunks) if isinstance(keys, pa.ChunkedArray) else keys
        codes, names = keys.indices.to_numpy(), keys.dictionary.to_pylist()
        steps, values = table.column("step").to_numpy(), table.column("value").to_numpy()
        new = (np.diff(owners) != 0) | (np.diff(codes) != 0)
        borders = [0, *(np.flatnonzero(new) + 1).tolist(), len(owners)] if len(owners) else []
        for start, end in itertools.pairwise(borders):
            name = (first + int(owners[start]), names[codes[start]])
            if held.name != name:
                yield from held.curve(most)
                held = _Held(name)
            held.add(steps[start:end], values[start:end])
    yield from held.curve(most)


class _Held:
    """A series that is being read."""

    def __init__(self, name: tuple[int, str] | None = None) -> None:
        self.name = name
        self._parts: list[tuple[Array, Array]] = []
        self.add: Callable[[Array, Array], None] = lambda steps, values: self._parts.append((steps, values))

    def curve(self, most: int) -> Iterator[Curve]:
        """What to draw of it."""
        if self.name is None:
            return
        steps, values = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(np.int64))
        shown = [float(f"{value:.6g}") if np.isfinite(value) else None for value in values[chosen].tolist()]
        yield Curve(*self.name, len(steps), steps[chosen].tolist(), shown)
