"""DispatcherLM: DSPy on one side, real HTTP on loopback on the other, limits in between."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import openai
import pytest
from dspy.utils import exceptions as dspy_errors

from conftest import LLMServer, Script
from custom_lm import DispatcherLM, LanguageModels
from question_optimizer import rehearsal
from question_optimizer.answers import AnswerStore
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import BUDGET, INTERRUPTED, TRY_LATER, USAGE, StopRun
from question_optimizer.pinning import on_item
from question_optimizer.providers import rehearsal_account
from question_optimizer.usage import metered

KEY = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key


class Question(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def echo(messages: list[dict[str, Any]]) -> str:
    """A model that answers a structured prompt with the question it was asked."""
    asked = re.findall(r"\[\[ ## question ## \]\]\n(.*)", messages[-1]["content"])
    answer = expected_answer(asked[0] if asked else messages[-1]["content"])
    if "JSON object" in str(messages[0]["content"]):
        return json.dumps({"answer": answer})
    return f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


def slow_echo(messages: list[dict[str, Any]]) -> str:
    time.sleep(0.1)
    return echo(messages)


def expected_answer(question: str) -> str:
    return f"You asked: {question}"


class WatchedServer(LLMServer):
    """Knows how many requests it works on at once."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """As if newly started."""
        self.requests.clear()
        self.fail = lambda n: None
        self.answer_with = echo
        self.in_flight = self.most = 0
        self.reply = self._watched

    def _watched(self, messages: list[dict[str, Any]]) -> str:
        with self.lock:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        try:
            return self.answer_with(messages)
        finally:
            with self.lock:
                self.in_flight -= 1


@pytest.fixture(scope="module")
def running() -> Iterator[WatchedServer]:
    """One server for the whole file: stopping one takes half a second, and here are many tests."""
    server = WatchedServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running: WatchedServer) -> WatchedServer:
    """The server as it began."""
    running.begin()
    return running


def account(server: LLMServer, name: str = "a", **fields: Any) -> LLMClientConfig:
    kind = fields.get("kind", "openai")
    url = server.url if kind == "anthropic" else f"{server.url}/v1"
    given = {"model": "model-x", "base_url": url, "api_key": KEY, "concurrency": 8, **fields}
    return LLMClientConfig(name=name, **given)


def refusal(status: int, message: str = "so it is", **headers: str) -> tuple[int, dict, str]:
    body = {"type": "error", "error": {"type": "some_error", "message": message}}
    return status, headers, json.dumps(body)


def ask(lm: dspy.LM, question: str = "What is 2+2?") -> str:
    with dspy.context(lm=lm):
        return dspy.Predict(Question)(question=question).answer


async def ask_async(lm: dspy.LM, question: str = "What is 2+2?") -> str:
    with dspy.context(lm=lm):
        return (await dspy.Predict(Question).acall(question=question)).answer


QUESTIONS = [f"Explain pragma_{number}?" for number in range(16)]
ANSWERS = [expected_answer(question) for question in QUESTIONS]

# ---------------------------------------------------------------------- threads and loops


@pytest.mark.parametrize("copies", ["one lm", "copies"])
def test_sixteen_threads_share_the_slots_and_use_them_all(
    server: WatchedServer, copies: str
) -> None:
    four_at_once = threading.Barrier(4, timeout=30)  # passes only if four really are in flight

    def slowly(messages: list[dict[str, Any]]) -> str:
        four_at_once.wait()
        return echo(messages)

    server.answer_with = slowly
    with LLMDispatcher([account(server, concurrency=4)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        others = [lm.copy(rollout_id=1, temperature=0.7), copy.copy(lm), copy.deepcopy(lm)]
        lms = [lm, *others] * 4 if copies == "copies" else [lm] * 16
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(ask, lms, QUESTIONS))
        seen = dispatcher.snapshot()[0]
    assert answers == ANSWERS
    assert server.most == 4
    assert (seen["started"], seen["ok"], seen["in_flight"]) == (16, 16, 0)


def test_sixteen_threads_never_pass_the_daily_limit_together(server: WatchedServer) -> None:
    def outcome(question: str) -> str | int:
        try:
            return ask(lm, question)
        except StopRun as stop:
            return stop.exit_code

    with LLMDispatcher([account(server, daily_limit=10)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        with ThreadPoolExecutor(16) as threads:
            outcomes = list(threads.map(outcome, QUESTIONS))
    assert len(server.requests) == 10
    assert outcomes.count(TRY_LATER) == 6
    assert {o for o in outcomes if o != TRY_LATER} <= set(ANSWERS)


def test_calls_of_a_coroutine_run_at_once_within_the_slots(server: WatchedServer) -> None:
    four_at_once = threading.Barrier(4, timeout=30)

    def slowly(messages: list[dict[str, Any]]) -> str:
        four_at_once.wait()
        return echo(messages)

    async def main() -> list[str]:
        answers = await asyncio.gather(*(ask_async(lm, question) for question in QUESTIONS))
        await dispatcher.aclose()
        return answers

    server.answer_with = slowly
    dispatcher = LLMDispatcher([account(server, concurrency=4)])
    lm = DispatcherLM(dispatcher, cache=False)
    assert asyncio.run(main()) == ANSWERS
    assert server.most == 4


def test_threads_then_coroutines_then_threads_use_one_dispatcher(server: WatchedServer) -> None:
    async def main() -> str:
        return await ask_async(lm)

    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        answers = [ask(lm), asyncio.run(main()), asyncio.run(main()), ask(lm)]
        seen = dispatcher.snapshot()[0]
    assert len(set(answers)) == 1
    assert (seen["ok"], seen["in_flight"]) == (4, 0)


def test_coroutines_then_threads_use_one_dispatcher(server: WatchedServer) -> None:
    async def main() -> str:
        answer = await ask_async(lm)
        await dispatcher.aclose()
        return answer

    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        assert asyncio.run(main()) == ask(lm)
        assert dispatcher.snapshot()[0]["ok"] == 2


def test_a_cancelled_call_gives_its_slot_back(server: WatchedServer) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def stuck(messages: list[dict[str, Any]]) -> str:
        arrived.set()
        go_on.wait(30)
        return echo(messages)

    async def main() -> str:
        call = asyncio.create_task(ask_async(lm, "stuck"))
        await asyncio.to_thread(arrived.wait, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.answer_with = echo
        return await asyncio.wait_for(ask_async(lm), 30)

    server.answer_with = stuck
    with LLMDispatcher([account(server, concurrency=1)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        dispatcher.run(asyncio.sleep(0))  # the home loop is another than the caller's
        assert asyncio.run(main()) == expected_answer("What is 2+2?")
        go_on.set()
        assert dispatcher.snapshot()[0]["in_flight"] == 0


def test_a_blocking_call_on_the_dispatchers_own_loop_says_so_instead_of_hanging(
    server: WatchedServer,
) -> None:
    async def main() -> None:
        dispatcher = LLMDispatcher([account(server)])
        lm = DispatcherLM(dispatcher, cache=False)
        await ask_async(lm)  # this loop is now the dispatcher's
        with pytest.raises(dspy_errors.LMUnexpectedError, match="would wait for itself"):
            ask(lm)
        await dispatcher.aclose()

    asyncio.run(main())


def test_copies_share_the_dispatcher_and_keep_their_own_settings(server: WatchedServer) -> None:
    dispatcher = LLMDispatcher([account(server)])
    lm = DispatcherLM(dispatcher, temperature=0.3, max_tokens=50)
    warmer = lm.copy(temperature=0.9)
    assert copy.deepcopy(lm) is lm
    assert copy.deepcopy(lm.engine) is lm.engine
    assert warmer.dispatcher is lm.dispatcher is dispatcher
    assert warmer.engine is lm.engine
    assert (lm.kwargs["temperature"], warmer.kwargs["temperature"]) == (0.3, 0.9)
    program = dspy.Predict(Question)
    program.lm = lm
    assert copy.deepcopy(program).lm.dispatcher is dispatcher


def test_the_role_chooses_the_account_and_names_its_models(server: WatchedServer) -> None:
    accounts = [
        account(server, "writers", model="small", roles=("student", "teacher")),
        account(server, "judges", model="large", roles=("judge",)),
    ]
    with LLMDispatcher(accounts) as dispatcher:
        for role in ("student", "judge", "teacher"):
            ask(DispatcherLM(dispatcher, role=role, cache=False))
        names = {role: DispatcherLM(dispatcher, role=role).model for role in (None, "judge")}
    assert [body["model"] for _, _, body in server.requests] == ["small", "large", "small"]
    # DSPy's cache knows an LM by this name alone, so it must tell models and roles apart
    assert "large" in names["judge"] and "small" not in names["judge"]
    assert "large" in names[None] and "small" in names[None]


# ---------------------------------------------------------------------- cache and usage


def test_an_identical_call_is_served_from_the_cache_with_its_original_figures(
    server: WatchedServer, tmp_path: Path
) -> None:
    accounts = [account(server, input_price=1.0, output_price=10.0)]

    def run_once() -> tuple[str, dict[str, Any], AnswerStore]:
        usage = AnswerStore(tmp_path / "answers.sqlite")
        with LLMDispatcher(accounts) as dispatcher, metered() as meter:
            answer = ask(DispatcherLM(dispatcher, answers=usage))
        return answer, meter.calls, usage

    first_answer, paid, first_log = run_once()
    again_answer, cached, second_log = run_once()  # as after a restart
    assert again_answer == first_answer
    assert len(server.requests) == 1
    [call] = paid.values()
    _, _, body = server.requests[0]
    figures = rehearsal.completion(body, echo(body["messages"]))["usage"]
    assert (call.account, call.model) == ("a", "model-x")
    assert (call.input_tokens, call.output_tokens) == (
        figures["prompt_tokens"],
        figures["completion_tokens"],
    )
    assert call.cost == pytest.approx((call.input_tokens + 10 * call.output_tokens) / 1e6)
    assert call.seconds > 0
    assert cached == paid
    assert second_log.seen.total == first_log.seen.total
    assert second_log.seen.total.calls == 1


async def test_an_identical_coroutine_call_is_served_from_the_cache_too(
    server: WatchedServer,
) -> None:
    usage = AnswerStore(None)
    dispatcher = LLMDispatcher([account(server)])
    lm = DispatcherLM(dispatcher, answers=usage)
    with metered() as first:
        await ask_async(lm)
    with metered() as second:
        await ask_async(lm)
    await dispatcher.aclose()
    assert len(server.requests) == 1
    assert second.calls == first.calls
    assert second.total.calls == 1
    assert (first.fresh, second.fresh, usage.seen.fresh) == (1, 0, 1)


@pytest.mark.parametrize(
    ("change", "requests"),
    [({}, 1), ({"temperature": 0.5}, 2), ({"rollout_id": 1, "temperature": 1.0}, 2)],
)
def test_what_changes_a_request_asks_afresh(
    server: WatchedServer, change: dict[str, Any], requests: int
) -> None:
    usage = AnswerStore(None)
    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, answers=usage)
        ask(lm)
        ask(lm.copy(**change))
    assert len(server.requests) == requests
    assert usage.seen.total.calls == requests
    assert all("rollout_id" not in body for _, _, body in server.requests)


def test_metered_sees_its_own_calls_and_nests(server: WatchedServer) -> None:
    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        with metered() as outer:
            ask(lm, "Explain joins?")
            with metered() as inner:
                ask(lm, "Explain views?")
                ask(lm, "Explain triggers?")
        ask(lm, "Explain nothing?")
    assert (outer.total.calls, inner.total.calls) == (3, 2)
    tokens = [
        rehearsal.completion(body, echo(body["messages"]))["usage"]["prompt_tokens"]
        for _, _, body in server.requests
    ]
    assert outer.total.input_tokens == sum(tokens[:3])
    assert inner.total.input_tokens == sum(tokens[1:3])


def test_the_calls_of_evaluates_threads_are_in_the_logs_total(server: WatchedServer) -> None:
    usage = AnswerStore(None)
    devset = [dspy.Example(question=q).with_inputs("question") for q in QUESTIONS]
    with LLMDispatcher([account(server)]) as dispatcher:
        evaluate = dspy.Evaluate(devset=devset, metric=lambda e, p: bool(p.answer), num_threads=4)
        with dspy.context(lm=DispatcherLM(dispatcher, answers=usage, cache=False)):
            score = evaluate(dspy.Predict(Question)).score
    assert score == 100.0
    assert usage.seen.total.calls == usage.seen.fresh == 16


def test_an_unreadable_answer_costs_a_second_call_and_both_are_counted(
    server: WatchedServer,
) -> None:
    def only_json(messages: list[dict[str, Any]]) -> str:
        wants_json = "JSON object" in messages[0]["content"]
        return echo(messages) if wants_json else "I would rather not."

    server.answer_with = only_json
    usage = AnswerStore(None)
    with LLMDispatcher([account(server)]) as dispatcher, metered() as meter:
        answer = ask(DispatcherLM(dispatcher, answers=usage, cache=False), QUESTIONS[0])
    assert answer == ANSWERS[0]
    assert len(server.requests) == meter.total.calls == usage.seen.total.calls == 2


def test_a_request_sampled_several_times_is_counted_in_full(server: WatchedServer) -> None:
    """COPRO asks for n completions at once; each is a call of its own, and paid for."""
    usage = AnswerStore(None)
    accounts = [account(server, input_price=1.0, output_price=1.0)]
    with LLMDispatcher(accounts) as dispatcher, metered() as meter:
        lm = DispatcherLM(dispatcher, answers=usage, cache=False)
        answers = lm("Explain joins?", n=3, temperature=1.0)
        paid = dispatcher.spend
    assert len(answers) == len(server.requests) == 3
    assert meter.total.cost == pytest.approx(paid)
    assert usage.seen.total.cost == pytest.approx(paid)


def test_a_second_run_pays_nothing_and_reports_the_same(
    server: WatchedServer, tmp_path: Path
) -> None:
    def run_once() -> dict[str, float]:
        accounts = [account(server, input_price=1.0, output_price=10.0)]
        with LanguageModels(accounts, data_dir=tmp_path) as models:
            for question in QUESTIONS[:4]:
                ask(models.lm("student"), question)
                ask(models.lm("judge"), question)  # the same model: what the student was told
                ask(models.lm("judge"), f"Was that so: {question}")
            assert not models.rehearsal
            return models.usage.as_dict()

    first = run_once()
    assert len(server.requests) == 8
    assert run_once() == first
    assert len(server.requests) == 8
    assert first["calls"] == 8
    day = json.loads((tmp_path / "daily_request_log.json").read_text())
    [[counts]] = [list(accounts.values()) for accounts in day.values()]
    assert counts["requests"] == 8


def test_no_pickle_is_written_or_read(server: WatchedServer, tmp_path: Path) -> None:
    with LanguageModels([account(server)], data_dir=tmp_path) as models:
        ask(models.lm("student"))
    kept = {path.name.split("-")[0] for path in (tmp_path / "cache").rglob("*")}
    assert kept == {"answers.sqlite"}


def test_samples_that_were_answered_are_not_asked_again_after_a_failure(
    server: WatchedServer, tmp_path: Path
) -> None:
    """Two of three samples are there when the run dies; the next run asks for the third only."""
    server.fail = lambda n: refusal(400) if n == 3 else None
    asked = {"n": 3, "temperature": 1.0}
    with (
        LanguageModels([account(server)], data_dir=tmp_path) as models,
        pytest.raises(dspy_errors.LMInvalidRequestError),
    ):
        models.lm("student")("Explain joins?", **asked)
    server.fail = lambda n: None
    with LanguageModels([account(server)], data_dir=tmp_path) as models:
        assert len(models.lm("student")("Explain joins?", **asked)) == 3
        assert models.usage.calls == 3
    assert len(server.requests) == 4


def test_who_wants_the_same_at_once_waits_for_the_first(server: WatchedServer) -> None:
    server.answer_with = slow_echo
    answers = AnswerStore(None)
    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, answers=answers)
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda _: ask(lm, QUESTIONS[0]), range(8)))
    assert said == [ANSWERS[0]] * 8
    assert len(server.requests) == answers.seen.fresh == 1
    assert not answers.in_flight


def test_when_the_first_fails_the_next_asks_for_itself(server: WatchedServer) -> None:
    server.answer_with = slow_echo
    server.fail = lambda n: refusal(400) if n == 1 else None
    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher)

        def attempt(_: int) -> str:
            try:
                return ask(lm, QUESTIONS[0])
            except dspy_errors.LMInvalidRequestError:
                return "refused"

        with ThreadPoolExecutor(4) as pool:
            said = sorted(pool.map(attempt, range(4)))
    assert said == sorted(["refused", *[ANSWERS[0]] * 3])
    assert len(server.requests) == 2


# ---------------------------------------------------------------------- one model an item


def two_models(server: WatchedServer, **fields: Any) -> list[LLMClientConfig]:
    return [
        account(server, "a", model="model-x", **fields),
        account(server, "b", model="model-y", **fields),
    ]


def models_asked(server: WatchedServer) -> list[str]:
    return [body["model"] for _, _, body in server.requests]


def test_every_call_for_an_item_goes_to_the_same_model(server: WatchedServer) -> None:
    with LLMDispatcher(two_models(server)) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        for item in range(12):
            with on_item(f"item {item}"):
                for question in QUESTIONS[:3]:
                    ask(lm, question)
    asked = models_asked(server)
    by_item = [set(asked[3 * item : 3 * item + 3]) for item in range(12)]
    assert all(len(models) == 1 for models in by_item)
    assert {model for models in by_item for model in models} == {"model-x", "model-y"}


def test_an_item_without_its_model_goes_to_the_next(server: WatchedServer) -> None:
    """A dead account: the run goes on, and every item whose model is alive stays where it was."""
    pinned = {}
    for dead in (None, "b"):
        server.begin()
        accounts = two_models(server)
        if dead:
            server.fail = lambda n: (
                refusal(401) if models_asked(server)[n - 1] == "model-y" else None
            )
        with LLMDispatcher(accounts) as dispatcher:
            lm = DispatcherLM(dispatcher, cache=False)
            for item in range(12):
                with on_item(f"item {item}"), metered() as meter:
                    ask(lm)
                [call] = meter.calls.values()
                pinned.setdefault(item, []).append(call.model)
    assert all(after == "model-x" for _, after in pinned.values())
    assert {before for before, _ in pinned.values()} == {"model-x", "model-y"}


def test_a_new_account_leaves_most_answers_where_they_are(
    server: WatchedServer, tmp_path: Path
) -> None:
    def run(accounts: list[LLMClientConfig]) -> int:
        before = len(server.requests)
        with LanguageModels(accounts, data_dir=tmp_path) as models:
            for item in range(20):
                with on_item(f"item {item}"):
                    ask(models.lm("student"), f"Explain pragma_{item}?")
        return len(server.requests) - before

    assert run(two_models(server)) == 20
    assert run(two_models(server)) == 0
    assert 0 < run([*two_models(server), account(server, "c", model="model-z")]) < 14


# ---------------------------------------------------------------------- as many calls as allowed


def test_no_more_calls_than_allowed(server: WatchedServer, tmp_path: Path) -> None:
    with LanguageModels([account(server)], data_dir=tmp_path, max_calls=5) as models:
        lm = models.lm("student")
        with pytest.raises(StopRun, match="as many as --max-calls allows") as stopped:
            for question in QUESTIONS:
                ask(lm, question)
    assert stopped.value.exit_code == BUDGET
    assert len(server.requests) == 5


def test_the_rehearsal_says_that_it_is_one(tmp_path: Path) -> None:
    with LanguageModels([rehearsal_account()], data_dir=tmp_path) as models:
        assert models.rehearsal
        assert ask(models.lm("student"), "Explain joins?").startswith("A rehearsed answer about")
        assert models.usage.cost == 0.0
        assert models.usage.seconds == 0.0


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "so it is", dspy_errors.LMInvalidRequestError),
        (422, "so it is", dspy_errors.LMInvalidRequestError),
        (
            400,
            "This model's maximum context length is 8192 tokens",
            dspy_errors.ContextWindowExceededError,
        ),
        (400, "prompt is too long: 9000 > 8192", dspy_errors.ContextWindowExceededError),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_request_at_fault_becomes_dspys_own_error_and_is_not_repeated(
    server: WatchedServer, kind: Any, status: int, message: str, error: type[Exception]
) -> None:
    server.fail = lambda n: refusal(status, message)
    with LLMDispatcher([account(server, kind=kind), account(server, "b", kind=kind)]) as dispatcher:
        with pytest.raises(error, match=message) as raised:
            ask(DispatcherLM(dispatcher, cache=False))
        assert type(raised.value) is error
        assert raised.value.status == status
    assert len(server.requests) == 1


def test_a_passing_fault_is_repeated_exactly_once(server: WatchedServer) -> None:
    server.fail = lambda n: refusal(500) if n == 1 else None
    with LLMDispatcher([account(server)]) as dispatcher:
        assert ask(DispatcherLM(dispatcher, cache=False), QUESTIONS[0]) == ANSWERS[0]
        seen = dispatcher.snapshot()[0]
    assert len(server.requests) == 2
    assert (seen["failed"], seen["ok"]) == (1, 1)


def test_a_rate_limit_is_waited_for_and_not_seen_by_the_caller(server: WatchedServer) -> None:
    wait = {"retry-after-ms": "20"}
    server.fail = lambda n: refusal(429, **wait) if n <= 6 else None
    with LLMDispatcher([account(server)]) as dispatcher:
        assert ask(DispatcherLM(dispatcher, cache=False), QUESTIONS[0]) == ANSWERS[0]
        assert dispatcher.snapshot()[0]["rate_limited"] == 6
    assert len(server.requests) == 7


@pytest.mark.parametrize("transport", ["direct", "sdk"])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_end_of_a_run_passes_through_evaluate_and_becomes_no_score(
    server: WatchedServer, threads: int, transport: str
) -> None:
    server.fail = lambda n: refusal(401, f"no such key: {KEY}")
    devset = [dspy.Example(question=q).with_inputs("question") for q in QUESTIONS]
    evaluate = dspy.Evaluate(
        devset=devset, metric=lambda e, p: True, num_threads=threads, max_errors=1000
    )
    with LLMDispatcher([account(server, "revoked", transport=transport)]) as dispatcher:
        lm = DispatcherLM(dispatcher, role="student", cache=False)
        with dspy.context(lm=lm), pytest.raises(StopRun) as raised:
            evaluate(dspy.Predict(Question))
        for thread in threading.enumerate():  # Evaluate has left its workers to themselves
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join(30)
    assert raised.value.exit_code == USAGE
    said = str(raised.value)
    kind = {"direct": "CallError", "sdk": "AuthenticationError"}[transport]
    assert said.startswith(f"no account left for role 'student': revoked: {kind}: ")
    assert "no such key: ***" in said
    assert KEY not in said


def test_stop_reaches_a_thread_that_waits(server: WatchedServer) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def stuck(messages: list[dict[str, Any]]) -> str:
        arrived.set()
        go_on.wait(30)
        return echo(messages)

    server.answer_with = stuck
    with LLMDispatcher([account(server, concurrency=1)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        with ThreadPoolExecutor(2) as threads:
            in_flight = threads.submit(ask, lm, QUESTIONS[0])
            assert arrived.wait(30)
            waiting = threads.submit(ask, lm, QUESTIONS[1])
            dispatcher.stop(StopRun("interrupted", exit_code=INTERRUPTED))
            with pytest.raises(StopRun, match="interrupted"):
                waiting.result(timeout=30)
            go_on.set()
            assert in_flight.result(timeout=30) == ANSWERS[0]  # what is in flight may finish


def test_closing_lets_calls_in_flight_end_and_leaves_no_thread_waiting(
    server: WatchedServer,
) -> None:
    """DSPy leaves threads behind when a run is stopped; one that waits for ever blocks the exit."""
    arrived, go_on = threading.Event(), threading.Event()

    def stuck(messages: list[dict[str, Any]]) -> str:
        arrived.set()
        go_on.wait(30)
        return echo(messages)

    server.answer_with = stuck
    dispatcher = LLMDispatcher([account(server, concurrency=1)])
    lm = DispatcherLM(dispatcher, cache=False)
    with ThreadPoolExecutor(3) as threads:
        in_flight = threads.submit(ask, lm, QUESTIONS[0])
        assert arrived.wait(30)
        waiting = threads.submit(ask, lm, QUESTIONS[1])
        closing = threads.submit(dispatcher.close)
        with pytest.raises(StopRun, match="the dispatcher is closed"):
            waiting.result(timeout=30)
        go_on.set()
        assert in_flight.result(timeout=30) == ANSWERS[0]
        closing.result(timeout=30)
        with pytest.raises(StopRun, match="the dispatcher is closed"):
            threads.submit(ask, lm, QUESTIONS[2]).result(timeout=30)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 422])
def test_a_key_that_the_provider_quotes_back_is_in_no_error(
    server: WatchedServer, status: int
) -> None:
    server.fail = lambda n: refusal(status, f"Incorrect API key provided: {KEY}.")
    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        with pytest.raises(BaseException, match="Incorrect API key provided") as raised:
            ask(lm)
        assert KEY not in str(raised.value)
        assert KEY not in repr(raised.value)
        assert KEY not in repr(dispatcher.snapshot())


# ---------------------------------------------------------------------- what reaches a provider


def test_an_anthropic_account_gets_its_own_kind_of_request(server: WatchedServer) -> None:
    with LLMDispatcher([account(server, kind="anthropic")]) as dispatcher:
        assert ask(DispatcherLM(dispatcher, cache=False), QUESTIONS[0]) == ANSWERS[0]
    [(path, _, body)] = server.requests
    assert path == "/v1/messages"
    assert "Your output fields are" in body["system"]
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["max_tokens"] == 4096
    assert "temperature" not in body


def test_an_anthropic_account_serves_the_temperatures_that_optimisers_use(
    server: WatchedServer,
) -> None:
    """COPRO samples at 1.4, above Anthropic's ceiling of 1.0 where it takes one at all."""
    with LLMDispatcher([account(server, kind="anthropic")]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False, temperature=1.4, max_tokens=99)
        assert ask(lm, QUESTIONS[0]) == ANSWERS[0]
    [(_, _, body)] = server.requests
    assert body.get("temperature", 1.0) == 1.0
    assert body["max_tokens"] == 99


