"""Requests that must not happen twice: creating what a server numbers itself, or names by an id of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from mlflow_bundle.errors import AuthError, ServerError
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient

__all__ = ["create_once"]

#: Waits in seconds before a look whether a request whose answer was lost has done its work, and another try.
_WAITS: Final = (1, 4, 15)


def create_once(
    client: RestClient,
    endpoint: str,
    body: Mapping[str, Any],
    find: Callable[[], Any | None],
    *,
    api: str = API,
    answer: Any = Any,
) -> Any:
    """Create something exactly once; the answer is decoded as ``answer``, a msgspec type. ``find`` looks for it where the
    answer was lost: what it finds is the answer.

    Raises:
        AuthError, RefusedError: the server refuses it.
        ServerError: no answer after several tries; whatever ``find`` raises.
    """
    for wait in (*_WAITS, None):
        try:
            return client.post_json(api + endpoint, body, answer=answer, retry=False)
        except (AuthError, RefusedError):
            raise
        except ServerError:
            if wait is None:
                raise
            time.sleep(wait)
            if (found := find()) is not None:
                return found
    raise AssertionError("the last try returns or raises")
