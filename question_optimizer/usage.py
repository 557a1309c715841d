"""What each LLM answer took: tokens, cost, seconds, account. Kept on disk, keyed by the request.

DSPy's disk cache returns an answer without its usage, so a resumed run would report only what it
paid itself. Here a cached answer keeps the figures of the call that was paid for, and totals come
out the same whether or not a run was interrupted.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from question_optimizer.sqlite_file import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    request TEXT PRIMARY KEY, account TEXT, model TEXT,
    input_tokens INTEGER, output_tokens INTEGER, cost REAL, seconds REAL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class CallUsage:
    """One answered call. `cost` in the accounts' currency, `seconds` of the successful attempt."""

    account: str
    model: str
    input_tokens: int
    output_tokens: int
    cost: float
    seconds: float

    def plus(self, other: CallUsage) -> CallUsage:
        """Both together, under the names of the latter."""
        return CallUsage(
            other.account,
            other.model,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost + other.cost,
            self.seconds + other.seconds,
        )


@dataclass
class Usage:
    """Totals over calls."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    def add(self, call: CallUsage) -> None:
        self.calls += 1
        self.input_tokens += call.input_tokens
        self.output_tokens += call.output_tokens
        self.cost += call.cost
        self.seconds += call.seconds

    def as_dict(self) -> dict[str, float]:
        """Plain figures, rounded so that the order of additions does not show."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


_reporting = threading.Lock()


class _Meter:
    """Collects the calls of one `metered` block, each request once."""

    def __init__(self) -> None:
        self.calls: dict[str, CallUsage] = {}
        self.fresh = 0  # of them, answered now and not from a cache

    @property
    def total(self) -> Usage:
        usage = Usage()
        with _reporting:
            for call in self.calls.values():
                usage.add(call)
        return usage


class UsageLog:
    """The figures of every answered call, by request key. Safe from any thread.

    `seen` collects the calls since this object was made, cached answers included: the usage of a
    run, whatever threads it used.
    """

    def __init__(self, path: Path | None):
        self._lock = threading.Lock()
        self.seen = _Meter()
        self._connection = open_database(path, _SCHEMA, version=1, durable=False)

    def record(self, request: str, call: CallUsage) -> None:
        """Remember `call` for `request`, replacing what was known."""
        with self._lock, self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)",
                (request, *asdict(call).values()),
            )

    def find(self, request: str) -> CallUsage | None:
        """The figures for `request`, None if it was never answered here."""
        with self._lock:
            row = self._connection.execute(
                "SELECT account, model, input_tokens, output_tokens, cost, seconds "
                "FROM calls WHERE request = ?",
                (request,),
            ).fetchone()
        return CallUsage(*row) if row else None

    def close(self) -> None:
        with self._lock:
            self._connection.close()


_meters: ContextVar[tuple[_Meter, ...]] = ContextVar("meters", default=())


@contextlib.contextmanager
def metered() -> Iterator[_Meter]:
    """Collect the usage of every LLM call made inside the block, cached ones included.

    Blocks nest. They see the calls of their own thread or task; DSPy's worker threads start with a
    fresh context, so a whole run is totalled by `UsageLog.seen`.
    """
    meter = _Meter()
    token = _meters.set((*_meters.get(), meter))
    try:
        yield meter
    finally:
        _meters.reset(token)


def report(request: str, call: CallUsage, log: UsageLog | None, *, fresh: bool) -> None:
    """Tell the enclosing `metered` blocks, and `log`, of a call, `fresh` or from a cache."""
    with _reporting:  # DSPy's threads share a run's meter
        for meter in (*_meters.get(), *([log.seen] if log else [])):
            meter.calls[request] = call
            meter.fresh += fresh
