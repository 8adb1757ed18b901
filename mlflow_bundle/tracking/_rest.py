"""HTTP requests to an MLflow server: MLflow's own credentials, retries and TLS settings, answers decoded with msgspec.

``MlflowClient`` is not used: it changes what is written and turns every answer into protobuf objects first.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from threading import Lock
from typing import Any, BinaryIO, Final, TypeVar, cast

import msgspec
import requests
import urllib3
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR, MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.rest_utils import http_request

from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import AuthError, BundleError, CorruptError, ServerError, UsageError

__all__ = ["API", "RefusedError", "RestClient"]

#: Where the stable endpoints live.
API: Final = "/api/2.0/mlflow/"

#: MLflow's own default waits four minutes before it says that a server is down; these wait half a minute.
_RETRIES: Final = 5
_BACKOFF: Final = 1
_STREAM_BUFFER: Final = 1 << 20
_MESSAGE_CHARS: Final = 500
_MEMBERS_TOLD: Final = 5
_WORKSPACE: Final = "X-MLFLOW-WORKSPACE"
_JSON: Final = {"Content-Type": "application/json"}
_NO_SERVER: Final = re.compile(
    r"(?![a-z][a-z0-9+.-]+:|databricks)|(file|sqlite|postgres|mysql|mssql)[a-z0-9+]*:", re.IGNORECASE
)
_AUTH_HINT: Final = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_DOWN_HINT: Final = "start the server, or correct the tracking URI (MLFLOW_TRACKING_URI)"
_WRONG_HINT: Final = "check that the tracking URI names an MLflow server, with its path if it has one, and no other web page"

Answer = TypeVar("Answer")
Params = Mapping[str, Any]


class RefusedError(ServerError):
    """The server understood and refused. ``error_code`` is MLflow's, for example ``RESOURCE_DOES_NOT_EXIST``."""

    def __init__(self, message: str, *, error_code: str, status: int, hint: str | None = None) -> None:
        super().__init__(message, status=status, hint=hint)
        self.error_code = error_code

    @property
    def endpoint_missing(self) -> bool:
        """Whether the server does not have this endpoint at all (an older release)."""
        return self.error_code == "ENDPOINT_NOT_FOUND"


class _Refusal(msgspec.Struct):
    """The body of an answer that is an error."""

    error_code: str = ""
    message: str = ""


