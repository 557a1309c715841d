"""The annotation screen, driven as a person drives it: keys in, painted lines and gold set out."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pty
import random
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot

from conftest import ROOT, SAMPLE, LLMServer, clean_environment
from fetch_chunks import main as fetch_chunks
from question_optimizer.annotation import app as app_module
from question_optimizer.annotation.app import AnnotationApp
from question_optimizer.annotation.gold_file import GoldFile
from question_optimizer.annotation.preparation import Preparation, Suggester
from question_optimizer.annotation.session import SKIP_REASONS, Rules, Session
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.annotation.widgets import Editor
from question_optimizer.annotation.wording import KEYS
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import INTERRUPTED
from question_optimizer.personas import PersonaChooser
from question_optimizer.programs.annotation_session import let_come
from question_optimizer.providers import LLMClientConfig
from question_optimizer.records import Chunk, Decision, GoldItem, Persona

PEOPLE = [
    Persona(id="tech", name="Technician", description="asks about brakes"),
    Persona(id="dev", name="Developer", description="asks about queries"),
    Persona(id="ops", name="Operator", description="asks about backups"),
]
NO_REPEATS = Rules(repeats=0.0)
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(autouse=True)
def _pilot_naps_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the screen anyway; the naps in between are 20 ms, twice a key."""
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 0.002)


class Matcher:
    """Ranks personas in the order given, so that no embedding model is loaded."""

    def __init__(self, personas: Sequence[Persona]):
        self.personas = list(personas)

    def rank(self, texts: Sequence[str]) -> list[list[Persona]]:
        return [list(self.personas) for _ in texts]


