"""Accounts: what a TOML file may say, how each SDK is spoken to, what its failures mean."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from conftest import ROOT, LLMServer
from question_optimizer.errors import USAGE, UserError
from question_optimizer.providers import (
    ROLES,
    SETUP_HINT,
    ChatRequest,
    Failure,
    LLMClientConfig,
    classify,
    complete,
    load_providers,
    rehearsal_account,
)

KEY = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key
REQUEST = ChatRequest(system="Be brief.", messages=(("user", "What is 2+2?"),))


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


# ---------------------------------------------------------------------- llm_providers.toml

GOOD = """
[[accounts]]
name = "first"
model = "small"
api_key_env = "FIRST_KEY"
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "llm_providers.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_accounts_carry_what_the_file_says_and_the_key_from_the_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        GOOD
        + """
[[accounts]]
name = "second"
kind = "anthropic"
model = "large"
base_url = "http://127.0.0.1:9"
api_key_env = "SECOND_KEY"
rpm_limit = 50
tpm_limit = 40000.5
daily_limit = 1000
concurrency = 4
input_price = 1.0
output_price = 5
roles = ["judge"]

[[accounts]]
name = "local"
model = "qwen3:8b"
base_url = "http://localhost:11434/v1"
""",
    )
    first, second, local = load_providers(path, {"FIRST_KEY": " key-1\n", "SECOND_KEY": "key-2"})
    assert first == LLMClientConfig(name="first", model="small", api_key="key-1")
    assert (first.kind, first.concurrency, first.roles, first.priced) == ("openai", 1, ROLES, False)
    assert second == LLMClientConfig(
        name="second",
        kind="anthropic",
        model="large",
        base_url="http://127.0.0.1:9",
        api_key="key-2",
        rpm_limit=50,
        tpm_limit=40000.5,
        daily_limit=1000,
        concurrency=4,
        input_price=1.0,
        output_price=5.0,
        roles=("judge",),
    )
    assert second.cost(1_000_000, 200_000) == 2.0
    assert (local.api_key, local.base_url) == ("none", "http://localhost:11434/v1")


def test_the_example_file_works_once_its_keys_are_set() -> None:
    keys = {"OPENAI_API_KEY": "k1", "ANTHROPIC_API_KEY": "k2"}
    accounts = load_providers(ROOT / "llm_providers.example.toml", keys)
    assert [(a.name, a.kind, a.roles, a.priced) for a in accounts] == [
        ("openai-1", "openai", ("student", "teacher"), True),
        ("claude-1", "anthropic", ("judge",), True),
    ]


def of_account(line: str, *, and_then: str = "") -> str:
    return GOOD + line + "\n" + and_then


