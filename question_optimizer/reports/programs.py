"""What the compared programs are: how they were made, and what they do differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from question_optimizer.reports.markup import Html, join, note, tag

Origins = Mapping[str, Mapping[str, Any]]


def programs_section(origins: Origins) -> Html:
    """For each candidate its optimiser, what was known of the judge then, and its changes."""
    if not origins:
        return tag("p", "Nothing is recorded of how the programs were made.")
    return join(_program(name, origin) for name, origin in origins.items())


def programs_warnings(origins: Origins, rehearsal: bool) -> Iterator[Html]:
    """Which candidates were optimised with a judge that nobody checked, or that failed; or by the
    rehearsal, where the evaluation is none."""
    for name, origin in origins.items():
        if origin.get("rehearsal") and not rehearsal:
            yield note("warn", f"{name} was made in a rehearsal:", "no real model proposed it.")
        if not origin.get("judge_trusted"):
            checked = origin.get("judge_checked")
            lead = f"{name} was optimised with {'a judge that failed' if checked else 'an'} "
            yield note(
                "warn",
                lead + ("its check." if checked else "unchecked judge."),
                str(origin.get("judge_why") or ""),
            )


def _program(name: str, origin: Mapping[str, Any]) -> Html:
    changes: Sequence[str] = origin.get("changes") or ["nothing is recorded"]
    return join(
        [
            tag("h3", name),
            tag("p", f"Made by {origin.get('optimizer') or 'an unknown optimiser'}."),
            tag("pre", "\n".join(changes), tabindex=0, aria_label=f"what {name} does differently"),
        ]
    )
