"""The second half of an unpack: all kinds but experiments and runs, kind after kind, references rewritten on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._series import segments
from mlflow_bundle.entities import ModelVersion, Record
from mlflow_bundle.kinds import KINDS, Reference, record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._gather import Gathered
from mlflow_bundle.tracking._left_out import LeftOut, name_collisions
from mlflow_bundle.tracking._port import LEFT_OUT, EntityResult, IdMap, MlflowTarget, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking._workspaces import Homes

__all__ = ["EntityOutcome", "EntityRestore", "entity_problems", "in_restore_order"]

_BATCH: Final = 500
_FILES: Final = "files/1"
#: Of secrets only the names are archived, and no target gets them.
_SECRETS: Final = "gateway_secret"
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


def entity_problems(gathered: Gathered, target: MlflowTarget, left_out: LeftOut, homes: Homes) -> list[Problem]:
    """What of the entities the target cannot hold, found out before the first write: names, whole kinds, then records.

    What does not arrive at all is added to ``left_out``.
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
            problems += found
            if any(problem.code == LEFT_OUT for problem in found):
                left_out.add(kind, record_id(record))
        problems += left_out.problems(kind, without)
    return problems


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
        self._tallies: dict[str, _Tally] = {}
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
        for batch in self._batches(kind):
            sent = self._arriving(kind, batch, without)
            results = self._target.restore_entities(
                kind, self._planned(kind, sent), self._ids, self._archive.blobs.open, self._options
            )
            for result in results:
                self.take(result)
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

    def take(self, result: EntityResult) -> None:
        """Count a result."""
        tally = self._tallies.setdefault(result.kind, _Tally())
        tally.actions[result.action] += 1
        if result.target_id is not None:
            self._ids.add(result.kind, result.source_id, result.target_id)
        if result.action in ("failed", "left out"):
            self._left_out.add(result.kind, result.source_id)
        if result.action in ("restored", "merged"):
            tally.rows += result.rows
            tally.files += result.files
            tally.file_bytes += result.file_bytes
        self.note(result)

    def note(self, result: EntityResult) -> None:
        """Keep what a result says, and count nothing: of links, which belong to entities that are counted already."""
        self.problems += result.problems
        self.notes.update(result.notes)

    def _batches(self, kind: str) -> Iterator[list[Record]]:
        if kind == "model_version":
            yield from self._versions()
            return
        batch: list[Record] = []
        for record in self._gathered.records(kind):
            batch.append(record)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _versions(self) -> Iterator[list[Record]]:
        """Model versions, all of one model together and in the order of their numbers, which is how a server counts."""
        records = [record for record in self._gathered.records("model_version") if isinstance(record, ModelVersion)]
        records.sort(key=lambda version: (record_id(version).rpartition("/")[0], version.version))
        batch: list[Record] = []
        for number, record in enumerate(records):
            ends = number + 1 == len(records) or (records[number + 1].name, records[number + 1].workspace) != (
                record.name,
                record.workspace,
            )
            batch.append(record)
            if (ends and len(batch) >= _BATCH // 2) or number + 1 == len(records):
                yield batch
                batch = []

    def _planned(self, kind: str, batch: Sequence[Record]) -> list[PlannedEntity]:
        """Records with their rows and files."""
        ids = [record_id(record) for record in batch]
        tables = KINDS[kind].tables
        rows: dict[int, pa.Table] = {}
        for table in tables:
            if table != _FILES:
                rows = _by_owner(self._archive.rows(table, ids))
        files: dict[str, list[tuple[str, int, str]]] = {identity: [] for identity in ids}
        if _FILES in tables:
            for row in self._files_of(kind, ids):
                if row["state"] == "ok":
                    files[row["owner_id"]].append((row["path"], row["size"], row["sha256"]))
        return [
            PlannedEntity(record=record, rows=rows.get(number), files=tuple(files[identity]))
            for number, (record, identity) in enumerate(zip(batch, ids, strict=True))
        ]

    def _files_of(self, kind: str, ids: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._archive.files_of_entities(kind, ids).to_pylist()
        return found

    def outcomes(self) -> tuple[EntityOutcome, ...]:
        """The counts so far, for every kind that was selected."""
        found = []
        for kind in self._gathered.kinds():
            tally = self._tallies.get(kind, _Tally())
            found.append(
                EntityOutcome(
                    kind=kind,
                    selected=self._gathered.counts[kind],
                    restored=tally.actions["restored"],
                    there=tally.actions["there"],
                    merged=tally.actions["merged"],
                    left_out=tally.actions["left out"],
                    failed=tally.actions["failed"],
                    rows=tally.rows,
                    files=tally.files,
                    file_bytes=tally.file_bytes,
                )
            )
        return tuple(found)


def _is_default_workspace(gathered: Gathered, kind: str) -> bool:
    """Whether there is just the workspace that every server has, named or not."""
    return kind == "workspace" and [record_id(record) for record in gathered.records(kind)] == ["default"]


def _by_owner(tables: Iterator[pa.Table]) -> dict[int, pa.Table]:
    """The rows of each owner as one table without the owner column. An owner may span several tables."""
    parts: dict[int, list[pa.Table]] = {}
    for table in tables:
        rows = table.drop_columns(["owner"])
        for owner, start, end in segments(table.column("owner").combine_chunks().to_numpy()):
            parts.setdefault(owner, []).append(rows.slice(start, end - start))
    return {owner: pa.concat_tables(tables) for owner, tables in parts.items()}
