"""``mlflow-bundle report``: one HTML page about an archive, to hand over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle.cli._appearing import appearing
from mlflow_bundle.cli._options import (
    LocalPath,
    bundle_argument,
    common,
    options_of,
    pass_state,
    snapshot_option,
    storage_option,
)
from mlflow_bundle.cli._output import State, bytes_text, clean, put_bytes, say
from mlflow_bundle.errors import StorageError, UsageError

__all__ = ["report"]


@click.command()
@bundle_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=LocalPath(readable=False),
    required=True,
    help="The page to write, for example report.html; - is stdout.",
)
@snapshot_option
@storage_option
@common
@pass_state
def report(state: State, bundle: str, *, output: str, snapshot: str | None, storage_option: Sequence[str]) -> None:
    """Write one self-contained HTML page about a snapshot: runs, curves, files, models, and where it comes from.

    It opens from disk, in any browser, without a network. What it leaves out of large archives it says.
    """
    from mlflow_bundle._report import report_html  # noqa: PLC0415 - other commands need none of it

    if output == "-" and state.json:
        raise UsageError("-o - and --json exclude each other: both go to stdout", hint="give -o a file")
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        page = report_html(archive).encode()
        root = archive.root_digest
    if output == "-":
        put_bytes(page)
        return
    _write(Path(output), page)
    if state.json:
        state.put({"file": output, "bytes": len(page), "root_digest": root})
    else:
        say(f"{clean(output)}: {bytes_text(len(page))}")


def _write(place: Path, page: bytes) -> None:
    """A file appears when it is whole, in a folder that is there. A link, pipe or device is written through, never replaced.

    Raises:
        BundleError: it cannot be written.
    """
    new = not place.exists() and place.parent.is_dir()
    if not place.is_symlink() and (new or place.is_file()):
        with appearing(place) as file:
            file.write(page)
        return
    try:
        place.write_bytes(page)
    except OSError as error:
        hint = "give -o a file in a folder that is there and can be written, or - for stdout"
        raise StorageError(f"{str(place)!r} cannot be written: {error.strerror or error}", hint=hint) from error
