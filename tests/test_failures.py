"""What a failed call means, for the account and for the item, whichever transport brought it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from conftest import ROOT, LLMServer
from question_optimizer.failures import Failure, classify, retry_after
from question_optimizer.providers import LLMClientConfig
from question_optimizer.wire import CallError, ChatRequest, send

sys.path.insert(0, str(ROOT / "benchmarks"))

from limit_server import Server
from limit_server import running as limit_server

KEY = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key
REQUEST = ChatRequest(system="Be brief.", messages=(("user", "What is 2+2?"),))
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


@pytest.fixture(scope="module")
def faulty() -> Iterator[Server]:
    """The server that plays faults; each test configures it anew."""
    with limit_server() as started:
        yield started


def config_of(kind: Any, url: str, transport: Any = "direct", **fields: Any) -> LLMClientConfig:
    base_url = f"{url}/v1" if kind == "openai" else url
    given = {"model": "model-x", "api_key": KEY, **fields}
    return LLMClientConfig("it", kind=kind, base_url=base_url, transport=transport, **given)


async def failure_of(config: LLMClientConfig) -> Failure:
    """What becomes of one attempt that fails."""
    try:
        with pytest.raises(Exception) as raised:  # whatever is raised is what is classified
            await send(config, REQUEST)
    finally:
        await config.aclose()
    return classify(raised.value, secrets=[config.api_key])


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


@pytest.mark.parametrize(("kind", "transport"), WAYS)
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
        (429, {"Retry-After": "-3"}, PLAIN, "rate_limited", None),
        (429, {"Retry-After": "Sat, 14 Mar 2020 09:26:53 GMT"}, PLAIN, "rate_limited", 0.0),
        (429, {"Retry-After": "later"}, PLAIN, "rate_limited", None),
        (429, {"Retry-After": "9"}, OPENAI_NO_CREDIT, "account_out", None),
        (500, {}, PLAIN, "transient", None),
        (502, {}, "<html>Bad gateway</html>", "transient", None),
        (503, {"Retry-After": "7"}, PLAIN, "transient", 7.0),
        (529, {}, PLAIN, "transient", None),
    ],
)
async def test_a_status_means_the_same_whichever_transport_brings_it(
    server: LLMServer,
    kind: str,
    transport: str,
    status: int,
    headers: dict[str, str],
    body: Any,
    expected: str,
    retry_after: float | None,
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    server.fail = lambda n: (status, headers, text)
    failure = await failure_of(config_of(kind, server.url, transport))
    assert (failure.kind, failure.retry_after, failure.status) == (expected, retry_after, status)
    assert len(server.requests) == 1  # the SDK's own retries are off
    if body is PLAIN:
        assert "so it is" in failure.reason


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_date_in_retry_after_is_understood(
    server: LLMServer, kind: str, transport: str
) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.fail = lambda n: (429, {"Retry-After": in_an_hour}, json.dumps(PLAIN))
    failure = await failure_of(config_of(kind, server.url, transport))
    assert failure.kind == "rate_limited"
    assert failure.retry_after is not None and 1800 < failure.retry_after <= 3600


@pytest.mark.parametrize("transport", ["direct", "sdk"])
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
    server: LLMServer, kind: str, transport: str, status: int, body: Any, expected: str
) -> None:
    server.fail = lambda n: (status, {}, json.dumps(body))
    assert (await failure_of(config_of(kind, server.url, transport))).kind == expected


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
            if self.what == "is no HTTP":
                line.sendall(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
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


# What each transport's own exceptions are called; a person reads these in the account's reason.
SDK_CONNECTION = ("APIConnectionError: ", "APITimeoutError: ")
NO_JSON = "AnswerError: the provider's answer is no JSON"
BROKEN_LINES: dict[str, dict[str, tuple[str, ...]]] = {
    # openai's aiohttp transport calls a broken connection a timeout, anthropic's does not
    "hangs up": {"direct": ("LineError: ServerDisconnectedError",), "sdk": SDK_CONNECTION},
    "breaks off": {"direct": ("LineError: ClientPayloadError",), "sdk": SDK_CONNECTION},
    "says nothing": {"direct": ("TimeoutError",), "sdk": ("TimeoutError", "APITimeoutError: ")},
    "talks nonsense": {"direct": (NO_JSON,), "sdk": (NO_JSON,)},
    "shows a page": {"direct": (NO_JSON,), "sdk": (NO_JSON,)},
    "is no HTTP": {"direct": ("LineError: ClientResponseError",), "sdk": SDK_CONNECTION},
}


@pytest.mark.parametrize("what", BROKEN_LINES)
@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_line_that_fails_is_a_passing_fault(
    telephone: Callable[[str], Telephone],
    kind: str,
    transport: str,
    what: str,
) -> None:
    timeout = 0.3 if what == "says nothing" else 30.0
    failure = await failure_of(config_of(kind, telephone(what).url, transport, timeout=timeout))
    assert (failure.kind, failure.status, failure.retry_after) == ("transient", None, None)
    assert failure.reason.startswith(BROKEN_LINES[what][transport])


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_server_that_is_not_there_is_a_passing_fault(kind: str, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    failure = await failure_of(config_of(kind, url, transport))
    assert failure.kind == "transient"
    assert failure.reason.startswith(("LineError: ClientConnectorError", *SDK_CONNECTION))


@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_an_answer_without_any_choice_is_a_passing_fault(
    server: LLMServer, transport: str
) -> None:
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
    server.fail = lambda n: (200, {}, json.dumps(body))
    assert await failure_of(config_of("openai", server.url, transport)) == Failure(
        "transient", "AnswerError: the provider's answer is no chat completion"
    )


# ---------------------------------------------------------------------- a provider's faults

FAULTS = {
    "500": "transient",
    "503": "transient",
    "529": "transient",
    "malformed": "transient",
    "not_json": "transient",
    "error_in_200": "transient",
    "empty_choices": "transient",
    "stall": "transient",
    "reset": "transient",
    "reset_before": "transient",
    "bare_429": "rate_limited",
    "context_length": "bad_request",
    "content_filter": "bad_request",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_fault_of_the_server_is_known_for_what_it_is(
    faulty: Server, kind: str, transport: str, fault: str
) -> None:
    if (kind, fault) == ("anthropic", "empty_choices"):
        pytest.skip("a message without content is one; Anthropic sends it after a tool's result")
    faulty.configure({"default": {"faults": [{"kind": fault}]}})
    timeout = 0.4 if fault == "stall" else 30.0
    failure = await failure_of(config_of(kind, faulty.url, transport, timeout=timeout))
    assert failure.kind == FAULTS[fault]
    assert faulty.stats()["keys"][KEY]["arrived"] == 1
    if fault == "error_in_200":
        assert "Provider returned error" in failure.reason


@pytest.mark.parametrize("refuse", [401, 402, 403, 404, "insufficient_quota"])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_dead_account_is_known_as_dead(
    faulty: Server, kind: str, transport: str, refuse: int | str
) -> None:
    faulty.configure({"default": {"refuse": refuse}})
    failure = await failure_of(config_of(kind, faulty.url, transport))
    assert failure.kind == "account_out"
    assert faulty.stats()["keys"][KEY]["refused"] == 1


@pytest.mark.parametrize("retry_after", ["int", "ms", "date", "zero", "none"])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_however_the_wait_is_told_it_is_understood(
    faulty: Server, kind: str, transport: str, retry_after: str
) -> None:
    limit = {"limit": 1, "window": 20, "kind": "fixed"}
    faulty.configure(
        {"default": {"requests": limit, "retry_after": retry_after, "tokens_used": None}}
    )
    config = config_of("openai", faulty.url)  # takes the one that there is
    await send(config, REQUEST)
    await config.aclose()
    failure = await failure_of(config_of(kind, faulty.url, transport))
    assert (failure.kind, failure.status, failure.scope) == ("rate_limited", 429, "requests")
    if retry_after in ("int", "ms", "date"):
        assert failure.retry_after is not None and 5 < failure.retry_after <= 22
    else:
        assert failure.retry_after == {"zero": 0.0, "none": None}[retry_after]


SCOPES = {
    "requests": {"requests": {"limit": 1, "kind": "fixed"}},
    "tokens": {"tokens": {"limit": 60, "kind": "fixed"}},
    "input_tokens": {"input_tokens": {"limit": 30, "kind": "fixed"}},
    "output_tokens": {"output_tokens": {"limit": 40, "kind": "fixed"}},
    "day": {"day": {"requests": 1}},
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_refusal_names_the_limit_that_it_is_about(
    faulty: Server, kind: str, transport: str, scope: str
) -> None:
    faulty.configure({"default": SCOPES[scope]})
    config = config_of("openai", faulty.url)
    await send(config, REQUEST)
    await config.aclose()
    failure = await failure_of(config_of(kind, faulty.url, transport))
    assert (failure.kind, failure.scope) == ("rate_limited", scope)


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_refusal_for_too_many_at_once_is_known_as_that(
    faulty: Server, kind: str, transport: str
) -> None:
    faulty.configure({"default": {"in_flight": 1, "latency": 30}})
    first = config_of("openai", faulty.url)
    held = asyncio.create_task(send(first, REQUEST))
    while not faulty.stats()["keys"].get(KEY, {}).get("in_flight"):
        await asyncio.sleep(0.01)
    failure = await failure_of(config_of(kind, faulty.url, transport))
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await first.aclose()
    assert (failure.kind, failure.scope, failure.retry_after) == ("rate_limited", "in_flight", None)


def message_of(message: str, status: int, **headers: str) -> CallError:
    return CallError(message, status, {name.replace("_", "-"): v for name, v in headers.items()})


@pytest.mark.parametrize(
    ("said", "scope"),
    [
        ("Rate limit reached for gpt-4o on requests per min (RPM): Limit 3, Used 3", "requests"),
        ("Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000", "tokens"),
        ("Rate limit reached for gpt-4o on requests per day (RPD): Limit 200", "day"),
        ("Rate limit reached on tokens per day (TPD): Limit 100000, Used 99999", "day"),
        (
            "This request would exceed your organization's rate limit of 50,000 input tokens per "
            "minute",
            "input_tokens",
        ),
        (
            "This request would exceed your rate limit of 8,000 output tokens per minute",
            "output_tokens",
        ),
        ("Number of concurrent connections has exceeded your rate limit", "in_flight"),
        ("too many simultaneous requests", "in_flight"),
        ("slow down", None),
        ("", None),
    ],
)
def test_the_words_of_a_refusal_tell_which_limit_it_is(said: str, scope: str | None) -> None:
    assert classify(message_of(said, 429)).scope == scope


def test_an_empty_limit_in_the_headers_tells_scope_and_wait() -> None:
    empty = message_of(
        "slow down",
        429,
        x_ratelimit_limit_tokens="1000",
        x_ratelimit_remaining_tokens="0",
        x_ratelimit_reset_tokens="6s",
    )
    failure = classify(empty)
    assert (failure.scope, failure.retry_after) == ("tokens", 6.0)
    [limit] = failure.announced
    assert (limit.limit, limit.remaining) == (1000.0, 0.0)


def test_a_request_too_large_for_any_minute_is_the_items_own_fault() -> None:
    said = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000."
    assert classify(message_of(said, 429)).kind == "bad_request"


@pytest.mark.parametrize("status", [300, 302, 307, 308])
def test_an_answer_that_is_no_error_and_no_answer_is_a_passing_fault(status: int) -> None:
    assert classify(message_of("moved", status)).kind == "transient"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7.5"}, 7.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "1970-01-01T00:01:40Z"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "-250"}, None),
        ({"retry-after-ms": "soon"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_spellings(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, 10.0) == seconds


def test_a_wait_in_milliseconds_that_never_ends_is_none() -> None:
    assert retry_after({"retry-after-ms": "inf"}, 10.0) is None


@pytest.mark.parametrize(("kind", "transport"), WAYS)
@pytest.mark.parametrize("status", [401, 429, 500])
async def test_the_reason_of_an_empty_refusal_says_at_least_the_status(
    server: LLMServer, kind: str, transport: str, status: int
) -> None:
    server.fail = lambda n: (status, {}, "")
    failure = await failure_of(config_of(kind, server.url, transport))
    assert str(status) in failure.reason


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


@pytest.mark.parametrize(("kind", "transport"), WAYS)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_a_key_that_the_provider_quotes_back_is_not_in_the_reason(
    server: LLMServer, kind: str, transport: str, key: str, status: int
) -> None:
    quote = f"Incorrect API key provided: {key}. You can find your key ({key}) elsewhere."
    server.fail = lambda n: (status, {}, json.dumps({"error": {"message": quote}}))
    config = config_of(kind, server.url, transport, api_key=key)
    failure = await failure_of(config)
    assert key not in failure.reason
    assert "Incorrect API key provided: ***" in failure.reason
    assert key not in repr(failure)
    assert key not in repr(config) + str(config)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("body", ["page", "list", "text", "error in 200", "cut"])
@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_a_key_is_masked_however_the_provider_wraps_it(
    server: LLMServer, transport: str, body: str, key: str
) -> None:
    quote = f"no such key: {key}"
    bodies = {
        "page": (401, f"<html><body>{quote}</body></html>"),
        "list": (401, json.dumps([{"error": {"message": quote, "code": key}}])),
        "text": (401, json.dumps({"error": quote})),
        "error in 200": (200, json.dumps({"error": {"message": quote}})),
        # the 200 characters that a reason keeps end in the middle of the key
        "cut": (401, json.dumps({"error": {"message": "x" * 190 + " " + quote}})),
    }
    status, text = bodies[body]
    server.fail = lambda n: (status, {}, text)
    failure = await failure_of(config_of("openai", server.url, transport, api_key=key))
    assert key not in failure.reason
    assert key[:8] not in failure.reason


@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_a_key_quoted_in_part_is_masked_by_its_prefix(
    server: LLMServer, transport: str
) -> None:
    body = {"error": {"message": "Incorrect API key provided: sk-pr****************5678."}}
    server.fail = lambda n: (401, {}, json.dumps(body))
    failure = await failure_of(config_of("openai", server.url, transport))
    assert "5678" not in failure.reason
