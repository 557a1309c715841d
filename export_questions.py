"""Export questions: training and test sets out of what the generator made.

Questions that passed the checks and carry no finding are split by whole documents, kept from one
export to the next; what is alike stays on one side, and what the gold set holds out is never
trained on. The files are read back and searched for leaks: one leak, and nothing is exported.

    python export_questions.py --qdrant-path data/sample/small_sqlite
    python export_questions.py --format pairs,beir --shares 90/5/5 --checked training
    python export_questions.py --check data/exports

Reads   data/generation.sqlite, the collection, data/gold_dataset.json if there is one
Writes  data/exports/, replaced as a whole but for the sides in splits.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer.cli import phase_parser, positive, run
from question_optimizer.errors import NO_GO, UserError
from question_optimizer.exports import prove
from question_optimizer.generation.outcome import LEDGER
from question_optimizer.progress import Progress

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.exports.cards import Facts
    from question_optimizer.exports.dataset import Choice
    from question_optimizer.exports.splitting import Division
    from question_optimizer.exports.workspace import Workspace
    from question_optimizer.records import GoldItem, Split

GOLD = "gold_dataset.json"
SUMMARY = "export.json"
_FORMATS = ("pairs", "triplets", "beir", "parquet", "hf")
_SHARES = "80/10/10"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__)
    parser.add_argument(
        "--format",
        type=formats,
        default=_FORMATS,
        metavar="LIST",
        help=f"any of {', '.join(_FORMATS)}, with commas between (default: all)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="(default: exports in the data dir)"
    )
    parser.add_argument(
        "--shares",
        type=shares,
        default=_SHARES,
        metavar="T/D/T",
        help=f"of train, dev and test (default: {_SHARES})",
    )
    parser.add_argument(
        "--negatives", type=positive, default=1, metavar="N", help="of each triplet (default: 1)"
    )
    _add_choice_flags(parser)
    prove.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.prove and not {"pairs", "beir"} <= {*args.format}:
        parser.error("argument --prove: needs --format with pairs and beir")
    return args


def _add_choice_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checked",
        choices=("training", "evaluation", "any"),
        help="only questions that passed these checks; any: all as they are (default: those that "
        "passed any checks and carry no finding)",
    )
    parser.add_argument(
        "--configuration",
        metavar="HEX|all",
        help="whose questions: the beginning of a fingerprint (the generator's --runs lists them), "
        "or all: of each chunk what stands in the collection (default: those of the configuration "
        "used last)",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="a random choice of N questions"
    )
    parser.add_argument(
        "--even-if-locked",
        action="store_true",
        help="read a local folder although another process has it open",
    )
    parser.add_argument("--dry-run", action="store_true", help="count, write nothing")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="search an export for leaks, and do nothing else"
    )


def formats(text: str) -> tuple[str, ...]:
    """argparse type: formats parted by commas, each once, in the order in which they are made."""
    asked = {part.strip() for part in text.split(",")}
    if unknown := sorted(asked.difference(_FORMATS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(_FORMATS)}")
    return tuple(name for name in _FORMATS if name in asked)


def shares(text: str) -> dict[Split, float]:
    """argparse type: three numbers with slashes between, not all 0."""
    try:
        train, dev, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = dev = test = -1.0
    if not (min(train, dev, test) >= 0 and 0 < train + dev + test < float("inf")):
        raise argparse.ArgumentTypeError(f"must be three shares such as {_SHARES}")
    return {"train": train, "dev": dev, "test": test}


@dataclass
class Drawn:
    """What is to be exported, before a file is written."""

    choice: Choice
    gold: list[GoldItem]
    division: Division
    left_out: Counter[str]
    held: int  # documents, or whatever is split, that gold keeps out of train
    earlier: int  # and those whose side an earlier export chose


def draw(
    work: Workspace,
    store: ChunkStore,
    settings: Settings,
    args: argparse.Namespace,
    splits_file: Path,
) -> Drawn:
    """Questions and chunks into `work`, every question with a side; UserError if none is left."""
    from question_optimizer.exports.dataset import LEFT_OUT, choose, fill, results_of
    from question_optimizer.exports.splitting import divide, read_kept

    path = settings.data_dir / LEDGER
    choice = choose(path, store.collection, args.configuration)
    print(choice.told(), file=sys.stderr)
    kept = read_kept(splits_file)
    gold = gold_of(settings)
    progress = Progress("chunks read", len(store.point_ids()))
    with progress:
        left_out = fill(
            work,
            results_of(path, choice, store),
            store,
            checked=args.checked,
            text_key=choice.text_key,
            limit=args.limit,
            seed=settings.seed,
            advance=progress.advance,
        )
    division = divide(work, gold, shares=args.shares, seed=settings.seed, kept=kept)
    left_out += division.left_out
    if not any(work.sizes().values()):
        reasons = ", ".join(f"{count} {LEFT_OUT[why]}" for why, count in left_out.items())
        raise UserError(
            f"{path}: no question to export ({reasons or 'none is done'}); generate more of them"
        )
    held, earlier = (_units(work, among) for among in (division.held, kept.sides))
    return Drawn(choice, gold, division, left_out, held, earlier)


def _units(work: Workspace, among: Collection[str]) -> int:
    """How many of these documents (or whatever is split) have a question that is exported."""
    asked = "SELECT DISTINCT c.unit FROM questions AS q JOIN chunks AS c ON c.number=q.chunk"
    return sum(unit in among for (unit,) in work.ask(f"{asked} WHERE q.side IS NOT NULL"))


def gold_of(settings: Settings) -> list[GoldItem]:
    """The human gold set, [] if there is none yet."""
    from question_optimizer.gold import read_gold

    path = settings.data_dir / GOLD
    return read_gold(path).items if path.exists() else []


def mine_negatives(
    work: Workspace, drawn: Drawn, store: ChunkStore, settings: Settings, wanted: int
) -> None:
    """Hard negatives for every question, by the corpus index, which is built if need be."""
    from question_optimizer.embedding import Embedder
    from question_optimizer.exports.negatives import mine
    from question_optimizer.generation.corpus_index import open_index, read_store

    embedder = Embedder(settings.embedding_model, cache_dir=settings.data_dir / "cache")
    key = drawn.choice.text_key
    index = open_index(
        settings.data_dir / "cache", store.collection, lambda: read_store(store, key), embedder
    )
    progress = Progress("questions searched for", sum(work.sizes().values()))
    try:
        with progress:
            mine(work, drawn.division, index, embedder, wanted, advance=progress.advance)
    finally:
        index.close()


# ---------------------------------------------------------------------- the folder


def export(
    work: Workspace, drawn: Drawn, settings: Settings, args: argparse.Namespace, folder: Path
) -> Facts:
    """Fill an empty folder and search it for leaks; UserError with exit code 3 for the first."""
    from question_optimizer import files
    from question_optimizer.exports.cards import write_cards
    from question_optimizer.exports.formats import Origin, write
    from question_optimizer.exports.splitting import SPLITS, kept_as_json
    from question_optimizer.providers import rehearsal_account

    origin = Origin(
        drawn.choice.fingerprints,
        drawn.choice.pipelines,
        rehearsal_account().model,
        args.negatives,
    )
    counts = {name: write(name, work, folder, origin) for name in args.format}
    files.write_json(folder / SPLITS, kept_as_json(drawn.division.kept))
    facts = facts_of(work, drawn, args, counts)
    write_cards(folder, facts)
    refuse_leaks(folder, drawn.gold, work.folder)
    write_summary(folder, facts, work, settings, args)
    return facts


def facts_of(
    work: Workspace,
    drawn: Drawn,
    args: argparse.Namespace,
    counts: dict[str, dict[str, int]],
) -> Facts:
    """What the export tells of itself."""
    from question_optimizer.exports.cards import gather

    choice = drawn.choice
    latest = choice.chosen[0].configuration
    unit = drawn.division.kept.unit
    facts = gather(work, latest, unit, drawn.left_out, counts, args.negatives)
    return replace(facts, configuration=choice.fingerprints, pipeline=choice.pipelines)


def write_summary(
    folder: Path, facts: Facts, work: Workspace, settings: Settings, args: argparse.Namespace
) -> None:
    """export.json and, last of all, its meta file."""
    from question_optimizer import files

    questions = hashlib.sha256()
    for row in work.ask("SELECT id, digest, side FROM questions WHERE side<>'' ORDER BY id"):
        questions.update(json.dumps(row).encode())
    inputs = {"questions": questions.hexdigest()}
    gold = settings.data_dir / GOLD
    if gold.exists():
        inputs["gold"] = files.sha256(gold)
    used = {
        "format": list(args.format),
        "shares": args.shares,
        "negatives": args.negatives,
        "checked": args.checked,
        "limit": args.limit,
        "seed": settings.seed,
        "embedding_model": settings.embedding_model,
    }
    files.write_json(folder / SUMMARY, asdict(facts))
    files.write_meta(
        folder / SUMMARY,
        phase="export_questions",
        settings=used,
        inputs=inputs,
        counts=dict(facts.sizes),
        rehearsal=bool(facts.rehearsal),
    )


def refuse_leaks(folder: Path, gold: list[GoldItem], scratch: Path) -> None:
    """UserError with exit code 3 naming the first leak in a folder."""
    from question_optimizer.exports.leaks import find_leaks

    if leak := next(find_leaks(folder, gold, scratch), None):
        raise UserError(str(leak).replace(f"{folder}/", ""), exit_code=NO_GO)


def check(folder: Path, settings: Settings) -> int:
    """Search an export that exists; the exit code."""
    from question_optimizer import files
    from question_optimizer.exports.formats import require
    from question_optimizer.exports.reading import MADE_BY, formats_in

    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; name one that {MADE_BY} made")
    files.read_meta(folder / SUMMARY, made_by=MADE_BY)
    require(formats_in(folder))
    with tempfile.TemporaryDirectory(prefix="question-optimizer-") as scratch:
        refuse_leaks(folder, gold_of(settings), Path(scratch))
    print(f"no leak in {', '.join(formats_in(folder))} -> {folder}")
    return 0


# ---------------------------------------------------------------------- telling


def report(facts: Facts, drawn: Drawn, args: argparse.Namespace) -> None:
    """On stderr: what was left out, and where the split is not as it was asked for."""
    from question_optimizer.exports.dataset import LEFT_OUT

    if facts.left_out:
        reasons = ", ".join(f"{count:,} {LEFT_OUT[why]}" for why, count in facts.left_out.items())
        print(f"left out: {reasons}", file=sys.stderr)
    if short := facts.counts.get("triplets", {}).get("too_few_negatives"):
        print(
            f"triplets: {short:,} of {sum(facts.sizes.values()):,} questions have fewer than "
            f"{facts.negatives} negatives and are not among them",
            file=sys.stderr,
        )
    if facts.unit != "document":
        print(f"fewer than three documents: split by {facts.unit}", file=sys.stderr)
    total, wanted = sum(facts.sizes.values()), sum(args.shares.values())
    reached = {side: count / total for side, count in facts.sizes.items()}
    if any(abs(reached[side] - args.shares[side] / wanted) > 0.05 for side in reached):
        sides = ", ".join(f"{side} {share:.0%}" for side, share in reached.items())
        print(f"shares reached: {sides}; {', '.join(_causes(facts, drawn))}", file=sys.stderr)


def _causes(facts: Facts, drawn: Drawn) -> Iterator[str]:
    """Why the shares are not those that were asked for."""
    count = sum(facts.groups.values())
    noun = facts.unit if count == 1 else f"{facts.unit}s"
    of = f"of {count:,} {noun}"
    if drawn.held:
        yield f"{drawn.held:,} {of} hold gold dev or test items and are not trained on"
    if drawn.earlier:
        yield f"{drawn.earlier:,} {of} stay where an earlier export put them"
    if not drawn.held and not drawn.earlier:
        yield f"there are {count:,} {noun}, which go to a side as a whole"


def told(facts: Facts) -> str:
    """How many questions, by side, and whether a rehearsal made them."""
    sides = ", ".join(f"{side} {count:,}" for side, count in facts.sizes.items())
    note = ", written by the rehearsal and not by a model" if facts.rehearsal else ""
    return f"{sum(facts.sizes.values()):,} questions ({sides}{note})"


def foretold(work: Workspace, facts: Facts, args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Rows that each format would have by side; of triplets at most so many."""
    corpus = work.one("SELECT COUNT(*) FROM chunks")
    more = {"beir": {"corpus": corpus, "queries": sum(facts.sizes.values())}}
    sizes = {str(side): count for side, count in work.sizes().items()}
    return {name: sizes | more.get(name, {}) for name in args.format}


