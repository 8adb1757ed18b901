"""Reads the tables that logged models and traces own: metrics of models, spans, in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle.entities import Trace
from mlflow_bundle.errors import BundleError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ROW_ORDER, ROW_SCHEMAS, ArtifactStore
from mlflow_bundle.tracking._spans import SPANS_IN_STORE, span_texts, span_values, spans_table
from mlflow_bundle.tracking.database._archived_spans import ArchivedSpans
from mlflow_bundle.tracking.database._connection import Column, Connection, literals
from mlflow_bundle.tracking.database._traces_read import LOCATION_TAGS
from mlflow_bundle.tracking.database._wanted import Wanted

__all__ = ["OwnedReader"]

#: Owners that are asked for at once: so few rows stay in the caches of a processor.
_AT_ONCE: Final = 250
_TRACES_JSON: Final = "traces.json"
#: The columns of the database by those of the tables of an archive.
_COLUMNS: Final = {
    "model_metrics/1": (
        *("metric_name", "metric_step", "metric_timestamp_ms", "metric_value"),
        *("run_id", "dataset_name", "dataset_digest"),
    ),
    "spans/1": tuple(ROW_SCHEMAS["spans/1"].names[1:]),
}
_LOCATIONS: Final = pa.schema([("request_id", pa.string()), ("key", pa.string()), ("value", pa.string())])


class OwnedReader:
    """Rows of ``model_metrics/1`` and ``spans/1``. ``open_store`` gives the artifact store of a trace; ``archived`` completes
    spans that MLflow moved into files, which else are without content."""

    def __init__(
        self,
        connection: Connection,
        tables: Mapping[str, Mapping[str, Column]],
        open_store: Callable[[Trace], ArtifactStore],
        archived: ArchivedSpans | None = None,
    ) -> None:
        self._db, self._tables, self._open_store, self._archived = connection, tables, open_store, archived
        self.problems: list[Problem] = []
        #: The rows that were read, by table of the database.
        self.read: Counter[str] = Counter()

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of these owners as bounded tables of ``ROW_SCHEMAS``."""
        read = self._model_metrics if table == "model_metrics/1" else self._spans
        for start in range(0, len(ids), _AT_ONCE):
            yield from read(ids[start : start + _AT_ONCE], start)

    def _model_metrics(self, ids: Sequence[str], first: int) -> Iterator[pa.Table]:
        if "logged_model_metrics" not in self._tables:
            return
        found = self._owned("model_metrics/1", "logged_model_metrics", "model_id", ids, first)
        if found.num_rows:
            yield found

    def _spans(self, ids: Sequence[str], first: int) -> Iterator[pa.Table]:
        found = ROW_SCHEMAS["spans/1"].empty_table()
        if "spans" in self._tables:
            found = self._owned("spans/1", "spans", "trace_id", ids, first)
            if self._archived:
                found = self._archived.completed(found, dict(enumerate(ids, start=first)))
        there = set(found.column("owner").unique().to_pylist())
        without = {trace_id: number for number, trace_id in enumerate(ids, start=first) if number not in there}
        elsewhere = []
        for trace_id, place in self._places(list(without)).items():
            if place.get("spans_location") not in SPANS_IN_STORE and place.get("artifact_uri"):
                elsewhere.append((without[trace_id], self._from_file(trace_id, place["artifact_uri"])))
        if self._archived:
            self._archived.look_for_signs(without.keys() - {ids[number - first] for number, spans in elsewhere if spans})
        if not elsewhere:
            yield found
            return
        both = pa.concat_tables([found, spans_table(elsewhere)])
        yield both.take(pc.sort_indices(both, [("owner", "ascending")]))

    def _owned(self, rows: str, table: str, owner: str, ids: Sequence[str], first: int) -> pa.Table:
        """The rows of a table of the database, whose column ``owner`` has the owner's id, sorted as ``rows`` demands."""
        have = self._tables[table]
        chosen = [f"{table}.{name}" if name in have else "NULL" for name in _COLUMNS[rows]]
        wanted = Wanted(self._db, ((identity,) for identity in ids), first=first)
        found = wanted.rows(table, [owner], chosen, ROW_SCHEMAS[rows], order=ROW_ORDER[rows])
        self.read.update(wanted.read)
        return found

    def _places(self, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """What the location tags of these traces say, by the field of the record; in the order of the ids."""
        if "trace_tags" not in self._tables or not ids:
            return {}
        fields = {key: field for field, key in LOCATION_TAGS.items()}
        where = f"request_id IN {literals(ids)} AND key IN {literals(fields)}"
        found: dict[str, dict[str, str]] = {trace_id: {} for trace_id in ids}
        table = self._db.fetch(f"SELECT request_id, key, value FROM trace_tags WHERE {where}", _LOCATIONS)
        for trace_id, key, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found[trace_id][fields[key]] = value or ""
        return found

    def _from_file(self, trace_id: str, location: str) -> list[dict[str, object]]:
        """The spans of a trace that keeps them in a file."""
        try:
            store = self._open_store(Trace(trace_id=trace_id, experiment_id="", artifact_uri=location))
            if _TRACES_JSON not in {info.path for info in store.walk()}:
                return []
            with store.open(_TRACES_JSON) as stream:
                return [span_values(text) for text in span_texts(stream.read())]
        except (BundleError, ValueError, KeyError, TypeError) as error:
            message = f"the spans of trace {trace_id} in {_TRACES_JSON} could not be read: {error}"
            self.problems.append(Problem(code="unreadable", message=message, kind="trace", id=trace_id, path=_TRACES_JSON))
            return []
