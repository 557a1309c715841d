"""Annotation: one decision at a time, on disk before the next chunk shows, and replayable."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import resource
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import dspy
import pytest
from rich.console import Console

from annotate_chunks import main as annotate_chunks
from conftest import ROOT, SAMPLE, clean_environment, tree_digest
from fetch_chunks import main as fetch_chunks
from question_optimizer.annotation import plain
from question_optimizer.annotation.plain import LineMode
from question_optimizer.annotation.preparation import Preparation, Suggester
from question_optimizer.annotation.replay import replay
from question_optimizer.annotation.session import SKIP_REASONS, Card, Refused, Rules
from question_optimizer.annotation.session import Session as AnnotationSession
from question_optimizer.annotation.store import AnnotationStore, Event
from question_optimizer.cli import run
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.embedding import Embedder
from question_optimizer.errors import StopRun, UserError
from question_optimizer.personas import FALLBACK, PersonaCap, PersonaChooser, PersonaMatcher
from question_optimizer.programs import suggester
from question_optimizer.programs.annotation_session import ended
from question_optimizer.providers import rehearsal_account
from question_optimizer.records import Chunk, Decision, GoldItem, Persona

TECHNICIAN = Persona(id="tech", name="Technician", description="asks about brakes")
SUGGESTED = ["What is the wear limit?", "How thick is a new pad?", "brake pad wear limit"]


def chunks_of(count: int, documents: int = 4) -> list[Chunk]:
    return [
        Chunk(
            chunk_id=number,
            chunk_text=f"Chunk {number} is about brakes.",
            document_id=f"d{number % documents}",
            file_name=f"file{number % documents}.html",
        )
        for number in range(count)
    ]


def suggest(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
    return list(SUGGESTED)


class Keyboard:
    """Answers prompts from a queue; an entry is a line, or (seconds it took, line).

    Then the input ends. `prompts` keeps what was asked; `clock` tells the time.
    """

    def __init__(self, *lines: str | tuple[float, str]):
        self.lines = list(lines)
        self.prompts: list[str] = []
        self.now = 1000.0

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        seconds, text = line if isinstance(line, tuple) else (1.0, line)
        self.now += seconds
        return text

    def clock(self) -> float:
        return self.now


class Session:
    """A store and a screen; `run` lets a person or a replay decide on chunks."""

    def __init__(self, path: Path):
        self.store = AnnotationStore(path)
        self.screen = StringIO()

    def run(
        self,
        chunks: Sequence[Chunk],
        by: Keyboard | Mapping[str, Decision],
        *,
        suggester: Suggester = suggest,
        saved: Callable[[], object] = lambda: None,
    ) -> int:
        """How many decisions were made."""
        before = len(self.store.history())
        self._run(chunks, by, suggester, saved)
        return len(self.store.history()) - before

    def _run(
        self,
        chunks: Sequence[Chunk],
        by: Keyboard | Mapping[str, Decision],
        suggester: Suggester,
        saved: Callable[[], object],
    ) -> None:
        chooser = PersonaChooser(PersonaMatcher([TECHNICIAN], Embedder()))
        with Preparation(self.store, chooser, suggester, models=["model-a"]) as preparation:
            if not isinstance(by, Keyboard):
                replay(
                    chunks,
                    by,
                    store=self.store,
                    preparation=preparation,
                    sample=chunks,
                    seed=0,
                    saved=saved,
                )
                return
            session = AnnotationSession(
                chunks,
                store=self.store,
                preparation=preparation,
                rules=Rules(shuffle=False, repeats=0.0),
                saved=saved,
                clock=by.clock,
            )
            LineMode(session, Console(file=self.screen, width=200), by).run()

    @property
    def shown(self) -> str:
        return self.screen.getvalue()


class Ranked(PersonaMatcher):
    """Those personas come first whose id stands in the text; no model is loaded."""

    def __init__(self, personas: Sequence[Persona]):
        super().__init__(personas, Embedder())

    def rank(self, texts: Sequence[str]) -> list[list[Persona]]:
        return [sorted(self.personas, key=lambda p: f" {p.id} " not in text) for text in texts]


@contextmanager
def at_desk(
    path: Path,
    chunks: Sequence[Chunk],
    *,
    annotator: str = "",
    suggester: Suggester = suggest,
    chooser: PersonaChooser | None = None,
    clock: Callable[[], float] = time.monotonic,
    saved: Callable[[], object] = lambda: None,
    **rules: Any,
) -> Iterator[AnnotationSession]:
    """A session without a screen; unshuffled and without repeats, unless `rules` say otherwise."""
    chooser = chooser or PersonaChooser(Ranked([TECHNICIAN]))
    with (
        AnnotationStore(path, annotator) as store,
        Preparation(store, chooser, suggester, models=["model-a"]) as preparation,
    ):
        yield AnnotationSession(
            chunks,
            store=store,
            preparation=preparation,
            rules=Rules(**{"shuffle": False, "repeats": 0.0} | rules),
            clock=clock,
            saved=saved,
        )


def card_of(session: AnnotationSession) -> Card:
    """What is shown once nothing is being made any more."""
    assert session.current is not None
    assert not session.preparation.wait(session.current, 30).pending
    card = session.card
    assert card is not None
    return card


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = Session(tmp_path / "annotations.sqlite")
    yield session
    session.store.close()


# ---------------------------------------------------------------------- what a person can do


@pytest.mark.parametrize(
    ("lines", "origin", "question"),
    [
        (["2"], "picked", "How thick is a new pad?"),
        (["", "  3 "], "picked", "brake pad wear limit"),
        (["e 2", "How thick is a new brake pad?"], "edited", "How thick is a new brake pad?"),
        (["e", "When is a pad worn?"], "edited", "When is a pad worn?"),
        (["e 3", "", "1"], "picked", "What is the wear limit?"),
        (["w", "Who checks pads?"], "written", "Who checks pads?"),
        (["w Who checks pads?"], "written", "Who checks pads?"),
        (["w", "", "w", "Who?"], "written", "Who?"),
        (["w  two   blanks\tand a tab "], "written", "two blanks and a tab"),
        (["w How  thick is a new pad? "], "picked", "How thick is a new pad?"),
        (["w \x1b[31mred\x1b[0m brakes\x07?"], "written", "red brakes?"),
        (["w caf\udce9 brakes?"], "written", "caf\ufffd brakes?"),  # not the terminal's encoding
    ],
)
def test_a_key_makes_a_gold_question(
    session: Session, lines: list[str], origin: str, question: str
) -> None:
    assert session.run(chunks_of(1), Keyboard(*lines)) == 1
    (item,) = session.store.gold()
    assert (item.origin, item.gold_question) == (origin, question)
    assert (item.chunk_id, item.chunk_text) == (0, "Chunk 0 is about brakes.")
    assert (item.persona_id, item.persona_description) == ("tech", "asks about brakes")
    assert (item.suggestions, item.suggestions_shown) == (SUGGESTED, True)
    assert item.suggested_by == ["model-a"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["s 1"], "boilerplate"),
        (["s", "3"], "code only"),
        (["s 5"], "no persona fits"),
        (["s", "6"], "other"),
        (["s", ""], "other"),
        (["s table of contents"], "table of contents"),
        (["s", "two languages"], "two languages"),
        (["s ²"], "²"),
    ],
)
def test_a_skip_has_a_reason_by_digit_or_in_words(
    session: Session, lines: list[str], reason: str
) -> None:
    assert session.run(chunks_of(1), Keyboard(*lines)) == 1
    assert session.store.gold() == []
    assert session.store.skipped() == {reason: 1}


def test_the_reasons_are_offered_with_their_digits(session: Session) -> None:
    keyboard = Keyboard("s", "2")
    session.run(chunks_of(1), keyboard)
    assert keyboard.prompts[0] == "1-3 pick · e edit · w write · s skip · ? help · q quit > "
    assert keyboard.prompts[1] == (
        "why? 1 boilerplate 2 too short 3 code only 4 needs context 5 no persona fits 6 other, "
        "or in your words > "
    )
    assert len(SKIP_REASONS) == 6


@pytest.mark.parametrize("key", ["1.5", "-1", "W", "pick", "[bold]", "²", "½", "e2", "\x1b[2J"])
def test_an_unknown_key_says_so_and_asks_again(session: Session, key: str) -> None:
    assert session.run(chunks_of(1), Keyboard(key, "1")) == 1
    assert f"{key!r} is no key here; ? shows them" in session.shown
    assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[0]]


@pytest.mark.parametrize(
    ("key", "refusal"),
    [
        ("0", "there is no question of yours here; w writes one"),
        ("00", "there is no suggestion 0"),
        ("4", "there is no suggestion 4"),
        ("99", "there is no suggestion 99"),
        ("x", "which one?"),
        ("x 4", "there is no suggestion 4"),
        ("x ²", "which one? '²' is no number"),
        ("e 4", "there is no suggestion 4"),
        ("p 2", "there is no persona 2"),
        ("p tech", "which one? 'tech' is no number"),
        ("u", "there is nothing left to undo"),
        ("/ axle", "nothing found"),
        ("/ [", "nothing found"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_and_the_chunk_stays(
    session: Session, key: str, refusal: str
) -> None:
    assert session.run(chunks_of(1), Keyboard(key, "1")) == 1
    assert f"  {refusal}\n" in session.shown
    assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[0]]
    assert [kind for kind, _ in events(session.store.path) if kind == "decision"] == ["decision"]


@pytest.mark.parametrize("key", ["e 9", "e 0", "e x", "e ²"])
def test_editing_a_suggestion_that_is_not_there_edits_no_other(session: Session, key: str) -> None:
    keyboard = Keyboard(key, "1")
    assert session.run(chunks_of(1), keyboard) == 1
    assert "question: " not in keyboard.prompts
    assert [item.origin for item in session.store.gold()] == ["picked"]


def test_an_empty_question_leaves_the_chunk_open_and_says_so(session: Session) -> None:
    assert session.run(chunks_of(1), Keyboard("w", "  ")) == 0
    assert "no question written; the chunk is still open" in session.shown
    assert not session.store.is_decided(chunks_of(1)[0])


def test_help_names_every_key(session: Session) -> None:
    assert session.run(chunks_of(1), Keyboard("?", "q")) == 0
    for line in ("1-9 ", *(f"{key}    " for key in "ewsdfuprx0n/?q")):
        assert re.search(rf"^  {re.escape(line)}", session.shown, re.M), line


@pytest.mark.parametrize("end", [["q"], []], ids=["quit", "end of input"])
@pytest.mark.parametrize("before", [[], ["w"], ["e"], ["s"]])
def test_quitting_keeps_what_was_decided_and_leaves_the_open_chunk_open(
    session: Session, before: list[str], end: list[str]
) -> None:
    if before and end:
        before = [*before, ""] if before != ["s"] else []
    chunks = chunks_of(3)
    assert session.run(chunks, Keyboard("1", *before, *end)) == 1
    assert [session.store.is_decided(chunk) for chunk in chunks] == [True, False, False]
    assert " 1 done · 2 left · spent 0.0000 " in session.shown


def test_without_suggestions_there_is_nothing_to_pick_or_edit(session: Session) -> None:
    keyboard = Keyboard("1", "e", "w Who?")
    assert session.run(chunks_of(1), keyboard, suggester=lambda chunk, persona, already=(): []) == 1
    assert keyboard.prompts == [
        *["w write · s skip · ? help · q quit > "] * 3,
        "u undo · / find · q quit > ",
    ]
    assert session.shown.count("there is no suggestion 1") == 2
    assert "no suggestions: the model had nothing else to suggest; r tries again" in session.shown
    (item,) = session.store.gold()
    assert (item.suggestions, item.suggestions_shown, item.suggested_by) == ([], False, [])


def test_the_chunk_shows_with_its_place_its_persona_and_the_suggestions(session: Session) -> None:
    chunk = Chunk(
        chunk_id=1,
        chunk_text="Pads wear.",
        file_name="b.pdf",
        headings=["Brakes\n and\t pads"],
        page_no=7,
    )
    session.run([chunk], Keyboard("q"))
    assert " 0 done · 1 left · spent 0.0000 " in session.shown
    assert "b.pdf › Brakes and pads › page 7\n" in session.shown
    assert "Pads wear." in session.shown
    assert "Technician: asks about brakes" in session.shown
    for number, suggestion in enumerate(SUGGESTED, 1):
        assert f"  {number}  {suggestion}\n" in session.shown


def test_a_chunk_shows_before_its_suggestions_are_there(tmp_path: Path) -> None:
    screen = StringIO()
    shown_first: list[bool] = []

    def after_the_chunk(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        shown_first.append(eventually(lambda: chunk.chunk_text in screen.getvalue()))
        return SUGGESTED

    with at_desk(tmp_path / "log", chunks_of(1), suggester=after_the_chunk) as session:
        in_lines(session, Keyboard("1"), screen=screen)
        assert shown_first == [True]
        assert [item.gold_question for item in session.store.gold()] == SUGGESTED[:1]
    assert "suggestions are late" not in screen.getvalue()


def eventually(there: Callable[[], object]) -> bool:
    """Whether `there` becomes true within ten seconds."""
    until = time.monotonic() + 10
    while not there():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def test_after_the_last_decision_the_session_stays_until_q(session: Session) -> None:
    keyboard = Keyboard("1", "1", "e", "n", "d", "w Mine?", "p 1", "r", "0", "x 1", "?", "", "q")
    assert session.run(chunks_of(1), keyboard) == 1
    assert keyboard.prompts[1:] == ["u undo · / find · q quit > "] * 12
    assert session.shown.count("  every chunk of the sample is decided\n") == 1 + 9 + 1
    assert session.shown.count(" 1 done · 0 left · spent 0.0000 ") == 2
    assert [item.gold_question for item in session.store.gold()] == SUGGESTED[:1]


# ---------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([(12.34, "1")], 12.3),
        ([(60.0, "1")], 60.0),
        ([(61.0, "1")], 60.0),
        ([(3600.0, "1")], 60.0),
        ([(10.0, "?"), (5.0, "x"), (2.0, "1")], 17.0),
        ([(30.0, "e 2"), (600.0, "edited")], 90.0),
    ],
)
def test_active_seconds_leave_out_what_a_pause_has_over_a_minute(
    session: Session, lines: list[tuple[float, str]], seconds: float
) -> None:
    session.run(chunks_of(1), Keyboard(*lines))
    assert [item.active_seconds for item in session.store.gold()] == [seconds]


def test_each_chunk_has_a_time_of_its_own(session: Session) -> None:
    session.run(chunks_of(3), Keyboard((5.0, "1"), (7.0, "s 1"), (9.0, "2")))
    assert [item.active_seconds for item in session.store.gold()] == [5.0, 9.0]


# ---------------------------------------------------------------------- editing on a terminal

_AT_A_TERMINAL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_annotation as t
from rich.console import Console
with t.at_desk(Path(sys.argv[1]), t.chunks_of(1)) as session:
    t.LineMode(session, Console(width=80)).run()
"""


