"""`ls --kind` and `show` know every kind of entity."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mlflow_bundle import cli
from tests.tracking.test_estate import packed

__all__ = ["packed"]

pytestmark = pytest.mark.slow


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that succeeds writes to stdout."""

    def run(*arguments: str) -> str:
        assert cli.run(arguments) == 0
        return capsys.readouterr().out

    return run


def test_ls_lists_the_entities_of_a_kind(packed: str, told: Callable[..., str]) -> None:
    """Every version is listed by its id, with its state where that is asked for."""
    lines = told("ls", packed, "--kind", "model_version").splitlines()
    assert "churn.v1/10" in {line.split("  ")[0] for line in lines}
    assert len(lines) == 25
    assert "Deleted_Internal" in told("ls", packed, "--kind", "model_version", "--long") or "READY" in told(
        "ls", packed, "--kind", "model_version", "--long"
    )


def test_show_tells_everything_of_an_entity(packed: str, told: Callable[..., str]) -> None:
    """A trace is shown with its judgements and the number of its spans; a version with its source."""
    entries = json.loads(told("ls", packed, "--kind", "trace", "--json"))["entries"]
    shown = [json.loads(told("show", packed, entry["id"], "--json")) for entry in entries]
    assert sum(document["spans"] for document in shown) == 11
    assert sum(len(document["assessments"]) for document in shown) == 8
    assert "models:/m-" in told("show", packed, "churn.v1/10")
