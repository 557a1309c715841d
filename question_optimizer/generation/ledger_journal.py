"""The ledger's journal: what a run found in the collection before it changed it, for an undo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from question_optimizer.generation.ledger_file import AMONG, LedgerFile, listed, whole
from question_optimizer.generation.ledger_records import point_id
from question_optimizer.generation.ledger_tables import UNDONE
from question_optimizer.hostile_text import storable
from question_optimizer.records import PointId


@dataclass(frozen=True)
class RunOfWrites:
    """One run's changes of the collection; `undone` if none of them stands any more."""

    run: str
    at: str  # ISO 8601 in UTC, when it began
    chunks: int
    undone: bool


class Journal(LedgerFile):
    """Every write to the collection, under whatever configuration."""

    @whole
    def note_write(self, run: str, rows: Sequence[tuple[PointId, str]]) -> None:
        """Keep what stands in the collection (chunk, fragment as JSON text), before it is changed.

        A chunk noted before in the same run keeps what it was then, unless that was undone.
        """
        whose = (self.configuration.collection, self.fingerprint)
        with self._connection:
            self._connection.executemany(
                "INSERT INTO writes VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET "
                "collection=excluded.collection, fingerprint=excluded.fingerprint, "
                "former=excluded.former, at=excluded.at, undone=0 WHERE undone=1",
                [
                    (run, str(chunk_id), *whose, storable(former), datetime.now(UTC).isoformat())
                    for chunk_id, former in rows
                ],
            )

    @whole
    def writes_of(self, run: str, limit: int, after: str = "") -> list[tuple[PointId, str]]:
        """Up to `limit` chunks, with their former fragments, that a run wrote and nobody undid; by
        id as text, from behind `after` on. [] for a run on another collection."""
        rows = self._connection.execute(
            "SELECT chunk_id, former FROM writes WHERE run=? AND undone=0 AND chunk_id>? "
            "AND collection=? ORDER BY chunk_id LIMIT ?",
            (run, after, self.configuration.collection, limit),
        )
        return [(point_id(chunk_id), former) for chunk_id, former in rows]

    @whole
    def runs(self) -> list[RunOfWrites]:
        """The runs that wrote to this collection, latest first."""
        rows = self._connection.execute(
            "SELECT run, MIN(at), COUNT(*), MIN(undone) FROM writes WHERE collection=? "
            "GROUP BY run ORDER BY MIN(at) DESC, run DESC",
            (self.configuration.collection,),
        )
        return [RunOfWrites(run, at, chunks, bool(undone)) for run, at, chunks, undone in rows]

    @whole
    def mark_undone(self, run: str, chunk_ids: Iterable[PointId]) -> None:
        """Remember that a run's changes of these chunks are taken back. Their questions, by every
        configuration that wrote any, are not written again unless asked."""
        which = listed(chunk_ids)
        with self._connection:
            undone = self._connection.execute(
                f"UPDATE writes SET undone=1 WHERE run=? AND chunk_id {AMONG} "  # noqa: S608
                "RETURNING fingerprint, chunk_id",
                (run, which),
            ).fetchall()
            # A killed run may not have come to say that it wrote them.
            self._connection.executemany(
                f"UPDATE results SET written={UNDONE} "  # noqa: S608
                "WHERE fingerprint=? AND chunk_id=? AND +state='done' AND checked<>''",
                undone,
            )
            self._connection.execute(
                f"UPDATE results SET written={UNDONE} WHERE fingerprint IN ("  # noqa: S608
                "SELECT c.fingerprint FROM configurations AS c WHERE c.collection=?) "
                f"AND chunk_id {AMONG} AND +state='done' AND written=1",
                (self.configuration.collection, which),
            )
