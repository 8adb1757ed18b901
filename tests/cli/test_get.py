"""``cat`` and ``get``: files come out whole and exact, and nothing is written where it should not be."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import mlflow_bundle
from mlflow_bundle._manifest import ensure_marker
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._storage import open_storage
from mlflow_bundle.records import Experiment, Problem, Run, Scope, Source
from tests.cli.conftest import Archived, Command

RUN = "0123456789abcdef0123456789abcdef"


def crafted(place: Path, files: Mapping[str, bytes | None]) -> Path:
    """A valid bundle whose run has files of these names; None: it could not be read."""
    storage = open_storage(place, create=True)
    packer = Packer(storage, ensure_marker(storage))
    packer.add(Experiment(experiment_id="1", name="e"))
    packer.add(Run(run_id=RUN, experiment_id="1", run_name="r"))
    packer.end_series()
    rows = [
        FileRow(path=path, size=3, sha256=None, state="unreadable")
        if content is None
        else FileRow(path=path, size=len(content), sha256=packer.blobs.add_bytes(content))
        for path, content in files.items()
    ]
    packer.add_files(rows)
    problems = [Problem(code="artifact-unreadable", message=path) for path, content in files.items() if content is None]
    source = Source(kind="sqlite", uri="sqlite:///x")
    packer.commit(created_at=1, scope=Scope(), source=source, parents=[], problems=problems, notes=[])
    packer.close()
    storage.close()
    return place


def test_cat(command: Command, archived: Archived) -> None:
    """The bytes of a file, and nothing else, are on stdout."""
    done = command("cat", archived.bundle, "churn/parent/artifacts/model/deep er/größe.txt")
    assert (done.code, done.raw, done.err) == (0, b"deeper", "")
    assert command("cat", archived.bundle, "churn/parent/artifacts/odd\n\x1b[2J.txt").raw == b"odd"


def test_cat_json(command: Command, tmp_path: Path) -> None:
    """The JSON form has the content in base64, also when it is larger than a piece that is read at once."""
    content = os.urandom((3 << 19) * 2 + 7)
    bundle = crafted(tmp_path / "b", {"large.bin": content, "empty": b""})
    document = json.loads(command("cat", bundle, "e/r/artifacts/large.bin", "--json").out)
    assert base64.b64decode(document["content_base64"]) == content
    assert (document["run_id"], document["path"], document["size"]) == (RUN, "large.bin", len(content))
    assert json.loads(command("cat", bundle, "e/r/artifacts/empty", "--json").out)["content_base64"] == ""


@pytest.mark.parametrize("path", ["", "churn", "churn/parent", "churn/parent/artifacts", "churn/parent/artifacts/model"])
def test_cat_needs_a_file(command: Command, archived: Archived, path: str) -> None:
    """Anything else is a wrong use, with the command that fits."""
    done = command("cat", archived.bundle, path)
    assert (done.code, done.out) == (2, "")
    assert "mlflow-bundle get" in done.err


@pytest.mark.parametrize("path", ["churn/parent/artifacts/../../../etc/passwd", "churn/parent/artifacts//etc/passwd", "../x"])
@pytest.mark.parametrize("name", ["cat", "get"])
def test_climbing_requests_find_nothing(command: Command, archived: Archived, tmp_path: Path, name: str, path: str) -> None:
    """A path that climbs names no file of the archive."""
    done = command(name, archived.bundle, path, *([tmp_path / "out"] if name == "get" else []))
    assert (done.code, done.out) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_get_folder(command: Command, archived: Archived, tmp_path: Path) -> None:
    """What lies in a folder lies in the destination then, byte for byte, and with the rights of ordinary files."""
    done = command("get", archived.bundle, "churn/parent", tmp_path / "out", "--json")
    assert (done.code, done.err) == (0, "")
    found = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert found == {
        "model/weights.txt": b"weights",
        "model/deep er/größe.txt": b"deeper",
        "plain.txt": b"plain",
        "odd\n\x1b[2J.txt": b"odd",
    }
    assert json.loads(done.out)["file_bytes"] == 21
    (tmp_path / "mine").write_text("")
    assert (tmp_path / "out/plain.txt").stat().st_mode == (tmp_path / "mine").stat().st_mode
    text = command("get", archived.bundle, "churn/parent/artifacts/model", tmp_path / "model")
    assert text.err == f"copied 2 files, 13 B, to {tmp_path / 'model'}\n"
    assert (tmp_path / "model/weights.txt").read_bytes() == b"weights"


def test_get_file(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A file goes to the path that was given, or into the folder that is there."""
    path = "churn/parent/artifacts/model/weights.txt"
    assert command("get", archived.bundle, path, tmp_path / "w").code == 0
    assert command("get", archived.bundle, path, tmp_path).code == 0
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"w": b"weights", "weights.txt": b"weights"}


