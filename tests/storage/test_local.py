"""The storage suite on a folder of this machine, and what only such a one can show."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mlflow_bundle._storage import open_storage
from tests.storage.suite import Opener, StorageTests


class TestLocal(StorageTests):
    """A bundle in a folder that does not exist yet."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return partial(open_storage, tmp_path / "above" / "a bundle")
