"""What of a damaged archive is restored all the same, and what is told of the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mlflow_bundle._bundle import Bundle, salvage
from mlflow_bundle._layout import BLOBS, PACKS, RECORDS, object_hex
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._text import plural
from mlflow_bundle._verify._contents import hash_object
from mlflow_bundle.errors import BundleError
from mlflow_bundle.kinds import KINDS, record_id
from mlflow_bundle.records import ObjectRef, Problem, Record, Run
from mlflow_bundle.tracking._gather import Gathered
from mlflow_bundle.tracking._left_out import LeftOut
from mlflow_bundle.tracking._port import ROW_NOUNS

__all__ = ["foreseen_losses", "leave_out_orphans", "losses", "salvaged"]

_THREADS: Final = 4


def salvaged(archive: Bundle) -> tuple[Bundle, Sequence[Problem]]:
    """The archive as far as it can be read, and what is wrong with it. All of it but the contents of files is read for that."""
    if archive.verify(level="structure").ok and _is_sound(archive):
        return archive, ()
    problems = archive.verify(level="tables").problems
    codes = {problem.object: problem.code for problem in problems if problem.object}
    if not codes:
        return archive, problems
    rest = salvage(archive, codes)
    return rest, [*problems, *_lost_records(rest, codes)]


def _is_sound(archive: Bundle) -> bool:
    """Whether the bytes of records, tables and views are those of their names: what else is verified costs much more."""

    def is_sound(ref: ObjectRef) -> bool:
        hasher = hashlib.sha256()
        try:
            hash_object(archive.storage, ref.path, hasher)
        except BundleError:
            return False
        return hasher.hexdigest() == object_hex(ref.path)

    refs = [ref for ref in archive.objects if ref.role not in (PACKS, BLOBS)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="mlflow-bundle-hashing") as executor:
        return all(bounded_map(executor, is_sound, refs, _THREADS))


def _lost_records(archive: Bundle, codes: Mapping[str, str]) -> Iterator[Problem]:
    """A problem for each kind of which records are lost, with the ids where a view tells them."""
    for kind in KINDS:
        if not (count := archive.reader.lost_records(kind)):
            continue
        code = next(codes[ref.path] for ref in archive.reader.refs(RECORDS, kind) if ref.path in codes)
        ids: list[str] = []
        if KINDS[kind].tables:
            known = archive.reader.view(kind).column("run_id" if kind == "run" else "id").to_pylist()
            there = {record_id(record) for record in archive.records(kind)}
            ids = [identity for identity in known if identity not in there]
        noun = f"{kind.replace('_', ' ')} record"
        example = f" (for example {ids[0]})" if ids else ""
        yield Problem(
            code=code,
            kind=kind,
            message=f"{plural(count, noun)} {'is' if count == 1 else 'are'} lost{example}, and cannot be restored",
            runs=tuple(ids) if kind == "run" else (),
        )


def losses(archive: Bundle, record: Record) -> Iterator[Problem]:
    """A problem for each table in which rows of an entity are lost."""
    kind, identity = str(record.__struct_config__.tag), record_id(record)
    name = f"{kind.replace('_', ' ')} {identity}"
    for loss in archive.reader.lost(kind, identity):
        lost = f"{ROW_NOUNS[loss.table]} {'are' if loss.is_certain else 'may be'} lost"
        yield Problem(
            code=loss.code,
            kind=kind,
            id=identity,
            object=loss.object,
            message=f"{name}: its {lost}, because {loss.object} is damaged",
            experiments=KINDS[kind].experiments(record),
            runs=(identity,) if kind == "run" else (),
        )


def foreseen_losses(
    archive: Bundle, runs: Iterable[Run], gathered: Gathered, kinds: Collection[str], left_out: LeftOut
) -> Iterator[Problem]:
    """The ``losses`` of these runs, and of all gathered entities of some kinds that are not left out."""
    for run in runs:
        yield from losses(archive, run)
    for kind in kinds:
        if KINDS[kind].tables and kind != "run":
            for record in gathered.records(kind):
                if left_out.because_of(record) is None:
                    yield from losses(archive, record)


def leave_out_orphans(archive: Bundle, gathered: Gathered, left_out: LeftOut, experiments: Collection[str]) -> None:
    """Leave out what belongs to entities whose records are lost: records name them, and nobody can read them. ``experiments``
    are the ids of those that can be read."""
    for kind, names in gathered.wanted.items():
        if names and archive.reader.lost_records(kind):
            for identity in names - set(experiments) if kind == "experiment" else names:
                left_out.add(kind, identity)
