"""A local server that stands in for LLM providers and enforces their limits, for measurements.

    python benchmarks/limit_server.py --port 0        # prints {"port": 12345}, serves until killed

    with running() as server:                         # or from Python, in a process of its own
        server.configure({"default": {"requests": {"limit": 60, "kind": "sliding"}}})
        ...                                           # OpenAI(base_url=server.base_url, ...)
        print(server.stats()["keys"])                 # Anthropic(base_url=server.url, ...)

It speaks OpenAI's POST /v1/chat/completions and Anthropic's POST /v1/messages, real HTTP/1.1 on
loopback. POST /admin sets a configuration and forgets all counts; GET /stats tells the counts; a
misspelt setting is answered with 400. All settings are optional:

    {"seed": 0, "keep_times": false, "default": KEY, "keys": {"k0": KEY, ...}}

    KEY: what one API key is allowed and how it is answered
      requests, tokens,            {"limit": 600, "window": 60, "kind": "bucket"}. The kinds:
      input_tokens, output_tokens    bucket   refills evenly, holds "burst" (default: limit)
                                     fixed    windows that begin at /admin plus "offset" seconds
                                     sliding  an exact log of what was accepted
                                   tokens also have "count": "used", prompt and completion of the
                                   reply, or "reserved", prompt estimate and max_tokens (Azure)
      day, day_retry_after         {"requests": 500, "tokens": 100000} since /admin; 3600 s
      in_flight                    calls at once; in_flight_retry_after: seconds, default untold
      refuse                       a dead account: 401, 402, 403, 404 or "insufficient_quota"
      retry_after                  how a 429 tells the wait: "int", "ms", "date", "zero", "none"
      headers                      "none", "openai", "groq" (requests per day), "anthropic"
      latency, jitter              seconds, and the sigma of a lognormal factor
      tokens_used, text            [prompt, completion], null estimates them; the reply's text
      reply                        "text", or "rehearsal": what question_optimizer.rehearsal says
      faults                       [{"kind": K, "p": 0.2, "from": 0, "to": 1e9}], seconds since
                                   /admin, or since the answer number "after" was delivered; the
                                   first whose draw hits applies. "marker": only
                                   requests that hold this text. "draw": "turn", one draw a call
                                   of the key, or "request": by the seed, the request and how
                                   often it came before, whatever the order of arrival

    K: 500 503 529 malformed not_json error_in_200 empty_choices
       unreadable                                 a whole reply that keeps to no format
       bare_429 context_length content_filter     4xx, at once, take nothing from the limits
       stall slow_body                            over "seconds"
       reset reset_before                         TCP reset after half of the body, or before it
       burst                                      503 for all, "for" 2 s at the start of each
                                                  "every" 20 s, counted from "from"

/stats counts the answers `delivered` and how many different requests they answered (`requests`):
the difference was asked again, by intent (samples) or not. `abandoned` calls were let in, and the
client was gone before their answer; `unread` ones were answered less than 0.25 s before it was gone
and nothing else came on their connection, so perhaps they were never read.

A call that is refused takes nothing from any limit. Times are whole nanoseconds and levels whole
numbers, so a limit is exact: the wait told is the shortest after which the call is let in.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import http.client
import json
import math
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
KEPT_TIMES = 2000
_READ_SECONDS = 0.25  # by then a client that lives has read its answer
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXT = (
    "[[ ## answer ## ]]\nParis is the capital of France, and has been so for most of its history."
    "\n\n[[ ## completed ## ]]\n"
)
UNREADABLE = "I would rather talk about the weather."
OPENAI, ANTHROPIC = "openai", "anthropic"
STYLES = {"/v1/chat/completions": OPENAI, "/v1/messages": ANTHROPIC}


# ---------------------------------------------------------------------- windows


class Window(Protocol):
    """A limit at work. Units are requests or tokens; times and waits are nanoseconds."""

    limit: int

    def wait(self, units: int, now: int) -> int:
        """How long until `units` fit, 0 if now; for more than ever fit, until it is full."""
        ...

    def take(self, units: int, now: int) -> None: ...

    def left(self, now: int) -> int: ...

    def full_in(self, now: int) -> int: ...


class Bucket:
    """Holds `burst` units and gains `limit` per window, evenly.

    The level counts units times the window's nanoseconds: a nanosecond then adds exactly `limit`,
    and no rounding ever adds up.
    """

    def __init__(self, limit: Limit, now: int):
        self.limit, self._window = limit.limit, round(limit.window * SECOND)
        self._most = round((limit.limit if limit.burst is None else limit.burst) * self._window)
        self._level, self._time = self._most, now

    def _refill(self, now: int) -> None:
        self._level = min(self._most, self._level + (now - self._time) * self.limit)
        self._time = now

    def wait(self, units: int, now: int) -> int:
        self._refill(now)
        missing = units * self._window - self._level
        if missing <= 0:
            return 0
        return max(1, -(-min(missing, self._most - self._level) // self.limit))

    def take(self, units: int, now: int) -> None:
        self._refill(now)
        self._level -= units * self._window

    def left(self, now: int) -> int:
        self._refill(now)
        return self._level // self._window

    def full_in(self, now: int) -> int:
        self._refill(now)
        return -(-(self._most - self._level) // self.limit)


class Fixed:
    """`limit` units in each window of the clock, as if every window began anew."""

    def __init__(self, limit: Limit, now: int):
        self.limit, self._window = limit.limit, round(limit.window * SECOND)
        self._start = now + round(limit.offset * SECOND)
        self._used = 0

    def _turn(self, now: int) -> None:
        passed = (now - self._start) // self._window
        if passed:
            self._start += passed * self._window
            self._used = 0

    def wait(self, units: int, now: int) -> int:
        return 0 if units <= self.left(now) else self.full_in(now)

    def take(self, units: int, now: int) -> None:
        self._turn(now)
        self._used += units

    def left(self, now: int) -> int:
        self._turn(now)
        return self.limit - self._used

    def full_in(self, now: int) -> int:
        """Until the window ends, whatever was used: so do providers tell it."""
        self._turn(now)
        return self._start + self._window - now


class Sliding:
    """At most `limit` units in any stretch of one window: a log of everything accepted."""

    def __init__(self, limit: Limit, now: int):
        self.limit, self._window = limit.limit, round(limit.window * SECOND)
        self._log: deque[tuple[int, int]] = deque()
        self._used = 0

    def _forget(self, now: int) -> None:
        while self._log and now - self._log[0][0] >= self._window:
            self._used -= self._log.popleft()[1]

    def wait(self, units: int, now: int) -> int:
        missing = units - self.left(now)
        if missing <= 0:
            return 0
        for taken_at, taken in self._log:
            missing -= taken
            if missing <= 0:
                return taken_at + self._window - now
        return max(1, self.full_in(now))

    def take(self, units: int, now: int) -> None:
        self._log.append((now, units))
        self._used += units

    def left(self, now: int) -> int:
        self._forget(now)
        return self.limit - self._used

    def full_in(self, now: int) -> int:
        self._forget(now)
        return self._log[-1][0] + self._window - now if self._log else 0


WINDOWS: dict[str, Callable[[Limit, int], Window]] = {
    "bucket": Bucket,
    "fixed": Fixed,
    "sliding": Sliding,
}


# ---------------------------------------------------------------------- configuration


def _one_of(name: str, value: object, allowed: Mapping[str, object] | tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(allowed)}")


@dataclass(frozen=True)
class Limit:
    limit: int
    window: float = 60.0
    kind: str = "bucket"
    burst: float | None = None
    offset: float = 0.0
    count: str = "used"

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, WINDOWS)
        _one_of("count", self.count, ("used", "reserved"))
        if not (isinstance(self.limit, int) and self.limit > 0 and self.window > 0):
            raise ValueError("limit is a whole number above 0, window seconds above 0")

    def begin(self, now: int) -> Window:
        return WINDOWS[self.kind](self, now)


AT_ONCE = ("bare_429", "context_length", "content_filter")
BROKEN_CONNECTION = ("stall", "slow_body", "reset", "reset_before")
PLAIN_FAULTS = "500 503 529 burst malformed not_json error_in_200 empty_choices unreadable".split()
FAULTS = (*AT_ONCE, *BROKEN_CONNECTION, *PLAIN_FAULTS)


@dataclass(frozen=True)
class Fault:
    kind: str
    p: float = 1.0
    from_: float = 0.0
    to: float = 1e9
    after: int = 0
    seconds: float | None = None
    every: float = 20.0
    for_: float = 2.0
    marker: str = ""
    draw: str = "turn"

    def __post_init__(self) -> None:
        _one_of("fault", self.kind, FAULTS)
        _one_of("draw", self.draw, ("turn", "request"))

    def hits(self, draw: float, elapsed: float) -> bool:
        if not self.from_ <= elapsed < self.to:
            return False
        if self.kind == "burst":
            return (elapsed - self.from_) % self.every < self.for_
        return draw < self.p

    @property
    def lasts(self) -> float:
        return (3600.0 if self.kind == "stall" else 5.0) if self.seconds is None else self.seconds


@dataclass(frozen=True)
class DayLimit:
    requests: float = math.inf
    tokens: float = math.inf


@dataclass(frozen=True)
class KeyConfig:
    """What one key is allowed and how it is answered; the module's docstring explains each."""

    requests: Limit | None = None
    tokens: Limit | None = None
    input_tokens: Limit | None = None
    output_tokens: Limit | None = None
    day: DayLimit = field(default_factory=DayLimit)
    day_retry_after: float = 3600.0
    in_flight: float = math.inf
    in_flight_retry_after: float | None = None
    refuse: int | str | None = None
    retry_after: str = "int"
    headers: str = "none"
    latency: float = 0.0
    jitter: float = 0.0
    tokens_used: tuple[int, int] | None = (24, 32)
    text: str = TEXT
    reply: str = "text"
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _one_of("reply", self.reply, ("text", "rehearsal"))
        _one_of("retry_after", self.retry_after, RETRY_AFTER)
        _one_of("headers", self.headers, HEADERS)
        if not isinstance(self.refuse, int | None):
            _one_of("refuse", self.refuse, ("insufficient_quota",))

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> KeyConfig:
        """From JSON. An unknown name is a TypeError, an unknown value a ValueError."""
        made = dict(raw)
        for name in ("requests", "tokens", "input_tokens", "output_tokens"):
            if raw.get(name) is not None:
                made[name] = Limit(**raw[name])
        if raw.get("day") is not None:
            made["day"] = DayLimit(**raw["day"])
        if raw.get("tokens_used") is not None:
            prompt, completion = raw["tokens_used"]
            made["tokens_used"] = (int(prompt), int(completion))
        words = {"from": "from_", "for": "for_"}  # Python keeps these two for itself
        made["faults"] = tuple(
            Fault(**{words.get(name, name): value for name, value in fault.items()})
            for fault in raw.get("faults") or ()
        )
        kept = ("tokens_used",)  # where null has a meaning; elsewhere it is the default
        return cls(**{n: value for n, value in made.items() if value is not None or n in kept})


