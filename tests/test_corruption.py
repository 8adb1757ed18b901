"""Detection (promise D5): whatever happens to a byte or an object of a real archive, a full verification says so."""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

import mlflow_bundle as bundle
from mlflow_bundle import Targets, _layout
from mlflow_bundle._codec import LinesWriter, decode, read_lines
from mlflow_bundle._digests import hex_of
from mlflow_bundle._limits import Limits
from mlflow_bundle._storage._onefile import OneFileStorage
from mlflow_bundle._storage._place import LocalPlace
from mlflow_bundle._verify._codes import CODES
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle._verify._objects import Objects
from mlflow_bundle._verify._packcheck import pack_entries
from mlflow_bundle._verify._record_facts import view_facts
from mlflow_bundle._verify._structure import check_marker
from mlflow_bundle._verify._table_facts import file_facts, index_facts, series_facts
from mlflow_bundle.errors import BundleError, CorruptError, LimitError
from mlflow_bundle.records import ObjectRef, Snapshot
from tests.verifying import MemoryStorage, check, codes, files_of, flipped, found, of_role

START = 1_700_000_000_000
TARGETS = Targets(
    frame_bytes=400,
    records_bytes=900,
    metric_rows=30,
    file_rows=3,
    index_rows=4,
    pack_bytes=600,
    pack_entries=3,
    blob_bytes=500,
    split_bytes=1_500,
    part_bytes=700,
    merge_width=4,
)
LIMITS = Limits()


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an archive of a real SQLite MLflow: several objects of every role in a few tens of kB."""
    folder = tmp_path_factory.mktemp("golden")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [client.create_experiment(name, artifact_location=str(folder / name)) for name in ("churn", "größe")]
    for number in range(6):
        run = client.create_run(
            experiments[number % 2], start_time=START + number, tags={"team": "größe"}, run_name=f"r{number}"
        )
        # The first run fills an object of records and one of metrics by itself, whatever its id.
        steps, note = (range(8), "x" * 40) if number else (range(16), "x" * 1_000)
        points = [Metric(key, step / (number + 1), START + step, step) for key in ("acc", "loss") for step in steps]
        client.log_batch(run.info.run_id, points, [Param("lr", str(number))], [RunTag("note", note)])
        client.log_text(run.info.run_id, f"log of {number}\n" * 10, "log.txt")
        client.log_text(run.info.run_id, "the same everywhere", "sub/same.txt")
        if number < 2:
            client.log_text(run.info.run_id, "".join(chr(33 + (i * i + number) % 90) for i in range(600)), "large.txt")
        client.set_terminated(run.info.run_id, end_time=START + 1000)
    client.log_text(run.info.run_id, "".join(chr(33 + (i * i * 7) % 90) for i in range(1_800)), "split.txt")
    place = folder / "b.mlbundle"
    bundle.pack(None, place, tracking_uri=f"sqlite:///{folder}/mlflow.db", targets=TARGETS)
    files = files_of(place)
    for role in ("records", "metrics", "files", "index", "views", "packs", "blobs"):
        assert len(of_role(files, role)) > 1
    assert found(check(files)) == []
    return files


def snapshot_of(files: dict[str, bytes]) -> Snapshot:
    """The document of the only snapshot."""
    (path,) = (path for path in files if path.startswith("snapshots/"))
    return decode(files[path], Snapshot, name=path)


# -- every byte ----------------------------------------------------------------------------------------------------------


def says_so(files: dict[str, bytes], ref: ObjectRef) -> bool:
    """Whether the step of the verification that reads this one object finds a problem with it."""
    objects, findings = Objects(MemoryStorage(files), {}, LIMITS), Findings()
    objects.whole([ref], findings)
    return ref.path in objects.damaged and bool(findings.problems())


@pytest.mark.slow
def test_every_flipped_byte_of_every_object(golden: dict[str, bytes]) -> None:
    """A flipped bit in any byte of any listed object is seen when that object is read."""
    files = dict(golden)
    for ref in snapshot_of(golden).objects:
        data = golden[ref.path]
        for place in range(len(data)):
            files[ref.path] = flipped(data, place, place % 8)
            assert says_so(files, ref), (ref.path, place)
        files[ref.path] = data


@pytest.mark.slow
def test_flipped_bytes_end_to_end(golden: dict[str, bytes]) -> None:
    """The whole verification reports a flipped bit at places all over every object: E022, and never a crash."""
    files = dict(golden)
    for number, ref in enumerate(snapshot_of(golden).objects):
        data = golden[ref.path]
        for place in {number, len(data) // 3 + number, len(data) - 1 - number}:
            files[ref.path] = flipped(data, place % len(data), place % 8)
            report = check(files)
            assert [(p.code, p.object) for p in report.problems] == [("E022", ref.path)], place
        files[ref.path] = data


@pytest.mark.slow
def test_every_flipped_bit_of_the_marker(golden: dict[str, bytes]) -> None:
    """Any flipped bit of the marker is reported, though no digest covers it."""
    data = golden[_layout.MARKER]
    for place in range(len(data)):
        for bit in range(8):
            files = {**golden, _layout.MARKER: flipped(data, place, bit)}
            findings = Findings()
            marker = check_marker(MemoryStorage(files), findings, LIMITS)
            if marker is not None:
                assert marker.bundle_id != snapshot_of(golden).bundle_id
                assert "E024" in codes(check(files, level="structure")), (place, bit)
            else:
                assert findings.problems(), (place, bit)


@pytest.mark.slow
def test_every_flipped_byte_of_the_snapshot(golden: dict[str, bytes]) -> None:
    """Any flipped byte of the snapshot document is reported; nothing else is then taken for an archive."""
    (path,) = (path for path in golden if path.startswith("snapshots/"))
    data = golden[path]
    for place in range(len(data)):
        report = check({**golden, path: flipped(data, place, place % 8)}, level="structure")
        assert [(p.code, p.object) for p in report.problems] == [("E020", path)], place
        assert report.snapshot == ""


@pytest.mark.slow
def test_cuts(golden: dict[str, bytes]) -> None:
    """Every file, cut anywhere or with a byte more at the end, is reported at every level."""
    for path, data in golden.items():
        if path == _layout.README:
            continue
        for length in {*range(0, len(data), max(1, len(data) // 8)), len(data) - 1}:
            report = check({**golden, path: data[:length]}, level="structure")
            assert path in {problem.object for problem in report.problems}, (path, length)
        report = check({**golden, path: data + b"\0"})
        assert {problem.object for problem in report.problems} == {path}


# -- whole objects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["structure", "tables", "full"])
def test_every_missing_object(golden: dict[str, bytes], level: str) -> None:
    """Each object that is gone is reported at every level, and so is a missing marker."""
    for ref in snapshot_of(golden).objects:
        files = {path: data for path, data in golden.items() if path != ref.path}
        assert [(p.code, p.object) for p in check(files, level=level).problems] == [("E025", ref.path)]
    assert codes(check({path: data for path, data in golden.items() if path != _layout.MARKER}, level=level)) == {"E010"}


def test_swapped_objects(golden: dict[str, bytes]) -> None:
    """Two objects of a role that change places are both reported."""
    for role in ("records", "metrics", "files", "index", "views", "packs", "blobs"):
        for one, two in pairwise(of_role(golden, role)):
            report = check({**golden, one: golden[two], two: golden[one]})
            assert {problem.object for problem in report.problems} == {one, two}


def test_duplicated_and_foreign_objects(golden: dict[str, bytes]) -> None:
    """A copy of an object under any other name is reported: as a warning where no snapshot lists it."""
    for path in (path for path in golden if path.startswith("objects/")):
        role = _layout.object_role(path) or ""
        copy = _layout.object_path(role, "0" * 64)
        report = check({**golden, copy: golden[path]})
        assert [(p.code, p.object) for p in found(report)] == [("W011", copy)]
        report = check({**golden, f"{path}.bak": golden[path]})
        assert [(p.code, p.object) for p in found(report)] == [("W012", f"{path}.bak")]


# -- one file ------------------------------------------------------------------------------------------------------------


def one_file(golden: dict[str, bytes], folder: Path) -> Path:
    """The golden archive as one ZIP file."""
    place = folder / "b.mlbundle.zip"
    with OneFileStorage(LocalPlace(str(place), place, create=True)) as storage:
        for path, data in golden.items():
            if not path.startswith("snapshots/"):
                storage.put_bytes(data, path)
        for path, data in golden.items():
            if path.startswith("snapshots/"):
                storage.commit(data, path)
        storage.flush()
    return place


@pytest.mark.slow
def test_flipped_bytes_of_one_file(golden: dict[str, bytes], tmp_path: Path) -> None:
    """In the one-file form every bit is covered, also those between the files and of the README."""
    place = one_file(golden, tmp_path)
    assert found(bundle.verify(place)) == []
    data = place.read_bytes()
    readme = data.index(golden[_layout.README])
    directory = data.index(b"PK\x01\x02")
    stride = range(0, len(data), 2_999)
    for at in {*stride, *range(0, 40, 5), readme + 7, readme + 300, *range(directory, len(data), 397), len(data) - 1}:
        place.write_bytes(flipped(data, at, at % 8))
        assert bundle.verify(place).problems, at


@pytest.mark.slow
def test_cuts_of_one_file(golden: dict[str, bytes], tmp_path: Path) -> None:
    """A ZIP file that is cut anywhere, or has a byte more, is reported."""
    place = one_file(golden, tmp_path)
    data = place.read_bytes()
    for length in {2, *range(2_999, len(data), 2_999), len(data) - 1}:
        place.write_bytes(data[:length])
        assert bundle.verify(place).problems, length
    place.write_bytes(data + b"\0")
    assert bundle.verify(place).problems


# -- hostile bytes under right names -------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SMALL = Limits(row_group_rows=100_000, row_group_bytes=2**24, frame_bytes=2**22, pack_bytes=2**22)


@st.composite
def mutation(draw: st.DrawFn) -> tuple[int, int, bytes]:
    """Where to cut into some bytes (as a share of 2^16), how much to take out, and what to put in."""
    return draw(st.integers(0, 2**16)), draw(st.integers(0, 12)), draw(st.binary(max_size=12))


def mutated(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes after some changes."""
    for share, out, more in changes:
        place = share * len(data) >> 16
        data = data[:place] + more + data[place + out :]
    return data


