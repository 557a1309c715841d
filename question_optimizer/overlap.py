"""The words that a question has in common with its chunk: too many are a copy.

None at all is no defect. The question a person asks in words of their own (the one that trains a
retriever most) may share no word with its chunk, so only `set_health` counts these.
"""

from __future__ import annotations

from question_optimizer.languages import SAYS_NOTHING
from question_optimizer.words import CHUNK_LOOKED_AT, LOOKED_AT, SIGN, words_of

MAX_COPY_RATE = 0.5  # of a question's word 4-grams
MAX_COPIED_RUN = 7  # words


def copies(question: str, text: str, *, keywords: bool = False) -> str | None:
    """In what the question copies the text more than it may, or None.

    `keywords` tells that the question is in keyword format, which may consist of the text's terms
    and is held to the longest run only.
    """
    run = longest_run(question, text)
    if run > MAX_COPIED_RUN:
        return f"{run} words in a row are those of the chunk"
    rate = 0.0 if keywords else copy_rate(question, text)
    if rate > MAX_COPY_RATE:
        return f"{rate:.0%} of its runs of 4 words are in the chunk"
    return None


def copy_rate(question: str, text: str, n: int = 4) -> float:
    """The share of the question's distinct word n-grams that occur in the text; 0 if it has none.

    Source: c_n of the copy cap that InPars' filter meant to be; the cap of .5 is ours.
    """
    asked, there = words_of(question[:LOOKED_AT]), f" {' '.join(words_of(text))} "
    grams = {" ".join(asked[i : i + n]) for i in range(len(asked) - n + 1)}
    return sum(f" {gram} " in there for gram in grams) / len(grams) if grams else 0.0


def longest_run(question: str, text: str) -> int:
    """How many words in a row of the question stand in the same order in the text, at most."""
    asked, there = words_of(question[:LOOKED_AT]), f" {' '.join(words_of(text))} "
    longest = 0
    for start in range(len(asked)):
        while (
            start + longest < len(asked)
            and f" {' '.join(asked[start : start + longest + 1])} " in there
        ):
            longest += 1
    return longest


def shares_nothing(question: str, chunk_text: str) -> bool:
    """Whether no word of the question that tells anything, and no sign, stands in the chunk.

    Words are compared by their first four letters.
    """
    text, chunk = question[:LOOKED_AT], chunk_text[:CHUNK_LOOKED_AT].casefold()
    words = [w for w in words_of(text) if len(w) > 2 and w not in SAYS_NOTHING]
    signs = [sign.casefold() for sign in SIGN.findall(text)]
    return bool(words) and not any(part in chunk for part in [*(w[:4] for w in words), *signs])
