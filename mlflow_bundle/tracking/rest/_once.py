"""Requests that cannot just be repeated where an answer is lost: creating what a server numbers itself, or names by an id of
its own, deleting, and sending what is read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Final

from mlflow_bundle.errors import AuthError, ServerError
from mlflow_bundle.tracking._port import ArtifactStore
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient

__all__ = ["create_once", "delete_once", "once", "send_file"]

#: Waits in seconds before a look whether a request whose answer was lost has done its work, and another try.
_WAITS: Final = (1, 4, 15)
#: Answers of a server that may take the same a little later.
_BUSY: Final = (408, 429, 502, 503, 504)


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
    return once(lambda: client.post_json(api + endpoint, body, answer=answer, retry=False), find)


def once(send: Callable[[], Any], find: Callable[[], Any | None]) -> Any:
    """Send something that is created by it exactly once, as ``create_once`` does: ``send`` tries it a single time."""
    for wait in (*_WAITS, None):
        try:
            return send()
        except (AuthError, RefusedError):
            raise
        except ServerError:
            if wait is None:
                raise
            time.sleep(wait)
            if (found := find()) is not None:
                return found
    raise AssertionError("the last try returns or raises")


def delete_once(delete: Callable[[], object]) -> None:
    """Delete something. That it does not exist is no failure: the first try of a repeated request may have done it.

    Raises:
        ServerError: whatever else ``delete`` raises.
    """
    try:
        delete()
    except RefusedError as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def send_file(store: ArtifactStore, path: str, size: int, open_content: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
    """Write a file of ``size`` bytes whose content is read from a stream, from a new one where the server gave no answer.

    Raises:
        ServerError: no answer after several tries.
        BundleError: it cannot be read, or written.
    """
    for wait in (*_WAITS, None):
        try:
            with open_content() as content:
                store.write(path, content, size)
        except ServerError as error:
            if wait is None or error.status not in (None, *_BUSY):
                raise
            time.sleep(wait)
        else:
            return
