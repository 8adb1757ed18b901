"""What is shown is exact, readable, and harmless to a terminal."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from mlflow_bundle.cli._output import (
    bytes_text,
    clean,
    count_text,
    counts_text,
    fitted,
    json_text,
    plain,
    plural,
    problem_lines,
    table,
    time_text,
)
from mlflow_bundle.records import KeyValue, Problem, Run

ANY_TEXT = st.text(st.characters(codec=None))


@given(ANY_TEXT)
def test_cleaned_text_has_nothing_that_acts(text: str) -> None:
    """Whatever a name holds, only printable characters (and joiners inside of words) of it are shown."""
    assert clean(text).replace("\u200c", "").replace("\u200d", "").isprintable()


@given(st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S"))))
def test_printable_text_stays(text: str) -> None:
    """Letters of all scripts, signs and emoji are not touched."""
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b2J", "\\x9b2J"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2066x\u2069\u200f", "\\u2066x\\u2069\\u200f"),
        ("\x07\x00\x7f", "\\x07\\x00\\x7f"),
        ("\ud800", "\\ud800"),
        ("größe 日本 👩\u200d💻", "größe 日本 👩\u200d💻"),
    ],
)
def test_dangerous_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    """Escape sequences, C1 controls, line ends, marks of direction and lone surrogates become visible."""
    assert clean(text) == shown


@given(st.dictionaries(ANY_TEXT, ANY_TEXT))
def test_json_is_exact_and_harmless(document: dict[str, str]) -> None:
    """JSON gives every name back exactly, and still no character of it acts on a terminal."""
    text = json_text(document)
    assert json.loads(text) == document
    assert text.replace("\n", "").replace("\u200c", "").replace("\u200d", "").isprintable()


def test_values_that_json_lacks_become_texts() -> None:
    """NaN and infinities are written as MLflow writes them, and absent fields are left out."""
    assert plain([math.nan, math.inf, -math.inf, 0.5]) == ["NaN", "Infinity", "-Infinity", 0.5]
    shown = plain(Run(run_id="r", experiment_id="1", params=(KeyValue(key="a", value="b"),)))
    assert shown["params"] == [{"key": "a", "value": "b"}]
    assert "start_time" not in shown
    assert UNSET not in shown.values()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 * 1024, "10 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (412 * 1024**2, "412 MiB"),
        (3 * 1024**5, "3.0 PiB"),
        (5000 * 1024**5, "5,000 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    """Sizes are in binary units with about three digits."""
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 run"), (0, "0 runs"), (1204, "1,204 runs"), (999_999, "999,999 runs"), (2_100_000, "2.1 million runs")],
)
def test_counts(count: int, text: str) -> None:
    """Counts have thousands separators, and are rounded from a million on."""
    assert plural(count, "run") == text


def test_large_counts() -> None:
    """A billion is a billion."""
    assert count_text(3_400_000_000) == "3.4 billion"


def test_counts_of_kinds_that_come_later_are_not_hidden() -> None:
    """A kind of entity that this command does not know is counted all the same."""
    counts = {"experiment": 1, "run": 2, "metric_point": 3, "file": 4, "file_bytes": 5, "later_kind": 6}
    assert counts_text(counts) == "1 experiment, 2 runs, 3 points, 4 files, 6 later kinds"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_700_000_000_000, "2023-11-14 22:13:20 UTC"),
        (None, "-"),
        (-1, "-1 ms"),
        (2**62, f"{2**62:,} ms"),
        (0, "1970-01-01 00:00:00 UTC"),
    ],
)
def test_times(value: int | None, text: str) -> None:
    """Times are readable with their zone; one that no calendar has is shown as it is."""
    assert time_text(value) == text


def test_many_problems_are_counted() -> None:
    """People see the first problems and how many more there are, with codes."""
    lines = problem_lines([Problem(code="c", message=f"m{n}\x1b") for n in range(25)])
    assert lines[0] == "c: m0\\x1b"
    assert lines[-1] == "and 5 more; --json lists all"
    assert len(lines) == 21


def test_a_problem_names_what_it_is_about() -> None:
    """The entity is told once: by the sentence, or else before it."""
    said = Problem(code="c", message="files of run abc: gone", kind="run", id="abc")
    unsaid = Problem(code="c", message="the file 'x' was not written: full", kind="logged_model", id="m-1", path="x")
    assert problem_lines([said, unsaid]) == [
        "c: files of run abc: gone",
        "c: logged model m-1: the file 'x' was not written: full",
    ]


@pytest.mark.parametrize(
    ("text", "width", "shown"), [("abcdef", 6, "abcdef"), ("abcdef", 4, "abc…"), ("日本語日本", 5, "日本…"), ("ab", 1, "…")]
)
def test_cutting_counts_columns_of_the_terminal(text: str, width: int, shown: str) -> None:
    """Wide characters take two columns."""
    assert fitted(text, width) == shown


def test_tables_are_whole_where_there_is_no_terminal(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """In a pipe no column is cut, and wide characters are aligned."""
    table(("N", "NAME"), [("1", "x" * 300), ("22", "日本")], flexible=1, right=(0,))
    assert capsysbinary.readouterr().out.decode() == f" N  NAME\n 1  {'x' * 300}\n22  日本\n"
