"""One HTML file with everything in it. Only the scripts that were put in may run: the page names their digests."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._report._data import page_data

__all__ = ["report_html"]

_SCRIPTS = ("vendor/echarts.common.min.js", "vendor/tabulator.min.js", "page.js")
_STYLES = ("vendor/tabulator_simple.min.css", "page.css")


def report_html(archive: Bundle) -> str:
    """A page about a snapshot that opens from disk: experiments, runs, curves, files, models, where it all comes from.

    Memory grows with what the page shows, which is limited; the page says what it leaves out.

    Raises:
        CorruptError: something that it shows is damaged.
    """
    scripts = [_asset(name) for name in _SCRIPTS]
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    parts = {
        "POLICY": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digests}",
        "TITLE": html.escape(archive.url),
        "STYLE": "\n".join(_asset(name) for name in _STYLES),
        "DATA": _json(page_data(archive)),
        "SCRIPTS": "".join(f"<script>{text}</script>\n" for text in scripts),
    }
    before, *rest = _asset("page.html").split("@PART@")
    named = (part.partition("@") for part in rest)
    return before + "".join(parts[name] + after for name, _, after in named)


def _asset(name: str) -> str:
    return files("mlflow_bundle._report").joinpath(name).read_text("utf-8")


def _json(data: Any) -> str:
    """JSON that ends no element of HTML, whatever is in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
