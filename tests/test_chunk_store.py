"""Chunk stores: three ways to read that agree, a fair sample, questions written in place."""

from __future__ import annotations

import datetime
import json
import pickle
import random
import shutil
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct

from conftest import COLLECTION, SAMPLE
from qdrant_server import QdrantServer, make_folder, serving, storage_of, untouched
from question_optimizer.chunk_store import (
    ChunkStore,
    ClientStore,
    chunk_of,
    extract_text,
    neighbours_of,
    open_client,
    open_store,
    without_secrets,
)
from question_optimizer.errors import USAGE, UserError
from question_optimizer.generation.embedded_text import embedded_text
from question_optimizer.records import PointId
from question_optimizer.sampling import Sample, sample

WAYS = ["direct", "via client", "server"]
UNKNOWN_UUID = "12345678-1234-1234-1234-123456789abc"


def node(text: str | None = None, **more: Any) -> str:
    """A `_node_content` as LlamaIndex writes it."""
    return json.dumps({"id_": "n", "metadata": more.pop("metadata", {}), "text": text, **more})


def official_order(folder: Path, collection: str, seed: int, scratch: Path) -> list[PointId]:
    """The order that sampling promises, from the official client's own listing on a copy."""
    copy = Path(shutil.copytree(folder, scratch / "official"))
    with closing(QdrantClient(path=str(copy))) as client:
        records, rest = client.scroll(collection, limit=100_000, with_payload=False)
    assert rest is None
    numbers = sorted(record.id for record in records if isinstance(record.id, int))
    uuids = sorted(record.id for record in records if isinstance(record.id, str))
    order: list[PointId] = [*numbers, *uuids]
    random.Random(seed).shuffle(order)
    return order


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """610 points, half of them numbered and half named, every seventh without text."""
    ids = random.Random(1)
    payloads: dict[PointId, dict[str, Any]] = {}
    for n in range(610):
        point_id = n * 3 if n % 2 else str(uuid.UUID(int=ids.getrandbits(128), version=4))
        payloads[point_id] = {"text": f"chunk {n}"} if n % 7 else {"title": f"empty {n}"}
    return make_folder(tmp_path_factory.mktemp("mixed") / "q", payloads)


@pytest.fixture(scope="module")
def stores(
    mixed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ChunkStore]]:
    """The mixed folder, open in each of the three ways."""
    served = Path(shutil.copytree(mixed, tmp_path_factory.mktemp("served") / "q"))
    with untouched(mixed), serving(served) as server:
        opened = {
            "direct": open_store(path=mixed),
            "via client": open_store(path=mixed, via_client=True),
            "server": open_store(url=server.url),
        }
        yield opened
        for store in opened.values():
            store.close()


# ---------------------------------------------------------------------- sampling


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_order_is_the_sorted_ids_shuffled_by_the_seed(
    mixed: Path, stores: dict[str, ChunkStore], tmp_path: Path, way: str, seed: int
) -> None:
    order = official_order(mixed, "docs", seed, tmp_path)
    drawn = sample(stores[way], 10_000, seed=seed)
    passed_over = set(drawn.without_text)
    assert [chunk.chunk_id for chunk in drawn.chunks] == [i for i in order if i not in passed_over]
    assert drawn.without_text == [i for i in order if i in passed_over]
    assert (drawn.points, len(drawn.chunks), len(passed_over)) == (610, 522, 88)
    assert drawn.text_keys == {"text": 522}


@pytest.mark.parametrize("size", [1, 199, 200, 201, 250, 400, 522])
def test_the_three_ways_draw_the_same_chunks(stores: dict[str, ChunkStore], size: int) -> None:
    direct = sample(stores["direct"], size, seed=3)
    assert len(direct.chunks) == size
    assert sample(stores["via client"], size, seed=3) == direct
    assert sample(stores["server"], size, seed=3) == direct


def test_a_larger_sample_extends_a_smaller_one(stores: dict[str, ChunkStore]) -> None:
    whole = sample(stores["direct"], 522, seed=3)
    for size in (1, 199, 200, 201, 250, 399, 400, 401):
        smaller = sample(stores["direct"], size, seed=3)
        assert smaller.chunks == whole.chunks[:size]
        assert smaller.without_text == whole.without_text[: len(smaller.without_text)]


def test_another_seed_draws_another_sample(stores: dict[str, ChunkStore]) -> None:
    def ids(seed: int) -> set[PointId]:
        return {chunk.chunk_id for chunk in sample(stores["direct"], 50, seed=seed).chunks}

    assert len(ids(0) & ids(1)) < 20
    assert ids(0) == ids(0)


