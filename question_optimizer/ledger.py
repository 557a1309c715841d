"""The generator's ledger: every chunk's state, by chunk id and configuration, in SQLite.

A result is on disk before the next is asked for, so a killed run repeats at most the calls in
flight. `fingerprint` stands for collection, pipeline, personas and models: results of another
configuration are another run's and are left alone. A result belongs to a text: it counts no more
when a chunk was ingested anew with the same id and other words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from question_optimizer.records import PointId
from question_optimizer.sqlite_file import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunks (
    fingerprint TEXT NOT NULL, chunk_id TEXT NOT NULL, text_sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    query TEXT, query_type TEXT, query_format TEXT, persona_id TEXT, model TEXT,
    tokens INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    written INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (fingerprint, chunk_id)
) WITHOUT ROWID
"""
_VERSION = 1


@dataclass(frozen=True)
class Result:
    """What the pipeline made of one chunk: a query, or the reason why there is none."""

    chunk_id: PointId
    query: str | None = None
    query_type: str | None = None
    query_format: str | None = None
    persona_id: str | None = None
    model: str | None = None
    tokens: int = 0
    cost: float = 0.0
    reason: str = ""
    text_sha256: str = ""  # of the text it was made from


class Ledger:
    """Results under one `fingerprint`. Used from one thread at a time."""

    def __init__(self, path: Path, fingerprint: str):
        self.path = path
        self.fingerprint = fingerprint
        self._connection = open_database(path, _SCHEMA, version=_VERSION)

    def close(self) -> None:
        self._connection.close()

    def record(self, result: Result) -> None:
        """Store a result; on return it is on disk. A failure counts one more attempt."""
        state = "done" if result.query else "failed"
        with self._connection:
            self._connection.execute(
                "INSERT INTO chunks (fingerprint, chunk_id, text_sha256, state, query, query_type, "
                "query_format, persona_id, model, tokens, cost, reason, attempts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1) "
                "ON CONFLICT DO UPDATE SET text_sha256=excluded.text_sha256, "
                "state=excluded.state, query=excluded.query, "
                "query_type=excluded.query_type, query_format=excluded.query_format, "
                "persona_id=excluded.persona_id, model=excluded.model, "
                "tokens=tokens+excluded.tokens, cost=cost+excluded.cost, "
                "reason=excluded.reason, attempts=attempts+1, written=0",
                (
                    self.fingerprint,
                    str(result.chunk_id),
                    result.text_sha256,
                    state,
                    result.query,
                    result.query_type,
                    result.query_format,
                    result.persona_id,
                    result.model,
                    result.tokens,
                    result.cost,
                    result.reason,
                ),
            )

    def query_of(self, chunk_id: PointId, text_sha256: str = "") -> str | None:
        """The query made for a chunk's present text, None if there is none yet."""
        row = self._connection.execute(
            "SELECT query FROM chunks "
            "WHERE fingerprint=? AND chunk_id=? AND text_sha256=? AND state='done'",
            (self.fingerprint, str(chunk_id), text_sha256),
        ).fetchone()
        return row[0] if row else None

    def unwritten(self, limit: int, *, after: PointId = "") -> list[Result]:
        """Up to `limit` results not yet in the collection, by chunk id, from `after` on."""
        condition = "AND state='done' AND written=0 AND chunk_id>? ORDER BY chunk_id LIMIT ?"
        return self._select(condition, str(after), limit)

    def done(self) -> list[Result]:
        """Every result with a query, by chunk id."""
        return self._select("AND state='done' ORDER BY chunk_id")

    def failed(self) -> list[Result]:
        """Every chunk whose last attempt failed, by chunk id."""
        return self._select("AND state='failed' ORDER BY chunk_id")

    def mark_written(self, chunk_ids: Iterable[PointId], written: bool = True) -> None:
        """Remember which results are in the collection."""
        with self._connection:
            self._connection.executemany(
                "UPDATE chunks SET written=? WHERE fingerprint=? AND chunk_id=?",
                [(int(written), self.fingerprint, str(chunk_id)) for chunk_id in chunk_ids],
            )

    def _select(self, condition: str, *values: object) -> list[Result]:
        rows = self._connection.execute(
            "SELECT chunk_id, query, query_type, query_format, persona_id, model, tokens, "  # noqa: S608
            f"cost, reason, text_sha256 FROM chunks WHERE fingerprint=? {condition}",
            (self.fingerprint, *values),
        )
        return [Result(_point_id(row[0]), *row[1:]) for row in rows]


def _point_id(text: str) -> PointId:
    """Qdrant's ids are numbers or UUIDs, so digits alone are a number."""
    return int(text) if text.isdigit() else text
