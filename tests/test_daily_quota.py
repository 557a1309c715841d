"""A day's quota ends while the generator runs: the next start goes on, or the run waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from conftest import LLMServer
from generator_runs import (
    Asked,
    Generator,
    Scripted,
    account_at,
    corpus,
    generator_for,
    good_question,
    questions,
    text_of,
)
from question_optimizer import rehearsal
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import StopRun
from question_optimizer.generation.forecast import CLOCKS_APART_SECONDS
from question_optimizer.limit_store import LimitStore

EVENING = datetime(2026, 11, 21, 22, 30, tzinfo=UTC).timestamp()
DAILY = 10


class Days:
    """A wall clock that a test sets, and a server that counts its calls by that clock's day."""

    def __init__(self, llm_server: Callable[..., LLMServer]):
        self.now = EVENING
        self.calls: Counter[str] = Counter()
        self._server = llm_server(self._reply)

    def __call__(self) -> float:
        return self.now

    def _reply(self, messages: list[dict[str, Any]]) -> str:
        self.calls[f"{datetime.fromtimestamp(self.now, UTC):%d %b}"] += 1
        return rehearsal.answer(messages)

    def dispatcher(self) -> LLMDispatcher:
        account = account_at(self._server.url, name="free", daily_limit=DAILY, concurrency=3)
        return LLMDispatcher([account], wall=self, store=LimitStore(self))


@pytest.fixture
def days(llm_server: Callable[..., LLMServer]) -> Days:
    return Days(llm_server)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Twelve chunks: 24 calls, which is two days and four calls."""
    return corpus(tmp_path / "units", 12)


async def test_a_spent_day_ends_the_run_and_the_next_day_completes_it(
    units: Path, tmp_path: Path, days: Days
) -> None:
    dispatcher = days.dispatcher()
    generator = generator_for(units, tmp_path / "data", dispatcher=dispatcher, wall=days)
    first = await generator.generate()
    assert first.exit_code == 75
    assert first.until == datetime(2026, 11, 22, tzinfo=UTC)
    assert "free" in first.stopped
    assert "2026-11-22 00:00 UTC" in first.stopped
    assert 3 <= first.generated == first.written == len(questions(units)) <= 5
    assert first.failed == 0
    too_early = await generator.generate()
    assert (too_early.exit_code, too_early.generated) == (75, 0)
    made = [first.generated]
    for _ in range(2):
        days.now += 86400
        made.append((await generator.generate()).generated)
    await dispatcher.aclose()
    assert sum(made) == len(questions(units)) == 12
    assert days.calls == {"21 Nov": DAILY, "22 Nov": DAILY, "23 Nov": 4}


async def test_a_run_that_waits_sleeps_through_the_nights_and_completes_by_itself(
    units: Path, tmp_path: Path, days: Days
) -> None:
    dispatcher = days.dispatcher()
    generator = generator_for(units, tmp_path / "data", dispatcher=dispatcher, wall=days, wait=True)
    slept: list[datetime] = []

    async def nights() -> None:
        """Time stands still while it works; each night passes as soon as it sleeps."""
        while True:
            await asyncio.sleep(0.01)
            until = generator.summary.until
            if until is not None and days.now < until.timestamp():
                slept.append(until)
                days.now = until.timestamp() + CLOCKS_APART_SECONDS

    passing = asyncio.create_task(nights())
    summary = await generator.generate()
    passing.cancel()
    await dispatcher.aclose()
    assert (summary.exit_code, summary.stopped, summary.until) == (0, "", None)
    assert (summary.generated, summary.written, summary.failed) == (12, 12, 0)
    assert slept == [datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC)]
    assert days.calls == {"21 Nov": DAILY, "22 Nov": DAILY, "23 Nov": 4}
    assert len(questions(units)) == 12


async def test_every_call_of_a_day_that_ended_is_in_its_summary(
    units: Path, tmp_path: Path, days: Days
) -> None:
    dispatcher = days.dispatcher()
    summary = await generator_for(
        units, tmp_path / "data", dispatcher=dispatcher, wall=days
    ).generate()
    await dispatcher.aclose()
    assert days.calls.total() == DAILY
    assert summary.calls == DAILY


async def test_a_waiting_run_can_be_cancelled_and_keeps_everything(
    units: Path, tmp_path: Path, days: Days
) -> None:
    dispatcher = days.dispatcher()
    generator = generator_for(units, tmp_path / "data", dispatcher=dispatcher, wall=days, wait=True)
    running = asyncio.create_task(generator.generate())
    while generator.summary.until is None:
        await asyncio.sleep(0.01)
    written = len(questions(units))
    assert written >= 3, "what was made is in the collection before the night"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await dispatcher.aclose()
    assert len(questions(units)) == written
    assert days.calls == {"21 Nov": DAILY}


async def test_what_fails_is_tried_again_once_however_many_nights_it_takes(
    units: Path, tmp_path: Path, days: Days
) -> None:
    """One chunk's calls fail whenever they are made."""
    server = days._server
    fails: list[int] = []

    def fail(n: int) -> tuple[int, dict[str, str], str] | None:
        body = server.requests[n - 1][2]
        if "of unit 1 wears" not in str(body["messages"]):
            return None
        fails.append(n)
        return 400, {}, '{"error": {"message": "filtered"}}'

    server.fail = fail
    dispatcher = days.dispatcher()
    generator = generator_for(
        units, tmp_path / "data", dispatcher=dispatcher, wall=days, wait=True, retry_failed=True
    )

    async def nights() -> None:
        while True:
            await asyncio.sleep(0.01)
            until = generator.summary.until
            if until is not None and days.now < until.timestamp():
                days.now = until.timestamp() + CLOCKS_APART_SECONDS

    passing = asyncio.create_task(nights())
    summary = await generator.generate()
    passing.cancel()
    await dispatcher.aclose()
    assert summary.generated == 11
    assert len(fails) <= 2