def show(facts: Facts, where: str, args: argparse.Namespace, **more: Any) -> None:
    """The result on stdout: one line, or the summary as JSON and the line on stderr."""
    if args.json:
        print(json.dumps({**asdict(facts), **more}, ensure_ascii=False, indent=2))
    print(f"{told(facts)}{where}", file=sys.stderr if args.json else sys.stdout)


def main(argv: list[str] | None = None) -> int:
    from config import load_settings, store_of
    from question_optimizer.exports.folders import recover, refuse_foreign, replaced, scratch
    from question_optimizer.exports.formats import require
    from question_optimizer.exports.splitting import SPLITS
    from question_optimizer.exports.workspace import workspace
    from question_optimizer.locks import only_one
    from question_optimizer.reports.proof import write_proof_report

    args = parse(argv)
    settings = load_settings(args)
    if args.check:
        return check(args.check, settings)
    require(args.format)
    out = args.out or settings.data_dir / "exports"
    made = (out / SUMMARY).is_file()
    if args.prove and made and not (settings.qdrant_path or settings.qdrant_url):
        return prove.run(out, settings, args, report=write_proof_report)
    with ExitStack() as stack:
        if not args.dry_run:
            stack.enter_context(only_one(out.with_name(f".{out.name}.lock"), "an export"))
            recover(out)
        refuse_foreign(out, SUMMARY)
        store = store_of(settings, even_if_locked=args.even_if_locked)
        stack.callback(store.close)
        if args.dry_run:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            temporary = stack.enter_context(scratch(out))
        work = stack.enter_context(workspace(temporary))
        drawn = draw(work, store, settings, args, out / SPLITS)
        if args.dry_run:
            facts = facts_of(work, drawn, args, {})
            report(facts, drawn, args)
            show(facts, "; nothing written", args, would_write=foretold(work, facts, args))
            return prove.run(out, settings, args) if args.prove and made else 0
        if "triplets" in args.format:
            mine_negatives(work, drawn, store, settings, args.negatives)
        with replaced(out, finished_by=SUMMARY) as folder:
            facts = export(work, drawn, settings, args, folder)
    report(facts, drawn, args)
    show(facts, f" -> {out}", args)
    return prove.run(out, settings, args, report=write_proof_report) if args.prove else 0


if __name__ == "__main__":
    sys.exit(run(main))
