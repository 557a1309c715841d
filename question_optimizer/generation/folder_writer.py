"""Payloads of a local Qdrant folder, changed in place in bounded memory.

The official client loads a whole collection before it changes a point, 4 GB for 100,000 of them,
and makes a transaction, with four calls of fsync, for each. Here only the rows named are read, and
a batch is one transaction: wholly there or not, whenever the process dies.

A row that cannot be rewritten with certainty makes the official client do the rest of the work,
with a notice.

The folder's lock is held throughout, as by a client. A client that starts meanwhile fails as it
does beside another client; but clients read the points before they try the lock, so one that began
to load before this writer and got the lock after it holds the points as they were.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from question_optimizer.chunk_store import open_client
from question_optimizer.errors import TRY_LATER, USAGE, UserError, reason_of
from question_optimizer.generation.client_writer import Changes, ClientWriter
from question_optimizer.generation.point_rows import Unusual, key_of, payload_of, rewritten
from question_optimizer.locks import only_one
from question_optimizer.qdrant_folder import (
    QdrantFolder,
    choose_collection,
    point_id_of,
    read_folder_meta,
    refuse_if_locked,
)
from question_optimizer.records import PointId

T = TypeVar("T")
_BATCH = 200
_PATIENCE_SECONDS = 60.0  # a client that loads a large collection reads for as long


class FolderWriter:
    """The points of one collection in the local folder at `path`. A context manager.

    UserError on opening: exit code 75 where a client holds the folder, naming it; 2 where the
    folder is missing, damaged or may not be written. What a killed client left half done is rolled
    back. `notice` is told when the official client has to take over.
    """

    def __init__(
        self,
        path: Path,
        collection: str | None = None,
        *,
        notice: Callable[[str], None] = lambda text: None,
    ):
        self.path = path
        self._notice = notice
        meta = read_folder_meta(path)
        self.collection = choose_collection(
            collection, meta["collections"], aliases=meta.get("aliases") or {}, where=str(path)
        )
        self._file = path / "collection" / self.collection / "storage.sqlite"
        self._official: ClientWriter | None = None
        with ExitStack() as held:
            _lock(path, held)
            self._connection = held.enter_context(closing(self._opened()))
            self._spellings = self._unusual_keys()
            self._held = held.pop_all()

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder. Every update is on disk already."""
        self._held.close()

    def payloads(self, ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        """{id: payload} of those that are there."""
        if self._official is not None:
            return self._official.payloads(ids)
        try:
            with self._answering():
                return {i: _sure(i, payload_of, blob) for i, _, blob in self._rows(ids)}
        except Unusual as doubt:
            self._take_the_official_client(doubt)
            return self.payloads(ids)

    def update(self, changes: Changes) -> set[PointId]:
        """Make all the changes in one transaction; return the ids that are not there."""
        if self._official is not None:
            return self._official.update(changes)
        try:
            with self._answering(), self._transaction():
                return self._updated(changes)
        except Unusual as doubt:
            self._take_the_official_client(doubt)
            return self.update(changes)

    def _updated(self, changes: Changes) -> set[PointId]:
        missing = set(changes)
        for point_id, rowid, blob in self._rows(list(changes)):
            missing.remove(point_id)
            row = _sure(point_id, rewritten, blob, point_id, changes[point_id])
            self._connection.execute("UPDATE points SET point=? WHERE rowid=?", (row, rowid))
        return missing

    def _rows(self, ids: Sequence[PointId]) -> Iterator[tuple[PointId, int, bytes]]:
        """(id, rowid, point) of those that are there; of an id's several rows the newest."""
        wanted = iter(ids)
        while batch := list(islice(wanted, _BATCH)):
            keys = {key: i for i in batch for key in (key_of(i), *self._spellings.get(i, ()))}
            marks = ",".join("?" * len(keys))
            rows = self._connection.execute(
                f"SELECT id, rowid, point FROM points WHERE id IN ({marks}) ORDER BY rowid",  # noqa: S608
                list(keys),
            )
            newest = {keys[key]: (rowid, blob) for key, rowid, blob in rows}
            yield from ((i, *newest[i]) for i in batch if i in newest)

    def _unusual_keys(self) -> dict[PointId, list[str]]:
        """Keys that are not what a client makes of their id today, by id: of other spellings of
        UUIDs, and of other versions of pickle. Of all others nothing need be remembered."""
        found: dict[PointId, list[str]] = {}
        rows = "SELECT id FROM points INDEXED BY sqlite_autoindex_points_1"
        with self._answering():
            for (key,) in self._connection.execute(rows):
                try:
                    point_id = point_id_of(key)
                except Exception as error:  # a hostile or torn pickle may raise anything
                    raise UserError(
                        f"{self._file}: unreadable point id ({error}); not a Qdrant collection"
                    ) from error
                if key != key_of(point_id):
                    found.setdefault(point_id, []).append(key)
        return found

    def _opened(self) -> sqlite3.Connection:
        """The collection's file for writing, after a killed client's journal was rolled back."""
        uri = f"file:{quote(str(self._file.resolve()))}?mode=rw"
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("SELECT 1 FROM points LIMIT 1").fetchone()
        # The reader knows what to say of every kind of damage.
        QdrantFolder(self.path, self.collection, even_if_locked=True).close()
        with self._answering():
            return sqlite3.connect(
                uri,
                uri=True,
                timeout=_PATIENCE_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.DatabaseError):  # SQLite may have rolled back by itself
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            busy = "locked" in str(error)
            advice = (
                "a client reads it; run this again when it is done"
                if busy
                else "free the disk, check the folder's permissions, or restore it from a backup"
            )
            raise UserError(
                f"{self._file}: cannot be used ({reason_of(error)}); {advice}",
                exit_code=TRY_LATER if busy else USAGE,
            ) from error

    def _take_the_official_client(self, doubt: Unusual) -> None:
        """Hand lock and folder over to a client for the rest of the session."""
        self._notice(
            f"{self.path}: written through the official client, which loads the whole collection "
            f"({doubt})"
        )
        self._held.close()
        client = self._held.enter_context(closing(open_client(self.path)))
        self._official = ClientWriter(client, self.collection, where=str(self.path))


def _lock(path: Path, held: ExitStack) -> None:
    """Hold the folder's lock as a client does; UserError (75) naming who holds it already."""
    refuse_if_locked(path)  # patient: a killed client keeps the lock for a moment
    lock = only_one(path / ".lock", "a Qdrant client", advice="close it and run this again")
    try:
        held.enter_context(lock)
    except OSError as error:
        raise UserError(f"{path}: cannot be locked ({error.strerror})") from error


def _sure(point_id: PointId, function: Callable[..., T], *values: Any) -> T:
    """What the function makes of a row; `Unusual` for whatever a hostile or torn one raises."""
    try:
        return function(*values)
    except Exception as error:
        raise Unusual(f"point {point_id}: {reason_of(error)}") from error
