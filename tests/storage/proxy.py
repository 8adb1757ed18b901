"""A real HTTP proxy in front of an S3 server that refuses, delays and loses what it is told to."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_DROP = {"connection", "transfer-encoding", "keep-alive", "server", "date", "content-length"}


@dataclass(frozen=True)
class Request:
    """What the client asked."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What happens to requests: ``forward`` them, wait ``seconds``, answer ``status`` and ``code``, or ``drop`` the answer.

    What is forwarded may be asked for ``whole``, whatever range was wanted; of the answer, ``half`` may be all that comes, or
    the connection ``breaks`` in its middle.
    """

    when: Callable[[Request], bool]
    times: int = 1_000_000
    forward: bool = False
    seconds: float = 0.0
    status: int | None = None
    code: str = ""
    drop: bool = False
    whole: bool = False
    breaks: bool = False
    half: bool = False


@dataclass
class Proxy:
    """The running proxy. ``requests`` is what was asked of it, in order."""

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and fault.when(request):
                    fault.times -= 1
                    return fault
        return None


def puts(request: Request) -> bool:
    """Requests that write."""
    return request.method in {"PUT", "POST"}


def gets(request: Request) -> bool:
    """Requests that read."""
    return request.method == "GET" and "list-type" not in request.path


def conditional(request: Request) -> bool:
    """Writes that must not replace anything."""
    return puts(request) and "if-none-match" in request.headers


def reads(request: Request) -> bool:
    """Requests that look at objects."""
    return request.method in {"GET", "HEAD"}


@contextmanager
def run_proxy(target: str) -> Iterator[Proxy]:
    """A proxy in front of the S3 server ``target`` on a free port of this machine."""
    host = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            fault = proxy.fault_for(request)
            answer: tuple[int, list[tuple[str, str]], bytes] | None = None
            if fault is None or fault.forward:
                answer = self.forward(body, whole=fault is not None and fault.whole)
            if fault is not None:
                time.sleep(fault.seconds)
                if fault.status is not None:
                    text = f"<Error><Code>{fault.code or fault.status}</Code><Message>a fault of the test</Message></Error>"
                    answer = (
                        fault.status,
                        [("Content-Type", "application/xml")],
                        b"" if fault.status == 200 else text.encode(),
                    )
            if answer is None or (fault is not None and fault.drop):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault is not None and fault.half:
                answer = (*answer[:2], answer[2][: len(answer[2]) // 2])
            self.answer(*answer, breaks=fault is not None and fault.breaks)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def forward(self, body: bytes, *, whole: bool) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(host, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if not (whole and name.lower() == "range")}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, breaks: bool) -> None:
            length = str(len(body))
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in _DROP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if breaks else body)
            if breaks:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """The tests look at ``requests``."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that gave up are what the tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
