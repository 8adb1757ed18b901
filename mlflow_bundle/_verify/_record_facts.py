"""What records and runs views say of each entity, once their bytes are known to be those of their names (spec/v1.md, 4, 5.4).

Facts are small tables, one row an entity. What is wrong in an object by itself is noted here; whether objects agree with
each other and with the snapshot is decided from their facts (``_checks``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._codec import check_depth, decode_record, line_kind, logical_digest, read_frames
from mlflow_bundle._limits import Limits
from mlflow_bundle._redact import redact_bytes
from mlflow_bundle._row_groups import row_groups
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._verify._canonical import is_canonical
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle.errors import BundleError, CorruptError, LimitError
from mlflow_bundle.records import KINDS, ObjectRef, OrderKey, Run, order_key, record_id

__all__ = ["NO_LATEST", "RecordFacts", "ViewFacts", "entity_view_facts", "latest_digests", "record_facts", "view_facts"]

_SHORT: Final = 16
_RECORDS: Final = pa.schema(
    [
        ("id", pa.string()),
        ("experiment_id", pa.string()),
        ("name", pa.string()),
        ("record_digest", pa.string()),
        ("logical", pa.binary(32)),
        ("shown", pa.binary(_SHORT)),
        ("frame_offset", pa.int64()),
        ("frame_length", pa.int64()),
    ]
)
_VIEW: Final = TABLES["runs_view/1"]
_ENTITY_VIEW: Final = TABLES["entity_view/1"]
#: Columns of the view that repeat members of the record.
_REPEATED: Final = (
    "run_id",
    "experiment_id",
    "run_name",
    "user_id",
    "status",
    "start_time",
    "end_time",
    "lifecycle_stage",
    "artifact_uri",
    "params",
    "tags",
)
#: Columns of the view that stay columns of its facts: who it is, and where things lie.
_PLACES: Final = (
    "run_id",
    "experiment_id",
    "experiment_name",
    "record_object",
    "frame_offset",
    "frame_length",
    "record_digest",
    *(f"{table}_{name}" for table in ("metric", "file") for name in ("rows", "digest", "object", "start")),
)
#: Rows of a view that are Python objects at a time.
_SLICE: Final = 2_000


@dataclass(frozen=True)
class RecordFacts:
    """A records object. ``table`` has, for each record, its ids, the digests of its line, of what the logical root covers
    and of what the runs view repeats, and its zstd frame."""

    rows: int
    content: str
    first: OrderKey | None
    last: OrderKey | None
    table: pa.Table


@dataclass(frozen=True)
class ViewFacts:
    """A view. ``table`` has the columns that say where things lie, and of runs the digests ``shown`` and ``latest``."""

    rows: int
    table: pa.Table


def record_facts(ref: ObjectRef, data: bytes, findings: Findings, limits: Limits) -> RecordFacts | None:
    """The facts of a records object, or None when some of its lines cannot be used.

    Raises:
        CorruptError, LimitError: it cannot be decoded.
    """
    lines = _Lines(ref.path, ref.kind if isinstance(ref.kind, str) else "", findings, limits)
    content = hashlib.sha256()
    for frame, raw in read_frames(data, name=ref.path, limits=limits):
        content.update(raw)
        for line in raw[:-1].split(b"\n"):
            lines.take(line, frame.offset, frame.length)
    if not lines.usable:
        return None
    table = pa.Table.from_pylist(lines.rows, schema=_RECORDS)
    return RecordFacts(len(lines.rows), f"sha256:{content.hexdigest()}", lines.first, lines.last, table)


class _Lines:
    """Checks the lines of one object, one after the other."""

    def __init__(self, path: str, kind: str, findings: Findings, limits: Limits) -> None:
        self._path, self._kind, self._findings, self._limits = path, kind, findings, limits
        self.usable = True
        self.first: OrderKey | None = None
        self.last: OrderKey | None = None
        self.rows: list[dict[str, Any]] = []

    def take(self, line: bytes, offset: int, length: int) -> None:
        try:
            self.rows.append({**self._facts(line), "frame_offset": offset, "frame_length": length})
        except BundleError as error:
            self.usable = False
            self._findings.fail(error, object=self._path, default="E031")

    def _facts(self, line: bytes) -> dict[str, Any]:
        path = self._path
        if len(line) > self._limits.line_bytes:
            raise LimitError(f"{path} has a line of {len(line):,} bytes", code="E092")
        check_depth(line, self._limits, path)
        kind = line_kind(line, name=path)
        if kind != self._kind:
            raise CorruptError(f"{path} holds a record of kind {kind!r} where its reference says {self._kind!r}", code="E031")
        if not is_canonical(line):
            raise CorruptError(f"{path} holds a line that is not canonical JSON", code="E031")
        if redact_bytes(line)[1]:
            self._findings.add("W090", f"{path} holds a URI with what looks like a credential", object=path)
        facts: dict[str, Any] = {"record_digest": hashlib.sha256(line).hexdigest(), "logical": logical_digest(line, kind)}
        if kind not in KINDS:
            return facts
        record = decode_record(line, kind, name=path, limits=self._limits)
        self._in_order(order_key(record))
        facts |= {"id": record_id(record), "experiment_id": _repeated(getattr(record, "experiment_id", None))}
        if isinstance(record, Run):
            facts["shown"] = _shown([_repeated(getattr(record, name)) for name in _REPEATED])
        else:
            facts["name"] = _repeated(getattr(record, "name", None))
        return facts

    def _in_order(self, key: OrderKey) -> None:
        if self.last is not None and key < self.last and key[1] != self.last[1]:
            self._findings.add("E061", f"{self._path} holds {self._kind} {key[1]} out of order", object=self._path)
        self.first = self.first or key
        self.last = key


def _repeated(value: Any) -> Any:
    """A member of a record as the view has it."""
    if isinstance(value, tuple):
        return [(item.key, item.value) for item in value]
    return None if value is UNSET else value


def _shown(values: Sequence[Any]) -> bytes:
    return hashlib.sha256(msgspec.json.encode(values)).digest()[:_SHORT]


def entity_view_facts(path: str, file: Any, limits: Limits) -> ViewFacts:
    """The facts of a view of another kind than runs, all of whose columns say where things lie.

    Raises:
        CorruptError, LimitError: it cannot be decoded.
    """
    groups = [group.cast(_ENTITY_VIEW.schema) for group in row_groups(file, _ENTITY_VIEW, name=path, limits=limits)]
    table = pa.concat_tables([_ENTITY_VIEW.schema.empty_table(), *groups])
    return ViewFacts(table.num_rows, table)


def view_facts(path: str, file: Any, limits: Limits) -> ViewFacts:
    """The facts of a runs view.

    Raises:
        CorruptError, LimitError: it cannot be decoded.
    """
    parts = [_view_part(path, group) for group in row_groups(file, _VIEW, name=path, limits=limits)]
    parts = parts or [_view_part(path, _VIEW.schema.empty_table())]
    table = pa.concat_tables(parts)
    return ViewFacts(table.num_rows, table)


def _view_part(path: str, group: pa.Table) -> pa.Table:
    shown = [digest for start in range(0, group.num_rows, _SLICE) for digest in _shown_rows(group.slice(start, _SLICE))]
    table = group.select(list(_PLACES))
    for name in _PLACES:  # dictionaries of several groups would have to be unified again and again
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(name).cast(_VIEW.schema.field(name).type))
    table = table.append_column("shown", pa.array(shown, pa.binary(_SHORT)))
    return table.append_column("latest", pa.array(_latest_rows(path, group), pa.binary(_SHORT)))


def _shown_rows(rows: pa.Table) -> Iterator[bytes]:
    return map(_shown, zip(*(rows.column(name).to_pylist() for name in _REPEATED), strict=True))


def _latest_rows(path: str, group: pa.Table) -> list[bytes]:
    digests: list[bytes] = []
    for maps in group.column("latest_metrics").chunks:
        offsets = maps.offsets.to_numpy()
        points = maps.items.flatten()
        if any(column.null_count for column in points):
            raise CorruptError(f"{path} has a latest metric without a value, time or step", code="E041")
        columns = [column.to_numpy(zero_copy_only=False) for column in points]
        digests += latest_digests(maps.keys.to_pylist(), columns, offsets)
    return digests


def latest_digests(keys: Sequence[str], columns: Sequence[npt.NDArray[Any]], bounds: Sequence[int]) -> list[bytes]:
    """A digest over the latest points of each owner: its keys, values, timestamps and steps between two bounds."""
    return [
        hashlib.sha256(b"".join([msgspec.json.encode(keys[a:b]), *(column[a:b].tobytes() for column in columns)])).digest()[
            :_SHORT
        ]
        for a, b in pairwise(bounds)
    ]


#: The digest of a run without metric points.
NO_LATEST: Final = latest_digests([], [np.empty(0)] * 3, [0, 0])[0]
