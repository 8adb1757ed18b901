"""``mlflow-bundle diff``: what two archives, two snapshots, or an archive and a live server do not have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import click

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle._diff import Detail, Diff
from mlflow_bundle.cli._options import LINES, common, options_of, pass_state, progress_option
from mlflow_bundle.cli._output import State, clean, fitted, plain, problem_lines, put, say, time_text
from mlflow_bundle.cli._progress import progress
from mlflow_bundle.errors import UsageError

__all__ = ["diff"]

DIFFERENT: Final = 4
#: Columns of a terminal for one value.
_WIDTH: Final = 100
_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}


@click.command()
@click.argument("before")
@click.argument("after", required=False)
@click.option("--before-snapshot", metavar="ID", help="A snapshot of BEFORE instead of its newest.")
@click.option("--after-snapshot", metavar="ID", help="A snapshot of AFTER instead of its newest.")
@click.option("--brief", is_flag=True, help="Only which entities differ, not in what.")
@click.option("--artifacts-destination", metavar="URL", help="Where a live server keeps what it calls mlflow-artifacts:.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Requests at a time to a live server.")
@click.option(
    "--storage-option",
    metavar="KEY=VALUE",
    type=LINES,
    multiple=True,
    help="Option of the file system (fsspec) that bundles among them lie on; VALUE is JSON where it reads as JSON.",
)
@progress_option
@common
@pass_state
def diff(
    state: State,
    before: str,
    after: str | None,
    *,
    before_snapshot: str | None,
    after_snapshot: str | None,
    brief: bool,
    artifacts_destination: str | None,
    jobs: int | None,
    storage_option: Sequence[str],
) -> int:
    """Compare BEFORE with AFTER: what was added, removed and changed.

    Each is a bundle, or a live server, database or file store (a tracking URI), which is read within the scope of the other
    side. Without AFTER, the newest snapshot of BEFORE is compared with the one that it continues.

    Ends with 0 when both say the same, with 4 when they differ, and with 3 when they say the same but something of a live side
    could not be read.
    """
    from mlflow_bundle.tracking._diff import diff as compare  # noqa: PLC0415 - looking at an archive must not pay for it

    options = options_of(storage_option)
    if after is None:
        after = before
        before_snapshot = before_snapshot or _predecessor(before, after_snapshot, options)
    with progress(state, "reading") as callback:
        found = compare(
            before,
            after,
            before_snapshot=before_snapshot,
            after_snapshot=after_snapshot,
            storage_options=options,
            artifacts_destination=artifacts_destination,
            jobs=jobs,
            callback=callback,
        )
    if state.json:
        state.put({"equal": found.equal, **plain(found), "counts": plain(dict(found.counts))})
    else:
        _print(found, brief=brief)
    if not found.equal:
        return DIFFERENT
    return 3 if found.problems else 0


def _predecessor(url: str, snapshot: str | None, options: Mapping[str, object] | None) -> str:
    """The snapshot that one continues, else the one before it."""
    with open_bundle(url, snapshot=snapshot, storage_options=options) as archive:
        stems = [committed.stem for committed in archive.snapshots()]
        older = stems[stems.index(archive.snapshot_id) + 1 :]
        parents = [stem for stem in archive.snapshot.parents if stem in older]
        if not older:
            raise UsageError(f"{archive.url} has no earlier snapshot to compare with", hint="name what to compare it with")
        return parents[0] if parents else older[0]


def _print(found: Diff, *, brief: bool) -> None:
    for change in found.changes:
        name = f" {clean(change.name)}" if change.name and change.name != change.id else ""
        put(f"{_SIGNS[change.what]} {clean(change.kind)} {clean(change.id)}{name}")
        if not brief:
            for detail in change.details:
                put(f"    {_line(detail)}")
    for sentence in chain(_summary(found), problem_lines(found.problems)):
        say(sentence)


def _line(detail: Detail) -> str:
    what = clean(detail.what)
    if detail.before is None:
        return f"+ {what}{_said(detail.after)}" if detail.after is not None else what
    if detail.after is None:
        return f"- {what}{_said(detail.before)}"
    return f"~ {what}: {_value(detail.before)} -> {_value(detail.after)}"


def _said(text: str | None) -> str:
    """The value of what is on one side only; of an item that has parts these are told."""
    return f": {_value(text)}" if text else ""


def _value(text: str | None) -> str:
    return fitted(clean(text), _WIDTH)


def _summary(found: Diff) -> Iterator[str]:
    for word, side in (("before", found.before), ("after", found.after)):
        yield f"{word:6} {clean(side.url)} at {time_text(side.created_at)}, logical root {side.logical_root}"
    if found.not_compared:
        yield f"not compared, because only one side tells it: {clean(', '.join(found.not_compared))}"
    if found.equal:
        yield "both say the same" + (", but not everything could be read" if found.problems else "")
    for kind, counts in found.counts.items():
        yield f"{clean(kind.replace('_', ' '))}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
