"""The limits of one account: when it may be used, what was used, what refusals teach.

Plain numbers and arithmetic: every time is an argument, nothing waits, nothing is read or written.
A `Pace` keeps one limit per minute, `Slots` the number of calls at once, a `Meter` all that belongs
to one account. A meter is a flat row of floats, so that it can lie in memory that processes share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Literal, NamedTuple

Unit = Literal["requests", "tokens", "input_tokens", "output_tokens"]
UNITS: tuple[Unit, ...] = ("requests", "tokens", "input_tokens", "output_tokens")
Random = Callable[[], float]  # uniform in [0, 1)

WINDOW_SECONDS = 60.0
# A limit's worth of calls is spread over a little more than the provider's window, and a late call
# is made up for only if it is a little late: then no window of theirs, fixed or sliding, wherever
# it begins, can hold one call too many. Costs 0.17 % of the limit.
MARGIN_SECONDS = 0.1
TOLERANCE_SECONDS = 0.05

# How refusals are read; set by measuring the provider models of tests/test_provider_models.py.
_CHAIN_SECONDS = 5.0  # a refusal so soon after the last rest belongs to the same story
_STRIKES = 2  # refusals of one story, from which on the rate is to blame
_FEWEST = 8  # units since the last lesson, below which what the server took says nothing
_DEEPEST_CUT, _EDGE_CUT = 0.85, 0.99
_EDGE_SECONDS = 120.0  # single refusals rarer than this are let pass
_STEP, _NEAR_STEP = 1.01, 1.005
_STEP_SECONDS = 5.0
_PROBE_SECONDS = (30.0, 600.0)  # between steps near a rate that was refused before
_NEAR = 0.985
_LONGEST_SECONDS = 400 * 86400.0  # that a rest may last
_FIRST_SLOTS = 8.0


class Need(NamedTuple):
    """What one call takes, in the order of UNITS. Tokens are estimates until the answer comes."""

    requests: float = 1.0
    tokens: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


class Ended(NamedTuple):
    """A call that has ended."""

    need: Need  # what was taken for it
    used: Need
    tokens: float  # by the day's count
    started_at: float
    day: float  # on which it began
    in_flight: bool = True  # False where its slot was freed already
    unsent: bool = False  # True where it was never made


@dataclass(slots=True)
class Pace:
    """One limit as a GCRA limiter, with what the provider's refusals taught about it.

    The generic cell rate algorithm (ITU-T I.371) keeps a single number, the theoretical arrival
    time of the next unit. Units are evenly paced: a burst of a whole minute's worth is what trips
    providers that check every second. A call of many units runs into debt and delays the next.

    `limit` and `rate` are units a second, inf where none is known.
    """

    limit: float = math.inf  # configured, or announced by the server
    rate: float = math.inf  # in use: the limit less its margin, or less than that
    tolerance: float = TOLERANCE_SECONDS
    arrival: float = -math.inf
    mark: float = -math.inf  # the last refusal that taught something
    sent: float = 0.0  # units since then
    tripped: float = math.inf  # the lowest rate that was refused
    moved: float = -math.inf  # when the rate last moved
    gap: float = _PROBE_SECONDS[0]
    strikes: float = 0.0  # refusals that followed one another
    began: float = -math.inf  # of the present busy time: what was taken before is paid off

    @property
    def full(self) -> float:
        """The highest rate that the limit permits."""
        return self.limit * WINDOW_SECONDS / (WINDOW_SECONDS + MARGIN_SECONDS)

    def set_limit(self, per_second: float, now: float) -> None:
        """A new limit is believed at once; what was learnt about the old one is forgotten."""
        self.limit = per_second
        self._set_rate(self.full, now)
        self.tripped, self.strikes, self.gap = math.inf, 0.0, _PROBE_SECONDS[0]

    def ready_at(self, now: float) -> float:
        """The earliest time for another call."""
        return max(now, self.arrival - self.tolerance)

    def pause(self, until: float) -> None:
        """After a rest begin evenly, without stored-up credit."""
        if self.rate < math.inf:
            self.arrival = max(self.arrival, until)

    def refused(self, sent_at: float, wait: float, now: float) -> bool:
        """Learn from a refusal of a call sent at `sent_at`; False where it tells nothing new.

        Single refusals say little about the rate: we stood on the edge of a window, and beginning
        anew after the rest moves us off it. Where they follow one another the rate is too high:
        between two of them the server took all it allows, so what it took is its rate, unless the
        rest was longer than it need have been; hence a bound on each cut.
        """
        if sent_at < self.mark:  # sent before the last lesson took effect
            return False
        since = now - self.mark
        chained = since < 1.25 * wait + _CHAIN_SECONDS
        self.strikes = self.strikes + 1 if chained else 0.0
        measured = self.sent >= _FEWEST and 0.0 < since < math.inf
        taken = self.sent / since if measured else math.inf
        if self.rate == math.inf:
            if chained and taken < math.inf:  # else there may have been nothing to do
                self._cut(taken, now)
        elif self.strikes >= _STRIKES:
            self._cut(max(_DEEPEST_CUT * self.rate, min(taken, _EDGE_CUT * self.rate)), now)
        elif self.tolerance > 0.0:
            self.tolerance = 0.0
        elif since < _EDGE_SECONDS:
            self._cut(_EDGE_CUT * self.rate, now)
        self.mark, self.sent, self.moved = now, 0.0, now
        return True

    def _cut(self, rate: float, now: float) -> None:
        near = self.rate >= 0.97 * self.tripped
        self.gap = min(_PROBE_SECONDS[1], self.gap * 2) if near else _PROBE_SECONDS[0]
        self.tripped = self.rate
        lowest = 0.01 * self.full if self.full < math.inf else 1.0 / 3600.0
        self._set_rate(max(rate, lowest), now)

    def grow(self, now: float, random: Random) -> None:
        """After an accepted call: back towards the limit, carefully where it was refused before."""
        if self.rate >= self.full:
            return
        if self.rate > self.tripped / _NEAR:  # what was refused then is accepted now
            self.tripped, self.gap = math.inf, _PROBE_SECONDS[0]
        near = self.rate >= _NEAR * self.tripped
        gap = self.gap * (0.75 + 0.5 * random()) if near else _STEP_SECONDS
        if now - self.moved > gap:
            self._set_rate(min(self.full, self.rate * (_NEAR_STEP if near else _STEP)), now)
            self.moved = now

    def _set_rate(self, rate: float, now: float) -> None:
        if now < self.arrival and self.rate < math.inf:  # what is owed is owed in units
            self.arrival = now + (self.arrival - now) * self.rate / rate
        self.rate = rate


@dataclass(slots=True)
class Slots:
    """How many calls at once: as configured, or learnt by additive increase and by refusals."""

    most: float = math.inf  # configured; inf where unknown
    now: float = _FIRST_SLOTS
    tripped: float = math.inf
    moved: float = -math.inf
    gap: float = _PROBE_SECONDS[0]
    accepted: float = 0.0  # the most at once that went well

    def explains(self, in_flight: int) -> bool:
        """Whether a refusal beside so many others can be about their number: not if more went
        well before."""
        return in_flight + 2 > 0.75 * self.accepted

    def configure(self, most: int | None) -> None:
        """Start from the configured number, or look for it where none is."""
        self.most = math.inf if most is None else float(most)
        self.now = min(self.most, _FIRST_SLOTS) if most is None else self.most
        self.tripped, self.gap = math.inf, _PROBE_SECONDS[0]

    def refused(self, in_flight: int, now: float) -> None:
        """One was too many; those still in flight were accepted."""
        self.now = max(1.0, float(in_flight))
        self.tripped = in_flight + 1.0
        self.gap = min(_PROBE_SECONDS[1], self.gap * 1.5)
        self.moved = now

    def grow(self, in_flight: int, now: float) -> None:
        """After an accepted call: doubling per round at first, later one more now and then."""
        self.accepted = max(self.accepted, in_flight + 1.0)
        if self.now >= self.most or in_flight + 1 < 0.8 * self.now:
            return
        if self.now + 1 < self.tripped or now - self.moved > self.gap:
            step = 1.0 if self.tripped == math.inf else 1.0 / self.now
            self.now = min(self.most, self.now + step)


@dataclass(slots=True)
class Meter:
    """Everything that is counted about one account."""

    paces: list[Pace] = field(default_factory=lambda: [Pace() for _ in UNITS])
    slots: Slots = field(default_factory=Slots)
    rests_until: float = -math.inf
    episode: float = 0.0  # goes up at every refusal: reservations made before are void
    day: float = 0.0  # the account's own day, as a proleptic ordinal
    requests_today: float = 0.0
    tokens_today: float = 0.0
    day_before: float = 0.0  # the last day on which the account was used, and its counts
    requests_before: float = 0.0
    tokens_before: float = 0.0
    settings: float = 0.0  # a fingerprint of the configured limits
    in_flight: float = 0.0

    def ready_at(self, now: float) -> float:
        """The earliest time for another call, by rests and paces."""
        at = now if now > self.rests_until else self.rests_until
        for pace in self.paces:
            earliest = pace.arrival - pace.tolerance
            if earliest > at:
                at = earliest
        return at

    @property
    def taught(self) -> bool:
        """Whether anything is in use that growth could raise."""
        return self.episode > 0 or self.slots.now < self.slots.most

    def take(self, need: Need, at: float) -> None:
        for pace, units in zip(self.paces, need):  # noqa: B905 - strict costs, and here it counts
            if units:
                pace.sent += units
                if pace.rate < math.inf:
                    start = pace.arrival
                    if at > start:
                        start = pace.began = at
                    pace.arrival = start + units / pace.rate

    def adjust(self, need: Need, used: Need, taken_at: float) -> None:
        """Replace what was taken at `taken_at` by what was used.

        What time has paid off is not given back, and a lesson is about what was sent after it.
        """
        for pace, taken, really in zip(self.paces, need, used):  # noqa: B905
            if really != taken:
                more = really - taken
                if taken_at >= pace.mark:
                    pace.sent += more
                if pace.rate < math.inf and (more > 0 or taken_at >= pace.began):
                    pace.arrival += more / pace.rate

    def start(self, need: Need) -> None:
        """A call begins."""
        self.in_flight += 1
        self.requests_today += 1
        self.tokens_today += need.tokens

    def end(self, call: Ended) -> None:
        """A call ends."""
        need, used, tokens, started_at, day, in_flight, unsent = call
        if in_flight:
            self.in_flight -= 1
        if used != need:
            self.adjust(need, used, started_at)
        if day == self.day:  # what began yesterday is yesterday's
            left = self.tokens_today + tokens - need[1]
            self.tokens_today = left if left > 0.0 else 0.0
            if unsent:
                self.requests_today -= 1

    def turn_day(self, day: float) -> None:
        if day > self.day:
            self.day_before = self.day
            self.requests_before, self.tokens_before = self.requests_today, self.tokens_today
            self.day, self.requests_today, self.tokens_today = day, 0.0, 0.0

    def rest(self, until: float) -> None:
        """No call before `until`; afterwards paced, reservations for an earlier time void."""
        self.rests_until = max(self.rests_until, until)
        self.episode += 1
        for pace in self.paces:
            pace.pause(self.rests_until)

    def is_sane(self, now: float) -> bool:
        """Whether these can be figures of ours, and not those of a damaged file."""
        if any(math.isnan(value) for value in self.row()) or self.slots.now < 1.0:
            return False
        latest = max(self.rests_until, *(pace.arrival for pace in self.paces))
        slowest = min(pace.rate for pace in self.paces)
        counts = (self.requests_today, self.tokens_today)
        return latest < now + _LONGEST_SECONDS and slowest > 0.0 and 0.0 <= min(counts) < 1e15

    def forget_times(self) -> None:
        """Points in time mean nothing any more: the machine was started anew."""
        self.rests_until = self.slots.moved = -math.inf
        for pace in self.paces:
            pace.arrival = pace.mark = pace.moved = pace.began = -math.inf
            pace.sent = 0.0

    def shift_times(self, seconds: float) -> None:
        """The same points in time by a clock that is `seconds` ahead."""
        self.rests_until += seconds
        self.slots.moved += seconds
        for pace in self.paces:
            pace.arrival += seconds
            pace.mark += seconds
            pace.moved += seconds
            pace.began += seconds

    def soften(self) -> None:
        """A new run may try again, step by step, what was refused in an earlier one."""
        self.slots.tripped = max(self.slots.tripped, self.slots.now + 2.0)
        self.slots.gap = _PROBE_SECONDS[0]
        for pace in self.paces:
            pace.tripped, pace.strikes, pace.gap = math.inf, 0.0, _PROBE_SECONDS[0]
            pace.tolerance = TOLERANCE_SECONDS

    # ------------------------------------------------------------------ as a row of floats

    def row(self) -> list[float]:
        values: list[float] = []
        for pace in self.paces:
            values += _pace_values(pace)
        values += _slots_values(self.slots)
        values += _meter_values(self)
        return values

    def read_row(self, row: Sequence[float]) -> None:
        values = iter(row)
        for part, names in (
            *((pace, _PACE_FIELDS) for pace in self.paces),
            (self.slots, _SLOTS_FIELDS),
            (self, _METER_FIELDS),
        ):
            for name, value in zip(names, values):  # noqa: B905 - the row goes on
                setattr(part, name, value)

    @staticmethod
    def position(name: str) -> int:
        """Where in a row a field of the meter itself stands, or the number of "slots"."""
        if name == "slots":
            return len(UNITS) * len(_PACE_FIELDS) + _SLOTS_FIELDS.index("now")
        return ROW_LENGTH - len(_METER_FIELDS) + _METER_FIELDS.index(name)


_PACE_FIELDS = tuple(entry.name for entry in fields(Pace))
_SLOTS_FIELDS = tuple(entry.name for entry in fields(Slots))
_METER_FIELDS = tuple(
    entry.name for entry in fields(Meter) if entry.name not in ("paces", "slots", "in_flight")
)
_pace_values = attrgetter(*_PACE_FIELDS)
_slots_values = attrgetter(*_SLOTS_FIELDS)
_meter_values = attrgetter(*_METER_FIELDS)
ROW_LENGTH = len(UNITS) * len(_PACE_FIELDS) + len(_SLOTS_FIELDS) + len(_METER_FIELDS)
