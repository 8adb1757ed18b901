"""The digests of what belongs to an owner: its files, its plain rows, its series (spec/v1.md, 8.3 and 8.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Final

from mlflow_bundle._series import SeriesDigester, as_series
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle._tables import OpenTable, batches
from mlflow_bundle.errors import CorruptError

__all__ = ["NO_FILES", "files_digest", "owner_digests"]


def files_digest(files: Iterable[tuple[str, int, str | None, str]]) -> str:
    """The digest of one owner's file list: (path, size, SHA-256 or None, state) sorted by path bytes (spec/v1.md, 8.4)."""
    lines = [list(entry) for entry in files]
    return hashlib.sha256(json.dumps(lines, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


#: The digest of an owner without files.
NO_FILES: Final = files_digest(())


def owner_digests(table: OpenTable, spec: TableSpec) -> Iterator[tuple[str, int, str]]:
    """(owner id, rows, digest in hex) of each owner in a metrics or files object, in the order of its rows.

    Raises:
        CorruptError: the rows of an owner are not together.
    """
    yield from (_metric_owners if spec is TABLES["metrics/1"] else _file_owners)(table)


def _metric_owners(table: OpenTable) -> Iterator[tuple[str, int, str]]:
    numbers: dict[str, int] = {}
    digester = SeriesDigester()
    last = -1

    def done() -> Iterator[tuple[str, int, str]]:
        nonlocal last
        names = list(numbers)
        for owner, (rows, digest) in digester.finished.items():
            if owner <= last:
                raise CorruptError(f"the metric points of run {names[owner]} are not together", code="E042")
            last = owner
            yield names[owner], rows, digest
        digester.finished.clear()

    for series in as_series(batches(table), lambda run: numbers.setdefault(run, len(numbers))):
        digester.add(series)
        yield from done()
    digester.finish()
    yield from done()


def _file_owners(table: OpenTable) -> Iterator[tuple[str, int, str]]:
    owner: str | None = None
    files: list[tuple[str, int, str | None, str]] = []
    seen: set[str] = set()
    for batch in batches(table, ["owner_id", "path", "size", "sha256", "state"]):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if row[0] != owner:
                if owner is not None:
                    yield owner, len(files), files_digest(files)
                if row[0] in seen:
                    raise CorruptError(f"the files of run {row[0]} are not together", code="E042")
                owner, files = row[0], []
                seen.add(row[0])
            files.append(row[1:])
    if owner is not None:
        yield owner, len(files), files_digest(files)
