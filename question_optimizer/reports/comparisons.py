"""The arms beside one another, and each comparison in figures: where a verdict comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from question_optimizer.reports.figures import (
    NOTHING,
    brief,
    chance,
    cost,
    level,
    number,
    plural,
    points,
    share,
    signed,
    span,
    two,
    whole,
)
from question_optimizer.reports.markup import Html, Row, details, join, table, tag
from question_optimizer.reports.plots import interval_plot
from question_optimizer.verdict import CRITERIA

Summary = Mapping[str, Any]
Comparison = Mapping[str, Any]
_FOLDED_ROWS = 15


def intervals_section(comparisons: Sequence[Comparison], min_gain: float | None) -> Html:
    if not comparisons:
        return tag("p", "No two arms were compared.")
    wanted = f" The dashed line is the least gain wanted, {signed(min_gain)}." if min_gain else ""
    said = (
        "Each item is compared with itself. Where the interval keeps clear of the zero line, "
        f"chance alone is an unlikely reason. A full point decides, an open one does not.{wanted}"
    )
    return join([tag("p", said), interval_plot(comparisons, min_gain)])


class _Measure(NamedTuple):
    """A line of the arms' table: how a value is written, and how a difference of two is."""

    key: str
    name: str
    value: Callable[[Any], str]
    difference: Callable[[Any], str] | None = None


