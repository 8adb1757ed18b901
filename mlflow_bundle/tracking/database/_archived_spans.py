"""Spans that MLflow moved out of its database into a file, whose rows stay with empty content; and spans that are nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import BundleError
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ArtifactStore
from mlflow_bundle.tracking._spans import SPAN_SIGNS, span_texts, span_values, spans_not_found
from mlflow_bundle.tracking.database._connection import Connection, literals

__all__ = ["ArchivedSpans"]

_LOCATION: Final = "mlflow.trace.archiveLocation"
_FILE: Final = "traces.pb"
_THREADS: Final = 4
_LOCATIONS: Final = pa.schema([("request_id", pa.string()), ("value", pa.string())])


class ArchivedSpans:
    """Completes rows of ``spans/1``. ``open_store`` gives the artifact store of a trace (id) at a location (URI)."""

    def __init__(self, connection: Connection, open_store: Callable[[str, str], ArtifactStore]) -> None:
        self._db, self._open_store = connection, open_store
        self.problems: list[Problem] = []
        self._nowhere: list[str] = []

    def completed(self, tables: Iterator[pa.Table], ids: Sequence[str]) -> Iterator[pa.Table]:
        """The tables with the content of archived spans. Spans whose file cannot be read are left out and become problems."""
        there: set[int] = set()
        for table in tables:
            there.update(pc.unique(table.column("owner")).to_pylist())
            empty = pc.equal(table.column("content"), "")
            yield self._filled(table, empty, ids) if pc.any(empty).as_py() else table

        self._look_for_signs([trace_id for number, trace_id in enumerate(ids) if number not in there])

    def _look_for_signs(self, without: Sequence[str]) -> None:
        """Note those of the traces without spans that had some."""
        if without:
            told = {problem.id for problem in self.problems}
            asked = f"key IN {literals(SPAN_SIGNS)} AND request_id IN {literals(without)}"
            found = self._db.fetch(f"SELECT DISTINCT request_id, '' FROM trace_request_metadata WHERE {asked}", _LOCATIONS)
            self._nowhere += sorted(set(found.column(0).to_pylist()) - told)

    def notes(self) -> list[str]:
        """What is missing and no error: files of spans that are not where they should be."""
        return spans_not_found(self._nowhere)

    def _filled(self, table: pa.Table, empty: pa.ChunkedArray, ids: Sequence[str]) -> pa.Table:
        owners = {ids[number]: number for number in pc.unique(table.column("owner").filter(empty)).to_pylist()}
        places = self._places(list(owners))
        found: dict[tuple[int, str], str] = {}
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="mlflow-bundle-spans") as executor:
            read = bounded_map(executor, lambda trace_id: self._read(trace_id, places.get(trace_id)), owners, 2 * _THREADS)
            for number, spans in zip(owners.values(), read, strict=True):
                found |= {(number, span_id): text for span_id, text in spans.items()}
        rows = zip(*(table.column(name).to_pylist() for name in ("owner", "span_id", "content")), strict=True)
        contents = [content or found.get((owner, span_id), "") for owner, span_id, content in rows]
        place = table.column_names.index("content")
        filled = table.set_column(place, table.schema.field("content"), pa.array(contents, pa.string()))
        return filled.filter(pc.not_equal(filled.column("content"), ""))

    def _places(self, ids: Sequence[str]) -> Mapping[str, str]:
        sql = f"SELECT request_id, value FROM trace_tags WHERE key = '{_LOCATION}' AND request_id IN {literals(ids)}"
        found = self._db.fetch(sql, _LOCATIONS)
        return dict(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def _read(self, trace_id: str, location: str | None) -> dict[str, str]:
        """The texts of the spans of a trace, by span id."""
        try:
            if not location:
                raise ValueError("nothing says where they are")  # noqa: TRY301
            with self._open_store(trace_id, location).open(_FILE) as stream:
                texts = span_texts(_as_json(stream.read()))
            return {span_values(text)["span_id"]: text for text in texts}
        except (BundleError, ValueError, KeyError, TypeError) as error:
            message = f"the archived spans of trace {trace_id} in {_FILE} could not be read: {error}"
            self.problems.append(Problem(code="unreadable", message=message, kind="trace", id=trace_id, path=_FILE))
            return {}


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
