"""Traces over REST: records with assessments and links, spans with their exact text, and the files that belong to them.

No endpoint lists the links of traces to runs and prompts; a search can only say which traces are linked to one of them.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pyarrow as pa

from mlflow_bundle.entities import Trace
from mlflow_bundle.errors import AuthError, ServerError
from mlflow_bundle.kinds import order_key
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import ArtifactStore, EntityQuery
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking._spans import span_texts, span_values, spans_table
from mlflow_bundle.tracking.rest._answers import SearchRuns, chunks, quoted, run_ids
from mlflow_bundle.tracking.rest._features import API3, TRACES_3, SourceServer, Workspaced
from mlflow_bundle.tracking.rest._listing import listed, steady
from mlflow_bundle.tracking.rest._trace_answers import (
    SIZE_STATS,
    SOURCE_RUN,
    SPANS_LOCATION,
    OldTrace,
    OldTracePage,
    OneOldTrace,
    OneTrace,
    TraceAnswer,
    TraceInfos,
    TracePage,
    announced_spans,
)
from mlflow_bundle.tracking.rest._trace_files import PAYLOAD_ENDPOINT, TraceFiles

__all__ = ["TraceReader", "fetch_spans", "found_traces", "trace_infos"]

_SEARCH: Final = f"{API3}traces/search"
_INFOS: Final = f"{API3}traces/batchGetInfos"
_TRACES_PER_PAGE: Final = 500
_TRACES_PER_BATCH: Final = 100
_VERSIONS_PER_PAGE: Final = 1_000
_EXPERIMENTS_PER_SEARCH: Final = 500
#: Servers without these know no such links.
_RUN_LINKS_SINCE: Final = (3, 3)
_PROMPT_LINKS_SINCE: Final = (3, 7)
#: Earlier servers hand out no spans that are in their database, and do not say which those are.
_HANDED_OUT_SINCE: Final = (3, 7)
_BROKEN: Final = 500
_NO_SUCH: Final = "RESOURCE_DOES_NOT_EXIST"
#: Rows and characters of spans that are given out at once.
_ROWS: Final = 20_000
_CHARS: Final = 32_000_000
#: A server cuts longer values on their way out, without a mark.
_METADATA_CHARS: Final = 250
_TAG_CHARS: Final = 4_096
#: Metadata that MLflow writes when it has seen the spans of a trace.
_SIGNS: Final = frozenset(
    {
        SIZE_STATS,
        "mlflow.trace.sizeBytes",
        "mlflow.traceInputs",
        "mlflow.traceOutputs",
        "mlflow.trace_schema.version",
    }
)
_OWN_CUT: Final = "..."


def _locations(ids: Sequence[str]) -> list[dict[str, Any]]:
    return [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one}} for one in ids]


def trace_infos(client: RestClient, ids: Sequence[str]) -> list[TraceAnswer]:
    """Those of the traces that exist, at most 100 ids a call, in one request where the server can.

    Raises:
        RefusedError: the server knows no traces of version 3.
    """
    try:
        answer = client.post_json(_INFOS, {"trace_ids": list(ids)}, answer=TraceInfos)
    except RefusedError as error:
        if not error.endpoint_missing:
            raise
        return [found for one in ids if (found := _one_info(client, one)) is not None]
    infos: list[TraceAnswer] = answer.trace_infos
    return infos


def _one_info(client: RestClient, trace_id: str) -> TraceAnswer | None:
    for api in (API3, API):
        try:
            found: TraceAnswer = client.get_json(f"{api}traces/{trace_id}", answer=OneTrace).trace.trace_info
        except RefusedError as error:
            if error.error_code == _NO_SUCH:
                return None
            if not error.endpoint_missing or api == API:
                raise
        else:
            return found
    return None


def found_traces(client: RestClient, experiments: Sequence[str], text: str) -> set[str]:
    """The ids of the traces in some experiments that match a filter."""
    found: set[str] = set()
    body: dict[str, Any] = {"locations": _locations(experiments), "filter": text, "max_results": _TRACES_PER_PAGE}
    while True:
        page: TracePage = client.post_json(_SEARCH, body, answer=TracePage)
        found |= {trace.trace_id for trace in page.traces}
        if not page.next_page_token:
            return found
        body["page_token"] = page.next_page_token


def fetch_spans(client: RestClient, trace_id: str) -> list[dict[str, Any]]:
    """The spans of a trace as values of the spans table, wherever the server keeps them.

    Raises:
        ServerError: the server does not hand them out (RefusedError: there is no such trace, or there are none).
        ValueError, KeyError, TypeError: what it hands out is not the JSON of spans.
    """
    asked = {"request_id": trace_id}
    try:
        # What a server cannot read it cannot read the fifth time either.
        payload = client.get_bytes(PAYLOAD_ENDPOINT, asked, retries=1)
    except ServerError as error:
        if error.status == _BROKEN or isinstance(error, AuthError | RefusedError):
            raise
        payload = client.get_bytes(PAYLOAD_ENDPOINT, asked)
    return [span_values(text) for text in span_texts(payload)]


@dataclass(slots=True)
class _Links:
    """Runs and prompt versions that traces are linked to, by trace id."""

    runs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    prompts: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))


class TraceReader:
    """The traces of all workspaces of a server.

    ``experiments`` gives the ids of the experiments of a workspace, deleted ones too; ``open_store`` the artifact store at a
    location (URI, id for messages, client). ``problems`` collects what could not be read of traces that were given out.
    """

    def __init__(
        self,
        server: SourceServer,
        experiments: Callable[[str | None], Sequence[str]],
        open_store: Callable[[str, str, RestClient], ArtifactStore],
    ) -> None:
        self._server = server
        self._experiments = experiments
        self._files = TraceFiles(open_store)
        self._places: dict[str | None, list[str]] = {}
        self._known_links: dict[str | None, _Links] = {}
        #: How many spans traces say that they have, and those that have fewer.
        self._announced: dict[str, int] = {}
        self._fewer: set[str] = set()
        self.problems: list[Problem] = []
        match = re.match(r"(\d+)\.(\d+)", server.client.version())
        self._release = (int(match[1]), int(match[2])) if match else (99, 0)

    @property
    def _old(self) -> bool:
        """Whether the server knows traces by version 2 of the API only."""
        return TRACES_3 not in self._server.features.offered

    def notes(self) -> list[str]:
        """What seems to be missing of traces that were given out."""
        if not self._fewer:
            return []
        why = "they were still being written, or some are lost"
        return [
            f"{len(self._fewer):,} traces have fewer spans than they say of themselves: {why} (for example {min(self._fewer)})"
        ]

    # -- records -------------------------------------------------------------------------------------------------------

    def entities(self, query: EntityQuery) -> Iterator[list[Trace]]:
        """The traces that match, in archive order, in batches of at most 500. ``run_ids`` of a query: those that are linked to
        one of these runs, or were made in it."""
        batch: list[Trace] = []
        for trace in self._merged(query):
            self._look_at(trace)
            batch.append(trace)
            if len(batch) == _TRACES_PER_PAGE:
                yield batch
                batch = []
        if batch:
            yield batch

    def _merged(self, query: EntityQuery) -> Iterable[Trace]:
        if query.ids is not None:
            found: Iterable[Trace] = sorted(self._by_id(query.ids), key=order_key)
        else:
            streams = []
            for workspace in self._server.workspaces:
                ids = self._with_traces(workspace)
                if query.experiment_ids is not None:
                    wanted = set(query.experiment_ids)
                    ids = [one for one in ids if one in wanted]
                streams += [self._in_order(workspace, group) for group in chunks(ids, _EXPERIMENTS_PER_SEARCH)]
            found = heapq.merge(*streams, key=order_key)
        restrictions = (query.experiment_ids, query.run_ids)
        experiments, runs = (None if ids is None else frozenset(ids) for ids in restrictions)
        for trace in found:
            if experiments is not None and trace.experiment_id not in experiments:
                continue
            if runs is None or not runs.isdisjoint((*trace.run_ids, _source_run(trace))):
                yield trace

    def _look_at(self, trace: Trace) -> None:
        """Note how many spans there should be, and report values of just the length to which the server cuts longer ones."""
        if count := announced_spans(trace.trace_metadata):
            self._announced[trace.trace_id] = count
        for pairs, chars, what in ((trace.trace_metadata, _METADATA_CHARS, "metadata"), (trace.tags, _TAG_CHARS, "tag")):
            for pair in pairs:
                if len(pair.value) == chars and not pair.value.endswith(_OWN_CUT):
                    message = f"the {what} {pair.key!r} may be cut: a server hands out {chars} characters of it at most"
                    self._report(trace.trace_id, message, trace.experiment_id, code="value-maybe-cut")

    def _report(self, trace_id: str, message: str, experiment_id: str = "", *, code: str = "spans-unreadable") -> None:
        experiments = (experiment_id,) if experiment_id else ()
        text = f"trace {trace_id}: {message}"
        self.problems.append(Problem(code=code, kind="trace", id=trace_id, message=text, experiments=experiments))

    def _with_traces(self, workspace: Workspaced) -> list[str]:
        """The experiments of a workspace that have traces, found by halves."""
        if workspace.name not in self._places:
            groups: list[Sequence[str]] = list(chunks(self._experiments(workspace.name), _EXPERIMENTS_PER_SEARCH))
            found: list[str] = []
            while groups:
                full = [
                    group
                    for group, page in zip(
                        groups, self._server.map(lambda ids: self._page(workspace, ids, limit=1), groups), strict=True
                    )
                    if page[0]
                ]
                found += [group[0] for group in full if len(group) == 1]
                parts = [group for group in full if len(group) > 1]
                groups = [half for group in parts for half in chunks(group, -(-len(group) // 2))]
            self._places[workspace.name] = found
        return self._places[workspace.name]

    def _page(
        self, workspace: Workspaced, ids: Sequence[str], *, text: str = "", token: str = "", limit: int = _TRACES_PER_PAGE
    ) -> tuple[Sequence[TraceAnswer] | Sequence[OldTrace], str]:
        """One page of a search by time, and the token of the next."""
        asked: dict[str, Any] = {"filter": text, "max_results": limit, "order_by": ["timestamp_ms ASC"], "page_token": token}
        asked = {name: value for name, value in asked.items() if value}
        if self._old:
            old: OldTracePage = workspace.client.get_json(f"{API}traces", {"experiment_ids": ids, **asked}, answer=OldTracePage)
            return old.traces, old.next_page_token
        page: TracePage = workspace.client.post_json(_SEARCH, {"locations": _locations(ids), **asked}, answer=TracePage)
        return page.traces, page.next_page_token

    def _in_order(self, workspace: Workspaced, ids: Sequence[str]) -> Iterator[Trace]:
        """The traces of some experiments by time and id.

        The next page is asked for by time rather than by position, so that traces that vanish meanwhile hide no others.
        Traces of the last time wait for the next page: only then are all of them known.
        """
        links = self._links(workspace)
        seen: set[str] = set()
        waiting: list[Trace] = []
        since, token = None, ""
        while True:
            text = "" if since is None else f"attributes.timestamp_ms >= {since}"
            answers, more = self._page(workspace, ids, text=text, token=token)
            found = [trace for trace in (self._record(answer, links) for answer in answers) if trace.trace_id not in seen]
            times = [order_key(trace)[0] for trace in found]
            if times != sorted(times):
                raise ServerError(f"the MLflow server {self._server.client.uri} does not order traces by time as asked")
            last = times[-1] if times else since
            seen = {trace.trace_id for trace in (*waiting, *found) if order_key(trace)[0] == last}
            waiting = sorted((*waiting, *found), key=order_key)
            if not more:
                yield from waiting
                return
            yield from (trace for trace in waiting if order_key(trace)[0] != last)
            waiting = [trace for trace in waiting if order_key(trace)[0] == last]
            since, token = (last, "") if last != since else (since, more)

    def _record(self, answer: TraceAnswer | OldTrace, links: _Links) -> Trace:
        if isinstance(answer, OldTrace):
            return answer.record()
        for assessment in answer.unknown_assessments:
            message = f"its assessment {assessment!r} is of a kind that this version does not know, and is left out"
            self._report(answer.trace_id, message, code="assessment-unknown")
        return answer.record(links.runs.get(answer.trace_id, ()), links.prompts.get(answer.trace_id, ()))

    def _by_id(self, ids: Sequence[str]) -> Iterator[Trace]:
        """These traces as far as they exist, in no order."""
        unique = list(dict.fromkeys(ids))
        for workspace in self._server.workspaces:
            links = self._links(workspace) if self._with_traces(workspace) else _Links()
            for answers in self._server.map(partial(self._infos, workspace.client), chunks(unique, _TRACES_PER_BATCH)):
                yield from (self._record(answer, links) for answer in answers)

    def _infos(self, client: RestClient, ids: Sequence[str]) -> Sequence[TraceAnswer] | Sequence[OldTrace]:
        if not self._old:
            return trace_infos(client, ids)
        found = []
        for one in ids:
            try:
                found.append(client.get_json(f"{API}traces/{one}/info", answer=OneOldTrace).trace_info)
            except RefusedError as error:
                if error.error_code != _NO_SUCH:
                    raise
        return found

    # -- links ---------------------------------------------------------------------------------------------------------

    def _links(self, workspace: Workspaced) -> _Links:
        """All links of the traces of a workspace, asked for once: one search for each run and each version of a prompt."""
        if workspace.name not in self._known_links:
            links = self._known_links[workspace.name] = _Links()
            ids = self._with_traces(workspace)
            if ids and self._release >= _RUN_LINKS_SINCE:
                runs = self._server.map(lambda run: (run, self._linked_to_run(workspace, ids, run)), self._run_ids(workspace))
                for run, traces in runs:
                    for trace in traces:
                        links.runs[trace].append(run)
            if ids and self._release >= _PROMPT_LINKS_SINCE:
                asked = self._server.map(
                    lambda prompt: (prompt, self._linked(workspace, ids, f"prompt = {quoted('/'.join(prompt))}")),
                    self._prompt_versions(workspace),
                )
                for prompt, linked in asked:
                    for answer in linked:
                        links.prompts[answer.trace_id].append(prompt)
        return self._known_links[workspace.name]

    def _linked_to_run(self, workspace: Workspaced, ids: Sequence[str], run_id: str) -> list[str]:
        """The traces that are linked to a run. Those that were made in it are found as well and not told apart from linked
        ones: they name it themselves, so that a link says nothing new."""
        answers = self._linked(workspace, ids, f"attributes.run_id = '{run_id}'")
        return [answer.trace_id for answer in answers if answer.trace_metadata.get(SOURCE_RUN) != run_id]

    def _linked(self, workspace: Workspaced, ids: Sequence[str], text: str) -> list[TraceAnswer]:
        found: list[TraceAnswer] = []
        for group in chunks(ids, _EXPERIMENTS_PER_SEARCH):
            read = partial(self._pages, workspace, group, text)
            found += steady(workspace.client, _SEARCH, read, lambda answer: answer.trace_id)
        return found

    def _pages(self, workspace: Workspaced, ids: Sequence[str], text: str) -> Iterator[list[TraceAnswer]]:
        token = ""
        while True:
            answers, token = self._page(workspace, ids, text=text, token=token)
            yield [answer for answer in answers if isinstance(answer, TraceAnswer)]
            if not token:
                return

    def _run_ids(self, workspace: Workspaced) -> Iterator[str]:
        """All runs: a trace may be linked to one of another experiment."""
        for group in chunks(self._experiments(workspace.name), _EXPERIMENTS_PER_SEARCH):
            search = SearchRuns(group, run_view_type="ALL")
            yield from run_ids(workspace.client, search)

    def _prompt_versions(self, workspace: Workspaced) -> Iterator[tuple[str, str]]:
        """The versions of all prompts, as links spell them."""
        params = {"filter": "tag.`mlflow.prompt.is_prompt` = 'true'", "max_results": _VERSIONS_PER_PAGE}
        path, by = f"{API}model-versions/search", ("name", "version")
        yield from (
            (one["name"], str(one["version"])) for one in listed(workspace.client, path, "model_versions", params, by=by)
        )

    # -- spans and files -----------------------------------------------------------------------------------------------

    def rows(self, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The spans of these traces as tables of ``ROW_SCHEMAS["spans/1"]``. Spans that cannot be read become ``problems``."""
        owners: list[tuple[int, list[dict[str, Any]]]] = []
        rows = chars = 0
        for owner, spans in enumerate(self._server.map(self._spans, ids)):
            if not spans:
                continue
            owners.append((owner, spans))
            rows += len(spans)
            chars += sum(len(span["content"]) for span in spans)
            if rows >= _ROWS or chars >= _CHARS:
                yield spans_table(owners)
                owners, rows, chars = [], 0, 0
        if owners:
            yield spans_table(owners)

    def _spans(self, trace_id: str) -> list[dict[str, Any]]:
        refused: Exception | None = None
        for workspace in self._server.workspaces:
            try:
                return self._handed_out(workspace.client, trace_id)
            except ServerError as error:
                if isinstance(error, RefusedError) and self._never_had_spans(workspace.client, trace_id):
                    return []
                if not isinstance(error, RefusedError) and error.status != _BROKEN:
                    raise
                refused = error
            except (ValueError, KeyError, TypeError) as error:
                refused = error
        reason = refused.message if isinstance(refused, ServerError) else f"they are no spans: {refused!r}"
        self._report(trace_id, f"its spans cannot be read: {reason}")
        return []

    def _handed_out(self, client: RestClient, trace_id: str) -> list[dict[str, Any]]:
        """The spans. For an archived trace whose file is gone a server answers that there are none.

        Raises:
            ServerError, KeyError, TypeError: as ``fetch_spans``.
            ValueError: the same, or the trace had spans.
        """
        spans = fetch_spans(client, trace_id)
        if not spans and not self._never_had_spans(client, trace_id):
            raise ValueError("the server hands out none, and the trace had some")
        if len(spans) < self._announced.get(trace_id, 0):
            self._fewer.add(trace_id)
        return spans

    def _never_had_spans(self, client: RestClient, trace_id: str) -> bool:
        """Whether there is such a trace and it shows no sign of spans: one that was only started."""
        if self._release < _HANDED_OUT_SINCE:
            return False
        infos = trace_infos(client, [trace_id])
        return any(_SIGNS.isdisjoint(info.trace_metadata) and SPANS_LOCATION not in info.tags for info in infos)

    def artifacts(self, trace: Trace, client: RestClient | None = None) -> ArtifactStore:
        """The files of a trace: attachments, and ``traces.json`` where the spans are not in the database."""
        return self._files.of(trace, client or self._server.client)


def _source_run(trace: Trace) -> str:
    return next((pair.value for pair in trace.trace_metadata if pair.key == SOURCE_RUN), "")
