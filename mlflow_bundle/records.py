"""The JSON documents of the format: one class per document, field names as in MLflow's REST API (spec/v1.md, 4 to 6).

Records are frozen values. A field that the source does not offer is absent (``UNSET``), never invented. Times are
integer milliseconds since 1970 in UTC, sizes are bytes. No field holds a float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "FORMAT",
    "KINDS",
    "LAYOUT",
    "LOCATION_FIELDS",
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
Milliseconds = int | UnsetType


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object. Readers ignore fields that they do not know."""


class KeyValue(_Document, frozen=True):
    """One tag or one param."""

    key: str
    value: str


class Dataset(_Document, frozen=True):
    """A dataset that a run read. ``source``, ``schema`` and ``profile`` are the original texts."""

    name: str
    digest: str
    source_type: Text = UNSET
    source: Text = UNSET
    schema: Text = UNSET
    profile: Text = UNSET


class DatasetInput(_Document, frozen=True):
    """A dataset input of a run with its tags, in MLflow's ``inputs.dataset_inputs``."""

    dataset: Dataset
    tags: tuple[KeyValue, ...] = ()


class Record(_Document, frozen=True, tag_field="kind"):
    """Base of all entities that a bundle keeps, one JSON line each."""


class Experiment(Record, frozen=True, tag="experiment"):
    """An experiment (spec/v1.md, 4.2)."""

    experiment_id: str
    name: str
    lifecycle_stage: Literal["active", "deleted"] = "active"
    artifact_location: Text = UNSET
    creation_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    workspace: Text = UNSET
    tags: tuple[KeyValue, ...] = ()


class Run(Record, frozen=True, tag="run"):
    """A run without its metrics and files, which are tables (spec/v1.md, 4.3).

    ``deleted_time``, ``source_type``, ``source_name``, ``entry_point_name`` and ``source_version`` are columns of MLflow's
    database that no REST API returns: only a database or a file store offers them.
    """

    run_id: str
    experiment_id: str
    run_name: Text = UNSET
    user_id: Text = UNSET
    status: Text = UNSET
    start_time: Milliseconds = UNSET
    end_time: Milliseconds = UNSET
    deleted_time: Milliseconds = UNSET
    lifecycle_stage: Literal["active", "deleted"] = "active"
    artifact_uri: Text = UNSET
    source_type: Text = UNSET
    source_name: Text = UNSET
    entry_point_name: Text = UNSET
    source_version: Text = UNSET
    params: tuple[KeyValue, ...] = ()
    tags: tuple[KeyValue, ...] = ()
    inputs: tuple[DatasetInput, ...] = ()


OrderKey = tuple[int, str]


class Kind(msgspec.Struct, frozen=True):
    """What the core has to know of a kind of record: a new entity is a new row in ``KINDS``."""

    name: str
    type: type[Record]
    rank: int
    identify: Callable[[Any], str]
    created: Callable[[Any], int | UnsetType]


#: Every kind of record, in archive order.
KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("experiment", Experiment, 10, lambda r: r.experiment_id, lambda r: r.creation_time),
            Kind("run", Run, 20, lambda r: r.run_id, lambda r: r.start_time),
        )
    }
)

#: Members of a record that say where its source keeps files. They are archived, and no part of the logical root: a
#: restore puts the files elsewhere and is the same all the same.
LOCATION_FIELDS: Final = ("artifact_location", "artifact_uri")

#: Stands for an absent time in order keys: entities without one come last.
NO_TIME: Final = 2**53 - 1


def _kind(record: Record) -> Kind:
    return KINDS[str(record.__struct_config__.tag)]


def record_id(record: Record) -> str:
    """The id of the entity, unique within its kind."""
    identify: str = _kind(record).identify(record)
    return identify


def order_key(record: Record) -> OrderKey:
    """Where the record stands among those of its kind: (creation or start time, id)."""
    kind = _kind(record)
    created = kind.created(record)
    return (NO_TIME if created is UNSET else created, kind.identify(record))


class Requires(_Document, frozen=True):
    """Features that a client must know to read, or to add a snapshot."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class Marker(_Document, frozen=True):
    """``mlflow-bundle.json``: says that this is a bundle, and which one."""

    format: str
    layout: int
    bundle_id: str
    hash: str = "sha256"
    requires: Requires = Requires()


class ObjectRef(_Document, frozen=True, omit_defaults=True):
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


class LogicalKind(_Document, frozen=True):
    """The Merkle root over all records of one kind."""

    root: str
    rows: int


class Logical(_Document, frozen=True):
    """What a snapshot says, whatever its shards and encodings (spec/v1.md, 8)."""

    root: str
    kinds: dict[str, LogicalKind]


class Problem(_Document, frozen=True, omit_defaults=True):
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


class Scope(_Document, frozen=True, omit_defaults=True):
    """What was asked for. Everything empty means everything. ``since`` and ``until`` are milliseconds, both inclusive."""

    experiments: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    filter: str = ""
    since: int | None = None
    until: int | None = None
    lifecycle: Literal["all", "active", "deleted"] = "all"
    descendants: bool = False


class Source(_Document, frozen=True, omit_defaults=True):
    """Where a snapshot was read from. ``uri`` has no credentials. ``absent`` names what the source does not offer."""

    kind: str
    uri: str
    version: str = ""
    absent: tuple[str, ...] = ()


class Writer(_Document, frozen=True):
    """The program that wrote a snapshot."""

    name: str
    version: str


class Snapshot(_Document, frozen=True, tag_field="kind", tag="snapshot"):
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
