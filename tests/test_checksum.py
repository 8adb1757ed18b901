"""Checksums: equal for equal rows, however these come in portions and in whatever encoding; other for any other rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import assume, given
from hypothesis import strategies as st

from mlflow_bundle._checksum import Checksum
from mlflow_bundle._table_specs import TABLES

FILES, METRICS = TABLES["files/1"], TABLES["metrics/1"]
TEXT = st.text(max_size=3)
ROW = st.tuples(TEXT, TEXT, TEXT, st.integers(0, 2**62), st.none() | TEXT, TEXT, st.none() | TEXT)
ROWS = st.lists(ROW, max_size=8)


def files(rows: list[Any]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(FILES.schema)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, FILES.schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=FILES.schema)


def encoded(table: pa.Table) -> pa.Table:
    """Repeated strings as dictionaries, as they are read back."""
    columns = [
        c.dictionary_encode() if name in FILES.dictionary else c
        for name, c in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, names=table.column_names)


def sums(*tables: pa.Table) -> dict[Any, int]:
    checksum = Checksum(FILES)
    for table in tables:
        checksum.add(table)
    return checksum.sums


@given(ROWS, st.integers(0, 8))
def test_portions_and_encodings_make_no_difference(rows: list[Any], cut: int) -> None:
    """Rows in one piece, in slices, and with dictionaries have the same sums."""
    table = files(rows)
    parts = [table.slice(0, cut), table.slice(cut)] if cut < len(rows) else [table]
    expected = sums(*([table] if rows else []))
    assert sums(*(part for part in parts if part.num_rows)) == expected
    assert sums(*(encoded(part) for part in parts if part.num_rows)) == expected


@given(ROWS, ROWS)
def test_other_rows_have_other_sums(rows: list[Any], others: list[Any]) -> None:
    """Whatever differs, a null from an empty text too, shows."""
    assume(rows != others)
    assert sums(files(rows)) != sums(files(others))


def test_numbers_are_compared_bit_by_bit() -> None:
    """A double that differs in its last bit, or in the sign of zero, has another sum."""
    found = set()
    for value in (0.1, 0.1 + 2**-56, 0.0, -0.0, float("nan")):
        checksum = Checksum(METRICS)
        row = {"experiment_id": "1", "run_id": "r", "key": "k", "step": 0, "timestamp": 0, "value": value}
        checksum.add(pa.Table.from_pylist([row], schema=METRICS.schema))
        found.add(checksum.sums["value", 1])
    assert len(found) == 5
