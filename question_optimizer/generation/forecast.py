"""When the work ends, with limits per minute and per day; and waiting until it may go on.

`finishes_at` is arithmetic: between the points at which an account's day begins, or is spent, the
calls made grow evenly, so that days and weeks are added up without stepping through them.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo

CLOCKS_APART_SECONDS = 60.0  # a provider's midnight may come later than ours
_DAY_SECONDS = 86400.0
_FARTHEST_DAYS = 36_500  # work that takes longer has no date
_ROUNDING = 1e-3  # calls; a time in seconds since 1970 has seven digits after the point
_SLICE_SECONDS = 30.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Allowance:
    """What an account may do, counted in calls; inf where no limit is known.

    `day_ends` is aware, and in the account's own time zone: its days follow that zone's clock.
    """

    per_minute: float
    left_today: float
    per_day: float
    day_ends: datetime


def finishes_at(calls: float, accounts: Sequence[Allowance], now: datetime) -> datetime | None:
    """When so many calls are made, in `now`'s time zone, if every account works all the time.

    Each works at its rate until its day is spent, and again from its own day's end on. None where
    no limit holds the calls up, or where they would never be made (within a hundred years).
    """
    if calls <= 0:
        return now
    start = now.timestamp()

    def made(at: float) -> float:
        return sum(_made_by(account, start, at) for account in accounts)

    enough = calls - _ROUNDING
    if made(start) >= enough:
        return None
    days = range(1, _FARTHEST_DAYS + 1)
    place = bisect_left(days, enough, key=lambda day: made(start + day * _DAY_SECONDS))
    if place == len(days):
        return None
    low, high = start + place * _DAY_SECONDS, start + (place + 1) * _DAY_SECONDS
    points = {at for account in accounts for at in _turns(account, start, low, high)}
    turns = sorted({low, high, *points})
    place = bisect_left(turns, enough, key=made)
    before, after = turns[place - 1], turns[place]
    middle = (before + after) / 2
    done = made(before)
    gained = made(middle) - done
    if gained > 0:  # else it jumps at `after`
        after = min(after, before + (calls - done) * (middle - before) / gained)
    return datetime.fromtimestamp(after, now.tzinfo)


def _made_by(account: Allowance, start: float, at: float) -> float:
    """Calls that one account has made from `start` until `at`, both in seconds since 1970."""
    ends = account.day_ends.timestamp()
    today = _most(account, account.left_today, max(0.0, min(at, ends) - start))
    if at < ends:
        return today
    days = _days_after(account, at)
    begins = _day_begins(account, days)
    past = _most(account, days * account.per_day, begins - ends) if days else 0.0
    return today + past + _most(account, account.per_day, at - begins)


def _most(account: Allowance, allowed: float, seconds: float) -> float:
    if account.per_minute == math.inf:
        return allowed
    return min(allowed, account.per_minute * seconds / 60.0)


def _days_after(account: Allowance, at: float) -> int:
    """How many whole days of the account have passed since `day_ends`, by its own clock."""
    local = datetime.fromtimestamp(at, account.day_ends.tzinfo).replace(tzinfo=None)
    return (local - account.day_ends.replace(tzinfo=None)) // timedelta(days=1)


def _day_begins(account: Allowance, days: int) -> float:
    return (account.day_ends + timedelta(days=days)).timestamp()  # a day may have 23 or 25 hours


def _turns(account: Allowance, start: float, low: float, high: float) -> Iterator[float]:
    """The points between `low` and `high` at which the account begins a day, or has spent it."""
    days = range(max(0, _days_after(account, low)), _days_after(account, high) + 1)
    begun = [(start, account.left_today)]
    begun += [(_day_begins(account, day), account.per_day) for day in days]
    for begins, allowed in begun:
        spent = begins + 60.0 * allowed / account.per_minute if account.per_minute else math.inf
        yield from (at for at in (begins, spent) if low < at < high)


# ---------------------------------------------------------------------- what was seen so far


def observed(done: float, seconds: float) -> float:
    """Calls a minute, by so many made in so many seconds of work; inf where that tells nothing."""
    return done / seconds * 60.0 if done > 0 and seconds > 0 else math.inf


def at_rate(accounts: Sequence[Allowance], per_minute: float) -> list[Allowance]:
    """The accounts, slowed down so that those with calls left today make no more than `per_minute`
    together: answers take time, and a server may be slower than its limits."""
    if per_minute == math.inf:
        return list(accounts)
    capped = [min(account.per_minute, per_minute) for account in accounts]
    working = math.fsum(
        rate for rate, account in zip(capped, accounts, strict=True) if account.left_today > 0
    )
    slower = min(1.0, per_minute / working) if working else 1.0
    return [
        replace(account, per_minute=rate * slower)
        for rate, account in zip(capped, accounts, strict=True)
    ]


def expected_at(
    calls: float, accounts: Sequence[Allowance], now: datetime, *, done: float, seconds: float
) -> datetime | None:
    """`finishes_at` by the limits or by the rate of the `done` calls, whichever is slower.

    `seconds` are those of work: a night slept through is not among them. None where neither tells.
    """
    return finishes_at(calls, at_rate(accounts, observed(done, seconds)), now)


def told(when: datetime | None, now: datetime, zone: tzinfo | None = None) -> str:
    """A time in words, as a person in `zone` (the machine's own) reads it; '' for None."""
    if when is None:
        return ""
    when, now = when.astimezone(zone), now.astimezone(zone)
    days = (when.date() - now.date()).days
    clock = f"{when:%H:%M} {_zone_name(when)}"
    if days <= 0:
        return f"finishes at {when:%H:%M}"
    if days == 1:
        return f"finishes tomorrow {clock}"
    if days < 7:
        return f"finishes {when:%A} {clock} at present limits"
    year = f" {when.year}" if when.year != now.year else ""
    return f"finishes {when.day} {when:%B}{year} at present limits"


def _zone_name(when: datetime) -> str:
    """CET, +03; Windows has whole sentences instead."""
    name = when.tzname() or ""
    return name if name and " " not in name else f"UTC{when:%z}"


# ---------------------------------------------------------------------- waiting


def _seconds_until(moment: datetime, wall: Callable[[], float]) -> float:
    """Until a minute after `moment`, when the provider's day has begun as well."""
    return moment.timestamp() + CLOCKS_APART_SECONDS - wall()


async def pause_until(
    moment: datetime,
    *,
    wall: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    stopped: Callable[[], bool] | None = None,
) -> bool:
    """Wait until `moment` (aware) and a minute, by the clock `wall` in seconds since 1970.

    In slices, so that neither a suspended machine nor a clock that is set makes it late. False as
    soon as `stopped` says so, which is asked once a second.
    """
    longest = _SLICE_SECONDS if stopped is None else _LOOK_SECONDS
    while (left := _seconds_until(moment, wall)) > 0:
        if stopped is not None and stopped():
            return False
        await sleep(min(left, longest))
    return True
