"""MLflow's own pages show a served archive, in a real browser."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.fixtures.estate import Estate
from tests.serve.conftest import Served

pytestmark = pytest.mark.slow

SECONDS = 120


def until(browser: Chrome, true: Callable[[], object], what: str) -> object:
    """Wait for something on the page; what is there instead is in the message."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            if found := true():
                return found
        except (StopIteration, StaleElementReferenceException, WebDriverException):
            pass
        time.sleep(0.3)
    raise AssertionError(f"{what} did not appear in {browser.current_url}:\n{browser.find_element(By.TAG_NAME, 'body').text}")


def show(browser: Chrome, served: Served, page: str, *texts: str) -> None:
    """Open a page of the UI and wait for these texts."""
    browser.get("about:blank")
    browser.get(f"{served.url}/#{page}")
    for text in texts:
        until(browser, lambda text=text: text in browser.find_element(By.TAG_NAME, "body").text, repr(text))


def button(browser: Chrome, text: str) -> WebElement:
    """The visible button with this text."""
    return next(one for one in browser.find_elements(By.TAG_NAME, "button") if one.text == text and one.is_displayed())


def _click(element: WebElement) -> bool:
    """Whether the element could be clicked."""
    element.click()
    return True


def test_run_list(browser: Chrome, served: Served, estate: Estate) -> None:
    """The runs of an experiment are in the table. With MLFLOW_BUNDLE_SCREENSHOT the page is kept as that file."""
    show(browser, served, f"/experiments/{estate.models}/runs", "makes two", "reads one", "2 matching runs")
    if place := os.environ.get("MLFLOW_BUNDLE_SCREENSHOT"):
        assert browser.save_screenshot(place)


def test_chart(browser: Chrome, served: Served, estate: Estate) -> None:
    """The metrics of a run are drawn."""
    show(browser, served, f"/experiments/{estate.models}/runs/{estate.run_id}/model-metrics", "loss")
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "svg.main-svg, canvas"), "a chart")


def test_artifact(browser: Chrome, served: Served, estate: Estate) -> None:
    """A file comes out of the bundle onto the page."""
    content = Path(estate.folder, "mlruns", estate.models, estate.run_id, "artifacts/notes/ü.txt").read_text()
    show(browser, served, f"/experiments/{estate.models}/runs/{estate.run_id}/artifacts", "notes")
    for name in ("notes", "ü.txt"):
        until(browser, lambda name=name: _click(browser.find_element(By.XPATH, f"//*[text()='{name}']")), name)
    until(browser, lambda: content.strip() in browser.find_element(By.TAG_NAME, "body").text, repr(content))


def test_trace(browser: Chrome, served: Served, estate: Estate) -> None:
    """The traces of an experiment are listed, and one opens with its spans."""
    page = f"/experiments/{estate.traces}/traces?selectedEvaluationId={estate.trace_ids[0]}"
    show(browser, served, page, "Inputs / Outputs", "outer", "inner")


def test_registered_model(browser: Chrome, served: Served) -> None:
    """A registered model shows its versions and its alias."""
    show(browser, served, "/models/churn.v1", "churn.v1", "Version 10", "champion")


def test_refused_write(browser: Chrome, served: Served, estate: Estate) -> None:
    """Who tries to change something in the UI reads why it does not work, and nothing changes."""
    show(browser, served, "/experiments", "Experiments")
    until(browser, lambda: button(browser, "Create"), "the button").click()

    def refused() -> bool:
        """Fill in the dialog and send it, again where the page was not ready for it yet."""
        if "opened read-only" in browser.find_element(By.TAG_NAME, "body").text:
            return True
        fields = [one for one in browser.find_elements(By.CSS_SELECTOR, "[role=dialog] input") if one.is_displayed()]
        buttons = [one for one in browser.find_elements(By.CSS_SELECTOR, "[role=dialog] button") if one.text == "Create"]
        if fields and not fields[0].get_attribute("value"):
            fields[0].send_keys("new experiment")
        if buttons:
            buttons[0].click()
        return False

    until(browser, refused, "the reason")
