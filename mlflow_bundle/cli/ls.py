"""``mlflow-bundle ls``: experiments, the runs of one, the files of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

import click

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle.cli._kinds import KIND_NAMES, KindName, entity_entries, print_entities
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, bytes_text, clean, plain, table, time_text
from mlflow_bundle.cli._paths import ARTIFACTS, Catalog, FileEntry, Place, Row
from mlflow_bundle.cli._tree import print_tree
from mlflow_bundle.errors import UsageError

__all__ = ["ls"]

#: Run ids are shown at least this long in the long form.
_SHORT_ID: Final = 8


@click.command()
@bundle_argument
@click.argument("path", metavar="[PATH]", default="")
@click.option("--kind", metavar="KIND", type=KindName(), help=f"The entities of a kind: {', '.join(KIND_NAMES)}.")
@click.option("--tree", is_flag=True, help="Everything below PATH: runs below their parents, files below their folders.")
@click.option("-l", "--long", is_flag=True, help="States, times (UTC), counts and sizes too.")
@snapshot_option
@storage_option
@common
@pass_state
def ls(
    state: State,
    /,
    bundle: str,
    path: str,
    *,
    kind: str | None,
    tree: bool,
    long: bool,
    snapshot: str | None,
    storage_option: Sequence[str],
) -> None:
    """List experiments, the runs of one, or the files of a run; with --kind all entities of that kind.

    PATH is EXPERIMENT, EXPERIMENT/RUN, or EXPERIMENT/RUN/artifacts/FOLDER. EXPERIMENT is a name or id. RUN is an id, the first
    characters of one (4 at least), or a name that only one run has; it may stand without its experiment. In names with a "/",
    the longest name that fits is taken; an id always works.
    """
    if kind is not None and (path or tree):
        raise UsageError("--kind lists the whole snapshot, and takes no PATH and no --tree")
    if tree and state.json:
        raise UsageError("--tree and --json exclude each other", hint="--json lists what is directly in PATH")
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        if kind is not None:
            _list_kind(state, archive, kind, long)
            return
        catalog = Catalog(archive)
        place = catalog.find(path)
        if tree:
            print_tree(catalog, place)
            return
        entries = _entries(catalog, place)
        if state.json:
            state.put(
                {
                    "bundle": archive.url,
                    "snapshot": archive.snapshot_id,
                    "path": path,
                    "kind": place.kind,
                    "entries": plain(entries),
                }
            )
            return
    show = {"bundle": _experiments, "experiment": _runs}.get(place.kind, _files)
    show(entries, long)


def _list_kind(state: State, archive: Bundle, kind: str, long: bool) -> None:
    entries = entity_entries(archive, kind)
    if state.json:
        state.put({"bundle": archive.url, "snapshot": archive.snapshot_id, "kind": kind, "entries": entries})
    else:
        print_entities(entries, long)


def _entries(catalog: Catalog, place: Place) -> list[dict[str, Any]]:
    if place.kind == "bundle":
        counts: dict[str, int] = {}
        for run in catalog.runs:
            counts[run["experiment_id"]] = counts.get(run["experiment_id"], 0) + 1
        return [_experiment_entry(row, counts.get(row["experiment_id"], 0)) for row in catalog.experiments]
    if place.kind == "experiment":
        assert place.experiment is not None
        return [_run_entry(run) for run in catalog.runs_of(place.experiment)]
    return list(_file_entries(place))


def _experiment_entry(row: Row, runs: int) -> dict[str, Any]:
    names = ("name", "experiment_id", "lifecycle_stage", "creation_time", "last_update_time")
    return {"kind": "experiment", **{name: row[name] for name in names}, "runs": runs}


def _run_entry(run: Row) -> dict[str, Any]:
    names = ("run_id", "run_name", "experiment_id", "status", "lifecycle_stage", "start_time", "end_time")
    return {
        "kind": "run",
        **{name: run[name] for name in names},
        "metric_points": run["metric_rows"],
        "files": run["file_rows"],
    }


def _file_entries(place: Place) -> Iterable[dict[str, Any]]:
    """What lies directly in a folder, named from where PATH ends; or the file that PATH names."""
    if place.file is not None:
        yield _file_entry(place.file, place.file.path.rpartition("/")[2])
        return
    below = f"{place.inner}/" if place.inner else ""
    before = f"{ARTIFACTS}/" if place.inner is None else ""
    folders: dict[str, list[FileEntry]] = {}
    for file in place.files:
        folders.setdefault(file.path[len(below) :].partition("/")[0], []).append(file)
    for name, files in folders.items():
        single = next((file for file in files if file.path == below + name), None)
        if single is not None:
            yield _file_entry(single, before + name)
        if inside := [file for file in files if file is not single]:
            size = sum(file.size for file in inside)
            yield {"kind": "folder", "name": f"{before}{name}/", "files": len(inside), "size": size}


def _file_entry(file: FileEntry, name: str) -> dict[str, Any]:
    return {"kind": "file", "name": name, "size": file.size, "sha256": file.sha256, "state": file.state}


def _experiments(entries: Sequence[dict[str, Any]], long: bool) -> None:
    if not long:
        table((), ([clean(entry["name"]) + _deleted(entry)] for entry in entries))
        return
    rows = (
        (
            clean(entry["experiment_id"]),
            entry["lifecycle_stage"],
            f"{entry['runs']:,}",
            time_text(entry["creation_time"], seconds=False),
            clean(entry["name"]),
        )
        for entry in entries
    )
    table(("ID", "STATE", "RUNS", "CREATED (UTC)", "NAME"), rows, flexible=4, right=(2,))


def _runs(entries: Sequence[dict[str, Any]], long: bool) -> None:
    if not long:
        table((), ((clean(run["run_id"]), clean(run["run_name"] or "-") + _deleted(run)) for run in entries), flexible=1)
        return
    length = _unique_length([run["run_id"] for run in entries])
    rows = (
        (
            clean(run["run_id"][:length]),
            clean(run["status"] or "-") if run["lifecycle_stage"] == "active" else "deleted",
            time_text(run["start_time"], seconds=False),
            f"{run['metric_points']:,}",
            f"{run['files']:,}",
            clean(run["run_name"] or "-"),
        )
        for run in entries
    )
    table(("RUN", "STATUS", "STARTED (UTC)", "POINTS", "FILES", "NAME"), rows, flexible=5, right=(3, 4))


def _files(entries: Sequence[dict[str, Any]], long: bool) -> None:
    if not long:
        table((), ([clean(entry["name"])] for entry in entries))
        return
    rows = ((bytes_text(entry["size"]), _what(entry), clean(entry["name"])) for entry in entries)
    table(("SIZE", "SHA-256", "NAME"), rows, flexible=2, right=(0,))


def _what(entry: dict[str, Any]) -> str:
    """The beginning of a digest, how many files a folder holds, or that there is no content."""
    if entry["kind"] == "folder":
        return f"{entry['files']:,} file{'' if entry['files'] == 1 else 's'}"
    return entry["sha256"][:16] if entry["sha256"] else clean(entry["state"])


def _deleted(entry: dict[str, Any]) -> str:
    return "" if entry["lifecycle_stage"] == "active" else f" ({entry['lifecycle_stage']})"


def _unique_length(ids: Sequence[str]) -> int:
    """How many characters tell these ids apart."""
    ordered = sorted(ids)
    length = _SHORT_ID
    for one, next_one in pairwise(ordered):
        while one[:length] == next_one[:length] and length < len(one):
            length += 1
    return length
