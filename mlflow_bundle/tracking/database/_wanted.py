"""Rows of many owners in one query: numbered by their owners, and in the order of those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle.tracking.database._connection import Connection, literal

__all__ = ["PLACE", "Wanted"]

#: The column that says whose row it is.
PLACE = pa.field("place", pa.int64(), nullable=False)


class Wanted:
    """Owners, by the values of their keys: texts and integers. ``first`` is the number of the first one.

    ``read`` are the numbers of rows that were read of them, by table.
    """

    def __init__(self, connection: Connection, keys: Iterable[Sequence[Any]], *, first: int = 0) -> None:
        self._db = connection
        self.read: Counter[str] = Counter()
        self._owners = ", ".join(
            f"({number}, {', '.join(literal(v) if isinstance(v, str) else str(int(v)) for v in key)})"
            for number, key in enumerate(keys, start=first)
        )

    def rows(
        self,
        table: str,
        link: Sequence[str],
        columns: Sequence[str],
        schema: pa.Schema,
        *,
        order: Sequence[str] = (),
        condition: str = "",
    ) -> pa.Table:
        """What ``columns``, expressions of SQL, say in the rows whose columns ``link`` are the key of an owner.

        The first column of ``schema`` is the number of the owner. Rows are sorted by it and then by the columns ``order``:
        texts by their bytes, NULL last.
        """
        keys = [f"key{number}" for number in range(len(link))]
        same = [f"{table}.{column} = wanted.{key}" for column, key in zip(link, keys, strict=True)]
        # SQLite goes through what stands left of a CROSS JOIN in its order, so that rows mostly come sorted already.
        found = self._db.fetch(
            f"WITH wanted(place, {', '.join(keys)}) AS (VALUES {self._owners}) SELECT {', '.join(['wanted.place', *columns])} "
            f"FROM wanted CROSS JOIN {table} WHERE {' AND '.join([*same, *([condition] if condition else [])])}",
            schema,
        )
        self.read[table] += found.num_rows
        # Also what is sorted already is copied: in the driver's own memory, what is freed piece by piece stays in the process.
        return found.take(pc.sort_indices(found, sort_keys=[(name, "ascending") for name in (schema.names[0], *order)]))
