"""The generator against its peers, against the limits, against memory and against SIGKILL.

    python benchmarks/generator.py                        # everything, about an hour
    python benchmarks/generator.py --only speed --chunks 1296 --json speed.json
    python benchmarks/generator.py --only kills --kills 50 --folder copy/of/qdrant

A local server in a process of its own answers in 50 ms with the rehearsal's words
(`limit_server.py`); the contestants take turns, each in a fresh process on a fresh copy of the
sample's folder (its 648 chunks, or copies of them with new ids).

    speed    no limits, 64 calls at once: chunks a second and CPU milliseconds a chunk
               ours          gates recorded, ledger, written back into the folder
               ours-bare     gates off, nothing written back: what the peers do
               evaluate      the same pipeline under dspy.Evaluate, its best number of threads
               parallel      the same under dspy.Parallel
               old           the application's former flow: a poll every 10 s where no client is
                             free, a consumer for each unit of concurrency, two structured calls,
                             each node deleted and added again
    limits   four keys of 600 calls a minute: accepted calls of the sum of the limits, after 30 s
    memory   peak memory at 10,000 and at 100,000 chunks, the rehearsal in process
    kills    SIGKILL at random moments until the folder is full: is every chunk's question there
             once, does the folder open each time, and what was asked twice?
    corpora  a whole corpus with planned quotas: summary, yields, time

CPU is the client process's, all threads, less what it took to start; unlike chunks a second it
bears a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
sys.path.insert(0, str(ROOT))  # for a checkout that is not installed

import limit_server  # noqa: E402

SECTIONS = ("speed", "limits", "memory", "kills", "corpora")
CONTEST = ("ours", "ours-bare", "evaluate", "parallel", "old")
THREADS = (16, 32, 64, 128)  # tried for the peers that use them
LATENCY_SECONDS = 0.05
CONCURRENCY = 64
PERSONA = "A train safety engineer who checks that systems fail safely."
_CALLS_AT_ONCE = 3  # while it is killed, so that there is something left to make for every kill
_HEAD_SECONDS = 30.0  # of a run with limits, left out: the pace has to settle
Figures = dict[str, Any]


# ---------------------------------------------------------------------- folders


def scaled(folder: Path, source: Path, collection: str, chunks: int) -> Path:
    """A copy of `source` with `chunks` points: its rows in turn, each with an id of its own."""
    import base64
    import pickle
    import uuid

    if folder.exists():
        return folder
    store = source / "collection" / collection / "storage.sqlite"
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    target = part / "collection" / collection / "storage.sqlite"
    ids = random.Random(7)
    with contextlib.closing(sqlite3.connect(store)) as read:
        blobs = [pickle.loads(row[0]) for row in read.execute("SELECT point FROM points")]  # ours
    with contextlib.closing(sqlite3.connect(target)) as write, write:
        write.execute("DELETE FROM points")
        for number in range(chunks):
            point = blobs[number % len(blobs)].model_copy(deep=False)
            new = str(uuid.UUID(int=ids.getrandbits(128), version=4))
            content = point.payload["_node_content"].replace(str(point.id), new, 1)
            point = point.model_copy(
                update={"id": new, "payload": {**point.payload, "_node_content": content}}
            )
            key = base64.b64encode(pickle.dumps(new, protocol=4)).decode()
            write.execute(
                "INSERT INTO points VALUES (?, ?)", (key, pickle.dumps(point, protocol=4))
            )
    part.rename(folder)
    return folder


def texts_of(folder: Path) -> list[str]:
    from question_optimizer.chunk_store import chunk_of, open_store

    store = open_store(path=folder)
    try:
        found = (chunk_of(i, payload)[0] for i, payload in store.payloads(store.point_ids()))
        return [chunk.chunk_text for chunk in found if chunk is not None]
    finally:
        store.close()


# ---------------------------------------------------------------------- contestants


def ours(setup: Figures) -> Figures:
    """The generator on its folder; bare without gates and write-back."""
    import qdrant_client  # noqa: F401 - imports are no part of the figures, the peers' neither

    import question_optimizer.programs.generation_report
    import question_optimizer.programs.question_worker  # noqa: F401
    from optimized_question_generator import OptimizedQuestionGenerator
    from question_optimizer.dispatcher import LLMDispatcher
    from question_optimizer.providers import LLMClientConfig, rehearsal_account
    from question_optimizer.records import Persona

    bare = setup["contestant"] == "ours-bare"
    accounts = [
        LLMClientConfig(name, "m", setup["url"], name, **setup["account"]) for name in setup["keys"]
    ] or [rehearsal_account()]
    dispatcher = LLMDispatcher(accounts)
    generator = OptimizedQuestionGenerator(
        qdrant_path=setup["folder"],
        dispatcher=dispatcher,
        personas=[Persona(id="p", name="p", description=PERSONA)],
        pipeline=None,
        data_dir=setup["data"],
        gates="off" if bare else setup.get("gates", "record"),
        write_back=not bare,
    )

    async def go() -> Any:
        try:
            return await generator.generate()
        finally:
            await dispatcher.aclose()

    with measured() as figures:
        summary = asyncio.run(go())
    if summary.stopped:
        raise RuntimeError(summary.stopped)
    return {**figures, "chunks": summary.generated, "written": summary.written}


def _dspy_lm(setup: Figures) -> None:
    import dspy

    lm = dspy.LM("openai/m", api_base=setup["url"], api_key=setup["keys"][0], cache=False)
    dspy.configure(lm=lm, disable_history=True, trace=None)


def _examples(setup: Figures) -> list[Any]:
    import dspy

    return [
        dspy.Example(chunk_text=text, persona_description=PERSONA).with_inputs(
            "chunk_text", "persona_description"
        )
        for text in texts_of(Path(setup["folder"]))
    ]


def evaluate(setup: Figures) -> Figures:
    """dspy.Evaluate with a metric that only counts."""
    import dspy

    from dspy_pipeline import SyntheticQuestionPipeline

    _dspy_lm(setup)
    with measured() as figures:
        judge = dspy.Evaluate(
            devset=_examples(setup),
            metric=lambda example, prediction, trace=None: bool(prediction.query),
            num_threads=setup["threads"],
            display_progress=False,
        )
        result = judge(SyntheticQuestionPipeline())
    return {**figures, "chunks": sum(bool(score) for *_, score in result.results)}


def parallel(setup: Figures) -> Figures:
    """dspy.Parallel."""
    import dspy

    from dspy_pipeline import SyntheticQuestionPipeline

    _dspy_lm(setup)
    with measured() as figures:
        program = SyntheticQuestionPipeline()
        run = dspy.Parallel(num_threads=setup["threads"], disable_progress_bar=True)
        made = run([(program, example) for example in _examples(setup)])
    return {**figures, "chunks": sum(bool(prediction.query) for prediction in made)}


def old(setup: Figures) -> Figures:
    """The application's former generator, after the facts known of it."""
    import instructor
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from openai import AsyncOpenAI
    from pydantic import BaseModel
    from qdrant_client import QdrantClient

    class Analysis(BaseModel):
        query_type: str
        query_format: str

    class Query(BaseModel):
        query: str

    class Dispatcher:
        """Hands out a client that is free, or None at once."""

        def __init__(self) -> None:
            self.semaphores = {name: asyncio.Semaphore(CONCURRENCY) for name in setup["keys"]}
            self.clients = {
                name: instructor.from_openai(
                    AsyncOpenAI(base_url=setup["url"], api_key=name, max_retries=0),
                    mode=instructor.Mode.JSON,
                )
                for name in setup["keys"]
            }

        async def get_available_client(self) -> str | None:
            return next((n for n, s in self.semaphores.items() if not s.locked()), None)

    async def ask(dispatcher: Dispatcher, model: type[BaseModel], text: str) -> Any:
        while (name := await dispatcher.get_available_client()) is None:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(10)
        async with dispatcher.semaphores[name]:
            return await dispatcher.clients[name].chat.completions.create(
                model="m",
                response_model=model,
                max_retries=0,
                messages=[{"role": "user", "content": f"{PERSONA}\n\n{text}"}],
            )

    async def go() -> int:
        client = QdrantClient(path=setup["folder"])
        store = QdrantVectorStore(setup["collection"], client=client)
        vectors = {
            str(p.id): p.vector
            for p in client.scroll(setup["collection"], limit=10**6, with_vectors=True)[0]
        }
        queue: asyncio.Queue[Any] = asyncio.Queue()
        dispatcher, done = Dispatcher(), 0
        for node in store.get_nodes(limit=10**6):
            queue.put_nowait(node)

        async def consume() -> None:
            nonlocal done
            while not queue.empty():
                node = queue.get_nowait()
                analysis = await ask(dispatcher, Analysis, node.text)
                query = await ask(dispatcher, Query, f"{analysis.query_type}\n{node.text}")
                node.metadata["generated_query"] = query.query
                node.embedding = vectors[node.node_id]
                store.delete_nodes([node.node_id])
                store.add([node])
                done += 1

        await asyncio.gather(*(consume() for _ in range(CONCURRENCY * len(setup["keys"]))))
        client.close()
        return done

    with measured() as figures:
        done = asyncio.run(go())
    return {**figures, "chunks": done}


