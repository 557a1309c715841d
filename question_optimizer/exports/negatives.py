"""Hard negatives: chunks that are close to a question and, as far as can be told, no answer to it.

Positive-aware (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831): a chunk that scores above 95 %
of the positive's own score is more likely an answer that nobody marked than a negative, and is
passed over. So is what stands beside the positive, repeats it, or answers a like question.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from question_optimizer.exports.likeness import Groups
from question_optimizer.exports.splitting import Division
from question_optimizer.exports.workspace import SIDES, Workspace

if TYPE_CHECKING:
    import numpy as np

    from question_optimizer.embedding import TextEmbedder
    from question_optimizer.generation.corpus_index import CorpusIndex

MOST_OF_POSITIVE = 0.95  # TopK-PercPos of the paper, its best setting
# Nearest chunks looked at: deeper for questions before which so many others come that too few score
# low enough. Among 10,000 chunks of a manual those were more than a third.
_DEPTHS = (100, 1_000, 10_000)
_TOGETHER = 256  # questions searched for at a time
_NOWHERE, _HELD = -1, -2  # sides of chunks without questions, and of those that gold holds out
_TRAIN, _GOLD = SIDES.index("train"), 1 << len(SIDES)  # the latter of texts that gold holds out


class _Asked(NamedTuple):
    """A question as it is searched for. `alike` is the group of questions that it is alike to."""

    number: int
    text: str
    chunk: int
    alike: int
    before: int | None  # the chunks beside its own in the document
    after: int | None


def mine(
    work: Workspace,
    division: Division,
    index: CorpusIndex,
    embedder: TextEmbedder,
    wanted: int,
    *,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Put up to `wanted` negatives a question into `work`, nearest first; how many questions have
    that many.

    Candidates are the nearest chunks that score low enough, of documents of the question's own side
    or without questions, down to the 10,000th. None is under the same headings as the positive,
    next to it in the document, alike to it in text, or the positive of a question that is the same
    or alike; none has the text of another side's positive, which a text that many documents have
    may be.
    """
    corpus = _Corpus(work, division, index)
    complete = 0
    depths = [*(depth for depth in _DEPTHS if depth < len(index)), len(index)][: len(_DEPTHS)]
    waiting = _all_questions(work)
    for depth in depths:
        short = array("q")
        for asked, found in _searched(work, waiting, corpus, index, embedder, depth):
            fit = ((n, score) for n, score in found if corpus.is_fit(n, asked))
            chosen = list(islice(fit, wanted))
            if len(chosen) < wanted and depth != depths[-1]:
                short.append(asked.number)
                continue
            rows = ((asked.number, place, n, score) for place, (n, score) in enumerate(chosen))
            work.add("negatives", rows)
            complete += len(chosen) == wanted
            advance()
        waiting = short
    return complete


def _all_questions(work: Workspace) -> array[int]:
    rows = work.ask("SELECT number FROM questions WHERE side IS NOT NULL ORDER BY number")
    return array("q", (number for (number,) in rows))


def _searched(
    work: Workspace,
    questions: array[int],
    corpus: _Corpus,
    index: CorpusIndex,
    embedder: TextEmbedder,
    depth: int,
) -> Iterator[tuple[_Asked, list[tuple[int, float]]]]:
    """Each question with what `_nearest` finds."""
    for start in range(0, len(questions), _TOGETHER):
        batch = _asked(work, questions[start : start + _TOGETHER])
        yield from zip(batch, _nearest(batch, corpus, index, embedder, depth), strict=True)


def _asked(work: Workspace, numbers: array[int]) -> list[_Asked]:
    rows = work.ask(
        "SELECT q.number, q.question, q.chunk, q.alike, before.number, after.number "
        "FROM questions AS q JOIN chunks AS c ON c.number=q.chunk "
        "LEFT JOIN chunks AS before ON before.id=c.before "
        "LEFT JOIN chunks AS after ON after.id=c.after "
        "WHERE q.number IN (SELECT value FROM json_each(?)) ORDER BY q.number",
        json.dumps(numbers.tolist()),
    )
    return [_Asked(*row) for row in rows]


