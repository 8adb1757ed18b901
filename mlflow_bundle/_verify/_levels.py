"""Verification: what every level checks, and the report (spec/v1.md, section 11)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from mlflow_bundle import _layout
from mlflow_bundle._html import Shown
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._manifest import Committed, find_snapshot, is_meant, may_be_meant, read_marker, snapshot_stems
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._storage import Storage
from mlflow_bundle._text import plural
from mlflow_bundle._verify._checks import TablesCheck
from mlflow_bundle._verify._contents import jobs
from mlflow_bundle._verify._findings import Findings, code_of
from mlflow_bundle._verify._objects import Objects
from mlflow_bundle._verify._structure import (
    Documents,
    check_document,
    check_extras,
    check_marker,
    list_objects,
    read_documents,
)
from mlflow_bundle._verify._table_facts import EXTENTS, Extents
from mlflow_bundle._verify._touched import touch
from mlflow_bundle.errors import BundleError, CorruptError, LimitError, NotFoundError, UsageError
from mlflow_bundle.records import Marker, ObjectRef, Problem

__all__ = ["Level", "Report", "unreadable_report", "verify_snapshot", "verify_storage"]

Level = Literal["structure", "tables", "full"]

_CONTENTS: Final = (_layout.PACKS, _layout.BLOBS)
_THREADS: Final = min(4, (os.cpu_count() or 1) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Shown):
    """What a verification found.

    ``problems``: the bundle is not what it should be; ``warnings``: it is whole, and somebody should look. ``snapshot`` and
    ``root_digest`` name the newest snapshot that was checked (empty: none could be read), ``snapshots`` all of them.
    ``not_covered`` says in words what was not checked, by the level or because something is damaged.
    """

    snapshot: str
    root_digest: str
    snapshots: tuple[str, ...]
    level: str
    subset: tuple[int, int] | None
    objects_checked: int
    bytes_checked: int
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    not_covered: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is no problem. Warnings do not count."""
        return not self.problems

    def require_ok(self, url: str, *, hint: str = "`mlflow-bundle verify` lists all of it") -> None:
        """Raise for what was found in the bundle at ``url``.

        Raises:
            CorruptError: there are problems; the first one is named.
        """
        if self.problems:
            more = f", and {len(self.problems) - 1:,} more" if len(self.problems) > 1 else ""
            raise CorruptError(f"{url} is damaged: {self.problems[0].message}{more}", hint=hint)


