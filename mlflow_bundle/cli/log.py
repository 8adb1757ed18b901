"""``mlflow-bundle log``: the snapshots of a bundle."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, storage_option
from mlflow_bundle.cli._output import State, bytes_text, clean, counts_text, kind_text, plain, plural, put, time_text

__all__ = ["log", "scope_text"]


@click.command()
@bundle_argument
@click.option(
    "--snapshot", metavar="ID", help="Only this one, by the beginning of its name, id or root digest. [default: all of them]"
)
@storage_option
@common
@pass_state
def log(state: State, bundle: str, *, snapshot: str | None, storage_option: Sequence[str]) -> None:
    """List the snapshots, the newest first.

    The root digest is the SHA-256 of a snapshot's document and reaches every byte of it: keep it to prove later what was
    archived.
    """
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        stems = [committed.stem for committed in archive.snapshots()]
        shown = [archive.snapshot_id] if snapshot is not None else stems
        entries = list(_entries(archive, stems, shown))
        if state.json:
            state.put({"bundle": archive.url, "snapshots": entries})
            return
    for number, entry in enumerate(entries):
        if number:
            put("")
        for line in _lines(entry):
            put(line)


def _entries(archive: Bundle, stems: Sequence[str], shown: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What to tell of each snapshot, also what it adds to the one before it."""
    following = archive.at(shown[0]) if shown else archive
    for stem in shown:
        older = stems[stems.index(stem) + 1 :][:1]
        before = archive.at(older[0]) if older else None
        yield _entry(following, before)
        following = before or following


def _entry(archive: Bundle, before: Bundle | None) -> dict[str, Any]:
    document, objects = archive.snapshot, archive.objects
    there = {ref.path for ref in before.objects} if before else set()
    new = [ref for ref in objects if ref.path not in there]
    counts = before.snapshot.counts if before else {}
    kinds = {*document.counts, *counts} - {"file_bytes"}
    changes = {kind: document.counts.get(kind, 0) - counts.get(kind, 0) for kind in sorted(kinds)}
    return {
        "snapshot": archive.snapshot_id,
        "root_digest": archive.root_digest,
        "logical_root": document.logical.root,
        "created_at": document.created_at,
        "state": document.state,
        "counts": dict(document.counts),
        "objects": len(objects),
        "object_bytes": sum(ref.size for ref in objects),
        "new_objects": len(new),
        "new_object_bytes": sum(ref.size for ref in new),
        "changes": {kind: change for kind, change in changes.items() if change},
        "scope": plain(document.scope),
        "source": plain(document.source),
        "writer": plain(document.writer),
        "parents": list(document.parents),
        "problems": len(document.problems),
        "notes": list(document.notes),
    }


def _lines(entry: dict[str, Any]) -> Iterator[str]:
    yield f"snapshot {entry['snapshot']}  {entry['state']}"
    yield f"  root  {entry['root_digest']}"
    yield f"  made  {time_text(entry['created_at'])} from {clean(entry['source']['uri'])}"
    yield f"  of    {scope_text(entry['scope'])}"
    yield from _wrapped("has", f"{counts_text(entry['counts'])} ({bytes_text(entry['counts'].get('file_bytes', 0))})")
    yield f"  in    {plural(entry['objects'], 'object')}, {bytes_text(entry['object_bytes'])}"
    yield from _wrapped("adds", _added(entry))
    if entry["problems"]:
        yield f"  lacks {plural(entry['problems'], 'thing')} that could not be read; `mlflow-bundle show` lists them"


def _wrapped(name: str, text: str) -> Iterator[str]:
    """A line, on a terminal as many as its width asks for."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(text) + 8
    for number, line in enumerate(textwrap.wrap(text, max(width - 8, 20), break_on_hyphens=False)):
        yield f"  {'' if number else name:5} {line}"


def _added(entry: dict[str, Any]) -> str:
    """What a snapshot has more, or less, than the one before it."""
    stored = f"{plural(entry['new_objects'], 'object')}, {bytes_text(entry['new_object_bytes'])}"
    told = [
        f"{'-' if change < 0 else '+'}{kind_text(kind, abs(change))}"
        for kind, change in entry["changes"].items()
        if kind != "workspace" or entry["counts"].get(kind) != 1  # every server of today has one
    ]
    return f"{stored}" + (f" ({', '.join(told)})" if told else "")


def scope_text(scope: dict[str, Any]) -> str:
    """What was asked for, in the words of the options."""
    parts = [f"--experiment {clean(name)}" for name in scope["experiments"]]
    parts += [f"--run {clean(run)}" for run in scope["runs"]]
    for option in ("models", "prompts", "logged_models"):
        parts += [f"--{option[:-1].replace('_', '-')} {clean(name)}" for name in scope[option]]
    parts += [f"--filter {clean(scope['filter'])!r}"] if scope["filter"] else []
    parts += [f"--{name} {time_text(scope[name])}" for name in ("since", "until") if scope[name] is not None]
    parts += [f"--lifecycle {scope['lifecycle']}"] if scope["lifecycle"] != "all" else []
    parts += ["--descendants"] if scope["descendants"] else []
    return " ".join(parts) or "everything"
