"""The folder reader: what it reads, what it refuses in one line, and that it never writes."""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fcntl
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct, SparseVector

import fetch_chunks
from conftest import COLLECTION, SAMPLE, Script, tree_digest
from qdrant_server import make_folder, other_process, storage_of, untouched
from question_optimizer.chunk_store import open_client, open_store
from question_optimizer.cli import run
from question_optimizer.errors import TRY_LATER, USAGE, UserError
from question_optimizer.qdrant_folder import (
    QdrantFolder,
    choose_collection,
    id_order,
    refuse_if_locked,
)
from question_optimizer.records import PointId

RESTORE = "restore the folder from a backup"
UUIDS = [str(uuid.UUID(int=number << 64)) for number in (10, 11, 12)]  # …a, …b, …c


def contents(folder: Path, collection: str | None = None) -> dict[PointId, dict[str, Any]]:
    """{id: payload} of everything the direct reader finds."""
    with QdrantFolder(folder, collection) as reader:
        return dict(reader.payloads(reader.point_ids()))


def official_contents(folder: Path, scratch: Path) -> dict[PointId, dict[str, Any]]:
    """{id: payload} of everything the official client finds, on a copy: opening one writes."""
    copy = Path(shutil.copytree(folder, scratch / "official"))
    with closing(QdrantClient(path=str(copy))) as client:
        (described,) = client.get_collections().collections
        records, _ = client.scroll(described.name, limit=10_000)
    return {record.id: record.payload or {} for record in records}  # type: ignore[misc]


def sql(folder: Path, statement: str, *values: object, collection: str = "docs") -> None:
    with closing(sqlite3.connect(storage_of(folder, collection))) as connection, connection:
        connection.execute(statement, values)


def key_of(point_id: object, protocol: int = 4) -> str:
    return base64.b64encode(pickle.dumps(point_id, protocol=protocol)).decode()


def blob_of(point_id: object, payload: object, vector: Sequence[object] = (0.6, 0.8)) -> bytes:
    point = PointStruct.model_construct(id=point_id, vector=list(vector), payload=payload)
    return pickle.dumps(point, protocol=4)


# ---------------------------------------------------------------------- what it reads


def test_the_sample_reads_the_same_as_through_the_official_client(
    qdrant: Path, tmp_path: Path
) -> None:
    with untouched(qdrant):
        found = contents(qdrant)
    assert len(found) == 648
    assert found == official_contents(qdrant, tmp_path)


def test_ids_come_sorted_numbers_first_then_uuids_as_text(tmp_path: Path) -> None:
    ids = [*UUIDS, 7, 70_000, 2**63, 0, 12]
    folder = make_folder(tmp_path / "q", {point_id: {"text": "t"} for point_id in ids})
    with QdrantFolder(folder) as reader:
        assert reader.point_ids() == [0, 7, 12, 70_000, 2**63, *UUIDS]
    mixed: list[PointId] = ["b", 3, "a", 20]
    assert sorted(mixed, key=id_order) == [3, 20, "a", "b"]


def test_payloads_come_in_the_order_asked_for_without_unknown_ids(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {n: {"n": n} for n in range(450)})
    asked = [*range(449, -1, -1), 9999, UUIDS[0]]
    with QdrantFolder(folder) as reader:
        assert list(reader.payloads(asked)) == [(n, {"n": n}) for n in range(449, -1, -1)]
        assert list(reader.payloads([])) == []


def test_points_without_payload_have_an_empty_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {1: None, 2: {}})
    assert contents(folder) == {1: {}, 2: {}}


def test_plain_data_types_in_payloads_are_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {})
    payload = {
        "day": datetime.date(2026, 1, 2),
        "id": uuid.UUID(int=5),
        "price": decimal.Decimal("1.50"),
        "order": collections.OrderedDict(a=1),
        "number": numpy.int64(7),
    }
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(1), blob_of(1, payload))
    (found,) = contents(folder).values()
    assert dict(found["order"]) == {"a": 1}
    for name in ("day", "id", "price", "number"):
        assert str(found[name]) == str(payload[name])


OUTDATED_ROWS = pytest.mark.filterwarnings("ignore:Removed 1 outdated copies")  # told by the client


