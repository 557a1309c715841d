"""Annotation: one decision at a time, on disk before the next chunk shows, and replayable."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import dspy
import pytest
from rich.console import Console

from annotate_chunks import main as annotate_chunks
from conftest import ROOT, SAMPLE, clean_environment, tree_digest
from fetch_chunks import main as fetch_chunks
from question_optimizer.annotation.session import (
    SKIP_REASONS,
    Person,
    Replay,
    Suggester,
    annotate,
)
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.cli import run
from question_optimizer.embedding import Embedder
from question_optimizer.errors import StopRun, UserError
from question_optimizer.personas import PersonaMatcher
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


def suggest(chunk: Chunk, persona: Persona) -> list[str]:
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
        console = Console(file=self.screen, width=200)
        person = Person(console, by, by.clock) if isinstance(by, Keyboard) else None
        return annotate(
            chunks,
            store=self.store,
            matcher=PersonaMatcher([TECHNICIAN], Embedder()),
            suggester=suggester,
            decider=person or Replay(by),
            suggested_by=["model-a"],
            seed=0,
            saved=saved,
        )

    @property
    def shown(self) -> str:
        return self.screen.getvalue()


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
        (["s 5"], "other"),
        (["s", ""], "other"),
        (["s table of contents"], "table of contents"),
        (["s", "two languages"], "two languages"),
        (["s 9"], "9"),
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
        "why? 1 boilerplate 2 too short 3 code only 4 needs context 5 other > "
    )
    assert len(SKIP_REASONS) == 5


@pytest.mark.parametrize("key", ["x", "0", "4", "1.5", "-1", "W", "pick", "[bold]", "²", "½"])
def test_an_unknown_key_says_so_and_asks_again(session: Session, key: str) -> None:
    assert session.run(chunks_of(1), Keyboard(key, "1")) == 1
    assert f"{key!r} is no key here; ? shows them" in session.shown
    assert [item.gold_question for item in session.store.gold()] == [SUGGESTED[0]]


@pytest.mark.parametrize("key", ["e 9", "e 0", "e x", "e ²"])
def test_editing_a_suggestion_that_is_not_there_edits_no_other(session: Session, key: str) -> None:
    keyboard = Keyboard(key, "1")
    assert session.run(chunks_of(1), keyboard) == 1
    assert "question: " not in keyboard.prompts
    assert [item.origin for item in session.store.gold()] == ["picked"]


def test_an_empty_question_leaves_the_chunk_open_and_says_so(session: Session) -> None:
    assert session.run(chunks_of(1), Keyboard("w", "  ")) == 0
    assert "nothing written; this chunk is still open" in session.shown
    assert not session.store.is_decided(chunks_of(1)[0])


def test_help_names_every_key(session: Session) -> None:
    assert session.run(chunks_of(1), Keyboard("?", "q")) == 0
    for line in ("1-5 ", "e 2 ", "w ", "s ", "? ", "q "):
        assert re.search(rf"^  {re.escape(line)}", session.shown, re.M)


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
    assert "chunk 2 of 3" in session.shown


def test_without_suggestions_there_is_nothing_to_pick_or_edit(session: Session) -> None:
    keyboard = Keyboard("1", "e", "w Who?")
    assert session.run(chunks_of(1), keyboard, suggester=lambda chunk, persona: []) == 1
    assert keyboard.prompts[0] == "w write · s skip · ? help · q quit > "
    assert "'1' is no key here" in session.shown
    assert "'e' is no key here" in session.shown
    (item,) = session.store.gold()
    assert (item.suggestions, item.suggestions_shown, item.suggested_by) == ([], False, [])


def test_the_chunk_shows_with_its_place_its_persona_and_the_suggestions(session: Session) -> None:
    chunk = Chunk(
        chunk_id=1, chunk_text="Pads wear.", file_name="b.pdf", headings=["Brakes"], page_no=7
    )
    session.run([chunk], Keyboard("q"))
    assert "chunk 1 of 1" in session.shown
    assert "b.pdf › Brakes › page 7" in session.shown
    assert "Pads wear." in session.shown
    assert "Technician: asks about brakes" in session.shown
    for number, suggestion in enumerate(SUGGESTED, 1):
        assert f"  {number}  {suggestion}\n" in session.shown


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
from question_optimizer.annotation.session import Offer, Person
from rich.console import Console
person = Person(Console(width=80))
offer = Offer(1, 1, t.chunks_of(1)[0], t.TECHNICIAN, t.SUGGESTED)
decision, seconds = person.decide(offer)
Path(sys.argv[1]).write_text(decision.model_dump_json())
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
        [sys.executable, "-c", _AT_A_TERMINAL, str(tmp_path / "decision"), str(ROOT / "tests")],
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
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(terminal)
    decision = Decision.model_validate_json((tmp_path / "decision").read_text())
    assert (decision.action, decision.pick) == ("edit", 2)
    assert decision.gold_question == "How thick is a new pad of type B?"


# ---------------------------------------------------------------------- suggestions


def test_failing_suggestions_cost_a_chunk_nothing_but_the_suggestions(session: Session) -> None:
    def flaky(chunk: Chunk, persona: Persona) -> list[str]:
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


def test_the_end_of_the_run_ends_the_session_with_every_decision_kept(session: Session) -> None:
    def spent(chunk: Chunk, persona: Persona) -> list[str]:
        if chunk.chunk_id == 2:
            raise StopRun("budget reached", exit_code=5)
        return SUGGESTED

    with pytest.raises(StopRun, match="budget reached"):
        session.run(chunks_of(9), Keyboard("1", "1", "1"), suggester=spent)
    assert len(session.store.gold()) == 2


def test_the_next_suggestions_are_made_while_a_person_reads(session: Session) -> None:
    asked: list[object] = []

    def counting(chunk: Chunk, persona: Persona) -> list[str]:
        asked.append(chunk.chunk_id)
        return SUGGESTED

    session.run(chunks_of(30), Keyboard("1", "q"), suggester=counting)
    assert set(asked) <= set(range(6))  # two shown and four ahead; not the whole sample


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
        seen.append((len(decided), f"chunk {number + 2} of 4" in session.shown))

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
    chunks = chunks_of(3)
    session.run(chunks, Keyboard("1", "2", "3"))
    session.run(chunks[:2], Keyboard("w Better?", "s 1"))
    session.run(chunks[1:2], Keyboard("w Best?"))
    expected = [(0, "Better?"), (1, "Best?"), (2, SUGGESTED[2])]
    assert [(i.chunk_id, i.gold_question) for i in session.store.gold()] == expected
    assert session.store.skipped() == {}
    with AnnotationStore(tmp_path / "annotations.sqlite") as again:
        assert again.gold() == session.store.gold()
    subjects = [s for kind, s in events(tmp_path / "annotations.sqlite") if kind == "decision"]
    assert subjects == ["0", "1", "2", "0", "1", "1"]


def test_a_skip_takes_the_chunk_out_of_the_gold_set(session: Session) -> None:
    chunks = chunks_of(3)
    session.run(chunks, Keyboard("1", "1", "1"))
    session.run(chunks[1:2], Keyboard("s 4"))
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
    code, last, _ = script("--rehearsal")
    assert code == 0
    assert last.endswith(  # what is typed is not echoed here, so the last prompt stands before it
        "2 gold questions (suggestions by the rehearsal), 9 chunks of the sample still open "
        f"-> {path}"
    )
    assert "chunk 4 of 12" in script.said
    ids = [chunk["chunk_id"] for chunk in script.chunks]
    assert [item["chunk_id"] for item in script.gold] == [ids[0], ids[2]]
    assert script.gold[1]["gold_question"] == script.gold[1]["suggestions"][1]

    monkeypatch.setattr(sys, "stdin", Stdin("w Fourth?\n"))
    code, _, err = script("--rehearsal", "--plain")
    assert code == 130
    assert "interrupted; resume with: " in err
    assert "chunk 1 of 9" in script.said
    assert [item["chunk_id"] for item in script.gold] == [ids[0], ids[2], ids[3]]
    assert script.meta["counts"]["gold"] == 3


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
