"""What each level of a verification finds, what it says that a problem touches, and what it costs."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mlflow_bundle as bundle
from mlflow_bundle import _layout
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._row_groups import CheckedTable
from mlflow_bundle._storage import open_storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._unsafe import collisions, why_unsafe
from mlflow_bundle._verify._codes import CODES
from mlflow_bundle._verify._contents import Outcome, Part, _check_part
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle._verify._levels import verify_storage
from mlflow_bundle._verify._record_facts import view_facts
from mlflow_bundle._verify._table_facts import file_facts, series_facts
from mlflow_bundle.errors import CorruptError, LimitError, NotFoundError, StorageError, UsageError
from mlflow_bundle.records import Problem
from tests.building import Content, content_of, pack_content
from tests.verifying import MemoryStorage, check, codes, files_of, flipped, found, of_role

SPEC = Path(__file__).parent.parent / "spec"
FIXTURES = SPEC / "v1" / "fixtures"
#: Damage that the listing and the documents show, and damage that only the bytes of packs and blobs show. All other damage
#: in the fixtures is found at the level ``tables``.
STRUCTURE = {"E010", "E020", "E021", "E023", "E024", "E025", "E026", "E027", "E028", "E030", "E070", "E071", "E093"}
FULL = {
    "E022_flipped_bit_in_blob",
    "E022_flipped_bit_in_pack",
    "E022_swapped_blobs",
    "E050_pack_entry_has_another_content",
    "E052_does_not_inflate",
    "E052_other_raw_length",
}


def damaged() -> list[Path]:
    """The fixtures that are bad in just one way."""
    return sorted(path for path in (FIXTURES / "bad").iterdir() if path.suffix != ".json")


def level_of(place: Path) -> str:
    """The lowest level that finds the damage of a fixture."""
    if place.name[:4] in STRUCTURE or "list" in place.name.split("_"):
        return "structure"
    return "full" if place.name in FULL or place.name[:4] == "E053" else "tables"


def workshop() -> ModuleType:
    """The tool with which the fixtures of the specification are damaged and mended."""
    name = "_fixture_workshop"
    specification = importlib.util.spec_from_file_location(name, SPEC / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 40 runs in many tiny objects."""
    place = tmp_path_factory.mktemp("verify") / "b"
    with open_storage(place, create=True) as storage:
        pack_content(storage, rich())
    return place


def rich() -> Content:
    """Runs with points, small files, a blob, and a blob in parts."""
    content = content_of(40)
    first, second = content.runs[0].run_id, content.runs[1].run_id
    content.files[first]["large.bin"] = bytes(np.arange(1_500, dtype=np.uint8))
    content.files[second]["split.bin"] = b"".join(n.to_bytes(2, "big") for n in range(4_000))
    return content


@pytest.fixture
def files(folder: Path) -> dict[str, bytes]:
    """The files of that bundle."""
    return files_of(folder)


# -- levels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", damaged(), ids=lambda path: path.name)
def test_the_level_that_finds_it(place: Path) -> None:
    """Each kind of damage is found from one level on, and no level below takes the bundle for damaged in that way."""
    lowered = place.with_name(f"{place.name}.limits.json")
    limits = Limits(**json.loads(lowered.read_text())) if lowered.exists() else Limits()
    levels = ["structure", "tables", "full"]
    seen = [place.name[:4] in codes(bundle.verify(place, level=level, limits=limits)) for level in levels]
    first = levels.index(level_of(place))
    assert seen == [False] * first + [True] * (len(levels) - first)


@pytest.mark.parametrize("level", ["structure", "tables", "full"])
def test_a_whole_bundle(files: dict[str, bytes], level: str) -> None:
    """Nothing is found in a whole bundle, nothing is written, and what a level does not see is said."""
    report = check(files, level=level)
    assert (report.ok, found(report), report.level) == (True, [], level)
    assert (len(report.not_covered) > 1) == (level != "full")
    assert report.root_digest.startswith(f"sha256:{report.snapshot.rpartition('-')[2]}")


def test_every_byte_is_read_once(files: dict[str, bytes]) -> None:
    """A full verification reads each object once and whole, and counts just that."""
    storage = MemoryStorage(files)
    report = verify_storage(storage)
    objects = {path: len(data) for path, data in files.items() if path.startswith("objects/")}
    assert {path: storage.bytes_read[path] for path in objects} == objects
    assert (report.objects_checked, report.bytes_checked) == (len(objects), sum(objects.values()))


