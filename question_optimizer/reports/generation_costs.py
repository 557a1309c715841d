"""What failed in a run of the generator, what it took, and how to go on or back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from question_optimizer.reports.figures import NOTHING, cost, whole
from question_optimizer.reports.markup import Child, Html, Row, join, table, tag

Summary = Mapping[str, Any]


def moment(iso: str) -> str:
    """ "2026-11-22 09:00 UTC"; what is no moment is shown as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso or NOTHING
    return f"{at.astimezone(UTC) if at.tzinfo else at:%Y-%m-%d %H:%M}{' UTC' if at.tzinfo else ''}"


def duration(seconds: float) -> str:
    """ "1 h 27 min", "43 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def failures_section(failures: Summary) -> Html:
    if not failures["slots"]:
        return tag("p", "Nothing failed.")
    rows: list[Row] = [
        [one["reason"], whole(one["slots"]), ", ".join(map(str, one["chunks"]))]
        for one in failures["reasons"]
    ]
    if failures["other"]:
        rows.append(["other reasons", whole(failures["other"]), ""])
    said = "Reasons that differ in numbers only are counted together. --retry-failed tries again."
    head = ["First reason of its kind", "Questions", "Chunks, for example"]
    return join([tag("p", said), table("Failures by reason", head, rows, words=True)])


def cost_section(summary: Summary) -> Html:
    usage = summary["usage"]
    models: list[Row] = [[one["model"] or "not known", *_spent(one)] for one in usage["by_model"]]
    models.append(["all", *_spent(usage)])
    per = usage["cost_per_question"], usage["tokens_per_question"]
    said = (
        f"An accepted question took {whole(per[1])} tokens and cost {cost(per[0])}, those that "
        "were refused or failed on its way included."
    )
    parts: list[Child] = [
        tag("p", said) if per[1] is not None else None,
        table("By model", ["", "Wanted", "Calls", "Tokens", "Cost"], models),
    ]
    if summary["accounts"]:
        rows = [_account(account) for account in summary["accounts"]]
        head = ["", "Model", "Calls", "Answered", "Turned away", "Failed", "Tokens", "Cost", "Now"]
        parts.append(table("By account, in this run", head, rows))
    return join(parts)


def _spent(one: Summary) -> list[str]:
    return [whole(one["slots"]), whole(one["calls"]), whole(one["tokens"]), cost(one["cost"])]


def _account(one: Summary) -> Row:
    tokens = (one.get("input_tokens") or 0) + (one.get("output_tokens") or 0)
    now = one.get("out") or ("spent today" if one.get("spent_today") else "")
    if not now and (one.get("rests") or 0) > 0:
        now = f"rests {duration(one['rests'])}" + (f": {one['why']}" if one.get("why") else "")
    counts = (whole(one.get(key)) for key in ("started", "ok", "rate_limited", "failed"))
    return [
        one.get("name") or "", one.get("model") or "", *counts, whole(tokens),
        cost(one.get("spend")), now or "ready",
    ]  # fmt: skip


def sources_section(summary: Summary) -> Html:
    configuration, end = summary["configuration"], summary["end"]
    written = summary["write_back"]
    rows: list[Row] = [
        [name, whole(written[key])]
        for key, name in (
            ("written", "in the collection"),
            ("waiting", "waiting to be written"),
            ("undone", "taken out again"),
        )
    ]
    runs: list[Row] = [
        [
            tag("code", run["run"]),
            moment(run["at"]),
            whole(run["chunks"]),
            "yes" if run["undone"] else "no",
        ]
        for run in written["runs"]
    ]
    undo = tag("p", "Take this run's questions out again: ", tag("code", end["undo"]))
    settings = {**{k: v for k, v in configuration.items() if k != "settings"},
                **configuration["settings"]}  # fmt: skip
    shown = [[str(key).replace("_", " "), tag("code", _compact(v))] for key, v in settings.items()]
    return join(
        [
            _how_to_go_on(summary),
            undo if end["undo"] else None,
            table("Chunks with finished questions", ["", "Number"], rows),
            table("Runs that wrote", ["", "First write", "Chunks", "Undone"], runs)
            if runs
            else None,
            tag("div", table("Configuration", ["", "Value"], shown, words=True), class_="sources"),
        ]
    )


def _how_to_go_on(summary: Summary) -> Html | None:
    unfinished = summary["slots"]["pending"] or summary["questions"]["unchecked"]
    if not (summary["end"]["reason"] or unfinished):
        return None
    return tag("p", "Go on: start it again with the same settings. What is made stays made.")


def _compact(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
