"""Packing and restoring through a tracking server, against the peer on the same server."""

from __future__ import annotations

from functools import partial

from tests.benchmarks.bench import Bench, Taken
from tests.benchmarks.content import Content
from tests.benchmarks.measure import Done, Row, alternate, do, processors, rate

__all__ = ["pack_long", "pack_short", "unpack_long"]

#: Requests at a time, of ours (its default) and of the bare loop.
_THREADS = 6


def pack_long(bench: Bench) -> list[Row]:
    """Few long histories."""
    return [_pack(bench, bench.long, bench.peer_long, 10)]


def pack_short(bench: Bench) -> list[Row]:
    """Many short histories, for each of which the peer sends a request."""
    return [_pack(bench, bench.short, bench.peer_short, 100)]


def _pack(bench: Bench, content: Content, peer: Taken, target: int) -> Row:
    with bench.room("bundles") as room:
        bench.say(f"pack over REST: {content}")
        url = bench.source.url
        (ours,) = alternate(
            3, lambda number: do("ours.pack", experiment=content.name, bundle=room / f"{number}", tracking_uri=url)
        )
    assert ours.answer["points"] == content.points
    ratio = content.points / ours.seconds / peer.rate
    scaled = "" if peer.points == content.points else f"; it was given {peer.points:,} of the points"
    return Row(
        f"pack over REST, {content}",
        f"{ours.seconds:.2f} s, {rate(content.points, ours.seconds)}",
        f"peer {peer.seconds:.1f} s, {rate(peer.points, peer.seconds)}{scaled}",
        f"{ratio:.1f} x",
        f"{target} x",
        ratio >= target,
        (f"start of a peer's command, not counted: {bench.peer.start:.1f} s",),
    )


def unpack_long(bench: Bench) -> list[Row]:
    """Restore through a server: against the peer, and against sending the same points with nothing around it."""
    content, peer, url = bench.long, bench.peer_import, bench.target.url
    with bench.room("bundles") as room:
        source = str(bench.source_path)
        where = {"tracking_uri": f"sqlite:///{source}", "artifacts_destination": bench.source_artifacts}
        do("ours.pack", experiment=content.name, bundle=room / "b", **where)
        bench.say(f"unpack over REST, and the bare loop: {content}")

        def ours(number: int) -> Done:
            rename = {content.name: f"ours {number}"}
            return do("ours.unpack", bundle=room / "b", tracking_uri=url, rename=rename, jobs=_THREADS)

        def bare(number: int) -> Done:
            return do("bare.send", path=source, experiment=content.name, name=f"bare {number}", url=url, threads=_THREADS)

        done, sent = alternate(3, ours, bare)
    assert done.answer["points"] == sent.answer["points"] == content.points
    against_peer = content.points / done.seconds / peer.rate
    against_bare = sent.seconds / done.seconds
    row = partial(Row, ours=f"{done.seconds:.2f} s, {rate(content.points, done.seconds)}")
    return [
        row(
            work=f"unpack over REST, {content}",
            theirs=f"peer {peer.seconds:.1f} s, {rate(peer.points, peer.seconds)}",
            ratio=f"{against_peer:.1f} x",
            target="3 x",
            met=against_peer >= 3,
            notes=("ours reads back and compares everything; the peer does not",),
        ),
        row(
            work="the same",
            theirs=f"bare log-batch loop without reading back, {_THREADS} threads: "
            f"{sent.seconds:.2f} s, {rate(content.points, sent.seconds)}",
            ratio=f"{against_bare:.2f}",
            target="0.80",
            met=against_bare >= 0.8,
            notes=(f"unpack over REST and bare loop: {processors(done, sent)}",),
        ),
    ]
