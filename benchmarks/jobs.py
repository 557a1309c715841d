"""What one process of `dispatcher.py` does: one contestant, one scenario, one line of JSON.

A scenario is what the server enforces, what the contestant is told, and a job. The contestant is
built and warmed by a few calls on an open server; then the scenario's configuration is set, which
forgets all counts and starts the server's clock. What arrived, was refused and delivered is the
server's count; durations, errors and CPU are the client's.

CPU is the process's, all threads, user and system. Memory is the resident set, read every 50 ms.
"""

from __future__ import annotations

import asyncio
import bisect
import gc
import json
import logging
import math
import os
import random
import resource
import sys
import time
import urllib.request
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import peers
from peers import Ask, Setup

from question_optimizer.errors import StopRun

T = TypeVar("T")
CALLERS = 64
KEYS = 4
LATENCY, JITTER = 0.05, 0.3
FOREVER = 1e9
Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement as the command line names it, with everything that varies."""

    system: str
    scenario: Scenario
    url: str
    seconds: float
    items: int
    log_file: Path | None

    def setup(self, **changes: Any) -> Setup:
        return Setup(base_url=f"{self.url}/v1", **{**self.scenario.told, **changes})

    def configure(self, config: Figures) -> None:
        body = json.dumps(config).encode()
        with urllib.request.urlopen(f"{self.url}/admin", data=body, timeout=30):
            pass

    def stats(self) -> Figures:
        with urllib.request.urlopen(f"{self.url}/stats", timeout=30) as answer:
            return json.load(answer)


@dataclass(frozen=True)
class Scenario:
    """`server` is the configuration of each key, `dead` the number of keys that refuse with 401.

    `per_second` is what all keys together let through: the goodput's denominator.
    """

    section: str
    name: str
    run: Callable[[Job], Coroutine[Any, Any, Figures]]
    server: Figures = field(default_factory=dict)
    told: Figures = field(default_factory=dict)
    per_second: float = 0.0
    dead: int = 0
    extra: bool = False  # peers only with --all

    def config(self) -> Figures:
        names = Setup("").names
        dead = {name: {"refuse": 401} for name in names[len(names) - self.dead :]}
        return {"default": self.server, "keys": dead}


def cpu_seconds() -> float:
    """CPU of this process so far, all threads."""
    used = os.times()
    return used.user + used.system


def exact_cpu_seconds() -> float:
    """The same to the microsecond, where the system tells it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_bytes() -> int:
    """Resident memory now; on systems without /proc, its peak so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()


def percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def prompt(number: int) -> str:
    """Numbered, so that the server can tell what was delivered, and whether twice."""
    return f"item-{number} What is the capital of France, and since when?"


async def warm_up(job: Job, ask: Ask) -> None:
    """Connect every key's client and do every lazy import, on a server without limits."""
    job.configure({})
    for number in range(2 * KEYS):
        await ask(prompt(FIRST_WARM_ITEM + number))


FIRST_WARM_ITEM = 900_000_000


# ---------------------------------------------------------------------- the closed loop


@dataclass
class Callers:
    """Callers who ask until it succeeds, backing off after an error as a careful user would."""

    ask: Ask
    began: float = field(default_factory=time.perf_counter)
    errors: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[float, float]] = field(default_factory=list)  # (ended at, took)

    def now(self) -> float:
        return time.perf_counter() - self.began

    async def one(self, text: str) -> None:
        """One item, however many errors it takes: 0.25 s doubling to 8 s, jittered."""
        started, failures = self.now(), 0
        while True:
            try:
                await self.ask(text)
                break
            except (Exception, StopRun) as error:
                name = type(error).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
                await asyncio.sleep(min(8, 0.25 * 2**failures) * (0.5 + random.random() / 2))
                failures += 1
        self.calls.append((self.now(), self.now() - started))

    async def run(self, callers: int, items: int | None, seconds: float) -> None:
        """Until `items` are done, or `seconds` have passed."""
        numbers = iter(range(FIRST_WARM_ITEM if items is None else items))

        async def caller() -> None:
            for number in numbers:
                await self.one(prompt(number))

        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        await asyncio.wait(tasks, timeout=seconds)
        self.unfinished = [task for task in tasks if not task.done()]

    def cancel(self) -> None:
        for task in self.unfinished:
            task.cancel()


