"""When a session on the screen must end: a signal asks for it, or its terminal has gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from question_optimizer.errors import INTERRUPTED

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_LAST_SECONDS = 3.0  # for an orderly end where the terminal may be gone


class TerminalWatch:
    """Use as a context manager around the screen's run: signals are caught as long.

    With nobody at the other end the screen's own loop may hang in writing, for ever and with the
    annotator's lock. Every decision is on disk, so after a while the process just ends.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()  # a signal wants the session to end
        self._over = threading.Event()  # it has
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._before = {
            number: signal.signal(number, lambda *_: self._asked.set()) for number in _SIGNALS
        }

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self, leave: Callable[[], object]) -> None:
        """Watch on a thread, and call `leave` there when the session has to end."""
        threading.Thread(target=self._watch, args=(leave,), name="terminal", daemon=True).start()

    def _watch(self, leave: Callable[[], object]) -> None:
        while not self._over.is_set():
            if self._asked.wait(0.5) or not sys.__stdin__ or not sys.__stdin__.isatty():
                leave()
                if not self._over.wait(_LAST_SECONDS):
                    os._exit(INTERRUPTED)
                return
