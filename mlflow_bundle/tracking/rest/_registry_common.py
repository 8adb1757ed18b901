"""What the writers of registered models and of their versions share: what is at the server, and what it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import Alias, KeyValue, ModelVersion, RegisteredModel
from mlflow_bundle.kinds import PROMPT_TAG
from mlflow_bundle.tracking._port import SOURCE_TAG_PREFIX, IdMap
from mlflow_bundle.tracking._references import EXPERIMENTS_OF_PROMPT, prompt_experiments
from mlflow_bundle.tracking._rest import API, RefusedError
from mlflow_bundle.tracking.rest._expected import keep_earlier
from mlflow_bundle.tracking.rest._limits import Limits
from mlflow_bundle.tracking.rest._road import Server

__all__ = ["PROMPT_TAG", "RESERVED_ALIAS", "Answer", "Registry", "TargetModel", "aliases_of", "as_list", "is_prompt"]

#: Aliases that no user may set.
RESERVED_ALIAS: Final = re.compile(r"latest|v\d+", re.IGNORECASE)
_PROMPTS: Final = f"tags.`{PROMPT_TAG}` = 'true'"
_RUNS_OF_PROMPT: Final = "mlflow.prompt.associatedRunIds"
_TAG_CHARS: Final = {"registered_model": 5_000, "model_version": 100_000}
_MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
_UNKNOWN_FILTER: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
#: Up to so many models are asked for one by one, more by listing all.
_FEW: Final = 20
_MODELS_PER_PAGE: Final = 1_000
_VERSIONS_PER_PAGE: Final = 5_000

Answer = dict[str, Any]


@dataclass(slots=True)
class TargetModel:
    """A registered model at the target. ``set_aliases`` are those that it had, ``there`` its versions by number as they were
    read last. ``used`` is the highest number that is known to be used up, ``next`` the one that the next version gets, None
    where that is not known: numbers of deleted versions are used up and invisible. Of the placeholders in ``there`` nothing
    is kept but their numbers. ``sent_aliases`` are those that were set. ``digest`` stands for the archived model, to be noted
    when its aliases are there, and is empty where nothing is to be noted; ``is_old``: an earlier restore made the model of
    another snapshot, so that its aliases move. ``failed``: not all its versions could be restored."""

    name: str
    prompt: bool
    aliases: tuple[Alias, ...]
    set_aliases: Mapping[str, int] = field(default_factory=dict)
    used: int = 0
    next: int | None = None
    there: dict[int, Answer] = field(default_factory=dict)
    sent_aliases: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    is_old: bool = False
    failed: bool = False

    @property
    def has_aliases(self) -> bool:
        """Whether all aliases of the archived model that a server takes are set."""
        there = {**self.set_aliases, **self.sent_aliases}
        wanted = [alias for alias in self.aliases if not RESERVED_ALIAS.fullmatch(alias.alias)]
        return all(there.get(alias.alias) == alias.version for alias in wanted)


class Registry:
    """Asks a server for registered models and versions, many at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits: Limits | None = None

    def refusal(self, kind: str, tag: KeyValue) -> str | None:
        """Why the server takes no such tag, or None."""
        if self._limits is None:
            self._limits = Limits.of(self._server.client.version())
        if len(tag.value) > _TAG_CHARS[kind]:
            return f"it has {len(tag.value)} characters, the server takes {_TAG_CHARS[kind]}"
        return self._limits.key(tag.key)

    def tags(self, record: RegisteredModel | ModelVersion, ids: IdMap, kept: Sequence[str]) -> dict[str, str]:
        """The tags that the server takes, with the ids of the target, and where the entity comes from."""
        kind = str(record.__struct_config__.tag)
        tags = {tag.key: tag.value for tag in record.tags if self.refusal(kind, tag) is None}
        ours = self._server.source_tags(record, *kept)
        keep_earlier(tags, ours)
        tags |= ours
        return tags | _rewritten(tags, ids)

    def models(self, names: Sequence[str]) -> dict[str, Answer]:
        """Those of these models and prompts that are at the server, by name."""
        if len(names) <= _FEW:
            found = bounded_map(self._server.executor, self.model, names, self._server.window)
            return {model["name"]: model for model in found if model is not None}
        wanted = set(names)
        listed = self._listed("registered-models/search", "registered_models", _MODELS_PER_PAGE, "")
        return {model["name"]: model for model in listed if model["name"] in wanted}

    def model(self, name: str) -> Answer | None:
        """The registered model of this name, or None."""
        return self._one("registered-models/get", {"name": name}, "registered_model")

    def versions(self, model: TargetModel, wanted: Sequence[int] = ()) -> dict[int, Answer]:
        """The versions of a model by number. Those ``wanted`` that are not listed are asked for one by one."""
        found: dict[int, Answer] = {}
        if "'" not in model.name:
            text = f"name = '{model.name}'"
            for version in self._listed("model-versions/search", "model_versions", _VERSIONS_PER_PAGE, text, model.prompt):
                found[int(version["version"])] = version
        for number in wanted:
            if number not in found and (one := self._version(model.name, number)) is not None:
                found[number] = one
        return found

    def _version(self, name: str, number: int) -> Answer | None:
        return self._one("model-versions/get", {"name": name, "version": str(number)}, "model_version")

    def _one(self, endpoint: str, params: Mapping[str, str], member: str) -> Answer | None:
        try:
            return cast("Answer", self._server.get(endpoint, params)[member])
        except RefusedError as error:
            if error.error_code == _MISSING:
                return None
            raise

    def _listed(self, endpoint: str, member: str, size: int, text: str, prompts: bool | None = None) -> list[Answer]:
        """A list of models or versions, page by page; ``prompts``: only those, None: with those, which nobody is shown
        who does not ask for them."""
        found: list[Answer] = []
        for asks_prompts in (False, True) if prompts is None else (prompts,):
            parts = [part for part in (text, _PROMPTS if asks_prompts else "") if part]
            params: dict[str, Any] = {"max_results": size, **({"filter": " AND ".join(parts)} if parts else {})}
            try:
                while True:
                    answer = self._server.client.get_json(API + endpoint, params)
                    found += answer.get(member, [])
                    if not answer.get("next_page_token"):
                        break
                    params["page_token"] = answer["next_page_token"]
            except RefusedError as error:
                # Releases that know no prompts may know no filters over tags either.
                if not asks_prompts or error.error_code not in _UNKNOWN_FILTER:
                    raise
        return found


