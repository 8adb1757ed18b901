"""Two servers, one on what was archived and one on what was restored, answer every read request alike."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.server import app
from mlflow.server.fastapi_app import app as fast_app
from werkzeug.exceptions import HTTPException

import mlflow_bundle as bundle
from tests.fixtures.answers import differences, every_answer, renamed
from tests.fixtures.estate import Estate
from tests.fixtures.server import MlflowServer, ServerFactory

pytestmark = pytest.mark.slow

Answers = dict[str, Any]
#: Where files lie, on every side of a comparison.
FILES = "mlflow-artifacts:"

#: Without it a server says nothing about workspaces.
WORKSPACES = ("--enable-workspaces",)
#: What a restored database makes a server answer otherwise: a regular expression of a line of ``differences``, and why.
RESTORED_DATABASE: Mapping[str, str] = {
    r"mlflow/webhooks.* \| .*status \| 'ACTIVE' \| 'DISABLED'$": "webhooks are restored disabled, so that none fires unasked",
    r"mlflow/webhooks.* \| .*url \| 'https://user:[^']*' \| 'https://user:REDACTED@": "a password in a URL is a secret",
    r"gateway/secrets/(get\?.* \|  \| \{'secret'|list \| \.secrets).* \(absent\)$": "secrets are never archived",
    r"gateway/.*model_definition.*\.secret_(id|name) \| '[^']*' \| \(absent\)$": "secrets are never archived",
    r"scorers/online-configs.*\.sample_rate \| 0\.25 \| 0\.0$": "online scoring is restored with sample rate 0",
}
#: Members that are times, in both spellings.
_TIMES = r"((creation|last_?updated?|created|completed)_?(time|timestamp|at)(_ms)?)"
#: Kinds of entities to which a server gives times of its own.
_TIMED = (
    r"(experiments?|logged-models|models?|registered-models|model-versions|datasets|scorers|label-schemas|review-queues|issues"
    r"|gateway/budgets)"
)
#: The same for a server that was filled through its API by one that was packed through its API.
RESTORED_SERVER: Mapping[str, str] = {
    rf"/mlflow/{_TIMED}[/?][^|]* \| .*\b{_TIMES} \|": "a server gives times itself; the old ones are in tags or in the archive",
    rf"(?i)^POST /graphql [^|]* \| .*(experiment|modelVersions\[[^]]*\])\.{_TIMES} \|": "as above",
    r"\.(run_?(id|link)|source_run_id|description|model_type|runId|runLink) \| \(absent\) \| ''$": "a server keeps '' for none",
    r"logged-models.*tags\[mlflow\.modelVersions\] \| \(absent\) \|": "a server notes the versions of a model in a tag of it",
    r"logged-models/.*/directories.*files\[MLmodel\]\.file_size \|": "new ids and places in MLmodel have other lengths",
    r"^GET /api/2.0/mlflow-artifacts/artifacts[/?][^|]* \|  \| \(absent\) \|": "asked where a server serves artifacts itself",
    r"/datasets/.*\.digest \|": "a server makes the digest of an evaluation dataset of its name and times",
    r"scorers/online-configs.*\.(sample_rate|online_scoring_config_id) \|": "online scoring is restored with sample rate 0",
    r"/(webhooks|gateway(?!/budgets)|mcp-servers)\b": "needs network, secrets and https there: the report tells",
}
#: Read requests that ask for no entity, by function or by path, and why.
NOT_ASKED: Mapping[str, str] = {
    r"^(serve|<lambda>|serve_static_file)$": "the pages of the user interface",
    r"^(health|version|get_server_info|_get_server_info)": "the server itself",
    r"telemetry": "whether the user interface reports its use",
    r"^_not_implemented$": "nothing in this release",
    r"^serve_get_metric_history_bulk_interval$": "another function takes its path",
    r"presigned": "a link to a file that is asked for, good for a time",
    r"^serve_gateway_proxy$|^POST /gateway/": "asks a language model",
    r"^_get_(provider_config|secrets_config)$|^_list_supported_": "what the release supports",
    r"^_list_budget_windows$": "what was spent since the window began, which a server counts anew",
    r"(^|_)jobs?(_|$)": "jobs of a running server, which are not archived",
    r"^(GET|POST) /ajax-api/3.0/mlflow/assistant/": "the assistant of the user, not of the server",
}
WRITES = re.compile(
    r"^_?(deprecated_)?(serve_)?(get_or_create|create|delete|set|log|update|restore|finalize|rename|transition|add|remove|upsert"
    r"|register|start|link|attach|detach|abort|complete|cancel|test|invoke|generate|upload|post|export|submit)_"
)


# -- the two servers of each comparison --------------------------------------------------------------------------------


def deleted_models(database: Path) -> list[str]:
    """The ids of logged models that no list offers."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [row[0] for row in connection.execute("SELECT model_id FROM logged_models WHERE lifecycle_stage = 'deleted'")]


