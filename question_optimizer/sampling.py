"""Sampling designs: in which order a collection's chunks are looked at, and the walk along it.

Every order follows from the seed and the collection alone, never from the sample's size, so a
larger sample with the same seed starts with the smaller one. Chunks that are unfit are passed over
while walking, so the sample refills itself. With `random` it stays uniform over the fit chunks.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from question_optimizer.chunk_quality import MIN_WORDS, ChunkFilter
from question_optimizer.chunk_store import ChunkStore, chunk_of, neighbours_of
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import printable
from question_optimizer.qdrant_folder import id_order
from question_optimizer.records import Chunk, PointId

if TYPE_CHECKING:
    import numpy

DESIGNS = ("random", "by-document", "by-heading", "diverse")
ALLOCATIONS = ("proportional", "sqrt", "equal")
NO_TEXT = "no_text"
_BATCH = 200
_POOL = 10_000  # points that `diverse` spreads over; their vectors take 15 MB at 384 dimensions
_SURVEY = 2_000  # points whose places a coverage line may cost
_NEIGHBOUR_CHARACTERS = 1200
_EXCERPT_CHARACTERS = 200

Place = tuple[str, ...]  # a chunk's document and the headings above it
Beside = dict[PointId, tuple[PointId | None, PointId | None]]  # who stands before and after


class Plan(NamedTuple):
    """How to sample. `filters` are codes of `chunk_quality`; `allocation` is for strata alone."""

    design: str = "random"
    allocation: str = "proportional"
    filters: tuple[str, ...] = ()
    min_words: int = MIN_WORDS


class PassedOver(NamedTuple):
    """A point that the walk met and did not take."""

    chunk_id: PointId
    reason: str
    measure: float = 0
    excerpt: str = ""
    like: PointId | None = None


class Coverage(NamedTuple):
    """How many of the documents and headings there are the sample has a chunk of.

    Exact where every point was `looked_at`; otherwise both counts are of those seen in that many
    random points.
    """

    documents: int
    of_documents: int
    headings: int
    of_headings: int
    looked_at: int


@dataclass
class Sample:
    """What `sample` drew, in its order, and what it passed over on the way."""

    chunks: list[Chunk]
    points: int
    passed_over: list[PassedOver] = field(default_factory=list)
    text_keys: Counter[str] = field(default_factory=Counter)
    coverage: Coverage | None = None

    @property
    def without_text(self) -> list[PointId]:
        return [over.chunk_id for over in self.passed_over if over.reason == NO_TEXT]


def sample(
    store: ChunkStore,
    size: int,
    *,
    seed: int,
    text_key: str | None = None,
    plan: Plan | None = None,
) -> Sample:
    """`size` chunks that have text and pass the plan's filters, or as many as there are.

    Plain random: all ids are sorted and shuffled by `random.Random(seed)`, so each fit chunk has
    the same chance. UserError where the design needs vectors and there are none.
    """
    plan = plan or Plan()
    ids = store.point_ids()
    drawn = Sample(chunks=[], points=len(ids))
    random.Random(seed).shuffle(ids)
    places = _Places(store, text_key)
    order = _order_of(ids, places, seed, plan)
    quality = ChunkFilter(plan.filters, min_words=plan.min_words)
    beside: Beside = {}
    while batch := order.upcoming(size - len(drawn.chunks)):
        for point_id, payload in store.payloads(batch):
            chunk, key = chunk_of(point_id, payload, text_key)
            places.note(point_id, chunk)
            over = _objection(chunk, quality) if chunk else PassedOver(point_id, NO_TEXT)
            order.told(point_id, taken=over is None)
            if over is not None or chunk is None:
                drawn.passed_over += [over] if over else []
                continue
            drawn.chunks.append(chunk)
            drawn.text_keys[key] += 1
            beside[point_id] = neighbours_of(payload)
    _add_neighbours(drawn.chunks, beside, ids, places)
    drawn.coverage = places.coverage(drawn.chunks, ids)
    return drawn


def _objection(chunk: Chunk, quality: ChunkFilter) -> PassedOver | None:
    rejection = quality.unfit(chunk)
    if rejection is None:
        return None
    excerpt = printable(chunk.chunk_text)[:_EXCERPT_CHARACTERS]
    return PassedOver(chunk.chunk_id, rejection.reason, rejection.measure, excerpt, rejection.like)


# ---------------------------------------------------------------------- orders


class Order(Protocol):
    """The points in the order in which they are to be looked at."""

    def upcoming(self, most: int) -> list[PointId]:
        """The next ids, `most` at most; none when it is over or none is wanted."""

    def told(self, point_id: PointId, *, taken: bool) -> None:
        """Whether the point was taken; told of each before more are asked for."""


def _order_of(ids: list[PointId], places: _Places, seed: int, plan: Plan) -> Order:
    if plan.design == "random":
        return _Listed(ids)
    if plan.design == "diverse":
        return _Spread(ids, places.store, seed)
    strata = places.strata(ids, whole_path=plan.design == "by-heading")
    if plan.allocation == "proportional":
        return _Listed(systematic([i for stratum in strata for i in stratum], seed))
    return _Rounds(strata, seed, power=0.5 if plan.allocation == "sqrt" else 0.0)


class _Listed:
    """An order that nothing can change."""

    def __init__(self, ids: list[PointId]):
        self._ids = ids
        self._at = 0

    def upcoming(self, most: int) -> list[PointId]:
        batch = self._ids[self._at : self._at + min(_BATCH, most)]
        self._at += len(batch)
        return batch

    def told(self, point_id: PointId, *, taken: bool) -> None:
        pass


def systematic(ids: list[PointId], seed: int) -> list[PointId]:
    """`ids`, which stand stratum by stratum, reordered so that every prefix is spread evenly.

    Positions come in bit-reversed order (van der Corput 1935), all shifted by one random number:
    in any prefix each id has exactly the same chance, and a stratum's count stays within about two
    of its proportional share.
    """
    count = len(ids)
    bits = max(1, (count - 1).bit_length())
    shift = _stream(seed, "shift").randrange(count) if count else 0
    reversed_bits = (_reversed(number, bits) for number in range(1 << bits))
    return [ids[(place + shift) % count] for place in reversed_bits if place < count]


def _stream(seed: int, name: str) -> random.Random:
    """A generator that shares nothing with the shuffle of the same seed: were the shift drawn from
    that one, it would favour certain places in the shuffled strata."""
    return random.Random(f"{name} {seed}")


def _reversed(number: int, bits: int) -> int:
    return int(f"{number:0{bits}b}"[::-1], 2)


class _Rounds:
    """Strata in turns: the j-th chunk taken of a stratum of size n has the key (j + u) / n^power.

    u is one uniform number per stratum; the lowest key is next. With power 0 every stratum gives
    one chunk a round, with 0.5 in proportion to the root of its size, until it is exhausted. A
    chunk that is passed over is replaced from its own stratum.
    """

    def __init__(self, strata: list[list[PointId]], seed: int, power: float):
        rng = _stream(seed, "turns")
        self._left = [stratum[::-1] for stratum in strata]
        self._weight = [len(stratum) ** power for stratum in strata]
        self._turns = [(rng.random() / weight, h) for h, weight in enumerate(self._weight)]
        heapq.heapify(self._turns)

    def upcoming(self, most: int) -> list[PointId]:
        while most > 0 and self._turns:
            if left := self._left[self._turns[0][1]]:
                return [left.pop()]
            heapq.heappop(self._turns)
        return []

    def told(self, point_id: PointId, *, taken: bool) -> None:
        if taken:
            key, stratum = self._turns[0]
            heapq.heapreplace(self._turns, (key + 1 / self._weight[stratum], stratum))


class _Spread:
    """Spread over the vectors: a random point first, then always the one farthest from its nearest
    among those taken (farthest-first traversal: no choice of as many has less than half its
    covering radius; Gonzalez 1985).

    Candidates are the first `_POOL` points of the seeded order that have a vector; a point that is
    passed over leaves the pool and repels nobody. All others follow in the seeded order.
    """

    def __init__(self, ids: list[PointId], store: ChunkStore, seed: int):
        import numpy

        self._pool, self._unit = _unit_vectors(store, ids[:_POOL], store.collection)
        pooled = set(self._pool)
        self._rest = _Listed([point_id for point_id in ids if point_id not in pooled])
        self._distance = numpy.full(len(self._pool), numpy.inf)
        self._rng = _stream(seed, "spread")
        self._free = numpy.ones(len(self._pool), bool)
        self._offered: PointId | None = None

    def upcoming(self, most: int) -> list[PointId]:
        if most <= 0:
            return []
        if not self._free.any():
            return self._rest.upcoming(most)
        self._at = self._next()
        self._free[self._at] = False
        self._offered = self._pool[self._at]
        return [self._offered]

    def _next(self) -> int:
        import numpy

        free = numpy.flatnonzero(self._free)
        if numpy.isinf(self._distance[free[0]]):  # none is taken yet
            return int(free[self._rng.randrange(len(free))])
        return int(free[self._distance[free].argmax()])

    def told(self, point_id: PointId, *, taken: bool) -> None:
        import numpy

        if taken and point_id == self._offered:
            near = 2 - 2 * (self._unit @ self._unit[self._at])
            near[near < 1e-6] = 0  # rounding, not distance
            numpy.minimum(self._distance, near, out=self._distance)


def _unit_vectors(
    store: ChunkStore, ids: list[PointId], collection: str
) -> tuple[list[PointId], numpy.ndarray]:
    """Ids that have a dense vector, and the vectors as rows of length 1 (or 0), float32."""
    import numpy

    pool: list[PointId] = []
    rows: list[numpy.ndarray] = []
    for point_id, vector in store.vectors(ids):
        row = numpy.asarray(vector)
        if rows and len(row) != len(rows[0]):
            raise UserError(
                f"collection {collection!r}: point {point_id} has {len(row)} dimensions, "
                f"others {len(rows[0])}; choose another --design"
            )
        pool.append(point_id)
        rows.append((row / (numpy.linalg.norm(row) or 1)).astype(numpy.float32))
    if ids and not pool:
        raise UserError(
            f"collection {collection!r}: its points have no dense vectors; choose another --design"
        )
    return pool, numpy.stack(rows) if rows else numpy.zeros((0, 1), numpy.float32)


# ---------------------------------------------------------------------- places


class _Places:
    """Where the chunks of a collection stand: read once each, kept without their text."""

    def __init__(self, store: ChunkStore, text_key: str | None):
        self.store = store
        self.text_key = text_key
        self._known: dict[PointId, Place | None] = {}
        self._same: dict[Place, Place] = {}

    def note(self, point_id: PointId, chunk: Chunk | None) -> None:
        """Remember where a chunk stands; None for a point without text."""
        place = (chunk.document, *chunk.headings) if chunk else None
        self._known[point_id] = self._same.setdefault(place, place) if place else None

    def strata(self, ids: list[PointId], *, whole_path: bool) -> list[list[PointId]]:
        """The points with text by document or by document and headings, in reading order of the
        names; within each in the order of `ids`. Reads every payload once."""
        self._read(ids)
        strata: dict[Place, list[PointId]] = {}
        for point_id in ids:
            if place := self._known.get(point_id):
                strata.setdefault(place if whole_path else place[:1], []).append(point_id)
        return [strata[place] for place in sorted(strata)]

    def coverage(self, chunks: Iterable[Chunk], ids: list[PointId]) -> Coverage | None:
        """None where no chunk names its document. `ids` in random order: the first are surveyed."""
        whole = len(self._known) >= len(ids) or len(ids) <= _SURVEY
        looked_at = ids if whole else ids[:_SURVEY]
        self._read(looked_at)
        there = {place for i in looked_at if (place := self._known.get(i)) and place[0]}
        reached = there.intersection((chunk.document, *chunk.headings) for chunk in chunks)
        documents = {place[0] for place in there}
        if not documents:
            return None
        return Coverage(
            documents=len({chunk.document for chunk in chunks} & documents),
            of_documents=len(documents),
            headings=sum(len(place) > 1 for place in reached),
            of_headings=sum(len(place) > 1 for place in there),
            looked_at=len(looked_at),
        )

    def _read(self, ids: list[PointId]) -> None:
        unknown = [point_id for point_id in ids if point_id not in self._known]
        for point_id, payload in self.store.payloads(unknown) if unknown else ():
            self.note(point_id, chunk_of(point_id, payload, self.text_key)[0])


def _add_neighbours(
    chunks: list[Chunk], beside: Beside, ids: list[PointId], places: _Places
) -> None:
    """Give each chunk the end of the text before it and the start of the one after it, where these
    are among `ids` and of the same document."""
    wanted = {i for pair in beside.values() for i in pair if i is not None}.intersection(ids)
    texts: dict[PointId | None, tuple[str, str]] = {}
    for point_id, payload in places.store.payloads(sorted(wanted, key=id_order)) if wanted else ():
        chunk, _ = chunk_of(point_id, payload, places.text_key)
        places.note(point_id, chunk)
        if chunk is not None:
            texts[point_id] = chunk.document, chunk.chunk_text
    for chunk in chunks:
        before, after = (texts.get(i, ("", "")) for i in beside[chunk.chunk_id])
        if before[1] and before[0] == chunk.document:
            chunk.previous_text = before[1][-_NEIGHBOUR_CHARACTERS:]
        if after[1] and after[0] == chunk.document:
            chunk.next_text = after[1][:_NEIGHBOUR_CHARACTERS]
