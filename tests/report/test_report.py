"""The page to hand over: opened from disk in a real browser, used as a reader would, with names that want to break out."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

import mlflow_bundle as bundle
from mlflow_bundle._limits import WRITER_TARGETS
from mlflow_bundle._report import report_html
from mlflow_bundle._storage import open_storage
from mlflow_bundle.cli import run as command
from mlflow_bundle.records import Experiment, KeyValue
from tests.building import START, Content, everything_of, pack_content, run_of

EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>&'\"\u202e"


def png(width: int, height: int) -> bytes:
    """A blue picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + b"\x20\x60\xc0" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def content_of(runs: int, *, points: int = 50) -> Content:
    """Runs with params, two curves each, a picture and a text; and one entity of every other kind."""
    content = everything_of(1)
    content.runs, content.points, content.files = [], {}, {}
    for number in range(runs):
        params = (KeyValue(key="depth", value=str(number % 7)), KeyValue(key="optimizer", value=("adam", "sgd")[number % 2]))
        run = replace(run_of(number), params=params)
        content.runs.append(run)
        content.points[run.run_id] = [("accuracy", 0, START, 1 - 1 / (number + 2))]
        content.points[run.run_id] += [
            ("loss", step, START + step, math.exp(-step / 9) + number / 100) for step in range(points)
        ]
        content.files[run.run_id] = {"plots/curve.png": png(40 + number % 50, 20), "notes.txt": b"notes"}
    return content


Opened = Callable[[str], webdriver.Chrome]


@pytest.fixture
def opened(browser: webdriver.Chrome, tmp_path: Path) -> Opened:
    """Opens a page from disk and waits until it is ready."""

    def go(page: str) -> webdriver.Chrome:
        file = tmp_path / "report.html"
        file.write_text(page, "utf-8")
        browser.get(file.as_uri())
        WebDriverWait(browser, 60).until(lambda b: b.find_element(By.TAG_NAME, "body").get_attribute("data-ready"))
        return browser

    return go


def page_of(content: Content, place: Path) -> str:
    with open_storage(place, create=True) as storage:
        pack_content(storage, content, targets=WRITER_TARGETS)
    with bundle.open(place) as archive:
        return report_html(archive)


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the browser logged: errors of scripts, and everything that its policy refused."""
    return [entry["message"] for entry in browser.get_log("browser") if "willReadFrequently" not in entry["message"]]


def painted(browser: webdriver.Chrome, chart: str) -> int:
    """How many points of a chart's canvas are coloured."""
    script = (
        f"const c = document.querySelector('#{chart} canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i + 3] && Math.abs(d[i] - d[i + 2]) > 60) n++; return n;"
    )
    return int(browser.execute_script(script))


@pytest.mark.slow
def test_a_reader_finds_everything(opened: Opened, tmp_path: Path) -> None:
    """Runs sorted and filtered, curves picked and overlaid, params against metrics, files with pictures, models, provenance."""
    browser = opened(page_of(content_of(12), tmp_path / "b"))
    with bundle.open(tmp_path / "b") as archive:
        root, stem = archive.root_digest, archive.snapshot_id
    text = browser.find_element(By.TAG_NAME, "body").text
    for part in (root, stem, "12 runs", "shop", "12 of 12 runs", "notes.txt", "best = 2", "churn"):
        assert part in text
    first = browser.find_element(By.CSS_SELECTOR, "#run-table .tabulator-row")
    assert "run 11" in first.text
    browser.find_element(By.CSS_SELECTOR, "#run-table [tabulator-field=name] .tabulator-col-title").click()
    assert "run 0" in browser.find_element(By.CSS_SELECTOR, "#run-table .tabulator-row").text
    box = browser.find_element(By.CSS_SELECTOR, "#run-table [tabulator-field=m0] input")
    box.send_keys(">0.9")
    WebDriverWait(browser, 10).until(lambda b: b.find_element(By.ID, "shown").text == "3 of 12 runs")
    metric = Select(browser.find_element(By.ID, "metric"))
    assert [option.text for option in metric.all_selected_options] == ["loss"]
    before = painted(browser, "curve-chart")
    assert before > 200
    for row in browser.find_elements(By.CSS_SELECTOR, "#run-table .tabulator-row")[:2]:
        row.click()
    metric.select_by_value("accuracy")
    assert painted(browser, "curve-chart") not in (0, before)
    assert painted(browser, "compare-chart") > 50
    Select(browser.find_element(By.ID, "x")).select_by_visible_text("param optimizer")
    assert painted(browser, "compare-chart") > 50
    image = browser.find_element(By.CSS_SELECTOR, "#file-list img")
    assert browser.execute_script("return arguments[0].complete && arguments[0].naturalHeight", image) == 20
    assert complaints(browser) == []


