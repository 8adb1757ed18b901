"""Small curves for a terminal: a series in one line of block letters."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

__all__ = ["curve", "curves"]

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 16


def curves(points: pa.Table) -> dict[str, str]:
    """The curve of each key of a run's metrics, which come sorted by key and step."""
    encoded = points.column("key").combine_chunks().dictionary_encode()
    encoded = pa.concat_arrays(encoded.chunks) if isinstance(encoded, pa.ChunkedArray) else encoded
    codes, values = encoded.indices.to_numpy(), points.column("value").to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)] if len(codes) else [0]
    names = encoded.dictionary.to_pylist()
    return {names[codes[start]]: curve(values[start:end]) for start, end in pairwise(borders)}


def curve(values: np.ndarray[Any, Any]) -> str:
    """Values as block letters, at most 16: each is the mean of its stretch, a blank where none of it is finite. One value, or
    several that are equal, make a flat line."""
    parts = np.array_split(np.asarray(values, float), min(len(values), _WIDTH) or 1)
    finite = [part[np.isfinite(part)] for part in parts]
    scale = max((float(np.abs(part).max()) for part in finite if len(part)), default=1.0) or 1.0
    means = np.array([float((part / scale).mean()) if len(part) else np.nan for part in finite])
    if np.isnan(means).all():
        return ""
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    places = np.full(len(means), 3.0) if high <= low else (means - low) / (high - low) * (len(_BLOCKS) - 1)
    return "".join(" " if np.isnan(place) else _BLOCKS[round(float(place))] for place in places)
