"""Loads modules of MLflow, as quickly as it can be done."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType

__all__ = ["load"]


def load(module: str) -> ModuleType:
    """Import a module. What an import makes stays: looking for garbage in it takes a fifth of the time, and finds nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