class RestClient:
    """Talks to one tracking server. Safe to use from several threads.

    ``tracking_uri`` is ``http(s)://...``, ``databricks[://profile]`` or the URI of any plugin whose store speaks MLflow's
    REST API. Paths start with ``/`` and are percent-encoded by the caller; ``params`` are query parameters, lists repeat.

    Every method raises:
        AuthError: 401 or 403.
        RefusedError: another refusal, with MLflow's error code; ``endpoint_missing`` tells a missing endpoint.
        ServerError: no answer, an answer cut short, or 408, 429 or 5xx after all retries.
    """

    def __init__(self, tracking_uri: str) -> None:
        """Resolve the credentials; nothing is sent yet.

        Raises:
            UsageError: nothing that speaks HTTP is behind the URI.
        """
        self.uri = redact_uri(tracking_uri)
        if _NO_SERVER.match(tracking_uri):
            # Opening such a store would create or change a database.
            raise UsageError(f"{self.uri} is not a tracking server that speaks HTTP")
        try:
            store = _get_store(store_uri=tracking_uri)
        except MlflowException as error:
            hint = "use http://..., https://... or databricks, or install the MLflow plugin for this kind of URI"
            raise UsageError(f"MLflow knows no tracking server at {self.uri}", hint=hint) from error
        if not hasattr(store, "get_host_creds"):
            raise UsageError(f"{self.uri} is not a tracking server that speaks HTTP")
        self._host_creds = store.get_host_creds
        self._version: str | None = None
        self._lock = Lock()
        self._headers: dict[str, str] = {}
        #: What was answered and may lack something, a sentence each. Clients of all workspaces share it.
        self.doubts: list[str] = []

    def in_workspace(self, name: str) -> RestClient:
        """A client of the same server whose requests are about one of its workspaces."""
        other = copy(self)
        other._headers = {_WORKSPACE: name}  # noqa: SLF001 - its own class
        return other

    def version(self) -> str:
        """The release of the server as it says itself, empty where it does not say (releases before 2.0, Databricks).

        Asked once, and with a single retry, so that a server which is down is reported at once.
        """
        with self._lock:
            if self._version is None:
                self._version = self._ask_version()
            return self._version

    def _ask_version(self) -> str:
        try:
            answer = self._send("GET", "/version", retries=1)
        except RefusedError:
            return ""
        text: str = answer.text.strip()
        return text if text[:1].isdigit() and len(text) < 40 else ""

    def get_json(self, path: str, params: Params | None = None, *, answer: type[Answer] | Any = Any) -> Any:
        """GET, decoded as ``answer`` (a msgspec type)."""
        return self._decode(self._send("GET", path, params=params), answer, must_say=True)

    def post_json(
        self, path: str, body: Any, *, answer: type[Answer] | Any = Any, retry: bool = True, method: str = "POST"
    ) -> Any:
        """POST a JSON body, decoded as ``answer``. ``retry=False`` sends it at most once: for what must not happen twice."""
        content = msgspec.json.encode(body)
        retries = None if retry else 0
        response = self._send(method, path, retries=retries, data=content, extra_headers=_JSON)
        return self._decode(response, answer, must_say=answer is not Any)

    def get_bytes(self, path: str, params: Params | None = None, *, retries: int | None = None) -> bytes:
        """GET a body as it is. ``retries`` is how often a server that fails is asked again (None: the default)."""
        content: bytes = self._send("GET", path, params=params, retries=retries).content
        return content

    def post_bytes(self, path: str, body: bytes, *, headers: Mapping[str, str], retries: int | None = None) -> bytes:
        """POST a body as it is with its own headers, among them the type of its content."""
        content: bytes = self._send("POST", path, data=body, extra_headers=dict(headers), retries=retries).content
        return content

    @contextmanager
    def _opened(self, path: str, params: Params | None) -> Iterator[BinaryIO]:
        response = self._send("GET", path, params=params, stream=True)
        try:
            with io.BufferedReader(_Body(response, self.uri), _STREAM_BUFFER) as body:
                yield cast("BinaryIO", body)
        finally:
            response.close()

    def stream(self, path: str, params: Params | None = None) -> AbstractContextManager[BinaryIO]:
        """GET a body of any size as a stream; an end before the announced length raises ``ServerError``."""
        return self._opened(path, params)

    def put(self, path: str, content: BinaryIO, size: int) -> None:
        """PUT ``size`` bytes. Retried only where ``content`` can seek."""
        if size == 0:
            self._send("PUT", path, data=b"")
            return
        retries = None if content.seekable() else 0
        self._send("PUT", path, retries=retries, data=_Upload(content, size))

    def _send(self, method: str, path: str, *, retries: int | None = None, **options: Any) -> requests.Response:
        """Send one request and return its answer of status 2xx. ``retries=None``: as the user says, else the default."""
        if retries is None and not MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set():
            retries = _RETRIES
        backoff = None if MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.is_set() else _BACKOFF
        if self._headers:
            options["extra_headers"] = {**options.get("extra_headers", {}), **self._headers}
        try:
            response: requests.Response = http_request(
                self._host_creds(), path, method, max_retries=retries, backoff_factor=backoff, raise_on_status=False, **options
            )
        except (MlflowException, OSError, urllib3.exceptions.HTTPError) as error:
            if isinstance(error.__context__, BundleError):
                # The body that was being sent could not be read.
                raise error.__context__ from None
            raise self._no_answer(error) from error
        if 200 <= response.status_code < 300:
            return response
        with response:
            raise self._refusal(response, method, path)

    def _no_answer(self, error: BaseException) -> ServerError:
        cause = error.__context__ or error
        if isinstance(cause, requests.exceptions.SSLError):
            reason, hint = "the TLS certificate was refused", "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate to trust"
        elif isinstance(cause, requests.exceptions.ReadTimeout):
            reason, hint = "it accepted the request but sent no answer in time", "raise MLFLOW_HTTP_REQUEST_TIMEOUT (seconds)"
        elif isinstance(cause, requests.exceptions.ConnectionError):
            reason, hint = _connection_reason(cause), _DOWN_HINT
        else:
            reason, hint = redact_uri(str(error))[:_MESSAGE_CHARS], _DOWN_HINT
        return ServerError(f"the MLflow server {self.uri} does not answer: {reason}", hint=hint)

    def _refusal(self, response: requests.Response, method: str, path: str) -> ServerError:
        """The error for an answer that is not 2xx."""
        status = response.status_code
        said = _refusal_of(response)
        what = f"the MLflow server {self.uri}"
        if status in (401, 403):
            return AuthError(f"{what} answered {status} to {method} {path}: {said.message}", hint=_AUTH_HINT, status=status)
        if status in (408, 429) or status >= 500:
            hint = (
                "run the same again; the server is overloaded"
                if status == 429
                else "look into the server's log, then run again"
            )
            code = f" ({said.error_code})" if said.error_code else ""
            return ServerError(f"{what} answered {status}{code} to {method} {path}: {said.message}", hint=hint, status=status)
        error_code = said.error_code or ("ENDPOINT_NOT_FOUND" if status in (404, 405) else f"HTTP_{status}")
        message = f"{what} refused {method} {path}: {error_code}: {said.message}"
        wrong = None if said.error_code else _WRONG_HINT
        return RefusedError(message, error_code=error_code, status=status, hint=wrong)

    def _decode(self, response: requests.Response, answer: Any, *, must_say: bool) -> Any:
        """The body as ``answer``. MLflow says ``{}`` where there is nothing: an empty body is none of its answers."""
        body = response.content or (b"" if must_say else b"{}")
        try:
            try:
                found = msgspec.json.decode(body, type=answer, strict=False)
            except msgspec.DecodeError:
                # MLflow writes bare NaN and Infinity into some answers; Python's decoder accepts them.
                found = msgspec.convert(json.loads(body), answer, strict=False)
            return _of_known_form(body, found)
        except ValueError as error:
            path = response.url.partition("?")[0]
            raise ServerError(
                f"the MLflow server {self.uri} answered {redact_uri(path)} with something else than MLflow's JSON: {error}",
                hint=_WRONG_HINT,
                status=response.status_code,
            ) from error


