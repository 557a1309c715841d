"""Questions to look at: a few that each gate refused, and a few accepted ones of each type."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.generation.summary import NamesOf, TextsOf
from question_optimizer.records import PointId

_PER_TYPE = 2  # accepted questions


def examples(
    ledger: Ledger,
    *,
    texts_of: TextsOf | None = None,
    names_of: NamesOf | None = None,
    seed: int = 0,
    per_gate: int = 3,
) -> dict[str, list[dict[str, Any]]]:
    """{"refused", "accepted"}: a few questions of each gate and of each type, as plain values.

    Chosen by `seed`, each as likely as any other of its gate or type; with their chunks' texts
    where `texts_of` gives them, and their documents' names where `names_of` does. Reads the ledger
    row by row.
    """
    rng = random.Random(seed)
    refused, accepted = _Choice(per_gate, rng), _Choice(_PER_TYPE, rng)
    for chunk_id, slot, refusal in ledger.refusals():
        refused.add(refusal.gate, (chunk_id, slot, refusal))
    for result in ledger.results("done"):
        accepted.add(result.query_type or "", (result.chunk_id, result.slot, result))
    rows = {"refused": refused.rows(), "accepted": accepted.rows()}
    ids = list(dict.fromkeys(row[0] for chosen in rows.values() for row in chosen))
    texts = texts_of(ids) if texts_of else {}
    slots = ledger.slots_of(ids)
    chosen_documents = {slot.document: slot.chunk_id for same in slots.values() for slot in same}
    names = names_of(chosen_documents) if names_of else {}
    return {
        kind: [_example(*row, slots.get(row[0], []), texts, names) for row in chosen]
        for kind, chosen in rows.items()
    }


_Row = tuple[PointId, int, Refusal | Result]


class _Choice:
    """Up to `most` rows of each kind by reservoir sampling (Vitter 1985, algorithm R)."""

    def __init__(self, most: int, rng: random.Random) -> None:
        self._most, self._rng = most, rng
        self._seen: dict[str, int] = {}
        self._kept: dict[str, list[_Row]] = {}

    def add(self, kind: str, row: _Row) -> None:
        self._seen[kind] = seen = self._seen.get(kind, 0) + 1
        rows = self._kept.setdefault(kind, [])
        if seen <= self._most:
            rows.append(row)
        elif (place := self._rng.randrange(seen)) < self._most:
            rows[place] = row

    def rows(self) -> list[_Row]:
        return [row for kind in sorted(self._kept) for row in self._kept[kind]]


def _example(
    chunk_id: PointId,
    number: int,
    one: Refusal | Result,
    slots: Sequence[Result],
    texts: Mapping[PointId, str],
    names: Mapping[str, str],
) -> dict[str, Any]:
    slot = next((slot for slot in slots if slot.slot == number), None)
    return {
        "chunk_id": chunk_id,
        "slot": number,
        "document": slot.document if slot else "",
        "document_name": names.get(slot.document) if slot else None,
        "heading": slot.heading if slot else "",
        "chunk_text": texts.get(chunk_id, ""),
        "question": one.query or "",
        "gate": one.gate,
        "reason": one.reason,
        "findings": [list(found) for found in one.findings] if isinstance(one, Result) else [],
        "query_type": one.query_type,
        "query_format": one.query_format,
        "query_length": one.query_length,
        "persona_id": one.persona_id,
        "model": one.model,
    }
