"""What every script shares: what a dry run says of calls and money, and what Ctrl-C says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conftest import clean_environment
from question_optimizer.cli import dry_run_line
from question_optimizer.providers import LLMClientConfig

INTERRUPTED_TWICE = """
import signal, sys
from question_optimizer.cli import finish_on_interrupt

class Caller:
    def stop(self, reason): print(reason, file=sys.stderr)
    def snapshot(self): return [{"started": int(sys.argv[1]), "in_flight": int(sys.argv[2])}]

with finish_on_interrupt(Caller()):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
"""


def account(name: str, price: float, rpm: int | None = 60) -> LLMClientConfig:
    return LLMClientConfig(
        name=name,
        model="m",
        base_url="http://127.0.0.1:1/v1",
        rpm_limit=rpm,
        input_price=price,
        output_price=price,
    )


@pytest.mark.parametrize(
    ("prices", "calls", "most", "line"),
    [
        ([1.0], 0, 0, "dry run: 0 calls, nothing to do"),
        (
            [1.0],
            1200,
            1200,
            "dry run: 1,200 calls (1,200 student), about 300,000 tokens, cost 0.3000, "
            "at least 20 min at the present limits",
        ),
        (
            [1.0, 2.0],
            1200,
            7800,
            "dry run: 1,200 calls (1,200 student), about 300,000 tokens, cost 0.3000 to 0.6000 "
            "(for 7,800 calls, the most there may be: 1.9500 to 3.9000), "
            "at least 10 min at the present limits",
        ),
    ],
)
def test_a_dry_run_prices_its_calls_and_the_most_there_may_be(
    prices: list[float], calls: int, most: int, line: str
) -> None:
    accounts = [account(f"a{n}", price) for n, price in enumerate(prices)]
    told = dry_run_line(accounts, {"student": calls}, characters=400, most={"student": most})
    assert told == line


@pytest.mark.parametrize(
    ("started", "in_flight", "first", "left"),
    [
        (0, 0, "stopping; no call was made yet", "left before any call was made; nothing is lost"),
        (9, 0, "finishing what is in flight", "left; everything before is saved"),
        (9, 2, "finishing what is in flight", "left with calls in flight; everything before is"),
    ],
)
def test_ctrl_c_speaks_of_calls_in_flight_only_where_there_are_some(
    started: int, in_flight: int, first: str, left: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE, str(started), str(in_flight)],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 130
    assert said[0] == f"{first}; press Ctrl-C again to leave at once"
    assert left in said[-1] and "resume with: python " in said[-1]
