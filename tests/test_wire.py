"""One chat call: how each provider is spoken to, by both transports, and how answers are read."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from conftest import LLMServer
from question_optimizer.providers import ROLES, LLMClientConfig, rehearsal_account
from question_optimizer.wire import (
    AnswerError,
    CallError,
    ChatAnswer,
    ChatRequest,
    anthropic_answer,
    complete,
    openai_answer,
    send,
)

KEY = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key
REQUEST = ChatRequest(system="Be brief.", messages=(("user", "What is 2+2?"),))
# (kind, transport): every way in which an account of ours is spoken to
WAYS = [(kind, transport) for kind in ("openai", "anthropic") for transport in ("direct", "sdk")]


@pytest.fixture(scope="module")
def running() -> Iterator[LLMServer]:
    """One server for the whole file: stopping one takes half a second, and here are many tests."""
    server = LLMServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running: LLMServer) -> LLMServer:
    """The server as it began: nothing has come, every request is answered by the rehearsal."""
    running.requests.clear()
    running.fail = lambda n: None
    return running


def config_of(kind: Any, url: str, transport: Any = "direct", **fields: Any) -> LLMClientConfig:
    base_url = f"{url}/v1" if kind == "openai" else url
    given = {"model": "model-x", "api_key": KEY, **fields}
    return LLMClientConfig("it", kind=kind, base_url=base_url, transport=transport, **given)


async def attempt(config: LLMClientConfig, request: ChatRequest = REQUEST) -> ChatAnswer:
    """One attempt, the account's connections closed afterwards."""
    try:
        return await send(config, request)
    finally:
        await config.aclose()


# ---------------------------------------------------------------------- what is sent

FULL = ChatRequest(
    system="Be brief.",
    messages=(("user", "2+2?"), ("assistant", "4"), ("user", "What is 2+3?")),
    temperature=1.4,
    max_tokens=77,
    top_p=0.9,
    stop=("END",),
    seed=3,
)
TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "What is 2+3?"},
]
SENT: dict[tuple[str, str], tuple[ChatRequest, str, dict[str, Any]]] = {
    ("openai", "little"): (
        REQUEST,
        "/v1/chat/completions",
        {
            "model": "model-x",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is 2+2?"},
            ],
        },
    ),
    ("openai", "all"): (
        FULL,
        "/v1/chat/completions",
        {
            "model": "model-x",
            "messages": [{"role": "system", "content": "Be brief."}, *TURNS],
            "temperature": 1.4,
            "max_tokens": 77,
            "top_p": 0.9,
            "stop": ["END"],
            "seed": 3,
        },
    ),
    ("anthropic", "little"): (
        ChatRequest(system="", messages=(("user", "What is 2+2?"),)),
        "/v1/messages",
        {
            "model": "model-x",
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": "What is 2+2?"}],
        },
    ),
    ("anthropic", "all"): (
        replace(FULL, temperature=None, top_p=None),
        "/v1/messages",
        {
            "model": "model-x",
            "max_tokens": 77,
            "system": "Be brief.",
            "messages": TURNS,
            "stop_sequences": ["END"],
        },
    ),
}


