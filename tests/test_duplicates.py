"""Questions that are the same again: no pair is missed, and none is made up."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SAMPLE
from question_optimizer.duplicates import alike, folded, near_duplicates, repeats


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What is WAL?", "  what is\nwal ", True),
        ("What is WAL?", '"What is WAL?"', True),
        ("ﬁle", "file", True),
        ("What is W\u00adA\u200bL\u2060?\ufeff", "What is WAL?", True),
        ("What does -> return?", "What does ->> return?", False),
        ("WAL limit", "WAL limits", False),
    ],
)
def test_two_spellings_of_one_question_fold_into_one(a: str, b: str, same: bool) -> None:
    assert (folded(a) == folded(b)) is same


def test_the_index_is_that_of_character_runs_of_five() -> None:
    # "abcdefghi": 5 runs; "abcdefghj": 5 runs, 4 of them shared; 4 / 6
    assert near_duplicates(["abcdefghi", "abcdefghj"], 0.6) == [(0, 1, pytest.approx(4 / 6))]
    assert near_duplicates(["abcdefghi", "abcdefghj"], 0.7) == []
    assert near_duplicates(["ab", "ab", "", ""]) == [(0, 1, 1.0)]


def all_pairs(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    sets = [{t[i : i + 5] for i in range(max(1, len(t) - 4))} if t else set() for t in texts]
    return [
        (i, j)
        for j in range(len(sets))
        for i in range(j)
        if sets[i] and sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="abc", max_size=14), max_size=25),
    st.sampled_from([0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]),
)
def test_no_pair_is_missed_or_made_up(texts: list[str], threshold: float) -> None:
    found = [(i, j) for i, j, _ in near_duplicates(texts, threshold)]
    assert found == sorted(all_pairs(texts, threshold))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abc", max_size=14), max_size=25))
def test_a_text_repeats_at_most_one_earlier_text_that_repeats_none(texts: list[str]) -> None:
    found = repeats(texts, 0.6)
    pairs = set(all_pairs(texts, 0.6))
    later = [j for _, j, _ in found]
    kept = [i for i in range(len(texts)) if i not in later]
    assert {(i, j) for i, j, _ in found} <= pairs
    assert len(later) == len(set(later))
    assert not {i for i, _, _ in found} & set(later)
    assert not [(i, j) for i, j in pairs if i in kept and j in kept]


def test_texts_are_alike_by_their_runs_of_five() -> None:
    assert alike("abcdefghi", "abcdefghj") == pytest.approx(4 / 6)
    assert alike("What is WAL?", "what is wal") == 1.0
    assert alike("", "abc") == alike("", "") == 0.0


def test_five_thousand_questions_take_seconds() -> None:
    draw = random.Random(0)
    rows = map(json.loads, (SAMPLE / "decisions.jsonl").read_text().splitlines())
    words = sorted({word for row in rows for word in (row.get("gold_question") or "").split()})
    texts = [f"What is the {' '.join(draw.choices(words, k=6))} in SQLite?" for _ in range(4999)]
    began = time.thread_time()
    found = near_duplicates([*texts, texts[17].replace("What", "what") + " "])
    assert [(i, j) for i, j, _ in found] == [(17, 4999)]
    assert time.thread_time() - began < 20
