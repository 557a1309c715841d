"""The dispatcher: limits in virtual time, its interface on real loops, its log on real files."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT, clean_environment
from question_optimizer.dispatcher import Lease, LLMClientConfig, LLMDispatcher
from question_optimizer.errors import BUDGET, INTERRUPTED, TRY_LATER, USAGE, StopRun, UserError
from question_optimizer.failures import Failure
from question_optimizer.generation.forecast import Allowance
from question_optimizer.wire import ChatRequest, complete
from virtual_time import Deadlock, run

TODAY = "2026-03-14"
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp()
ROUNDING = 1e-5
TOLERANCE = 0.05  # seconds by which a call may come early


def account(name: str = "a", **fields: Any) -> LLMClientConfig:
    return LLMClientConfig(name=name, model="m", **{"concurrency": 100, **fields})


def dispatcher_of(*accounts: LLMClientConfig, **options: Any) -> LLMDispatcher:
    """A dispatcher on the running loop's clock, on a fixed day."""
    clock = asyncio.get_running_loop().time
    return LLMDispatcher(accounts, clock=clock, **{"wall": lambda: NOON, "seed": 0, **options})


def now() -> float:
    return asyncio.get_running_loop().time()


async def ask(dispatcher: LLMDispatcher, send: Any, **options: Any) -> Any:
    """One call, entered as DispatcherLM enters it."""
    return await dispatcher.run_async(dispatcher.call(send, **options))


def refused(status: int, message: str = "refused", **headers: str) -> openai.APIStatusError:
    """The SDK's own exception for an answer of this status; `retry_after="2"` is a header."""
    response = httpx.Response(
        status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        request=httpx.Request("POST", "http://127.0.0.1/v1/chat/completions"),
    )
    return openai.APIStatusError(message, response=response, body=None)


@dataclass(frozen=True)
class Used:
    """An answer, as far as the dispatcher looks at it."""

    input_tokens: int | None = None
    output_tokens: int | None = None


class Provider:
    """Stands for the accounts' servers: each call takes `seconds`, then `fails[account]` is played.

    `sent` keeps (time, account) of every attempt, `most` the highest number at once.
    """

    def __init__(
        self, *, seconds: float = 0.0, answer: Used | None = None, **fails: Sequence[Exception]
    ):
        self.seconds = seconds
        self.answer = answer or Used()
        self.fails = {name: deque(errors) for name, errors in fails.items()}
        self.sent: list[tuple[float, str]] = []
        self.in_flight: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def __call__(self, lease: Lease) -> Used:
        self.sent.append((now(), lease.name))
        self.in_flight[lease.name] += 1
        self.most[lease.name] = max(self.most[lease.name], self.in_flight[lease.name])
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight[lease.name] -= 1
        if self.fails.get(lease.name):
            raise self.fails[lease.name].popleft()
        return self.answer

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.sent]

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.sent]


def distance(per_minute: float, units: float = 1.0) -> float:
    """Seconds between calls of so many units: a limit is spread over 60.1 s."""
    return units * 60.1 / per_minute


def assert_no_window_above(
    times: Sequence[float],
    per_minute: float,
    amounts: Sequence[float] | None = None,
    given_back: Sequence[float] = (),
    slack: float = 0.0,
) -> None:
    """No 60 seconds, wherever they begin, hold more than the limit, and all is evenly spaced.

    A call of many tokens runs into debt: a window may hold the largest call more. Each refusal,
    at a time in `given_back`, gives one request back. Who shares a limit may be `slack` seconds
    early or late.
    """
    most = math.ceil(per_minute) if amounts is None else per_minute + max(amounts, default=0.0)
    amounts = amounts or [1.0] * len(times)
    for first, start in enumerate(times):
        before = 0.0  # units from `start` to the call looked at, which must have been paid off
        for at, amount in zip(times[first:], amounts[first:], strict=True):
            free = sum(start <= back <= at for back in given_back)
            if at - start <= 60.0:
                assert before + amount <= most + free + ROUNDING, (start, at, before + amount)
            paid_off_at = start + distance(per_minute, max(0.0, before - free)) - TOLERANCE
            assert at >= paid_off_at - slack - ROUNDING, (start, at, before, paid_off_at)
            before += amount


# ---------------------------------------------------------------------- requests and tokens


@pytest.mark.parametrize(
    ("rpm", "calls"),
    [
        (30, 5),  # one every 2 s, never two at once
        (60, 70),
        (600, 700),
        (6000, 400),
        (7, 20),
        (7.5, 20),
    ],
)
def test_requests_keep_to_the_minute_limit_and_use_all_of_it(rpm: float, calls: int) -> None:
    async def main() -> Provider:
        dispatcher, provider = dispatcher_of(account(rpm_limit=rpm)), Provider()
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(calls)))
        return provider

    provider = run(main())
    assert len(provider.sent) == calls
    assert_no_window_above(provider.times, rpm)
    on_time = [max(0.0, distance(rpm, number) - TOLERANCE) for number in range(calls)]
    assert provider.times == pytest.approx(on_time)


@pytest.mark.parametrize("rpm", [1, 2, 59, 60, 61, 600, 1201])
def test_a_full_minute_holds_exactly_the_limit(rpm: int) -> None:
    async def main() -> Provider:
        dispatcher, provider = dispatcher_of(account(rpm_limit=rpm)), Provider()
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(2 * rpm)))
        return provider

    times = run(main()).times
    fullest = max(sum(start <= time <= start + 60 for time in times) for start in times)
    assert fullest == rpm


def test_an_idle_account_saves_up_nothing() -> None:
    async def main() -> list[float]:
        dispatcher, provider = dispatcher_of(account(rpm_limit=600)), Provider()
        await ask(dispatcher, provider)
        await asyncio.sleep(3600)
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(20)))
        return [time - 3600 for time in provider.times[1:]]

    times = run(main())
    assert times[0] == 0
    assert times[1:] == pytest.approx([distance(600, n) - TOLERANCE for n in range(1, 20)])


@pytest.mark.parametrize(
    ("what_happens", "counted"),
    [
        ("used less", 200),
        ("used more", 3000),
        ("used what was reserved", 1000),
        ("says nothing of usage", 1000),
        ("at fault", 0),
        ("refused", 0),
        ("broke down", 1000),  # perhaps counted
    ],
)
def test_tokens_are_reserved_before_a_call_and_settled_by_what_it_used(
    what_happens: str, counted: int
) -> None:
    failures = {
        "at fault": Failure("bad_request", "too long"),
        "refused": Failure("rate_limited", "429", retry_after=0.001),
        "broke down": Failure("transient", "500"),
    }
    answers = {
        "used less": Used(150, 50),
        "used more": Used(2000, 1000),
        "used what was reserved": Used(900, 100),
        "says nothing of usage": Used(None, None),
    }

    async def main() -> float:
        dispatcher = dispatcher_of(account(tpm_limit=6000))  # 100 a second
        lease = await dispatcher.get_available_client(tokens=1000)
        if what_happens in failures:
            await dispatcher.release_client_on_failure(lease, failures[what_happens])
        else:
            await dispatcher.release_client_on_success(lease, answers[what_happens])
        await dispatcher.get_available_client(tokens=1000)
        return now()

    next_at = max(0.0, distance(6000, counted) - TOLERANCE)
    assert run(main()) == pytest.approx(next_at, abs=0.001)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, "reserved"),
        ({"base_url": "https://api.openai.com/v1"}, "reserved"),
        ({"base_url": "https://mine.openai.azure.com/openai/v1"}, "reserved"),
        ({"base_url": "https://api.groq.com/openai/v1"}, "used"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "used"),
        ({"kind": "anthropic"}, "used"),
        ({"kind": "rehearsal"}, "used"),
        ({"token_rule": "used"}, "used"),
        ({"kind": "anthropic", "token_rule": "reserved"}, "reserved"),
    ],
)
def test_how_a_provider_counts_is_known_by_its_address(fields: dict[str, Any], rule: str) -> None:
    assert account(**fields).token_rule == rule


@pytest.mark.parametrize(
    ("rule", "max_tokens", "counted"),
    [
        ("reserved", 2000, 2100),  # whatever was written
        ("used", 2000, 150),
        ("reserved", None, 150),  # nothing was given, so nothing is kept
        ("reserved", 20, 150),  # it wrote more than it might
    ],
)
def test_where_max_tokens_are_reserved_they_are_never_given_back(
    rule: Any, max_tokens: int | None, counted: int
) -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account(tpm_limit=6000, token_rule=rule))
        provider = Provider(answer=Used(100, 50))
        for _ in range(2):
            await ask(dispatcher, provider, input_tokens=100, max_tokens=max_tokens)
        return provider.times

    assert run(main()) == pytest.approx([0.0, distance(6000, counted) - TOLERANCE])


