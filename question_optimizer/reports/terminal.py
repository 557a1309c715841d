"""The same verdict in a terminal: a sentence, the figures, and examples that tell most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from question_optimizer.hostile_text import one_line, printable
from question_optimizer.reports.figures import cost, figure
from question_optimizer.verdict import CRITERIA

_KINDS = {
    "rejected": "your choice over what you left",
    "bad": "your choice over what you marked bad",
    "planted": "your choice over a planted bad one",
}
_EXCERPT = 160  # characters of a chunk


def show_verdict(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, examples: int
) -> None:
    """The verdict, the tables and the examples of one evaluation, on stdout."""
    console = Console()
    console.print(_said(summary["sentence"], style="bold"))
    console.print(_arms(summary))
    console.print(_comparisons(summary["comparisons"]))
    for comparison in summary["comparisons"]:
        for guardrail in comparison["guardrails"]:
            if guardrail["broken"]:
                console.print(_said(f"broken, {comparison['arm']}: {guardrail['text']}"))
    console.print(_said(f"judge {trust(summary['judge'])}: {summary['judge']['why']}"))
    for name, origin in summary.get("programs", {}).items():
        if origin.get("rehearsal") and not summary["rehearsal"]:
            console.print(_said(f"{name} was optimised by the rehearsal, not by a real model"))
        if not origin["judge_trusted"]:
            state = "failed its check" if origin["judge_checked"] else "was not checked"
            console.print(
                _said(f"{name} was optimised with a judge that {state}: {origin['judge_why']}")
            )
    for item in _telling(summary, rows)[:examples]:
        for line in _example(summary["arm_order"], item):
            console.print(line)


def show_check(found: Mapping[str, Any]) -> None:
    """What the judge's check found, on stdout."""
    console = Console()
    table = Table(title=f"the {found['judge']} judge on {found['pairs']} pairs")
    table.add_column("")
    for heading in ("pairs", "by score (0.5 = guessing)", "side by side (0.5 = guessing)"):
        table.add_column(heading, justify="right")
    for kind, figures in found["by_kind"].items():
        by_score, side_by_side = estimate(figures["pointwise"]), estimate(figures["pairwise"])
        table.add_row(_KINDS[kind], str(figures["pairs"]), by_score, side_by_side)
    by_score, side_by_side = estimate(found["pointwise"]), estimate(found["pairwise"])
    table.add_row("all", str(found["pairs"]), by_score, side_by_side)
    console.print(table)
    labels, order = found["labels"], found["order"]
    for name, value in (
        ("passes your good, fails the bad ones", labels["raw"]),
        ("  Cohen's kappa", labels["kappa"]),
        ("  Gwet's AC1", labels["ac1"]),
        ("the same answer in both orders", order["consistent"]),
        ("chooses what is shown first", order["first_chosen"]),
    ):
        console.print(Text(f"{name:42} {estimate(value)}"))
    console.print(_said(f"{trust(found)}: {found['why']}", style="bold"))


def _said(text: str, style: str = "") -> Text:
    """One inert line, whatever data stands in it: no escape, no second line of its own."""
    return Text(printable(one_line(text)), style=style)


def estimate(figures: Mapping[str, float | None]) -> str:
    """ "0.78 (0.69 to 0.85)", or a dash where nothing was measured."""
    value, low, high = (figures[name] for name in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def trust(judge: Mapping[str, Any]) -> str:
    """What the judge's check came to, in a word or three."""
    if not judge["checked"]:
        return "NOT CHECKED"
    if not judge["trusted"]:
        return "NOT TRUSTED"
    return "trusted IN PART" if judge["in_part"] else "trusted"


def chance(p: float | None) -> str:
    """A p value; a permutation test of 10,000 draws knows none below 0.0001."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _arms(summary: Mapping[str, Any]) -> Table:
    arms = summary["arm_order"]
    table = Table(title=f"test split, {summary['items']} items")
    table.add_column("")
    for arm in arms:
        table.add_column(printable(arm), justify="right")
    for key, value in summary["arms"][arms[0]].items():
        if not isinstance(value, Mapping | list) and key not in ("items", "scored"):
            cells = [summary["arms"][arm][key] for arm in arms]
            name = key.replace("_", " ") + (" *" if key in CRITERIA else "")
            shown = cost if key == "cost_per_question" else figure
            table.add_row(name, *map(shown, cells))
    stopped = [_named(summary["arms"][arm]["gates"]) for arm in arms]
    if any(stopped):
        table.add_row("stopped by gates", *stopped)
        table.caption = "* of those that no gate stopped"
    return table


def _named(gates: Mapping[str, int]) -> str:
    return "\n".join(f"{gate} {count}" for gate, count in gates.items())


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="differences, item by item")
    table.add_column("")
    for c in comparisons:
        table.add_column(printable(f"{c['arm']} − {c['against']}"), justify="right")
    columns = [list(_compared(c)) for c in comparisons]
    for cells in zip(*columns, strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    return table


def _compared(c: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    mcnemar, pairwise = c["mcnemar"], c["pairwise"]
    known = c["low"] is not None
    yield "difference", figure(c["difference"])
    yield "interval", f"{c['low']:+.3f} to {c['high']:+.3f}" if known else "–"
    yield "level", f"{100 * c['level']:g} %"
    yield "p, sign flips", chance(c["p_holm"])
    yield "items better / same / worse", f"{c['wins']} / {c['ties']} / {c['losses']}"
    yield "passes won, lost", f"{mcnemar['only_arm']}, {mcnemar['only_against']}"
    yield "p, McNemar", chance(mcnemar["p_holm"])
    sides = f"{pairwise['wins']} / {pairwise['ties']} / {pairwise['losses']}" if pairwise else "–"
    yield "side by side, win / tie / loss", sides
    yield "  of them asked of the judge", str(pairwise["asked"]) if pairwise else "–"
    yield "verdict", c["verdict"] if c["decides"] else "(decides nothing)"


def _telling(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Mapping[str, Any]]]:
    """Items as {arm: its first row}: in turn the largest loss and the largest gain yet unshown,
    then those that did not change."""
    by_item: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_item.setdefault(row["item"], {}).setdefault(row["arm"], row)
    first, second = summary["baseline"], summary["candidates"][0]

    def gain(item: Mapping[str, Mapping[str, Any]]) -> float:
        before, after = (item[arm]["score"] if arm in item else None for arm in (first, second))
        return 0.0 if before is None or after is None else after - before

    ordered = sorted(by_item.values(), key=gain)
    turns = zip(ordered, reversed(ordered), strict=True)
    told = [item for turn in turns for item in turn][: len(ordered)]
    return sorted(told, key=lambda item: not gain(item))  # what changed first


def _example(arms: Sequence[str], item: Mapping[str, Mapping[str, Any]]) -> Iterator[Text]:
    first = next(iter(item.values()))
    excerpt = printable(one_line(first["chunk_text"])[:_EXCERPT])
    yield Text(f"\nchunk      {excerpt}…", style="dim")
    yield _said(f"gold       {first['gold_question']}")
    for arm in arms:
        if arm in item:
            row = item[arm]
            said = row["question"] if row["score"] is not None else f"failed: {row['error']}"
            score = "" if row["score"] is None else f"  ({row['score']:.2f})"
            yield Text(f"{printable(arm):10} {printable(one_line(said or '–'))}{score}")
