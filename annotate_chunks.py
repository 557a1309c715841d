"""Phase 1 of 5 · Annotate: for each chunk a persona, suggestions by an LLM, and your gold question.

One key decides, is saved, and brings the next chunk: a digit picks a suggestion, e edits one, w
writes your own, s skips, d defers, f flags, u undoes, ? shows all keys. The same command goes on
where you stopped.

    python annotate_chunks.py
    python annotate_chunks.py --annotator anna --blind-test
    python annotate_chunks.py --stats
    python annotate_chunks.py --lint
    python annotate_chunks.py --replay data/sample/decisions.jsonl --rehearsal

Reads   data/raw_chunks.jsonl, data/personas.json, data/skip_reasons.txt if there
Writes  data/annotations.sqlite (the truth), data/gold_dataset.json (exported from it)
Next    python optimize_pipeline.py
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer.cli import (
    count,
    dry_run_line,
    finish_on_interrupt,
    leave,
    phase_parser,
    positive,
    resume_command,
    run,
    share,
)
from question_optimizer.errors import FAILED_ITEMS, INTERRUPTED, NO_GO, UserError
from question_optimizer.hostile_text import printable

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.annotation.gold_file import GoldFile
    from question_optimizer.annotation.preparation import Preparation
    from question_optimizer.annotation.session import Session
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.dispatcher import LLMDispatcher
    from question_optimizer.providers import LLMClientConfig
    from question_optimizer.records import Chunk, Decision, GoldItem, Persona

SOURCE = "raw_chunks.jsonl"
OUTPUT = "gold_dataset.json"
LOG = "annotations.sqlite"
REASONS = "skip_reasons.txt"
_NAME = re.compile(r"[A-Za-z0-9_.-]{0,40}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__, calls_llm=True)
    _session_flags(parser)
    _other_flags(parser)
    args = parser.parse_args(argv)
    if not args.max_persona_share:
        parser.error("argument --max-persona-share: must be above 0")
    if args.json and not (args.stats or args.lint):
        parser.error("argument --json: only with --stats or --lint")
    if args.format and not args.export:
        parser.error("argument --format: only with --export")
    if args.annotator and args.import_from:
        parser.error("argument --annotator: --import takes the names from the file")
    return args


def _session_flags(parser: argparse.ArgumentParser) -> None:
    session = parser.add_argument_group("the session")
    session.add_argument(
        "--annotator",
        type=person,
        default="",
        metavar="NAME",
        help="who decides; several may work on one log, also at the same time",
    )
    session.add_argument(
        "--blind-test",
        action="store_true",
        help="withhold suggestions for items of the test split until you have written a question",
    )
    session.add_argument(
        "--repeats",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="share of chunks that come back unannounced, for self-agreement (default: 0.05)",
    )
    session.add_argument(
        "--persona-by",
        choices=("similarity", "llm"),
        default="similarity",
        help="who chooses among the nearest personas (default: similarity)",
    )
    session.add_argument(
        "--persona-top-k",
        type=positive,
        default=3,
        metavar="K",
        help="how many of the nearest personas are considered (default: 3)",
    )
    session.add_argument(
        "--max-persona-share",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="the largest share of chunks that one persona may get (default: 0.5)",
    )
    session.add_argument("--plain", action="store_true", help="line mode instead of the screen")
    session.add_argument(
        "--replay", type=Path, metavar="FILE", help="take the decisions from a JSONL file"
    )


def _other_flags(parser: argparse.ArgumentParser) -> None:
    instead = parser.add_argument_group("instead of a session")
    one = instead.add_mutually_exclusive_group()
    one.add_argument("--show", type=count, metavar="N", help="print N random gold entries")
    one.add_argument(
        "--stats",
        action="store_true",
        help="pace, sources, skip reasons, distributions, agreement, warnings",
    )
    one.add_argument(
        "--lint",
        action="store_true",
        help="what is wrong with the gold set, and what size of difference it can show",
    )
    one.add_argument(
        "--export", type=Path, metavar="FILE", help="write the sample as tasks for a browser tool"
    )
    one.add_argument(
        "--import",
        type=Path,
        metavar="FILE",
        dest="import_from",
        help="take the answers from a browser tool's export, of either format",
    )
    instead.add_argument(
        "--format",
        choices=("argilla", "label-studio"),
        help="of --export (default: label-studio)",
    )
    instead.add_argument(
        "--json", action="store_true", help="--stats and --lint as JSON, for machines"
    )


def person(text: str) -> str:
    """argparse type: a name that is fit for a file name; "unnamed" is whoever gives none."""
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("up to 40 letters, digits, dots, hyphens, underscores")
    return "" if text == "unnamed" else text


def show(settings: Settings, number: int) -> int:
    """Print `number` random entries of the gold set, the same ones for the same seed."""
    from question_optimizer.gold import read_gold

    path = settings.data_dir / OUTPUT
    gold = read_gold(path).items
    for item in random.Random(settings.seed).sample(gold, min(number, len(gold))):
        print(printable(f"— {item.chunk_id} · {item.persona_id} · {item.origin} · {item.split}"))
        print(printable(item.chunk_text))
        print(f"→ {printable(item.gold_question)}\n")
    print(f"{min(number, len(gold))} of {len(gold)} gold questions <- {path}")
    return 0


def lint(settings: Settings, *, as_json: bool) -> int:
    """Print what is wrong with the gold set; 0 if nothing is certainly wrong, else 3."""
    from question_optimizer import files, gold_lint

    path = settings.data_dir / OUTPUT
    report = gold_lint.lint(files.read_json(path, made_by="annotate_chunks.py"))
    print(_json(gold_lint.as_dict(report)) if as_json else gold_lint.render(report))
    return NO_GO if report.count("error") else 0


def stats(settings: Settings, *, as_json: bool) -> int:
    """Print what the event log tells."""
    from question_optimizer import files
    from question_optimizer.annotation import figures
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.personas import load_personas
    from question_optimizer.records import Chunk

    path = settings.data_dir / LOG
    if not path.exists():
        raise UserError(f"{path}: not there yet; run annotate_chunks.py first")
    chunks = files.read_records(settings.data_dir / SOURCE, Chunk, made_by="fetch_chunks.py")
    with AnnotationStore(path) as store:
        found = figures.figures(
            store, chunks, load_personas(settings.personas_file), seed=settings.seed
        )
    print(_json(figures.as_dict(found)) if as_json else figures.render(found))
    return 0


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=1, ensure_ascii=False)


def read_decisions(path: Path) -> dict[str, Decision]:
    """{chunk id: decision}; the last line on a chunk wins."""
    from question_optimizer import files
    from question_optimizer.records import Decision

    decisions = files.read_records(path, Decision, made_by=None)
    return {str(decision.chunk_id): decision for decision in decisions}


def skip_reasons(settings: Settings) -> tuple[str, ...]:
    """The lines of the data folder's skip_reasons.txt, at most nine; else the usual ones."""
    from question_optimizer.annotation.session import SKIP_REASONS
    from question_optimizer.hostile_text import one_line

    path = settings.data_dir / REASONS
    if not path.exists():
        return SKIP_REASONS
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); one reason a line, in UTF-8") from error
    reasons = tuple(filter(None, dict.fromkeys(map(one_line, lines))))
    if not 1 <= len(reasons) <= 9:
        raise UserError(
            f"{path}: has {len(reasons)} reasons; write one to nine, one a line, or delete it"
        )
    return reasons


