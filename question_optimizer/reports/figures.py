"""How a number is written: one way for each kind, and a dash where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTHING = "–"


def figure(value: float | int | None) -> str:
    """A table's cell: three decimals for a mean, a dash where nothing was measured."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def number(value: Any, digits: int = 3) -> str:
    """A measured value with so many decimals; what is no number is shown as it is."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,.{digits}f}".replace("-", "−")
    return str(value)


def two(value: Any) -> str:
    """A value with two decimals."""
    return number(value, 2)


def whole(value: Any) -> str:
    """A count."""
    return number(value, 0)


def share(value: Any) -> str:
    """A fraction from 0 to 1 as a percentage."""
    return NOTHING if value is None else f"{number(100 * value, 1)} %"


def cost(value: Any) -> str:
    """An amount in the accounts' currency, small ones to four figures that count."""
    if value is None:
        return NOTHING
    return f"{value:.4g}" if 0 < abs(value) < 1 else number(value, 2)


def signed(value: Any, digits: int = 3) -> str:
    """A difference, always with its sign."""
    return NOTHING if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def points(value: Any) -> str:
    """A difference of two shares, in percentage points."""
    return NOTHING if value is None else f"{signed(100 * value, 1)} points"


def chance(value: Any) -> str:
    """A p value."""
    if value is None:
        return NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def span(low: Any, high: Any) -> str:
    """An interval of differences."""
    return NOTHING if low is None or high is None else f"{signed(low)} to {signed(high)}"


def level(value: Any) -> str:
    """An interval's level: "95 %"."""
    return "" if value is None else f"{100 * value:g} %"


def estimate(value: Mapping[str, Any] | None, *, as_share: bool = False) -> str:
    """A {value, low, high} with its interval in brackets."""
    show = share if as_share else number
    if not value or value.get("value") is None:
        return NOTHING
    if value.get("low") is None or value.get("high") is None:
        return show(value["value"])
    return f"{show(value['value'])} ({show(value['low'])} to {show(value['high'])})"


def brief(value: Any) -> str:
    """A value of any size, to four figures that count."""
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else plain(value)


def sentence(said: Any) -> str:
    """With a capital letter and a full stop, whatever it came with."""
    text = str(said).strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """ "1 item", "2 items"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def plain(value: Any) -> str:
    """A value of which only the type is known."""
    if value is None or isinstance(value, bool | float):
        return number(value)
    return whole(value) if isinstance(value, int) else str(value)
