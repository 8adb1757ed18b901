"""``mlflow-bundle cat``: the bytes of one artifact file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import click

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, json_text, plain, put_bytes
from mlflow_bundle.cli._paths import Catalog, FileEntry
from mlflow_bundle.errors import NotFoundError, UsageError

__all__ = ["cat"]

#: A multiple of three, so that pieces of base64 can be written one after the other.
_CHUNK: Final = 3 << 19


@click.command()
@bundle_argument
@click.argument("path", metavar="PATH")
@snapshot_option
@storage_option
@common
@pass_state
def cat(state: State, bundle: str, path: str, *, snapshot: str | None, storage_option: Sequence[str]) -> None:
    """Write the bytes of one file to stdout.

    PATH is EXPERIMENT/RUN/artifacts/FILE, as in `ls`. The SHA-256 is checked while the bytes pass: damaged content ends with an
    error, after what was read of it. With --json the content is base64 in one JSON document.
    """
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        place = Catalog(archive).find(path)
        if place.file is None or place.run is None:
            raise UsageError(
                f"{path!r} is not a file", hint="`mlflow-bundle ls` shows what is in it, `mlflow-bundle get` copies a folder"
            )
        if place.file.sha256 is None:
            raise NotFoundError(f"{place.file.path!r} could not be read when it was packed", code="file-missing")
        if state.json:
            _put_json(archive, place.run["run_id"], place.file)
        else:
            _put_bytes(archive, place.file.sha256)


def _put_bytes(archive: Bundle, sha256: str) -> None:
    with archive.blobs.open(sha256) as stream:
        while data := stream.read(_CHUNK):
            put_bytes(data)


def _put_json(archive: Bundle, run_id: str, file: FileEntry) -> None:
    """The document that ``json_text`` would make, the content streamed into it."""
    assert file.sha256 is not None
    document = {"bundle": archive.url, "snapshot": archive.snapshot_id, "run_id": run_id, **plain(file)}
    put_bytes(json_text(document).removesuffix("\n}").encode() + b',\n  "content_base64": "')
    with archive.blobs.open(file.sha256) as stream:
        while data := stream.read(_CHUNK):
            put_bytes(base64.b64encode(data))
    put_bytes(b'"\n}\n')
