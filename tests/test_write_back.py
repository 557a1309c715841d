"""Questions into the collection and back: nothing else changes, and a crash loses nothing."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from conftest import COLLECTION, tree_digest
from qdrant_server import QdrantServer, make_folder, serving, storage_of, untouched
from question_optimizer.chunk_store import chunk_of
from question_optimizer.errors import UserError
from question_optimizer.generation.checks import text_digest
from question_optimizer.generation.client_writer import Changes
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Result
from question_optimizer.generation.write_back import (
    Target,
    Undone,
    Written,
    apply,
    changes_for,
    client_target,
    diff,
    folder_target,
    new_run_id,
    undo,
)
from question_optimizer.qdrant_folder import QdrantFolder
from question_optimizer.records import PointId

OURS = {"generated_query", "generated_queries", "generated_query_provenance", "_node_content"}
EXCLUSIONS = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
UNKNOWN_UUID = "12345678-1234-1234-1234-123456789abc"
FIRST, SECOND, THIRD = "20261121-2201-0001", "20261122-2201-0002", "20261123-2201-0003"


def done(chunk_id: PointId, query: str, slot: int = 0, **more: Any) -> Result:
    kind = {"query_type": "reasoning", "query_format": "keywords", "persona_id": "p", "model": "m"}
    return Result(chunk_id, slot, "done", query, **{"checked": "off", **kind, **more})


@contextmanager
def ledger_at(path: Path, collection: str = "docs", pipeline: str = "a") -> Iterator[Ledger]:
    ledger = Ledger(path, Configuration(collection, pipeline * 16, "b" * 16, ("m",)))
    with closing(ledger):
        yield ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with ledger_at(tmp_path / "generation.sqlite") as ledger:
        yield ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four points with nodes in four states, and one without a node."""
    node = {"id_": "n", "metadata": {"a": 1}, EXCLUSIONS[0]: ["a"], EXCLUSIONS[1]: [], "text": "t"}
    asked = {**node, "metadata": {"generated_query": "Theirs?", "a": 1}}
    listed = {**node, "metadata": {"generated_queries": [{"query": "x"}], "a": 1}}
    return make_folder(
        tmp_path / "q",
        {
            1: {"n": 1, "_node_content": json.dumps(node), "text": "t"},
            2: {"_node_content": json.dumps(asked), "generated_query": "Theirs?", "n": 2},
            3: {
                "_node_content": json.dumps(listed, indent=1),
                "generated_queries": [{"query": "x"}],
            },
            4: {"_node_content": '{"text":"t"}'},
            5: {"text": "no node"},
        },
    )


def payloads_of(folder: Path) -> dict[PointId, dict[str, Any]]:
    with QdrantFolder(folder) as reader:
        return dict(reader.payloads(reader.point_ids()))


def vectors_of(folder: Path) -> dict[str, bytes]:
    """{key: the vector's pickle} of every row."""
    with closing(sqlite3.connect(storage_of(folder, COLLECTION))) as connection:
        rows = connection.execute("SELECT id, point FROM points ORDER BY rowid").fetchall()
    return {key: pickle.dumps(pickle.loads(blob).vector) for key, blob in rows}


def write(ledger: Ledger, folder: Path, run: str, **more: Any) -> Written:
    with folder_target(folder) as target:
        return apply(ledger, target, run=run, **more)


def take_back(ledger: Ledger, folder: Path, run: str, **more: Any) -> Undone:
    with folder_target(folder) as target:
        return undo(ledger, target, run, **more)


# ---------------------------------------------------------------------- the real sample


def nodes_of(folder: Path) -> dict[str, Any]:
    """{id: node} as LlamaIndex reads the sample."""
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    with closing(QdrantClient(path=str(folder))) as client:
        store = QdrantVectorStore(COLLECTION, client=client)
        return {node.node_id: node for node in store.get_nodes(limit=1000)}


