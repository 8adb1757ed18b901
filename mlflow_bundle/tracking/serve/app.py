"""MLflow's server behind a guard that lets reading through and refuses everything that would write.

``app`` is the entry point ``mlflow-bundle`` of ``mlflow server --app-name``. It is loaded in the process of a server.
"""

from __future__ import annotations

import os
from typing import Final

from mlflow.server.fastapi_app import app as _mlflow

from mlflow_bundle.tracking.serve._guard import ReadOnly

__all__ = ["app"]

#: What `mlflow server --static-prefix` puts before its paths; it tells its processes so.
_PREFIX: Final = os.environ.get("_MLFLOW_STATIC_PREFIX", "").rstrip("/")


def _spare_the_first_write() -> None:
    """With workspaces, MLflow inserts experiment 0 on opening a database without looking whether it is there. It is."""
    try:
        from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore  # noqa: PLC0415
    except ModuleNotFoundError:  # a release without workspaces
        return
    WorkspaceAwareSqlAlchemyStore._ensure_default_workspace_experiment = lambda _: None  # noqa: SLF001


_spare_the_first_write()
app: Final = ReadOnly(_mlflow, prefix=_PREFIX)
