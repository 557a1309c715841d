"""A run's ceilings over all workers of a cluster, kept without asking anybody before each call.

The driver gives every worker a part of what is left, smaller parts towards the end, and that
worker's own dispatcher refuses the call that would pass it. What was given is never taken back:
however late a message comes and whoever dies, all workers together stay within the sum. What a
worker that died had left is spent by nobody.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable
from typing import NamedTuple

from question_optimizer.errors import BUDGET, StopRun

_SHARES = 4  # a part is a fourth of what would be each worker's share of what is left
_STEPS = 1000  # the smallest part of a sum of money


class Ceiling(NamedTuple):
    """What one worker may have spent in all, since it began; None is no ceiling."""

    calls: int | None = None
    cost: float | None = None


NO_CEILING = Ceiling()


class Spent(NamedTuple):
    """What one worker has spent in all. A call counts when it begins."""

    calls: int
    cost: float


NOTHING = Spent(0, 0.0)


class Fund:
    """A sum that is given out in whole multiples of `unit`; the last part may be less."""

    def __init__(self, most: float, unit: float):
        self.most = most
        self._unit = unit
        self._given: defaultdict[Hashable, float] = defaultdict(float)
        self._spent: defaultdict[Hashable, float] = defaultdict(float)

    @property
    def left(self) -> float:
        """What nobody was given. A call that was dearer than reckoned comes off it too."""
        taken = math.fsum(max(self._given[who], self._spent[who]) for who in self._given)
        left = self.most - taken
        return left if left > 1e-9 * self.most else 0.0

    @property
    def spent(self) -> float:
        """As far as workers told it; less than it is where one died."""
        return math.fsum(self._spent.values())

    def untold(self, known: Collection[Hashable]) -> float:
        """What workers, except those `known`, may have spent beyond what they told."""
        others = (who for who in self._given if who not in known)
        return math.fsum(max(0.0, self._given[who] - self._spent[who]) for who in others)

    def given(self, worker: Hashable) -> float:
        """What `worker` may have spent in all."""
        return self._given[worker]

    def is_used_up_by(self, worker: Hashable) -> bool:
        """Whether `worker` has spent all that it was given."""
        return self._spent[worker] >= self._given[worker]

    def tell(self, worker: Hashable, spent: float) -> None:
        """What `worker` had spent when it said so; what comes late changes nothing."""
        self._spent[worker] = max(self._spent[worker], spent)

    def give(self, worker: Hashable, workers: int) -> bool:
        """Another part for `worker`, one of so many; False where nothing is left."""
        left = self.left
        share = left / (_SHARES * max(1, workers))
        part = min(left, self._unit * max(1, math.floor(share / self._unit)))
        self._given[worker] = max(self._given[worker], self._spent[worker]) + part
        return part > 0

    def refill(self, worker: Hashable, workers: int) -> None:
        """Another part where half of one is not left, so that nobody has to wait for it."""
        part = self.left / (_SHARES * max(1, workers))
        if self._given[worker] - self._spent[worker] < max(part / 2, self._unit):
            self.give(worker, workers)


class Budget:
    """`max_calls` and `max_cost` of a run, and what of them each worker may take."""

    def __init__(self, max_calls: int | None, max_cost: float | None):
        self._calls = Fund(max_calls, 1) if max_calls is not None else None
        self._cost = Fund(max_cost, max_cost / _STEPS or 1.0) if max_cost is not None else None
        self._dry: dict[Hashable, Fund] = {}  # workers that can be given no more, and of what

    def ceiling(self, worker: Hashable, workers: int) -> Ceiling:
        """What `worker`, one of so many, may have spent in all; it never falls."""
        for fund in filter(None, (self._calls, self._cost)):
            fund.refill(worker, workers)
        return self._given(worker)

    def has_more_for(self, worker: Hashable) -> bool:
        """False once `worker` has refused a call and nothing was left to be given."""
        return worker not in self._dry

    def tell(self, worker: Hashable, spent: Spent) -> None:
        """What `worker` has spent so far."""
        if self._calls is not None:
            self._calls.tell(worker, spent.calls)
        if self._cost is not None:
            self._cost.tell(worker, spent.cost)

    def refused(self, worker: Hashable, under: Ceiling, workers: int) -> None:
        """`worker`, one of so many, refused a call under this ceiling or a later one: give it more
        of what it lacks, if there is."""
        if self._given(worker) != under:
            return  # it has more by now
        by_calls = self._calls is not None and self._calls.is_used_up_by(worker)
        fund = self._calls if by_calls else self._cost
        if fund is not None and not fund.give(worker, workers):
            self._dry[worker] = fund

    def reached(self) -> StopRun:
        """The end of a run whose workers can be given nothing more, in the dispatcher's words."""
        if self._calls is not None and self._calls in self._dry.values():
            text = _calls_made(self._calls, self._calls.untold(self._dry))
        else:
            text = _cost_reached(self._cost) if self._cost is not None else "budget reached"
        return StopRun(text, exit_code=BUDGET)

    def _given(self, worker: Hashable) -> Ceiling:
        return Ceiling(
            None if self._calls is None else int(self._calls.given(worker)),
            None if self._cost is None else self._cost.given(worker),
        )


def _calls_made(fund: Fund, by_the_dead: float) -> str:
    more = f" and up to {by_the_dead:.0f} by workers that died" if by_the_dead else ""
    return (
        f"{fund.spent:.0f} calls made{more}, as many as --max-calls allows; everything is saved, "
        "run the same command with a higher number to go on"
    )


def _cost_reached(fund: Fund) -> str:
    return (
        f"budget reached: {fund.spent:.4f} of {fund.most:g} spent over all workers, and the next "
        "call could pass it; raise --max-cost to go on"
    )