def total(stats: Figures, name: str) -> int:
    """A count over all keys; a count by reason is summed."""
    counts = [key[name] for key in stats["keys"].values()]
    return sum(sum(count.values()) if isinstance(count, dict) else count for count in counts)


def delivered(stats: Figures, since: float, until: float) -> int:
    """200s between two seconds of the server's clock."""
    return sum(
        count
        for key in stats["keys"].values()
        for second, count in key["ok_by_second"].items()
        if since <= int(second) < int(until)
    )


def settled_after(seconds: float) -> int:
    """When the steady state begins: 30 s, in short runs a third."""
    return min(30, int(seconds / 3))


async def limits(job: Job) -> Figures:
    """64 callers at a server with limits, for a time."""
    ask = peers.CONTESTANTS[job.system](job.setup())
    await warm_up(job, ask)
    gc.collect()
    job.configure(job.scenario.config())
    callers, before = Callers(ask), cpu_seconds()
    await callers.run(CALLERS, None, job.seconds)
    cpu, stats = cpu_seconds() - before, job.stats()
    callers.cancel()
    settled, rate = settled_after(job.seconds), job.scenario.per_second
    waits = [took for ended, took in callers.calls if ended >= settled]
    middle, long = percentile(waits, 0.5), percentile(waits, 0.99)
    arrived, refused = total(stats, "arrived"), total(stats, "refused_429")
    return {
        "goodput": delivered(stats, settled, job.seconds) / rate / (int(job.seconds) - settled),
        "goodput_whole": delivered(stats, 0, job.seconds) / rate / int(job.seconds),
        "wasted": refused / max(1, arrived),
        "errors": sum(callers.errors.values()),
        "p50": middle,
        "p99": long,
        "p99_over_p50": long / middle if long and middle else None,
        "cpu_s": cpu,
        "arrived": arrived,
        "refused_429": refused,
        "ok_by_key": {name: key["ok"] for name, key in stats["keys"].items()},
        "error_kinds": callers.errors,
    }


async def faults(job: Job) -> Figures:
    """N items where a fifth of the calls fails and one account is dead; 180 s are given up on."""
    ask = peers.CONTESTANTS[job.system](job.setup())
    await warm_up(job, ask)
    job.configure(job.scenario.config())
    callers, before = Callers(ask), cpu_seconds()
    await callers.run(CALLERS, job.items, 180)
    cpu, seconds, stats = cpu_seconds() - before, callers.now(), job.stats()
    return {
        "items": stats["items"] / job.items,
        "delivered_twice": stats["duplicates"],
        "dead_requests": stats["keys"].get("k3", {}).get("arrived", 0),
        "errors": sum(callers.errors.values()),
        "seconds": seconds,
        "p99": percentile([took for _, took in callers.calls], 0.99),
        "cpu_s": cpu,
        "arrived": total(stats, "arrived"),
        "faults": total(stats, "faults"),
        "error_kinds": callers.errors,
    }


async def spread(job: Job) -> Figures:
    """Calls over four equal accounts: how unequally they fall."""
    ask = peers.CONTESTANTS[job.system](job.setup())
    await warm_up(job, ask)
    job.configure(job.scenario.config())
    callers = Callers(ask)
    await callers.run(CALLERS, SPREAD_CALLS, 180)
    counts = {name: key["ok"] for name, key in job.stats()["keys"].items()}
    per_account = [counts.get(f"k{number}", 0) for number in range(KEYS)]
    return {
        "spread": (max(per_account) - min(per_account)) / SPREAD_CALLS,
        "ok_by_key": counts,
        "errors": sum(callers.errors.values()),
    }


SPREAD_CALLS = 4000


# ---------------------------------------------------------------------- what a call costs


