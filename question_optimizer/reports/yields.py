"""Which questions the gates let pass, by kind, and which gate stops too many of one kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from question_optimizer.reports.figures import NOTHING, plural, share, whole
from question_optimizer.reports.markup import Child, Html, Row, details, join, table, tag
from question_optimizer.reports.plots import share_bar

Summary = Mapping[str, Any]
_SHOWN = 20  # kinds with the lowest yield, and as many with the highest
# Few kinds each, so that they fit the heads of two tables.
_CROSSED = {"by type": ("type",), "by format and length": ("format", "length")}
_NAMES = {
    "type": "Query type",
    "format": "Format",
    "length": "Planned length",
    "persona": "Persona",
    "document": "Document",
    "model": "Model",
}


def gates_section(summary: Summary) -> Html:
    """How many questions each gate refused; and, where kinds are few, of which kind."""
    gates = summary["gates"]
    if not gates:
        return tag("p", "No gate refused or recorded anything.")
    head = ["", "Of those asked", "Refused", "Given up", "Recorded, not refused"]
    rows: list[Row] = [
        [
            one["gate"],
            _barred(one["share"]["value"]),
            whole(one["refused"]),
            whole(one["slots_rejected"]),
            whole(one["recorded"]),
        ]
        for one in gates
    ]
    said = (
        "A question meets the gates in turn and is refused by the first that objects. It is given "
        "up when so were all that were asked in its stead."
    )
    crossed = (_crossed(summary, words, *parts) for words, parts in _CROSSED.items())
    return join([tag("p", said), table("Gates", head, rows), *crossed, *_marked(summary)])


def _marked(summary: Summary) -> Iterator[Html]:
    if any(warning["code"] == "gate" for warning in summary["warnings"]):
        said = "⚠ marks more than 40 %: such a gate is more likely wrong than the questions are."
        yield tag("p", tag("small", said))


def _crossed(summary: Summary, words: str, *dimensions: str) -> Html | None:
    """A row a gate, a column a kind: the share of its questions that the gate stops."""
    kinds = [
        (dimension, one)
        for dimension in dimensions
        for one in summary["yields"][dimension]["listed"]
        if one["kind"] is not None and one["asked"]
    ]
    if not kinds:
        return None
    suspects = {
        (warning["gate"], warning["dimension"], warning["kind"])
        for warning in summary["warnings"]
        if warning["code"] == "gate"
    }
    rows: list[Row] = []
    for gate in (one["gate"] for one in summary["gates"]):
        cells: list[Child] = [gate]
        for dimension, one in kinds:
            stopped = one["gates"].get(gate, 0) + one["recorded"].get(gate, 0)
            much = {(gate, dimension, one["kind"]), (gate, "all", None)} & suspects
            shown = share(stopped / one["asked"]) if stopped else NOTHING
            cells.append(tag("strong", "⚠\u00a0", shown, class_="loss") if much else shown)
        rows.append(cells)
    return table(f"Share stopped, {words}", ["", *(one["kind"] for _, one in kinds)], rows)


def yields_section(summary: Summary) -> Html:
    """A table a dimension; many kinds are cut down to both ends."""
    parts: list[Child] = [
        tag("p", "Lowest first. The interval is one of 95 % (Wilson); failures are no gate's doing "
            "and not counted in."),
    ]  # fmt: skip
    for dimension, found in summary["yields"].items():
        if any(one["kind"] is not None for one in found["listed"]):
            parts.append(_table(dimension, found))
    return join(parts)


def _table(dimension: str, found: Summary) -> Html:
    listed, rest = found["listed"], found["rest"]
    rows: list[Row] = [_row(one) for one in listed]
    caption = _NAMES.get(dimension, dimension)
    if len(listed) > 2 * _SHOWN:
        cut = len(listed) - 2 * _SHOWN
        rows = [
            ["Lowest"],
            *rows[:_SHOWN],
            [f"Highest; {plural(cut, 'other')} between are in the summary's JSON"],
            *rows[-_SHOWN:],
        ]
        caption = f"{caption}: the {_SHOWN} lowest and highest of {whole(found['kinds'])}"
    if rest:
        rows += [["The rest"], _row({**rest, "kind": plural(rest["kinds"], "other")})]
    head = ["", "Yield", "Asked", "Accepted", "Failed", "95 %", "Refused most by"]
    shown = table(caption, head, rows)
    if len(listed) <= _SHOWN:
        return shown
    return details(plural(found["kinds"], _NAMES.get(dimension, dimension).lower()), shown)


def _row(one: Summary) -> Row:
    found = one["yield"]
    interval = (
        NOTHING if found["low"] is None else f"{share(found['low'])} to {share(found['high'])}"
    )
    return [
        "not known" if one["kind"] is None else one.get("name") or one["kind"],
        _barred(found["value"]),
        whole(one["asked"]),
        whole(one["accepted"]),
        whole(one["failed"]),
        interval,
        _strictest(one["gates"]),
    ]


def _strictest(gates: Mapping[str, int]) -> str:
    if not gates:
        return NOTHING
    gate = min(gates, key=lambda gate: (-gates[gate], gate))
    return f"{gate} {whole(gates[gate])}"


def _barred(value: float | None) -> Html:
    return join([share(value), share_bar(value)])
