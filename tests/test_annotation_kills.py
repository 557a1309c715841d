"""SIGKILL at random moments of a session: what the screen said was saved is saved, and only once.

Children run the real screen, headless, over the real log and gold file, and tell through a pipe
which key they press and what the screen then says. They are killed while they work; after each
kill the log, the gold file as it was left, and the gold file after a restart are compared with what
was told. The next child goes on in the same data folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLS = int(os.environ.get("ANNOTATION_KILLS", "60"))
FOLDERS = 2
CHUNKS = 400
ROOT = Path(__file__).resolve().parent.parent
_SEED = int(os.environ.get("ANNOTATION_KILLS_SEED", "0"))

# ---------------------------------------------------------------------- the child


def nursery() -> None:
    """Forks a child for each line on stdin; everything is imported, and was used once."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(session(Path(folder), random.Random(0), most=0))
    while threading.active_count() > 1:
        time.sleep(0.01)
    for line in sys.stdin:
        if not (pid := os.fork()):
            order = json.loads(line)
            asyncio.run(session(Path(order["folder"]), random.Random(order["seed"])))
            os._exit(0)
        tell(pid=pid)
        os.waitpid(pid, 0)
        tell(ended=pid)


def tell(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")  # one write: whole, whenever we are killed


async def session(folder: Path, dice: random.Random, most: int = CHUNKS) -> None:
    """Decides `most` times, and tells each key before it is pressed and after it is painted."""
    from textual import events

    from question_optimizer.annotation.app import AnnotationApp
    from question_optimizer.annotation.gold_file import GoldFile
    from question_optimizer.annotation.preparation import Preparation
    from question_optimizer.annotation.session import Rules, Session
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.personas import PersonaChooser
    from question_optimizer.records import Persona

    def suggest(chunk: Any, persona: Any, already: Sequence[str] = ()) -> list[str]:
        return [f"suggested {n} on {chunk.chunk_id}?" for n in range(3)]

    class Matcher:
        personas = [Persona(id="p", name="P", description="asks")]  # noqa: RUF012

        def rank(self, texts: Sequence[str]) -> list[list[Persona]]:
            return [self.personas for _ in texts]

    store = AnnotationStore(folder / "annotations.sqlite", "anna")
    gold_file = GoldFile(store, folder / "gold_dataset.json", settings={}, inputs={})
    chooser = PersonaChooser(Matcher())  # type: ignore[arg-type]
    preparation = Preparation(store, chooser, suggest, models=["m"])
    work = Session(
        chunks(),
        store=store,
        preparation=preparation,
        rules=Rules(repeats=0.0),
        saved=gold_file.request,
    )
    app = AnnotationApp(work)
    async with app.run_test(size=(80, 24)):

        def screen() -> str:
            strips = app.screen._compositor.render_strips()
            return "\n".join(strip.text for strip in strips)

        async def until(*texts: str) -> None:
            while not all(text in screen() for text in texts):
                await asyncio.sleep(0.001)

        async def press(*keys: str) -> None:
            for key in keys:
                event = events.Key(key, key if len(key) == 1 else None)
                app._driver.send_message(event)  # type: ignore[union-attr]

        undoable = len(store.history())
        await until("P: asks")
        tell(ready=True)
        for _ in range(most):
            assert work.current
            chunk = str(work.current.chunk_id)
            await until(f"Chunk {chunk} is about")
            action = dice.choices(("pick", "write", "skip", "undo"), (5, 2, 2, 2))[0]
            if action == "undo" and not undoable:
                action = "skip"
            done = store.history()[-1].subject if action == "undo" else chunk
            words = dice.choice(("Why", "Who", "How")) + str(dice.randrange(100))
            before = screen()
            if action == "pick":
                await until(f"suggested 2 on {chunk}?")
                app._filled_in = 0.0
            elif action == "write":
                await press("w")
                while app.focused is None:
                    await asyncio.sleep(0.001)
                await press("ctrl+u", *words)
            tell(press=action, chunk=done, words=words)
            if action == "pick":
                await press(str(dice.randrange(3) + 1))
                await until("saved: picked")
            elif action == "write":
                await press("enter")
                await until("saved: written")
            elif action == "skip":
                await press("s", str(dice.randrange(4) + 1))
                await until("saved: skipped")
            else:
                await press("u")
                await until("undone: was")
            # the message may be that of the decision before; the chunk tells
            while screen().splitlines()[0] == before.splitlines()[0]:
                await asyncio.sleep(0.001)
            undoable += -1 if action == "undo" else 1
            tell(shown=action, chunk=done)
    preparation.__exit__()
    gold_file.close()
    store.close()


def chunks() -> list[Any]:
    from question_optimizer.records import Chunk

    return [
        Chunk(chunk_id=n, chunk_text=f"Chunk {n} is about brakes.\n" * 9, document_id=f"d{n % 9}")
        for n in range(CHUNKS)
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import question_optimizer.annotation.app
    import question_optimizer.annotation.gold_file
    import question_optimizer.annotation.preparation
    import question_optimizer.annotation.store  # noqa: F401

    nursery()
    sys.exit()

# ---------------------------------------------------------------------- the log, read independently

Told = tuple[str, str]  # (action, chunk)


@dataclass
class Log:
    """What SQLite alone says; the fold of decisions and undos is written out again here."""

    told: list[Told] = field(default_factory=list)
    states: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])  # after each event
    twice: list[str] = field(default_factory=list)  # decided again while a decision stood