RUNNERS: dict[str, Callable[[Figures], Figures]] = {
    "ours": ours,
    "ours-bare": ours,
    "evaluate": evaluate,
    "parallel": parallel,
    "old": old,
}


@contextlib.contextmanager
def measured() -> Iterator[Figures]:
    """Seconds, CPU seconds and peak memory of the block; imports before it are no part of it."""
    figures: Figures = {}
    cpu, began = time.process_time(), time.monotonic()
    yield figures
    figures["seconds"] = time.monotonic() - began
    figures["cpu"] = time.process_time() - cpu
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(setup: Figures, timeout: float = 3600) -> Figures:
    """One contestant in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(setup)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- sections


def speed(args: argparse.Namespace, work: Path) -> Figures:
    source = scaled(
        work / f"scaled-{args.chunks}", SAMPLE / "small_sqlite", "sqlite_docs", args.chunks
    )
    table: Figures = {}
    with limit_server.running() as server:
        for name in args.systems:
            rows = []
            for threads in THREADS if name in ("evaluate", "parallel") else (CONCURRENCY,):
                server.configure({"default": _key(name)})
                folder = work / "speed"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder / "qdrant")
                setup = _setup(name, folder, server.base_url, ["k0"], threads=threads)
                row = run(setup)
                row["threads"] = threads
                rows.append(_rates(row))
                print(f"  {name:10} {threads:4} {_told(rows[-1])}", flush=True)
            table[name] = max(rows, key=lambda row: row.get("chunks_per_s", 0))
    peers = [
        table[n] for n in ("evaluate", "parallel", "old") if "chunks_per_s" in table.get(n, {})
    ]
    if peers and "ours" in table:
        best = max(row["chunks_per_s"] for row in peers)
        least = min(row["cpu_ms"] for row in peers)
        for name in ("ours", "ours-bare"):
            if name in table:
                table[name]["x_best_peer"] = round(table[name]["chunks_per_s"] / best, 2)
                table[name]["cpu_of_best_peer"] = round(table[name]["cpu_ms"] / least, 2)
                print(f"  {name}: {table[name]['x_best_peer']} x the best peer's chunks a second")
    return table


def _key(name: str) -> Figures:
    if name != "old":
        return {"latency": LATENCY_SECONDS, "reply": "rehearsal"}
    text = {
        "query_type": "fact retrieval",
        "query_format": "formal question",
        "query": "Which functions does sqlite3_exec call for every row?",
    }
    return {"latency": LATENCY_SECONDS, "reply": "text", "text": json.dumps(text)}


def _setup(name: str, folder: Path, url: str, keys: list[str], **more: Any) -> Figures:
    return {
        "contestant": name,
        "folder": str(folder / "qdrant"),
        "data": str(folder / "data"),
        "collection": "sqlite_docs",
        "url": url,
        "keys": keys,
        "account": {"concurrency": CONCURRENCY},
        **more,
    }


def _rates(row: Figures) -> Figures:
    if row.get("chunks"):
        row["chunks_per_s"] = round(row["chunks"] / row["seconds"], 1)
        row["cpu_ms"] = round(1000 * row["cpu"] / row["chunks"], 2)
    return row


def _told(row: Figures) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    return (
        f"{row['chunks']:6} chunks {row['seconds']:7.1f} s {row['chunks_per_s']:7.1f}/s "
        f"{row['cpu_ms']:6.2f} CPU ms a chunk, peak {row['peak_mb']:.0f} MB"
    )


def limits(args: argparse.Namespace, work: Path) -> Figures:
    """Two calls a chunk over four keys of 600 a minute: 20 chunks a second at the very most."""
    keys = [f"k{n}" for n in range(4)]
    chunks = int(20 * args.seconds)
    source = scaled(work / f"limits-{chunks}", SAMPLE / "small_sqlite", "sqlite_docs", chunks)
    folder = work / "limits"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder / "qdrant")
    limit = {"limit": 600, "window": 60, "kind": "bucket", "burst": 20}
    with limit_server.running() as server:
        server.configure(
            {
                "keep_times": True,
                "default": {"latency": 0.2, "jitter": 0.3, "reply": "rehearsal", "requests": limit},
            }
        )
        account = {"concurrency": CONCURRENCY, "rpm_limit": 600}
        row = run(_setup("ours", folder, server.base_url, keys, account=account))
        stats = server.stats()["keys"]
    times = sorted(at for key in stats.values() for at in key["accepted_times"])
    first, last = times[0] + _HEAD_SECONDS, times[-1] - 5.0  # the last chunks do not fill the keys
    share = sum(first <= at < last for at in times) / (len(keys) * 10 * (last - first))
    refused = sum(key.get("refused", 0) for key in stats.values())
    figures = {**_rates(row), "share_of_limits": round(share, 4), "refused": refused}
    print(f"  {share:.2%} of the sum of the limits over {last - first:.0f} s, {refused} refused")
    return figures


def memory(args: argparse.Namespace, work: Path) -> Figures:
    """The rehearsal answers in process, so nothing but our own work fills the memory."""
    table: Figures = {}
    for gates in args.memory_gates:
        for chunks in args.sizes:
            source = scaled(
                work / f"memory-{chunks}", SAMPLE / "small_sqlite", "sqlite_docs", chunks
            )
            folder = work / "memory"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            shutil.copytree(source, folder / "qdrant")
            row = _rates(run(_setup("ours", folder, "", [], gates=gates), timeout=4 * 3600))
            table[f"{gates} {chunks}"] = row
            print(f"  {gates:10} {chunks:7} {_told(row)}", flush=True)
        small, large = (
            table[f"{gates} {n}"].get("peak_mb", 0) for n in (args.sizes[0], args.sizes[-1])
        )
        table[f"{gates} growth"] = round(large / small - 1, 3) if small else None
        print(f"  {gates}: {table[f'{gates} growth']:+.1%} from the smallest to the largest")
    return table


def kills(args: argparse.Namespace, work: Path) -> Figures:
    """The script as a person runs it, killed at random moments and started again."""
    chance = random.Random(args.seed)
    with limit_server.running() as server:
        alone = _killed(args, work / "alone", server, 0, chance)
        table = _killed(args, work / "kills", server, args.kills, chance)
    table["asked_twice"] = max(0, table["asked_twice"] - alone["asked_twice"])
    table["same_questions"] = table.pop("queries") == alone.pop("queries")
    for what, value in table.items():
        print(f"  {what:22} {value}")
    return table


def _killed(
    args: argparse.Namespace, folder: Path, server: Any, kills: int, chance: random.Random
) -> Figures:
    """Start it until it ends by itself; `kills` times it does not get so far."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(args.folder or SAMPLE / "small_sqlite", folder / "qdrant")
    server.configure({"default": {"latency": LATENCY_SECONDS, "reply": "rehearsal"}})
    (folder / "llm_providers.toml").write_text(
        f'[[accounts]]\nname = "one"\nmodel = "m"\nbase_url = "{server.base_url}"\n'
        f'api_key_env = "BENCH_KEY"\nconcurrency = {_CALLS_AT_ONCE}\n'
    )
    killed = opened = 0
    finished = written_anew = False
    while not finished:
        before = server.stats()["delivered"]
        process = subprocess.Popen(
            _script(folder, args),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BENCH_KEY": "k0"},
        )
        if killed < kills:
            _kill_at_a_moment(process, server, before, chance, written_anew)
        said = process.communicate(timeout=1800)[1]
        if process.returncode == -signal.SIGKILL:
            killed += 1
            opened += bool(_points(folder / "qdrant"))
        elif process.returncode:
            raise RuntimeError(said)
        else:  # it came through before its moment: what is left to kill is the writing, again
            finished = killed >= kills or not _empty_again(folder, args.folder)
            written_anew = not finished
    stats = server.stats()
    points = _points(folder / "qdrant")
    queries = {i: payload.get("generated_query") for i, payload in points.items()}
    return {
        "kills": killed,
        "opened_after_kill": opened,
        "points": len(points),
        "with_one_question": sum(_is_one(payload) for payload in points.values()),
        "calls": stats["delivered"],
        "asked_twice": stats["delivered"] - stats["requests"],
        "in_flight": stats["abandoned"] + stats["unread"],
        "queries": queries,
    }