def test_llamaindex_reads_the_questions_and_nothing_else_of_the_sample_changes(
    qdrant: Path, tmp_path: Path
) -> None:
    from llama_index.core.schema import MetadataMode

    before, payloads, vectors = nodes_of(qdrant), payloads_of(qdrant), vectors_of(qdrant)
    with ledger_at(tmp_path / "generation.sqlite", COLLECTION) as ledger:
        ledger.record([done(i, f"Wie groß {i}?") for i in payloads])
        ledger.record([done(i, f"Second {i}?", slot=1) for i in list(payloads)[:100]])
        assert write(ledger, qdrant, FIRST) == Written(648, 0, [])
        assert ledger.unwritten(1) == []
        assert vectors_of(qdrant) == vectors
        written = payloads_of(qdrant)
        for point_id, payload in written.items():
            assert {k: v for k, v in payload.items() if k not in OURS} == {
                k: v for k, v in payloads[point_id].items() if k not in OURS
            }
            assert payload["generated_query"] == f"Wie groß {point_id}?"
            assert _without_ours(payload) == payloads[point_id]["_node_content"]
        after = nodes_of(qdrant)
        for node_id, node in after.items():
            assert node.metadata["generated_query"] == f"Wie groß {node_id}?"
            for mode in (MetadataMode.EMBED, MetadataMode.LLM):
                assert node.get_content(mode) == before[node_id].get_content(mode)
        assert sum("generated_queries" in node.metadata for node in after.values()) == 100

        ledger.written_again(list(payloads))
        stored = tree_digest(qdrant)
        assert write(ledger, qdrant, SECOND) == Written(0, 648, [])
        assert tree_digest(qdrant) == stored
        assert take_back(ledger, qdrant, FIRST) == Undone(648, 0, [])
        assert json.dumps(payloads_of(qdrant)) == json.dumps(payloads)  # the order of keys too
        assert vectors_of(qdrant) == vectors
        assert take_back(ledger, qdrant, FIRST) == Undone(0, 0, [])
        assert write(ledger, qdrant, THIRD) == Written(0, 0, [])  # a person took them out


def _without_ours(payload: dict[str, Any]) -> str:
    """The node's text with what `json.dumps` would have put in cut out again."""
    text = payload["_node_content"]
    for key in ("generated_queries", "generated_query"):
        if key in payload:
            value = json.dumps(payload[key], ensure_ascii=False)
            assert text.count(f', "{key}": {value}') == 1
            text = text.replace(f', "{key}": {value}', "").replace(f', "{key}"]', "]")
    return text


# ---------------------------------------------------------------------- what a point gets


def test_a_point_gets_its_questions_and_where_they_come_from(ledger: Ledger, folder: Path) -> None:
    before = payloads_of(folder)
    findings = (("copies", "9 words in a row"),)
    ledger.record([done(1, "First?"), done(1, "Second?", 1, findings=findings), done(2, "Ours?")])
    assert write(ledger, folder, FIRST, provenance_extra={"host": "h"}) == Written(2, 0, [])
    both, replaced = (payloads_of(folder)[i] for i in (1, 2))
    said = {"query_type": "reasoning", "query_format": "keywords", "persona_id": "p"}
    told = {
        **said,
        "model": "m",
        "pipeline": "a" * 16,
        "configuration": ledger.fingerprint,
        "run": FIRST,
        "host": "h",
    }
    assert both["generated_query"] == "First?"
    assert both["generated_queries"] == [
        {"query": "First?", **said},
        {"query": "Second?", **said},
    ]
    provenance = both["generated_query_provenance"]
    assert re.fullmatch("[0-9a-f]{16}", provenance.pop("questions"))
    assert provenance == {**told, "findings": [["copies", "9 words in a row"]]}
    node = json.loads(both["_node_content"])
    assert node["metadata"] == {
        "a": 1,
        **{key: both[key] for key in ("generated_query", "generated_queries")},
    }
    assert node[EXCLUSIONS[0]] == ["a", "generated_query", "generated_queries"]
    assert node[EXCLUSIONS[1]] == ["generated_query", "generated_queries"]

    assert replaced["generated_query"] == "Ours?"
    assert replaced["generated_query_provenance"]["former_query"] == "Theirs?"
    assert "generated_queries" not in replaced
    assert list(json.loads(replaced["_node_content"])["metadata"]) == ["generated_query", "a"]
    assert [payloads_of(folder)[i] for i in (3, 4, 5)] == [before[i] for i in (3, 4, 5)]


def test_a_former_list_of_questions_goes_where_there_is_one_question(
    ledger: Ledger, folder: Path
) -> None:
    before = payloads_of(folder)
    ledger.record([done(3, "Only?"), done(4, "Bare?"), done(5, "Without a node?")])
    assert write(ledger, folder, FIRST).changed == 3
    after = payloads_of(folder)
    assert "generated_queries" not in after[3]
    assert json.loads(after[3]["_node_content"])["metadata"] == {"a": 1, "generated_query": "Only?"}
    assert after[4]["_node_content"] == (
        '{"text":"t","metadata":{"generated_query":"Bare?"},'
        '"excluded_embed_metadata_keys":["generated_query"],'
        '"excluded_llm_metadata_keys":["generated_query"]}'
    )
    assert after[5].keys() == {"text", "generated_query", "generated_query_provenance"}
    assert take_back(ledger, folder, FIRST) == Undone(3, 0, [])
    assert payloads_of(folder) == before


