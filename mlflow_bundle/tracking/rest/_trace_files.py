"""The files of traces: most have none, and a server that keeps them in a folder of its own hands them out one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

from msgspec import UNSET

from mlflow_bundle.entities import Trace
from mlflow_bundle.errors import StorageError
from mlflow_bundle.tracking._port import ArtifactStore, FileInfo
from mlflow_bundle.tracking._rest import RefusedError, RestClient
from mlflow_bundle.tracking._spans import SPANS_IN_STORE
from mlflow_bundle.tracking.artifacts._folders import Folders
from mlflow_bundle.tracking.artifacts._local import local_path
from mlflow_bundle.tracking.artifacts._own import NoArtifacts

__all__ = ["PAYLOAD_ENDPOINT", "TRACE_PAYLOAD", "ServedTraceFiles", "TraceFiles"]

#: The file that holds the spans of a trace which are not in the database.
TRACE_PAYLOAD: Final = "traces.json"
#: Answers with the spans of a trace, wherever they are, or with one of its attachments.
PAYLOAD_ENDPOINT: Final = "/ajax-api/2.0/mlflow/get-trace-artifact"
_ATTACHMENTS: Final = "attachments/"
_ATTACHMENT: Final = re.compile(rb"mlflow-attachment://([0-9A-Za-z._-]+)")


class TraceFiles:
    """Finds the store of a trace. ``open_store`` opens the one at a URI, with the id for messages and the client.

    The traces that have files are listed an experiment at a time, rather than each trace alone.
    """

    def __init__(self, open_store: Callable[[str, str, RestClient], ArtifactStore]) -> None:
        self._open_store = open_store
        self._folders = Folders()

    def of(self, trace: Trace, client: RestClient) -> ArtifactStore:
        """The store of the files of a trace of this server."""
        location = trace.artifact_uri if trace.artifact_uri is not UNSET else ""
        if not location:
            return NoArtifacts()
        local = urlsplit(location).scheme in ("", "file")
        if local and not Path(local_path(location)).is_dir():
            # Either a trace without files, or a folder of the server's machine.
            return ServedTraceFiles(client, trace)

        def store(place: str) -> ArtifactStore:
            return self._open_store(place, trace.trace_id, client)

        return NoArtifacts() if not local and self._folders.lack(location, trace.trace_id, store) else store(location)


class ServedTraceFiles:
    """The files of a trace as the server reads them itself. Attachments are those that the spans name: there is no list."""

    def __init__(self, client: RestClient, trace: Trace) -> None:
        self._client = client
        self._trace = trace

    def walk(self) -> Iterator[FileInfo]:
        """The file of spans, where there is one, and the attachments.

        Raises:
            ServerError: the server does not hand out the spans, which name the attachments.
        """
        try:
            payload = self._client.get_bytes(PAYLOAD_ENDPOINT, {"request_id": self._trace.trace_id}, retries=1)
        except RefusedError:
            # No such file: the reader of spans says so where that is a loss.
            return
        if self._trace.spans_location not in SPANS_IN_STORE:
            yield FileInfo(TRACE_PAYLOAD, len(payload))
        for name in sorted(set(_ATTACHMENT.findall(payload))):
            yield FileInfo(_ATTACHMENTS + name.decode(), -1)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The content of one file.

        Raises:
            ServerError: the server does not hand it out.
        """
        asked = {"request_id": self._trace.trace_id}
        if path != TRACE_PAYLOAD:
            asked["path"] = path.removeprefix(_ATTACHMENTS)
        return self._client.stream(PAYLOAD_ENDPOINT, asked)

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """
        Raises:
            StorageError: always, as the server takes no uploads there.
        """
        del content, size
        raise StorageError(
            f"the file {path!r} of trace {self._trace.trace_id} cannot be written: its folder is not on this machine",
            hint="start the server with --artifacts-destination, or run on its machine",
        )