def _empty_again(folder: Path, source: Path | None) -> bool:
    """Take the questions out of the collection, not out of the ledger, so that all are written
    anew; nothing is asked for again."""
    shutil.rmtree(folder / "qdrant")
    shutil.copytree(source or SAMPLE / "small_sqlite", folder / "qdrant")
    return True


def _points(folder: Path) -> dict[str, Any]:
    """Every payload, read by the official client, which opens and loads all of the folder."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))
    try:
        name = client.get_collections().collections[0].name
        records, _ = client.scroll(name, limit=10**6, with_vectors=True)
        assert all(record.vector for record in records)
        return {str(record.id): record.payload for record in records}
    finally:
        client.close()


def _is_one(payload: Figures) -> bool:
    """The same single question in the payload and in LlamaIndex's node."""
    node = json.loads(payload["_node_content"])["metadata"]
    query = payload.get("generated_query")
    return isinstance(query, str) and bool(query) and node.get("generated_query") == query


def _script(folder: Path, args: argparse.Namespace) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "optimized_question_generator.py")),
        *("--qdrant-path", str(folder / "qdrant"), "--data-dir", str(folder / "data")),
        *("--personas-file", str(ROOT / "tests" / "one_persona.json")),
        *("--providers-file", str(folder / "llm_providers.toml")),
        *("--original", "--gates", args.gates),
    ]


