"""Rate-limit headers: every dialect, windows nobody names, what the dispatcher makes of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from question_optimizer.dispatcher import Lease, LLMClientConfig
from question_optimizer.errors import TRY_LATER
from question_optimizer.failures import retry_after
from question_optimizer.limits import Unit
from question_optimizer.rate_headers import Announced, Windows, read_headers, seconds_of
from test_dispatcher import (
    NOON,
    Provider,
    account,
    ask,
    assert_no_window_above,
    dispatcher_of,
    now,
    refused,
    stopped,
)
from virtual_time import run

RFC3339 = "2026-03-14T12:00:{:02d}Z"


def read(**headers: str) -> dict[tuple[Unit, float | None], tuple[float | None, ...]]:
    """What headers say at noon: {(unit, window): (limit, remaining, reset)}."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {(a.unit, a.window): (a.limit, a.remaining, a.reset) for a in read_headers(named, NOON)}


# ---------------------------------------------------------------------- dialects


def test_openai() -> None:
    assert read(
        x_ratelimit_limit_requests="5000",
        x_ratelimit_remaining_requests="4999",
        x_ratelimit_reset_requests="12ms",
        x_ratelimit_limit_tokens="160000",
        x_ratelimit_remaining_tokens="149984",
        x_ratelimit_reset_tokens="6m0s",
        x_request_id="req_1",
        openai_processing_ms="300",
    ) == {
        ("requests", None): (5000, 4999, 0.012),
        ("tokens", None): (160_000, 149_984, 360),
    }


def test_groq_whose_requests_are_a_days() -> None:
    assert read(
        retry_after="2",
        x_ratelimit_limit_requests="14400",
        x_ratelimit_limit_tokens="18000",
        x_ratelimit_remaining_requests="14370",
        x_ratelimit_remaining_tokens="17997",
        x_ratelimit_reset_requests="2m59.56s",
        x_ratelimit_reset_tokens="7.66s",
    ) == {
        ("requests", None): (14_400, 14_370, pytest.approx(179.56)),
        ("tokens", None): (18_000, 17_997, 7.66),
    }


def test_anthropic() -> None:
    assert read(
        anthropic_ratelimit_requests_limit="50",
        anthropic_ratelimit_requests_remaining="49",
        anthropic_ratelimit_requests_reset=RFC3339.format(2),
        anthropic_ratelimit_input_tokens_limit="30000",
        anthropic_ratelimit_input_tokens_remaining="29000",
        anthropic_ratelimit_input_tokens_reset=RFC3339.format(3),
        anthropic_ratelimit_output_tokens_limit="8000",
        anthropic_ratelimit_output_tokens_remaining="0",
        anthropic_ratelimit_output_tokens_reset=RFC3339.format(59),
        anthropic_ratelimit_tokens_limit="38000",
        anthropic_ratelimit_tokens_remaining="29000",
        anthropic_ratelimit_tokens_reset=RFC3339.format(59),
        anthropic_organization_id="abc",
    ) == {
        ("requests", 60.0): (50, 49, 2),
        ("input_tokens", 60.0): (30_000, 29_000, 3),
        ("output_tokens", 60.0): (8000, 0, 59),
        ("tokens", 60.0): (38_000, 29_000, 59),
    }


def test_cerebras_and_mistral_who_name_the_window() -> None:
    assert read(
        x_ratelimit_limit_requests_day="14400",
        x_ratelimit_remaining_requests_day="14399",
        x_ratelimit_reset_requests_day="33011.382867",
        x_ratelimit_limit_tokens_minute="60000",
        x_ratelimit_remaining_tokens_minute="59000",
        x_ratelimit_reset_tokens_minute="11.382867",
    ) == {
        ("requests", 86_400.0): (14_400, 14_399, 33_011.382867),
        ("tokens", 60.0): (60_000, 59_000, 11.382867),
    }
    assert read(
        x_ratelimit_limit_req_minute="60",
        x_ratelimit_remaining_req_minute="59",
        x_ratelimit_limit_tokens_minute="500000",
        x_ratelimit_limit_requests_second="1",
        x_ratelimit_remaining_requests_hour="7",
    ) == {
        ("requests", 60.0): (60, 59, None),
        ("tokens", 60.0): (500_000, None, None),
        ("requests", 1.0): (1, None, None),
        ("requests", 3600.0): (None, 7, None),
    }


