"""MLflow on both ends of an archive: sources to pack from, targets to unpack to."""

from mlflow_bundle.tracking._pack import PackReport, pack

__all__ = ["PackReport", "pack"]
