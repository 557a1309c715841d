"""The generator: questions in place, resumable, by policy and plan, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from conftest import COLLECTION, ROOT, SAMPLE, LLMServer, clean_environment
from generator_runs import (
    Asked,
    Scripted,
    account_at,
    change,
    corpus,
    generator_for,
    good_question,
    payloads,
    points,
    questions,
    text_of,
    twins_at_first,
    words_as_vectors,
)
from optimized_question_generator import OptimizedQuestionGenerator
from question_optimizer import rehearsal
from question_optimizer.chunk_store import chunk_of
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import StopRun, UserError
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration
from question_optimizer.generation.maintenance import apply, target_over
from question_optimizer.generation.outcome import ConfigurationChanged
from question_optimizer.generation.quotas import targets, total_variation
from question_optimizer.providers import rehearsal_account
from question_optimizer.qdrant_folder import QdrantFolder

BAD = "What does this section say about it?"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A collection of twelve chunks."""
    return corpus(tmp_path / "units", 12)


def ledger_rows(data: Path, what: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(data / "generation.sqlite")
    try:
        return database.execute(what).fetchall()
    finally:
        database.close()


# ---------------------------------------------------------------------- what is written


async def test_vectors_ids_and_all_other_payload_stay_as_they_were(
    qdrant: Path, tmp_path: Path
) -> None:
    before = points(qdrant)
    summary = await generator_for(qdrant, tmp_path / "data", pipeline=Scripted()).generate()
    after = points(qdrant)
    assert summary.generated == summary.written == 20
    assert after.keys() == before.keys()
    asked = {i for i, point in after.items() if "generated_query" in point.payload}
    assert len(asked) == 20
    ours = {"generated_query", "generated_query_provenance", "_node_content"}
    for point_id, point in after.items():
        assert point.vector == before[point_id].vector
        changed = ours if point_id in asked else set()
        rest = {k: v for k, v in point.payload.items() if k not in changed}
        assert rest == {k: v for k, v in before[point_id].payload.items() if k not in changed}


async def test_a_run_leaves_its_questions_its_summary_and_its_page(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    states: list[str] = []
    generator = generator_for(units, data, progress=states.append)
    summary = await generator.generate()
    assert states == ["done"] * 12
    rows = list(map(json.loads, (data / "generated_questions.jsonl").read_text().splitlines()))
    assert {row["chunk_id"]: row["generated_query"] for row in rows} == questions(units)
    meta = json.loads((data / "generated_questions.jsonl.meta.json").read_text())
    assert meta["counts"] == {"questions": 12, "failed": 0, "rejected": 0}
    assert meta["rehearsal"] is True
    assert summary.report == json.loads((data / "generation_summary.json").read_text())
    assert "<html" in (data / "generation_report.html").read_text()
    provenance = payloads(units)[1]["generated_query_provenance"]
    assert provenance["run"] == summary.run
    assert provenance["model"] == "rehearsal"
    assert (summary.calls, summary.to_do, summary.points) == (24, 12, 12)


async def test_several_questions_a_chunk_stand_in_a_list_beside_the_first(
    units: Path, tmp_path: Path
) -> None:
    first = await generator_for(units, tmp_path / "data", pipeline=Scripted()).generate()
    assert (first.generated, first.written) == (12, 12)
    before = questions(units)
    program = Scripted()
    more = generator_for(units, tmp_path / "data", pipeline=program, per_chunk=3)
    summary = await more.generate()
    assert (summary.generated, summary.written) == (24, 12)
    assert program.per_chunk() == [2] * 12
    assert program.analysed == []
    assert questions(units) == before
    for payload in payloads(units).values():
        listed = payload["generated_queries"]
        assert len({(one["query_type"], one["query_format"]) for one in listed}) == 3
        assert listed[0]["query"] == payload["generated_query"]


async def test_the_old_generators_question_is_replaced_only_when_asked_and_kept_aside(
    units: Path, tmp_path: Path
) -> None:
    change(units, {"generated_query": "the old one?"}, 1)
    kept = await generator_for(units, tmp_path / "data").generate()
    assert (kept.already_there, kept.generated) == (1, 11)
    assert questions(units)[1] == "the old one?"
    replaced = await generator_for(units, tmp_path / "data", overwrite=True).generate()
    assert replaced.generated == 1
    payload = payloads(units)[1]
    assert payload["generated_query"] != "the old one?"
    assert payload["generated_query_provenance"]["former_query"] == "the old one?"
    chunk, _ = chunk_of(1, payload)
    assert chunk is not None
    assert chunk.existing_query == "the old one?"


async def test_the_old_question_never_reaches_a_model(
    qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    ids: list[Any] = sorted(points(qdrant))[:3]
    client = QdrantClient(path=str(qdrant))
    client.set_payload(COLLECTION, {"generated_query": "baseline-never-shown"}, points=ids)
    client.close()
    server = llm_server()
    dispatcher = LLMDispatcher([account_at(server.url)])
    generator = generator_for(
        qdrant, tmp_path / "data", dispatcher=dispatcher, overwrite=True, limit=3
    )
    assert (await generator.generate()).generated == 3
    await dispatcher.aclose()
    assert len(server.requests) == 6
    assert "baseline-never-shown" not in str([body for *_, body in server.requests])


async def test_a_result_belongs_to_its_collection_and_its_text(tmp_path: Path) -> None:
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
    asked = []
    for name in ("brakes", "doors"):
        summary = await generator_for(folder, data, collection=name).generate()
        assert (summary.generated, summary.written) == (1, 1)
        asked.append(json.loads((data / "generated_questions.jsonl").read_text()))
    assert asked[0]["generated_query"] != asked[1]["generated_query"]
    store("brakes", "The compressor delivers air to the main reservoir pipe.")
    again = await generator_for(folder, data, collection="brakes").generate()
    assert (again.generated, again.resumed) == (1, 0)


# ---------------------------------------------------------------------- failures


async def test_a_failing_chunk_is_recorded_and_tried_again_only_when_asked(
    units: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    server = llm_server()
    server.fail = lambda n: (400, {}, '{"error": {"message": "filtered"}}') if n == 7 else None
    dispatcher = LLMDispatcher([account_at(server.url, concurrency=1)])
    first = await generator_for(units, tmp_path / "data", dispatcher=dispatcher).generate()
    assert (first.generated, first.failed, first.written) == (11, 1, 11)
    assert "filtered" in next(iter(first.problems.values()))
    asked = len(server.requests)
    left = await generator_for(units, tmp_path / "data", dispatcher=dispatcher).generate()
    assert (left.generated, left.failed, left.failed_before) == (0, 0, 1)
    assert len(server.requests) == asked
    again = await generator_for(
        units, tmp_path / "data", dispatcher=dispatcher, retry_failed=True
    ).generate()
    await dispatcher.aclose()
    assert (again.generated, again.failed, again.failed_before) == (1, 0, 0)
    assert len(server.requests) <= asked + 2
    assert len(questions(units)) == 12


async def test_failures_of_this_run_and_of_those_before_are_told_apart(
    units: Path, tmp_path: Path
) -> None:
    def write(asked: Asked, number: int) -> str:
        if asked.chunk_text in (text_of(1), text_of(3)):
            raise ConnectionError("no route")
        return good_question(asked, number)

    given = {"pipeline": Scripted(write)}
    first = await generator_for(units, tmp_path / "data", limit=2, **given).generate()
    assert (first.failed, first.failed_before) == (1, 0)
    second = await generator_for(units, tmp_path / "data", limit=4, **given).generate()
    assert (second.failed, second.failed_before) == (1, 1)


async def test_an_empty_answer_is_a_failure_and_never_stored(units: Path, tmp_path: Path) -> None:
    program = Scripted(lambda asked, n: "  \n ")
    summary = await generator_for(units, tmp_path / "data", pipeline=program).generate()
    assert (summary.generated, summary.failed) == (0, 12)
    assert set(summary.problems.values()) == {"the model wrote no question"}
    assert questions(units) == {}


async def test_a_failing_persona_function_costs_only_its_own_chunk(
    units: Path, tmp_path: Path
) -> None:
    calls = iter(range(100))

    def choose(text: str) -> str:
        if next(calls) == 1:
            raise ValueError("no fit")
        return "A reader."

    summary = await generator_for(
        units, tmp_path / "data", pipeline=Scripted(), persona_function=choose, limit=3
    ).generate()
    assert (summary.generated, summary.failed) == (2, 1)
    assert list(summary.problems.values()) == ["no persona: ValueError: no fit"]


async def test_an_async_persona_function_is_awaited(units: Path, tmp_path: Path) -> None:
    async def choose(text: str) -> str:
        await asyncio.sleep(0)
        return "Somebody who asks."

    summary = await generator_for(
        units, tmp_path / "data", pipeline=Scripted(), persona_function=choose, limit=3
    ).generate()
    assert summary.generated == 3


def test_without_a_persona_function_the_personas_are_matched_by_meaning(
    units: Path, tmp_path: Path
) -> None:
    generator = generator_for(
        units, tmp_path, persona_function=None, personas=SAMPLE / "personas.json"
    )
    personas = {
        p["description"]: p["id"] for p in json.loads((SAMPLE / "personas.json").read_text())
    }
    description = next(text for text, name in personas.items() if name == "json-data-engineer")
    assert generator.choose_appropriate_character(description) == description


def test_a_generator_without_dispatcher_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="needs a dispatcher"):
        OptimizedQuestionGenerator(qdrant_path="x")


async def test_a_hostile_point_is_never_executed_and_costs_nothing_that_was_made(
    qdrant: Path, tmp_path: Path
) -> None:
    import base64
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    point_id = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    database = sqlite3.connect(qdrant / "collection" / COLLECTION / "storage.sqlite")
    key = base64.b64encode(pickle.dumps(point_id, protocol=4)).decode()
    with database:
        database.execute("INSERT INTO points VALUES (?, ?)", (key, pickle.dumps(Evil())))
    database.close()
    generator = generator_for(qdrant, tmp_path / "data", limit=None, pipeline=Scripted())
    with pytest.raises(UserError, match=r"cannot be read safely|not a Qdrant"):
        await generator.generate()
    assert not (tmp_path / "executed").exists()
    made = ledger_rows(tmp_path / "data", "SELECT COUNT(*) FROM results WHERE state='done'")
    assert made[0][0] >= 512


# ---------------------------------------------------------------------- interrupted runs


async def test_cancelling_loses_nothing_and_generate_can_be_called_again(
    units: Path, tmp_path: Path
) -> None:
    async def slow(text: str) -> str:
        await asyncio.sleep(0.005)
        return "A reader."

    seen: list[str] = []
    generator = generator_for(
        units, tmp_path / "data", persona_function=slow, progress=seen.append, concurrency=2
    )
    running = asyncio.create_task(generator.generate())
    while len(seen) < 4:
        await asyncio.sleep(0.001)
    with pytest.raises(RuntimeError, match="already running"):
        await generator.generate()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    made = len(seen)
    summary = await generator.generate()
    assert summary.resumed >= made
    assert summary.generated + summary.resumed == summary.written == len(questions(units)) == 12


async def test_a_run_that_is_cancelled_at_once_can_be_started_again(
    units: Path, tmp_path: Path
) -> None:
    generator = generator_for(units, tmp_path / "data", pipeline=Scripted())
    for hops in (1, 2, 3, 5, 8):
        running = asyncio.create_task(generator.generate())
        for _ in range(hops):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (await generator.generate()).written == 12


async def test_stopping_the_dispatcher_lets_what_is_in_flight_finish(
    qdrant: Path, tmp_path: Path
) -> None:
    dispatcher = LLMDispatcher([rehearsal_account()])
    counted: list[str] = []

    def progress(state: str) -> None:
        counted.append(state)
        if len(counted) == 5:
            dispatcher.stop(StopRun("interrupted", exit_code=130))

    summary = await generator_for(
        qdrant, tmp_path / "data", dispatcher=dispatcher, limit=100, progress=progress
    ).generate()
    assert (summary.stopped, summary.exit_code) == ("interrupted", 130)
    assert 5 <= summary.generated == summary.written < 100
    assert summary.failed == 0


async def test_an_interrupted_run_under_gates_does_not_embed_a_corpus_first(
    units: Path, tmp_path: Path
) -> None:
    """Somebody waits for it to end; the next start checks and writes."""
    embedded = 0

    def embed(texts: list[str]) -> list[list[float]]:
        nonlocal embedded
        embedded += len(texts)
        return words_as_vectors(texts)

    def write(asked: Asked, number: int) -> str:
        if len(program.asked) == 5:
            raise StopRun("interrupted", exit_code=130)
        return good_question(asked, number)

    program = Scripted(write)
    given = {"embedding": embed, "gates": "training", "concurrency": 1}
    stopped = await generator_for(units, tmp_path / "data", pipeline=program, **given).generate()
    assert (stopped.exit_code, stopped.generated, stopped.written) == (130, 4, 0)
    assert embedded == 0
    rest = await generator_for(units, tmp_path / "data", pipeline=Scripted(), **given).generate()
    assert (rest.generated, rest.written) == (8, 12)
    assert embedded > 12


async def test_a_cancelled_run_leaves_no_file_open(units: Path, tmp_path: Path) -> None:
    """Cancelled while its questions are written into the collection of a client that stays open."""
    client = QdrantClient(path=str(units), force_disable_check_same_thread=True)

    def opened() -> list[str]:
        files = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sorted(file for file in files if str(tmp_path / "data") in file)

    generator = generator_for(
        units,
        tmp_path / "data",
        qdrant_path=None,
        client=client,
        pipeline=Scripted(),
        progress=lambda state: None,
    )
    running = asyncio.create_task(generator.generate())
    while not list((tmp_path / "data" / "cache").glob("questions-*.sqlite")):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    client.close()
    assert opened() == []


async def test_cancelling_does_not_hold_up_the_loop_while_something_embeds(
    units: Path, tmp_path: Path
) -> None:
    """A large batch of personas on a small machine: its thread cannot be interrupted."""
    begun, beaten = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    was_free: list[bool] = []

    def slow(text: str) -> str:
        loop.call_soon_threadsafe(begun.set)
        was_free.append(beaten.wait(20))
        return "A reader."

    async def heartbeat() -> None:
        for _ in range(100):
            await asyncio.sleep(0.001)
        beaten.set()

    generator = generator_for(units, tmp_path / "data", pipeline=Scripted(), persona_function=slow)
    running = asyncio.create_task(generator.generate())
    await begun.wait()
    running.cancel()
    beating = asyncio.create_task(heartbeat())
    with pytest.raises(asyncio.CancelledError):
        await running
    await beating
    assert was_free[0]


async def test_a_restored_folder_gets_its_questions_again_without_a_call(
    units: Path, tmp_path: Path
) -> None:
    import shutil

    data, program = tmp_path / "data", Scripted()
    shutil.copytree(units, tmp_path / "backup")
    await generator_for(units, data, pipeline=program).generate()
    after = payloads(units)
    shutil.rmtree(units)
    shutil.copytree(tmp_path / "backup", units)
    summary = await generator_for(units, data, pipeline=program).generate()
    assert (summary.generated, summary.resumed, summary.written) == (0, 12, 12)
    assert len(program.asked) == 12
    for point_id, payload in payloads(units).items():
        for told in (payload, after[point_id]):
            told["generated_query_provenance"].pop("run")
        assert payload == after[point_id]


KILLED = """
import asyncio, sys
sys.path[:0] = sys.argv[1:3]
from generator_runs import account_at, generator_for
from question_optimizer.dispatcher import LLMDispatcher
from pathlib import Path
dispatcher = LLMDispatcher([account_at(sys.argv[3], concurrency=4)])
generator = generator_for(Path(sys.argv[4]), Path(sys.argv[5]), dispatcher=dispatcher)
asyncio.run(generator.generate())
"""


async def test_a_killed_run_keeps_the_first_step_that_was_paid_for(
    units: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    """The server answers first steps and sits on second ones, until the run is killed."""
    hangs = True

    def reply(messages: list[dict[str, Any]]) -> str:
        text = rehearsal.answer(messages)
        while hangs and "## query_type" not in text:
            time.sleep(0.005)
        return text

    server, data = llm_server(reply), tmp_path / "data"
    script = [sys.executable, "-W", "ignore", "-c", KILLED, str(ROOT / "tests"), str(ROOT)]
    running = subprocess.Popen(
        [*script, server.url, str(units), str(data)], env=clean_environment()
    )
    waits = time.monotonic() + 60
    while len(server.requests) < 9 and running.poll() is None and time.monotonic() < waits:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = len(server.requests)  # five slots' first steps, and the second ones of four
    hangs = False
    kept = ledger_rows(data, "SELECT calls, analysed FROM results WHERE state='pending'")
    assert kept == [(1, 1)] * len(kept)
    dispatcher = LLMDispatcher([account_at(server.url)])
    summary = await generator_for(units, data, dispatcher=dispatcher).generate()
    await dispatcher.aclose()
    assert summary.written == 12
    assert len(kept) == 5
    assert len(server.requests) - before == 2 * 12 - len(kept)


# ---------------------------------------------------------------------- other configurations


async def test_what_another_pipeline_made_is_kept_or_made_again_or_asked_about(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"

    async def run(state: str, **rest: Any) -> Any:
        program = Scripted(state=state)
        summary = await generator_for(units, data, pipeline=program, **rest).generate()
        return summary, len(program.asked)

    await run("first", limit=8)
    former = questions(units)
    with pytest.raises(ConfigurationChanged) as change:
        await run("second", changed="ask")
    assert change.value.exit_code == 2
    assert change.value.chunks == 8
    said = str(change.value)
    assert said.startswith("pipeline changed since 8 chunks of 'units' got their questions;")
    assert "--keep" in said
    assert "--redo makes all 8 again" in said
    kept, asked = await run("second")
    assert (kept.kept, kept.generated, asked) == (8, 4, 4)
    assert {i: q for i, q in questions(units).items() if i in former} == former
    undisturbed, asked = await run("second", changed="ask")  # once decided, it stays so
    assert (undisturbed.kept, asked) == (8, 0)
    redone, asked = await run("second", changed="redo")
    assert (redone.kept, redone.generated, redone.written, asked) == (0, 8, 8, 8)
    fingerprints = {
        payload["generated_query_provenance"]["configuration"]
        for payload in payloads(units).values()
    }
    assert len(fingerprints) == 1


async def test_a_chunk_that_two_configurations_did_is_one_chunk(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for state in ("first", "second"):
        program = Scripted(state=state)
        await generator_for(units, data, pipeline=program, changed="redo").generate()
    with pytest.raises(ConfigurationChanged) as change:
        await generator_for(units, data, pipeline=Scripted(state="3"), changed="ask").generate()
    assert change.value.chunks == 12


async def test_models_and_personas_are_part_of_the_configuration(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    await generator_for(units, data, pipeline=Scripted()).generate()
    for given, what in (
        ({"persona_function": lambda text: "Somebody else."}, "personas"),
        ({"dispatcher": LLMDispatcher([account_at("http://x", model="other")])}, "models"),
        ({"text_key": "text"}, "text key"),
    ):
        generator = generator_for(units, data, pipeline=Scripted(), changed="ask", **given)
        with pytest.raises(ConfigurationChanged, match=f"^{what} changed since 12 chunks"):
            await generator.generate()


async def test_going_back_to_a_configuration_pays_nothing_again(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    first, second = Scripted(state="first"), Scripted(state="second")
    await generator_for(units, data, pipeline=first).generate()
    await generator_for(units, data, pipeline=second, changed="redo").generate()
    back = await generator_for(units, data, pipeline=first).generate()
    assert (back.generated, back.failed) == (0, 0)
    assert (len(first.asked), len(second.asked)) == (12, 12)


# ---------------------------------------------------------------------- gates, policies, refills


def bad_for(*numbers: int, times: int = 1) -> Callable[[Asked, int], str]:
    """A pipeline's answers: refused so often for these chunks."""
    texts = {text_of(number) for number in numbers}

    def write(asked: Asked, n: int) -> str:
        return BAD if asked.chunk_text in texts and n < times else good_question(asked, n)

    return write


async def test_a_refused_question_is_asked_for_again_and_the_model_told_why(
    units: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    """As the server saw it; the first question of the chunk about unit 3 refers to its text."""

    def reply(messages: list[dict[str, Any]]) -> str:
        text, prompt = rehearsal.answer(messages), str(messages)
        if "## query_type" in text:
            return text.replace("keywords", "formal question")
        if "of unit 3 wears" in prompt and "was refused" not in prompt:
            return f"[[ ## query ## ]]\n{BAD}\n\n[[ ## completed ## ]]"
        unit = prompt.split(" wears by")[-2].split("The ")[-1]
        return f"[[ ## query ## ]]\nHow is the {unit} looked at by hand?\n\n[[ ## completed ## ]]"

    server, data = llm_server(reply), tmp_path / "data"
    dispatcher = LLMDispatcher([account_at(server.url)])
    summary = await generator_for(
        units, data, dispatcher=dispatcher, gates="training", limit=4
    ).generate()
    await dispatcher.aclose()
    assert (summary.generated, summary.refused, summary.written) == (4, 1, 4)
    assert (summary.calls, len(server.requests)) == (9, 9)
    told = [
        line
        for *_, body in server.requests
        for line in str(body["messages"][0]["content"]).splitlines()
        if "An earlier query was refused for" in line
    ]
    assert len(told) == 1
    assert "refers_outside" in told[0]
    assert BAD not in str([body["messages"] for *_, body in server.requests])
    assert ledger_rows(data, "SELECT query, gate, attempt FROM refusals") == [
        (BAD, "refers_outside", 1)
    ]
    assert ledger_rows(data, "SELECT calls, attempts FROM results WHERE chunk_id='3'") == [(3, 2)]


async def test_a_question_that_no_try_saved_is_given_up_and_retried_only_when_asked(
    units: Path, tmp_path: Path
) -> None:
    data, program = tmp_path / "data", Scripted(bad_for(2, times=4))
    given = {"pipeline": program, "gates": "training"}
    first = await generator_for(units, data, **given).generate()
    assert (first.generated, first.refused, first.rejected) == (11, 3, 1)
    assert 2 not in questions(units)
    assert len(program.asked) == 11 + 3
    again = await generator_for(units, data, **given).generate()
    assert (again.generated, again.rejected, len(program.asked)) == (0, 1, 14)
    asked = await generator_for(units, data, retry_rejected=True, **given).generate()
    assert (asked.generated, asked.rejected) == (1, 0)
    assert len(program.asked) == 16
    assert 2 in questions(units)


async def test_another_policy_looks_again_at_what_was_paid_for(units: Path, tmp_path: Path) -> None:
    data, program = tmp_path / "data", Scripted(bad_for(2, 5, times=9))
    given = {"pipeline": program, "refills": 0}
    recorded = await generator_for(units, data, **given).generate()
    assert (recorded.generated, recorded.refused, recorded.written) == (12, 0, 12)
    found = payloads(units)[2]["generated_query_provenance"]["findings"]
    assert found[0][0] == "refers_outside"
    strict = await generator_for(units, data, gates="training", **given).generate()
    assert (strict.rejected, len(program.asked)) == (2, 12)
    rows = list(map(json.loads, (data / "generated_questions.jsonl").read_text().splitlines()))
    assert {row["checked"] for row in rows} == {"training"}
    assert len(rows) == 10
    back = await generator_for(units, data, **given).generate()
    assert (back.rejected, len(program.asked)) == (0, 12)
    rows = list(map(json.loads, (data / "generated_questions.jsonl").read_text().splitlines()))
    assert len(rows) == 12
    assert {row["chunk_id"] for row in rows if "findings" in row} == {2, 5}


async def test_questions_refused_by_a_new_policy_do_not_hide_those_that_were_made(
    units: Path, tmp_path: Path
) -> None:
    data, program = tmp_path / "data", Scripted(bad_for(2, 5))
    await generator_for(units, data, pipeline=program).generate()
    strict = await generator_for(units, data, pipeline=program, gates="training").generate()
    assert len(program.asked) == 12 + 2
    assert (strict.rejected, strict.written) == (0, 2)
    assert strict.generated == 2


async def test_near_duplicates_over_the_corpus_are_asked_for_again(
    units: Path, tmp_path: Path
) -> None:
    """The same words for chunks 4 and 6; who comes second is asked for another question."""
    data, program = tmp_path / "data", Scripted(twins_at_first)
    summary = await generator_for(units, data, pipeline=program, gates="training").generate()
    assert (summary.generated, summary.refused, summary.rejected) == (12, 1, 0)
    assert len(program.asked) == 13
    assert "near_duplicate" in program.asked[-1].advice
    assert len(set(questions(units).values())) == 12


async def test_a_question_that_does_not_find_its_chunk_is_refused_for_training(
    tmp_path: Path,
) -> None:
    folder, data = corpus(tmp_path / "units", 30), tmp_path / "data"

    def write(asked: Asked, number: int) -> str:
        if asked.chunk_text == text_of(7):
            return "Why do zebras yawn when penguins sing opera at noon?"
        return good_question(asked, number)

    program = Scripted(write)
    given = {"pipeline": program, "gates": "training", "refills": 1, "limit": None}
    summary = await generator_for(folder, data, **given, max_rank=3).generate()
    assert summary.rejected == 1
    ((chunk, gate, reason),) = ledger_rows(
        data, "SELECT chunk_id, gate, reason FROM results WHERE state='rejected'"
    )
    assert (chunk, gate) == ("7", "round_trip")
    assert "of 30" in reason
    assert program.per_chunk().count(2) == 1
    assert summary.report["round_trip"]["questions"] == 31


async def test_a_run_with_nothing_to_check_embeds_nothing(units: Path, tmp_path: Path) -> None:
    embedded = 0

    def embed(texts: list[str]) -> list[list[float]]:
        nonlocal embedded
        embedded += len(texts)
        return words_as_vectors(texts)

    given = {"pipeline": Scripted(), "gates": "training", "embedding": embed}
    await generator_for(units, tmp_path / "data", **given).generate()
    before = embedded
    assert before >= 12
    await generator_for(units, tmp_path / "data", **given).generate()
    assert embedded == before


async def test_a_planned_question_gets_a_second_plan_in_the_same_run(
    units: Path, tmp_path: Path
) -> None:
    """Whatever is asked for first is refused; and the preview says how much that is at most."""
    program = Scripted(lambda asked, number: BAD)
    given = {"quotas": "even", "gates": "training", "refills": 1}
    preview = generator_for(units, tmp_path / "data", **given).preview()
    assert (preview.questions, preview.calls) == (12, 12)
    summary = await generator_for(units, tmp_path / "data", pipeline=program, **given).generate()
    assert summary.rejected == 12
    assert len(program.asked) == preview.most_calls == 12 * 4
    again = await generator_for(units, tmp_path / "data", pipeline=program, **given).generate()
    assert (again.rejected, len(program.asked)) == (12, 12 * 4)


def test_a_preview_of_a_program_of_the_hosts_own_guesses_its_prompts(
    units: Path, tmp_path: Path
) -> None:
    preview = generator_for(units, tmp_path / "data", pipeline=Scripted()).preview()
    assert preview.calls == 24
    assert preview.characters > 0


# ---------------------------------------------------------------------- quotas


async def test_planned_questions_take_one_call_and_meet_the_plan(
    qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    server, data = llm_server(), tmp_path / "data"
    dispatcher = LLMDispatcher([account_at(server.url)])
    summary = await generator_for(
        qdrant, data, dispatcher=dispatcher, limit=36, quotas="even"
    ).generate()
    await dispatcher.aclose()
    assert summary.generated == len(server.requests) == summary.calls == 36
    assert all("Write it in " in str(body["messages"][0]) for *_, body in server.requests)
    pairs = ledger_rows(data, "SELECT query_type, query_format FROM results")
    assert sorted(Counter(pairs).values()) == [2] * 6 + [4] * 6


async def test_quotas_are_met_over_the_whole_sample(qdrant: Path, tmp_path: Path) -> None:
    program = Scripted()
    summary = await generator_for(
        qdrant,
        tmp_path / "data",
        pipeline=program,
        limit=None,
        quotas="even",
        gates="off",
        persona_function=lambda text: "A reader.",
    ).generate()
    assert summary.generated + summary.failed == 648
    cells: Counter[Any] = Counter(
        ledger_rows(tmp_path / "data", "SELECT query_type, query_format, query_length FROM results")
    )
    assert cells.total() == 648
    assert total_variation(cells, dict(targets("even"))) < 1e-9


async def test_more_questions_than_the_quotas_have_kinds_are_refused(
    units: Path, tmp_path: Path
) -> None:
    generator = generator_for(units, tmp_path / "data", pipeline=Scripted(), per_chunk=13)
    with pytest.raises(UserError, match="allow 12 different questions a chunk"):
        await generator.generate()


# ---------------------------------------------------------------------- what happens meanwhile


async def test_a_question_that_came_while_ours_waited_stays_until_overwrite_is_asked_for(
    units: Path, tmp_path: Path
) -> None:
    data, program = tmp_path / "data", Scripted()
    await generator_for(units, data, pipeline=program, write_back=False).generate()
    change(units, {"generated_query": "the host's own?"}, 2)
    kept = await generator_for(units, data, pipeline=program).generate()
    assert (kept.written, questions(units)[2]) == (11, "the host's own?")
    over = await generator_for(units, data, pipeline=program, overwrite=True).generate()
    assert (over.written, len(program.asked)) == (1, 12)
    assert payloads(units)[2]["generated_query_provenance"]["former_query"] == "the host's own?"


async def test_a_persons_edit_outlives_a_stricter_policy(units: Path, tmp_path: Path) -> None:
    """The ledger's question is refused; what the person wrote is neither asked for nor touched."""
    data = tmp_path / "data"
    await generator_for(units, data, pipeline=Scripted(bad_for(3))).generate()
    change(units, {"generated_query": "How long does the bogie of unit 3 last?"}, 3)
    before = payloads(units)[3]
    program = Scripted()
    strict = generator_for(units, data, pipeline=program, gates="training", max_rank=100)
    summary = await strict.generate()
    assert (summary.refused, len(program.asked)) == (1, 0)
    assert payloads(units)[3] == before


async def test_a_qdrant_that_does_not_answer_once_ends_a_run_that_writes_what_it_made(
    tmp_path: Path,
) -> None:
    from qdrant_client.http.exceptions import ResponseHandlingException

    class Flaky(QdrantClient):
        """Does not answer when it is first asked for the last of seventy points."""

        failed = False

        def retrieve(self, collection_name: str, ids: Any, *args: Any, **kwargs: Any) -> Any:
            if 70 in ids and not self.failed:
                self.failed = True
                raise ResponseHandlingException(TimeoutError("timed out"))
            return super().retrieve(collection_name, ids, *args, **kwargs)

    folder = corpus(tmp_path / "units", 70)
    client = Flaky(path=str(folder), force_disable_check_same_thread=True)
    given = {"client": client, "qdrant_path": None, "limit": None, "pipeline": Scripted()}
    summary = await generator_for(folder, tmp_path / "data", **given).generate()
    assert summary.exit_code == summary.report["end"]["exit_code"] == 75
    assert "Qdrant did not answer" in summary.stopped
    assert 0 < summary.generated == summary.written < 70
    rest = await generator_for(folder, tmp_path / "data", **given).generate()
    client.close()
    assert (rest.exit_code, summary.generated + rest.generated) == (0, 70)
    assert len(questions(folder)) == 70


async def test_cancelling_does_not_wait_until_everything_is_checked(
    units: Path, tmp_path: Path
) -> None:
    """Three batches are to be checked; it is cancelled in the first."""
    data, texts = tmp_path / "data", 0
    begun, goes_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def embed(batch: list[str]) -> list[list[float]]:
        nonlocal texts
        if asked := sum(text.startswith("What of") for text in batch):
            texts += asked
            loop.call_soon_threadsafe(begun.set)
            goes_on.wait(20)
        return words_as_vectors(batch)

    given = {"pipeline": Scripted(), "gates": "training", "embedding": embed}
    await generator_for(units, data, **{**given, "gates": "record"}, limit=1).generate()
    with closing(Ledger(data / "generation.sqlite", Configuration("units", "", "", ()))) as any_one:
        (configuration,) = any_one.others()
    with closing(Ledger(any_one.path, configuration)) as ledger:
        (made,) = ledger.results("done")
        ledger.record([replace(made, slot=n, query=f"What of {n}?") for n in range(1, 1200)])
    running = asyncio.create_task(generator_for(units, data, **given).generate())
    await begun.wait()
    running.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert 0 < texts <= 500


async def test_questions_are_written_while_a_long_run_of_a_host_works(tmp_path: Path) -> None:
    """Through its open client, every five hundred: here when 42 chunks have nearly twelve."""
    folder = corpus(tmp_path / "units", 42)
    client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    there: list[int] = []

    def progress(state: str) -> None:
        there.append(generator.summary.written)

    generator = generator_for(
        folder,
        tmp_path / "data",
        qdrant_path=None,
        client=client,
        pipeline=Scripted(),
        per_chunk=12,
        limit=None,
        gates="off",
        progress=progress,
        concurrency=1,
    )
    summary = await generator.generate()
    client.close()
    assert (summary.generated, len(there)) == (504, 504)
    assert there[400] == 0 < there[-1]


# ---------------------------------------------------------------------- accounts that come and go


def one_question(asked: Asked, number: int) -> str:
    return "Which corrosion wears the brake pads after ten years of daily service?"


async def test_with_another_configuration_no_question_is_accepted_twice(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    given = {"gates": "training", "refills": 0, "max_rank": 100}
    first = Scripted(one_question, state="first")
    await generator_for(units, data, pipeline=first, limit=1, **given).generate()
    second = Scripted(one_question, state="second")
    kept = await generator_for(units, data, pipeline=second, limit=2, **given).generate()
    assert (kept.kept, kept.generated, kept.rejected, len(second.asked)) == (1, 0, 2, 2)
    assert list(questions(units)) == [1]
    assert len(list((data / "cache").glob("questions-*.sqlite"))) == 1


async def test_a_question_may_come_again_elsewhere_where_all_is_made_anew(
    units: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    given = {"gates": "training", "refills": 0, "max_rank": 100}
    first = Scripted(one_question, state="first")
    await generator_for(units, data, pipeline=first, limit=1, **given).generate()

    def write(asked: Asked, number: int) -> str:
        wanted = one_question if asked.chunk_text == text_of(2) else good_question
        return wanted(asked, number)

    anew = {"pipeline": Scripted(write, state="second"), "changed": "redo", "limit": 2}
    redone = await generator_for(units, data, **anew, **given).generate()
    assert (redone.generated, redone.rejected, redone.written) == (2, 0, 2)


async def test_what_an_interrupted_run_left_unchecked_is_checked_under_another_configuration(
    units: Path, tmp_path: Path
) -> None:
    """Ctrl-C under gates, then another account, and what was made is kept: two of it are alike."""
    data = tmp_path / "data"

    def write(asked: Asked, number: int) -> str:
        if len(first.asked) == 5:
            raise StopRun("interrupted", exit_code=130)
        alike = asked.chunk_text in (text_of(1), text_of(2))
        return one_question(asked, number) if alike else good_question(asked, number)

    first = Scripted(write, state="first")
    given = {"gates": "training", "concurrency": 1, "max_rank": 100}
    stopped = await generator_for(units, data, pipeline=first, **given).generate()
    assert (stopped.generated, stopped.written) == (4, 0)
    with QdrantFolder(units) as store:
        target = partial(target_over, store, units)
        assert apply(data / "generation.sqlite", "units", target, run="run") is None
    second = Scripted(state="second")
    summary = await generator_for(units, data, pipeline=second, **given).generate()
    assert (summary.kept, summary.generated, summary.refused) == (3, 9, 1)
    assert (summary.written, len(second.asked)) == (12, 9)
    assert len(set(questions(units).values())) == 12
    checked = ledger_rows(data, "SELECT DISTINCT checked FROM results WHERE state='done'")
    assert checked == [("training",)]
