"""Phase 5 of 5 · Generate: the optimised pipeline over the whole collection, written back in place.

As a script it works on a folder or server; inside an application, on its open client and accounts:

    python optimized_question_generator.py --qdrant-path path/to/qdrant

    from optimized_question_generator import OptimizedQuestionGenerator
    summary = await OptimizedQuestionGenerator(client=client, dispatcher=dispatcher).generate()

Reads   a Qdrant collection, data/optimized_pipeline.json, data/personas.json, llm_providers.toml
Writes  `generated_query` in the collection, data/generation.sqlite, data/generated_questions.jsonl
Next    train and test the retrieval model
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from question_optimizer import files
from question_optimizer.errors import FAILED_ITEMS, StopRun, UserError, reason_of

if TYPE_CHECKING:
    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.ledger import Ledger, Result
    from question_optimizer.records import Chunk, Persona, PointId

T = TypeVar("T")
OUTPUT = "generated_questions.jsonl"
LEDGER = "generation.sqlite"
DEFAULT_DATA_DIR = Path("data")
_BATCH = 64  # chunks whose personas are matched together
_PROBLEMS_SHOWN = 10
_WRITE_EVERY = 50  # results between two write-backs through a client that is open anyway


@dataclass
class GenerationSummary:
    """What one call of `generate` found and did. Counts are of chunks."""

    points: int = 0
    already_there: int = 0  # had a generated_query before
    resumed: int = 0  # made by an earlier, interrupted run
    without_text: int = 0
    beyond_limit: int = 0
    generated: int = 0
    failed: int = 0
    written: int = 0
    missing: int = 0  # gone from the collection before their question could be written
    tokens: int = 0
    cost: float = 0.0
    rehearsal: bool = False
    stopped: str = ""  # why the run ended early, '' if it did not
    exit_code: int = 0
    models: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # chunk id -> reason, the first few

    @property
    def to_do(self) -> int:
        """Points that are, as far as is known by now, this run's to work on."""
        known = self.already_there + self.resumed + self.without_text + self.beyond_limit
        return self.points - known


@dataclass(frozen=True)
class _Character:
    description: str
    id: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Job:
    chunk: Chunk
    persona: _Character


