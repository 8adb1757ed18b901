"""Writes spec/v1/schema/*.json from mlflow_bundle/records.py. ``--check`` only says whether they are up to date (exit code)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from mlflow_bundle.records import KINDS, Marker, ObjectRef, Snapshot

FOLDER: Final = Path(__file__).parent / "v1" / "schema"
DOCUMENTS: Final = {"marker": Marker, "snapshot": Snapshot, "object": ObjectRef, **{k.name: k.type for k in KINDS.values()}}
_BASE: Final = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """The text of each schema file, by its name."""
    (*references,), components = msgspec.json.schema_components(DOCUMENTS.values(), ref_template="#/$defs/{name}")
    texts = {}
    for name, reference in zip(DOCUMENTS, references, strict=True):
        title = reference["$ref"].rpartition("/")[2]
        document = {"$schema": _BASE, "$id": f"{name}.json", **components[title]}
        needed = _needed(components[title], components)
        if needed:
            document["$defs"] = {key: components[key] for key in sorted(needed)}
        texts[f"{name}.json"] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return texts


def _needed(part: Any, components: dict[str, Any]) -> set[str]:
    """The names of all definitions that a schema refers to, directly or not."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            name = str(item.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found.add(name)
                waiting.append(components[name])
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return found


def stale() -> list[str]:
    """The schema files that are missing, superfluous, or not what ``records.py`` says."""
    wanted = schemas()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        for name in stale():
            print(f"{name} is not up to date: run python spec/generate_schemas.py")
        return 1 if stale() else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, text in schemas().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