def _of_known_form(body: bytes, found: Any) -> Any:
    """What was found in a body; JSON of somebody else, in which nothing is known, is no empty list.

    Raises:
        ValueError: there are members, and none of them is a field of the struct.
    """
    if not isinstance(found, msgspec.Struct) or any(getattr(found, name) for name in found.__struct_fields__):
        return found
    members: dict[str, Any] = json.loads(body)
    if members and members.keys().isdisjoint(field.encode_name for field in msgspec.structs.fields(found)):
        raise ValueError(f"it has {', '.join(sorted(members)[:_MEMBERS_TOLD])!r}, of which nothing is known")
    return found


def _connection_reason(error: BaseException) -> str:
    text = str(error)
    for phrase in ("Connection refused", "Name or service not known", "No route to host", "Connection reset by peer"):
        if phrase in text:
            return phrase.lower()
    if "NameResolutionError" in text or "getaddrinfo" in text:
        return "its host name cannot be resolved"
    return "the connection was lost"


def _refusal_of(response: requests.Response) -> _Refusal:
    """What an error body says: MLflow's JSON, or the start of any other text on one line."""
    try:
        said = msgspec.json.decode(response.content, type=_Refusal)
    except (msgspec.DecodeError, OSError, urllib3.exceptions.HTTPError):
        said = _Refusal()
    text = said.message or ("" if "<html" in response.text[:200].lower() else response.text) or response.reason or ""
    return _Refusal(said.error_code, " ".join(redact_uri(text).split())[:_MESSAGE_CHARS])


class _Body(io.RawIOBase):
    """The body of a streamed answer as a raw stream that raises ``ServerError`` when it breaks."""

    def __init__(self, response: requests.Response, uri: str) -> None:
        super().__init__()
        self._response = response
        self._uri = uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._response.raw.read(len(buffer), decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerError(
                f"the MLflow server {self._uri} broke off in the middle of an answer", hint="run the same again"
            ) from error
        buffer[: len(data)] = data
        return len(data)


class _Upload:
    """A request body of known length: ``requests`` asks for its length and iterates, a retry seeks back to its start."""

    def __init__(self, content: BinaryIO, size: int) -> None:
        self._content = content
        self._size = size
        self._start = content.tell() if content.seekable() else 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        left = self._size
        while left:
            data = self._content.read(min(_STREAM_BUFFER, left))
            if not data:
                # Sending less than announced would make the server wait until it gives up.
                raise CorruptError(f"a file of {self._size} bytes ends after {self._size - left}")
            left -= len(data)
            yield data

    def tell(self) -> int:
        return 0

    def seek(self, position: int) -> int:
        return self._content.seek(self._start + position) - self._start
