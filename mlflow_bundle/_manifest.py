"""The marker and the snapshots of a bundle: what makes objects an archive (spec/v1.md, sections 3 and 6)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from mlflow_bundle import _layout
from mlflow_bundle._codec import LinesWriter, decode, encode, read_lines
from mlflow_bundle._digests import digest_of, hex_of
from mlflow_bundle._limits import DEFAULT_LIMITS, Limits, Targets
from mlflow_bundle._readme import BUNDLE_README
from mlflow_bundle._storage import Storage
from mlflow_bundle.errors import (
    BundleNotFoundError,
    CorruptError,
    LimitError,
    NotFoundError,
    StorageError,
    UnsupportedError,
)
from mlflow_bundle.records import FORMAT, LAYOUT, Marker, ObjectRef, Snapshot

__all__ = [
    "Committed",
    "commit_snapshot",
    "ensure_marker",
    "find_snapshot",
    "is_meant",
    "load_snapshot",
    "marker_to_add_to",
    "may_be_meant",
    "objects_of",
    "parents",
    "read_marker",
    "read_verified",
    "snapshot_name",
    "snapshot_stems",
    "snapshots",
]

#: Features that this release can read and write beyond the base of layout 1.
FEATURES: Final = frozenset[str]()


class Committed(msgspec.Struct, frozen=True):
    """A snapshot as it lies in a bundle. ``stem`` is its name, ``digest`` the root digest: SHA-256 of its bytes."""

    stem: str
    digest: str
    snapshot: Snapshot


def read_marker(storage: Storage, *, limits: Limits = DEFAULT_LIMITS) -> Marker:
    """The marker of a bundle.

    Raises:
        BundleNotFoundError: there is none: nothing, an empty folder, something else, or a marker that is not one.
        UnsupportedError: a layout or a feature that this release does not know.
    """
    try:
        data = storage.read(_layout.MARKER)
    except BundleNotFoundError:
        raise
    except NotFoundError as error:
        raise BundleNotFoundError(
            f"there is no bundle at {storage.url} (no {_layout.MARKER} in it)",
            hint="check the path; `mlflow-bundle pack` makes a new bundle",
        ) from error
    try:
        marker = decode(data, Marker, name=_layout.MARKER, limits=limits)
    except (CorruptError, LimitError) as error:
        hint = f"take {_layout.MARKER} from a copy, or check the path: `mlflow-bundle verify` says what else is wrong"
        raise BundleNotFoundError(f"there is no bundle at {storage.url}: {error.message}", code="E010", hint=hint) from error
    if marker.format != FORMAT:
        raise BundleNotFoundError(f"{storage.url} is of the format {marker.format!r}, not an {FORMAT}", hint="check the path")
    _check_version(marker.layout, marker.requires.read, storage.url)
    if marker.hash != "sha256":
        raise UnsupportedError(f"{storage.url} uses the hash {marker.hash!r}; layout {LAYOUT} knows sha256 only")
    return marker


def _check_version(layout: int, features: tuple[str, ...], where: str) -> None:
    if layout != LAYOUT:
        raise UnsupportedError(
            f"{where} has layout {layout}; this release reads layout {LAYOUT}",
            hint="a newer mlflow-bundle reads it: pip install --upgrade mlflow-bundle",
            code="newer-layout",
        )
    unknown = sorted(set(features) - FEATURES)
    if unknown:
        raise UnsupportedError(
            f"{where} needs features that this release lacks: {', '.join(unknown)}",
            hint="a newer mlflow-bundle reads it: pip install --upgrade mlflow-bundle",
            code="unknown-feature",
        )


def ensure_marker(storage: Storage) -> Marker:
    """The marker of the bundle, made first where there is nothing yet.

    Raises:
        StorageError: there are other files already.
        UnsupportedError: this release must not write into that bundle.
    """
    marker = marker_to_add_to(storage)
    if marker is None:
        if storage.size(_layout.README) is None:
            storage.put_bytes(BUNDLE_README.encode(), _layout.README)
        storage.put_bytes(encode(Marker(format=FORMAT, layout=LAYOUT, bundle_id=uuid.uuid4().hex)), _layout.MARKER)
        # Another writer may have been first, with a marker of its own.
        marker = marker_to_add_to(storage) or read_marker(storage)
    return marker


def marker_to_add_to(storage: Storage) -> Marker | None:
    """The marker of a bundle that a snapshot can be added to; None where there is nothing and one can be made.

    Raises:
        StorageError: there are other files.
        UnsupportedError: this release must not write into that bundle.
    """
    if storage.size(_layout.MARKER) is None:
        foreign = [path for path in storage.list("") if not path.startswith(f"{_layout.STAGING}/")]
        ours = {_layout.README}
        if any(path not in ours and not path.startswith(f"{_layout.OBJECTS}/") for path in foreign):
            raise StorageError(
                f"{storage.url} holds other files and no bundle (for example {min(foreign)!r})",
                hint="pack into an empty or a new place",
                code="foreign-files",
            )
        return None
    marker = read_marker(storage)
    unknown = sorted(set(marker.requires.write) - FEATURES)
    if unknown:
        raise UnsupportedError(
            f"writing into {storage.url} needs features that this release lacks: {', '.join(unknown)}",
            hint="a newer mlflow-bundle writes it: pip install --upgrade mlflow-bundle; or pack into a new place",
            code="unknown-feature",
        )
    return marker


def snapshot_stems(storage: Storage) -> list[str]:
    """The names of the snapshot files, newest first. A file that is no snapshot's is not among them."""
    return list(_stems(storage))


