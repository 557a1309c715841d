"""The generator as a script: its flags, what they lead to, and what it says at the end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
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
    from question_optimizer.generation.preview import Preview
    from question_optimizer.programs.ray_engine import RayEngine
    from question_optimizer.progress import Progress
    from question_optimizer.providers import LLMClientConfig

Make = Callable[..., Any]  # OptimizedQuestionGenerator, which stands above
_ENOUGH = 10  # questions by which the rest is judged
_COUNTED_AT_ONCE = 20_000  # chunks, while somebody waits for a question
_WHERE = ("qdrant_path", "qdrant_url", "collection", "data_dir", "embedding_model")


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
        help="make that again; with --apply: write also what was undone",
    )
    again.add_argument("--retry-failed", action="store_true", help="try failed questions again")
    again.add_argument("--retry-rejected", action="store_true", help="and those that were given up")
    args = _parse_where(parser).parse_args(argv)
    for flag, value in (("--ray-address", args.ray_address), ("--ray-workers", args.ray_workers)):
        if value is not None and args.engine != "ray":
            raise UserError(f"{flag} is about a cluster: add --engine ray, or leave it out")
    return args


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
        from question_optimizer.programs.maintenance_script import maintain

        return maintain(settings, args)
    accounts = accounts_of(settings)
    if args.dry_run:
        return dry_run(settings, args, accounts, make)
    try:
        summary = produce(settings, args, accounts, make, changed=_changed(args))
    except ConfigurationChanged as change:
        if not sys.stdin.isatty():
            raise
        print(change, file=sys.stderr)
        if change.chunks <= _COUNTED_AT_ONCE:
            print(_redo_line(settings, args, accounts, make), file=sys.stderr)
        if (answer := _asked()) is None:
            raise UserError("nothing changed") from None
        summary = produce(settings, args, accounts, make, changed=answer)
    return tell(summary, settings.data_dir, args)


def _changed(args: argparse.Namespace) -> Literal["ask", "keep", "redo"]:
    return "keep" if args.keep else "redo" if args.redo else "ask"


def _redo_line(
    settings: Any, args: argparse.Namespace, accounts: list[LLMClientConfig], make: Make
) -> str:
    """What --redo would take, for somebody who has to choose."""
    from question_optimizer.cli import dry_run_line

    preview = _previewed(settings, args, accounts, make, changed="redo")
    line = dry_run_line(accounts, {"student": preview.calls}, characters=preview.characters)
    return f"redo: {preview.questions:,} questions, about {line.removeprefix('dry run: ')}"


def _asked() -> Literal["keep", "redo"] | None:
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
    from question_optimizer.cli import finish_on_interrupt
    from question_optimizer.dispatcher import LLMDispatcher, open_store
    from question_optimizer.progress import Progress

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
            lambda: generator.summary.to_do - generator.summary.again,
            again=lambda: generator.summary.again,
            spend=lambda: (engine or dispatcher).spend,
            note=lambda: _note(generator.summary, dispatcher, engine),
            eta=lambda left: forecast_of(
                dispatcher,
                generator.summary,
                left,
                time.monotonic() - began - generator.summary.slept,
            ),
        )
        with progress, _said_by(progress):
            return asyncio.run(_generate_and_close(generator, dispatcher, engine))


def _note(summary: GenerationSummary, dispatcher: Any, engine: RayEngine | None) -> str:
    """What the run waits for, or how the accounts are."""
    if summary.doing:
        return summary.doing
    if engine is not None:
        return engine.live_line()
    if not summary.to_do and not dispatcher.calls:
        return "preparing: reading chunks, choosing who asks"
    return str(dispatcher.account_line())


@contextlib.contextmanager
def _said_by(progress: Progress) -> Iterator[None]:
    """Warnings that are logged meanwhile stand on lines of their own above the bar."""

    class Saying(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            progress.say(record.getMessage())

    handler = Saying(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


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
        max_calls=args.max_calls,
        max_cost=args.max_cost,
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
    from question_optimizer.programs.maintenance_script import show_waiting

    try:
        preview, undecided = _previewed(settings, args, accounts, make, changed=_changed(args)), ""
    except ConfigurationChanged:
        preview = _previewed(settings, args, accounts, make, changed="keep")
        undecided = "counted as with --keep; --redo --dry-run counts all of them"
    show_waiting(settings, overwrite=args.overwrite)
    for line in filter(None, (*preview.told(), undecided)):
        print(line)
    most, calls = {"student": preview.most_calls}, {"student": preview.calls}
    line = dry_run_line(accounts, calls, characters=preview.characters, most=most)
    print(line if preview.calls else f"dry run: 0 calls, {_without_calls(settings, preview)}")
    return 0


def _without_calls(settings: Any, preview: Preview) -> str:
    """What a run that asks for nothing would do."""
    from question_optimizer.generation.preview import held

    path = settings.data_dir / LEDGER
    there = held(path, preview.collection) if path.is_file() else None
    if there and there.unchecked:
        return f"{there.unchecked:,} questions to check against the corpus"
    return "the questions above to write" if there and there.waiting else "nothing to do"


def _previewed(
    settings: Any,
    args: argparse.Namespace,
    accounts: list[LLMClientConfig],
    make: Make,
    *,
    changed: Literal["ask", "keep", "redo"],
) -> Preview:
    from question_optimizer.dispatcher import LLMDispatcher

    sources = {**_sources(settings, args), "even_if_locked": True}  # it is only looked at
    with LLMDispatcher(accounts) as dispatcher:  # asked for its models, never for a call
        generator: Any = make(**sources, **_what(args), changed=changed, dispatcher=dispatcher)
        preview: Preview = generator.preview()
    return preview


def tell(summary: GenerationSummary, data_dir: Path, args: argparse.Namespace) -> int:
    """Say what came out, and return the exit code."""
    from question_optimizer.hostile_text import printable
    from question_optimizer.reports.generation_terminal import told

    seen = {
        "had somebody else's question already": summary.already_there,
        "done under another configuration, left as they are": summary.kept,
        "made by an earlier run": summary.resumed,
        "taken out by --undo, left out (--apply --redo puts them back)": summary.undone,
        "without text": summary.without_text,
        "no longer in the collection": summary.missing,
        "hold somebody else's question by now (--apply --overwrite)": summary.foreign,
    }
    for line in _idle(summary, args) if summary.idle else ():
        print(line, file=sys.stderr)
    for what, count in seen.items():
        if count:
            print(f"{count:,} chunks {what}", file=sys.stderr)
    export = _export_command(args, everything=bool(summary.kept))
    for line in told(summary.report, idle=summary.idle, export=export) if summary.report else ():
        print(printable(line), file=sys.stderr)
    if summary.failed or summary.failed_before:
        before = f", {summary.failed_before:,} by earlier runs" if summary.failed_before else ""
        print(f"{summary.failed:,} questions failed{before}; --retry-failed", file=sys.stderr)
    for chunk_id, reason in summary.problems.items():
        print(f"  {chunk_id}: {printable(reason)}", file=sys.stderr)
    if summary.stopped and summary.left:
        print(f"{summary.left:,} questions still to make{_begun(summary)}", file=sys.stderr)
    note = " (rehearsal)" if summary.rehearsal else ""
    written = f"{summary.written:,} chunks written back"
    if summary.written:
        written += f" as run {summary.run}"
    print(
        f"{summary.generated:,} questions generated{note}, {written} -> "
        f"{data_dir / (REPORT if summary.report else LEDGER)}"
    )
    if summary.stopped:
        raise UserError(summary.stopped, exit_code=summary.exit_code)
    return FAILED_ITEMS if summary.failed or summary.failed_before else 0


def _idle(summary: GenerationSummary, args: argparse.Namespace) -> Iterator[str]:
    """That there was nothing to do, for who waited for more."""
    done = summary.complete + summary.kept + summary.already_there
    everything = done and not summary.beyond_limit and not summary.failed_before
    yield "everything is done already" if everything else "nothing to do"
    if args.retry_failed and not summary.failed_before:
        yield "--retry-failed: no question has failed"
    if args.retry_rejected and not summary.rejected:
        yield "--retry-rejected: no question was given up"


def _begun(summary: GenerationSummary) -> str:
    """Those of the questions still to make that stand in the ledger as such."""
    begun = summary.report["slots"]["pending"] if summary.report else 0
    return f", {min(begun, summary.left):,} of them begun" if begun else ""


def _export_command(args: argparse.Namespace, *, everything: bool) -> str:
    """The next phase on the same collection, to be pasted: flags as they were given here."""
    from question_optimizer.exports.dataset import EVERY

    flags = {name: getattr(args, name) for name in _WHERE if getattr(args, name) is not None}
    given = [part for name, value in flags.items() for part in (_flag(name), str(value))]
    rest = ["--configuration", EVERY] if everything else []
    return shlex.join(["python", "export_questions.py", *given, *rest])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
