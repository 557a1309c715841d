"""Personas: who asks. Loaded from a file people edit, matched to chunks by meaning."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer import files
from question_optimizer.embedding import Embedder
from question_optimizer.errors import StopRun, UserError
from question_optimizer.records import Chunk, Persona

if TYPE_CHECKING:
    import numpy as np


def load_personas(path: Path) -> list[Persona]:
    """The personas of a JSON list, in file order; UserError on a bad entry or a repeated id."""
    rows = files.read_json(path, made_by=None)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: must be a list with at least one persona (id, name, description)")
    personas = [
        files.parsed(Persona, row, where=f"{path}: persona {number}", fix="correct the file")
        for number, row in enumerate(rows, 1)
    ]
    seen: set[str] = set()
    for persona in personas:
        if persona.id in seen:
            raise UserError(f"{path}: persona id {persona.id!r} occurs twice; correct the file")
        seen.add(persona.id)
    return personas


FALLBACK = "fallback"  # who chose where an LLM was to choose and failed


class PersonaMatcher:
    """Ranks personas for a text by cosine similarity of their descriptions with it."""

    def __init__(self, personas: Sequence[Persona], embedder: Embedder):
        self.personas = list(personas)
        self._embedder = embedder
        self._vectors: np.ndarray | None = None

    def rank(self, texts: Sequence[str], vectors: np.ndarray | None = None) -> list[list[Persona]]:
        """For each text every persona, the nearest first; equal ones in file order.

        Batched: a tenth of the time of one by one. `vectors`, shape (texts, dimensions), are unit
        vectors of the texts by the same model, where somebody has them.
        """
        if not texts:
            return []
        if len(self.personas) == 1:  # nothing to compare, so nothing to load
            return [list(self.personas) for _ in texts]
        if self._vectors is None:
            self._vectors = self._embedder.embed_once([p.description for p in self.personas])
        if vectors is None:
            vectors = self._embedder.embed(texts)
        similarity = vectors @ self._vectors.T
        return [
            [self.personas[index] for index in order]
            for order in (-similarity).argsort(axis=1, kind="stable")
        ]

    def choose(self, texts: Sequence[str], vectors: np.ndarray | None = None) -> list[Persona]:
        """The nearest persona for each text, in order."""
        return [ranked[0] for ranked in self.rank(texts, vectors)]

    def choose_appropriate_character(self, text: str) -> Persona:
        """The persona that fits `text` best; the first in file order where two fit equally."""
        return self.choose([text])[0]


class PersonaCap:
    """Keeps any one persona from taking more than a share of the chunks.

    Nearest-neighbour choice has hubs: one broadly worded persona wins most chunks. A persona that
    holds `most` of all that were given out (and 3 at least, so that the first few are free) is
    full, and the next in rank takes its place.
    """

    _FREE = 3

    def __init__(self, most: float):
        if not 0 < most <= 1:
            raise ValueError(f"a share above 0 and up to 1, not {most}")
        self._most = most
        self._held: Counter[str] = Counter()

    def count(self, persona: Persona, chunks: int = 1) -> None:
        """`persona` was given to so many more chunks."""
        self._held[persona.id] += chunks

    def has_room(self, persona: Persona) -> bool:
        """Whether one more chunk is within its share."""
        most = max(self._FREE, math.ceil(self._most * (self._held.total() + 1)))
        return self._held[persona.id] < most

    def least_used(self, personas: Sequence[Persona]) -> Persona:
        """Whoever holds the fewest chunks; the first of those who hold equally many."""
        return min(personas, key=lambda persona: self._held[persona.id])


class PersonaChooser:
    """The persona of each chunk: the nearest few, under a cap, then perhaps an LLM's choice.

    `ask`, if given, chooses among up to `top_k` personas or answers None: none of them fits. Safe
    to use from several threads.
    """

    def __init__(
        self,
        matcher: PersonaMatcher,
        *,
        top_k: int = 3,
        cap: PersonaCap | None = None,
        ask: Callable[[Chunk, Sequence[Persona]], Persona | None] | None = None,
    ):
        self.personas = {persona.id: persona for persona in matcher.personas}
        self._matcher = matcher
        self._top_k = top_k
        self._cap = cap or PersonaCap(1.0)
        self._ask = ask
        self._lock = threading.Lock()

    def count(self, persona_id: str | None) -> None:
        """A persona given to a chunk in an earlier session; None and unknown ids count nothing."""
        if persona := self.personas.get(persona_id or ""):
            self._cap.count(persona)

    def shortlists(self, chunks: Sequence[Chunk]) -> list[list[Persona]]:
        """Who may ask about each of `chunks`, the nearest first; never empty.

        To be called for chunks in order: the cap depends on those before. The first of each list
        counts as given until `choose` says otherwise.
        """
        lists = []
        for ranked in self._matcher.rank([chunk.chunk_text for chunk in chunks]):
            with self._lock:
                fitting = self._fitting(ranked)
                self._cap.count(fitting[0])
            lists.append(fitting)
        return lists

    def _fitting(self, ranked: Sequence[Persona]) -> list[Persona]:
        """Those of the nearest few that have room; else the nearest at all that has any."""
        near = [persona for persona in ranked[: self._top_k] if self._cap.has_room(persona)]
        beyond = (persona for persona in ranked[self._top_k :] if self._cap.has_room(persona))
        return near or [next(beyond, None) or self._cap.least_used(ranked)]

    def choose(self, chunk: Chunk, shortlist: Sequence[Persona]) -> tuple[Persona | None, str]:
        """(persona or None for none fits; "similarity", "llm", or FALLBACK where the LLM failed).

        Where the LLM fails, the nearest asks: a chunk should not wait for want of a persona. A
        choice that others have filled up meanwhile falls to the next on the list.
        """
        if self._ask is None:
            return shortlist[0], "similarity"
        try:
            persona, by = self._ask(chunk, shortlist), "llm"
        except (Exception, StopRun):
            return shortlist[0], FALLBACK
        with self._lock:
            self._cap.count(shortlist[0], -1)
            if persona is None:
                return None, by
            if not self._cap.has_room(persona):
                persona = next(filter(self._cap.has_room, shortlist), persona)
            self._cap.count(persona)
        return persona, by