def known(error: BundleError) -> None:
    """An error with a code of the catalogue."""
    assert error.code in CODES


CHANGES = st.lists(mutation(), min_size=1, max_size=3)
TABLES = {"metrics": series_facts, "files": file_facts, "index": index_facts}


@pytest.mark.parametrize("role", ["metrics", "files", "index", "views"])
@FUZZ
@given(number=st.integers(0, 50), changes=CHANGES)
def test_fuzzed_tables(golden: dict[str, bytes], role: str, number: int, changes: list[tuple[int, int, bytes]]) -> None:
    """Whatever a table object holds, reading it ends with facts or with an error of this package."""
    paths = of_role(golden, role)
    file = pa.BufferReader(mutated(golden[paths[number % len(paths)]], changes))
    try:
        if role == "views":
            view_facts("x", file, SMALL)
        else:
            TABLES[role]("x", file, Findings(), SMALL)
    except (CorruptError, LimitError) as error:
        known(error)


@FUZZ
@given(number=st.integers(0, 50), changes=CHANGES)
def test_fuzzed_lines(golden: dict[str, bytes], number: int, changes: list[tuple[int, int, bytes]]) -> None:
    """Whatever a records object holds, its frames, its seek table and its lines give records or an error of this package."""
    paths = of_role(golden, "records")
    data = mutated(golden[paths[number % len(paths)]], changes)
    path = _layout.object_path("records", "0" * 64)
    try:
        lines = list(read_lines(data, name="x", limits=SMALL))
    except BundleError as error:
        known(error)
        return
    assert all(isinstance(line, bytes) for line in lines)
    objects, findings = Objects(MemoryStorage({path: data}), {}, SMALL), Findings()
    list(objects.records([ObjectRef(role="records", path=path, size=len(data), kind="run")], findings))
    assert findings.problems()