class OptimizedQuestionGenerator:
    """Writes one question for every chunk of a collection that has none, and stores it in place.

    client              an open QdrantClient (its folder admits no second one); or `vector_store`,
                        a LlamaIndex QdrantVectorStore; or `qdrant_path` / `qdrant_url`
    dispatcher          our LLMDispatcher, or the application's own with the same three methods
    persona_function    text -> persona description, plain or async; else `personas` are matched by
                        embedding (a list of Persona, or the path of a personas file)
    pipeline            path of an optimised pipeline, a program with `acall`, or None for the
                        original prompts
    concurrency         chunks in work at once; by default what the accounts allow
    overwrite           also chunks that have a `generated_query` already
    limit               only the first so many that need a question, those of earlier runs included

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
        pipeline: Any = DEFAULT_DATA_DIR / "optimized_pipeline.json",
        data_dir: str | Path = DEFAULT_DATA_DIR,
        embedding_model: str | None = None,
        text_key: str | None = None,
        concurrency: int | None = None,
        overwrite: bool = False,
        limit: int | None = None,
        even_if_locked: bool = False,
        progress: Callable[[bool], None] | None = None,
    ):
        if dispatcher is None:
            raise UserError(
                "OptimizedQuestionGenerator needs a dispatcher: an LLMDispatcher over your accounts"
            )
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
        self._pipeline = pipeline
        self._data_dir = Path(data_dir)
        self._embedding_model = embedding_model
        self._text_key = text_key
        self._overwrite = overwrite
        self._limit = limit
        self._even_if_locked = even_if_locked
        self._progress = progress or (lambda failed: None)
        self._concurrency = concurrency or _slots(dispatcher)
        self._matcher: Any = None
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
            from question_optimizer.embedding import DEFAULT_MODEL, Embedder
            from question_optimizer.personas import PersonaMatcher

            embedder = Embedder(
                self._embedding_model or DEFAULT_MODEL, cache_dir=self._data_dir / "cache"
            )
            self._matcher = PersonaMatcher(self._persona_list(), embedder)
        return self._matcher

    def _persona_list(self) -> list[Persona]:
        from question_optimizer.personas import load_personas

        source = self._data_dir / "personas.json" if self._personas is None else self._personas
        return load_personas(Path(source)) if isinstance(source, str | Path) else list(source)

    async def _characters(self, texts: list[str], run: _Offload) -> list[_Character]:
        """Who asks about each text. One text's failure is its own."""
        if self._persona_function is None:
            matched = await run.embedding(lambda: self._persona_matcher().choose(texts))
            return [_Character(persona.description, persona.id) for persona in matched]
        return [await self._character(self._persona_function, text, run) for text in texts]

    async def _character(
        self, function: Callable[[str], Any], text: str, run: _Offload
    ) -> _Character:
        try:
            chosen = await run.embedding(lambda: function(text))
            if inspect.isawaitable(chosen):  # an async function, or anything that returns one
                chosen = await chosen
        except Exception as error:  # the host's code: this chunk fails, with the reason
            return _Character("", problem=f"no persona: {reason_of(error)}")
        return _Character(str(chosen))

    # ------------------------------------------------------------------ the run

    async def generate(self) -> GenerationSummary:
        """Work through the collection and return what was done.

        Resumes by itself: chunks that have their question are passed over, results not yet written
        are written. One chunk's failure is recorded and the run goes on; when no account can go on
        (quota spent, budget reached, interrupted) it ends early, with everything saved and the
        reason in `stopped`. Cancelling it loses nothing either.
        """
        from custom_lm import models_of

        if self._working:
            raise RuntimeError("generate() is already running on this generator")
        self._working = True
        summary = self.summary = GenerationSummary(models=models_of(self._dispatcher, "student"))
        summary.rehearsal = "rehearsal" in summary.models
        try:
            async with self._opened() as (run, store, ledger, program):
                try:
                    await self._work(run, store, ledger, program, summary)
                finally:
                    await run.io(lambda: self._export(ledger, summary, store.collection))
        finally:
            self._working = False
        return summary

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[_Offload, ChunkStore, Ledger, Any]]:
        """Everything a run needs, opened off the loop and closed whatever happens."""
        from question_optimizer.ledger import Ledger
        from question_optimizer.locks import only_one

        lock = self._data_dir / f"{LEDGER}.lock"
        program = self._load_program()
        with only_one(lock, "another generator"), _Offload() as run:
            store = await run.io(self._open_store)
            try:
                fingerprint = await run.io(lambda: self._fingerprint(store.collection))
                ledger = await run.io(lambda: Ledger(self._data_dir / LEDGER, fingerprint))
                try:
                    yield run, store, ledger, program
                finally:
                    await run.io(ledger.close)
            finally:
                await run.io(store.close)

    async def _work(
        self,
        run: _Offload,
        store: ChunkStore,
        ledger: Ledger,
        program: Any,
        summary: GenerationSummary,
    ) -> None:
        import dspy

        from custom_lm import DispatcherLM

        queue: asyncio.Queue[_Job | None] = asyncio.Queue(maxsize=2 * self._concurrency)
        lm = DispatcherLM(self._dispatcher, role="student", cache=False)
        # A context, not configure(): the host may have its own DSPy settings. Without history and
        # trace, memory stays flat over any number of chunks.
        with dspy.context(
            lm=lm, adapter=dspy.ChatAdapter(), disable_history=True, trace=None, callbacks=[]
        ):
            producer = asyncio.create_task(
                self._character_producer(queue, run, store, ledger, summary)
            )
            consumers = [
                asyncio.create_task(self._llm_consumer(queue, run, store, ledger, program, summary))
                for _ in range(self._concurrency)
            ]
            tasks = [producer, *consumers]
            try:
                await asyncio.gather(*tasks)
            except asyncio.CancelledError:
                await _cancel(tasks)
                raise
            except BaseException as error:
                await _let_finish(producer, consumers, queue)
                if not isinstance(error, StopRun):
                    raise
                summary.stopped, summary.exit_code = str(error), error.exit_code
        await self._write_back(run, store, ledger, summary)

    async def _character_producer(
        self,
        queue: asyncio.Queue[_Job | None],
        run: _Offload,
        store: ChunkStore,
        ledger: Ledger,
        summary: GenerationSummary,
    ) -> None:
        """Put every chunk that needs a question on the queue, with its persona; then the Nones."""
        batches = await run.io(lambda: self._pending(store, ledger, summary))
        while batch := await run.io(lambda: next(batches, None)):
            characters = await self._characters([chunk.chunk_text for chunk in batch], run)
            for chunk, character in zip(batch, characters, strict=True):
                await queue.put(_Job(chunk, character))
        for _ in range(self._concurrency):
            await queue.put(None)

    async def _llm_consumer(
        self,
        queue: asyncio.Queue[_Job | None],
        run: _Offload,
        store: ChunkStore,
        ledger: Ledger,
        program: Any,
        summary: GenerationSummary,
    ) -> None:
        """One pipeline call a chunk; its result is in the ledger before the next is taken."""
        while (job := await queue.get()) is not None:
            result = await self._ask(program, job)
            await run.io(partial(ledger.record, result))
            summary.tokens += result.tokens
            summary.cost += result.cost
            if result.query:
                summary.generated += 1
            else:
                summary.failed += 1
                if len(summary.problems) < _PROBLEMS_SHOWN:
                    summary.problems[str(result.chunk_id)] = result.reason
            self._progress(not result.query)
            if self._client is not None and result.query and summary.generated % _WRITE_EVERY == 0:
                await self._write_back(run, store, ledger, summary)

    async def _ask(self, program: Any, job: _Job) -> Result:
        from dspy.utils.exceptions import AdapterParseError

        from question_optimizer.ledger import Result
        from question_optimizer.usage import metered

        made: dict[str, Any] = {}
        reason = job.persona.problem
        if reason:
            digest = text_digest(job.chunk)
            return Result(job.chunk.chunk_id, reason=reason, text_sha256=digest)
        with metered() as meter:
            try:
                prediction = await program.acall(
                    chunk_text=job.chunk.chunk_text, persona_description=job.persona.description
                )
                made = {
                    "query": " ".join(str(prediction.query or "").split()) or None,
                    "query_type": str(prediction.query_type),
                    "query_format": str(prediction.query_format),
                }
                reason = "" if made["query"] else "the model wrote no question"
            except AdapterParseError:
                reason = "the model's answer could not be read"
            except Exception as error:  # this chunk's failure is data; what stops runs is StopRun
                reason = reason_of(error)
        return Result(
            chunk_id=job.chunk.chunk_id,
            text_sha256=text_digest(job.chunk),
            **made,
            persona_id=job.persona.id,
            model=next((call.model for call in reversed(meter.calls.values())), None),
            tokens=meter.total.input_tokens + meter.total.output_tokens,
            cost=meter.total.cost,
            reason=reason,
        )

    # ------------------------------------------------------------------ reading and writing

    def _pending(
        self, store: ChunkStore, ledger: Ledger, summary: GenerationSummary
    ) -> Iterator[list[Chunk]]:
        """Batches of chunks that still need a question, a bounded number in memory."""
        from question_optimizer.chunk_store import QUERY_KEY, chunk_of

        ids = store.point_ids()
        summary.points = len(ids)
        batch: list[Chunk] = []
        taken = 0
        for point_id, payload in store.payloads(ids):
            chunk, _ = chunk_of(point_id, payload, self._text_key)
            if chunk is None:
                summary.without_text += 1
                continue
            stored = payload.get(QUERY_KEY)
            made = ledger.query_of(point_id, text_digest(chunk))
            if made is None and stored and not self._overwrite:
                summary.already_there += 1
                continue
            if self._limit is not None and taken >= self._limit:
                summary.beyond_limit += 1
                continue
            taken += 1
            if made is not None and made == stored:
                summary.already_there += 1
                continue
            if made is not None:  # not written yet, or lost with a restored folder
                summary.resumed += 1
                ledger.mark_written([point_id], written=False)
                continue
            batch.append(chunk)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _write_back(
        self, run: _Offload, store: ChunkStore, ledger: Ledger, summary: GenerationSummary
    ) -> None:
        """Move finished results from the ledger into the collection, through one short session."""
        try:
            await run.io(lambda: self._write_unwritten(store, ledger, summary))
        except UserError as error:  # the folder is open elsewhere: the ledger keeps the results
            kept = f"{error}; the questions are kept in {ledger.path}"
            summary.stopped = "; ".join(filter(None, [summary.stopped, kept]))
            summary.exit_code = summary.exit_code or error.exit_code

    def _write_unwritten(
        self, store: ChunkStore, ledger: Ledger, summary: GenerationSummary
    ) -> None:
        from question_optimizer.chunk_store import write_queries

        if not ledger.unwritten(1):
            return
        client, owned = self._writing_client(store)
        try:
            last: PointId = ""
            while results := ledger.unwritten(1000, after=last):
                report = write_queries(
                    client,
                    store.collection,
                    ((r.chunk_id, r.query or "", self._provenance(r, ledger)) for r in results),
                )
                # Those that are missing keep waiting: they may be another folder's.
                missing = set(report.missing)
                ledger.mark_written(r.chunk_id for r in results if r.chunk_id not in missing)
                summary.written += report.changed
                summary.missing += len(missing)
                last = results[-1].chunk_id
        finally:
            if owned:
                client.close()

    def _writing_client(self, store: ChunkStore) -> tuple[Any, bool]:
        """(client, whether to close it): the one that reads, or one on the folder for this once."""
        from question_optimizer.chunk_store import ClientStore, open_client

        if isinstance(store, ClientStore):
            return store.client, False
        return open_client(self._qdrant_path or Path()), True

    def _provenance(self, result: Result, ledger: Ledger) -> dict[str, Any]:
        return {
            "query_type": result.query_type,
            "query_format": result.query_format,
            "persona_id": result.persona_id,
            "model": result.model,
            "configuration": ledger.fingerprint,
        }

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

    def _fingerprint(self, collection: str) -> str:
        """Whose questions these are, and what they depend on: pipeline, personas, models."""
        if self._pipeline is None:
            pipeline = "original"
        elif isinstance(self._pipeline, str | Path):
            pipeline = files.sha256(Path(self._pipeline))
        else:
            pipeline = files.digest(self._pipeline.dump_state())
        if self._persona_function is not None:
            function = self._persona_function
            personas: Any = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        else:
            personas = [persona.model_dump() for persona in self._persona_list()]
        return files.digest([collection, self._text_key, pipeline, personas, self.summary.models])[
            :16
        ]

    def _export(self, ledger: Ledger, summary: GenerationSummary, collection: str) -> None:
        """Every question of this configuration as JSONL, made from the ledger."""
        done = ledger.done()
        output = self._data_dir / OUTPUT
        rows = [
            {
                "chunk_id": result.chunk_id,
                "generated_query": result.query,
                "query_type": result.query_type,
                "query_format": result.query_format,
                "persona_id": result.persona_id,
                "model": result.model,
            }
            for result in done
        ]
        if not rows and not output.exists():
            return
        files.write_jsonl(output, rows)
        files.write_meta(
            output,
            phase="optimized_question_generator",
            settings={"collection": collection, "models": summary.models},
            inputs={"configuration": ledger.fingerprint},
            counts={"questions": len(done), "failed": len(ledger.failed())},
            usage={
                "tokens": sum(r.tokens for r in done),
                "cost": round(sum(r.cost for r in done), 6),
            },
            rehearsal=summary.rehearsal,
        )


