"""The second half of an unpack: all kinds but experiments and runs, kind after kind, references rewritten on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._series import segments
from mlflow_bundle.entities import Record
from mlflow_bundle.kinds import KINDS, Reference, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._batches import batches, planned
from mlflow_bundle.tracking._content_digest import ContentDigests
from mlflow_bundle.tracking._damage import losses
from mlflow_bundle.tracking._gather import Gathered
from mlflow_bundle.tracking._left_out import LeftOut, name_collisions
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    LEFT_OUT,
    NOT_RESTORED,
    ROW_SCHEMAS,
    EntityResult,
    IdMap,
    MlflowTarget,
    RestoreOptions,
)
from mlflow_bundle.tracking._workspaces import Homes

__all__ = ["EntityOutcome", "EntityRestore", "entity_problems", "in_restore_order"]

#: Of secrets only the names are archived, and no target gets them.
_SECRETS: Final = "gateway_secret"
_FIRST: Final = ("experiment", "run")
#: A scorer that asks an endpoint of the gateway cannot be made before that.
_BEFORE_SCORERS: Final = (_SECRETS, "gateway_model_definition", "gateway_endpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOutcome:
    """What became of the entities of one kind, counted from what was read back. Sizes are bytes."""

    kind: str
    selected: int
    restored: int = 0
    there: int = 0
    merged: int = 0
    left_out: int = 0
    failed: int = 0
    rows: int = 0
    files: int = 0
    file_bytes: int = 0


@dataclass(slots=True)
class _Tally:
    actions: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    files: int = 0
    file_bytes: int = 0


def in_restore_order(kinds: Iterable[str]) -> list[str]:
    """Kinds in the order in which they are restored: that of their rank, but the gateway comes before what asks it."""
    scorer = KINDS["scorer"].rank
    return sorted(kinds, key=lambda kind: (scorer - 1 if kind in _BEFORE_SCORERS else KINDS[kind].rank, KINDS[kind].rank))


def entity_problems(
    archive: Bundle,
    gathered: Gathered,
    target: MlflowTarget,
    left_out: LeftOut,
    homes: Homes,
    *,
    existing: Mapping[str, str],
) -> list[Problem]:
    """What of the entities the target cannot hold, found out before the first write: names, whole kinds, then records.

    What does not arrive at all is added to ``left_out``. ``existing``: the ids at the target of archived experiments that are
    merged into one that is there, where names within it may be taken.
    """
    problems = name_collisions(gathered, homes)
    for problem in problems:
        left_out.add(problem.kind, problem.id)
    offered = target.kinds()
    for kind in in_restore_order(gathered.kinds()):
        if kind not in offered and (kind == _SECRETS or _is_default_workspace(gathered, kind)):
            continue
        if kind not in offered:
            problems.append(
                Problem(
                    code="kind-not-held",
                    kind=kind,
                    message=f"{gathered.counts[kind]:,} {kind} records: {target.description.uri} has no place for them",
                )
            )
            continue
        without: Counter[Reference] = Counter()
        for record in gathered.records(kind):
            if kind == "workspace" and not homes.keeps(record_id(record)):
                continue
            if reason := left_out.because_of(record):
                without[reason] += 1
                left_out.add(kind, record_id(record))
                continue
            found = target.cannot_hold(record)
            if len(there := KINDS[kind].experiments(record)) == 1 and there[0] in existing:
                found += _taken(target, record, existing[there[0]])
            problems += found
            if any(problem.code == LEFT_OUT for problem in found):
                left_out.add(kind, record_id(record))
        problems += left_out.problems(kind, without)
        problems += _row_problems(archive, gathered, target, left_out, kind)
    return problems


def _row_problems(archive: Bundle, gathered: Gathered, target: MlflowTarget, left_out: LeftOut, kind: str) -> Iterator[Problem]:
    """What of the rows of a kind the target would refuse, read in columns; each owner alone only where there is something."""
    for table in KINDS[kind].tables:
        limits = target.row_limits(table) if table in ROW_SCHEMAS else None
        for batch in batches(gathered, kind) if limits else ():
            ids = [record_id(record) for record in batch if left_out.because_of(record) is None]
            for rows in archive.rows(table, ids):
                assert limits is not None
                for owner, start, end in segments(rows.column("owner").combine_chunks().to_numpy()) if limits(rows) else ():
                    for sentence in limits(rows.slice(start, end - start)):
                        message = f"{kind.replace('_', ' ')} {ids[owner]}: {sentence}"
                        yield Problem(code=CANNOT_HOLD, kind=kind, id=ids[owner], message=message)


def _taken(target: MlflowTarget, record: Record, experiment_id: str) -> list[Problem]:
    """That the name of the entity, unique within an experiment, is taken there by another one."""
    if not (why := target.name_taken(record, experiment_id)):
        return []
    kind, identity = str(record.__struct_config__.tag), record_id(record)
    message = f"{kind.replace('_', ' ')} {identity}: it is left out: {why}"
    return [Problem(code=LEFT_OUT, kind=kind, id=identity, message=message, experiments=KINDS[kind].experiments(record))]


def _named_nowhere(record: Record, names: Iterable[Reference]) -> Iterator[Problem]:
    """A problem for each other entity that an archived one names and the target has not."""
    kind, identity = str(record.__struct_config__.tag), record_id(record)
    for other, name in names:
        message = (
            f"{kind.replace('_', ' ')} {identity}: it names the {other.replace('_', ' ')} {name}, which is lost or left out"
        )
        experiments = KINDS[kind].experiments(record)
        yield Problem(code=NOT_RESTORED, kind=kind, id=identity, message=message, experiments=experiments)


class EntityRestore:
    """Restores the gathered entities of an archive and tallies the results."""

    def __init__(
        self,
        archive: Bundle,
        target: MlflowTarget,
        gathered: Gathered,
        *,
        ids: IdMap,
        options: RestoreOptions,
        left_out: LeftOut,
        homes: Homes,
    ) -> None:
        self._archive, self._target, self._gathered = archive, target, gathered
        self._ids, self._options = ids, options
        self._left_out, self._homes = left_out, homes
        self._digests = ContentDigests(archive)
        #: The kinds of which records are lost.
        self._lost = {kind for kind in KINDS if archive.reader.lost_records(kind)}
        self._tallies: dict[str, _Tally] = {}
        #: What became of entities that are at the target and were not restored now.
        self._otherwise: dict[Reference, str] = {}
        self.problems: list[Problem] = []
        self.notes: Counter[str] = Counter()

    def restore(self, kind: str, progress: Callable[[int], object]) -> None:
        """Restore all entities of one kind, batch by batch."""
        tally = self._tallies.setdefault(kind, _Tally())
        if kind == _SECRETS and kind not in self._target.kinds():
            tally.actions["left out"] += self._gathered.counts[kind]
            names = ", ".join(sorted(str(getattr(record, "secret_name", "")) for record in self._gathered.records(kind)))
            self.notes[f"secrets of the gateway are never archived; type them in again: {names}"] += 1
            return
        if kind not in self._target.kinds():
            if _is_default_workspace(self._gathered, kind):
                tally.actions["there"] += 1
                return
            tally.actions["left out"] += self._gathered.counts[kind]
            return
        without: Counter[Reference] = Counter()
        for batch in batches(self._gathered, kind):
            for piece in planned(self._archive, self._digests, kind, self._arriving(kind, batch, without)):
                open_blob = self._archive.blobs.open
                nowhere = [self._nowhere(plan.record, plan.rows) for plan in piece]
                broken = {
                    record_id(plan.record): [*losses(self._archive, plan.record), *_named_nowhere(plan.record, names)]
                    for plan, names in zip(piece, nowhere, strict=True)
                }
                sent = [
                    replace(plan, digest=self._digests.without(plan.digest, names))
                    for plan, names in zip(piece, nowhere, strict=True)
                ]
                for result in self._target.restore_entities(kind, sent, self._ids, open_blob, self._options):
                    self.take(result, broken[result.source_id])
            progress(len(batch))
        self.problems += self._left_out.problems(kind, without)

    def _arriving(self, kind: str, batch: Sequence[Record], without: Counter[Reference]) -> list[Record]:
        """The records of a batch without those that are left out, which are counted here and by reason in ``without``."""
        if kind == "workspace":
            kept = [record for record in batch if self._homes.keeps(record_id(record))]
            if len(kept) != len(batch):
                self.notes[f"archived workspaces are not made, because everything goes into {self._homes.wanted!r}"] += 1
                self._tallies[kind].actions["left out"] += len(batch) - len(kept)
            return kept
        reasons = [self._left_out.because_of(record) for record in batch]
        counts = Counter(reason for reason in reasons if reason is not None)
        self._tallies[kind].actions["left out"] += counts.total()
        without.update(counts)
        return [record for record, reason in zip(batch, reasons, strict=True) if reason is None]

    def leave_out(self, kind: str, identity: str) -> None:
        """Leave out what belongs to this one, which the target does not have."""
        self._left_out.add(kind, identity)

    def _nowhere(self, record: Record, rows: pa.Table | None = None) -> list[Reference]:
        """What a record and its rows name, and the target has not, because its record is lost, or that of its experiment. Where
        ids are kept, such names lead there as soon as that arrives."""
        if self._target.keeps_ids or not self._lost:
            return []
        names = set(KINDS[str(record.__struct_config__.tag)].references(record))
        if rows is not None and "run_id" in rows.column_names:
            names |= {("run", run) for run in rows.column("run_id").unique().to_pylist()}
        return sorted(name for name in names if self._ids.find(*name) is None and self._is_lost(*name))

    def _is_lost(self, kind: str, identity: str) -> bool:
        return self._left_out.has(kind, identity) or (kind == "run" and "experiment" in self._lost)

    def take(self, result: EntityResult, broken: Sequence[Problem] = ()) -> None:
        """Count a result. What is ``broken`` of it is told, and it does not count as restored; what belongs to it goes on."""
        result.problems += broken
        if result.action in ("failed", "left out"):
            self._left_out.add(result.kind, result.source_id)
        elif broken:
            result.action = self._otherwise[result.kind, result.source_id] = "failed"
        elif result.action != "restored":
            self._otherwise[result.kind, result.source_id] = result.action
        tally = self._tallies.setdefault(result.kind, _Tally())
        tally.actions[result.action] += 1
        if result.target_id is not None:
            self._ids.add(result.kind, result.source_id, result.target_id)
        if result.action in ("restored", "merged"):
            tally.rows += result.rows
            tally.files += result.files
            tally.file_bytes += result.file_bytes
        self.note(result)

    def finish(self, result: EntityResult) -> None:
        """Keep what was found out of an entity after it was counted: one that fails in the end counts as failed."""
        self.note(result)
        if result.action != "failed" or self._left_out.has(result.kind, result.source_id):
            return
        actions = self._tallies.setdefault(result.kind, _Tally()).actions
        actions[self._otherwise.get((result.kind, result.source_id), "restored")] -= 1
        actions["failed"] += 1
        self._left_out.add(result.kind, result.source_id)

    def note(self, result: EntityResult) -> None:
        """Keep what a result says, and count nothing: of links, which belong to entities that are counted already."""
        self.problems += result.problems
        self.notes.update(result.notes)

    def outcomes(self, lost: Mapping[str, int] = MappingProxyType({}), *, dry_run: bool = False) -> tuple[EntityOutcome, ...]:
        """The counts so far, for every kind that was selected; records of a kind that are ``lost`` failed."""
        found = []
        counts = {kind: self._gathered.counts.get(kind, 0) + lost.get(kind, 0) for kind in KINDS if kind not in _FIRST}
        for kind in (kind for kind, count in counts.items() if count):
            tally = self._tallies.get(kind, _Tally())
            found.append(
                EntityOutcome(
                    kind=kind,
                    selected=counts[kind],
                    restored=tally.actions["restored"],
                    there=tally.actions["there"],
                    merged=tally.actions["merged"],
                    left_out=tally.actions["left out"],
                    failed=tally.actions["failed"] + (0 if dry_run else lost.get(kind, 0)),
                    rows=tally.rows,
                    files=tally.files,
                    file_bytes=tally.file_bytes,
                )
            )
        return tuple(found)


def _is_default_workspace(gathered: Gathered, kind: str) -> bool:
    """Whether there is just the workspace that every server has, named or not."""
    return kind == "workspace" and [record_id(record) for record in gathered.records(kind)] == ["default"]
