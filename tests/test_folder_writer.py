"""The folder writer: only what is named changes, whole batches or nothing, beside real clients."""

from __future__ import annotations

import base64
import datetime
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import (
    Distance,
    MultiVectorComparator,
    MultiVectorConfig,
    PointStruct,
    SparseVector,
    SparseVectorParams,
    VectorParams,
)

from conftest import COLLECTION, clean_environment, tree_digest
from qdrant_server import make_folder, other_process, storage_of, untouched
from question_optimizer.errors import TRY_LATER, USAGE, UserError
from question_optimizer.generation.client_writer import Change, ClientWriter
from question_optimizer.generation.folder_writer import FolderWriter
from question_optimizer.locks import lock_holder
from question_optimizer.qdrant_folder import QdrantFolder
from question_optimizer.records import PointId

UNKNOWN_UUID = "12345678-1234-1234-1234-123456789abc"


def rows_of(folder: Path, collection: str = "docs") -> dict[str, bytes]:
    """{key: row} as stored."""
    with closing(sqlite3.connect(storage_of(folder, collection))) as connection:
        return dict(connection.execute("SELECT id, point FROM points").fetchall())


def insert(folder: Path, point: Any, *, key: str | None = None, protocol: int = 4) -> None:
    """A row as another client would have left it."""
    key = key or key_of(point.id)
    with closing(sqlite3.connect(storage_of(folder))) as connection, connection:
        row = (key, pickle.dumps(point, protocol=protocol))
        connection.execute("INSERT INTO points VALUES (?, ?)", row)


def key_of(point_id: object, protocol: int = 4) -> str:
    return base64.b64encode(pickle.dumps(point_id, protocol=protocol)).decode()


def official(folder: Path, collection: str = "docs") -> dict[PointId, Any]:
    """{id: record} with payload and vectors as the official client reads them."""
    with closing(QdrantClient(path=str(folder))) as client:
        assert client.count(collection).count == len(rows_of(folder, collection))
        records, _ = client.scroll(collection, limit=10_000, with_vectors=True)
    return {record.id: record for record in records}  # type: ignore[misc]


