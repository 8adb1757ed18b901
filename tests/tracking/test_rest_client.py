"""HTTP to an MLflow server: every way it can fail is one clear error, and nothing is decoded wrongly."""

from __future__ import annotations

import base64
import io
import math
import time
from pathlib import Path

import pytest

from mlflow_bundle.errors import AuthError, CorruptError, ServerError, UsageError
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.rest._answers import RunPage
from tests.fixtures.server import MlflowServer, free_port
from tests.tracking.http_peer import serve


def test_a_server_that_is_down_is_reported_at_once() -> None:
    """No minutes of retries: the error names the URI without its password, and the next step."""
    port = free_port()
    started = time.monotonic()
    with pytest.raises(ServerError) as caught:
        RestClient(f"http://user:secret@127.0.0.1:{port}").version()
    assert time.monotonic() - started < 10
    assert f"127.0.0.1:{port}" in caught.value.message
    assert "refused" in caught.value.message
    assert "secret" not in caught.value.message
    assert "MLFLOW_TRACKING_URI" in (caught.value.hint or "")
    assert caught.value.status is None


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_an_auth_error(status: int) -> None:
    """401 and 403 name the environment variables that hold the credentials, and are not retried."""
    with serve(lambda *_: (status, b"You are not authenticated", None)) as peer:
        with pytest.raises(AuthError, match="not authenticated") as caught:
            RestClient(peer.url).get_json(f"{API}experiments/search")
        assert caught.value.status == status
        assert "MLFLOW_TRACKING_USERNAME" in (caught.value.hint or "")
        assert len(peer.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_pass_are_retried_then_raised(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's number of retries is honoured; the error keeps status, MLflow's code and its message."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    body = b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database is locked"}'
    with serve(lambda *_: (status, body, None)) as peer:
        with pytest.raises(ServerError, match=r"TEMPORARILY_UNAVAILABLE.*database is locked") as caught:
            RestClient(peer.url).get_json(f"{API}experiments/search")
        assert caught.value.status == status
        assert not isinstance(caught.value, RefusedError)
        assert len(peer.requests) == 3


def test_a_failure_that_passes_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One 503 and then an answer is an answer."""
    answers = [(503, b"", None), (200, b'{"ok": 1}', None)]
    with serve(lambda *_: answers.pop(0)) as peer:
        assert RestClient(peer.url).get_json("/x") == {"ok": 1}


def test_what_must_not_happen_twice_is_sent_once() -> None:
    """``retry=False`` sends a request once, whatever the answer."""
    with serve(lambda *_: (500, b"", None)) as peer:
        with pytest.raises(ServerError):
            RestClient(peer.url).post_json(f"{API}runs/create", {}, retry=False)
        assert len(peer.requests) == 1


def test_a_missing_endpoint_differs_from_a_missing_thing(mlflow_server: MlflowServer) -> None:
    """Features are detected by ``endpoint_missing``; other refusals keep MLflow's error code."""
    client = RestClient(mlflow_server.url)
    with pytest.raises(RefusedError) as endpoint:
        client.get_json(f"{API}no-such-endpoint")
    with pytest.raises(RefusedError, match=r"RESOURCE_DOES_NOT_EXIST.*No Experiment with id=123456 exists") as thing:
        client.get_json(f"{API}experiments/get", {"experiment_id": "123456"})
    assert endpoint.value.endpoint_missing
    assert not thing.value.endpoint_missing
    assert thing.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert thing.value.status == 404


def test_bare_nan_and_infinity_are_read() -> None:
    """MLflow writes numbers that JSON does not have; they arrive as what they are."""
    with serve(lambda *_: (200, b'{"a": NaN, "b": -Infinity, "c": 5e-324, "d": "NaN,"}', None)) as peer:
        answer = RestClient(peer.url).get_json("/x")
    assert math.isnan(answer["a"])
    assert answer["b"] == -math.inf
    assert answer["c"] == 5e-324
    assert answer["d"] == "NaN,"


def test_a_page_that_is_no_mlflow_is_named() -> None:
    """A web page where an API should be is an error that says so."""
    with serve(lambda *_: (200, b"<html>Welcome</html>", None)) as peer:
        with pytest.raises(ServerError, match="something else than MLflow's JSON"):
            RestClient(peer.url).get_json(f"{API}experiments/search")
        assert RestClient(peer.url).version() == ""


@pytest.mark.parametrize("status", [404, 405])
def test_a_wrong_path_is_hinted_at(status: int) -> None:
    """A web server that has no such page may be the right machine with a wrong path; MLflow's own refusals are none of that."""
    body = b"<!doctype html><html>Not Found</html>"
    with serve(lambda *_: (status, body, None)) as peer, pytest.raises(RefusedError) as page:
        RestClient(f"{peer.url}/wrong").post_json(f"{API}experiments/search", {})
    assert "tracking URI" in (page.value.hint or "")
    assert page.value.endpoint_missing
    body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}'
    with serve(lambda *_: (404, body, None)) as peer, pytest.raises(RefusedError) as refusal:
        RestClient(peer.url).post_json(f"{API}runs/get", {})
    assert refusal.value.hint is None


