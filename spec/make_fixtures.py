"""Writes spec/v1/fixtures: tiny bundles that are good, that deserve a warning, or that are bad in just one way.

One that is not good is named ``<CODE>_<what>``: a verification reports that code. ``<CODE>_<what>.limits.json`` beside it
lowers limits of the reader. Content and times are fixed; only the bytes of Parquet objects depend on the writing library.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))

from _fixture_bad import BAD, BASES, WARN
from _fixture_content import FULL, MINIMAL, NOW, START, TINY, Content, pack_content, run_id
from _fixture_workshop import Workshop, lines_object, plain_parquet

from mlflow_bundle import _layout
from mlflow_bundle._codec import encode
from mlflow_bundle._limits import Targets
from mlflow_bundle._merkle import leaf, logical_of
from mlflow_bundle.records import Experiment, Problem, Run, Scope

FOLDER: Final = Path(__file__).parent / "v1" / "fixtures"
DAY: Final = 86_400_000


def minimal(place: Path) -> None:
    """One experiment, one run, three points, one file: the example of the specification."""
    pack_content(place, MINIMAL)


def empty(place: Path) -> None:
    """A snapshot of nothing."""
    pack_content(place, Content())


def everything(place: Path) -> None:
    """Every feature of layout 1, in many tiny objects."""
    pack_content(place, FULL, targets=TINY)


def object_lists(place: Path) -> None:
    """A snapshot whose list of objects is an object of its own."""
    pack_content(place, MINIMAL, targets=Targets(inline_bytes=100))


def several_snapshots(place: Path) -> None:
    """Three days: runs are added, one is renamed, a file is replaced; packs and index parts are merged."""
    for day in range(3):
        runs = [Run(run_id=run_id(n), experiment_id="1", start_time=START + n, run_name=f"day {day}") for n in range(day + 2)]
        pack_content(
            place,
            Content(
                experiments=[Experiment(experiment_id="1", name="nightly", creation_time=START)],
                runs=runs,
                metrics={run.run_id: [("loss", s, START + s, 1 / (s + 1)) for s in range(5)] for run in runs},
                files={run.run_id: {"a.txt": b"day %d\n" % min(day, n), "b": b"b"} for n, run in enumerate(runs)},
            ),
            created_at=NOW + day * DAY,
            targets=TINY,
        )


def partial(place: Path) -> None:
    """A file could not be read and the files of another run not be listed; the snapshot says so."""
    one, two = run_id(0xB1), run_id(0xB2)
    problems = [
        Problem(
            code="artifact-unreadable",
            kind="run",
            id=one,
            path="lost.bin",
            message=f"file 'lost.bin' of run {one}: access is denied",
            experiments=("1",),
            runs=(one,),
        ),
        Problem(
            code="artifacts-not-listed",
            kind="run",
            id=two,
            message=f"files of run {two}: access is denied",
            experiments=("1",),
            runs=(two,),
        ),
    ]
    content = Content(
        experiments=[Experiment(experiment_id="1", name="churn", creation_time=START)],
        runs=[Run(run_id=run, experiment_id="1", start_time=START) for run in (one, two)],
        files={one: {"kept.txt": b"kept\n", "lost.bin": None}},
    )
    scope = Scope(
        experiments=("churn",), filter="metrics.loss < 1", since=START, until=NOW, lifecycle="active", descendants=True
    )
    pack_content(place, content, problems=problems, notes=["one note"], scope=scope)


def one_file(place: Path) -> None:
    """The minimal bundle as one ZIP file."""
    pack_content(place, MINIMAL)


def from_the_future(place: Path) -> None:
    """What a later 1.x writer may add: members, a kind of record, a role with a table, notes. Nothing of it is required."""
    with tempfile.TemporaryDirectory() as folder:
        pack_content(Path(folder), MINIMAL)
        shop = Workshop(Path(folder))
    shop.edit_record(
        "run", colour="blue", nested={"deep": [{"er": None}]}, params=[{"key": "lr", "secret": False, "value": "0.1"}]
    )
    record = {"artifact_uri": "s3://later", "kind": "later_kind", "name": "größe", "versions": [1, 2]}
    shop.put(_layout.RECORDS, lines_object([encode(record)]), kind="later_kind", rows=1, content="")
    table = plain_parquet(pa.table({"later_id": ["1"], "content": ["{}"]}), "later_rows/1")
    shop.put("later_rows", table, rows=1, strange="field")
    shop.snapshot |= {"retention": {"days": 30}, "counts": shop.snapshot["counts"] | {"later_row": 1}}
    shop.files[_layout.MARKER] = encode(json.loads(shop.files[_layout.MARKER]) | {"title": "from the future"})
    shop.mend()
    _later_root(shop.snapshot["logical"])
    shop.commit()
    shop.save(place)


def _later_root(said: dict[str, Any]) -> None:
    """Let the leaf of the later kind cover what nobody knows today."""
    later = leaf("later_kind", hashlib.sha256(b"of its rows").digest())
    roots = {kind: (bytes.fromhex(value["root"][7:]), value["rows"]) for kind, value in said["kinds"].items()}
    said.update(json.loads(encode(logical_of(roots | {"later_kind": (later, 1)}))))


GOOD: Final[dict[str, Callable[[Path], None]]] = {
    "minimal": minimal,
    "empty": empty,
    "everything": everything,
    "object_lists": object_lists,
    "several_snapshots": several_snapshots,
    "partial": partial,
    "one_file.mlbundle.zip": one_file,
    "from_the_future": from_the_future,
}


def write_fixtures(folder: Path) -> None:
    """Write all fixtures below a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, make in GOOD.items():
        (folder / "good").mkdir(parents=True, exist_ok=True)
        make(folder / "good" / name)
    with tempfile.TemporaryDirectory() as scratch:
        bases = {}
        for name, make_base in BASES.items():
            make_base(Path(scratch, name))
            bases[name] = Path(scratch, name)
        for group, damages in (("warn", WARN), ("bad", BAD)):
            for damage in damages:
                damage.write(folder / group, bases)
    for staging in folder.rglob(_layout.STAGING):
        staging.rmdir()


def summary(folder: Path) -> dict[str, Any]:
    """What must not depend on the library that wrote the Parquet objects: the logical root of each good fixture."""
    roots = {}
    for place in sorted((folder / "good").iterdir()):
        if place.is_dir():
            newest = max((place / "snapshots").iterdir())
            roots[place.name] = json.loads(newest.read_text(encoding="utf-8"))["logical"]["root"]
    return roots


if __name__ == "__main__":
    write_fixtures(FOLDER)
    for made, root in summary(FOLDER).items():
        print(f"{root}  {made}")