@pytest.mark.parametrize(
    "model",
    [
        "gpt-5-mini",
        "gpt-5",
        "gpt-5.1",
        "gpt-5-nano-2026-01-01",
        "o3",
        "o4-mini",
        "openai/gpt-5-mini",
        "openai/o3-mini",
    ],
)
@pytest.mark.parametrize("role", [None, "student"])
def test_names_of_reasoning_models_stop_no_temperature(
    server: WatchedServer, model: str, role: Any
) -> None:
    """DSPy refuses them by name, although other accounts may serve the call."""
    with LLMDispatcher([account(server, model=model)]) as dispatcher:
        lm = DispatcherLM(dispatcher, role=role, cache=False, temperature=0.2, max_tokens=500)
        assert ask(lm, QUESTIONS[0]) == ANSWERS[0]
    [(_, _, body)] = server.requests
    assert (body["model"], body["temperature"], body["max_tokens"]) == (model, 0.2, 500)


def test_an_answer_cut_short_is_marked_as_such_for_dspy(server: WatchedServer) -> None:
    def cut(number: int) -> tuple[int, dict[str, str], str]:
        completion = rehearsal.completion(server.requests[number - 1][2], "It begins")
        completion["choices"][0]["finish_reason"] = "length"
        return 200, {}, json.dumps(completion)

    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        request = dspy.lm15.Request(lm.model, (dspy.lm15.Message.user("Explain joins?"),))
        whole = lm(request)
        server.fail = cut
        part = lm(request)
    assert (whole.finish_reason, whole.model) == ("stop", "model-x")
    assert (part.finish_reason, part.text) == ("length", "It begins")
    assert part.usage.output_tokens == 2


