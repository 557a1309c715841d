"""Phase 1 of 5 · Fetch chunks: an unbiased random sample of a Qdrant collection.

Every point of the collection has the same chance. The order depends on the seed alone, so a larger
sample with the same seed extends a smaller one, and annotation goes on where it was. Nothing in
the folder is created, changed or locked.

    python fetch_chunks.py --qdrant-path data/sample/small_sqlite --sample-size 200

Reads   a local Qdrant folder, or a Qdrant server
Writes  data/raw_chunks.jsonl, data/rejected_chunks.jsonl
Next    python annotate_chunks.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer.cli import phase_parser, positive, run
from question_optimizer.errors import UserError

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.chunk_store import ChunkStore, Sample

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
    return parser.parse_args(argv)


def draw(store: ChunkStore, settings: Settings, args: argparse.Namespace) -> Sample:
    """The sample; UserError where nothing in the collection has text."""
    from question_optimizer.chunk_store import TEXT_KEYS, sample

    drawn = sample(store, args.sample_size, seed=settings.seed, text_key=args.text_key)
    where = f"collection {store.collection!r}"
    if not drawn.points:
        raise UserError(f"{where}: has no points; ingest documents first")
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

    output = settings.data_dir / OUTPUT
    used = {
        "collection": collection,
        "seed": settings.seed,
        "sample_size": args.sample_size,
        "text_key": args.text_key,
    }
    rows = [chunk.model_dump() for chunk in drawn.chunks]
    inputs = {"drawn_point_ids": files.digest([row["chunk_id"] for row in rows])}
    files.write_jsonl(output, rows)
    rejected = settings.data_dir / REJECTED
    files.write_jsonl(
        rejected, ({"chunk_id": i, "reason": "no_text", "measure": 0} for i in drawn.without_text)
    )
    counts = {
        "points": drawn.points,
        "chunks": len(drawn.chunks),
        "without_text": len(drawn.without_text),
        "text_keys": dict(sorted(drawn.text_keys.items())),
    }
    for path in (rejected, output):
        files.write_meta(
            path,
            phase="fetch_chunks",
            settings=used,
            inputs=inputs,
            counts=counts,
            rehearsal=settings.rehearsal,
        )
    return output


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
    if drawn.without_text:
        print(
            f"{len(drawn.without_text)} points without text passed over -> "
            f"{settings.data_dir / REJECTED}",
            file=sys.stderr,
        )
    if len(drawn.chunks) < args.sample_size:
        print(
            f"the collection has only {len(drawn.chunks)} chunks with text, "
            f"{args.sample_size} were asked for",
            file=sys.stderr,
        )
    note = " (for a rehearsal; the chunks are real)" if settings.rehearsal else ""
    print(f"{len(drawn.chunks)} chunks{note} -> {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
