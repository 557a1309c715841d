"""Sampling 200 chunks out of N points: fetch_chunks.py against the official client, in one run.

    python benchmarks/fetch_vs_client.py                 # 100,000 points of 384 dimensions, 1.1 GB
    python benchmarks/fetch_vs_client.py --points 10000

The folder is made from the sample's real rows with new ids and slightly moved vectors, in a
temporary place. Each contestant runs in a fresh process, alternating, and does the same job: list
every id, draw 200 by seed, read their payloads, write JSONL. The client's way is its best known
one: one scroll page of all ids without payloads, then one retrieve. Prints seconds and peak memory
of each run, and the ratios of medians. Both must have drawn the same chunks.
"""

from __future__ import annotations

import argparse
import base64
import json
import pickle
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "data" / "sample" / "small_sqlite"

CLIENT_JOB = """
import json, random, sys, warnings
warnings.simplefilter("ignore")
from qdrant_client import QdrantClient
folder, output, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = QdrantClient(path=folder)
name = client.get_collections().collections[0].name
count = client.count(name).count
records, _ = client.scroll(name, limit=count, with_payload=False, with_vectors=False)
ids = sorted(record.id for record in records)
random.Random(0).shuffle(ids)
found = {r.id: r.payload for r in client.retrieve(name, ids[:size], with_payload=True)}
with open(output, "w", encoding="utf-8") as file:
    for i in ids[:size]:
        text = json.loads(found[i]["_node_content"])["text"]
        file.write(json.dumps({"chunk_id": i, "chunk_text": text}) + "\\n")
client.close()
"""


def build(folder: Path, points: int) -> None:
    """A local-mode folder of `points` points, byte-compatible with what the client writes."""
    from qdrant_client.http import models

    source = sqlite3.connect(
        f"file:{SOURCE}/collection/sqlite_docs/storage.sqlite?mode=ro", uri=True
    )
    rows = [pickle.loads(row[0]) for row in source.execute("SELECT point FROM points")]
    source.close()
    rng = random.Random(7)
    place = folder / "collection" / "bench"
    place.mkdir(parents=True)
    vectors = {"bench": {"vectors": {"size": 384, "distance": "Cosine"}}}
    (folder / "meta.json").write_text(json.dumps({"collections": vectors, "aliases": {}}))
    database = sqlite3.connect(place / "storage.sqlite")
    database.execute("CREATE TABLE points (id TEXT PRIMARY KEY, point BLOB)")

    def made():  # type: ignore[no-untyped-def]
        for number in range(points):
            row = rows[number % len(rows)]
            point_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            payload = dict(row.payload)
            payload["_node_content"] = payload["_node_content"].replace(row.id, point_id, 1)
            stored = row.vector[""] if isinstance(row.vector, dict) else row.vector
            vector = {"": [value + rng.uniform(-1e-3, 1e-3) for value in stored]}
            point = models.PointStruct.model_construct(id=point_id, vector=vector, payload=payload)
            yield base64.b64encode(pickle.dumps(point_id)).decode(), pickle.dumps(point)

    with database:
        database.executemany("INSERT INTO points VALUES (?, ?)", made())
    database.close()


def measure(command: list[str]) -> tuple[float, float]:
    """(seconds, peak MB) of a process, Python's start included."""
    wrapper = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", wrapper, *command], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command[:3])}\n{done.stderr}")
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    return seconds, int(done.stdout.split()[-1]) / unit


def drawn(path: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["chunk_id"], row["chunk_text"]) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--sample-size", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fetch-benchmark-") as place:
        folder, ours, theirs = Path(place) / "qdrant", Path(place) / "ours", Path(place) / "theirs"
        build(folder, args.points)
        size = (folder / "collection/bench/storage.sqlite").stat().st_size
        print(f"{args.points:,} points of 384 dimensions, {size / 1e6:,.0f} MB")
        size_text = str(args.sample_size)
        jobs = {
            "fetch_chunks.py": [
                *(sys.executable, str(ROOT / "fetch_chunks.py"), "--qdrant-path", str(folder)),
                *("--data-dir", str(ours), "--sample-size", size_text),
            ],
            "official client": [
                sys.executable,
                "-c",
                CLIENT_JOB,
                str(folder),
                str(theirs),
                size_text,
            ],
        }
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for run in range(args.runs):
            for name, command in jobs.items():
                seconds, memory = measure(command)
                figures[name].append((seconds, memory))
                print(f"run {run + 1}  {name:16} {seconds:8.2f} s {memory:8.0f} MB", flush=True)
        if drawn(ours / "raw_chunks.jsonl") != drawn(theirs):
            raise SystemExit("the two drew different chunks; the comparison is void")
    time_of, memory_of = (
        {name: statistics.median(f[i] for f in runs) for name, runs in figures.items()}
        for i in (0, 1)
    )
    ratio = [of["official client"] / of["fetch_chunks.py"] for of in (time_of, memory_of)]
    print(f"same chunks; {ratio[0]:.1f} times faster, {ratio[1]:.1f} times less memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
