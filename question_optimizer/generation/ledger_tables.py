"""The ledger's tables in SQLite, and how a file of an earlier version becomes one of today.

    results         one row a slot, the n-th question of a chunk
    refusals        questions that a gate refused, in the order in which they were made
    writes          what stood in the collection before a run wrote to it
    configurations  what the fingerprints stand for

Chunk ids are text, in whose order pages are read.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from question_optimizer.sqlite_file import open_database

UNDONE = -1  # of results.written: a person took it out; 0 waits, 1 is in the collection

_RANKS = "dense_rank INTEGER, bm25_rank INTEGER,"  # since version 3
_RESULTS = f"""
CREATE TABLE IF NOT EXISTS results (
    fingerprint TEXT NOT NULL, chunk_id TEXT NOT NULL, slot INTEGER NOT NULL, state TEXT NOT NULL,
    query TEXT, query_type TEXT, query_format TEXT, query_length TEXT, persona_id TEXT, model TEXT,
    document TEXT NOT NULL DEFAULT '', heading TEXT NOT NULL DEFAULT '',
    text_sha256 TEXT NOT NULL DEFAULT '', calls INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
    gate TEXT NOT NULL DEFAULT '', findings TEXT NOT NULL DEFAULT '[]',
    checked TEXT NOT NULL DEFAULT '', analysed INTEGER NOT NULL DEFAULT 0,
    written INTEGER NOT NULL DEFAULT 0, {_RANKS}
    PRIMARY KEY (fingerprint, chunk_id, slot)
) WITHOUT ROWID
"""
_REFUSALS = f"""
CREATE TABLE IF NOT EXISTS refusals (
    fingerprint TEXT NOT NULL, chunk_id TEXT NOT NULL, slot INTEGER NOT NULL,
    attempt INTEGER NOT NULL, query TEXT NOT NULL, gate TEXT NOT NULL, reason TEXT NOT NULL,
    query_type TEXT, query_format TEXT, query_length TEXT, persona_id TEXT, model TEXT, {_RANKS}
    PRIMARY KEY (fingerprint, chunk_id, slot, attempt)
) WITHOUT ROWID
"""
_CONFIGURATIONS = """
CREATE TABLE IF NOT EXISTS configurations (
    fingerprint TEXT PRIMARY KEY, collection TEXT NOT NULL, pipeline TEXT NOT NULL,
    personas TEXT NOT NULL, models TEXT NOT NULL, text_key TEXT, seen_at TEXT NOT NULL,
    changed TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID
"""
_SCHEMA = f"""
{_RESULTS};
CREATE INDEX IF NOT EXISTS results_by_state
    ON results (fingerprint, state, checked, chunk_id, slot);
CREATE INDEX IF NOT EXISTS results_to_write
    ON results (fingerprint, chunk_id) WHERE state='done' AND checked<>'' AND written=0;
{_REFUSALS};
CREATE TABLE IF NOT EXISTS writes (
    run TEXT NOT NULL, chunk_id TEXT NOT NULL, collection TEXT NOT NULL, fingerprint TEXT NOT NULL,
    former TEXT NOT NULL, at TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, chunk_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS writes_standing ON writes (run, chunk_id) WHERE undone=0;
{_CONFIGURATIONS}
"""
_VERSION = 3
# Version 1 had one question a chunk, and no word on what a fingerprint stood for: '' is "unknown".
# Version 2 did not keep at what rank a search finds a question's chunk.
_MIGRATIONS = {
    1: f"""
    {_RESULTS.replace(_RANKS, "")};
    {_REFUSALS.replace(_RANKS, "")};
    {_CONFIGURATIONS};
    INSERT INTO results (fingerprint, chunk_id, slot, state, query, query_type, query_format,
        persona_id, model, text_sha256, tokens, cost, attempts, reason, checked, written)
        SELECT fingerprint, chunk_id, 0, state, query, query_type, query_format,
        persona_id, model, text_sha256, tokens, cost, attempts, reason, 'off', written FROM chunks;
    INSERT INTO configurations
        SELECT fingerprint, '', '', '',
        json_group_array(DISTINCT model) FILTER (WHERE model IS NOT NULL), NULL, '', ''
        FROM chunks GROUP BY fingerprint;
    DROP TABLE chunks
    """,  # noqa: S608 - our own text
    2: """
    ALTER TABLE results ADD COLUMN dense_rank INTEGER;
    ALTER TABLE results ADD COLUMN bm25_rank INTEGER;
    ALTER TABLE refusals ADD COLUMN dense_rank INTEGER;
    ALTER TABLE refusals ADD COLUMN bm25_rank INTEGER
    """,
}


def open_ledger(path: Path) -> sqlite3.Connection:
    """The ledger's file at `path`, made if missing; `open_database` says what it promises."""
    return open_database(path, _SCHEMA, version=_VERSION, migrations=_MIGRATIONS)
