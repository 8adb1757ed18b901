"""The logical root: what a snapshot says, whatever its shards and encodings (spec/v1.md, section 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from mlflow_bundle._digests import PREFIX
from mlflow_bundle.records import Logical, LogicalKind

__all__ = ["MerkleTree", "leaf", "logical", "logical_of"]

_CONTEXT: Final = b"mlflow-bundle/1 "


def leaf(kind: str, *parts: bytes) -> bytes:
    """The 32 bytes of a leaf: SHA-256 over 0x00, the context, the kind, 0x00 and the digests that make up the entity."""
    return hashlib.sha256(b"\x00" + _CONTEXT + kind.encode() + b"\x00" + b"".join(parts)).digest()


class MerkleTree:
    """The root of RFC 6962 over leaves that arrive in order, in memory that grows with the logarithm of their number."""

    def __init__(self) -> None:
        self.rows = 0
        self._peaks: list[tuple[int, bytes]] = []

    def add(self, digest: bytes) -> None:
        """Append the next leaf."""
        self.rows += 1
        height = 0
        while self._peaks and self._peaks[-1][0] == height:
            digest = _node(self._peaks.pop()[1], digest)
            height += 1
        self._peaks.append((height, digest))

    def root(self) -> bytes:
        """The root of the leaves so far; that of none is SHA-256 over nothing."""
        if not self._peaks:
            return hashlib.sha256().digest()
        digest = self._peaks[-1][1]
        for _, left in reversed(self._peaks[:-1]):
            digest = _node(left, digest)
        return digest


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def logical(trees: Mapping[str, MerkleTree]) -> Logical:
    """The logical section of a snapshot: the root of each kind that has records, and the root over those in name order."""
    return logical_of({name: (tree.root(), tree.rows) for name, tree in trees.items() if tree.rows})


def logical_of(roots: Mapping[str, tuple[bytes, int]]) -> Logical:
    """The same from the root and the number of records of each kind."""
    over = MerkleTree()
    kinds = {}
    for name, (root, rows) in sorted(roots.items()):
        over.add(leaf("root", name.encode(), b"\x00", root))
        kinds[name] = LogicalKind(root=PREFIX + root.hex(), rows=rows)
    return Logical(root=PREFIX + over.root().hex(), kinds=kinds)
