"""Bounded concurrency: a window over any ``concurrent.futures.Executor``, and a producer one step ahead."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from typing import TypeVar

__all__ = ["bounded_map", "prefetch"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def bounded_map(
    executor: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    window: int,
    *,
    at_once: Callable[[Item], Result | None] = lambda _: None,
) -> Iterator[Result]:
    """The results in the order of the items, with at most ``window`` items in flight. An item for which ``at_once`` has a
    result is not given to the executor.

    The first error is raised where its result would have come, and what was not started yet is cancelled.
    """
    flying: deque[Future[Result]] = deque()
    try:
        for item in items:
            flying.append(_done(result) if (result := at_once(item)) is not None else executor.submit(function, item))
            if len(flying) >= window:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        for future in flying:
            future.cancel()


def _done(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, produced by a thread of their own that is at most one item ahead.

    An error of the producer is raised where its item would have come. Leaving early, or closing, ends the producer.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=1)
    left = threading.Event()

    def produce() -> None:
        try:
            with ExitStack() as stack:
                if (close := getattr(items, "close", None)) is not None:
                    stack.callback(close)
                for item in items:
                    if not _offer(ready, item, left):
                        return
        except BaseException as raised:  # noqa: BLE001 - it crosses to the consumer, which raises it
            _offer(ready, _End(raised), left)
        else:
            _offer(ready, _End(None), left)

    thread = threading.Thread(target=produce, name="mlflow-bundle-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        thread.join()


class _End:
    """The last thing that a producer says."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _offer(ready: queue.Queue[Item | _End], item: Item | _End, left: threading.Event) -> bool:
    """Wait for room; False when the consumer is gone."""
    while not left.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