def test_existing_files(command: Command, archived: Archived, tmp_path: Path) -> None:
    """Nothing at all is written where one file exists, unless --force says so."""
    (tmp_path / "plain.txt").write_text("mine")
    refused = command("get", archived.bundle, "churn/parent", tmp_path)
    assert refused.code == 2
    assert "--force overwrites" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["plain.txt"]
    assert (tmp_path / "plain.txt").read_text() == "mine"
    assert command("get", archived.bundle, "churn/parent", tmp_path, "--force").code == 0
    assert (tmp_path / "plain.txt").read_text() == "plain"


def test_an_experiment_is_not_copied(command: Command, archived: Archived, tmp_path: Path) -> None:
    """Only runs have files."""
    done = command("get", archived.bundle, "churn", tmp_path / "out")
    assert done.code == 2
    assert "not a file or folder of a run" in done.err


@pytest.mark.parametrize(
    "path",
    [
        *("../evil", "a/../../evil", "/etc/evil", "a//b", "./a", "a/.", "a/"),
        *("\\\\host\\share", "..\\evil", "a\\..\\..\\b", "x\0y", "nul/../x"),
    ],
)
def test_hostile_paths(command: Command, tmp_path: Path, path: str) -> None:
    """One hostile path in a bundle, and nothing of that folder is written anywhere."""
    bundle = crafted(tmp_path / "b", {"fine.txt": b"fine", path: b"evil"})
    done = command("get", bundle, "e/r", tmp_path / "out/deep")
    assert (done.code, done.out) == (1, "")
    assert "nothing was written" in done.err
    assert json.loads(command("get", bundle, "e/r", tmp_path / "out/deep", "--json").err)["error"]["code"] == "hostile-path"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    assert command("get", bundle, "e/r/artifacts/fine.txt", tmp_path / "fine").code == 0


@pytest.mark.parametrize("path", ["nul", "a/CON.txt", "com1", "lpt1.log", "aux.txt", "C:evil", "c:\\evil", "a:1/x"])
def test_names_of_devices(command: Command, tmp_path: Path, path: str) -> None:
    """A name that means something else on Windows is left out and told, with 3, and the rest is written."""
    bundle = crafted(tmp_path / "b", {"fine.txt": b"fine", path: b"con"})
    done = command("get", bundle, "e/r", tmp_path / "out", "--json")
    document = json.loads(done.out)
    assert (done.code, [file["path"] for file in document["files"]]) == (3, ["fine.txt"])
    (problem,) = document["problems"]
    assert (problem["code"], problem["path"], problem["id"]) == ("reserved-name", path, RUN)
    assert [(at.name, at.read_bytes()) for at in (tmp_path / "out").iterdir()] == [("fine.txt", b"fine")]
    assert "reserved-name" in command("get", bundle, "e/r", tmp_path / "again").err
    alone = command("get", bundle, f"e/r/artifacts/{path}", tmp_path / "alone")
    assert (alone.code, (tmp_path / "alone").exists()) == (1, False)
    assert "mlflow-bundle cat" in alone.err


