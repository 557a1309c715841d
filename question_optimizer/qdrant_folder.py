"""A local-mode Qdrant folder, read without qdrant-client and without changing a byte of it.

    folder/meta.json                            the collections and their settings
    folder/.lock                                flock'ed exclusively by a client as long as it lives
    folder/collection/<name>/storage.sqlite     points(id TEXT PRIMARY KEY, point BLOB)
        id    = base64(pickle(point id))
        point = pickle(PointStruct(id, vector, payload))

`QdrantClient(path=…)` unpickles every point and every vector before it answers: 21 to 26 s and 4 GB
for 100,000 points of 384 dimensions, and it creates what is missing. Here ids come from the index
of the table and only the rows asked for are unpickled, by an unpickler that knows two inert
classes and plain data types: a pickle from a foreign folder is otherwise code.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import shutil
import sqlite3
import struct
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic_core import to_jsonable_python

from question_optimizer.errors import TRY_LATER, UserError, reason_of
from question_optimizer.locks import lock_holder
from question_optimizer.records import PointId

_BATCH = 200
_LOCK_PATIENCE_SECONDS = 2.0  # a killed client keeps its flock until the kernel freed its memory
_RESTORE = "restore the folder from a backup"
_SQLITE_MAGIC = b"SQLite format 3\x00"


class Inert:
    """Stands for qdrant's record classes: keeps their state, runs none of their code."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):  # (dict, slots)
            state = {**(state[0] or {}), **(state[1] or {})}
        fields = state.get("__dict__", state) if isinstance(state, dict) else {}
        if isinstance(fields, dict):
            self.__dict__.update(fields)