async def cpu_per_call(job: Job) -> Figures:
    """CPU and calls per second at 64 and at 256 in flight, each after a second of warm-up."""
    keys = 1 if job.system in ("bare", "dspy") else KEYS
    ask = peers.CONTESTANTS[job.system](job.setup(keys=keys))
    await warm_up(job, ask)
    figures: Figures = {}
    for callers in (64, 256):
        job.configure(job.scenario.config())
        figures |= await _cost_at(ask, callers)
    return figures


async def _cost_at(ask: Ask, callers: int) -> Figures:
    done, stopped = 0, False

    async def caller(first: int) -> None:
        nonlocal done
        number = first
        while not stopped:
            await ask(prompt(number))
            done += 1
            number += callers

    tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
    await asyncio.sleep(1.0)
    before = done, exact_cpu_seconds(), time.perf_counter()
    await asyncio.sleep(2.0)
    calls, cpu, seconds = (
        now - then
        for now, then in zip((done, exact_cpu_seconds(), time.perf_counter()), before, strict=True)
    )
    stopped = True
    await asyncio.gather(*tasks)
    return {f"cpu_ms_{callers}": cpu / max(1, calls) * 1e3, f"rate_{callers}": calls / seconds}


async def memory(job: Job) -> Figures:
    """1,000 callers at once at a slow server: how many calls get out, and what they weigh."""
    keys = 1 if job.system in ("bare", "dspy") else KEYS
    ask = peers.CONTESTANTS[job.system](job.setup(keys=keys))
    await warm_up(job, ask)
    for number in range(50):
        await ask(prompt(number))
    job.configure(job.scenario.config())
    gc.collect()
    base = peak = resident_bytes()
    tasks = [asyncio.create_task(_asked(ask, number)) for number in range(1000)]
    for _ in range(int(1.5 * job.scenario.server["latency"] / 0.05)):
        await asyncio.sleep(0.05)
        peak = max(peak, resident_bytes())
        if all(task.done() for task in tasks):
            break
    return {
        "in_flight": total(job.stats(), "max_in_flight"),
        "mb_per_1000": (peak - base) / 1e6,
        "base_mb": base / 1e6,
    }


async def _asked(ask: Ask, number: int) -> None:
    await ask(prompt(number))


def _made(limit: int, **more: Any) -> Any:
    from question_optimizer.dispatcher import LLMDispatcher

    told = {"rpm_limit": 1e9, "tpm_limit": 1e12, **more}
    return LLMDispatcher(peers.configs(Setup("http://unused.invalid", concurrency=limit), **told))


async def alone(job: Job) -> Figures:
    """get_available_client and release, without any network: microseconds of CPU a pair."""
    idle = [await _idle_pair(20_000) for _ in range(3)]
    waiting = [await _waited_pair(20_000, 1000) for _ in range(3)]
    return {"us_idle": min(idle), "us_waiting": min(waiting)}


def _answer() -> Any:
    from question_optimizer.wire import ChatAnswer

    return ChatAnswer("yes", peers.MODEL, input_tokens=24, output_tokens=32)


async def _idle_pair(pairs: int) -> float:
    dispatcher, answer = _made(1_000_000), _answer()

    async def pair() -> None:
        lease = await dispatcher.get_available_client(tokens=56)
        await dispatcher.release_client_on_success(lease, answer)

    for _ in range(200):
        await pair()
    before = exact_cpu_seconds()
    for _ in range(pairs):
        await pair()
    return (exact_cpu_seconds() - before) / pairs * 1e6


async def _waited_pair(pairs: int, waiters: int) -> float:
    """With `waiters` in the queue, less what the event loop itself takes for as many tasks."""
    dispatcher, answer = _made(2), _answer()

    async def hold() -> None:
        lease = await dispatcher.get_available_client(tokens=56)
        await asyncio.sleep(0)
        await dispatcher.release_client_on_success(lease, answer)

    async def nothing() -> None:
        await asyncio.sleep(0)

    return await _each(hold, pairs, waiters) - await _each(nothing, pairs, waiters)


