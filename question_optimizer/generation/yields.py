"""How many questions of each kind were accepted, how many each gate refused, and which gate to
suspect.

Kinds are types, formats, lengths, personas, documents and models. Documents may be as many as
chunks, so counts beyond a bound go to a private database on disk that vanishes with the process.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.records import PointId
from question_optimizer.statistics import wilson

What = Literal["accepted", "failed", "given_up", "pending", "refused", "recorded"]
_OF_SLOTS: dict[str, What] = {
    "done": "accepted",
    "failed": "failed",
    "rejected": "given_up",
    "pending": "pending",
}
DIMENSIONS = ("type", "format", "length", "persona", "document", "model")
SUSPECTED = ("type", "format", "length", "persona", "document")  # a model may well be to blame
MOST_KINDS = 2_000  # of a dimension in a summary; the rest is summed up
# A gate that kills more than 40 % of a kind is a bug in the gate (facts on questions, C.2). The
# share has to be beyond chance, too: the lower end of its 95 % interval above 30 %.
MAX_REFUSED = 0.40
MAX_REFUSED_LOW = 0.30
FEWEST_ASKED = 20
_WARNED = 5  # kinds of one dimension that a gate is warned of by name
_HELD = 100_000  # counts in memory


@dataclass
class Kind:
    """The questions of one kind. `name` is '' where the kind is not known.

    accepted, refused   questions by what became of them; together those that were asked
    failed              slots without any question at the last attempt; no gate is to blame
    given_up, pending   slots of which every question was refused; slots to be worked on
    gates, recorded     refusals by gate; findings of accepted questions that were only recorded
    """

    name: str = ""
    accepted: int = 0
    failed: int = 0
    given_up: int = 0
    pending: int = 0
    gates: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)

    @property
    def refused(self) -> int:
        return self.gates.total()

    @property
    def asked(self) -> int:
        return self.accepted + self.refused

    def add(self, other: Kind, times: int = 1) -> None:
        """Count another kind in, or out where `times` is -1."""
        for what in _OF_SLOTS.values():
            setattr(self, what, getattr(self, what) + times * getattr(other, what))
        for mine, its in ((self.gates, other.gates), (self.recorded, other.recorded)):
            mine.update({gate: times * n for gate, n in its.items()})

    def figures(self) -> dict[str, Any]:
        """As JSON takes them; the yield is accepted ÷ asked, with its 95 % interval (Wilson)."""
        return {
            "kind": self.name or None,
            "asked": self.asked,
            "accepted": self.accepted,
            "refused": self.refused,
            "failed": self.failed,
            "given_up": self.given_up,
            "pending": self.pending,
            "yield": share(self.accepted, self.asked),
            "gates": dict(sorted(self.gates.items())),
            "recorded": dict(sorted(self.recorded.items())),
        }


def share(part: int, whole: int) -> dict[str, float | None]:
    """{value, low, high} of a share, with its 95 % interval; all None of nothing."""
    if not whole:
        return {"value": None, "low": None, "high": None}
    low, high = wilson(part, whole)
    return {"value": round(part / whole, 4), "low": round(low, 4), "high": round(high, 4)}


def percent(value: float, digits: int = 0) -> str:
    """A share in words: "46 %"."""
    return f"{100 * value:.{digits}f} %"


class Tally:
    """Counts by kind, in bounded memory whatever the number of kinds."""

    def __init__(self, held: int = _HELD) -> None:
        self._held = held
        self._counts: Counter[tuple[str, str, str, str]] = Counter()
        self._chunks: dict[str, str] = {}  # the id of a chunk of each document
        self._spilt: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._spilt is not None:
            self._spilt.close()

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, result: Result, refusals: Sequence[Refusal]) -> None:
        """Count a slot: its question or failure, and the questions that were refused before."""
        self._count(result, _OF_SLOTS[result.state], "", result)
        for gate in dict.fromkeys(gate for gate, _ in result.findings):
            self._count(result, "recorded", gate, result)
        for one in refusals:
            self._count(one, "refused", one.gate, result)
        self._chunks.setdefault(result.document, str(result.chunk_id))
        if len(self._counts) > self._held:
            self._spill()

    def _count(self, one: Result | Refusal, what: What, gate: str, slot: Result) -> None:
        kinds = (one.query_type, one.query_format, one.query_length, one.persona_id)
        for dimension, kind in zip(DIMENSIONS, (*kinds, slot.document, one.model), strict=True):
            self._counts[dimension, kind or "", what, gate] += 1

    def kinds(self, dimension: str) -> Iterator[Kind]:
        """Every kind of a dimension, by name."""
        for name, rows in groupby(self._rows(dimension), key=lambda row: row[0]):
            kind = Kind(name)
            for _, what, gate, n in rows:
                if what in _OF_SLOTS.values():
                    setattr(kind, what, n)
                else:
                    (kind.gates if what == "refused" else kind.recorded)[gate] += n
            yield kind

    def chunks_of(self, documents: Iterable[str]) -> dict[str, PointId]:
        """A chunk of each of these documents, the first that was counted."""
        if self._spilt is None:
            found = {one: self._chunks[one] for one in documents if one in self._chunks}
        else:
            self._spill()
            select = "SELECT chunk FROM chunks WHERE document=?"
            rows = ((one, self._spilt.execute(select, (one,)).fetchone()) for one in documents)
            found = {one: row[0] for one, row in rows if row}
        return {one: int(chunk) if chunk.isdecimal() else chunk for one, chunk in found.items()}

    def _rows(self, dimension: str) -> Iterator[tuple[str, str, str, int]]:
        if self._spilt is None:
            yield from sorted(
                (kind, what, gate, n)
                for (of, kind, what, gate), n in self._counts.items()
                if of == dimension
            )
            return
        self._spill()
        select = (
            "SELECT kind, what, gate, n FROM counts WHERE dimension=? ORDER BY kind, what, gate"
        )
        with closing(self._spilt.execute(select, (dimension,))) as rows:
            yield from rows

    def _spill(self) -> None:
        if self._spilt is None:
            self._spilt = sqlite3.connect("")  # a private file, deleted when it is closed
            self._spilt.execute(
                "CREATE TABLE counts (dimension TEXT, kind TEXT, what TEXT, gate TEXT, n INTEGER, "
                "PRIMARY KEY (dimension, kind, what, gate)) WITHOUT ROWID"
            )
            self._spilt.execute("CREATE TABLE chunks (document TEXT PRIMARY KEY, chunk TEXT)")
        self._spilt.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET n=n+excluded.n",
            ((*key, n) for key, n in sorted(self._counts.items())),
        )
        self._spilt.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?)", self._chunks.items())
        self._counts.clear()
        self._chunks.clear()


@dataclass
class Yields:
    """One dimension: its kinds as figures, what they add up to, and the suspicious gates."""

    listed: list[dict[str, Any]]  # lowest yield first, then most asked
    rest: dict[str, Any] | None  # sum of the kinds with the fewest questions, where there are many
    whole: Kind
    kinds: int
    states: Counter[What]  # kinds with an accepted question, and the others by what they have
    suspects: list[dict[str, Any]]

    @property
    def with_questions(self) -> int:
        return self.states["accepted"]


def yields(tally: Tally, dimension: str, *, most: int = MOST_KINDS) -> Yields:
    """The yields of a dimension; of more than `most` kinds those with the most questions."""
    whole, count = Kind(), 0
    states: Counter[What] = Counter()
    suspects: list[dict[str, Any]] = []

    def passing() -> Iterator[tuple[int, int, Kind]]:
        nonlocal count
        for place, kind in enumerate(tally.kinds(dimension)):
            whole.add(kind)
            count += 1
            states.update(_state(kind))
            suspects.extend(suspicious(kind, dimension))
            yield kind.asked + kind.failed, -place, kind

    kept = [kind for _, _, kind in heapq.nlargest(most, passing())]
    rest = _rest(whole, kept, count)
    kept.sort(key=lambda kind: (_rank(kind), -kind.asked, kind.name))
    figures = [k.figures() for k in kept]
    return Yields(figures, rest, whole, count, states, suspects)


def _state(kind: Kind) -> list[What]:
    """The state that counts: what may still come of a kind goes before what will not. [] of a kind
    that has no slot, but only questions that were refused."""
    states: tuple[What, ...] = ("accepted", "pending", "failed", "given_up")
    return [state for state in states if getattr(kind, state)][:1]


def _rank(kind: Kind) -> float:
    return kind.accepted / kind.asked if kind.asked else 2.0  # nothing asked: at the end


def _rest(whole: Kind, kept: Sequence[Kind], count: int) -> dict[str, Any] | None:
    if count == len(kept):
        return None
    rest = Kind()
    rest.add(whole)
    for kind in kept:
        rest.add(kind, -1)
    rest.gates, rest.recorded = +rest.gates, +rest.recorded
    return {**rest.figures(), "kinds": count - len(kept)}


def suspicious(kind: Kind, dimension: str) -> Iterator[dict[str, Any]]:
    """The gates that object to too many of a kind, see MAX_REFUSED.

    Findings that were only recorded count as well: such a gate would refuse them.
    """
    if kind.asked < FEWEST_ASKED:
        return
    for gate in sorted(kind.gates | kind.recorded):
        stopped = kind.gates[gate] + kind.recorded[gate]
        low, high = wilson(stopped, kind.asked)
        if stopped / kind.asked > MAX_REFUSED and low > MAX_REFUSED_LOW:
            yield {
                "gate": gate,
                "dimension": dimension,
                "kind": kind.name or None,
                "asked": kind.asked,
                "stopped": stopped,
                "enforced": bool(kind.gates[gate]),
                "share": round(stopped / kind.asked, 4),
                "low": round(low, 4),
                "high": round(high, 4),
            }


def gate_warnings(
    whole: Kind, by_dimension: dict[str, Yields], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What to suspect, in sentences: a gate that stops too many of all questions once, else by
    kind, the worst first. `names` are those of documents, for people."""
    overall = list(suspicious(whole, "all"))
    told = {one["gate"] for one in overall}
    found = [{"code": "gate", "text": _said(one, names), **one} for one in overall]
    for dimension in SUSPECTED:
        by_gate: dict[str, list[dict[str, Any]]] = {}
        for one in by_dimension[dimension].suspects:
            if one["gate"] not in told:
                by_gate.setdefault(one["gate"], []).append(one)
        for suspects in by_gate.values():
            suspects.sort(key=lambda one: (-one["low"], one["kind"] or ""))
            left = len(suspects) - _WARNED
            for place, one in enumerate(suspects[:_WARNED]):
                more = f", and as many of {left} others" if left > 0 and place == 0 else ""
                found.append({"code": "gate", "text": _said(one, names, more), **one})
    return found


_OF = {
    "all": "all questions",
    "type": "'{}' questions",
    "format": "questions in the format '{}'",
    "length": "questions planned as '{}'",
    "persona": "questions of persona '{}'",
    "document": "questions on document '{}'",
}


def _said(one: dict[str, Any], names: Mapping[str, str], more: str = "") -> str:
    verb = "refuses" if one["enforced"] else "would refuse"
    kind = one["kind"] or "not known"
    name = names.get(kind, kind) if one["dimension"] == "document" else kind
    of = _OF[one["dimension"]].format(name[:80])
    return (
        f"gate {one['gate']} {verb} {percent(one['share'])} of {of} ({one['stopped']:,} of "
        f"{one['asked']:,}; 95 % interval {percent(one['low'])} to {percent(one['high'])}){more}: "
        "a gate that refuses so many of one kind is more likely wrong than they are; look at its "
        "refusals"
    )
