"""Accounts at LLM providers: who they are, read from `llm_providers.toml`, and what they may do.

How they are spoken to stands in `wire`, what their failures mean in `failures`.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import tomllib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from question_optimizer.errors import UserError

Role = Literal["student", "teacher", "judge"]
Kind = Literal["openai", "anthropic", "rehearsal"]
TokenRule = Literal["used", "reserved"]
Transport = Literal["direct", "sdk"]
ROLES: tuple[Role, ...] = ("student", "teacher", "judge")
REQUEST_TIMEOUT_SECONDS = 120.0
SETUP_HINT = (
    "copy llm_providers.example.toml to llm_providers.toml and set the keys it names "
    "(OpenAI, Anthropic, or any OpenAI-compatible server such as Ollama, vLLM, llama.cpp or "
    "`transformers serve`), or try everything without a key with --rehearsal"
)


@dataclass
class LLMClientConfig:
    """One account.

    Limits are per minute (`rpm_limit` requests; `tpm_limit` tokens, or `input_tpm_limit` and
    `output_tpm_limit` where those count apart), per day (`daily_limit` requests,
    `daily_token_limit`; a day ends at midnight in `reset_zone`) and at once (`concurrency`). None
    is no limit; for `concurrency` it means that the number is to be learnt. With `fixed_limits` the
    figures stand even where the server announces higher ones.

    `token_rule` is how the provider counts: "used" tokens, or those "reserved" when the call
    arrives (input and `max_tokens`), whatever is used. Prices are per million tokens in one
    currency, None where unknown. The key appears in no repr.
    """

    name: str
    model: str
    base_url: str | None = None
    api_key: str = field(default="", repr=False)
    rpm_limit: float | None = None
    daily_limit: int | None = None
    concurrency: int | None = 1
    kind: Kind = "openai"
    tpm_limit: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    roles: tuple[Role, ...] = ROLES
    input_tpm_limit: float | None = None
    output_tpm_limit: float | None = None
    daily_token_limit: int | None = None
    reset_zone: str = "UTC"
    token_rule: TokenRule | None = None
    fixed_limits: bool = False
    weight: float = 1.0
    timeout: float = REQUEST_TIMEOUT_SECONDS
    transport: Transport = "direct"
    _clients: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )
    _sessions: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.token_rule is None:  # OpenAI and Azure count a call's max_tokens on its arrival
            where = self.base_url or ("api.openai.com" if self.kind == "openai" else "")
            reserved = re.search(r"api\.openai\.com|openai\.azure\.com", where)
            self.token_rule = "reserved" if reserved else "used"

    @property
    def client(self) -> Any:
        """The SDK's async client for the running event loop; connections never cross loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = _make_client(self)
        return self._clients[loop]

    @property
    def session(self) -> Any:
        """An aiohttp session for the running event loop, for calls without the SDK."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = _make_session(self)
        return self._sessions[loop]

    @property
    def priced(self) -> bool:
        """Whether the cost of a call can be told."""
        return self.input_price is not None and self.output_price is not None

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """Price of a call in the account's currency; 0 where the price is unknown."""
        prices = (self.input_price or 0.0, self.output_price or 0.0)
        return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        loop = asyncio.get_running_loop()
        for opened in (self._clients.pop(loop, None), self._sessions.pop(loop, None)):
            if opened is not None:
                await opened.close()


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
    input_tpm_limit: float | None = Field(default=None, gt=0)
    output_tpm_limit: float | None = Field(default=None, gt=0)
    daily_limit: int | None = Field(default=None, gt=0)
    daily_token_limit: int | None = Field(default=None, gt=0)
    reset_zone: str = "UTC"
    token_rule: TokenRule | None = None
    fixed_limits: bool = False
    concurrency: int | str = 1
    weight: float = Field(default=1.0, gt=0)
    timeout: float = Field(default=REQUEST_TIMEOUT_SECONDS, gt=0)
    transport: Transport = "direct"
    input_price: float | None = Field(default=None, ge=0)
    output_price: float | None = Field(default=None, ge=0)
    roles: tuple[Role, ...] = ROLES

    @field_validator("concurrency")
    @classmethod
    def _number_or_learn(cls, at_once: int | str) -> int | str:
        if at_once != "learn" and (isinstance(at_once, str) or at_once < 1):
            raise ValueError('must be a number from 1, or "learn"')
        return at_once

    @field_validator("reset_zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone is called {zone!r}; UTC or Europe/Berlin is") from None
        return zone


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
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, _AccountEntry.model_fields, n=1)
            said = "unknown" + (f", did you mean {near[0]}" if near else "")
        raise UserError(f"{where}: {key}: {said}; see llm_providers.example.toml") from error
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
    fields = parsed.model_dump(exclude={"api_key_env"})
    if parsed.concurrency == "learn":
        fields["concurrency"] = None
    return LLMClientConfig(**fields, api_key=key)


# ---------------------------------------------------------------------- connections


def _make_client(config: LLMClientConfig) -> Any:
    """An SDK client that makes one attempt: retries belong to the dispatcher, which knows more."""
    if config.kind == "anthropic":
        import anthropic

        return anthropic.AsyncAnthropic(
            api_key=config.api_key,
            base_url=config.base_url,
            max_retries=0,
            timeout=config.timeout,
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
        timeout=config.timeout,
        http_client=openai.DefaultAioHttpClient(),
    )


def _proxy_for(address: str) -> str | None:
    """The environment's proxy. aiohttp's own way looks at every call, which costs more than all
    else of a call, and takes keys from ~/.netrc."""
    parts = urlsplit(address)
    if parts.hostname is None or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _make_session(config: LLMClientConfig) -> Any:
    """No cap on connections (limits are the dispatcher's), certificates as the SDKs find them."""
    import ssl

    import aiohttp
    import certifi

    trusted = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=config.timeout),
        proxy=_proxy_for(config.base_url or "https://api.openai.com"),
    )
