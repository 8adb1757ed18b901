"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click

from mlflow_bundle.cli._output import State
from mlflow_bundle.errors import UsageError

__all__ = [
    "LocalPath",
    "artifact_storage_option",
    "bundle_argument",
    "common",
    "options_of",
    "pass_state",
    "progress_option",
    "renames_of",
    "selection",
    "snapshot_option",
    "storage_option",
    "tracking_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])

pass_state: Final = click.make_pass_decorator(State, ensure=True)


class _Lines(click.types.StringParamType):
    """Text; in an environment variable, several values are lines, because names may contain spaces."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.split("\n") if line]


LINES: Final = _Lines()


class LocalPath(click.Path):
    """A place of this machine, to write to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a URL would be taken for one."""
        if "://" in os.fspath(value):
            self.fail(f"{value!r} is a URL, and this is written to a local file or folder only: copy it from there", param, ctx)
        return super().convert(value, param, ctx)


def _flag(name: str, value: bool) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Keeps an option in the state, where also the report of an error finds it."""

    def keep(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            setattr(context.ensure_object(State), name, value)

    return keep


def common(function: Command) -> Command:
    """``--json`` and ``--debug``."""
    as_json = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_flag("json", True),
        help="One JSON document on stdout; errors as JSON on stderr.",
    )
    debug = click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_flag("debug", True),
        help="Show the traceback of an error and what libraries log.",
    )
    return as_json(debug(function))


def progress_option(function: Command) -> Command:
    """``--no-progress``."""
    return click.option(
        "--no-progress", is_flag=True, expose_value=False, callback=_flag("progress", False), help="No progress bars on stderr."
    )(function)


def bundle_argument(function: Command) -> Command:
    """The bundle: a folder, a URL, or a ZIP file."""
    return click.argument("bundle", metavar="BUNDLE")(function)


def snapshot_option(function: Command) -> Command:
    """``--snapshot``."""
    return click.option(
        "--snapshot", metavar="ID", help="A snapshot by the beginning of its name, id or root digest. [default: the newest]"
    )(function)


def storage_option(function: Command) -> Command:
    """``--storage-option``."""
    return click.option(
        "--storage-option",
        "storage_option",
        metavar="KEY=VALUE",
        type=LINES,
        multiple=True,
        help="Option of the file system (fsspec) that BUNDLE lies on; VALUE is JSON where it reads as JSON.",
    )(function)


def artifact_storage_option(function: Command) -> Command:
    """``--artifact-storage-option``."""
    return click.option(
        "--artifact-storage-option",
        metavar="KEY=VALUE",
        type=LINES,
        multiple=True,
        help="Option of the file system that artifacts lie on.",
    )(function)


def tracking_option(function: Command) -> Command:
    """``--tracking-uri``."""
    return click.option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow: http://..., sqlite:///FILE, postgresql://..., or a file store such as ./mlruns. "
        "[default: MLFLOW_TRACKING_URI, else ./mlruns where it has experiments, else ./mlflow.db where it exists]",
    )(function)


def selection(function: Command) -> Command:
    """Which experiments, runs and models; no option means everything."""
    options = (
        click.option("--experiment", metavar="NAME|ID|GLOB", type=LINES, multiple=True, help="Only these; can be repeated."),
        click.option("--run", metavar="ID", type=LINES, multiple=True, help="Only these runs; can be repeated."),
        click.option("--filter", "filter", metavar="TEXT", help='Only runs that match, for example "metrics.loss < 0.1".'),
        click.option(
            "--since",
            metavar="TIME",
            help="Only runs started at TIME or later: 2026-11-01, 2026-11-01T12:00+01:00 (UTC without a zone).",
        ),
        click.option("--until", metavar="TIME", help="Only runs started at TIME or earlier; a date means its end."),
        click.option(
            "--lifecycle",
            type=click.Choice(["all", "active", "deleted"]),
            default="all",
            show_default=True,
            help="Only runs in this state.",
        ),
        click.option("--descendants", is_flag=True, help="Also all runs nested below the selected ones."),
        click.option(
            "--model",
            metavar="NAME[/VERSION|@ALIAS]",
            type=LINES,
            multiple=True,
            help="This registered model and what it needs: runs, logged models, their experiments; can be repeated.",
        ),
        click.option(
            "--prompt", metavar="NAME[/VERSION|@ALIAS]", type=LINES, multiple=True, help="This prompt; can be repeated."
        ),
        click.option(
            "--logged-model", metavar="ID", type=LINES, multiple=True, help="This logged model and its run; can be repeated."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _pairs(texts: Iterable[str], option: str) -> Iterable[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} {text!r} is not of the form KEY=VALUE", hint=f"for example {option} anon=true")
        yield key, value


def options_of(texts: Iterable[str], option: str = "--storage-option") -> dict[str, Any] | None:
    """``KEY=VALUE`` texts as file system options; a VALUE that reads as JSON is JSON."""
    options: dict[str, Any] = {}
    for key, value in _pairs(texts, option):
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options or None


def renames_of(texts: Iterable[str], names: Callable[[], Iterable[str]]) -> dict[str, str]:
    """``OLD=NEW`` texts as a mapping. With more than one ``=``, OLD is the longest of ``names`` that fits."""
    renames: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if text.count("=") > 1:
            known = max((name for name in names() if text.startswith(name + "=")), key=len, default=old)
            old, new = known, text[len(known) + 1 :]
        if not (old and equals and new):
            raise UsageError(f"--rename {text!r} is not of the form OLD=NEW", hint="for example --rename churn=churn-2025")
        if old in renames:
            raise UsageError(f"--rename names {old!r} twice")
        renames[old] = new
    return renames
