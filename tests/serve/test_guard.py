"""Which requests the guard before a served archive takes for reading."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from mlflow_bundle.tracking.serve._guard import ReadOnly

QUESTIONS = (
    "/graphql",
    "/api/2.0/mlflow/runs/search",
    "/ajax-api/2.0/mlflow/experiments/search",
    "/ajax-api/2.0/mlflow/experiments/search-datasets",
    "/api/3.0/mlflow/traces/search",
    "/api/3.0/mlflow/traces/search/",
    "/ajax-api/3.0/mlflow/traces/batchGetInfos",
    "/ajax-api/3.0/jobs/search",
    "/ajax-api/3.0/mlflow/ui-telemetry",
)
WRITES = (
    "/api/2.0/mlflow-artifacts/mpu/create/x/graphql",
    "/api/2.0/mlflow-artifacts/mpu/complete/a/api/2.0/mlflow/runs/search",
    "/ajax-api/2.0/mlflow-artifacts/mpu/abort/x/ajax-api/3.0/mlflow/ui-telemetry",
    "/x/graphql",
    "/graphql/x",
    "/graphql\n",
    "/api/2.0/mlflow/runs/search\n",
    "/api/2.0/mlflow/runs/create",
    "/api/2.0/mlflow/runs/search/x",
    "/gateway/graphql/invocations",
    "",
)


def let_through(paths: tuple[str, ...], *, method: str = "POST", static: str = "", root: str = "") -> list[str]:
    """Those of some paths that are let through; the others are answered with 403."""
    passed, answered = [], []

    async def inner(scope: Scope, _: Receive, __: Send) -> None:
        passed.append(scope["path"].removeprefix(root))

    async def send(message: Message) -> None:
        answered.append(message.get("status"))

    async def receive() -> Message:
        raise AssertionError

    for path in paths:
        scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
        asyncio.run(ReadOnly(inner, prefix=static)(scope, receive, send))
    assert answered.count(403) == len(paths) - len(passed)
    return passed


@pytest.mark.parametrize(("static", "root"), [("", ""), ("/mlflow/x", ""), ("", "/behind"), ("/mlflow", "/behind")])
def test_only_whole_paths_are_questions(static: str, root: str) -> None:
    """Every question that MLflow asks with POST passes, with the prefixes that a server can have; what only ends like one, such
    as the upload of a file with that name, does not."""
    questions = tuple(static + path for path in QUESTIONS)
    writes = tuple(static + path for path in WRITES)
    assert let_through(questions + writes, static=static, root=root) == list(questions)


def test_a_prefix_that_the_server_does_not_have() -> None:
    """A path behind another prefix than that of the server is no question."""
    paths = ("/other/graphql", "/mlflow/mlflow/graphql", "/mlflow/graphql")
    assert let_through(paths, static="/mlflow") == ["/mlflow/graphql"]


def test_methods() -> None:
    """What does not write by its method passes everywhere; questions are asked with POST."""
    assert let_through(WRITES, method="GET") == list(WRITES)
    assert let_through(QUESTIONS, method="PUT") == let_through(QUESTIONS, method="DELETE") == []
