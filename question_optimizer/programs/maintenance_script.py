"""--runs, --apply and --undo: what the generator's script does without an account or a pipeline."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from question_optimizer.chunk_store import ChunkStore
from question_optimizer.generation import maintenance, write_back
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.outcome import LEDGER, described, to_the_minute
from question_optimizer.generation.preview import Held, held, readmitted

_SHOWN = 3  # points of a diff


def maintain(settings: Any, args: argparse.Namespace) -> int:
    """Do the one of the three that was asked for; the exit code."""
    path = settings.data_dir / LEDGER
    looks = args.runs or args.dry_run  # and needs no folder to itself
    with _collection(settings, even_if_locked=looks or args.even_if_locked) as store:
        if args.undo:
            return _undo(settings, args, store)
        with maintenance.opened(path, store.collection) as ledger:
            if args.runs:
                _list_runs(ledger)
            elif args.dry_run:
                _show_apply(args, ledger, store)
            else:
                return _apply(settings, args, store)
    return 0


def show_waiting(settings: Any, *, overwrite: bool) -> None:
    """How the first points would change that have a question waiting; nothing where none has."""
    with _collection(settings, even_if_locked=True) as store:
        path = settings.data_dir / LEDGER
        for line in maintenance.diff(path, store, limit=_SHOWN, overwrite=overwrite):
            print(line)


def _list_runs(ledger: Ledger) -> None:
    """What was written and when, the latest first; then whose questions the ledger holds."""
    runs = ledger.runs()
    for run in runs:
        state = "undone" if run.undone else f"{run.chunks:,} chunks"
        print(f"{run.run}  {to_the_minute(run.at)}  {state}")
    if not runs:
        print("nothing was written yet")
    for known in ledger.known():
        print(f"configuration {described(known)}")


def _show_apply(args: argparse.Namespace, ledger: Ledger, store: ChunkStore) -> None:
    """What --apply would change, or that nothing waits."""
    again = args.redo and held(ledger.path, store.collection).undone
    seen = (
        readmitted(ledger.path, store.collection) if again else contextlib.nullcontext(ledger.path)
    )
    with seen as path:
        overwrite = args.overwrite or args.redo  # as `maintenance.apply` does
        lines = list(maintenance.diff(path, store, limit=_SHOWN, overwrite=overwrite))
    for line in lines or _nothing_waits(ledger.path, store.collection):
        print(line)


def _nothing_waits(path: Path, collection: str) -> Iterator[str]:
    """Why --apply finds nothing to write, and what would help."""
    there = held(path, collection)
    yield f"nothing waits in {path}"
    yield from _unchecked(there)
    if there.undone:
        yield f"--apply --redo brings back what was undone: {there.undone:,} chunks"


def _unchecked(there: Held) -> Iterator[str]:
    """That questions of an ended run are not to be written yet."""
    if there.unchecked:
        noun = "question is" if there.unchecked == 1 else "questions are"
        yield (
            f"{there.unchecked:,} {noun} not yet checked against the corpus; run the generator "
            "once more"
        )


def _apply(settings: Any, args: argparse.Namespace, store: ChunkStore) -> int:
    path, run = settings.data_dir / LEDGER, write_back.new_run_id(datetime.now(UTC))
    target = partial(maintenance.target_over, store, settings.qdrant_path)
    written = maintenance.apply(
        path, store.collection, target, run=run, undone=args.redo, overwrite=args.overwrite
    )
    if written is None:
        for line in _nothing_waits(path, store.collection):
            print(line)
        return 0
    if written.missing:
        print(f"{len(written.missing):,} chunks no longer in the collection", file=sys.stderr)
    if written.foreign:
        what = "hold somebody else's question by now; --apply --overwrite writes over it"
        print(f"{written.foreign:,} chunks {what}", file=sys.stderr)
    for line in _unchecked(held(path, store.collection)):
        print(line, file=sys.stderr)
    done = f"{written.changed:,} chunks written back, {written.unchanged:,} had it already"
    print(f"{done}; run {run}")
    return 0


def _undo(settings: Any, args: argparse.Namespace, store: ChunkStore) -> int:
    path = settings.data_dir / LEDGER
    with maintenance.opened(path, store.collection) as ledger:
        run = maintenance.run_named(ledger, args.undo)
        target: contextlib.AbstractContextManager[write_back.Target] = (
            contextlib.nullcontext(maintenance.Looking(store))
            if args.dry_run
            else maintenance.target_over(store, settings.qdrant_path)
        )
        with target as opened:
            undone = write_back.undo(ledger, opened, run, dry_run=args.dry_run)
    for count, what in (
        (undone.changed_since, "were changed since, and are left as they are"),
        (len(undone.missing), "are no longer in the collection"),
    ):
        if count:
            print(f"{count:,} chunks {what}", file=sys.stderr)
    what = "would be restored" if args.dry_run else "restored"
    print(f"{undone.restored:,} chunks {what} as they were before run {run}")
    return 0


@contextlib.contextmanager
def _collection(settings: Any, *, even_if_locked: bool) -> Iterator[ChunkStore]:
    from config import store_of

    store = store_of(settings, even_if_locked=even_if_locked)
    try:
        yield store
    finally:
        store.close()
