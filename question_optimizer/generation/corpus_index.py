"""Every chunk of a collection, as a dense vector and in a BM25 index, to rank questions against.

Built once into `cache/corpus-<which>-<content>/` and used again as long as ids, texts, places and
the embedding model stay the same:

    chunks.sqlite       number, id, document, heading and text digest of each chunk
    vectors.npy         float32 unit vectors, shape (chunks, dimensions)
    groups.npz          which chunks have the same text, and which the same document
    postings-*.npz      see `bm25`
    probe.npy           one vector of the model, by which another model of that name is told
    meta.json           written last: "finished"
    .lock               held, shared, by whoever has the index open: then nobody deletes it

Memory does not grow with the corpus but for some 30 bytes a chunk. Vectors are kept whole
(float32): in half precision chunks that are near one another would change ranks, and every block
would have to be converted before it is multiplied. Blocks are read from the files, not mapped:
pages of a map count as the process' memory until the system wants them back.
"""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from question_optimizer import files
from question_optimizer.chunk_store import ChunkStore, chunk_of
from question_optimizer.embedding import TextEmbedder
from question_optimizer.errors import UserError
from question_optimizer.generation.bm25 import Postings
from question_optimizer.generation.corpus_build import (
    CHUNKS,
    VERSION,
    Progress,
    Source,
    build,
    is_usable,
    survey,
)
from question_optimizer.generation.vector_file import VectorFile
from question_optimizer.locks import is_held, one_at_a_time, share
from question_optimizer.records import PointId
from question_optimizer.sqlite_file import open_database

if TYPE_CHECKING:
    import numpy as np

NEAR = 0.05  # of the own score: `relative_margin` of sentence-transformers, NV-Retriever's 95 %
_STORE_BATCH = 200
_LOCK = ".lock"
_ROUNDING = 1e-6  # two float32 products of one vector may differ by as much


class Found(NamedTuple):
    """How one retriever finds a question's own chunk. Chunks with its very text never count as
    others: they are the same positive.

    rank                1 + the number of others that score higher; the number of all chunks where
                        the own one scores nothing, as BM25 gives for no word in common
    score, best_other   of the own chunk, and of the best other (0 where there is none)
    near                how many chunks score within 5 % of it or higher, itself included: the
                        positives there may be (N+); 0 where it scores nothing
    rank_in_document    as `rank`, among the chunks of its document
    """

    rank: int
    score: float
    best_other: float
    near: int
    rank_in_document: int

    @property
    def margin(self) -> float:
        """By how much the own chunk is ahead; negative where another one is."""
        return self.score - self.best_other


class Ranks(NamedTuple):
    """A question's own chunk by both retrievers, and the share of the question's words in it."""

    dense: Found
    bm25: Found
    coverage: float


class Place(NamedTuple):
    """Where a chunk of the index comes from."""

    chunk_id: PointId
    document: str
    heading: str


def read_store(store: ChunkStore, text_key: str | None = None) -> Iterator[list[Source]]:
    """All chunks of a collection that have a text, with their vectors, in batches by id."""
    ids = store.point_ids()
    for start in range(0, len(ids), _STORE_BATCH):
        yield list(read_sources(store, ids[start : start + _STORE_BATCH], text_key))


def read_sources(
    store: ChunkStore, ids: Sequence[PointId], text_key: str | None = None
) -> Iterator[Source]:
    """Those of `ids` that have a text, with their vectors."""
    vectors = dict(store.vectors(list(ids)))
    for point_id, payload in store.payloads(list(ids)):
        chunk, _ = chunk_of(point_id, payload, text_key)
        node = payload.get("_node_content")
        if chunk is not None:
            yield Source(chunk, vectors.get(point_id), node if isinstance(node, str) else "")