def test_every_chunk_with_text_is_as_likely_as_any_other(tmp_path: Path) -> None:
    payloads = {n: {"text": f"chunk {n}"} if n % 5 else {} for n in range(50)}
    store = open_store(path=make_folder(tmp_path / "q", payloads))
    first: Counter[PointId] = Counter()
    drawn: Counter[PointId] = Counter()
    for seed in range(800):
        ids = [chunk.chunk_id for chunk in sample(store, 10, seed=seed).chunks]
        first.update(ids[:1])
        drawn.update(ids)
    store.close()
    assert sorted(drawn) == [n for n in range(50) if n % 5]
    # 40 chunks: each is expected 200 times among all drawn (deviation 12), 20 times first (4.4)
    assert 140 < min(drawn.values()) < max(drawn.values()) < 260
    assert 3 < min(first.values()) < max(first.values()) < 40


def test_the_sample_folder_reads_the_same_in_three_ways(qdrant: Path, tmp_path: Path) -> None:
    order = official_order(qdrant, COLLECTION, 0, tmp_path)
    served = Path(shutil.copytree(qdrant, tmp_path / "served"))
    with untouched(qdrant), serving(served) as server:
        drawn = []
        for store in (
            open_store(path=qdrant),
            open_store(path=qdrant, via_client=True),
            open_store(url=server.url),
        ):
            drawn.append(sample(store, 250, seed=0))
            assert list(store.payloads([UNKNOWN_UUID, 5])) == []
            store.close()
    assert [chunk.chunk_id for chunk in drawn[0].chunks] == order[:250]
    assert drawn[0].text_keys == {"_node_content.text": 250}
    assert drawn[1] == drawn[0]
    assert drawn[2] == drawn[0]


def test_an_open_client_is_read_and_left_open(mixed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mixed, tmp_path / "q"))
    with closing(QdrantClient(path=str(copy))) as client:
        store = ClientStore(client, None, where="the host's client", owned=False)
        assert len(sample(store, 5, seed=0).chunks) == 5
        store.close()
        assert client.count("docs").count == 610


def test_values_that_json_lacks_are_the_same_in_each_way(tmp_path: Path) -> None:
    payload = {
        "text": "t",
        "headings": ("1. Doors", "1.1 Seals"),
        "document_id": uuid.UUID(int=5),
        "file_name": datetime.date(2026, 1, 2),
        "doc_items": ({"prov": ({"page_no": 4},)},),
    }
    folder = make_folder(tmp_path / "q", {1: {}})
    # Older clients stored such values as they came; all of them turn them into JSON on loading.
    stored = PointStruct.model_construct(id=1, vector=[0.6, 0.8], payload=payload)
    with closing(sqlite3.connect(storage_of(folder))) as connection, connection:
        connection.execute("UPDATE points SET point = ?", [pickle.dumps(stored, protocol=4)])
    chunks = []
    for via_client in (True, False):
        store = open_store(path=folder, via_client=via_client)
        chunks += sample(store, 1, seed=0).chunks
        store.close()
    assert (chunks[0].headings, chunks[0].page_no) == (["1. Doors", "1.1 Seals"], 4)
    assert chunks[1] == chunks[0]


# ---------------------------------------------------------------------- servers


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QdrantServer]:
    folder = make_folder(tmp_path / "q", {n: {"text": f"t{n}"} for n in range(5)}, alias="now")
    make_folder(folder, {}, collection="spare")
    with serving(folder) as server:
        yield server


def refuse(status: int, *paths: str) -> Any:
    """Answer `status` on these paths."""
    return lambda method, path: (status, "no") if path in paths else None


def reach(server: QdrantServer) -> QdrantClient:
    """A client as a host application has one."""
    return QdrantClient(url=server.url, check_compatibility=False)


def test_an_alias_names_its_collection_on_a_server_too(server: QdrantServer) -> None:
    store = open_store(url=server.url, collection="now")
    assert store.collection == "docs"
    assert store.point_ids() == [0, 1, 2, 3, 4]
    store.close()


@pytest.mark.parametrize(
    ("refused", "name"),
    [
        (["/aliases"], "docs"),
        (["/collections"], "docs"),
        (["/collections", "/aliases"], "docs"),
    ],
)
@pytest.mark.parametrize("status", [403, 404])
def test_a_server_that_lists_nothing_is_asked_for_the_one_collection(
    server: QdrantServer, refused: list[str], name: str, status: int
) -> None:
    server.fail = refuse(status, *refused)
    store = open_store(url=server.url, collection=name)
    assert store.collection == name
    assert len(sample(store, 10, seed=0).chunks) == 5
    store.close()


