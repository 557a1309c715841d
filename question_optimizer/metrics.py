"""The dispatcher's figures as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_PREFIX = "question_optimizer_"
# field of the snapshot, metric, type, help
_METRICS = (
    ("started", "calls_started_total", "counter", "Calls handed to the account."),
    ("ok", "calls_ok_total", "counter", "Calls that were answered."),
    ("rate_limited", "calls_rate_limited_total", "counter", "Calls refused with status 429."),
    ("retried", "calls_retried_total", "counter", "Calls made again elsewhere after this one."),
    ("failed", "calls_failed_total", "counter", "Calls that failed otherwise."),
    ("input_tokens", "input_tokens_total", "counter", "Tokens read, as reported."),
    ("output_tokens", "output_tokens_total", "counter", "Tokens written, as reported."),
    ("spend", "spend_total", "counter", "Cost in the account's currency."),
    ("in_flight", "calls_in_flight", "gauge", "Calls being made now."),
    ("waiting", "calls_waiting", "gauge", "Calls that wait for this account or another."),
    ("requests_today", "requests_today", "gauge", "Requests of the day, of all processes."),
    ("tokens_today", "tokens_today", "gauge", "Tokens of the day, of all processes."),
    ("at_once", "limit_in_flight", "gauge", "Calls at once, as configured or learnt."),
    ("rests", "rest_seconds", "gauge", "Seconds of rest after failures or refusals."),
    ("spent_today", "day_spent", "gauge", "1 where the day allows no further call."),
    ("out", "account_out", "gauge", "1 where the account takes no further part."),
)


def prometheus(snapshot: Iterable[Mapping[str, Any]]) -> str:
    """One sample per account and metric; a limit that does not exist has none."""
    accounts = list(snapshot)
    lines: list[str] = []
    for entry, name, kind, text in _METRICS:
        samples = [(_labels(account), account[entry]) for account in accounts]
        lines += _family(name, kind, text, samples)
    rates = [
        (_labels(account, unit=unit), rate)
        for account in accounts
        for unit, rate in account["per_minute"].items()
    ]
    lines += _family("limit_per_minute", "gauge", "Units a minute, as learnt.", rates)
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str, samples: list[tuple[str, Any]]) -> list[str]:
    head = [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"]
    values = [(labels, int(bool(v)) if isinstance(v, str | bool) else v) for labels, v in samples]
    return head + [f"{_PREFIX}{name}{labels} {v}" for labels, v in values if v is not None]


def _labels(account: Mapping[str, Any], **more: str) -> str:
    pairs = {"account": account["name"], "model": account["model"], **more}
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
