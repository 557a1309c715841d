"""The bar that tells how far a run is keeps to one line of any terminal, and obeys nothing."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios

import pytest

from question_optimizer.progress import Progress
from test_terminal import HOSTILE, obeyed

ACCOUNTS = "groq-1 412/1000 today, 28/min · mistral spent until 00:00 UTC"


class Terminal:
    """A real terminal of so many columns as stderr; `shown` is all that was written to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int):
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        self._stream = os.fdopen(theirs, "w", encoding="utf-8")
        self.shown = ""
        monkeypatch.setattr(sys, "stderr", self._stream)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.flush()
        os.set_blocking(self._ours, False)
        with contextlib.suppress(BlockingIOError):
            written = b""
            while more := os.read(self._ours, 65536):
                written += more
                self.shown = written.decode()
        self._stream.close()
        os.close(self._ours)


def drawn(progress: Progress, *ends: dict[str, bool]) -> None:
    """Through so many items, and what is on the terminal at the end."""
    with progress:
        for end in ends:
            progress.advance(**end)
        progress._draw()


def test_without_a_terminal_progress_is_a_line_that_tells_what_there_is_to_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn(Progress("chunks", 4), {}, {"failed": True})
    drawn(
        Progress(
            "chunks",
            lambda: 648,
            spend=lambda: 0.125,
            note=lambda: ACCOUNTS,
            eta=lambda left: f"finishes when {left} are done",
        ),
        {"rejected": True},
        {"failed": True},
        {},
    )
    drawn(Progress("chunks", 4, eta=lambda left: ""), {"rejected": True})
    plain, full, untold = capsys.readouterr().err.splitlines()
    assert plain == "chunks 2/4, 1 failed, 0 s left"
    assert full == (
        "chunks 3/648, 1 rejected, 1 failed, spent 0.1250, finishes when 645 are done, "
        "groq-1 412/1000 today, 28/min · mistral spent until 00:00 UTC"
    )
    assert untold == "chunks 1/4, 1 rejected, 0 s left"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 81, 132, 133, 200])
def test_a_bar_keeps_to_one_line_of_its_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Terminal(monkeypatch, columns) as terminal:
        drawn(
            Progress(
                "chunks",
                648,
                note=lambda: ACCOUNTS,
                eta=lambda left: "finishes Thursday 14:00 UTC at present limits",
            ),
            {"rejected": True},
        )
    lines = [line.removeprefix("\x1b[K") for line in re.split(r"[\r\n]+", terminal.shown) if line]
    whole = "chunks 1/648, 1 rejected, finishes Thursday 14:00 UTC at present limits, "
    whole += ACCOUNTS
    assert len(lines) >= 2
    for line in lines:
        assert len(line) < columns
        words = line.lstrip("█░ ").removesuffix("…")
        assert whole.startswith(words)
        assert words == whole or len(line) == columns - 1  # nothing is cut that had room
    assert lines[-1].startswith("░") == (columns == 200)


def test_a_bar_obeys_nothing_that_its_note_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal(monkeypatch, 200) as terminal:
        drawn(Progress("chunks", 4, note=lambda: HOSTILE + "\nnext"), {})
    assert obeyed(re.sub(r"\r\n|\r\x1b\[K", "", terminal.shown)) == set()


def test_before_anything_is_counted_only_the_note_tells_what_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn(Progress("questions", 0, note=lambda: "reading and embedding 648 chunks, 256 done"))
    drawn(Progress("questions", 0))
    assert capsys.readouterr().err.splitlines() == [
        "questions: reading and embedding 648 chunks, 256 done",
        "questions: preparing",
    ]


def test_what_is_asked_again_is_told_apart_from_the_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn(Progress("questions", 1296, again=lambda: 445), {}, {})
    drawn(Progress("questions", 2, again=lambda: 1, eta=lambda left: "soon"), {}, {}, {})
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("questions 2/1,296, 445 asked again, ")
    assert last == "questions 2/2, 1 asked again"


def test_a_line_that_is_said_and_the_end_do_not_run_into_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Terminal(monkeypatch, 80) as terminal:
        progress = Progress("questions", 0)
        with progress:
            progress._draw()
            progress.say("going on")
            progress._draw()
        print("the end", file=sys.stderr)
    wiped = "\r\x1b[Kquestions: preparing\r\x1b[K"
    assert terminal.shown == f"{wiped}going on\r\n{wiped}the end\r\n"