@pytest.mark.parametrize("how_much", ["little", "all"])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_request_arrives_in_the_providers_own_form(
    server: LLMServer, kind: str, transport: str, how_much: str
) -> None:
    request, path, sent = SENT[kind, how_much]
    answer = await attempt(config_of(kind, server.url, transport), request)
    [(came_to, headers, body)] = server.requests
    assert (came_to, body) == (path, sent)
    names = {name.lower(): value for name, value in headers.items()}
    key = names.get("x-api-key") or names["authorization"].removeprefix("Bearer ")
    assert key == KEY
    assert names["content-type"] == "application/json"
    assert answer.text == ("4" if how_much == "little" else "5")
    assert (answer.model, answer.truncated) == ("model-x", False)
    assert answer.input_tokens and answer.input_tokens > 0
    assert answer.output_tokens is not None and answer.output_tokens >= 0


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_both_transports_send_the_same_body_to_the_same_place(
    server: LLMServer, kind: str
) -> None:
    for transport in ("direct", "sdk"):
        await attempt(config_of(kind, server.url, transport), FULL)
    direct, sdk = server.requests
    assert direct[0] == sdk[0]
    assert direct[2] == sdk[2]
    versions = [
        {name.lower(): value for name, value in headers.items()}.get("anthropic-version")
        for _, headers, _ in (direct, sdk)
    ]
    assert versions[0] == versions[1]


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_any_text_arrives_as_it_was(server: LLMServer, kind: str, transport: str) -> None:
    strange = 'äß 漢字 🦆 "quoted" \\ \x00 \x1f \u2028 </s> {{x}}'
    await attempt(
        config_of(kind, server.url, transport), ChatRequest(strange, (("user", strange),))
    )
    [(_, _, body)] = server.requests
    assert body["messages"][-1]["content"] == strange
    assert (body.get("system") or body["messages"][0]["content"]) == strange


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_slash_at_the_end_of_the_address_does_no_harm(
    server: LLMServer, kind: str, transport: str
) -> None:
    config = config_of(kind, server.url, transport)
    config.base_url = f"{config.base_url}/"
    assert (await attempt(config)).text == "4"


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_anthropic_answers_requests_that_ask_for_a_temperature(
    server: LLMServer, kind: str, transport: str
) -> None:
    """COPRO samples at 1.4 and a judge asks again at 1.0; Anthropic's ceiling is 1.0.

    API version 2026-10-21, which SDK 2.x sends, refuses temperature, top_p and top_k whatever
    their value, and that SDK's methods no longer take them. They may be left out, or go to the
    version before; they must not cost the item its answer.
    """

    def as_the_api_does(number: int) -> tuple[int, dict[str, str], str] | None:
        _, headers, body = server.requests[number - 1]
        names = {name.lower(): value for name, value in headers.items()}
        sampling = {"temperature", "top_p", "top_k"} & set(body)
        if sampling and names.get("anthropic-version", "") >= "2026-10-21":
            message = f"{sorted(sampling)[0]}: Extra inputs are not permitted"
            return 400, {}, json.dumps({"type": "error", "error": {"message": message}})
        return None

    server.fail = as_the_api_does
    answer = await attempt(config_of(kind, server.url, transport), FULL)
    assert answer.text == "5"
    if kind == "anthropic":
        assert server.requests[-1][2].get("temperature", 1.0) <= 1.0


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_redirect_is_an_error_and_takes_the_key_nowhere(
    server: LLMServer, kind: str
) -> None:
    server.fail = lambda n: (307, {"Location": f"{server.url}/elsewhere"}, "")
    with pytest.raises(CallError) as raised:
        await attempt(config_of(kind, server.url))
    assert raised.value.status_code == 307
    assert len(server.requests) == 1


@pytest.mark.parametrize("proxy", [False, True])
async def test_a_netrc_file_does_not_stand_in_the_way_of_a_key(
    server: LLMServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, proxy: bool
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert (await attempt(config_of("openai", server.url, "sdk"))).text == "4"
    assert (await attempt(config_of("openai", server.url, "direct"))).text == "4"


# ---------------------------------------------------------------------- what comes back

CUT = {
    "openai": {
        "id": "",
        "object": "chat.completion",
        "created": 0,
        "model": "",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": None},
            }
        ],
    },
    "anthropic": {
        "id": "",
        "type": "message",
        "role": "assistant",
        "model": "",
        "content": [],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 0},
    },
}


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_an_answer_cut_short_says_so_and_missing_figures_are_none(
    server: LLMServer, kind: str, transport: str
) -> None:
    server.fail = lambda n: (200, {}, json.dumps(CUT[kind]))
    answer = await attempt(config_of(kind, server.url, transport))
    assert (answer.text, answer.truncated, answer.model, answer.id) == ("", True, "model-x", None)
    figures = {"openai": (None, None), "anthropic": (9, 0)}
    assert (answer.input_tokens, answer.output_tokens) == figures[kind]


ANNOUNCING = {
    "openai": {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
    },
    "anthropic": {
        "anthropic-ratelimit-requests-limit": "600",
        "anthropic-ratelimit-requests-remaining": "599",
        "anthropic-ratelimit-requests-reset": "2020-03-14T09:26:53Z",
    },
}


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_an_answer_brings_the_limits_that_its_headers_announce(
    server: LLMServer, kind: str, transport: str
) -> None:
    server.fail = lambda n: (200, ANNOUNCING[kind], json.dumps(CUT[kind]))
    [limit] = (await attempt(config_of(kind, server.url, transport))).announced
    assert (limit.unit, limit.limit, limit.remaining) == ("requests", 600.0, 599.0)
    assert limit.reset == {"openai": 0.1, "anthropic": 0.0}[kind]
    assert limit.window == {"openai": None, "anthropic": 60.0}[kind]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "the provider's answer is no chat completion"),
        (None, "the provider's answer is no chat completion"),
        ("hello", "the provider's answer is no chat completion"),
        ({}, "the provider's answer is no chat completion"),
        ({"choices": None}, "the provider's answer is no chat completion"),
        ({"choices": []}, "the provider's answer is no chat completion"),
        ({"choices": [None]}, "the provider's answer is no chat completion"),
        ({"choices": [{}]}, "the provider's answer is no chat completion"),
        ({"choices": [{"message": None}]}, "the provider's answer is no chat completion"),
        ({"error": "busy"}, "the provider's answer is no chat completion: busy"),
        (
            {"error": {"message": "Provider\nreturned error", "code": 502}},
            "the provider's answer is no chat completion: Provider returned error 502",
        ),
    ],
)
def test_what_is_no_completion_is_refused_with_what_it_says(data: Any, said: str) -> None:
    with pytest.raises(AnswerError) as raised:
        openai_answer(data, "m", {})
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "the provider's answer is no message"),
        (None, "the provider's answer is no message"),
        ({}, "the provider's answer is no message"),
        ({"content": "hello"}, "the provider's answer is no message"),
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "the provider's answer is no message: Overloaded overloaded_error",
        ),
    ],
)
def test_what_is_no_message_is_refused_with_what_it_says(data: Any, said: str) -> None:
    with pytest.raises(AnswerError) as raised:
        anthropic_answer(data, "m", {})
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("choice", "more"),
    [
        ({"message": {"content": "4"}}, {}),
        ({"message": {"content": "4"}}, {"usage": None}),
        ({"message": {"content": "4"}}, {"usage": "none"}),
        ({"message": {"content": [{"type": "text", "text": "4"}]}}, {}),
    ],
)
def test_a_completion_of_a_sloppy_server_is_read_all_the_same(
    choice: dict[str, Any], more: dict[str, Any]
) -> None:
    answer = openai_answer({"choices": [choice], **more}, "m", {})
    assert (answer.text, answer.model, answer.input_tokens) == ("4", "m", None)


