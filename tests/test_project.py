"""What the project says about itself is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import mlflow_bundle

ROOT = Path(__file__).parent.parent


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_and_the_ci_run_the_same_tests() -> None:
    """The command that sets up and runs the tests stands in the README just as ``.ci/run`` runs it at its end."""
    command = text_of(".ci/run").splitlines()[-1]
    assert command.startswith("python3 -m venv")
    assert "pytest" in command
    assert command in text_of("README.md").splitlines() or f"$ {command}" in text_of("README.md").splitlines()


def test_the_changelog_knows_this_version() -> None:
    """The version of the package has an entry in the changelog."""
    assert f"## [{mlflow_bundle.__version__.partition('.dev')[0]}]" in text_of("CHANGELOG.md")


def test_every_supported_python_is_tested() -> None:
    """The continuous integration runs on each version that the package names."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = {c.rpartition(" ")[2] for c in project["classifiers"] if re.fullmatch(r".* :: 3\.\d+", c)}
    assert set(re.findall(r'"(3\.\d+)"', text_of(".github/workflows/ci.yml"))) == named
    assert project["requires-python"] == f">={min(named, key=lambda version: int(version.partition('.')[2]))}"


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "spec/v1.md"])
def test_links_inside_the_project_lead_somewhere(name: str) -> None:
    """Every relative link of a page names a file that exists."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(name)):
        assert ((ROOT / name).parent / target).exists(), target
