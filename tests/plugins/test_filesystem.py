"""The fsspec protocol ``mlflow-bundle``: what is in a bundle is read by everything that reads files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import fsspec
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import mlflow_bundle
from mlflow_bundle.errors import BundleNotFoundError, CorruptError, NotFoundError, UsageError
from mlflow_bundle.plugins import BundleFileSystem
from mlflow_bundle.plugins._names import part_of, parts_of
from tests.plugins.conftest import NAMES, ODD_FILES, Place, Shelf


def opened(place: Place, **options: object) -> BundleFileSystem:
    """The file system of a bundle."""
    return BundleFileSystem(fo=place.url, target_options=place.options, skip_instance_cache=True, **options)


def artifacts(shelf: Shelf) -> str:
    """The folder of the files of the run."""
    return f"experiments/churn/runs/{shelf.run_id}/artifacts"


def test_the_tree(shelf: Shelf, place: Place) -> None:
    """Experiments, models and tables have readable names; every archived file is found, and nothing else."""
    fs = opened(place)
    assert fs.ls("", detail=False) == ["experiments", "logged_models", "models", "tables"]
    assert fs.ls("experiments", detail=False)[1:] == [f"experiments/{part_of(name)}" for name in NAMES]
    found = fs.find(artifacts(shelf))
    assert {*found} >= {f"{artifacts(shelf)}/{parts_of(name)}" for name in ODD_FILES}
    with mlflow_bundle.open(place.url, storage_options=place.options) as archive:
        assert len(found) == archive.files(run_id=shelf.run_id).num_rows
        assert {fs.info(path)["sha256"] for path in found} == {*archive.files(run_id=shelf.run_id).column("sha256").to_pylist()}
    assert fs.ls(f"logged_models/{shelf.model_id}", detail=False) == sorted(fs.find(f"logged_models/{shelf.model_id}"))
    assert fs.ls("models", detail=False) == ["models/forecaster ü"]


def test_every_file(shelf: Shelf, place: Place) -> None:
    """All bytes come out, whatever the name, with ``cat``, ``open`` and ``get``."""
    fs = opened(place)
    for number, name in enumerate(ODD_FILES):
        assert fs.cat(f"{artifacts(shelf)}/{parts_of(name)}") == f"content {number}".encode()
        chained = f"mlflow-bundle://{artifacts(shelf)}/{parts_of(name)}::{place.url}"
        with fsspec.open(chained, "rb", **({"s3": place.options} if place.options else {})) as file:
            assert file.read() == f"content {number}".encode()


def test_versions_have_the_files_that_they_name(shelf: Shelf, local: Place) -> None:
    """A version of a logged model, of a folder of a run (two spellings), and one with its own files; an alias; an id."""
    fs, model = opened(local), "models/forecaster ü"
    versions = [{path.rpartition("/")[2] for path in fs.find(f"{model}/{number}")} for number in range(1, 5)]
    assert versions[0] == {path.rpartition("/")[2] for path in fs.find(f"logged_models/{shelf.model_id}")}
    assert "MLmodel" in versions[0]
    assert versions[1:] == [{"größe.txt"}, {"größe.txt"}, {"own.txt"}]
    assert fs.cat(f"{model}/@champion/MLmodel") == fs.cat(f"{model}/1/MLmodel")
    assert fs.isdir(f"experiments/{shelf.experiments['churn']}/runs/{shelf.run_id}/artifacts")
    assert not fs.exists(f"experiments/{shelf.experiments['a/b']}/runs/{shelf.run_id}")


def test_reading_starts_anywhere(shelf: Shelf, place: Place) -> None:
    """Seeking and reading give what a file on a disk gives, for a large object and for a compressed entry of a pack."""
    fs, source = opened(place), random.Random(3)
    for name in ("large.bin", "long.csv", "plain.txt"):
        whole = fs.cat(f"{artifacts(shelf)}/{name}")
        with fs.open(f"{artifacts(shelf)}/{name}") as file:
            for _ in range(40):
                start, length = source.randrange(len(whole) + 1), source.choice([0, 1, 7, 5_000, 3_000_000])
                file.seek(start)
                assert file.read(length) == whole[start : start + length]
            assert file.seek(-3, io.SEEK_END) == len(whole) - 3
            assert file.read() == whole[-3:]
        assert fs.cat_file(f"{artifacts(shelf)}/{name}", start=2, end=5) == whole[2:5]


def test_a_range_does_not_read_the_object(shelf: Shelf, local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes out of a large file cost the first window of a file, not all of it."""
    fs, read = opened(local), []
    storage = fs.bundle._storage
    inner = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda path, start, length: read.append(length) or inner(path, start, length))
    with fs.open(f"{artifacts(shelf)}/large.bin") as file:
        file.seek(3 << 20)
        file.read(10)
    assert sum(read) <= (1 << 20) + (64 << 10)  # the window, the view and the index


