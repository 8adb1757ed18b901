"""The digests of plain rows are as specified, however the rows arrive."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle._owners import NO_ROWS, RowDigester
from mlflow_bundle._table_specs import TABLES
from tests.building import PLAIN, Row, model_metric_of, plain_rows, plain_schema, rows_digest, span_of

ROWS = {"model_metrics/1": model_metric_of, "spans/1": span_of}


def digests(table: str, tables: list[pa.Table]) -> dict[int, tuple[int, str]]:
    digester = RowDigester(TABLES[table])
    for part in tables:
        digester.add(part)
    digester.finish()
    assert digester.sizes.keys() == digester.finished.keys()
    return digester.finished


@pytest.mark.parametrize("table", PLAIN)
@given(counts=st.lists(st.integers(0, 6), max_size=6), cuts=st.lists(st.integers(0, 36), max_size=3))
def test_digests_do_not_depend_on_batches(table: str, counts: list[int], cuts: list[int]) -> None:
    """Each owner with rows has its number of rows and the digest of the specification, wherever the tables are cut."""
    ids = [f"o{number}" for number in range(len(counts))]
    rows = {(table, ids[n]): [ROWS[table](n, i) for i in range(count)] for n, count in enumerate(counts)}
    whole = plain_rows(table, {PLAIN[table]: ids}, rows)
    borders = sorted({0, whole.num_rows, *(cut for cut in cuts if cut < whole.num_rows)})
    parts = [whole.slice(a, b - a) for a, b in pairwise(borders)]
    expected = {n: (count, rows_digest(table, rows[table, ids[n]])) for n, count in enumerate(counts) if count}
    assert digests(table, parts) == expected
    assert digests(table, [whole.cast(dictionaries(table))]) == expected


def dictionaries(table: str) -> pa.Schema:
    """The same columns with repeated strings as dictionaries, which is how they are read back."""
    repeated = pa.dictionary(pa.int32(), pa.string())
    fields = [f.with_type(repeated) if f.name in TABLES[table].dictionary else f for f in plain_schema(table)]
    return pa.schema(fields)


def test_a_digest_by_hand() -> None:
    """The lines of two points, written out: null, a NaN by its bits, quotes, a line feed, and a letter that is not ASCII."""
    rows: list[Row] = [
        {
            "key": 'ü"\n',
            "step": -1,
            "timestamp": 2**62,
            "value": 1.0,
            "run_id": "r",
            "dataset_name": None,
            "dataset_digest": None,
        },
        {"key": "b", "step": 0, "timestamp": 0, "value": math.nan, "run_id": "", "dataset_name": "d", "dataset_digest": "1"},
        {"key": "c", "step": 0, "timestamp": 0, "value": None, "run_id": "", "dataset_name": "d", "dataset_digest": "1"},
    ]
    text = (
        '["ü\\"\\n",-1,4611686018427387904,"3ff0000000000000","r",null,null]\n'
        '["b",0,0,"7ff8000000000000","","d","1"]\n'
        '["c",0,0,null,"","d","1"]\n'
    )
    table = plain_rows("model_metrics/1", {"logged_model": ["m"]}, {("model_metrics/1", "m"): rows})
    assert digests("model_metrics/1", [table]) == {0: (3, hashlib.sha256(text.encode()).hexdigest())}
    assert hashlib.sha256(b"").hexdigest() == NO_ROWS


@given(st.lists(st.floats(width=64), max_size=5))
def test_doubles_are_their_bits(values: list[float]) -> None:
    """No two different doubles give the same digest, and -0.0 is not 0.0."""
    rows = [{**model_metric_of(1, 0), "value": value} for value in values]
    table = plain_rows("model_metrics/1", {"logged_model": ["m"]}, {("model_metrics/1", "m"): rows})
    lines = b"".join(_line(row) for row in rows)
    assert digests("model_metrics/1", [table]).get(0, (0, NO_ROWS)) == (len(values), hashlib.sha256(lines).hexdigest())


def _line(row: dict[str, Any]) -> bytes:
    values = [row[name] for name in TABLES["model_metrics/1"].digested]
    values[3] = struct.pack(">d", values[3]).hex()
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
