"""The specification, its codes, schemas, fixtures and examples agree with each other and with the code."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import rfc8785

import mlflow_bundle as bundle
from mlflow_bundle import _tables
from mlflow_bundle._codec import read_lines
from mlflow_bundle._limits import Limits
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._verify._codes import CODES
from mlflow_bundle.errors import BundleError
from mlflow_bundle.kinds import KINDS

ROOT = Path(__file__).parent.parent
SPEC = ROOT / "spec"
TEXT = (SPEC / "v1.md").read_text(encoding="utf-8")
FIXTURES = SPEC / "v1" / "fixtures"
MINIMAL = FIXTURES / "good" / "minimal"
#: What else a verification may say of some fixtures: one change that breaks more than one rule.
ALSO: Mapping[str, set[str]] = {
    "E021_path_of_another_role": {"E060", "E064"},
    "E021_path_outside": {"E060", "W010"},
    "E021_upper_case_digits": {"E051", "W012"},
    "E046_files_of_another_kind": {"E060", "E065"},
    "E046_points_of_an_unknown_run": {"E060"},
    "E048_negative_size": {"E050"},
    "E051_object_not_listed": {"W010"},
    "E052_other_raw_length": {"E050", "E053"},
    "E053_entry_has_another_name": {"E050"},
    "E062_run_twice": {"E034", "E046", "E060", "E065"},
}
#: Codes that no file can provoke, each with the reason.
UNPROVOKED: Mapping[str, str] = {"E029": "the storage itself has to fail"}


def bundles(group: str) -> list[Path]:
    """The fixtures of one group."""
    return sorted(path for path in (FIXTURES / group).iterdir() if path.suffix != ".json")


def script(name: str) -> ModuleType:
    """A script of ``spec/`` as a module; those beside it can be imported by it."""
    sys.path.insert(0, str(SPEC))
    try:
        specification = importlib.util.spec_from_file_location(name, SPEC / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(SPEC))
    return module


def found_codes(place: Path) -> set[str]:
    """The codes that a full verification reports, or the one with which it refuses."""
    lowered = place.with_name(f"{place.name}.limits.json")
    limits = Limits(**json.loads(lowered.read_text())) if lowered.exists() else Limits()
    try:
        report = bundle.verify(place, level="full", limits=limits)
    except BundleError as error:
        return {error.code}
    return {problem.code for problem in (*report.problems, *report.warnings)}


# -- codes ------------------------------------------------------------------------------------------------------------


def test_the_text_has_the_codes_of_the_catalogue() -> None:
    """Each code stands in a MUST and in the table of the specification, and no other does."""
    table = re.findall(r"^\| ([EW]\d{3}) \| (.*?) \| (.*?) \|$", TEXT, re.MULTILINE)
    assert table == [tuple(code) for code in CODES.values()]
    assert set(re.findall(r"\[([EW]\d{3})\]", TEXT)) == set(CODES)


def test_each_code_has_a_fixture_or_a_reason() -> None:
    """Fixtures provoke every code but those that no file can provoke."""
    named = {path.name[:4] for group in ("bad", "warn") for path in bundles(group)}
    assert named | set(UNPROVOKED) == set(CODES)
    assert not named & set(UNPROVOKED)


@pytest.mark.parametrize("place", bundles("good"), ids=lambda path: path.name)
def test_good_fixtures_verify_clean(place: Path) -> None:
    """A full verification of a good bundle says nothing at all."""
    assert found_codes(place) == set()


@pytest.mark.parametrize("place", [*bundles("bad"), *bundles("warn")], ids=lambda path: path.name)
def test_bad_fixtures_provoke_their_code(place: Path) -> None:
    """A full verification reports the code in the fixture's name, and nothing that is not known to follow from it."""
    code = place.name[:4]
    found = found_codes(place)
    assert code in found
    assert found - {code} <= ALSO.get(place.name, set())


# -- schemas and documents ----------------------------------------------------------------------------------------------


def test_schemas_are_generated_from_the_records() -> None:
    """``spec/v1/schema`` is what ``records.py`` says today."""
    assert script("generate_schemas").stale() == []