def _stems(storage: Storage) -> dict[str, int]:
    """The names of the snapshot files, newest first, and their bytes."""
    found = ((_layout.snapshot_stem(path), size) for path, size in storage.list(_layout.SNAPSHOTS).items())
    return dict(sorted(((stem, size) for stem, size in found if stem is not None), reverse=True))


def load_snapshot(storage: Storage, stem: str, *, limits: Limits = DEFAULT_LIMITS, size: int | None = None) -> Committed:
    """One snapshot by its name; ``size`` is what a listing said of it.

    Raises:
        CorruptError: its bytes do not match its name (it was never committed, or was damaged since).
        UnsupportedError: it needs a newer release.
    """
    path = _layout.snapshot_path(stem)
    size = storage.size(path) if size is None else size
    if size is not None and size > limits.snapshot_bytes:
        raise LimitError(f"{path} has {size:,} bytes, more than {limits.snapshot_bytes:,}", code="E093")
    data = storage.read(path)
    if hex_of(data)[:16] != stem.rpartition("-")[2]:
        raise CorruptError(f"{path} does not match its name: it is torn or damaged", code="E020")
    header = decode(data, _Header, name=path, limits=limits)
    _check_version(header.layout, header.requires.read, f"snapshot {stem}")
    return Committed(stem, digest_of(data), decode(data, Snapshot, name=path, limits=limits))


class _Header(msgspec.Struct):
    """What must be understood of a snapshot before the rest is looked at."""

    layout: int
    requires: _HeaderRequires


class _HeaderRequires(msgspec.Struct):
    read: tuple[str, ...] = ()


def snapshots(storage: Storage, *, limits: Limits = DEFAULT_LIMITS) -> Iterator[Committed]:
    """The committed snapshots, newest first. One that does not match its name was never committed and is passed over."""
    for stem, size in _stems(storage).items():
        try:
            yield load_snapshot(storage, stem, limits=limits, size=size)
        except CorruptError as error:
            if error.code != "E020":
                raise


def parents(storage: Storage, *, limits: Limits = DEFAULT_LIMITS) -> Iterator[Committed]:
    """The snapshots that a new one may continue or build on, newest first: all that this release may write on."""
    for committed in snapshots(storage, limits=limits):
        if FEATURES.issuperset(committed.snapshot.requires.write):
            yield committed


