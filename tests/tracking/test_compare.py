"""The comparison after a restore notices every difference and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from mlflow_bundle.entities import Alias, ModelInput, ModelOutput, PromptLink, RegisteredModel, Trace
from mlflow_bundle.records import Dataset, DatasetInput, Experiment, KeyValue, Record, Run
from mlflow_bundle.tracking._compare import record_differences

DATASET = Dataset(name="train", digest="abc", source_type="local", source="{}", schema="{}", profile="{}")
RUN = Run(
    run_id="r",
    experiment_id="1",
    run_name="name",
    user_id="me",
    status="FINISHED",
    start_time=1,
    end_time=2,
    deleted_time=3,
    lifecycle_stage="deleted",
    artifact_uri="file:///a",
    source_type="LOCAL",
    source_name="train.py",
    entry_point_name="main",
    source_version="0f",
    params=(KeyValue(key="lr", value="0.1"), KeyValue(key="empty", value="")),
    tags=(KeyValue(key="note", value="a\nb"),),
    inputs=(DatasetInput(dataset=DATASET, tags=(KeyValue(key="context", value="train"),)),),
    model_inputs=(ModelInput(model_id="m-1"),),
    model_outputs=(ModelOutput(model_id="m-2", step=3),),
)
EXPERIMENT = Experiment(
    experiment_id="1",
    name="churn",
    lifecycle_stage="deleted",
    artifact_location="s3://bucket/1",
    creation_time=1,
    last_update_time=2,
    workspace="default",
    tags=(KeyValue(key="team", value="größe"),),
)


def _changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, tuple):
        return ()
    return value + 1 if isinstance(value, int) else {"deleted": "active"}.get(value, value + "x")


@pytest.mark.parametrize(
    ("record", "field"),
    [(record, field) for record in (RUN, EXPERIMENT) for field in record.__struct_fields__],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_field_is_compared(record: Record, field: str) -> None:
    """A change, a loss or an addition of any field, now or in future, is one or more sentences that begin with its name."""
    value = getattr(record, field)
    assert value is not UNSET
    assert value, f"give {field} a value in this test"
    assert record_differences(record, record) == []
    changed = msgspec.structs.replace(record, **{field: _changed(value)})
    for expected, actual in ((record, changed), (changed, record)):
        sentences = record_differences(expected, actual)
        assert sentences
        assert all(sentence.startswith(field.removesuffix("s")) for sentence in sentences)


@pytest.mark.parametrize("field", Dataset.__struct_fields__)
def test_every_field_of_a_dataset_is_compared(field: str) -> None:
    """A dataset input differs when any attribute of its dataset does."""
    dataset = msgspec.structs.replace(DATASET, **{field: getattr(DATASET, field) + "x"})
    changed = msgspec.structs.replace(RUN, inputs=(DatasetInput(dataset=dataset, tags=RUN.inputs[0].tags),))
    assert record_differences(RUN, changed)


def test_an_input_without_tags_or_texts_can_be_missing() -> None:
    """A dataset input that says nothing more than its name is noticed when it is not there."""
    bare = msgspec.structs.replace(RUN, inputs=(DatasetInput(dataset=Dataset(name="bare", digest="0")),))
    none = msgspec.structs.replace(RUN, inputs=())
    assert record_differences(bare, none)[0] == "input 'bare' (0) is missing"
    assert record_differences(none, bare)[0] == "input 'bare' (0) is there and was not expected"


def test_sentences_name_what_differs() -> None:
    """Changed, missing and additional values are told apart, and each sentence has both values."""
    actual = msgspec.structs.replace(
        RUN, status="FAILED", end_time=UNSET, params=(KeyValue(key="lr", value="0.2"), KeyValue(key="new", value="1"))
    )
    assert record_differences(RUN, actual) == [
        "status is 'FAILED' where 'FINISHED' was expected",
        "end_time is missing where 2 was expected",
        "param 'lr' is '0.2' where '0.1' was expected",
        "param 'empty' is missing where '' was expected",
        "param 'new' is '1' where none was expected",
    ]


def test_items_with_parts_have_names() -> None:
    """An alias, a model and an assessment are called by what they are called, in any order, and not by their classes."""
    first = RegisteredModel(name="m", aliases=(Alias(alias="a", version=1), Alias(alias="champion", version=1)))
    moved = RegisteredModel(name="m", aliases=(Alias(alias="champion", version=2), Alias(alias="a", version=1)))
    assert record_differences(first, moved) == ["alias 'champion': version is 2 where 1 was expected"]
    none = RegisteredModel(name="m", aliases=first.aliases[:1])
    assert record_differences(first, none)[0] == "alias 'champion' is missing"
    link = PromptLink(name="p", version="1")
    trace = Trace(trace_id="tr-1", experiment_id="1", prompts=(link,))
    (sentence,) = record_differences(msgspec.structs.replace(trace, prompts=()), trace)
    assert sentence == "prompt 'p' '1' is there and was not expected"
    models = (ModelInput(model_id="m-1"), ModelInput(model_id="m-2"))
    run, turned = (msgspec.structs.replace(RUN, model_inputs=some) for some in (models, models[::-1]))
    assert record_differences(run, turned) == []


def test_long_values_are_cut_but_their_difference_is_said() -> None:
    """A value cut by the target gives a short sentence that still says how the two differ."""
    expected = msgspec.structs.replace(RUN, tags=(KeyValue(key="note", value="x" * 8000),))
    actual = msgspec.structs.replace(RUN, tags=(KeyValue(key="note", value="x" * 6000),))
    (sentence,) = record_differences(expected, actual)
    assert sentence.endswith("(lengths 6000 and 8000, first difference at character 6001)")
    assert len(sentence) < 300


def test_duplicate_keys_do_not_hide_each_other() -> None:
    """Two tags of one key, which only a broken target could return, are not taken for one."""
    twice = msgspec.structs.replace(RUN, tags=RUN.tags * 2)
    assert record_differences(RUN, twice)
    assert record_differences(twice, RUN)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=6), st.randoms())
def test_order_means_nothing(values: dict[str, str], shuffler: Any) -> None:
    """Params, tags and inputs in another order are the same."""
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    inputs = [DatasetInput(dataset=Dataset(name=key, digest="0"), tags=tuple(pairs)) for key in values]
    expected = msgspec.structs.replace(RUN, params=tuple(pairs), tags=tuple(pairs), inputs=tuple(inputs))
    shuffler.shuffle(pairs)
    shuffler.shuffle(inputs)
    assert (
        record_differences(expected, msgspec.structs.replace(RUN, params=tuple(pairs), tags=tuple(pairs), inputs=tuple(inputs)))
        == []
    )