def test_the_same_questions_by_another_run_are_no_change(folder: Path) -> None:
    payload = payloads_of(folder)[2]
    change, _ = changes_for(payload, [done(2, "Ours?")], {"run": FIRST})
    payload |= change.set
    assert not changes_for(payload, [done(2, "Ours?")], {"run": SECOND})[0]
    for other in ([done(2, "Else?")], [done(2, "Ours?", model="n")], [done(2, "Ours?")] * 2):
        change, former = changes_for(payload, other, {"run": SECOND})
        assert change.set["generated_query_provenance"]["run"] == SECOND
        assert change.set["generated_query_provenance"]["former_query"] == "Theirs?"
        assert former["payload"]["generated_query"] == "Ours?"


def test_points_that_are_gone_or_have_another_text_keep_waiting(
    ledger: Ledger, folder: Path
) -> None:
    text = {i: chunk_of(i, p)[0] for i, p in payloads_of(folder).items()}
    fits = text_digest(text[1].chunk_text)  # type: ignore[union-attr]
    ledger.record(
        [
            done(1, "Fits?", text_sha256=fits),
            done(2, "Of another text?", text_sha256="0" * 64),
            done(UNKNOWN_UUID, "Gone?"),
        ]
    )
    assert write(ledger, folder, FIRST, batch=1) == Written(1, 0, [UNKNOWN_UUID, 2])
    assert write(ledger, folder, FIRST) == Written(0, 0, [UNKNOWN_UUID, 2])
    waiting = {results[0].chunk_id for results in ledger.unwritten(10)}
    assert waiting == {2, UNKNOWN_UUID}
    assert payloads_of(folder)[2]["generated_query"] == "Theirs?"


# ---------------------------------------------------------------------- three writers


class BatchServer(QdrantServer):
    """Also answers requests with several changes, as a Qdrant server does."""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Any:
        if (method, path) != ("POST", "/collections/docs/points/batch"):
            return super().answer(method, path, body)
        from qdrant_client import models

        for operation in body["operations"]:
            ((name, asked),) = operation.items()
            try:
                if name == "set_payload":
                    self.client.set_payload("docs", asked["payload"], points=asked["points"])
                else:
                    assert name == "delete_payload"
                    self.client.delete_payload("docs", asked["keys"], points=asked["points"])
            except KeyError as error:
                raise LookupError(f"Not found: No point with id {error} found") from error
        return [models.UpdateResult(status=models.UpdateStatus.COMPLETED)]


@contextmanager
def target_through(way: str, folder: Path) -> Iterator[Target]:
    with ExitStack() as stack:
        if way == "folder":
            yield stack.enter_context(folder_target(folder))
        elif way == "client":
            client = stack.enter_context(closing(QdrantClient(path=str(folder))))
            yield stack.enter_context(client_target(client, "docs"))
            assert client.count("docs").count == 5
        else:
            stack.enter_context(pytest.MonkeyPatch.context()).setattr(
                "qdrant_server.QdrantServer", BatchServer
            )
            server = stack.enter_context(serving(folder))
            client = QdrantClient(url=server.url, check_compatibility=False)
            yield stack.enter_context(client_target(stack.enter_context(closing(client)), "docs"))


def record_all(ledger: Ledger) -> None:
    ledger.record([done(i, f"Größe {i}?") for i in range(1, 6)])
    ledger.record([done(1, "Second?", 1), done(UNKNOWN_UUID, "Gone?")])


@pytest.mark.parametrize("way", ["folder", "client", "server"])
def test_every_way_writes_and_takes_back_the_same(
    ledger: Ledger, folder: Path, tmp_path: Path, way: str
) -> None:
    direct, before = Path(shutil.copytree(folder, tmp_path / "direct")), payloads_of(folder)
    record_all(ledger)
    with target_through(way, folder) as target:
        assert apply(ledger, target, run=FIRST) == Written(5, 0, [UNKNOWN_UUID])
    ledger.written_again([1, 2, 3, 4, 5])
    write(ledger, direct, FIRST)
    written = payloads_of(folder)
    assert written == payloads_of(direct)
    ledger.written_again([1, 2, 3, 4, 5])
    with target_through(way, folder) as target:
        assert apply(ledger, target, run=SECOND) == Written(0, 5, [UNKNOWN_UUID])
    assert payloads_of(folder) == written
    with target_through(way, folder) as target:
        assert undo(ledger, target, FIRST, dry_run=True) == Undone(5, 0, [])
        assert undo(ledger, target, FIRST) == Undone(5, 0, [])
    assert payloads_of(folder) == before


