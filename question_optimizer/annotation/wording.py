"""What screen and line mode say alike: the keys, where a chunk stands, who asks, what is late.

And what a last line says of the rehearsal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from question_optimizer.annotation.session import Card, Progress
from question_optimizer.hostile_text import one_line
from question_optimizer.personas import FALLBACK
from question_optimizer.records import Chunk


class Key(NamedTuple):
    """`press` is what is pressed, `short` the word in the footer, `help` the sentence in `?`."""

    press: str
    short: str
    help: str


KEYS = (
    Key("1-9", "pick", "take that suggestion as it is"),
    Key("e", "edit", "edit a suggestion in place, then take it"),
    Key("w", "write", "write a question of your own"),
    Key("s", "skip", "no good question here: skip, with a reason"),
    Key("d", "defer", "later: the chunk comes back when all others are done"),
    Key("f", "flag", "to be discussed: as deferred, with a note"),
    Key("u", "undo", "take back the latest decision, also one from an earlier session"),
    Key("p", "persona", "choose who asks; the suggestions follow"),
    Key("r", "others", "ask for other suggestions, or again after a failure"),
    Key("x", "bad", "mark a suggestion as bad, or no longer: bad ones teach the judge"),
    Key("0", "keep", "blind test: keep your own question once the suggestions show"),
    Key("n", "near", "show or hide the chunks before and after, and the whole persona"),
    Key("/", "find", "search the sample, and go to a chunk, a decided one too"),
    Key("?", "help", "these keys"),
    Key("q", "quit", "leave; everything is saved, the same command goes on here"),
)


def place_of(chunk: Chunk) -> str:
    """File › headings › page, printable."""
    page = [f"page {chunk.page_no}"] if chunk.page_no else []
    parts = map(one_line, [chunk.file_name or "", *chunk.headings, *page])
    return " › ".join(filter(None, parts))


def persona_line(card: Card) -> str:
    """Who asks, printable, or why nobody does yet."""
    if card.persona is not None:
        by = " (the nearest; the LLM gave no choice)" if card.prepared.chosen_by == FALLBACK else ""
        return one_line(f"{card.persona.name}: {card.persona.description}{by}")
    if card.prepared.chosen_by:
        return "no persona fits this chunk: p chooses one, s skips it"
    return "choosing the persona…" if card.prepared.pending else "no persona yet: p chooses one"


def notices_of(card: Card) -> list[str]:
    """What one should know before deciding, a line each: what stands, what is missing and why."""
    lines = [_standing(card)]
    if card.note:
        lines.append(f"flagged: {card.note}")
    if card.draft and not card.own:
        lines.append("a text of yours is kept: w goes on with it")
    lines.append(suggestions_notice(card))
    return [one_line(line) for line in lines if line]


def suggestions_notice(card: Card) -> str:
    """Why suggestions are not all there; '' if they are."""
    prepared = card.prepared
    if card.withheld:
        return "blind test: write your question first (w), then the suggestions show"
    if prepared.problem:
        other = "other " if card.suggestions else ""
        return one_line(f"no {other}suggestions: {prepared.problem}; r tries again")
    if prepared.pending == "persona" and card.persona is None:
        return "late: the persona is being chosen first (the embedding model may have to load)"
    if prepared.pending:
        return "suggestions are late: they fill in when they come; w writes without them"
    if card.persona is not None and not card.suggestions:
        return "no suggestions; r asks for some"
    return ""


def _standing(card: Card) -> str:
    if card.standing is None or not card.standing.settles:
        return ""
    what = f"“{card.question}”" if card.question else card.standing.reason or ""
    return f"already decided ({card.standing.action}): {what}; a new decision replaces it"


def progress_line(progress: Progress, spend: float) -> str:
    """Done, left, pace, time left and spend, as far as they are known."""
    parts = [f"{progress.done} done", f"{progress.left} left"]
    if progress.per_hour is not None and progress.hours_left is not None:
        parts += [f"{progress.per_hour:.0f} an hour", f"{_hours(progress.hours_left)} to go"]
    parts.append(f"spent {spend:.4f}")
    return " · ".join(parts)


def _hours(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def rehearsal_note(models: Iterable[Sequence[str]]) -> str:
    """What the last line has to say if the rehearsal was among those that made suggestions."""
    return " (suggestions by the rehearsal)" if any("rehearsal" in m for m in models) else ""
