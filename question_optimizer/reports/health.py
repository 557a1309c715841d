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
    "rate": "of the runs of 4 words",
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
_SHARES = {
    *("share", "rate", "over", "nothing", "self_repetition", "distinct_2"),
    *("identical", "near_duplicate"),
}

Place = tuple[str, ...]


def health_section(by_set: Mapping[str, Mapping[str, Any]]) -> Html:
    """Alarms first, then a column a set. Keys are not known here: a new figure gets its row."""
    if not by_set:
        return tag("p", "Not looked at.")
    columns = {name: dict(_figures(found or {}, ())) for name, found in by_set.items()}
    groups: dict[str, list[Place]] = {}
    for place in dict.fromkeys(place for column in columns.values() for place in column):
        groups.setdefault(place[0], []).append(place)
    rows: list[Row] = []
    # Single figures first: below a group they would seem to belong to it.
    for group, places in sorted(groups.items(), key=lambda named: any(p[1:] for p in named[1])):
        lines = [place for place in places if place[1:]] or places  # one set may have no details
        if lines[0][1:]:
            rows.append([_words(group)])
        for place in lines[:_MOST_LINES]:
            name = " · ".join(map(_words, place[1:] or place))
            rows.append([name, *(column.get(place, NOTHING) for column in columns.values())])
        if left := len(lines[_MOST_LINES:]):
            rows.append([tag("small", f"and {plural(left, 'more line')}"), *("" for _ in columns)])
    alarms = [_alarms(name, found.get("alarms")) for name, found in by_set.items() if found]
    return join([*alarms, table("Health of each set", ["", *columns], rows) if rows else None])


def _alarms(name: str, alarms: Any) -> Html | None:
    """What is wrong in a box of its own; mere notes below."""
    if not alarms:
        return None
    said = alarms if isinstance(alarms, list) else [alarms]
    notes = [one for one in said if isinstance(one, Mapping) and one.get("level") == "note"]
    warnings = [one for one in said if one not in notes]
    return join(
        [
            note("warn", f"{plural(len(warnings), 'alarm')}: {name}") if warnings else None,
            tag("ul", *(tag("li", _told(one)) for one in warnings)) if warnings else None,
            *(tag("p", tag("small", f"{name}: {_told(one)}")) for one in notes),
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
