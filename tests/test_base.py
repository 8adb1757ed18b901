"""A snapshot on top of another says the same as one made from nothing, writes only what changed, and heals what was lost."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import mlflow_bundle as bundle
from mlflow_bundle import _layout
from mlflow_bundle._base import Base
from mlflow_bundle._limits import Targets
from mlflow_bundle._manifest import Committed, ensure_marker, objects_of
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle.records import KeyValue, Scope, Source, order_key, record_id
from tests.building import TINY, Content, content_of, everything_of, model_metric_of, pack_content, run_of, span_of


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "bundle", create=True)


def assert_says(storage: Storage, committed: Committed, content: Content) -> None:
    """The snapshot opens, and gives every run, point and file of the content."""
    with bundle.open(storage.url, snapshot=committed.stem) as archive:
        assert list(archive.records("run")) == content.runs
        for run in content.runs:
            assert archive.run(run.run_id) == run
            table = archive.metrics(run_id=run.run_id)
            found = list(zip(*(table.column(n).to_pylist() for n in ("key", "step", "timestamp", "value")), strict=True))
            assert found == sorted(content.points.get(run.run_id, []))
            files = content.files.get(run.run_id, {})
            assert archive.files(run_id=run.run_id).column("path").to_pylist() == sorted(files)
            for path, data in files.items():
                with archive.open_file(run.run_id, path) as stream:
                    assert stream.read() == data


def reuse_everything(packer: Packer, content: Content) -> list[bool]:
    """Offer the base the groups that it was cut into; whether each was taken."""
    taken = []
    for record in [*content.experiments, *content.runs]:
        packer.add(record)
    cutter, first = type(packer.series_cutter)(packer.series_cutter.target), 0
    for number, run in enumerate(content.runs, start=1):
        if cutter.after(run.run_id, len(content.points.get(run.run_id, []))) or number == len(content.runs):
            counts = [len(content.points.get(r.run_id, [])) for r in content.runs[first:number]]
            taken.append(packer.reuse_series(counts))
            first = number
            if not taken[-1]:
                break
    return taken


CHANGES: dict[str, Callable[[Content], None]] = {}


def change(function: Callable[[Content], None]) -> Callable[[Content], None]:
    CHANGES[function.__name__] = function
    return function


@change
def nothing(content: Content) -> None:
    pass


@change
def a_new_run(content: Content) -> None:
    run = run_of(1000)
    content.runs.append(run)
    content.points[run.run_id] = [("loss", 0, 0, 0.5)]
    content.files[run.run_id] = {"new.txt": b"new"}


@change
def an_early_run(content: Content) -> None:
    run = msgspec.structs.replace(run_of(1001), start_time=0)
    content.runs.insert(0, run)
    content.points[run.run_id] = [("loss", step, 0, 0.5) for step in range(30)]


@change
def more_points(content: Content) -> None:
    points = content.points[content.runs[20].run_id]
    points += [("loss", len(points) + step, 99, 1.0) for step in range(20)]


@change
def a_changed_tag(content: Content) -> None:
    content.runs[5] = msgspec.structs.replace(content.runs[5], tags=(KeyValue(key="a", value="b"),))


@change
def a_changed_file(content: Content) -> None:
    content.files[content.runs[30].run_id]["f0.txt"] = b"changed"


@change
def a_large_file(content: Content) -> None:
    content.files[content.runs[30].run_id]["large"] = random.Random(1).randbytes(9000)


@change
def a_removed_file(content: Content) -> None:
    content.files[content.runs[30].run_id].pop("f1.txt", None)


@change
def a_removed_run(content: Content) -> None:
    run = content.runs.pop(10)
    content.points.pop(run.run_id)
    content.files.pop(run.run_id)


@change
def no_runs(content: Content) -> None:
    content.runs.clear()


@change
def another_experiment(content: Content) -> None:
    content.experiments = [msgspec.structs.replace(content.experiments[0], name="renamed")]


@change
def a_run_moved_to_another_experiment(content: Content) -> None:
    content.experiments.append(msgspec.structs.replace(content.experiments[0], experiment_id="2", name="b", creation_time=1))
    content.experiments.sort(key=order_key)
    content.runs[8] = msgspec.structs.replace(content.runs[8], experiment_id="2")


@pytest.mark.parametrize("name", CHANGES)
def test_incremental_equals_full(storage: Storage, tmp_path: Path, name: str) -> None:
    """After any change, a snapshot on top of the last one has the logical section of one made from nothing."""
    content = content_of(50)
    pack_content(storage, content)
    CHANGES[name](content)
    second, packer = pack_content(storage, content)
    with open_storage(tmp_path / "fresh", create=True) as fresh:
        full, full_packer = pack_content(fresh, content)
    assert second.snapshot.logical == full.snapshot.logical
    assert second.snapshot.counts == full.snapshot.counts
    assert packer.new_objects <= 11
    assert packer.new_objects < full_packer.new_objects or not content.runs
    assert_says(storage, second, content)
    if name == "nothing":
        assert packer.new_objects == 0
        assert packer.shared_objects == full_packer.new_objects


def test_a_random_history_equals_its_end(storage: Storage, tmp_path: Path) -> None:
    """Twenty snapshots with random changes: each says what its content was, and the last equals one made from nothing."""
    source = random.Random(8)
    content = content_of(30)
    history: list[tuple[Committed, Content]] = []
    changes = [more_points, a_changed_tag, a_changed_file, a_large_file, a_removed_file, a_removed_run, another_experiment]
    for number in range(20):
        for _ in range(3):
            run = run_of(2000 + source.randrange(100))
            if len(content.runs) > 31 and source.random() < 0.6:
                source.choice(changes)(content)
            elif run not in content.runs:
                content.runs = sorted([*content.runs, run], key=order_key)
                content.points[run.run_id] = [("loss", s, number, source.random()) for s in range(source.randrange(60))]
                content.files[run.run_id] = {"x": source.randbytes(source.choice([5, 50, 5000]))}
        committed, _ = pack_content(storage, content)
        history.append((committed, copy.deepcopy(content)))
    for committed, was in history[::4]:
        assert_says(storage, committed, was)
    with open_storage(tmp_path / "fresh", create=True) as fresh:
        full, _ = pack_content(fresh, content)
    assert history[-1][0].snapshot.logical == full.snapshot.logical


@pytest.mark.parametrize("inline_bytes", [8 * 2**20, 100])
def test_whatever_object_is_lost_comes_back(tmp_path: Path, inline_bytes: int) -> None:
    """Any one object of the base that is missing is written again by the next snapshot, which is whole."""
    targets = replace(TINY, inline_bytes=inline_bytes)
    content = content_of(6)
    content.files[content.runs[3].run_id]["large"] = random.Random(1).randbytes(9000)
    reference, _ = build(tmp_path / "reference", content, targets)
    roles = set()
    for number, ref in enumerate(reference):
        folder = tmp_path / str(number)
        build(folder, content, targets)
        (folder / ref.path).unlink()
        with open_storage(folder) as storage:
            second, packer = pack_content(storage, content, targets=targets)
            for needed in objects_of(storage, second.snapshot):
                assert storage.size(needed.path) == needed.size
            assert packer.new_objects >= 1 or ref.role == _layout.LISTS
            assert_says(storage, second, content)
        roles.add(ref.role)
    assert roles >= {"records", "metrics", "files", "index", "views", "packs", "blobs"}
    assert ("lists" in roles) == (inline_bytes == 100)


def change_everything(content: Content, number: int) -> None:
    """A change of an entity of each kind that owns tables: its record, its rows or its files."""
    records = {record_id(record): place for place, record in enumerate(content.entities)}
    model, version, trace = f"m-{number:04}", f"shop/{number}", f"tr-{number:032x}"
    tags = (KeyValue(key="new", value="1"),)
    for identity in (model, version, trace):
        content.entities[records[identity]] = msgspec.structs.replace(content.entities[records[identity]], tags=tags)
    content.rows["spans/1", trace] = [span_of(number, i) for i in range(9)]
    content.rows["model_metrics/1", model] = [model_metric_of(number, i) for i in range(9)]
    for owner in (("logged_model", model), ("model_version", version), ("trace", trace)):
        content.entity_files[owner] = {"changed": repr(owner).encode()}


def test_incremental_equals_full_for_every_kind(storage: Storage, tmp_path: Path) -> None:
    """A snapshot on top of another has the logical section of one made from nothing, and nothing is written for nothing."""
    content = everything_of(40)
    first, _ = pack_content(storage, content)
    again, packer = pack_content(storage, content)
    assert (packer.new_objects, again.snapshot.logical) == (0, first.snapshot.logical)
    change_everything(content, 20)
    second, packer = pack_content(storage, content)
    with open_storage(tmp_path / "fresh", create=True) as fresh:
        full, full_packer = pack_content(fresh, content)
    assert second.snapshot.logical == full.snapshot.logical
    assert second.snapshot.counts == full.snapshot.counts
    assert packer.new_objects < full_packer.new_objects / 2


def test_whatever_object_of_an_entity_is_lost_comes_back(tmp_path: Path) -> None:
    """Any one object of logged models, model versions or traces that is missing is written again by the next snapshot."""
    content = everything_of(5)
    reference, _ = build(tmp_path / "reference", content, TINY)
    for number, ref in enumerate(reference):
        folder = tmp_path / str(number)
        build(folder, content, TINY)
        (folder / ref.path).unlink()
        with open_storage(folder) as storage:
            second, _ = pack_content(storage, content)
            for needed in objects_of(storage, second.snapshot):
                assert storage.size(needed.path) == needed.size
    assert {ref.role for ref in reference} >= {"model_metrics", "spans", "views", "files"}


def test_stamped_files_are_known_for_every_kind(storage: Storage) -> None:
    """A base knows the stamped, readable files of each owner of each kind, also where kinds share an id, and no others'."""
    content = everything_of(6)
    marker = ensure_marker(storage)
    packer = Packer(storage, marker, targets=TINY)
    for record in [*content.experiments, *content.runs, *content.entities]:
        packer.add(record)
    expected = {}
    for kind in ("trace", "run", "logged_model", "model_version"):
        for number, identity in enumerate(packer.ids[kind]):
            sha256 = packer.blobs.add_bytes(f"{kind} {number}".encode())
            stamped = FileRow(path="a", size=len(f"{kind} {number}"), sha256=sha256, stamp=f"{kind} stamp {number}")
            others = [FileRow(path="b", size=1, sha256=packer.blobs.add_bytes(b"x"))]
            others.append(FileRow(path="c", size=1, sha256=None, state="unreadable", stamp="s"))
            packer.add_files([stamped, *others] if number % 2 else others, kind=kind, owner=identity)
            known = {"a": (stamped.size, sha256, stamped.stamp)}
            expected[kind, identity] = known if number % 2 else {}
    scope, source = Scope(), Source(kind="test", uri="test:")
    committed = packer.commit(created_at=1, scope=scope, source=source, parents=[], problems=[], notes=[])
    packer.close()
    base = Base(storage, committed)
    assert len(expected) == 24
    assert {owner: base.files(*owner) for owner in expected} == expected
    assert base.files("trace", content.runs[1].run_id) == base.files("scorer", "1/s") == {}


