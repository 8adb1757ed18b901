"""The independent reader of the specification agrees with this package on every fixture, and notices what is bad."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mlflow_bundle as bundle

SPEC = Path(__file__).parent.parent / "spec"
READER = SPEC / "reader.py"
FIXTURES = SPEC / "v1" / "fixtures"
#: What a short reader does not look at: warnings, the framing of ZIP files, limits that the tests lower, and
#: relations that no digest, root or count depends on.
BEYOND = {
    "E042_runs_in_another_order",
    "E042_traces_in_another_order",
    "E046_model_metrics_elsewhere",
    "E046_points_of_another_experiment",
    "E053_entry_has_another_name",
    "E053_no_zip",
    "E060_first_row",
    "E060_first_span",
    "E060_status",
    "E063_experiment_unknown",
    "E070_bytes_at_the_end",
    "E070_flipped_bit_between_the_files",
    "E071_compressed",
    "E090_deep_record",
}


def bundles(group: str) -> list[Path]:
    """The fixtures of one group."""
    return sorted(path for path in (FIXTURES / group).iterdir() if path.suffix != ".json")


def read(place: Path, *options: str) -> tuple[int, dict[str, object]]:
    """Exit code and summary of the reader, in a process of its own with nothing of this package on its path."""
    done = subprocess.run(
        [sys.executable, "-I", str(READER), str(place), *options], capture_output=True, text=True, check=False, cwd=SPEC.anchor
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_reader_stands_alone() -> None:
    """At most 300 lines; standard library, zstandard and pyarrow."""
    source = READER.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"zstandard", "pyarrow"}


@pytest.mark.parametrize("place", bundles("good"), ids=lambda path: path.name)
def test_good_bundles_are_sound(place: Path) -> None:
    """No problems, and the same snapshot, counts and logical root as this package says."""
    code, summary = read(place)
    assert (code, summary["problems"]) == (0, [])
    with bundle.open(place) as opened:
        assert summary["snapshot"] == f"snapshots/{opened.snapshot_id}.json"
        assert summary["logical_root"] == opened.snapshot.logical.root
        counted = summary["counts"]
        assert isinstance(counted, dict)
        assert {name: count for name, count in opened.snapshot.counts.items() if name in counted} == counted


@pytest.mark.parametrize("place", bundles("warn"), ids=lambda path: path.name)
def test_a_warning_is_no_problem(place: Path) -> None:
    """What deserves a warning is sound. This reader does not tell a snapshot that was cut off from a damaged one."""
    code, summary = read(place)
    problems = summary["problems"]
    assert isinstance(problems, list)
    assert (code, len(problems)) == ((4, 1) if place.name.startswith("W013") else (0, 0))


@pytest.mark.parametrize("place", bundles("bad"), ids=lambda path: path.name)
def test_bad_bundles_are_noticed(place: Path) -> None:
    """A problem or a refusal, and never a traceback; those that are beyond this reader are known by name."""
    lowered = place.with_name(f"{place.name}.limits.json").exists()
    code, summary = read(place)
    beyond = place.name.removesuffix(".mlbundle.zip") in BEYOND or lowered
    assert code == (0 if beyond else 1 if "error" in summary else 4), summary


def test_extraction_gives_every_file_back(tmp_path: Path) -> None:
    """Extracted files have the bytes that were archived, under kind, id and path."""
    code, summary = read(FIXTURES / "good" / "everything", "--extract", str(tmp_path / "out"))
    assert (code, summary["problems"]) == (0, [])
    tables = [pq.read_table(path) for path in (FIXTURES / "good" / "everything" / "objects" / "files").iterdir()]
    files = [row for row in pa.concat_tables(tables).to_pylist() if row["state"] == "ok"]
    assert {row["owner_kind"] for row in files} == {"run", "logged_model", "model_version", "trace"}
    for row in files:
        data = (tmp_path / "out" / row["owner_kind"] / row["owner_id"] / row["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["size"], row["sha256"])
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == len(files)


@pytest.mark.parametrize("place", [p for p in bundles("warn") if p.name.startswith("W091")], ids=lambda path: path.name)
def test_extraction_refuses_unsafe_paths(place: Path, tmp_path: Path) -> None:
    """A path that climbs out, is absolute, reserved, or collides is reported; nothing is written outside the folder."""
    copy = tmp_path / "deep" / "bundle"
    shutil.copytree(place, copy)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    code, summary = read(copy, "--extract", str(tmp_path / "deep" / "er" / "out"))
    problems = summary["problems"]
    assert code == 4
    assert isinstance(problems, list)
    assert len(problems) == 1
    assert "not extracted" in problems[0]
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "deep" / "er" / "out") for path in written)
    assert len(written) == 5


def test_every_flipped_byte_of_a_small_bundle_is_noticed(tmp_path: Path) -> None:
    """Damage in any object or snapshot changes the exit code: two flips in each file, its first byte and its middle."""
    copy = tmp_path / "bundle"
    shutil.copytree(FIXTURES / "good" / "minimal", copy)
    for path in sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "README.md" and p.parent != copy):
        data = path.read_bytes()
        for tenth in range(0, 10, 5):
            place = len(data) * tenth // 10
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            assert read(copy)[0] in (1, 4), path
        path.write_bytes(data)
    assert read(copy)[0] == 0
