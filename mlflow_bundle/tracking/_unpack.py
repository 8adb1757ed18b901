"""``unpack``: from a snapshot of a bundle to an MLflow server or database."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle.errors import AuthError, CannotHoldError, ServerError, UsageError
from mlflow_bundle.kinds import KINDS
from mlflow_bundle.records import Experiment, Problem, Run
from mlflow_bundle.tracking._archive import ArchiveSource
from mlflow_bundle.tracking._connect import connect_target, resolve_tracking_uri
from mlflow_bundle.tracking._damage import foreseen_losses, leave_out_orphans, losses, salvaged
from mlflow_bundle.tracking._entities import EntityRestore, entity_problems, in_restore_order
from mlflow_bundle.tracking._gather import Gathered, collect
from mlflow_bundle.tracking._left_out import LeftOut
from mlflow_bundle.tracking._plan import Placement, Plan, make_plan
from mlflow_bundle.tracking._port import NOT_RESTORED, IdMap, MlflowTarget, PlannedRun, RestoreOptions, RunResult
from mlflow_bundle.tracking._select import Lifecycle, Moment, Selection
from mlflow_bundle.tracking._unpack_report import ExperimentOutcome, UnpackReport
from mlflow_bundle.tracking._workspaces import Homes

__all__ = ["restore", "unpack"]

_DAMAGED_HINT: Final = "`mlflow-bundle verify` lists all of it; --allow-partial restores the rest and reports what is lost"
_BATCH_RUNS: Final = 500
_BATCH_POINTS: Final = 2_000_000


def unpack(
    bundle: str | os.PathLike[str],
    *,
    tracking_uri: str | os.PathLike[str] | None = None,
    experiment: str | Sequence[str] | None = None,
    run: str | Sequence[str] | None = None,
    filter: str | None = None,  # noqa: A002 - MLflow's own word
    since: Moment | None = None,
    until: Moment | None = None,
    lifecycle: Lifecycle = "all",
    descendants: bool = False,
    model: str | Sequence[str] | None = None,
    prompt: str | Sequence[str] | None = None,
    logged_model: str | Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    workspace: str | None = None,
    online_scoring: bool = False,
    snapshot: str | None = None,
    dry_run: bool = False,
    allow_partial: bool = False,
    artifact_root: str | os.PathLike[str] | None = None,
    artifacts_destination: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    artifact_storage_options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    callback: Callback = DEFAULT_CALLBACK,
    limits: Limits = DEFAULT_LIMITS,
) -> UnpackReport:
    """Restore a snapshot, or a selection of it, to an MLflow server or database.

    The selection means the same as in ``pack``. ``rename`` gives archived experiments other names. An experiment that an
    earlier unpack restored, whatever its name is now, or that exists under its name, gets the runs; runs that an earlier
    unpack restored are left alone, unfinished ones are finished. What an unpack of another snapshot restored becomes what this
    one says, so that a newer one brings it up to date: nothing is taken away from it, and what it cannot become (a param has
    one value for ever, a point stays) is a problem. A database is only added to (and ``online_scoring`` switches on rates that
    are 0): there every difference is a problem or a note.

    Everything goes into the workspace that it is archived from, made where the target lacks it, or all of it into
    ``workspace``; of two experiments or models that would get one name then, one is left out and reported. Webhooks come
    back disabled, scorers with a sample rate of 0 unless ``online_scoring`` is set, and nothing that was secret comes back.

    A database keeps ids, times and deleted state. A server gives new ids; tags ``mlflow_bundle.source.*`` carry the rest.

    ``artifact_root`` is where the files of a database target go, by default ``mlruns`` beside an SQLite file. With
    ``artifacts_destination``, the place that a server of that database will use, ``mlflow-artifacts:`` locations stay.
    ``artifact_storage_options`` are fsspec's for these files. ``jobs`` is how many requests to a server are under way at a
    time.

    Everything restored is read back and compared before it counts. ``dry_run`` restores nothing and says what would happen;
    only a PostgreSQL database without MLflow's tables gets these.

    Raises:
        CannotHoldError: the target cannot hold something, and ``allow_partial`` was not given. Nothing was written.
        CorruptError: an object of the archive is lost or cut off; nothing was written. Or one is damaged inside, which is seen
            when it is read. With ``allow_partial`` both are problems: the archive is verified first, but for the contents of
            files, and all that can be read is restored.
        NotFoundError, BundleNotFoundError: no such bundle, snapshot, experiment or run.
        ServerError: the target failed. What was restored stays; running again finishes the rest.
    """
    selection = Selection.of(
        experiment=experiment,
        run=run,
        filter=filter,
        since=since,
        until=until,
        lifecycle=lifecycle,
        descendants=descendants,
        model=model,
        prompt=prompt,
        logged_model=logged_model,
    )
    uri = resolve_tracking_uri(tracking_uri, target=True)
    with open_bundle(bundle, snapshot=snapshot, storage_options=storage_options, limits=limits) as opened:
        archive, damage = salvaged(opened) if allow_partial else (opened, ())
        if not allow_partial:
            # Else a target would be half-filled before the first object is met that is cut off or lost.
            archive.verify(level="structure").require_ok(archive.url, hint=_DAMAGED_HINT)
        connect = partial(
            connect_target,
            uri,
            bundle_id=archive.snapshot.bundle_id,
            artifact_root=None if artifact_root is None else os.fspath(artifact_root),
            artifacts_destination=None if artifacts_destination is None else os.fspath(artifacts_destination),
            artifact_storage_options=artifact_storage_options,
            jobs=jobs,
            workspace=workspace,
            absent=archive.snapshot.source.absent,
        )
        return restore(
            archive,
            connect,
            selection,
            rename=rename or {},
            workspace=workspace,
            online_scoring=online_scoring,
            dry_run=dry_run,
            allow_partial=allow_partial,
            damage=damage,
            callback=callback,
        )


def restore(
    archive: Bundle,
    connect: Callable[[], MlflowTarget],
    selection: Selection,
    *,
    rename: Mapping[str, str] = MappingProxyType({}),
    workspace: str | None = None,
    online_scoring: bool = False,
    dry_run: bool = False,
    allow_partial: bool = False,
    damage: Sequence[Problem] = (),
    callback: Callback = DEFAULT_CALLBACK,
) -> UnpackReport:
    """What ``unpack`` does, from an open bundle to the target that ``connect`` opens, once it is known what is selected.

    ``damage`` is what is wrong with an archive that is read as far as possible (``_bundle.salvage``)."""
    started = time.monotonic()
    with ExitStack() as stack:
        source = ArchiveSource(archive, damage)
        found = collect(source, selection)
        gathered = found.gathered
        stack.callback(gathered.close)
        selected = found.selected
        selected.experiments = found.experiments()
        target = stack.enter_context(closing(connect()))
        if workspace is not None and not target.has_workspaces:
            raise UsageError(
                f"{target.description.uri} has no workspaces", hint="leave the workspace out: everything goes into one place"
            )
        homes = Homes(workspace, target.has_workspaces)
        plan = stack.enter_context(closing(make_plan(archive, target, selected, rename, homes)))
        plan.problems[:0] = source.problems()
        for planned in plan.runs():
            gathered.run(planned)
        gathered.fetch_models(source)
        lost = {kind: archive.reader.lost_records(kind) for kind in KINDS} if selection.whole else {}
        left_out = _left_out(archive, gathered, target, plan, homes)
        if dry_run and damage:
            runs = (run for run in plan.runs() if not plan.is_current(run))
            plan.problems += foreseen_losses(archive, runs, gathered, target.kinds(), left_out)
        options = RestoreOptions(workspace=workspace, online_scoring=online_scoring)
        ids = IdMap()
        entities = EntityRestore(archive, target, gathered, ids=ids, options=options, left_out=left_out, homes=homes)
        work = _Restore(archive, target, plan, callback, gathered=gathered, entities=entities, ids=ids, lost=lost)
        if dry_run:
            return work.report(dry_run=True, seconds=time.monotonic() - started)
        if plan.problems and not allow_partial:
            raise _cannot_hold(plan.problems, target)
        work.run()
        return work.report(dry_run=False, seconds=time.monotonic() - started)


def _left_out(archive: Bundle, gathered: Gathered, target: MlflowTarget, plan: Plan, homes: Homes) -> LeftOut:
    """What does not arrive; why that is goes to the problems of the plan."""
    left_out = LeftOut()
    for source_id in plan.refused():
        left_out.add("experiment", source_id)
    leave_out_orphans(archive, gathered, left_out, plan.placements)
    existing = {source: p.existing.experiment_id for source, p in plan.placements.items() if p.existing}
    plan.problems += entity_problems(archive, gathered, target, left_out, homes, existing=existing)
    return left_out


def _cannot_hold(problems: Sequence[Problem], target: MlflowTarget) -> CannotHoldError:
    first, count = problems[0], len(problems)
    more = f", and {count - 1:,} more" if count > 1 else ""
    return CannotHoldError(
        f"nothing was written, because {target.description.uri} cannot hold everything: {first.message}{more}",
        problems,
        hint="--dry-run lists all of it; --allow-partial restores the rest and reports what was left out",
    )


class _Restore:
    """One unpack: places experiments, restores runs batch by batch, parents first, and counts what was read back."""

    def __init__(
        self,
        archive: Bundle,
        target: MlflowTarget,
        plan: Plan,
        callback: Callback,
        *,
        gathered: Gathered,
        entities: EntityRestore,
        ids: IdMap,
        lost: Mapping[str, int],
    ) -> None:
        self._archive, self._target, self._plan, self._callback = archive, target, plan, callback
        self._gathered, self._entities, self._map = gathered, entities, ids
        self._lost = lost
        self._ids: dict[str, str] = {}
        self._points = self._files = self._bytes = 0
        self._restored: set[str] = set()
        self._there: set[str] = set()
        self._failed: set[str] = set()
        self._problems: list[Problem] = list(plan.problems)
        self._foreseen = {(p.code, p.id, p.path, p.message) for p in plan.problems}
        self._notes: Counter[str] = Counter()
        self._current: set[str] = set()
        # A target that keeps ids compares every run again.
        if not target.keeps_ids and any(placement.there for placement in plan.placements.values()):
            self._current = {run.run_id for run in plan.runs() if plan.is_current(run)}
        for placement in plan.placements.values():
            self._ids |= {source: run.run_id for source, run in placement.there.items() if run.complete or target.keeps_ids}

    def run(self) -> None:
        """Do it."""
        waiting = Counter(run.experiment_id for run in self._plan.runs() if run.run_id not in self._current)
        placed = [
            placement
            for source, placement in self._plan.placements.items()
            if placement.action != "refused" and (waiting[source] or not placement.finished)
        ]
        if self._gathered.counts.get("workspace"):  # before what goes into them
            self._entities.restore("workspace", lambda _: None)
        # Short ids first: an experiment that gets another id must not take one that is archived.
        for placement in sorted(placed, key=lambda one: len(one.experiment.experiment_id)):
            self._place(placement)
        progress = self._callback.branched("restore", "")
        progress.set_size(len(self._plan.run_ids))
        for batch in self._batches():
            self._restore(batch)
            progress.relative_update(len(batch))
        progress.close()
        self._restore_entities()
        for placement in placed:
            if placement.action == "refused" or placement.target_id is None:
                continue
            if placement.ours:
                self._finish(placement.experiment, placement.target_id)
            elif placement.experiment.lifecycle_stage == "deleted":
                self._note(
                    f"experiment {placement.name!r} is deleted in the archive and was active at the target: it stays active"
                )
        for result in self._target.after_deletions():
            self._entities.finish(result)
            if result.kind == "run" and result.action == "failed":
                self._count(result.source_id, self._failed)

    def _finish(self, experiment: Experiment, target_id: str) -> None:
        """Delete the experiment, or runs of it, as archived. Where that is refused, the other experiments go on."""
        try:
            self._target.finish_experiment(experiment, target_id)
        except ServerError as error:
            self._report(experiment, f"experiment {experiment.name!r}: its state is not as archived: {error.message}", error)

    def _place(self, placement: Placement) -> None:
        """Make the experiment, or find out that the target cannot hold it, which the plan has said, or refuses it: then its
        runs and what else belongs to it fail, and the other experiments go on."""
        try:
            placement.target_id = self._target.place_experiment(
                placement.experiment, name=placement.name, existing=placement.existing, workspace=placement.workspace
            )
        except CannotHoldError:
            self._refused(placement)
        except ServerError as error:
            self._refused(placement)
            self._report(placement.experiment, f"experiment {placement.name!r}: {error.message}", error)

    def _refused(self, placement: Placement) -> None:
        placement.action = "refused"
        self._entities.leave_out("experiment", placement.experiment.experiment_id)

    def _report(self, experiment: Experiment, message: str, error: ServerError) -> None:
        """A problem of one experiment, unless the target refuses everything or is gone."""
        if isinstance(error, AuthError) or error.status is None:
            raise error
        there = experiment.experiment_id
        self._problems.append(Problem(code=NOT_RESTORED, kind="experiment", id=there, message=message, experiments=(there,)))

    def _restore_entities(self) -> None:
        """All other kinds, in their order; the runs get their logged models as soon as those are there."""
        for source, placement in self._plan.placements.items():
            if placement.action != "refused" and placement.target_id is not None:
                self._map.add("experiment", source, placement.target_id)
        for run, target_id in self._ids.items():
            self._map.add("run", run, target_id)
        progress = self._callback.branched("entities", "")
        progress.set_size(sum(self._gathered.counts.values()))
        for kind in in_restore_order(kind for kind in KINDS if self._gathered.counts.get(kind) and kind != "workspace"):
            self._entities.restore(kind, progress.relative_update)
            if kind == "logged_model":
                self._link_runs()
        progress.close()

    def _link_runs(self) -> None:
        """Give restored runs the inputs and outputs that name logged models."""
        linked = [
            (run, self._ids[run.run_id])
            for run in self._plan.runs()
            if (run.model_inputs or run.model_outputs) and run.run_id in self._ids
        ]
        for result in self._target.link_runs(linked, self._map):
            self._entities.note(result)
            if result.action == "failed":
                self._count(result.source_id, self._failed)

    def _batches(self) -> Iterator[list[Run]]:
        """The runs to look at, parents before their children, in batches of one workspace that fit into memory."""
        generations = self._plan.generations()
        number = dict(zip(self._plan.run_ids, generations, strict=True))
        last = 0 if self._target.keeps_ids else max(generations, default=0)
        for generation in range(last + 1):
            batches: dict[str, list[Run]] = {}
            points: Counter[str] = Counter()
            for run in self._plan.runs():
                if run.run_id in self._current or (last and number[run.run_id] != generation):
                    continue
                home = self._plan.placements[run.experiment_id].workspace
                batch = batches.setdefault(home, [])
                count = self._archive.metric_rows([run.run_id])[0]
                if batch and (len(batch) == _BATCH_RUNS or points[home] + count > _BATCH_POINTS):
                    yield batch
                    batches[home], points[home] = [], 0
                batches[home].append(run)
                points[home] += count
            yield from (batch for batch in batches.values() if batch)

    def _restore(self, batch: Sequence[Run]) -> None:
        ids = [run.run_id for run in batch]
        counts = self._archive.metric_rows(ids)
        files: dict[str, list[tuple[str, int, str]]] = {run: [] for run in ids}
        for row in self._archive.files_of(ids).to_pylist():
            if row["state"] == "ok":
                files[row["run_id"]].append((row["path"], row["size"], row["sha256"]))
        planned = [self._planned(run, count, files[run.run_id]) for run, count in zip(batch, counts, strict=True)]
        results = self._target.restore(planned, self._archive.series(ids), self._archive.blobs.open)
        sources = {run.run_id: run for run in batch}
        for result in results:
            result.problems += losses(self._archive, sources[result.source_run_id])
            self._take(result)

    def _planned(self, run: Run, points: int, files: Sequence[tuple[str, int, str]]) -> PlannedRun:
        there = self._plan.there(run.run_id)
        placed = self._plan.placements[run.experiment_id].target_id
        assert placed is not None
        parent = self._ids.get(self._plan.parents.get(run.run_id, "")) or self._plan.noted_parent(run)
        return PlannedRun(
            source=run,
            experiment_id=placed,
            target_run_id=there.run_id if there else None,
            parent_id=parent,
            files=tuple(files),
            metric_rows=points,
            digest="" if self._target.keeps_ids else self._plan.digest(run, parent),
        )

    def _take(self, result: RunResult) -> None:
        there = self._plan.there(result.source_run_id)
        was_there = self._target.keeps_ids and there is not None and not result.added
        for note in result.notes:
            self._note(note)
        if result.run_id is not None:
            self._ids[result.source_run_id] = result.run_id
        self._problems += [p for p in result.problems if (p.code, p.id, p.path, p.message) not in self._foreseen]
        self._count(result.source_run_id, self._failed if result.problems else self._there if was_there else self._restored)
        if not was_there:
            if there is not None and there.complete and not result.problems and not result.added:
                self._note("a run of an earlier restore was brought up to date: this snapshot, or its parent, is another")
            self._points += result.metric_points
            self._files += result.files
            self._bytes += result.file_bytes

    def _count(self, run_id: str, among: set[str]) -> None:
        """Count a run once, by what was seen last."""
        for others in (self._restored, self._there, self._failed):
            others.discard(run_id)
        among.add(run_id)

    def _note(self, note: str) -> None:
        self._notes[note] += 1

    def report(self, *, dry_run: bool, seconds: float) -> UnpackReport:
        """The counts so far."""
        plan, target = self._plan, self._target
        if not target.keeps_ids:
            self._there = self._current - self._failed
        refused = [p for p in plan.placements.values() if p.action == "refused"]
        lost = sum(p.runs - len(self._current & p.there.keys()) for p in refused)
        unreadable = plan.orphans.total() + self._lost.get("run", 0)
        noted = self._notes + self._entities.notes
        notes = [
            *plan.notes,
            *dict.fromkeys(target.notes),
            *(f"{note} ({count:,} times)" if count > 1 else note for note, count in noted.items()),
        ]
        return UnpackReport(
            bundle=self._archive.url,
            snapshot=self._archive.snapshot_id,
            target=target.description.uri,
            target_kind=target.description.kind,
            dry_run=dry_run,
            experiments=tuple(
                ExperimentOutcome(source_id=source, id=p.target_id, name=p.name, action=p.action, runs=p.runs)
                for source, p in plan.placements.items()
            ),
            runs_selected=len(plan.run_ids) + unreadable,
            runs_restored=len(self._restored),
            runs_already_there=len(self._there),
            runs_failed=len(self._failed) + (0 if dry_run else lost + unreadable),
            runs_planned=len(plan.run_ids) - len(self._current) - lost if dry_run else 0,
            metric_points=self._points,
            files=self._files,
            file_bytes=self._bytes,
            run_ids=dict(self._ids),
            entities=self._entities.outcomes(self._lost, dry_run=dry_run),
            ids=self._map.by_kind(),
            problems=tuple(dict.fromkeys((*self._problems, *self._entities.problems))),
            notes=tuple(notes),
            seconds=seconds,
        )
