"""What LLM answers take: tokens, cost, seconds, account; and who counts them.

An answer from the store keeps the figures of the call that was paid for, so totals come out the
same whether or not a run was interrupted.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CallUsage:
    """One answered call. `cost` in the accounts' currency, `seconds` of the successful attempt."""

    account: str
    model: str
    input_tokens: int
    output_tokens: int
    cost: float
    seconds: float


@dataclass
class Usage:
    """Totals over calls."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Plain figures, rounded so that the order of additions does not show."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


_reporting = threading.Lock()


class Meter:
    """Collects calls, each request once: those of a `metered` block, or of a whole run."""

    def __init__(self) -> None:
        self.calls: dict[str, CallUsage] = {}
        self.fresh = 0  # of them, answered now and not from a cache

    @property
    def total(self) -> Usage:
        with _reporting:
            calls = list(self.calls.values())
        return Usage(
            len(calls),
            sum(call.input_tokens for call in calls),
            sum(call.output_tokens for call in calls),
            # exact sums: in which order the calls ended does not show
            math.fsum(call.cost for call in calls),
            math.fsum(call.seconds for call in calls),
        )


_meters: ContextVar[tuple[Meter, ...]] = ContextVar("meters", default=())


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Collect the usage of every LLM call made inside the block, cached ones included.

    Blocks nest. They see the calls of their own thread or task; DSPy's worker threads start with a
    fresh context, so a whole run is totalled by `AnswerStore.seen`.
    """
    meter = Meter()
    token = _meters.set((*_meters.get(), meter))
    try:
        yield meter
    finally:
        _meters.reset(token)


def report(request: str, call: CallUsage, *also: Meter, fresh: bool) -> None:
    """Tell the enclosing `metered` blocks, and `also`, of a call, `fresh` or from the store."""
    with _reporting:  # DSPy's threads share a run's meter
        for meter in (*_meters.get(), *also):
            meter.calls[request] = call
            meter.fresh += fresh