#: The top and the bottom of every text of a chart, and the colour of every series.
_PAINTED = """
const chart = echarts.getInstanceByDom(document.getElementById('compare-chart'));
const texts = chart.getZr().storage.getDisplayList().filter((one) => one.style && one.style.text).map((one) => {
  const place = one.getBoundingRect().clone();
  if (one.transform) place.applyTransform(one.transform);
  return [one.style.text, place.y, place.y + place.height];
});
const colours = chart.getModel().getSeries().map((series) => series.getData().getVisual('style').fill);
return [texts, colours];
"""


@pytest.mark.slow
def test_many_experiments(opened: Opened, tmp_path: Path) -> None:
    """Each of 14 experiments has its own colour, and the legend does not touch the name of the axis below it."""
    content = content_of(14, points=2)
    content.experiments = [Experiment(experiment_id=str(10 + number), name=f"group {number}") for number in range(14)]
    content.runs = [replace(run, experiment_id=str(10 + number)) for number, run in enumerate(content.runs)]
    texts, colours = opened(page_of(content, tmp_path / "b")).execute_script(_PAINTED)
    assert len(colours) == len(set(colours)) == 14
    legend = [bottom for text, _, bottom in texts if text.startswith("group ")]
    name = [top for text, top, _ in texts if text == "accuracy"]
    assert legend
    assert max(legend) < min(name)


@pytest.mark.slow
def test_names_stay_text(opened: Opened, tmp_path: Path) -> None:
    """Names, keys, values and paths that are HTML or end a script are shown as they are, and run nowhere."""
    content = content_of(2)
    content.experiments = [Experiment(experiment_id="1", name=EVIL)]
    run = content.runs[1]
    evil = (KeyValue(key=EVIL, value=EVIL),)
    content.runs[1] = replace(run, run_name=EVIL, params=evil, tags=evil)
    content.points[run.run_id] = [(EVIL, step, START, step * 0.5) for step in range(5)]
    content.files[run.run_id] = {f"{EVIL.replace('/', '_')}.txt": b"x"}
    browser = opened(page_of(content, tmp_path / "b"))
    for index in range(len(Select(browser.find_element(By.ID, "metric")).options)):
        Select(browser.find_element(By.ID, "metric")).select_by_index(index)
    for select in ("x", "y"):
        for index in range(len(Select(browser.find_element(By.ID, select)).options)):
            Select(browser.find_element(By.ID, select)).select_by_index(index)
    shown = browser.find_element(By.TAG_NAME, "body").text
    assert EVIL.replace("\u202e", "\\u202e") in shown
    assert "\u202e" not in shown
    assert browser.find_elements(By.CSS_SELECTOR, "img[src=x], img[onerror]") == []
    assert browser.title == str(tmp_path / "b")
    assert complaints(browser) == []


@pytest.mark.slow
def test_nothing_but_its_own_scripts_runs(opened: Opened, tmp_path: Path) -> None:
    """Even a script that somebody put into the finished page does not run, and nothing is fetched."""
    page = page_of(content_of(1), tmp_path / "b")
    assert not re.search(r'(?:src|href)="(?!#)', page.split("<script")[0])
    before, after = page.rsplit("</body>", 1)
    browser = opened(f"{before}<script>document.title = 'owned'</script></body>{after}")
    assert browser.title != "owned"
    (refused,) = complaints(browser)
    assert "Content Security Policy" in refused
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.slow
def test_five_thousand_runs(opened: Opened, tmp_path: Path) -> None:
    """A large archive makes a page that opens, says what is sampled and left out, and stays below 20 MB."""
    content = content_of(5_200, points=60)
    for run in content.runs[:-40]:
        content.files[run.run_id] = {}
    page = page_of(content, tmp_path / "b")
    assert len(page) < 20_000_000
    browser = opened(page)
    limits = browser.find_element(By.ID, "limits").text
    assert "newest 5,000 of 5,200 runs" in limits
    assert "5,000 of 5,000 runs" in browser.find_element(By.ID, "shown").text
    assert painted(browser, "curve-chart") > 200
    assert complaints(browser) == []


