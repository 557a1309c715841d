"""One chat call: our neutral request to a provider, its answer back.

`ChatRequest` and `ChatAnswer` serve OpenAI, Anthropic, every OpenAI-compatible server (Ollama,
vLLM, llama.cpp, `transformers serve`) and the rehearsal. Both ways of sending make exactly one
attempt, since the dispatcher knows better when to try again, and share how a request is written
and an answer read:

    send      one of our accounts, the JSON over aiohttp: a third of the SDK's processor time
    complete  any SDK's client, a host's included
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from question_optimizer.failures import redacted
from question_optimizer.providers import LLMClientConfig
from question_optimizer.rate_headers import Announced, read_headers

ANTHROPIC_MAX_TOKENS = 4096  # mandatory there; DSPy leaves it open
_ADDRESSES = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
_ANTHROPIC_VERSION = "2026-10-21"


@dataclass(frozen=True)
class ChatRequest:
    """One prompt: a system text and alternating (role, text) messages, ending with the user's."""

    system: str
    messages: tuple[tuple[str, str], ...]
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def characters(self) -> int:
        return len(self.system) + sum(len(text) for _, text in self.messages)


@dataclass(frozen=True)
class ChatAnswer:
    """What came back. Token counts are the provider's, None where it reports none."""

    text: str
    model: str
    id: str | None = None
    truncated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    announced: tuple[Announced, ...] = ()  # the limits, as the answer's headers give them


class CallError(Exception):
    """A provider's refusal, in the shape of the SDKs' own errors. Holds no key."""

    def __init__(self, said: str, status_code: int, headers: Mapping[str, str]):
        super().__init__(f"status {status_code}: {said}" if said else f"status {status_code}")
        self.message = str(self)
        self.status_code = status_code
        self.headers = headers
        self._said = said

    def __reduce__(self) -> tuple[object, ...]:
        return CallError, (self._said, self.status_code, dict(self.headers))


class LineError(ConnectionError):
    """The connection failed, or what came over it was no HTTP."""


class AnswerError(ValueError):
    """Status 200, and yet no answer: another shape, another error, cut off."""


async def send(config: LLMClientConfig, request: ChatRequest) -> ChatAnswer:
    """One attempt at one of our accounts, by the transport that it names.

    Raises CallError, AnswerError, LineError or TimeoutError, without the key, of which nothing
    stands behind them either; through an SDK, its own errors.
    """
    try:
        async with asyncio.timeout(config.timeout):  # the SDKs' is for every read, not for all
            if config.kind == "rehearsal" or config.transport == "sdk":
                return await complete(config.client, config.model, request)
            status, headers, body = await _post(config, request)
    except TimeoutError:
        status = 0
    if status == 0:
        raise TimeoutError(f"no answer within {config.timeout:g} s")
    if status != 200:
        said = redacted(_said(body), [config.api_key])
        raise CallError(said, status, headers)
    read = anthropic_answer if config.kind == "anthropic" else openai_answer
    try:
        return read(_json(body), config.model, headers)
    except AnswerError as error:
        said = redacted(str(error), [config.api_key])
    raise AnswerError(said)


async def _post(
    config: LLMClientConfig, request: ChatRequest
) -> tuple[int, Mapping[str, str], bytes]:
    import aiohttp

    if config.kind == "anthropic":
        path, payload = "/v1/messages", anthropic_payload(config.model, request)
        headers = {"x-api-key": config.api_key, "anthropic-version": _ANTHROPIC_VERSION}
    else:
        path, payload = "/chat/completions", openai_payload(config.model, request)
        headers = {"authorization": f"Bearer {config.api_key}"}
    address = (config.base_url or _ADDRESSES[config.kind]).rstrip("/") + path
    headers["content-type"] = "application/json"
    try:
        async with config.session.post(
            address, data=json.dumps(payload).encode(), headers=headers, allow_redirects=False
        ) as response:
            return response.status, response.headers, await response.read()
    except aiohttp.ClientError as error:  # some hold the request, and with it the key
        failed = f"{type(error).__name__}: {redacted(str(error), [config.api_key])}"
    raise LineError(failed)


