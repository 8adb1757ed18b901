"""Options: their values, their environment variables, and that every command has the common ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest

from mlflow_bundle.cli import _command
from mlflow_bundle.cli._options import options_of, renames_of
from mlflow_bundle.errors import UsageError
from tests.cli.conftest import Archived, Command

COMMANDS = ("pack", "unpack", "verify", "ls", "show", "cat", "get", "log", "query", "serve", "diff", "report", "demo")


def test_the_commands() -> None:
    """The documented commands are there, and no other."""
    assert tuple(_command.commands) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name: str) -> None:
    """Each command and each option has a help text, and every command has --json and --debug."""
    command = _command.commands[name]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert command.help
    assert all(option.help for option in options)
    assert {"--json", "--debug"} <= {text for option in options for text in option.opts}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_commands_that_open_a_bundle_take_its_options(name: str) -> None:
    """Every command with a bundle takes storage options, and every reading one a snapshot."""
    options = {text for parameter in _command.commands[name].params for text in parameter.opts}
    assert "--storage-option" in options
    assert ("--snapshot" in options) == (name not in ("pack", "diff"))


def test_options_come_from_the_environment(command: Command, archived: Archived, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_BUNDLE_<COMMAND>_<OPTION> sets an option; of several values each is a line, so that names may hold spaces."""
    monkeypatch.setenv("MLFLOW_BUNDLE_PACK_TRACKING_URI", archived.uri)
    monkeypatch.setenv("MLFLOW_BUNDLE_PACK_EXPERIMENT", "churn\na/b\n")
    monkeypatch.setenv("MLFLOW_BUNDLE_PACK_JSON", "1")
    done = command("pack", "nowhere", "--dry-run")
    assert [experiment["name"] for experiment in json.loads(done.out)["experiments"]] == ["churn", "a/b"]


def test_errors_are_json_when_the_environment_says_so(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error report obeys MLFLOW_BUNDLE_LS_JSON too."""
    monkeypatch.setenv("MLFLOW_BUNDLE_LS_JSON", "true")
    assert json.loads(command("ls", tmp_path).err)["error"]["code"] == "bundle-not-found"


def test_storage_options_are_json_where_they_read_as_json() -> None:
    """Numbers, booleans and objects keep their type; anything else is text, also one with ``=`` in it."""
    texts = ("anon=true", "port=3", 'client={"endpoint_url": "http://x"}', "key=a=b", 'id="12"', "empty=")
    assert options_of(texts) == {
        "anon": True,
        "port": 3,
        "client": {"endpoint_url": "http://x"},
        "key": "a=b",
        "id": "12",
        "empty": "",
    }
    assert options_of(()) is None


@pytest.mark.parametrize("text", ["key", "=value", ""])
def test_wrong_storage_options(text: str) -> None:
    """What is no pair is refused with the option's name."""
    with pytest.raises(UsageError, match=r"--storage-option .* is not of the form KEY=VALUE"):
        options_of([text])


def test_renames() -> None:
    """OLD=NEW, also where names hold ``=``: OLD is the longest archived name that fits."""
    assert renames_of(["a=b"], lambda: ["a"]) == {"a": "b"}
    assert renames_of(["lr=0.1=new"], lambda: ["lr", "lr=0.1"]) == {"lr=0.1": "new"}
    assert renames_of(["lr=x=y"], lambda: ["lr", "other"]) == {"lr": "x=y"}


@pytest.mark.parametrize("texts", [["a"], ["=b"], ["a="], ["a=b", "a=c"]])
def test_wrong_renames(texts: list[str]) -> None:
    """Half a pair, and one name renamed twice, are refused."""
    with pytest.raises(UsageError, match="--rename"):
        renames_of(texts, list)


def test_completion_needs_no_command(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The shell gets its completion script, and then the names that fit."""
    monkeypatch.setenv("_MLFLOW_BUNDLE_COMPLETE", "bash_source")
    assert b"_mlflow_bundle_completion" in command("ignored").raw
    monkeypatch.setenv("_MLFLOW_BUNDLE_COMPLETE", "bash_complete")
    monkeypatch.setitem(os.environ, "COMP_WORDS", "mlflow-bundle un")
    monkeypatch.setitem(os.environ, "COMP_CWORD", "1")
    assert command().out == "plain,unpack\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["query", "--views"], "--views"),
        (["report", "-o", "-"], "-o -"),
        (["ls", "--tree"], "--tree"),
    ],
)
def test_json_is_refused_where_something_else_was_asked_for(
    command: Command, archived: Archived, words: list[str], named: str
) -> None:
    """SQL, HTML and a tree are no JSON documents: the command says so instead of giving one of the two."""
    name, *options = words
    done = command(name, archived.bundle, *options, "--json")
    assert (done.code, done.out) == (2, "")
    error = json.loads(done.err)["error"]
    assert error["code"] == "usage"
    assert f"{named} and --json exclude each other" in error["message"]
    assert command(name, archived.bundle, *options).code == 0
