"""What an unpack will do, found out before the first write: where experiments go, which runs are there, what cannot be held."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._codec import decode_record, encode
from mlflow_bundle._spool import LineSpool
from mlflow_bundle._text import plural
from mlflow_bundle.errors import NotFoundError, UsageError
from mlflow_bundle.records import Experiment, Problem, Run
from mlflow_bundle.tracking._archive import latest_metrics
from mlflow_bundle.tracking._content_digest import ContentDigests
from mlflow_bundle.tracking._port import MlflowTarget, RestoredRun, TargetExperiment
from mlflow_bundle.tracking._select import Selected, parent_of
from mlflow_bundle.tracking._workspaces import DEFAULT_WORKSPACE, Homes, Named

__all__ = ["Action", "Placement", "Plan", "make_plan"]

Action = Literal["created", "merged", "refused"]


@dataclass(slots=True)
class Placement:
    """Where an archived experiment goes."""

    experiment: Experiment
    name: str
    action: Action
    existing: TargetExperiment | None = None
    target_id: str | None = None
    runs: int = 0
    #: The workspace at the target, empty where it has none.
    workspace: str = ""
    #: Archived ids of runs of this experiment that are at the target already.
    there: dict[str, RestoredRun] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether the experiment at the target is a restore of this one, so that it may be deleted as this one is."""
        return self.existing is None or _same(self.experiment, self.existing)

    @property
    def finished(self) -> bool:
        """Whether an earlier restore of this experiment left it in its archived state, with the tags of this snapshot."""
        existing = self.existing
        return (
            existing is not None
            and self.ours
            and existing.lifecycle_stage == self.experiment.lifecycle_stage
            and set(self.experiment.tags) <= set(existing.tags)
        )


@dataclass(slots=True)
class Plan:
    """Everything that is known before the first write. ``parents`` maps selected runs to their parents."""

    placements: dict[str, Placement]
    run_ids: list[str]
    parents: dict[str, str]
    problems: list[Problem]
    notes: list[str]
    digests: ContentDigests
    _runs: LineSpool
    #: The runs at the target that come from the archive, by archived id.
    _there: dict[str, RestoredRun] = field(default_factory=dict)
    _selected: frozenset[str] = frozenset()
    #: How many runs are left out because the record of their experiment is lost, by its archived id.
    orphans: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._selected = frozenset(self.run_ids)

    def runs(self) -> Iterator[Run]:
        """The selected runs whose experiment can be placed, in archive order; may be asked for several times, in turn."""
        for line in self._runs.lines():
            run = cast("Run", decode_record(line, "run", name="spool"))
            if self.placements[run.experiment_id].action != "refused":
                yield run

    def refused(self) -> list[str]:
        """The archived ids of the experiments that cannot be placed."""
        return [source for source, placement in self.placements.items() if placement.action == "refused"]

    def there(self, run_id: str) -> RestoredRun | None:
        """The run at the target that comes from this archived run."""
        return self._there.get(run_id)

    def note_there(self, placement: Placement, runs: Mapping[str, RestoredRun]) -> None:
        """Keep which runs are in an experiment at the target already, by archived id."""
        placement.there = dict(runs)
        for source_id, run in runs.items():
            self._there.setdefault(source_id, run)

    def is_current(self, run: Run) -> bool:
        """Whether an earlier restore finished this run, with the content that it has in this snapshot and with its parent."""
        there = self.there(run.run_id)
        if there is None or not there.complete or not self._has_content(there, run):
            return False
        if (parent := self.parents.get(run.run_id)) is None:
            return True
        known, is_selected = self.there(parent), parent in self._selected
        if known is None:
            return not is_selected
        if known.run_id == self.noted_parent(run) or not (known.complete or is_selected):
            return True
        return self._in_ring(run.run_id)

    def _in_ring(self, run_id: str) -> bool:
        """Whether a run is its own ancestor: one of those cannot have its parent before it."""
        seen: set[str] = set()
        current = self.parents.get(run_id)
        while current is not None and current != run_id and current not in seen:
            seen.add(current)
            current = self.parents.get(current)
        return current == run_id

    def _has_content(self, there: RestoredRun, run: Run) -> bool:
        return there.digest != "" and there.digest.partition(" ")[0] == self.digests.of(run)

    def noted_parent(self, run: Run) -> str | None:
        """The id at the target of the parent that an earlier restore of the same content gave this run."""
        there = self.there(run.run_id)
        return (there.digest.partition(" ")[2] or None) if there and self._has_content(there, run) else None

    def digest(self, run: Run, parent_id: str | None) -> str:
        """What a restore of a run notes of it: its content, and the parent at the target that it names."""
        return self.digests.of_what_is_left(run) + (f" {parent_id}" if parent_id else "")

    def generations(self) -> list[int]:
        """For each selected run, how many of its ancestors are selected: parents are restored before their children."""
        depth: dict[str, int] = {}
        for run in self.run_ids:
            chain = []
            current: str | None = run
            while current is not None and current in self._selected and current not in depth and current not in chain:
                chain.append(current)
                current = self.parents.get(current)
            known = depth.get(current, -1) if current is not None else -1
            depth |= {ancestor: number for number, ancestor in enumerate(reversed(chain), start=known + 1)}
        return [depth[run] for run in self.run_ids]

    def close(self) -> None:
        """Remove the temporary file."""
        self._runs.close()