def read_until(terminal: int, mark: bytes) -> bytes:
    """What came over `terminal`, up to and with `mark`."""
    seen = b""
    while mark not in seen:
        assert select.select([terminal], [], [], 60)[0], f"no {mark!r} in {seen!r}"
        seen += os.read(terminal, 1024)
    return seen


def test_on_a_terminal_a_suggestion_is_there_to_be_edited(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _AT_A_TERMINAL, str(tmp_path / "log"), str(ROOT / "tests")],
        cwd=ROOT,
        env=clean_environment(TERM="dumb"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        read_until(terminal, b"q quit > ")
        os.write(terminal, b"e 2\n")
        read_until(terminal, b"new pad?")
        os.write(terminal, b"\x7f of type B?\n")
        read_until(terminal, b"every chunk of the sample is decided")
        os.write(terminal, b"q\n")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(terminal)
    with AnnotationStore(tmp_path / "log") as store:
        decision = store.decision(0)
    assert decision is not None
    assert (decision.action, decision.pick) == ("edit", 2)
    assert decision.gold_question == "How thick is a new pad of type B?"


# ---------------------------------------------------------------------- suggestions


def test_failing_suggestions_cost_a_chunk_nothing_but_the_suggestions(session: Session) -> None:
    def flaky(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        if chunk.chunk_id == 1:
            raise RuntimeError("rate limited\n by account [bold]x[/bold] \x1b[2J")
        if chunk.chunk_id == 2:
            raise TimeoutError
        return SUGGESTED

    keyboard = Keyboard("1", "w Mine?", "w Mine too?")
    assert session.run(chunks_of(3), keyboard, suggester=flaky) == 3
    assert "no suggestions: rate limited by account [bold]x[/bold]" in session.shown
    assert "no suggestions: TimeoutError" in session.shown
    assert "\x1b" not in session.shown
    gold = session.store.gold()
    assert [item.suggestions for item in gold] == [SUGGESTED, [], []]
    assert [item.suggestions_shown for item in gold] == [True, False, False]


def spent(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
    if chunk.chunk_id == 2:
        raise StopRun("budget reached", exit_code=5)
    return SUGGESTED


def test_a_session_goes_on_without_suggestions_when_the_run_may_make_no_more(
    session: Session,
) -> None:
    keyboard = Keyboard("1", "1", "1", "w Mine?", "1")
    assert session.run(chunks_of(4), keyboard, suggester=spent) == 4
    assert "no suggestions: budget reached; r tries again" in session.shown
    assert [item.origin for item in session.store.gold()] == ["picked"] * 2 + ["written", "picked"]


def test_a_replay_ends_with_the_run_and_keeps_every_decision_before(session: Session) -> None:
    rows = decisions(*({"chunk_id": n, "action": "pick", "pick": 1} for n in range(9)))
    with pytest.raises(StopRun, match="budget reached"):
        session.run(chunks_of(9), rows, suggester=spent)
    assert [item.chunk_id for item in session.store.gold()] == [0, 1]
    assert session.run(chunks_of(9)[2:], rows) == 7


def test_the_next_suggestions_are_made_while_a_person_reads(session: Session) -> None:
    asked: list[object] = []

    def counting(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        asked.append(chunk.chunk_id)
        return SUGGESTED

    session.run(chunks_of(30), Keyboard("1", "q"), suggester=counting)
    assert set(asked) <= set(range(8))  # two shown and six ahead; not the whole sample


# ---------------------------------------------------------------------- hostile text


def test_a_hostile_chunk_is_shown_inert(session: Session) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[red]x[/red] [link=file:///]y[/link] \x9b5m\u202etxt \ud800"
    chunk = Chunk.model_construct(
        chunk_id=1,
        chunk_text=hostile,
        document_id=None,
        file_name=f"file {hostile}",
        headings=[f"heading {hostile}"],
        page_no=None,
    )
    session.run([chunk], Keyboard("q"))
    visible = "[red]x[/red] [link=file:///]y[/link] 5mtxt \ufffd"
    assert f"file {visible} › heading {visible}" in session.shown
    assert f"\n{visible}\n" in session.shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", session.shown)


# ---------------------------------------------------------------------- undo


def decide_all_ways(session: AnnotationSession) -> None:
    """One decision of each kind, on the first six chunks."""
    for number, decide in enumerate(
        [
            lambda: session.pick(2),
            lambda: session.edit(1, "Which limit?"),
            lambda: session.write("Who checks?"),
            lambda: session.skip("boilerplate"),
            session.defer,
            lambda: session.flag("ask Anna"),
        ]
    ):
        assert card_of(session).chunk.chunk_id == number
        decide()


def test_undo_takes_back_every_decision_and_returns_to_its_chunk(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8)) as session:
        decide_all_ways(session)
        assert len(session.store.gold()) == 3
        undone: list[str] = []
        for _ in range(6):
            undone.append(session.undo().action)
            assert card_of(session).standing is None
            undone.append(str(session.current and session.current.chunk_id))
        expected = "flag 5 defer 4 skip 3 write 2 edit 1 pick 0".split()
        assert undone == expected
        with pytest.raises(Refused, match="there is nothing left to undo"):
            session.undo()
        assert session.store.gold() == []
        assert session.store.skipped() == {}
        assert (session.progress.done, session.progress.left) == (0, 8)
    kinds = [kind for kind, _ in events(tmp_path / "log") if kind in ("decision", "undo")]
    assert kinds == ["decision"] * 6 + ["undo"] * 6  # the log keeps everything


def test_undo_reaches_back_over_restarts(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8)) as session:
        decide_all_ways(session)
    for left in (5, 4, 3, 2, 1, 0):
        with at_desk(tmp_path / "log", chunks_of(8)) as session:
            session.undo()
            assert session.current is not None
            assert session.current.chunk_id == left
            assert len(session.store.history()) == left
    with at_desk(tmp_path / "log", chunks_of(8)) as session:
        assert session.store.history() == []
        with pytest.raises(Refused):
            session.undo()


def test_after_undo_everything_is_as_if_never_decided(tmp_path: Path) -> None:
    with at_desk(tmp_path / "a", chunks_of(8)) as session:
        for _ in range(3):
            card_of(session)
            session.pick(1)
        kept = session.store.gold()
        card_of(session)
        session.write("Gone?")
        card_of(session)
        session.skip("other")
        session.undo()
        session.undo()
        assert session.store.gold() == kept
        with AnnotationStore(tmp_path / "a") as again:
            assert again.gold() == kept
            assert again.skipped() == {}


@pytest.mark.parametrize(
    ("action", "kind"), [("write", "write"), ("edit", f"edit {SUGGESTED[1]}"), ("flag", "flag")]
)
def test_what_was_typed_comes_back_as_a_draft_of_its_kind(
    tmp_path: Path, action: str, kind: str
) -> None:
    def drafts(session: AnnotationSession) -> dict[str, str]:
        kinds = ("write", "flag", "skip", *(f"edit {line}" for line in SUGGESTED))
        assert card_of(session).draft == session.draft("write")
        return {kind: draft for kind in kinds if (draft := session.draft(kind))}

    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        card_of(session)
        {
            "write": lambda: session.write("A long one?"),
            "edit": lambda: session.edit(2, "A long one?"),
            "flag": lambda: session.flag("A long one?"),
        }[action]()
        assert drafts(session) == {}
        session.undo()
        assert drafts(session) == {kind: "A long one?"}
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        assert drafts(session) == {kind: "A long one?"}
        session.pick(1)
        session.open(0)
        assert drafts(session) == {}


def test_a_draft_is_offered_only_for_what_it_was_typed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[str] = []

    @contextmanager
    def prefilled(text: str, console: Console) -> Iterator[None]:
        offered.append(text)
        yield

    def of_texts(keyboard: Keyboard) -> list[str]:
        asked = zip(keyboard.prompts, offered, strict=True)
        return [text for prompt, text in asked if prompt in ("question: ", "note: ")]

    monkeypatch.setattr(plain, "_prefilled", prefilled)
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        card_of(session)
        session.keep_draft("Half an edit", f"edit {SUGGESTED[1]}")
        session.keep_draft("half a note", "flag")
        assert card_of(session).draft == ""
        keyboard = Keyboard("w", "", "e 1", "", "e 2", "Whole edit?", "u", "w", "", "e 2")
        in_lines(session, keyboard)
    assert of_texts(keyboard) == ["", SUGGESTED[0], "Half an edit", "", "Whole edit?"]
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        card_of(session)
        session.keep_draft("Half a question")
        session.keep_draft("half a note", "flag")
        assert card_of(session).draft == "Half a question"
        offered.clear()
        keyboard = Keyboard("f", "", "e 1", "", "w")
        in_lines(session, keyboard)
    assert of_texts(keyboard) == ["half a note", SUGGESTED[0], "Half a question"]


def test_undoing_a_second_decision_leaves_the_first_standing(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(3)) as session:
        card_of(session)
        session.pick(1)
        session.open(0)
        standing = card_of(session).standing
        assert standing is not None
        assert standing.action == "pick"
        session.skip("too short")
        assert session.store.gold() == []
        assert session.undo().action == "skip"
        assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[0]]
        assert session.progress.done == 1
        session.undo()
        assert session.store.gold() == []
        last = session.store.events()[-1]
        assert (last.kind, last.data["new"]) == ("undo", None)


def test_an_undo_names_what_stands_before_and_after(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2), annotator="anna") as session:
        card_of(session)
        session.pick(3)
        session.open(0)
        session.write("Better?")
        session.undo()
        decided, redecided, undo = [
            e for e in session.store.events() if e.kind in ("decision", "undo")
        ]
        assert (decided.data["old"], decided.data["decision"]["pick"]) == (None, 3)
        assert redecided.data["old"] == decided.data["decision"]
        assert undo.data == {
            "undoes": redecided.seq,
            "old": redecided.data["decision"],
            "new": decided.data["decision"],
        }
        assert {event.annotator for event in (decided, redecided, undo)} == {"anna"}


def test_decisions_on_chunks_that_left_the_sample_are_not_undone(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(3)) as session:
        for number in (1, 0):  # what has left was decided last
            session.open(number)
            card_of(session)
            session.pick(1)
    with at_desk(tmp_path / "log", chunks_of(3)[1:]) as session:
        assert session.undo().chunk_id == 1
        assert session.current is not None
        assert session.current.chunk_id == 1
        with pytest.raises(Refused, match="there is nothing left to undo"):
            session.undo()
        assert [item.chunk_id for item in session.store.gold()] == [0]
    with at_desk(tmp_path / "log", chunks_of(3)) as session:  # and can be once they are back
        assert session.undo().chunk_id == 0


def test_undo_in_lines_says_what_it_undid(session: Session) -> None:
    assert session.run(chunks_of(3), Keyboard("1", "s 1", "u", "u", "3", "q")) == 1
    assert "  undone: skip\n" in session.shown
    assert "  undone: pick\n" in session.shown
    assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[2]]


@pytest.mark.parametrize("lines", [["1", "u", "2"], ["1", "/ chunk", "1", "2"]])
def test_the_last_decision_can_be_taken_back_in_lines_too(
    session: Session, lines: list[str]
) -> None:
    session.run(chunks_of(1), Keyboard(*lines[:1]))
    session.run(chunks_of(1), Keyboard(*lines[1:]))  # also after a restart
    assert "every chunk of the sample is decided" in session.shown
    assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[1]]


# ---------------------------------------------------------------------- later, and to be discussed


def test_what_was_put_off_comes_back_last_the_longest_put_off_first(tmp_path: Path) -> None:
    shown = []
    with at_desk(tmp_path / "log", chunks_of(5)) as session:
        for key in "d p f d p d p p p".split():
            shown.append(card_of(session).chunk.chunk_id)
            {"d": session.defer, "p": lambda: session.pick(1), "f": lambda: session.flag("?")}[
                key
            ]()
        assert session.current is None
    assert shown == [0, 1, 2, 3, 4, 0, 2, 3, 0]


