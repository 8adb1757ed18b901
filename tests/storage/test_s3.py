"""The storage suite on S3 over HTTP, and how many requests reading costs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_bundle import _layout
from mlflow_bundle._storage import open_storage
from mlflow_bundle.errors import UsageError
from tests.fixtures.s3 import Bucket, s3_options
from tests.storage.proxy import run_proxy
from tests.storage.suite import SNAPSHOT, Opener, StorageTests, put


class TestS3(StorageTests):
    """A bundle in a bucket."""

    @pytest.fixture
    def opener(self, s3_bucket: Bucket) -> Opener:
        return partial(
            open_storage, f"s3://{s3_bucket.name}/below/a bundle", storage_options=s3_bucket.storage_options, create=True
        )


class TestBucketRoot(StorageTests):
    """A bundle that is a whole bucket."""

    @pytest.fixture
    def opener(self, s3_bucket: Bucket) -> Opener:
        return partial(open_storage, f"s3://{s3_bucket.name}/", storage_options=s3_bucket.storage_options)


@pytest.mark.parametrize("options", [{"nope": 1}, {"endpoint_url": "localhost"}])
@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_wrong_options(name: str, options: dict[str, object], s3_bucket: Bucket) -> None:
    """An option that the file system does not know, or cannot use, is a wrong call, before any request."""
    with pytest.raises(UsageError, match="cannot be opened: ") as caught:
        open_storage(f"s3://{s3_bucket.name}/{name}", storage_options=s3_bucket.storage_options | options)
    assert "storage_options" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_requests(name: str, s3_server: str, s3_bucket: Bucket) -> None:
    """A small read is one request, and a footer with one row group of a table of 20 MB is at most four."""
    rows = 1_200_000
    columns = {name: np.random.default_rng(1).random(rows) for name in ("a", "b")}
    with run_proxy(s3_server) as proxy:
        url, options = f"s3://{s3_bucket.name}/{name}", s3_options(proxy.endpoint)
        with open_storage(url, storage_options=options) as storage:
            with storage.stage() as staged:
                pq.write_table(pa.table(columns), staged, row_group_size=131_072, use_dictionary=False)
                assert staged.size > 18_000_000
                table = _layout.object_path(_layout.METRICS, staged.sha256)
                storage.put(staged, table)
            record = put(storage, b"record" * 1000, _layout.RECORDS)
            storage.commit(b"snapshot", SNAPSHOT)
            storage.flush()

        storage = open_storage(url, storage_options=options)
        proxy.requests.clear()
        assert storage.read(record) == b"record" * 1000
        assert len(proxy.requests) == 1
        proxy.requests.clear()
        assert storage.read_range(record, 6, 6) == b"record"
        assert len(proxy.requests) == 1
        for pre_buffer in (False, True):
            storage = open_storage(url, storage_options=options)
            proxy.requests.clear()
            with storage.open(table) as file:
                found = pq.ParquetFile(file, pre_buffer=pre_buffer).read_row_group(5)
            assert len(proxy.requests) <= 4
            assert found.column("b").to_numpy().tobytes() == columns["b"][5 * 131_072 : 6 * 131_072].tobytes()
        proxy.requests.clear()
        with storage.open(table) as file:
            whole = b"".join(iter(lambda: file.read(2**20), b""))
        assert len(whole) > 18_000_000
        assert len(proxy.requests) <= 7, "a sequential read asks for more and more at once"
