"""One event loop that owns what many loops and threads use.

Connections, locks and futures belong to the loop that first used them. The home loop is the first
that asks; where nobody runs one, a thread of our own does. Calls from elsewhere are carried over.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class HomeLoop:
    """The loop on which an object's state lives; `on_move` is called when that becomes another."""

    def __init__(self, on_move: Callable[[], None], *, thread_name: str):
        self._on_move = on_move
        self._thread_name = thread_name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed: BaseException | None = None

    def is_here(self, *, settle: bool = True) -> bool:
        """Whether the running loop is home; the first loop to ask becomes it."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if running is self._loop:
            return True
        with self._lock:
            if settle and (self._loop is None or self._deserted(self._loop)):
                self._move_to(running)
            return running is self._loop

    def carry(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the home loop, in a thread of our own if nobody else runs it."""
        with self._lock:
            if self._closed is not None:
                coroutine.close()
                raise self._closed
            home = self._loop
            if home is None or self._deserted(home):
                home = asyncio.new_event_loop()
                self._move_to(home)
                self._thread = threading.Thread(
                    target=_run_loop, args=(home,), name=self._thread_name, daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, home)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run `callback` on the home loop if there is one, from any thread."""
        home = self._loop
        if home is not None and not home.is_closed():
            with contextlib.suppress(RuntimeError):  # closed in between
                home.call_soon_threadsafe(callback)

    def close(
        self, wind_up: Callable[[], Awaitable[None]], *, reason: BaseException, patience: float
    ) -> None:
        """Carry nothing more (`reason` is raised), run `wind_up` on our own thread, and end it."""
        with self._lock:
            self._closed = reason
        thread, home = self._thread, self._loop
        if thread is None or home is None or home.is_closed():
            return

        async def ending() -> None:
            await wind_up()

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(ending(), home).result(timeout=2 * patience)
        home.call_soon_threadsafe(home.stop)
        thread.join(timeout=patience)

    def _deserted(self, home: asyncio.AbstractEventLoop) -> bool:
        """Whether nobody runs `home` any more: closed, or left standing by its owner."""
        ours = self._thread is not None and self._thread.is_alive()
        return home.is_closed() or not (ours or home.is_running())

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._on_move()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
