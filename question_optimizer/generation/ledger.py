"""The generator's ledger: the state of every question, by chunk and configuration, in SQLite.

A result is on disk when `record` returns, so a killed run repeats at most the calls in flight. A
configuration is collection, pipeline, personas and models: several stand beside each other, and
what belongs to another is left alone. Refused questions are kept for ever, and so is what a run
found in the collection before it changed it: the journal that an undo reads.

Corpora have a million chunks: whatever returns many rows reads them in pages that begin where the
last one ended, along an index.
"""

from __future__ import annotations

import functools
import heapq
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from question_optimizer import files
from question_optimizer.errors import USAGE, StopRun
from question_optimizer.generation.ledger_tables import open_ledger
from question_optimizer.hostile_text import storable
from question_optimizer.records import PointId

State = Literal["pending", "done", "rejected", "failed"]

_UNDONE = -1


@dataclass(frozen=True)
class Configuration:
    """Whose questions these are, and what they depend on."""

    collection: str
    pipeline: str  # 16 hex digits, of the pipeline's state
    personas: str  # 16 hex digits
    models: tuple[str, ...]  # sorted
    text_key: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all of it."""
        return files.digest(astuple(self))[:16]


@dataclass(frozen=True)
class Refusal:
    """A question that a gate refused, and why."""

    query: str
    gate: str
    reason: str
    query_type: str | None = None
    query_format: str | None = None
    query_length: str | None = None
    persona_id: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Result:
    """One slot (0 … n-1) of one chunk: a question, or how far one has come, or why there is none.

    `calls`, `tokens`, `cost` (US dollars) and `attempts` are sums over everything asked so far.
    """

    chunk_id: PointId
    slot: int = 0
    state: State = "pending"
    query: str | None = None
    query_type: str | None = None  # of a pending one: what is planned, or chosen and paid for
    query_format: str | None = None
    query_length: str | None = None  # planned: short, medium, long; None where nothing was planned
    persona_id: str | None = None
    model: str | None = None
    document: str = ""  # `Chunk.document`
    heading: str = ""  # the innermost
    text_sha256: str = ""  # of the text it was made from
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    attempts: int = 0  # questions asked for in this slot
    reason: str = ""  # of a failure, or of the last refusal
    gate: str = ""  # of the last refusal, if rejected
    findings: tuple[tuple[str, str], ...] = ()  # (gate, reason), recorded and not enforced
    checked: str = ""  # the policy whose checks over the whole corpus it passed
    analysed: bool = False  # type and format are the pipeline's own first step's


@dataclass(frozen=True)
class RunOfWrites:
    """One run's changes of the collection; `undone` if none of them stands any more."""

    run: str
    at: str  # ISO 8601 in UTC, when it began
    chunks: int
    undone: bool