def test_tables_read_no_contents(files: dict[str, bytes]) -> None:
    """The level ``tables`` reads no byte of a pack or blob, and ``structure`` none of any object."""
    storage = MemoryStorage(files)
    verify_storage(storage, level="tables")
    assert not any(storage.bytes_read[path] for path in (*of_role(files, "packs"), *of_role(files, "blobs")))
    storage = MemoryStorage(files)
    verify_storage(storage, level="structure")
    assert not any(path.startswith("objects/") for path in storage.bytes_read)


def test_subsets_cover_everything(files: dict[str, bytes]) -> None:
    """The parts of a subset read every pack and blob once together, and just one of them finds a damaged one."""
    contents = [*of_role(files, "packs"), *of_role(files, "blobs")]
    read = dict.fromkeys(contents, 0)
    for k in (1, 2, 3):
        storage = MemoryStorage(files)
        assert verify_storage(storage, subset=(k, 3)).ok
        for path in contents:
            read[path] += storage.bytes_read[path]
    assert read == {path: len(files[path]) for path in contents}
    for path in contents:
        broken = {**files, path: flipped(files[path], len(files[path]) // 2)}
        assert sum(not check(broken, subset=(k, 3)).ok for k in (1, 2, 3)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"level": "deep"},
        {"subset": (0, 3)},
        {"subset": (4, 3)},
        {"subset": (1, 2), "level": "tables"},
        {"snapshot": "2", "all_snapshots": True},
    ],
)
def test_arguments_that_make_no_sense(files: dict[str, bytes], arguments: dict[str, Any]) -> None:
    """What cannot be meant is refused before anything is read."""
    with pytest.raises(UsageError):
        check(files, **arguments)


def test_nothing_to_check(files: dict[str, bytes]) -> None:
    """No bundle, no snapshot, or no such snapshot: an error, since there is nothing to report about."""
    with pytest.raises(bundle.BundleNotFoundError):
        check({})
    with pytest.raises(NotFoundError):
        check({_layout.MARKER: files[_layout.MARKER]})
    with pytest.raises(NotFoundError):
        check(files, snapshot="1999")


def test_every_digit_of_a_digest_counts(files: dict[str, bytes]) -> None:
    """A root digest that is right only as far as the name goes is no snapshot's; of a torn document nobody can say."""
    (path,) = [path for path in files if path.startswith("snapshots/")]
    root = check(files).root_digest
    wrong = root[: len("sha256:") + 16] + "".join("0" if digit != "0" else "1" for digit in root[len("sha256:") + 16 :])
    for wanted in (root, root.removeprefix("sha256:"), root[:40]):
        assert check(files, snapshot=wanted).root_digest == root
    for wanted in (wrong, wrong[:40], root + "0"):
        with pytest.raises(NotFoundError, match="no snapshot named"):
            check(files, snapshot=wanted)
    torn = {**files, path: flipped(files[path], 50)}
    for wanted in (root, wrong):
        report = check(torn, snapshot=wanted)
        assert (codes(report), report.snapshot) == ({"E020"}, "")


# -- what a problem touches ----------------------------------------------------------------------------------------------


def only(problems: tuple[Problem, ...]) -> Problem:
    """The one problem."""
    (problem,) = problems
    return problem


@pytest.mark.parametrize("level", ["structure", "tables", "full"])
@pytest.mark.parametrize(
    ("role", "column"), [("records", "record_object"), ("metrics", "metric_object"), ("files", "file_object")]
)
def test_the_runs_of_a_lost_table(folder: Path, files: dict[str, bytes], level: str, role: str, column: str) -> None:
    """A lost object names just the runs that the views place in it, and their experiments; nothing else is reported."""
    with bundle.open(folder) as archive:
        view = archive._reader.view("run").select(["run_id", column]).to_pylist()
    lost = next(path for path in of_role(files, role) if any(row[column] == path for row in view))
    problem = only(check({path: data for path, data in files.items() if path != lost}, level=level).problems)
    assert (problem.code, problem.object) == ("E025", lost)
    assert sorted(problem.runs) == sorted(row["run_id"] for row in view if row[column] == lost)
    assert problem.experiments == ("1",)


