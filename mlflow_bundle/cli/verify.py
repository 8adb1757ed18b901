"""``mlflow-bundle verify``: prove that a bundle is whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, plain, plural, problem_lines, put, say
from mlflow_bundle.errors import UsageError

__all__ = ["verify"]


@click.command()
@bundle_argument
@click.option(
    "--level",
    type=click.Choice(["structure", "tables", "full"]),
    default="full",
    show_default=True,
    help="structure: objects and their sizes; tables: also records, tables and the logical root; full: every byte.",
)
@click.option("--subset", metavar="K/N", help="Check the bytes of the K-th of N parts, so that N runs cover everything.")
@snapshot_option
@storage_option
@common
@pass_state
def verify(
    state: State, bundle: str, *, level: str, subset: str | None, snapshot: str | None, storage_option: Sequence[str]
) -> int:
    """Check a snapshot and report every problem with what it touches.

    Ends with 0 when all is well, and with 4 when there are problems.
    """
    part = _part(subset) if subset else None
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        report = archive.verify(level=level, subset=part)
        where = {"bundle": archive.url, "snapshot": archive.snapshot_id, "root_digest": archive.root_digest}
    if state.json:
        state.put({**where, "level": level, "subset": subset, "ok": not report.problems, **plain(report)})
        return 4 if report.problems else 0
    for line in problem_lines(report.problems, limit=None):
        put(line)
    covered = f"at level {level}" + (f", part {subset}" if subset else "")
    found = plural(len(report.problems), "problem") if report.problems else "no problems"
    say(f"{found} {covered} in snapshot {where['snapshot']}")
    return 4 if report.problems else 0


def _part(text: str) -> tuple[int, int]:
    """``K/N`` as numbers.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"--subset {text!r} is not K/N with K from 1 to N", hint="for example --subset 3/7 on the third night of a week"
        )
    return int(match[1]), int(match[2])