@pytest.mark.parametrize(
    ("collection", "message"),
    [
        (None, "{url}: has 2 collections (docs, spare); choose one with --collection"),
        ("nope", "{url}: no collection 'nope'; it has: docs, spare"),
    ],
)
def test_a_wrong_collection_on_a_server_names_the_ones_there(
    server: QdrantServer, collection: str | None, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        open_store(url=server.url, collection=collection)
    assert str(refused.value) == message.format(url=server.url)
    assert refused.value.exit_code == USAGE


def test_the_key_goes_to_the_server_and_a_wrong_one_is_reported(server: QdrantServer) -> None:
    store = open_store(url=server.url, api_key="sesame", collection="docs")
    store.close()
    assert server.headers_seen[-1]["api-key"] == "sesame"
    server.fail = lambda method, path: (401, "Invalid API key")
    with pytest.raises(UserError) as refused:
        open_store(url=server.url, api_key="wrong", collection="docs")
    assert str(refused.value).startswith(f"{server.url}: no answer from Qdrant (")
    assert "401" in str(refused.value)
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("url", ["not a url", "ftp://localhost", "http://[::1"])
def test_a_url_that_is_none_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(UserError) as refused:
        open_store(url=url)
    assert str(refused.value).startswith(f"{url}: ")


@pytest.mark.parametrize("path", ["count", "scroll", ""])
def test_a_server_that_fails_while_being_read_is_a_users_error(
    server: QdrantServer, path: str
) -> None:
    server.fail = refuse(503, f"/collections/docs/points/{path}".rstrip("/"))
    store = open_store(url=server.url, collection="docs")
    with pytest.raises(UserError) as refused:
        sample(store, 5, seed=0)
    store.close()
    assert str(refused.value).startswith(f"{server.url}: ")
    assert "503" in str(refused.value)


def test_neither_path_nor_url_says_what_to_give() -> None:
    with pytest.raises(UserError, match=r"^no chunks to read: give --qdrant-path or --qdrant-url"):
        open_store()


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_a_client_for_writing_is_opened_on_qdrant_folders_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with untouched(tmp_path), pytest.raises(UserError) as refused:
        open_client(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        (
            "meta.json",
            b'{"collections": {"docs": {"vectors": {"size": 2, "distance": "Dot"}, "newer": 1}}}',
        ),
        ("meta.json", b'{"collections": {"docs": {}}}'),
        ("collection/spare/storage.sqlite", b"garbage" * 1000),
    ],
    ids=["newer meta.json", "poorer meta.json", "another collection's storage"],
)
def test_what_only_the_official_client_cannot_open_is_one_line(
    tmp_path: Path, damaged: str, content: bytes
) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "t"}})
    make_folder(folder, {}, collection="spare")
    (folder / damaged).write_bytes(content)
    with closing(open_store(path=folder, collection="docs")) as direct:
        assert direct.point_ids() == [1]
    # It may be told in one line, or got round by copying no more than the one collection.
    try:
        open_store(path=folder, collection="docs", via_client=True).close()
    except UserError as refused:
        assert str(refused).startswith(str(folder))


# ---------------------------------------------------------------------- text and metadata

ALL_KEYS = {
    "_node_content": node("in node"),
    "text": "in text",
    "chunk_text": "in chunk_text",
    "document": "in document",
    "page_content": "in page_content",
    "content": "in content",
}
TEXTS: list[tuple[dict[str, Any], str | None, str, str]] = [
    # payload, --text-key, the text, where it was found
    (ALL_KEYS, None, "in node", "_node_content.text"),
    *[
        (dict(list(ALL_KEYS.items())[at:]), None, f"in {key}", key)
        for at, key in enumerate(ALL_KEYS)
        if at
    ],
    ({**ALL_KEYS, "_node_content": node("")}, None, "in text", "text"),
    ({**ALL_KEYS, "_node_content": node(" \n")}, None, "in text", "text"),
    ({**ALL_KEYS, "_node_content": node(None)}, None, "in text", "text"),
    ({**ALL_KEYS, "_node_content": "{broken"}, None, "in text", "text"),
    ({**ALL_KEYS, "_node_content": "[1]"}, None, "in text", "text"),
    ({**ALL_KEYS, "_node_content": 5}, None, "in text", "text"),
    ({"_node_content": {"text": "as object"}}, None, "as object", "_node_content.text"),
    (
        {"_node_content": node(text_resource={"text": "newer"})},
        None,
        "newer",
        "_node_content.text_resource.text",
    ),
    ({"text": ["no", "text"], "content": "in content"}, None, "in content", "content"),
    ({"text": " padded \n"}, None, " padded \n", "text"),
    (ALL_KEYS, "content", "in content", "content"),
    ({"body": "own key"}, "body", "own key", "body"),
    ({"doc": {"body": {"en": "deep"}}}, "doc.body.en", "deep", "doc.body.en"),
    # the key named is the only one looked at
    (ALL_KEYS, "body", "", ""),
    ({**ALL_KEYS, "doc": {"body": "b"}}, "doc.body.en", "", ""),
    ({**ALL_KEYS, "body": 5}, "body", "", ""),
    ({"body": "own key"}, None, "", ""),
    ({}, None, "", ""),
    ({"text": " \n\t"}, None, "", ""),
    ({"generated_query": "What?"}, None, "", ""),
]


