"""What two sources can both say: what only one of them offers (``Source.absent``) is no difference between their snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from mlflow_bundle.records import Record, Source

__all__ = ["Common"]

S = TypeVar("S", bound=msgspec.Struct)

#: What sources call the deleted entities of a kind that they do not show.
_DELETED: Final = ("deleted_ones", "unknown_deleted_ones")
_SERVER: Final = "rest"


class Common:
    """The kinds and members that two sources both offer."""

    def __init__(self, first: Source, second: Source) -> None:
        self._absent = set(first.absent) ^ set(second.absent)
        #: To a server an empty text is none.
        self._texts = (first.kind == _SERVER) != (second.kind == _SERVER)

    def has(self, kind: str) -> bool:
        """Whether both have a kind at all."""
        return kind not in self._absent

    def hides(self, kind: str) -> bool:
        """Whether members of a kind are left out."""
        return self._texts or any(name.startswith(f"{kind}.") for name in self._absent)

    def of(self, record: Record) -> Record:
        """What both could say of an entity."""
        kind = str(record.__struct_config__.tag)
        for name in self._absent:
            owner, *path = name.split(".")
            if owner == kind and path:
                record = _without(record, path)
        return _without_empty(record) if self._texts else record

    def shows(self, record: Record) -> bool:
        """Whether both could have an entity: not where it is deleted, and one of them shows no deleted ones."""
        kind = record.__struct_config__.tag
        deleted = (
            getattr(record, "lifecycle_stage", "") == "deleted" or getattr(record, "current_stage", "") == "Deleted_Internal"
        )
        return not (deleted and any(f"{kind}.{name}" in self._absent for name in _DELETED))

    def hidden(self, kinds: Iterable[str]) -> tuple[str, ...]:
        """What is not compared of kinds."""
        wanted = set(kinds)
        names = sorted(name for name in self._absent if name.partition(".")[0] in wanted)
        return (*names, *(["empty texts"] if self._texts and wanted else []))


def _without(struct: S, path: list[str]) -> S:
    """A struct without a member, or without one in the structs that it lists. Other names say what no member is for."""
    name, *rest = path
    if name not in struct.__struct_fields__:
        return struct
    value: Any = getattr(struct, name)
    if rest:
        return replace(struct, **{name: tuple(_without(one, rest) for one in value)}) if isinstance(value, tuple) else struct
    return replace(struct, **{name: () if isinstance(value, tuple) else UNSET})


def _without_empty(record: Record) -> Record:
    empty = [name for name in record.__struct_fields__ if getattr(record, name) == ""]
    return replace(record, **dict.fromkeys(empty, UNSET)) if empty else record