@dataclass(frozen=True)
class Desk:
    """What a session or replay begins with: everything read and checked."""

    settings: Settings
    args: argparse.Namespace
    accounts: list[LLMClientConfig]
    chunks: list[Chunk]
    personas: list[Persona]
    decisions: dict[str, Decision] | None
    skip_reasons: tuple[str, ...]

    @property
    def output(self) -> Path:
        return self.settings.data_dir / OUTPUT

    @property
    def elsewhere(self) -> bool:
        """Whether decisions come from a file."""
        return self.decisions is not None or self.args.import_from is not None

    def unrecorded(self, store: AnnotationStore) -> list[Chunk]:
        """The chunks whose decision in the file is not in the log yet."""
        decisions = self.decisions or {}
        return [
            chunk
            for chunk in self.chunks
            if (decision := decisions.get(str(chunk.chunk_id)))
            and not store.is_decided(chunk, decision)
        ]


def desk_of(settings: Settings, args: argparse.Namespace) -> Desk:
    """UserError where an input is missing or wrong; nothing is written."""
    from config import accounts_of
    from question_optimizer import files
    from question_optimizer.personas import load_personas
    from question_optimizer.records import Chunk

    source = settings.data_dir / SOURCE
    files.check_schema(source)
    chunks = files.read_records(source, Chunk, made_by="fetch_chunks.py")
    if not chunks:
        raise UserError(f"{source}: holds no chunk; rerun fetch_chunks.py")
    if args.export and args.export.is_dir():
        raise UserError(f"{args.export}: is a folder; name a file")
    personas = load_personas(settings.personas_file)
    decisions = read_decisions(args.replay) if args.replay else None
    accounts = [] if args.import_from else accounts_of(settings)
    reasons = skip_reasons(settings)
    return Desk(settings, args, accounts, chunks, personas, decisions, reasons)


