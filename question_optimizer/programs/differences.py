"""What an optimised program does differently, in words."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import dspy

from question_optimizer.hostile_text import one_line

_WIDTH = 96
_SHOWN = 200  # characters of a demonstration's field


def difference(before: dspy.Module, after: dspy.Module) -> Iterator[str]:
    """Lines for a terminal: by predictor, a diff of the instructions and the demonstrations."""
    for (name, old), (_, new) in zip(
        before.named_predictors(), after.named_predictors(), strict=True
    ):
        was, now = old.signature.instructions, new.signature.instructions
        yield f"{name}: instructions {'unchanged' if was == now else 'changed'}"
        yield from _instructions(was, now)
        yield from _fields(old, new)
        yield f"{name}: {len(new.demos)} demonstrations"
        for number, demo in enumerate(new.demos, 1):
            yield from _demonstration(number, demo, new)


def _instructions(was: str, now: str) -> Iterator[str]:
    """A diff by sentence: what went, what came, and between them what stayed only as "…"."""
    if was == now:
        return
    stayed = False
    for line in difflib.ndiff(_sentences(was), _sentences(now)):
        mark, text = line[:2], line[2:]
        if mark == "? ":
            continue
        if mark == "  ":
            if not stayed:
                yield "    …"
            stayed = True
            continue
        stayed = False
        yield from textwrap.wrap(
            text, _WIDTH, initial_indent=f"  {mark}", subsequent_indent=f"  {mark}"
        )


def _sentences(text: str) -> list[str]:
    """Line breaks within a sentence are no difference."""
    return re.split(r"(?<=[.!?])\s+", " ".join(text.split()))


def _fields(old: Any, new: Any) -> Iterator[str]:
    """COPRO also rewrites the label of the last field."""
    for field, info in new.signature.fields.items():
        was = old.signature.fields[field].json_schema_extra["prefix"]
        now = info.json_schema_extra["prefix"]
        if was != now:
            yield f"    label of {field}: {was!r} -> {now!r}"


def _demonstration(number: int, demo: Any, predictor: Any) -> Iterator[str]:
    excerpt = one_line(str(demo.get("chunk_text", "")))[:_SHOWN]
    yield f"  {number}. {excerpt}…" if excerpt else f"  {number}."
    for field in predictor.signature.fields:
        if field != "chunk_text" and field in demo:
            yield f"       {field}: {one_line(str(demo[field]))[:_SHOWN]}"