def make_plan(bundle: Bundle, target: MlflowTarget, selected: Selected, rename: Mapping[str, str], homes: Homes) -> Plan:
    """Look at the archive and at the target; write nothing. ``homes`` says which workspace of the target each one becomes.

    Raises:
        NotFoundError: ``rename`` names an experiment that is not selected.
        UsageError: two experiments would get one name.
    """
    placements, problems, notes = _placements(target, selected.experiments, _renamed(selected.experiments, rename), homes)
    spool, run_ids, parents = LineSpool(), [], {}
    orphans: Counter[str] = Counter()
    for run in selected.runs:
        if run.experiment_id not in placements and bundle.reader.lost_records("experiment"):
            orphans[run.experiment_id] += 1
            continue
        spool.add(encode(run))
        run_ids.append(run.run_id)
        if parent := parent_of(run):
            parents[run.run_id] = parent
        problems += target.cannot_hold_run(run)
        if run.experiment_id not in placements:
            raise NotFoundError(f"run {run.run_id} is of experiment {run.experiment_id}, which is not in the archive")
        placements[run.experiment_id].runs += 1
    notes += _moved(selected.experiments, homes)
    plan = Plan(placements, run_ids, parents, problems, notes, ContentDigests(bundle), spool, orphans=orphans)
    plan.problems += _orphaned(orphans)
    plan.problems += _refused_keys(bundle, target, run_ids)
    plan.problems += _unreadable(bundle, run_ids)
    _find_restored(plan, target)
    _note_deleted(plan)
    _note_missing_parents(plan)
    return plan


def _orphaned(orphans: Counter[str]) -> Iterator[Problem]:
    for experiment, count in orphans.items():
        message = f"{plural(count, 'run')} left out: the record of the experiment {experiment} that they belong to is lost"
        yield Problem(code="owner-left-out", kind="run", message=message, experiments=(experiment,))


class _Existing:
    """The experiments of a target, by name and by the archived experiments that they are restores of."""

    def __init__(self, target: MlflowTarget, homes: Homes) -> None:
        self._by_name: dict[tuple[str, str], TargetExperiment] = {}
        self._by_origin: defaultdict[tuple[object, ...], list[TargetExperiment]] = defaultdict(list)
        for found in target.experiments():
            home = found.workspace or DEFAULT_WORKSPACE if homes.offered else ""
            self._by_name[home, found.name] = found
            if found.source_id is not None:
                self._by_origin[home, found.source_id].append(found)
            if found.creation_time is not None:
                self._by_origin[home, found.experiment_id, found.creation_time].append(found)

    def named(self, name: str, home: str) -> TargetExperiment | None:
        """The one of this name."""
        return self._by_name.get((home, name))

    def restored(self, experiment: Experiment, home: str) -> TargetExperiment | None:
        """The one that is a restore of an archived one: that of the same name, an active one, or any of them."""
        origins = [(home, experiment.experiment_id), (home, experiment.experiment_id, experiment.creation_time)]
        found = [one for origin in origins for one in self._by_origin.get(origin, ())]
        return min(found, key=lambda one: (one.name != experiment.name, one.lifecycle_stage == "deleted"), default=None)