async def _each(act: Callable[[], Awaitable[None]], times: int, tasks: int) -> float:
    done = 0

    async def worker() -> None:
        nonlocal done
        while done < times:
            await act()
            done += 1

    before = exact_cpu_seconds()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    return (exact_cpu_seconds() - before) / done * 1e6


async def waiters(job: Job) -> Figures:
    """CPU that 10,000 blocked waiters use in 5 s, blocked by calls in flight and by a rate."""
    figures: Figures = {}
    for name, options in (("in_flight", {}), ("rate", {"rpm_limit": 1.0})):
        dispatcher = _made(1 if name == "in_flight" else 1_000_000, **options)
        tasks = [asyncio.create_task(dispatcher.get_available_client()) for _ in range(10_000)]
        await asyncio.sleep(2.0)
        before = exact_cpu_seconds()
        await asyncio.sleep(5.0)
        figures[f"cpu_ms_{name}"] = (exact_cpu_seconds() - before) * 1e3
        assert sum(not task.done() for task in tasks) > 9_900
    return figures


async def order(job: Job) -> Figures:
    """1,000 waiters on eight slots of four accounts: pairs that were granted out of turn."""
    dispatcher, granted = _made(2), []

    async def wait(number: int) -> None:
        lease = await dispatcher.get_available_client()
        granted.append(number)
        await asyncio.sleep(random.random() / 500)
        await dispatcher.release_client_on_success(lease)

    await asyncio.gather(*(wait(number) for number in range(1000)))
    seen: list[int] = []
    inversions = 0
    for number in granted:
        inversions += len(seen) - bisect.bisect(seen, number)
        bisect.insort(seen, number)
    return {"inversions": inversions, "granted": len(granted)}


# ---------------------------------------------------------------------- several processes