def test_the_script_ends_with_75_and_names_the_time(
    units: Path,
    llm_server: Callable[..., LLMServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator, server = Generator(tmp_path, monkeypatch, capsys), llm_server()
    Path("llm_providers.toml").write_text(
        f'[[accounts]]\nname = "free"\nmodel = "m"\nbase_url = "{server.url}/v1"\n'
        "daily_limit = 10\nconcurrency = 2\n"
    )
    args = ("--qdrant-path", units, "--gates", "off")
    done = generator(*args, rehearsal=False)
    if f"{datetime.now(UTC):%H:%M}" == "00:00":  # its midnight came between two calls
        pytest.skip("a day began")
    assert done.returncode == 75
    assert len(server.requests) == 10
    assert "questions generated, " in done.stdout
    last = done.stderr.splitlines()[-1]
    assert "free" in last
    assert " 00:00 UTC; everything is saved" in last
    assert 3 <= len(questions(units)) <= 5
    again = generator(*args, rehearsal=False)
    assert again.returncode == 75
    assert len(server.requests) == 10


async def test_a_chunk_that_comes_in_a_night_is_not_refused_for_being_new(
    units: Path, tmp_path: Path
) -> None:
    """The index that questions are searched in was built before; whenever it is built anew, the
    question is checked and written, and asked for once."""
    client = QdrantClient(path=str(units), force_disable_check_same_thread=True)
    now = EVENING

    def write(asked: Asked, number: int) -> str:
        if len(program.asked) == 6:
            until = datetime.fromtimestamp(now, UTC) + timedelta(hours=2)
            raise StopRun("quota spent", exit_code=75, until=until)
        return good_question(asked, number)

    async def night() -> None:
        nonlocal now
        while generator.summary.until is None:
            await asyncio.sleep(0.01)
        payload = {"text": text_of(30), "file_name": "new.pdf"}
        client.upsert("units", [models.PointStruct(id=30, vector=[1.0, 0.5], payload=payload)])
        now += 3 * 3600

    program = Scripted(write)
    given: dict[str, Any] = {"client": client, "qdrant_path": None, "pipeline": program}
    generator = generator_for(
        units, tmp_path / "data", **given, gates="training", wait=True, wall=lambda: now
    )
    passing = asyncio.create_task(night())
    summary = await generator.generate()
    await passing
    assert (summary.rejected, summary.failed, summary.stopped) == (0, 0, "")
    rest = await generator.generate()
    client.close()
    assert (rest.rejected, rest.failed) == (0, 0)
    assert questions(units).keys() == {*range(1, 13), 30}
    assert sum(asked.chunk_text == text_of(30) for asked in program.asked) == 1
