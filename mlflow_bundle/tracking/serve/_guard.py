"""The guard before MLflow's server, which lets reading through and refuses everything that would write."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ReadOnly", "is_reading"]

_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Questions that MLflow asks with POST. The only mutations of its GraphQL schema are searches, and an echo.
_QUESTIONS: Final = re.compile(
    r"/(?:ajax-)?api/[0-9]\.[0-9]/(?:mlflow/)?(?:"
    r"(?:experiments|runs|logged-models|datasets|issues|jobs|prompt-optimization/jobs|traces)/search"
    r"|experiments/search-datasets|registered-models/get-latest-versions"
    r"|traces/(?:batchGetInfos|calculate-filter-correlation|metrics)"
    r"|ui-telemetry"
    r")/?|/graphql"
)
_MESSAGE: Final = (
    "This is an archive, opened read-only by `mlflow-bundle serve`: nothing in it can be changed."
    " `mlflow-bundle unpack` restores it to a server where it can."
)
_ANSWER: Final = json.dumps({"error_code": "PERMISSION_DENIED", "message": _MESSAGE}).encode()


def is_reading(method: str, path: str) -> bool:
    """Whether a request only asks for something. Paths are whole: what ends like a question may be the name of a file."""
    return method in _METHODS or (method == "POST" and _QUESTIONS.fullmatch(path) is not None)


def _route(scope: Scope) -> str:
    """The path that is looked for among the routes: behind the ``--root-path`` of uvicorn."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class ReadOnly:
    """An ASGI application that answers 403 to every request that would write, in the form of MLflow's own errors.
    ``prefix`` is what stands before the paths of the inner one, if anything does."""

    def __init__(self, inner: ASGIApp, *, prefix: str = "") -> None:
        self._inner, self._prefix = inner, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or is_reading(scope["method"], _route(scope).removeprefix(self._prefix)):
            await self._inner(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _ANSWER})
