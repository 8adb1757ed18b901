"""The registry of skills and the newer fields of issues over REST, between real servers of MLflow 3.18."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import requests

import mlflow_bundle as bundle
from mlflow_bundle.entities import Skill
from mlflow_bundle.errors import AuthError, CannotHoldError
from mlflow_bundle.kinds import record_id
from mlflow_bundle.tracking._port import IdMap
from mlflow_bundle.tracking._rest import RestClient
from mlflow_bundle.tracking.rest import _once
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._skills_write import SkillRoad
from tests.fixtures.estate import KINDS_HERE
from tests.fixtures.newer import Newer
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.http_peer import serve

pytestmark = pytest.mark.slow

SKILLS = f"{API3}skills"
ICON = "https://93.184.216.34/icon.png"
FILES = {
    "SKILL.md": b"---\nname: review\n---\nreads code\n",
    "scripts/run": b"\x7fELF\0" + random.Random(1).randbytes(300_000),
    "empty.txt": b"",
}
START = 1_700_000_000_000
TABLES = """
import sys
import sqlalchemy
from mlflow.store.db.utils import _initialize_tables
_initialize_tables(sqlalchemy.create_engine(sys.argv[1]))
"""
#: Members that a server gives anew.
NEW = {"created_at", "last_updated_at", "created_timestamp", "last_updated_timestamp", "tags", "source"}

#: Members of answers that are times.
TIMES = ("creation_timestamp", "last_updated_timestamp")
Start = Callable[..., MlflowServer]


@pytest.fixture(scope="module")
def tables(newer: Newer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables of the newer MLflow."""
    folder = tmp_path_factory.mktemp("tables")
    newer.run("-c", TABLES, f"sqlite:///{folder}/mlflow.db", cwd=folder)
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def start(newer: Newer, tables: Path, start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start an empty server of the newer MLflow."""

    def started(*extra: str, **options: Any) -> MlflowServer:
        database = shutil.copy(tables, tmp_path_factory.mktemp("database"))
        return start_server(env=newer.env, backend_store_uri=f"sqlite:///{database}", extra=extra, **options)

    return started


@pytest.fixture(scope="module")
def source(start: Start) -> MlflowServer:
    """A server with skills of every source and in every state, and with issues."""
    server = start()
    client = RestClient(server.url)
    for organization in ("", "acme.org"):
        make_skill(client, organization)
    client.post_json(SKILLS, {"name": "bare"})
    make_issues(client)
    return server


@pytest.fixture(scope="module")
def packed(source: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the server."""
    folder = tmp_path_factory.mktemp("packed") / "bundle"
    assert bundle.pack(bundle=folder, tracking_uri=source.url).problems == ()
    return folder


def make_skill(client: RestClient, organization: str, name: str = "review") -> None:
    """A skill with everything that skills have."""
    place = f"{SKILLS}/@{organization}/{name}" if organization else f"{SKILLS}/{name}"
    skill = {"name": name, "organization": organization, "description": f"reads\ncode {organization}"}
    icons = [{"src": ICON, "sizes": ["48x48"], "mimeType": "image/png", "theme": "dark", "more": {"a": 1}}, {"src": ICON}]
    client.post_json(SKILLS, {**skill, "icons": icons})

    def post(path: str, body: Mapping[str, Any], method: str = "POST") -> Any:
        return client.post_json(f"{place}/{path}", body, method=method)

    post("tags", {"key": "tëam/x y", "value": "a\nb\n"})
    git = {"source_type": "git", "source": "https://example.org/skills.git", "digest": "0" * 64}
    post("versions", {**git, "ref": "v1", "subpath": f"skills/{name}"})
    post("versions", {**git, "status": "draft"})
    post("versions/2", {}, method="DELETE")
    upload(client, place, FILES)
    post("versions", {"source_type": "oci", "source": "ghcr.io/acme/skills:v1", "subpath": "a/b"})
    post("versions/4", {"status": "deprecated"}, method="PATCH")
    post("versions", {"source_type": "zip", "source": "https://example.org/s.zip?download=1", "status": "draft"})
    for number in (6, 7):
        post("versions", {**git, "ref": str(number), "status": "draft"})
        post(f"versions/{number}", {}, method="DELETE")
    upload(client, place, {"SKILL.md": b"other"}, status="draft")
    for number in (1, 3, 8):
        post(f"versions/{number}/tags", {"key": "k", "value": f"multi\nline {number}"})
    for alias, version in (("live", 3), ("Old", 4), ("next", 8)):
        post("aliases", {"alias": alias, "version": version})


def upload(client: RestClient, place: str, files: Mapping[str, bytes], **metadata: Any) -> Any:
    """A version of uploaded files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    parts = {"metadata": ("m.json", json.dumps(metadata).encode()), "content": ("c.tar.gz", packed.getvalue())}
    answer = requests.post(f"{client.uri}{place}/versions", files=parts, timeout=60)
    answer.raise_for_status()
    return answer.json()


def make_issues(client: RestClient) -> None:
    """Issues with and without the newer fields, two of one name."""
    for name, more in (
        ("slow", {"metadata": {"b": "1\n2", "a": "ü", "empty": ""}, "last_seen_timestamp": START, "created_by": "ann"}),
        ("slow", {"issue_id": "iss-of_the-user", "metadata": {"x": "y"}, "categories": ["cost"]}),
        ("plain", {"severity": "high", "root_causes": ["a"]}),
    ):
        body = {"experiment_id": "0", "name": name, "description": "d", **more}
        made = client.post_json(f"{API3}issues", body)["issue"]
        if more.get("created_by"):
            change = {"issue_id": made["issue_id"], "last_updated_by": "bob"}
            client.post_json(f"{API3}issues/{made['issue_id']}", change, method="PATCH")


def content(client: RestClient, location: str) -> dict[str, str]:
    """The files below a location of the artifact proxy, by path: their digests."""
    found = {}
    root = location.removeprefix("mlflow-artifacts:/")
    folders = [""]
    while folders:
        folder = folders.pop()
        listing = client.get_json("/api/2.0/mlflow-artifacts/artifacts", {"path": f"{root}/{folder}".rstrip("/")})
        for entry in listing.get("files", []):
            path = f"{folder}/{entry['path'].rpartition('/')[2]}".lstrip("/")
            if entry.get("is_dir"):
                folders.append(path)
            else:
                body = client.get_bytes(f"/api/2.0/mlflow-artifacts/artifacts/{root}/{path}")
                found[path] = hashlib.sha256(body).hexdigest()
    return found


def _ours(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith("mlflow_bundle.")}


def shown(client: RestClient) -> dict[str, Any]:
    """Everything that a server answers about skills, without times and tags of this tool; content instead of its place."""
    found: dict[str, Any] = {}
    for skill in client.get_json(SKILLS, {"max_results": 100})["skills"]:
        name = f"@{skill['organization']}/{skill['name']}" if skill["organization"] else skill["name"]
        found[name] = {**skill, "tags": _ours(skill["tags"]), **dict.fromkeys(TIMES)}
        for version in client.get_json(f"{SKILLS}/{name}/versions", {"max_results": 100})["skill_versions"]:
            key = f"{name}/{version['version']}"
            if version["source_type"] == "mlflow":
                version["source"] = content(client, version["source"])
            assert client.get_json(f"{SKILLS}/{name}/versions/{version['version']}")["digest"] == version["digest"]
            found[key] = {**version, "tags": _ours(version["tags"]), **dict.fromkeys(TIMES)}
    return found


def raw(client: RestClient) -> Any:
    """Whatever a server answers about skills, their versions and issues."""
    skills = client.get_json(SKILLS, {"max_results": 100})["skills"]
    places = [f"@{skill['organization']}/{skill['name']}" if skill["organization"] else skill["name"] for skill in skills]
    versions = [client.get_json(f"{SKILLS}/{place}/versions") for place in places]
    return skills, versions, client.post_json(f"{API3}issues/search", {})["issues"]


def records(folder: Path, kind: str) -> list[tuple[Any, ...]]:
    """The records of a kind, without what a server gives anew and tags of this tool, and the names and digests of files."""
    found = []
    with bundle.open(folder) as archive:
        for record in archive.records(kind):
            fields = {name: getattr(record, name) for name in record.__struct_fields__ if name not in NEW}
            tags = _ours({tag.key: tag.value for tag in getattr(record, "tags", ())})
            found.append((record_id(record), fields, tags))
    return sorted(found, key=lambda one: one[0])


def outcome(report: bundle.UnpackReport, kind: str) -> dict[str, int]:
    """What became of the entities of a kind."""
    found = next(one for one in report.entities if one.kind == kind)
    counts = {name: getattr(found, name) for name in ("restored", "there", "merged", "left_out", "failed")}
    return {name: count for name, count in counts.items() if count}


def test_skills_and_issues_move_between_servers(source: MlflowServer, packed: Path, start: Start, tmp_path: Path) -> None:
    """Whatever a server shows of skills is at the other one, with the numbers of versions and the content of files, and issues
    with their ids; a second unpack changes nothing, and a pack of the target has the same skills and issues."""
    target = start()
    here, there = RestClient(source.url), RestClient(target.url)
    expected = shown(here)
    assert [key for key in expected if key.startswith("review/")] == [f"review/{number}" for number in (1, 3, 4, 5, 8)]
    assert expected["review/3"]["source"] == {path: hashlib.sha256(text).hexdigest() for path, text in FILES.items()}
    report = bundle.unpack(packed, tracking_uri=target.url)
    assert report.problems == ()
    assert report.notes == ("a server gives new times to issues; the archive keeps the old ones (3 times)",)
    assert outcome(report, "skill_version") == {"restored": 10}
    assert next(one.files for one in report.entities if one.kind == "skill_version") == 8
    assert shown(there) == expected
    tags = there.get_json(f"{SKILLS}/review/versions/3")["tags"]
    assert tags["mlflow_bundle.source.source"] == here.get_json(f"{SKILLS}/review/versions/3")["source"]
    before = raw(there)
    assert {issue["issue_id"]: _issue(issue) for issue in before[2]} == {one["issue_id"]: _issue(one) for one in raw(here)[2]}
    report = bundle.unpack(packed, tracking_uri=target.url)
    assert (report.problems, report.notes) == ((), ())
    assert [outcome(report, kind) for kind in ("skill", "skill_version", "issue")] == [
        {"there": 3},
        {"there": 10},
        {"there": 3},
    ]
    assert raw(there) == before
    assert bundle.pack(bundle=tmp_path / "again", tracking_uri=target.url).problems == ()
    for kind in ("skill", "skill_version", "issue"):
        assert records(tmp_path / "again", kind) == records(packed, kind)
    git = {"source_type": "git", "source": "https://example.org/skills.git"}
    assert there.post_json(f"{SKILLS}/review/versions", git)["version"] == 9


def _issue(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in NEW}


def test_a_restore_that_is_refused_again_and_again(source: MlflowServer, packed: Path, start: Start) -> None:
    """A restore that ends at random moments, before or after a write arrives, and is started again until it gets to its end
    leaves what an undisturbed one leaves: no placeholder, every number the same, even the next ones."""
    target = start()
    chance = random.Random(20261122)
    stops = 0
    while _is_stopped(packed, target, chance):
        stops += 1
    assert stops > 5
    there = RestClient(target.url)
    assert shown(there) == shown(RestClient(source.url))
    before = raw(there)
    assert bundle.unpack(packed, tracking_uri=target.url).problems == ()
    assert raw(there) == before
    git = {"source_type": "git", "source": "https://example.org/skills.git"}
    for place in ("review", "@acme.org/review"):
        assert there.post_json(f"{SKILLS}/{place}/versions", git)["version"] == 9


def _is_stopped(packed: Path, target: MlflowServer, chance: random.Random) -> bool:
    left, before = chance.randint(1, 25), chance.random() < 0.5

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
        nonlocal left
        writes = method != "GET" and not path.endswith("/search")
        left -= writes
        if writes and left == 0 and not before:
            _forward(target.url, method, path, body)
        return _forward(target.url, method, path, body) if not writes or left > 0 else (403, b"{}", None)

    with serve(answer) as peer:
        try:
            bundle.unpack(packed, tracking_uri=peer.url, jobs=chance.choice((1, 4)))
        except AuthError:
            return True
    return False


def _forward(url: str, method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
    """Ask the real server; forms stay forms."""
    boundary = body[2 : body.find(b"\r\n")].decode("latin-1") if body.startswith(b"--") else ""
    kind = f"multipart/form-data; boundary={boundary}" if boundary else "application/json"
    said = requests.request(method, url + path, data=body, headers={"Content-Type": kind}, timeout=60)
    return said.status_code, said.content, None


def test_answers_that_are_lost(packed: Path, source: MlflowServer, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no answer comes to a request that makes a version, the version is made once."""
    monkeypatch.setattr(_once, "_WAITS", (0, 0, 0))
    target = start()
    lost: set[str] = set()

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes, int | None]:
        said = _forward(target.url, method, path, body)
        made = hashlib.sha256(body.partition(b"\r\n")[2] or body).hexdigest() + path
        if method == "POST" and path.endswith("versions") and made not in lost:
            lost.add(made)
            return 500, b"{}", None
        return said

    with serve(answer) as peer:
        report = bundle.unpack(packed, tracking_uri=peer.url)
    assert report.problems == ()
    assert len(lost) >= 12
    assert shown(RestClient(target.url)) == shown(RestClient(source.url))


