"""Limits that processes share: real processes on one log, several stores in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, clean_environment
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import TRY_LATER, USAGE, StopRun
from question_optimizer.failures import Failure
from question_optimizer.limit_file import SharedLimitStore, read_log
from question_optimizer.limit_store import Limits, LimitStore
from question_optimizer.limits import ROW_LENGTH, Ended, Need
from test_dispatcher import (
    NOON,
    ROUNDING,
    TODAY,
    Provider,
    Used,
    account,
    ask,
    assert_no_window_above,
    dispatcher_of,
    distance,
    log_of,
    now,
    refused,
    stopped,
)
from virtual_time import run

NAME = "shared"

# One process: so many callers, each of which makes calls until the time or the quota is up. Every
# call is written down, in one write, before it is made ("+") and when it ends ("-").
WORK = """
import asyncio, json, os, sys, time
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import StopRun

log, calls = sys.argv[1:3]
options = json.loads(sys.argv[3])
made = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def write(sign):
    os.write(made, f"{sign} {time.monotonic():.6f} {os.getpid()}\\n".encode())

async def one(dispatcher):
    while True:
        lease = await dispatcher.get_available_client()
        write("+")
        await asyncio.sleep(options.get("hold", 0.0))
        write("-")
        await dispatcher.release_client_on_success(lease)

async def main():
    account = LLMClientConfig("shared", "m", **options.get("account", {}))
    ahead = options.get("wall", time.time()) - time.time()
    with LLMDispatcher([account], log_file=log, wall=lambda: time.time() + ahead) as dispatcher:
        print("ready", flush=True)
        sys.stdin.readline()
        callers = [one(dispatcher) for _ in range(options.get("callers", 1))]
        try:
            await asyncio.wait_for(asyncio.gather(*callers), options.get("seconds", 20))
        except TimeoutError:
            print(0)
        except StopRun as stop:
            print(stop.exit_code)

asyncio.run(main())
"""


@contextmanager
def processes(number: int, folder: Path, **options: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes that share one log, waiting for a line to begin; killed at the end."""
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", WORK),
                *(str(folder / "log.json"), str(folder / "calls"), json.dumps(options)),
            ],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def go(*started: subprocess.Popen[str]) -> None:
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()


