"""Real HTTP servers for the tests: one with scripted answers, one between the client and a real MLflow server."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Peer:
    """What the server saw and how it answers. ``answer(method, path, body)`` returns (status, body, claimed length or None);
    None closes the connection without a word."""

    def __init__(self, answer: Callable[[str, str, bytes], tuple[int, bytes, int | None] | None]) -> None:
        self.answer = answer
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def serve(answer: Callable[[str, str, bytes], tuple[int, bytes, int | None] | None]) -> Iterator[Peer]:
    """Run a server on a free loopback port."""
    peer = Peer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            peer.requests.append((self.command, self.path))
            peer.headers.append(dict(self.headers))
            said = peer.answer(self.command, self.path, body)
            if said is None:
                self.close_connection = True
                return
            status, content, claimed = said
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) if claimed is None else claimed))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = claimed is not None

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    peer.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield peer
    server.shutdown()
    server.server_close()


def forward(url: str, method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
    """Ask the real server."""
    request = urllib.request.Request(url + path, data=body if method != "GET" else None, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), None
    except urllib.error.HTTPError as error:
        return error.code, error.read(), None