def open_index(
    cache_dir: Path,
    name: str,
    read: Callable[[], Iterable[Sequence[Source]]],
    embedder: TextEmbedder,
    *,
    progress: Progress = lambda done, of: None,
) -> CorpusIndex:
    """The index of the corpus that `read()` gives, built if there is none that fits.

    `read` is called once to tell whether the corpus is the same, and once more to build. It must
    give the same chunks in the same order. An index of the same `name` (the collection) and model
    over an older content is deleted, unless it is open anywhere: then a later call does it. Two
    processes that want it wait for one another. `progress` is called with the chunks done and those
    there are.

    Vectors that are stored in the collection are taken if they are of the embedder's model: 16
    chunks are embedded as LlamaIndex does it, and if dimensions agree and the mean cosine is at
    least .8, they are. (Other models of the same width give about 0; in both corpora we have it is
    below 1, since files were moved after they were embedded.) So chunks are found, or not, as the
    host finds them, with a node's path and headings in its vector. Chunks without a usable vector
    are embedded, by their text alone.
    """
    which = files.digest([name, embedder.model])[:8]
    with one_at_a_time(cache_dir / "corpus.lock"):
        surveyed = survey(read())
        folder = cache_dir / f"corpus-{which}-{surveyed.digest[:16]}"
        if not is_usable(folder, embedder):
            build(folder, read, embedder, surveyed, progress)
        for other in cache_dir.glob(f"corpus-{which}-*"):
            if other != folder and not is_held(other / _LOCK):
                shutil.rmtree(other)
        return CorpusIndex(folder, embedder)  # before anybody else may want to delete it


# ---------------------------------------------------------------------- asking


