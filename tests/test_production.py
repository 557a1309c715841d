"""Batches of chunks through an engine into the ledger, and what one job comes to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generator_runs import Asked, Scripted, good_question, text_of
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import StopRun, UserError
from question_optimizer.generation.backlog import Todo
from question_optimizer.generation.checks import text_digest
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result
from question_optimizer.programs.production import Character, Offload, Production
from question_optimizer.programs.question_worker import Job, Keep, QuestionWorker
from question_optimizer.providers import rehearsal_account
from question_optimizer.records import Chunk

STOP = StopRun("quota spent", exit_code=75)


class CountingLedger(Ledger):
    """How many transactions it took, and on which threads."""

    def __init__(self, path: Path):
        super().__init__(path, Configuration("units", "p", "q", ("m",)))
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        self.before: Callable[[], object] = lambda: None

    def record(
        self, results: Sequence[Result], refusals: Sequence[tuple[Any, int, Refusal]] = ()
    ) -> None:
        self.before()
        self.sizes.append(len(results))
        self.threads.add(threading.current_thread().name)
        super().record(results, refusals)


class Engine:
    """Answers each job by `answer`, in `seconds`, the first at once; remembers what was begun and
    what was ended."""

    def __init__(self, slots: int = 4, *, seconds: float = 0.0, answer: Any = None):
        self.slots = slots
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled = 0
        self._seconds = seconds
        self._answer = answer or (lambda job: done(job))

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def do(self, job: Job, keep: Keep | None = None) -> tuple[Result, list[Refusal]]:
        self.begun.append(job.chunk_id)
        try:
            await asyncio.sleep(self._seconds if job.chunk_id else 0.0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        result = self._answer(job)
        self.ended.append(job.chunk_id)
        return result, []


def done(job: Job) -> Result:
    return replace(job.so_far, state="done", query=f"question {job.chunk_id}?", attempts=1)


def batches(count: int, size: int = 16) -> Iterator[list[Todo]]:
    chunks = [Chunk(chunk_id=number, chunk_text=text_of(number)) for number in range(count)]
    for start in range(0, count, size):
        yield [Todo(chunk, [slot_of(chunk)]) for chunk in chunks[start : start + size]]


def slot_of(chunk: Chunk) -> Result:
    return Result(chunk.chunk_id, text_sha256=text_digest(chunk.chunk_text))


class Told:
    """Whoever counts; `on` is called with the number of results so far."""

    def __init__(self, on: Callable[[int], object] = lambda n: None):
        self.results: list[Result] = []
        self._on = on

    async def __call__(self, result: Result) -> None:
        self.results.append(result)
        self._on(len(self.results))


async def everybody(texts: Sequence[str]) -> list[Character]:
    return [Character("A reader.", "reader") for _ in texts]


async def produce(
    ledger: Ledger,
    engine: Engine,
    work: Iterator[list[Todo]],
    told: Told | None = None,
    characters: Any = everybody,
) -> None:
    with Offload() as run:
        production = Production(
            engine,
            ledger,
            run,
            characters=characters,
            told=told or Told(),
            spent=lambda result, before: None,
        )
        await production.work(work)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[CountingLedger]:
    its = CountingLedger(tmp_path / "generation.sqlite")
    yield its
    its.close()


# ---------------------------------------------------------------------- production


async def test_every_slot_is_recorded_once_with_its_persona(ledger: CountingLedger) -> None:
    engine, told = Engine(), Told()
    await produce(ledger, engine, batches(40), told)
    assert sorted(engine.begun) == sorted(engine.ended) == list(range(40))
    results = list(ledger.results("done"))
    assert len(results) == len(told.results) == 40
    assert {result.persona_id for result in results} == {"reader"}


async def test_results_that_come_in_together_share_a_transaction(ledger: CountingLedger) -> None:
    await produce(ledger, Engine(slots=32), batches(64))
    assert sum(ledger.sizes) == 64
    assert len(ledger.sizes) <= 16
    assert ledger.threads == {"generator-io_0"}, "never the loop's own thread"


async def test_a_result_is_on_disk_before_it_is_told(ledger: CountingLedger) -> None:
    counts = []
    told = Told(lambda n: counts.append((n, ledger.counts()["done"])))
    await produce(ledger, Engine(), batches(20), told)
    assert len(counts) == 20
    assert all(on_disk >= n for n, on_disk in counts)


async def test_no_more_jobs_are_in_work_than_the_engine_has_slots(ledger: CountingLedger) -> None:
    engine = Engine(slots=3, seconds=0.001)
    most = 0

    def in_work(job: Job) -> Result:
        nonlocal most
        most = max(most, len(engine.begun) - len(engine.ended))
        return done(job)

    engine._answer = in_work
    await produce(ledger, engine, batches(24))
    assert most == 3


async def test_a_ledger_that_cannot_be_written_ends_the_run(ledger: CountingLedger) -> None:
    """As on a full disk: its file is closed under it."""
    engine = Engine(slots=4)
    told = Told(lambda n: ledger.close() if n == 5 else None)
    with pytest.raises(StopRun, match="cannot be used"):
        await produce(ledger, engine, batches(64), told)
    assert len(engine.begun) < 64


async def test_a_stop_lets_calls_in_flight_end_and_begins_no_other(
    ledger: CountingLedger,
) -> None:
    def answer(job: Job) -> Result:
        if len(engine.ended) >= 10:
            raise STOP
        return done(job)

    engine = Engine(slots=4, seconds=0.002, answer=answer)
    with pytest.raises(StopRun, match="quota spent"):
        await produce(ledger, engine, batches(64))
    assert engine.cancelled == 0
    assert len(engine.begun) <= len(engine.ended) + 4
    assert ledger.counts()["done"] == len(engine.ended) == 10


async def test_a_collection_that_breaks_off_costs_nothing_that_was_begun(
    ledger: CountingLedger,
) -> None:
    def breaking() -> Iterator[list[Todo]]:
        yield from batches(16)
        raise UserError("point 17: cannot be read safely")

    engine = Engine(slots=4, seconds=0.01)
    with pytest.raises(UserError, match="point 17"):
        await produce(ledger, engine, breaking())
    assert engine.cancelled == 0
    assert ledger.counts()["done"] == len(engine.ended) == len(engine.begun)


async def test_cancelling_keeps_what_was_told(
    ledger: CountingLedger,
) -> None:
    engine, told = Engine(slots=8, seconds=0.005), Told()
    running = asyncio.create_task(produce(ledger, engine, batches(600), told))
    while len(told.results) < 20:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.cancelled > 0
    assert ledger.counts()["done"] >= len(told.results)


async def test_cancelling_keeps_what_was_answered_while_a_transaction_was_being_written(
    ledger: CountingLedger,
) -> None:
    """The first transaction takes long; all others wait for it when the run is cancelled."""
    written = threading.Event()
    ledger.before = written.wait
    engine = Engine(slots=8, seconds=0.005)
    running = asyncio.create_task(produce(ledger, engine, batches(64)))
    while len(engine.ended) < 8:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    running.cancel()
    threading.Timer(0.05, written.set).start()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.05)
    assert ledger.counts()["done"] == len(engine.ended) == 8


async def test_a_host_that_fails_to_count_ends_the_run(ledger: CountingLedger) -> None:
    """A progress function of the host's that raises is the host's error, and it hears of it."""

    def on(n: int) -> None:
        if n == 3:
            raise ValueError("the host's own")

    with pytest.raises(ValueError, match="the host's own"):
        await produce(ledger, Engine(), batches(64), Told(on))


async def test_a_chunk_without_a_persona_fails_and_the_rest_goes_on(
    ledger: CountingLedger,
) -> None:
    async def characters(texts: Sequence[str]) -> list[Character]:
        found = await everybody(texts)
        return [Character("", problem="no persona: ValueError: no fit"), *found[1:]]

    engine = Engine()
    await produce(ledger, engine, batches(8), characters=characters)
    assert ledger.counts() == {"done": 7, "failed": 1}
    (failed,) = ledger.results("failed")
    assert (failed.chunk_id, failed.reason) == (0, "no persona: ValueError: no fit")
    assert 0 not in engine.begun


# ---------------------------------------------------------------------- one job


def worker_of(program: Any, policy: str = "training", refills: int = 2) -> QuestionWorker:
    dispatcher = LLMDispatcher([rehearsal_account()])
    return QuestionWorker(program, dispatcher, policy=policy, refills=refills)


def job_of(*refusals: Refusal, **so_far: Any) -> Job:
    text = text_of(1)
    slot = Result(1, text_sha256=text_digest(text), **so_far)
    return Job(1, text, "A reader.", slot, refusals)


class Kept:
    """What a worker gave to be kept, in order."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.refusals: list[Refusal] = []

    async def __call__(self, result: Result, refusals: Sequence[Refusal]) -> None:
        self.results.append(result)
        self.refusals += refusals