def test_deferred_chunks_come_back_after_a_restart_and_count_as_left(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        card_of(session)
        session.defer()
        card_of(session)
        session.pick(1)
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        card = card_of(session)
        assert (card.chunk.chunk_id, session.progress.left) == (0, 1)
        assert not session.store.is_decided(card.chunk)
        session.defer()  # again: it is the only one
        assert card_of(session).chunk.chunk_id == 0
        session.pick(1)
        assert session.current is None
        assert [item.chunk_id for item in session.store.gold()] == [1, 0]  # as they were settled


def test_a_flag_note_stays_with_the_gold_item(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        card_of(session)
        session.flag("  two \x1b[31m answers? ")
        card_of(session)
        session.pick(1)
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        assert card_of(session).note == "two answers?"
        session.pick(2)
        notes = {item.chunk_id: item.note for item in session.store.gold()}
        assert notes == {0: "two answers?", 1: None}
        session.open(0)
        assert card_of(session).note == "two answers?"


def test_an_undone_flag_leaves_no_note(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        card_of(session)
        session.flag("hm")
        session.undo()
        assert card_of(session).note == ""
        session.pick(1)
        assert session.store.gold()[0].note is None


def test_a_flag_without_a_note_is_refused(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        with pytest.raises(Refused, match="no note written; the chunk is still open"):
            session.flag(" \x07 ")
        assert session.store.history() == []


def test_defer_and_flag_by_key(session: Session) -> None:
    keyboard = Keyboard("d", "f", "unclear", "f why?", "1", "2", "3")
    assert session.run(chunks_of(3), keyboard) == 6
    assert keyboard.prompts[2] == "note: "
    assert "flagged: unclear" in session.shown
    notes = {item.chunk_id: item.note for item in session.store.gold()}
    assert notes == {0: None, 1: "unclear", 2: "why?"}


# ---------------------------------------------------------------------- who asks

BUYER = Persona(id="buyer", name="Buyer", description="asks what to order")
DRIVER = Persona(id="driver", name="Driver", description="asks what the lamp means")
THREE = [TECHNICIAN, BUYER, DRIVER]


def numbered(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
    """Three suggestions that tell chunk, persona and number; never one of `already`."""
    start = len(already) + 1
    return [f"{persona.id} {chunk.chunk_id}.{n}?" for n in range(start, start + 3)]


class Gate:
    """A suggester that makes those of the personas `closed` wait until `open` is set."""

    def __init__(self, *closed: Persona, then: Suggester = numbered):
        self.closed = {persona.id for persona in closed}
        self.open = threading.Event()
        self.waiting = threading.Event()
        self.asked: list[tuple[object, str]] = []
        self._then = then

    def __call__(self, chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        self.asked.append((chunk.chunk_id, persona.id))
        if persona.id in self.closed:
            self.waiting.set()
            assert self.open.wait(30)
        return self._then(chunk, persona, already)


def three(**choosing: Any) -> PersonaChooser:
    return PersonaChooser(Ranked(THREE), **choosing)


def test_another_persona_brings_its_own_suggestions_and_goes_into_the_gold_item(
    tmp_path: Path,
) -> None:
    with at_desk(tmp_path / "log", chunks_of(1), suggester=numbered, chooser=three()) as session:
        card = card_of(session)
        assert (card.persona, card.suggestions[0]) == (TECHNICIAN, "tech 0.1?")
        session.choose_persona(BUYER)
        card = card_of(session)
        assert (card.persona, card.suggestions[0]) == (BUYER, "buyer 0.1?")
        session.choose_persona(TECHNICIAN)  # those are there already
        assert card_of(session).suggestions == ["tech 0.1?", "tech 0.2?", "tech 0.3?"]
        session.choose_persona(BUYER)
        card_of(session)
        session.pick(3)
        (item,) = session.store.gold()
        assert (item.persona_id, item.persona_description) == ("buyer", BUYER.description)
        assert item.suggestions == ["buyer 0.1?", "buyer 0.2?", "buyer 0.3?"]
        made = [e.data["persona_id"] for e in session.store.events() if e.kind == "suggested"]
        assert made == ["tech", "buyer"]
        chosen = [e.data for e in session.store.events() if e.kind == "persona"]
        assert chosen[:2] == [
            {"old": None, "new": "tech", "by": "similarity"},
            {"old": "tech", "new": "buyer", "by": "person"},
        ]


def test_a_chosen_persona_is_there_after_a_restart(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1), suggester=numbered, chooser=three()) as session:
        card_of(session)
        session.choose_persona(DRIVER)
        before = card_of(session).suggestions
    gate = Gate()
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate, chooser=three()) as session:
        card = card_of(session)
        assert (card.persona, card.suggestions) == (DRIVER, before)
        assert gate.asked == []  # paid for already


def test_a_persona_chosen_while_suggestions_are_made_gets_its_own(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate, chooser=three()) as session:
        assert gate.waiting.wait(30)
        session.choose_persona(BUYER)
        card = session.card
        assert card is not None
        assert (card.persona, card.suggestions) == (BUYER, [])
        assert card.prepared.pending == "suggestions"
        gate.open.set()
        card = card_of(session)
        assert (card.persona, card.suggestions[0]) == (BUYER, "buyer 0.1?")
        assert session.store.suggested(0, TECHNICIAN)  # were paid for, and are kept
        assert gate.asked == [(0, "tech"), (0, "buyer")]


def test_a_persona_changed_just_as_its_suggestions_come_gets_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many times, each at another moment around the end of the job."""
    chance = random.Random(7)
    kept = threading.Event()
    keep = AnnotationStore.keep_suggestions

    def keeping(store: AnnotationStore, *made: Any) -> None:
        keep(store, *made)
        kept.set()
        time.sleep(chance.uniform(0, 0.003))  # about as long as the choice takes to be stored

    monkeypatch.setattr(AnnotationStore, "keep_suggestions", keeping)
    chunks = chunks_of(150)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with at_desk(
            tmp_path / "log", chunks, suggester=numbered, chooser=three(), lookahead=0
        ) as session:
            card_of(session)  # the first chunk was started with the session
            for chunk in chunks[1:]:
                kept.clear()
                session.open(chunk.chunk_id)
                assert kept.wait(30)
                persona = chance.choice(THREE[1:])
                session.choose_persona(persona)
                card = card_of(session)
                expected = [f"{persona.id} {chunk.chunk_id}.{n}?" for n in (1, 2, 3)]
                assert (card.persona, card.suggestions) == (persona, expected)
    finally:
        sys.setswitchinterval(interval)


_STALLED = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_annotation as t
def for_ever(chunk, persona, already=()):
    threading.Event().wait()
with t.at_desk(Path(sys.argv[1]), t.chunks_of(9), suggester=for_ever) as session:
    t.in_lines(session, t.Keyboard("s 1", "q"), patience=0.05)
    print("leaving", flush=True)
"""


def test_whoever_quits_does_not_wait_for_suggestions_that_never_come(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _STALLED, str(tmp_path / "log"), str(ROOT / "tests")],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"leaving")
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()
        process.wait()
    with AnnotationStore(tmp_path / "log") as store:
        assert store.skipped() == {"boilerplate": 1}


@pytest.mark.parametrize("annotator", ["anna", ""])
def test_a_persona_chosen_while_one_is_being_chosen_stays(tmp_path: Path, annotator: str) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
        asked.set()
        assert answer.wait(30)
        return candidates[0]

    with at_desk(
        tmp_path / "log",
        chunks_of(1),
        annotator=annotator,
        suggester=numbered,
        chooser=three(ask=slow),
    ) as session:
        assert asked.wait(30)
        with pytest.raises(Refused, match="the persona is still being chosen"):
            session.write("Mine?")
        session.choose_persona(DRIVER)
        answer.set()
        card = card_of(session)
        assert (card.persona, card.suggestions[0]) == (DRIVER, "driver 0.1?")


def test_where_no_persona_fits_the_chunk_is_skipped_for_that_reason(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2), suggester=numbered, chooser=three()) as session:
        card_of(session)
        session.none_fits()
        assert session.store.skipped() == {"no persona fits": 1}
        assert card_of(session).chunk.chunk_id == 1
        assert session.undo().reason == "no persona fits"
        card = card_of(session)
        assert (card.chunk.chunk_id, card.persona) == (0, TECHNICIAN)
        assert card.suggestions == ["tech 0.1?", "tech 0.2?", "tech 0.3?"]
        choices = [e.subject for e in session.store.events() if e.kind == "persona"]
        assert sorted(choices) == ["0", "1"]  # one each, by similarity
        session.choose_persona(BUYER)
        card_of(session)
        session.none_fits()
        session.undo()
        assert card_of(session).suggestions[0] == "buyer 0.1?"
        session.pick(1)
        assert session.store.gold()[0].persona_id == "buyer"


def test_the_persona_by_key(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(3), suggester=numbered, chooser=three()) as session:
        keyboard = Keyboard("p", "2", "1", "p 3", "1", "p", "0")
        shown = in_lines(session, keyboard)
        assert keyboard.prompts[1] == "who asks? > "
        assert "  0    none of them fits: skip\n  1    Technician: asks about brakes\n" in shown
        assert [item.gold_question for item in session.store.gold()] == [
            "buyer 0.1?",
            "driver 1.1?",
        ]
        assert session.store.skipped() == {"no persona fits": 1}


def in_lines(
    session: AnnotationSession,
    keyboard: Keyboard,
    *,
    patience: float = 30.0,
    screen: StringIO | None = None,
) -> str:
    """What line mode shows while `keyboard` is typed."""
    screen = StringIO() if screen is None else screen
    console = Console(file=screen, width=200)
    LineMode(session, console, keyboard, patience_seconds=patience).run()
    return screen.getvalue()


def test_no_persona_gets_more_than_its_share_where_others_are_near() -> None:
    chunks = [Chunk(chunk_id=n, chunk_text="all about tech : brakes") for n in range(40)]
    free = Counter(short[0].id for short in three().shortlists(chunks))
    assert free == {"tech": 40}
    capped = Counter(s[0].id for s in three(cap=PersonaCap(0.5)).shortlists(chunks))
    assert capped == {"tech": 20, "buyer": 20}
    capped = Counter(s[0].id for s in three(cap=PersonaCap(0.4)).shortlists(chunks))
    assert capped["tech"] == 16
    only = Counter(s[0].id for s in three(cap=PersonaCap(0.5), top_k=1).shortlists(chunks))
    assert only == {"tech": 20, "buyer": 20}  # the next in the whole ranking
    alone = PersonaChooser(Ranked([TECHNICIAN]), cap=PersonaCap(0.1)).shortlists(chunks)
    assert alone == [[TECHNICIAN]] * 40


def test_whoever_holds_fewest_asks_where_nobody_has_room() -> None:
    cap = PersonaCap(0.2)
    for persona, held in zip(THREE, (5, 4, 4), strict=True):
        cap.count(persona, held)
    assert not any(map(cap.has_room, THREE))
    assert cap.least_used(THREE) == BUYER
    chunk = Chunk(chunk_id=1, chunk_text="a tech chunk")
    assert three(cap=cap, top_k=1).shortlists([chunk]) == [[BUYER]]
    cap.count(DRIVER, -2)
    assert cap.has_room(DRIVER)
    assert three(cap=cap, top_k=1).shortlists([chunk]) == [[DRIVER]]


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_cap_holds_where_a_whole_sample_is_prepared_at_once(tmp_path: Path, top_k: int) -> None:
    """As an export does, with an LLM that always takes the first."""
    chunks = [Chunk(chunk_id=n, chunk_text="a tech chunk", document_id=f"d{n}") for n in range(100)]

    def first(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
        time.sleep(0.001)  # so that choices overlap
        return candidates[0]

    workers = 6
    chooser = three(cap=PersonaCap(0.4), top_k=top_k, ask=first)
    with (
        AnnotationStore(tmp_path / "log") as store,
        Preparation(store, chooser, numbered, models=[], workers=workers) as preparation,
    ):
        preparation.look_ahead(chunks)
        for chunk in chunks:
            assert preparation.wait(chunk, 30).rounds
        given = Counter(store.given_personas())
    assert given.total() == 100
    assert max(given.values()) <= 40 + workers


def test_a_choice_that_others_filled_up_meanwhile_falls_to_the_next() -> None:
    cap = PersonaCap(0.4)
    chunk = Chunk(chunk_id=1, chunk_text="a tech chunk")

    def while_others_choose(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
        cap.count(TECHNICIAN, 4)
        return TECHNICIAN

    chooser = three(cap=cap, ask=while_others_choose)
    assert chooser.choose(chunk, chooser.shortlists([chunk])[0]) == (BUYER, "llm")


def test_the_cap_holds_where_the_llm_chooses_too(tmp_path: Path) -> None:
    chunks = [Chunk(chunk_id=n, chunk_text="a tech chunk", document_id=f"d{n}") for n in range(10)]
    chooser = three(cap=PersonaCap(0.4), ask=lambda chunk, candidates: candidates[0])
    with at_desk(tmp_path / "log", chunks, suggester=numbered, chooser=chooser) as session:
        walk(session)
        used = Counter(item.persona_id for item in session.store.gold())
    assert used["tech"] <= 4


def test_the_first_three_chunks_are_free_of_the_cap() -> None:
    chunks = [Chunk(chunk_id=n, chunk_text="on tech things") for n in range(4)]
    shortlists = three(cap=PersonaCap(0.01)).shortlists(chunks)
    assert [short[0].id for short in shortlists] == ["tech", "tech", "tech", "buyer"]


@pytest.mark.parametrize("most", [0, -0.1, 1.1])
def test_a_cap_that_is_no_share_is_refused(most: float) -> None:
    with pytest.raises(ValueError, match="a share above 0 and up to 1, not"):
        PersonaCap(most)


def test_the_cap_counts_what_earlier_sessions_gave(tmp_path: Path) -> None:
    texts = [Chunk(chunk_id=n, chunk_text="a tech chunk", document_id=f"d{n}") for n in range(8)]
    for sample in (texts[:4], texts):
        with at_desk(
            tmp_path / "log",
            sample,
            suggester=numbered,
            chooser=three(cap=PersonaCap(0.5)),
            lookahead=0,
        ) as session:
            while session.current is not None:
                card_of(session)
                session.pick(1)
            used = Counter(item.persona_id for item in session.store.gold())
    assert used == {"tech": 4, "buyer": 4}


def test_whoever_quits_while_the_llm_chooses_leaves_the_choice_open(tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()

    def cut_off(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
        asked.set()
        assert ended.wait(30)
        raise StopRun("the dispatcher is closed", exit_code=75)

    (chunk,) = chunks_of(1)
    with AnnotationStore(tmp_path / "log") as store:
        with Preparation(store, three(ask=cut_off), numbered, models=[]) as preparation:
            preparation.look_ahead([chunk])
            assert asked.wait(30)
        ended.set()
        assert not preparation.wait(chunk, 30).pending
        assert store.persona_of(0) is None


def test_only_the_nearest_few_are_offered_to_the_llm() -> None:
    offered: list[list[str]] = []

    def choose(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
        offered.append([persona.id for persona in candidates])
        return candidates[-1]

    chooser = three(top_k=2, ask=choose)
    chunk = Chunk(chunk_id=1, chunk_text="for a driver to know")
    assert chooser.choose(chunk, chooser.shortlists([chunk])[0]) == (TECHNICIAN, "llm")
    assert offered == [["driver", "tech"]]


def test_the_llm_may_find_that_no_persona_fits(tmp_path: Path) -> None:
    chooser = three(ask=lambda chunk, candidates: None)
    with at_desk(tmp_path / "log", chunks_of(1), suggester=numbered, chooser=chooser) as session:
        card = card_of(session)
        assert (card.persona, card.prepared.chosen_by, card.suggestions) == (None, "llm", [])
        shown = in_lines(session, Keyboard("1", "w Mine?", "p 2", "w Mine?"))
        assert "no persona fits this chunk: p chooses one, s skips it" in shown
        assert "  there is no suggestion 1\n" in shown
        assert "  no persona fits; p chooses one, s skips the chunk\n" in shown
        (item,) = session.store.gold()
        assert (item.persona_id, item.gold_question) == ("buyer", "Mine?")


def failing(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
    raise ValueError("not one of those")


def stopped(chunk: Chunk, candidates: Sequence[Persona]) -> Persona:
    raise StopRun("budget reached", exit_code=5)


@pytest.mark.parametrize("ask", [failing, stopped])
def test_where_the_llm_cannot_choose_the_nearest_persona_asks(
    tmp_path: Path, ask: Callable[..., Persona]
) -> None:
    with at_desk(
        tmp_path / "log", chunks_of(1), suggester=numbered, chooser=three(ask=ask)
    ) as session:
        card = card_of(session)
        assert (card.persona, card.prepared.chosen_by) == (TECHNICIAN, FALLBACK)
        shown = in_lines(session, Keyboard("q"))
        said = "Technician: asks about brakes (the nearest; the LLM gave no choice)\n"
        assert said in shown
        session.choose_persona(BUYER)
        assert "no choice" not in in_lines(session, Keyboard("q"))


@pytest.mark.parametrize("annotator", ["", "anna"])
@pytest.mark.parametrize(("left", "asks"), [(THREE[:2], TECHNICIAN), (THREE[1:2], BUYER)])
def test_a_persona_that_left_the_file_is_replaced(
    tmp_path: Path, annotator: str, left: list[Persona], asks: Persona
) -> None:
    """By the one that everybody has, or, where that has left too, by the nearest that is there."""
    with at_desk(
        tmp_path / "log", chunks_of(1), annotator=annotator, suggester=numbered, chooser=three()
    ) as session:
        card_of(session)
        session.choose_persona(DRIVER)
        card_of(session)
    chooser = PersonaChooser(Ranked(left))
    with at_desk(
        tmp_path / "log", chunks_of(1), annotator=annotator, suggester=numbered, chooser=chooser
    ) as session:
        card = card_of(session)
        assert (card.persona, card.suggestions[0]) == (asks, f"{asks.id} 0.1?")
        assert session.store.persona_of(0, [p.id for p in left]) == (asks.id, "similarity")


def test_an_edited_persona_gets_new_suggestions(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        card_of(session)
    edited = TECHNICIAN.model_copy(update={"description": "asks about axles"})
    gate = Gate()
    with at_desk(
        tmp_path / "log",
        chunks_of(1),
        suggester=gate,
        chooser=PersonaChooser(Ranked([edited])),
    ) as session:
        assert card_of(session).suggestions == ["tech 0.1?", "tech 0.2?", "tech 0.3?"]


class MissingModel(Ranked):
    """Fails as long as `missing`."""

    missing = True

    def rank(self, texts: Sequence[str]) -> list[list[Persona]]:
        if self.missing:
            raise OSError("no such model")
        return super().rank(texts)


def test_a_failed_choice_of_persona_is_said_and_r_tries_again(tmp_path: Path) -> None:
    matcher = MissingModel(THREE)
    with at_desk(tmp_path / "log", chunks_of(1), chooser=PersonaChooser(matcher)) as session:
        card = card_of(session)
        assert (card.persona, card.prepared.problem) == (None, "no such model")
        matcher.missing = False
        session.more()
        assert card_of(session).suggestions == SUGGESTED


def test_without_a_persona_by_similarity_a_person_chooses_one(tmp_path: Path) -> None:
    with at_desk(
        tmp_path / "log", chunks_of(2), chooser=PersonaChooser(MissingModel(THREE))
    ) as session:
        shown = in_lines(session, Keyboard("p 2", "2", "s 1"))
        assert "no persona yet: p chooses one" in shown
        assert "no suggestions: no such model; r tries again" in shown
        (item,) = session.store.gold()
        assert (item.persona_id, item.gold_question) == ("buyer", SUGGESTED[1])


# ---------------------------------------------------------------------- other suggestions


def test_r_adds_others_below_the_ones_shown(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2), suggester=numbered, shuffle=True) as session:
        first = card_of(session).suggestions
        session.more()
        second = card_of(session).suggestions
        session.more()
        third = card_of(session).suggestions
        assert second[:3] == first
        assert third[:6] == second
        assert sorted(third) == [f"tech 0.{n}?" for n in range(1, 10)]
        session.pick(9)
        (item,) = session.store.gold()
        assert (item.suggestions, item.gold_question) == (third, third[8])


def test_others_are_asked_for_with_all_that_were_made(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def suggester(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        seen.append(list(already))
        return numbered(chunk, persona, already)

    with at_desk(tmp_path / "log", chunks_of(1), suggester=suggester) as session:
        card_of(session)
        for _ in range(4):
            session.more()
            assert len(card_of(session).suggestions) <= 9
    assert [len(already) for already in seen] == [0, 3, 6, 9, 12]


def test_repeated_suggestions_show_once(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        card_of(session)
        session.more()
        assert card_of(session).suggestions == SUGGESTED


def test_r_while_suggestions_are_made_is_refused(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate) as session:
        assert gate.waiting.wait(30)
        with pytest.raises(Refused, match="suggestions are still being made"):
            session.more()
        gate.open.set()
        card_of(session)
        assert len(gate.asked) == 1


class Flaky:
    """A suggester that fails the first `failures` times."""

    def __init__(self, failures: int):
        self.left = failures

    def __call__(self, chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        self.left -= 1
        if self.left >= 0:
            raise TimeoutError("no answer\nin 30 s")
        return numbered(chunk, persona, already)


def test_failed_suggestions_are_said_and_r_tries_again(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1), suggester=Flaky(2)) as session:
        keyboard = Keyboard("r", "r", "1")
        shown = in_lines(session, keyboard)
        assert shown.count("no suggestions: no answer in 30 s; r tries again") == 2
        assert [item.gold_question for item in session.store.gold()] == ["tech 0.1?"]


def test_where_others_fail_the_first_ones_stay(tmp_path: Path) -> None:
    def once(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        if already:
            raise TimeoutError("no answer")
        return SUGGESTED

    with at_desk(tmp_path / "log", chunks_of(1), suggester=once) as session:
        card_of(session)
        session.more()
        card = card_of(session)
        assert (card.suggestions, card.prepared.problem) == (SUGGESTED, "no answer")
        session.pick(2)
        assert session.store.gold()[0].gold_question == SUGGESTED[1]


def test_late_suggestions_fill_in_and_are_announced(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    told: list[str] = []
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate) as session:
        session.preparation.changed = told.append
        assert gate.waiting.wait(30)
        card = session.card
        assert card is not None
        assert (card.suggestions, card.prepared.pending) == ([], "suggestions")
        assert not card.complete
        told.clear()
        gate.open.set()
        assert card_of(session).suggestions == ["tech 0.1?", "tech 0.2?", "tech 0.3?"]
        assert "0" in told


def test_a_chunk_can_be_decided_before_its_suggestions_come(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate) as session:
        assert gate.waiting.wait(30)
        session.write("Mine?")
        gate.open.set()
        session.preparation.wait(chunks_of(1)[0], 30)
        (item,) = session.store.gold()
        assert (item.suggestions, item.suggestions_shown) == ([], False)


class Late(Keyboard):
    """Opens `gate` while the person types the first line."""

    def __init__(self, gate: Gate, *lines: str):
        super().__init__(*lines)
        self._gate = gate
        self.wait: Callable[[], object] = lambda: None

    def __call__(self, prompt: str) -> str:
        if not self._gate.open.is_set():
            self._gate.open.set()
            self.wait()
        return super().__call__(prompt)


def test_what_was_never_shown_cannot_be_picked(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate) as session:
        keyboard = Late(gate, "1", "q")
        keyboard.wait = lambda: card_of(session)
        shown = in_lines(session, keyboard, patience=0.05)
        assert "  there is no suggestion 1\n" in shown
        assert session.store.history() == []


def test_enter_shows_a_late_chunk_again(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    with at_desk(tmp_path / "log", chunks_of(1), suggester=gate) as session:
        keyboard = Late(gate, "", "2")
        keyboard.wait = lambda: card_of(session)
        shown = in_lines(session, keyboard, patience=0.05)
        assert "suggestions are late: they fill in when they come" in shown
        assert "  2  tech 0.2?\n" in shown
        assert [item.gold_question for item in session.store.gold()] == ["tech 0.2?"]


def test_enter_always_shows_the_chunk_again(session: Session) -> None:
    session.run(chunks_of(1), Keyboard("", "", "q"))
    assert session.shown.count("Chunk 0 is about brakes.\n") == 3
    assert session.shown.count(f"  1  {SUGGESTED[0]}\n") == 3


def test_a_decision_is_on_the_card_that_was_seen(tmp_path: Path) -> None:
    """The one given, or the last one looked at; what came since moves nothing."""
    with at_desk(tmp_path / "log", chunks_of(4), suggester=numbered, chooser=three()) as session:
        decide: dict[str, Callable[[Card], None]] = {
            "picked": lambda seen: session.pick(2, seen),
            "edited": lambda seen: session.edit(2, "Edited?", seen),
            "written": lambda seen: session.write("Mine?", seen),
            "picked, as last seen": lambda seen: session.pick(2),
        }
        for action in decide:
            seen = card_of(session)
            number = seen.chunk.chunk_id
            session.choose_persona(BUYER)
            session.preparation.wait(seen.chunk, 30)
            if "last seen" not in action:
                assert card_of(session).persona == BUYER
            decide[action](seen)
            item = session.store.gold()[-1]
            assert (item.chunk_id, item.persona_id) == (number, "tech")
            assert item.suggestions[1] == f"tech {number}.2?"
            assert item.origin == action.partition(",")[0]


def test_a_card_that_is_over_decides_nothing(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(3)) as session:
        seen = card_of(session)
        session.pick(1, seen)
        with pytest.raises(Refused):
            session.pick(2, seen)
        assert len(session.store.history()) == 1


def test_a_mark_is_on_the_card_that_was_seen(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1), suggester=numbered, chooser=three()) as session:
        seen = card_of(session)
        session.choose_persona(BUYER)
        card_of(session)
        assert session.mark_bad(1, seen)
        assert session.store.bad(0) == {"tech 0.1?"}
        assert card_of(session).suggestions[0] == "buyer 0.1?"


# ---------------------------------------------------------------------- bad suggestions


def test_a_bad_mark_goes_on_and_off_and_into_log_and_gold_item(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        marked = []
        for number in (1, 2, 1, 3):
            card_of(session)
            marked.append(session.mark_bad(number))
        assert marked == [True, True, False, True]
        assert card_of(session).bad == {SUGGESTED[1], SUGGESTED[2]}
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        assert card_of(session).bad == {SUGGESTED[1], SUGGESTED[2]}
        session.pick(1)
        (item,) = session.store.gold()
        assert item.bad_suggestions == SUGGESTED[1:]
        assert card_of(session).bad == frozenset()  # the same texts on another chunk
        marks = [e.data for e in session.store.events() if e.kind == "bad"]
        assert marks == [
            {"suggestion": SUGGESTED[0], "old": False, "new": True},
            {"suggestion": SUGGESTED[1], "old": False, "new": True},
            {"suggestion": SUGGESTED[0], "old": True, "new": False},
            {"suggestion": SUGGESTED[2], "old": False, "new": True},
        ]


def test_a_mark_counts_at_once(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        seen = card_of(session)
        session.mark_bad(2, seen)
        session.pick(1, seen)
        assert session.store.gold()[0].bad_suggestions == [SUGGESTED[1]]


def test_bad_marks_are_each_annotators_own(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1), annotator="anna") as session:
        card_of(session)
        session.mark_bad(1)
    with at_desk(tmp_path / "log", chunks_of(1), annotator="bob") as session:
        assert card_of(session).bad == frozenset()


def test_a_bad_mark_by_key(session: Session) -> None:
    assert session.run(chunks_of(1), Keyboard("x 2", "x 3", "x 3", "1")) == 1
    assert "  2  How thick is a new pad?  (bad)\n" in session.shown
    assert session.shown.count("  marked as bad\n") == 2
    assert session.shown.count("  no longer marked\n") == 1
    assert session.store.gold()[0].bad_suggestions == [SUGGESTED[1]]


# ---------------------------------------------------------------------- order


def five(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
    return [f"question {n}?" for n in range(5)]


def orders(path: Path, annotator: str = "", seed: int = 0) -> dict[object, list[str]]:
    """{chunk id: suggestions as shown}, of a log of its own."""
    found: dict[object, list[str]] = {}
    with at_desk(
        path, chunks_of(8), annotator=annotator, suggester=five, shuffle=True, seed=seed
    ) as session:
        while session.current is not None:
            card = card_of(session)
            found[card.chunk.chunk_id] = card.suggestions
            session.pick(1)
    return found


def test_the_order_differs_by_chunk_annotator_and_seed_and_is_the_same_again(
    tmp_path: Path,
) -> None:
    anna = orders(tmp_path / "a", "anna")
    assert len({tuple(order) for order in anna.values()}) > 3
    assert orders(tmp_path / "b", "anna") == anna
    assert orders(tmp_path / "c", "bob") != anna
    assert orders(tmp_path / "d", "anna", seed=1) != anna
    assert all(sorted(order) == [f"question {n}?" for n in range(5)] for order in anna.values())


def test_the_order_shown_follows_from_the_stored_seed_and_the_stored_suggestions(
    tmp_path: Path,
) -> None:
    orders(tmp_path / "log", "anna")
    with AnnotationStore(tmp_path / "log", "anna") as store:
        assert len({item.order_seed for item in store.gold()}) == 8
        for item in store.gold():
            (made,) = store.suggested(item.chunk_id, TECHNICIAN)
            again = list(made.suggestions)
            random.Random(item.order_seed).shuffle(again)
            assert again == item.suggestions


def test_unshuffled_there_is_no_seed(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1), suggester=five) as session:
        assert card_of(session).suggestions == five(chunks_of(1)[0], TECHNICIAN)
        session.pick(1)
        assert session.store.gold()[0].order_seed is None


# ---------------------------------------------------------------------- blind


def to_blind(session: AnnotationSession) -> Card:
    """Pick until a blind chunk comes, and return its card."""
    while not card_of(session).blind:
        session.pick(1)
    return card_of(session)


def test_only_items_of_the_test_split_are_blind(tmp_path: Path) -> None:
    chunks = chunks_of(12)
    with at_desk(tmp_path / "log", chunks, suggester=numbered, blind_test=True) as session:
        blind = set()
        while session.current is not None:
            card = card_of(session)
            assert card.blind == card.withheld == (card.suggestions == [])
            if card.blind:
                blind.add(card.chunk.chunk_id)
                session.skip("other")
            else:
                session.pick(1)
        held = {c.chunk_id for c in chunks if session.store.side(c.document) == "test"}
        assert blind == held
        assert 0 < len(blind) < 12


def test_nothing_of_the_suggestions_shows_before_an_own_question_is_written(
    tmp_path: Path,
) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        for refused in (
            lambda: session.pick(1),
            lambda: session.edit(1, "x"),
            lambda: session.mark_bad(1),
            session.more,
        ):
            with pytest.raises(Refused, match="suggestions are withheld until you have written"):
                refused()
        with pytest.raises(Refused, match="there is no question of yours here"):
            session.keep()
        keyboard = Keyboard("1", "e 1", "x 1", "r", "0", "n", "/ zebra", "?", "q")
        shown = in_lines(session, keyboard)
        assert "blind test: write your question first (w), then the suggestions show" in shown
        assert f"tech {number}." not in shown
        assert not any("pick" in prompt for prompt in keyboard.prompts)
        assert len(session.store.history()) == len(session.store.gold())


def test_an_own_question_shows_the_suggestions_and_is_kept_as_blind(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        session.write(" My  own? ")
        card = card_of(session)
        assert (card.chunk.chunk_id, card.withheld, card.own) == (number, False, "My own?")
        assert card.suggestions[0] == f"tech {number}.1?"
        session.keep()
        item = session.store.gold()[-1]
        assert (item.gold_question, item.origin) == ("My own?", "written")
        assert (item.blind, item.suggestions_shown) == (True, False)
        own = [e.data for e in session.store.events() if e.kind == "own"]
        assert own == [{"old": "", "new": "My own?"}]


@pytest.mark.parametrize(("origin", "question"), [("picked", "tech {}.2?"), ("edited", "Other?")])
def test_after_the_reveal_a_suggestion_may_be_taken_and_counts_as_shown(
    tmp_path: Path, origin: str, question: str
) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        session.write("My own?")
        card_of(session)
        session.pick(2) if origin == "picked" else session.edit(2, "Other?")
        item = session.store.gold()[-1]
        assert (item.gold_question, item.origin) == (question.format(number), origin)
        assert (item.blind, item.suggestions_shown) == (True, True)


def test_a_question_rewritten_after_the_reveal_counts_as_shown(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        to_blind(session)
        session.write("My own?")
        first = card_of(session).suggestions[0]
        session.write(f"Much like {first}")
        item = session.store.gold()[-1]
        assert (item.origin, item.blind) == ("written", True)
        assert item.suggestions_shown


def test_a_refused_question_changes_nothing(tmp_path: Path) -> None:
    def nobody(chunk: Chunk, candidates: Sequence[Persona]) -> None:
        return None

    def desk(personas: list[Persona]) -> Any:
        chooser = PersonaChooser(Ranked(personas), ask=nobody)
        chunks = chunks_of(8)
        return at_desk(
            tmp_path / "log", chunks, suggester=numbered, chooser=chooser, blind_test=True
        )

    with desk(THREE) as session:
        while not card_of(session).blind:
            session.skip("other")
        with pytest.raises(Refused, match="no persona fits; p chooses one, s skips the chunk"):
            session.write("My own?")
        assert (card_of(session).own, card_of(session).withheld) == ("", True)
        session.choose_persona(DRIVER)
        card_of(session)
        session.write("My own?")
        number = card_of(session).chunk.chunk_id
    with desk(THREE[:2]) as session:  # the driver has left the file
        card = card_of(session)
        assert (card.chunk.chunk_id, card.persona, card.own) == (number, None, "My own?")
        with pytest.raises(Refused, match="no persona fits"):
            session.write("Another?")
        assert card_of(session).own == "My own?"
        own = [e.data["new"] for e in session.store.events() if e.kind == "own"]
        assert own == ["My own?"]


def test_what_was_decided_beside_suggestions_is_not_blind_any_more(tmp_path: Path) -> None:
    """Also where that decision was undone; a question typed first stays a blind one."""
    chunks = chunks_of(8)
    with at_desk(tmp_path / "log", chunks, suggester=numbered) as session:
        seen = [c.chunk_id for c in chunks if session.store.side(c.document) == "test"][:2]
        for number, decide in zip(seen, (session.skip, session.write), strict=True):
            session.open(number)
            card_of(session)
            decide("other")
            session.undo()
    with at_desk(tmp_path / "log", chunks, suggester=numbered, blind_test=True) as session:
        assert all(session.store.saw_suggestions(number) for number in seen)
        for number in seen:
            session.open(number)
            card = card_of(session)
            assert (card.blind, card.withheld, len(card.suggestions)) == (False, False, 3)
            session.pick(1)
            item = session.store.gold()[-1]
            assert (item.blind, item.suggestions_shown) == (False, True)


def test_a_question_typed_first_stays_blind_whatever_is_decided(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        session.write("My own?")
        card_of(session)
        session.pick(1)  # beside the suggestions
        session.open(number)
        card = card_of(session)
        assert (card.blind, card.withheld, card.own) == (True, False, "My own?")
        session.keep()
        (item,) = [item for item in session.store.gold() if item.chunk_id == number]
        assert (item.gold_question, item.blind, item.suggestions_shown) == ("My own?", True, False)


def test_a_skip_while_withheld_leaves_the_item_blind(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        session.skip("other")
        assert not session.store.saw_suggestions(number)
        session.open(number)
        card = card_of(session)
        assert (card.blind, card.withheld, card.suggestions) == (True, True, [])


def test_a_pasted_suggestion_is_a_pick_only_once_it_is_in_sight(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        session.write(f"tech {number}.2?")  # the same by chance
        assert card_of(session).own == f"tech {number}.2?"
        session.keep()
        item = session.store.gold()[-1]
        assert (item.origin, item.suggestions_shown) == ("written", False)
        session.undo()
        card_of(session)
        session.write(f" tech  {number}.3? ")
        item, decision = session.store.gold()[-1], session.store.decision(number)
        assert (item.origin, item.suggestions_shown) == ("picked", True)
        assert decision is not None
        assert (decision.action, decision.pick) == ("pick", 3)


def test_a_withheld_card_shows_no_draft_of_an_edit(tmp_path: Path) -> None:
    chunks = chunks_of(8)
    with at_desk(tmp_path / "log", chunks, suggester=numbered) as session:
        (number, *_) = [c.chunk_id for c in chunks if session.store.side(c.document) == "test"]
        session.open(number)
        line = card_of(session).suggestions[1]
        session.keep_draft(f"Better: {line}", f"edit {line}")
    with at_desk(tmp_path / "log", chunks, suggester=numbered, blind_test=True) as session:
        session.open(number)
        card = card_of(session)
        assert (card.withheld, card.draft, card.own) == (True, "", "")
        shown = in_lines(session, Keyboard("e 2", "w", "", "?", "q"))
        assert "Better" not in shown
        assert line not in shown


def test_a_revealed_item_stays_revealed_after_a_restart_and_an_undo(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        session.write("My own?")
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        card = card_of(session)
        assert (card.chunk.chunk_id, card.withheld, card.own) == (number, False, "My own?")
        session.keep()
        session.undo()
        card = card_of(session)
        assert (card.withheld, card.own) == (False, "My own?")


def test_what_one_annotator_wrote_reveals_nothing_to_another(tmp_path: Path) -> None:
    with at_desk(
        tmp_path / "log", chunks_of(8), annotator="anna", suggester=numbered, blind_test=True
    ) as session:
        to_blind(session)
        session.write("My own?")
    with at_desk(
        tmp_path / "log", chunks_of(8), annotator="bob", suggester=numbered, blind_test=True
    ) as session:
        card = to_blind(session)
        assert (card.withheld, card.own, card.suggestions) == (True, "", [])


def test_the_blind_test_in_lines(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), suggester=numbered, blind_test=True) as session:
        number = to_blind(session).chunk.chunk_id
        shown = in_lines(session, Keyboard("w Mine?", "0", "q"))
        assert "  0  yours: Mine?\n" in shown
        assert f"  1  tech {number}.1?\n" in shown
        assert session.store.gold()[-1].gold_question == "Mine?"


# ---------------------------------------------------------------------- what comes back unannounced


def walk(session: AnnotationSession) -> list[tuple[object, bool]]:
    """Pick everything; returns (chunk id, whether it was a repeat) as shown."""
    way: list[tuple[object, bool]] = []
    while session.current is not None:
        card = card_of(session)
        way.append((card.chunk.chunk_id, card.repeat))
        session.pick(2 if card.repeat else 1)
    return way


def test_one_chunk_in_twenty_comes_back_and_none_soon(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(100), repeats=0.05, shuffle=True) as session:
        assert session.progress.left == 105
        way = walk(session)
        assert session.progress[:2] == (105, 0)
        assert len(session.store.gold()) == 100
        assert [item.gold_question for item in session.store.gold()] == [
            item.suggestions[0] for item in session.store.gold()
        ]
        assert len(session.store.repeats()) == 5
    firsts = {chunk_id: place for place, (chunk_id, again) in enumerate(way) if not again}
    repeats = {chunk_id: place for place, (chunk_id, again) in enumerate(way) if again}
    assert (len(firsts), len(repeats)) == (100, 5)
    assert min(repeats[chunk_id] - firsts[chunk_id] for chunk_id in repeats) > 10
    kinds = Counter(kind for kind, _ in events(tmp_path / "log"))
    assert (kinds["decision"], kinds["repeat"]) == (100, 5)


def test_the_last_repeat_is_no_chunk_decided_a_moment_ago(tmp_path: Path) -> None:
    for seed in range(3):
        with at_desk(tmp_path / f"{seed}", chunks_of(20), repeats=0.05, seed=seed) as session:
            *_, (last, again) = walk(session)
            assert again
            assert last in range(10)  # there are ten that were decided long ago


def test_no_repeats_no_chunk_twice(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(30), repeats=0.0) as session:
        assert walk(session) == [(n, False) for n in range(30)]


def to_repeat(session: AnnotationSession, decide: Callable[[Card], None]) -> Card:
    """Decide until a chunk comes back, and return its card."""
    while not card_of(session).repeat:
        decide(card_of(session))
    return card_of(session)


def test_a_chunk_that_comes_back_looks_like_any_other(tmp_path: Path) -> None:
    cards: dict[object, Card] = {}

    with at_desk(tmp_path / "log", chunks_of(15), repeats=0.5) as session:

        def decide(card: Card) -> None:
            cards[card.chunk.chunk_id] = card
            if card.note:
                session.mark_bad(1)
                session.write("Mine?")
            else:
                session.flag("hm")

        again = to_repeat(session, decide)
        first = cards[again.chunk.chunk_id]
        assert replace(again, repeat=False) == replace(first, note="", standing=None)
        assert (again.note, again.standing, again.draft, again.bad) == ("", None, "", frozenset())
        shown = in_lines(session, Keyboard("q"))
    with at_desk(tmp_path / "other", [again.chunk]) as session:
        fresh = in_lines(session, Keyboard("q"))
    assert shown.splitlines()[1:] == fresh.splitlines()[1:]


def test_a_blind_chunk_comes_back_blind(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(30), repeats=0.9, blind_test=True) as session:

        def decide(card: Card) -> None:
            if card.withheld:
                session.write(f"Mine {card.chunk.chunk_id}?")
            elif card.blind:
                session.keep()
            else:
                session.skip("other")

        card = to_repeat(session, decide)
        while not card.blind:
            session.skip("other")
            card = to_repeat(session, decide)
        assert (card.withheld, card.own, card.suggestions) == (True, "", [])
        number = card.chunk.chunk_id
        session.write("Another?")
        card = card_of(session)
        assert (card.chunk.chunk_id, card.repeat, card.own) == (number, True, "Another?")
        assert len(card.suggestions) == len(SUGGESTED)
        assert session.store.own_question(number) == f"Mine {number}?"
        session.keep()
        event = session.store.repeats()[str(number)]
        assert event.item is not None
        assert (event.item.gold_question, event.item.suggestions_shown) == ("Another?", False)


def test_a_chunk_that_comes_back_shows_the_suggestions_of_the_first_time(tmp_path: Path) -> None:
    with (
        at_desk(
            tmp_path / "log", chunks_of(12), annotator="anna", suggester=numbered, repeats=0.1
        ) as session,
        AnnotationStore(tmp_path / "log", "bob") as bob,
    ):
        for number in range(11):
            session.more() if card_of(session).chunk.chunk_id == 0 else None
            card = card_of(session)
            assert not card.repeat
            session.write("Mine?") if number % 2 else session.pick(len(card.suggestions))
            bob.keep_suggestions(number, TECHNICIAN, ["one more?"], ["m"])
        session.store.refresh()
        card = card_of(session)
        assert (card.chunk.chunk_id, card.repeat) == (0, True)
        assert sorted(card.suggestions) == [f"tech 0.{n}?" for n in range(1, 7)]


@pytest.mark.parametrize("put_off", ["defer", "flag"])
def test_a_repeat_put_off_is_not_settled_and_none_soon_comes_again(
    tmp_path: Path, put_off: str
) -> None:
    with at_desk(tmp_path / "log", chunks_of(30), repeats=0.05) as session:
        way: list[object] = []
        back: list[object] = []
        while True:
            card = card_of(session)
            number = card.chunk.chunk_id
            assert number not in way[-10:]
            way.append(number)
            if card.repeat and number in back:
                break
            if card.repeat:
                back.append(number)
                before = session.progress
                session.defer() if put_off == "defer" else session.flag("hm")
                assert session.progress == before
            else:
                session.pick(1)
            assert len(way) < 80
        done = session.progress.done
        session.pick(2)
        assert session.progress.done == done + 1
        settled = [e.subject for e in session.store.repeats().values() if e.decision.settles]
        assert settled == [str(number)]
        assert all(item.gold_question == SUGGESTED[0] for item in session.store.gold())


def test_a_repeat_put_off_makes_way_for_a_new_chunk(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(30), repeats=0.05) as session:
        to_repeat(session, lambda card: session.pick(1))
        session.defer()
        assert not card_of(session).repeat


def test_nothing_is_left_when_every_chunk_is_decided(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(8), repeats=0.25) as session:
        assert walk(session) == [(n, False) for n in range(8)]
        assert session.progress[:2] == (8, 0)


@pytest.mark.parametrize("action", ["pick", "write", "skip", "defer", "flag", "none"])
def test_a_repeat_is_recorded_as_one_and_changes_nothing_else(tmp_path: Path, action: str) -> None:
    with at_desk(tmp_path / "log", chunks_of(14), repeats=0.1) as session:
        card = to_repeat(session, lambda card: session.pick(1))
        store, number = session.store, card.chunk.chunk_id
        gold, decided, left = store.gold(), store.decisions(), session.progress.left
        session.mark_bad(2)
        assert card_of(session).bad == {SUGGESTED[1]}
        {
            "pick": lambda: session.pick(2),
            "write": lambda: session.write("Other?"),
            "skip": lambda: session.skip("other"),
            "defer": session.defer,
            "flag": lambda: session.flag("hm"),
            "none": session.none_fits,
        }[action]()
        assert (store.gold(), store.decisions()) == (gold, decided)
        (event,) = store.repeats().values()
        assert (event.kind, event.subject) == ("repeat", str(number))
        assert event.decision.action == {"none": "skip"}.get(action, action)
        assert event.data["old"]["pick"] == 1
        if event.item is not None:
            assert event.item.bad_suggestions == [SUGGESTED[1]]
        assert store.bad(number) == set()
        assert session.progress.left == left - event.decision.settles
        coming = card_of(session)
        assert coming.chunk.chunk_id != number
        decided_ids = {e.subject for e in store.decisions()}
        assert coming.repeat == (str(coming.chunk.chunk_id) in decided_ids)
        session.undo()
        back = card_of(session)
        assert (back.chunk.chunk_id, back.repeat, back.standing) == (number, True, None)
        assert (store.gold(), store.repeats()) == (gold, {})


def test_a_repeat_left_undone_comes_again_after_a_restart(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(30), repeats=0.05) as session:
        number = to_repeat(session, lambda card: session.pick(1)).chunk.chunk_id
        session.keep_draft("half a que")
    with at_desk(tmp_path / "log", chunks_of(30), repeats=0.05) as session:
        card = card_of(session)
        assert (card.chunk.chunk_id, card.repeat, card.draft) == (number, True, "half a que")
        session.pick(2)
        assert [e.decision.pick for e in session.store.repeats().values()] == [2]
        assert card_of(session).chunk.chunk_id != number


# ---------------------------------------------------------------------- pace, search, place


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_is_in_active_time(tmp_path: Path) -> None:
    clock = Clock()
    with at_desk(tmp_path / "log", chunks_of(12), clock=clock) as session:
        paces = []
        for seconds in (36.0, 36.0, 36.0, 3600.0):
            card_of(session)
            clock.now += seconds
            session.pick(1)
            paces.append(session.progress)
        assert [pace[:2] for pace in paces] == [(1, 11), (2, 10), (3, 9), (4, 8)]
        assert [pace.per_hour for pace in paces[:3]] == [None, None, 100.0]
        assert paces[2].hours_left == pytest.approx(9 / 100)
        assert paces[3].per_hour == pytest.approx(3600 * 4 / (3 * 36 + 60))  # a pause is no work
        stored = [e.active_seconds for e in session.store.history()]
        assert stored == [36.0, 36.0, 36.0, 60.0]


def test_keys_between_count_as_work_and_a_clock_set_back_counts_nothing(tmp_path: Path) -> None:
    clock = Clock()
    with at_desk(tmp_path / "log", chunks_of(2), clock=clock) as session:
        card_of(session)
        for step in (50.0, 50.0, -500.0, 10.0):
            clock.now += step
            session.touch()
        session.pick(1)
        assert session.store.history()[0].active_seconds == 110.0


def searchable() -> list[Chunk]:
    return [
        Chunk(chunk_id=0, chunk_text="Brake  pads\nwear.", headings=["Brakes", "Limits"]),
        Chunk(chunk_id=1, chunk_text="Axles turn.", file_name="axle.pdf"),
        Chunk(chunk_id=2, chunk_text=f"{'x' * 200} the \x1b[31mZebra\x1b[0m crossing"),
        Chunk(chunk_id=3, chunk_text="Nothing."),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("PADS wear", [0]),
        ("  brake\tpads ", [0]),
        ("limits", [0]),
        ("axle.PDF", [1]),
        ("zebra crossing", [2]),
        ("who turns", [3]),
        ("[31m", []),
        ("e", [0, 1, 2, 3]),
        ("", []),
        ("  ", []),
        ("unicorn", []),
    ],
)
def test_search_finds_text_headings_files_and_questions(
    tmp_path: Path, text: str, found: list[int]
) -> None:
    with at_desk(tmp_path / "log", searchable()) as session:
        session.open(3)
        card_of(session)
        session.write("Who turns the axle... no: who TURNS  it? e")
        hits = session.find(text)
        assert [hit.chunk.chunk_id for hit in hits] == found
        wanted = " ".join(text.casefold().split())
        for hit in hits:
            assert wanted in hit.excerpt.casefold()
            assert "\x1b" not in hit.excerpt
            assert (hit.standing is not None) == (hit.chunk.chunk_id == 3)


def test_search_finds_a_picked_question_too(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", searchable()) as session:
        card_of(session)
        session.pick(2)
        (hit,) = session.find("thick is a  NEW")
        assert (hit.chunk.chunk_id, hit.standing and hit.standing.pick) == (0, 2)


def test_search_stops_at_its_limit(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(9)) as session:
        assert [hit.chunk.chunk_id for hit in session.find("chunk", limit=4)] == [0, 1, 2, 3]


def test_an_excerpt_holds_the_hit_after_letters_that_fold_into_two(tmp_path: Path) -> None:
    chunk = Chunk(chunk_id=0, chunk_text=f"{'Straßenmaß ' * 30}needle {'x' * 80}")
    with at_desk(tmp_path / "log", [chunk]) as session:
        (hit,) = session.find("needle")
        assert "needle" in hit.excerpt


def test_a_decided_chunk_is_found_opened_and_decided_again(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", searchable()) as session:
        for _ in range(3):
            card_of(session)
            session.pick(1)
        shown = in_lines(session, Keyboard("/", "brake", "", "/ brake", "9", "/ pads", "1", "2"))
        assert "  1    pick   …Brakes Limits Brake pads wear. What is t…\n" in shown
        assert "  there is no 9\n" in shown
        assert [item.gold_question for item in session.store.gold()] == [
            SUGGESTED[1],
            SUGGESTED[0],
            SUGGESTED[0],
        ]
        assert card_of(session).chunk.chunk_id == 3  # on where it was


def test_a_draft_survives_a_restart_and_goes_with_the_decision(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        session.keep_draft("Half a qu")
    with at_desk(tmp_path / "log", chunks_of(2)) as session:
        assert card_of(session).draft == "Half a qu"
        session.skip("other")
        session.open(0)
        assert card_of(session).draft == ""


def test_when_all_is_decided_every_key_says_so(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        card_of(session)
        session.pick(1)
        assert session.card is None
        session.keep_draft("lost?")
        for refused in (
            lambda: session.pick(1),
            lambda: session.write("x"),
            session.defer,
            session.more,
            session.keep,
            session.none_fits,
        ):
            with pytest.raises(Refused, match="every chunk of the sample is decided"):
                refused()
        session.undo()
        assert card_of(session).chunk.chunk_id == 0


# ---------------------------------------------------------------------- a full disk


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file of this process grows beyond what the log's side file has now."""
    sizes = [file.stat().st_size for file in path.parent.glob(f"{path.name}*")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_decision_that_cannot_be_saved_is_said_in_a_line_and_the_chunk_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    with at_desk(path, chunks_of(3), lookahead=0) as session:
        card_of(session)
        session.pick(1)
        before = card_of(session)
        with full_disk(path), pytest.raises(UserError) as refusal:
            session.write("Lost?" * 2000)
        assert str(refusal.value).startswith(f"{path}: decision not saved (")
        assert str(refusal.value).endswith("; free the disk or close the other session")
        assert card_of(session) == before
        with full_disk(path), pytest.raises(UserError):
            session.undo()
        assert len(session.store.gold()) == 1
        session.write("Saved?")  # the disk was freed
        assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[0], "Saved?"]
    with AnnotationStore(path) as store:
        assert [item.gold_question for item in store.gold()] == [SUGGESTED[0], "Saved?"]


# ---------------------------------------------------------------------- hostile input


@pytest.mark.parametrize("line", ["9" * 5000, f"e {'9' * 5000}", f"s {'1' * 5000}"])
def test_a_pasted_heap_of_digits_is_refused(session: Session, line: str) -> None:
    assert session.run(chunks_of(1), Keyboard(line, "1")) == 1


def test_hostile_suggestions_are_shown_inert(session: Session) -> None:
    def hostile(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        return ["one \x1b]0;owned\x07 \x1b[2J", "two \u202etxt"]

    session.run(chunks_of(1), Keyboard("q"), suggester=hostile)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", session.shown)


def test_a_draft_with_broken_characters_is_kept_with_substitutes(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        session.keep_draft("caf\udce9 brakes")
        assert card_of(session).draft == "caf\ufffd brakes"


def test_neighbours_and_notes_are_shown_inert(tmp_path: Path) -> None:
    chunk = Chunk(
        chunk_id=1, chunk_text="c", previous_text="be\x1b[2Jfore", next_text="[bold]af\x07ter"
    )
    with at_desk(tmp_path / "log", [chunk]) as session:
        shown = in_lines(session, Keyboard("n", "f \x1b]0;owned\x07hm", "q"))
        assert "before: before\n" in shown
        assert "after: [bold]after\n" in shown
        assert "flagged: hm\n" in shown
        assert "\x1b" not in shown


# ---------------------------------------------------------------------- the store


def events(path: Path) -> list[tuple[str, str]]:
    """(kind, subject) of every event, as a second connection sees them."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT kind, subject FROM events ORDER BY seq").fetchall()
    finally:
        connection.close()


def test_each_decision_is_on_disk_before_the_next_chunk_shows(
    session: Session, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool]] = []

    def saved() -> None:
        number = len(seen)
        decided = [s for kind, s in events(tmp_path / "annotations.sqlite") if kind == "decision"]
        assert decided == [str(n) for n in range(number + 1)]
        shown = f" {number + 1} done · {3 - number} left · " in session.shown
        assert f" {number} done · {4 - number} left · " in session.shown
        seen.append((len(decided), shown))

    session.run(chunks_of(4), Keyboard("1", "s 1", "w Why?", "2"), saved=saved)
    assert seen == [(1, False), (2, False), (3, False), (4, False)]


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_annotation as t
session = t.Session(Path(sys.argv[1]))
def saved(left=[3]):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
session.run(t.chunks_of(6), t.Keyboard("1", "w Why?", "3", "1"), saved=saved)
"""


def test_decisions_survive_a_kill_right_after_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path), str(ROOT / "tests")],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    session = Session(path)
    questions = [item.gold_question for item in session.store.gold()]
    assert questions == [SUGGESTED[0], "Why?", SUGGESTED[2]]
    left = [chunk for chunk in chunks_of(6) if not session.store.is_decided(chunk)]
    assert session.run(left, Keyboard("1", "1", "1")) == 3
    assert [item.chunk_id for item in session.store.gold()] == [0, 1, 2, 3, 4, 5]
    session.store.close()


def test_a_later_decision_supersedes_and_the_earlier_one_stays_in_the_log(
    session: Session, tmp_path: Path
) -> None:
    again = ["/ chunk 0", "1", "w Better?", "/ CHUNK  1", "1", "s 1"]
    assert session.run(chunks_of(4), Keyboard("1", "2", "3", *again)) == 5
    assert session.run(chunks_of(4), Keyboard("/ chunk 1", "1", "w Best?")) == 1
    expected = [(0, "Better?"), (1, "Best?"), (2, SUGGESTED[2])]
    assert [(i.chunk_id, i.gold_question) for i in session.store.gold()] == expected
    assert session.store.skipped() == {}
    with AnnotationStore(tmp_path / "annotations.sqlite") as again:
        assert again.gold() == session.store.gold()
    subjects = [s for kind, s in events(tmp_path / "annotations.sqlite") if kind == "decision"]
    assert subjects == ["0", "1", "2", "0", "1", "1"]


def test_a_skip_takes_the_chunk_out_of_the_gold_set(session: Session) -> None:
    session.run(chunks_of(4), Keyboard("1", "1", "1", "/ chunk 1", "1", "s 4"))
    assert [item.chunk_id for item in session.store.gold()] == [0, 2]
    assert session.store.skipped() == {"needs context": 1}


def test_splits_are_by_document_and_stay_when_the_sample_grows(session: Session) -> None:
    session.run(chunks_of(8), Keyboard(*["1"] * 8))
    before = {item.chunk_id: item.split for item in session.store.gold()}
    assert set(before.values()) == {"train", "dev", "test"}
    more = chunks_of(40, documents=10)[8:]  # the old documents and new ones
    session.run(more, Keyboard(*["1"] * len(more)))
    gold = session.store.gold()
    assert {item.chunk_id: item.split for item in gold if item.chunk_id in before} == before
    sides: dict[str | None, set[object]] = {}
    for item in gold:
        sides.setdefault(item.document_id, set()).add(item.split)
    assert len(sides) == 10
    assert all(len(found) == 1 and None not in found for found in sides.values())


def test_the_unit_of_the_split_stays_when_more_documents_come(session: Session) -> None:
    sections = [
        Chunk(chunk_id=n, chunk_text="c", document_id="one", headings=[f"h{n % 3}"])
        for n in range(6)
    ]
    session.run(sections, Keyboard(*["1"] * 6))
    assert session.store.split_unit == "section"
    before = {item.chunk_id: item.split for item in session.store.gold()}
    more = [
        Chunk(chunk_id=10 + n, chunk_text="c", document_id=f"d{n % 5}", headings=["h"])
        for n in range(10)
    ]
    session.run(more, Keyboard(*["1"] * 10))
    assert session.store.split_unit == "section"
    after = {item.chunk_id: item.split for item in session.store.gold()}
    assert {chunk_id: after[chunk_id] for chunk_id in before} == before
    assert None not in after.values()


def test_opening_a_store_changes_no_byte(session: Session, tmp_path: Path) -> None:
    session.run(chunks_of(2), Keyboard("1", "1"))
    session.store.close()
    before = tree_digest(tmp_path)
    AnnotationStore(tmp_path / "annotations.sqlite").close()
    assert tree_digest(tmp_path) == before


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    path.write_text("my precious notes " * 100)
    with pytest.raises(UserError) as refusal:
        AnnotationStore(path)
    assert str(refusal.value) == (
        f"{path}: cannot be opened (file is not a database); restore it from a backup"
    )
    assert path.read_text() == "my precious notes " * 100


# ---------------------------------------------------------------------- replay


def decisions(*rows: dict[str, Any]) -> dict[str, Decision]:
    read = [Decision.model_validate(row) for row in rows]
    return {str(decision.chunk_id): decision for decision in read}


def test_a_replay_makes_of_the_same_decisions_what_a_person_made(
    session: Session, tmp_path: Path
) -> None:
    session.run(chunks_of(4), Keyboard("2", "e 1", "Which limit?", "w Who?", "s 1"))
    replayed = Session(tmp_path / "replayed.sqlite")
    rows = decisions(
        {"chunk_id": 0, "action": "pick", "pick": 2},
        {"chunk_id": 1, "action": "edit", "pick": 1, "gold_question": "Which limit?"},
        {"chunk_id": 2, "action": "write", "gold_question": "Who?"},
        {"chunk_id": 3, "action": "skip", "reason": "boilerplate"},
    )
    assert replayed.run(chunks_of(4), rows) == 4

    def compared(store: AnnotationStore) -> list[dict[str, Any]]:
        # nobody is timed in a replay, and a replay knows the skips when it splits
        return [i.model_dump(exclude={"active_seconds", "split"}) for i in store.gold()]

    assert compared(replayed.store) == compared(session.store)
    assert {item.active_seconds for item in replayed.store.gold()} == {None}
    assert replayed.store.skipped() == session.store.skipped()
    replayed.store.close()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"action": "pick", "pick": 4},
            "decision on chunk 1: picks suggestion 4 of 3",
        ),
        ({"action": "pick"}, "decision on chunk 1: picks suggestion None of 3"),
        ({"action": "write"}, "decision on chunk 1: write without gold_question"),
        (
            {"action": "edit", "gold_question": " \x1b[0m "},
            "decision on chunk 1: edit without gold_question",
        ),
        (
            {"action": "write", "gold_question": "q?", "persona_id": "pirate"},
            "decision on chunk 1: no persona 'pirate'; known: tech",
        ),
    ],
)
def test_a_decision_that_does_not_fit_is_named_by_its_chunk(
    session: Session, row: dict[str, Any], message: str
) -> None:
    rows = decisions({"chunk_id": 0, "action": "pick", "pick": 1}, {"chunk_id": 1, **row})
    with pytest.raises(UserError) as refusal:
        session.run(chunks_of(2), rows)
    assert str(refusal.value) == message
    assert not session.store.is_decided(chunks_of(2)[1])


def test_a_decision_with_broken_characters_is_stored_with_substitutes(session: Session) -> None:
    rows = decisions({"chunk_id": 0, "action": "write", "gold_question": "half \ud83d pair?"})
    assert session.run(chunks_of(1), rows) == 1
    assert [item.gold_question for item in session.store.gold()] == ["half \ufffd pair?"]


# ---------------------------------------------------------------------- the script

PERSONAS = SAMPLE / "personas.json"
ONE_PERSONA = ROOT / "tests" / "one_persona.json"  # nothing to choose from, so no model is loaded


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the first 12 chunks of the sample."""
    data = tmp_path_factory.mktemp("twelve")
    folder = str(SAMPLE / "small_sqlite")
    args = ["--qdrant-path", folder, "--sample-size", "12", "--data-dir", str(data)]
    assert fetch_chunks(args) == 0
    return data


class Script:
    """`annotate_chunks.py` on a data folder of its own."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]):
        self.data = data
        self._capsys = capsys
        self.chunks = [
            json.loads(line) for line in (data / "raw_chunks.jsonl").read_text().splitlines()
        ]
        ids = {chunk["chunk_id"] for chunk in self.chunks}
        lines = (SAMPLE / "decisions.jsonl").read_text().splitlines()
        self.rows = [row for row in map(json.loads, lines) if row["chunk_id"] in ids]

    def __call__(self, *args: object) -> tuple[int, str, str]:
        """(exit code, last line on stdout, stderr) of a run."""
        argv = ["--data-dir", str(self.data), "--personas-file", str(PERSONAS), *map(str, args)]
        code = run(lambda: annotate_chunks(argv))
        said = self._capsys.readouterr()
        self.said = said.out
        return code, (said.out.splitlines() or [""])[-1], said.err

    def replay(self, rows: list[dict[str, Any]], *args: object) -> tuple[int, str, str]:
        file = self.data.parent / "decisions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self("--replay", file, "--rehearsal", *args)

    @property
    def gold(self) -> list[dict[str, Any]]:
        return json.loads((self.data / "gold_dataset.json").read_text())

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.data / "gold_dataset.json.meta.json").read_text())

    @property
    def calls(self) -> int:
        """LLM calls made so far, by the daily log."""
        log = self.data / "daily_request_log.json"
        days = json.loads(log.read_text()) if log.exists() else {}
        return sum(entry["requests"] for day in days.values() for entry in day.values())


@pytest.fixture
def script(
    twelve: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Script]:
    monkeypatch.chdir(tmp_path)
    yield Script(Path(shutil.copytree(twelve, tmp_path / "data")), capsys)
    dspy.configure_cache(enable_disk_cache=False)  # let go of the one in tmp_path


def test_a_replay_writes_the_gold_set_and_a_second_one_changes_nothing(script: Script) -> None:
    assert len(script.rows) == 12
    code, last, err = script.replay(script.rows)
    path = script.data / "gold_dataset.json"
    assert (code, last) == (0, f"10 gold questions (suggestions by the rehearsal) -> {path}"), err
    written = {row["chunk_id"]: row for row in script.rows if row["action"] != "skip"}
    assert [item["chunk_id"] for item in script.gold] == list(written)
    for item in script.gold:
        row = written[item["chunk_id"]]
        for key in ("gold_question", "persona_id", "query_type", "query_format"):
            assert item[key] == row[key]
        GoldItem.model_validate(item)
        assert 3 <= len(item["suggestions"]) <= 5
        assert item["split"] in {"train", "dev", "test"}
    assert script.meta["rehearsal"] is True
    assert script.meta["counts"]["gold"] == 10
    assert script.meta["counts"]["skipped"] == {"boilerplate": 1, "too short": 1}
    assert script.meta["counts"]["splits"] == {"dev": 3, "test": 4, "train": 3}
    assert script.meta["settings"]["split_unit"] == "document"

    calls, before = script.calls, tree_digest(script.data)
    assert calls > 0
    code, again, _ = script.replay(script.rows)
    assert (code, again) == (0, last)
    assert script.calls == calls
    assert tree_digest(script.data) == before


def test_a_corrected_decisions_file_updates_the_gold_set(script: Script) -> None:
    script.replay(script.rows)
    before = script.gold
    corrected = [dict(row) for row in script.rows]
    writes = [row for row in corrected if row["action"] == "write"]
    skips = [row for row in corrected if row["action"] == "skip"]
    writes[0]["gold_question"] = "How does a trigger keep undo statements safe in SQLite?"
    dropped = writes[1]["chunk_id"]
    for key in ("gold_question", "persona_id", "query_type", "query_format"):
        del writes[1][key]
    writes[1] |= {"action": "skip", "reason": "needs context"}
    skips[0] |= {"action": "pick", "pick": 1, "persona_id": "schema-designer"}
    del skips[0]["reason"]
    assert script.replay(corrected)[0] == 0
    after = {item["chunk_id"]: item for item in script.gold}
    assert len(after) == 10
    assert after[writes[0]["chunk_id"]]["gold_question"] == writes[0]["gold_question"]
    assert dropped not in after
    added = after.pop(skips[0]["chunk_id"])
    assert (added["origin"], added["gold_question"]) == ("picked", added["suggestions"][0])
    assert added["split"] in {"train", "dev", "test"}
    kept = [item for item in before if item["chunk_id"] != dropped]
    assert [item["chunk_id"] for item in after.values()] == [item["chunk_id"] for item in kept]
    assert [item["split"] for item in after.values()] == [item["split"] for item in kept]
    assert list(after.values())[1:] == kept[1:]
    assert script.meta["counts"]["skipped"] == {"needs context": 1, "too short": 1}


def test_the_last_line_on_a_chunk_wins(script: Script) -> None:
    row = next(row for row in script.rows if row["action"] == "write")
    assert script.replay([row, row | {"gold_question": "Again?"}])[0] == 0
    assert [item["gold_question"] for item in script.gold] == ["Again?"]


def test_decisions_outside_the_sample_are_counted_and_said(script: Script) -> None:
    row = next(row for row in script.rows if row["action"] == "write")
    code, _, err = script.replay(
        [row, row | {"chunk_id": "elsewhere"}, row | {"chunk_id": 7}], "--seed", "3"
    )
    assert code == 0
    assert (
        "2 of 3 decisions are on chunks outside the sample (such as elsewhere); "
        "fetch a larger one to use them\n"
    ) in err
    assert len(script.gold) == 1


def test_a_first_replay_of_few_decisions_does_not_split_documents_for_good(
    script: Script,
) -> None:
    writes = [row for row in script.rows if row["action"] == "write"]
    assert script.replay(writes[:2])[0] == 0
    assert script.replay(script.rows)[0] == 0
    assert script.meta["settings"]["split_unit"] == "document"
    sides: dict[str, set[str]] = {}
    for item in script.gold:
        sides.setdefault(item["document_id"], set()).add(item["split"])
    assert all(len(found) == 1 for found in sides.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"persona_id": "pirate"},
            "decision on chunk {id}: no persona 'pirate'; known: application-developer, ",
        ),
        ({"action": "pick", "pick": 9}, "decision on chunk {id}: picks suggestion 9 of 4"),
    ],
)
def test_a_bad_decision_ends_the_replay_with_exit_code_2_and_keeps_the_rest(
    script: Script, change: dict[str, Any], message: str
) -> None:
    writes = [row for row in script.rows if row["action"] == "write"]
    script.replay(writes[:8])
    code, _, err = script.replay([*writes[:8], writes[8] | change])
    assert code == 2
    assert message.format(id=writes[8]["chunk_id"]) in err
    assert len(err.splitlines()) == 1
    assert len(script.gold) == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"chunk_id": "a", "action": "drop"}', ":2: action: Input should be 'pick', 'edit', "),
        ('{"action": "skip"}', ":2: no chunk_id; "),
        ('{"chunk_id": "a", "action": "skip"', ":2: not JSON (Expecting ',' delimiter)"),
    ],
)
def test_a_bad_line_of_decisions_is_named_before_anything_happens(
    script: Script, tmp_path: Path, line: str, message: str
) -> None:
    before = tree_digest(script.data)
    file = tmp_path / "decisions.jsonl"
    file.write_text(json.dumps(script.rows[0]) + f"\n{line}\n")
    code, last, err = script("--replay", file, "--rehearsal")
    assert (code, last) == (2, "")
    assert f"{file}{message}" in err
    assert tree_digest(script.data) == before


def test_without_key_and_rehearsal_it_stops_with_exit_code_2_and_writes_nothing(
    script: Script, tmp_path: Path
) -> None:
    before = tree_digest(tmp_path)
    code, last, err = script()
    assert (code, last) == (2, "")
    assert len(err.splitlines()) == 1
    assert "no LLM account: llm_providers.toml does not exist" in err
    assert "--rehearsal" in err
    assert tree_digest(tmp_path) == before


def test_a_dry_run_makes_no_call_and_writes_nothing(script: Script) -> None:
    before = tree_digest(script.data)
    code, last, _ = script("--dry-run", "--rehearsal")
    assert code == 0
    assert last.startswith("dry run: 12 calls (12 teacher), about ")
    assert tree_digest(script.data) == before


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("raw_chunks.jsonl", "does not exist; run fetch_chunks.py first"),
    ],
)
def test_a_missing_input_names_the_phase_to_run(script: Script, missing: str, message: str) -> None:
    (script.data / missing).unlink()
    code, _, err = script("--rehearsal")
    assert code == 2
    assert f"{script.data / missing}: {message}" in err


# ---------------------------------------------------------------------- the script, by hand


class Stdin(StringIO):
    """Lines typed by a person, who then presses Ctrl-C."""

    def readline(self, size: int = -1) -> str:
        line = super().readline(size)
        if not line:
            raise KeyboardInterrupt
        return line


def test_a_session_goes_on_where_it_was_left(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script.data / "gold_dataset.json"
    monkeypatch.setattr(sys, "stdin", StringIO("w First?\ns 2\n2\nq\n"))
    code, last, _ = script("--rehearsal", "--personas-file", ONE_PERSONA)
    assert code == 0
    assert last.endswith(  # what is typed is not echoed here, so the last prompt stands before it
        "2 gold questions (suggestions by the rehearsal), 9 chunks of the sample still open "
        f"-> {path}"
    )
    assert " 3 done · 9 left · spent 0.0000 " in script.said
    ids = [chunk["chunk_id"] for chunk in script.chunks]
    assert [item["chunk_id"] for item in script.gold] == [ids[0], ids[2]]
    assert script.gold[1]["gold_question"] == script.gold[1]["suggestions"][1]

    monkeypatch.setattr(sys, "stdin", Stdin("w Fourth?\n"))
    code, _, err = script("--rehearsal", "--plain", "--personas-file", ONE_PERSONA)
    assert code == 130
    assert "interrupted; resume with: " in err
    assert " 3 done · 9 left · " in script.said
    assert " 4 done · 8 left · " in script.said
    assert [item["chunk_id"] for item in script.gold] == [ids[0], ids[2], ids[3]]
    assert script.meta["counts"]["gold"] == 3


class ByHand:
    """A session in line mode, on a rehearsal, with one persona."""

    def __init__(self, script: Script, monkeypatch: pytest.MonkeyPatch):
        self.script = script
        self._monkeypatch = monkeypatch

    def __call__(self, lines: str, *args: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "stdin", StringIO(lines))
        return self.script("--rehearsal", "--plain", "--personas-file", ONE_PERSONA, *args)

    def events(self, kind: str) -> list[Event]:
        with AnnotationStore(self.script.data / "annotations.sqlite") as store:
            return [event for event in store.events() if event.kind == kind]


@pytest.fixture
def by_hand(script: Script, monkeypatch: pytest.MonkeyPatch) -> ByHand:
    return ByHand(script, monkeypatch)


def test_a_whole_sample_by_hand_and_nothing_to_do_the_next_time(by_hand: ByHand) -> None:
    path = by_hand.script.data / "gold_dataset.json"
    keys = "x 1\n1\nu\n1\n" + "1\n" * 11
    code, last, _ = by_hand(keys, "--repeats", 0, "--annotator", "anna")
    assert (code, last) == (0, f"12 gold questions (suggestions by the rehearsal) -> {path}")
    assert len(by_hand.events("decision")) == 13
    assert by_hand.events("repeat") == []
    assert {item["annotator"] for item in by_hand.script.gold} == {"anna"}
    assert [len(item["bad_suggestions"]) for item in by_hand.script.gold] == [1] + [0] * 11
    assert by_hand.script.meta["counts"]["annotators"] == {"anna": 12}
    before = results(by_hand.script.data)
    assert by_hand("", "--repeats", 0, "--annotator", "anna")[:2] == (0, last)
    assert "every chunk of the sample is decided" in by_hand.script.said
    assert results(by_hand.script.data) == before


def results(data: Path) -> dict[str, str]:
    """The digests of the log and of what is exported from it."""
    ours = ("annotations.sqlite", "gold_dataset")
    return {name: digest for name, digest in tree_digest(data).items() if name.startswith(ours)}


def test_repeats_by_flag(by_hand: ByHand) -> None:
    assert by_hand("1\n" * 30, "--repeats", 0.25)[0] == 0
    assert len(by_hand.events("decision")) == 12
    assert len(by_hand.events("repeat")) == 3
    assert len(by_hand.script.gold) == 12


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--annotator", "a b"], "up to 40 letters, digits, dots, hyphens, underscores"),
        (["--annotator", "../anna"], "up to 40 letters"),
        (["--annotator", "a/b"], "up to 40 letters"),
        (["--annotator", "zoë"], "up to 40 letters"),
        (["--annotator", "a\n"], "up to 40 letters"),
        (["--annotator", "a" * 41], "up to 40 letters"),
        (["--max-persona-share", "0"], "--max-persona-share: must be above 0"),
        (["--max-persona-share", "1.5"], "--max-persona-share: must be from 0 to 1"),
        (["--repeats", "2"], "--repeats: must be from 0 to 1"),
        (["--repeats", "-1"], "--repeats: "),
        (["--repeats", "nan"], "--repeats: "),
        (["--persona-top-k", "0"], "--persona-top-k: must be at least 1"),
        (["--persona-by", "dice"], "--persona-by: invalid choice: 'dice'"),
    ],
)
def test_a_flag_out_of_range_is_a_usage_error_and_writes_nothing(
    script: Script, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    before = tree_digest(script.data)
    with pytest.raises(SystemExit) as usage:
        script("--rehearsal", *args)
    assert usage.value.code == 2
    assert message in capsys.readouterr().err
    assert tree_digest(script.data) == before


def test_the_reasons_come_from_a_file_where_there_is_one(by_hand: ByHand) -> None:
    reasons = by_hand.script.data / "skip_reasons.txt"
    reasons.write_text("  table of  contents\n\n\x1b[31mlegal\x1b[0m text\nlegal text\n")
    assert by_hand("s\n2\ns 1\ns 3\nq\n")[0] == 0
    assert "there is no reason 3; a digit, or words of your own" in by_hand.script.said
    assert "why? 1 table of contents 2 legal text, or in your words > " in by_hand.script.said
    assert by_hand.script.meta["counts"]["skipped"] == {
        "legal text": 1,
        "table of contents": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n\n", "has 0 reasons; write one to nine"),
        (b"", "has 0 reasons; write one to nine"),
        ("".join(f"reason {n}\n" for n in range(10)).encode(), "has 10 reasons; write one to nine"),
        (b"caf\xe9\n", "cannot be read ("),
    ],
)
def test_a_bad_file_of_reasons_is_refused_in_one_line_before_anything_is_written(
    by_hand: ByHand, content: bytes, message: str
) -> None:
    reasons = by_hand.script.data / "skip_reasons.txt"
    reasons.write_bytes(content)
    before = tree_digest(by_hand.script.data)
    code, _, err = by_hand("1\n")
    assert code == 2
    assert f"{reasons}: {message}" in err
    assert len(err.splitlines()) == 1
    assert tree_digest(by_hand.script.data) == before


def test_a_file_of_reasons_saved_by_notepad_is_read(by_hand: ByHand) -> None:
    (by_hand.script.data / "skip_reasons.txt").write_bytes(b"\xef\xbb\xbflegal\r\nother\r\n")
    assert by_hand("s 1\ns 2\nq\n")[0] == 0
    assert by_hand.script.meta["counts"]["skipped"] == {"legal": 1, "other": 1}


def test_a_session_tells_why_suggestions_ended_while_chunks_were_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        LLMDispatcher([rehearsal_account()]) as nothing_in_flight,
        at_desk(tmp_path / "log", chunks_of(4), suggester=spent) as session,
    ):
        for chunk in chunks_of(4):
            session.preparation.wait(chunk, 30)
        assert ended(session, nothing_in_flight, 130) == 130  # the person's own end comes first
        assert capsys.readouterr().err == ""
        assert ended(session, nothing_in_flight, 0) == 5
        assert capsys.readouterr().err == "no more suggestions: budget reached\n"
        in_lines(session, Keyboard("1", "1", "w Mine?", "1"))
        assert len(session.store.gold()) == 4
        assert ended(session, nothing_in_flight, 0) == 0
        assert capsys.readouterr().err == ""


def test_a_session_whose_budget_is_spent_goes_on_and_ends_with_its_code(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(self: object, chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> None:
        raise StopRun("budget reached", exit_code=5)

    monkeypatch.setattr(suggester.LLMSuggester, "__call__", over)
    code, last, err = by_hand("w Mine?\ns 1\nq\n")
    assert code == 5
    assert "no more suggestions: budget reached" in err.splitlines()
    assert "1 gold questions, 10 chunks of the sample still open -> " in last
    assert by_hand.script.said.count("no suggestions: budget reached; r tries again") == 3
    code, _, err = by_hand("w Mine?\n" * 10, "--repeats", 0)  # nothing is open: all is well
    assert (code, err) == (0, "")


def test_the_name_unnamed_is_no_name(by_hand: ByHand) -> None:
    assert by_hand("w Mine?\nq\n", "--annotator", "unnamed")[0] == 0
    assert [event.annotator for event in by_hand.events("decision")] == [""]
    assert [item["annotator"] for item in by_hand.script.gold] == [""]
    assert by_hand("w Mine too?\nq\n", "--annotator", "anna")[0] == 0
    assert by_hand("u\nq\n")[0] == 0
    assert "undone: write" in by_hand.script.said
    assert [item["annotator"] for item in by_hand.script.gold] == ["anna"]


def test_answers_are_taken_without_an_account(script: Script, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.json"
    assert script("--personas-file", ONE_PERSONA, "--export", tasks, "--rehearsal")[0] == 0
    code, last, err = script("--personas-file", ONE_PERSONA, "--import", tasks)
    assert code == 0, err
    assert f"0 new of 0 answers, 0 drafts left out, 12 tasks without an answer <- {tasks}" in err
    assert last == f"0 gold questions -> {script.data / 'gold_dataset.json'}"


def test_the_llm_chooses_personas_by_flag(by_hand: ByHand) -> None:
    assert by_hand("p 1\nw Mine?\nq\n", "--persona-by", "llm")[0] == 0
    chosen = {event.data["by"] for event in by_hand.events("persona")}
    assert "llm" in chosen
    assert by_hand.script.gold[0]["persona_id"] == "reader"


def test_a_dry_run_counts_the_choices_of_personas(script: Script) -> None:
    code, last, _ = script("--dry-run", "--rehearsal", "--persona-by", "llm")
    assert code == 0
    assert last.startswith("dry run: 24 calls (24 teacher), about ")


def started(script: Script, annotator: str) -> subprocess.Popen[bytes]:
    """A session in a process of its own, that waits for lines."""
    args = ["--data-dir", script.data, "--personas-file", ONE_PERSONA, "--rehearsal", "--plain"]
    return subprocess.Popen(
        [sys.executable, ROOT / "annotate_chunks.py", *args, "--annotator", annotator],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_annotators_work_at_once_and_one_only_once(script: Script) -> None:
    """Anna waits at her first chunk; a second Anna is sent away; Bob and Anna then do all."""
    running = [anna := started(script, "anna"), bob := started(script, "bob")]
    try:
        assert anna.stdout is not None
        seen = read_until(anna.stdout.fileno(), b"q quit > ")
        assert " 0 done · 12 left · ".encode() in seen
        code, _, err = script("--rehearsal", "--plain", "--annotator", "anna")
        assert code == 75
        assert f"{script.data}: another session of anna is running in process" in err
        assert f"{anna.pid} " in err
        assert len(err.splitlines()) == 1
        writing = [
            threading.Thread(target=lambda p=process: outputs.append(p.communicate(b"1\n" * 12)))
            for process in running
        ]
        outputs: list[tuple[bytes, bytes]] = []
        for thread in writing:
            thread.start()
        for thread in writing:
            thread.join(60)
        assert [anna.returncode, bob.returncode] == [0, 0], outputs
    finally:
        for process in running:
            process.kill()
            process.wait()
    ids = [chunk["chunk_id"] for chunk in script.chunks]
    with AnnotationStore(script.data / "annotations.sqlite") as store:
        for name in ("anna", "bob"):
            assert [item.chunk_id for item in store.gold(name)] == ids
            own = json.loads((script.data / f"gold_dataset.{name}.json").read_text())
            assert own == [item.model_dump(mode="json") for item in store.gold(name)]
        assert sorted(item.chunk_id for item in store.gold()) == sorted(ids)
        assert script.gold == [item.model_dump(mode="json") for item in store.gold()]
        subjects = [event.subject for event in store.events() if event.kind == "split"]
        assert len(subjects) == len(set(subjects))
    assert script.meta["counts"]["gold"] == 12
    assert sum(script.meta["counts"]["annotators"].values()) == 12
    assert script("--stats", "--json")[0] == 0
    (both,) = json.loads(script.said)["comparisons"]
    picked = [
        [item["gold_question"] for item in json.loads(path.read_text())]
        for path in sorted(script.data.glob("gold_dataset.*.json"))
        if path.name in ("gold_dataset.anna.json", "gold_dataset.bob.json")
    ]
    same = sum(one == other for one, other in zip(*picked, strict=True))
    assert both["who"] in ("anna and bob", "bob and anna")  # whoever decided first
    assert (both["kept"]["n"], both["kept"]["raw"]["value"]) == (12, 1)
    assert both["choice"]["raw"]["value"] == round(same / 12, 6)
    assert 0 < same < 12  # each was shown another order


# ---------------------------------------------------------------------- showing


def show_set(script: Script, count: int = 6) -> None:
    rows = [
        {
            "chunk_text": f"text {number} \x1b[31mred\x1b[0m\u202e",
            "persona_description": "p",
            "gold_question": f"question {number}?\x07",
            "chunk_id": number,
        }
        for number in range(count)
    ]
    (script.data / "gold_dataset.json").write_text(json.dumps(rows))


def test_show_prints_random_entries_printable_and_the_same_for_a_seed(script: Script) -> None:
    show_set(script)
    before = tree_digest(script.data)
    path = script.data / "gold_dataset.json"
    code, last, _ = script("--show", 3)
    assert (code, last) == (0, f"3 of 6 gold questions <- {path}")
    first = script.said
    picked = random.Random(0).sample(range(6), 3)
    assert re.findall(r"→ question (\d)\?", first) == [str(number) for number in picked]
    assert f"text {picked[0]} red\n" in first
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", first)
    script("--show", 3)
    assert script.said == first
    script("--show", 3, "--seed", 1)
    assert script.said != first
    assert tree_digest(script.data) == before


def test_show_prints_ids_inert(script: Script) -> None:
    row = {
        "chunk_text": "t",
        "persona_description": "p",
        "gold_question": "q?",
        "chunk_id": "\x1b[2Jone",
        "persona_id": "\x1b]0;owned\x07two",
    }
    (script.data / "gold_dataset.json").write_text(json.dumps([row]))
    assert script("--show", 1)[0] == 0
    assert "\x1b" not in script.said


def test_a_decision_outside_the_sample_is_named_inert(script: Script) -> None:
    row = next(row for row in script.rows if row["action"] == "skip")
    code, _, err = script.replay([row, row | {"chunk_id": "\x1b[2Jelsewhere"}])
    assert code == 0
    assert "1 of 2 decisions are on chunks outside the sample" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(("asked", "shown"), [(0, 0), (6, 6), (99, 6)])
def test_show_prints_no_more_than_there_are(script: Script, asked: int, shown: int) -> None:
    show_set(script)
    code, last, _ = script("--show", asked)
    assert (code, last.partition(" <- ")[0]) == (0, f"{shown} of 6 gold questions")


def test_show_of_a_negative_number_is_a_usage_error(script: Script) -> None:
    show_set(script)
    try:
        code = script("--show", "-1")[0]
    except SystemExit as usage:
        code = usage.code
    assert code == 2


def test_show_without_a_gold_set_names_the_phase(script: Script) -> None:
    code, _, err = script("--show", 3)
    assert code == 2
    assert f"{script.data / 'gold_dataset.json'}: does not exist; run annotate_chunks.py" in err
