"""``mlflow-bundle cat``: the bytes of one artifact file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import click

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle.cli._contents import Contents
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, json_text, plain, put_bytes
from mlflow_bundle.errors import NotFoundError, UsageError

__all__ = ["cat"]

#: A multiple of three, so that pieces of base64 can be written one after the other.
_CHUNK: Final = 3 << 19
_HINT: Final = "`mlflow-bundle ls` shows what is in it, `mlflow-bundle get` copies a folder"


@click.command()
@bundle_argument
@click.argument("path", metavar="PATH")
@snapshot_option
@storage_option
@common
@pass_state
def cat(state: State, bundle: str, path: str, *, snapshot: str | None, storage_option: Sequence[str]) -> None:
    """Write the bytes of one file to stdout.

    PATH is EXPERIMENT/RUN/artifacts/FILE, as in `ls`, or a path of mlflow-bundle:// such as models/NAME/VERSION/MLmodel or
    tables/runs.parquet. The SHA-256 is checked while the bytes pass: damaged content ends with an
    error, after what was read of it. With --json the content is base64 in one JSON document.
    """
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        try:
            contents = Contents(archive, path, hint=_HINT)
        except UsageError as error:
            if error.hint != _HINT:
                raise
            raise UsageError(f"{path!r} is not a file", hint=_HINT) from error
        if not contents.single:
            raise UsageError(f"{path!r} is not a file", hint=_HINT)
        (file,) = contents.files
        if file.state == "unreadable":
            raise NotFoundError(f"{file.path!r} could not be read when it was packed", code="file-missing")
        with contents.open(file) as stream:
            if state.json:
                run = {"run_id": contents.run["run_id"]} if contents.run else {}
                _put_json({"bundle": archive.url, "snapshot": archive.snapshot_id, **run, **plain(file)}, stream)
            else:
                while data := stream.read(_CHUNK):
                    put_bytes(data)


def _put_json(document: dict[str, Any], stream: BinaryIO) -> None:
    """The document that ``json_text`` would make, the content streamed into it."""
    put_bytes(json_text(document).removesuffix("\n}").encode() + b',\n  "content_base64": "')
    while data := stream.read(_CHUNK):
        put_bytes(base64.b64encode(data))
    put_bytes(b'"\n}\n')
