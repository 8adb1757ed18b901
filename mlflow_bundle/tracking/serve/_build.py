"""Makes the SQLite database of MLflow that holds the metadata of a snapshot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from fsspec.callbacks import Callback

from mlflow_bundle.records import Problem
from mlflow_bundle.tracking.database._connection import parse_uri
from mlflow_bundle.tracking.database._schema import prepare_database
from mlflow_bundle.tracking.serve._load import load
from mlflow_bundle.tracking.serve._process import in_own_process
from mlflow_bundle.tracking.serve._whole import is_whole, keep

__all__ = ["build"]

#: What this needs of MLflow, and what its server needs, which asks for its settings when it gets the first question. That it
#: runs in a server it is told by uvicorn.
_STORE: Final = ("mlflow.store.tracking.sqlalchemy_store",)
_SERVER: Final = ("uvicorn", "mlflow.server.fastapi_app")
_FILL: Final = ("mlflow_bundle.tracking.serve._fill", "fill")


def build(
    bundle: str,
    snapshot: str,
    path: Path,
    *,
    storage_options: Mapping[str, Any] | None,
    empty: Path,
    root: str,
    to_serve: bool,
    callback: Callback,
) -> tuple[Problem, ...]:
    """Make the database ``path``, a new file in a folder that nobody else writes into. ``empty`` is where MLflow's database
    with nothing in it is kept, made where it is not there. ``root`` is where the new one says that all artifacts lie: below
    it, as MLflow lays them out. Where it is made ``to_serve``, MLflow's server is imported meanwhile, and told not to send
    telemetry. Returns what MLflow's database cannot hold."""
    if to_serve:
        # The first import of MLflow starts it, and writes below the user's home.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Seconds, in which another process fills the database.
    with ThreadPoolExecutor(1, thread_name_prefix="mlflow-bundle-import") as other:
        importing = other.submit(lambda: [load(module) for module in _STORE])
        if to_serve:
            # What cannot be imported is told when the server is to be started.
            other.submit(lambda: [load(module) for module in _SERVER])
        if not is_whole(empty):
            importing.result()
            made = path.with_name(empty.name)
            prepare_database(parse_uri(f"sqlite:///{made}"))
            keep(made, empty)
        shutil.copyfile(empty, path)
        problems = in_own_process(_FILL, bundle, snapshot, path, root, storage_options, callback=callback)
        importing.result()
    _ask_first(path, root)
    return tuple(problems)


def _ask_first(path: Path, root: str) -> None:
    """Let MLflow write what it writes when it is asked for the first time: the default question of every experiment."""
    from mlflow.entities import ViewType  # noqa: PLC0415
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415 - it comes with the server too

    if not hasattr(SqlAlchemyStore, "_ensure_default_label_schema"):
        return

    class Store(SqlAlchemyStore):  # type: ignore[misc]
        """One that sees all workspaces at once, which the usual one refuses to open."""

        def _initialize_store_state(self) -> None:
            pass

    store = Store(f"sqlite:///{path}", root)
    token: str | None = None
    while True:
        page = store.search_experiments(view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token)
        for experiment in page:
            store.list_label_schemas(experiment.experiment_id, max_results=1)
        if not (token := page.token):
            break
    store.engine.dispose()
