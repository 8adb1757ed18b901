"""What differs between a record as it should be and as it was read back, in sentences.

Both records are taken apart into leaves by their struct fields, so that a new field is compared without new code here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

import msgspec
from msgspec import UNSET

from mlflow_bundle.records import DatasetInput, Experiment, KeyValue, Record, Run

__all__ = ["experiment_differences", "record_differences", "run_differences"]

#: Characters of a value that are shown.
SHOWN: Final = 60
#: The value of an item that has parts: that it is there.
_PRESENT: Final = object()


def run_differences(expected: Run, actual: Run) -> list[str]:
    """One sentence for every attribute, param, tag and dataset input that differs; empty when the runs say the same.

    The order of params, tags and inputs means nothing. An absent attribute differs from every value.
    """
    return _differences(expected, actual)


def experiment_differences(expected: Experiment, actual: Experiment) -> list[str]:
    """One sentence for every attribute and tag that differs; empty when the experiments say the same."""
    return _differences(expected, actual)


def record_differences(expected: Record, actual: Record) -> list[str]:
    """One sentence for everything that differs between two records of one kind."""
    return _differences(expected, actual)


def _differences(expected: Record, actual: Record) -> list[str]:
    if expected == actual:
        return []
    wanted, found = dict(_leaves(expected, "")), dict(_leaves(actual, ""))
    labels = [*wanted, *(label for label in found if label not in wanted)]
    pairs = ((label, wanted.get(label, UNSET), found.get(label, UNSET)) for label in labels)
    return [_sentence(label, one, other) for label, one, other in pairs if one != other]


def _leaves(value: msgspec.Struct, label: str) -> Iterator[tuple[str, Any]]:
    """Every single value in a struct with a label that is unique in it."""
    for field in value.__struct_fields__:
        inner = getattr(value, field)
        if isinstance(inner, tuple):
            yield from _items(inner, f"{label}{field.removesuffix('s')} ")
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
            yield unique, _PRESENT
            yield from _leaves(item, unique + ": ")
        else:
            yield unique, item


def _name(item: Any) -> str:
    """How people call one item of a list."""
    if isinstance(item, KeyValue):
        return repr(item.key)
    if isinstance(item, DatasetInput):
        return f"{item.dataset.name!r} ({item.dataset.digest})"
    return repr(item) if not isinstance(item, msgspec.Struct) else type(item).__name__


def _sentence(label: str, wanted: Any, found: Any) -> str:
    if wanted is _PRESENT:
        return f"{label} is missing"
    if found is _PRESENT:
        return f"{label} is there and was not expected"
    if found is UNSET:
        return f"{label} is missing where {_cut(wanted)} was expected"
    if wanted is UNSET:
        return f"{label} is {_cut(found)} where none was expected"
    said = f"{label} is {_cut(found)} where {_cut(wanted)} was expected"
    if _cut(found) == _cut(wanted):
        said += f" (lengths {len(str(found))} and {len(str(wanted))}, first difference at character {_parting(found, wanted)})"
    return said


def _cut(value: Any) -> str:
    return repr(value) if not isinstance(value, str) or len(value) <= SHOWN else repr(value[:SHOWN]) + "..."


def _parting(first: str, second: str) -> int:
    """The number of the first character, from 1, at which two texts part."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs, 1) if a != b), min(len(first), len(second)) + 1)