@pytest.mark.parametrize(("payload", "text_key", "text", "found"), TEXTS)
def test_text_is_found_in_the_first_place_that_has_some(
    payload: dict[str, Any], text_key: str | None, text: str, found: str
) -> None:
    assert extract_text(payload, text_key) == (text, found)
    chunk, key = chunk_of(7, payload, text_key)
    assert key == found
    assert (chunk.chunk_text, chunk.chunk_id) == (text, 7) if chunk else text == ""


@pytest.mark.parametrize("via_client", [False, True], ids=["direct", "via client"])
def test_all_these_payloads_read_the_same_out_of_a_folder(tmp_path: Path, via_client: bool) -> None:
    cases = {n: case for n, case in enumerate(TEXTS) if case[1] is None}
    folder = make_folder(tmp_path / "q", {n: case[0] for n, case in cases.items()})
    store = open_store(path=folder, via_client=via_client)
    drawn = sample(store, 100, seed=0)
    store.close()
    with_text = {n: case[2] for n, case in cases.items() if case[2]}
    assert {chunk.chunk_id: chunk.chunk_text for chunk in drawn.chunks} == with_text
    assert sorted(drawn.without_text) == sorted(set(cases) - set(with_text))
    assert drawn.text_keys == Counter(cases[n][3] for n in with_text)


def test_a_key_may_be_named_for_the_whole_sample(tmp_path: Path) -> None:
    payloads = {1: {"doc": {"body": "one"}}, 2: {"text": "two"}, 3: {"doc": {"body": "three"}}}
    store = open_store(path=make_folder(tmp_path / "q", payloads))
    drawn = sample(store, 10, seed=0, text_key="doc.body")
    store.close()
    assert {chunk.chunk_id: chunk.chunk_text for chunk in drawn.chunks} == {1: "one", 3: "three"}
    assert (drawn.without_text, drawn.text_keys) == ([2], {"doc.body": 2})


METADATA = [
    # payload beside its text, field, what it becomes
    ({"document_id": "d1", "file_name": "f.pdf"}, "document_id", "d1"),
    ({"document_id": "None", "doc_id": "d2", "file_name": "f.pdf"}, "document_id", "d2"),
    ({"document_id": "None", "doc_id": "None", "file_name": "f.pdf"}, "document_id", "f.pdf"),
    ({"document_id": "None", "ref_doc_id": "d3"}, "document_id", "d3"),
    ({"document_id": "", "file_name": "f.pdf"}, "document_id", "f.pdf"),
    ({"document_id": "None"}, "document_id", None),
    ({"document_id": 12}, "document_id", "12"),
    ({"file_name": "f.pdf"}, "file_name", "f.pdf"),
    ({"origin": {"filename": "o.html"}}, "file_name", "o.html"),
    ({"origin": {"filename": "o.html"}}, "document_id", "o.html"),
    ({"file_name": "f.pdf", "origin": {"filename": "o.html"}}, "file_name", "f.pdf"),
    ({"origin": "somewhere"}, "file_name", None),
    ({"headings": ["1. Doors", "1.1 Seals"]}, "headings", ["1. Doors", "1.1 Seals"]),
    ({"headings": None}, "headings", []),
    ({"headings": "1. Doors"}, "headings", []),
    ({}, "headings", []),
    ({"doc_items": [{"prov": [{"page_no": 4}, {"page_no": 3}]}]}, "page_no", 3),
    ({"doc_items": [{"prov": []}, {"prov": [{"page_no": 9}]}]}, "page_no", 9),
    ({"doc_items": [{"prov": []}]}, "page_no", None),
    ({"doc_items": [{"prov": None}, {}, "x"]}, "page_no", None),
    ({"doc_items": [{"prov": 5}]}, "page_no", None),
    ({"doc_items": [{"prov": [{"page_no": "4"}]}]}, "page_no", None),
    ({"doc_items": "x"}, "page_no", None),
    ({"generated_query": "What is a seal?"}, "existing_query", "What is a seal?"),
    ({"generated_query": ""}, "existing_query", None),
    ({"generated_query": None}, "existing_query", None),
    ({}, "existing_query", None),
]


