"""Checks of finished questions that need the whole corpus: near-duplicates and the round trip.

They run in batches over what the ledger holds unchecked, so that a killed run goes on where it was,
and a policy that was changed is applied to what was paid for under another one.

Near-duplicates are looked for among the questions of every configuration of the collection, by one
index, whose keys are `fingerprint:chunk/slot`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from question_optimizer.errors import INTERRUPTED, StopRun
from question_optimizer.generation.checks import (
    ENFORCED,
    question_findings,
    refusal,
    refused_once,
)
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Refusal, Result, Slot
from question_optimizer.generation.repeats import QuestionIndex, Repeat, Row
from question_optimizer.records import PointId
from question_optimizer.words import LOOKED_AT

if TYPE_CHECKING:
    from question_optimizer.generation.round_trip import RoundTrip

_BATCH = 500
T = TypeVar("T")
Finding = tuple[str, str]
TextsOf = Callable[[Sequence[PointId]], Mapping[PointId, str]]


@dataclass
class Settled:
    """What a call of `settle` came to: questions looked at, and refused by gate; `fresh` of these
    were never checked before."""

    checked: int = 0
    fresh: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def settle(
    ledger: Ledger,
    policy: str,
    repeats: QuestionIndex,
    *,
    texts_of: TextsOf,
    round_trip: RoundTrip | None = None,
    stopped: Callable[[], bool] = lambda: False,
    redo: bool = False,
    never: bool = False,
) -> Settled:
    """Check every question that did not pass under `policy` yet; with `never` only those that no
    policy checked. With `redo` other configurations' questions are no reason to refuse one, as they
    will be replaced.

    One that passes is marked so; one that is refused becomes a rejected slot, with its question
    kept. Under `record` what is found stands beside the question. `texts_of` gives the chunks of
    questions that were never looked at. A question whose chunk came after the index was built waits
    for the next one. StopRun between two batches once `stopped` says so.
    """
    settled = Settled()
    earlier = _Earlier(ledger, repeats, texts_of, redo)
    for batch in until_stopped(_batches(ledger, policy, only="" if never else None), stopped):
        batch = _known(batch, round_trip, texts_of)
        faults = _faults(batch, policy, earlier)
        notes = _round_trips(batch, faults, round_trip)
        results: list[Result] = []
        refusals: list[tuple[PointId, int, Refusal]] = []
        gone: list[PointId] = []
        for result, found, noted in zip(batch, faults, notes, strict=True):
            if found and policy in ENFORCED:
                if not _is_known(ledger, result):
                    refusals.append((result.chunk_id, result.slot, _refused(result, *found[0])))
                settled.fresh += result.checked == ""
                gone.append(result.chunk_id)
                slot = refused_once(result, *found[0])
                results.append(replace(slot, dense_rank=None, bm25_rank=None))
                settled.refused[found[0][0]] += 1
            else:
                results.append(replace(result, findings=(*found, *noted), checked=policy))
        earlier.remove(result for result in results if result.state == "rejected")
        ledger.record(results, refusals)
        if gone:
            ledger.written_again(gone)
        settled.checked += len(batch)
    return settled


def _refused(result: Result, gate: str, reason: str) -> Refusal:
    """The refused question, with the ranks at which it found its chunk."""
    return replace(
        refusal(result, gate, reason), dense_rank=result.dense_rank, bm25_rank=result.bm25_rank
    )


def _is_known(ledger: Ledger, result: Result) -> bool:
    """Whether this question was refused before, and taken back by a policy that refuses nothing."""
    former = ledger.refusals_of(result.chunk_id, result.slot) if result.checked else []
    return any(known.query == result.query for known in former)


def fill(
    repeats: QuestionIndex, ledger: Ledger, *, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Put the checked questions of every configuration of the collection, the one used first coming
    first, into an index that was lost, or never made; into any other those that other
    configurations made while the gates were off. StopRun once `stopped` says so."""
    rows = _unread(ledger) if len(repeats) else _accepted(ledger)
    repeats.fill(until_stopped(rows, stopped), _counts)  # all or none: who was killed begins again


def until_stopped(items: Iterable[T], stopped: Callable[[], bool]) -> Iterator[T]:
    """All of `items`; StopRun before the next one once `stopped` says so."""
    for item in items:
        if stopped():
            raise StopRun("cancelled", exit_code=INTERRUPTED)
        yield item


def _accepted(ledger: Ledger) -> Iterator[Row]:
    for configuration in [*reversed(ledger.others()), ledger.configuration]:
        with closing(Ledger(ledger.path, configuration)) as one:
            for result in one.results("done"):
                if result.checked:
                    yield _row(one, result)


def _unread(ledger: Ledger) -> Iterator[Row]:
    for configuration in reversed(ledger.others()):
        with closing(Ledger(ledger.path, configuration)) as one:
            for batch in _batches(one, "", only="off"):
                for result in batch:
                    yield _row(one, result)


def _batches(ledger: Ledger, policy: str, *, only: str | None = None) -> Iterator[list[Result]]:
    after = ("", -1)
    while batch := ledger.unchecked(policy, _BATCH, after, only=only):
        after = (str(batch[-1].chunk_id), batch[-1].slot)
        yield batch


