"""Ranks are those of the definition, whatever the corpus' size, its shards, kills and vectors."""

from __future__ import annotations

import functools
import json
import math
import random
import signal
import subprocess
import sys
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, clean_environment, tree_digest
from question_optimizer.chunk_store import open_store
from question_optimizer.embedding import HostEmbedder, TextEmbedder, embedder_of
from question_optimizer.errors import UserError
from question_optimizer.generation.bm25 import Postings, PostingsWriter, terms
from question_optimizer.generation.corpus_build import Source
from question_optimizer.generation.corpus_index import (
    CorpusIndex,
    Found,
    open_index,
    read_store,
)
from question_optimizer.generation.embedded_text import embedded_text
from question_optimizer.records import Chunk, PointId

WORDS = [f"word{i}" for i in range(300)]


def bag_of_words(texts: Sequence[str]) -> np.ndarray:
    """A model of 12 dimensions: the sum of a fixed random vector for each word."""
    rows = np.ones((len(texts), 12))
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row += of_word(word)
    return rows


@functools.cache
def of_word(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(12)


class Counting:
    """A function that embeds, and what it was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        return bag_of_words(texts)


def embedder(function: Any = bag_of_words, name: str = "bag of words") -> TextEmbedder:
    return HostEmbedder(name, function, function)


def corpus(texts: Sequence[str], documents: int = 5, first: int = 0) -> list[Source]:
    return [
        Source(
            Chunk(
                chunk_id=i,
                chunk_text=text,
                document_id=f"d{i % documents}",
                headings=["A", f"B{i}"],
            )
        )
        for i, text in enumerate(texts, first)
    ]


def made_of(sources: Sequence[Source], folder: Path, **settings: Any) -> CorpusIndex:
    def read() -> Iterator[Sequence[Source]]:
        for start in range(0, len(sources), 100):
            yield sources[start : start + 100]

    return open_index(folder, "docs", read, settings.get("by", embedder()))


def known(index: CorpusIndex, chunk_ids: Iterable[PointId]) -> list[int]:
    return [number for number in index.numbers(chunk_ids) if number is not None]


def random_texts(n: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(n)]


# ---------------------------------------------------------------------- the definition


def by_definition(
    scores: np.ndarray, own: int, sources: Sequence[Source], slack: float
) -> tuple[int, float, int, int]:
    """(rank, best other, near, rank in the document), one by one."""
    mine = sources[own].chunk
    higher = near = inside = 0
    best = -math.inf
    for source, score in zip(sources, scores.tolist(), strict=True):
        if source.chunk.chunk_text == mine.chunk_text:
            continue
        best = max(best, score)
        higher += score > scores[own] + slack
        near += score >= scores[own] - 0.05 * abs(scores[own])
        inside += score > scores[own] + slack and source.chunk.document == mine.document
    return 1 + higher, best, 1 + near, 1 + inside


def bm25_by_definition(texts: Sequence[str], question: str) -> np.ndarray:
    """Robertson & Zaragoza 2009 in Lucene's variant, one by one."""
    bags = [Counter(terms(text)) for text in texts]
    mean = sum(bag.total() for bag in bags) / len(bags)
    scores = np.zeros(len(texts))
    for term in set(terms(question)):
        df = sum(term in bag for bag in bags)
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        for i, bag in enumerate(bags):
            norm = 1.2 * (1 - 0.75 + 0.75 * bag.total() / mean)
            scores[i] += idf * bag[term] / (bag[term] + norm)
    return scores


def test_ranks_margins_and_positives_are_those_of_the_definition(tmp_path: Path) -> None:
    texts = random_texts(400)
    texts[7] = texts[107] = texts[207]  # three chunks of one text
    sources = corpus(texts)
    index = made_of(sources, tmp_path)
    rng = random.Random(2)
    own = [7, 107, *rng.sample(range(400), 30)]
    questions = [" ".join([*rng.sample(texts[i].split(), 3), rng.choice(WORDS)]) for i in own]
    found = index.ranks(questions, own, batch=10)
    vectors = embedder().embed(texts)
    for question, number, ranks in zip(questions, own, found, strict=True):
        cosines = vectors @ embedder().embed([question])[0]
        weights = bm25_by_definition(texts, question)
        for there, scores in ((ranks.dense, cosines), (ranks.bm25, weights)):
            rank, best, near, inside = by_definition(scores, number, sources, 1e-6)
            assert there.rank == rank
            assert there.score == pytest.approx(scores[number], rel=1e-5)
            assert there.best_other == pytest.approx(best, rel=1e-5)
            assert there.margin == pytest.approx(scores[number] - best, abs=1e-5)
            assert (there.near, there.rank_in_document) == (near, inside)


def test_blocks_and_shards_do_not_show_in_ranks(tmp_path: Path) -> None:
    texts = random_texts(8_300, seed=3)  # more than one block of vectors
    index = made_of(corpus(texts), tmp_path)
    own = [0, 8_191, 8_192, 8_299]
    questions = [" ".join(texts[i].split()[:3]) for i in own]
    vectors = embedder().embed(texts)
    for question, number, ranks in zip(questions, own, index.ranks(questions, own), strict=True):
        cosines = vectors @ embedder().embed([question])[0]
        assert ranks.dense.rank == 1 + (cosines > cosines[number] + 1e-6).sum()


def test_bm25_in_many_shards_scores_as_in_one_and_as_by_hand(tmp_path: Path) -> None:
    texts = ["brake pad wear", "door door", "", "brake test at the depot", "pad"] * 3
    scores = []
    for size in (2, 100):
        folder = tmp_path / str(size)
        folder.mkdir()
        writer = PostingsWriter(folder, shard_chunks=size)
        for text in texts:
            writer.add(text)
        writer.finish()
        writer.clean_up()
        postings = Postings(folder)
        keys = [postings.keys(question) for question in ("brake pad pad unheard", "door", "")]
        blocks = list(postings.blocks(keys))
        assert [first for first, _ in blocks] == list(range(0, 15, size))
        scores.append(np.concatenate([block for _, block in blocks], axis=1))
        own, coverage = postings.own(keys, np.array([10, 1, 4]))
        assert own.tolist() == scores[-1][[0, 1, 2], [10, 1, 4]].tolist()
        known, unknown = math.log(1 + 9.5 / 6.5), math.log(1 + 15.5 / 0.5)
        assert coverage.tolist() == [pytest.approx(2 * known / (2 * known + unknown)), 1, 0]
    assert np.array_equal(scores[0], scores[1])
    by_hand = bm25_by_definition(texts, "brake pad")
    assert scores[0][0] == pytest.approx(by_hand, rel=1e-6)
    idf, norm = math.log(1 + (15 - 3 + 0.5) / 3.5), 1.2 * (0.25 + 0.75 * 2 / 2.2)
    assert scores[0][1][1] == pytest.approx(idf * 2 / (2 + norm))


def test_identifiers_count_whole_and_in_parts_and_scripts_without_spaces_by_character() -> None:
    assert terms("sqlite3_open() of readOnly") == [
        *("sqlite3_open", "sqlite3", "open", "of", "readonly", "read", "only")
    ]
    assert terms("Straße ﬁle __x__ 鉄道a") == ["strasse", "file", "__x__", "鉄", "道", "a"]
    assert len(terms("a" * 200_000 + "B")) == 3  # no time is lost on what is no word


def test_a_question_that_shares_no_word_with_its_chunk_is_not_found_by_bm25(tmp_path: Path) -> None:
    index = made_of(corpus(["brake pad", "door leaf", "brake test"]), tmp_path)
    (ranks,) = index.ranks(["window pane"], [1])
    assert ranks.bm25 == Found(3, 0.0, 0.0, 0, 3)
    assert ranks.coverage == 0
    (ranks,) = index.ranks(["brake"], [1])
    assert ranks.bm25.rank == 3
    assert ranks.bm25.margin < 0


def test_a_corpus_of_one_chunk_has_no_other(tmp_path: Path) -> None:
    (ranks,) = made_of(corpus(["brake pad"]), tmp_path).ranks(["brake"], [0])
    assert [(found.rank, found.best_other, found.near) for found in ranks[:2]] == [(1, 0, 1)] * 2


def test_search_gives_the_nearest_of_all(tmp_path: Path) -> None:
    texts = random_texts(8_300, seed=4)
    texts[8_250] = texts[3]
    index = made_of(corpus(texts), tmp_path)
    numbers, scores = index.search([texts[3], texts[8_299]], 20, batch=1)
    cosines = embedder().embed([texts[3], texts[8_299]]) @ embedder().embed(texts).T
    expected = -np.sort(-cosines, axis=1)[:, :20]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert numbers[0, :2].tolist() == [3, 8_250]
    assert numbers[1, 0] == 8_299
    by_vectors, _ = index.search(index.vectors([3]), 20)
    assert by_vectors.tolist() == numbers[:1].tolist()
    assert index.search(["word1"], 10**6)[0].shape == (1, 8_300)


def test_chunks_are_known_by_id_place_text_and_document(tmp_path: Path) -> None:
    sources = corpus(["brake", "door", "brake"], documents=2)
    sources.append(Source(Chunk(chunk_id="5f0c", chunk_text="seal")))
    index = made_of(sources, tmp_path)
    assert len(index) == 4
    assert index.numbers([2, "5f0c", 0, "none"]) == [2, 3, 0, None]
    assert index.places([3, 1]) == [("5f0c", "", ""), (1, "d1", "B1")]
    assert index.texts[0] == index.texts[2] != index.texts[1]
    assert index.documents[0] == index.documents[2] != index.documents[1]
    with pytest.raises(IndexError, match="among 4"):
        index.places([4])
    with pytest.raises(ValueError, match="1 questions and 2 chunks"):
        index.ranks(["brake"], [0, 1])


# ---------------------------------------------------------------------- once, and again


def test_an_index_is_used_again_until_corpus_or_model_change(tmp_path: Path) -> None:
    asked = Counting()
    sources = corpus(random_texts(50))
    made_of(sources, tmp_path, by=embedder(asked)).close()
    assert len([text for text in asked.texts if "word" in text]) == 50
    (folder,) = tmp_path.glob("corpus-*-*")
    before = tree_digest(folder)

    asked.texts.clear()
    made_of(sources, tmp_path, by=embedder(asked)).close()
    assert len(asked.texts) == 1  # the probe
    assert tree_digest(folder) == before

    sources[3] = Source(sources[3].chunk.model_copy(update={"document_id": "moved"}))
    moved = made_of(sources, tmp_path, by=embedder(asked))
    assert moved.places([3])[0].document == "moved"
    assert not folder.exists()  # the older content's
    made_of(sources, tmp_path, by=embedder(name="another")).close()
    assert len(list(tmp_path.glob("corpus-*-*"))) == 2  # two models keep one each

    turned = embedder(lambda texts: -bag_of_words(texts))  # other weights of the same name
    vectors = made_of(sources, tmp_path, by=turned).vectors(range(50))
    assert vectors == pytest.approx(-vectors_of(sources), abs=1e-6)


def vectors_of(sources: Sequence[Source]) -> np.ndarray:
    return embedder().embed([source.chunk.chunk_text for source in sources])


@pytest.mark.parametrize("name", ["vectors.npy", "chunks.sqlite", "groups.npz", "meta.json"])
def test_a_damaged_index_is_built_again(tmp_path: Path, name: str) -> None:
    sources = corpus(random_texts(40))
    made_of(sources, tmp_path).close()
    (file,) = tmp_path.glob(f"corpus-*-*/{name}")
    file.write_bytes(file.read_bytes()[:-30])
    index = made_of(sources, tmp_path)
    assert index.ranks(["word1"], [0]) == made_of(sources, tmp_path / "new").ranks(["word1"], [0])


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = [{tests!r}, {root!r}]
    from test_corpus_index import bag_of_words, corpus, embedder, made_of, random_texts
    calls = 0
    def mortal(texts):
        global calls
        calls += 1
        if calls == 4:  # the probe, two batches, and in the third
            os.kill(os.getpid(), signal.SIGKILL)
        return bag_of_words(texts)
    made_of(corpus(random_texts(1500)), Path(sys.argv[1]), by=embedder(mortal))
"""


def test_a_build_that_was_killed_goes_on_and_gives_the_same_index(tmp_path: Path) -> None:
    code = textwrap.dedent(KILLED).format(root=str(ROOT), tests=str(ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = (tmp_path / "a").glob("corpus-*-*")
    assert not (folder / "meta.json").exists()
    with (folder / "vectors.npy").open("ab") as file:
        file.write(b"torn")  # half a row that no entry vouches for

    asked = Counting()
    sources = corpus(random_texts(1500))
    made_of(sources, tmp_path / "a", by=embedder(asked)).close()
    assert len([text for text in asked.texts if "word" in text]) == 1500 - 2 * 512
    made_of(sources, tmp_path / "b").close()
    (other,) = (tmp_path / "b").glob("corpus-*-*")
    assert {name: value for name, value in tree_digest(folder).items() if "sqlite" not in name} == {
        name: value for name, value in tree_digest(other).items() if "sqlite" not in name
    }


def test_a_corpus_that_changes_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    texts = iter([random_texts(30), random_texts(30, seed=9)])
    with pytest.raises(UserError, match="changed while it was read") as refused:
        open_index(tmp_path, "docs", lambda: [corpus(next(texts))], embedder())
    assert refused.value.exit_code == 75
    assert not list(tmp_path.glob("corpus-*-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size")
@pytest.mark.parametrize("most", [15_000, 60_000])  # bytes a file may have: rows, then vectors
def test_a_disk_that_is_full_is_told_of_and_the_build_goes_on_later(
    tmp_path: Path, most: int
) -> None:
    import resource

    sources = corpus(random_texts(1500))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(UserError, match=r"corpus-.*cannot be .*(free the disk|backup)"):
            made_of(sources, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    index = made_of(sources, tmp_path)
    assert index.vectors(range(1500)) == pytest.approx(vectors_of(sources), abs=1e-6)


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        made_of(corpus(["brake"]), tmp_path / "cache")


def test_a_collection_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chunk with a text"):
        open_index(tmp_path, "docs", lambda: [], embedder())


def test_another_width_of_questions_is_refused(tmp_path: Path) -> None:
    made_of(corpus(["brake", "door"]), tmp_path).close()
    mixed = HostEmbedder("bag of words", bag_of_words, lambda texts: [[1.0]] * len(texts))
    with pytest.raises(UserError, match="1 numbers"):
        made_of(corpus(["brake", "door"]), tmp_path, by=mixed).ranks(["brake"], [0])


# ---------------------------------------------------------------------- stored vectors


def test_stored_vectors_of_the_same_model_are_taken_and_the_missing_made(tmp_path: Path) -> None:
    texts = random_texts(60)
    stored = 7 * bag_of_words([f"{text} word1" for text in texts])  # not of length 1
    sources = [
        source._replace(vector=None if i % 10 == 3 else stored[i].tolist())
        for i, source in enumerate(corpus(texts))
    ]
    sources[5] = sources[5]._replace(vector=[0.0] * 12)
    asked = Counting()
    index = made_of(sources, tmp_path, by=embedder(asked))
    assert len({text for text in asked.texts if "word" in text}) <= 7 + 16
    expected = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    made = embedder().embed(texts)
    for i, row in enumerate(index.vectors(range(60))):
        assert row == pytest.approx(made[i] if i % 10 == 3 or i == 5 else expected[i], abs=1e-6)


@pytest.mark.parametrize("width", [12, 11])
def test_stored_vectors_of_another_model_are_not_taken(tmp_path: Path, width: int) -> None:
    texts = random_texts(60)
    others = np.random.default_rng(1).standard_normal((60, width)).tolist()
    sources = [s._replace(vector=v) for s, v in zip(corpus(texts), others, strict=True)]
    index = made_of(sources, tmp_path)
    assert index.vectors(range(60)) == pytest.approx(embedder().embed(texts), abs=1e-6)


def test_the_real_collection_is_indexed_with_the_vectors_it_has(
    qdrant: Path, tmp_path: Path
) -> None:
    store = open_store(path=qdrant)
    index = open_index(
        tmp_path / "cache",
        "sqlite_docs",
        lambda: read_store(store),
        embedder_of("all-MiniLM-L6-v2"),
    )
    ids = store.point_ids()
    assert len(index) == len(ids) == 648
    meta = json.loads((index.folder / "meta.json").read_text())
    assert meta["stored_vectors"] is True
    theirs = dict(store.vectors(ids[:5]))
    expected = np.array([theirs[point] for point in ids[:5]])
    assert index.vectors(known(index, ids[:5])) == pytest.approx(expected, abs=1e-5)
    decisions = map(json.loads, (ROOT / "data/sample/decisions.jsonl").read_text().splitlines())
    gold = {d["chunk_id"]: d["gold_question"] for d in decisions if d.get("gold_question")}
    asked = dict(islice(gold.items(), 30))
    ranks = index.ranks(list(asked.values()), known(index, asked))
    within = [min(one.dense.rank, one.bm25.rank) <= 10 for one in ranks]
    assert sum(within) / len(within) > 0.9


def test_the_text_that_was_embedded_is_the_one_that_llama_index_gives(qdrant: Path) -> None:
    from llama_index.core.schema import MetadataMode, TextNode

    store = open_store(path=qdrant)
    for _, payload in store.payloads(store.point_ids()[:20]):
        node = TextNode.from_json(payload["_node_content"])
        assert embedded_text(payload["_node_content"], node.text) == node.get_content(
            MetadataMode.EMBED
        )
    odd = TextNode(
        text="{metadata_str}",
        metadata={"a{value}": "{content}", "b": 2},
        metadata_template="{key}={value}",
        metadata_separator="; ",
        text_template="<{content}|{metadata_str}>",
    )
    assert embedded_text(odd.to_json(), odd.text) == odd.get_content(MetadataMode.EMBED)
    assert embedded_text('{"metadata": {"a": 1}, "text_template": "{content.__class__}"}', "x") == (
        "{content.__class__}"
    )
    assert [embedded_text(node, "x") for node in ("", "[]", '{"metadata": 3}')] == ["x"] * 3


# ---------------------------------------------------------------------- several at a time


@pytest.mark.skipif(sys.platform == "win32", reason="no lock that can be shared")
def test_an_index_that_is_open_outlives_the_content_it_was_made_of(tmp_path: Path) -> None:
    """As where an export indexes a collection that changed while a generator works on it."""
    texts = random_texts(30)
    running = made_of(corpus(texts), tmp_path)
    before = running.ranks([texts[3]], [3])
    made_of(corpus([*texts, "word1 word2"]), tmp_path).close()
    assert running.ranks([texts[3]], [3]) == before
    running.close()
    made_of(corpus([*texts, "word1"]), tmp_path).close()
    assert len(list(tmp_path.glob("corpus-*-*"))) == 1


def test_an_index_that_nobody_closed_is_deleted_once_it_is_out_of_use(tmp_path: Path) -> None:
    texts = random_texts(30)
    folder = made_of(corpus(texts), tmp_path).folder
    made_of(corpus(texts[1:]), tmp_path).close()
    assert not folder.exists()
