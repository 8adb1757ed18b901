"""Archived entities come to a target in pieces that fit into memory, whole and in order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mlflow_bundle.entities import ModelVersion, RegisteredModel
from mlflow_bundle.tracking import _batches
from mlflow_bundle.tracking._gather import Gathered


def test_batches_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends before the record that makes it too big; no record is lost, and one that is too big itself comes alone."""
    monkeypatch.setattr(_batches, "_RECORD_BYTES", 1_000)
    sizes = [10, 10, 5_000, 400, 400, 400]
    records = [RegisteredModel(name=f"m{number}", description="x" * size) for number, size in enumerate(sizes)]
    gathered = Gathered()
    gathered.take("registered_model", [records])
    found = [[record.name for record in batch] for batch in _batches.batches(gathered, "registered_model")]  # type: ignore[attr-defined]
    gathered.close()
    assert found == [["m0", "m1"], ["m2"], ["m3", "m4"], ["m5"]]


def test_versions_of_a_model_stay_together() -> None:
    """All versions of a model are in one batch, by their numbers, however they lie in the archive."""
    versions = [
        ModelVersion(name=name, version=number, creation_timestamp=time)
        for time, (name, number) in enumerate([("b", 2), ("a", 1), ("b", 10), ("b", 1), *(("c", n) for n in range(300, 0, -1))])
    ]
    gathered = Gathered()
    gathered.take("model_version", [versions])
    found = [
        [(record.name, record.version) for record in batch]  # type: ignore[attr-defined]
        for batch in _batches.batches(gathered, "model_version")
    ]
    gathered.close()
    assert found == [[("a", 1), ("b", 1), ("b", 2), ("b", 10), *(("c", number) for number in range(1, 301))]]


def test_rows_come_in_pieces_of_whole_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners with many rows come in several pieces, each owner whole, also one that spans tables, and those without rows."""
    monkeypatch.setattr(_batches, "_ROW_BYTES", 50)

    def table(*owners: int) -> pa.Table:
        return pa.table({"owner": pa.array(owners, pa.int32()), "text": [f"row of {owner} of many words" for owner in owners]})

    pieces = list(_batches._pieces(iter([table(1, 1, 2), table(2, 2, 5), table(5)]), 8))
    assert [(end, {owner: rows.num_rows for owner, rows in found.items()}) for end, found in pieces] == [
        (2, {1: 2}),
        (5, {2: 3}),
        (8, {5: 2}),
    ]
    assert pieces[1][1][2].column_names == ["text"]
