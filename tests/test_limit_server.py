"""benchmarks/limit_server.py: the provider that benchmarks are run against is itself checked.

One server serves the whole file; each test configures it anew, which forgets everything before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import limit_server
from limit_server import Server, running

SAY = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, verify=False, timeout=5) as made:
        yield made


@contextlib.asynccontextmanager
async def crowd(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as made:
        yield made


def chat(key: str = "k0", text: str = "hello", **more: Any) -> dict[str, Any]:
    """Arguments of a POST that asks as OpenAI's clients do."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    headers = {"authorization": f"Bearer {key}"}
    return {"url": "/v1/chat/completions", "headers": headers, "json": body}


def message(key: str = "k0") -> dict[str, Any]:
    """Arguments of a POST that asks as Anthropic's clients do."""
    body = {"model": "m", "messages": SAY, "max_tokens": 100}
    return {"url": "/v1/messages", "headers": {"x-api-key": key}, "json": body}


def statuses(client: httpx.Client, number: int, key: str = "k0") -> list[int]:
    return [client.post(**chat(key)).status_code for _ in range(number)]


# ---------------------------------------------------------------------- windows

SECOND = limit_server.SECOND


@given(
    kind=st.sampled_from(sorted(limit_server.WINDOWS)),
    limit=st.integers(1, 50),
    window=st.sampled_from([0.3, 1, 7, 60]),
    offset=st.floats(0, 5),
    burst=st.integers(1, 60),
    steps=st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(1, 20)), max_size=30),
)
def test_the_wait_told_is_the_shortest_to_the_nanosecond(
    kind: str,
    limit: int,
    window: float,
    offset: float,
    burst: int,
    steps: list[tuple[int, int]],
) -> None:
    made = limit_server.Limit(limit, window, kind, burst, offset).begin(0)
    most = burst if kind == "bucket" else limit
    now = 0
    for pause, units in steps:
        now += pause
        units = min(units, most)
        if wait := made.wait(units, now):
            assert made.left(now) < units
            assert made.wait(units, now + wait - 1) == 1
            now += wait
        assert made.wait(units, now) == 0
        assert made.left(now) >= units
        made.take(units, now)
        full_at = now + made.full_in(now)
    if steps:
        assert made.left(full_at) == most


async def accepted_times(server: Server, limit: dict[str, Any], number: int) -> list[float]:
    """When calls were let in while ten clients pressed on until `number` of them were.

    By number and not by time: a busy machine makes this slow, never wrong.
    """
    let_in = 0

    async def press(client: httpx.AsyncClient) -> None:
        nonlocal let_in
        while let_in < number:
            answer = await client.post(**chat())
            let_in += answer.status_code == 200

    async with crowd(server) as client:
        server.configure({"keep_times": True, "default": {"requests": limit}})
        await asyncio.wait_for(asyncio.gather(*(press(client) for _ in range(10))), 60)
    counts = server.stats()["keys"]["k0"]
    times = counts["accepted_times"]
    assert counts["ok"] == len(times) == counts["arrived"] - counts["refused_429"]["requests"]
    return times


async def test_a_sliding_window_lets_in_its_limit_in_any_stretch(server: Server) -> None:
    times = await accepted_times(server, {"limit": 5, "window": 0.2, "kind": "sliding"}, 15)
    pairs = list(zip(times, times[5:], strict=False))
    assert len(pairs) >= 10
    assert all(later - sooner >= 0.2 - 1e-9 for sooner, later in pairs)


async def test_a_fixed_window_lets_in_its_limit_in_each(server: Server) -> None:
    limit = {"limit": 4, "window": 0.2, "kind": "fixed", "offset": 0.05}
    times = await accepted_times(server, limit, 12)
    windows = Counter(int((at + 0.15) / 0.2) for at in times)
    assert len(times) >= 12
    assert max(windows.values()) == 4


async def test_a_bucket_lets_in_its_burst_and_then_its_rate(server: Server) -> None:
    times = await accepted_times(server, {"limit": 20, "window": 1, "burst": 5}, 15)
    assert len(times) >= 15
    for i, sooner in enumerate(times):
        for n, later in enumerate(times[i:], start=1):
            assert n <= 5 + 20 * (later - sooner) + 1e-6