@pytest.mark.parametrize(
    ("vector", "found"),
    [
        ([3, 0.5], [3.0, 0.5]),
        (numpy.array([1.0, 2.0]), [1.0, 2.0]),
        ({"b": [0.0, 1.0], "a": [1.0, 0.0]}, [1.0, 0.0]),
        ({"a": [[1.0, 0.0], [0.0, 1.0]], "b": [0.5, 1.0]}, [0.5, 1.0]),
        ({"a": SparseVector(indices=[1], values=[1.0])}, None),
        ([[1.0], [2.0]], None),
        ([], None),
        (None, None),
        ("text", None),
        ({}, None),
    ],
)
def test_the_dense_vector_of_a_point_is_read(tmp_path: Path, vector: Any, found: Any) -> None:
    folder = make_folder(tmp_path / "q", {})
    point = PointStruct.model_construct(id=1, vector=vector, payload={})
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(1), pickle.dumps(point, protocol=4))
    with untouched(folder), QdrantFolder(folder) as reader:
        assert list(reader.vectors([1])) == ([] if found is None else [(1, found)])


@pytest.mark.parametrize(
    "vector", [[1.0, float("nan")], [float("inf")], [1.0, "x"], [None], [True], [1.0, [2.0]]]
)
def test_a_vector_that_is_not_of_finite_numbers_is_refused(tmp_path: Path, vector: Any) -> None:
    folder = make_folder(tmp_path / "q", {})
    point = PointStruct.model_construct(id=1, vector=vector, payload={})
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(1), pickle.dumps(point, protocol=4))
    with QdrantFolder(folder) as reader, pytest.raises(UserError) as refused:
        list(reader.vectors([1]))
    assert str(refused.value) == (
        f"{storage_of(folder)}: point 1 has a vector that is not of finite numbers; {RESTORE}"
    )


def test_a_hostile_pickle_is_refused_as_a_vector_too(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'harm'}",)

    folder = make_folder(tmp_path / "q", {})
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(1), pickle.dumps(Hostile(), protocol=4))
    with QdrantFolder(folder) as reader, pytest.raises(UserError, match="cannot be read safely"):
        list(reader.vectors([1]))
    assert not (tmp_path / "harm").exists()


@OUTDATED_ROWS
@pytest.mark.parametrize(
    "spelling",
    [UUIDS[1].upper(), UUIDS[1].replace("-", ""), f"urn:uuid:{UUIDS[1]}", uuid.UUID(UUIDS[1])],
    ids=["upper case", "without hyphens", "urn", "object"],
)
def test_every_spelling_of_a_uuid_is_one_id(tmp_path: Path, spelling: str | uuid.UUID) -> None:
    folder = make_folder(tmp_path / "q", {UUIDS[1]: {"v": "old"}, UUIDS[0]: {"v": "other"}})
    statement = "INSERT INTO points VALUES (?, ?)"
    sql(folder, statement, key_of(spelling), blob_of(spelling, {"v": "new"}))
    with untouched(folder):
        found = contents(folder)
    assert found == {UUIDS[0]: {"v": "other"}, UUIDS[1]: {"v": "new"}}
    assert found == official_contents(folder, tmp_path)


@OUTDATED_ROWS
@pytest.mark.parametrize("point_id", [5, UUIDS[0]])
def test_the_newest_row_of_an_id_wins(tmp_path: Path, point_id: PointId) -> None:
    folder = make_folder(tmp_path / "q", {point_id: {"v": "old"}, 6: {"v": "other"}})
    # Clients before 1.20 under Python 3.14 wrote keys of protocol 5: a second row for the same id.
    statement = "INSERT INTO points VALUES (?, ?)"
    sql(folder, statement, key_of(point_id, protocol=5), blob_of(point_id, {"v": "new"}))
    assert contents(folder) == {point_id: {"v": "new"}, 6: {"v": "other"}}
    assert contents(folder) == official_contents(folder, tmp_path)


@pytest.mark.parametrize("name", ["with space", "what?#100%", "Prüfstände", "a'b\"c"])
def test_a_folder_may_have_any_name(qdrant: Path, name: str) -> None:
    renamed = qdrant.rename(qdrant.with_name(name))
    with untouched(renamed.parent):
        assert len(contents(renamed)) == 648


