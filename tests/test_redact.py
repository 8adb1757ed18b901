"""Credentials in URIs never reach an archive, and nothing else is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from mlflow_bundle._codec import encode
from mlflow_bundle._redact import REDACTED, redact_bytes, redact_uri
from mlflow_bundle.records import KeyValue, Run

#: What a password may consist of in a URI; the rest must be percent-encoded.
PASSWORDS = st.text(st.sampled_from("abcXYZ019-._~!$&'()*+,;=:%"), min_size=8, max_size=20)


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("postgresql://mlflow:s3cret@db:5432/mlflow", "postgresql://mlflow:REDACTED@db:5432/mlflow"),
        ("postgresql+psycopg2://u:a%40b%2Fc@db/m?sslmode=require", "postgresql+psycopg2://u:REDACTED@db/m?sslmode=require"),
        ("http://:token@host/path", "http://:REDACTED@host/path"),
        ("https://ghp_abcdef0123@github.com/me/it", "https://REDACTED@github.com/me/it"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=abc&v=1", "https://b.s3.amazonaws.com/k?X-Amz-Signature=REDACTED&v=1"),
        ("https://a.blob.core.windows.net/c/b?sv=1&sig=a%2Bb%3D", "https://a.blob.core.windows.net/c/b?sv=1&sig=REDACTED"),
        ("https://host/x?TOKEN=abc#part", "https://host/x?TOKEN=REDACTED#part"),
        ("two: ftp://a:b@c and ftp://d:e@f", "two: ftp://a:REDACTED@c and ftp://d:REDACTED@f"),
    ],
)
def test_credentials_are_taken_out(uri: str, redacted: str) -> None:
    """Passwords, lone tokens and access signatures go, and all the rest of the URI stays."""
    assert redact_uri(uri) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sqlite:///mlflow.db",
        "http://user@host/",
        "http://host:8080/a@b",
        "https://host/x?page_token_count=3&v=a@b",
        "s3://bucket/a:b@c",
        "mail me@example.org: http://example.org",
        "note: a@b, c:d@e",
        "git@github.com:me/it.git",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    """User names, ports, mail addresses, and '@' or ':' in paths are no secrets."""
    assert redact_uri(text) == text


@given(PASSWORDS, st.sampled_from(["postgresql", "mysql+pymysql", "http", "https", "s3", "mssql+pyodbc"]))
def test_no_password_survives(password: str, scheme: str) -> None:
    """Whatever a URI may have as its password, it is gone, in the record's JSON too, and once is enough."""
    uri = f"{scheme}://user:{password}@host:1/path"
    assert redact_uri(uri) == f"{scheme}://user:{REDACTED}@host:1/path"
    record = Run(run_id="r", experiment_id="1", tags=(KeyValue(key="uri", value=f'a "quoted {uri}" one'),))
    line, found = redact_bytes(encode(record))
    assert password.encode() not in line
    assert found == 1
    assert redact_bytes(line) == (line, 0)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters='@"\\'), min_size=8))
def test_no_password_that_a_database_takes_survives(password: str) -> None:
    """SQLAlchemy takes '/', '?' and '#' in a password as they are: those go too."""
    uri = f"postgresql+psycopg2://user:{password}@host/db"
    assert make_url(uri).host == "host"
    assert redact_uri(uri) == f"postgresql+psycopg2://user:{REDACTED}@host/db"


@given(st.text(max_size=60))
def test_text_without_uris_is_untouched(text: str) -> None:
    """Only URIs are looked at."""
    plain = text.replace("://", "")
    assert redact_uri(plain) == plain
    assert redact_bytes(plain.encode("utf-8", "surrogatepass"))[1] == 0


def test_everything_taken_out_is_counted() -> None:
    """The number of credentials that were taken out is reported, those redacted before not among them."""
    assert redact_bytes(b"x://a:b@c x://a:REDACTED@c http://h/?sig=1&token=2")[1] == 3


@pytest.mark.parametrize("uri", ['https://u:se"cret@h', "postgresql://u:pa\\ss@h/db", "mssql://DOM\\user:pw@h"])
def test_passwords_with_quotes_and_backslashes_are_taken_out(uri: str) -> None:
    """What JSON escapes in a password does not save it, in plain text and in a record."""
    clean = uri.rpartition(":")[0] + ":" + REDACTED + uri[uri.rindex("@") :]
    assert redact_uri(uri) == clean
    assert redact_bytes(encode({"uri": uri})) == (encode({"uri": clean}), 1)


@pytest.mark.parametrize("text", ['{"url":"http://h:8080","mail":"a@b.c"}', '["http://h:80\\nfoo@bar"]', 'x="http://h:80">a@b'])
def test_texts_inside_of_texts_are_no_passwords(text: str) -> None:
    """JSON and markup in a text may have a port and, behind its end, an address."""
    assert redact_uri(text) == text
