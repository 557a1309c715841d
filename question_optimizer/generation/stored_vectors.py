"""The vectors that a collection holds already, where they are of the model that is asked for.

Embedding every chunk anew is most of a run's work on a machine without a GPU: some hours for a
million chunks by MiniLM, weeks by a model of 0.6 billion parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from question_optimizer.chunk_store import ChunkStore
from question_optimizer.embedding import TextEmbedder
from question_optimizer.generation.corpus_build import PROBES, Source, width_of_stored
from question_optimizer.generation.corpus_index import read_sources
from question_optimizer.records import PointId

if TYPE_CHECKING:
    import numpy as np


class StoredVectors:
    """Unit vectors of chunks as the collection has them. Blocking; made when first asked for."""

    def __init__(self, store: ChunkStore, embedder: TextEmbedder, text_key: str | None):
        self._store = store
        self._embedder = embedder
        self._text_key = text_key
        self._width: int | None = None

    def of(self, chunk_ids: Sequence[PointId]) -> np.ndarray | None:
        """float32 unit vectors, shape (chunks, dimensions), in this order; None where they are of
        another model, or where one of the chunks has none."""
        import numpy as np

        if self._width is None:
            self._width = width_of_stored(self._probes(), self._embedder)
        if not self._width:
            return None
        found = dict(self._store.vectors(list(chunk_ids)))
        if any(len(found.get(chunk_id, ())) != self._width for chunk_id in chunk_ids):
            return None
        rows = np.array([found[chunk_id] for chunk_id in chunk_ids], np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.maximum(lengths, 1e-12)

    def _probes(self) -> list[Source]:
        """Chunks from all over the collection."""
        ids = self._store.point_ids()
        chosen = ids[:: max(1, len(ids) // PROBES)]
        return list(islice(read_sources(self._store, chosen, self._text_key), PROBES))
