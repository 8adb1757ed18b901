"""Everything that an MLflow can hold, on every road there and back: nothing lost, nothing altered, nothing doubled."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

import mlflow_bundle as bundle
from mlflow_bundle.entities import Record
from mlflow_bundle.kinds import KINDS, record_id
from tests.fixtures.estate import KINDS_HERE, Estate
from tests.fixtures.estate_script import SECRETS
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.moving import every_row, everything_in

pytestmark = pytest.mark.slow

#: What a restore changes on purpose: kind -> members.
POLICY: Mapping[str, set[str]] = {
    "webhook": {"status"},
    "scorer": {"online"},
    "gateway_model_definition": {"secret_id"},
}


@pytest.fixture(scope="module")
def packed(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The estate as a bundle, read from its database."""
    place = str(tmp_path_factory.mktemp("packed") / "estate")
    report = bundle.pack(bundle=place, tracking_uri=estate.uri)
    assert (report.state, report.problems) == ("complete", ())
    return place


def records(place: str) -> dict[tuple[str, str], Record]:
    """Every record of the newest snapshot, by kind and id."""
    with bundle.open(place) as archive:
        return {(kind, record_id(record)): record for kind in archive.kinds() for record in archive.records(kind)}


def differing(one: str, other: str) -> set[tuple[str, str]]:
    """(kind, member) of what two bundles say differently, leaving out where the files lie."""
    first, second = records(one), records(other)
    assert first.keys() - second.keys() <= {("gateway_secret", "s-1")}
    assert second.keys() <= first.keys()
    found = set()
    for (kind, identity), record in second.items():
        for name in record.__struct_fields__:
            if name not in KINDS[kind].locations and getattr(record, name) != getattr(first[kind, identity], name):
                found.add((kind, name))
    return found


# -- database to database ----------------------------------------------------------------------------------------------


def test_a_bundle_of_everything_verifies(packed: str) -> None:
    """A bundle with every kind is sound to the last byte, and holds every kind."""
    report = bundle.verify(packed)
    assert report.problems == ()
    with bundle.open(packed) as archive:
        assert set(archive.kinds()) == set(KINDS_HERE)
        assert all(archive.snapshot.counts[kind] for kind in KINDS_HERE)


def test_sqlite_to_sqlite_is_exact(packed: str, estate: Estate, tmp_path: Path) -> None:
    """Every row of every table of the restored database is that of the first, and so is the logical root but for policies."""
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    report = bundle.unpack(packed, tracking_uri=target)
    assert report.problems == ()
    assert {
        outcome.kind: outcome.failed + outcome.left_out for outcome in report.entities if outcome.kind != "gateway_secret"
    } == {kind: 0 for kind in KINDS_HERE if kind not in ("experiment", "run", "gateway_secret")}
    bundle.pack(bundle=tmp_path / "again", tracking_uri=target)
    assert differing(packed, str(tmp_path / "again")) == {(kind, name) for kind, names in POLICY.items() for name in names}
    first, second = every_row(estate.uri), every_row(target)
    assert {name for name in first if first[name] != second.get(name)} == set()


def test_a_second_restore_changes_nothing(packed: str, tmp_path: Path) -> None:
    """Unpacking again finds everything there and writes no row."""
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    bundle.unpack(packed, tracking_uri=target)
    before = every_row(target)
    report = bundle.unpack(packed, tracking_uri=target)
    assert report.problems == ()
    assert {outcome.kind for outcome in report.entities if outcome.there != outcome.selected} == {"gateway_secret"}
    assert every_row(target) == before


def test_sqlite_to_postgresql_and_back(packed: str, postgres_database: Callable[[], str], tmp_path: Path) -> None:
    """By way of PostgreSQL everything comes back as it was."""
    middle = postgres_database()
    assert bundle.unpack(packed, tracking_uri=middle, artifact_root=tmp_path / "files").problems == ()
    bundle.pack(bundle=tmp_path / "middle", tracking_uri=middle)
    expected = {(kind, name) for kind, names in POLICY.items() for name in names}
    assert differing(packed, str(tmp_path / "middle")) == expected
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert bundle.unpack(tmp_path / "middle", tracking_uri=target).problems == ()
    bundle.pack(bundle=tmp_path / "back", tracking_uri=target)
    assert differing(str(tmp_path / "middle"), str(tmp_path / "back")) == set()