def test_demonstrations_arrive_as_turns(server: WatchedServer) -> None:
    predict = dspy.Predict(Question)
    predict.demos = [dspy.Example(question="Explain views?", answer="A stored query.")]
    with LLMDispatcher([account(server)]) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        with dspy.context(lm=lm):
            predict(question="Explain joins?")
    [(_, _, body)] = server.requests
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert "A stored query." in body["messages"][2]["content"]
    assert "stop" not in body and "temperature" not in body


# ---------------------------------------------------------------------- a foreign dispatcher


class CountingSemaphore(asyncio.Semaphore):
    """Knows how many hold it, and how many ever did at once."""

    def __init__(self, value: int):
        super().__init__(value)
        self.holders = self.most = 0

    async def acquire(self) -> bool:
        await super().acquire()
        self.holders += 1
        self.most = max(self.most, self.holders)
        return True

    def release(self) -> None:
        self.holders -= 1
        super().release()


class Limiter:
    """As aiolimiter's: entered once a call, its lock bound to the loop it is first waited on."""

    def __init__(self) -> None:
        self.entered = 0
        self.open = asyncio.Event()
        self.open.set()
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        async with self._lock:
            self.entered += 1
            await asyncio.sleep(0)
            await self.open.wait()

    async def __aexit__(self, *exc: object) -> None:
        return None


