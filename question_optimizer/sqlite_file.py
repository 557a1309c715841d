"""Our own SQLite files: the annotation log and the generator's ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from question_optimizer.errors import UserError


def open_database(
    path: Path | None, schema: str, *, version: int, durable: bool = True
) -> sqlite3.Connection:
    """The database at `path`, made if missing (None: in memory); safe to use from any thread.

    A commit is on disk when it returns, if `durable`. Opening an existing database changes no
    byte. UserError where it cannot be opened, is none of ours, or was made by a newer program.
    """
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path or ":memory:", timeout=30, check_same_thread=False)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            raise UserError(f"{path}: version {found} is newer than the {version} known here")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        if found < version:
            connection.execute("PRAGMA journal_mode=WAL")
            with connection:
                connection.execute(schema)
                connection.execute(f"PRAGMA user_version={version}")
        table = schema.split("(")[0].split()[-1]
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608 - our schema
    except (sqlite3.DatabaseError, OSError) as error:
        raise UserError(f"{path}: cannot be opened ({error}); restore it from a backup") from error
    return connection
