"""The bases of all records, and the types of their fields."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UnsetType

from mlflow_bundle._html import Shown

__all__ = ["Decimal", "Document", "Flag", "Json", "KeyValue", "Milliseconds", "Record", "Stage", "Text"]

Text = str | UnsetType
Milliseconds = int | UnsetType
Decimal = str | UnsetType
Json = str | UnsetType
Flag = bool | UnsetType
Stage = Literal["active", "deleted"]


class Document(Shown, msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object. Readers ignore fields that they do not know."""


class KeyValue(Document, frozen=True):
    """One tag or one param."""

    key: str
    value: str


class Record(Document, frozen=True, tag_field="kind"):
    """Base of all entities that a bundle keeps, one JSON line each."""