QuestionGenerator = OptimizedQuestionGenerator  # the existing application's name for it


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _let_finish(
    producer: asyncio.Task[None],
    consumers: Sequence[asyncio.Task[None]],
    queue: asyncio.Queue[_Job | None],
) -> None:
    """End a run early: no new chunk is begun, calls in flight are paid for and may end."""
    await _cancel([producer])
    while not queue.empty():
        queue.get_nowait()
    for _ in consumers:
        queue.put_nowait(None)
    await asyncio.gather(*consumers, return_exceptions=True)


class _Offload:
    """Two threads of our own, so that blocking work never takes the loop's default executor,
    which DSPy hops through on every call: files and Qdrant on one, embedding on the other."""

    def __enter__(self) -> _Offload:
        self._io = ThreadPoolExecutor(1, thread_name_prefix="generator-io")
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="generator-embedding")
        return self

    def __exit__(self, *exc: object) -> None:
        self._io.shutdown(wait=True)
        self._embedding.shutdown(wait=True)

    async def io(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._io, work)

    async def embedding(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._embedding, work)


def text_digest(chunk: Chunk) -> str:
    """What a result belongs to, besides the chunk's id."""
    return hashlib.sha256(chunk.chunk_text.encode()).hexdigest()


def _slots(dispatcher: Any) -> int:
    """How many chunks to work on at once: the student accounts' total concurrency."""
    if hasattr(dispatcher, "slots"):
        return max(1, dispatcher.slots("student"))
    return max(
        1, sum(getattr(c, "concurrency", 1) or 1 for c in getattr(dispatcher, "clients", []))
    )