def verify_snapshot(
    storage: Storage,
    committed: Committed,
    *,
    level: str = "full",
    subset: tuple[int, int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Check one snapshot; see ``verify_storage``."""
    return verify_storage(storage, snapshot=committed.stem, level=level, subset=subset, limits=limits)


def verify_storage(
    storage: Storage,
    *,
    snapshot: str | None = None,
    level: str = "full",
    subset: tuple[int, int] | None = None,
    all_snapshots: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Check a snapshot, by default the newest that is whole, or ``all_snapshots`` with each object read once.

    ``level``: ``structure`` checks the documents, and that every listed object is there with its size; ``tables`` also the
    bytes of all records and tables, and whether they agree; ``full`` also every byte of packs and blobs, and every content.
    ``subset`` (k, n), for ``full``, checks the k-th of n parts of the packs and blobs, so that n runs cover all.

    Nothing is changed, and no problem ends the check: problems are returned.

    Raises:
        BundleNotFoundError, NotFoundError: there is no bundle, or no such snapshot.
        UsageError: an unknown level, or a subset that is none.
        StorageError: the storage cannot be listed.
    """
    _check_arguments(level, subset, snapshot, all_snapshots=all_snapshots)
    return _Verification(storage, level, subset, limits, all_snapshots=all_snapshots).run(snapshot)


def _check_arguments(level: str, subset: tuple[int, int] | None, snapshot: str | None, *, all_snapshots: bool) -> None:
    if level not in get_args(Level):
        raise UsageError(f"there is no level {level!r}", hint=f"levels are {', '.join(get_args(Level))}")
    if subset is not None and not 1 <= subset[0] <= subset[1]:
        raise UsageError(f"there is no part {subset[0]} of {subset[1]}")
    if subset is not None and level != "full":
        raise UsageError("a subset is a part of the bytes of packs and blobs, which only the level 'full' reads")
    if all_snapshots and snapshot is not None:
        raise UsageError("all snapshots, or one of them: not both")


class _Verification:
    """One run over a bundle."""

    def __init__(
        self, storage: Storage, level: str, subset: tuple[int, int] | None, limits: Limits, *, all_snapshots: bool
    ) -> None:
        self._started = time.monotonic()
        self._storage, self._level, self._subset, self._limits = storage, level, subset, limits
        self._all = all_snapshots

    def run(self, wanted: str | None) -> Report:
        findings = Findings()
        for sentence in self._storage_damage():
            findings.add("E070", sentence)
        if not snapshot_stems(self._storage) and not findings.has("E070"):
            read_marker(self._storage, limits=self._limits)
            find_snapshot(self._storage, wanted, limits=self._limits)
        marker = check_marker(self._storage, findings, self._limits)
        if self._level == "full":
            self._check_readme(findings)
        documents = read_documents(self._storage, findings, self._limits)
        chosen = self._choose(documents, wanted)
        objects = Objects(self._storage, self._storage.list(""), self._limits, keep=self._all)
        rounds = [findings]
        union: dict[str, ObjectRef] = {}
        indexes = []
        for committed in chosen:
            rounds.append(Findings())
            refs, check = self._check(objects, committed, marker, rounds[-1])
            union |= {ref.path: ref for ref in refs}
            if check is not None:
                indexes.append((check.index.paths, check.index.extents))
        if self._level == "full":
            rounds.append(Findings())
            self._check_contents(objects, list(union.values()), indexes, rounds[-1])
        self._check_extras(objects, documents, findings)
        return self._report(objects, documents, chosen, rounds)

    def _storage_damage(self) -> list[str]:
        try:
            return list(self._storage.damage())
        except BundleError as error:
            return [error.message]

    def _check_readme(self, findings: Findings) -> None:
        """Nothing but the one-file form, with its CRC-32, vouches for the README."""
        try:
            self._storage.read(_layout.README)
        except NotFoundError:
            return
        except BundleError as error:
            findings.add(code_of(error, "E070"), error.message, object=_layout.README)

    def _choose(self, documents: Documents, wanted: str | None) -> list[Committed]:
        if self._all or wanted is None:
            return documents.whole if self._all else documents.whole[:1]
        stems = may_be_meant(snapshot_stems(self._storage), wanted)
        chosen = [committed for committed in documents.whole if committed.stem in stems]
        if len(stems) != 1 or not all(is_meant(committed, wanted) for committed in chosen):
            find_snapshot(self._storage, wanted, limits=self._limits)  # and says so
        return chosen

    def _check(
        self, objects: Objects, committed: Committed, marker: Marker | None, findings: Findings
    ) -> tuple[list[ObjectRef], TablesCheck | None]:
        """All but the bytes of packs and blobs."""
        check_document(self._storage, committed, marker, findings)
        refs, whole = list_objects(objects, committed, findings)
        check = None
        if not whole:
            findings.state("what the object lists name: they could not be used")
        elif self._level != "structure":
            check = TablesCheck(objects, committed, refs, findings)
            check.run()
        touch(objects, refs, check.index.lost if check else {}, objects.damaged, findings)
        return refs, check

    def _check_contents(
        self, objects: Objects, refs: Sequence[ObjectRef], indexes: Sequence[tuple[list[str], Extents]], findings: Findings
    ) -> None:
        """The bytes of packs and blobs, each once, whatever the number of snapshots."""
        contents = objects.sound([ref for ref in refs if ref.role in _CONTENTS])
        extents, paths = _joined(indexes)
        todo = jobs(contents, extents, paths, self._subset)
        lost: dict[tuple[str, str], set[str]] = defaultdict(set)
        with ThreadPoolExecutor(_THREADS, "mlflow-bundle-verify") as executor:
            for outcome in bounded_map(executor, lambda job: job.run(self._storage, self._limits), todo, _THREADS):
                objects.count += outcome.objects
                objects.bytes += outcome.bytes
                for note in outcome.notes:
                    findings.add(note.code, note.message, object=note.object)
                    lost[note.code, note.object].update(note.contents)
        touch(objects, refs, lost, (), findings)

    def _check_extras(self, objects: Objects, documents: Documents, findings: Findings) -> None:
        listed: set[str] | None = set()
        for committed in documents.whole:
            refs = [*committed.snapshot.objects, *committed.snapshot.object_lists]
            for _, lines in objects.lines(committed.snapshot.object_lists, Findings()):
                refs += lines or ()
                listed = listed if lines is not None else None
            if listed is None:
                break
            listed.update(ref.path for ref in refs)
        check_extras(objects, listed if documents.all_whole else None, findings, deep=self._level == "full")

    def _report(
        self, objects: Objects, documents: Documents, chosen: Sequence[Committed], rounds: Sequence[Findings]
    ) -> Report:
        found: dict[tuple[str, str, str], Problem] = {}
        for findings in rounds:
            for problem in findings.problems():
                found.setdefault((problem.code, problem.object, problem.kind), problem)
        problems = sorted(found.values(), key=lambda problem: (problem.code, problem.object))
        return Report(
            snapshot=chosen[0].stem if chosen else "",
            root_digest=chosen[0].digest if chosen else "",
            snapshots=tuple(committed.stem for committed in chosen),
            level=self._level,
            subset=self._subset,
            objects_checked=objects.count,
            bytes_checked=objects.bytes,
            problems=tuple(problem for problem in problems if problem.code.startswith("E")),
            warnings=tuple(problem for problem in problems if problem.code.startswith("W")),
            not_covered=tuple(dict.fromkeys([*self._limits_of(documents, chosen), *_statements(rounds)])),
            seconds=time.monotonic() - self._started,
        )

    def _limits_of(self, documents: Documents, chosen: Sequence[Committed]) -> list[str]:
        """What the level does not cover."""
        sentences = {
            "structure": ["the bytes of objects: only that they are there with their sizes"],
            "tables": ["the bytes of packs and blobs, and the contents of files"],
            "full": [],
        }[self._level]
        if self._subset:
            sentences.append(f"the packs and blobs of the other {self._subset[1] - 1:,} of {self._subset[1]:,} parts")
        if not chosen:
            sentences.append("any snapshot: none could be used")
        if not documents.all_whole:
            sentences.append("whether objects are listed by no snapshot: not all snapshots could be read")
        if others := len(documents.whole) - len(chosen):
            sentences.append(f"what is only in the other {plural(others, 'snapshot')}")
        return [*sentences, f"{_layout.README}, on which nothing depends"]


def _joined(indexes: Sequence[tuple[list[str], Extents]]) -> tuple[Extents, list[str]]:
    """The extents of several snapshots, each once, and the paths that they number."""
    numbers: dict[str, int] = {}
    parts = [np.empty(0, EXTENTS)]
    for names, extents in indexes:
        part = extents.copy()
        part["object"] = np.array([*(numbers.setdefault(name, len(numbers)) for name in names), 0], np.int32)[extents["object"]]
        parts.append(part)
    return (np.concatenate(parts) if len(indexes) < 2 else np.unique(np.concatenate(parts))), list(numbers)


def _statements(rounds: Sequence[Findings]) -> list[str]:
    return [sentence for findings in rounds for sentence in findings.statements]


def unreadable_report(error: CorruptError | LimitError, *, level: str) -> Report:
    """The report of a bundle in one file that cannot even be opened."""
    code = code_of(error, "E071")
    return Report(
        snapshot="",
        root_digest="",
        snapshots=(),
        level=level,
        subset=None,
        objects_checked=0,
        bytes_checked=0,
        problems=(Problem(code=code, message=error.message),),
        warnings=(),
        not_covered=("everything: the file cannot be opened",),
        seconds=0.0,
    )
