"""What a source and a target of MLflow content must be able to do. Everything else of the package is neutral to them.

A source turns a server or a database into records, columns of metric points, and files; a target does the reverse.
``SeriesBatch`` tables travel between them: columns ``owner`` (int32, index into the run ids that were asked for), ``key``
(string), ``step`` (int64), ``timestamp`` (int64, milliseconds), ``value`` (double), sorted by owner, key (bytes), step,
timestamp, value (IEEE 754 totalOrder: -0.0 before 0.0, NaN last). One owner may span several tables; its rows never interleave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal, Protocol

import pyarrow as pa

from mlflow_bundle.records import Experiment, Problem, Run, Source

__all__ = [
    "SERIES_SCHEMA",
    "SOURCE_TAG_PREFIX",
    "ArtifactStore",
    "FileInfo",
    "MlflowSource",
    "MlflowTarget",
    "PlannedRun",
    "RestoredRun",
    "RunQuery",
    "RunResult",
    "TargetExperiment",
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


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of an artifact store: path relative to its root with ``/``, size in bytes (-1: not known before reading),
    and a stamp that changes whenever the content may have changed (None: the store has no such thing)."""

    path: str
    size: int
    stamp: str | None = None


class ArtifactStore(Protocol):
    """The artifact files of one run."""

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
    """Where runs are read from: a tracking server, a database, or an archive."""

    @property
    def description(self) -> Source: ...

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

    def artifacts(self, run: Run) -> ArtifactStore: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TargetExperiment:
    """An experiment that exists at the target. ``source_id`` is the archived experiment that it was restored from, if known.
    ``creation_time`` (milliseconds) tells the same where ids are kept."""

    experiment_id: str
    name: str
    lifecycle_stage: str
    source_id: str | None = None
    creation_time: int | None = None


@dataclass(frozen=True, slots=True)
class RestoredRun:
    """A run at the target that comes from the archive. ``complete``: an earlier restore finished and compared it."""

    run_id: str
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run to restore. ``source`` is the archived record. ``target_run_id`` is the unfinished run of an earlier restore.
    ``parent_id`` is the id at the target of its parent, where that is known (else the tag stays as it was)."""

    source: Run
    experiment_id: str
    target_run_id: str | None = None
    parent_id: str | None = None
    files: tuple[tuple[str, int, str], ...] = ()
    """path, size in bytes, SHA-256 in hex"""
    metric_rows: int = 0


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What became of one planned run, as read back from the target. Without problems it is restored completely."""

    source_run_id: str
    run_id: str | None = None
    metric_points: int = 0
    files: int = 0
    file_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


OpenBlob = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens an archived file content by its SHA-256 in hex."""


class MlflowTarget(Protocol):
    """Where runs are restored to: a tracking server or a database."""

    #: What merging into existing experiments left as it was, a sentence each.
    notes: list[str]

    @property
    def description(self) -> Source: ...

    @property
    def keeps_ids(self) -> bool:
        """Whether runs and experiments keep their ids (a database), or get new ones and source tags (a server)."""
        ...

    def experiments(self) -> list[TargetExperiment]: ...

    def cannot_hold_experiment(self, experiment: Experiment) -> list[Problem]: ...

    def cannot_hold_run(self, run: Run) -> list[Problem]:
        """What of this record the target would refuse, cut or alter. A pure check, nothing is sent."""
        ...

    def cannot_hold_key(self, key: str) -> str | None:
        """Why the target would refuse this metric key, or None."""
        ...

    def restored_runs(self, experiment_id: str, source_run_ids: Sequence[str]) -> Mapping[str, RestoredRun]:
        """Those of these archived runs that are at the target already, by archived id."""
        ...

    def place_experiment(self, experiment: Experiment, *, name: str, existing: TargetExperiment | None) -> str:
        """Create the experiment under ``name``, or add its tags to the existing one. Returns its id at the target.
        A deleted one is made writable until ``finish_experiment``."""
        ...

    def restore(self, runs: Sequence[PlannedRun], metrics: Iterator[pa.Table], open_blob: OpenBlob) -> list[RunResult]:
        """Write these runs, read them back, compare, and mark them complete. ``metrics`` are tables of ``SERIES_SCHEMA`` whose
        owners index ``runs``. What the target cannot hold is left out and reported as a problem of that run.
        One run's failure does not stop the others; a target that is gone raises."""
        ...

    def finish_experiment(self, experiment: Experiment, experiment_id: str) -> None:
        """Set what must come last: the deleted state of the experiment, where the archive says so."""
        ...

    def close(self) -> None: ...