def test_input_and_output_tokens_are_paced_apart() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account(input_tpm_limit=60_000, output_tpm_limit=6000))
        provider = Provider(answer=Used(1000, 50))
        for _ in range(3):
            await ask(dispatcher, provider, input_tokens=1000)
        provider.answer = Used(1000, 200)
        for _ in range(2):
            await ask(dispatcher, provider, input_tokens=1000)
        return provider.times

    one, two = distance(60_000, 1000), distance(6000, 200)  # the slower of both decides
    assert run(main()) == pytest.approx(
        [n * one - (TOLERANCE if n else 0) for n in range(4)] + [3 * one + two - TOLERANCE],
        abs=0.06,
    )


def test_tokens_in_flight_count_before_they_are_settled() -> None:
    async def main() -> list[float]:
        dispatcher, provider = dispatcher_of(account(tpm_limit=60_000)), Provider(seconds=1000)
        calls = [
            asyncio.create_task(ask(dispatcher, provider, input_tokens=n)) for n in (4700, 700, 700)
        ]
        await asyncio.gather(*calls)
        return provider.times

    # 300 tokens of output are expected on top of each input; 1000 tokens a second
    assert run(main()) == pytest.approx(
        [0.0, distance(60_000, 5000) - TOLERANCE, distance(60_000, 6000) - TOLERANCE]
    )


def test_a_call_larger_than_the_token_limit_goes_into_debt_which_the_next_waits_for() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account(tpm_limit=60))
        times = []
        for _ in range(2):
            lease = await dispatcher.get_available_client(tokens=500)
            await dispatcher.release_client_on_success(lease)
            times.append(now())
        return times

    assert run(main()) == pytest.approx([0.0, distance(60, 500) - TOLERANCE])


# ---------------------------------------------------------------------- slots, order, choice


def test_no_account_has_more_calls_in_flight_than_its_concurrency() -> None:
    async def main() -> tuple[Provider, float]:
        dispatcher = dispatcher_of(account("a", concurrency=3), account("b", concurrency=1))
        provider = Provider(seconds=1)
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(20)))
        return provider, now()

    provider, ended = run(main())
    assert provider.most == {"a": 3, "b": 1}
    assert ended == pytest.approx(5)  # 4 at a time: no slot stood empty


@pytest.mark.parametrize("at_once", [1, 7])
def test_equal_accounts_take_turns(at_once: int) -> None:
    async def main() -> list[str]:
        accounts = [account(f"account-{n}", rpm_limit=600) for n in range(4)]
        dispatcher, provider = dispatcher_of(*accounts), Provider(seconds=0.2)
        gate = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with gate:
                await ask(dispatcher, provider)

        await asyncio.gather(*(one() for _ in range(200)))
        return provider.names

    names = run(main())
    for done in range(4, len(names) + 1):
        counts = Counter(names[:done])
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 4, counts


def test_an_account_back_from_a_rest_takes_its_turns_and_no_more() -> None:
    """Its missed turns are gone: a flood on what was just rate limited would trip it again."""

    async def main() -> list[str]:
        dispatcher = dispatcher_of(account("rested"), account("busy"))
        provider = Provider(seconds=1, rested=[refused(429, retry_after="60")])
        while now() < 60 or len(provider.sent) % 2:
            await ask(dispatcher, provider)
        before = len(provider.sent)
        for _ in range(20):
            await ask(dispatcher, provider)
        return provider.names[before:]

    counts = Counter(run(main()))
    assert counts["rested"] <= 11, counts


def test_first_come_is_first_served() -> None:
    async def main() -> list[int]:
        dispatcher = dispatcher_of(
            account("a", rpm_limit=120, concurrency=2), account("b", rpm_limit=60)
        )
        served: list[int] = []

        async def one(number: int) -> None:
            lease = await dispatcher.get_available_client("student", tokens=number)
            served.append(number)
            await asyncio.sleep(0.7)
            await dispatcher.release_client_on_success(lease)

        await asyncio.gather(*(one(number) for number in range(50)))
        return served

    assert run(main()) == list(range(50))


def test_roles_are_respected_and_do_not_wait_for_each_other() -> None:
    async def main() -> tuple[dict[str, set[str]], float]:
        dispatcher = dispatcher_of(
            account("writer", roles=("student", "teacher"), rpm_limit=1),
            account("judge", roles=("judge",)),
        )
        used: dict[str, set[str]] = defaultdict(set)

        async def one(role: Any) -> float:
            lease = await dispatcher.get_available_client(role)
            used[role].add(lease.name)
            await dispatcher.release_client_on_success(lease)
            return now()

        students = [asyncio.create_task(one("student")) for _ in range(3)]
        judged_at = max(await asyncio.gather(*(one("judge") for _ in range(5))))
        await asyncio.gather(*students)
        return used, judged_at

    used, judged_at = run(main())
    assert used == {"student": {"writer"}, "judge": {"judge"}}
    assert judged_at == 0.0


def test_on_an_account_that_roles_share_the_oldest_waiter_goes_first() -> None:
    async def main() -> list[tuple[str, int]]:
        dispatcher = dispatcher_of(account(rpm_limit=60))
        served: list[tuple[str, int]] = []

        async def one(role: Any, number: int) -> None:
            await asyncio.sleep(number / 100)
            lease = await dispatcher.get_available_client(role)
            served.append((role, number))
            await dispatcher.release_client_on_success(lease)

        roles = ["teacher", "student", "student", "judge", "teacher", "judge", "student"]
        await asyncio.gather(*(one(role, number) for number, role in enumerate(roles)))
        return served

    assert [number for _, number in run(main())] == list(range(7))


def test_what_can_be_seen_tells_limits_by_role_and_counts_without_key() -> None:
    async def main() -> LLMDispatcher:
        dispatcher = dispatcher_of(
            account("a", concurrency=3, rpm_limit=60, roles=("student",), api_key="hidden-key"),
            account("b", concurrency=2, rpm_limit=30, input_price=1.0, output_price=2.0),
        )
        provider = Provider(answer=Used(100, 10), a=[refused(429, retry_after="1")])
        await asyncio.gather(*(ask(dispatcher, provider, role="student") for _ in range(4)))
        return dispatcher

    dispatcher = run(main())
    assert (dispatcher.slots("student"), dispatcher.slots("judge"), dispatcher.slots()) == (5, 2, 5)
    assert dispatcher.calls_per_minute("judge") == 30
    assert dispatcher.models("student") == ["m"]
    assert dispatcher.calls == 5
    first, second = dispatcher.snapshot()
    assert (first["started"], first["ok"], first["rate_limited"]) == (
        first["ok"] + 1,
        4 - second["ok"],
        1,
    )
    assert second["spend"] == pytest.approx(second["ok"] * (100 * 1.0 + 10 * 2.0) / 1e6)
    assert dispatcher.spend == second["spend"]
    assert (second["input_tokens"], second["output_tokens"]) == (
        100 * second["ok"],
        10 * second["ok"],
    )
    assert "hidden-key" not in repr(dispatcher.snapshot())


def test_what_accounts_may_still_do_is_told_in_calls() -> None:
    midnight = datetime(2026, 3, 15, tzinfo=UTC)

    async def main() -> list[list[Allowance]]:
        dispatcher = dispatcher_of(
            account("paced", rpm_limit=60.1, daily_limit=10, roles=("student",)),
            account("tokens", tpm_limit=6010, daily_token_limit=9000, reset_zone="Asia/Tokyo"),
            account("free", roles=("judge",)),
            account("revoked"),
        )
        provider = Provider(answer=Used(150, 50), revoked=[refused(401)])
        before = dispatcher.allowances("student")
        for _ in range(6):
            await ask(dispatcher, provider, role="student", input_tokens=150)
        assert [seen["ok"] for seen in dispatcher.snapshot()] == [4, 2, 0, 0]
        return [before[:2], dispatcher.allowances("student"), dispatcher.allowances("judge")[1:]]

    before, after, judge = run(main())
    assert [allowed.left_today for allowed in before] == [10, math.inf]  # no call was measured yet
    paced, tokens = after
    assert paced == Allowance(paced.per_minute, 10 - 4, 10, midnight)
    assert paced.per_minute == pytest.approx(60)
    in_tokyo = datetime(2026, 3, 14, 15, tzinfo=UTC)
    assert tokens == Allowance(tokens.per_minute, 9000 / 200 - 2, 9000 / 200, in_tokyo)
    assert tokens.per_minute == pytest.approx(6000 / 200)
    assert judge == [Allowance(math.inf, math.inf, math.inf, midnight)]


def test_who_is_spent_or_rests_till_its_day_ends_has_nothing_left_today() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account("spent", daily_limit=1), account("rests"), account("ok"))
        daily = refused(429, "Rate limit reached for requests per day (RPD)")
        provider = Provider(rests=[daily])
        for _ in range(3):
            await ask(dispatcher, provider)
        return [allowed.left_today for allowed in dispatcher.allowances()]

    assert run(main()) == [0, 0, math.inf]


