"""Names of MLflow as single parts of a path, readable, and the same names back from them."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

__all__ = ["name_of", "part_of", "parts_of"]

#: What would end a part, start an escape, be a pattern, a query or a link of a chain, or change how a terminal shows the rest.
_ESCAPED: Final = re.compile(r"[%/\\*?\[\]#\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|(?<=:):")
_DOTS: Final = re.compile(r"\.{1,2}")
#: No name begins like this otherwise, because a percent sign is always followed by two digits.
_EMPTY: Final = "%"


def part_of(name: str) -> str:
    """A name as one part of a path, percent-encoded only where it must be: ``a/b`` is ``a%2Fb``, ``..`` is ``%2E%2E``."""
    if not name:
        return _EMPTY
    if _DOTS.fullmatch(name):
        return name.replace(".", "%2E")
    return _ESCAPED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def name_of(part: str) -> str:
    """The name that a part of a path stands for."""
    return "" if part == _EMPTY else unquote(part)


def parts_of(path: str) -> str:
    """A path of a file of MLflow, part by part."""
    return "/".join(map(part_of, path.split("/")))