def build(folder: Path, content: Content, targets: Targets) -> tuple[list[Any], Committed]:
    with open_storage(folder, create=True) as storage:
        committed, _ = pack_content(storage, content, targets=targets)
        return objects_of(storage, committed.snapshot), committed


def test_a_series_is_reused_only_where_all_is_the_same(storage: Storage) -> None:
    """An object of the base is taken for just the same runs with the same numbers of points in the same experiments."""
    content = content_of(50)
    committed, _ = pack_content(storage, content)
    marker = ensure_marker(storage)

    def offer() -> list[bool]:
        packer = Packer(storage, marker, base=Base(storage, committed), targets=TINY)
        try:
            return reuse_everything(packer, content)
        finally:
            packer.close()

    assert all(offer())
    assert len(offer()) > 3
    CHANGES["more_points"](content)
    assert not all(offer())
    content.runs[0] = msgspec.structs.replace(content.runs[0], experiment_id="2")
    assert offer() == [False]


def test_runs_without_points_are_reused_with_their_neighbours(storage: Storage, tmp_path: Path) -> None:
    """Runs that have no points, at the beginning, between and at the end, change nothing about what is shared."""
    content = content_of(30)
    for number in (0, 1, 9, 10, 28, 29):
        content.points[content.runs[number].run_id] = []
    first, _ = pack_content(storage, content)
    second, packer = pack_content(storage, content)
    assert packer.new_objects == 0
    assert second.snapshot.logical == first.snapshot.logical
    marker = ensure_marker(storage)
    again = Packer(storage, marker, base=Base(storage, first), targets=TINY)
    assert all(reuse_everything(again, content)[:-1])
    again.close()
