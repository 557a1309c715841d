"""Checks of finished questions that need the whole corpus: near-duplicates and the round trip.

They run in batches over what the ledger holds unchecked, so that a killed run goes on where it was,
and a policy that was changed is applied to what was paid for under another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from question_optimizer.generation.checks import (
    ENFORCED,
    question_findings,
    refusal,
    refused_once,
)
from question_optimizer.generation.ledger import Ledger, Refusal, Result
from question_optimizer.generation.repeats import QuestionIndex
from question_optimizer.records import PointId

if TYPE_CHECKING:
    from question_optimizer.generation.round_trip import RoundTrip

_BATCH = 500
Finding = tuple[str, str]


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
    texts_of: Callable[[Sequence[PointId]], Mapping[PointId, str]],
    round_trip: RoundTrip | None = None,
) -> Settled:
    """Check every question that did not pass under `policy` yet.

    One that passes is marked so; one that is refused becomes a rejected slot, with its question
    kept. Under `record` what is found stands beside the question. `texts_of` gives the chunks of
    questions that were never looked at.
    """
    settled = Settled()
    for batch in _batches(ledger, policy):
        faults = _faults(batch, policy, repeats, texts_of)
        notes = _round_trips(batch, faults, round_trip)
        results: list[Result] = []
        refusals: list[tuple[PointId, int, Refusal]] = []
        gone: list[PointId] = []
        for result, found, noted in zip(batch, faults, notes, strict=True):
            if found and policy in ENFORCED:
                if not _is_known(ledger, result):
                    refusals.append((result.chunk_id, result.slot, refusal(result, *found[0])))
                settled.fresh += result.checked == ""
                gone.append(result.chunk_id)
                results.append(refused_once(result, *found[0]))
                settled.refused[found[0][0]] += 1
            else:
                results.append(replace(result, findings=(*found, *noted), checked=policy))
        repeats.remove(_key(result) for result in results if result.state == "rejected")
        ledger.record(results, refusals)
        if gone:
            ledger.written_again(gone)
        settled.checked += len(batch)
    return settled


def _is_known(ledger: Ledger, result: Result) -> bool:
    """Whether this question was refused before, and taken back by a policy that refuses nothing."""
    former = ledger.refusals_of(result.chunk_id, result.slot) if result.checked else []
    return any(known.query == result.query for known in former)


def fill(repeats: QuestionIndex, ledger: Ledger) -> None:
    """Put the ledger's checked questions into an index that was lost, or never made."""
    if len(repeats):
        return
    rows = (
        (_key(result), result.query or "", result.text_sha256)
        for result in ledger.results("done")
        if result.checked
    )
    while batch := list(islice(rows, _BATCH)):
        repeats.check_and_add(batch)


def _batches(ledger: Ledger, policy: str) -> Iterator[list[Result]]:
    after = ("", -1)
    while batch := ledger.unchecked(policy, _BATCH, after):
        after = (str(batch[-1].chunk_id), batch[-1].slot)
        yield batch


def _faults(
    batch: Sequence[Result],
    policy: str,
    repeats: QuestionIndex,
    texts_of: Callable[[Sequence[PointId]], Mapping[PointId, str]],
) -> list[list[Finding]]:
    """What is wrong with each question: its own faults first, then whether it repeats another."""
    if policy == "off":
        return [[] for _ in batch]
    unread = [result.chunk_id for result in batch if result.checked == "off"]
    texts = texts_of(unread) if unread else {}
    found: list[list[Finding]] = []
    for result in batch:
        own = [(gate, why) for gate, why in result.findings if gate not in _CORPUS_WIDE]
        if result.chunk_id in texts and result.checked == "off":
            own = question_findings(result, texts[result.chunk_id])
        found.append(own)
    rows = [(_key(result), result.query or "", result.text_sha256) for result in batch]
    for faults, repeat in zip(found, repeats.check_and_add(rows), strict=True):
        if repeat is not None:
            why = f"is {repeat.alike:.0%} alike to another question: {repeat.question[:80]}"
            faults.append(("near_duplicate", why))
    return found


def _round_trips(
    batch: Sequence[Result], faults: Sequence[list[Finding]], round_trip: RoundTrip | None
) -> list[list[Finding]]:
    """Add to the faults where a question does not find its chunk; what is only noted of each."""
    notes: list[list[Finding]] = [[] for _ in batch]
    sound = [place for place, found in enumerate(faults) if not found]
    if round_trip is None or not sound:
        return notes
    for place, outcome in zip(
        sound, round_trip.outcomes([batch[place] for place in sound]), strict=True
    ):
        if outcome.refusal is not None:
            faults[place].append((outcome.refusal.gate, outcome.refusal.reason))
        notes[place] = [(note.gate, note.reason) for note in outcome.notes]
    return notes


_CORPUS_WIDE = frozenset(("near_duplicate", "round_trip", "too_easy", "ambiguous", "same_document"))


def _key(result: Result) -> str:
    return f"{result.chunk_id}/{result.slot}"
