"""Sizes: what a writer aims at, and what a reader accepts at most (spec/v1.md, section 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_LIMITS", "GIB", "KIB", "MIB", "WRITER_TARGETS", "Limits", "Targets"]

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader accepts before it raises ``LimitError``. Sizes are bytes."""

    snapshot_bytes: int = 64 * MIB
    json_depth: int = 64
    line_bytes: int = 64 * MIB
    frame_bytes: int = 128 * MIB
    #: Raw bytes for each stored byte of a frame of more than one MiB: zstd reaches no more (a block of 128 KiB has 4 bytes).
    frame_ratio: int = 32_768
    records_bytes: int = 256 * MIB
    table_bytes: int = 2 * GIB
    #: Rows of a Parquet row group, and the bytes that its strings have in memory.
    row_group_rows: int = 4 * MIB
    row_group_bytes: int = GIB
    pack_bytes: int = 256 * MIB
    pack_entries: int = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a writer aims at. Smaller values make more and smaller objects; tests use them. Sizes are bytes."""

    frame_bytes: int = 256 * KIB
    #: Raw bytes of the lines of a records object; about 6 MiB compressed.
    records_bytes: int = 32 * MIB
    #: Rows of a metrics object; about 45 MiB.
    metric_rows: int = 8_000_000
    file_rows: int = 500_000
    #: Digested bytes of an object of plain rows (spans, metrics of logged models); about 40 MiB.
    rows_bytes: int = 256 * MIB
    index_rows: int = 2_000_000
    pack_bytes: int = 64 * MIB
    pack_entries: int = 50_000
    #: Contents of at least this size are objects of their own.
    blob_bytes: int = 4 * MIB
    #: Contents beyond this size are split into parts of ``part_bytes``.
    split_bytes: int = 4 * GIB
    part_bytes: int = GIB
    #: As many small packs or index parts of about one size are merged into one.
    merge_width: int = 8
    #: Above this size the list of objects leaves the snapshot document.
    inline_bytes: int = 8 * MIB


DEFAULT_LIMITS: Final = Limits()
WRITER_TARGETS: Final = Targets()
