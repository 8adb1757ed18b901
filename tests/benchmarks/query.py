"""Questions to a large bundle on an S3 server of this machine, against bare pyarrow and DuckDB on the same Parquet objects.

``python -m tests.benchmarks.query`` makes a bundle of 10,000 runs and 20 million points, puts it on the server, and asks. The
full size is ``--runs 100000 --points 2000``. The server is a process of its own. Both sides take turns at being first and open
everything anew each time; the medians of all rounds but the first are compared. Requests and bytes are those of one answer of
ours, opening included.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple
from unittest import mock

import boto3
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from moto.server import ThreadedMotoServer

import mlflow_bundle
from mlflow_bundle._layout import METRICS, VIEWS
from mlflow_bundle._limits import MIB
from mlflow_bundle._manifest import ensure_marker
from mlflow_bundle._packer import Packer
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle.records import Experiment, KeyValue, Run, Scope, Source
from mlflow_bundle.tracking._port import SERIES_SCHEMA

__all__ = ["Traffic", "counted", "run_id", "write_bundle"]

_START: Final = 1_780_000_000_000
_KEYS: Final = ("accuracy", "loss")
_BATCH: Final = 1_000
_BUCKET: Final = "benchmark"
_LIMIT: Final = 1.3


def run_id(number: int) -> str:
    """The id of a run: nothing like the next one's."""
    return hashlib.md5(str(number).encode()).hexdigest()


def write_bundle(storage: Storage, *, runs: int, points: int) -> None:
    """A bundle of runs of ten experiments with params, tags and ``points`` metric points each, written by the package."""
    packer = Packer(storage, ensure_marker(storage))
    try:
        for number in range(10):
            packer.add(Experiment(experiment_id=str(number), name=f"experiment {number}", creation_time=_START + number))
        for number in range(runs):
            packer.add(_run(number))
        source = np.random.default_rng(7)
        for first in range(0, runs, _BATCH):
            packer.add_series(_series(min(_BATCH, runs - first), points, source), first=first)
        packer.end_series()
        packer.commit(
            created_at=_START, scope=Scope(), source=Source(kind="test", uri="test:"), parents=[], problems=[], notes=[]
        )
    finally:
        packer.close()


def _run(number: int) -> Run:
    params = {"batch_size": str(32 << number % 4), "lr": f"{1 + number % 50}e-4", "optimizer": ("adam", "sgd")[number % 2]}
    tags = {"mlflow.runName": f"run-{number}", "team": f"team {number % 7}"}
    return Run(
        run_id=run_id(number),
        experiment_id=str(number % 10),
        run_name=f"run-{number}",
        user_id="me",
        status=("FINISHED", "FAILED")[number % 9 == 0],
        start_time=_START + 1000 * number,
        end_time=_START + 1000 * number + 500,
        artifact_uri=f"s3://artifacts/{number % 10}/{run_id(number)}/artifacts",
        params=tuple(KeyValue(key=key, value=value) for key, value in params.items()),
        tags=tuple(KeyValue(key=key, value=value) for key, value in tags.items()),
    )


def _series(runs: int, points: int, source: np.random.Generator) -> pa.Table:
    """The points of consecutive runs: curves with noise, a point each few seconds."""
    steps = max(points // len(_KEYS), 1)
    step = np.tile(np.arange(steps), runs * len(_KEYS))
    columns = {
        "owner": np.repeat(np.arange(runs), steps * len(_KEYS)).astype(np.int32),
        "key": pa.array(_KEYS).take(pa.array(np.tile(np.repeat(np.arange(len(_KEYS)), steps), runs))),
        "step": step,
        "timestamp": _START + 5000 * step + source.integers(0, 100, len(step)),
        "value": np.round(np.exp(-step / steps) + source.normal(0, 0.05, len(step)), 6),
    }
    return pa.table([columns[name] for name in SERIES_SCHEMA.names], schema=SERIES_SCHEMA)


# -- the server ------------------------------------------------------------------------------------------------------------


class Traffic:
    """The requests of a stretch of code, and the bytes of their answers."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.bytes = 0


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Count what s3fs sends meanwhile."""
    traffic, send = Traffic(), s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *rest: Any, **named: Any) -> Any:
        answer = await send(self, method, *rest, **named)
        traffic.requests.append(method)
        traffic.bytes += int(answer.get("ContentLength", 0)) if method == "get_object" else 0
        return answer

    with mock.patch.object(s3fs.S3FileSystem, "_call_s3", call):
        yield traffic


