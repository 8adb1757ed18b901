"""Packing and restoring models, traces and evaluation records: from and into an SQLite file, and through a server."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.bench import Bench
from tests.benchmarks.content import new_database
from tests.benchmarks.entity_content import add_dataset, add_registry, add_traces
from tests.benchmarks.measure import Done, Row, alternate, do

__all__ = ["datasets", "registry", "traces"]

Fill = Callable[[Path, str], None]

#: What a pack from SQLite should reach, entities a second.
_TRACES_EACH_SECOND: Final = 10_000
_SCALE: Final = 5


def _made(bench: Bench, room: Path, fill: Fill) -> Path:
    path = new_database(bench.scratch / "template.db", room / "mlflow.db")
    (room / "artifacts").mkdir()
    fill(path, "mlflow-artifacts:")
    return path


def _rate(count: int, done: Done, noun: str) -> str:
    return f"{done.seconds:.2f} s, {count / done.seconds:,.0f} {noun}/s"


def _alone(work: str, count: int, done: Done, noun: str, *, least: int | None = None) -> Row:
    """A row of our own rate. ``least`` is the rate that is asked for."""
    met = None if least is None else count / done.seconds >= least
    return Row(work, _rate(count, done, noun), "", "", "" if least is None else f"{least:,} {noun}/s", met)


def _packed(done: Done, kind: str, count: int) -> Done:
    found: Mapping[str, Any] = done.answer["counts"]
    assert (done.answer["state"], found[kind]) == ("complete", count), found
    return done


def _restored(done: Done, kind: str, count: int) -> Done:
    assert done.answer["restored"][kind] == count, done.answer
    return done


def _roads(bench: Bench, what: str, kind: str, noun: str, count: int, fill: Fill, *, least: int | None = None) -> list[Row]:
    """Pack from SQLite and over REST, and unpack into SQLite."""
    with ExitStack() as stack:
        room = stack.enter_context(bench.room(kind))
        database, files = _made(bench, room, fill), str(room / "artifacts")
        uri = f"sqlite:///{database}"

        def pack(number: int) -> Done:
            done = do("ours.pack", bundle=room / f"b{number}", tracking_uri=uri, artifacts_destination=files)
            return _packed(done, kind, count)

        def unpack(number: int) -> Done:
            target = new_database(bench.scratch / "template.db", room / f"target-{number}.db")
            done = do("ours.unpack", bundle=room / "b0", tracking_uri=f"sqlite:///{target}")
            return _restored(done, kind, count)

        bench.say(f"{what}: SQLite")
        (packed,) = alternate(3, pack)
        (unpacked,) = alternate(3, unpack)
        bench.say(f"{what}: over REST")
        server = bench.serve(database, Path(files))
        asked = _packed(do("ours.pack", bundle=room / "rest", tracking_uri=server.url), kind, count)
    return [
        _alone(f"pack from SQLite, {what}", count, packed, noun, least=least),
        _alone(f"unpack into SQLite, {what}", count, unpacked, noun),
        _alone(f"pack over REST, {what}", count, asked, noun),
    ]


def registry(bench: Bench) -> list[Row]:
    """Registered models with versions; the peer exports the same ones over REST."""
    models, versions = (40 if bench.quick else 200), 5
    what = f"{models} models x {versions} versions"

    def fill(path: Path, artifacts: str) -> None:
        add_registry(path, models=models, versions=versions, artifacts=artifacts)

    rows = _roads(bench, what, "model_version", "versions", models * versions, fill)
    with bench.room("registry-peer") as room:
        database = _made(bench, room, fill)
        server = bench.serve(database, room / "artifacts")
        ours = _packed(do("ours.pack", bundle=room / "b", tracking_uri=server.url), "model_version", models * versions)
        bench.say(f"the peer exports {what}")
        seconds = bench.peer.export_models(server.url, room / "peer")
    ratio = seconds / ours.seconds
    told = f"peer's export-models {seconds:.1f} s, {models * versions / seconds:,.0f} versions/s"
    row = Row(f"pack over REST, {what}", _rate(models * versions, ours, "versions"), told, f"{ratio:.1f} x", "", None)
    return [*rows[:2], row]


def traces(bench: Bench) -> list[Row]:
    """Traces with ten spans each; fewer of them are restored through a server. The peer restores no traces of MLflow 3."""
    count, spans = (1_000 if bench.quick else 5_000), 10

    def fill(path: Path, artifacts: str) -> None:
        add_traces(path, traces=count, spans=spans, artifacts=artifacts)

    what = f"{count:,} traces x {spans} spans"
    rows = _roads(bench, what, "trace", "traces", count, fill, least=_TRACES_EACH_SECOND)
    few = count // _SCALE
    with bench.room("traces-rest") as room:
        database = _made(bench, room, lambda path, where: add_traces(path, traces=few, spans=spans, artifacts=where))
        do("ours.pack", bundle=room / "b", tracking_uri=f"sqlite:///{database}", artifacts_destination=str(room / "artifacts"))
        bench.say(f"{few:,} traces back through a server")
        done = _restored(do("ours.unpack", bundle=room / "b", tracking_uri=bench.target.url), "trace", few)
        assert _count(bench.target_path, "spans") == few * spans
    return [*rows, _alone(f"unpack over REST, {few:,} traces x {spans} spans", few, done, "traces")]


def datasets(bench: Bench) -> list[Row]:
    """Records of one evaluation dataset."""
    count = 2_000 if bench.quick else 20_000

    def fill(path: Path, artifacts: str) -> None:
        add_dataset(path, records=count, artifacts=artifacts)

    return _roads(bench, f"{count:,} evaluation records", "dataset_record", "records", count, fill)


def _count(database: Path, table: str) -> int:
    with sqlite3.connect(database) as connection:
        (rows,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    connection.close()
    return int(rows)
