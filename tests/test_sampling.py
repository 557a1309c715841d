"""Sampling designs: unbiased where they promise it, on target, each prefix a sample of its own."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, SparseVector, VectorParams

from qdrant_server import make_folder, serving
from question_optimizer.chunk_quality import CODES
from question_optimizer.chunk_store import ChunkStore, open_store
from question_optimizer.errors import UserError
from question_optimizer.records import PointId
from question_optimizer.sampling import ALLOCATIONS, DESIGNS, Plan, Sample, sample, systematic

SIZES = {"a": 1, "b": 3, "c": 12, "d": 24}  # chunks by document
UNFIT = "**Table 3. Wait Events**"


class MemoryStore:
    """A collection in memory, {id: payload}; `read` counts how often a payload was asked for."""

    collection = "memory"

    def __init__(self, payloads: dict[PointId, dict[str, Any]], dimensions: int = 3):
        self._payloads = payloads
        self._dimensions = dimensions
        self.read: Counter[PointId] = Counter()

    def point_ids(self) -> list[PointId]:
        return sorted(self._payloads, key=str)

    def payloads(self, ids: list[PointId]) -> Iterator[tuple[PointId, dict[str, Any]]]:
        self.read.update(ids)
        return ((i, self._payloads[i]) for i in ids if i in self._payloads)

    def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
        for i in ids:
            rng = random.Random(str(i))
            yield i, [rng.gauss(0, 1) for _ in range(self._dimensions)]

    def close(self) -> None:
        pass


def fit_text(n: int) -> str:
    return f"The valve number {n} closes when the pressure in its brake pipe falls below {n} bar."


def forty(unfit: Callable[[int], bool] = lambda n: False) -> MemoryStore:
    """40 chunks of four documents, some of them captions that a filter passes over."""
    documents = [name for name, size in SIZES.items() for _ in range(size)]
    return MemoryStore(
        {
            n: {
                "text": f"{UNFIT[:-2]} {n}**" if unfit(n) else fit_text(n),
                "document_id": name,
                "headings": [f"{n % 3}"],
            }
            for n, name in enumerate(documents)
        }
    )


def ids_of(drawn: Sample) -> list[PointId]:
    return [chunk.chunk_id for chunk in drawn.chunks]


def chi_square(counts: Counter[PointId], cells: list[PointId], *, seeds: int, size: int) -> float:
    """Pearson's statistic of inclusion counts, scaled to be chi-square under equal chances.

    A draw without replacement includes a chunk with chance p = size / cells; the counts' variance
    is seeds · p · (1 - p), and they sum to a constant: the scaling is (n - 1) / (n (1 - p)).
    """
    n, expected = len(cells), seeds * size / len(cells)
    pearson = sum((counts[cell] - expected) ** 2 / expected for cell in cells)
    return pearson * (n - 1) / (n * (1 - size / n))


def critical(cells: int) -> float:
    """What chi-square exceeds once in 10,000 fair trials (Wilson and Hilferty 1931)."""
    freedom, z = cells - 1, 3.719
    return float(freedom * (1 - 2 / (9 * freedom) + z * (2 / (9 * freedom)) ** 0.5) ** 3)


def inclusions(store: ChunkStore, plan: Plan, *, seeds: int, size: int) -> Counter[PointId]:
    return Counter(i for s in range(seeds) for i in ids_of(sample(store, size, seed=s, plan=plan)))


# ---------------------------------------------------------------------- unbiased


@pytest.mark.parametrize(
    ("plan", "unfit"),
    [
        (Plan(), lambda n: False),
        (Plan(filters=("too_short",)), lambda n: n % 4 == 1),
        (Plan(design="by-document"), lambda n: False),
        (Plan(design="by-heading"), lambda n: False),
    ],
    ids=["random", "random over the fit", "by document", "by heading"],
)
def test_every_fit_chunk_has_the_same_chance(plan: Plan, unfit: Callable[[int], bool]) -> None:
    store = forty(unfit)
    fit: list[PointId] = [n for n in range(40) if not unfit(n)]
    counts = inclusions(store, plan, seeds=2000, size=10)
    assert set(counts) == set(fit)
    statistic = chi_square(counts, fit, seeds=2000, size=10)
    # Strata tie counts together: with the same mean, the statistic then varies a little more.
    assert statistic < critical(len(fit)) * (1.0 if plan.design == "random" else 1.2)


def test_a_biased_walk_fails_the_same_test() -> None:
    """Equal shares favour small documents; so does a weight of 1.25 on every second chunk."""
    cells: list[PointId] = list(range(40))
    equal = inclusions(forty(), Plan(design="by-document", allocation="equal"), seeds=500, size=10)
    assert chi_square(equal, cells, seeds=500, size=10) > 10 * critical(40)
    slightly: Counter[PointId] = Counter()
    for seed in range(2000):
        rng = random.Random(seed)
        key = {n: rng.random() ** (1 / (1.25 if n % 2 else 1.0)) for n in range(40)}
        slightly.update(sorted(range(40), key=lambda n: -key[n])[:10])
    assert chi_square(slightly, cells, seeds=2000, size=10) > 1.5 * critical(40)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 100])
def test_the_systematic_order_is_a_permutation(count: int) -> None:
    ids: list[PointId] = list(range(count))
    assert sorted(systematic(ids, 5), key=int) == ids


def test_any_prefix_of_the_systematic_order_is_exactly_fair() -> None:
    """Over all shifts each id comes equally often: counted for every shift of 12 ids."""
    ids: list[PointId] = list(range(12))
    by_shift = {order[0]: order for order in (systematic(ids, seed) for seed in range(400))}
    assert len(by_shift) == 12
    for size in range(1, 13):
        counts = Counter(i for order in by_shift.values() for i in order[:size])
        assert set(counts.values()) == {size}


# ---------------------------------------------------------------------- prefixes and targets


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("filters", [(), CODES], ids=["all chunks", "fit chunks"])
def test_a_larger_sample_starts_with_the_smaller_one(design: str, filters: tuple[str, ...]) -> None:
    for allocation in ALLOCATIONS if design.startswith("by") else ("proportional",):
        plan = Plan(design, allocation, filters)
        store = forty(lambda n: n % 4 == 1)
        whole = ids_of(sample(store, 100, seed=3, plan=plan))
        assert len(set(whole)) == len(whole) == (40 if not filters else 30)
        for size in (1, 2, 7, 20, 29):
            assert ids_of(sample(store, size, seed=3, plan=plan)) == whole[:size]


def prefix_counts(plan: Plan, seed: int) -> Iterator[tuple[int, Counter[str]]]:
    """(size, chunks by document) of every prefix."""
    counts: Counter[str] = Counter()
    for size, chunk in enumerate(sample(forty(), 40, seed=seed, plan=plan).chunks, 1):
        counts[chunk.document] += 1
        yield size, counts


def test_a_proportional_prefix_is_within_two_of_its_share() -> None:
    off = [
        abs(counts[name] - size * SIZES[name] / 40)
        for seed in range(100)
        for size, counts in prefix_counts(Plan(design="by-document"), seed)
        for name in SIZES
    ]
    assert max(off) < 2
    assert sum(off) / len(off) < 0.5


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_equal_and_root_shares_are_within_one_until_a_document_is_exhausted(power: float) -> None:
    plan = Plan(design="by-document", allocation="equal" if power == 0 else "sqrt")
    for seed in range(100):
        for _, counts in prefix_counts(plan, seed):
            left = [name for name in SIZES if counts[name] < SIZES[name]]
            most = max((counts[name] - 1) / SIZES[name] ** power for name in left or SIZES)
            least = min((counts[name] + 1) / SIZES[name] ** power for name in left or SIZES)
            assert not left or most <= least  # one common level is within one item of each


def test_an_unfit_chunk_is_replaced_from_its_own_document() -> None:
    plan = Plan(design="by-document", allocation="equal", filters=("too_short",))
    for seed in range(30):
        drawn = sample(forty(lambda n: 4 <= n < 14), 4, seed=seed, plan=plan)  # most of c
        assert {chunk.document for chunk in drawn.chunks} == set(SIZES)


def test_points_without_text_are_in_no_stratum() -> None:
    store = MemoryStore({1: {"text": "t", "document_id": "a"}, 2: {"document_id": "b"}})
    drawn = sample(store, 5, seed=0, plan=Plan(design="by-document"))
    assert (ids_of(drawn), drawn.passed_over) == ([1], [])


# ---------------------------------------------------------------------- diverse


def spread(store: MemoryStore, chosen: list[PointId]) -> tuple[float, float]:
    """(covering radius, mean distance to the nearest other chosen one) of unit vectors."""
    every = numpy.array([vector for _, vector in store.vectors(store.point_ids())])
    every /= numpy.linalg.norm(every, axis=1, keepdims=True)
    mine = every[[store.point_ids().index(i) for i in chosen]]
    covering = numpy.linalg.norm(every[:, None] - mine[None], axis=2).min(axis=1).max()
    among = numpy.linalg.norm(mine[:, None] - mine[None], axis=2) + 9 * numpy.eye(len(mine))
    return float(covering), float(among.min(axis=1).mean())


def test_diverse_covers_more_and_repeats_less_than_random() -> None:
    store = MemoryStore({n: {"text": fit_text(n)} for n in range(300)})
    gains = []
    for seed in range(10):
        covering, nearest = spread(
            store, ids_of(sample(store, 20, seed=seed, plan=Plan(design="diverse")))
        )
        fair_covering, fair_nearest = spread(store, ids_of(sample(store, 20, seed=seed)))
        gains.append((fair_covering / covering, nearest / fair_nearest))
    wider, apart = numpy.mean(gains, axis=0)
    assert wider > 1.05
    assert apart > 1.2


def test_what_is_passed_over_does_not_repel() -> None:
    """Two orders that differ in unfit chunks alone: the fit ones are as far apart as can be."""
    payloads: dict[PointId, dict[str, Any]] = {
        n: {"text": UNFIT if n < 30 else fit_text(n)} for n in range(60)
    }
    plan = Plan(design="diverse", filters=("too_short",))
    drawn = sample(MemoryStore(payloads), 30, seed=1, plan=plan)
    assert sorted(ids_of(drawn), key=int) == list(range(30, 60))


def test_copies_come_last() -> None:
    class Copies(MemoryStore):
        def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
            yield from ((i, [float(int(i) % 5 == k) for k in range(5)]) for i in ids)

    store = Copies({n: {"text": f"t{n}"} for n in range(50)})
    drawn = ids_of(sample(store, 50, seed=2, plan=Plan(design="diverse")))
    assert {int(i) % 5 for i in drawn[:5]} == {0, 1, 2, 3, 4}
    assert len(set(drawn)) == 50


def vector_folder(path: Path, vectors: dict[int, Any], config: Any) -> Path:
    with closing(QdrantClient(path=str(path))) as client:
        client.create_collection("docs", **config)
        client.upsert(
            "docs",
            [PointStruct(id=i, vector=v, payload={"text": f"t{i}"}) for i, v in vectors.items()],
        )
    return path


DENSE = VectorParams(size=2, distance=Distance.COSINE)


@pytest.mark.parametrize(
    ("stored", "config", "expected"),
    [
        ([3.0, 4.0], {"vectors_config": DENSE}, [0.6, 0.8]),
        ({"b": [0.0, 1.0], "a": [1.0, 0.0]}, {"vectors_config": {"a": DENSE, "b": DENSE}}, [1, 0]),
    ],
    ids=["one without a name", "several named"],
)
def test_vectors_read_the_same_in_three_ways(
    tmp_path: Path, stored: Any, config: Any, expected: list[float]
) -> None:
    folder = vector_folder(tmp_path / "q", {1: stored, 2: stored}, config)
    found = []
    for via_client in (False, True):
        with closing(open_store(path=folder, via_client=via_client)) as store:
            found.append(list(store.vectors([2, 99, 1])))
    with serving(folder) as server, closing(open_store(url=server.url)) as store:
        found.append(list(store.vectors([2, 99, 1])))
    for vectors in found:
        assert [point_id for point_id, _ in vectors] == [2, 1]
        for _, vector in vectors:
            assert numpy.array(vector) / numpy.linalg.norm(vector) == pytest.approx(expected)


def test_a_collection_of_sparse_vectors_cannot_be_spread(tmp_path: Path) -> None:
    from qdrant_client.models import SparseVectorParams

    sparse = {"words": SparseVector(indices=[1], values=[1.0])}
    config = {"vectors_config": {}, "sparse_vectors_config": {"words": SparseVectorParams()}}
    folder = vector_folder(tmp_path / "q", {1: sparse, 2: sparse}, config)
    for via_client in (False, True):
        with (
            closing(open_store(path=folder, via_client=via_client)) as store,
            pytest.raises(UserError) as refused,
        ):
            sample(store, 1, seed=0, plan=Plan(design="diverse"))
        assert str(refused.value) == (
            "collection 'docs': its points have no dense vectors; choose another --design"
        )


def test_vectors_of_different_lengths_are_refused() -> None:
    class Ragged(MemoryStore):
        def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
            yield from ((i, [1.0] * (1 + int(i))) for i in ids)

    with pytest.raises(UserError, match=r"point \d has \d dimensions, others \d; choose another"):
        sample(Ragged({1: {}, 2: {}}), 1, seed=0, plan=Plan(design="diverse"))


# ---------------------------------------------------------------------- coverage


def test_coverage_counts_documents_and_headings_reached() -> None:
    drawn = sample(forty(), 3, seed=0)
    assert drawn.coverage is not None
    reached = {(chunk.document, *chunk.headings) for chunk in drawn.chunks}
    assert drawn.coverage == (len({d for d, _ in reached}), 4, len(reached), 10, 40)


def test_a_large_collection_is_surveyed_in_part() -> None:
    payloads: dict[PointId, dict[str, Any]] = {
        n: {"text": "t", "document_id": f"{n % 600}"} for n in range(6000)
    }
    store = MemoryStore(payloads)
    drawn = sample(store, 100, seed=0)
    assert drawn.coverage is not None
    assert drawn.coverage.looked_at == sum(store.read.values()) == 2000
    assert drawn.coverage.of_documents in range(560, 601)
    assert drawn.coverage.documents == len({chunk.document for chunk in drawn.chunks})
    by_document = sample(store, 100, seed=0, plan=Plan(design="by-document"))
    assert by_document.coverage is not None
    assert by_document.coverage.looked_at == 6000


def test_without_documents_there_is_nothing_to_cover() -> None:
    assert sample(MemoryStore({1: {"text": "t"}}), 1, seed=0).coverage is None


# ---------------------------------------------------------------------- neighbours


def linked(n: int, before: Any, after: Any, document: str = "a") -> dict[str, Any]:
    relations = {"1": {"node_id": document}, "2": {"node_id": before}, "3": {"node_id": after}}
    node = {"text": f"{n}-" * 800, "relationships": relations}
    return {"_node_content": json.dumps(node), "document_id": document}


def test_neighbours_come_along_cut_to_what_lies_next() -> None:
    store = MemoryStore(
        {
            1: linked(1, "no such", 2),
            2: linked(2, 1, 3),
            3: linked(3, 2, 4),
            4: linked(4, 3, 1, "b"),
        }
    )
    chunks = {chunk.chunk_id: chunk for chunk in sample(store, 4, seed=0).chunks}
    assert (chunks[1].previous_text, chunks[1].next_text) == (None, ("2-" * 800)[:1200])
    assert (chunks[2].previous_text, chunks[2].next_text) == (
        ("1-" * 800)[-1200:],
        ("3-" * 800)[:1200],
    )
    assert chunks[3].next_text is None  # of another document
    assert (chunks[4].previous_text, chunks[4].next_text) == (None, None)


@pytest.mark.parametrize("relations", [None, [], {"2": None, "3": []}, {"2": {"node_id": [1]}}])
def test_relations_that_are_none_are_no_neighbours(relations: Any) -> None:
    content = json.dumps({"text": "t", "relationships": relations})
    (chunk,) = sample(MemoryStore({1: {"_node_content": content}}), 1, seed=0).chunks
    assert (chunk.previous_text, chunk.next_text) == (None, None)


def test_the_sample_folder_names_each_chunks_neighbours(qdrant: Path) -> None:
    with closing(open_store(path=qdrant)) as store:
        drawn = sample(store, 648, seed=0)
    there = {(chunk.document, chunk.chunk_text[:1200]): chunk for chunk in drawn.chunks}
    for chunk in drawn.chunks:
        if chunk.next_text:
            follower = there[chunk.document, chunk.next_text]
            assert follower.previous_text == chunk.chunk_text[-1200:]
    assert sum(chunk.next_text is None for chunk in drawn.chunks) == 22  # the last of each document


def test_strata_of_the_sample_folder_are_its_documents(qdrant: Path) -> None:
    with closing(open_store(path=qdrant)) as store:
        plan = Plan(design="by-document", allocation="equal")
        drawn = sample(store, 66, seed=0, plan=plan)
        assert set(Counter(chunk.document for chunk in drawn.chunks).values()) == {3}
        proportional = sample(store, 648, seed=0, plan=Plan(design="by-heading"))
    assert drawn.coverage is not None and drawn.coverage[:2] == (22, 22)
    assert len(set(ids_of(proportional))) == 648
    assert any(a.document != b.document for a, b in pairwise(proportional.chunks))


def test_a_small_folder_is_drawn_alike_through_a_server(tmp_path: Path) -> None:
    payloads = {n: {"text": fit_text(n), "document_id": f"{n % 4}"} for n in range(30)}
    folder = make_folder(tmp_path / "q", payloads)
    for design in DESIGNS:
        with closing(open_store(path=folder)) as store:
            direct = sample(store, 12, seed=1, plan=Plan(design=design))
        with serving(folder) as server, closing(open_store(url=server.url)) as store:
            assert sample(store, 12, seed=1, plan=Plan(design=design)) == direct
