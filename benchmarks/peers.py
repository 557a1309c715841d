"""The contestants of `dispatcher.py`: ours and its peers, each as one coroutine `ask(text)`.

    ours           LLMDispatcher.call over the OpenAI SDK, one attempt a call (`complete`)
    lm             DispatcherLM.acall, as DSPy programs use it; `lm-sdk` forces its SDK path
    router         LiteLLM Router as it comes: simple-shuffle, its own retries and cooldowns
    router-tuned   the best configuration of it we found: no cooldowns, ten retries
    paced          an aiolimiter AsyncLimiter(1, 60 / rpm) a key, round robin, ten SDK retries
    dspy           dspy.LM (native engine), round robin over one LM a key, its own retries
    sdk            AsyncOpenAI, round robin, the SDK's ten retries; no limiter at all
    bare           AsyncOpenAI on one key, no retries: what a call costs without anything around it

Every AsyncOpenAI rides on aiohttp: with httpx's own pool a call costs ten times the CPU, and the
contest would be about that. Each peer is told the same limits as ours, where it can be told any.
Libraries are imported by the contestant that needs them, so that memory is compared fairly.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Ask = Callable[[str], Awaitable[object]]

MODEL = "gpt-bench"
MAX_TOKENS = 64
INPUT_TOKENS = 24  # what the server says a prompt took; an honest estimate for the reservation
OUTPUT_TOKENS = 32


class Skipped(Exception):
    """This contestant does not exist here, or has nothing to show in this scenario."""


@dataclass(frozen=True)
class Setup:
    """What a contestant is told: where the accounts are, and which limits their owner believes in.

    `concurrency` None: the limit of calls at once is unknown, to be learnt.
    """

    base_url: str
    keys: int = 4
    rpm: float | None = 600.0
    tpm: float | None = None
    concurrency: int | None = 64

    @property
    def names(self) -> list[str]:
        return [f"k{number}" for number in range(self.keys)]


def configs(setup: Setup, **more: Any) -> list[Any]:
    """Our accounts, one a key."""
    from question_optimizer.providers import LLMClientConfig

    told: dict[str, Any] = {
        "rpm_limit": setup.rpm,
        "tpm_limit": setup.tpm,
        "concurrency": setup.concurrency,
        **more,
    }
    return [
        LLMClientConfig(name=name, model=MODEL, base_url=setup.base_url, api_key=name, **told)
        for name in setup.names
    ]


def chat(text: str) -> Any:
    """The request that every contestant sends, as ours is given it."""
    from question_optimizer.wire import ChatRequest

    return ChatRequest(system="", messages=(("user", text),), max_tokens=MAX_TOKENS)


def asking(dispatcher: Any) -> Ask:
    """`ask` through any LLMDispatcher."""
    from question_optimizer.wire import complete

    async def ask(text: str) -> object:
        async def send(lease: Any) -> Any:
            return await complete(lease.config.client, lease.config.model, chat(text))

        return await dispatcher.call(send, input_tokens=INPUT_TOKENS)

    return ask


def ours(setup: Setup) -> Ask:
    from question_optimizer.dispatcher import LLMDispatcher

    return asking(LLMDispatcher(configs(setup)))


def _dispatcher_lm(setup: Setup, **options: Any) -> Ask:
    from custom_lm import DispatcherLM
    from question_optimizer.dispatcher import LLMDispatcher

    dispatcher = LLMDispatcher(configs(setup, **options))
    lm = DispatcherLM(dispatcher, cache=False, max_tokens=MAX_TOKENS)

    async def ask(text: str) -> object:
        return await lm.acall(text)

    return ask


def dispatcher_lm(setup: Setup) -> Ask:
    return _dispatcher_lm(setup)


def dispatcher_lm_sdk(setup: Setup) -> Ask:
    return _dispatcher_lm(setup, transport="sdk")


def _router(setup: Setup, **options: Any) -> Ask:
    import litellm
    from litellm import Router

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    limits = {"rpm": setup.rpm, "tpm": setup.tpm}
    told = {name: int(value) for name, value in limits.items() if value}
    router = Router(
        model_list=[
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_key": name,
                    "api_base": setup.base_url,
                    **told,
                },
            }
            for name in setup.names
        ],
        **options,
    )

    async def ask(text: str) -> object:
        return await router.acompletion(
            model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=MAX_TOKENS
        )

    return ask


def router_default(setup: Setup) -> Ask:
    return _router(setup)


def router_tuned(setup: Setup) -> Ask:
    return _router(setup, disable_cooldowns=True, num_retries=10)


def _openai(setup: Setup, name: str, max_retries: int) -> Ask:
    import openai

    client = openai.AsyncOpenAI(
        api_key=name,
        base_url=setup.base_url,
        max_retries=max_retries,
        http_client=openai.DefaultAioHttpClient(),
    )

    async def ask(text: str) -> object:
        return await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=MAX_TOKENS
        )

    return ask


def _in_turn(asks: list[Ask]) -> Ask:
    turn = itertools.cycle(asks)

    async def ask(text: str) -> object:
        return await next(turn)(text)

    return ask


def bare(setup: Setup) -> Ask:
    return _openai(setup, setup.names[0], 0)


def sdk(setup: Setup) -> Ask:
    return _in_turn([_openai(setup, name, 10) for name in setup.names])


def paced(setup: Setup) -> Ask:
    """Paced by requests, or by tokens where those bind: the best a careful user can write."""
    from aiolimiter import AsyncLimiter

    by_tokens = setup.tpm / (INPUT_TOKENS + OUTPUT_TOKENS) if setup.tpm else None
    rates = [rate for rate in (setup.rpm, by_tokens) if rate]
    if not rates:
        raise Skipped("no rate to pace by")

    def one(name: str) -> Ask:
        client, limiter = _openai(setup, name, 10), AsyncLimiter(1, 60 / min(rates))

        async def ask(text: str) -> object:
            async with limiter:
                return await client(text)

        return ask

    return _in_turn([one(name) for name in setup.names])


def dspy_lm(setup: Setup) -> Ask:
    import dspy

    def one(name: str) -> Ask:
        lm = dspy.LM(
            f"openai/{MODEL}",
            api_key=name,
            api_base=setup.base_url,
            cache=False,
            max_tokens=MAX_TOKENS,
        )

        async def ask(text: str) -> object:
            return await lm.acall(text)

        return ask

    return _in_turn([one(name) for name in setup.names])


CONTESTANTS: dict[str, Callable[[Setup], Ask]] = {
    "ours": ours,
    "lm": dispatcher_lm,
    "lm-sdk": dispatcher_lm_sdk,
    "router": router_default,
    "router-tuned": router_tuned,
    "paced": paced,
    "dspy": dspy_lm,
    "sdk": sdk,
    "bare": bare,
}
LABELS = {
    "ours": "LLMDispatcher",
    "lm": "DispatcherLM",
    "lm-sdk": "DispatcherLM, SDK path",
    "router": "LiteLLM Router",
    "router-tuned": "LiteLLM Router, tuned",
    "paced": "aiolimiter, paced",
    "dspy": "dspy.LM",
    "sdk": "AsyncOpenAI, retries 10",
    "bare": "AsyncOpenAI, bare",
}
OURS = ("ours", "lm", "lm-sdk")