def _faults(batch: Sequence[Result], policy: str, earlier: _Earlier) -> list[list[Finding]]:
    """What is wrong with each question: its own faults first, then whether it repeats another."""
    if policy == "off":
        return [[] for _ in batch]
    unread = [result.chunk_id for result in batch if result.checked == "off"]
    texts = earlier.texts_of(unread) if unread else {}
    found: list[list[Finding]] = []
    for result in batch:
        own = [(gate, why) for gate, why in result.findings if gate not in _CORPUS_WIDE]
        if result.chunk_id in texts and result.checked == "off":
            own = question_findings(result, texts[result.chunk_id])
        found.append(own)
    for faults, repeat in zip(found, earlier.repeated(batch), strict=True):
        if repeat is not None:
            why = f"is {repeat.alike:.0%} alike to another question: {repeat.question[:80]}"
            faults.append(("near_duplicate", why))
    return found


@dataclass(frozen=True)
class _Earlier:
    """The questions that those of `ledger` may repeat, which `repeats` holds.

    One counts while its slot in the ledger, of whatever configuration, holds it, and its chunk is
    in the collection; the rest is forgotten, as where documents were put in anew under new ids. Of
    another configuration it counts neither for its own chunk, where it is to be replaced, nor for
    any with `redo`.
    """

    ledger: Ledger
    repeats: QuestionIndex
    texts_of: TextsOf
    redo: bool

    def remove(self, results: Iterable[Result]) -> None:
        self.repeats.remove([_row(self.ledger, result)[0] for result in results])

    def repeated(self, batch: Sequence[Result]) -> list[Repeat | None]:
        """What each question repeats; None where it is in the index now."""
        counts = _counts_of_its_own if self.redo else _counts
        rows = [_row(self.ledger, result) for result in batch]
        found = self.repeats.check_and_add(rows, counts)
        hits = {place: repeat for place, repeat in enumerate(found) if repeat is not None}
        while gone := self._gone(hits):
            self.repeats.forget(hits[place] for place in gone)
            again = self.repeats.check_and_add([rows[place] for place in gone], counts)
            hits = {}
            for place, repeat in zip(gone, again, strict=True):
                found[place] = repeat
                if repeat is not None:
                    hits[place] = repeat
        return found

    def _gone(self, hits: Mapping[int, Repeat]) -> list[int]:
        """The places whose repeat does not stand any more; one look at the ledger, and one at the
        collection."""
        if not hits:
            return []
        slots = {place: _slot_of(repeat.key) for place, repeat in hits.items()}
        there = self.ledger.standing(set(slots.values()))
        held = {
            place: _chunk_id(slots[place][1])
            for place, repeat in hits.items()
            if there.get(slots[place], "")[:LOOKED_AT] == repeat.question
        }
        texts = self.texts_of(sorted(set(held.values()), key=str)) if held else {}
        return [place for place in hits if held.get(place) not in texts]


def _known(
    batch: list[Result],
    round_trip: RoundTrip | None,
    texts_of: TextsOf,
) -> list[Result]:
    """Without those whose chunk is in the collection, but came after the index was built."""
    if round_trip is None:
        return batch
    unknown = round_trip.unknown([result.chunk_id for result in batch])
    late = texts_of(unknown) if unknown else {}
    return [result for result in batch if result.chunk_id not in late]


def _round_trips(
    batch: list[Result], faults: Sequence[list[Finding]], round_trip: RoundTrip | None
) -> list[list[Finding]]:
    """Add to the faults where a question does not find its chunk, and to the results at what rank
    it does; what is only noted of each."""
    notes: list[list[Finding]] = [[] for _ in batch]
    sound = [place for place, found in enumerate(faults) if not found]
    if round_trip is None or not sound:
        return notes
    for place, outcome in zip(
        sound, round_trip.outcomes([batch[place] for place in sound]), strict=True
    ):
        if outcome.refusal is not None:
            faults[place].append((outcome.refusal.gate, outcome.refusal.reason))
        if outcome.ranks is not None:
            dense, bm25 = outcome.ranks
            batch[place] = replace(batch[place], dense_rank=dense, bm25_rank=bm25)
        notes[place] = [(note.gate, note.reason) for note in outcome.notes]
    return notes


_CORPUS_WIDE = frozenset(("near_duplicate", "round_trip", "too_easy", "ambiguous", "same_document"))


def _row(ledger: Ledger, result: Result) -> Row:
    key = f"{ledger.fingerprint}:{result.chunk_id}/{result.slot}"
    return key, result.query or "", result.text_sha256


def _slot_of(key: str) -> Slot:
    whose, _, rest = key.partition(":")
    chunk, _, slot = rest.rpartition("/")
    return whose, chunk, int(slot)


def _counts(key: str, there: str) -> bool:
    (whose, chunk, _), (others, its, _) = _slot_of(key), _slot_of(there)
    return whose == others or chunk != its


def _counts_of_its_own(key: str, there: str) -> bool:
    return _slot_of(key)[0] == _slot_of(there)[0]


def _chunk_id(text: str) -> PointId:
    return int(text) if text.isdecimal() else text
