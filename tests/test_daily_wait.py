"""A day's quota ends in mid-run: the time of return is named, waited for, and the work goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import TRY_LATER, StopRun
from question_optimizer.generation.forecast import CLOCKS_APART_SECONDS, pause_until
from question_optimizer.providers import LLMClientConfig
from test_dispatcher import NOON, Provider, account, ask, dispatcher_of
from virtual_time import run

DAY = 86400.0


def wall_clock() -> Callable[[], float]:
    """The clock on the wall for the running loop, which began at noon of 14 March."""
    loop = asyncio.get_running_loop()
    return lambda: NOON + loop.time()


async def all_made(dispatcher: LLMDispatcher, provider: Provider, wanted: int) -> list[datetime]:
    """Make `wanted` calls, over as many days as it takes; the times at which it went on."""
    pauses: list[datetime] = []
    while wanted:
        calls = (ask(dispatcher, provider, role="student") for _ in range(wanted))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        stops = [end for end in ended if isinstance(end, StopRun)]
        assert len(stops) + sum(not isinstance(end, BaseException) for end in ended) == wanted
        wanted = len(stops)
        if stops:
            assert {stop.exit_code for stop in stops} == {TRY_LATER}
            untils = {stop.until for stop in stops}
            (until,) = untils
            assert until is not None
            pauses.append(until)
            assert await pause_until(until, wall=wall_clock())
    return pauses


def days_of(provider: Provider, zones: dict[str, str]) -> Counter[tuple[str, str]]:
    """Calls by account and by day of the account's own zone."""
    return Counter(
        (name, datetime.fromtimestamp(NOON + at, ZoneInfo(zones[name])).date().isoformat())
        for at, name in provider.sent
    )


def worked(
    wanted: int, *accounts: LLMClientConfig, **options: Any
) -> tuple[Provider, list[datetime]]:
    async def main() -> tuple[Provider, list[datetime]]:
        dispatcher = dispatcher_of(*accounts, wall=wall_clock(), **options)
        provider = Provider(seconds=1.0)
        pauses = await all_made(dispatcher, provider, wanted)
        await dispatcher.aclose()
        return provider, pauses

    return run(main())


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_waits_for_each_new_day_and_no_day_sees_more_than_its_limit(
    shared: bool, tmp_path: Path
) -> None:
    options = {"log_file": tmp_path / "log.json"} if shared else {}
    daily = account("daily", daily_limit=7, concurrency=2)
    provider, pauses = worked(24, daily, **options)
    assert pauses == [datetime(2026, 3, 15 + n, tzinfo=UTC) for n in range(3)]
    assert days_of(provider, {"daily": "UTC"}) == {
        ("daily", "2026-03-14"): 7,
        ("daily", "2026-03-15"): 7,
        ("daily", "2026-03-16"): 7,
        ("daily", "2026-03-17"): 3,
    }
    first_of_day = [min(t for t in provider.times if t >= DAY * (n + 0.5)) for n in range(3)]
    went_on = [DAY * (n + 0.5) + CLOCKS_APART_SECONDS for n in range(3)]
    assert first_of_day == pytest.approx(went_on, abs=0.1)


def test_work_goes_on_when_the_first_of_two_accounts_returns() -> None:
    utc = account("utc", daily_limit=3)
    pacific = account("pacific", daily_limit=2, reset_zone="America/Los_Angeles")
    provider, pauses = worked(13, utc, pacific)
    assert pauses == [
        datetime(2026, 3, 15, 0, tzinfo=UTC),
        datetime(2026, 3, 15, 7, tzinfo=UTC),  # midnight in Los Angeles
        datetime(2026, 3, 16, 0, tzinfo=UTC),
    ]
    by_day = days_of(provider, {"utc": "UTC", "pacific": "America/Los_Angeles"})
    assert by_day == {
        ("utc", "2026-03-14"): 3,
        ("pacific", "2026-03-14"): 2,
        ("utc", "2026-03-15"): 3,
        ("pacific", "2026-03-15"): 2,
        ("utc", "2026-03-16"): 3,
    }


def test_an_account_that_others_do_not_serve_is_waited_for_by_its_role() -> None:
    judge = account("judge", daily_limit=9, roles=("judge",))
    student = account("student", daily_limit=2, roles=("student",), reset_zone="Asia/Tokyo")
    _, pauses = worked(3, judge, student)
    assert pauses == [datetime(2026, 3, 14, 15, tzinfo=UTC)]


# ---------------------------------------------------------------------- waiting on a loop


def test_a_pause_ends_by_the_clock_on_the_wall_whatever_happens_to_it() -> None:
    """The machine sleeps for six hours of a pause; then its clock is set back by one."""
    shift = [0.0]

    async def main() -> tuple[float, int]:
        loop, wall, naps = asyncio.get_running_loop(), wall_clock(), 0

        async def nap(seconds: float) -> None:
            nonlocal naps
            naps += 1
            if naps == 10:
                shift[0] += 6 * 3600
            if naps == 20:
                shift[0] -= 3600
            await asyncio.sleep(seconds)

        until = datetime.fromtimestamp(NOON, UTC) + timedelta(hours=12)
        done = await pause_until(until, wall=lambda: wall() + shift[0], sleep=nap)
        assert done
        return loop.time(), naps

    slept, naps = run(main())
    assert slept == pytest.approx((12 - 6 + 1) * 3600 + CLOCKS_APART_SECONDS)
    assert naps > 100


def test_a_pause_ends_when_it_is_told_to_or_cancelled() -> None:
    async def main() -> tuple[bool, float]:
        loop, wall = asyncio.get_running_loop(), wall_clock()
        tomorrow = datetime.fromtimestamp(NOON + DAY, UTC)
        done = await pause_until(tomorrow, wall=wall, stopped=lambda: loop.time() > 100)
        stopped_at = loop.time()
        task = asyncio.create_task(pause_until(tomorrow, wall=wall))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await pause_until(datetime.fromtimestamp(NOON - 90, UTC), wall=wall)
        return done, stopped_at

    done, stopped_at = run(main())
    assert not done
    assert 100 < stopped_at < 102
