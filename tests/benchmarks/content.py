"""Makes large MLflow content quickly: tables written straight into a database that MLflow created, and artifact files."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import adbc_driver_sqlite.dbapi
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

__all__ = ["Content", "Series", "add_experiment", "count_points", "make_files", "new_database"]

Series = Literal["rounded", "float32", "float64"]

_BASE_TIME: Final = 1_780_000_000_000
_CHUNK_POINTS: Final = 1_000_000
_PARAMS: Final = 5
_WORDS: Final = b"loss accuracy epoch learning_rate batch_size optimizer adam sgd train validation 0.001 128 true false\n"


@dataclass(frozen=True, slots=True)
class Content:
    """Runs of one experiment: ``keys`` metrics each, ``steps`` points a metric, whose values are of one kind.

    ``rounded`` are losses with six decimals, ``float32`` what training code gets from a tensor, ``float64`` all 52 bits.
    """

    name: str
    runs: int
    keys: int
    steps: int
    series: Series = "rounded"

    @property
    def points(self) -> int:
        return self.runs * self.keys * self.steps

    def __str__(self) -> str:
        return f"{self.runs:,} runs x {self.keys} keys x {self.steps:,} steps"


def new_database(template: Path, path: Path) -> Path:
    """A database with nothing in it but MLflow's default experiment, copied from ``template``, which is made once."""
    if not template.exists():
        SqlAlchemyStore(f"sqlite:///{template}", str(template.parent / "unused"))
    shutil.copy(template, path)
    return path


def add_experiment(path: Path, content: Content, *, artifacts: str) -> list[str]:
    """Write an experiment into a database. ``artifacts`` is its artifact location. Returns its run ids, oldest first."""
    random = np.random.default_rng(content.points)
    with sqlite3.connect(path) as connection:
        (number,) = connection.execute("SELECT MAX(experiment_id) + 1 FROM experiments").fetchone()
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time, "
            "last_update_time, workspace) VALUES (?, ?, ?, 'active', ?, ?, 'default')",
            (number, content.name, f"{artifacts}/{number}", _BASE_TIME, _BASE_TIME),
        )
        ids = [random.bytes(16).hex() for _ in range(content.runs)]
        _add_runs(connection, content, ids, number, artifacts)
    connection.close()
    if content.keys:
        _add_points(path, content, ids, random)
    return ids


def _start(content: Content, run: int) -> int:
    """When a run began, in milliseconds."""
    return _BASE_TIME + run * (content.steps * 1100 + 1000)


def _add_runs(connection: sqlite3.Connection, content: Content, ids: list[str], number: int, artifacts: str) -> None:
    runs, params, tags = [], [], []
    for place, run in enumerate(ids):
        start = _start(content, place)
        where = f"{artifacts}/{number}/{run}/artifacts"
        runs.append((run, f"run-{place}", start, start + content.steps * 1000, where, number))
        params += [(f"param_{name}", f"{place * 0.001 * (name + 1):.6g}", run) for name in range(_PARAMS)]
        tags += [("mlflow.runName", f"run-{place}", run), ("mlflow.user", "benchmark", run), ("team", "vision", run)]
        tags += [("mlflow.source.name", "train.py", run), ("mlflow.source.type", "LOCAL", run)]
    connection.executemany(
        "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
        "source_version, lifecycle_stage, artifact_uri, experiment_id) "
        "VALUES (?, ?, 'UNKNOWN', '', '', 'benchmark', 'FINISHED', ?, ?, '', 'active', ?, ?)",
        runs,
    )
    connection.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", params)
    connection.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)


def _add_points(path: Path, content: Content, ids: list[str], random: np.random.Generator) -> None:
    each = max(1, _CHUNK_POINTS // (content.keys * content.steps))
    with adbc_driver_sqlite.dbapi.connect(str(path)) as connection, connection.cursor() as cursor:
        for first in range(0, len(ids), each):
            table, latest = _points(content, ids[first : first + each], first, random)
            cursor.adbc_ingest("metrics", table, mode="append")
            cursor.adbc_ingest("latest_metrics", latest, mode="append")
            connection.commit()


def _points(content: Content, ids: list[str], first: int, random: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """The points of some runs as they are logged, step by step with all keys of a step at one moment, and the last of each."""
    runs, keys, steps = len(ids), content.keys, content.steps
    value = _values(content, runs, random)
    starts = np.array([_start(content, first + run) for run in range(runs)], dtype=np.int64)
    waits = random.integers(900, 1100, size=(runs, steps))
    time = (starts[:, None] + np.cumsum(waits, axis=1))[:, :, None].repeat(keys, axis=2)
    step = np.broadcast_to(np.arange(steps, dtype=np.int64)[None, :, None], value.shape)
    key = np.broadcast_to(np.arange(keys, dtype=np.int32)[None, None, :], value.shape)
    run = np.broadcast_to(np.arange(runs, dtype=np.int32)[:, None, None], value.shape)
    names = [f"metric/{number}" for number in range(keys)]
    columns = {
        "key": pa.DictionaryArray.from_arrays(key.ravel(), names).cast(pa.string()),
        "value": value.ravel(),
        "timestamp": time.ravel(),
        "step": step.ravel(),
        "is_nan": np.zeros(value.size, np.int64),
        "run_uuid": pa.DictionaryArray.from_arrays(run.ravel(), ids).cast(pa.string()),
    }
    table = pa.table(columns)
    return table, table.filter(pa.array(step.ravel() == steps - 1))


def _values(content: Content, runs: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Falling losses with a random walk on top."""
    size = (runs, content.steps, content.keys)
    falling = 2.3 * np.exp(-3 * np.arange(content.steps) / content.steps)[None, :, None]
    value: npt.NDArray[np.float64] = falling + 0.01 * np.cumsum(random.normal(size=size), axis=1)
    if content.series == "rounded":
        return np.round(value, 6)
    return value.astype(np.float32).astype(np.float64) if content.series == "float32" else value


def count_points(path: Path, experiment: str) -> tuple[int, int]:
    """The runs and the metric points that a database holds for an experiment."""
    joined = "runs r JOIN experiments e ON e.experiment_id = r.experiment_id WHERE e.name = ?"
    with sqlite3.connect(path) as connection:
        (runs,) = connection.execute(f"SELECT COUNT(*) FROM {joined}", (experiment,)).fetchone()
        points = f"SELECT COUNT(*) FROM metrics m JOIN {joined.replace(' JOIN', ' ON r.run_uuid = m.run_uuid JOIN', 1)}"
        (rows,) = connection.execute(points, (experiment,)).fetchone()
    connection.close()
    return runs, rows


def make_files(folder: Path, count: int, low: int, high: int, *, seed: int) -> int:
    """Files of ``low`` to ``high`` bytes, every other one text, the others random bytes. Returns their bytes."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for number, size in enumerate(random.integers(low, high, size=count, endpoint=True).tolist()):
        name = f"file-{number}" + (".txt" if number % 2 else ".bin")
        with (folder / name).open("wb") as file:
            for start in range(0, size, 1 << 24):
                part = min(1 << 24, size - start)
                file.write(_text(random, part) if number % 2 else random.bytes(part))
        total += size
    return total


def _text(random: np.random.Generator, size: int) -> bytes:
    """A log: words in varying order with numbers between them."""
    words = _WORDS.split()
    order = random.integers(0, len(words), size=size // 8 + 1).tolist()
    numbers = random.integers(0, 10_000, size=size // 8 + 1).tolist()
    return b" ".join(b"%s=%d" % (words[place], number) for place, number in zip(order, numbers, strict=True))[:size].ljust(size)