def test_numbers_are_kept_or_told(packed: Path, start: Start) -> None:
    """Where the target has used up the number of a version, the version is left out and told, before a write where the target
    shows that one; where it does not, a try takes the next number. Others follow. What the target has of its own stays."""
    target = start()
    there = RestClient(target.url)
    git = {"source_type": "git", "source": "https://example.org/own.git", "status": "draft"}
    for _ in range(3):
        there.post_json(f"{SKILLS}/review/versions", git)
    there.post_json(f"{SKILLS}/review/versions/3", {}, method="DELETE")
    there.post_json(f"{SKILLS}/review/aliases", {"alias": "next", "version": 2})
    for _ in range(4):
        number = there.post_json(f"{SKILLS}/@acme.org/review/versions", git)["version"]
        there.post_json(f"{SKILLS}/@acme.org/review/versions/{number}", {}, method="DELETE")
    with pytest.raises(CannotHoldError, match="digest, ref, source, subpath differs"):
        bundle.unpack(packed, tracking_uri=target.url)
    report = bundle.unpack(packed, tracking_uri=target.url, allow_partial=True)
    told = {(problem.id, problem.code) for problem in report.problems}
    taken = {(f"@acme.org/review/{number}", "version-taken") for number in (1, 3, 4, 5)}
    assert told == {("review/1", "name-taken"), ("review/3", "version-taken"), ("review/4", "version-taken"), *taken}
    found = shown(there)
    assert [key for key in found if key.startswith("review/")] == [f"review/{number}" for number in (1, 2, 5, 8)]
    assert [key for key in found if key.startswith("@acme.org/review/")] == ["@acme.org/review/8"]
    assert found["review"]["aliases"] == [{"alias": "next", "version": 2}]
    assert "the skill 'review' keeps its own alias 'next'" in report.notes
    assert any("the alias 'live' of 'review' names version 3, which was not restored" in note for note in report.notes)


