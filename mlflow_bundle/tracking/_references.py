"""References that MLflow keeps inside of texts, as they are at the target."""

from __future__ import annotations

from typing import Final

from mlflow_bundle.tracking._port import IdMap

__all__ = ["EXPERIMENTS_OF_PROMPT", "prompt_experiments"]

#: The tag of a prompt that lists the experiments that it belongs to.
EXPERIMENTS_OF_PROMPT: Final = "_mlflow_experiment_ids"
_LEFT_OUT: Final = "links of prompts to experiments that are not restored are left out"


def prompt_experiments(listed: str, ids: IdMap) -> tuple[str, list[str]]:
    """MLflow's list of the experiments of a prompt, as ``,1,2,``, by their ids at the target, and what is to be told of it.

    One that was not restored is left out: its number is that of a stranger at the target.
    """
    parts = [part and ids.find("experiment", part) for part in listed.split(",")]
    return ",".join(part for part in parts if part is not None), [_LEFT_OUT] if None in parts else []
