"""Phase 1 of 5 · Annotate: for each chunk a persona, suggestions by an LLM, and your gold question.

You pick a suggestion, edit one, write your own, or skip. Every decision is on disk before the next
chunk shows; the same command goes on where you stopped.

    python annotate_chunks.py
    python annotate_chunks.py --replay data/sample/decisions.jsonl --rehearsal
    python annotate_chunks.py --show 5

Reads   data/raw_chunks.jsonl, data/personas.json
Writes  data/annotations.sqlite (the truth), data/gold_dataset.json (exported from it)
Next    python optimize_pipeline.py
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer.cli import count, dry_run_line, finish_on_interrupt, phase_parser, run

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.providers import LLMClientConfig
    from question_optimizer.records import Chunk, Decision, Persona

OUTPUT = "gold_dataset.json"
LOG = "annotations.sqlite"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__, calls_llm=True)
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="take the decisions from a JSONL file"
    )
    parser.add_argument(
        "--show", type=count, metavar="N", help="print N random gold entries, and exit"
    )
    parser.add_argument("--plain", action="store_true", help="line mode (the only one as yet)")
    return parser.parse_args(argv)


def show(settings: Settings, number: int) -> int:
    """Print `number` random entries of the gold set, the same ones for the same seed."""
    from question_optimizer.gold import read_gold
    from question_optimizer.hostile_text import printable

    path = settings.data_dir / OUTPUT
    gold = read_gold(path).items
    for item in random.Random(settings.seed).sample(gold, min(number, len(gold))):
        print(f"— {item.chunk_id} · {item.persona_id} · {item.origin} · {item.split}")
        print(printable(item.chunk_text))
        print(f"→ {printable(item.gold_question)}\n")
    print(f"{min(number, len(gold))} of {len(gold)} gold questions <- {path}")
    return 0


def read_decisions(path: Path) -> dict[str, Decision]:
    """{chunk id: decision}; the last line on a chunk wins."""
    from question_optimizer import files
    from question_optimizer.records import Decision

    decisions = files.read_records(path, Decision, made_by=None)
    return {str(decision.chunk_id): decision for decision in decisions}


def pending(
    chunks: list[Chunk], store: AnnotationStore, decisions: dict[str, Decision] | None
) -> list[Chunk]:
    """The chunks still to be decided; in a replay, those whose decision is not yet recorded."""
    if decisions is None:
        return [chunk for chunk in chunks if not store.is_decided(chunk)]
    there = {str(chunk.chunk_id) for chunk in chunks}
    if elsewhere := [chunk_id for chunk_id in decisions if chunk_id not in there]:
        print(
            f"{len(elsewhere)} of {len(decisions)} decisions are on chunks outside the sample "
            f"(such as {elsewhere[0]}); fetch a larger one to use them",
            file=sys.stderr,
        )
    return [
        chunk
        for chunk in chunks
        if (decision := decisions.get(str(chunk.chunk_id)))
        and not store.is_decided(chunk, decision)
    ]


def export(store: AnnotationStore, settings: Settings) -> tuple[int, bool]:
    """Write the gold set and its meta from the log.

    Returns the number of gold questions and whether the rehearsal made suggestions for any.
    """
    from question_optimizer import files

    gold = store.gold()
    path = settings.data_dir / OUTPUT
    files.write_json(path, [item.model_dump(mode="json") for item in gold])
    suggesters = sorted({model for item in gold for model in item.suggested_by})
    files.write_meta(
        path,
        phase="annotate_chunks",
        settings={"seed": settings.seed, "split_unit": store.split_unit},
        inputs={
            "raw_chunks.jsonl": files.sha256(settings.data_dir / "raw_chunks.jsonl"),
            settings.personas_file.name: files.sha256(settings.personas_file),
        },
        counts={
            "gold": len(gold),
            "skipped": dict(sorted(store.skipped().items())),
            "origins": dict(sorted(Counter(item.origin for item in gold).items())),
            "splits": dict(sorted(Counter(item.split or "none" for item in gold).items())),
        },
        models=suggesters,
        rehearsal="rehearsal" in suggesters,
    )
    return len(gold), "rehearsal" in suggesters


def work(
    settings: Settings,
    args: argparse.Namespace,
    accounts: list[LLMClientConfig],
    store: AnnotationStore,
    chunks: list[Chunk],
    personas: list[Persona],
    decisions: dict[str, Decision] | None,
    sample: list[Chunk],
) -> None:
    """The session over `chunks`, or the replay of `decisions` on them."""
    from rich.console import Console

    from custom_lm import LanguageModels
    from question_optimizer.annotation.session import Person, Replay, annotate
    from question_optimizer.embedding import Embedder
    from question_optimizer.personas import PersonaMatcher
    from question_optimizer.programs.suggester import LLMSuggester

    embedder = Embedder(settings.embedding_model, cache_dir=settings.data_dir / "cache")
    with LanguageModels(
        accounts,
        data_dir=settings.data_dir,
        max_cost=args.max_cost,
        limits_url=settings.secret_of("limits_url"),
    ) as models:
        # A person's Ctrl-C should end the prompt at once; a replay first finishes its calls.
        gentle = nullcontext() if decisions is None else finish_on_interrupt(models.dispatcher)
        with gentle:
            annotate(
                chunks,
                store=store,
                matcher=PersonaMatcher(personas, embedder),
                suggester=LLMSuggester(models.lm("teacher")),
                decider=Person(Console()) if decisions is None else Replay(decisions),
                suggested_by=models.dispatcher.models("teacher"),
                seed=settings.seed,
                sample=sample,
                saved=lambda: export(store, settings),
            )


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer import files
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.locks import only_one
    from question_optimizer.personas import load_personas
    from question_optimizer.records import Chunk

    args = parse(argv)
    settings = load_settings(args)
    if args.show is not None:
        return show(settings, args.show)
    source = settings.data_dir / "raw_chunks.jsonl"
    files.check_schema(source)
    chunks = files.read_records(source, Chunk, made_by="fetch_chunks.py")
    personas = load_personas(settings.personas_file)
    decisions = read_decisions(args.replay) if args.replay else None
    accounts = accounts_of(settings)
    if args.dry_run:
        typical = sum(len(chunk.chunk_text) for chunk in chunks) / max(1, len(chunks)) + 2500
        calls = len(chunks) if decisions is None else len(decisions)
        print(dry_run_line(accounts, {"teacher": calls}, characters=typical))
        return 0
    with (
        only_one(settings.data_dir / f"{LOG}.lock", "another annotation session"),
        AnnotationStore(settings.data_dir / LOG) as store,
    ):
        todo = pending(chunks, store, decisions)
        try:
            if todo:
                work(settings, args, accounts, store, todo, personas, decisions, chunks)
        finally:
            gold, rehearsal = export(store, settings)
        left = len(pending(chunks, store, None))
        unit = store.split_unit
    by = " (suggestions by the rehearsal)" if rehearsal else ""
    note = f", {left} chunks of the sample still open" if decisions is None and left else ""
    if unit in ("section", "chunk"):
        print(f"too few documents to split by: items are split by {unit}", file=sys.stderr)
    print(f"{gold} gold questions{by}{note} -> {settings.data_dir / OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
