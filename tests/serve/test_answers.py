"""Answers of an earlier server are given while the next one is being loaded, if they are whole and those to this question."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlflow_bundle.tracking.serve import _answers
from mlflow_bundle.tracking.serve._answers import answers_of
from tests.serve.conftest import serving
from tests.serve.test_pages_first import LET_GO, made, running

#: An application that tells how often it was asked, what, and by whom.
ECHO = """
import asyncio, json
from tests.serve.test_pages_first import LET_GO
LET_GO.wait(60)
ASKED = []

async def app(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    ASKED.append(scope["path"])
    status = 404 if "missing" in scope["path"] else 200
    kind = b"text/html" if "page" in scope["path"] else b"application/json; charset=utf-8"
    told = json.dumps({"times": len(ASKED), "body": body.decode(), "padding": "x" * body.count(b"+")}).encode()
    headers = [(b"Content-Type", kind), (b"x-of", b"mlflow"), (b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": told[:5], "more_body": True})
    await send({"type": "http.response.body", "body": told[5:], "more_body": True})
    await asyncio.sleep("late" in scope["path"])
    await send({"type": "http.response.body", "body": b""})
"""
SEARCH = "/api/2.0/mlflow/runs/search"


def asked(url: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str, str]:
    """Status, a header, and the text of an answer."""
    data = None if body is None else body.encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url + path, data=data, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["x-of"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-of"], error.read().decode()


@contextmanager
def loading(folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str = "echo_of_this_test") -> Iterator[str]:
    """A server whose application is not loaded until somebody lets it go."""
    LET_GO.clear()
    with running(made(name, ECHO, folder, monkeypatch), []) as url:
        yield url


def test_what_was_answered_once_is_answered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same question gets the same answer from the next server before that is loaded; afterwards the server is asked."""
    with loading(tmp_path, monkeypatch) as url:
        LET_GO.set()
        first = asked(url, SEARCH, '{"a": 1}')
        second = asked(url, f"{SEARCH}?page=2")
        no_route = asked(url, "/api/missing-page")
    assert [json.loads(answer[2])["times"] for answer in (first, second, no_route)] == [1, 2, 3]
    assert no_route[0] == 404
    with loading(tmp_path, monkeypatch) as url:
        assert asked(url, SEARCH, '{"a": 1}') == first
        assert asked(url, f"{SEARCH}?page=2", origin=url) == second
        assert asked(url, "/api/missing-page") == no_route
        LET_GO.set()
        fresh = json.loads(asked(url, f"{SEARCH}/other")[2])
        assert fresh == {"times": 1, "body": "", "padding": ""}
        assert json.loads(asked(url, SEARCH, '{"a": 1}')[2])["times"] == 2


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        pytest.param(SEARCH, '{"a": 2}', {}, id="another-body"),
        pytest.param(f"{SEARCH}?page=3", '{"a": 1}', {}, id="another-query"),
        pytest.param(SEARCH, None, {}, id="another-method"),
        pytest.param(SEARCH, '{"a": 1}', {"x_mlflow_workspace": "team"}, id="another-workspace"),
        pytest.param(SEARCH, '{"a": 1}', {"host": "evil.example"}, id="another-host"),
        pytest.param(SEARCH, '{"a": 1}', {"origin": "http://evil.example"}, id="another-site"),
        pytest.param("/api/missing", None, {}, id="an-error"),
        pytest.param("/api/page", None, {}, id="no-json"),
        pytest.param("/api/large", "+" * 1_200_000, {}, id="a-large-answer"),
        pytest.param("/api/large", "-" * 2_200_000, {}, id="a-large-question"),
        pytest.param("/health", None, {}, id="no-question-of-the-api"),
    ],
)
def test_all_other_questions_wait(
    path: str, body: str | None, headers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that differs in anything, and one whose answer is not remembered, is answered by MLflow's server alone."""
    with loading(tmp_path, monkeypatch) as url:
        LET_GO.set()
        asked(url, SEARCH, '{"a": 1}')
        if not path.startswith(SEARCH):
            asked(url, path, body, **headers)
    with loading(tmp_path, monkeypatch) as url, ThreadPoolExecutor(1) as other:
        question: Future[tuple[int, str, str]] = other.submit(asked, url, path, body, **headers)
        assert asked(url, SEARCH, '{"a": 1}')[0] == 200
        assert not wait([question], timeout=0.2).done
        LET_GO.set()
        told = json.loads(question.result(60)[2])
        assert (told["times"], told["body"]) == (1, body or "")


@pytest.mark.parametrize(
    ("body", "is_answer"),
    [
        (b'{"data":{"mlflowGetRun":{"apiError":null,"run":{"a":1}}},"errors":null}', True),
        (b'{"data":{"mlflowGetRun":{"apiError":{"code":"INTERNAL_ERROR"},"run":null}},"errors":null}', False),
        (b'{"data":{"mlflowGetRun":null},"errors":["No Run with id=77 exists"]}', False),
        (b'{"data":null,"errors":["Cannot query field"]}', False),
        (b'["errors", "apiError"]', False),
        (b'{"errors": []}', True),
        (b'{"errors": NaN}', False),
        (b'{"metrics": [NaN]}', True),
    ],
)
def test_errors_of_graphql_look_like_answers(body: bytes, is_answer: bool) -> None:
    """They have the status of answers, and may be gone the next time."""
    assert _answers._is_answer(body) is is_answer


@pytest.mark.parametrize("place", ["digest", "text", "end"])
def test_damaged_answers_do_not_count(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte in a line, or its missing end, costs that answer and no other."""
    with loading(tmp_path, monkeypatch) as url:
        LET_GO.set()
        asked(url, "/api/first"), asked(url, "/api/second")
    file = tmp_path / "kept.answers"
    data = bytearray(file.read_bytes())
    if place == "end":
        del data[-20:]
    else:
        data[data.rindex(b'{"question"') + (-3 if place == "digest" else 30)] ^= 1
    file.write_bytes(data)
    with loading(tmp_path, monkeypatch) as url, ThreadPoolExecutor(1) as other:
        assert asked(url, "/api/first")[0] == 200
        question = other.submit(asked, url, "/api/second")
        assert not wait([question], timeout=0.2).done
        LET_GO.set()
        assert json.loads(question.result(60)[2])["times"] == 1
        assert json.loads(asked(url, "/api/third")[2])["times"] == 2
    with loading(tmp_path, monkeypatch) as url:
        assert [json.loads(asked(url, f"/api/{name}")[2])["times"] for name in ("first", "third")] == [1, 2]


def test_an_answer_is_kept_before_anybody_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the answer may end the server at once, before that says that it was all, as WSGI applications do."""
    with loading(tmp_path, monkeypatch) as url:
        LET_GO.set()
        asked(url, "/api/late")
        assert len((tmp_path / "kept.answers").read_bytes().splitlines()) == 1


def test_only_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not grow with every question, nor with every server."""
    size = len(b'{"times": 1, "body": "", "padding": ""}')
    monkeypatch.setattr(_answers, "_ENOUGH", 2 * size + 1)
    for _ in range(2):
        with loading(tmp_path, monkeypatch) as url:
            LET_GO.set()
            for number in range(6):
                asked(url, f"/api/{number % 5}")
        assert len((tmp_path / "kept.answers").read_bytes().splitlines()) == 3


def test_settings_and_releases_have_answers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLflow is told by its environment, and the release of it, may change what it answers."""
    names = {answers_of(tmp_path / "a.db")._path}
    monkeypatch.setenv("MLFLOW_SEARCH_TRACES_MAX_THREADS", "3")
    names.add(answers_of(tmp_path / "a.db")._path)
    monkeypatch.setattr(_answers, "version", lambda _: "99.0")
    names.add(answers_of(tmp_path / "a.db")._path)
    names.add(answers_of(tmp_path / "b.db")._path)
    assert len(names) == 4


@pytest.mark.slow
def test_a_served_archive_answers_the_same_twice(estate_bundle: str, tmp_path: Path) -> None:
    """The second server of an archive gives the first one's answer, and writes nothing new for it."""
    cache, question = tmp_path / "cache", "/ajax-api/2.0/mlflow/experiments/search?max_results=5"
    with serving(estate_bundle, cache) as first:
        answer = asked(first.url, question)
        refused = asked(first.url, "/api/2.0/mlflow/experiments/create", '{"name": "x"}', content_type="application/json")
    (file,) = (cache / "serve").glob("*.answers")
    kept = file.read_bytes()
    assert json.loads(answer[2])["experiments"]
    assert (refused[0], kept.count(b"\n")) == (403, 1)
    with serving(estate_bundle, cache) as second:
        assert asked(second.url, question) == answer
        assert (
            asked(second.url, "/api/2.0/mlflow/experiments/create", '{"name": "x"}', content_type="application/json") == refused
        )
    assert file.read_bytes() == kept