def test_skills_of_workspaces(packed: Path, source: MlflowServer, start: Start, tmp_path: Path) -> None:
    """Skills and their files come into a workspace and out of it. An id of an issue that another workspace has is not given
    again, and that is told."""
    target = start("--enable-workspaces")
    for name in ("team-a", "team-b"):
        report = bundle.unpack(packed, tracking_uri=target.url, workspace=name)
        assert report.problems == ()
        assert any("new ids and times to issues" in note for note in report.notes) == (name == "team-b")
    expected = {key: {**one, "workspace": "team-b"} for key, one in shown(RestClient(source.url)).items()}
    assert shown(RestClient(target.url).in_workspace("team-b")) == expected
    packed_again = bundle.pack(bundle=tmp_path / "b", tracking_uri=target.url)
    assert packed_again.problems == ()
    assert (packed_again.counts["skill_version"], packed_again.counts["file"]) == (20, 16)
    with bundle.open(tmp_path / "b") as archive:
        found = {record_id(skill) for skill in archive.records("skill")}
    assert found == {f"{place}/{name}" for place in ("team-a", "team-b") for name in ("review", "@acme.org/review", "bare")}


def test_what_no_server_makes_is_told(source: MlflowServer, start: Start, tmp_path: Path) -> None:
    """Uploads without files, parts of other content, and names that no server takes are left out; the others arrive."""
    odd, target = start(), start()
    client = RestClient(odd.url)
    for name in ("part", "gone", "fine", "upper"):
        upload(client, f"{SKILLS}/{name}", {"SKILL.md": name.encode()})
    path = odd.backend_store_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("UPDATE skill_versions SET subpath = 'a' WHERE name = 'part'")
        (where,) = database.execute("SELECT source FROM skill_versions WHERE name = 'gone'").fetchone()
    shutil.rmtree(Path(odd.artifacts_destination) / where.removeprefix("mlflow-artifacts:/"))
    bundle.pack(bundle=tmp_path / "b", tracking_uri=odd.url, allow_partial=True)
    with pytest.raises(CannotHoldError, match="part of other content"):
        bundle.unpack(tmp_path / "b", tracking_uri=target.url)
    report = bundle.unpack(tmp_path / "b", tracking_uri=target.url, allow_partial=True)
    told = {problem.id: problem.message for problem in report.problems}
    assert told.keys() == {"part/1", "gone/1"}
    assert "the archive has no files of it" in told["gone/1"]
    assert [key for key in shown(RestClient(target.url)) if "/" in key] == ["fine/1", "upper/1"]
    without_files = start(serve_artifacts=False)
    with pytest.raises(CannotHoldError) as refused:
        bundle.unpack(tmp_path / "b", tracking_uri=without_files.url)
    assert sum("keeps no files" in problem.message for problem in refused.value.problems) == 3