def update(folder: Path, changes: dict[Any, Change], collection: str = "docs") -> set[PointId]:
    with FolderWriter(folder, collection) as writer:
        return writer.update(changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten points {"n": 0 … 9} with numbers for ids, under an alias too."""
    payloads = {n: {"text": f"t{n}", "n": n} for n in range(10)}
    return make_folder(tmp_path / "q", payloads, alias="now")


# ---------------------------------------------------------------------- what it changes


def test_only_the_keys_named_change_and_the_official_client_goes_on_from_there(
    qdrant: Path,
) -> None:
    before, rows = official(qdrant, COLLECTION), rows_of(qdrant, COLLECTION)
    ids: list[Any] = sorted(before)[:300]
    with FolderWriter(qdrant) as writer:
        assert writer.payloads([*ids[:5], UNKNOWN_UUID]) == {i: before[i].payload for i in ids[:5]}
        changes = {i: Change({"tag": f"ä{i}"}, {"document_id", "not there"}) for i in ids}
        assert writer.update({**changes, UNKNOWN_UUID: Change({"tag": "x"})}) == {UNKNOWN_UUID}
        assert writer.payloads(ids[:1])[ids[0]]["tag"] == f"ä{ids[0]}"
    assert sum(row != rows[key] for key, row in rows_of(qdrant, COLLECTION).items()) == 300
    after = official(qdrant, COLLECTION)
    for point_id, record in before.items():
        assert after[point_id].vector == record.vector
        payload = dict(record.payload)
        if point_id in changes:
            del payload["document_id"]
            payload["tag"] = f"ä{point_id}"
        assert after[point_id].payload == payload
        assert list(after[point_id].payload) == list(payload)
    with closing(QdrantClient(path=str(qdrant))) as client:
        client.set_payload(COLLECTION, {"tag": "theirs"}, points=ids[:1])
        assert (
            client.query_points(COLLECTION, before[ids[0]].vector, limit=1).points[0].id == ids[0]
        )
    assert official(qdrant, COLLECTION)[ids[0]].payload["tag"] == "theirs"


def test_a_change_and_its_reverse_leave_every_point_as_it_was(qdrant: Path) -> None:
    before = rows_of(qdrant, COLLECTION)
    with QdrantFolder(qdrant) as reader:
        ids = reader.point_ids()
    update(qdrant, {i: Change({"tag": [1, {"a": None}]}) for i in ids}, COLLECTION)
    update(qdrant, {i: Change({}, {"tag"}) for i in ids}, COLLECTION)
    after = rows_of(qdrant, COLLECTION)
    # Only the order of a set, the names of the fields, is another in every process.
    end = b"__pydantic_fields_set__"
    assert {key: row.split(end)[0] for key, row in after.items()} == {
        key: row.split(end)[0] for key, row in before.items()
    }
    assert {key: pickle.loads(row) for key, row in after.items()} == {
        key: pickle.loads(row) for key, row in before.items()
    }


def bits(vector: Any) -> Any:
    """A vector with every number spelt to its last bit. (Pickles differ in the order of sets.)"""
    if isinstance(vector, SparseVector):
        return vector.indices, bits(vector.values)
    if isinstance(vector, dict):
        return {name: bits(part) for name, part in vector.items()}
    return [bits(part) for part in vector] if isinstance(vector, list) else vector.hex()


def test_every_kind_of_vector_keeps_its_bits(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    single = VectorParams(size=4, distance=Distance.DOT)
    many = single.model_copy(
        update={"multivector_config": MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM)}
    )
    odd = [0.1 + 0.2, -0.0, 5e-324, 1e30]
    with closing(QdrantClient(path=str(folder))) as client:
        client.create_collection(
            "docs", {"one": single, "many": many}, {"few": SparseVectorParams()}
        )
        vector: Any = {
            "one": odd,
            "many": [odd, odd],
            "few": SparseVector(indices=[7, 3], values=odd[:2]),
        }
        client.upsert("docs", [PointStruct(id=1, vector=vector, payload={"a": 1})])
        client.upsert("docs", [PointStruct(id=2, vector={"one": odd}, payload=None)])
    before = {key: pickle.loads(row) for key, row in rows_of(folder).items()}
    assert bits(before[key_of(1)].vector["one"]) == [value.hex() for value in odd]
    assert update(folder, {1: Change({"b": 2}), 2: Change({"b": 2})}) == set()
    after = {key: pickle.loads(row) for key, row in rows_of(folder).items()}
    for key, point in after.items():
        assert bits(point.vector) == bits(before[key].vector)
        assert type(point) is PointStruct
        assert point.__pydantic_fields_set__ == before[key].__pydantic_fields_set__
    assert [point.payload for point in after.values()] == [{"a": 1, "b": 2}, {"b": 2}]
    assert official(folder)[1].vector["few"] == SparseVector(indices=[3, 7], values=odd[1::-1])


def test_a_state_of_another_pydantic_is_written_as_it_was_read(folder: Path) -> None:
    """Pydantic 1 has other names for its fields; clients that use it cannot read those of 2."""
    point = PointStruct(id=50, vector=[1.0, 0.0], payload={"a": 1})
    state: dict[str, Any] = {
        "__dict__": dict(point.__dict__),
        "__fields_set__": {"payload"},  # one: the order of several is chance
        "__private_attribute_values__": {},
    }

    class Old(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if value is point:
                return (*point.__reduce_ex__(4)[:2], state)
            return NotImplemented

    with tempfile.TemporaryFile() as file:
        Old(file, protocol=4).dump(point)
        file.seek(0)
        blob = file.read()
    with closing(sqlite3.connect(storage_of(folder))) as connection, connection:
        connection.execute("INSERT INTO points VALUES (?, ?)", (key_of(50), blob))
    update(folder, {50: Change({"b": 2})})
    state["__dict__"]["payload"] = {"a": 1, "b": 2}
    with tempfile.TemporaryFile() as file:
        Old(file, protocol=4).dump(point)
        file.seek(0)
        assert rows_of(folder)[key_of(50)] == file.read()
    assert official(folder)[50].payload == {"a": 1, "b": 2}


def test_values_that_json_lacks_stay_what_they_are_beside_ours(folder: Path) -> None:
    day = datetime.date(2026, 1, 2)
    odd = {"day": day, "id": uuid.UUID(int=5), "pair": (1, 2)}
    insert(folder, PointStruct.model_construct(id=50, vector=[1.0, 0.0], payload=odd))
    with FolderWriter(folder) as writer:
        there = writer.payloads([50])[50]
        assert there == {"day": "2026-01-02", "id": str(odd["id"]), "pair": [1, 2]}
        writer.update({50: Change({"q": "?"})})
    assert pickle.loads(rows_of(folder)[key_of(50)]).payload == {**odd, "q": "?"}


@pytest.mark.filterwarnings("ignore:Removed 2 outdated copies")  # told by the client
def test_of_an_ids_several_rows_the_newest_is_changed_and_no_row_is_added(tmp_path: Path) -> None:
    spelt = "ABCDEF12-1234-1234-1234-123456789ABC"
    folder = make_folder(tmp_path / "q", {1: {}, spelt.lower(): {"row": "first"}})
    for point_id, key in ((spelt, None), (spelt.lower(), key_of(spelt.lower(), protocol=5))):
        payload = {"row": "upper" if key is None else "newest"}
        insert(folder, PointStruct(id=point_id, vector=[1.0, 0.0], payload=payload), key=key)
    before = rows_of(folder)
    with FolderWriter(folder) as writer:
        assert writer.payloads([spelt.lower()]) == {spelt.lower(): {"row": "newest"}}
        writer.update({spelt.lower(): Change({"q": "?"})})
    after = rows_of(folder)
    assert [key for key in after if after[key] != before[key]] == [
        key_of(spelt.lower(), protocol=5)
    ]
    with closing(QdrantClient(path=str(folder))) as client:
        (found,) = client.retrieve("docs", [spelt.lower()])
    assert found.payload == {"row": "newest", "q": "?"}


def test_nothing_to_change_writes_nothing(folder: Path) -> None:
    before = tree_digest(folder)
    assert update(folder, {}) == set()
    assert tree_digest(folder) == before


# ---------------------------------------------------------------------- what it leaves to clients


def hostile(folder: Path) -> PointStruct:
    """A row that would make a file if it were unpickled carelessly."""

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "pwned",)

    return PointStruct.model_construct(id=50, vector=[1.0, 0.0], payload={"a": Code()})


def test_no_code_of_a_row_runs(folder: Path) -> None:
    insert(folder, hostile(folder))
    with FolderWriter(folder) as writer:
        assert writer.update({1: Change({"q": "?"})}) == set()
        with pytest.raises(UserError, match="point 50 cannot be read safely") as refused:
            writer.update({50: Change({"q": "?"})})
    assert "forbidden class" in str(refused.value)
    assert not (folder / "pwned").exists()


def test_a_row_that_is_not_certain_makes_the_official_client_do_it(folder: Path) -> None:
    insert(
        folder,
        PointStruct.model_construct(id=50, vector=[1.0, 0.0], payload={"a": 1}),
        key=key_of(51),
    )
    told: list[str] = []
    with FolderWriter(folder, notice=told.append) as writer:
        assert writer.update({1: Change({"q": "?"}), 51: Change({"q": "?"})}) == {51}
        assert writer.update({2: Change({"q": "?"}, {"n"})}) == set()
        assert writer.payloads([2]) == {2: {"text": "t2", "q": "?"}}
        assert lock_holder(folder / ".lock")
    (notice,) = told
    assert notice.startswith(f"{folder}: written through the official client")
    assert "point 51" in notice
    assert official(folder)[1].payload == {"text": "t1", "n": 1, "q": "?"}


def test_a_row_that_would_name_other_classes_than_before_is_not_rewritten(folder: Path) -> None:
    """Numpy 2 calls its classes otherwise than numpy 1, which then could not read the row."""
    payload = {"a": numpy.float64(0.5)}
    point = PointStruct.model_construct(id=50, vector=[1.0, 0.0], payload=payload)
    blob = pickle.dumps(point, protocol=4)
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    assert blob.count(new) == 1
    frame = int.from_bytes(blob[3:11], "little") - 1  # PROTO 4, FRAME and its eight bytes
    blob = blob[:3] + frame.to_bytes(8, "little") + blob[11:].replace(new, old)
    with closing(sqlite3.connect(storage_of(folder))) as connection, connection:
        connection.execute("INSERT INTO points VALUES (?, ?)", (key_of(50), blob))
    told: list[str] = []
    with FolderWriter(folder, notice=told.append) as writer:
        assert writer.update({50: Change({"q": "?"})}) == set()
    assert "it would name [('numpy._core.multiarray', 'scalar')]" in told[0]
    assert official(folder)[50].payload == {"a": 0.5, "q": "?"}


# ---------------------------------------------------------------------- locks and permissions

HOLD = """
import sys
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_a_client_holds_is_refused_by_name(folder: Path) -> None:
    with (
        other_process(HOLD, folder) as holder,
        untouched(folder),
        pytest.raises(UserError) as refused,
    ):
        FolderWriter(folder)
    assert refused.value.exit_code == TRY_LATER
    assert f"locked by process {holder.pid}" in str(refused.value)


def test_a_client_that_starts_meanwhile_is_refused_as_beside_a_client(folder: Path) -> None:
    with FolderWriter(folder, "now") as writer:
        assert writer.collection == "docs"
        with pytest.raises(RuntimeError, match="already accessed by another instance"):
            QdrantClient(path=str(folder))
        writer.update({1: Change({"q": "?"})})
    assert official(folder)[1].payload["q"] == "?"


@contextmanager
def somebody() -> Iterator[Path]:
    """A folder in which a user without rights stands, whoever runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        os.seteuid(os.getuid())
        for path in [Path(name), *Path(name).rglob("*")]:
            path.chmod(0o755)


def become_nobody() -> None:
    if os.getuid() == 0:
        os.seteuid(65534)


def test_a_folder_that_may_not_be_written_is_one_line() -> None:
    with somebody() as here:
        folder = make_folder(here / "q", {1: {"text": "t"}})
        (folder / ".lock").chmod(0o444)
        become_nobody()
        with pytest.raises(UserError) as refused:
            FolderWriter(folder)
    assert str(refused.value) == f"{folder}/.lock: cannot be written (Permission denied)"
    assert refused.value.exit_code == USAGE


def test_points_that_may_not_be_written_are_one_line_and_stay() -> None:
    with somebody() as here:
        folder = make_folder(here / "q", {1: {"text": "t"}})
        (folder / ".lock").chmod(0o666)
        storage_of(folder).chmod(0o444)
        before = rows_of(folder)
        become_nobody()
        with FolderWriter(folder) as writer, pytest.raises(UserError) as refused:
            writer.update({1: Change({"q": "?"})})
        assert rows_of(folder) == before
    assert str(refused.value).startswith(f"{storage_of(folder)}: cannot be used (")
    assert "check the folder's permissions" in str(refused.value)


def test_a_reader_that_does_not_let_go_is_one_line_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("question_optimizer.generation.folder_writer._PATIENCE_SECONDS", 0.05)
    before = rows_of(folder)
    with closing(sqlite3.connect(storage_of(folder))) as reader:
        cursor = reader.execute("SELECT id FROM points")
        cursor.fetchone()
        with FolderWriter(folder) as writer:
            with pytest.raises(UserError, match="database is locked") as refused:
                writer.update({1: Change({"q": "?"})})
            cursor.close()
            assert writer.update({2: Change({"q": "?"})}) == set()
    assert refused.value.exit_code == TRY_LATER
    assert sum(row != before[key] for key, row in rows_of(folder).items()) == 1


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_damaged_folder_is_one_line_and_stays_as_it_is(folder: Path, damage: str) -> None:
    storage = storage_of(folder)
    content = {"empty": b"", "cut": storage.read_bytes()[:5000], "garbage": b"garbage" * 999}
    storage.unlink() if damage == "missing" else storage.write_bytes(content[damage])
    with untouched(folder), pytest.raises(UserError) as refused:
        FolderWriter(folder)
    assert str(refused.value).startswith(f"{storage}: ")


def test_a_collection_that_is_not_there_is_named(folder: Path) -> None:
    with untouched(folder), pytest.raises(UserError, match="no collection 'x'; it has: docs"):
        FolderWriter(folder, "x")


# ---------------------------------------------------------------------- kills


def keep_writing(folder: Path, turn: int, ready: Any) -> None:
    with FolderWriter(folder) as writer:
        ready.set()
        for number in itertools.count(turn):
            for start in range(0, 600, 200):
                change = Change({"turn": number, "fill": "x" * 3000})
                writer.update(dict.fromkeys(range(start, start + 200), change))


def test_a_kill_leaves_every_batch_wholly_there_or_not(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {n: {"n": n, "turn": 0} for n in range(600)})
    FolderWriter(folder).close()
    chance = random.Random(1)
    turns = [0, 0, 0]
    forked = multiprocessing.get_context("fork")  # everything is imported already
    for kill in range(4):
        ready = forked.Event()
        writer = forked.Process(target=keep_writing, args=(folder, max(turns) + 1, ready))
        writer.start()
        assert ready.wait(30)
        time.sleep(chance.uniform(0.02, 0.3))
        writer.kill()
        writer.join()
        found = official(Path(shutil.copytree(folder, tmp_path / f"after kill {kill}")))
        assert [record.payload["n"] for record in found.values()] == list(range(600))
        batches = [{found[i].payload["turn"] for i in range(s, s + 200)} for s in (0, 200, 400)]
        assert [len(batch) for batch in batches] == [1, 1, 1]
        now = [batch.pop() for batch in batches]
        assert now == sorted(now, reverse=True)
        assert all(new >= old for new, old in zip(now, turns, strict=True))
        turns = now
    assert max(turns) > 0


def test_what_a_killed_writer_left_half_done_is_rolled_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {n: {"n": n} for n in range(300)})
    code = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=1")
connection.execute("BEGIN")
connection.execute("UPDATE points SET point=zeroblob(5000)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, storage_of(folder)], env=clean_environment())
    journal = storage_of(folder).with_name("storage.sqlite-journal")
    assert journal.stat().st_size > 0
    with FolderWriter(folder) as writer:
        assert not journal.exists()
        assert writer.payloads([299]) == {299: {"n": 299}}
        assert writer.update({0: Change({"q": "?"})}) == set()
    assert len(official(folder)) == 300


def test_a_client_and_the_writer_leave_the_same_payloads(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    changes: dict[PointId, Change] = {n: Change({"tag": {"a": [n]}}, {"text"}) for n in range(5)}
    changes |= {UNKNOWN_UUID: Change({"tag": 1}), 9: Change({}, {"n"})}
    ids: list[PointId] = [*range(10), UNKNOWN_UUID]
    with closing(QdrantClient(path=str(copy))) as client, ClientWriter(client, "docs") as target:
        assert target.update(changes) == {UNKNOWN_UUID}
        theirs = target.payloads(ids)
    with FolderWriter(folder) as writer:
        assert writer.update(changes) == {UNKNOWN_UUID}
        assert writer.payloads(ids) == theirs
    assert len(theirs) == 10
