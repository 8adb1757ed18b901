"""How notebooks show an archive, its records and its reports: at most a page, everything escaped."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from mlflow_bundle._text import bytes_text, clean, time_text

__all__ = ["Shown", "card"]

#: Items of a list, rows of a table, and letters of a value that are shown.
_ITEMS: Final = 12
_LETTERS: Final = 200
_TIMES: Final = ("_at", "_time", "_ms", "timestamp")


class Shown:
    """A record or report that notebooks show as a table: the fields that say something, the first items of its lists."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return card(type(self).__name__, ((name.replace("_", " "), value) for name, value in _fields(self)))


def card(title: str, pairs: Iterable[tuple[str, object]]) -> str:
    """A title above a table of names and values."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{_escaped(name)}</th><td>{_shown(value)}</td></tr>" for name, value in pairs
    )
    return f"<div><strong>{_escaped(title)}</strong><table>{rows}</table></div>"


def _fields(document: Any) -> Iterator[tuple[str, object]]:
    if dataclasses.is_dataclass(document):
        names: Iterable[str] = (field.name for field in dataclasses.fields(document))
    else:
        names = document.__struct_fields__
    for name in names:
        value = getattr(document, name)
        if value is UNSET or value is None or value in ("", (), {}):
            continue
        yield name, _meant(name, value)


def _meant(name: str, value: object) -> object:
    """A number as what its name says that it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        if name.endswith(_TIMES):
            return time_text(value)
        return bytes_text(value) if name.endswith("bytes") else f"{value:,}"
    return value


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return _list([f"{key}: {_item(item)}" for key, item in _first(value.items())], len(value))
    if isinstance(value, list | tuple):
        return _list([_item(item) for item in _first(value)], len(value))
    if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
        return _escaped(_item(value))
    return _escaped(value)


def _first(items: Iterable[Any]) -> Iterator[Any]:
    return (item for item, _ in zip(items, range(_ITEMS), strict=False))


def _item(item: Any) -> str:
    """An item of a list in one line."""
    if isinstance(item, msgspec.Struct) and item.__struct_fields__ == ("key", "value"):
        return f"{item.key} = {item.value}"  # type: ignore[attr-defined]
    if isinstance(item, msgspec.Struct) or dataclasses.is_dataclass(item):
        return ", ".join(f"{name.replace('_', ' ')} {_item(value)}" for name, value in _fields(item))
    if isinstance(item, list | tuple):
        return f"{len(item):,}"
    return f"{item:,}" if isinstance(item, int) else str(item)


def _list(lines: Sequence[str], count: int) -> str:
    more = [f"and {count - len(lines):,} more"] if count > len(lines) else []
    return "<br>".join(_escaped(line) for line in [*lines, *more])


def _escaped(value: object) -> str:
    text = clean(value)
    return html.escape(text if len(text) <= _LETTERS else text[:_LETTERS] + "…")