def find_snapshot(storage: Storage, wanted: str | None, *, limits: Limits = DEFAULT_LIMITS) -> Committed:
    """The newest snapshot, or the one whose name, hex id or root digest starts with ``wanted``.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    if wanted is None:
        for committed in snapshots(storage, limits=limits):
            return committed
        if torn := len(_stems(storage)):
            raise NotFoundError(
                f"{storage.url} has no whole snapshot: the {torn:,} in it were cut off or damaged",
                code="no-snapshot",
                hint="`mlflow-bundle verify` says which; an interrupted pack is resumed by running it again",
            )
        raise NotFoundError(
            f"{storage.url} has no snapshot yet", code="no-snapshot", hint="an interrupted pack is resumed by running it again"
        )
    stems = _stems(storage)
    found = may_be_meant(stems, wanted)
    if len(found) == 1:
        committed = load_snapshot(storage, found[0], limits=limits, size=stems[found[0]])
        if is_meant(committed, wanted):
            return committed
        found = []
    what = f"{len(found)} snapshots" if found else "no snapshot"
    raise NotFoundError(
        f"{storage.url} has {what} named {wanted!r}", code="snapshot-not-found", hint="`mlflow-bundle log` lists them"
    )


def may_be_meant(stems: Iterable[str], wanted: str) -> list[str]:
    """Those of some names of snapshots that ``wanted`` can mean: a name holds only the beginning of the root digest, and
    ``is_meant`` compares the rest."""
    text = wanted.removeprefix("sha256:")
    return [stem for stem in stems if stem.startswith(text) or stem.rpartition("-")[2].startswith(text[:16])]


def is_meant(committed: Committed, wanted: str) -> bool:
    """Whether the name, hex id or root digest of a snapshot starts with ``wanted``."""
    text = wanted.removeprefix("sha256:")
    return committed.stem.startswith(text) or committed.digest.removeprefix("sha256:").startswith(text)


def read_verified(storage: Storage, path: str, *, limit: int, size: int | None = None) -> bytes:
    """A whole object, checked against the SHA-256 that is its name. ``size`` is what the snapshot says of it: so many bytes are
    read, and nobody asks the storage for it.

    Raises:
        CorruptError: it has other bytes.
        LimitError: it is larger than ``limit`` bytes.
    """
    expected = _layout.object_hex(path)
    if expected is None:
        raise CorruptError(f"{path!r} is not the path of an object", code="E021")
    known = storage.size(path) if size is None else size
    if known is not None and known > limit:
        raise LimitError(f"{path} has {known:,} bytes, more than {limit:,}", code="E094")
    data = storage.read(path) if size is None else storage.read_range(path, 0, size)
    if hex_of(data) != expected:
        raise CorruptError(
            f"{path} does not have the SHA-256 of its name",
            code="E022",
            hint="`mlflow-bundle verify` shows all damage; move the damaged file out of the bundle and pack again",
        )
    return data


def objects_of(storage: Storage, snapshot: Snapshot, *, limits: Limits = DEFAULT_LIMITS) -> list[ObjectRef]:
    """Every object that a snapshot needs, those of its object lists and the lists themselves included."""
    refs = [*snapshot.objects, *snapshot.object_lists]
    for listing in snapshot.object_lists:
        data = read_verified(storage, listing.path, limit=limits.records_bytes)
        lines = read_lines(data, name=listing.path, limits=limits)
        refs.extend(decode(line, ObjectRef, name=listing.path, limits=limits) for line in lines)
    for ref in refs:
        if _layout.object_hex(ref.path) is None or _layout.object_role(ref.path) != ref.role:
            raise CorruptError(f"{ref.path!r} is not the path of an object of role {ref.role!r}", code="E021")
    return refs


def commit_snapshot(storage: Storage, snapshot: Snapshot, *, targets: Targets) -> Committed:
    """Write the snapshot document: the commit. Its object list moves into objects of its own where it is too long.

    Raises:
        LimitError: no reader would accept it: nothing was committed.
        StorageError: it was not committed.
        CommitUnknownError: nobody can say.
    """
    data = encode(snapshot)
    if len(data) > targets.inline_bytes:
        snapshot = _with_lists(storage, snapshot, targets)
        data = encode(snapshot)
    if len(data) > DEFAULT_LIMITS.snapshot_bytes:
        raise LimitError(
            f"the snapshot document would have {len(data):,} bytes, more than readers accept; nothing was committed",
            code="E093",
            hint=f"it lists {len(snapshot.problems):,} problems: mend their cause, or archive fewer experiments at a time",
        )
    stem = snapshot_name(snapshot.created_at, data)
    storage.commit(data, _layout.snapshot_path(stem))
    storage.flush()
    return Committed(stem, digest_of(data), snapshot)


def snapshot_name(created_at: int, data: bytes) -> str:
    """``<UTC with milliseconds>-<first 16 hex digits of SHA-256>``: names sort by time."""
    seconds, milliseconds = divmod(created_at, 1000)
    when = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%S")
    return f"{when}.{milliseconds:03}Z-{hex_of(data)[:16]}"


def _with_lists(storage: Storage, snapshot: Snapshot, targets: Targets) -> Snapshot:
    with storage.stage() as staged:
        writer = LinesWriter(staged, frame_bytes=targets.frame_bytes)
        for ref in snapshot.objects:
            writer.add(encode(ref))
        writer.close()
        staged.finish()
        path = _layout.object_path(_layout.LISTS, staged.sha256)
        storage.put(staged, path)
        listing = ObjectRef(role=_layout.LISTS, path=path, size=staged.size, rows=writer.rows, content=writer.content)
    return msgspec.structs.replace(snapshot, objects=(), object_lists=(listing,))