def test_a_line_tells_each_accounts_calls_and_pace_or_why_there_are_none() -> None:
    async def main() -> list[str]:
        dispatcher = dispatcher_of(
            account("groq-1", rpm_limit=28, daily_limit=1000),
            account("mistral", daily_limit=1, reset_zone="America/Los_Angeles"),
            account("free", rpm_limit=0.5),
            account("short"),
            account("long"),
            account("revoked"),
        )
        said = [dispatcher.account_line()]
        leases = [await dispatcher.get_available_client() for _ in range(6)]
        for lease in leases[:3]:
            await dispatcher.release_client_on_success(lease)
        for lease, failure in zip(
            leases[3:],
            (
                Failure("rate_limited", "429", retry_after=90.0),
                Failure("rate_limited", "429", retry_after=7200.0),
                Failure("account_out", "401", status=401),
            ),
            strict=True,
        ):
            await dispatcher.release_client_on_failure(lease, failure)
        return [*said, dispatcher.account_line(), dispatcher.account_line(most=2)]

    assert run(main()) == [
        "groq-1 0/1000 today, 28/min · mistral 0/1 today · free 0 today, 0.5/min · short 0 today · "
        "long 0 today · revoked 0 today",
        "groq-1 1/1000 today, 28/min · mistral spent until 07:00 UTC · free 1 today, 0.5/min · "
        "short rests 90 s: rate limited · long rests until 14:01 UTC: rate limited · "
        "revoked is out: HTTP 401",
        "groq-1 1/1000 today, 28/min · mistral spent until 07:00 UTC · 4 more",
    ]


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("headers", "rest"),
    [
        ({"retry_after": "30"}, (30, 30)),
        ({"retry_after_ms": "2500", "retry_after": "30"}, (2.5, 2.5)),
        ({}, (0.5, 1.0)),  # our own backoff, jittered
    ],
)
def test_a_rate_limit_rests_its_account_for_as_long_as_the_provider_says(
    headers: dict[str, str], rest: tuple[float, float]
) -> None:
    async def main() -> Provider:
        dispatcher = dispatcher_of(account("limited"), account("free"))
        provider = Provider(seconds=0.01, limited=[refused(429, **headers)])
        while "limited" not in provider.names[1:]:
            await ask(dispatcher, provider)
        return provider

    provider = run(main())
    assert provider.names[:2] == ["limited", "free"]  # the item itself went on at once
    first, again = [time for time, name in provider.sent if name == "limited"]
    assert rest[0] - ROUNDING <= again - (first + 0.01) <= rest[1] + 0.02
    assert set(provider.names[1:-1]) == {"free"}


def test_what_rests_can_be_seen_and_for_how_long() -> None:
    async def main() -> list[str]:
        dispatcher = dispatcher_of(account("long"), account("short"), account("out"))
        leases = [await dispatcher.get_available_client() for _ in range(3)]
        said = [dispatcher.resting()]
        for lease, pause in zip(leases, (90.0, 10.0), strict=False):
            failure = Failure("rate_limited", "429", retry_after=pause)
            await dispatcher.release_client_on_failure(lease, failure)
        await dispatcher.release_client_on_failure(leases[2], Failure("account_out", "401"))
        for seconds in (0, 30, 60):
            await asyncio.sleep(seconds)
            said.append(dispatcher.resting())
        return said

    assert run(main()) == [
        "",
        "long rests 90 s: rate limited, short rests 10 s: rate limited",
        "long rests 60 s: rate limited",
        "",
    ]


def test_rate_limits_cost_the_item_no_attempt() -> None:
    async def main() -> tuple[Provider, dict[str, Any]]:
        dispatcher = dispatcher_of(account())
        provider = Provider(a=[refused(429, retry_after="7")] * 12)
        await ask(dispatcher, provider)
        return provider, dispatcher.snapshot()[0]

    provider, seen = run(main())
    assert provider.times == pytest.approx([7.0 * n for n in range(13)])
    assert (seen["rate_limited"], seen["ok"], seen["failed"], seen["out"]) == (12, 1, 0, "")


def test_a_rate_limit_rests_its_account_even_where_the_provider_says_zero_seconds() -> None:
    """Whole seconds are rounded down by many servers; asking again at once would be a storm."""

    async def main() -> list[float]:
        dispatcher = dispatcher_of(account())
        provider = Provider(a=[refused(429, retry_after="0")] * 6)
        await ask(dispatcher, provider)
        return provider.times

    times = run(main())
    assert len(times) == 7
    assert all(later > earlier for earlier, later in pairwise(times)), times


def test_what_a_late_refusal_gives_back_lets_no_window_pass_its_limit() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account(rpm_limit=30))
        accepted = []
        refused_late = await dispatcher.get_available_client()

        async def others() -> None:
            while now() < 80:
                lease = await dispatcher.get_available_client()
                accepted.append(now())
                await dispatcher.release_client_on_success(lease)

        task = asyncio.create_task(others())
        await asyncio.sleep(3)
        failure = Failure("rate_limited", "429", retry_after=0.5)
        await dispatcher.release_client_on_failure(refused_late, failure)
        await task
        return accepted

    assert_no_window_above(run(main()), 30)


@pytest.mark.parametrize("seconds", ["300000000000000", "1" + "0" * 300])
def test_a_rest_without_end_stops_the_run_as_a_long_one_does(seconds: str) -> None:
    async def main() -> StopRun:
        dispatcher = dispatcher_of(account())
        return await stopped(ask(dispatcher, Provider(a=[refused(429, retry_after=seconds)])))

    assert run(main()).exit_code == TRY_LATER


def test_a_refusal_after_an_idle_hour_does_not_pace_the_account_by_that_hour() -> None:
    async def main() -> float:
        dispatcher = dispatcher_of(account())
        provider = Provider(seconds=0.01, a=[refused(429, retry_after="10")])
        await ask(dispatcher, provider)
        await asyncio.sleep(3600)
        for _ in range(20):
            await ask(dispatcher, provider)
        provider.fails = {"a": deque([refused(429, retry_after="10")])}
        began = now()
        for _ in range(20):
            await ask(dispatcher, provider)
        return now() - began

    assert run(main()) < 120


def test_many_refused_at_once_do_not_lower_what_the_next_refusal_teaches() -> None:
    async def main() -> float:
        dispatcher = dispatcher_of(account())
        failure = Failure("rate_limited", "requests per minute", 1.0, scope="requests")
        leases = [await dispatcher.get_available_client() for _ in range(64)]
        await asyncio.sleep(0.1)
        for lease in leases:
            await dispatcher.release_client_on_failure(lease, failure)
        for _ in range(100):  # 600 a minute are granted
            await asyncio.sleep(0.1)
            lease = await dispatcher.get_available_client()
            await dispatcher.release_client_on_success(lease)
        lease = await dispatcher.get_available_client()
        longer = replace(failure, retry_after=10.0)  # so that the two follow one another
        await dispatcher.release_client_on_failure(lease, longer)
        return dispatcher.snapshot()[0]["per_minute"]["requests"]

    assert run(main()) == pytest.approx(600, rel=0.15)


def test_a_passing_fault_moves_the_item_to_another_account() -> None:
    async def main() -> list[str]:
        dispatcher = dispatcher_of(account("a"), account("b"), account("c"))
        provider = Provider(a=[refused(503)], b=[TimeoutError("no answer")])
        await ask(dispatcher, provider)
        return provider.names

    assert run(main()) == ["a", "b", "c"]


def test_a_failed_item_avoids_its_account_even_where_that_ones_turn_has_come() -> None:
    async def main() -> list[str]:
        dispatcher = dispatcher_of(account("slow", concurrency=1), account("busy"))
        sent = []

        async def send(lease: Lease) -> Used:
            sent.append(lease.name)
            if lease.name == "slow":
                await asyncio.sleep(5)
                raise refused(500)
            return Used()

        unlucky = asyncio.create_task(ask(dispatcher, send))
        await asyncio.sleep(1)
        for _ in range(4):  # "slow" is taken, so "busy" gets ahead of it in turns
            await ask(dispatcher, send)
        await unlucky
        return sent

    assert run(main()) == ["slow", *["busy"] * 5]


def test_three_passing_faults_rest_an_account_and_it_comes_back() -> None:
    async def main() -> tuple[Provider, list[str]]:
        dispatcher = dispatcher_of(account("shaky"), account("sound"))
        provider = Provider(seconds=0.01, shaky=[refused(500)] * 3)
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(6)))
        during = []
        for _ in range(20):
            await ask(dispatcher, provider)
            during.append(provider.names[-1])
        await asyncio.sleep(5)
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(2)))
        return provider, during

    provider, during = run(main())
    assert during == ["sound"] * 20
    assert "shaky" in provider.names[-2:]


