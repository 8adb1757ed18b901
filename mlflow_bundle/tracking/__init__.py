"""MLflow on both ends of an archive: sources to pack from, targets to unpack to."""

from mlflow_bundle.tracking._diff import diff
from mlflow_bundle.tracking._entities import EntityOutcome
from mlflow_bundle.tracking._pack import PackReport, pack
from mlflow_bundle.tracking._unpack import unpack
from mlflow_bundle.tracking._unpack_report import ExperimentOutcome, UnpackReport

__all__ = ["EntityOutcome", "ExperimentOutcome", "PackReport", "UnpackReport", "diff", "pack", "unpack"]