EXAMPLE = "see llm_providers.example.toml"
WRONG_FILES = {
    "missing": (None, "no LLM account: {path} does not exist; " + SETUP_HINT),
    "not TOML": ("[[accounts", "{path}: not TOML (…); " + EXAMPLE),
    "not text": (b"name = '\xff'", "{path}: not TOML (…); " + EXAMPLE),
    "empty": ("", "{path}: no [[accounts]]; " + SETUP_HINT),
    "one table": ('[accounts]\nname = "a"', "{path}: no [[accounts]]; " + SETUP_HINT),
    "empty list": ("accounts = []", "{path}: no [[accounts]]; " + SETUP_HINT),
    "other key": (
        of_account("rpm = 60"),
        "{path}: account 1: rpm: Extra inputs are not permitted; " + EXAMPLE,
    ),
    "second account": (
        of_account("", and_then='[[accounts]]\nname = "b"\nmodel = "m"\nlimit = 1\n'),
        "{path}: account 2: limit: Extra inputs are not permitted; " + EXAMPLE,
    ),
    "key in file": (
        of_account(f'api_key = "{KEY}"'),
        "{path}: account 1: a key has no place in this file; name its variable in api_key_env",
    ),
    "no name": (
        '[[accounts]]\nmodel = "m"',
        "{path}: account 1: name: Field required; " + EXAMPLE,
    ),
    "empty name": (
        '[[accounts]]\nname = ""\nmodel = "m"',
        "{path}: account 1: name: String should have at least 1 character; " + EXAMPLE,
    ),
    "no model": (
        '[[accounts]]\nname = "a"',
        "{path}: account 1: model: Field required; " + EXAMPLE,
    ),
    "kind": (
        of_account('kind = "gemini"'),
        "{path}: account 1: kind: Input should be 'openai' or 'anthropic'; " + EXAMPLE,
    ),
    "rpm_limit": (
        of_account("rpm_limit = 0"),
        "{path}: account 1: rpm_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "tpm_limit": (
        of_account("tpm_limit = nan"),
        "{path}: account 1: tpm_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "daily_limit": (
        of_account("daily_limit = -5"),
        "{path}: account 1: daily_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "half a request": (
        of_account("daily_limit = 2.5"),
        "{path}: account 1: daily_limit: Input should be a valid integer, "
        "got a number with a fractional part; " + EXAMPLE,
    ),
    "concurrency": (
        of_account("concurrency = 0"),
        "{path}: account 1: concurrency: Input should be greater than or equal to 1; " + EXAMPLE,
    ),
    "price": (
        of_account('input_price = "cheap"'),
        "{path}: account 1: input_price: Input should be a valid number, "
        "unable to parse string as a number; " + EXAMPLE,
    ),
    "role": (
        of_account('roles = ["student", "poet"]'),
        "{path}: account 1: roles.1: Input should be 'student', 'teacher' or 'judge'; " + EXAMPLE,
    ),
    "key for its variable": (
        GOOD.replace("FIRST_KEY", KEY),
        "{path}: account 'first': api_key_env must name a variable, in capitals",
    ),
    "variable unset": (
        GOOD.replace("FIRST", "OTHER"),
        "{path}: account 'first': OTHER_KEY is not set; "
        "set it in the environment or .env, remove the account, or use --rehearsal",
    ),
    "variable blank": (
        GOOD.replace("FIRST", "BLANK"),
        "{path}: account 'first': BLANK_KEY is not set; "
        "set it in the environment or .env, remove the account, or use --rehearsal",
    ),
    "nowhere to go": (
        '[[accounts]]\nname = "a"\nmodel = "m"',
        "{path}: account 'a': needs api_key_env, or base_url of a local server",
    ),
    "same name": (
        GOOD + GOOD,
        "{path}: account name 'first' occurs twice; edit the file",
    ),
    "no judge": (
        of_account('roles = ["student", "teacher"]'),
        "{path}: no account has role 'judge'; add it to an account's roles",
    ),
    "no roles": (
        of_account("roles = []"),
        "{path}: no account has role 'student'; add it to an account's roles",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_refused_in_one_line_that_says_what_to_do(
    tmp_path: Path, case: str
) -> None:
    text, message = WRONG_FILES[case]
    path = tmp_path / "llm_providers.toml" if text is None else write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_providers(path, {"FIRST_KEY": KEY, "BLANK_KEY": "  "})
    said = str(raised.value)
    start, _, end = message.format(path=path).partition("…")
    assert said.startswith(start) and said.endswith(end) and (end or said == start), said
    assert raised.value.exit_code == USAGE
    assert "\n" not in said
    assert KEY not in said


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_providers(tmp_path, {})
    assert str(raised.value) == f"{tmp_path}: cannot be read (Is a directory)"


def test_an_account_that_is_no_table_is_refused_without_our_own_class_names(tmp_path: Path) -> None:
    path = write(tmp_path, 'accounts = ["openai"]')
    with pytest.raises(UserError) as raised:
        load_providers(path, {})
    said = str(raised.value)
    assert said.startswith(f"{path}: account 1: ") and said.endswith(EXAMPLE)
    assert "_AccountEntry" not in said and ": :" not in said


# ---------------------------------------------------------------------- one attempt


def config_of(kind: str, url: str, **fields: Any) -> LLMClientConfig:
    base_url = f"{url}/v1" if kind == "openai" else url
    return LLMClientConfig(
        name="it", model="model-x", kind=kind, base_url=base_url, api_key=KEY, **fields
    )


async def attempt(config: LLMClientConfig, request: ChatRequest = REQUEST, **options: Any) -> Any:
    """One attempt through the account's own client, closed afterwards."""
    client = config.client.with_options(**options) if options else config.client
    try:
        return await complete(client, config.model, request)
    finally:
        await config.aclose()


async def failure_of(config: LLMClientConfig, **options: Any) -> Failure:
    with pytest.raises(Exception) as raised:  # whatever the SDK raises is what is classified
        await attempt(config, **options)
    return classify(raised.value, secrets=[config.api_key])


FULL = ChatRequest(
    system="Be brief.",
    messages=(("user", "2+2?"), ("assistant", "4"), ("user", "What is 2+3?")),
    temperature=1.4,
    max_tokens=77,
    top_p=0.9,
    stop=("END",),
    seed=3,
)


@pytest.mark.parametrize(
    ("kind", "request_", "path", "sent"),
    [
        (
            "openai",
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
        (
            "openai",
            FULL,
            "/v1/chat/completions",
            {
                "model": "model-x",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "2+2?"},
                    {"role": "assistant", "content": "4"},
                    {"role": "user", "content": "What is 2+3?"},
                ],
                "temperature": 1.4,
                "max_tokens": 77,
                "top_p": 0.9,
                "stop": ["END"],
                "seed": 3,
            },
        ),
        (
            "anthropic",
            ChatRequest(system="", messages=(("user", "What is 2+2?"),)),
            "/v1/messages",
            {
                "model": "model-x",
                "max_tokens": 4096,
                "messages": [{"role": "user", "content": "What is 2+2?"}],
            },
        ),
        (
            "anthropic",
            replace(FULL, temperature=None, top_p=None),
            "/v1/messages",
            {
                "model": "model-x",
                "max_tokens": 77,
                "system": "Be brief.",
                "messages": [
                    {"role": "user", "content": "2+2?"},
                    {"role": "assistant", "content": "4"},
                    {"role": "user", "content": "What is 2+3?"},
                ],
                "stop_sequences": ["END"],
            },
        ),
    ],
)
async def test_a_request_arrives_in_the_providers_own_form(
    server: LLMServer, kind: str, request_: ChatRequest, path: str, sent: dict[str, Any]
) -> None:
    answer = await attempt(config_of(kind, server.url), request_)
    [(came_to, headers, body)] = server.requests
    assert (came_to, body) == (path, sent)
    names = {name.lower(): value for name, value in headers.items()}
    key = names.get("x-api-key") or names["authorization"].removeprefix("Bearer ")
    assert key == KEY
    assert answer.text == ("4" if "2+2" in request_.messages[-1][1] else "5")
    assert (answer.model, answer.truncated) == ("model-x", False)
    assert answer.input_tokens > 0
    assert answer.output_tokens >= 0


async def test_anthropic_answers_requests_that_ask_for_a_temperature(server: LLMServer) -> None:
    """COPRO samples at 1.4 and a judge asks again at 1.0; Anthropic's ceiling is 1.0.

    API version 2026-10-21, which SDK 2.x sends, refuses temperature, top_p and top_k whatever
    their value, and that SDK's methods no longer take them. They may be left out, or go to the
    version before; they must not cost the item its answer.
    """

    def as_the_api_does(number: int) -> tuple[int, dict[str, str], str] | None:
        _, headers, body = server.requests[number - 1]
        version = {name.lower(): value for name, value in headers.items()}["anthropic-version"]
        sampling = {"temperature", "top_p", "top_k"} & set(body)
        if sampling and version >= "2026-10-21":
            message = f"{sorted(sampling)[0]}: Extra inputs are not permitted"
            return 400, {}, json.dumps({"type": "error", "error": {"message": message}})
        return None

    server.fail = as_the_api_does
    answer = await attempt(config_of("anthropic", server.url), FULL)
    assert answer.text == "5"
    assert server.requests[-1][2].get("temperature", 1.0) <= 1.0


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_an_answer_cut_short_says_so_and_missing_figures_are_none(
    server: LLMServer, kind: str
) -> None:
    cut = {
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
    server.fail = lambda n: (200, {}, json.dumps(cut[kind]))
    answer = await attempt(config_of(kind, server.url))
    assert (answer.text, answer.truncated, answer.model, answer.id) == ("", True, "model-x", None)
    figures = {"openai": (None, None), "anthropic": (9, 0)}
    assert (answer.input_tokens, answer.output_tokens) == figures[kind]


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


async def test_real_instructor_is_spoken_to_below_its_wrapping(server: LLMServer) -> None:
    instructor = pytest.importorskip("instructor")
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as bare:
        wrapped = instructor.from_openai(bare)
        assert (await complete(wrapped, "model-x", REQUEST)).text == "4"


def test_a_client_belongs_to_its_loop_and_is_made_once_in_it() -> None:
    config = config_of("openai", "http://127.0.0.1:9")

    async def clients() -> tuple[Any, Any, Any]:
        first, second = config.client, config.client
        await config.aclose()
        return first, second, config.client

    first, second, after_closing = asyncio.run(clients())
    other_loop, _, _ = asyncio.run(clients())
    assert first is second
    assert len({id(client) for client in (first, after_closing, other_loop)}) == 3
    assert first.is_closed()


async def test_the_rehearsal_answers_without_a_network_and_for_nothing() -> None:
    config = rehearsal_account()
    answer = await attempt(config)
    assert (answer.text, answer.model) == ("4", "rehearsal")
    assert config.priced
    assert config.cost(1e6, 1e6) == 0.0
    assert config.roles == ROLES


# ---------------------------------------------------------------------- failures

OPENAI_NO_CREDIT = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details. "
        "For more information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
}
ANTHROPIC_NO_CREDIT = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "Your credit balance is too low to access the Anthropic API. "
        "Please go to Plans & Billing to upgrade or purchase credits.",
    },
}
# A free tier's limit of requests a minute: the words are those of an empty purse, the cure is
# to wait.
GEMINI_MINUTE_LIMIT = [
    {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing "
            "details. For more information on this error, head to: "
            "https://ai.google.dev/gemini-api/docs/rate-limits. * Quota exceeded for metric: "
            "generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 10 "
            "Please retry in 11.665902715s.",
            "status": "RESOURCE_EXHAUSTED",
        }
    }
]
GEMINI_BAD_KEY = [
    {
        "error": {
            "code": 400,
            "message": "API key not valid. Please pass a valid API key.",
            "status": "INVALID_ARGUMENT",
        }
    }
]
PLAIN = {"type": "error", "error": {"type": "some_error", "message": "so it is"}}


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("status", "headers", "body", "expected", "retry_after"),
    [
        (400, {}, PLAIN, "bad_request", None),
        (401, {}, PLAIN, "account_out", None),
        (402, {}, PLAIN, "account_out", None),
        (403, {}, PLAIN, "account_out", None),
        (404, {}, PLAIN, "account_out", None),
        (408, {}, PLAIN, "transient", None),
        (409, {}, PLAIN, "transient", None),
        (413, {}, PLAIN, "bad_request", None),
        (422, {}, PLAIN, "bad_request", None),
        (429, {}, PLAIN, "rate_limited", None),
        (429, {"Retry-After": "7"}, PLAIN, "rate_limited", 7.0),
        (429, {"retry-after-ms": "1500", "Retry-After": "7"}, PLAIN, "rate_limited", 1.5),
        (429, {"retry-after-ms": "soon", "Retry-After": "7"}, PLAIN, "rate_limited", 7.0),
        (429, {"Retry-After": "-3"}, PLAIN, "rate_limited", 0.0),
        (429, {"Retry-After": "Sat, 14 Mar 2020 09:26:53 GMT"}, PLAIN, "rate_limited", 0.0),
        (429, {"Retry-After": "later"}, PLAIN, "rate_limited", None),
        (429, {"Retry-After": "9"}, OPENAI_NO_CREDIT, "account_out", None),
        (500, {}, PLAIN, "transient", None),
        (502, {}, "<html>Bad gateway</html>", "transient", None),
        (503, {"Retry-After": "7"}, PLAIN, "transient", None),
        (529, {}, PLAIN, "transient", None),
    ],
)
async def test_a_status_means_the_same_whichever_sdk_brings_it(
    server: LLMServer,
    kind: str,
    status: int,
    headers: dict[str, str],
    body: Any,
    expected: str,
    retry_after: float | None,
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    server.fail = lambda n: (status, headers, text)
    failure = await failure_of(config_of(kind, server.url))
    assert (failure.kind, failure.retry_after, failure.status) == (expected, retry_after, status)
    assert len(server.requests) == 1  # the SDK's own retries are off
    if body is PLAIN:
        assert "so it is" in failure.reason


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_date_in_retry_after_is_understood(server: LLMServer, kind: str) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.fail = lambda n: (429, {"Retry-After": in_an_hour}, json.dumps(PLAIN))
    failure = await failure_of(config_of(kind, server.url))
    assert failure.kind == "rate_limited"
    assert 1800 < failure.retry_after <= 3600


@pytest.mark.parametrize(
    ("kind", "status", "body", "expected"),
    [
        # anthropics/claude-code#66314: no credit is a 400 there
        ("anthropic", 400, ANTHROPIC_NO_CREDIT, "account_out"),
        # continuedev/continue#9570: what Gemini's free tiers say when a minute is full
        ("openai", 429, GEMINI_MINUTE_LIMIT, "rate_limited"),
        # continuedev/continue#10530: a bad key is a 400 there
        ("openai", 400, GEMINI_BAD_KEY, "account_out"),
    ],
    ids=["Anthropic without credit", "Gemini's minute limit", "Gemini's bad key"],
)
async def test_providers_with_statuses_of_their_own_are_understood(
    server: LLMServer, kind: str, status: int, body: Any, expected: str
) -> None:
    server.fail = lambda n: (status, {}, json.dumps(body))
    assert (await failure_of(config_of(kind, server.url))).kind == expected


class Telephone:
    """A server below HTTP: takes each connection, hears the request out, then does `what`."""

    def __init__(self, what: str):
        self.what = what
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.kept: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:  # closed: the test is over
                return
            line.recv(65536)
            if self.what == "says nothing":
                self.kept.append(line)
                continue
            if self.what == "breaks off":
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                line.sendall(b'Content-Length: 5000\r\n\r\n{"id": "chatcmpl-1", "cho')
            if self.what == "shows a page":
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n")
                line.sendall(b"Content-Length: 15\r\n\r\n<html>Hi</html>")
            if self.what == "talks nonsense":
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                line.sendall(b'Content-Length: 6\r\n\r\n{"id":')
            line.close()

    def close(self) -> None:
        self.listener.close()
        for line in self.kept:
            line.close()


@pytest.fixture
def telephone() -> Iterator[Callable[[str], Telephone]]:
    """Starts servers below HTTP; each is closed when the test ends."""
    started: list[Telephone] = []

    def start(what: str) -> Telephone:
        started.append(Telephone(what))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("what", "options", "named"),
    [
        # openai's aiohttp transport calls a broken connection a timeout, anthropic's does not
        ("hangs up", {}, ("APIConnectionError", "APITimeoutError")),
        ("breaks off", {}, ("APIConnectionError", "APITimeoutError")),
        ("says nothing", {"timeout": 0.3}, ("APITimeoutError",)),
        ("talks nonsense", {}, ("JSONDecodeError",)),
        ("shows a page", {}, ("ValueError: the provider's answer is no",)),
    ],
)
async def test_a_line_that_fails_is_a_passing_fault(
    telephone: Callable[[str], Telephone],
    kind: str,
    what: str,
    options: dict[str, Any],
    named: tuple[str, ...],
) -> None:
    failure = await failure_of(config_of(kind, telephone(what).url), **options)
    assert (failure.kind, failure.status, failure.retry_after) == ("transient", None, None)
    assert failure.reason.startswith(named)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_server_that_is_not_there_is_a_passing_fault(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    failure = await failure_of(config_of(kind, url))
    assert failure.kind == "transient"
    assert failure.reason.startswith(("APIConnectionError", "APITimeoutError"))


async def test_an_answer_without_any_choice_is_a_passing_fault(server: LLMServer) -> None:
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
    server.fail = lambda n: (200, {}, json.dumps(body))
    assert await failure_of(config_of("openai", server.url)) == Failure(
        "transient", "ValueError: the provider's answer is no chat completion"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("slow"), "transient"),
        (ConnectionResetError("gone"), "transient"),
        (KeyError("a bug of ours"), "bad_request"),  # never retried blindly
    ],
)
def test_other_exceptions_have_their_meaning_too(error: Exception, kind: str) -> None:
    assert classify(error).kind == kind


