"""From a tracking URI to a source or a target."""

from __future__ import annotations

import pytest

from mlflow_bundle.errors import UsageError
from mlflow_bundle.tracking._connect import connect_target


@pytest.mark.parametrize("option", ["artifact_root", "artifacts_destination"])
def test_a_server_takes_no_place_for_files(option: str) -> None:
    """What says where the files of a database go is refused for a server, before it is asked anything. It is named as Python
    and the command call it."""
    with pytest.raises(UsageError, match=rf"{option} \(--{option.replace('_', '-')}\) is for databases"):
        connect_target("http://nobody.invalid", bundle_id="test", **{option: "/place"})  # type: ignore[arg-type]
