"""Answers of an earlier server are given while the next one is being loaded, if they are whole and those to this question."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.requests import Request
from starlette.types import Message

from mlflow_bundle.tracking.serve import _answers, metadata_of
from mlflow_bundle.tracking.serve._answers import Answers, answers_of, question_of
from tests.serve.conftest import serving
from tests.serve.test_pages_first import LET_GO, made, running
from tests.serve.test_serve import one_experiment

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
PLACE = "/api/2.0/mlflow/runs"
SEARCH = f"{PLACE}/search"
JSON = (b"content-type", b"application/json")


def question(
    path: str = SEARCH,
    query: bytes = b"",
    *,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (JSON,),
    host: bytes = b"localhost:5001",
    client: tuple[str, int] | None = ("127.0.0.1", 40000),
    body: bytes = b"{}",
) -> str:
    """How a question is known, empty where it is not to be remembered."""
    sent = [(b"host", host), (b"content-length", b"%d" % len(body)), *headers]
    scope = {"type": "http", "method": method, "raw_path": path.encode(), "path": unquote(path)}
    scope |= {"query_string": query, "headers": sent, "client": client, "server": ("127.0.0.1", 5001), "scheme": "http"}

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    return asyncio.run(question_of(Request(scope, receive)))


def told(answers: Answers, name: str, *chunks: bytes, length: int | None = None, open_end: bool = False) -> None:
    """A server answers a question of this name in chunks, whose last one may not be marked as such."""
    headers = [JSON] if length is None else [JSON, (b"content-length", b"%d" % length)]

    async def send(_: Message) -> None:
        pass

    async def answer() -> None:
        listen = answers.listener(name, send)
        await listen({"type": "http.response.start", "status": 200, "headers": headers})
        for number, chunk in enumerate(chunks, 1):
            await listen({"type": "http.response.body", "body": chunk, "more_body": open_end or number < len(chunks)})

    asyncio.run(answer())


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
        no_route = asked(url, f"{PLACE}/missing-page")
    assert [json.loads(answer[2])["times"] for answer in (first, second, no_route)] == [1, 2, 3]
    assert no_route[0] == 404
    with loading(tmp_path, monkeypatch) as url:
        assert asked(url, SEARCH, '{"a": 1}') == first
        assert asked(url, f"{SEARCH}?page=2", origin=url) == second
        assert asked(url, f"{PLACE}/missing-page") == no_route
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
        pytest.param(f"{PLACE}/missing", None, {}, id="an-error"),
        pytest.param(f"{PLACE}/page", None, {}, id="no-json"),
        pytest.param(f"{PLACE}/large", "+" * 1_200_000, {}, id="a-large-answer"),
        pytest.param(f"{PLACE}/large", "-" * 2_200_000, {}, id="a-large-question"),
        pytest.param("/health", None, {}, id="no-question-of-the-api"),
        pytest.param("/ajax-api/3.0/mlflow/gateway/budgets/windows", None, {}, id="not-of-the-archive"),
        pytest.param(SEARCH, '{"a": 1}', {"host": "["}, id="no-host"),
        pytest.param(SEARCH, '{"a": 1}', {"origin": "http://["}, id="no-site"),
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
        answer: Future[tuple[int, str, str]] = other.submit(asked, url, path, body, **headers)
        assert asked(url, SEARCH, '{"a": 1}')[0] == 200
        assert not wait([answer], timeout=0.2).done
        LET_GO.set()
        text = json.loads(answer.result(60)[2])
        assert (text["times"], text["body"]) == (1, body or "")


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
        asked(url, f"{PLACE}/first"), asked(url, f"{PLACE}/second")
    file = tmp_path / "kept.answers"
    data = bytearray(file.read_bytes())
    if place == "end":
        del data[-20:]
    else:
        data[data.rindex(b'{"question"') + (-3 if place == "digest" else 30)] ^= 1
    file.write_bytes(data)
    with loading(tmp_path, monkeypatch) as url, ThreadPoolExecutor(1) as other:
        assert asked(url, f"{PLACE}/first")[0] == 200
        answer = other.submit(asked, url, f"{PLACE}/second")
        assert not wait([answer], timeout=0.2).done
        LET_GO.set()
        assert json.loads(answer.result(60)[2])["times"] == 1
        assert json.loads(asked(url, f"{PLACE}/third")[2])["times"] == 2
    with loading(tmp_path, monkeypatch) as url:
        assert [json.loads(asked(url, f"{PLACE}/{name}")[2])["times"] for name in ("first", "second", "third")] == [1, 1, 2]


def test_an_answer_is_kept_before_anybody_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the answer may end the server at once, before that says that it was all, as WSGI applications do."""
    with loading(tmp_path, monkeypatch) as url:
        LET_GO.set()
        asked(url, f"{PLACE}/late")
        assert (tmp_path / "kept.answers").read_bytes().count(b"\n") == 1