BAD = "What does this section say about it?"


def bad_until(n: int) -> Callable[[Asked, int], str]:
    return lambda asked, number: BAD if number < n else good_question(asked, number)


async def test_a_refused_question_is_asked_for_again_with_the_reason_told() -> None:
    program, kept = Scripted(bad_until(1)), Kept()
    result, refusals = await worker_of(program).do(job_of(), kept)
    assert (result.state, result.attempts, result.gate, result.reason) == ("done", 2, "", "")
    assert ([refusal.query for refusal in kept.refusals], refusals) == ([BAD], [])
    assert len(program.analysed) == 1
    first, second = (asked.advice for asked in program.asked)
    assert first == ""
    assert "refused for: refers_outside" in second
    assert BAD not in second


async def test_a_slot_is_rejected_when_its_tries_are_used_up() -> None:
    program, kept = Scripted(bad_until(9)), Kept()
    result, refusals = await worker_of(program, refills=2).do(job_of(), kept)
    assert (result.state, result.attempts, result.query) == ("rejected", 3, None)
    assert result.gate == "refers_outside"
    assert len([*kept.refusals, *refusals]) == len(program.asked) == 3
    assert program.asked[-1].advice.count("refused for") == 2


async def test_a_policy_that_records_keeps_the_question_with_what_was_found() -> None:
    result, refusals = await worker_of(Scripted(bad_until(9)), "record").do(job_of())
    assert (result.state, result.query, refusals) == ("done", BAD, [])
    assert result.findings[0][0] == "refers_outside"


