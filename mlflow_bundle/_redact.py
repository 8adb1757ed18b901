"""Credentials are taken out of URIs before anything is stored or shown (spec/v1.md, section 9)."""

from __future__ import annotations

import json
import re
from typing import Final

__all__ = ["REDACTED", "redact_bytes", "redact_uri"]

REDACTED: Final = "REDACTED"

# In JSON a backslash or a quote of a text is a pair of bytes. A quote before one of these ends a text inside of the text.
_PAIR: Final = rb"\\\\|\\\"(?![\s,:;}\])>\"\\])"
_USER: Final = rb"(?:[^\s/?#@:\"\\]|" + _PAIR + rb")*"
# The password of ``scheme://user:password@host``; a user name alone is no secret, a lone token as user name is. What begins
# as a port and then has the escape of a line end, in JSON inside of JSON, is no password.
_USERINFO: Final = re.compile(
    rb"(?P<head>[A-Za-z][A-Za-z0-9+.\-]*://"
    + _USER
    + rb":)(?!\d{1,5}\\\\[nrt])(?P<secret>(?:[^\s/?#@\"\\]|"
    + _PAIR
    + rb")+)(?=@)"
    # In the URIs of databases, SQLAlchemy takes every other character as part of the password.
    rb"|(?P<head3>(?:postgres(?:ql)?|mysql|mariadb|mssql|oracle)(?:\+\w+)?://" + _USER + rb":)"
    rb"(?P<secret3>(?:[^\s@\"\\]|" + _PAIR + rb")+)(?=@)"
    rb"|(?P<head2>[A-Za-z][A-Za-z0-9+.\-]*://)(?P<token>(?:gh[pousr]_|github_pat_|glpat-|xox|dapi|x-token)[^\s/?#@:\"\\]*)(?=@)"
)
# Query parameters of presigned and SAS URLs that grant access.
_QUERY: Final = re.compile(
    rb"(?P<head>[?&](?:amp;)?(?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|X-Goog-Signature|X-Goog-Credential"
    rb"|AWSAccessKeyId|GoogleAccessId|Signature|sig|token|access_token|api_key|apikey|password|passwd|secret)=)"
    rb"(?P<secret>[^\s&#\"'<>\\]+)",
    re.IGNORECASE,
)


def redact_bytes(data: bytes) -> tuple[bytes, int]:
    """``data`` (JSON) without the credentials in its URIs, and how many were taken out."""
    found = 0
    if b"://" not in data:
        return data, 0

    def userinfo(match: re.Match[bytes]) -> bytes:
        nonlocal found
        if match["secret"] == REDACTED.encode():
            return match[0]
        found += 1
        return (match["head"] or match["head2"] or match["head3"]) + REDACTED.encode()

    def query(match: re.Match[bytes]) -> bytes:
        nonlocal found
        if match["secret"] == REDACTED.encode():
            return match[0]
        found += 1
        return match["head"] + REDACTED.encode()

    if b"@" in data:
        data = _USERINFO.sub(userinfo, data)
    if b"=" in data:
        data = _QUERY.sub(query, data)
    return data, found


def redact_uri(text: str) -> str:
    """``text`` with the passwords and access signatures of its URIs replaced by ``REDACTED``."""
    if "://" not in text:
        return text
    quoted = json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
    redacted: str = json.loads(redact_bytes(quoted)[0].decode("utf-8", "surrogatepass"))
    return redacted
