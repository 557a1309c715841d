"""The questions and chunks of one export, in an SQLite file that is gone when it is done.

Texts stay on disk: a corpus of a million chunks must be exported by a machine that cannot hold it.
Chunks and questions are known by a number from 0 here, in the order in which they were added.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from question_optimizer.errors import UserError
from question_optimizer.records import Split

SIDES: tuple[Split, ...] = ("train", "dev", "test")
_SCHEMA = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL,
    place TEXT NOT NULL, heading TEXT NOT NULL, before TEXT, after TEXT, text TEXT NOT NULL,
    digest TEXT NOT NULL, unit TEXT NOT NULL DEFAULT ''
);
CREATE INDEX chunks_by_digest ON chunks (digest);
CREATE TABLE drafts (
    id TEXT PRIMARY KEY, chunk_id TEXT NOT NULL, rank TEXT NOT NULL, question TEXT NOT NULL,
    query_type TEXT, query_format TEXT, query_length TEXT, persona_id TEXT, model TEXT,
    checked TEXT NOT NULL, text_sha256 TEXT NOT NULL
);
CREATE INDEX drafts_by_rank ON drafts (rank, id);
CREATE TABLE questions (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, chunk INTEGER NOT NULL,
    question TEXT NOT NULL, digest TEXT NOT NULL, query_type TEXT, query_format TEXT,
    query_length TEXT, persona_id TEXT, model TEXT, checked TEXT NOT NULL,
    text_sha256 TEXT NOT NULL, side TEXT, alike INTEGER, left_out TEXT
);
CREATE INDEX questions_by_side ON questions (side, number);
CREATE INDEX questions_by_digest ON questions (digest, side);
CREATE TABLE held (number INTEGER PRIMARY KEY, text TEXT NOT NULL, question TEXT NOT NULL);
CREATE TABLE negatives (
    question INTEGER NOT NULL, place INTEGER NOT NULL, chunk INTEGER NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (question, place)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """A question that is exported, with its chunk."""

    number: int
    question_id: str
    question: str
    chunk: int
    chunk_id: str
    text: str
    text_digest: str
    document: str
    heading: str
    split_group: str
    query_type: str | None
    query_format: str | None
    query_length: str | None
    persona_id: str | None
    model: str | None
    checked: str
    text_sha256: str


_ROWS = (
    "SELECT q.number, q.id, q.question, c.number, c.id, c.text, c.digest, c.document, c.heading, "
    "c.unit, q.query_type, q.query_format, q.query_length, q.persona_id, q.model, q.checked, "
    "q.text_sha256 FROM questions AS q JOIN chunks AS c ON c.number=q.chunk "
)


class Workspace:
    """The working file. `folder` is private to the export and may take more temporary files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.connection = sqlite3.connect(folder / "export.sqlite")
        self.connection.executescript(_SCHEMA)

    def close(self) -> None:
        self.connection.close()

    def ask(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, as they come."""
        return self.connection.execute(sql, values)

    def one(self, sql: str, *values: object) -> Any:
        """The first column of a query's first row, None if there is none."""
        row = self.connection.execute(sql, values).fetchone()
        return row[0] if row else None

    def add(self, table: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Rows with a value for each of the table's first columns."""
        rows = iter(rows)
        if (first := next(rows, None)) is None:
            return
        columns = [row[1] for row in self.ask(f"PRAGMA table_info({table})")][: len(first)]
        marks = ",".join("?" * len(first))
        sql = f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})"  # noqa: S608 - our own
        self.connection.execute(sql, first)
        self.connection.executemany(sql, rows)

    def sizes(self) -> dict[Split, int]:
        """How many questions are exported to each side."""
        counted = dict(self.ask("SELECT side, COUNT(*) FROM questions GROUP BY side"))
        return {side: counted.get(side, 0) for side in SIDES}

    def rows(self, side: Split) -> Iterator[Row]:
        """The questions of one side, by number."""
        found = self.ask(f"{_ROWS} WHERE q.side=? ORDER BY q.number", side)
        return (Row(*row) for row in found)


class Column:
    """A text column of a table by number, as `likeness.Texts` wants it; several stand in line."""

    def __init__(self, connection: sqlite3.Connection, *places: tuple[str, str]):
        self._connection = connection
        self._places: list[tuple[int, str, str]] = []
        self._length = 0
        for table, column in places:
            self._places.append((self._length, table, column))
            rows = connection.execute(f"SELECT COUNT(*) FROM {table}")  # noqa: S608 - our own
            self._length += rows.fetchone()[0]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        for _, table, column in self._places:
            sql = f"SELECT {column} FROM {table} ORDER BY number"  # noqa: S608 - our own
            yield from (row[0] for row in self._connection.execute(sql))

    def __getitem__(self, number: int) -> str:
        start, table, column = [place for place in self._places if place[0] <= number][-1]
        sql = f"SELECT {column} FROM {table} WHERE number=?"  # noqa: S608 - our own
        return str(self._connection.execute(sql, (number - start,)).fetchone()[0])


@contextmanager
def workspace(folder: Path) -> Iterator[Workspace]:
    """A `Workspace` in `folder`, closed at the end; UserError where the disk is full."""
    work = Workspace(folder)
    try:
        yield work
    except sqlite3.OperationalError as error:
        raise UserError(f"{folder}: cannot be written ({error}); free the disk") from error
    finally:
        work.close()
