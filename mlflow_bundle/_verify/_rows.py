"""Columns of digests, as the tables of a bundle have them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["raw_digests"]

_DIGEST: Final = 64
_NIBBLES: Final = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


def raw_digests(column: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.bool_]]:
    """A column of SHA-256 in hex as 32 bytes each, and which of them are well written."""
    text = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(text.type):
        text = text.cast(pa.string())
    good = np.asarray(pc.fill_null(pc.equal(pc.binary_length(text), _DIGEST), False))
    if not good.all():
        text = pc.if_else(pa.array(good), text, "0" * _DIGEST)
    start = text.offset * 4
    first = int(np.frombuffer(text.buffers()[1], dtype=np.int32, count=1, offset=start)[0]) if len(text) else 0
    data = text.buffers()[2] if len(text) else b""
    letters = np.frombuffer(data, dtype=np.uint8, count=len(text) * _DIGEST, offset=first).reshape(-1, 2)
    nibbles = _NIBBLES[letters]
    good &= (nibbles.reshape(len(text), _DIGEST) != 255).all(axis=1) if len(text) else True
    raw = (nibbles[:, 0] << 4 | nibbles[:, 1]).astype(np.uint8)
    return np.frombuffer(raw.tobytes(), dtype="S32", count=len(text)), good
