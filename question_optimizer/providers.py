"""Accounts at LLM providers: read from `llm_providers.toml`, spoken to through the official SDKs.

One neutral request and answer (`ChatRequest`, `ChatAnswer`) for OpenAI, Anthropic, every
OpenAI-compatible server (Ollama, vLLM, llama.cpp, `transformers serve`) and the rehearsal. An SDK
is imported when the first account of its kind makes a call.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from question_optimizer.errors import UserError

Role = Literal["student", "teacher", "judge"]
Kind = Literal["openai", "anthropic", "rehearsal"]
ROLES: tuple[Role, ...] = ("student", "teacher", "judge")
REQUEST_TIMEOUT_SECONDS = 120.0
ANTHROPIC_MAX_TOKENS = 4096  # mandatory there; DSPy leaves it open
SETUP_HINT = (
    "copy llm_providers.example.toml to llm_providers.toml and set the keys it names "
    "(OpenAI, Anthropic, or any OpenAI-compatible server such as Ollama, vLLM, llama.cpp or "
    "`transformers serve`), or try everything without a key with --rehearsal"
)


@dataclass
class LLMClientConfig:
    """One account. Limits are per minute (`rpm_limit`, `tpm_limit`), per UTC day (`daily_limit`,
    requests) and at once (`concurrency`); None is no limit. Prices are per million tokens in one
    currency, None where unknown. The key appears in no repr."""

    name: str
    model: str
    base_url: str | None = None
    api_key: str = field(default="", repr=False)
    rpm_limit: float | None = None
    daily_limit: int | None = None
    concurrency: int = 1
    kind: Kind = "openai"
    tpm_limit: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    roles: tuple[Role, ...] = ROLES
    _clients: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    @property
    def client(self) -> Any:
        """The SDK's async client for the running event loop; connections never cross loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = _make_client(self)
        return self._clients[loop]

    @property
    def priced(self) -> bool:
        """Whether the cost of a call can be told."""
        return self.input_price is not None and self.output_price is not None

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """Price of a call in the account's currency; 0 where the price is unknown."""
        prices = (self.input_price or 0.0, self.output_price or 0.0)
        return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6

    async def aclose(self) -> None:
        """Close the running loop's client."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()


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


@dataclass(frozen=True)
class Failure:
    """Why a call failed, as the dispatcher needs to know it.

    rate_limited  the account needs a pause; the item does not
    transient     timeout, 5xx, broken connection: try another account
    account_out   bad key, unknown model, no credit: this account is of no more use
    bad_request   the item's own fault (too long, filtered): never retried blindly
    """

    kind: Literal["rate_limited", "transient", "account_out", "bad_request"]
    reason: str
    retry_after: float | None = None
    status: int | None = None


def rehearsal_account() -> LLMClientConfig:
    """The embedded stand-in: no key, no network, no limit, no price."""
    return LLMClientConfig(
        name="rehearsal",
        model="rehearsal",
        kind="rehearsal",
        concurrency=8,
        input_price=0.0,
        output_price=0.0,
    )


# ---------------------------------------------------------------------- configuration


class _AccountEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    model: str = Field(min_length=1)
    kind: Literal["openai", "anthropic"] = "openai"
    base_url: str | None = None
    api_key_env: str | None = None
    rpm_limit: float | None = Field(default=None, gt=0)
    tpm_limit: float | None = Field(default=None, gt=0)
    daily_limit: int | None = Field(default=None, gt=0)
    concurrency: int = Field(default=1, ge=1)
    input_price: float | None = Field(default=None, ge=0)
    output_price: float | None = Field(default=None, ge=0)
    roles: tuple[Role, ...] = ROLES


def load_providers(path: Path, environ: Mapping[str, str]) -> list[LLMClientConfig]:
    """The accounts of a TOML file, keys taken from `environ`; UserError on anything doubtful."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no LLM account: {path} does not exist; {SETUP_HINT}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error}); see llm_providers.example.toml") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    entries = data.get("accounts")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: no [[accounts]]; {SETUP_HINT}")
    accounts = [_account(path, number, entry, environ) for number, entry in enumerate(entries, 1)]
    names = [account.name for account in accounts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: account name {name!r} occurs twice; edit the file")
    for role in ROLES:
        if not any(role in account.roles for account in accounts):
            raise UserError(f"{path}: no account has role {role!r}; add it to an account's roles")
    return accounts


def _account(path: Path, number: int, entry: Any, environ: Mapping[str, str]) -> LLMClientConfig:
    where = f"{path}: account {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be a table [[accounts]]; see llm_providers.example.toml")
    if "api_key" in entry:
        raise UserError(
            f"{where}: a key has no place in this file; name its variable in api_key_env"
        )
    try:
        parsed = _AccountEntry.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where}: {key}: {first['msg']}; see llm_providers.example.toml"
        ) from error
    key = "none"  # local servers want some key and read none
    if parsed.api_key_env:
        key = environ.get(parsed.api_key_env, "").strip()
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", parsed.api_key_env):  # somebody pasted the key
            raise UserError(
                f"{path}: account {parsed.name!r}: api_key_env must name a variable, in capitals"
            )
        if not key:
            raise UserError(
                f"{path}: account {parsed.name!r}: {parsed.api_key_env} is not set; "
                "set it in the environment or .env, remove the account, or use --rehearsal"
            )
    elif not parsed.base_url:
        raise UserError(
            f"{path}: account {parsed.name!r}: needs api_key_env, or base_url of a local server"
        )
    return LLMClientConfig(**parsed.model_dump(exclude={"api_key_env"}), api_key=key)