@pytest.mark.parametrize(
    "blocks",
    [
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}],
        [{"type": "text", "text": "4"}, {"type": "text"}, {"type": "text", "text": None}],
        [None, {"type": "text", "text": "4"}],
    ],
)
def test_a_message_is_its_text_blocks(blocks: list[Any]) -> None:
    assert anthropic_answer({"content": blocks}, "m", {}).text == "4"


# ---------------------------------------------------------------------- a host's own client


class Instructorish:
    """What `instructor` makes of a client: it wants a response model, and keeps the bare client."""

    __module__ = "instructor.core.client"

    def __init__(self, client: Any):
        self.client = client
        self.chat = self.completions = self.messages = self

    async def create(self, *, response_model: type, **rest: Any) -> Any:
        raise AssertionError("our prompts want no response model")


class WithRawClient:
    """The existing application's configuration: `client` is wrapped, `raw_client` is bare."""

    def __init__(self, client: Any):
        self.client = Instructorish(client)
        self.raw_client = client


@pytest.mark.parametrize("wrap", [Instructorish, WithRawClient])
async def test_a_hosts_wrapped_client_is_spoken_to_below_its_wrapping(
    server: LLMServer, wrap: type
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as bare:
        assert (await complete(wrap(bare), "model-x", REQUEST)).text == "4"


@pytest.mark.parametrize("wrap", [lambda bare: bare, WithRawClient], ids=["bare", "wrapped"])
async def test_a_hosts_anthropic_client_is_spoken_to_as_well(server: LLMServer, wrap: Any) -> None:
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k") as bare:
        assert (await complete(wrap(bare), "model-x", REQUEST)).text == "4"


async def test_real_instructor_is_spoken_to_below_its_wrapping(server: LLMServer) -> None:
    instructor = pytest.importorskip("instructor")
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as bare:
        wrapped = instructor.from_openai(bare)
        assert (await complete(wrapped, "model-x", REQUEST)).text == "4"


class Answer:
    """As an SDK's own model of a completion."""

    def model_dump(self) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}


class Bare:
    """A host's stand-in for a client: `chat.completions.create` and nothing else."""

    def __init__(self, answer: Any):
        self.answer = answer
        self.chat = self.completions = self

    async def create(self, **payload: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [Answer(), Answer().model_dump()], ids=["model", "dict"])
async def test_a_client_that_shows_no_headers_serves_too(answer: Any) -> None:
    read = await complete(Bare(answer), "model-x", REQUEST)
    assert (read.text, read.model, read.announced) == ("4", "model-x", ())


# ---------------------------------------------------------------------- connections


@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_one_account_serves_one_loop_after_another(
    server: LLMServer, kind: str, transport: str
) -> None:
    config = config_of(kind, server.url, transport)

    async def twice() -> list[str]:
        answers = [(await send(config, REQUEST)).text for _ in range(2)]
        await config.aclose()
        return answers

    assert asyncio.run(twice()) + asyncio.run(twice()) == ["4"] * 4


@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_the_rehearsal_answers_without_a_network_and_for_nothing(transport: Any) -> None:
    config = replace(rehearsal_account(), transport=transport)
    answer = await attempt(config)
    assert (answer.text, answer.model) == ("4", "rehearsal")
    assert config.priced
    assert config.cost(1e6, 1e6) == 0.0
    assert config.roles == ROLES