def test_the_runs_of_a_lost_pack(folder: Path, files: dict[str, bytes]) -> None:
    """A lost pack names the runs with files in it, and a flipped bit in one entry just the runs with that file."""
    with bundle.open(folder) as archive:
        rows = archive.files().to_pylist()
        places = {row["sha256"]: archive.blobs.extents(row["sha256"])[0] for row in rows}
    pack = next(path for path in of_role(files, "packs") if sum(place.object == path for place in places.values()) > 2)
    problem = only(check({path: data for path, data in files.items() if path != pack}).problems)
    assert sorted(problem.runs) == sorted({row["run_id"] for row in rows if places[row["sha256"]].object == pack})
    victim = next(place for place in places.values() if place.object == pack)
    problem = only(check({**files, pack: flipped(files[pack], victim.offset + 3)}).problems)
    assert problem.code == "E022"
    assert set(problem.runs) == {row["run_id"] for row in rows if row["sha256"] == victim.sha256}
    problem = only(check({**files, pack: flipped(files[pack], len(files[pack]) - 1)}).problems)
    assert (problem.code, problem.runs) == ("E022", ())


def test_the_run_of_a_lost_part(folder: Path, files: dict[str, bytes]) -> None:
    """One lost part of a content in parts: that object alone is reported, with the run that has the file."""
    with bundle.open(folder) as archive:
        (row,) = (row for row in archive.files().to_pylist() if row["path"] == "split.bin")
        parts = archive.blobs.extents(row["sha256"])
    assert len(parts) > 1
    for part in parts:
        for damage in (
            {path: data for path, data in files.items() if path != part.object},
            {**files, part.object: b"x" * part.length},
        ):
            problem = only(check(damage).problems)
            assert (problem.object, problem.runs) == (part.object, (row["run_id"],))


def test_the_runs_of_a_lost_index(files: dict[str, bytes]) -> None:
    """A lost index object names the runs whose files nobody finds any more; contents are not reported one by one."""
    for lost in of_role(files, "index"):
        report = check({path: data for path, data in files.items() if path != lost})
        problem = only(report.problems)
        assert (problem.object, bool(problem.runs)) == (lost, True)
        assert any(lost in sentence for sentence in report.not_covered)


def test_lost_views_hide_nothing(files: dict[str, bytes]) -> None:
    """Without any view, a lost records object says between which runs its records lie."""
    lost = of_role(files, "records")[-1]
    gone = {*of_role(files, "views"), lost}
    report = check({path: data for path, data in files.items() if path not in gone})
    assert {problem.object for problem in report.problems} == gone
    assert "records are those from" in next(problem.message for problem in report.problems if problem.object == lost)