# ---------------------------------------------------------------------- calls


def _make_client(config: LLMClientConfig) -> Any:
    """An SDK client that makes one attempt: retries belong to the dispatcher, which knows more."""
    if config.kind == "anthropic":
        import anthropic

        return anthropic.AsyncAnthropic(
            api_key=config.api_key,
            base_url=config.base_url,
            max_retries=0,
            timeout=REQUEST_TIMEOUT_SECONDS,
            http_client=anthropic.DefaultAioHttpClient(),
        )
    import openai

    if config.kind == "rehearsal":
        import httpx

        from question_optimizer.rehearsal import RehearsalTransport

        return openai.AsyncOpenAI(
            api_key="none",
            base_url="http://rehearsal.invalid/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=RehearsalTransport()),
        )
    # httpx's own pool costs 8 to 14 ms of CPU a call at 64 to 256 in flight, aiohttp 1.1 ms.
    return openai.AsyncOpenAI(
        api_key=config.api_key,
        base_url=config.base_url,
        max_retries=0,
        timeout=REQUEST_TIMEOUT_SECONDS,
        http_client=openai.DefaultAioHttpClient(),
    )


async def complete(client: Any, model: str, request: ChatRequest) -> ChatAnswer:
    """One attempt at one account. `client` is any SDK's async client, a host's included."""
    raw = getattr(client, "raw_client", None) or client
    if not hasattr(raw, "chat") and hasattr(raw, "messages"):
        return await _complete_anthropic(raw, model, request)
    # instructor wraps the SDK's client and would want a response model
    inner = getattr(raw, "client", None)
    if (
        inner is not None
        and hasattr(inner, "chat")
        and type(raw).__module__.startswith("instructor")
    ):
        raw = inner
    return await _complete_openai(raw, model, request)


async def _complete_openai(client: Any, model: str, request: ChatRequest) -> ChatAnswer:
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
    response = await client.chat.completions.create(model=model, messages=messages, **given)
    if not getattr(response, "choices", None):  # a proxy's error page comes as a plain string
        raise ValueError("the provider's answer is no chat completion")
    choice, usage = response.choices[0], response.usage
    return ChatAnswer(
        text=choice.message.content or "",
        model=response.model or model,
        id=response.id or None,
        truncated=choice.finish_reason == "length",
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
    )


async def _complete_anthropic(client: Any, model: str, request: ChatRequest) -> ChatAnswer:
    # Version 2026-10-21 of the API, which SDK 2 speaks, takes no temperature and no top_p.
    options: dict[str, Any] = {
        "system": request.system or None,
        "stop_sequences": list(request.stop) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    message = await client.messages.create(
        model=model,
        max_tokens=request.max_tokens or ANTHROPIC_MAX_TOKENS,
        messages=[{"role": role, "content": text} for role, text in request.messages],
        **given,
    )
    if not isinstance(getattr(message, "content", None), list):
        raise ValueError("the provider's answer is no message")
    return ChatAnswer(
        text="".join(block.text for block in message.content if block.type == "text"),
        model=message.model or model,
        id=message.id or None,
        truncated=message.stop_reason == "max_tokens",
        input_tokens=message.usage.input_tokens,
        output_tokens=message.usage.output_tokens,
    )


# ---------------------------------------------------------------------- failures

_NO_CREDIT = re.compile(r"insufficient_quota|credit balance|payment required", re.IGNORECASE)
# Anthropic answers 400 where credit is spent, Gemini where the key is wrong.
_ACCOUNT_FAULT = re.compile(r"credit balance|api key not valid|api_key_invalid", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|pk|gsk|key|xai|AIza)[-_]?[A-Za-z0-9_\-*]{8,}")


def classify(error: Exception, *, secrets: Iterable[str] = ()) -> Failure:
    """What `error` (of either SDK, or of the transport) means for account and item.

    The reason holds none of `secrets`: providers like to quote a key back.
    """
    status = getattr(error, "status_code", None)
    said = " ".join(str(getattr(error, "message", None) or error).split())
    reason = f"{type(error).__name__}: {_without(secrets, said)[:200]}"
    if status is None:
        known = type(error).__name__ in ("APIConnectionError", "APITimeoutError")
        if known or isinstance(error, OSError | TimeoutError | ValueError):
            return Failure("transient", reason)
        return Failure("bad_request", reason)
    if status == 429 and not _NO_CREDIT.search(said):
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        return Failure("rate_limited", reason, _retry_after(headers), status)
    if status in (401, 402, 403, 404, 429) or (status == 400 and _ACCOUNT_FAULT.search(said)):
        return Failure("account_out", reason, status=status)
    if status in (408, 409, 425) or status >= 500:
        return Failure("transient", reason, status=status)
    return Failure("bad_request", reason, status=status)


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        if len(secret) > 4:  # "none" is no secret, and a word
            text = text.replace(secret, "***")
    return _SECRET.sub("***", text)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms`, or `Retry-After` as seconds or as an HTTP date."""
    if milliseconds := headers.get("retry-after-ms"):
        try:
            return max(0.0, float(milliseconds) / 1000)
        except ValueError:
            pass
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