def _gates(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{gate} {count}" for gate, count in counts.items()) or "none"


_MEASURES: dict[str, list[_Measure]] = {
    "Quality": [
        _Measure("score", "mean score, 0 to 1", number, signed),
        _Measure("passed", "passed", share, points),
        *(
            _Measure(name, f"{name.replace('_', ' ')}, 1 to 5", two, lambda d: signed(d, 2))
            for name in CRITERIA
        ),
    ],
    "Sound questions": [
        _Measure("items", "items", whole),
        _Measure("scored", "with a score", whole),
        _Measure("failed", "without a score", whole),
        _Measure("valid_rate", "readable questions", share, points),
        _Measure("gate_failure_rate", "stopped by a gate", share, points),
        _Measure("gates", "by gate", _gates),
    ],
    "Price of a question": [
        _Measure("tokens_per_question", "tokens", lambda v: number(v, 1), lambda d: signed(d, 1)),
        _Measure("seconds_per_question", "seconds", two, lambda d: signed(d, 2)),
        _Measure("median_seconds_per_question", "seconds, median", two, lambda d: signed(d, 2)),
        _Measure("cost_per_question", "cost", cost),
    ],
}


def arms_section(summary: Summary) -> Html:
    """The arms beside one another, and what each candidate has more than the baseline."""
    arms, before = summary["arms"], summary["baseline"]
    order = [arm for arm in summary["arm_order"] if arm in arms]
    if not order:
        return tag("p", "No arm was run.")
    candidates = [arm for arm in summary["candidates"] if arm in arms]
    rows: list[Row] = []
    for group, measures in _MEASURES.items():
        rows.append([group])
        for one in measures:
            values = {arm: arms[arm].get(one.key) for arm in order}
            if any(value is not None for value in values.values()):
                differences = (_difference(one, values, arm, before) for arm in candidates)
                rows.append([one.name, *(_shown(one, values[arm]) for arm in order), *differences])
    head = ["", *order, *(f"{arm} − {before}" for arm in candidates)]
    said = (
        "Means over the items that the arm has a score for, the criteria over those that no gate "
        "stopped; the differences here are those of the means. The verdict rests on the paired "
        "ones below."
    )
    return join([table("Arms", head, rows), tag("p", tag("small", said))])


def _shown(one: _Measure, value: Any) -> str:
    return NOTHING if value is None else one.value(value)


def _difference(one: _Measure, values: Mapping[str, Any], arm: str, before: str) -> str:
    first, last = values.get(before), values[arm]
    if one.difference is None or first is None or last is None:
        return ""
    return one.difference(last - first)


def comparisons_section(comparisons: Sequence[Comparison]) -> Html:
    if not comparisons:
        return tag("p", "No two arms were compared.")
    columns = [dict(_comparison(one)) for one in comparisons]
    rows: list[Row] = []
    for name, first in columns[0].items():
        rows.append([name] if first is None else [name, *(column[name] for column in columns)])
    whys = [
        tag("li", tag("strong", _decision(one), ": "), one["why"])
        for one in comparisons
        if one.get("why") and len(comparisons) > 1  # the only one stands beside the verdict
    ]
    return join(
        [
            tag("ul", *whys) if whys else None,
            table("Comparisons", ["", *map(_name, comparisons)], _measured(rows)),
            _guardrails(comparisons),
        ]
    )


def _measured(rows: Sequence[Row]) -> list[Row]:
    """Without groups of which nothing was measured in any comparison."""
    groups: list[list[Row]] = []
    for row in rows:
        if len(row) == 1:
            groups.append([])
        groups[-1].append(row)
    found = []
    for heading, *lines in groups:
        signs = {sign for _, *cells in lines for cell in cells for sign in str(cell)}
        found += [heading, *lines] if signs - {*f"{NOTHING} /"} else []
    return found


def _name(one: Comparison) -> str:
    return f"{one['arm']} − {one['against']}"


def _comparison(one: Comparison) -> Iterator[tuple[str, str | None]]:
    """The lines of a comparison's column; a name without a value begins a group."""
    mcnemar, pairwise, gap = (one.get(key) or {} for key in ("mcnemar", "pairwise", "gap"))
    yield "Scores, paired by item", None
    yield "verdict", _decision(one)
    yield "items", whole(one.get("n"))
    yield "difference", signed(one.get("difference"))
    yield "interval", _interval(one)
    yield "standard deviation", number(one.get("standard_deviation"))
    yield "p, sign-flip test", chance(one.get("p"))
    yield "p after Holm's correction", chance(one.get("p_holm"))
    yield "better / equal / worse", _triple(one)
    yield "Passed or not", None
    yield "newly passed", whole(mcnemar.get("only_arm"))
    yield "no longer passed", whole(mcnemar.get("only_against"))
    yield "p, McNemar's exact test", chance(mcnemar.get("p"))
    yield "p, McNemar, after Holm", chance(mcnemar.get("p_holm"))
    yield "Side by side, blind, in both orders", None
    yield "pairs", whole(pairwise.get("n"))
    yield "preferred / on a par / not", _triple(pairwise)
    yield "p, exact sign test", chance(pairwise.get("p"))
    yield "asked of the judge", whole(pairwise.get("asked"))
    yield "same answer in both orders", share(pairwise.get("consistent"))
    yield "Gain on items that the optimiser saw", None
    yield "seen items", whole(gap.get("n_seen"))
    yield "gain, seen (train and dev)", signed(gap.get("seen"))
    yield "gain, unseen (test)", signed(gap.get("unseen"))
    yield "gap", f"{signed(gap.get('gap'))}{_bracket(gap)}"
    yield "What this many items can show", None
    yield "smallest detectable difference", number(one.get("smallest_detectable"))
    yield "test items needed", whole(one.get("items_needed"))
    yield "gold items needed for them", whole(one.get("gold_items_needed"))


def _decision(one: Comparison) -> str:
    return str(one.get("verdict") or NOTHING) if one.get("decides") else "does not decide"


def _interval(one: Comparison) -> str:
    if one.get("low") is None or one.get("high") is None:
        return "–"
    return f"{span(one['low'], one['high'])} ({level(one.get('level'))})"


def _bracket(found: Mapping[str, Any]) -> str:
    low, high = found.get("low"), found.get("high")
    if low is None or high is None:
        return ""
    at = f", {level(found['level'])}" if found.get("level") else ""
    return f" ({span(low, high)}{at})"


def _triple(found: Mapping[str, Any]) -> str:
    return " / ".join(whole(found.get(key)) for key in ("wins", "ties", "losses"))


def _guardrails(comparisons: Sequence[Comparison]) -> Html:
    """What a gain must not be bought with; broken ones first."""
    found = [(one, rail) for one in comparisons for rail in one.get("guardrails") or []]
    if not found:
        return tag("p", "No guardrail was set.")
    found.sort(key=lambda pair: not pair[1].get("broken"))
    rows = [
        [
            rail["name"],
            *([_name(one)] if len(comparisons) > 1 else []),
            tag("strong", "✗\u00a0broken", class_="loss") if rail.get("broken") else _kept(rail),
            brief(rail.get("against")),
            brief(rail.get("arm")),
            rail.get("limit", ""),
            rail.get("text", ""),
        ]
        for one, rail in found
    ]
    whose = ["Comparison"] if len(comparisons) > 1 else []
    head = ["", *whose, "State", "Reference", "Candidate", "Limit", "In words"]
    return table("Guardrails", head, rows, words=True)


def groups_section(summary: Summary) -> Html:
    """Where the differences come from."""
    comparisons = summary["comparisons"]
    names = [_name(one) for one in comparisons]
    models = {key: None for arm in summary["arms"].values() for key in arm.get("by_model") or {}}
    models |= {part["model"]: None for one in comparisons for part in one.get("by_model") or []}
    order = [arm for arm in summary["arm_order"] if arm in summary["arms"]]
    rows: list[Row] = [
        [
            model or "not known",
            *(_mean_of((summary["arms"][arm].get("by_model") or {}).get(model)) for arm in order),
            *(_part_of(one.get("by_model"), "model", model) for one in comparisons),
        ]
        for model in models
    ]
    by_model = table("By model that wrote the question", ["", *order, *names], rows)
    return join([by_model if models else tag("p", "No model was recorded."), _documents(summary)])


def _documents(summary: Summary) -> Html | None:
    comparisons = summary["comparisons"]
    first = {
        part["document"]: part["difference"] if part.get("difference") is not None else 0.0
        for one in reversed(comparisons)
        for part in one.get("by_document") or []
    }
    if not first:
        return tag("p", "No document was recorded.")
    rows = [
        [document or "not known"]
        + [_part_of(one.get("by_document"), "document", document) for one in comparisons]
        for document in sorted(first, key=lambda name: (first[name], name))
    ]
    shown = table("By document, largest loss first", ["", *map(_name, comparisons)], rows)
    return details(plural(len(rows), "document"), shown) if len(rows) > _FOLDED_ROWS else shown


def _mean_of(found: Mapping[str, Any] | None) -> str:
    return f"{number(found.get('score'))} (n {whole(found.get('n'))})" if found else "–"


def _part_of(parts: Sequence[Mapping[str, Any]] | None, key: str, name: str) -> str:
    found = next((part for part in parts or [] if part[key] == name), None)
    return f"{signed(found.get('difference'))} (n {whole(found.get('n'))})" if found else "–"


def _kept(rail: Mapping[str, Any]) -> str:
    known = rail.get("arm") is not None
    return "✓\u00a0kept" if known else "–\u00a0not compared"