def test_pandas_arrow_duckdb(shelf: Shelf, place: Place) -> None:
    """Tables and files are read by the libraries that people use, from every place."""
    url = f"mlflow-bundle://tables/runs.parquet::{place.url}"
    options = {"s3": place.options} if place.options else None
    assert pd.read_parquet(url, storage_options=options)["run_id"].tolist() == [shelf.run_id]
    frame = pd.read_csv(f"mlflow-bundle://{artifacts(shelf)}/long.csv::{place.url}", storage_options=options)
    assert frame.shape == (50_000, 2)
    fs = opened(place)
    assert pq.read_table("tables/metrics.parquet", filesystem=fs).num_rows == 50
    assert ds.dataset("tables/params.parquet", filesystem=fs).to_table().num_rows == 1
    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        best = connection.sql("SELECT min(value) FROM 'mlflow-bundle://tables/metrics.parquet' WHERE key = 'loss'").fetchall()
        assert best == [(1 / 50,)]


def test_every_table_is_that_of_the_bundle(local: Place) -> None:
    """Each file below ``tables`` has the rows of the table of that name, and a kind without records is empty, not missing."""
    fs = opened(local)
    with mlflow_bundle.open(local.url) as archive:
        named = {"runs": archive.runs(), "params": archive.params(), "tags": archive.tags(), "metrics": archive.metrics()}
        named |= {"latest_metrics": archive.latest_metrics(), "experiments": archive.experiments()}
        named |= {"logged_models": archive.models(), "model_versions": archive.model_versions(), "traces": archive.traces()}
    for name, table in named.items():
        assert pq.read_table(f"tables/{name}.parquet", filesystem=fs).to_pylist() == table.to_pylist()
    for path in fs.ls("tables", detail=False):
        assert pq.read_table(path, filesystem=fs).num_rows >= 0


def test_snapshots(shelf: Shelf, tmp_path: Path) -> None:
    """A snapshot is chosen by an option or in the URL; without one the newest is read, again after ``invalidate_cache``."""
    bundle = tmp_path / "b"
    mlflow_bundle.pack("churn", bundle, tracking_uri=shelf.uri)
    with mlflow_bundle.open(bundle) as archive:
        first = archive.snapshot_id
    fs = BundleFileSystem(fo=str(bundle))
    assert fs.ls("experiments", detail=False) == ["experiments/churn"]
    mlflow_bundle.pack("a/b", bundle, tracking_uri=shelf.uri)
    assert fs.ls("experiments", detail=False) == ["experiments/churn"]
    fs.invalidate_cache()
    assert fs.ls("experiments", detail=False) == ["experiments/a%2Fb"]
    assert BundleFileSystem(fo=str(bundle), snapshot=first).ls("experiments", detail=False) == ["experiments/churn"]
    with fsspec.open(f"mlflow-bundle://{artifacts(shelf)}/plain.txt?snapshot={first}::{bundle}") as file:
        assert file.read() == b"content 0"
    with pytest.raises(NotFoundError, match="no snapshot named"):
        BundleFileSystem(fo=str(bundle), snapshot="nope").ls("")


def test_nothing_is_written(local: Place, tmp_path: Path) -> None:
    """Every way to change something is refused in one sentence, and changes nothing."""
    fs = opened(local)
    (tmp_path / "x").write_text("x")
    ways = [
        lambda: fs.open("tables/x", "wb"),
        lambda: fs.pipe("x", b""),
        lambda: fs.put(str(tmp_path / "x"), "x"),
        lambda: fs.rm("tables", recursive=True),
        lambda: fs.mkdir("x"),
        lambda: fs.makedirs("x/y"),
        lambda: fs.touch("x"),
        lambda: fs.mv("tables/runs.parquet", "x"),
        lambda: fs.copy("tables/runs.parquet", "x"),
    ]
    for way in ways:
        with pytest.raises(OSError, match="read-only"):
            way()


@pytest.mark.parametrize(
    "path", ["nope", "experiments/nope", "tables/nope.parquet", "experiments/churn/runs/x", "tables/runs.parquet/x"]
)
def test_what_is_not_there(local: Place, path: str) -> None:
    """A path that names nothing is a file that is not found, as in every file system."""
    fs = opened(local)
    assert not fs.exists(path)
    with pytest.raises(FileNotFoundError):
        fs.open(path)


def test_no_bundle(tmp_path: Path) -> None:
    """A URL without a bundle, or one that leads to none, is told with the next step."""
    with pytest.raises(UsageError, match="does not say which bundle") as caught:
        fsspec.filesystem("mlflow-bundle").ls("")
    assert "storage_options" in str(caught.value.hint)
    with pytest.raises(BundleNotFoundError):
        fsspec.filesystem("mlflow-bundle", fo=str(tmp_path)).ls("")


