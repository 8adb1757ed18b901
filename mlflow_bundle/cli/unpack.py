"""``mlflow-bundle unpack``: from a snapshot to an MLflow server or database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlflow_bundle._bundle import open_bundle
from mlflow_bundle.cli._options import (
    LINES,
    artifact_storage_option,
    bundle_argument,
    common,
    options_of,
    pass_state,
    progress_option,
    renames_of,
    selection,
    snapshot_option,
    storage_option,
)
from mlflow_bundle.cli._output import State, bytes_text, clean, kind_text, plain, plural, problem_lines, put, say
from mlflow_bundle.cli._progress import progress
from mlflow_bundle.entities import Experiment

if TYPE_CHECKING:
    from mlflow_bundle.tracking import EntityOutcome, UnpackReport

__all__ = ["unpack"]


@click.command()
@bundle_argument
@selection
@click.option("--rename", metavar="OLD=NEW", type=LINES, multiple=True, help="Another name for an experiment; can be repeated.")
@click.option("--workspace", metavar="NAME", help="Put everything into this workspace. [default: where it was]")
@click.option("--online-scoring", is_flag=True, help="Restore the sample rates of scorers, which then judge and may cost.")
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="Where to: http://..., sqlite:///FILE, postgresql://.... A file store such as ./mlruns cannot be written. "
    "[default: MLFLOW_TRACKING_URI, else ./mlflow.db where it exists]",
)
@snapshot_option
@click.option("--dry-run", is_flag=True, help="Say what would happen, and what the target cannot hold; write nothing.")
@click.option("--allow-partial", is_flag=True, help="Restore what the target can hold, and report the rest.")
@click.option(
    "--artifact-root", metavar="URL", help="Where the files go for a database. [default: mlruns beside an SQLite file]"
)
@click.option(
    "--artifacts-destination",
    metavar="URL",
    help="Where a server of that database will keep mlflow-artifacts:, which then stay.",
)
@artifact_storage_option
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), help="Parallel requests and writes.")
@storage_option
@progress_option
@common
@pass_state
def unpack(state: State, /, bundle: str, *, snapshot: str | None, rename: Sequence[str], **options: Any) -> int:
    """Restore a bundle, or a selection of it, to an MLflow server or database.

    Without a selection everything is restored. A database keeps ids, times and deleted states; a server gives new ids, and tags
    mlflow_bundle.source.* keep what it cannot. Running it again finishes what is missing and doubles nothing. Every run is read
    back and compared; when some could not be restored, the exit code is 3.
    """
    from mlflow_bundle.tracking import unpack as unpack_bundle  # noqa: PLC0415 - only what needs MLflow's side pays for it

    storage_options = options_of(options.pop("storage_option"))
    artifact_options = options_of(options.pop("artifact_storage_option"), "--artifact-storage-option")

    def archived_names() -> list[str]:
        with open_bundle(bundle, snapshot=snapshot, storage_options=storage_options) as archive:
            experiments = [record for record in archive.records("experiment") if isinstance(record, Experiment)]
            return [name for one in experiments for name in (one.name, f"{one.workspace or 'default'}/{one.name}")]

    with progress(state, "comparing archive and target") as callback:
        report = unpack_bundle(
            bundle,
            snapshot=snapshot,
            rename=renames_of(rename, archived_names),
            storage_options=storage_options,
            artifact_storage_options=artifact_options,
            callback=callback,
            **options,
        )
    if state.json:
        state.put(plain(report))
    else:
        _summarize(report)
    return 3 if report.problems or report.runs_failed or any(o.failed for o in report.entities) else 0


def _summarize(report: UnpackReport) -> None:
    # What a dry run says is what was asked for: data. What a restore says of itself is talk.
    tell = put if report.dry_run else say
    verbs = {"created": "new", "merged": "into the existing one", "refused": "refused"}
    for experiment in report.experiments:
        tell(f"experiment {clean(experiment.name)}: {plural(experiment.runs, 'run')}, {verbs[experiment.action]}")
    for line in problem_lines(report.problems):
        tell(line)
    for note in report.notes:
        tell(f"note: {clean(note)}")
    if report.dry_run:
        for outcome in report.entities:
            tell(kind_text(outcome.kind, outcome.selected))
        say(f"would restore {plural(report.runs_planned, 'run')} to {clean(report.target)}; nothing was written")
        say(f"{report.runs_already_there:,} already there, {plural(len(report.problems), 'problem')}")
        return
    size = f"{plural(report.metric_points, 'point')}, {plural(report.files, 'file')} ({bytes_text(report.file_bytes)})"
    say(f"restored {plural(report.runs_restored, 'run')}, {size}, to {clean(report.target)}")
    say(
        f"{report.runs_already_there:,} already there, {report.runs_failed:,} failed, {plural(len(report.problems), 'problem')}"
    )
    for outcome in report.entities:
        if outcome.kind != "workspace" or outcome.there != 1 or outcome.selected != 1:  # every server of today has one
            say(_outcome(outcome))
    if report.runs_failed or any(outcome.failed for outcome in report.entities):
        say("running it again tries what failed, and leaves what is there")


def _outcome(outcome: EntityOutcome) -> str:
    """``12 logged models: 10 restored (30 rows, 24 files, 1.2 MiB), 2 already there``."""
    parts = []
    if outcome.rows or outcome.files:
        inside = [f"{outcome.rows:,} rows"] if outcome.rows else []
        inside += [f"{plural(outcome.files, 'file')}, {bytes_text(outcome.file_bytes)}"] if outcome.files else []
        extent = f" ({', '.join(inside)})"
    else:
        extent = ""
    for count, what in (
        (outcome.restored, f"restored{extent}"),
        (outcome.merged, "merged"),
        (outcome.there, "already there"),
        (outcome.left_out, "left out"),
        (outcome.failed, "failed"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    return f"{kind_text(outcome.kind, outcome.selected)}: {', '.join(parts) or 'nothing done'}"
