"""The index: which content lies where; and how a long history keeps it, and the packs, few (spec/v1.md, 5.3 and 7.4)."""

from __future__ import annotations

import io
import math
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._limits import Limits, Targets
from mlflow_bundle._manifest import read_verified
from mlflow_bundle._row_groups import checked_table
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import TableWriter, open_table
from mlflow_bundle.errors import StorageError
from mlflow_bundle.records import ObjectRef

__all__ = ["INDEX_SPEC", "Digests", "Extent", "PackBuilder", "Settled", "digest_column", "index_table", "read_index", "settle"]

INDEX_SPEC: Final = TABLES["index/1"]
_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER: Final = 30

Digests = npt.NDArray[np.bytes_]
Item = TypeVar("Item")


class Extent(NamedTuple):
    """Where one part of a content lies: a row of the index table. Sizes and offsets are bytes."""

    sha256: str
    part: int
    object: str
    offset: int
    length: int
    codec: str
    raw_length: int


class PackBuilder:
    """A ZIP file being made in memory: entries named by SHA-256, stored or deflated, nothing else."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._zip = zipfile.ZipFile(self._buffer, "w", allowZip64=True)
        self.extents: list[Extent] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._buffer.tell()

    def add(self, sha256: str, data: bytes, *, deflate: bool) -> None:
        """Append the content with this SHA-256 (hex)."""
        info = zipfile.ZipInfo(sha256, _ZIP_DATE)
        info.create_system, info.external_attr = 3, 0o644 << 16
        self._zip.writestr(info, data, zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED, 6)
        offset = info.header_offset + _LOCAL_HEADER + len(sha256)
        codec = "deflate" if deflate else "raw"
        self.extents.append(Extent(sha256, 0, "", offset, info.compress_size, codec, len(data)))

    def discard(self) -> None:
        """Forget it. A ZIP file that is not closed complains when it is collected."""
        self._zip.close()

    def put(self, storage: Storage) -> tuple[ObjectRef, list[Extent], bool]:
        """Store the pack: its reference, where its contents lie, and whether it is a new object."""
        self._zip.close()
        with storage.stage() as staged:
            staged.write(self._buffer.getbuffer())
            path = _layout.object_path(_layout.PACKS, staged.sha256)
            ref = ObjectRef(role=_layout.PACKS, path=path, size=staged.size, rows=len(self.extents))
            return ref, [extent._replace(object=path) for extent in self.extents], storage.put(staged, path)


def read_index(storage: Storage, ref: ObjectRef, limits: Limits) -> pa.Table:
    """The rows of an index part, checked against its digest."""
    data = read_verified(storage, ref.path, limit=limits.table_bytes)
    return checked_table(data, INDEX_SPEC, name=ref.path, limits=limits)


def digest_column(table: pa.Table) -> Digests:
    """The SHA-256 column of a table as fixed-width bytes, fit for ``np.isin`` and ``np.searchsorted``."""
    return np.array(table.column("sha256").to_pylist(), dtype="S64")


class Settled(NamedTuple):
    """The packs, blobs and index parts that a snapshot lists; and those that were written, with whether they are new."""

    refs: list[ObjectRef]
    written: list[tuple[ObjectRef, bool]]


def settle(
    storage: Storage,
    *,
    old: Sequence[ObjectRef],
    new: Sequence[ObjectRef],
    extents: Sequence[Extent],
    used: Digests,
    targets: Targets,
    limits: Limits,
) -> Settled:
    """Decide what content objects a snapshot lists, and write its index.

    ``old`` are the packs, blobs and index parts of the base, ``new`` the packs and blobs just stored with their ``extents``;
    ``used`` are the sorted digests that the snapshot's files name. What is no longer used is not listed, and every object
    that a listed index part names is. Where ``merge_width`` packs or index parts of about one size have piled up, they are
    merged into new objects.
    """
    parts = [_part(storage, ref, used, limits) for ref in old if ref.role == _layout.INDEX]
    parts = [part for part in parts if part.needed.num_rows]
    fresh = index_table(extents)
    rows = [*(part.needed for part in parts), fresh]
    wanted = set[str]().union(*map(_objects, rows))
    contents = {ref.path: ref for ref in [*old, *new] if ref.role != _layout.INDEX and ref.path in wanted}
    entry_bytes = targets.pack_bytes // targets.pack_entries  # many tiny entries make a pack full as well
    packs = [ref for ref in contents.values() if ref.role == _layout.PACKS]
    piled = _piled(packs, lambda ref: max(ref.size, ref.rows * entry_bytes), targets.pack_bytes, targets)
    merged = list(_merge_packs(storage, piled, rows, targets))
    moved = index_table([extent for _, found, _ in merged for extent in found])
    kept = contents.keys() - {ref.path for ref in piled}
    whole = [part for part in parts if part.named <= kept]
    few = {part.ref.path for part in _piled(whole, lambda part: part.needed.num_rows, targets.index_rows, targets)}
    fine = {part.ref.path: part.ref for part in whole if part.ref.path not in few}
    rows = [_within(table, kept) for table in [fresh, *(part.needed for part in parts if part.ref.path not in fine)]]
    index = _write_index(storage, pa.concat_tables([*rows, moved]), targets)
    repacked = [(ref, is_new) for ref, _, is_new in merged]
    refs = [ref for path, ref in contents.items() if path in kept]
    refs += [*(ref for ref, _ in repacked), *fine.values(), *(ref for ref, _ in index)]
    return Settled(list({ref.path: ref for ref in refs}.values()), [*repacked, *index])


class _Part(NamedTuple):
    """An index part of the base: the objects that it names, and the rows of contents that are still used."""

    ref: ObjectRef
    named: set[str]
    needed: pa.Table


def _part(storage: Storage, ref: ObjectRef, used: Digests, limits: Limits) -> _Part:
    table = read_index(storage, ref, limits)
    return _Part(ref, _objects(table), table.filter(pa.array(np.isin(digest_column(table), used))))


def index_table(extents: Sequence[Extent]) -> pa.Table:
    """Rows of the index."""
    columns = zip(*extents, strict=True) if extents else [()] * len(INDEX_SPEC.schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SPEC.schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=INDEX_SPEC.schema)


def _objects(table: pa.Table) -> set[str]:
    """The objects that rows of the index name."""
    return set(table.column("object").unique().to_pylist())


def _within(table: pa.Table, objects: Collection[str]) -> pa.Table:
    """The rows that name one of these objects."""
    return table.filter(pc.is_in(table.column("object"), value_set=pa.array(objects, pa.string())))


def _piled(items: Any, size: Callable[[Any], int], target: int, targets: Targets) -> list[Any]:
    """Those items, far below the target, of which ``merge_width`` or more are of about one size."""
    tiers = defaultdict(list)
    for item in items:
        if 4 * size(item) < target:
            tiers[int(math.log(target / max(size(item), 1), targets.merge_width))].append(item)
    return [item for tier in tiers.values() if len(tier) >= targets.merge_width for item in tier]


def _merge_packs(
    storage: Storage, packs: Sequence[ObjectRef], index: Sequence[pa.Table], targets: Targets
) -> Iterator[tuple[ObjectRef, list[Extent], bool]]:
    """The used contents of some packs, in new packs."""
    wanted: dict[str, set[str]] = {ref.path: set() for ref in packs}
    for table in index if packs else ():
        for path, sha256 in zip(table.column("object").to_pylist(), table.column("sha256").to_pylist(), strict=True):
            if path in wanted:
                wanted[path].add(sha256)
    builder = PackBuilder()
    for ref in packs:
        data = read_verified(storage, ref.path, limit=ref.size)
        with zipfile.ZipFile(io.BytesIO(data)) as pack:
            for info in pack.infolist():
                if info.filename in wanted[ref.path]:
                    deflate = info.compress_type == zipfile.ZIP_DEFLATED
                    builder.add(info.filename, pack.read(info), deflate=deflate)
                    if builder.size >= targets.pack_bytes or len(builder.extents) >= targets.pack_entries:
                        yield builder.put(storage)
                        builder = PackBuilder()
    if builder.extents:
        yield builder.put(storage)


def _write_index(storage: Storage, table: pa.Table, targets: Targets) -> list[tuple[ObjectRef, bool]]:
    table = table.sort_by([("sha256", "ascending"), ("part", "ascending"), ("object", "ascending")])
    written = []
    for start in range(0, table.num_rows, targets.index_rows):
        part = table.slice(start, targets.index_rows)
        with storage.stage() as staged:
            writer = TableWriter(staged, INDEX_SPEC)
            writer.add(part)
            writer.close()
            staged.finish()
            path = _layout.object_path(_layout.INDEX, staged.sha256)
            with staged.reopen() as file:
                if not open_table(file, INDEX_SPEC, name=path).read().equals(part):
                    raise StorageError(f"{path} does not read back as it was written", code="self-check")
            new = storage.put(staged, path)
            written.append((ObjectRef(role=_layout.INDEX, path=path, size=staged.size, rows=part.num_rows), new))
    return written