def test_the_rests_of_an_account_that_keeps_failing_grow_and_a_success_ends_them() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account())
        waits = []
        for _ in range(12):
            asked = now()
            lease = await dispatcher.get_available_client()
            waits.append(now() - asked)
            await dispatcher.release_client_on_failure(lease, Failure("transient", "500"))
        lease = await dispatcher.get_available_client()
        await dispatcher.release_client_on_success(lease)
        asked = now()
        lease = await dispatcher.get_available_client()
        await dispatcher.release_client_on_failure(lease, Failure("transient", "500"))
        await dispatcher.get_available_client()
        return [*waits, now() - asked]

    waits = run(main())
    assert waits[:3] == [0, 0, 0]
    for doubled, wait in enumerate(waits[3:12]):
        longest = min(60.0, 2.0**doubled)
        assert longest / 2 <= wait <= longest
    assert waits[-1] == 0


def test_an_item_is_given_up_after_ten_passing_faults_with_the_providers_own_exception() -> None:
    async def main() -> tuple[str, int]:
        dispatcher = dispatcher_of(account("a"), account("b"))
        provider = Provider(a=[refused(500, "a broke")] * 19, b=[refused(502, "b broke")] * 19)
        with pytest.raises(openai.APIStatusError) as raised:
            await ask(dispatcher, provider)
        return raised.value.message, len(provider.sent)

    assert run(main()) == ("b broke", 10)


def test_retries_go_at_once_to_another_account_while_the_retry_budget_lasts() -> None:
    """A tenth of the traffic, saved up to ten: beyond it they wait, longer each time."""

    async def waits_of_one_item(dispatcher: LLMDispatcher, names: Sequence[str]) -> list[float]:
        provider = Provider(**{name: [refused(500)] for name in names})
        await ask(dispatcher, provider)
        assert len(provider.sent) == len(names) + 1
        return [later - earlier for earlier, later in pairwise(provider.times)]

    async def main() -> tuple[list[list[float]], list[float]]:
        names = [f"account-{n}" for n in range(5)]
        dispatcher = dispatcher_of(*(account(name) for name in names))
        waits = [await waits_of_one_item(dispatcher, names[:4]) for _ in range(3)]
        for _ in range(20):
            await ask(dispatcher, Provider())
        return waits, await waits_of_one_item(dispatcher, names[:3])

    waits, afterwards = run(main())
    assert waits[:2] == [[0.0] * 4] * 2  # 10 saved up, and 0.1 for each success
    assert waits[2][:2] == [0.0] * 2
    for doubled, wait in enumerate(waits[2][2:], 2):
        longest = 0.5 * 2**doubled
        assert longest / 2 <= wait <= longest
    assert afterwards[:2] == [0.0] * 2  # 20 successes bought two more
    assert afterwards[2] > 0.0


def test_where_no_other_account_is_left_a_retry_waits_longer_each_time() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account())
        provider = Provider(a=[refused(500)] * 9)
        await ask(dispatcher, provider)
        return provider.times

    waits = [later - earlier for earlier, later in pairwise(run(main()))]
    assert len(waits) == 9
    for doubled, wait in enumerate(waits):
        assert min(8.0, 0.5 * 2**doubled) / 2 <= wait
        assert wait <= 60.0  # the account itself rests from the third on
    assert waits[:2] == sorted(waits[:2]) and waits[1] <= 1.0


def test_while_an_item_waits_for_its_retry_others_go_on() -> None:
    async def main() -> list[float]:
        dispatcher = dispatcher_of(account(concurrency=1))
        provider, other = Provider(a=[refused(500)]), Provider()
        unlucky = asyncio.create_task(ask(dispatcher, provider))
        await asyncio.sleep(0.01)
        for _ in range(5):
            await ask(dispatcher, other)
        await unlucky
        assert provider.times[1] >= 0.25
        return other.times

    assert run(main()) == [0.01] * 5


def test_an_item_at_fault_is_tried_once_and_costs_the_account_nothing() -> None:
    async def main() -> tuple[list[float], dict[str, Any]]:
        dispatcher = dispatcher_of(account())
        provider = Provider(a=[refused(400, "too long")] * 4)
        for _ in range(4):
            with pytest.raises(openai.APIStatusError, match="too long"):
                await ask(dispatcher, provider)
        await ask(dispatcher, provider)
        return provider.times, dispatcher.snapshot()[0]

    times, seen = run(main())
    assert times == [0.0] * 5
    assert (seen["failed"], seen["ok"], seen["out"]) == (4, 1, "")


def test_a_bad_key_takes_its_account_out_and_the_others_go_on() -> None:
    async def main() -> tuple[list[str], list[dict[str, Any]]]:
        dispatcher = dispatcher_of(account("revoked", api_key="abcd1234"), account("good"))
        provider = Provider(revoked=[refused(401, "no such key: abcd1234")])
        for _ in range(5):
            await ask(dispatcher, provider)
        return provider.names, dispatcher.snapshot()

    names, seen = run(main())
    assert names == ["revoked"] + ["good"] * 5
    assert seen[0]["out"] == "APIStatusError: no such key: ***"
    assert seen[1]["out"] == ""


def test_with_every_account_out_the_run_stops_and_names_account_and_reason() -> None:
    async def main() -> list[StopRun]:
        dispatcher = dispatcher_of(
            account("first", concurrency=1),
            account("second", concurrency=1),
            account("for students only", roles=("student",)),
        )
        provider = Provider(
            seconds=1,
            first=[refused(401, "no such key")],
            second=[refused(404, "no such model")],
        )
        # the third waits for a slot while the accounts go out: it must hear of it too
        return await asyncio.gather(
            *(stopped(ask(dispatcher, provider, role="judge")) for _ in range(3))
        )

    for stop in run(main()):
        assert stop.exit_code == USAGE
        assert str(stop) == (
            "no account left for role 'judge': first: APIStatusError: no such key; "
            "second: APIStatusError: no such model"
        )


def test_a_role_that_no_account_serves_stops_the_run() -> None:
    async def main() -> StopRun:
        dispatcher = dispatcher_of(account(roles=("student",)))
        return await stopped(dispatcher.get_available_client("judge"))

    stop = run(main())
    assert (stop.exit_code, str(stop)) == (
        USAGE,
        "no account left for role 'judge': none configured",
    )


async def stopped(call: Coroutine[Any, Any, Any]) -> StopRun:
    """The StopRun that `call` must end with."""
    with pytest.raises(StopRun) as raised:
        await call
    return raised.value


# ---------------------------------------------------------------------- waiting and giving up


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1], [0, 2]])
def test_cancelled_waiters_lose_no_slot(cancelled: list[int]) -> None:
    async def main() -> int:
        dispatcher = dispatcher_of(account(concurrency=1))
        held = await dispatcher.get_available_client()
        waiters = [asyncio.create_task(dispatcher.get_available_client()) for _ in range(4)]
        await asyncio.sleep(1)
        for number in cancelled:
            waiters[number].cancel()
        await dispatcher.release_client_on_success(held)
        for number, waiter in enumerate(waiters):
            if number not in cancelled:
                await dispatcher.release_client_on_success(await waiter)
        return dispatcher.snapshot()[0]["in_flight"]

    assert run(main()) == 0


def test_granted_and_cancelled_in_the_same_tick_loses_no_slot() -> None:
    async def main() -> tuple[bool, dict[str, Any]]:
        dispatcher = dispatcher_of(account(concurrency=1, rpm_limit=60))
        held = await dispatcher.get_available_client()
        await asyncio.sleep(30)
        unlucky, next_one = (
            asyncio.create_task(dispatcher.get_available_client()) for _ in range(2)
        )
        await asyncio.sleep(0)
        await dispatcher.release_client_on_success(held)  # grants to `unlucky` …
        unlucky.cancel()  # … which has not run since
        lease = await next_one
        await dispatcher.release_client_on_success(lease)
        return unlucky.cancelled(), dispatcher.snapshot()[0] | {"now": now()}

    was_cancelled, seen = run(main())
    assert was_cancelled
    assert (seen["in_flight"], seen["started"], seen["ok"]) == (0, 2, 2)
    assert seen["now"] == 30  # and its place in the minute was given back


