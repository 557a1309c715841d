"""The intervals, the histograms and the bars in tables, as inline SVG with their text as text.

Places are percentages of the width and letters have the page's size, so that a plot fits a phone
without being scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from question_optimizer.reports.figures import level, signed, span
from question_optimizer.reports.markup import Child, Html, tag

_ROW, _AXIS = 68, 40  # pixels of a comparison, of the axis below all
_EDGE = 5.0  # per cent kept free left and right
_BAR, _TALLEST, _BASE = 20, 70, 88  # a histogram's bars, in units of its own
_SHARE = 64  # pixels of a bar in a table


def interval_plot(comparisons: Sequence[Mapping[str, Any]], min_gain: float | None) -> Html:
    """A row a comparison: point and interval about the zero line, the name and figures above."""
    ticks = _ticks(_values(comparisons, min_gain))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> str:
        return f"{_EDGE + (100 - 2 * _EDGE) * (value - low) / (high - low):.2f}%"

    bottom = _ROW * len(comparisons)
    upright = dict.fromkeys(ticks, "grid") | {min_gain or 0.0: "wanted", 0.0: "zero"}
    parts = []
    for place, one in enumerate(comparisons):
        top = _ROW * place
        # Only beside the interval: through the letters above it they would be in the way.
        parts += [_line(x(v), top + 42, x(v), top + _ROW - 4, kind) for v, kind in upright.items()]
        parts += _comparison(one, top, x)
    for tick in ticks:
        shown = signed(tick, 2) if tick else "0"
        parts.append(tag("text", shown, x=x(tick), y=bottom + 16, class_="tick"))
    parts += [
        tag("text", "← worse", x="0%", y=bottom + 34, class_="muted"),
        tag("text", "better →", x="100%", y=bottom + 34, class_="muted end"),
    ]
    return _svg(
        "intervals",
        "Difference of the mean scores, with interval",
        "; ".join(_in_words(one) for one in comparisons),
        parts,
        width="100%",
        height=bottom + _AXIS,
    )


def histogram(counts: Sequence[int], tallest: int, number: int) -> Html:
    """Ten bars, of scores from 0 to 1; `tallest` is the count that fills the height."""
    parts: list[Child] = []
    for bar, count in enumerate(counts):
        height = _TALLEST * count / max(1, tallest)
        left = 10 + _BAR * bar
        parts.append(
            tag("rect", x=left + 1, y=f"{_BASE - height:.1f}", width=_BAR - 2,
                height=f"{height:.1f}", class_="bar")
        )  # fmt: skip
        if count:
            middle = left + _BAR / 2
            parts.append(
                tag("text", f"{count:,}", x=middle, y=f"{_BASE - height - 4:.1f}", class_="tick")
            )
    parts.append(_line(10, _BASE, 10 + _BAR * len(counts), _BASE, "zero"))
    for score in (0, 0.5, 1):
        place = 10 + _BAR * len(counts) * score
        parts.append(tag("text", f"{score:g}", x=place, y=_BASE + 16, class_="tick"))
    said = ", ".join(
        f"{place / 10:.1f} to {(place + 1) / 10:.1f}: {count:,}"
        for place, count in enumerate(counts)
        if count
    )
    return _svg(
        f"histogram-{number}",
        "Number of scores by height",
        said or "no score",
        parts,
        viewBox=f"0 0 {20 + _BAR * len(counts)} {_BASE + 24}",
    )


def columns(counts: Sequence[tuple[str, int]], *, name: str, title: str, every: int = 1) -> Html:
    """A column a count, over the width of the page; every so many have their label below.

    Few columns have their count above them, of many the tallest alone.
    """
    tallest = max((count for _, count in counts), default=0)
    width = 100 / max(1, len(counts))
    parts: list[Child] = []
    for place, (label, count) in enumerate(counts):
        height = _TALLEST * count / max(1, tallest)
        left, middle = width * place, width * (place + 0.5)
        parts.append(
            tag("rect", x=f"{left + width / 10:.2f}%", y=f"{_BASE - height:.1f}",
                width=f"{width * 0.8:.2f}%", height=f"{height:.1f}", class_="bar")
        )  # fmt: skip
        if count and (len(counts) <= 10 or count == tallest):
            above = f"{_BASE - height - 4:.1f}"
            parts.append(tag("text", f"{count:,}", x=f"{middle:.2f}%", y=above, class_="tick"))
        if place % every == 0:
            shown = _short(label, 12)
            parts.append(tag("text", shown, x=f"{middle:.2f}%", y=_BASE + 16, class_="tick"))
    parts.append(_line("0%", _BASE, "100%", _BASE, "zero"))
    said = ", ".join(f"{label}: {count:,}" for label, count in counts if count) or "nothing"
    return _svg(name, title, said, parts, width="100%", height=_BASE + 24)


def share_bar(value: float | None) -> Html | None:
    """A small bar for a table's cell, beside the share's figure, which says the same."""
    if value is None:
        return None
    filled = round(_SHARE * min(1.0, max(0.0, value)), 1)
    return tag(
        "svg",
        tag("rect", width=_SHARE, height=10, class_="track"),
        tag("rect", width=filled, height=10, class_="bar"),
        class_="share",
        width=_SHARE,
        height=10,
        aria_hidden="true",
    )


def _comparison(one: Mapping[str, Any], top: int, x: Any) -> list[Html]:
    """The name and the figures of one row, and below them its interval and point."""
    name = f"{_short(one['arm'])} − {_short(one['against'])}"
    decides = one.get("decides")
    parts = [
        tag("text", name, x="0%", y=top + 18, class_="name"),
        tag("text", _figures(one), x="0%", y=top + 36, class_="muted"),
    ]
    difference, low, high = (one.get(key) for key in ("difference", "low", "high"))
    middle = top + 53
    if low is not None and high is not None:
        parts += [
            _line(x(low), middle, x(high), middle, "interval"),
            _line(x(low), middle - 6, x(low), middle + 6, "interval"),
            _line(x(high), middle - 6, x(high), middle + 6, "interval"),
        ]
    if difference is not None and one.get("n"):
        kind = "point" if decides else "point open"
        parts.append(tag("circle", cx=x(difference), cy=middle, r=6, class_=kind))
    return parts


def _figures(one: Mapping[str, Any]) -> str:
    if not one.get("n"):
        return "no item has a score in both"
    if one.get("low") is None:
        return f"{signed(one.get('difference'))}, too few items for an interval"
    between = span(one["low"], one["high"])
    return f"{signed(one['difference'])} ({level(one.get('level'))}: {between})"


def _in_words(one: Mapping[str, Any]) -> str:
    return f"{one['arm']} against {one['against']}: {_figures(one)}"


def _short(name: object, most: int = 24) -> str:
    return str(name) if len(str(name)) <= most else f"{str(name)[:most]}…"


def _values(comparisons: Sequence[Mapping[str, Any]], min_gain: float | None) -> list[float]:
    """All that has to have a place on the axis."""
    found = [one.get(key) for one in comparisons for key in ("difference", "low", "high")]
    return [float(value) for value in (*found, min_gain, 0.0) if value is not None]


def _ticks(values: Sequence[float]) -> list[float]:
    """Round steps from below the least to above the greatest value, five or fewer within."""
    low, high = min(values), max(values)
    width = max(high - low, 0.02)
    step = 10.0 ** math.floor(math.log10(width / 2))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if width / (step * factor) <= 3.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 6) + 0.0 for k in range(min(first, -1), max(last, 1) + 1)]


def _line(x1: object, y1: object, x2: object, y2: object, kind: str) -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _svg(name: str, title: str, said: str, parts: Sequence[Child], **size: object) -> Html:
    """`name` is the report's own word; `said` may hold data, which is why it is text."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", said, id=f"{name}-desc"),
        *parts,
        class_="plot",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        **size,
    )
