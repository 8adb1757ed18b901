"""The storage suite on one ZIP file, here and on S3, and what only the one-file form can show."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mlflow_bundle._storage import Storage, open_storage
from tests.fixtures.s3 import Bucket
from tests.storage.suite import Opener, StorageTests


class _OneFileTests(StorageTests):
    def look_again(self, storage: Storage, opener: Opener) -> Storage:
        return opener()


class TestLocalOneFile(_OneFileTests):
    """A bundle in a ZIP file of this machine."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return partial(open_storage, tmp_path / "above" / "a bundle.mlbundle.zip")


class TestRemoteOneFile(_OneFileTests):
    """A bundle in a ZIP file on S3."""

    @pytest.fixture
    def opener(self, s3_bucket: Bucket) -> Opener:
        return partial(open_storage, f"s3://{s3_bucket.name}/a bundle.zip", storage_options=s3_bucket.storage_options)