def _kill_at_a_moment(
    process: subprocess.Popen[str], server: Any, before: int, chance: random.Random, written: bool
) -> None:
    """From the start-up to the write-back. Most moments are counted from the first answer on, as
    what comes before it takes the longer time; with all `written` there is no answer to wait for.
    A process that has ended is let go."""
    wait = chance.uniform(0.1, 6.0)
    if chance.random() < 0.8 and not written:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if server.stats()["delivered"] > before:
                break
            time.sleep(0.01)
        wait = chance.uniform(0.0, 1.0)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait)
        return
    process.send_signal(signal.SIGKILL)


def corpora(args: argparse.Namespace, work: Path) -> Figures:
    """Whole corpora by the script, with the rehearsal and planned quotas."""
    table: Figures = {}
    for source in args.corpora or [SAMPLE / "small_sqlite"]:
        folder = work / f"corpus-{source.name}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder / "qdrant")
        began = time.monotonic()
        command = [
            *(sys.executable, str(ROOT / "optimized_question_generator.py"), "--rehearsal"),
            *("--qdrant-path", str(folder / "qdrant"), "--data-dir", str(folder / "data")),
            *("--personas-file", str(SAMPLE / "personas.json"), "--original"),
            *("--per-chunk", str(args.per_chunk), "--quotas", "even"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        summary = json.loads((folder / "data" / "generation_summary.json").read_text())
        table[source.name] = {
            "seconds": round(time.monotonic() - began, 1),
            "chunks": summary["chunks"],
            "slots": summary["slots"],
            "distance": summary["quotas"]["distance"],
            "last_line": done.stdout.splitlines()[-1],
        }
        print(f"  {source.name}: {json.dumps(table[source.name])}", flush=True)
    return table


RUN: dict[str, Callable[[argparse.Namespace, Path], Figures]] = {
    "speed": speed,
    "limits": limits,
    "memory": memory,
    "kills": kills,
    "corpora": corpora,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=SECTIONS)
    parser.add_argument("--systems", type=lambda text: text.split(","), default=CONTEST)
    parser.add_argument("--chunks", type=int, default=2592, help="of speed")
    parser.add_argument("--seconds", type=float, default=150.0, help="of limits, about")
    parser.add_argument("--sizes", type=lambda t: [*map(int, t.split(","))], default=[10**4, 10**5])
    parser.add_argument("--memory-gates", type=lambda text: text.split(","), default=["record"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--gates", default="record", help="of kills")
    parser.add_argument("--folder", type=Path, help="of kills; the sample by default")
    parser.add_argument("--corpora", type=Path, nargs="*", help="unpacked Qdrant folders")
    parser.add_argument("--per-chunk", type=int, default=1, help="of corpora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where copies are made and kept")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        setup = json.loads(args.one)
        print(json.dumps(RUNNERS[setup["contestant"]](setup)), flush=True)
        os._exit(0)  # unwinding a peer's connections is no part of any figure
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-generator-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for section in args.only:
            print(section, flush=True)
            figures[section] = RUN[section](args, work)
            if args.json:
                args.json.write_text(json.dumps(figures, indent=2, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
