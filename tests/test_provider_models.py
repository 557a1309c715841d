"""Thirteen ways in which providers count, as models in virtual time: what of each limit is used?

Four accounts, 64 callers in a closed loop, five minutes. A change to what refusals teach is judged
here first: a model that loses goodput or wastes requests shows within seconds.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from question_optimizer.dispatcher import Lease, LLMClientConfig, LLMDispatcher
from question_optimizer.failures import Failure
from virtual_time import run

SECONDS, WARM_UP = 300.0, 30.0
ACCOUNTS, CALLERS = 4, 64
TOKENS = 56.0


@dataclass
class Provider:
    """One account's server: `limit` requests in `window` seconds, counted as `kind` says."""

    kind: str
    rpm: float = 600.0
    window: float = 60.0
    burst: float = 10.0
    tpm: float | None = None
    at_once: int | None = None
    accepted: list[float] = field(default_factory=list)
    refused: int = 0
    in_flight: int = 0
    _level: float | None = None
    _at: float = 0.0
    _tokens: float = 0.0
    _tokens_at: float = 0.0
    _log: deque[float] = field(default_factory=deque)
    _counted: tuple[int, int] = (-1, 0)

    def arrives(self, now: float) -> float:
        """Seconds to wait if this request is refused, else 0."""
        wait = max(self._requests(now), self._token_wait(now))
        if self.at_once is not None and self.in_flight >= self.at_once:
            wait = max(wait, 0.05)
        if wait > 0:
            self.refused += 1
            return wait
        self._count(now)
        self.accepted.append(now)
        return 0.0

    def _requests(self, now: float) -> float:
        rate = self.rpm / 60
        most = rate * self.window
        if self.kind == "bucket":
            level = self.burst if self._level is None else self._level
            self._level = min(self.burst, level + (now - self._at) * rate)
            self._at = now
            return 0.0 if self._level >= 1 else (1 - self._level) / rate
        if self.kind == "fixed":
            number = int(now / self.window)
            counted = self._counted[1] if self._counted[0] == number else 0
            return (number + 1) * self.window - now if counted >= most - 1e-9 else 0.0
        if self.kind == "sliding":
            while self._log and self._log[0] <= now - self.window:
                self._log.popleft()
            return self._log[0] + self.window - now if len(self._log) >= most - 1e-9 else 0.0
        return 0.0

    def _token_wait(self, now: float) -> float:
        if self.tpm is None:
            return 0.0
        rate = self.tpm / 60
        self._tokens = min(rate, self._tokens + (now - self._tokens_at) * rate)
        self._tokens_at = now
        return 0.0 if self._tokens >= TOKENS else (TOKENS - self._tokens) / rate

    def _count(self, now: float) -> None:
        if self._level is not None:
            self._level -= 1
        number = int(now / self.window)
        self._counted = (number, 1 + (self._counted[1] if self._counted[0] == number else 0))
        self._log.append(now)
        if self.tpm is not None:
            self._tokens -= TOKENS


@dataclass(frozen=True)
class Used:
    input_tokens: int = 24
    output_tokens: int = 32


@dataclass(frozen=True)
class Result:
    goodput: float  # share of what the providers allow, after the warm-up
    wasted: float  # share of all requests
    spread: float  # p99 of the callers' waiting by its median, after the warm-up
    rates: list[float | None]


