"""How questions moved from one ranking to another: a line from before to after for each level."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from question_optimizer.reports.markup import Html, join, tag

_LINE, _TOP = 28, 30  # pixels between two levels of the plot, above the first
_LEFT, _RIGHT = 27, 73  # per cent: where its lines begin and end


def moves_section(rows: Iterable[Mapping[str, Any]]) -> Html:
    """The plot, and how to read it; `rows` are a proof's."""
    moves = Counter((round(r["before"]["ndcg"], 2), round(r["after"]["ndcg"], 2)) for r in rows)
    said = (
        "Each line joins a question's nDCG@10 before and after; thicker lines are several. 1 is "
        "first place, 0.63 second, 0.50 third; 0 is not among the first ten. Levels are in order, "
        "not to scale."
    )
    legend = tag(
        "p",
        tag("span", "— better", class_="gain"),
        " · ",
        tag("span", "- - worse", class_="loss"),
        " · ",
        tag("span", "— the same", class_="muted"),
    )
    return join([tag("p", said), legend, tag("div", move_plot(moves), class_="item-plot")])


def move_plot(moves: Mapping[tuple[float, float], int]) -> Html:
    """A line for each (before, after) that occurs, as thick as it is frequent."""
    levels = sorted({level for move in moves for level in move}, reverse=True)
    y = {level: _TOP + _LINE * place for place, level in enumerate(levels)}
    parts = [
        tag("text", "before", x=f"{_LEFT}%", y=14, class_="muted end"),
        tag("text", "after", x=f"{_RIGHT}%", y=14, class_="muted"),
    ]
    for (a, b), count in sorted(moves.items(), key=lambda move: (move[0][0] != move[0][1], move)):
        kind, dashes = ("gain", None) if b > a else ("loss", "7 5") if b < a else ("muted", None)
        parts.append(
            tag("line", x1=f"{_LEFT + 2}%", y1=y[a], x2=f"{_RIGHT - 2}%", y2=y[b], class_=kind,
                stroke="currentColor", stroke_width=f"{1.5 * math.sqrt(count):.1f}",
                stroke_dasharray=dashes)
        )  # fmt: skip
    for level in levels:
        left, right = (sum(n for m, n in moves.items() if m[side] == level) for side in (0, 1))
        if left:
            words = f"{left:,} at {level:.2f}"
            parts.append(tag("text", words, x=f"{_LEFT}%", y=y[level] + 5, class_="end"))
        if right:
            parts.append(tag("text", f"{right:,} at {level:.2f}", x=f"{_RIGHT}%", y=y[level] + 5))
    said = "; ".join(f"{a:.2f} to {b:.2f}: {n}" for (a, b), n in sorted(moves.items()))
    return tag(
        "svg",
        tag("title", "nDCG@10 of each question before and after", id="moves-title"),
        tag("desc", said, id="moves-desc"),
        *parts,
        class_="plot",
        role="img",
        aria_labelledby="moves-title moves-desc",
        width="100%",
        height=_TOP + _LINE * len(levels),
    )
