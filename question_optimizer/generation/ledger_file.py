"""The ledger's file, on which its parts stand: one connection, one thread at a time.

The parts are `Configurations`, `Journal` and, with both of them, `Ledger`.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from question_optimizer.errors import USAGE, StopRun
from question_optimizer.generation.ledger_records import Configuration
from question_optimizer.generation.ledger_tables import open_ledger
from question_optimizer.records import PointId

AMONG = "IN (SELECT value FROM json_each(?))"  # any number of values in one parameter

_Method = TypeVar("_Method", bound=Callable[..., Any])


def listed(chunk_ids: Iterable[PointId]) -> str:
    """The parameter of `AMONG`."""
    return json.dumps([str(chunk_id) for chunk_id in chunk_ids])


def whole(method: _Method) -> _Method:
    """A method that one thread runs at a time. Damage and a full disk end the run: as a chunk's
    failure they would look like the model's, and every question would be paid for in vain."""

    @functools.wraps(method)
    def guarded(self: LedgerFile, *args: Any, **kwargs: Any) -> Any:
        try:
            with self._lock:
                return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            raise StopRun(
                f"{self.path}: cannot be used ({error}); free the disk, or restore the file from "
                "a backup, then start again: what was recorded is not asked again",
                exit_code=USAGE,
            ) from None

    return cast(_Method, guarded)


class LedgerFile:
    """The file at `path`, which is made if missing, as one `configuration` sees it.

    Safe from any thread; every change is on disk on return. Opening changes no byte. UserError for
    a file that cannot be opened, StopRun for one that fails later.
    """

    def __init__(self, path: Path, configuration: Configuration):
        self.path = path
        self.configuration = configuration
        self.fingerprint = configuration.fingerprint
        self._lock = threading.Lock()
        self._connection = open_ledger(path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