def test_packing_again_adds_nothing(packed: str, estate: Estate, tmp_path: Path) -> None:
    """A second pack of the same database writes no object and has the same logical root as one from nothing."""
    place = tmp_path / "twice"
    first = bundle.pack(bundle=place, tracking_uri=estate.uri)
    second = bundle.pack(bundle=place, tracking_uri=estate.uri)
    assert (second.new_objects, second.logical_root) == (0, first.logical_root)
    with bundle.open(packed) as archive:
        assert archive.snapshot.logical.root == first.logical_root


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(estate_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The estate as a bundle, read from a server."""
    place = str(tmp_path_factory.mktemp("asked") / "estate")
    report = bundle.pack(bundle=place, tracking_uri=estate_server.url)
    assert (report.state, report.problems) == ("complete", ())
    return place


#: What no endpoint shows, or shows otherwise, for each kind: members that differ between the two roads.
HIDDEN: Mapping[str, set[str]] = {
    "run": {"deleted_time", "source_type", "source_name", "entry_point_name", "source_version"},
    "logged_model": {"status_message"},
    "trace": {"assessments"},
    # The weight is a single-precision number there, and the fall-back is spelled out.
    "gateway_endpoint": {"model_mappings", "fallback_config_json"},
}


def test_both_roads_tell_the_same(packed: str, asked: str) -> None:
    """A server says of each entity what its database says, but for what it hides."""
    first, second = records(packed), records(asked)
    # A server makes the default questions of an experiment when somebody lists them, as other tests may have done.
    assert {kind for kind, _ in second.keys() - first.keys()} <= {"label_schema"}
    second = {key: found for key, found in second.items() if key in first}
    missing = first.keys() - second.keys()
    stages = {
        key: {getattr(first[key], name, "") for name in ("lifecycle_stage", "current_stage", "status")} for key in missing
    }
    deleted = {key for key in missing if stages[key] & {"deleted", "Deleted_Internal"}}
    assert {kind for kind, _ in missing - deleted} <= {"label_schema", "workspace"}
    wrong = []
    for (kind, identity), found in second.items():
        for name in found.__struct_fields__:
            value = getattr(found, name)
            if value is not UNSET and name not in HIDDEN.get(kind, ()) and value != getattr(first[kind, identity], name):
                wrong.append((kind, name, value, getattr(first[kind, identity], name)))
    assert wrong == []


def test_server_to_server(packed: str, start_server: ServerFactory, tmp_path: Path) -> None:
    """What an API can set arrives at another server; a second restore doubles nothing; a restored model loads."""
    target = start_server()
    report = bundle.unpack(packed, tracking_uri=target.url, allow_partial=True)
    outcomes = {outcome.kind: outcome for outcome in report.entities}
    assert {kind for kind, outcome in outcomes.items() if outcome.failed} == set()
    for kind in ("logged_model", "registered_model", "model_version", "trace", "evaluation_dataset", "dataset_record", "issue"):
        assert outcomes[kind].restored == outcomes[kind].selected, kind
    again = bundle.unpack(packed, tracking_uri=target.url, allow_partial=True)
    assert {o.kind for o in again.entities if o.restored or o.failed} == set()
    model = report.ids["logged_model"][next(iter(report.ids["logged_model"]))]
    script = (
        "import sys, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "loaded = mlflow.pyfunc.load_model('models:/churn.v1/10')\n"
        "print(loaded.metadata.model_id, mlflow.models.get_model_info('models:/churn.v1/10').model_id)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, target.url], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded, told = done.stdout.split()
    assert loaded == told
    assert loaded in report.ids["logged_model"].values()
    assert model.startswith("m-")


# -- selection ---------------------------------------------------------------------------------------------------------


def test_a_model_takes_along_what_it_needs(estate: Estate, tmp_path: Path) -> None:
    """An alias takes its version, the logged model and the run behind it, their experiment, and nothing else."""
    bundle.pack(bundle=tmp_path / "b", tracking_uri=estate.uri, model="churn.v1@champion")
    found = records(str(tmp_path / "b"))
    kinds = {kind: [identity for k, identity in found if k == kind] for kind, _ in found}
    assert kinds["model_version"] == ["churn.v1/10"]
    assert kinds["registered_model"] == ["churn.v1"]
    assert kinds["run"] == [estate.run_id]
    assert len(kinds["logged_model"]) == 1
    assert kinds["experiment"] == [estate.models]
    assert kinds.keys() == {"model_version", "registered_model", "run", "logged_model", "experiment"}


def test_a_prompt_comes_alone(estate: Estate, tmp_path: Path) -> None:
    """A prompt has no runs and no files: its versions are all there is."""
    bundle.pack(bundle=tmp_path / "b", tracking_uri=estate.uri, prompt="greet")
    found = records(str(tmp_path / "b"))
    assert {kind for kind, _ in found} == {"registered_model", "model_version"}
    assert len(found) == 13


def test_an_experiment_takes_what_is_in_it(estate: Estate, tmp_path: Path) -> None:
    """An experiment comes with its traces, scorers, schemas, queues, issues and datasets, and with no registry."""
    bundle.pack("traces", tmp_path / "b", tracking_uri=estate.uri)
    kinds = {kind for kind, _ in records(str(tmp_path / "b"))}
    assert kinds == {
        "experiment",
        "run",
        "trace",
        "evaluation_dataset",
        "dataset_record",
        "scorer",
        "label_schema",
        "review_queue",
        "issue",
    }


def test_a_model_that_does_not_exist(estate: Estate, tmp_path: Path) -> None:
    """A model, version or alias that is not there is an error that names it, and nothing is written."""
    for name in ("nobody", "churn.v1@nobody", "greet"):
        with pytest.raises(bundle.NotFoundError, match=r"no registered model|has no alias"):
            bundle.pack(bundle=tmp_path / "b", tracking_uri=estate.uri, model=name)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"model": "churn.v1/99"}, "registered model 'churn.v1' has no version 99"),
        ({"model": "empty model ü/1"}, "registered model 'empty model ü' has no version 1"),
        ({"model": ["churn.v1/1", "churn.v1/13"]}, "registered model 'churn.v1' has no version 13"),
        ({"model": ["churn.v1", "churn.v1/0"]}, "registered model 'churn.v1' has no version 0"),
        ({"prompt": "greet/99"}, "prompt 'greet' has no version 99"),
        ({"model": "churn.v1/²"}, "no registered model 'churn.v1/²'"),
        ({"model": "churn.v1/\u0661"}, "no registered model 'churn.v1/\u0661'"),
        ({"model": "churn.v1/" + "9" * 5000}, "no registered model 'churn.v1/9"),
    ],
)
def test_a_version_that_does_not_exist(estate: Estate, tmp_path: Path, asked: dict[str, Any], missing: str) -> None:
    """A version that is not there is named, also beside one that is or with all of its model; what is no number is a name."""
    with pytest.raises(bundle.NotFoundError, match=re.escape(missing)) as raised:
        bundle.pack(bundle=tmp_path / "b", tracking_uri=estate.uri, **asked)
    assert raised.value.code == "model-not-found"
    assert not (tmp_path / "b").exists()


def test_a_deleted_version_exists(estate: Estate, tmp_path: Path) -> None:
    """A database keeps deleted versions, and they can be named."""
    bundle.pack(bundle=tmp_path / "b", tracking_uri=estate.uri, model=["churn.v1/3", "churn.v1/04"])
    found = records(str(tmp_path / "b"))
    assert {identity for kind, identity in found if kind == "model_version"} == {"churn.v1/3", "churn.v1/4"}


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_no_secret_enters_a_bundle(packed: str, asked: str) -> None:
    """Secrets that are planted in every place that holds one are nowhere in a bundle, read by either road."""
    for place in (packed, asked):
        found = everything_in(Path(place))
        assert b"churn.v1" in found
        assert {name for name, text in SECRETS.items() if text.encode() in found} == set()
