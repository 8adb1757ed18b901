"""``python -m mlflow_bundle`` is the command ``mlflow-bundle``."""

from __future__ import annotations

from mlflow_bundle.cli import main

if __name__ == "__main__":
    main()
