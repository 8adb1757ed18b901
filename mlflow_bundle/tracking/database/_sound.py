"""What of a batch can be read where one entity in it has a column that cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from mlflow_bundle.errors import CorruptError

__all__ = ["sound"]

#: So many that cannot be read, and none that can, are no damage of single ones.
_MANY: Final = 100

Key = TypeVar("Key")
Item = TypeVar("Item")


def sound(
    load: Callable[[Sequence[Key]], list[Item]], keys: Sequence[Key], broken: Callable[[Key, CorruptError], object]
) -> list[Item]:
    """What ``load`` gives for these keys, in their order. Where it refuses, the batch is halved until single ones are found
    that cannot be read: they are left out, and ``broken`` takes each with its error.

    Raises:
        CorruptError: what is damaged is more than a column of some entities, such as a column of the whole table.
    """
    found: list[tuple[Key, CorruptError]] = []
    try:
        return load(keys)
    except CorruptError as error:
        rest = _halved(load, keys, error, found)
        if len(found) == len(keys) > _MANY:
            raise
    for key, why in found:
        broken(key, why)
    return rest


def _halved(
    load: Callable[[Sequence[Key]], list[Item]], keys: Sequence[Key], error: CorruptError, found: list[tuple[Key, CorruptError]]
) -> list[Item]:
    """What can be read of keys that ``load`` refuses with this error."""
    if error.code != "column":
        raise error
    if len(keys) == 1:
        found.append((keys[0], error))
        return []
    half = len(keys) // 2
    rest: list[Item] = []
    for part in (keys[:half], keys[half:]):
        try:
            rest += load(part)
        except CorruptError as its:
            rest += _halved(load, part, its, found)
    return rest