async def _start_together(job: Job, **more: Any) -> Any:
    """A warm dispatcher on the shared file; returns when the parent has everybody ready."""
    from question_optimizer.dispatcher import LLMDispatcher
    from question_optimizer.wire import complete

    accounts = peers.configs(job.setup(), **more)
    dispatcher = LLMDispatcher(accounts, log_file=job.log_file)
    await complete(accounts[0].client, peers.MODEL, peers.chat(prompt(FIRST_WARM_ITEM)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return dispatcher


async def shared_day(job: Job) -> Figures:
    """One of the processes that share a daily limit: ask until told that it is spent."""
    dispatcher = await _start_together(job, daily_limit=DAY_LIMIT)
    ask, done = peers.asking(dispatcher), 0

    async def caller(first: int) -> None:
        nonlocal done
        number = first
        while True:
            try:
                await ask(prompt(number))
            except StopRun:
                return
            done += 1
            number += 32

    await asyncio.wait_for(
        asyncio.gather(*(caller(number) for number in range(32))), timeout=max(60, job.seconds)
    )
    await asyncio.to_thread(dispatcher.close)
    return {"done": done}


DAY_LIMIT = 500


async def shared_rate(job: Job) -> Figures:
    """One of the processes that share a rate: 16 callers, for a time."""
    dispatcher = await _start_together(job)
    callers = Callers(peers.asking(dispatcher))
    await callers.run(16, None, job.seconds)
    callers.cancel()
    settled = settled_after(job.seconds) / 2
    return {
        "done": sum(settled <= ended < job.seconds for ended, _ in callers.calls),
        "errors": sum(callers.errors.values()),
    }


# ---------------------------------------------------------------------- scenarios


def _rate(limit: int, window: float, kind: str, **more: Any) -> Figures:
    return {"limit": limit, "window": window, "kind": kind, **more}


def _known(name: str, requests: Figures, extra: bool = False) -> Scenario:
    server = {"requests": requests, "latency": LATENCY, "jitter": JITTER}
    return Scenario("known", name, limits, server, per_second=40.0, extra=extra)


BUCKET = _rate(600, 60, "bucket", burst=10)


def _wrong(name: str, server: Figures, told: Figures, per_second: float = 40.0) -> Scenario:
    full = {"latency": LATENCY, "jitter": JITTER, **server}
    return Scenario("wrong", name, limits, full, told, per_second)


def _tokens() -> Scenario:
    """Half of the requests' worth: 300 calls a minute of 56 tokens, five calls at once."""
    each = peers.INPUT_TOKENS + peers.OUTPUT_TOKENS
    tokens = _rate(300 * each, 60, "bucket", burst=5 * each)
    return _wrong(
        "tokens bind", {"requests": BUCKET, "tokens": tokens}, {"tpm": 300.0 * each}, 20.0
    )


def _in_flight() -> Scenario:
    """8 at once a key, told to nobody; the mean of a lognormal factor is exp(sigma² / 2)."""
    server = {"in_flight": 8, "latency": 0.4, "jitter": JITTER}
    mean = 0.4 * math.exp(JITTER**2 / 2)
    told = {"rpm": None, "concurrency": None}
    return _wrong("unknown limit in flight", server, told, KEYS * 8 / mean)


FAULTS = [
    {"kind": kind, "p": 0.04, "seconds": 5}
    for kind in ("500", "stall", "reset", "malformed", "bare_429")
]
UNLIMITED = {"rpm": 1e8, "tpm": 1e10, "concurrency": 10_000}
SCENARIOS = [
    _known("token bucket, 600/min, burst 10", BUCKET),
    _known("fixed window, 600 per 60 s", _rate(600, 60, "fixed")),
    _known("sliding window, 600 per 60 s", _rate(600, 60, "sliding")),
    _known("fixed 10 s", _rate(100, 10, "fixed"), extra=True),
    _known("sliding 10 s", _rate(100, 10, "sliding"), extra=True),
    _known("sliding 1 s", _rate(10, 1, "sliding"), extra=True),
    _wrong("configured 20 % too high", {"requests": BUCKET}, {"rpm": 720.0}),
    _wrong("configured 2 times too high", {"requests": BUCKET}, {"rpm": 1200.0}),
    _wrong(
        "20 % too high, no Retry-After",
        {"requests": BUCKET, "retry_after": "none"},
        {"rpm": 720.0},
    ),
    _tokens(),
    _in_flight(),
    Scenario(
        "faults",
        "a fifth fails, one account dead",
        faults,
        {
            "requests": _rate(6000, 60, "bucket", burst=100),
            "latency": LATENCY,
            "jitter": JITTER,
            "faults": FAULTS,
        },
        {"rpm": 6000.0},
        dead=1,
    ),
    Scenario("cpu", "a call", cpu_per_call, {"latency": LATENCY}, UNLIMITED),
    Scenario("cpu", "1,000 callers", memory, {"latency": 10.0}, UNLIMITED),
    Scenario("cpu", "dispatcher alone", alone),
    Scenario("cpu", "10,000 blocked waiters, 5 s", waiters),
    Scenario("spread", "4,000 calls", spread, {"latency": LATENCY, "jitter": JITTER}, {"rpm": 1e6}),
    Scenario("spread", "1,000 waiters", order),
    Scenario(
        "processes",
        "2 processes, 500 a day",
        shared_day,
        {"latency": 0.02},
        {"rpm": None, "keys": 1},
    ),
    Scenario(
        "processes",
        "4 processes, 2,400/min",
        shared_rate,
        {
            "requests": _rate(2400, 60, "bucket", burst=40),
            "latency": LATENCY,
            "jitter": JITTER,
        },
        {"rpm": 2400.0, "keys": 1},
        per_second=40.0,
    ),
]


def scenario_named(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def run_one(job: Job) -> None:
    """Measure, print the figures as one line of JSON, and leave at once: unwinding 10,000 waiting
    tasks, or a peer's connections, is no part of any figure."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    try:
        figures = asyncio.run(_measured(job))
    except peers.Skipped as reason:
        figures = {"skipped": str(reason)}
        print(json.dumps(figures), flush=True)
    os._exit(0)


async def _measured(job: Job) -> Figures:
    figures = await job.scenario.run(job)
    print(json.dumps(figures), flush=True)
    os._exit(0)