@pytest.mark.parametrize("kind", ["bucket", "fixed", "sliding"])
def test_waiting_as_told_is_enough(server: Server, client: httpx.Client, kind: str) -> None:
    limit = {"limit": 4, "window": 0.3, "kind": kind}
    server.configure({"default": {"requests": limit, "retry_after": "ms"}})
    assert statuses(client, 4) == [200] * 4
    refused = client.post(**chat())
    assert refused.status_code == 429
    time.sleep(int(refused.headers["retry-after-ms"]) / 1000)
    assert client.post(**chat()).status_code == 200


# ---------------------------------------------------------------------- what is counted


def test_tokens_used_are_those_of_the_reply(server: Server, client: httpx.Client) -> None:
    server.configure({"default": {"tokens": {"limit": 100}, "tokens_used": [20, 10]}})
    assert statuses(client, 4) == [200, 200, 200, 429]
    answer = client.post(**chat())
    assert answer.json()["error"]["type"] == "tokens"
    counts = server.stats()["keys"]["k0"]
    assert (counts["tokens"], counts["refused_429"]["tokens"]) == (90, 2)


def test_tokens_reserved_are_the_prompt_and_all_that_may_come(
    server: Server, client: httpx.Client
) -> None:
    server.configure({"default": {"tokens": {"limit": 1000, "count": "reserved"}}})
    assert client.post(**chat(max_tokens=600)).status_code == 200
    assert client.post(**chat(max_tokens=600)).status_code == 429
    assert client.post(**chat(max_completion_tokens=100, text="x" * 2000)).status_code == 429
    assert client.post(**chat(max_completion_tokens=100)).status_code == 200


@pytest.mark.parametrize(("name", "calls"), [("input_tokens", 5), ("output_tokens", 3)])
def test_input_and_output_have_limits_of_their_own(
    server: Server, client: httpx.Client, name: str, calls: int
) -> None:
    server.configure({"default": {name: {"limit": 100}, "tokens_used": [20, 30]}})
    answers = [client.post(**message()) for _ in range(calls + 1)]
    assert [answer.status_code for answer in answers] == [200] * calls + [429]
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"


def test_a_refused_call_takes_nothing_from_the_other_limits(
    server: Server, client: httpx.Client
) -> None:
    key = {"requests": {"limit": 5}, "tokens": {"limit": 1000, "count": "reserved"}}
    server.configure({"default": {**key, "headers": "openai"}})
    assert client.post(**chat(max_tokens=5000)).status_code == 429
    assert client.post(**chat()).headers["x-ratelimit-remaining-requests"] == "4"


def test_the_day_has_its_own_wait(server: Server, client: httpx.Client) -> None:
    key = {"day": {"requests": 2}, "day_retry_after": 7200}
    server.configure({"keys": {"k0": key, "k1": {"day": {"tokens": 130}}}})
    assert statuses(client, 3) == [200, 200, 429]
    assert client.post(**chat()).headers["retry-after"] == "7200"
    assert statuses(client, 3, "k1") == [200, 200, 429]
    assert server.stats()["keys"]["k0"]["refused_429"]["day"] == 2


async def test_more_in_flight_than_allowed_are_refused(server: Server) -> None:
    server.configure({"default": {"in_flight": 4, "latency": 0.2, "in_flight_retry_after": 3}})
    async with crowd(server) as client:
        answers = await asyncio.gather(*(client.post(**chat()) for _ in range(10)))
    assert Counter(answer.status_code for answer in answers) == {200: 4, 429: 6}
    assert {a.headers["retry-after"] for a in answers if a.status_code == 429} == {"3"}
    counts = server.stats()["keys"]["k0"]
    assert (counts["in_flight"], counts["max_in_flight"]) == (0, 4)
    assert counts["refused_429"]["in_flight"] == 6


async def test_a_client_that_leaves_is_no_longer_in_flight(server: Server) -> None:
    server.configure({"default": {"in_flight": 1, "latency": 30}})
    async with crowd(server) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(**chat(), timeout=0.1)
    await asyncio.sleep(0.05)
    stats = server.stats()
    assert (stats["keys"]["k0"]["in_flight"], stats["keys"]["k0"]["ok"]) == (0, 0)
    assert (stats["connections"], stats["max_connections"]) == (0, 1)
    assert (stats["abandoned"], stats["unread"], stats["delivered"]) == (1, 0, 0)


