"""Phase 5 of 5 · Generate: the optimised pipeline over the whole collection, written back in place.

As a script it works on a folder or server; inside an application, on its open client and accounts:

    python optimized_question_generator.py --qdrant-path path/to/qdrant

    from optimized_question_generator import OptimizedQuestionGenerator
    summary = await OptimizedQuestionGenerator(client=client, dispatcher=dispatcher).generate()

Reads   a Qdrant collection, data/optimized_pipeline.json, data/personas.json, llm_providers.toml
Writes  `generated_query` in the collection, data/generation.sqlite, data/generated_questions.jsonl,
        data/generation_summary.json, data/generation_report.html
Next    python export_questions.py
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from question_optimizer.errors import TRY_LATER, StopRun, UserError
from question_optimizer.generation.outcome import LEDGER, ConfigurationChanged, GenerationSummary

if TYPE_CHECKING:
    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.generation.backlog import Wanted
    from question_optimizer.generation.ledger import Ledger
    from question_optimizer.generation.ledger_records import Configuration
    from question_optimizer.generation.preview import Preview
    from question_optimizer.generation.quotas import Cell, QuotaPlan
    from question_optimizer.generation.round_trip import RoundTrip
    from question_optimizer.programs.generation_run import GenerationRun
    from question_optimizer.programs.production import Engine, Offload
    from question_optimizer.records import Persona

log = logging.getLogger(__name__)
DEFAULT_DATA_DIR = Path("data")
Policy = Literal["off", "record", "training", "evaluation"]


class OptimizedQuestionGenerator:
    """Writes questions for every chunk of a collection that has none, and stores them in place.

    client              an open QdrantClient (its folder admits no second one); or `vector_store`,
                        a LlamaIndex QdrantVectorStore; or `qdrant_path` / `qdrant_url`
    dispatcher          our LLMDispatcher, or the application's own with the same three methods
    persona_function    text -> persona description, plain or async; else `personas` are matched by
                        embedding (a list of Persona, or the path of a personas file)
    embedding           a model's name or folder, a LlamaIndex embedding, or a function from texts
                        to vectors; for personas and for the round trip
    pipeline            path of an optimised pipeline, a program with `acall`, or None for the
                        original prompts
    per_chunk, quotas   how many questions a chunk; with several, or with `quotas` ("even", "gold"
                        or the path of a file), type, format and length follow a plan
    gates               "record" keeps what the gates find beside each question, so that every
                        chunk gets one; "training" and "evaluation" refuse, ask again up to
                        `refills` times, and check that a question finds its chunk; "off"
    changed             chunks done under another configuration: "keep" them, "redo" them, or "ask",
                        which raises ConfigurationChanged
    overwrite           also chunks that have somebody else's `generated_query`
    limit               only the first so many that need a question, those of earlier runs included
    wait                sleep until a spent quota returns, and go on
    engine              where the work is done; this process where None is given
    concurrency         questions in work at once; by default what the accounts allow

    Reads no configuration of its own. Embedding, SQLite and Qdrant run off the event loop.
    """

    def __init__(
        self,
        *,
        client: Any = None,
        vector_store: Any = None,
        collection: str | None = None,
        qdrant_path: str | Path | None = None,
        qdrant_url: str | None = None,
        qdrant_api_key: str | None = None,
        dispatcher: Any = None,
        persona_function: Callable[[str], Any] | None = None,
        personas: Sequence[Persona] | str | Path | None = None,
        embedding: Any = None,
        pipeline: Any = DEFAULT_DATA_DIR / "optimized_pipeline.json",
        data_dir: str | Path = DEFAULT_DATA_DIR,
        text_key: str | None = None,
        per_chunk: int = 1,
        quotas: str | Path | None = None,
        gates: Policy = "record",
        refills: int = 2,
        max_rank: int | None = None,
        changed: Literal["ask", "keep", "redo"] = "keep",
        overwrite: bool = False,
        limit: int | None = None,
        retry_failed: bool = False,
        retry_rejected: bool = False,
        even_if_locked: bool = False,
        write_back: bool = True,
        wait: bool = False,
        seed: int = 0,
        engine: Engine | None = None,
        concurrency: int | None = None,
        progress: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
        wall: Callable[[], float] = time.time,
    ):
        if dispatcher is None:
            raise UserError(
                "OptimizedQuestionGenerator needs a dispatcher: an LLMDispatcher over your accounts"
            )
        _check_choices(gates, changed, per_chunk, refills, limit, concurrency, max_rank)
        if vector_store is not None:
            client = client or getattr(vector_store, "client", None)
            collection = collection or getattr(vector_store, "collection_name", None)
        self._client = client
        self._collection = collection
        self._qdrant_path = Path(qdrant_path) if qdrant_path else None
        self._qdrant_url = qdrant_url
        self._qdrant_api_key = qdrant_api_key
        self._dispatcher = dispatcher
        self._persona_function = persona_function
        self._personas = personas
        self._embedding = embedding
        self._pipeline = pipeline
        self._data_dir = Path(data_dir)
        self._text_key = text_key
        self._quotas = quotas
        self._policy = gates
        self._refills = refills
        self._max_rank = max_rank
        self._changed = changed
        self._per_chunk = per_chunk
        self._overwrite = overwrite
        self._limit = limit
        self._retry_failed, self._retry_rejected = retry_failed, retry_rejected
        self._even_if_locked = even_if_locked
        self._writes = write_back
        self._wait = wait
        self._seed = seed
        self._engine = engine
        self._concurrency = concurrency or _slots(dispatcher)
        self._progress = progress or (lambda state: None)
        self._stop = stop or threading.Event()
        self._wall = wall
        self._matcher: Any = None
        self._embedder: Any = None
        self._working = False
        self.summary = GenerationSummary()  # of the latest call of generate(), also while it runs

    # ------------------------------------------------------------------ personas

    def choose_appropriate_character(self, text: str) -> str:
        """The description of the persona that fits `text` best."""
        if self._persona_function is not None:
            chosen = self._persona_function(text)
            if inspect.isawaitable(chosen):
                raise TypeError(
                    "persona_function is async; generate() awaits it, this method cannot"
                )
            return str(chosen)
        return self._persona_matcher().choose_appropriate_character(text).description

    def _persona_matcher(self) -> Any:
        if self._matcher is None:
            from question_optimizer.personas import PersonaMatcher

            self._matcher = PersonaMatcher(self._persona_list(), self._embedding_model())
        return self._matcher

    def _embedding_model(self) -> Any:
        if self._embedder is None:
            from question_optimizer.embedding import DEFAULT_MODEL, embedder_of

            self._embedder = embedder_of(
                self._embedding or DEFAULT_MODEL, cache_dir=self._data_dir / "cache"
            )
        return self._embedder

    def _persona_list(self) -> list[Persona]:
        from question_optimizer.personas import load_personas

        source = self._data_dir / "personas.json" if self._personas is None else self._personas
        return load_personas(Path(source)) if isinstance(source, str | Path) else list(source)

    # ------------------------------------------------------------------ the run

    async def generate(self) -> GenerationSummary:
        """Work through the collection and return what was done.

        Resumes by itself: what was made is not made again, results not yet written are written.
        One chunk's failure is recorded and the run goes on; when no account can go on (quota spent,
        budget reached, interrupted) it ends early, with everything saved and the reason in
        `stopped`, or with `wait` sleeps until the quota returns. Cancelling it loses nothing.
        """
        if self._working:
            raise RuntimeError("generate() is already running on this generator")
        self._working = True
        started = self._wall()
        try:
            # DSPy takes a second to import, which is no second of the host's event loop.
            custom_lm = await asyncio.to_thread(importlib.import_module, "custom_lm")
            models = custom_lm.models_of(self._dispatcher, "student")
            summary = self.summary = GenerationSummary(models=models)
            summary.rehearsal = "rehearsal" in models
            async with self._opened() as session:
                report = partial(self._report, session, summary, started)
                try:
                    while not await self._went(session, summary):
                        await self._returned(summary)
                except BaseException as error:
                    if isinstance(error, UserError):
                        summary.ended(error)
                    if not isinstance(error, asyncio.CancelledError):
                        with contextlib.suppress(UserError, StopRun, OSError):
                            await session.run.io(report)
                    raise
                await session.run.io(report)
        finally:
            self._working = False
        return summary

    async def _went(self, session: GenerationRun, summary: GenerationSummary) -> bool:
        """One pass over the collection; whether that was the last."""
        summary.stopped, summary.until, summary.exit_code = "", None, 0
        if why := await session.go():
            summary.ended(why)
        waits = self._wait and summary.exit_code == TRY_LATER and summary.until is not None
        return not waits or self._stop.is_set()

    async def _returned(self, summary: GenerationSummary) -> None:
        """Sleep until the quota is back, or somebody wants the run to end."""
        from question_optimizer.generation.forecast import pause_until

        began = time.monotonic()
        reason = summary.stopped.partition(";")[0]
        log.warning("%s; everything is saved, waiting for it", reason)
        if summary.until is not None:
            await pause_until(summary.until, wall=self._wall, stopped=self._stop.is_set)
        summary.slept += time.monotonic() - began

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[GenerationRun]:
        """Everything a run needs, opened off the loop and closed whatever happens."""
        from question_optimizer.generation.ledger import Ledger
        from question_optimizer.locks import only_one
        from question_optimizer.programs.production import Offload

        lock = self._data_dir / f"{LEDGER}.lock"
        with only_one(lock, "another generator"), Offload() as run:
            await asyncio.to_thread(importlib.import_module, "dspy_pipeline")
            program = await run.io(self._load_program)
            store = await run.io(self._open_store)
            try:
                configuration = await run.io(lambda: self._configuration(store.collection, program))
                ledger = await run.io(lambda: Ledger(self._data_dir / LEDGER, configuration))
                try:
                    session = await run.io(lambda: self._session(run, store, ledger, program))
                    try:
                        yield session
                    finally:
                        run.over.set()  # what still runs on that thread ends soon, then it closes
                        await run.embedding(session.close)
                finally:
                    await run.io(ledger.close)
            finally:
                await run.io(store.close)

    def _session(
        self, run: Offload, store: ChunkStore, ledger: Ledger, program: Any
    ) -> GenerationRun:
        from question_optimizer.generation.backlog import Backlog
        from question_optimizer.generation.maintenance import target_over
        from question_optimizer.generation.outcome import Teller
        from question_optimizer.generation.repeats import index_path
        from question_optimizer.generation.stored_vectors import StoredVectors
        from question_optimizer.generation.write_back import new_run_id
        from question_optimizer.programs.generation_run import GenerationRun, characters_of
        from question_optimizer.programs.production import LocalEngine
        from question_optimizer.programs.question_worker import QuestionWorker

        wanted = self._wanted(ledger, program)
        if self._changed != "ask":
            ledger.decide(self._changed)
        backlog = Backlog(
            store,
            ledger,
            wanted,
            plan=partial(self._plan, ledger, wanted),
            text_key=self._text_key,
        )
        self._plan(ledger, wanted)  # what cannot be planned is said at once
        worker = QuestionWorker(
            program, self._dispatcher, policy=self._policy, refills=wanted.refills
        )
        vectors = StoredVectors(store, self._embedding_model(), self._text_key)
        self.summary.run = new_run_id(datetime.fromtimestamp(self._wall(), UTC))
        return GenerationRun(
            id=self.summary.run,
            run=run,
            store=store,
            ledger=ledger,
            engine=self._engine or LocalEngine(worker, self._concurrency),
            backlog=backlog,
            policy=self._policy,
            told=Teller(self.summary, backlog, self._progress),
            characters=lambda chunks: characters_of(
                chunks, run, self._persona_function, self._persona_matcher, vectors
            ),
            open_target=(partial(target_over, store, self._qdrant_path) if self._writes else None),
            always_open=self._client is not None,
            round_trip=partial(self._round_trip, store, run),
            index_path=index_path(self._data_dir / "cache", store.collection),
        )

    def _wanted(self, ledger: Ledger, program: Any) -> Wanted:
        from question_optimizer.generation.backlog import Wanted
        from question_optimizer.programs.question_worker import takes_advice

        return Wanted(
            per_chunk=self._per_chunk,
            policy=self._policy,
            refills=self._refills if takes_advice(program) else 0,
            overwrite=self._overwrite,
            changed=self._decided(ledger),
            retry_failed=self._retry_failed,
            retry_rejected=self._retry_rejected,
            limit=self._limit,
        )

    def _decided(self, ledger: Ledger) -> Literal["keep", "redo"]:
        """What becomes of chunks done under another configuration; once decided, it stays so."""
        if self._changed != "ask":
            return self._changed
        if decided := ledger.decision():
            settled = ledger.counts().total() - ledger.counts()["pending"]
            if decided == "redo" and settled < ledger.done_by_others():
                log.warning("going on with --redo, chosen earlier; --keep leaves the rest")
            return "redo" if decided == "redo" else "keep"
        others = [other for other, chunks in ledger.other_configurations() if chunks]
        if others:
            raise ConfigurationChanged(ledger.configuration, others, ledger.done_by_others())
        return "keep"

    def _plan(self, ledger: Ledger, wanted: Wanted) -> QuotaPlan | None:
        """How types, formats and lengths are to be spread; None leaves them to the pipeline."""
        from question_optimizer.generation.quotas import plan_for

        if (targets := self._targets()) is None:
            return None
        taken = ledger.cells(given_up=2 * wanted.tries)
        return plan_for(targets, self._per_chunk, seed=self._seed, taken=taken)

    def _targets(self) -> dict[Cell, float] | None:
        from question_optimizer.generation.quotas import targets_for

        return targets_for(self._quotas, self._per_chunk, gold=self._data_dir / "gold_dataset.json")

    def preview(self) -> Preview:
        """What generate() would ask for, without asking and without changing anything. Blocking."""
        from custom_lm import models_of
        from question_optimizer.generation.preview import ledger_to_look_at, preview
        from question_optimizer.programs.estimates import production_characters

        self.summary = GenerationSummary(models=models_of(self._dispatcher, "student"))
        program = self._load_program()
        store = self._open_store()
        try:
            configuration = self._configuration(store.collection, program)
            with ledger_to_look_at(self._data_dir / LEDGER, configuration) as ledger:
                wanted = self._wanted(ledger, program)
                return preview(
                    store,
                    ledger,
                    wanted,
                    plan=partial(self._plan, ledger, wanted),
                    text_key=self._text_key,
                    characters=partial(production_characters, program),
                )
        finally:
            store.close()

    def _round_trip(self, store: ChunkStore, run: Offload) -> RoundTrip:
        """The corpus as two retrievers see it; built on first use, kept on disk."""
        from question_optimizer.generation.corpus_index import open_index, read_store
        from question_optimizer.generation.round_trip import BANDS, RoundTrip
        from question_optimizer.generation.settling import until_stopped

        index = open_index(
            self._data_dir / "cache",
            store.collection,
            lambda: until_stopped(read_store(store, self._text_key), run.over.is_set),
            self._embedding_model(),
            progress=self.summary.indexed,
        )
        band = BANDS[self._policy]
        if self._max_rank is not None:
            band = replace(band, max_rank=self._max_rank)
        return RoundTrip(index, band)

    # ------------------------------------------------------------------ reading and writing

    def _open_store(self) -> ChunkStore:
        from question_optimizer.chunk_store import ClientStore, open_store

        if self._client is not None:
            return ClientStore(
                self._client, self._collection, where="the given client", owned=False
            )
        return open_store(
            path=self._qdrant_path,
            url=self._qdrant_url,
            api_key=self._qdrant_api_key,
            collection=self._collection,
            even_if_locked=self._even_if_locked,
        )

    def _load_program(self) -> Any:
        from dspy_pipeline import SyntheticQuestionPipeline, load_pipeline

        if self._pipeline is None:
            return SyntheticQuestionPipeline()
        if isinstance(self._pipeline, str | Path):
            return load_pipeline(Path(self._pipeline))
        return self._pipeline

    def _configuration(self, collection: str, program: Any) -> Configuration:
        """Whose questions these are, and what they depend on: pipeline, personas, models."""
        from question_optimizer.programs.generation_run import configuration_for

        asks = self._persona_list() if self._persona_function is None else self._persona_function
        return configuration_for(
            collection, program, asks, models=self.summary.models, text_key=self._text_key
        )

    def _report(self, session: GenerationRun, summary: GenerationSummary, started: float) -> None:
        """Every question of this configuration as JSONL, and what there is to say about them."""
        from question_optimizer.programs.generation_report import (
            is_due,
            script_command,
            write_report,
        )

        counts = session.ledger.counts()
        summary.rejected = counts["rejected"]
        session.told.look()
        if not is_due(self._data_dir, session.ledger.fingerprint, summary, slots=counts.total()):
            return
        command = ""  # an application's open client is no script's
        if self._client is None:
            where = (self._qdrant_path, self._qdrant_url, self._data_dir)
            command = script_command(session.store.collection, *where)
        write_report(
            self._data_dir,
            session,
            summary,
            targets=self._targets(),
            settings={"per_chunk": self._per_chunk, "refills": self._refills},
            started=started,
            wall=self._wall,
            accounts=getattr(self._engine or self._dispatcher, "snapshot", list)(),
            seed=self._seed,
            command=command,
        )


QuestionGenerator = OptimizedQuestionGenerator  # the existing application's name for it


def _check_choices(gates: str, changed: str, per_chunk: int, refills: int, *least: Any) -> None:
    """UserError for what no run could mean. `least` are numbers from 0 or 1 on, or None."""
    from question_optimizer.generation.checks import POLICIES

    for name, value, allowed in (
        ("gates", gates, POLICIES),
        ("changed", changed, ("ask", "keep", "redo")),
    ):
        if value not in allowed:
            raise UserError(f"{name}={value!r} is none of: {', '.join(allowed)}")
    if per_chunk < 1 or refills < 0:
        raise UserError(f"per_chunk={per_chunk}, refills={refills}: at least 1 and 0 are needed")
    for name, lowest, number in zip(
        ("limit", "concurrency", "max_rank"), (0, 1, 1), least, strict=True
    ):
        if number is not None and number < lowest:
            raise UserError(f"{name}={number}: at least {lowest} is needed")


def _slots(dispatcher: Any) -> int:
    """How many questions to work on at once: the student accounts' total concurrency, and some
    more that wait for the ledger meanwhile."""
    if hasattr(dispatcher, "slots"):
        slots = max(1, dispatcher.slots("student"))
        return slots + (slots + 3) // 4
    return max(
        1, sum(getattr(c, "concurrency", 1) or 1 for c in getattr(dispatcher, "clients", []))
    )


def main(argv: list[str] | None = None) -> int:
    from question_optimizer.programs.generation_script import run_script

    return run_script(argv, __doc__, OptimizedQuestionGenerator)


if __name__ == "__main__":
    from question_optimizer.cli import run

    sys.exit(run(main))
