"""MLflow's server while it is still being loaded: the pages of its UI are sent at once, and what was asked before is answered;
everything else waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from mlflow_bundle.tracking.database._revision import mlflow_folder
from mlflow_bundle.tracking.serve._answers import Answers, question_of
from mlflow_bundle.tracking.serve._load import load

__all__ = ["PagesFirst"]

_BUILD: Final = "server/js/build"
#: Where the UI asks for its scripts and styles (``mlflow.server``).
_STATIC: Final = "/static-files"


class PagesFirst:
    """An ASGI application: the attribute ``name`` of ``module``, once that is imported, which takes seconds."""

    def __init__(self, module: str, name: str, answers: Answers) -> None:
        self._names = module, name
        self._answers = answers
        self._pages = Starlette(routes=_pages())
        self._loading: Future[Any] = Future()

    def start(self, failed: Callable[[], object]) -> None:
        """Import it in a thread, which is waited for at the end of the process. ``failed`` is called where that fails."""
        self._loading = ThreadPoolExecutor(1, "mlflow-bundle-import").submit(self._load)
        self._loading.add_done_callback(lambda loading: loading.exception() and failed())

    def _load(self) -> Any:
        module, name = self._names
        return getattr(load(module), name)

    def check(self) -> None:
        """Raise what the import raised, if it did."""
        if self._loading.done():
            self._loading.result()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        of_page = scope["type"] == "http" and (scope["path"] == "/" or scope["path"].startswith(f"{_STATIC}/"))
        if of_page and self._pages.routes and not self._loading.done():
            await self._pages(scope, receive, send)
        elif scope["type"] == "http":
            with contextlib.suppress(ClientDisconnect):
                await self._answer(scope, receive, send)
        else:
            await self._wait(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        question = await question_of(request)
        known = None if self._loading.done() else self._answers.find(question)
        if known is not None:
            await known(scope, receive, send)
        elif question:
            await self._wait(scope, _again(await request.body(), receive), self._answers.listener(question, send))
        else:
            await self._wait(scope, receive, send)

    async def _wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        loading = asyncio.wrap_future(self._loading)
        await asyncio.wait((loading,))
        if loading.exception() is None:
            await loading.result()(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("MLflow's server could not be loaded", 503)(scope, receive, send)


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was received before, and then what follows."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def part() -> Message:
        return next(parts, None) or await receive()

    return part


def _pages() -> list[BaseRoute]:
    """The files of the UI, where the installed MLflow has them."""
    folder = mlflow_folder() / _BUILD
    first = folder / "index.html"
    if not first.is_file():
        return []

    async def start(_: object) -> FileResponse:
        return FileResponse(first)

    return [Route("/", start), Mount(_STATIC, StaticFiles(directory=folder))]
