"""How long an annotator waits for the next chunk while a language model takes 5 s for each answer.

    python benchmarks/annotation_wait.py                     # about 12 minutes
    python benchmarks/annotation_wait.py --decisions 5 --without 3 --pace 3 --latency 2

Real HTTP on loopback (a server in a process of its own that waits, then answers as the rehearsal
does), the real dispatcher, event log, gold file, and the real screen at 80x24 with its painting,
but for the terminal itself. A person picks a suggestion so many seconds after a chunk is complete.
Waiting lasts from the key until the next chunk, its persona and its suggestions are painted, less
the time taken to look whether they are; saved is from the key until the decision is on disk. Three
runs, each a process of its own:

    with      preparation of the next 6 chunks while the person reads
    without   the same flow, persona and suggestions made when a chunk shows
    1,000     with, over a log of 1,000 decisions, one each second, exports running beside
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "data" / "sample" / "small_sqlite"
sys.path.insert(0, str(ROOT))

_EARLIER = 1000  # decisions in the log of the third run
_PATIENCE_SECONDS = 60.0


def serve(latency_seconds: float) -> None:
    """Answers each request after `latency_seconds`; prints its port."""
    from question_optimizer import rehearsal

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(latency_seconds)
            answer = rehearsal.completion(body, rehearsal.answer(body["messages"]))
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


async def hold(args: argparse.Namespace, folder: Path, url: str) -> dict[str, list[float]]:
    """One session; {"waiting": seconds of each decision, "saved": the same}."""
    from textual import events

    import annotate_chunks
    from config import load_settings
    from question_optimizer.annotation.app import AnnotationApp
    from question_optimizer.annotation.gold_file import GoldFile
    from question_optimizer.annotation.session import Rules, Session
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.programs.annotation_desk import desk_of, prepared

    class Store(AnnotationStore):
        saved_at = 0.0

        def record(self, *given: Any, **more: Any) -> None:
            super().record(*given, **more)
            self.saved_at = time.perf_counter()

    class Screen(AnnotationApp):
        """Tells when a complete chunk has been painted; paints as to a terminal."""

        painted: asyncio.Event
        before: object = None
        painted_at = checking = 0.0  # the checks themselves take time that a person does not wait

        def _display(self, screen: Any, renderable: Any) -> None:
            if hasattr(renderable, "render_segments"):  # what a terminal would be sent
                renderable.render_segments(self.console)
            super()._display(screen, renderable)

        def post_display_hook(self) -> None:
            now, card = time.perf_counter(), self._shown
            if card is None or card.chunk is self.before or not card.suggestions:
                return
            strips = self.screen._compositor.render_strips()
            text = " ".join(" ".join(strip.text for strip in strips).split())
            first = " ".join(card.chunk.chunk_text.split())[:20]
            parts = [first, *(s[:30] for s in card.suggestions)]
            if card.persona and all(part in text for part in [card.persona.name, *parts]):
                self.before, self.painted_at = card.chunk, now - self.checking
                self.painted.set()
            self.checking += time.perf_counter() - now

    (folder / "accounts.toml").write_text(
        f'[[accounts]]\nname = "a"\nmodel = "m"\nbase_url = "{url}/v1"\nconcurrency = 8\n'
    )
    argv = ["--data-dir", str(folder), "--providers-file", str(folder / "accounts.toml")]
    options = annotate_chunks.parse([*argv, "--personas-file", str(args.personas)])
    desk = desk_of(load_settings(options), options)
    waiting, saved = [], []
    with Store(desk.log) as store:
        chunks = desk.chunks
        if args.phase == "1,000":
            chunks = fill(store, desk.chunks)
        gold_file = GoldFile(store, desk.output, settings={}, inputs={})
        rules = Rules(repeats=0.0, lookahead=0 if args.phase == "without" else 6)
        with prepared(desk, store) as (preparation, dispatcher):
            session = Session(
                chunks, store=store, preparation=preparation, rules=rules, saved=gold_file.request
            )
            app = Screen(session, spend=lambda: dispatcher.spend)
            app.painted = asyncio.Event()
            async with app.run_test(size=(80, 24)):
                for _ in range(args.decisions):
                    await asyncio.wait_for(app.painted.wait(), _PATIENCE_SECONDS)
                    await asyncio.sleep(args.pace)
                    app.painted.clear()
                    app.checking = 0.0
                    pressed = time.perf_counter()
                    app._driver.send_message(events.Key("1", "1"))  # type: ignore[union-attr]
                    await asyncio.wait_for(app.painted.wait(), _PATIENCE_SECONDS)
                    waiting.append(app.painted_at - pressed)
                    saved.append(store.saved_at - pressed)
        gold = gold_file.close()
        assert len(gold) == args.decisions + (_EARLIER if args.phase == "1,000" else 0)
    return {"waiting": waiting, "saved": saved}


def fill(store: Any, chunks: list[Any]) -> list[Any]:
    """A log of decisions on copies of `chunks`; returns the copies and then `chunks`."""
    from question_optimizer.records import Decision, GoldItem

    copies = []
    for number in range(_EARLIER):
        chunk = chunks[number % len(chunks)]
        copies.append(chunk.model_copy(update={"chunk_id": f"earlier {number}"}))
        given = {"chunk_id": copies[-1].chunk_id, "gold_question": f"What of {number}?"}
        item = GoldItem(
            chunk_text=chunk.chunk_text,
            persona_description="somebody who asks about databases",
            document_id=chunk.document_id,
            suggestions=[f"What would {n} have to do with {number}?" for n in range(4)],
            split_group=chunk.document,
            **given,
        )
        decision = Decision(action="write", **given)
        store.record(copies[-1], decision, item, active_seconds=8.0)
    return [*copies, *chunks]


def run_phase(args: argparse.Namespace) -> None:
    """One run; prints its figures as JSON."""
    from fetch_chunks import main as fetch_chunks

    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--latency", str(args.latency)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with tempfile.TemporaryDirectory() as folder:
            size = str(args.decisions + 10)
            fetch_chunks(
                ["--qdrant-path", str(SOURCE), "--sample-size", size, "--data-dir", folder]
            )
            print(json.dumps(asyncio.run(hold(args, Path(folder), url))), flush=True)
    finally:
        server.kill()
        server.wait()
    os._exit(0)  # what is still being prepared is nobody's any more


def phase(name: str, decisions: int, pace: float, latency: float, personas: Path) -> Any:
    flags = {"phase": name, "decisions": decisions, "pace": pace, "latency": latency}
    argv = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    ran = subprocess.run(
        [sys.executable, __file__, *argv, "--personas", str(personas)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def row(name: str, figures: dict[str, list[float]]) -> dict[str, Any]:
    waiting, saved = sorted(figures["waiting"]), sorted(figures["saved"])
    return {
        "run": name,
        "decisions": len(waiting),
        "median ms": round(1000 * statistics.median(waiting), 1),
        "p95 ms": round(1000 * percentile(waiting, 0.95), 1),
        "max ms": round(1000 * waiting[-1], 1),
        "saved median ms": round(1000 * statistics.median(saved), 1),
        "saved p95 ms": round(1000 * percentile(saved, 0.95), 1),
    }


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decisions", type=int, default=30, help="with preparation (default: 30)")
    parser.add_argument("--without", type=int, default=15, help="without it (default: 15)")
    parser.add_argument("--pace", type=float, default=8.0, help="seconds of reading (default: 8)")
    parser.add_argument("--latency", type=float, default=5.0, help="of the LLM, in s (default: 5)")
    parser.add_argument("--personas", type=Path, default=ROOT / "data/sample/personas.json")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.latency)
        return
    if args.phase:
        run_phase(args)
        return
    figures = {
        "with": phase("with", args.decisions, args.pace, args.latency, args.personas),
        "without": phase("without", args.without, args.pace, args.latency, args.personas),
        "1,000": phase("1,000", args.decisions, 1.0, min(args.latency, 0.5), args.personas),
    }
    rows = [row(name, found) for name, found in figures.items()]
    print("  ".join(f"{name:>15}" for name in rows[0]))
    for one in rows:
        print("  ".join(f"{value:>15}" for value in one.values()))
    ratio = rows[1]["p95 ms"] / rows[0]["p95 ms"]
    print(f"p95 without ÷ with: {ratio:.0f}")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "seconds": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