class CorpusIndex:
    """A finished index. Chunks are known by their number in the corpus' order, from 0.

    `texts` and `documents` (shape (chunks,)) give each chunk the number of its text and of its
    document: two chunks of one text have the same one. Safe to use from several threads as far as
    the embedder is.
    """

    def __init__(self, folder: Path, embedder: TextEmbedder):
        import numpy as np

        self.folder = folder
        self._release = weakref.finalize(self, share(folder / _LOCK).close)
        self.model = embedder.model
        self._embedder = embedder
        self._vectors = VectorFile(folder / "vectors.npy")
        self._postings = Postings(folder)
        with np.load(folder / "groups.npz", allow_pickle=False) as groups:
            self.texts, self.documents = groups["texts"], groups["documents"]
        self._lock = threading.Lock()
        self._chunks = open_database(
            folder / "chunks.sqlite", CHUNKS, version=VERSION, durable=False
        )

    def __len__(self) -> int:
        return self._vectors.rows

    def close(self) -> None:
        """Release the file of chunks; from now on the index may be deleted."""
        self._chunks.close()
        self._release()

    def numbers(self, chunk_ids: Iterable[PointId]) -> list[int | None]:
        """The number of each chunk, None for one that is not in the corpus."""
        query = "SELECT number FROM chunks WHERE id = ?"
        with self._lock:
            rows = [self._chunks.execute(query, (str(i),)).fetchone() for i in chunk_ids]
        return [row and row[0] for row in rows]

    def places(self, numbers: Iterable[int]) -> list[Place]:
        """Id, document and innermost heading of each; IndexError for a number that is none."""
        query = "SELECT id, document, heading FROM chunks WHERE number = ?"
        with self._lock:
            rows = [self._chunks.execute(query, (int(n),)).fetchone() for n in numbers]
        if None in rows:
            raise IndexError(f"no such chunk among {len(self)}")
        return [Place(_point_id(row[0]), row[1], row[2]) for row in rows]

    def vectors(self, numbers: Sequence[int]) -> np.ndarray:
        """float32 unit vectors of these chunks, in their order."""
        import numpy as np

        return self._vectors.take(np.asarray(numbers, np.intp))

    def ranks(
        self, questions: Sequence[str], own: Sequence[int], *, batch: int = 256
    ) -> list[Ranks]:
        """How both retrievers find each question's own chunk, given by its number.

        Memory is bounded by `batch`: the scores of so many questions and a block of chunks.
        """
        import numpy as np

        if len(questions) != len(own):
            raise ValueError(f"{len(questions)} questions and {len(own)} chunks of theirs")
        found: list[Ranks] = []
        for start in range(0, len(questions), batch):
            part = questions[start : start + batch]
            numbers = np.asarray(own[start : start + batch], np.intp)
            dense = self._dense(part, numbers)
            bm25, coverage = self._bm25(part, numbers)
            found += map(Ranks, dense, bm25, coverage)
        return found

    def _dense(self, questions: Sequence[str], own: np.ndarray) -> list[Found]:
        asked = self._asked(questions)
        scores = (asked * self._vectors.take(own)).sum(axis=1)
        tally = _Tally(self, own, scores, _ROUNDING)
        for first, rows in self._vectors.blocks():
            tally.take(first, asked @ rows.T)
        return tally.found()

    def _bm25(self, questions: Sequence[str], own: np.ndarray) -> tuple[list[Found], list[float]]:
        keys = [self._postings.keys(question) for question in questions]
        scores, coverage = self._postings.own(keys, own)
        tally = _Tally(self, own, scores, 0)
        for first, block in self._postings.blocks(keys):
            tally.take(first, block)
        return tally.found(unless_zero=True), coverage.tolist()

    def _asked(self, questions: Sequence[str]) -> np.ndarray:
        vectors = self._embedder.embed_queries(questions)
        if vectors.shape[1] != self._vectors.width:
            raise UserError(
                f"embedding {self.model!r}: {vectors.shape[1]} numbers for a question and "
                f"{self._vectors.width} for a chunk; one model must embed both"
            )
        return vectors

    def search(
        self, questions: Sequence[str] | np.ndarray, k: int, *, batch: int = 256
    ) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, cosines), each of shape (questions, min(k, chunks)), the nearest first.

        `questions` are texts, or vectors of shape (questions, dimensions). Equal ones by number.
        """
        import numpy as np

        k = min(k, len(self))
        numbers = np.zeros((len(questions), k), np.intp)
        scores = np.zeros((len(questions), k), np.float32)
        for start in range(0, len(questions), batch):
            part = questions[start : start + batch]
            asked = part if isinstance(part, np.ndarray) else self._asked(part)
            best = _Best(len(asked), k)
            for first, rows in self._vectors.blocks():
                best.take(first, asked @ rows.T)
            end = start + len(asked)
            numbers[start:end], scores[start:end] = best.sorted()
        return numbers, scores


def _point_id(text: str) -> PointId:
    return int(text) if text.isdecimal() and text.isascii() else text


class _Tally:
    """Counts, over blocks of scores, what stands before each question's own chunk."""

    def __init__(self, index: CorpusIndex, own: np.ndarray, scores: np.ndarray, slack: float):
        import numpy as np

        self._texts, self._documents = index.texts, index.documents
        self._text, self._document = index.texts[own][:, None], index.documents[own][:, None]
        self._own = scores
        self._limit = (scores + slack)[:, None]
        self._near_limit = (scores - NEAR * np.abs(scores))[:, None]
        self._higher, self._near, self._in_document = np.zeros((3, len(own)), np.int64)
        self._best = np.full(len(own), -np.inf, np.float32)

    def take(self, first: int, scores: np.ndarray) -> None:
        """Scores of all questions and some chunks; they are changed."""
        import numpy as np

        there = slice(first, first + scores.shape[1])
        scores[self._texts[there] == self._text] = -np.inf
        higher = scores > self._limit
        self._higher += np.count_nonzero(higher, axis=1)
        higher &= self._documents[there] == self._document
        self._in_document += np.count_nonzero(higher, axis=1)
        self._near += np.count_nonzero(scores >= self._near_limit, axis=1)
        np.maximum(self._best, scores.max(axis=1), out=self._best)

    def found(self, *, unless_zero: bool = False) -> list[Found]:
        import numpy as np

        best = np.where(np.isfinite(self._best), self._best, 0)
        columns = (self._higher, self._own, best, self._near, self._in_document)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            Found(len(self._texts), 0.0, other, 0, len(self._texts))
            if unless_zero and not score
            else Found(1 + higher, score, other, 1 + near, 1 + inside)
            for higher, score, other, near, inside in rows
        ]


class _Best:
    """The k best of each row over blocks of scores."""

    def __init__(self, rows: int, k: int):
        import numpy as np

        self._k = k
        self._numbers = np.zeros((rows, 0), np.intp)
        self._scores = np.zeros((rows, 0), np.float32)

    def take(self, first: int, scores: np.ndarray) -> None:
        import numpy as np

        k = min(self._k, scores.shape[1])
        top = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
        self._numbers = np.concatenate([self._numbers, top + first], axis=1)
        self._scores = np.concatenate([self._scores, np.take_along_axis(scores, top, 1)], axis=1)
        self._numbers, self._scores = self.sorted()

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, scores), the best first."""
        import numpy as np

        order = np.lexsort((self._numbers, -self._scores), axis=1)[:, : self._k]
        return (
            np.take_along_axis(self._numbers, order, 1),
            np.take_along_axis(self._scores, order, 1),
        )
