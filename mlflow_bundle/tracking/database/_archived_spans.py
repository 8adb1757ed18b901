"""Spans that MLflow moved out of its database into a file, whose rows stay with empty content; and spans that are nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import BundleError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ROW_ORDER, ArtifactStore
from mlflow_bundle.tracking._spans import (
    ARCHIVED,
    IN_DATABASE,
    SPAN_SIGNS,
    span_texts,
    span_values,
    spans_not_found,
    spans_table,
)
from mlflow_bundle.tracking.database._connection import Connection, literals
from mlflow_bundle.tracking.database._traces_read import LOCATION_TAGS

__all__ = ["ArchivedSpans"]

_SPANS_LOCATION: Final = LOCATION_TAGS["spans_location"]
_ARCHIVE_LOCATION: Final = LOCATION_TAGS["archive_location"]
_FILE: Final = "traces.pb"
_THREADS: Final = 4
_IDS: Final = pa.schema([("request_id", pa.string())])
_PLACES: Final = pa.schema([("request_id", pa.string()), ("key", pa.string()), ("value", pa.string())])
#: The spans of one trace by their ids: the columns of ``spans/1`` without the owner.
Spans = Mapping[str, dict[str, Any]]


class ArchivedSpans:
    """Completes rows of ``spans/1``. ``open_store`` gives the artifact store of a trace (id) at a location (URI)."""

    def __init__(self, connection: Connection, open_store: Callable[[str, str], ArtifactStore]) -> None:
        self._db, self._open_store = connection, open_store
        self.problems: list[Problem] = []
        self._nowhere: list[str] = []

    def completed(self, table: pa.Table, owners: Mapping[int, str]) -> pa.Table:
        """These rows of traces (ids by number) with the spans that are in files.

        As for MLflow itself, the file of an archived trace says which spans there are. A file that cannot be read is a
        problem, and so are spans that have a row without content and are not in the file; these are left out.
        """
        emptied = table.column("owner").filter(pc.equal(table.column("content"), "")).to_pylist()
        if not emptied and not self._any_archived:
            return table
        places = self._places(owners.values())
        moved = {owner for owner, trace_id in owners.items() if places[trace_id].get(_SPANS_LOCATION) == ARCHIVED}
        archived = {owner: owners[owner] for owner in sorted(moved.union(emptied))}
        if not archived:
            return table
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="mlflow-bundle-spans") as executor:
            places_of = ((trace_id, places[trace_id].get(_ARCHIVE_LOCATION)) for trace_id in archived.values())
            read = bounded_map(executor, lambda place: self._read(*place), places_of, 2 * _THREADS)
            return self._filled(table, archived, dict(zip(archived, read, strict=True)))

    def _filled(self, table: pa.Table, archived: Mapping[int, str], files: Mapping[int, Spans | None]) -> pa.Table:
        """The rows with the content of their files, and what only a file has. None is a file that could not be read."""
        alone = {owner: dict(spans or {}) for owner, spans in files.items()}
        lost: defaultdict[int, list[str]] = defaultdict(list)
        contents = []
        for owner, span_id, content in zip(
            *(table.column(n).to_pylist() for n in ("owner", "span_id", "content")), strict=True
        ):
            span = alone[owner].pop(span_id, None) if owner in alone else None
            contents.append(span["content"] if span else content)
            if not contents[-1] and files[owner] is not None:
                lost[owner].append(span_id)
        for owner, span_ids in lost.items():
            self._lost(archived[owner], span_ids)

        place = table.column_names.index("content")
        filled = table.set_column(place, table.schema.field("content"), pa.array(contents, pa.string()))
        filled = filled.filter(pc.not_equal(filled.column("content"), ""))
        both = pa.concat_tables([filled, spans_table((owner, list(spans.values())) for owner, spans in alone.items())])
        return both.take(pc.sort_indices(both, [(name, "ascending") for name in ("owner", *ROW_ORDER["spans/1"])]))

    @cached_property
    def _any_archived(self) -> bool:
        """Whether any trace of the database has spans in such a file; without its place MLflow reads none."""
        sql = f"SELECT request_id FROM trace_tags WHERE key = '{_ARCHIVE_LOCATION}' LIMIT 1"
        return bool(self._db.fetch(sql, _IDS).num_rows)

    def _places(self, ids: Collection[str]) -> dict[str, dict[str, str]]:
        """What the tags of these traces say about spans that are not in the database, by tag."""
        found: dict[str, dict[str, str]] = {trace_id: {} for trace_id in ids}
        keys = literals((_SPANS_LOCATION, _ARCHIVE_LOCATION))
        elsewhere = f"key IN {keys} AND value <> '{IN_DATABASE}' AND request_id IN {literals(ids)}"
        table = self._db.fetch(f"SELECT request_id, key, value FROM trace_tags WHERE {elsewhere}", _PLACES)
        for trace_id, key, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found[trace_id][key] = value
        return found

    def _read(self, trace_id: str, location: str | None) -> Spans | None:
        """What the file of a trace holds; None, and a problem, where it cannot be read."""
        try:
            if not location:
                raise ValueError("nothing says where they are")  # noqa: TRY301
            with self._open_store(trace_id, location).open(_FILE) as stream:
                spans = [span_values(text) for text in span_texts(_as_json(stream.read()))]
            return {span["span_id"]: span for span in spans}
        except (BundleError, ValueError, KeyError, TypeError) as error:
            self._problem(trace_id, f"the archived spans of trace {trace_id} in {_FILE} could not be read: {error}")
            return None

    def _lost(self, trace_id: str, span_ids: Sequence[str]) -> None:
        count = f"{len(span_ids):,} archived spans" if len(span_ids) > 1 else "an archived span"
        self._problem(
            trace_id, f"{count} of trace {trace_id} can be found neither in {_FILE} nor in the database: {span_ids[0]}"
        )

    def _problem(self, trace_id: str, message: str) -> None:
        self.problems.append(Problem(code="unreadable", message=message, kind="trace", id=trace_id, path=_FILE))

    def look_for_signs(self, trace_ids: Collection[str]) -> None:
        """Note those of these traces, which have no spans, that had some and of which no problem tells."""
        if without := set(trace_ids).difference(problem.id for problem in self.problems):
            asked = f"key IN {literals(SPAN_SIGNS)} AND request_id IN {literals(sorted(without))}"
            found = self._db.fetch(f"SELECT DISTINCT request_id FROM trace_request_metadata WHERE {asked}", _IDS)
            self._nowhere += sorted(found.column(0).to_pylist())

    def notes(self) -> list[str]:
        """What is missing and no error: files of spans that are not where they should be."""
        return spans_not_found(self._nowhere)


def _as_json(data: bytes) -> bytes:
    """The JSON that a server hands out of such a file.

    Raises:
        ValueError: it is no such file.
    """
    from mlflow.entities.trace_data import TraceData  # noqa: PLC0415 - a second, for few
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.tracing.otel.otel_archival import traces_data_pb_to_spans  # noqa: PLC0415

    try:
        json: bytes = TraceData(spans=traces_data_pb_to_spans(data)).to_json_bytes()
    except MlflowException as error:
        raise ValueError(error.message) from error
    return json
