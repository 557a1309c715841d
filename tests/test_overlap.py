"""The words that a question has in common with its chunk: too many, and none."""

from __future__ import annotations

import pytest

from question_optimizer.overlap import copies, copy_rate, longest_run, shares_nothing

CHUNK = "The write-ahead log grows until a checkpoint moves its pages back into the database file."


@pytest.mark.parametrize(
    ("question", "rate", "run"),
    [
        # 9 words, 6 runs of four, of which "the write ahead log", "write ahead log grows",
        # "ahead log grows until" are the chunk's
        ("When the write-ahead log grows until noon?", 3 / 5, 6),
        ("What ends the growth of a journal?", 0.0, 1),
        ("checkpoint moves its pages", 1.0, 4),
        ("checkpoint moves", 0.0, 2),  # too short for a run of four
        ("", 0.0, 0),
        (CHUNK, 1.0, 16),
        ("THE WRITE AHEAD LOG", 1.0, 4),  # neither case nor hyphen hides a copy
        # part of a word is no word: "log" is not found in "logs"
        ("write ahead logs grow", 0.0, 2),
    ],
)
def test_copying_is_measured_in_words(question: str, rate: float, run: int) -> None:
    assert copy_rate(question, CHUNK) == pytest.approx(rate)
    assert longest_run(question, CHUNK) == run


@pytest.mark.parametrize(
    ("question", "keywords", "finding"),
    [
        ("Why does a checkpoint moves its pages?", False, None),  # 2 of 4 runs: the limit itself
        ("How a checkpoint moves its pages?", False, "67% of its runs of 4 words are in the chunk"),
        ("checkpoint moves its pages", True, None),
        (
            "a checkpoint moves its pages back into the database",
            True,
            "9 words in a row are those of the chunk",
        ),
        (
            "What is: write-ahead log grows until a checkpoint, in SQLite's own words and mine",
            False,
            None,
        ),  # 7 in a row: the limit itself
    ],
)
def test_copying_has_two_limits_and_keywords_one(
    question: str, keywords: bool, finding: str | None
) -> None:
    assert copies(question, CHUNK, keywords=keywords) == finding


@pytest.mark.parametrize(
    ("question", "nothing"),
    [
        ("Why does my phone app stall?", True),
        ("Why does a checkpoint stall?", False),
        ("Which checkpointing mode is best?", False),  # by the first four letters
        ("What is the purpose of it?", False),  # no word that tells anything
        ("What is <b> good for?", False),  # a sign of the chunk
        ("", False),
    ],
)
def test_a_question_may_share_nothing_with_its_chunk(question: str, nothing: bool) -> None:
    assert shares_nothing(question, CHUNK + " FTS5 marks with <b>.") is nothing
