"""Why an account rests or does not answer: told in words of our own, and nothing else with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import LLMServer
from question_optimizer.dispatcher import Lease, LLMClientConfig, LLMDispatcher
from question_optimizer.errors import StopRun
from question_optimizer.wire import ChatAnswer, ChatRequest, send

KEY = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key
SAID = f"\x1b[2J\u202e key {KEY} refused at https://me:{KEY}@proxy/v1 <script>" + "x" * 5000
HOSTILE = json.dumps({"error": {"message": SAID}})
WAYS = [(kind, transport) for kind in ("openai", "anthropic") for transport in ("direct", "sdk")]
OPENAI = ("openai", "direct")

Answers = Callable[[int], "tuple[int, dict[str, str], str] | None"]


def account(
    url: str, way: tuple[Any, Any] = OPENAI, name: str = "it", **fields: Any
) -> LLMClientConfig:
    kind, transport = way
    base_url = f"{url}/v1" if kind == "openai" else url
    given = {"model": "m", "api_key": KEY, "concurrency": 8, **fields}
    return LLMClientConfig(name, kind=kind, base_url=base_url, transport=transport, **given)


@pytest.fixture
def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextlib.asynccontextmanager
async def asking(dispatcher: LLMDispatcher, items: int = 5) -> AsyncIterator[list[Any]]:
    """So many items ask for an answer all the while."""

    async def attempt(lease: Lease) -> ChatAnswer:
        return await send(lease.config, ChatRequest(system="", messages=(("user", "2+2?"),)))

    asks = [asyncio.create_task(dispatcher.call(attempt)) for _ in range(items)]
    try:
        yield asks
    finally:
        for task in asks:
            task.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        await dispatcher.aclose()


async def until(seen: Callable[[], object]) -> None:
    while not seen():
        await asyncio.sleep(0.005)


def served(llm_server: Callable[..., LLMServer], answers: Answers) -> LLMServer:
    server = llm_server()
    server.fail = answers
    return server


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_does_not_run_is_told_from_the_first_call_on(
    nowhere: str, way: tuple[str, str]
) -> None:
    dispatcher = LLMDispatcher([account(nowhere, way)])
    async with asking(dispatcher):
        await until(lambda: dispatcher.snapshot()[0]["failed"])
        assert dispatcher.snapshot()[0]["why"] == "cannot connect"
        assert dispatcher.account_line().endswith(": cannot connect")
        await until(lambda: dispatcher.snapshot()[0]["rests"] >= 1)
        assert re.fullmatch(r"it rests \d+ s: cannot connect", dispatcher.account_line())
        assert re.search(r"it rests \d+ s: cannot connect", dispatcher.live_line())


LINES = {
    429: r"it rests \d\d s: HTTP 429",
    503: r"it rests \d\d s: HTTP 503",
    500: r"it rests \d\d s: HTTP 500",
    401: r"it is out: HTTP 401",
    302: r"it( rests \d s)?: HTTP 302",  # the SDKs follow it
    200: r"it( rests \d s)?: unreadable answer",
}


@pytest.mark.parametrize(
    ("way", "status"),
    [(way, status) for way in WAYS for status in LINES if (way[1], status) != ("sdk", 302)],
)
async def test_what_a_provider_says_is_never_shown_and_its_status_is(
    llm_server: Callable[..., LLMServer], way: tuple[str, str], status: int
) -> None:
    server = served(llm_server, lambda n: (status, {"retry-after": "60"}, HOSTILE))
    dispatcher = LLMDispatcher([account(server.url, way)])
    async with asking(dispatcher):
        await until(lambda: dispatcher.snapshot()[0]["why"])
        shown = dispatcher.account_line(), dispatcher.live_line().rpartition(" · ")[2]
        seen = dispatcher.snapshot()[0]
    assert all(re.fullmatch(LINES[status], said) for said in shown), shown
    assert shown[0].endswith(seen["why"])
    assert KEY not in repr((shown, seen))


async def test_an_account_that_is_well_again_says_nothing_of_it(
    llm_server: Callable[..., LLMServer],
) -> None:
    server = served(llm_server, lambda n: (500, {}, "") if n == 1 else None)
    dispatcher = LLMDispatcher([account(server.url)])
    async with asking(dispatcher, items=1) as [asked]:
        await until(lambda: dispatcher.snapshot()[0]["failed"])
        assert dispatcher.account_line() == "it: HTTP 500"
        await asked
        assert dispatcher.account_line() == "it 2 today"
        assert dispatcher.snapshot()[0]["why"] == ""


async def test_one_fault_of_an_account_that_answers_is_no_news(
    llm_server: Callable[..., LLMServer],
) -> None:
    server = served(llm_server, lambda n: (500, {}, "") if n == 2 else None)
    dispatcher = LLMDispatcher([account(server.url)])
    async with asking(dispatcher, items=1) as [first]:
        await first
        async with asking(dispatcher, items=1):
            await until(lambda: dispatcher.snapshot()[0]["failed"])
            assert dispatcher.account_line() == "it 2 today"
            assert dispatcher.snapshot()[0]["why"] == ""


async def test_a_server_that_takes_calls_and_never_answers_is_told_after_some_seconds() -> None:
    ahead = [0.0]
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        dispatcher = LLMDispatcher(
            [account(url, timeout=600)], clock=lambda: time.monotonic() + ahead[0]
        )
        async with asking(dispatcher, items=2):
            await until(lambda: dispatcher.snapshot()[0]["in_flight"])
            before = dispatcher.account_line()
            ahead[0] = 300.0
            assert re.fullmatch(r"it: no answer for 3\d\d s", dispatcher.account_line())
            assert dispatcher.snapshot()[0]["why"].startswith("no answer for 3")
    assert before == "it 2 today"


async def test_a_rest_that_another_process_began_is_told_without_a_reason(
    llm_server: Callable[..., LLMServer], tmp_path: Path
) -> None:
    server = served(llm_server, lambda n: (429, {"retry-after": "60"}, ""))
    log = tmp_path / "daily_request_log.json"
    with LLMDispatcher([account(server.url)], log) as theirs:
        ours = LLMDispatcher([account(server.url)], log)
        async with asking(theirs, items=1):
            await until(lambda: theirs.snapshot()[0]["why"])
            assert re.fullmatch(r"it rests \d\d s: HTTP 429", theirs.account_line())
            async with asking(ours, items=1):
                await until(lambda: ours.snapshot()[0]["rests"])
                assert re.fullmatch(r"it rests \d\d s", ours.account_line())
    assert len(server.requests) == 1


async def test_where_all_are_out_the_run_ends_and_each_still_tells_why(
    llm_server: Callable[..., LLMServer],
) -> None:
    server = served(llm_server, lambda n: (401, {}, HOSTILE))
    dispatcher = LLMDispatcher([account(server.url, name=name) for name in ("one", "two")])
    async with asking(dispatcher, items=2) as asks:
        ends = await asyncio.gather(*asks, return_exceptions=True)
        assert all(isinstance(end, StopRun) and KEY not in str(end) for end in ends)
        assert dispatcher.account_line() == "one is out: HTTP 401 · two is out: HTTP 401"
        assert dispatcher.live_line() == "one is out: HTTP 401, two is out: HTTP 401"
