"""Opens the one Qdrant client at import and keeps it for the life of the process."""

import hashlib

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

import config


class WordEmbedding(BaseEmbedding):
    """Stands for the host's local model: each word of a text counts in one dimension."""

    def _embed(self, text):
        vector = [0.0] * config.EMBEDDING_DIMENSIONS
        for word in text.lower().split():
            digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
            vector[int.from_bytes(digest[:4], "big") % len(vector)] += 1.0
        return vector if any(vector) else [1.0, *vector[1:]]

    def _get_text_embedding(self, text):
        return self._embed(text)

    def _get_query_embedding(self, query):
        return self._embed(query)

    async def _aget_query_embedding(self, query):
        return self._embed(query)


client = QdrantClient(path=str(config.QDRANT_PATH))
store = QdrantVectorStore(config.COLLECTION, client=client)
index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
