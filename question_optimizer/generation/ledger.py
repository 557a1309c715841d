"""The generator's ledger: the state of every question, by chunk and configuration, in SQLite.

A result is on disk when `record` returns, so a killed run repeats at most the calls in flight. A
configuration is collection, pipeline, personas and models: several stand beside each other, and
what belongs to another is left alone. Refused questions are kept for ever, and so is what a run
found in the collection before it changed it: the journal that an undo reads.

Corpora have a million chunks: whatever returns many rows reads them in pages that begin where the
last one ended, along an index.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from question_optimizer.generation.ledger_configurations import Configurations
from question_optimizer.generation.ledger_file import AMONG, listed, whole
from question_optimizer.generation.ledger_journal import Journal
from question_optimizer.generation.ledger_records import (
    REFUSAL_COLUMNS,
    RESULT_COLUMNS,
    Configuration,
    Refusal,
    Result,
    Slot,
    State,
    point_id,
    refusal_row,
    result_of,
    result_row,
)
from question_optimizer.generation.ledger_tables import UNDONE
from question_optimizer.records import PointId

_UPSERT = (
    f"INSERT INTO results (fingerprint, {', '.join(RESULT_COLUMNS)}) "  # noqa: S608 - names of our own
    f"VALUES ({', '.join('?' * (1 + len(RESULT_COLUMNS)))}) ON CONFLICT DO UPDATE SET "
    f"{', '.join(f'{name}=excluded.{name}' for name in RESULT_COLUMNS[2:])}, "
    "written=CASE WHEN query IS excluded.query THEN written ELSE 0 END"
)
_SAID = ", ".join(REFUSAL_COLUMNS)
_REFUSE = (
    f"INSERT INTO refusals (fingerprint, chunk_id, slot, attempt, {_SAID}) "  # noqa: S608
    f"SELECT ?1, ?2, ?3, COALESCE(MAX(attempt), 0) + 1, {', '.join('?' * len(REFUSAL_COLUMNS))} "
    "FROM refusals WHERE fingerprint=?1 AND chunk_id=?2 AND slot=?3"
)
_SELECT = f"SELECT {', '.join(RESULT_COLUMNS)} FROM results WHERE fingerprint=?"  # noqa: S608


class Ledger(Configurations, Journal):
    """The results of one `configuration`, beside what its collection's `Configurations` and
    `Journal` hold; what the configuration is gets noted with its first result."""

    def __init__(self, path: Path, configuration: Configuration):
        super().__init__(path, configuration)
        self._noted = False

    # ------------------------------------------------------------------ recording

    @whole
    def record(
        self, results: Sequence[Result], refusals: Sequence[tuple[PointId, int, Refusal]] = ()
    ) -> None:
        """Store results, each replacing its slot's row, and refusals (chunk, slot, refusal).

        All in one transaction. A slot whose question changed counts as not written.
        """
        with self._connection:
            self._connection.executemany(
                _UPSERT, [(self.fingerprint, *result_row(result)) for result in results]
            )
            for chunk_id, slot, refusal in refusals:
                said = (self.fingerprint, str(chunk_id), slot, *refusal_row(refusal))
                self._connection.execute(_REFUSE, said)
            if not self._noted:
                self._note_configuration()
        self._noted = True

    @whole
    def written_again(self, chunk_ids: Sequence[PointId]) -> int:
        """The collection lacks a question of these chunks, or has one that was refused since: have
        theirs written again, but for those that a person took out. How many chunks wait now."""
        which = (self.fingerprint, listed(chunk_ids))
        with self._connection:
            self._connection.execute(
                f"UPDATE results SET written=0 WHERE fingerprint=? AND chunk_id {AMONG} "  # noqa: S608
                "AND +state='done' AND written=1",
                which,
            )
        return self._connection.execute(
            "SELECT COUNT(DISTINCT chunk_id) FROM results "  # noqa: S608
            f"WHERE fingerprint=? AND chunk_id {AMONG} AND +state='done' AND written=0",
            which,
        ).fetchone()[0]

    @whole
    def readmit_undone(self) -> int:
        """Let what a person took out of the collection be written again; the number of slots."""
        with self._connection:
            return self._connection.execute(
                "UPDATE results SET written=0 WHERE fingerprint=? AND written=?",
                (self.fingerprint, UNDONE),
            ).rowcount

    @whole
    def mark_results_written(self, results: Iterable[Result]) -> None:
        """Remember that these questions are in the collection; nothing of a slot that holds another
        one by now, since other threads record beside the writer."""
        with self._connection:
            self._connection.executemany(
                "UPDATE results SET written=1 "
                "WHERE fingerprint=? AND chunk_id=? AND slot=? AND query=?",
                [(self.fingerprint, str(r.chunk_id), r.slot, r.query) for r in results],
            )

    # ------------------------------------------------------------------ chunks

    @whole
    def slots_of(self, chunk_ids: Sequence[PointId]) -> dict[PointId, list[Result]]:
        """{chunk: its results by slot}, of whatever text they were made; [] for an unknown one."""
        found: dict[PointId, list[Result]] = {chunk_id: [] for chunk_id in chunk_ids}
        rows = self._connection.execute(
            f"{_SELECT} AND chunk_id {AMONG} ORDER BY chunk_id, slot",
            (self.fingerprint, listed(chunk_ids)),
        )
        for result in map(result_of, rows):
            found[result.chunk_id].append(result)
        return found

    @whole
    def standing(self, slots: Iterable[Slot]) -> dict[Slot, str]:
        """The questions of those (fingerprint, chunk id as text, slot) that are done, of whatever
        configuration; but for other ones' that a person took out of the collection."""
        rows = self._connection.execute(
            "SELECT fingerprint, chunk_id, slot, query FROM json_each(?) AS one "  # noqa: S608
            "CROSS JOIN results WHERE fingerprint=json_extract(one.value, '$[0]') "
            "AND chunk_id=json_extract(one.value, '$[1]') AND slot=json_extract(one.value, '$[2]') "
            f"AND +state='done' AND (fingerprint=? OR written<>{UNDONE})",
            (json.dumps(list(slots)), self.fingerprint),
        )
        return {(whose, chunk, slot): query for whose, chunk, slot, query in rows}

    @whole
    def refusals_of(self, chunk_id: PointId, slot: int) -> list[Refusal]:
        """The questions refused in a slot, first to last."""
        rows = self._connection.execute(
            f"SELECT {_SAID} FROM refusals "  # noqa: S608 - names of our own
            "WHERE fingerprint=? AND chunk_id=? AND slot=? ORDER BY attempt",
            (self.fingerprint, str(chunk_id), slot),
        )
        return [Refusal(*row) for row in rows]

    # ------------------------------------------------------------------ pages of results

    @whole
    def unchecked(
        self,
        policy: str,
        limit: int,
        after: tuple[str, int] = ("", -1),
        *,
        only: str | None = None,
    ) -> list[Result]:
        """Up to `limit` done results that another policy checked, or none, by (chunk id as text,
        slot), from behind `after` on; `only` those of one policy, '' for none."""
        condition = "AND state='done' AND checked=? AND (chunk_id, slot)>(?, ?)"
        pages = [
            self._select(condition, limit, checked, *after, index="results_by_state")
            for checked in (self._checked_by() if only is None else [only])
            if checked != policy
        ]
        return list(islice(heapq.merge(*pages, key=_place), limit))

    def _checked_by(self) -> list[str]:
        """The distinct values of `checked`, one seek each."""
        least = (
            "SELECT MIN(checked) FROM results WHERE fingerprint=? AND state='done' AND checked>?"
        )
        found = [""]
        while (row := self._connection.execute(least, (self.fingerprint, found[-1])).fetchone())[0]:
            found.append(row[0])
        return found

    @whole
    def unwritten(self, limit: int, after: PointId = "") -> list[list[Result]]:
        """Up to `limit` chunks with a question that is done, checked and not in the collection, by
        id as text, from behind `after` on: each with all its done and checked questions by slot,
        but for those that a person has taken out."""
        chunks = self._connection.execute(
            "SELECT DISTINCT chunk_id FROM results INDEXED BY results_to_write WHERE fingerprint=? "
            "AND state='done' AND checked<>'' AND written=0 AND chunk_id>? "
            "ORDER BY chunk_id LIMIT ?",
            (self.fingerprint, str(after), limit),
        )
        rows = self._connection.execute(
            f"{_SELECT} AND chunk_id {AMONG} AND +state='done' AND checked<>'' AND written<>? "
            "ORDER BY chunk_id, slot",
            (self.fingerprint, listed(row[0] for row in chunks), UNDONE),
        )
        results = map(result_of, rows)
        return [list(group) for _, group in groupby(results, key=lambda result: result.chunk_id)]

    def results(self, *states: State, batch: int = 1000) -> Iterator[Result]:
        """All in these states (none named: in any), by (chunk id as text, slot), read `batch` at a
        time. What is recorded meanwhile may be seen or not; nothing is seen twice."""
        place = ("", -1)
        while page := self._page(states, batch, place):
            yield from page
            place = _place(page[-1])

    @whole
    def _page(self, states: Sequence[State], limit: int, after: tuple[str, int]) -> list[Result]:
        if not states:
            return self._select("AND (chunk_id, slot)>(?, ?)", limit, *after)
        condition = f"AND (chunk_id, slot)>(?, ?) AND +state {AMONG}"
        return self._select(condition, limit, *after, json.dumps(states))

    def _select(self, condition: str, limit: int, *values: object, index: str = "") -> list[Result]:
        # Left to itself SQLite goes along the primary key, past every result that does not count.
        select = _SELECT.replace(" WHERE", f" INDEXED BY {index} WHERE") if index else _SELECT
        rows = self._connection.execute(
            f"{select} {condition} ORDER BY chunk_id, slot LIMIT ?",
            (self.fingerprint, *values, limit),
        )
        return list(map(result_of, rows))

    def refusals(self) -> Iterator[tuple[PointId, int, Refusal]]:
        """Every refusal with its chunk and slot, by chunk id as text, slot and attempt."""
        place: tuple[str, int, int] = ("", -1, -1)
        while page := self._page_of_refusals(place):
            for chunk_id, slot, _, *said in page:
                yield point_id(chunk_id), slot, Refusal(*said)
            place = page[-1][:3]

    @whole
    def _page_of_refusals(self, after: tuple[str, int, int]) -> list[Any]:
        return self._connection.execute(
            f"SELECT chunk_id, slot, attempt, {_SAID} FROM refusals "  # noqa: S608
            "WHERE fingerprint=? AND (chunk_id, slot, attempt)>(?, ?, ?) "
            "ORDER BY chunk_id, slot, attempt LIMIT 1000",
            (self.fingerprint, *after),
        ).fetchall()

    # ------------------------------------------------------------------ counting

    @whole
    def counts(self) -> Counter[State]:
        """How many slots are in each state."""
        rows = self._connection.execute(
            "SELECT state, COUNT(*) FROM results WHERE fingerprint=? GROUP BY state",
            (self.fingerprint,),
        )
        return Counter(dict(rows.fetchall()))

    @whole
    def cells(self, given_up: int) -> Counter[tuple[str, str, str]]:
        """How many slots hold a planned (type, format, length): those that are done or may still
        be, so without rejected ones after `given_up` attempts."""
        rows = self._connection.execute(
            "SELECT query_type, query_format, query_length, COUNT(*) FROM results "
            "WHERE fingerprint=? AND query_type IS NOT NULL AND query_format IS NOT NULL "
            "AND query_length IS NOT NULL AND (state<>'rejected' OR attempts<?) GROUP BY 1, 2, 3",
            (self.fingerprint, given_up),
        )
        return Counter({(kind, form, length): count for kind, form, length, count in rows})


def _place(result: Result) -> tuple[str, int]:
    """Where a page begins that follows this result."""
    return str(result.chunk_id), result.slot
