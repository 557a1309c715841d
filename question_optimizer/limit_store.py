"""One account's limits and what its calls have taken of them, kept in this process's memory.

`limit_file` shares them among the processes of one machine, `limit_redis` among machines; both keep
the interface that stands here.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from question_optimizer.errors import StopRun
from question_optimizer.limits import Ended, Meter, Need
from question_optimizer.providers import LLMClientConfig

Wall = Callable[[], float]


class Wish(Protocol):
    """A call that somebody wants to make."""

    def need(self, config: LLMClientConfig) -> Need: ...


class Limits:
    """One account's limits, and what its calls have taken of them."""

    def __init__(self, config: LLMClientConfig, wall: Wall):
        self.config = config
        self.meter = Meter()
        self._calendar = _Calendar(config.reset_zone, wall)
        self.daily = bool(config.daily_limit or config.daily_token_limit)
        configure(self.meter, config, -math.inf)

    @property
    def full(self) -> bool:
        """Whether only the end of a call can make room for another."""
        meter = self.meter
        return meter.in_flight + 1 > meter.slots.now

    def ready_at(self, wish: Wish, now: float) -> float:
        """The earliest time for a call, inf where only the end of another can help."""
        meter = self.meter
        if meter.in_flight + 1 > meter.slots.now or self._tokens_all_reserved(meter):
            return math.inf
        return meter.ready_at(now)

    def likely_at(self, now: float) -> float:
        """As `ready_at`, but nothing is reserved, so that it may be later in the end."""
        return self.meter.ready_at(now)

    def take(self, need: Need, now: float) -> bool:
        """Count a call that starts now; False where the day has none left."""
        meter = self.meter
        meter.turn_day(self._calendar.today())
        if self.daily and (self.spent() or self._day_of_tokens_full(meter)):
            return False
        meter.take(need, now)
        meter.start(need)
        return True

    def end(self, call: Ended) -> Meter:
        """A call has ended."""
        self.meter.end(call)
        return self.meter

    def spent(self, meter: Meter | None = None) -> bool:
        """Whether the account's day allows no further call."""
        if not self.daily:
            return False
        meter = meter or self.meter
        meter.turn_day(self._calendar.today())
        requests = self.config.daily_limit or math.inf
        if meter.requests_today + 1 > requests:
            return True
        return self._day_of_tokens_full(meter) and meter.in_flight < 1

    def _day_of_tokens_full(self, meter: Meter) -> bool:
        return meter.tokens_today >= (self.config.daily_token_limit or math.inf)

    def _tokens_all_reserved(self, meter: Meter) -> bool:
        """Whether calls in flight hold what is left of the day; they may give some back."""
        return self.daily and meter.in_flight >= 1 and self._day_of_tokens_full(meter)

    def seconds_left(self) -> float:
        """Until the account's day ends."""
        return self._calendar.seconds_left()

    def day_ends(self) -> datetime:
        """When the account's day ends, in its own time zone."""
        return self._calendar.ends()

    def today(self) -> float:
        """The account's day as an ordinal."""
        return self._calendar.today()

    @property
    def day(self) -> str:
        """The account's day as an ISO date."""
        return date.fromordinal(int(self._calendar.today())).isoformat()

    def edit(self) -> contextlib.AbstractContextManager[Meter]:
        """The meter, for reading and changing in one step."""
        return _Open(self.meter)

    def relax(self) -> None:
        """Nobody waits any more: give back what was reserved ahead."""

    def forget_calls(self) -> None:
        """The calls in flight belonged to a loop that is gone."""
        with self.edit() as meter:
            meter.in_flight = 0.0


class _Open:
    """`contextlib.nullcontext`, at a third of its price."""

    __slots__ = ("_meter",)

    def __init__(self, meter: Meter):
        self._meter = meter

    def __enter__(self) -> Meter:
        return self._meter

    def __exit__(self, *exc: object) -> None:
        return None


def configure(meter: Meter, config: LLMClientConfig, now: float) -> None:
    """Set a meter's limits to the configured ones; keep what was learnt if they are the same."""
    per_minute = (
        config.rpm_limit,
        config.tpm_limit,
        config.input_tpm_limit,
        config.output_tpm_limit,
    )
    fingerprint = _fingerprint(per_minute, config.concurrency)
    if meter.settings == fingerprint:
        return
    meter.settings = fingerprint
    for pace, limit in zip(meter.paces, per_minute, strict=True):
        pace.set_limit(limit / 60.0 if limit else math.inf, now)
    meter.slots.configure(config.concurrency)


def _fingerprint(*settings: object) -> float:
    digest = hashlib.sha256(repr(settings).encode()).digest()
    return float(int.from_bytes(digest[:6], "big") + 1)


class _Calendar:
    """The days of a time zone, by a wall clock in seconds since 1970."""

    def __init__(self, zone: str, wall: Wall):
        self._zone = UTC if zone == "UTC" else ZoneInfo(zone)
        self._wall = wall
        self._ends = -math.inf
        self._today = 0.0

    def today(self) -> float:
        """The day as an ordinal (`date.fromordinal`)."""
        now = self._wall()
        if not self._ends - 90_000.0 < now < self._ends:  # the clock may have been set back
            local = datetime.fromtimestamp(now, self._zone)
            self._today = float(local.toordinal())
            self._ends = self._midnight(local).timestamp()
        return self._today

    def seconds_left(self) -> float:
        self.today()
        return max(0.0, self._ends - self._wall())

    def ends(self) -> datetime:
        return self._midnight(datetime.fromtimestamp(self._wall(), self._zone))

    def _midnight(self, local: datetime) -> datetime:
        following = local.date() + timedelta(days=1)
        return datetime(following.year, following.month, following.day, tzinfo=self._zone)


class LimitStore:
    """Limits in this process's memory."""

    shared = False

    def __init__(self, wall: Wall = time.time):
        self._wall = wall
        self.problem: StopRun | None = None  # why no call may start, found out in the background

    def open(
        self, configs: Sequence[LLMClientConfig], now: float, wake: Callable[[], None]
    ) -> list[Limits]:
        """The limits of these accounts, in their order; `wake` is called when they may be looked
        at again sooner than they said."""
        return [Limits(config, self._wall) for config in configs]

    def export_if_due(self) -> None:
        """Write what people read, at most once a second, without making the caller wait."""

    def flush(self) -> None:
        """Write what people read, now."""

    def close(self) -> None:
        """Give everything back; no call may follow."""