def _nearest(
    batch: Sequence[_Asked],
    corpus: _Corpus,
    index: CorpusIndex,
    embedder: TextEmbedder,
    depth: int,
) -> Iterator[list[tuple[int, float]]]:
    """For each question the chunks (number, cosine) that score low enough, the nearest first."""
    vectors = embedder.embed_queries([asked.text for asked in batch])
    own = index.vectors([corpus.in_index[asked.chunk] for asked in batch])
    limits = MOST_OF_POSITIVE * (vectors * own).sum(axis=1)
    numbers, scores = index.search(vectors, depth)
    for row, limit in enumerate(limits):
        low = scores[row] <= limit
        there = corpus.from_index[numbers[row][low]]
        yield list(zip(there.tolist(), scores[row][low].tolist(), strict=True))


class _Corpus:
    """What must be known of every chunk to tell whether it is fit: a few numbers each."""

    def __init__(self, work: Workspace, division: Division, index: CorpusIndex):
        self._alike = division.alike
        self.in_index, self.from_index = _numbering(work, index)
        self._place, self._side = array("q"), array("b")
        places: dict[str, int] = {}
        for place, unit in work.ask("SELECT place, unit FROM chunks ORDER BY number"):
            self._place.append(places.setdefault(place, len(places)) if place else -1)
            self._side.append(_side(division, unit))
        self._answers: dict[int, set[int]] = defaultdict(set)  # text groups of like questions
        for alike, chunk in work.ask(
            "SELECT alike, chunk FROM questions WHERE alike IN "
            "(SELECT alike FROM questions GROUP BY alike HAVING COUNT(*) > 1)"
        ):
            self._answers[alike].add(self._alike.of(chunk))
        self._positive = _sides_of_positives(work, self._alike)

    def is_fit(self, candidate: int, asked: _Asked) -> bool:
        """Whether a chunk may be a negative of a question."""
        if candidate < 0 or self._side[candidate] not in (_NOWHERE, self._side[asked.chunk]):
            return False
        if self._place[candidate] == self._place[asked.chunk] != -1:
            return False
        if candidate in (asked.before, asked.after):
            return False
        group, side = self._alike.of(candidate), self._side[asked.chunk]
        if group == self._alike.of(asked.chunk) or group in self._answers.get(asked.alike, ()):
            return False
        elsewhere = self._positive[group] & ~(1 << side)
        return not (elsewhere if side == _TRAIN else elsewhere & ~_GOLD)


def _sides_of_positives(work: Workspace, texts: Groups) -> bytearray:
    """By group of texts: one bit for each side that has one of them as a positive, and gold's."""
    found = bytearray(len(texts))
    for side, chunk in work.ask("SELECT side, chunk FROM questions WHERE side IS NOT NULL"):
        found[texts.of(chunk)] |= 1 << SIDES.index(side)
    held = work.one("SELECT COUNT(*) FROM held")  # their texts come after those of the chunks
    for number in range(len(texts) - held, len(texts)):
        found[texts.of(number)] |= _GOLD
    return found


def _side(division: Division, unit: str) -> int:
    if side := division.kept.sides.get(unit):
        return _HELD if side == "train" and unit in division.held else SIDES.index(side)
    return _HELD if unit in division.held else _NOWHERE


def _numbering(work: Workspace, index: CorpusIndex) -> tuple[np.ndarray, np.ndarray]:
    """(each chunk's number in the index, the chunk of each number there), -1 for none."""
    import numpy as np

    ids = (chunk_id for (chunk_id,) in work.ask("SELECT id FROM chunks ORDER BY number"))
    numbers = [-1 if number is None else number for number in index.numbers(ids)]
    in_index = np.asarray(numbers, np.int64)
    from_index = np.full(len(index), -1, np.int64)
    known = np.flatnonzero(in_index >= 0)
    from_index[in_index[known]] = known
    return in_index, from_index
