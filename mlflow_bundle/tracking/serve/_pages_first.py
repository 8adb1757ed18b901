"""MLflow's server while it is still being loaded: the pages of its UI are sent at once, everything else waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from mlflow_bundle.tracking.database._revision import mlflow_folder
from mlflow_bundle.tracking.serve._load import load

__all__ = ["PagesFirst"]

_BUILD: Final = "server/js/build"
#: Where the UI asks for its scripts and styles (``mlflow.server``).
_STATIC: Final = "/static-files"


class PagesFirst:
    """An ASGI application: the attribute ``name`` of ``module``, once that is imported, which takes seconds."""

    def __init__(self, module: str, name: str) -> None:
        self._names = module, name
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

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on."""
        of_page = scope["type"] == "http" and (scope["path"] == "/" or scope["path"].startswith(f"{_STATIC}/"))
        if of_page and self._pages.routes and not self._loading.done():
            await self._pages(scope, receive, send)
        else:
            await self._wait(scope, receive, send)

    async def _wait(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        loading = asyncio.wrap_future(self._loading)
        await asyncio.wait((loading,))
        if loading.exception() is None:
            await loading.result()(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("MLflow's server could not be loaded", 503)(scope, receive, send)


def _pages() -> list[BaseRoute]:
    """The files of the UI, where the installed MLflow has them."""
    folder = mlflow_folder() / _BUILD
    first = folder / "index.html"
    if not first.is_file():
        return []

    async def start(_: object) -> FileResponse:
        return FileResponse(first)

    return [Route("/", start), Mount(_STATIC, StaticFiles(directory=folder))]
