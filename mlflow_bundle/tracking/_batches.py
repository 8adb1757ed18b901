"""Archived entities on their way to a target: batch by batch, with their rows and files, in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

import pyarrow as pa

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._codec import decode_record, encode
from mlflow_bundle._series import segments
from mlflow_bundle.entities import ModelVersion, Record, SkillVersion
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.tracking._content_digest import ContentDigests
from mlflow_bundle.tracking._gather import Gathered
from mlflow_bundle.tracking._port import PlannedEntity

__all__ = ["batches", "planned"]

#: Records of a batch, bytes of their JSON, and bytes of rows of a piece of it.
_RECORDS: Final = 500
_RECORD_BYTES: Final = 32 << 20
_ROW_BYTES: Final = 64 << 20
_FILES: Final = "files/1"
#: Kinds whose numbers a server gives by counting.
_NUMBERED: Final = ("model_version", "skill_version")


def batches(gathered: Gathered, kind: str) -> Iterator[list[Record]]:
    """The gathered records of a kind, a bounded number of records and bytes at a time; all versions of one thing together."""
    records = gathered.records(kind)
    yield from _versions(kind, records) if kind in _NUMBERED else _bounded(records)


def _bounded(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        length = len(encode(record))
        if batch and (len(batch) == _RECORDS or size + length > _RECORD_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch


def _versions(kind: str, records: Iterable[Record]) -> Iterator[list[Record]]:
    """Versions in the order of their numbers, which is how a server counts. Until it is their turn they are kept as text, a
    fraction of the size."""
    texts = []
    for record in records:
        assert isinstance(record, ModelVersion | SkillVersion)
        texts.append((record_id(record).rpartition("/")[0], record.version, encode(record)))
    texts.sort()
    batch: list[Record] = []
    for _, group in groupby(texts, key=lambda text: text[0]):
        batch += [decode_record(text, kind, name="spool") for *_, text in group]
        if len(batch) >= _RECORDS // 2:
            yield batch
            batch = []
    if batch:
        yield batch


def planned(archive: Bundle, digests: ContentDigests, kind: str, batch: Sequence[Record]) -> Iterator[list[PlannedEntity]]:
    """A batch with rows and files. Where the rows are many, it comes in several pieces."""
    if not batch:
        return
    ids = [record_id(record) for record in batch]
    tables = KINDS[kind].tables
    files: dict[str, list[tuple[str, int, str]]] = {identity: [] for identity in ids}
    if _FILES in tables:
        for row in archive.files_of_entities(kind, ids).to_pylist():
            if row["state"] == "ok":
                files[row["owner_id"]].append((row["path"], row["size"], row["sha256"]))
    table = next((name for name in tables if name != _FILES), None)
    last = 0
    for end, rows in _pieces(archive.rows(table, ids) if table else iter(()), len(batch)):
        yield [
            PlannedEntity(
                record=batch[number],
                rows=rows.get(number),
                files=tuple(files[ids[number]]),
                files_lost=_has_lost_files(archive, kind, ids[number]),
                digest=digests.of_what_is_left(batch[number]),
            )
            for number in range(last, end)
        ]
        last = end


def _has_lost_files(archive: Bundle, kind: str, identity: str) -> bool:
    """Whether an entity has files that are lost: its view says so. Without that, any might have, and few do."""
    lost = any(loss.table == _FILES for loss in archive.reader.lost(kind, identity))
    return lost and archive.reader.find_row(kind, identity) is not None


def _pieces(tables: Iterator[pa.Table], count: int) -> Iterator[tuple[int, dict[int, pa.Table]]]:
    """(owner behind the last one, rows by owner without the owner column), whole owners together. An owner may span several
    tables; owners come in order, and some have no rows."""
    parts: dict[int, list[pa.Table]] = {}
    size = 0
    for table in tables:
        rows = table.drop_columns(["owner"])
        for owner, start, end in segments(table.column("owner").combine_chunks().to_numpy()):
            if size > _ROW_BYTES and owner not in parts:
                yield owner, {number: pa.concat_tables(some) for number, some in parts.items()}
                parts, size = {}, 0
            part = rows.slice(start, end - start)
            parts.setdefault(owner, []).append(part)
            size += part.nbytes
    yield count, {number: pa.concat_tables(some) for number, some in parts.items()}
