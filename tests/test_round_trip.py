"""The band: what nothing finds is refused, what is too easy is capped, the rest is let pass."""

from __future__ import annotations

import functools
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from question_optimizer.embedding import HostEmbedder
from question_optimizer.generation.corpus_build import Source
from question_optimizer.generation.corpus_index import CorpusIndex, Found, Ranks, open_index
from question_optimizer.generation.ledger_records import Result
from question_optimizer.generation.round_trip import (
    BANDS,
    EVALUATION,
    TRAINING,
    Outcome,
    RoundTrip,
    check,
    is_easy,
)
from question_optimizer.records import Chunk


def found(rank: int = 1, near: int = 1, best_other: float = 0.5, in_document: int = 1) -> Found:
    return Found(rank, 0.6, best_other, near, in_document)


def ranks(dense: Found, bm25: Found, coverage: float = 0.5) -> Ranks:
    return Ranks(dense, bm25, coverage)


def said(outcome: Outcome) -> tuple[str | None, list[str]]:
    gate = outcome.refusal.gate if outcome.refusal else None
    return gate, [note.gate for note in outcome.notes]


FAR, NEAR = found(57, 60, 0.9), found(10, 12, 0.9)


@pytest.mark.parametrize(
    ("given", "training", "evaluation"),
    [
        (ranks(FAR, found(31, 40, 0.9)), ("round_trip", []), ("round_trip", [])),
        (ranks(FAR, NEAR), (None, []), (None, [])),  # one of the two is enough
        (ranks(NEAR, FAR), (None, []), (None, [])),
        (ranks(FAR, found(11, 20, 0.9)), ("round_trip", []), (None, [])),
        (ranks(found(21), found(21)), ("round_trip", []), ("round_trip", [])),
        # found first, and four others as well
        (ranks(found(1, 5), found(1, 5)), (None, ["ambiguous"]), ("ambiguous", [])),
        (ranks(found(1, 5), FAR), (None, ["ambiguous"]), ("ambiguous", [])),
        (ranks(found(1, 3), found(1, 5)), (None, []), (None, [])),  # one singles it out
        (ranks(found(2, 5, 0.65), FAR), (None, []), (None, [])),  # far behind the best
        # too easy: noted as long as there is room
        (ranks(found(), found(), 0.95), (None, []), (None, ["too_easy"])),
        (ranks(found(), found(), 0.9), (None, []), (None, [])),
        (ranks(found(), found(near=2), 0.95), (None, []), (None, [])),
        (ranks(found(2), found(), 0.95), (None, []), (None, [])),
        # repeated sections of one manual
        (
            ranks(found(4, 4, 0.9, in_document=4), found(9, 9, 0.9, in_document=8)),
            (None, ["same_document"]),
            (None, ["same_document"]),
        ),
    ],
)
def test_what_ranks_say_for_training_and_for_evaluation(
    given: Ranks,
    training: tuple[str | None, list[str]],
    evaluation: tuple[str | None, list[str]],
) -> None:
    assert said(check(given, TRAINING, 9_768)) == training
    assert said(check(given, EVALUATION, 9_768)) == evaluation


def test_reasons_name_both_ranks_and_what_else_is_found() -> None:
    outcome = check(ranks(FAR, found(1031)), TRAINING, 9_768, model="MiniLM")
    assert outcome.refusal is not None
    assert outcome.refusal.reason == "is found at rank 57 by MiniLM and 1,031 by BM25 of 9,768"
    (note,) = check(ranks(found(1, 9), found(1, 5)), TRAINING, 9_768).notes
    assert note.reason == "finds 4 other chunks as well as its own"
    easy = check(ranks(found(), found(), 0.97), EVALUATION, 9, model="MiniLM", easy_room=False)
    assert easy.refusal is not None
    assert easy.refusal.gate == "too_easy"
    assert "first by MiniLM and BM25" in easy.refusal.reason
    assert "97% of it" in easy.refusal.reason


def test_thresholds_are_those_of_the_band() -> None:
    strict = replace(TRAINING, max_rank=1, max_near=1, easy_coverage=0.3, max_rank_in_document=1)
    assert said(check(ranks(found(2), found(2)), strict, 9)) == ("round_trip", [])
    assert said(check(ranks(found(1, 2), found(1, 2)), strict, 9)) == (None, ["ambiguous"])
    assert is_easy(ranks(found(), found(), 0.4), strict)
    assert not is_easy(ranks(found(), found(), 0.4), TRAINING)
    assert set(BANDS) == {"training", "evaluation"}


