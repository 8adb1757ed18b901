"""What other libraries find through entry points: the fsspec protocol ``mlflow-bundle`` and MLflow's artifact repository."""

from __future__ import annotations

from mlflow_bundle.plugins._filesystem import BundleFileSystem

__all__ = ["BundleFileSystem"]