# ---------------------------------------------------------------------- secrets

KEYS = [
    KEY,
    "sk-proj-AbCd1234-EfGh5678_IjKl",
    "sk-ant-api03-AbCd1234EfGh5678",
    "gsk_AbCd1234EfGh5678IjKl",
    "AIzaSyAbCd1234EfGh5678IjKl",
    "weird.key/with+signs==",
]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_a_key_that_the_provider_quotes_back_is_not_in_the_reason(
    server: LLMServer, kind: str, key: str, status: int
) -> None:
    quote = f"Incorrect API key provided: {key}. You can find your key ({key}) elsewhere."
    server.fail = lambda n: (status, {}, json.dumps({"error": {"message": quote}}))
    config = LLMClientConfig(
        name="it",
        model="m",
        kind=kind,
        base_url=f"{server.url}/v1" if kind == "openai" else server.url,
        api_key=key,
    )
    failure = await failure_of(config)
    assert key not in failure.reason
    assert "Incorrect API key provided: ***" in failure.reason
    assert key not in repr(failure)
    assert key not in repr(config) + str(config)


async def test_a_key_quoted_in_part_is_masked_by_its_prefix(server: LLMServer) -> None:
    body = {"error": {"message": "Incorrect API key provided: sk-pr****************5678."}}
    server.fail = lambda n: (401, {}, json.dumps(body))
    failure = await failure_of(config_of("openai", server.url))
    assert "5678" not in failure.reason