@pytest.mark.parametrize(("metadata", "name", "expected"), METADATA)
def test_metadata_is_read_from_the_payload_or_the_node(
    metadata: dict[str, Any], name: str, expected: object
) -> None:
    at_top, _ = chunk_of(1, {"text": "t", **metadata})
    in_node, _ = chunk_of(1, {"_node_content": node("t", metadata=metadata)})
    assert at_top is not None
    assert in_node is not None
    assert getattr(at_top, name) == expected
    assert getattr(in_node, name) == expected


def test_the_old_question_is_kept_aside_and_stays_out_of_the_text() -> None:
    metadata = {"generated_query": "What is old?"}
    payload = {"_node_content": node("Only this.", metadata=metadata), **metadata}
    chunk, _ = chunk_of(1, payload)
    assert chunk is not None
    assert chunk.existing_query == "What is old?"
    assert chunk.chunk_text == "Only this."


def test_what_utf8_cannot_carry_is_replaced() -> None:
    content = '{"text": "half \\ud83d", "metadata": {"file_name": "\\udc00.pdf"}}'
    chunk, _ = chunk_of(1, {"_node_content": content, "headings": ["\udfff"]})
    assert chunk is not None
    assert chunk.chunk_text == "half \ufffd"
    assert (chunk.file_name, chunk.headings) == ("\ufffd.pdf", ["\ufffd"])


def test_the_sample_carries_its_headings_and_documents() -> None:
    with closing(open_store(path=SAMPLE / "small_sqlite")) as store:
        drawn: Sample = sample(store, 648, seed=0)
    chunk = next(c for c in drawn.chunks if c.chunk_id == "00379923-1df3-4873-a012-02b48346a26d")
    assert chunk.headings == ["7. Optimizations", "7.6. Persistent Rollback Journals"]
    assert chunk.file_name == "atomiccommit.html"
    assert chunk.page_no is None
    assert chunk.existing_query is None
    assert chunk.chunk_text.startswith("SQLite can be configured to commit transactions by")
    assert len({c.document_id for c in drawn.chunks}) == 22


# ---------------------------------------------------------------------- writing


def dense(vector: Any) -> list[float]:
    """LlamaIndex stores {"": numbers}, set_payload the bare numbers: the same vector to Qdrant."""
    return vector[""] if isinstance(vector, dict) else vector


def rows_of(folder: Path, collection: str = COLLECTION) -> dict[str, Any]:
    """{key: point} as stored. The pickles are our own copies of the sample's."""
    with closing(sqlite3.connect(storage_of(folder, collection))) as connection:
        rows = connection.execute("SELECT id, point FROM points").fetchall()
    return {key: pickle.loads(blob) for key, blob in rows}


def ids_of(folder: Path, count: int) -> list[PointId]:
    with closing(open_store(path=folder)) as store:
        return store.point_ids()[:count]


def existing_query_of(folder: Path, point_id: PointId) -> str | None:
    with closing(open_store(path=folder)) as store:
        ((_, payload),) = store.payloads([point_id])
    chunk, _ = chunk_of(point_id, payload)
    assert chunk is not None
    return chunk.existing_query


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:6333", "http://localhost:6333"),
        ("https://anna:SECRET@qdrant.example/base?api_key=SECRET#x", "https://qdrant.example/base"),
        ("http://anna:SEC@RET@127.0.0.1:9", "http://127.0.0.1:9"),
        ("SECRET@host:1", "host:1"),
    ],
)
def test_a_servers_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_server_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(UserError) as raised:
        open_store(url="http://anna:SECRET@127.0.0.1:9?api_key=SECRET")
    assert "http://127.0.0.1:9" in str(raised.value)
    assert "SECRET" not in str(raised.value)


def test_a_node_that_is_nested_too_deeply_is_no_node() -> None:
    node = '{"text": "t", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    chunk, _ = chunk_of(1, {"text": "its own text", "_node_content": node})
    assert chunk is not None
    assert (chunk.chunk_text, neighbours_of({"_node_content": node})) == (
        "its own text",
        (None, None),
    )
    assert embedded_text(node, "its own text") == "its own text"