def test_an_answer_may_have_come_too_late_to_be_read(server: Server) -> None:
    server.configure({})
    with httpx.Client(base_url=server.url, trust_env=False, verify=False) as client:
        assert statuses(client, 2) == [200, 200]
        time.sleep(limit_server._READ_SECONDS)
    assert server.stats()["unread"] == 0
    with httpx.Client(base_url=server.url, trust_env=False, verify=False) as client:
        assert statuses(client, 2) == [200, 200]
    assert server.stats()["unread"] == 1


def test_keys_are_limited_apart_and_counted_apart(server: Server, client: httpx.Client) -> None:
    server.configure({"default": {"requests": {"limit": 1}}, "keys": {"k1": {}}})
    assert statuses(client, 2, "k0") == [200, 429]
    assert statuses(client, 2, "k1") == [200, 200]
    assert statuses(client, 2, "k2") == [200, 429]
    counts = server.stats()["keys"]
    assert {key: (of["arrived"], of["ok"]) for key, of in counts.items()} == {
        "k0": (2, 1),
        "k1": (2, 2),
        "k2": (2, 1),
    }
    assert sum(counts["k1"]["ok_by_second"].values()) == 2
    assert sum(counts["k2"]["r429_by_second"].values()) == 1
    assert 0 < counts["k0"]["first"] < counts["k0"]["last"] < server.stats()["seconds"]


def test_items_are_counted_when_delivered(server: Server, client: httpx.Client) -> None:
    server.configure({"keys": {"bad": {"faults": [{"kind": "500"}]}}})
    for text in ("about item-7", "item-7 again", "item-8, not item-9", "nothing"):
        client.post(**chat(text=text))
    client.post(**chat("bad", "item-10"))
    earlier = [{"role": "user", "content": "item-11"}, {"role": "assistant", "content": "ok"}]
    parts = {"role": "user", "content": [{"type": "text", "text": "item-12"}]}
    client.post(**chat(messages=[*earlier, parts]))
    stats = server.stats()
    assert (stats["items"], stats["duplicates"]) == (3, 1)


def test_answers_that_were_asked_for_again_are_counted(
    server: Server, client: httpx.Client
) -> None:
    server.configure({"keys": {"bad": {"faults": [{"kind": "500"}]}}})
    asked = chat(text="one", temperature=1)
    turned = {**asked, "json": dict(reversed(asked["json"].items()))}
    for request in (asked, turned, chat("k1", "one", temperature=1), chat(text="one"), message()):
        assert client.post(**request).status_code == 200
    assert client.post(**chat("bad", "one", temperature=1)).status_code == 500
    stats = server.stats()
    assert (stats["delivered"], stats["requests"], stats["abandoned"]) == (5, 3, 0)


# ---------------------------------------------------------------------- what a 429 tells


def refused(server: Server, client: httpx.Client, retry_after: str) -> httpx.Response:
    limit = {"limit": 1, "window": 90, "kind": "fixed"}
    server.configure({"default": {"requests": limit, "retry_after": retry_after}})
    assert client.post(**chat()).status_code == 200
    return client.post(**chat())


def test_each_spelling_of_the_wait(server: Server, client: httpx.Client) -> None:
    assert refused(server, client, "int").headers["retry-after"] == "90"
    both = refused(server, client, "ms").headers
    assert both["retry-after"] == "90"
    assert 80_000 < int(both["retry-after-ms"]) <= 90_000
    when = parsedate_to_datetime(refused(server, client, "date").headers["retry-after"])
    assert 80 < (when - datetime.now(UTC)).total_seconds() < 91
    assert refused(server, client, "zero").headers["retry-after"] == "0"


def test_no_spelling_tells_nothing_in_the_body_either(server: Server, client: httpx.Client) -> None:
    answer = refused(server, client, "none")
    assert "retry-after" not in answer.headers
    assert "try again" not in answer.text
    assert "Please try again in 1m" in refused(server, client, "int").text


