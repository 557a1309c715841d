"""How a corpus index is built: one look at the corpus, then all that is kept of it in batches.

Every batch is on disk, in this order, before the next is read: its vectors, the rows that vouch for
them, its postings. A build that was killed goes on after the last row. A corpus that is not the one
the attempt before began with is noticed, and the attempt thrown away.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from question_optimizer import files
from question_optimizer.embedding import TextEmbedder
from question_optimizer.errors import TRY_LATER, UserError, reason_of
from question_optimizer.generation.bm25 import PostingsWriter
from question_optimizer.generation.embedded_text import embedded_text
from question_optimizer.generation.vector_file import VectorWriter
from question_optimizer.hostile_text import storable
from question_optimizer.records import Chunk
from question_optimizer.sqlite_file import open_database

if TYPE_CHECKING:
    import numpy as np

Vector = Sequence[float]
Progress = Callable[[int, int], None]
SAME_MODEL = 0.8  # mean cosine of stored vectors with what our model gives
VERSION = 1
PROBES = 16
_BATCH = 512  # chunks that are embedded and put on disk at a time
_PROBE = "Which of these passages answers the question?"
CHUNKS = """
CREATE TABLE IF NOT EXISTS chunks (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT, heading TEXT, text INTEGER
)
"""


# ---------------------------------------------------------------------- what there is


class Source(NamedTuple):
    """A chunk, its stored vector, and its `_node_content` where LlamaIndex wrote it."""

    chunk: Chunk
    vector: Vector | None = None
    node: str = ""


class Survey(NamedTuple):
    """A corpus looked at once: how many chunks, the digest of all, and a few of them at random."""

    chunks: int
    digest: str
    probes: list[Source]


def survey(batches: Iterable[Sequence[Source]]) -> Survey:
    """The probes are those with the least text digests: a sample that no order can bias."""
    contents = _Contents()
    probes: list[tuple[int, Source]] = []
    for source in chain.from_iterable(batches):
        key = -int.from_bytes(contents.add(source.chunk)[:6], "big")
        if (len(probes) < PROBES or key > probes[0][0]) and all(key != p[0] for p in probes):
            (heapq.heappush if len(probes) < PROBES else heapq.heapreplace)(probes, (key, source))
    if not contents.chunks:
        raise UserError("the collection holds no chunk with a text; there is nothing to search in")
    return Survey(contents.chunks, contents.digest(), [source for _, source in probes])


class _Contents:
    """The digest of a corpus: ids, places and texts, in their order."""

    def __init__(self) -> None:
        self.chunks = 0
        self._sum = hashlib.sha256()

    def add(self, chunk: Chunk) -> bytes:
        """One more chunk; the sha256 of its text."""
        text = hashlib.sha256(chunk.chunk_text.encode("utf-8", "surrogatepass")).digest()
        place = repr((chunk.chunk_id, chunk.document, chunk.headings))
        self._sum.update(place.encode("utf-8", "surrogatepass") + b"\0" + text)
        self.chunks += 1
        return text

    def digest(self) -> str:
        return self._sum.hexdigest()


def is_usable(folder: Path, embedder: TextEmbedder) -> bool:
    """Whether a finished index is there, whole, and of this very model (a folder may hold another
    one than yesterday, and two functions may bear one name)."""
    try:
        meta = files.read_json(folder / "meta.json", made_by=None)
        if meta["version"] != VERSION or _sizes(folder) != meta["files"]:
            return False
    except (UserError, OSError, KeyError, TypeError):
        return False
    return _is_of(folder, embedder)


def _is_of(folder: Path, embedder: TextEmbedder) -> bool:
    """Whether the model gives what it gave when the index was begun."""
    import numpy as np

    try:
        probe = np.load(folder / "probe.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    now = embedder.embed([_PROBE])[0]
    return bool(now.shape == probe.shape and now @ probe > 1 - 1e-3)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_size
        for path in sorted(folder.glob("[!.]*"))
        if path.name != "meta.json" and not path.name.endswith(("-wal", "-shm"))
    }


# ---------------------------------------------------------------------- building


def build(
    folder: Path,
    read: Callable[[], Iterable[Sequence[Source]]],
    embedder: TextEmbedder,
    surveyed: Survey,
    progress: Progress,
) -> None:
    """Make `folder` a finished index, from nothing or from what an attempt before has left."""
    try:
        _begin(folder, embedder)
        width = width_of_stored(surveyed.probes, embedder)
        with closing(_Builder(folder, embedder, width)) as builder:
            pairs = chain.from_iterable(read())
            while batch := list(islice(pairs, _BATCH)):
                builder.add(batch)
                progress(builder.contents.chunks, surveyed.chunks)
            builder.finish(surveyed)
    except _OtherCorpus:
        shutil.rmtree(folder)
        raise UserError(
            f"{folder.name}: the collection was changed while it was read; run this again",
            exit_code=TRY_LATER,
        ) from None
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{folder}: cannot be written ({reason_of(error)}); free the disk or change --data-dir"
        ) from error
    files.write_json(
        folder / "meta.json",
        {
            "version": VERSION,
            "model": embedder.model,
            "chunks": surveyed.chunks,
            "digest": surveyed.digest,
            "stored_vectors": width > 0,
            "files": _sizes(folder),
        },
    )


def _begin(folder: Path, embedder: TextEmbedder) -> None:
    import numpy as np

    if folder.exists() and ((folder / "meta.json").exists() or not _is_of(folder, embedder)):
        shutil.rmtree(folder)  # damaged, or of another model
    if not folder.exists():
        folder.mkdir()
        np.save(folder / "probe.npy", embedder.embed([_PROBE])[0], allow_pickle=False)


def width_of_stored(probes: Sequence[Source], embedder: TextEmbedder) -> int:
    """The dimensions of stored vectors of the embedder's model, 0 if they are not of it."""
    import numpy as np

    stored = [source for source in probes if source.vector is not None]
    if not stored or len({len(source.vector or ()) for source in stored}) > 1:
        return 0
    theirs = _unit(np.array([source.vector for source in stored], np.float32))
    ours = embedder.embed([embedded_text(s.node, s.chunk.chunk_text) for s in stored])
    if ours.shape != theirs.shape or (ours * theirs).sum(axis=1).mean() < SAME_MODEL:
        return 0
    return int(theirs.shape[1])


