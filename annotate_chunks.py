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
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer.cli import (
    count,
    dry_run_line,
    leave,
    phase_parser,
    positive,
    resume_command,
    run,
    share,
)
from question_optimizer.errors import INTERRUPTED, NO_GO, UserError
from question_optimizer.hostile_text import printable
from question_optimizer.programs.annotation_desk import LOG, OUTPUT, SOURCE, Desk, alone, desk_of

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.annotation.gold_file import GoldFile
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.records import Chunk, GoldItem

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


def unprepared(desk: Desk) -> list[Chunk]:
    """The chunks that have no suggestions yet, and, for a session, are not decided."""
    from question_optimizer.annotation.preparation import stored
    from question_optimizer.annotation.store import AnnotationStore

    if not desk.log.exists():
        return desk.chunks
    personas = {persona.id: persona for persona in desk.personas}
    with AnnotationStore(desk.log, desk.args.annotator) as store:
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


def report(desk: Desk, store: AnnotationStore, gold: list[GoldItem]) -> None:
    """What the splits are made by, if not documents, and the last line."""
    from question_optimizer.annotation.wording import rehearsal_note

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


def work_of(desk: Desk) -> Callable[[Desk, AnnotationStore, GoldFile], int]:
    """What is to be done at the desk."""
    from question_optimizer.programs.annotation_browser import export_tasks, import_answers
    from question_optimizer.programs.annotation_session import hold_session, replay_decisions

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
    inputs = {path.name: files.sha256(path) for path in (desk.source, settings.personas_file)}
    with (
        alone(settings, name),
        AnnotationStore(desk.log, name) as store,
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
