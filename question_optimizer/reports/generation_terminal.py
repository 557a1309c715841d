"""The end of a run of the generator in a terminal: what came out, what to suspect, what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from question_optimizer.generation.summary import FEWEST_PLANNED
from question_optimizer.hostile_text import one_line
from question_optimizer.reports.figures import NOTHING

Summary = Mapping[str, Any]
_WIDTH = 80
_KINDS = 5  # rows of the table
_WARNINGS = 3
_NEXT = 3
_FEWEST = 20  # questions; the yield of fewer says little
_SHOWN = ("type", "format")


def told(
    summary: Summary, *, idle: bool = False, export: str = "python export_questions.py"
) -> list[str]:
    """At most 26 lines of at most 80 characters, with nothing in them that a terminal obeys.

    Of a run that was `idle` what stands there, without the yields and warnings of the runs before.
    `export` is a command for the next phase; it is not broken, so that it can be pasted.
    """
    lines = _wrapped(summary["sentence"], most=3)
    # A run with nothing to do tells what stands there, by an older version perhaps.
    lines += _wrapped(summary.get("without", ""), most=2)
    if summary["rehearsal"]:
        lines.append("rehearsal: a rule-based stand-in wrote these questions, no model")
    lines += _ending(summary["end"])
    if not idle:
        lines += _table(summary)
        lines += _warnings(summary)
        lines += _quotas(summary["quotas"])
    for step in list(_next_steps(summary, idle))[:_NEXT]:
        lines += _wrapped(f"next: {step}", most=1)
    if summary["slots"]["done"] and not summary["end"]["reason"]:
        lines.append(one_line(f"next: {export}"))
    return lines


def _wrapped(text: str, *, most: int, lead: str = "") -> list[str]:
    return textwrap.wrap(
        one_line(text),
        _WIDTH,
        initial_indent=lead,
        subsequent_indent="  ",
        max_lines=most,
        placeholder=" …",
        break_on_hyphens=False,
    )


def _ending(end: Summary) -> list[str]:
    if not end["reason"]:
        return []
    until = f"; it can go on from {end['until']}" if end["until"] else ""
    return _wrapped(f"ended early: {end['reason']}{until}", most=2)


def _table(summary: Summary) -> Iterator[str]:
    """The kinds with the lowest yield, and the gate that refused most of each."""
    kinds = [
        (dimension, one)
        for dimension in _SHOWN
        for one in summary["yields"][dimension]["listed"]
        if one["kind"] is not None and one["asked"] >= _FEWEST
    ]
    if not kinds:
        return
    kinds.sort(key=lambda row: row[1]["accepted"] / row[1]["asked"])
    yield f"{'lowest yields':30}{'asked':>9}{'accepted':>10}{'yield':>8}  refused most by"
    for dimension, one in kinds[:_KINDS]:
        name = one_line(f"{dimension} {one['kind']}")[:29]
        part = f"{100 * one['accepted'] / one['asked']:.1f} %"
        gates = one["gates"]
        gate = max(sorted(gates), key=lambda gate: gates[gate]) if gates else NOTHING
        row = f"{name:30}{one['asked']:>9,}{one['accepted']:>10,}{part:>8}  {one_line(gate)}"
        yield row[:_WIDTH]


def _warnings(summary: Summary) -> Iterator[str]:
    warnings = summary["warnings"]
    for warning in warnings[:_WARNINGS]:
        yield from _wrapped(f"WARNING: {warning['text']}", most=2)
    if left := len(warnings[_WARNINGS:]):
        yield f"and {left} more in the report"


def _quotas(quotas: Summary | None) -> Iterator[str]:
    if quotas and quotas["achieved"] >= FEWEST_PLANNED:
        pairs, every = quotas["distance"]["type_format"], quotas["distance"]["all"]
        yield (
            f"from the plan: {100 * pairs:.1f} % by type and format, {100 * every:.1f} % with "
            "length (total variation)"
        )


def _next_steps(summary: Summary, idle: bool) -> Iterator[str]:
    """What a person would do now, the most pressing first."""
    end, slots = summary["end"], summary["slots"]
    if end["reason"] or slots["pending"] or summary["questions"]["unchecked"]:
        yield "start it again; it goes on"
    if waiting := summary["write_back"]["waiting"]:
        yield f"--apply writes the questions of {waiting:,} chunks into the collection"
    if slots["failed"]:
        yield f"--retry-failed asks again for the {slots['failed']:,} that failed"
    if summary["warnings"] and not idle:
        yield "the report shows what each gate refused, with examples"