def ended(started: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The exit codes that the processes gave for having stopped; 0 where time was up."""
    return [int(process.communicate(timeout=60)[0]) for process in started]


def calls_in(folder: Path) -> list[tuple[str, float, int]]:
    """(sign, time, process) of what was written down, by time."""
    lines = [line.split() for line in (folder / "calls").read_text().splitlines()]
    return sorted(((sign, float(at), int(pid)) for sign, at, pid in lines), key=lambda c: c[1])


def made_in(folder: Path) -> int:
    path = folder / "calls"
    return path.read_text().count("+") if path.exists() else 0


@contextmanager
def opened(
    log: Path, *configs: LLMClientConfig, at: float = 0.0, wall: float = NOON
) -> Iterator[list[Limits]]:
    """Limits as one process sees them, on a fixed day."""
    store = SharedLimitStore(log, lambda: wall + at)
    yield store.open(configs or [account(NAME)], at, lambda: None)
    store.close()


class OneCall:
    """Somebody who wants to make a call of one request."""

    def need(self, config: LLMClientConfig) -> Need:
        return Need()


WISH = OneCall()


CALL = Need()


def end_call(limits: Limits, need: Need = CALL, used: Need = CALL) -> None:
    """A call that began today at 0.0 ends."""
    limits.end(Ended(need, used, used.tokens, 0.0, limits.meter.day))


# ---------------------------------------------------------------------- real processes


def test_four_processes_spend_a_days_limit_exactly(tmp_path: Path) -> None:
    limit = {"daily_limit": 150, "concurrency": 3}
    with processes(4, tmp_path, account=limit, callers=3, wall=NOON) as started:
        go(*started)
        assert ended(started) == [TRY_LATER] * 4
    assert made_in(tmp_path) == 150
    assert log_of(tmp_path / "log.json") == {TODAY: {NAME: {"requests": 150, "tokens": 0}}}


def test_what_a_killed_process_had_counted_stays_counted(tmp_path: Path) -> None:
    """Killed at any moment: every call that was made is counted, and no more than could be."""
    log, rng = tmp_path / "log.json", random.Random(0)
    options = {"account": {"concurrency": 6}, "callers": 3, "wall": NOON}
    rounds = 15
    with processes(1, tmp_path, **options, hold=0.01) as others:  # one that lives on
        go(*others)
        for _ in range(rounds // 3):
            with processes(3, tmp_path, **options) as started:
                go(*started)
                for process in started:
                    time.sleep(rng.uniform(0.0, 0.15))
                    process.kill()
    made = made_in(tmp_path)
    assert made > 100
    with opened(log) as [limits]:
        counted = limits.meter.requests_today
        assert limits.meter.in_flight == 0
    assert made <= counted <= made + 6 * (rounds + 1)
    assert log_of(log)[TODAY][NAME]["requests"] == counted
    for once_more in range(1, 4):  # the next run goes on from there
        with opened(log) as [limits]:
            assert limits.take(Need(), 0.0)
            end_call(limits)
        assert log_of(log)[TODAY][NAME]["requests"] == counted + once_more


def test_a_killed_process_never_lets_the_days_limit_be_passed(tmp_path: Path) -> None:
    rng = random.Random(1)
    options = {"account": {"daily_limit": 400, "concurrency": 4}, "callers": 2, "wall": NOON}
    for _ in range(3):
        with processes(2, tmp_path, **options, hold=0.002) as started:
            go(*started)
            time.sleep(rng.uniform(0.0, 0.1))
            started[0].kill()
            time.sleep(rng.uniform(0.0, 0.05))
    with processes(1, tmp_path, **options) as started:
        go(*started)
        assert ended(started) == [TRY_LATER]
    made = made_in(tmp_path)
    assert 400 - 6 * 2 <= made <= 400  # each of the killed had two callers
    assert log_of(tmp_path / "log.json")[TODAY][NAME]["requests"] == 400


def test_processes_together_have_no_more_calls_at_once_than_the_account_allows(
    tmp_path: Path,
) -> None:
    options = {"account": {"concurrency": 3}, "callers": 5, "hold": 0.02, "seconds": 1.5}
    with processes(2, tmp_path, **options) as started:
        go(*started)
        assert ended(started) == [0, 0]
    at_once = most = 0
    for sign, _, _ in calls_in(tmp_path):
        at_once += 1 if sign == "+" else -1
        most = max(most, at_once)
    assert most == 3


def test_four_processes_share_a_rate_fairly_and_keep_to_it(tmp_path: Path) -> None:
    options = {"account": {"rpm_limit": 6000, "concurrency": 100}, "callers": 5, "seconds": 4.0}
    with processes(4, tmp_path, **options) as started:
        go(*started)
        assert ended(started) == [0] * 4
    calls = [(at, pid) for sign, at, pid in calls_in(tmp_path) if sign == "+"]
    span = calls[-1][0] - calls[0][0]
    assert len(calls) <= 100 * (span + 0.2) + 5
    assert len(calls) >= 200  # the machine may be busy
    counts = Counter(pid for _, pid in calls)
    mean = len(calls) / 4
    assert len(counts) == 4
    assert all(abs(count - mean) <= 0.2 * mean for count in counts.values()), counts


def test_the_slots_of_a_killed_process_are_free_for_the_next(tmp_path: Path) -> None:
    options = {"account": {"concurrency": 2}, "callers": 2, "hold": 60.0}
    with processes(1, tmp_path, **options) as started:
        go(*started)
        wait_for(lambda: made_in(tmp_path) == 2)
        with opened(tmp_path / "log.json", account(NAME, concurrency=2)) as [limits]:
            assert limits.meter.in_flight == 2  # it lives
            assert limits.ready_at(WISH, 0.0) > 0.0
        started[0].kill()
        started[0].wait()
    with opened(tmp_path / "log.json", account(NAME, concurrency=2)) as [limits]:
        assert limits.meter.in_flight == 0
        assert limits.ready_at(WISH, 0.0) == 0.0


def test_the_slots_of_a_killed_process_are_free_for_those_who_wait(tmp_path: Path) -> None:
    async def main() -> None:
        with (
            LLMDispatcher([account(NAME, concurrency=1)], log_file=tmp_path / "log.json") as own,
            processes(1, tmp_path, account={"concurrency": 1}, hold=60.0) as started,
        ):
            go(*started)
            wait_for(lambda: made_in(tmp_path) == 1)
            waiter = asyncio.create_task(own.get_available_client())
            await asyncio.sleep(0.1)
            assert not waiter.done()
            started[0].kill()
            started[0].wait()
            lease = await asyncio.wait_for(waiter, 4)
            await own.release_client_on_success(lease)

    asyncio.run(main())


def wait_for(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited 20 s in vain")


REFUSED_ONCE = """
import asyncio, sys, time
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.failures import Failure

async def main():
    with LLMDispatcher([LLMClientConfig("shared", "m")], log_file=sys.argv[1]) as dispatcher:
        lease = await dispatcher.get_available_client()
        failure = Failure("rate_limited", "429", retry_after=2.0)
        await dispatcher.release_client_on_failure(lease, failure)
        print(time.monotonic())  # the same clock in every process of a machine

asyncio.run(main())
"""


def test_one_processs_rate_limit_rests_the_account_for_the_others(tmp_path: Path) -> None:
    async def main() -> float:
        with LLMDispatcher([account(NAME)], log_file=tmp_path / "log.json") as dispatcher:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", REFUSED_ONCE, str(tmp_path / "log.json")),
                cwd=ROOT,
                env=clean_environment(),
                stdout=subprocess.PIPE,
            )
            refused, _ = await process.communicate()
            assert process.returncode == 0
            lease = await asyncio.wait_for(dispatcher.get_available_client(), 20)
            waited = time.monotonic() - float(refused)
            await dispatcher.release_client_on_success(lease)
            return waited

    assert asyncio.run(main()) > 1.9


# ---------------------------------------------------------------------- shared, in virtual time


def test_stores_that_share_a_limit_keep_it_to_the_call_and_take_turns(tmp_path: Path) -> None:
    async def main() -> tuple[Provider, list[int]]:
        provider, made = Provider(seconds=0.3), [0] * 4
        dispatchers = [
            dispatcher_of(account(NAME, rpm_limit=600), log_file=tmp_path / "log.json")
            for _ in made
        ]

        async def caller(number: int) -> None:
            while now() < 90:
                await ask(dispatchers[number], provider)
                made[number] += 1

        await asyncio.gather(*(caller(n % 4) for n in range(4 * 8)))
        for dispatcher in dispatchers:
            dispatcher.close()
        return provider, made

    provider, made = run(main())
    assert_no_window_above(provider.times, 600)
    assert len(provider.sent) == pytest.approx(90 * 600 / 60.1, abs=40)
    assert max(made) - min(made) <= 8


def test_stores_that_share_an_account_share_its_slots(tmp_path: Path) -> None:
    async def main() -> tuple[Provider, float]:
        provider = Provider(seconds=1)
        dispatchers = [
            dispatcher_of(account(NAME, concurrency=3), log_file=tmp_path / "log.json")
            for _ in range(2)
        ]
        await asyncio.gather(*(ask(dispatchers[n % 2], provider) for n in range(30)))
        for dispatcher in dispatchers:
            dispatcher.close()
        return provider, now()

    provider, ended_at = run(main())
    assert provider.most == {NAME: 3}
    assert ended_at < 10 * 1.06 + 0.1  # another's slot is seen within 0.05 s


def test_no_store_keeps_the_slots_that_it_shares_to_itself(tmp_path: Path) -> None:
    async def main() -> list[int]:
        made = [0, 0]
        dispatchers = [
            dispatcher_of(account(NAME, concurrency=3), log_file=tmp_path / "log.json")
            for _ in made
        ]
        provider = Provider(seconds=0.03)

        async def caller(number: int) -> None:
            while now() < 60:
                await ask(dispatchers[number], provider)
                made[number] += 1

        await asyncio.gather(*(caller(n // 5) for n in range(10)))
        for dispatcher in dispatchers:
            dispatcher.close()
        return made

    made = run(main())
    assert min(made) > 0.1 * max(made), made


def test_a_refusal_told_to_one_store_rests_the_account_for_all(tmp_path: Path) -> None:
    async def main() -> list[float]:
        dispatchers = [
            dispatcher_of(account(NAME, rpm_limit=600), log_file=tmp_path / "log.json")
            for _ in range(3)
        ]
        provider = Provider(seconds=0.1, **{NAME: [refused(429, retry_after="30")]})
        first = asyncio.create_task(ask(dispatchers[0], provider))
        await asyncio.sleep(0.05)
        for _ in range(4):  # some wait already, with a time reserved
            await asyncio.gather(*(ask(dispatcher, provider) for dispatcher in dispatchers))
        await first
        for dispatcher in dispatchers:
            dispatcher.close()
        return provider.times

    times = run(main())
    after = [at for at in times if at > 0.2]
    assert min(after) >= 30.1 - ROUNDING
    assert_no_window_above(after, 600)


def test_the_day_of_a_shared_account_is_spent_for_all(tmp_path: Path) -> None:
    async def main() -> int:
        dispatchers = [
            dispatcher_of(account(NAME, daily_limit=10), log_file=tmp_path / "log.json")
            for _ in range(3)
        ]
        provider = Provider(seconds=0.1, answer=Used(20, 5))
        calls = [ask(dispatchers[n % 3], provider, input_tokens=20) for n in range(20)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert {d.exit_code for d in done if isinstance(d, StopRun)} == {TRY_LATER}
        for dispatcher in dispatchers:
            dispatcher.close()
        return len(provider.sent)

    assert run(main()) == 10
    assert log_of(tmp_path / "log.json")[TODAY][NAME]["requests"] == 10


def test_the_log_counts_the_tokens_that_were_used_and_not_those_reserved(tmp_path: Path) -> None:
    async def main() -> None:
        with dispatcher_of(account(NAME), log_file=tmp_path / "log.json") as dispatcher:
            provider = Provider(seconds=0.1, answer=Used(20, 5))
            calls = [ask(dispatcher, provider, input_tokens=2000) for _ in range(10)]
            await asyncio.gather(*calls)

    run(main())
    assert log_of(tmp_path / "log.json") == {TODAY: {NAME: {"requests": 10, "tokens": 250}}}


def test_a_days_tokens_are_spent_for_all(tmp_path: Path) -> None:
    config = account(NAME, daily_token_limit=1000)
    with (
        opened(tmp_path / "log.json", config) as [one],
        opened(tmp_path / "log.json", config) as [other],
    ):
        assert one.take(Need(1, 900, 900, 0), 0.0)
        assert other.take(Need(1, 500, 500, 0), 0.0)  # the last may pass the limit
        assert not one.take(Need(1, 1, 1, 0), 0.0)
        end_call(other, Need(1, 500, 500, 0), Need(1, 50, 50, 0))
        assert one.take(Need(1, 1, 1, 0), 0.0)


def test_a_reservation_that_lapsed_is_no_call_in_hand(tmp_path: Path) -> None:
    """`LLMDispatcher._choose` asks every account; those not chosen keep what they reserved."""
    config = account(NAME, rpm_limit=60)
    with (
        opened(tmp_path / "log.json", config) as [idle],
        opened(tmp_path / "log.json", config) as [busy],
    ):
        idle.ready_at(WISH, 0.0)
        sent = take_until(busy, 1.0, 90.0)
        clock = 30.5
        clock = max(clock, idle.ready_at(WISH, clock))
        idle.take(Need(), clock)
    assert_no_window_above(sorted([*sent, clock]), 60)


@settings(max_examples=60, deadline=None)
@given(
    rpm=st.sampled_from([3, 10, 60, 600]),
    stores=st.integers(2, 4),
    seed=st.integers(0, 2**32),
    gives_back=st.floats(0.0, 0.6),
    idles=st.floats(0.0, 0.2),
)
def test_whoever_reserves_and_gives_back_no_minute_holds_too_many(
    tmp_path_factory: Any, rpm: int, stores: int, seed: int, gives_back: float, idles: float
) -> None:
    """What is given back may be given to two for the same instant, but to nobody beyond the
    limit."""
    log, chance = tmp_path_factory.mktemp("given-back") / "log.json", random.Random(seed)
    config, clock, sent = account(NAME, rpm_limit=rpm), 0.0, []
    with ExitStack() as stack:
        all_limits = [stack.enter_context(opened(log, config))[0] for _ in range(stores)]
        due = [0.0] * stores  # when each looks again
        while clock < 200.0 and len(sent) < 4 * rpm:
            number = min(range(stores), key=due.__getitem__)
            clock, limits = max(clock, due[number]), all_limits[number]
            at = limits.ready_at(WISH, clock)
            if at <= clock:
                assert limits.take(Need(), clock)
                sent.append(clock)
                end_call(limits)
            elif chance.random() < gives_back:
                limits.relax()
                at = clock + chance.uniform(0.0, 120.0 / rpm)
            late = chance.choice([0.0, 0.0, 0.02, 0.044, 0.1, 60.0 / rpm])
            idle = chance.uniform(0.0, 90.0) if chance.random() < idles / 10 else 0.0
            due[number] = max(at, clock) + late + idle
    assert_no_minute_above(sent, rpm)


def assert_no_minute_above(sent: Sequence[float], most: int) -> None:
    sent = sorted(sent)
    for first, start in enumerate(sent):
        held = sum(at <= start + 60 for at in sent[first:])
        assert held <= most, (start, held)


def test_what_is_given_back_between_others_makes_no_minute_too_full(tmp_path: Path) -> None:
    config, log = account(NAME, rpm_limit=60), tmp_path / "log.json"
    with (
        opened(log, config) as [first],
        opened(log, config) as [second],
        opened(log, config) as [third],
    ):
        sent = take_until(first, 0.0, 0.0)
        first.ready_at(WISH, 0.0)
        second_at = second.ready_at(WISH, 0.0)
        first.relax()
        third_at = third.ready_at(WISH, 0.0)
        for limits, at in sorted([(second, second_at), (third, third_at)], key=lambda x: x[1]):
            assert limits.take(Need(), at)
            end_call(limits)
        sent += [second_at, third_at]
        sent += take_until(first, max(second_at, third_at), 180.0)
    assert_no_minute_above(sent, 60)


@pytest.mark.parametrize("late", [0.0, 0.02, 0.0449, 0.0451, 0.05, 0.1, 0.5, 7.0])
def test_a_call_that_is_a_little_late_makes_no_window_too_full(tmp_path: Path, late: float) -> None:
    config = account(NAME, rpm_limit=60)
    with opened(tmp_path / "log.json", config) as [limits]:
        assert limits.ready_at(WISH, 0.0) == 0.0
        assert limits.ready_at(WISH, late) == late
        limits.take(Need(), late)  # its loop was busy meanwhile
        sent = [late, *take_until(limits, late, 90.0 + late)]
    assert_no_minute_above(sent, 60)


def test_a_call_that_comes_late_keeps_its_distance_to_the_next(tmp_path: Path) -> None:
    with opened(tmp_path / "log.json", account(NAME, rpm_limit=60)) as [limits]:
        limits.ready_at(WISH, 0.0)
        assert limits.ready_at(WISH, 7.0) == 7.0
        limits.take(Need(), 7.0)
        assert limits.ready_at(WISH, 7.0) == pytest.approx(7 + distance(60) - 0.05)


@settings(max_examples=60, deadline=None)
@given(
    rpm=st.sampled_from([1.0, 60.0, 600.0, 60_000.0]) | st.floats(1, 100_000),
    late=st.floats(0.2, 20),
    number=st.integers(2, 8),
)
def test_several_late_calls_keep_their_distance_together(
    tmp_path_factory: Any, rpm: float, late: float, number: int
) -> None:
    """Processes that stood still together do not send at once all that they had reserved."""
    log, config = tmp_path_factory.mktemp("late") / "log.json", account(NAME, rpm_limit=rpm)
    with ExitStack() as stack:
        all_limits = [stack.enter_context(opened(log, config))[0] for _ in range(number)]
        began = max(limits.ready_at(WISH, 0.0) for limits in all_limits) + late
        sent = []
        for limits in all_limits:
            sent.append(limits.ready_at(WISH, began))
            assert limits.take(Need(), sent[-1])
        ready_at = all_limits[0].ready_at(WISH, began)
    for made, at in enumerate(sorted([*sent, ready_at])):
        assert at >= began + max(0.0, distance(rpm, made) - 0.05) - ROUNDING


def test_processes_that_stood_still_together_make_no_window_too_full(tmp_path: Path) -> None:
    config, log = account(NAME, rpm_limit=60), tmp_path / "log.json"
    with opened(log, config) as [one], opened(log, config) as [two], opened(log, config) as [three]:
        for limits in (one, two, three):
            limits.ready_at(WISH, 0.0)
        sent = []
        for limits in (one, two, three):  # the machine slept
            sent.append(limits.ready_at(WISH, 10.0))
            assert limits.take(Need(), sent[-1])
        sent += take_until(one, 10.0, 90.0)
    assert_no_minute_above(sent, 60)


def take_until(limits: Limits, start: float, end: float) -> list[float]:
    """Calls made one after the other, each as soon as it may be."""
    clock, sent = start, []
    while (clock := max(clock, limits.ready_at(WISH, clock))) <= end:
        assert limits.take(Need(), clock)
        sent.append(clock)
        end_call(limits)
    limits.relax()
    return sent


@settings(max_examples=25, deadline=None)
@given(
    rpm=st.sampled_from([60, 600]),
    pauses=st.lists(st.lists(st.floats(0, 3), min_size=1, max_size=5), min_size=2, max_size=4),
)
def test_however_processes_take_their_turns_no_minute_holds_too_many(
    tmp_path_factory: Any, rpm: int, pauses: list[list[float]]
) -> None:
    """Each makes a call, pauses, asks for the next, and makes it when its time has come."""
    log = tmp_path_factory.mktemp("turns") / "log.json"

    async def main() -> list[float]:
        sent: list[float] = []
        dispatchers = [dispatcher_of(account(NAME, rpm_limit=rpm), log_file=log) for _ in pauses]

        async def process(dispatcher: LLMDispatcher, waits: list[float]) -> None:
            for number in range(40):
                lease = await dispatcher.get_available_client()
                sent.append(now())
                await asyncio.sleep(waits[number % len(waits)])
                await dispatcher.release_client_on_success(lease)

        await asyncio.gather(*map(process, dispatchers, pauses))
        for dispatcher in dispatchers:
            dispatcher.close()
        return sent

    assert_no_window_above(run(main()), rpm, slack=0.035)


@pytest.mark.parametrize("lags", [(0.03, 0.03), (0.06, 0.06), (0.0, 0.2), (0.1, 0.03, 0.0)])
def test_a_loop_that_is_late_for_its_timers_keeps_its_share(
    tmp_path: Path, lags: tuple[float, ...]
) -> None:
    """It wakes so much earlier as it is late, and nobody's lateness lets a minute hold too many."""

    async def main() -> tuple[list[int], list[float]]:
        log, loop = tmp_path / "log.json", asyncio.get_running_loop()
        dispatchers = [dispatcher_of(account(NAME, rpm_limit=60), log_file=log) for _ in lags]
        on_time = loop.call_later
        late = {id(dispatcher): lag for dispatcher, lag in zip(dispatchers, lags, strict=True)}

        def call_later(delay: float, callback: Any, *args: Any, **more: Any) -> Any:
            lag = late.get(id(getattr(callback, "__self__", None)), 0.0)
            return on_time(delay + lag, callback, *args, **more)

        loop.call_later = call_later  # type: ignore[method-assign]
        made, times = [0] * len(lags), []

        async def worker(number: int) -> None:
            while True:
                lease = await dispatchers[number].get_available_client()
                made[number] += 1
                times.append(now())
                await dispatchers[number].release_client_on_success(lease)

        tasks = [asyncio.create_task(worker(n)) for n in range(len(lags)) for _ in range(4)]
        await asyncio.sleep(120)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for dispatcher in dispatchers:
            dispatcher.close()
        return made, times

    made, times = run(main())
    assert min(made) >= 0.8 * max(made) and sum(made) >= 110, made
    assert max(sum(start <= at < start + 60.0 for at in times) for start in times) <= 60


# ---------------------------------------------------------------------- the shared file


def spent(log: Path, calls: int, *configs: LLMClientConfig, wall: float = NOON) -> None:
    """So many calls, made and ended by a process that has gone."""
    with opened(log, *configs, wall=wall) as [limits]:
        for _ in range(calls):
            assert limits.take(Need(), 0.0)
            end_call(limits)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"QOli",
        b"QOlimit0" + bytes(100),
        b"not ours at all " * 100_000,
        random.Random(0).randbytes(5000),
        b"QOlimit3" + bytes(10_000_000),  # of an earlier version
        b"QOlimit4" + bytes(100),  # cut short
    ],
)
def test_a_damaged_shared_file_is_begun_anew_from_the_log(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "log.json"
    spent(log, 3)
    (tmp_path / "log.json.shared").write_bytes(content)
    config = account(NAME, daily_limit=5, rpm_limit=60)
    with opened(log, config) as [limits]:
        assert limits.meter.requests_today == 3
        assert limits.ready_at(WISH, 0.0) == 0.0
        assert [limits.take(Need(), 0.0) for _ in range(3)] == [True, True, False]
        assert limits.ready_at(WISH, 0.0) > 0.9


@pytest.mark.parametrize("garbage", [math.nan, 1e300])
def test_a_damaged_row_lifts_no_limit(tmp_path: Path, garbage: float) -> None:
    log = tmp_path / "log.json"
    config = account(NAME, daily_limit=5, rpm_limit=60, concurrency=2)
    spent(log, 3, config)
    shared = tmp_path / "log.json.shared"
    whole = bytearray(shared.read_bytes())
    start = whole.index(hashlib.sha256(NAME.encode()).digest()) + 32
    figures = ROW_LENGTH + 64  # and the calls in flight of each process
    whole[start : start + 8 * figures] = struct.pack("d", garbage) * figures
    shared.write_bytes(whole)
    clock = 1000.0
    with opened(log, config, at=clock) as [limits]:
        assert limits.ready_at(WISH, clock) < clock + 60.0
        assert [limits.take(Need(), clock) for _ in range(3)] == [True, True, False]
        assert limits.ready_at(WISH, clock) > clock + 0.9


def test_a_larger_file_of_a_later_version_is_not_cut(tmp_path: Path) -> None:
    spent(tmp_path / "log.json", 3)
    shared = tmp_path / "log.json.shared"
    with shared.open("ab") as file:
        file.write(b"more")
    size = shared.stat().st_size
    spent(tmp_path / "log.json", 3)
    assert shared.stat().st_size == size
    assert log_of(tmp_path / "log.json")[TODAY][NAME]["requests"] == 6


def test_the_shared_file_is_for_its_owner_only(tmp_path: Path) -> None:
    spent(tmp_path / "log.json", 1)
    assert (tmp_path / "log.json.shared").stat().st_mode & 0o077 == 0


@contextmanager
def another_process() -> Iterator[int]:
    """One that lives and does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield process.pid
    finally:
        process.communicate()


def test_one_process_more_than_there_is_room_for_is_told_so(tmp_path: Path) -> None:
    spent(tmp_path / "log.json", 1)
    shared = tmp_path / "log.json.shared"
    whole = bytearray(shared.read_bytes())
    with another_process() as pid:
        whole[24 : 24 + 64 * 8] = struct.pack("64d", *[float(pid)] * 64)
        shared.write_bytes(whole)
        with pytest.raises(StopRun) as raised, opened(tmp_path / "log.json"):
            pass
    assert raised.value.exit_code == USAGE
    assert str(raised.value) == f"{shared}: 64 processes use it; wait for one to end"


def test_the_places_of_processes_that_are_gone_are_taken_again(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    spent(tmp_path / "log.json", 1)
    shared = tmp_path / "log.json.shared"
    whole = bytearray(shared.read_bytes())
    whole[24 : 24 + 64 * 8] = struct.pack("64d", *[float(gone.pid)] * 64)
    shared.write_bytes(whole)
    spent(tmp_path / "log.json", 1)
    assert log_of(tmp_path / "log.json")[TODAY][NAME]["requests"] == 2


MANY_DROPPED = """
import sys
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher

for _ in range(300):
    LLMDispatcher([LLMClientConfig("shared", "m")], log_file=sys.argv[1])
"""


def test_dispatchers_that_were_dropped_and_not_closed_keep_no_place(tmp_path: Path) -> None:
    subprocess.run(  # in a process of its own: it may hang
        [sys.executable, "-c", MANY_DROPPED, str(tmp_path / "log.json")],
        cwd=ROOT,
        env=clean_environment(),
        timeout=10,
        check=True,
    )


def test_more_accounts_than_there_is_room_for_are_refused_in_one_line(tmp_path: Path) -> None:
    many = [account(f"account-{n}") for n in range(512)]
    with opened(tmp_path / "log.json", *many):
        pass
    with opened(tmp_path / "log.json", *many[100:110]):  # those that are there still fit
        pass
    with pytest.raises(StopRun) as raised, opened(tmp_path / "log.json", account("one more")):
        pass
    assert raised.value.exit_code == USAGE
    assert "holds 512 accounts; delete it to begin anew" in str(raised.value)


def test_accounts_are_told_apart_by_name_whatever_their_order(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    a, b = account("a", rpm_limit=60), account("b", rpm_limit=60)
    with opened(log, a, b) as [first, second]:
        first.take(Need(), 0.0)
    with opened(log, b, a) as [second, first]:
        assert (first.meter.requests_today, second.meter.requests_today) == (1, 0)
        assert second.ready_at(WISH, 0.0) == 0.0
        assert first.ready_at(WISH, 0.0) > 0.9


def test_paces_and_what_was_learnt_survive_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    config = account(NAME, rpm_limit=600, tpm_limit=60)
    with opened(log, config) as [limits]:
        limits.take(Need(1, 100, 100, 0), 0.0)
        with limits.edit() as meter:
            for clock in (1.0, 2.0, 3.0):
                meter.paces[0].refused(clock - 0.5, 0.5, clock)
            learnt = meter.paces[0].rate
    assert learnt < 10 * 60 / 60.1
    with opened(log, config, at=10.0) as [limits]:
        assert limits.meter.paces[0].rate == learnt
        assert limits.ready_at(WISH, 10.0) == pytest.approx(distance(60, 100) - 0.05)


def test_new_settings_are_believed_and_what_was_learnt_of_the_old_ones_forgotten(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log.json"
    with opened(log, account(NAME, rpm_limit=600)) as [limits], limits.edit() as meter:
        for clock in (1.0, 2.0, 3.0, 4.0):
            meter.paces[0].refused(clock - 0.5, 0.5, clock)
    with opened(log, account(NAME, rpm_limit=1200, concurrency=7)) as [limits]:
        assert limits.meter.paces[0].rate == pytest.approx(1200 / 60.1)
        assert limits.meter.slots.now == 7
        assert limits.meter.paces[1].rate == math.inf


def test_after_a_restart_of_the_machine_counts_stay_and_times_go(tmp_path: Path) -> None:
    log, config = tmp_path / "log.json", account(NAME, rpm_limit=60)
    with opened(log, config, at=100_000.0, wall=NOON - 100_000) as [limits]:
        limits.take(Need(), 100_000.0)
        with limits.edit() as meter:
            meter.rest(100_500.0)
    with opened(log, config, at=5.0, wall=NOON + 60) as [limits]:  # it has run for 5 s
        assert limits.ready_at(WISH, 5.0) == 5.0
        assert limits.meter.requests_today == 1


# ---------------------------------------------------------------------- the log


def test_a_deleted_log_forgets_the_day_if_nobody_else_lives(tmp_path: Path) -> None:
    log, config = tmp_path / "log.json", account(NAME, daily_limit=5)
    spent(log, 4, config)
    log.unlink()
    with opened(log, config) as [limits]:
        assert limits.meter.requests_today == 0


def test_a_deleted_log_forgets_nothing_while_another_process_lives(tmp_path: Path) -> None:
    log, config = tmp_path / "log.json", account(NAME, daily_limit=5)
    spent(log, 3, config)
    with opened(log, config) as [other]:
        log.unlink()
        with opened(log, config) as [limits]:
            assert limits.meter.requests_today == 3
            assert limits.take(Need(), 0.0)
            end_call(limits)
        assert other.take(Need(), 0.0)
        assert not other.take(Need(), 0.0)
    assert log_of(log) == {TODAY: {NAME: {"requests": 5, "tokens": 0}}}


def test_the_log_counts_where_the_shared_file_knows_less(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.write_text(json.dumps({TODAY: {NAME: {"requests": 4, "tokens": 70}, "other": counted(9)}}))
    config = account(NAME, daily_limit=5)
    with opened(log, config) as [limits]:
        assert (limits.meter.requests_today, limits.meter.tokens_today) == (4, 70)
    assert log_of(log)[TODAY] == {NAME: {"requests": 4, "tokens": 70}, "other": counted(9)}


def counted(requests: int) -> dict[str, int]:
    return {"requests": requests, "tokens": 0}


def test_the_log_keeps_thirty_five_days_and_other_accounts(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    today = datetime.fromtimestamp(NOON, UTC).date()
    days = [(today - timedelta(days=back)).isoformat() for back in range(40)]
    log.write_text(json.dumps({day: {"other": counted(1)} for day in days}))
    spent(log, 2)
    kept = log_of(log)
    assert list(kept) == sorted(days[:36])
    assert kept[TODAY] == {"other": counted(1), NAME: counted(2)}


def test_a_new_day_begins_while_a_process_runs(tmp_path: Path) -> None:
    log, clock = tmp_path / "log.json", [NOON]
    store = SharedLimitStore(log, lambda: clock[0])
    [limits] = store.open([account(NAME, daily_limit=2)], 0.0, lambda: None)
    for tomorrow in ("2026-03-15", "2026-03-16"):
        assert [limits.take(Need(), 0.0) for _ in range(3)] == [True, True, False]
        assert limits.day_ends().isoformat() == f"{tomorrow}T00:00:00+00:00"
        for _ in range(2):
            end_call(limits)
        clock[0] += 86_400.0
        assert limits.day == tomorrow
    store.close()


def test_the_log_keeps_all_of_the_day_that_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "log.json"

    async def main() -> None:
        clock = [NOON]
        with dispatcher_of(account(NAME), log_file=log, wall=lambda: clock[0]) as dispatcher:
            for _ in range(2):
                for _ in range(5):
                    await ask(dispatcher, Provider())
                clock[0] += 86_400.0

    run(main())
    assert [log_of(log)[day][NAME]["requests"] for day in (TODAY, "2026-03-15")] == [5, 5]


def test_the_log_is_written_while_a_process_runs(tmp_path: Path) -> None:
    with processes(1, tmp_path, wall=NOON, hold=0.05) as started:
        go(*started)
        wait_for(lambda: (read_log(tmp_path / "log.json") or {}).get(TODAY, {}))
        before = log_of(tmp_path / "log.json")[TODAY][NAME]["requests"]
        wait_for(lambda: log_of(tmp_path / "log.json")[TODAY][NAME]["requests"] > before)


def test_a_log_that_can_no_longer_be_written_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    async def main() -> StopRun:
        dispatcher = LLMDispatcher([account(NAME)], log_file=folder / "log.json")
        (folder / "log.json").unlink()
        (folder / "log.json").mkdir()
        for _ in range(200):
            try:
                lease = await dispatcher.get_available_client()
            except StopRun as stop:
                return stop
            await dispatcher.release_client_on_success(lease)
            await asyncio.sleep(0.02)
        raise AssertionError("it went on")

    assert asyncio.run(main()).exit_code == USAGE


# ---------------------------------------------------------------------- days of time zones


def limits_in(zone: str, clock: list[float], **fields: Any) -> Limits:
    config = account(NAME, reset_zone=zone, **fields)
    [limits] = LimitStore(lambda: clock[0]).open([config], 0.0, lambda: None)
    return limits


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("UTC", "2026-03-29", 24),
        ("Europe/Berlin", "2026-03-28", 24),
        ("Europe/Berlin", "2026-03-29", 23),  # summer time begins
        ("Europe/Berlin", "2026-10-25", 25),  # and ends
        ("America/Los_Angeles", "2026-03-08", 23),
        ("America/Los_Angeles", "2026-11-01", 25),
        ("America/Los_Angeles", "2026-12-31", 24),
        ("Asia/Kolkata", "2026-06-01", 24),
        ("Pacific/Kiritimati", "2026-06-01", 24),
    ],
)
def test_a_day_is_spent_and_renewed_at_midnight_of_its_own_zone(
    zone: str, day: str, hours: int
) -> None:
    begins = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()
    clock = [begins - 1.0]
    limits = limits_in(zone, clock, daily_limit=2)
    assert limits.take(Need(), 0.0)
    assert limits.day < day
    for after in (0.0, 0.5 * hours * 3600, hours * 3600 - 1.0):
        clock[0] = begins + after
        assert limits.day == day
        assert limits.day_ends().timestamp() == begins + hours * 3600
        # one of yesterday does not count; the third of today is one too many
        assert limits.take(Need(), 0.0) == (after < hours * 3600 - 1.0)
    clock[0] = begins + hours * 3600
    assert limits.day > day
    assert limits.take(Need(), 0.0)


@settings(max_examples=200, deadline=None)
@given(
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "America/Santiago"]
    ),
    start=st.floats(1.75e9, 1.85e9),
    steps=st.lists(st.floats(0, 200_000) | st.floats(-4000, 4000), max_size=20),
)
def test_the_day_is_that_of_the_zone_at_any_time(
    zone: str, start: float, steps: list[float]
) -> None:
    clock = [start]
    limits = limits_in(zone, clock)
    for step in [0.0, *steps]:
        clock[0] += step
        day = datetime.fromtimestamp(clock[0], ZoneInfo(zone)).date()
        seen = datetime.fromisoformat(limits.day).date()
        if step >= 0:
            assert seen == day
        else:  # a clock set back by an hour may leave the day that has begun
            assert seen in (day, day + timedelta(days=1))
            clock[0] -= step
        assert clock[0] < limits.day_ends().timestamp() <= clock[0] + 25 * 3600


def test_the_log_names_the_day_of_the_accounts_own_zone(tmp_path: Path) -> None:
    evening = datetime(2026, 3, 14, 23, 30, tzinfo=UTC).timestamp()
    configs = [
        account("here"),
        account("berlin", reset_zone="Europe/Berlin"),
        account("los-angeles", reset_zone="America/Los_Angeles"),
    ]
    with opened(tmp_path / "log.json", *configs, wall=evening) as all_limits:
        for limits in all_limits:
            limits.take(Need(), 0.0)
    assert log_of(tmp_path / "log.json") == {
        "2026-03-14": {"here": counted(1), "los-angeles": counted(1)},
        "2026-03-15": {"berlin": counted(1)},
    }


def test_a_run_that_stops_for_its_quota_names_the_end_of_the_zones_day() -> None:
    async def main() -> StopRun:
        dispatcher = dispatcher_of(account(daily_limit=1, reset_zone="America/Los_Angeles"))
        await ask(dispatcher, Provider())
        return await stopped(ask(dispatcher, Provider()))

    assert "until 2026-03-15 07:00 UTC" in str(run(main()))


def test_a_daily_limit_that_the_server_names_rests_until_the_zones_midnight() -> None:
    async def main() -> StopRun:
        dispatcher = dispatcher_of(account(reset_zone="Europe/Berlin"))
        lease = await dispatcher.get_available_client()
        failure = Failure("rate_limited", "requests per day", scope="day")
        await dispatcher.release_client_on_failure(lease, failure)
        return await stopped(ask(dispatcher, Provider()))

    stop = run(main())
    assert stop.exit_code == TRY_LATER
    assert "until 2026-03-14 23:0" in str(stop)


NO_ROOM = """
import resource, sys
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import StopRun

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    LLMDispatcher([LLMClientConfig("a", "m")], log_file=sys.argv[1])
except StopRun as stop:
    print(stop, stop.exit_code)
"""


def test_a_full_disk_is_one_line_before_the_first_call(tmp_path: Path) -> None:
    """A hole in a mapped file, met on a full disk, would end the process without a word."""
    log = tmp_path / "log.json"
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(log)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    advice = "cannot be written (File too large); free the disk or change --data-dir"
    assert done.stdout == f"{log}.shared: {advice} {USAGE}\n"
