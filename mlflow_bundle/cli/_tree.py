"""``ls --tree``: experiments, runs below their parents, and files below their folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from mlflow_bundle.cli._output import bytes_text, clean, plural, put
from mlflow_bundle.cli._paths import Catalog, FileEntry, Place, Row

__all__ = ["print_tree"]

#: In a pipe nothing is cut: no name is longer.
_WIDE: Final = 100_000


def print_tree(catalog: Catalog, place: Place) -> None:
    """The tree of what lies below a place."""
    if place.run is not None:
        tree = _node(place.inner or _name(place.run))
        _add_files(tree, place.files, f"{place.inner}/" if place.inner else "")
    elif place.experiment is not None:
        tree = _experiment(catalog, place.experiment)
    else:
        tree = Tree(_text(plural(len(catalog.experiments), "experiment")))
        tree.children += [_experiment(catalog, experiment) for experiment in catalog.experiments]
    console = Console(file=sys.stdout, color_system=None, width=None if sys.stdout.isatty() else _WIDE, legacy_windows=False)
    with console.capture() as captured:
        console.print(tree, overflow="ellipsis", no_wrap=True)
    for line in captured.get().splitlines():
        put(line.rstrip())


def _experiment(catalog: Catalog, experiment: Row) -> Tree:
    runs = catalog.runs_of(experiment)
    parents = catalog.parents(runs)
    tree = _node(experiment["name"], plural(len(runs), "run"), experiment)
    nodes = {run["run_id"]: _node(_name(run), plural(run["file_rows"], "file"), run) for run in runs}
    for run in runs:
        parent = parents.get(run["run_id"])
        above = nodes[parent] if parent in nodes and not _is_above(parents, run["run_id"]) else tree
        above.children.append(nodes[run["run_id"]])
    return tree


def _is_above(parents: dict[str, str], run: str) -> bool:
    """Whether a run is its own ancestor."""
    seen: set[str] = set()
    at: str | None = parents.get(run)
    while at is not None and at not in seen:
        if at == run:
            return True
        seen.add(at)
        at = parents.get(at)
    return at is not None


def _add_files(tree: Tree, files: Sequence[FileEntry], below: str) -> None:
    folders: dict[str, Tree] = {"": tree}
    for file in files:
        *parts, name = file.path[len(below) :].split("/") if file.path != below.rstrip("/") else [file.path.rpartition("/")[2]]
        at = ""
        for part in parts:
            above, at = at, f"{at}{part}/"
            if at not in folders:
                folders[at] = folders[above].add(_text(f"{clean(part)}/"))
        folders[at].add(_text(f"{clean(name)}  {bytes_text(file.size) if file.sha256 else file.state}"))


def _name(run: Row) -> str:
    return f"{run['run_id']} {run['run_name']}" if run["run_name"] else str(run["run_id"])


def _node(name: str, more: str = "", row: dict[str, Any] | Row | None = None) -> Tree:
    deleted = " (deleted)" if row is not None and row["lifecycle_stage"] == "deleted" else ""
    return Tree(_text(f"{clean(name)}{deleted}" + (f"  {more}" if more else "")))


def _text(text: str) -> Text:
    """Text that is no markup."""
    return Text(text)