def test_climbing_finds_nothing(local: Place) -> None:
    """``..`` in a path is a name, and there is none of that name."""
    fs = opened(local)
    for path in ("../../etc/passwd", "experiments/../../etc/passwd", "experiments/churn/../../tables"):
        with pytest.raises(FileNotFoundError):
            fs.open(path)
    assert fs.isdir("experiments/%2E%2E/runs")


def test_damage_is_told(shelf: Shelf, local: Place, tmp_path: Path) -> None:
    """A flipped bit is noticed when a file is read to its end, and ``get`` leaves nothing behind."""
    bundle = tmp_path / "b"
    shutil.copytree(local.url, bundle)
    (blob,) = [path for path in (bundle / "objects/blobs").rglob("*") if path.is_file()]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(bytes(data))
    fs = opened(Place(str(bundle)))
    path = f"{artifacts(shelf)}/large.bin"
    with pytest.raises(CorruptError):
        fs.cat(path)
    with pytest.raises(CorruptError):
        fs.get(path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [str, Path])
def test_what_was_there_stays(shelf: Shelf, local: Place, tmp_path: Path, form: Callable[[Path], str | Path]) -> None:
    """A copy that fails, for want of the file or for damage, leaves the user's file of that name as it was."""
    bundle = tmp_path / "b"
    shutil.copytree(local.url, bundle)
    (blob,) = [path for path in (bundle / "objects/blobs").rglob("*") if path.is_file()]
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    fs = opened(Place(str(bundle)))
    mine = tmp_path / "out" / "existing.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    for path, error in (("experiments/none/x", FileNotFoundError), (f"{artifacts(shelf)}/large.bin", CorruptError)):
        with pytest.raises(error):
            fs.get(path, str(mine))
        with pytest.raises(error):
            fs.get_file(path, form(mine))
        assert mine.read_text() == "mine"
        assert os.listdir(mine.parent) == ["existing.txt"]
    with pytest.raises(FileNotFoundError):
        fs.get_file("experiments/none/x", form(tmp_path / "new" / "x"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(CorruptError):
        fs.get_file(f"{artifacts(shelf)}/large.bin", form(tmp_path / "out" / "new"))
    assert os.listdir(mine.parent) == ["existing.txt"]


@pytest.mark.parametrize("form", [str, Path])
def test_a_copy_takes_the_place_of_a_file(
    shelf: Shelf, local: Place, tmp_path: Path, form: Callable[[Path], str | Path]
) -> None:
    """What is copied is a file like any other, below folders that are made; a link stays one, an open file is written to."""
    fs, path = opened(local), f"{artifacts(shelf)}/plain.txt"
    new, linked = tmp_path / "a" / "new", tmp_path / "a" / "link"
    fs.get_file(path, form(new))
    usual = tmp_path / "usual"
    usual.touch()
    assert (new.read_bytes(), new.stat().st_mode) == (b"content 0", usual.stat().st_mode)
    new.write_text("other")
    linked.symlink_to(new)
    fs.get_file(path, form(linked))
    assert (new.read_bytes(), linked.is_symlink()) == (b"content 0", True)
    sink = io.BytesIO()
    fs.get_file(path, sink)
    fs.get_file(path, form(Path(os.devnull)))
    assert sink.getvalue() == b"content 0"
    assert not Path(os.devnull).is_file()
    with pytest.raises(IsADirectoryError):
        fs.get_file(path, form(tmp_path / "a"))
    fs.get_file(artifacts(shelf), form(tmp_path / "folder"))
    assert os.listdir(tmp_path / "folder") == []
    assert sorted(os.listdir(tmp_path / "a")) == ["link", "new"]


def test_threads(shelf: Shelf, local: Place) -> None:
    """Many threads list and read at once, and each gets what belongs to it."""
    fs = opened(local)
    paths = [path for path in fs.find("") if not path.startswith("tables")]
    wanted = {path: fs.info(path)["sha256"] for path in paths}
    fs = opened(local)
    wrong: list[str] = []

    def work(seed: int) -> None:
        order = random.Random(seed).sample(paths, len(paths))
        wrong.extend(path for path in order if hashlib.sha256(fs.cat_file(path)).hexdigest() != wanted[path])
        fs.ls(artifacts(shelf))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_pickle(shelf: Shelf, local: Place) -> None:
    """A file system goes to another process and opens its bundle there."""
    fs = pickle.loads(pickle.dumps(opened(local)))
    assert fs.cat(f"{artifacts(shelf)}/plain.txt") == b"content 0"
