"""An archive answers the questions of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import mlflow_bundle as bundle
from mlflow_bundle._storage import open_storage
from mlflow_bundle.entities import DatasetRecord, LoggedModel, ModelVersion
from mlflow_bundle.errors import UsageError
from mlflow_bundle.records import record_id
from mlflow_bundle.tracking._archive import ArchiveSource
from mlflow_bundle.tracking._port import ROW_SCHEMAS, EntityQuery
from tests.building import Content, everything_of, pack_content, plain_rows, run_of


@pytest.fixture(scope="module")
def content() -> Content:
    content = everything_of(9)
    other = LoggedModel(model_id="m-other", experiment_id="2", name="m", source_run_id=run_of(3).run_id)
    content.entities.insert(9, other)
    content.entities.insert(20, ModelVersion(name="other", version=1, run_id=run_of(3).run_id))
    content.entities.append(DatasetRecord(dataset_record_id="dr-other", dataset_id="d-2"))
    content.entities.sort(key=lambda record: str(record.__struct_config__.tag) == "dataset_record")
    return content


@pytest.fixture(scope="module")
def source(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveSource]:
    folder: Path = tmp_path_factory.mktemp("archive") / "b"
    with open_storage(folder, create=True) as storage:
        pack_content(storage, content)
    with bundle.open(folder) as archive:
        yield ArchiveSource(archive)


def test_the_kinds_are_those_that_are_archived(source: ArchiveSource) -> None:
    """Kinds come in archive order, without experiments and runs, and without what there is none of."""
    assert source.kinds() == [
        "logged_model",
        "registered_model",
        "model_version",
        "trace",
        "evaluation_dataset",
        "dataset_record",
        "scorer",
    ]


RUN = run_of(3).run_id
QUERIES: list[tuple[str, EntityQuery, Callable[[Any], bool]]] = [
    ("logged_model", EntityQuery(), lambda _: True),
    ("logged_model", EntityQuery(experiment_ids=("2",)), lambda r: r.experiment_id == "2"),
    ("logged_model", EntityQuery(experiment_ids=()), lambda _: False),
    ("logged_model", EntityQuery(run_ids=(RUN, "none")), lambda r: r.source_run_id == RUN),
    ("logged_model", EntityQuery(ids=("m-0002", "m-other", "none")), lambda r: r.model_id in ("m-0002", "m-other")),
    ("logged_model", EntityQuery(ids=("m-0002", "m-other"), experiment_ids=("1",)), lambda r: r.model_id == "m-0002"),
    ("trace", EntityQuery(run_ids=(RUN,)), lambda r: RUN in r.run_ids),
    ("model_version", EntityQuery(parents=("shop",)), lambda r: r.name == "shop"),
    ("model_version", EntityQuery(run_ids=(RUN,), parents=("shop",)), lambda _: False),
    ("model_version", EntityQuery(experiment_ids=("1",)), lambda _: False),
    ("dataset_record", EntityQuery(parents=("d-2",)), lambda r: r.dataset_id == "d-2"),
    ("evaluation_dataset", EntityQuery(experiment_ids=("1", "7")), lambda _: True),
]


@pytest.mark.parametrize(("kind", "query", "matches"), QUERIES)
def test_entities_are_those_that_match(
    source: ArchiveSource, content: Content, kind: str, query: EntityQuery, matches: Callable[[Any], bool]
) -> None:
    """All restrictions of a query hold, and the records that are left come in archive order."""
    of_kind = [record for record in content.entities if str(record.__struct_config__.tag) == kind]
    expected = [record for record in of_kind if matches(record)]
    assert [record for batch in source.entities(kind, query) for record in batch] == expected


@pytest.mark.parametrize(("table", "kind"), [("model_metrics/1", "logged_model"), ("spans/1", "trace")])
def test_rows_are_those_of_the_owners(source: ArchiveSource, content: Content, table: str, kind: str) -> None:
    """The rows of some owners, in any order, with the columns that every source gives."""
    ids = [record_id(r) for r in content.entities if str(r.__struct_config__.tag) == kind]
    for chosen in (ids, ids[::-1], ids[1::2], []):
        found = pa.concat_tables([ROW_SCHEMAS[table].empty_table(), *source.rows(table, chosen)])
        assert found.schema == ROW_SCHEMAS[table]
        assert repr(found.to_pylist()) == repr(plain_rows(table, {kind: chosen}, content.rows).to_pylist())


def test_files_are_read_by_their_content(source: ArchiveSource, content: Content) -> None:
    """An archive has no artifact store to hand out, and nothing to complain of."""
    with pytest.raises(UsageError, match="by their content"):
        source.artifacts(content.entities[0])
    assert source.problems() == []