def places(estate: Estate, *folders: Path) -> dict[str, str]:
    """Names for the folders in which files lie. Files themselves, such as MLmodel, go on naming the first."""
    return {str(folder): FILES for folder in (estate.folder / "mlruns", *folders)}


@pytest.fixture(scope="module")
def packed(estate: Estate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The estate as a bundle, read from its database."""
    place = str(tmp_path_factory.mktemp("packed") / "estate")
    bundle.pack(bundle=place, tracking_uri=estate.uri)
    return place


@pytest.fixture(scope="module")
def source(estate: Estate, start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    """A server on a copy of the estate of which nothing else is asked: some requests of the judge make a server write."""
    copy = tmp_path_factory.mktemp("answers") / "mlflow.db"
    shutil.copy(estate.folder / "mlflow.db", copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("UPDATE webhooks SET secret = NULL")  # it was planted; a server cannot decrypt it
        connection.commit()
    return start_server(backend_store_uri=f"sqlite:///{copy}", extra=WORKSPACES)


@pytest.fixture(scope="module")
def known(estate: Estate, source: MlflowServer) -> Mapping[str, list[str]]:
    """Ids that no list offers."""
    return {"logged_model": deleted_models(Path(source.backend_store_uri.removeprefix("sqlite:///")))}


@pytest.fixture(scope="module")
def expected(estate: Estate, source: MlflowServer, known: Mapping[str, list[str]]) -> Answers:
    """What a server on the estate answers."""
    return renamed(every_answer(source.url, known=known), places(estate))


@pytest.fixture(scope="module")
def filled(
    estate: Estate,
    source: MlflowServer,
    expected: Answers,
    start_server: ServerFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Answers, Answers]:
    """What the source answers, and what a server answers that was filled from it over REST, with the ids of the source.

    The source was asked before, so that it has listed its label schemas once, as the user interface does.
    """
    before = renamed(every_answer(source.url), places(estate))
    place = tmp_path_factory.mktemp("asked") / "estate"
    assert bundle.pack(bundle=place, tracking_uri=source.url).problems == ()
    target = start_server(extra=WORKSPACES)
    report = bundle.unpack(place, tracking_uri=target.url, allow_partial=True)
    ids = {**report.ids, "run": report.run_ids}
    # Ids of experiments are numbers that occur everywhere: an empty server gives the same ones again.
    assert all(old == new for old, new in ids["experiment"].items())
    names = {new: old for kind, pairs in ids.items() if kind != "experiment" for old, new in pairs.items() if old != new}
    names["mlflow-artifacts:/workspaces/default"] = FILES
    return plain(before), plain(renamed(every_answer(target.url), names))


def plain(value: Any) -> Any:
    """An answer without the tags that a restore leaves: they are promised, and tested elsewhere."""
    if isinstance(value, list):
        return [plain(item) for item in value if not (isinstance(item, dict) and is_own(item.get("key")))]
    if isinstance(value, dict):
        kept = {key: plain(item) for key, item in value.items() if not is_own(key)}
        return {key: item for key, item in kept.items() if not (key == "tags" and not item)}
    return value


def is_own(name: object) -> bool:
    return isinstance(name, str) and name.startswith("mlflow_bundle.")


# -- the comparisons ---------------------------------------------------------------------------------------------------


def unlisted(before: Answers, after: Answers, listed: Mapping[str, str]) -> list[str]:
    """The differences that the list does not have, and the entries of the list that no difference needs."""
    lines = differences(before, after)
    patterns = [re.compile(pattern) for pattern in listed]
    wrong = [line for line in lines if not any(pattern.search(line) for pattern in patterns)]
    return wrong + [f"no such difference: {pattern.pattern}" for pattern in patterns if not any(map(pattern.search, lines))]


def test_the_estate_is_asked_about(expected: Answers, estate: Estate) -> None:
    """Nearly all answers are no refusals, and they have what was planted in every corner."""
    refused = [request for request, answer in expected.items() if "refusal" in answer]
    assert len(expected) > 350
    assert len(refused) < 40
    said = str(expected)
    for text in (
        "churn.v1",
        "Hello {{name}} 11",
        "it broke",
        "question 4",
        "be rude",
        "To review",
        "it is\\nslow",
        "com.example/files",
    ):
        assert text in said, text


def test_a_restored_sqlite_database(
    estate: Estate,
    packed: str,
    expected: Answers,
    known: Mapping[str, list[str]],
    start_server: ServerFactory,
    tmp_path: Path,
) -> None:
    """A server on the restored SQLite database answers as the first one, but for a short list."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    bundle.unpack(packed, tracking_uri=uri)
    answers = every_answer(start_server(backend_store_uri=uri, extra=WORKSPACES).url, known=known)
    wrong = unlisted(expected, renamed(answers, places(estate, tmp_path / "mlruns")), RESTORED_DATABASE)
    assert not wrong, "\n".join(wrong)


def test_a_restored_postgresql_database(
    estate: Estate,
    packed: str,
    expected: Answers,
    known: Mapping[str, list[str]],
    postgres_database: Callable[[], str],
    start_server: ServerFactory,
    tmp_path: Path,
) -> None:
    """A server on a PostgreSQL database that was restored from SQLite answers as the first one, but for the same list."""
    uri = postgres_database()
    bundle.unpack(packed, tracking_uri=uri, artifact_root=tmp_path / "files")
    answers = every_answer(start_server(backend_store_uri=uri, extra=WORKSPACES).url, known=known)
    wrong = unlisted(expected, renamed(answers, places(estate, tmp_path / "files")), RESTORED_DATABASE)
    assert not wrong, "\n".join(wrong)


def test_a_restored_server(filled: tuple[Answers, Answers]) -> None:
    """A server that was filled over REST answers as the one it was filled from, but for new ids and a list."""
    wrong = unlisted(*filled, RESTORED_SERVER)
    assert not wrong, "\n".join(wrong)


# -- nothing is missed -------------------------------------------------------------------------------------------------


def rules() -> Iterator[tuple[str, str, str]]:
    """Every request that the installed release takes and that may be a read: function, method and path."""
    for rule in app.url_map.iter_rules():
        function = app.view_functions[rule.endpoint].__name__
        yield from ((function, method, rule.rule) for method in rule.methods or () if method in ("GET", "POST"))
    for path, operations in fast_app.openapi()["paths"].items():
        for method, operation in operations.items():
            if method in ("get", "post"):
                yield operation["operationId"], method.upper(), path


def takers(request: str) -> set[str]:
    """The functions that may take a request of ``every_answer``, in the one framework or the other."""
    method, path = request.split(" ")[:2]
    path = path.partition("?")[0]
    found = set()
    for pattern, operations in fast_app.openapi()["paths"].items():
        form = re.sub(r"\\{artifact_path\\}", ".+", re.escape(pattern))
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", form), path) and method.lower() in operations:
            found.add(one_interface(operations[method.lower()]["operationId"]))
    with contextlib.suppress(HTTPException):
        endpoint, _ = app.url_map.bind("localhost").match(path, method)
        found.add(app.view_functions[endpoint].__name__)
    assert found, f"no server takes {request}"
    return found


def one_interface(function: str) -> str:
    """The name of a function without the prefix of its path: the user interface asks the same under another one."""
    return re.sub("_ajax_api_", "_api_", function)


def test_no_read_request_is_missed(expected: Answers, filled: tuple[Answers, Answers]) -> None:
    """Each read request of the installed release is asked under one of its paths, or stands in a list with a reason."""
    asked = {name for request in {*expected, *filled[1]} for name in takers(request)}
    missed, used = set(), set()
    for function, method, path in rules():
        listed = any(re.search(pattern, text) for pattern in NOT_ASKED for text in (function, f"{method} {path}"))
        if not (one_interface(function) in asked or listed or (method == "POST" and WRITES.search(function))):
            missed.add(f"{method} {path} ({function})")
        used |= {pattern for pattern in NOT_ASKED for text in (function, f"{method} {path}") if re.search(pattern, text)}
    assert missed == set()
    assert used == set(NOT_ASKED)
