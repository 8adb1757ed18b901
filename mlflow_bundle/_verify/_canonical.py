"""Whether JSON is canonical (spec/v1.md, 2.2)."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from mlflow_bundle._codec import GREATEST_INTEGER, encode

__all__ = ["is_canonical"]

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NUMBER: Final = re.compile(rb"-?[0-9][0-9.eE+-]*")
_DIGITS: Final = len(str(-GREATEST_INTEGER))
#: Begins the UTF-8 of what is beyond the BMP, where UTF-16 sorts otherwise than code points do.
_BEYOND: Final = re.compile(rb"[\xf0-\xf4]")


def is_canonical(data: bytes) -> bool:
    """Whether these bytes are one canonical JSON document. The nesting was checked before."""
    if not all(map(_is_plain, _NUMBER.findall(_STRING.sub(b"", data)))):
        return False
    try:
        value = msgspec.json.decode(data)
        return (_BEYOND.search(data) is None and encode(value) == data) or msgspec.json.encode(_in_order(value)) == data
    except (msgspec.MsgspecError, UnicodeError):
        return False


def _is_plain(number: bytes) -> bool:
    """Whether a number is an integer that every program can hold."""
    digits = number.removeprefix(b"-")
    return digits.isdigit() and len(number) <= _DIGITS and int(digits) <= GREATEST_INTEGER


def _in_order(value: Any) -> Any:
    """The same value with all names in the order of their UTF-16 code units."""
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value, key=lambda name: name.encode("utf-16-be"))}
    return [_in_order(item) for item in value] if isinstance(value, list) else value
