"""Phase 1 of 5 · Fetch chunks: an unbiased random sample of a Qdrant collection.

Every point of the collection has the same chance, unless --design says otherwise. The order depends
on the seed alone, so a larger sample with the same seed extends a smaller one, and annotation goes
on where it was. --filters passes over chunks about which nothing can be asked, and takes the next
ones instead. Nothing in the folder is created, changed or locked.

    python fetch_chunks.py --qdrant-path data/sample/small_sqlite --sample-size 200
    python fetch_chunks.py --qdrant-path data/sample/small_sqlite --design by-document --filters all

Reads   a local Qdrant folder, or a Qdrant server
Writes  data/raw_chunks.jsonl, data/rejected_chunks.jsonl
Next    python annotate_chunks.py
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer.cli import phase_parser, positive, run
from question_optimizer.errors import UserError

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.sampling import Coverage, PassedOver, Sample

OUTPUT = "raw_chunks.jsonl"
REJECTED = "rejected_chunks.jsonl"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__)
    parser.add_argument(
        "--sample-size",
        type=positive,
        default=200,
        metavar="N",
        help="how many chunks (default: 200)",
    )
    _add_design_flags(parser)
    parser.add_argument("--text-key", metavar="KEY", help="payload key of the text; dots descend")
    parser.add_argument(
        "--via-client",
        action="store_true",
        help="read a local folder through the official client, on a private copy (slow)",
    )
    parser.add_argument(
        "--even-if-locked",
        action="store_true",
        help="read a local folder although another process has it open",
    )
    args = parser.parse_args(argv)
    if args.allocation and args.design not in ("by-document", "by-heading"):
        parser.error("argument --allocation: needs --design by-document or by-heading")
    if args.min_words and "too_short" not in args.filters:
        parser.error("argument --min-words: needs --filters with too_short")
    return args


def _add_design_flags(parser: argparse.ArgumentParser) -> None:
    from question_optimizer.chunk_quality import CODES, MIN_WORDS
    from question_optimizer.sampling import ALLOCATIONS, DESIGNS

    parser.add_argument(
        "--design",
        choices=DESIGNS,
        default="random",
        help="random (default), by-document or by-heading: each in its share; diverse: spread over "
        "the vectors in the collection",
    )
    parser.add_argument(
        "--allocation",
        choices=ALLOCATIONS,
        help="share of a document or heading: proportional to its chunks (default: every chunk has "
        "the same chance), to their square root, or equal",
    )
    parser.add_argument(
        "--filters",
        type=filter_codes,
        default=(),
        metavar="CODES",
        help=f"pass over unfit chunks: all, none (default), or a list of {', '.join(CODES)}",
    )
    parser.add_argument(
        "--min-words",
        type=positive,
        metavar="N",
        help=f"below N words a chunk needs a full statement (default: {MIN_WORDS})",
    )


def filter_codes(text: str) -> tuple[str, ...]:
    """argparse type: all, none, or codes parted by commas."""
    from question_optimizer.chunk_quality import CODES

    if text in ("all", "none"):
        return CODES if text == "all" else ()
    asked = {code.strip() for code in text.split(",")}
    if unknown := sorted(asked.difference(CODES)):
        known = ", ".join(("all", "none", *CODES))
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {known}")
    return tuple(code for code in CODES if code in asked)


def draw(store: ChunkStore, settings: Settings, args: argparse.Namespace) -> Sample:
    """The sample; UserError where nothing in the collection has text or is fit."""
    from question_optimizer.chunk_quality import MIN_WORDS
    from question_optimizer.chunk_store import TEXT_KEYS
    from question_optimizer.sampling import Plan, sample

    plan = Plan(
        design=args.design,
        allocation=args.allocation or "proportional",
        filters=args.filters,
        min_words=args.min_words or MIN_WORDS,
    )
    drawn = sample(store, args.sample_size, seed=settings.seed, text_key=args.text_key, plan=plan)
    where = f"collection {store.collection!r}"
    if not drawn.points:
        raise UserError(f"{where}: has no points; ingest documents first")
    if not drawn.chunks and len(drawn.without_text) < len(drawn.passed_over):
        counted = told(Counter(over.reason for over in drawn.passed_over))
        raise UserError(f"{where}: none of its chunks is fit ({counted}); leave out some --filters")
    if not drawn.chunks:
        looked = args.text_key or f"_node_content.text, {', '.join(TEXT_KEYS)}"
        raise UserError(
            f"{where}: none of its {drawn.points} points has text under {looked}; "
            "name it with --text-key"
        )
    return drawn


def write(drawn: Sample, collection: str, settings: Settings, args: argparse.Namespace) -> Path:
    """Both files and their meta, whole or not at all; returns the main one."""
    from question_optimizer import files

    output, rejected = settings.data_dir / OUTPUT, settings.data_dir / REJECTED
    rows = [chunk_row(chunk.model_dump()) for chunk in drawn.chunks]
    inputs = {"drawn_point_ids": files.digest([row["chunk_id"] for row in rows])}
    files.write_jsonl(output, rows)
    files.write_jsonl(rejected, map(rejected_row, drawn.passed_over))
    for path in (rejected, output):
        files.write_meta(
            path,
            phase="fetch_chunks",
            settings=settings_used(collection, settings, args),
            inputs=inputs,
            counts=counts_of(drawn),
            rehearsal=settings.rehearsal,
        )
    return output


def chunk_row(row: dict[str, Any]) -> dict[str, Any]:
    """A chunk as it is written: neighbours only where there are some."""
    neighbours = ("previous_text", "next_text")
    return {k: value for k, value in row.items() if k not in neighbours or value is not None}


def rejected_row(over: PassedOver) -> dict[str, Any]:
    """A line of the rejected chunks; an excerpt lets a person check the reason."""
    row = {"chunk_id": over.chunk_id, "reason": over.reason, "measure": over.measure}
    like = {} if over.like is None else {"like": over.like}
    return {**row, **like, "chunk_text": over.excerpt} if over.excerpt else row


def settings_used(collection: str, settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """What the sample depends on; settings without effect are left out."""
    used = {
        "collection": collection,
        "seed": settings.seed,
        "sample_size": args.sample_size,
        "text_key": args.text_key,
        "design": args.design,
        "filters": list(args.filters),
    }
    if args.design in ("by-document", "by-heading"):
        used["allocation"] = args.allocation or "proportional"
    if args.min_words:
        used["min_words"] = args.min_words
    return used


def counts_of(drawn: Sample) -> dict[str, Any]:
    """How much there was, was taken, was passed over, and what of it is reached."""
    return {
        "points": drawn.points,
        "chunks": len(drawn.chunks),
        "without_text": len(drawn.without_text),
        "passed_over": dict(sorted(Counter(over.reason for over in drawn.passed_over).items())),
        "text_keys": dict(sorted(drawn.text_keys.items())),
        "coverage": drawn.coverage._asdict() if drawn.coverage else None,
    }


def told(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def coverage_line(coverage: Coverage, points: int) -> str:
    """Which share of the documents and headings the sample reaches."""
    shares = [
        f"{reached} of {there} {what} ({100 * reached / there:.0f} %)"
        for reached, there, what in (
            (coverage.documents, coverage.of_documents, "documents"),
            (coverage.headings, coverage.of_headings, "headings"),
        )
        if there
    ]
    part = f" of those seen in {coverage.looked_at:,} random chunks"
    return f"coverage: {', '.join(shares)}{part if coverage.looked_at < points else ''}"


def report(drawn: Sample, settings: Settings, wanted: int) -> None:
    """On stderr: what was passed over, what is missing, what is reached."""
    reasons = Counter(over.reason for over in drawn.passed_over)
    if reasons:
        print(f"passed over: {told(reasons)} -> {settings.data_dir / REJECTED}", file=sys.stderr)
    if len(drawn.chunks) < wanted:
        fit = "fit chunks" if set(reasons) - {"no_text"} else "chunks with text"
        print(
            f"the collection has only {len(drawn.chunks)} {fit}, {wanted} were asked for",
            file=sys.stderr,
        )
    if drawn.coverage:
        print(coverage_line(drawn.coverage, drawn.points), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    from config import load_settings, store_of

    args = parse(argv)
    settings = load_settings(args)
    store = store_of(settings, via_client=args.via_client, even_if_locked=args.even_if_locked)
    try:
        drawn = draw(store, settings, args)
    finally:
        store.close()
    output = write(drawn, store.collection, settings, args)
    report(drawn, settings, args.sample_size)
    note = " (for a rehearsal; the chunks are real)" if settings.rehearsal else ""
    print(f"{len(drawn.chunks)} chunks{note} -> {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
