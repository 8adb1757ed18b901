"""The names and signatures that users rely on change only on purpose."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import mlflow_bundle as bundle
from mlflow_bundle import errors

NAMES = [
    "AuthError",
    "Bundle",
    "BundleError",
    "BundleNotFoundError",
    "CannotHoldError",
    "CommitUnknownError",
    "CorruptError",
    "Diff",
    "Experiment",
    "IncompleteError",
    "LimitError",
    "Limits",
    "NotFoundError",
    "PackReport",
    "Problem",
    "Run",
    "ServerError",
    "Snapshot",
    "StorageError",
    "Targets",
    "UnpackReport",
    "UnsupportedError",
    "UsageError",
    "VerifyReport",
    "__version__",
    "diff",
    "open",
    "pack",
    "report_html",
    "unpack",
    "verify",
]

PARAMETERS = {
    "open": "url snapshot storage_options limits",
    "pack": "experiment bundle tracking_uri run filter since until lifecycle descendants model prompt logged_model "
    "allow_partial full storage_options artifacts_destination artifact_storage_options jobs callback targets limits",
    "diff": "before after before_snapshot after_snapshot storage_options artifacts_destination artifact_storage_options jobs "
    "callback",
    "report_html": "archive",
    "verify": "url level subset snapshot all_snapshots storage_options limits",
    "unpack": "bundle tracking_uri experiment run filter since until lifecycle descendants model prompt logged_model rename "
    "workspace online_scoring snapshot dry_run allow_partial artifact_root artifacts_destination storage_options "
    "artifact_storage_options jobs callback limits",
}

BUNDLE_MEMBERS = (
    "assessments at blobs close duckdb experiments files files_of files_of_entities kinds latest_metrics metric_rows metrics "
    "model_metrics model_versions models objects open_file params reader record records registered_models root_digest rows run "
    "runs series snapshot snapshot_id snapshots spans sql storage table tags traces url verify views_sql"
)


def test_the_exported_names_are_pinned() -> None:
    """Everything public is listed, exists, is shown by ``dir``, and nothing else is."""
    assert sorted(bundle.__all__) == bundle.__all__ == NAMES
    assert dir(bundle) == NAMES
    for name in NAMES:
        assert getattr(bundle, name) is not None
    assert set(errors.__all__) <= set(NAMES)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_pinned(name: str) -> None:
    """The parameters of the functions keep their names and order; all that are options are keyword-only."""
    signature = inspect.signature(getattr(bundle, name))
    assert " ".join(signature.parameters) == PARAMETERS[name]
    positional = {"open": 1, "verify": 1, "pack": 2, "unpack": 1, "diff": 2, "report_html": 1}[name]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[positional:])
    assert inspect.getdoc(getattr(bundle, name))


def test_the_members_of_a_bundle_are_pinned() -> None:
    """The public members of ``Bundle`` are these, each with a docstring."""
    members = [name for name in vars(bundle.Bundle) if not name.startswith("_")]
    assert " ".join(sorted(members)) == BUNDLE_MEMBERS
    assert all(inspect.getdoc(vars(bundle.Bundle)[name]) for name in members)


def test_every_error_is_a_bundle_error_with_a_code() -> None:
    """One ``except BundleError`` catches all; each class has a code of its own."""
    classes = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, bundle.BundleError) for kind in classes)
    assert len({kind.default_code for kind in classes}) == len(classes)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy module answers like any other."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(bundle, "nothing")  # noqa: B009 - the lazy lookup is what is tested


def test_the_module_runs_as_a_command() -> None:
    """``python -m mlflow_bundle`` is the command."""
    done = subprocess.run([sys.executable, "-m", "mlflow_bundle", "--version"], capture_output=True, text=True, check=True)
    assert bundle.__version__ in done.stdout
