"""Where bundles lie whose root digest is all that an artifact URI of a served archive says."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlflow_bundle._digests import is_hex
from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import BundleError, NotFoundError, StorageError, UsageError

__all__ = ["BUNDLE", "CACHE", "OPTIONS", "absolute", "cache_folder", "options_of_environment", "place_of", "remember"]

#: Environment variables: the bundle that is meant, options of its file system as JSON, the folder for caches.
BUNDLE: Final = "MLFLOW_BUNDLE_LOCATION"
OPTIONS: Final = "MLFLOW_BUNDLE_STORAGE_OPTIONS"
CACHE: Final = "MLFLOW_BUNDLE_CACHE"


def cache_folder() -> Path:
    """The folder for what can be made again: ``MLFLOW_BUNDLE_CACHE``, else the user's cache folder of this system."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "mlflow-bundle"


def absolute(url: str) -> str:
    """A path or URL as it means the same from every working folder."""
    return url if "://" in url or "::" in url else str(Path(url).expanduser().absolute())


def remember(digest: str, url: str, folder: Path) -> None:
    """Note below a cache folder where the bundle with this root digest (hex) lies, without credentials.

    Raises:
        StorageError: the folder cannot be written.
    """
    place = folder / "places" / f"{digest}.json"
    unfinished = place.with_suffix(f".{secrets.token_hex(6)}.unfinished")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"bundle": redact_uri(absolute(url))}), encoding="utf-8")
        unfinished.replace(place)
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> StorageError:
    """What to say when a cache folder cannot be written."""
    return StorageError(
        f"the cache folder {folder} cannot be written: {error.strerror or error}",
        code="cache",
        hint=f"name another one with --cache or {CACHE}",
    )


def place_of(digest: str) -> str:
    """Where the bundle with this root digest lies: ``MLFLOW_BUNDLE_LOCATION``, else what was noted.

    Raises:
        NotFoundError: nobody knows.
    """
    if given := os.environ.get(BUNDLE):
        return given
    place = cache_folder() / "places" / f"{digest}.json"
    found = None
    if is_hex(digest) and place.is_file():
        try:
            found = json.loads(place.read_text(encoding="utf-8")).get("bundle")
        except (ValueError, OSError, AttributeError) as error:
            raise BundleError(
                f"{place} cannot be read: {error}", code="cache", hint="remove it, and run `serve` again"
            ) from error
    if not isinstance(found, str):
        raise NotFoundError(
            f"nobody on this machine knows where the bundle with the root digest {digest[:16]} lies",
            code="place-unknown",
            hint=f"set {BUNDLE} to its path or URL, or run `mlflow-bundle serve` on it once",
        )
    return found


def options_of_environment() -> Mapping[str, Any] | None:
    """The options of the bundle's file system from ``MLFLOW_BUNDLE_STORAGE_OPTIONS``, a JSON object.

    Raises:
        UsageError: it is none.
    """
    text = os.environ.get(OPTIONS)
    if not text:
        return None
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{OPTIONS} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise UsageError(f"{OPTIONS} is not a JSON object")
    return options
