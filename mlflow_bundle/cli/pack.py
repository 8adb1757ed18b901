"""``mlflow-bundle pack``: from an MLflow server or database to one more snapshot of a bundle."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from mlflow_bundle._manifest import marker_to_add_to
from mlflow_bundle._storage import probe_storage
from mlflow_bundle.cli._options import (
    artifact_storage_option,
    bundle_argument,
    common,
    options_of,
    pass_state,
    progress_option,
    selection,
    storage_option,
    tracking_option,
)
from mlflow_bundle.cli._output import State, bytes_text, clean, counts_text, kind_text, plain, plural, problem_lines, put, say
from mlflow_bundle.cli._progress import progress

if TYPE_CHECKING:
    from mlflow_bundle.tracking import PackReport

__all__ = ["pack"]


@click.command()
@bundle_argument
@selection
@tracking_option
@click.option("--allow-partial", is_flag=True, help="Commit a partial snapshot that lists what could not be read.")
@click.option(
    "--full", is_flag=True, help="Read everything again instead of trusting counts and file stamps of the last snapshot."
)
@click.option(
    "--dry-run", is_flag=True, help="Only say what is selected, without a look at metric points and files; write nothing."
)
@click.option(
    "--artifacts-destination", metavar="URL", help="Where a server keeps mlflow-artifacts:, when its database is read directly."
)
@artifact_storage_option
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), help="Parallel requests and reads.")
@storage_option
@progress_option
@common
@pass_state
def pack(state: State, /, bundle: str, *, dry_run: bool, allow_partial: bool, full: bool, **options: Any) -> int:
    """Archive what MLflow holds, or a selection of it, as one more snapshot of BUNDLE.

    BUNDLE is a folder, a URL such as s3://bucket/name, or one file whose name ends in .zip. Without a selection everything is
    packed. Packing into the same bundle again writes only what is new. When something cannot be read, nothing is committed
    (exit code 1), or with --allow-partial a partial snapshot is (exit code 3). Read the notes at the end: artifact folders that
    are not on this machine are notes, and no error, in the first pack of a database.
    """
    storage_options = options_of(options.pop("storage_option"))
    artifact_options = options_of(options.pop("artifact_storage_option"), "--artifact-storage-option")
    if dry_run:
        with closing(probe_storage(bundle, storage_options=storage_options)) as storage:
            marker_to_add_to(storage)
        return _dry_run(state, options, artifact_options)
    from mlflow_bundle.tracking import pack as pack_bundle  # noqa: PLC0415 - only what needs MLflow's side pays for it

    with progress(state, "connecting and selecting") as callback:
        report = pack_bundle(
            bundle=bundle,
            allow_partial=allow_partial,
            full=full,
            storage_options=storage_options,
            artifact_storage_options=artifact_options,
            callback=callback,
            **options,
        )
    if state.json:
        state.put(plain(report))
    else:
        _summarize(report)
    return 3 if report.state == "partial" else 0


def _summarize(report: PackReport) -> None:
    say(f"packed {counts_text(dict(report.counts))}")
    say(f"{plural(report.new_objects, 'new object')}, {bytes_text(report.new_bytes)}; {report.shared_objects:,} already there")
    if report.redacted:
        say(f"{plural(report.redacted, 'credential')} taken out of URIs")
    for line in problem_lines(report.problems):
        say(line)
    if report.state == "partial":
        missing = plural(len(report.problems), "thing")
        say(f"the snapshot is partial: {missing} could not be read; packing again tries just those")
    say(f"snapshot {report.snapshot}")
    say(f"root {report.root_digest}")
    for note in report.notes:  # last, where they are seen: what may be missing from a complete snapshot is among them
        say(f"note: {clean(note)}")


def _dry_run(state: State, options: dict[str, Any], artifact_options: dict[str, Any] | None) -> int:
    """Select at the source, and count."""
    from mlflow_bundle.tracking._connect import connect_source, resolve_tracking_uri  # noqa: PLC0415
    from mlflow_bundle.tracking._gather import collect  # noqa: PLC0415
    from mlflow_bundle.tracking._select import Selection  # noqa: PLC0415

    uri = resolve_tracking_uri(options.pop("tracking_uri"))
    reach = {name: options.pop(name) for name in ("artifacts_destination", "jobs")}
    with (
        closing(connect_source(uri, artifact_storage_options=artifact_options, **reach)) as source,
        progress(state, "selecting"),
    ):
        found = collect(source, Selection.of(**options))
        with closing(found.gathered):
            experiments = found.experiments()
            runs = dict.fromkeys((experiment.experiment_id for experiment in experiments), 0)
            for run in found.selected.runs:
                runs[run.experiment_id] = runs.get(run.experiment_id, 0) + 1
            others = {kind: found.gathered.counts[kind] for kind in found.gathered.kinds()}
        where, problems = source.description.uri, source.problems()
    if state.json:
        listed = [{"experiment_id": e.experiment_id, "name": e.name, "runs": runs[e.experiment_id]} for e in experiments]
        counts = {"experiment": len(listed), "run": sum(runs.values()), **others}
        state.put({"dry_run": True, "source": where, "counts": counts, "experiments": listed, "problems": plain(problems)})
        return 3 if problems else 0
    for experiment in experiments:
        put(f"{clean(experiment.name)}: {plural(runs[experiment.experiment_id], 'run')}")
    for kind, count in others.items():
        put(kind_text(kind, count))
    packed = f"{plural(len(runs), 'experiment')}, {plural(sum(runs.values()), 'run')}"
    for line in problem_lines(problems):
        say(line)
    say(f"would pack {packed} of {clean(where)}; nothing was written")
    if problems:
        say(f"{plural(len(problems), 'thing')} cannot be read: --allow-partial packs the rest")
    return 3 if problems else 0