def test_a_link_to_a_folder_is_as_good_as_the_folder(qdrant: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(qdrant)
    with untouched(tmp_path):
        assert len(contents(tmp_path / "link")) == 648


def test_an_alias_names_its_collection(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "in docs"}}, alias="current")
    make_folder(folder, {2: {"text": "in spare"}}, collection="spare")
    assert contents(folder, "current") == {1: {"text": "in docs"}}
    with QdrantFolder(folder, "current") as reader:
        assert reader.collection == "docs"


def test_reading_keeps_neither_another_client_nor_its_writes_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {n: {"n": n} for n in range(300)})
    with QdrantFolder(folder) as reader:
        reading = reader.payloads(reader.point_ids())
        assert next(reading) == (0, {"n": 0})
        with closing(QdrantClient(path=str(folder))) as client:
            client.set_payload("docs", {"n": -1}, points=[299])
        assert dict(reading)[299] == {"n": -1}


def test_a_point_deleted_while_reading_is_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {1: {"n": 1}, 2: {"n": 2}, 3: {"n": 3}})
    with QdrantFolder(folder) as reader:
        ids = reader.point_ids()
        with closing(QdrantClient(path=str(folder))) as client:
            client.delete("docs", [2])
        assert list(reader.payloads(ids)) == [(1, {"n": 1}), (3, {"n": 3})]


# ---------------------------------------------------------------------- killed writers

# Updates every point in a transaction that does not fit SQLite's cache, and dies before its end.
KILLED_IN_TRANSACTION = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 10")
connection.execute("BEGIN IMMEDIATE")
connection.execute(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def kill_in_transaction(storage: Path, statement: str) -> Path:
    """Leave the hot journal of a killed writer beside `storage`, and return it."""
    command = [sys.executable, "-c", KILLED_IN_TRANSACTION, str(storage), statement]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    journal = storage.with_name("storage.sqlite-journal")
    assert journal.read_bytes().startswith(JOURNAL_MAGIC), "the journal is not hot"
    return journal


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE points SET point = zeroblob(length(point))",
        "INSERT INTO points SELECT id || 'x', point FROM points",
        "DELETE FROM points",
    ],
    ids=["update", "insert", "delete"],
)
def test_a_hot_journal_is_rolled_back_on_a_private_copy(qdrant: Path, statement: str) -> None:
    committed = contents(qdrant)
    storage = storage_of(qdrant, COLLECTION)
    before = storage.read_bytes()
    kill_in_transaction(storage, statement)
    assert storage.read_bytes() != before, "nothing uncommitted has reached the file"
    with untouched(qdrant):
        assert contents(qdrant) == committed