# ---------------------------------------------------------------------- as a script


def parse(argv: list[str] | None) -> argparse.Namespace:
    from question_optimizer.cli import count, phase_parser

    parser = phase_parser(__doc__, calls_llm=True)
    parser.add_argument(
        "--pipeline", type=Path, metavar="FILE", help="default: data/optimized_pipeline.json"
    )
    parser.add_argument(
        "--original", action="store_true", help="use the prompts as they were before"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="also chunks that have a question already"
    )
    parser.add_argument(
        "--limit", type=count, metavar="N", help="only the first N chunks that need a question"
    )
    parser.add_argument("--text-key", metavar="KEY", help="payload key of the text; dots descend")
    parser.add_argument(
        "--even-if-locked",
        action="store_true",
        help="generate although the folder is open elsewhere; the questions wait in the ledger",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer.cli import Progress, finish_on_interrupt
    from question_optimizer.dispatcher import LLMDispatcher, open_store

    args = parse(argv)
    settings = load_settings(args)
    accounts = accounts_of(settings)
    if args.dry_run:
        return dry_run(settings, args, accounts)
    log_file = settings.data_dir / "daily_request_log.json"
    limits = open_store(log_file, url=settings.secret_of("limits_url"))
    with LLMDispatcher(accounts, max_cost=args.max_cost, store=limits) as dispatcher:
        generator = OptimizedQuestionGenerator(
            qdrant_path=settings.qdrant_path,
            qdrant_url=settings.qdrant_url,
            qdrant_api_key=settings.secret_of("qdrant_api_key"),
            collection=settings.collection,
            dispatcher=dispatcher,
            personas=settings.personas_file,
            pipeline=None if args.original else pipeline_file(settings, args),
            data_dir=settings.data_dir,
            embedding_model=settings.embedding_model,
            text_key=args.text_key,
            overwrite=args.overwrite,
            limit=args.limit,
            even_if_locked=args.even_if_locked,
            progress=lambda failed: progress.advance(failed=failed),
        )
        progress = Progress(
            "chunks",
            lambda: generator.summary.to_do,
            spend=lambda: dispatcher.spend,
            note=dispatcher.live_line,
        )
        with finish_on_interrupt(dispatcher), progress:
            summary = asyncio.run(_generate_and_close(generator, dispatcher))
    return tell(summary, settings.data_dir / OUTPUT)


async def _generate_and_close(
    generator: OptimizedQuestionGenerator, dispatcher: Any
) -> GenerationSummary:
    try:
        return await generator.generate()
    finally:
        await dispatcher.aclose()


def pipeline_file(settings: Any, args: argparse.Namespace) -> Path:
    return args.pipeline or settings.data_dir / "optimized_pipeline.json"


def dry_run(settings: Any, args: argparse.Namespace, accounts: list[Any]) -> int:
    """Count the chunks that would be worked on; nothing is called or written."""
    from config import store_of
    from question_optimizer.chunk_store import QUERY_KEY, chunk_of
    from question_optimizer.cli import dry_run_line

    if not args.original:
        files.read_meta(pipeline_file(settings, args), made_by="optimize_pipeline.py")
    store = store_of(settings, even_if_locked=args.even_if_locked)
    count = characters = 0
    try:
        for point_id, payload in store.payloads(store.point_ids()):
            chunk, _ = chunk_of(point_id, payload, args.text_key)
            if chunk and (args.overwrite or not payload.get(QUERY_KEY)):
                count += 1
                characters += len(chunk.chunk_text)
    finally:
        store.close()
    count = min(count, args.limit if args.limit is not None else count)
    typical = characters / max(1, count) + 3000
    print(dry_run_line(accounts, {"student": 2 * count}, characters=typical))
    return 0


def tell(summary: GenerationSummary, output: Path) -> int:
    """Say what came out, and return the exit code."""
    from question_optimizer.hostile_text import printable

    seen = {
        "had one already": summary.already_there,
        "made by an earlier run": summary.resumed,
        "without text": summary.without_text,
        "left for later by --limit": summary.beyond_limit,
        "no longer in the collection": summary.missing,
        "failed": summary.failed,
    }
    for what, count in seen.items():
        if count:
            print(f"{count} chunks {what}", file=sys.stderr)
    for chunk_id, reason in summary.problems.items():
        print(f"  {chunk_id}: {printable(reason)}", file=sys.stderr)
    note = " (rehearsal)" if summary.rehearsal else ""
    print(
        f"{summary.generated} questions generated{note}, {summary.written} written back -> {output}"
    )
    if summary.stopped:
        raise UserError(summary.stopped, exit_code=summary.exit_code)
    return FAILED_ITEMS if summary.failed else 0


if __name__ == "__main__":
    from question_optimizer.cli import run

    sys.exit(run(main))