def _placements(
    target: MlflowTarget, experiments: Sequence[Experiment], names: Mapping[str, str], homes: Homes
) -> tuple[dict[str, Placement], list[Problem], list[str]]:
    """Where each experiment goes, by archived id, why some cannot go there, and which have another name there.

    One that an earlier unpack restored is found again whatever its name is, at either end, unless it is to have another one.
    """
    existing = _Existing(target, homes)
    named = [Named(e.experiment_id, names[e.experiment_id], e.workspace) for e in experiments]
    keepers = {loser.id: keeper for loser, keeper in homes.collisions(named)}
    again = {
        e.experiment_id: found
        for e in experiments
        if names[e.experiment_id] == e.name and (found := existing.restored(e, homes.of(e.workspace)))
    }
    owners = {found.experiment_id: source for source, found in again.items()}
    placements: dict[str, Placement] = {}
    problems: list[Problem] = []
    notes: list[str] = []
    for experiment in experiments:
        source, home = experiment.experiment_id, homes.of(experiment.workspace)
        name, found = names[source], again.get(source)
        if found is not None and found.name != name:
            notes.append(
                f"the experiment {name!r} is called {found.name!r} at the target, where it was restored: it keeps that name"
            )
            name = found.name
        elif keeper := keepers.get(source):
            placements[source] = Placement(experiment, name, "refused", workspace=home)
            problems.append(_collision(experiment, name, keeper))
            continue
        found = found or existing.named(name, home)
        if found is not None and owners.get(found.experiment_id, source) != source:
            placements[source] = Placement(experiment, name, "refused", workspace=home)
            problems.append(_taken(experiment, name))
            continue
        placements[source] = _place(experiment, name, home, found)
        if placements[source].action == "refused":
            problems.append(_deleted_at_target(placements[source]))
        problems += target.cannot_hold_experiment(replace(experiment, name=name))
    return placements, problems, notes


def _refused(experiment: Experiment, code: str, message: str) -> Problem:
    """Why an experiment cannot be placed."""
    source = experiment.experiment_id
    return Problem(code=code, kind="experiment", id=source, message=message, experiments=(source,))


def _taken(experiment: Experiment, name: str) -> Problem:
    message = (
        f"the experiment {name!r} of the target is a restore of another archived one, which has another name now: rename"
        f" this one ('{experiment.name}=OTHER')"
    )
    return _refused(experiment, "experiment-name-taken", message)


def _collision(experiment: Experiment, name: str, keeper: Named) -> Problem:
    home = experiment.workspace or DEFAULT_WORKSPACE
    message = (
        f"the experiment {name!r} of the workspace {home!r} is left out, because the one of the workspace {keeper.home!r}"
        f" gets this name: rename it ('{home}/{experiment.name}=OTHER'), or restore it into another workspace"
    )
    return _refused(experiment, "name-collision", message)


def _moved(experiments: Sequence[Experiment], homes: Homes) -> list[str]:
    """What is worth knowing of the workspaces that experiments go to."""
    homeless = sorted({e.workspace for e in experiments if e.workspace and homes.of(e.workspace) != e.workspace})
    if not homes.offered:
        homeless = [name for name in homeless if name != DEFAULT_WORKSPACE]
    place = f"go to the workspace {homes.wanted!r}" if homes.offered else "are in one place here: the target has no workspaces"
    return [f"the experiments of the workspace {name!r} {place}" for name in homeless]


def _renamed(experiments: Sequence[Experiment], rename: Mapping[str, str]) -> dict[str, str]:
    """The name at the target of each experiment, by archived id. One of a workspace may be called ``workspace/name``."""
    in_place = {e.experiment_id: f"{e.workspace or DEFAULT_WORKSPACE}/{e.name}" for e in experiments}
    known = [*in_place.values(), *(e.name for e in experiments)]
    for old in rename:
        if old not in known:
            close = difflib.get_close_matches(old, known, n=3, cutoff=0.5)
            raise NotFoundError(
                f"cannot rename {old!r}: no such experiment is selected",
                code="experiment-not-found",
                close=close,
                known=[e.name for e in experiments],
            )
    names = {e.experiment_id: rename.get(in_place[e.experiment_id], rename.get(e.name, e.name)) for e in experiments}
    places = Counter((e.workspace or DEFAULT_WORKSPACE, names[e.experiment_id]) for e in experiments)
    twice = [name for (_, name), count in places.items() if count > 1]
    if twice:
        raise UsageError(f"two experiments would be named {twice[0]!r} at the target", hint="choose other names to rename to")
    return names


