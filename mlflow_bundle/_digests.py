"""SHA-256 digests, written ``sha256:<64 lower-case hex digits>`` (spec/v1.md, section 2)."""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO, Final

from mlflow_bundle.errors import CorruptError

__all__ = ["ALGORITHM", "PREFIX", "digest_of", "file_hex", "hex_of", "is_hex", "parse_digest"]

ALGORITHM: Final = "sha256"
PREFIX: Final = "sha256:"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


def hex_of(data: bytes | memoryview) -> str:
    """The 64 hex digits of SHA-256 over ``data``."""
    return hashlib.sha256(data).hexdigest()


def digest_of(data: bytes | memoryview) -> str:
    """``sha256:<hex>`` over ``data``."""
    return PREFIX + hex_of(data)


def file_hex(file: BinaryIO) -> str:
    """The hex digits of SHA-256 over the rest of an open file."""
    return hashlib.file_digest(file, ALGORITHM).hexdigest()  # type: ignore[arg-type]


def is_hex(text: str) -> bool:
    """Whether ``text`` is the one valid spelling of a SHA-256 in hex."""
    return _HEX.fullmatch(text) is not None


def parse_digest(text: str) -> str:
    """The hex digits of a written digest.

    Raises:
        CorruptError: another algorithm or another spelling.
    """
    if not text.startswith(PREFIX) or not is_hex(text[len(PREFIX) :]):
        raise CorruptError(f"{text!r} is not a digest of the form sha256:<64 lower-case hex digits>")
    return text[len(PREFIX) :]
