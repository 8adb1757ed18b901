"""What differs between two snapshots: found by digests, then told from the records and rows that have other ones.

Where a kind has one logical root in both (spec/v1.md, 8), nothing of it is read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._codec import encode, logical_digest
from mlflow_bundle._common import Common
from mlflow_bundle._differences import PRESENT, differing_leaves
from mlflow_bundle._html import Shown
from mlflow_bundle._reader import FILES
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import Problem, Record

__all__ = ["Change", "Detail", "Diff", "Side", "diff"]

What = Literal["added", "removed", "changed"]

#: What one row, or all rows of one name, of a table are called, and the column that has the name.
_PARTS: Final = {
    "metrics/1": ("metric", "key"),
    "model_metrics/1": ("metric", "key"),
    "spans/1": ("span", "span_id"),
    FILES: ("file", "path"),
}
#: Columns that say nothing of their own: they are derived, or for writers only.
_DERIVED: Final = frozenset({"stamp", "input_cost", "output_cost", "total_cost", "model_name", "model_provider"})
#: Rows of changed entities that are compared at a time.
_ROWS: Final = 1_000_000
#: Up to so many records are read one by one, more of them in one pass over all.
_SINGLE: Final = 20


class Side(msgspec.Struct, frozen=True):
    """One of the two things that are compared."""

    url: str
    snapshot: str
    root_digest: str
    logical_root: str
    created_at: int


class Detail(msgspec.Struct, frozen=True):
    """One thing of an entity that differs: ``param 'lr'``, ``metric 'loss'``, ``file 'model/MLmodel'``. None is not there."""

    what: str
    before: str | None
    after: str | None


class Change(msgspec.Struct, frozen=True):
    """An entity that differs. ``details`` are those of a changed one; ``name`` is what people call it."""

    kind: str
    id: str
    what: What
    name: str | None = None
    details: tuple[Detail, ...] = ()


class Diff(Shown, msgspec.Struct, frozen=True):
    """What a comparison found: all changes, by kind in archive order. ``problems``: what of a live side could not be read,
    and so could not be compared. ``not_compared``: the kinds and members that only one of the two sources offers."""

    before: Side
    after: Side
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both sides say the same: their logical roots are equal, or nothing differs that both sources can say."""
        same = self.before.logical_root == self.after.logical_root
        return same or (bool(self.not_compared) and not self.changes)

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How many entities of each kind were added, removed and changed; only what is not zero."""
        counted: dict[str, Counter[str]] = {}
        for change in self.changes:
            counted.setdefault(change.kind, Counter())[change.what] += 1
        return counted


def diff(before: Bundle, after: Bundle) -> Diff:
    """Compare two opened snapshots, of one bundle or of two. Where files lie (the locations of 4.1) is no difference, nor is
    what only one of their sources offers, such as the members of runs that servers do not tell.

    Memory grows with the number of entities and of changes, not with points or bytes. What has one logical root in both is
    not read: that every object is there with its size is checked, and ``verify`` proves its bytes.

    Raises:
        CorruptError: an object is missing or cut off, or something that had to be read is damaged.
    """
    for bundle in (before, after):
        bundle.verify(level="structure").require_ok(bundle.url)
    sides = (_side(before), _side(after))
    first, second = before.snapshot.logical.kinds, after.snapshot.logical.kinds
    order = {name: number for number, name in enumerate(KINDS)}
    different = [name for name in {*first, *second} if first.get(name) != second.get(name)]
    changes: list[Change] = []
    common = Common(before.snapshot.source, after.snapshot.source)
    for name in sorted(filter(common.has, different), key=lambda kind: (order.get(kind, len(order)), kind)):
        changes += _KindDiff(name, before, after, common).changes() if name in KINDS else _unknown(name, first, second)
    return Diff(*sides, tuple(changes), not_compared=common.hidden(different))


def _side(bundle: Bundle) -> Side:
    document = bundle.snapshot
    return Side(bundle.url, bundle.snapshot_id, bundle.root_digest, document.logical.root, document.created_at)


def _unknown(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    """Of a kind of a later release it can only be said that it differs."""
    rows = [f"{side[name].rows:,}" if name in side else None for side in (first, second)]
    return [Change(name, "", "changed", None, (Detail("records of a kind that this release does not know", *rows),))]


class _KindDiff:
    """The differences between the entities of one kind."""

    def __init__(self, name: str, before: Bundle, after: Bundle, common: Common) -> None:
        self._kind = KINDS[name]
        self._common = common
        self._bundles = (before, after)
        #: Of a kind that has views what these say of both sides, read once.
        self._views = [bundle.reader.digests(name) for bundle in self._bundles] if self._kind.tables else []

    def changes(self) -> Iterator[Change]:
        first, second = self._digests("record_digest", *self._kind.tables)
        removed = _without(first, second)
        added = _without(second, first)
        changed = self._really(_changed(first, second))
        wanted = (removed + changed, added + changed)
        records = [self._records(bundle, ids) for bundle, ids in zip(self._bundles, wanted, strict=True)]
        alone: tuple[tuple[What, list[str]], ...] = (("removed", removed), ("added", added))
        for (what, ids), found in zip(alone, records, strict=True):
            for identity in ids:
                if self._common.shows(found[identity]):
                    yield Change(self._kind.name, identity, what, _name(found[identity]))
        rows = self._rows(changed)
        for identity in changed:
            one, other = records[0][identity], records[1][identity]
            details = (*self._members(one, other), *rows.get(identity, ()))
            yield Change(self._kind.name, identity, "changed", _name(other), details or (Detail("order of items", None, None),))

    def _really(self, candidates: list[str]) -> list[str]:
        """Those of the candidates that differ in more than where their files lie, and what only one source offers."""
        if not self._kind.tables or not (self._kind.locations or self._common.hides(self._kind.name)):
            return candidates  # these digests leave that out already
        wanted = set(candidates)
        first, second = (_logical(bundle, self._kind.name, wanted, self._common) for bundle in self._bundles)
        by_rows = set(_changed(*self._digests(*self._kind.tables)))
        return [identity for identity in candidates if identity in by_rows or first[identity] != second[identity]]

    def _digests(self, *names: str) -> list[pa.Table]:
        """``id, digest`` of each entity of both sides: equal digests mean that nothing differs in these columns of a view."""
        if not self._views:
            return [_record_digests(bundle, self._kind.name, self._common) for bundle in self._bundles]
        joined = [pc.binary_join_element_wise(*map(view.column, names), "") for view in self._views]
        return [pa.table({"id": view.column("id"), "digest": one}) for view, one in zip(self._views, joined, strict=True)]

    def _records(self, bundle: Bundle, ids: Sequence[str]) -> dict[str, Record]:
        if len(ids) <= _SINGLE and self._kind.tables:
            return {identity: bundle.record(self._kind.name, identity) for identity in ids}
        wanted = set(ids)
        found = ((record_id(record), record) for record in (bundle.records(self._kind.name) if ids else ()))
        return {identity: record for identity, record in found if identity in wanted}

    def _members(self, one: Record, other: Record) -> Iterator[Detail]:
        for label, before, after in differing_leaves(self._common.of(one), self._common.of(other)):
            if label not in self._kind.locations:
                yield Detail(label, _text(before), _text(after))

    def _rows(self, ids: Sequence[str]) -> dict[str, list[Detail]]:
        """What differs in the rows of changed entities."""
        found: dict[str, list[Detail]] = {}
        for table in self._kind.tables:
            noun, key = _PARTS[table]
            for part in self._portions(table, ids):
                first, second = (_summaries(bundle, self._kind.name, table, part, key) for bundle in self._bundles)
                for owner, name in chain(first, (both for both in second if both not in first)):
                    one, other = first.get((owner, name)), second.get((owner, name))
                    if one is None or other is None or one.digest != other.digest:
                        texts = (None if side is None else side.text for side in (one, other))
                        detail = Detail(f"{noun} {name!r}", *texts)
                        found.setdefault(part[owner], []).append(detail)
        return found

    def _portions(self, table: str, ids: Sequence[str]) -> Iterator[list[str]]:
        """The entities whose rows in a table differ, so many at a time that their rows fit into memory."""
        kind = self._kind.name
        first, second = (
            dict(zip(view.column("id").to_pylist(), view.column(table).to_pylist(), strict=True)) for view in self._views
        )
        different = [identity for identity in ids if first[identity] != second[identity]]
        sizes = zip(*(bundle.reader.counts(kind, table, different) for bundle in self._bundles), strict=True)
        part: list[str] = []
        size = 0
        for identity, rows in zip(different, sizes, strict=True):
            part.append(identity)
            size += sum(rows)
            if size > _ROWS:
                yield part
                part, size = [], 0
        if part:
            yield part


class _Summary(msgspec.Struct):
    """All rows of one name: a digest of them, and what to show of them."""

    digest: bytes
    text: str


def _summaries(bundle: Bundle, kind: str, table: str, ids: Sequence[str], key: str) -> dict[tuple[int, str], _Summary]:
    """What the rows of a table say of each name of each owner (its place in ``ids``)."""
    position = {identity: number for number, identity in enumerate(ids)}
    owner = TABLES[table].owner or "owner_id"
    rows = bundle.reader.owned(kind, table, ids).combine_chunks()
    values = rows.select([name for name in rows.column_names if name not in (owner, "experiment_id", "owner_kind", *_DERIVED)])
    borders = _borders(rows, owner, key)
    firsts = rows.select([owner, key]).take(pa.array(borders[:-1], pa.int64()))
    found = {}
    for (start, end), of, name in zip(pairwise(borders), *(column.to_pylist() for column in firsts.columns), strict=True):
        part = values.slice(start, end - start)
        found[position[of], name] = _Summary(_digest(part), _shown(table, part))
    return found


def _borders(rows: pa.Table, *names: str) -> list[int]:
    """Where rows with other values of these columns begin, and where the last ones end."""
    if not rows.num_rows:
        return [0]
    new = np.zeros(rows.num_rows, bool)
    new[0] = True
    for name in names:
        column = rows.column(name)
        new[1:] |= pc.not_equal(column.slice(1), column.slice(0, rows.num_rows - 1)).to_numpy()
    return [*np.flatnonzero(new).tolist(), rows.num_rows]


def _digest(rows: pa.Table) -> bytes:
    """A digest of exactly these values, NaN by its bits."""
    sink = hashlib.sha256()
    for column in rows.columns:
        array = column.combine_chunks()
        if pa.types.is_floating(array.type):
            bits = np.asarray(pc.fill_null(array, 0.0)).view(np.int64)
            sink.update(bits.tobytes())
            sink.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
        elif pa.types.is_integer(array.type) and not array.null_count:
            sink.update(np.ascontiguousarray(array.to_numpy()).tobytes())
        else:
            sink.update(msgspec.json.encode(array.to_pylist()))
    return sink.digest()


def _shown(table: str, rows: pa.Table) -> str:
    """What to show of the rows of one name."""
    if table == FILES:
        row = rows.to_pylist()[0]
        return f"{row['size']:,} bytes, {(row['sha256'] or row['state'])[:12]}"
    if table == "spans/1":
        row = rows.to_pylist()[0]
        return f"{row['name']}, {row['status']}"
    count = rows.num_rows
    last = rows.column("value")[count - 1].as_py()
    return f"{count:,} point{'s' * (count != 1)}, last {last!r} at step {rows.column('step')[count - 1].as_py():,}"


def _record_digests(bundle: Bundle, kind: str, common: Common) -> pa.Table:
    """``id, digest`` of each entity of a kind that has no views."""
    found = {record_id(one): logical_digest(encode(common.of(one)), kind).hex() for one in bundle.records(kind)}
    return pa.table({"id": pa.array(found, pa.string()), "digest": pa.array(found.values(), pa.string())})


def _logical(bundle: Bundle, kind: str, wanted: set[str], common: Common) -> dict[str, bytes]:
    """The logical digest of the records with these ids."""
    records = bundle.records(kind) if wanted else ()
    return {identity: logical_digest(encode(common.of(one)), kind) for one in records if (identity := record_id(one)) in wanted}


def _without(some: pa.Table, others: pa.Table) -> list[str]:
    """The ids of the first that the second has not."""
    ids = some.column("id")
    found: list[str] = ids.filter(pc.invert(pc.is_in(ids, value_set=others.column("id").combine_chunks()))).to_pylist()
    return found


def _changed(first: pa.Table, second: pa.Table) -> list[str]:
    """The ids that both have with other digests."""
    places = pc.index_in(first.column("id"), value_set=second.column("id").combine_chunks())
    other = second.column("digest").take(places)
    differs = pc.not_equal(first.column("digest"), other)  # null where the second has no such id: filtered out too
    found: list[str] = first.column("id").filter(differs).to_pylist()
    return found


def _name(record: Record) -> str | None:
    """What people call an entity beside its id."""
    for member in ("name", "run_name", "scorer_name", "secret_name"):
        value = getattr(record, member, UNSET)
        if isinstance(value, str):
            return value
    return None


def _text(value: Any) -> str | None:
    return None if value is UNSET else "" if value is PRESENT else str(value)