def test_azure_that_says_how_long_its_window_is() -> None:
    assert read(
        x_ratelimit_limit_tokens="120000",
        x_ratelimit_remaining_tokens="119000",
        x_ratelimit_renewalperiod_tokens="60",
        x_ratelimit_limit_requests="20",
        x_ratelimit_remaining_requests="19",
        x_ratelimit_renewalperiod_requests="10",
        x_ratelimit_reset_requests="10",
    ) == {
        ("tokens", 60.0): (120_000, 119_000, None),
        ("requests", 10.0): (20, 19, 10),
    }


@pytest.mark.parametrize(
    "name",
    ["X-RateLimit-Limit-Requests", "X-Ratelimit-Limit-Requests", "x-ratelimit-limit-requests"],
)
def test_names_are_read_in_the_spellings_that_occur(name: str) -> None:
    assert read_headers({name: "7"}, NOON) == (Announced("requests", limit=7),)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json", "retry-after": "5"},
        {"x-ratelimit-limit": "60", "ratelimit-policy": '"default";q=100;w=10'},  # of what?
        {"x-ratelimit-limit-requests": "many"},
        {"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-tokens": "nan"},
        {"x-ratelimit-limit-requests": "inf", "x-ratelimit-limit-tokens": ""},
        {"x-ratelimit-reset-requests": "soon"},
        {"x-ratelimit-over-limit-requests-note": "yes"},
    ],
)
def test_what_says_nothing_about_a_limit_is_left_out(headers: dict[str, str]) -> None:
    assert read_headers(headers, NOON) == ()


def test_one_bad_value_does_not_spoil_the_others() -> None:
    assert read(
        x_ratelimit_limit_requests="600",
        x_ratelimit_remaining_requests="?",
        x_ratelimit_reset_requests="-",
        x_ratelimit_limit_tokens="9e3",
    ) == {("requests", None): (600, None, None), ("tokens", None): (9000, None, None)}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("12", 12),
        (" 12.5 ", 12.5),
        ("12ms", 0.012),
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("1d2h", 93_600),
        ("1m0.5s", 60.5),
        (f"{NOON + 30:.0f}", 30),  # seconds since 1970
        (f"{(NOON + 30) * 1000:.0f}", 30),  # milliseconds
        (f"{NOON - 30:.0f}", 0),  # over already
        (RFC3339.format(7), 7),
        ("2026-03-14T13:00:07+01:00", 7),
        ("2026-03-14T11:00:00Z", 0),
        (format_datetime(datetime.fromtimestamp(NOON + 7, UTC), usegmt=True), 7),
        ("", None),
        ("soon", None),
        ("1 s", None),
        ("5x", None),
        ("s", None),
        ("6m0s!", None),
        ("nan", None),
        ("-5", None),
        ("2026-13-45T00:00:00Z", None),
        ("Sat, 99 Mar 2026 12:00:07 GMT", None),
    ],
)
def test_times_are_read_as_numbers_durations_or_dates(value: str, seconds: float | None) -> None:
    got = seconds_of(value, NOON)
    assert got == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after-ms": "1500", "retry-after": "3"}, 1.5),
        ({"retry-after-ms": "?", "retry-after": "3"}, 3),
        ({"retry-after-ms": "-5"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "nan", "retry-after": "3"}, 3),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "never"}, None),
        ({"retry-after": "Sat, 14 Mar 2026 12:00:09 GMT"}, 9),
    ],
)
def test_retry_after_is_read_in_both_its_forms(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOON) == seconds


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after-ms": "inf"},
        {"retry-after": "9" * 400 + "s"},
    ],
)
def test_a_wait_is_always_a_number(headers: dict[str, str]) -> None:
    wait = retry_after(headers, NOON)
    assert wait is None or math.isfinite(wait)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after-ms": "1e300"},
        {"retry-after": "400d"},
        {"retry-after": "1" + "0" * 300},
        {"retry-after": "9999-01-01T00:00:00Z"},
    ],
)
def test_no_wait_is_longer_than_a_year(headers: dict[str, str]) -> None:
    assert retry_after(headers, NOON) == 366 * 86400