def test_a_hot_journal_stops_neither_path_of_the_script(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    args = ("fetch_chunks.py", "--qdrant-path", qdrant, "--data-dir")
    assert script(*args, "before").returncode == 0
    update = "UPDATE points SET point = zeroblob(length(point))"
    kill_in_transaction(storage_of(qdrant, COLLECTION), update)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for way in ("direct", "via-client"):
        flags = ["--via-client"] if way == "via-client" else []
        with untouched(qdrant):
            done = script(*args, way, *flags, TMPDIR=str(scratch))
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert tree_digest(tmp_path / way) == tree_digest(tmp_path / "before")
        assert list(scratch.iterdir()) == [], "a private copy was left behind"


CLIENT_THAT_WRITES = """
import itertools, sys
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
ids = [record.id for record in client.scroll(sys.argv[2], limit=1000, with_payload=False)[0]]
for number, point_id in enumerate(itertools.cycle(ids)):
    client.set_payload(sys.argv[2], {"written": f"{number} " * 2000}, points=[point_id])
    if number == 20:
        print("writing", flush=True)
"""


def kill_while_the_journal_is_hot(writer: subprocess.Popen[str], journal: Path) -> None:
    """Stop the writer at random moments until one is inside a commit, and kill it there."""
    moments = random.Random(0)
    for _ in range(5000):
        os.kill(writer.pid, signal.SIGSTOP)
        os.waitpid(writer.pid, os.WUNTRACED)
        if journal.exists() and journal.read_bytes().startswith(JOURNAL_MAGIC):
            break
        os.kill(writer.pid, signal.SIGCONT)
        time.sleep(moments.uniform(0, 0.002))  # or it would be met at the same step each time
    else:
        pytest.fail("never met inside a commit")
    writer.kill()
    writer.wait()


def test_what_a_killed_client_leaves_is_read_as_the_next_client_would(
    qdrant: Path, tmp_path: Path
) -> None:
    journal = storage_of(qdrant, COLLECTION).with_name("storage.sqlite-journal")
    with other_process(CLIENT_THAT_WRITES, qdrant, COLLECTION) as writer:
        kill_while_the_journal_is_hot(writer, journal)
    with untouched(qdrant):
        found = contents(qdrant)
    assert found == official_contents(qdrant, tmp_path)
    assert any("written" in payload for payload in found.values())


@pytest.mark.parametrize(
    "left", [b"", bytes(512), b"hello" * 200], ids=["empty", "zeroed", "garbage"]
)
def test_a_journal_that_holds_nothing_changes_nothing(qdrant: Path, left: bytes) -> None:
    storage_of(qdrant, COLLECTION).with_name("storage.sqlite-journal").write_bytes(left)
    committed = contents(SAMPLE / "small_sqlite")
    with untouched(qdrant):
        assert contents(qdrant) == committed


WRITE_AHEAD_AND_DIE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("DELETE FROM points WHERE rowid > 2")
connection.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_write_ahead_log_is_read_with_what_it_holds(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {n: {"n": n} for n in (1, 2, 3)})
    subprocess.run([sys.executable, "-c", WRITE_AHEAD_AND_DIE, storage_of(folder)], check=False)
    assert storage_of(folder).with_name("storage.sqlite-wal").stat().st_size > 0
    with untouched(folder):
        assert contents(folder) == {1: {"n": 1}, 2: {"n": 2}}


def test_a_closed_write_ahead_database_gets_no_file_beside_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {1: {"n": 1}})
    sql(folder, "PRAGMA journal_mode = WAL")
    with untouched(folder):
        assert contents(folder) == {1: {"n": 1}}


# ---------------------------------------------------------------------- what it refuses


