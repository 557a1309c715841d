"""Words are counted as a reader counts them, in any script."""

from __future__ import annotations

import pytest

from question_optimizer.words import word_count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("a <> b", 3),
        ("Güterzug bremst", 2),
        ("制動距離", 2),
        ("WAL モード", 3),
        ("ก" * 9, 3),
    ],
)
def test_words_are_counted_where_no_space_parts_them(text: str, words: int) -> None:
    assert word_count(text) == words
