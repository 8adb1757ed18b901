"""``serve``: a snapshot of a bundle in MLflow's own server, read-only."""

from __future__ import annotations

from mlflow_bundle.tracking.serve._metadata import Metadata, metadata_of
from mlflow_bundle.tracking.serve._server import listening, serve

__all__ = ["Metadata", "listening", "metadata_of", "serve"]