@pytest.mark.parametrize("limit", [{"rpm_limit": 6}, {"tpm_limit": 6000}])
def test_a_call_cancelled_in_flight_frees_its_slot_but_stays_counted(limit: Any) -> None:
    async def main() -> tuple[list[float], dict[str, Any]]:
        dispatcher, provider = (
            dispatcher_of(account(concurrency=1, **limit)),
            Provider(seconds=5, answer=Used(700, 300)),
        )
        call = asyncio.create_task(ask(dispatcher, provider, input_tokens=700))
        await asyncio.sleep(1)
        call.cancel()
        await ask(dispatcher, provider, input_tokens=700)
        return provider.times, dispatcher.snapshot()[0]

    times, seen = run(main())
    # the provider has seen the first, so the pace has too
    assert times == pytest.approx([0, distance(6) - TOLERANCE])
    assert (seen["requests_today"], seen["tokens_today"]) == (2, 2000)
    assert (seen["in_flight"], seen["started"], seen["ok"]) == (0, 2, 1)


@pytest.mark.parametrize("first", ["success", "failure"])
@pytest.mark.parametrize("second", ["success", "failure"])
def test_releasing_a_lease_twice_raises_and_frees_no_second_slot(first: str, second: str) -> None:
    async def main() -> int:
        dispatcher = dispatcher_of(account(concurrency=2))
        release = {
            "success": dispatcher.release_client_on_success,
            "failure": dispatcher.release_client_on_failure,
        }
        lease, other = [await dispatcher.get_available_client() for _ in range(2)]
        await release[first](lease)
        with pytest.raises(RuntimeError, match="lease on account 'a' released twice"):
            await release[second](lease)
        in_flight = dispatcher.snapshot()[0]["in_flight"]
        await dispatcher.release_client_on_success(other)
        return in_flight

    assert run(main()) == 1


def test_stop_reaches_those_who_wait_and_those_who_ask_later() -> None:
    async def main() -> tuple[list[StopRun], StopRun, int]:
        dispatcher = dispatcher_of(account(concurrency=1))
        held = await dispatcher.get_available_client()
        waiters = [
            asyncio.create_task(stopped(dispatcher.get_available_client())) for _ in range(3)
        ]
        await asyncio.sleep(1)
        dispatcher.stop(StopRun("interrupted; run it again", exit_code=INTERRUPTED))
        reached = await asyncio.gather(*waiters)
        await dispatcher.release_client_on_success(held)  # what is in flight may finish
        later = await stopped(ask(dispatcher, Provider()))
        return reached, later, dispatcher.snapshot()[0]["ok"]

    reached, later, ok = run(main())
    assert [(str(s), s.exit_code) for s in [*reached, later]] == [
        ("interrupted; run it again", INTERRUPTED)
    ] * 4
    assert ok == 1


def test_a_lost_wake_up_shows_as_a_deadlock_of_the_virtual_loop() -> None:
    """The harness of the tests above: a lease that never comes back is reported, not waited for."""

    async def main() -> None:
        dispatcher = dispatcher_of(account(concurrency=1))
        await dispatcher.get_available_client()
        await dispatcher.get_available_client()

    with pytest.raises(Deadlock, match="a wake-up was lost"):
        run(main())


def test_call_works_when_it_is_the_first_thing_a_loop_does() -> None:
    """As the class's own docstring shows it: no other method has been called on this loop yet."""

    async def main() -> Provider:
        dispatcher, provider = dispatcher_of(account(concurrency=2)), Provider(seconds=1)
        await asyncio.gather(*(dispatcher.call(provider) for _ in range(6)))
        return provider

    assert run(main()).most == {"a": 2}


# ---------------------------------------------------------------------- money

PRICED = {"input_price": 0.0, "output_price": 10_000.0}  # 3.00 for the 300 tokens expected a call


