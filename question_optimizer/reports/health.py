"""The questions of an arm as a set: whatever figures `set_health` found, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from question_optimizer.reports.figures import NOTHING, estimate, plain, plural
from question_optimizer.reports.markup import Child, Html, Row, details, join, note, table, tag

_MOST_LINES = 12  # of one nested figure: a mix has few kinds, a count of openings may have many
_MOST_EXAMPLES = 10
# What set_health's figures mean; a key that is not here is shown as it is.
_NAMES = {
    "n": "questions",
    "left_out": "without a question",
    "words": "words in a question",
    "types": "query types",
    "formats": "query formats",
    "effective_number": "effective number of kinds",
    "unknown": "of no known kind",
    "distance_to_gold": "distance to gold's mix, 0 to 1",
    "near_duplicates": "near-duplicates",
    "copying": "copied from the chunk",
    "over": "questions over the limit",
    "nothing": "questions that share no word",
    "opening": "commonest beginning",
    "self_repetition": "questions with 4 words in a row of another",
    "distinct_2": "distinct pairs of words",
    "gold": "against the gold question of the chunk",
    "compared": "questions compared",
    "identical": "the same",
    "near_duplicate": "nearly the same",
    "jaccard": "mean overlap of characters",
}
# Where a key means something else than in other groups.
_IN_GROUP: dict[tuple[str, ...], str] = {
    ("opening", "words"): "the words",
    ("opening", "share"): "questions that begin so",
    ("near_duplicates", "pairs"): "pairs",
    ("near_duplicates", "share"): "questions in a pair",
    ("copying", "rate"): "of the runs of 4 words",
}
_TOLD_IF_ANY = {"left_out", "unknown"}
_SHARES = {
    *("share", "rate", "over", "nothing", "self_repetition", "distinct_2"),
    *("identical", "near_duplicate"),
}

Place = tuple[str, ...]


def health_section(by_set: Mapping[str, Mapping[str, Any]]) -> Html:
    """Alarms first, then a column a set. Keys are not known here: a new figure gets its row."""
    if not by_set:
        return tag("p", "Not looked at.")
    alarms = [_alarms(name, found) for name, found in by_set.items()]
    return join([*alarms, _table("Health of each set", [*by_set], [*by_set.values()])])


def set_section(found: Mapping[str, Any]) -> Html:
    """The same of a set that stands alone."""
    return join([_alarms("", found), _table("The sample in figures", ["Value"], [found])])


def _table(caption: str, heads: list[str], sets: list[Mapping[str, Any] | None]) -> Html | None:
    """A column a set; a figure that none of them has gets no row."""
    columns = [dict(_figures(found or {}, ())) for found in sets]
    groups: dict[str, list[Place]] = {}
    for place in dict.fromkeys(place for column in columns for place in column):
        if any(_is_told(place, column.get(place, NOTHING)) for column in columns):
            groups.setdefault(place[0], []).append(place)
    rows: list[Row] = []
    # Single figures first: below a group they would seem to belong to it.
    for group, places in sorted(groups.items(), key=lambda named: any(p[1:] for p in named[1])):
        lines = [place for place in places if place[1:]] or places  # one set may have no details
        if lines[0][1:]:
            rows.append([_words(group)])
        for place in lines[:_MOST_LINES]:
            rows.append([_name(place), *(column.get(place, NOTHING) for column in columns)])
        if left := len(lines[_MOST_LINES:]):
            rows.append([tag("small", f"and {plural(left, 'more line')}"), *("" for _ in columns)])
    return table(caption, ["", *heads], rows) if rows else None


def _is_told(place: Place, value: Child) -> bool:
    return value != NOTHING and not (value == "0" and place[-1] in _TOLD_IF_ANY)


def _name(place: Place) -> str:
    return _IN_GROUP.get(place[-2:]) or " · ".join(map(_words, place[1:] or place))


def _alarms(name: str, found: Mapping[str, Any] | None) -> Html | None:
    """What is wrong in a box of its own; mere notes below. A set that stands alone has no name."""
    if not found or not (alarms := found.get("alarms")):
        return None
    said = alarms if isinstance(alarms, list) else [alarms]
    notes = [one for one in said if isinstance(one, Mapping) and one.get("level") == "note"]
    warnings = [one for one in said if one not in notes]
    of, whose = (f": {name}", f"{name}: ") if name else ("", "")
    return join(
        [
            note("warn", f"{plural(len(warnings), 'alarm')}{of}") if warnings else None,
            tag("ul", *(tag("li", _told(one)) for one in warnings)) if warnings else None,
            *(tag("p", tag("small", f"{whose}{_told(one)}")) for one in notes),
        ]
    )


def _told(alarm: Any) -> str:
    return str(alarm["text"]) if isinstance(alarm, Mapping) and "text" in alarm else _one(alarm)


def _figures(found: Mapping[str, Any], place: Place) -> Iterator[tuple[Place, Child]]:
    """Each figure with the keys that lead to it, in order."""
    for key, value in found.items():
        here = (*place, str(key))
        if here == ("alarms",):
            continue
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            yield here, estimate(value)
        elif isinstance(value, Mapping):
            yield from _figures(value, here)
        elif isinstance(value, list):
            yield here, _listed(value)
        elif isinstance(value, float) and (here[-1] in _SHARES or here[-2:-1] == ("shares",)):
            yield here, f"{100 * value:.1f} %"
        elif isinstance(value, float) and value.is_integer():
            yield here, plain(int(value))
        else:
            yield here, plain(value)


def _listed(values: list[Any]) -> Child:
    if not values:
        return "none"
    lines = [tag("li", _one(value)) for value in values[:_MOST_EXAMPLES]]
    if len(values) > _MOST_EXAMPLES:
        lines.append(tag("li", f"and {len(values) - _MOST_EXAMPLES:,} more"))
    return details(plural(len(values), "entry", "entries"), tag("ul", *lines))


def _one(value: Any) -> str:
    """An alarm or example in one line, whatever its shape."""
    if isinstance(value, Mapping):
        return "; ".join(f"{_words(str(key))}: {_one(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_one, value))
    return plain(value)


def _words(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))