def _place(experiment: Experiment, name: str, home: str, found: TargetExperiment | None) -> Placement:
    """A free name is created; an active experiment of that name gets the runs; a deleted one only if it is the same one."""
    if found is None:
        return Placement(experiment, name, "created", workspace=home)
    if found.lifecycle_stage == "deleted" and not _same(experiment, found):
        return Placement(experiment, name, "refused", found, workspace=home)
    return Placement(experiment, name, "merged", found, found.experiment_id, workspace=home)


def _same(experiment: Experiment, found: TargetExperiment) -> bool:
    """Whether an experiment, found at the target by its name or as a restore, is this one: by its source tags, or by its
    creation where that is kept. Its id may have been taken there."""
    created = found.creation_time
    return found.source_id == experiment.experiment_id or (created is not None and created == experiment.creation_time)


def _deleted_at_target(placement: Placement) -> Problem:
    message = f"the target has a deleted experiment named {placement.name!r}: rename this one, or restore or purge that one"
    return _refused(placement.experiment, "experiment-deleted-at-target", message)


def _refused_keys(bundle: Bundle, target: MlflowTarget, run_ids: Sequence[str]) -> list[Problem]:
    """One problem for each metric key that the target refuses, with the runs that have it."""
    latest = latest_metrics(bundle, run_ids)
    refused = {key: why for key in latest["key"].unique().to_pylist() if (why := target.cannot_hold_key(key))}
    if not refused:
        return []
    bad = latest.filter(pc.is_in(latest["key"], value_set=pa.array(list(refused), pa.string())))
    owners: dict[str, list[str]] = defaultdict(list)
    for run, key in zip(bad["run_id"].to_pylist(), bad["key"].to_pylist(), strict=True):
        owners[key].append(run)
    return [
        Problem(
            code="metric-key-refused",
            kind="metric",
            id=key,
            message=f"metric {key!r} of {len(runs):,} runs: {refused[key]}",
            runs=tuple(runs),
        )
        for key, runs in owners.items()
    ]


def _unreadable(bundle: Bundle, run_ids: Sequence[str]) -> list[Problem]:
    """One problem for each selected file that a partial snapshot lacks."""
    if bundle.snapshot.state == "complete":
        return []
    selected = set(run_ids)
    return [
        Problem(
            code="not-in-archive",
            kind=problem.kind,
            id=problem.id,
            path=problem.path,
            message=f"the snapshot is partial: {problem.message}",
            experiments=problem.experiments,
            runs=problem.runs,
        )
        for problem in bundle.snapshot.problems
        if not problem.runs or selected & set(problem.runs)
    ]


def _find_restored(plan: Plan, target: MlflowTarget) -> None:
    """Ask the target which of the runs, and of the parents outside of the selection, it has already."""
    outside = sorted(set(plan.parents.values()) - set(plan.run_ids))
    by_experiment: dict[str, list[str]] = defaultdict(list)
    for run in plan.runs():
        by_experiment[run.experiment_id].append(run.run_id)
    for placement in plan.placements.values():
        wanted = [*by_experiment.get(placement.experiment.experiment_id, ()), *outside]
        if placement.existing is not None and wanted:
            plan.note_there(placement, target.restored_runs(placement.existing.experiment_id, wanted))


def _note_deleted(plan: Plan) -> None:
    """Runs that an earlier restore made, and that nothing is to be done for, stay deleted where somebody deleted them since."""
    gone = {source for placement in plan.placements.values() for source, run in placement.there.items() if run.deleted}
    stay = [run.run_id for run in plan.runs() if run.run_id in gone and plan.is_current(run)] if gone else []
    if stay:
        plan.notes.append(
            f"{len(stay):,} runs that an earlier unpack restored were deleted at the target since: they stay deleted there"
            f" (for example run {stay[0]})"
        )


def _note_missing_parents(plan: Plan) -> None:
    selected = set(plan.run_ids)
    orphans = [run for run, parent in plan.parents.items() if parent not in selected and plan.there(parent) is None]
    if orphans:
        plan.notes.append(
            f"{len(orphans):,} runs name a parent run that is neither in the archive nor at the target;"
            f" they keep the tag as it was (for example run {orphans[0]})"
        )
