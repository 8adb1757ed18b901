"""Names become parts of paths and come back."""

from __future__ import annotations

import string

import fsspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_bundle.plugins._names import name_of, part_of, parts_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(NAMES)
@example("")
@example("%")
@example("..")
@example("%2E")
@example("a::b:::c")
def test_every_name_comes_back(name: str) -> None:
    """The part of a name means that name, and no other part of a path."""
    part = part_of(name)
    assert name_of(part) == name
    assert part not in ("", ".", "..")
    assert not set("/\\*?[]#\0") & set(part)
    assert "::" not in part


@given(NAMES, NAMES)
def test_two_names_are_two_parts(one: str, other: str) -> None:
    """No two names become one part."""
    assert (part_of(one) == part_of(other)) == (one == other)


@pytest.mark.parametrize("name", ["churn", "größe 日本", "a b-c_d.e", "v1.2 (final)", "a=b&c+d,e;f@g$h!'\"", "x:y"])
def test_ordinary_names_stay(name: str) -> None:
    """What does no harm is not encoded."""
    assert part_of(name) == name


@pytest.mark.parametrize("letter", ["\n", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066", "\u200f", "\u2028"])
def test_nothing_that_a_terminal_acts_upon(letter: str) -> None:
    """Control characters and marks that turn the direction of text are encoded."""
    assert set(part_of(f"a{letter}b")) <= set(string.ascii_letters + string.digits + "%")


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_paths_survive_fsspec(names: list[str]) -> None:
    """A path of parts is the same path behind fsspec's reading of URLs."""
    path = "x/" + parts_of("/".join(names)) + "/y"
    fs = fsspec.get_filesystem_class("mlflow-bundle")
    assert fs._strip_protocol(f"mlflow-bundle://{path}") == path