class Wrapped:
    """The host's `client` wants a response model; only its `raw_client` takes a plain request."""

    @property
    def chat(self) -> Any:
        raise AssertionError("raw_client is there to be used")


@dataclass(eq=False)
class HostClient:
    """One shared object a provider, as the host's own configuration class makes them."""

    name: str
    model: str
    base_url: str
    api_key: str = field(default=KEY, repr=False)
    rpm_limit: int | None = None
    daily_limit: int | None = None
    concurrency: int = 1
    disabled: bool = False

    def __post_init__(self) -> None:
        self.client = Wrapped()
        self.raw_client = openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self.api_key, max_retries=0
        )
        self.limiter: Limiter | None = Limiter() if self.rpm_limit else None


class HostDispatcher:
    """Keeps the existing application's contract: it answers at once, None when all are busy.

    It looks at the semaphores and enters none: two callers may be handed the same last slot, and it
    is theirs to hold `client_semaphores[name]` and `limiter`.
    """

    def __init__(self, clients: Sequence[HostClient], *, busy_at_first: int = 0):
        self.clients = list(clients)
        self.client_semaphores = {c.name: CountingSemaphore(c.concurrency) for c in clients}
        self.released: Counter[str] = Counter()
        self.refusals = 0
        self._busy_at_first = busy_at_first
        self._next = 0
        self._lock = asyncio.Lock()

    async def get_available_client(self) -> HostClient | None:
        async with self._lock:
            await asyncio.sleep(0)
            if self.refusals < self._busy_at_first:
                self.refusals += 1
                return None
            for _ in self.clients:
                client = self.clients[self._next % len(self.clients)]
                self._next += 1
                if not client.disabled and not self.client_semaphores[client.name].locked():
                    return client
            self.refusals += 1
            return None

    async def release_client_on_success(self, client: HostClient) -> None:
        async with self._lock:
            self.released["success"] += 1

    async def release_client_on_failure(self, client: HostClient) -> None:
        async with self._lock:
            self.released["failure"] += 1