def is_prompt(tags: Mapping[str, str]) -> bool:
    """Whether a registered model with these tags is a prompt."""
    return tags.get(PROMPT_TAG, "").lower() == "true"


def aliases_of(model: Answer) -> dict[str, int]:
    """The aliases of a registered model as a server answers it."""
    return {alias["alias"]: int(alias["version"]) for alias in model.get("aliases") or []}


def as_list(tags: Mapping[str, str]) -> list[KeyValue]:
    """Tags as requests have them."""
    return [KeyValue(key=key, value=value) for key, value in tags.items()]


def _rewritten(tags: Mapping[str, str], ids: IdMap) -> dict[str, str]:
    """The tags of a prompt that hold ids, with those of the target; the old texts go into source tags."""
    changed = {}
    if _RUNS_OF_PROMPT in tags:
        changed[_RUNS_OF_PROMPT] = ",".join(ids.new("run", run) for run in tags[_RUNS_OF_PROMPT].split(","))
    if EXPERIMENTS_OF_PROMPT in tags:
        changed[EXPERIMENTS_OF_PROMPT] = prompt_experiments(tags[EXPERIMENTS_OF_PROMPT], ids)[0]
    return changed | {SOURCE_TAG_PREFIX + "tags." + key: tags[key] for key in changed}