@pytest.mark.slow
def test_an_empty_archive_has_a_page(opened: Opened, tmp_path: Path) -> None:
    """Nothing in it: the page opens, and says so."""
    browser = opened(page_of(Content(experiments=[]), tmp_path / "b"))
    assert "0 of 0 runs" in browser.find_element(By.TAG_NAME, "body").text
    assert complaints(browser) == []


def test_sampling_keeps_ends_and_says_so(tmp_path: Path) -> None:
    """A long series is thinned out evenly with its first and last point; what is not finite is a gap; a short one is whole."""
    content = content_of(1)
    run = content.runs[0].run_id
    content.points[run] = [("long", step, START + step, step / 7) for step in range(10_000)]
    content.points[run] += [("odd", 0, START, math.nan), ("odd", 1, START, math.inf), ("odd", 2, START, -0.5)]
    page = page_of(content, tmp_path / "b")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    curves = {key: (count, steps, values) for _, key, count, steps, values in data["curves"]}
    count, steps, values = curves["long"]
    assert (count, len(steps), steps[0], steps[-1], values[-1]) == (10_000, 400, 0, 9_999, 1428.43)
    assert {after - before for before, after in pairwise(steps)} == {25, 26}
    assert curves["odd"] == (3, [0, 1, 2], [None, None, -0.5])
    assert any("1 curve of 2 are sampled" in sentence for sentence in data["limits"])


def test_the_command(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """The page goes to a file or to stdout, from a ZIP file too; a place that cannot be written is one sentence."""
    place = str(tmp_path / "b.mlbundle.zip")
    page = page_of(content_of(2), tmp_path / "b.mlbundle.zip")
    assert command(["report", place, "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text("utf-8") == page
    capsysbinary.readouterr()
    assert command(["report", place, "-o", "-"]) == 0
    assert capsysbinary.readouterr().out.decode() == page
    assert command(["report", place, "-o", str(tmp_path / "none" / "page.html")]) == 1
    error = capsysbinary.readouterr().err
    assert b"cannot be written: No such file or directory" in error
    assert error.splitlines()[1:] == [b"hint: give -o a file in a folder that is there and can be written, or - for stdout"]


def test_a_page_appears_whole_and_a_link_stays_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page replaces an older one and leaves nothing beside it; a link is written through, so that a device stays one."""
    with open_storage(tmp_path / "b", create=True) as storage:
        pack_content(storage, content_of(1))
    out = tmp_path / "out"
    out.mkdir()
    (out / "page.html").write_text("older")
    (out / "link.html").symlink_to(out / "other.html")
    for name in ("page.html", "link.html"):
        assert command(["report", str(tmp_path / "b"), "-o", str(out / name)]) == 0
    assert (out / "link.html").is_symlink()
    assert (out / "other.html").read_bytes() == (out / "page.html").read_bytes()
    assert sorted(place.name for place in out.iterdir()) == ["link.html", "other.html", "page.html"]
    assert command(["report", str(tmp_path / "b"), "-o", str(out)]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_filters_of_names_and_of_numbers(opened: Opened, tmp_path: Path) -> None:
    """Digits find a name that holds them; in a column of numbers they mean that number."""
    browser = opened(page_of(content_of(12), tmp_path / "b"))
    for field, typed, found in (("name", "11", 1), ("p0", "0", 2), ("start", "2023", 12)):
        box = browser.find_element(By.CSS_SELECTOR, f"#run-table [tabulator-field={field}] input")
        box.send_keys(typed)
        WebDriverWait(browser, 10).until(lambda b, n=found: b.find_element(By.ID, "shown").text == f"{n} of 12 runs")
        box.clear()
        box.send_keys(" \b")
        WebDriverWait(browser, 10).until(lambda b: b.find_element(By.ID, "shown").text == "12 of 12 runs")