def host_of(server: LLMServer, *, busy_at_first: int = 0, **fields: Any) -> HostDispatcher:
    url = f"{server.url}/v1"
    given = {"rpm_limit": 600, **fields}
    return HostDispatcher(
        [
            HostClient("wide", "model-x", url, concurrency=2, **given),
            HostClient("narrow", "model-y", url, concurrency=1, **given),
        ],
        busy_at_first=busy_at_first,
    )


def take_a_while(messages: list[dict[str, Any]]) -> str:
    time.sleep(0.01)  # long enough for calls to overlap; nothing is measured
    return echo(messages)


def assert_kept_the_contract(host: HostDispatcher, server: WatchedServer, calls: int) -> None:
    assert server.most <= 3
    assert {name: s.most for name, s in host.client_semaphores.items()} == {"wide": 2, "narrow": 1}
    assert [s.holders for s in host.client_semaphores.values()] == [0, 0]
    assert sum(client.limiter.entered for client in host.clients) == calls
    assert host.released == {"success": calls}
    assert host.refusals >= 2
    assert {body["model"] for _, _, body in server.requests} == {"model-x", "model-y"}


def test_a_foreign_dispatcher_works_from_threads_and_its_semaphores_hold(
    server: WatchedServer,
) -> None:
    server.answer_with = take_a_while
    host = host_of(server, busy_at_first=2)
    lm = DispatcherLM(host, cache=False)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, [lm] * 16, QUESTIONS))
    assert answers == ANSWERS
    assert_kept_the_contract(host, server, 16)


