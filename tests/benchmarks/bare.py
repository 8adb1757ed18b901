"""The least that such work needs with plain tools: what ours is measured against. See ``child.py``."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import adbc_driver_sqlite.dbapi
import pyarrow.compute as pc
import requests

__all__ = ["copy", "fetch", "send"]

Work = Callable[[], dict[str, Any]]

_BLOCK: Final = 1 << 20
_BATCH: Final = 1_000


def fetch(*, path: str) -> Work:
    """The rows of ``metrics`` in an SQLite file, fetched into Arrow and thrown away: the least that any reader has to do."""

    def work() -> dict[str, Any]:
        with adbc_driver_sqlite.dbapi.connect(f"file:{path}?mode=ro") as connection, connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "65536"})
            cursor.execute("SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics")
            return {"points": sum(batch.num_rows for batch in cursor.fetch_record_batch())}

    return work


def copy(*, source: str, target: str, sync: bool) -> Work:
    """Every file below a folder read, hashed with SHA-256 and copied, optionally so that it survives a power loss."""

    def one(file: str, to: str) -> int:
        digest, size = hashlib.sha256(), 0
        with open(file, "rb", buffering=0) as reading, open(to, "xb", buffering=0) as writing:
            while block := reading.read(_BLOCK):
                digest.update(block)
                writing.write(block)
                size += len(block)
            if sync:
                os.fsync(writing.fileno())
        return size

    def work() -> dict[str, Any]:
        size = files = 0
        for folder, _, names in os.walk(source):
            there = os.path.join(target, os.path.relpath(folder, source))
            os.makedirs(there)
            for name in names:
                size += one(os.path.join(folder, name), os.path.join(there, name))
                files += 1
        return {"file_bytes": size, "files": files}

    return work


def send(*, path: str, experiment: str, name: str, url: str, threads: int) -> Work:
    """The points of an experiment of an SQLite file sent to a server by ``log-batch``, encoded before the clock starts."""
    api = f"{url}/api/2.0/mlflow"
    with adbc_driver_sqlite.dbapi.connect(f"file:{path}?mode=ro") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT m.run_uuid, m.key, m.value, m.timestamp, m.step FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
            "JOIN experiments e ON e.experiment_id = r.experiment_id WHERE e.name = ? ORDER BY m.run_uuid, m.key, m.step",
            (experiment,),
        )
        table = cursor.fetch_arrow_table()
    made = requests.post(f"{api}/experiments/create", json={"name": name}, timeout=60).json()["experiment_id"]
    bodies: list[bytes] = []
    for run in sorted(set(table.column("run_uuid").unique().to_pylist())):
        answer = requests.post(f"{api}/runs/create", json={"experiment_id": made, "start_time": 1}, timeout=60).json()
        target = answer["run"]["info"]["run_id"]
        points = table.filter(pc.equal(table.column("run_uuid"), run)).drop_columns("run_uuid").to_pylist()
        bodies += [
            json.dumps({"run_id": target, "metrics": points[start : start + _BATCH]}).encode()
            for start in range(0, len(points), _BATCH)
        ]
    local = threading.local()

    def post(body: bytes) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        headers = {"Content-Type": "application/json"}
        local.session.post(f"{api}/runs/log-batch", data=body, headers=headers, timeout=120).raise_for_status()

    def work() -> dict[str, Any]:
        with ThreadPoolExecutor(threads) as executor:
            for _ in executor.map(post, bodies):
                pass
        return {"points": table.num_rows}

    return work