_COLUMNS = tuple(field.name for field in fields(Result))
_REFUSAL = tuple(field.name for field in fields(Refusal))
_UPSERT = (
    f"INSERT INTO results (fingerprint, {', '.join(_COLUMNS)}) "  # noqa: S608 - names of our own
    f"VALUES ({', '.join('?' * (1 + len(_COLUMNS)))}) ON CONFLICT DO UPDATE SET "
    f"{', '.join(f'{name}=excluded.{name}' for name in _COLUMNS[2:])}, "
    "written=CASE WHEN query IS excluded.query THEN written ELSE 0 END"
)
_REFUSE = (
    f"INSERT INTO refusals (fingerprint, chunk_id, slot, attempt, {', '.join(_REFUSAL)}) "  # noqa: S608
    f"SELECT ?1, ?2, ?3, COALESCE(MAX(attempt), 0) + 1, {', '.join('?' * len(_REFUSAL))} "
    "FROM refusals WHERE fingerprint=?1 AND chunk_id=?2 AND slot=?3"
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM results WHERE fingerprint=?"  # noqa: S608
_AMONG = "IN (SELECT value FROM json_each(?))"  # any number of values in one parameter
_OTHERS = (
    "FROM configurations AS c WHERE c.collection IN (?, '') AND c.fingerprint<>? "  # '': unknown
)

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _whole(method: _Method) -> _Method:
    """A method that one thread runs at a time. Damage and a full disk end the run: as a chunk's
    failure they would look like the model's, and every question would be paid for in vain."""

    @functools.wraps(method)
    def guarded(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        try:
            with self._lock:
                return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            raise StopRun(
                f"{self.path}: cannot be used ({error}); free the disk, or restore the file from "
                "a backup, then start again: what was recorded is not asked again",
                exit_code=USAGE,
            ) from None

    return cast(_Method, guarded)


class Ledger:
    """The results of one `configuration` in the file at `path`, which is made if missing.

    Safe from any thread; every change is on disk on return. Opening changes no byte: what the
    configuration is gets noted with its first result. UserError for a file that cannot be opened,
    StopRun for one that fails later.
    """

    def __init__(self, path: Path, configuration: Configuration):
        self.path = path
        self.configuration = configuration
        self.fingerprint = configuration.fingerprint
        self._lock = threading.Lock()
        self._noted = False
        self._connection = open_ledger(path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ------------------------------------------------------------------ recording

    @_whole
    def record(
        self, results: Sequence[Result], refusals: Sequence[tuple[PointId, int, Refusal]] = ()
    ) -> None:
        """Store results, each replacing its slot's row, and refusals (chunk, slot, refusal).

        All in one transaction. A slot whose question changed counts as not written.
        """
        with self._connection:
            self._connection.executemany(
                _UPSERT, [(self.fingerprint, *_row(result)) for result in results]
            )
            for chunk_id, slot, refusal in refusals:
                said = [_stored(value) for value in astuple(refusal)]
                self._connection.execute(_REFUSE, (self.fingerprint, str(chunk_id), slot, *said))
            if not self._noted:
                self._note_configuration()
        self._noted = True

    def _note_configuration(self) -> None:
        its = self.configuration
        self._connection.execute(
            "INSERT INTO configurations VALUES (?, ?, ?, ?, ?, ?, ?, '') "
            "ON CONFLICT DO UPDATE SET seen_at=excluded.seen_at",
            (
                *(self.fingerprint, its.collection, its.pipeline, its.personas),
                *(json.dumps(its.models), its.text_key, _now()),
            ),
        )

    @_whole
    def mark_written(self, chunk_ids: Iterable[PointId], written: int = 1) -> None:
        """Remember of chunks whether their questions are in the collection: 1 yes, 0 not yet, -1
        taken out by a person. It is said of what is done and checked, as `unwritten` returns."""
        with self._connection:
            self._mark(((self.fingerprint, str(chunk_id)) for chunk_id in chunk_ids), written)

    @_whole
    def found_missing(self, chunk_ids: Sequence[PointId]) -> int:
        """The collection lacks the questions of these chunks: have them written again, but for
        those that a person took out. How many wait now."""
        with self._connection:
            self._connection.execute(
                f"UPDATE results SET written=0 WHERE fingerprint=? AND chunk_id {_AMONG} "  # noqa: S608
                "AND +state='done' AND written=1",
                (self.fingerprint, _listed(chunk_ids)),
            )
        return self._connection.execute(
            "SELECT COUNT(DISTINCT chunk_id) FROM results "  # noqa: S608
            f"WHERE fingerprint=? AND chunk_id {_AMONG} AND +state='done' AND written=0",
            (self.fingerprint, _listed(chunk_ids)),
        ).fetchone()[0]

    @_whole
    def readmit_undone(self) -> int:
        """Let what a person took out of the collection be written again; the number of slots."""
        with self._connection:
            return self._connection.execute(
                "UPDATE results SET written=0 WHERE fingerprint=? AND written=?",
                (self.fingerprint, _UNDONE),
            ).rowcount

    @_whole
    def admit_former(self) -> int:
        """Let questions of other configurations be written that an ended run left unchecked: they
        passed the gates of their own. How many."""
        with self._connection:
            return self._connection.execute(
                "UPDATE results SET checked='off' WHERE state='done' AND checked='' "  # noqa: S608
                f"AND fingerprint IN (SELECT c.fingerprint {_OTHERS})",
                (self.configuration.collection, self.fingerprint),
            ).rowcount

    @_whole
    def written_again(self, chunk_ids: Sequence[PointId]) -> None:
        """One question of these chunks was refused after it was written: another takes its place
        where there is one."""
        with self._connection:
            self._connection.execute(
                f"UPDATE results SET written=0 WHERE fingerprint=? AND chunk_id {_AMONG} "  # noqa: S608
                "AND +state='done' AND written=1",
                (self.fingerprint, _listed(chunk_ids)),
            )

    def _mark(self, chunks: Iterable[tuple[str, str]], written: int) -> None:
        """Each chunk with the fingerprint whose results are meant."""
        self._connection.executemany(
            "UPDATE results SET written=? "
            "WHERE fingerprint=? AND chunk_id=? AND +state='done' AND checked<>''",
            [(written, *chunk) for chunk in chunks],
        )

    @_whole
    def mark_results_written(self, results: Iterable[Result]) -> None:
        """As `mark_written`, of these slots only, and only while they hold the same question: for
        writers beside which other threads record."""
        with self._connection:
            self._connection.executemany(
                "UPDATE results SET written=1 "
                "WHERE fingerprint=? AND chunk_id=? AND slot=? AND query=?",
                [(self.fingerprint, str(r.chunk_id), r.slot, r.query) for r in results],
            )

    # ------------------------------------------------------------------ chunks

    @_whole
    def slots_of(self, chunk_ids: Sequence[PointId]) -> dict[PointId, list[Result]]:
        """{chunk: its results by slot}, of whatever text they were made; [] for an unknown one."""
        found: dict[PointId, list[Result]] = {chunk_id: [] for chunk_id in chunk_ids}
        rows = self._connection.execute(
            f"{_SELECT} AND chunk_id {_AMONG} ORDER BY chunk_id, slot",
            (self.fingerprint, _listed(chunk_ids)),
        )
        for result in map(_result, rows):
            found[result.chunk_id].append(result)
        return found

    @_whole
    def refusals_of(self, chunk_id: PointId, slot: int) -> list[Refusal]:
        """The questions refused in a slot, first to last."""
        rows = self._connection.execute(
            f"SELECT {', '.join(_REFUSAL)} FROM refusals "  # noqa: S608 - names of our own
            "WHERE fingerprint=? AND chunk_id=? AND slot=? ORDER BY attempt",
            (self.fingerprint, str(chunk_id), slot),
        )
        return [Refusal(*row) for row in rows]

    @_whole
    def former(self, chunk_ids: Iterable[PointId]) -> set[PointId]:
        """Those with a question by another configuration of this collection, or of a ledger so old
        that it did not say of which collection it was; but for what a person took out again."""
        rows = self._connection.execute(
            "SELECT DISTINCT chunk_id FROM results "  # noqa: S608 - our own text
            f"WHERE fingerprint IN (SELECT c.fingerprint {_OTHERS}) AND chunk_id {_AMONG} "
            f"AND +state='done' AND written<>{_UNDONE}",  # the plus keeps to the primary key
            (self.configuration.collection, self.fingerprint, _listed(chunk_ids)),
        )
        return {_point_id(row[0]) for row in rows}

    @_whole
    def done_by_others(self) -> int:
        """Chunks that `former` would find, each once."""
        return self._connection.execute(
            "SELECT COUNT(DISTINCT chunk_id) FROM results "  # noqa: S608 - our own text
            f"WHERE fingerprint IN (SELECT c.fingerprint {_OTHERS}) AND state='done' "
            f"AND written<>{_UNDONE}",
            (self.configuration.collection, self.fingerprint),
        ).fetchone()[0]

    @_whole
    def other_configurations(self) -> list[tuple[Configuration, int]]:
        """The others that `former` looks at, each with how many chunks have a question by it; the
        one used last comes first."""
        rows = self._connection.execute(
            "SELECT c.collection, c.pipeline, c.personas, c.models, c.text_key, (SELECT "  # noqa: S608
            "COUNT(DISTINCT chunk_id) FROM results WHERE fingerprint=c.fingerprint "
            f"AND state='done' AND written<>{_UNDONE}) {_OTHERS} ORDER BY c.seen_at DESC",
            (self.configuration.collection, self.fingerprint),
        )
        return [
            (Configuration(row[0], row[1], row[2], tuple(json.loads(row[3])), row[4]), row[5])
            for row in rows
        ]

    @_whole
    def decide(self, changed: str) -> None:
        """Remember what a person decided on chunks that other configurations did."""
        with self._connection:
            self._note_configuration()
            self._connection.execute(
                "UPDATE configurations SET changed=? WHERE fingerprint=?",
                (changed, self.fingerprint),
            )

    @_whole
    def decision(self) -> str:
        """What was decided; '' for nothing yet."""
        row = self._connection.execute(
            "SELECT changed FROM configurations WHERE fingerprint=?", (self.fingerprint,)
        ).fetchone()
        return row[0] if row else ""

    # ------------------------------------------------------------------ pages of results

    @_whole
    def unchecked(self, policy: str, limit: int, after: tuple[str, int] = ("", -1)) -> list[Result]:
        """Up to `limit` done results that another policy checked, or none, by (chunk id as text,
        slot), from behind `after` on."""
        condition = "AND state='done' AND checked=? AND (chunk_id, slot)>(?, ?)"
        pages = [
            self._select(condition, limit, checked, *after)
            for checked in self._checked_by()
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

    @_whole
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
            f"{_SELECT} AND chunk_id {_AMONG} AND +state='done' AND checked<>'' AND written<>? "
            "ORDER BY chunk_id, slot",
            (self.fingerprint, _listed(row[0] for row in chunks), _UNDONE),
        )
        results = map(_result, rows)
        return [list(group) for _, group in groupby(results, key=lambda result: result.chunk_id)]

    def results(self, *states: State, batch: int = 1000) -> Iterator[Result]:
        """All in these states (none named: in any), by (chunk id as text, slot), read `batch` at a
        time. What is recorded meanwhile may be seen or not; nothing is seen twice."""
        place = ("", -1)
        while page := self._page(states, batch, place):
            yield from page
            place = _place(page[-1])

    @_whole
    def _page(self, states: Sequence[State], limit: int, after: tuple[str, int]) -> list[Result]:
        if not states:
            return self._select("AND (chunk_id, slot)>(?, ?)", limit, *after)
        condition = f"AND (chunk_id, slot)>(?, ?) AND +state {_AMONG}"
        return self._select(condition, limit, *after, json.dumps(states))

    def _select(self, condition: str, limit: int, *values: object) -> list[Result]:
        rows = self._connection.execute(
            f"{_SELECT} {condition} ORDER BY chunk_id, slot LIMIT ?",
            (self.fingerprint, *values, limit),
        )
        return list(map(_result, rows))

    def refusals(self) -> Iterator[tuple[PointId, int, Refusal]]:
        """Every refusal with its chunk and slot, by chunk id as text, slot and attempt."""
        place: tuple[str, int, int] = ("", -1, -1)
        while page := self._page_of_refusals(place):
            for chunk_id, slot, _, *said in page:
                yield _point_id(chunk_id), slot, Refusal(*said)
            place = page[-1][:3]

    @_whole
    def _page_of_refusals(self, after: tuple[str, int, int]) -> list[Any]:
        return self._connection.execute(
            f"SELECT chunk_id, slot, attempt, {', '.join(_REFUSAL)} FROM refusals "  # noqa: S608
            "WHERE fingerprint=? AND (chunk_id, slot, attempt)>(?, ?, ?) "
            "ORDER BY chunk_id, slot, attempt LIMIT 1000",
            (self.fingerprint, *after),
        ).fetchall()

    # ------------------------------------------------------------------ counting

    @_whole
    def counts(self) -> Counter[State]:
        """How many slots are in each state."""
        rows = self._connection.execute(
            "SELECT state, COUNT(*) FROM results WHERE fingerprint=? GROUP BY state",
            (self.fingerprint,),
        )
        return Counter(dict(rows.fetchall()))

    @_whole
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

    # ------------------------------------------------------------------ the journal for undo

    @_whole
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
                    (run, str(chunk_id), *whose, storable(former), _now())
                    for chunk_id, former in rows
                ],
            )

    @_whole
    def writes_of(self, run: str, limit: int, after: str = "") -> list[tuple[PointId, str]]:
        """Up to `limit` chunks, with their former fragments, that a run wrote and nobody undid; by
        id as text, from behind `after` on. [] for a run on another collection."""
        rows = self._connection.execute(
            "SELECT chunk_id, former FROM writes WHERE run=? AND undone=0 AND chunk_id>? "
            "AND collection=? ORDER BY chunk_id LIMIT ?",
            (run, after, self.configuration.collection, limit),
        )
        return [(_point_id(chunk_id), former) for chunk_id, former in rows]

    @_whole
    def runs(self) -> list[RunOfWrites]:
        """The runs that wrote to this collection, latest first."""
        rows = self._connection.execute(
            "SELECT run, MIN(at), COUNT(*), MIN(undone) FROM writes WHERE collection=? "
            "GROUP BY run ORDER BY MIN(at) DESC, run DESC",
            (self.configuration.collection,),
        )
        return [RunOfWrites(run, at, chunks, bool(undone)) for run, at, chunks, undone in rows]

    @_whole
    def mark_undone(self, run: str, chunk_ids: Iterable[PointId]) -> None:
        """Remember that a run's changes of these chunks are taken back. Their questions, by every
        configuration that wrote any, are not written again unless asked."""
        which = _listed(chunk_ids)
        with self._connection:
            undone = self._connection.execute(
                f"UPDATE writes SET undone=1 WHERE run=? AND chunk_id {_AMONG} "  # noqa: S608
                "RETURNING fingerprint, chunk_id",
                (run, which),
            ).fetchall()
            self._mark(undone, _UNDONE)  # a killed run may not have come to say that it wrote them
            self._connection.execute(
                f"UPDATE results SET written={_UNDONE} WHERE fingerprint IN ("  # noqa: S608
                "SELECT c.fingerprint FROM configurations AS c WHERE c.collection=?) "
                f"AND chunk_id {_AMONG} AND +state='done' AND written=1",
                (self.configuration.collection, which),
            )


def _row(result: Result) -> list[Any]:
    """A result's columns, in the order of its fields."""
    values = {name: _stored(getattr(result, name)) for name in _COLUMNS}
    values["chunk_id"] = str(result.chunk_id)
    values["findings"] = _stored(json.dumps(result.findings, ensure_ascii=False))
    return list(values.values())


def _result(row: Sequence[Any]) -> Result:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["chunk_id"] = _point_id(values["chunk_id"])
    values["findings"] = tuple((gate, reason) for gate, reason in json.loads(values["findings"]))
    values["analysed"] = bool(values["analysed"])
    return Result(**values)


def _stored(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value


def _place(result: Result) -> tuple[str, int]:
    """Where a page begins that follows this result."""
    return str(result.chunk_id), result.slot


def _listed(chunk_ids: Iterable[PointId]) -> str:
    return json.dumps([str(chunk_id) for chunk_id in chunk_ids])


def _point_id(text: str) -> PointId:
    """Qdrant's ids are numbers or UUIDs, so digits alone are a number."""
    return int(text) if text.isdecimal() else text


def _now() -> str:
    return datetime.now(UTC).isoformat()
