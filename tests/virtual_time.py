"""An event loop whose clock jumps: asyncio programs with minutes of waiting run in milliseconds.

Time stands still while any task can run and moves to the next timer when none can. A loop with
neither a runnable task nor a timer would sleep for ever; that is how a lost wake-up shows, so it
raises `Deadlock`. Single-threaded: nothing outside the loop can wake it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(AssertionError):
    """Every task waits, and nothing is scheduled that could wake one."""


class _NoWaiting(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Where a selector would sleep, it moves its loop's clock on by as much instead."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits and nothing is scheduled: a wake-up was lost")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at time 0; `time()` is the virtual clock."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _NoWaiting()
        super().__init__(selector)
        selector.loop = self
        # Timers due within the resolution count as due: rounding must not make the loop spin.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time; raises `Deadlock` where the real one would hang."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
