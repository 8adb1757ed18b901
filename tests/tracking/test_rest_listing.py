"""Lists of a server whose pages are cut by position, while somebody deletes from them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from mlflow_bundle.errors import ServerError
from mlflow_bundle.tracking._rest import RestClient
from mlflow_bundle.tracking.rest._features import SourceServer
from mlflow_bundle.tracking.rest._listing import listed
from mlflow_bundle.tracking.rest._write import RestTarget
from tests.tracking.http_peer import serve

_PATH = "/api/2.0/mlflow/things"
_SIZE = 10


def _read(names: list[str], meanwhile: Callable[[list[str], int], None]) -> tuple[set[str], list[str], int]:
    """The names that a list of a server gives, what the client doubts, and the requests; ``meanwhile`` changes the names
    after each page, whose offset it is given."""

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        offset = int(parse_qs(urlsplit(asked).query).get("page_token", ["0"])[0])
        page = {"things": [{"name": name} for name in names[offset : offset + _SIZE]]}
        more = {"next_page_token": str(offset + _SIZE)} if len(names) > offset + _SIZE else {}
        meanwhile(names, offset)
        return 200, json.dumps(page | more).encode(), None

    with serve(answer) as peer:
        client = RestClient(peer.url)
        found = [item["name"] for item in listed(client, _PATH, "things", {}, by=("name",))]
        assert len(found) == len(set(found))
        return set(found), client.doubts, len(peer.requests)


def _names(count: int) -> list[str]:
    return [f"thing{number:03}" for number in range(count)]


def test_a_list_that_nobody_deletes_from_is_read_at_most_twice() -> None:
    """One page is asked for once. Three pages are asked for twice, also while the list grows at either end."""

    def grow(names: list[str], offset: int) -> None:
        names.insert(0, f"before{offset}-{len(names)}")
        names.append(f"later{offset}-{len(names)}")

    assert _read(_names(10), lambda names, offset: None) == (set(_names(10)), [], 1)
    assert _read(_names(25), lambda names, offset: None) == (set(_names(25)), [], 6)
    found, doubts, asked = _read(_names(25), grow)
    assert found >= set(_names(25))
    assert (doubts, asked < 12) == ([], True)


def test_what_vanishes_between_pages_hides_nothing() -> None:
    """Names that were deleted from a page which was read pull no other over the border, and make nobody doubt."""
    gone = ["thing003", "thing004", "thing012"]

    def delete(names: list[str], offset: int) -> None:
        if gone and offset < 20:
            names.remove(gone.pop(0))

    found, doubts, _ = _read(_names(35), delete)
    assert found >= set(_names(35)) - {"thing003", "thing004", "thing012"}
    assert doubts == []


def test_a_list_that_never_stands_still_is_told() -> None:
    """Where something is deleted during every reading, the readings end, what was seen is kept, and the doubt is told."""

    def delete(names: list[str], offset: int) -> None:
        if offset == 0:
            del names[0]

    found, doubts, asked = _read(_names(100), delete)
    assert found >= set(_names(100)[5:])
    assert asked <= 50
    assert len(doubts) == 1
    assert _PATH in doubts[0]


def test_items_that_cannot_be_told_apart() -> None:
    """Items without the member that tells them apart are an error of the server, and not taken for one."""
    answer = json.dumps({"things": [{"size": 1}, {"size": 2}]}).encode()
    with serve(lambda *_: (200, answer, None)) as peer, pytest.raises(ServerError, match="has no 'name'"):
        listed(RestClient(peer.url), _PATH, "things", {}, by=("name",))


def test_runs_that_are_looked_for_are_not_kept() -> None:
    """Looking at a target for many restored runs takes no more memory than a page of them and their ids."""
    runs, size, note = 3_000, 500, "x" * 5_000

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        start = int(json.loads(body or b"{}").get("page_token") or 0)
        tags = [{"key": "note", "value": note}, {"key": "mlflow_bundle.source.restore", "value": "complete"}]
        page = [
            {
                "info": {"run_id": str(n), "experiment_id": "1", "lifecycle_stage": "active"},
                "data": {"tags": [*tags, {"key": "mlflow_bundle.source.run_id", "value": f"old{n}"}]},
            }
            for n in range(start, start + size)
        ]
        more = {"next_page_token": str(start + size)} if start + size < runs else {}
        return 200, json.dumps({"runs": page} | more).encode(), None

    with serve(answer) as peer:
        target = RestTarget(peer.url, bundle_id="test")
        tracemalloc.start()
        try:
            found = target.restored_runs("1", [f"old{n}" for n in range(runs)])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            target.close()
    assert len(found) == runs
    assert peak < runs * len(note)


def test_doubts_of_every_workspace_are_notes_of_the_source() -> None:
    """What the client of a workspace doubts is told once for the whole server."""
    with serve(lambda *_: (404, b"{}", None)) as peer:
        server = SourceServer(RestClient(peer.url), threads=1)
        for name in ("one", "two"):
            server.client.in_workspace(name).doubts.append("something may be missing")
        assert server.notes() == ["something may be missing"]
        server.close()


def test_doubts_are_notes_of_a_target() -> None:
    """What the lists of a target may lack is told by an unpack as it is by a pack."""
    with serve(lambda *_: (404, b"{}", None)) as peer:
        client = RestClient(peer.url)
        target = RestTarget(client, bundle_id="test")
        client.in_workspace("one").doubts.append("something may be missing")
        assert target.notes == ["something may be missing"]
        target.close()
