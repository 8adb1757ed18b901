"""Records of any kind become tables without losing a field."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from mlflow_bundle._record_tables import record_table, unnested
from mlflow_bundle.entities import Document, KeyValue
from mlflow_bundle.records import KINDS
from tests.building import trace_of


def documents(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Documents of a class with any of their fields absent."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    fields = {
        field.name: values(field.type) if field.required else st.one_of(st.just(field.default), values(field.type))
        for field in info.fields
    }
    fields = {name: absent_or(strategy) for name, strategy in fields.items()}
    return st.builds(kind, **fields)


def absent_or(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A field default that msgspec has none for stands for an absent one."""
    return strategy.map(lambda value: UNSET if value is msgspec.NODEFAULT else value)


def values(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return st.lists(values(kind.item_type), max_size=2).map(tuple)
    if isinstance(kind, msgspec.inspect.StructType):
        return documents(kind.cls)
    if isinstance(kind, msgspec.inspect.LiteralType):
        return st.sampled_from(kind.values)
    if isinstance(kind, msgspec.inspect.IntType):
        return st.integers(-(2**53) + 1, 2**53 - 1)
    return st.booleans() if isinstance(kind, msgspec.inspect.BoolType) else st.text(max_size=3)


def plain(value: Any) -> Any:
    """A field as a row of the table has it."""
    if value is UNSET:
        return None
    if isinstance(value, tuple):
        pairs = all(isinstance(one, KeyValue) for one in value)
        return [(one.key, one.value) if pairs else plain(one) for one in value]
    if isinstance(value, Document):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return value


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_table_has_every_field(kind: str, data: st.DataObject) -> None:
    """A row has each field of its record: tags as pairs, lists as lists, what is absent as null."""
    records = data.draw(st.lists(documents(KINDS[kind].type), max_size=3))
    table = record_table(kind, records)
    assert table.column_names == list(KINDS[kind].type.__struct_fields__)
    assert table.to_pylist() == [plain(record) for record in records]


def test_the_types_of_columns() -> None:
    """Texts, numbers, flags, maps and lists of structs have their Arrow types, also where there is no record at all."""
    schema = record_table("trace", []).schema
    assert schema.field("trace_id").type == pa.string()
    assert schema.field("request_time").type == pa.int64()
    assert schema.field("tags").type == pa.map_(pa.string(), pa.string())
    assert schema.field("run_ids").type == pa.list_(pa.string())
    assert schema.field("assessments").type.value_type.field("valid").type == pa.bool_()
    assert (
        record_table("run", []).schema.field("inputs").type.value_type.field("dataset").type.field("name").type == pa.string()
    )


def test_entries_of_lists_become_rows() -> None:
    """Each entry has the columns of its row and its own fields; rows without entries leave none."""
    traces = [trace_of(0), msgspec.structs.replace(trace_of(1), assessments=()), trace_of(2)]
    traces.append(msgspec.structs.replace(trace_of(3), assessments=trace_of(3).assessments * 2))
    table = record_table("trace", traces)
    for part in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        rows = unnested(part, "assessments", ["trace_id"]).to_pylist()
        assert [row["trace_id"] for row in rows] == [traces[n].trace_id for n in (0, 2, 3, 3)]
        assert [row["assessment_id"] for row in rows] == ["a-0", "a-2", "a-3", "a-3"]
        assert rows[0]["metadata"] == [("m", "1")]
    assert unnested(record_table("trace", []), "assessments", ["trace_id"]).num_rows == 0