def test_a_short_wait_is_a_whole_second(server: Server, client: httpx.Client) -> None:
    server.configure({"default": {"requests": {"limit": 1, "window": 0.5, "kind": "sliding"}}})
    assert statuses(client, 1) == [200]
    assert client.post(**chat()).headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        *((0, "0s"), (0.001, "1ms"), (120, "120ms"), (1000, "1s"), (7660, "7.66s")),
        *((360_000, "6m0s"), (179_560, "2m59.56s"), (3_600_000, "1h0m0s"), (59_999.5, "1m0s")),
    ],
)
def test_durations_are_written_as_openai_does(milliseconds: float, text: str) -> None:
    assert limit_server.duration(round(milliseconds * 1_000_000)) == text


def limit_headers(server: Server, client: httpx.Client, dialect: str, **key: Any) -> dict[str, str]:
    """The limit headers of a second call, the same on a 200 and on a 429 but for their values."""
    server.configure({"default": {"headers": dialect, "tokens_used": [20, 30], **key}})
    client.post(**chat())
    answer = client.post(**chat())
    return {name: value for name, value in answer.headers.items() if "ratelimit" in name}


def test_openai_headers(server: Server, client: httpx.Client) -> None:
    limits = {"requests": {"limit": 60, "window": 3600}, "tokens": {"limit": 70, "kind": "fixed"}}
    told = limit_headers(server, client, "openai", **limits)
    for name in ("requests", "tokens"):  # a little less than a minute, or just one
        assert told.pop(f"x-ratelimit-reset-{name}").startswith(("5", "1m0s"))
    assert told == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",  # the second call was refused for its tokens
        "x-ratelimit-limit-tokens": "70",
        "x-ratelimit-remaining-tokens": "20",
    }


def test_groq_headers_count_requests_by_the_day(server: Server, client: httpx.Client) -> None:
    tokens = {"limit": 6000, "window": 1e6}  # so that nothing worth naming comes back meanwhile
    limits = {"requests": {"limit": 30}, "tokens": tokens, "day": {"requests": 14_400}}
    told = limit_headers(server, client, "groq", **limits)
    assert told.pop("x-ratelimit-reset-tokens").endswith("s")
    assert told == {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14398",
        "x-ratelimit-reset-requests": "12s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5900",
    }


def test_anthropic_headers(server: Server, client: httpx.Client) -> None:
    limits = {
        "requests": {"limit": 50, "kind": "sliding"},
        "input_tokens": {"limit": 500, "kind": "fixed"},
        "output_tokens": {"limit": 100, "kind": "fixed"},
    }
    told = limit_headers(server, client, "anthropic", **limits)
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        when = datetime.fromisoformat(told.pop(f"anthropic-ratelimit-{name}-reset"))
        assert 50 < (when - datetime.now(UTC)).total_seconds() < 61
    shortened = {name.removeprefix("anthropic-ratelimit-"): told[name] for name in told}
    assert shortened == {
        **{"requests-limit": "50", "requests-remaining": "48"},
        **{"input-tokens-limit": "500", "input-tokens-remaining": "460"},
        **{"output-tokens-limit": "100", "output-tokens-remaining": "40"},
        **{"tokens-limit": "600", "tokens-remaining": "500"},
    }


# ---------------------------------------------------------------------- dead accounts


@pytest.mark.parametrize(
    ("refuse", "status", "code"),
    [
        (401, 401, "invalid_api_key"),
        (402, 402, "invalid_request_error"),
        (403, 403, "account_deactivated"),
        (404, 404, "model_not_found"),
        (429, 429, "insufficient_quota"),
        ("insufficient_quota", 429, "insufficient_quota"),
    ],
)
def test_a_dead_account_is_refused_always(
    server: Server, client: httpx.Client, refuse: int | str, status: int, code: str
) -> None:
    server.configure({"default": {"refuse": refuse}})
    answers = [client.post(**chat()) for _ in range(2)]
    assert [a.status_code for a in answers] == [status] * 2
    assert answers[0].json()["error"]["code"] == code
    counts = server.stats()["keys"]["k0"]
    assert (counts["refused"], counts["ok"], counts["r429_by_second"]) == (2, 0, {})


@pytest.mark.parametrize(
    ("refuse", "status", "kind"),
    [
        (401, 401, "authentication_error"),
        (404, 404, "not_found_error"),
        ("insufficient_quota", 400, "invalid_request_error"),
    ],
)
def test_anthropic_words_it_differently(
    server: Server, client: httpx.Client, refuse: int | str, status: int, kind: str
) -> None:
    server.configure({"default": {"refuse": refuse}})
    answer = client.post(**message())
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)


