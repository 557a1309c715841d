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

from conftest import COLLECTION, SAMPLE, tree_digest
from qdrant_server import QdrantServer, make_folder, serving, storage_of, untouched
from question_optimizer.chunk_store import (
    ChunkStore,
    ClientStore,
    Written,
    chunk_of,
    extract_text,
    open_client,
    open_store,
    query_payload,
    write_queries,
)
from question_optimizer.errors import USAGE, UserError
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


def write(
    folder: Path, queries: list[tuple[PointId, str, dict[str, str]]], collection: str = COLLECTION
) -> Written:
    with closing(open_client(folder)) as client:
        return write_queries(client, collection, queries)


PROVENANCE = {"pipeline": "p1", "model": "m"}


def test_a_question_is_set_in_both_places_and_nowhere_else(qdrant: Path) -> None:
    before = rows_of(qdrant)
    first, second = ids_of(qdrant, 2)
    queries = [(first, "Wie groß?", PROVENANCE), (second, "What “else”?", PROVENANCE)]
    assert write(qdrant, queries) == (2, 0, [])
    after = rows_of(qdrant)
    assert after.keys() == before.keys()
    asked = {point_id: query for point_id, query, _ in queries}
    for key, point in after.items():
        old = before[key]
        assert (point.id, dense(point.vector)) == (old.id, dense(old.vector))
        if point.id not in asked:
            assert pickle.dumps(point) == pickle.dumps(old)
            continue
        query = asked[point.id]
        content = json.loads(old.payload["_node_content"])
        content["metadata"]["generated_query"] = query
        content["excluded_embed_metadata_keys"].append("generated_query")
        content["excluded_llm_metadata_keys"].append("generated_query")
        assert json.loads(point.payload["_node_content"]) == content
        assert {**point.payload, "_node_content": ""} == {
            **old.payload,
            "_node_content": "",
            "generated_query": query,
            "generated_query_provenance": PROVENANCE,
        }


def test_writing_the_same_questions_again_changes_no_byte(qdrant: Path) -> None:
    queries = [(i, f"Question {i}?", PROVENANCE) for i in ids_of(qdrant, 250)]
    assert write(qdrant, queries) == (250, 0, [])
    written = tree_digest(qdrant)
    assert write(qdrant, queries) == (0, 250, [])
    assert tree_digest(qdrant) == written


def test_another_question_replaces_the_old_one(qdrant: Path) -> None:
    (point_id,) = ids_of(qdrant, 1)
    write(qdrant, [(point_id, "Old?", PROVENANCE)])
    assert write(qdrant, [(point_id, "New?", PROVENANCE)]) == (1, 0, [])
    (point,) = (point for point in rows_of(qdrant).values() if point.id == point_id)
    content = json.loads(point.payload["_node_content"])
    assert point.payload["generated_query"] == content["metadata"]["generated_query"] == "New?"
    assert content["excluded_embed_metadata_keys"].count("generated_query") == 1
    assert content["excluded_llm_metadata_keys"].count("generated_query") == 1


def test_another_provenance_is_a_change_too(qdrant: Path) -> None:
    (point_id,) = ids_of(qdrant, 1)
    write(qdrant, [(point_id, "Same?", {"pipeline": "p1"})])
    assert write(qdrant, [(point_id, "Same?", {"pipeline": "p2"})]) == (1, 0, [])


def test_points_that_are_gone_are_reported_and_the_rest_written(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {n: {"text": "t"} for n in range(3)})
    before = rows_of(folder, "docs")
    wanted: list[PointId] = [9, 1, UNKNOWN_UUID, 77]
    outcome = write(folder, [(i, f"Q{i}?", {}) for i in wanted], "docs")
    assert outcome == (1, 0, [9, UNKNOWN_UUID, 77])
    after = rows_of(folder, "docs")
    assert len(after) == 3
    changed = [point.id for key, point in after.items() if point != before[key]]
    assert changed == [1]


def test_an_id_that_no_point_can_have_is_reported_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "t"}})
    outcome = write(folder, [("no uuid", "Q?", {}), (1, "Q1?", {})], "docs")
    assert outcome == (1, 0, ["no uuid"])


def test_nothing_to_write_writes_nothing(qdrant: Path) -> None:
    before = tree_digest(qdrant)
    assert write(qdrant, []) == (0, 0, [])
    assert tree_digest(qdrant) == before


def existing_query_of(folder: Path, point_id: PointId) -> str | None:
    with closing(open_store(path=folder)) as store:
        ((_, payload),) = store.payloads([point_id])
    chunk, _ = chunk_of(point_id, payload)
    assert chunk is not None
    return chunk.existing_query


