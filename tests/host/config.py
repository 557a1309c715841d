"""The host's own settings; ours must never be imported in its place."""

COLLECTION = "sqlite_docs"
HOST = "the host's own config"