@contextmanager
def prepared(desk: Desk, store: AnnotationStore) -> Iterator[tuple[Preparation, LLMDispatcher]]:
    """What makes personas and suggestions, and the dispatcher behind it."""
    from custom_lm import LanguageModels
    from question_optimizer.annotation.preparation import Preparation
    from question_optimizer.embedding import Embedder
    from question_optimizer.personas import PersonaCap, PersonaChooser, PersonaMatcher
    from question_optimizer.programs.suggester import LLMPersonaChoice, LLMSuggester

    settings, args = desk.settings, desk.args
    embedder = Embedder(settings.embedding_model, cache_dir=settings.data_dir / "cache")
    with LanguageModels(
        desk.accounts,
        data_dir=settings.data_dir,
        max_cost=args.max_cost,
        limits_url=settings.secret_of("limits_url"),
    ) as models:
        teacher = models.lm("teacher")
        chooser = PersonaChooser(
            PersonaMatcher(desk.personas, embedder),
            top_k=args.persona_top_k,
            cap=PersonaCap(args.max_persona_share),
            ask=LLMPersonaChoice(teacher) if args.persona_by == "llm" else None,
        )
        behind = models.dispatcher.models("teacher")
        with Preparation(store, chooser, LLMSuggester(teacher), models=behind) as preparation:
            yield preparation, models.dispatcher


