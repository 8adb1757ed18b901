"""The process of the command ``mlflow-bundle``, which is ``python -m mlflow_bundle`` as well."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Load the command and run it. Loading takes half a second, in which Ctrl-C is no reason for a traceback either."""
    try:
        from mlflow_bundle.cli import main as command  # noqa: PLC0415

        command()
    except KeyboardInterrupt:
        print("mlflow-bundle: interrupted", file=sys.stderr, flush=True)  # noqa: T201 - what would print it is not loaded
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