def suggest(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
    return [f"{persona.id} {len(already) + n} {str(chunk.chunk_id)[:8]}?" for n in range(4)]


class Gate:
    """Suggestions that come when `opened`, as a slow model's do; `asked` counts the calls."""

    def __init__(self, suggester: Suggester = suggest):
        self.opened = threading.Event()
        self.asked = 0
        self._suggester = suggester

    def __call__(self, chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        self.asked += 1
        assert self.opened.wait(60)
        return self._suggester(chunk, persona, already)


class Clock:
    """Stands still until it is moved; in place of the module `time` too."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Person:
    """Presses keys and reads what is painted."""

    def __init__(self, app: AnnotationApp, pilot: Pilot[int], folder: Path):
        self.app = app
        self.pilot = pilot
        self.folder = folder

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()  # until it is painted

    @property
    def lines(self) -> list[str]:
        strips = self.app.screen._compositor.render_strips()
        return [strip.text.rstrip() for strip in strips]

    @property
    def screen(self) -> str:
        return "\n".join(self.lines)

    @property
    def suggestions(self) -> list[str]:
        return numbered(self.lines)

    async def until(self, met: Callable[[], object]) -> None:
        """Wait until `met`, at most 15 s."""
        end = time.monotonic() + 15
        while not met():
            assert time.monotonic() < end, self.screen
            await self.pilot.pause(0.01)

    async def sees(self, text: str) -> None:
        await self.until(lambda: text in self.screen)

    async def settles(self) -> None:
        """Nothing is being made any more, and all news of it is on the screen."""
        session = self.app.session
        await self.until(lambda: session.card is None or session.card.complete)
        await self.pilot.pause()

    async def ready(self, count: int = 4) -> None:
        """The chunk is complete on the screen, and has been for long enough to be read."""
        await self.until(lambda: len(self.suggestions) == count)
        await self.settles()
        self.app._filled_in = 0.0

    async def says(self, *parts: str) -> None:
        """The screen says all `parts`."""
        await self.until(lambda: all(part in self.screen for part in parts))

    @property
    def store(self) -> AnnotationStore:
        return self.app.session.store

    @property
    def decided(self) -> list[tuple[object, str]]:
        return [(e.decision.chunk_id, e.decision.action) for e in self.store.history()]

    @property
    def gold(self) -> list[dict[str, Any]]:
        return [item.model_dump(mode="json") for item in self.store.gold()]


def numbered(lines: list[str]) -> list[str]:
    """The lines with digits beneath a narrow screen's chunk, in the order of their digits."""
    beneath = next((n for n, line in enumerate(lines) if line.startswith("───")), len(lines))
    rows = [re.match(r"^  ([1-9]) (.*\S)", line) for line in lines[beneath:-2]]
    found = {int(row[1]): row[2] for row in rows if row}
    assert sorted(found) == list(range(1, len(found) + 1)), lines
    return [found[number] for number in sorted(found)]


@contextlib.asynccontextmanager
async def at_work(
    folder: Path,
    chunks: Sequence[Chunk],
    suggester: Suggester = suggest,
    *,
    personas: Sequence[Persona] = PEOPLE,
    rules: Rules = NO_REPEATS,
    size: tuple[int, int] = (80, 24),
    clock: Callable[[], float] = time.monotonic,
    trouble: Callable[[], str] = str,
) -> AsyncIterator[Person]:
    """A person before the screen, over a real store and gold file in `folder`."""
    with AnnotationStore(folder / "annotations.sqlite", "anna") as store:
        gold_file = GoldFile(store, folder / "gold_dataset.json", settings={}, inputs={})
        chooser = PersonaChooser(Matcher(personas))  # type: ignore[arg-type]
        with Preparation(store, chooser, suggester, models=["model-a"]) as preparation:
            session = Session(
                chunks,
                store=store,
                preparation=preparation,
                rules=rules,
                saved=gold_file.request,
                clock=clock,
            )
            app = AnnotationApp(session, trouble=trouble)
            try:
                async with app.run_test(size=size) as pilot:
                    yield Person(app, pilot, folder)
            finally:
                if isinstance(suggester, Gate):
                    suggester.opened.set()
                gold_file.close()


def chunks_of(count: int, **fields: object) -> list[Chunk]:
    return [
        Chunk.model_validate(
            {
                "chunk_id": n,
                "chunk_text": f"Chunk {n} is about brakes.",
                "document_id": f"d{n % 4}",
                "file_name": f"file{n % 4}.html",
                **fields,
            }
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 62 real chunks."""
    data = tmp_path_factory.mktemp("sample")
    folder = str(SAMPLE / "small_sqlite")
    args = ["--qdrant-path", folder, "--sample-size", "62", "--data-dir", str(data)]
    assert fetch_chunks(args) == 0
    return data


def read_chunks(data: Path) -> list[Chunk]:
    lines = (data / "raw_chunks.jsonl").read_text(encoding="utf-8").splitlines()
    return [Chunk.model_validate_json(line) for line in lines]


# ---------------------------------------------------------------------- the whole keymap

Effect = tuple[Any, ...]
Step = tuple[list[str], Effect]


def keys(text: str, typed: str = "", *after: str) -> list[str]:
    """Keys by their names, then `typed` letter by letter, then Enter or `after`."""
    return [*text.split(), *typed, *(after or (("enter",) if typed else ()))]


# (keys, what they mean). Numbers are those beside the suggestions on the screen.
BEFORE_RESTART: list[Step] = [
    (keys("1"), ("picked", 1)),
    (keys("2"), ("picked", 2)),
    (keys("7"), ("nothing", "there is no suggestion 7")),
    (keys("3"), ("picked", 3)),
    (keys("e 2", "!"), ("edited", 2, "!")),
    (keys("e 4 enter"), ("picked", 4)),  # an unchanged edit is a pick
    (keys("e 9"), ("nothing", "there is no suggestion 9")),
    (keys("e g"), ("nothing", "g is not in the list; Escape goes back")),
    (keys("escape"), ("nothing", "")),
    (keys("e 1", "zz", "escape"), ("nothing", "")),  # kept for the next try
    (keys("e 1", "y"), ("edited", 1, "zzy")),
    (keys("w", "Zebra?"), ("written", "Zebra?")),
    (keys("w enter"), ("nothing", "no question written; the chunk is still open")),
    (keys("escape"), ("nothing", "")),
    (keys("s 1"), ("skipped", SKIP_REASONS[0])),
    (keys("s 6"), ("skipped", SKIP_REASONS[5])),
    (keys("s 7"), ("nothing", "7 is not in the list")),
    (keys("escape"), ("nothing", "")),
    (keys("s 0", "old"), ("skipped", "old")),
    (keys("s 0 enter"), ("skipped", "other")),
    (keys("p 0"), ("skipped", "no persona fits")),
    (keys("p escape"), ("nothing", "")),
    (keys("p 2"), ("persona", "dev")),
    (keys("1"), ("picked", 1)),
    (keys("p 3"), ("persona", "ops")),
    (keys("p 1"), ("persona", "tech")),  # back again: its suggestions are there already
    (keys("4"), ("picked", 4)),
    (keys("r"), ("others",)),
    (keys("5"), ("picked", 5)),
    (keys("r"), ("others",)),
    (keys("6"), ("picked", 6)),
    (keys("r"), ("others",)),
    (keys("r"), ("others",)),
    (keys("9"), ("picked", 9)),
    (keys("r"), ("others",)),
    (keys("e 7", "+"), ("edited", 7, "+")),
    (keys("r"), ("others",)),
    (keys("8"), ("picked", 8)),
    (keys("r"), ("others",)),
    (keys("7"), ("picked", 7)),
    (keys("x 1"), ("bad", 1)),
    (keys("x 3"), ("bad", 3)),
    (keys("x escape"), ("nothing", "")),
    (keys("x 1"), ("bad", 1)),  # no longer
    (keys("2"), ("picked", 2)),
    (keys("d"), ("deferred",)),
    (keys("f", "ask Bo"), ("flagged", "ask Bo")),
    (keys("f enter"), ("nothing", "no note written; the chunk is still open")),
    (keys("escape"), ("nothing", "")),
    (keys("d"), ("deferred",)),
    (keys("n"), ("nothing", "")),
    (keys("down up pagedown pageup space j k home end n"), ("nothing", "")),
    (keys("wait:1 1"), ("picked", 1)),
    (keys("? x"), ("nothing", "")),  # any key leaves the help
    (keys("/", "zebra"), ("goes", "Zebra?")),
    (keys("1"), ("picked", 1)),  # supersedes what was written
    (keys("/", "no such words"), ("nothing", "")),
    (keys("/", "e", "down", "up", "escape"), ("nothing", "")),
    (keys("0"), ("nothing", "there is no question of yours here")),
    (keys("u"), ("undone", "picked")),
    (keys("u"), ("undone", "picked")),
    (keys("1"), ("picked", 1)),
    (keys("z"), ("nothing", "z is no key here; ? shows them")),
    (keys("X W E"), ("nothing", "E is no key here; ? shows them")),
    (keys("escape tab f5 enter left ctrl+s"), ("nothing", "")),
    (keys("w", "Yak?"), ("written", "Yak?")),
    (keys("s 2"), ("skipped", SKIP_REASONS[1])),
    (keys("e 1", "?"), ("edited", 1, "?")),
]
AFTER_RESTART: list[Step] = [
    (keys("u"), ("undone", "edited")),
    (keys("e 1", "X"), ("edited", 1, "?X")),  # what was undone is there to be changed
    (keys("u"), ("undone", "edited")),
    (keys("u"), ("undone", "skipped")),
    (keys("u"), ("undone", "written")),
    (keys("w", "", "enter"), ("draft", "")),
    (keys("s 3"), ("skipped", SKIP_REASONS[2])),
    (keys("e 1 enter"), ("edited", 1, "?X")),
    *[(keys(str(n % 4 + 1)), ("picked", n % 4 + 1)) for n in range(32)],
    (keys("s 4"), ("skipped", SKIP_REASONS[3])),
    (keys("f", "Cy"), ("flagged", "Cy")),
    (keys("u"), ("undone", "flagged")),
    (keys("d"), ("deferred",)),
]
AT_THE_END: list[Step] = [  # those put off come back, the longest put off first
    (keys("1"), ("picked", 1)),
    (keys("f", "Di"), ("flagged", "Di")),
    (keys("2"), ("picked", 2)),
    (keys("3"), ("picked", 3)),
    (keys("w", "End?"), ("written", "End?")),
]
OVER: list[Step] = [
    (keys("1"), ("nothing", "every chunk of the sample is decided")),
    (keys("e"), ("nothing", "every chunk of the sample is decided")),
    (keys("s"), ("nothing", "every chunk of the sample is decided")),
    (keys("f"), ("nothing", "every chunk of the sample is decided")),
    (keys("u"), ("undone", "written")),
    (keys("4"), ("picked", 4)),
    (keys("u"), ("undone", "picked")),
    (keys("s 5"), ("skipped", SKIP_REASONS[4])),
]


class Paper:
    """What the script means, kept by hand, one line a decision; knows nothing of the program."""

    def __init__(self, chunks: list[Chunk], clock: Clock):
        self.chunks = chunks
        self.clock = clock
        self.made: list[dict[str, Any]] = []  # decisions that stand or were superseded
        self.persona: dict[object, str] = {}
        self.rounds: dict[tuple[object, str], int] = {}
        self.bad: dict[object, set[str]] = {}
        self.drafts: dict[object, str] = {}
        self.decisions = self.undone = 0
        self.seconds = 0.0
        self.current: Chunk | None = None
        self.go_on()

    def standing(self, chunk: Chunk) -> list[dict[str, Any]]:
        return [made for made in self.made if made["chunk"] is chunk]

    def go_on(self) -> None:
        self.seconds = 0.0
        fresh = [chunk for chunk in self.chunks if not self.standing(chunk)]
        off = [c for c in self.chunks if (s := self.standing(c)) and s[-1]["what"] in _PUT_OFF]
        off.sort(key=lambda chunk: self.made.index(self.standing(chunk)[-1]))
        self.current = next(iter([*fresh, *off]), None)

    @property
    def who(self) -> Persona:
        assert self.current
        wanted = self.persona.get(self.current.chunk_id, "tech")
        return next(person for person in PEOPLE if person.id == wanted)

    @property
    def offered(self) -> set[str]:
        """What may be on the screen; of many, only the latest nine."""
        assert self.current
        rounds = 1 + self.rounds.get((self.current.chunk_id, self.who.id), 0)
        return {
            line
            for n in range(rounds)
            for line in suggest(self.current, self.who, ["already"] * 4 * n)
        }

    def note(self, chunk: Chunk) -> str | None:
        notes = [made["note"] for made in self.standing(chunk) if made["what"] == "flagged"]
        return notes[-1] if notes else None

    def apply(self, effect: Effect, shown: list[str]) -> None:
        """`shown` is what stood on the screen beside the digits."""
        match effect:
            case ("picked", number):
                self.decide("picked", shown, shown[number - 1])
            case ("edited", number, more):
                self.decide("edited", shown, shown[number - 1] + more)
            case ("written", text):
                self.decide("written", shown, text)
            case ("draft", more):
                assert self.current
                self.decide("written", shown, self.drafts[self.current.chunk_id] + more)
            case ("skipped", reason):
                if reason == "no persona fits":
                    assert self.current
                    self.persona[self.current.chunk_id] = ""
                self.decide("skipped", shown, None, reason=reason)
            case ("deferred",):
                self.decide("deferred", shown, None)
            case ("flagged", note):
                self.decide("flagged", shown, None, note=note)
            case ("undone", what):
                last = self.made.pop()
                assert last["what"] == what, (last, effect)
                self.undone += 1
                self.current, self.seconds = last["chunk"], 0.0
                if last["what"] == "written":
                    self.drafts[last["chunk"].chunk_id] = last["item"]["gold_question"]
            case ("persona", who):
                assert self.current
                self.persona[self.current.chunk_id] = who
            case ("others",):
                assert self.current
                key = (self.current.chunk_id, self.who.id)
                self.rounds[key] = self.rounds.get(key, 0) + 1
            case ("bad", number):
                assert self.current
                self.bad.setdefault(self.current.chunk_id, set()).symmetric_difference_update(
                    {shown[number - 1]}
                )
            case ("goes", question):
                (found,) = [
                    made["chunk"]
                    for made in self.made
                    if made["item"] and made["item"]["gold_question"] == question
                ]
                self.current, self.seconds = found, 0.0
            case _:
                raise AssertionError(effect)

    def decide(self, what: str, shown: list[str], question: str | None, **more: str) -> None:
        chunk = self.current
        assert chunk
        self.decisions += 1
        self.drafts.pop(chunk.chunk_id, None)
        item = None
        if question is not None:
            bad = self.bad.get(chunk.chunk_id, set())
            item = {
                **chunk.model_dump(include={"chunk_text", "chunk_id", "document_id"}),
                "persona_description": self.who.description,
                "persona_id": self.who.id,
                "gold_question": question,
                "query_type": None,
                "query_format": None,
                "suggestions": shown,
                "suggestions_shown": True,
                "suggested_by": ["model-a"],
                "bad_suggestions": [line for line in shown if line in bad],
                "origin": what,
                "blind": False,
                "note": self.note(chunk),
                "active_seconds": round(self.seconds, 1),
                "annotator": "anna",
                "split_group": chunk.document_id,
                "existing_query": chunk.existing_query,
                "file_name": chunk.file_name,
            }
        self.made.append({"chunk": chunk, "what": what, "item": item, **more})
        self.go_on()

    @property
    def done(self) -> int:
        return sum(
            bool((s := self.standing(c)) and s[-1]["what"] not in _PUT_OFF) for c in self.chunks
        )

    @property
    def gold(self) -> list[dict[str, Any]]:
        """One entry a chunk, in the order in which chunks were first decided."""
        settled = [made for made in self.made if made["what"] not in _PUT_OFF]
        firsts = {made["chunk"].chunk_id: made["chunk"] for made in settled}
        latest = [self.standing(chunk)[-1]["item"] for chunk in firsts.values()]
        return [item for item in latest if item]


_PUT_OFF = ("deferred", "flagged")


async def play(person: Person, paper: Paper, script: list[Step], pressed: set[str]) -> None:
    """Press what the script says; after each step the screen shows what the paper says."""
    for number, (pushed, effect) in enumerate(script):
        await person.settles()
        choosing = person.app._mode or person.app._take  # the step before left it open
        lines, shown = person.lines, []
        if paper.current and not choosing:
            shown = numbered(lines)
            start = " ".join(paper.current.chunk_text.split())[:30]
            assert start in " ".join(" ".join(lines).split())
            assert set(shown) <= paper.offered, (number, effect, lines)
            assert len(shown) == min(9, len(paper.offered)), (number, effect, lines)
        assert f" {paper.done} done · {len(paper.chunks) - paper.done} left" in lines[0]
        for key in pushed:
            if key == "wait:1":  # a long pause: a minute of it counts
                paper.clock.now += 300.0
                paper.seconds += 60.0 - 2.0
                continue
            at_large = not (len(person.app.screen_stack) > 1 or person.app._take)
            if at_large and not person.app._mode:
                pressed.add(key)
            paper.clock.now += 2.0
            paper.seconds += 2.0
            await person.press(key)
        if effect[0] == "nothing":
            assert effect[1] in person.screen
        else:
            paper.apply(effect, shown)
    await person.settles()


def assert_in_order(item: dict[str, Any]) -> None:
    """The order shown can be made again from `order_seed` and what each round made."""
    chunk = Chunk(chunk_id=item["chunk_id"], chunk_text="x")
    persona = next(person for person in PEOPLE if person.id == item["persona_id"])
    made: list[str] = []
    for number in range(5):
        lines = suggest(chunk, persona, ["already"] * 4 * number)
        random.Random(item["order_seed"] + number).shuffle(lines)
        made += lines
        if made[-9:] == item["suggestions"]:
            return
    raise AssertionError(item)


async def test_sixty_decisions_by_every_key_make_the_gold_set_that_the_script_says(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(app_module, "time", clock)
    chunks = read_chunks(sample)
    assert len(chunks) == 62
    paper, pressed = Paper(chunks, clock), set()
    for script in (BEFORE_RESTART, [*AFTER_RESTART, *AT_THE_END, *OVER]):
        paper.go_on()
        async with at_work(tmp_path, chunks, clock=clock.monotonic) as person:
            await play(person, paper, script, pressed)
            await person.press("q")
            pressed.add("q")
            assert person.app.return_value == 0
    assert paper.decisions >= 60
    assert paper.undone >= 8
    assert paper.done == len(chunks)

    written = json.loads((tmp_path / "gold_dataset.json").read_text(encoding="utf-8"))
    sides: dict[str, set[str]] = {}
    for item in written:
        sides.setdefault(item["split_group"], set()).add(item.pop("split"))
        assert_in_order(item)
        del item["order_seed"]
    assert len(written) == len(paper.gold)
    for item, expected in zip(written, paper.gold, strict=True):
        assert item == expected
    assert all(len(side) == 1 for side in sides.values())
    assert set().union(*sides.values()) == {"train", "dev", "test"}

    connection = sqlite3.connect(tmp_path / "annotations.sqlite")
    kinds = [kind for (kind,) in connection.execute("SELECT kind FROM events")]
    connection.close()
    assert (kinds.count("decision"), kinds.count("undo")) == (paper.decisions, paper.undone)
    meant = {press for key in KEYS for press in ("123456789" if key.press == "1-9" else key.press)}
    assert meant - pressed == set()  # 0 has no use here, and is refused; see the blind test


# ---------------------------------------------------------------------- blind test


async def test_a_blind_item_shows_no_suggestion_before_an_own_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(app_module, "time", clock)
    chunks, rules = chunks_of(12), Rules(repeats=0.0, blind_test=True)
    expected: list[tuple[object, str, str, bool, bool]] = []
    pressed: set[str] = set()

    async def press(person: Person, *keys: str) -> None:
        for key in keys:
            clock.now += 1.0
            await person.press(key)

    ways = itertools.cycle(["keep", "pick", "rewrite", "edit"])
    blind = 0
    while len(expected) < len(chunks):
        async with at_work(tmp_path, chunks, rules=rules) as person:
            for chunk in chunks[len(expected) :]:
                await person.settles()
                number = chunk.chunk_id
                assert f"Chunk {number} is about" in person.screen
                if person.store.side(str(chunk.document_id)) != "test":
                    shown = person.suggestions
                    await press(person, "2")
                    expected.append((number, "picked", shown[1], True, False))
                    continue
                for key in "1 e x r 0".split():
                    await press(person, key)
                    pressed.add(key)
                    refusal = "there is no question of yours" if key == "0" else "withheld until"
                    assert "blind" in person.screen or refusal in person.screen
                    assert person.suggestions == []
                    assert not any(s in person.screen for s in suggest(chunk, PEOPLE[0]))
                own = f"Own{number}?"
                await press(person, "w", *own, "enter")
                shown = person.suggestions
                assert sorted(shown[:4]) == sorted(suggest(chunk, PEOPLE[0]))
                assert f"  0 {own}  (yours: 0 keeps it)" in person.screen
                blind += 1
                if blind == 2:
                    break  # the own question survives leaving here
                way = next(ways)
                await decide_blind(way, person, press, shown, expected, chunk, own)
            else:
                break
            await person.press("q")
        async with at_work(tmp_path, chunks, rules=rules) as person:
            await person.settles()
            assert f"  0 {own}  (yours: 0 keeps it)" in person.screen
            assert person.suggestions == shown
            await decide_blind(next(ways), person, press, shown, expected, chunk, own)
    assert blind >= 3
    gold = json.loads((tmp_path / "gold_dataset.json").read_text(encoding="utf-8"))
    names = ("chunk_id", "origin", "gold_question", "suggestions_shown", "blind")
    assert [tuple(item[name] for name in names) for item in gold] == expected


async def decide_blind(
    way: str,
    person: Person,
    press: Callable[..., Any],
    shown: list[str],
    expected: list[tuple[object, str, str, bool, bool]],
    chunk: Chunk,
    own: str,
) -> None:
    """Decide on a blind item whose suggestions show."""
    if way == "keep":
        await press(person, "0")
        expected.append((chunk.chunk_id, "written", own, False, True))
    elif way == "pick":
        await press(person, "3")
        expected.append((chunk.chunk_id, "picked", shown[2], True, True))
    elif way == "rewrite":
        await press(person, "w", "!", "enter")
        expected.append((chunk.chunk_id, "written", own + "!", True, True))
    else:
        await press(person, "e", "1", "!", "enter")
        expected.append((chunk.chunk_id, "edited", shown[0] + "!", True, True))


# ---------------------------------------------------------------------- late and failed


async def test_late_suggestions_are_said_and_fill_in_and_cannot_be_hit_by_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, gate = Clock(), Gate()
    monkeypatch.setattr(app_module, "time", clock)
    async with at_work(tmp_path, chunks_of(5), gate) as person:
        late = "suggestions are late: they fill in when they come; w writes without them"
        await person.sees(late)
        await person.press("1")
        assert person.decided == []
        await person.press("w", *"Why?", "enter")  # nobody has to wait
        assert person.decided == [(0, "write")]
        assert "Chunk 1 is about" in person.screen
        assert late in person.screen
        gate.opened.set()
        await person.until(lambda: len(person.suggestions) == 4)
        assert "Chunk 1 is about" in person.screen
        assert late not in person.screen
        for _ in range(3):
            await person.press("1")
            assert "suggestions have just come: look, then press again" in person.screen
            clock.now += 0.13
        assert person.decided == [(0, "write")]
        shown = person.suggestions
        clock.now += 0.02  # 0.41 s by now
        await person.press("1")
        assert person.decided == [(0, "write"), (1, "pick")]
        assert "saved: picked 1" in person.screen
    first, second = person.gold
    assert (first["suggestions"], first["suggestions_shown"]) == ([], False)
    assert second["gold_question"] == shown[0]


async def test_a_digit_never_takes_what_the_screen_has_not_shown(tmp_path: Path) -> None:
    """Suggestions are in the log a moment before the screen hears of them."""
    gate = Gate()
    async with at_work(tmp_path, chunks_of(2), gate) as person:
        await person.sees("suggestions are late")
        preparation = person.app.session.preparation
        preparation.changed = lambda chunk_id: None  # the news is still on its way
        gate.opened.set()
        await person.until(lambda: person.app.session.card.complete)  # type: ignore[union-attr]
        assert person.suggestions == []
        await person.press("1")
        assert person.decided == []


async def test_others_that_push_the_oldest_out_cannot_be_hit_by_accident(tmp_path: Path) -> None:
    """Nine are shown at most: a third round moves every digit to another question."""
    rounds = Gate()
    rounds.opened.set()
    async with at_work(tmp_path, chunks_of(1), rounds) as person:
        for count in (8, 9):
            await person.press("r")
            await person.until(lambda count=count: len(person.suggestions) == count)
        before = person.suggestions
        await person.ready(9)
        rounds.opened.clear()
        await person.press("r")
        rounds.opened.set()
        await person.until(lambda: person.suggestions != before)
        await person.press("1")
        assert person.decided == []


async def test_typing_goes_on_undisturbed_when_suggestions_arrive(tmp_path: Path) -> None:
    gate = Gate()
    async with at_work(tmp_path, chunks_of(3), gate) as person:
        await person.sees("suggestions are late")
        await person.press("w", *"Why do ", "left", "left")
        gate.opened.set()
        await person.until(lambda: person.suggestions)
        editor = person.app.query_one(Editor)
        assert (editor.text, editor.cursor_location) == ("Why do ", (0, 5))
        assert person.app.focused is editor
        await person.press("x", "end", *"pads?", "enter")
        assert person.decided == [(0, "write")]
        assert [item["gold_question"] for item in person.gold] == ["Why dxo pads?"]


async def test_an_edited_suggestion_stays_hidden_behind_its_editor_when_others_arrive(
    tmp_path: Path,
) -> None:
    gate = Gate()
    gate.opened.set()
    async with at_work(tmp_path, chunks_of(1), gate) as person:
        await person.until(lambda: len(person.suggestions) == 4)
        second = person.suggestions[1]
        gate.opened.clear()
        await person.press("r")
        person.app._filled_in = 0.0
        await person.press("e", "2", *"zz")
        before = person.screen.count(second)
        gate.opened.set()
        await person.sees("tech 7")
        assert (before, person.screen.count(second)) == (1, 1)


async def test_an_edit_keeps_its_suggestion_when_others_arrive(tmp_path: Path) -> None:
    """A third round moves the numbers while a question is being edited."""
    gate = Gate()
    gate.opened.set()
    async with at_work(tmp_path, chunks_of(1), gate) as person:
        await person.press("r")
        await person.until(lambda: len(person.suggestions) == 8)
        gate.opened.clear()
        await person.press("r")
        person.app._filled_in = 0.0
        second = person.suggestions[1]
        await person.press("e", "2")
        gate.opened.set()
        await person.settles()
        await person.press("enter")  # unchanged, so it is a pick
        (item,) = person.gold
        assert (item["gold_question"], item["origin"]) == (second, "picked")


async def test_failed_suggestions_are_said_and_r_tries_again(tmp_path: Path) -> None:
    broken = ["rate limited\n by [bold]a1[/bold] \x1b[2J"]

    def flaky(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        if broken and chunk.chunk_id == 0:
            raise RuntimeError(broken.pop())
        return suggest(chunk, persona, already)

    async with at_work(tmp_path, chunks_of(2), flaky) as person:
        await person.says("no suggestions: rate limited by [bold]a1[/bold]", "; r tries again")
        assert "\x1b" not in person.screen
        for key, said in (("1", "there is no suggestion 1"), ("e", "no suggestions"), ("x", "no ")):
            await person.press(key)
            assert said in person.screen
        await person.press("r")
        await person.until(lambda: len(person.suggestions) == 4)
        assert "r tries again" not in person.screen
        await person.ready()
        await person.press("3")
        assert person.decided == [(0, "pick")]


async def test_news_while_another_screen_is_open_break_nothing(tmp_path: Path) -> None:
    for opening, leaving in (("?", "escape"), ("/", "escape")):
        gate = Gate()
        folder = tmp_path / leaving / {"?": "help", "/": "find"}[opening]
        folder.mkdir(parents=True)
        async with at_work(folder, chunks_of(2), gate) as person:
            await person.sees("suggestions are late")
            await person.press(opening)
            print("account a1 is out", file=sys.stderr)
            gate.opened.set()
            await person.settles()
            await person.pilot.resize_terminal(60, 20)
            await person.press(leaving)
            await person.until(lambda: len(person.suggestions) == 4)


# ---------------------------------------------------------------------- hostile text

_HOSTILE = (
    "evil \x1b[31mred\x1b[0m \x1b]0;owned\x07 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x9b5m\x07"
    " [@click=app.quit]quit[/] [bold red]loud[/bold red] [link=file:///]l[/link] [/] [\n"
    "<script>alert(1)</script> &amp; \u202etxt.exe\u202c \u2066x\u2069 \x00\x08\x7f {{x}} $x %s\n"
)


def painted(person: Person) -> str:
    """What is painted, checked to be inert: no control, no style that a chunk asked for."""
    strips = person.app.screen._compositor.render_strips()
    for strip in strips:
        for segment in strip:
            assert not _CONTROLS.search(segment.text), segment
            if segment.style:
                assert segment.style.link is None
                assert "@click" not in segment.style.meta
                assert segment.style.color is None or segment.style.color.name != "red"
    picture = person.app.export_screenshot()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", picture)
    assert "<script" not in picture
    assert "app.quit" not in re.sub(r"<text.*?</text>", "", picture)
    return "\n".join(strip.text.rstrip() for strip in strips)


async def test_a_hostile_chunk_is_painted_inert_everywhere(tmp_path: Path) -> None:
    chunk = Chunk.model_construct(
        chunk_id="evil",
        chunk_text=_HOSTILE + "end",
        document_id="d",
        file_name=f"{_HOSTILE[:60]}f",
        headings=[_HOSTILE],
        page_no=3,
        existing_query=None,
        previous_text=_HOSTILE,
        next_text=_HOSTILE,
    )
    persona = Persona(id="p", name=f"P {_HOSTILE[:90]}", description=_HOSTILE)
    marked = ["[@click=app.quit]quit[/]", "[bold red]loud[/bold red]", "<script>", "[/]"]
    rules = Rules(repeats=0.0, skip_reasons=("[bold red]loud[/bold red]", "[/]"))
    async with at_work(
        tmp_path,
        [chunk, *chunks_of(1)],
        lambda chunk, persona, already=(): marked,
        personas=[persona],
        rules=rules,
    ) as person:
        await person.until(lambda: len(person.suggestions) == 4)
        assert set(person.suggestions) == set(marked)
        screen = painted(person)
        assert "evil red" in screen
        assert "[@click=app.quit]quit[/] [bold red]loud[/bold red]" in screen
        assert "<script>alert(1)</script> &amp; txt.exe x  {{x}} $x %s" in screen
        for y, line in enumerate(person.lines):  # a click on it does nothing
            if "app.quit" in line:
                await person.pilot.click(offset=(line.index("app.quit"), y))
        for opened in (["n"], ["s"], ["escape", "p"], ["escape", "e"], ["escape", "/", *"quit"]):
            await person.press(*opened)
            assert "loud" in painted(person)
        await person.press("escape")
        await person.press("e", "1")
        painted(person)
        await person.press("escape", "escape", "f", *"[/] [bold red]x", "enter")
        assert person.decided == [("evil", "flag")]
        await person.press("1", "escape")
        assert "flagged: [/] [bold red]x" in painted(person)
        print("\x1b[31maccount\x1b[0m [bold red]a1[/] is out", file=sys.stderr)
        await person.sees("[bold red]a1[/] is out")
        painted(person)
        assert person.app.is_running


async def test_what_is_pasted_is_painted_inert_too(tmp_path: Path) -> None:
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.settles()
        person.app.post_message(events.Paste(_HOSTILE))  # into no text: no key of the screen
        await person.pilot.pause()
        assert person.decided == []
        await person.press("w")
        person.app.post_message(events.Paste(_HOSTILE))
        await person.pilot.pause()
        painted(person)
        await person.press("enter")
        (item,) = person.gold
        assert not _CONTROLS.search(item["gold_question"])
        painted(person)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("word " * 20_000 + "\nTHE END", "THE END"),
        ("x" * 20_000 + "\nTHE END", "THE END"),
        ("\n".join(f"line {n}" for n in range(15_000)) + "\nTHE END", "THE END"),
        ("\t" * 3000 + "é漢字🙂\u0301\u200d" * 3000 + "\nTHE END", "THE END"),
    ],
    ids=["100 kB", "one line of 20,000", "15,000 lines", "wide and combining"],
)
async def test_a_huge_chunk_scrolls_and_the_screen_stays_quick(
    tmp_path: Path, text: str, end: str
) -> None:
    chunks = [chunks_of(1)[0].model_copy(update={"chunk_id": "big", "chunk_text": text})]
    async with at_work(tmp_path, [*chunks, *chunks_of(2)]) as person:
        await person.ready()
        slowest = 0.0
        for key in ["down", "pagedown", "space", "up", "x", "escape", "?", "escape", "end"]:
            started = time.thread_time()
            await person.press(key)
            slowest = max(slowest, time.thread_time() - started)
        await person.sees(end)
        assert slowest < 2.0  # seconds of CPU, of which it takes 0.1
        await person.press("home", "1")
        assert person.decided == [("big", "pick")]
        assert "Chunk 0 is about" in person.screen


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(80, 24), (60, 15), (120, 40)])
async def test_everything_is_on_the_screen_at_any_size(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with at_work(tmp_path, chunks_of(3), size=size) as person:
        await person.sees("3 tech")
        await person.settles()
        await person.press("u")  # nothing to undo: the whole screen is shown anew
        await person.until(lambda: sorted(re.findall(r"tech (\d)", person.screen)) == [*"0123"])
        screen = person.screen
        for part in ("file0.html", "Chunk 0 is about brakes.", "Technician: asks about brakes"):
            assert part in screen
        for part in (
            "tech 0",
            "tech 1",
            "tech 2",
            "tech 3",
            "w write",
            "q quit",
            "0 done · 3 left",
        ):
            assert part in screen
        assert all(len(line) <= size[0] for line in person.lines)
        await person.press("?")
        if size[1] >= 24:
            assert all(key.help in person.screen for key in KEYS)
        await person.press("escape", "w", *"Why?")
        await person.sees("Why?")
        assert "enter save" in person.screen
        await person.press("enter")
        assert "saved: written" in person.screen


async def test_suggestions_that_fill_in_are_all_on_a_short_screen(tmp_path: Path) -> None:
    """The line that said that they are late is gone, so there is room for all four."""
    gate = Gate()
    async with at_work(tmp_path, chunks_of(2), gate, size=(60, 15)) as person:
        await person.sees("suggestions are late")
        await person.pilot.pause()
        gate.opened.set()
        await person.sees("3 tech")
        await person.settles()
        await person.pilot.pause(0.3)
        assert len(person.suggestions) == 4


async def test_a_session_goes_on_through_resizing(tmp_path: Path) -> None:
    long = Persona(id="p", name="Prolix", description="asks about everything " * 20)
    async with at_work(tmp_path, chunks_of(9), personas=[long]) as person:
        for size in [(120, 40), (60, 15), (80, 24), (30, 8), (10, 3), (120, 40)]:
            await person.pilot.resize_terminal(*size)
            await person.settles()
            person.app._filled_in = 0.0
            await person.press("1")
            assert len(person.lines) == size[1]
        await person.press("w", *"ab")
        await person.pilot.resize_terminal(80, 24)
        await person.press(*"c?", "enter")
        assert person.decided == [(n, "pick") for n in range(6)] + [(6, "write")]
        assert person.gold[-1]["gold_question"] == "abc?"
        assert "saved: written" in person.screen
        assert person.lines.count("") < 20


async def test_thirty_personas_can_each_be_chosen_and_read(tmp_path: Path) -> None:
    people = [
        Persona(
            id=f"p{n}", name=f"Person {n:02}", description=f"asks about {n} " + "and so on " * 9
        )
        for n in range(30)
    ]
    async with at_work(tmp_path, chunks_of(1), personas=people) as person:
        await person.settles()
        await person.press("p")
        seen, letters = set(), {}
        for key in [None, *["pagedown"] * 6]:
            if key:
                await person.press(key)
            for letter, number in re.findall(r"^ +(\w) Person (\d\d)", person.screen, re.M):
                seen.add(number)
                letters[number] = letter
        assert len(seen) == 30
        await person.press(letters["29"])
        await person.sees("Person 29: asks about 29")


async def test_a_letter_chooses_the_thirtieth_persona(tmp_path: Path) -> None:
    people = [Persona(id=f"p{n}", name=f"Person {n:02}", description="asks") for n in range(30)]
    async with at_work(tmp_path, chunks_of(1), personas=people, size=(80, 60)) as person:
        await person.settles()
        await person.press("p")
        found = dict(re.findall(r"^ +(\w) Person (\d\d)", person.screen, re.M))
        letters = {number: letter for letter, number in found.items()}
        assert len(letters) == 30
        await person.press(letters["29"])
        await person.sees("Person 29: asks")
        await person.settles()
        assert all(line.startswith("p29 ") for line in person.suggestions)


async def test_nine_long_suggestions_can_all_be_read(tmp_path: Path) -> None:
    def long(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        return [f"START{n} " + "why and how " * 24 + f"END{n}?" for n in range(9)]

    async with at_work(tmp_path, chunks_of(2), long) as person:
        await person.settles()
        seen = set(re.findall(r"(?:START|END)\d", person.screen))
        for key in ["]"] * 12:
            await person.press(key)
            seen |= set(re.findall(r"(?:START|END)\d", person.screen))
        assert len(seen) == 18


@pytest.mark.parametrize("opened", ["w", "e 5", "f", "s 0"])
async def test_what_is_typed_can_be_seen_beside_five_suggestions_of_two_lines(
    tmp_path: Path, opened: str
) -> None:
    def usual(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        return [f"{n} " + "why does the wear of a brake pad " * 3 + f"matter{n}?" for n in range(5)]

    async with at_work(tmp_path, chunks_of(2), usual) as person:
        await person.ready(5)
        await person.press(*opened.split(), *"zyx")
        await person.sees("zyx")


async def test_a_long_suggestion_can_be_edited_in_place_wherever_it_stands(tmp_path: Path) -> None:
    def long(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        return [f"START{n} " + "why and how " * 24 + f"END{n}?" for n in range(9)]

    async with at_work(tmp_path, chunks_of(2), long) as person:
        await person.settles()
        person.app._filled_in = 0.0
        await person.press("e", "9", *"zyx")
        await person.sees("zyx")
        await person.press("enter")
        assert person.gold[0]["gold_question"].endswith("?zyx")


# ---------------------------------------------------------------------- leaving


@pytest.mark.parametrize("opened", ["", "s", "w", "e 1", "f", "/", "?"])
async def test_ctrl_c_leaves_with_130_from_everywhere(tmp_path: Path, opened: str) -> None:
    async with at_work(tmp_path, chunks_of(3)) as person:
        await person.ready()
        await person.press("1", *opened.split(), "ctrl+c")
        assert person.app.return_value == INTERRUPTED
    assert len(json.loads((tmp_path / "gold_dataset.json").read_text())) == 1


async def test_what_was_being_typed_at_ctrl_c_is_offered_again_under_w(tmp_path: Path) -> None:
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.settles()
        await person.press("w", *"Half a quest", "ctrl+c")
        assert person.app.return_value == INTERRUPTED
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.settles()
        await person.press("w", *"ion?", "enter")
        assert [item["gold_question"] for item in person.gold] == ["Half a question?"]


async def test_what_is_being_typed_is_kept_without_any_key(tmp_path: Path) -> None:
    """A connection that dies sends no Ctrl-C: a second of rest is enough."""
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.settles()
        await person.press("w", *"Half")
        await person.until(lambda: person.store.draft(0) == "Half")


async def test_keys_that_come_in_one_burst_are_not_lost(tmp_path: Path) -> None:
    """As over a slow line: what is typed after w is there before the editor has the focus."""
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.ready()
        for key in ["w", *"Why", "enter"]:
            person.app._driver.send_message(events.Key(key, key if len(key) == 1 else None))  # type: ignore[union-attr]
        await person.pilot.pause(0.3)
        assert [item["gold_question"] for item in person.gold] == ["Why"]


async def test_a_note_that_was_given_up_is_no_question(tmp_path: Path) -> None:
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.settles()
        await person.press("f", *"ask Bo", "escape", "w")
        assert person.app.query_one(Editor).text == ""


async def test_escape_leaves_every_mode_and_decides_nothing(tmp_path: Path) -> None:
    async with at_work(tmp_path, chunks_of(3)) as person:
        await person.ready()
        before = person.suggestions
        for opened in ("e", "x", "s", "p", "w", "e 1", "s 0", "f", "/", "?", "w a", "/ c h"):
            await person.press(*opened.split())
            await person.press("escape")
            assert (person.decided, person.suggestions) == ([], before), opened
            assert "w write" in person.screen
        await person.press("2")
        assert person.decided == [(0, "pick")]


# ---------------------------------------------------------------------- trouble


def fill_the_disk(store: AnnotationStore) -> None:
    store._connection.execute("PRAGMA max_page_count=1")  # not one page more than there are


def free_the_disk(store: AnnotationStore) -> None:
    store._connection.execute("PRAGMA max_page_count=1000000")


@pytest.mark.parametrize("deciding", ["1", "s 1", "d", "f n enter", "w q enter", "e 1 q enter"])
async def test_a_decision_that_cannot_be_saved_is_said_and_the_chunk_stays(
    tmp_path: Path, deciding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would fill the line
    chunks = chunks_of(3, chunk_text="Brakes. " * 900, document_id="d" * 5000)
    async with at_work(Path(), chunks) as person:
        await person.ready()
        fill_the_disk(person.store)
        for key in deciding.split():
            await person.press(key)
        if person.decided == []:
            assert "decision not saved" in person.screen
            assert person.app.session.current is chunks[0]
            await person.press("escape", "escape")
            free_the_disk(person.store)
            await person.press("1")
        assert person.decided[0][0] == 0
        assert len(person.decided) == 1


async def test_a_full_disk_while_typing_does_not_end_the_session(tmp_path: Path) -> None:
    async with at_work(tmp_path, chunks_of(2)) as person:
        await person.settles()
        fill_the_disk(person.store)
        await person.press("w")
        person.app.post_message(events.Paste("why " * 3000))
        await person.pilot.pause()
        await person.press("escape")
        assert person.app.is_running
        free_the_disk(person.store)
        await person.press("s", "1")
        assert person.decided == [(0, "skip")]


async def test_a_standing_problem_of_the_gold_file_shows_after_each_decision(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path, chunks_of(3), trouble=lambda: "gold_dataset.json: full") as person:
        await person.settles()
        assert "gold_dataset.json: full" in person.screen
        await person.press("s", "1")
        assert person.decided == [(0, "skip")]
        assert "gold_dataset.json: full" in person.screen


async def test_what_the_dispatcher_prints_is_a_line_of_the_screen(tmp_path: Path) -> None:
    async with at_work(tmp_path, chunks_of(3)) as person:
        await person.ready()
        before = person.lines
        speaker = threading.Thread(
            target=lambda: print("account a1:\n is out  until tomorrow", file=sys.stderr)
        )
        speaker.start()
        speaker.join()
        await person.sees("account a1: is out until tomorrow")
        after = person.lines
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        await person.press("1")
        assert person.decided == [(0, "pick")]


def test_the_gold_file_is_exported_while_decisions_are_made(tmp_path: Path) -> None:
    """The export reads the store on a thread of its own, in the middle of decisions and undos."""
    chunks = chunks_of(400)
    failed: list[object] = []
    done = threading.Event()
    with AnnotationStore(tmp_path / "annotations.sqlite") as store:

        def export() -> None:
            while not done.is_set() and not failed:
                try:
                    store.gold()
                except Exception as error:
                    failed.append(error)

        for chunk in chunks[:300]:
            decide(store, chunk)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        thread = threading.Thread(target=export)
        try:
            thread.start()
            end = time.monotonic() + 1.5
            while time.monotonic() < end and not failed:
                for chunk in chunks[300:320]:
                    decide(store, chunk)
                while len(store.history()) > 300:
                    store.undo()
        finally:
            sys.setswitchinterval(interval)
            done.set()
            thread.join()
    assert failed == []


def decide(store: AnnotationStore, chunk: Chunk) -> None:
    decision = Decision(chunk_id=chunk.chunk_id, action="write", gold_question="Why?")
    item = GoldItem(
        chunk_text=chunk.chunk_text,
        persona_description="asks",
        gold_question="Why?",
        chunk_id=chunk.chunk_id,
    )
    store.record(chunk, decision, item)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_export_that_broke_once_is_tried_again(tmp_path: Path) -> None:
    """Whatever an export ends with, the next decision is exported, or the screen says so."""

    class Moody(AnnotationStore):
        moods = 1

        def gold(self, annotator: str | None = None) -> list[GoldItem]:
            if threading.current_thread().name == "gold file" and self.moods:
                self.moods -= 1
                raise sqlite3.OperationalError("disk I/O error")
            return super().gold(annotator)

    with Moody(tmp_path / "annotations.sqlite") as store:
        path = tmp_path / "gold_dataset.json"
        gold_file = GoldFile(store, path, settings={}, inputs={})
        for chunk in chunks_of(2):
            decide(store, chunk)
            gold_file.request()
            end = time.monotonic() + 2
            while store.moods and time.monotonic() < end:
                time.sleep(0.01)
        end = time.monotonic() + 2
        while not path.exists() and not gold_file.problem and time.monotonic() < end:
            time.sleep(0.01)
        assert gold_file.problem or len(json.loads(path.read_text())) == 2
        gold_file.close()


# ---------------------------------------------------------------------- a real terminal


class Terminal:
    """A script on a pseudo-terminal of 80x24; `said` is all it wrote, without escapes."""

    def __init__(self, *args: object, **environ: str):
        self.master, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=clean_environment(TERM="xterm-256color", **environ),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # a hang-up reaches it
        )
        os.close(theirs)
        self.raw = b""
        self._seen = 0

    @property
    def said(self) -> str:
        text = self.raw.decode(errors="replace")
        return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_>=]|\][^\x07]*\x07)", "", text)

    def sees(self, text: str) -> None:
        """Read until `text` was written after what was seen before."""
        while (found := self.said.find(text, self._seen)) < 0:
            part = self._read()
            assert part, f"ended: {self.said[self._seen :]}"
            self.raw += part
        self._seen = found + len(text)

    def press(self, text: str) -> None:
        os.write(self.master, text.encode())

    def types(self, key: str, text: str) -> None:
        """`text` into the editor that `key` opens."""
        self.press(key)
        self.sees("enter save")
        time.sleep(0.3)
        self.press(text)

    def ends(self) -> tuple[int, str]:
        """(exit code, what was written since) when the process has ended."""
        while part := self._read():
            self.raw += part
        return self.process.wait(timeout=20), self.said[self._seen :].replace("\r\n", "\n")

    def _read(self) -> bytes:
        assert select.select([self.master], [], [], 20)[0], self.said[self._seen :]
        try:
            return os.read(self.master, 65536)
        except OSError:  # nobody has it open any more
            return b""

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)


@pytest.fixture
def few(sample: Path, tmp_path: Path) -> Path:
    """A data folder with three real chunks."""
    data = tmp_path / "data"
    data.mkdir()
    lines = (sample / "raw_chunks.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (data / "raw_chunks.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    return data


@pytest.fixture
def terminal(few: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*args: object, **environ: str) -> Terminal:
        flags = ["--data-dir", few, "--personas-file", ROOT / "tests" / "one_persona.json"]
        first = args if args and str(args[0]) == "-c" else [ROOT / "annotate_chunks.py", *args]
        started.append(Terminal(*first, *flags, "--repeats", "0", **environ))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def gold_in(data: Path) -> list[dict[str, Any]]:
    return json.loads((data / "gold_dataset.json").read_text(encoding="utf-8"))


def test_a_session_at_a_real_terminal(terminal: Callable[..., Terminal], few: Path) -> None:
    person = terminal("--rehearsal")
    person.sees(" pick ")
    time.sleep(0.7)  # suggestions that have just come are not taken
    person.press("2")
    person.sees("saved: picked 2")
    person.press("s1")
    person.sees("saved: skipped")
    person.types("w", "Why so?\r")
    person.sees("saved: written")
    person.sees("Every chunk")
    person.press("q")
    code, last = person.ends()
    assert code == 0, last
    assert "2 gold questions (suggestions by the rehearsal)" in last
    assert f"-> {few / 'gold_dataset.json'}" in last.replace("\n", "")
    first, second = gold_in(few)
    assert (first["origin"], first["gold_question"]) == ("picked", first["suggestions"][1])
    assert (second["origin"], second["gold_question"]) == ("written", "Why so?")
    assert b"\x1b[?1049l" in person.raw  # the terminal is itself again


@pytest.mark.parametrize(
    "how",
    ["SIGTERM", "SIGHUP", "SIGINT", "Ctrl-C", "the line breaks"],
)
def test_a_session_that_is_ended_from_outside_leaves_everything_saved(
    terminal: Callable[..., Terminal], few: Path, how: str
) -> None:
    person = terminal("--rehearsal")
    person.sees("q quit")
    person.press("s2")
    person.sees("saved: skipped")
    person.types("w", "Why so?\r")
    person.sees("saved: written")
    person.types("w", "Half a quest")
    time.sleep(0.5)  # less than the rest after which it is kept anyway
    if how == "Ctrl-C":
        person.press("\x1b")
        time.sleep(0.5)
        person.press("\x03")
    elif how == "the line breaks":
        os.close(person.master)
        person.process.wait(timeout=30)
    else:
        person.process.send_signal(getattr(signal, how))
    if how != "the line breaks":
        code, last = person.ends()
        assert code == INTERRUPTED, last
        assert "interrupted; resume with: python annotate_chunks.py" in last.replace("\n", "")
    assert [item["gold_question"] for item in gold_in(few)] == ["Why so?"]
    connection = sqlite3.connect(few / "annotations.sqlite")
    assert connection.execute("SELECT text FROM drafts").fetchall() == [("Half a quest",)]
    connection.close()
    assert not list(few.glob("*.tmp"))
    assert not list(few.glob(".*.tmp"))


_BROKEN = """
import sys
sys.path.insert(0, "")
from question_optimizer.annotation.session import Session
from question_optimizer.cli import run
from annotate_chunks import main
def broken(*args):
    raise RuntimeError("a bug of ours")
Session.pick = broken
sys.exit(run(lambda: main([*sys.argv[1:], "--rehearsal"])))
"""


def test_a_bug_of_ours_ends_with_1_and_its_traceback(
    terminal: Callable[..., Terminal], few: Path
) -> None:
    person = terminal("-c", _BROKEN)
    person.sees("q quit")
    person.press("s2")
    person.sees("saved: skipped")
    person.sees(" pick ")
    time.sleep(0.7)
    person.press("1")
    code, last = person.ends()
    assert "a bug of ours" in last
    assert gold_in(few) == []
    assert code == 1


def test_quitting_right_after_a_decision_with_many_personas(few: Path) -> None:
    """Personas of the chunks ahead are being ranked at that moment."""
    people = SAMPLE / "personas.json"
    flags = ["--data-dir", few, "--personas-file", people, "--rehearsal", "--repeats", "0"]
    person = Terminal(ROOT / "annotate_chunks.py", *flags)
    try:
        person.sees("q quit")
        person.press("q")  # while the embedding model loads
        code, last = person.ends()
    finally:
        person.close()
    assert "terminate called" not in last
    assert code == 0


def test_quitting_says_what_it_waits_for_and_ctrl_c_ends_that(
    terminal: Callable[..., Terminal],
    few: Path,
    tmp_path: Path,
    llm_server: Callable[..., LLMServer],
) -> None:
    release = threading.Event()

    def stall(messages: list[dict[str, Any]]) -> str:
        release.wait(60)
        return ""

    server = llm_server(stall)
    (tmp_path / "llm.toml").write_text(
        f'[[accounts]]\nname = "a"\nmodel = "m"\nbase_url = "{server.url}/v1"\n'
    )
    try:
        person = terminal("--providers-file", tmp_path / "llm.toml")
        person.sees("suggestions are late")
        person.press("q")
        person.sees("waiting for the suggestions of 3 chunks, at most 10 s; Ctrl-C leaves at once")
        started = time.monotonic()
        person.press("\x03")
        code, last = person.ends()
        assert code == INTERRUPTED, last
        assert "Task was destroyed" not in last
        assert time.monotonic() - started < 10, last  # which the wait alone would have taken
        assert gold_in(few) == []
    finally:
        release.set()


class Closings(LLMDispatcher):
    """Is closed only on paper, and remembers how."""

    def __init__(self) -> None:
        super().__init__([LLMClientConfig(name="a", model="m", base_url="http://127.0.0.1:9/v1")])
        self.patience: list[float] = []

    def close(self, *, patience_seconds: float = 10.0) -> None:
        self.patience.append(patience_seconds)


class InterruptedPrinting(io.StringIO):
    """Ctrl-C comes while the line is being written."""

    def write(self, text: str) -> int:
        raise KeyboardInterrupt


def test_ctrl_c_before_the_wait_has_begun_waits_for_nothing() -> None:
    dispatcher = Closings()
    with contextlib.redirect_stderr(InterruptedPrinting()), pytest.raises(KeyboardInterrupt):
        let_come(3, dispatcher)
    assert dispatcher.patience == [0]
