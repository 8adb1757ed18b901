"""What of a batch can be read where one entity in it has a column that cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mlflow_bundle.errors import CorruptError

__all__ = ["sound"]

Key = TypeVar("Key")
Item = TypeVar("Item")


def sound(
    load: Callable[[Sequence[Key]], list[Item]], keys: Sequence[Key], broken: Callable[[Key, CorruptError], object]
) -> list[Item]:
    """What ``load`` gives for these keys, in their order. Where it refuses, the batch is halved until single ones are found
    that cannot be read: they are left out, and ``broken`` takes each with its error.

    Raises:
        CorruptError: what is damaged is more than a column of some entities.
    """
    try:
        return load(keys)
    except CorruptError as error:
        if error.code != "column":
            raise
        if len(keys) == 1:
            broken(keys[0], error)
            return []
    half = len(keys) // 2
    return [*sound(load, keys[:half], broken), *sound(load, keys[half:], broken)]
