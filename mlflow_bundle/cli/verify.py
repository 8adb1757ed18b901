"""``mlflow-bundle verify``: prove that a bundle is whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from mlflow_bundle._bundle import verify as verify_bundle
from mlflow_bundle._verify._levels import Report
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, bytes_text, clean, plain, plural, put, say
from mlflow_bundle.errors import UsageError
from mlflow_bundle.records import Problem

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
@click.option("--all-snapshots", is_flag=True, help="Check every snapshot; what they share is read once.")
@snapshot_option
@storage_option
@common
@pass_state
def verify(
    state: State,
    bundle: str,
    *,
    level: str,
    subset: str | None,
    all_snapshots: bool,
    snapshot: str | None,
    storage_option: Sequence[str],
) -> int:
    """Check a snapshot and report every problem with what it touches.

    Ends with 0 when all is well, and with 4 when there are problems. Warnings, about things that do no harm, do not count.
    """
    report = verify_bundle(
        bundle,
        level=level,
        subset=_part(subset) if subset else None,
        snapshot=snapshot,
        all_snapshots=all_snapshots,
        storage_options=options_of(storage_option),
    )
    if state.json:
        state.put({"bundle": bundle, "ok": report.ok, **plain(report)})
    else:
        _print(report)
    return 0 if report.ok else 4


def _print(report: Report) -> None:
    for problem in report.problems:
        put(f"{clean(problem.code)} {clean(problem.message)}{_touched(problem)}")
    for warning in report.warnings:
        say(f"warning: {clean(warning.code)} {clean(warning.message)}")
    for sentence in report.not_covered:
        say(f"not checked: {clean(sentence)}")
    covered = f"{plural(report.objects_checked, 'object')}, {bytes_text(report.bytes_checked)} read in {report.seconds:.1f} s"
    say(f"{plural(len(report.problems), 'problem') if report.problems else 'no problems'} at level {report.level}: {covered}")
    for stem in report.snapshots:
        say(f"snapshot {stem}")
    if len(report.snapshots) == 1:
        say(f"root {report.root_digest}")


def _touched(problem: Problem) -> str:
    """The runs that a problem touches, the first by id."""
    if not problem.runs:
        return ""
    more = f" and {len(problem.runs) - 1:,} more" if len(problem.runs) > 1 else ""
    return f" (touches run {clean(problem.runs[0])}{more})"


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
