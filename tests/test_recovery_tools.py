"""The README inside a bundle gets everything out with sha256sum, zstd, jq, unzip and DuckDB, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import duckdb
import pytest

import mlflow_bundle as bundle
from mlflow_bundle import _layout
from mlflow_bundle._readme import BUNDLE_README
from mlflow_bundle._table_specs import TABLES
from tests.fixtures.content import ContentSummary


@pytest.fixture(scope="module")
def archive(awkward_database: tuple[str, ContentSummary], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a real MLflow database. Nobody may change it."""
    place = tmp_path_factory.mktemp("recovery") / "bundle"
    bundle.pack(bundle=place, tracking_uri=awkward_database[0])
    return place


def blocks(archive: Path) -> list[str]:
    """The indented blocks of the README, as they stand there."""
    found: list[str] = []
    inside = False
    for line in (archive / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found = [*found[:-1], found[-1] + line[4:] + "\n"] if inside else [*found, line[4:] + "\n"]
        inside = line.startswith("    ")
    return found


def block(archive: Path, beginning: str) -> str:
    """The one block that begins so, comments removed."""
    (found,) = [text for text in blocks(archive) if text.startswith(beginning)]
    return found


def shell(command: str, folder: Path, *tools: str) -> bytes:
    """What a command prints when it is run in a folder by a shell."""
    for tool in ("bash", *tools):
        if shutil.which(tool) is None:
            pytest.skip(f"this machine has no {tool}")
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def query(text: str, folder: Path) -> list[tuple[object, ...]]:
    """What DuckDB answers in a folder."""
    with duckdb.connect() as connection:
        connection.execute(f"set file_search_path = '{folder}'")
        return connection.execute(text).fetchall()


def one_block_command(archive: Path, word: str, **values: str) -> str:
    """The line of the README that begins with a word, its placeholders filled in."""
    (line,) = [line for text in blocks(archive) for line in text.splitlines() if line.startswith(word)]
    line = line.partition("#")[0].rstrip()
    for name, value in values.items():
        line = line.replace(f"<{name}>", value)
    return line


def test_the_readme_lists_every_folder_of_the_bundle(archive: Path) -> None:
    """Whatever lies in a bundle, this one or another, is explained."""
    listing = blocks(archive)[0]
    roles = {spec.role for spec in TABLES.values()} | {_layout.RECORDS, _layout.LISTS, _layout.PACKS, _layout.BLOBS}
    assert {path.name for path in (archive / "objects").iterdir()} <= roles
    assert {role for role in roles if f"objects/{role}/" in listing} == roles
    assert {"mlflow-bundle.json", "snapshots/*.json"} <= set(listing.split())


def test_sha256sum_finds_nothing_in_a_sound_bundle(archive: Path) -> None:
    """The loop prints no line when every object is what its name says."""
    assert shell(block(archive, "find objects"), archive, "sha256sum", "find", "basename") == b""


@pytest.mark.parametrize("role", ["records", "metrics", "packs", "blobs"])
def test_sha256sum_finds_a_flipped_bit(archive: Path, tmp_path: Path, role: str) -> None:
    """The loop names the one object that was damaged."""
    copy = tmp_path / "copy"
    shutil.copytree(archive, copy)
    victim = max(
        (path for path in (copy / "objects" / role).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    said = shell(block(archive, "find objects"), copy, "sha256sum", "find", "basename").decode().splitlines()
    assert said == [f"DAMAGED {victim.relative_to(copy).as_posix()}"]


def test_jq_lists_what_the_newest_snapshot_needs(archive: Path) -> None:
    """The paths are those that the library reads, and they are all there."""
    said = shell(block(archive, "jq -r"), archive, "jq").decode().split()
    with bundle.open(archive) as opened:
        assert said == [ref.path for ref in opened.objects]
    assert all((archive / path).is_file() for path in said)


HISTORY = Path(__file__).parent.parent / "spec" / "v1" / "fixtures" / "good" / "several_snapshots"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Three snapshots on each other, with the README of today in it."""
    place = tmp_path / "history"
    shutil.copytree(HISTORY, place)
    (place / "README.md").write_text(BUNDLE_README, encoding="utf-8")
    return place


def test_patterns_take_all_snapshots(history: Path) -> None:
    """What the README warns of: records and points come once for each snapshot that wrote them anew."""
    lines = shell(block(history, "zstd -dc"), history, "zstd", "jq").decode().splitlines()
    ids = [json.loads(line)["run_id"] for line in lines]
    assert len(ids) > len(set(ids))
    with bundle.open(history) as opened:
        assert query("select count(*) from 'objects/metrics/*.parquet'", history)[0][0] > opened.metrics().num_rows


def test_jq_restricts_the_records_to_one_snapshot(history: Path) -> None:
    """With the paths that the newest snapshot lists, each of its runs is printed once."""
    said = shell(block(history, "newest="), history, "zstd", "jq").decode().splitlines()
    with bundle.open(history) as opened:
        assert [json.loads(line) for line in said] == opened.runs().column("run_id").to_pylist()


@pytest.mark.parametrize("role", ["metrics", "files", "views"])
def test_jq_restricts_the_tables_to_one_snapshot(history: Path, role: str) -> None:
    """The list that jq prints is one that DuckDB takes, and gives the rows of the newest snapshot."""
    listed = shell(block(history, "role=").replace("metrics", role, 1), history, "jq", "tr").decode().strip()
    with bundle.open(history) as opened:
        rows = {"metrics": opened.metrics(), "files": opened.files(), "views": opened.runs()}[role].num_rows
    with duckdb.connect() as connection:
        absolute = listed.replace("objects/", f"{history}/objects/")
        assert connection.execute(f"select count(*) from read_parquet({absolute})").fetchall() == [(rows,)]


def test_zstd_and_jq_read_the_runs(archive: Path, awkward_database: tuple[str, ContentSummary]) -> None:
    """Every run is printed once, with its name and status."""
    said = shell(block(archive, "zstd -dc"), archive, "zstd", "jq").decode().splitlines()
    rows = [json.loads(line) for line in said]
    assert Counter(row["run_id"] for row in rows) == Counter(awkward_database[1].run_ids)
    with bundle.open(archive) as opened:
        names = dict(zip(*(opened.runs().column(name).to_pylist() for name in ("run_id", "run_name")), strict=True))
    assert {row["run_id"]: row["run_name"] for row in rows} == names


def test_duckdb_reads_the_metrics(archive: Path, awkward_database: tuple[str, ContentSummary]) -> None:
    """The query of the README gives each run's keys, and a count over the same files gives every point."""
    rows = query(block(archive, "select run_id"), archive)
    expected = {(run, point[0]) for run, points in awkward_database[1].points.items() for point in points}
    assert {(run, key) for run, key, _ in rows} == expected
    assert query("select count(*) from 'objects/metrics/*.parquet'", archive) == [(awkward_database[1].point_count,)]


def test_every_file_comes_back_with_unzip_and_cp(
    archive: Path, awkward_database: tuple[str, ContentSummary], tmp_path: Path
) -> None:
    """Looking a file up in DuckDB and copying its bytes with unzip or cp gives back the file that was archived."""
    listing, places = (line.rstrip(";\n") for line in block(archive, "select path").splitlines())
    tried = Counter[str]()
    for run, expected in awkward_database[1].files.items():
        found = query(listing.replace("<run id>", run), archive)
        assert {path for path, _ in found} == set(expected)
        for path, sha256 in found:
            assert sha256 == expected[str(path)][1]
            (extent,) = query(places.replace("<sha256>", str(sha256)), archive)
            stored = str(extent[2])
            role = stored.split("/")[1]
            if tried[role] < 12:
                tried[role] += 1
                _take_out(archive, stored, str(sha256), tmp_path)
                data = (tmp_path / "model.pkl").read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == expected[str(path)]
    assert tried["packs"]
    assert tried["blobs"]


def _take_out(archive: Path, stored: str, sha256: str, folder: Path) -> None:
    """Run the line of the README that suits the object; its output lands in ``folder``."""
    stem = Path(stored).name
    word, tool = ("unzip", "unzip") if stored.endswith(".zip") else ("cp", "cp")
    line = one_block_command(archive, word, pack=stem.removesuffix(".zip"), sha256=stem if word == "cp" else sha256)
    line = line.replace("/ab/", f"/{stem[:2]}/").replace("model.pkl", f"'{folder}/model.pkl'")
    shell(line, archive, tool)


def test_a_bundle_in_one_file_unzips_into_a_folder(awkward_database: tuple[str, ContentSummary], tmp_path: Path) -> None:
    """``unzip`` turns the one-file form into the folder form: same snapshot, and every object has the SHA-256 of its name."""
    place = tmp_path / "one.mlbundle.zip"
    report = bundle.pack("churn", place, tracking_uri=awkward_database[0])
    shell(f"unzip -q '{place}' -d folder", tmp_path, "unzip")
    folder = tmp_path / "folder"
    assert (folder / "mimetype").read_text() == "application/vnd.mlflow-bundle+zip"
    assert shell(block(folder, "find objects"), folder, "sha256sum", "find", "basename") == b""
    with bundle.open(folder) as opened:
        assert (opened.snapshot_id, opened.root_digest) == (report.snapshot, report.root_digest)
