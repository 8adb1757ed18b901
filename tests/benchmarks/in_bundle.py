"""What a bundle costs: bytes a point, objects, memory, and the time for files."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow_bundle
from mlflow_bundle._limits import GIB, KIB, MIB
from tests.benchmarks.bench import Bench, folder_bytes
from tests.benchmarks.content import Content, Series, add_experiment, make_files, new_database
from tests.benchmarks.measure import Done, Row, alternate, do, processors

__all__ = ["bytes_a_point", "files", "memory", "objects"]


def bytes_a_point(bench: Bench) -> list[Row]:
    """The whole bundle, and its metric objects alone, divided by the points."""
    rows = [_bytes(bench, series) for series in ("rounded", "float32", "float64")]
    peer = bench.peer_long
    theirs = f"peer {folder_bytes(peer.folder) / peer.points:.0f} bytes"
    return [
        Row(
            f"bytes a metric point, values: {what}",
            f"{whole:.2f} in the whole bundle, {metrics:.2f} in its metrics",
            theirs,
            "",
            "at most 8",
            whole <= 8,
        )
        for what, whole, metrics in rows
    ]


def _bytes(bench: Bench, series: Series) -> tuple[str, float, float]:
    content = Content(f"points {series}", 25 if bench.quick else 100, 20, 500, series)
    with bench.room("bytes") as room:
        do("ours.pack", bundle=room / "b", tracking_uri=f"sqlite:///{bench.database(room, content)}")
        with mlflow_bundle.open(room / "b") as bundle:
            metrics = sum(ref.size for ref in bundle.objects if ref.role == "metrics")
        whole = folder_bytes(room / "b")
    words = {"rounded": "6 decimals", "float32": "32-bit floats", "float64": "random in all 52 bits"}
    return f"{words[series]}, {content}", whole / content.points, metrics / content.points


def objects(bench: Bench) -> list[Row]:
    """Many runs with small files each."""
    content = Content("objects", 500 if bench.quick else 10_000, 0, 1)
    with bench.room("objects") as room:
        database = _with_files(bench, room, content, 10, 200, 2 * KIB)
        done = do("ours.pack", bundle=room / "b", tracking_uri=f"sqlite:///{database}")
        with mlflow_bundle.open(room / "b") as bundle:
            listed = len(bundle.objects)
        there = sum(path.is_file() for path in (room / "b").rglob("*"))
    return [
        Row(
            f"objects for {content.runs:,} runs with 10 small files each",
            f"{listed} in the snapshot, {there} files in the bundle",
            "",
            "",
            "at most 60",
            there <= 60,
            (f"packed in {done.seconds:.1f} s, {content.runs * 10 / done.seconds:,.0f} files/s",),
        )
    ]


def _with_files(bench: Bench, room: Path, content: Content, each: int, low: int, high: int) -> Path:
    """A database and the files of its runs below ``artifacts``."""
    database = new_database(bench.scratch / "template.db", room / "mlflow.db")
    ids = add_experiment(database, content, artifacts=str(room / "artifacts"))
    bench.say(f"writing {each} files each for {content.runs:,} runs")
    for number, run in enumerate(ids):
        make_files(room / "artifacts" / "1" / run / "artifacts", each, low, high, seed=number)
    return database


def memory(bench: Bench) -> list[Row]:
    """Peak memory of the process for a content, and for four times as much."""
    scale = 5 if bench.quick else 1
    small, large = (_peak(bench, Content("memory", runs // scale, 20, 500)) for runs in (500, 2_000))
    ratio = large[1].peak / small[1].peak
    mebibytes = tuple(round(done.peak / MIB) for _, done in (small, large))
    return [
        Row(
            f"peak memory, {large[0].points:,} and {small[0].points:,} points from SQLite",
            f"{mebibytes[1]} MiB and {mebibytes[0]} MiB",
            "",
            f"{ratio:.2f}",
            "400 MiB, at most 1.15",
            max(mebibytes) <= 400 and ratio <= 1.15,
            (f"packed in {large[1].seconds:.1f} s and {small[1].seconds:.1f} s",),
        )
    ]


def _peak(bench: Bench, content: Content) -> tuple[Content, Done]:
    with bench.room("memory") as room:
        done = do("ours.pack", bundle=room / "b", tracking_uri=f"sqlite:///{bench.database(room, content)}")
    assert done.answer["points"] == content.points
    return content, done


def files(bench: Bench) -> list[Row]:
    """Many small files, few large ones, and both, against reading, hashing and copying them with plain tools."""
    size = GIB // 32 if bench.quick else GIB
    small = _files(bench, Content("small", 100, 0, 1), 10, KIB, 50 * KIB)
    large = _files(bench, Content("large", 8, 0, 1), 1, size // 8, size // 8)
    both = tuple(_sum(a, b) for a, b in zip(small, large, strict=True))
    names = ("1,000 files of 1 to 50 kB", f"8 files, {size // MIB:,} MiB in all", "both together")
    return [_files_row(name, done) for name, done in zip(names, (small, large, both), strict=True)]


def _sum(a: Done, b: Done) -> Done:
    size = a.answer["file_bytes"] + b.answer["file_bytes"]
    return Done(a.seconds + b.seconds, a.processor + b.processor, max(a.peak, b.peak), {"file_bytes": size})


def _files(bench: Bench, content: Content, each: int, low: int, high: int) -> tuple[Done, ...]:
    with bench.room("files") as room:
        database = _with_files(bench, room, content, each, low, high)

        def fresh(name: str) -> Path:
            shutil.rmtree(room / name, ignore_errors=True)
            return room / name

        done = alternate(
            3,
            lambda _: do("ours.pack", bundle=fresh("b"), tracking_uri=f"sqlite:///{database}"),
            lambda _: do("bare.copy", source=room / "artifacts", target=fresh("copy"), sync=True),
            lambda _: do("bare.copy", source=room / "artifacts", target=fresh("copy"), sync=False),
        )
    assert len({item.answer["file_bytes"] for item in done}) == 1
    return tuple(done)


def _files_row(name: str, done: tuple[Done, ...]) -> Row:
    ours, synced, plain = done
    size = ours.answer["file_bytes"] / MIB
    ratio = synced.seconds / ours.seconds
    return Row(
        f"artifacts: {name}, local",
        f"{ours.seconds:.2f} s, {size / ours.seconds:,.0f} MiB/s",
        f"read, SHA-256, copy and fsync each: {synced.seconds:.2f} s, {size / synced.seconds:,.0f} MiB/s",
        f"{ratio:.2f}",
        "0.60",
        ratio >= 0.6,
        (
            f"{name}: without fsync the plain copy takes {plain.seconds:.2f} s, ratio {plain.seconds / ours.seconds:.2f}; "
            + processors(ours, plain),
        ),
    )
