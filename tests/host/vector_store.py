"""Opens the one Qdrant client at import and keeps it, as the host does."""

import os

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

import config

client = QdrantClient(path=os.environ["HOST_QDRANT"])
store = QdrantVectorStore(config.COLLECTION, client=client)
