"""When the work ends: with limits per minute and per day, over days of 23 to 25 hours, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from question_optimizer.generation.forecast import (
    Allowance,
    at_rate,
    expected_at,
    finishes_at,
    observed,
    told,
)

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)  # a Saturday
MIDNIGHT = datetime(2026, 3, 15, tzinfo=UTC)
PACIFIC = datetime(2026, 3, 15, tzinfo=ZoneInfo("America/Los_Angeles"))  # 07:00 UTC
BERLIN = ZoneInfo("Europe/Berlin")
SPENT = Allowance(10, 0, 20, MIDNIGHT)
TEN = Allowance(10, math.inf, math.inf, MIDNIGHT)  # a minute, and no limit a day
NO_LIMIT = Allowance(math.inf, math.inf, math.inf, MIDNIGHT)


def after(**time: float) -> datetime:
    return NOON + timedelta(**time)


@pytest.mark.parametrize(
    ("calls", "accounts", "when"),
    [
        (0, [Allowance(10, 5, 5, MIDNIGHT)], NOON),
        (300, [TEN], after(minutes=30)),
        (300, [Allowance(10, 300, 300, MIDNIGHT)], after(minutes=30)),
        (301, [Allowance(10, 300, 300, MIDNIGHT)], MIDNIGHT + timedelta(seconds=6)),
        (1000, [Allowance(10, 300, 350, MIDNIGHT)], after(days=1, hours=12, minutes=35)),
        # two accounts: together until one is spent, the other alone, both again
        (500, [Allowance(10, 100, 100, MIDNIGHT), TEN], after(minutes=40)),
        (25, [SPENT, replace(SPENT, day_ends=PACIFIC)], after(hours=19, seconds=30)),
        (40, [SPENT, Allowance(10, 0, 99, PACIFIC)], after(hours=19, minutes=2)),
        # no pace is known: the day's worth is there as the day begins
        (6, [Allowance(math.inf, 5, 5, MIDNIGHT)], MIDNIGHT),
        (11, [Allowance(math.inf, 5, 5, MIDNIGHT)], MIDNIGHT + timedelta(days=1)),
        (3, [Allowance(math.inf, 0, math.inf, MIDNIGHT)], MIDNIGHT),
        # a million calls, a thousand a day and account
        (10**6, [Allowance(30, 1000, 1000, MIDNIGHT)] * 2, after(days=498.5, minutes=100 / 3)),
    ],
)
def test_the_end_is_where_limits_per_minute_and_per_day_put_it(
    calls: int, accounts: list[Allowance], when: datetime
) -> None:
    found = finishes_at(calls, accounts, NOON)
    assert found is not None
    assert abs(found - when) < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    "accounts",
    [
        [NO_LIMIT],
        [Allowance(1, 1, 1, MIDNIGHT), NO_LIMIT],
        [Allowance(math.inf, 100, 100, MIDNIGHT)],  # holds up nothing today
        [],
        [Allowance(0.0, 10, 10, MIDNIGHT)],
        [Allowance(5.0, 0, 0, MIDNIGHT)],
        [Allowance(5.0, 0, 0.001, MIDNIGHT)],  # in some 270 years
    ],
)
def test_where_no_limit_tells_or_no_end_comes_there_is_no_date(accounts: list[Allowance]) -> None:
    assert finishes_at(100, accounts, NOON) is None


def test_the_days_of_an_account_follow_its_own_clock() -> None:
    """In Berlin the day of 29 March 2026 has 23 hours."""
    account = Allowance(math.inf, 1, 1, datetime(2026, 3, 28, tzinfo=BERLIN))
    starts = [finishes_at(n, [account], datetime(2026, 3, 27, 12, tzinfo=UTC)) for n in (2, 3, 4)]
    assert starts == [
        datetime(2026, 3, 27, 23, tzinfo=UTC),
        datetime(2026, 3, 28, 23, tzinfo=UTC),
        datetime(2026, 3, 29, 22, tzinfo=UTC),
    ]


def made(accounts: Sequence[Allowance], until: float) -> float:
    """The same, day by day, as a person would count."""
    total = 0.0
    for account in accounts:
        begins, allowed, day = NOON.timestamp(), account.left_today, 0
        while begins < until:
            ends = (account.day_ends + timedelta(days=day)).timestamp()
            total += min(allowed, account.per_minute * (min(until, ends) - begins) / 60)
            begins, allowed, day = ends, account.per_day, day + 1
    return total


allowances = st.builds(
    Allowance,
    per_minute=st.floats(0.1, 100),
    left_today=st.one_of(st.just(math.inf), st.integers(0, 500)),
    per_day=st.one_of(st.just(math.inf), st.integers(50, 1000)),
    day_ends=st.sampled_from([MIDNIGHT, PACIFIC, datetime(2026, 3, 15, tzinfo=BERLIN)]),
)


@settings(max_examples=150, deadline=None)
@given(accounts=st.lists(allowances, min_size=1, max_size=4), calls=st.integers(1, 20_000))
def test_at_the_end_all_calls_are_made_and_not_before(
    accounts: list[Allowance], calls: int
) -> None:
    end = finishes_at(calls, accounts, NOON)
    assert end is not None
    assert made(accounts, end.timestamp() + 0.01) >= calls - 1e-6
    assert made(accounts, end.timestamp() - 0.01) < calls


@settings(max_examples=50, deadline=None)
@given(
    accounts=st.lists(allowances, min_size=1, max_size=3),
    calls=st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
)
def test_more_calls_never_end_earlier(accounts: list[Allowance], calls: tuple[int, int]) -> None:
    few, many = (finishes_at(n, accounts, NOON) for n in sorted(calls))
    assert few is not None and many is not None
    assert few <= many


# ---------------------------------------------------------------------- the rate seen so far


def test_the_rate_seen_is_calls_a_minute_and_nothing_tells_nothing() -> None:
    assert observed(30, 90) == 20
    assert observed(0, 90) == observed(5, 0) == math.inf


def test_without_known_limits_the_end_is_told_by_the_rate_so_far() -> None:
    assert expected_at(600, [NO_LIMIT], NOON, done=20, seconds=60) == after(minutes=30)
    assert expected_at(600, [NO_LIMIT] * 2, NOON, done=20, seconds=60) == after(minutes=30)
    assert expected_at(600, [NO_LIMIT], NOON, done=0, seconds=60) is None


def test_of_limits_and_the_rate_so_far_the_slower_one_tells() -> None:
    assert expected_at(600, [TEN], NOON, done=20, seconds=60) == after(hours=1)
    assert expected_at(600, [TEN], NOON, done=5, seconds=60) == after(hours=2)
    daily = [Allowance(math.inf, 100, 100, MIDNIGHT)]  # 100 today, 100 from midnight on
    assert expected_at(200, daily, NOON, done=10, seconds=60) == MIDNIGHT + timedelta(minutes=10)
    assert expected_at(100, daily, NOON, done=10, seconds=60) == after(minutes=10)


def test_the_rate_so_far_is_that_of_the_accounts_that_could_work() -> None:
    spent, working = Allowance(60, 0, 500, MIDNIGHT), Allowance(60, 500, 500, MIDNIGHT)
    slowed = at_rate([spent, working], 30)
    assert [account.per_minute for account in slowed] == [30, 30]
    assert [a.per_minute for a in at_rate([working, working], 30)] == [15, 15]
    assert at_rate([spent], math.inf) == [spent]
    assert [a.per_minute for a in at_rate([spent], 30)] == [30]


# ---------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (after(minutes=125), "finishes at 14:05"),
        (after(minutes=-5), "finishes at 11:55"),
        (after(hours=12), "finishes tomorrow 00:00 UTC"),
        (after(hours=21, minutes=10), "finishes tomorrow 09:10 UTC"),
        (after(days=5, hours=2), "finishes Thursday 14:00 UTC at present limits"),
        (after(days=7), "finishes 21 March at present limits"),
        (datetime(2026, 12, 12, tzinfo=UTC), "finishes 12 December at present limits"),
        (datetime(2027, 1, 2, tzinfo=UTC), "finishes 2 January 2027 at present limits"),
        (None, ""),
    ],
)
def test_the_end_is_told_as_precisely_as_a_person_needs_it(
    when: datetime | None, words: str
) -> None:
    assert told(when, NOON, UTC) == words


def test_the_end_is_told_by_the_clock_that_will_hang_there_then() -> None:
    late = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)  # 00:30 in Berlin, before summer time
    assert told(after(hours=11.5), NOON, BERLIN) == "finishes tomorrow 00:30 CET"
    assert told(late + timedelta(days=1), late, BERLIN) == "finishes tomorrow 01:30 CEST"
    assert told(after(hours=20), NOON, ZoneInfo("Asia/Tehran")) == "finishes tomorrow 11:30 +0330"
