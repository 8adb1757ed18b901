"""What differs between two records, leaf by leaf.

Both records are taken apart into leaves by their struct fields, so that a new field is compared without new code here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from mlflow_bundle.entities import GatewayBinding, PromptLink, ReviewItem, WebhookEvent
from mlflow_bundle.records import DatasetInput, KeyValue, Record

__all__ = ["PRESENT", "Leaf", "differing_leaves"]

#: The value of an item that has parts: that it is there.
PRESENT: Final = object()
#: What one item of a list is called, where that is more than its name without an s.
_SINGULARS: Final = {"aliases": "alias"}
#: How many of its first members name an item, where it is not one.
_NAMED_BY: Final = {GatewayBinding: 2, PromptLink: 2, ReviewItem: 2, WebhookEvent: 2}


class Leaf(NamedTuple):
    """A single value that differs: a label that is unique in its record, and the two values; ``UNSET`` where there is none."""

    label: str
    first: Any
    second: Any


def differing_leaves(first: Record, second: Record) -> list[Leaf]:
    """Every attribute, param, tag or item that differs. The order of items means nothing; absent differs from every value."""
    if first == second:
        return []
    one, other = dict(_leaves(first, "")), dict(_leaves(second, ""))
    labels = [*one, *(label for label in other if label not in one)]
    leaves = (Leaf(label, one.get(label, UNSET), other.get(label, UNSET)) for label in labels)
    return [leaf for leaf in leaves if leaf.first != leaf.second]


def _leaves(value: msgspec.Struct, label: str, *, after: int = 0) -> Iterator[tuple[str, Any]]:
    """Every single value in a struct, but for its first members, with a label that is unique in it."""
    for field in value.__struct_fields__[after:]:
        inner = getattr(value, field)
        if isinstance(inner, tuple):
            yield from _items(inner, f"{label}{_SINGULARS.get(field) or field.removesuffix('s')} ")
        elif isinstance(inner, msgspec.Struct):
            yield from _leaves(inner, f"{label}{field} ")
        elif inner is not UNSET:
            yield label + field, inner


def _items(items: tuple[Any, ...], label: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a list whose order means nothing. A name that comes twice is told apart by its number."""
    seen: set[str] = set()
    for item in items:
        name = label + _name(item)
        unique = name if name not in seen else next(f"{name} no. {n}" for n in count(2) if f"{name} no. {n}" not in seen)
        seen.add(unique)
        if isinstance(item, KeyValue):
            yield unique, item.value
        elif isinstance(item, msgspec.Struct):
            yield unique, PRESENT
            yield from _leaves(item, unique + ": ", after=_naming(item))
        else:
            yield unique, item


def _name(item: Any) -> str:
    """How people call one item of a list."""
    if isinstance(item, KeyValue):
        return repr(item.key)
    if isinstance(item, DatasetInput):
        return f"{item.dataset.name!r} ({item.dataset.digest})"
    if not isinstance(item, msgspec.Struct):
        return repr(item)
    return " ".join(repr(getattr(item, field)) for field in item.__struct_fields__[: _naming(item)])


def _naming(item: msgspec.Struct) -> int:
    """How many of its first members the name of an item has, so that nothing more needs to be said of them."""
    return 0 if isinstance(item, DatasetInput) else _NAMED_BY.get(type(item), 1)
