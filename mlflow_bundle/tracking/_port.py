"""What a source and a target of MLflow content must be able to do. Everything else of the package is neutral to them.

Experiments and runs, which have filters, series and merging, have methods of their own; every other kind of record takes
one road: ``entities`` and ``rows`` on the way out, ``cannot_hold`` and ``restore_entities`` on the way in.

A source turns a server or a database into records, columns of metric points, and files; a target does the reverse.
Tables of ``SERIES_SCHEMA`` travel between them: columns ``owner`` (int32, index into the run ids that were asked for), ``key``
(string), ``step`` (int64), ``timestamp`` (int64, milliseconds), ``value`` (double), sorted by owner, key (bytes), step,
timestamp, value (IEEE 754 totalOrder: -0.0 before 0.0, NaN last). One owner may span several tables; its rows never interleave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal, Protocol

import pyarrow as pa

from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.records import Experiment, KeyValue, Problem, Record, Run, Source

__all__ = [
    "CANNOT_HOLD",
    "DIFFERS",
    "LEFT_OUT",
    "NOT_RESTORED",
    "PARENTS",
    "ROW_NOUNS",
    "ROW_ORDER",
    "ROW_SCHEMAS",
    "SERIES_SCHEMA",
    "SOURCE_TAG_PREFIX",
    "ArtifactStore",
    "EntityQuery",
    "EntityResult",
    "FileInfo",
    "IdMap",
    "MlflowSource",
    "MlflowTarget",
    "OpenBlob",
    "PlannedEntity",
    "PlannedRun",
    "RestoreOptions",
    "RestoredRun",
    "RunQuery",
    "RunResult",
    "TargetExperiment",
    "run_problem",
]

SERIES_SCHEMA: Final = pa.schema(
    [
        pa.field("owner", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)

_OWNER: Final = pa.field("owner", pa.int32(), nullable=False)


def _owned(table: str) -> pa.Schema:
    """The digested and derived columns of a table behind an owner number, without the ids that the owner stands for."""
    spec = TABLES[table]
    ids = ("experiment_id", spec.owner)
    return pa.schema([_OWNER, *(field for field in spec.schema if field.name not in ids)])


#: What ``MlflowSource.rows`` yields for each table: ``owner`` (index into the ids that were asked for), then the columns of
#: the table without ``experiment_id`` and the owner's id. Rows of an owner are together and in the order of ROW_ORDER.
ROW_SCHEMAS: Final[Mapping[str, pa.Schema]] = {name: _owned(name) for name in ("model_metrics/1", "spans/1")}
#: The order of an owner's rows: model metrics by key (bytes), step, timestamp, run id (bytes); spans by start, span id (bytes).
ROW_ORDER: Final[Mapping[str, tuple[str, ...]]] = {name: TABLES[name].order for name in ROW_SCHEMAS}

#: What the rows of a table are called.
ROW_NOUNS: Final[Mapping[str, str]] = {
    "metrics/1": "metric points",
    "model_metrics/1": "metric points",
    "spans/1": "spans",
    "files/1": "files",
}

#: Kinds that belong to an entity of another kind and can be asked for by that (``EntityQuery.parents``).
PARENTS: Final = {"model_version": "registered_model", "dataset_record": "evaluation_dataset"}

#: The code of a problem about something that the target cannot hold.
CANNOT_HOLD: Final = "cannot-hold"
#: The codes of problems of what failed, and of what was read back from the target and is not what was archived.
NOT_RESTORED: Final = "not-restored"
DIFFERS: Final = "restored-differs"
#: The code of a problem of ``cannot_hold`` that says that nothing of the entity can be held.
LEFT_OUT: Final = "left-out"

#: Tags with this prefix carry, on a target that gives new ids, what it could not keep; they are the journal of a restore.
SOURCE_TAG_PREFIX: Final = "mlflow_bundle.source."


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs of a source. ``None`` is no restriction; ``since`` and ``until`` are milliseconds of start time, inclusive."""

    experiment_ids: tuple[str, ...] | None = None
    run_ids: tuple[str, ...] | None = None
    filter: str = ""
    since: int | None = None
    until: int | None = None
    lifecycle: Literal["all", "active", "deleted"] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityQuery:
    """Which entities of one kind. ``None`` is no restriction; several restrictions all hold.

    ``experiment_ids``: those in one of these experiments (``Kind.experiments``). ``run_ids``: those that name one of these
    runs (a logged model's source, a trace's links, a version's run). ``ids``: those with these ids (``records.record_id``).
    ``parents``: those that belong to one of these (versions of registered models, records of evaluation datasets), by id.
    """

    experiment_ids: tuple[str, ...] | None = None
    run_ids: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None
    parents: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of an artifact store: path relative to its root with ``/``, size in bytes (-1: not known before reading),
    and a stamp that changes whenever the content may have changed (None: the store has no such thing)."""

    path: str
    size: int
    stamp: str | None = None


class ArtifactStore(Protocol):
    """The artifact files of one run, logged model, trace or model version."""

    def walk(self) -> Iterator[FileInfo]:
        """Every file, in no particular order. An artifact root that does not exist holds no files.

        Raises:
            BundleError: it cannot be listed completely.
        """
        ...

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The content of one file as a stream.

        Raises:
            BundleError: it cannot be read, or ends too early.
        """
        ...

    def write(self, path: str, content: BinaryIO, size: int) -> None:
        """Store one file of ``size`` bytes. Writing the same file again is harmless."""
        ...


