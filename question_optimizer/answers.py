"""Every answer that was paid for, with what it took: on disk, keyed by the request.

This is what makes a killed run resume without paying twice. DSPy has a cache of its own; it keeps
several samples of one prompt only when the last of them is there, asks twice where two threads want
the same, keeps no figures, and holds pickles. So it is off, and this stands below it, where each
answer comes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from question_optimizer.errors import USAGE, StopRun
from question_optimizer.sqlite_file import open_database
from question_optimizer.usage import CallUsage, Meter
from question_optimizer.wire import ChatAnswer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    request TEXT PRIMARY KEY, text TEXT, id TEXT, answered_by TEXT, truncated INTEGER,
    account TEXT, model TEXT, input_tokens INTEGER, output_tokens INTEGER, cost REAL, seconds REAL
) WITHOUT ROWID
"""


class Remembered(NamedTuple):
    """An answer and the figures of the call that brought it."""

    answer: ChatAnswer
    call: CallUsage


class AnswerStore:
    """Answers by request key; at `path`, or in memory where it is None. Safe from any thread.

    `seen` collects the calls since this object was made, remembered answers included: the usage of
    a run, whatever threads it used. `in_flight` holds the requests that are being asked now, so
    that a second asker waits for the first; it belongs to the loop that makes the calls.
    """

    def __init__(self, path: Path | None):
        self.seen = Meter()
        self.in_flight: dict[str, asyncio.Future[None]] = {}
        self._lock = threading.Lock()
        self._path = path
        # Not durable against a power cut: a call that is paid twice then is no harm worth 10 ms.
        self._connection = open_database(path, _SCHEMA, version=1, durable=False)

    def record(self, request: str, answer: ChatAnswer, call: CallUsage) -> None:
        """Remember the answer to `request`, replacing what was known."""
        row = (
            *(request, answer.text, answer.id, answer.model, answer.truncated),
            *(call.account, call.model, call.input_tokens, call.output_tokens),
            *(call.cost, call.seconds),
        )
        with self._whole(), self._lock, self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
            )

    def recall(self, request: str) -> Remembered | None:
        """The answer to `request`, None if it was never given here."""
        with self._whole(), self._lock:
            row = self._connection.execute(
                "SELECT text, id, answered_by, truncated, account, model, input_tokens, "
                "output_tokens, cost, seconds FROM answers WHERE request = ?",
                (request,),
            ).fetchone()
        if row is None:
            return None
        call = CallUsage(*row[4:])
        answer = ChatAnswer(
            text=row[0],
            id=row[1],
            model=row[2],
            input_tokens=call.input_tokens,
            output_tokens=call.output_tokens,
            truncated=bool(row[3]),
        )
        return Remembered(answer, call)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Damage and a full disk end the run: as an item's failure they would look like the
        model's, and every answer would be paid for in vain."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StopRun(
                f"{self._path}: cannot be used ({error}); free the disk, or delete the file: what "
                "it holds will be asked again",
                exit_code=USAGE,
            ) from None

    def close(self) -> None:
        with self._lock:
            self._connection.close()