def test_only_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not grow with every question, nor with every server: all its bytes count, damaged ones too."""
    file = tmp_path / "kept.answers"
    told(Answers(file), "0", b"1")
    line = file.stat().st_size
    monkeypatch.setattr(_answers, "_ENOUGH", 2 * line + 1)
    for number in range(4):
        told(Answers(file), str(number), b"1")
    assert file.stat().st_size == 3 * line
    file.unlink()
    answers = Answers(file)
    for number in range(5):
        told(answers, str(number), b"1")
    assert file.stat().st_size == 3 * line
    file.write_bytes(bytes(2 * line + 1))
    told(Answers(file), "5", b"1")
    assert file.stat().st_size == 2 * line + 1


@pytest.mark.parametrize(
    ("chunks", "length", "open_end", "is_kept"),
    [
        ((b"12", b"345"), 5, True, True),
        ((b"12", b"345"), None, False, True),
        ((b"12", b"345"), None, True, False),
        ((b"12", b"345"), 6, False, False),
        ((b"12", b"345"), 3, False, False),
    ],
)
def test_only_whole_answers_are_kept(
    chunks: tuple[bytes, ...], length: int | None, open_end: bool, is_kept: bool, tmp_path: Path
) -> None:
    """Where a length is told it is that many bytes, else all until the server says that it was the last one."""
    told(Answers(tmp_path / "kept.answers"), "q", *chunks, length=length, open_end=open_end)
    assert (Answers(tmp_path / "kept.answers").find("q") is not None) is is_kept


@pytest.mark.parametrize("text", [b"[]", b'{"question": 1}', b"", b"\xff", b'{"question": "\xff"}'])
def test_a_line_of_another_shape_does_not_count(text: bytes, tmp_path: Path) -> None:
    """Even where its digest is right."""
    file = tmp_path / "kept.answers"
    file.write_bytes(hashlib.sha256(text).hexdigest().encode() + b" " + text)
    told(Answers(file), "q", b"1")
    assert Answers(file).find("q") is not None


#: What the pages of MLflow 3 ask for: the start page, and those of experiments, runs, traces and models.
ASKED = {
    *("server-info", "ui-telemetry", "users/current", "experiments/search", "experiments/get", "experiments/search-datasets"),
    *("runs/search", "runs/get", "metrics/get-history-bulk-interval", "artifacts/list", "model-versions/search"),
    *("registered-models/search", "registered-models/get", "logged-models/search", "logged-models/m-1"),
    *("traces/search", "traces/metrics", "traces/batchGet", "get-trace-artifact", "datasets/search", "scorers/list"),
    *("label-schemas/list", "review-queues/list", "issues/search", "workspaces"),
}
#: What depends on the clock, the user's files, installed programs or other servers.
NOT_ASKED = {
    *("assistant/config", "assistant/providers", "gateway-proxy", "gateway/budgets/windows", "gateway/supported-providers"),
    *("gateway/supported-models", "gateway/provider-config", "gateway/secrets/config", "jobs/1"),
    *("prompt-optimization/jobs/search", "server-information", "users/current-one"),
}


def test_what_is_about_the_archive_is_remembered() -> None:
    """Nothing else is: it may be different the next time."""
    for prefix in ("/api/2.0/mlflow/", "/ajax-api/2.0/mlflow/", "/ajax-api/3.0/mlflow/"):
        assert {name for name in ASKED | NOT_ASKED if question(prefix + name)} == ASKED
    assert question("/graphql")
    assert not any(map(question, ("/ajax-api/3.0/jobs/search", "/gateway/x", "/health", "/", "/graphql2", "/x/graphql")))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: question(SEARCH.replace("search", "%09search")), id="tab"),
        pytest.param(lambda: question(SEARCH, b"a=%09"), id="tab-in-query"),
        pytest.param(lambda: question(f"{SEARCH}%3Fa"), id="quoted-question-mark"),
        pytest.param(lambda: question(f"{SEARCH}%253Fa"), id="percent"),
        pytest.param(lambda: question(query=b"a"), id="query"),
        pytest.param(lambda: question(f"{SEARCH}/"), id="slash"),
        pytest.param(lambda: question(method="GET"), id="method"),
        pytest.param(lambda: question(body=b"{} "), id="body"),
        pytest.param(lambda: question(headers=[]), id="no-type"),
        pytest.param(lambda: question(headers=[(b"content-type", b"text/plain")]), id="type"),
        pytest.param(lambda: question(headers=[JSON, (b"content-encoding", b"gzip")]), id="encoding"),
        pytest.param(lambda: question(headers=[JSON, (b"x-mlflow-workspace", b"a")]), id="workspace"),
        pytest.param(lambda: question(headers=[JSON, (b"x_mlflow_workspace", b"a")]), id="workspace-as-wsgi-has-it"),
        pytest.param(lambda: question(client=("10.0.0.1", 40000)), id="another-machine"),
        pytest.param(lambda: question(client=None), id="nobody-knows-where"),
        pytest.param(lambda: question(host=b"LOCALHOST:5001"), id="host"),
        pytest.param(lambda: question(host=b"[::1]:5001"), id="host-number"),
    ],
)
def test_questions_that_differ(other: Callable[[], str]) -> None:
    """As they are sent, before anything is quoted, decoded or left out."""
    assert other() not in ("", question())


def test_questions_that_are_the_same() -> None:
    """From another port of this machine to another port of it, by another program; from its own site."""
    more = [JSON, (b"user-agent", b"x"), (b"origin", b"http://localhost:7")]
    assert question(host=b"localhost:7", client=("127.0.0.1", 5), headers=more) == question()
    assert question(client=("::1", 5)) == question()
    assert question(f"{SEARCH}%3Fa") != question(f"{SEARCH}%253Fa")


@pytest.mark.parametrize(
    "of",
    [
        {"host": b"["},
        {"host": b""},
        {"host": b"a@localhost:5001"},
        {"headers": [(b"host", b"evil.example")]},
        {"headers": [(b"origin", b"http://[")]},
        {"headers": [(b"origin", b"null")]},
        {"headers": [(b"origin", b"http://localhost:5001"), (b"origin", b"http://evil.example")]},
        {"headers": [(b"transfer-encoding", b"chunked")]},
        {"headers": [(b"range", b"bytes=0-1")]},
        {"body": bytes(_answers._LARGEST + 1)},
        {"body": bytes(_answers._LARGEST + 1), "method": "GET"},
        {"method": "PUT"},
    ],
)
def test_questions_that_are_not_remembered(of: dict[str, Any]) -> None:
    """What MLflow refuses or answers with a part, and what is large; nothing of it is an error."""
    assert question(**of) == ""


def _opened(folder: Path, name: str = "a") -> str:
    """The name of the file of answers about a database."""
    return answers_of(folder / f"{name}.db")._path.name


def test_settings_releases_and_databases_have_answers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLflow is told by its environment, the release of it, and the bytes of the database may change what it answers."""
    names = {_opened(tmp_path)}
    monkeypatch.setenv("MLFLOW_SEARCH_TRACES_MAX_THREADS", "3")
    names.add(_opened(tmp_path))
    monkeypatch.setattr(_answers, "version", lambda _: "99.0")
    names.add(_opened(tmp_path))
    (tmp_path / "a.sha256").write_text("0" * 64)
    names.add(_opened(tmp_path))
    names.add(_opened(tmp_path, "b"))
    assert len(names) == 5