words = st.sampled_from(
    [
        *("x", "ratelimit", "anthropic", "limit", "remaining", "reset", "renewalperiod", "input"),
        *(
            "requests",
            "req",
            "tokens",
            "output",
            "second",
            "minute",
            "hour",
            "day",
            "RateLimit",
            "",
        ),
    ]
)
values = (
    st.text(max_size=30)
    | st.from_regex(r"[-+]?[0-9]{0,30}(\.[0-9]{0,9})?(e[0-9]{1,4})?", fullmatch=True)
    | st.from_regex(r"([0-9]{1,9}(\.[0-9]{1,3})?(ms|s|m|h|d)){1,5}", fullmatch=True)
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{2,12}(Z|[+-][0-9:]{2,5})?", fullmatch=True)
    | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [0-9]{1,5} [0-9: GMT+-]{0,15}")
    | st.sampled_from(
        ["nan", "inf", "-inf", "1e308", "1e999", "0", "-0", "٣", "1_000", "\x00", ","]
    )
)


@settings(max_examples=200, deadline=None)
@given(
    headers=st.dictionaries(
        st.lists(words, min_size=1, max_size=7).map("-".join) | st.text(max_size=20),
        values,
        max_size=8,
    ),
    times=st.lists(st.floats(0, 1e6), min_size=1, max_size=3),
)
def test_no_headers_raise_and_no_figure_is_negative(
    headers: dict[str, str], times: list[float]
) -> None:
    said = read_headers(headers, NOON)
    for limit in said:
        for figure in (limit.limit, limit.remaining, limit.reset, limit.window):
            assert figure is None or (figure >= 0 and math.isfinite(figure))
    windows = Windows()
    for at in sorted(times):
        for limit in said:
            window, _ = windows.observe(limit, at)
            assert window is None or window >= 0
    retry_after(headers, NOON)


# ---------------------------------------------------------------------- windows nobody names


def seen_by(windows: Windows, server: Callable[[float], Announced], times: Sequence[float]) -> Any:
    """(window, fixed) after answers at these times."""
    seen = None
    for at in times:
        seen = windows.observe(server(at), at)
    return seen


def bucket(limit: float, window: float, used: Callable[[float], float]) -> Any:
    """A server whose limit refills evenly."""
    return lambda at: Announced("requests", limit, limit - used(at), used(at) * window / limit)


def fixed(limit: float, window: float, a_second: float, offset: float = 0.0) -> Any:
    """A server that counts anew at the full minute, or hour, or day."""

    def answer(at: float) -> Announced:
        begun = (at - offset) % window
        used = min(limit, 1 + int(begun * a_second))
        return Announced("requests", limit, limit - used, window - begun)

    return answer


