"""Work is done ahead, in order, within bounds; what needs no work takes no turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from mlflow_bundle._parallel import bounded_map, prefetch


class Counted(Executor):
    """A pool of two threads that counts what it is given."""

    def __init__(self) -> None:
        self.given = 0
        self._pool = ThreadPoolExecutor(2)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given += 1
        return self._pool.submit(fn, *args, **kwargs)


def test_results_come_in_order_and_what_needs_no_work_is_not_given_away() -> None:
    """Every item has its result in its place; those with a result at once never reach the executor."""
    executor = Counted()
    found = list(bounded_map(executor, lambda n: -n, range(20), 3, at_once=lambda n: 0 if n % 3 == 0 else None))
    assert found == [0 if n % 3 == 0 else -n for n in range(20)]
    assert executor.given == 13


def test_no_more_items_are_taken_than_the_window() -> None:
    """At most ``window`` items are taken before the first result is used, with or without work."""
    for at_once in (lambda _: None, lambda n: n):
        taken: list[int] = []

        def items(taken: list[int] = taken) -> Iterator[int]:
            for number in range(50):
                taken.append(number)
                yield number

        assert next(bounded_map(Counted(), lambda n: n, items(), 4, at_once=at_once)) == 0
        assert len(taken) == 4


def test_the_first_error_comes_where_its_result_would_have() -> None:
    """Results before an error are given; what was not started is cancelled."""
    started: list[int] = []
    gate = threading.Event()

    def work(number: int) -> int:
        started.append(number)
        if number == 1:
            raise KeyError(number)
        if number > 1:
            gate.wait(10)
        return number

    results = bounded_map(Counted(), work, range(30), 10)
    assert next(results) == 0
    with pytest.raises(KeyError):
        next(results)
    gate.set()
    assert len(started) <= 6


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mlflow-bundle-prefetch"]


def test_a_producer_is_ahead_and_ends_with_its_consumer() -> None:
    """All items come in order; whoever leaves early leaves no thread, and the producer cleans up."""
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    assert list(prefetch(items())) == list(range(100))
    early = prefetch(items())
    assert [next(early), next(early)] == [0, 1]
    assert len(ours()) == 1
    early.close()
    assert ours() == []
    assert closed == [True, True]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_the_error_of_a_producer_comes_where_its_item_would_have(after: int) -> None:
    """Also one of another kind than Exception; what came before it is given."""

    def items() -> Iterator[int]:
        yield from range(after)
        raise KeyboardInterrupt

    found: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(prefetch(items()))
    assert found == list(range(after))
    assert ours() == []


class Unclean:
    """Items whose end cannot be cleaned up."""

    def __init__(self) -> None:
        self._items = iter(range(3))

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._items)

    def close(self) -> None:
        raise OSError("cannot be closed")


def test_an_error_of_cleaning_up_is_no_silence() -> None:
    """A producer that fails to close its items says so, instead of leaving its consumer waiting."""
    started = time.monotonic()
    with pytest.raises(OSError, match="cannot be closed"):
        deque(prefetch(Unclean()), maxlen=0)
    assert time.monotonic() - started < 30
    assert ours() == []
