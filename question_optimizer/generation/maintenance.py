"""What can be done with finished questions without making any: write, show, take back.

No account and no pipeline is needed for it; the ledger knows whose questions wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from question_optimizer.chunk_store import ChunkStore, ClientStore
from question_optimizer.errors import UserError
from question_optimizer.generation import write_back
from question_optimizer.generation.client_writer import Changes
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration
from question_optimizer.records import PointId

OpenTarget = Callable[[], AbstractContextManager[write_back.Target]]


def target_over(
    store: ChunkStore, folder: Path | None
) -> AbstractContextManager[write_back.Target]:
    """What writes into the collection that `store` reads: its client, or the folder itself."""
    if isinstance(store, ClientStore):
        return write_back.client_target(store.client, store.collection)
    return write_back.folder_target(folder or Path(), store.collection)


class Looking:
    """A target that is only looked at, so that a folder which is open elsewhere will do."""

    def __init__(self, store: ChunkStore):
        self._store = store

    def payloads(self, ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        return dict(self._store.payloads(list(ids)))

    def update(self, changes: Changes) -> set[PointId]:
        raise NotImplementedError("a difference is shown, never made")


@contextmanager
def opened(path: Path, collection: str) -> Iterator[Ledger]:
    """The ledger at `path`, seen from no configuration in particular; UserError without one."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist; run optimized_question_generator.py first")
    ledger = Ledger(path, Configuration(collection, "", "", ()))
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def waiting(path: Path, collection: str, *, undone: bool = False) -> Iterator[list[Ledger]]:
    """The ledgers of every configuration with questions to write, the earliest first."""
    with opened(path, collection) as ledger:
        known = ledger.others()
    ledgers = [Ledger(path, configuration) for configuration in reversed(known)]
    try:
        for ledger in ledgers if undone else ():
            ledger.readmit_undone()
        yield [ledger for ledger in ledgers if ledger.unwritten(1)]
    finally:
        for ledger in ledgers:
            ledger.close()


def apply(
    path: Path,
    collection: str,
    open_target: OpenTarget,
    *,
    run: str,
    undone: bool = False,
    overwrite: bool = False,
) -> write_back.Written | None:
    """Write every question that waits, and with `undone` what was taken out before; None where none
    does. What no policy checked yet goes on waiting, as there is none here to check it under: the
    next run does so, also with other configurations' questions."""
    with waiting(path, collection, undone=undone) as ledgers:
        if not ledgers:
            return None
        with open_target() as target:
            parts = [
                write_back.apply(ledger, target, run=run, overwrite=overwrite or undone)
                for ledger in ledgers
            ]
    return write_back.Written(
        changed=sum(part.changed for part in parts),
        unchanged=sum(part.unchanged for part in parts),
        missing=[point_id for part in parts for point_id in part.missing],
        foreign=sum(part.foreign for part in parts),
    )


def diff(path: Path, store: ChunkStore, *, limit: int, overwrite: bool = False) -> Iterator[str]:
    """What `apply` would change, in lines for people; nothing where nothing waits."""
    if not path.is_file():
        return
    with waiting(path, store.collection) as ledgers:
        for ledger in ledgers:
            yield from write_back.diff(ledger, Looking(store), limit=limit, overwrite=overwrite)


def run_named(ledger: Ledger, name: str) -> str:
    """`name`, or the latest run that stands where it is "last"; UserError listing what there is."""
    runs = ledger.runs()
    if name == "last":
        standing = next((known.run for known in runs if not known.undone), None)
        if standing is None:
            raise UserError(f"{ledger.path}: nothing was written that stands; there is no last run")
        return standing
    if name not in {known.run for known in runs}:
        there = ", ".join(known.run for known in runs[:5]) or "none"
        raise UserError(f"{ledger.path}: no run {name!r}; the latest are: {there}")
    return name
