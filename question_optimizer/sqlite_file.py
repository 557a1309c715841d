"""Our own SQLite files: the annotation log, the generator's ledger, the usage log."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from question_optimizer.errors import UserError

_PATIENCE_SECONDS = 30.0


def open_database(
    path: Path | None,
    schema: str,
    *,
    version: int,
    durable: bool = True,
    migrations: Mapping[int, str] | None = None,
) -> sqlite3.Connection:
    """The database at `path`, made if missing (None: in memory); safe to use from any thread.

    A commit is on disk when it returns, if `durable`. Opening an existing database changes no
    byte, unless it is of an older version: `migrations[n]` are the statements that lead from
    version n to n + 1, all applied in one transaction. UserError where it cannot be opened, is
    none of ours, or was made by a newer program.
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
            _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL"))
            _bring_up(connection, schema, version, migrations or {})
        table = schema.split("(")[0].split()[-1]
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608 - our schema
    except (sqlite3.DatabaseError, OSError) as error:
        raise UserError(f"{path}: cannot be opened ({error}); restore it from a backup") from error
    return connection


def open_read_only(path: Path) -> sqlite3.Connection:
    """The existing database at `path`, of whatever version, which cannot be changed through it."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _patiently(switch: Callable[[], object]) -> None:
    """Two processes that make the same file: SQLite does not wait for the lock that a change of
    the journal's mode takes, so this does."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            switch()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _bring_up(
    connection: sqlite3.Connection, schema: str, version: int, migrations: Mapping[int, str]
) -> None:
    """To `version`, from nothing or an older one; whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        # Another process may have done it while this one waited for the lock.
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if not found and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise UserError(
                f"{_file_of(connection)}: another program's database; name another file"
            )
        steps = [migrations.get(old, "") for old in range(found, version)] if found else []
        for script in [*steps, schema]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={version}")


def _file_of(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA database_list").fetchone()[2])
