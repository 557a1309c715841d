"""The generator: one question a chunk, in place, resumable, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from conftest import COLLECTION, ROOT, SAMPLE, LLMServer, Script, clean_environment, tree_digest
from optimized_question_generator import OptimizedQuestionGenerator
from question_optimizer import rehearsal
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import StopRun, UserError
from question_optimizer.providers import LLMClientConfig, rehearsal_account


def generator_for(qdrant: Path, data: Path, **rest: Any) -> OptimizedQuestionGenerator:
    settings: dict[str, Any] = {
        "qdrant_path": qdrant,
        "dispatcher": LLMDispatcher([rehearsal_account()]),
        "persona_function": lambda text: "A reader of the manual.",
        "pipeline": None,
        "data_dir": data,
        "limit": 20,
    }
    return OptimizedQuestionGenerator(**{**settings, **rest})


def points(qdrant: Path) -> dict[str, Any]:
    client = QdrantClient(path=str(qdrant))
    try:
        found, _ = client.scroll(COLLECTION, limit=1000, with_vectors=True)
        return {str(point.id): point for point in found}
    finally:
        client.close()


async def test_llamaindex_reads_the_questions_and_embeds_the_same_text_as_before(
    qdrant: Path, tmp_path: Path
) -> None:
    from llama_index.core.schema import MetadataMode
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    def nodes() -> dict[str, Any]:
        client = QdrantClient(path=str(qdrant))
        try:
            store = QdrantVectorStore(COLLECTION, client=client)
            return {node.node_id: node for node in store.get_nodes(limit=1000)}
        finally:
            client.close()

    before = nodes()
    summary = await generator_for(qdrant, tmp_path / "data", limit=None).generate()
    after = nodes()
    assert summary.generated == summary.written == 648
    assert after.keys() == before.keys()
    for node_id, node in after.items():
        assert node.metadata["generated_query"]
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert node.get_content(mode) == before[node_id].get_content(mode)
        former = before[node_id].metadata
        assert {k: v for k, v in node.metadata.items() if k != "generated_query"} == former
        assert node.relationships == before[node_id].relationships


async def test_vectors_ids_and_all_other_payload_stay_as_they_were(
    qdrant: Path, tmp_path: Path
) -> None:
    before = points(qdrant)
    await generator_for(qdrant, tmp_path / "data").generate()
    after = points(qdrant)
    ours = {"generated_query", "generated_query_provenance", "_node_content"}
    assert after.keys() == before.keys()
    for point_id, point in after.items():
        assert point.vector == before[point_id].vector
        rest = {k: v for k, v in point.payload.items() if k not in ours}
        assert rest == {k: v for k, v in before[point_id].payload.items() if k not in ours}
    written = [p.payload for p in after.values() if "generated_query" in p.payload]
    assert len(written) == 20
    assert {p["generated_query_provenance"]["model"] for p in written} == {"rehearsal"}


async def test_the_old_generators_question_is_replaced_only_when_asked_and_kept_aside(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    first = sorted(points(qdrant))[0]
    client = QdrantClient(path=str(qdrant))
    client.set_payload(COLLECTION, {"generated_query": "the old one?"}, points=[first])
    client.close()
    kept = await generator_for(qdrant, tmp_path / "data").generate()
    assert kept.already_there == 1
    assert points(qdrant)[first].payload["generated_query"] == "the old one?"
    replaced = await generator_for(qdrant, tmp_path / "data", overwrite=True).generate()
    assert replaced.generated == 1
    payload = points(qdrant)[first].payload
    assert payload["generated_query"] != "the old one?"
    assert payload["generated_query_provenance"]["former_query"] == "the old one?"
    done = script("fetch_chunks.py", "--qdrant-path", qdrant, "--sample-size", "648")
    assert done.returncode == 0
    rows = map(json.loads, (tmp_path / "data" / "raw_chunks.jsonl").read_text().splitlines())
    baselines = {row["chunk_id"]: row["existing_query"] for row in rows if row["existing_query"]}
    assert baselines == {first: "the old one?"}


async def test_the_old_question_never_reaches_a_model(
    qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    ids = sorted(points(qdrant))
    client = QdrantClient(path=str(qdrant))
    client.set_payload(COLLECTION, {"generated_query": "baseline-never-shown"}, points=ids[:5])
    client.close()
    server = llm_server()
    account = LLMClientConfig("a", "m", f"{server.url}/v1", "key", concurrency=4)
    generator = generator_for(
        qdrant, tmp_path / "data", dispatcher=LLMDispatcher([account]), overwrite=True, limit=5
    )
    assert (await generator.generate()).generated == 5
    assert "baseline-never-shown" not in str([body for *_, body in server.requests])


async def test_one_failing_chunk_is_recorded_and_tried_again_by_the_next_run(
    qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    server = llm_server()
    server.fail = lambda n: (400, {}, '{"error": {"message": "filtered"}}') if n == 7 else None
    account = LLMClientConfig("a", "m", f"{server.url}/v1", "key", concurrency=1)
    first = await generator_for(
        qdrant, tmp_path / "data", dispatcher=LLMDispatcher([account])
    ).generate()
    assert (first.generated, first.failed, first.written) == (19, 1, 19)
    assert "filtered" in next(iter(first.problems.values()))
    asked = len(server.requests)
    again = await generator_for(
        qdrant, tmp_path / "data", dispatcher=LLMDispatcher([account])
    ).generate()
    assert (again.generated, again.failed) == (1, 0)
    assert len(server.requests) == asked + 2


async def test_an_empty_answer_is_a_failure_and_never_stored(
    qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    def reply(messages: list[dict[str, Any]]) -> str:
        text = rehearsal.answer(messages)
        return (
            text if "query_type ## ]]\n" in text else "[[ ## query ## ]]\n\n[[ ## completed ## ]]"
        )

    account = LLMClientConfig("a", "m", f"{llm_server(reply).url}/v1", "key", concurrency=4)
    dispatcher = LLMDispatcher([account])
    summary = await generator_for(
        qdrant, tmp_path / "data", dispatcher=dispatcher, limit=3
    ).generate()
    assert (summary.generated, summary.failed) == (0, 3)
    assert set(summary.problems.values()) == {"the model wrote no question"}
    assert not any("generated_query" in p.payload for p in points(qdrant).values())


async def test_a_spent_quota_ends_the_run_with_everything_saved(
    qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    server = llm_server()
    account = LLMClientConfig("free", "m", f"{server.url}/v1", "key", concurrency=3, daily_limit=21)
    data = tmp_path / "data"
    dispatcher = LLMDispatcher([account], log_file=data / "daily_request_log.json")
    summary = await generator_for(qdrant, data, dispatcher=dispatcher).generate()
    assert summary.exit_code == 75
    assert "free" in summary.stopped and "UTC" in summary.stopped
    assert len(server.requests) == 21
    assert summary.written == summary.generated >= 8
    stored = [p for p in points(qdrant).values() if "generated_query" in p.payload]
    assert len(stored) == summary.generated
    account.daily_limit = None
    rest = await generator_for(qdrant, data, dispatcher=LLMDispatcher([account])).generate()
    assert summary.generated + rest.generated == 20


async def test_cancelling_loses_nothing_and_generate_can_be_called_again(
    qdrant: Path, tmp_path: Path
) -> None:
    seen = 0

    def progress(failed: bool) -> None:
        nonlocal seen
        seen += 1

    generator = generator_for(qdrant, tmp_path / "data", limit=200, progress=progress)
    running = asyncio.create_task(generator.generate())
    while seen < 10:
        await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="already running"):
        await generator.generate()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    summary = await generator.generate()
    assert summary.resumed >= 10
    assert summary.generated + summary.resumed == summary.written == 200


async def test_stopping_the_dispatcher_lets_what_is_in_flight_finish(
    qdrant: Path, tmp_path: Path
) -> None:
    dispatcher = LLMDispatcher([rehearsal_account()])
    counted = []

    def progress(failed: bool) -> None:
        counted.append(failed)
        if len(counted) == 5:
            dispatcher.stop(StopRun("interrupted", exit_code=130))

    summary = await generator_for(
        qdrant, tmp_path / "data", dispatcher=dispatcher, limit=200, progress=progress
    ).generate()
    assert (summary.stopped, summary.exit_code) == ("interrupted", 130)
    assert 5 <= summary.generated == summary.written < 200
    assert summary.failed == 0


HOLD = """
import sys, time
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
print("held", flush=True)
time.sleep(120)
"""


def test_while_the_folder_is_open_elsewhere_questions_wait_in_the_ledger(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    personas = ROOT / "tests" / "one_persona.json"  # needs no embedding model
    args = ["--qdrant-path", qdrant, "--rehearsal", "--original", "--limit", "10"]
    args += ["--personas-file", personas]
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(qdrant)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = tree_digest(qdrant)
        refused = script("optimized_question_generator.py", *args)
        assert refused.returncode == 75
        assert refused.stderr.splitlines()[-1].count(str(holder.pid)) == 1
        kept = script("optimized_question_generator.py", *args, "--even-if-locked")
        assert kept.returncode == 75
        assert "10 questions generated (rehearsal), 0 written back" in kept.stdout
        assert "generation.sqlite" in kept.stderr
        assert tree_digest(qdrant) == before
    finally:
        holder.kill()
        holder.wait()
    done = script("optimized_question_generator.py", *args)
    assert done.returncode == 0
    assert "0 questions generated (rehearsal), 10 written back" in done.stdout
    assert sum("generated_query" in p.payload for p in points(qdrant).values()) == 10


async def test_a_restored_folder_gets_its_questions_again_without_a_call(
    qdrant: Path, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(qdrant, tmp_path / "backup")
    await generator_for(qdrant, data).generate()
    after = points(qdrant)
    shutil.rmtree(qdrant)
    shutil.copytree(tmp_path / "backup", qdrant)
    summary = await generator_for(qdrant, data).generate()
    assert (summary.generated, summary.resumed, summary.written) == (0, 20, 20)
    assert points(qdrant) == after


async def test_an_async_persona_function_is_awaited(qdrant: Path, tmp_path: Path) -> None:
    async def choose(text: str) -> str:
        await asyncio.sleep(0)
        return "Somebody who asks."

    generator = generator_for(qdrant, tmp_path / "data", persona_function=choose, limit=3)
    assert (await generator.generate()).generated == 3


def test_without_a_persona_function_the_personas_are_matched_by_meaning(
    qdrant: Path, tmp_path: Path
) -> None:
    generator = generator_for(
        qdrant, tmp_path, persona_function=None, personas=SAMPLE / "personas.json"
    )
    description = generator.choose_appropriate_character(
        "json_extract and the ->> operator return SQL values from a JSON column by path."
    )
    personas = {
        p["description"]: p["id"] for p in json.loads((SAMPLE / "personas.json").read_text())
    }
    assert personas[description] == "json-data-engineer"


def test_a_generator_without_dispatcher_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="needs a dispatcher"):
        OptimizedQuestionGenerator(qdrant_path="x")


def test_a_missing_pipeline_names_the_phase_that_makes_it(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    done = script("optimized_question_generator.py", "--qdrant-path", qdrant, "--rehearsal")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "optimized_pipeline.json: does not exist; run optimize_pipeline.py first"
    )
    assert not list((tmp_path / "data").glob("generat*"))


def test_dry_run_counts_and_changes_nothing(qdrant: Path, tmp_path: Path, script: Script) -> None:
    before = tree_digest(tmp_path)
    done = script(
        "optimized_question_generator.py",
        *("--qdrant-path", qdrant, "--rehearsal", "--original", "--dry-run"),
    )
    assert done.returncode == 0
    assert done.stdout.startswith("dry run: 1296 calls (1296 student)")
    assert tree_digest(tmp_path) == before


async def test_a_result_belongs_to_its_collection_and_its_text(
    qdrant: Path, tmp_path: Path
) -> None:
    from qdrant_client import models

    folder, data = tmp_path / "own", tmp_path / "data"

    def store(name: str, text: str) -> None:
        client = QdrantClient(path=str(folder))
        if not client.collection_exists(name):
            size = models.VectorParams(size=2, distance=models.Distance.COSINE)
            client.create_collection(name, vectors_config=size)
        point = models.PointStruct(id=1, vector=[1.0, 0.0], payload={"text": text})
        client.upsert(name, [point])
        client.close()

    store("brakes", "The brake pad wears by friction against the disc.")
    store("doors", "The door leaf closes by a spindle drive and a belt.")
    questions = []
    for name in ("brakes", "doors"):
        summary = await generator_for(folder, data, collection=name).generate()
        assert (summary.generated, summary.written) == (1, 1)
        questions.append(json.loads((data / "generated_questions.jsonl").read_text()))
    assert questions[0]["generated_query"] != questions[1]["generated_query"]
    store("brakes", "The compressor delivers air to the main reservoir pipe.")
    again = await generator_for(folder, data, collection="brakes").generate()
    assert (again.generated, again.resumed) == (1, 0)


async def test_a_failing_persona_function_costs_only_its_own_chunk(
    qdrant: Path, tmp_path: Path
) -> None:
    calls = iter(range(10))

    def choose(text: str) -> str:
        if next(calls) == 1:
            raise ValueError("no fit")
        return "A reader."

    summary = await generator_for(
        qdrant, tmp_path / "data", persona_function=choose, limit=3
    ).generate()
    assert (summary.generated, summary.failed) == (2, 1)
    assert list(summary.problems.values()) == ["no persona: ValueError: no fit"]


def test_a_second_generator_on_the_same_data_dir_is_refused(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    from question_optimizer.locks import only_one

    with only_one(tmp_path / "data" / "generation.sqlite.lock", "test"):
        done = script(
            "optimized_question_generator.py",
            *("--qdrant-path", qdrant, "--rehearsal", "--original", "--limit", "1"),
        )
    assert done.returncode == 75
    assert "another generator is running in process" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_a_hostile_point_is_refused_before_any_client_opens_the_folder(
    qdrant: Path, tmp_path: Path
) -> None:
    import base64
    import os
    import pickle
    import sqlite3

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    point_id = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    database = sqlite3.connect(qdrant / "collection" / COLLECTION / "storage.sqlite")
    key = base64.b64encode(pickle.dumps(point_id, protocol=4)).decode()
    with database:
        database.execute("INSERT INTO points VALUES (?, ?)", (key, pickle.dumps(Evil())))
    database.close()
    dispatcher = LLMDispatcher([rehearsal_account()])
    generator = generator_for(
        qdrant,
        tmp_path / "data",
        dispatcher=dispatcher,
        limit=None,
        progress=lambda failed: dispatcher.stop(StopRun("enough", exit_code=130)),
    )
    summary = await generator.generate()
    assert "cannot be read safely" in summary.stopped
    assert summary.written == 0
    assert not (tmp_path / "executed").exists()
