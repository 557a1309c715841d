"""What the quality filters reject, drawn by seed for reading; precision is a person's verdict.

    python benchmarks/filter_precision.py --qdrant-path path/to/qdrant
    python benchmarks/filter_precision.py --qdrant-path path/to/qdrant --seed 7 --only too_short,fit

Runs every filter over every chunk of a folder, in the order of seed 0, prints the counts, then for
each reason code (and `fit`: what no filter rejected, to find the misses) up to 40 chunks at random.
Read each and ask: could one put a fit question to this chunk alone? Rejected rightly if not; a
`near_duplicate` is shown with the chunk it resembles, and is right if no question tells them apart.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from question_optimizer.chunk_quality import CODES, ChunkFilter, Rejection  # noqa: E402
from question_optimizer.chunk_store import chunk_of, open_store  # noqa: E402
from question_optimizer.hostile_text import printable  # noqa: E402
from question_optimizer.records import Chunk  # noqa: E402


class Verdict(NamedTuple):
    chunk: Chunk
    rejection: Rejection | None
    like: Chunk | None


def judge(chunks: list[Chunk]) -> dict[str, list[Verdict]]:
    """Every chunk under its reason code or under `fit`."""
    found: dict[str, list[Verdict]] = defaultdict(list)
    quality, by_id = ChunkFilter(CODES), {chunk.chunk_id: chunk for chunk in chunks}
    for chunk in chunks:
        rejection = quality.unfit(chunk)
        like = by_id[rejection.like] if rejection and rejection.like is not None else None
        found[rejection.reason if rejection else "fit"].append(Verdict(chunk, rejection, like))
    return found


def show(number: int, verdict: Verdict, width: int) -> None:
    chunk = verdict.chunk
    measure = f"  measure {verdict.rejection.measure:g}" if verdict.rejection else ""
    print(f"\n[{number}] {chunk.file_name} · {' > '.join(chunk.headings)}{measure}")
    print(printable(chunk.chunk_text)[:width])
    if verdict.like:
        print(f"    like {verdict.like.file_name} · {' > '.join(verdict.like.headings)}")
        print(printable(verdict.like.chunk_text)[:width])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qdrant-path", type=Path, required=True)
    parser.add_argument("--collection")
    parser.add_argument("--of", type=int, default=40, help="how many of each code (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the chunks shown (default: 0)")
    parser.add_argument("--only", help="codes to show, parted by commas; also fit")
    parser.add_argument("--width", type=int, default=600, help="characters shown of a chunk")
    args = parser.parse_args()
    store = open_store(path=args.qdrant_path, collection=args.collection)
    ids = store.point_ids()
    random.Random(0).shuffle(ids)
    read = (chunk_of(point_id, payload)[0] for point_id, payload in store.payloads(ids))
    found = judge([chunk for chunk in read if chunk])
    store.close()
    print(", ".join(f"{len(found[code])} {code}" for code in (*CODES, "fit")))
    for code in (*CODES, "fit"):
        if found[code] and (not args.only or code in args.only.split(",")):
            drawn = random.Random(args.seed).sample(found[code], min(args.of, len(found[code])))
            print(f"\n===== {code}: {len(drawn)} of {len(found[code])}")
            for number, verdict in enumerate(drawn, 1):
                show(number, verdict, args.width)
    return 0


if __name__ == "__main__":
    sys.exit(main())
