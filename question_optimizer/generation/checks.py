"""What is checked of a question by itself, and what the pipeline is told when it was refused.

Policies: `off` looks at nothing; `record` keeps what was found beside the question; `training` and
`evaluation` refuse, and ask again with the reason told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from question_optimizer import gates
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.generation.quotas import LENGTHS
from question_optimizer.words import word_count

POLICIES = ("off", "record", "training", "evaluation")
ENFORCED = frozenset(("training", "evaluation"))  # policies under which a gate refuses
PLANNED_LENGTH = "planned_length"
_SLACK = {"formal question": 2, "keywords": 0}  # words beyond the plan that are let pass
_ADVICE = {
    **gates.GATES,
    PLANNED_LENGTH: "fewer or more words than asked for",
    "near_duplicate": "another chunk has the same question; ask what only this chunk can tell",
    "round_trip": "a search for it does not find this chunk; name what only this chunk has",
    "ambiguous": "other chunks answer it as well; name what only this chunk has",
    "too_easy": "it repeats the chunk's words; use those of the persona",
}


def question_findings(result: Result, chunk_text: str) -> list[tuple[str, str]]:
    """(gate, reason) of everything that is wrong with a question by itself and by its plan."""
    failures = gates.gate_failures(
        result.query, chunk_text=chunk_text, query_format=result.query_format
    )
    found = [(failure.gate, failure.reason) for failure in failures]
    if result.query_length and result.query_format in LENGTHS:
        low, high = LENGTHS[result.query_format][result.query_length]
        slack = _SLACK[result.query_format]
        words = word_count(result.query or "")
        if not low - slack <= words <= high + slack:
            found.append((PLANNED_LENGTH, f"has {words} words where {low} to {high} were planned"))
    return found


def advice(slot: Result, refused: Sequence[Refusal]) -> str:
    """What the writer is told beyond the pipeline's instructions; '' for nothing.

    Made of few fixed sentences, and never of text that came from a chunk or a model.
    """
    told = []
    if slot.query_length and slot.query_format in LENGTHS:
        low, high = LENGTHS[slot.query_format][slot.query_length]
        told.append(f"Write it in {low} to {high} words.")
    told += [
        f"An earlier query was refused for: {one.gate} ({_ADVICE.get(one.gate, one.gate)})."
        for one in refused
    ]
    return "\n".join(told)


def refusal(result: Result, gate: str, reason: str) -> Refusal:
    """The refused question of a slot, to be kept."""
    return Refusal(
        query=result.query or "",
        gate=gate,
        reason=reason,
        query_type=result.query_type,
        query_format=result.query_format,
        query_length=result.query_length,
        persona_id=result.persona_id,
        model=result.model,
    )


def refused_once(result: Result, gate: str, reason: str) -> Result:
    """The slot after its question was refused: without a question, with the reason."""
    return replace(
        result, state="rejected", query=None, gate=gate, reason=reason, findings=(), checked=""
    )


def text_digest(chunk_text: str) -> str:
    """What a question belongs to besides its chunk's id: the sha256 of the text, in hex."""
    return hashlib.sha256(chunk_text.encode("utf-8", "replace")).hexdigest()
