"""Complete metric histories over REST, many runs a request, as columns.

``get-history-bulk`` answers one key of up to 100 runs, at most 25,000 points, and does not say when it left points out.
It orders by run, so in an answer of that size all runs but the last are whole; the last is asked for page by page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._series import sort_series
from mlflow_bundle.tracking._port import SERIES_SCHEMA
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient

__all__ = ["HistoryReader", "prefetched"]

_BULK: Final = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_BULK_RUNS: Final = 100
#: The server cuts a bulk answer here without a word. Chunks are planned below it, as runs differ.
_BULK_POINTS: Final = 25_000
_PLANNED_POINTS: Final = 15_000
_PAGE_POINTS: Final = 25_000
#: gunicorn, under older servers, refuses request lines above 4,094 bytes.
_URL_BYTES: Final = 3_900
#: Rows gathered before they are sorted and given out, and the number at which a group of runs is cut in two.
_GROUP_ROWS: Final = 400_000
_GROUP_ROWS_MAX: Final = 1_000_000
_GROUP_RUNS: Final = 2_000
_FIRST_ROWS_PER_RUN: Final = _GROUP_ROWS / 100
_FIRST_POINTS: Final = 1_000

Item = TypeVar("Item")


class _Point(msgspec.Struct, gc=False):
    step: int = 0
    timestamp: int = 0
    value: float = 0.0
    run_id: str = ""


class _Points(msgspec.Struct):
    metrics: tuple[_Point, ...] = ()
    next_page_token: str = ""


class _Task(NamedTuple):
    """One key of some runs of one client; ``owners`` are their positions in what was asked for."""

    client: RestClient
    run_ids: Sequence[str]
    key: str
    owners: list[int]


class _Columns(NamedTuple):
    """Points of one key, the series of each owner complete: arrays of one length."""

    key: str
    owner: npt.NDArray[np.int32]
    step: npt.NDArray[np.int64]
    timestamp: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]

    def keep(self, owners: Sequence[int]) -> _Columns:
        """Only the rows of these owners."""
        mask = np.isin(self.owner, np.asarray(owners, dtype=np.int32))
        if mask.all():
            return self
        return _Columns(self.key, self.owner[mask], self.step[mask], self.timestamp[mask], self.value[mask])


@dataclass
class _Group:
    """The runs that are being read together. ``owners`` shrinks when they turn out to have too many points."""

    owners: list[int]
    parts: list[_Columns]
    rows: int = 0

    def add(self, columns: _Columns) -> None:
        columns = columns.keep(self.owners)
        self.parts.append(columns)
        self.rows += len(columns.owner)

    def cut(self) -> list[int]:
        """Give up the second half of the runs; they are returned to be read later."""
        half = len(self.owners) // 2
        self.owners, left = self.owners[:half], self.owners[half:]
        self.parts = [part.keep(self.owners) for part in self.parts]
        self.rows = sum(len(part.owner) for part in self.parts)
        return left

    def take(self) -> pa.Table:
        """What was gathered, sorted; the group is empty afterwards."""
        table = _table(self.parts)
        self.parts, self.rows = [], 0
        return table


class HistoryReader:
    """Reads metric histories with ``threads`` requests at a time. What it learns about lengths makes later calls quicker.

    ``client_of`` says who is asked about a run, where that is not always ``client``: a server with workspaces shows each run
    in one of them only.
    """

    def __init__(self, client: RestClient, *, threads: int = 4, client_of: Callable[[str], RestClient] | None = None) -> None:
        self._client_of = client_of or (lambda _: client)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="mlflow-bundle-history")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="mlflow-bundle-ahead")
        self._window = 2 * threads
        self._bulk = True
        self._points: dict[str, float] = {}
        self._typical_points: float = _FIRST_POINTS
        self._rows_per_run: float = _FIRST_ROWS_PER_RUN
        #: Runs and keys whose last value is shown and whose history is empty: somebody purged it.
        self.purged: list[tuple[str, str]] = []

    def close(self) -> None:
        """Stop the threads; requests under way are finished first."""
        self._ahead.shutdown(cancel_futures=True)
        self._executor.shutdown(cancel_futures=True)

    def tables(self, run_ids: Sequence[str], keys: Sequence[Sequence[str]]) -> Iterator[pa.Table]:
        """Sorted tables of ``SERIES_SCHEMA`` for these runs, whose metric keys are known.

        While the caller uses one table the next is being read. A table has at most about a million rows; only a single
        series that is longer makes a longer one.

        Raises:
            RefusedError: a run does not exist any more.
            ServerError: the server failed.
        """
        return prefetched(self._ahead, self._read(run_ids, keys))

    def _read(self, run_ids: Sequence[str], keys: Sequence[Sequence[str]]) -> Iterator[pa.Table]:
        todo = deque(owner for owner in range(len(run_ids)) if keys[owner])
        while todo:
            size = int(min(max(_GROUP_ROWS / self._rows_per_run, 1), _GROUP_RUNS))
            group = _Group([todo.popleft() for _ in range(min(size, len(todo)))], [])
            total = 0
            for columns in bounded_map(self._executor, self._fetch, self._tasks(group, run_ids, keys), self._window):
                group.add(columns)
                while group.rows > _GROUP_ROWS_MAX and len(group.owners) > 1:
                    todo.extendleft(reversed(group.cut()))
                if len(group.owners) == 1 and group.rows >= _GROUP_ROWS:
                    # Tasks come in the order of keys, so a single run need not wait for its last key.
                    total += group.rows
                    yield group.take()
            total += group.rows
            self._rows_per_run = max(total / len(group.owners), 1.0)
            if group.rows:
                yield group.take()

    def _tasks(self, group: _Group, run_ids: Sequence[str], keys: Sequence[Sequence[str]]) -> Iterator[_Task]:
        """The requests of a group, key by key, made as late as possible: group and lengths are better known by then."""
        having: dict[tuple[str, int], list[int]] = {}
        clients = {id(client): client for client in (self._client_of(run_ids[owner]) for owner in group.owners)}
        for owner in group.owners:
            client_id = id(self._client_of(run_ids[owner]))
            for key in keys[owner]:
                having.setdefault((key, client_id), []).append(owner)
        for key, client_id in sorted(having):
            start = 0
            owners = having.pop((key, client_id))
            while start < len(owners):
                size = self._chunk(key)
                kept = [owner for owner in owners[start : start + size] if owner <= group.owners[-1]]
                start += size
                if kept:
                    yield _Task(clients[client_id], run_ids, key, kept)

    def _chunk(self, key: str) -> int:
        """How many runs to ask for at once, so that the answer stays below the cap and the URL short."""
        by_points = _PLANNED_POINTS / self._points.get(key, self._typical_points)
        by_url = (_URL_BYTES - len(_BULK) - len(quote(key, safe=""))) // 41
        return int(max(min(by_points, by_url, _BULK_RUNS), 1))

    def _fetch(self, task: _Task) -> _Columns:
        """All points of a task."""
        owner_of = {task.run_ids[owner]: owner for owner in task.owners}
        left = deque(owner_of)
        points: list[_Point] = []
        while left:
            if not self._bulk or self._points.get(task.key, 0) >= _BULK_POINTS:
                points += _paged(task.client, left.popleft(), task.key)
                continue
            asked = [left.popleft() for _ in range(min(self._chunk(task.key), len(left)))]
            whole, rest = self._ask_bulk(task.client, asked, task.key)
            points += whole
            left.extendleft(reversed(rest))
        if empty := owner_of.keys() - {point.run_id for point in points}:
            self.purged += [(run_id, task.key) for run_id in sorted(empty)]
        mean = max(len(points) / len(task.owners), 1.0)
        self._points[task.key] = self._typical_points = mean
        return _columns(task.key, points, owner_of)

    def _ask_bulk(self, client: RestClient, run_ids: list[str], key: str) -> tuple[list[_Point], list[str]]:
        """The whole histories in one bulk answer, and the runs that must be asked for again."""
        try:
            answer: _Points = client.get_json(_BULK, {"run_id": run_ids, "metric_key": key}, answer=_Points)
        except RefusedError as error:
            self._bulk = self._bulk and not error.endpoint_missing
            # A refusal of many runs does not say which; asking for each does.
            return [point for run_id in run_ids for point in _paged(client, run_id, key)], []
        blocks = [(run_id, list(points)) for run_id, points in groupby(answer.metrics, key=lambda point: point.run_id)]
        if len(answer.metrics) >= _BULK_POINTS:
            self._points[key] = len(answer.metrics) / len(blocks)
            cut, _ = blocks.pop()
            blocks.append((cut, _paged(client, cut, key)))
        elif len(blocks) < len(run_ids):
            # The run has this key, so an answer without points hides something: a run that is gone, or no permission.
            present = {run_id for run_id, _ in blocks}
            blocks += [(run_id, _paged(client, run_id, key)) for run_id in run_ids if run_id not in present]
        read = {run_id for run_id, _ in blocks}
        return [point for _, points in blocks for point in points], [run_id for run_id in run_ids if run_id not in read]


def _paged(client: RestClient, run_id: str, key: str) -> list[_Point]:
    """One history, page by page. Servers that know no pages answer everything at once."""
    points: list[_Point] = []
    params: dict[str, str | int] = {"run_id": run_id, "metric_key": key, "max_results": _PAGE_POINTS}
    while True:
        answer: _Points = client.get_json(f"{API}metrics/get-history", params, answer=_Points)
        border = points[-1:] + list(answer.metrics[:1])
        if len(border) == 2 and _same(*border):
            # Pages are cut by position: equal neighbours mean that points moved, or that a tie was cut.
            return _unpaged(client, run_id, key)
        points += answer.metrics
        if not answer.next_page_token:
            break
        params["page_token"] = answer.next_page_token
    for point in points:
        point.run_id = run_id
    return points


def _unpaged(client: RestClient, run_id: str, key: str) -> list[_Point]:
    params = {"run_id": run_id, "metric_key": key}
    answer: _Points = client.get_json(f"{API}metrics/get-history", params, answer=_Points)
    for point in answer.metrics:
        point.run_id = run_id
    return list(answer.metrics)


def _same(one: _Point, other: _Point) -> bool:
    """Whether two points have equal times and steps, and values that a server may order either way (it keeps NaN as 0)."""
    values_tie = one.value == other.value or np.isnan(one.value) or np.isnan(other.value)
    return one.timestamp == other.timestamp and one.step == other.step and bool(values_tie)


def _columns(key: str, points: Sequence[_Point], owner_of: dict[str, int]) -> _Columns:
    size = len(points)
    value = np.fromiter((point.value for point in points), np.float64, size)
    value[np.isnan(value)] = np.nan
    return _Columns(
        key,
        np.fromiter((owner_of[point.run_id] for point in points), np.int32, size),
        np.fromiter((point.step for point in points), np.int64, size),
        np.fromiter((point.timestamp for point in points), np.int64, size),
        value,
    )


def _table(parts: Sequence[_Columns]) -> pa.Table:
    names = list(dict.fromkeys(part.key for part in parts))
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.repeat(np.array([code_of[part.key] for part in parts], np.int32), [len(part.owner) for part in parts])
    owner, step, timestamp, value = (np.concatenate([part[column] for part in parts]) for column in range(1, 5))
    keys = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))
    table = pa.table({"owner": owner, "key": keys, "step": step, "timestamp": timestamp, "value": value})
    table = sort_series(table)
    return table.set_column(1, "key", table.column("key").cast(pa.string())).cast(SERIES_SCHEMA)


def prefetched(executor: Executor, items: Iterator[Item]) -> Iterator[Item]:
    """The items, each made in the background while the one before is used."""
    end = object()
    making = executor.submit(next, items, end)
    try:
        while (item := making.result()) is not end:
            making = executor.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end mark
    finally:
        if not making.cancel():
            making.exception()
        if hasattr(items, "close"):
            items.close()