@dataclass(frozen=True)
class Config:
    seed: int = 0
    keep_times: bool = False
    default: KeyConfig = field(default_factory=lambda: KeyConfig())
    keys: Mapping[str, KeyConfig] = field(default_factory=dict)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Config:
        keys = {key: KeyConfig.read(value) for key, value in raw.get("keys", {}).items()}
        return cls(**{**raw, "default": KeyConfig.read(raw.get("default", {})), "keys": keys})


# ---------------------------------------------------------------------- requests


class Head(NamedTuple):
    """What matters of a request's first lines."""

    method: str
    path: str
    key: str
    length: int  # of the body; -1 if it comes in chunks
    close: bool
    expects: bool  # waits for a word before it sends the body


@functools.lru_cache(maxsize=4096)  # a client repeats itself, and so its calls cost no parsing
def parse_head(data: bytes) -> Head:
    """Raises ValueError for what is no HTTP request."""
    first, *lines = data.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    path = target.partition("?")[0]
    keys = (headers.get("x-api-key", ""), bearer)
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    return Head(
        method,
        path,
        (keys[0] or keys[1]) if STYLES.get(path) == ANTHROPIC else (keys[1] or keys[0]),
        -1 if chunked else int(headers.get("content-length", 0)),
        version == "HTTP/1.0" or headers.get("connection", "").lower() == "close",
        headers.get("expect", "").lower() == "100-continue",
    )


