"""The registry of skills, which MLflow has since 3.18."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Json, KeyValue, Milliseconds, Record, Text
from mlflow_bundle.entities._models import Alias

__all__ = ["Skill", "SkillVersion"]


class Skill(Record, frozen=True, tag="skill"):
    """A skill of the registry. ``organization`` is empty where it belongs to none, ``icons`` is a JSON text."""

    name: str
    organization: str = ""
    workspace: Text = UNSET
    description: Text = UNSET
    icons: Json = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
    tags: tuple[KeyValue, ...] = ()
    aliases: tuple[Alias, ...] = ()


class SkillVersion(Record, frozen=True, tag="skill_version"):
    """A version of a skill. ``source`` is where its content lies: a repository, an image, a ZIP file, or, where ``source_type``
    is ``mlflow``, the artifacts of the server. ``digest`` is MLflow's, of the whole content, in hex."""

    name: str
    version: int
    organization: str = ""
    workspace: Text = UNSET
    source_type: Text = UNSET
    source: Text = UNSET
    ref: Text = UNSET
    subpath: Text = UNSET
    digest: Text = UNSET
    status: Text = UNSET
    created_by: Text = UNSET
    created_at: Milliseconds = UNSET
    last_updated_by: Text = UNSET
    last_updated_at: Milliseconds = UNSET
    tags: tuple[KeyValue, ...] = ()