def test_a_foreign_dispatcher_works_from_coroutines_and_its_semaphores_hold(
    server: WatchedServer,
) -> None:
    async def main() -> HostDispatcher:
        host = host_of(server, busy_at_first=2)
        lm = DispatcherLM(host, cache=False)
        answers = await asyncio.gather(*(ask_async(lm, question) for question in QUESTIONS))
        assert answers == ANSWERS
        for client in host.clients:
            await client.raw_client.close()
        return host

    server.answer_with = take_a_while
    assert_kept_the_contract(asyncio.run(main()), server, 16)


def test_a_foreign_dispatcher_that_threads_have_used_works_from_coroutines_afterwards(
    server: WatchedServer,
) -> None:
    """Optimise in threads, then generate on a loop: its locks belong to the loop they first met."""

    async def main() -> list[str]:
        return await asyncio.gather(*(ask_async(lm, question) for question in QUESTIONS))

    server.answer_with = take_a_while
    lm = DispatcherLM(host_of(server), cache=False)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, [lm] * 16, QUESTIONS)) == ANSWERS
    assert asyncio.run(asyncio.wait_for(main(), 30)) == ANSWERS
    assert server.most <= 3


def test_a_blocking_call_on_a_foreign_dispatchers_loop_says_so_instead_of_hanging(
    server: WatchedServer,
) -> None:
    async def main() -> str:
        host = host_of(server)
        lm = DispatcherLM(host, cache=False)
        await ask_async(lm)  # its locks now belong to this loop
        with pytest.raises(dspy_errors.LMUnexpectedError) as raised:
            ask(lm)
        for client in host.clients:
            await client.raw_client.close()
        return str(raised.value)

    said: Future[str] = Future()
    threading.Thread(target=lambda: said.set_result(asyncio.run(main())), daemon=True).start()
    assert "would wait for itself" in said.result(timeout=15)