@pytest.mark.parametrize(
    "names",
    [("Name.txt", "name.txt"), ("café", "cafe\u0301"), ("straße", "STRASSE"), ("a", "a/b"), ("A", "a/b"), ("x/A/1", "x/a/1")],
)
def test_collisions(command: Command, tmp_path: Path, names: tuple[str, str]) -> None:
    """Paths that are one on some disk, or a file and a folder at once, are refused together; each can still be printed."""
    bundle = crafted(tmp_path / "b", {name: name.encode() for name in names})
    done = command("get", bundle, "e/r", tmp_path / "out")
    assert done.code == 1
    assert not (tmp_path / "out").exists()
    for name in names:
        assert command("cat", bundle, f"e/r/artifacts/{name}").raw == name.encode()


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses more")
def test_odd_names_are_copied(command: Command, tmp_path: Path) -> None:
    """Names that only look odd come out as they are."""
    names = ["..two-dots", "...", "a b/ü", "console.txt", "nullable/x", "ab:c", "what?.txt", "x\\y"]
    bundle = crafted(tmp_path / "b", {name: name.encode() for name in names})
    assert command("get", bundle, "e/r", tmp_path / "out").code == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == {name: name.encode() for name in names}


def test_links_in_the_destination(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A link that lies in the destination and leads out of it is not followed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/model").symlink_to(tmp_path / "elsewhere")
    done = command("get", archived.bundle, "churn/parent", tmp_path / "out")
    assert done.code == 2
    assert "leads out of" in done.err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_force_replaces_files_only(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A link, a pipe or a device in the place of a file is never replaced, and then nothing at all is written."""
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link").mkdir()
    (tmp_path / "link/plain.txt").symlink_to(tmp_path / "mine.txt")
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead/plain.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/plain.txt")
    for name in ("link", "dead", "pipe"):
        done = command("get", archived.bundle, "churn/parent", tmp_path / name, "--force")
        assert (done.code, [path.name for path in (tmp_path / name).iterdir()]) == (2, ["plain.txt"])
        assert "is a link, a device or a pipe" in done.err
    assert (tmp_path / "mine.txt").read_text() == "mine"
    path = "churn/parent/artifacts/plain.txt"
    assert command("get", archived.bundle, path, tmp_path / "link/plain.txt", "--force").code == 2
    assert (tmp_path / "link/plain.txt").is_symlink()


def test_missing_files(command: Command, tmp_path: Path) -> None:
    """A file that a partial snapshot lacks is reported with 3, and the rest is written."""
    bundle = crafted(tmp_path / "b", {"fine.txt": b"fine", "lost.txt": None})
    done = command("get", bundle, "e/r", tmp_path / "out", "--json")
    assert done.code == 3
    document = json.loads(done.out)
    assert [file["path"] for file in document["files"]] == ["fine.txt"]
    assert (document["problems"][0]["code"], document["problems"][0]["path"]) == ("file-missing", "lost.txt")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fine.txt"]
    assert command("cat", bundle, "e/r/artifacts/lost.txt").code == 1
    assert "unreadable" in command("ls", "-l", bundle, "e/r/artifacts").out


def test_damaged_content(command: Command, archived: Archived, tmp_path: Path) -> None:
    """A file whose bytes are not what they were never appears, and both commands say so."""
    shutil.copytree(archived.bundle, tmp_path / "b")
    for pack in (tmp_path / "b/objects/packs").rglob("*.zip"):
        pack.chmod(0o644)
        pack.write_bytes(pack.read_bytes().replace(b"weights", b"weight5"))
    path = "churn/parent/artifacts/model/weights.txt"
    assert command("get", tmp_path / "b", path, tmp_path / "w").code == 3
    assert not (tmp_path / "w").exists()
    done = command("cat", tmp_path / "b", path)
    assert done.code == 1
    assert "SHA-256" in done.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_the_reader_agrees(archived: Archived) -> None:
    """The library gives the same bytes as the commands."""
    with mlflow_bundle.open(archived.bundle) as bundle, bundle.open_file(archived.runs["parent"], "plain.txt") as file:
        assert file.read() == b"plain"
