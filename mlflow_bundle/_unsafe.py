"""Which paths of files must not be used as they are when files are written (spec/v1.md, 10.2)."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["collisions", "leads_out", "why_not_written", "why_unsafe"]

_RESERVED: Final = re.compile(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.DOTALL)
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_NO_NAME_ON_WINDOWS: Final = re.compile(r'[\\:*?"<>|\x00-\x1f]|[. ]$')


def leads_out(path: str) -> str | None:
    """Why a path is one that means another place than below a folder, or None."""
    if why := _climbs(path):
        return why
    if path.startswith("\\") or ".." in path.replace("\\", "/").split("/"):
        return "is absolute or climbs where a backslash separates paths"
    return None


def why_unsafe(path: str) -> str | None:
    """What is wrong with a path as such, or None."""
    if why := _climbs(path):
        return why
    for part in path.split("/"):
        if _DRIVE.match(part):
            return "names a drive"
        if _RESERVED.fullmatch(part):
            return "contains a name that Windows reserves for devices"
    return None


def _climbs(path: str) -> str | None:
    if "\0" in path:
        return "contains NUL"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "is absolute, climbs, or has empty parts"
    return None


def why_not_written(path: str, *, windows: bool = os.name == "nt") -> str | None:
    """Why no file may be written under a path from a bundle, or None. ``windows``: names that only Windows refuses count."""
    if why := why_unsafe(path) or leads_out(path):
        return why
    if windows and any(map(_NO_NAME_ON_WINDOWS.search, path.split("/"))):
        return "is no name on Windows"
    return None


def collisions(paths: Iterable[str]) -> Iterator[str]:
    """Those of one owner's paths that are another one, or a folder of another one, on disks that fold case or Unicode."""
    folded = {path: unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold()) for path in paths}
    folders = {text[:place] for text in folded.values() for place, letter in enumerate(text) if letter == "/"}
    seen: set[str] = set()
    for path, text in folded.items():
        if text in seen or text in folders:
            yield path
        seen.add(text)
