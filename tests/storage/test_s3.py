"""The storage suite on S3 over HTTP, and how many requests reading costs."""

from __future__ import annotations

from functools import partial

import pytest

from mlflow_bundle._storage import open_storage
from tests.fixtures.s3 import Bucket
from tests.storage.suite import Opener, StorageTests


class TestS3(StorageTests):
    """A bundle in a bucket."""

    @pytest.fixture
    def opener(self, s3_bucket: Bucket) -> Opener:
        return partial(
            open_storage, f"s3://{s3_bucket.name}/below/a bundle", storage_options=s3_bucket.storage_options, create=True
        )