def test_json_of_somebody_else_is_no_empty_list() -> None:
    """An object in which nothing is known is an error; one without members, or with an empty list, is an empty list."""
    foreign = [b'{"message": "please log in", "code": 7}', b'{"message": "please wait", "code": NaN}']
    answers = [*foreign, b"{}", b'{"runs": [], "next_page_token": ""}']
    with serve(lambda *_: (200, answers.pop(0), None)) as peer:
        client = RestClient(peer.url)
        for _ in foreign:
            with pytest.raises(ServerError, match="code, message"):
                client.post_json(f"{API}runs/search", {}, answer=RunPage)
        assert client.post_json(f"{API}runs/search", {}, answer=RunPage) == RunPage()
        assert client.post_json(f"{API}runs/search", {}, answer=RunPage) == RunPage()


def test_credentials_of_mlflow_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password come from MLflow's environment variables."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    with serve(lambda *_: (200, b"{}", None)) as peer:
        RestClient(peer.url).get_json("/x")
        assert peer.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"ann:pw").decode()


@pytest.mark.parametrize("uri", ["sqlite:///{}/x.db", "{}/mlruns", "file://{}/mlruns", "foo://host"])
def test_what_is_no_server_is_refused_untouched(uri: str, tmp_path: Path) -> None:
    """A database or folder is not opened as a side effect."""
    with pytest.raises(UsageError):
        RestClient(uri.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_asked_once(mlflow_server: MlflowServer) -> None:
    """A real server says its release."""
    client = RestClient(mlflow_server.url)
    assert client.version()[0].isdigit()
    assert client.version() is client.version()


_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/client-test/"


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_bytes_travel_as_streams(size: int, mlflow_server: MlflowServer) -> None:
    """What is put is what is streamed back, empty files too."""
    client = RestClient(mlflow_server.url)
    content = bytes(range(256)) * (size // 256 + 1)
    client.put(f"{_ARTIFACTS}f{size}.bin", io.BytesIO(b"skip" + content), 0)
    source = io.BytesIO(b"skip" + content)
    source.seek(4)
    client.put(f"{_ARTIFACTS}f{size}.bin", source, size)
    with client.stream(f"{_ARTIFACTS}f{size}.bin") as stream:
        assert stream.read() == content[:size]


def test_a_body_that_is_resent_starts_again() -> None:
    """After a 503 the whole body is sent again, from where it began."""
    bodies: list[bytes] = []

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
        bodies.append(body)
        return (503 if len(bodies) == 1 else 200), b"", None

    with serve(answer) as peer:
        source = io.BytesIO(b"skip" + b"x" * 100_000)
        source.seek(4)
        RestClient(peer.url).put("/f", source, 100_000)
    assert bodies == [b"x" * 100_000] * 2


def test_a_file_that_ends_early_is_not_uploaded(mlflow_server: MlflowServer) -> None:
    """A body shorter than announced is the file's fault and named so, not the server's."""
    with pytest.raises(CorruptError, match="100 bytes ends after 3"):
        RestClient(mlflow_server.url).put(f"{_ARTIFACTS}short.bin", io.BytesIO(b"abc"), 100)


def test_an_answer_that_breaks_off_raises() -> None:
    """A download that ends before its announced length never looks complete."""
    with (
        serve(lambda *_: (200, b"half", 1000)) as peer,
        RestClient(peer.url).stream("/f") as stream,
        pytest.raises(ServerError, match="broke off"),
    ):
        stream.read()
