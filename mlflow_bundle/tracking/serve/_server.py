"""Runs MLflow's server on the metadata of a snapshot, in this process, until it is interrupted."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mlflow_bundle.errors import ServerError, UnsupportedError, UsageError
from mlflow_bundle.plugins._places import BUNDLE, CACHE, OPTIONS, absolute
from mlflow_bundle.tracking.serve._metadata import Metadata

__all__ = ["listening", "serve"]

#: What MLflow's own command hands to its server (``mlflow.server.constants``): it is read when that is imported.
_STORE: Final = "_MLFLOW_SERVER_FILE_STORE"
_REGISTRY: Final = "_MLFLOW_SERVER_REGISTRY_STORE"
_ROOT: Final = "_MLFLOW_SERVER_ARTIFACT_ROOT"
_NEEDED: Final = ("fastapi", "uvicorn", "flask")
_LISTEN: Final = "--host names an address of this machine, --port a free port"
_APP: Final = ("mlflow_bundle.tracking.serve.app", "app")


def serve(
    listener: socket.socket,
    metadata: Metadata,
    *,
    bundle: str,
    storage_options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    ready: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve the metadata of a snapshot of ``bundle``, read-only, until the process is interrupted. ``ready`` is called with
    the URL when the server answers. It changes the environment of this process, and can only be called once.

    Raises:
        UnsupportedError: the installed MLflow has no server that can be guarded.
        ServerError: the server did not start.
    """
    os.environ.update(_environment(metadata, bundle, storage_options, cache))
    _run(listener, metadata.path, ready)


def _check_packages() -> None:
    missing = [name for name in ("mlflow", *_NEEDED) if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"MLflow's server needs {', '.join(missing)}, which is not installed", code="package", hint="pip install mlflow"
        )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket for ``serve``, which listens before anything costly is done. ``port`` 0 takes a free one.

    Raises:
        UsageError: it cannot be had, or a package is missing that a server needs.
    """
    _check_packages()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} of {host} is in use",
                    code="port",
                    hint="--port names another one, --port 0 takes any free one",
                ) from error
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{host} port {port} cannot be listened on: {reason}", code="port", hint=_LISTEN) from error
        yield listener


def _environment(
    metadata: Metadata, bundle: str, storage_options: Mapping[str, Any] | None, cache: Path | None
) -> dict[str, str]:
    """What the server and the artifact plugin in it are told."""
    told = {
        _STORE: metadata.uri,
        _REGISTRY: metadata.uri,
        _ROOT: "mlflow-bundle:",
        BUNDLE: absolute(bundle),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_TRACKING_URI": metadata.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_WORKSPACES": "true" if metadata.has_workspaces else "false",
    }
    if storage_options:
        told[OPTIONS] = json.dumps(storage_options)
    if cache is not None:
        told[CACHE] = str(cache)
    return told


def _run(listener: socket.socket, database: Path, ready: Callable[[str], object]) -> None:
    import uvicorn  # noqa: PLC0415 - comes with MLflow

    from mlflow_bundle.tracking.serve._answers import answers_of  # noqa: PLC0415
    from mlflow_bundle.tracking.serve._pages_first import PagesFirst  # noqa: PLC0415

    class Server(uvicorn.Server):
        """Says when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            app.start(failed=self._stop)
            await super().startup(sockets)
            if self.started:
                ready(url)

        def _stop(self) -> None:
            self.should_exit = True

    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}"
    app = PagesFirst(*_APP, answers_of(database))
    server = Server(uvicorn.Config(app, interface="asgi3", log_level="warning", lifespan="off", access_log=False))
    server.run(sockets=[listener])
    try:
        app.check()
    except (ImportError, SyntaxError) as error:
        raise UnsupportedError(
            f"the installed MLflow has no server that this release can open an archive in: {error}",
            hint="pip install --upgrade mlflow; nothing in PYTHONPATH may stand before what it needs",
        ) from error
    if not server.started:
        raise ServerError("MLflow's server did not start", hint="--debug shows what it said")
