"""Finding one entity in a large view without reading it: the footer has a few bytes of the SHA-256 of every id.

They are a hint and nothing more: whoever follows it looks whether the rows are those of the entity, and reads the view where
it led nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from mlflow_bundle._row_groups import CheckedTable
from mlflow_bundle.records import ObjectRef

__all__ = ["Lookup", "id_notes", "tail_of"]

_KEY: Final = b"mlflow_bundle.ids"
#: Bytes of each digest: among 100,000 ids, one lookup in 170 is led astray once.
_DIGEST: Final = 3
#: A view of fewer rows is read as quickly as its footer.
_LEAST_ROWS: Final = 4_096
#: What the last columns of a view take for each row, mostly.
_PLACE_BYTES: Final = 2
#: What a footer takes besides the digests, for each row group and at all.
_GROUP_BYTES, _GROUP_ROWS, _OTHER_BYTES = 8_192, 131_072, 32_768


def id_notes(ids: Sequence[str]) -> dict[bytes, bytes]:
    """What the footer of a view says of the ids of its rows; nothing for a small one."""
    if len(ids) < _LEAST_ROWS:
        return {}
    return {_KEY: base64.b64encode(b"".join(map(_digest, ids)))}


def _digest(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()[:_DIGEST]


def tail_of(ref: ObjectRef) -> int:
    """How many bytes at the end of a view its footer takes, mostly, with the columns before it that say where rows lie."""
    notes = ref.rows * (4 + _PLACE_BYTES) if ref.rows >= _LEAST_ROWS else 0
    return notes + (ref.rows // _GROUP_ROWS + 1) * _GROUP_BYTES + _OTHER_BYTES


class Lookup:
    """The views of a kind, each opened when it is its turn."""

    def __init__(self, refs: Sequence[ObjectRef], opened: Callable[[ObjectRef], CheckedTable]) -> None:
        self._refs, self._opened = refs, opened
        self._digests: dict[str, np.ndarray | None] = {}

    def candidates(self, identity: str) -> Iterator[tuple[ObjectRef, int]]:
        """The views and rows that may be those of an entity."""
        wanted = np.frombuffer(_digest(identity), np.uint8)
        for ref in self._refs:
            digests = self._of(ref)
            if digests is not None:
                yield from ((ref, int(row)) for row in np.flatnonzero((digests == wanted).all(axis=1)))

    def _of(self, ref: ObjectRef) -> np.ndarray | None:
        if ref.path not in self._digests:
            self._digests[ref.path] = _decoded(self._opened(ref).notes.get(_KEY, b""), ref.rows)
        return self._digests[ref.path]


def _decoded(note: bytes, rows: int) -> np.ndarray | None:
    """A row for each digest; None where there are none of this view."""
    try:
        data = base64.b64decode(note, validate=True)
    except binascii.Error:
        return None
    return np.frombuffer(data, np.uint8).reshape(rows, _DIGEST) if data and len(data) == rows * _DIGEST else None