@pytest.mark.parametrize("at_once", [True, False])
def test_the_call_that_would_pass_the_ceiling_is_refused(at_once: bool) -> None:
    async def main() -> tuple[LLMDispatcher, Provider, list[StopRun]]:
        dispatcher = dispatcher_of(account(**PRICED), max_cost=10.0)
        provider = Provider(seconds=1, answer=Used(0, 300))
        calls = [ask(dispatcher, provider) for _ in range(5)]
        if at_once:
            ended = await asyncio.gather(*calls, return_exceptions=True)
        else:
            ended = [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
        return dispatcher, provider, [end for end in ended if isinstance(end, StopRun)]

    dispatcher, provider, stops = run(main())
    assert len(provider.sent) == 3
    assert dispatcher.spend == pytest.approx(9.0)
    assert [(s.exit_code, str(s)) for s in stops] == [
        (
            BUDGET,
            "budget reached: 9.0000 of 10 spent, and the next call could pass it; "
            "raise --max-cost to go on",
        )
    ] * 2


def test_money_reserved_for_a_call_that_failed_or_was_cancelled_is_free_again() -> None:
    async def main() -> int:
        dispatcher = dispatcher_of(account(**PRICED), max_cost=3.5)
        provider = Provider(seconds=1, answer=Used(0, 300), a=[refused(400)])
        with pytest.raises(openai.APIStatusError):
            await ask(dispatcher, provider)
        call = asyncio.create_task(ask(dispatcher, provider))
        await asyncio.sleep(0.5)
        call.cancel()
        await asyncio.sleep(0.5)
        await ask(dispatcher, provider)
        return len(provider.sent)

    assert run(main()) == 3


@pytest.mark.parametrize(
    ("accounts", "max_cost", "message"),
    [
        ([], None, "no LLM account configured"),
        (
            [account("priced", **PRICED), account("unpriced")],
            5.0,
            "--max-cost cannot work: account 'unpriced' has no input_price, output_price",
        ),
        (
            [account("half", input_price=1.0)],
            5.0,
            "--max-cost cannot work: account 'half' has no input_price, output_price",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_construction(
    accounts: list[LLMClientConfig], max_cost: float | None, message: str
) -> None:
    with pytest.raises(UserError) as raised:
        LLMDispatcher(accounts, max_cost=max_cost)
    assert (str(raised.value), raised.value.exit_code) == (message, USAGE)


# ---------------------------------------------------------------------- the day's requests


def log_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_spent_daily_limit_stops_the_run_and_says_until_when() -> None:
    async def main() -> tuple[int, list[StopRun]]:
        dispatcher = dispatcher_of(
            account("a", daily_limit=3, concurrency=1), account("b", daily_limit=1)
        )
        provider = Provider(seconds=1)
        ended = await asyncio.gather(
            *(ask(dispatcher, provider) for _ in range(6)), return_exceptions=True
        )
        return len(provider.sent), [end for end in ended if isinstance(end, StopRun)]

    sent, stops = run(main())
    assert sent == 4
    assert [(s.exit_code, str(s)) for s in stops] == [
        (
            TRY_LATER,
            "daily quota of every account for any role is spent (a, b) until 2026-03-15 00:00 UTC; "
            "everything is saved, run the same command then",
        )
    ] * 2
    assert {stop.until for stop in stops} == {datetime(2026, 3, 15, tzinfo=UTC)}


def test_what_a_stop_says_outlives_copies_and_pickles() -> None:
    until = datetime(2026, 3, 15, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    for stop in (
        StopRun("spent", exit_code=TRY_LATER, until=until),
        StopRun("over", exit_code=BUDGET),
    ):
        for again in (pickle.loads(pickle.dumps(stop)), copy.copy(stop), copy.deepcopy(stop)):
            assert (str(again), again.exit_code) == (str(stop), stop.exit_code)
            assert again.until == stop.until == (until if stop.exit_code == TRY_LATER else None)
            assert again.until is None or again.until.tzinfo is UTC


def test_who_rests_and_is_not_spent_is_waited_for_no_longer_than_it_rests() -> None:
    async def main() -> StopRun:
        dispatcher = dispatcher_of(account("rests"), account("spent", daily_limit=1))
        provider = Provider(rests=[refused(429, retry_after="7200")])
        await ask(dispatcher, provider)
        return await stopped(ask(dispatcher, provider))

    stop = run(main())
    assert stop.until == datetime(2026, 3, 14, 14, 1, tzinfo=UTC)


def test_the_end_of_the_quota_names_accounts_that_are_out_as_well() -> None:
    async def main() -> StopRun:
        dispatcher = dispatcher_of(account("spent", daily_limit=1), account("revoked"))
        provider = Provider(revoked=[refused(401, "no such key")])
        await ask(dispatcher, provider)
        return await stopped(ask(dispatcher, provider))

    stop = run(main())
    assert stop.exit_code == TRY_LATER
    assert "is spent (spent) until 2026-03-15" in str(stop)
    assert str(stop).endswith("(revoked: APIStatusError: no such key)")


def test_a_new_day_brings_a_new_quota() -> None:
    async def main() -> list[str]:
        day = [NOON]
        dispatcher = dispatcher_of(account(daily_limit=1), wall=lambda: day[0])
        provider = Provider()
        await ask(dispatcher, provider)
        await stopped(ask(dispatcher, provider))
        day[0] += 86400
        await ask(dispatcher, provider)
        return [str(await stopped(ask(dispatcher, provider)))]

    assert "until 2026-03-16 00:00 UTC" in run(main())[0]


def test_an_account_whose_new_day_begins_serves_those_who_wait_already() -> None:
    async def main() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        dispatcher = dispatcher_of(
            account("daily", daily_limit=2, concurrency=1),
            account("busy", concurrency=1),
            wall=lambda: NOON + loop.time(),
        )
        provider = Provider(seconds=600)
        await asyncio.gather(*(ask(dispatcher, provider) for _ in range(100)))
        return provider.sent

    midnight = 12 * 3600.0
    assert [at for at, name in run(main()) if name == "daily" and at < midnight] == [0.0, 600.0]
    assert [at for at, name in run(main()) if name == "daily" and at >= midnight] == [
        pytest.approx(midnight, abs=3600),
        pytest.approx(midnight + 600, abs=3600),
    ]


def test_a_call_that_ends_after_midnight_takes_nothing_off_the_new_day() -> None:
    async def main() -> list[tuple[int, int]]:
        clock = [NOON]
        dispatcher = dispatcher_of(
            account(daily_limit=9, daily_token_limit=10_000), wall=lambda: clock[0]
        )
        yesterdays = await dispatcher.get_available_client(tokens=5000)
        clock[0] += 86400
        todays = await dispatcher.get_available_client(tokens=2000)
        await dispatcher.release_client_on_success(todays, Used(1500, 500))
        await dispatcher.release_client_on_success(yesterdays, Used(100, 0))
        seen = dispatcher.snapshot()[0]
        return [(seen["requests_today"], seen["tokens_today"])]

    [(requests, tokens)] = run(main())
    assert requests == 1
    assert tokens >= 2000


def test_daily_counts_survive_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "data" / "daily_request_log.json"

    async def calls(number: int) -> int:
        accounts = [account("limited", daily_limit=5, roles=("judge",)), account("free")]
        with dispatcher_of(*accounts, log_file=log) as dispatcher:
            provider = Provider(answer=Used(20, 5))
            for _ in range(number):
                try:
                    await ask(dispatcher, provider, role="judge")
                except StopRun as stop:
                    assert stop.exit_code == TRY_LATER
            return provider.names.count("limited")

    async def only_limited(number: int) -> int:
        with dispatcher_of(account("limited", daily_limit=5), log_file=log) as dispatcher:
            provider = Provider(answer=Used(20, 5))
            for _ in range(number):
                try:
                    await ask(dispatcher, provider)
                except StopRun as stop:
                    assert stop.exit_code == TRY_LATER
            return len(provider.sent)

    assert run(only_limited(3)) == 3
    assert run(only_limited(9)) == 2
    assert run(calls(4)) == 0
    assert log_of(log) == {
        TODAY: {
            "limited": {"requests": 5, "tokens": 125},
            "free": {"requests": 4, "tokens": 100},
        }
    }


def test_failed_calls_count_against_the_day_once(tmp_path: Path) -> None:
    log = tmp_path / "log.json"

    async def main() -> None:
        with dispatcher_of(
            account("limited", daily_limit=9, roles=("judge",)),
            account("free", roles=("student",)),
            log_file=log,
        ) as dispatcher:
            provider = Provider(limited=[refused(500)], free=[refused(500)])
            await ask(dispatcher, provider, role="judge")
            await ask(dispatcher, provider, role="student")

    run(main())
    counts = {name: entry["requests"] for name, entry in log_of(log)[TODAY].items()}
    assert counts == {"limited": 2, "free": 2}


def test_a_call_refused_for_its_price_is_not_counted_as_made(tmp_path: Path) -> None:
    log = tmp_path / "log.json"

    async def main() -> None:
        with dispatcher_of(
            account(daily_limit=100, **PRICED), max_cost=4.0, log_file=log
        ) as dispatcher:
            provider = Provider(answer=Used(0, 300))
            await ask(dispatcher, provider)
            assert (await stopped(ask(dispatcher, provider))).exit_code == BUDGET

    run(main())
    assert log_of(log)[TODAY]["a"]["requests"] == 1


def test_days_older_than_five_weeks_leave_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    entry = {"a": {"requests": 1, "tokens": 1}}
    log.write_text(json.dumps({"2025-12-31": entry, "2026-02-07": entry, "2026-02-06": entry}))

    async def main() -> None:
        with dispatcher_of(account(), log_file=log) as dispatcher:
            await ask(dispatcher, Provider())

    run(main())
    assert list(log_of(log)) == ["2026-02-07", TODAY]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"2026-03-14": {"a": {"requests": "many", "tokens": 0}}}', '{"2026-03-14": 1}'],
)
def test_a_damaged_log_stops_the_run_rather_than_forgetting_the_quota(
    tmp_path: Path, content: str
) -> None:
    log = tmp_path / "log.json"
    log.write_text(content)

    async def first_call() -> None:
        await ask(dispatcher_of(account(daily_limit=5), log_file=log), Provider())

    stop = run(stopped(first_call()))
    assert stop.exit_code == USAGE
    assert str(stop).startswith(f"{log}: unreadable (")
    assert str(stop).endswith("; repair it, or delete it to forget today's counts")
    assert log.read_text() == content


@pytest.mark.parametrize("in_the_way", ["a file for the folder", "a folder for the lock"])
def test_a_log_that_cannot_be_written_stops_the_run(tmp_path: Path, in_the_way: str) -> None:
    log = tmp_path / "data" / "log.json"
    if in_the_way == "a file for the folder":
        log.parent.write_text("")
    else:
        (log.parent / "log.json.lock").mkdir(parents=True)

    async def first_call() -> None:
        await ask(dispatcher_of(account(daily_limit=5), log_file=log), Provider())

    stop = run(stopped(first_call()))
    assert stop.exit_code == USAGE
    assert str(stop).startswith(f"{log}: cannot be written (")


SPEND_THE_DAY = """
import asyncio, sys
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import StopRun

async def main():
    account = LLMClientConfig("shared", "m", daily_limit=40, concurrency=3)
    calls = 0
    with LLMDispatcher([account], log_file=sys.argv[1], wall=lambda: 1773489600.0) as dispatcher:
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            while True:
                await dispatcher.release_client_on_success(await dispatcher.get_available_client())
                calls += 1
        except StopRun as stop:
            print(calls, stop.exit_code)

asyncio.run(main())
"""


def test_processes_that_share_the_log_never_exceed_the_limit_together(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPEND_THE_DAY, str(log)],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # all at once
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [code for _, code in said] == [str(TRY_LATER)] * 3
    assert sum(int(calls) for calls, _ in said) == 40
    assert log_of(log) == {TODAY: {"shared": {"requests": 40, "tokens": 0}}}


# ---------------------------------------------------------------------- whatever happens


@dataclass(frozen=True)
class Job:
    """One item: when it comes, how long each attempt takes, how they end, when it is given up."""

    at: float
    seconds: float
    ends: tuple[str, ...]
    cancelled_after: float | None
    tokens: int


jobs = st.builds(
    Job,
    at=st.floats(0, 20),
    seconds=st.floats(0, 3),
    ends=st.lists(
        st.sampled_from(["ok", "429", "429 in 2 s", "500", "400"]), min_size=1, max_size=4
    ).map(tuple),
    cancelled_after=st.sampled_from([None, None, None, 0.0, 0.1, 2.0]),
    tokens=st.integers(0, 200),
)
limits = st.fixed_dictionaries(
    {
        "rpm_limit": st.sampled_from([None, 30, 60, 600, 6000]),
        "tpm_limit": st.sampled_from([None, 60_000]),
        "concurrency": st.sampled_from([1, 2, 8]),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    accounts=st.lists(limits, min_size=1, max_size=4),
    jobs=st.lists(jobs, min_size=1, max_size=40),
)
def test_whatever_happens_limits_hold_and_every_slot_comes_back(
    accounts: list[dict[str, Any]], jobs: list[Job]
) -> None:
    errors = {
        "429": refused(429),
        "429 in 2 s": refused(429, retry_after="2"),
        "500": refused(500),
        "400": refused(400),
    }

    async def main() -> None:
        configs = [account(f"account-{n}", **fields) for n, fields in enumerate(accounts)]
        dispatcher = dispatcher_of(*configs)
        sent: dict[str, list[float]] = defaultdict(list)
        in_flight: Counter[str] = Counter()
        rests: dict[str, list[tuple[float, float]]] = defaultdict(list)
        turned_away: dict[str, list[tuple[float, float]]] = defaultdict(list)

        async def one(job: Job) -> None:
            ends = deque(job.ends)

            async def send(lease: Lease) -> Used:
                started = now()
                sent[lease.name].append(started)
                in_flight[lease.name] += 1
                assert in_flight[lease.name] <= lease.concurrency
                try:
                    await asyncio.sleep(job.seconds)
                finally:
                    in_flight[lease.name] -= 1
                end = ends.popleft() if ends else "ok"
                if end.startswith("429"):
                    turned_away[lease.name].append((started, now()))
                unlimited = lease.rpm_limit is None and lease.tpm_limit is None
                if end == "429 in 2 s" and not (unlimited and in_flight[lease.name]):
                    # else it may be about the number at once: the end of another makes room
                    rests[lease.name].append((now(), now() + 2))
                if end in errors:
                    raise errors[end]
                return Used(job.tokens, 300)

            await asyncio.sleep(job.at)
            await ask(dispatcher, send, input_tokens=job.tokens)

        async def give_up(job: Job, task: asyncio.Task[None]) -> None:
            await asyncio.sleep(job.at + job.cancelled_after)
            task.cancel()

        tasks = [asyncio.create_task(one(job)) for job in jobs]
        cancels = [
            give_up(job, task)
            for job, task in zip(jobs, tasks, strict=True)
            if job.cancelled_after is not None
        ]
        ended = await asyncio.gather(*tasks, *cancels, return_exceptions=True)
        expected = (type(None), openai.APIStatusError, asyncio.CancelledError)
        assert [end for end in ended if not isinstance(end, expected)] == []
        for seen, fields in zip(dispatcher.snapshot(), accounts, strict=True):
            assert (seen["in_flight"], seen["started"]) == (0, len(sent[seen["name"]]))
            if fields["rpm_limit"]:
                counted = Counter(sent[seen["name"]])
                counted.subtract(at for at, _ in turned_away[seen["name"]])
                assert_no_window_above(
                    sorted(counted.elements()),
                    fields["rpm_limit"],
                    given_back=[end for _, end in turned_away[seen["name"]]],
                )
            for start, end in rests[seen["name"]]:
                early = [t for t in sent[seen["name"]] if start < t < end - ROUNDING]
                assert early == [], "called while it rests"
        while any(seen["failing"] for seen in dispatcher.snapshot()):
            await asyncio.sleep(61)  # the longest rest; then one call may try
            await ask(dispatcher, Provider())
        # Nobody is left waiting in front of newcomers, and all slots can be had at once: those
        # configured, less what was refused beside others.
        slots = {a.config.name: a.limits.meter.slots for a in dispatcher._accounts}
        free = {name: int(kept.now) for name, kept in slots.items()}
        leases = [await dispatcher.get_available_client() for _ in range(sum(free.values()))]
        assert Counter(lease.name for lease in leases) == free
        for config in configs:
            ends = [end for job in jobs for end in job.ends]
            learnt = config.rpm_limit is None and config.tpm_limit is None and len(jobs) > 1
            if not (learnt and any(end.startswith("429") for end in ends)):
                assert free[config.name] == config.concurrency

    run(main())


@settings(max_examples=60, deadline=None)
@given(
    tpm=st.sampled_from([60, 6000, 60_000]),
    calls=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3000)), min_size=1, max_size=30),
)
def test_no_window_holds_more_tokens_than_the_limit(
    tpm: float, calls: list[tuple[float, int]]
) -> None:
    async def main() -> tuple[list[float], list[float]]:
        dispatcher = dispatcher_of(account(tpm_limit=tpm))
        times, amounts = [], []
        for pause, tokens in calls:
            await asyncio.sleep(pause)
            lease = await dispatcher.get_available_client(tokens=tokens)
            times.append(now())
            amounts.append(float(tokens))
            await dispatcher.release_client_on_success(lease, Used(tokens, 0))
        return times, amounts

    times, amounts = run(main())
    assert_no_window_above(times, tpm, amounts)


@settings(max_examples=60, deadline=None)
@given(
    limits=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    ends=st.lists(st.sampled_from(["ok", "429 in 2 s", "500", "400"]), min_size=1, max_size=25),
)
def test_no_day_sees_more_calls_than_its_limit(limits: list[int], ends: list[str]) -> None:
    errors = {"429 in 2 s": refused(429, retry_after="2"), "500": refused(500), "400": refused(400)}

    async def main() -> None:
        configs = [account(f"account-{n}", daily_limit=limit) for n, limit in enumerate(limits)]
        dispatcher, provider = dispatcher_of(*configs), Provider(seconds=0.1)
        left = deque(ends)

        async def send(lease: Lease) -> Used:
            await provider(lease)
            if left and (end := left.popleft()) in errors:
                raise errors[end]
            return Used()

        calls = [ask(dispatcher, send) for _ in range(len(ends) + 5)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        counts = Counter(provider.names)
        assert all(counts[c.name] <= c.daily_limit for c in configs)
        stops = [end for end in ended if isinstance(end, StopRun)]
        if stops:  # nobody was turned away while there was quota left
            assert counts == {c.name: c.daily_limit for c in configs}
            assert {stop.exit_code for stop in stops} == {TRY_LATER}

    run(main())


# ---------------------------------------------------------------------- as the existing application


def on_a_thread(function: Any, *args: Any) -> Future[Any]:
    """Run on a daemon thread, so that a test for a hang can fail instead of hanging."""
    future: Future[Any] = Future()

    def body() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


async def one_call(dispatcher: LLMDispatcher) -> str:
    """As that application's own code makes one."""
    client = await dispatcher.get_available_client()
    async with dispatcher.client_semaphores[client.name]:
        if client.limiter:
            async with client.limiter:
                pass
        answer = await client.raw_client.chat.completions.create(
            model=client.model, messages=[{"role": "user", "content": "What is 2+2?"}]
        )
    await dispatcher.release_client_on_success(client)
    return answer.choices[0].message.content


def test_the_three_methods_are_coroutines() -> None:
    dispatcher = LLMDispatcher([account()])
    for method in (
        dispatcher.get_available_client,
        dispatcher.release_client_on_success,
        dispatcher.release_client_on_failure,
    ):
        assert asyncio.iscoroutinefunction(method)
    assert [client.name for client in dispatcher.clients] == ["a"]
    assert list(dispatcher.client_semaphores) == ["a"]


async def test_a_lease_has_the_fields_that_a_client_configuration_has() -> None:
    config = account(
        base_url="http://127.0.0.1:1/v1", api_key="abcd1234", rpm_limit=60, daily_limit=9
    )
    dispatcher = LLMDispatcher([config])
    lease = await dispatcher.get_available_client()
    shown = {
        name: getattr(lease, name)
        for name in ("name", "model", "base_url", "api_key", "rpm_limit", "daily_limit", "limiter")
    }
    assert shown == {
        "name": "a",
        "model": "m",
        "base_url": "http://127.0.0.1:1/v1",
        "api_key": "abcd1234",
        "rpm_limit": 60,
        "daily_limit": 9,
        "limiter": None,
    }
    assert isinstance(lease.client, openai.AsyncOpenAI)
    assert lease.raw_client is lease.client
    assert lease.client.max_retries == 0
    assert "abcd1234" not in repr(lease) + repr(config)
    with pytest.raises(AttributeError):
        _ = lease.no_such_field
    await dispatcher.release_client_on_success(lease)
    await dispatcher.aclose()


def test_it_works_in_a_second_asyncio_run_after_the_first_has_ended(llm_server: Any) -> None:
    server = llm_server()
    dispatcher = LLMDispatcher([account(base_url=f"{server.url}/v1", api_key="k", concurrency=1)])

    async def twice() -> list[str]:
        said = list(await asyncio.gather(one_call(dispatcher), one_call(dispatcher)))
        await dispatcher.aclose()
        return said

    assert asyncio.run(twice()) == ["4", "4"]
    assert asyncio.run(twice()) == ["4", "4"]
    assert dispatcher.snapshot()[0]["ok"] == 4


def test_a_run_that_was_cut_off_leaves_no_slot_taken_for_the_next() -> None:
    dispatcher = LLMDispatcher([account(concurrency=1)])

    async def cut_off() -> None:
        await dispatcher.get_available_client()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(dispatcher.get_available_client(), 0.01)

    async def next_run() -> str:
        return (await asyncio.wait_for(dispatcher.get_available_client(), 20)).name

    asyncio.run(cut_off())
    assert asyncio.run(next_run()) == "a"


def test_other_loops_share_the_slots_of_the_home_loop(llm_server: Any) -> None:
    both_in = threading.Barrier(2, timeout=20)

    def reply(messages: Any) -> str:
        with in_flight:
            both_in.wait()
        return "4"

    in_flight = threading.Semaphore(2)
    server = llm_server(reply)
    config = account(base_url=f"{server.url}/v1", api_key="k", concurrency=2)
    with LLMDispatcher([config]) as dispatcher:
        dispatcher.run(asyncio.sleep(0))  # the home loop is the dispatcher's own thread

        async def some() -> list[str]:
            said = await asyncio.gather(*(one_call(dispatcher) for _ in range(2)))
            await dispatcher.aclose()
            return said

        loops = [on_a_thread(asyncio.run, some()) for _ in range(3)]
        assert [loop.result(timeout=60) for loop in loops] == [["4", "4"]] * 3
        seen = dispatcher.snapshot()[0]
    assert (seen["ok"], seen["in_flight"]) == (6, 0)


def test_a_waiter_on_another_loop_that_gives_up_loses_no_slot() -> None:
    with LLMDispatcher([account(concurrency=1)]) as dispatcher:
        held = dispatcher.run(dispatcher.get_available_client())

        async def give_up() -> None:
            waiter = asyncio.create_task(dispatcher.get_available_client())
            await asyncio.sleep(0.05)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await dispatcher.release_client_on_success(held)
            lease = await asyncio.wait_for(dispatcher.get_available_client(), 20)
            await dispatcher.release_client_on_failure(lease)

        asyncio.run(give_up())
        seen = dispatcher.snapshot()[0]
    assert (seen["in_flight"], seen["ok"], seen["failed"]) == (0, 1, 1)


async def test_a_call_in_flight_on_a_hosts_loop_may_end_after_the_closing(tmp_path: Path) -> None:
    dispatcher = LLMDispatcher([account()], log_file=tmp_path / "log.json")

    async def send(lease: Lease) -> Used:
        await asyncio.sleep(0.05)
        return Used(1, 1)

    call = asyncio.create_task(dispatcher.call(send))
    await asyncio.sleep(0.01)
    dispatcher.close()
    answer, _ = await call
    assert answer == Used(1, 1)


def test_a_blocking_call_on_the_home_loop_is_refused_instead_of_hanging() -> None:
    async def main() -> None:
        dispatcher = LLMDispatcher([account()])
        await dispatcher.get_available_client()
        with pytest.raises(RuntimeError, match="would wait for itself"):
            dispatcher.run(asyncio.sleep(0))

    asyncio.run(main())


def test_closing_while_threads_keep_asking_leaves_none_of_them_waiting() -> None:
    """DSPy's workers go on when a run is stopped; one that waits for ever blocks the exit."""

    def ask_until_stopped(dispatcher: LLMDispatcher) -> str:
        try:
            while True:
                lease = dispatcher.run(dispatcher.get_available_client())
                dispatcher.run(dispatcher.release_client_on_success(lease))
        except StopRun as stop:
            return str(stop)

    for _ in range(60):
        dispatcher = LLMDispatcher([account()])
        threads = [on_a_thread(ask_until_stopped, dispatcher) for _ in range(4)]
        while dispatcher.calls < 4 and not any(thread.done() for thread in threads):
            time.sleep(0.001)
        dispatcher.close()
        assert [t.result(timeout=30) for t in threads] == ["the dispatcher is closed"] * 4


def test_a_home_loop_that_stands_still_is_left_for_one_that_runs() -> None:
    """A host may use `loop.run_until_complete`, which leaves its loop open but not running."""
    dispatcher = LLMDispatcher([account()])
    loop = asyncio.new_event_loop()
    try:
        lease = loop.run_until_complete(dispatcher.get_available_client())
        loop.run_until_complete(dispatcher.release_client_on_success(lease))
        again = on_a_thread(dispatcher.run, dispatcher.get_available_client())
        assert again.result(timeout=30).name == "a"
    finally:
        loop.close()


async def test_a_lease_of_an_account_serves_our_own_way_of_calling_too(llm_server: Any) -> None:
    server = llm_server()
    dispatcher = LLMDispatcher([account(base_url=f"{server.url}/v1", api_key="k")])
    lease = await dispatcher.get_available_client()
    request = ChatRequest(system="", messages=(("user", "What is 2+3?"),))
    answer = await complete(lease, lease.model, request)
    await dispatcher.release_client_on_success(lease, answer)
    await dispatcher.aclose()
    assert answer.text == "5"
    assert dispatcher.snapshot()[0]["input_tokens"] == answer.input_tokens


# ---------------------------------------------------------------------- money, days and odd answers


def test_what_calls_may_write_is_reserved_so_that_no_crowd_passes_the_ceiling() -> None:
    async def main() -> tuple[float, int]:
        dispatcher = dispatcher_of(
            account(input_price=1.0, output_price=10.0, token_rule="used"), max_cost=1.0
        )
        provider = Provider(seconds=1, answer=Used(100, 4000))
        calls = [ask(dispatcher, provider, input_tokens=100, max_tokens=4096) for _ in range(60)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {end.exit_code for end in ended if isinstance(end, StopRun)} == {BUDGET}
        return dispatcher.spend, len(provider.sent)

    spend, made = run(main())
    assert made * 0.0401 == pytest.approx(spend)
    assert 1.0 - 2 * 0.0411 < spend <= 1.0


def test_a_free_account_goes_on_where_a_paid_one_would_pass_the_ceiling() -> None:
    async def main() -> list[str]:
        accounts = account("paid", **PRICED), account("free", input_price=0.0, output_price=0.0)
        dispatcher, provider = dispatcher_of(*accounts, max_cost=0.001), Provider()
        for _ in range(20):
            await ask(dispatcher, provider, input_tokens=900)
        return provider.names

    assert run(main()) == ["free"] * 20


@pytest.mark.parametrize("used", [None, Used(None, None), Used("12", "5"), Used(math.nan, -3)])  # type: ignore[arg-type]
def test_an_answer_that_tells_no_usage_counts_as_what_was_reserved(used: Used | None) -> None:
    async def main() -> tuple[int, float]:
        config = account(daily_token_limit=5000, concurrency=1, **PRICED, token_rule="used")
        dispatcher = dispatcher_of(config)
        made = 0
        with pytest.raises(StopRun):
            while made < 100:
                lease = await dispatcher.get_available_client(tokens=1000)
                await dispatcher.release_client_on_success(lease, used)
                made += 1
        return made, dispatcher.spend

    made, spend = run(main())
    assert made == 5
    assert spend > 0


def test_tokens_reserved_in_flight_do_not_end_the_day() -> None:
    async def main() -> tuple[int, int]:
        config = account(daily_token_limit=100_000, token_rule="reserved")
        dispatcher = dispatcher_of(config)
        provider = Provider(seconds=10, answer=Used(500, 100))
        calls = [ask(dispatcher, provider, input_tokens=500, max_tokens=4096) for _ in range(64)]
        await asyncio.gather(*calls)
        return len(provider.sent), dispatcher.snapshot()[0]["tokens_today"]

    assert run(main()) == (64, 64 * 600)


def test_an_item_larger_than_a_minute_of_tokens_is_given_up_and_teaches_nothing() -> None:
    async def main() -> tuple[int, float]:
        dispatcher = dispatcher_of(account(tpm_limit=6000))
        words = "This request would exceed your rate limit of 6,000 input tokens per minute"
        provider = Provider(a=[refused(429, words, retry_after="5") for _ in range(99)])
        with pytest.raises(openai.APIStatusError):
            await ask(dispatcher, provider, input_tokens=9000)
        return len(provider.sent), dispatcher.snapshot()[0]["per_minute"]["tokens"]

    attempts, rate = run(main())
    assert attempts <= 3
    assert rate > 5900


def test_a_filtered_item_takes_no_account_out() -> None:
    async def main() -> list[str]:
        dispatcher = dispatcher_of(account("a"), account("b"))
        words = "Your chosen model requires moderation and your input was flagged"
        with pytest.raises(openai.APIStatusError):
            await ask(dispatcher, Provider(a=[refused(403, words)], b=[refused(403, words)]))
        return [seen["out"] for seen in dispatcher.snapshot()]

    assert run(main()) == ["", ""]


def test_a_lone_waiter_of_shared_accounts_uses_the_one_that_is_ready(tmp_path: Path) -> None:
    async def main() -> list[str]:
        accounts = account("slow", concurrency=1), account("paced", rpm_limit=60, concurrency=9)
        dispatcher = dispatcher_of(*accounts, log_file=tmp_path / "log.json")
        names: list[str] = []

        async def send(lease: Lease) -> Used:
            names.append(lease.name)
            await asyncio.sleep(110 if lease.name == "slow" else 1)
            return Used(1, 1)

        await asyncio.sleep(50)
        await asyncio.gather(*(dispatcher.call(send) for _ in range(10)))
        dispatcher.close()
        return names

    names = run(main())
    assert names.count("slow") == 1
    assert names.count("paced") == 9


def test_closing_tells_those_who_wait_on_the_callers_own_loop() -> None:
    async def main() -> float:
        dispatcher = dispatcher_of(account())
        waiting = asyncio.create_task(
            ask(dispatcher, Provider(a=[refused(429, retry_after="800")] * 2))
        )
        await asyncio.sleep(1)
        dispatcher.close()
        with pytest.raises(StopRun):
            await waiting
        return now()

    assert run(main()) < 2
