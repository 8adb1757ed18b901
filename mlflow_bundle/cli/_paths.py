"""Readable paths inside a bundle: ``EXPERIMENT/RUN/artifacts/FILE``.

An experiment is its name or id; a run its id, the beginning of it (at least four characters), or its name where only one run of
the experiment has it. A RUN may also stand without its experiment. Names may contain ``/``: the longest name that the path
begins with is taken, and an id can always stand for a name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow.compute as pc

from mlflow_bundle._bundle import Bundle
from mlflow_bundle.errors import NotFoundError, UsageError

__all__ = ["ARTIFACTS", "Catalog", "FileEntry", "Place"]

ARTIFACTS: Final = "artifacts"
#: The tag with which MLflow nests runs.
PARENT: Final = "mlflow.parentRunId"
_SHORTEST_PREFIX: Final = 4
_SHOWN: Final = 3

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a run: its path below the artifacts, size in bytes, SHA-256 in hex (None: it could not be read)."""

    path: str
    size: int
    sha256: str | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a path means: nothing set is the whole bundle; then an experiment, a run, a folder or a file of the run.

    ``inner`` is the path below the artifacts of the run, empty for their root, None where the path ends at the run.
    """

    experiment: Row | None = None
    run: Row | None = None
    inner: str | None = None
    file: FileEntry | None = None
    files: Sequence[FileEntry] = field(default=(), repr=False)

    @property
    def kind(self) -> str:
        """``bundle``, ``experiment``, ``run``, ``folder`` or ``file``."""
        if self.file is not None:
            return "file"
        return "folder" if self.inner is not None else "run" if self.run else "experiment" if self.experiment else "bundle"


class Catalog:
    """The experiments and runs of a snapshot by the names that people use."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.experiments: list[Row] = bundle.experiments().to_pylist()
        self._by_id = {row["experiment_id"]: row for row in self.experiments}
        columns = ["run_id", "experiment_id", "run_name", "status", "start_time", "end_time", "lifecycle_stage"]
        self.runs: list[Row] = bundle.runs().select([*columns, "metric_rows", "file_rows"]).to_pylist()

    def runs_of(self, experiment: Row) -> list[Row]:
        """The runs of an experiment in archive order."""
        return [run for run in self.runs if run["experiment_id"] == experiment["experiment_id"]]

    def parents(self, runs: Sequence[Row]) -> dict[str, str]:
        """The parent of each of these runs that names one."""
        wanted = {run["run_id"] for run in runs}
        tags = self._bundle.tags()
        found = tags.filter(pc.equal(tags.column("key"), PARENT)).select(["run_id", "value"]).to_pylist()
        return {row["run_id"]: row["value"] for row in found if row["run_id"] in wanted}

    def experiment_of(self, run: Row) -> Row | None:
        """The experiment of a run."""
        return self._by_id.get(run["experiment_id"])

    def find(self, path: str) -> Place:
        """What a path means.

        Raises:
            NotFoundError: there is no such thing; the hint says which names are close.
            UsageError: a beginning or a name that several runs share.
        """
        if not path.strip("/"):
            return Place()
        experiment, rest = self._experiment(path)
        if experiment is None:
            run, rest = self._run(path, self.runs, names=False)
            if run is None:
                raise self._unknown(path)
            return self._inside(self.experiment_of(run), run, rest)
        if not rest.strip("/"):
            return Place(experiment=experiment)
        runs = self.runs_of(experiment)
        run, inner = self._run(rest, runs, names=True)
        if run is None:
            wanted = rest.partition("/")[0]
            close = _close(wanted, (run["run_name"] for run in runs))
            raise NotFoundError(
                f"no run {wanted!r} in experiment {experiment['name']!r}",
                code="run-not-found",
                close=close,
                known=[run["run_name"] or run["run_id"] for run in runs],
            )
        return self._inside(experiment, run, inner)

    def _experiment(self, path: str) -> tuple[Row | None, str]:
        """The experiment that a path begins with, by its longest name or else by its id, and the rest of the path."""
        named = [row for row in self.experiments if _begins(path, row["name"])]
        if named:
            row = max(named, key=lambda row: len(row["name"]))
            return row, path[len(row["name"]) + 1 :]
        head, _, rest = path.partition("/")
        return self._by_id.get(head), rest

    def _run(self, path: str, runs: Sequence[Row], *, names: bool) -> tuple[Row | None, str]:
        """The run that a path begins with: by id, by its longest name, by the beginning of its id; and the rest of the path."""
        head, _, rest = path.partition("/")
        if exact := [run for run in runs if run["run_id"] == head]:
            return exact[0], rest
        named = [run for run in runs if names and run["run_name"] and _begins(path, run["run_name"])]
        if named:
            name = max((run["run_name"] for run in named), key=len)
            return _only([run for run in named if run["run_name"] == name], f"named {name!r}"), path[len(name) + 1 :]
        begun = [run for run in runs if len(head) >= _SHORTEST_PREFIX and run["run_id"].startswith(head)]
        return _only(begun, f"whose id begins with {head!r}"), rest

    def _inside(self, experiment: Row | None, run: Row, rest: str) -> Place:
        """A run, or a folder or file below its artifacts."""
        rest = rest.strip("/") if not rest.strip("/") else rest
        if not rest:
            return Place(experiment=experiment, run=run, files=self.files(run["run_id"]))
        if not _begins(rest, ARTIFACTS):
            raise NotFoundError(
                f"run {run['run_id']} has no {rest!r}",
                code="file-not-found",
                hint=f"its files lie below {ARTIFACTS}/; `mlflow-bundle show` prints everything else of a run",
            )
        inner = rest[len(ARTIFACTS) + 1 :]
        files = self.files(run["run_id"])
        found = next((file for file in files if file.path == inner), None)
        if found is not None:
            return Place(experiment=experiment, run=run, inner=inner, file=found, files=(found,))
        inner = inner.rstrip("/")
        below = [file for file in files if not inner or file.path.startswith(inner + "/")]
        if inner and not below:
            paths = [file.path for file in files]
            close, known = ([f"{ARTIFACTS}/{path}" for path in some] for some in (_close(inner, paths), paths))
            raise NotFoundError(f"run {run['run_id']} has no file {inner!r}", code="file-not-found", close=close, known=known)
        return Place(experiment=experiment, run=run, inner=inner, files=below)

    def files(self, run_id: str) -> list[FileEntry]:
        """The artifact files of a run."""
        table = self._bundle.files(run_id=run_id).select(["path", "size", "sha256", "state"])
        return [FileEntry(**row) for row in table.to_pylist()]

    def _unknown(self, path: str) -> NotFoundError:
        wanted = path.partition("/")[0]
        close = _close(path, (row["name"] for row in self.experiments)) or _close(
            wanted, (row["name"] for row in self.experiments)
        )
        hint = (
            "`mlflow-bundle ls BUNDLE` lists the experiments, with `--kind trace` (or another) the entities of a kind; "
            "a run is named by its id or the first characters of it, at least four"
        )
        return NotFoundError(
            f"no experiment or run {wanted!r} in this snapshot",
            code="path-not-found",
            close=close,
            hint=None if close else hint,
        )


def _begins(path: str, name: str) -> bool:
    """Whether a path is a name, or leads into what has that name."""
    return path == name or path.startswith(name + "/")


def _only(runs: Sequence[Row], what: str) -> Row | None:
    """The one run of these, or None.

    Raises:
        UsageError: there are several.
    """
    if len(runs) > 1:
        ids = ", ".join(run["run_id"] for run in runs[:_SHOWN]) + (", ..." if len(runs) > _SHOWN else "")
        raise UsageError(f"{len(runs):,} runs {what}", code="ambiguous", hint=f"name one by its id: {ids}")
    return runs[0] if runs else None


def _close(wanted: str, names: Iterable[str | None]) -> list[str]:
    return difflib.get_close_matches(wanted, sorted({name for name in names if name}), n=3, cutoff=0.5)
