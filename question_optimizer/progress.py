"""How far a run is, on stderr: a bar that redraws itself, or lines where there is no terminal.

Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from question_optimizer.hostile_text import one_line

_LOG_EVERY_SECONDS = 30.0
_FEWEST_BLOCKS = 5  # of a bar; where words leave no room for them they are worth more


class Progress:
    """done/total, rejected, failures, spend and when it ends, on stderr.

    A bar that redraws itself on a terminal and is cut to its width, a line every 30 s elsewhere.
    `eta(left)` tells in words when so many items will be through; where it tells nothing, the time
    left is guessed from the pace so far. `again` counts items that are done anew: they are beyond
    the total, and told apart. As long as the total is 0, only the note tells what is done.
    """

    def __init__(
        self,
        what: str,
        total: int | Callable[[], int],
        *,
        spend: Callable[[], float] | None = None,
        note: Callable[[], str] = str,
        eta: Callable[[int], str] | None = None,
        again: Callable[[], int] = int,
    ):
        self._note = note
        self._eta = eta
        self._again = again
        self._what = what
        self._total = total if callable(total) else lambda: total
        self._spend = spend
        self._done = self._rejected = self._failed = 0
        self._started = self._shown = time.monotonic()
        self._lock = threading.RLock()  # a note may log, and a log may be said
        self._over = threading.Event()
        self._stream = sys.stderr  # as it is now: DSPy's own output may be redirected later
        self._terminal = self._stream.isatty()
        self._bar_stands = False  # on a line of the terminal that has not ended

    def __enter__(self) -> Progress:
        threading.Thread(target=self._tick, name="progress", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._over.set()
            if self._terminal and self._done:
                self._draw()
                print(file=self._stream)
            elif self._bar_stands:
                print("\r\x1b[K", end="", file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, which the bar does not run into."""
        with self._lock:
            start = "\r\x1b[K" if self._bar_stands else ""
            print(f"{start}{one_line(text)}", file=self._stream, flush=True)
            self._bar_stands = False

    def advance(self, *, failed: bool = False, rejected: bool = False) -> None:
        """One more item is through."""
        with self._lock:
            self._done += 1
            self._failed += failed
            self._rejected += rejected
            now = time.monotonic()
            if now - self._shown >= (0.2 if self._terminal else _LOG_EVERY_SECONDS):
                self._shown = now
                self._draw()

    def _tick(self) -> None:
        """Say something also while nothing ends: a silent minute looks like a dead program."""
        every = 1.0 if self._terminal else _LOG_EVERY_SECONDS
        while not self._over.wait(every):
            with self._lock:
                if not self._over.is_set() and time.monotonic() - self._shown >= every:
                    self._shown = time.monotonic()
                    self._draw()

    def _draw(self) -> None:
        again = self._again()
        total = max(self._total(), self._done - again)
        line = one_line(", ".join(filter(None, self._parts(total, again))))
        if not self._terminal:
            print(line, file=self._stream)
            return
        room = _width(self._stream) - 1  # a full last column makes some terminals begin a new line
        if total and (blocks := min(20, room - len(line) - 1)) >= _FEWEST_BLOCKS:
            filled = round(blocks * min(1.0, self._done / total))
            line = f"{'█' * filled}{'░' * (blocks - filled)} {line}"
        if len(line) > room:
            line = line[: room - 1] + "…"
        print(f"\r\x1b[K{line}", end="", file=self._stream)
        self._stream.flush()
        self._bar_stands = True

    def _parts(self, total: int, again: int) -> Iterator[str]:
        if not total:
            yield f"{self._what}: {self._note() or 'preparing'}"
            return
        yield f"{self._what} {min(self._done, total):,}/{total:,}"
        if again:
            yield f"{again:,} asked again"
        if self._rejected:
            yield f"{self._rejected:,} rejected"
        if self._failed:
            yield f"{self._failed:,} failed"
        if self._spend and (spend := self._spend()):
            yield f"spent {spend:.4f}"
        left = total + again - self._done
        if self._eta and left and (told := self._eta(left)):
            yield told
        elif self._done and left:
            elapsed = time.monotonic() - self._started
            yield f"{duration(elapsed / self._done * left)} left"
        yield self._note()


def _width(stream: TextIO) -> int:
    """Columns of the terminal behind `stream`: stdout, which Python asks, may be a file."""
    with contextlib.suppress(OSError, ValueError):
        return max(20, os.get_terminal_size(stream.fileno()).columns or 80)
    return shutil.get_terminal_size().columns


def duration(seconds: float) -> str:
    """In words, and no finer than a guess is: 75 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