_RECORD_CLASSES = {"PointStruct", "SparseVector", "Record", "Document", "InferenceObject"}
_DATA_TYPES = {
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("uuid", "UUID"),
    ("uuid", "SafeUUID"),
    ("decimal", "Decimal"),
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("qdrant_client.") and name in _RECORD_CLASSES:
            return Inert
        if (module, name) in _DATA_TYPES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"forbidden class {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("persistent ids are not allowed")


def _unpickled(blob: bytes) -> Any:
    return RestrictedUnpickler(io.BytesIO(blob)).load()


def point_id_of(key: str) -> PointId:
    """The id that a `points.id` value stands for, UUIDs in their canonical spelling."""
    raw = base64.b64decode(key)
    # Fast path: protocol 4 or 5, framed, one short string; 100,000 ids decode in a tenth the time.
    # Nothing may follow but MEMOIZE and STOP: `posix` is also how a call of os.system begins.
    if (
        len(raw) > 14
        and raw[0] == 0x80
        and raw[1] in (4, 5)
        and raw[11] == 0x8C
        and raw[13 + raw[12] :] == b"\x94."
    ):
        value: Any = raw[13 : 13 + raw[12]].decode()
    else:
        value = _unpickled(raw)
    if isinstance(value, int):
        return value
    if not isinstance(value, str | uuid.UUID):
        raise ValueError(f"a {type(value).__name__}")
    text = str(value)
    if len(text) == 36 and text == text.lower():
        return text
    with suppress(ValueError):
        return str(uuid.UUID(text))
    return text


def id_order(point_id: PointId) -> tuple[int, int, str]:
    """Sort key of point ids, the order Qdrant scrolls in: numbers first, then UUIDs as text."""
    return (0, point_id, "") if isinstance(point_id, int) else (1, 0, point_id)


class QdrantFolder:
    """One collection of a local-mode folder, read-only. Use as a context manager.

    Raises UserError on opening: exit code 75 where another process holds the folder, 2 where it is
    missing, empty, damaged or no Qdrant folder. Nothing is created, changed or locked by it.
    """

    def __init__(self, path: Path, collection: str | None = None, *, even_if_locked: bool = False):
        self.path = path
        self._private: tempfile.TemporaryDirectory[str] | None = None
        meta = read_folder_meta(path)
        if not even_if_locked:
            refuse_if_locked(path)
        self.collection = choose_collection(
            collection, meta["collections"], aliases=meta.get("aliases") or {}, where=str(path)
        )
        self._file = path / "collection" / self.collection / "storage.sqlite"
        self._connection = self._open()
        self._keys: dict[PointId, str] | None = None

    def __enter__(self) -> QdrantFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        if self._private is not None:
            self._private.cleanup()

    def point_ids(self) -> list[PointId]:
        """Every id, in `id_order`. Read from the table's index; no payload page is touched."""
        return sorted(self._key_of(), key=id_order)

    def payloads(self, ids: list[PointId]) -> Iterator[tuple[PointId, dict[str, Any]]]:
        """(id, payload) in the order asked for; ids that are not there are left out.

        No cursor stays open between batches: an open one would block a writer.
        """
        return ((point_id, self._payload(point_id, blob)) for point_id, blob in self._rows(ids))

    def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
        """(id, dense vector) in the order asked for; ids without one are left out."""
        for point_id, blob in self._rows(ids):
            vector = self._vector(point_id, blob)
            if vector is not None:
                yield point_id, vector

    def _rows(self, ids: list[PointId]) -> Iterator[tuple[PointId, bytes]]:
        keys = self._key_of()
        for start in range(0, len(ids), _BATCH):
            wanted = {
                point_id: keys[point_id]
                for point_id in ids[start : start + _BATCH]
                if point_id in keys
            }
            marks = ",".join("?" * len(wanted))
            rows = dict(
                self._query(
                    f"SELECT id, point FROM points WHERE id IN ({marks})",  # noqa: S608 - marks only
                    [*wanted.values()],
                )
            )
            # What is missing from `rows` a client has deleted since.
            yield from ((i, rows[key]) for i, key in wanted.items() if key in rows)

    def vet(self) -> None:
        """UserError unless every row, the outdated ones too, unpickles without running code."""
        self._key_of()
        keys = [key for (key,) in self._query("SELECT id FROM points")]
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            rows = self._query(f"SELECT id, point FROM points WHERE id IN ({marks})", batch)  # noqa: S608
            for key, blob in rows:
                self._payload(point_id_of(key), blob)

    def _key_of(self) -> dict[PointId, str]:
        """{point id: newest row's key}: old clients under Python 3.14 wrote a second row per id."""
        if self._keys is None:
            rows = self._query("SELECT id, rowid FROM points INDEXED BY sqlite_autoindex_points_1")
            rows.sort(key=lambda row: row[1])
            try:
                self._keys = {point_id_of(key): key for key, _ in rows}
            except (
                pickle.UnpicklingError,
                binascii.Error,
                ValueError,
                EOFError,
                TypeError,
            ) as error:
                raise UserError(
                    f"{self._file}: unreadable point id ({error}); not a Qdrant collection"
                ) from error
        return self._keys

    def _payload(self, point_id: PointId, blob: bytes) -> dict[str, Any]:
        try:
            payload = getattr(_unpickled(blob), "payload", None)
            if not isinstance(payload, dict):
                return {}
            # The official client, too, turns on loading into JSON what a host stored as it came.
            return json.loads(
                json.dumps(payload, default=partial(to_jsonable_python, fallback=str))
            )
        except Exception as error:  # a hostile or torn pickle may raise anything
            raise UserError(
                f"{self._file}: point {point_id} cannot be read safely ({error}); {_RESTORE}"
            ) from error

    def _vector(self, point_id: PointId, blob: bytes) -> list[float] | None:
        try:
            stored = getattr(_unpickled(blob), "vector", None)
        except Exception as error:  # a hostile or torn pickle may raise anything
            raise UserError(
                f"{self._file}: point {point_id} cannot be read safely ({error}); {_RESTORE}"
            ) from error
        return dense_vector(stored, where=f"{self._file}: point {point_id}")

    def _query(self, sql: str, values: list[str] | None = None) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values or []).fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._file}: {reason_of(error)}; {_RESTORE}") from error

    def _open(self) -> sqlite3.Connection:
        self._check_file()
        with self._file.open("rb") as file:
            write_ahead = file.read(19)[18:19] == b"\x02"
        # Opening a write-ahead database creates a -shm file even for a reader; a hot journal makes
        # a read-only open fail. Both are read through a private copy.
        connection = self._open_private_copy() if write_ahead else self._connect(self._file)
        try:
            connection.execute("SELECT 1 FROM points LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if "readonly" in str(error):
                return self._open_private_copy()
            raise UserError(f"{self._file}: {reason_of(error)}; not a Qdrant collection") from error
        except sqlite3.DatabaseError as error:
            connection.close()
            raise UserError(f"{self._file}: {reason_of(error)}; {_RESTORE}") from error
        columns = [row[1] for row in connection.execute("PRAGMA table_info(points)")]
        if columns[:2] != ["id", "point"]:
            connection.close()
            raise UserError(
                f"{self._file}: table points has columns {columns}; not a Qdrant collection"
            )
        return connection

    def _check_file(self) -> None:
        """Refuse what SQLite accepts or notices only halfway: absent, empty, foreign, cut off."""
        if not self._file.is_file():
            raise UserError(
                f"{self._file}: missing, though meta.json lists the collection; {_RESTORE}"
            )
        try:
            size = self._file.stat().st_size
            with self._file.open("rb") as file:
                header = file.read(100)
        except OSError as error:
            raise UserError(f"{self._file}: cannot be read ({error.strerror})") from error
        if not header.startswith(_SQLITE_MAGIC):
            what = "is empty" if not size else "is not a SQLite database"
            raise UserError(f"{self._file}: {what}; {_RESTORE}")
        journal = self._file.with_name("storage.sqlite-journal")
        if len(header) < 32:
            raise UserError(f"{self._file}: truncated (to {size} bytes); {_RESTORE}")
        page_size = struct.unpack(">H", header[16:18])[0] or 65536  # stored as 1 for 65536
        page_size = 65536 if page_size == 1 else page_size
        pages = struct.unpack(">I", header[28:32])[0]
        if size < pages * page_size and not journal.exists():
            raise UserError(
                f"{self._file}: truncated ({size} of {pages * page_size} bytes); {_RESTORE}"
            )

    def _connect(self, file: Path) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(file.resolve()))}?mode=ro",
                uri=True,
                timeout=10,
                check_same_thread=False,
            )
            connection.execute("PRAGMA query_only=ON")
        except sqlite3.OperationalError as error:
            raise UserError(f"{file}: {reason_of(error)}; check its permissions") from error
        return connection

    def _open_private_copy(self) -> sqlite3.Connection:
        """Roll a killed writer's journal back on a copy; the folder keeps its every byte."""
        self._private = tempfile.TemporaryDirectory(prefix="question-optimizer-")
        copy = Path(self._private.name) / self._file.name
        for suffix in ("", "-journal", "-wal"):
            source = self._file.with_name(self._file.name + suffix)
            if source.exists():
                shutil.copyfile(source, copy.with_name(copy.name + suffix))
        connection = sqlite3.connect(copy, timeout=10, check_same_thread=False)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            connection.execute("PRAGMA query_only=ON")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise UserError(f"{self._file}: {reason_of(error)}; {_RESTORE}") from error
        return connection