def test_it_never_stops_at_the_first(files: dict[str, bytes]) -> None:
    """A flipped bit in every object at once: every one of them is reported."""
    broken = {path: flipped(data, len(data) // 2) if path.startswith("objects/") else data for path, data in files.items()}
    report = check(broken)
    assert {problem.object for problem in report.problems} == {path for path in files if path.startswith("objects/")}
    assert codes(report) == {"E022"}


# -- several snapshots ---------------------------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> dict[str, bytes]:
    """Three snapshots; in each a file changes and runs are added."""
    for day in range(3):
        content = content_of(20 + 10 * day)
        content.files[content.runs[0].run_id] = {"f": b"of day %d " % day * 40}
        with open_storage(tmp_path / "b", create=True) as storage:
            pack_content(storage, content)
    return files_of(tmp_path / "b")


def test_all_snapshots_read_each_object_once(history: dict[str, bytes]) -> None:
    """What snapshots share is read once, and everything that any of them lists is read."""
    storage = MemoryStorage(history)
    report = verify_storage(storage, all_snapshots=True)
    assert (found(report), len(report.snapshots)) == ([], 3)
    objects = {path: len(data) for path, data in history.items() if path.startswith("objects/")}
    assert {path: storage.bytes_read[path] for path in objects} == objects


def test_what_only_an_old_snapshot_has(history: dict[str, bytes]) -> None:
    """Damage in what only an old snapshot lists is found when that one, or all, are checked; else it is said to be left out."""
    newest, *_, oldest = sorted((_layout.snapshot_stem(p) or "" for p in history if p.startswith("snapshots/")), reverse=True)
    listed = {ref["path"] for ref in json.loads(history[_layout.snapshot_path(newest)])["objects"]}
    old = next(path for path in of_role(history, "metrics") if path not in listed)
    broken = {**history, old: flipped(history[old], 100)}
    report = check(broken)
    assert (found(report), report.snapshot) == ([], newest)
    assert any("2 snapshots" in sentence for sentence in report.not_covered)
    assert codes(check(broken, snapshot=oldest)) == {"E022"}
    assert [problem.object for problem in check(broken, all_snapshots=True).problems] == [old]


def test_a_damaged_newest_snapshot(history: dict[str, bytes]) -> None:
    """The newest document is damaged: that is a problem, and the newest that is whole is checked."""
    *_, middle, newest = sorted(path for path in history if path.startswith("snapshots/"))
    report = check({**history, newest: flipped(history[newest], 50)})
    assert [(problem.code, problem.object) for problem in report.problems] == [("E020", newest)]
    assert report.snapshot == _layout.snapshot_stem(middle)


# -- views and roots: every column, and damage that only one check can see ------------------------------------------------


def other(value: Any, kind: pa.DataType) -> Any:
    """Another value of a column."""
    if pa.types.is_map(kind) and not pa.types.is_struct(kind.item_type):
        return [*value, ("more", "of it")]
    if pa.types.is_map(kind):
        key, point = value[0]
        return [(key, {**point, "value": point["value"] + 1}), *value[1:]]
    if pa.types.is_integer(kind):
        return value + 1
    return "0" * 64 if value is None or len(value) == 64 else value + "x"


@pytest.mark.parametrize("column", TABLES["runs_view/1"].schema.names)
def test_every_column_of_the_view(folder: Path, column: str) -> None:
    """Any column of a runs view that says something else is found, whatever else is consistent."""
    tool = workshop()
    shop = tool.Workshop(folder)
    ref = next(r for r in shop.snapshot["objects"] if r["role"] == "views")
    table = shop.table(ref, "runs_view/1")
    field = table.schema.field(column)
    values = table.column(column).to_pylist()
    changed = tool.with_column(table, column, [other(values[0], field.type), *values[1:]])
    run = table.column("run_id")[0].as_py()
    shop.swap(ref, tool.table_object(changed, "runs_view/1"))
    shop.commit()
    report = check(shop.files, level="tables")
    assert codes(report) - {"W010"} == {"E060"}
    assert column == "run_id" or any(run in problem.runs for problem in report.problems)


def change_value(table: pa.Table) -> pa.Table:
    """Another value of the first metric point, which is no latest one."""
    return workshop().with_column(table, "value", [table["value"][0].as_py() + 0.5, *table["value"].to_pylist()[1:]])


@pytest.mark.parametrize("mended", [False, True])
def test_one_other_point(folder: Path, mended: bool) -> None:
    """Another value in a well-formed and well-named metrics object is found by content, view and logical root; where all of
    that is made to fit, it is another archive, with another logical root and another root digest."""
    shop = workshop().Workshop(folder)
    before = json.loads(shop.files[shop.path])["logical"]["root"]
    shop.edit_table("metrics", "metrics/1", change_value)
    if mended:
        shop.mend()
    shop.commit()
    report = check(shop.files, level="tables")
    assert codes(report) - {"W010"} == (set() if mended else {"E044", "E060", "E065"})
    assert (json.loads(shop.files[shop.path])["logical"]["root"] != before) == mended


def test_one_other_record(folder: Path) -> None:
    """Another status in a well-formed and well-named record is found, with the run."""
    shop = workshop().Workshop(folder)
    shop.edit_record("run", status="FAILED")
    shop.commit()
    report = check(shop.files, level="tables")
    assert codes(report) - {"W010"} == {"E034", "E060", "E065"}


def test_all_members_of_a_record_are_covered(folder: Path) -> None:
    """A member that no view repeats is covered by the root all the same."""
    shop = workshop().Workshop(folder)
    shop.edit_record("experiment", workspace="elsewhere")
    shop.commit()
    assert codes(check(shop.files, level="tables")) - {"W010"} == {"E034", "E065"}


# -- storage that fails, newer releases, hostile bundles -----------------------------------------------------------------


class Failing(MemoryStorage):
    """Answers for all objects but one."""

    broken = ""

    def read(self, path: str) -> bytes:
        if path == self.broken:
            raise StorageError(f"cannot read {path}: the answer was 503")
        return super().read(path)


@pytest.mark.parametrize("role", ["records", "metrics", "files", "index", "views", "packs", "blobs"])
def test_an_object_that_cannot_be_read(files: dict[str, bytes], role: str) -> None:
    """A storage that fails for one object: that is reported under a code of its own, and all else is checked."""
    storage = Failing(files)
    storage.broken = of_role(files, role)[-1]
    report = verify_storage(storage)
    assert [(problem.code, problem.object) for problem in report.problems] == [("E029", storage.broken)]
    others = [path for path in files if path.startswith("objects/") and path != storage.broken]
    assert all(storage.bytes_read[path] for path in others)


def test_what_a_later_release_added() -> None:
    """Objects of a role that is not known are compared with their names, at the level of tables."""
    files = files_of(FIXTURES / "good" / "from_the_future")
    (strange,) = of_role(files, "later_rows")
    assert found(check(files, level="tables")) == []
    report = check({**files, strange: flipped(files[strange], 9)}, level="tables")
    assert [(problem.code, problem.object) for problem in report.problems] == [("E022", strange)]


POINT: dict[str, Any] = {"experiment_id": ["1"], "run_id": ["r"], "key": ["k"], "step": [1], "timestamp": [1], "value": [1.0]}


def parquet(schema: str, **columns: Any) -> pa.BufferReader:
    """A table object of any columns."""
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"mlflow_bundle.schema": schema})
    return pa.BufferReader(sink.getvalue())


