"""Our own SQLite files: the annotation log and the generator's ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from question_optimizer.errors import UserError


def open_database(path: Path, schema: str, *, version: int) -> sqlite3.Connection:
    """The database at `path`, made if missing; a commit is on disk when it returns.

    Opening an existing one changes no byte. UserError where it cannot be opened, is none of ours,
    or was made by a newer program.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            raise UserError(
                f"{path}: version {found} is newer than the {version} this program knows"
            )
        connection.execute("PRAGMA synchronous=FULL")
        if found < version:
            connection.execute("PRAGMA journal_mode=WAL")
            with connection:
                connection.execute(schema)
                connection.execute(f"PRAGMA user_version={version}")
    except (sqlite3.DatabaseError, OSError) as error:
        raise UserError(f"{path}: cannot be opened ({error}); restore it from a backup") from error
    return connection
