"""The judge of two servers sees every change of what a server holds, and nothing where nothing changed."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlflow_bundle.tracking.database._not_archived import NOT_ARCHIVED
from tests.fixtures.answers import differences, every_answer
from tests.fixtures.estate import Estate
from tests.fixtures.server import MlflowServer, ServerFactory

pytestmark = pytest.mark.slow

Cell = tuple[str, str]
"""A table and a column."""

#: Columns that take only some values, or have a form: another value, and where the change is seen.
FORMS: Mapping[Cell, tuple[Any, str]] = {
    ("assessments", "value"): ("7.5", r"\b7\.5\b"),
    ("assessments", "error"): ('{"error_code": "judge-error"}', "judge-error"),
    ("assessments", "source_type"): ("CODE", "source_type"),
    ("assessments", "assessment_metadata"): ('{"k": "judge-metadata"}', "judge-metadata"),
    ("assessments", "valid"): (1, r"\.valid"),
    ("budget_policies", "budget_action"): ("REJECT", "REJECT"),
    ("budget_policies", "duration_unit"): ("HOURS", "HOURS"),
    ("budget_policies", "target_scope"): ("ENDPOINT", "ENDPOINT"),
    ("endpoint_model_mappings", "linkage_type"): ("FALLBACK", "FALLBACK"),
    ("endpoints", "fallback_config_json"): ('{"strategy": "SEQUENTIAL", "max_attempts": 4321}', "4321"),
    ("endpoints", "name"): ("judge-endpoint", "judge-endpoint|get.name=chat|v1/models"),
    ("endpoints", "usage_tracking"): (0, "usage_tracking"),
    ("evaluation_dataset_records", "inputs"): ('{"judge": "inputs"}', '"judge": "inputs"'),
    ("evaluation_dataset_records", "outputs"): ('{"mlflow_wrapped": "judge-outputs"}', "judge-outputs"),
    ("evaluation_dataset_records", "expectations"): ('{"judge": "expectations"}', '"judge": "expectations"'),
    ("evaluation_dataset_records", "tags"): ('{"judge": "tags"}', '"judge": "tags"'),
    ("evaluation_dataset_records", "source"): ('{"source_type": "HUMAN", "source_data": {"by": "judge"}}', '"by": "judge"'),
    ("evaluation_dataset_records", "source_type"): ("CODE", "source_type"),
    ("experiments", "name"): ("judge-experiment", "judge-experiment|experiment_name=Default"),
    ("guardrails", "action"): ("SANITIZATION", "SANITIZATION"),
    ("guardrails", "stage"): ("AFTER", "AFTER"),
    ("issues", "categories"): ('["judge-category"]', "judge-category"),
    ("issues", "root_causes"): ('["judge-cause", "net"]', "judge-cause"),
    ("issues", "severity"): ("low", "severity"),
    ("issues", "status"): ("rejected", r"issues.*\.status"),
    ("label_schemas", "enable_comment"): (1, "enable_comment"),
    ("label_schemas", "input_config"): ('{"max_length": 4321}', "4321"),
    ("label_schemas", "input_type"): ("text", r"\.input\.pass_fail"),
    ("label_schemas", "is_default"): (1, "is_default"),
    ("label_schemas", "type"): ("expectation", "EXPECTATION"),
    ("logged_models", "artifact_location"): ("/judge-place", "judge-place|/artifacts/(files|directories)"),
    ("logged_models", "status"): (3, r"logged-models.*\.status"),
    ("mcp_access_endpoints", "transport_type"): ("sse", "transport_type"),
    ("mcp_server_aliases", "version"): ("9.9.9", "alias"),
    ("mcp_server_versions", "connect_options"): ('{"stdio": {"hidden": false}}', r"connect_options.*hidden"),
    ("mcp_server_versions", "server_json"): (
        '{"name": "com.example/files", "version": "1.2.3", "judge": 1}',
        r"server_json\.judge",
    ),
    ("mcp_server_versions", "status"): ("deprecated", "deprecated"),
    ("mcp_server_versions", "tools"): ('[{"name": "read", "title": "judge-tool"}]', "judge-tool"),
    ("mcp_servers", "icons"): ('[{"src": "judge-icon"}]', "judge-icon"),
    ("model_versions", "current_stage"): ("Staging", "Staging"),
    ("model_versions", "source"): ("s3://judge-source", "judge-source"),
    ("model_versions", "status"): ("FAILED_REGISTRATION", "FAILED_REGISTRATION"),
    ("model_versions", "storage_location"): ("s3://judge-storage", "judge-storage|model-versions/get-artifact"),
    ("online_scoring_configs", "filter_string"): ("status = 'ERROR'", "filter_string"),
    ("registered_model_aliases", "version"): (11, "alias"),
    ("review_queue_items", "status"): ("declined", "DECLINED"),
    ("review_queues", "name"): ("judge-queue", "judge-queue|get-by-name"),
    ("review_queues", "queue_type"): ("user", "queue_type"),
    ("runs", "artifact_uri"): ("/judge-run", "judge-run|artifacts/list|get-artifact.*run_uuid|mlflowListArtifacts"),
    ("runs", "source_type"): ("NOTEBOOK", "NOTEBOOK"),
    ("runs", "status"): ("FAILED", r"info\.status"),
    ("scorer_versions", "serialized_scorer"): ('{"name": "polite", "builtin_scorer_class": "judge-class"}', "judge-class"),
    ("scorers", "scorer_name"): ("judge-scorer", "judge-scorer|name=polite"),
    ("spans", "content"): ('{"trace_id": "judge-span"}', "judge-span|batchGet|traces/get"),
    ("trace_info", "status"): ("ERROR", r"\bERROR\b"),
    ("webhooks", "status"): ("DISABLED", "DISABLED"),
}
#: Columns that are not changed here: they decide what is listed at all, take one value only, or exclude another.
KEPT = frozenset(
    {
        *("*.workspace", "*.lifecycle_stage", "webhooks.deleted_timestamp"),
        *("secrets.secret_name", "assessments.assessment_type", "review_queue_items.item_type"),
        *("endpoints.routing_strategy", "budget_policies.budget_unit"),
        *("mcp_access_endpoints.server_alias", "mcp_access_endpoints.server_version"),
    }
)
#: What a server without workspaces and users never shows: only ``table_rows`` sees a change of it.
UNSEEN = frozenset(
    {
        *("runs.source_type", "runs.source_name", "runs.entry_point_name", "runs.source_version", "runs.deleted_time"),
        *("assessments.run_id", "secrets.description"),
        *("spans.parent_span_id", "spans.start_time_unix_nano", "spans.end_time_unix_nano"),
        *("workspaces.description", "workspaces.default_artifact_root"),
        *("workspaces.trace_archival_location", "workspaces.trace_archival_retention"),
    }
)


#: Answers that are computed out of many rows, where a change shows itself as another number or another set.
COMPUTED = re.compile(r"traces/metrics|filter-correlation|traces/search .*\"filter\"|^POST /graphql [^|]* \| \.errors")
#: Tables of links and parts, from each of which a row is taken out, and where that is seen.
PARTS: Mapping[str, str] = {
    "entity_associations": r"experiment-ids|datasets/search",
    "input_tags": r"dataset_inputs|(?i:search-?datasets)",
    "metrics": r"metrics/get-history|MetricHistory",
    "review_queue_label_schemas": "schema_ids",
    "review_queue_users": r"\.users|review-queues/list\?.*user=",
    "webhook_events": r"/webhooks",  # one without events is refused
    "registered_model_aliases": "alias",
    "evaluation_dataset_tags": r"dataset.*\.tags",
    "endpoint_bindings": "bindings",
    "logged_model_params": r"\.params",
    "review_queue_items": r"items/list",
    "model_version_tags": r"model_?[vV]ersion.*\.tags",
}


@dataclass(frozen=True)
class Change:
    """A column of a row that was changed. ``seen`` is a regular expression that finds the change in a line of differences."""

    place: str
    seen: str


@pytest.fixture(scope="module")
def database(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a database with everything. Asking the judge's questions makes a server write, so that each has its own."""
    copied = tmp_path_factory.mktemp("judge") / "mlflow.db"
    shutil.copy(estate.folder / "mlflow.db", copied)
    with contextlib.closing(sqlite3.connect(copied)) as connection:
        connection.execute("UPDATE webhooks SET secret = NULL")  # it was planted; a server cannot decrypt it
        connection.commit()
    return copied


