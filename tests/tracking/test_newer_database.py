"""Databases of a newer MLflow than the installed one: what that release added comes through, and where it has no place it is
told before anything is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from msgspec import UNSET

import mlflow_bundle as bundle
from mlflow_bundle.entities import Issue, Skill, SkillVersion
from mlflow_bundle.errors import CannotHoldError
from mlflow_bundle.kinds import record_id
from tests.fixtures.estate import KINDS_HERE, SCRIPT
from tests.fixtures.newer import Newer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SKILLS = ("skill", "skill_version")
TABLES = ("skills", "skill_tags", "skill_aliases", "skill_versions", "skill_version_tags", "issues", "issue_categories")
UPLOAD = f"skills/@acme/review/{'ab' * 16}"


def rows(uri: str) -> dict[str, list[Any]]:
    """Every row of the tables that the newer release added or changed."""
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine, only=TABLES)
    with engine.connect() as connection:
        found = {
            name: sorted(json.dumps(dict(row), sort_keys=True) for row in connection.execute(table.select()).mappings())
            for name, table in tables.tables.items()
        }
    engine.dispose()
    return found


@pytest.fixture(scope="module")
def source(newer: Newer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Everything that the newer MLflow can hold, and the content of a skill that was uploaded to its server."""
    folder = tmp_path_factory.mktemp("newer")
    uri = f"sqlite:///{folder}/mlflow.db"
    newer.run(SCRIPT, uri, cwd=folder)
    fields = {
        "organization": "acme",
        "name": "review",
        "version": 4,
        "source_type": "mlflow",
        "source": f"mlflow-artifacts:/{UPLOAD}",
        "created_at": 1_700_000_000_000,
        "last_updated_at": 1_700_000_000_000,
    }
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        places = ", ".join(f":{name}" for name in fields)
        database.execute(f"INSERT INTO skill_versions ({', '.join(fields)}) VALUES ({places})", fields)
    content = folder / "served" / UPLOAD
    (content / "scripts").mkdir(parents=True)
    (content / "SKILL.md").write_text("---\nname: review\n---\n")
    (content / "scripts" / "run.sh").write_bytes(b"#!/bin/sh\n\x00")
    return uri