@pytest.mark.parametrize("window", [1.0, 10.0, 60.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("used", [1, 7, 250])
def test_the_window_of_a_bucket_is_told_by_three_answers(window: float, used: int) -> None:
    server = bucket(1000, window, lambda at: used + at % 3)
    windows = Windows()
    assert seen_by(windows, server, [0.0, 0.3]) == (None, False)
    assert seen_by(windows, server, [0.6]) == (window, False)
    assert seen_by(windows, server, [0.1 * n for n in range(7, 100)]) == (window, False)


def test_a_bucket_whose_reset_is_rounded_a_little_is_read_all_the_same() -> None:
    def server(at: float) -> Announced:
        used = 20 + int(at) % 5
        return Announced("requests", 600, 600 - used, round(used * 0.1, 1) + 0.05)

    assert seen_by(Windows(), server, [0.5 * n for n in range(40)]) == (60.0, False)


@pytest.mark.parametrize("limit", [30, 600])
def test_a_fixed_minute_is_told_by_its_ends(limit: int) -> None:
    server = fixed(limit, 60.0, 0.3, offset=17.0)
    assert seen_by(Windows(), server, [2.5 * n for n in range(80)]) == (60.0, True)


def test_a_fixed_hour_is_told_by_its_ends() -> None:
    server = fixed(1000, 3600.0, 0.1)
    assert seen_by(Windows(), server, [20.0 * n for n in range(400)]) == (3600.0, True)


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from([60.0, 3600.0, 86_400.0]),
    limit=st.integers(20, 20_000),
    pauses=st.lists(st.floats(0.05, 5), min_size=1, max_size=9),
    level=st.floats(0.02, 0.9),
)
def test_no_bucket_is_ever_taken_for_another_window(
    window: float, limit: int, pauses: list[float], level: float
) -> None:
    """Whatever the pauses, with a use that goes up and down."""
    used = [max(1, round(limit * level * (0.5 + n % 4 / 8))) for n in range(40)]
    windows, at = Windows(), 0.0
    for number, amount in enumerate(used):
        at += pauses[number % len(pauses)]
        said = Announced("requests", limit, limit - amount, amount * window / limit)
        found, ends_at_once = windows.observe(said, at)
        assert found in (None, window)
        assert not ends_at_once


def test_tokens_are_a_minutes_where_nothing_says_otherwise() -> None:
    windows = Windows()
    assert windows.observe(Announced("tokens", 1000), 0.0) == (60.0, False)
    assert windows.observe(Announced("requests", 1000), 0.0) == (None, False)
    assert windows.observe(Announced("requests", 1000, window=10.0), 0.0) == (10.0, False)
    assert windows.observe(Announced("tokens", 9, window=86_400.0), 0.0) == (86_400.0, False)


def test_what_is_incomplete_teaches_nothing() -> None:
    windows = Windows()
    for at in range(9):
        for said in (
            Announced("requests", 600),
            Announced("requests", 600, 599),
            Announced("requests", None, 599, 0.1),
            Announced("requests", 0, 0, 0.1),
            Announced("requests", 600, 600, 0.0),  # nothing used
            Announced("requests", 600, 700, 1.0),  # less than nothing
        ):
            assert windows.observe(said, float(at)) == (None, False)


# ---------------------------------------------------------------------- what the dispatcher does


@dataclass(frozen=True)
class Said:
    """An answer with headers."""

    announced: tuple[Announced, ...]
    input_tokens: int | None = 100
    output_tokens: int | None = 50


class Announcing(Provider):
    """A server that grants `rpm` a minute as an evenly filled bucket of `burst`, and says so."""

    def __init__(self, rpm: float, *, burst: float = 60.0, **options: Any):
        super().__init__(**options)
        self.rpm, self.burst, self.level, self.at = rpm, burst, burst, 0.0
        self.refusals = 0

    def headers(self) -> dict[str, str]:
        used = self.burst - self.level
        return {
            "x_ratelimit_limit_requests": f"{self.rpm:g}",
            "x_ratelimit_remaining_requests": f"{self.rpm - used:.0f}",
            "x_ratelimit_reset_requests": f"{round(used) * 60 / self.rpm:.3f}s",
        }

    async def __call__(self, lease: Lease) -> Any:
        self.level = min(self.burst, self.level + (now() - self.at) * self.rpm / 60)
        self.at = now()
        if self.level < 1:
            self.refusals += 1
            raise refused(429, **self.headers(), retry_after=f"{60 / self.rpm:.3f}")
        self.level -= 1
        await super().__call__(lease)
        named = {name.replace("_", "-"): value for name, value in self.headers().items()}
        return Said(read_headers(named, NOON))


def serve(provider: Provider, seconds: float, callers: int, **fields: Any) -> dict[str, Any]:
    """So many callers in a closed loop; the account's snapshot at the end."""

    async def main() -> dict[str, Any]:
        dispatcher = dispatcher_of(account(**fields))

        async def caller() -> None:
            while now() < seconds:
                await ask(dispatcher, provider)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return dispatcher.snapshot()[0]

    return run(main())


FULL = 60 / 60.1  # what is used of a limit


def test_a_configured_limit_that_is_too_high_is_corrected_before_any_refusal() -> None:
    provider = Announcing(300, seconds=0.2)
    seen = serve(provider, 120, 16, rpm_limit=600)
    assert provider.refusals == 0
    assert seen["per_minute"]["requests"] == pytest.approx(300 * FULL, abs=0.01)
    late = [at for at in provider.times if at > 10]
    assert_no_window_above(late, 300)


@pytest.mark.parametrize(("fixed_limits", "used"), [(False, 600), (True, 300)])
def test_a_configured_limit_that_is_too_low_is_raised_unless_it_is_fixed(
    fixed_limits: bool, used: float
) -> None:
    provider = Announcing(600, seconds=0.2)
    seen = serve(provider, 120, 16, rpm_limit=300, fixed_limits=fixed_limits)
    assert provider.refusals == 0
    assert seen["per_minute"]["requests"] == pytest.approx(used * FULL, abs=0.01)
    assert len(provider.sent) == pytest.approx(120 / 60 * used, rel=0.1)


def test_a_fixed_limit_that_is_too_high_is_lowered_all_the_same() -> None:
    provider = Announcing(300, seconds=0.2)
    seen = serve(provider, 60, 8, rpm_limit=600, fixed_limits=True)
    assert provider.refusals == 0
    assert seen["per_minute"]["requests"] == pytest.approx(300 * FULL, abs=0.01)


def test_a_limit_that_is_missing_is_set() -> None:
    provider = Announcing(300, seconds=0.2)
    seen = serve(provider, 120, 4)
    assert provider.refusals == 0
    assert seen["per_minute"]["requests"] == pytest.approx(300 * FULL, abs=0.01)


def after(*answers: Announced, rpm_limit: float | None = None, **fields: Any) -> dict[str, Any]:
    """The account's limits after answers that announce these, a second apart."""

    async def main() -> dict[str, Any]:
        dispatcher = dispatcher_of(account(rpm_limit=rpm_limit, **fields))
        for said in answers:
            lease = await dispatcher.get_available_client()
            await dispatcher.release_client_on_success(lease, Said((said,)))
            await asyncio.sleep(1)
        return dispatcher.snapshot()[0]

    return run(main())


def test_each_unit_has_its_own_limit() -> None:
    async def main() -> dict[str, Any]:
        dispatcher = dispatcher_of(account(kind="anthropic", tpm_limit=99))
        lease = await dispatcher.get_available_client()
        said = (
            Announced("requests", 50, 49, 1, 60.0),
            Announced("input_tokens", 30_000, 29_000, 1, 60.0),
            Announced("output_tokens", 8000, 7000, 1, 60.0),
        )
        await dispatcher.release_client_on_success(lease, Said(said))
        return dispatcher.snapshot()[0]["per_minute"]

    assert run(main()) == {
        "requests": pytest.approx(50 * FULL, abs=0.001),
        "tokens": pytest.approx(99 * FULL, abs=0.001),
        "input_tokens": pytest.approx(30_000 * FULL, abs=0.001),
        "output_tokens": pytest.approx(8000 * FULL, abs=0.001),
    }


def test_requests_of_a_day_pace_nobody_and_those_of_ten_seconds_do() -> None:
    seen = after(Announced("requests", 14_400, 14_399, 6, 86_400.0), rpm_limit=60)
    assert seen["per_minute"]["requests"] == pytest.approx(60 * FULL, abs=0.001)
    seen = after(Announced("requests", 20, 19, 10, 10.0), rpm_limit=600)
    assert seen["per_minute"]["requests"] == pytest.approx(120 * FULL, abs=0.001)


def test_groqs_requests_of_a_day_are_never_taken_for_a_minutes() -> None:
    """14,400 a day, one refilled every 6 s."""
    answers = [Announced("requests", 14_400, 14_400 - n, 6.0 * n) for n in range(1, 60)]
    seen = after(*answers, rpm_limit=30)
    assert seen["per_minute"]["requests"] == pytest.approx(30 * FULL, abs=0.001)


def test_what_was_announced_once_is_not_believed_again_after_refusals() -> None:
    """Else each answer would undo what the refusals before it have taught."""

    async def main() -> float:
        dispatcher = dispatcher_of(account(rpm_limit=600))
        said = Said((Announced("requests", 600, 500, 10.0, 60.0),))
        for _ in range(6):
            lease = await dispatcher.get_available_client()
            await asyncio.sleep(0.1)
            await dispatcher.release_client_on_failure(lease, refused(429, retry_after="1"))
        lowered = dispatcher.snapshot()[0]["per_minute"]["requests"]
        for _ in range(5):
            lease = await dispatcher.get_available_client()
            await dispatcher.release_client_on_success(lease, said)
        assert lowered < 590
        return dispatcher.snapshot()[0]["per_minute"]["requests"] / lowered

    assert 1.0 <= run(main()) < 1.02


def test_a_fixed_window_that_is_used_up_is_waited_for_without_a_refusal() -> None:
    """Ten a minute; others use the same account, so that our own pace says nothing."""

    async def main() -> list[float]:
        dispatcher = dispatcher_of(account(kind="anthropic"))
        times = []
        for remaining in (8, 6, 4, 2, 0, 9):
            lease = await dispatcher.get_available_client()
            times.append(now())
            left = 60.0 - now() % 60.0
            said = Announced("requests", 10, remaining, left, 60.0)
            await dispatcher.release_client_on_success(lease, Said((said,)))
        return times

    times = run(main())
    assert times[4] < 60.0 <= times[5]


def test_a_day_that_the_server_calls_used_up_is_not_asked_for_again() -> None:
    async def main() -> Any:
        dispatcher = dispatcher_of(account())
        lease = await dispatcher.get_available_client()
        said = Announced("requests", 100, 0, 9 * 3600.0, 86_400.0)
        await dispatcher.release_client_on_success(lease, Said((said,)))
        return await stopped(ask(dispatcher, Provider()))

    stop = run(main())
    assert stop.exit_code == TRY_LATER
    assert "until 2026-03-14 21:0" in str(stop)


def test_a_refusals_headers_are_heeded_too() -> None:
    async def main() -> tuple[list[float], float]:
        dispatcher = dispatcher_of(account(kind="anthropic", rpm_limit=600))
        headers = {
            "anthropic_ratelimit_requests_limit": "60",
            "anthropic_ratelimit_requests_remaining": "0",
            "retry_after": "20",
        }
        provider = Provider(a=[refused(429, **headers)])
        for _ in range(5):
            await ask(dispatcher, provider)
        return provider.times, dispatcher.snapshot()[0]["per_minute"]["requests"]

    times, per_minute = run(main())
    assert per_minute == pytest.approx(60 * FULL, abs=0.01)
    assert times[1] == pytest.approx(20.0)
    assert_no_window_above(times[1:], 60)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_windows_of_one_unit_the_strictest_is_kept(order: int) -> None:
    both = (
        Announced("requests", 60, 50, 1.0, 60.0),
        Announced("requests", 600, 500, 1.0, 3600.0),  # 10 a minute
    )

    async def main() -> float:
        dispatcher = dispatcher_of(account())
        lease = await dispatcher.get_available_client()
        await dispatcher.release_client_on_success(lease, Said(both[::order]))
        return dispatcher.snapshot()[0]["per_minute"]["requests"]

    assert run(main()) == pytest.approx(10 * FULL, abs=0.01)


def test_several_windows_of_one_unit_do_not_undo_what_refusals_taught() -> None:
    both = (
        Announced("requests", 600, 500, 1.0, 60.0),
        Announced("requests", 10, 5, 1.0, 1.0),  # the same, in other words
        Announced("requests", 100_000, 5000, 1.0, 3600.0),
    )

    async def main() -> float:
        dispatcher = dispatcher_of(account(rpm_limit=600))
        for _ in range(6):
            lease = await dispatcher.get_available_client()
            await dispatcher.release_client_on_success(lease, Said(both))
            lease = await dispatcher.get_available_client()
            await asyncio.sleep(0.1)
            await dispatcher.release_client_on_failure(lease, refused(429, retry_after="1"))
        return dispatcher.snapshot()[0]["per_minute"]["requests"]

    assert run(main()) < 595


figures = st.none() | st.floats(0, 1e12) | st.sampled_from([0.0, 1.0, 60.0, 1e-3])


@settings(max_examples=200, deadline=None)
@given(
    answers=st.lists(
        st.builds(
            Announced,
            st.sampled_from(["requests", "tokens", "input_tokens", "output_tokens"]),
            limit=st.none() | st.floats(1, 1e12),
            remaining=figures,
            reset=st.none() | st.floats(0, 100),
            window=st.none() | st.sampled_from([0.0, 1.0, 10.0, 60.0, 3600.0, 86_400.0, 17.0]),
        ),
        max_size=12,
    ),
    config=st.fixed_dictionaries(
        {
            "rpm_limit": st.sampled_from([None, 60.0]),
            "tpm_limit": st.sampled_from([None, 6000.0]),
            "fixed_limits": st.booleans(),
        }
    ),
)
def test_whatever_is_announced_an_account_goes_on(
    answers: list[Announced], config: dict[str, Any]
) -> None:
    async def main() -> None:
        dispatcher = dispatcher_of(account(**config))
        for said in answers:
            lease = await dispatcher.get_available_client()
            await dispatcher.release_client_on_success(lease, Said((said,), 1, 1))
            for rate in dispatcher.snapshot()[0]["per_minute"].values():
                assert rate is None or rate >= 0
        lease = await dispatcher.get_available_client()
        assert lease.name == "a"

    run(main())


def test_limits_that_were_announced_are_not_forgotten_at_the_next_answer() -> None:
    said = Announced("requests", 120, 100, 5.0, 60.0)
    bare = Announced("tokens", 1000, 900, 1.0, 60.0)
    seen = after(said, bare, bare, said)
    assert seen["per_minute"]["requests"] == pytest.approx(120 * FULL, abs=0.01)
    assert seen["per_minute"]["tokens"] == pytest.approx(1000 * FULL, abs=0.01)


def test_a_limit_that_the_provider_changes_is_followed() -> None:
    said = [Announced("requests", limit, 10, 5.0, 60.0) for limit in (120, 60, 60, 240)]
    for number, expected in enumerate((120, 60, 60, 240), 1):
        seen = after(*said[:number], rpm_limit=60)
        assert seen["per_minute"]["requests"] == pytest.approx(expected * FULL, abs=0.01)


def test_dates_in_headers_are_those_of_the_wall_clock() -> None:
    later = datetime.fromtimestamp(NOON, UTC) + timedelta(seconds=90)
    config = LLMClientConfig("a", "m", kind="anthropic")
    assert config.token_rule == "used"
    [said] = read_headers({"anthropic-ratelimit-requests-reset": later.isoformat()}, NOON)
    assert (said.reset, said.window) == (90.0, 60.0)
