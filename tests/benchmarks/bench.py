"""What the rows share: scratch space, databases, servers, and the peer's results, each made once and only when asked for."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.benchmarks.content import Content, add_experiment, count_points, new_database
from tests.benchmarks.peer import Peer, find_peer
from tests.fixtures.server import MlflowServer, ServerFactory

__all__ = ["Bench", "Taken", "folder_bytes"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What the peer did: seconds, the points it moved, and the folder it wrote or read."""

    seconds: float
    points: int
    folder: Path

    @property
    def rate(self) -> float:
        return self.points / self.seconds


class Bench:
    """One run of the benchmarks. ``quick`` makes everything smaller. ``workers`` are those of every ``mlflow server``."""

    def __init__(self, scratch: Path, *, peer: Path | None, quick: bool, workers: int) -> None:
        self.scratch, self.quick, self._workers = scratch, quick, workers
        self._peer_home = peer
        self._servers = ServerFactory(scratch / "servers")
        self._number = 0
        self.long = Content("long", 4 if quick else 20, 20, 500)
        self.short = Content("short", 20 if quick else 100, 100, 10)
        self._short_ids: list[str] = []

    def say(self, text: str) -> None:
        """Tell on stderr what is going on."""
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def place(self, name: str) -> Path:
        """A path in the scratch folder that was never used."""
        self._number += 1
        return self.scratch / f"{name}-{self._number}"

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """A scratch folder that is removed at the end."""
        folder = self.place(name)
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)

    def database(self, folder: Path, *contents: Content, artifacts: str | None = None) -> Path:
        """A new SQLite database with these experiments. Without ``artifacts`` they lie beside it."""
        path = new_database(self.scratch / "template.db", folder / "mlflow.db")
        for content in contents:
            self.say(f"writing {content} into {path}")
            ids = add_experiment(path, content, artifacts=artifacts or str(folder / "artifacts"))
            if content is self.short:
                self._short_ids = ids
        return path

    @cached_property
    def peer(self) -> Peer:
        """The peer, installed where it is not."""
        return find_peer(self._peer_home, self.scratch)

    @cached_property
    def source_path(self) -> Path:
        """The database with ``long`` and ``short``, which the source server serves."""
        folder = self.place("source")
        folder.mkdir()
        return self.database(folder, self.long, self.short, artifacts="mlflow-artifacts:")

    @cached_property
    def source(self) -> MlflowServer:
        """The server on ``source_path``."""
        return self.serve(self.source_path, self.source_artifacts)

    @property
    def source_artifacts(self) -> Path:
        """Where the source server keeps its artifacts; there are none."""
        folder = self.source_path.parent / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder

    @cached_property
    def target_path(self) -> Path:
        """The database of the target server."""
        folder = self.place("target")
        folder.mkdir()
        return self.database(folder)

    @cached_property
    def target(self) -> MlflowServer:
        """A second server, which everybody imports into; of the same configuration."""
        return self.serve(self.target_path, self.target_path.parent / "artifacts")

    def serve(self, path: Path, artifacts: Path) -> MlflowServer:
        """Start a server on a database. It runs until the end."""
        self.say(f"starting mlflow server with {self._workers} workers on {path}")
        return self._servers(backend_store_uri=f"sqlite:///{path}", artifacts_destination=str(artifacts), workers=self._workers)

    @cached_property
    def peer_long(self) -> Taken:
        """The peer exports the long histories over REST."""
        folder = self.place("peer-long")
        self.say(f"the peer exports {self.long}")
        seconds = self.peer.export(self.source.url, self.long.name, folder)
        return Taken(seconds, self.long.points, folder)

    @cached_property
    def peer_short(self) -> Taken:
        """The peer exports the short histories over REST; with ``quick`` only those of the first runs."""
        folder, url = self.place("peer-short"), self.source.url
        ids = self._short_ids[:5] if self.quick else []
        self.say(f"the peer exports {len(ids) or 'all'} runs of {self.short}, which takes minutes")
        seconds = self.peer.export(url, self.short.name, folder, run_ids=ids)
        points = self.short.points * len(ids) // self.short.runs if ids else self.short.points
        return Taken(seconds, points, folder)

    @cached_property
    def peer_import(self) -> Taken:
        """The peer imports its export of the long histories into the target server; what arrived is counted."""
        folder, name = self.peer_long.folder, "imported by the peer"
        self.say(f"the peer imports {self.long}")
        seconds = self.peer.import_(self.target.url, folder, name)
        assert count_points(self.target_path, name) == (self.long.runs, self.long.points), "the peer lost something"
        return Taken(seconds, self.long.points, folder)

    def close(self) -> None:
        """Stop the servers."""
        self._servers.stop()


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
