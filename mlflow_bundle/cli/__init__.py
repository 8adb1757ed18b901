"""The command ``mlflow-bundle``: data on stdout, everything else on stderr, and an exit code that says what happened.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished but incomplete, 4 problems or differences found, 10 no bundle there,
130 interrupted (129 by SIGHUP, 143 by SIGTERM), 141 the reader of stdout went away.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import click
from click.shell_completion import shell_complete

from mlflow_bundle.__about__ import __version__
from mlflow_bundle.cli._output import State, StdoutError, clean, flush, json_text, plain, problem_lines, say
from mlflow_bundle.cli.cat import cat
from mlflow_bundle.cli.demo import demo
from mlflow_bundle.cli.diff import diff
from mlflow_bundle.cli.get import get
from mlflow_bundle.cli.log import log
from mlflow_bundle.cli.ls import ls
from mlflow_bundle.cli.pack import pack
from mlflow_bundle.cli.query import query
from mlflow_bundle.cli.report import report
from mlflow_bundle.cli.serve import serve
from mlflow_bundle.cli.show import show
from mlflow_bundle.cli.unpack import unpack
from mlflow_bundle.cli.verify import verify
from mlflow_bundle.errors import BundleError, BundleNotFoundError, CannotHoldError, IncompleteError, UsageError

__all__ = ["main", "run"]

NAME: Final = "mlflow-bundle"
FAILED, WRONG_USAGE, NO_BUNDLE, INTERRUPTED, PIPE_CLOSED = 1, 2, 10, 130, 141
_COMPLETE: Final = "_MLFLOW_BUNDLE_COMPLETE"
_INTERRUPTED_HINT: Final = "running the same command again continues; what was committed or restored stays"


class _InOrder(click.Group):
    """Lists its commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of definition."""
        del ctx
        return list(self.commands)


@click.group(
    cls=_InOrder,
    commands=[pack, unpack, verify, ls, show, cat, get, log, query, serve, diff, report, demo],
    context_settings={"auto_envvar_prefix": "MLFLOW_BUNDLE", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option can be set by an environment variable: MLFLOW_BUNDLE_PACK_JOBS is `pack --jobs`. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished but incomplete, 4 problems or differences found, "
    "10 no bundle there, 130 interrupted (129 SIGHUP, 143 SIGTERM), 141 the reader of stdout went away.",
)
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error and what libraries log.")
@click.pass_obj
def _command(state: State, *, debug: bool) -> None:
    """Archive MLflow experiments and runs: pack, verify, look inside, restore."""
    state.debug = state.debug or debug


def main() -> NoReturn:
    """The process ``mlflow-bundle``: run the command of its arguments and end with its exit code."""
    code = run(sys.argv[1:])
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    # Not by the usual way: threads of Arrow that let go of memory while the interpreter ends would abort the process.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments. Returns the exit code and raises nothing."""
    given = list(arguments) or ["--help"]
    if instruction := os.environ.get(_COMPLETE):
        code: int = shell_complete(_command, {}, NAME, _COMPLETE, instruction)
        sys.stdout.flush()
        return code
    state = State(json="--json" in given, debug="--debug" in given)
    _settle(state)
    try:
        code = _invoke(given, state)
        flush()
    except StdoutError as error:
        _abandon_stdout()
        if isinstance(error.error, BrokenPipeError):
            return PIPE_CLOSED
        _report(state, "stdout", f"stdout cannot be written: {error.error.strerror or error}")
        code = FAILED
    except KeyboardInterrupt as error:
        # Where another signal than that of Ctrl-C did it, it says so.
        code = int(getattr(error, "exit_code", INTERRUPTED))
        with suppress(OSError, StdoutError):  # of a terminal that was closed
            _report(state, "interrupted", "interrupted", hint=_INTERRUPTED_HINT)
    return code


def _settle(state: State) -> None:
    """Output that every terminal can take, and no talk of libraries without ``--debug``."""
    # A stream that was closed before the start is None: data must not get lost in it (a write fails), talk may.
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if not state.debug:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        logging.getLogger("alembic").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")


def _invoke(arguments: Sequence[str], state: State) -> int:
    """Run the command; say in one sentence what went wrong, if something did."""
    try:
        with _command.make_context(NAME, list(arguments), obj=state) as context:
            result = _command.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        _report(state, "usage", error.format_message(), hint=f"`{where.command_path if where else NAME} --help` explains it")
        return WRONG_USAGE
    except BundleError as error:
        _report_error(state, error)
        return NO_BUNDLE if isinstance(error, BundleNotFoundError) else WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except StdoutError:
        raise
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        _report(state, "os", f"{error.strerror or error}{name}", hint="check that place, then run again")
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last resort of a command: a sentence instead of a traceback
        hint = "this is a defect of mlflow-bundle; --debug shows more"
        _report(state, "unexpected", f"unexpected {type(error).__name__}: {error}", hint=hint)
        return FAILED
    return int(result or 0)


def _report_error(state: State, error: BundleError) -> None:
    problems = error.problems if isinstance(error, IncompleteError | CannotHoldError) else ()
    place = "\n".join(getattr(error, "__notes__", ()))
    _report(state, error.code, error.message, hint=error.hint, problems=problems, place=place)


def _report(
    state: State, code: str, message: str, *, hint: str | None = None, problems: Sequence[Any] = (), place: str = ""
) -> None:
    """An error on stderr: its sentence, the lines of its ``place`` and the next step, or one JSON document."""
    trace = traceback.format_exc() if state.debug and sys.exc_info()[0] is not None else ""
    if state.json:
        document = {"code": code, "message": message, "hint": hint}
        document |= {"problems": plain(problems)} if problems else {}
        document |= {"place": place} if place else {}
        document |= {"traceback": trace} if trace else {}
        say(json_text({"error": document}))
        return
    if trace:
        say("\n".join(clean(line) for line in trace.splitlines()))
    for line in problem_lines(problems):
        say(line)
    say(f"{NAME}: {clean(message)}")
    for line in place.splitlines():
        say(clean(line))
    if hint:
        say(f"hint: {clean(hint)}")


def _abandon_stdout() -> None:
    """Nobody reads stdout any more: whatever is left in its buffer goes nowhere, quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