def test_a_call_without_a_key_is_refused(server: Server, client: httpx.Client) -> None:
    server.configure({})
    assert client.post(**chat() | {"headers": {}}).status_code == 401


# ---------------------------------------------------------------------- faults


def with_fault(server: Server, kind: str, **more: Any) -> None:
    server.configure({"default": {"faults": [{"kind": kind, **more}]}})


@pytest.mark.parametrize(
    ("kind", "status"), [("500", 500), ("503", 503), ("529", 529), ("burst", 503)]
)
def test_server_errors(server: Server, client: httpx.Client, kind: str, status: int) -> None:
    with_fault(server, kind)
    assert client.post(**chat()).status_code == status
    assert client.post(**message()).json()["type"] == "error"
    assert server.stats()["keys"]["k0"]["faults"] == {kind: 2}


def test_replies_that_look_well_and_are_not(server: Server, client: httpx.Client) -> None:
    with_fault(server, "malformed")
    answer = client.post(**chat())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    with_fault(server, "not_json")
    assert client.post(**chat()).headers["content-type"] == "text/html"
    with_fault(server, "error_in_200")
    assert client.post(**chat()).json().keys() == {"error"}
    with_fault(server, "empty_choices")
    assert client.post(**chat()).json()["choices"] == []
    assert client.post(**message()).json()["content"] == []


def test_an_unreadable_reply_is_whole_but_keeps_to_no_format(
    server: Server, client: httpx.Client
) -> None:
    with_fault(server, "unreadable")
    told = client.post(**chat()).json()["choices"][0]["message"]["content"]
    assert told == client.post(**message()).json()["content"][0]["text"] == limit_server.UNREADABLE
    assert server.stats()["keys"]["k0"]["faults"] == {"unreadable": 2}


def test_a_fault_may_be_for_some_requests_only(server: Server, client: httpx.Client) -> None:
    with_fault(server, "500", marker="`answerable`")
    texts = ("score `answerable`", "answerable", "and `answerable` again")
    assert [client.post(**chat(text=text)).status_code for text in texts] == [500, 200, 500]


def test_a_lot_may_fall_by_the_request_whoever_comes_first(
    server: Server, client: httpx.Client
) -> None:
    texts = [f"text {n}" for n in range(20)] * 3

    def play(texts: list[str], seed: int = 0) -> dict[str, list[int]]:
        """Each text's statuses in the order in which it was asked."""
        fault = {"kind": "500", "p": 0.5, "draw": "request"}
        server.configure({"seed": seed, "default": {"faults": [fault]}})
        statuses: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            answer = client.post(**chat(f"k{number % 2}", text))
            statuses.setdefault(text, []).append(answer.status_code)
        return statuses

    first = play(texts)
    assert play(texts[::-1]) == first
    assert play(texts, seed=1) != first
    assert any(len(set(of_text)) == 2 for of_text in first.values())  # the third may differ


def test_faults_of_the_request_take_nothing_from_the_limits(
    server: Server, client: httpx.Client
) -> None:
    for kind, code in (
        ("context_length", "context_length_exceeded"),
        ("content_filter", "content_filter"),
    ):
        faults = [{"kind": kind}]
        server.configure({"default": {"requests": {"limit": 1}, "faults": faults}})
        for _ in range(2):
            answer = client.post(**chat())
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_a_bare_429_tells_nothing(server: Server, client: httpx.Client) -> None:
    with_fault(server, "bare_429")
    answer = client.post(**chat())
    assert (answer.status_code, answer.content) == (429, b"")
    assert answer.headers.keys() == {"content-length"}
    assert server.stats()["keys"]["k0"]["refused_429"]["bare"] == 1


def test_other_faults_count_against_the_limits(server: Server, client: httpx.Client) -> None:
    key = {"requests": {"limit": 2}, "faults": [{"kind": "503"}]}
    server.configure({"default": key})
    assert statuses(client, 3) == [503, 503, 429]


def test_a_stall_never_answers(server: Server, client: httpx.Client) -> None:
    with_fault(server, "stall")
    with pytest.raises(httpx.ReadTimeout):
        client.post(**chat(), timeout=0.2)
    with_fault(server, "stall", seconds=0.1)
    with pytest.raises(httpx.RemoteProtocolError, match="disconnected without"):
        client.post(**chat())


