"""``python -m mlflow_bundle`` is the command ``mlflow-bundle``."""

from __future__ import annotations

import sys

from mlflow_bundle.cli import main

if __name__ == "__main__":
    sys.exit(main())