def replaced(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_servers_storage(folder: Path) -> None:
    emptied(folder)
    (folder / "collections" / "docs" / "0").mkdir(parents=True)
    (folder / "raft_state.json").write_text("{}")


def a_servers_home(folder: Path) -> None:
    emptied(folder)
    (folder / "storage" / "collections").mkdir(parents=True)


def cut_to(fraction: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        file = storage_of(folder, COLLECTION)
        os.truncate(file, int(file.stat().st_size * fraction))

    return cut


def cut_to_bytes(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(storage_of(folder, COLLECTION), size)


def storage_is(content: bytes) -> Callable[[Path], object]:
    return lambda folder: storage_of(folder, COLLECTION).write_bytes(content)


def overwritten(page: int) -> Callable[[Path], None]:
    def overwrite(folder: Path) -> None:
        with storage_of(folder, COLLECTION).open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(random.Random(0).randbytes(200))

    return overwrite


def table(*statements: str) -> Callable[[Path], None]:
    """Another SQLite file in the collection's place."""

    def build(folder: Path) -> None:
        storage_of(folder, COLLECTION).unlink()
        for statement in statements:
            sql(folder, statement, collection=COLLECTION)

    return build


def changed(statement: str, *values: object) -> Callable[[Path], None]:
    return lambda folder: sql(folder, statement, *values, collection=COLLECTION)


def meta_is(content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "meta.json").write_bytes(data)


def without_storage(folder: Path) -> None:
    storage_of(folder, COLLECTION).unlink()


def without_collection_folder(folder: Path) -> None:
    shutil.rmtree(folder / "collection")


def without_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def second_collection(folder: Path) -> None:
    make_folder(folder, {1: {"text": "t"}}, collection="another")


MALFORMED = "database disk image is malformed; " + RESTORE
NOT_QDRANT = "; not a Qdrant collection"
# what is done to a copy of the sample, further flags, the line that follows
BAD_INPUTS: list[tuple[str, Callable[[Path], object], list[str], str]] = [
    ("path does not exist", replaced, [], "{folder}: does not exist; give the Qdrant folder with"),
    ("path is a file", a_file, [], "{folder}: is a file; give the Qdrant folder that holds meta"),
    ("folder is empty", emptied, [], "{folder}: is empty; give the Qdrant folder that holds meta"),
    ("server storage", a_servers_storage, [], "{folder}: is a Qdrant server's storage; start the"),
    ("server home", a_servers_home, [], "start the server and give --qdrant-url"),
    ("no meta.json", without_meta, [], "{folder}: has no meta.json, so it is no Qdrant folder"),
    (
        "no such collection",
        second_collection,
        ["--collection", "nope"],
        "{folder}: no collection 'nope'; it has: another, sqlite_docs",
    ),
    (
        "several collections",
        second_collection,
        [],
        "{folder}: has 2 collections (another, sqlite_docs); choose one with --collection",
    ),
    (
        "no collection",
        meta_is('{"collections": {}}'),
        [],
        "{folder}: has no collection; ingest",
    ),
    ("no storage", without_storage, [], "{storage}: missing, though meta.json lists the collec"),
    ("no collection folder", without_collection_folder, [], "{storage}: missing, though meta"),
    ("storage of 0 bytes", cut_to_bytes(0), [], "{storage}: is empty; " + RESTORE),
    ("cut to 90 %", cut_to(0.9), [], "{storage}: truncated (6259507 of 6955008 bytes); " + RESTORE),
    ("cut to 50 %", cut_to(0.5), [], "{storage}: truncated (3477504 of 6955008 bytes); " + RESTORE),
    ("cut to 1 %", cut_to(0.01), [], "{storage}: truncated (69550 of 6955008 bytes); " + RESTORE),
    ("cut in the header", cut_to_bytes(60), [], "{storage}: truncated (60 of 6955008 bytes)"),
    ("cut before the size", cut_to_bytes(20), [], "{storage}: truncated"),
    ("cut after the magic", cut_to_bytes(16), [], "{storage}: truncated"),
    ("garbage", storage_is(random.Random(0).randbytes(8192)), [], "is not a SQLite database; "),
    ("text", storage_is(b"hello\n"), [], "{storage}: is not a SQLite database; " + RESTORE),
    ("table page overwritten", overwritten(2), [], MALFORMED),
    ("index page overwritten", overwritten(3), [], MALFORMED),
    ("no points table", table("CREATE TABLE t (x)"), [], "no such table: points" + NOT_QDRANT),
    (
        "other columns",
        table("CREATE TABLE points (uuid TEXT PRIMARY KEY, data BLOB)"),
        [],
        "{storage}: table points has columns ['uuid', 'data']" + NOT_QDRANT,
    ),
    (
        "ids without an index",
        table("CREATE TABLE points (id INTEGER PRIMARY KEY, point BLOB)"),
        [],
        "no such index: sqlite_autoindex_points_1; ",
    ),
    (
        "ids that are not base64",
        changed("UPDATE points SET id = 'héllo' WHERE rowid = 7"),
        [],
        "{storage}: unreadable point id",
    ),
    (
        "ids that are not pickles",
        changed("UPDATE points SET id = 'aGVsbG8gd29ybGQ=' WHERE rowid = 7"),
        [],
        "{storage}: unreadable point id",
    ),
    (
        "ids that are null",
        changed("UPDATE points SET id = NULL WHERE rowid = 7"),
        [],
        "{storage}: unreadable point id",
    ),
    (
        "a torn point",
        changed("UPDATE points SET point = substr(point, 1, 500) WHERE rowid = 7"),
        [],
        "cannot be read safely (pickle data was truncated); " + RESTORE,
    ),
    (
        "an empty point",
        changed("UPDATE points SET point = x'' WHERE rowid = 7"),
        [],
        "cannot be read safely (Ran out of input); " + RESTORE,
    ),
    (
        "a null point",
        changed("UPDATE points SET point = NULL WHERE rowid = 7"),
        [],
        "cannot be read safely (",
    ),
    ("meta.json is empty", meta_is(""), [], "{meta}: damaged (Expecting value: line 1 column 1"),
    ("meta.json is cut off", meta_is('{"collections": {"sql'), [], "{meta}: damaged (Unterminat"),
    ("meta.json is a list", meta_is("[]"), [], "{meta}: damaged (no list of collections); "),
    ("meta.json says null", meta_is('{"collections": null}'), [], "{meta}: damaged (no list of"),
    ("meta.json is no text", meta_is(b"\xff\xfe\x00"), [], "{meta}: damaged ('utf-8' codec can't"),
    (
        "meta.json has odd aliases",
        meta_is('{"collections": {"sqlite_docs": {}}, "aliases": ["a"]}'),
        ["--collection", "sqlite_docs"],
        "{meta}: damaged",
    ),
    ("meta.json is bottomless", meta_is("[" * 100_000), [], "{meta}: damaged ("),
]


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [case[1:] for case in BAD_INPUTS],
    ids=[case[0] for case in BAD_INPUTS],
)
def test_bad_input_ends_in_one_line_and_changes_nothing(
    qdrant: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    flags: list[str],
    message: str,
) -> None:
    damage(qdrant)
    storage = storage_of(qdrant, COLLECTION)
    message = message.format(folder=qdrant, storage=storage, meta=qdrant / "meta.json")
    monkeypatch.chdir(tmp_path)
    args = ["--qdrant-path", str(qdrant), "--sample-size", "1000", *flags]
    # The official client is let near a folder only after the same look at it.
    for command in (args, [*args, "--via-client"]):
        with untouched(tmp_path):
            exit_code = run(partial(fetch_chunks.main, command))
        shown = capsys.readouterr()
        assert message in shown.err
        assert str(qdrant) in shown.err
        assert (shown.err.count("\n"), shown.out, exit_code) == (1, "", USAGE)


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ("collection/sqlite_docs", "is one collection's own folder; give {folder}"),
        ("collection", "has no meta.json, so it is no Qdrant folder"),
        ("meta.json", "is a file; give the Qdrant folder that holds meta.json"),
        ("x" * 300, "x" * 300 + ": "),
        ("nowhere", "{folder}/nowhere: does not exist; give the Qdrant folder with --qdrant-path"),
    ],
    ids=["own folder", "folder of collections", "meta.json", "impossible name", "no name"],
)
def test_a_path_that_misses_the_folder_is_told_where_to_go(
    qdrant: Path, script: Script, below: str, message: str
) -> None:
    with untouched(qdrant):
        done = script("fetch_chunks.py", "--qdrant-path", qdrant / below)
    assert message.format(folder=qdrant) in done.stderr
    assert done.stderr.startswith("fetch_chunks.py: ")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (USAGE, "")


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        (None, ["docs"], "docs"),
        ("docs", ["docs", "spare"], "docs"),
        ("current", ["docs", "spare"], "docs"),
        (None, [], "w: has no collection; ingest documents first"),
        (None, ["b", "a"], "w: has 2 collections (a, b); choose one with --collection"),
        ("nope", ["b", "a"], "w: no collection 'nope'; it has: a, b"),
        ("nope", [], "w: no collection 'nope'; it has: none"),
        ("dangling", ["a"], "w: no collection 'dangling'; it has: a"),
    ],
)
def test_a_collection_is_chosen_by_name_alias_or_loneliness(
    wanted: str | None, there: list[str], expected: str
) -> None:
    aliases = {"current": "docs", "dangling": "gone"}
    if not expected.startswith("w: "):
        assert choose_collection(wanted, there, aliases=aliases, where="w") == expected
        return
    with pytest.raises(UserError) as refused:
        choose_collection(wanted, there, aliases=aliases, where="w")
    assert str(refused.value) == expected