def test_a_slow_body_arrives_in_the_end(server: Server, client: httpx.Client) -> None:
    with_fault(server, "slow_body", seconds=0.4)
    began = time.monotonic()
    with client.stream("POST", **chat(text="item-1")) as answer:
        assert server.stats()["items"] == 0
        answer.read()
    assert time.monotonic() - began > 0.35
    assert answer.json()["choices"]
    assert server.stats()["items"] == 1


def test_resets(server: Server, client: httpx.Client) -> None:
    with_fault(server, "reset")
    received = b""
    with pytest.raises(httpx.ReadError), client.stream("POST", **chat()) as answer:
        for part in answer.iter_raw():
            received += part
    assert 100 < len(received) < int(answer.headers["content-length"])
    with_fault(server, "reset_before")
    with pytest.raises(httpx.ReadError):
        client.post(**chat())
    counts = server.stats()["keys"]["k0"]
    assert (counts["ok"], counts["in_flight"]) == (0, 0)


def test_a_fault_keeps_to_its_time() -> None:
    some = limit_server.Fault("500", p=0.5, from_=1, to=3)
    assert [some.hits(0.4, at) for at in (0.9, 1, 2.9, 3)] == [False, True, True, False]
    assert not some.hits(0.5, 2)
    burst = limit_server.Fault("burst", p=0, from_=5, every=20, for_=2)
    when = (4.9, 5, 6.9, 7, 24.9, 25, 26.9, 27)
    assert [at for at in when if burst.hits(0.9, at)] == [5, 6.9, 25, 26.9]


def test_a_fault_begins_when_told(server: Server, client: httpx.Client) -> None:
    with_fault(server, "burst", every=1000, **{"for": 100, "from": 0.3})
    assert statuses(client, 1) == [200]
    time.sleep(0.3)
    assert statuses(client, 1) == [503]


def test_a_fault_begins_after_so_many_answers(server: Server, client: httpx.Client) -> None:
    with_fault(server, "500", after=3)
    assert statuses(client, 5) == [200, 200, 200, 500, 500]


def test_a_script_repeats_with_its_seed(server: Server, client: httpx.Client) -> None:
    faults = [{"kind": "500", "p": 0.3}, {"kind": "529", "p": 0.3}]

    def play(seed: int, key: str = "k0") -> list[int]:
        server.configure({"seed": seed, "default": {"faults": faults}})
        return statuses(client, 40, key)

    first = play(1)
    assert set(first) == {200, 500, 529}
    assert play(1) == first
    assert play(2) != first
    assert play(1, "k1") != first


async def test_latency(server: Server) -> None:
    server.configure({"default": {"latency": 0.15}})
    async with crowd(server) as client:
        answers = await asyncio.gather(*(client.post(**chat()) for _ in range(20)))
    took = [answer.elapsed.total_seconds() for answer in answers]
    assert min(took) >= 0.15 and sum(took) / 20 < 1.5  # one after the other: 1.6 at least


def test_jitter_is_lognormal_around_the_latency() -> None:
    raw = {"default": {"latency": 0.2, "jitter": 0.3}}
    account = limit_server.Run(limit_server.Config.read(raw)).account("k0")
    logs = [math.log(account.delay() / 0.2) for _ in range(4000)]
    assert abs(statistics.mean(logs)) < 0.02
    assert abs(statistics.stdev(logs) - 0.3) < 0.02


# ---------------------------------------------------------------------- HTTP and clients


def test_openai_sdk(server: Server) -> None:
    server.configure({"default": {"text": "Paris", "tokens_used": [3, 4]}, "keys": {"k1": DEAD}})
    with openai.OpenAI(base_url=server.base_url, api_key="k0") as client:
        answer = client.chat.completions.create(model="gpt-x", messages=SAY)  # type: ignore[arg-type]
        assert [model.id for model in client.models.list()] == ["local-1", "local-2"]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="k1").chat.completions.create(model="m", messages=SAY)  # type: ignore[arg-type]
    assert (answer.model, answer.choices[0].message.content) == ("gpt-x", "Paris")
    assert answer.usage and answer.usage.total_tokens == 7