@FUZZ
@given(changes=CHANGES)
def test_fuzzed_records(golden: dict[str, bytes], changes: list[tuple[int, int, bytes]]) -> None:
    """A record line of any bytes, well packed and well named, gives facts or a problem."""
    (line, *_) = read_lines(golden[of_role(golden, "records")[0]], name="x")
    line = mutated(line, changes).replace(b"\n", b" ")
    data = lines_object([line])
    path = _layout.object_path("records", hex_of(data))
    kind = "run" if b'"run_id"' in line else "experiment"
    objects, findings = Objects(MemoryStorage({path: data}), {}, SMALL), Findings()
    ((_, facts),) = objects.records([ObjectRef(role="records", path=path, size=len(data), kind=kind)], findings)
    assert (facts is None) == any(problem.code.startswith("E") for problem in findings.problems())


def lines_object(lines: list[bytes]) -> bytes:
    """A records object of these lines."""
    sink = io.BytesIO()
    writer = LinesWriter(sink)
    for line in lines:
        writer.add(line)
    writer.close()
    return sink.getvalue()


@FUZZ
@given(changes=CHANGES)
def test_fuzzed_snapshots(golden: dict[str, bytes], changes: list[tuple[int, int, bytes]]) -> None:
    """A snapshot document of any bytes under its right name: a report, at every level, and no other error."""
    (path,) = (path for path in golden if path.startswith("snapshots/"))
    data = mutated(golden[path], changes)
    files = {name: content for name, content in golden.items() if name != path}
    stem = path[len("snapshots/") :].partition("-")[0]
    digest = hex_of(data)
    files[f"snapshots/{stem}-{digest[:16]}.json"] = data
    report = check(files)
    assert report.problems or data == golden[path] or found(report) == []


@FUZZ
@given(number=st.integers(0, 50), changes=CHANGES)
def test_fuzzed_packs(golden: dict[str, bytes], number: int, changes: list[tuple[int, int, bytes]]) -> None:
    """The directory of a pack of any bytes: entries that lie inside it, or an error of this package."""
    paths = of_role(golden, "packs")
    data = mutated(golden[paths[number % len(paths)]], changes)
    try:
        entries = pack_entries(data, name="x", limits=SMALL)
    except (CorruptError, LimitError) as error:
        known(error)
        return
    assert all(0 <= entry.offset <= entry.offset + entry.length <= len(data) for entry in entries)
    with zipfile.ZipFile(io.BytesIO(data)) as pack:
        assert sorted(pack.namelist()) == sorted(entry.sha256 for entry in entries)


@FUZZ
@given(changes=CHANGES)
def test_fuzzed_markers(golden: dict[str, bytes], changes: list[tuple[int, int, bytes]]) -> None:
    """A marker of any bytes is used or is a problem."""
    data = mutated(golden[_layout.MARKER], changes)
    findings = Findings()
    marker = check_marker(MemoryStorage({_layout.MARKER: data}), findings, LIMITS)
    assert (marker is None) == bool(findings.problems())