def read_log(path: Path) -> Log:
    log = Log()
    if not path.exists():
        return log
    connection = sqlite3.connect(path)
    try:
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert sound == "ok"
        rows = connection.execute(
            "SELECT seq, kind, subject, data FROM events "
            "WHERE kind IN ('decision', 'undo') ORDER BY seq"
        ).fetchall()
    except sqlite3.OperationalError:  # killed before there was a table
        return log
    finally:
        connection.close()
    standing: dict[int, tuple[str, str | None]] = {}
    for seq, kind, subject, text in rows:
        data = json.loads(text)
        if kind == "undo":
            assert data["undoes"] == max(standing)
            del standing[data["undoes"]]
            log.told.append(("undo", subject))
        else:
            if subject in (there for there, _ in standing.values()):
                log.twice.append(subject)
            item = data["item"]
            standing[seq] = (subject, item["gold_question"] if item else None)
            log.told.append((data["decision"]["action"], subject))
        log.states.append([(s, question) for s, question in standing.values() if question])
    return log


# ---------------------------------------------------------------------- the killer


class Nursery:
    """The process that forks; `messages` yields what it and its child tell."""

    def __init__(self, errors: Path):
        self._errors = errors.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._buffer = b""

    def start(self, folder: Path, seed: int) -> int:
        order = json.dumps({"folder": str(folder), "seed": seed})
        assert self._process.stdin
        self._process.stdin.write(order.encode() + b"\n")
        self._process.stdin.flush()
        return next(message["pid"] for message in self.messages(30.0) if "pid" in message)

    def messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Until the time is over."""
        end = time.monotonic() + seconds
        assert self._process.stdout
        output = self._process.stdout.fileno()
        while True:
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                yield json.loads(line)
            left = end - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                return
            part = os.read(output, 65536)
            assert part, "the nursery has ended"
            self._buffer += part

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def kill_once(nursery: Nursery, folder: Path, dice: random.Random, seen: Counter[str]) -> None:
    """One child, killed at some moment, and everything checked that it leaves."""
    before = read_log(folder / "annotations.sqlite")
    pid = nursery.start(folder, dice.randrange(2**32))
    # Some time after the start; or a moment after a key was pressed; or after it was shown.
    when = dice.choices(("early", "press", "shown"), (1, 6, 3))[0]
    count, moment = dice.randrange(1, 6), dice.uniform(0.0, 0.12 if when == "press" else 0.01)
    told: list[dict[str, Any]] = []
    for message in nursery.messages(dice.uniform(0.0, 0.3) if when == "early" else 30.0):
        told.append(message)
        count -= when in message
        if not count:
            told += nursery.messages(moment)
            break
    os.kill(pid, signal.SIGKILL)
    for message in nursery.messages(30.0):
        told.append(message)
        if message == {"ended": pid}:
            break
    assert told[-1] == {"ended": pid}

    shown = [(m["shown"], m["chunk"]) for m in told if "shown" in m]
    pressed = [(m["press"], m["chunk"]) for m in told if "press" in m]
    log = read_log(folder / "annotations.sqlite")
    new = log.told[len(before.told) :]
    assert log.told[: len(before.told)] == before.told
    assert new in (shown, pressed), (shown, pressed, new)  # at most the one not yet shown
    assert len(pressed) - len(shown) in (0, 1)
    assert log.twice == []

    path = folder / "gold_dataset.json"
    stale = False
    if path.exists():
        left = [(str(i["chunk_id"]), i["gold_question"]) for i in json.loads(path.read_text())]
        assert left in log.states  # whole, and a state that once was
        stale = left != log.states[-1]
    seen["kills"] += 1
    seen["decisions"] += len(shown)
    seen["early"] += not pressed
    seen["within a decision"] += len(pressed) > len(shown)
    seen["logged but not shown"] += len(new) > len(shown)
    seen["between decisions"] += bool(pressed) and len(pressed) == len(shown)
    seen["JSON older than the log"] += stale
    seen["leftover"] += bool(list(folder.glob(".*.tmp")))
    restart(folder, log)
    # One that is left where undoing led back to what the file holds: the next change removes it.
    seen["leftover after the restart"] += bool(list(folder.glob(".*.tmp")))


def restart(folder: Path, log: Log) -> None:
    """What the next session begins and ends with: JSON and log agree."""
    from question_optimizer import files
    from question_optimizer.annotation.gold_file import GoldFile
    from question_optimizer.annotation.store import AnnotationStore

    path = folder / "gold_dataset.json"
    with AnnotationStore(folder / "annotations.sqlite", "anna") as store:
        assert [(e.decision.action, e.subject) for e in store.history()] == standing(log.told)
        GoldFile(store, path, settings={}, inputs={}).close()
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [(str(i["chunk_id"]), i["gold_question"]) for i in written] == log.states[-1]
    meta = json.loads(files.meta_path(path).read_text(encoding="utf-8"))
    assert meta["output"]["sha256"] == files.sha256(path)


def standing(told: list[Told]) -> list[Told]:
    """What no undo took back."""
    left: list[Told] = []
    for action, chunk in told:
        if action == "undo":
            left.pop()
        else:
            left.append((action, chunk))
    return left


def kill_often(folder: Path, kills: int, seed: int) -> Counter[str]:
    folder.mkdir()
    seen: Counter[str] = Counter()
    nursery = Nursery(folder.with_suffix(".errors"))
    dice = random.Random(seed)
    try:
        for _ in range(kills):
            kill_once(nursery, folder, dice, seen)
    finally:
        nursery.close()
    return seen


def test_no_kill_loses_or_doubles_a_decision_that_was_shown_as_saved(tmp_path: Path) -> None:
    shares = [KILLS // FOLDERS + (n < KILLS % FOLDERS) for n in range(FOLDERS)]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(kill_often, tmp_path / str(n), share, _SEED * FOLDERS + n)
            for n, share in enumerate(shares)
        ]
        seen = sum((run.result() for run in runs), Counter())
    if path := os.environ.get("ANNOTATION_KILLS_REPORT"):
        Path(path).write_text(json.dumps(seen, indent=1))
    assert seen["kills"] == KILLS
    assert seen["decisions"] >= KILLS
    # The kills landed while work was being done, on both sides of a commit.
    assert seen["within a decision"] >= KILLS // 10
    assert seen["between decisions"] >= KILLS // 10
    assert seen["logged but not shown"] >= 1
    assert seen["JSON older than the log"] + seen["leftover"] >= 1
