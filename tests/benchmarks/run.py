"""Runs the benchmarks by hand and prints one Markdown table: ``python -m tests.benchmarks.run [NAME...] [--quick]``."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.benchmarks import entities, in_bundle, over_rest, with_database
from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Row

ROWS: Final[Mapping[str, Callable[[Bench], list[Row]]]] = {
    "rest-long": over_rest.pack_long,
    "rest-short": over_rest.pack_short,
    "sqlite": with_database.pack_database,
    "unpack-rest": over_rest.unpack_long,
    "unpack-sqlite": with_database.unpack_database,
    "registry": entities.registry,
    "traces": entities.traces,
    "datasets": entities.datasets,
    "bytes": in_bundle.bytes_a_point,
    "again": with_database.pack_again,
    "files": in_bundle.files,
    "memory": in_bundle.memory,
    "objects": in_bundle.objects,
}
_COLUMNS: Final = ("work", "ours", "against", "ratio", "at least", "met")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run, all without: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="smaller contents: minutes instead of an hour, rougher numbers")
    parser.add_argument("--peer-venv", type=Path, help="a virtual environment that has the peer, instead of making one")
    parser.add_argument("--scratch", type=Path, help="where to make the scratch folder; it needs 15 GB")
    parser.add_argument("--workers", type=int, default=4, help="workers of every mlflow server (default: 4, as MLflow's own)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return arguments


def main() -> int:
    """Run the rows that were asked for. The exit code is 1 when a target was missed."""
    arguments = _arguments()
    scratch = Path(tempfile.mkdtemp(prefix="mlflow-bundle-benchmarks-", dir=arguments.scratch))
    bench = Bench(scratch, peer=arguments.peer_venv, quick=arguments.quick, workers=arguments.workers)
    print(_machine(quick=arguments.quick), flush=True)
    print(f"\n| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    rows: list[Row] = []
    try:
        for name in arguments.names or ROWS:
            for row in ROWS[name](bench):
                print(_line(row), flush=True)
                rows.append(row)
    finally:
        bench.close()
        shutil.rmtree(scratch)
    if notes := dict.fromkeys(note for row in rows for note in row.notes):
        print("\n" + "\n".join(f"- {note}" for note in notes))
    return int(any(row.met is False for row in rows))


def _line(row: Row) -> str:
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    return f"| {row.work} | {row.ours} | {row.theirs} | {row.ratio} | {row.target} | {met} |"


def _machine(*, quick: bool) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("mlflow", "pyarrow", "adbc-driver-sqlite"))
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    size = "quick: " if quick else ""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{size}{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.system()}, {python}, {packages}{load}"


if __name__ == "__main__":
    sys.exit(main())