def test_a_foreign_client_without_a_limiter_is_no_obstacle(server: WatchedServer) -> None:
    lm = DispatcherLM(host_of(server, rpm_limit=None), cache=False)
    assert ask(lm, QUESTIONS[0]) == ANSWERS[0]


def test_a_foreign_call_that_is_cancelled_while_it_waits_holds_nothing_any_more(
    server: WatchedServer,
) -> None:
    async def main() -> tuple[list[int], Counter[str]]:
        host = host_of(server)
        lm = DispatcherLM(host, cache=False)
        for client in host.clients:
            client.limiter.open.clear()
        call = asyncio.create_task(ask_async(lm))
        while not any(client.limiter.entered for client in host.clients):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for client in host.clients:
            await client.raw_client.close()
        return [s.holders for s in host.client_semaphores.values()], host.released

    holders, released = asyncio.run(main())
    assert holders == [0, 0]
    assert sum(released.values()) == 1


@pytest.mark.parametrize(
    ("fails", "error", "requests"),
    [
        ([400] * 9, dspy_errors.LMInvalidRequestError, 1),
        ([500] * 9, dspy_errors.LMServerError, 5),
        ([429] * 9, dspy_errors.LMRateLimitError, 5),
        ([401] * 9, dspy_errors.LMAuthError, 5),
        ([500, 429, 503], None, 4),
    ],
)
def test_failures_at_a_foreign_dispatcher_are_reported_to_it_and_to_dspy(
    server: WatchedServer, fails: list[int], error: type[Exception] | None, requests: int
) -> None:
    server.fail = lambda n: refusal(fails[n - 1], f"{KEY} so it is") if n <= len(fails) else None
    host = host_of(server)
    lm = DispatcherLM(host, cache=False)
    if error is None:
        assert ask(lm, QUESTIONS[0]) == ANSWERS[0]
        assert host.released == {"failure": requests - 1, "success": 1}
    else:
        with pytest.raises(error, match="so it is") as raised:
            ask(lm)
        assert KEY not in str(raised.value)
        # an item at fault says nothing against the client, which the host would disable for good
        assert host.released == ({"success": 1} if fails[0] == 400 else {"failure": requests})
    assert len(server.requests) == requests
    assert [s.holders for s in host.client_semaphores.values()] == [0, 0]