def read_body(data: bytes, start: int, length: int) -> tuple[bytes, int] | None:
    """(body, where the next request begins); None while some of it is still to come."""
    if length < 0:
        return _read_chunks(data, start)
    end = start + length
    return (data[start:end], end) if len(data) >= end else None


def _read_chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    parts: list[bytes] = []
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end].partition(b";")[0], 16)
        at = line_end + 2
        if size == 0:  # then trailers, mostly none, and an empty line
            end = data.find(b"\r\n\r\n", line_end)
            return (b"".join(parts), end + 4) if end >= 0 else None
        parts.append(data[at : at + size])
        at += size + 2
    return None


class Call(NamedTuple):
    """One request for a completion, and what it costs in each limit's units."""

    style: str
    model: str
    item: str
    input_tokens: int
    output_tokens: int
    used: int
    reserved: int
    body: bytes
    digest: str  # of all that the provider is told, in whatever order
    requests: int = 1


_ITEM = re.compile(r"item-(\d+)")


def read_call(style: str, body: bytes, tokens_used: tuple[int, int] | None) -> Call:
    """Raises ValueError for a body that a provider would not understand."""
    request = json.loads(body)
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        raise ValueError("messages: a list is required")
    if request.get("stream"):
        raise ValueError("stream: not supported here")
    estimate = max(1, len(body) // 4)
    prompt, completion = tokens_used or (estimate, 32)
    asked = request.get("max_tokens") or request.get("max_completion_tokens") or completion
    item = item_of(request["messages"]) if b"item-" in body else ""
    model = str(request.get("model", ""))
    told = json.dumps(request, sort_keys=True).encode()
    digest = hashlib.blake2b(told, digest_size=8).hexdigest()
    used, reserved = prompt + completion, estimate + int(asked)
    return Call(style, model, item, prompt, completion, used, reserved, body, digest)


def item_of(messages: list[Any]) -> str:
    """The digits of the first `item-<digits>` in the last user message, or nothing."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            text = content if isinstance(content, str) else json.dumps(content)
            found = _ITEM.search(text)
            return found[1] if found else ""
    return ""


# ---------------------------------------------------------------------- replies


def response(
    status: int, body: bytes, headers: bytes = b"", kind: bytes = b"application/json"
) -> bytes:
    first = b"HTTP/1.1 %b\r\ncontent-type: %b\r\n" % (_status_line(status), kind)
    return b"%bx-request-id: req_local\r\n%bcontent-length: %d\r\n\r\n%b" % (
        *(first, headers),
        *(len(body), body),
    )


@functools.cache
def _status_line(status: int) -> bytes:
    try:
        return f"{status} {HTTPStatus(status).phrase}".encode()
    except ValueError:
        return f"{status} Overloaded".encode()  # 529 is Anthropic's own


def json_response(status: int, content: object, headers: bytes = b"") -> bytes:
    return response(status, json.dumps(content).encode(), headers)


@functools.lru_cache(maxsize=4096)
def completion(call_style: str, model: str, text: str | None, tokens: tuple[int, int]) -> bytes:
    """A whole answer's body; text None: one without any choice."""
    make = _anthropic_message if call_style == ANTHROPIC else _openai_completion
    return json.dumps(make(model, text, *tokens)).encode()


@functools.lru_cache(maxsize=8192)  # a run that is repeated then costs the server little
def rehearsed(body: bytes) -> str:
    """What the rehearsal answers to either style's request."""
    sys.path[:0] = [_ROOT] if _ROOT not in sys.path else []
    from question_optimizer import rehearsal

    request = json.loads(body)
    system = [{"role": "system", "content": request["system"]}] if "system" in request else []
    return rehearsal.answer([*system, *request["messages"]])


def _openai_completion(model: str, text: str | None, prompt: int, output: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-local",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": model,
        "choices": [] if text is None else [choice],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_local",
    }


def _anthropic_message(model: str, text: str | None, prompt: int, output: int) -> dict[str, Any]:
    return {
        "id": "msg_local",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [] if text is None else [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": prompt, "output_tokens": output},
    }


def error_body(
    style: str, message: str, kind: str | None, code: str | int | None = None, **more: object
) -> dict[str, Any]:
    if style == ANTHROPIC:
        error = {"type": kind, "message": message}
        return {"type": "error", "error": error, "request_id": "req_local"}
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def dead_account(call: Call, refuse: int | str) -> bytes:
    """What a provider says to a key that will not work again, in its own words."""
    reason = "insufficient_quota" if refuse == 429 else refuse
    words = _ANTHROPIC_DEAD if call.style == ANTHROPIC else _OPENAI_DEAD
    status, kind, code, message = words.get(reason) or words[403]
    if isinstance(reason, int) and reason not in words:
        status = reason
    said = error_body(call.style, message.replace("{model}", call.model), kind, code)
    return json_response(status, said)


_INVALID = "invalid_request_error"
_OPENAI_DEAD: dict[int | str, tuple[int, str, str | None, str]] = {
    401: (
        *(401, _INVALID, "invalid_api_key"),
        "Incorrect API key provided: ****. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
    ),
    402: (402, "unknown_error", _INVALID, "Insufficient Balance"),
    403: (
        *(403, _INVALID, "account_deactivated"),
        "Your account is not active, please check your billing details on our website.",
    ),
    404: (
        *(404, _INVALID, "model_not_found"),
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "insufficient_quota": (
        *(429, "insufficient_quota", "insufficient_quota"),
        "You exceeded your current quota, please check your plan and billing details.",
    ),
}
_ANTHROPIC_DEAD: dict[int | str, tuple[int, str, str | None, str]] = {
    401: (401, "authentication_error", None, "invalid x-api-key"),
    402: (402, "billing_error", None, "There is an issue with your billing or payment."),
    403: (403, "permission_error", None, "Your API key has no permission for this resource."),
    404: (404, "not_found_error", None, "model: {model}"),
    "insufficient_quota": (
        *(400, _INVALID, None),
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
        "Billing to upgrade or purchase credits.",
    ),
}


def plain_fault(kind: str, call: Call, body: bytes, headers: bytes) -> bytes:
    """The reply of a fault that needs no trick with the connection; `body` is the healthy one."""
    if kind == "malformed":
        return response(200, body[: len(body) // 2], headers)
    if kind == "not_json":
        page = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"
        return response(200, page, headers, b"text/html")
    if kind in ("empty_choices", "unreadable"):
        tokens = (call.input_tokens, call.output_tokens)
        text = UNREADABLE if kind == "unreadable" else None
        return response(200, completion(call.style, call.model, text, tokens), headers)
    if kind == "error_in_200":
        said = error_body(call.style, "Provider returned error", "api_error", 502)
        return json_response(200, said, headers)
    status = 503 if kind == "burst" else int(kind)
    openai = call.style == OPENAI
    name = "server_error" if openai else "api_error" if status == 500 else "overloaded_error"
    said = error_body(call.style, "The server is overloaded or had an error.", name)
    return json_response(status, said)


_REFUSED_INPUT = {
    ("context_length", OPENAI): "This model's maximum context length is 8192 tokens. However, your "
    "messages resulted in 9000 tokens. Please reduce the length of the messages.",
    ("context_length", ANTHROPIC): "prompt is too long: 210000 tokens > 200000 maximum",
    ("content_filter", OPENAI): "The response was filtered due to the prompt triggering Azure "
    "OpenAI's content management policy. Please modify your prompt and retry.",
    ("content_filter", ANTHROPIC): "Output blocked by content filtering policy",
}


def refused_input(kind: str, style: str) -> bytes:
    """The reply of a fault that is the request's own, or that tells nothing at all."""
    if kind == "bare_429":
        return b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
    code, param = {
        "context_length": ("context_length_exceeded", "messages"),
        "content_filter": ("content_filter", "prompt"),
    }[kind]
    message = _REFUSED_INPUT[kind, style]
    return json_response(400, error_body(style, message, _INVALID, code, param=param))


def _lines(pairs: Mapping[str, object]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in pairs.items()).encode()


def duration(nanoseconds: int) -> str:
    """As Go and OpenAI write it, rounded up to milliseconds: 120ms, 1s, 6m0s, 7.66s."""
    milliseconds = -(-nanoseconds // 1_000_000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _clock(nanoseconds: int) -> int:
    """The whole second of the wall clock by which `nanoseconds` will have passed."""
    return math.ceil(time.time() + nanoseconds / SECOND)


def _retry_int(wait: int) -> dict[str, object]:
    return {"retry-after": max(1, -(-wait // SECOND))}


RETRY_AFTER: dict[str, Callable[[int], dict[str, object]]] = {
    "int": _retry_int,
    "ms": lambda wait: {**_retry_int(wait), "retry-after-ms": max(1, -(-wait // 1_000_000))},
    "date": lambda wait: {"retry-after": formatdate(_clock(wait), usegmt=True)},
    "zero": lambda wait: {"retry-after": 0},
    "none": lambda wait: {},
}


class Level(NamedTuple):
    """How a limit stands, for the headers."""

    limit: int
    left: int
    full_in: int


def _openai_headers(levels: Mapping[str, Level], day: Level | None) -> bytes:
    told = {name: levels[name] for name in ("requests", "tokens") if name in levels}
    pairs: dict[str, object] = {}
    for name, level in told.items():
        pairs[f"x-ratelimit-limit-{name}"] = level.limit
        pairs[f"x-ratelimit-remaining-{name}"] = max(0, level.left)
        pairs[f"x-ratelimit-reset-{name}"] = duration(level.full_in)
    return _lines(pairs)


def _groq_headers(levels: Mapping[str, Level], day: Level | None) -> bytes:
    """OpenAI's names, but requests are the day's and tokens the minute's."""
    told = {"requests": day} if day else {}
    if "tokens" in levels:
        told["tokens"] = levels["tokens"]
    return _openai_headers(told, None)


def _anthropic_headers(levels: Mapping[str, Level], day: Level | None) -> bytes:
    """`tokens` is the sum of input and output where it has no limit of its own."""
    told = dict(levels)
    if "tokens" not in told and {"input_tokens", "output_tokens"} <= told.keys():
        pair = told["input_tokens"], told["output_tokens"]
        full_in = max(level.full_in for level in pair)
        told["tokens"] = Level(pair[0].limit + pair[1].limit, pair[0].left + pair[1].left, full_in)
    pairs: dict[str, object] = {}
    for name, level in told.items():
        prefix = f"anthropic-ratelimit-{name.replace('_', '-')}"
        pairs[f"{prefix}-limit"] = level.limit
        pairs[f"{prefix}-remaining"] = max(0, level.left)
        when = datetime.fromtimestamp(_clock(level.full_in), UTC)
        pairs[f"{prefix}-reset"] = f"{when:%Y-%m-%dT%H:%M:%SZ}"
    return _lines(pairs)


HEADERS: dict[str, Callable[[Mapping[str, Level], Level | None], bytes]] = {
    "none": lambda levels, day: b"",
    "openai": _openai_headers,
    "groq": _groq_headers,
    "anthropic": _anthropic_headers,
}


# ---------------------------------------------------------------------- one key


class Account:
    """One key's limits and counts since /admin."""

    def __init__(self, key: str, config: KeyConfig, run: Run):
        self.config, self.run = config, run
        self._random = random.Random(f"{run.config.seed} {key}")
        self._windows = self._begin_windows()
        self._day_requests = self._day_tokens = 0
        self.arrived = self.ok = self.refused = self.tokens = 0
        self.abandoned = self.unread = 0
        self.in_flight = self.max_in_flight = 0
        self.refused_429 = dict.fromkeys(("requests", "tokens", "in_flight", "day", "bare"), 0)
        self.faults: Counter[str] = Counter()
        self.ok_by_second: Counter[int] = Counter()
        self.r429_by_second: Counter[int] = Counter()
        self.first: float | None = None
        self.last: float | None = None
        self.accepted_times: deque[float] = deque(maxlen=KEPT_TIMES)

    def _begin_windows(self) -> list[tuple[str, str, Window]]:
        """(name, which of a call's costs it counts, the window) for each limit there is."""
        config, made = self.config, []
        for name in ("requests", "tokens", "input_tokens", "output_tokens"):
            limit: Limit | None = getattr(config, name)
            if limit:
                cost = limit.count if name == "tokens" else name
                made.append((name, cost, limit.begin(self.run.began)))
        return made

    def arrive(self, now: int) -> None:
        self.arrived += 1
        self.last = (now - self.run.began) / SECOND
        if self.first is None:
            self.first = self.last

    def refusal(self, call: Call, now: int) -> bytes:
        """A 429's bytes if some limit is in the way, nothing taken; otherwise empty."""
        config = self.config
        if self.in_flight >= config.in_flight:
            seconds = config.in_flight_retry_after
            wait = None if seconds is None else round(seconds * SECOND)
            return self._refuse("in_flight", "concurrent requests", call, wait, now)
        if self._day_is_over(call):
            return self._refuse(
                "day", "requests per day (RPD)", call, round(config.day_retry_after * SECOND), now
            )
        waits = [
            (wait, name)
            for name, cost, window in self._windows
            if (wait := window.wait(getattr(call, cost), now))
        ]
        if not waits:
            return b""
        longest, name = max(waits)
        reason = "requests" if name == "requests" else "tokens"
        return self._refuse(reason, f"{name.replace('_', ' ')} per min", call, longest, now)

    def _day_is_over(self, call: Call) -> bool:
        day = self.config.day
        return self._day_requests + 1 > day.requests or self._day_tokens + call.used > day.tokens

    def _refuse(self, reason: str, what: str, call: Call, wait: int | None, now: int) -> bytes:
        self.count_429(reason, now)
        spelling = self.config.retry_after
        told = wait is not None and spelling not in ("zero", "none")
        message = f"Rate limit reached for {call.model} on {what}."
        if told and wait is not None:
            message += f" Please try again in {duration(wait)}."
        kind = "rate_limit_error"
        if call.style == OPENAI:
            kind = "tokens" if reason == "tokens" else "requests"
        retry = b"" if wait is None else _lines(RETRY_AFTER[spelling](wait))
        body = error_body(call.style, message, kind, "rate_limit_exceeded")
        return json_response(429, body, retry + self.headers(now))

    def count_429(self, reason: str, now: int) -> None:
        self.refused_429[reason] += 1
        self.r429_by_second[(now - self.run.began) // SECOND] += 1

    def draw_fault(self, call: Call, now: int) -> Fault | None:
        """Every fault draws for every call, so that the n-th call's lot never depends on time."""
        faults = self.config.faults
        if not faults:
            return None
        draws = [self._random.random() for _ in faults]
        by_request = random.Random(f"{self.run.config.seed} {call.digest} {self.run.came(call)}")
        for fault, draw in zip(faults, draws, strict=True):
            lot = by_request.random() if fault.draw == "request" else draw
            elapsed = self.run.seconds_since(fault.after, now)
            if fault.hits(lot, elapsed) and fault.marker.encode() in call.body:
                self.faults[fault.kind] += 1
                return fault
        return None

    def take(self, call: Call, now: int) -> None:
        for _, cost, window in self._windows:
            window.take(getattr(call, cost), now)
        self._day_requests += 1
        self._day_tokens += call.used
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if self.run.config.keep_times:
            self.accepted_times.append((now - self.run.began) / SECOND)

    def delay(self) -> float:
        config = self.config
        if not config.jitter:
            return config.latency
        return config.latency * math.exp(self._random.gauss(0.0, config.jitter))

    def headers(self, now: int) -> bytes:
        if self.config.headers == "none":
            return b""
        levels = {
            name: Level(window.limit, window.left(now), window.full_in(now))
            for name, _, window in self._windows
        }
        return HEADERS[self.config.headers](levels, self._day_level())

    def _day_level(self) -> Level | None:
        """The day's requests, the reset told as if they came back evenly, as Groq tells it."""
        limit = self.config.day.requests
        if limit == math.inf:
            return None
        full_in = round(self._day_requests * DAY / limit)
        return Level(int(limit), int(limit) - self._day_requests, full_in)

    def delivered(self, call: Call) -> None:
        self.ok += 1
        self.tokens += call.used
        self.ok_by_second[(time.monotonic_ns() - self.run.began) // SECOND] += 1
        self.run.count_delivered(call)
        if call.item:
            self.run.items[call.item] += 1

    def stats(self) -> dict[str, Any]:
        names = "arrived ok refused_429 faults refused in_flight max_in_flight".split()
        names += "abandoned unread ok_by_second r429_by_second tokens first last".split()
        told = {name: getattr(self, name) for name in names}
        if self.run.config.keep_times:
            told["accepted_times"] = list(self.accepted_times)
        return told


class Run:
    """Everything counted since /admin."""

    def __init__(self, config: Config):
        self.config, self.began = config, time.monotonic_ns()
        self.items: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self._answers = 0
        self._reached = {0: self.began}  # {number of an answer that a fault waits for: moment}
        keys = (config.default, *config.keys.values())
        self._awaited = {fault.after for key in keys for fault in key.faults}
        self._came: Counter[str] = Counter()
        self.accounts: dict[str, Account] = {}

    def account(self, key: str) -> Account:
        account = self.accounts.get(key)
        if account is None:
            config = self.config.keys.get(key, self.config.default)
            account = self.accounts[key] = Account(key, config, self)
        return account

    def came(self, call: Call) -> int:
        """How often this very request was let in before, on whichever key."""
        self._came[call.digest] += 1
        return self._came[call.digest] - 1

    def count_delivered(self, call: Call) -> None:
        self.delivered[call.digest] += 1
        self._answers += 1
        if self._answers in self._awaited:
            self._reached[self._answers] = time.monotonic_ns()

    def seconds_since(self, answer: int, now: int) -> float:
        """How long ago that answer was delivered, negative before it was; 0 stands for /admin."""
        reached = self._reached.get(answer)
        return -math.inf if reached is None else (now - reached) / SECOND

    def stats(self) -> dict[str, Any]:
        return {
            "seconds": (time.monotonic_ns() - self.began) / SECOND,
            "items": len(self.items),
            "duplicates": sum(count > 1 for count in self.items.values()),
            "delivered": self.delivered.total(),
            "requests": len(self.delivered),
            "abandoned": sum(account.abandoned for account in self.accounts.values()),
            "unread": sum(account.unread for account in self.accounts.values()),
            "keys": {key: account.stats() for key, account in self.accounts.items()},
        }


# ---------------------------------------------------------------------- connections


class State:
    """The present run, and the connections that have carried a call (not /admin or /stats)."""

    def __init__(self) -> None:
        self.run = Run(Config())
        self.connections = self.max_connections = 0

    def configure(self, raw: Mapping[str, Any]) -> None:
        self.run = Run(Config.read(raw))
        self.max_connections = self.connections

    def opened(self) -> None:
        self.connections += 1
        self.max_connections = max(self.max_connections, self.connections)

    def stats(self) -> dict[str, Any]:
        connections = {
            "connections": self.connections,
            "max_connections": self.max_connections,
        }
        return {**connections, **self.run.stats()}


class Connection(asyncio.Protocol):
    """One client's connection: one call at a time, whatever follows it waits in the buffer."""

    transport: asyncio.Transport

    def __init__(self, state: State):
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._busy = self._counted = self._close = self._continued = False
        self._account: Account | None = None  # of the call that is under way
        self._answered: tuple[Account, float] | None = None  # the last one, and when
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """The client went away, so its call is no longer in flight."""
        self._busy = True
        self._state.connections -= self._counted
        if self._timer:
            self._timer.cancel()
        if self._account:
            self._account.abandoned += 1
        elif self._answered and time.monotonic() - self._answered[1] < _READ_SECONDS:
            self._answered[0].unread += 1
        self._release()

    def _release(self) -> None:
        if self._account:
            self._account.in_flight -= 1
            self._account = None

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        self._serve_buffer()

    def _serve_buffer(self) -> None:
        try:
            while not self._busy and self._serve_next():
                pass
        except ValueError as error:
            self._close = True
            self._reply(json_response(400, {"error": {"message": f"bad request: {error}"}}))

    def _serve_next(self) -> bool:
        """Serve one request; False while it is not here in full."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = parse_head(self._buffer[:end])
        found = read_body(self._buffer, end + 4, head.length)
        if found is None:
            if head.expects and not self._continued:
                self._continued = True
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        body, end = found
        self._buffer = self._buffer[end:]
        self._busy, self._close, self._continued = True, head.close, False
        style = STYLES.get(head.path)
        if style and head.method == "POST":
            self._serve_call(style, head.key, body)
        else:
            self._reply(self._other(head, body))
        return True

    def _other(self, head: Head, body: bytes) -> bytes:
        match head.method, head.path:
            case "POST", "/admin":
                try:
                    self._state.configure(json.loads(body or b"{}"))
                except (ValueError, TypeError, AttributeError) as error:
                    return json_response(400, {"error": {"message": str(error)}})
                return json_response(200, {"ok": True})
            case "GET", "/stats":
                return json_response(200, self._state.stats())
            case "GET", "/v1/models":
                models = [{"id": name, "object": "model"} for name in ("local-1", "local-2")]
                return json_response(200, {"object": "list", "data": models})
        message = f"Invalid URL ({head.method} {head.path})"
        return json_response(404, error_body(OPENAI, message, _INVALID))

    def _serve_call(self, style: str, key: str, body: bytes) -> None:
        if not self._counted:
            self._counted = True
            self._state.opened()
        now = time.monotonic_ns()
        account = self._state.run.account(key or "-")
        account.arrive(now)
        try:
            call = read_call(style, body, account.config.tokens_used)
        except (ValueError, TypeError, AttributeError) as error:
            self._reply(json_response(400, error_body(style, str(error), _INVALID)))
            return
        if refuse := account.config.refuse or (not key and 401):
            account.refused += 1
            self._reply(dead_account(call, refuse))
        elif refusal := account.refusal(call, now):
            self._reply(refusal)
        else:
            self._admit(account, call, now)

    def _admit(self, account: Account, call: Call, now: int) -> None:
        """Within the limits: answer after the latency, as the lot falls."""
        fault, delay = account.draw_fault(call, now), account.delay()
        if fault and fault.kind in AT_ONCE:
            if fault.kind == "bare_429":
                account.count_429("bare", now)
            self._reply(refused_input(fault.kind, call.style))
            return
        account.take(call, now)
        self._account = account
        headers = account.headers(now)
        if delay > 0:
            self._later(delay, self._answer, account, call, fault, headers)
        else:
            self._answer(account, call, fault, headers)

    def _later(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        self._timer = self._loop.call_later(seconds, do, *args)

    def _answer(self, account: Account, call: Call, fault: Fault | None, headers: bytes) -> None:
        tokens = (call.input_tokens, call.output_tokens)
        config = account.config
        text = rehearsed(call.body) if config.reply == "rehearsal" else config.text
        body = completion(call.style, call.model, text, tokens)
        if fault is None:
            self._deliver(account, call, response(200, body, headers))
        elif fault.kind in PLAIN_FAULTS:
            self._reply(plain_fault(fault.kind, call, body, headers))
        else:
            self._break(fault, account, call, response(200, body, headers))

    def _break(self, fault: Fault, account: Account, call: Call, reply: bytes) -> None:
        """The faults that play with the connection."""
        body_at = reply.index(b"\r\n\r\n") + 4
        if fault.kind == "stall":
            self._later(fault.lasts, self.transport.close)
        elif fault.kind == "slow_body":
            self.transport.write(reply[:body_at])
            self._dribble(account, call, reply[body_at:], fault.lasts / 20)
        elif fault.kind == "reset":
            self.transport.write(reply[: (body_at + len(reply)) // 2])
            self._later(0.01, self._reset)  # the half must have left before
        else:
            self._reset()

    def _dribble(self, account: Account, call: Call, body: bytes, pause: float, n: int = 0) -> None:
        """A twentieth of the body after each pause."""
        if n:
            part = body[len(body) * (n - 1) // 20 : len(body) * n // 20]
            if n == 20:
                self._deliver(account, call, part)
                return
            self.transport.write(part)
        self._later(pause, self._dribble, account, call, body, pause, n + 1)

    def _reset(self) -> None:
        """Close with a TCP RST: not lingering at all says that."""
        linger = struct.pack("ii", 1, 0)
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def _deliver(self, account: Account, call: Call, reply: bytes) -> None:
        account.delivered(call)
        self._answered = account, time.monotonic()
        self._reply(reply)

    def _reply(self, reply: bytes) -> None:
        self._release()
        self._busy, self._timer = False, None
        self.transport.write(reply)
        if self._close:
            self._busy = True
            self.transport.close()
        elif self._buffer:
            self._loop.call_soon(self._serve_buffer)


# ---------------------------------------------------------------------- the process


async def serve(port: int) -> None:
    state, loop = State(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", port, backlog=4096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def _exit_with_parent() -> None:
    """A killed parent cannot end its children, but the system closes its end of our stdin."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _allow_many_connections() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True)
class Server:
    """A running server, as its parent sees it."""

    port: int
    process: subprocess.Popen[str] = dataclasses.field(repr=False)

    @property
    def url(self) -> str:
        """For Anthropic's SDK, which adds /v1 itself."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def configure(self, config: Mapping[str, Any]) -> None:
        """Set the configuration and forget all counts. ValueError if it is misspelt."""
        self._ask("POST", "/admin", json.dumps(config))

    def stats(self) -> dict[str, Any]:
        return self._ask("GET", "/stats")

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            said = json.loads(answer.read())
        if answer.status != 200:
            raise ValueError(said["error"]["message"])
        return said


@contextlib.contextmanager
def running(config: Mapping[str, Any] | None = None) -> Iterator[Server]:
    """This file in a process of its own, which ends with the block or with this process."""
    command = [sys.executable, os.path.abspath(__file__), "--port", "0", "--watch-stdin"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start; it said why on stderr")
            server = Server(json.loads(line)["port"], process)
            if config is not None:
                server.configure(config)
            yield server
        finally:
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--watch-stdin", action="store_true", help="exit when stdin closes")
    args = parser.parse_args()
    if args.watch_stdin:
        _exit_with_parent()
    _allow_many_connections()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(args.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