@pytest.mark.parametrize(
    "name",
    [
        *("MLFLOW_BUNDLE_LOCATION", "MLFLOW_BUNDLE_SERVE_PORT", "_MLFLOW_TELEMETRY_SESSION_ID", "MLFLOW_TRACKING_TOKEN"),
        *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"),
        *("MLFLOW_EXPERIMENT_NAME", "HOME"),
    ],
)
def test_other_settings_have_the_same_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bundle lies, the port, and what is for clients do not matter to MLflow's server."""
    monkeypatch.delenv(name, raising=False)
    without = _opened(tmp_path)
    monkeypatch.setenv(name, "another")
    assert _opened(tmp_path) == without


def test_files_of_other_settings_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three that were opened last stay beside the one that is opened, and all those of other archives."""
    files = []
    for number in range(6):
        monkeypatch.setenv("MLFLOW_SEARCH_TRACES_MAX_THREADS", str(number))
        answers = answers_of(tmp_path / "a.db")
        told(answers, "q", b"1")
        files.append(answers._path)
        os.utime(files[-1], (number, number))
        answers_of(tmp_path / "b.db")._path.touch()
    assert {path for path in tmp_path.iterdir() if path.name.startswith("a-")} == set(files[2:])
    monkeypatch.setenv("MLFLOW_SEARCH_TRACES_MAX_THREADS", "2")
    assert answers_of(tmp_path / "a.db").find("q") is not None
    assert files[2].stat().st_mtime > 10
    assert len(list(tmp_path.glob("b-*"))) == 4


def test_a_database_that_is_made_anew_has_answers_of_its_own(tmp_path: Path) -> None:
    """MLflow gives the default questions of its experiments new ids in it."""
    bundle = one_experiment(tmp_path)
    database = metadata_of(bundle, cache=tmp_path / "cache").path
    first = answers_of(database)._path
    assert answers_of(database)._path == first
    database.unlink()
    assert metadata_of(bundle, cache=tmp_path / "cache").path == database
    assert answers_of(database)._path != first


@pytest.mark.slow
def test_a_served_archive_answers_the_same_twice(estate_bundle: str, tmp_path: Path) -> None:
    """The second server of an archive gives the first one's answers out of the file that this made, although that imported
    MLflow to make the database too, and writes nothing new for them; no telemetry leaves a trace in the user's home."""
    cache, question = tmp_path / "cache", "/ajax-api/2.0/mlflow/experiments/search?max_results=5"
    home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home")}
    with serving(estate_bundle, cache, env=home) as first:
        answer = asked(first.url, question)
        refused = asked(first.url, "/api/2.0/mlflow/experiments/create", '{"name": "x"}', content_type="application/json")
    (file,) = (cache / "serve").glob("*.answers")
    kept = file.read_bytes()
    assert json.loads(answer[2])["experiments"]
    assert (refused[0], kept.count(b"\n")) == (403, 1)
    with serving(estate_bundle, cache, env=home) as second:
        assert asked(second.url, question) == answer
        assert (
            asked(second.url, "/api/2.0/mlflow/experiments/create", '{"name": "x"}', content_type="application/json") == refused
        )
        # What is new is added to the same file.
        asked(second.url, f"{question}0")
    assert list((cache / "serve").glob("*.answers")) == [file]
    assert file.read_bytes().startswith(kept)
    assert file.read_bytes().count(b"\n") == 2
    assert list(tmp_path.rglob("telemetry*")) == []