def repeated(text: str, rows: int) -> pa.Array:
    """A long string many times, which costs a file next to nothing."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def test_a_parquet_bomb_costs_little() -> None:
    """A kilobyte that claims 200 GB of strings is refused in a few MiB."""
    rows = 200_000
    file = parquet(
        "files/1",
        owner_kind=repeated("run", rows),
        owner_id=repeated("r", rows),
        path=repeated("p", rows),
        size=pa.array(np.zeros(rows, np.int64)),
        sha256=repeated("s", rows),
        state=repeated("ok", rows),
        stamp=repeated("x" * 1_000_000, rows),
    )
    before = max(pa.total_allocated_bytes(), pa.default_memory_pool().max_memory() - (200 << 20))
    with pytest.raises(LimitError) as raised:
        file_facts("x", file, Findings(), DEFAULT_LIMITS)
    assert raised.value.code == "E094"
    assert pa.default_memory_pool().max_memory() - before <= 260 << 20


def test_what_the_footer_announces_is_refused_before_it_is_decoded() -> None:
    """A row group of plain long strings is refused by what its footer says; only columns that are asked for count."""
    columns = {**POINT, "key": ["k" * 3_000_000]}
    table = CheckedTable(parquet("metrics/1", **columns), TABLES["metrics/1"], name="x", limits=Limits(row_group_bytes=1 << 20))
    before = pa.total_allocated_bytes()
    with pytest.raises(LimitError) as raised:
        table.read(0)
    assert raised.value.code == "E094"
    assert pa.total_allocated_bytes() == before
    assert table.read(0, ["step", "value"]).to_pydict() == {"step": [1], "value": [1.0]}


def test_a_bomb_in_a_map() -> None:
    """The keys of a map are counted as they would be written out."""
    schema = TABLES["runs_view/1"].schema
    columns = {}
    for field in schema:
        if pa.types.is_map(field.type):
            value: Any = [("k" * 100_000, "v" if field.name != "latest_metrics" else {"value": 1.0, "timestamp": 1, "step": 1})]
        else:
            value = 1 if pa.types.is_integer(field.type) else "x"
        columns[field.name] = pa.array([value] * 300, field.type)
    with pytest.raises(LimitError):
        view_facts("x", parquet("runs_view/1", **columns), Limits(row_group_bytes=2**22))


def test_too_many_rows_in_a_row_group() -> None:
    """A row group beyond the limit is refused before it is decoded."""
    rows = 1_000
    names = ("experiment_id", "run_id", "key")
    numbers = {name: pa.array(np.arange(rows)) for name in ("step", "timestamp")}
    file = parquet("metrics/1", **{name: repeated("x", rows) for name in names}, **numbers, value=pa.array(np.zeros(rows)))
    with pytest.raises(LimitError) as raised:
        series_facts("x", file, Findings(), Limits(row_group_rows=999))
    assert raised.value.code == "E094"


def test_text_that_is_no_text() -> None:
    """Strings that are not UTF-8 are damage."""
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    with pytest.raises(CorruptError) as raised:
        series_facts("x", parquet("metrics/1", **(POINT | {"run_id": bad})), Findings(), DEFAULT_LIMITS)
    assert raised.value.code == "E040"


@pytest.mark.parametrize(
    ("schema", "change", "says"),
    [
        ("metrics/1", {"key": pa.array([None], pa.string())}, "nulls"),
        ("metrics/1", {"step": pa.array([None], pa.int64())}, "nulls"),
        ("metrics/1", {"step": pa.array(["1"])}, "lacks the column"),
        ("metrics/2", {}, "metrics/2"),
    ],
)
def test_tables_of_another_schema(schema: str, change: dict[str, Any], says: str) -> None:
    """A null where none may be, a column of another type, and another schema name: each is refused, and said."""
    assert series_facts("x", parquet("metrics/1", **POINT), Findings(), DEFAULT_LIMITS).rows == 1
    with pytest.raises(CorruptError, match=says) as raised:
        series_facts("x", parquet(schema, **(POINT | change)), Findings(), DEFAULT_LIMITS)
    assert raised.value.code == "E041"


@pytest.mark.parametrize("raw", [10, 2**20, 2**40])
def test_a_deflate_bomb(raw: int) -> None:
    """An entry that inflates to more than it says, or says more than any pack may hold, is stopped."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = packer.compress(bytes(2**26)) + packer.flush()
    outcome = Outcome()
    part = Part("0" * 64, "x", 0, len(data), "deflate", raw, whole=False)
    (note,) = _check_part(data, part, DEFAULT_LIMITS, outcome)
    assert note.code == ("E094" if raw > DEFAULT_LIMITS.pack_bytes else "E052")