class MlflowSource(Protocol):
    """Where runs and all other entities are read from: a tracking server, a database, a file store, or an archive."""

    @property
    def description(self) -> Source:
        """What the snapshot says of the source: without credentials, with what it does not offer (``absent``)."""
        ...

    def experiments(self) -> list[Experiment]:
        """Every experiment, active and deleted, in archive order (``records.order_key``)."""
        ...

    def runs(self, query: RunQuery) -> Iterator[list[Run]]:
        """The runs that match, in archive order over all experiments, in batches of at most 1,000."""
        ...

    def runs_by_id(self, run_ids: Sequence[str]) -> list[Run]:
        """These runs as far as they exist, in archive order."""
        ...

    def children(self, run_ids: Sequence[str]) -> list[Run]:
        """The runs whose ``mlflow.parentRunId`` tag names one of these, in archive order."""
        ...

    def metric_counts(self, run_ids: Sequence[str]) -> Sequence[int] | None:
        """The number of metric points of each run, where the source knows it without reading them; else None."""
        ...

    def metrics(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The whole metric histories of these runs as tables of ``SERIES_SCHEMA``, a bounded number of rows at a time."""
        ...

    def artifacts(self, record: Record) -> ArtifactStore:
        """The files of a run, logged model, trace or model version (an empty store where that has none of its own)."""
        ...

    def kinds(self) -> Sequence[str]:
        """The kinds beside experiments and runs that this source can offer, in archive order. Those that it cannot are
        named in ``description.absent``, as ``kind`` or ``kind.field``."""
        ...

    def entities(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The records of a kind that match, in archive order, in batches of at most 1,000, each complete with all that the
        source knows. An entity that is listed and cannot be read raises; it is never left out."""
        ...

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``model_metrics/1`` (logged models) or ``spans/1`` (traces) as bounded tables of ``ROW_SCHEMAS``."""
        ...

    def problems(self) -> list[Problem]:
        """What could not be read so far of entities that were yielded all the same (spans of a trace that the server refuses
        to hand out, for example), and entities that were left out because nothing of them can be read (a torn file)."""
        ...

    def notes(self) -> list[str]:
        """What else is worth knowing of what was read so far, a sentence each: no reason to call an archive incomplete."""
        ...

    def close(self) -> None:
        """Release connections, threads and temporary files."""
        ...


@dataclass(frozen=True, slots=True)
class TargetExperiment:
    """An experiment that exists at the target. ``source_id`` is the archived experiment that it was restored from, if known.
    ``creation_time`` (milliseconds) tells the same where ids are kept. ``workspace`` is empty where there are none. ``tags``
    are those that it has there."""

    experiment_id: str
    name: str
    lifecycle_stage: str
    source_id: str | None = None
    creation_time: int | None = None
    workspace: str = ""
    tags: tuple[KeyValue, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class RestoredRun:
    """A run at the target that comes from the archive. ``complete``: an earlier restore finished and compared it. ``digest``
    is what that restore noted of the content that it had: a snapshot with another one has something else. ``deleted``: it was
    restored as an active run, and was deleted since."""

    run_id: str
    complete: bool
    digest: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run to restore. ``source`` is the archived record. ``target_run_id`` is the run of an earlier restore that is not
    finished, or had other content. ``parent_id`` is the id at the target of its parent, where that is known (else the tag
    stays as it was). ``digest`` stands for the whole content of the run and for that parent, to be kept with the mark of
    completion."""

    source: Run
    experiment_id: str
    target_run_id: str | None = None
    parent_id: str | None = None
    files: tuple[tuple[str, int, str], ...] = ()
    """path, size in bytes, SHA-256 in hex"""
    metric_rows: int = 0
    digest: str = ""


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What became of one planned run, as read back from the target. Without problems it is restored completely. ``added``: it
    was there, and got points or files that it lacked."""

    source_run_id: str
    run_id: str | None = None
    added: bool = False
    metric_points: int = 0
    files: int = 0
    file_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_problem(run_id: str, message: str, *, code: str = CANNOT_HOLD, path: str = "") -> Problem:
    """A problem of one archived run, or of a file of it."""
    return Problem(code=code, message=message, kind="run", id=run_id, path=path, runs=(run_id,))


OpenBlob = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens an archived file content by its SHA-256 in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEntity:
    """An archived entity to restore. ``rows``: ``ROW_SCHEMAS`` without ``owner``; ``files``: path, size in bytes, SHA-256.
    ``files_lost``: it has files, and a damaged archive does not say which. ``digest`` stands for all of it."""

    record: Record
    rows: pa.Table | None = None
    files: tuple[tuple[str, int, str], ...] = ()
    files_lost: bool = False
    digest: str = ""


@dataclass(slots=True, kw_only=True)
class EntityResult:
    """What became of one planned entity, as read back from the target. Without problems it is restored completely.

    ``action`` is ``restored`` (made, or brought up to date where an earlier restore made it of another snapshot), ``there`` (it
    was at the target already, with the same content), ``merged`` (something of that name was there; it got what it lacked,
    and notes say what of its own it keeps), ``left out`` (the target cannot hold it; a problem says why) or ``failed``.
    ``rows`` and ``files`` count what was read back. ``notes`` say, a sentence each, what the target could not keep.
    """

    kind: str
    source_id: str
    target_id: str | None = None
    action: Literal["restored", "there", "merged", "left out", "failed"] = "restored"
    rows: int = 0
    files: int = 0
    file_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def keeps(self, note: str) -> None:
        """Note what the target keeps of its own, which the archive has otherwise: then the entity is not just there."""
        self.notes.append(note)
        if self.action == "there":
            self.action = "merged"


class IdMap:
    """Ids of the archive and what they became at the target, for every kind. What is not known stays as it is."""

    def __init__(self) -> None:
        self._new: dict[tuple[str, str], str] = {}

    def add(self, kind: str, old: str, new: str) -> None:
        """``old`` of the archive is ``new`` at the target."""
        self._new[kind, old] = new

    def find(self, kind: str, old: str) -> str | None:
        """The id at the target, or None where the entity was not restored."""
        return self._new.get((kind, old))

    def new(self, kind: str, old: str) -> str:
        """The id at the target, or the old one where the entity was not restored: a reference that leads nowhere."""
        return self._new.get((kind, old), old)

    def by_kind(self) -> dict[str, dict[str, str]]:
        """All of them: kind -> archived id -> id at the target."""
        found: dict[str, dict[str, str]] = {}
        for (kind, old), new in self._new.items():
            found.setdefault(kind, {})[old] = new
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What a restore may do. ``workspace`` is where everything goes: None keeps the archived one where the target has
    workspaces and drops it where not. ``online_scoring`` restores the sample rates of scorers instead of 0."""

    workspace: str | None = None
    online_scoring: bool = False


class MlflowTarget(Protocol):
    """Where runs and all other entities are restored to: a tracking server or a database."""

    #: What merging into existing experiments left as it was, a sentence each.
    notes: list[str]

    @property
    def description(self) -> Source:
        """What the target is and where, without credentials."""
        ...

    @property
    def has_workspaces(self) -> bool:
        """Whether names are told apart by workspace. Where not, everything is in one place."""
        ...

    @property
    def keeps_ids(self) -> bool:
        """Whether runs and experiments keep their ids (a database), or get new ones and source tags (a server)."""
        ...

    def experiments(self) -> list[TargetExperiment]:
        """Every experiment that is there, active and deleted."""
        ...

    def cannot_hold_experiment(self, experiment: Experiment) -> list[Problem]:
        """What of this record the target would refuse, cut or alter, under the name that it has. Nothing is sent."""
        ...

    def cannot_hold_run(self, run: Run) -> list[Problem]:
        """What of this record the target would refuse, cut or alter. A pure check, nothing is sent."""
        ...

    def cannot_hold_key(self, key: str) -> str | None:
        """Why the target would refuse this metric key, or None."""
        ...

    def restored_runs(self, experiment_id: str, source_run_ids: Sequence[str]) -> Mapping[str, RestoredRun]:
        """Those of these archived runs that are at the target already, by archived id. One that is complete and was restored
        with another digest is out of date: ``restore`` gets it again."""
        ...

    def place_experiment(
        self, experiment: Experiment, *, name: str, existing: TargetExperiment | None, workspace: str = ""
    ) -> str:
        """Create the experiment under ``name``, or add its tags to the existing one. Returns its id at the target.
        ``workspace`` is the one that it goes to, empty where the target has none.
        A deleted one is made writable until ``finish_experiment``."""
        ...

    def restore(self, runs: Sequence[PlannedRun], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> list[RunResult]:
        """Write these runs, read them back, compare, and mark them complete. ``metrics`` are tables of ``SERIES_SCHEMA`` whose
        owners index ``runs``. What the target cannot hold is left out and reported as a problem of that run.
        A run that an earlier restore made of another snapshot becomes what this one says; what it cannot become is a problem.
        One run's failure does not stop the others; a target that is gone raises."""
        ...

    def finish_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        """Set what must come last: the deleted state of the experiment, where the archive says so."""
        ...

    def kinds(self) -> frozenset[str]:
        """The kinds beside experiments and runs that this target can hold."""
        ...

    def cannot_hold(self, record: Record) -> list[Problem]:
        """What of this record the target would refuse, cut or alter. A pure check, nothing is sent."""
        ...

    def row_limits(self, table: str) -> Callable[[pa.Table], Sequence[str]] | None:
        """What says of rows of ``ROW_SCHEMAS`` which of them the target would refuse, a sentence each; None: it takes all."""
        ...

    def name_taken(self, record: Record, experiment_id: str) -> str | None:
        """Why the target's experiment of this id cannot have this record, because of another one of its name, or None. The
        target is asked, and nothing is written."""
        ...

    def restore_entities(
        self, kind: str, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, options: RestoreOptions
    ) -> list[EntityResult]:
        """Write these entities of one kind, read them back and compare; a result for each, in order, and ``ids`` completed.

        Kinds come in order of rank (the gateway before scorers), after all runs; the whole of a kind before the next, batch by
        batch (all versions of a registered model are in one batch). Writing again what is there already duplicates nothing.
        One entity's failure does not stop the others; a target that is gone raises.
        """
        ...

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs (with their ids at the target) the model inputs and outputs of their records, once the logged models are
        restored. A target that keeps ids has written them with the run and returns nothing."""
        ...

    def after_deletions(self) -> list[EntityResult]:
        """Finish what had to wait until runs and experiments are deleted: the assessments that go with them otherwise, and
        links between entities that are all there only now. The results are of entities that were counted already."""
        ...

    def close(self) -> None:
        """Release connections and threads."""
        ...
