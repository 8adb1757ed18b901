"""What a notebook shows of an archive: what is inside, how big, how old, verified when; escaped, and at most a page."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

import mlflow_bundle as bundle
from mlflow_bundle._diff import diff
from mlflow_bundle._storage import open_storage
from mlflow_bundle._text import age_text
from mlflow_bundle.records import KeyValue, Run
from tests.building import content_of, everything_of, pack_content

EVIL = "<script>alert(1)</script>\x1b[31m \u202e\" '"


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_a_bundle_says_what_it_is(tmp_path: Path) -> None:
    """Counts, size, age and source; that nobody verified it, and after a verification when and how."""
    with open_storage(tmp_path, create=True) as storage:
        pack_content(storage, everything_of(3), created_at=time.time_ns() // 1_000_000 - 3 * 3_600_000)
    with bundle.open(tmp_path) as archive:
        page = Page(archive._repr_html_())
        for part in (
            "1 experiment, 3 runs, 30 points",
            "3 hours ago",
            archive.root_digest,
            "not by this object",
            str(tmp_path),
        ):
            assert part in page.text
        assert "3 runs" in repr(archive)
        archive.verify(level="tables")
        assert "level tables: no problems" in Page(archive._repr_html_()).text


def test_nothing_reaches_html_unescaped() -> None:
    """Names and values from an archive are text, whatever they contain; no control character is left."""
    tags = (KeyValue(key=EVIL, value=EVIL),)
    run = Run(run_id=EVIL, experiment_id="1", run_name=EVIL, tags=tags)
    page = Page(run._repr_html_())
    assert set(page.tags) <= {"div", "strong", "table", "tr", "th", "td", "br"}
    assert page.text.count("<script>alert(1)</script>\\x1b[31m \\u202e\" '") == 4


@pytest.mark.parametrize("count", [0, 1, 2_000])
def test_a_page_stays_a_page(count: int) -> None:
    """Long lists and long values are cut, and it is said how much more there is."""
    params = tuple(KeyValue(key=f"{n:05}", value="x" * 5_000) for n in range(count))
    page = Page(Run(run_id="r", experiment_id="1", params=params)._repr_html_())
    assert len(page.text) < 10_000
    assert ("and 1,988 more" in page.text) == (count == 2_000)


def test_reports_and_snapshots_are_shown(tmp_path: Path) -> None:
    """Everything that a call returns has a picture in a notebook."""
    with open_storage(tmp_path, create=True) as storage:
        first = pack_content(storage, content_of(2))[0]
        pack_content(storage, content_of(3))
    with bundle.open(tmp_path) as archive:
        found = diff(archive.at(first.stem), archive)
        shown = [archive.snapshot, archive.run(content_of(1).runs[0].run_id), archive.verify(), found]
        texts = [Page(document._repr_html_()).text for document in shown]
    assert "metric_point: 30" in texts[0]
    assert "lr = 0e-3" in texts[1]
    assert "objects checked" in texts[2]
    assert "added" in texts[3]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-1, "less than a minute"),
        (59_999, "less than a minute"),
        (60_000, "1 minute"),
        (7_199_999, "1 hour"),
        (172_800_000, "2 days"),
        (800 * 86_400_000, "2 years"),
    ],
)
def test_ages(milliseconds: int, text: str) -> None:
    """An age is told in its greatest unit."""
    assert age_text(milliseconds) == text
