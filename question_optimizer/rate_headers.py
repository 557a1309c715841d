"""What providers say about their limits in the headers of every answer.

    openai, groq, azure   x-ratelimit-limit-requests: 600, x-ratelimit-reset-requests: 6m0s, …
    anthropic             anthropic-ratelimit-input-tokens-remaining: 9000, …-reset: 2026-03-14T…Z
    cerebras, mistral     x-ratelimit-limit-requests-day, x-ratelimit-remaining-tokens-minute, …

Few say over which window a limit counts: OpenAI's `requests` are a minute's, Groq's a day's. The
time until the limit is full again tells: read over several answers, `Windows` works it out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from question_optimizer.limits import Unit

_WINDOWS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_KNOWN_WINDOWS = (1.0, 10.0, 60.0, 3600.0, 86400.0)
LONGEST_SECONDS = 366 * 86400.0  # whatever a server says
_AGREEING = 3  # observations in a row, before a window that none has named is believed
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Announced(NamedTuple):
    """One limit as a provider's headers give it; None where they do not."""

    unit: Unit
    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None  # seconds until the limit is full again
    window: float | None = None  # seconds over which the limit counts


def read_headers(headers: Mapping[str, str], now: float) -> tuple[Announced, ...]:
    """Every limit that `headers` announce; `now` is the wall clock, in seconds since 1970."""
    found: dict[tuple[Unit, float | None], dict[str, float]] = {}
    for name, value in headers.items():
        if "ratelimit" not in name and "RateLimit" not in name and "Ratelimit" not in name:
            continue
        words = name.lower().split("-")
        unit = _unit(words)
        if unit is None:
            continue
        window = next((_WINDOWS[word] for word in words if word in _WINDOWS), None)
        if window is None and words[0] == "anthropic":
            window = 60.0
        entry = found.setdefault((unit, window), {})
        if "reset" in words and (seconds := seconds_of(value, now)) is not None:
            entry["reset"] = seconds
        elif ("limit" in words or "remaining" in words) and (amount := _number(value)) is not None:
            entry["limit" if "limit" in words else "remaining"] = amount
        elif "renewalperiod" in words and (seconds := _number(value)) is not None:
            entry["window"] = seconds
    return tuple(
        Announced(unit, **{"window": window, **entry})
        for (unit, window), entry in found.items()
        if entry
    )


def _unit(words: list[str]) -> Unit | None:
    if "tokens" in words:
        return (
            "input_tokens"
            if "input" in words
            else "output_tokens"
            if "output" in words
            else "tokens"
        )
    return "requests" if "requests" in words or "req" in words else None


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def seconds_of(value: str, now: float) -> float | None:
    """Seconds from `now` of "12", "6m0s", "120ms", an RFC 3339 or an HTTP date; None if neither.

    A bare number so large that it can only be a point in time is read as one.
    """
    value = value.strip()
    number = _number(value)
    if number is not None:
        if number > 1e12:  # milliseconds since 1970
            number = number / 1000 - now
        elif number > 1e9:
            number -= now
        return min(max(0.0, number), LONGEST_SECONDS)
    parts = _DURATION.findall(value)
    if parts and "".join(amount + unit for amount, unit in parts) == value:
        seconds = sum(float(amount) * _SECONDS[unit] for amount, unit in parts)
        return min(seconds, LONGEST_SECONDS)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return min(max(0.0, read(value).timestamp() - now), LONGEST_SECONDS)
        except (ValueError, TypeError, OverflowError):
            continue
    return None


@dataclass
class Windows:
    """Works out over which window an account's limits count, from one answer after another."""

    _seen: dict[Unit, _Sight] = field(default_factory=dict)

    def observe(self, said: Announced, now: float) -> tuple[float | None, bool]:
        """(window in seconds or None, whether it is a fixed window that ends at once for all)."""
        sight = self._seen.setdefault(said.unit, _Sight())
        if said.limit and said.remaining is not None and said.reset is not None:
            sight.add(said.limit, said.limit - said.remaining, said.reset, now)
        window = said.window or sight.window
        if window is None and said.unit != "requests":
            window = 60.0  # tokens are a minute's wherever the name says nothing else
        return window, sight.fixed


@dataclass
class _Sight:
    """What was seen of one limit.

    A bucket refills evenly: the time to full is used ÷ rate, so limit x time ÷ used is the window.
    A fixed window ends at one moment however much is used, and a new one is as long as the window.
    """

    window: float | None = None
    fixed: bool = False
    _guess: float | None = None
    _agreed: int = 0
    _end: float = -math.inf
    _seen_at: float = -math.inf
    _used: float = 0.0

    def add(self, limit: float, used: float, reset: float, now: float) -> None:
        end = now + reset
        if abs(end - self._end) < 1.1 and now - self._seen_at > 2.0 and used > self._used:
            self.fixed = True
        elif self.fixed and end - self._end > 1.1:  # the next window: it has just begun
            self.window = _nearest(end - self._end, 0.1) or self.window
        if now - self._seen_at > 2.0 or not math.isfinite(self._seen_at):
            self._end, self._seen_at, self._used = end, now, used
        if self.fixed or used <= 0 or reset <= 0:
            return
        guess = _nearest(reset * limit / used, 0.15)
        self._agreed = self._agreed + 1 if guess == self._guess else 1
        self._guess = guess
        if guess is not None and self._agreed >= _AGREEING:
            self.window = guess


def _nearest(seconds: float, tolerance: float) -> float | None:
    for known in _KNOWN_WINDOWS:
        if abs(seconds / known - 1.0) <= tolerance:
            return known
    return None
