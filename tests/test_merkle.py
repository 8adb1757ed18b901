"""The logical root is that of RFC 6962, over leaves that no other kind of entity can have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle._merkle import MerkleTree, leaf, logical


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, as it is written there, over leaf hashes."""
    count = len(leaves)
    if count == 0:
        return hashlib.sha256().digest()
    if count == 1:
        return leaves[0]
    k = 1
    while 2 * k < count:
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def tree_of(leaves: Sequence[bytes]) -> MerkleTree:
    tree = MerkleTree()
    for one in leaves:
        tree.add(one)
    return tree


@given(st.integers(0, 300))
def test_roots_are_those_of_rfc_6962(count: int) -> None:
    """Leaves that arrive one by one give the root of the recursive definition, and so does every beginning of them."""
    leaves = [hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(count)]
    tree = MerkleTree()
    for number, one in enumerate(leaves):
        assert tree.root() == tree_hash(leaves[:number])
        tree.add(one)
    assert tree.root() == tree_hash(leaves)
    assert tree.rows == count
    assert len(tree._peaks) <= 9


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20, unique=True), st.data())
def test_any_change_changes_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    """Another, an additional, a missing or a moved leaf gives another root."""
    root = tree_of(leaves).root()
    at = data.draw(st.integers(0, len(leaves) - 1))
    other = hashlib.sha256(leaves[at]).digest()
    assert tree_of([*leaves[:at], other, *leaves[at + 1 :]]).root() != root
    assert tree_of([*leaves[:at], other, *leaves[at:]]).root() != root
    assert tree_of(leaves[:at] + leaves[at + 1 :]).root() != root
    assert tree_of(leaves[::-1]).root() != root or leaves == leaves[::-1]


def test_leaves_are_built_as_specified() -> None:
    """A leaf is SHA-256 over 0x00, the context, the kind, 0x00 and the digests."""
    digest = hashlib.sha256(b"record").digest()
    assert leaf("run", digest) == hashlib.sha256(b"\x00mlflow-bundle/1 run\x00" + digest).digest()


def test_kinds_are_apart() -> None:
    """The same digests under another kind are another leaf, another root and another archive."""
    digest = hashlib.sha256(b"record").digest()
    assert leaf("run", digest) != leaf("experiment", digest)
    assert leaf("run", digest, digest) != leaf("run", digest)
    as_run = logical({"run": tree_of([leaf("run", digest)])})
    as_experiment = logical({"experiment": tree_of([leaf("run", digest)])})
    assert as_run.kinds["run"].root == as_experiment.kinds["experiment"].root
    assert as_run.root != as_experiment.root


def test_the_logical_root_is_over_the_kinds_by_name() -> None:
    """The root over the kinds has one leaf each in the order of their names; a kind without records has none."""
    runs, experiments = tree_of([leaf("run", b"r" * 32)]), tree_of([leaf("experiment", b"e" * 32)])
    found = logical({"run": runs, "experiment": experiments, "model": MerkleTree()})
    expected = [leaf("root", name, b"\x00", tree.root()) for name, tree in ((b"experiment", experiments), (b"run", runs))]
    assert found.root == "sha256:" + tree_hash(expected).hex()
    assert {name: kind.rows for name, kind in found.kinds.items()} == {"experiment": 1, "run": 1}
    assert found == logical({"experiment": experiments, "run": runs})
