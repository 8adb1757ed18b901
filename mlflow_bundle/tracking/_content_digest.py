"""What an archived entity says, as one digest: by it an unpack tells whether what an earlier one restored is out of date."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._codec import encode
from mlflow_bundle._digests import hex_of
from mlflow_bundle.kinds import KINDS, Reference, record_id
from mlflow_bundle.records import Record

__all__ = ["ContentDigests"]


class ContentDigests:
    """The digests of archived entities: over the record of each, its rows and its files."""

    def __init__(self, archive: Bundle) -> None:
        self._reader, self._root = archive.reader, archive.root_digest
        self._kinds: dict[str, pa.Array] = {}

    def of(self, record: Record) -> str:
        """SHA-256 in hex of one entity. Equal digests mean that two snapshots say the same of it. Where nobody knows, because
        the view of the kind is damaged, it belongs to this snapshot and equals that of no other."""
        kind = str(record.__struct_config__.tag)
        if not KINDS[kind].tables:
            return hex_of(encode(record))
        if kind not in self._kinds:
            self._kinds[kind] = self._read(kind)
        row = self._reader.find_row(kind, record_id(record))
        if row is None:
            return hex_of(f"{self._root} {kind} {record_id(record)}".encode())
        found: bytes = self._kinds[kind][row].as_py()
        return found.hex()

    def of_what_is_left(self, record: Record) -> str:
        """The same of what can be read of an entity: with something lost it is another one, so that the whole is restored when
        it can be."""
        digest, lost = self.of(record), self._reader.lost(str(record.__struct_config__.tag), record_id(record))
        return hex_of(" ".join([digest, *(loss.table for loss in lost)]).encode()) if lost else digest

    def without(self, digest: str, names: Sequence[Reference]) -> str:
        """The same of an entity that cannot be restored with these names of others."""
        return hex_of(" ".join([digest, *(f"{kind} {identity}" for kind, identity in names)]).encode()) if names else digest

    def _read(self, kind: str) -> pa.Array:
        """The digests in archive order, 32 bytes an entity."""
        digests = self._reader.digests(kind)
        parts = [digests.column(name).to_pylist() for name in ("record_digest", *KINDS[kind].tables)]
        return pa.array((hashlib.sha256("\n".join(row).encode()).digest() for row in zip(*parts, strict=True)), pa.binary(32))
