"""What even a pack of everything does not come by: rows whose owner is missing, and rows that a damaged index hides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Final, NamedTuple

import pyarrow as pa

from mlflow_bundle.records import Problem
from mlflow_bundle.tracking.database._connection import Column, Connection, literal, slices
from mlflow_bundle.tracking.database._entities import ENTITIES

__all__ = ["LINKS", "Untold"]


class Link(NamedTuple):
    """The rows of ``table`` with these ``constants`` are read by their ``owner``: ``columns`` are those of its key, by their
    own, and ``of`` are its constants."""

    table: str
    owner: str
    columns: Mapping[str, str]
    constants: Mapping[str, str] = MappingProxyType({})
    of: Mapping[str, str] = MappingProxyType({})


_INPUTS: Final = (("DATASET", "RUN", "destination_id"), ("RUN_INPUT", "MODEL_INPUT", "source_id"))
_OF_OTHERS: Final = (
    Link("experiment_tags", "experiments", {"experiment_id": "experiment_id"}),
    Link("params", "runs", {"run_uuid": "run_uuid"}),
    Link("tags", "runs", {"run_uuid": "run_uuid"}),
    Link("metrics", "runs", {"run_uuid": "run_uuid"}),
    *(
        Link("inputs", "runs", {column: "run_uuid"}, {"source_type": source, "destination_type": destination})
        for source, destination, column in (*_INPUTS, ("RUN_OUTPUT", "MODEL_OUTPUT", "source_id"))
    ),
    Link("input_tags", "inputs", {"input_uuid": "input_uuid"}),
    Link("datasets", "inputs", {"dataset_uuid": "source_id"}, of={"source_type": "DATASET"}),
    Link("logged_model_metrics", "logged_models", {"model_id": "model_id"}),
    Link("spans", "trace_info", {"trace_id": "request_id"}),
)
#: Every table that is read by the rows of another one.
LINKS: Final = (
    *_OF_OTHERS,
    *(
        Link(child.table, entity.table, child.link, child.constants)
        for entity in ENTITIES.values()
        for child in entity.children
    ),
)
_POINTS: Final = "metrics"
_NUMBERS: Final = pa.schema([("number", pa.int64()), ("found", pa.int64())])
_OWNERLESS: Final = pa.schema([("found", pa.int64()), ("example", pa.string())])
#: Parts of one compound SELECT, of which SQLite takes 500.
_PARTS: Final = 200
_INDEXES: Final = pa.schema([("table", pa.string()), ("index", pa.string()), ("column", pa.string())])
#: The complete indexes of all tables, with their first columns.
_FIRST_COLUMNS: Final = {
    True: "SELECT m.name, l.name, c.name FROM sqlite_master m JOIN pragma_index_list(m.name) l "
    "JOIN pragma_index_info(l.name) c WHERE m.type = 'table' AND c.seqno = 0 AND NOT l.partial",
    False: "SELECT t.relname::text, x.relname::text, a.attname::text FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid "
    "JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0] "
    "WHERE pg_table_is_visible(t.oid) AND i.indisvalid AND i.indpred IS NULL",
}


class Untold:
    """What of one database was not come by when everything was read. ``tables`` are its columns, by table; ``known`` are
    those tables that are read.

    Both questions take ``read``, the numbers of rows that were read, by table: where these are all that a table has, nothing
    is wanting and nothing more is asked. ``metrics`` may be missing there, because unchanged points are not read again.
    """

    def __init__(self, connection: Connection, tables: Mapping[str, Mapping[str, Column]], known: Iterable[str]) -> None:
        self._db, self._tables = connection, tables
        self._known = [table for table in known if table in tables]
        self._links = [link for link in LINKS if link.table in tables and link.owner in tables]
        self._counts: dict[str, int] = {}

    @cached_property
    def _indexes(self) -> list[tuple[str, str, str]]:
        """Table, index and its first column."""
        found = self._db.fetch(_FIRST_COLUMNS[self._db.uri.is_sqlite], _INDEXES)
        return list(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def problems(self, read: Mapping[str, int]) -> list[Problem]:
        """A problem for each table of SQLite that has other rows than an index through which it is read."""
        if not self._db.uri.is_sqlite:
            return []
        tables = [table for table in self._wanting(read) if table in self._counts]
        return [
            Problem(
                code="damaged",
                message=f"in the database {self._db.uri.shown}, the table {table} has {rows:,} rows and an index of it "
                f"{found:,}, so that not all are found: PRAGMA integrity_check says more, and REINDEX {table} mends it",
            )
            for table, (rows, found) in self._damaged(tables).items()
        ]

    def notes(self, read: Mapping[str, int]) -> list[str]:
        """A sentence for each table with rows that belong to nothing: no record holds them, and MLflow does not show them."""
        wanting = self._wanting(read)
        rows: Counter[tuple[str, str]] = Counter()
        examples = {}
        for link in self._links:
            if link.table in wanting:
                found, example = self._db.fetch(self._ownerless(link), _OWNERLESS).to_pylist()[0].values()
                if found:
                    rows[link.table, link.owner] += found
                    examples[link.table, link.owner] = example
        return [
            f"{count:,} rows of {table} belong to what is not in {owner}, and are left out "
            f"(for example to {examples[table, owner]!r})"
            for (table, owner), count in rows.items()
        ]

    def _wanting(self, read: Mapping[str, int]) -> list[str]:
        """The tables whose rows may not all have been read."""
        asked = [t for t in self._known if t not in self._counts and (t != _POINTS or t in read)]
        end = " NOT INDEXED" if self._db.uri.is_sqlite else ""
        self._counts |= zip(asked, self._numbers(f'"{table}"{end}' for table in asked), strict=True)
        return [table for table in self._known if table not in self._counts or read.get(table, 0) != self._counts[table]]

    def _damaged(self, tables: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The number of rows by the table itself and by an index, where these differ."""
        linked = {(link.table, column) for link in self._links for column in link.columns}
        owned = {table for table, _ in linked}
        # An owned table is only ever looked up by the columns of its owner.
        asked = [(t, i) for t, i, column in self._indexes if t in tables and (t not in owned or (t, column) in linked)]
        # Without a condition SQLite would count by whatever index it likes.
        found = self._numbers(f'"{table}" INDEXED BY "{index}" WHERE 1' for table, index in asked)
        counts = [(table, self._counts[table], number) for (table, _), number in zip(asked, found, strict=True)]
        return {table: (rows, number) for table, rows, number in counts if rows != number}

    def _numbers(self, counted: Iterable[str]) -> list[int]:
        """The number of rows of each of these ends of a SELECT."""
        numbers: list[int] = []
        for part in slices(list(counted), _PARTS):
            queries = (f"SELECT {place}, (SELECT COUNT(*) FROM {what})" for place, what in enumerate(part))
            numbers += self._db.fetch(" UNION ALL ".join(queries), _NUMBERS).sort_by("number").column("found").to_pylist()
        return numbers

    def _ownerless(self, link: Link) -> str:
        """SQL that counts the rows of a link without an owner, and names one that is missing."""
        mine, others = self._tables[link.table], self._tables[link.owner]
        # Schemas without workspaces have one column less.
        columns = {own: key for own, key in link.columns.items() if own in mine and key in others}
        name = "name" if "name" in columns else next(iter(columns))
        chosen = f"SELECT COUNT(*), MIN(CAST(c.{name} AS TEXT)) FROM {link.table} c WHERE"
        if link.table == _POINTS and any((table, column) == (_POINTS, name) for table, _, column in self._indexes):
            # From one run to the next, past all points between them.
            return (
                f"{chosen} c.{name} IN (WITH RECURSIVE o(id) AS (SELECT MIN({name}) FROM {link.table} UNION ALL SELECT "
                f"(SELECT MIN({name}) FROM {link.table} WHERE {name} > o.id) FROM o WHERE o.id IS NOT NULL) SELECT id FROM o "
                f"WHERE id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {link.owner} p WHERE p.{columns[name]} = o.id))"
            )
        same = [f"p.{key} = c.{own}" for own, key in columns.items()]
        same += [f"p.{column} = {literal(value)}" for column, value in link.of.items()]
        kind = [f"c.{column} = {literal(value)}" for column, value in link.constants.items()]
        missing = f"NOT EXISTS (SELECT 1 FROM {link.owner} p WHERE {' AND '.join(same)})"
        return f"{chosen} {' AND '.join([*kind, missing])}"
