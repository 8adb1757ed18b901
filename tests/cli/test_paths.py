"""Readable paths: every name, id and beginning leads to one thing or to a clear error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mlflow_bundle
from mlflow_bundle.cli._paths import Catalog
from mlflow_bundle.errors import NotFoundError, UsageError
from tests.cli.conftest import EVIL, Archived


@pytest.fixture
def catalog(archived: Archived) -> Iterator[Catalog]:
    with mlflow_bundle.open(archived.bundle) as bundle:
        yield Catalog(bundle)


@pytest.mark.parametrize("path", ["", "/"])
def test_no_path_is_the_bundle(catalog: Catalog, path: str) -> None:
    """Nothing, and the root, mean all experiments."""
    assert catalog.find(path).kind == "bundle"


@pytest.mark.parametrize("path", ["churn", "churn/", "1"])
def test_experiments_by_name_and_id(catalog: Catalog, path: str) -> None:
    """An experiment is found by its name or its id."""
    place = catalog.find(path)
    assert (place.kind, place.experiment and place.experiment["name"]) == ("experiment", "churn")


def test_runs_by_name_id_and_beginning(catalog: Catalog, archived: Archived) -> None:
    """A run is found by a name that only it has, by its id and by the first characters of it, with or without experiment."""
    run = archived.runs["parent"]
    for path in ("churn/parent", f"churn/{run}", f"churn/{run[:10]}", f"1/{run}", run, run[:10], f"{run}/"):
        place = catalog.find(path)
        assert (place.kind, place.run and place.run["run_id"]) == ("run", run), path


@pytest.mark.parametrize(("path", "experiment", "run"), [("a/b/c/d", "a/b", "c/d"), ("a/b", "a/b", None), ("a", "a", None)])
def test_the_longest_name_wins(catalog: Catalog, path: str, experiment: str, run: str | None) -> None:
    """In names with a slash, the longest experiment that the path begins with is taken."""
    place = catalog.find(path)
    assert place.experiment is not None
    assert place.experiment["name"] == experiment
    assert (place.run["run_name"] if place.run else None) == run


def test_an_id_reaches_what_a_longer_name_hides(catalog: Catalog, archived: Archived) -> None:
    """Run ``b/c`` of experiment ``a`` is hidden by experiment ``a/b``; its id still leads to it."""
    with pytest.raises(NotFoundError, match="no run 'c' in experiment 'a/b'"):
        catalog.find("a/b/c")
    place = catalog.find(f"a/{archived.runs['b/c']}")
    assert place.run is not None
    assert place.run["run_name"] == "b/c"


def test_names_with_controls_work(catalog: Catalog, archived: Archived) -> None:
    """The exact name leads to its run, whatever it holds."""
    place = catalog.find(f"{EVIL}/{EVIL}")
    assert place.run is not None
    assert place.run["run_id"] == archived.runs[EVIL]


@pytest.mark.parametrize(
    ("path", "kind", "files"),
    [
        ("churn/parent/artifacts", "folder", 4),
        ("churn/parent/artifacts/", "folder", 4),
        ("churn/parent/artifacts/model", "folder", 2),
        ("churn/parent/artifacts/model/deep er/", "folder", 1),
        ("churn/parent/artifacts/model/deep er/größe.txt", "file", 1),
        ("churn/child/artifacts", "folder", 0),
    ],
)
def test_folders_and_files(catalog: Catalog, path: str, kind: str, files: int) -> None:
    """Artifacts lie below ``artifacts``, at any depth."""
    place = catalog.find(path)
    assert (place.kind, len(place.files)) == (kind, files)


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("chrun", "no experiment or run 'chrun'", "'churn'"),
        ("xyz", "no experiment or run 'xyz'", "mlflow-bundle ls"),
        ("churn/parnet", "no run 'parnet'", "'parent'"),
        ("churn/zzzzzz", "no run 'zzzzzz'", "there are '"),
        ("churn/parent/model", "has no 'model'", "below artifacts/"),
        ("churn/parent/artifacts/plane.txt", "has no file 'plane.txt'", "'artifacts/plain.txt'"),
        ("churn/parent/artifacts/../../x", "has no file", "artifacts/"),
        ("churn/parent/artifacts/model/../plain.txt", "has no file", ""),
        ("/churn", "no experiment or run", "'churn'"),
    ],
)
def test_what_does_not_exist(catalog: Catalog, path: str, message: str, hint: str) -> None:
    """An unknown name is named in the error, and close ones in the hint; nothing climbs."""
    with pytest.raises(NotFoundError, match=message) as caught:
        catalog.find(path)
    assert hint in (caught.value.hint or "")


def test_a_name_that_two_runs_share(catalog: Catalog, archived: Archived) -> None:
    """It is refused with the ids to choose from."""
    with pytest.raises(UsageError, match="2 runs named 'twice'") as caught:
        catalog.find("churn/twice")
    assert caught.value.code == "ambiguous"
    assert archived.runs["twice"] in (caught.value.hint or "")