def replay_decisions(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """Take the file's decisions that are not recorded yet; UserError where one does not fit."""
    from question_optimizer.annotation.replay import replay

    todo = desk.unrecorded(store)
    tell_outsiders(desk)
    if todo:
        with prepared(desk, store) as (preparation, dispatcher), finish_on_interrupt(dispatcher):
            replay(
                todo,
                desk.decisions or {},
                store=store,
                preparation=preparation,
                sample=desk.chunks,
                seed=desk.settings.seed,
                saved=gold_file.request,
            )
    given = len(desk.decisions or {})
    print(f"{len(todo)} of {given} decisions were new to the log", file=sys.stderr)
    return 0


def hold_session(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """A person's session, on the screen or in line mode; returns the exit code."""
    from question_optimizer.annotation.session import Rules, Session

    args = desk.args
    rules = Rules(
        seed=desk.settings.seed,
        blind_test=args.blind_test,
        repeats=args.repeats,
        skip_reasons=desk.skip_reasons,
    )
    gold_file.request()  # a killed session may have left it behind the log
    with prepared(desk, store) as (preparation, dispatcher):
        session = Session(
            desk.chunks,
            store=store,
            preparation=preparation,
            rules=rules,
            saved=gold_file.request,
        )
        if args.plain or not _has_screen():
            from rich.console import Console

            from question_optimizer.annotation.plain import PATIENCE_SECONDS, LineMode

            patience = PATIENCE_SECONDS if sys.stdin.isatty() else None  # lines wait in a pipe
            lines = LineMode(
                session,
                Console(),
                patience_seconds=patience,
                spend=lambda: dispatcher.spend,
            )
            lines.run()
            return code_of(session, 0)
        from question_optimizer.annotation.app import AnnotationApp

        screen = AnnotationApp(
            session, spend=lambda: dispatcher.spend, trouble=lambda: gold_file.problem
        )
        return code_of(session, screen.run() or screen.return_code or 0)


def code_of(session: Session, code: int) -> int:
    """`code`, or, where suggestions ended for good while chunks are open, the code for why, said.

    What is in flight is paid for and kept when it comes, so the end waits for it a while.
    """
    if coming := session.preparation.unfinished:
        print(
            f"waiting for the suggestions of {coming} chunks, at most 10 s; Ctrl-C leaves at once",
            file=sys.stderr,
        )
    ended = session.preparation.ended
    if code or ended is None or session.current is None:
        return code
    print(f"no more suggestions: {ended}", file=sys.stderr)
    return ended.exit_code


def export_tasks(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """Write the sample as tasks for a browser tool, with what sets the tool up beside it.

    Personas and suggestions that are missing are made first; a chunk whose suggestions fail goes
    without.
    """
    from question_optimizer.annotation.handover import tasks_of, write_tasks
    from question_optimizer.cli import Progress

    args, target = desk.args, desk.args.export
    with (
        prepared(desk, store) as (preparation, dispatcher),
        finish_on_interrupt(dispatcher),
        Progress("tasks", len(desk.chunks), spend=lambda: dispatcher.spend) as progress,
    ):
        failed = 0
        preparation.look_ahead(desk.chunks)
        for chunk in desk.chunks:
            there = preparation.wait(chunk, None)
            if there.problem and preparation.ended:
                raise preparation.ended
            failed += bool(there.problem)
            progress.advance(failed=bool(there.problem))
        tasks = tasks_of(
            store,
            desk.chunks,
            preparation.prepared,
            seed=desk.settings.seed,
            blind_test=args.blind_test,
        )
    tool = args.format or "label-studio"
    set_up = write_tasks(target, tasks, tool, desk.skip_reasons)
    by = rehearsal_note(task.suggested_by for task in tasks.values())
    print(f"the {tool} project is set up by {set_up}", file=sys.stderr)
    print(f"{len(tasks)} tasks{by} -> {target}")
    return FAILED_ITEMS if failed else 0


def import_answers(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """Record the answers of a browser tool's export, each under its annotator's name."""
    from question_optimizer.annotation.handover import take_answers, tasks_of
    from question_optimizer.annotation.preparation import stored

    personas = {persona.id: persona for persona in desk.personas}
    tasks = tasks_of(
        store,
        desk.chunks,
        lambda chunk: stored(store, chunk, personas),
        seed=desk.settings.seed,
        blind_test=desk.args.blind_test,
    )
    came, new = take_answers(
        desk.args.import_from, store, tasks, personas, lambda name: alone(desk.settings, name)
    )
    if came.unknown:
        print(
            f"{len(came.unknown)} tasks are not in the sample (such as {came.unknown[0]})",
            file=sys.stderr,
        )
    names = sorted({answer.annotator for _, answer in came.answers})
    by = f" by {', '.join(names)}" if names else ""
    print(
        f"{new} new of {len(came.answers)} answers"
        f"{by}, {came.drafts} drafts left out, "
        f"{came.open} tasks without an answer <- {desk.args.import_from}",
        file=sys.stderr,
    )
    return 0


def _has_screen() -> bool:
    """Whether there is a terminal that can show more than lines."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return terminal and os.environ.get("TERM", "dumb") != "dumb"


def tell_outsiders(desk: Desk) -> None:
    """Say how many decisions of the file are on chunks that the sample does not hold."""
    there = {str(chunk.chunk_id) for chunk in desk.chunks}
    decisions = desk.decisions or {}
    if elsewhere := [chunk_id for chunk_id in decisions if chunk_id not in there]:
        print(
            f"{len(elsewhere)} of {len(decisions)} decisions are on chunks outside the sample "
            f"(such as {printable(elsewhere[0])}); fetch a larger one to use them",
            file=sys.stderr,
        )


def unprepared(desk: Desk) -> list[Chunk]:
    """The chunks that have no suggestions yet, and, for a session, are not decided."""
    from question_optimizer.annotation.preparation import stored
    from question_optimizer.annotation.store import AnnotationStore

    path = desk.settings.data_dir / LOG
    if not path.exists():
        return desk.chunks
    personas = {persona.id: persona for persona in desk.personas}
    with AnnotationStore(path, desk.args.annotator) as store:
        return [
            chunk
            for chunk in desk.chunks
            if not stored(store, chunk, personas).rounds
            and (desk.args.export or not store.is_decided(chunk))
        ]


def dry_run(desk: Desk) -> int:
    """Say what a session or replay over everything would call; nothing is called or written."""
    typical = sum(len(c.chunk_text) for c in desk.chunks) / max(1, len(desk.chunks)) + 2500
    calls = 0 if desk.args.import_from else len(desk.decisions or unprepared(desk))
    choices = calls if desk.args.persona_by == "llm" and desk.decisions is None else 0
    print(dry_run_line(desk.accounts, {"teacher": calls + choices}, characters=typical))
    return 0


def rehearsal_note(models: Iterable[list[str]]) -> str:
    """What the last line has to say if the rehearsal was among those that made suggestions."""
    return " (suggestions by the rehearsal)" if any("rehearsal" in m for m in models) else ""


def report(desk: Desk, store: AnnotationStore, gold: list[GoldItem]) -> None:
    """What the splits are made by, if not documents, and the last line."""
    by = rehearsal_note(item.suggested_by for item in gold)
    left = sum(not store.is_decided(chunk) for chunk in desk.chunks)
    note = f", {left} chunks of the sample still open" if not desk.elsewhere and left else ""
    used = {item.persona_id for item in gold}
    never = [persona.id for persona in desk.personas if persona.id not in used]
    if gold and never and not desk.elsewhere:
        print(f"personas never used: {', '.join(never)}", file=sys.stderr)
    if store.split_unit in ("section", "chunk"):
        print(
            f"too few documents to split by: items are split by {store.split_unit}",
            file=sys.stderr,
        )
    print(f"{len(gold)} gold questions{by}{note} -> {desk.output}")


def alone(settings: Settings, annotator: str) -> AbstractContextManager[None]:
    """Keep every other session of the same annotator away; UserError (75) if there is one."""
    from question_optimizer.locks import only_one

    lock = settings.data_dir / ".".join(filter(None, [LOG, annotator, "lock"]))
    who = annotator or "the unnamed annotator"
    advice = "wait for its end or give another --annotator"
    return only_one(lock, f"another session of {who}", advice=advice)


def work_of(desk: Desk) -> Callable[[Desk, AnnotationStore, GoldFile], int]:
    """What is to be done at the desk."""
    if desk.args.export:
        return export_tasks
    if desk.args.import_from:
        return import_answers
    return hold_session if desk.decisions is None else replay_decisions


def annotate(desk: Desk) -> int:
    """The session or replay; whatever happens, the gold set is exported as the log stands."""
    from question_optimizer import files
    from question_optimizer.annotation.gold_file import GoldFile
    from question_optimizer.annotation.store import AnnotationStore

    settings, name = desk.settings, desk.args.annotator
    source = settings.data_dir / SOURCE
    inputs = {path.name: files.sha256(path) for path in (source, settings.personas_file)}
    with (
        alone(settings, name),
        AnnotationStore(settings.data_dir / LOG, name) as store,
    ):
        gold_file = GoldFile(store, desk.output, settings={"seed": settings.seed}, inputs=inputs)
        work = work_of(desk)
        try:
            code = work(desk, store, gold_file)
        finally:
            gold = gold_file.close()
        if not desk.args.export:
            report(desk, store, gold)
    if code == INTERRUPTED:
        print(f"interrupted; resume with: {resume_command()}", file=sys.stderr)
    return code


def main(argv: list[str] | None = None) -> int:
    from config import load_settings

    args = parse(argv)
    settings = load_settings(args)
    if args.show is not None:
        return show(settings, args.show)
    if args.stats:
        return stats(settings, as_json=args.json)
    if args.lint:
        return lint(settings, as_json=args.json)
    desk = desk_of(settings, args)
    return dry_run(desk) if args.dry_run else annotate(desk)


if __name__ == "__main__":
    code = run(main)
    from question_optimizer.annotation.preparation import THREAD

    leave(code, working=THREAD)  # nobody waits for suggestions that will not be read