def documents(place: Path) -> list[tuple[str, bytes]]:
    """(schema, bytes) of every document in a bundle that lies in a folder."""
    found = [("marker", (place / "mlflow-bundle.json").read_bytes())]
    found += [("snapshot", path.read_bytes()) for path in (place / "snapshots").iterdir()]
    for path in (place / "objects").rglob("*.jsonl.zst"):
        for line in read_lines(path.read_bytes(), name=path.name):
            found.append((json.loads(line).get("kind", "object") if path.parent.name == "records" else "object", line))
    return found


@pytest.mark.parametrize("place", [path for path in bundles("good") if path.is_dir()], ids=lambda path: path.name)
def test_documents_fit_their_schema_and_are_canonical(place: Path) -> None:
    """Every document of a good fixture validates, and is byte for byte what an RFC 8785 library writes."""
    for name, data in documents(place):
        document = json.loads(data)
        assert rfc8785.dumps(document) == data
        schema = SPEC / "v1" / "schema" / f"{name}.json"
        if schema.exists():
            jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(document)
        else:
            assert place.name == "from_the_future"


def test_the_text_has_the_table_of_kinds() -> None:
    """Rank, tables in leaf order and locations of each kind stand in 4.1, and its members in 4.2, 4.3 or 4.6."""
    section = TEXT[TEXT.index("| kind | rank | time |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in section.splitlines()[2:]]
    code = [
        [f"`{k.name}`", str(k.rank), *(", ".join(f"`{n}`" for n in names) for names in (k.tables, k.locations))]
        for k in KINDS.values()
    ]
    assert [[row[0], row[1], row[4], row[5]] for row in rows] == code
    for kind in KINDS.values():
        found = re.search(rf"^\| `{kind.name}` \| (`.*) \|$", TEXT, re.MULTILINE)
        if kind.name not in ("experiment", "run"):
            assert found is not None
            assert set(re.findall(r"`(\w+)`", found[1])) == set(kind.type.__struct_fields__), kind.name


def test_the_table_of_kinds_for_programs_is_that_of_the_text() -> None:
    """``v1/kinds.json`` says the same of time, id, tables and locations as 4.1, in the same order."""
    section = TEXT[TEXT.index("| kind | rank | time |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in section.splitlines()[2:]]
    told = {row[0].strip("`"): row[2:] for row in rows}
    said = json.loads((SPEC / "v1" / "kinds.json").read_text(encoding="utf-8"))
    assert list(said) == list(told)
    for kind, (time, name, *lists) in told.items():
        first = "versions." if time.endswith("of the first version") else ""
        wanted = {
            "time": None if time == "none" else first + time.partition("` ")[0].strip("`"),
            "id": name.strip("`").replace("[", "").replace("]", "").split("/"),
            **{
                key: [part.strip("` ") for part in text.split(",") if part]
                for key, text in zip(("tables", "locations"), lists, strict=True)
            },
        }
        assert said[kind] == wanted, kind


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_text_describes_every_column(name: str) -> None:
    """Each column stands in the table below its schema's name, as optional just where it may be null."""
    section = TEXT[TEXT.index(f"`{name}`, role") :]
    rows = [row.split("|") for row in section[section.index("| column") :].partition("\n\n")[0].splitlines()[2:]]
    told = {column.strip("` "): row[2].strip().partition(",")[0] for row in rows for column in row[1].split(",")}
    schema = TABLES[name].schema
    assert set(told) == set(schema.names)
    for field in schema:
        assert told[field.name].endswith("?") == field.nullable, field
        assert told[field.name].rstrip("?").startswith({pa.string(): "string"}.get(field.type, str(field.type)[:3])), field


def test_the_text_has_the_limits_and_targets_of_the_code() -> None:
    """Numbers of sections 5, 7 and 10 are those that the code uses."""
    limits, targets = bundle.Limits(), bundle.Targets()
    mib = 2**20
    for row in (
        f"| snapshot document | {limits.snapshot_bytes // mib} MiB |",
        f"| nesting of JSON | {limits.json_depth} levels |",
        f"| one line | {limits.line_bytes // mib} MiB |",
        f"{limits.frame_bytes // mib} MiB; above 1 MiB also {limits.frame_ratio:,} times",
        f"| records or lists object | {limits.records_bytes // mib} MiB |",
        f"| table object | {limits.table_bytes // 2**30} GiB |",
        f"`deflate` | {limits.pack_bytes // mib} MiB; {limits.pack_entries:,} entries a pack |",
        f"| row group of a table | {limits.row_group_rows:,} rows; {limits.row_group_bytes // 2**30} GiB of strings",
        f"at least {targets.frame_bytes // 1024} KiB",
        f"{targets.records_bytes // mib} MiB for records; rows and {targets.metric_rows:,} for metrics",
        f"rows and {targets.file_rows:,} for files",
        f"target ({targets.pack_bytes // mib} MiB; {targets.index_rows:,} rows)",
        f"contents below {targets.blob_bytes // mib} MiB",
        f"above {targets.split_bytes // 2**30} GiB into parts of {targets.part_bytes // 2**30} GiB",
        f"larger than {targets.inline_bytes // mib} MiB",
        f"When {targets.merge_width} or more packs",
        f"row groups of {_tables.ROW_GROUP_ROWS:,} rows",
    ):
        assert row in TEXT, row


def test_references_to_the_text_point_somewhere() -> None:
    """Every section that a docstring of the package or a comment of the reader names exists."""
    headings = set(re.findall(r"^#+ ([0-9]+(?:\.[0-9]+)?) ", TEXT, re.MULTILINE))
    for path in (ROOT / "mlflow_bundle").rglob("*.py"):
        for reference in re.findall(r"spec/v1\.md, (?:sections? )?([0-9][0-9., and to]*)", path.read_text(encoding="utf-8")):
            assert set(re.findall(r"[0-9]+(?:\.[0-9]+)?", reference)) <= headings, (path, reference)
    for reference in re.findall(r"#(?: |.*, )([0-9]+(?:\.[0-9]+)?)\b", (SPEC / "reader.py").read_text(encoding="utf-8")):
        assert reference in headings


# -- fixtures and examples ------------------------------------------------------------------------------------------------


def test_fixtures_can_be_made_again(tmp_path: Path) -> None:
    """The generator gives the logical roots that are checked in, and the same names of fixtures."""
    maker = script("make_fixtures")
    maker.write_fixtures(tmp_path / "fixtures")
    assert maker.summary(tmp_path / "fixtures") == maker.summary(FIXTURES)
    for group in ("good", "warn", "bad"):
        assert {p.name for p in (tmp_path / "fixtures" / group).iterdir()} == {p.name for p in (FIXTURES / group).iterdir()}


def test_fixtures_stay_small() -> None:
    """Fixtures travel with every copy of the source."""
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 3_000_000


def test_one_file_and_folder_hold_the_same() -> None:
    """The ZIP file of the minimal bundle has the very files of its folder, ``mimetype`` first and the snapshot last."""
    import zipfile  # noqa: PLC0415

    with zipfile.ZipFile(FIXTURES / "good" / "one_file.mlbundle.zip") as archive:
        names = archive.namelist()
        held = {name: archive.read(name) for name in names}
    assert (names[0], names[-1].partition("/")[0]) == ("mimetype", "snapshots")
    folder = {p.relative_to(MINIMAL).as_posix(): p.read_bytes() for p in MINIMAL.rglob("*") if p.is_file()}
    assert {name: data for name, data in held.items() if name.startswith("objects/records")} == {
        name: data for name, data in folder.items() if name.startswith("objects/records")
    }
    assert len(held) == len(folder) + 1


def test_the_python_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of the text, one after the other, hold in the minimal fixture."""
    monkeypatch.chdir(MINIMAL)
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    assert code.count("assert ") > 20
    scope: dict[str, Any] = {}
    exec(compile(code, "spec/v1.md", "exec"), scope)
    assert scope["root"].hex() == json.loads(next((MINIMAL / "snapshots").iterdir()).read_bytes())["logical"]["root"][7:]


SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", SHELL, ids=[f"block {number}" for number in range(len(SHELL))])
def test_the_shell_examples_run(block: str) -> None:
    """Each shell block prints just the lines after ``#>`` in the minimal fixture."""
    for tool in ("bash", "sha256sum", "jq", "zstd", "unzip"):
        if re.search(rf"\b{tool}\b", block) and shutil.which(tool) is None:
            pytest.skip(f"this machine has no {tool}")
    expected = "".join(f"{line[3:]}\n" for line in block.splitlines() if line.startswith("#> "))
    done = subprocess.run(["bash", "-c", block], cwd=MINIMAL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
