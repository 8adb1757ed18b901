"""The marker, the snapshot documents and the listing of a bundle: is all there that a snapshot lists (spec/v1.md, 3 and 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from mlflow_bundle import _layout
from mlflow_bundle._codec import decode
from mlflow_bundle._digests import digest_of, hex_of
from mlflow_bundle._limits import Limits
from mlflow_bundle._manifest import FEATURES, Committed, snapshot_name, snapshot_stems
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._redact import redact_bytes
from mlflow_bundle._storage import Storage
from mlflow_bundle._verify._canonical import is_canonical
from mlflow_bundle._verify._contents import hash_object
from mlflow_bundle._verify._findings import Findings, code_of
from mlflow_bundle._verify._objects import Objects
from mlflow_bundle.errors import BundleError, CorruptError, LimitError, NotFoundError
from mlflow_bundle.records import FORMAT, LAYOUT, Marker, ObjectRef, Snapshot

__all__ = ["Documents", "check_document", "check_extras", "check_marker", "list_objects", "read_documents"]

_MARKER_MEMBERS: Final = frozenset({"format", "layout", "bundle_id", "hash", "requires"})
_REQUIRES_MEMBERS: Final = frozenset({"read", "write"})
_BUNDLE_ID: Final = 32
_THREADS: Final = 8


def check_marker(storage: Storage, findings: Findings, limits: Limits) -> Marker | None:
    """The marker, or None when it cannot be used. What is wrong with it is noted."""
    path = _layout.MARKER
    try:
        data = storage.read(path)
        marker = decode(data, Marker, name=path, limits=limits)
        if not is_canonical(data):  # decoding skips members that it does not know, whatever their bytes
            raise CorruptError(f"{path} is not canonical JSON")
        members = msgspec.json.decode(data)
        if not members.keys() >= _MARKER_MEMBERS or not members["requires"].keys() >= _REQUIRES_MEMBERS:
            raise CorruptError(f"{path} lacks one of its members")
    except BundleError as error:
        code = "E029" if code_of(error, "") == "E029" else "E010"
        findings.add(code, error.message, object=path)
        return None
    wrong = _version_problem(marker.layout, marker.requires.read)
    if marker.format != FORMAT:
        wrong = f"says the format {marker.format!r} instead of {FORMAT!r}"
    elif marker.hash != "sha256":
        wrong = f"says the hash {marker.hash!r}; layout {LAYOUT} knows sha256 only"
    elif len(marker.bundle_id) != _BUNDLE_ID or set(marker.bundle_id) - set("0123456789abcdef"):
        wrong = f"says the bundle id {marker.bundle_id!r}, which is none"
    if wrong:
        findings.add("E010", f"{path} {wrong}", object=path)
        return None
    return marker


def _version_problem(layout: int, features: Sequence[str]) -> str | None:
    """Why this release cannot vouch for a bundle."""
    if layout != LAYOUT:
        return f"says layout {layout}, and this release reads layout {LAYOUT}: a newer mlflow-bundle may read it"
    if unknown := sorted(set(features) - FEATURES):
        return f"needs features that this release lacks ({', '.join(unknown)}): a newer mlflow-bundle reads it"
    return None


# -- documents -----------------------------------------------------------------------------------------------------------


class Documents(msgspec.Struct):
    """The snapshot documents, newest first: ``whole`` can be used. ``all_whole``: so can every one that is there."""

    whole: list[Committed]
    all_whole: bool


def read_documents(storage: Storage, findings: Findings, limits: Limits) -> Documents:
    """Read every snapshot document. What is wrong with one as such is noted."""
    stems = snapshot_stems(storage)
    whole: list[Committed] = []
    torn: list[tuple[str, bytes]] = []
    all_whole = True
    with ThreadPoolExecutor(_THREADS, "mlflow-bundle-verify") as executor:
        for stem, data in bounded_map(executor, lambda stem: (stem, _read(storage, stem, limits)), stems, _THREADS):
            path = _layout.snapshot_path(stem)
            try:
                if isinstance(data, BundleError):
                    raise data
                if hex_of(data)[:16] != stem.rpartition("-")[2]:
                    torn.append((stem, data))
                    all_whole = False
                    continue
                whole.append(_committed(stem, path, data, limits))
            except BundleError as error:
                all_whole = False
                findings.add(code_of(error, "E020"), error.message, object=path)
    parents = {parent for committed in whole for parent in committed.snapshot.parents}
    for stem, data in torn:
        _note_torn(stem, data, findings, later=any(other.stem > stem for other in whole) and stem not in parents)
    return Documents(whole, all_whole)


def _read(storage: Storage, stem: str, limits: Limits) -> bytes | BundleError:
    path = _layout.snapshot_path(stem)
    try:
        size = storage.size(path) or 0
        if size > limits.snapshot_bytes:
            raise LimitError(f"{path} has {size:,} bytes, more than {limits.snapshot_bytes:,}", code="E093")
        return storage.read(path)
    except BundleError as error:
        return error


def _committed(stem: str, path: str, data: bytes, limits: Limits) -> Committed:
    header = decode(data, _Header, name=path, limits=limits)
    if wrong := _version_problem(header.layout, header.requires.read):
        raise CorruptError(f"{path} {wrong}", code="E010")
    return Committed(stem, digest_of(data), decode(data, Snapshot, name=path, limits=limits))


class _Requires(msgspec.Struct):
    read: tuple[str, ...] = ()


class _Header(msgspec.Struct):
    layout: int
    requires: _Requires


def _note_torn(stem: str, data: bytes, findings: Findings, *, later: bool) -> None:
    """A document that does not match its name. One that was cut off, before a later pack succeeded, was never committed."""
    path = _layout.snapshot_path(stem)
    try:
        msgspec.json.decode(data)
        cut = False
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        cut = not data.rstrip().endswith(b"}")
    if cut and later:
        findings.add("W013", f"{path} was cut off while it was written, and a later snapshot is whole", object=path)
    else:
        findings.add("E020", f"{path} does not match its name: it was never committed whole, or was damaged since", object=path)


def check_document(storage: Storage, committed: Committed, marker: Marker | None, findings: Findings) -> None:
    """What a snapshot document says of itself."""
    snapshot, path = committed.snapshot, _layout.snapshot_path(committed.stem)
    data = storage.read(path)

    def add(code: str, what: str) -> None:
        findings.add(code, f"{path} {what}", object=path)

    try:
        name = snapshot_name(snapshot.created_at, data)
    except (OverflowError, ValueError, OSError):
        name = ""
    if name != committed.stem:
        add("E023", "has another time in its name than inside")
    if snapshot.format != FORMAT or (marker is not None and snapshot.bundle_id != marker.bundle_id):
        add("E024", f"belongs to the bundle {snapshot.bundle_id!r}")
    if (snapshot.state == "partial") != bool(snapshot.problems):
        add("E028", f"is {snapshot.state} and lists {len(snapshot.problems):,} problems")
    if not is_canonical(data):
        add("E030", "is not canonical JSON")
    if redact_bytes(data)[1]:
        add("W090", "holds a URI with what looks like a credential")


# -- objects -------------------------------------------------------------------------------------------------------------


def list_objects(objects: Objects, committed: Committed, findings: Findings) -> tuple[list[ObjectRef], bool]:
    """Every object that a snapshot lists, each once, and whether all its lists could be read. What is not there, or not as
    long as it should be, is noted and counts as damaged."""
    refs: dict[str, ObjectRef] = {}

    def enlist(ref: ObjectRef) -> None:
        if ref.path in refs:
            findings.add("E027", f"snapshot {committed.stem} lists {ref.path} twice", object=ref.path)
        else:
            refs[ref.path] = ref
            _check_there(objects, ref, findings)

    whole = True
    for ref in (*committed.snapshot.objects, *committed.snapshot.object_lists):
        enlist(ref)
    for _, lines in objects.lines(committed.snapshot.object_lists, findings):
        whole &= lines is not None
        for ref in lines or ():
            enlist(ref)
    return list(refs.values()), whole


def _check_there(objects: Objects, ref: ObjectRef, findings: Findings) -> None:
    size = objects.listing.get(ref.path)
    if _layout.object_hex(ref.path) is None or _layout.object_role(ref.path) != ref.role:
        findings.add("E021", f"{ref.path!r} is not the path of an object of role {ref.role!r}", object=ref.path)
    elif size is None:
        findings.add("E025", f"{ref.path} is missing", object=ref.path)
    elif size != ref.size:
        findings.add("E026", f"{ref.path} has {size:,} bytes where the snapshot says {ref.size:,}", object=ref.path)
    else:
        return
    objects.damaged.add(ref.path)


def check_extras(objects: Objects, listed: Collection[str] | None, findings: Findings, *, deep: bool) -> None:
    """Note files that no snapshot needs. ``listed``: all that some snapshot lists, None when nobody knows. ``deep``: compare
    the bytes of objects that no snapshot lists with their names."""
    known = {_layout.MARKER, _layout.README, _layout.MIMETYPE_ENTRY}
    for path, size in objects.listing.items():
        if path in known or path.startswith(f"{_layout.STAGING}/") or _layout.snapshot_stem(path) is not None:
            continue
        if _layout.object_hex(path) is None:
            findings.add("W012", f"{path} is no part of a bundle", object=path)
        elif listed is not None and path not in listed:
            _check_unlisted(objects, path, size, findings, deep=deep)


def _check_unlisted(objects: Objects, path: str, size: int, findings: Findings, *, deep: bool) -> None:
    hasher = hashlib.sha256()
    try:
        if deep:
            objects.bytes += hash_object(objects.storage, path, hasher)
            objects.count += 1
    except NotFoundError:
        return  # somebody removed it meanwhile
    except BundleError as error:
        findings.add("W011", f"{path}, which no snapshot lists, cannot be read: {error.message}", object=path)
        return
    if deep and hasher.hexdigest() != _layout.object_hex(path):
        findings.add("W011", f"{path}, which no snapshot lists, does not match its name: remove it before a pack", object=path)
    else:
        findings.add("W010", f"no snapshot lists {path} ({size:,} bytes), as an interrupted pack leaves it", object=path)