def test_a_server_that_fails_is_one_line_and_what_waits_still_waits(
    ledger: Ledger, folder: Path
) -> None:
    record_all(ledger)
    with serving(folder) as server:
        server.fail = lambda method, path: (503, "no") if path.endswith("batch") else None
        client = QdrantClient(url=server.url, check_compatibility=False)
        with (
            closing(client),
            client_target(client, "docs") as target,
            pytest.raises(UserError, match=r"Qdrant did not write .*503") as refused,
        ):
            apply(ledger, target, run=FIRST)
    assert refused.value.exit_code == 75
    assert len(ledger.unwritten(10)) == 6


# ---------------------------------------------------------------------- crashes


class Crash(Exception):
    pass


class CrashingTarget:
    """A target whose process ends before, or in the middle of, its n-th update."""

    def __init__(self, target: Target, at: int, *, halfway: bool):
        self.target, self.at, self.halfway = target, at, halfway

    def payloads(self, ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        return self.target.payloads(ids)

    def update(self, changes: Changes) -> set[PointId]:
        self.at -= 1
        if self.at:
            return self.target.update(changes)
        if self.halfway:  # as a client would: some points whole, one without its deletions
            some = dict(list(changes.items())[: (len(changes) + 1) // 2])
            last = list(some)[-1]
            self.target.update({**some, last: some[last]._replace(delete=frozenset())})
        raise Crash


@pytest.mark.parametrize("halfway", [False, True], ids=["before the update", "in its middle"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_crash_between_journal_and_collection_loses_nothing(
    ledger: Ledger, folder: Path, at: int, halfway: bool
) -> None:
    before = payloads_of(folder)
    record_all(ledger)
    with folder_target(folder) as target, pytest.raises(Crash):
        apply(ledger, CrashingTarget(target, at, halfway=halfway), run=FIRST, batch=2)
    left = {results[0].chunk_id for results in ledger.unwritten(10)} - {UNKNOWN_UUID}
    assert left == {1: {1, 2, 3, 4, 5}, 2: {2, 3, 4, 5}, 3: {4, 5}}[at]
    again = write(ledger, folder, FIRST, batch=2)
    assert again.changed + again.unchanged == len(left)
    assert all(payload["generated_query"] for payload in payloads_of(folder).values())
    with folder_target(folder) as target, pytest.raises(Crash):
        undo(ledger, CrashingTarget(target, at, halfway=halfway), FIRST, batch=2)
    assert take_back(ledger, folder, FIRST).changed_since == 0
    assert payloads_of(folder) == before
    assert ledger.runs()[0].undone


def test_a_run_that_crashed_before_it_wrote_is_undone_without_a_change(
    ledger: Ledger, folder: Path
) -> None:
    record_all(ledger)
    with folder_target(folder) as target, pytest.raises(Crash):
        apply(ledger, CrashingTarget(target, 1, halfway=False), run=FIRST)
    with untouched(folder / "collection"):
        assert take_back(ledger, folder, FIRST) == Undone(0, 0, [])
    assert ledger.runs()[0].undone


# ---------------------------------------------------------------------- undo


def test_questions_written_one_after_the_other_in_a_run_go_together(
    ledger: Ledger, folder: Path
) -> None:
    before = payloads_of(folder)
    for slot in range(3):
        ledger.record([done(i, f"Question {slot}?", slot) for i in range(1, 6)])
        assert write(ledger, folder, FIRST).changed == 5
    assert len(payloads_of(folder)[4]["generated_queries"]) == 3
    assert take_back(ledger, folder, FIRST) == Undone(5, 0, [])
    assert payloads_of(folder) == before


def test_what_a_later_run_wrote_is_left_until_that_run_is_undone(
    ledger: Ledger, folder: Path, tmp_path: Path
) -> None:
    before = payloads_of(folder)
    ledger.record([done(i, "Old?") for i in range(1, 6)] + [done(1, "Old, too?", 1)])
    write(ledger, folder, FIRST)
    between = payloads_of(folder)
    with ledger_at(tmp_path / "generation.sqlite", pipeline="c") as other:
        other.record([done(1, "New?"), done(2, "New?")])
        write(other, folder, SECOND)
        assert payloads_of(folder)[2]["generated_query_provenance"]["former_query"] == "Theirs?"
        assert take_back(ledger, folder, FIRST, dry_run=True) == Undone(3, 2, [])
        assert take_back(ledger, folder, FIRST) == Undone(3, 2, [])
        assert payloads_of(folder)[1]["generated_query"] == "New?"
        assert take_back(other, folder, SECOND) == Undone(2, 0, [])
        assert {i: payloads_of(folder)[i] for i in (1, 2)} == {i: between[i] for i in (1, 2)}
        assert take_back(ledger, folder, FIRST) == Undone(2, 0, [])
    assert payloads_of(folder) == before


@pytest.mark.parametrize(
    "theirs",
    [
        {"generated_query": "Theirs, by hand?"},
        {"generated_queries": ["theirs"]},
        {"generated_query_provenance": None},
        {"generated_query_provenance": {"run": SECOND}},
    ],
)
def test_what_others_put_in_the_place_of_a_question_is_left_alone(
    ledger: Ledger, folder: Path, theirs: dict[str, Any]
) -> None:
    ledger.record([done(1, "Ours?")])
    write(ledger, folder, FIRST)
    with closing(QdrantClient(path=str(folder))) as client:
        client.set_payload("docs", theirs, points=[1])
    now = payloads_of(folder)
    for _ in range(2):
        assert take_back(ledger, folder, FIRST) == Undone(0, 1, [])
    assert payloads_of(folder) == now


def test_what_others_changed_beside_a_question_stays_when_it_goes(
    ledger: Ledger, folder: Path
) -> None:
    before = payloads_of(folder)[1]
    ledger.record([done(1, "Ours?")])
    write(ledger, folder, FIRST)
    node = json.loads(payloads_of(folder)[1]["_node_content"])
    node["metadata"]["tag"] = "theirs"
    with closing(QdrantClient(path=str(folder))) as client:
        theirs = {"tag": "theirs", "_node_content": json.dumps(node)}
        client.set_payload("docs", theirs, points=[1])
    assert take_back(ledger, folder, FIRST) == Undone(1, 0, [])
    after = payloads_of(folder)[1]
    assert after == {**before, "tag": "theirs", "_node_content": after["_node_content"]}
    node = json.loads(before["_node_content"])
    node["metadata"]["tag"] = "theirs"
    assert json.loads(after["_node_content"]) == node


def test_a_point_that_is_gone_is_told_and_the_rest_restored(ledger: Ledger, folder: Path) -> None:
    before = payloads_of(folder)
    record_all(ledger)
    write(ledger, folder, FIRST)
    with closing(QdrantClient(path=str(folder))) as client:
        client.delete("docs", [3])
    assert take_back(ledger, folder, FIRST) == Undone(4, 0, [3])
    assert payloads_of(folder) == {i: p for i, p in before.items() if i != 3}


def test_an_unknown_run_is_refused_with_those_there_are(ledger: Ledger, folder: Path) -> None:
    with folder_target(folder) as target:
        with pytest.raises(UserError, match=r"no run 'x'; it has: none$"):
            undo(ledger, target, "x")
        record_all(ledger)
        apply(ledger, target, run=FIRST)
        with pytest.raises(UserError, match=rf"no run 'x'; it has: {FIRST} \(5 chunks\)$"):
            undo(ledger, target, "x")


def test_a_run_is_named_by_its_minute_and_by_chance() -> None:
    names = {new_run_id(datetime(2026, 11, 21, 22, 1, 59)) for _ in range(20)}
    assert len(names) > 15
    assert all(re.fullmatch("20261121-2201-[0-9a-f]{4}", name) for name in names)


# ---------------------------------------------------------------------- diff


def test_the_difference_is_told_and_nothing_changes(ledger: Ledger, folder: Path) -> None:
    ledger.record(
        [
            done(1, "First\x1b[31m?\n+ forged", document="a.html\x1b[0m"),
            done(1, "Second?", 1),
            done(2, "Ours?", document="b.html"),
            done(4, "More?"),
            done(UNKNOWN_UUID, "Gone?"),
        ]
    )
    with folder_target(folder) as target, untouched(folder / "collection"):
        lines = list(diff(ledger, target, limit=2))
    assert lines[:2] == ["1 a.html", "+ generated_query: First? + forged"]
    assert "+ generated_queries[1].query: Second?" in lines
    at = lines.index("2 b.html")
    assert lines[at + 1 : at + 3] == ["- generated_query: Theirs?", "+ generated_query: Ours?"]
    assert "+ generated_query_provenance.former_query: Theirs?" in lines[at:]
    assert not any(".run" in line for line in lines)
    assert lines[-2:] == [
        "… and 1 more",
        "3 to change, 0 hold their question already, 1 not there",
    ]
    write(ledger, folder, FIRST)
    ledger.written_again([1, 2, 4])
    with folder_target(folder) as target:
        assert list(diff(ledger, target, limit=9)) == [
            "0 to change, 3 hold their question already, 1 not there"
        ]


def test_a_node_alone_that_lost_its_question_is_told_too(ledger: Ledger, folder: Path) -> None:
    content = payloads_of(folder)[1]["_node_content"]
    ledger.record([done(1, "Ours?")])
    write(ledger, folder, FIRST)
    with closing(QdrantClient(path=str(folder))) as client:
        client.set_payload("docs", {"_node_content": content}, points=[1])
    ledger.written_again([1])
    with folder_target(folder) as target:
        lines = list(diff(ledger, target, limit=9))
    assert lines == [
        "1",
        "~ _node_content: gets what the payload has",
        "1 to change, 0 hold their question already, 0 not there",
    ]


# ---------------------------------------------------------------------- what others did since


def test_a_question_that_somebody_put_there_meanwhile_stays_and_ours_keeps_waiting(
    ledger: Ledger, folder: Path
) -> None:
    before = payloads_of(folder)
    ledger.record([done(1, "First?"), done(2, "Ours?")])
    with folder_target(folder) as target:
        *_, counts = diff(ledger, target, limit=9, overwrite=False)
    assert counts.startswith("1 to change") and counts.endswith(", 1 hold somebody else's")
    assert write(ledger, folder, FIRST, overwrite=False) == Written(1, 0, [], foreign=1)
    assert payloads_of(folder)[2] == before[2]
    assert [results[0].chunk_id for results in ledger.unwritten(9)] == [2]
    assert write(ledger, folder, SECOND, overwrite=False) == Written(0, 0, [], foreign=1)
    assert write(ledger, folder, SECOND, overwrite=True) == Written(1, 0, [])
    assert payloads_of(folder)[2]["generated_query"] == "Ours?"


def test_an_edited_question_stays_and_one_of_ours_is_replaced(ledger: Ledger, folder: Path) -> None:
    """A slot that was asked again, and one whose question a person changed after it was written."""
    ledger.record([done(1, "First?"), done(4, "Fourth?")])
    write(ledger, folder, FIRST)
    ledger.record([done(1, "Better?"), done(4, "Better too?")])
    with closing(QdrantClient(path=str(folder))) as client:
        client.set_payload("docs", {"generated_query": "By a person?"}, points=[4])
    assert write(ledger, folder, SECOND, overwrite=False) == Written(1, 0, [], foreign=1)
    asked = {i: payload.get("generated_query") for i, payload in payloads_of(folder).items()}
    assert (asked[1], asked[4]) == ("Better?", "By a person?")


def test_a_question_of_an_earlier_version_without_its_origin_is_replaced(
    folder: Path, tmp_path: Path
) -> None:
    """Where the ledger knows that one of ours was written, though not which."""
    with ledger_at(tmp_path / "g.sqlite") as former, ledger_at(former.path, pipeline="c") as now:
        former.record([done(2, "Of old?")])
        now.record([done(2, "Ours?")])
        assert write(now, folder, FIRST, overwrite=False) == Written(1, 0, [])
    assert payloads_of(folder)[2]["generated_query"] == "Ours?"


def test_a_list_left_by_a_client_that_died_in_mid_write_is_no_persons(
    ledger: Ledger, folder: Path
) -> None:
    """Keys are set before others are deleted: the former list stands beside the new question."""
    ledger.record([done(3, "Only?")])
    change, _ = changes_for(payloads_of(folder)[3], [done(3, "Only?")], {"run": FIRST})
    with closing(QdrantClient(path=str(folder))) as client:
        client.set_payload("docs", change.set, points=[3])
    ledger.record([done(3, "Asked again?")])
    assert write(ledger, folder, SECOND, overwrite=False) == Written(1, 0, [])
    assert payloads_of(folder)[3]["generated_query"] == "Asked again?"
