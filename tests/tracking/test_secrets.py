"""No credential enters a bundle: the whole bundle is searched for what can hide in a database or behind a server."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

import mlflow_bundle as bundle
from tests.fixtures.estate import Estate
from tests.fixtures.server import ServerFactory
from tests.tracking.moving import everything_in, execute

pytestmark = pytest.mark.slow

#: Columns of free text, and JSON columns, that a user can write a URI into: all that the test content has.
TEXTS = (
    "experiment_tags.value",
    "runs.name",
    "runs.source_name",
    "params.value",
    "tags.value",
    "input_tags.value",
    "datasets.dataset_source",
    "datasets.dataset_profile",
    "logged_models.status_message",
    "logged_model_params.param_value",
    "logged_model_tags.tag_value",
    "registered_models.description",
    "registered_model_tags.value",
    "model_versions.description",
    "model_versions.run_link",
    "model_versions.status_message",
    "model_version_tags.value",
    "trace_info.request_preview",
    "trace_info.response_preview",
    "trace_info.client_request_id",
    "trace_info.trace_name",
    "trace_info.session_id",
    "trace_request_metadata.value",
    "assessments.rationale",
    "assessments.source_id",
    "evaluation_datasets.name",
    "evaluation_dataset_tags.value",
    "evaluation_dataset_records.created_by",
    "issues.description",
    "label_schemas.instruction",
    "review_queues.name",
    "review_queue_users.user_id",
    "review_queue_items.completed_by",
    "webhooks.description",
    "webhooks.url",
    "secrets.description",
    "endpoint_tags.value",
    "endpoint_bindings.display_name",
    "mcp_servers.description",
    "mcp_server_tags.value",
    "mcp_access_endpoints.url",
    "workspaces.description",
)
JSONS = (
    "spans.content",
    "assessments.value",
    "assessments.error",
    "assessments.assessment_metadata",
    "evaluation_dataset_records.inputs",
    "evaluation_dataset_records.outputs",
    "evaluation_dataset_records.expectations",
    "evaluation_dataset_records.source",
    "scorer_versions.serialized_scorer",
    "endpoints.fallback_config_json",
    "mcp_server_versions.server_json",
    "mcp_server_versions.connect_options",
)
#: Columns that hold secrets and nothing else, wherever they are.
HIDDEN = ("secrets.encrypted_value", "secrets.wrapped_dek", "secrets.masked_value", "webhooks.secret", "jobs.token_hash")


def planted(column: str) -> str:
    """Credentials in URIs of four forms, which tell the column that they were found in."""
    name = column.replace(".", "-").replace("_", "-")
    return (
        f" https://user:planted-1-{name}@example.com/x?a=1&token=planted-2-{name}"
        f" postgresql+psycopg2://u:planted-3/{name}@db/x s3://b/k?X-Amz-Signature=planted-4-{name}"
    )


def plant(uri: str) -> set[str]:
    """Plant credentials in every column that can hold one. Returns the columns of which there were rows."""
    found = set()
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        for column in TEXTS:
            table, name = column.split(".")
            plain = "" if column != "tags.value" else " AND key NOT LIKE 'mlflow.%'"
            sql = f"UPDATE {table} SET {name} = COALESCE({name}, '') || ?"
            if connection.execute(f"{sql} WHERE 1 = 1{plain}", (planted(column),)).rowcount:
                found.add(column)
        for column in JSONS:
            table, name = column.split(".")
            sql = f"UPDATE {table} SET {name} = json_set({name}, '$.planted', ?) WHERE json_type({name}) = 'object'"
            if connection.execute(sql, (planted(column),)).rowcount:
                found.add(column)
        for column in HIDDEN:
            table, name = column.split(".")
            if connection.execute(f"UPDATE {table} SET {name} = ?", (planted(column).encode(),)).rowcount:
                found.add(column)
        connection.commit()
    return found


def test_no_planted_credential_is_in_a_bundle(estate: Estate, tmp_path: Path) -> None:
    """Passwords and signatures in the URIs of every text of every table are gone from the bundle, and nothing else is."""
    shutil.copy(estate.folder / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert plant(uri) == {*TEXTS, *JSONS, *HIDDEN}
    bundle.pack(bundle=tmp_path / "b", tracking_uri=uri)
    content = everything_in(tmp_path / "b")
    assert content.count(b"https://user:REDACTED@example.com/x?a=1&token=REDACTED") > len(TEXTS)
    assert sorted({part[:60] for part in content.split(b"planted-")[1:]}) == []
    assert bundle.verify(tmp_path / "b").problems == ()


def users(uri: str) -> list[str]:
    """A user, an administrator and their permissions in a database of the auth app. Returns what must stay there."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore as AuthStore  # noqa: PLC0415 - sets up a web application

    store = AuthStore()
    store.init_db(uri)
    store.create_user("planted-user-name", "planted-password-1")
    store.create_user("planted-admin-name", "planted-password-2", is_admin=True)
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        hashes = [str(row[0]) for row in connection.execute(sqlalchemy.text("SELECT password_hash FROM users"))]
    engine.dispose()
    store.engine.dispose()
    assert len(hashes) == 2
    return ["planted-user-name", "planted-admin-name", "planted-password", *hashes]


def test_a_database_of_users_is_no_source(tmp_path: Path) -> None:
    """The database of the auth app is refused, and no bundle is begun."""
    uri = f"sqlite:///{tmp_path / 'basic_auth.db'}"
    users(uri)
    with pytest.raises(bundle.NotFoundError, match="not MLflow's"):
        bundle.pack(bundle=tmp_path / "b", tracking_uri=uri)
    assert not (tmp_path / "b").exists()


def test_users_in_the_same_database_stay_there(estate: Estate, tmp_path: Path) -> None:
    """Where the auth app shares the database, its tables are not read, neither users nor hashes nor permissions."""
    shutil.copy(estate.folder / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    secrets = users(uri)
    report = bundle.pack(bundle=tmp_path / "b", tracking_uri=uri)
    assert (report.state, report.problems) == ("complete", ())
    content = everything_in(tmp_path / "b")
    assert [secret for secret in secrets if secret.encode() in content] == []


def test_credentials_of_the_way_in_stay_outside(
    estate: Estate, start_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user and the password that a server with authentication asks for are not in a bundle of it, given either way."""
    shutil.copy(estate.folder / "mlflow.db", tmp_path / "mlflow.db")
    execute(f"sqlite:///{tmp_path / 'mlflow.db'}", "UPDATE webhooks SET secret = NULL")
    settings = tmp_path / "auth.ini"
    database = f"sqlite:///{tmp_path / 'basic_auth.db'}"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nadmin_username = planted-admin\n"
        "admin_password = planted-admin-password\nauth_cache_ttl_seconds = 600\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-flask-key"}
    server = start_server(
        backend_store_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", env=environment, extra=["--app-name", "basic-auth"]
    )
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "planted-admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-admin-password")
    bundle.pack(bundle=tmp_path / "b", tracking_uri=server.url)
    content = everything_in(tmp_path / "b")
    assert b"churn.v1" in content
    assert [part[:40] for part in content.split(b"planted-")[1:] if not part.startswith((b"auth", b"masked"))] == []
