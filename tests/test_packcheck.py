"""The directory of a pack is read without trust, and every pack that common ZIP programs write is read."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile

import pytest

from mlflow_bundle._limits import DEFAULT_LIMITS
from mlflow_bundle._verify._packcheck import pack_entries
from mlflow_bundle.errors import CorruptError


def pack(count: int) -> bytes:
    """A pack of as many small contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            data = b"%d" % number
            archive.writestr(zipfile.ZipInfo(hashlib.sha256(data).hexdigest(), (1980, 1, 1, 0, 0, 0)), data)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("count", [65_534, 65_535, 65_536])
def test_packs_around_the_border_of_zip64(count: int) -> None:
    """65,535 is the greatest number without ZIP64 and also what says that there is ZIP64: both are read."""
    entries = pack_entries(pack(count), name="pack", limits=DEFAULT_LIMITS)
    assert len({entry.sha256 for entry in entries}) == count


def test_an_end_that_claims_zip64_without_it() -> None:
    """A count of 65,535 in a pack of three entries is neither."""
    data = bytearray(pack(3))
    struct.pack_into("<2H", data, len(data) - 14, 0xFFFF, 0xFFFF)
    with pytest.raises(CorruptError) as caught:
        pack_entries(bytes(data), name="pack", limits=DEFAULT_LIMITS)
    assert caught.value.code == "E053"


def test_a_file_that_is_only_an_end() -> None:
    """Nothing lies before the end record, and it claims the greatest number of entries."""
    data = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0)
    with pytest.raises(CorruptError):
        pack_entries(data, name="pack", limits=DEFAULT_LIMITS)
