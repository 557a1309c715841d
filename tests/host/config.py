"""The host's own settings; ours must never be imported in its place."""

import os
from pathlib import Path

HOST = "the host's own config"
COLLECTION = "sqlite_docs"
QDRANT_PATH = Path(os.environ["HOST_QDRANT"])
DATA_DIR = Path(os.environ["HOST_DATA"])
DAILY_LOG = DATA_DIR / "host_requests.json"
LLM_URL = os.environ["HOST_LLM"]
EMBEDDING_DIMENSIONS = 384