def test_anthropic_sdk(server: Server) -> None:
    server.configure({"default": {"text": "Paris", "tokens_used": [3, 4]}, "keys": {"k1": DEAD}})
    ask = {"model": "claude-x", "messages": SAY, "max_tokens": 50}
    with anthropic.Anthropic(base_url=server.url, api_key="k0") as client:
        answer = client.messages.create(**ask)  # type: ignore[call-overload]
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="k1").messages.create(**ask)  # type: ignore[call-overload]
    assert (answer.model, answer.content[0].text) == ("claude-x", "Paris")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 4)


def test_the_rehearsal_may_answer_both(server: Server, client: httpx.Client) -> None:
    server.configure({"default": {"reply": "rehearsal"}})
    assert client.post(**chat(text="2+2?")).json()["choices"][0]["message"]["content"] == "4"
    prompt = {
        "system": "Your output fields are:\n1. `number` (int): a number\nAll interactions will be "
        "structured in the following way, your objective is: count",
        "messages": [{"role": "user", "content": "[[ ## text ## ]]\none"}],
    }
    asked = message()
    answer = client.post(**{**asked, "json": {**asked["json"], **prompt}}).json()
    assert answer["content"][0]["text"] == "[[ ## number ## ]]\n4\n\n[[ ## completed ## ]]"


DEAD = {"refuse": 401}


def test_chunked_bodies(server: Server, client: httpx.Client) -> None:
    server.configure({})
    asked = chat(text="item-1")
    body = json.dumps(asked.pop("json")).encode()
    parts = (body[i : i + 7] for i in range(0, len(body), 7))
    assert client.post(**asked, content=parts).status_code == 200
    assert client.post(**chat(text="item-2")).status_code == 200
    assert server.stats()["items"] == 2


def test_bytes_may_come_in_any_portion(server: Server) -> None:
    """Three requests one byte at a time, then three at once: six answers in order."""
    server.configure({"default": {"latency": 0.01}})
    chunk = b'{"messages":[{"role":"user","content":"item-1"}]}'
    start = b"POST /v1/chat/completions?beta=true HTTP/1.1\r\nAuthorization: Bearer k\r\n"
    coded = b"Transfer-Encoding: chunked\r\n\r\n%x;x=1\r\n%b\r\n0\r\nTrailer: 1\r\n\r\n"
    chunked = start + coded % (len(chunk), chunk)
    plain = start + b"Content-Length: %d\r\n\r\n%b" % (len(chunk), chunk)
    requests = plain + chunked + plain.replace(b"\r\nAuth", b"\r\nConnection: close\r\nAuth")
    for portion in (1, len(requests)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            for at in range(0, len(requests), portion):
                connection.sendall(requests[at : at + portion])
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert received.count(b"HTTP/1.1 200 OK") == 3
    assert server.stats()["keys"]["k"]["ok"] == 6


def test_a_client_may_ask_before_it_sends(server: Server) -> None:
    server.configure({})
    body = b'{"messages":[]}'
    head = b"POST /v1/messages HTTP/1.1\r\nx-api-key: k\r\nExpect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_what_it_does_not_understand(server: Server, client: httpx.Client) -> None:
    server.configure({})
    assert client.get("/v1/other").status_code == 404
    assert client.get("/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"
    assert client.post(**chat(stream=True)).status_code == 400
    assert client.post("/v1/messages", content=b"{", headers={"x-api-key": "k"}).status_code == 400
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "wrong",
    [
        {"sed": 1},
        {"default": {"request": {"limit": 1}}},
        {"default": {"requests": {"limit": 1, "kind": "leaky"}}},
        {"default": {"requests": {"limit": 0}}},
        {"keys": {"k0": {"retry_after": "soon"}}},
        {"keys": {"k0": {"headers": "azure"}}},
        {"keys": {"k0": {"refuse": "no"}}},
        {"keys": {"k0": {"faults": [{"kind": "flood"}]}}},
        {"keys": {"k0": {"faults": [{"kind": "500", "draw": "lot"}]}}},
        {"default": {"reply": "parrot"}},
    ],
)
def test_a_misspelt_setting_is_said(server: Server, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        server.configure(wrong)


def test_it_ends_with_a_killed_parent() -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from limit_server import running\n"
        "with running() as server:\n"
        "    print(server.port, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        port = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        parent.kill()
    end = time.monotonic() + 5
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < end:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            time.sleep(0.02)
