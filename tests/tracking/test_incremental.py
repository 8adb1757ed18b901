"""A second pack of a real MLflow says what a first one would say, writes only what changed, and heals what was lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

import mlflow_bundle as bundle
from mlflow_bundle.errors import BundleError
from mlflow_bundle.tracking.artifacts._local import LocalArtifacts

START = 1_700_000_000_000
#: So small that these few runs make many objects of each role.
TARGETS = bundle.Targets(
    frame_bytes=2_000, records_bytes=6_000, metric_rows=60, file_rows=8, index_rows=40, pack_bytes=1_500, blob_bytes=2_000
)
RUNS = 30


@dataclass
class Tracked:
    """A SQLite MLflow with an experiment of many runs."""

    uri: str
    client: MlflowClient
    experiment: str
    artifacts: Path
    runs: list[str] = field(default_factory=list)

    def new_run(self, number: int) -> str:
        run: str = self.client.create_run(self.experiment, start_time=START + 1000 * number, run_name=f"r{number}").info.run_id
        points = [Metric("loss", step / (number + 1), START + step, step) for step in range(8)]
        self.client.log_batch(run, metrics=points, params=[Param("lr", str(number))])
        self.file(run, "model/notes.txt", f"notes of {number}".encode())
        self.client.set_terminated(run, end_time=START + 1000 * number + 500)
        return run

    def file(self, run: str, path: str, data: bytes) -> None:
        place = self.artifacts / run / "artifacts" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def pack(self, folder: Path, **options: object) -> bundle.PackReport:
        return bundle.pack(None, folder, tracking_uri=self.uri, targets=TARGETS, **options)  # type: ignore[arg-type]


@pytest.fixture
def tracked(empty_mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracked:
    # The stamp of a file that has just changed is not trusted, and so it would be read again: here all have just changed.
    monkeypatch.setattr("mlflow_bundle.tracking.artifacts._local.RACY_NANOSECONDS", 0)
    client = MlflowClient(empty_mlflow)
    artifacts = tmp_path / "artifacts"
    made = Tracked(empty_mlflow, client, client.create_experiment("churn", artifact_location=str(artifacts)), artifacts)
    made.runs = [made.new_run(number) for number in range(RUNS)]
    made.file(made.runs[0], "large.bin", bytes(range(256)) * 40)
    return made


def test_an_unchanged_source_writes_nothing(tracked: Tracked, tmp_path: Path) -> None:
    """The second pack shares every object, says so, and has the same logical root; its snapshot names the first as parent."""
    first = tracked.pack(tmp_path / "b")
    assert first.shared_objects == 0
    assert first.new_objects >= 8
    second = tracked.pack(tmp_path / "b")
    assert (second.new_objects, second.new_bytes) == (0, 0)
    assert second.shared_objects == first.new_objects
    assert second.logical_root == first.logical_root
    assert second.counts == first.counts
    assert second.snapshot != first.snapshot
    with bundle.open(tmp_path / "b") as archive:
        assert archive.snapshot.parents == (first.snapshot,)


CHANGES: dict[str, tuple[Callable[[Tracked], None], int]] = {}


def change(most: int) -> Callable[[Callable[[Tracked], None]], None]:
    """A change after which the next pack writes at most so many objects. Run ids are random, and so are the borders."""

    def register(function: Callable[[Tracked], None]) -> None:
        CHANGES[function.__name__] = (function, most)

    return register


@change(most=8)
def points_of_a_finished_run(tracked: Tracked) -> None:
    tracked.client.log_batch(tracked.runs[7], metrics=[Metric("late", 1.0, START, step) for step in range(5)])


@change(most=10)
def a_new_run(tracked: Tracked) -> None:
    tracked.new_run(1000)


@change(most=14)
def an_older_run(tracked: Tracked) -> None:
    tracked.new_run(-5)


@change(most=6)
def a_changed_tag(tracked: Tracked) -> None:
    tracked.client.set_tag(tracked.runs[20], "mlflow.note.content", "changed")


@change(most=6)
def a_deleted_run(tracked: Tracked) -> None:
    tracked.client.delete_run(tracked.runs[20])


@change(most=8)
def a_changed_artifact(tracked: Tracked) -> None:
    tracked.file(tracked.runs[20], "model/notes.txt", b"NOTES of 20")


@change(most=10)
def a_removed_artifact(tracked: Tracked) -> None:
    (tracked.artifacts / tracked.runs[20] / "artifacts" / "model" / "notes.txt").unlink()


@change(most=8)
def a_large_artifact(tracked: Tracked) -> None:
    tracked.file(tracked.runs[20], "weights.bin", bytes(range(256)) * 60)


@change(most=8)
def the_removal_of_a_large_artifact(tracked: Tracked) -> None:
    (tracked.artifacts / tracked.runs[0] / "artifacts" / "large.bin").unlink()


@change(most=2)
def a_tag_of_the_experiment(tracked: Tracked) -> None:
    tracked.client.set_experiment_tag(tracked.experiment, "k", "v")


@change(most=40)
def a_renamed_experiment(tracked: Tracked) -> None:
    tracked.client.rename_experiment(tracked.experiment, "renamed")


@change(most=40)
def a_run_that_is_gone(tracked: Tracked) -> None:
    """What ``mlflow gc`` does: the rows of a run are removed."""
    with sqlite3.connect(tracked.uri.removeprefix("sqlite:///")) as connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (tracked.runs[20],))
    connection.close()


@pytest.mark.parametrize("name", CHANGES)
def test_incremental_equals_full(tracked: Tracked, tmp_path: Path, name: str) -> None:
    """After any change the next pack has the logical root of a pack into a fresh bundle, another one than before, and few new
    objects."""
    first = tracked.pack(tmp_path / "b")
    act, most = CHANGES[name]
    act(tracked)
    second = tracked.pack(tmp_path / "b")
    fresh = tracked.pack(tmp_path / "fresh")
    full = tracked.pack(tmp_path / "b", full=True)
    assert second.logical_root == fresh.logical_root == full.logical_root != first.logical_root
    assert second.counts == fresh.counts == full.counts
    assert 1 <= second.new_objects <= most
    with bundle.open(tmp_path / "b") as incremental, bundle.open(tmp_path / "fresh") as whole:
        assert incremental.metrics().equals(whole.metrics())
        assert incremental.files().equals(whole.files())
        assert incremental.runs().equals(whole.runs())
        assert list(incremental.records("run")) == list(whole.records("run"))
        for run, path in zip(*(incremental.files()[name].to_pylist() for name in ("run_id", "path")), strict=True):
            with incremental.open_file(run, path) as ours, whole.open_file(run, path) as theirs:
                assert ours.read() == theirs.read()


def test_full_reads_what_stamps_do_not_tell(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stamps of a store do not tell that a file changed, ``full``, which trusts none, still finds it."""
    walk = LocalArtifacts.walk
    monkeypatch.setattr(LocalArtifacts, "walk", lambda self: (replace(info, stamp="same") for info in walk(self)))
    tracked.pack(tmp_path / "b")
    tracked.file(tracked.runs[3], "model/notes.txt", b"NOTES OF 3")
    contents = []
    for full in (False, True):
        tracked.pack(tmp_path / "b", full=full)
        with bundle.open(tmp_path / "b") as archive, archive.open_file(tracked.runs[3], "model/notes.txt") as stream:
            contents.append(stream.read())
    assert contents == [b"notes of 3", b"NOTES OF 3"]