async def test_nothing_is_looked_at_where_gates_are_off() -> None:
    result, _ = await worker_of(Scripted(bad_until(9)), "off").do(job_of())
    assert (result.state, result.query, result.findings) == ("done", BAD, ())
    assert result.checked == "off", "or a killed run would leave it to look as if it had passed"


async def test_a_slot_with_type_and_format_takes_no_first_step() -> None:
    program = Scripted()
    planned: dict[str, Any] = {
        "query_type": "reasoning",
        "query_format": "keywords",
        "query_length": "short",
    }
    result, _ = await worker_of(program).do(job_of(**planned))
    assert program.analysed == []
    assert program.asked[0].advice == "Write it in 2 to 3 words."
    assert (result.query_type, result.query_length) == ("reasoning", "short")
    assert result.analysed is False


async def test_a_question_that_is_longer_than_planned_is_refused() -> None:
    planned: dict[str, Any] = {
        "query_type": "reasoning",
        "query_format": "keywords",
        "query_length": "short",
    }
    program = Scripted(lambda asked, n: "brake pads friction wear hand" if n == 0 else "brake pads")
    kept = Kept()
    result, _ = await worker_of(program).do(job_of(**planned), kept)
    assert [refusal.gate for refusal in kept.refusals] == ["planned_length"]
    assert (result.state, result.query) == ("done", "brake pads")


async def test_the_first_step_is_kept_before_the_second_begins() -> None:
    class Before(Kept):
        async def __call__(self, result: Result, refusals: Sequence[Refusal]) -> None:
            assert program.asked == []
            await super().__call__(result, refusals)

    program, kept = Scripted(), Before()
    await worker_of(program).do(job_of(), kept)
    assert [(one.state, one.query_type, one.analysed) for one in kept.results] == [
        ("pending", "fact retrieval", True)
    ]


async def test_a_second_step_that_fails_keeps_the_first() -> None:
    def fails(asked: Asked, number: int) -> str:
        raise ConnectionError("no route")

    result, _ = await worker_of(Scripted(fails)).do(job_of())
    assert (result.state, result.reason) == ("failed", "ConnectionError: no route")
    assert (result.query_type, result.analysed, result.attempts) == ("fact retrieval", True, 1)
    again = Scripted()
    result, _ = await worker_of(again).do(replace(job_of(), so_far=result))
    assert (result.state, result.attempts, again.analysed) == ("done", 2, [])


async def test_a_program_without_steps_is_asked_once_and_never_again() -> None:
    class Whole:
        asked = 0

        async def acall(self, chunk_text: str, persona_description: str) -> Any:
            import dspy

            self.asked += 1
            return dspy.Prediction(query=BAD, query_type="reasoning", query_format="keywords")

    program = Whole()
    result, refusals = await worker_of(program).do(job_of())
    assert (result.state, len(refusals), program.asked) == ("rejected", 1, 1)
    assert result.query_type == "reasoning"


async def test_a_question_of_several_lines_becomes_one() -> None:
    program = Scripted(lambda asked, n: " How do\n pantographs\twear?\n")
    result, _ = await worker_of(program, "off").do(job_of())
    assert result.query == "How do pantographs wear?"


async def test_a_refused_question_is_kept_before_the_next_is_asked_for() -> None:
    """Two paid calls, a kill or a spent quota in the third: the next start knows of both."""

    def write(asked: Asked, number: int) -> str:
        if number == 2:
            raise STOP
        return BAD

    kept = Kept()
    with pytest.raises(StopRun):
        await worker_of(Scripted(write)).do(job_of(), kept)
    assert [refusal.query for refusal in kept.refusals] == [BAD, BAD]
    assert (kept.results[-1].attempts, kept.results[-1].state) == (2, "rejected")


async def test_a_slot_refused_before_has_only_the_tries_that_are_left() -> None:
    """One was used up, as when its question was found to repeat another's."""
    before = Refusal("What is it?", "near_duplicate", "repeats another")
    program, kept = Scripted(bad_until(9)), Kept()
    job = job_of(
        before,
        state="rejected",
        attempts=1,
        gate="near_duplicate",
        query_type="reasoning",
        query_format="formal question",
    )
    result, refusals = await worker_of(program, refills=2).do(job, kept)
    assert result.attempts == 3
    assert len([*kept.refusals, *refusals]) == 2
    assert "near_duplicate" in program.asked[0].advice