@pytest.fixture(scope="module")
def packed(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That as a bundle, packed with the installed MLflow."""
    place = tmp_path_factory.mktemp("packed") / "b"
    served = str(Path(source.removeprefix("sqlite:///")).with_name("served"))
    report = bundle.pack(bundle=place, tracking_uri=source, artifacts_destination=served)
    assert (report.state, report.problems) == ("complete", ())
    assert not any("does not know" in note for note in report.notes)
    assert bundle.verify(place).problems == ()
    return place


def test_all_that_is_new_is_archived(packed: Path) -> None:
    """Skills with all they have, by the names that MLflow gives them, and the new members of issues."""
    with bundle.open(packed) as archive:
        skills: dict[str, Any] = {record_id(record): record for record in archive.records("skill")}
        versions: dict[str, Any] = {record_id(record): record for record in archive.records("skill_version")}
        (slow,) = (record for record in archive.records("issue") if isinstance(record, Issue) and record.name == "slow")
        files = archive.files(kind="skill_version").to_pylist()
    assert skills.keys() == {"@acme/review", "review", "bare"}
    skill = skills["@acme/review"]
    assert isinstance(skill, Skill)
    assert (skill.description, json.loads(str(skill.icons))) == ("reads  code\n", [{"src": "https://93.184.216.34/x.png"}])
    assert [(tag.key, tag.value) for tag in skill.tags] == [("k", "v\nw")]
    assert [(alias.alias, alias.version) for alias in skill.aliases] == [("live", 3)]
    assert versions.keys() == {*(f"@acme/review/{number}" for number in (1, 2, 3, 4)), "review/1"}
    first = versions["@acme/review/1"]
    assert isinstance(first, SkillVersion)
    assert (first.source_type, first.source, first.ref) == ("git", "https://example.com/skills.git", "main")
    assert (first.subpath, first.digest, first.status, first.created_by) == ("review", "0" * 64, "deprecated", "ann")
    assert versions["@acme/review/2"].status == "deleted"
    assert (slow.last_seen_timestamp, slow.last_updated_by) == (4_000_000_000_000, "bob")
    assert json.loads(str(slow.metadata)) == {"ticket": "1", "ü": "a\nb"}
    assert {(file["owner_id"], file["path"]) for file in files} == {
        ("@acme/review/4", "SKILL.md"),
        ("@acme/review/4", "scripts/run.sh"),
    }


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_it_is_restored_exactly(
    kind: str, newer: Newer, source: str, packed: Path, tmp_path: Path, postgres_database: Callable[[], str]
) -> None:
    """With the newer MLflow installed every row, the derived ones too, and every file comes back, once."""
    target = f"sqlite:///{tmp_path}/mlflow.db" if kind == "sqlite" else postgres_database()
    unpack = ("-m", "mlflow_bundle", "unpack", packed, "--tracking-uri", target, "--artifacts-destination", tmp_path / "served")
    newer.run(*unpack, cwd=tmp_path)
    there, wanted = rows(target), rows(source)
    for table in TABLES:
        assert there[table] == wanted[table], table
    for path in ("SKILL.md", "scripts/run.sh"):
        assert (tmp_path / "served" / UPLOAD / path).read_bytes() == (
            Path(source.removeprefix("sqlite:///")).with_name("served") / UPLOAD / path
        ).read_bytes()
    newer.run(*unpack, cwd=tmp_path)
    assert rows(target) == there


def test_without_a_place_for_uploads_they_are_left_out_and_told(newer: Newer, packed: Path, tmp_path: Path) -> None:
    """MLflow gives out the content of skills by its server only, so that a database alone is no place for it."""
    unpack = ("-m", "mlflow_bundle", "unpack", packed, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--json")
    done = newer.run(*unpack, cwd=tmp_path, check=False)
    assert done.returncode == 3, done.stderr
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["id"] == "@acme/review/4"
    assert "artifacts_destination" in problem["message"]


def test_nothing_of_the_newer_release_is_forgotten(newer: Newer) -> None:
    """The test of completeness holds with it too."""
    done = newer.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tracking/test_completeness.py", cwd=ROOT)
    assert "skipped" not in done.stdout, done.stdout


@pytest.mark.skipif("skill" in KINDS_HERE, reason="the installed MLflow has a place for it")
def test_an_older_schema_is_told_before_it_is_written(packed: Path, tmp_path: Path) -> None:
    """The installed MLflow has no skills and less of issues: named before the first write; the rest arrives where that is
    asked for."""
    target = tmp_path / "mlflow.db"
    with pytest.raises(CannotHoldError) as refused:
        bundle.unpack(packed, tracking_uri=f"sqlite:///{target}", artifacts_destination=tmp_path / "served")
    told = {(problem.kind, problem.code) for problem in refused.value.problems}
    assert {(kind, "kind-not-held") for kind in SKILLS} <= told
    assert sum(problem.kind == "issue" for problem in refused.value.problems) >= 3
    report = bundle.unpack(
        packed, tracking_uri=f"sqlite:///{target}", artifacts_destination=tmp_path / "served", allow_partial=True
    )
    assert {problem.kind for problem in report.problems} >= {"issue", *SKILLS}
    bundle.pack(bundle=tmp_path / "again", tracking_uri=f"sqlite:///{target}", artifacts_destination=tmp_path / "served")
    with bundle.open(tmp_path / "again") as archive:
        (slow,) = (record for record in archive.records("issue") if isinstance(record, Issue) and record.name == "slow")
    assert (slow.metadata, slow.last_updated_by, slow.status) == (UNSET, UNSET, "resolved")
