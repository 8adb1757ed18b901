"""Every path of a bundle can be spelled and understood in just one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle import _layout
from mlflow_bundle._layout import object_hex, object_path, object_role, snapshot_path, snapshot_stem

HEX = "0123456789abcdef" * 4
ROLES = [
    _layout.RECORDS,
    _layout.METRICS,
    _layout.FILES,
    _layout.INDEX,
    _layout.VIEWS,
    _layout.LISTS,
    _layout.PACKS,
    _layout.BLOBS,
]


@pytest.mark.parametrize("role", [*ROLES, "model_metrics", "spans"])
def test_object_paths_go_both_ways(role: str) -> None:
    """The digest and the role can be read from the path of an object, also of a table role that a later release adds."""
    path = object_path(role, HEX)
    assert object_hex(path) == HEX
    assert object_role(path) == role


def test_the_tree_is_as_specified() -> None:
    """The paths are those of the specification, letter by letter."""
    assert object_path("records", HEX) == f"objects/records/{HEX}.jsonl.zst"
    assert object_path("lists", HEX) == f"objects/lists/{HEX}.jsonl.zst"
    assert object_path("packs", HEX) == f"objects/packs/01/{HEX}.zip"
    assert object_path("blobs", HEX) == f"objects/blobs/01/{HEX}"
    for role in ("metrics", "files", "index", "views"):
        assert object_path(role, HEX) == f"objects/{role}/{HEX}.parquet"
    assert snapshot_path("20261121T020000.000Z-0123456789abcdef") == "snapshots/20261121T020000.000Z-0123456789abcdef.json"


@pytest.mark.parametrize(
    "path",
    [
        "",
        f"objects/metrics/{HEX}",
        f"objects/metrics/{HEX}.zip",
        f"objects/metrics/01/{HEX}.parquet",
        f"objects/metrics/{HEX.upper()}.parquet",
        f"objects/metrics/{HEX[:-1]}.parquet",
        f"objects/packs/{HEX}.zip",
        f"objects/packs/02/{HEX}.zip",
        f"objects/blobs/01/{HEX}.bin",
        f"objects/../metrics/{HEX}.parquet",
        f"/objects/metrics/{HEX}.parquet",
        f"objects/metrics/{HEX}.parquet\n",
        f"./objects/metrics/{HEX}.parquet",
        f"objects//{HEX}.parquet",
        f"Objects/metrics/{HEX}.parquet",
    ],
)
def test_other_paths_name_no_object(path: str) -> None:
    """A path with another suffix, fan-out, case, length or folder is not that of an object."""
    assert object_hex(path) is None


@given(st.from_regex(_layout._OBJECT, fullmatch=True))
def test_a_path_that_names_an_object_is_the_only_one(path: str) -> None:
    """Whatever looks like an object either is spelled in the one right way, or names no object."""
    found, role = object_hex(path), object_role(path)
    assert role is not None
    assert found is None or object_path(role, found) == path


@pytest.mark.parametrize("sha256", ["", "../" * 22, HEX.upper(), HEX + "0"])
def test_no_path_is_made_of_something_else(sha256: str) -> None:
    """A path is never built from text that is no SHA-256."""
    with pytest.raises(ValueError, match="not a SHA-256"):
        object_path("metrics", sha256)


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("snapshots/20261121T020000.000Z-0123456789abcdef.json", "20261121T020000.000Z-0123456789abcdef"),
        ("snapshots/20261121T020000.000Z-0123456789ABCDEF.json", None),
        ("snapshots/20261121T020000Z-0123456789abcdef.json", None),
        ("snapshots/20261121T020000.000Z-0123456789abcdef.json.part", None),
        ("snapshots/x/20261121T020000.000Z-0123456789abcdef.json", None),
        ("20261121T020000.000Z-0123456789abcdef.json", None),
    ],
)
def test_snapshot_names(path: str, stem: str | None) -> None:
    """Only files of the right form are snapshots."""
    assert snapshot_stem(path) == stem
