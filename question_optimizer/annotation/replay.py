"""Decisions made earlier, taken from a file through the code that a session uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from question_optimizer.annotation.preparation import Preparation
from question_optimizer.annotation.session import LOOKAHEAD, Card, Refused, gold_item, in_order
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, Decision


def replay(
    chunks: Sequence[Chunk],
    decisions: Mapping[str, Decision],
    *,
    store: AnnotationStore,
    preparation: Preparation,
    sample: Sequence[Chunk],
    seed: int,
    saved: Callable[[], object],
) -> int:
    """Decide each of `chunks` as `decisions` (by chunk id) say; returns how many.

    Suggestions are made for what gets a question, in the order made and unshuffled, so a `pick`
    counts in that order. Nothing is timed. UserError naming the chunk where a decision does not
    fit; what came before it is kept.
    """
    wanted = [chunk for chunk in chunks if _makes_gold(decisions[str(chunk.chunk_id)])]
    groups = store.assign_splits(chunks, expected=wanted, sample=sample, seed=seed)
    ahead = iter(wanted)
    started = 0
    for number, chunk in enumerate(chunks):
        decision = decisions[str(chunk.chunk_id)]
        if not _makes_gold(decision):
            store.record(chunk, decision, None)
            saved()
            continue
        while started <= number + LOOKAHEAD and (coming := next(ahead, None)):
            _choose_persona(coming, decisions[str(coming.chunk_id)], store, preparation)
            preparation.look_ahead([coming])
            started += 1
        prepared = preparation.wait(chunk, None)
        if preparation.ended and prepared.problem:
            raise preparation.ended
        made = [round_.suggestions for round_ in prepared.rounds]
        card = Card(chunk, prepared, suggestions=in_order(made, None))
        try:
            item = gold_item(card, decision, group=groups[str(chunk.chunk_id)])
        except Refused as refusal:
            raise UserError(f"decision on chunk {chunk.chunk_id}: {refusal}") from None
        item.annotator = store.annotator
        store.record(chunk, decision, item)
        saved()
    return len(chunks)


def _makes_gold(decision: Decision) -> bool:
    return decision.action in ("pick", "edit", "write")


def _choose_persona(
    chunk: Chunk, decision: Decision, store: AnnotationStore, preparation: Preparation
) -> None:
    known = preparation.chooser.personas
    if decision.persona_id is None or store.persona_of(chunk.chunk_id) == (
        decision.persona_id,
        "person",
    ):
        return
    if decision.persona_id not in known:
        raise UserError(
            f"decision on chunk {chunk.chunk_id}: no persona {decision.persona_id!r}; "
            f"known: {', '.join(known)}"
        )
    store.choose_persona(chunk.chunk_id, decision.persona_id, by="person")
