"""``mlflow-bundle log``: the snapshots of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, bytes_text, clean, counts_text, plain, plural, put, time_text

__all__ = ["log", "scope_text"]


@click.command()
@bundle_argument
@snapshot_option
@storage_option
@common
@pass_state
def log(state: State, bundle: str, *, snapshot: str | None, storage_option: Sequence[str]) -> None:
    """List the snapshots, the newest first.

    The root digest is the SHA-256 of a snapshot's document and reaches every byte of it: keep it to prove later what was
    archived.
    """
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        shown = [archive.snapshot_id] if snapshot is not None else [committed.stem for committed in archive.snapshots()]
        entries = [_entry(archive.at(stem)) for stem in shown]
        if state.json:
            state.put({"bundle": archive.url, "snapshots": entries})
            return
    for number, entry in enumerate(entries):
        if number:
            put("")
        for line in _lines(entry):
            put(line)


def _entry(archive: Bundle) -> dict[str, Any]:
    document, objects = archive.snapshot, archive.objects
    return {
        "snapshot": archive.snapshot_id,
        "root_digest": archive.root_digest,
        "logical_root": document.logical.root,
        "created_at": document.created_at,
        "state": document.state,
        "counts": dict(document.counts),
        "objects": len(objects),
        "object_bytes": sum(ref.size for ref in objects),
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
    yield f"  has   {counts_text(entry['counts'])} ({bytes_text(entry['counts'].get('file_bytes', 0))})"
    yield f"  in    {plural(entry['objects'], 'object')}, {bytes_text(entry['object_bytes'])}"
    if entry["problems"]:
        yield f"  lacks {plural(entry['problems'], 'thing')} that could not be read; `mlflow-bundle show` lists them"


def scope_text(scope: dict[str, Any]) -> str:
    """What was asked for, in the words of the options."""
    parts = [f"--experiment {clean(name)}" for name in scope["experiments"]]
    parts += [f"--run {clean(run)}" for run in scope["runs"]]
    parts += [f"--filter {clean(scope['filter'])!r}"] if scope["filter"] else []
    parts += [f"--{name} {time_text(scope[name])}" for name in ("since", "until") if scope[name] is not None]
    parts += [f"--lifecycle {scope['lifecycle']}"] if scope["lifecycle"] != "all" else []
    parts += ["--descendants"] if scope["descendants"] else []
    return " ".join(parts) or "everything"
