"""One pass over the ledger: its slots by state, its failures, its spend, and a sample of questions.

Every count is bounded by kinds of things and not by the number of questions.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Self

from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.generation.quotas import Cell
from question_optimizer.generation.round_trip import AMBIGUOUS, ROUND_TRIP, TOO_EASY, RankCounts
from question_optimizer.generation.yields import Tally
from question_optimizer.hostile_text import one_line
from question_optimizer.records import PointId
from question_optimizer.words import word_count

SAMPLE = 2_000  # questions for `set_health`, of which 10,000 would take some seconds
LONGEST_COUNTED = 40  # words; longer questions are counted together
_FAILURE_GROUPS = 500  # kept apart while reading; the commonest are told
_FAILURES_TOLD = 20
_CHUNKS_NAMED = 3  # of a kind of failure
_REASON = 300  # characters
_CHANGING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b(?:-[0-9a-f]+)*|\d+(?:[.,:]\d+)*", re.I)

_BY_SEARCH = frozenset((ROUND_TRIP, AMBIGUOUS, TOO_EASY))  # gates that look at ranks
Slot = tuple[Result, list[Refusal]]  # with the questions that were refused in it


def by_chunk(ledger: Ledger) -> Iterator[list[Slot]]:
    """The slots of one chunk after the other, each with the questions refused in it.

    Both streams come by chunk id (as text) and slot, so that they can be read side by side.
    """
    refusals = ledger.refusals()
    waiting = next(refusals, None)

    def joined() -> Iterator[Slot]:
        nonlocal waiting
        for result in ledger.results():
            place, mine = (str(result.chunk_id), result.slot), []
            while waiting is not None and (str(waiting[0]), waiting[1]) <= place:
                # What was refused under a stricter policy and is accepted now is no refusal.
                if result.state != "done" or waiting[2].query != result.query:
                    mine.append(waiting[2])
                waiting = next(refusals, None)
            yield result, mine

    for _, slots in groupby(joined(), key=lambda slot: slot[0].chunk_id):
        yield list(slots)


class Census:
    """What is counted on the way. Bounded: by kinds of things, and by the sample.

    A refused slot that `asks_again` holds of is pending here, and not given up. What counts as
    found by a search is a rank up to `max_rank`.
    """

    def __init__(
        self,
        policy: str,
        rng: random.Random,
        *,
        asks_again: Callable[[Result], bool] = lambda _: False,
        max_rank: int = 10,
    ) -> None:
        self.policy = policy
        self.slots: Counter[str] = Counter()
        self.chunks: Counter[str] = Counter()
        self.rejected_by: Counter[str] = Counter()  # slots, by the gate of the last refusal
        self.cells: Counter[Cell] = Counter()  # of accepted questions
        self.words: Counter[int] = Counter()
        self.models: dict[str, Spent] = {}
        self.attempts = 0
        self.unchecked = 0
        self.failures = Failures()
        self.ranks = RankCounts()
        self.to_search = 0  # questions that a search decides on: accepted, or refused by its result
        self.sample: list[Result] = []  # one accepted question a chunk, each chunk as likely
        self._rng = rng
        self._asks_again = asks_again
        self._max_rank = max_rank

    def add(self, chunk: Sequence[Slot], tally: Tally) -> None:
        slots = [self._at_present(result) for result, _ in chunk]
        for result, (_, refusals) in zip(slots, chunk, strict=True):
            tally.add(result, refusals)
            self._add_slot(result)
            self._add_ranks(result, refusals)
        done = [result for result in slots if result.state == "done"]
        states = {result.state for result in slots}
        order = ("done", "pending", "failed", "rejected")
        self.chunks[next(state for state in order if state in states)] += 1
        if done:
            self._sample(done[0] if len(done) == 1 else self._rng.choice(done))

    def _at_present(self, result: Result) -> Result:
        again = result.state == "rejected" and self._asks_again(result)
        return replace(result, state="pending") if again else result

    def _add_ranks(self, result: Result, refusals: Sequence[Refusal]) -> None:
        decided: list[Result | Refusal] = [one for one in refusals if one.gate in _BY_SEARCH]
        if result.state == "done":
            decided.append(result)
        for one in decided:
            self.to_search += 1
            if one.dense_rank is not None and one.bm25_rank is not None:
                self.ranks.add(one.dense_rank, one.bm25_rank, self._max_rank)

    def _add_slot(self, result: Result) -> None:
        self.slots[result.state] += 1
        self.attempts += result.attempts
        spent = self.models.setdefault(result.model or "", Spent())
        spent += result
        if result.state == "done":
            kinds = (result.query_type, result.query_format, result.query_length)
            self.cells[Cell(*(kind or "" for kind in kinds))] += 1
            self.words[min(word_count(result.query or ""), LONGEST_COUNTED + 1)] += 1
            self.unchecked += result.checked != self.policy
        elif result.state == "rejected":
            self.rejected_by[result.gate] += 1
        elif result.state == "failed":
            self.failures.add(result)

    def usage(self) -> dict[str, Any]:
        """Calls, tokens and cost, failed and refused questions included, by the last model."""
        whole = Spent()
        for spent in self.models.values():
            whole += spent
        done = self.slots["done"]
        return {
            **whole.figures(),
            "cost_per_question": round(whole.cost / done, 6) if done else None,
            "tokens_per_question": round(whole.tokens / done, 1) if done else None,
            "by_model": [
                {"model": model or None, **self.models[model].figures()}
                for model in sorted(self.models)
            ],
        }

    def _sample(self, result: Result) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R)."""
        if len(self.sample) < SAMPLE:
            self.sample.append(result)
        elif (place := self._rng.randrange(self.chunks["done"])) < SAMPLE:
            self.sample[place] = result


@dataclass
class Spent:
    """What some slots took, all their attempts together; cost in the accounts' currency."""

    slots: int = 0
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __iadd__(self, other: Spent | Result) -> Self:
        self.slots += other.slots if isinstance(other, Spent) else 1
        self.calls += other.calls
        self.tokens += other.tokens
        self.cost += other.cost
        return self

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "cost": round(self.cost, 6)}


class Failures:
    """Failures that differ in numbers and ids only are one kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, list[PointId]]] = {}  # (first reason, chunks)
        self._counts: Counter[str] = Counter()
        self.other = 0

    def add(self, result: Result) -> None:
        reason = one_line(result.reason[: 2 * _REASON])[:_REASON] or "no reason was recorded"
        kind = _CHANGING.sub("#", reason)
        if kind not in self._kinds:
            if len(self._kinds) >= _FAILURE_GROUPS:
                self.other += 1
                return
            self._kinds[kind] = (reason, [])
        self._counts[kind] += 1
        chunks = self._kinds[kind][1]
        if len(chunks) < _CHUNKS_NAMED and result.chunk_id not in chunks:
            chunks.append(result.chunk_id)

    def told(self) -> dict[str, Any]:
        order = sorted(self._counts, key=lambda kind: (-self._counts[kind], kind))
        shown, left = order[:_FAILURES_TOLD], order[_FAILURES_TOLD:]
        return {
            "slots": self._counts.total() + self.other,
            "reasons": [
                {
                    "reason": self._kinds[kind][0],
                    "slots": self._counts[kind],
                    "chunks": self._kinds[kind][1],
                }
                for kind in shown
            ],
            "other": self.other + sum(self._counts[kind] for kind in left),
        }