@pytest.fixture
def copy(database: Path, tmp_path: Path) -> Path:
    """A copy of it that a test changes."""
    return Path(shutil.copy(database, tmp_path / "mlflow.db"))


@pytest.fixture(scope="module")
def server(database: Path, start_server: ServerFactory) -> MlflowServer:
    """A server on a third copy."""
    served = shutil.copy(database, database.with_name("served.db"))
    return start_server(backend_store_uri=f"sqlite:///{served}")


@pytest.fixture(scope="module")
def answers(server: MlflowServer) -> dict[str, Any]:
    """What a server that holds everything answers."""
    return every_answer(server.url)


def change_every_column(database: Path) -> list[Change]:
    """Change every column that is archived in one row of each table, past MLflow."""
    made: list[Change] = []
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        for table in names:
            if table not in NOT_ARCHIVED:
                made += _change_row(connection, table, len(made))
        connection.commit()
    return made


def _change_row(connection: sqlite3.Connection, table: str, number: int) -> Iterator[Change]:
    """Change the first row of a table: all columns but keys, links, and what is no content."""
    links = {row[3] for row in connection.execute(f"PRAGMA foreign_key_list('{table}')")}
    (row_id,) = connection.execute(f'SELECT rowid FROM "{table}" ORDER BY rowid LIMIT 1').fetchone()
    for _, name, kind, _, _, key, hidden in connection.execute(f"PRAGMA table_xinfo('{table}')").fetchall():
        if key or hidden or name in links or {f"{table}.{name}", f"*.{name}"} & {*KEPT, *NOT_ARCHIVED}:
            continue
        number += 1
        new, seen = _another(table, name, kind, number)
        connection.execute(f'UPDATE "{table}" SET "{name}" = ? WHERE rowid = ?', (new, row_id))
        yield Change(f"{table}.{name}", seen)