@pytest.mark.parametrize(("name", "organization"), [("Upper", ""), ("a--b", ""), ("a" * 65, ""), ("a.b", ""), ("a", "b_c")])
def test_names_that_no_server_takes(name: str, organization: str) -> None:
    """A database may have names that MLflow refuses."""
    peer = SkillRoad(cast("Any", None))
    assert peer.refusal(Skill(name="a-1", organization="b.c-d"), IdMap()) is None
    assert "small letters" in str(peer.refusal(Skill(name=name, organization=organization), IdMap()))


def test_damaged_content_is_told(packed: Path, start: Start, tmp_path: Path) -> None:
    """A version of which a file is damaged is not made, and that is told; those behind it keep their numbers."""
    folder = tmp_path / "b"
    shutil.copytree(packed, folder)
    target = start()
    text = FILES["scripts/run"][1000:2000]
    (place,) = (path for path in folder.rglob("*") if path.is_file() and text in path.read_bytes())
    place.chmod(0o644)
    place.write_bytes(place.read_bytes().replace(text, b"?" + text[1:]))
    report = bundle.unpack(folder, tracking_uri=target.url, allow_partial=True)
    assert {problem.id for problem in report.problems if problem.kind == "skill_version"} >= {"review/3", "@acme.org/review/3"}
    there = [key for key in shown(RestClient(target.url)) if key.startswith("review/")]
    assert there == [f"review/{number}" for number in (1, 4, 5, 8)]


