"""What MLflow's server answered before. An archive does not change, so the answers about it stay right: they are kept in a
file, and given while the server is still being loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Send

from mlflow_bundle.__about__ import __version__
from mlflow_bundle._limits import MIB

__all__ = ["Answers", "answers_of", "question_of"]

#: Bytes that the answers of an archive have together, the first ones, and that each may have, and its question.
_ENOUGH: Final = 16 * MIB
_LARGEST: Final = 2 * MIB
_DIGITS: Final = 64
_PLACES: Final = ("/api/", "/ajax-api/", "/graphql")
#: The answers that stay: what is asked for, and that this MLflow has no such route, which it says with a page.
_LASTING: Final = ((200, b"application/json"), (404, b"text/html"))


class _Answer(msgspec.Struct, frozen=True):
    question: str
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Answers:
    """The answers in a file, to which each server of the archive adds a line for every new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {answer.question: answer for answer in _read(path)}
        self._bytes = sum(len(answer.body) for answer in self._known.values())

    def find(self, question: str) -> Response | None:
        """The answer to a question, where it is known."""
        if (answer := self._known.get(question)) is None:
            return None
        response = Response(answer.body, answer.status)
        response.raw_headers = list(answer.headers)
        return response

    def listener(self, question: str, send: Send) -> Send:
        """Sends what a server answers, and remembers it if it is whole and stays."""
        if not question or question in self._known or self._bytes >= _ENOUGH:
            return send
        headers, body = list[tuple[bytes, bytes]](), bytearray()
        status = 0

        async def listen(message: Message) -> None:
            nonlocal question, status
            if message["type"] == "http.response.start":
                headers.extend((name.lower(), value) for name, value in message["headers"])
                status, kind = message["status"], dict(headers).get(b"content-type", b"").partition(b";")[0]
                question = question if (status, kind) in _LASTING else ""
            elif question:
                body.extend(message.get("body", b""))
                # Whoever asked may be gone, or end this process, before the server says that this was all.
                is_whole = not message.get("more_body") or dict(headers).get(b"content-length") == str(len(body)).encode()
                if is_whole and len(body) <= _LARGEST and _is_answer(body):
                    self._add(_Answer(question, status, list(headers), bytes(body)))
                question = "" if is_whole or len(body) > _LARGEST else question
            await send(message)

        return listen

    def _add(self, answer: _Answer) -> None:
        self._known[answer.question] = answer
        self._bytes += len(answer.body)
        line = msgspec.json.encode(answer)
        # Where it cannot be written, the next server has to be waited for.
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(b"%s %s\n" % (hashlib.sha256(line).hexdigest().encode(), line))


def answers_of(database: Path) -> Answers:
    """The answers of servers that were told what this process is told, with these packages, about the archive of a database."""
    told = sorted((name, value) for name, value in os.environ.items() if name.startswith(("MLFLOW_", "_MLFLOW_")))
    asked = hashlib.sha256(msgspec.json.encode([__version__, version("mlflow"), told])).hexdigest()
    return Answers(database.with_name(f"{database.stem}-{asked[:16]}.answers"))


async def question_of(request: Request) -> str:
    """What tells a question to MLflow's API from others, as a SHA-256 in hex; empty for what is not to be remembered: large
    ones, and those of other sites, which MLflow's server refuses.

    Raises:
        ClientDisconnect: whoever asks is gone.
    """
    headers, path = request.headers, request.url.path
    size, host = headers.get("content-length", "0"), headers.get("host", "")
    if (
        request.method not in ("GET", "POST")
        or not path.startswith(_PLACES)
        or (request.method == "POST" and not (size.isdecimal() and int(size) <= _LARGEST))
        or urlsplit(headers.get("origin", f"//{host}")).netloc != host
        or "range" in headers
    ):
        return ""
    parts = (request.method, path, request.url.query, urlsplit(f"//{host}").hostname, headers.get("x-mlflow-workspace"))
    return hashlib.sha256(msgspec.json.encode([*parts, await request.body()])).hexdigest()


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
    except msgspec.DecodeError:
        return False
    return not found.errors and not any(part and part.apiError for part in (found.data or {}).values())


def _read(path: Path) -> Iterable[_Answer]:
    """The whole lines: one that somebody was writing, or that is damaged, does not count."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        digest, text = line[:_DIGITS], line[_DIGITS + 1 :]
        if digest == hashlib.sha256(text).hexdigest().encode():
            yield msgspec.json.decode(text, type=_Answer)
