"""Chunks and a ledger for the tests of the exports: small, and with what each test needs."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from question_optimizer.chunk_store import chunk_of, open_store
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Result
from question_optimizer.records import PointId

WORDS = (
    "amber basalt cobalt dolomite ebony flint granite hematite ivory jasper kaolin lignite marble "
    "nickel obsidian pumice quartz rhyolite slate topaz umber vellum wolfram xenon yttrium zircon"
).split()
SENTENCE = "The {} of a {} keeps its {} while the {} turns {} and {} under {} with {}."


def prose(seed: object, sentences: int = 4) -> str:
    """Text that is like no other seed's."""
    rng = random.Random(str(seed))
    return " ".join(SENTENCE.format(*(_word(rng) for _ in range(8))) for _ in range(sentences))


def question(seed: object) -> str:
    """A question that is like no other seed's."""
    rng = random.Random(f"asked {seed}")
    return f"How do {_word(rng)} {_word(rng)} and {_word(rng)} {_word(rng)} {_word(rng)}?"


def _word(rng: random.Random) -> str:
    return f"{rng.choice(WORDS)}{rng.choice('aeiou')}{rng.choice(WORDS)}"


@dataclass
class Passage:
    """A chunk as it is put into a collection."""

    id: PointId
    document: str
    text: str
    headings: list[str] = field(default_factory=list)
    before: PointId | None = None
    after: PointId | None = None
    file_name: str | None = None

    @property
    def payload(self) -> dict[str, Any]:
        near = {"2": self.before, "3": self.after}
        relations = {key: {"node_id": i} for key, i in near.items() if i is not None}
        node = {"text": self.text, "relationships": relations}
        return {
            "_node_content": json.dumps(node),
            "document_id": self.document,
            "file_name": self.file_name,
            "headings": self.headings,
        }


class ListedStore:
    """A `ChunkStore` of passages in memory."""

    def __init__(self, passages: Iterable[Passage], collection: str = "listed"):
        self.collection = collection
        self._passages = {passage.id: passage for passage in passages}

    def point_ids(self) -> list[PointId]:
        return list(self._passages)

    def payloads(self, ids: list[PointId]) -> Iterator[tuple[PointId, dict[str, Any]]]:
        yield from ((i, self._passages[i].payload) for i in ids if i in self._passages)

    def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
        yield from ()

    def close(self) -> None:
        pass


def documents(count: int, chunks: int = 5) -> list[Passage]:
    """So many documents of so many chunks, none like another."""
    return [
        Passage(f"{d:03}-{c}", f"document {d:03}", prose((d, c)))
        for d in range(count)
        for c in range(chunks)
    ]


def asked(passage: Passage, query: str | None = None, **other: Any) -> Result:
    """A checked question on a passage."""
    made = Result(
        chunk_id=passage.id,
        state="done",
        query=question((passage.id, other.get("slot", 0))) if query is None else query,
        query_type="analytical",
        query_format="formal question",
        query_length="medium",
        persona_id="operator",
        model="some-model",
        document=passage.document,
        text_sha256=hashlib.sha256(passage.text.encode("utf-8", "replace")).hexdigest(),
        checked="training",
    )
    return replace(made, **other)


def sample_results(folder: Path, model: str = "some-model") -> list[Result]:
    """A checked question on every chunk of a Qdrant folder, made of words that it has."""
    store = open_store(path=folder)
    found = []
    for point_id, payload in store.payloads(store.point_ids()):
        chunk, _ = chunk_of(point_id, payload)
        assert chunk is not None
        rng = random.Random(str(point_id))
        words = sorted(set(re.findall("[a-z]{6,}", chunk.chunk_text))) or ["nothing"]
        named = ", ".join(rng.sample(words, min(5, len(words))))
        passage = Passage(point_id, chunk.document, chunk.chunk_text)
        tag = f"{_word(rng)} {_word(rng)}"
        found.append(asked(passage, f"How are {named} connected in {tag}?", model=model))
    store.close()
    return found


def write_ledger(data: Path, collection: str, results: Iterable[Result], **other: Any) -> Ledger:
    """data/generation.sqlite with these results."""
    configuration = Configuration(collection, "a" * 16, "b" * 16, ("some-model",))
    ledger = Ledger(data / "generation.sqlite", replace(configuration, **other))
    ledger.record(list(results))
    ledger.close()
    return ledger
