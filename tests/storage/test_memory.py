"""The storage suite on fsspec's file system in memory, whose writes are seen while they run."""

from __future__ import annotations

import uuid
from functools import partial

import pytest

from mlflow_bundle._storage import open_storage
from tests.storage.suite import Opener, StorageTests


class TestMemory(StorageTests):
    """A bundle at ``memory://``."""

    @pytest.fixture
    def opener(self) -> Opener:
        return partial(open_storage, f"memory://{uuid.uuid4().hex}/a bundle", create=True)