def test_a_foreign_dispatcher_with_every_client_disabled_ends_the_run(
    server: WatchedServer,
) -> None:
    host = host_of(server, disabled=True)
    call = asyncio.wait_for(ask_async(DispatcherLM(host, cache=False)), 30)
    with pytest.raises(StopRun, match="every account of the dispatcher is disabled") as raised:
        asyncio.run(call)
    assert raised.value.exit_code == USAGE
    assert server.requests == []


def test_our_own_dispatcher_seen_as_a_foreign_one_works_too(server: WatchedServer) -> None:
    """The host may wrap it: what counts are the three methods, not the class."""

    class HostsWrapper:
        def __init__(self, inner: LLMDispatcher):
            self.clients = inner.clients
            self.client_semaphores = inner.client_semaphores
            self.get_available_client = inner.get_available_client
            self.release_client_on_success = inner.release_client_on_success
            self.release_client_on_failure = inner.release_client_on_failure

    async def main() -> str:
        answer = await ask_async(DispatcherLM(HostsWrapper(inner), cache=False), QUESTIONS[0])
        await inner.aclose()
        return answer

    inner = LLMDispatcher([account(server)])
    assert asyncio.run(main()) == ANSWERS[0]
    assert inner.snapshot()[0]["ok"] == 1


# ---------------------------------------------------------------------- the script


def test_the_script_prints_the_answer_and_marks_the_rehearsal(script: Script) -> None:
    done = script("custom_lm.py", "What is 2+2?", "--rehearsal")
    assert (done.returncode, done.stdout) == (0, "4\n")
    assert "(rehearsal: not a real model)" in done.stderr


@pytest.mark.parametrize("transport", ["direct", "sdk"])
def test_the_script_tells_a_failure_in_one_line_without_the_key(
    script: Script, server: WatchedServer, tmp_path: Path, transport: str
) -> None:
    (tmp_path / "llm_providers.toml").write_text(
        '[[accounts]]\nname = "a"\nmodel = "m"\napi_key_env = "A_KEY"\n'
        f'base_url = "{server.url}/v1"\ntransport = "{transport}"\n'
    )
    server.fail = lambda n: refusal(400, f"{KEY} may not ask this")
    done = script("custom_lm.py", "What is 2+2?", A_KEY=KEY)
    assert done.returncode == USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("custom_lm.py: the call failed: ")
    assert "*** may not ask this" in done.stderr
    assert "400" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert KEY not in done.stderr