def test_what_others_lost_is_packed_again(tracked: Tracked, tmp_path: Path) -> None:
    """Whatever kind of object was lost, the next pack notices, writes it again, and ends with the same logical root."""
    first = tracked.pack(tmp_path / "good")
    with bundle.open(tmp_path / "good") as archive:
        lost = {ref.role: ref for ref in archive.objects}
    assert set(lost) == {"records", "metrics", "files", "index", "views", "packs", "blobs"}
    for role, ref in lost.items():
        folder = tmp_path / role
        shutil.copytree(tmp_path / "good", folder)
        (folder / ref.path).unlink()
        again = tracked.pack(folder)
        assert again.logical_root == first.logical_root
        assert again.new_objects >= 1
        with bundle.open(folder) as archive:
            for needed in archive.objects:
                assert (folder / needed.path).stat().st_size == needed.size
            for run, path in zip(*(archive.files()[name].to_pylist() for name in ("run_id", "path")), strict=True):
                with archive.open_file(run, path) as stream:
                    stream.read()
            assert archive.metrics().num_rows == first.counts["metric_point"]


def test_a_damaged_base_is_no_dead_end(tracked: Tracked, tmp_path: Path) -> None:
    """Where the last snapshot cannot be used, the error says what to do, and that works."""
    first = tracked.pack(tmp_path / "b")
    with bundle.open(tmp_path / "b") as archive:
        view = next(ref for ref in archive.objects if ref.role == "views")
    data = (tmp_path / "b" / view.path).read_bytes()
    (tmp_path / "b" / view.path).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(BundleError) as raised:
        tracked.pack(tmp_path / "b")
    assert view.path in raised.value.message
    assert "move the damaged file out of the bundle" in str(raised.value.hint)
    (tmp_path / "b" / view.path).unlink()
    assert tracked.pack(tmp_path / "b").logical_root == first.logical_root


def test_two_scopes_share_one_bundle(tracked: Tracked, tmp_path: Path) -> None:
    """Snapshots of other selections share the objects that are equal, and each continues its own history."""
    everything = tracked.pack(tmp_path / "b")
    some = bundle.pack("churn", tmp_path / "b", tracking_uri=tracked.uri, until=START + 9_000, targets=TARGETS)
    assert some.counts["run"] == 10
    assert some.counts["file"] == 11
    assert some.new_objects < 12
    again = tracked.pack(tmp_path / "b")
    assert (again.new_objects, again.logical_root) == (0, everything.logical_root)
    with bundle.open(tmp_path / "b") as archive:
        assert archive.snapshot.parents == (everything.snapshot,)
    more = bundle.pack("churn", tmp_path / "b", tracking_uri=tracked.uri, until=START + 9_000, targets=TARGETS)
    assert more.new_objects == 0
    with bundle.open(tmp_path / "b", snapshot=more.snapshot) as archive:
        assert archive.snapshot.parents == (some.snapshot,)
