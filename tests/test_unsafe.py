"""Which paths of files are refused when files are written: the rule of spec/v1.md, 10.2, in one place."""

from __future__ import annotations

import pytest

from mlflow_bundle._unsafe import leads_out, why_not_written, why_unsafe

CLIMBING = ["..\\evil", "a\\..\\..\\b", "\\\\host\\share", "\\evil", "a/..\\..\\b"]
ODD = ["a.txt", "..two-dots", "...", "a b/ü", "console.txt", "auxiliary", "nullable/x", "ab:c", "what?.txt", "x\\y"]


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/..", "C:/x", "a/c:b", "nul", "a/COM0.txt", "a\0b"])
def test_what_is_unsafe_is_not_written(path: str, *, windows: bool) -> None:
    """What a verification warns of is refused everywhere, for the same reason."""
    assert why_unsafe(path)
    assert why_not_written(path, windows=windows) == why_unsafe(path)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("path", CLIMBING)
def test_backslashes_that_lead_out_are_refused_everywhere(path: str, *, windows: bool) -> None:
    """A file system that is mounted here may be one where a backslash separates paths."""
    assert "backslash" in (why_not_written(path, windows=windows) or "")


@pytest.mark.parametrize("path", ODD)
def test_names_that_only_look_odd_are_written(path: str) -> None:
    """A name that every POSIX disk takes is not refused there."""
    assert why_not_written(path, windows=False) is None


@pytest.mark.parametrize("path", ["x\\y", "ab:c", "what?.txt", "a/b\n", "dot.", "space /x", "a|b", "a*", '"a"', "<a>"])
def test_what_is_no_name_on_windows_is_refused_there(path: str) -> None:
    """A separator, a stream of a file, a wildcard, and names that Windows would change."""
    assert why_not_written(path, windows=True) == "is no name on Windows"


def test_what_only_windows_minds_leads_nowhere() -> None:
    """Paths of an enemy are told from names that users give to files where there is no Windows."""
    assert all(map(leads_out, [*CLIMBING, "", "/a", "a//b", "../a", "a\0b", "CON/../a"]))
    assert not any(map(leads_out, [*ODD, "nul", "a/COM0.txt", "C:/x", "a/c:b"]))
