"""An archive as a source, so that selections mean the same on the way out and on the way in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

import pyarrow as pa

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._spool import LATEST_SCHEMA, latest_points
from mlflow_bundle._text import plural
from mlflow_bundle.errors import UsageError
from mlflow_bundle.records import KINDS, Experiment, Problem, Record, Run, Source, record_id
from mlflow_bundle.tracking._filter import matching, undecided
from mlflow_bundle.tracking._matching import matches
from mlflow_bundle.tracking._port import ArtifactStore, EntityQuery, RunQuery
from mlflow_bundle.tracking._select import parent_of

__all__ = ["ArchiveSource", "latest_metrics"]

_BATCH = 1_000


class ArchiveSource:
    """One snapshot of a bundle as an ``MlflowSource``. ``damage`` is what is wrong with it where it is read all the same."""

    def __init__(self, bundle: Bundle, damage: Sequence[Problem] = ()) -> None:
        self._bundle = bundle
        self._damage = damage
        #: The runs of which nobody can tell whether a filter selects them, by their ids.
        self._undecided: dict[str, Run] = {}

    @property
    def description(self) -> Source:
        """The bundle."""
        return Source(kind="archive", uri=self._bundle.url)

    def experiments(self) -> list[Experiment]:
        """Every archived experiment."""
        return cast("list[Experiment]", list(self._bundle.records("experiment")))

    def _all_runs(self) -> Iterator[Run]:
        return cast("Iterator[Run]", self._bundle.records("run"))

    def runs(self, query: RunQuery) -> Iterator[list[Run]]:
        """The archived runs that match."""
        batch: list[Run] = []
        experiments, ids = _as_set(query.experiment_ids), _as_set(query.run_ids)
        for run in self._all_runs():
            asked = (experiments is None or run.experiment_id in experiments) and (ids is None or run.run_id in ids)
            if asked and _matches(run, query):
                batch.append(run)
                if len(batch) == _BATCH:
                    yield self._filtered(batch, query.filter)
                    batch = []
        yield self._filtered(batch, query.filter)

    def _filtered(self, runs: list[Run], filter_string: str) -> list[Run]:
        if not filter_string:
            return runs
        latest: dict[str, dict[str, float]] = defaultdict(dict)
        table = latest_metrics(self._bundle, [run.run_id for run in runs])
        for run, key, value in zip(*(table[n].to_pylist() for n in ("run_id", "key", "value")), strict=True):
            latest[run][key] = value
        chosen = matching(runs, latest, filter_string)
        hidden = set(self._bundle.reader.hidden("run", [run.run_id for run in runs]))
        lost = [run for run in runs if run.run_id in hidden and self._has_lost_points(run.run_id)]
        self._undecided |= {run.run_id: run for run in undecided(lost, filter_string)} if lost else {}
        return chosen

    def _has_lost_points(self, run_id: str) -> bool:
        return any(loss.table == "metrics/1" for loss in self._bundle.reader.lost("run", run_id))

    def runs_by_id(self, run_ids: Sequence[str]) -> list[Run]:
        """These runs as far as they are archived."""
        wanted = set(run_ids)
        return [run for run in self._all_runs() if run.run_id in wanted]

    def children(self, run_ids: Sequence[str]) -> list[Run]:
        """The archived runs whose parent is one of these."""
        wanted = set(run_ids)
        return [run for run in self._all_runs() if parent_of(run) in wanted]

    def metric_counts(self, run_ids: Sequence[str]) -> Sequence[int]:
        """The number of metric points of each run."""
        return self._bundle.metric_rows(run_ids)

    def metrics(self, run_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The metric points of these runs."""
        return self._bundle.series(run_ids)

    def kinds(self) -> Sequence[str]:
        """The kinds of other records that the archive has and this release knows."""
        archived = self._bundle.snapshot.logical.kinds
        return [kind for kind in KINDS if kind in archived and kind not in ("experiment", "run")]

    def entities(self, kind: str, query: EntityQuery) -> Iterator[list[Record]]:
        """The archived records of a kind that match."""
        found = filter(matches(kind, query), self._bundle.records(kind))
        while batch := list(islice(found, _BATCH)):
            yield batch

    def rows(self, table: str, ids: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``model_metrics/1`` or ``spans/1`` of these owners."""
        return self._bundle.rows(table, ids)

    def artifacts(self, record: Record) -> ArtifactStore:
        """Not here: an archive gives its files by content."""
        raise UsageError(f"the files of {record_id(record)} are read from the bundle by their content")

    def problems(self) -> list[Problem]:
        """What is damaged, and the runs that were not selected for that. What was missing when the archive was made is in its
        snapshot."""
        if not self._undecided:
            return list(self._damage)
        ids = tuple(self._undecided)
        message = (
            f"whether the filter selects {plural(len(ids), 'run')} (for example {ids[0]}) cannot be told,"
            " because metric points are lost: they are not selected"
        )
        experiments = tuple(dict.fromkeys(run.experiment_id for run in self._undecided.values()))
        undecided_runs = Problem(code="filter-undecided", kind="metric", message=message, experiments=experiments, runs=ids)
        return [*self._damage, undecided_runs]

    def notes(self) -> list[str]:
        """Nothing."""
        return []

    def close(self) -> None:
        """The bundle stays open; its owner closes it."""


def latest_metrics(bundle: Bundle, run_ids: Sequence[str]) -> pa.Table:
    """What ``Bundle.latest_metrics`` gives, also of runs whose view is damaged: then by their points."""
    known = bundle.latest_metrics(run_ids)
    if not (hidden := bundle.reader.hidden("run", run_ids)):
        return known
    parts = [LATEST_SCHEMA.empty_table(), *map(latest_points, bundle.series(hidden))]
    found = latest_points(pa.concat_tables(parts))
    ids = pa.array(hidden, pa.string()).take(found.column("owner").combine_chunks())
    found = found.set_column(0, "run_id", ids).select(known.column_names).cast(known.schema)
    return pa.concat_tables([known, found])


def _matches(run: Run, query: RunQuery) -> bool:
    """Whether a run meets the conditions on start time and lifecycle. One without a start time meets none on it."""
    start = run.start_time if isinstance(run.start_time, int) else None
    return (
        (query.since is None or (start is not None and start >= query.since))
        and (query.until is None or (start is not None and start <= query.until))
        and query.lifecycle in ("all", run.lifecycle_stage)
    )


def _as_set(values: Sequence[str] | None) -> set[str] | None:
    return None if values is None else set(values)