def test_no_name_out_of_a_folder_commands_the_terminal(tmp_path: Path, script: Script) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "t"}}, collection="a\x1b[2Jb")
    done = script("fetch_chunks.py", "--qdrant-path", folder, "--collection", "nope")
    assert "no collection 'nope'" in done.stderr
    assert "\x1b" not in done.stderr


# ---------------------------------------------------------------------- pickles are code


class Call:
    """Pickled, it is an order to call `function` when it is read."""

    def __init__(self, function: Callable[..., object], *args: object):
        self.order = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.order


HOSTILE = [
    ("os.system", lambda mark: Call(os.system, f"touch {mark}"), "posix.system"),
    ("eval", lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
    ("Popen", lambda mark: Call(subprocess.Popen, ["touch", str(mark)]), "subprocess.Popen"),
    ("Path.touch", lambda mark: Call(Path.touch, mark), "pathlib.Path.touch"),
]
HOSTILE_TABLE = pytest.mark.parametrize(
    ("order", "named"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists once hostile code has run."""
    return tmp_path / "executed"


@HOSTILE_TABLE
@pytest.mark.parametrize("place", ["payload", "vector", "whole point"])
@pytest.mark.parametrize("via_client", [False, True], ids=["direct", "via client"])
def test_a_pickle_that_calls_is_refused_and_not_executed(
    tmp_path: Path,
    marker: Path,
    order: Callable[[Path], Call],
    named: str,
    place: str,
    via_client: bool,
) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "harmless"}})
    call = order(marker)
    hostile = {
        "payload": lambda: blob_of(2, {"text": "t", "more": [{"deep": call}]}),
        "vector": lambda: blob_of(2, {"text": "t"}, vector=[call]),
        "whole point": lambda: pickle.dumps(call, protocol=4),
    }[place]()
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(2), hostile)
    for via_client in (False, True):
        with untouched(folder), pytest.raises(UserError) as refused:
            store = open_store(path=folder, via_client=via_client)
            list(store.payloads(store.point_ids()))
        assert f"cannot be read safely (forbidden class {named}); {RESTORE}" in str(refused.value)
        assert not marker.exists()


@HOSTILE_TABLE
def test_an_id_that_calls_is_refused_and_not_executed(
    tmp_path: Path, marker: Path, order: Callable[[Path], Call], named: str
) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "harmless"}})
    key = key_of(order(marker))
    sql(folder, "INSERT INTO points VALUES (?, ?)", key, blob_of(2, {"text": "t"}))
    with untouched(folder), pytest.raises(UserError) as refused:
        contents(folder)
    assert f"unreadable point id (forbidden class {named}); not a Qdrant" in str(refused.value)
    assert not marker.exists()


def test_the_script_refuses_a_hostile_folder_in_one_line(
    tmp_path: Path, marker: Path, script: Script
) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "harmless"}})
    hostile = pickle.dumps(Call(os.system, f"touch {marker}"), protocol=4)
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(2), hostile)
    for flags in ([], ["--via-client"]):
        with untouched(tmp_path):
            done = script("fetch_chunks.py", "--qdrant-path", folder, *flags)
        assert (done.returncode, done.stdout) == (USAGE, "")
        assert done.stderr == (
            f"fetch_chunks.py: {storage_of(folder)}: point 2 cannot be read safely "
            f"(forbidden class posix.system); {RESTORE}\n"
        )


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x04cqdrant_client.os\nsystem\n.", "forbidden class qdrant_client.os.system"),
        (b"\x80\x04\x8c\x08datetime\x8c\x0bsys.modules\x93.", "class datetime.sys.modules"),
        (b"\x80\x04Psomething\n.", "persistent ids are not allowed"),
        (b"\x80\x04\x82\x01.", "unregistered extension code 1"),
    ],
    ids=["disguised as qdrant", "through a module's attribute", "persistent id", "extension"],
)
def test_a_disguised_call_is_refused_too(tmp_path: Path, pickled: bytes, message: str) -> None:
    folder = make_folder(tmp_path / "q", {})
    sql(folder, "INSERT INTO points VALUES (?, ?)", key_of(2), pickled)
    with pytest.raises(UserError, match="point 2 cannot be read safely") as refused:
        contents(folder)
    assert message in str(refused.value)


def test_code_in_another_collection_is_not_executed_by_the_official_client(
    tmp_path: Path, marker: Path
) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "harmless"}})
    make_folder(folder, {}, collection="other")
    hostile = pickle.dumps(Call(os.system, f"touch {marker}"), protocol=4)
    statement = "INSERT INTO points VALUES (?, ?)"
    sql(folder, statement, key_of(2), hostile, collection="other")
    # Opening a folder loads all its collections. Refusing it and leaving the other one out of the
    # copy are both right.
    try:
        store = open_store(path=folder, collection="docs", via_client=True)
    except UserError as refused:
        assert "forbidden class posix.system" in str(refused)
    else:
        assert store.point_ids() == [1]
        store.close()
    assert not marker.exists()


def test_code_in_an_outdated_row_is_not_executed_by_the_official_client(
    tmp_path: Path, marker: Path
) -> None:
    folder = make_folder(tmp_path / "q", {})
    hostile = pickle.dumps(Call(os.system, f"touch {marker}"), protocol=4)
    statement = "INSERT INTO points VALUES (?, ?)"
    sql(folder, statement, key_of(1), hostile)
    sql(folder, statement, key_of(1, protocol=5), blob_of(1, {"text": "newer"}))
    assert contents(folder) == {1: {"text": "newer"}}
    try:
        open_store(path=folder, via_client=True).close()
    except UserError as refused:
        assert "forbidden class posix.system" in str(refused)
    assert not marker.exists()


# ---------------------------------------------------------------------- locks

HOLD = """
import sys
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_locked_folder_is_refused_and_its_holder_named(qdrant: Path, script: Script) -> None:
    with other_process(HOLD, qdrant) as holder, untouched(qdrant):
        done = script("fetch_chunks.py", "--qdrant-path", qdrant)
        assert done.stderr.startswith(
            f"fetch_chunks.py: {qdrant}: locked by process {holder.pid} ({sys.executable}"
        )
        assert done.stderr.endswith("); close that Qdrant client and run this again\n")
        assert done.stderr.count("\n") == 1
        assert (done.returncode, done.stdout) == (TRY_LATER, "")
        done = script("fetch_chunks.py", "--qdrant-path", qdrant, "--even-if-locked")
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert done.stdout == "200 chunks -> data/raw_chunks.jsonl\n"
        with closing(open_store(path=qdrant, via_client=True, even_if_locked=True)) as store:
            assert len(store.point_ids()) == 648


def test_a_killed_holder_locks_nobody_out(qdrant: Path, script: Script) -> None:
    with other_process(HOLD, qdrant) as holder:
        holder.send_signal(signal.SIGKILL)
        with untouched(qdrant):
            done = script("fetch_chunks.py", "--qdrant-path", qdrant)
        assert (done.returncode, done.stdout) == (0, "200 chunks -> data/raw_chunks.jsonl\n")


OPENERS = [
    lambda path: open_store(path=path),
    lambda path: open_store(path=path, via_client=True),
    lambda path: open_client(path),
]


def test_every_way_to_open_minds_the_lock(qdrant: Path, tmp_path: Path) -> None:
    def refusal_of(opened: Callable[[Path], object]) -> UserError:
        with pytest.raises(UserError) as refused:
            opened(qdrant)
        return refused.value

    with (qdrant / ".lock").open("rb") as lock, ThreadPoolExecutor() as at_once:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with untouched(tmp_path):
            refusals = list(at_once.map(refusal_of, OPENERS))
    assert [error.exit_code for error in refusals] == [TRY_LATER] * 3
    for error in refusals:
        assert f"{qdrant}: locked by process {os.getpid()} (" in str(error)


def test_a_lock_let_go_in_time_is_waited_for(qdrant: Path) -> None:
    with (qdrant / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="locked by process"):
            refuse_if_locked(qdrant, patience_seconds=0)
        letting_go = threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN))
        letting_go.start()
        refuse_if_locked(qdrant, patience_seconds=60)
        letting_go.join()


def test_a_folder_that_was_never_locked_gets_no_lock_file(qdrant: Path) -> None:
    (qdrant / ".lock").unlink()
    with untouched(qdrant):
        assert len(contents(qdrant)) == 648


def test_private_copies_are_cleared_away(qdrant: Path, tmp_path: Path, script: Script) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    args = ("fetch_chunks.py", "--qdrant-path", qdrant)
    sql(qdrant, "PRAGMA journal_mode = WAL", collection=COLLECTION)
    assert script(*args, TMPDIR=str(scratch)).returncode == 0
    assert list(scratch.iterdir()) == []
    os.truncate(storage_of(qdrant, COLLECTION), 4096 * 3)
    storage_of(qdrant, COLLECTION).with_name("storage.sqlite-journal").write_bytes(b"x")
    with untouched(qdrant):
        done = script(*args, TMPDIR=str(scratch))
    assert (done.returncode, done.stderr.count("\n")) == (USAGE, 1)
    assert list(scratch.iterdir()) == []
