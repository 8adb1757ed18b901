"""The documents of a bundle itself: marker, snapshot and what they are made of (spec/v1.md, 3, 6 and 8).

Records are frozen values; times are integer milliseconds since 1970 in UTC, sizes are bytes. The entities that a bundle
keeps are in ``entities``, what the package knows of their kinds in ``kinds``; both are offered here too.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import Dataset, DatasetInput, Document, Experiment, KeyValue, Record, Run
from mlflow_bundle.kinds import KINDS, Kind, OrderKey, order_key, record_id

__all__ = [
    "FORMAT",
    "KINDS",
    "LAYOUT",
    "Dataset",
    "DatasetInput",
    "Experiment",
    "KeyValue",
    "Kind",
    "Logical",
    "LogicalKind",
    "Marker",
    "ObjectRef",
    "OrderKey",
    "Problem",
    "Record",
    "Requires",
    "Run",
    "Scope",
    "Snapshot",
    "Source",
    "Writer",
    "order_key",
    "record_id",
]

FORMAT: Final = "mlflow-bundle"
LAYOUT: Final = 1

Text = str | UnsetType


class Requires(Document, frozen=True):
    """Features that a client must know to read, or to add a snapshot."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class Marker(Document, frozen=True):
    """``mlflow-bundle.json``: says that this is a bundle, and which one."""

    format: str
    layout: int
    bundle_id: str
    hash: str = "sha256"
    requires: Requires = Requires()


class ObjectRef(Document, frozen=True, omit_defaults=True):
    """One object that a snapshot needs.

    ``size`` is in bytes. ``rows`` counts lines, table rows or blobs. ``content`` is the digest of the decoded content, which
    does not depend on compression. ``first`` and ``last`` are order keys. ``kind`` says which records, or what a view shows.
    """

    role: str
    path: str
    size: int
    rows: int = 0
    kind: Text = UNSET
    content: Text = UNSET
    first: OrderKey | UnsetType = UNSET
    last: OrderKey | UnsetType = UNSET


class LogicalKind(Document, frozen=True):
    """The Merkle root over all records of one kind."""

    root: str
    rows: int


class Logical(Document, frozen=True):
    """What a snapshot says, whatever its shards and encodings (spec/v1.md, 8)."""

    root: str
    kinds: dict[str, LogicalKind]


class Problem(Document, frozen=True, omit_defaults=True):
    """Something missing, damaged or not restorable, as data. ``kind`` and ``id`` name the entity, ``path`` a file of it,
    ``object`` an object of the bundle; ``experiments`` and ``runs`` are the entities that it touches."""

    code: str
    message: str
    kind: str = ""
    id: str = ""
    path: str = ""
    object: str = ""
    experiments: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


class Scope(Document, frozen=True, omit_defaults=True):
    """What was asked for. Everything empty means everything. ``since`` and ``until`` are milliseconds, both inclusive."""

    experiments: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    filter: str = ""
    since: int | None = None
    until: int | None = None
    lifecycle: Literal["all", "active", "deleted"] = "all"
    descendants: bool = False
    models: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    logged_models: tuple[str, ...] = ()


class Source(Document, frozen=True, omit_defaults=True):
    """Where a snapshot was read from. ``uri`` has no credentials. ``absent`` names what the source does not offer."""

    kind: str
    uri: str
    version: str = ""
    absent: tuple[str, ...] = ()


class Writer(Document, frozen=True):
    """The program that wrote a snapshot."""

    name: str
    version: str


class Snapshot(Document, frozen=True, tag_field="kind", tag="snapshot"):
    """``snapshots/<UTC>-<hex>.json``: the only commit point (spec/v1.md, 6)."""

    format: str
    layout: int
    bundle_id: str
    created_at: int
    state: Literal["complete", "partial"]
    scope: Scope
    source: Source
    writer: Writer
    counts: dict[str, int]
    logical: Logical
    objects: tuple[ObjectRef, ...] = ()
    #: Objects of role ``lists`` that hold the rest of ``objects`` where there are too many for one document.
    object_lists: tuple[ObjectRef, ...] = ()
    parents: tuple[str, ...] = ()
    requires: Requires = Requires()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
