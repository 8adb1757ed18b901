"""What MLflow's server answered before. An archive does not change, so the answers about it stay right: they are kept in a
file, and given while the server is still being loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Send

from mlflow_bundle.__about__ import __version__
from mlflow_bundle._limits import MIB

__all__ = ["Answers", "answers_of", "question_of"]

#: Bytes of a file of answers, after which nothing is added to it, and that an answer may have, and a question.
_ENOUGH: Final = 16 * MIB
_LARGEST: Final = 2 * MIB
_DIGITS: Final = 64
#: Files of answers that stay beside the one that is opened, which other settings made.
_OTHERS: Final = 3
#: What is answered out of the archive, and what pages wait for that is the same for every archive. All else may change with
#: the clock, the user's files, the programs that are installed, or other servers.
_LASTING_PATHS: Final = re.compile(
    rb"/(?:ajax-)?api/[23]\.0/mlflow/(?:artifacts/list|datasets|experiments|get-trace-artifact|issues|label-schemas|logged-models"
    rb"|metrics|model-versions|registered-models|review-queues|runs|scorers|traces|workspaces"
    rb"|server-info|ui-telemetry|users/current)(?:/.*)?|/graphql"
)
#: The answers that stay: what is asked for, and that this MLflow has no such route, which it says with a page.
_LASTING: Final = ((200, b"application/json"), (404, b"text/html"))
#: MLflow compares names of hosts as they are written; ports differ from one server to the next.
_HOST: Final = re.compile(r"(?P<name>[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?", re.ASCII)
#: Headers that change what an answer means, those whose names begin with what alters it (WSGI takes ``_`` for ``-``), and
#: addresses of this machine, which MLflow tells more.
_UNUSUAL: Final = frozenset({"range", "transfer-encoding"})
_TELLING: Final = (b"content-", b"x-mlflow-")
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
#: Settings of clients, of this package and of telemetry, which alter no answer about an archive.
_SILENT: Final = (
    *("MLFLOW_BUNDLE_", "_MLFLOW_BUNDLE_", "MLFLOW_TRACKING_", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
    *("MLFLOW_RUN_ID", "_MLFLOW_TELEMETRY_"),
)


class _Answer(msgspec.Struct, frozen=True):
    question: str
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Answers:
    """The answers in a file, to which each server of the archive adds a line for every new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = _content(path)
        self._size = len(data)
        self._known = {answer.question: answer for answer in _whole(data)}

    def find(self, question: str) -> Response | None:
        """The answer to a question, where it is known."""
        if (answer := self._known.get(question)) is None:
            return None
        response = Response(answer.body, answer.status)
        response.raw_headers = list(answer.headers)
        return response

    def listener(self, question: str, send: Send) -> Send:
        """Sends what a server answers, and remembers it if it is whole and stays."""
        if not question or question in self._known or self._size >= _ENOUGH:
            return send
        headers, body = list[tuple[bytes, bytes]](), bytearray()
        status, length = 0, None

        async def listen(message: Message) -> None:
            nonlocal question, status, length
            if message["type"] == "http.response.start":
                headers.extend((name.lower(), value) for name, value in message["headers"])
                status, length = message["status"], dict(headers).get(b"content-length")
                kind = dict(headers).get(b"content-type", b"").partition(b";")[0]
                question = question if (status, kind) in _LASTING else ""
            elif question:
                body.extend(message.get("body", b""))
                # Whoever asked may be gone, or end this process, before the server says that this was all.
                is_whole = not message.get("more_body") if length is None else length == b"%d" % len(body)
                if is_whole and len(body) <= _LARGEST and _is_answer(body):
                    self._add(_Answer(question, status, list(headers), bytes(body)))
                question = "" if is_whole or len(body) > _LARGEST else question
            await send(message)

        return listen

    def _add(self, answer: _Answer) -> None:
        text = msgspec.json.encode(answer)
        # The break comes first: what somebody could not write to its end stays a line of its own.
        line = b"\n%s %s" % (hashlib.sha256(text).hexdigest().encode(), text)
        self._known[answer.question] = answer
        self._size += len(line)
        # Where it cannot be written, the next server has to be waited for.
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(line)


def answers_of(database: Path) -> Answers:
    """The answers of servers with these packages and settings about just this database: of one that is made anew, MLflow's
    default questions have other ids. Where the bundle lies, the port and what only clients are told make no difference. Of
    the files of the same archive, only those opened last are kept."""
    told = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(("MLFLOW_", "_MLFLOW_")) and not name.startswith(_SILENT)
    )
    parts = (__version__, version("mlflow"), told, _content(database.with_suffix(".sha256")))
    path = database.with_name(f"{database.stem}-{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]}.answers")
    with contextlib.suppress(OSError):  # another server may be doing the same
        others = [other for other in path.parent.glob(f"{database.stem}-*{path.suffix}") if other != path]
        for other in sorted(others, key=lambda other: other.stat().st_mtime)[:-_OTHERS]:
            other.unlink()
        os.utime(path)
    return Answers(path)


async def question_of(request: Request) -> str:
    """What tells a question to MLflow's API from others, as a SHA-256 in hex; empty for what is not to be remembered: what is
    not about the archive, large ones, and those of other sites, which MLflow's server refuses.

    Raises:
        ClientDisconnect: whoever asks is gone.
    """
    # As they were sent: of the path a URL leaves out tabs, and takes ``%3F`` for ``?``.
    headers, path, query = request.headers, request.scope["raw_path"], request.scope["query_string"]
    size, host = headers.get("content-length", "0"), _HOST.fullmatch(",".join(headers.getlist("host")))
    if (
        request.method not in ("GET", "POST")
        or not _LASTING_PATHS.fullmatch(path)
        or not (size.isdecimal() and len(size) <= len(str(_LARGEST)) and int(size) <= _LARGEST)
        or host is None
        or any(origin.partition("://")[2] != host[0] for origin in headers.getlist("origin"))
        or not _UNUSUAL.isdisjoint(headers)
    ):
        return ""
    telling = [part for part in request.scope["headers"] if part[0].replace(b"_", b"-").startswith(_TELLING)]
    is_local = request.client is not None and request.client.host.startswith(_LOOPBACK)
    parts = (request.method, path, query, host["name"], is_local, telling, await request.body())
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class _Part(msgspec.Struct):
    apiError: Any = None  # noqa: N815


class _OfGraphQL(msgspec.Struct):
    errors: Any = None
    data: dict[str, _Part | None] | None = None


def _is_answer(body: bytes | bytearray) -> bool:
    """Whether it is none of the errors of GraphQL, which look like answers."""
    if b'"errors"' not in body and b'"apiError"' not in body:
        return True
    try:
        found = msgspec.json.decode(body, type=_OfGraphQL)
    except ValueError:
        return False
    return not found.errors and not any(part and part.apiError for part in (found.data or {}).values())


def _content(path: Path) -> bytes:
    """The bytes of a file, none where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _whole(data: bytes) -> Iterable[_Answer]:
    """The answers of whole lines: one that somebody was writing, or that is damaged, does not count."""
    for line in data.splitlines():
        digest, text = line[:_DIGITS], line[_DIGITS + 1 :]
        if digest == hashlib.sha256(text).hexdigest().encode():
            with contextlib.suppress(ValueError):
                yield msgspec.json.decode(text, type=_Answer)
