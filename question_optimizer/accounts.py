"""One account while it is in use: its turns, its rests, its counts, and what its server teaches.

Belongs to the dispatcher's home loop. Every time is an argument.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from question_optimizer.failures import Failure
from question_optimizer.generation.forecast import Allowance
from question_optimizer.limit_store import Limits, Wish
from question_optimizer.limits import UNITS, Meter, Need, Pace, Unit
from question_optimizer.providers import LLMClientConfig, Role
from question_optimizer.rate_headers import Announced, Windows

log = logging.getLogger(__name__)
_REST_AFTER_FAILURES = 3
_REST_SECONDS = (1.0, 60.0)  # first and longest rest of an account that keeps failing
_LEARNT_IN_FLIGHT_SECONDS = 2.0  # a longer Retry-After speaks of a rate
_DAY_SECONDS = 86400.0
_LONG_REST_SECONDS = 600.0  # from which on the time tells more than the seconds
_SILENT_SECONDS = 5.0  # from which on it is told that no answer ever came


@dataclass(eq=False, slots=True)
class Account:
    """One account's live state."""

    config: LLMClientConfig
    limits: Limits
    random: Callable[[], float]
    priced: bool = False
    windows: Windows = field(default_factory=Windows)
    announced: dict[tuple[Unit, float], float] = field(default_factory=dict)
    turn: float = 0.0  # round robin: the ready account with the lowest turn goes next
    rests_until: float = -math.inf  # after failures; rests after refusals are the meter's
    failures: int = 0  # in a row
    fault: str = ""  # the last one, of calls or of what they were allowed, in a few words
    fault_until: float = -math.inf  # the end of the rest that it led to
    first_at: float = -math.inf  # when its first call began
    probing: bool = False  # the one call that tells whether it is well again is in flight
    out: str = ""  # why it takes no further part
    in_flight: int = 0
    started: int = 0
    ok: int = 0
    rate_limited: int = 0
    retried: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    spend: float = 0.0

    def __post_init__(self) -> None:
        self.priced = self.config.priced

    def serves(self, role: Role | None, model: str | None = None) -> bool:
        config = self.config
        return (role is None or role in config.roles) and (model is None or model == config.model)

    # ------------------------------------------------------------------ when it may be used

    @property
    def failing(self) -> bool:
        """Whether it gets one call at a time, until one succeeds."""
        return self.failures >= _REST_AFTER_FAILURES

    def ready_at(self, wish: Wish, now: float) -> float:
        """The earliest time for a call; inf where only the end of another can help."""
        if self.probing and self.failing:
            return math.inf
        at = self.limits.ready_at(wish, now)
        return at if at > self.rests_until else self.rests_until

    def likely_at(self, now: float) -> float:
        """As `ready_at`, but nothing is reserved, so that it may be later in the end."""
        if self.probing and self.failing:
            return math.inf
        return max(self.rests_until, self.limits.likely_at(now))

    def resting_until(self) -> float:
        return max(self.rests_until, self.limits.meter.rests_until)

    def usable_again(self, now: float, wall: float) -> datetime:
        """When an account that is spent or rests may be used, to the minute after."""
        if self.limits.spent():
            return self.limits.day_ends()
        resting = timedelta(seconds=max(0.0, self.resting_until() - now), minutes=1)
        return datetime.fromtimestamp(wall, UTC) + resting

    # ------------------------------------------------------------------ what failures say

    def exceeds(self, need: Need) -> bool:
        """Whether a call is larger than a whole minute's tokens."""
        return need.tokens > 60.0 * self.limits.meter.paces[1].limit

    def failed_with(
        self, failure: Failure, need: Need, started_at: float, now: float, wall: float
    ) -> None:
        """A call begun at `started_at` has failed: count it, rest if need be, learn from it."""
        was_out = self.out
        self._count(failure, need, started_at, now, wall)
        if failure.kind != "bad_request" and not was_out:
            self.fault, self.fault_until = failure.brief, self.resting_until()

    def _count(
        self, failure: Failure, need: Need, started_at: float, now: float, wall: float
    ) -> None:
        if failure.kind == "rate_limited":
            self.rate_limited += 1
            self._learn(failure, need, started_at, now, wall)
            return
        self.failed += 1
        if failure.kind == "account_out" and not self.out:
            self.out = failure.reason
            log.warning("account %s takes no further part: %s", self.config.name, failure.reason)
        elif failure.kind == "transient":
            self.failures += 1
            if self.failing:
                self._rest(now + self._backoff(self.failures - _REST_AFTER_FAILURES))
            if failure.retry_after:
                self._rest(now + min(failure.retry_after, _REST_SECONDS[1]))

    def _rest(self, until: float) -> None:
        self.rests_until = max(self.rests_until, until)

    def _backoff(self, doublings: float) -> float:
        first, longest = _REST_SECONDS
        return min(longest, first * 2.0 ** min(10, doublings)) * (0.5 + 0.5 * self.random())

    def _learn(
        self, failure: Failure, need: Need, started_at: float, now: float, wall: float
    ) -> None:
        """A 429: which limit was it, what does it teach, and how long does the account rest?"""
        self.heed(failure.announced, now)
        wait = failure.retry_after or 0.0  # some say "after 0 seconds"
        with self.limits.edit() as meter:
            if _about_number_in_flight(meter, failure, wait):
                meter.slots.refused(int(meter.in_flight), now)
                if not meter.in_flight:
                    meter.rest(now + (wait or self._backoff(0)))
                return  # else the end of another call, not the clock, makes room
            if failure.scope == "day":
                left = self.limits.day_ends().timestamp() - wall if wait < 60.0 else 0.0
                meter.rest(now + max(wait, left))
                return
            pace = _blamed(meter, failure)
            if self.exceeds(need):  # larger than any minute: no lesson
                meter.rest(now + (wait or self._backoff(0)))
                return
            if started_at >= meter.paces[0].mark:  # it was not taken
                meter.paces[0].sent = max(0.0, meter.paces[0].sent - 1.0)
            pace.refused(started_at, wait, now)
            meter.rest(now + (wait or self._backoff(pace.strikes / 2)))

    # ------------------------------------------------------------------ what headers say

    def heed(self, said: Sequence[Announced], now: float) -> None:
        """Believe what an answer's headers say about the limits, unless figures are fixed."""
        for limit in said:
            window, fixed = self.windows.observe(limit, now)
            if limit.remaining == 0 and limit.reset and (fixed or window == _DAY_SECONDS):
                with self.limits.edit() as meter:
                    meter.rest(now + limit.reset)
            if limit.limit and limit.limit >= 1.0 and window and window < _DAY_SECONDS:
                self._believe(limit.unit, window, limit.limit / window, now)

    def _believe(self, unit: Unit, window: float, per_second: float, now: float) -> None:
        if self.announced.get((unit, window)) == per_second:
            return
        self.announced[unit, window] = per_second
        lowest = min(rate for (of, _), rate in self.announced.items() if of == unit)
        with self.limits.edit() as meter:
            pace = meter.paces[UNITS.index(unit)]
            if lowest < pace.limit or (lowest > pace.limit and not self.config.fixed_limits):
                pace.set_limit(lowest, now)

    # ------------------------------------------------------------------ what can be seen

    def allowance(self, now: float, wall: float, usual: Need) -> Allowance:
        """What it may still do by its limits as learnt, in calls that take as much as `usual`."""
        meter, config = self.limits.meter, self.config
        ends = self.limits.day_ends()
        spent = self.limits.spent()  # turns the meter's day
        rests = self.resting_until() - now >= ends.timestamp() - wall - 1.0
        per_day = config.daily_limit or math.inf
        left = per_day - meter.requests_today
        if config.daily_token_limit and usual.tokens:
            per_day = min(per_day, config.daily_token_limit / usual.tokens)
            left = min(left, (config.daily_token_limit - meter.tokens_today) / usual.tokens)
        paces = zip(meter.paces, usual, strict=True)
        return Allowance(
            per_minute=60.0 * min(pace.rate / units for pace, units in paces if units),
            left_today=0.0 if spent or rests else max(0.0, left),
            per_day=per_day,
            day_ends=ends,
        )

    def why(self, now: float) -> str:
        """What keeps it from answering, in a few words of our own; '' where nothing is known.

        Nothing for a rest that another process began: it knows the reason, we do not.
        """
        until = self.resting_until()
        rests = now < until <= self.fault_until + 1.0
        if self.out or rests or self.failing or (self.failures and not self.ok):
            return self.fault
        never = self.in_flight and not (self.ok or self.failed or self.rate_limited)
        if never and (silent := now - self.first_at) >= _SILENT_SECONDS:
            return f"no answer for {silent:.0f} s"
        return ""

    def trouble(self, now: float) -> str:
        """For a progress bar: that it is out, rests or does not answer, and why; '' if it is well.

        A rest of less than a second is not worth a word.
        """
        name, why = self.config.name, self.why(now)
        because = f": {why}" if why else ""
        if self.out:
            return f"{name} is out{because}"
        if (rest := self.resting_until() - now) >= 1:
            return f"{name} rests {rest:.0f} s{because}"
        return f"{name}{because}" if why else ""

    def line(self, now: float, wall: float) -> str:
        """For a progress bar: today's calls and the pace, or why there are none."""
        name, meter = self.config.name, self.limits.meter
        if self.out:
            return self.trouble(now)
        rest = self.resting_until() - now
        if (spent := self.limits.spent()) or rest >= _LONG_REST_SECONDS:
            until = self.usable_again(now, wall).astimezone(UTC)
            day = f"{until:%Y-%m-%d} " if until.timestamp() - wall > _DAY_SECONDS else ""
            why = "" if spent else self.why(now)
            state = f"{'spent' if spent else 'rests'} until {day}{until:%H:%M} UTC"
            return f"{name} {state}: {why}" if why else f"{name} {state}"
        if trouble := self.trouble(now):
            return trouble
        most = f"/{self.config.daily_limit}" if self.config.daily_limit else ""
        pace = meter.paces[0]
        rate = 60.0 * (pace.limit if pace.rate >= pace.full else pace.rate)
        told = f", {round(rate, 1):g}/min" if rate < math.inf else ""
        return f"{name} {meter.requests_today:.0f}{most} today{told}"

    def seen(self, now: float) -> dict[str, Any]:
        """Counts, limits as learnt, state; no key, no address."""
        meter = self.limits.meter
        slots = meter.slots.now
        return {
            "name": self.config.name,
            "model": self.config.model,
            "started": self.started,
            "ok": self.ok,
            "rate_limited": self.rate_limited,
            "retried": self.retried,
            "failed": self.failed,
            "in_flight": self.in_flight,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "spend": self.spend,
            "requests_today": round(meter.requests_today),
            "tokens_today": round(meter.tokens_today),
            "per_minute": {
                unit: round(pace.rate * 60.0, 3) if pace.rate < math.inf else None
                for unit, pace in zip(UNITS, meter.paces, strict=True)
            },
            "at_once": round(slots, 1) if slots < math.inf else None,
            "rests": round(max(0.0, self.resting_until() - now), 3),
            "spent_today": self.limits.spent(),
            "failing": self.failing,
            "out": self.out,
            "why": self.why(now),
        }


def _about_number_in_flight(meter: Meter, failure: Failure, wait: float) -> bool:
    """Whether too many calls at once were refused, rather than too many in a time.

    Where the server does not say: if no rate is known, others are in flight, the wait is short,
    and never so many as now went well.
    """
    if failure.scope is not None:
        return failure.scope == "in_flight"
    rate_known = any(pace.rate < math.inf for pace in meter.paces)
    others = int(meter.in_flight)
    short = wait <= _LEARNT_IN_FLIGHT_SECONDS
    return not rate_known and others > 0 and short and meter.slots.explains(others)


def _blamed(meter: Meter, failure: Failure) -> Pace:
    """The limit that a refusal was about: as the provider says, else the one we use most of."""
    if failure.scope in UNITS:
        named = meter.paces[UNITS.index(failure.scope)]
        if named.rate < math.inf or failure.scope == "requests":
            return named
    return max(meter.paces, key=lambda pace: (pace.rate < math.inf, pace.arrival))
