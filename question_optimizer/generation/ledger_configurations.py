"""The ledger's configurations: who else made questions for this collection, for which chunks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from question_optimizer.generation.ledger_file import AMONG, LedgerFile, listed, whole
from question_optimizer.generation.ledger_records import (
    CONFIGURATION_COLUMNS,
    Configuration,
    configuration_of,
    configuration_row,
    point_id,
)
from question_optimizer.generation.ledger_tables import UNDONE
from question_optimizer.records import PointId


@dataclass(frozen=True)
class Known:
    """A configuration that the ledger holds; `seen_at` is when it was used last (ISO 8601)."""

    configuration: Configuration
    questions: int  # accepted ones
    seen_at: str


_COLUMNS = ", ".join(f"c.{name}" for name in CONFIGURATION_COLUMNS)
_OTHERS = (
    "FROM configurations AS c WHERE c.collection IN (?, '') AND c.fingerprint<>? "  # '': unknown
)
_BY_OTHERS = f"fingerprint IN (SELECT c.fingerprint {_OTHERS})"


class Configurations(LedgerFile):
    """Those of its collection, of which the ledger's own is one."""

    @whole
    def former(self, chunk_ids: Iterable[PointId]) -> dict[PointId, set[str]]:
        """Those with a question by another configuration of this collection, or of a ledger so old
        that it did not say of which collection it was; but for what a person took out again. Each
        with the digests of the texts that they were made from."""
        rows = self._connection.execute(
            "SELECT DISTINCT chunk_id, text_sha256 FROM results "  # noqa: S608 - our own text
            f"WHERE {_BY_OTHERS} AND chunk_id {AMONG} "
            f"AND +state='done' AND written<>{UNDONE}",  # the plus keeps to the primary key
            (self.configuration.collection, self.fingerprint, listed(chunk_ids)),
        )
        found: dict[PointId, set[str]] = {}
        for chunk_id, digest in rows:
            found.setdefault(point_id(chunk_id), set()).add(digest)
        return found

    @whole
    def done_by_others(self) -> int:
        """Chunks that `former` would find, each once."""
        return self._connection.execute(
            "SELECT COUNT(DISTINCT chunk_id) FROM results "  # noqa: S608 - our own text
            f"WHERE {_BY_OTHERS} AND state='done' AND written<>{UNDONE}",
            (self.configuration.collection, self.fingerprint),
        ).fetchone()[0]

    @whole
    def other_configurations(self) -> list[tuple[Configuration, int]]:
        """The others that `former` looks at, each with how many chunks have a question by it; the
        one used last comes first."""
        rows = self._of_others(
            f"{_COLUMNS}, (SELECT COUNT(DISTINCT chunk_id) FROM results "  # noqa: S608
            f"WHERE fingerprint=c.fingerprint AND state='done' AND written<>{UNDONE})",
            "ORDER BY c.seen_at DESC",
        )
        return [(configuration_of(its), chunks) for *its, chunks in rows]

    @whole
    def others(self) -> list[Configuration]:
        """Those of `other_configurations` in its order, without counts, which look at every row."""
        return list(map(configuration_of, self._of_others(_COLUMNS, "ORDER BY c.seen_at DESC")))

    @whole
    def never_checked(self) -> list[Configuration]:
        """Those of `others` with questions that no policy checked, as their run was ended before;
        they are not written until one does. The configuration used last comes last."""
        rows = self._of_others(
            _COLUMNS,
            "AND EXISTS (SELECT 1 FROM results WHERE fingerprint=c.fingerprint AND state='done' "
            "AND checked='') ORDER BY c.seen_at",
        )
        return list(map(configuration_of, rows))

    def _of_others(self, what: str, which: str) -> sqlite3.Cursor:
        return self._connection.execute(
            f"SELECT {what} {_OTHERS} {which}",
            (self.configuration.collection, self.fingerprint),
        )

    @whole
    def known(self) -> list[Known]:
        """All configurations of this collection, its own included; the one used last first."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS}, (SELECT COUNT(*) "  # noqa: S608 - names of our own
            "FROM results WHERE fingerprint=c.fingerprint AND state='done'), c.seen_at "
            "FROM configurations AS c WHERE c.collection=? ORDER BY c.seen_at DESC, c.fingerprint",
            (self.configuration.collection,),
        )
        return [Known(configuration_of(its), questions, at) for *its, questions, at in rows]

    @whole
    def decide(self, changed: str) -> None:
        """Remember what a person decided on chunks that other configurations did."""
        with self._connection:
            self._note_configuration()
            self._connection.execute(
                "UPDATE configurations SET changed=? WHERE fingerprint=?",
                (changed, self.fingerprint),
            )

    @whole
    def decision(self) -> str:
        """What was decided; '' for nothing yet."""
        row = self._connection.execute(
            "SELECT changed FROM configurations WHERE fingerprint=?", (self.fingerprint,)
        ).fetchone()
        return row[0] if row else ""

    def _note_configuration(self) -> None:
        """What the fingerprint stands for, and that it is in use now; within a transaction."""
        now = datetime.now(UTC).isoformat()
        self._connection.execute(
            "INSERT INTO configurations VALUES (?, ?, ?, ?, ?, ?, ?, '') "
            "ON CONFLICT DO UPDATE SET seen_at=excluded.seen_at",
            (self.fingerprint, *configuration_row(self.configuration), now),
        )
