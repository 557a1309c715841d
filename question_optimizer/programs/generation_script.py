"""The generator as a script: its flags, what they lead to, and what it says at the end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from question_optimizer.errors import FAILED_ITEMS, UserError
from question_optimizer.generation.outcome import (
    LEDGER,
    REPORT,
    ConfigurationChanged,
    GenerationSummary,
)

if TYPE_CHECKING:
    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.programs.ray_engine import RayEngine
    from question_optimizer.providers import LLMClientConfig

Make = Callable[..., Any]  # OptimizedQuestionGenerator, which stands above
_SHOWN = 3  # points of a diff
_ENOUGH = 10  # questions by which the rest is judged


def parse(argv: list[str] | None, doc: str | None) -> argparse.Namespace:
    from question_optimizer.cli import count, phase_parser, positive

    parser = phase_parser(doc, calls_llm=True)
    what = parser.add_argument_group("what is made")
    prompts = what.add_mutually_exclusive_group()
    prompts.add_argument(
        "--pipeline", type=Path, metavar="FILE", help="default: data/optimized_pipeline.json"
    )
    prompts.add_argument(
        "--original", action="store_true", help="use the prompts as they were before"
    )
    what.add_argument(
        "--per-chunk", type=positive, default=1, metavar="N", help="questions a chunk (1)"
    )
    what.add_argument(
        "--quotas",
        metavar="even|gold|FILE",
        help="spread type, format and length by a plan; default with several questions a chunk",
    )
    what.add_argument(
        "--gates",
        choices=("off", "record", "training", "evaluation"),
        default="training",
        help="what questions must pass (training); record refuses nothing",
    )
    what.add_argument(
        "--refills", type=count, default=2, metavar="N", help="tries after a refusal (2)"
    )
    what.add_argument(
        "--max-rank", type=positive, metavar="N", help="find its own chunk among so many (10 or 20)"
    )
    what.add_argument(
        "--limit",
        type=count,
        metavar="N",
        help="only the first N chunks that need a question, those of earlier runs included",
    )
    what.add_argument("--text-key", metavar="KEY", help="payload key of the text; dots descend")
    again = parser.add_argument_group("what was made before")
    again.add_argument(
        "--overwrite", action="store_true", help="also chunks that have somebody else's question"
    )
    changed = again.add_mutually_exclusive_group()
    changed.add_argument(
        "--keep", action="store_true", help="leave what another pipeline, persona set or model made"
    )
    changed.add_argument(
        "--redo",
        action="store_true",
        help="make all of it again; with --apply: also what was undone",
    )
    again.add_argument("--retry-failed", action="store_true", help="try failed questions again")
    again.add_argument("--retry-rejected", action="store_true", help="and those that were given up")
    return _parse_where(parser).parse_args(argv)


def _parse_where(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    from question_optimizer.cli import positive

    where = parser.add_argument_group("where, and when")
    where.add_argument(
        "--even-if-locked",
        action="store_true",
        help="generate although the folder is open elsewhere; the questions wait in the ledger",
    )
    where.add_argument(
        "--no-write-back", action="store_true", help="leave the questions in the ledger"
    )
    instead = where.add_mutually_exclusive_group()
    instead.add_argument("--apply", action="store_true", help="write what waits there, and no more")
    instead.add_argument("--runs", action="store_true", help="list what was written, and when")
    instead.add_argument("--undo", metavar="RUN", help="restore what stood there before; or: last")
    where.add_argument(
        "--wait", action="store_true", help="sleep until a spent quota returns, and go on"
    )
    where.add_argument("--engine", choices=("local", "ray"), default="local")
    where.add_argument("--ray-address", metavar="ADDRESS", help="of a running cluster, or: auto")
    where.add_argument("--ray-workers", type=positive, metavar="N", help="one a node by default")
    return parser


def run_script(argv: list[str] | None, doc: str | None, make: Make) -> int:
    """One command line; its exit code. `doc` is the help text, `make` makes a generator."""
    from config import accounts_of, load_settings

    args = parse(argv, doc)
    settings = load_settings(args)
    if args.apply or args.runs or args.undo:
        return maintain(settings, args)
    accounts = accounts_of(settings)
    if args.dry_run:
        return dry_run(settings, args, accounts, make)
    try:
        summary = produce(settings, args, accounts, make, changed=_changed(args))
    except ConfigurationChanged as change:
        if not sys.stdin.isatty() or (answer := _asked(change)) is None:
            raise
        summary = produce(settings, args, accounts, make, changed=answer)
    return tell(summary, settings.data_dir)


def _changed(args: argparse.Namespace) -> Literal["ask", "keep", "redo"]:
    return "keep" if args.keep else "redo" if args.redo else "ask"


def _asked(change: ConfigurationChanged) -> Literal["keep", "redo"] | None:
    print(change, file=sys.stderr)
    try:
        answer = input("keep, redo, or leave it [keep/redo/N]? ").strip().lower()
    except EOFError:
        return None
    return "keep" if answer == "keep" else "redo" if answer == "redo" else None


def produce(
    settings: Any,
    args: argparse.Namespace,
    accounts: list[LLMClientConfig],
    make: Make,
    *,
    changed: Literal["ask", "keep", "redo"],
) -> GenerationSummary:
    """One run with the settings of a command line, shown as it goes."""
    from question_optimizer.cli import Progress, finish_on_interrupt
    from question_optimizer.dispatcher import LLMDispatcher, open_store

    log_file = settings.data_dir / "daily_request_log.json"
    limits = open_store(log_file, url=settings.secret_of("limits_url"))
    engine = _engine(settings, args)
    with (
        LLMDispatcher(
            accounts, max_cost=args.max_cost, max_calls=args.max_calls, store=limits
        ) as dispatcher,
        finish_on_interrupt(dispatcher, *filter(None, [engine])) as stop,
    ):
        generator: Any = make(
            **_sources(settings, args),
            dispatcher=dispatcher,
            engine=engine,
            **_what(args),
            changed=changed,
            wait=args.wait,
            seed=settings.seed,
            progress=lambda state: progress.advance(
                failed=state == "failed", rejected=state == "rejected"
            ),
            stop=stop,
        )
        began = time.monotonic()
        progress: Progress = Progress(
            "questions",
            lambda: generator.summary.to_do,
            spend=lambda: (engine or dispatcher).spend,
            note=lambda: (
                generator.summary.doing
                or (engine.live_line() if engine else dispatcher.account_line())
            ),
            eta=lambda left: forecast_of(
                dispatcher,
                generator.summary,
                left,
                time.monotonic() - began - generator.summary.slept,
            ),
        )
        with progress:
            return asyncio.run(_generate_and_close(generator, dispatcher, engine))


def _sources(settings: Any, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "qdrant_path": settings.qdrant_path,
        "qdrant_url": settings.qdrant_url,
        "qdrant_api_key": settings.secret_of("qdrant_api_key"),
        "collection": settings.collection,
        "personas": settings.personas_file,
        "pipeline": None if args.original else pipeline_file(settings, args),
        "data_dir": settings.data_dir,
        "embedding": settings.embedding_model,
        "text_key": args.text_key,
        "even_if_locked": args.even_if_locked,
    }


def _what(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "per_chunk": args.per_chunk,
        "quotas": args.quotas,
        "gates": args.gates,
        "refills": args.refills,
        "max_rank": args.max_rank,
        "overwrite": args.overwrite,
        "limit": args.limit,
        "retry_failed": args.retry_failed,
        "retry_rejected": args.retry_rejected,
        "write_back": not args.no_write_back,
    }


def _engine(settings: Any, args: argparse.Namespace) -> RayEngine | None:
    """The cluster, where one is asked for; None is this process."""
    if args.engine == "local":
        return None
    if args.max_cost is not None or args.max_calls is not None:
        raise UserError(
            "--max-cost and --max-calls cannot be kept over several machines; leave them out, or "
            "use --engine local"
        )
    from dspy_pipeline import load_pipeline, pipeline_state
    from question_optimizer.programs.ray_engine import RayEngine

    state = None if args.original else pipeline_state(load_pipeline(pipeline_file(settings, args)))
    return RayEngine(
        args.ray_address,
        providers=None if settings.rehearsal else settings.providers_file,
        pipeline=state,
        limits_url=settings.secret_of("limits_url"),
        policy=args.gates,
        refills=args.refills,
        workers=args.ray_workers,
    )


def forecast_of(dispatcher: Any, summary: GenerationSummary, left: int, seconds: float) -> str:
    """When `left` questions will be made: by the accounts' limits, and by the calls and the time
    (`seconds` at work) that questions took so far."""
    from question_optimizer.generation.forecast import expected_at, told

    made = summary.generated + summary.failed + summary.refused
    calls = summary.calls / made if made >= _ENOUGH else 2.0
    now = datetime.now(UTC).astimezone()
    allowances = dispatcher.allowances("student")
    if made < _ENOUGH:
        return ""
    return told(
        expected_at(calls * left, allowances, now, done=summary.calls, seconds=seconds), now
    )


async def _generate_and_close(generator: Any, dispatcher: Any, engine: Any) -> GenerationSummary:
    try:
        return await generator.generate()
    finally:
        await dispatcher.aclose()
        if engine is not None:
            await engine.close()


def pipeline_file(settings: Any, args: argparse.Namespace) -> Path:
    path = args.pipeline or settings.data_dir / "optimized_pipeline.json"
    if not path.is_file():
        raise UserError(
            f"{path}: does not exist; run optimize_pipeline.py first, or give --original for the "
            "prompts as they were"
        )
    return path


def dry_run(settings: Any, args: argparse.Namespace, accounts: list[Any], make: Make) -> int:
    """What a run would make and write; nothing is called or changed."""
    from question_optimizer.cli import dry_run_line
    from question_optimizer.dispatcher import LLMDispatcher
    from question_optimizer.generation import maintenance

    with LLMDispatcher(accounts) as dispatcher:  # asked for its models, never for a call
        generator: Any = make(
            **_sources(settings, args),
            **_what(args),
            changed="redo" if args.redo else "keep",
            dispatcher=dispatcher,
        )
        preview = generator.preview()
    with _collection(settings, even_if_locked=True) as store:
        for line in maintenance.diff(settings.data_dir / LEDGER, store, limit=_SHOWN):
            print(line)
    for line in preview.told():
        print(line)
    print(dry_run_line(accounts, {"student": preview.calls}, characters=preview.characters))
    return 0


def maintain(settings: Any, args: argparse.Namespace) -> int:
    """--runs, --apply and --undo: what needs no account and no pipeline."""
    from question_optimizer.generation import maintenance

    path = settings.data_dir / LEDGER
    looks = args.runs or args.dry_run  # and needs no folder to itself
    with _collection(settings, even_if_locked=looks or args.even_if_locked) as store:
        if args.undo:
            return _undo(settings, args, store)
        with maintenance.opened(path, store.collection) as ledger:
            for known in ledger.runs() if args.runs else ():
                state = "undone" if known.undone else f"{known.chunks} chunks"
                print(f"{known.run}  {known.at}  {state}")
        if args.apply and args.dry_run:
            for line in maintenance.diff(path, store, limit=_SHOWN):
                print(line)
        elif args.apply:
            return _apply(settings, args, store)
    return 0


def _apply(settings: Any, args: argparse.Namespace, store: ChunkStore) -> int:
    from question_optimizer.generation import maintenance
    from question_optimizer.generation.write_back import new_run_id

    path, run = settings.data_dir / LEDGER, new_run_id(datetime.now(UTC))
    target = partial(maintenance.target_over, store, settings.qdrant_path)
    written = maintenance.apply(path, store.collection, target, run=run, undone=args.redo)
    if written is None:
        print(f"nothing waits in {path}; --apply --redo brings back what was undone")
        return 0
    if written.missing:
        print(f"{len(written.missing)} chunks no longer in the collection", file=sys.stderr)
    print(f"{written.changed} chunks written back, {written.unchanged} had it already; run {run}")
    return 0


def _undo(settings: Any, args: argparse.Namespace, store: ChunkStore) -> int:
    from question_optimizer.generation import maintenance, write_back

    path = settings.data_dir / LEDGER
    with maintenance.opened(path, store.collection) as ledger:
        run = maintenance.run_named(ledger, args.undo)
        with maintenance.target_over(store, settings.qdrant_path) as target:
            undone = write_back.undo(ledger, target, run, dry_run=args.dry_run)
    for count, what in (
        (undone.changed_since, "were changed since, and are left as they are"),
        (len(undone.missing), "are no longer in the collection"),
    ):
        if count:
            print(f"{count} chunks {what}", file=sys.stderr)
    what = "would be restored" if args.dry_run else "restored"
    print(f"{undone.restored} chunks {what} as they were before run {run}")
    return 0


@contextlib.contextmanager
def _collection(settings: Any, *, even_if_locked: bool) -> Iterator[ChunkStore]:
    from config import store_of

    store = store_of(settings, even_if_locked=even_if_locked)
    try:
        yield store
    finally:
        store.close()


def tell(summary: GenerationSummary, data_dir: Path) -> int:
    """Say what came out, and return the exit code."""
    from question_optimizer.hostile_text import printable
    from question_optimizer.reports.generation_terminal import told

    seen = {
        "had somebody else's question already": summary.already_there,
        "done under another configuration, left as they are": summary.kept,
        "made by an earlier run": summary.resumed,
        "taken out by --undo, left out (--apply --redo puts them back)": summary.undone,
        "without text": summary.without_text,
        "left for later by --limit": 0 if summary.stopped else summary.beyond_limit,
        "no longer in the collection": summary.missing,
    }
    for what, count in seen.items():
        if count:
            print(f"{count} chunks {what}", file=sys.stderr)
    for line in told(summary.report) if summary.report else ():
        print(printable(line), file=sys.stderr)
    if summary.failed or summary.failed_before:
        before = f", {summary.failed_before} by earlier runs" if summary.failed_before else ""
        print(f"{summary.failed} questions failed{before}; --retry-failed", file=sys.stderr)
    for chunk_id, reason in summary.problems.items():
        print(f"  {chunk_id}: {printable(reason)}", file=sys.stderr)
    if summary.stopped and summary.left:
        print(f"{summary.left} questions still to make", file=sys.stderr)
    note = " (rehearsal)" if summary.rehearsal else ""
    written = f"{summary.written} chunks written back"
    if summary.written:
        written += f" as run {summary.run}"
    print(
        f"{summary.generated} questions generated{note}, {written} -> "
        f"{data_dir / (REPORT if summary.report else LEDGER)}"
    )
    if summary.stopped:
        raise UserError(summary.stopped, exit_code=summary.exit_code)
    return FAILED_ITEMS if summary.failed or summary.failed_before else 0
