"""Digests have one spelling, and every other one is refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle._digests import digest_of, file_hex, hex_of, is_hex, parse_digest
from mlflow_bundle.errors import CorruptError


@given(st.binary(max_size=3000))
def test_digests_are_sha256(data: bytes) -> None:
    """Bytes, a view of them and a file of them have the digest that hashlib gives, and it can be parsed back."""
    expected = hashlib.sha256(data).hexdigest()
    assert hex_of(data) == hex_of(memoryview(data)) == file_hex(io.BytesIO(data)) == expected
    assert parse_digest(digest_of(data)) == expected
    assert is_hex(expected)


def test_a_file_is_hashed_from_where_it_stands(tmp_path: Path) -> None:
    """What was read of a file before does not count."""
    (tmp_path / "file").write_bytes(b"headrest")
    with (tmp_path / "file").open("rb") as file:
        file.seek(4)
        assert file_hex(file) == hex_of(b"rest")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        hex_of(b""),
        "sha512:" + hex_of(b""),
        "SHA256:" + hex_of(b""),
        "sha256:" + hex_of(b"").upper(),
        "sha256:" + hex_of(b"")[:-1],
        "sha256:" + hex_of(b"") + "0",
        "sha256:" + hex_of(b"") + "\n",
        " sha256:" + hex_of(b""),
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    """Another algorithm, case, length or white space is no digest."""
    with pytest.raises(CorruptError, match="is not a digest"):
        parse_digest(text)