def _serve(pipe: Connection) -> None:
    """An S3 server until the other end of the pipe is gone."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    pipe.send(server.get_host_and_port())
    with contextlib.suppress(EOFError):
        pipe.recv()
    server.stop()


class _Server:
    """An S3 server in a process of its own, which ends with this one, and a bucket in it."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        host, port = self._pipe.recv()
        self.options = {"key": "k", "secret": "s", "endpoint_url": f"http://{host}:{port}"}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="k", aws_secret_access_key="s")
        client.create_bucket(Bucket=_BUCKET)
        self.url = f"s3://{_BUCKET}/bundle"

    def filesystem(self) -> s3fs.S3FileSystem:
        """A new s3fs, without what another has read."""
        return s3fs.S3FileSystem(**self.options, skip_instance_cache=True)

    def stop(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


# -- questions -------------------------------------------------------------------------------------------------------------


class _Bare:
    """The same questions to the Parquet objects themselves, whose paths are known."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        with mlflow_bundle.open(server.url, storage_options=server.options) as archive:
            paths = {role: [ref.path for ref in archive.objects if ref.role == role] for role in (METRICS, VIEWS)}
        self.views, self.metrics = ([f"{server.url}/{path}" for path in paths[role]] for role in (VIEWS, METRICS))

    def table(self, paths: Sequence[str], **options: Any) -> pa.Table:
        """Whole objects, or the rows that a filter leaves."""
        names = [path.removeprefix("s3://") for path in paths]
        return pq.read_table(names, filesystem=self._server.filesystem(), pre_buffer=True, **options)

    def sql(self, query: str) -> int:
        """An answer of DuckDB over s3fs."""
        with duckdb.connect() as con:
            con.register_filesystem(self._server.filesystem())
            return len(con.execute(query).fetchall())


_BEST: Final = "select run_id, {} as best from {} order by best desc limit 1"
_GROUP: Final = "select params['lr'] as lr, avg({}) as mean from {} group by lr"


def _works(server: _Server, runs: int) -> dict[str, tuple[Callable[[], int], Callable[[], int]]]:
    """Each question: our answer from opening on, and the bare one. Both give a number of rows."""
    bare, wanted = _Bare(server), run_id(runs // 2)

    def ours(ask: Callable[[mlflow_bundle.Bundle], pa.Table]) -> Callable[[], int]:
        def work() -> int:
            with mlflow_bundle.open(server.url, storage_options=server.options) as archive:
                return int(ask(archive).num_rows)

        return work

    ours_metric, bare_metric = "metrics['accuracy']", "latest_metrics['accuracy'].value"
    view = f"read_parquet({bare.views!r})"
    return {
        "list of runs": (ours(lambda archive: archive.runs()), lambda: bare.table(bare.views).num_rows),
        "one series": (
            ours(lambda archive: archive.metrics(run_id=wanted, key="loss")),
            lambda: bare.table(bare.metrics, filters=[("run_id", "=", wanted), ("key", "=", "loss")]).num_rows,
        ),
        "best run": (
            ours(lambda archive: archive.sql(_BEST.format(ours_metric, "runs"))),
            lambda: bare.sql(_BEST.format(bare_metric, view)),
        ),
        "group by a param": (
            ours(lambda archive: archive.sql(_GROUP.format(ours_metric, "runs"))),
            lambda: bare.sql(_GROUP.format(bare_metric, view)),
        ),
    }


class _Took(NamedTuple):
    """What an answer took: seconds, and processor seconds of this process."""

    seconds: float
    processor: float


def _answered(work: Callable[[], int], rows: int) -> _Took:
    start, processor = time.perf_counter(), time.process_time()
    found = work()
    took = _Took(time.perf_counter() - start, time.process_time() - processor)
    assert found == rows, f"{found} rows, not {rows}"
    return took


def _compared(ours: Callable[[], int], bare: Callable[[], int], rounds: int) -> tuple[_Took, _Took]:
    """The medians of both sides, which take turns at being first; a round before is not counted."""
    rows = bare()
    _answered(ours, rows)
    took: dict[Callable[[], int], list[_Took]] = {ours: [], bare: []}
    for number in range(rounds):
        for work in (ours, bare) if number % 2 else (bare, ours):
            took[work].append(_answered(work, rows))
    mine, theirs = (_Took(*map(median, zip(*took[work], strict=True))) for work in (ours, bare))
    return mine, theirs


@contextlib.contextmanager
def _served(runs: int, points: int) -> Iterator[_Server]:
    """The bundle on a server, made in a folder first."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with open_storage(Path(folder, "bundle"), create=True) as storage:
            write_bundle(storage, runs=runs, points=points)
        print(f"made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        server = _Server()
        try:
            server.filesystem().put(f"{folder}/bundle/", f"{server.url}/", recursive=True)
            yield server
        finally:
            server.stop()


def _opened(server: _Server) -> float:
    """How long opening the bundle takes: requests that bare readers, which know the paths, do not have."""
    start = time.perf_counter()
    mlflow_bundle.open(server.url, storage_options=server.options).close()
    return time.perf_counter() - start


def main() -> int:
    """Print a table; 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=2_000, help="metric points of each run")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    missed = False
    points = given.runs * given.points
    head = "ours | bare | ratio | without opening | of processor time | requests | read"
    print(f"| {given.runs:,} runs, {points:,} points on S3 | {head} |")
    print("|---|---|---|---|---|---|---|---|")
    with _served(given.runs, given.points) as server:
        opening = median(_opened(server) for _ in range(given.rounds))
        print(f"| opening | {opening:.2f} s | | | | | | |", flush=True)
        for name, (ours, bare) in _works(server, given.runs).items():
            with counted() as traffic:
                ours()
            mine, theirs = _compared(ours, bare, given.rounds)
            ratio, processor = (one / other for one, other in zip(mine, theirs, strict=True))
            besides = (mine.seconds - opening) / theirs.seconds
            missed = missed or besides > _LIMIT
            ratios = [f"{number:.2f}" for number in (ratio, besides, processor)]
            cells = [name, f"{mine.seconds:.2f} s", f"{theirs.seconds:.2f} s", *ratios]
            print(f"| {' | '.join(cells)} | {len(traffic.requests)} | {traffic.bytes / MIB:.1f} MiB |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