def test_our_own_question_is_never_the_existing_one(qdrant: Path) -> None:
    (point_id,) = ids_of(qdrant, 1)
    write(qdrant, [(point_id, "Ours?", PROVENANCE)])
    assert existing_query_of(qdrant, point_id) is None


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "t", "generated_query": "Theirs?"},
        {
            "_node_content": node("t", metadata={"generated_query": "Theirs?"}),
            "generated_query": "Theirs?",
        },
        {"_node_content": node("t", metadata={"generated_query": "Theirs?"})},
    ],
    ids=["in the payload", "in both places", "in the node"],
)
def test_the_old_generators_question_outlives_ours(tmp_path: Path, payload: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "q", {1: payload})
    assert existing_query_of(folder, 1) == "Theirs?"
    for ours in ("Ours?", "Ours, better?"):
        assert write(folder, [(1, ours, PROVENANCE)], "docs") == (1, 0, [])
        assert write(folder, [(1, ours, PROVENANCE)], "docs") == (0, 1, [])
        (point,) = rows_of(folder, "docs").values()
        assert point.payload["generated_query"] == ours
        assert existing_query_of(folder, 1) == "Theirs?"


def test_questions_are_written_to_a_server_in_the_same_way(qdrant: Path, tmp_path: Path) -> None:
    served = Path(shutil.copytree(qdrant, tmp_path / "served"))
    queries: list[tuple[PointId, str, dict[str, str]]] = [
        *((i, f"Frage {i}: größer?", PROVENANCE) for i in ids_of(qdrant, 3)),
        (UNKNOWN_UUID, "Where?", PROVENANCE),
    ]
    with serving(served) as server, closing(reach(server)) as client:
        assert write_queries(client, COLLECTION, queries) == (3, 0, [UNKNOWN_UUID])
        assert write_queries(client, COLLECTION, queries) == (0, 3, [UNKNOWN_UUID])
    assert write(qdrant, queries) == (3, 0, [UNKNOWN_UUID])
    assert rows_of(served) == rows_of(qdrant)


@pytest.mark.parametrize("way", ["folder", "server"])
def test_half_a_character_in_a_node_does_not_stop_the_write(tmp_path: Path, way: str) -> None:
    content = '{"text": "half \\ud83d of a pair", "metadata": {}}'
    folder = make_folder(tmp_path / "q", {1: {"_node_content": content}})
    if way == "folder":
        assert write(folder, [(1, "Q?", {})], "docs") == (1, 0, [])
    else:
        with serving(folder) as server, closing(reach(server)) as client:
            assert write_queries(client, "docs", [(1, "Q?", {})]) == (1, 0, [])
    (point,) = rows_of(folder, "docs").values()
    written = point.payload["_node_content"]
    assert json.loads(written)["metadata"] == {"generated_query": "Q?"}
    assert json.loads(written)["text"] == json.loads(content)["text"]
    written.encode()  # or no server, no LlamaIndex and no file can take it any more


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "plain"},
        {"_node_content": "{broken"},
        {"_node_content": "[1, 2]"},
        {"_node_content": '{"metadata": null}'},
        {"_node_content": {"text": "an object"}},
    ],
)
def test_without_a_readable_node_the_question_stands_in_the_payload(
    payload: dict[str, Any],
) -> None:
    before = json.dumps(payload)
    update = query_payload(payload, "Q?", {"model": "m"})
    assert update == {"generated_query": "Q?", "generated_query_provenance": {"model": "m"}}
    assert json.dumps(payload) == before


def test_a_node_without_lists_of_exclusions_gets_them() -> None:
    update = query_payload({"_node_content": '{"text": "t"}'}, "Q?", {})
    assert json.loads(update["_node_content"]) == {
        "text": "t",
        "metadata": {"generated_query": "Q?"},
        "excluded_embed_metadata_keys": ["generated_query"],
        "excluded_llm_metadata_keys": ["generated_query"],
    }


def test_points_without_a_node_are_written_and_found_unchanged(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "q", {1: {"text": "one"}, 2: None})
    queries: list[tuple[PointId, str, dict[str, str]]] = [(1, "Q1?", {}), (2, "Q2?", {})]
    assert write(folder, queries, "docs") == (2, 0, [])
    assert write(folder, queries, "docs") == (0, 2, [])
    payloads = {point.id: point.payload for point in rows_of(folder, "docs").values()}
    assert payloads == {
        1: {"text": "one", "generated_query": "Q1?", "generated_query_provenance": {}},
        2: {"generated_query": "Q2?", "generated_query_provenance": {}},
    }
