"""Packing from and restoring into an SQLite file directly, and packing again."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from tests.benchmarks.bench import Bench, Taken
from tests.benchmarks.content import Content, make_files, new_database
from tests.benchmarks.measure import Done, Row, alternate, do, processors, rate

__all__ = ["pack_again", "pack_database", "unpack_database"]


def _big(bench: Bench) -> Content:
    return Content("big", 50 if bench.quick else 200, 20, 500)


def pack_database(bench: Bench) -> list[Row]:
    """Pack from the file: against the peer over REST, and against a bare fetch of the same rows."""
    return [
        _against_peer(bench, bench.long, bench.peer_long),
        _against_peer(bench, bench.short, bench.peer_short),
        _against_fetch(bench, _big(bench)),
    ]


def _pack(content: Content, bundle: Path, database: Path, **options: object) -> Done:
    done = do("ours.pack", experiment=content.name, bundle=bundle, tracking_uri=f"sqlite:///{database}", **options)
    assert done.answer["points"] == content.points
    assert done.answer["state"] == "complete"
    return done


def _pack_source(bench: Bench, content: Content, bundle: Path) -> Done:
    return _pack(content, bundle, bench.source_path, artifacts_destination=str(bench.source_artifacts))


def _against_peer(bench: Bench, content: Content, peer: Taken) -> Row:
    with bench.room("bundles") as room:
        (ours,) = alternate(5, lambda number: _pack_source(bench, content, room / f"{number}"))
    ratio = content.points / ours.seconds / peer.rate
    return Row(
        f"pack from SQLite, {content}",
        f"{ours.seconds:.2f} s, {rate(content.points, ours.seconds)}",
        f"peer over REST {peer.seconds:.1f} s, {rate(peer.points, peer.seconds)}",
        f"{ratio:.0f} x",
        "200 x",
        ratio >= 200,
    )


def _against_fetch(bench: Bench, content: Content) -> Row:
    with bench.room("big") as room:
        database = bench.database(room, content)
        ours, bare = alternate(
            3,
            lambda number: _pack(content, room / f"{number}", database),
            lambda _: do("bare.fetch", path=database),
        )
    assert bare.answer["points"] == content.points
    ratio = bare.seconds / ours.seconds
    return Row(
        f"pack from SQLite, {content}",
        f"{ours.seconds:.2f} s, {rate(content.points, ours.seconds)}",
        f"bare ADBC fetch of the same rows, unsorted: {bare.seconds:.2f} s, {rate(content.points, bare.seconds)}",
        f"{ratio:.2f}",
        "0.50",
        ratio >= 0.5,
        (f"pack and bare fetch of {content.points:,} points: {processors(ours, bare)}",),
    )


def unpack_database(bench: Bench) -> list[Row]:
    """Restore into an SQLite file that MLflow made: the peer's content, and more of it."""
    peer = bench.peer_import
    with bench.room("unpack") as room:
        _pack_source(bench, bench.long, room / "b")
        rows = [_unpack(bench, room, bench.long, peer)]
    with bench.room("unpack") as room:
        big = _big(bench)
        _pack(big, room / "b", bench.database(room, big))
        rows.append(_unpack(bench, room, big, peer))
    return rows


def _unpack(bench: Bench, room: Path, content: Content, peer: Taken) -> Row:
    def ours(number: int) -> Done:
        target = new_database(bench.scratch / "template.db", room / f"target-{number}.db")
        return do("ours.unpack", bundle=room / "b", tracking_uri=f"sqlite:///{target}")

    (done,) = alternate(3, ours)
    assert (done.answer["points"], done.answer["runs"]) == (content.points, content.runs)
    ratio = content.points / done.seconds / peer.rate
    return Row(
        f"unpack into SQLite, {content}",
        f"{done.seconds:.2f} s, {rate(content.points, done.seconds)}",
        f"peer's import over REST {peer.seconds:.1f} s, {rate(peer.points, peer.seconds)}",
        f"{ratio:.0f} x",
        "50 x",
        ratio >= 50,
    )


def pack_again(bench: Bench) -> list[Row]:
    """Pack twice with nothing changed in between; a third pack reads everything again and must agree."""
    content = Content("again", 200 if bench.quick else 1_000, 20, 100)
    with bench.room("again") as room:
        database = bench.database(room, content)
        folders = sorted(path for path in _run_folders(database))
        for number, folder in enumerate(folders):
            make_files(folder, 2, 500, 5_000, seed=number)
        time.sleep(2.5)  # the stamps of files that have just changed are not trusted
        first, second = alternate(
            3,
            lambda number: _pack(content, room / f"{number}", database),
            lambda number: _pack(content, room / f"{number}", database),
        )
        whole = _pack(content, room / "0", database, full=True)
    assert first.answer["logical_root"] == second.answer["logical_root"] == whole.answer["logical_root"]
    ratio = second.seconds / first.seconds
    return [
        Row(
            f"second pack with nothing changed, {content}, 2 files each",
            f"{second.seconds:.2f} s, {second.answer['new_objects']} new objects",
            f"first pack {first.seconds:.2f} s",
            f"{ratio:.2f}",
            "at most 0.20",
            ratio <= 0.2,
            ("the logical root is the same as that of the first pack, and of one that reads everything again",),
        )
    ]


def _run_folders(database: Path) -> list[Path]:
    with sqlite3.connect(database) as connection:
        found = [Path(uri) for (uri,) in connection.execute("SELECT artifact_uri FROM runs")]
    connection.close()
    return found