def _json(body: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(body)
    raise AnswerError("the provider's answer is no JSON")


def _said(body: bytes) -> str:
    """The message inside an error's body, however the provider wraps it."""
    text = body[:2000].decode(errors="replace")
    try:
        error = json.loads(body)
    except ValueError:
        return text
    if isinstance(error, list) and error:  # Gemini's OpenAI-compatible endpoint
        error = error[0]
    inner = error.get("error", error) if isinstance(error, dict) else error
    if isinstance(inner, dict):
        words = [inner.get("message"), inner.get("code"), inner.get("type")]
        return " ".join(str(word) for word in words if word) or text
    return str(inner)


async def complete(client: Any, model: str, request: ChatRequest) -> ChatAnswer:
    """One attempt through an SDK's async client, ours or a host's."""
    raw = getattr(client, "raw_client", None) or client
    if not hasattr(raw, "chat") and hasattr(raw, "messages"):
        payload = anthropic_payload(model, request)
        return await _through(raw.messages, payload, anthropic_answer)
    # instructor wraps the SDK's client and would want a response model
    inner = getattr(raw, "client", None)
    if (
        inner is not None
        and hasattr(inner, "chat")
        and type(raw).__module__.startswith("instructor")
    ):
        raw = inner
    return await _through(raw.chat.completions, openai_payload(model, request), openai_answer)


async def _through(endpoint: Any, payload: dict[str, Any], read: Any) -> ChatAnswer:
    """`endpoint.create(…)`, with the headers where the client gives them."""
    model = payload["model"]
    with_headers = getattr(endpoint, "with_raw_response", None)
    if with_headers is None:
        answer = await endpoint.create(**payload)
        return read(answer.model_dump() if hasattr(answer, "model_dump") else answer, model, {})
    response = await with_headers.create(**payload)
    # OpenAI's SDK has read the body by now, Anthropic's has not
    later = inspect.iscoroutinefunction(getattr(response, "read", None))
    body = await response.read() if later else response.content
    return read(_json(body), model, response.headers)


# ---------------------------------------------------------------------- OpenAI and its likes


def openai_payload(model: str, request: ChatRequest) -> dict[str, Any]:
    """The body of `POST /chat/completions`."""
    messages = [{"role": "system", "content": request.system}] if request.system else []
    messages += [{"role": role, "content": text} for role, text in request.messages]
    options = {
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "top_p": request.top_p,
        "stop": list(request.stop) or None,
        "seed": request.seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return {"model": model, "messages": messages, **given}


def openai_answer(data: Any, model: str, headers: Mapping[str, str]) -> ChatAnswer:
    """A chat completion read; AnswerError where status 200 brought something else."""
    try:
        choice = data["choices"][0]
        text = _text(choice["message"].get("content"))
    except (TypeError, KeyError, IndexError, AttributeError):
        choice, text = None, ""
    if choice is None:
        raise AnswerError(f"the provider's answer is no chat completion{_error_in(data)}")
    usage = _usage(data)
    return ChatAnswer(
        text=text,
        model=data.get("model") or model,
        id=data.get("id") or None,
        truncated=choice.get("finish_reason") == "length",
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        announced=read_headers(headers, time.time()),
    )


# ---------------------------------------------------------------------- Anthropic


def anthropic_payload(model: str, request: ChatRequest) -> dict[str, Any]:
    """The body of `POST /v1/messages`.

    The SDK's present version of the API (2026-10-21) takes no temperature and no top_p.
    """
    options = {"system": request.system or None, "stop_sequences": list(request.stop) or None}
    return {
        "model": model,
        "max_tokens": request.max_tokens or ANTHROPIC_MAX_TOKENS,
        "messages": [{"role": role, "content": text} for role, text in request.messages],
        **{name: value for name, value in options.items() if value is not None},
    }


def anthropic_answer(data: Any, model: str, headers: Mapping[str, str]) -> ChatAnswer:
    """A message read; AnswerError where status 200 brought something else."""
    blocks = data.get("content") if isinstance(data, dict) else None
    if not isinstance(blocks, list):
        raise AnswerError(f"the provider's answer is no message{_error_in(data)}")
    usage = _usage(data)
    return ChatAnswer(
        text=_text(blocks),
        model=data.get("model") or model,
        id=data.get("id") or None,
        truncated=data.get("stop_reason") == "max_tokens",
        input_tokens=usage.get("input_tokens"),  # without those read from its cache
        output_tokens=usage.get("output_tokens"),
        announced=read_headers(headers, time.time()),
    )


def _text(content: Any) -> str:
    """A message's text, given whole or in parts."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        return "".join(part.get("text") or "" for part in parts if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def _usage(data: Any) -> Mapping[str, Any]:
    """The counts that can be counts."""
    usage = data.get("usage")
    found = usage.items() if isinstance(usage, dict) else ()
    return {k: n for k, n in found if isinstance(n, int | float) and 0 <= n < 1e12}


def _error_in(data: Any) -> str:
    """ ": what it says" where a provider sends an error with status 200."""
    error = data.get("error") if isinstance(data, dict) else None
    return f": {' '.join(_said(json.dumps({'error': error}).encode()).split())}" if error else ""
