"""Whether the objects of a snapshot agree with each other and with what the snapshot says (spec/v1.md, 4 to 6 and 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._digests import PREFIX, is_hex
from mlflow_bundle._manifest import Committed
from mlflow_bundle._merkle import MerkleTree, leaf, logical_of
from mlflow_bundle._owners import NO_FILES, NO_ROWS
from mlflow_bundle._series import NO_SERIES
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._verify._extents import IndexCheck
from mlflow_bundle._verify._findings import Findings, listed
from mlflow_bundle._verify._objects import OWNERS, Objects
from mlflow_bundle._verify._record_facts import NO_LATEST, RecordFacts, ViewFacts
from mlflow_bundle._verify._table_facts import CONTENTS, OwnerFacts
from mlflow_bundle.records import KINDS, ObjectRef

__all__ = ["TablesCheck"]

_KNOWN_ROLES: Final = (
    _layout.RECORDS,
    _layout.METRICS,
    _layout.MODEL_METRICS,
    _layout.SPANS,
    _layout.FILES,
    _layout.INDEX,
    _layout.VIEWS,
    _layout.LISTS,
    _layout.PACKS,
    _layout.BLOBS,
)
_RUN: Final = "run"
_METRICS: Final = "metrics/1"
_FILES: Final = "files/1"
#: The kinds whose records have views beside them.
_VIEWED: Final = tuple(kind.name for kind in KINDS.values() if kind.tables)
#: Under which name a snapshot counts the rows of a table.
_COUNTED: Final = {_METRICS: "metric_point", "model_metrics/1": "model_metric_point", "spans/1": "span"}
_EXPERIMENT: Final = "experiment"


class TablesCheck:
    """The check of all records and tables of one snapshot. ``run`` it once. ``index`` is the part that checks the index."""

    def __init__(self, objects: Objects, committed: Committed, refs: Sequence[ObjectRef], findings: Findings) -> None:
        self._objects, self._refs, self._findings = objects, refs, findings
        self._snapshot = committed.snapshot
        self._path = _layout.snapshot_path(committed.stem)
        self._records: dict[str, pa.Table] = {}
        self._owned = {
            (kind.name, table): _Owners(kind.name, table, _nothing(table)) for kind in KINDS.values() for table in kind.tables
        }
        self._table_rows: dict[str, int] = defaultdict(int)
        self._contents = np.empty(0, CONTENTS)
        self._file_bytes = 0
        self.index = IndexCheck(objects, self._path, refs, findings)

    def run(self) -> None:
        """Check everything."""
        shards = self._check_records()
        views = {kind: self._read_views(kind) for kind in _VIEWED}
        self._check_rows()
        self._check_files()
        self._check_owners()
        for kind in _VIEWED:
            self._check_views(kind, shards[kind], views[kind])
        self._check_roots()
        self.index.run(self._contents)
        self._objects.whole([ref for ref in self._refs if self._is_unknown(ref)], self._findings)

    def _of(self, role: str, kind: str | None = None) -> list[ObjectRef]:
        return [ref for ref in self._refs if ref.role == role and kind in (None, ref.kind)]

    def _is_unknown(self, ref: ObjectRef) -> bool:
        return ref.role not in _KNOWN_ROLES or (ref.role == _layout.VIEWS and ref.kind not in _VIEWED)

    def _add(self, code: str, message: str, path: str | None = None, runs: Iterable[str] = ()) -> None:
        self._findings.add(code, message, object=self._path if path is None else path, runs=runs)

    def _unread(self, *roles: str) -> list[str]:
        """The objects of these roles that could not be used."""
        return [ref.path for ref in self._refs if ref.role in roles and ref.path in self._objects.damaged]

    def _skip(self, what: str, *roles: str) -> bool:
        """Whether something cannot be checked because objects of these roles could not be used; that is stated then."""
        unread = self._unread(*roles)
        if unread:
            self._findings.state(f"{what}: {listed(unread)} could not be used")
        return bool(unread)

    # -- records ---------------------------------------------------------------------------------------------------------

    def _check_records(self) -> dict[str, list[tuple[ObjectRef, RecordFacts | None]]]:
        """Rows, digests, order and ids of all records. The objects of the kinds that have views."""
        by_kind: dict[str, list[ObjectRef]] = defaultdict(list)
        for ref in self._of(_layout.RECORDS):
            by_kind[ref.kind if isinstance(ref.kind, str) else ""].append(ref)
        shards: dict[str, list[tuple[ObjectRef, RecordFacts | None]]] = {kind: [] for kind in _VIEWED}
        for kind, refs in by_kind.items():
            tables, last = [], None
            for ref, facts in self._objects.records(refs, self._findings):
                if kind in shards:
                    shards[kind].append((ref, facts))
                if facts is None:
                    continue
                self._check_shard(ref, facts, known=kind in KINDS)
                if last and facts.first and facts.first <= last and facts.first[1] != last[1]:
                    self._add("E061", f"{ref.path} begins with {kind} {facts.first[1]}, which belongs before it", ref.path)
                last = facts.last or last
                tables.append(facts.table)
            if tables:
                self._records[kind] = pa.concat_tables(tables)
            if kind in KINDS:
                self._check_ids(kind)
        self._check_experiments()
        return shards

    def _check_shard(self, ref: ObjectRef, facts: RecordFacts, *, known: bool) -> None:
        said: list[Any] = [ref.rows, ref.content]
        found: list[Any] = [facts.rows, facts.content]
        if known:
            said += [ref.first, ref.last]
            found += [facts.first, facts.last]
        if said != found or not facts.rows:
            self._add("E034", f"{ref.path} has other rows, content or order keys than the snapshot says", ref.path)

    def _check_ids(self, kind: str) -> None:
        ids = self._column(kind, "id")
        if len(pc.unique(ids)) != len(ids):
            counts = pc.value_counts(ids)
            twice = counts.field(0).filter(pc.greater(counts.field(1), 1)).to_pylist()
            runs = twice if kind == _RUN else ()
            self._add("E062", f"the snapshot has several records of {kind} {listed(twice)}", runs=runs)

    def _column(self, kind: str, name: str) -> pa.ChunkedArray:
        table = self._records.get(kind)
        return pa.chunked_array([], pa.string()) if table is None else table.column(name)

    def _check_experiments(self) -> None:
        if _RUN not in self._records or self._skip("the experiments of runs", _layout.RECORDS):
            return
        known = pc.unique(self._column(_EXPERIMENT, "id"))
        lost = self._records[_RUN].filter(pc.invert(pc.is_in(self._column(_RUN, "experiment_id"), value_set=known)))
        for name in pc.unique(lost.column("experiment_id")).to_pylist():
            runs = lost.filter(pc.equal(lost.column("experiment_id"), name)).column("id").to_pylist()
            self._add("E063", f"experiment {name} of run {listed(runs)} has no record", runs=runs)

    # -- metrics and files -----------------------------------------------------------------------------------------------

    def _check_rows(self) -> None:
        """Metric points and plain rows."""
        for table, kind in OWNERS.items():
            refs = self._of(TABLES[table].role)
            read = self._objects.series(refs, self._findings) if table == _METRICS else None
            for ref, facts in read or self._objects.rows(refs, table, self._findings):
                if facts is not None:
                    self._check_table(ref, facts.rows, facts.content)
                    self._table_rows[table] += facts.rows
                    self._owned[kind, table].take(ref.path, facts)

    def _check_files(self) -> None:
        contents = [self._contents]
        for ref, facts in self._objects.files(self._of(_layout.FILES), self._findings):
            if facts is None:
                continue
            self._check_table(ref, facts.rows, facts.content)
            self._table_rows[_FILES] += facts.rows
            for (_, table), owners in self._owned.items():
                if table == _FILES:
                    owners.take(ref.path, facts)
            self._file_bytes += facts.file_bytes
            contents = [np.unique(np.concatenate([*contents, facts.contents]))]
            if facts.strangers:
                self._findings.state(f"files in {ref.path} of owners that this release does not know")
        self._contents = contents[0]

    def _check_table(self, ref: ObjectRef, rows: int, content: str | None = None) -> None:
        if ref.rows != rows or (content is not None and ref.content != content):
            self._add("E044", f"{ref.path} has other rows or another content than the snapshot says", ref.path)

    def _check_owners(self) -> None:
        """Every owner has one place and a record, in the order of the records."""
        unread = self._skip("whether all owners of rows and files have records", _layout.RECORDS)
        for (kind, _), owners in self._owned.items():
            ids = self._column(kind, "id")
            table = owners.table()
            names = table.column("owner")
            for name in _twice(names):
                message = f"{kind} {name} has rows in several objects of role {owners.role}"
                self._add("E042", message, runs=_runs(kind, [name]))
            known = pc.index_in(names, value_set=_plain(ids)) if len(ids) else pa.nulls(len(names), pa.int32())
            places = np.asarray(pc.fill_null(known, -1)).astype(np.int64)
            if not unread:
                for row in np.flatnonzero(places < 0).tolist():
                    name, path = names[row].as_py(), table.column("object")[row].as_py()
                    self._add("E046", f"{path} holds rows of {kind} {name}, which has no record", path, _runs(kind, [name]))
            there = places >= 0
            falls = np.flatnonzero(np.diff(places[there]) < 0)
            if len(falls) and not self._findings.has("E061"):
                path = table.column("object").filter(pa.array(there))[int(falls[0]) + 1].as_py()
                self._add("E042", f"{path} holds {kind}s in another order than that of their records", path)
            if owners.named != _FILES:
                self._check_own_experiments(kind, table)

    def _check_own_experiments(self, kind: str, table: pa.Table) -> None:
        """The rows of an entity name the experiment of its record."""
        records = self._records.get(kind)
        if records is None:
            return
        places = pc.index_in(table.column("owner"), value_set=_plain(records.column("id")))
        expected = records.column("experiment_id").take(places)
        for row in np.flatnonzero(np.asarray(pc.fill_null(pc.not_equal(expected, table.column("experiment")), False))).tolist():
            name, path = table.column("owner")[row].as_py(), table.column("object")[row].as_py()
            message = f"{path} holds rows of {kind} {name} in another experiment than its record"
            self._add("E046", message, path, _runs(kind, [name]))

    # -- views -----------------------------------------------------------------------------------------------------------

    def _read_views(self, kind: str) -> list[tuple[ObjectRef, ViewFacts | None]]:
        views = list(self._objects.views(self._of(_layout.VIEWS, kind), self._findings))
        for ref, facts in views:
            if facts is not None:
                self._check_table(ref, facts.rows)
        return views

    def _check_views(
        self,
        kind: str,
        shards: Sequence[tuple[ObjectRef, RecordFacts | None]],
        views: Sequence[tuple[ObjectRef, ViewFacts | None]],
    ) -> None:
        if len(shards) != len(views):
            self._add("E060", f"there are {len(views):,} views of {kind} for {len(shards):,} records objects")
            return
        tables = KINDS[kind].tables
        for (shard, records), (view, facts) in zip(shards, views, strict=True):
            if facts is None:
                continue
            seen = _View(kind, view, facts.table, facts.table.column("run_id" if kind == _RUN else "id"))
            if records is not None:
                self._compare_records(shard, records, seen)
            for table in tables:
                prefix = "file" if table == _FILES else "metric" if kind == _RUN else "table"
                self._compare_owners(seen, prefix, self._owned[kind, table])
        if shards:
            self._skip(f"all that the views of {kind} say of rows and files", *(TABLES[table].role for table in tables))

    def _compare_records(self, shard: ObjectRef, records: RecordFacts, seen: _View) -> None:
        if not _plain(seen.ids).equals(_plain(records.table.column("id"))):
            self._add("E060", f"{seen.ref.path} has other {seen.kind}s than the records in {shard.path}", seen.ref.path)
            return
        for name in (
            "record_digest",
            "frame_offset",
            "frame_length",
            *(("shown",) if seen.kind == _RUN else ("experiment_id",)),
        ):
            self._compare(seen, name, records.table.column(name), seen.table.column(name))
        self._compare(seen, "record_object", pa.repeat(shard.path, seen.table.num_rows), seen.table.column("record_object"))
        if seen.kind == _RUN and not self._unread(_layout.RECORDS):
            places = pc.index_in(records.table.column("experiment_id"), value_set=_plain(self._column(_EXPERIMENT, "id")))
            names = self._column(_EXPERIMENT, "name").take(places)
            self._compare(seen, "experiment_name", names, seen.table.column("experiment_name"))

    def _compare_owners(self, seen: _View, prefix: str, owners: _Owners) -> None:
        """What a view says of the rows of its entities in one table."""
        expected = owners.rows_of(seen.ids)
        said = seen.table.column(f"{prefix}_object")
        skip = None
        if self._unread(owners.role):  # what the view places elsewhere cannot be compared
            known = pc.is_in(said, value_set=pc.unique(owners.table().column("object")))
            skip = pc.and_not(pc.is_valid(said), known)
        for name in ("rows", "digest", "object", "start"):
            self._compare(seen, f"{prefix}_{name}", expected.column(name), seen.table.column(f"{prefix}_{name}"), skip)
        if prefix == "metric":
            self._compare(seen, "latest_metrics", expected.column("latest"), seen.table.column("latest"), skip)

    def _compare(self, seen: _View, name: str, expected: Any, found: Any, skip: Any = None) -> None:
        expected, found = _plain(expected), _plain(found)
        both_null = pc.and_(pc.is_null(expected), pc.is_null(found))
        differs = pc.and_not(pc.fill_null(pc.not_equal(expected, found), True), both_null)
        if skip is not None:
            differs = pc.and_not(differs, _plain(skip))
        if pc.any(differs).as_py():
            wrong = _plain(seen.ids).filter(differs).to_pylist()
            what = "what it repeats of the record" if name == "shown" else name
            message = f"{seen.ref.path} says something else of {seen.kind} {listed(wrong)} than its objects: {what}"
            self._add("E060", message, seen.ref.path, _runs(seen.kind, wrong))

    # -- the snapshot ----------------------------------------------------------------------------------------------------

    def _check_roots(self) -> None:
        counts: dict[str, int] = {}
        for table, name in _COUNTED.items():
            if not self._unread(TABLES[table].role):
                counts[name] = self._table_rows[table]
        if not self._unread(_layout.FILES):
            counts |= {"file": self._table_rows[_FILES], "file_bytes": self._file_bytes}
        if not self._unread(_layout.RECORDS):
            counts |= {kind: len(self._column(kind, "id")) for kind in KINDS}
        for name, count in counts.items():
            said = self._snapshot.counts.get(name, 0)
            if said != count:
                self._add("E064", f"the snapshot counts {said} of {name}; it has {count:,}")
        roles = {TABLES[table].role for kind in KINDS.values() for table in kind.tables}
        if self._skip("the logical root and some counts", _layout.RECORDS, *roles):
            return
        found, said_logical = logical_of(self._roots()), self._snapshot.logical
        if found != said_logical:
            kinds = sorted(found.kinds.keys() | said_logical.kinds.keys())
            other = [kind for kind in kinds if found.kinds.get(kind) != said_logical.kinds.get(kind)]
            self._add("E065", f"the logical root is {found.root}, not {said_logical.root}; other records: {listed(other)}")

    def _roots(self) -> dict[str, tuple[bytes, int]]:
        """The root of each kind. That of a kind which is not known here, whose leaves nobody can compute, is as the snapshot
        says it, if it says as many records."""
        roots = {}
        for kind, table in self._records.items():
            said = self._snapshot.logical.kinds.get(kind)
            if kind not in KINDS:
                text = said.root.removeprefix(PREFIX) if said is not None else ""
                roots[kind] = (bytes.fromhex(text) if is_hex(text) else b"", table.num_rows)
                continue
            tree = MerkleTree()
            for parts in self._leaves(kind, table):
                tree.add(leaf(kind, *parts))
            if tree.rows:
                roots[kind] = (tree.root(), tree.rows)
        return roots

    def _leaves(self, kind: str, table: pa.Table) -> Iterator[tuple[bytes, ...]]:
        """The digests that make up each leaf of a kind: of the record, then of what it owns."""
        for batch in table.to_batches():
            ids = batch.column("id")
            columns = [batch.column("logical").to_pylist()]
            for name in KINDS[kind].tables:
                digests = self._owned[kind, name].rows_of(ids).column("digest").to_pylist()
                columns.append([bytes.fromhex(digest) for digest in digests])
            yield from zip(*columns, strict=True)


class _View(NamedTuple):
    """A view of one kind: its reference, what it says, and of which ids."""

    kind: str
    ref: ObjectRef
    table: pa.Table
    ids: pa.ChunkedArray


def _nothing(table: str) -> str:
    """The digest of an owner without rows."""
    return {_METRICS: NO_SERIES, _FILES: NO_FILES}.get(table, NO_ROWS)


def _runs(kind: str, ids: Sequence[str]) -> Sequence[str]:
    """The runs among entities of a kind, for the problems that name them."""
    return ids if kind == _RUN else ()


class _Owners:
    """The entities of one kind that own rows of one table, in all its objects."""

    def __init__(self, kind: str, named: str, nothing: str) -> None:
        self.role = TABLES[named].role
        self.named = named
        self._kind = kind
        self._nothing = nothing
        self._parts: list[pa.Table] = []
        self._table: pa.Table | None = None

    def take(self, path: str, facts: OwnerFacts) -> None:
        """Add an object."""
        count = len(facts.owners)
        mine = pa.array([kind == self._kind for kind in facts.kinds], pa.bool_())
        self._parts.append(
            pa.table(
                {
                    "owner": pa.array(facts.owners, pa.string()),
                    "rows": pa.array(facts.counts, pa.int64()),
                    "digest": pa.array(facts.digests, pa.string()),
                    "object": pa.repeat(path, count),
                    "start": pa.array(facts.starts, pa.int64()),
                    "experiment": pa.array(facts.experiments or list[str | None]([None]) * count, pa.string()),
                    "latest": pa.array(facts.latest or [NO_LATEST] * count, pa.binary(len(NO_LATEST))),
                }
            ).filter(mine)
        )
        self._table = None

    def table(self) -> pa.Table:
        """All of them: ``owner``, ``rows``, ``digest``, ``object``, ``start``, ``experiment``, ``latest``."""
        if self._table is None:
            if not self._parts:
                self.take("", OwnerFacts())
            self._table = pa.concat_tables(self._parts).combine_chunks()
        return self._table

    def rows_of(self, runs: Any) -> pa.Table:
        """What the tables have of each of some runs, in their order; of one without rows what the view says then."""
        table = self.table()
        found = table.take(pc.index_in(_plain(runs), value_set=_plain(table.column("owner"))))
        defaults = {"rows": 0, "start": 0, "digest": self._nothing, "latest": pa.scalar(NO_LATEST, pa.binary(len(NO_LATEST)))}
        for name, value in defaults.items():
            found = found.set_column(found.schema.get_field_index(name), name, pc.fill_null(found.column(name), value))
        return found


def _plain(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _twice(names: pa.ChunkedArray) -> list[str]:
    counts = pc.value_counts(names)
    repeated: list[str] = counts.field(0).filter(pc.greater(counts.field(1), 1)).to_pylist()
    return repeated
