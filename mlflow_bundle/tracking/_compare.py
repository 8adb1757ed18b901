"""What differs between a record as it should be and as it was read back, in sentences."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET

from mlflow_bundle._differences import PRESENT, differing_leaves
from mlflow_bundle.records import Record

__all__ = ["record_differences"]

#: Characters of a value that are shown.
SHOWN: Final = 60


def record_differences(expected: Record, actual: Record) -> list[str]:
    """One sentence for every attribute, param, tag or item that differs between two records of one kind; empty when they say
    the same. The order of lists means nothing. An absent attribute differs from every value."""
    return [_sentence(*leaf) for leaf in differing_leaves(expected, actual)]


def _sentence(label: str, wanted: Any, found: Any) -> str:
    if wanted is PRESENT:
        return f"{label} is missing"
    if found is PRESENT:
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
