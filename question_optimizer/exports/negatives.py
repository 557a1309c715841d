"""Hard negatives: chunks that are close to a question and, as far as can be told, no answer to it.

Positive-aware (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831): a chunk that scores above 95 %
of the positive's own score is more likely an answer that nobody marked than a negative, and is
passed over. So is what stands beside the positive, repeats it, or answers a like question.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from question_optimizer.exports.splitting import Division
from question_optimizer.exports.workspace import SIDES, Workspace

if TYPE_CHECKING:
    import numpy as np

    from question_optimizer.embedding import TextEmbedder
    from question_optimizer.generation.corpus_index import CorpusIndex

MOST_OF_POSITIVE = 0.95  # TopK-PercPos of the paper, its best setting
_CANDIDATES = 100  # nearest chunks looked at for each question
_TOGETHER = 256  # questions searched for at a time
_NOWHERE, _HELD = -1, -2  # sides of chunks without questions, and of those that gold holds out


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

    Candidates are the 100 chunks nearest to the question, of documents of its own side or without
    questions. None is under the same headings as the positive, next to it in the document, alike to
    it in text, or the positive of a question that is the same or alike.
    """
    corpus = _Corpus(work, division, index)
    complete = 0
    for batch in _batches(work):
        for asked, found in zip(batch, _nearest(batch, corpus, index, embedder), strict=True):
            fit = ((n, score) for n, score in found if corpus.is_fit(n, asked))
            chosen = list(islice(fit, wanted))
            rows = ((asked.number, place, n, score) for place, (n, score) in enumerate(chosen))
            work.add("negatives", rows)
            complete += len(chosen) == wanted
            advance()
    return complete


def _batches(work: Workspace) -> Iterator[list[_Asked]]:
    rows = work.ask(
        "SELECT q.number, q.question, q.chunk, q.alike, before.number, after.number "
        "FROM questions AS q JOIN chunks AS c ON c.number=q.chunk "
        "LEFT JOIN chunks AS before ON before.id=c.before "
        "LEFT JOIN chunks AS after ON after.id=c.after "
        "WHERE q.side IS NOT NULL ORDER BY q.number"
    )
    asked = (_Asked(*row) for row in rows)
    while batch := list(islice(asked, _TOGETHER)):
        yield batch


def _nearest(
    batch: Sequence[_Asked], corpus: _Corpus, index: CorpusIndex, embedder: TextEmbedder
) -> Iterator[list[tuple[int, float]]]:
    """For each question the chunks (number, cosine) that score low enough, the nearest first."""
    vectors = embedder.embed_queries([asked.text for asked in batch])
    own = index.vectors([corpus.in_index[asked.chunk] for asked in batch])
    limits = MOST_OF_POSITIVE * (vectors * own).sum(axis=1)
    numbers, scores = index.search(vectors, _CANDIDATES)
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

    def is_fit(self, candidate: int, asked: _Asked) -> bool:
        """Whether a chunk may be a negative of a question."""
        if candidate < 0 or self._side[candidate] not in (_NOWHERE, self._side[asked.chunk]):
            return False
        if self._place[candidate] == self._place[asked.chunk] != -1:
            return False
        if candidate in (asked.before, asked.after):
            return False
        group = self._alike.of(candidate)
        return group != self._alike.of(asked.chunk) and group not in self._answers.get(
            asked.alike, ()
        )


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
