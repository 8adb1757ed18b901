"""Every path inside a bundle, both ways: spelled here and nowhere else (spec/v1.md, section 3)."""

from __future__ import annotations

import re
from typing import Final

from mlflow_bundle._digests import is_hex

__all__ = [
    "BLOBS",
    "FILES",
    "INDEX",
    "LISTS",
    "MARKER",
    "METRICS",
    "MIMETYPE",
    "MIMETYPE_ENTRY",
    "MODEL_METRICS",
    "OBJECTS",
    "PACKS",
    "README",
    "RECORDS",
    "SNAPSHOTS",
    "SPANS",
    "STAGING",
    "VIEWS",
    "object_hex",
    "object_path",
    "object_role",
    "snapshot_path",
    "snapshot_stem",
]

MARKER: Final = "mlflow-bundle.json"
README: Final = "README.md"
SNAPSHOTS: Final = "snapshots"
OBJECTS: Final = "objects"
#: Unfinished writes of a local bundle. Never read, never listed, no part of the format.
STAGING: Final = ".staging"
#: The first entry of the one-file form and its content.
MIMETYPE_ENTRY: Final = "mimetype"
MIMETYPE: Final = "application/vnd.mlflow-bundle+zip"

# The roles of objects: the folder below objects/ that each lives in.
RECORDS: Final = "records"
METRICS: Final = "metrics"
MODEL_METRICS: Final = "model_metrics"
SPANS: Final = "spans"
FILES: Final = "files"
INDEX: Final = "index"
VIEWS: Final = "views"
LISTS: Final = "lists"
PACKS: Final = "packs"
BLOBS: Final = "blobs"

_SUFFIX: Final = {RECORDS: ".jsonl.zst", LISTS: ".jsonl.zst", PACKS: ".zip", BLOBS: ""}
_TABLE_SUFFIX: Final = ".parquet"
_FANNED_OUT: Final = frozenset({PACKS, BLOBS})
_OBJECT: Final = re.compile(r"objects/([a-z][a-z_]*)/(?:([0-9a-f]{2})/)?([0-9a-f]{64})((?:\.[a-z0-9]+)*)")
_SNAPSHOT: Final = re.compile(r"snapshots/([0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{16})\.json")


def object_path(role: str, sha256: str) -> str:
    """Where the object of a role with this SHA-256 (hex) lies. A role that is not known here is a table."""
    if not is_hex(sha256):
        raise ValueError(f"not a SHA-256 in hex: {sha256!r}")
    fan_out = f"{sha256[:2]}/" if role in _FANNED_OUT else ""
    return f"{OBJECTS}/{role}/{fan_out}{sha256}{_SUFFIX.get(role, _TABLE_SUFFIX)}"


def object_hex(path: str) -> str | None:
    """The SHA-256 that the path of an object names, or None when it is not the one right path of an object."""
    match = _OBJECT.fullmatch(path)
    if match is None or object_path(match[1], match[3]) != path:
        return None
    return match[3]


def object_role(path: str) -> str | None:
    """The role that the path of an object names, or None when it is no path of an object."""
    match = _OBJECT.fullmatch(path)
    return match[1] if match else None


def snapshot_path(stem: str) -> str:
    """Where the snapshot ``<UTC>-<first 16 hex digits of its SHA-256>`` lies."""
    return f"{SNAPSHOTS}/{stem}.json"


def snapshot_stem(path: str) -> str | None:
    """The name of a snapshot from its path, or None when the path is no snapshot's."""
    match = _SNAPSHOT.fullmatch(path)
    return match[1] if match else None
