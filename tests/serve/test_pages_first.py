"""A server that is still being loaded: its pages are sent at once, all else waits, and a failure ends it."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn

from mlflow_bundle.tracking.serve._answers import Answers
from mlflow_bundle.tracking.serve._pages_first import PagesFirst

SLOW = """
from tests.serve.test_pages_first import LET_GO
LET_GO.wait(60)

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"loaded: " + scope["path"].encode()})
"""
LET_GO = threading.Event()
QUESTION = "/api/2.0/mlflow/runs/search"


def get(url: str) -> tuple[int, str, str]:
    """Status, type and text of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read().decode()


@contextlib.contextmanager
def running(app: PagesFirst, failed: list[bool]) -> Iterator[str]:
    """A server of the application, which is being loaded, and its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, interface="asgi3", log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        app.start(lambda: failed.append(True))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            LET_GO.set()
            server.should_exit = True
            thread.join(60)


def made(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> PagesFirst:
    """The application of a module with this text."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return PagesFirst(name, "app", Answers(folder / "kept.answers"))


def test_pages_come_at_once_and_the_rest_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the module is being imported the UI's page and its scripts are there; an API request is answered afterwards."""
    app, failed = made("slow_module_of_this_test", SLOW, tmp_path, monkeypatch), list[bool]()
    LET_GO.clear()
    with running(app, failed) as url, ThreadPoolExecutor(1) as other:
        question = other.submit(get, url + QUESTION)
        status, _, page = get(url)
        assert status == 200
        script = page.partition('src="')[2].partition('"')[0]
        assert get(f"{url}/{script.removeprefix('./')}")[:2] == (200, "text/javascript")
        assert get(f"{url}/static-files/..%2f..%2f__init__.py")[0] == 404
        assert not question.done()
        LET_GO.set()
        assert question.result(60)[::2] == (200, f"loaded: {QUESTION}")
        assert get(url + "/")[2] == "loaded: /"
    app.check()
    assert failed == []


def test_an_import_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait are answered, whoever runs the server hears of it, and ``check`` raises what was raised."""
    app, failed = made("broken_module_of_this_test", "import no_such_module_of_this_test", tmp_path, monkeypatch), list[bool]()
    with running(app, failed) as url:
        assert get(url + QUESTION)[0] == 503
    assert failed == [True]
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_this_test"):
        app.check()