def dense_vector(stored: Any, *, where: str) -> list[float] | None:
    """The dense vector among what a point holds, None if it has none.

    Of several named ones the first by name is taken; sparse and multi-vectors are none. UserError
    where numbers are missing, infinite or no numbers.
    """
    if isinstance(stored, dict):
        stored = next(
            (stored[name] for name in sorted(stored, key=str) if _is_row(stored[name])), None
        )
    if not _is_row(stored):
        return None
    row = stored.tolist() if hasattr(stored, "tolist") else list(stored)
    if not all(type(value) in (int, float) and abs(value) < 1e150 for value in row):
        raise UserError(f"{where} has a vector that is not of finite numbers; {_RESTORE}")
    return [float(value) for value in row]


def _is_row(value: Any) -> bool:
    """Whether it is one row of values, a list or a one-dimensional array."""
    if hasattr(value, "ndim"):
        return bool(value.ndim == 1 and len(value))
    return (
        isinstance(value, list | tuple) and bool(value) and not isinstance(value[0], list | tuple)
    )


def read_folder_meta(path: Path) -> dict[str, Any]:
    """The folder's meta.json; UserError saying what the path is instead if it is no folder."""
    try:
        there = path.exists()
    except OSError as error:  # too long a name, a folder above that may not be searched
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check --qdrant-path"
        ) from error
    if not there:
        raise UserError(f"{path}: does not exist; give the Qdrant folder with --qdrant-path")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; give the Qdrant folder that holds meta.json")
    meta_file = path / "meta.json"
    if not meta_file.is_file():
        raise UserError(f"{path}: {_what_it_is_instead(path)}")
    try:
        meta = json.loads(meta_file.read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or not isinstance(meta.get("collections"), dict):
            raise ValueError("no list of collections")
        if not isinstance(meta.get("aliases") or {}, dict):
            raise ValueError("no list of aliases")
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{meta_file}: damaged ({error}); {_RESTORE}") from error
    return meta


def _what_it_is_instead(path: Path) -> str:
    try:
        names = {entry.name for entry in path.iterdir()}
    except PermissionError:
        return "cannot be read (permission denied)"
    if "storage.sqlite" in names:
        return f"is one collection's own folder; give {path.resolve().parent.parent}"
    if {"storage", "collections"} & names:
        return "is a Qdrant server's storage; start the server and give --qdrant-url"
    if not names:
        return "is empty; give the Qdrant folder that holds meta.json"
    return "has no meta.json, so it is no Qdrant folder; give the folder that holds meta.json"


def choose_collection(
    wanted: str | None, there: Any, *, aliases: dict[str, str] | None = None, where: str
) -> str:
    """The collection to read: the one named (aliases resolved), or the only one there is."""
    names = sorted(there)
    listed = ", ".join(names) or "none"
    if wanted is None:
        if len(names) == 1:
            return names[0]
        if not names:
            raise UserError(f"{where}: has no collection; ingest documents first")
        raise UserError(
            f"{where}: has {len(names)} collections ({listed}); choose one with --collection"
        )
    name = (aliases or {}).get(wanted, wanted)
    if name not in names:
        raise UserError(f"{where}: no collection {wanted!r}; it has: {listed}")
    return name


def refuse_if_locked(path: Path, *, patience_seconds: float = _LOCK_PATIENCE_SECONDS) -> None:
    """UserError (exit code 75) if another process holds the folder, naming it where known.

    The lock is probed, never held: a shared flock is tried and dropped at once, so that a client
    may open the folder while it is being read (SQLite's own locks keep each query consistent).
    """
    lock = path / ".lock"
    deadline = time.monotonic() + patience_seconds
    while (holder := lock_holder(lock)) is not None:
        if time.monotonic() >= deadline:
            who = f" by {holder}" if holder else ""
            raise UserError(
                f"{path}: locked{who}; close that Qdrant client and run this again",
                exit_code=TRY_LATER,
            )
        time.sleep(0.1)