def _another(table: str, name: str, kind: str, number: int) -> tuple[Any, str]:
    """Another value for a column, which is nowhere else, and how it shows itself."""
    if (table, name) in FORMS:
        return FORMS[table, name]
    if kind.startswith("INTEGER"):
        return 4_321_000 + number, str(4_321_000 + number)
    if kind.startswith("BIGINT"):
        return 1_600_000_000_000 + number, rf"1600000000\.?{number:03}|:40\.{number:03}Z"
    if kind.startswith("FLOAT"):
        return number + 0.03125, rf"\b{number}\.03125"
    return f"judge{number:03}", f"judge{number:03}"


def test_asking_twice(server: MlflowServer, answers: dict[str, Any]) -> None:
    """The same server asked twice answers the same, but that it has listed its label schemas once."""
    found = [line for line in differences(answers, every_answer(server.url)) if "label-schemas" not in line]
    assert found == []


def test_every_changed_column_is_seen(answers: dict[str, Any], copy: Path, start_server: ServerFactory) -> None:
    """Of two servers whose databases differ in every column, each difference is found, and nothing else is."""
    made = change_every_column(copy)
    assert len(made) > 200
    found = differences(answers, every_answer(start_server(backend_store_uri=f"sqlite:///{copy}").url))
    assert {change.place for change in made if not any(re.search(change.seen, line) for line in found)} == UNSEEN
    patterns = [COMPUTED, *(re.compile(change.seen) for change in made)]
    assert [line for line in found if not any(pattern.search(line) for pattern in patterns)] == []


def test_every_missing_row_is_seen(answers: dict[str, Any], copy: Path, start_server: ServerFactory) -> None:
    """A server that lacks one row of a link, a tag, a param or a point answers otherwise where it belongs, and only there."""
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        for table in PARTS:
            assert connection.execute(f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})").rowcount == 1
        connection.commit()
    found = differences(answers, every_answer(start_server(backend_store_uri=f"sqlite:///{copy}").url))
    assert {table for table, seen in PARTS.items() if not any(re.search(seen, line) for line in found)} == set()
    assert [line for line in found if not re.search("|".join(PARTS.values()), line)] == []


def test_lines_tell_what_differs() -> None:
    """A line has the request, the place inside, and both values; of long texts, the part where they begin to differ."""
    one = {"GET a": {"tags": [{"key": "k", "value": "v"}], "n": 1, "text": "x" * 500 + "left"}, "GET b": {"ok": True}}
    other = {"GET a": {"tags": [{"key": "k", "value": "w"}], "n": 1.0, "text": "x" * 500 + "right"}, "GET b": {"refusal": {}}}
    lines = differences(one, other)
    assert lines[0] == "GET a | .n | 1 | 1.0"
    assert lines[1] == "GET a | .tags[k].value | 'v' | 'w'"
    assert "left" in lines[2]
    assert "right" in lines[2]
    assert lines[3] == "GET b |  | {'ok': True} | {'refusal': {}}"
    assert differences(one, other, ignore=[r"^GET a", r"^GET b"]) == []
    assert differences({"GET a": [float("nan")]}, {"GET a": [float("nan")]}) == []
