"""MLflow's server behind a guard that lets reading through and refuses everything that would write.

``app`` is the entry point ``mlflow-bundle`` of ``mlflow server --app-name``. It is loaded in the process of a server.
"""

from __future__ import annotations

import json
import re
from typing import Final

from mlflow.server.fastapi_app import app as _mlflow
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ReadOnly", "app", "is_reading"]

_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Questions that MLflow asks with POST. The only mutations of its GraphQL schema are searches, and an echo.
_QUESTIONS: Final = re.compile(
    r"/(?:ajax-)?api/[0-9]\.[0-9]/(?:mlflow/)?(?:"
    r"(?:experiments|runs|logged-models|datasets|issues|jobs|prompt-optimization/jobs|traces)/search"
    r"|experiments/search-datasets|registered-models/get-latest-versions"
    r"|traces/(?:batchGetInfos|calculate-filter-correlation|metrics)"
    r"|ui-telemetry"
    r")/?$|/graphql$"
)
_MESSAGE: Final = (
    "This is an archive, opened read-only by `mlflow-bundle serve`: nothing in it can be changed."
    " `mlflow-bundle unpack` restores it to a server where it can."
)
_ANSWER: Final = json.dumps({"error_code": "PERMISSION_DENIED", "message": _MESSAGE}).encode()


def is_reading(method: str, path: str) -> bool:
    """Whether a request only asks for something."""
    return method in _METHODS or (method == "POST" and _QUESTIONS.search(path) is not None)


class ReadOnly:
    """An ASGI application that answers 403 to every request that would write, in the form of MLflow's own errors."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or is_reading(scope["method"], scope["path"]):
            await self._inner(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _ANSWER})


def _spare_the_first_write() -> None:
    """With workspaces, MLflow inserts experiment 0 on opening a database without looking whether it is there. It is."""
    try:
        from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore  # noqa: PLC0415
    except ModuleNotFoundError:  # a release without workspaces
        return
    WorkspaceAwareSqlAlchemyStore._ensure_default_workspace_experiment = lambda _: None  # noqa: SLF001


_spare_the_first_write()
app: Final = ReadOnly(_mlflow)