def measure(
    *,
    claimed: float = 1.0,
    retry_after: str | None = "int",
    concurrency: int | None = 100,
    rate_known: bool = True,
    seconds: float = SECONDS,
    seed: int = 0,
    latency: float = 0.5,
    **provider: Any,
) -> Result:
    """Goodput and waste against `provider`, where `claimed` times its rpm is configured."""

    async def main() -> Result:
        rng = random.Random(seed)
        now = asyncio.get_running_loop().time
        servers = {f"k{n}": Provider(**provider) for n in range(ACCOUNTS)}
        rpm = servers["k0"].rpm
        configs = [
            LLMClientConfig(
                name,
                "m",
                rpm_limit=rpm * claimed if rate_known else None,
                tpm_limit=server.tpm,
                concurrency=concurrency,
            )
            for name, server in servers.items()
        ]
        dispatcher = LLMDispatcher(configs, clock=now, wall=lambda: 1.0e9 + now(), seed=seed)

        async def send(lease: Lease) -> Used | Failure:
            server = servers[lease.name]
            await asyncio.sleep(rng.expovariate(1 / 0.01))  # the way there
            wait = server.arrives(now())
            if wait > 0:
                await asyncio.sleep(0.02)
                told = {"int": float(math.ceil(wait)), "exact": wait, None: None}[retry_after]
                return Failure("rate_limited", "429", told, 429)
            server.in_flight += 1
            try:
                await asyncio.sleep(rng.lognormvariate(math.log(latency), 0.5))
            finally:
                server.in_flight -= 1
            return Used()

        waits: list[float] = []

        async def caller() -> None:
            while True:
                began = now()
                while True:
                    lease = await dispatcher.get_available_client(tokens=TOKENS)
                    answer = await send(lease)
                    if isinstance(answer, Used):
                        await dispatcher.release_client_on_success(lease, answer)
                        break
                    await dispatcher.release_client_on_failure(lease, answer)
                if began > WARM_UP:
                    waits.append(now() - began)

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        await asyncio.sleep(seconds)
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        accepted = [at for server in servers.values() for at in server.accepted]
        refused = sum(server.refused for server in servers.values())
        allowed = ACCOUNTS * rpm / 60 * (seconds - WARM_UP)
        if servers["k0"].tpm:
            allowed = min(allowed, ACCOUNTS * servers["k0"].tpm / 60 / TOKENS * (seconds - WARM_UP))
        if servers["k0"].at_once:
            mean = latency * math.exp(0.5**2 / 2) + 0.0
            allowed = ACCOUNTS * servers["k0"].at_once / mean * (seconds - WARM_UP)
        waits.sort()
        return Result(
            sum(at >= WARM_UP for at in accepted) / allowed,
            refused / (refused + len(accepted)),
            waits[int(len(waits) * 0.99)] / waits[len(waits) // 2],
            [seen["per_minute"]["requests"] for seen in dispatcher.snapshot()],
        )

    return run(main())


MODELS: dict[str, tuple[dict[str, Any], float, float]] = {
    "bucket of 10": ({"kind": "bucket"}, 0.995, 0.001),
    "bucket of 60": ({"kind": "bucket", "burst": 60}, 0.995, 0.001),
    "bucket of 600": ({"kind": "bucket", "burst": 600}, 0.995, 0.001),
    "fixed window of 60 s": ({"kind": "fixed"}, 0.995, 0.005),
    "sliding window of 60 s": ({"kind": "sliding"}, 0.995, 0.001),
    "fixed window of 10 s": ({"kind": "fixed", "window": 10}, 0.98, 0.005),
    "fixed window of 1 s": ({"kind": "fixed", "window": 1}, 0.96, 0.005),
    "sliding window of 10 s": ({"kind": "sliding", "window": 10}, 0.97, 0.005),
    "sliding window of 1 s": ({"kind": "sliding", "window": 1}, 0.9, 0.005),
    "no burst at all": ({"kind": "bucket", "burst": 1}, 0.6, 0.015),
    "20 % too high": ({"kind": "bucket", "claimed": 1.2}, 0.97, 0.015),
    "twice too high": ({"kind": "bucket", "claimed": 2.0}, 0.97, 0.015),
    "20 % too high, no Retry-After": (
        {"kind": "bucket", "claimed": 1.2, "retry_after": None},
        0.97,
        0.015,
    ),
    "tokens are the limit": ({"kind": "bucket", "tpm": 600 * TOKENS / 2}, 0.97, 0.015),
    "8 at once, unknown": (
        {"kind": "none", "at_once": 8, "concurrency": None, "rate_known": False},
        0.97,
        0.015,
    ),
    "rate unknown": ({"kind": "bucket", "rate_known": False, "concurrency": 16}, 0.9, 0.03),
}


@pytest.mark.parametrize("model", MODELS)
def test_limits_are_used_and_not_tripped(model: str) -> None:
    provider, goodput, wasted = MODELS[model]
    result = measure(**provider)
    assert result.goodput >= goodput, result
    assert result.wasted <= wasted, result


if __name__ == "__main__":
    for name, (provider, goodput, wasted) in MODELS.items():
        for seed in range(3):
            result = measure(seed=seed, **provider)
            missed = result.goodput < goodput or result.wasted > wasted
            print(
                f"{name:32} {result.goodput:7.2%} {result.wasted:7.3%} x{result.spread:5.2f} "
                f"{result.rates} {'MISSED' if missed else ''}",
                flush=True,
            )
