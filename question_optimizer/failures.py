"""What a failed call means: for the account that made it, and for the item it was made for."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from question_optimizer.limits import Unit
from question_optimizer.rate_headers import (
    LONGEST_SECONDS,
    Announced,
    read_headers,
    seconds_of,
)

Scope = Unit | Literal["day", "in_flight"]


@dataclass(frozen=True)
class Failure:
    """Why a call failed, as the dispatcher needs to know it.

    rate_limited  the account needs a pause; the item does not
    transient     timeout, 5xx, broken connection: try another account
    account_out   bad key, unknown model, no credit: this account is of no more use
    bad_request   the item's own fault (too long, filtered): never retried blindly

    `scope` is which limit a rate limit was about, where the provider says so.
    """

    kind: Literal["rate_limited", "transient", "account_out", "bad_request"]
    reason: str
    retry_after: float | None = None
    status: int | None = None
    scope: Scope | None = None
    announced: tuple[Announced, ...] = ()
    fault: str = field(default="", compare=False)  # in a few words, where no status tells it

    @property
    def brief(self) -> str:
        """The reason in two or three words, for a progress line; no word of the provider's."""
        return f"HTTP {int(self.status)}" if self.status else self.fault or _BRIEF[self.kind]


_BRIEF = {
    "rate_limited": "rate limited",
    "transient": "calls fail",
    "account_out": "of no use",
    "bad_request": "refused",
}
# By the names of an exception and of what it came from.
_FAULTS = (
    ("host not found", re.compile(r"DNS|gaierror")),
    ("TLS failed", re.compile(r"SSL|Certificate")),
    ("cannot connect", re.compile(r"Connector|Connect(Error|Timeout)|Refused|ProxyConnection")),
    ("no answer in time", re.compile(r"Timeout")),
    ("unreadable answer", re.compile(r"Answer|JSON|Decod")),
    ("connection broke", re.compile(r"Line|Connection|Disconnect|OSError|Payload|Protocol|Read")),
)
_NO_CREDIT = re.compile(r"insufficient_quota|credit balance|payment required", re.IGNORECASE)
# Anthropic answers 400 where credit is spent, Gemini where the key is wrong.
_ACCOUNT_FAULT = re.compile(r"credit balance|api key not valid|api_key_invalid", re.IGNORECASE)
_FILTERED = re.compile(r"moderation|flagged|content.?(filter|policy)", re.IGNORECASE)
_TOO_LARGE = re.compile(r"request too large|reduce (your message size|the length)", re.IGNORECASE)
_SCOPES: tuple[tuple[Scope, re.Pattern[str]], ...] = (
    ("day", re.compile(r"per[ _-]?day|daily|\b[RT]PD\b", re.IGNORECASE)),
    ("in_flight", re.compile(r"concurren|in flight|simultaneous|parallel", re.IGNORECASE)),
    ("input_tokens", re.compile(r"input[ _-]tokens?", re.IGNORECASE)),
    ("output_tokens", re.compile(r"output[ _-]tokens?", re.IGNORECASE)),
    ("tokens", re.compile(r"tokens per|\bTPM\b", re.IGNORECASE)),
    ("requests", re.compile(r"requests per|\bRPM\b", re.IGNORECASE)),
)
_DEEPEST = 10  # exceptions behind one another
_SECRET = re.compile(r"\b(?:sk|pk|gsk|key|xai|AIza)[-_]?[A-Za-z0-9_\-*]{8,}")


def classify(error: Exception, *, secrets: Iterable[str] = ()) -> Failure:
    """What `error` (of either SDK, of `wire`, or of the transport) means for account and item.

    The reason holds none of `secrets`: providers like to quote a key back.
    """
    status = getattr(error, "status_code", None)
    said = " ".join(str(getattr(error, "message", None) or error).split())
    reason = f"{type(error).__name__}: {redacted(said, secrets)[:200]}"
    if status is None or status < 400:  # no answer, or none that can be read
        fault = _fault(error, said, status)
        passing = _is_passing(error, status)
        return Failure("transient" if passing else "bad_request", reason, fault=fault)
    if status == 429 and not _NO_CREDIT.search(said):
        if _TOO_LARGE.search(said):
            return Failure("bad_request", reason, status=status)
        return _rate_limited(reason, said, _headers_of(error))
    if status == 403 and _FILTERED.search(said):
        return Failure("bad_request", reason, status=status)
    if status in (401, 402, 403, 404, 429) or (status == 400 and _ACCOUNT_FAULT.search(said)):
        return Failure("account_out", reason, status=status)
    if status in (408, 409, 425) or status >= 500:
        headers = _headers_of(error)
        return Failure("transient", reason, retry_after(headers, time.time()), status)
    return Failure("bad_request", reason, status=status)


def _is_passing(error: Exception, status: int | None) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    known = names & {"APIConnectionError", "APITimeoutError", "ClientError"}  # SDKs, aiohttp
    return (
        bool(known) or status is not None or isinstance(error, OSError | TimeoutError | ValueError)
    )


def _fault(error: BaseException, said: str, status: int | None) -> str:
    """What failed where no error's status was received; '' where that is not known."""
    if status is not None and status >= 300:
        return f"HTTP {int(status)}"
    names = [said.partition(":")[0]]  # `wire` gives the transport's exception by name
    cause: BaseException | None = error
    while cause is not None and len(names) < _DEEPEST:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    found = " ".join(names)
    return next((fault for fault, marks in _FAULTS if marks.search(found)), "")


def _rate_limited(reason: str, said: str, headers: Mapping[str, str]) -> Failure:
    now = time.time()
    announced = read_headers(headers, now)
    empty = [limit for limit in announced if limit.remaining == 0]
    scope: Scope | None = next((name for name, words in _SCOPES if words.search(said)), None)
    if empty and scope is None:
        scope = "day" if empty[0].window == 86400.0 else empty[0].unit
    wait = retry_after(headers, now)
    if wait is None and empty:
        wait = max((limit.reset for limit in empty if limit.reset is not None), default=None)
    return Failure("rate_limited", reason, wait, 429, scope, announced)


def _headers_of(error: Any) -> Mapping[str, str]:
    headers = getattr(error, "headers", None)
    if headers is None:
        headers = getattr(getattr(error, "response", None), "headers", None)
    return headers or {}


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`, nor what looks like a key."""
    for secret in secrets:
        if len(secret) > 4:  # "none" is no secret, and a word
            text = text.replace(secret, "***")
    return _SECRET.sub("***", text)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by `retry-after-ms`, or `Retry-After` as seconds or as a date; else None."""
    if milliseconds := headers.get("retry-after-ms"):
        try:
            seconds = float(milliseconds) / 1000
        except ValueError:
            seconds = math.nan
        if 0.0 <= seconds < math.inf:
            return min(seconds, LONGEST_SECONDS)
    value = headers.get("retry-after")
    return seconds_of(value, now) if value else None
