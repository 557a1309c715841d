"""Batches of chunks through an engine into the ledger: one producer, a consumer for every slot.

The ledger has a result before the consumer takes the next job, so a killed run asks again at most
what was in flight. Results that come in together share one transaction.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from question_optimizer.generation.backlog import Todo
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.programs.question_worker import Job, Keep, QuestionWorker
from question_optimizer.records import Chunk, PointId

T = TypeVar("T")


class Engine(Protocol):
    """Where jobs are done: in this process, or on a cluster."""

    slots: int  # jobs that can usefully be in work at once

    async def open(self) -> None: ...

    async def do(self, job: Job, keep: Keep | None = None) -> tuple[Result, list[Refusal]]: ...

    async def close(self) -> None: ...


class LocalEngine:
    """Jobs done on the event loop that asks for them."""

    def __init__(self, worker: QuestionWorker, slots: int):
        self.slots = slots
        self._worker = worker

    async def do(self, job: Job, keep: Keep | None = None) -> tuple[Result, list[Refusal]]:
        return await self._worker.do(job, keep)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Character(NamedTuple):
    """Who asks; a problem where that could not be told."""

    description: str
    id: str | None = None
    problem: str = ""


class Offload:
    """Two threads of our own, so that blocking work never takes the loop's default executor,
    which DSPy hops through on every call: files and Qdrant on one, embedding on the other."""

    def __init__(self) -> None:
        self.over = threading.Event()  # for work that nobody waits for any more

    def __enter__(self) -> Offload:
        self._io = ThreadPoolExecutor(1, thread_name_prefix="generator-io")
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="generator-embedding")
        return self

    def __exit__(self, *exc: object) -> None:
        # Not waited for: this is the host's event loop, and an index may be hours from its end.
        self.over.set()
        self._io.shutdown(wait=False)
        self._embedding.shutdown(wait=False, cancel_futures=True)

    async def io(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._io, work)

    async def embedding(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._embedding, work)


class Production:
    """One run's machinery.

    After a result is in the ledger `spent` hears of it and of what the slot was before, also of a
    slot on its way; `told` hears of one that is out.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        run: Offload,
        *,
        characters: Callable[[list[Chunk]], Awaitable[Sequence[Character]]],
        told: Callable[[Result], Awaitable[None]],
        spent: Callable[[Result, Result], None],
    ):
        self._engine = engine
        self._run = run
        self._ledger = ledger
        self._recorder = _Recorder(ledger, run)
        self._characters = characters
        self._told = told
        self._spent = spent

    async def work(self, batches: Iterator[list[Todo]]) -> None:
        """Do all of `batches`. StopRun ends it early: what is in flight may end, nothing begins."""
        queue: asyncio.Queue[Job | None] = asyncio.Queue(maxsize=2 * self._engine.slots)
        producer = asyncio.create_task(self._produce(batches, queue))
        consumers = [asyncio.create_task(self._consume(queue)) for _ in range(self._engine.slots)]
        tasks = [producer, *consumers]
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            await _cancel(tasks)
            await self._recorder.drained()
            raise
        except BaseException:
            await _let_finish(producer, consumers, queue)
            raise

    async def _produce(
        self, batches: Iterator[list[Todo]], queue: asyncio.Queue[Job | None]
    ) -> None:
        """Put every slot that wants a question on the queue, with its persona; then the Nones."""
        while batch := await self._run.io(lambda: next(batches, None)):
            characters = await self._characters([todo.chunk for todo in batch])
            for todo, character in zip(batch, characters, strict=True):
                for slot in todo.slots:
                    await self._hand_out(todo, slot, character, queue)
        for _ in range(self._engine.slots):
            await queue.put(None)

    async def _hand_out(
        self, todo: Todo, slot: Result, character: Character, queue: asyncio.Queue[Job | None]
    ) -> None:
        slot = replace(slot, persona_id=character.id)
        if character.problem:
            failed = replace(slot, state="failed", reason=character.problem)
            await self._recorder.put([failed])
            await self._told(failed)
            return
        refusals: list[Refusal] = []
        if slot.attempts:
            read = partial(self._ledger.refusals_of, slot.chunk_id, slot.slot)
            refusals = await self._run.io(read)
        await queue.put(
            Job(
                chunk_id=todo.chunk.chunk_id,
                chunk_text=todo.chunk.chunk_text,
                persona_description=character.description,
                so_far=slot,
                refusals=tuple(refusals),
            )
        )

    async def _consume(self, queue: asyncio.Queue[Job | None]) -> None:
        while (job := await queue.get()) is not None:
            slot = job.so_far

            async def keep(result: Result, refusals: Sequence[Refusal]) -> None:
                nonlocal slot
                await self._record(result, refusals)
                self._spent(result, slot)
                slot = result

            result, refusals = await self._engine.do(job, keep)
            await self._record(result, refusals)
            self._spent(result, slot)
            await self._told(result)

    async def _record(self, result: Result, refusals: Sequence[Refusal]) -> None:
        await self._recorder.put([result], [(result.chunk_id, result.slot, r) for r in refusals])


class _Recorder:
    """Group commit: while one transaction is written, whatever comes in waits for the next."""

    def __init__(self, ledger: Ledger, run: Offload):
        self._ledger = ledger
        self._run = run
        self._waiting: list[tuple[list[Result], list[Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def put(
        self, results: list[Result], refusals: Sequence[tuple[PointId, int, Refusal]] = ()
    ) -> None:
        """Return when all of it is on disk."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((results, list(refusals), written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await asyncio.shield(written)

    async def drained(self) -> None:
        """Wait for what was handed in, though nobody else waits for it any more."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            results = [result for some, _, _ in batch for result in some]
            refusals = [refusal for _, some, _ in batch for refusal in some]
            problem: BaseException | None = None
            try:
                await self._run.io(partial(self._ledger.record, results, refusals))
            except BaseException as error:  # whoever waits must hear of it
                problem = error
            for *_, written in batch:
                if not written.done():
                    if problem is None:
                        written.set_result(None)
                    else:
                        written.set_exception(problem)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _let_finish(
    producer: asyncio.Task[None],
    consumers: Sequence[asyncio.Task[None]],
    queue: asyncio.Queue[Job | None],
) -> None:
    """End a run early: no new chunk is begun, calls in flight are paid for and may end."""
    await _cancel([producer])
    while not queue.empty():
        queue.get_nowait()
    for _ in consumers:
        queue.put_nowait(None)
    await asyncio.gather(*consumers, return_exceptions=True)
