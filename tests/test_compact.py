"""Compact lists are lists: what was appended is read, by number and by slice."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle._compact import Digests, Texts

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8)


@given(TEXTS, st.slices(8), st.integers(-9, 9))
def test_texts_are_a_list(texts: list[str], part: slice, number: int) -> None:
    """Every number and slice gives what a list gives, and nothing where a list has nothing."""
    kept = Texts(texts)
    assert list(kept) == texts
    assert kept[part] == texts[part]
    if -len(texts) <= number < len(texts):
        assert kept[number] == texts[number]
    else:
        with pytest.raises(IndexError):
            kept[number]


@given(TEXTS, st.slices(8))
def test_digests_are_a_list(texts: list[str], part: slice) -> None:
    """Digests come back in hex and as bytes."""
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    kept = Digests()
    for digest in digests:
        kept.append(digest)
    assert list(kept) == digests
    assert kept[part] == digests[part]
    assert [kept.raw(number).hex() for number in range(len(kept))] == digests
