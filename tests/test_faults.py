"""Providers that fail, over real HTTP: every item gets its answer, once, and nobody is hammered."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as dspy_errors

from conftest import ROOT
from custom_lm import DispatcherLM
from question_optimizer import dispatcher as dispatcher_module
from question_optimizer.answers import AnswerStore
from question_optimizer.dispatcher import Lease, LLMClientConfig, LLMDispatcher
from question_optimizer.errors import USAGE, StopRun
from question_optimizer.failures import classify
from question_optimizer.wire import ChatAnswer, ChatRequest, send

sys.path.insert(0, str(ROOT / "benchmarks"))

from limit_server import Server, running

ITEMS = 150
FIFTH = [{"kind": kind, "p": 0.044} for kind in "500 stall reset malformed bare_429".split()]
TOKENS = (24, 32)  # of every answer, as the server counts
TRANSPORTS = ["direct", "sdk"]
WAYS = [(kind, transport) for kind in ("openai", "anthropic") for transport in TRANSPORTS]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for the whole file; each test configures it anew."""
    with running() as started:
        yield started


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items beyond the retry budget wait as they do, only less long."""
    monkeypatch.setattr(dispatcher_module, "_RETRY_SECONDS", (0.05, 0.4))


def account(server: Server, key: str, **fields: Any) -> LLMClientConfig:
    """An account that is called like its key."""
    url = server.url if fields.get("kind") == "anthropic" else server.base_url
    given = {"model": "m", "base_url": url, "api_key": key, "concurrency": 8, **fields}
    return LLMClientConfig(name=key, **given)


def chat_of(item: int) -> ChatRequest:
    return ChatRequest(system="", messages=(("user", f"item-{item}"),))


async def ask(dispatcher: LLMDispatcher, item: int) -> ChatAnswer:
    async def attempt(lease: Lease) -> ChatAnswer:
        return await send(lease.config, chat_of(item))

    answer, _ = await dispatcher.call(attempt, input_tokens=10)
    return answer


async def ask_all(dispatcher: LLMDispatcher, items: int) -> list[ChatAnswer]:
    """The answers to items 0, 1, …, asked for all at once."""
    try:
        return await asyncio.gather(*(ask(dispatcher, item) for item in range(items)))
    finally:
        await dispatcher.aclose()


def failures_of(seen: list[dict[str, Any]]) -> int:
    return sum(account["failed"] + account["rate_limited"] for account in seen)


# ---------------------------------------------------------------------- one call in five


class Question(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def through_call(dispatcher: LLMDispatcher, usage: AnswerStore) -> list[str]:
    return [answer.text for answer in asyncio.run(ask_all(dispatcher, ITEMS))]


def through_coroutines(dispatcher: LLMDispatcher, usage: AnswerStore) -> list[str]:
    lm = DispatcherLM(dispatcher, answers=usage, cache=False)

    async def one(item: int) -> str:
        return (await dspy.Predict(Question).acall(question=f"item-{item}")).answer

    async def main() -> list[str]:
        with dspy.context(lm=lm):
            answers = await asyncio.gather(*(one(item) for item in range(ITEMS)))
        await dispatcher.aclose()
        return answers

    return asyncio.run(main())


def through_threads(dispatcher: LLMDispatcher, usage: AnswerStore) -> list[str]:
    lm = DispatcherLM(dispatcher, answers=usage, cache=False)

    def one(item: int) -> str:
        with dspy.context(lm=lm):
            return dspy.Predict(Question)(question=f"item-{item}").answer

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(one, range(ITEMS)))


Through = Callable[[LLMDispatcher, AnswerStore], list[str]]


@pytest.mark.parametrize("through", [through_call, through_coroutines, through_threads])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_item_completes_once_though_a_fifth_of_all_calls_fail(
    server: Server,
    quick_retries: None,
    caplog: pytest.LogCaptureFixture,
    transport: str,
    through: Through,
) -> None:
    faulty = {"latency": 0.01, "faults": FIFTH}
    server.configure({"seed": 1, "default": faulty, "keys": {"dead": {"refuse": 401}}})
    prices = {"input_price": 1.0, "output_price": 10.0}
    accounts = [
        account(server, key, transport=transport, timeout=0.6, **prices)
        for key in ("one", "two", "three", "dead")
    ]
    usage = AnswerStore(None)
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        answers = through(dispatcher, usage)
        seen, line, spend = dispatcher.snapshot(), dispatcher.live_line(), dispatcher.spend
    assert len(answers) == ITEMS
    assert all("Paris is the capital of France" in answer for answer in answers)
    stats = server.stats()
    assert stats["items"] == ITEMS
    # each was counted, and paid for, once
    assert sum(account["ok"] for account in seen) == ITEMS
    assert sum(account["input_tokens"] for account in seen) == ITEMS * TOKENS[0]
    assert spend == pytest.approx(ITEMS * (TOKENS[0] + 10 * TOKENS[1]) / 1e6)
    if through is not through_call:
        assert usage.seen.fresh == ITEMS
    # and the faults were there
    played: Counter[str] = Counter()
    for key in ("one", "two", "three"):
        played.update(stats["keys"][key]["faults"])
    assert set(played) == {fault["kind"] for fault in FIFTH}
    assert sum(played.values()) > 15
    late = failures_of(seen[:3]) - sum(played.values())  # cut by our timeout on a busy machine
    assert late >= stats["duplicates"]
    assert all(account["in_flight"] == 0 for account in seen)
    # the dead account: known from its first answer, so no more calls than were in flight then
    assert [account["name"] for account in seen if account["out"]] == ["dead"]
    assert "Incorrect API key provided" in seen[3]["out"]
    assert line.count("dead is out") == line.count("dead") == 1
    assert 1 <= stats["keys"]["dead"]["arrived"] <= 8
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("question_optimizer")]
    [told] = [message for message in ours if "dead" in message]
    assert "Incorrect API key provided" in told


@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_providers_of_either_kind_may_fail(
    server: Server, quick_retries: None, kind: str, transport: str
) -> None:
    server.configure(
        {"default": {"faults": FIFTH}, "keys": {"dead": {"refuse": "insufficient_quota"}}}
    )
    accounts = [
        account(server, key, kind=kind, transport=transport, timeout=0.5)
        for key in ("one", "two", "three", "dead")
    ]
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        answers = asyncio.run(ask_all(dispatcher, 40))
        outs = [account["name"] for account in dispatcher.snapshot() if account["out"]]
    assert len(answers) == server.stats()["items"] == 40
    assert outs == ["dead"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_when_every_account_is_dead_each_is_named_once_with_its_reason(
    server: Server, transport: str
) -> None:
    reasons = {
        "k401": (401, "Incorrect API key provided"),
        "k402": (402, "Insufficient Balance"),
        "k403": (403, "Your account is not active"),
        "k404": (404, "does not exist or you do not have access"),
        "kquota": ("insufficient_quota", "You exceeded your current quota"),
    }
    server.configure({"keys": {key: {"refuse": refuse} for key, (refuse, _) in reasons.items()}})
    accounts = [account(server, key, transport=transport) for key in reasons]
    with LLMDispatcher(accounts, seed=0) as dispatcher, pytest.raises(StopRun) as raised:
        asyncio.run(ask_all(dispatcher, 20))
    assert raised.value.exit_code == USAGE
    said = str(raised.value)
    for key, (_, reason) in reasons.items():
        assert said.count(f"{key}: ") == 1
        assert said.count(reason) == 1


# ---------------------------------------------------------------------- 200 that is no answer

NO_ANSWERS = ["error_in_200", "empty_choices", "not_json", "malformed"]


@pytest.mark.parametrize("fault", NO_ANSWERS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_no_answer_though_its_status_is_200_goes_to_another_account(
    server: Server, transport: str, fault: str
) -> None:
    server.configure({"keys": {"sick": {"faults": [{"kind": fault}]}}})
    accounts = [account(server, key, transport=transport) for key in ("sick", "well")]
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        answers = asyncio.run(ask_all(dispatcher, 12))
        sick, well = dispatcher.snapshot()
    assert all(answer.text for answer in answers)
    assert (sick["ok"], well["ok"]) == (0, 12)
    assert sick["failed"] == server.stats()["keys"]["sick"]["arrived"] >= 1
    assert not sick["out"]  # it may be well again later


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error_in_200", "no chat completion: Provider returned error 502"),
        ("empty_choices", "the provider's answer is no chat completion"),
        ("not_json", "the provider's answer is no JSON"),
        ("malformed", "the provider's answer is no JSON"),
    ],
)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_never_becomes_an_answer_ends_as_a_server_error_that_says_why(
    server: Server, monkeypatch: pytest.MonkeyPatch, transport: str, fault: str, said: str
) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_ATTEMPTS", 2)
    server.configure({"default": {"faults": [{"kind": fault}]}})
    accounts = [account(server, key, transport=transport) for key in ("one", "two")]
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        with pytest.raises(dspy_errors.LMServerError, match=said):
            DispatcherLM(dispatcher, cache=False)("item-1")
        assert all(account["in_flight"] == 0 for account in dispatcher.snapshot())
    assert [key["arrived"] for key in server.stats()["keys"].values()] == [1, 1]


# ---------------------------------------------------------------------- the item's own fault


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("context_length", dspy_errors.ContextWindowExceededError),
        ("content_filter", dspy_errors.LMInvalidRequestError),
    ],
)
@pytest.mark.parametrize("how", ["call", "acall", "thread"])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_what_is_the_items_own_fault_is_never_asked_again(
    server: Server, kind: str, transport: str, how: str, fault: str, error: type[Exception]
) -> None:
    server.configure({"default": {"faults": [{"kind": fault}]}})
    accounts = [account(server, key, kind=kind, transport=transport) for key in ("one", "two")]
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)

        async def main() -> None:
            try:
                await (ask(dispatcher, 1) if how == "call" else lm.acall("item-1"))
            finally:
                await dispatcher.aclose()

        with pytest.raises(Exception) as raised:
            if how == "thread":
                lm("item-1")
            else:
                asyncio.run(main())
        seen = dispatcher.snapshot()
    if how == "call":
        assert classify(raised.value).kind == "bad_request"
    else:
        assert type(raised.value) is error
    assert sum(key["arrived"] for key in server.stats()["keys"].values()) == 1
    assert sum(account["failed"] for account in seen) == 1
    assert [account["out"] for account in seen] == ["", ""]


# ---------------------------------------------------------------------- waits that are told


class Watch:
    """Makes calls, and knows when each began, and until when each refusal told the key to wait."""

    def __init__(self) -> None:
        self.began: defaultdict[str, list[float]] = defaultdict(list)
        self.told: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    async def __call__(self, dispatcher: LLMDispatcher, item: int) -> ChatAnswer:
        async def attempt(lease: Lease) -> ChatAnswer:
            self.began[lease.name].append(time.monotonic())
            try:
                return await send(lease.config, chat_of(item))
            except Exception as error:
                wait = classify(error).retry_after
                self.told[lease.name].append((time.monotonic(), wait or 0.0))
                raise

        return (await dispatcher.call(attempt, input_tokens=10))[0]

    def too_early(self, name: str) -> list[tuple[float, float]]:
        """(a refusal's time, the time of a call that began before the wait then told was over)."""
        return [
            (at, began)
            for at, wait in self.told[name]
            for began in self.began[name]
            if at + 0.05 < began < at + wait - 0.05  # what was under way by then may arrive
        ]


async def test_however_a_wait_is_told_it_is_kept_and_every_item_completes(server: Server) -> None:
    spellings = ["int", "ms", "date", "zero", "none"]
    window = {"limit": 3, "window": 1, "kind": "fixed"}
    keys = {
        f"{spelling}-{transport}": {"requests": window, "retry_after": spelling, "latency": 0.01}
        for spelling in spellings
        for transport in TRANSPORTS
    }
    server.configure({"keys": keys})
    watch = Watch()

    async def one_key(key: str) -> list[ChatAnswer]:
        transport = key.partition("-")[2]
        dispatcher = LLMDispatcher([account(server, key, transport=transport)], seed=0)
        answers = await asyncio.gather(*(watch(dispatcher, item) for item in range(7)))
        await dispatcher.aclose()
        return answers

    answers = await asyncio.wait_for(asyncio.gather(*map(one_key, keys)), 30)
    assert [len(of_key) for of_key in answers] == [7] * len(keys)
    counts = server.stats()["keys"]
    assert {key: counts[key]["ok"] for key in keys} == dict.fromkeys(keys, 7)
    for key in keys:
        told = [wait for _, wait in watch.told[key]]
        assert told, key  # refused at least once: seven do not fit into three
        assert any(told) == (key.partition("-")[0] in ("int", "ms", "date")), key
        assert watch.too_early(key) == [], key
        assert len(told) <= 14, key  # some are under way when the first is refused


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_server_error_that_tells_a_wait_is_given_it(
    transport: Any, llm_server: Any
) -> None:
    busy = llm_server()
    busy.fail = lambda n: (503, {"Retry-After": "1"}, "{}") if n == 1 else None
    config = LLMClientConfig(
        "a", "m", base_url=f"{busy.url}/v1", api_key="key-a", concurrency=8, transport=transport
    )
    dispatcher, watch = LLMDispatcher([config], seed=0), Watch()
    await watch(dispatcher, 1)
    await asyncio.gather(*(watch(dispatcher, item) for item in range(2, 5)))
    await dispatcher.aclose()
    assert len(watch.told["a"]) == 1
    assert watch.too_early("a") == []


async def test_a_wait_is_kept_also_where_the_refusal_names_no_limit(llm_server: Any) -> None:
    """Beside other calls in flight, the next one begins as soon as one of them ends."""
    slow, go_on = llm_server(), threading.Event()

    def reply(messages: list[dict[str, Any]]) -> str:
        go_on.wait(30)
        return "4"

    told = (429, {"retry-after-ms": "4000"}, '{"error": "slow down"}')
    slow.reply, slow.fail = reply, lambda n: told if n == 8 else None
    config = LLMClientConfig("a", "m", base_url=f"{slow.url}/v1", api_key="key-a", concurrency=8)
    dispatcher, watch = LLMDispatcher([config], seed=0), Watch()
    calls = [asyncio.create_task(watch(dispatcher, item)) for item in range(12)]
    while not watch.told["a"]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    go_on.set()
    await asyncio.wait(calls, timeout=1.5)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await dispatcher.aclose()
    assert watch.too_early("a") == []


# ---------------------------------------------------------------------- limits that are learnt


async def test_limits_that_are_configured_twice_too_high_are_learnt_from_refusals(
    server: Server,
) -> None:
    """20 a second are let in, 40 are configured. Waste is for the first seconds only."""
    windows = {
        "fixed": {"limit": 20, "window": 1, "kind": "fixed"},
        "bucket": {"limit": 20, "window": 1, "kind": "bucket", "burst": 4},
    }
    keys = {
        key: {"requests": window, "retry_after": "ms", "latency": 0.02}
        for key, window in windows.items()
    }
    server.configure({"keys": keys})
    dispatchers = {
        key: LLMDispatcher([account(server, key, rpm_limit=2400)], seed=0) for key in keys
    }
    each = [ask_all(dispatcher, 110) for dispatcher in dispatchers.values()]
    answers = await asyncio.wait_for(asyncio.gather(*each), 60)
    assert [len(of_key) for of_key in answers] == [110, 110]
    for key, most_wasted in (("fixed", 0.15), ("bucket", 0.5)):
        counts = server.stats()["keys"][key]
        refused = counts["refused_429"]["requests"]
        assert 0 < refused < most_wasted * counts["arrived"], (key, counts)
        by_second = {int(second): n for second, n in counts["r429_by_second"].items()}
        assert sum(n for second, n in by_second.items() if second >= 5) <= 12, (key, counts)
        [seen] = dispatchers[key].snapshot()
        assert 700 < seen["per_minute"]["requests"] < 0.75 * 2400, (key, seen)
        assert seen["rate_limited"] == refused


@pytest.mark.parametrize("wait", [None, 1.0])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_how_many_calls_may_be_in_flight_is_learnt_where_nobody_says(
    server: Server, kind: str, transport: str, wait: float | None
) -> None:
    limit = {"in_flight": 5, "in_flight_retry_after": wait, "latency": 0.03}
    server.configure({"default": limit})
    config = account(server, "it", kind=kind, transport=transport, concurrency=None)
    with LLMDispatcher([config], seed=0) as dispatcher:
        answers = asyncio.run(ask_all(dispatcher, 40))
        [seen] = dispatcher.snapshot()
    counts = server.stats()["keys"]["it"]
    assert len(answers) == counts["ok"] == 40
    assert 1 <= counts["refused_429"]["in_flight"] <= 12
    assert counts["max_in_flight"] >= 3  # and it does not become timid
    assert 3 <= seen["at_once"] <= 7
    assert not seen["out"]


@pytest.mark.parametrize("headers", ["openai", "anthropic"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_limits_that_headers_announce_need_no_refusal(
    server: Server, transport: str, headers: str
) -> None:
    limits = {
        "requests": {"limit": 3000, "kind": "bucket"},
        "input_tokens": {"limit": 100_000, "kind": "bucket"},
        "output_tokens": {"limit": 50_000, "kind": "bucket"},
        "tokens": {"limit": 150_000, "kind": "bucket"},
    }
    server.configure({"default": {**limits, "headers": headers, "latency": 0.01}})
    config = account(server, "it", kind=headers, transport=transport)
    with LLMDispatcher([config], seed=0) as dispatcher:
        asyncio.run(ask_all(dispatcher, 20))
        [seen] = dispatcher.snapshot()
    assert seen["rate_limited"] == 0
    told = {unit: rate for unit, rate in seen["per_minute"].items() if rate}
    if headers == "anthropic":
        assert told == pytest.approx({unit: limits[unit]["limit"] for unit in limits}, rel=0.01)
    else:
        assert told["tokens"] == pytest.approx(150_000, rel=0.01)


# ---------------------------------------------------------------------- lines that break


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fault", ["stall", "reset", "reset_before", "500"])
def test_an_account_that_only_fails_rests_and_holds_nobody_up(
    server: Server, transport: str, fault: str
) -> None:
    server.configure({"keys": {"sick": {"faults": [{"kind": fault}]}, "well": {"latency": 0.01}}})
    accounts = [account(server, key, transport=transport, timeout=0.4) for key in ("sick", "well")]
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        answers = asyncio.run(asyncio.wait_for(ask_all(dispatcher, 40), 30))
        sick, well = dispatcher.snapshot()
    assert len(answers) == well["ok"] == 40
    assert sick["failing"] and not sick["out"]
    assert sick["in_flight"] == 0
    # those in flight when it began to fail, and a probe now and then
    assert server.stats()["keys"]["sick"]["arrived"] <= 8 + 12
    assert server.stats()["keys"]["sick"]["in_flight"] == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_slow_answer_is_cut_at_the_accounts_timeout(server: Server, transport: str) -> None:
    server.configure({"default": {"faults": [{"kind": "slow_body", "seconds": 1}]}})
    config = account(server, "it", transport=transport, timeout=0.4)
    attempt: Awaitable[ChatAnswer] = send(config, chat_of(1))
    with pytest.raises(Exception) as raised:
        await attempt
    await config.aclose()
    assert classify(raised.value).kind == "transient"
