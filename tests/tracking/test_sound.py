"""One entity that cannot be read costs a batch neither the others nor many questions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mlflow_bundle.errors import CorruptError
from mlflow_bundle.tracking.database._sound import sound


@pytest.mark.parametrize("broken", [set(), {0}, {999}, {3, 4, 700}])
def test_only_those_that_cannot_be_read_are_left_out(broken: set[int]) -> None:
    """The others come in their order, each broken one is told once with its own error, by some twenty questions each."""
    asked, told = [], {}

    def load(keys: Sequence[int]) -> list[int]:
        asked.append(len(keys))
        if bad := sorted(broken.intersection(keys)):
            raise CorruptError(f"{bad[0]} is broken", code="column")
        return list(keys)

    found = sound(load, range(1000), lambda key, error: told.setdefault(key, error.message))
    assert found == [key for key in range(1000) if key not in broken]
    assert told == {key: f"{key} is broken" for key in broken}
    assert len(asked) <= 1 + 21 * len(broken)


def test_a_damaged_database_is_not_taken_for_broken_entities() -> None:
    """What is wrong with more than a column of some rows is raised."""

    def load(keys: Sequence[int]) -> list[int]:
        raise CorruptError("the database is damaged")

    with pytest.raises(CorruptError, match="the database is damaged"):
        sound(load, range(10), lambda key, error: pytest.fail(f"{key}: {error}"))


def test_a_column_that_is_wrong_everywhere_is_one_error() -> None:
    """A whole batch that cannot be read is no thousand problems, and nobody is told of any."""

    def load(keys: Sequence[int]) -> list[int]:
        raise CorruptError(f"{len(keys)} are broken", code="column")

    with pytest.raises(CorruptError, match="500 are broken"):
        sound(load, range(500), lambda key, error: pytest.fail(f"{key}: {error}"))