@pytest.mark.parametrize("path", ["a", "a/b.txt", ".hidden", "..two", "con1/x", "com10", "größe 日本", "a\\b", "aux-x"])
def test_paths_that_are_safe(path: str) -> None:
    """Names that are odd, and harmless."""
    assert why_unsafe(path) is None


@pytest.mark.parametrize(
    "path", ["", "/a", "a//b", "a/", "../a", "a/../b", ".", "a/./b", "C:/x", "a/c:b", "nul", "a/COM0.txt", "a\0b"]
)
def test_paths_that_are_not(path: str) -> None:
    """Names that lead elsewhere, or nowhere."""
    assert why_unsafe(path)


def test_paths_that_collide() -> None:
    """What is one name after case folding and normalisation, and what is a file and a folder."""
    assert list(collisions(["a", "b/c", "d"])) == []
    assert list(collisions(["A", "a"])) == ["a"]
    assert list(collisions(["caf\u00e9", "cafe\u0301"])) == ["cafe\u0301"]
    assert list(collisions(["x", "X/y"])) == ["x"]


# -- the catalogue -------------------------------------------------------------------------------------------------------


def test_the_catalogue() -> None:
    """Codes are in order, have a slug of their own and a sentence."""
    assert list(CODES) == sorted(CODES)
    assert len({code.slug for code in CODES.values()}) == len(CODES)
    assert all(key == code.code and code.meaning.endswith(".") for key, code in CODES.items())


def test_equal_findings_are_one_problem() -> None:
    """A thousand equal findings in one object are one problem that counts them and names every run."""
    findings = Findings()
    for number in range(1_000):
        findings.add("E046", "the first" if not number else "another", object="x", runs=[str(number % 10)])
    (problem,) = findings.problems()
    assert problem.message == "the first; and 999 more like it"
    assert problem.runs == tuple(map(str, range(10)))


def test_problems_of_a_code_and_object_are_touched_alone() -> None:
    """What one code touches in an object is not said of another code there."""
    findings = Findings()
    findings.add("E050", "one", object="x")
    findings.add("E053", "two", object="x")
    findings.touch("x", ["r"], ["1"], code="E050")
    assert [(problem.code, problem.runs) for problem in findings.problems()] == [("E050", ("r",)), ("E053", ())]
