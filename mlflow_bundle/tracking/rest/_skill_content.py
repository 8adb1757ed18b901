"""The content of an uploaded skill as the body of a request, and read back."""

from __future__ import annotations

import gzip
import json
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast

from mlflow_bundle._digests import file_hex
from mlflow_bundle.tracking._port import DIFFERS, ArtifactStore, EntityResult, OpenBlob
from mlflow_bundle.tracking.rest._road import not_restored

__all__ = ["Files", "check_content", "upload"]

#: Path, size in bytes and SHA-256 of each file.
Files = Sequence[tuple[str, int, str]]

_PART: Final = '--{}\r\nContent-Disposition: form-data; name="{}"; filename="{}"\r\nContent-Type: {}\r\n\r\n'
#: Bytes of a body that are kept in memory.
_IN_MEMORY: Final = 8 << 20


@contextmanager
def upload(metadata: Mapping[str, Any], files: Files, open_blob: OpenBlob) -> Iterator[tuple[BinaryIO, dict[str, str]]]:
    """The body that registers a version with its files, and its headers: a form of the metadata and an archive of the files.

    Raises:
        CorruptError, LimitError, NotFoundError: the content of a file is damaged.
    """
    boundary = uuid.uuid4().hex
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
        body = cast("BinaryIO", spool)
        body.write(_PART.format(boundary, "metadata", "metadata.json", "application/json").encode())
        body.write(json.dumps(metadata).encode())
        body.write(b"\r\n" + _PART.format(boundary, "content", "content.tar.gz", "application/gzip").encode())
        _pack(files, open_blob, body)
        body.write(f"\r\n--{boundary}--\r\n".encode())
        body.seek(0)
        yield body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def _pack(files: Files, open_blob: OpenBlob, body: BinaryIO) -> None:
    """An archive of the files, the same bytes for the same files."""
    with (
        gzip.GzipFile(filename="", fileobj=body, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, size, sha256 in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size = size
            with open_blob(sha256) as content:
                archive.addfile(entry, content)


def check_content(store: ArtifactStore, files: Files, result: EntityResult) -> None:
    """Read the files of a version back and compare their digests."""
    for path, size, sha256 in files:
        with store.open(path) as stream:
            found = file_hex(stream)
        if found == sha256:
            result.files += 1
            result.file_bytes += size
            continue
        message = f"the file {path!r} was read back from the target with other content"
        result.problems.append(not_restored(result, message, code=DIFFERS, path=path))
        result.action = "failed"