@pytest.mark.skipif("skill" in KINDS_HERE, reason="the installed MLflow has a place for them")
def test_an_older_server_has_no_place_for_them(packed: Path, start_server: ServerFactory) -> None:
    """A server of the release before is told of before a write; with leave it gets everything else."""
    target = start_server()
    with pytest.raises(CannotHoldError, match="nothing was written") as refused:
        bundle.unpack(packed, tracking_uri=target.url)
    report = bundle.unpack(packed, tracking_uri=target.url, allow_partial=True)
    told = [problem.message for problem in report.problems]
    assert told[0] in str(refused.value)
    assert sum("last seen timestamp is left out" in message for message in told) == 3
    assert sum("metadata is left out" in message for message in told) == 2
    assert {problem.kind for problem in report.problems if problem.code == "kind-not-held"} == {"skill", "skill_version"}
    assert [outcome(report, kind) for kind in ("skill", "skill_version", "issue")] == [
        {"left_out": 3},
        {"left_out": 10},
        {"restored": 3},
    ]


def test_deleted_versions_of_a_database(start: Start, tmp_path: Path) -> None:
    """What only a database shows of versions that are deleted is restored too, and no number comes back."""
    origin, target = start(), start()
    client, there = RestClient(origin.url), RestClient(target.url)
    place = f"{SKILLS}/tail"
    for number in range(1, 6):
        client.post_json(
            f"{place}/versions", {"source_type": "git", "source": f"https://example.org/{number}.git", "status": "draft"}
        )
    upload(client, place, FILES, status="draft")
    for number in (2, 5, 6):
        client.post_json(f"{place}/versions/{number}", {}, method="DELETE")
    database, files = origin.backend_store_uri, origin.artifacts_destination
    assert bundle.pack(bundle=tmp_path / "b", tracking_uri=database, artifacts_destination=files).problems == ()
    for found in ({"restored": 6}, {"there": 6}):
        report = bundle.unpack(tmp_path / "b", tracking_uri=target.url)
        assert report.problems == ()
        assert outcome(report, "skill_version") == found
    assert any("files and tags of deleted versions" in note for note in report.notes)
    rows = []
    for server in (origin, target):
        with closing(sqlite3.connect(server.backend_store_uri.removeprefix("sqlite:///"))) as connection:
            rows.append(list(connection.execute("SELECT version, status, source FROM skill_versions ORDER BY version")))
    assert rows[0][:5] == rows[1][:5]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    git = {"source_type": "git", "source": "https://example.org/skills.git"}
    assert there.post_json(f"{place}/versions", git)["version"] == 7
