"""The round trip: does a question find its own chunk among all of the collection?

It tells whether chunk and question may supervise a retriever, and no more: it is no test of whether
the chunk answers the question (on 3,000 rated questions the rank by BM25 told nothing of that, AUC
.52). Two retrievers look, a dense one and BM25, and either may find the chunk: with the model alone
that is to be trained one would keep what it knows already.

A band has two ends. A question that nothing finds teaches noise. One whose words are nearly all the
chunk's, and which both retrievers find at once with nothing near, tests nothing: NeMo Curator drops
the most similar 30 %, where Qwen3-Embedding, which cleans training pairs, keeps the most similar.
So too easy ones are capped in evaluation sets and let be in training sets. Measures are those of
each question alone, not percentiles: a verdict depends neither on the batch nor on the model's
scale of scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from question_optimizer.gates import GateFailure
from question_optimizer.generation.ledger_records import Result
from question_optimizer.records import PointId

if TYPE_CHECKING:
    from question_optimizer.generation.corpus_index import CorpusIndex, Found, Ranks

ROUND_TRIP, AMBIGUOUS, TOO_EASY = "round_trip", "ambiguous", "too_easy"
SAME_DOCUMENT = "same_document"
_RECALL = (1, 5, 10, 20)
_RETRIEVERS = ("dense", "bm25")
_FAR = "above 100"
_RANKS = ((1, "1"), (5, "2-5"), (10, "6-10"), (20, "11-20"), (100, "21-100"))


@dataclass(frozen=True)
class Band:
    """What ranks a question may have.

    max_rank                by one retriever at least
    max_near                N+: so many chunks may score like the own one before it is ambiguous
    near_best               how much of the best score the own one must have for that: what is found
                            far behind others is hard, not ambiguous
    refuse_ambiguous        or only note it: for training they are positives to look at
    max_rank_in_document    beyond it by both retrievers, a note: repeated sections of one manual
    easy_coverage           share of its words (by idf) in the chunk above which it may be too easy
    easy_share              of the accepted questions, how many may be; None: not looked at
    easy_free               so many may be in any case

    Sources: ranks 10 and 20 as in Promptagator's and ARES' round trips; N+ > 3 within 5 % is the
    relative margin of NV-Retriever. All are starting values, to be calibrated on one's own gold
    set: of the sample's 73 questions by people 96 % are within rank 10, 3 % ambiguous and 3 % too
    easy.
    """

    name: str
    max_rank: int = 10
    max_near: int = 3
    near_best: float = 0.95
    refuse_ambiguous: bool = False
    max_rank_in_document: int = 3
    easy_coverage: float = 0.9
    easy_share: float | None = None
    easy_free: int = 10


TRAINING = Band("training")
EVALUATION = Band("evaluation", max_rank=20, refuse_ambiguous=True, easy_share=0.3)
BANDS: Mapping[str, Band] = MappingProxyType({band.name: band for band in (TRAINING, EVALUATION)})


class Outcome(NamedTuple):
    """Why a question is refused, None for not at all, and what is only noted of it."""

    refusal: GateFailure | None
    notes: tuple[GateFailure, ...] = ()
    ranks: tuple[int, int] | None = None  # by embedding and by BM25, where it was searched for


def check(
    ranks: Ranks, band: Band, n_chunks: int, *, model: str = "the embedding", easy_room: bool = True
) -> Outcome:
    """What `ranks` among `n_chunks` say of one question. `model` is what the reasons call the
    dense retriever; `easy_room` tells whether one more may be too easy."""
    notes = []
    if min(found.rank for found in _both(ranks)) > band.max_rank:
        return Outcome(GateFailure(ROUND_TRIP, _where(ranks, n_chunks, model)))
    ambiguous = _ambiguous(ranks, band)
    if ambiguous and band.refuse_ambiguous:
        return Outcome(ambiguous)
    if band.easy_share is not None and is_easy(ranks, band):
        easy = GateFailure(TOO_EASY, _easily(ranks, model))
        if not easy_room:
            return Outcome(easy)
        notes.append(easy)
    inside = min(found.rank_in_document for found in _both(ranks))
    if inside > band.max_rank_in_document:
        notes.append(GateFailure(SAME_DOCUMENT, f"is number {inside} in its own document at best"))
    return Outcome(None, tuple(notes + ([ambiguous] if ambiguous else [])))


def is_easy(ranks: Ranks, band: Band) -> bool:
    """Found first by both, with no other chunk near, and nearly all of its words in the chunk."""
    alone = all(found.rank == 1 and found.near == 1 for found in _both(ranks))
    return alone and ranks.coverage > band.easy_coverage


def _both(ranks: Ranks) -> tuple[Found, Found]:
    return ranks.dense, ranks.bm25


def _where(ranks: Ranks, n_chunks: int, model: str) -> str:
    dense, bm25 = (f"{found.rank:,}" for found in _both(ranks))
    return f"is found at rank {dense} by {model} and {bm25} by BM25 of {n_chunks:,}"


def _easily(ranks: Ranks, model: str) -> str:
    return (
        f"is found first by {model} and BM25 with nothing near, and {ranks.coverage:.0%} of it by "
        "weight are words of its chunk"
    )


def _ambiguous(ranks: Ranks, band: Band) -> GateFailure | None:
    """Every retriever that finds the chunk finds others that are as good."""
    found = [one for one in _both(ranks) if one.rank <= band.max_rank]
    alike = [
        one
        for one in found
        if one.near > band.max_near and one.score >= band.near_best * one.best_other
    ]
    if len(alike) < len(found):
        return None
    others = min(one.near for one in alike) - 1
    return GateFailure(AMBIGUOUS, f"finds {others} other chunks as well as its own")


class RankCounts:
    """How many questions find their chunk at what rank, by embedding and by BM25."""

    def __init__(self) -> None:
        self.questions = 0
        self._seen: Counter[str] = Counter()

    def add(self, dense: int, bm25: int, max_rank: int) -> None:
        """One question; what counts as found is a rank up to `max_rank`."""
        self.questions += 1
        for name, rank in zip(_RETRIEVERS, (dense, bm25), strict=True):
            self._seen[f"{name} found"] += rank <= max_rank
            bucket = next((words for most, words in _RANKS if rank <= most), _FAR)
            self._seen[f"{name} {bucket}"] += 1
            for k in _RECALL:
                self._seen[f"{name} within {k}"] += rank <= k
        self._seen["both"] += max(dense, bm25) <= max_rank
        self._seen["either"] += min(dense, bm25) <= max_rank

    def figures(self) -> dict[str, Any]:
        """`found` are shares within `max_rank`, `recall` within rank k; `ranks` are counts."""
        n, names = self.questions, _RETRIEVERS
        if not n:
            return {"questions": 0}
        return {
            "questions": n,
            "found": {
                **{name: round(self._seen[f"{name} found"] / n, 4) for name in names},
                "both": round(self._seen["both"] / n, 4),
                "either": round(self._seen["either"] / n, 4),
            },
            "recall": {
                name: {str(k): round(self._seen[f"{name} within {k}"] / n, 4) for k in _RECALL}
                for name in names
            },
            "ranks": {
                name: {
                    words: self._seen[f"{name} {words}"]
                    for words in (*(words for _, words in _RANKS), _FAR)
                }
                for name in names
            },
        }


class RoundTrip:
    """The round trip over an index, for one batch of results after another.

    How many too easy questions there is room for follows from those accepted so far and the rest of
    the batch. A new object counts from nothing: where the share holds in each run, it holds in all,
    but for the few that are free.
    """

    def __init__(self, index: CorpusIndex, band: Band):
        self.band = band
        self._index = index
        self._model = index.model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        self._easy = self._others = 0
        self._counts = RankCounts()

    def findings(self, results: Sequence[Result]) -> list[list[tuple[str, str]]]:
        """(gate, reason) of what the band refuses, for each result; [] for one that passes."""
        return [
            [(outcome.refusal.gate, outcome.refusal.reason)] if outcome.refusal else []
            for outcome in self.outcomes(results)
        ]

    def close(self) -> None:
        """Release the index."""
        self._index.close()

    def unknown(self, chunk_ids: Sequence[PointId]) -> list[PointId]:
        """Those that the index does not know."""
        numbers = zip(chunk_ids, self._index.numbers(chunk_ids), strict=True)
        return [chunk_id for chunk_id, number in numbers if number is None]

    def outcomes(self, results: Sequence[Result]) -> list[Outcome]:
        """What the band says of each; a chunk that the index does not know is never found."""
        numbers = self._index.numbers([result.chunk_id for result in results])
        known = [place for place, number in enumerate(numbers) if number is not None]
        ranks = self._index.ranks(
            [results[place].query or "" for place in known],
            [number for number in numbers if number is not None],
        )
        gone = GateFailure(ROUND_TRIP, "its chunk is not in the collection")
        outcomes = [Outcome(gone)] * len(results)
        # Those that are not easy first, since they make room for those that are.
        order = sorted(range(len(known)), key=lambda i: is_easy(ranks[i], self.band))
        for i in order:
            outcomes[known[i]] = self._accounted(ranks[i])
        return outcomes

    def _accounted(self, ranks: Ranks) -> Outcome:
        at = ranks.dense.rank, ranks.bm25.rank
        self._counts.add(*at, self.band.max_rank)
        share = self.band.easy_share
        room = (
            share is None
            or share >= 1
            or self._easy < max(self.band.easy_free, int(share / (1 - share) * self._others))
        )
        outcome = check(ranks, self.band, len(self._index), model=self._model, easy_room=room)
        if outcome.refusal is None:
            easy = is_easy(ranks, self.band)
            self._easy += easy
            self._others += not easy
        return outcome._replace(ranks=at)

    def figures(self) -> dict[str, Any]:
        """All questions looked at by this object, refused ones included, as `RankCounts` has them,
        with the model, the number of chunks and the rank within which a question is found."""
        return {
            **self._counts.figures(),
            "model": self._model,
            "chunks": len(self._index),
            "within": self.band.max_rank,
        }
