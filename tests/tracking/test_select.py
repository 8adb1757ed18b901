"""Times mean what they say, to the millisecond, in every zone and spelling."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_bundle.errors import UsageError
from mlflow_bundle.tracking._select import Moment, Selection, parse_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Milliseconds of the years 1970 to 2200.
MILLISECONDS = st.integers(0, 7_258_118_399_999)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(MILLISECONDS, ZONES, st.booleans())
@example(542_756_811_060, UTC, True)
@example(2_164_753_768_838, UTC, False)
def test_times_are_exact(milliseconds: int, zone: timezone, end: bool) -> None:
    """A time with a zone, as text or as an object, is its millisecond, at both ends of a range."""
    moment = (EPOCH + timedelta(milliseconds=milliseconds)).astimezone(zone)
    assert parse_time(moment, end=end) == milliseconds
    assert parse_time(moment.isoformat(), end=end) == milliseconds
    assert parse_time(moment.isoformat(" "), end=end) == milliseconds
    assert parse_time(milliseconds, end=end) == milliseconds


@given(MILLISECONDS)
def test_times_without_a_zone_are_utc(milliseconds: int) -> None:
    """The zone of the machine plays no part."""
    moment = (EPOCH + timedelta(milliseconds=milliseconds)).replace(tzinfo=None)
    assert parse_time(moment, end=False) == parse_time(moment.isoformat(), end=False) == milliseconds


@pytest.mark.parametrize("day", ["2026-11-01", "20261101", "2026-W44-7", date(2026, 11, 1)])
def test_a_date_is_a_whole_day(day: Moment) -> None:
    """A date alone begins with its first millisecond and ends with its last, however it is spelled."""
    first = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 1000
    assert parse_time(day, end=False) == first
    assert parse_time(day, end=True) == first + 24 * 3600 * 1000 - 1


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-01T12:00", "2026-11-01T12:00:00.000+00:00"),
        ("2026-11-01T12:00Z", "2026-11-01T12:00:00+00:00"),
        ("2026-11-01T12:00+01:00", "2026-11-01T11:00:00+00:00"),
        ("2026-11-01 12:00:00.5-05:30", "2026-11-01T17:30:00.500+00:00"),
        ("1793534400000", "2026-11-01T12:00:00+00:00"),
    ],
)
def test_spellings(text: str, same: str) -> None:
    """Seconds, fractions and zones can be left out or written in any way of ISO 8601; long numbers are milliseconds."""
    assert parse_time(text, end=False) == parse_time(text, end=True) == parse_time(same, end=False)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-02-30", "2026-11-01T25:00", "12:00", "1", "2026"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Anything else is a usage error with an example of how to write it."""
    with pytest.raises(UsageError, match="is not a time") as raised:
        parse_time(text, end=False)
    assert "2026-11-01" in str(raised.value.hint)


def test_contradictions_are_refused() -> None:
    """A range that ends before it begins, and an unknown lifecycle, are usage errors; a range of one day is fine."""
    with pytest.raises(UsageError, match="later than"):
        Selection.of(since="2026-11-02", until="2026-11-01")
    with pytest.raises(UsageError, match="lifecycle"):
        Selection.of(lifecycle="gone")  # type: ignore[arg-type]
    one_day = Selection.of(since="2026-11-01", until="2026-11-01")
    assert (one_day.until or 0) - (one_day.since or 0) == 24 * 3600 * 1000 - 1


def test_nothing_means_everything() -> None:
    """A selection of nothing is whole; any condition narrows it."""
    assert Selection.of().whole
    assert not Selection.of().narrows_runs
    assert not Selection.of(experiment="x").whole
    for narrowed in (Selection.of(run="r"), Selection.of(filter="f"), Selection.of(since=0), Selection.of(lifecycle="active")):
        assert narrowed.narrows_runs
        assert not narrowed.whole