# ---------------------------------------------------------------------- over an index


@functools.cache
def of_word(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(24)


def bag_of_words(texts: list[str]) -> np.ndarray:
    return np.array([sum((of_word(w) for w in text.split()), np.full(24, 0.1)) for text in texts])


TEXTS = [f"part{i} bolt{i} torque{i} wrench assembly line" for i in range(40)]


@pytest.fixture
def index(tmp_path: Path) -> CorpusIndex:
    sources = [
        Source(Chunk(chunk_id=f"id-{i}", chunk_text=text, document_id=f"d{i % 4}"))
        for i, text in enumerate(TEXTS)
    ]
    embedder = HostEmbedder("models/bag-of-words", bag_of_words, bag_of_words)
    return open_index(tmp_path, "docs", lambda: [sources], embedder)


def result(i: int, query: str) -> Result:
    return Result(chunk_id=f"id-{i}", state="done", query=query)


def test_a_batch_is_judged_over_the_whole_corpus(index: CorpusIndex) -> None:
    round_trip = RoundTrip(index, replace(TRAINING, max_rank=1))
    batch = [
        result(3, "which torque3 for bolt3"),
        result(4, "which torque5 for bolt5"),
        result(77, "which torque7 for bolt7"),
        result(6, "wrench assembly line"),
        result(7, ""),
    ]
    sound, other, gone, generic, empty = round_trip.findings(batch)
    assert sound == []
    assert other[0][0] == "round_trip"
    assert other[0][1].endswith("by BM25 of 40")
    assert "by bag-of-words and" in other[0][1]
    assert gone == [("round_trip", "its chunk is not in the collection")]
    # BM25 finds all forty alike, so nothing is ahead of its own; that is no find, but a note
    assert generic == []
    assert [note.gate for note in round_trip.outcomes(batch[3:4])[0].notes] == ["ambiguous"]
    assert empty[0][0] == "round_trip"
    assert round_trip.findings([]) == []


def test_too_easy_questions_take_no_more_than_their_share(index: CorpusIndex) -> None:
    easy = [result(i, f"part{i} bolt{i} torque{i}") for i in range(20)]
    hard = [result(i, f"unknown{i} bolt{i} tool") for i in range(20, 30)]
    band = replace(EVALUATION, easy_share=0.5, easy_free=2)
    outcomes = RoundTrip(index, band).outcomes([*easy, *hard])
    refused = [o.refusal.gate if o.refusal else "" for o in outcomes]
    assert refused[20:] == [""] * 10
    assert refused[:20] == [""] * 10 + ["too_easy"] * 10  # as many as the others
    assert [note.gate for note in outcomes[0].notes] == ["too_easy"]

    in_two = RoundTrip(index, band)
    first = [outcome.refusal is None for outcome in in_two.outcomes(easy)]
    assert first == [True] * 2 + [False] * 18  # the free ones
    assert all(outcome.refusal is None for outcome in in_two.outcomes(hard))
    again = [outcome.refusal is None for outcome in in_two.outcomes(easy[2:])]
    assert sum(again) == 8
    assert not any(RoundTrip(index, TRAINING).findings(easy))
    whole = replace(band, easy_share=1.0)
    assert not any(RoundTrip(index, whole).findings(easy))


def test_figures_count_all_that_was_looked_at(index: CorpusIndex) -> None:
    round_trip = RoundTrip(index, TRAINING)
    assert round_trip.figures()["questions"] == 0
    round_trip.findings([result(3, "torque3 bolt3"), result(9, "torque4 bolt4 part4")])
    figures = round_trip.figures()
    assert (figures["questions"], figures["chunks"], figures["model"]) == (2, 40, "bag-of-words")
    assert figures["recall"]["bm25"] == {"1": 0.5, "5": 0.5, "10": 0.5, "20": 0.5}
    assert figures["ranks"]["bm25"]["1"] == 1
    assert sum(figures["ranks"]["dense"].values()) == sum(figures["ranks"]["bm25"].values()) == 2
    assert figures["found"]["bm25"] == 0.5
    assert figures["found"]["both"] <= figures["found"]["dense"] <= figures["found"]["either"]