def _unit(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


class _OtherCorpus(Exception):
    """What is read is not what was surveyed, or not what an attempt before had read."""


class _Builder:
    """Adds chunks to an unfinished index, passing over what an attempt before put there.

    `width` is that of stored vectors which may be taken, 0 for none.
    """

    def __init__(self, folder: Path, embedder: TextEmbedder, width: int):
        self.contents = _Contents()
        self._width = width
        self._folder = folder
        self._embedder = embedder
        self._postings = PostingsWriter(folder)
        self._in_postings = self._postings.done
        self._chunks = open_database(
            folder / "chunks.sqlite", CHUNKS, version=VERSION, durable=False
        )
        self._vectors = VectorWriter(folder / "vectors.npy")
        there = self._chunks.execute("SELECT count(*) FROM chunks").fetchone()[0]
        self._done = self._vectors.resume(there)
        with self._chunks:
            self._chunks.execute("DELETE FROM chunks WHERE number >= ?", (self._done,))

    def add(self, batch: Sequence[Source]) -> None:
        """On disk on return, or the same as what is there already."""
        first = self.contents.chunks
        rows = [self._row(number, chunk) for number, (chunk, *_) in enumerate(batch, first)]
        old = min(len(batch), max(0, self._done - first))
        known = self._chunks.execute(
            "SELECT * FROM chunks WHERE number >= ? AND number < ? ORDER BY number",
            (first, first + old),
        )
        if known.fetchall() != rows[:old]:
            raise _OtherCorpus
        if old < len(batch):
            self._vectors.append(self._vectors_of(batch[old:]))
            with self._chunks:
                self._chunks.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", rows[old:])
        for number, (chunk, *_) in enumerate(batch, first):
            if number >= self._in_postings:
                self._postings.add(chunk.chunk_text)

    def _row(self, number: int, chunk: Chunk) -> tuple[int, str, str, str, int]:
        text = int.from_bytes(self.contents.add(chunk)[:8], "big", signed=True)
        heading = chunk.headings[-1] if chunk.headings else ""
        place = str(chunk.chunk_id), storable(chunk.document), storable(heading)
        return number, *place, text

    def _vectors_of(self, batch: Sequence[Source]) -> np.ndarray:
        import numpy as np

        missing = [i for i, source in enumerate(batch) if not self._may_take(source.vector)]
        made = self._embedder.embed([batch[i].chunk.chunk_text for i in missing])
        if len(missing) == len(batch):
            return made
        rows = np.zeros((len(batch), self._width), np.float32)
        for i in sorted({*range(len(batch))} - {*missing}):
            rows[i] = batch[i].vector
        if missing:
            rows[missing] = made
        return _unit(rows)

    def _may_take(self, vector: Vector | None) -> bool:
        return vector is not None and len(vector) == self._width and any(vector)

    def finish(self, surveyed: Survey) -> None:
        """Everything but the meta file."""
        import numpy as np

        if self.contents.digest() != surveyed.digest:
            raise _OtherCorpus
        columns = self._chunks.execute("SELECT text, document FROM chunks ORDER BY number")
        pairs = np.fromiter(
            ((text, _number_of(document)) for text, document in columns),
            np.dtype((np.int64, 2)),
            self.contents.chunks,
        )
        texts, documents = (np.unique(c, return_inverse=True)[1] for c in pairs.T)
        with (self._folder / "groups.npz").open("wb") as file:
            np.savez(file, texts=texts.astype(np.uint32), documents=documents.astype(np.uint32))
        self._vectors.finish()
        self._postings.finish()
        self._postings.clean_up()

    def close(self) -> None:
        self._vectors.close()
        self._chunks.close()


def _number_of(document: str) -> int:
    data = document.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
