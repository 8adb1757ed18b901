"""``mlflow-bundle serve``: an archive in the real MLflow UI, read-only."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_bundle.cli._options import (
    bundle_argument,
    common,
    options_of,
    pass_state,
    progress_option,
    snapshot_option,
    storage_option,
)
from mlflow_bundle.cli._output import State, clean, flush, plain, problem_lines, put, say
from mlflow_bundle.cli._progress import progress

if TYPE_CHECKING:
    from mlflow_bundle.tracking.serve import Metadata

__all__ = ["serve"]


@click.command()
@bundle_argument
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    default=5001,
    show_default=True,
    help="The port to listen on; 0 takes a free one.",
)
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@click.option(
    "--cache",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    envvar="MLFLOW_BUNDLE_CACHE",
    help="Where the metadata is kept for the next time. [default: the cache folder of the user]",
)
@snapshot_option
@storage_option
@progress_option
@common
@pass_state
def serve(
    state: State,
    bundle: str,
    *,
    host: str,
    port: int,
    no_open: bool,
    cache: Path | None,
    snapshot: str | None,
    storage_option: Sequence[str],
) -> None:
    """Open a snapshot in MLflow's own UI, read-only, until it is interrupted.

    The metadata goes into a SQLite file, made once for each snapshot; artifacts are read from the bundle when somebody looks at
    them. Python can use the same file without a server: the tracking URI is printed. What would change the archive is refused.
    """
    from mlflow_bundle.tracking import serve as mlflow_side  # noqa: PLC0415 - only what needs MLflow pays for it

    options = options_of(storage_option)
    folder = cache.expanduser().absolute() if cache is not None else None
    with mlflow_side.listening(host, port) as listener:
        with progress(state, "reading the metadata") as callback:
            metadata = mlflow_side.metadata_of(
                bundle, snapshot=snapshot, storage_options=options, cache=folder, to_serve=True, callback=callback
            )

        def ready(url: str) -> None:
            _tell(state, url, metadata)
            if not (no_open or state.json) and _has_screen():
                webbrowser.open(url)

        try:
            mlflow_side.serve(listener, metadata, bundle=bundle, storage_options=options, cache=folder, ready=ready)
        except KeyboardInterrupt:
            say("stopped")


def _tell(state: State, url: str, metadata: Metadata) -> None:
    """Where the server is; what a file of MLflow cannot hold is said when the file is made."""
    if state.json:
        problems = plain(metadata.problems)
        made = {"made": metadata.made, "damaged": metadata.damaged, "problems": problems}
        state.put({"url": url, "tracking_uri": metadata.uri, "snapshot": metadata.snapshot, **made})
    else:
        if metadata.damaged:
            say("the metadata in the cache was damaged and has been made anew")
        for line in problem_lines(metadata.problems):
            say(line)
        put(url)
        say(f"snapshot {clean(metadata.snapshot)}, read-only; Ctrl-C stops it")
        say(f"without a server: mlflow.set_tracking_uri({metadata.uri!r})")
    flush()


def _has_screen() -> bool:
    """Whether somebody is at a terminal of a machine with windows; a browser of texts would take the terminal."""
    windows = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(windows) and sys.stderr.isatty()
