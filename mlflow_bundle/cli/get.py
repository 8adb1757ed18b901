"""``mlflow-bundle get``: copy a file or a folder of a run out of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from fsspec.callbacks import Callback

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle._unsafe import collisions, leads_out, why_not_written
from mlflow_bundle.cli._appearing import appearing
from mlflow_bundle.cli._contents import Contents
from mlflow_bundle.cli._options import (
    LocalPath,
    bundle_argument,
    common,
    options_of,
    pass_state,
    progress_option,
    snapshot_option,
    storage_option,
)
from mlflow_bundle.cli._output import State, bytes_text, clean, plain, plural, problem_lines, say
from mlflow_bundle.cli._paths import FileEntry
from mlflow_bundle.cli._progress import progress
from mlflow_bundle.errors import CorruptError, NotFoundError, UsageError
from mlflow_bundle.records import Problem

__all__ = ["get"]

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Copy:
    """A file and where it goes."""

    file: FileEntry
    target: Path


@click.command()
@bundle_argument
@click.argument("path", metavar="PATH")
@click.argument("destination", metavar="DEST", type=LocalPath(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@snapshot_option
@storage_option
@progress_option
@common
@pass_state
def get(
    state: State,
    bundle: str,
    path: str,
    destination: Path,
    *,
    force: bool,
    snapshot: str | None,
    storage_option: Sequence[str],
) -> int:
    """Copy a file or a folder to DEST.

    PATH is EXPERIMENT/RUN/artifacts/..., as in `ls`; a run alone means all its files. A path of mlflow-bundle:// does too, such
    as models/NAME/VERSION, logged_models/ID or tables. What lies in a folder is put into DEST,
    which is made. A file is written to DEST, or into it where DEST is a folder. Paths that would leave DEST, or that collide,
    are refused before anything is written; files with names that Windows keeps for devices, such as aux.txt, are left out and
    named (exit code 3; `cat` prints them). A file appears only when its SHA-256 is right.
    """
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        contents = Contents(archive, path, hint="`mlflow-bundle ls` shows the runs")
        copies, problems = _plan(contents, destination, force=force)
        with progress(state, "copying") as callback:
            problems += _copy(contents, copies, callback)
        missing = {problem.path for problem in problems}
        written = [copy for copy in copies if copy.file.path not in missing]
        size = sum(copy.file.size for copy in written)
        if state.json:
            state.put(
                {
                    "bundle": archive.url,
                    "snapshot": archive.snapshot_id,
                    **({"run_id": contents.run["run_id"]} if contents.run else {}),
                    "destination": str(destination),
                    "files": [{**plain(copy.file), "target": str(copy.target)} for copy in written],
                    "file_bytes": size,
                    "problems": plain(problems),
                }
            )
        else:
            say(f"copied {plural(len(written), 'file')}, {bytes_text(size)}, to {clean(destination)}")
            for line in problem_lines(problems):
                say(line)
    return 3 if problems else 0


def _plan(contents: Contents, destination: Path, *, force: bool) -> tuple[list[_Copy], list[Problem]]:
    """Where each file goes, and which are left out for their names; nothing was written yet.

    Raises:
        CorruptError: paths that would leave ``destination``, or collide there, or no file has a name to be written under.
        UsageError: files that exist.
    """
    refused = {name: why for file, name in contents.names if (why := why_not_written(file.path) or why_not_written(name))}
    kept = [(file, name) for file, name in contents.names if name not in refused]
    bad = [f"{file.path!r} {why}" for file, name in contents.names if (why := leads_out(file.path) or leads_out(name))]
    bad += [f"{name!r} collides with another path on many disks" for name in collisions([name for _, name in kept])]
    if not (kept or bad):
        bad = [f"{name!r} {why}" for name, why in refused.items()]
    if bad:
        more = f", and {len(bad) - 1:,} more such paths" if len(bad) > 1 else ""
        raise CorruptError(
            f"nothing was written: {bad[0]}{more}",
            code="hostile-path",
            hint="`mlflow-bundle cat` prints single files, whatever their names",
        )
    into = not contents.single or destination.is_dir()
    copies = [_Copy(file, destination / name if into else destination) for file, name in kept]
    if not contents.single:
        _stay_inside(copies, destination)
    there = [copy.target for copy in copies if copy.target.exists() or copy.target.is_symlink()]
    if odd := [target for target in there if target.is_symlink() or not (target.is_file() or target.is_dir())]:
        more = f", and {len(odd) - 1:,} more" if len(odd) > 1 else ""
        raise UsageError(
            f"{odd[0]} is a link, a device or a pipe{more}; nothing was written",
            code="exists",
            hint="name another place; `mlflow-bundle cat` prints a file",
        )
    if there and not force:
        more = f", and {len(there) - 1:,} more" if len(there) > 1 else ""
        raise UsageError(f"{there[0]} exists{more}; nothing was written", code="exists", hint="--force overwrites")
    left_out = [_problem(contents, file, "reserved-name", refused[name]) for file, name in contents.names if name in refused]
    return copies, left_out


def _problem(contents: Contents, file: FileEntry, code: str, why: str) -> Problem:
    """A file that was not written."""
    run = contents.run
    owner = (
        {"kind": "run", "id": run["run_id"], "experiments": (run["experiment_id"],), "runs": (run["run_id"],)} if run else {}
    )
    return Problem(code=code, message=f"{file.path!r} was not written: {why}", path=file.path, **owner)


def _stay_inside(copies: Sequence[_Copy], destination: Path) -> None:
    """Refuse links that lie in the destination already and lead out of it."""
    root = destination.resolve()
    for folder in {copy.target.parent for copy in copies}:
        if not folder.resolve().is_relative_to(root):
            raise UsageError(f"{folder} leads out of {destination}; nothing was written", hint="choose an empty folder")


def _copy(contents: Contents, copies: Sequence[_Copy], callback: Callback) -> list[Problem]:
    """Write the files one after the other. What the bundle lacks, or has damaged, is reported and the rest is written."""
    phase = callback.branched("bytes", "")
    phase.set_size(sum(copy.file.size for copy in copies))
    problems = []
    for copy in copies:
        try:
            with contents.open(copy.file) as stream, appearing(copy.target) as out:
                while data := stream.read(_CHUNK):
                    out.write(data)
                    phase.relative_update(len(data))
        except (NotFoundError, CorruptError) as error:
            problems.append(_problem(contents, copy.file, error.code, error.message))
    phase.close()
    return problems
