"""What tests of the ledger share: chunks marked as production marks them, by a write or an undo."""

from __future__ import annotations

from collections.abc import Iterable

from question_optimizer.generation.ledger import Ledger
from question_optimizer.records import PointId


def mark_written(ledger: Ledger, chunk_ids: Iterable[PointId]) -> None:
    """The questions of these chunks, as they stand, are in the collection."""
    for results in ledger.slots_of([*chunk_ids]).values():
        ledger.mark_results_written(r for r in results if r.state == "done" and r.checked)


def mark_undone(ledger: Ledger, chunk_ids: Iterable[PointId]) -> None:
    """A person took the questions of these chunks out of the collection."""
    taken = [*chunk_ids]
    ledger.note_write("taken back", [(chunk_id, "{}") for chunk_id in taken])
    ledger.mark_undone("taken back", taken)
